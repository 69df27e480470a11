//! Where the binaries under test are.

use anyhow::{Context, Result, bail};
use std::path::PathBuf;

/// The path of a binary of this workspace, for example `bin("sluiced")`.
///
/// It stands next to the running executable (`target/debug`, one level up for tests in `deps/`); the environment
/// variable `SLUICE_BIN_DIR` names another directory.
///
/// # Errors
/// The binary has not been built.
pub fn bin(name: &str) -> Result<PathBuf> {
    let dir = match std::env::var_os("SLUICE_BIN_DIR") {
        Some(dir) => PathBuf::from(dir),
        None => beside_this_executable()?,
    };
    let path = dir.join(name);
    if path.is_file() {
        return Ok(path);
    }
    let profile = if dir.ends_with("release") { " --release" } else { "" };
    bail!("{} is not there: build it with `cargo build{profile}`", path.display())
}

fn beside_this_executable() -> Result<PathBuf> {
    let exe = std::env::current_exe().context("the path of this executable")?;
    let dir = exe.parent().context("this executable has no directory")?;
    let dir = if dir.ends_with("deps") || dir.ends_with("examples") {
        dir.parent().context("target directory")?
    } else {
        dir
    };
    Ok(dir.to_owned())
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_missing_binary_says_how_to_build_it() {
        let error = super::bin("no-such-binary").unwrap_err().to_string();
        assert!(error.contains("no-such-binary") && error.contains("cargo build"), "{error}");
    }
}
