//! What the agent's planner makes of a world: the tables of each node, and the planner's own explanation.

use std::collections::BTreeMap;

use sluice_model::{ClusterNetworkPolicy, Namespace, NetworkPolicy, ObjectName, Pod};
use sluice_plan::{LocalPod, Party, PolicyPlanner, PolicyTables};

use super::cluster::{Who, World};
use super::oracle::{is_own_node, subject_pod};
use super::table::{End, Query};

/// Everything that can be stated to a planner.
#[derive(Clone, Debug, Default)]
pub struct Objects {
    /// Namespaces by name.
    pub namespaces: BTreeMap<String, Namespace>,
    /// Pods of all nodes.
    pub pods: BTreeMap<ObjectName, Pod>,
    /// Policies.
    pub policies: BTreeMap<ObjectName, NetworkPolicy>,
    /// Those of the cluster.
    pub cluster_policies: BTreeMap<ObjectName, ClusterNetworkPolicy>,
    /// Nodes by name.
    pub nodes: BTreeMap<String, sluice_model::Node>,
    /// The index that the host's interface of a pod of the pod network has on its node.
    interfaces: BTreeMap<ObjectName, u32>,
}

impl Objects {
    /// What the world and these policies are as objects. A pod of the network has an interface by its place in the world.
    pub fn new(world: &World, policies: &[NetworkPolicy]) -> Self {
        let own_network = world.pods.iter().zip(1..).filter(|(pod, _)| !pod.host_network);
        Self {
            namespaces: by_name(&world.namespaces, |object| object.meta.name.name.clone()),
            pods: by_name(&world.pods, |object| object.meta.name.clone()),
            policies: by_name(policies, |object| object.meta.name.clone()),
            cluster_policies: by_name(&world.cluster_policies, |object| object.meta.name.clone()),
            nodes: by_name(&world.nodes, |object| object.meta.name.name.clone()),
            interfaces: own_network.map(|(pod, index)| (pod.meta.name.clone(), index)).collect(),
        }
    }

    /// A pod of that node's pod network, as its records have it.
    fn local(&self, node: &str, name: &ObjectName) -> Option<LocalPod> {
        let pod = self.pods.get(name).filter(|pod| pod.node.as_deref() == Some(node))?;
        let ifindex = *self.interfaces.get(name)?;
        Some(LocalPod { ifindex, addrs: pod.addrs.clone(), ..LocalPod::default() })
    }
}

fn by_name<K: Ord, T: Clone>(objects: &[T], name: impl Fn(&T) -> K) -> BTreeMap<K, T> {
    objects.iter().map(|object| (name(object), object.clone())).collect()
}

/// A node's planner, and a kernel that got all of its operations.
#[derive(Clone, Debug)]
struct Node {
    name: String,
    planner: PolicyPlanner,
    kernel: PolicyTables,
}

/// The planners of a world's nodes.
#[derive(Clone, Debug)]
pub struct Planned {
    nodes: Vec<Node>,
    stated: Objects,
}

impl Planned {
    /// Planners that know nothing yet.
    pub fn new(world: &World) -> Self {
        let node = |node: &sluice_model::Node| {
            let mut planner = PolicyPlanner::new();
            planner.set_node(node.addrs.iter().map(|address| address.addr));
            Node { name: node.meta.name.name.clone(), planner, kernel: PolicyTables::default() }
        };
        Self { nodes: world.nodes.iter().map(node).collect(), stated: Objects::default() }
    }

    /// States what is different from what was stated last, and does what each planner asks for. Returns how many
    /// operations that were.
    ///
    /// # Panics
    /// If a planner believes the kernel to hold something else than it got.
    pub fn state(&mut self, objects: Objects) -> usize {
        let old = std::mem::replace(&mut self.stated, objects);
        let new = &self.stated;
        let mut count = 0;
        for Node { name: node, planner, kernel } in &mut self.nodes {
            for (name, namespace) in changed(&old.namespaces, &new.namespaces) {
                planner.set_namespace(name, namespace);
            }
            for (name, pod) in changed(&old.pods, &new.pods) {
                planner.set_pod(name, pod);
            }
            for name in old.pods.keys().chain(new.pods.keys()) {
                let local = new.local(node, name);
                if old.local(node, name) != local {
                    planner.set_local(name, local);
                }
            }
            for (name, object) in changed(&old.nodes, &new.nodes) {
                planner.set_cluster_node(name, object);
            }
            for (name, policy) in changed(&old.policies, &new.policies) {
                planner.set_policy(name, policy);
            }
            for (name, policy) in changed(&old.cluster_policies, &new.cluster_policies) {
                planner.set_cluster_policy(name, policy);
            }
            let ops = planner.plan();
            ops.iter().for_each(|op| kernel.apply(op));
            assert_eq!(kernel, planner.tables(), "what the planner believes of {node}'s kernel");
            count += ops.len();
        }
        count
    }

    /// Whether the tables of both ends' nodes let a connection pass. That what comes from a pod's own node and what never
    /// leaves a pod is not judged is the programs' business, and taken for granted here.
    pub fn allows(&self, world: &World, query: &Query) -> bool {
        let ends = [(query.from.who, query.to, false), (query.to.who, query.from, true)];
        query.from.who == query.to.who
            || ends.into_iter().all(|(who, peer, ingress)| {
                let Some(pod) = subject_pod(world, who) else { return true };
                ingress && is_own_node(world, pod, peer.who) || self.side(pod, peer, ingress, query)
            })
    }

    fn side(&self, pod: &Pod, peer: End, ingress: bool, query: &Query) -> bool {
        let Some(node) = self.nodes.iter().find(|node| Some(&*node.name) == pod.node.as_deref())
        else {
            return true;
        };
        let interface = self.stated.interfaces.get(&pod.meta.name);
        let sets = interface.and_then(|index| node.kernel.sets.get(index));
        let sets = sets.copied().unwrap_or_default();
        let set = if ingress { sets.ingress } else { sets.egress };
        node.kernel.allows(set, peer.addr, query.protocol.number(), query.port)
    }

    /// Whether the planner of each node explains a connection as one that passes; all must agree.
    ///
    /// # Panics
    /// If they do not.
    pub fn explains(&self, world: &World, query: &Query) -> bool {
        if query.from.who == query.to.who {
            return true;
        }
        let party = |end: End, other: Who| match subject_pod(world, other) {
            Some(pod) if is_own_node(world, pod, end.who) => Party::OwnNode(end.addr),
            _ => Party::Addr(end.addr),
        };
        let (from, to) = (party(query.from, query.to.who), party(query.to, query.from.who));
        let mut answers = self
            .nodes
            .iter()
            .map(|node| node.planner.explain(from, to, Some(query.protocol), query.port).allows());
        let first = answers.next().unwrap_or(true);
        assert!(answers.all(|answer| answer == first), "nodes differ: {}", query.text(world));
        first
    }
}

/// What is new, another, or gone.
fn changed<'a, K: Ord, T: PartialEq>(
    old: &'a BTreeMap<K, T>,
    new: &'a BTreeMap<K, T>,
) -> impl Iterator<Item = (&'a K, Option<&'a T>)> {
    let there = new.iter().map(|(name, object)| (name, Some(object)));
    let gone = old.keys().filter(|name| !new.contains_key(*name)).map(|name| (name, None));
    gone.chain(there.filter(|(name, object)| old.get(*name) != *object))
}
