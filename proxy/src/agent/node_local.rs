//! The Service that every node serves by itself, as the cluster's DNS: which of this node's endpoints
//! of it take queries now.
//!
//! An EndpointSlice tells it late: a readiness probe fails three times before kubelet says so, and
//! the API server and this node's source come after that. So each endpoint of this node is asked
//! itself, at its `/ready`, by a task of its own. The connection for the next request is always open
//! already: the kernel closes it when the endpoint's process dies, by whatever cause, so that this is
//! known at once, and not only when the next request is due.
//!
//! What is found out only takes away: an endpoint that the source does not call ready is not made so
//! here. Where nothing but an endpoint that does not answer is left, it is used all the same, since
//! what keeps this node from asking need not keep clients from it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use sluice_model::{Conditions, Endpoint, ObjectName, Protocol};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// How long after an answer the next one is asked for.
const STEADY: Duration = Duration::from_millis(500);
/// The same while the endpoint is not ready.
const EAGER: Duration = Duration::from_millis(50);
/// How soon it is asked again at most, whatever it does with its connections.
const PAUSE: Duration = Duration::from_millis(20);
/// How long a request may take.
const PATIENCE: Duration = Duration::from_secs(2);
/// An endpoint without `/ready` has to accept connections so many times in a row to be ready.
const ACCEPTED: u32 = 10;
/// An endpoint that had a `/ready` may have come back without one, if so many requests in a row found
/// it at its port and not there.
const WITHOUT: u32 = 200;
/// The longest status line that is read, in octets.
const STATUS: usize = 64;

/// What an endpoint of this node is found to be.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Answers {
    /// It has not been asked to the end.
    #[default]
    Unknown,
    /// It takes queries.
    Ready,
    /// It is not ready, by its own account: it has not read its source yet, or it is about to stop.
    NotReady,
    /// Nothing answers there.
    Nothing,
}

/// What a request came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Outcome {
    /// `/ready` said so or not.
    Said(bool),
    /// Something is wrong with `/ready`; whether the port of the Service accepts connections.
    NoReady { accepts: bool },
}

/// What is known of an endpoint from what its requests came to. Pure.
#[derive(Clone, Debug, Default)]
struct Judge {
    /// `/ready` was there.
    has_ready: bool,
    /// So many times in a row it was not, but the Service's port was.
    accepted: u32,
}

impl Judge {
    fn judge(&mut self, outcome: Outcome) -> Answers {
        match outcome {
            Outcome::Said(ready) => {
                *self = Self { has_ready: true, accepted: 0 };
                if ready { Answers::Ready } else { Answers::NotReady }
            }
            Outcome::NoReady { accepts: false } => {
                self.accepted = 0;
                Answers::Nothing
            }
            Outcome::NoReady { accepts: true } => {
                self.accepted = self.accepted.saturating_add(1);
                self.has_ready &= self.accepted < WITHOUT;
                if self.has_ready || self.accepted < ACCEPTED {
                    Answers::Nothing
                } else {
                    Answers::Ready
                }
            }
        }
    }
}

/// The node-local Service, and its endpoints on this node.
#[derive(Debug)]
pub struct NodeLocal {
    /// The Service; `None` if the node has none.
    service: Option<ObjectName>,
    node: String,
    ready_port: u16,
    asked: BTreeMap<IpAddr, Asked>,
    /// Endpoints that the kernel had when the agent began: an agent before this one found them ready.
    restored: BTreeSet<IpAddr>,
    reports: mpsc::UnboundedReceiver<(IpAddr, Answers)>,
    reporter: mpsc::UnboundedSender<(IpAddr, Answers)>,
}

/// An endpoint that is being asked.
#[derive(Debug)]
struct Asked {
    /// Its port of the Service, for streams.
    port: Option<u16>,
    answers: Answers,
    task: JoinHandle<()>,
}

impl Drop for Asked {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl NodeLocal {
    /// The Service `service` on the node called `node`, whose endpoints have `/ready` at `ready_port`.
    pub fn new(service: Option<ObjectName>, node: String, ready_port: u16) -> Self {
        let (reporter, reports) = mpsc::unbounded_channel();
        let (asked, restored) = (BTreeMap::new(), BTreeSet::new());
        Self { service, node, ready_port, asked, restored, reports, reporter }
    }

    /// Takes these endpoints as ready until they have been asked: the kernel has them, and a new agent
    /// is no reason to change that.
    pub fn restored(&mut self, addrs: impl IntoIterator<Item = IpAddr>) {
        self.restored.extend(addrs);
    }

    /// The Service, if the node has one.
    pub fn service(&self) -> Option<&ObjectName> {
        self.service.as_ref()
    }

    /// Waits for news of an endpoint, takes in all that there is, and names the Service to be stated
    /// again. Cancel-safe; inside a Tokio runtime.
    pub async fn changed(&mut self) -> Option<ObjectName> {
        let mut next = self.reports.recv().await;
        while let Some((addr, answers)) = next {
            if let Some(asked) = self.asked.get_mut(&addr) {
                tracing::info!(endpoint = %addr, ?answers, "the node-local endpoint");
                asked.answers = answers;
            }
            next = self.reports.try_recv().ok();
        }
        self.service.clone()
    }

