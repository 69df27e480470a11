use hickory_proto::op::Message;
use hickory_proto::rr::Record;
use proptest::prelude::*;
use sluice_model::{Endpoint, Service};

use super::*;
use crate::answer::PodRecords;
use crate::fixture;
use crate::forward::Forwarder;
use crate::resolver::{Client, Resolver, Step};
use crate::wire::Transport;

/// A query as a client writes it.
#[derive(Clone, Debug)]
struct Asked {
    id: u16,
    labels: Vec<Vec<u8>>,
    kind: u16,
    class: u16,
    flags: u8,
    more_flags: u8,
    edns: Option<Opt>,
}

/// An OPT record as a client writes it.
#[derive(Clone, Debug)]
struct Opt {
    payload: u16,
    rcode: u8,
    version: u8,
    flags: u16,
    options: Vec<u8>,
}

fn encode(asked: &Asked) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend(asked.id.to_be_bytes());
    bytes.extend([
        asked.flags,
        asked.more_flags,
        0,
        1,
        0,
        0,
        0,
        0,
        0,
        u8::from(asked.edns.is_some()),
    ]);
    for label in &asked.labels {
        bytes.push(u8::try_from(label.len()).expect("short"));
        bytes.extend(label);
    }
    bytes.push(0);
    bytes.extend(asked.kind.to_be_bytes());
    bytes.extend(asked.class.to_be_bytes());
    if let Some(opt) = &asked.edns {
        bytes.extend([0, 0, 41]);
        bytes.extend(opt.payload.to_be_bytes());
        bytes.extend([opt.rcode, opt.version]);
        bytes.extend(opt.flags.to_be_bytes());
        bytes.extend(u16::try_from(opt.options.len()).expect("short").to_be_bytes());
        bytes.extend(&opt.options);
    }
    bytes
}

fn resolver(zone: &Snapshot, pods: PodRecords) -> Resolver {
    let domain = Domain::new("cluster.local", 5).expect("a domain").with_pods(pods);
    let upstream = "192.0.2.1:53".parse().expect("an address");
    let resolver = Resolver::new(domain, Forwarder::new([upstream], 0));
    resolver.set_zone(zone.clone());
    resolver
}

/// What an answer says, whatever the octets it is said with. Owners of records other than the
/// question's are compared without regard to case.
fn meaning(bytes: &[u8]) -> (String, Vec<String>, Vec<String>, Vec<String>) {
    let message = Message::from_vec(bytes).expect("a message");
    let records = |list: &[Record]| -> Vec<String> {
        let mut list: Vec<_> = list.iter().map(|r| r.to_string().to_lowercase()).collect();
        list.sort();
        list
    };
    let head = format!("{:?} {:?} {:?}", message.metadata, message.queries, message.edns);
    (
        head,
        message.answers.iter().map(|r| r.to_string().to_lowercase()).collect(),
        records(&message.authorities),
        records(&message.additionals),
    )
}

/// Both ways' answers to a message: the fast one only where it takes it.
fn both(resolver: &Resolver, message: &[u8]) -> (Option<Vec<u8>>, Vec<u8>) {
    let mut out = [0; MAX_UDP as usize];
    let fast = Query::read(message)
        .and_then(|query| {
            let zone = resolver.zone();
            answer(&query, &resolver.settings().domain, &zone, true, |_| true, &mut out)
        })
        .map(|done| out[..done.length].to_vec());
    let client = Client::unknown(Transport::Udp);
    let slow = match resolver.accept(message, &client, resolver.metrics().shared()) {
        Step::Reply(reply) => reply,
        other => {
            assert!(fast.is_none(), "{other:?}");
            Vec::new()
        }
    };
    (fast, slow)
}

fn same(resolver: &Resolver, message: &[u8]) -> Result<bool, TestCaseError> {
    let (fast, slow) = both(resolver, message);
    let Some(fast) = fast else { return Ok(false) };
    let (a, b) = (meaning(&fast), meaning(&slow));
    prop_assert_eq!(a.0, b.0);
    prop_assert_eq!(&a.1, &b.1);
    prop_assert_eq!(a.2, b.2);
    // What of the glue fits depends on how well the names before it were compressed.
    let (few, many) = if a.3.len() < b.3.len() { (&a.3, &b.3) } else { (&b.3, &a.3) };
    prop_assert!(few.iter().all(|record| many.contains(record)), "{few:?} {many:?}");
    let room = usize::from(MIN_UDP) - 120;
    prop_assert!(few.len() == many.len() || fast.len() > room || slow.len() > room);
    prop_assert!(fast.len() <= usize::from(MAX_UDP));
    Ok(true)
}

