//! Model objects in few words, a kernel that checks what it is told, and what connections meet.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use sluice_abi::{Frontend, FrontendFlags, FrontendKey, SLOTS_PER_CHUNK, Scope, SlotKey};
use sluice_model::{
    Conditions, Endpoint, Meta, ObjectName, Protocol, Service, ServicePort, SlicePort, TargetPort,
};
use sluice_plan::{
    Client, Destination, DropReason, Here, MapOp, Place, Source, Tables, Verdict, trace,
};

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
    Endpoint::new(
        addr.parse().expect("an address"),
        ports
            .iter()
            .map(|(name, port, protocol)| SlicePort {
                name: (*name).to_owned(),
                protocol: *protocol,
                port: Some(*port),
            })
            .collect(),
        Conditions::default(),
    )
}

/// What all connections to a frontend meet, numbers aside.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Outcome {
    /// There is no such service address.
    None,
    /// Refused, in the name of that service port.
    Reject(String),
    /// Refused: the address has no such port.
    RejectPort,
    /// Not answered, though the client is admitted: no endpoint is on this node.
    DropNoLocal(String),
    /// Not answered: the client is not admitted.
    DropRange(String),
    /// Spread over these backends, each equally likely, and each with the client that it sees.
    Spread(String, BTreeMap<(SocketAddr, Source), u32>),
}

/// A node whose pods the [`CLIENTS`] are.
pub(crate) fn here() -> Here {
    Here {
        addrs: ["172.31.0.1", "fd00:172::1"].map(|ip| ip.parse().expect("an address")).into(),
        ..Here::default()
    }
}

/// Clients everywhere, of both families, within and without the ranges that the tests use.
pub(crate) const CLIENTS: [(&str, Place); 10] = [
    ("10.244.0.1", Place::Pod),
    ("fd01::1", Place::Pod),
    ("10.244.0.1", Place::PodPackets),
    ("fd01::1", Place::PodPackets),
    ("172.31.0.1", Place::Node),
    ("fd00:172::1", Place::Node),
    ("203.0.113.7", Place::Outside),
    ("192.0.2.99", Place::Outside),
    ("2001:db8:1::7", Place::Outside),
    ("2001:db8:2::7", Place::Outside),
];

/// One of [`CLIENTS`], or another.
pub(crate) fn client((addr, place): (&str, Place)) -> Client {
    Client { addr: addr.parse().expect("an address"), place }
}

