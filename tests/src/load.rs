//! A load that goes on until it is stopped.

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;

use crate::PATIENCE;
use crate::app::{FIRST_ANSWER, LoadReport};
use crate::process::Process;

/// `testapp load` without a number of requests.
#[derive(Debug)]
pub struct Load(Process);

impl Load {
    /// The process that was started, see [`crate::process::Launch::spawn`]. Waits until it is answered: what happens
    /// from then on happens under load.
    ///
    /// # Errors
    /// Nothing answers it.
    pub fn new(mut process: Process) -> Result<Self> {
        process.wait_for_log(FIRST_ANSWER, PATIENCE)?;
        Ok(Self(process))
    }

    /// Waits until the pod has answered it.
    ///
    /// # Errors
    /// It does not.
    pub fn wait_for_answer_of(&mut self, pod: &str) -> Result<()> {
        self.0.wait_for_log(&format!("{FIRST_ANSWER}{pod}\n"), PATIENCE)
    }

    /// Ends it.
    ///
    /// # Errors
    /// It does not end, or says nothing.
    pub fn stop(mut self) -> Result<LoadReport> {
        self.0.signal(Signal::TERM)?;
        self.0.wait(PATIENCE)?;
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
