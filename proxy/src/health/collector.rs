//! The figures that are read when somebody asks: they are in the kernel, or change with the clock.
//!
//! A scrape reads the counters (one look-up each) and no map from end to end: to count half a
//! million flows takes a noticeable part of a second. The entries of maps are known to whoever
//! writes them ([`super::Metrics::map_entries`]).

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::info::Info;
use sluice_abi::{ABI_VERSION, Counter, maps};
use sluice_store::SourceStatus;
use tokio::sync::watch;

use super::shared::Shared;
use crate::dataplane::Pinned;

/// Maps whose size is told.
const MAPS: [&str; 7] = [
    maps::FRONTENDS,
    maps::SLOTS,
    maps::BACKENDS,
    maps::SERVICE_NAMES,
    maps::CONNTRACK,
    maps::UDP_PEERS,
    maps::ENDPOINTS,
];

/// Where the figures are.
#[derive(Debug)]
pub(super) struct Collector {
    maps: Option<Pinned>,
    source: watch::Receiver<SourceStatus>,
    shared: Arc<Shared>,
}

impl Collector {
    pub(super) fn new(
        maps: Option<Pinned>,
        source: watch::Receiver<SourceStatus>,
        shared: Arc<Shared>,
    ) -> Self {
        Self { maps, source, shared }
    }

    fn source(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let status = self.source.borrow().clone();
        let away = if status.connected {
            Duration::ZERO
        } else {
            SystemTime::now().duration_since(status.since).unwrap_or_default()
        };
        let told = [
            ("sluice_source_connected", "Whether the source answers", status.connected),
            ("sluice_source_synced", "Whether the source has been read whole", status.synced),
        ];
        for (name, help, value) in told {
            gauge(encoder, name, help, f64::from(u8::from(value)))?;
        }
        let help =
            "How long the source has been away, and the view of it stale; 0 while it answers";
        gauge(encoder, "sluice_source_stale_seconds", help, away.as_secs_f64())
    }

    fn kernel(&self, encoder: &mut DescriptorEncoder<'_>, maps: &Pinned) -> fmt::Result {
        let mut family = encoder.encode_descriptor(
            "sluice_map_capacity",
            "Entries that a map has room for",
            None,
            MetricType::Gauge,
        )?;
        for map in MAPS {
            let size = ConstGauge::new(maps.size(map).unwrap_or(0));
            size.encode(family.encode_family(&[("map", map)])?)?;
        }
        let counters = match maps.counters() {
            Ok(counters) => counters,
            Err(error) => {
                tracing::warn!("counters: {error}");
                return Ok(());
            }
        };
        let mut family = encoder.encode_descriptor(
            "sluice_program_events",
            "What the programs in the kernel did, since their maps were made",
            None,
            MetricType::Counter,
        )?;
        for (counter, value) in counters {
            let name = Counter::ALL.iter().find(|(known, _)| *known == counter);
            let Some((_, name)) = name else { continue };
            ConstCounter::new(value).encode(family.encode_family(&[("event", *name)])?)?;
        }
        Ok(())
    }
}

impl prometheus_client::collector::Collector for Collector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let version = env!("CARGO_PKG_VERSION");
        let build = Info::new([("version", version.to_owned()), ("abi", ABI_VERSION.to_string())]);
        let help = "The binary, and the version of its maps";
        let metric = encoder.encode_descriptor("sluice_build", help, None, MetricType::Info)?;
        build.encode(metric)?;
        self.source(&mut encoder)?;
        let waiting = self.shared.waiting(Instant::now()).unwrap_or_default();
        let help = "How long the oldest change that the kernel does not have has been waiting";
        gauge(&mut encoder, "sluice_change_waiting_seconds", help, waiting.as_secs_f64())?;
        if let Some(resident) = resident_memory() {
            let help = "Resident memory of sluiced in bytes";
            gauge(&mut encoder, "process_resident_memory_bytes", help, resident)?;
        }
        match &self.maps {
            Some(maps) => self.kernel(&mut encoder, maps),
            None => Ok(()),
        }
    }
}

fn gauge(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: f64) -> fmt::Result {
    let metric: MetricEncoder<'_> =
        encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
    ConstGauge::new(value).encode(metric)
}

/// Resident memory of this process in bytes (proc(5), `statm`).
fn resident_memory() -> Option<f64> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: f64 = statm.split_ascii_whitespace().nth(1)?.parse().ok()?;
    Some(pages * rustix::param::page_size() as f64)
}
