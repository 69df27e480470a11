//! The sockets: UDP and TCP, each address with a loop of its own.
//!
//! A stop lets what is under way end: the loops take nothing new, and wait for the upstreams that
//! are still asked, for a bounded time.

mod bind;
mod tcp;
mod udp;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;

pub use bind::{BindError, Sockets};

use crate::resolver::Resolver;

/// How long a stop waits for queries under way: as long as an upstream may take.
const DRAIN: Duration = Duration::from_secs(5);

/// The running server.
#[derive(Debug)]
pub struct Server {
    loops: JoinSet<()>,
    stop: watch::Sender<bool>,
    addrs: Vec<SocketAddr>,
}

impl Server {
    /// Serves on these sockets, inside a Tokio runtime.
    ///
    /// # Errors
    ///
    /// A socket cannot be handed to the runtime.
    pub fn start(sockets: Vec<Sockets>, resolver: &Arc<Resolver>) -> io::Result<Self> {
        let (stop, stopped) = watch::channel(false);
        let mut server = Self { loops: JoinSet::new(), stop, addrs: Vec::new() };
        for sockets in sockets {
            server.addrs.push(sockets.addr);
            let udp = tokio::net::UdpSocket::from_std(sockets.udp)?;
            let any = sockets.addr.ip().is_unspecified();
            let socket = udp::Socket::new(udp, any, sockets.addr.ip());
            server.loops.spawn(udp::serve(socket, Arc::clone(resolver), stopped.clone()));
            let tcp = tokio::net::TcpListener::from_std(sockets.tcp)?;
            server.loops.spawn(tcp::serve(tcp, Arc::clone(resolver), stopped.clone()));
        }
        Ok(server)
    }

    /// The addresses that are served.
    pub fn addrs(&self) -> &[SocketAddr] {
        &self.addrs
    }

    /// Waits until a loop ends by itself, which none does unless something is badly wrong.
    pub async fn failed(&mut self) {
        if let Some(Err(error)) = self.loops.join_next().await {
            tracing::error!(%error, "a socket's loop broke off");
        }
    }

    /// Takes no more queries, and waits until those under way are answered.
    pub async fn stop(mut self) {
        // Without loops nobody listens, which is no error.
        let _ = self.stop.send(true);
        while self.loops.join_next().await.is_some() {}
    }
}

/// Waits for tasks to end, for a bounded time, and aborts what is left.
async fn drain(tasks: &mut JoinSet<()>) {
    let all = async { while tasks.join_next().await.is_some() {} };
    if tokio::time::timeout(DRAIN, all).await.is_err() {
        tracing::warn!(queries = tasks.len(), "stopped before all queries were answered");
    }
}
