//! A load that goes on until it is stopped.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;

use crate::app::LoadReport;
use crate::process::Process;

/// `testapp load` without a number of requests.
#[derive(Debug)]
pub struct Load(Process);

impl Load {
    /// The process that was started, see [`crate::process::Launch::spawn`].
    pub fn new(process: Process) -> Self {
        Self(process)
    }

    /// Ends it.
    ///
    /// # Errors
    /// It does not end, or says nothing.
    pub fn stop(mut self) -> Result<LoadReport> {
        self.0.signal(Signal::TERM)?;
        self.0.wait(Duration::from_secs(20))?;
        let log = self.0.log();
        let line = log.lines().rfind(|line| line.starts_with('{')).unwrap_or_default();
        serde_json::from_str(line).with_context(|| format!("the report of a load: {log}"))
    }

    /// Ends it, and it must have asked, and every request have been answered.
    ///
    /// # Errors
    /// The report is not like that.
    pub fn finish(self) -> Result<LoadReport> {
        let report = self.stop()?;
        ensure!(report.ok > 0, "nothing was asked: {report:?}");
        ensure!(report.failed == 0, "requests failed: {report:?}");
        Ok(report)
    }
}
