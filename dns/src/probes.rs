//! `/health`, `/ready` and `/metrics` over HTTP.
//!
//! A prober sends a line and wants a status; a web server's worth of dependencies would serve it no
//! better. A connection carries one request of a bounded size, in a bounded time, and there are only
//! so many at once.

use std::borrow::Cow;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, Semaphore};
use tokio::time::timeout;

use crate::resolver::Resolver;

/// The longest request head that is read, in octets.
const MAX_HEAD: usize = 4096;
/// How many connections are served at once.
const MAX_CONNECTIONS: usize = 64;
/// How long a request and its response may take.
const DEADLINE: Duration = Duration::from_secs(3);
/// How long to wait after a failed accept.
const BACKOFF: Duration = Duration::from_millis(100);

/// What the probes tell of.
#[derive(Debug)]
pub struct Health {
    resolver: Arc<Resolver>,
    stopping: AtomicBool,
    /// Tells those that hold a connection for a later request.
    stops: Notify,
    broken: AtomicBool,
}

impl Health {
    /// The health of a server with this resolver.
    pub fn new(resolver: Arc<Resolver>) -> Self {
        Self {
            resolver,
            stopping: AtomicBool::new(false),
            stops: Notify::new(),
            broken: AtomicBool::new(false),
        }
    }

    /// From now on the server is not ready: it still answers, and clients should go elsewhere.
    /// Connections without a request are closed: who holds one open to learn of a change asks again.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
        self.stops.notify_waiters();
    }

    /// From now on the server is not healthy: something ended that should not, and a restart is
    /// the remedy. It goes on answering what it knows.
    pub fn fail(&self) {
        self.broken.store(true, Ordering::Relaxed);
    }

    /// Whether clients may be sent here: the source has been read, and no stop is under way.
    pub fn ready(&self) -> bool {
        !self.stopping.load(Ordering::Relaxed) && self.resolver.zone().synced()
    }

    /// Status and body for a request's method and path.
    fn response(&self, method: &str, path: &str) -> (&'static str, Cow<'static, str>) {
        let path = path.split('?').next().unwrap_or_default();
        if let ("GET" | "HEAD", "/metrics") = (method, path) {
            let samples = self.resolver.settings().forwarder.samples();
            return ("200 OK", self.resolver.metrics().render(&samples).into());
        }
        let (status, body) = self.probe(method, path);
        (status, body.into())
    }

    fn probe(&self, method: &str, path: &str) -> (&'static str, &'static str) {
        match (method, path) {
            ("GET" | "HEAD", "/health" | "/healthz" | "/livez")
                if self.broken.load(Ordering::Relaxed) =>
            {
                ("503 Service Unavailable", "the source is not followed any more\n")
            }
            ("GET" | "HEAD", "/health" | "/healthz" | "/livez") => ("200 OK", "OK\n"),
            ("GET" | "HEAD", "/ready" | "/readyz") if self.ready() => ("200 OK", "OK\n"),
            ("GET" | "HEAD", "/ready" | "/readyz") => {
                let why = if self.stopping.load(Ordering::Relaxed) {
                    "stopping\n"
                } else {
                    "the source has not been read yet\n"
                };
                ("503 Service Unavailable", why)
            }
            ("GET" | "HEAD", _) => ("404 Not Found", "there are /health, /ready and /metrics\n"),
            _ => ("405 Method Not Allowed", "only GET and HEAD\n"),
        }
    }
}

/// Serves the probes for ever.
pub async fn serve(listener: TcpListener, health: Arc<Health>) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let Ok(place) = Arc::clone(&places).try_acquire_owned() else { continue };
                let health = Arc::clone(&health);
                tokio::spawn(async move {
                    // A prober that breaks off is no event.
                    let _ = timeout(DEADLINE, respond(stream, &health)).await;
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "accept of a probe failed");
                tokio::time::sleep(BACKOFF).await;
            }
        }
    }
}

async fn respond(mut stream: TcpStream, health: &Health) -> io::Result<()> {
    let head = tokio::select! {
        head = read_head(&mut stream) => head?,
        () = health.stops.notified() => return Ok(()),
    };
    let mut words = head.lines().next().unwrap_or_default().split(' ');
    let (method, path, version) = (words.next(), words.next(), words.next());
    let (status, body) = match (method, path, version) {
        (Some(method), Some(path), Some(version)) if version.starts_with("HTTP/1.") => {
            health.response(method, path)
        }
        _ => ("400 Bad Request", "no HTTP/1 request\n".into()),
    };
    let length = body.len();
    let body = if method == Some("HEAD") { "".into() } else { body };
    let response = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\n\
         Content-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    );
    stream.write_all(response.as_bytes()).await?;
    stream.shutdown().await
}

/// Reads up to the empty line. What is longer than any prober's head is cut off, and is no request.
async fn read_head(stream: &mut TcpStream) -> io::Result<String> {
    let mut head = Vec::new();
    while head.len() < MAX_HEAD && !head.windows(4).any(|end| end == b"\r\n\r\n") {
        let mut part = [0; 512];
        match stream.read(&mut part).await? {
            0 => break,
            length => head.extend_from_slice(&part[..length]),
        }
    }
    if head.len() >= MAX_HEAD {
        head.clear();
    }
    Ok(String::from_utf8_lossy(&head).into_owned())
}

#[cfg(test)]
mod tests;
