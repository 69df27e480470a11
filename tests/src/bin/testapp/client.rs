//! Clients: one request, one datagram, or a load that keeps count.

use std::net::{SocketAddr, UdpSocket};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use sluice_tests::app::{FIRST_ANSWER, Identity, Latency, LoadReport};
use sluice_tests::interrupt;

use crate::http::{Connection, Response, Target};
use crate::{ClientOptions, seconds};

#[derive(clap::Args)]
pub(crate) struct Load {
    /// [http://]HOST:PORT[/PATH]
    target: Target,
    /// Stop after this many requests
    #[arg(long)]
    requests: Option<u64>,
    /// Stop after this many seconds
    #[arg(long)]
    seconds: Option<f64>,
    /// Keep connections open instead of opening one for each request
    #[arg(long)]
    keep_alive: bool,
    /// How many clients ask at the same time
    #[arg(long, default_value_t = 1)]
    concurrency: usize,
    /// At most this many requests a second, all clients together
    #[arg(long)]
    rate: Option<f64>,
    #[command(flatten)]
    client: ClientOptions,
}

/// One request; prints the body, and fails where the status is not 200.
pub(crate) fn get(target: &str, options: &ClientOptions) -> Result<()> {
    let target: Target = target.parse()?;
    let address = options.resolve(&target.host, target.port)?;
    let mut connection = Connection::open(address, options.timeout())?;
    let response = connection.get(&target.host, &target.path, false)?;
    println!("{}", response.body);
    if response.status != 200 {
        bail!("status {}", response.status);
    }
    Ok(())
}

/// Datagrams from one socket; prints every answer.
pub(crate) fn udp(
    target: SocketAddr,
    count: u32,
    unconnected: bool,
    timeout: Duration,
) -> Result<()> {
    let any: SocketAddr = if target.is_ipv4() { ([0; 4], 0).into() } else { ([0; 16], 0).into() };
    let socket = UdpSocket::bind(any).context("bind")?;
    socket.set_read_timeout(Some(timeout))?;
    if !unconnected {
        socket.connect(target).context("connect")?;
    }
    let mut buffer = [0; 2048];
    for _ in 0..count {
        let length = if unconnected {
            socket.send_to(b"hello", target).context("sendto")?;
            let (length, from) = socket.recv_from(&mut buffer).context("recvfrom")?;
            if from != target {
                bail!("the answer comes from {from}, not from {target}");
            }
            length
        } else {
            socket.send(b"hello").context("send")?;
            socket.recv(&mut buffer).context("recv")?
        };
        println!("{}", String::from_utf8_lossy(&buffer[..length]));
    }
    Ok(())
}

/// What all clients of a load share.
struct Count {
    started: AtomicU64,
    report: Mutex<(LoadReport, Vec<u64>)>,
}

/// The load; prints a [`LoadReport`] at its end, also after SIGTERM.
pub(crate) fn load(options: &Load) -> Result<()> {
    interrupt::take_over()?;
    if options.requests.is_none() && options.seconds.is_none() {
        eprintln!("running until SIGTERM or Ctrl-C");
    }
    let start = Instant::now();
    let count = Count { started: AtomicU64::new(0), report: Mutex::default() };
    std::thread::scope(|scope| {
        for _ in 0..options.concurrency.max(1) {
            scope.spawn(|| client(options, start, &count));
        }
    });
    let (mut report, mut latencies) = count.report.into_inner().unwrap_or_default();
    report.seconds = start.elapsed().as_secs_f64();
    report.latency_us = Latency::of(&mut latencies);
    println!("{}", serde_json::to_string(&report)?);
    Ok(())
}

fn client(options: &Load, start: Instant, count: &Count) {
    let mut connection = None;
    loop {
        if interrupt::interrupted()
            || options.seconds.is_some_and(|limit| start.elapsed() >= seconds(limit))
        {
            return;
        }
        let number = count.started.fetch_add(1, Ordering::Relaxed);
        if options.requests.is_some_and(|limit| number >= limit) {
            return;
        }
        if let Some(rate) = options.rate.filter(|rate| *rate > 0.0) {
            #[allow(clippy::cast_precision_loss, reason = "a pace needs no exact number")]
            let due = start + seconds(number as f64 / rate);
            while Instant::now() < due && !interrupt::interrupted() {
                let left = due.saturating_duration_since(Instant::now());
                std::thread::sleep(left.min(Duration::from_millis(50)));
            }
            if interrupt::interrupted() {
                return;
            }
        }
        let begun = Instant::now();
        let outcome = request(options, &mut connection);
        let taken = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
        let Ok(mut guard) = count.report.lock() else { return };
        let (report, latencies) = &mut *guard;
        report.requests += 1;
        match outcome {
            Ok(identity) => {
                report.ok += 1;
                // Who watches this program learns that it asks, and whom it has reached.
                if !report.backends.contains_key(&identity.pod) {
                    eprintln!("{FIRST_ANSWER}{}", identity.pod);
                }
                *report.backends.entry(identity.pod).or_default() += 1;
                latencies.push(taken);
            }
            Err(error) => {
                report.failed += 1;
                *report.failures.entry(format!("{error:#}")).or_default() += 1;
            }
        }
    }
}

fn request(options: &Load, slot: &mut Option<Connection>) -> Result<Identity> {
    let target = &options.target;
    let once = |slot: &mut Option<Connection>| -> Result<Response> {
        let mut connection = match slot.take() {
            Some(connection) => connection,
            None => Connection::open(
                options.client.resolve(&target.host, target.port)?,
                options.client.timeout(),
            )?,
        };
        let response = connection.get(&target.host, &target.path, options.keep_alive)?;
        if options.keep_alive && !response.close {
            *slot = Some(connection);
        }
        Ok(response)
    };
    let idle = slot.as_ref().is_some_and(Connection::used);
    let response = match once(slot) {
        // The server may close an idle connection while the request is on its way; a client of HTTP asks again.
        Err(_) if idle => once(slot)?,
        other => other?,
    };
    if response.status != 200 {
        bail!("status {}", response.status);
    }
    serde_json::from_str(&response.body).context("body")
}
