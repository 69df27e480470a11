//! Counters, under CoreDNS's names where they mean the same
//! (<https://coredns.io/plugins/metrics/>, `cache`, `forward`), in the text format of Prometheus.
//!
//! Every worker counts in a shard of its own, so counting costs no cache line that another core
//! writes; a scrape adds the shards up.

use std::fmt::{self, Write as _};
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hickory_proto::op::ResponseCode;

/// Record types that are counted by name; all others are `other`, as in CoreDNS.
const TYPES: [(u16, &str); 17] = [
    (1, "A"),
    (28, "AAAA"),
    (33, "SRV"),
    (12, "PTR"),
    (5, "CNAME"),
    (6, "SOA"),
    (2, "NS"),
    (15, "MX"),
    (16, "TXT"),
    (43, "DS"),
    (46, "RRSIG"),
    (48, "DNSKEY"),
    (65, "HTTPS"),
    (255, "ANY"),
    (251, "IXFR"),
    (252, "AXFR"),
    (0, "other"),
];
/// Response codes that have a name here.
const RCODES: [(u16, &str); 8] = [
    (0, "NOERROR"),
    (1, "FORMERR"),
    (2, "SERVFAIL"),
    (3, "NXDOMAIN"),
    (4, "NOTIMP"),
    (5, "REFUSED"),
    (16, "BADVERS"),
    (u16::MAX, "other"),
];
/// Upper bounds of the duration's buckets, in nanoseconds: CoreDNS's.
const DURATIONS: [(u64, &str); 12] = [
    (250_000, "0.00025"),
    (500_000, "0.0005"),
    (1_000_000, "0.001"),
    (2_000_000, "0.002"),
    (4_000_000, "0.004"),
    (8_000_000, "0.008"),
    (16_000_000, "0.016"),
    (64_000_000, "0.064"),
    (256_000_000, "0.256"),
    (1_024_000_000, "1.024"),
    (4_096_000_000, "4.096"),
    (u64::MAX, "+Inf"),
];
/// Upper bounds of the sizes' buckets, in octets: CoreDNS's.
const SIZES: [(u64, &str); 14] = [
    (0, "0"),
    (100, "100"),
    (200, "200"),
    (300, "300"),
    (400, "400"),
    (511, "511"),
    (1023, "1023"),
    (2047, "2047"),
    (4095, "4095"),
    (8291, "8291"),
    (16_000, "16000"),
    (32_000, "32000"),
    (48_000, "48000"),
    (u64::MAX, "+Inf"),
];

/// How a query came.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Proto {
    /// By UDP.
    Udp,
    /// By TCP.
    Tcp,
    /// By TLS over TCP.
    Tls,
}

const PROTOS: [&str; 3] = ["udp", "tcp", "tls"];
const FAMILIES: [&str; 2] = ["1", "2"];

/// Single counters.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Event {
    /// A message that made the server panic.
    Panic,
    /// An upstream's answer was found in the cache.
    CacheHit,
    /// The same, and it was a denial.
    CacheDenial,
    /// Nothing was found.
    CacheMiss,
    /// An answer was asked for again before it ran out.
    CachePrefetch,
    /// An answer was given that had run out.
    CacheStale,
    /// An answer left the cache to make room.
    CacheEviction,
    /// A query was refused because too many wait for upstreams.
    ForwardReject,
    /// All upstreams were taken for unreachable, and one was asked all the same.
    HealthcheckBroken,
    /// A connection to an upstream was used again.
    ConnectionHit,
    /// A connection to an upstream was made.
    ConnectionMiss,
    /// A name was found along a pod's search path.
    Autopath,
}

const EVENTS: [(Event, &str, &str); 12] = [
    (Event::Panic, "coredns_panics_total", ""),
    (Event::CacheHit, "coredns_cache_hits_total", "type=\"success\""),
    (Event::CacheDenial, "coredns_cache_hits_total", "type=\"denial\""),
    (Event::CacheMiss, "coredns_cache_misses_total", ""),
    (Event::CachePrefetch, "coredns_cache_prefetch_total", ""),
    (Event::CacheStale, "coredns_cache_served_stale_total", ""),
    (Event::CacheEviction, "coredns_cache_evictions_total", ""),
    (Event::ForwardReject, "coredns_forward_max_concurrent_rejects_total", ""),
    (Event::HealthcheckBroken, "coredns_forward_healthcheck_broken_total", ""),
    (Event::ConnectionHit, "coredns_proxy_conn_cache_hits_total", ""),
    (Event::ConnectionMiss, "coredns_proxy_conn_cache_misses_total", ""),
    (Event::Autopath, "coredns_autopath_success_total", ""),
];

