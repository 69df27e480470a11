//! What `testapp` prints, so that tests, the demo and the program itself agree on it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The answer of `testapp serve`: who answered, and whom it saw. One JSON object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// `POD_NAME` of the server.
    pub pod: String,
    /// `NODE_NAME` of the server.
    pub node: String,
    /// The path of the request; empty for UDP.
    pub path: String,
    /// The client's address and port, as the server sees it.
    pub peer: String,
}

/// What a line of `testapp load` begins with once a pod has answered for the first time; the pod's name follows.
pub const FIRST_ANSWER: &str = "first answer of ";

/// What `testapp load` prints at its end. One JSON object on one line.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct LoadReport {
    /// Requests that were made.
    pub requests: u64,
    /// Requests that were answered with status 200.
    pub ok: u64,
    /// Requests that were not.
    pub failed: u64,
    /// Answers per pod.
    pub backends: BTreeMap<String, u64>,
    /// Failures per reason, for example `connect: Connection refused (os error 111)`.
    pub failures: BTreeMap<String, u64>,
    /// How long answered requests took.
    pub latency_us: Latency,
    /// How long the load went on.
    pub seconds: f64,
}

/// Percentiles in microseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Latency {
    /// Half of the requests took at most this.
    pub p50: u64,
    /// Nine of ten.
    pub p90: u64,
    /// Ninety-nine of a hundred.
    pub p99: u64,
    /// The slowest.
    pub max: u64,
}

impl Latency {
    /// Nearest-rank percentiles of samples in microseconds, in any order; zeros if there are none.
    pub fn of(samples: &mut [u64]) -> Self {
        samples.sort_unstable();
        let rank = |percent: usize| {
            let index = (samples.len() * percent).div_ceil(100).saturating_sub(1);
            samples.get(index).copied().unwrap_or(0)
        };
        Self { p50: rank(50), p90: rank(90), p99: rank(99), max: rank(100) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_nearest_rank() {
        let mut samples: Vec<u64> = (1..=100).rev().collect();
        assert_eq!(Latency::of(&mut samples), Latency { p50: 50, p90: 90, p99: 99, max: 100 });
        assert_eq!(Latency::of(&mut [7]), Latency { p50: 7, p90: 7, p99: 7, max: 7 });
        assert_eq!(Latency::of(&mut []), Latency::default());
    }
}
