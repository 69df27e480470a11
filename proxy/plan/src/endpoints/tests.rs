use sluice_model::{Conditions, SlicePort};

use super::*;

fn endpoint(
    addr: &str,
    conditions: Conditions,
    ports: &[(&str, Protocol, Option<u16>)],
) -> Endpoint {
    Endpoint::new(
        addr.parse().expect("an address"),
        ports
            .iter()
            .map(|(name, protocol, port)| SlicePort {
                name: (*name).to_owned(),
                protocol: *protocol,
                port: *port,
            })
            .collect(),
        conditions,
    )
}

const READY: Conditions = Conditions { ready: true, serving: true, terminating: false };
const UNREADY: Conditions = Conditions { ready: false, serving: false, terminating: false };
const TERMINATING: Conditions = Conditions { ready: false, serving: true, terminating: true };
const STOPPED: Conditions = Conditions { ready: false, serving: false, terminating: true };
const HTTP: &[(&str, Protocol, Option<u16>)] = &[("http", Protocol::Tcp, Some(8080))];

fn chosen(endpoints: &[Endpoint], family: IpFamily) -> Vec<String> {
    Pool::new(endpoints, "http", Protocol::Tcp, family, &NodeContext::default())
        .cluster()
        .iter()
        .map(|b| format!("{:?}:{:?}/{}", b.addr, b.port, b.proto))
        .collect()
}

/// S14: endpoints that terminate get nothing while another one is ready.
#[test]
fn ready_endpoints_shut_out_terminating_ones() {
    let endpoints = [endpoint("10.0.0.1", READY, HTTP), endpoint("10.0.0.2", TERMINATING, HTTP)];
    assert_eq!(chosen(&endpoints, IpFamily::V4), ["10.0.0.1:8080/6"]);
}

/// S14: with none ready, those that still serve while they terminate are used, and only those.
#[test]
fn serving_and_terminating_endpoints_stand_in_when_none_is_ready() {
    let endpoints = [
        endpoint("10.0.0.1", UNREADY, HTTP),
        endpoint("10.0.0.2", TERMINATING, HTTP),
        endpoint("10.0.0.3", STOPPED, HTTP),
        endpoint("10.0.0.4", Conditions { terminating: false, ..TERMINATING }, HTTP),
    ];
    assert_eq!(chosen(&endpoints, IpFamily::V4), ["10.0.0.2:8080/6"]);
    assert!(chosen(&endpoints[..1], IpFamily::V4).is_empty());
}

/// S14, S26: the choice is made apart for each family.
#[test]
fn one_family_falls_back_while_the_other_has_ready_endpoints() {
    let endpoints = [endpoint("10.0.0.1", READY, HTTP), endpoint("fd00::2", TERMINATING, HTTP)];
    assert_eq!(chosen(&endpoints, IpFamily::V4), ["10.0.0.1:8080/6"]);
    assert_eq!(chosen(&endpoints, IpFamily::V6), ["fd00::2:8080/6"]);
}

/// S3: the port is found by name and protocol, and may have another number on each endpoint.
#[test]
fn named_port_has_its_own_number_on_each_endpoint() {
    let endpoints = [
        endpoint("10.0.0.1", READY, HTTP),
        endpoint(
            "10.0.0.2",
            READY,
            &[
                ("http", Protocol::Tcp, Some(9090)),
                ("http", Protocol::Udp, Some(1)),
                ("metrics", Protocol::Tcp, Some(2)),
            ],
        ),
    ];
    assert_eq!(chosen(&endpoints, IpFamily::V4), ["10.0.0.1:8080/6", "10.0.0.2:9090/6"]);
}

#[test]
fn endpoint_with_two_numbers_for_a_port_is_two_backends() {
    let both = &[("http", Protocol::Tcp, Some(8081)), ("http", Protocol::Tcp, Some(8080))];
    assert_eq!(
        chosen(&[endpoint("10.0.0.1", READY, both)], IpFamily::V4),
        ["10.0.0.1:8080/6", "10.0.0.1:8081/6"]
    );
}

/// S3: an address that several slices list is one backend, ready if one of them says so.
#[test]
fn repeated_endpoint_is_one_backend() {
    let endpoints = [
        endpoint("10.0.0.1", TERMINATING, HTTP),
        endpoint("10.0.0.1", READY, HTTP),
        endpoint("10.0.0.1", READY, HTTP),
    ];
    assert_eq!(chosen(&endpoints, IpFamily::V4), ["10.0.0.1:8080/6"]);
}

#[test]
fn port_without_a_number_is_no_backend() {
    for port in [None, Some(0)] {
        let endpoints = [endpoint("10.0.0.1", READY, &[("http", Protocol::Tcp, port)])];
        assert!(chosen(&endpoints, IpFamily::V4).is_empty());
    }
}

#[test]
fn mapped_ipv4_address_is_ipv4() {
    let endpoints = [endpoint("::ffff:10.0.0.1", READY, HTTP)];
    assert_eq!(chosen(&endpoints, IpFamily::V4), ["10.0.0.1:8080/6"]);
    assert!(chosen(&endpoints, IpFamily::V6).is_empty());
}

