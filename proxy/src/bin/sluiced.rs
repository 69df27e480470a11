//! The node agent.

use std::process::ExitCode;

use sluice_proxy::agent;
use sluice_proxy::config::{ArgsError, Parsed, sluiced_args};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let Parsed { args, warnings } = match sluiced_args(std::env::args_os()) {
        Ok(parsed) => parsed,
        // Help and version are such errors, and go to standard output.
        Err(ArgsError::Flags(error)) => error.exit(),
        Err(error) => {
            eprintln!("sluiced: {error}");
            return ExitCode::from(2);
        }
    };
    let filter = match EnvFilter::try_new(&args.log_level) {
        Ok(filter) => filter,
        Err(error) => {
            eprintln!("sluiced: --log-level {}: {error}", args.log_level);
            return ExitCode::from(2);
        }
    };
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    for warning in &warnings {
        tracing::warn!("{warning}");
    }
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("sluiced: cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    let done = runtime.block_on(async {
        if args.cleanup { agent::cleanup(&args).await } else { agent::run(args).await }
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("sluiced: {error}");
            if !error.hint.is_empty() {
                eprintln!("hint: {}", error.hint);
            }
            ExitCode::FAILURE
        }
    }
}
