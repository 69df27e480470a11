//! A world of objects, a node in it, and a kernel that checks what it is told.

use std::collections::BTreeMap;
use std::net::IpAddr;

use sluice_abi::{PolicyKey, PolicySets, proto};
use sluice_model::{Namespace, NetworkPolicy, Object, ObjectName, Pod, Protocol};
use sluice_plan::{LocalPod, Party, PolicyOp, PolicyPlanner, PolicyTables};
use sluice_store::parse_manifest;

/// The node whose kernel is planned for.
pub(crate) const NODE: &str = "node-a";

/// Everything that can be stated.
#[derive(Clone, Default, Debug)]
pub(crate) struct World {
    pub(crate) namespaces: BTreeMap<String, Namespace>,
    pub(crate) pods: BTreeMap<ObjectName, Pod>,
    pub(crate) policies: BTreeMap<ObjectName, NetworkPolicy>,
    pub(crate) local: BTreeMap<ObjectName, LocalPod>,
}

impl World {
    /// The objects of manifests. Pods of [`NODE`] are local; their interfaces are numbered from 1 by
    /// name.
    pub(crate) fn parse(manifests: &str) -> Self {
        let mut world = Self::default();
        let manifest = parse_manifest("world.yaml", manifests);
        for (_, object) in manifest.objects {
            let name = object.key().name;
            match object {
                Object::Namespace(namespace) => {
                    world.namespaces.insert(name.name, namespace);
                }
                Object::Pod(pod) => {
                    world.pods.insert(name, pod);
                }
                Object::NetworkPolicy(policy) => {
                    world.policies.insert(name, policy);
                }
                other => panic!("{:?} has no place here", other.key()),
            }
        }
        let here = world.pods.iter().filter(|(_, pod)| pod.node.as_deref() == Some(NODE));
        let local = here.zip(1..).map(|((name, pod), ifindex)| {
            (name.clone(), LocalPod { ifindex, addrs: pod.addrs.clone(), ..LocalPod::default() })
        });
        world.local = local.collect();
        world
    }

    /// States what is different from `old`.
    pub(crate) fn state(&self, old: &Self, planner: &mut PolicyPlanner) {
        for name in old.namespaces.keys().chain(self.namespaces.keys()) {
            if old.namespaces.get(name) != self.namespaces.get(name) {
                planner.set_namespace(name, self.namespaces.get(name));
            }
        }
        for name in old.pods.keys().chain(self.pods.keys()) {
            if old.pods.get(name) != self.pods.get(name) {
                planner.set_pod(name, self.pods.get(name));
            }
        }
        for name in old.local.keys().chain(self.local.keys()) {
            if old.local.get(name) != self.local.get(name) {
                planner.set_local(name, self.local.get(name).cloned());
            }
        }
        for name in old.policies.keys().chain(self.policies.keys()) {
            if old.policies.get(name) != self.policies.get(name) {
                planner.set_policy(name, self.policies.get(name));
            }
        }
    }

    /// What a new planner makes of it.
    pub(crate) fn rebuild(&self) -> PolicyPlanner {
        let mut planner = PolicyPlanner::new();
        self.state(&Self::default(), &mut planner);
        planner.plan();
        planner
    }
}

/// A connection seen from a pod of the node: its interface, whether it is the receiver, and the rest.
pub(crate) type Flow = (u32, bool, IpAddr, Option<Protocol>, u16);

/// All connections of the node's pods with these peers at these ports, and what the tables say.
pub(crate) fn verdicts(
    world: &World,
    tables: &PolicyTables,
    peers: &[IpAddr],
    ports: &[(Option<Protocol>, u16)],
) -> BTreeMap<Flow, bool> {
    let mut verdicts = BTreeMap::new();
    for local in world.local.values() {
        for peer in peers.iter().filter(|peer| !local.addrs.contains(peer)) {
            for (protocol, port) in ports {
                for ingress in [false, true] {
                    let flow = (local.ifindex, ingress, *peer, *protocol, *port);
                    verdicts.insert(flow, verdict(tables, &flow));
                }
            }
        }
    }
    verdicts
}

/// What the tables say of a connection. An interface without sets is open.
pub(crate) fn verdict(tables: &PolicyTables, flow: &Flow) -> bool {
    let (ifindex, ingress, peer, protocol, port) = *flow;
    let sets = tables.sets.get(&ifindex).copied().unwrap_or_default();
    let set = if ingress { sets.ingress } else { sets.egress };
    tables.allows(set, peer, protocol.map_or(1, Protocol::number), port)
}

