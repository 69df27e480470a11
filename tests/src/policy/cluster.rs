//! The little world that policies are judged in.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::IpAddr;

use sluice_model::{
    ClusterNetworkPolicy, ContainerPort, Meta, Namespace, Node, NodeAddress, NodeAddressKind,
    ObjectName, Pod, PodPhase, Protocol,
};

/// The ports that something listens on, TCP and UDP.
pub const PORTS: [u16; 2] = [80, 81];

/// A host that is neither a node nor a pod.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Outside {
    /// What tables call it.
    pub name: String,
    /// Its addresses; at most one a family.
    pub addrs: Vec<IpAddr>,
}

/// Namespaces, pods, nodes, and hosts outside.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct World {
    /// The namespaces of all pods and policies.
    pub namespaces: Vec<Namespace>,
    /// Pods of the pod network and of the host network. Those of the host network have their node's addresses.
    pub pods: Vec<Pod>,
    /// Nodes.
    pub nodes: Vec<Node>,
    /// Hosts outside of the cluster.
    pub outside: Vec<Outside>,
    /// The policies of the cluster.
    pub cluster_policies: Vec<ClusterNetworkPolicy>,
}

/// One party of a connection: an index into the world's lists.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Who {
    /// Of [`World::pods`].
    Pod(usize),
    /// A process of the node itself; of [`World::nodes`].
    Node(usize),
    /// Of [`World::outside`].
    Outside(usize),
}

