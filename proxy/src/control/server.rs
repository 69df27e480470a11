//! The answering side, in the agent.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};

use super::{Answer, Envelope, Monitors, PROTOCOL_VERSION, Request};

/// Longest request line in bytes; no request comes near it.
const MAX_LINE: u64 = 16 * 1024;

/// How long a client may take to send a line.
const READ_TIMEOUT: Duration = Duration::from_secs(10);

/// Clients served at once; further ones wait in the socket's backlog.
const MAX_CLIENTS: usize = 64;

/// A request that waits for the agent's answer.
#[derive(Debug)]
pub struct Call {
    /// What is asked.
    pub request: Request,
    /// Where the answer goes; a client that has left is no error.
    pub answer: oneshot::Sender<Answer>,
}

/// Why the socket could not be opened.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {}: {call}: {source}", path.display())]
pub struct ServeError {
    path: PathBuf,
    call: &'static str,
    source: io::Error,
}

/// Listens on `path`, readable and writable for its owner only, and hands every request to the
/// receiver that comes back, but for those of monitors. A socket file that a dead agent left is replaced; the caller holds the
/// node's lock, so no live one is.
///
/// # Errors
///
/// Where the socket cannot be made: the directory is missing or read-only.
pub fn serve(path: &Path, monitors: Monitors) -> Result<mpsc::Receiver<Call>, ServeError> {
    let error = |call| move |source| ServeError { path: path.to_owned(), call, source };
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            return Err(error("unlink")(source));
        }
        _ => {}
    }
    let listener = UnixListener::bind(path).map_err(error("bind"))?;
    fs::set_permissions(path, Permissions::from_mode(0o600)).map_err(error("chmod"))?;
    let (calls, receiver) = mpsc::channel(MAX_CLIENTS);
    tokio::spawn(accept(listener, calls, monitors));
    Ok(receiver)
}

async fn accept(listener: UnixListener, calls: mpsc::Sender<Call>, monitors: Monitors) {
    let places = std::sync::Arc::new(tokio::sync::Semaphore::new(MAX_CLIENTS));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let (calls, monitors) = (calls.clone(), monitors.clone());
                tokio::spawn(async move {
                    if let Err(error) = converse(stream, calls, monitors).await {
                        tracing::debug!(%error, "a client of the control socket left");
                    }
                    drop(place);
                });
            }
            Err(error) => {
                // Out of file descriptors, most likely: nothing to do but to wait for some.
                tracing::warn!(%error, "cannot accept on the control socket");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
        if calls.is_closed() {
            return;
        }
    }
}

async fn converse(
    stream: UnixStream,
    calls: mpsc::Sender<Call>,
    monitors: Monitors,
) -> io::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut reader = BufReader::new(read);
    loop {
        let mut line = Vec::new();
        let mut limited = (&mut reader).take(MAX_LINE);
        let read = limited.read_until(b'\n', &mut line);
        let count = tokio::time::timeout(READ_TIMEOUT, read)
            .await
            .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        if count == 0 {
            return Ok(());
        }
        let answer = match parse(&line) {
            // It is no request any more, and takes no place from others.
            Ok(Request::MonitorDrops) => {
                let stream = reader.into_inner().reunite(write).map_err(io::Error::other)?;
                return monitors.serve(stream.into_std()?);
            }
            Ok(request) => answer(request, &calls).await,
            Err(answer) => answer,
        };
        let last = !line.ends_with(b"\n");
        let mut text = serde_json::to_vec(&answer)?;
        text.push(b'\n');
        write.write_all(&text).await?;
        if last {
            return Ok(());
        }
    }
}

/// The request on a line, or the answer to what is none.
fn parse(line: &[u8]) -> Result<Request, Answer> {
    /// The version alone, readable whatever else the line says.
    #[derive(serde::Deserialize)]
    struct Version {
        version: u32,
    }

    if !line.ends_with(b"\n") {
        let message = format!("a request is one line of at most {MAX_LINE} bytes");
        return Err(Answer::error(message, ""));
    }
    let none = |error| Answer::error(format!("not a request: {error}"), "");
    let Version { version } = serde_json::from_slice(line).map_err(none)?;
    if version != PROTOCOL_VERSION {
        return Err(Answer::error(
            format!("protocol version {version}, this agent speaks {PROTOCOL_VERSION}"),
            "use the binaries of one release",
        ));
    }
    serde_json::from_slice::<Envelope>(line).map(|envelope| envelope.request).map_err(none)
}

