//! Keys and values of the kernel maps, shared by the eBPF programs and by userspace.
//!
//! Everything here is `#[repr(C)]`, has no padding and no invalid bit pattern, and keeps addresses
//! and ports in network byte order, so that the programs compare what they find in a packet without
//! swapping a byte. IPv4 addresses are IPv4-mapped IPv6 addresses ([RFC 4291] §2.5.5.2): one key
//! serves both families.
//!
//! A change to the shape or the meaning of anything in this crate raises [`ABI_VERSION`]: maps are
//! pinned in a directory that carries the number, so an agent never reads maps of another shape.
//!
//! [RFC 4291]: https://www.rfc-editor.org/rfc/rfc4291
#![no_std]

mod addr;
mod affinity;
mod counters;
mod ct;
mod endpoint;
mod filter;
mod fragment;
mod policy;
mod prefix;
mod service;
mod sock;

pub use addr::{Addr, Be16};
pub use affinity::{Affinity, AffinityKey};
pub use counters::Counter;
pub use ct::{CtEntry, CtFlags, CtKey};
pub use endpoint::{Endpoint, NodeAddrs, NodePortKey, NodeState};
pub use filter::{VIP_FILTER_BITS, VIP_FILTER_WORDS, vip_filter_bit};
pub use fragment::{FragmentKey, FragmentPorts};
pub use policy::{
    Direction, DropEvent, DropReason, POLICY_FILTER_WORDS, PolicyDrops, PolicyFlow, PolicyFlowKey,
    PolicyKey, PolicyRule, PolicySets, PolicyState,
};
pub use prefix::{CidrKey, SourceRange, SourceRangeKey};
pub use service::{
    Backend, BackendFlags, Frontend, FrontendFlags, FrontendKey, SLOTS_PER_CHUNK, Scope,
    ServiceName, SlotKey, Slots,
};
pub use sock::{PORTS_PER_ELEMENT, PeerFlags, PeerKey, PortMarks, SockPeer};

/// Version of every shape in this crate, part of the pin directory's name.
pub const ABI_VERSION: u32 = 4;

/// IP protocol numbers that the programs know ([IANA]).
///
/// [IANA]: https://www.iana.org/assignments/protocol-numbers
pub mod proto {
    /// Internet Control Message Protocol.
    pub const ICMP: u8 = 1;
    /// Transmission Control Protocol.
    pub const TCP: u8 = 6;
    /// User Datagram Protocol.
    pub const UDP: u8 = 17;
    /// Internet Control Message Protocol for IPv6.
    pub const ICMPV6: u8 = 58;
    /// Stream Control Transmission Protocol.
    pub const SCTP: u8 = 132;
}

