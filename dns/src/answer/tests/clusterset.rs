//! The cluster set's domain, from manifests to answers.

use sluice_model::{ObjectKey, ObjectName, ResourceKind};
use sluice_store::{Cache, Event, parse_manifest};

use super::*;
use crate::feed;

/// What a source says that finds these manifests.
fn list(manifests: &str) -> Vec<Event> {
    let manifest = parse_manifest("clusterset.yaml", manifests);
    assert_eq!(manifest.rejected, []);
    let objects = manifest.objects.into_iter();
    let applied = objects.map(|(_, object)| Event::Apply(Box::new(object)));
    std::iter::once(Event::Init).chain(applied).chain([Event::InitDone]).collect()
}

fn world() -> (Cache, Snapshot) {
    let (mut cache, mut zone) = (Cache::new(), Snapshot::new());
    zone.set_serial(20);
    let changes = cache.ingest(list(include_str!("clusterset.yaml")));
    feed::update(&mut zone, &cache, &changes);
    zone.set_synced();
    (cache, zone)
}

/// An outcome in the words of `records.txt`.
fn words(outcome: &Outcome) -> String {
    let Outcome::Answer(answer) = outcome else { return render(outcome) };
    let [soa] = &answer.authorities[..] else { return render(outcome) };
    if soa.name != name("clusterset.local.") {
        return render(outcome);
    }
    assert!(answer.authoritative && answer.answers.is_empty());
    assert!(matches!(&soa.data, RData::SOA(soa) if soa.minimum == 5 && soa.serial == 20));
    let word = if answer.rcode == ResponseCode::NXDomain { "NXDOMAIN\n" } else { "NODATA\n" };
    word.to_owned()
}

/// D20: every kind of name and record below `clusterset.local`, as `clusterset.txt` lists them.
#[test]
fn imports_are_answered_as_the_table_says() {
    let (_, zone) = world();
    let blocks = blocks(include_str!("clusterset.txt"));
    assert!(blocks.len() > 35, "the table has only {} questions", blocks.len());
    let mut wrong = String::new();
    for (question, kind, expected) in blocks {
        let got = words(&ask(&zone, question, kind));
        if got != expected {
            let _ = write!(wrong, "? {question} {kind}\n{got}instead of\n{expected}\n");
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

/// D20: where nothing is imported, the domain is an upstream's business; until the source was read,
/// nobody's.
#[test]
fn without_an_import_the_domain_is_not_ours() {
    let question = "web.shop.svc.clusterset.local.";
    let mut zone = Snapshot::new();
    assert_eq!(render(&ask(&zone, question, RecordType::A)), "SERVFAIL\n");
    zone.declare_namespace("shop", true);
    zone.set_synced();
    assert_eq!(render(&ask(&zone, question, RecordType::A)), "FORWARD\n");
    assert_eq!(render(&ask(&zone, "1.0.42.10.in-addr.arpa.", RecordType::PTR)), "FORWARD\n");
}

/// D20: an import and its endpoints come, change and go, and the answers with them.
#[test]
fn answers_follow_the_imports() {
    let (mut cache, mut zone) = world();
    let mut step = |events: Vec<Event>| {
        let changes = cache.ingest(events);
        feed::update(&mut zone, &cache, &changes);
        zone.clone()
    };
    let delete = |kind, object: &str| {
        let name = ObjectName::new("shop", object);
        vec![Event::Delete(ObjectKey { kind, name })]
    };
    let db = "db.shop.svc.clusterset.local.";
    let zone = step(delete(ResourceKind::EndpointSlice, "db-east"));
    let left = format!("{db} 5 IN A 172.17.1.1\n");
    assert_eq!(words(&ask(&zone, db, RecordType::A)), left);
    let zone = step(delete(ResourceKind::EndpointSlice, "db-west"));
    assert_eq!(words(&ask(&zone, db, RecordType::A)), "NXDOMAIN\n");
    for name in ["db", "web", "four", "pending"] {
        step(delete(ResourceKind::ServiceImport, name));
    }
    let zone = step(Vec::new());
    assert_eq!(words(&ask(&zone, "web.shop.svc.clusterset.local.", RecordType::A)), "NXDOMAIN\n");
    let zone = step(delete(ResourceKind::ServiceImport, "starting"));
    assert_eq!(words(&ask(&zone, db, RecordType::A)), "FORWARD\n", "the last one is gone");
}

/// D20: a cluster whose own domain is called so has nothing else of that name.
#[test]
fn the_clusters_own_domain_wins() {
    let (_, zone) = world();
    let domain = Domain::new("clusterset.local", 5).expect("a domain");
    let question = name("own.shop.svc.clusterset.local.");
    let outcome = domain.answer(&zone, &question, RecordType::A, None);
    let expected = "own.shop.svc.clusterset.local. 5 IN A 10.0.0.1\n";
    assert_eq!(render(&outcome), expected);
}
