//! One socket, and the queries that are under way by it.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::io::{IoSlice, IoSliceMut};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::sys::socket::{ControlMessage, MsgFlags, MultiHeaders, recvmmsg, sendmsg};
use sluice_tests::dns::message;

use crate::Source;
use crate::queries::Query;

/// How many datagrams a system call takes or sends.
const BATCH: usize = 64;
/// The most queries under way by one socket: what one octet of an id can tell apart.
pub(crate) const MAX_UNDER_WAY: usize = 256;
/// Room for any answer to a query without EDNS.
const ANSWER: usize = 512;

/// What came of the queries of all sockets.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) answered: u64,
    pub(crate) lost: u64,
    pub(crate) wrong: u64,
    pub(crate) failures: BTreeMap<String, u64>,
}

impl Tally {
    fn wrong(&mut self, why: impl Into<String>) {
        self.wrong += 1;
        *self.failures.entry(why.into()).or_default() += 1;
    }

    fn lost(&mut self) {
        self.lost += 1;
        *self.failures.entry("no answer in time".to_owned()).or_default() += 1;
    }
}

/// A place for a query under way.
struct Place<'q> {
    /// The low octet is the place's number, the high one counts its queries.
    id: u16,
    message: Vec<u8>,
    /// The query under way, and since when.
    query: Option<(&'q Query, Instant)>,
}

/// A connected socket with its queries.
pub(crate) struct Line<'q> {
    socket: UdpSocket,
    places: Vec<Place<'q>>,
    /// Places without a query.
    free: Vec<usize>,
    answers: Vec<u8>,
    incoming: MultiHeaders<()>,
}

impl<'q> Line<'q> {
    /// A socket that is connected to the server, for so many queries under way.
    pub(crate) fn new(server: SocketAddr, under_way: usize) -> Result<Self> {
        let any: SocketAddr =
            if server.is_ipv4() { ([0; 4], 0).into() } else { ([0; 16], 0).into() };
        let socket = UdpSocket::bind(any).context("bind")?;
        socket.connect(server).with_context(|| format!("connect to {server}"))?;
        let place = |number: usize| Place {
            id: u16::try_from(number % MAX_UNDER_WAY).unwrap_or(0),
            message: Vec::new(),
            query: None,
        };
        Ok(Self {
            socket,
            places: (0..under_way.min(MAX_UNDER_WAY)).map(place).collect(),
            free: (0..under_way.min(MAX_UNDER_WAY)).rev().collect(),
            answers: vec![0; BATCH * ANSWER],
            incoming: MultiHeaders::preallocate(BATCH, None),
        })
    }

    /// Whether a query is under way.
    pub(crate) fn waits(&self) -> bool {
        self.free.len() < self.places.len()
    }