impl World {
    /// Namespaces x, y and z with pods a, b and c each on two nodes, a pod of the host network on each node, and two
    /// hosts outside. Addresses are those of [`crate::cluster::Cluster`].
    ///
    /// The labels hold traps: pod `z/c` has a label that namespaces have, namespace `y` one that pods have, the pods of
    /// the host network those of others. Port names lead to different numbers in different pods.
    ///
    /// # Panics
    /// Never: its addresses are constants.
    pub fn standard() -> Self {
        let labels = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
            pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
        };
        let namespace = |name: &str, more: &[(&str, &str)]| {
            let pairs = [&[("ns", name), ("kubernetes.io/metadata.name", name)], more].concat();
            Namespace {
                meta: Meta {
                    name: ObjectName::new("", name),
                    labels: labels(&pairs),
                    ..Meta::default()
                },
            }
        };
        let mut world = Self {
            namespaces: vec![
                namespace("x", &[("team", "red")]),
                namespace("y", &[("team", "red"), ("pod", "a")]),
                namespace("z", &[]),
            ],
            pods: Vec::new(),
            nodes: (1..=2).map(node).collect(),
            outside: vec![
                outside("out", &["172.31.0.1", "fd00:172:31::1"]),
                outside("far", &["203.0.113.7", "2001:db8::7"]),
            ],
            cluster_policies: Vec::new(),
        };
        let mut next = [2; 2];
        for ns in ["x", "y", "z"] {
            for name in ["a", "b", "c"] {
                let on = usize::from(name == "b" || (ns, name) == ("y", "c"));
                let (number, host) = (on + 1, next[on]);
                next[on] += 1;
                let mut pairs = vec![("pod", name)];
                if name != "c" {
                    pairs.push(("tier", "web"));
                }
                if (ns, name) == ("z", "c") {
                    pairs.push(("ns", "x"));
                }
                world.pods.push(Pod {
                    meta: Meta {
                        name: ObjectName::new(ns, name),
                        labels: labels(&pairs),
                        ..Meta::default()
                    },
                    node: Some(world.nodes[on].meta.name.name.clone()),
                    phase: PodPhase::Running,
                    ready: true,
                    addrs: vec![
                        parse(&format!("10.244.{number}.{host}")),
                        parse(&format!("fd00:244:{number}::{host:x}")),
                    ],
                    ports: named_ports(name),
                    ..Pod::default()
                });
            }
        }
        for (ns, on, like) in [("x", 0, "a"), ("y", 1, "b")] {
            let node = &world.nodes[on];
            world.pods.push(Pod {
                meta: Meta {
                    name: ObjectName::new(ns, "host"),
                    labels: labels(&[("pod", like), ("tier", "web")]),
                    ..Meta::default()
                },
                node: Some(node.meta.name.name.clone()),
                host_network: true,
                phase: PodPhase::Running,
                ready: true,
                addrs: node.addrs.iter().map(|entry| entry.addr).collect(),
                ports: named_ports("a"),
                ..Pod::default()
            });
        }
        world
    }

    /// The same world with these policies of the cluster.
    #[must_use]
    pub fn with(&self, cluster_policies: Vec<ClusterNetworkPolicy>) -> Self {
        Self { cluster_policies, ..self.clone() }
    }

    /// What tables call a party: `NAMESPACE/POD`, the node's name, or the outside host's.
    pub fn name(&self, who: Who) -> String {
        match who {
            Who::Pod(index) => self.pods[index].meta.name.to_string(),
            Who::Node(index) => self.nodes[index].meta.name.name.clone(),
            Who::Outside(index) => self.outside[index].name.clone(),
        }
    }

    /// The party of that name, as [`World::name`] gives it.
    pub fn find(&self, name: &str) -> Option<Who> {
        self.everybody().into_iter().find(|who| self.name(*who) == name)
    }

    /// Every party, pods first.
    pub fn everybody(&self) -> Vec<Who> {
        let pods = (0..self.pods.len()).map(Who::Pod);
        let nodes = (0..self.nodes.len()).map(Who::Node);
        pods.chain(nodes).chain((0..self.outside.len()).map(Who::Outside)).collect()
    }

    /// A party's addresses.
    pub fn addrs(&self, who: Who) -> Vec<IpAddr> {
        match who {
            Who::Pod(index) => self.pods[index].addrs.clone(),
            Who::Node(index) => self.nodes[index].addrs.iter().map(|entry| entry.addr).collect(),
            Who::Outside(index) => self.outside[index].addrs.clone(),
        }
    }

    /// A party's address of a family.
    pub fn addr(&self, who: Who, v6: bool) -> Option<IpAddr> {
        self.addrs(who).into_iter().find(|addr| addr.is_ipv6() == v6)
    }

    /// The address of the party of that name, as text.
    ///
    /// # Panics
    /// If there is none.
    pub fn text(&self, name: &str, v6: bool) -> String {
        self.find(name)
            .and_then(|who| self.addr(who, v6))
            .unwrap_or_else(|| panic!("{name} has no such address"))
            .to_string()
    }

    /// The namespaces and pods as manifests. Nodes are the cluster's own.
    pub fn manifests(&self) -> String {
        let mut yaml = String::new();
        // Writing to a String cannot fail.
        for namespace in &self.namespaces {
            let _ = write!(
                yaml,
                "---\napiVersion: v1\nkind: Namespace\nmetadata: {{name: {}, labels: {}}}\n",
                namespace.meta.name.name,
                flow(&namespace.meta.labels)
            );
        }
        for pod in &self.pods {
            let name = &pod.meta.name;
            let ports: Vec<String> = pod
                .ports
                .iter()
                .map(|port| {
                    let ContainerPort { name, protocol, port } = port;
                    if name.is_empty() {
                        format!("{{protocol: {protocol}, containerPort: {port}}}")
                    } else {
                        format!("{{name: {name}, protocol: {protocol}, containerPort: {port}}}")
                    }
                })
                .collect();
            let ips: Vec<String> =
                pod.addrs.iter().map(|addr| format!("{{ip: \"{addr}\"}}")).collect();
            let _ = write!(
                yaml,
                "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {}, namespace: {}, labels: {}}}\nspec:\n  \
                 nodeName: {}\n  hostNetwork: {}\n  containers:\n  - {{name: app, image: app, ports: [{}]}}\nstatus:\n  \
                 phase: Running\n  conditions: [{{type: Ready, status: \"True\"}}]\n",
                name.name,
                name.namespace,
                flow(&pod.meta.labels),
                pod.node.as_deref().unwrap_or_default(),
                pod.host_network,
                ports.join(", "),
            );
            if let Some(first) = pod.addrs.first() {
                let _ = writeln!(yaml, "  podIP: \"{first}\"\n  podIPs: [{}]", ips.join(", "));
            }
        }
        yaml
    }
}

