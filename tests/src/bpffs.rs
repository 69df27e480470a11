//! Directories on the BPF file system.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::mount::MsFlags;

use crate::{interrupt, names, root, sweep};

/// Where bpffs is mounted.
pub const MOUNT: &str = "/sys/fs/bpf";

/// Mounts bpffs at [`MOUNT`] if it is not there yet, as systemd does at boot. It stays mounted.
///
/// # Errors
/// No right to mount, or a kernel without bpffs.
pub fn ensure_mounted() -> Result<()> {
    let mounted = || -> Result<bool> {
        let mounts = fs::read_to_string("/proc/self/mountinfo").context("/proc/self/mountinfo")?;
        Ok(mounts
            .lines()
            .any(|line| line.split(' ').nth(4) == Some(MOUNT) && line.contains(" - bpf ")))
    };
    if mounted()? {
        return Ok(());
    }
    // Every mount is a file system of its own: a second one on top would hide the pins in the first. Whoever finds none
    // takes a lock on the directory below it and looks again.
    let below = fs::File::open(MOUNT).with_context(|| format!("{MOUNT}: a kernel without BPF?"))?;
    rustix::fs::flock(&below, rustix::fs::FlockOperation::LockExclusive)?;
    if mounted()? {
        return Ok(());
    }
    nix::mount::mount(Some("bpf"), MOUNT, Some("bpf"), MsFlags::empty(), None::<&str>)
        .with_context(|| format!("mount bpffs at {MOUNT}"))
}

/// A directory of its own on bpffs, removed with all pins in it on drop.
#[derive(Debug)]
pub struct BpfRoot {
    path: PathBuf,
}

impl BpfRoot {
    /// Makes `/sys/fs/bpf/PREFIX-PID-SERIAL-LABEL`.
    ///
    /// # Errors
    /// Not root, or bpffs cannot be mounted.
    pub fn new(label: &str) -> Result<Self> {
        root::require_root()?;
        sweep::once();
        interrupt::clean_up_on_signal();
        ensure_mounted()?;
        let path = Path::new(MOUNT).join(names::unique(label));
        fs::create_dir(&path).with_context(|| format!("create {}", path.display()))?;
        Ok(Self { path })
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for BpfRoot {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.path)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            eprintln!("cannot remove {}: {error}", self.path.display());
        }
    }
}
