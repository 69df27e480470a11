use hickory_proto::op::{MessageType, OpCode, Query};
use hickory_proto::rr::RData;

use super::*;
use crate::fixture;

fn resolver() -> Resolver {
    let domain = Domain::new("cluster.local", 5).expect("a domain");
    let resolver = Resolver::new(domain, Forwarder::new([], 0));
    resolver.set_zone(fixture::zone(&fixture::cluster()));
    resolver
}

fn query(id: u16, name: &str, kind: RecordType) -> Message {
    let mut query = Message::new(id, MessageType::Query, OpCode::Query);
    query.metadata.recursion_desired = true;
    query.add_query(Query::query(Name::from_ascii(name).expect("a name"), kind));
    query
}

/// What the resolver answers without asking anyone.
fn answer(resolver: &Resolver, query: &Message, transport: Transport) -> Message {
    let bytes = query.to_vec().expect("a message");
    match resolver.accept(&bytes, &Client::unknown(transport), resolver.metrics().shared()) {
        Step::Reply(reply) => Message::from_vec(&reply).expect("a message"),
        other => panic!("{other:?}"),
    }
}

/// D1, D9: a whole exchange, in the client's own spelling.
#[test]
fn a_query_for_a_service_is_answered_at_once() {
    let query = query(7, "wEb.Shop.svc.CLUSTER.local.", RecordType::A);
    let reply = answer(&resolver(), &query, Transport::Udp);
    assert_eq!((reply.metadata.id, reply.metadata.response_code), (7, ResponseCode::NoError));
    assert!(reply.metadata.authoritative);
    assert!(!reply.metadata.recursion_available, "there is no upstream");
    assert!(reply.queries[0].name().eq_case(query.queries[0].name()));
    assert!(reply.answers[0].name.eq_case(query.queries[0].name()));
    assert_eq!(reply.answers[0].data, RData::A(std::net::Ipv4Addr::new(10, 0, 0, 1).into()));
}

/// D5: a changed zone answers the next query.
#[test]
fn a_new_zone_counts_from_the_next_query_on() {
    let resolver = resolver();
    let query = query(7, "new.shop.svc.cluster.local.", RecordType::A);
    let before = answer(&resolver, &query, Transport::Udp);
    assert_eq!(before.metadata.response_code, ResponseCode::NXDomain);
    let mut zone = (*resolver.zone()).clone();
    zone.set_service(&fixture::service("shop/new", &["10.0.0.8"], &["http:tcp:80"]), &[]);
    resolver.set_zone(zone);
    assert_eq!(answer(&resolver, &query, Transport::Udp).answers.len(), 1);
}

/// D11: only the class of the Internet has data here.
#[test]
fn other_classes_are_refused() {
    let mut query = query(7, "version.bind.", RecordType::TXT);
    query.queries[0].set_query_class(DNSClass::CH);
    let reply = answer(&resolver(), &query, Transport::Udp);
    assert_eq!(reply.metadata.response_code, ResponseCode::Refused);
}

/// D12: without an upstream a foreign name fails, and an alias to one as well.
#[tokio::test]
async fn foreign_names_fail_without_an_upstream() {
    let resolver = resolver();
    for name in ["example.com.", "out.shop.svc.cluster.local.", "77.0.0.10.in-addr.arpa."] {
        let bytes = query(7, name, RecordType::A).to_vec().expect("a message");
        let client = Client::unknown(Transport::Udp);
        let step = resolver.accept(&bytes, &client, resolver.metrics().shared());
        let Step::Ask(pending) = step else { panic!("{name} is not forwarded") };
        let reply = resolver.finish(pending).await;
        let reply = Message::from_vec(&reply).expect("a message");
        assert_eq!(reply.metadata.response_code, ResponseCode::ServFail, "{name}");
        assert!(reply.answers.is_empty());
    }
}

/// D11: a large headless set is cut over UDP and whole over TCP.
#[test]
fn a_large_headless_set_is_whole_over_tcp() {
    let endpoints: Vec<_> = (0..1000u32)
        .map(|n| fixture::endpoint(&format!("10.1.{}.{}", n / 250, n % 250 + 1), &["a:tcp:1"]))
        .collect();
    let resolver = resolver();
    resolver.set_zone(fixture::zone(&[(fixture::headless("shop/big", &["a:tcp:1"]), endpoints)]));
    let query = query(7, "big.shop.svc.cluster.local.", RecordType::A);
    let cut = answer(&resolver, &query, Transport::Udp);
    assert!(cut.metadata.truncation && !cut.answers.is_empty());
    let whole = answer(&resolver, &query, Transport::Tcp);
    assert!(!whole.metadata.truncation);
    assert_eq!(whole.answers.len(), 1000);
}