async fn answer(request: Request, calls: &mpsc::Sender<Call>) -> Answer {
    let (sender, receiver) = oneshot::channel();
    if calls.send(Call { request, answer: sender }).await.is_err() {
        return Answer::error("the agent is stopping", "try again");
    }
    receiver.await.unwrap_or_else(|_| Answer::error("the agent is stopping", "try again"))
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Write};
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::control::{ClientError, Reply, request};

    fn with_server<T: Send + 'static>(
        handler: impl Fn(Request) -> Answer + Send + 'static,
        client: impl FnOnce(&Path) -> T + Send + 'static,
    ) -> T {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("agent.sock");
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let mut calls = serve(&path, Monitors::new(&path)).expect("a socket");
            let client = tokio::task::spawn_blocking({
                let path = path.clone();
                move || client(&path)
            });
            tokio::spawn(async move {
                while let Some(call) = calls.recv().await {
                    let _ = call.answer.send(handler(call.request));
                }
            });
            client.await.expect("the client does not panic")
        })
    }

    #[test]
    fn a_request_gets_its_answer() {
        let reply = with_server(
            |request| {
                assert_eq!(request, Request::ServiceList);
                Answer::data(Reply::Services(Vec::new()))
            },
            |path| request(path, Request::ServiceList).expect("an answer"),
        );
        assert_eq!(reply, Some(Reply::Services(Vec::new())));
    }

    #[test]
    fn a_refusal_carries_its_hint() {
        let error = with_server(
            |_| Answer::error("no", "do"),
            |path| request(path, Request::Status).expect_err("a refusal"),
        );
        match error {
            ClientError::Refused { message, hint } => {
                assert_eq!((message.as_str(), hint.as_deref()), ("no", Some("do")));
            }
            other => panic!("not a refusal: {other}"),
        }
    }

    /// O9: garbage on the socket is answered with an error, and the next client is served.
    #[test]
    fn garbage_is_answered_and_others_are_served() {
        let lines = with_server(
            |_| Answer::done(),
            |path| {
                let mut answers = Vec::new();
                for garbage in [
                    "nonsense\n",
                    "{\"version\":99,\"request\":\"status\"}\n",
                    "{\"version\":1,\"request\":\"no-such-thing\"}\n",
                    "\u{0}\u{1}\n",
                    "{\"version\":1,\"request\":\"endpoint-add\"}\n",
                ] {
                    let mut stream = UnixStream::connect(path).expect("the socket is there");
                    stream.write_all(garbage.as_bytes()).expect("it takes a line");
                    let mut line = String::new();
                    BufReader::new(stream).read_line(&mut line).expect("it answers");
                    answers.push(line);
                }
                // A line without an end.
                let mut stream = UnixStream::connect(path).expect("the socket is there");
                let _ = stream.write_all(&vec![b'x'; MAX_LINE as usize]);
                let mut line = String::new();
                BufReader::new(stream).read_line(&mut line).expect("it answers");
                answers.push(line);
                request(path, Request::Status).expect("a proper request is served after all that");
                answers
            },
        );
        assert_eq!(lines.len(), 6);
        for line in &lines {
            let answer: Answer = serde_json::from_str(line).expect("an answer is JSON");
            assert!(!answer.ok && answer.error.is_some(), "{line}");
        }
        assert!(lines[1].contains("99"), "the version is named: {}", lines[1]);
    }

    #[test]
    fn an_absent_agent_is_told_from_a_broken_one() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("agent.sock");
        let error = request(&path, Request::Status).expect_err("nobody listens");
        assert!(matches!(error, ClientError::Absent { .. }), "{error}");
    }
}
