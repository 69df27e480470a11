//! TCP and TLS: queries and responses with a length before each (RFC 7766, RFC 7858).
//!
//! A client may send many queries without waiting. What is known is answered at once; what upstreams
//! are asked for is answered as it comes, so one slow name holds up no other (RFC 7766 section
//! 6.2.1.1). Until so many are under way nothing more is read from that client.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use super::drain;
use super::places::{Place, Places};
use super::queue::{Queue, Replies, Reply, To};
use crate::metrics::{Proto, Shard};
use crate::resolver::{Client, Resolver, Step};
use crate::tls::Identity;
use crate::wire::Transport;

/// How many connections a listener serves at once; for a further one the one that has been idle for
/// longest is closed.
const MAX_CONNECTIONS: usize = 1024;
/// How long a connection may be idle between queries.
const IDLE: Duration = Duration::from_secs(10);
/// How long the rest of a query, the taking of a response, or a TLS handshake may last: a client
/// that stalls is cut off.
const STALL: Duration = Duration::from_secs(5);
/// How long to wait after a failed accept, which most often means that descriptors are short.
const BACKOFF: Duration = Duration::from_millis(100);
/// How many queries of one connection may wait for upstreams.
const UNDER_WAY: usize = 64;
/// How much is read at once, and kept for what comes next, in octets.
const READ: usize = 1024;
/// How many octets of answers are gathered before they are written.
const WRITE: usize = 16 * 1024;

/// What the connections of a listener have in common.
struct Shared {
    resolver: Arc<Resolver>,
    queue: Arc<Queue>,
    /// Where the clients speak TLS: who this server is.
    tls: Option<Arc<Identity>>,
    stop: watch::Receiver<bool>,
}

/// Serves until told to stop.
pub(super) async fn serve(
    listener: TcpListener,
    (resolver, queue): (Arc<Resolver>, Arc<Queue>),
    tls: Option<Arc<Identity>>,
    mut stop: watch::Receiver<bool>,
) {
    let places = Places::new(MAX_CONNECTIONS);
    let shared = Arc::new(Shared { resolver, queue, tls, stop: stop.clone() });
    let mut tasks = JoinSet::new();
    loop {
        while tasks.try_join_next().is_some() {}
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stopped(&mut stop) => break,
        };
        match accepted {
            Ok((stream, peer)) => spawn(stream, peer, &places, &shared, &mut tasks),
            Err(error) => {
                tracing::warn!(%error, "accept failed");
                // Descriptors are short, or memory is: those of the idle are better used.
                places.evict();
                tokio::time::sleep(BACKOFF).await;
            }
        }
    }
    // Who waits in the queue has come before the stop, and would get a reset.
    for _ in 0..MAX_CONNECTIONS {
        let Ok(Ok((stream, peer))) = timeout(Duration::ZERO, listener.accept()).await else {
            break;
        };
        spawn(stream, peer, &places, &shared, &mut tasks);
    }
    // New connections are refused while the old ones end.
    drop(listener);
    drain(&mut tasks).await;
}

fn spawn(
    stream: TcpStream,
    peer: SocketAddr,
    places: &Places,
    shared: &Arc<Shared>,
    tasks: &mut JoinSet<()>,
) {
    let Some(place) = places.take() else {
        tracing::debug!(%peer, "too many connections");
        return;
    };
    let shared = Arc::clone(shared);
    tasks.spawn(async move {
        if let Err(error) = connection(stream, peer, place, &shared).await {
            tracing::debug!(%peer, %error, "a connection ended");
        }
    });
}

async fn connection(
    stream: TcpStream,
    peer: SocketAddr,
    place: Place,
    shared: &Shared,
) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let proto = if shared.tls.is_some() { Proto::Tls } else { Proto::Tcp };
    let local = Some(stream.local_addr()?.ip());
    let client = Client { transport: Transport::Tcp, proto, peer: Some(peer), local };
    match &shared.tls {
        None => Conversation::new(stream, client, place, shared).run().await,
        Some(identity) => {
            let evicted = place.evicted();
            let stream = tokio::select! {
                stream = timeout(STALL, identity.acceptor().accept(stream)) => stream??,
                () = evicted.notified() => return Ok(()),
            };
            // Boxed: buffers of a TLS stream are large, and most connections have none.
            Box::pin(Conversation::new(stream, client, place, shared).run()).await
        }
    }
}

/// One connection.
struct Conversation<'s, S> {
    stream: S,
    client: Client,
    place: Place,
    shared: &'s Shared,
    shard: Arc<Shard>,
    /// What has been read and not been answered.
    unread: Vec<u8>,
    /// Answers that have not been written.
    unsent: Vec<u8>,
    /// How many queries wait for upstreams.
    under_way: usize,
    /// Where the replies to those come from, and what each of them is given to send its own.
    replies: (mpsc::UnboundedReceiver<Option<Vec<u8>>>, Replies),
}

