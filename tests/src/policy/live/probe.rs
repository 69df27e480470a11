//! All cells at once: sockets in every namespace, one thread, one epoll.
//!
//! TCP asks by connecting, UDP by a datagram with the cell's number; whoever is asked answers with its name. A cell is
//! allowed as soon as the question is seen at its destination. Nothing shows that a packet was dropped, so a cell is
//! denied only after [`ROUNDS`] questions, each with sockets and source ports of its own, went unseen. A round ends when
//! questions that no policy may deny (a node's to its own pods), sent after all others, have come back, and then nothing
//! more has arrived for four times as long as those took: a slow machine makes rounds longer, not verdicts wrong.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::SocketAddr;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};
use sluice_model::Protocol;
use socket2::Socket;

use super::{Stage, socket};
use crate::policy::cluster::{PORTS, Who};
use crate::policy::oracle::is_own_node;
use crate::policy::table::{End, Query, Table};

/// Questions that must go unseen before a cell counts as denied.
pub const ROUNDS: u32 = 3;
/// The shortest silence that ends a round.
const SILENCE: Duration = Duration::from_millis(20);
/// How long the questions that must arrive may take.
const STUCK: Duration = Duration::from_secs(20);
/// Source ports: above the NodePorts, a fresh one for every round, so that no data plane knows the flow from before.
const SOURCES: Range<u32> = 33_000..60_000;

/// What was seen.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Observation {
    /// Each cell: whether the question arrived.
    pub table: Table,
    /// Cells whose question arrived and whose answer did not, or that somebody else answered, as sentences.
    pub faults: Vec<String>,
    /// How long it took.
    pub elapsed: Duration,
}

/// What became of one cell so far.
#[derive(Clone, Debug)]
struct Cell {
    query: Query,
    arrived: bool,
    answered: bool,
    /// The other side said no by itself: a reset, an ICMP error.
    refused: bool,
    fault: Option<String>,
}

impl Cell {
    fn new(query: Query) -> Self {
        Self { query, arrived: false, answered: false, refused: false, fault: None }
    }

    fn is_pending(&self) -> bool {
        !self.answered && !self.refused
    }
}

/// A socket that asks.
struct Client {
    /// The only cell of a TCP socket; datagrams carry their cell's number.
    cell: Option<usize>,
    socket: Socket,
}

/// Asks all these cells.
///
/// # Errors
/// A socket cannot be made, or what no policy may deny does not arrive.
pub fn observe(stage: &Stage, queries: &[Query]) -> Result<Observation> {
    let start = Instant::now();
    let mut run = Run::new(stage, queries)?;
    for _ in 0..ROUNDS {
        if !run.round()? {
            break;
        }
    }
    let mut faults = Vec::new();
    let mut table = Table::new();
    for cell in &run.cells[..run.barriers] {
        let text = cell.query.text(stage.world());
        if let Some(fault) = &cell.fault {
            faults.push(format!("{text}: {fault}"));
        } else if cell.arrived && !cell.answered {
            faults.push(format!("{text}: the question arrived, the answer did not"));
        }
        table.insert(cell.query, cell.arrived);
    }
    Ok(Observation { table, faults, elapsed: start.elapsed() })
}

struct Run<'a> {
    stage: &'a Stage,
    epoll: OwnedFd,
    /// The cells that were asked for, then from `barriers` on those that must arrive.
    cells: Vec<Cell>,
    barriers: usize,
    /// The number of this round; answers to others are late.
    serial: u32,
    names: BTreeMap<Who, String>,
    clients: Vec<Client>,
    accepted: Vec<Socket>,
}

impl<'a> Run<'a> {
    fn new(stage: &'a Stage, queries: &[Query]) -> Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).context("epoll_create")?;
        for (index, server) in stage.servers().iter().enumerate() {
            watch(&epoll, &server.socket, index)?;
        }
        let mut cells: Vec<Cell> = queries.iter().copied().map(Cell::new).collect();
        let barriers = cells.len();
        cells.extend(barrier_queries(stage).into_iter().map(Cell::new));
        let names = stage.parties().into_iter().map(|who| (who, stage.world().name(who))).collect();
        let (clients, accepted) = (Vec::new(), Vec::new());
        Ok(Self { stage, epoll, cells, barriers, serial: 0, names, clients, accepted })
    }

