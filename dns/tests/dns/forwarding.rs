//! Names outside of the cluster.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use hickory_proto::op::{Query, ResponseCode};
use hickory_proto::rr::rdata::SOA;
use hickory_proto::rr::{Name, RData, Record, RecordType};

use crate::support::{Dns, Upstream, Via, answers, response};

const ALIAS: &str = r#"
apiVersion: v1
kind: Service
metadata: {name: out, namespace: shop}
spec: {type: ExternalName, externalName: www.example.com}
"#;

const ADDRESS: [u8; 4] = [192, 0, 2, 1];

/// D12: the upstream's answer comes through, without the AA bit.
#[test]
fn foreign_names_are_answered_by_the_upstream() {
    let upstream = Upstream::start(|query, _| {
        let mut response = response(query, ResponseCode::NoError, &[ADDRESS]);
        response.metadata.authoritative = true;
        vec![response]
    });
    let dns = Dns::start("", &[&upstream.flag(), "--cache-size=0"]);
    for ask in [Dns::udp, Dns::tcp] {
        let reply = ask(&dns, "Www.Example.com.", RecordType::A);
        assert_eq!(answers(&reply), ["Www.Example.com. 300 IN A 192.0.2.1"]);
        assert!(reply.metadata.recursion_available && !reply.metadata.authoritative);
    }
}

/// D12: so does its denial, with the SOA that says how long to believe it.
#[test]
fn a_denial_comes_through_with_its_soa() {
    let upstream = Upstream::start(|query, _| {
        let mut response = response(query, ResponseCode::NXDomain, &[]);
        let zone = Name::from_ascii("com.").expect("a name");
        let soa = SOA::new(zone.clone(), zone.clone(), 1, 2, 3, 4, 900);
        response.add_authority(Record::from_rdata(zone, 900, RData::SOA(soa)));
        vec![response]
    });
    let dns = Dns::start("", &[&upstream.flag()]);
    let reply = dns.udp("nosuch.example.com.", RecordType::A);
    assert_eq!(reply.metadata.response_code, ResponseCode::NXDomain);
    assert_eq!(reply.authorities[0].name, Name::from_ascii("com.").expect("a name"));
}

/// D5: the alias first, then what the upstream says of its target; D15: reverse names that are not
/// ours fall through.
#[test]
fn aliases_and_reverse_names_go_on_upstream() {
    let upstream = Upstream::start(|query, _| match query.queries[0].query_type() {
        RecordType::A => vec![response(query, ResponseCode::NoError, &[ADDRESS])],
        _ => vec![response(query, ResponseCode::NXDomain, &[])],
    });
    let dns = Dns::start(ALIAS, &[&upstream.flag()]);
    let reply = dns.udp("out.shop.svc.cluster.local.", RecordType::A);
    let records: Vec<_> = reply.answers.iter().map(ToString::to_string).collect();
    let expected = [
        "out.shop.svc.cluster.local. 5 IN CNAME www.example.com.",
        "www.example.com. 300 IN A 192.0.2.1",
    ];
    assert_eq!(records, expected);
    let reverse = dns.udp("1.2.0.192.in-addr.arpa.", RecordType::PTR);
    assert_eq!(reverse.metadata.response_code, ResponseCode::NXDomain);
}

/// D12: an upstream that is away, and one that fails, leave it to the next.
#[test]
fn the_next_upstream_is_asked_when_one_fails() {
    let closed = std::net::UdpSocket::bind("127.0.0.1:0").expect("a free port");
    let away = format!("--upstream={}", closed.local_addr().expect("bound"));
    drop(closed);
    let failing = Upstream::start(|query, _| vec![response(query, ResponseCode::ServFail, &[])]);
    let good = Upstream::start(|query, _| vec![response(query, ResponseCode::NoError, &[ADDRESS])]);
    let dns = Dns::start("", &[&away, &failing.flag(), &good.flag(), "--cache-size=0"]);
    assert_eq!(dns.udp("example.com.", RecordType::A).answers.len(), 1);
    assert_eq!(dns.tcp("example.com.", RecordType::A).answers.len(), 1);

    // Nobody knows: the failure itself comes through.
    let dns = Dns::start("", &[&away, &failing.flag()]);
    let reply = dns.udp("example.com.", RecordType::A);
    assert_eq!(reply.metadata.response_code, ResponseCode::ServFail);
}

