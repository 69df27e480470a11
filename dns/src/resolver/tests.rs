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
    match resolver.accept(&bytes, transport, None) {
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
        let Step::Ask(pending) = resolver.accept(&bytes, Transport::Udp, None) else {
            panic!("{name} is not forwarded")
        };
        let reply = Message::from_vec(&resolver.finish(*pending).await).expect("a message");
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
