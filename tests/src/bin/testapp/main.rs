//! A tiny real application: servers that say who they are, and clients that keep count.
//!
//! It runs in the pods of the tests and of the demo, with the standard library's sockets and nothing between them and
//! the kernel.

mod client;
mod http;
mod resolve;
mod serve;
mod stick;

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(about = "A tiny server and client that say which pod answered")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Answer HTTP (and UDP) with {pod, node, path, peer}, from POD_NAME and NODE_NAME
    Serve(serve::Serve),
    /// Answer HTTP with what an upstream, called by name, answers
    Front(serve::Front),
    /// Make one HTTP request and print the body
    Get {
        /// [http://]HOST:PORT[/PATH]
        target: String,
        #[command(flatten)]
        client: ClientOptions,
    },
    /// Send one UDP datagram and print the answer
    Udp {
        /// ADDRESS:PORT
        target: SocketAddr,
        /// How many datagrams to send, from one socket; every answer is printed on a line
        #[arg(long, default_value_t = 1)]
        count: u32,
        /// Do not connect the socket: name the destination with every datagram
        #[arg(long)]
        unconnected: bool,
        /// Seconds to wait for each answer
        #[arg(long, default_value_t = 10.0)]
        timeout: f64,
    },
    /// Hold on to one connected socket, and print a line for whatever becomes of it, until SIGTERM
    Stick {
        /// ADDRESS:PORT
        target: SocketAddr,
        /// TCP instead of UDP
        #[arg(long)]
        tcp: bool,
    },
    /// Make requests in a loop until --requests, --seconds or SIGTERM, and print one JSON line
    Load(client::Load),
}

/// How a client finds and waits for a server.
#[derive(clap::Args, Clone)]
struct ClientOptions {
    /// Ask this DNS server for names (ADDRESS[:PORT]) instead of the system's resolver
    #[arg(long)]
    resolver: Option<resolve::Server>,
    /// Search domains for names with fewer than five dots, with --resolver
    #[arg(long, value_delimiter = ',')]
    search: Vec<String>,
    /// Seconds to wait for a connection and for each read
    #[arg(long, default_value_t = 20.0)]
    timeout: f64,
}

impl ClientOptions {
    fn timeout(&self) -> Duration {
        seconds(self.timeout)
    }

    fn resolve(&self, host: &str, port: u16) -> anyhow::Result<SocketAddr> {
        resolve::resolve(host, port, self.resolver.as_ref(), &self.search, self.timeout())
    }
}

/// A number of seconds from the command line; nonsense counts as a millisecond.
fn seconds(value: f64) -> Duration {
    Duration::try_from_secs_f64(value).unwrap_or_default().max(Duration::from_millis(1))
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Serve(options) => serve::serve(&options),
        Command::Front(options) => serve::front(options),
        Command::Get { target, client } => client::get(&target, &client),
        Command::Udp { target, count, unconnected, timeout } => {
            client::udp(target, count, unconnected, seconds(timeout))
        }
        Command::Stick { target, tcp } => stick::stick(target, tcp),
        Command::Load(options) => client::load(&options),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("testapp: {error:#}");
            ExitCode::FAILURE
        }
    }
}
