//! The asking side, for `proxyctl`.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{Answer, Envelope, Notice, PROTOCOL_VERSION, Reply, Request};

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

impl ClientError {
    /// Whether there is no agent, or one that was about to go.
    pub fn is_gone(&self) -> bool {
        use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
        match self {
            Self::Absent { .. } => true,
            Self::Io { source, .. } => {
                matches!(source.kind(), BrokenPipe | ConnectionReset | UnexpectedEof)
            }
            _ => false,
        }
    }
}

/// Asks the agent at `socket` and waits for the answer, ten seconds at most.
///
/// # Errors
///
/// See [`ClientError`].
pub fn request(socket: &Path, request: Request) -> Result<Option<Reply>, ClientError> {
    ask(socket, request).map(|(reply, _)| reply)
}

/// What the agent tells a monitor: an iterator that waits for the next notice, and ends with the agent.
#[derive(Debug)]
pub struct Notices {
    path: PathBuf,
    stream: BufReader<UnixStream>,
}

impl Iterator for Notices {
    type Item = Result<Notice, ClientError>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut line = String::new();
        match self.stream.read_line(&mut line) {
            // An agent that is killed may leave half a line.
            Ok(_) if !line.ends_with('\n') => None,
            Ok(_) => Some(
                serde_json::from_str(&line)
                    .map_err(|source| ClientError::Protocol { path: self.path.clone(), source }),
            ),
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => None,
            Err(source) => Some(Err(ClientError::Io { path: self.path.clone(), source })),
        }
    }
}

/// Asks the agent at `socket` for the packets that policies drop from now on.
///
/// # Errors
///
/// See [`ClientError`].
pub fn follow(socket: &Path) -> Result<Notices, ClientError> {
    let (_, stream) = ask(socket, Request::MonitorDrops)?;
    let path = socket.to_owned();
    match stream.get_ref().set_read_timeout(None) {
        Ok(()) => Ok(Notices { path, stream }),
        Err(source) => Err(ClientError::Io { path, source }),
    }
}

/// The answer, and what comes after it.
fn ask(
    socket: &Path,
    request: Request,
) -> Result<(Option<Reply>, BufReader<UnixStream>), ClientError> {
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
    let mut stream = BufReader::new(stream);
    stream.read_line(&mut answer).map_err(io_error)?;
    if answer.is_empty() {
        return Err(io_error(io::ErrorKind::UnexpectedEof.into()));
    }
    let answer: Answer = serde_json::from_str(&answer)
        .map_err(|source| ClientError::Protocol { path: path(), source })?;
    match answer.error {
        Some(message) => Err(ClientError::Refused { message, hint: answer.hint }),
        None => Ok((answer.data, stream)),
    }
}
