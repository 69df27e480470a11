//! Waiting for a condition, never for a time.

use anyhow::{Result, bail};
use std::time::{Duration, Instant};

/// How long anything may take that takes no time on an idle machine. Nothing is measured by it: it is for machines that
/// have other things to do, and ends a wait that would never end.
pub const PATIENCE: Duration = Duration::from_secs(60);

const INTERVAL: Duration = Duration::from_millis(10);

/// Calls `condition` every 10 ms until it returns `Some`, and returns that value.
///
/// `what` completes "timed out after 5s waiting for …".
///
/// # Errors
/// The condition did not hold within `limit`.
pub fn wait_for<T>(
    what: &str,
    limit: Duration,
    mut condition: impl FnMut() -> Option<T>,
) -> Result<T> {
    let start = Instant::now();
    loop {
        if let Some(value) = condition() {
            return Ok(value);
        }
        if start.elapsed() >= limit {
            bail!("timed out after {limit:?} waiting for {what}");
        }
        std::thread::sleep(INTERVAL);
    }
}

/// Like [`wait_for`] for a condition that may fail: the last error says why it never held.
///
/// # Errors
/// The condition did not return `Ok` within `limit`.
pub fn wait_ok<T>(
    what: &str,
    limit: Duration,
    mut condition: impl FnMut() -> Result<T>,
) -> Result<T> {
    let start = Instant::now();
    loop {
        match condition() {
            Ok(value) => return Ok(value),
            Err(error) if start.elapsed() >= limit => {
                return Err(error.context(format!("timed out after {limit:?} waiting for {what}")));
            }
            Err(_) => std::thread::sleep(INTERVAL),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_value_of_the_condition_comes_back() {
        let mut calls = 0;
        let value = wait_for("the third call", PATIENCE, || {
            calls += 1;
            (calls == 3).then_some(calls)
        });
        assert_eq!(value.unwrap(), 3);
    }

    #[test]
    fn a_timeout_names_what_it_waited_for() {
        let error = wait_for("godot", Duration::from_millis(20), || None::<()>).unwrap_err();
        assert!(error.to_string().contains("godot"), "{error}");
        let error = wait_ok("godot", Duration::ZERO, || -> Result<()> { bail!("not yet") });
        let error = format!("{:#}", error.unwrap_err());
        assert!(error.contains("godot") && error.contains("not yet"), "{error}");
    }
}
