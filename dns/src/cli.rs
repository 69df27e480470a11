//! The flags.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use hickory_proto::rr::Name;
use sluice_model::ResourceKind;
use sluice_store::{EtcdArgs, PasswordError, SourceOptions, SourceUrl, parse_source};
use tracing_subscriber::filter::LevelFilter;

use crate::answer::PodRecords;
use crate::forward::{CacheOptions, Policy, Stub, Target, resolv_conf};
use crate::tls;

/// Cluster DNS: answers for Services from a Kubernetes store, forwards the rest.
#[derive(Clone, Debug, Parser)]
#[command(name = "sluice-dns", version)]
pub struct Args {
    /// Where the cluster's objects come from: dir:/path/to/manifests, or etcd:https://host:2379
    #[arg(long, value_name = "URL", value_parser = parse_source)]
    pub source: SourceUrl,

    /// Serve on this address, UDP and TCP; may be repeated [default: 0.0.0.0:53 and [::]:53]
    #[arg(long, value_name = "ADDR:PORT", value_parser = listen)]
    pub listen: Vec<SocketAddr>,

    /// Serve DNS over TLS with this certificate: a PEM file, read again when it changes
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,

    /// The certificate's key: a PEM file, read again when it changes
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,

    /// Serve DNS over TLS on this address; may be repeated [default: port 853 of each --listen]
    #[arg(long, value_name = "ADDR:PORT", value_parser = listen, requires = "tls_cert")]
    pub tls_listen: Vec<SocketAddr>,

    /// The cluster's domain
    #[arg(long, value_name = "NAME", default_value = "cluster.local")]
    pub cluster_domain: String,

    /// Forward names outside the cluster to this resolver; may be repeated, the first is preferred
    /// [default: the name servers of --resolv-conf]
    #[arg(long, value_name = "[tls://]ADDR[:PORT][#NAME]")]
    pub upstream: Vec<Target>,

    /// Who certifies the upstreams over TLS: a PEM file [default: whom the system trusts]
    #[arg(long, value_name = "FILE")]
    pub upstream_tls_ca: Option<PathBuf>,

    /// Where the upstreams are read from if there is no --upstream
    #[arg(long, value_name = "FILE", default_value = "/etc/resolv.conf")]
    pub resolv_conf: PathBuf,

    /// How many threads answer by UDP [default: one for each CPU that the process may use]
    #[arg(long, value_name = "COUNT", value_parser = workers)]
    pub workers: Option<usize>,

    /// How many answers of upstreams to keep; 0 for none
    #[arg(long, value_name = "ENTRIES", default_value_t = 10_000)]
    pub cache_size: usize,

    /// How often an upstream's answer must have been given to be asked for again before it runs out;
    /// 0 for never
    #[arg(long, value_name = "COUNT", default_value_t = 10)]
    pub cache_prefetch: u32,

    /// How long an upstream's answer that has run out is given where no upstream answers, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 3600)]
    pub cache_stale_seconds: u64,

    /// Which upstream is asked first
    #[arg(long, value_enum, value_name = "POLICY", default_value_t = Policy::Sequential)]
    pub policy: Policy,

    /// Ask these upstreams about the names below a domain; may be repeated
    #[arg(long, value_name = "DOMAIN=ADDR[,ADDR]", value_parser = stub)]
    pub stub_domain: Vec<Stub>,

    /// Which records pods have
    #[arg(long, value_enum, value_name = "MODE", default_value_t = PodRecords::Disabled)]
    pub pod_records: PodRecords,

    /// Follow the search path of a known pod here, so that it asks once where it would ask five times
    #[arg(long)]
    pub autopath: bool,

    /// Log every query
    #[arg(long)]
    pub query_log: bool,

    /// A file with settings that may change while the server runs; see dns/README.md
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// How long clients may keep an answer, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 5,
          value_parser = clap::value_parser!(u32).range(0..=3600))]
    pub ttl: u32,

    /// Serve /health here; an empty value turns it off
    #[arg(long, value_name = "[ADDR]:PORT", default_value = ":8080", value_parser = probe)]
    pub health_bind_address: Probe,

    /// Serve /ready here; an empty value turns it off
    #[arg(long, value_name = "[ADDR]:PORT", default_value = ":8181", value_parser = probe)]
    pub ready_bind_address: Probe,

    /// Serve /metrics here; an empty value turns it off
    #[arg(long, value_name = "[ADDR]:PORT", default_value = ":9153", value_parser = probe)]
    pub metrics_bind_address: Probe,

    /// Tell these clients where an answer comes from (`proxyctl dns query`), such as the node's
    /// addresses; may be repeated
    #[arg(long, value_name = "CIDR", default_values = ["127.0.0.0/8", "::1/128"])]
    pub explain_to: Vec<ipnet::IpNet>,

    /// How long to go on answering after SIGTERM, not ready any more, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 2,
          value_parser = clap::value_parser!(u64).range(0..=600))]
    pub lameduck_seconds: u64,

    /// error, warn, info, debug or trace; RUST_LOG has the last word
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    pub log_level: LevelFilter,

    /// Access to etcd.
    #[command(flatten)]
    pub etcd: EtcdArgs,
}

/// Turns a Corefile into a configuration of sluice-dns
#[derive(Clone, Debug, Parser)]
#[command(name = "sluice-dns import-corefile", version)]
pub struct ImportArgs {
    /// The Corefile; standard input where it is -
    #[arg(default_value = "-")]
    pub file: PathBuf,
}