/// A pod of this node.
pub(crate) fn pod() -> Client {
    client(("10.244.200.1", Place::Pod))
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
pub(crate) fn outcome(tables: &Tables, client: &Client, to: Destination) -> Outcome {
    let name = |number: u32| {
        let name = tables.names.get(&number).expect("a frontend's service number has a name");
        format!("{name:?}")
    };
    let count = |scope| tables.frontends.get(&to.key(scope)).map_or(1, |f| f.count.max(1));
    // Any number of rounds meets each backend equally often.
    let rounds = match client.place {
        Place::Outside => count(Scope::Internal) * count(Scope::External),
        Place::Pod | Place::PodPackets | Place::Node => count(Scope::Internal),
    };
    let mut spread = BTreeMap::new();
    let mut service = String::new();
    for pick in 0..rounds {
        match trace(tables, &here(), client, to, pick) {
            Verdict::Forward { service: number, backend: _, to, source } => {
                *spread.entry((to, source)).or_default() += 1;
                service = name(number);
            }
            Verdict::Reject { service } => return Outcome::Reject(name(service)),
            Verdict::RejectPort => return Outcome::RejectPort,
            Verdict::Drop(DropReason::NoLocal { service }) => {
                return Outcome::DropNoLocal(name(service));
            }
            Verdict::Drop(DropReason::SourceRange { service }) => {
                return Outcome::DropRange(name(service));
            }
            Verdict::Drop(DropReason::NoNodeAddress) => panic!("the node has both families"),
            Verdict::NotAService => return Outcome::None,
            Verdict::Broken(breakage) => {
                panic!("{to:?} pick {pick}: {breakage}\n{}", tables.dump())
            }
        }
    }
    let least = spread.values().copied().min().unwrap_or(1);
    spread.values_mut().for_each(|n| *n /= least);
    Outcome::Spread(service, spread)
}

/// The outcome for one address, in words of the test.
pub(crate) fn backends_of(
    tables: &Tables,
    addr: &str,
    port: u16,
    protocol: Protocol,
) -> Vec<String> {
    backends_for(tables, &pod(), addr, port, protocol)
}

/// The same for another client than a pod.
pub(crate) fn backends_for(
    tables: &Tables,
    client: &Client,
    addr: &str,
    port: u16,
    protocol: Protocol,
) -> Vec<String> {
    let addr: IpAddr = addr.parse().expect("an address");
    match outcome(tables, client, Destination { addr, port, protocol }) {
        Outcome::None => vec!["none".to_owned()],
        Outcome::Reject(_) => vec!["reject".to_owned()],
        Outcome::RejectPort => vec!["no such port".to_owned()],
        Outcome::DropNoLocal(_) => vec!["drop: no local endpoint".to_owned()],
        Outcome::DropRange(_) => vec!["drop: not admitted".to_owned()],
        Outcome::Spread(_, spread) => {
            assert!(spread.values().all(|n| *n == 1), "a backend stands twice in a list");
            spread
                .keys()
                .map(|(to, source)| match source {
                    Source::Client => to.to_string(),
                    Source::Node(_) => format!("{to} as node"),
                    Source::Service(_) => format!("{to} as service"),
                })
                .collect()
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
                let any_port = frontend.flags & FrontendFlags::ANY_PORT != 0;
                assert_eq!(any_port, key.port.get() == 0 && key.proto == 0, "{op}");
                let named = tables.names.contains_key(&frontend.service);
                assert!(named || any_port && frontend.service == 0, "{op}: no name");
                let outside = FrontendKey { scope: Scope::External as u8, ..key };
                assert!(
                    frontend.flags & FrontendFlags::EXTERNAL_DIFFERS == 0
                        || tables.frontends.contains_key(&outside),
                    "{op}: clients outside find nothing"
                );
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
                let inside = FrontendKey { scope: Scope::Internal as u8, ..key };
                let differs = |f: &Frontend| f.flags & FrontendFlags::EXTERNAL_DIFFERS != 0;
                assert!(
                    key == inside || !tables.frontends.get(&inside).is_some_and(differs),
                    "{op}: clients outside are sent there"
                );
            }
            MapOp::PutSourceRange(key) => {
                assert!(!tables.source_ranges.contains(&key), "{op}: nothing changes");
            }
            MapOp::DeleteSourceRange(key) => {
                assert!(tables.source_ranges.contains(&key), "{op}: not there");
            }
            MapOp::PutNodePort(key, service) => {
                assert_ne!(tables.node_ports.get(&key), Some(&service), "{op}: nothing changes");
                assert!(tables.names.contains_key(&service), "{op}: no name");
            }
            MapOp::DeleteNodePort(key) => {
                assert!(tables.node_ports.contains_key(&key), "{op}: not there");
                let served = tables.frontends.iter().any(|(frontend, value)| {
                    (frontend.port, frontend.proto) == (key.port, key.proto)
                        && value.flags & FrontendFlags::NODE_PORT != 0
                });
                assert!(!served, "{op}: a frontend is there");
            }
        }
        self.tables.apply(op);
    }

    /// Does a plan and asserts after every operation that each client meets at each address what it
    /// met before the plan or what it meets after it, for every pick.
    ///
    /// Where the admitted ranges change together with the endpoints, whether a client is admitted and
    /// whom it gets are each as they were or as they will be.
    pub(crate) fn apply_watched(&mut self, ops: &[MapOp]) {
        let before = self.tables.clone();
        let mut after = before.clone();
        ops.iter().for_each(|op| after.apply(op));
        let all = || before.frontends.keys().chain(after.frontends.keys());
        let mut places: BTreeSet<Destination> =
            all().filter(|key| key.proto != 0).map(destination).collect();
        // A port that no Service has stands for all others of an address.
        places.extend(all().map(|key| Destination {
            addr: key.addr.to_ip(),
            port: 9,
            protocol: Protocol::Tcp,
        }));
        let open = |tables: &Tables| Tables {
            frontends: tables
                .frontends
                .iter()
                .map(|(key, frontend)| {
                    let flags = frontend.flags & !FrontendFlags::SOURCE_RANGES;
                    (*key, Frontend { flags, ..*frontend })
                })
                .collect(),
            ..tables.clone()
        };
        let (open_before, open_after) = (open(&before), open(&after));
        let expected: Vec<_> = places
            .iter()
            .flat_map(|to| CLIENTS.map(|known| (*to, client(known))))
            .filter(|(to, client)| to.addr.is_ipv4() == client.addr.is_ipv4())
            .map(|(to, client)| {
                let both = |tables: &Tables| outcome(tables, &client, to);
                let admitted = |tables: &Tables| !matches!(both(tables), Outcome::DropRange(_));
                let admitted = [admitted(&before), admitted(&after)];
                (to, client, admitted, both(&open_before), both(&open_after))
            })
            .collect();
        for op in ops {
            self.apply(op);
            let open = open(&self.tables);
            for (to, client, admitted, old, new) in &expected {
                let now = outcome(&open, client, *to);
                assert!(
                    now == *old || now == *new,
                    "{client:?} {to:?} after {op}: {now:?}, neither {old:?} nor {new:?}"
                );
                let now = outcome(&self.tables, client, *to);
                assert!(
                    admitted.contains(&!matches!(now, Outcome::DropRange(_))),
                    "{client:?} {to:?} after {op}: {now:?}, admitted before and after: {admitted:?}"
                );
            }
        }
    }
}
