//! The clients.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;
use sluice_tests::stress::{Answers, BUCKET_MS, monotonic_ms};
use socket2::{Domain, Protocol, Socket, Type};

use crate::{ANSWER, REQUEST};

/// How long a client waits for one answer; never, when all is well.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(clap::Args)]
pub(crate) struct Ask {
    /// How to ask
    #[arg(long)]
    by: By,
    /// Requests, all threads together
    #[arg(long)]
    requests: u64,
    /// Threads
    #[arg(long, default_value_t = 4)]
    threads: u16,
    /// First of the client ports, of which every thread uses 64 again and again; the kernel's choice without
    #[arg(long)]
    ports: Option<u16>,
    /// SERVICE=ADDRESS:PORT, the service by its number
    #[arg(required = true, value_parser = target)]
    targets: Vec<(u32, SocketAddr)>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum By {
    /// A TCP connection for each request
    Tcp,
    /// A connected datagram socket for each request
    Udp,
    /// One datagram socket for all, which names the destination each time
    Unconnected,
}

/// Client ports that a thread uses.
const PORTS: u16 = 64;

fn target(text: &str) -> Result<(u32, SocketAddr)> {
    let (service, address) = text.split_once('=').context("SERVICE=ADDRESS:PORT")?;
    Ok((service.parse()?, address.parse()?))
}

/// Asks, and prints an [`Answers`].
pub(crate) fn ask(options: &Ask) -> Result<()> {
    let begun = AtomicU64::new(0);
    let all = Mutex::new(Answers::default());
    std::thread::scope(|scope| {
        for thread in 0..options.threads {
            let (begun, all) = (&begun, &all);
            scope.spawn(move || {
                let answers = Client::new(options, thread).run(begun);
                if let Ok(mut all) = all.lock() {
                    all.merge(answers);
                }
            });
        }
    });
    let all = all.into_inner().unwrap_or_default();
    println!("{}", serde_json::to_string(&all)?);
    Ok(())
}

struct Client<'a> {
    options: &'a Ask,
    thread: u16,
    count: u64,
    /// State of a xorshift generator: targets are chosen at random, and the same way in every run.
    random: u64,
    socket: Option<UdpSocket>,
}

impl<'a> Client<'a> {
    fn new(options: &'a Ask, thread: u16) -> Self {
        let random = 0x9e37_79b9_7f4a_7c15 ^ (u64::from(thread) << 32);
        Self { options, thread, count: 0, random, socket: None }
    }

    fn run(mut self, begun: &AtomicU64) -> Answers {
        let mut answers = Answers::default();
        let mut seen: BTreeMap<(u32, u32, u64), u64> = BTreeMap::new();
        while begun.fetch_add(1, Ordering::Relaxed) < self.options.requests {
            self.random ^= self.random << 13;
            self.random ^= self.random >> 7;
            self.random ^= self.random << 17;
            let targets = &self.options.targets;
            let (service, target) = targets[(self.random % targets.len() as u64) as usize];
            self.count += 1;
            let mut start = monotonic_ms();
            let mut outcome = self.request(target);
            while was_woken(&outcome) {
                answers.woken.push((service, start, monotonic_ms()));
                start = monotonic_ms();
                outcome = self.request(target);
            }
            match outcome {
                Ok(endpoint) => {
                    answers.ok += 1;
                    seen.insert((service, endpoint, start / BUCKET_MS), monotonic_ms());
                }
                Err(error) => {
                    let text = format!("service {service} at {target}: {error:#}");
                    *answers.failures.entry(text).or_default() += 1;
                    self.socket = None;
                }
            }
        }
        answers.seen = seen.into_iter().map(|((s, e, bucket), end)| (s, e, bucket, end)).collect();
        answers
    }

    /// The local address of the next socket.
    fn local(&self) -> SocketAddr {
        let port = match self.options.ports {
            None => 0,
            Some(first) => first + self.thread * PORTS + (self.count % u64::from(PORTS)) as u16,
        };
        SocketAddr::from((Ipv4Addr::UNSPECIFIED, port))
    }

    fn request(&mut self, target: SocketAddr) -> Result<u32> {
        let request = ((u64::from(self.thread) << 48) | self.count).to_be_bytes();
        let mut answer = [0; ANSWER];
        match self.options.by {
            By::Tcp => {
                let mut stream = self.connect(target)?;
                stream.write_all(&request).context("write")?;
                stream.read_exact(&mut answer).context("read")?;
                // A port that is used again at once must not meet a TIME_WAIT of the server's: to the server, its
                // connections to several services are alike, and their sequence numbers are not in order. Closing resets
                // then.
                if self.options.ports.is_none() {
                    let end = stream.read(&mut [0]).context("read the end")?;
                    ensure!(end == 0, "more than an answer");
                }
            }
            By::Udp => {
                let socket = UdpSocket::bind(self.local()).context("bind")?;
                socket.set_read_timeout(Some(PATIENCE))?;
                socket.connect(target).context("connect")?;
                socket.send(&request).context("send")?;
                ensure!(socket.recv(&mut answer).context("recv")? == ANSWER, "cut off");
            }
            By::Unconnected => {
                if self.socket.is_none() {
                    let socket = UdpSocket::bind(self.local()).context("bind")?;
                    socket.set_read_timeout(Some(PATIENCE))?;
                    self.socket = Some(socket);
                }
                let socket = self.socket.as_ref().context("just made")?;
                socket.send_to(&request, target).context("sendto")?;
                let (_, from) = socket.recv_from(&mut answer).context("recvfrom")?;
                ensure!(from == target, "the answer comes from {from}");
            }
        }
        if answer[..REQUEST] != request {
            bail!("the answer to another request");
        }
        let number = answer[REQUEST..].try_into().context("an answer's length")?;
        Ok(u32::from_be_bytes(number))
    }

    fn connect(&self, target: SocketAddr) -> Result<TcpStream> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
        if self.options.ports.is_some() {
            socket.set_reuse_address(true)?;
            socket.set_linger(Some(Duration::ZERO))?;
            socket.bind(&self.local().into()).context("bind")?;
        }
        socket.connect_timeout(&target.into(), PATIENCE).context("connect")?;
        let stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(stream)
    }
}

/// Whether the socket was destroyed because its backend went, which asks the program to connect anew.
fn was_woken(outcome: &Result<u32>) -> bool {
    let cause = outcome.as_ref().err().and_then(|error| error.downcast_ref::<std::io::Error>());
    cause.is_some_and(|error| error.kind() == std::io::ErrorKind::ConnectionAborted)
}