/// Names of the maps, as the object file and the pin directory spell them (at most 15 bytes, which
/// is what the kernel keeps).
pub mod maps {
    /// Hash: [`FrontendKey`](crate::FrontendKey) to [`Frontend`](crate::Frontend).
    pub const FRONTENDS: &str = "FRONTENDS";
    /// Hash: [`SlotKey`](crate::SlotKey) to [`Slots`](crate::Slots).
    pub const SLOTS: &str = "SLOTS";
    /// Hash: backend number (`u32`) to [`Backend`](crate::Backend).
    pub const BACKENDS: &str = "BACKENDS";
    /// Hash: service number (`u32`) to [`ServiceName`](crate::ServiceName); read by people only.
    pub const SERVICE_NAMES: &str = "SERVICE_NAMES";
    /// Array of `u64`: the bitmap that [`vip_filter_bit`](crate::vip_filter_bit) indexes.
    pub const VIP_FILTER: &str = "VIP_FILTER";
    /// LRU hash: [`CtKey`](crate::CtKey) to [`CtEntry`](crate::CtEntry).
    pub const CONNTRACK: &str = "CONNTRACK";
    /// Hash: socket cookie (`u64`) to [`SockPeer`](crate::SockPeer), stream sockets connected to a
    /// service.
    ///
    /// Not socket storage: that costs a connection four times as much (Linux 6.18).
    pub const SOCK_PEERS: &str = "SOCK_PEERS";
    /// The same for datagram sockets that are connected to a service. They are few, and looked
    /// through whenever a backend goes, so they are not among the streams.
    pub const UDP_SOCKS: &str = "UDP_SOCKS";
    /// Array of 1,024 times 64 bytes, a byte a port: not 0 once a socket was connected to a backend
    /// with that port. Spares all other sockets the lookup of its cookie. The programs write it.
    pub const BACKEND_PORTS: &str = "BACKEND_PORTS";
    /// LRU hash: [`PeerKey`](crate::PeerKey) to [`SockPeer`](crate::SockPeer) for unconnected
    /// datagram sockets.
    pub const UDP_PEERS: &str = "UDP_PEERS";
    /// Hash: pod address ([`Addr`](crate::Addr)) to [`Endpoint`](crate::Endpoint), pods of this
    /// node only.
    pub const ENDPOINTS: &str = "ENDPOINTS";
    /// Array with one element: [`NodeState`](crate::NodeState).
    pub const NODE_STATE: &str = "NODE_STATE";
    /// LRU hash: [`AffinityKey`](crate::AffinityKey) to [`Affinity`](crate::Affinity). The programs
    /// write it.
    pub const AFFINITY: &str = "AFFINITY";
    /// Longest-prefix trie: [`SourceRangeKey`](crate::SourceRangeKey) to `u32` (1).
    pub const SOURCE_RANGES: &str = "SOURCE_RANGES";
    /// LRU hash: [`FragmentKey`](crate::FragmentKey) to [`FragmentPorts`](crate::FragmentPorts). The
    /// programs write it.
    pub const FRAGMENTS: &str = "FRAGMENTS";
    /// Hash: [`NodePortKey`](crate::NodePortKey) to the number of the service port (`u32`).
    pub const NODE_PORTS: &str = "NODE_PORTS";
    /// Array with one element: [`NodeAddrs`](crate::NodeAddrs).
    pub const NODE_ADDRS: &str = "NODE_ADDRS";
    /// Longest-prefix trie: [`CidrKey`](crate::CidrKey) to `u32` (1).
    pub const NON_MASQUERADE: &str = "NON_MASQUERADE";
    /// Hash: index (`u32`) of an interface that has the programs of an uplink, to `u32` (1).
    pub const UPLINKS: &str = "UPLINKS";
    /// Per-CPU array with one element: until when the ICMP errors that were sent are paid for, in
    /// nanoseconds of the monotonic clock (`u64`). The programs write it.
    pub const ICMP_BUDGET: &str = "ICMP_BUDGET";
    /// Per-CPU array of `u64`, indexed by [`Counter`](crate::Counter).
    pub const COUNTERS: &str = "COUNTERS";

    /// Longest-prefix trie: [`CidrKey`](crate::CidrKey) to the identity (`u32`) that the addresses in
    /// the range have for policies.
    pub const IDENTITIES: &str = "IDENTITIES";
    /// Longest-prefix trie: [`PolicyKey`](crate::PolicyKey) to `u32` (1).
    pub const POLICY: &str = "POLICY";
    /// Hash: index (`u32`) of the host-side interface of a pod of this node to
    /// [`PolicySets`](crate::PolicySets).
    pub const POLICY_SETS: &str = "POLICY_SETS";
    /// Array with one element: [`PolicyState`](crate::PolicyState).
    pub const POLICY_STATE: &str = "POLICY_STATE";
    /// LRU hash: [`PolicyFlowKey`](crate::PolicyFlowKey) to [`PolicyFlow`](crate::PolicyFlow), flows of
    /// isolated pods only. The programs write it.
    pub const POLICY_FLOWS: &str = "POLICY_FLOWS";
    /// Hash: index (`u32`) of a pod's host-side interface to [`PolicyDrops`](crate::PolicyDrops). The
    /// programs write it.
    pub const POLICY_DROPS: &str = "POLICY_DROPS";
    /// Ring buffer of [`DropEvent`](crate::DropEvent). The programs write it.
    pub const DROP_EVENTS: &str = "DROP_EVENTS";

