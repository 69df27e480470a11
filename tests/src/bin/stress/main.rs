//! Servers that say which endpoint they are, and clients that write down who answered when.
//!
//! The two ends of the stress test: as many requests as possible, each with a nonce, each answer checked.

mod ask;
mod serve;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(about = "Client and server of the stress test")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Answer TCP and UDP on several ports until killed
    Serve(serve::Serve),
    /// Ask services at random, and print who answered as one JSON line
    Ask(ask::Ask),
}

/// Bytes of a request: a nonce.
const REQUEST: usize = 8;
/// Bytes of an answer: the nonce, and the endpoint's number.
const ANSWER: usize = 12;

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Serve(options) => serve::serve(&options),
        Command::Ask(options) => ask::ask(&options),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("stress: {error:#}");
            ExitCode::FAILURE
        }
    }
}
