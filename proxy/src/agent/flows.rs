//! The collector of idle flows, on a thread of its own.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use crate::clock;
use crate::dataplane::{Collected, Collector, DataplaneError, Timeouts};

/// How long it rests when it has gone through all flows.
const REST: Duration = Duration::from_secs(10);

/// So much longer than it worked it rests after each step: of a CPU it takes a fiftieth at most,
/// however many flows there are.
const SHARE: u32 = 49;

/// What the collector did, pass by pass.
#[derive(Debug)]
pub(super) struct Flows {
    passes: Receiver<Result<Collected, DataplaneError>>,
}

impl Flows {
    /// # Errors
    ///
    /// The thread cannot be started.
    pub(super) fn start(collector: Collector, timeouts: Timeouts) -> std::io::Result<Self> {
        let (sender, passes) = channel();
        let work = move || collect(collector, &timeouts, &sender);
        thread::Builder::new().name("flows".to_owned()).spawn(work)?;
        Ok(Self { passes })
    }

    /// What was done since this was last asked.
    pub(super) fn passes(&self) -> impl Iterator<Item = Result<Collected, DataplaneError>> {
        self.passes.try_iter()
    }
}

/// Goes through the flows again and again, until nobody listens any more.
fn collect(
    mut collector: Collector,
    timeouts: &Timeouts,
    passes: &Sender<Result<Collected, DataplaneError>>,
) {
    loop {
        let begun = Instant::now();
        let pass = collector.step(clock::monotonic_nanos(), timeouts).transpose();
        let worked = begun.elapsed();
        let Some(pass) = pass else {
            thread::sleep(SHARE * worked);
            continue;
        };
        let failed = pass.is_err();
        if passes.send(pass).is_err() {
            return;
        }
        if failed {
            // It will fail again, whoever waits for it.
            thread::sleep(REST);
        } else {
            // Those of a pod that went are not to wait for as long.
            collector.wait(REST);
        }
    }
}
