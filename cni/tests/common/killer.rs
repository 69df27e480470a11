//! Ends a process with SIGKILL at the entry of its n-th system call, whichever thread makes it.

use std::path::Path;
use std::process::{Child, ExitStatus};

use nix::errno::Errno;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// What became of the process.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// It was killed before the call.
    Killed,
    /// It made fewer calls and ended by itself.
    Finished,
}

/// Lets `child` run until it makes its system call number `n`, from 1, and kills it there.
///
/// The child must be the leader of a process group of its own that has stopped itself with SIGSTOP
/// and goes on with one `execve`, which is not counted. It is reaped here.
pub(crate) fn kill_at(mut child: Child, n: usize) -> (End, Option<ExitStatus>) {
    let leader = Pid::from_raw(i32::try_from(child.id()).expect("a PID"));
    // It may not have come to its SIGSTOP yet.
    while stopped_state(leader) != Some('T') {
        assert!(child.try_wait().expect("wait").is_none(), "it ended before it stopped itself");
        std::thread::yield_now();
    }
    let options = Options::PTRACE_O_TRACESYSGOOD
        | Options::PTRACE_O_TRACECLONE
        | Options::PTRACE_O_TRACEEXEC
        | Options::PTRACE_O_EXITKILL;
    ptrace::seize(leader, options).expect("PTRACE_SEIZE");
    kill(leader, Signal::SIGCONT).expect("SIGCONT");
    // Every thread of the process is of its group, and no other test's child is.
    let group = Pid::from_raw(-leader.as_raw());
    let mut counting = false;
    let mut calls = 0;
    // A thread stops at the entry and at the exit of each call in turn.
    let mut inside: std::collections::BTreeSet<Pid> = Default::default();
    loop {
        let status = match waitpid(group, Some(WaitPidFlag::__WALL)) {
            Ok(status) => status,
            Err(Errno::EINTR) => continue,
            Err(Errno::ECHILD) => return (End::Finished, None),
            Err(errno) => panic!("waitpid: {errno}"),
        };
        let (thread, signal) = match status {
            WaitStatus::PtraceSyscall(thread) => {
                if !inside.remove(&thread) {
                    inside.insert(thread);
                    if counting {
                        calls += 1;
                    }
                    if counting && calls == n {
                        kill(leader, Signal::SIGKILL).expect("SIGKILL");
                        reap(group);
                        return (End::Killed, None);
                    }
                }
                (thread, None)
            }
            WaitStatus::PtraceEvent(thread, _, event) => {
                if event == nix::libc::PTRACE_EVENT_EXEC {
                    counting = true;
                }
                (thread, None)
            }
            WaitStatus::Stopped(thread, signal) => {
                (thread, (signal != Signal::SIGSTOP && signal != Signal::SIGTRAP).then_some(signal))
            }
            WaitStatus::Exited(thread, code) if thread == leader => {
                use std::os::unix::process::ExitStatusExt as _;
                return (End::Finished, Some(ExitStatus::from_raw(code << 8)));
            }
            _ => continue,
        };
        match ptrace::syscall(thread, signal) {
            // It ended in between, with the others.
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(errno) => panic!("PTRACE_SYSCALL: {errno}"),
        }
    }
}

fn reap(group: Pid) {
    loop {
        match waitpid(group, Some(WaitPidFlag::__WALL)) {
            Err(Errno::ECHILD) => return,
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => panic!("waitpid: {errno}"),
        }
    }
}

/// The letter of the process's state, `T` where it is stopped.
fn stopped_state(pid: Pid) -> Option<char> {
    let stat =
        std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat")).ok()?;
    stat.rsplit_once(") ")?.1.chars().next()
}