/// D13: an answer and a denial are asked for once, whatever the spelling; the client's own comes
/// back (D9).
#[test]
fn upstream_answers_are_kept() {
    let count = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&count);
    let upstream = Upstream::start(move |query, _| {
        counter.fetch_add(1, Ordering::Relaxed);
        vec![response(query, ResponseCode::NoError, &[ADDRESS])]
    });
    let dns = Dns::start(ALIAS, &[&upstream.flag()]);
    assert_eq!(dns.udp("www.example.com.", RecordType::A).answers.len(), 1);
    let spelled = dns.tcp("WWW.example.COM.", RecordType::A);
    assert!(
        spelled.answers[0].name.eq_case(&Name::from_ascii("WWW.example.COM.").expect("a name"))
    );
    // The end of an alias is the same question.
    assert_eq!(dns.udp("out.shop.svc.cluster.local.", RecordType::A).answers.len(), 2);
    assert_eq!(count.load(Ordering::Relaxed), 1);
}

/// D12: an upstream that says that it cannot is not asked the same again.
#[test]
fn a_failure_is_asked_for_once() {
    let count = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&count);
    let upstream = Upstream::start(move |query, _| {
        counter.fetch_add(1, Ordering::Relaxed);
        vec![response(query, ResponseCode::ServFail, &[])]
    });
    let dns = Dns::start("", &[&upstream.flag(), "--cache-size=0"]);
    let reply = dns.udp("example.com.", RecordType::A);
    assert_eq!(reply.metadata.response_code, ResponseCode::ServFail);
    assert_eq!(count.load(Ordering::Relaxed), 1);
}

/// D12: a lost datagram is sent again, even where there is one upstream only.
#[test]
fn a_lost_query_is_sent_again() {
    let count = Arc::new(AtomicUsize::new(0));
    let upstream = Upstream::start(move |query, _| match count.fetch_add(1, Ordering::Relaxed) {
        0 => vec![],
        _ => vec![response(query, ResponseCode::NoError, &[ADDRESS])],
    });
    let dns = Dns::start("", &[&upstream.flag()]);
    assert_eq!(dns.udp("example.com.", RecordType::A).answers.len(), 1);
}

/// D12: answers under another id or to another question are not believed (RFC 5452).
#[test]
fn forged_answers_are_passed_over() {
    let upstream = Upstream::start(|query, _| {
        let mut other_id = response(query, ResponseCode::NoError, &[[203, 0, 113, 1]]);
        other_id.metadata.id = query.metadata.id.wrapping_add(1);
        let mut other_name = response(query, ResponseCode::NoError, &[[203, 0, 113, 2]]);
        let name = Name::from_ascii("evil.example.").expect("a name");
        other_name.queries = vec![Query::query(name, RecordType::A)];
        let right = response(query, ResponseCode::NoError, &[ADDRESS]);
        vec![other_id, other_name, right]
    });
    let dns = Dns::start("", &[&upstream.flag()]);
    let reply = dns.udp("example.com.", RecordType::A);
    assert_eq!(answers(&reply), ["example.com. 300 IN A 192.0.2.1"]);
}

/// D12: an answer that was cut is asked for again by TCP; who came by TCP is served by TCP.
#[test]
fn cut_answers_are_fetched_by_tcp() {
    let upstream = Upstream::start(|query, via| match via {
        Via::Udp => {
            let mut cut = response(query, ResponseCode::NoError, &[]);
            cut.metadata.truncation = true;
            vec![cut]
        }
        Via::Tcp => {
            let all: Vec<_> = (0..100).map(|n| [192, 0, 2, n]).collect();
            vec![response(query, ResponseCode::NoError, &all)]
        }
    });
    let dns = Dns::start("", &[&upstream.flag(), "--cache-size=0"]);
    let whole = dns.tcp("example.com.", RecordType::A);
    assert_eq!((whole.metadata.truncation, whole.answers.len()), (false, 100));
    // What fits, for clients that never come by TCP.
    let cut = dns.udp("example.com.", RecordType::A);
    assert!(cut.metadata.truncation && cut.answers.len() > 20);
}

/// D12: records of types that this server does not know come through as they are.
#[test]
fn unknown_record_types_come_through() {
    use hickory_proto::rr::rdata::NULL;
    let kind = RecordType::Unknown(65280);
    let upstream = Upstream::start(move |query, _| {
        let mut response = response(query, ResponseCode::NoError, &[]);
        let rdata = NULL::with(vec![1, 2, 3, 4]);
        let name = query.queries[0].name().clone();
        response.add_answer(Record::from_rdata(name, 60, RData::Unknown { code: kind, rdata }));
        vec![response]
    });
    let dns = Dns::start("", &[&upstream.flag()]);
    let reply = dns.udp("example.com.", kind);
    let RData::Unknown { rdata, .. } = &reply.answers[0].data else { panic!("{reply:?}") };
    assert_eq!(rdata.anything, [1, 2, 3, 4]);
}
