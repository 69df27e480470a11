//! The agent's loop: everything that happens to a node comes in here, one thing at a time.
//!
//! ```text
//! source ── Stream ─> Cache ─┬─> Reconciler ─> Planner ─> Dataplane   (services)
//!                            ├─> Policies ─> PolicyPlanner ─> Dataplane (network policies)
//!                            └─> routes, node.json                     (nodes)
//! /ready of the node's own DNS ──> NodeLocal ─> Reconciler             (services)
//! a backend that is gone ───────> Waker                            (sockets)
//! records and interfaces ────────> Endpoints ─> Dataplane              (pods)
//! control socket ────────────────> answers from a dump of the kernel
//! ```
//!
//! One thread: the work is a few system calls a change, and nothing has to be locked. Leaving the
//! loop, in whatever way, leaves programs, links and maps pinned in the kernel, where they go on.

mod attaching;
mod backoff;
mod cleanup;
mod due;
mod endpoints;
mod flows;
mod health;
mod host_ports;
mod leaks;
mod links;
mod lock;
mod node_file;
mod node_local;
mod pods;
mod policy;
mod policy_view;
mod problems;
mod reconcile;
mod records;
mod routes;
mod run;
mod service_routes;
mod settings;
mod status;
mod unlinks;
mod uplinks;
mod wake;

pub use cleanup::cleanup;
pub use endpoints::{Endpoints, Work};
pub use lock::{LockError, NodeLock};
pub use node_file::NodeFile;
pub use node_local::{Answers, NodeLocal};
pub use policy::{LocalPods, Policies};
pub(crate) use policy_view::identities;
pub use reconcile::Reconciler;
pub use records::{Record, RecordError};
pub use run::run;

/// Why the agent did not start, and what to do about it.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct StartError {
    /// What is wrong.
    pub message: String,
    /// The remedy.
    pub hint: String,
}

impl StartError {
    fn new(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { message: message.into(), hint: hint.into() }
    }
}
