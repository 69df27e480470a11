//! The cgroup programs on real sockets: each test in a cgroup and a network namespace of its own,
//! with backends on the loopback. Needs root.

use std::{
    collections::BTreeMap,
    io::{self, ErrorKind, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    path::PathBuf,
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use sluice_abi::{ABI_VERSION, Counter, maps, programs, proto};
use sluice_proxy::dataplane::SocketKind;
use sluice_tests::{
    PATIENCE,
    kernel::{Lab, isolated},
    netns::NetNs,
    wait::wait_ok,
    wait_for,
};
use socket2::{Domain, Protocol, Socket, Type};

const VIP: &str = "10.96.0.10:80";
const VIP6: &str = "[fd00:96::10]:80";

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
}

/// Runs a test with the programs attached to the thread's cgroup.
fn attached(label: &str, test: impl FnOnce(&mut Lab) -> Result<()> + Send) -> Result<()> {
    isolated(label, |_: &NetNs, cgroup: PathBuf| {
        let mut lab = Lab::with_cgroup(label, false, cgroup)?;
        lab.dataplane.attach_cgroup()?;
        test(&mut lab)
    })
}

fn listen(address: &str) -> Result<(TcpListener, String)> {
    let listener = TcpListener::bind(address)?;
    let address = listener.local_addr()?.to_string();
    Ok((listener, address))
}

fn udp_server(address: &str) -> Result<(UdpSocket, String)> {
    let socket = UdpSocket::bind(address)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    let address = socket.local_addr()?.to_string();
    Ok((socket, address))
}

fn udp_client(address: &str) -> Result<UdpSocket> {
    Ok(udp_server(address)?.0)
}

/// S1, S23: a TCP connection to a service reaches its backend, and the program is told that it is
/// connected to the service.
#[test]
fn tcp_connection_reaches_a_backend_and_names_the_service() -> Result<()> {
    attached("tcp", |lab| {
        for (vip, local) in [(VIP, "127.0.0.1:0"), (VIP6, "[::1]:0")] {
            let (listener, backend) = listen(local)?;
            lab.service(vip, proto::TCP, &[&backend])?;
            let mut client = TcpStream::connect(vip)?;
            let (mut server, from) = listener.accept()?;
            assert_eq!(client.peer_addr()?, address(vip));
            assert_eq!(server.peer_addr()?, from, "the server sees the client");
            assert_eq!(client.local_addr()?, from);
            client.write_all(b"hello")?;
            let mut got = [0; 5];
            server.read_exact(&mut got)?;
            assert_eq!(&got, b"hello");
        }
        assert_eq!(lab.count(Counter::SockConnect), 2);
        Ok(())
    })
}

/// What is remembered of a socket goes when it is closed; one that is connected elsewhere is
/// forgotten too.
#[test]
fn sockets_are_forgotten_when_they_are_closed() -> Result<()> {
    attached("forgotten", |lab| {
        let (_listener, backend) = listen("127.0.0.1:0")?;
        let (_server, udp_backend) = udp_server("127.0.0.1:0")?;
        lab.service(VIP, proto::TCP, &[&backend])?;
        lab.service(VIP, proto::UDP, &[&udp_backend])?;
        let streams: Vec<_> =
            (0..10).map(|_| TcpStream::connect(VIP)).collect::<io::Result<_>>()?;
        let datagrams = udp_client("127.0.0.1:0")?;
        datagrams.connect(VIP)?;
        let remembered = |kind| lab.dataplane.view().sock_peers(kind);
        // A process that another test starts may hold what is closed here for a moment more.
        let forgotten = |kind| {
            wait_ok("closed sockets to be forgotten", PATIENCE, || {
                let left = remembered(kind)?;
                ensure!(left.is_empty(), "{left:?}");
                Ok(())
            })
        };
        assert_eq!(remembered(SocketKind::Stream)?.len(), 10);
        assert_eq!(remembered(SocketKind::Datagram)?.len(), 1);
        datagrams.connect(&*udp_backend)?;
        assert_eq!(remembered(SocketKind::Datagram)?, vec![]);
        assert_eq!(remembered(SocketKind::Stream)?.len(), 10);
        drop(streams);
        forgotten(SocketKind::Stream)?;
        datagrams.connect(VIP)?;
        assert_eq!(remembered(SocketKind::Datagram)?.len(), 1);
        drop(datagrams);
        forgotten(SocketKind::Datagram)?;
        assert_eq!(lab.count(Counter::SockPeerLost), 0);
        Ok(())
    })
}

/// S33: with no room to remember more sockets, connections work all the same, and it is counted.
#[test]
fn connections_work_when_no_more_peers_can_be_remembered() -> Result<()> {
    isolated("peers-full", |_: &NetNs, cgroup: PathBuf| {
        let mut lab = Lab::with_cgroup("peers-full", false, cgroup)?;
        lab.dataplane.attach_cgroup()?;
        let (server, backend) = udp_server("127.0.0.1:0")?;
        lab.service(VIP, proto::UDP, &[&backend])?;
        let most = lab.dataplane.view().size(maps::UDP_SOCKS).context("its size is known")?;
        let mut sockets = Vec::new();
        nix::sys::resource::setrlimit(
            nix::sys::resource::Resource::RLIMIT_NOFILE,
            u64::from(most) * 2,
            u64::from(most) * 2,
        )?;
        while lab.count(Counter::SockPeerLost) == 0 {
            let client = udp_client("127.0.0.1:0")?;
            client.connect(VIP)?;
            sockets.push(client);
        }
        assert_eq!(u32::try_from(sockets.len())?, most + 1);
        let last = sockets.last().context("there are sockets")?;
        last.send(b"ping")?;
        let mut buffer = [0; 16];
        let (_, from) = server.recv_from(&mut buffer)?;
        server.send_to(b"pong", from)?;
        assert_eq!(last.recv_from(&mut buffer)?.1, address(&backend));
        assert_eq!(sockets[0].peer_addr()?, address(VIP));
        Ok(())
    })
}

/// S1: an AF_INET6 socket that names the service by its IPv4-mapped address.
#[test]
fn ipv4_mapped_address_reaches_the_ipv4_service() -> Result<()> {
    attached("mapped", |lab| {
        let mapped = address("[::ffff:10.96.0.10]:80");
        let (listener, backend) = listen("127.0.0.1:0")?;
        lab.service(VIP, proto::TCP, &[&backend])?;
        let client = TcpStream::connect(mapped)?;
        listener.accept()?;
        assert_eq!(client.peer_addr()?, mapped);

        let (server, backend) = udp_server("127.0.0.1:0")?;
        lab.service(VIP, proto::UDP, &[&backend])?;
        let client = udp_client("[::]:0")?;
        client.send_to(b"ping", mapped)?;
        let mut buffer = [0; 16];
        let (_, from) = server.recv_from(&mut buffer)?;
        server.send_to(b"pong", from)?;
        let (len, from) = client.recv_from(&mut buffer)?;
        assert_eq!(&buffer[..len], b"pong");
        assert_eq!(from, mapped);

        client.connect(mapped)?;
        assert_eq!(client.peer_addr()?, mapped);
        client.send(b"ping")?;
        let (_, from) = server.recv_from(&mut buffer)?;
        server.send_to(b"pong", from)?;
        assert_eq!(client.recv_from(&mut buffer)?.1, mapped);
        Ok(())
    })
}

/// S1, S23: a connected datagram socket sees the service as its peer and as the sender.
#[test]
fn connected_datagram_socket_sees_the_service() -> Result<()> {
    attached("udp-connected", |lab| {
        for (vip, local) in [(VIP, "127.0.0.1:0"), (VIP6, "[::1]:0")] {
            let (server, backend) = udp_server(local)?;
            lab.service(vip, proto::UDP, &[&backend])?;
            let client = udp_client(local)?;
            client.connect(vip)?;
            assert_eq!(client.peer_addr()?, address(vip));
            client.send(b"ping")?;
            let mut buffer = [0; 16];
            let (_, from) = server.recv_from(&mut buffer)?;
            assert_eq!(from, client.local_addr()?);
            server.send_to(b"pong", from)?;
            let (len, from) = client.recv_from(&mut buffer)?;
            assert_eq!(&buffer[..len], b"pong");
            assert_eq!(from, address(vip));
        }
        Ok(())
    })
}

/// S23: a datagram socket that is connected elsewhere names its new peer, whether that is another
/// service, a backend, or something else.
#[test]
fn datagram_socket_connected_anew_names_its_new_peer() -> Result<()> {
    attached("udp-anew", |lab| {
        const OTHER_VIP: &str = "10.96.0.11:53";
        let (server, backend) = udp_server("127.0.0.1:0")?;
        let (_other, other) = udp_server("127.0.0.2:0")?;
        lab.service(VIP, proto::UDP, &[&backend])?;
        lab.service(OTHER_VIP, proto::UDP, &[&backend])?;
        let client = udp_client("127.0.0.1:0")?;
        for peer in [VIP, OTHER_VIP, VIP, &backend, VIP, &other, "10.96.0.10:81"] {
            // Without an address of its own, the namespace has no route to what is no service.
            if let Err(error) = client.connect(peer) {
                assert_eq!(peer, "10.96.0.10:81");
                assert_eq!(error.kind(), ErrorKind::NetworkUnreachable);
                continue;
            }
            assert_eq!(client.peer_addr()?, address(peer));
        }
        client.connect(&*backend)?;
        client.send(b"ping")?;
        let mut buffer = [0; 16];
        let (_, from) = server.recv_from(&mut buffer)?;
        server.send_to(b"pong", from)?;
        assert_eq!(client.recv_from(&mut buffer)?.1, address(&backend));
        Ok(())
    })
}

/// S1, S23: a datagram socket that is not connected sees the service as the sender, for several
/// services at once, and stays with one backend of each.
#[test]
fn unconnected_datagram_socket_talks_to_several_services() -> Result<()> {
    attached("udp-several", |lab| {
        const OTHER_VIP: &str = "10.96.0.11:53";
        let servers: Vec<_> =
            (1..=6).map(|n| udp_server(&format!("127.0.0.{n}:0"))).collect::<Result<_>>()?;
        let backends: Vec<&str> = servers.iter().map(|(_, address)| address.as_str()).collect();
        lab.service(VIP, proto::UDP, &backends[..3])?;
        lab.service(OTHER_VIP, proto::UDP, &backends[3..])?;
        for (server, _) in &servers {
            server.set_nonblocking(true)?;
        }
        let client = udp_client("127.0.0.1:0")?;
        let mut seen: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
        for round in 0..40 {
            let vip = [VIP, OTHER_VIP][round % 2];
            client.send_to(b"ping", vip)?;
            let mut buffer = [0; 16];
            // On a busy machine a datagram may wait for a kernel thread, also on the loopback.
            let (server, from) = wait_for("a server to have the datagram", PATIENCE, || {
                let mut servers = servers.iter().enumerate();
                servers
                    .find_map(|(n, (server, _))| Some((n, server.recv_from(&mut buffer).ok()?.1)))
            })?;
            servers[server].0.send_to(b"pong", from)?;
            assert_eq!(client.recv_from(&mut buffer)?.1, address(vip));
            seen.entry(vip).or_default().push(server);
        }
        for (vip, servers) in seen {
            let first = servers[0];
            assert!(servers.iter().all(|server| *server == first), "{vip}: {servers:?}");
            assert_eq!(first < 3, vip == VIP);
        }
        Ok(())
    })
}

/// S22: an unconnected datagram socket moves with its next datagram when its backend goes, and
/// stays while its backend stays.
#[test]
fn unconnected_datagram_socket_moves_when_its_backend_goes() -> Result<()> {
    attached("udp-moves", |lab| {
        let (one, one_address) = udp_server("127.0.0.1:0")?;
        let (two, two_address) = udp_server("127.0.0.2:0")?;
        let client = udp_client("127.0.0.1:0")?;
        let mut buffer = [0; 16];
        lab.service(VIP, proto::UDP, &[&one_address])?;
        client.send_to(b"1", VIP)?;
        one.recv_from(&mut buffer)?;
        // Joined by others: the conversation stays.
        lab.service(VIP, proto::UDP, &[&two_address, &one_address])?;
        for _ in 0..20 {
            client.send_to(b"2", VIP)?;
            one.recv_from(&mut buffer)?;
        }
        // Gone: it moves, and the answer is the service's.
        lab.service(VIP, proto::UDP, &[&two_address])?;
        client.send_to(b"3", VIP)?;
        let (_, from) = two.recv_from(&mut buffer)?;
        two.send_to(b"4", from)?;
        assert_eq!(client.recv_from(&mut buffer)?.1, address(VIP));
        // The last one gone.
        lab.service(VIP, proto::UDP, &[])?;
        let error = client.send_to(b"5", VIP).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
        // And one is back.
        lab.service(VIP, proto::UDP, &[&one_address])?;
        client.send_to(b"6", VIP)?;
        one.recv_from(&mut buffer)?;
        assert_eq!(lab.count(Counter::SockSendmsg), 23);
        Ok(())
    })
}

/// S16, S35: a service without backends refuses with the kernel's own error, at once.
#[test]
fn service_without_backends_refuses_connections() -> Result<()> {
    attached("refused", |lab| {
        for vip in [VIP, VIP6, "[::ffff:10.96.0.10]:80"] {
            if !vip.contains("ffff") {
                lab.service(vip, proto::TCP, &[])?;
                lab.service(vip, proto::UDP, &[])?;
            }
            let any = if vip.starts_with('[') { "[::]:0" } else { "0.0.0.0:0" };
            let errors = [
                TcpStream::connect(vip).map(drop),
                udp_client(any)?.connect(vip),
                udp_client(any)?.send_to(b"x", vip).map(drop),
            ];
            for result in errors {
                let error = result.expect_err("there is no backend");
                assert_eq!(error.raw_os_error(), Some(111), "{vip}: {error}");
            }
        }
        assert_eq!(lab.count(Counter::SockRejected), 9);
        // Backends come: the same service accepts.
        let (_listener, backend) = listen("127.0.0.1:0")?;
        lab.service(VIP, proto::TCP, &[&backend])?;
        TcpStream::connect(VIP)?;
        Ok(())
    })
}

/// A socket that was refused may be used again, and names the peer it gets.
#[test]
fn refused_socket_may_connect_elsewhere() -> Result<()> {
    attached("retry", |lab| {
        // It has the port and does not listen.
        let deaf = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
        deaf.bind(&address("127.0.0.1:0").into())?;
        let dead = deaf.local_addr()?.as_socket().context("an address")?.to_string();
        let (_listener, alive) = listen("127.0.0.1:0")?;
        lab.service(VIP, proto::TCP, &[&dead])?;
        let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
        let error = socket.connect(&address(VIP).into()).expect_err("nobody listens");
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
        socket.connect(&address(&alive).into())?;
        assert_eq!(socket.peer_addr()?.as_socket(), Some(address(&alive)));
        Ok(())
    })
}

/// What is no service is none of our business: other addresses, other ports, the other protocol.
#[test]
fn other_connections_are_untouched() -> Result<()> {
    attached("others", |lab| {
        let (listener, local) = listen("127.0.0.1:0")?;
        // A service on the listener's address, at another port and at its port for UDP.
        lab.service("127.0.0.1:1", proto::TCP, &["127.0.0.1:2"])?;
        lab.service(&local, proto::UDP, &["127.0.0.1:2"])?;
        let client = TcpStream::connect(&local)?;
        listener.accept()?;
        assert_eq!(client.peer_addr()?, address(&local));
        assert_eq!(lab.count(Counter::SockConnect), 0);
        Ok(())
    })
}

/// The next connection of the client, from whichever listener has it.
fn accepted(listeners: &[(TcpListener, String)]) -> Result<usize> {
    loop {
        for (n, (listener, _)) in listeners.iter().enumerate() {
            match listener.accept() {
                Ok(_) => return Ok(n),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// S1: connections spread evenly over the backends: chi-square over 10,000 of them.
#[test]
fn connections_spread_evenly() -> Result<()> {
    const CONNECTIONS: u32 = 10_000;
    // More than one chunk of the list, and not a power of two.
    const BACKENDS: u32 = 21;
    attached("spread", |lab| {
        let listeners: Vec<_> =
            (1..=BACKENDS).map(|n| listen(&format!("127.0.1.{n}:0"))).collect::<Result<_>>()?;
        for (listener, _) in &listeners {
            listener.set_nonblocking(true)?;
        }
        let backends: Vec<&str> = listeners.iter().map(|(_, address)| address.as_str()).collect();
        lab.service(VIP, proto::TCP, &backends)?;
        let mut counts = vec![0_u32; BACKENDS as usize];
        for _ in 0..CONNECTIONS {
            let client = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
            // Closed by a reset: no port is kept in TIME_WAIT.
            client.set_linger(Some(Duration::ZERO))?;
            client.connect(&address(VIP).into())?;
            counts[accepted(&listeners)?] += 1;
        }
        let expected = f64::from(CONNECTIONS) / f64::from(BACKENDS);
        let chi_square: f64 =
            counts.iter().map(|count| (f64::from(*count) - expected).powi(2) / expected).sum();
        // 20 degrees of freedom: an even choice exceeds this once in ten million runs.
        ensure!(chi_square < 69.0, "chi-square {chi_square:.1} for {counts:?}");
        Ok(())
    })
}

/// Accepts and tells every client who it is, until told to stop.
fn serve(listener: &TcpListener, name: u8, stop: &AtomicBool) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    while !stop.load(Ordering::Relaxed) {
        match listener.accept() {
            // A client that is gone already is no error of ours.
            Ok((mut client, _)) => drop(client.write_all(&[name])),
            Err(error) if error.kind() == ErrorKind::WouldBlock => std::thread::yield_now(),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// S30: while lists are switched under way, no connection fails and none reaches a backend of
/// another service.
#[test]
fn switching_lists_fails_and_crosses_no_connection() -> Result<()> {
    const OTHER_VIP: &str = "10.96.0.11:80";
    const SWITCHES: u32 = 1_000;
    attached("switching", |lab| {
        let listeners: Vec<_> =
            (1..=4).map(|n| listen(&format!("127.0.1.{n}:0"))).collect::<Result<_>>()?;
        let backends: Vec<&str> = listeners.iter().map(|(_, address)| address.as_str()).collect();
        let (one, other) = backends.split_at(2);
        lab.service(VIP, proto::TCP, one)?;
        lab.service(OTHER_VIP, proto::TCP, other)?;
        let stop = AtomicBool::new(false);
        // The servers stop after the clients, who may still wait for them.
        let done = AtomicBool::new(false);
        let connected = AtomicU32::new(0);
        let client = |vip: &str, allowed: [u8; 2]| -> Result<()> {
            while !stop.load(Ordering::Relaxed) {
                let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
                socket.connect(&address(vip).into()).with_context(|| format!("connect {vip}"))?;
                let mut stream = TcpStream::from(socket);
                stream.set_read_timeout(Some(PATIENCE))?;
                let mut name = [0];
                stream.read_exact(&mut name)?;
                socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
                ensure!(allowed.contains(&name[0]), "{vip} reached backend {}", name[0]);
                connected.fetch_add(1, Ordering::Relaxed);
            }
            Ok(())
        };
        std::thread::scope(|scope| -> Result<()> {
            for (name, (listener, _)) in (0_u8..).zip(&listeners) {
                let done = &done;
                scope.spawn(move || serve(listener, name, done));
            }
            let client = &client;
            let clients = [
                scope.spawn(move || client(VIP, [0, 1])),
                scope.spawn(move || client(OTHER_VIP, [2, 3])),
            ];
            let mut switched = Ok(());
            for round in 0..SWITCHES {
                let choose = |all: &[&str]| match round % 3 {
                    0 => all[..1].iter().map(ToString::to_string).collect::<Vec<_>>(),
                    1 => all[1..].iter().map(ToString::to_string).collect(),
                    _ => all.iter().map(ToString::to_string).collect(),
                };
                let (vip, backends) =
                    if round % 2 == 0 { (VIP, choose(one)) } else { (OTHER_VIP, choose(other)) };
                let backends: Vec<&str> = backends.iter().map(String::as_str).collect();
                switched = lab.service(vip, proto::TCP, &backends);
                if switched.is_err()
                    || clients.iter().any(std::thread::ScopedJoinHandle::is_finished)
                {
                    break;
                }
                std::thread::yield_now();
            }
            // The clients have had their share before it ends.
            while connected.load(Ordering::Relaxed) < 500
                && !clients.iter().any(std::thread::ScopedJoinHandle::is_finished)
            {
                std::thread::yield_now();
            }
            stop.store(true, Ordering::Relaxed);
            let results = clients.map(|client| {
                client.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            });
            done.store(true, Ordering::Relaxed);
            results.into_iter().collect::<Result<()>>()?;
            switched
        })?;
        assert_eq!(lab.count(Counter::BackendMissing), 0);
        Ok(())
    })
}

/// S32: the programs go on without the agent; the next one finds the maps as they were, replaces
/// the programs in place, and no connection fails meanwhile.
#[test]
fn programs_outlive_the_agent_and_are_replaced_in_place() -> Result<()> {
    use sluice_proxy::dataplane::{Dataplane, Pinned};
    attached("restart", |lab| {
        let (listener, backend) = listen("127.0.0.1:0")?;
        lab.service(VIP, proto::TCP, &[&backend])?;
        let links = || -> Result<Vec<String>> {
            let mut names: Vec<_> =
                std::fs::read_dir(lab.root().join(format!("v{ABI_VERSION}/links")))?
                    .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
                    .collect::<Result<_>>()?;
            names.sort();
            Ok(names)
        };
        let before = links()?;
        assert_eq!(before.len(), programs::CGROUP.len(), "{before:?}");
        let stop = AtomicBool::new(false);
        let count = AtomicU32::new(0);
        std::thread::scope(|scope| -> Result<()> {
            let client = scope.spawn(|| -> Result<()> {
                while !stop.load(Ordering::Relaxed) {
                    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
                    socket.set_linger(Some(Duration::ZERO))?;
                    socket.connect(&address(VIP).into())?;
                    listener.accept()?;
                    count.fetch_add(1, Ordering::Relaxed);
                }
                Ok(())
            });
            let asks = wait_for("the client to be served", PATIENCE, || {
                (client.is_finished() || count.load(Ordering::Relaxed) > 0).then_some(())
            });
            let mut reopened = asks;
            for _ in 0..3 {
                if reopened.is_err() {
                    break;
                }
                reopened = (|| {
                    let mut dataplane = Dataplane::open(lab.config().clone())?;
                    ensure!(dataplane.notices().is_empty());
                    ensure!(dataplane.tables()? == *lab.tables());
                    dataplane.attach_cgroup()?;
                    Ok(())
                })();
            }
            stop.store(true, Ordering::Relaxed);
            client.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            reopened
        })?;
        assert_eq!(links()?, before);
        let view = Pinned::open(lab.root())?;
        assert_eq!(view.tables()?, *lab.tables());
        // Nobody holds the programs now but the pins.
        TcpStream::connect(VIP)?;
        listener.accept()?;
        Ok(())
    })
}
