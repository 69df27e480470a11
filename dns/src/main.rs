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
use sluice_dns::cli::{Args, ImportArgs, Probe};
use sluice_dns::config::{self, File};
use sluice_dns::corefile;
use sluice_dns::feed::{self, FeedError};
use sluice_dns::forward::Target;
use sluice_dns::metrics::Metrics;
use sluice_dns::probes::{self, Health};
use sluice_dns::resolver::{Resolver, Settings};
use sluice_dns::server::{self, Server, Sockets, TlsSocket};
use sluice_dns::tls::Identity;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    if std::env::args_os().nth(1).is_some_and(|arg| arg == "import-corefile") {
        return import(&ImportArgs::parse_from(std::env::args_os().skip(1)));
    }
    let args = Args::parse();
    let filter =
        EnvFilter::builder().with_default_directive(args.log_level.into()).from_env_lossy();
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).init();
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Not by way of the log, which a filter may have turned off.
            eprintln!("sluice-dns: {}", told(&error));
            ExitCode::FAILURE
        }
    }
}

/// Prints the configuration that a Corefile stands for, and what of it is left out as comments.
fn import(args: &ImportArgs) -> ExitCode {
    let stdin = args.file.as_os_str() == "-";
    let text =
        if stdin { io::read_to_string(io::stdin()) } else { std::fs::read_to_string(&args.file) };
    let imported = text.map_err(anyhow::Error::from).and_then(|text| {
        let imported = corefile::import(&text)?;
        Ok(imported.render()?)
    });
    match imported {
        Ok(text) => {
            print!("{text}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("sluice-dns: {}: {}", args.file.display(), told(&error));
            ExitCode::FAILURE
        }
    }
}

/// An error with its causes, each once: the messages of some have that of their cause in them.
fn told(error: &anyhow::Error) -> String {
    let mut text = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !text.ends_with(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

fn run(args: &Args) -> Result<()> {
    raise_descriptor_limit();
    // Wrong flags are told before anything is bound.
    Domain::new(&args.cluster_domain, args.ttl).context("--cluster-domain")?;
    let config = config::load(args.config.as_deref()).with_context(|| config_flag(args))?;
    let tls = bind_tls(args)?;
    let sockets = bind(args)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    runtime.block_on(serve(args, config, sockets, tls))
}

/// The flag with its file, if there is one: the flags make settings without a file as well.
fn config_flag(args: &Args) -> String {
    match &args.config {
        Some(path) => format!("--config {}", path.display()),
        None => "the flags".to_owned(),
    }
}

async fn serve(
    args: &Args,
    config: (String, File),
    sockets: Vec<Sockets>,
    tls: Option<Tls>,
) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot handle SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot handle SIGINT")?;

    let (text, file) = config;
    let own: Vec<SocketAddr> = sockets.iter().map(|sockets| sockets.addr).collect();
    let metrics = Arc::new(Metrics::default());
    let settings = file.settings(args, &own, None, &metrics).with_context(|| config_flag(args))?;
    tell_upstreams(&settings);
    let resolver = Arc::new(Resolver::with_settings(settings));
    spawn_reload(args, text, own, &resolver);
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
    let options = args.source_options()?;
    let feed = feed::start(args.source.clone(), options, Arc::clone(&resolver)).await;
    let feed = feed.map_err(|error| match error {
        FeedError::Source(error) => anyhow!("--source {}: {error} ({})", args.source, error.hint()),
        FeedError::Thread(_) => error.into(),
    })?;
    let watched = Arc::clone(&health);
    tokio::spawn(async move {
        feed.await;
        tracing::error!("the reader of the source broke off");
        watched.fail();
    });

    let mut server = Server::start(sockets, &resolver).context("cannot serve")?;
    for addr in server.addrs() {
        tracing::info!("serving DNS on {addr}");
    }
    if let Some((identity, sockets)) = tls {
        let identity = Arc::new(identity);
        for socket in sockets {
            tracing::info!("serving DNS over TLS on {}", socket.addr);
            server.serve_tls(socket, &identity, &resolver).context("cannot serve")?;
        }
        tokio::spawn(async move { identity.watch().await });
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

/// Who this server is to clients that speak TLS, and where.
type Tls = (Identity, Vec<TlsSocket>);

/// Binds the addresses of DNS over TLS, if there is a certificate. Of the default ones, IPv6 may be
/// missing.
fn bind_tls(args: &Args) -> Result<Option<Tls>> {
    let (Some(certificate), Some(key)) = (&args.tls_cert, &args.tls_key) else { return Ok(None) };
    let identity = Identity::load(certificate, key).context("--tls-cert")?;
    let default = args.tls_listen.is_empty() && args.listen().1;
    let mut sockets = Vec::new();
    for addr in args.tls_listen() {
        match TlsSocket::bind(addr) {
            Ok(bound) => sockets.push(bound),
            Err(error) if default && addr.is_ipv6() && no_ipv6(&error.source) => {
                tracing::warn!("no IPv6 here: {error}");
            }
            Err(error) => return Err(anyhow!("{error}")),
        }
    }
    Ok(Some((identity, sockets)))
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

/// Says where foreign names are asked.
fn tell_upstreams(settings: &Settings) {
    let options = settings.forwarder.options();
    let list = |upstreams: &[Target]| {
        upstreams.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
    };
    if options.upstreams.is_empty() {
        tracing::warn!(
            "no upstream: names outside of {} are answered with SERVFAIL (give --upstream)",
            settings.domain.apex()
        );
    } else {
        tracing::info!("forwarding to {}", list(&options.upstreams));
    }
    for stub in &options.stubs {
        tracing::info!("forwarding {} to {}", stub.domain, list(&stub.upstreams));
    }
}

/// Follows the configuration file, if there is one.
fn spawn_reload(args: &Args, text: String, own: Vec<SocketAddr>, resolver: &Arc<Resolver>) {
    let Some(path) = args.config.clone() else { return };
    let (args, resolver) = (args.clone(), Arc::clone(resolver));
    tokio::spawn(config::watch(path, text, move |file| {
        let old = resolver.settings();
        let settings = file.settings(&args, &own, Some(&old), resolver.metrics())?;
        tell_upstreams(&settings);
        resolver.set_settings(settings);
        tracing::info!("the configuration was read again");
        Ok(())
    }));
}

/// The probes to serve, each address once. All of them answer all paths.
fn probe_addrs(args: &Args) -> Vec<(&'static str, Probe)> {
    let mut probes: Vec<(&'static str, Probe)> = Vec::new();
    for (flag, probe) in [
        ("--health-bind-address", args.health_bind_address),
        ("--ready-bind-address", args.ready_bind_address),
        ("--metrics-bind-address", args.metrics_bind_address),
    ] {
        // Port 0 takes another port each time.
        let any = probe.0.is_some_and(|addr| addr.port() == 0);
        if any || probes.iter().all(|(_, known)| *known != probe) {
            probes.push((flag, probe));
        }
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
