//! The demo: a small application on a two-node cluster on this machine, shown and checked.
//!
//! | module | concern |
//! | --- | --- |
//! | [`app`] | Deployments and StatefulSets to pods, as the cluster's controllers would do |
//! | [`publish`] | objects into the source: a directory or a real etcd |
//! | [`kubelet`] | pods to processes: CNI, probes, status, termination |
//! | [`stage`] | the cluster with all of that in it |
//! | [`story`] | what is shown, step by step, and checked |
//! | [`screen`] | how it looks |
//! | [`guard`] | what stays behind when everything else was killed: nothing |

pub mod app;
pub mod guard;
pub mod kubelet;
pub mod publish;
pub mod screen;
pub mod stage;
pub mod story;

/// Prefix of everything the demo makes outside its own process.
pub const PREFIX: &str = "sluice-demo";

/// The application, and the cluster's DNS.
pub const MANIFESTS: [(&str, &str); 2] =
    [("dns", include_str!("../../demo/dns.yaml")), ("shop", include_str!("../../demo/shop.yaml"))];
