//! DNS queries at a steady rate from many sockets, each asked once: what resolvers meet.
//!
//! Resolvers use their sockets in three ways, and all are there: a socket that stays connected to the
//! server (c-ares, systemd-resolved), one that is never connected (musl), one for each query (glibc, Go).
//! A socket has one query under way. A query that is not answered in time, or whose socket fails while
//! it is under way, is lost; it is never asked again. A socket that the kernel has taken away between
//! two queries is opened anew, which loses nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Parser;
use hickory_proto::rr::RecordType;
use rustix::event::{Timespec, epoll};
use sluice_tests::app::Latency;
use sluice_tests::dns::{DnsLoadReport, message};
use sluice_tests::interrupt;

/// How often is looked for queries that were not answered.
const LOOK: Duration = Duration::from_millis(100);

#[derive(Parser)]
#[command(name = "dnsload", about = "DNS queries at a steady rate, each asked once")]
struct Args {
    /// The server
    server: SocketAddr,
    /// Queries a second
    #[arg(long, default_value_t = 1000.0)]
    rate: f64,
    /// Sockets of each kind that stay
    #[arg(long, default_value_t = 16)]
    sockets: usize,
    /// A name with the addresses that are right for it, joined by "+"; none where there is no such name
    #[arg(long = "name", value_name = "NAME=[ADDR[+ADDR]]", value_parser = question, required = true)]
    names: Vec<Question>,
    /// How long a query may take, in milliseconds
    #[arg(long, default_value_t = 10_000)]
    timeout: u64,
    /// Stop after so many seconds, and not at SIGTERM
    #[arg(long)]
    seconds: Option<f64>,
}

#[derive(Clone)]
struct Question {
    name: String,
    message: Vec<u8>,
    right: BTreeSet<IpAddr>,
}

fn question(text: &str) -> Result<Question> {
    let (name, addrs) = text.split_once('=').context("expected NAME=ADDR")?;
    let right: BTreeSet<IpAddr> = addrs
        .split('+')
        .filter(|addr| !addr.is_empty())
        .map(|addr| addr.parse().with_context(|| addr.to_owned()))
        .collect::<Result<_>>()?;
    let v6 = right.iter().any(IpAddr::is_ipv6);
    let kind = if v6 { RecordType::AAAA } else { RecordType::A };
    Ok(Question { name: name.to_owned(), message: message::query(name, kind)?, right })
}

/// How a socket is used.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Connected,
    Unconnected,
    New,
}

const KINDS: [Kind; 3] = [Kind::Connected, Kind::Unconnected, Kind::New];

/// A query under way.
struct Flight {
    question: usize,
    id: u16,
    sent: Instant,
}

struct Slot {
    socket: UdpSocket,
    kind: Kind,
    flight: Option<Flight>,
}

struct Load<'a> {
    args: &'a Args,
    epoll: std::os::fd::OwnedFd,
    slots: Vec<Option<Slot>>,
    free: Vec<usize>,
    /// Sockets without a query, by kind.
    idle: [Vec<usize>; 2],
    asked: u64,
    report: DnsLoadReport,
    latencies: Vec<u64>,
}

fn main() -> Result<()> {
    let args = Args::parse();
    interrupt::take_over()?;
    let mut load = Load::new(&args)?;
    eprintln!("running until SIGTERM or Ctrl-C");
    let start = Instant::now();
    let mut looked = start;
    let ends = args.seconds.map(|limit| start + Duration::from_secs_f64(limit));
    // How many queries of each kind were made.
    let mut made = [0_u64; 3];
    loop {
        let now = Instant::now();
        if interrupt::interrupted() || ends.is_some_and(|end| now >= end) {
            break;
        }
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a pace needs no exact number"
        )]
        let due = (now.duration_since(start).as_secs_f64() * args.rate / 3.0) as u64;
        for (kind, made) in KINDS.into_iter().zip(&mut made) {
            while *made < due && load.ask(kind)? {
                *made += 1;
            }
        }
        load.receive(Duration::from_millis(1))?;
        if looked.elapsed() >= LOOK {
            looked = Instant::now();
            load.look()?;
        }
    }
    let asking = start.elapsed().as_secs_f64();
    while load.slots.iter().flatten().any(|slot| slot.flight.is_some()) {
        load.receive(LOOK)?;
        load.look()?;
    }
    let Load { mut report, mut latencies, asked, .. } = load;
    report.asked = asked;
    report.seconds = asking;
    #[allow(clippy::cast_precision_loss, reason = "for people")]
    let rate = asked as f64 / asking;
    report.rate = rate;
    report.latency_us = Latency::of(&mut latencies);
    println!("{}", serde_json::to_string(&report)?);
    Ok(())
}

