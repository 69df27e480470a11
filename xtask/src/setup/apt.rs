//! Debian packages, without any daemon started on the way.

use std::fs;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
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
    let _no_daemons = PolicyFile::create(Path::new(POLICY))?;
    let mut install = apt(&[&["install", "--yes", "--no-install-recommends"], packages].concat());
    if must(&mut install).is_err() {
        // Lists may be old, or empty in a fresh image.
        must(&mut apt(&["update"]))?;
        must(&mut install).with_context(|| format!("packages that are needed: {list}"))?;
    }
    // Nor at the next boot: the tests start theirs themselves. What was there before is not touched.
    for unit in units(packages) {
        let _ = quiet(Command::new("systemctl").args(["disable", unit]));
    }
    Ok(())
}

/// What systemd would start at the next boot because of these packages.
fn units<'a>(packages: &'a [&str]) -> impl Iterator<Item = &'static str> + 'a {
    let of_package = |package: &str| UNITS.iter().find(|(name, _)| *name == package);
    packages
        .iter()
        .filter_map(move |package| of_package(package))
        .flat_map(|(_, units)| *units)
        .copied()
}

/// Packages that bring daemons, and their units.
const UNITS: [(&str, &[&str]); 5] = [
    ("containerd", &["containerd.service"]),
    ("etcd-server", &["etcd.service"]),
    ("knot", &["knot.service"]),
    (
        "podman",
        &["podman.socket", "podman.service", "podman-restart.service", "podman-auto-update.timer"],
    ),
    ("unbound", &["unbound.service"]),
];

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

/// `/usr/sbin/policy-rc.d`, for as long as packages are being installed. One that is there already is left alone, unless
/// it is what a run left that was killed.
struct PolicyFile {
    path: Option<PathBuf>,
}

const POLICY: &str = "/usr/sbin/policy-rc.d";

/// 101: not allowed by policy.
const NO_DAEMONS: &str =
    "#!/bin/sh\n# By `cargo xtask setup` of Sluice, while it installs packages.\nexit 101\n";

impl PolicyFile {
    fn create(path: &Path) -> Result<Self> {
        // It removes the file when it goes, so it is made only once the file is ours.
        let ours = || Self { path: Some(path.to_owned()) };
        match fs::read_to_string(path) {
            Ok(text) if text == NO_DAEMONS => return Ok(ours()),
            Ok(_) => return Ok(Self { path: None }),
            Err(_) => {}
        }
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o755)
            .open(path)
            .with_context(|| format!("create {}", path.display()))?;
        let ours = ours();
        std::io::Write::write_all(&mut file, NO_DAEMONS.as_bytes())
            .with_context(|| format!("write {}", path.display()))?;
        Ok(ours)
    }
}

impl Drop for PolicyFile {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            let _ = fs::remove_file(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;

    use super::{NO_DAEMONS, PolicyFile, units};

    fn path(label: &str) -> PathBuf {
        std::env::temp_dir().join(format!("xtask-{}-{label}", std::process::id()))
    }

    #[test]
    fn the_policy_goes_with_the_installation_and_a_foreign_one_stays() {
        let path = path("policy");
        drop(PolicyFile::create(&path).expect("a file"));
        assert!(!path.exists());
        // What a killed run left is ours to remove.
        fs::write(&path, NO_DAEMONS).expect("a file");
        drop(PolicyFile::create(&path).expect("taken over"));
        assert!(!path.exists());
        fs::write(&path, "#!/bin/sh\nexit 0\n").expect("a file");
        drop(PolicyFile::create(&path).expect("left alone"));
        assert!(path.exists());
        fs::remove_file(&path).expect("its end");
    }

    #[test]
    fn only_daemons_of_what_is_installed_are_disabled() {
        let found: Vec<&str> = units(&["curl", "knot", "etcd-server"]).collect();
        assert_eq!(found, ["knot.service", "etcd.service"]);
    }

    #[test]
    fn the_effective_user_is_the_second_figure() {
        let status = "Name:\tsh\nUid:\t1000\t0\t1000\t0\nGid:\t5\t5\t5\t5\n";
        assert_eq!(super::effective_uid(status), Some(0));
        assert_eq!(super::effective_uid("Name: x\n"), None);
    }
}
