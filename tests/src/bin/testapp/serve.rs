//! Servers: answer until SIGTERM, then drain.

use std::io::{self, BufReader};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::json;
use sluice_tests::app::Identity;
use sluice_tests::interrupt;
use socket2::{Domain, Socket, Type};

use crate::http::{self, Connection, Target};
use crate::{ClientOptions, seconds};

/// How often an idle thread looks whether SIGTERM has arrived.
const LOOK: Duration = Duration::from_millis(50);

#[derive(clap::Args)]
pub(crate) struct Serve {
    #[command(flatten)]
    listen: Listen,
    /// Answer UDP datagrams on the same port, too
    #[arg(long)]
    udp: bool,
}

#[derive(clap::Args)]
pub(crate) struct Front {
    #[command(flatten)]
    listen: Listen,
    /// What to call for every request: [http://]NAME:PORT[/PATH]
    #[arg(long)]
    upstream: Target,
    #[command(flatten)]
    client: ClientOptions,
}

#[derive(clap::Args)]
struct Listen {
    /// Port, TCP (and UDP)
    #[arg(long, default_value_t = 8080)]
    port: u16,
    /// Addresses to listen on; all of both families where none is given
    #[arg(long)]
    bind: Vec<IpAddr>,
    /// Seconds after SIGTERM in which new connections are still accepted: others need time to hear that this pod ends
    #[arg(long, default_value_t = 1.0)]
    drain_delay: f64,
    /// Seconds after that in which open requests may finish
    #[arg(long, default_value_t = 10.0)]
    grace: f64,
}

impl Listen {
    fn addresses(&self) -> Vec<SocketAddr> {
        let any = [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)];
        let wanted = if self.bind.is_empty() { &any[..] } else { &self.bind };
        wanted.iter().map(|address| SocketAddr::new(*address, self.port)).collect()
    }
}

/// A socket on `address`. `None` where a wildcard of a family that this machine lacks was asked for.
fn bind(address: SocketAddr, kind: Type) -> Result<Option<Socket>> {
    let open = || -> io::Result<Socket> {
        let socket = Socket::new(Domain::for_address(address), kind, None)?;
        if address.is_ipv6() {
            // Both families have a socket of their own, so that a peer is shown as it is.
            socket.set_only_v6(true)?;
        }
        socket.set_reuse_address(kind == Type::STREAM)?;
        socket.bind(&address.into())?;
        if kind == Type::STREAM {
            socket.listen(4096)?;
        }
        Ok(socket)
    };
    match open() {
        Ok(socket) => Ok(Some(socket)),
        Err(error)
            if address.ip().is_unspecified()
                && address.is_ipv6()
                && matches!(
                    error.kind(),
                    io::ErrorKind::Unsupported | io::ErrorKind::AddrNotAvailable
                ) =>
        {
            Ok(None)
        }
        Err(error) => Err(error).with_context(|| format!("listen on {address}")),
    }
}

fn identity(path: &str, peer: &str) -> Identity {
    let from = |name| std::env::var(name).unwrap_or_else(|_| "?".to_owned());
    Identity {
        pod: from("POD_NAME"),
        node: from("NODE_NAME"),
        path: path.to_owned(),
        peer: peer.to_owned(),
    }
}

