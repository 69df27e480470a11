//! One query to one upstream.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use hickory_proto::op::{Message, MessageType, OpCode, ResponseCode};
use hickory_proto::serialize::binary::DecodeError;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};

use crate::wire::Transport;

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
    query: &Message,
    bytes: &[u8],
    transport: Transport,
) -> Result<Message, ExchangeError> {
    match transport {
        Transport::Tcp => by_tcp(upstream, query, bytes).await,
        Transport::Udp => {
            let answer = by_udp(upstream, query, bytes).await?;
            if !answer.metadata.truncation {
                return Ok(answer);
            }
            Ok(by_tcp(upstream, query, bytes).await.unwrap_or(answer))
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
) -> Result<Message, ExchangeError> {
    let mut stream = TcpStream::connect(upstream).await.map_err(io("connect"))?;
    stream.set_nodelay(true).map_err(io("setsockopt TCP_NODELAY"))?;
    let Ok(length) = u16::try_from(bytes.len()) else { return Err(ExchangeError::Mismatch) };
    let mut framed = Vec::with_capacity(2 + bytes.len());
    framed.extend_from_slice(&length.to_be_bytes());
    framed.extend_from_slice(bytes);
    stream.write_all(&framed).await.map_err(io("send"))?;
    let length = stream.read_u16().await.map_err(io("recv"))?;
    let mut answer = vec![0; usize::from(length)];
    stream.read_exact(&mut answer).await.map_err(io("recv"))?;
    read(query, &answer)
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
