//! When something that failed is tried again.

use std::time::{Duration, Instant};

/// First wait, and the longest.
const WAITS: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// Waits that double.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Backoff {
    due: Instant,
    wait: Duration,
}

impl Backoff {
    /// Something failed for the first time.
    pub(super) fn new(now: Instant) -> Self {
        Self { due: now + WAITS.0, wait: WAITS.0 }
    }

    /// It failed again.
    pub(super) fn again(self, now: Instant) -> Self {
        let wait = (self.wait * 2).min(WAITS.1);
        Self { due: now + wait, wait }
    }

    /// There is a reason to try sooner: not at once, for there may be many.
    pub(super) fn hurry(&mut self, now: Instant) {
        self.due = self.due.min(now + WAITS.0);
    }

    /// When to try again.
    pub(super) fn due(self) -> Instant {
        self.due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_longest() {
        let now = Instant::now();
        let mut backoff = Backoff::new(now);
        let mut waits = Vec::new();
        for _ in 0..7 {
            waits.push(backoff.due().duration_since(now).as_secs());
            backoff = backoff.again(now);
        }
        assert_eq!(waits, [1, 2, 4, 8, 16, 30, 30]);
        backoff.hurry(now);
        assert_eq!(backoff.due(), now + WAITS.0);
    }
}
