mod clusterset;

use std::collections::BTreeMap;
use std::fmt::Write as _;

use proptest::prelude::*;

use super::*;
use crate::fixture;

const LOCAL: &str = "10.0.0.53";

fn domain() -> Domain {
    Domain::new("cluster.local", 5).expect("a domain")
}

fn name(text: &str) -> Name {
    Name::from_ascii(text).expect("a name")
}

fn ask(zone: &Snapshot, question: &str, kind: RecordType) -> Outcome {
    domain().answer(zone, &name(question), kind, Some(fixture::addr(LOCAL)))
}

/// An outcome in the words of `records.txt`.
fn render(outcome: &Outcome) -> String {
    let mut text = String::new();
    let mut line = |line: &dyn std::fmt::Display| writeln!(text, "{line}").expect("a string");
    match outcome {
        Outcome::Forward => line(&"FORWARD"),
        Outcome::Chase { aliases, target } => {
            aliases.iter().for_each(|record| line(record));
            line(&format!("CHASE {target}"));
        }
        Outcome::Answer(answer) => {
            answer.answers.iter().for_each(|record| line(record));
            answer.additionals.iter().for_each(|record| line(&format!("+ {record}")));
            match (answer.rcode, &answer.authorities[..]) {
                (ResponseCode::NoError, []) => {}
                (ResponseCode::NoError, [soa]) if is_negative_soa(soa) => line(&"NODATA"),
                (ResponseCode::NXDomain, [soa]) if is_negative_soa(soa) => line(&"NXDOMAIN"),
                (ResponseCode::Refused, []) => line(&"REFUSED"),
                (ResponseCode::ServFail, []) => line(&"SERVFAIL"),
                other => line(&format!("{other:?}")),
            }
            let ours = !matches!(answer.rcode, ResponseCode::Refused | ResponseCode::ServFail);
            assert_eq!(answer.authoritative, ours);
        }
    }
    text
}

/// The zone's SOA, its minimum the TTL.
fn is_negative_soa(record: &Record) -> bool {
    record.name == name("cluster.local.")
        && record.ttl == 5
        && matches!(&record.data, RData::SOA(soa) if soa.minimum == 5)
}

/// The blocks of `records.txt`: questions with the lines below them.
fn table() -> Vec<(&'static str, RecordType, String)> {
    blocks(include_str!("records.txt"))
}

/// The blocks of such a table.
fn blocks(text: &'static str) -> Vec<(&'static str, RecordType, String)> {
    let lines = text.lines().map(str::trim_end);
    let mut blocks: Vec<(_, _, String)> = Vec::new();
    for line in lines.filter(|line| !line.is_empty() && !line.starts_with(';')) {
        if let Some(question) = line.strip_prefix("? ") {
            let (name, kind) = question.split_once(' ').expect("a name and a type");
            blocks.push((name, kind.parse().expect("a type"), String::new()));
        } else {
            let (_, _, expected) = blocks.last_mut().expect("a question before its answer");
            expected.push_str(line);
            expected.push('\n');
        }
    }
    blocks
}

