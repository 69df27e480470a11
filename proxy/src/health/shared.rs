//! What the loop and the servers both see.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use super::{Metrics, Progress, Verdict};

/// Held for moments only, never across a system call or an await.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) metrics: Metrics,
    progress: Mutex<Progress>,
    listeners: Mutex<Listeners>,
}

/// By what they are for.
#[derive(Debug, Default)]
struct Listeners {
    bound: BTreeMap<String, SocketAddr>,
    problems: BTreeMap<String, String>,
}

impl Shared {
    pub(super) fn new(now: Instant, wall: SystemTime) -> Self {
        Self {
            metrics: Metrics::new(),
            progress: Mutex::new(Progress::new(now, wall)),
            listeners: Mutex::default(),
        }
    }

    pub(super) fn progress(&self, change: impl FnOnce(&mut Progress)) {
        change(&mut lock(&self.progress));
    }

    pub(super) fn verdict(&self, now: Instant) -> Verdict {
        lock(&self.progress).verdict(now)
    }

    pub(super) fn waiting(&self, now: Instant) -> Option<Duration> {
        lock(&self.progress).waiting(now)
    }

    /// A listener was opened.
    pub(super) fn opened(&self, subject: &str, addr: SocketAddr) {
        let mut listeners = lock(&self.listeners);
        listeners.problems.remove(subject);
        listeners.bound.insert(subject.to_owned(), addr);
    }

    /// A listener could not be opened; whether that is news.
    pub(super) fn refused(&self, subject: &str, problem: &str) -> bool {
        let mut listeners = lock(&self.listeners);
        listeners.bound.remove(subject);
        listeners.problems.insert(subject.to_owned(), problem.to_owned()).as_deref()
            != Some(problem)
    }

    /// A listener is no longer wanted.
    pub(super) fn closed(&self, subject: &str) {
        let mut listeners = lock(&self.listeners);
        listeners.problems.remove(subject);
        listeners.bound.remove(subject);
    }

    pub(super) fn problems(&self) -> Vec<(String, String)> {
        lock(&self.listeners).problems.iter().map(|(s, p)| (s.clone(), p.clone())).collect()
    }

    pub(super) fn bound(&self) -> BTreeMap<String, SocketAddr> {
        lock(&self.listeners).bound.clone()
    }
}

/// Nothing that panics is done under these locks, and what they hold is whole at any moment.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
