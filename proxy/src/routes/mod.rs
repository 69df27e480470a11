//! Host-gw routes: how packets for a pod of another node leave this one; and routes to nowhere for
//! the ranges of service addresses ([`ServiceRoutes`]).
//!
//! For each pod CIDR of each other node there is one route through that node's `InternalIP` of the
//! same family, in the main table, under a route protocol number of our own. What should be there
//! is computed by [`desired`](mod@desired), compared with what the kernel holds by
//! [`diff`](mod@diff), both pure, and brought about by [`RouteManager`]. A route that is not ours
//! is never replaced or deleted: where one stands in the way, that is reported.

mod blackhole;
pub mod desired;
pub mod diff;
pub mod forwarding;
mod kernel;
mod manager;
pub(crate) mod watch;

pub use blackhole::{ServiceRouteReport, ServiceRoutes};
pub use desired::{Desired, HostGwRoute, SkipReason, Skipped, desired};
pub use diff::{Conflict, Diff, KernelRoute, RouteOp, diff};
pub use forwarding::{SysctlProblem, prepare_forwarding, strict_reverse_paths};
pub use kernel::RouteError;
pub use manager::{Failed, RouteManager, RouteReport};

/// `rtm_protocol` of every route of ours.
///
/// The numbers from 5 on belong to whoever takes them. 92 is none of those that
/// `include/uapi/linux/rtnetlink.h` names (8 to 18, 42, 84, 99, 186 to 189, 192), that FRRouting
/// uses (191 to 197), or Calico (80).
pub const ROUTE_PROTOCOL: u8 = 92;

/// `rtm_protocol` of the routes to nowhere for ranges of service addresses, free like the other.
pub const SERVICE_ROUTE_PROTOCOL: u8 = 93;