/// What the objects say of it; nothing where the pod has no address of the peer's family, or one that
/// another pod claims too.
pub(crate) fn explained(world: &World, planner: &PolicyPlanner, flow: &Flow) -> Option<bool> {
    let (ifindex, ingress, peer, protocol, port) = *flow;
    let (name, local) = world.local.iter().find(|(_, local)| local.ifindex == ifindex)?;
    let own = *local.addrs.iter().find(|addr| addr.is_ipv4() == peer.is_ipv4())?;
    let (from, to) = if ingress { (peer, own) } else { (own, peer) };
    let explanation = planner.explain(Party::Addr(from), Party::Addr(to), protocol, port);
    let (subject, judgement) = if ingress {
        (explanation.pods.1, explanation.ingress)
    } else {
        (explanation.pods.0, explanation.egress)
    };
    (subject.as_ref() == Some(name)).then(|| judgement.allows())
}

/// A kernel's tables that refuse what would be wrong.
#[derive(Clone, Default, Debug)]
pub(crate) struct Kernel {
    pub(crate) tables: PolicyTables,
}

impl Kernel {
    /// Does one operation. Panics if it changes nothing, or takes away what is needed.
    pub(crate) fn apply(&mut self, op: &PolicyOp) {
        let tables = &self.tables;
        match *op {
            PolicyOp::PutRule(key) | PolicyOp::PutDenial(key) => {
                let known = tables.rules.contains(&key) || tables.denials.contains(&key);
                assert!(!known, "{op}: nothing changes");
                assert!(![PolicySets::OPEN, PolicySets::CLOSED].contains(&key.set), "{op}");
                assert!((PolicyKey::ANY..=PolicyKey::PORT).contains(&key.prefix_len), "{op}");
                assert_eq!(key.proto == 0, key.prefix_len == PolicyKey::ANY, "{op}");
                let known = [proto::TCP, proto::UDP, proto::SCTP, 0].contains(&key.proto);
                assert!(known && key.reserved == 0, "{op}");
            }
            PolicyOp::DeleteRule(key) => {
                let known = tables.rules.contains(&key) || tables.denials.contains(&key);
                assert!(known, "{op}: not there");
                let named = tables.sets.values().any(|s| [s.ingress, s.egress].contains(&key.set));
                let used = tables.identities.values().any(|identity| *identity == key.identity);
                assert!(!named || !used && key.identity != 0, "{op}: in use");
            }
            PolicyOp::PutIdentity(key, identity) => {
                assert_ne!(tables.identities.get(&key), Some(&identity), "{op}: nothing changes");
            }
            PolicyOp::DeleteIdentity(key) => {
                assert!(tables.identities.contains_key(&key), "{op}: not there");
            }
            PolicyOp::PutSets(ifindex, sets) => {
                assert_ne!(tables.sets.get(&ifindex), Some(&sets), "{op}: nothing changes");
            }
            PolicyOp::DeleteSets(ifindex) => {
                assert!(tables.sets.contains_key(&ifindex), "{op}: not there");
            }
        }
        self.tables.apply(op);
    }
}

/// The tables with numbers that do not depend on history: those of sets by the first interface that
/// has each, those of identities by the first prefix.
pub(crate) fn canonical(tables: &PolicyTables) -> PolicyTables {
    let mut sets = BTreeMap::from([(0, 0), (PolicySets::CLOSED, PolicySets::CLOSED)]);
    let mut identities = BTreeMap::from([(0, 0)]);
    let number = |numbers: &mut BTreeMap<u32, u32>, old: u32| {
        let next = numbers.len() as u32;
        *numbers.entry(old).or_insert(next)
    };
    let mut canonical = PolicyTables::default();
    for (ifindex, old) in &tables.sets {
        let ingress = number(&mut sets, old.ingress);
        let egress = number(&mut sets, old.egress);
        canonical.sets.insert(*ifindex, PolicySets { ingress, egress });
    }
    for (key, old) in &tables.identities {
        canonical.identities.insert(*key, number(&mut identities, *old));
    }
    let renumbered = |key: &PolicyKey| {
        let set = *sets.get(&key.set).expect("some pod has each set");
        let identity = *identities.get(&key.identity).expect("some prefix has each identity");
        PolicyKey { set, identity, ..*key }
    };
    canonical.rules = tables.rules.iter().map(renumbered).collect();
    canonical.denials = tables.denials.iter().map(renumbered).collect();
    canonical
}

pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}
