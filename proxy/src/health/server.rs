//! The servers: sockets, HTTP by hyper, and who answers at which path.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use sluice_model::ObjectName;
use socket2::{Domain, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;

use super::answer::{self, Answer, WEIGHT_HEADER};
use super::collector::Collector;
use super::node_ports::NodePorts;
use super::shared::Shared;
use super::{Config, Refresh, ServiceCheck};

/// How long a client may take to send a request, and how long a connection may be idle.
const READ_TIMEOUT: Duration = Duration::from_secs(10);
/// Largest head of a request in bytes; no probe comes near it.
const MAX_HEAD: usize = 16 * 1024;
/// Connections of one server at once; further ones wait in the socket's backlog.
const MAX_CONNECTIONS: usize = 64;
/// Length of that backlog.
const BACKLOG: i32 = 128;
/// Until an address that could not be had is tried again, as in kube-proxy.
const BIND_AGAIN: Duration = Duration::from_secs(5);
/// How long a scrape waits for a busy loop before it is answered with the figures of the last one.
const REFRESH_TIMEOUT: Duration = Duration::from_millis(250);

/// Serves until the loop's end is dropped.
pub(super) async fn run(
    config: Config,
    shared: Arc<Shared>,
    mut wanted: watch::Receiver<BTreeMap<ObjectName, ServiceCheck>>,
    refresh: mpsc::Sender<Refresh>,
) {
    let mut servers = JoinSet::new();
    if let Some(addr) = config.healthz.0 {
        let state = Arc::clone(&shared);
        let answers = move |path: String| std::future::ready(node(&state, &path));
        servers.spawn(listen("healthz".to_owned(), addr, Arc::clone(&shared), answers));
    }
    if let Some(addr) = config.metrics.0 {
        let collector = Collector::new(config.maps, config.source, Arc::clone(&shared));
        let scrape = Arc::new(Scrape { registry: shared.metrics.registry(collector), refresh });
        let answers = move |path: String| {
            let scrape = Arc::clone(&scrape);
            async move {
                match answer::metrics_path(&path) {
                    Some(answer) => answer,
                    None => scrape.answer().await,
                }
            }
        };
        servers.spawn(listen("metrics".to_owned(), addr, Arc::clone(&shared), answers));
    }
    let mut ports = NodePorts::new(shared, wanted.clone());
    loop {
        let checks = wanted.borrow_and_update().clone();
        ports.reconcile(&checks).await;
        if wanted.changed().await.is_err() {
            return;
        }
    }
}

/// The paths of `--healthz-bind-address`.
fn node(shared: &Shared, path: &str) -> Answer {
    let verdict = shared.verdict(Instant::now());
    match path {
        "/healthz" => {
            let answer = answer::healthz(&verdict, SystemTime::now());
            shared.metrics.healthz(answer.status);
            answer
        }
        "/livez" => {
            let answer = answer::livez(&verdict, SystemTime::now());
            shared.metrics.livez(answer.status);
            answer
        }
        _ => Answer::not_found(),
    }
}

/// Answers `/metrics`.
struct Scrape {
    registry: prometheus_client::registry::Registry,
    refresh: mpsc::Sender<Refresh>,
}

impl Scrape {
    async fn answer(&self) -> Answer {
        let (done, refreshed) = oneshot::channel();
        // Two scrapes at once, or a loop that is busy: the figures of a moment ago will do.
        if self.refresh.try_send(done).is_ok() {
            let _ = tokio::time::timeout(REFRESH_TIMEOUT, refreshed).await;
        }
        let mut text = String::new();
        match prometheus_client::encoding::text::encode(&mut text, &self.registry) {
            Ok(()) => Answer::metrics(text),
            Err(error) => Answer::failed(&format!("cannot write the figures: {error}")),
        }
    }
}

/// Listens on `addr`, trying again as long as it cannot be had, and answers every request with what
/// `answers` says of its path. Ends only when it is dropped, and its connections with it.
pub(super) async fn listen<A, F>(subject: String, addr: SocketAddr, shared: Arc<Shared>, answers: A)
where
    A: Fn(String) -> F + Clone + Send + 'static,
    F: Future<Output = Answer> + Send + 'static,
{
    let listener = loop {
        match bind(addr) {
            Ok((listener, bound)) => {
                tracing::info!("{subject}: answering on {bound}");
                shared.opened(&subject, bound);
                break listener;
            }
            Err(error) => {
                let problem = format!("cannot listen on {addr}: {error}");
                if shared.refused(&subject, &problem) {
                    tracing::warn!("{subject}: {problem}; trying again every {BIND_AGAIN:?}");
                }
                tokio::time::sleep(BIND_AGAIN).await;
            }
        }
    };
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept(), if connections.len() < MAX_CONNECTIONS => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(converse(stream, answers.clone()));
                }
                Err(error) => {
                    // Out of file descriptors, most likely: nothing to do but to wait for some.
                    tracing::debug!("{subject}: accept: {error}");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

/// A socket that listens; `[::]` takes IPv4 as well, whatever the node's `bindv6only` says.
fn bind(addr: SocketAddr) -> io::Result<(TcpListener, SocketAddr)> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, None)?;
    if addr.is_ipv6() {
        socket.set_only_v6(!addr.ip().is_unspecified())?;
    }
    // Connections of the agent before this one may still be in TIME_WAIT.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&addr.into())?;
    socket.listen(BACKLOG)?;
    let listener = TcpListener::from_std(socket.into())?;
    let bound = listener.local_addr()?;
    Ok((listener, bound))
}

async fn converse<A, F>(stream: TcpStream, answers: A)
where
    A: Fn(String) -> F + Clone + Send,
    F: Future<Output = Answer> + Send,
{
    let service = service_fn(move |request: Request<Incoming>| {
        let answers = answers.clone();
        async move {
            let answer = match *request.method() {
                Method::GET | Method::HEAD => answers(request.uri().path().to_owned()).await,
                _ => Answer::method_not_allowed(),
            };
            Ok::<_, Infallible>(response(answer))
        }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(READ_TIMEOUT)
        .max_header_size(MAX_HEAD)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "a client of a health or metrics port left");
    }
}

fn response(answer: Answer) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(answer.body));
    *response.status_mut() =
        StatusCode::from_u16(answer.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(answer.content_type));
    headers.insert("x-content-type-options", HeaderValue::from_static("nosniff"));
    if let Some(weight) = answer.weight {
        headers.insert(WEIGHT_HEADER, HeaderValue::from(weight));
    }
    response
}