/// Where a probe is served; nowhere if off.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Probe(pub Option<SocketAddr>);

impl Args {
    /// The addresses to serve on, and whether they are the defaults.
    pub fn listen(&self) -> (Vec<SocketAddr>, bool) {
        if self.listen.is_empty() {
            let wildcards = [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)];
            (wildcards.map(|ip| SocketAddr::new(ip, resolv_conf::PORT)).to_vec(), true)
        } else {
            (self.listen.clone(), false)
        }
    }

    /// The addresses to serve DNS over TLS on, if there is a certificate.
    pub fn tls_listen(&self) -> Vec<SocketAddr> {
        if self.tls_cert.is_none() || !self.tls_listen.is_empty() {
            return self.tls_listen.clone();
        }
        let (addrs, _) = self.listen();
        let mut addrs: Vec<_> =
            addrs.iter().map(|addr| SocketAddr::new(addr.ip(), tls::PORT)).collect();
        addrs.sort_unstable();
        addrs.dedup();
        addrs
    }

    /// How upstreams' answers are kept.
    pub fn cache(&self) -> CacheOptions {
        CacheOptions {
            entries: self.cache_size,
            prefetch: self.cache_prefetch,
            stale: Duration::from_secs(self.cache_stale_seconds),
            ..CacheOptions::default()
        }
    }

    /// The source's options. Pods are watched for the endpoints of Services that have no
    /// EndpointSlice, as in a manifest directory.
    ///
    /// # Errors
    ///
    /// The file with etcd's password cannot be read.
    pub fn source_options(&self) -> Result<SourceOptions, PasswordError> {
        use ResourceKind::{EndpointSlice, Namespace, Pod, Service, ServiceImport};
        self.etcd.options([Service, EndpointSlice, Pod, Namespace, ServiceImport])
    }
}

fn listen(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| "expected ADDR:PORT, such as 10.0.0.10:53 or [fd00::a]:53".to_owned())
}

fn workers(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(count) if (1..=1024).contains(&count) => Ok(count),
        _ => Err("expected a number from 1 to 1024".to_owned()),
    }
}

/// `DOMAIN=ADDR,ADDR`.
fn stub(text: &str) -> Result<Stub, String> {
    let (domain, list) =
        text.split_once('=').ok_or("expected DOMAIN=ADDR, such as corp.example=10.1.1.1")?;
    let mut domain = Name::from_ascii(domain).map_err(|error| error.to_string())?;
    domain.set_fqdn(true);
    let upstreams = list.split(',').map(str::parse).collect::<Result<_, _>>()?;
    Ok(Stub { domain, upstreams })
}

/// `[ADDR]:PORT`, or nothing.
pub(crate) fn probe(text: &str) -> Result<Probe, String> {
    if text.is_empty() {
        return Ok(Probe(None));
    }
    let wrong = || "expected [ADDR]:PORT, such as :8080 or 127.0.0.1:8080".to_owned();
    match text.strip_prefix(':') {
        Some(port) => {
            let port = port.parse::<u16>().map_err(|_| wrong())?;
            Ok(Probe(Some(SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port))))
        }
        None => text.parse().map(|addr| Probe(Some(addr))).map_err(|_| wrong()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parse(flags: &[&str]) -> Result<Args, String> {
        let required = ["sluice-dns", "--source=dir:/tmp"];
        Args::try_parse_from(required.iter().chain(flags)).map_err(|e| e.to_string())
    }

    #[test]
    fn the_flags_are_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn upstreams_may_leave_out_the_port() {
        let args = parse(&["--upstream=9.9.9.9", "--upstream=[fd00::1]", "--upstream=fd00::2"])
            .and_then(|args| Ok((args.upstream, parse(&["--upstream=[::1]:5353"])?.upstream)));
        let addrs = |list: &[&str]| -> Vec<Target> {
            list.iter().map(|a| a.parse().expect("an address")).collect()
        };
        let expected = addrs(&["9.9.9.9:53", "[fd00::1]:53", "[fd00::2]:53"]);
        assert_eq!(args, Ok((expected, addrs(&["[::1]:5353"]))));
    }

    #[test]
    fn wrong_values_are_refused_with_what_would_be_right() {
        for (flag, hint) in [
            ("--upstream=dns.example", "expected an address"),
            ("--upstream=0.0.0.0", "no address that can be asked"),
            ("--listen=53", "expected ADDR:PORT"),
            ("--ttl=3601", "0..=3600"),
            ("--stub-domain=corp.example", "expected DOMAIN=ADDR"),
            ("--policy=best", "round_robin"),
            ("--ready-bind-address=8181", "such as :8080"),
        ] {
            let error = parse(&[flag]).expect_err(flag);
            assert!(error.contains(hint), "{error}");
        }
        let error = Args::try_parse_from(["sluice-dns", "--source=ftp:x"]).expect_err("unknown");
        assert!(error.to_string().contains("known sources are"), "{error}");
    }

    #[test]
    fn probes_can_be_turned_off() {
        let args = parse(&["--ready-bind-address="]).expect("valid");
        assert_eq!(args.ready_bind_address, Probe(None));
        assert_eq!(args.health_bind_address, Probe("[::]:8080".parse().ok()));
    }

    /// D9: the TTL is five seconds by default.
    #[test]
    fn the_ttl_is_five_seconds_by_default() {
        assert_eq!(parse(&[]).map(|args| args.ttl), Ok(5));
    }
}
