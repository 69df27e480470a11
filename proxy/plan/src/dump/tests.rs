use sluice_abi::SlotKey;

use super::*;

fn key(addr: &str, port: u16, proto: u8) -> FrontendKey {
    let addr: IpAddr = addr.parse().expect("an address");
    FrontendKey { addr: addr.into(), port: Be16::new(port), proto, scope: 0 }
}

fn backend(addr: &str, port: u16) -> Backend {
    let addr: IpAddr = addr.parse().expect("an address");
    Backend { addr: addr.into(), port: Be16::new(port), proto: 6, flags: 0 }
}

/// A service of two backends under the numbers given, and one without any.
fn tables(service: u32, list: u32, backends: [u32; 2]) -> Tables {
    let mut tables = Tables::default();
    let flags = FrontendFlags::CLUSTER_IP;
    let web = Frontend { service, list, count: 2, flags, affinity_secs: 60 };
    let none = Frontend { service: service + 1, flags, ..Frontend::default() };
    tables.frontends.insert(key("10.96.0.1", 80, 6), web);
    tables.frontends.insert(key("fd00::1", 53, 17), none);
    tables.names.insert(service, ServiceName::new("ns", "web", "http"));
    tables.names.insert(service + 1, ServiceName::new("ns", "dns", ""));
    let mut slots = Slots::default();
    slots.backend[..2].copy_from_slice(&backends);
    tables.slots.insert(SlotKey { list, chunk: 0 }, slots);
    tables.backends.insert(backends[0], backend("10.244.0.9", 8080));
    tables.backends.insert(backends[1], backend("10.244.0.10", 8080));
    for frontend in tables.frontends.keys() {
        let (word, mask) = filter::position(vip_filter_bit(&frontend.addr));
        *tables.vip_filter.entry(word).or_default() |= mask;
    }
    tables
}

const CANONICAL: &str = "\
10.96.0.1:80/TCP ns/web:http cluster-ip affinity 60s
  10.244.0.9:8080/TCP
  10.244.0.10:8080/TCP
[fd00::1]:53/UDP ns/dns cluster-ip
  reject
";

#[test]
fn canonical_text_does_not_depend_on_numbers() {
    assert_eq!(tables(1, 1, [1, 2]).canonical(), CANONICAL);
    assert_eq!(tables(7, 5, [20, 10]).canonical(), CANONICAL);
}

#[test]
fn dump_shows_every_element_with_its_number() {
    let text = tables(7, 5, [20, 10]).dump();
    let (entries, words): (Vec<&str>, Vec<&str>) =
        text.lines().partition(|line| !line.starts_with("filter "));
    assert_eq!(
        entries,
        [
            "frontend 10.96.0.1:80/TCP service 7 list 5 count 2 cluster-ip affinity 60s",
            "frontend [fd00::1]:53/UDP service 8 list 0 count 0 cluster-ip",
            "list 5.0 [20 10]",
            "backend 10 10.244.0.10:8080/TCP",
            "backend 20 10.244.0.9:8080/TCP",
            "name 7 ns/web:http",
            "name 8 ns/dns",
        ]
    );
    assert_eq!(words.len(), 2);
}

#[test]
fn what_is_wrong_or_left_over_is_told() {
    let told = |damage: fn(&mut Tables)| {
        let mut tables = tables(1, 1, [1, 2]);
        damage(&mut tables);
        let text = tables.canonical();
        text.lines()
            .filter(|line| line.contains("! ") || line.contains('?'))
            .map(|line| line.trim_start().to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(told(|_| ()), [""; 0]);
    assert_eq!(
        told(|t| {
            t.backends.remove(&2);
        }),
        ["! no backend"]
    );
    assert_eq!(
        told(|t| {
            t.names.remove(&2);
        }),
        ["[fd00::1]:53/UDP ? cluster-ip"]
    );
    assert_eq!(
        told(|t| t.slots.clear()),
        [
            "! 2 slots missing",
            "! unused backend 10.244.0.10:8080/TCP",
            "! unused backend 10.244.0.9:8080/TCP"
        ]
    );
    assert_eq!(
        told(|t| {
            t.slots.insert(SlotKey { list: 9, chunk: 0 }, t.slots[&SlotKey { list: 1, chunk: 0 }]);
        }),
        ["! unused list of 2 backends"]
    );
    assert_eq!(
        told(|t| t.slots.values_mut().for_each(|s| s.backend[2] = 1)),
        ["! 1 slots too many"]
    );
    assert_eq!(
        told(|t| {
            t.names.insert(9, ServiceName::new("ns", "gone", ""));
        }),
        ["! unused name ns/gone"]
    );
    assert_eq!(
        told(|t| t.frontends.values_mut().for_each(|f| f.service = 1)),
        ["! several protocols for the number of ns/web:http", "! unused name ns/dns"]
    );
    assert_eq!(
        told(|t| {
            t.backends.insert(2, t.backends[&1]);
        }),
        ["! several numbers for backend 10.244.0.9:8080/TCP"]
    );
    assert_eq!(
        told(|t| t.vip_filter.clear()),
        ["! filter hides 10.96.0.1", "! filter hides fd00::1"]
    );
    assert_eq!(
        told(|t| {
            t.vip_filter.insert(16000, 2);
        }),
        ["! filter admits bit 1024001 in vain"]
    );
}