/// Counters of one histogram: its buckets, and the sum.
#[derive(Debug)]
struct Histogram<const N: usize> {
    buckets: [AtomicU64; N],
    sum: AtomicU64,
}

impl<const N: usize> Histogram<N> {
    fn new() -> Self {
        Self { buckets: [const { AtomicU64::new(0) }; N], sum: AtomicU64::new(0) }
    }

    fn observe(&self, bounds: &[(u64, &str); N], value: u64, times: u64, shard: &Shard) {
        let bucket = bounds.iter().position(|(bound, _)| value <= *bound).unwrap_or(N - 1);
        shard.add(&self.buckets[bucket], times);
        shard.add(&self.sum, value.saturating_mul(times));
    }
}

/// What was answered.
#[derive(Clone, Copy, Debug)]
pub struct Answered {
    /// How the query came.
    pub proto: Proto,
    /// From whom.
    pub peer: IpAddr,
    /// The type asked for; 0 where it is not known.
    pub kind: u16,
    /// The response code.
    pub rcode: ResponseCode,
    /// The query's size in octets.
    pub request: usize,
    /// The answer's size in octets.
    pub response: usize,
}

/// Counters of one worker, or of all tasks together.
#[derive(Debug)]
pub struct Shard {
    /// Several threads count here.
    shared: bool,
    requests: [[[AtomicU64; TYPES.len()]; FAMILIES.len()]; PROTOS.len()],
    responses: [AtomicU64; RCODES.len()],
    events: [AtomicU64; EVENTS.len()],
    durations: Histogram<{ DURATIONS.len() }>,
    /// One for each way that queries come.
    request_sizes: [Histogram<{ SIZES.len() }>; PROTOS.len()],
    response_sizes: [Histogram<{ SIZES.len() }>; PROTOS.len()],
}

impl Shard {
    fn new(shared: bool) -> Self {
        Self {
            shared,
            requests: [const { [const { [const { AtomicU64::new(0) }; TYPES.len()] }; 2] }; 3],
            responses: [const { AtomicU64::new(0) }; RCODES.len()],
            events: [const { AtomicU64::new(0) }; EVENTS.len()],
            durations: Histogram::new(),
            request_sizes: std::array::from_fn(|_| Histogram::new()),
            response_sizes: std::array::from_fn(|_| Histogram::new()),
        }
    }

    /// Adds. Where one thread alone writes, a load and a store do, without a locked instruction.
    fn add(&self, counter: &AtomicU64, by: u64) {
        if self.shared {
            counter.fetch_add(by, Ordering::Relaxed);
        } else {
            counter.store(counter.load(Ordering::Relaxed).wrapping_add(by), Ordering::Relaxed);
        }
    }

    /// Counts an answer.
    pub fn answered(&self, answered: &Answered) {
        let proto = match answered.proto {
            Proto::Udp => 0,
            Proto::Tcp => 1,
            Proto::Tls => 2,
        };
        let family = usize::from(answered.peer.is_ipv6());
        let kind = TYPES.iter().position(|(kind, _)| *kind == answered.kind);
        let kind = kind.unwrap_or(TYPES.len() - 1);
        self.add(&self.requests[proto][family][kind], 1);
        let rcode = u16::from(answered.rcode);
        let rcode = RCODES.iter().position(|(it, _)| *it == rcode).unwrap_or(RCODES.len() - 1);
        self.add(&self.responses[rcode], 1);
        self.request_sizes[proto].observe(&SIZES, answered.request as u64, 1, self);
        self.response_sizes[proto].observe(&SIZES, answered.response as u64, 1, self);
    }

    /// Counts how long so many answers took, each.
    pub fn took(&self, each: Duration, answers: u64) {
        let nanoseconds = u64::try_from(each.as_nanos()).unwrap_or(u64::MAX);
        self.durations.observe(&DURATIONS, nanoseconds, answers, self);
    }

    /// Counts an event.
    pub fn event(&self, event: Event) {
        self.events(event, 1);
    }

    /// Counts an event several times.
    pub fn events(&self, event: Event, times: u64) {
        if let Some(index) = EVENTS.iter().position(|(it, ..)| *it == event) {
            self.add(&self.events[index], times);
        }
    }
}

/// All counters.
#[derive(Debug)]
pub struct Metrics {
    shared: Arc<Shard>,
    shards: Mutex<Vec<Arc<Shard>>>,
}

