//! One query to one upstream.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use hickory_proto::op::{Message, MessageType, OpCode, ResponseCode};
use hickory_proto::serialize::binary::DecodeError;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::Instant;

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

/// Asks an upstream. A UDP answer that is cut short is asked for again by TCP, and kept if that
/// fails.
pub(super) async fn exchange(
    upstream: SocketAddr,
    (query, bytes): (&Message, &[u8]),
    transport: Transport,
    connections: &Connections,
    shard: &Shard,
) -> Result<Message, ExchangeError> {
    let by_tcp = || by_tcp(upstream, query, bytes, connections, shard);
    match transport {
        Transport::Tcp => by_tcp().await,
        Transport::Udp => {
            let answer = by_udp(upstream, query, bytes).await?;
            if !answer.metadata.truncation {
                return Ok(answer);
            }
            Ok(by_tcp().await.unwrap_or(answer))
        }
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
    let mut buffer = vec![0; DATAGRAM];
    loop {
        let length = socket.recv(&mut buffer).await.map_err(io("recv"))?;
        // What is not for this query may be forged or late: the answer may still come.
        match read(query, &buffer[..length]) {
            Err(ExchangeError::Mismatch) => {}
            result => return result,
        }
    }
}

async fn by_tcp(
    upstream: SocketAddr,
    query: &Message,
    bytes: &[u8],
    connections: &Connections,
    shard: &Shard,
) -> Result<Message, ExchangeError> {
    let Ok(length) = u16::try_from(bytes.len()) else { return Err(ExchangeError::Mismatch) };
    let mut framed = Vec::with_capacity(2 + bytes.len());
    framed.extend_from_slice(&length.to_be_bytes());
    framed.extend_from_slice(bytes);
    while let Some(mut stream) = connections.take() {
        // An upstream may close an idle connection at any time: the next one, or a new one, serves.
        if let Ok(answer) = converse(&mut stream, query, &framed).await {
            shard.event(Event::ConnectionHit);
            connections.put(stream);
            return Ok(answer);
        }
    }
    shard.event(Event::ConnectionMiss);
    let mut stream = TcpStream::connect(upstream).await.map_err(io("connect"))?;
    stream.set_nodelay(true).map_err(io("setsockopt TCP_NODELAY"))?;
    let answer = converse(&mut stream, query, &framed).await?;
    connections.put(stream);
    Ok(answer)
}

async fn converse(
    stream: &mut TcpStream,
    query: &Message,
    framed: &[u8],
) -> Result<Message, ExchangeError> {
    stream.write_all(framed).await.map_err(io("send"))?;
    let length = stream.read_u16().await.map_err(io("recv"))?;
    let mut answer = vec![0; usize::from(length)];
    stream.read_exact(&mut answer).await.map_err(io("recv"))?;
    read(query, &answer)
}

/// Whether an upstream answers at all.
pub(super) async fn probe(upstream: SocketAddr, patience: Duration) -> bool {
    let query = super::probe_query();
    let Ok(bytes) = query.to_vec() else { return false };
    let answer = tokio::time::timeout(patience, by_udp(upstream, &query, &bytes)).await;
    answer.is_ok_and(|answer| answer.is_ok())
}

/// Idle connections to an upstream, the one used last on top.
#[derive(Debug, Default)]
pub(super) struct Connections(Mutex<Vec<(TcpStream, Instant)>>);

impl Connections {
    fn take(&self) -> Option<TcpStream> {
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

    fn put(&self, stream: TcpStream) {
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
