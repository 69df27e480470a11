//! What the stress test's clients tell, and what is right at which time.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

/// Requests that began within the same stretch of so many milliseconds are told as one.
pub const BUCKET_MS: u64 = 100;

/// Milliseconds of the monotonic clock, which all processes of a machine share.
pub fn monotonic_ms() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    u64::try_from(now.tv_sec).unwrap_or(0) * 1_000
        + u64::try_from(now.tv_nsec).unwrap_or(0) / 1_000_000
}

/// What a client saw.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Answers {
    /// Requests that were answered rightly, as far as the client can tell.
    pub ok: u64,
    /// Errors, by their text.
    pub failures: BTreeMap<String, u64>,
    /// Service, endpoint, number of the [`BUCKET_MS`] in which the request began, and when the last answer of these
    /// ended, in milliseconds.
    pub seen: Vec<(u32, u32, u64, u64)>,
    /// Service, begin and end in milliseconds of requests whose connected datagram socket was woken because its backend
    /// went; they were made again.
    pub woken: Vec<(u32, u64, u64)>,
}

impl Answers {
    /// Adds another client's.
    pub fn merge(&mut self, other: Self) {
        self.ok += other.ok;
        for (text, count) in other.failures {
            *self.failures.entry(text).or_default() += count;
        }
        self.seen.extend(other.seen);
        self.woken.extend(other.woken);
    }
}

/// Which endpoints a service had when.
#[derive(Debug, Default)]
pub struct History {
    /// By service: every set of endpoints with the time before it was asked for, in milliseconds.
    sets: BTreeMap<u32, Vec<(u64, BTreeSet<u32>)>>,
}

impl History {
    /// From now on, the service has these endpoints. To be called before it is so.
    pub fn set(&mut self, service: u32, endpoints: BTreeSet<u32>) {
        self.sets.entry(service).or_default().push((monotonic_ms(), endpoints));
    }

    /// What the service has now.
    pub fn current(&self, service: u32) -> Option<&BTreeSet<u32>> {
        self.sets.get(&service)?.last().map(|(_, set)| set)
    }

    /// How often a service got other endpoints.
    pub fn changes(&self) -> usize {
        self.sets.values().map(|sets| sets.len() - 1).sum()
    }

    /// Whether the service lost an endpoint between the two times.
    pub fn lost_one(&self, service: u32, from: u64, to: u64) -> bool {
        let Some(sets) = self.sets.get(&service) else { return false };
        sets.windows(2).any(|pair| {
            let (at, after) = &pair[1];
            *at >= from && *at <= to && !pair[0].1.is_subset(after)
        })
    }

    /// Whether the endpoint was the service's at some time between the two.
    pub fn allows(&self, service: u32, endpoint: u32, from: u64, to: u64) -> bool {
        let Some(sets) = self.sets.get(&service) else { return false };
        sets.iter().enumerate().any(|(index, (begin, set))| {
            let end = sets.get(index + 1).map_or(u64::MAX, |(next, _)| *next);
            *begin <= to && end >= from && set.contains(&endpoint)
        })
    }
}

/// Marks in the stream of changes, and when each node showed them: they tell which changes were in force when.
#[derive(Debug)]
pub struct Marks {
    /// Before which time each mark was written, in milliseconds.
    written: Vec<u64>,
    /// By node: when a mark other than the one before was seen first, and its number.
    seen: Vec<Vec<(u64, usize)>>,
}

impl Marks {
    /// No marks, for so many nodes.
    pub fn new(nodes: usize) -> Self {
        Self { written: Vec::new(), seen: vec![Vec::new(); nodes] }
    }

    /// The number of the next mark, which is to be written now.
    pub fn write(&mut self) -> usize {
        self.written.push(monotonic_ms());
        self.written.len() - 1
    }

    /// The node shows the mark now.
    pub fn see(&mut self, node: usize, mark: usize) {
        let seen = &mut self.seen[node];
        if seen.last().is_none_or(|(_, last)| *last < mark) {
            seen.push((monotonic_ms(), mark));
        }
    }

    /// The last mark that the node showed.
    pub fn last(&self, node: usize) -> Option<usize> {
        self.seen[node].last().map(|(_, mark)| *mark)
    }

    /// At the time given, every change that was written before the time returned was in force on all nodes; 0 if that
    /// is not known of any.
    ///
    /// What is written between two looks of an agent is put in force in any order, but all of it before what comes
    /// later: a node that shows a second mark has done everything that was written before the first.
    pub fn in_force(&self, time: u64) -> u64 {
        let of = |seen: &Vec<(u64, usize)>| {
            let later = seen.iter().rposition(|(at, _)| *at <= time)?;
            let (_, mark) = seen[later.checked_sub(1)?];
            Some(self.written[mark])
        };
        self.seen.iter().map(|seen| of(seen).unwrap_or(0)).min().unwrap_or(0)
    }

    /// The longest time that a node took to show a second mark after the first one was written, in milliseconds.
    pub fn longest(&self) -> u64 {
        let nodes = self.seen.iter();
        let lags =
            nodes.flat_map(|seen| seen.windows(2).map(|two| two[1].0 - self.written[two[0].1]));
        lags.max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_mark_tells_that_what_was_before_the_first_is_in_force() {
        let mut marks = Marks {
            written: vec![100, 200, 300, 400],
            seen: vec![vec![(150, 0), (350, 2), (450, 3)], vec![(160, 0), (260, 1), (500, 3)]],
        };
        assert_eq!(marks.in_force(140), 0);
        assert_eq!(marks.in_force(349), 0, "the first node has shown one only");
        assert_eq!(marks.in_force(350), 100);
        assert_eq!(marks.in_force(499), 100);
        assert_eq!(marks.in_force(500), 200);
        assert_eq!(marks.longest(), 500 - 200);
        assert_eq!((marks.last(0), marks.last(1)), (Some(3), Some(3)));
        let next = marks.write();
        marks.see(0, next);
        marks.see(0, 2);
        assert_eq!((next, marks.last(0)), (4, Some(4)));
    }

    #[test]
    fn an_endpoint_is_allowed_while_it_was_the_services() {
        let mut history = History::default();
        history.sets.insert(1, vec![(100, [7].into()), (200, [8].into()), (300, [7, 9].into())]);
        assert!(history.allows(1, 7, 150, 160));
        assert!(history.allows(1, 7, 150, 250), "it began while it was so");
        assert!(!history.allows(1, 7, 210, 250));
        assert!(history.allows(1, 7, 210, 300), "it ended while it was so");
        assert!(!history.allows(1, 9, 0, 299));
        assert!(!history.allows(2, 7, 0, 1_000));
        assert_eq!(history.changes(), 2);
        assert!(history.lost_one(1, 150, 200));
        assert!(!history.lost_one(1, 201, 250));
        assert!(!history.lost_one(2, 0, 1_000));
    }
}
