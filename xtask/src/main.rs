//! `cargo xtask`: installs what is needed, builds, and starts tests, the demo and the benches.

mod cargo;
mod run;
mod setup;
mod test;

use std::process::ExitCode;

use anyhow::{Result, bail};

const USAGE: &str = "\
cargo xtask COMMAND

  setup [--check]                        install what the build and the tests need; --check only tells
  demo [--check] [--source dir|etcd]     show Sluice on two nodes; --check asserts every step and ends
  demo down                              end a demo that still runs
  test [lint|unit|kernel|e2e|vm]         run one group of tests; without a name: lints, all groups, the demo
  bench [NAME...] [--quick] [--json FILE]  measure: service, nodeport (against direct routing, nftables, iptables),
                                         cni (against ptp), dns (against Knot, Unbound), podnet (against direct
                                         routing), policy (against direct routing, nftables); without a name:
                                         all of them
  build [--release]                      build all binaries

Groups: unit needs nothing; kernel, e2e, demo and bench need root; vm needs qemu.";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match dispatch(&words) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(words: &[&str]) -> Result<ExitCode> {
    match words {
        ["setup", rest @ ..] => match rest {
            [] => setup::ensure(setup::Need::ALL),
            ["--check"] => setup::check(),
            _ => bail!("setup takes --check or nothing\n\n{USAGE}"),
        }
        .map(|()| ExitCode::SUCCESS),
        ["test", rest @ ..] => test::main(rest),
        ["demo", rest @ ..] => run::demo(rest),
        ["bench", rest @ ..] => run::bench(rest),
        ["build", rest @ ..] => run::build(rest),
        [] | ["help" | "--help" | "-h"] => {
            println!("{USAGE}");
            Ok(ExitCode::SUCCESS)
        }
        [other, ..] => bail!("no command {other}\n\n{USAGE}"),
    }
}
