//! The node agent of Sluice and what `proxyctl` shares with it.

pub mod routes;
