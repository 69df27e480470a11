//! The cache after any sequence of events is what a cache built from the final objects is, and says
//! of every Service that changed that it did.

use std::collections::{BTreeMap, BTreeSet};

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use sluice_model::{
    AddressType, Conditions, ContainerPort, Endpoint, EndpointSlice, Meta, Namespace, Node, Object,
    ObjectKey, ObjectName, Pod, PodPhase, Protocol, Service, ServiceKind, ServicePort,
    SliceEndpoint, SlicePort, TargetPort,
};

use crate::coalesce::coalesce;
use crate::{Cache, Event, Rejected};

#[derive(Clone, Debug)]
enum Step {
    Apply(Object),
    Delete(Object),
    Reject(Object),
    /// A list that breaks off, and then a whole one; the flag says which objects are rejected.
    Relist(Vec<Object>, Vec<(Object, bool)>),
}

fn name() -> impl Strategy<Value = ObjectName> {
    (prop::sample::select(vec!["a", "b"]), prop::sample::select(vec!["x", "y", "z"]))
        .prop_map(|(namespace, name)| ObjectName::new(namespace, name))
}

fn labels() -> impl Strategy<Value = BTreeMap<String, String>> {
    prop::collection::btree_map(
        prop::sample::select(vec!["app".to_owned(), "tier".to_owned()]),
        prop::sample::select(vec!["1".to_owned(), "2".to_owned()]),
        1..=2,
    )
}

fn meta(name: ObjectName) -> Meta {
    Meta { name, ..Meta::default() }
}

fn service() -> impl Strategy<Value = Object> {
    (name(), option::of(labels()), prop::bool::weighted(0.1), any::<bool>()).prop_map(
        |(name, selector, external, publish_not_ready)| {
            let kind = if external {
                ServiceKind::ExternalName("example.com".to_owned())
            } else {
                ServiceKind::ClusterIp
            };
            let ports = vec![ServicePort {
                name: "p".to_owned(),
                protocol: Protocol::Tcp,
                port: 80,
                target: TargetPort::Name("p".to_owned()),
                node_port: None,
                app_protocol: None,
            }];
            let meta = meta(name);
            Object::Service(Service {
                meta,
                kind,
                selector,
                publish_not_ready,
                ports,
                ..Service::default()
            })
        },
    )
}

fn slice() -> impl Strategy<Value = Object> {
    let endpoint =
        (1..4u8, any::<[bool; 3]>()).prop_map(|(i, [ready, serving, terminating])| SliceEndpoint {
            addresses: vec![[10, 0, 0, i].into()],
            conditions: Conditions { ready, serving, terminating },
            ..SliceEndpoint::default()
        });
    let port = (prop::sample::select(vec!["p", "q"]), 1..3u16).prop_map(|(name, port)| SlicePort {
        name: name.to_owned(),
        protocol: Protocol::Tcp,
        port: Some(port),
    });
    (name(), option::of(name()), vec(endpoint, 0..3), vec(port, 0..3), prop::bool::weighted(0.1))
        .prop_map(|(name, service, endpoints, ports, fqdn)| {
            let service =
                service.map(|service| ObjectName::new(name.namespace.clone(), service.name));
            let address_type = if fqdn { AddressType::Fqdn } else { AddressType::V4 };
            let meta = meta(name);
            Object::EndpointSlice(EndpointSlice {
                meta,
                service,
                import: None,
                cluster: None,
                address_type,
                endpoints,
                ports,
            })
        })
}

fn pod() -> impl Strategy<Value = Object> {
    let phase = prop::sample::select(vec![PodPhase::Running, PodPhase::Failed]);
    let node = prop::sample::select(vec!["n1".to_owned(), "n2".to_owned()]);
    (name(), labels(), vec(1..4u8, 0..2), phase, any::<[bool; 2]>(), option::of(node), 1..3u16)
        .prop_map(|(name, labels, addrs, phase, [ready, deleting], node, port)| {
            Object::Pod(Pod {
                meta: Meta { labels, deleting, ..meta(name) },
                node,
                phase,
                ready,
                addrs: addrs.into_iter().map(|i| [10, 0, 1, i].into()).collect(),
                ports: vec![ContainerPort { name: "p".to_owned(), protocol: Protocol::Tcp, port }],
                ..Pod::default()
            })
        })
}

fn node() -> impl Strategy<Value = Object> {
    let zone = prop::sample::select(vec!["z1".to_owned(), "z2".to_owned()]);
    (prop::sample::select(vec!["n1", "n2"]), option::of(zone)).prop_map(|(name, zone)| {
        let labels = zone.map(|zone| ("topology.kubernetes.io/zone".to_owned(), zone));
        let meta = Meta { labels: labels.into_iter().collect(), ..meta(ObjectName::new("", name)) };
        Object::Node(Node { meta, ..Node::default() })
    })
}

