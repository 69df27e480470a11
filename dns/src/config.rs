//! The configuration file: what decides about answers, and may change while the server runs.
//!
//! The file is YAML. What it leaves out is as the flags say; what it names counts. `sluice-dns
//! --config FILE` reads it at the start, where a mistake is an error, and again whenever it changes
//! afterwards, where a mistake is logged and the old configuration stays. No query is lost over
//! it: those under way end with what they began with.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::rr::Name;
use serde::{Deserialize, Serialize};

use crate::answer::{Domain, PodRecords};
use crate::cli::Args;
use crate::explain::Explainers;
use crate::forward::{ForwardOptions, Forwarder, Policy, Stub, Target, Trust, resolv_conf};
use crate::local::Local;
use crate::metrics::Metrics;
use crate::resolver::Settings;

/// How often the file is looked at.
const PERIOD: Duration = Duration::from_secs(2);

/// The file's content.
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct File {
    /// As `--cluster-domain`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster_domain: Option<String>,
    /// As `--ttl`, in seconds: 0 to 3600.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ttl: Option<u32>,
    /// As `--pod-records`: disabled, insecure or verified.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod_records: Option<String>,
    /// As `--autopath`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub autopath: Option<bool>,
    /// As `--upstream`: addresses, with or without a port, `tls://ADDR#NAME` for those over TLS.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upstreams: Option<Vec<String>>,
    /// As `--upstream-tls-ca`: a PEM file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upstream_tls_ca: Option<PathBuf>,
    /// As `--policy`: random, round_robin or sequential.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy: Option<String>,
    /// Domains, each with upstreams of its own.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub stub_domains: BTreeMap<String, Vec<String>>,
    /// How upstreams' answers are kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache: Option<CacheFile>,
    /// Addresses, each with names: answered before all else.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub hosts: BTreeMap<IpAddr, Vec<String>>,
    /// Names, each with the one that it stands for.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub rewrites: BTreeMap<String, String>,
    /// As `--query-log`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub query_log: Option<bool>,
}

/// The `cache` part of the file.
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct CacheFile {
    /// As `--cache-size`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entries: Option<usize>,
    /// The longest that an answer is kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_positive_seconds: Option<u64>,
    /// The longest that a denial is kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_negative_seconds: Option<u64>,
    /// As `--cache-prefetch`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prefetch: Option<u32>,
    /// As `--cache-stale-seconds`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stale_seconds: Option<u64>,
}

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What happened.
        #[source]
        source: std::io::Error,
    },
    /// It is not YAML of this form.
    #[error("{0}")]
    Syntax(#[source] serde_norway::Error),
    /// A field has a value that it cannot have.
    #[error("{field}: {value:?} {reason}")]
    Value {
        /// The field.
        field: &'static str,
        /// Its value.
        value: String,
        /// What is wrong with it.
        reason: String,
    },
}

fn wrong(field: &'static str, value: &str, reason: impl ToString) -> ConfigError {
    ConfigError::Value { field, value: value.to_owned(), reason: reason.to_string() }
}

