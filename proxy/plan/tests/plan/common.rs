//! Model objects in few words, a kernel that checks what it is told, and what connections meet.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use sluice_abi::{FrontendKey, SLOTS_PER_CHUNK, Scope, SlotKey};
use sluice_model::{
    Conditions, Endpoint, Meta, ObjectName, Protocol, Service, ServicePort, SlicePort, TargetPort,
};
use sluice_plan::{Destination, MapOp, Tables, Verdict, trace};

/// A ClusterIP Service in namespace `ns`.
pub(crate) fn service(name: &str, ips: &[&str], ports: &[(&str, u16, Protocol)]) -> Service {
    Service {
        meta: Meta { name: ObjectName::new("ns", name), ..Meta::default() },
        cluster_ips: ips.iter().map(|ip| ip.parse().expect("an address")).collect(),
        ports: ports
            .iter()
            .map(|(name, port, protocol)| ServicePort {
                name: (*name).to_owned(),
                protocol: *protocol,
                port: *port,
                target: TargetPort::Number(*port),
                node_port: None,
                app_protocol: None,
            })
            .collect(),
        ..Service::default()
    }
}

/// A ready endpoint.
pub(crate) fn endpoint(addr: &str, ports: &[(&str, u16, Protocol)]) -> Endpoint {
    Endpoint {
        addr: addr.parse().expect("an address"),
        ports: ports
            .iter()
            .map(|(name, port, protocol)| SlicePort {
                name: (*name).to_owned(),
                protocol: *protocol,
                port: Some(*port),
            })
            .collect(),
        conditions: Conditions::default(),
        hostname: None,
        node: None,
        zone: None,
        target: None,
        for_zones: Vec::new(),
        for_nodes: Vec::new(),
    }
}

/// What all connections to a frontend meet, numbers aside.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Outcome {
    /// There is no such service address.
    None,
    /// Refused, in the name of that service port.
    Reject(String),
    /// Spread over these backends, each equally likely.
    Spread(String, BTreeMap<SocketAddr, u32>),
}

/// The destination that a frontend is for.
pub(crate) fn destination(key: &FrontendKey) -> Destination {
    Destination {
        addr: key.addr.to_ip(),
        port: key.port.get(),
        protocol: Protocol::from_number(key.proto).expect("a known protocol"),
    }
}

/// Traces every pick. Panics where the tables contradict themselves.
pub(crate) fn outcome(tables: &Tables, to: Destination) -> Outcome {
    let name = |number: u32| {
        let name = tables.names.get(&number).expect("a frontend's service number has a name");
        format!("{name:?}")
    };
    let count = tables.frontends.get(&to.key(Scope::Internal)).map_or(1, |f| f.count.max(1));
    let mut spread = BTreeMap::new();
    let mut service = String::new();
    for pick in 0..count {
        match trace(tables, Scope::Internal, to, pick) {
            Verdict::Forward { service: number, backend: _, to } => {
                *spread.entry(to).or_default() += 1;
                service = name(number);
            }
            Verdict::Reject { service } => return Outcome::Reject(name(service)),
            Verdict::NotAService => return Outcome::None,
            Verdict::Broken(breakage) => {
                panic!("{to:?} pick {pick}: {breakage}\n{}", tables.dump())
            }
        }
    }
    Outcome::Spread(service, spread)
}

/// The outcome for one address, in words of the test.
pub(crate) fn backends_of(
    tables: &Tables,
    addr: &str,
    port: u16,
    protocol: Protocol,
) -> Vec<String> {
    let addr: IpAddr = addr.parse().expect("an address");
    match outcome(tables, Destination { addr, port, protocol }) {
        Outcome::None => vec!["none".to_owned()],
        Outcome::Reject(_) => vec!["reject".to_owned()],
        Outcome::Spread(_, spread) => {
            assert!(spread.values().all(|n| *n == 1), "a backend stands twice in a list");
            spread.keys().map(ToString::to_string).collect()
        }
    }
}

