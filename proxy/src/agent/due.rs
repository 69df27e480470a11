//! When a part that follows netlink is to look at the kernel again.

use std::fmt;
use std::future::Future;
use std::time::Duration;

use tokio::time::{Instant, sleep_until, timeout_at};

/// A burst of events is answered once.
const SETTLE: Duration = Duration::from_millis(50);

/// The time of the next look, and of the last one.
///
/// The loop drops what waits here whenever something else happens, which may be often: so the times
/// are kept, and nothing begins to wait anew.
#[derive(Debug)]
pub(super) struct Due {
    /// Something happened that nobody has looked at yet.
    at: Option<Instant>,
    looked: Instant,
}

impl Due {
    pub(super) fn new() -> Self {
        Self { at: None, looked: Instant::now() }
    }

    /// Resolves when it is time to look: shortly after `event` does, after `retry` where that fails; so
    /// long after the last look at the latest as `again` says, if something waits for another try.
    /// `what` is looked at, for the log.
    pub(super) async fn wait<E: fmt::Display>(
        &mut self,
        what: &str,
        event: impl Future<Output = Result<(), E>>,
        again: Option<Duration>,
        retry: Duration,
    ) {
        let at = match self.at {
            Some(at) => at,
            None => {
                let happened = match again {
                    Some(again) => timeout_at(self.looked + again, event).await,
                    None => Ok(event.await),
                };
                let delay = match happened {
                    Ok(Err(error)) => {
                        tracing::warn!("{error}; looking at {what} again in {retry:?}");
                        retry
                    }
                    // Something happened, or it is time to try again.
                    Ok(Ok(())) | Err(_) => SETTLE,
                };
                // What happened is not told a second time.
                *self.at.insert(Instant::now() + delay)
            }
        };
        sleep_until(at).await;
    }

    /// Everything that happened before is looked at now.
    pub(super) fn looked(&mut self) {
        *self = Self::new();
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::future::{pending, ready};

    use tokio::time::timeout;

    use super::*;

    /// How long the loop leaves what waits alone.
    const MOMENT: Duration = Duration::from_millis(5);

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("a runtime").block_on(future)
    }

    /// R4: a loop that is never still puts nothing off.
    #[test]
    fn what_happened_is_looked_at_however_busy_the_loop_is() {
        block_on(async {
            let mut due = Due::new();
            let wait = due.wait("it", ready(Ok::<(), Infallible>(())), None, Duration::MAX);
            assert!(timeout(Duration::ZERO, wait).await.is_err(), "a burst is waited for");
            let happened = due.at;
            loop {
                // No second event comes.
                let wait = due.wait("it", pending::<Result<(), Infallible>>(), None, Duration::MAX);
                if timeout(MOMENT, wait).await.is_ok() {
                    break;
                }
                assert_eq!(due.at, happened);
            }
            due.looked();
            assert_eq!(due.at, None);
        });
    }

    #[test]
    fn what_waits_for_another_try_gets_it_however_busy_the_loop_is() {
        block_on(async {
            let mut due = Due::new();
            let again = Some(10 * MOMENT);
            loop {
                let wait =
                    due.wait("it", pending::<Result<(), Infallible>>(), again, Duration::MAX);
                if timeout(MOMENT, wait).await.is_ok() {
                    break;
                }
            }
        });
    }

    #[test]
    fn a_failure_is_followed_by_a_rest() {
        block_on(async {
            let mut due = Due::new();
            let begun = Instant::now();
            due.wait("it", ready(Err("netlink failed")), None, 10 * MOMENT).await;
            assert!(begun.elapsed() >= 10 * MOMENT);
        });
    }
}
