//! cgroup2 subtrees: what the socket hooks of one node see.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

use crate::{PATIENCE, interrupt, names, root, sweep, wait_for};

/// Where cgroup2 is mounted, from `/proc/self/mountinfo`; hybrid hosts have it at `/sys/fs/cgroup/unified`.
///
/// # Errors
/// No cgroup2 mount.
pub fn mount_point() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("/proc/self/mountinfo")?;
    find_mount(&mounts).context("no cgroup2 is mounted on this machine")
}

fn find_mount(mountinfo: &str) -> Option<PathBuf> {
    mountinfo
        .lines()
        .filter(|line| line.contains(" - cgroup2 "))
        .find_map(|line| line.split(' ').nth(4).map(PathBuf::from))
}

/// A cgroup2 directory. The owner of a tree removes it on drop, with the processes in it.
#[derive(Debug)]
pub struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    /// Makes `MOUNT/PREFIX-PID-SERIAL-LABEL`.
    ///
    /// # Errors
    /// Not root, or no cgroup2.
    pub fn new(label: &str) -> Result<Self> {
        root::require_root()?;
        sweep::once();
        interrupt::clean_up_on_signal();
        Self::make(mount_point()?.join(names::unique(label)))
    }

    /// Makes a cgroup below this one, which also goes with it.
    ///
    /// # Errors
    /// The kernel refuses, for example because it is there already.
    pub fn child(&self, name: &str) -> Result<Self> {
        Self::make(self.path.join(name))
    }

    fn make(path: PathBuf) -> Result<Self> {
        fs::create_dir(&path).with_context(|| format!("create cgroup {}", path.display()))?;
        Ok(Self { path })
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The processes in this cgroup itself (not in its children).
    ///
    /// # Errors
    /// `cgroup.procs` cannot be read.
    pub fn processes(&self) -> Result<Vec<u32>> {
        processes(&self.path)
    }

    /// Moves a process into this cgroup.
    ///
    /// # Errors
    /// The process is gone, or the kernel refuses.
    pub fn enter(&self, pid: u32) -> Result<()> {
        let file = self.path.join("cgroup.procs");
        fs::write(&file, pid.to_string())
            .with_context(|| format!("move process {pid} into {}", file.display()))
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        if let Err(error) = remove_tree(&self.path) {
            eprintln!("{error:#}");
        }
    }
}

fn processes(path: &Path) -> Result<Vec<u32>> {
    let file = path.join("cgroup.procs");
    let text = fs::read_to_string(&file).with_context(|| file.display().to_string())?;
    // 0 stands for a process of another PID namespace; nobody here can signal it.
    Ok(text.lines().filter_map(|line| line.parse().ok()).filter(|pid| *pid != 0).collect())
}

/// Kills what runs in a cgroup and below, and removes it. This process itself is moved out first.
pub(crate) fn remove_tree(path: &Path) -> Result<()> {
    if !path.exists() {
        return Ok(());
    }
    let me = std::process::id();
    let mut stubborn = String::new();
    wait_for(
        &format!("cgroup {} to be empty", path.display()),
        PATIENCE,
        || match empty_and_remove(path, me) {
            Ok(()) => Some(()),
            Err(error) => {
                stubborn = format!("{error:#}");
                None
            }
        },
    )
    .with_context(|| stubborn.clone())
}

fn empty_and_remove(path: &Path, me: u32) -> Result<()> {
    for child in fs::read_dir(path).into_iter().flatten().flatten() {
        if child.file_type().is_ok_and(|kind| kind.is_dir()) {
            empty_and_remove(&child.path(), me)?;
        }
    }
    for pid in processes(path).unwrap_or_default() {
        if pid == me {
            let parent = path.parent().context("a cgroup has a parent")?;
            fs::write(parent.join("cgroup.procs"), me.to_string())?;
        } else if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
            // It may have ended by itself since the list was read.
            let _ = kill_process(pid, Signal::KILL);
        }
    }
    match fs::remove_dir(path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => bail!("remove cgroup {}: {error}", path.display()),
    }
}

/// Removes a cgroup and those below it, in which no process is; whether it is gone.
pub(crate) fn remove_empty(dir: &Path) -> bool {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_empty(&entry.path());
        }
    }
    fs::remove_dir(dir).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cgroup2_mount_is_found_on_unified_and_hybrid_hosts() {
        let hybrid = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
                      32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
                      41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n";
        assert_eq!(find_mount(hybrid), Some("/sys/fs/cgroup/unified".into()));
        let unified = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw\n";
        assert_eq!(find_mount(unified), Some("/sys/fs/cgroup".into()));
        assert_eq!(find_mount("1 0 8:1 / / rw - ext4 /dev/sda rw\n"), None);
    }
}
