//! Objects in a form that takes little room: they are kept only to be told apart from what they are
//! replaced with, and to be handed out again where a file cannot be read any more.

mod code;

use sluice_model::{Object, ObjectKey, ObjectName, ResourceKind};

use code::Code;

/// An object. Two are equal where the objects are.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Packed(Form);

#[derive(Clone, PartialEq, Debug)]
enum Form {
    /// Of a kind that a cluster has many of.
    Octets(Kind, Box<[u8]>),
    /// Any other.
    Whole(Box<Object>),
}

#[derive(Clone, Copy, PartialEq, Debug)]
enum Kind {
    Service,
    Slice,
    Pod,
}

impl Packed {
    /// Packs an object.
    pub(super) fn new(object: Object) -> Self {
        let mut out = Vec::new();
        let kind = match &object {
            Object::Service(service) => {
                service.put(&mut out);
                Kind::Service
            }
            Object::EndpointSlice(slice) => {
                slice.put(&mut out);
                Kind::Slice
            }
            Object::Pod(pod) => {
                pod.put(&mut out);
                Kind::Pod
            }
            _ => return Self(Form::Whole(Box::new(object))),
        };
        Self(Form::Octets(kind, out.into()))
    }

    /// The object as it was.
    pub(super) fn unpack(&self) -> Object {
        match &self.0 {
            Form::Octets(kind, octets) => {
                let mut from = &**octets;
                match kind {
                    Kind::Service => Object::Service(Code::take(&mut from)),
                    Kind::Slice => Object::EndpointSlice(Code::take(&mut from)),
                    Kind::Pod => Object::Pod(Code::take(&mut from)),
                }
            }
            Form::Whole(object) => (**object).clone(),
        }
    }

    /// The object's key.
    pub(super) fn key(&self) -> ObjectKey {
        match &self.0 {
            Form::Octets(kind, octets) => {
                let kind = match kind {
                    Kind::Service => ResourceKind::Service,
                    Kind::Slice => ResourceKind::EndpointSlice,
                    Kind::Pod => ResourceKind::Pod,
                };
                // What an object begins with.
                ObjectKey { kind, name: ObjectName::take(&mut &**octets) }
            }
            Form::Whole(object) => object.key(),
        }
    }
}

#[cfg(test)]
mod tests {
    use sluice_model::{
        ContainerPort, EndpointSlice, LoadBalancerIngress, Meta, ObjectRef, Pod, PodPhase,
        Protocol, Service, ServiceKind, ServicePort, SliceEndpoint, SlicePort, TargetPort,
        TrafficPolicy,
    };

    use super::*;

    fn comes_out_as_it_was(object: &Object) {
        let packed = Packed::new(object.clone());
        assert_eq!((packed.key(), &packed.unpack()), (object.key(), object));
    }

    fn meta() -> Meta {
        let texts = |key: &str| [(key.to_owned(), "välue".to_owned())].into();
        Meta {
            name: ObjectName::new("shop", "web-1"),
            uid: "1".to_owned(),
            created: -7,
            labels: texts("label"),
            annotations: texts("annotation"),
            deleting: true,
        }
    }

    /// O7: what is packed comes out as it was, with every field that there is.
    #[test]
    fn no_field_is_lost() {
        let addr = |text: &str| text.parse().expect("an address");
        let text = |text: &str| Some(text.to_owned());
        comes_out_as_it_was(&Object::EndpointSlice(EndpointSlice {
            meta: meta(),
            service: Some(ObjectName::new("shop", "web")),
            import: Some(ObjectName::new("shop", "other")),
            cluster: text("east"),
            address_type: sluice_model::AddressType::V6,
            endpoints: vec![
                SliceEndpoint::default(),
                SliceEndpoint {
                    addresses: vec![addr("10.1.0.1"), addr("fd00::1")],
                    conditions: sluice_model::Conditions {
                        ready: false,
                        serving: false,
                        terminating: true,
                    },
                    hostname: text("db-0"),
                    node: text("n1"),
                    zone: text("z1"),
                    target: Some(ObjectRef {
                        kind: "Pod".to_owned(),
                        name: ObjectName::new("shop", "web-0"),
                    }),
                    for_zones: vec!["z1".to_owned(), "z2".to_owned()],
                    for_nodes: vec!["n1".to_owned()],
                },
            ],
            ports: vec![SlicePort {
                name: "http".to_owned(),
                protocol: Protocol::Sctp,
                port: Some(65_535),
            }],
        }));
        let service = Service {
            meta: meta(),
            kind: ServiceKind::LoadBalancer,
            headless: true,
            cluster_ips: vec![addr("10.96.0.1"), addr("fd00::1")],
            ip_families: vec![sluice_model::IpFamily::V6, sluice_model::IpFamily::V4],
            ports: vec![ServicePort {
                name: "http".to_owned(),
                protocol: Protocol::Udp,
                port: 80,
                target: TargetPort::Name("web".to_owned()),
                node_port: Some(30_000),
                app_protocol: text("h2c"),
            }],
            selector: Some([("app".to_owned(), "web".to_owned())].into()),
            external_ips: [addr("192.0.2.1")].into(),
            ingress: vec![LoadBalancerIngress { addr: addr("192.0.2.2"), proxy: true }],
            source_ranges: vec![
                "192.0.2.7/24".parse().expect("a range"),
                "::/0".parse().expect("a range"),
            ],
            bad_source_ranges: vec![(3, "nonsense".to_owned())],
            affinity_secs: Some(10_800),
            external_policy: TrafficPolicy::Local,
            internal_policy: TrafficPolicy::Local,
            publish_not_ready: true,
            health_check_node_port: Some(30_001),
            traffic_distribution: text("PreferClose"),
        };
        let kind = ServiceKind::ExternalName("www.example".to_owned());
        comes_out_as_it_was(&Object::Service(Service { kind, ..service.clone() }));
        comes_out_as_it_was(&Object::Service(service));
        comes_out_as_it_was(&Object::Pod(Pod {
            meta: meta(),
            node: text("n1"),
            hostname: text("web-0"),
            subdomain: text("web"),
            host_network: true,
            phase: PodPhase::Unknown,
            ready: true,
            addrs: vec![addr("10.1.0.1")],
            ports: vec![ContainerPort {
                name: "http".to_owned(),
                protocol: Protocol::Tcp,
                port: 8080,
            }],
        }));
    }

    /// An endpoint that has no more than its address takes some octets, and not hundreds.
    #[test]
    fn a_packed_object_takes_little_room() {
        let endpoint = |n: u8| SliceEndpoint {
            addresses: vec![[10, 1, 0, n].into()],
            ..SliceEndpoint::default()
        };
        let endpoints = (0..100).map(endpoint).collect();
        let slice = EndpointSlice { meta: meta(), endpoints, ..EndpointSlice::default() };
        let Form::Octets(_, octets) = Packed::new(Object::EndpointSlice(slice)).0 else {
            panic!("it is packed");
        };
        assert!(octets.len() < 1500, "{} octets", octets.len());
    }
}
