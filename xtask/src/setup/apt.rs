//! Debian packages, without any daemon started on the way.

use std::fs;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::cargo::{must, quiet};

/// Installs packages.
///
/// # Errors
/// Not root, no apt, or apt fails; the message names the packages.
pub(super) fn install(packages: &[&str]) -> Result<()> {
    let list = packages.join(" ");
    if super::find("apt-get").is_none() {
        bail!("this is not a Debian system: install what these Debian packages hold: {list}");
    }
    if !is_root() {
        bail!("not root: run `sudo apt-get install --no-install-recommends {list}`");
    }
    // Debian starts daemons as it installs them (etcd-server here); this file is its own way to say no.
    let _no_daemons = PolicyFile::create()?;
    let had_etcd = super::find("etcd").is_some();
    let mut install = apt(&[&["install", "--yes", "--no-install-recommends"], packages].concat());
    if must(&mut install).is_err() {
        // Lists may be old, or empty in a fresh image.
        must(&mut apt(&["update"]))?;
        must(&mut install).with_context(|| format!("packages that are needed: {list}"))?;
    }
    if !had_etcd && packages.contains(&"etcd-server") {
        // Nor at the next boot: the tests start etcd themselves.
        let _ = quiet(Command::new("systemctl").args(["disable", "etcd.service"]));
    }
    Ok(())
}

fn apt(args: &[&str]) -> Command {
    let mut command = Command::new("apt-get");
    command.args(args).env("DEBIAN_FRONTEND", "noninteractive");
    command
}

fn is_root() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    effective_uid(&status) == Some(0)
}

fn effective_uid(status: &str) -> Option<u32> {
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

/// `/usr/sbin/policy-rc.d`, for as long as packages are being installed. One that is there already is left alone.
struct PolicyFile {
    ours: bool,
}

const POLICY: &str = "/usr/sbin/policy-rc.d";

impl PolicyFile {
    fn create() -> Result<Self> {
        if Path::new(POLICY).exists() {
            return Ok(Self { ours: false });
        }
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o755)
            .open(POLICY)
            .with_context(|| format!("create {POLICY}"))?;
        std::io::Write::write_all(&mut file, b"#!/bin/sh\nexit 101\n")?;
        Ok(Self { ours: true })
    }
}

impl Drop for PolicyFile {
    fn drop(&mut self) {
        if self.ours {
            let _ = fs::remove_file(POLICY);
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_effective_user_is_the_second_figure() {
        let status = "Name:\tsh\nUid:\t1000\t0\t1000\t0\nGid:\t5\t5\t5\t5\n";
        assert_eq!(super::effective_uid(status), Some(0));
        assert_eq!(super::effective_uid("Name: x\n"), None);
    }
}
