//! The real `sluice-dns` on loopback: a directory of manifests behind it, a stub resolver as its
//! upstream, and queries by UDP and TCP.

mod abuse;
mod etcd;
mod forwarding;
mod memory;
mod operating;
mod serving;
mod stopping;
mod support;
mod tls;
mod trains;
