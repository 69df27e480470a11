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

fn meets(tables: &Tables, pick: u32) -> Verdict {
    trace(tables, Scope::Internal, WEB, pick)
}

#[test]
fn pick_chooses_a_backend() {
    let to = |text: &str| text.parse().expect("an address");
    for pick in [0, 2, u32::MAX - 1] {
        let expected = Verdict::Forward { service: 1, backend: 3, to: to("10.244.0.1:8080") };
        assert_eq!(meets(&tables(), pick), expected);
    }
    let expected = Verdict::Forward { service: 1, backend: 4, to: to("10.244.0.2:8080") };
    assert_eq!(meets(&tables(), 1), expected);
}

#[test]
fn frontend_without_backends_rejects() {
    let mut tables = tables();
    tables.frontends.values_mut().for_each(|f| f.count = 0);
    assert_eq!(meets(&tables, 0), Verdict::Reject { service: 1 });
}

/// S2: the protocol is part of what is looked up, and so are port and scope.
#[test]
fn other_port_protocol_address_or_scope_is_not_a_service() {
    let elsewhere = [
        Destination { port: 81, ..WEB },
        Destination { protocol: Protocol::Udp, ..WEB },
        Destination { addr: IpAddr::from([10, 96, 0, 2]), ..WEB },
    ];
    for to in elsewhere {
        assert_eq!(trace(&tables(), Scope::Internal, to, 0), Verdict::NotAService);
    }
    assert_eq!(trace(&tables(), Scope::External, WEB, 0), Verdict::NotAService);
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
