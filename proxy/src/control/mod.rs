//! The control socket: one JSON line a request, one JSON line an answer.
//!
//! It serves `proxyctl` and `sluice-cni`. The socket is root's alone (mode 0600). Every line carries
//! the protocol's version; a request of another version is answered with an error that names both,
//! so that binaries of different releases tell a person what to do instead of misreading each other.

mod client;
mod monitors;
mod notice;
mod protocol;
mod server;

pub use client::{ClientError, Notices, follow, request};
pub use monitors::{MAX_MONITORS, Monitors};
pub use notice::{DroppedPacket, Notice};
pub use protocol::{
    Answer, EndpointAdd, EndpointDel, EndpointRef, Envelope, PROTOCOL_VERSION, PodRef, Reply,
    Request, ServiceRef, TraceRequest,
};
pub use server::{Call, ServeError, serve};
