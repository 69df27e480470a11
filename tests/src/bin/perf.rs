//! The two ends of a measurement: as little program as possible around the system calls.
//!
//! The first byte of a connection says what the client wants: `c` for one exchange, after which the server closes, `r`
//! for exchanges until the client closes, `b` to be read to its end, and how many bytes came (a big-endian `u64`). The server closes first, so that TIME_WAIT stays on its side, where the next
//! SYN from the same port takes it over; the client's ports never run out.

use std::io::{self, Read, Write};
use std::net::{
    IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket,
};
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
        /// Datagrams instead of connections
        #[arg(long)]
        udp: bool,
    },
    /// Ask for a time, and print how many answers came a second, or how many gigabits
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
    /// One stream to the server, in gigabits a second
    TcpBulk,
    /// A new connected datagram socket, request, response, close
    UdpCrr,
    /// Request and response over one connected datagram socket
    UdpRr,
}

/// How long a datagram's answer may take; a measurement with a loss is none.
const PATIENCE: Duration = Duration::from_secs(2);

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Server { listen, udp: false } => server(listen),
        Command::Server { listen, udp: true } => udp_server(listen),
        Command::Client { target, case, millis } => {
            let time = Duration::from_millis(millis);
            let result = match case {
                Case::TcpCrr => repeat(time, || crr(target)),
                Case::TcpRr => rr(target, time),
                Case::TcpBulk => bulk(target, time / 10).and_then(|_| bulk(target, time)),
                Case::UdpCrr => repeat(time, || udp_exchange(&udp_socket(target)?)),
                Case::UdpRr => {
                    udp_socket(target).and_then(|socket| repeat(time, || udp_exchange(&socket)))
                }
            };
            result.map(|rate| println!("{rate:.3}"))
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
    let listener: TcpListener = bound(listen, socket2::Type::STREAM)?.into();
    println!("listening");
    loop {
        // A client that was stopped leaves broken connections behind; they are its own affair.
        let _ = listener.accept().and_then(|(stream, _)| answer(stream));
    }
}

/// A socket for one family alone: servers of both may share a port.
fn bound(listen: SocketAddr, kind: socket2::Type) -> io::Result<socket2::Socket> {
    let socket = socket2::Socket::new(socket2::Domain::for_address(listen), kind, None)?;
    if listen.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.bind(&listen.into())?;
    if kind == socket2::Type::STREAM {
        socket.listen(4096)?;
    }
    Ok(socket)
}

fn udp_server(listen: SocketAddr) -> io::Result<()> {
    let socket: UdpSocket = bound(listen, socket2::Type::DGRAM)?.into();
    println!("listening");
    let mut byte = [0; 1];
    loop {
        // A client that is gone may be told by an error of the next call.
        if let Ok((_, from)) = socket.recv_from(&mut byte) {
            let _ = socket.send_to(&byte, from);
        }
    }
}

fn udp_socket(target: SocketAddr) -> io::Result<UdpSocket> {
    let any: IpAddr = match target {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.connect(target)?;
    Ok(socket)
}

fn udp_exchange(socket: &UdpSocket) -> io::Result<()> {
    socket.send(b"r")?;
    socket.recv(&mut [0]).map(drop)
}

fn answer(mut stream: TcpStream) -> io::Result<()> {
    let mut byte = [0; 1];
    while stream.read(&mut byte)? == 1 {
        if byte[0] == b'b' {
            return swallow(stream);
        }
        stream.write_all(&byte)?;
        if byte[0] == b'c' {
            break;
        }
    }
    Ok(())
}

/// Bytes of one system call of a bulk stream.
const BULK: usize = 128 << 10;

/// Reads to the end, and says how much it was.
fn swallow(mut stream: TcpStream) -> io::Result<()> {
    let mut buffer = vec![0; BULK];
    let mut total = 0_u64;
    loop {
        match stream.read(&mut buffer)? {
            0 => return stream.write_all(&total.to_be_bytes()),
            len => total += len as u64,
        }
    }
}

/// Gigabits a second that arrive: the time ends when the server has said how much came.
fn bulk(target: SocketAddr, time: Duration) -> io::Result<f64> {
    let mut stream = TcpStream::connect(target)?;
    let buffer = vec![0; BULK];
    let start = Instant::now();
    stream.write_all(b"b")?;
    let mut sent = 0_u64;
    while start.elapsed() < time {
        stream.write_all(&buffer)?;
        sent += buffer.len() as u64;
    }
    stream.shutdown(Shutdown::Write)?;
    let mut total = [0; 8];
    stream.read_exact(&mut total)?;
    let elapsed = start.elapsed();
    if u64::from_be_bytes(total) != sent {
        return Err(io::Error::other("the server got another number of bytes"));
    }
    #[allow(clippy::cast_precision_loss, reason = "fewer than 2^52 bytes")]
    Ok(sent as f64 * 8.0 / 1e9 / elapsed.as_secs_f64())
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
