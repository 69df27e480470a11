//! The rights and tools that the fixtures need.

use anyhow::{Result, bail};
use std::path::Path;

/// Fails with one clear line where a fixture cannot work: not root, or a tool is missing.
///
/// Tests that need root call this first (every fixture does); none of them passes silently without it.
pub fn require_root() -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!("this needs root (namespaces, cgroups, BPF): run it as root, or with sudo");
    }
    for tool in ["ip", "nsenter"] {
        if find_in_path(tool).is_none() {
            bail!("{tool} is missing: `cargo xtask setup` installs it");
        }
    }
    Ok(())
}

/// The full path of an executable, found as a shell would, with the sbin directories added.
pub fn find_in_path(tool: &str) -> Option<std::path::PathBuf> {
    let path = std::env::var("PATH").unwrap_or_default();
    path.split(':')
        .chain(["/usr/sbin", "/sbin", "/usr/bin"])
        .filter(|dir| !dir.is_empty())
        .map(|dir| Path::new(dir).join(tool))
        .find(|path| path.is_file())
}
