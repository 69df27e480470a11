//! `sluice-dns`: the cluster DNS server.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use clap::Parser;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use sluice_dns::answer::Domain;
use sluice_dns::cli::{Args, Probe};
use sluice_dns::feed;
use sluice_dns::forward::{Forwarder, resolv_conf};
use sluice_dns::probes::{self, Health};
use sluice_dns::resolver::Resolver;
use sluice_dns::server::{self, Server, Sockets};
use sluice_store::Stream;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let args = Args::parse();
    let filter =
        EnvFilter::builder().with_default_directive(args.log_level.into()).from_env_lossy();
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).init();
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Not by way of the log, which a filter may have turned off.
            eprintln!("sluice-dns: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<()> {
    raise_descriptor_limit();
    let sockets = bind(args)?;
    let domain = Domain::new(&args.cluster_domain, args.ttl).context("--cluster-domain")?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    runtime.block_on(serve(args, domain, sockets))
}

async fn serve(args: &Args, domain: Domain, sockets: Vec<Sockets>) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot handle SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot handle SIGINT")?;

    let forwarder = Forwarder::new(upstreams(args, &sockets), args.cache_size);
    let resolver = Arc::new(Resolver::new(domain, forwarder));
    let health = Arc::new(Health::new(Arc::clone(&resolver)));
    for (flag, Probe(addr)) in probe_addrs(args) {
        let Some(addr) = addr else { continue };
        let listener = listen_probe(addr).await.map_err(|error| {
            anyhow!("{flag} {addr}: {error} (name another address, or an empty one for none)")
        })?;
        let bound = listener.local_addr().unwrap_or(addr);
        tracing::info!("serving probes on {bound}");
        tokio::spawn(probes::serve(listener, Arc::clone(&health)));
    }
    let stream = Stream::open(&args.source, &args.source_options()?)
        .map_err(|e| anyhow!("--source {}: {e} ({})", args.source, e.hint()))?;
    let feed = tokio::spawn(feed::run(stream, Arc::clone(&resolver)));
    let watched = Arc::clone(&health);
    tokio::spawn(async move {
        if let Err(error) = feed.await {
            tracing::error!(%error, "the reader of the source broke off");
        }
        watched.fail();
    });

    let mut server = Server::start(sockets, &resolver).context("cannot serve")?;
    for addr in server.addrs() {
        tracing::info!("serving DNS on {addr}");
    }

    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        () = server.failed() => return Err(anyhow!("a socket is not served any more")),
    }
    health.stop();
    tracing::info!(lameduck_seconds = args.lameduck_seconds, "stopping");
    let finish = async {
        // Clients still come for a while, until they have learnt that this server is not ready.
        tokio::time::sleep(Duration::from_secs(args.lameduck_seconds)).await;
        server.stop().await;
    };
    tokio::select! {
        () = finish => {}
        _ = terminate.recv() => tracing::info!("stopping at once"),
        _ = interrupt.recv() => tracing::info!("stopping at once"),
    }
    Ok(())
}

/// Binds all addresses. Of the default ones, IPv6 may be missing.
fn bind(args: &Args) -> Result<Vec<Sockets>> {
    let (addrs, default) = args.listen();
    let mut sockets = Vec::new();
    let workers = args.workers.unwrap_or_else(server::default_workers);
    for addr in addrs {
        match Sockets::bind(addr, workers) {
            Ok(bound) => sockets.push(bound),
            Err(error) if default && addr.is_ipv6() && no_ipv6(&error.source) => {
                tracing::warn!("no IPv6 here: {error}");
            }
            Err(error) => return Err(anyhow!("{error}")),
        }
    }
    Ok(sockets)
}

fn no_ipv6(error: &io::Error) -> bool {
    use nix::libc::{EADDRNOTAVAIL, EAFNOSUPPORT};
    matches!(error.raw_os_error(), Some(EAFNOSUPPORT | EADDRNOTAVAIL))
}

/// The upstreams: the flags', or else those of resolv.conf, without this server itself.
fn upstreams(args: &Args, sockets: &[Sockets]) -> Vec<SocketAddr> {
    let mut upstreams = args.upstream.clone();
    if upstreams.is_empty() {
        let path = args.resolv_conf.display();
        match std::fs::read_to_string(&args.resolv_conf) {
            Ok(text) => {
                let (servers, wrong) = resolv_conf::name_servers(&text);
                upstreams = servers;
                for line in wrong {
                    tracing::warn!("{path}: {line:?} names no address that can be asked");
                }
            }
            Err(error) => tracing::warn!("cannot read {path}: {error}"),
        }
    }
    upstreams.retain(|upstream| {
        let own = sockets.iter().any(|socket| resolv_conf::is_self(*upstream, socket.addr));
        if own {
            tracing::warn!("upstream {upstream} is this server itself, and is left out");
        }
        !own
    });
    if upstreams.is_empty() {
        tracing::warn!(
            "no upstream: names outside of {} are answered with SERVFAIL (give --upstream)",
            args.cluster_domain
        );
    } else {
        let list: Vec<_> = upstreams.iter().map(ToString::to_string).collect();
        tracing::info!("forwarding to {}", list.join(", "));
    }
    upstreams
}

/// The probes to serve, each address once.
fn probe_addrs(args: &Args) -> Vec<(&'static str, Probe)> {
    let mut probes = vec![("--health-bind-address", args.health_bind_address)];
    let same = args.ready_bind_address == args.health_bind_address;
    // Port 0 takes another port each time.
    if !same || args.ready_bind_address.0.is_some_and(|addr| addr.port() == 0) {
        probes.push(("--ready-bind-address", args.ready_bind_address));
    }
    probes
}

/// Listens for probes. `[::]` takes IPv4 too, and stands for it where there is no IPv6.
async fn listen_probe(addr: SocketAddr) -> io::Result<TcpListener> {
    match TcpListener::bind(addr).await {
        Err(error) if addr.ip().is_unspecified() && addr.is_ipv6() && no_ipv6(&error) => {
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, addr.port())).await
        }
        result => result,
    }
}

/// Every query to an upstream and every connection has a descriptor, and the usual soft limit of
/// 1024 is for programs that use `select`.
fn raise_descriptor_limit() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        tracing::warn!(%error, "cannot raise the limit of open files");
    }
}
