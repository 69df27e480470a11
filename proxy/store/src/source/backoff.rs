//! How long to wait before the next attempt.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

/// Waits that double from `first` up to `cap`, each shortened by up to half at random so that the
/// nodes of a cluster do not come back all at once.
#[derive(Debug)]
pub(super) struct Backoff {
    first: Duration,
    cap: Duration,
    next: Duration,
}

impl Backoff {
    pub(super) fn new(first: Duration, cap: Duration) -> Self {
        Self { first, cap, next: first }
    }

    /// The next wait.
    pub(super) fn next(&mut self) -> Duration {
        let wait = self.next;
        self.next = (wait * 2).min(self.cap);
        // A hasher with fresh keys is randomness enough to spread clients.
        let random = RandomState::new().hash_one(());
        wait.mul_f64(1.0 - 0.5 * (random as f64 / u64::MAX as f64))
    }

    /// Starts over: it worked.
    pub(super) fn reset(&mut self) {
        self.next = self.first;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_cap_and_start_over() {
        let (first, cap) = (Duration::from_millis(100), Duration::from_secs(1));
        let mut backoff = Backoff::new(first, cap);
        for expected in [100, 200, 400, 800, 1000, 1000] {
            let wait = backoff.next();
            let expected = Duration::from_millis(expected);
            assert!(wait <= expected && wait >= expected / 2, "{wait:?} of {expected:?}");
        }
        backoff.reset();
        assert!(backoff.next() <= first);
    }
}
