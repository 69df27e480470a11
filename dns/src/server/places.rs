//! Who may have a connection: a bounded number, and of those that wait for nothing the one that has
//! waited longest makes way for a new one.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

#[derive(Debug, Default)]
struct State {
    /// How many connections there are.
    taken: usize,
    /// Grows with every connection that begins to be idle.
    clock: u64,
    /// The idle connections by the moment they began to be so.
    idle: BTreeMap<u64, Arc<Notify>>,
}

/// The places of one listener.
#[derive(Clone, Debug)]
pub(super) struct Places {
    most: usize,
    state: Arc<Mutex<State>>,
}

/// The right to a connection. It begins idle, and is given back when it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    places: Places,
    /// Since when it is idle; `None` while it is at work.
    since: Option<u64>,
    evicted: Arc<Notify>,
}

impl Places {
    /// So many places.
    pub(super) fn new(most: usize) -> Self {
        Self { most, state: Arc::default() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing is left half done by a panic here.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a place, if need be that of the connection that has been idle for longest. `None` where
    /// all are at work.
    pub(super) fn take(&self) -> Option<Place> {
        let mut state = self.lock();
        if state.taken >= self.most && !evict(&mut state) {
            return None;
        }
        state.taken += 1;
        drop(state);
        let mut place =
            Place { places: self.clone(), since: None, evicted: Arc::new(Notify::new()) };
        place.idle();
        Some(place)
    }

    /// Ends the connection that has been idle for longest, if there is one.
    pub(super) fn evict(&self) -> bool {
        evict(&mut self.lock())
    }
}

fn evict(state: &mut State) -> bool {
    let oldest = state.idle.pop_first();
    if let Some((_, evicted)) = &oldest {
        evicted.notify_one();
    }
    oldest.is_some()
}

impl Place {
    /// From now on it waits for a query.
    pub(super) fn idle(&mut self) {
        let mut state = self.places.lock();
        if let Some(since) = self.since
            && state.idle.remove(&since).is_none()
        {
            // It is evicted already, and must not come back.
            return;
        }
        state.clock += 1;
        let now = state.clock;
        state.idle.insert(now, Arc::clone(&self.evicted));
        self.since = Some(now);
    }

    /// From now on somebody waits for an answer; `false` where it is too late.
    pub(super) fn busy(&mut self) -> bool {
        match self.since.take() {
            None => true,
            Some(since) => {
                let kept = self.places.lock().idle.remove(&since).is_some();
                if !kept {
                    self.since = Some(since);
                }
                kept
            }
        }
    }

    /// Whether somebody waits for an answer.
    pub(super) fn is_busy(&self) -> bool {
        self.since.is_none()
    }

    /// Tells when it has to make way.
    pub(super) fn evicted(&self) -> Arc<Notify> {
        Arc::clone(&self.evicted)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut state = self.places.lock();
        state.taken -= 1;
        if let Some(since) = self.since {
            state.idle.remove(&since);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(place: &Place) -> bool {
        let evicted = place.evicted();
        let mut wait = std::pin::pin!(evicted.notified());
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        std::future::Future::poll(wait.as_mut(), &mut context).is_ready()
    }

    /// D18: who has been idle for longest makes way; who is at work does not.
    #[test]
    fn the_longest_idle_makes_way() {
        let places = Places::new(3);
        let [mut first, second, mut third] = [(); 3].map(|()| places.take().expect("free"));
        assert!(first.busy());
        first.idle();
        assert!(third.busy());
        // The order is now: second, first.
        let mut fourth = places.take().expect("second makes way");
        assert!(told(&second) && !told(&first) && !told(&third));
        let mut fifth = places.take().expect("first makes way");
        assert!(told(&first) && !told(&third));
        assert!(!first.busy(), "too late");
        first.idle();
        assert!(fourth.busy() && fifth.busy());
        drop((first, second));
        assert!(places.take().is_none(), "all are at work");
        drop(third);
        assert!(places.take().is_some());
        assert!(!places.evict(), "nobody is idle");
        fifth.idle();
        assert!(places.evict() && told(&fifth));
    }
}