impl Default for Metrics {
    fn default() -> Self {
        let shared = Arc::new(Shard::new(true));
        Self { shards: Mutex::new(vec![Arc::clone(&shared)]), shared }
    }
}

/// A value that is read at the scrape.
#[derive(Clone, PartialEq, Debug)]
pub struct Sample {
    /// The metric's name.
    pub name: &'static str,
    /// `counter` or `gauge`.
    pub kind: &'static str,
    /// Labels as `name="value"`, separated by commas.
    pub labels: String,
    /// The value.
    pub value: f64,
}

impl Metrics {
    /// A shard for one thread, which alone may count in it.
    pub fn worker(&self) -> Arc<Shard> {
        let shard = Arc::new(Shard::new(false));
        self.shards.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&shard));
        shard
    }

    /// The shard that any thread may count in.
    pub fn shared(&self) -> &Arc<Shard> {
        &self.shared
    }

    /// How often an event was counted.
    pub fn count(&self, event: Event) -> u64 {
        let index = EVENTS.iter().position(|(it, ..)| *it == event).unwrap_or_default();
        self.sum(|shard| &shard.events[index])
    }

    fn sum(&self, counter: impl Fn(&Shard) -> &AtomicU64) -> u64 {
        let shards = self.shards.lock().unwrap_or_else(PoisonError::into_inner);
        let values = shards.iter().map(|shard| counter(shard).load(Ordering::Relaxed));
        values.fold(0, u64::wrapping_add)
    }

    /// All metrics in the text format of Prometheus, with these samples beside the counters.
    pub fn render(&self, samples: &[Sample]) -> String {
        let mut text = String::new();
        // Writing to a string does not fail.
        let _ = self.write(&mut text, samples);
        text
    }

    fn write(&self, out: &mut String, samples: &[Sample]) -> fmt::Result {
        head(out, "coredns_build_info", "gauge")?;
        writeln!(
            out,
            "coredns_build_info{{goversion=\"\",revision=\"\",version=\"sluice-dns-{}\"}} 1",
            env!("CARGO_PKG_VERSION")
        )?;
        head(out, "coredns_dns_requests_total", "counter")?;
        for (p, proto) in PROTOS.iter().enumerate() {
            for (f, family) in FAMILIES.iter().enumerate() {
                for (t, (_, kind)) in TYPES.iter().enumerate() {
                    let value = self.sum(|shard| &shard.requests[p][f][t]);
                    if value > 0 {
                        writeln!(
                            out,
                            "coredns_dns_requests_total{{{SERVER},proto=\"{proto}\",\
                             family=\"{family}\",type=\"{kind}\"}} {value}"
                        )?;
                    }
                }
            }
        }
        head(out, "coredns_dns_responses_total", "counter")?;
        for (r, (_, rcode)) in RCODES.iter().enumerate() {
            let value = self.sum(|shard| &shard.responses[r]);
            if value > 0 {
                writeln!(
                    out,
                    "coredns_dns_responses_total{{{SERVER},rcode=\"{rcode}\",plugin=\"\"}} {value}"
                )?;
            }
        }
        let name = "coredns_dns_request_duration_seconds";
        head(out, name, "histogram")?;
        self.histogram(out, (name, SERVER), &DURATIONS, 1e-9, |shard| &shard.durations)?;
        let name = "coredns_dns_request_size_bytes";
        self.sizes(out, name, |shard| &shard.request_sizes)?;
        let name = "coredns_dns_response_size_bytes";
        self.sizes(out, name, |shard| &shard.response_sizes)?;
        let mut last = "";
        for (event, name, labels) in EVENTS {
            if last != name {
                head(out, name, "counter")?;
            }
            last = name;
            let value = self.count(event);
            let labels = if labels.is_empty() { String::new() } else { format!("{{{labels}}}") };
            writeln!(out, "{name}{labels} {value}")?;
        }
        head(out, "coredns_cache_requests_total", "counter")?;
        let cache = [Event::CacheHit, Event::CacheDenial, Event::CacheMiss];
        let requests: u64 = cache.into_iter().map(|event| self.count(event)).sum();
        writeln!(out, "coredns_cache_requests_total {requests}")?;
        let mut last = "";
        for Sample { name, kind, labels, value } in samples {
            if last != *name {
                head(out, name, kind)?;
            }
            last = name;
            let labels = if labels.is_empty() { String::new() } else { format!("{{{labels}}}") };
            writeln!(out, "{name}{labels} {value}")?;
        }
        Ok(())
    }

    /// The histograms of sizes, of those ways that queries came.
    fn sizes(
        &self,
        out: &mut String,
        name: &str,
        of: impl Fn(&Shard) -> &[Histogram<{ SIZES.len() }>; PROTOS.len()],
    ) -> fmt::Result {
        head(out, name, "histogram")?;
        for (p, proto) in PROTOS.iter().enumerate() {
            let count = |n: usize| self.sum(|shard| &of(shard)[p].buckets[n]);
            if (0..SIZES.len()).any(|n| count(n) > 0) {
                let labels = format!("{SERVER},proto=\"{proto}\"");
                self.histogram(out, (name, &labels), &SIZES, 1.0, |shard| &of(shard)[p])?;
            }
        }
        Ok(())
    }

    fn histogram<const N: usize>(
        &self,
        out: &mut String,
        (name, labels): (&str, &str),
        bounds: &[(u64, &str); N],
        unit: f64,
        of: impl Fn(&Shard) -> &Histogram<N>,
    ) -> fmt::Result {
        let mut total = 0;
        for (index, (_, bound)) in bounds.iter().enumerate() {
            total += self.sum(|shard| &of(shard).buckets[index]);
            writeln!(out, "{name}_bucket{{{labels},le=\"{bound}\"}} {total}")?;
        }
        let sum = self.sum(|shard| &of(shard).sum) as f64 * unit;
        writeln!(out, "{name}_sum{{{labels}}} {sum}")?;
        writeln!(out, "{name}_count{{{labels}}} {total}")
    }
}

