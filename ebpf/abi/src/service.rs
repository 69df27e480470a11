//! Frontends, their lists of backends, and the backends.

use crate::{Addr, Be16, abi};

/// Who may use a frontend.
///
/// The numbers are part of [`FrontendKey`]; a traffic policy that differs inside and outside the
/// cluster gives one address two frontends.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum Scope {
    /// Pods and processes of this node.
    Internal = 0,
    /// What arrives from outside the node.
    External = 1,
}

/// Where a service is reached: address, port, protocol and scope.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct FrontendKey {
    /// The service address.
    pub addr: Addr,
    /// The service port.
    pub port: Be16,
    /// IP protocol number, see [`crate::proto`].
    pub proto: u8,
    /// A [`Scope`] as its number.
    pub scope: u8,
}

abi!(FrontendKey, size 20, align 4, fields [0 => addr: Addr, 16 => port: Be16, 18 => proto: u8, 19 => scope: u8]);

/// Bits of [`Frontend::flags`].
pub struct FrontendFlags;

impl FrontendFlags {
    /// A ClusterIP.
    pub const CLUSTER_IP: u32 = 1 << 0;
    /// A node port.
    pub const NODE_PORT: u32 = 1 << 1;
    /// An external IP.
    pub const EXTERNAL_IP: u32 = 1 << 2;
    /// A load balancer's ingress address.
    pub const LOAD_BALANCER: u32 = 1 << 3;
    /// Of a frontend of scope [`Scope::Internal`]: clients outside have one of their own at the same
    /// address, of scope [`Scope::External`]. Without this bit the one serves both.
    pub const EXTERNAL_DIFFERS: u32 = 1 << 4;
    /// `externalTrafficPolicy: Local`: the list has backends of this node alone, and clients keep
    /// their address. Where it is empty, packets are dropped, not rejected: the load balancer is to
    /// look elsewhere.
    pub const LOCAL_ONLY: u32 = 1 << 5;
    /// Only clients in [`SOURCE_RANGES`](crate::maps::SOURCE_RANGES) may come.
    pub const SOURCE_RANGES: u32 = 1 << 6;
    /// Stands for every port and protocol of a ClusterIP that has no frontend of its own: its key
    /// has port 0 and protocol 0, its count is 0.
    pub const ANY_PORT: u32 = 1 << 7;
    /// A port of the node that a pod asked for (`hostPort`).
    pub const HOST_PORT: u32 = 1 << 8;
}

/// Bits of [`Backend::flags`].
pub struct BackendFlags;

impl BackendFlags {
    /// The endpoint is on this node, so that its answers come by here whatever address they are to:
    /// clients outside need no SNAT.
    pub const LOCAL: u8 = 1 << 0;
}

/// What a frontend leads to. One write of this value switches a service from one list of backends
/// to another, count and all.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Frontend {
    /// The service port's number, stable for its life; key of the names map.
    pub service: u32,
    /// Number of the backend list; a list is never changed once a frontend names it.
    pub list: u32,
    /// How many backends the list has. Zero: connections are rejected.
    pub count: u32,
    /// Bits of [`FrontendFlags`].
    pub flags: u32,
    /// Seconds that a client keeps its backend; 0: no affinity.
    pub affinity_secs: u32,
}

abi!(Frontend, size 20, align 4, fields [0 => service: u32, 4 => list: u32, 8 => count: u32, 12 => flags: u32, 16 => affinity_secs: u32]);

/// Backends in one element of the slots map: together one cache line, so that a list costs one
/// lookup and large services a sixteenth of the elements.
pub const SLOTS_PER_CHUNK: u32 = 16;

/// One chunk of a backend list.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct SlotKey {
    /// [`Frontend::list`].
    pub list: u32,
    /// Index of the slot divided by [`SLOTS_PER_CHUNK`].
    pub chunk: u32,
}

abi!(SlotKey, size 8, align 4, fields [0 => list: u32, 4 => chunk: u32]);

/// Backend numbers of one chunk; those beyond the list's count are 0.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Slots {
    /// Keys of the backends map.
    pub backend: [u32; SLOTS_PER_CHUNK as usize],
}

abi!(Slots, size 64, align 4, fields [0 => backend: [u32; 16]]);

/// One backend: an endpoint's address and port. Its number is never 0.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Backend {
    /// The endpoint's address.
    pub addr: Addr,
    /// The target port.
    pub port: Be16,
    /// IP protocol number, see [`crate::proto`].
    pub proto: u8,
    /// Bits of [`BackendFlags`].
    pub flags: u8,
}

abi!(Backend, size 20, align 4, fields [0 => addr: Addr, 16 => port: Be16, 18 => proto: u8, 19 => flags: u8]);

/// The name of a service port, for people who look at the maps without an agent. Names are ASCII,
/// padded with zero bytes; Kubernetes allows 63 bytes for each part.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ServiceName {
    /// `metadata.namespace`.
    pub namespace: [u8; 64],
    /// `metadata.name`.
    pub name: [u8; 64],
    /// `spec.ports[].name`, empty where the only port has none.
    pub port: [u8; 64],
}

abi!(ServiceName, size 192, align 1, fields [0 => namespace: [u8; 64], 64 => name: [u8; 64], 128 => port: [u8; 64]]);

impl ServiceName {
    /// From its parts; what is longer than 64 bytes is cut.
    pub fn new(namespace: &str, name: &str, port: &str) -> Self {
        fn pad(text: &str) -> [u8; 64] {
            let mut out = [0; 64];
            let n = text.len().min(64);
            out[..n].copy_from_slice(&text.as_bytes()[..n]);
            out
        }
        Self { namespace: pad(namespace), name: pad(name), port: pad(port) }
    }

    /// Namespace, name and port name; a part that is not UTF-8 reads as empty.
    pub fn parts(&self) -> (&str, &str, &str) {
        fn text(bytes: &[u8; 64]) -> &str {
            let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
            core::str::from_utf8(&bytes[..end]).unwrap_or_default()
        }
        (text(&self.namespace), text(&self.name), text(&self.port))
    }
}

impl core::fmt::Debug for ServiceName {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let (namespace, name, port) = self.parts();
        write!(f, "{namespace}/{name}:{port}")
    }
}