    /// Takes the answers that are there, up to a batch; says how many there were.
    pub(crate) fn take(&mut self, tally: &mut Tally) -> Result<usize> {
        let Self { socket, places, free, answers, incoming, .. } = self;
        let mut chunks = answers.chunks_exact_mut(ANSWER);
        let mut slices: [[IoSliceMut<'_>; 1]; BATCH] =
            std::array::from_fn(|_| [IoSliceMut::new(chunks.next().unwrap_or_default())]);
        let fd = socket.as_raw_fd();
        let received = match recvmmsg(fd, incoming, &mut slices, MsgFlags::MSG_DONTWAIT, None) {
            Ok(received) => received,
            Err(Errno::EAGAIN | Errno::EINTR) => return Ok(0),
            Err(error) => return Err(error).context("recvmmsg"),
        };
        let mut count = 0;
        for answer in received {
            count += 1;
            let answer = answer.iovs().next().unwrap_or_default();
            match answered(places, answer) {
                Ok(number) => {
                    free.push(number);
                    tally.answered += 1;
                }
                Err((number, why)) => {
                    free.extend(number);
                    tally.wrong(why);
                }
            }
        }
        Ok(count)
    }

    /// Asks as many queries as may be under way, up to a batch.
    pub(crate) fn ask(&mut self, source: &mut Source<'q>, now: Instant) -> Result<()> {
        let left = usize::try_from(source.left).unwrap_or(usize::MAX);
        let count = self.free.len().min(BATCH).min(left);
        if count == 0 {
            return Ok(());
        }
        let Self { socket, places, free, .. } = self;
        // The places that are asked by now are at the end of the list.
        let first = free.len() - count;
        for &number in &free[first..] {
            places[number].fill(source.next(), now);
        }
        free[first..].sort_unstable_by_key(|&number| Reverse(places[number].message.len()));
        while free.len() > first {
            let end = train(&free[first..], |number| places[number].message.len());
            let cars = &free[first..first + end];
            match send(socket, cars, places) {
                Ok(_) => {
                    source.left -= end as u64;
                    free.drain(first..first + end);
                }
                Err(Errno::EAGAIN | Errno::EINTR | Errno::ENOBUFS) => {
                    // What found no room is neither asked nor lost: another query takes its place.
                    free[first..].iter().for_each(|&number| places[number].query = None);
                    return Ok(());
                }
                Err(error) => return Err(error).context("sendmsg"),
            }
        }
        Ok(())
    }

    /// Gives up what has waited for so long.
    pub(crate) fn give_up(&mut self, now: Instant, timeout: Duration, tally: &mut Tally) {
        for (number, place) in self.places.iter_mut().enumerate() {
            if place.query.is_some_and(|(_, since)| now.saturating_duration_since(since) > timeout)
            {
                place.query = None;
                self.free.push(number);
                tally.lost();
            }
        }
    }
}

impl<'q> Place<'q> {
    fn fill(&mut self, query: &'q Query, now: Instant) {
        // Another id than the last query here had, whose answer may be late.
        self.id = self.id.wrapping_add(MAX_UNDER_WAY as u16);
        self.message.clear();
        self.message.extend_from_slice(&query.message);
        self.message[..2].copy_from_slice(&self.id.to_be_bytes());
        self.query = Some((query, now));
    }
}

/// How many of the first, longest first, go as one train: all of one length, but the last may be shorter.
fn train(places: &[usize], length: impl Fn(usize) -> usize) -> usize {
    let Some((&head, rest)) = places.split_first() else { return 0 };
    let same = rest.iter().take_while(|&&number| length(number) == length(head)).count();
    (same + 2).min(places.len())
}

fn send(socket: &UdpSocket, cars: &[usize], places: &[Place<'_>]) -> nix::Result<usize> {
    let mut parts = [IoSlice::new(&[]); BATCH];
    for (part, &number) in parts.iter_mut().zip(cars) {
        *part = IoSlice::new(&places[number].message);
    }
    // No query is as long as a datagram can be.
    let segment = u16::try_from(parts[0].len()).unwrap_or(u16::MAX);
    let segment = [ControlMessage::UdpGsoSegments(&segment)];
    let control = if cars.len() > 1 { &segment[..] } else { &[] };
    let flags = MsgFlags::MSG_DONTWAIT;
    sendmsg::<()>(socket.as_raw_fd(), &parts[..cars.len()], control, flags, None)
}

/// The place whose query that is the right answer to; else why there is none, and the place that it was
/// meant for.
fn answered(places: &mut [Place<'_>], answer: &[u8]) -> Result<usize, (Option<usize>, String)> {
    let id = answer.first_chunk().map(|id| u16::from_be_bytes(*id));
    let number = id.map_or(0, |id| usize::from(id) % MAX_UNDER_WAY);
    let place = places.get_mut(number).filter(|place| Some(place.id) == id);
    let Some((place, (query, _))) = place.and_then(|place| {
        let query = place.query.take();
        Some(place).zip(query)
    }) else {
        return Err((None, "an answer that nobody asked for".to_owned()));
    };
    let head = message::head(answer, place.id, &query.message);
    let head = head.map_err(|why| (Some(number), why.to_owned()))?;
    if !query.expect.is_met(head) {
        return Err((Some(number), format!("{head:?} instead of {:?}", query.expect)));
    }
    Ok(number)
}

#[cfg(test)]
mod tests {
    use sluice_tests::dns::message::Expect;

    use super::*;

    fn query() -> Query {
        let message = message::query("a.example", hickory_proto::rr::RecordType::A).unwrap();
        Query { message, expect: Expect::NoData }
    }

    fn places(query: &Query) -> Vec<Place<'_>> {
        let empty = |id| Place { id, message: Vec::new(), query: None };
        let mut places: Vec<_> = (0..3).map(empty).collect();
        places[2].fill(query, Instant::now());
        places
    }

    #[test]
    fn an_answer_is_taken_once_and_by_its_query_only() {
        let query = query();
        let mut places = places(&query);
        let mut answer = places[2].message.clone();
        answer[2] |= 0x80;
        let mut other = answer.clone();
        other[0] ^= 1;
        assert_eq!(answered(&mut places, &other).unwrap_err().0, None, "an id of another time");
        other[..2].copy_from_slice(&[1, 77]);
        assert_eq!(answered(&mut places, &other).unwrap_err().0, None, "no such place");
        assert_eq!(answered(&mut places, &answer), Ok(2));
        assert_eq!(answered(&mut places, &answer).unwrap_err().0, None, "answered already");
        assert_eq!(answered(&mut places, &[]).unwrap_err().0, None);
    }

    #[test]
    fn a_wrong_answer_frees_the_place_and_counts_as_wrong() {
        let query = query();
        let mut places = places(&query);
        let mut answer = places[2].message.clone();
        answer[2] |= 0x80;
        answer[3] |= 5;
        let (number, why) = answered(&mut places, &answer).unwrap_err();
        assert_eq!(number, Some(2));
        assert!(why.contains("code: 5"), "{why}");
    }
}