/// D1, D2, D3, D4, D5, D6, D8: every kind of name and record, as `records.txt` lists them.
#[test]
fn records_are_those_of_the_table() {
    let zone = fixture::zone(&fixture::cluster());
    let blocks = table();
    assert!(blocks.len() > 80, "the table has only {} questions", blocks.len());
    let mut wrong = String::new();
    for (question, kind, expected) in blocks {
        let got = render(&ask(&zone, question, kind));
        if got != expected {
            let _ = write!(wrong, "? {question} {kind}\n{got}instead of\n{expected}\n");
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

/// D10: a name that is not known yet may exist: SERVFAIL, never NXDOMAIN.
#[test]
fn unknown_names_fail_until_the_source_is_synced() {
    let zone = Snapshot::new();
    for question in ["web.shop.svc.cluster.local.", "shop.svc.cluster.local.", "x.cluster.local."] {
        assert_eq!(render(&ask(&zone, question, RecordType::A)), "SERVFAIL\n", "{question}");
    }
    assert_eq!(render(&ask(&zone, "1.0.0.10.in-addr.arpa.", RecordType::PTR)), "SERVFAIL\n");
    // What does not depend on the source is answered.
    assert_eq!(render(&ask(&zone, "svc.cluster.local.", RecordType::A)), "NODATA\n");
    assert_eq!(render(&ask(&zone, "example.com.", RecordType::A)), "FORWARD\n");
}

/// D5: a Service that changes from ExternalName to ClusterIP answers so at once.
#[test]
fn an_alias_that_becomes_a_cluster_ip_answers_with_it() {
    let mut zone = fixture::zone(&fixture::cluster());
    zone.set_service(&fixture::external("shop/out", "other.example"), &[]);
    let question = "out.shop.svc.cluster.local.";
    let alias = "out.shop.svc.cluster.local. 5 IN CNAME other.example.\nCHASE other.example.\n";
    assert_eq!(render(&ask(&zone, question, RecordType::A)), alias);
    zone.set_service(&fixture::service("shop/out", &["10.0.0.7"], &["http:tcp:80"]), &[]);
    let address = "out.shop.svc.cluster.local. 5 IN A 10.0.0.7\n";
    assert_eq!(render(&ask(&zone, question, RecordType::A)), address);
}

/// D3: an address that is ours but was asked for another type has no such data; the SOA speaks of
/// this one name.
#[test]
fn an_owned_address_has_nothing_but_ptr() {
    let zone = fixture::zone(&fixture::cluster());
    let question = "1.0.0.10.in-addr.arpa.";
    let Outcome::Answer(answer) = ask(&zone, question, RecordType::A) else { panic!("ours") };
    assert_eq!((answer.rcode, answer.answers.len()), (ResponseCode::NoError, 0));
    assert_eq!(answer.authorities.len(), 1);
    assert_eq!(answer.authorities[0].name, name(question));
}

/// D9: the TTL, and with it the SOA's minimum, is what was asked for.
#[test]
fn the_ttl_is_that_of_the_flag() {
    let domain = Domain::new("k8s.example.org.", 30).expect("a domain");
    let zone = fixture::zone(&fixture::cluster());
    let answer = |question: &str| match domain.answer(&zone, &name(question), RecordType::A, None) {
        Outcome::Answer(answer) => answer,
        other => panic!("{other:?}"),
    };
    assert_eq!(answer("web.shop.svc.k8s.example.org.").answers[0].ttl, 30);
    let negative = answer("nosuch.shop.svc.k8s.example.org.");
    let RData::SOA(soa) = &negative.authorities[0].data else { panic!("no SOA") };
    assert_eq!((negative.authorities[0].ttl, soa.minimum), (30, 30));
    assert_eq!(negative.authorities[0].name, name("k8s.example.org."));
}

/// D4: a shared label and many ports make N times M records, and no weight is zero.
#[test]
fn srv_weights_never_reach_zero() {
    let ports = ["a:tcp:1", "b:tcp:2"];
    let endpoints: Vec<_> = (0..150u32)
        .map(|n| fixture::endpoint(&format!("10.1.{}.{}", n / 250, n % 250 + 1), &ports))
        .collect();
    let zone = fixture::zone(&[(fixture::headless("shop/big", &ports), endpoints)]);
    let Outcome::Answer(answer) = ask(&zone, "big.shop.svc.cluster.local.", RecordType::SRV) else {
        panic!("ours")
    };
    assert_eq!((answer.answers.len(), answer.additionals.len()), (300, 150));
    for record in &answer.answers {
        let RData::SRV(srv) = &record.data else { panic!("{record}") };
        assert_eq!((srv.priority, srv.weight), (0, 1));
    }
}

/// D8: zone transfers are refused, of other zones as well.
#[test]
fn transfers_are_refused() {
    let zone = fixture::zone(&fixture::cluster());
    for kind in [RecordType::AXFR, RecordType::IXFR] {
        for question in ["cluster.local.", "web.shop.svc.cluster.local.", "example.com."] {
            assert_eq!(render(&ask(&zone, question, kind)), "REFUSED\n", "{question} {kind}");
        }
    }
}

#[test]
fn a_domain_must_be_a_name_below_the_root() {
    let long = format!("{}.local", ["a"; 120].join("."));
    for wrong in [".", "", "a..b", &long] {
        assert!(Domain::new(wrong, 5).is_err(), "{wrong}");
    }
}

fn spelling() -> impl Strategy<Value = Vec<bool>> {
    proptest::collection::vec(any::<bool>(), 1..40)
}

proptest! {
    /// D9: names are found in any spelling, and the owner has the question's own.
    #[test]
    fn the_spelling_of_a_name_changes_nothing_but_the_owner(upper in spelling(), pick in 0usize..1000) {
        let zone = fixture::zone(&fixture::cluster());
        let blocks = table();
        let (question, kind, _) = &blocks[pick % blocks.len()];
        let spelled: String = question
            .chars()
            .zip(upper.iter().cycle())
            .map(|(c, upper)| if *upper { c.to_ascii_uppercase() } else { c })
            .collect();
        let (plain, mixed) = (ask(&zone, question, *kind), ask(&zone, &spelled, *kind));
        prop_assert_eq!(render(&plain).to_lowercase(), render(&mixed).to_lowercase());
        if let Outcome::Answer(answer) = mixed
            && let Some(first) = answer.answers.first()
        {
            prop_assert!(first.name.eq_case(&name(&spelled)));
        }
    }

    /// D8: no name below the domain panics, is forwarded, or is denied without the SOA.
    #[test]
    fn every_name_below_the_domain_is_answered(
        labels in proptest::collection::vec("[ -~]{1,12}|svc|pod|shop|web|db|_tcp|_http|dns", 0..8),
        kind in 0u16..300,
    ) {
        let zone = fixture::zone(&fixture::cluster());
        let below = Name::from_labels(labels.iter().map(String::as_bytes)).expect("labels");
        let question = below.append_domain(&name("cluster.local.")).expect("short enough");
        let outcome = domain().answer(&zone, &question, RecordType::from(kind), None);
        match outcome {
            Outcome::Forward => prop_assert!(false, "forwarded"),
            Outcome::Chase { aliases, .. } => prop_assert!(!aliases.is_empty()),
            Outcome::Answer(answer) => {
                let denied = answer.rcode == ResponseCode::NXDomain;
                prop_assert!(!denied || answer.authorities.len() == 1);
            }
        }
    }
}

/// D3: every name that a PTR record gives leads back to the address.
#[test]
fn reverse_names_lead_back() {
    let entries = fixture::cluster();
    let zone = fixture::zone(&entries);
    let mut checked = BTreeMap::new();
    for (service, endpoints) in &entries {
        let published =
            endpoints.iter().filter(|e| e.conditions.ready || service.publish_not_ready);
        for addr in service.cluster_ips.iter().copied().chain(published.map(|e| e.addr)) {
            let reverse = Name::from(addr);
            let outcome = domain().answer(&zone, &reverse, RecordType::PTR, None);
            let Outcome::Answer(answer) = outcome else { panic!("{addr} is not ours") };
            for record in &answer.answers {
                let RData::PTR(target) = &record.data else { panic!("{record}") };
                let kind = address(addr).record_type();
                let Outcome::Answer(back) = domain().answer(&zone, &target.0, kind, None) else {
                    panic!("{} is not ours", target.0)
                };
                assert!(back.answers.iter().any(|r| r.data == address(addr)), "{record}");
                checked.insert((addr, target.0.to_string()), ());
            }
        }
    }
    assert!(checked.len() >= 12, "{checked:?}");
}