    /// Asks what was not answered yet. Returns whether something is left.
    fn round(&mut self) -> Result<bool> {
        self.clients.clear();
        self.accepted.clear();
        self.serial = self.stage.round.fetch_add(1, Ordering::Relaxed);
        for cell in &mut self.cells[self.barriers..] {
            *cell = Cell::new(cell.query);
        }
        self.ask(0..self.barriers)?;
        // Answers wait in their sockets meanwhile.
        let sent = Instant::now();
        self.ask(self.barriers..self.cells.len())?;
        let mut last = Instant::now();
        let mut lag = None;
        loop {
            let pending = self.cells[..self.barriers].iter().any(Cell::is_pending);
            if lag.is_none() && !self.cells[self.barriers..].iter().any(Cell::is_pending) {
                lag = Some(sent.elapsed());
            }
            let silence = lag.map_or(STUCK, |lag| SILENCE.max(4 * lag));
            let left = silence.saturating_sub(last.elapsed());
            if lag.is_some() && (!pending || left.is_zero()) {
                return Ok(pending);
            }
            if left.is_zero() {
                let stuck = self.cells[self.barriers..].iter().filter(|cell| cell.is_pending());
                let stuck: Vec<String> =
                    stuck.map(|cell| cell.query.text(self.stage.world())).collect();
                bail!("even what no policy may deny does not arrive: {}", stuck.join(", "));
            }
            if self.wait(left)? {
                last = Instant::now();
            }
        }
    }

    /// Sends the questions of those cells that are pending, a namespace after the other.
    fn ask(&mut self, range: Range<usize>) -> Result<()> {
        let ports = SOURCES.end - SOURCES.start;
        let port = u16::try_from(SOURCES.start + self.serial % ports).context("source port")?;
        // Those that must arrive have sockets of their own, beside the ones of their party.
        let port = if range.start == self.barriers { port + 1000 } else { port };
        let mut of: BTreeMap<Who, Vec<usize>> = BTreeMap::new();
        for index in range.filter(|index| self.cells[*index].is_pending()) {
            of.entry(self.cells[index].query.from.who).or_default().push(index);
        }
        for (who, indexes) in of {
            let (cells, serial) = (&self.cells, self.serial);
            let opened = self
                .stage
                .netns(who)
                .run(|| open(cells, &indexes, port, serial))?
                .with_context(|| format!("questions of {}", self.names[&who]))?;
            for (cell, result) in opened.refused {
                self.refuse(cell, result);
            }
            for client in opened.clients {
                let number = self.stage.servers().len() + self.clients.len();
                watch(&self.epoll, &client.socket, number)?;
                self.clients.push(client);
            }
        }
        Ok(())
    }

    /// Handles what happens within that time. Returns whether anything did.
    fn wait(&mut self, time: Duration) -> Result<bool> {
        let mut events = Vec::with_capacity(256);
        let timeout = Timespec::try_from(time).context("time limit")?;
        match epoll::wait(&self.epoll, spare_capacity(&mut events), Some(&timeout)) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => return Ok(false),
            Err(error) => return Err(error).context("epoll_wait"),
        }
        let servers = self.stage.servers().len();
        for event in &events {
            let number = event.data.u64() as usize;
            if number < servers {
                self.serve(number)?;
            } else if number - servers < self.clients.len() {
                self.hear(number - servers)?;
            }
        }
        Ok(!events.is_empty())
    }

    /// Takes what a listening socket has and answers it.
    fn serve(&mut self, index: usize) -> Result<()> {
        let server = &self.stage.servers()[index];
        let name = self.names[&server.who].clone();
        if server.protocol == Protocol::Tcp {
            while let Some((mut connection, _)) = ready(server.socket.accept())? {
                // One whose client is gone by now says so here; the client is who counts.
                let _ = connection.write_all(name.as_bytes());
                self.accepted.push(connection);
            }
            return Ok(());
        }
        let mut buffer = [0; 64];
        while let Some((len, from)) = receive(&server.socket, &mut buffer)? {
            let Some(cell) = self.cell_of(&buffer[..len]) else { continue };
            let cell = &mut self.cells[cell];
            if cell.query.to.who != server.who {
                cell.fault = Some(format!("the question arrived at {name}"));
            }
            cell.arrived = true;
            let answer = [&buffer[..QUESTION], name.as_bytes()].concat();
            // Where the answer cannot be sent, it is missed at the other end.
            let _ = server.socket.send_to(&answer, &from.into());
        }
        Ok(())
    }

    /// Takes the answers that a socket has got.
    fn hear(&mut self, index: usize) -> Result<()> {
        let mut buffer = [0; 64];
        let Some(cell) = self.clients[index].cell else {
            while let Some((len, _)) = receive(&self.clients[index].socket, &mut buffer)? {
                if let Some(cell) = self.cell_of(&buffer[..len]) {
                    self.answered(cell, &buffer[QUESTION..len]);
                }
            }
            return Ok(());
        };
        match self.clients[index].socket.read(&mut buffer) {
            Ok(len) => self.answered(cell, &buffer[..len]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => self.refuse(cell, error),
        }
        // A connection that ended is ready for ever.
        epoll::delete(&self.epoll, &self.clients[index].socket).or_else(|error| match error {
            rustix::io::Errno::NOENT => Ok(()),
            other => Err(other).context("epoll_ctl"),
        })
    }

    fn answered(&mut self, cell: usize, name: &[u8]) {
        let cell = &mut self.cells[cell];
        let name = String::from_utf8_lossy(name);
        if name != self.names[&cell.query.to.who] {
            cell.fault = Some(format!("answered by \"{name}\""));
        }
        (cell.arrived, cell.answered) = (true, true);
    }

    fn refuse(&mut self, cell: usize, error: std::io::Error) {
        let cell = &mut self.cells[cell];
        cell.refused = true;
        match error.kind() {
            // What a data plane that rejects may say.
            ErrorKind::ConnectionRefused
            | ErrorKind::HostUnreachable
            | ErrorKind::NetworkUnreachable
            | ErrorKind::PermissionDenied => {}
            _ => cell.fault = Some(error.to_string()),
        }
    }

    /// The cell that a datagram of this round belongs to.
    fn cell_of(&self, datagram: &[u8]) -> Option<usize> {
        let serial = u32::from_le_bytes(datagram.get(..4)?.try_into().ok()?);
        let index = u32::from_le_bytes(datagram.get(4..QUESTION)?.try_into().ok()?) as usize;
        (serial == self.serial && index < self.cells.len()).then_some(index)
    }
}