impl File {
    /// Reads a file's text.
    ///
    /// # Errors
    ///
    /// It is not YAML of this form.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        if text.trim().is_empty() {
            return Ok(Self::default());
        }
        serde_norway::from_str(text).map_err(ConfigError::Syntax)
    }

    fn domain(&self, args: &Args) -> Result<Domain, ConfigError> {
        let name = self.cluster_domain.as_ref().unwrap_or(&args.cluster_domain);
        let ttl = self.ttl.unwrap_or(args.ttl);
        if ttl > 3600 {
            return Err(wrong("ttl", &ttl.to_string(), "is not 0 to 3600"));
        }
        let domain = Domain::new(name, ttl);
        let domain = domain.map_err(|error| wrong("clusterDomain", name, error))?;
        let pods = match &self.pod_records {
            None => args.pod_records,
            Some(text) => choice::<PodRecords>("podRecords", text)?,
        };
        Ok(domain.with_pods(pods))
    }

    fn forward(&self, args: &Args, own: &[SocketAddr]) -> Result<ForwardOptions, ConfigError> {
        let list = |field, list: &[String]| -> Result<Vec<Target>, ConfigError> {
            let target = |text: &String| text.parse().map_err(|e| wrong(field, text, e));
            list.iter().map(target).collect()
        };
        let upstreams = match &self.upstreams {
            None => args.upstream.clone(),
            Some(upstreams) => list("upstreams", upstreams)?,
        };
        let mut stubs = args.stub_domain.clone();
        for (domain, upstreams) in &self.stub_domains {
            let upstreams = list("stubDomains", upstreams)?;
            // Its names would go to the upstreams of all others.
            if upstreams.is_empty() {
                return Err(wrong("stubDomains", domain, "has no upstream"));
            }
            stubs.push(Stub { domain: name("stubDomains", domain)?, upstreams });
        }
        let policy = match &self.policy {
            None => args.policy,
            Some(text) => choice::<Policy>("policy", text)?,
        };
        let mut cache = args.cache();
        if let Some(file) = &self.cache {
            let seconds = |seconds: Option<u64>, or| seconds.map_or(or, Duration::from_secs);
            cache.entries = file.entries.unwrap_or(cache.entries);
            cache.max_positive = seconds(file.max_positive_seconds, cache.max_positive);
            cache.max_negative = seconds(file.max_negative_seconds, cache.max_negative);
            cache.prefetch = file.prefetch.unwrap_or(cache.prefetch);
            cache.stale = seconds(file.stale_seconds, cache.stale);
        }
        let resolv_conf =
            || resolv_conf::read(&args.resolv_conf).into_iter().map(Target::from).collect();
        let upstreams = if upstreams.is_empty() { resolv_conf() } else { upstreams };
        let upstreams = resolv_conf::without_self(upstreams, own);
        let all = upstreams.iter().chain(stubs.iter().flat_map(|stub| &stub.upstreams));
        let trust = if all.into_iter().any(|target| target.tls.is_some()) {
            let file = self.upstream_tls_ca.as_deref().or(args.upstream_tls_ca.as_deref());
            let shown = file.map_or_else(String::new, |file| file.display().to_string());
            Trust::load(file).map_err(|error| wrong("upstreamTlsCa", &shown, error))?
        } else {
            Trust::default()
        };
        Ok(ForwardOptions { upstreams, stubs, policy, cache, trust })
    }

    /// The settings that flags and file make together. A forwarder that would be the same as the old
    /// one is the old one, with all that it has cached. `own` are the addresses that are served.
    ///
    /// # Errors
    ///
    /// A field has a value that it cannot have.
    pub fn settings(
        &self,
        args: &Args,
        own: &[SocketAddr],
        old: Option<&Settings>,
        metrics: &Arc<Metrics>,
    ) -> Result<Settings, ConfigError> {
        let domain = self.domain(args)?;
        let mut local = Local::default();
        for (addr, names) in &self.hosts {
            for text in names {
                let added = local.add_host(&name("hosts", text)?, *addr);
                added.map_err(|error| wrong("hosts", text, error))?;
            }
        }
        for (from, to) in &self.rewrites {
            let added = local.add_rewrite(&name("rewrites", from)?, &name("rewrites", to)?);
            added.map_err(|error| wrong("rewrites", from, error))?;
        }
        let options = self.forward(args, own)?;
        let forwarder = match old.map(|old| &old.forwarder) {
            Some(old) if *old.options() == options => Arc::clone(old),
            _ => Arc::new(Forwarder::with_options(options, Arc::clone(metrics))),
        };
        let autopath = self.autopath.unwrap_or(args.autopath);
        let autopath = autopath.then(|| resolv_conf::search(&args.resolv_conf, domain.apex()));
        let log = self.query_log.unwrap_or(args.query_log);
        let explainers = Explainers(args.explain_to.clone());
        Ok(Settings { domain, forwarder, autopath, local, log, explainers })
    }
}

fn name(field: &'static str, text: &str) -> Result<Name, ConfigError> {
    let mut name = Name::from_ascii(text).map_err(|error| wrong(field, text, error))?;
    name.set_fqdn(true);
    Ok(name)
}

fn choice<T: clap::ValueEnum>(field: &'static str, text: &str) -> Result<T, ConfigError> {
    T::from_str(text, true).map_err(|_| {
        let known = T::value_variants().iter().filter_map(clap::ValueEnum::to_possible_value);
        let known: Vec<_> = known.map(|value| value.get_name().to_owned()).collect();
        wrong(field, text, format!("is none of {}", known.join(", ")))
    })
}

