//! Values as octets: as few of them as will do, in a form that nobody but this process reads.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use sluice_model::{
    AddressType, Conditions, ContainerPort, EndpointSlice, IpFamily, LoadBalancerIngress, Meta,
    ObjectName, ObjectRef, Pod, PodPhase, Protocol, Service, ServiceKind, ServicePort,
    SliceEndpoint, SlicePort, TargetPort, TrafficPolicy,
};

/// A value that can be written and read again. What was written comes out as it was; octets that end
/// early read as if zeros followed.
pub(super) trait Code {
    /// Appends the value.
    fn put(&self, out: &mut Vec<u8>);
    /// Takes a value from the front.
    fn take(from: &mut &[u8]) -> Self;
}

/// So many octets from the front, or as many as there are.
fn octets<'a>(from: &mut &'a [u8], count: usize) -> &'a [u8] {
    let (taken, rest) = from.split_at(count.min(from.len()));
    *from = rest;
    taken
}

fn array<const N: usize>(from: &mut &[u8]) -> [u8; N] {
    let mut array = [0; N];
    let taken = octets(from, N);
    array[..taken.len()].copy_from_slice(taken);
    array
}

impl Code for u8 {
    fn put(&self, out: &mut Vec<u8>) {
        out.push(*self);
    }

    fn take(from: &mut &[u8]) -> Self {
        array::<1>(from)[0]
    }
}

impl Code for bool {
    fn put(&self, out: &mut Vec<u8>) {
        out.push((*self).into());
    }

    fn take(from: &mut &[u8]) -> Self {
        u8::take(from) != 0
    }
}

/// Seven bits an octet, the lowest first; the highest bit says that more follow.
impl Code for u64 {
    fn put(&self, out: &mut Vec<u8>) {
        let mut left = *self;
        while left >= 0x80 {
            // The low bits are what is wanted.
            out.push(left as u8 | 0x80);
            left >>= 7;
        }
        out.push(left as u8);
    }

    fn take(from: &mut &[u8]) -> Self {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let octet = u8::take(from);
            value |= u64::from(octet & 0x7f) << shift;
            if octet & 0x80 == 0 {
                break;
            }
        }
        value
    }
}

/// Integers that are mostly small; a cast there and back loses nothing.
macro_rules! integer {
    ($($type:ty),*) => {$(
        impl Code for $type {
            fn put(&self, out: &mut Vec<u8>) {
                (*self as u64).put(out);
            }

            fn take(from: &mut &[u8]) -> Self {
                u64::take(from) as $type
            }
        }
    )*};
}

integer!(u16, u32, i64, usize);

impl Code for String {
    fn put(&self, out: &mut Vec<u8>) {
        self.len().put(out);
        out.extend_from_slice(self.as_bytes());
    }

    fn take(from: &mut &[u8]) -> Self {
        let length = usize::take(from);
        String::from_utf8_lossy(octets(from, length)).into_owned()
    }
}

impl Code for IpAddr {
    fn put(&self, out: &mut Vec<u8>) {
        match self {
            Self::V4(addr) => {
                out.push(4);
                out.extend(addr.octets());
            }
            Self::V6(addr) => {
                out.push(6);
                out.extend(addr.octets());
            }
        }
    }

    fn take(from: &mut &[u8]) -> Self {
        match u8::take(from) {
            6 => Ipv6Addr::from(array::<16>(from)).into(),
            _ => Ipv4Addr::from(array::<4>(from)).into(),
        }
    }
}

impl Code for IpNet {
    fn put(&self, out: &mut Vec<u8>) {
        self.addr().put(out);
        self.prefix_len().put(out);
    }

    fn take(from: &mut &[u8]) -> Self {
        let addr = IpAddr::take(from);
        Self::new(addr, u8::take(from)).unwrap_or_else(|_| addr.into())
    }
}

impl Code for Conditions {
    fn put(&self, out: &mut Vec<u8>) {
        let Self { ready, serving, terminating } = *self;
        out.push(u8::from(ready) | u8::from(serving) << 1 | u8::from(terminating) << 2);
    }

    fn take(from: &mut &[u8]) -> Self {
        let bits = u8::take(from);
        Self { ready: bits & 1 != 0, serving: bits & 2 != 0, terminating: bits & 4 != 0 }
    }
}

impl<T: Code> Code for Option<T> {
    fn put(&self, out: &mut Vec<u8>) {
        self.is_some().put(out);
        if let Some(value) = self {
            value.put(out);
        }
    }

    fn take(from: &mut &[u8]) -> Self {
        bool::take(from).then(|| T::take(from))
    }
}