fn label() -> impl Strategy<Value = Vec<u8>> {
    let words: Vec<&str> = vec![
        "web",
        "db",
        "svc",
        "pod",
        "shop",
        "lab",
        "dns",
        "ns",
        "dns-version",
        "_http",
        "_tcp",
        "_udp",
        "http",
        "tcp",
        "_pg",
        "_dns",
        "twin",
        "db-0",
        "172-16-1-2",
        "fd00-16--1",
        "dual",
        "unnamed",
        "starting",
        "eager",
        "pending",
        "portless",
        "out",
        "address",
        "first",
        "s0",
        "s1",
        "s2",
        "e0",
        "e1",
        "10-0-0-1",
        "example",
        "com",
    ];
    let spelled = (prop::sample::select(words), any::<u16>()).prop_map(|(word, upper)| {
        let up = |n: usize| upper >> (n % 16) & 1 == 1;
        let letter = |(n, b): (usize, u8)| if up(n) { b.to_ascii_uppercase() } else { b };
        word.bytes().enumerate().map(letter).collect()
    });
    prop_oneof![9 => spelled, 1 => prop::collection::vec(any::<u8>(), 1..64)]
}

fn asked() -> impl Strategy<Value = Asked> {
    let fixed = |tail: &'static [&'static str]| {
        prop::collection::vec(label(), 0..5).prop_map(move |mut head| {
            head.extend(tail.iter().map(|label| label.as_bytes().to_vec()));
            head
        })
    };
    let names = prop_oneof![
        6 => fixed(&["svc", "cluster", "local"]),
        4 => fixed(&["shop", "SVC", "Cluster", "local"]),
        1 => fixed(&["pod", "cluster", "local"]),
        1 => fixed(&["cluster", "local"]),
        1 => fixed(&["local"]),
        1 => fixed(&[]),
    ];
    let kinds = prop_oneof![
        16 => prop::sample::select(vec![1u16, 28, 33, 65]),
        // NS, CNAME, SOA, PTR, TXT, OPT, DS, RRSIG, IXFR, AXFR, ANY.
        4 => prop::sample::select(vec![2u16, 5, 6, 12, 16, 41, 43, 46, 251, 252, 255]),
        1 => any::<u16>(),
    ];
    let classes = prop_oneof![
        30 => Just(1u16),
        // CH, HS, NONE, ANY.
        1 => prop::sample::select(vec![0u16, 3, 4, 254, 255]),
        1 => any::<u16>(),
    ];
    // Of the header: RD, and TC and AA, which mean nothing in a query; AD, CD and Z.
    let flags = prop_oneof![20 => Just(1u8), 4 => prop::sample::select(vec![0u8, 2, 3, 4, 5, 7])];
    let more_flags = prop_oneof![
        8 => prop::sample::select(vec![0u8, 0x10, 0x20, 0x30]),
        1 => any::<u8>(),
    ];
    let odd = |value: BoxedStrategy<u16>| prop_oneof![12 => Just(0u16), 1 => value];
    let options = prop_oneof![
        12 => Just(Vec::new()),
        // A cookie, padding, and one that says that it is longer.
        1 => prop::sample::select(vec![
            vec![0u8, 10, 0, 8, 1, 2, 3, 4, 5, 6, 7, 8],
            vec![0, 12, 0, 4, 0, 0, 0, 0],
            vec![0, 12, 0, 9, 0],
        ]),
    ];
    let payload = prop_oneof![any::<u16>(), prop::sample::select(vec![0u16, 511, 512, 1232, 1233])];
    let dnssec_ok = prop::sample::select(vec![0u16, 0x8000]);
    let (rcode, version) = (odd((1..256u16).boxed()), odd((1..256u16).boxed()));
    let z = odd((1..0x8000u16).boxed());
    let edns = proptest::option::of((payload, rcode, version, dnssec_ok, z, options).prop_map(
        |(payload, rcode, version, dnssec_ok, z, options)| Opt {
            payload,
            // Below 256, both of them.
            rcode: rcode as u8,
            version: version as u8,
            flags: dnssec_ok | z,
            options,
        },
    ));
    (any::<u16>(), names, kinds, classes, flags, more_flags, edns)
        .prop_map(|(id, labels, kind, class, flags, more_flags, edns)| Asked {
            id,
            labels,
            kind,
            class,
            flags,
            more_flags,
            edns,
        })
        .prop_filter("a name", |asked| encode(asked).len() <= 12 + 255 + 4 + 11 + 12)
}

