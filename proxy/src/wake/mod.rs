//! Sockets whose backend is gone.
//!
//! A connected socket was connected straight to its backend, and the kernel asks no program about it
//! again. When the backend goes, a TCP client learns it from a reset or from silence; a client of a
//! connected UDP socket learns nothing, ever. So the agent destroys such sockets (`SOCK_DESTROY` of
//! sock_diag(7)): whoever waits on one wakes up with `ECONNABORTED`, and connecting anew, be it with
//! the same socket, leads to a backend that is there.
//!
//! ```text
//! a Service changed ─> doomed(): peers that the programs noted, against tables and endpoints (pure)
//!                        └─> Waker, a thread: network namespace ─> its sockets ─> SOCK_DESTROY
//! ```
//!
//! What is doomed is read off the state of things, not off the change: nothing is lost with an agent
//! that is killed in between, and a change may be looked at twice.
//!
//! Work is in proportion to the sockets concerned: only peers that the programs noted are looked
//! through (datagram sockets have a map of their own for that), only namespaces with a doomed socket
//! are entered, and of their sockets the kernel names only those that are connected to the port, and
//! where it is one, the address of a backend that is gone.
//!
//! The same thread finds out which of the noted sockets are gone: the kernel's own sockets (of NFS,
//! of MPTCP) are closed without a word to the program that forgets closed sockets.

mod diag;
pub(crate) mod namespaces;
mod select;
mod worker;

pub use diag::{Diag, Named};
pub use select::{Doomed, doomed};
pub use worker::{Done, Note, Waker, absent_here, destroy_here};
