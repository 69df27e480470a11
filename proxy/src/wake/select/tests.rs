use sluice_abi::{ServiceName, Slots};
use sluice_model::{Protocol, SlicePort};

use super::*;

fn addr(text: &str) -> Addr {
    text.parse::<std::net::IpAddr>().expect("an address").into()
}

/// A socket that was connected to 10.96.0.10:53 of `ns/dns` and got backend `number` of list 5.
fn peer(number: u32, backend: &str) -> SockPeer {
    SockPeer {
        addr: addr("10.96.0.10"),
        port: Be16::new(53),
        backend_addr: addr(backend),
        backend_port: Be16::new(5353),
        service: 1,
        backend: number,
        list: 5,
        netns: 77,
    }
}

/// `ns/dns` at 10.96.0.10:53 with a list of these backends.
fn tables(proto: u8, list: u32, backends: &[u32]) -> Tables {
    let mut tables = Tables::default();
    let key = FrontendKey {
        addr: addr("10.96.0.10"),
        port: Be16::new(53),
        proto,
        scope: Scope::Internal as u8,
    };
    let count = u32::try_from(backends.len()).expect("few");
    tables.frontends.insert(key, Frontend { service: 1, list, count, ..Frontend::default() });
    tables.names.insert(1, ServiceName::new("ns", "dns", "dns"));
    for (chunk, part) in (0..).zip(backends.chunks(SLOTS_PER_CHUNK as usize)) {
        let mut slots = Slots::default();
        slots.backend[..part.len()].copy_from_slice(part);
        tables.slots.insert(SlotKey { list, chunk }, slots);
    }
    tables
}

fn endpoint(address: &str, protocol: Protocol, conditions: Conditions) -> Endpoint {
    Endpoint::new(
        address.parse().expect("an address"),
        vec![SlicePort { name: "dns".to_owned(), protocol, port: Some(5353) }],
        conditions,
    )
}

const READY: Conditions = Conditions { ready: true, serving: true, terminating: false };
const DRAINING: Conditions = Conditions { ready: false, serving: true, terminating: true };
const ENDING: Conditions = Conditions { ready: false, serving: false, terminating: true };
const UNREADY: Conditions = Conditions { ready: false, serving: false, terminating: false };

/// Whether a socket with backend 9 at 10.244.1.9 is doomed.
fn is_doomed(kind: SocketKind, tables: &Tables, endpoints: Option<&[Endpoint]>) -> bool {
    let peers = [(1000, peer(9, "10.244.1.9"))];
    let found = doomed(kind, &peers, tables, |name| {
        assert_eq!(*name, ObjectName::new("ns", "dns"));
        endpoints.map(<[_]>::to_vec)
    });
    assert!(found.iter().all(|doomed| doomed.cookie == 1000 && doomed.netns == 77));
    !found.is_empty()
}

/// S22: each way in which a backend can go from a datagram socket.
#[test]
fn datagram_socket_is_doomed_when_its_backend_serves_no_more() {
    let udp = |address, conditions| endpoint(address, Protocol::Udp, conditions);
    let doomed = |tables: &Tables, endpoints: Option<&[Endpoint]>| {
        is_doomed(SocketKind::Datagram, tables, endpoints)
    };
    let with = tables(proto::UDP, 6, &[8, 9]);
    let without = tables(proto::UDP, 6, &[8]);
    let empty = tables(proto::UDP, 6, &[]);
    let other = udp("10.244.1.8", READY);
    assert!(!doomed(&tables(proto::UDP, 5, &[8]), Some(&[])), "the list it was chosen from");
    assert!(!doomed(&with, Some(&[])), "another list that has it");
    assert!(doomed(&without, Some(std::slice::from_ref(&other))), "removed");
    assert!(doomed(&empty, Some(&[])), "the last one removed");
    assert!(doomed(&Tables::default(), None), "the Service deleted");
    assert!(doomed(&tables(proto::TCP, 6, &[9]), Some(&[])), "its port deleted");
    let its = |conditions| [other.clone(), udp("10.244.1.9", conditions)];
    assert!(doomed(&without, Some(&its(UNREADY))), "unready");
    assert!(doomed(&without, Some(&its(ENDING))), "terminating, and serving no more");
    assert!(!doomed(&without, Some(&its(DRAINING))), "terminating, and serving on");
    assert!(!doomed(&without, Some(&its(READY))), "not chosen for reasons of topology");
    let mut moved = udp("10.244.1.9", READY);
    moved.ports[0].port = Some(5354);
    assert!(doomed(&without, Some(&[moved])), "its port is another now");
    let tcp = endpoint("10.244.1.9", Protocol::Tcp, READY);
    assert!(doomed(&without, Some(&[tcp])), "it serves the other protocol only");
}

/// S24, S15: a stream is doomed when the endpoint is gone, and not before.
#[test]
fn stream_is_doomed_when_its_endpoint_is_gone() {
    let tcp = |address, conditions| endpoint(address, Protocol::Tcp, conditions);
    let doomed = |tables: &Tables, endpoints: Option<&[Endpoint]>| {
        is_doomed(SocketKind::Stream, tables, endpoints)
    };
    let without = tables(proto::TCP, 6, &[8]);
    assert!(doomed(&without, Some(&[tcp("10.244.1.8", READY)])), "removed");
    assert!(doomed(&tables(proto::TCP, 6, &[]), Some(&[])), "the last one removed");
    for conditions in [READY, DRAINING, ENDING, UNREADY] {
        let its = [tcp("10.244.1.9", conditions)];
        assert!(!doomed(&without, Some(&its)), "{conditions:?}");
    }
    assert!(!doomed(&without, None), "the Service is gone: its pods may not be");
    assert!(!doomed(&Tables::default(), None), "nothing is known of it");
    assert!(!doomed(&tables(proto::TCP, 6, &[9]), Some(&[])), "kept by the planner");
}

/// S22: the Service is asked once, however many sockets there are.
#[test]
fn endpoints_are_asked_for_once() {
    let peers: Vec<_> = (0..1000).map(|n| (n, peer(9, "10.244.1.9"))).collect();
    let mut asked = 0;
    let found = doomed(SocketKind::Datagram, &peers, &tables(proto::UDP, 6, &[8]), |_| {
        asked += 1;
        Some(Vec::new())
    });
    assert_eq!((found.len(), asked), (1000, 1));
}

/// S22: lists of more than one chunk are looked through to their end.
#[test]
fn long_lists_are_looked_through() {
    let backends: Vec<u32> = (100..140).collect();
    let tables = tables(proto::UDP, 6, &backends);
    let peers = [(1, peer(139, "10.244.1.9")), (2, peer(140, "10.244.1.10"))];
    let found = doomed(SocketKind::Datagram, &peers, &tables, |_| Some(Vec::new()));
    assert_eq!(found.iter().map(|doomed| doomed.cookie).collect::<Vec<_>>(), [2]);
}
