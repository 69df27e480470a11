//! Names outside the cluster: asked of upstream resolvers.
//!
//! Each query goes out from a socket of its own, so the kernel picks an unpredictable port, under a
//! random id; what comes back must carry both and repeat the question (RFC 5452). Upstreams are
//! tried in order. One that does not answer is tried last for a while.

mod cache;
mod exchange;
pub mod resolv_conf;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hickory_proto::op::{Edns, Message, Query, ResponseCode};
use hickory_proto::rr::Name;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout, timeout_at};

use self::cache::{Cache, Key};
use crate::wire::{Request, Transport};

pub use exchange::ExchangeError;

/// How long one upstream may take.
const ATTEMPT: Duration = Duration::from_secs(2);
/// How long all attempts together may take: a stub resolver asks again after five seconds.
const TOTAL: Duration = Duration::from_millis(4800);
/// How long an upstream that did not answer is tried last.
const DEMOTED: Duration = Duration::from_secs(10);
/// How many queries may wait for upstreams at once. Each holds a socket.
const MAX_IN_FLIGHT: usize = 2048;

/// Why no upstream gave an answer.
#[derive(Debug, thiserror::Error)]
pub enum ForwardError {
    /// There is no upstream.
    #[error("no upstream is configured")]
    NoUpstream,
    /// Too many queries wait already.
    #[error("{MAX_IN_FLIGHT} queries wait for upstreams already")]
    Busy,
    /// The query cannot be written.
    #[error("the query cannot be encoded: {0}")]
    Encode(#[source] hickory_proto::ProtoError),
    /// All upstreams failed; this is the last failure.
    #[error("upstream {upstream}: {source}")]
    Failed {
        /// The upstream that was asked last.
        upstream: SocketAddr,
        /// What happened.
        #[source]
        source: ExchangeError,
    },
}

#[derive(Debug)]
struct Upstream {
    addr: SocketAddr,
    /// Milliseconds since the forwarder's start; 0 while the upstream answers.
    demoted_until: AtomicU64,
}

/// The upstream resolvers.
#[derive(Debug)]
pub struct Forwarder {
    upstreams: Vec<Upstream>,
    cache: Cache,
    in_flight: Semaphore,
    started: Instant,
}

impl Forwarder {
    /// A forwarder to these upstreams, the first of them preferred, that keeps about
    /// `cache_entries` answers.
    pub fn new(upstreams: impl IntoIterator<Item = SocketAddr>, cache_entries: usize) -> Self {
        let upstream = |addr| Upstream { addr, demoted_until: AtomicU64::new(0) };
        Self {
            upstreams: upstreams.into_iter().map(upstream).collect(),
            cache: Cache::new(cache_entries),
            in_flight: Semaphore::new(MAX_IN_FLIGHT),
            started: Instant::now(),
        }
    }

    /// Whether there is no upstream at all.
    pub fn is_empty(&self) -> bool {
        self.upstreams.is_empty()
    }

    /// What is kept of an earlier answer to the same.
    pub fn cached(&self, request: &Request, name: &Name) -> Option<Message> {
        let key = Key::new(request, name)?;
        self.cache.get(&key, name, Instant::now())
    }

    /// Asks for `name` with the type of the request's question. The transport is the client's: who
    /// came by TCP wants the whole answer.
    ///
    /// # Errors
    ///
    /// No upstream answered in time. An answer that tells of an error is no error here.
    pub async fn ask(
        &self,
        request: &Request,
        name: &Name,
        transport: Transport,
    ) -> Result<Message, ForwardError> {
        if self.is_empty() {
            return Err(ForwardError::NoUpstream);
        }
        let result = self.ask_upstreams(request, name, transport).await;
        if let (Ok(message), Some(key)) = (&result, Key::new(request, name)) {
            self.cache.put(key, message, Instant::now());
        }
        result
    }

    async fn ask_upstreams(
        &self,
        request: &Request,
        name: &Name,
        transport: Transport,
    ) -> Result<Message, ForwardError> {
        let _permit = self.in_flight.try_acquire().map_err(|_| ForwardError::Busy)?;
        let deadline = Instant::now() + TOTAL;
        let mut refusal = None;
        let mut failure = None;
        for (upstream, again) in self.order() {
            if again && refusal.is_some() {
                // It did answer; the same question has the same answer.
                break;
            }
            let query = query(request, name);
            let bytes = query.to_vec().map_err(ForwardError::Encode)?;
            let exchange = async {
                let attempt = exchange::exchange(upstream.addr, &query, &bytes, transport);
                timeout(ATTEMPT, attempt).await.unwrap_or(Err(ExchangeError::Timeout))
            };
            let result =
                timeout_at(deadline, exchange).await.unwrap_or(Err(ExchangeError::Timeout));
            self.mark(upstream, result.as_ref().err());
            match result {
                Ok(message)
                    if matches!(
                        message.metadata.response_code,
                        ResponseCode::ServFail | ResponseCode::Refused | ResponseCode::NotImp
                    ) =>
                {
                    // Another may know better, as a stub resolver would try.
                    refusal = Some(message);
                }
                Ok(message) => return Ok(message),
                Err(source) => {
                    failure = Some(ForwardError::Failed { upstream: upstream.addr, source });
                }
            }
            if Instant::now() >= deadline {
                break;
            }
        }
        match (refusal, failure) {
            (Some(message), _) => Ok(message),
            (None, failure) => Err(failure.unwrap_or(ForwardError::NoUpstream)),
        }
    }

    /// The upstreams in the order to try them: those that answer first. One alone gets a second
    /// try, marked as such, since a datagram may be lost.
    fn order(&self) -> Vec<(&Upstream, bool)> {
        let now = self.now();
        let demoted = |u: &&Upstream| u.demoted_until.load(Ordering::Relaxed) > now;
        let (last, first): (Vec<_>, Vec<_>) = self.upstreams.iter().partition(demoted);
        let mut order: Vec<_> = first.into_iter().chain(last).map(|u| (u, false)).collect();
        if let [(only, _)] = order[..] {
            order.push((only, true));
        }
        order
    }

    fn mark(&self, upstream: &Upstream, failure: Option<&ExchangeError>) {
        let until = match failure {
            None => 0,
            Some(_) => self.now() + millis(DEMOTED),
        };
        let before = upstream.demoted_until.swap(until, Ordering::Relaxed);
        match failure {
            Some(error) if before == 0 => {
                tracing::warn!(upstream = %upstream.addr, %error, "an upstream does not answer");
            }
            None if before != 0 => {
                tracing::info!(upstream = %upstream.addr, "an upstream answers again");
            }
            _ => {}
        }
    }

    fn now(&self) -> u64 {
        millis(self.started.elapsed())
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// The query for an upstream: what the client asked, under an id of our own. An upstream sees EDNS
/// if the client spoke it, so its errors about EDNS reach whom they concern.
fn query(request: &Request, name: &Name) -> Message {
    let mut query = Message::query();
    query.metadata.recursion_desired = request.recursion_desired;
    query.metadata.authentic_data = request.authentic_data;
    query.metadata.checking_disabled = request.checking_disabled;
    query.add_query(Query::query(name.clone(), request.question.query_type()));
    if let Some(client) = request.edns {
        let mut edns = Edns::new();
        edns.set_max_payload(request.limit(Transport::Udp));
        edns.set_dnssec_ok(client.dnssec_ok);
        query.set_edns(edns);
    }
    query
}
