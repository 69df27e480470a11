//! What the control socket tells of network policies.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use sluice_abi::{PolicyDrops, PolicyKey, PolicySets};
use sluice_model::{
    ClusterNetworkPolicy, ClusterPolicyRule, NetworkPolicy, ObjectName, PolicyAction,
};
use sluice_plan::{Judgement, Party, PolicyTables};

use super::run::Agent;
use crate::control::{Answer, Reply, TraceRequest};
use crate::dataplane::DataplaneError;
use crate::view::{DirectionView, IdentityRow, PodPolicies, PolicyRow, PolicyTrace, SideTrace};

/// What a request comes to: an answer, or what is wrong and what to do about it.
type Told = Result<Reply, (String, &'static str)>;

impl Agent {
    /// Answers one of the requests for policies.
    pub(super) fn policy_answer(&self, told: Told) -> Answer {
        if !self.policies.is_on() {
            let hint = "sluiced runs with --network-policy false";
            return Answer::error("network policies are off", hint);
        }
        match told {
            Ok(reply) => Answer::data(reply),
            Err((error, hint)) => Answer::error(error, hint),
        }
    }

    /// All policies of the source.
    pub(super) fn policy_list(&self) -> Told {
        let row = |policy: &NetworkPolicy| {
            let directions = [("ingress", &policy.ingress), ("egress", &policy.egress)];
            let isolates = directions.into_iter().filter(|(_, rules)| rules.is_some());
            let faults = policy.faults.iter();
            PolicyRow {
                namespace: policy.meta.name.namespace.clone(),
                name: policy.meta.name.name.clone(),
                tier: "NetworkPolicy".to_owned(),
                priority: None,
                isolates: isolates.map(|(name, _)| name.to_owned()).collect(),
                pods: self.policies.planner().selected(&policy.meta.name),
                faults: faults.map(|fault| format!("{}: {}", fault.field, fault.message)).collect(),
            }
        };
        let of_cluster = |policy: &ClusterNetworkPolicy| {
            let directions = [("ingress", &policy.ingress), ("egress", &policy.egress)];
            let has_rules = directions.into_iter().filter(|(_, rules)| !rules.is_empty());
            let faults = policy.faults.iter();
            PolicyRow {
                namespace: String::new(),
                name: policy.meta.name.name.clone(),
                tier: policy.tier.to_string(),
                priority: Some(policy.priority),
                isolates: has_rules.map(|(name, _)| name.to_owned()).collect(),
                pods: self.policies.planner().selected(&policy.meta.name),
                faults: faults.map(|fault| format!("{}: {}", fault.field, fault.message)).collect(),
            }
        };
        let rows = self.cache.policies().map(row);
        Ok(Reply::Policies(rows.chain(self.cache.cluster_policies().map(of_cluster)).collect()))
    }

    /// The identities that the kernel has, with what they mean.
    pub(super) fn identity_list(&self) -> Told {
        let tables = self.dataplane.policy_tables().map_err(unreadable)?;
        let planner = self.policies.planner();
        let mut pods: BTreeMap<u32, BTreeSet<String>> = BTreeMap::new();
        for (key, identity) in tables.identities.iter().filter(|(key, _)| key.prefix_len == 128) {
            if let Some(pod) = planner.pod_at(key.addr.to_ip()) {
                pods.entry(*identity).or_default().insert(pod.to_string());
            }
        }
        let mut rows = identities(&tables);
        for row in &mut rows {
            row.peers = planner.identity(row.identity);
            row.pods = pods.remove(&row.identity).into_iter().flatten().collect();
        }
        Ok(Reply::Identities(rows))
    }

    /// What the kernel allows one pod of this node.
    pub(super) fn policy_get(&self, pod: &ObjectName) -> Told {
        let Some(local) = self.policies.local().get(pod) else {
            let hint = "proxyctl endpoint list shows the pods of this node";
            return Err((format!("no pod {pod} with its programs on this node"), hint));
        };
        let tables = self.dataplane.policy_tables().map_err(unreadable)?;
        let drops = self.dataplane.view().policy_drops().map_err(unreadable)?;
        let drops: BTreeMap<u32, PolicyDrops> = drops.into_iter().collect();
        let drops = drops.get(&local.ifindex).copied().unwrap_or_default();
        let sets = tables.sets.get(&local.ifindex).copied().unwrap_or_default();
        let direction = |set, ingress, dropped| {
            let isolates = |policy: &&NetworkPolicy| {
                if ingress { policy.ingress.is_some() } else { policy.egress.is_some() }
            };
            let policies = self.policies.planner().selecting(pod).filter(isolates);
            let of_cluster = self.policies.planner().cluster_selecting(pod);
            let denying = of_cluster.iter().filter(|policy| denies(policy, ingress));
            let denying = denying.map(|policy| format!("{} ({})", policy.meta.name, policy.tier));
            let policies = policies.map(|policy| policy.meta.name.to_string());
            let of_cluster = of_cluster.iter().flat_map(|policy| cluster_rules(policy, ingress));
            let rules = |wanted: bool| {
                let rules = tables.of(set, 0..=u32::MAX).filter(|(_, allows)| *allows == wanted);
                rules.map(|(key, _)| self.rule_text(&key)).collect()
            };
            DirectionView {
                state: set_text(set),
                policies: policies.chain(denying).collect(),
                cluster: of_cluster.collect(),
                rules: rules(true),
                denials: rules(false),
                dropped,
            }
        };
        Ok(Reply::PodPolicies(Box::new(PodPolicies {
            pod: pod.to_string(),
            addresses: local.addrs.iter().map(|addr| (*addr, tables.identity(*addr))).collect(),
            ifindex: local.ifindex,
            ingress: direction(sets.ingress, true, drops.ingress),
            egress: direction(sets.egress, false, drops.egress),
        })))
    }

    /// A rule, with what its identity means.
    fn rule_text(&self, key: &PolicyKey) -> String {
        let text = PolicyTables::rule_text(key, true);
        // What comes after the set's number, which is the same for all.
        let text = text.split_once(" allows ").map_or(text.as_str(), |(_, rest)| rest);
        match self.policies.planner().identity(key.identity) {
            peers if peers.is_empty() => text.to_owned(),
            peers => format!("{text} ({})", peers.join("; ")),
        }
    }

    /// Whether one end may talk to another, by the objects and by the kernel.
    pub(super) fn policy_trace(&self, request: &TraceRequest) -> Told {
        let (from, to) = self.trace_ends(&request.from, &request.to)?;
        let own = |pod: &End, other: &End| self.is_own_node(pod, other);
        let party = |end: &End, other: &End| {
            if own(other, end) { Party::OwnNode(end.addr) } else { Party::Addr(end.addr) }
        };
        let protocol = request.protocol.number();
        let explanation = self.policies.planner().explain(
            party(&from, &to),
            party(&to, &from),
            Some(request.protocol),
            request.port,
        );
        let tables = self.dataplane.policy_tables().map_err(unreadable)?;
        let side = |judgement: &Judgement, own: &End, peer: &End, ingress: bool| SideTrace {
            allowed: judgement.allows(),
            model: judgement_text(judgement),
            ..self.kernel_side(&tables, own, peer, ingress, protocol, request.port)
        };
        let egress = side(&explanation.egress, &from, &to, false);
        let ingress = side(&explanation.ingress, &to, &from, true);
        let agrees = |side: &SideTrace| side.kernel_allowed.is_none_or(|it| it == side.allowed);
        // A pod's packets to its own address never leave it.
        let itself = from.addr == to.addr;
        Ok(Reply::PolicyTrace(Box::new(PolicyTrace {
            from: from.text(),
            to: to.text(),
            port: format!("{}/{}", request.port, request.protocol),
            allowed: itself || explanation.allows(),
            agree: agrees(&egress) && agrees(&ingress),
            egress,
            ingress,
        })))
    }

    fn kernel_side(
        &self,
        tables: &PolicyTables,
        own: &End,
        peer: &End,
        ingress: bool,
        protocol: u8,
        port: u16,
    ) -> SideTrace {
        let told = |allowed: Option<bool>, kernel: String| SideTrace {
            kernel_allowed: allowed,
            kernel,
            ..SideTrace::default()
        };
        let Some(pod) = &own.pod else { return told(None, "no pod".to_owned()) };
        let Some(local) = self.policies.local().get(pod) else {
            return told(None, "not on this node: its own node judges".to_owned());
        };
        // What a pod asks of its node is looked up by the node's addresses.
        let is_known = !ingress && self.policies.is_node(peer.addr);
        if self.is_own_node(own, peer) && !is_known {
            return told(Some(true), "the pod's own node is not judged".to_owned());
        }
        let sets = tables.sets.get(&local.ifindex).copied().unwrap_or_default();
        let set = if ingress { sets.ingress } else { sets.egress };
        if set == PolicySets::OPEN || set == PolicySets::CLOSED {
            return told(Some(set == PolicySets::OPEN), set_text(set));
        }
        match tables.matching(set, peer.addr, protocol, port) {
            Some((key, allows)) => told(Some(allows), PolicyTables::rule_text(&key, allows)),
            None => {
                let identity = tables.identity(peer.addr);
                told(Some(false), format!("set {set} has nothing for identity {identity}"))
            }
        }
    }

    /// Whether the other end is the node that the pod runs on.
    fn is_own_node(&self, pod: &End, other: &End) -> bool {
        let Some(name) = &pod.pod else { return false };
        let object = self.cache.pod(name);
        let node = match self.policies.local().contains_key(name) {
            true => Some(self.node.as_str()),
            false => object.and_then(|pod| pod.node.as_deref()),
        };
        let node = node.and_then(|node| self.cache.node(node));
        node.is_some_and(|node| node.addrs.iter().any(|address| address.addr == other.addr))
    }

    /// The two ends, in a family that both have.
    fn trace_ends(&self, from: &str, to: &str) -> Result<(End, End), (String, &'static str)> {
        let (from, to) = (self.trace_end(from)?, self.trace_end(to)?);
        let same_family = |source: &End| {
            let target = to.iter().find(|to| to.addr.is_ipv4() == source.addr.is_ipv4())?;
            Some((source.clone(), target.clone()))
        };
        let none = ("the two have no addresses of one family".to_owned(), "");
        from.iter().find_map(same_family).ok_or(none)
    }

    fn trace_end(&self, text: &str) -> Result<Vec<End>, (String, &'static str)> {
        let planner = self.policies.planner();
        if let Ok(addr) = text.parse::<IpAddr>() {
            return Ok(vec![End { pod: planner.pod_at(addr).cloned(), addr }]);
        }
        let (namespace, name) = text.split_once('/').unwrap_or(("default", text));
        let name = ObjectName::new(namespace, name);
        let mut addrs = planner.addrs(&name);
        let pod = if addrs.is_empty() {
            // One of the host's network is its node to policies.
            addrs = self.cache.pod(&name).map(|pod| pod.addrs.clone()).unwrap_or_default();
            None
        } else {
            Some(name.clone())
        };
        if addrs.is_empty() {
            let hint = "name a pod as NAMESPACE/NAME, or an address";
            return Err((format!("no pod {name} with an address"), hint));
        }
        Ok(addrs.into_iter().map(|addr| End { pod: pod.clone(), addr }).collect())
    }
}

/// One end of a connection.
#[derive(Clone, Debug)]
struct End {
    pod: Option<ObjectName>,
    addr: IpAddr,
}

impl End {
    fn text(&self) -> String {
        match &self.pod {
            Some(pod) => format!("{pod} ({})", self.addr),
            None => self.addr.to_string(),
        }
    }
}

/// The identities of the kernel's tables, without what only the agent knows.
pub(crate) fn identities(tables: &PolicyTables) -> Vec<IdentityRow> {
    let mut rows: BTreeMap<u32, IdentityRow> = BTreeMap::new();
    for (key, identity) in &tables.identities {
        let row = rows.entry(*identity).or_insert_with(|| IdentityRow {
            identity: *identity,
            prefixes: Vec::new(),
            pods: Vec::new(),
            peers: Vec::new(),
        });
        row.prefixes.push(PolicyTables::prefix_text(key));
    }
    rows.into_values().collect()
}

fn unreadable(error: DataplaneError) -> (String, &'static str) {
    (error.to_string(), "see sluiced's log")
}

fn set_text(set: u32) -> String {
    match set {
        PolicySets::OPEN => "open".to_owned(),
        PolicySets::CLOSED => "closed".to_owned(),
        number => format!("set {number}"),
    }
}

/// Whether a cluster-wide policy denies anything in one direction.
fn denies(policy: &ClusterNetworkPolicy, ingress: bool) -> bool {
    let rules = if ingress { &policy.ingress } else { &policy.egress };
    rules.iter().any(|rule| match rule.action {
        PolicyAction::Accept => false,
        PolicyAction::Deny => true,
        PolicyAction::Pass => !rule.understood,
    })
}

/// The rules of a cluster-wide policy in one direction, a line each.
fn cluster_rules(policy: &ClusterNetworkPolicy, ingress: bool) -> Vec<String> {
    let rules = if ingress { &policy.ingress } else { &policy.egress };
    let text = |(index, rule): (usize, &ClusterPolicyRule)| {
        let ClusterPolicyRule { name, action, understood, .. } = rule;
        let named = if name.is_empty() { String::new() } else { format!(" ({name})") };
        let closed = if *understood { "" } else { "; not understood, so it fails closed" };
        let (tier, priority) = (policy.tier, policy.priority);
        let policy = &policy.meta.name;
        format!("{tier} tier, priority {priority}: {policy}, rule {index}{named}: {action}{closed}")
    };
    rules.iter().enumerate().map(text).collect()
}

fn judgement_text(judgement: &Judgement) -> String {
    let list = |policies: &[ObjectName]| {
        let names: Vec<String> = policies.iter().map(ToString::to_string).collect();
        names.join(", ")
    };
    match judgement {
        Judgement::NoSubject => "no pod with a network of its own".to_owned(),
        Judgement::NotIsolated => "no policy isolates it".to_owned(),
        Judgement::Allowed { policy, rule } => format!("rule {rule} of {policy}"),
        Judgement::Decided(rule) => rule.to_string(),
        Judgement::Passed { by, then } => format!("{by}; then {}", judgement_text(then)),
        Judgement::OwnNode => "the pod's own node is not judged".to_owned(),
        Judgement::NotKnown => "not known yet, and its namespace has policies".to_owned(),
        Judgement::Denied { policies } => format!("isolated by {}, none allows it", list(policies)),
    }
}