/// Services that need not make sense.
fn entry(n: usize) -> impl Strategy<Value = (Service, Vec<Endpoint>)> {
    let ports = prop::sample::subsequence(
        vec!["http:tcp:80", "http:udp:80", "dns:udp:53", ":tcp:80", "pg:tcp:5432"],
        0..4,
    );
    let addrs = prop::sample::subsequence(vec!["10.9.0.1", "fd00:9::1"], 0..=2);
    let endpoint = (0u8..120, prop::option::of(0u8..3), any::<bool>(), any::<bool>());
    let endpoints = prop::collection::vec(endpoint, 0..40);
    (ports, addrs, endpoints, any::<bool>(), any::<bool>()).prop_map(
        move |(ports, addrs, list, headless, not_ready)| {
            let name = format!("shop/s{n}");
            let mut service = if headless {
                fixture::headless(&name, &ports)
            } else {
                fixture::service(&name, &addrs, &ports)
            };
            service.publish_not_ready = not_ready;
            let mut by_addr = std::collections::BTreeMap::new();
            for (at, host, v6, ready) in list {
                let addr = if v6 { format!("fd00:1::{at:x}") } else { format!("10.1.0.{at}") };
                let host = host.map_or(String::new(), |host| format!("=e{host}"));
                let text = format!("{addr}{host}{}", if ready { "" } else { "!" });
                by_addr.insert(fixture::addr(&addr), fixture::endpoint(&text, &ports));
            }
            (service, by_addr.into_values().collect())
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// D1, D2, D4, D8, D9, D11: what is answered the short way means what the long way answers,
    /// whatever the zone and the query.
    #[test]
    fn the_short_way_says_what_the_long_way_says(
        queries in prop::collection::vec(asked(), 1..60),
        random in (entry(0), entry(1), entry(2)),
        pods in prop::sample::select(vec![
            PodRecords::Disabled, PodRecords::Insecure, PodRecords::Verified,
        ]),
    ) {
        let mut entries = fixture::cluster();
        entries.extend([random.0, random.1, random.2]);
        let mut zone = fixture::zone(&entries);
        zone.add_pod(fixture::addr("10.0.0.1"), "shop");
        let resolver = resolver(&zone, pods);
        for asked in &queries {
            same(&resolver, &encode(asked))?;
        }
    }

    /// D18: whatever comes in, the short way does not panic, and says what the long way says.
    #[test]
    fn broken_queries_are_no_exception(
        asked in asked(),
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        cut in any::<prop::sample::Index>(),
        whole in any::<bool>(),
    ) {
        let mut bytes = encode(&asked);
        for (at, value) in flips {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if !whole {
            bytes.truncate(cut.index(bytes.len()));
        }
        let resolver = resolver(&fixture::zone(&fixture::cluster()), PodRecords::Disabled);
        same(&resolver, &bytes)?;
    }
}

fn plain(name: &str, kind: u16) -> Vec<u8> {
    let labels = name.split('.').map(|label| label.as_bytes().to_vec()).collect();
    let edns = Opt { payload: 1232, rcode: 0, version: 0, flags: 0, options: Vec::new() };
    encode(&Asked { id: 7, labels, kind, class: 1, flags: 1, more_flags: 0, edns: Some(edns) })
}

/// D18: the common names do take the short way.
#[test]
fn common_names_take_the_short_way() {
    let resolver = resolver(&fixture::zone(&fixture::cluster()), PodRecords::Disabled);
    for (name, kind) in [
        ("web.shop.svc.cluster.local", kind::A),
        ("web.shop.svc.cluster.local", kind::AAAA),
        ("web.shop.svc.cluster.local", kind::SRV),
        ("_http._tcp.web.shop.svc.cluster.local", kind::SRV),
        ("db-0.db.shop.svc.cluster.local", kind::A),
        ("db.shop.svc.cluster.local", kind::AAAA),
        ("nosuch.shop.svc.cluster.local", kind::A),
        ("example.com.shop.svc.cluster.local", kind::AAAA),
        ("example.com.svc.cluster.local", kind::A),
        ("www.example.com.cluster.local", kind::A),
    ] {
        let took = same(&resolver, &plain(name, kind)).expect("the same meaning");
        assert!(took, "{name} {kind}");
    }
    for name in ["example.com", "out.shop.svc.cluster.local", "dns-version.cluster.local"] {
        let mut out = [0; MAX_UDP as usize];
        let message = plain(name, kind::A);
        let query = Query::read(&message).expect("a query");
        let zone = resolver.zone();
        let done = answer(&query, &resolver.settings().domain, &zone, true, |_| true, &mut out);
        assert_eq!(done, None, "{name}");
    }
}

/// D11, D18: whatever is made of a query by accident or on purpose, nothing panics, the short way says
/// what the long way says, and an answer is one to that query and keeps to its size.
#[test]
fn mutated_queries_are_no_exception() {
    let resolver = resolver(&fixture::zone(&fixture::cluster()), PodRecords::Verified);
    crate::fuzz::run(crate::fuzz::QUERIES, |bytes| {
        same(&resolver, bytes).expect("the same meaning");
        for (transport, most) in [(Transport::Udp, usize::from(MAX_UDP)), (Transport::Tcp, 65_535)]
        {
            let client = Client::unknown(transport);
            let shard = resolver.metrics().shared();
            let panics = resolver.metrics().count(crate::metrics::Event::Panic);
            let step = resolver.accept(bytes, &client, shard);
            assert_eq!(resolver.metrics().count(crate::metrics::Event::Panic), panics);
            let Step::Reply(reply) = step else { continue };
            assert!(reply.len() <= most, "{}", reply.len());
            assert_eq!(reply[..2], bytes[..2]);
            assert!(bytes[2] & 0x80 == 0 && reply[2] & 0x80 != 0, "an answer to an answer");
            Message::from_vec(&reply).expect("what is written can be read");
        }
    });
}
