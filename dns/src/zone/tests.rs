use std::collections::BTreeMap;

use proptest::prelude::*;
use sluice_model::ServiceKind;

use super::*;
use crate::fixture::{self, Entry, addr};

/// D4: the label of an endpoint without a hostname.
#[test]
fn addresses_become_labels_that_neither_begin_nor_end_with_a_dash() {
    for (address, label) in [
        ("172.0.0.2", "172-0-0-2"),
        ("5678:abcd::1", "5678-abcd--1"),
        ("1234::", "1234--0"),
        ("::1", "0--1"),
        ("::ffff:10.0.0.1", "0--ffff-10-0-0-1"),
    ] {
        assert_eq!(dashed(addr(address)), label);
    }
}

/// D4: a hostname that is no label is not used.
#[test]
fn a_hostname_that_is_no_label_gives_way_to_the_address() {
    let mut endpoint = fixture::endpoint("10.1.0.1", &[]);
    for (hostname, label) in
        [("Db-0", "db-0"), ("a.b", "10-1-0-1"), ("", "10-1-0-1"), (&"a".repeat(64), "10-1-0-1")]
    {
        endpoint.hostname = Some(hostname.to_owned());
        assert_eq!(label_of(&endpoint), label);
    }
}

#[test]
fn a_namespace_exists_while_it_is_declared_or_has_services() {
    let mut zone = Snapshot::new();
    let service = fixture::service("shop/web", &["10.0.0.1"], &[]);
    zone.set_service(&service, &[]);
    zone.set_service(&Service { cluster_ips: vec![addr("10.0.0.2")], ..service.clone() }, &[]);
    assert!(zone.has_namespace("shop"));
    zone.declare_namespace("shop", true);
    zone.remove_service(&service.meta.name);
    zone.remove_service(&service.meta.name);
    assert!(zone.has_namespace("shop"));
    zone.declare_namespace("shop", false);
    assert!(!zone.has_namespace("shop"));
    assert!(zone.is_empty());
}

/// D3: a cluster IP belongs to its Services alone, an endpoint address to all that have it.
#[test]
fn owners_follow_the_services() {
    let mut zone = Snapshot::new();
    let owners = |zone: &Snapshot, address: &str| -> Vec<String> {
        let text = |o: &Owner<'_>| format!("{}/{}", o.endpoint.unwrap_or("-"), o.service);
        zone.owners(&addr(address)).iter().map(text).collect()
    };
    let one = [fixture::endpoint("10.1.0.1=a", &[])];
    zone.set_service(&fixture::headless("shop/db", &[]), &one);
    zone.set_service(&fixture::headless("shop/read", &[]), &one);
    assert_eq!(owners(&zone, "10.1.0.1"), ["a/db.shop", "a/read.shop"]);
    // The kube-apiserver's address may be both an endpoint and a cluster IP of something else.
    zone.set_service(&fixture::service("shop/vip", &["10.1.0.1"], &[]), &[]);
    assert_eq!(owners(&zone, "10.1.0.1"), ["-/vip.shop"]);
    zone.remove_service(&ObjectName::new("shop", "vip"));
    zone.set_service(&fixture::headless("shop/db", &[]), &[]);
    assert_eq!(owners(&zone, "10.1.0.1"), ["a/read.shop"]);
    zone.remove_service(&ObjectName::new("shop", "read"));
    assert!(owners(&zone, "10.1.0.1").is_empty());
}

/// There is an entry for every endpoint of a cluster, so each should be small.
#[test]
fn an_owner_takes_little_room() {
    assert_eq!(size_of::<Owners>(), 16);
}

/// A Service of one of a few names, with addresses out of a few, so that changes collide.
fn entry() -> impl Strategy<Value = Entry> {
    let endpoints = proptest::collection::btree_map(0u8..6, (any::<bool>(), any::<bool>()), 0..5);
    (0u8..4, 0u8..4, 0u8..6, endpoints, any::<bool>()).prop_map(
        |(name, shape, ip, endpoints, eager)| {
            let (namespace, name) = (["shop", "lab"][usize::from(name % 2)], name / 2);
            let name = format!("{namespace}/s{name}");
            let ip = format!("10.0.0.{ip}");
            let mut service = match shape {
                0 => fixture::headless(&name, &["http:tcp:80"]),
                1 => fixture::external(&name, "example.com"),
                _ => fixture::service(&name, &[&ip], &["http:tcp:80"]),
            };
            service.publish_not_ready = eager;
            let endpoints = if matches!(service.kind, ServiceKind::ExternalName(_)) {
                Vec::new()
            } else {
                endpoints
                    .iter()
                    .map(|(n, (ready, named))| {
                        let hostname = if *named { "=host" } else { "" };
                        let mark = if *ready { "" } else { "!" };
                        let text = format!("10.0.0.{n}{hostname}{mark}");
                        fixture::endpoint(&text, &["http:tcp:8080"])
                    })
                    .collect()
            };
            (service, endpoints)
        },
    )
}

proptest! {
    /// What a series of changes leads to is what a fresh start would build, and snapshots taken on
    /// the way stay what they were.
    #[test]
    fn changes_lead_to_what_a_rebuild_gives(
        steps in proptest::collection::vec((entry(), any::<bool>()), 0..30),
    ) {
        let mut zone = fixture::zone(&[]);
        let mut wanted: BTreeMap<ObjectName, Entry> = BTreeMap::new();
        let mut taken = Vec::new();
        for ((service, endpoints), remove) in steps {
            let name = service.meta.name.clone();
            if remove {
                zone.remove_service(&name);
                wanted.remove(&name);
            } else {
                zone.set_service(&service, &endpoints);
                wanted.insert(name, (service, endpoints));
            }
            let entries: Vec<_> = wanted.values().cloned().collect();
            taken.push((zone.clone(), entries));
        }
        for (zone, entries) in taken {
            prop_assert_eq!(zone, fixture::zone(&entries));
        }
    }
}