/// Length of a question: the round's number and the cell's.
const QUESTION: usize = 8;

/// What was opened in a namespace.
struct Opened {
    clients: Vec<Client>,
    refused: Vec<(usize, std::io::Error)>,
}

/// Opens the sockets for these cells and asks, in the namespace that the thread is in.
fn open(cells: &[Cell], indexes: &[usize], port: u16, serial: u32) -> Result<Opened> {
    let mut opened = Opened { clients: Vec::new(), refused: Vec::new() };
    let mut datagrams: BTreeMap<SocketAddr, Socket> = BTreeMap::new();
    for &index in indexes {
        let query = &cells[index].query;
        let source = SocketAddr::new(query.from.addr, port);
        let target = SocketAddr::new(query.to.addr, query.port);
        let sent = if query.protocol == Protocol::Tcp {
            let socket = socket(Protocol::Tcp, source).with_context(|| source.to_string())?;
            // Nothing stays behind when it is closed.
            socket.set_linger(Some(Duration::ZERO))?;
            let result = socket.connect(&target.into());
            opened.clients.push(Client { cell: Some(index), socket });
            result
        } else {
            let socket = match datagrams.entry(source) {
                Entry::Occupied(known) => known.into_mut(),
                Entry::Vacant(free) => {
                    free.insert(socket(Protocol::Udp, source).with_context(|| source.to_string())?)
                }
            };
            let question = [serial.to_le_bytes(), (index as u32).to_le_bytes()].concat();
            socket.send_to(&question, &target.into()).map(drop)
        };
        match sent {
            Ok(()) => {}
            Err(error)
                if error.raw_os_error() == Some(rustix::io::Errno::INPROGRESS.raw_os_error()) => {}
            Err(error) => opened.refused.push((index, error)),
        }
    }
    let datagrams = datagrams.into_values().map(|socket| Client { cell: None, socket });
    opened.clients.extend(datagrams);
    Ok(opened)
}

/// A node's questions to its own pods, in both families.
fn barrier_queries(stage: &Stage) -> Vec<Query> {
    let world = stage.world();
    let mut queries = Vec::new();
    for from in (0..world.nodes.len()).map(Who::Node) {
        for to in stage.parties() {
            let Who::Pod(index) = to else { continue };
            if !is_own_node(world, &world.pods[index], from) {
                continue;
            }
            for v6 in [false, true] {
                if let (Some(source), Some(target)) = (world.addr(from, v6), world.addr(to, v6)) {
                    queries.push(Query {
                        protocol: Protocol::Udp,
                        port: PORTS[0],
                        from: End { who: from, addr: source },
                        to: End { who: to, addr: target },
                    });
                }
            }
        }
    }
    queries
}

fn watch(epoll: &OwnedFd, socket: &Socket, number: usize) -> Result<()> {
    epoll::add(epoll, socket, epoll::EventData::new_u64(number as u64), epoll::EventFlags::IN)
        .context("epoll_ctl")
}

/// `None` where there is nothing yet.
fn ready<T>(result: std::io::Result<T>) -> Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error).context("socket"),
    }
}

/// The next datagram and its sender.
fn receive(socket: &Socket, buffer: &mut [u8]) -> Result<Option<(usize, SocketAddr)>> {
    // `recv_from` of socket2 takes memory that is not initialised.
    let received = rustix::net::recvfrom(socket, buffer, rustix::net::RecvFlags::empty());
    let received = received.map_err(std::io::Error::from);
    let Some((len, _, Some(from))) = ready(received)? else { return Ok(None) };
    Ok(Some((len, SocketAddr::try_from(from).context("sender of a datagram")?)))
}