    /// Asks those of the Service's endpoints that are on this node, and no others, from now on.
    pub fn follow(&mut self, endpoints: &[Endpoint]) {
        let here = |e: &&Endpoint| e.node.as_ref() == Some(&self.node);
        let stream = |endpoint: &Endpoint| {
            let port = endpoint.ports.iter().find(|port| port.protocol == Protocol::Tcp);
            port.and_then(|port| port.port)
        };
        let wanted: BTreeMap<IpAddr, Option<u16>> =
            endpoints.iter().filter(here).map(|e| (e.addr, stream(e))).collect();
        self.asked.retain(|addr, asked| wanted.get(addr) == Some(&asked.port));
        for (addr, port) in wanted {
            let (ready_port, reporter) = (self.ready_port, self.reporter.clone());
            let answers =
                if self.restored.remove(&addr) { Answers::Ready } else { Answers::Unknown };
            self.asked.entry(addr).or_insert_with(|| Asked {
                port,
                answers,
                task: tokio::spawn(ask_for_ever(addr, ready_port, port, reporter)),
            });
        }
    }

    /// The Service's endpoints with what is known of those on this node, for new connections.
    pub fn for_clients(&self, endpoints: Vec<Endpoint>) -> Vec<Endpoint> {
        self.with(endpoints, |known| Conditions {
            ready: false,
            // Where there is no other, it is tried.
            serving: known.serving || known.ready,
            terminating: true,
        })
    }

    /// The same for sockets that are connected already: those that have to look for another endpoint
    /// are told so while theirs still answers, as soon as it says that it is about to stop.
    pub fn for_sockets(&self, endpoints: Vec<Endpoint>) -> Vec<Endpoint> {
        self.with(endpoints, |_| Conditions { ready: false, serving: false, terminating: true })
    }

    fn with(
        &self,
        mut endpoints: Vec<Endpoint>,
        change: impl Fn(Conditions) -> Conditions,
    ) -> Vec<Endpoint> {
        for endpoint in &mut endpoints {
            let asked = self.asked.get(&endpoint.addr);
            if asked.is_some_and(|asked| asked.answers != Answers::Ready) {
                endpoint.conditions = change(endpoint.conditions);
            }
        }
        endpoints
    }

    /// What it does, for people.
    pub fn note(&self) -> String {
        let Some(service) = &self.service else { return String::new() };
        let state = |answers| match answers {
            Answers::Unknown => "not known yet",
            Answers::Ready => "ready",
            Answers::NotReady => "not ready",
            Answers::Nothing => "does not answer",
        };
        let mut note = service.to_string();
        for (addr, asked) in &self.asked {
            note.push_str(&format!(", {addr} {}", state(asked.answers)));
        }
        note
    }
}

/// Asks an endpoint again and again, and reports what is new.
async fn ask_for_ever(
    addr: IpAddr,
    ready_port: u16,
    port: Option<u16>,
    reporter: mpsc::UnboundedSender<(IpAddr, Answers)>,
) {
    let ready = SocketAddr::new(addr, ready_port);
    let mut judge = Judge::default();
    let mut last = Answers::Unknown;
    let mut open = None;
    loop {
        let outcome = match ask(open.take(), ready).await {
            Some(said) => Outcome::Said(said),
            None => Outcome::NoReady { accepts: accepts(addr, port).await },
        };
        let answers = judge.judge(outcome);
        if answers != last && reporter.send((addr, answers)).is_err() {
            return;
        }
        last = answers;
        tokio::time::sleep(PAUSE).await;
        let wait = if answers == Answers::Ready { STEADY } else { EAGER };
        if judge.has_ready {
            open = connect(ready).await;
        }
        match &open {
            // Nothing was asked, so what there is to read is the end.
            Some(stream) => {
                if let Ok(_ended) = tokio::time::timeout(wait, stream.readable()).await {
                    open = None;
                }
            }
            None => tokio::time::sleep(if judge.has_ready { EAGER } else { wait }).await,
        }
    }
}

async fn connect(to: SocketAddr) -> Option<TcpStream> {
    tokio::time::timeout(PATIENCE, TcpStream::connect(to)).await.ok()?.ok()
}

/// Whether the endpoint accepts connections to the Service. That is enough to know: datagrams would
/// be led to another one while it is not ready.
async fn accepts(addr: IpAddr, port: Option<u16>) -> bool {
    match port {
        Some(port) => connect(SocketAddr::new(addr, port)).await.is_some(),
        None => false,
    }
}

/// Asks for `/ready`; `None` where nobody answers in the way of HTTP, or knows no such path.
async fn ask(open: Option<TcpStream>, ready: SocketAddr) -> Option<bool> {
    if let Some(stream) = open {
        let said = tokio::time::timeout(PATIENCE, exchange(stream, ready)).await;
        if let Ok(Some(said)) = said {
            return Some(said);
        }
        // The server may have closed the connection, which waited for long, and nothing else.
    }
    let stream = connect(ready).await?;
    tokio::time::timeout(PATIENCE, exchange(stream, ready)).await.ok()?
}

async fn exchange(mut stream: TcpStream, ready: SocketAddr) -> Option<bool> {
    let request = format!("GET /ready HTTP/1.1\r\nHost: {ready}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.ok()?;
    let (mut line, mut length) = ([0; STATUS], 0);
    while length < STATUS && !line[..length].contains(&b'\n') {
        match stream.read(&mut line[length..]).await.ok()? {
            0 => break,
            count => length += count,
        }
    }
    said(&line[..length])
}

/// What a status line says.
fn said(line: &[u8]) -> Option<bool> {
    let mut words = line.split(|octet| *octet == b' ');
    let version = words.next()?;
    let status = words.next()?;
    if !version.starts_with(b"HTTP/1.") || status.len() != 3 {
        return None;
    }
    match status {
        b"404" => None,
        status => Some(status[0] == b'2'),
    }
}

#[cfg(test)]
mod tests;
