//! `sluice-cni`: run by a container runtime, once per pod and command.

use std::io::{self, Read as _, Write as _};
use std::path::Path;
use std::process::ExitCode;

use sluice_cni::error::Error;
use sluice_cni::version::SpecVersion;

fn main() -> ExitCode {
    if std::env::var_os("CNI_COMMAND").is_none() {
        let versions = SpecVersion::ALL.map(SpecVersion::as_str).join(", ");
        println!(
            "sluice-cni {}: CNI plugin for the specification's versions {versions}; a container \
             runtime runs it with CNI_COMMAND set and the network configuration on stdin",
            env!("CARGO_PKG_VERSION")
        );
        return ExitCode::SUCCESS;
    }
    let mut stdin = Vec::new();
    let outcome = match io::stdin().lock().read_to_end(&mut stdin) {
        Ok(_) => sluice_cni::run(|name| std::env::var(name).ok(), &stdin),
        Err(e) => Err(Error::io("read", Path::new("stdin"), e).report(SpecVersion::NEWEST)),
    };
    let (text, code) = match &outcome {
        Ok(None) => return ExitCode::SUCCESS,
        Ok(Some(value)) => (serde_json::to_string(value), ExitCode::SUCCESS),
        Err(report) => (serde_json::to_string(report), ExitCode::FAILURE),
    };
    let written = text.map_err(io::Error::from).and_then(|text| {
        let mut stdout = io::stdout().lock();
        writeln!(stdout, "{text}")?;
        stdout.flush()
    });
    if let Err(e) = written {
        eprintln!("sluice-cni: write the result: {e}");
        return ExitCode::FAILURE;
    }
    code
}
