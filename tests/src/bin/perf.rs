//! The two ends of a measurement: as little program as possible around the system calls.
//!
//! The first byte of a connection says what the client wants: `c` for one exchange, after which the server closes, `r`
//! for exchanges until the client closes. The server closes first, so that TIME_WAIT stays on its side, where the next
//! SYN from the same port takes it over; the client's ports never run out.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Parser, Subcommand, ValueEnum};

#[derive(Parser)]
#[command(about = "Client and server of `cargo xtask bench`")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Answer until killed
    Server {
        /// ADDRESS:PORT
        listen: SocketAddr,
    },
    /// Ask for a time, and print how many answers came a second
    Client {
        /// ADDRESS:PORT
        target: SocketAddr,
        /// What to count
        #[arg(long)]
        case: Case,
        /// Milliseconds to measure, after a tenth of it to warm up
        #[arg(long, default_value_t = 1000)]
        millis: u64,
    },
}

#[derive(Clone, Copy, ValueEnum)]
enum Case {
    /// Connect, request, response, close
    TcpCrr,
    /// Request and response over one connection
    TcpRr,
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Server { listen } => server(listen),
        Command::Client { target, case, millis } => {
            let time = Duration::from_millis(millis);
            let result = match case {
                Case::TcpCrr => repeat(time, || crr(target)),
                Case::TcpRr => rr(target, time),
            };
            result.map(|rate| println!("{rate:.1}"))
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("perf: {error}");
            ExitCode::FAILURE
        }
    }
}

fn server(listen: SocketAddr) -> io::Result<()> {
    let listener = TcpListener::bind(listen)?;
    println!("listening");
    loop {
        // A client that was stopped leaves broken connections behind; they are its own affair.
        let _ = listener.accept().and_then(|(stream, _)| answer(stream));
    }
}

fn answer(mut stream: TcpStream) -> io::Result<()> {
    let mut byte = [0; 1];
    while stream.read(&mut byte)? == 1 {
        stream.write_all(&byte)?;
        if byte[0] == b'c' {
            break;
        }
    }
    Ok(())
}

fn crr(target: SocketAddr) -> io::Result<()> {
    let mut stream = TcpStream::connect(target)?;
    stream.write_all(b"c")?;
    let mut bytes = [0; 2];
    // The answer and the end of the stream may come together or one after the other.
    if stream.read(&mut bytes)? != 1 || stream.read(&mut bytes)? != 0 {
        return Err(io::Error::other("not one byte and the end"));
    }
    Ok(())
}

fn rr(target: SocketAddr, time: Duration) -> io::Result<f64> {
    let mut stream = TcpStream::connect(target)?;
    stream.set_nodelay(true)?;
    let mut byte = [0; 1];
    repeat(time, || {
        stream.write_all(b"r")?;
        stream.read_exact(&mut byte)
    })
}

/// Exchanges a second over `time`.
fn repeat(time: Duration, mut exchange: impl FnMut() -> io::Result<()>) -> io::Result<f64> {
    let warm = Instant::now() + time / 10;
    while Instant::now() < warm {
        exchange()?;
    }
    let start = Instant::now();
    let mut count = 0_u32;
    loop {
        // The clock costs less than a thousandth of any exchange.
        exchange()?;
        count += 1;
        let elapsed = start.elapsed();
        if elapsed >= time {
            return Ok(f64::from(count) / elapsed.as_secs_f64());
        }
    }
}