/// D4: clients that take the first address are spread over all of them.
#[test]
fn every_address_comes_first_for_some_query() {
    let resolver = resolver();
    let first = |id| {
        let query = query(id, "db.shop.svc.cluster.local.", RecordType::A);
        answer(&resolver, &query, Transport::Udp).answers[0].data.clone()
    };
    let distinct: std::collections::HashSet<_> = (0..4).map(first).collect();
    assert_eq!(distinct.len(), 4);
}

/// D5: aliases stay in front when the addresses behind them are turned.
#[test]
fn aliases_stay_first() {
    let resolver = resolver();
    let mut zone = (*resolver.zone()).clone();
    zone.set_service(&fixture::external("shop/alias", "db.shop.svc.cluster.local"), &[]);
    resolver.set_zone(zone);
    for id in 0..4 {
        let query = query(id, "alias.shop.svc.cluster.local.", RecordType::A);
        let reply = answer(&resolver, &query, Transport::Udp);
        let kinds: Vec<_> = reply.answers.iter().map(Record::record_type).collect();
        assert_eq!(kinds[0], RecordType::CNAME);
        assert_eq!(kinds[1..], [RecordType::A; 4]);
    }
}

/// What a pod at this address gets without an upstream being asked.
fn answer_to(resolver: &Resolver, pod: &str, query: &Message) -> Step {
    let peer = Some(std::net::SocketAddr::new(fixture::addr(pod), 4711));
    let client = Client { peer, ..Client::unknown(Transport::Udp) };
    let bytes = query.to_vec().expect("a message");
    resolver.accept(&bytes, &client, resolver.metrics().shared())
}

fn with_autopath() -> Resolver {
    let domain = Domain::new("cluster.local", 5).expect("a domain");
    let upstream = "192.0.2.1:53".parse().expect("an address");
    let mut settings = Settings::new(domain, Forwarder::new([upstream], 100));
    settings.autopath = Some(vec![Name::from_ascii("node.example.").expect("a name")]);
    let resolver = Resolver::with_settings(settings);
    let mut zone = fixture::zone(&fixture::cluster());
    zone.add_pod(fixture::addr("172.16.9.9"), "lab");
    resolver.set_zone(zone);
    resolver
}

/// D14: a name that is denied in the pod's own namespace is looked up along its search path at once,
/// and found in the cluster under an alias.
#[test]
fn the_search_path_of_a_known_pod_is_followed_in_the_cluster() {
    let resolver = with_autopath();
    let query = query(7, "web.shop.lab.svc.cluster.local.", RecordType::A);
    let Step::Reply(reply) = answer_to(&resolver, "172.16.9.9", &query) else { panic!("at once") };
    let reply = Message::from_vec(&reply).expect("a message");
    let records: Vec<_> = reply.answers.iter().map(ToString::to_string).collect();
    let expected = [
        "web.shop.lab.svc.cluster.local. 5 IN CNAME web.shop.svc.cluster.local.",
        "web.shop.svc.cluster.local. 5 IN A 10.0.0.1",
    ];
    assert_eq!(records, expected);
}

/// D14: outside of the cluster the search path goes on with the node's domains and the bare name.
#[test]
fn the_search_path_goes_on_outside_of_the_cluster() {
    let resolver = with_autopath();
    let query = query(7, "example.com.lab.svc.cluster.local.", RecordType::A);
    let Step::Ask(pending) = answer_to(&resolver, "172.16.9.9", &query) else { panic!("upstream") };
    let names: Vec<_> = pending.targets.iter().map(ToString::to_string).collect();
    assert_eq!(names, ["example.com.node.example.", "example.com."]);
}

/// D14: other clients, and other namespaces than the pod's, get the denial itself, the short way as
/// well.
#[test]
fn nobody_elses_search_path_is_followed() {
    let resolver = with_autopath();
    let fast = |pod: &str, name: &str| {
        let bytes = query(7, name, RecordType::A).to_vec().expect("a message");
        let peer = Some(std::net::SocketAddr::new(fixture::addr(pod), 4711));
        let client = Client { peer, ..Client::unknown(Transport::Udp) };
        let mut out = [0; wire::MAX_UDP as usize];
        let parsed = crate::fast::Query::read(&bytes).expect("common");
        resolver.load().fast(&parsed, &client, &mut out, resolver.metrics().shared()).is_some()
    };
    for (pod, name) in [
        ("172.16.9.8", "example.com.lab.svc.cluster.local."),
        ("172.16.9.9", "example.com.shop.svc.cluster.local."),
        ("172.16.9.9", "lab.svc.cluster.local."),
    ] {
        let step = answer_to(&resolver, pod, &query(7, name, RecordType::A));
        let Step::Reply(reply) = step else { panic!("{name} from {pod} is forwarded") };
        let reply = Message::from_vec(&reply).expect("a message");
        assert!(reply.answers.is_empty());
        assert!(fast(pod, name), "{name} from {pod}");
    }
    assert!(!fast("172.16.9.9", "example.com.lab.svc.cluster.local."));
    assert!(!fast("172.16.9.9", "a.b.c.d.example.com.lab.svc.cluster.local."));
}
