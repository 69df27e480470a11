//! What the build and the tests need, and how it gets here.
//!
//! A check costs milliseconds when nothing is missing: it looks for files. Nothing is installed twice, and nothing but
//! what is missing; where it cannot be installed, the message says exactly what to install.

mod apt;
mod toolchain;

use std::fmt::Write as _;
use std::ops::BitOr;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

pub(crate) use toolchain::find as bpf_toolchain;

/// Sets of needs: every subcommand asks for its own only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Need(u8);

impl Need {
    /// Compilers and generators.
    pub(crate) const BUILD: Self = Self(1);
    /// What kernel and end-to-end tests, the demo and the benches call.
    pub(crate) const TEST: Self = Self(2);
    /// rustfmt and clippy.
    pub(crate) const LINT: Self = Self(4);
    /// All of it.
    pub(crate) const ALL: Self = Self(7);

    fn has(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }
}

impl BitOr for Need {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// A Debian package, and the file or program that shows that it, or its like on another system, is there.
struct Package {
    name: &'static str,
    need: Need,
    proof: &'static str,
    why: &'static str,
}

const fn package(
    name: &'static str,
    need: Need,
    proof: &'static str,
    why: &'static str,
) -> Package {
    Package { name, need, proof, why }
}

const PACKAGES: &[Package] = &[
    package(
        "protobuf-compiler",
        Need::BUILD,
        "protoc",
        "etcd's API is generated from its .proto files",
    ),
    package(
        "libprotobuf-dev",
        Need::BUILD,
        "/usr/include/google/protobuf/descriptor.proto",
        "the .proto files that those import",
    ),
    package("iproute2", Need::TEST, "ip", "namespaces and links of the test nodes"),
    package("util-linux", Need::TEST, "nsenter", "processes in namespaces"),
    package("iptables", Need::TEST, "iptables-restore", "a peer of the benches"),
    package("nftables", Need::TEST, "nft", "a peer of the benches"),
    package("etcd-server", Need::TEST, "etcd", "a real store"),
    package("etcd-client", Need::TEST, "etcdctl", "fills the real store"),
    package("bpftool", Need::TEST, "bpftool", "looks at maps and programs"),
    package("bind9-dnsutils", Need::TEST, "dig", "asks sluice-dns"),
    package("musl-tools", Need::TEST, "musl-gcc", "builds a client with the resolver of musl"),
    package(
        "containernetworking-plugins",
        Need::TEST,
        "/usr/lib/cni/ptp",
        "plugins in a chain with ours, and beside it in the bench",
    ),
    package("containerd", Need::TEST, "containerd", "a real runtime"),
    package("runc", Need::TEST, "runc", "what containerd and podman run"),
    package("podman", Need::TEST, "podman", "a real runtime"),
    package("dnsperf", Need::TEST, "dnsperf", "the load of the bench dns"),
    package("knot", Need::TEST, "knotd", "a peer of the bench dns"),
    package("unbound", Need::TEST, "unbound", "a peer of the bench dns"),
    package("curl", Need::TEST, "curl", "a client that is not ours"),
    package("busybox-static", Need::TEST, "busybox", "clients and images without libraries"),
];

/// Checks, and installs what is missing.
///
/// # Errors
/// Something cannot be installed; the message says what to do by hand.
pub(crate) fn ensure(need: Need) -> Result<()> {
    let mut missing: Vec<&str> = absent(need).map(|package| package.name).collect();
    let plan = need.has(Need::BUILD).then(toolchain::plan).transpose()?;
    if let Some(plan) = &plan {
        missing.extend(plan.packages());
    }
    if !missing.is_empty() {
        eprintln!("xtask: missing: {}", missing.join(" "));
        apt::install(&missing)?;
    }
    if let Some(plan) = plan {
        plan.finish()?;
    }
    if need.has(Need::LINT) {
        toolchain::require_lints()?;
    }
    Ok(())
}

/// Tells what is there and what is missing, and changes nothing.
///
/// # Errors
/// Something is missing.
pub(crate) fn check() -> Result<()> {
    let mut bad = 0;
    let mut report = String::new();
    // Writing to a String cannot fail.
    for package in PACKAGES {
        let found = find(package.proof);
        bad += usize::from(found.is_none());
        let state = match found {
            Some(path) => path.display().to_string(),
            None => format!("MISSING ({}): apt-get install {}", package.why, package.name),
        };
        let _ = writeln!(report, "{:20} {state}", package.name);
    }
    for (name, state) in toolchain::report() {
        bad += usize::from(state.is_err());
        let (Ok(state) | Err(state)) = state;
        let _ = writeln!(report, "{name:20} {state}");
    }
    print!("{report}");
    if bad > 0 {
        bail!("{bad} missing: `cargo xtask setup` installs them on Debian, as root");
    }
    Ok(())
}

fn absent(need: Need) -> impl Iterator<Item = &'static Package> {
    PACKAGES.iter().filter(move |package| need.has(package.need) && find(package.proof).is_none())
}

/// Finds a program in `PATH` and the sbin directories; an absolute path is looked up as it is.
fn find(proof: &str) -> Option<PathBuf> {
    let path = std::env::var("PATH").unwrap_or_default();
    path.split(':')
        .chain(["/usr/sbin", "/sbin"])
        // An absolute proof replaces the directory it is joined to.
        .map(|dir| Path::new(dir).join(proof))
        .find(|path| path.is_absolute() && path.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_need_holds_its_parts() {
        let need = Need::BUILD | Need::TEST;
        assert!(need.has(Need::BUILD) && need.has(Need::TEST) && !need.has(Need::LINT));
        assert_eq!(need | Need::LINT, Need::ALL);
    }

    #[test]
    fn programs_are_found_by_name_and_files_by_path() {
        assert!(find("sh").is_some_and(|path| path.is_absolute()));
        assert_eq!(find("/dev/null/no"), None);
        assert_eq!(find("no-such-program-anywhere"), None);
        assert_eq!(find("/proc/self/status"), Some("/proc/self/status".into()));
    }
}
