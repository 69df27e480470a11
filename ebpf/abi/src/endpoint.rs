//! The node's own pods, and the node itself.

use crate::{Addr, Be16, abi};

/// A pod of this node, by one of its addresses.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Endpoint {
    /// Index of the host-side veth in the node's network namespace.
    pub ifindex: u32,
    /// Number of the endpoint, stable for the pod's life.
    pub id: u32,
    /// Hardware address of the pod's interface.
    pub mac: [u8; 6],
    /// Hardware address of the host-side veth.
    pub host_mac: [u8; 6],
    /// [`Endpoint::NO_FAST_PATH`] and bits to come.
    pub flags: u32,
    /// Cookie of the pod's network namespace (`SO_NETNS_COOKIE`), by which its sockets are known; 0:
    /// not known.
    pub cookie: u64,
    /// The number that the node's network namespace has for the pod's (`IFLA_LINK_NETNSID` of the
    /// host-side veth), plus 1; 0: not known.
    pub netns: u32,
    /// Zero.
    pub reserved: u32,
}

impl Endpoint {
    /// What the pod sends and receives stays on the host's stack: something there is meant to see
    /// it, such as the queueing disciplines that shape the pod's bandwidth. Only a packet that the
    /// stack would refuse goes past it all the same: one whose source was made the node's address or
    /// a service's. To the pod it goes out of the host-side veth, through its queueing discipline.
    pub const NO_FAST_PATH: u32 = 1 << 0;
}

abi!(Endpoint, size 40, align 8, fields [0 => ifindex: u32, 4 => id: u32, 8 => mac: [u8; 6], 14 => host_mac: [u8; 6], 20 => flags: u32, 24 => cookie: u64, 32 => netns: u32, 36 => reserved: u32]);

/// What the programs know of their node.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct NodeState {
    /// Not 0 once a flow was translated packet by packet. While it is 0, packets that arrive at a
    /// pod are not looked up in the connection tracking map.
    pub ct_used: u32,
    /// [`NodeState::FAST_PATH`] and bits to come.
    pub flags: u32,
    /// Cookie of the node's own network namespace (`SO_NETNS_COOKIE`); 0: not known. Only processes
    /// in it reach services at loopback addresses: a pod's loopback is the pod's.
    pub netns: u64,
    /// Not 0 once a connection that a pod made straight to a backend got another port there, since
    /// a translated flow had its own. While it is 0, such connections are not looked up.
    pub ct_beside: u32,
    /// Zero.
    pub reserved: u32,
}

impl NodeState {
    /// Packets for pods of this node are handed to them, and those of its pods leave by uplinks,
    /// without crossing the host's stack.
    pub const FAST_PATH: u32 = 1 << 0;
}

abi!(NodeState, size 24, align 8, fields [0 => ct_used: u32, 4 => flags: u32, 8 => netns: u64, 16 => ct_beside: u32, 20 => reserved: u32]);

/// What the programs need to translate sources, read only where they do.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct NodeAddrs {
    /// The node's own IPv4 address, that clients get where theirs must not be seen; zero: none.
    pub v4: Addr,
    /// The same for IPv6.
    pub v6: Addr,
    /// First port of the range for sources, in the host's byte order.
    pub port_min: u16,
    /// Last port of the range, in the host's byte order.
    pub port_max: u16,
    /// [`NodeAddrs::MASQUERADE`] and others.
    pub flags: u32,
}

impl NodeAddrs {
    /// Pods that leave the cluster get the node's address.
    pub const MASQUERADE: u32 = 1 << 0;
    /// Clients outside get it also where the backend is on this node (`--masquerade-all`).
    pub const SNAT_ALWAYS: u32 = 1 << 1;
}

abi!(NodeAddrs, size 40, align 4, fields [0 => v4: Addr, 16 => v6: Addr, 32 => port_min: u16, 34 => port_max: u16, 36 => flags: u32]);

/// The way by which a flow of a pod left the node last, as the routing table said then.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct KnownWay {
    /// The flow's source address.
    pub src: Addr,
    /// The flow's destination address.
    pub dst: Addr,
    /// Source and destination port as they stand in the packet.
    pub ports: u32,
    /// IP protocol number, see [`crate::proto`].
    pub proto: u32,
    /// IPv4's type of service, IPv6's traffic class and flow label, as the lookup takes them.
    pub class: u32,
    /// Index of the interface that the flow comes in by.
    pub from: u32,
    /// Until when it is used, nanoseconds of the monotonic clock.
    pub until: u64,
    /// Index of the interface that it leaves by; 0: nothing is known.
    pub ifindex: u32,
    /// `AF_INET` or `AF_INET6`: of [`KnownWay::neighbour`].
    pub family: u32,
    /// The neighbour's address, network byte order.
    pub neighbour: [u32; 4],
    /// The largest packet that the way takes, IP header included.
    pub mtu: u32,
    /// What the program at the uplink is told of the flow's packets.
    pub notes: u32,
}

impl KnownWay {
    /// How long it is used, nanoseconds: a route, rule or neighbour that changes has its effect so
    /// much later at most.
    pub const KEPT_NS: u64 = 20_000_000;
    /// Elements of the map, a power of two.
    pub const ELEMENTS: u32 = 1024;
}

abi!(KnownWay, size 88, align 8, fields [0 => src: Addr, 16 => dst: Addr, 32 => ports: u32, 36 => proto: u32, 40 => class: u32, 44 => from: u32, 48 => until: u64, 56 => ifindex: u32, 60 => family: u32, 64 => neighbour: [u32; 4], 80 => mtu: u32, 84 => notes: u32]);

/// A port that the node serves for Services: no process may bind it.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct NodePortKey {
    /// The port.
    pub port: Be16,
    /// IP protocol number, see [`crate::proto`].
    pub proto: u8,
    /// Zero.
    pub reserved: u8,
}

abi!(NodePortKey, size 4, align 2, fields [0 => port: Be16, 2 => proto: u8, 3 => reserved: u8]);
