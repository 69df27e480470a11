//! TCP: queries and responses with a length before each (RFC 7766).

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::drain;
use crate::metrics::Proto;
use crate::resolver::{Client, Resolver, Step};
use crate::wire::Transport;

/// How many connections are served at once; a further one is closed.
const MAX_CONNECTIONS: usize = 1024;
/// How long a connection may be idle between queries.
const IDLE: Duration = Duration::from_secs(10);
/// How long the rest of a query, or the taking of a response, may last: a client that stalls is cut
/// off.
const STALL: Duration = Duration::from_secs(5);
/// How long to wait after a failed accept, which most often means that descriptors are short.
const BACKOFF: Duration = Duration::from_millis(100);

/// Serves until told to stop.
pub(super) async fn serve(
    listener: TcpListener,
    resolver: Arc<Resolver>,
    mut stop: watch::Receiver<bool>,
) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut tasks = JoinSet::new();
    loop {
        while tasks.try_join_next().is_some() {}
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stop.wait_for(|stop| *stop) => break,
        };
        match accepted {
            Ok((stream, peer)) => spawn(stream, peer, &places, &resolver, &stop, &mut tasks),
            Err(error) => {
                tracing::warn!(%error, "accept failed");
                tokio::time::sleep(BACKOFF).await;
            }
        }
    }
    // Who waits in the queue has come before the stop, and would get a reset.
    for _ in 0..MAX_CONNECTIONS {
        let Ok(Ok((stream, peer))) = timeout(Duration::ZERO, listener.accept()).await else {
            break;
        };
        spawn(stream, peer, &places, &resolver, &stop, &mut tasks);
    }
    // New connections are refused while the old ones end.
    drop(listener);
    drain(&mut tasks).await;
}

fn spawn(
    stream: TcpStream,
    peer: SocketAddr,
    places: &Arc<Semaphore>,
    resolver: &Arc<Resolver>,
    stop: &watch::Receiver<bool>,
    tasks: &mut JoinSet<()>,
) {
    let Ok(place) = Arc::clone(places).try_acquire_owned() else {
        tracing::debug!(%peer, "too many connections");
        return;
    };
    let (resolver, stop) = (Arc::clone(resolver), stop.clone());
    tasks.spawn(async move {
        if let Err(error) = converse(stream, peer, &resolver, stop).await {
            tracing::debug!(%peer, %error, "a connection ended");
        }
        drop(place);
    });
}

/// Answers the queries of one connection, one after the other.
async fn converse(
    mut stream: TcpStream,
    peer: SocketAddr,
    resolver: &Arc<Resolver>,
    mut stop: watch::Receiver<bool>,
) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let client = Client {
        transport: Transport::Tcp,
        proto: Proto::Tcp,
        peer: Some(peer),
        local: Some(stream.local_addr()?.ip()),
    };
    let shard = Arc::clone(resolver.metrics().shared());
    let mut query = Vec::new();
    loop {
        let length = tokio::select! {
            // A query that is here already is answered before a stop counts.
            biased;
            length = timeout(IDLE, stream.read_u16()) => length,
            _ = stop.wait_for(|stop| *stop) => return Ok(()),
        };
        let length = match length {
            Ok(Ok(length)) => usize::from(length),
            // Idle for too long, or closed by the client: the usual ends.
            Err(_) => return Ok(()),
            Ok(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            Ok(Err(error)) => return Err(error),
        };
        query.resize(length, 0);
        timeout(STALL, stream.read_exact(&mut query)).await??;
        let begin = Instant::now();
        let reply = match resolver.accept(&query, &client, &shard) {
            // What gets no answer is no client's.
            Step::Ignore => return Ok(()),
            Step::Reply(reply) => reply,
            Step::Refresh(reply, pending) => {
                let resolver = Arc::clone(resolver);
                tokio::spawn(async move { resolver.finish(*pending).await });
                reply
            }
            Step::Ask(pending) => match resolver.finish(*pending).await {
                Some(reply) => reply,
                None => return Ok(()),
            },
        };
        shard.took(begin.elapsed(), 1);
        let mut framed = Vec::with_capacity(2 + reply.len());
        // A response never exceeds what two octets can say.
        framed.extend_from_slice(&u16::try_from(reply.len()).unwrap_or(u16::MAX).to_be_bytes());
        framed.extend_from_slice(&reply);
        timeout(STALL, stream.write_all(&framed)).await??;
    }
}
