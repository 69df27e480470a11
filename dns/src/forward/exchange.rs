//! One query to one upstream.

use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use hickory_proto::op::{Message, MessageType, OpCode, ResponseCode};
use hickory_proto::serialize::binary::DecodeError;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::Instant;
use tokio_rustls::TlsConnector;

use crate::metrics::{Event, Shard};
use crate::wire::Transport;

/// How long a connection may be idle to be used again, as in CoreDNS.
const MAX_IDLE: Duration = Duration::from_secs(10);
/// How many idle connections to an upstream are kept.
const MAX_CONNECTIONS: usize = 32;

/// More than any datagram that answers a query of ours may have, since it named a smaller size.
const DATAGRAM: usize = 4096;

/// Why an upstream gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum ExchangeError {
    /// Nothing came in time.
    #[error("no answer in time")]
    Timeout,
    /// A socket call failed.
    #[error("{call}: {source}")]
    Io {
        /// The call.
        call: &'static str,
        /// Its error.
        #[source]
        source: io::Error,
    },
    /// The answer to our query is no DNS message.
    #[error("a malformed answer: {0}")]
    Malformed(#[source] DecodeError),
    /// A stream brought an answer to something else.
    #[error("an answer to another question")]
    Mismatch,
}

fn io(call: &'static str) -> impl FnOnce(io::Error) -> ExchangeError {
    move |source| ExchangeError::Io { call, source }
}

/// How an upstream is reached, and the connections to it that are idle.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) addr: SocketAddr,
    tls: Option<Tls>,
    connections: Connections,
}

struct Tls {
    connector: TlsConnector,
    name: ServerName<'static>,
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Tls").field(&self.name).finish()
    }
}

/// A connection, with TLS or without.
trait Io: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Io for T {}

type Stream = Box<dyn Io>;