/// An endpoint of a table: `ADDR [NODE] [unready|ending|stopped] [zones=A,B] [nodes=A,B]`.
fn from_text(text: &str) -> Endpoint {
    let mut words = text.split(' ');
    let mut found = endpoint(words.next().expect("an address"), READY, HTTP);
    for word in words {
        let list = |hints: &str| hints.split(',').map(str::to_owned).collect();
        match word {
            "unready" => found.conditions = UNREADY,
            "ending" => found.conditions = TERMINATING,
            "stopped" => found.conditions = STOPPED,
            _ if word.starts_with("zones=") => found.for_zones = list(&word[6..]),
            _ if word.starts_with("nodes=") => found.for_nodes = list(&word[6..]),
            node => found.node = Some(node.to_owned()),
        }
    }
    found
}

/// A row: what it shows, the endpoints, and the last bytes of the addresses of the backends.
type Row<'a> = (&'a str, &'a [&'a str], &'a [u8]);

fn check(rows: &[Row<'_>], zone: Option<&str>, local: bool) {
    let node = NodeContext {
        name: "here".to_owned(),
        zone: zone.map(str::to_owned),
        ..NodeContext::default()
    };
    for (what, endpoints, expected) in rows {
        let endpoints: Vec<Endpoint> = endpoints.iter().map(|text| from_text(text)).collect();
        let pool = Pool::new(&endpoints, "http", Protocol::Tcp, IpFamily::V4, &node);
        let found = if local { pool.local() } else { pool.cluster() };
        let last: Vec<u8> =
            found.iter().map(|backend| backend.addr.v4().to_ne_bytes()[3]).collect();
        assert_eq!(last, *expected, "{what}");
    }
}

/// S13: hints that name zones.
#[test]
fn zone_hints_count_if_every_ready_endpoint_has_them_and_one_is_for_this_zone() {
    let rows: &[Row<'_>] = &[
        ("all hinted", &["10.0.0.1 zones=a", "10.0.0.2 zones=b"], &[1]),
        ("several zones", &["10.0.0.1 zones=a,b", "10.0.0.2 zones=b", "10.0.0.3 zones=a"], &[1, 3]),
        ("one without", &["10.0.0.1 zones=a", "10.0.0.2"], &[1, 2]),
        ("no match", &["10.0.0.1 zones=b", "10.0.0.2 zones=c"], &[1, 2]),
        ("none hinted", &["10.0.0.1", "10.0.0.2"], &[1, 2]),
        ("unready without", &["10.0.0.1 zones=a", "10.0.0.2 zones=b", "10.0.0.3 unready"], &[1]),
        ("ending without", &["10.0.0.1 zones=a", "10.0.0.2 zones=b", "10.0.0.3 ending"], &[1]),
        ("match not ready", &["10.0.0.1 unready zones=a", "10.0.0.2 zones=b"], &[2]),
        ("match ending", &["10.0.0.1 ending zones=a", "10.0.0.2 zones=b"], &[2]),
    ];
    check(rows, Some("a"), false);
    let everywhere: &[Row<'_>] =
        &[("a node without zone", &["10.0.0.1 zones=a", "10.0.0.2 zones=b"], &[1, 2])];
    check(everywhere, None, false);
}

/// S13: hints that name nodes come first.
#[test]
fn node_hints_come_before_zone_hints() {
    let rows: &[Row<'_>] = &[
        (
            "both",
            &[
                "10.0.0.1 nodes=here zones=a",
                "10.0.0.2 nodes=there zones=a",
                "10.0.0.3 nodes=far zones=b",
            ],
            &[1],
        ),
        (
            "no endpoint for this node",
            &["10.0.0.1 nodes=far zones=b", "10.0.0.2 nodes=there zones=a"],
            &[2],
        ),
        (
            "one without node hint",
            &["10.0.0.1 nodes=here zones=a", "10.0.0.2 zones=a", "10.0.0.3 nodes=far zones=b"],
            &[1, 2],
        ),
        ("neither", &["10.0.0.1 nodes=far zones=b", "10.0.0.2 nodes=there zones=c"], &[1, 2]),
    ];
    check(rows, Some("a"), false);
    check(&[("without zone", &["10.0.0.1 nodes=here", "10.0.0.2 nodes=there"], &[1])], None, false);
}

/// S14, S10: `Local` looks at this node's endpoints alone, and ignores hints.
#[test]
fn local_endpoints_are_chosen_apart_from_those_of_the_cluster() {
    let rows: &[Row<'_>] = &[
        ("ready here", &["10.0.0.1 here", "10.0.0.2 there"], &[1]),
        ("ending here, ready there", &["10.0.0.1 here ending", "10.0.0.2 there"], &[1]),
        ("ready and ending here", &["10.0.0.1 here ending", "10.0.0.2 here"], &[2]),
        ("none here", &["10.0.0.1 there", "10.0.0.2 there ending"], &[]),
        ("stopped here", &["10.0.0.1 here stopped", "10.0.0.2 here unready"], &[]),
        ("nobody knows where", &["10.0.0.1"], &[]),
        ("hinted elsewhere", &["10.0.0.1 here zones=b nodes=there"], &[1]),
    ];
    check(rows, Some("a"), true);
}

/// S14: under `Cluster` terminating endpoints stand in for ready ones of the whole cluster only, and
/// then all of them, whatever their hints.
#[test]
fn terminating_endpoints_of_the_whole_cluster_stand_in() {
    let rows: &[Row<'_>] = &[
        ("ready there, ending here", &["10.0.0.1 here ending", "10.0.0.2 there"], &[2]),
        (
            "ending everywhere",
            &["10.0.0.1 here ending zones=a", "10.0.0.2 there ending zones=b", "10.0.0.3 stopped"],
            &[1, 2],
        ),
    ];
    check(rows, Some("a"), false);
}
