//! Objects in a form that takes little room: they are kept only to be told apart from what they are
//! replaced with.

use std::collections::BTreeMap;
use std::net::IpAddr;

use sluice_model::{
    AddressType, Conditions, EndpointSlice, Meta, Object, ObjectKey, ObjectName, ResourceKind,
    SliceEndpoint, SlicePort,
};

/// An object. Two are equal where the objects are.
#[derive(Clone, PartialEq, Debug)]
pub(super) enum Packed {
    /// EndpointSlices are most of what a cluster has.
    Slice(Box<Slice>),
    /// Any other.
    Other(Box<Object>),
}

/// An EndpointSlice, whole.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Slice {
    /// Without labels and annotations.
    meta: Meta,
    labels: Texts,
    annotations: Texts,
    service: Option<ObjectName>,
    /// The ServiceImport and the cluster; few slices have them.
    import: Option<Box<(Option<ObjectName>, Option<String>)>>,
    address_type: AddressType,
    endpoints: Box<[Endpoint]>,
    ports: Box<[SlicePort]>,
}

type Texts = Box<[(Box<str>, Box<str>)]>;

#[derive(Clone, PartialEq, Debug)]
enum Endpoint {
    /// One that has an address and conditions, and nothing else.
    Plain(IpAddr, Conditions),
    Full(Box<SliceEndpoint>),
}

impl Packed {
    /// Packs an object.
    pub(super) fn new(object: Object) -> Self {
        match object {
            Object::EndpointSlice(slice) => Self::Slice(Box::new(Slice::new(slice))),
            other => Self::Other(Box::new(other)),
        }
    }

    /// The object as it was.
    pub(super) fn unpack(&self) -> Object {
        match self {
            Self::Slice(slice) => Object::EndpointSlice(slice.unpack()),
            Self::Other(object) => (**object).clone(),
        }
    }

    /// The object's key.
    pub(super) fn key(&self) -> ObjectKey {
        match self {
            Self::Slice(slice) => {
                ObjectKey { kind: ResourceKind::EndpointSlice, name: slice.meta.name.clone() }
            }
            Self::Other(object) => object.key(),
        }
    }
}

impl Slice {
    fn new(slice: EndpointSlice) -> Self {
        let EndpointSlice { mut meta, service, import, cluster, address_type, endpoints, ports } =
            slice;
        let foreign = import.is_some() || cluster.is_some();
        let import = foreign.then(|| Box::new((import, cluster)));
        let labels = texts(std::mem::take(&mut meta.labels));
        let annotations = texts(std::mem::take(&mut meta.annotations));
        let endpoints = endpoints.into_iter().map(Endpoint::new).collect();
        let ports = ports.into_boxed_slice();
        Self { meta, labels, annotations, service, import, address_type, endpoints, ports }
    }

    fn unpack(&self) -> EndpointSlice {
        let (import, cluster) = self.import.as_deref().cloned().unwrap_or_default();
        EndpointSlice {
            meta: Meta {
                labels: map(&self.labels),
                annotations: map(&self.annotations),
                ..self.meta.clone()
            },
            service: self.service.clone(),
            import,
            cluster,
            address_type: self.address_type,
            endpoints: self.endpoints.iter().map(Endpoint::unpack).collect(),
            ports: self.ports.to_vec(),
        }
    }
}

impl Endpoint {
    fn new(endpoint: SliceEndpoint) -> Self {
        if let [addr] = endpoint.addresses[..] {
            let plain = Self::Plain(addr, endpoint.conditions);
            if plain.unpack() == endpoint {
                return plain;
            }
        }
        Self::Full(Box::new(endpoint))
    }

    fn unpack(&self) -> SliceEndpoint {
        match self {
            Self::Plain(addr, conditions) => SliceEndpoint {
                addresses: vec![*addr],
                conditions: *conditions,
                ..SliceEndpoint::default()
            },
            Self::Full(endpoint) => (**endpoint).clone(),
        }
    }
}

fn texts(map: BTreeMap<String, String>) -> Texts {
    map.into_iter().map(|(key, value)| (key.into(), value.into())).collect()
}

fn map(texts: &Texts) -> BTreeMap<String, String> {
    texts.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// O7: what is packed comes out as it was, whatever it has.
    #[test]
    fn a_packed_object_is_the_same_object() {
        let addr: IpAddr = "10.1.0.1".parse().expect("an address");
        let plain = SliceEndpoint { addresses: vec![addr], ..SliceEndpoint::default() };
        let unready = Conditions { ready: false, ..Conditions::default() };
        let endpoints = vec![
            plain.clone(),
            SliceEndpoint { conditions: unready, ..plain.clone() },
            SliceEndpoint { hostname: Some("db-0".to_owned()), ..plain.clone() },
            SliceEndpoint { node: Some("n1".to_owned()), ..plain.clone() },
            SliceEndpoint { for_zones: vec!["z".to_owned()], ..plain.clone() },
            SliceEndpoint { addresses: vec![addr, addr], ..plain.clone() },
            SliceEndpoint { addresses: vec![], ..plain },
        ];
        let texts = |key: &str| BTreeMap::from([(key.to_owned(), "value".to_owned())]);
        let name = ObjectName::new("shop", "web-1");
        let slice = EndpointSlice {
            meta: Meta {
                name,
                uid: "1".to_owned(),
                created: 7,
                labels: texts("label"),
                annotations: texts("annotation"),
                deleting: true,
            },
            service: Some(ObjectName::new("shop", "web")),
            import: Some(ObjectName::new("shop", "web")),
            cluster: Some("east".to_owned()),
            address_type: AddressType::V4,
            endpoints,
            ports: vec![SlicePort { port: Some(80), ..SlicePort::default() }],
        };
        let object = Object::EndpointSlice(slice);
        let packed = Packed::new(object.clone());
        assert_eq!((packed.key(), packed.unpack()), (object.key(), object));
        let small = std::mem::size_of::<Endpoint>();
        assert!(small <= 24, "{small} octets an endpoint");
    }
}
