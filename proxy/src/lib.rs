//! The node agent `sluiced` and its tool `proxyctl`.
//!
//! | module | concern |
//! | --- | --- |
//! | [`agent`] | the loop that joins everything: source, planner, kernel, pods, routes, control |
//! | [`cli`] | flags of both binaries |
//! | [`clock`] | the clock of the programs' time stamps |
//! | [`config`] | the command line with the file that kube-proxy has its settings in |
//! | [`control`] | the control socket: protocol, server, client |
//! | [`ctl`] | the commands of `proxyctl` |
//! | [`dataplane`] | the only place that talks to bpf(2) |
//! | [`node_ports`] | which addresses NodePorts are served on |
//! | [`health`] | health checks and metrics over HTTP |
//! | [`routes`] | host-gw routes to the other nodes |
//! | [`uplinks`] | which interfaces lead outside, and what pods reach with their own address |
//! | [`wake`] | sockets whose backend is gone |
//! | [`view`] | rows that people and scripts read, from a dump of the kernel's maps |

pub mod agent;
pub mod cli;
pub mod clock;
pub mod config;
pub mod control;
pub mod ctl;
pub mod dataplane;
pub mod health;
pub mod node_ports;
pub mod routes;
pub mod uplinks;
pub mod view;
pub mod wake;