/// The labels that CoreDNS has on what a server block counts; there is one here.
const SERVER: &str = "server=\"dns://:53\",zone=\".\",view=\"\"";

fn head(out: &mut String, name: &str, kind: &str) -> fmt::Result {
    writeln!(out, "# TYPE {name} {kind}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(kind: u16, rcode: ResponseCode) -> Answered {
        let peer = "10.0.0.1".parse().expect("an address");
        Answered { proto: Proto::Udp, peer, kind, rcode, request: 60, response: 120 }
    }

    /// D17: what workers and tasks count is added up, under CoreDNS's names.
    #[test]
    fn shards_are_added_up_under_the_known_names() {
        let metrics = Metrics::default();
        let worker = metrics.worker();
        worker.answered(&answered(1, ResponseCode::NoError));
        worker.took(Duration::from_micros(300), 2);
        worker.event(Event::CacheHit);
        metrics.shared().answered(&answered(1, ResponseCode::NXDomain));
        metrics.shared().answered(&answered(777, ResponseCode::NXDomain));
        let samples = [Sample {
            name: "coredns_cache_entries",
            kind: "gauge",
            labels: "type=\"success\"".to_owned(),
            value: 3.0,
        }];
        let text = metrics.render(&samples);
        for line in [
            "coredns_dns_requests_total{server=\"dns://:53\",zone=\".\",view=\"\",proto=\"udp\",family=\"1\",type=\"A\"} 2",
            "coredns_dns_requests_total{server=\"dns://:53\",zone=\".\",view=\"\",proto=\"udp\",family=\"1\",type=\"other\"} 1",
            "coredns_dns_responses_total{server=\"dns://:53\",zone=\".\",view=\"\",rcode=\"NXDOMAIN\",plugin=\"\"} 2",
            "coredns_dns_request_duration_seconds_bucket{server=\"dns://:53\",zone=\".\",view=\"\",le=\"0.00025\"} 0",
            "coredns_dns_request_duration_seconds_bucket{server=\"dns://:53\",zone=\".\",view=\"\",le=\"0.0005\"} 2",
            "coredns_dns_request_size_bytes_count{server=\"dns://:53\",zone=\".\",view=\"\",proto=\"udp\"} 3",
            "coredns_dns_response_size_bytes_bucket{server=\"dns://:53\",zone=\".\",view=\"\",proto=\"udp\",le=\"200\"} 3",
            "coredns_cache_hits_total{type=\"success\"} 1",
            "coredns_cache_requests_total 1",
            "coredns_cache_entries{type=\"success\"} 3",
        ] {
            assert!(text.lines().any(|it| it == line), "no {line} in\n{text}");
        }
        // CoreDNS has no series of what never came, either.
        assert!(
            !text.contains(
                "size_bytes_count{server=\"dns://:53\",zone=\".\",view=\"\",proto=\"tcp\"}"
            )
        );
        let types = text.lines().filter(|line| line.starts_with("# TYPE"));
        let names: Vec<_> = types.collect();
        let mut unique = names.clone();
        unique.sort_unstable();
        unique.dedup();
        assert_eq!(names.len(), unique.len(), "a metric is declared twice: {names:?}");
    }
}
