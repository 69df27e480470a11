//! When sockets whose backend is gone are looked for.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::records;
use super::run::Agent;
use crate::dataplane::SocketKind;
use crate::wake::{Waker, doomed};

/// Changes come in bursts: they are waited for that long, and one look does for all of them.
const GATHER: Duration = Duration::from_millis(10);

/// A second look, after the last change: a program that was connecting a socket at that very moment
/// may have chosen the backend before it went, and noted the socket after the first look.
const AGAIN: Duration = Duration::from_secs(1);

/// So much more time than the last look took passes before the next one, at least: what is left of
/// the loop's time is for the changes themselves.
const SHARE: u32 = 10;

/// Wakes the sockets whose backend is gone.
#[derive(Debug)]
pub(super) struct Wakes {
    waker: Waker,
    /// Whether TCP connections are reset as well.
    streams: bool,
    due: Option<Instant>,
    again: Option<Instant>,
    /// No look before that.
    rest: Instant,
}

impl Wakes {
    /// Nothing is due. `records` is the directory of the pods' records.
    ///
    /// # Errors
    ///
    /// The thread cannot be started.
    pub(super) fn start(records: PathBuf, streams: bool) -> std::io::Result<Self> {
        let waker = Waker::start(move || {
            let (records, _) = records::read_all(&records);
            let paths = records.into_values().map(|record| record.netns);
            paths.filter(|path| !path.as_os_str().is_empty()).collect()
        })?;
        let rest = Instant::now();
        Ok(Self { waker, streams, due: None, again: None, rest })
    }

    /// A backend may have gone.
    pub(super) fn changed(&mut self, now: Instant) {
        self.due.get_or_insert((now + GATHER).max(self.rest));
        self.again = Some(now + AGAIN);
    }

    /// When the next look is due.
    pub(super) fn due(&self) -> Option<Instant> {
        self.due.or(self.again)
    }

    /// A look begins.
    fn begin(&mut self) {
        if self.due.take().is_none() {
            self.again = None;
        }
    }

    /// A look ended.
    fn end(&mut self, begun: Instant, now: Instant) {
        self.rest = now + SHARE * now.duration_since(begun);
    }

    fn kinds(&self) -> &'static [SocketKind] {
        if self.streams {
            &[SocketKind::Datagram, SocketKind::Stream]
        } else {
            &[SocketKind::Datagram]
        }
    }

    /// What is woken, and how much was, for people.
    pub(super) fn note(&self) -> String {
        let count = |kind| self.waker.destroyed(kind);
        let udp = format!("{} UDP", count(SocketKind::Datagram));
        if self.streams {
            format!("{udp}, {} TCP so far", count(SocketKind::Stream))
        } else {
            format!("{udp} so far")
        }
    }

    /// What is wrong, if anything.
    pub(super) fn problem(&self) -> Option<String> {
        self.waker.problem()
    }

    /// How many sockets of the kind were destroyed.
    pub(super) fn destroyed(&self, kind: SocketKind) -> u64 {
        self.waker.destroyed(kind)
    }
}

impl Agent {
    /// Looks for sockets whose backend is gone, and has them woken.
    pub(super) fn wake(&mut self) {
        let begun = Instant::now();
        self.wakes.begin();
        // Half a list of Services, or tables that are not what the planner thinks, say nothing of
        // what is gone. Both end with a change.
        if !self.cache.synced() || self.reconciler.retry_at().is_some() {
            return;
        }
        let mut found = Vec::new();
        for kind in self.wakes.kinds() {
            let peers = match self.dataplane.view().sock_peers(*kind) {
                Ok(peers) => peers,
                Err(error) => {
                    tracing::warn!("sockets whose backend is gone are not looked for: {error}");
                    return;
                }
            };
            found.extend(doomed(*kind, &peers, self.reconciler.tables(), |name| {
                self.cache.service(name).map(|_| self.cache.endpoints(name))
            }));
        }
        if !found.is_empty() {
            self.wakes.waker.wake(found);
        }
        self.wakes.end(begun, Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wakes() -> Wakes {
        Wakes::start(PathBuf::from("/nonexistent"), false).expect("a thread")
    }

    /// S22: a burst of changes is one look, and a second one follows the last of them.
    #[test]
    fn a_burst_is_looked_at_twice() {
        let mut wakes = wakes();
        let start = Instant::now();
        assert_eq!(wakes.due(), None);
        for n in 0..100 {
            wakes.changed(start + Duration::from_micros(n));
        }
        assert_eq!(wakes.due(), Some(start + GATHER));
        wakes.begin();
        wakes.end(start, start);
        assert_eq!(wakes.due(), Some(start + Duration::from_micros(99) + AGAIN));
        wakes.begin();
        wakes.end(start, start);
        assert_eq!(wakes.due(), None);
    }

    /// S22: looks that take long are made less often, so that changes are not kept waiting.
    #[test]
    fn long_looks_leave_time_for_changes() {
        let mut wakes = wakes();
        let start = Instant::now();
        wakes.changed(start);
        wakes.begin();
        let end = start + Duration::from_millis(20);
        wakes.end(start, end);
        wakes.changed(end);
        assert_eq!(wakes.due(), Some(end + Duration::from_millis(200)));
    }
}