impl<A: Code, B: Code> Code for (A, B) {
    fn put(&self, out: &mut Vec<u8>) {
        self.0.put(out);
        self.1.put(out);
    }

    fn take(from: &mut &[u8]) -> Self {
        (A::take(from), B::take(from))
    }
}

fn take_all<T: Code, C: FromIterator<T>>(from: &mut &[u8]) -> C {
    let count = usize::take(from);
    (0..count).map(|_| T::take(from)).collect()
}

impl<T: Code> Code for Vec<T> {
    fn put(&self, out: &mut Vec<u8>) {
        self.len().put(out);
        self.iter().for_each(|value| value.put(out));
    }

    fn take(from: &mut &[u8]) -> Self {
        take_all(from)
    }
}

impl<T: Code + Ord> Code for BTreeSet<T> {
    fn put(&self, out: &mut Vec<u8>) {
        self.len().put(out);
        self.iter().for_each(|value| value.put(out));
    }

    fn take(from: &mut &[u8]) -> Self {
        take_all(from)
    }
}

impl<K: Code + Ord, V: Code> Code for BTreeMap<K, V> {
    fn put(&self, out: &mut Vec<u8>) {
        self.len().put(out);
        for (key, value) in self {
            key.put(out);
            value.put(out);
        }
    }

    fn take(from: &mut &[u8]) -> Self {
        take_all::<(K, V), _>(from)
    }
}

impl Code for ServiceKind {
    fn put(&self, out: &mut Vec<u8>) {
        match self {
            Self::ClusterIp => out.push(0),
            Self::NodePort => out.push(1),
            Self::LoadBalancer => out.push(2),
            Self::ExternalName(name) => {
                out.push(3);
                name.put(out);
            }
        }
    }

    fn take(from: &mut &[u8]) -> Self {
        match u8::take(from) {
            1 => Self::NodePort,
            2 => Self::LoadBalancer,
            3 => Self::ExternalName(Code::take(from)),
            _ => Self::ClusterIp,
        }
    }
}

impl Code for TargetPort {
    fn put(&self, out: &mut Vec<u8>) {
        match self {
            Self::Number(number) => {
                out.push(0);
                number.put(out);
            }
            Self::Name(name) => {
                out.push(1);
                name.put(out);
            }
        }
    }

    fn take(from: &mut &[u8]) -> Self {
        match u8::take(from) {
            1 => Self::Name(Code::take(from)),
            _ => Self::Number(Code::take(from)),
        }
    }
}

/// Enums of words only, by their number.
macro_rules! words {
    ($($type:ident { $first:ident $(, $word:ident)* })*) => {$(
        impl Code for $type {
            fn put(&self, out: &mut Vec<u8>) {
                out.push(match self {
                    Self::$first => Self::$first as u8,
                    $(Self::$word => Self::$word as u8,)*
                });
            }

            fn take(from: &mut &[u8]) -> Self {
                let number = u8::take(from);
                $(if number == Self::$word as u8 {
                    return Self::$word;
                })*
                Self::$first
            }
        }
    )*};
}

words! {
    AddressType { V4, V6, Fqdn }
    IpFamily { V4, V6 }
    PodPhase { Pending, Running, Succeeded, Failed, Unknown }
    Protocol { Tcp, Udp, Sctp }
    TrafficPolicy { Cluster, Local }
}

/// Structs, field by field. One that is left out here does not compile.
macro_rules! fields {
    ($($type:ident { $($field:ident),* $(,)? })*) => {$(
        impl Code for $type {
            fn put(&self, out: &mut Vec<u8>) {
                let Self { $($field),* } = self;
                $($field.put(out);)*
            }

            fn take(from: &mut &[u8]) -> Self {
                $(let $field = Code::take(from);)*
                Self { $($field),* }
            }
        }
    )*};
}

// An object begins with its metadata, and that with its name.
fields! {
    ObjectName { namespace, name }
    Meta { name, uid, created, labels, annotations, deleting }
    ObjectRef { kind, name }
    SlicePort { name, protocol, port }
    SliceEndpoint { addresses, conditions, hostname, node, zone, target, for_zones, for_nodes }
    EndpointSlice { meta, service, import, cluster, address_type, endpoints, ports }
    ServicePort { name, protocol, port, target, node_port, app_protocol }
    LoadBalancerIngress { addr, proxy }
    Service {
        meta, kind, headless, cluster_ips, ip_families, ports, selector, external_ips, ingress,
        source_ranges, bad_source_ranges, affinity_secs, external_policy, internal_policy,
        publish_not_ready, health_check_node_port, traffic_distribution,
    }
    ContainerPort { name, protocol, port }
    Pod { meta, node, hostname, subdomain, host_network, phase, ready, addrs, ports }
}
