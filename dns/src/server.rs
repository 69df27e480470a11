//! The sockets: UDP in worker threads, TCP and TLS in the runtime.
//!
//! A stop lets what is under way end: workers and loops take nothing new, and wait for the upstreams
//! that are still asked, for a bounded time.

mod bind;
mod places;
mod queue;
mod tcp;
mod udp;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

pub use bind::{BindError, Sockets, TlsSocket};

use self::queue::Queue;
use crate::resolver::Resolver;
use crate::tls::Identity;

/// How long a stop waits for queries under way: as long as an upstream may take.
const DRAIN: Duration = Duration::from_secs(5);

/// The running server.
#[derive(Debug)]
pub struct Server {
    loops: JoinSet<()>,
    stop: watch::Sender<bool>,
    stop_workers: Arc<udp::Stop>,
    queue: Arc<Queue>,
    /// Tells of each worker that ends.
    ended: mpsc::UnboundedReceiver<()>,
    workers: usize,
    addrs: Vec<SocketAddr>,
}

/// Tells when a worker ends, in whatever way.
struct Ends(mpsc::UnboundedSender<()>);

impl Drop for Ends {
    fn drop(&mut self) {
        // Nobody waits for it where the server is gone.
        let _ = self.0.send(());
    }
}

/// How many workers there are where nobody says: one for each CPU that this process may use.
pub fn default_workers() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

impl Server {
    /// Serves on these sockets, inside a Tokio runtime.
    ///
    /// # Errors
    ///
    /// A socket cannot be handed to the runtime, or a thread cannot be started.
    pub fn start(sockets: Vec<Sockets>, resolver: &Arc<Resolver>) -> io::Result<Self> {
        let (stop, stopped) = watch::channel(false);
        let stop_workers = Arc::new(udp::Stop::new()?);
        let queue = Queue::new(Arc::clone(resolver), Handle::current());
        let (end, ended) = mpsc::unbounded_channel();
        let mut loops = JoinSet::new();
        let addrs = sockets.iter().map(|sockets| sockets.addr).collect();
        let mut workers: Vec<Vec<Arc<udp::Socket>>> = Vec::new();
        for sockets in sockets {
            workers.resize_with(workers.len().max(sockets.udp.len()), Vec::new);
            for (worker, udp) in workers.iter_mut().zip(sockets.udp) {
                worker.push(Arc::new(udp::Socket::new(udp, sockets.addr)));
            }
            let tcp = tokio::net::TcpListener::from_std(sockets.tcp)?;
            let resolver = (Arc::clone(resolver), Arc::clone(&queue));
            loops.spawn(tcp::serve(tcp, resolver, None, stopped.clone()));
        }
        let count = workers.len();
        for (index, sockets) in workers.into_iter().enumerate() {
            let worker = udp::Worker::new(sockets, (resolver, &queue), &stop_workers)?;
            let ends = Ends(end.clone());
            std::thread::Builder::new().name(format!("dns-{index}")).spawn(move || {
                worker.run();
                drop(ends);
            })?;
        }
        Ok(Self { loops, stop, stop_workers, queue, ended, workers: count, addrs })
    }

    /// The addresses that are served.
    pub fn addrs(&self) -> &[SocketAddr] {
        &self.addrs
    }

    /// Serves DNS over TLS on this socket, too, inside a Tokio runtime.
    ///
    /// # Errors
    ///
    /// The socket cannot be handed to the runtime.
    pub fn serve_tls(
        &mut self,
        socket: TlsSocket,
        identity: &Arc<Identity>,
        resolver: &Arc<Resolver>,
    ) -> io::Result<()> {
        let listener = tokio::net::TcpListener::from_std(socket.tcp)?;
        let resolver = (Arc::clone(resolver), Arc::clone(&self.queue));
        let identity = Arc::clone(identity);
        self.loops.spawn(tcp::serve(listener, resolver, Some(identity), self.stop.subscribe()));
        Ok(())
    }

    /// Waits until a loop or a worker ends by itself, which none does unless something is badly
    /// wrong.
    pub async fn failed(&mut self) {
        tokio::select! {
            Some(Err(error)) = self.loops.join_next() => {
                tracing::error!(%error, "a socket's loop broke off");
            }
            _ = self.ended.recv() => tracing::error!("a worker broke off"),
        }
    }

    /// Takes no more queries, and waits until those under way are answered.
    pub async fn stop(mut self) {
        self.stop_workers.set();
        // Without loops nobody listens, which is no error.
        let _ = self.stop.send(true);
        for _ in 0..self.workers {
            self.ended.recv().await;
        }
        if tokio::time::timeout(DRAIN, self.queue.idle()).await.is_err() {
            tracing::warn!("stopped before all queries were answered");
        }
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
