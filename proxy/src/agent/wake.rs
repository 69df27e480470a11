//! When sockets whose backend is gone are looked for.

use std::collections::HashSet;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use sluice_abi::{FrontendKey, Scope, SockPeer, maps, proto};

use super::records;
use super::run::Agent;
use crate::dataplane::{DataplaneError, SocketKind};
use crate::wake::{Note, Waker, doomed};

/// Changes come in bursts: they are waited for that long, and one look does for all of them.
const GATHER: Duration = Duration::from_millis(10);

/// A second look, after the last change: a program that was connecting a socket at that very moment
/// may have chosen the backend before it went, and noted the socket after the first look.
const AGAIN: Duration = Duration::from_secs(1);

/// So much more time than the last look took passes before the next one, at least: what is left of
/// the loop's time is for the changes themselves.
const SHARE: u32 = 10;

/// The part of the notes' room that may fill up before it is asked which of the sockets are gone.
const FILLED: usize = 8;

/// Which notes of sockets are left over from sockets that are gone.
///
/// A socket is gone if the kernel does not know it, twice: one that is being connected is noted a
/// moment before the kernel lists it.
#[derive(Debug, Default)]
struct Leftovers {
    /// How many notes there were after the last answer.
    kept: usize,
    /// Gone according to the last answer, not confirmed yet.
    suspects: HashSet<Note>,
}

impl Leftovers {
    /// Whether it is time to ask, with so many notes in a map of that size: they have become many
    /// more since the last answer.
    fn is_time(&self, notes: usize, room: usize) -> bool {
        !self.suspects.is_empty() || notes >= self.kept + room.div_ceil(FILLED).max(1)
    }

    /// Takes an answer in; returns those that are gone for sure.
    fn confirmed(&mut self, gone: Vec<Note>, notes: usize) -> Vec<Note> {
        let before = std::mem::take(&mut self.suspects);
        let (sure, new): (Vec<_>, Vec<_>) =
            gone.into_iter().partition(|note| before.contains(note));
        self.suspects = new.into_iter().collect();
        self.kept = notes.saturating_sub(sure.len());
        sure
    }
}

/// Wakes the sockets whose backend is gone.
#[derive(Debug)]
pub(super) struct Wakes {
    leftovers: Leftovers,
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
        let leftovers = Leftovers::default();
        Ok(Self { leftovers, waker, streams, due: None, again: None, rest })
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
            let mut peers = match self.dataplane.view().sock_peers(*kind) {
                Ok(peers) => peers,
                Err(error) => {
                    tracing::warn!("sockets whose backend is gone are not looked for: {error}");
                    return;
                }
            };
            if *kind == SocketKind::Datagram {
                self.spare_led_on(&mut peers);
            }
            found.extend(doomed(*kind, &peers, self.reconciler.tables(), |name| {
                let service = self.cache.service(name);
                service.map(|_| self.reconciler.endpoints_of_sockets(&self.cache, name))
            }));
        }
        if !found.is_empty() {
            self.wakes.waker.wake(found);
        }
        self.wakes.end(begun, Instant::now());
    }
}

impl Agent {
    /// Takes out the sockets whose packets are led to another backend on their way: those of pods, to
    /// an endpoint of the node-local Service that is not ready. Destroying one would lose what it has
    /// asked.
    fn spare_led_on(&self, peers: &mut Vec<(u64, SockPeer)>) {
        // Pods of another plugin have no program that would see their packets.
        if self.reconciler.node_local().service().is_none() || self.endpoints.served() == 0 {
            return;
        }
        let Ok(state) = self.dataplane.view().node_state() else { return };
        let tables = self.reconciler.tables();
        peers.retain(|(_, peer)| {
            let key = FrontendKey {
                addr: peer.backend_addr,
                port: peer.backend_port,
                proto: proto::UDP,
                scope: Scope::Internal as u8,
            };
            let led_on = tables
                .frontends
                .get(&key)
                .is_some_and(|frontend| frontend.service == peer.service && frontend.count > 0);
            peer.netns == state.netns || !led_on
        });
    }
}

impl Agent {
    /// Forgets what was noted of sockets that are gone without a word, where that fills the maps.
    pub(super) fn forget_sockets(&mut self) -> Result<(), DataplaneError> {
        const KINDS: [SocketKind; 2] = [SocketKind::Stream, SocketKind::Datagram];
        let mut notes: Vec<Note> = Vec::new();
        for kind in KINDS {
            let peers = self.dataplane.view().sock_peers(kind)?;
            notes.extend(peers.into_iter().map(|(cookie, peer)| (kind, peer.netns, cookie)));
        }
        let leftovers = &mut self.wakes.leftovers;
        if let Some(gone) = self.wakes.waker.gone() {
            let sure = leftovers.confirmed(gone, notes.len());
            for kind in KINDS {
                let of_kind = sure.iter().filter(|(k, ..)| *k == kind);
                let cookies: Vec<u64> = of_kind.map(|(_, _, cookie)| *cookie).collect();
                self.dataplane.forget_socks(kind, &cookies)?;
            }
            if !sure.is_empty() {
                tracing::debug!(sockets = sure.len(), "forgot sockets that are gone");
            }
        }
        let room = self.dataplane.view().size(maps::SOCK_PEERS).unwrap_or(u32::MAX);
        if leftovers.is_time(notes.len(), usize::try_from(room).unwrap_or(usize::MAX)) {
            self.wakes.waker.verify(notes);
        }
        Ok(())
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

    /// S33: what is left over is asked for once it takes room, and is gone once that was said twice.
    #[test]
    fn leftovers_are_confirmed_before_they_are_forgotten() {
        let note = |cookie| (SocketKind::Stream, 7, cookie);
        let mut leftovers = Leftovers::default();
        assert!(!leftovers.is_time(99, 800));
        assert!(leftovers.is_time(100, 800));
        assert_eq!(leftovers.confirmed(vec![note(1), note(2)], 100), vec![]);
        assert!(leftovers.is_time(100, 800), "to confirm what was said");
        assert_eq!(leftovers.confirmed(vec![note(2), note(3)], 100), vec![note(2)]);
        assert_eq!(leftovers.confirmed(vec![], 99), vec![]);
        assert!(!leftovers.is_time(198, 800), "they are alive");
        assert!(leftovers.is_time(199, 800));
    }
}
