use sluice_abi::{Backend, Frontend, Slots, vip_filter_bit};

use super::*;

const WEB: Destination = Destination {
    addr: IpAddr::V4(std::net::Ipv4Addr::new(10, 96, 0, 1)),
    port: 80,
    protocol: Protocol::Tcp,
};

/// A service with two backends.
fn tables() -> Tables {
    let mut tables = Tables::default();
    let key = WEB.key(Scope::Internal);
    let (word, mask) = filter::position(vip_filter_bit(&key.addr));
    tables.vip_filter.insert(word, mask);
    tables.frontends.insert(key, Frontend { service: 1, list: 2, count: 2, ..Frontend::default() });
    for (number, last) in [(3, 1), (4, 2)] {
        let addr = IpAddr::from([10, 244, 0, last]);
        let backend = Backend { addr: addr.into(), port: Be16::new(8080), proto: 6, flags: 0 };
        tables.backends.insert(number, backend);
    }
    let mut slots = Slots::default();
    slots.backend[..2].copy_from_slice(&[3, 4]);
    tables.slots.insert(SlotKey { list: 2, chunk: 0 }, slots);
    tables
}

fn at(place: Place) -> Client {
    let addr = match place {
        Place::Outside => [203, 0, 113, 7],
        Place::Node => [172, 31, 0, 1],
        Place::Pod | Place::PodPackets => [10, 244, 0, 1],
    };
    Client { addr: addr.into(), place }
}

const PLACES: [Place; 4] = [Place::Pod, Place::PodPackets, Place::Node, Place::Outside];

fn here() -> Here {
    Here { addrs: vec![[172, 31, 0, 1].into()], ..Here::default() }
}

fn meets(tables: &Tables, pick: u32) -> Verdict {
    trace(tables, &here(), &at(Place::Pod), WEB, pick)
}

fn forward(backend: u32, to: &str, source: Source) -> Verdict {
    Verdict::Forward { service: 1, backend, to: to.parse().expect("an address"), source }
}

#[test]
fn pick_chooses_a_backend() {
    for pick in [0, 2, u32::MAX - 1] {
        let expected = forward(3, "10.244.0.1:8080", Source::Client);
        assert_eq!(meets(&tables(), pick), expected);
    }
    let expected = forward(4, "10.244.0.2:8080", Source::Client);
    assert_eq!(meets(&tables(), 1), expected);
}

#[test]
fn frontend_without_backends_rejects() {
    let mut tables = tables();
    tables.frontends.values_mut().for_each(|f| f.count = 0);
    assert_eq!(meets(&tables, 0), Verdict::Reject { service: 1 });
}

/// S2: the protocol is part of what is looked up, and so is the port.
#[test]
fn other_port_protocol_or_address_is_not_a_service() {
    let elsewhere = [
        Destination { port: 81, ..WEB },
        Destination { protocol: Protocol::Udp, ..WEB },
        Destination { addr: IpAddr::from([10, 96, 0, 2]), ..WEB },
    ];
    for to in elsewhere {
        for place in PLACES {
            assert_eq!(trace(&tables(), &here(), &at(place), to, 0), Verdict::NotAService);
        }
    }
}

/// S17: of a ClusterIP all ports are refused that it does not have, wherever the client is.
#[test]
fn undefined_port_of_an_address_with_any_port_is_refused() {
    let mut tables = tables();
    let key = any_port(WEB.addr.into());
    let any = Frontend { flags: FrontendFlags::ANY_PORT, ..Frontend::default() };
    tables.frontends.insert(key, any);
    for place in PLACES {
        let meets = |to| trace(&tables, &here(), &at(place), to, 1);
        assert_eq!(meets(Destination { port: 81, ..WEB }), Verdict::RejectPort);
        assert_eq!(meets(Destination { protocol: Protocol::Udp, ..WEB }), Verdict::RejectPort);
        assert!(matches!(meets(WEB), Verdict::Forward { .. }));
    }
}

/// S20: whoever the backend would answer past this node gets the node's address; S21: who would
/// answer himself gets the service's; all others keep theirs.
#[test]
fn source_depends_on_where_client_and_backend_are() {
    use Place::{Node, Outside, Pod, PodPackets};
    let source = |tables: &Tables, here: &Here, place, pick| match trace(
        tables,
        here,
        &at(place),
        WEB,
        pick,
    ) {
        Verdict::Forward { source, .. } => source,
        verdict => panic!("{verdict:?}"),
    };
    let own = Source::Node([172, 31, 0, 1].into());
    for (place, pick, expected) in [
        (Pod, 0, Source::Client),
        (Pod, 1, Source::Client),
        (PodPackets, 0, Source::Service(WEB.addr)),
        (PodPackets, 1, Source::Client),
        (Node, 0, Source::Client),
        (Outside, 0, own),
    ] {
        assert_eq!(source(&tables(), &here(), place, pick), expected, "{place:?} {pick}");
    }
    let mut near = tables();
    near.backends.values_mut().for_each(|b| b.flags = BackendFlags::LOCAL);
    assert_eq!(source(&near, &here(), Outside, 0), Source::Client);
    let masquerade_all = Here { masquerade_all: true, ..here() };
    assert_eq!(source(&near, &masquerade_all, Outside, 0), own);
    let attached = Here { pods: [[10, 244, 0, 1].into()].into(), ..here() };
    assert_eq!(source(&tables(), &attached, Outside, 0), Source::Client);
    assert_eq!(source(&tables(), &attached, Outside, 1), own);
    let none = trace(&tables(), &Here::default(), &at(Outside), WEB, 0);
    assert_eq!(none, Verdict::Drop(DropReason::NoNodeAddress));
}

