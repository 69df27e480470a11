//! Removes what dead runs left behind: a run that was killed could not clean up itself.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Once;

use crate::{bpffs, cgroup, names, netns};

/// Where the hierarchies of cgroups are mounted.
const CGROUPS: &str = "/sys/fs/cgroup";

static ONCE: Once = Once::new();

/// Sweeps leftovers of dead processes, once in the life of this process. Every fixture calls it.
pub(crate) fn once() {
    ONCE.call_once(|| {
        dead();
    });
}

/// Removes namespaces, cgroups (with the processes in them), pins and directories whose owner is gone, for the prefix
/// of this process. Returns how many things were removed. What belongs to a living process stays.
pub fn dead() -> usize {
    sweep(&|pid| !Path::new(&format!("/proc/{pid}")).exists())
}

/// Removes everything that this process made. For the moment before a forced exit; fixtures still alive find nothing
/// to remove.
pub fn own() -> usize {
    sweep(&|pid| pid == std::process::id())
}

fn sweep(wanted: &dyn Fn(u32) -> bool) -> usize {
    let mut removed = 0;
    let mine = |name: &str| names::owner(name).is_some_and(wanted);
    // Processes first: they hold namespaces and pins.
    if let Ok(root) = cgroup::mount_point() {
        for name in entries(&root).filter(|name| mine(name)) {
            removed += usize::from(cgroup::remove_tree(&root.join(name)).is_ok());
        }
    }
    // A container runtime makes its cgroups in the hierarchies of version 1 as well, where there are some.
    for hierarchy in entries(Path::new(CGROUPS)).map(|name| Path::new(CGROUPS).join(name)) {
        for name in entries(&hierarchy).filter(|name| mine(name)) {
            let path = hierarchy.join(name);
            if !path.join("cgroup.controllers").exists() {
                removed += usize::from(cgroup::remove_empty(&path));
            }
        }
    }
    for name in entries(Path::new(netns::DIR)).filter(|name| mine(name)) {
        let status = Command::new("ip")
            .args(["netns", "del", &name])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        removed += usize::from(status.is_ok_and(|status| status.success()));
    }
    for base in [Path::new(bpffs::MOUNT), &std::env::temp_dir()] {
        for name in entries(base).filter(|name| mine(name)) {
            removed += usize::from(fs::remove_dir_all(base.join(name)).is_ok());
        }
    }
    removed
}

fn entries(dir: &Path) -> impl Iterator<Item = String> {
    fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
}
