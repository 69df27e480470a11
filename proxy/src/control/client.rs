//! The asking side, for `proxyctl`.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{Answer, Envelope, PROTOCOL_VERSION, Reply, Request};

/// How long an answer may take.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Why a request has no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens: the agent is not running.
    #[error("no agent at {}", path.display())]
    Absent {
        /// The socket.
        path: PathBuf,
        /// The failing call's error.
        source: io::Error,
    },
    /// The socket is there, but not for this user.
    #[error("the socket {} is root's", path.display())]
    Denied {
        /// The socket.
        path: PathBuf,
    },
    /// The agent answered too late, or not at all.
    #[error("the agent at {} did not answer: {source}", path.display())]
    Io {
        /// The socket.
        path: PathBuf,
        /// The failing call's error.
        source: io::Error,
    },
    /// The answer could not be understood.
    #[error(
        "the agent at {} speaks another version of the protocol (this one is {PROTOCOL_VERSION}): \
         {source}",
        path.display()
    )]
    Protocol {
        /// The socket.
        path: PathBuf,
        /// What serde said.
        source: serde_json::Error,
    },
    /// The agent refused.
    #[error("{message}")]
    Refused {
        /// The agent's words.
        message: String,
        /// The agent's hint.
        hint: Option<String>,
    },
}

/// Asks the agent at `socket` and waits for the answer, ten seconds at most.
///
/// # Errors
///
/// See [`ClientError`].
pub fn request(socket: &Path, request: Request) -> Result<Option<Reply>, ClientError> {
    let path = || socket.to_owned();
    let io_error = |source| ClientError::Io { path: path(), source };
    let mut stream = UnixStream::connect(socket).map_err(|source| match source.kind() {
        io::ErrorKind::PermissionDenied => ClientError::Denied { path: path() },
        _ => ClientError::Absent { path: path(), source },
    })?;
    stream.set_read_timeout(Some(TIMEOUT)).map_err(io_error)?;
    stream.set_write_timeout(Some(TIMEOUT)).map_err(io_error)?;
    let envelope = Envelope { version: PROTOCOL_VERSION, request };
    let mut line = serde_json::to_string(&envelope)
        .map_err(|source| ClientError::Protocol { path: path(), source })?;
    line.push('\n');
    stream.write_all(line.as_bytes()).map_err(io_error)?;

    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer).map_err(io_error)?;
    if answer.is_empty() {
        return Err(io_error(io::ErrorKind::UnexpectedEof.into()));
    }
    let answer: Answer = serde_json::from_str(&answer)
        .map_err(|source| ClientError::Protocol { path: path(), source })?;
    match answer.error {
        Some(message) => Err(ClientError::Refused { message, hint: answer.hint }),
        None => Ok(answer.data),
    }
}
