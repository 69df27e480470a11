//! Names outside the cluster: asked of upstream resolvers.
//!
//! Each query goes out from a socket of its own, so the kernel picks an unpredictable port, under a
//! random id; what comes back must carry both and repeat the question (RFC 5452).
//!
//! Upstreams are chosen by a policy among those that answer. One that fails is probed twice a second
//! until it answers again; once it has failed [`MAX_FAILS`] times in a row it is tried only after
//! all others.

mod cache;
mod exchange;
pub mod resolv_conf;
mod target;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use hickory_proto::op::{Edns, Message, Query, ResponseCode};
use hickory_proto::rr::{Name, RecordType};
use rustls::ClientConfig;
use tokio::time::{Instant, timeout_at};
use tokio_rustls::TlsConnector;

use self::cache::{Cache, Key};
use self::exchange::Peer;
use crate::fast::{self, Buffer, Done};
use crate::metrics::{Event, Metrics, Sample, Shard};
use crate::tls::{self, TlsError};
use crate::wire::{Request, Transport};

pub use cache::{CacheOptions, Cached};
pub use exchange::ExchangeError;
pub use target::Target;

/// How long one upstream may take.
const ATTEMPT: Duration = Duration::from_secs(2);
/// How long all attempts together may take: a stub resolver asks again after five seconds.
const TOTAL: Duration = Duration::from_millis(4800);
/// How long a client waits for the upstreams where there is an answer that has run out (RFC 8767
/// section 5 recommends this).
const STALE_PATIENCE: Duration = Duration::from_millis(1800);
/// How often in a row an upstream must fail to be tried last, as in CoreDNS.
const MAX_FAILS: u64 = 2;
/// How often an upstream that failed is probed, as in CoreDNS.
const PROBE_PERIOD: Duration = Duration::from_millis(500);

/// Why no upstream gave an answer.
#[derive(Debug, thiserror::Error)]
pub enum ForwardError {
    /// There is no upstream.
    #[error("no upstream is configured")]
    NoUpstream,
    /// There was no time left to ask: too many queries are under way.
    #[error("too many queries are under way, and none of them ended in time")]
    Busy,
    /// No upstream answers, or none in the time that a client should wait for what is stale.
    #[error("no upstream answers")]
    AllDown,
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

/// Where an answer comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Origin {
    /// From this upstream.
    Upstream(SocketAddr),
    /// It had been kept, had run out, and no upstream has a newer one.
    Stale,
}

/// Which upstream is asked first.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, clap::ValueEnum)]
#[value(rename_all = "snake_case")]
pub enum Policy {
    /// Any.
    Random,
    /// Each in turn.
    RoundRobin,
    /// The first that answers, in the order given.
    #[default]
    Sequential,
}

/// Where the names below a domain are asked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Stub {
    /// The domain.
    pub domain: Name,
    /// Its upstreams.
    pub upstreams: Vec<Target>,
}

/// Whom upstreams over TLS are certified by.
#[derive(Clone, Debug, Default)]
pub struct Trust {
    authorities: Option<PathBuf>,
    config: Option<Arc<ClientConfig>>,
}

impl PartialEq for Trust {
    /// Of the same file, or both of the system.
    fn eq(&self, other: &Self) -> bool {
        self.authorities == other.authorities && self.config.is_some() == other.config.is_some()
    }
}

impl Eq for Trust {}

impl Trust {
    /// The authorities of a PEM file, or else those that the system trusts.
    ///
    /// # Errors
    ///
    /// There are none, or they cannot be read.
    pub fn load(authorities: Option<&Path>) -> Result<Self, TlsError> {
        let config = tls::client(authorities)?;
        Ok(Self { authorities: authorities.map(Path::to_owned), config: Some(config) })
    }
}

/// All that a forwarder is made from.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ForwardOptions {
    /// The upstreams.
    pub upstreams: Vec<Target>,
    /// Domains that have upstreams of their own.
    pub stubs: Vec<Stub>,
    /// Which is asked first.
    pub policy: Policy,
    /// How answers are kept.
    pub cache: CacheOptions,
    /// Who certifies the upstreams over TLS; without it those cannot be asked, and are left out.
    pub trust: Trust,
}

#[derive(Debug)]
struct Upstream {
    peer: Arc<Peer>,
    /// Failures in a row.
    fails: AtomicU64,
    probing: AtomicBool,
    metrics: Arc<Metrics>,
    /// Failed probes.
    probe_failures: AtomicU64,
    /// Exchanges that failed.
    failures: AtomicU64,
    /// Exchanges that brought an answer.
    answers: AtomicU64,
    /// How long those took together, in microseconds.
    micros: AtomicU64,
}