fn object() -> impl Strategy<Value = Object> {
    let namespace = prop::sample::select(vec!["a", "b"])
        .prop_map(|name| Object::Namespace(Namespace { meta: meta(ObjectName::new("", name)) }));
    prop_oneof![3 => service(), 3 => slice(), 4 => pod(), 1 => node(), 1 => namespace]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => object().prop_map(Step::Apply),
        3 => object().prop_map(Step::Delete),
        1 => object().prop_map(Step::Reject),
        1 => (vec(object(), 0..3), vec((object(), prop::bool::weighted(0.1)), 0..12))
            .prop_map(|(broken, list)| Step::Relist(broken, list)),
    ]
}

fn apply(object: &Object) -> Event {
    Event::Apply(Box::new(object.clone()))
}

fn reject(object: &Object) -> Event {
    let key = object.key();
    let (field, reason) = (String::new(), "bad".to_owned());
    Event::Reject(Rejected { origin: key.to_string(), key: Some(key), field, reason })
}

/// The events of a step, done to the plain map of objects as well.
fn events(step: &Step, objects: &mut BTreeMap<ObjectKey, Object>) -> Vec<Event> {
    match step {
        Step::Apply(object) => {
            objects.insert(object.key(), object.clone());
            vec![apply(object)]
        }
        Step::Delete(object) => {
            objects.remove(&object.key());
            vec![Event::Delete(object.key())]
        }
        Step::Reject(object) => vec![reject(object)],
        Step::Relist(broken, list) => {
            let mut new = BTreeMap::new();
            let mut events = vec![Event::Init];
            events.extend(broken.iter().map(apply));
            events.push(Event::Init);
            for (object, rejected) in list {
                let key = object.key();
                if !rejected {
                    events.push(apply(object));
                    new.insert(key, object.clone());
                } else {
                    events.push(reject(object));
                    if let (false, Some(old)) = (new.contains_key(&key), objects.get(&key)) {
                        new.insert(key, old.clone());
                    }
                }
            }
            events.push(Event::InitDone);
            *objects = new;
            events
        }
    }
}

type View = BTreeMap<ObjectName, (Service, Vec<Endpoint>)>;

fn view(cache: &Cache) -> View {
    let services = cache.services().map(|service| {
        let name = service.meta.name.clone();
        (name.clone(), (service.clone(), cache.endpoints(&name)))
    });
    services.collect()
}

fn assert_same(cache: &Cache, objects: &BTreeMap<ObjectKey, Object>) {
    let mut rebuilt = Cache::new();
    rebuilt.ingest(objects.values().map(apply));
    assert_eq!(view(cache), view(&rebuilt));
    assert!(cache.pods().eq(rebuilt.pods()));
    assert!(cache.nodes().eq(rebuilt.nodes()));
    assert!(cache.namespaces().eq(rebuilt.namespaces()));
}

proptest! {
    #[test]
    fn incremental_is_rebuilt(steps in vec(step(), 1..40)) {
        let mut cache = Cache::new();
        let mut objects = BTreeMap::new();
        for step in &steps {
            let before = view(&cache);
            let changes = cache.ingest(events(step, &mut objects));
            assert_same(&cache, &objects);
            let after = view(&cache);
            let changed: BTreeSet<_> = before
                .keys()
                .chain(after.keys())
                .filter(|name| before.get(*name) != after.get(*name))
                .collect();
            for name in changed {
                prop_assert!(changes.services.contains(name), "{name} is not told of");
            }
        }
    }

    #[test]
    fn coalescing_changes_nothing(steps in vec(step(), 1..40)) {
        let mut objects = BTreeMap::new();
        let all: Vec<Event> =
            steps.iter().flat_map(|step| events(step, &mut objects)).collect();
        let mut cache = Cache::new();
        cache.ingest(coalesce(all));
        assert_same(&cache, &objects);
    }

    #[test]
    fn the_same_list_again_changes_nothing(list in vec(object(), 0..20)) {
        let events: Vec<Event> = std::iter::once(Event::Init)
            .chain(list.iter().map(apply))
            .chain(std::iter::once(Event::InitDone))
            .collect();
        let mut cache = Cache::new();
        cache.ingest(events.clone());
        let mut changes = cache.ingest(events);
        changes.synced = false;
        prop_assert!(changes.is_empty(), "{changes:?}");
    }
}
