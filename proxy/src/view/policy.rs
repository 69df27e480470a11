//! Rows of network policies: what is in force, for whom, and why.

use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::Row;

/// One NetworkPolicy or ClusterNetworkPolicy of the source.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicyRow {
    /// Namespace of the policy, and of the pods that it is for; empty for one of the cluster.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// `Admin`, `NetworkPolicy` or `Baseline`.
    pub tier: String,
    /// The priority within the tier, which NetworkPolicies do not have.
    pub priority: Option<u16>,
    /// The directions that it isolates, or has rules for: `ingress`, `egress`.
    pub isolates: Vec<String>,
    /// How many pods of this node it selects.
    pub pods: usize,
    /// What could not be read of it, field and reason. Such a policy fails closed: a NetworkPolicy denies
    /// everything, and so does one of the cluster, but where a fault is within a rule, which alone fails closed.
    pub faults: Vec<String>,
}

impl Row for PolicyRow {
    fn header(wide: bool) -> Vec<&'static str> {
        let mut header = vec!["POLICY", "TIER", "PRIORITY", "DIRECTIONS", "PODS", "STATE"];
        if wide {
            header.push("FAULTS");
        }
        header
    }

    fn cells(&self, wide: bool) -> Vec<String> {
        let state = match (self.faults.first(), self.pods) {
            (Some(fault), _) if self.priority.is_some() => {
                format!("refused, fails closed: {fault}")
            }
            (Some(fault), _) => format!("refused, denies everything: {fault}"),
            (None, 0) => "selects no pod here".to_owned(),
            (None, _) => "in force".to_owned(),
        };
        let name = match self.namespace.as_str() {
            "" => self.name.clone(),
            namespace => format!("{namespace}/{}", self.name),
        };
        let priority = self.priority.map_or("-".to_owned(), |priority| priority.to_string());
        let directions = self.isolates.join(", ");
        let pods = self.pods.to_string();
        let mut cells = vec![name, self.tier.clone(), priority, directions, pods, state];
        if wide {
            cells.push(self.faults.join("; "));
        }
        cells
    }
}

/// An identity: addresses of which the rules in force say the same.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct IdentityRow {
    /// Its number in the kernel.
    pub identity: u32,
    /// What has it, as prefixes.
    pub prefixes: Vec<String>,
    /// The pods among them.
    pub pods: Vec<String>,
    /// The peers of rules that these addresses are; unknown without the agent.
    pub peers: Vec<String>,
}

impl Row for IdentityRow {
    fn header(wide: bool) -> Vec<&'static str> {
        let mut header = vec!["IDENTITY", "PREFIXES", "PODS", "PEERS"];
        if wide {
            header[1] = "ALL PREFIXES";
        }
        header
    }

    fn cells(&self, wide: bool) -> Vec<String> {
        vec![
            self.identity.to_string(),
            some(&self.prefixes, wide),
            some(&self.pods, wide),
            self.peers.join("; "),
        ]
    }
}

/// The first few of a list, unless all are asked for.
fn some(list: &[String], all: bool) -> String {
    const FEW: usize = 3;
    if all || list.len() <= FEW {
        return list.join(", ");
    }
    format!("{} and {} more", list[..FEW].join(", "), list.len() - FEW)
}

/// What a pod of this node is allowed, as the kernel has it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodPolicies {
    /// The pod.
    pub pod: String,
    /// Its addresses, each with its identity as the peer of others (0: none tells it apart).
    pub addresses: Vec<(IpAddr, u32)>,
    /// Index of its interface.
    pub ifindex: u32,
    /// Connections to it.
    pub ingress: DirectionView,
    /// Connections from it.
    pub egress: DirectionView,
}

/// One direction of a pod.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DirectionView {
    /// `open`, `closed`, or `set N`.
    pub state: String,
    /// The policies that isolate it, and those of the cluster that deny something, with their tier.
    pub policies: Vec<String>,
    /// The rules of cluster-wide policies, in the order in which they are asked.
    #[serde(default)]
    pub cluster: Vec<String>,
    /// What is allowed.
    pub rules: Vec<String>,
    /// What is denied, though a wider rule would allow it.
    #[serde(default)]
    pub denials: Vec<String>,
    /// Packets that were dropped.
    pub dropped: u64,
}

impl fmt::Display for PodPolicies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "Pod:        {} (interface {})", self.pod, self.ifindex)?;
        for (addr, identity) in &self.addresses {
            match identity {
                0 => writeln!(f, "Address:    {addr}, which no rule tells apart")?,
                identity => writeln!(f, "Address:    {addr}, identity {identity}")?,
            }
        }
        for (name, direction) in [("Ingress", &self.ingress), ("Egress", &self.egress)] {
            let DirectionView { state, policies, cluster, rules, denials, dropped } = direction;
            writeln!(f, "{:<12}{state}, {dropped} packets dropped", format!("{name}:"))?;
            if !policies.is_empty() {
                writeln!(f, "  isolated by {}", policies.join(", "))?;
            }
            for rule in cluster {
                writeln!(f, "  {rule}")?;
            }
            for rule in rules {
                writeln!(f, "  allows {rule}")?;
            }
            for rule in denials {
                writeln!(f, "  denies {rule}")?;
            }
        }
        Ok(())
    }
}

/// Whether one end may talk to another, by the objects and by the kernel's tables.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicyTrace {
    /// Who asks, with address.
    pub from: String,
    /// Who is asked, with address.
    pub to: String,
    /// Port and protocol, `80/TCP`.
    pub port: String,
    /// Whether it passes, by the objects.
    pub allowed: bool,
    /// What the sender's policies say.
    pub egress: SideTrace,
    /// What the receiver's policies say.
    pub ingress: SideTrace,
    /// Whether objects and kernel agree, as far as the pods are on this node.
    pub agree: bool,
}

/// One end of a [`PolicyTrace`].
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SideTrace {
    /// Whether it passes, by the objects.
    pub allowed: bool,
    /// Which rule says so.
    pub model: String,
    /// Whether it passes, by the kernel's tables; unknown for pods of other nodes.
    pub kernel_allowed: Option<bool>,
    /// Which entry says so.
    pub kernel: String,
}

impl fmt::Display for PolicyTrace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = |allowed| if allowed { "allowed" } else { "denied" };
        writeln!(f, "{} to {} {}: {}", self.from, self.to, self.port, word(self.allowed))?;
        for (name, side) in [("egress", &self.egress), ("ingress", &self.ingress)] {
            writeln!(f, "  {name:<8} policies  {:<8} {}", word(side.allowed), side.model)?;
            let kernel = side.kernel_allowed.map_or("-", word);
            writeln!(f, "  {:<8} kernel    {kernel:<8} {}", "", side.kernel)?;
        }
        if !self.agree {
            writeln!(f, "The kernel does not do what the policies say: see proxyctl status")?;
        }
        Ok(())
    }
}
