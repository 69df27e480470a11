//! The node agent.

use std::process::ExitCode;

use clap::Parser;
use sluice_proxy::agent;
use sluice_proxy::cli::SluicedArgs;
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let args = SluicedArgs::parse();
    let filter = match EnvFilter::try_new(&args.log_level) {
        Ok(filter) => filter,
        Err(error) => {
            eprintln!("sluiced: --log-level {}: {error}", args.log_level);
            return ExitCode::from(2);
        }
    };
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("sluiced: cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(agent::run(args)) {
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