/// Reads a file; the empty configuration where there is none to read.
///
/// # Errors
///
/// It cannot be read, or is not of the right form.
pub fn load(path: Option<&Path>) -> Result<(String, File), ConfigError> {
    let Some(path) = path else { return Ok(Default::default()) };
    let text = std::fs::read_to_string(path);
    let text = text.map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
    let file = File::parse(&text)?;
    Ok((text, file))
}

/// Hands over the file's content whenever it changes, for ever. A file that cannot be read or used is
/// logged once, what was known stays, and it is tried again: what is wrong may be another file that it
/// names.
pub async fn watch(
    path: PathBuf,
    mut text: String,
    mut changed: impl FnMut(File) -> Result<(), ConfigError>,
) {
    let mut told = String::new();
    loop {
        tokio::time::sleep(PERIOD).await;
        let result = load(Some(&path)).and_then(|(new, file)| {
            if new != text {
                changed(file)?;
                text = new;
            }
            Ok(())
        });
        match result {
            Ok(()) => told.clear(),
            Err(error) => {
                let error = error.to_string();
                if told != error {
                    tracing::error!("--config {}: {error}; the old one stays", path.display());
                    told = error;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    fn settings(text: &str) -> Result<Settings, String> {
        let args = Args::parse_from(["sluice-dns", "--source=dir:/tmp", "--upstream=192.0.2.1"]);
        let file = File::parse(text).map_err(|error| error.to_string())?;
        file.settings(&args, &[], None, &Arc::default()).map_err(|error| error.to_string())
    }

    /// D12, D16: what the file names counts, what it leaves out is the flags'.
    #[test]
    fn the_file_counts_and_the_flags_fill_in() {
        let text = "ttl: 30\nstubDomains: {corp.example: [10.1.1.1, '10.1.1.2:5353']}\n\
                    policy: round_robin\ncache: {entries: 5, staleSeconds: 7}\n\
                    hosts: {192.0.2.7: [gate.example]}\npodRecords: verified\n";
        let settings = settings(text).expect("valid");
        assert_eq!((settings.domain.ttl(), settings.domain.pods()), (30, PodRecords::Verified));
        let options = settings.forwarder.options();
        assert_eq!(options.upstreams, ["192.0.2.1:53".parse().expect("an address")]);
        assert_eq!(options.stubs[0].upstreams.len(), 2);
        assert_eq!((options.policy, options.cache.entries), (Policy::RoundRobin, 5));
        assert_eq!(options.cache.stale, Duration::from_secs(7));
    }

    #[test]
    fn a_wrong_value_is_told_with_its_field() {
        for (text, expected) in [
            ("ttl: 3601", "ttl: \"3601\" is not 0 to 3600"),
            ("podRecords: some", "podRecords: \"some\" is none of disabled, insecure, verified"),
            ("policy: best", "policy: \"best\" is none of random, round_robin, sequential"),
            ("upstreams: [dns.example]", "upstreams: \"dns.example\" expected an address"),
            ("clusterDomain: a..b", "clusterDomain: \"a..b\""),
            ("stubDomains: {corp.example: []}", "stubDomains: \"corp.example\" has no upstream"),
            ("upstream: [192.0.2.1]", "unknown field `upstream`"),
        ] {
            let error = settings(text).expect_err(text);
            assert!(error.contains(expected), "{error}");
        }
    }

    /// D16: a change of something else keeps the forwarder, with what it has cached.
    #[test]
    fn a_forwarder_that_does_not_change_stays() {
        let args = Args::parse_from(["sluice-dns", "--source=dir:/tmp", "--upstream=192.0.2.1"]);
        let old = settings("ttl: 5").expect("valid");
        let make = |text: &str| {
            let file = File::parse(text).expect("valid");
            file.settings(&args, &[], Some(&old), &Arc::default()).expect("valid")
        };
        assert!(Arc::ptr_eq(&make("ttl: 30").forwarder, &old.forwarder));
        assert!(!Arc::ptr_eq(&make("policy: random").forwarder, &old.forwarder));
    }
}