/// The kernel's maps, which refuse an operation that a running program could trip over.
#[derive(Clone, Default, Debug)]
pub(crate) struct Kernel {
    pub(crate) tables: Tables,
}

impl Kernel {
    /// Does one operation. Panics if it refers to what is not there, takes away what is needed, or
    /// changes a list or a backend that is in use.
    pub(crate) fn apply(&mut self, op: &MapOp) {
        let tables = &self.tables;
        // Number 0 names nothing: free slots and frontends without backends bear it.
        let listed =
            |number: u32| number != 0 && tables.slots.values().any(|s| s.backend.contains(&number));
        let named = |list: u32| list != 0 && tables.frontends.values().any(|f| f.list == list);
        match *op {
            MapOp::PutBackend(number, _) => {
                assert_ne!(number, 0, "{op}");
                assert!(!tables.backends.contains_key(&number), "{op}: the number is taken");
                assert!(!listed(number), "{op}: a list names it already");
            }
            MapOp::DeleteBackend(number) => {
                assert!(tables.backends.contains_key(&number), "{op}: not there");
                assert!(!listed(number), "{op}: a list names it");
            }
            MapOp::PutSlots(key, slots) => {
                assert_ne!(key.list, 0, "{op}");
                assert!(!named(key.list), "{op}: a frontend names the list");
                assert!(!tables.slots.contains_key(&key), "{op}: the chunk is taken");
                for number in slots.backend.iter().filter(|number| **number != 0) {
                    assert!(tables.backends.contains_key(number), "{op}: no backend {number}");
                }
            }
            MapOp::DeleteSlots(key) => {
                assert!(tables.slots.contains_key(&key), "{op}: not there");
                assert!(!named(key.list), "{op}: a frontend names the list");
            }
            MapOp::PutName(number, _) => assert_ne!(number, 0, "{op}"),
            MapOp::DeleteName(number) => {
                assert!(tables.names.contains_key(&number), "{op}: not there");
                assert!(tables.frontends.values().all(|f| f.service != number), "{op}: in use");
            }
            MapOp::SetFilterWord(word, bits) => {
                let old = tables.vip_filter.get(&word).copied().unwrap_or(0);
                assert_ne!(old, bits, "{op}: nothing changes");
            }
            MapOp::PutFrontend(key, frontend) => {
                assert_ne!(tables.frontends.get(&key), Some(&frontend), "{op}: nothing changes");
                assert!(tables.names.contains_key(&frontend.service), "{op}: no name");
                for slot in 0..frontend.count {
                    let chunk = SlotKey { list: frontend.list, chunk: slot / SLOTS_PER_CHUNK };
                    let number = tables
                        .slots
                        .get(&chunk)
                        .map_or(0, |s| s.backend[(slot % SLOTS_PER_CHUNK) as usize]);
                    assert!(tables.backends.contains_key(&number), "{op}: slot {slot} is void");
                }
            }
            MapOp::DeleteFrontend(key) => {
                assert!(tables.frontends.contains_key(&key), "{op}: not there");
            }
        }
        self.tables.apply(op);
    }

    /// Does a plan and asserts after every operation that each frontend is as it was before the
    /// plan or as it is after it, for every pick.
    pub(crate) fn apply_watched(&mut self, ops: &[MapOp]) {
        let before = self.tables.clone();
        let mut after = before.clone();
        ops.iter().for_each(|op| after.apply(op));
        let keys: BTreeSet<FrontendKey> =
            before.frontends.keys().chain(after.frontends.keys()).copied().collect();
        let expected: Vec<_> = keys
            .iter()
            .map(|key| {
                let to = destination(key);
                (to, outcome(&before, to), outcome(&after, to))
            })
            .collect();
        for op in ops {
            self.apply(op);
            for (to, old, new) in &expected {
                let now = outcome(&self.tables, *to);
                assert!(
                    now == *old || now == *new,
                    "{to:?} after {op}: {now:?}, neither {old:?} nor {new:?}"
                );
            }
        }
    }
}