/// A map of labels in YAML's flow style.
pub(crate) fn flow(labels: &BTreeMap<String, String>) -> String {
    let pairs: Vec<String> =
        labels.iter().map(|(key, value)| format!("{key}: \"{value}\"")).collect();
    format!("{{{}}}", pairs.join(", "))
}

fn named_ports(pod: &str) -> Vec<ContainerPort> {
    let port = |name: &str, protocol, port| ContainerPort { name: name.to_owned(), protocol, port };
    match pod {
        "a" => vec![
            port("web", Protocol::Tcp, 80),
            port("alt", Protocol::Tcp, 81),
            port("dns", Protocol::Udp, 80),
            port("sig", Protocol::Sctp, 80),
        ],
        "b" => vec![
            port("web", Protocol::Tcp, 81),
            port("alt", Protocol::Tcp, 80),
            port("dns", Protocol::Udp, 81),
        ],
        // Ports without a name, and one with a name that the others have for another protocol.
        _ => vec![port("", Protocol::Tcp, 80), port("dns", Protocol::Tcp, 81)],
    }
}

fn node(number: u8) -> Node {
    let address =
        |text: String| NodeAddress { kind: NodeAddressKind::Internal, addr: parse(&text) };
    let name = format!("node-{}", char::from(b'a' + number - 1));
    let labels = [("kubernetes.io/hostname".to_owned(), name.clone())].into();
    Node {
        meta: Meta { name: ObjectName::new("", name), labels, ..Meta::default() },
        pod_cidrs: vec![
            format!("10.244.{number}.0/24").parse().expect("constant"),
            format!("fd00:244:{number}::/64").parse().expect("constant"),
        ],
        addrs: vec![
            address(format!("172.31.0.{}", 10 + number)),
            address(format!("fd00:172:31::{}", 10 + number)),
        ],
        ..Node::default()
    }
}

fn outside(name: &str, addrs: &[&str]) -> Outside {
    Outside { name: name.to_owned(), addrs: addrs.iter().map(|addr| parse(addr)).collect() }
}

fn parse(text: &str) -> IpAddr {
    text.parse().expect("constant")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_party_is_found_by_its_name_and_addresses_are_of_one_party_or_its_node() {
        let world = World::standard();
        let everybody = world.everybody();
        assert_eq!(everybody.len(), 9 + 2 + 2 + 2);
        for who in &everybody {
            assert_eq!(world.find(&world.name(*who)), Some(*who));
            let others = everybody.iter().filter(|other| world.addrs(**other) == world.addrs(*who));
            let host = match who {
                Who::Pod(index) => world.pods[*index].host_network,
                Who::Node(_) => true,
                Who::Outside(_) => false,
            };
            assert_eq!(others.count(), if host { 2 } else { 1 }, "{who:?}");
        }
    }

    #[test]
    fn manifests_are_yaml() {
        use serde::Deserialize;
        let text = World::standard().manifests();
        let objects: Vec<serde_json::Value> = serde_norway::Deserializer::from_str(&text)
            .map(|document| serde_json::Value::deserialize(document).unwrap())
            .filter(|value| !value.is_null())
            .collect();
        assert_eq!(objects.len(), 3 + 11);
        assert_eq!(objects[3]["spec"]["containers"][0]["ports"][2]["name"], "dns");
        assert_eq!(objects[3]["status"]["podIPs"][1]["ip"], "fd00:244:1::2");
        assert_eq!(objects[13]["spec"]["hostNetwork"], true);
    }
}