impl<'a> Load<'a> {
    fn new(args: &'a Args) -> Result<Self> {
        let mut load = Self {
            args,
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC).context("epoll_create")?,
            slots: Vec::new(),
            free: Vec::new(),
            idle: [Vec::new(), Vec::new()],
            asked: 0,
            report: DnsLoadReport::default(),
            latencies: Vec::new(),
        };
        for (list, kind) in [Kind::Connected, Kind::Unconnected].into_iter().enumerate() {
            for _ in 0..args.sockets {
                let index = load.open(kind)?;
                load.idle[list].push(index);
            }
        }
        Ok(load)
    }

    fn socket(&self, kind: Kind) -> io::Result<UdpSocket> {
        let any: SocketAddr =
            if self.args.server.is_ipv4() { ([0; 4], 0).into() } else { ([0; 16], 0).into() };
        // Without a bind where the kernel is to pick the port as late as for any client.
        let socket = if kind == Kind::Unconnected {
            UdpSocket::bind(any)?
        } else {
            let domain = socket2::Domain::for_address(any);
            UdpSocket::from(socket2::Socket::new(domain, socket2::Type::DGRAM, None)?)
        };
        if kind != Kind::Unconnected {
            socket.connect(self.args.server)?;
        }
        socket.set_nonblocking(true)?;
        Ok(socket)
    }

    /// Opens a socket; its place.
    fn open(&mut self, kind: Kind) -> io::Result<usize> {
        let socket = self.socket(kind)?;
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() - 1
        });
        let data = epoll::EventData::new_u64(index as u64);
        epoll::add(&self.epoll, &socket, data, epoll::EventFlags::IN)?;
        self.slots[index] = Some(Slot { socket, kind, flight: None });
        Ok(index)
    }

    /// Closes a socket, and opens another in its place where one is to stay.
    fn close(&mut self, index: usize) -> io::Result<()> {
        let Some(slot) = self.slots[index].take() else { return Ok(()) };
        self.free.push(index);
        let list = match slot.kind {
            Kind::Connected => 0,
            Kind::Unconnected => 1,
            Kind::New => return Ok(()),
        };
        drop(slot);
        self.idle[list].retain(|idle| *idle != index);
        let index = self.open(KINDS[list])?;
        self.idle[list].push(index);
        Ok(())
    }

    /// Asks a question by a socket of that kind; `false` if all have one under way.
    fn ask(&mut self, kind: Kind) -> Result<bool> {
        let opened = match kind {
            Kind::Connected => Ok(self.idle[0].pop()),
            Kind::Unconnected => Ok(self.idle[1].pop()),
            Kind::New => self.open(kind).map(Some),
        };
        let index = match opened {
            Ok(Some(index)) => index,
            Ok(None) => return Ok(false),
            Err(error) => {
                self.asked += 1;
                self.lost(format!("connect: {error}"));
                return Ok(true);
            }
        };
        #[allow(clippy::cast_possible_truncation, reason = "any number does")]
        let id = (self.asked.wrapping_mul(40_503) >> 3) as u16;
        let number = usize::try_from(self.asked).unwrap_or(0) % self.args.names.len();
        let mut message = self.args.names[number].message.clone();
        message[..2].copy_from_slice(&id.to_be_bytes());
        self.asked += 1;
        let mut sent = self.send(index, &message);
        if sent.is_err() && kind == Kind::Connected {
            // The kernel took the socket away since its last answer; the query has not gone out.
            self.report.reopened += 1;
            let fresh = self.socket(kind)?;
            let data = epoll::EventData::new_u64(index as u64);
            epoll::add(&self.epoll, &fresh, data, epoll::EventFlags::IN)?;
            self.slots[index] = Some(Slot { socket: fresh, kind, flight: None });
            sent = self.send(index, &message);
        }
        match sent {
            Ok(_) => {
                let flight = Flight { question: number, id, sent: Instant::now() };
                if let Some(slot) = &mut self.slots[index] {
                    slot.flight = Some(flight);
                }
            }
            Err(error) => {
                self.lost(format!("send: {error}"));
                self.close(index)?;
            }
        }
        Ok(true)
    }

    fn send(&self, index: usize, message: &[u8]) -> io::Result<usize> {
        let Some(slot) = &self.slots[index] else { return Ok(0) };
        match slot.kind {
            Kind::Unconnected => slot.socket.send_to(message, self.args.server),
            Kind::Connected | Kind::New => slot.socket.send(message),
        }
    }

    fn lost(&mut self, why: String) {
        self.report.lost += 1;
        *self.report.failures.entry(why).or_default() += 1;
    }

    /// Waits for answers, and takes those that are there.
    fn receive(&mut self, limit: Duration) -> Result<()> {
        let mut events: Vec<epoll::Event> = Vec::with_capacity(256);
        let limit = Timespec::try_from(limit).context("limit")?;
        let spare = rustix::buffer::spare_capacity(&mut events);
        match epoll::wait(&self.epoll, spare, Some(&limit)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => bail!("epoll_wait: {error}"),
        }
        for event in events {
            let index = usize::try_from(event.data.u64())?;
            self.take(index)?;
        }
        Ok(())
    }

    /// Takes what has come to a socket.
    fn take(&mut self, index: usize) -> Result<()> {
        let Some(slot) = self.slots.get_mut(index).and_then(Option::as_mut) else { return Ok(()) };
        let mut buffer = [0; 4096];
        let (length, from) = match slot.socket.recv_from(&mut buffer) {
            Ok(received) => received,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => {
                let kind = slot.kind;
                if slot.flight.take().is_some() {
                    self.lost(format!("{}: {error}", kind.name()));
                } else {
                    self.report.reopened += 1;
                }
                return Ok(self.close(index)?);
            }
        };
        let Some(flight) = slot.flight.take() else {
            self.wrong("an answer that nobody asked for".to_owned());
            return Ok(());
        };
        let kind = slot.kind;
        let taken = u64::try_from(flight.sent.elapsed().as_micros()).unwrap_or(u64::MAX);
        let question = &self.args.names[flight.question];
        match message::check(&buffer[..length], flight.id, &question.message, &question.right) {
            _ if from != self.args.server => {
                self.wrong(format!("an answer from {from}"));
            }
            Ok(()) => {
                self.report.answered += 1;
                self.latencies.push(taken);
            }
            Err(why) => self.wrong(format!("{}: {why}", question.name)),
        }
        match kind {
            Kind::Connected => self.idle[0].push(index),
            Kind::Unconnected => self.idle[1].push(index),
            Kind::New => self.close(index)?,
        }
        Ok(())
    }

    fn wrong(&mut self, why: String) {
        self.report.wrong += 1;
        *self.report.failures.entry(why).or_default() += 1;
    }

    /// Gives up what was not answered in time.
    fn look(&mut self) -> Result<()> {
        let timeout = Duration::from_millis(self.args.timeout);
        let mut late: BTreeMap<usize, &'static str> = BTreeMap::new();
        for (index, slot) in self.slots.iter().enumerate() {
            if let Some(slot) = slot
                && slot.flight.as_ref().is_some_and(|flight| flight.sent.elapsed() >= timeout)
            {
                late.insert(index, slot.kind.name());
            }
        }
        for (index, kind) in late {
            self.lost(format!("{kind}: no answer in time"));
            self.close(index)?;
        }
        Ok(())
    }
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Connected => "connected socket",
            Self::Unconnected => "unconnected socket",
            Self::New => "new socket",
        }
    }
}
