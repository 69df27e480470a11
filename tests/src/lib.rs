//! Fixtures for tests, the demo and the benches: nodes on one kernel.
//!
//! A node is a network namespace, a cgroup subtree, a directory on bpffs, a run directory and a state directory. The
//! real binaries run in it; a pod is a second namespace and a cgroup below the node's, wired by the real CNI plugin.
//! Everything is removed on drop, also when a test panics, and what a killed run left behind is swept by the next one
//! (see [`sweep`]).
//!
//! ```no_run
//! # fn main() -> anyhow::Result<()> {
//! use sluice_tests::cluster::Cluster;
//! let mut cluster = Cluster::new(2)?;
//! cluster.start_agents()?;
//! let web = cluster.node(0).add_pod("shop", "web-0")?;
//! let server = web.serve(8080)?;
//! let client = cluster.node(1).add_pod("shop", "client")?;
//! let load = client.load(&format!("{}:8080", web.ipv4()?), 10)?;
//! assert_eq!(load.backends["web-0"], 10);
//! # drop(server);
//! # Ok(())
//! # }
//! ```

pub mod app;
pub mod bind;
pub mod bins;
pub mod bpffs;
pub mod btf;
pub mod cgroup;
pub mod cluster;
pub mod cri;
pub mod demo;
pub mod dns;
pub mod frame;
pub mod interrupt;
pub mod kernel;
pub mod load;
pub mod manifests;
pub mod names;
pub mod netns;
pub mod node;
pub mod packet;
pub mod pair;
pub mod ping;
pub mod pod;
pub mod policy;
pub mod process;
pub mod resolvers;
pub mod root;
pub mod runtime;
pub mod shop;
pub mod stress;
pub mod sweep;
pub mod traffic;
pub mod wait;

pub use anyhow::Result;
pub use bins::bin;
pub use root::require_root;
pub use wait::{PATIENCE, wait_for};
