//! What people and scripts read of the kernel's maps.
//!
//! Rows are made from a dump of the maps and from nothing else, whether the agent made the dump or
//! `proxyctl` read the pins: a table always says what the kernel does, not what someone meant it to
//! do.

mod affinity;
mod policy;
mod routes;
mod rows;
mod service_note;
mod status;
mod table;

pub use affinity::AffinityRow;
pub use policy::{DirectionView, IdentityRow, PodPolicies, PolicyRow, PolicyTrace, SideTrace};
pub use routes::{RouteHow, RouteRow};
pub use rows::{BackendRow, ConntrackRow, EndpointNote, EndpointRow, ServiceRow};
pub use service_note::service_note;
pub use status::{AgentStatus, CounterRow, MapUse, PartStatus, ProblemRow, SourceView, Status};
pub use table::{Row, render};
