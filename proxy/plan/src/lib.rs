//! From Services and their endpoints to the entries of the kernel's maps, and from the difference
//! between what the kernel holds and what it should hold to operations.
//!
//! Pure: no I/O, no clock, no threads. [`Planner`] takes the desired state of one Service at a time
//! and answers with a [`Plan`]; whoever applies it gets from one sound state to the next without a
//! connection ever meeting anything in between:
//!
//! - A frontend names its backend list by number, and a list is never changed once a frontend names
//!   it. New backends make a new list, and one atomic write of the frontend switches to it.
//! - What is referred to is written before what refers to it, and deleted after it.
//! - Numbers of service ports, backends and lists live as long as what they stand for, survive a
//!   restart ([`Planner::restore`]) and are not used again soon.
//!
//! ```text
//! FRONTENDS {addr, port, proto, scope} -> {service, list, count, ...}
//!               SERVICE_NAMES service -> {namespace, name, port}
//!     SOURCE_RANGES {service, client} -> 1
//!                 SLOTS {list, chunk} -> [backend; 16]
//!                    BACKENDS backend -> {addr, port, proto}
//!            NODE_PORTS {port, proto} -> service
//! ```
//!
//! Every address that reaches a Service has a frontend: ClusterIPs, external IPs, ingress addresses of
//! load balancers, and NodePorts on the node's own addresses, which the [`NodeContext`] tells. One
//! frontend of scope `Internal` serves clients inside and outside alike, but under
//! `externalTrafficPolicy: Local`, where clients outside have one of scope `External` with the
//! endpoints of this node, as kube-proxy does it. It is written before the other says that it is
//! there, and deleted after.
//!
//! One more frontend for each ClusterIP stands for all its other ports, so that they are refused. No
//! Service owns it: it is there while any Service has the address.
//!
//! [`trace`] tells from [`Tables`] alone what a connection would meet.
//!
//! Network policies have a planner and tables of their own: [`PolicyPlanner`], [`PolicyTables`].

mod admissions;
mod backends;
mod claims;
mod dump;
mod endpoints;
mod filter;
mod frontends;
mod host_ports;
mod ids;
mod lists;
mod mirror;
mod node;
mod node_local;
mod ops;
mod planner;
mod policy;
mod ranges;
mod refs;
mod restore;
mod services;
mod setback;
mod stage;
mod trace;
mod warning;

pub use frontends::is_foreign;
pub use host_ports::{HostPort, PodPorts};
pub use node::NodeContext;
pub use ops::{MapOp, Tables};
pub use planner::{Plan, Planner};
pub use policy::{
    ClusterRule, Explanation, Judgement, LocalPod, Party, PolicyOp, PolicyPlanner, PolicyTables,
};
pub use setback::Setback;
pub use trace::{Breakage, Client, Destination, DropReason, Here, Place, Source, Verdict, trace};
pub use warning::{Problem, Warning};