/// S9: clients outside have the frontend of scope external, which the other one announces; it drops
/// where it has no backend.
#[test]
fn clients_outside_have_their_own_frontend_where_it_is_announced() {
    let mut tables = tables();
    let outside = WEB.key(Scope::External);
    let one = Frontend {
        list: 2,
        count: 1,
        service: 1,
        flags: FrontendFlags::LOCAL_ONLY,
        ..Frontend::default()
    };
    let meets = |tables: &Tables, place| trace(tables, &here(), &at(place), WEB, 1);
    tables.frontends.insert(outside, one);
    let node = Source::Node([172, 31, 0, 1].into());
    assert_eq!(meets(&tables, Place::Outside), forward(4, "10.244.0.2:8080", node));
    let inside = tables.frontends.get_mut(&WEB.key(Scope::Internal)).expect("the frontend");
    inside.flags |= FrontendFlags::EXTERNAL_DIFFERS;
    assert_eq!(meets(&tables, Place::Outside), forward(3, "10.244.0.1:8080", Source::Client));
    for place in [Place::Pod, Place::PodPackets, Place::Node] {
        assert_eq!(meets(&tables, place), forward(4, "10.244.0.2:8080", Source::Client));
    }
    tables.frontends.insert(outside, Frontend { count: 0, ..one });
    let dropped = Verdict::Drop(DropReason::NoLocal { service: 1 });
    assert_eq!(meets(&tables, Place::Outside), dropped);
    tables.frontends.remove(&outside);
    assert_eq!(meets(&tables, Place::Outside), Verdict::Broken(Breakage::NoExternal));
}

/// S7: the ranges are asked before anything else of the frontend, by the service port.
#[test]
fn clients_that_are_not_admitted_are_dropped() {
    let mut tables = tables();
    tables.frontends.values_mut().for_each(|f| f.flags |= FrontendFlags::SOURCE_RANGES);
    let range =
        |service, addr: [u8; 4], len| SourceRangeKey::new(service, IpAddr::from(addr).into(), len);
    tables.source_ranges.extend([range(1, [203, 0, 113, 0], 24), range(2, [10, 244, 0, 0], 16)]);
    let dropped = Verdict::Drop(DropReason::SourceRange { service: 1 });
    let meets = |tables: &Tables, place| trace(tables, &here(), &at(place), WEB, 0);
    assert!(matches!(meets(&tables, Place::Outside), Verdict::Forward { .. }));
    for place in [Place::Pod, Place::PodPackets, Place::Node] {
        assert_eq!(meets(&tables, place), dropped, "{place:?}");
    }
    tables.frontends.values_mut().for_each(|f| f.count = 0);
    assert_eq!(meets(&tables, Place::Pod), dropped);
    assert_eq!(meets(&tables, Place::Outside), Verdict::Reject { service: 1 });
}

/// S4: a NodePort on localhost is for the node's own processes.
#[test]
fn loopback_is_served_to_the_node_alone() {
    let mut tables = tables();
    let to = Destination { addr: [127, 0, 0, 1].into(), ..WEB };
    let frontend = tables.frontends[&WEB.key(Scope::Internal)];
    tables.frontends.insert(to.key(Scope::Internal), frontend);
    let (word, mask) = filter::position(vip_filter_bit(&to.addr.into()));
    *tables.vip_filter.entry(word).or_default() |= mask;
    for place in PLACES {
        let served = trace(&tables, &here(), &at(place), to, 0) != Verdict::NotAService;
        assert_eq!(served, place == Place::Node, "{place:?}");
    }
}

#[test]
fn contradictions_are_told() {
    let broken = |damage: fn(&mut Tables)| {
        let mut tables = tables();
        damage(&mut tables);
        meets(&tables, 1)
    };
    let chunk = SlotKey { list: 2, chunk: 0 };
    assert_eq!(
        [
            broken(|t| t.vip_filter.clear()),
            broken(|t| t.slots.clear()),
            broken(|t| t.slots.values_mut().for_each(|s| s.backend[1] = 0)),
            broken(|t| {
                t.backends.remove(&4);
            }),
            broken(|t| t.backends.values_mut().for_each(|b| b.proto = 17)),
        ],
        [
            Verdict::Broken(Breakage::FilteredOut),
            Verdict::Broken(Breakage::NoChunk(chunk)),
            Verdict::Broken(Breakage::EmptySlot { list: 2, slot: 1 }),
            Verdict::Broken(Breakage::NoBackend(4)),
            Verdict::Broken(Breakage::WrongProtocol(4)),
        ]
    );
}
