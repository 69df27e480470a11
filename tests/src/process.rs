//! Child processes: placed in a namespace and a cgroup, logged, and never left behind.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};

use crate::cgroup::Cgroup;
use crate::netns::NetNs;
use crate::wait_for;

/// How long [`Launch::run`] waits for a command to end.
pub const RUN_LIMIT: Duration = Duration::from_secs(300);
/// How long a process has between SIGTERM and SIGKILL when it is dropped.
pub const GRACE: Duration = Duration::from_secs(3);

/// A command to be started: program, arguments, environment, and where it runs.
#[derive(Debug, Clone)]
pub struct Launch {
    program: OsString,
    args: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    netns: Option<PathBuf>,
    cgroup: Option<PathBuf>,
    cpu: Option<usize>,
    urgent: bool,
}

impl Launch {
    /// A program by name or path.
    pub fn new(program: impl AsRef<OsStr>) -> Self {
        Self {
            program: program.as_ref().to_owned(),
            args: Vec::new(),
            env: Vec::new(),
            netns: None,
            cgroup: None,
            cpu: None,
            urgent: false,
        }
    }

    /// Adds an argument.
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    /// Adds arguments.
    pub fn args<S: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.args.extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    /// Sets an environment variable.
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.env.push((name.as_ref().to_owned(), value.as_ref().to_owned()));
        self
    }

    /// Runs it in a network namespace.
    pub fn netns(mut self, netns: &NetNs) -> Self {
        self.netns = Some(netns.path());
        self
    }

    /// Runs it in a cgroup, from its first instruction on.
    pub fn cgroup(self, cgroup: &Cgroup) -> Self {
        self.cgroup_path(cgroup.path())
    }

    /// Runs it in a cgroup named by its directory.
    pub fn cgroup_path(mut self, path: &Path) -> Self {
        self.cgroup = Some(path.to_owned());
        self
    }

    /// Pins it to one CPU.
    pub fn cpu(mut self, cpu: usize) -> Self {
        self.cpu = Some(cpu);
        self
    }

    /// Schedules it before everything ordinary (SCHED_FIFO), for measurements on a machine that has other things to do.
    pub fn urgent(mut self) -> Self {
        self.urgent = true;
        self
    }

    /// The command as the standard library takes it. Every wrapper replaces itself by the next program, so the PID of
    /// the child is the PID of the program.
    pub fn command(&self) -> Command {
        let mut words: Vec<OsString> = Vec::new();
        if let Some(cgroup) = &self.cgroup {
            words.extend(["sh", "-c", "echo $$ > \"$0\" && exec \"$@\""].map(Into::into));
            words.push(cgroup.join("cgroup.procs").into());
        }
        if let Some(netns) = &self.netns {
            // Not `ip netns exec`: it mounts a fresh /sys, which hides cgroup2 and bpffs.
            words.push("nsenter".into());
            let mut option = OsString::from("--net=");
            option.push(netns);
            words.push(option);
            words.push("--".into());
        }
        if let Some(cpu) = self.cpu {
            words.extend(["taskset", "-c"].map(Into::into));
            words.push(cpu.to_string().into());
        }
        if self.urgent {
            words.extend(["chrt", "--fifo", "1"].map(Into::into));
        }
        words.push(self.program.clone());
        words.extend(self.args.iter().cloned());
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).envs(self.env.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::null());
        command
    }

    /// Runs it to its end, at most [`RUN_LIMIT`], and returns its output whatever its status is.
    ///
    /// # Errors
    /// It cannot be started, or does not end.
    pub fn output(&self) -> Result<Output> {
        self.output_with_input(&[])
    }

    /// Like [`Launch::output`], with `input` on its stdin.
    ///
    /// # Errors
    /// It cannot be started, or does not end.
    pub fn output_with_input(&self, input: &[u8]) -> Result<Output> {
        let stdin = tempfile::tempfile().context("temporary file")?;
        let (stdout, stderr) = (tempfile::tempfile()?, tempfile::tempfile()?);
        rewind_after(&stdin, input)?;
        let mut command = self.command();
        command.stdin(stdin).stdout(stdout.try_clone()?).stderr(stderr.try_clone()?);
        let child = command.spawn().with_context(|| format!("start {}", self.describe()))?;
        let mut process = Process { child, name: self.describe(), log: None };
        let status = process.wait(RUN_LIMIT)?;
        Ok(Output { status, stdout: read_back(&stdout)?, stderr: read_back(&stderr)? })
    }

    /// Runs it to its end and returns what it printed to stdout.
    ///
    /// # Errors
    /// Another status than 0; the message holds its stderr.
    pub fn run(&self) -> Result<String> {
        let output = self.output()?;
        if !output.status.success() {
            let stderr = String::from_utf8_lossy(&output.stderr);
            bail!("{} failed ({}): {}", self.describe(), output.status, stderr.trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Starts it with stdout and stderr in the file `log`, which is appended to.
    ///
    /// # Errors
    /// It cannot be started, or the file cannot be opened.
    pub fn spawn(&self, log: &Path) -> Result<Process> {
        let file = File::options()
            .create(true)
            .append(true)
            .open(log)
            .with_context(|| log.display().to_string())?;
        let mut command = self.command();
        command.stdout(file.try_clone()?).stderr(file);
        let child = command.spawn().with_context(|| format!("start {}", self.describe()))?;
        Ok(Process { child, name: self.describe(), log: Some(log.to_owned()) })
    }

    fn describe(&self) -> String {
        let name = Path::new(&self.program).file_name().unwrap_or(&self.program);
        let mut text = name.to_string_lossy().into_owned();
        for arg in self.args.iter().take(3) {
            text.push(' ');
            text.push_str(&arg.to_string_lossy());
        }
        text
    }
}

fn rewind_after(mut file: &File, bytes: &[u8]) -> Result<()> {
    use std::io::{Seek, Write};
    file.write_all(bytes)?;
    file.rewind()?;
    Ok(())
}

fn read_back(mut file: &File) -> Result<Vec<u8>> {
    use std::io::{Read, Seek};
    file.rewind()?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// A running child. Dropping it sends SIGTERM, waits [`GRACE`], then SIGKILL, by its PID.
#[derive(Debug)]
pub struct Process {
    child: Child,
    name: String,
    log: Option<PathBuf>,
}

impl Process {
    /// Its PID.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it printed so far.
    pub fn log(&self) -> String {
        self.log
            .as_ref()
            .and_then(|path| fs::read(path).ok())
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    /// True until it ends.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Waits until `text` stands in its log.
    ///
    /// # Errors
    /// It ended first, or `limit` passed; the message holds the end of the log.
    pub fn wait_for_log(&mut self, text: &str, limit: Duration) -> Result<()> {
        self.wait_until(&format!("\"{text}\" in the log"), limit, |log| log.contains(text))
    }

    /// Waits until `condition`, which gets the log so far, holds.
    ///
    /// # Errors
    /// It ended first, or `limit` passed; the message holds the end of the log.
    pub fn wait_until(
        &mut self,
        what: &str,
        limit: Duration,
        mut condition: impl FnMut(&str) -> bool,
    ) -> Result<()> {
        let name = self.name.clone();
        let outcome = wait_for(&format!("{what} of {name}"), limit, || {
            // The order matters: what a process printed before it ended counts.
            let running = self.is_running();
            if condition(&self.log()) {
                Some(Ok(()))
            } else if running {
                None
            } else {
                Some(Err(anyhow::anyhow!("{name} ended before {what}")))
            }
        });
        outcome.and_then(|inner| inner).with_context(|| format!("log of {name}:\n{}", self.tail()))
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// It still runs after `limit`.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        if let Some(status) = self.child.try_wait()? {
            return Ok(status);
        }
        // A child that nobody waited for keeps its PID, so this cannot be somebody else's.
        let pidfd = pidfd_open(self.raw_pid()?, PidfdFlags::empty()).context("pidfd_open")?;
        if !readable(&pidfd, limit)? {
            bail!("{} still runs after {limit:?}\n{}", self.name, self.tail());
        }
        Ok(self.child.wait()?)
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// It has ended.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        if !self.is_running() {
            bail!("{} has ended already", self.name);
        }
        kill_process(self.raw_pid()?, signal).with_context(|| format!("signal {}", self.name))
    }

    /// SIGTERM, then SIGKILL after `grace`. Returns the status it ended with.
    ///
    /// # Errors
    /// The system refuses to signal or to wait.
    pub fn terminate(&mut self, grace: Duration) -> Result<ExitStatus> {
        if let Some(status) = self.child.try_wait()? {
            return Ok(status);
        }
        let _ = kill_process(self.raw_pid()?, Signal::TERM);
        if let Ok(status) = self.wait(grace) {
            return Ok(status);
        }
        self.kill()
    }

    /// SIGKILL, and the wait for its end.
    ///
    /// # Errors
    /// The system refuses to signal or to wait.
    pub fn kill(&mut self) -> Result<ExitStatus> {
        self.child.kill().with_context(|| format!("kill {}", self.name))?;
        Ok(self.child.wait()?)
    }

    fn raw_pid(&self) -> Result<Pid> {
        i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).context("PID of a child")
    }

    fn tail(&self) -> String {
        let log = self.log();
        let skip = log.lines().count().saturating_sub(40);
        log.lines().skip(skip).collect::<Vec<_>>().join("\n")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Err(error) = self.terminate(GRACE) {
            eprintln!("{error:#}");
        }
    }
}

fn readable(fd: &OwnedFd, limit: Duration) -> Result<bool> {
    let end = Instant::now() + limit;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).context("time limit")?;
        match poll(&mut [PollFd::new(fd, PollFlags::IN)], Some(&timeout)) {
            Ok(ready) => return Ok(ready > 0),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).context("poll"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::PATIENCE;

    #[test]
    fn output_holds_status_stdout_and_stderr() {
        let launch = Launch::new("sh").args(["-c", "cat; echo bad >&2; exit 3"]);
        let output = launch.output_with_input(b"in").unwrap();
        assert_eq!(output.status.code(), Some(3));
        assert_eq!((&*output.stdout, &*output.stderr), (&b"in"[..], &b"bad\n"[..]));
        let error = launch.run().unwrap_err().to_string();
        assert!(error.contains("bad"), "{error}");
    }

    #[test]
    fn a_dropped_process_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let process = Launch::new("sleep").arg("1000").spawn(&dir.path().join("log")).unwrap();
        let proc_dir = format!("/proc/{}", process.pid());
        assert!(Path::new(&proc_dir).exists());
        drop(process);
        assert!(!Path::new(&proc_dir).exists());
    }

    #[test]
    fn the_log_is_waited_for_and_an_early_end_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let mut process = Launch::new("echo").arg("ready").spawn(&log).unwrap();
        process.wait_for_log("ready", PATIENCE).unwrap();
        let error = process.wait_for_log("never", PATIENCE).unwrap_err();
        assert!(format!("{error:#}").contains("ended before"), "{error:#}");
    }
}
