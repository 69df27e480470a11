//! Builds, and hands over to, the demo and the benches.

use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};

use crate::cargo::{cargo, must, target_dir};
use crate::setup::{self, Need};

pub(crate) fn build(args: &[&str]) -> Result<ExitCode> {
    setup::ensure(Need::BUILD)?;
    must(&mut cargo(&[&["build"], args].concat()))?;
    Ok(ExitCode::SUCCESS)
}

pub(crate) fn demo(args: &[&str]) -> Result<ExitCode> {
    let binary = target_dir().join("debug/demo");
    // `down` must work even when the tree does not build at the moment.
    if args != ["down"] || !binary.is_file() {
        setup::ensure(Need::BUILD | Need::TEST)?;
        must(&mut cargo(&["build"]))?;
    }
    hand_over(Command::new(binary).args(args))
}

pub(crate) fn bench(args: &[&str]) -> Result<ExitCode> {
    setup::ensure(Need::BUILD | Need::TEST)?;
    // What it starts, no more: an optimised build of everything takes minutes.
    let packages = [
        "--package=sluice-tests",
        "--package=sluice-proxy",
        "--package=sluice-cni",
        "--package=sluice-dns",
    ];
    must(&mut cargo(&[&["build", "--release"], &packages[..]].concat()))?;
    hand_over(Command::new(target_dir().join("release/bench")).args(args))
}

/// Becomes the other program: signals from the terminal reach it, and only it, so that its cleanup runs to the end.
fn hand_over(command: &mut Command) -> Result<ExitCode> {
    let error = command.exec();
    let program = command.get_program().to_string_lossy().into_owned();
    if error.kind() == std::io::ErrorKind::NotFound {
        bail!("{program} is not there: the build did not make it");
    }
    Err(error).with_context(|| format!("start {program}"))
}