impl<'s, S: AsyncRead + AsyncWrite + Unpin> Conversation<'s, S> {
    fn new(stream: S, client: Client, place: Place, shared: &'s Shared) -> Self {
        let (sender, receiver) = mpsc::unbounded_channel();
        Self {
            stream,
            client,
            place,
            shared,
            shard: Arc::clone(shared.resolver.metrics().shared()),
            unread: Vec::new(),
            unsent: Vec::new(),
            under_way: 0,
            replies: (receiver, sender),
        }
    }

    /// Answers the queries of the connection until either side ends it.
    async fn run(mut self) -> io::Result<()> {
        let evicted = self.place.evicted();
        let mut stop = self.shared.stop.clone();
        // The client sends nothing more, or we take nothing more.
        let mut last = false;
        let mut deadline = Instant::now() + IDLE;
        loop {
            let reading = !last && self.under_way < UNDER_WAY;
            if last && self.under_way == 0 {
                break;
            }
            if reading && self.unread.capacity() - self.unread.len() < READ {
                self.unread.reserve(READ);
            }
            tokio::select! {
                // What is here already is answered before a stop counts.
                biased;
                // A sender is at hand, so the replies do not end.
                Some(reply) = self.replies.0.recv(), if self.under_way > 0 => {
                    self.under_way -= 1;
                    match reply {
                        Some(reply) => frame(&mut self.unsent, &reply),
                        // It made way for newer ones: the client may ask anew.
                        None => last = true,
                    }
                    deadline = Instant::now() + IDLE;
                }
                read = self.stream.read_buf(&mut self.unread), if reading => {
                    let partial = !self.unread.is_empty();
                    if read? == 0 {
                        last = true;
                    } else if !partial {
                        deadline = Instant::now() + STALL;
                    }
                }
                () = stopped(&mut stop), if !last => last = true,
                () = evicted.notified() => return self.close().await,
                // A client that waits for an answer is not idle.
                () = tokio::time::sleep_until(deadline), if self.under_way == 0 => {
                    return self.close().await;
                }
            }
            // Those that have been read whole, until too many are under way.
            let before = self.unread.len();
            while self.under_way < UNDER_WAY && self.next()? {
                if self.unsent.len() >= WRITE {
                    self.flush().await?;
                }
            }
            self.flush().await?;
            let answered = self.unread.len() < before;
            if answered {
                let patience = if self.unread.is_empty() { IDLE } else { STALL };
                deadline = Instant::now() + patience;
            }
            if self.unread.is_empty() && self.unread.capacity() > 4 * READ {
                self.unread = Vec::new();
            }
            if self.under_way > 0 {
                if !self.place.busy() {
                    return self.close().await;
                }
            } else if answered || self.place.is_busy() {
                // Not for a query that only trickles in.
                self.place.idle();
            }
        }
        self.close().await
    }

    /// Takes the next query that has been read whole; `false` where there is none.
    fn next(&mut self) -> io::Result<bool> {
        let Some((length, rest)) = self.unread.split_first_chunk::<2>() else { return Ok(false) };
        let length = usize::from(u16::from_be_bytes(*length));
        let Some(query) = rest.get(..length) else { return Ok(false) };
        let begin = Instant::now();
        let resolver = &self.shared.resolver;
        match resolver.accept(query, &self.client, &self.shard) {
            // What gets no answer is no client's.
            Step::Ignore => return Err(io::Error::other("what came in is no query")),
            Step::Reply(reply) => {
                frame(&mut self.unsent, &reply);
                self.shard.took(begin.elapsed(), 1);
            }
            Step::Refresh(reply, pending) => {
                frame(&mut self.unsent, &reply);
                self.shard.took(begin.elapsed(), 1);
                self.shared.queue.push(pending, To::Nobody);
            }
            Step::Ask(pending) => {
                self.under_way += 1;
                let reply = Reply::new(self.replies.1.clone());
                self.shared.queue.push(pending, To::Stream(reply));
            }
        }
        self.unread.drain(..2 + length);
        Ok(true)
    }

    /// Writes the answers that have been gathered.
    async fn flush(&mut self) -> io::Result<()> {
        if self.unsent.is_empty() {
            return Ok(());
        }
        timeout(STALL, async {
            self.stream.write_all(&self.unsent).await?;
            self.stream.flush().await
        })
        .await??;
        self.unsent.clear();
        self.unsent.shrink_to(READ);
        Ok(())
    }

    /// Says that nothing more comes; with TLS that is a message of its own.
    async fn close(mut self) -> io::Result<()> {
        // A client that is gone already has ended it, too.
        let _ = timeout(STALL, self.stream.shutdown()).await;
        Ok(())
    }
}

/// Waits for the stop.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    // A server that is gone has stopped.
    let _ = stop.wait_for(|stop| *stop).await;
}

/// Appends a response with its length.
fn frame(out: &mut Vec<u8>, reply: &[u8]) {
    // A response never exceeds what two octets can say.
    out.extend_from_slice(&u16::try_from(reply.len()).unwrap_or(u16::MAX).to_be_bytes());
    out.extend_from_slice(reply);
}
