//! The compiler for the BPF side: a toolchain with the library's source, and bpf-linker with the same LLVM.
//!
//! An existing toolchain is taken as it is, in this order: one that is called `bpf`, rustup's nightly with rust-src, or,
//! without rustup, the system's own compiler with its source. Only where there is none are Debian's packages installed
//! and linked into rustup under the name `bpf`.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::cargo::{must, quiet, root};

/// The version of bpf-linker that matches the pinned aya crates.
const LINKER_VERSION: &str = "0.13.0";
/// rustc, cargo and the library's source, at a version new enough, from Debian.
const DEBIAN_TOOLCHAIN: [&str; 3] = ["rustc-web", "cargo-web", "rust-web-src"];
/// Where the library's source stands below a sysroot.
const SOURCE: &str = "lib/rustlib/src/rust/library/core/Cargo.toml";

/// A compiler that can build for `bpfel-unknown-none`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Toolchain {
    /// As `cargo +NAME` takes it; `None` is the compiler in `PATH`, where there is no rustup.
    pub(crate) name: Option<String>,
    /// Its directory.
    pub(crate) sysroot: PathBuf,
}

impl Toolchain {
    /// Its LLVM's major version, from `rustc -vV`.
    fn llvm(&self) -> Result<u32> {
        let rustc = self.sysroot.join("bin/rustc");
        let text = quiet(Command::new(&rustc).arg("-vV"))
            .with_context(|| format!("{} -vV failed", rustc.display()))?;
        llvm_major(&text).with_context(|| format!("{} tells no LLVM version", rustc.display()))
    }
}

fn llvm_major(verbose_version: &str) -> Option<u32> {
    let version = verbose_version.lines().find_map(|line| line.strip_prefix("LLVM version: "))?;
    version.split('.').next()?.parse().ok()
}

/// The toolchain to use, if there is one.
pub(crate) fn find() -> Option<Toolchain> {
    let Some(home) = rustup_home() else {
        let sysroot = quiet(Command::new("rustc").args(["--print", "sysroot"]))?;
        let sysroot = PathBuf::from(sysroot.trim());
        return sysroot.join(SOURCE).is_file().then_some(Toolchain { name: None, sysroot });
    };
    let toolchains = home.join("toolchains");
    let mut names: Vec<String> = std::fs::read_dir(&toolchains)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name == "bpf" || name.starts_with("nightly-"))
        .collect();
    names.sort_by_key(|name| name != "bpf");
    names.into_iter().find_map(|name| {
        let sysroot = toolchains.join(&name).canonicalize().ok()?;
        let complete = sysroot.join(SOURCE).is_file() && sysroot.join("bin/rustc").is_file();
        complete.then_some(Toolchain { name: Some(name), sysroot })
    })
}

fn rustup_home() -> Option<PathBuf> {
    super::find("rustup")?;
    let home = match std::env::var_os("RUSTUP_HOME") {
        Some(home) => PathBuf::from(home),
        None => PathBuf::from(std::env::var_os("HOME")?).join(".rustup"),
    };
    home.is_dir().then_some(home)
}

fn cargo_home() -> Option<PathBuf> {
    match std::env::var_os("CARGO_HOME") {
        Some(home) => Some(PathBuf::from(home)),
        None => Some(PathBuf::from(std::env::var_os("HOME")?).join(".cargo")),
    }
}

/// What there is of bpf-linker.
#[derive(Debug, PartialEq, Eq)]
enum Linker {
    Absent,
    /// Built by `cargo install` for another LLVM than the compiler's.
    Mismatch(u32),
    Good(PathBuf),
}

fn linker(llvm: impl FnOnce() -> Result<u32>) -> Result<Linker> {
    let installed = cargo_home().map(|home| home.join("bin/bpf-linker"));
    let Some(path) = super::find("bpf-linker").or_else(|| installed.filter(|path| path.is_file()))
    else {
        return Ok(Linker::Absent);
    };
    let record = cargo_home().map(|home| home.join(".crates2.json"));
    let record = record.and_then(|path| std::fs::read_to_string(path).ok()).unwrap_or_default();
    match recorded_llvm(&record) {
        Some(built) if built != llvm()? => Ok(Linker::Mismatch(built)),
        // A released binary brings its own LLVM.
        _ => Ok(Linker::Good(path)),
    }
}

/// The LLVM feature that cargo's record of installed crates names for bpf-linker.
fn recorded_llvm(record: &str) -> Option<u32> {
    let entry = &record[record.find("\"bpf-linker ")?..];
    let features = &entry[entry.find("\"features\":[")?..];
    let features = &features[..features.find(']')?];
    features.split('"').find_map(|word| word.strip_prefix("llvm-")?.parse().ok())
}

/// What is missing, before any of it is installed.
pub(super) struct Plan {
    debian_toolchain: bool,
    llvm: Option<u32>,
}