    /// Every map, in no particular order.
    pub const ALL: [&str; 28] = [
        FRONTENDS,
        SLOTS,
        BACKENDS,
        SERVICE_NAMES,
        VIP_FILTER,
        CONNTRACK,
        SOCK_PEERS,
        UDP_SOCKS,
        BACKEND_PORTS,
        UDP_PEERS,
        ENDPOINTS,
        NODE_STATE,
        AFFINITY,
        SOURCE_RANGES,
        FRAGMENTS,
        NODE_PORTS,
        NODE_ADDRS,
        NON_MASQUERADE,
        UPLINKS,
        ICMP_BUDGET,
        COUNTERS,
        IDENTITIES,
        POLICY,
        POLICY_SETS,
        POLICY_STATE,
        POLICY_FLOWS,
        POLICY_DROPS,
        DROP_EVENTS,
    ];
}

/// Names of the programs, as the object file spells them.
pub mod programs {
    /// `cgroup/connect4`.
    pub const CONNECT4: &str = "sluice_connect4";
    /// `cgroup/connect6`.
    pub const CONNECT6: &str = "sluice_connect6";
    /// `cgroup/sendmsg4`.
    pub const SENDMSG4: &str = "sluice_sendmsg4";
    /// `cgroup/sendmsg6`.
    pub const SENDMSG6: &str = "sluice_sendmsg6";
    /// `cgroup/recvmsg4`.
    pub const RECVMSG4: &str = "sluice_recvmsg4";
    /// `cgroup/recvmsg6`.
    pub const RECVMSG6: &str = "sluice_recvmsg6";
    /// `cgroup/getpeername4`.
    pub const GETPEERNAME4: &str = "sluice_getpeername4";
    /// `cgroup/getpeername6`.
    pub const GETPEERNAME6: &str = "sluice_getpeername6";
    /// `cgroup/sock_release`.
    pub const RELEASE: &str = "sluice_release";
    /// tc ingress of a pod's host-side veth: what the pod sends.
    pub const POD_SEND: &str = "sluice_pod_send";
    /// tc egress of a pod's host-side veth: what the pod receives.
    pub const POD_RECV: &str = "sluice_pod_recv";

    /// `cgroup/post_bind4`.
    pub const POST_BIND4: &str = "sluice_post_bind4";
    /// `cgroup/post_bind6`.
    pub const POST_BIND6: &str = "sluice_post_bind6";
    /// tc ingress of an uplink: what comes from outside the node.
    pub const UPLINK_IN: &str = "sluice_uplink_in";
    /// tc egress of an uplink: what leaves the node.
    pub const UPLINK_OUT: &str = "sluice_uplink_out";

    /// The cgroup programs.
    pub const CGROUP: [&str; 11] = [
        CONNECT4,
        CONNECT6,
        SENDMSG4,
        SENDMSG6,
        RECVMSG4,
        RECVMSG6,
        GETPEERNAME4,
        GETPEERNAME6,
        RELEASE,
        POST_BIND4,
        POST_BIND6,
    ];
    /// The tc programs.
    pub const TC: [&str; 4] = [POD_SEND, POD_RECV, UPLINK_IN, UPLINK_OUT];
}

/// Asserts at compile time that a type has the size and alignment given and (by adding up the sizes
/// of its fields) no padding, and implements `aya::Pod` for userspace.
macro_rules! abi {
    ($ty:ty, size $size:literal, align $align:literal, fields [$($off:literal => $field:tt: $fty:ty),* $(,)?]) => {
        const _: () = {
            assert!(core::mem::size_of::<$ty>() == $size);
            assert!(core::mem::align_of::<$ty>() == $align);
            assert!(0 $(+ core::mem::size_of::<$fty>())* == $size, "padding");
            $(assert!(core::mem::offset_of!($ty, $field) == $off);)*
        };
        // SAFETY: repr(C), no padding (asserted above), every bit pattern valid, Copy and 'static.
        #[cfg(feature = "user")]
        unsafe impl aya::Pod for $ty {}
    };
}
pub(crate) use abi;