/// A response: status line without the version, and body.
type Answer = (&'static str, String);

/// Runs the server.
pub(crate) fn serve(options: &Serve) -> Result<()> {
    interrupt::take_over()?;
    if options.udp {
        for address in options.listen.addresses() {
            if let Some(socket) = bind(address, Type::DGRAM)? {
                std::thread::spawn(move || echo(&socket.into()));
            }
        }
    }
    run(&options.listen, |path, peer| ("200 OK", json!(identity(path, peer)).to_string()))
}

/// Runs the server that calls another.
pub(crate) fn front(options: Front) -> Result<()> {
    interrupt::take_over()?;
    let Front { listen, upstream, client } = options;
    run(&listen, move |path, peer| {
        let own = identity(path, peer);
        let call = || -> Result<serde_json::Value> {
            let address = client.resolve(&upstream.host, upstream.port)?;
            let mut connection = Connection::open(address, client.timeout())?;
            let response = connection.get(&upstream.host, &upstream.path, false)?;
            if response.status != 200 {
                bail!("status {}", response.status);
            }
            Ok(serde_json::from_str(&response.body)?)
        };
        // The front's own identity at the top, so that every client of this program can read it.
        let mut body = json!(own);
        let status = match call() {
            Ok(answer) => {
                body["upstream"] = answer;
                "200 OK"
            }
            Err(error) => {
                body["error"] = json!(format!("{error:#}"));
                "502 Bad Gateway"
            }
        };
        (status, body.to_string())
    })
}

fn echo(socket: &UdpSocket) {
    let mut buffer = [0; 2048];
    loop {
        // An ICMP error for an earlier answer shows up here; it says nothing about the next datagram.
        let Ok((_, peer)) = socket.recv_from(&mut buffer) else { continue };
        let body = json!(identity("", &peer.to_string())).to_string();
        let _ = socket.send_to(body.as_bytes(), peer);
    }
}

fn run(
    listen: &Listen,
    answer: impl Fn(&str, &str) -> Answer + Send + Sync + 'static,
) -> Result<()> {
    let answer = Arc::new(answer);
    let mut listeners = Vec::new();
    for address in listen.addresses() {
        if let Some(socket) = bind(address, Type::STREAM)? {
            socket.set_nonblocking(true)?;
            listeners.push(TcpListener::from(socket));
        }
    }
    if listeners.is_empty() {
        bail!("no address to listen on");
    }
    println!("listening on port {}", listen.port);
    let open = Arc::new(AtomicUsize::new(0));
    let accept_all = || {
        for listener in &listeners {
            while let Ok((stream, peer)) = listener.accept() {
                open.fetch_add(1, Ordering::SeqCst);
                let (open, answer) = (Arc::clone(&open), Arc::clone(&answer));
                std::thread::spawn(move || {
                    if let Err(error) = converse(stream, peer, &*answer) {
                        eprintln!("{peer}: {error:#}");
                    }
                    open.fetch_sub(1, Ordering::SeqCst);
                });
            }
        }
    };
    let wait = Timespec::try_from(LOOK).context("interval")?;
    let mut end = None;
    while end.is_none_or(|end| Instant::now() < end) {
        let mut fds: Vec<_> =
            listeners.iter().map(|listener| PollFd::new(listener, PollFlags::IN)).collect();
        match poll(&mut fds, Some(&wait)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).context("poll"),
        }
        accept_all();
        if end.is_none() && interrupt::interrupted() {
            println!("draining");
            end = Some(Instant::now() + seconds(listen.drain_delay));
        }
    }
    accept_all();
    drop(listeners);
    let end = Instant::now() + seconds(listen.grace);
    while open.load(Ordering::SeqCst) > 0 && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(5));
    }
    println!("drained, {} connections left", open.load(Ordering::SeqCst));
    Ok(())
}

fn converse(
    stream: TcpStream,
    peer: SocketAddr,
    answer: &dyn Fn(&str, &str) -> Answer,
) -> Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_nodelay(true)?;
    let mut writer = stream.try_clone()?;
    let mut reader = BufReader::new(stream);
    let peer = peer.to_string();
    loop {
        // Between requests a draining server closes; within one it finishes.
        reader.get_ref().set_read_timeout(Some(LOOK))?;
        loop {
            match io::BufRead::fill_buf(&mut reader) {
                Ok(_) => break,
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
                    ) =>
                {
                    if interrupt::interrupted() {
                        return Ok(());
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error).context("read"),
            }
        }
        reader.get_ref().set_read_timeout(Some(Duration::from_secs(10)))?;
        let Some(request) = http::read_request(&mut reader)? else { return Ok(()) };
        let close = request.close || interrupt::interrupted();
        let (status, body) = answer(&request.path, &peer);
        http::respond(&mut writer, status, &body, close)?;
        if close {
            return Ok(());
        }
    }
}