/// Finds out what is missing.
///
/// # Errors
/// The compiler that is there does not run.
pub(super) fn plan() -> Result<Plan> {
    let Some(toolchain) = find() else {
        return Ok(Plan { debian_toolchain: true, llvm: None });
    };
    let llvm = match linker(|| toolchain.llvm())? {
        Linker::Good(_) => None,
        Linker::Absent | Linker::Mismatch(_) => Some(toolchain.llvm()?),
    };
    Ok(Plan { debian_toolchain: false, llvm })
}

impl Plan {
    /// Debian packages to install now. LLVM's follows in [`Plan::finish`] where the compiler is not here yet to tell
    /// its version.
    pub(super) fn packages(&self) -> Vec<&'static str> {
        let missing = DEBIAN_TOOLCHAIN.into_iter();
        if self.debian_toolchain { missing.collect() } else { Vec::new() }
    }

    /// Links the toolchain, and builds bpf-linker for its LLVM.
    ///
    /// # Errors
    /// A step fails; the message says how to do it by hand.
    pub(super) fn finish(self) -> Result<()> {
        if self.debian_toolchain && rustup_home().is_some() {
            must(Command::new("rustup").args(["toolchain", "link", "bpf", "/usr"]))?;
        }
        if !self.debian_toolchain && self.llvm.is_none() {
            return Ok(());
        }
        let toolchain = find().context(
            "no compiler with the library's source: `rustup toolchain install nightly -c rust-src`",
        )?;
        let llvm = toolchain.llvm()?;
        if let Linker::Good(_) = linker(|| Ok(llvm))? {
            return Ok(());
        }
        let prefix = format!("/usr/lib/llvm-{llvm}");
        if !Path::new(&prefix).join("include/llvm-c/Core.h").is_file() {
            super::apt::install(&[&format!("llvm-{llvm}-dev")]).with_context(|| {
                format!("bpf-linker needs LLVM {llvm}; or put a released bpf-linker into PATH")
            })?;
        }
        let feature = format!("llvm-{llvm}");
        must(
            Command::new("cargo")
                .args(["install", "bpf-linker", "--version", LINKER_VERSION, "--force"])
                .args(["--no-default-features", "--features", &feature])
                .env("LLVM_PREFIX", &prefix)
                .env_remove("RUSTUP_TOOLCHAIN")
                .current_dir(root()),
        )
        .context("bpf-linker; a released binary in PATH does as well")
    }
}

/// One line each for `setup --check`; `Err` is what is missing.
pub(super) fn report() -> Vec<(&'static str, Result<String, String>)> {
    let toolchain = find();
    let compiler = match &toolchain {
        Some(found) => Ok(format!(
            "{} ({})",
            found.name.as_deref().unwrap_or("the system's"),
            found.sysroot.display()
        )),
        None => Err(format!(
            "MISSING: apt-get install {}; rustup toolchain link bpf /usr",
            DEBIAN_TOOLCHAIN.join(" ")
        )),
    };
    let llvm = || toolchain.as_ref().context("no compiler")?.llvm();
    let linker = match linker(llvm) {
        Ok(Linker::Good(path)) => Ok(path.display().to_string()),
        Ok(Linker::Absent) => Err("MISSING".to_owned()),
        Ok(Linker::Mismatch(built)) => Err(format!("built for LLVM {built}, not the compiler's")),
        Err(error) => Err(format!("{error:#}")),
    };
    let lints = require_lints().map(|()| "present".to_owned()).map_err(|error| error.to_string());
    vec![("BPF compiler", compiler), ("bpf-linker", linker), ("rustfmt, clippy", lints)]
}

/// Fails where rustfmt or clippy is missing.
///
/// # Errors
/// Names the missing component and the command that adds it.
pub(super) fn require_lints() -> Result<()> {
    for (command, component) in [("fmt", "rustfmt"), ("clippy", "clippy")] {
        if quiet(crate::cargo::cargo(&[command, "--version"]).current_dir(root())).is_none() {
            bail!("{component} is missing: `rustup component add {component}`");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_llvm_version_is_read_off_the_compiler() {
        let text = "rustc 1.96.0\nhost: x86_64-unknown-linux-gnu\nLLVM version: 22.1.8\n";
        assert_eq!(llvm_major(text), Some(22));
        assert_eq!(llvm_major("rustc 1.96.0\n"), None);
    }

    #[test]
    fn the_llvm_of_an_installed_linker_is_read_off_cargos_record() {
        let record = r#"{"installs":{"a 1.0.0 (r)":{"features":["llvm-1"]},"bpf-linker 0.13.0 (r)":{"version_req":"=0.13.0","features":["llvm-22"],"rustc":"LLVM version: 9"}}}"#;
        assert_eq!(recorded_llvm(record), Some(22));
        assert_eq!(recorded_llvm("{}"), None);
        assert_eq!(recorded_llvm(r#""bpf-linker 0.9.0":{"features":[]}"#), None);
    }
}