impl Peer {
    pub(super) fn new(addr: SocketAddr, tls: Option<(TlsConnector, ServerName<'static>)>) -> Self {
        let tls = tls.map(|(connector, name)| Tls { connector, name });
        Self { addr, tls, connections: Connections::default() }
    }

    /// Asks. A UDP answer that is cut short is asked for again by TCP, and kept if that fails; with
    /// TLS nothing is ever sent without it.
    pub(super) async fn exchange(
        &self,
        (query, bytes): (&Message, &[u8]),
        transport: Transport,
        shard: &Shard,
    ) -> Result<Message, ExchangeError> {
        // Boxed: room for a connection to be made is large, and most exchanges need none.
        if self.tls.is_some() || transport == Transport::Tcp {
            return Box::pin(self.by_stream(query, bytes, shard)).await;
        }
        let answer = by_udp(self.addr, query, bytes).await?;
        if !answer.metadata.truncation {
            return Ok(answer);
        }
        Ok(Box::pin(self.by_stream(query, bytes, shard)).await.unwrap_or(answer))
    }

    /// Whether it answers at all.
    pub(super) async fn probe(&self, patience: Duration, shard: &Shard) -> bool {
        let query = super::probe_query();
        let Ok(bytes) = query.to_vec() else { return false };
        let answer = self.exchange((&query, &bytes), Transport::Udp, shard);
        tokio::time::timeout(patience, answer).await.is_ok_and(|answer| answer.is_ok())
    }

    async fn by_stream(
        &self,
        query: &Message,
        bytes: &[u8],
        shard: &Shard,
    ) -> Result<Message, ExchangeError> {
        let Ok(length) = u16::try_from(bytes.len()) else { return Err(ExchangeError::Mismatch) };
        let mut framed = Vec::with_capacity(2 + bytes.len());
        framed.extend_from_slice(&length.to_be_bytes());
        framed.extend_from_slice(bytes);
        while let Some(mut stream) = self.connections.take() {
            // An upstream may close an idle connection at any time: the next one, or a new one,
            // serves.
            if let Ok(answer) = converse(&mut stream, query, &framed).await {
                shard.event(Event::ConnectionHit);
                self.connections.put(stream);
                return Ok(answer);
            }
        }
        shard.event(Event::ConnectionMiss);
        let mut stream = self.connect().await?;
        let answer = converse(&mut stream, query, &framed).await?;
        self.connections.put(stream);
        Ok(answer)
    }

    async fn connect(&self) -> Result<Stream, ExchangeError> {
        let stream = TcpStream::connect(self.addr).await.map_err(io("connect"))?;
        stream.set_nodelay(true).map_err(io("setsockopt TCP_NODELAY"))?;
        let Some(tls) = &self.tls else { return Ok(Box::new(stream)) };
        let stream = tls.connector.connect(tls.name.clone(), stream).await;
        Ok(Box::new(stream.map_err(io("TLS handshake"))?))
    }
}

async fn by_udp(
    upstream: SocketAddr,
    query: &Message,
    bytes: &[u8],
) -> Result<Message, ExchangeError> {
    let any: SocketAddr = match upstream {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any).await.map_err(io("bind"))?;
    // Connected, the kernel drops what others send, and tells of a port that is closed.
    socket.connect(upstream).await.map_err(io("connect"))?;
    socket.send(bytes).await.map_err(io("send"))?;
    loop {
        socket.readable().await.map_err(io("recv"))?;
        // What is not for this query may be forged or late: the answer may still come.
        match receive(&socket, query) {
            Err(ExchangeError::Mismatch) => {}
            Err(ExchangeError::Io { source, .. }) if source.kind() == ErrorKind::WouldBlock => {}
            result => return result,
        }
    }
}

/// Takes what has come. Its buffer is here, so that thousands of queries wait without one.
fn receive(socket: &UdpSocket, query: &Message) -> Result<Message, ExchangeError> {
    let mut buffer = [0; DATAGRAM];
    let length = socket.try_recv(&mut buffer).map_err(io("recv"))?;
    read(query, &buffer[..length])
}

async fn converse(
    stream: &mut Stream,
    query: &Message,
    framed: &[u8],
) -> Result<Message, ExchangeError> {
    stream.write_all(framed).await.map_err(io("send"))?;
    stream.flush().await.map_err(io("send"))?;
    let length = stream.read_u16().await.map_err(io("recv"))?;
    let mut answer = vec![0; usize::from(length)];
    stream.read_exact(&mut answer).await.map_err(io("recv"))?;
    read(query, &answer)
}

/// Idle connections to an upstream, the one used last on top.
#[derive(Default)]
struct Connections(Mutex<Vec<(Stream, Instant)>>);

impl std::fmt::Debug for Connections {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let idle = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        f.debug_tuple("Connections").field(&idle.len()).finish()
    }
}

impl Connections {
    fn take(&self) -> Option<Stream> {
        let mut idle = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Those below are older still.
        match idle.pop() {
            Some((stream, since)) if since.elapsed() < MAX_IDLE => Some(stream),
            _ => {
                idle.clear();
                None
            }
        }
    }

    fn put(&self, stream: Stream) {
        let mut idle = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < MAX_CONNECTIONS {
            idle.push((stream, Instant::now()));
        }
    }
}

/// Reads an answer and checks that it is one to our query.
fn read(query: &Message, bytes: &[u8]) -> Result<Message, ExchangeError> {
    if bytes.get(..2) != Some(&query.metadata.id.to_be_bytes()[..]) {
        return Err(ExchangeError::Mismatch);
    }
    let answer = Message::from_vec(bytes).map_err(ExchangeError::Malformed)?;
    let head = &answer.metadata;
    if head.message_type != MessageType::Response || head.op_code != OpCode::Query {
        return Err(ExchangeError::Mismatch);
    }
    // A server that could not read the question does not repeat it.
    let errs = answer.queries.is_empty() && head.response_code != ResponseCode::NoError;
    // Names compare without regard to case: some servers answer in lower case.
    if answer.queries != query.queries && !errs {
        return Err(ExchangeError::Mismatch);
    }
    Ok(answer)
}
