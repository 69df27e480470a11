//! Cleans up when the demo was killed and could not do it itself.
//!
//! The guard is a child in a process group of its own, so that Ctrl-C does not reach it. It reads a
//! pipe that only the demo can write to and never does: the end of the pipe is the end of the demo.

use std::fs;
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::{PATIENCE, names, sweep, wait_for};

/// The argument that makes the demo's program a guard.
pub const ARGUMENT: &str = "guard";

/// Keeps the guard's pipe open.
#[derive(Debug)]
pub struct Guard {
    child: Child,
}

impl Guard {
    /// Starts it.
    ///
    /// # Errors
    /// The program cannot be started again.
    pub fn start() -> Result<Self> {
        let program = std::env::current_exe().context("the path of this program")?;
        let child = Command::new(program)
            .args([ARGUMENT, &std::process::id().to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .process_group(0)
            .spawn()
            .context("start the guard")?;
        Ok(Self { child })
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        // Everything is clean already: there is nothing left to guard.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The guard's life: waits for the end of the demo with that PID, removes what it left.
///
/// # Errors
/// The pipe cannot be read.
pub fn watch(owner: u32) -> Result<()> {
    let mut nothing = Vec::new();
    std::io::stdin().read_to_end(&mut nothing).context("the demo's pipe")?;
    let proc_dir = format!("/proc/{owner}");
    wait_for("the demo's end", PATIENCE, || (!Path::new(&proc_dir).exists()).then_some(()))?;
    sweep::dead();
    if fs::read_to_string(pid_file()).is_ok_and(|text| text.trim() == owner.to_string()) {
        fs::remove_file(pid_file()).context("the demo's pid file")?;
    }
    Ok(())
}

/// Where a demo that stays up writes its PID.
fn pid_file() -> PathBuf {
    std::env::temp_dir().join(format!("{}.pid", names::prefix()))
}

/// The demo that is up, if any.
pub fn running() -> Option<u32> {
    let pid: u32 = fs::read_to_string(pid_file()).ok()?.trim().parse().ok()?;
    // A PID may have gone to someone else since; the name tells.
    let comm = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    (comm.trim() == "demo").then_some(pid)
}

/// Marks this process as the demo that is up. Removed on drop.
#[derive(Debug)]
pub struct PidFile;

impl PidFile {
    /// Writes it.
    ///
    /// # Errors
    /// Another demo is up, or the file cannot be written.
    pub fn write() -> Result<Self> {
        if let Some(pid) = running() {
            bail!("a demo is up already (pid {pid}); `cargo xtask demo down` takes it down");
        }
        let path = pid_file();
        fs::write(&path, std::process::id().to_string())
            .with_context(|| path.display().to_string())?;
        Ok(Self)
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        let _ = fs::remove_file(pid_file());
    }
}

/// Takes down the demo that is up, and what dead ones left. Returns what was done, for people.
///
/// # Errors
/// It does not end within a minute.
pub fn down() -> Result<String> {
    let mut text = String::new();
    if let Some(pid) = running() {
        let raw = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw);
        let raw = raw.context("PID of the demo")?;
        // It may end by itself in this moment.
        let _ = rustix::process::kill_process(raw, rustix::process::Signal::TERM);
        let proc_dir = format!("/proc/{pid}");
        wait_for("the demo to take itself down", PATIENCE, || {
            (!Path::new(&proc_dir).exists()).then_some(())
        })?;
        text.push_str("The demo is down. ");
    }
    match sweep::dead() {
        0 if text.is_empty() => text.push_str("No demo is up; nothing was left."),
        0 => text.push_str("Nothing was left."),
        n => text.push_str(&format!("Removed {n} things that an earlier demo left.")),
    }
    Ok(text)
}