impl Upstream {
    fn new(peer: Peer, metrics: &Arc<Metrics>) -> Arc<Self> {
        Arc::new(Self {
            peer: Arc::new(peer),
            metrics: Arc::clone(metrics),
            fails: AtomicU64::new(0),
            probing: AtomicBool::new(false),
            probe_failures: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            answers: AtomicU64::new(0),
            micros: AtomicU64::new(0),
        })
    }

    fn down(&self) -> bool {
        self.fails.load(Ordering::Relaxed) >= MAX_FAILS
    }

    /// Counts an answer, to a query or a probe.
    fn answered(&self) {
        if self.fails.swap(0, Ordering::Relaxed) >= MAX_FAILS {
            tracing::info!(upstream = %self.peer.addr, "an upstream answers again");
        }
    }

    /// Counts a failure, and probes until the upstream answers.
    fn failed(self: &Arc<Self>, error: &ExchangeError) {
        self.failures.fetch_add(1, Ordering::Relaxed);
        if self.fails.fetch_add(1, Ordering::Relaxed) + 1 == MAX_FAILS {
            tracing::warn!(upstream = %self.peer.addr, %error, "an upstream does not answer");
        }
        if self.probing.swap(true, Ordering::Relaxed) {
            return;
        }
        // Weak, so that probing ends with the upstream: a new configuration has others.
        let (weak, peer) = (Arc::downgrade(self), Arc::clone(&self.peer));
        let metrics = Arc::clone(&self.metrics);
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(PROBE_PERIOD).await;
                let ok = peer.probe(ATTEMPT, metrics.shared()).await;
                let Some(upstream) = weak.upgrade() else { return };
                if ok {
                    upstream.probing.store(false, Ordering::Relaxed);
                    upstream.answered();
                    return;
                }
                upstream.probe_failures.fetch_add(1, Ordering::Relaxed);
                if upstream.fails.fetch_add(1, Ordering::Relaxed) + 1 == MAX_FAILS {
                    tracing::warn!(upstream = %peer.addr, "an upstream does not answer");
                }
            }
        });
    }
}

/// Upstreams for a domain; that of the root is for all other names.
#[derive(Debug)]
struct Group {
    domain: Name,
    upstreams: Vec<Arc<Upstream>>,
    next: AtomicUsize,
}

/// The upstream resolvers.
#[derive(Debug)]
pub struct Forwarder {
    /// The longest domain first.
    groups: Vec<Group>,
    options: ForwardOptions,
    cache: Cache,
    metrics: Arc<Metrics>,
}

impl Forwarder {
    /// A forwarder to these upstreams, the first of them preferred, that keeps about
    /// `cache_entries` answers.
    pub fn new(upstreams: impl IntoIterator<Item = SocketAddr>, cache_entries: usize) -> Self {
        let cache = CacheOptions { entries: cache_entries, ..CacheOptions::default() };
        let upstreams = upstreams.into_iter().map(Target::from).collect();
        let options = ForwardOptions { upstreams, cache, ..ForwardOptions::default() };
        Self::with_options(options, Arc::default())
    }

    /// A forwarder with these options, which counts there.
    pub fn with_options(options: ForwardOptions, metrics: Arc<Metrics>) -> Self {
        let connector = options.trust.config.clone().map(TlsConnector::from);
        let upstream = |target: Target| {
            let tls = match target.tls {
                None => None,
                Some(name) => Some((connector.clone()?, name)),
            };
            Some(Upstream::new(Peer::new(target.addr, tls), &metrics))
        };
        let group = |domain: Name, upstreams: Vec<Target>| Group {
            domain: domain.to_lowercase(),
            upstreams: upstreams.into_iter().filter_map(upstream).collect(),
            next: AtomicUsize::new(0),
        };
        let stubs = options.stubs.iter().cloned();
        let stubs = stubs.map(|stub| group(stub.domain, stub.upstreams));
        let mut groups: Vec<Group> =
            stubs.chain([group(Name::root(), options.upstreams.clone())]).collect();
        groups.retain(|group| !group.upstreams.is_empty());
        groups.sort_by_key(|group| std::cmp::Reverse(group.domain.iter().len()));
        Self { groups, cache: Cache::new(options.cache), options, metrics }
    }

    /// Where it counts.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// What it was made from.
    pub fn options(&self) -> &ForwardOptions {
        &self.options
    }

