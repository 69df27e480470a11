//! The resolvers that programs have: those of C libraries, each built into a small client.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

use crate::Result;
use crate::process::Launch;

/// The libraries, with the compiler that links against each.
pub const LIBRARIES: [(&str, &str); 2] = [("glibc", "cc"), ("musl", "musl-gcc")];

/// What a resolver said of a name.
#[derive(Debug, PartialEq, Eq)]
pub struct Said {
    /// The name that it is an alias for, or itself in full; where the library tells.
    pub canonical: Option<String>,
    /// The addresses; none where there is no such name.
    pub addrs: BTreeSet<String>,
}

impl Said {
    /// From what the client prints.
    ///
    /// # Errors
    /// It printed nothing.
    pub fn read(text: &str) -> Result<Self> {
        let mut lines = text.lines();
        let first = lines.next().context("a resolver said nothing")?;
        let canonical = first.strip_prefix("name ").map(str::to_owned);
        Ok(Self { canonical, addrs: lines.map(str::to_owned).collect() })
    }
}

/// Builds the client with that compiler, into that directory: `NAME` is its one argument.
///
/// # Errors
/// The compiler is not there, or fails.
pub fn build(dir: &Path, compiler: &str) -> Result<PathBuf> {
    let (source, program) = (dir.join("resolve.c"), dir.join(format!("resolve-{compiler}")));
    fs::write(&source, include_str!("resolve.c")).with_context(|| source.display().to_string())?;
    Launch::new(compiler)
        .args(["-Wall", "-O1", "-o"])
        .arg(&program)
        .arg(&source)
        .run()
        .with_context(|| format!("{compiler}: `cargo xtask setup` installs what is missing"))?;
    Ok(program)
}
