//! The handshake with the node's agent: one JSON line each way over its Unix socket.

use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with,
    sockopt::{Timeout, set_socket_timeout},
};
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::names::Key;

/// How long ADD waits for the agent, all in all.
pub const ADD_TIMEOUT: Duration = Duration::from_secs(5);
/// How long DEL waits: an agent that is away learns of the deletion from the records.
pub const DEL_TIMEOUT: Duration = Duration::from_secs(2);
/// How long an agent may be away that is being restarted.
const RESTART_GRACE: Duration = Duration::from_secs(3);
const RETRY_INTERVAL: Duration = Duration::from_millis(50);
/// No answer of an agent is longer.
const MAX_ANSWER: usize = 64 * 1024;

/// What the agent is told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Event<'a> {
    /// The attachment is made; the agent answers once the pod is protected and reachable.
    Add {
        /// The name of the record's file, so that the agent reads no other.
        record: &'a str,
    },
    /// The attachment goes; the agent deletes its interface, if it can.
    Del {
        /// Index of the node's end, if it is there: the agent deletes no other one.
        ifindex: Option<u32>,
    },
}

/// What the agent did.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Told {
    /// The attachment's interface is gone.
    pub unlinked: bool,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Ask<'a> {
    version: u32,
    request: &'a str,
    network: &'a str,
    container_id: &'a str,
    interface: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    record: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    host_interface: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    host_ifindex: Option<u32>,
}

#[derive(Deserialize)]
struct Answer {
    ok: bool,
    #[serde(default)]
    data: Data,
    #[serde(default)]
    error: String,
    #[serde(default)]
    hint: Option<String>,
}

/// What an answer says beyond its being one; an agent of another release may say less.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Data {
    unlinked: bool,
}

/// Tells the agent and waits for its answer.
pub fn tell(socket: &Path, event: Event<'_>, key: &Key) -> Result<Told, Error> {
    let (request, timeout, record, host_ifindex) = match event {
        Event::Add { record } => ("endpoint-add", ADD_TIMEOUT, Some(record), None),
        Event::Del { ifindex } => ("endpoint-del", DEL_TIMEOUT, None, ifindex),
    };
    let is_del = matches!(event, Event::Del { .. });
    let deadline = Instant::now() + timeout;
    let error = |problem: String, hint| Error::Agent { socket: socket.to_owned(), problem, hint };
    let grace = if is_del { Duration::ZERO } else { RESTART_GRACE };
    let ask = Ask {
        version: 1,
        request,
        network: &key.network,
        container_id: &key.container_id,
        interface: &key.interface,
        record,
        host_interface: is_del.then(|| key.host_interface()),
        host_ifindex,
    };
    let line = serde_json::to_string(&ask).map_err(|e| error(e.to_string(), None))? + "\n";
    let answer = connect_within(socket, deadline, grace)
        .and_then(|stream| exchange(stream, &line, deadline))
        .map_err(|e| error(explain(&e, timeout), None))?;
    let answer: Answer = serde_json::from_slice(&answer)
        .map_err(|e| error(format!("answer to {request} not understood: {e}"), None))?;
    if answer.ok {
        Ok(Told { unlinked: answer.data.unlinked })
    } else {
        Err(error(format!("{request} refused: {}", answer.error), answer.hint))
    }
}

/// What an agent answers that is well. One of another release may not know it, and answers that.
const PING: &str = "{\"version\":1,\"request\":\"ping\"}\n";

/// Whether an agent answers on the socket; one that hangs still has connections taken for it.
pub fn probe(socket: &Path) -> Result<(), Error> {
    let deadline = Instant::now() + DEL_TIMEOUT;
    let answer = connect_within(socket, deadline, Duration::ZERO)
        .and_then(|stream| exchange(stream, PING, deadline));
    answer.map(drop).map_err(|e| Error::Agent {
        socket: socket.to_owned(),
        problem: explain(&e, DEL_TIMEOUT),
        hint: None,
    })
}

fn explain(error: &io::Error, timeout: Duration) -> String {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
            format!("no answer within {} seconds", timeout.as_secs())
        }
        io::ErrorKind::NotFound => "the socket does not exist".into(),
        io::ErrorKind::UnexpectedEof => "it closed the connection without an answer".into(),
        _ => error.to_string(),
    }
}

fn connect_within(socket: &Path, deadline: Instant, grace: Duration) -> io::Result<UnixStream> {
    let give_up = Instant::now() + grace;
    loop {
        match connect_once(socket, remaining(deadline)?) {
            Err(e)
                if matches!(
                    e.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
                ) && Instant::now() < give_up =>
            {
                thread::sleep(RETRY_INTERVAL);
            }
            other => return other,
        }
    }
}

/// `UnixStream::connect` waits without end for an agent whose backlog is full.
fn connect_once(socket: &Path, timeout: Duration) -> io::Result<UnixStream> {
    let address = SocketAddrUnix::new(socket)?;
    let fd = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    set_socket_timeout(&fd, Timeout::Send, Some(timeout))?;
    connect(&fd, &address)?;
    Ok(fd.into())
}

fn exchange(mut stream: UnixStream, line: &str, deadline: Instant) -> io::Result<Vec<u8>> {
    stream.set_write_timeout(Some(remaining(deadline)?))?;
    stream.write_all(line.as_bytes())?;
    let mut answer = Vec::new();
    let mut chunk = [0; 1024];
    loop {
        stream.set_read_timeout(Some(remaining(deadline)?))?;
        let n = match stream.read(&mut chunk) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            other => other?,
        };
        if n == 0 {
            return if answer.is_empty() {
                Err(io::ErrorKind::UnexpectedEof.into())
            } else {
                Ok(answer)
            };
        }
        let read = chunk.get(..n).unwrap_or_default();
        if let Some(end) = read.iter().position(|b| *b == b'\n') {
            answer.extend(read.iter().take(end));
            return Ok(answer);
        }
        answer.extend(read);
        if answer.len() > MAX_ANSWER {
            return Err(io::Error::other("answer too long"));
        }
    }
}

fn remaining(deadline: Instant) -> io::Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
}

#[cfg(test)]
mod tests;
