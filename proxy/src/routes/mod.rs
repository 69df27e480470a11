//! How packets for a pod of another node leave this one; and routes to nowhere for the ranges of
//! service addresses ([`ServiceRoutes`]).
//!
//! For each pod CIDR of each other node there is one route in the main table, under a route protocol
//! number of our own: through that node's `InternalIP` of the same family (host-gw), or through a
//! vxlan device where that is asked for ([`Encapsulation`]). What should be there is computed by
//! [`desired`](mod@desired), split by [`settle`](mod@settle) once the kernel has said which next hops
//! are on a shared link, compared with what the kernel holds by [`diff`](mod@diff), all pure, and
//! brought about by [`RouteManager`]. A route that is not ours is never replaced or deleted: where
//! one stands in the way, that is reported.
//!
//! What pods of this node send to a node behind the tunnel goes through it too, by routes in a table
//! of their own ([`NODE_TABLE`]) that a rule sends packets with pods' addresses to. So the answers to
//! what comes out of the tunnel take the way back through it, and no router on the way sees a pod's
//! address.

mod blackhole;
pub mod desired;
pub mod diff;
pub mod encapsulation;
pub mod forwarding;
mod kernel;
mod manager;
pub mod settle;
mod vxlan;
pub(crate) mod watch;

pub use blackhole::{ServiceRouteReport, ServiceRoutes};
pub use desired::{
    Desired, Encapsulated, PodRoute, SkipReason, Skipped, Tunnel, TunnelHop, desired,
};
pub use diff::{Conflict, Diff, KernelRoute, RouteOp, diff};
pub use encapsulation::{Encapsulation, VxlanConfig};
pub use forwarding::{SysctlProblem, prepare_forwarding, strict_reverse_paths};
pub use kernel::RouteError;
pub use manager::{Failed, RouteManager, RouteReport, TunnelState};
pub use settle::{Settled, Way, settle};

/// `rtm_protocol` of every route of ours.
///
/// The numbers from 5 on belong to whoever takes them. 92 is none of those that
/// `include/uapi/linux/rtnetlink.h` names (8 to 18, 42, 84, 99, 186 to 189, 192), that FRRouting
/// uses (191 to 197), or Calico (80).
pub const ROUTE_PROTOCOL: u8 = 92;

/// `rtm_protocol` of the routes to nowhere for ranges of service addresses, free like the other.
pub const SERVICE_ROUTE_PROTOCOL: u8 = 93;

/// Name of the vxlan device.
pub const TUNNEL_DEVICE: &str = "sluice-vxlan";

/// The routing table of other nodes' addresses, for packets of this node's pods.
pub const NODE_TABLE: u8 = 92;

/// Priority of the rules that name [`NODE_TABLE`]: before the main table's (32766), behind those that
/// others (Cilium, Calico, Tailscale) put before 10000.
pub const NODE_RULE_PRIORITY: u32 = 29_092;