    /// Whether there is no upstream at all.
    pub fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }

    /// What is kept of an earlier answer to the same.
    pub fn cached(&self, request: &Request, name: &Name, shard: &Shard) -> Option<Cached> {
        let key = Key::new(request, name)?;
        let found = self.cache.get(&key, name, Instant::now());
        shard.event(match &found {
            None => Event::CacheMiss,
            Some(found) if found.denial => Event::CacheDenial,
            Some(_) => Event::CacheHit,
        });
        found
    }

    /// The same for a common query, straight into a buffer.
    pub(crate) fn cached_fast(
        &self,
        query: &fast::Query<'_>,
        now: Instant,
        out: &mut Buffer,
        shard: &Shard,
    ) -> Option<Done> {
        let (done, denial) = self.cache.write(query, now, out)?;
        shard.event(if denial { Event::CacheDenial } else { Event::CacheHit });
        Some(done)
    }

    /// Asks for `name` with the type of the request's question. The transport is the client's: who
    /// came by TCP wants the whole answer. An answer that has run out is better than none. The
    /// client has waited since `begin`; `None` where it has no more time for upstreams.
    ///
    /// # Errors
    ///
    /// No upstream answered in time. An answer that tells of an error is no error here.
    pub async fn ask(
        &self,
        request: &Request,
        name: &Name,
        transport: Transport,
        begin: Option<Instant>,
    ) -> Result<(Message, Origin), ForwardError> {
        let until = |patience| begin.map_or_else(Instant::now, |begin| begin + patience);
        let Some(key) = Key::new(request, name) else {
            return self.ask_upstreams(request, name, transport, until(TOTAL)).await;
        };
        let kept = self.cache.has_stale(&key, Instant::now());
        let patience = self.patience_with(kept, name);
        let result = if patience.is_zero() {
            Err(ForwardError::AllDown)
        } else {
            self.ask_upstreams(request, name, transport, until(patience)).await
        };
        let failed = match &result {
            Ok((message, _)) => message.metadata.response_code == ResponseCode::ServFail,
            Err(_) => true,
        };
        if failed {
            self.cache.not_refreshed(&key);
            if kept && let Some(stale) = self.cache.stale(&key, name, Instant::now()) {
                self.metrics.shared().event(Event::CacheStale);
                return Ok((stale, Origin::Stale));
            }
        }
        if let Ok((message, _)) = &result {
            let evicted = self.cache.put(key, message, Instant::now());
            self.metrics.shared().events(Event::CacheEviction, evicted);
        }
        result
    }

    /// How long a client may wait for upstreams to answer for `name`.
    pub fn patience(&self, request: &Request, name: &Name) -> Duration {
        let key = Key::new(request, name);
        let kept = key.is_some_and(|key| self.cache.has_stale(&key, Instant::now()));
        self.patience_with(kept, name)
    }

    fn patience_with(&self, kept: bool, name: &Name) -> Duration {
        match kept {
            false => TOTAL,
            // Probing finds out when one of them answers again; no client need wait for that.
            true if self.all_down(name) => Duration::ZERO,
            true => STALE_PATIENCE,
        }
    }

    /// Says that an answer that was due to be asked for again is not.
    pub fn forgo(&self, request: &Request, name: &Name) {
        if let Some(key) = Key::new(request, name) {
            self.cache.not_refreshed(&key);
        }
    }

    async fn ask_upstreams(
        &self,
        request: &Request,
        name: &Name,
        transport: Transport,
        deadline: Instant,
    ) -> Result<(Message, Origin), ForwardError> {
        let group = self.group(name).ok_or(ForwardError::NoUpstream)?;
        let mut refusal = None;
        let mut failure = ForwardError::Busy;
        for (upstream, again) in self.order(group) {
            let begin = Instant::now();
            if begin >= deadline || again && refusal.is_some() {
                // It did answer; the same question has the same answer.
                break;
            }
            let until = deadline.min(begin + ATTEMPT);
            let query = query(request, name);
            let bytes = query.to_vec().map_err(ForwardError::Encode)?;
            let shard = self.metrics.shared();
            let exchange = upstream.peer.exchange((&query, &bytes), transport, shard);
            let result = timeout_at(until, exchange).await.unwrap_or(Err(ExchangeError::Timeout));
            match &result {
                Ok(_) => {
                    let micros = u64::try_from(begin.elapsed().as_micros()).unwrap_or(u64::MAX);
                    upstream.micros.fetch_add(micros, Ordering::Relaxed);
                    upstream.answers.fetch_add(1, Ordering::Relaxed);
                    upstream.answered();
                }
                // That it was not given its time says nothing about it.
                Err(ExchangeError::Timeout) if until == deadline => {}
                Err(error) => upstream.failed(error),
            }
            match result {
                Ok(message)
                    if matches!(
                        message.metadata.response_code,
                        ResponseCode::ServFail | ResponseCode::Refused | ResponseCode::NotImp
                    ) =>
                {
                    // Another may know better, as a stub resolver would try.
                    refusal = Some((message, Origin::Upstream(upstream.peer.addr)));
                }
                Ok(message) => return Ok((message, Origin::Upstream(upstream.peer.addr))),
                Err(source) => {
                    failure = ForwardError::Failed { upstream: upstream.peer.addr, source };
                }
            }
        }
        refusal.ok_or(failure)
    }

    /// The domain whose upstreams a name is asked of; the root for all but stub domains.
    pub(crate) fn domain_of(&self, name: &Name) -> Option<&Name> {
        self.group(name).map(|group| &group.domain)
    }

    fn group(&self, name: &Name) -> Option<&Group> {
        self.groups.iter().find(|group| group.domain.zone_of(name))
    }

    /// Whether no upstream for a name answers at the moment.
    fn all_down(&self, name: &Name) -> bool {
        self.group(name).is_none_or(|group| group.upstreams.iter().all(|it| it.down()))
    }

    /// The upstreams in the order to try them: as the policy says, those that answer first. One
    /// alone gets a second try, marked as such, since a datagram may be lost.
    fn order<'g>(&self, group: &'g Group) -> Vec<(&'g Arc<Upstream>, bool)> {
        let count = group.upstreams.len();
        let first = match self.options.policy {
            Policy::Sequential => 0,
            Policy::RoundRobin => group.next.fetch_add(1, Ordering::Relaxed) % count,
            Policy::Random => {
                // Any spread does here; the id of a new message is a random number.
                usize::from(Message::query().metadata.id) % count
            }
        };
        let turned = group.upstreams[first..].iter().chain(&group.upstreams[..first]);
        let (down, up): (Vec<_>, Vec<_>) = turned.partition(|upstream| upstream.down());
        if up.is_empty() {
            self.metrics.shared().event(Event::HealthcheckBroken);
        }
        let mut order: Vec<_> = up.into_iter().chain(down).map(|it| (it, false)).collect();
        if let [(only, _)] = order[..] {
            order.push((only, true));
        }
        order
    }

    /// What a scrape shows beside the counters.
    pub fn samples(&self) -> Vec<Sample> {
        let (positive, denials) = self.cache.len();
        let entries = |kind: &str, value: usize| Sample {
            name: "coredns_cache_entries",
            kind: "gauge",
            labels: format!("type=\"{kind}\""),
            value: value as f64,
        };
        let mut samples = vec![entries("success", positive), entries("denial", denials)];
        let upstreams = || self.groups.iter().flat_map(|group| &group.upstreams);
        let mut counter = |name, value: fn(&Upstream) -> f64| {
            samples.extend(upstreams().map(|upstream| Sample {
                name,
                kind: "counter",
                labels: format!("proxy_name=\"forward\",to=\"{}\"", upstream.peer.addr),
                value: value(upstream),
            }));
        };
        counter("sluice_dns_upstream_seconds_total", |it| {
            it.micros.load(Ordering::Relaxed) as f64 / 1e6
        });
        counter("sluice_dns_upstream_answers_total", |it| {
            it.answers.load(Ordering::Relaxed) as f64
        });
        counter("coredns_proxy_healthcheck_failures_total", |it| {
            it.probe_failures.load(Ordering::Relaxed) as f64
        });
        counter("sluice_dns_upstream_failures_total", |it| {
            it.failures.load(Ordering::Relaxed) as f64
        });
        samples.extend(upstreams().map(|upstream| Sample {
            name: "sluice_dns_upstream_down",
            kind: "gauge",
            labels: format!("to=\"{}\"", upstream.peer.addr),
            value: f64::from(u8::from(upstream.down())),
        }));
        samples
    }
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

/// The query that finds out whether an upstream answers, as CoreDNS sends it.
fn probe_query() -> Message {
    let mut query = Message::query();
    query.metadata.recursion_desired = true;
    query.add_query(Query::query(Name::root(), RecordType::NS));
    query
}

#[cfg(test)]
mod tests;
