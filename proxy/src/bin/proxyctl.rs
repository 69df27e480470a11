//! Shows what Sluice does in this node's kernel.

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;
use sluice_proxy::cli::ProxyctlArgs;
use sluice_proxy::ctl;

fn main() -> ExitCode {
    let args = ProxyctlArgs::parse();
    match ctl::run(&args) {
        Ok(output) => {
            if let Some(note) = output.note {
                eprintln!("proxyctl: {note}");
            }
            // A reader that closed the pipe has seen enough.
            let _ = std::io::stdout().write_all(output.text.as_bytes());
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("proxyctl: {error}");
            if let Some(hint) = error.hint() {
                eprintln!("hint: {hint}");
            }
            ExitCode::FAILURE
        }
    }
}
