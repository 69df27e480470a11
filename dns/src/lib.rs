//! The cluster's DNS server.
//!
//! ```text
//! source -> store::Cache -> zone::Snapshot -> answer (pure) -> resolver -> server (UDP, TCP)
//!                                                                 |
//!                                                              forward -> upstreams
//! ```
//!
//! Every step between the source and the socket is pure but for the upstreams: [`answer`] makes
//! the sections of a response from an immutable [`zone::Snapshot`], [`wire`] turns datagrams into
//! questions and answers into datagrams.

pub mod answer;
pub mod cli;
pub mod config;
pub mod corefile;
pub mod explain;
pub mod fast;
pub mod feed;
#[cfg(test)]
mod fixture;
pub mod forward;
#[cfg(test)]
mod fuzz;
pub mod local;
pub mod metrics;
pub mod probes;
pub mod resolver;
pub mod server;
mod shards;
pub mod tls;
pub mod wire;
pub mod zone;
