//! What depends on who the client is: affinity, source ranges, ports that are not served, ports that
//! may not be bound. On real sockets, and on built packets. Needs root.

use std::{
    collections::BTreeSet,
    io,
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    path::PathBuf,
};

use anyhow::{Context, Result, ensure};
use aya::maps::{Array, HashMap, LpmTrie, Map, lpm_trie::Key};
use sluice_abi::{
    Addr, Affinity, AffinityKey, Be16, Counter, FrontendFlags, NodeAddrs, NodePortKey, SourceRange,
    SourceRangeKey, maps, proto,
};
use sluice_proxy::{
    dataplane::{Dataplane, SocketKind},
    wake::absent_here,
};
use sluice_tests::{
    PATIENCE,
    bind::bind,
    kernel::{Lab, addr, frontend_key, isolated},
    netns::NetNs,
    packet::{Packet, tcp},
    wait_for,
};
use socket2::{Domain, Protocol, Socket, Type};

const VIP: &str = "10.96.0.10:80";
const VIP6: &str = "[fd00:96::10]:80";

const EADDRINUSE: i32 = 98;
const ECONNREFUSED: i32 = 111;
const EHOSTUNREACH: i32 = 113;

/// Runs a test with the programs attached to the thread's cgroup. Its network namespace is the
/// node's; `NetNs::run` leads to one that is a pod's.
fn attached(label: &str, test: impl FnOnce(&mut Lab) -> Result<()> + Send) -> Result<()> {
    isolated(label, |_: &NetNs, cgroup: PathBuf| {
        let mut lab = Lab::with_cgroup(label, false, cgroup)?;
        lab.dataplane.attach_cgroup()?;
        test(&mut lab)
    })
}

/// So many listeners, on addresses of their own.
fn listeners(local: &str, count: usize) -> Result<Vec<(TcpListener, String)>> {
    (0..count)
        .map(|_| {
            let listener = TcpListener::bind(local)?;
            let address = listener.local_addr()?.to_string();
            Ok((listener, address))
        })
        .collect()
}

fn names(listeners: &[(TcpListener, String)]) -> Vec<&str> {
    listeners.iter().map(|(_, name)| name.as_str()).collect()
}

/// The backend that a connection to the service gets.
fn backend_of(lab: &Lab, vip: &str) -> Result<String> {
    let stream = TcpStream::connect(vip).with_context(|| format!("connect {vip}"))?;
    // By its cookie: a process that another test starts may hold the socket before this one for a
    // moment more.
    let cookie = rustix::net::sockopt::socket_cookie(&stream)?;
    let peers = lab.dataplane.view().sock_peers(SocketKind::Stream)?;
    let own = peers.iter().find(|(of, _)| *of == cookie);
    let (_, peer) = own.with_context(|| format!("{cookie} is not among {peers:?}"))?;
    Ok(SocketAddr::new(peer.backend_addr.to_ip(), peer.backend_port.get()).to_string())
}

/// The backends that so many connections get.
fn backends_of(lab: &Lab, vip: &str, connections: usize) -> Result<BTreeSet<String>> {
    (0..connections).map(|_| backend_of(lab, vip)).collect()
}

fn sticky(lab: &mut Lab, vip: &str, proto: u8, secs: u32) -> Result<()> {
    lab.adjust(vip, proto, |frontend| frontend.affinity_secs = secs)
}

/// Makes every client's last visit that long ago.
fn age_affinities(lab: &Lab, secs: u64) -> Result<()> {
    let mut map: HashMap<_, AffinityKey, Affinity> =
        HashMap::try_from(Map::LruHashMap(lab.map(maps::AFFINITY)?))?;
    let now = sluice_proxy::clock::monotonic_nanos();
    for (key, mut entry) in lab.dataplane.view().affinity()? {
        entry.last_used = now.saturating_sub(secs * 1_000_000_000);
        map.insert(key, entry, 0)?;
    }
    Ok(())
}

/// S8: a client keeps its backend for all its connections, in both families at once, while another
/// one is a client of its own; others come without a difference, and when the backend goes, the
/// client gets one that it keeps.
#[test]
fn client_keeps_its_backend_until_the_backend_goes() -> Result<()> {
    attached("affinity", |lab| {
        let v4 = listeners("127.0.0.1:0", 8)?;
        let v6 = listeners("[::1]:0", 8)?;
        for (vip, all) in [(VIP, &v4), (VIP6, &v6)] {
            let all = names(all);
            lab.service(vip, proto::TCP, &all[..7])?;
            sticky(lab, vip, proto::TCP, 10_800)?;
            let first = backends_of(lab, vip, 12)?;
            ensure!(first.len() == 1, "{vip}: {first:?}");
            // Joined by another.
            lab.service(vip, proto::TCP, &all)?;
            ensure!(backends_of(lab, vip, 12)? == first, "{vip}: {first:?}");
            // Its own goes, and comes back.
            let rest: Vec<&str> =
                all.iter().copied().filter(|name| !first.contains(*name)).collect();
            lab.service(vip, proto::TCP, &rest)?;
            let second = backends_of(lab, vip, 12)?;
            ensure!(second.len() == 1 && second != first, "{vip}: {first:?}, then {second:?}");
            lab.service(vip, proto::TCP, &all)?;
            ensure!(backends_of(lab, vip, 12)? == second, "{vip}: {second:?}");
        }
        // One client, two families.
        let both = |lab: &Lab| -> Result<_> { Ok((backend_of(lab, VIP)?, backend_of(lab, VIP6)?)) };
        let first = both(lab)?;
        for _ in 0..20 {
            ensure!(both(lab)? == first);
        }
        assert_eq!(lab.dataplane.view().affinity()?.len(), 2);

        // A pod has backends of its own choice: with eight, not all of eight pods choose the same.
        let mut chosen = BTreeSet::from([backend_of(lab, VIP)?]);
        for round in 0..8 {
            let pod = NetNs::new(&format!("affinity-{round}"))?;
            pod.ip("link set lo up")?;
            pod.run(|| -> Result<()> {
                // Nobody listens in the pod: what counts is where the connection went.
                let refused = TcpStream::connect(VIP).expect_err("nobody listens");
                ensure!(refused.kind() == io::ErrorKind::ConnectionRefused, "{refused}");
                Ok(())
            })??;
        }
        let entries = lab.dataplane.view().affinity()?;
        assert_eq!(entries.len(), 10, "{entries:?}");
        let tables = lab.dataplane.tables()?;
        chosen.extend(entries.iter().filter_map(|(_, entry)| {
            let backend = tables.backends.get(&entry.backend)?;
            Some(format!("{}:{}", backend.addr.to_ip(), backend.port.get()))
        }));
        assert!(chosen.len() > 1, "{chosen:?}");
        Ok(())
    })
}

/// S8: a client that stayed away for longer than the time-out is a new one; each connection before
/// that begins the time anew.
#[test]
fn client_that_stayed_away_chooses_anew() -> Result<()> {
    attached("affinity-age", |lab| {
        let all = listeners("127.0.0.1:0", 16)?;
        lab.service(VIP, proto::TCP, &names(&all))?;
        sticky(lab, VIP, proto::TCP, 60)?;
        let first = backend_of(lab, VIP)?;
        for _ in 0..20 {
            // Without the connection between, it would be too long.
            age_affinities(lab, 40)?;
            assert_eq!(backend_of(lab, VIP)?, first);
        }
        let mut seen = BTreeSet::from([first]);
        for _ in 0..30 {
            age_affinities(lab, 61)?;
            seen.insert(backend_of(lab, VIP)?);
        }
        // All the same once in 10^36 runs.
        assert!(seen.len() > 1, "{seen:?}");
        Ok(())
    })
}

/// S8: affinity is kept for datagrams too, across the sockets of a client.
#[test]
fn datagram_sockets_of_a_client_share_a_backend() -> Result<()> {
    attached("affinity-udp", |lab| {
        let servers: Vec<UdpSocket> =
            (0..8).map(|_| UdpSocket::bind("127.0.0.1:0")).collect::<io::Result<_>>()?;
        let addresses: Vec<String> = servers
            .iter()
            .map(|server| Ok(server.local_addr()?.to_string()))
            .collect::<Result<_>>()?;
        let addresses: Vec<&str> = addresses.iter().map(String::as_str).collect();
        lab.service(VIP, proto::UDP, &addresses)?;
        sticky(lab, VIP, proto::UDP, 10_800)?;
        for round in 0..30 {
            let client = UdpSocket::bind("127.0.0.1:0")?;
            if round % 2 == 0 {
                client.connect(VIP)?;
                client.send(b"ping")?;
            } else {
                client.send_to(b"ping", VIP)?;
            }
        }
        let mut met = [0; 8];
        for server in &servers {
            server.set_nonblocking(true)?;
        }
        // On a busy machine a datagram may wait for a kernel thread, also on the loopback.
        wait_for("all datagrams", PATIENCE, || {
            for (server, met) in servers.iter().zip(&mut met) {
                while server.recv_from(&mut [0; 8]).is_ok() {
                    *met += 1;
                }
            }
            (met.iter().sum::<i32>() >= 30).then_some(())
        })?;
        met.sort_unstable();
        assert_eq!(met, [0, 0, 0, 0, 0, 0, 0, 30]);
        Ok(())
    })
}

/// S8: the next agent finds what clients have; services without affinity leave nothing behind.
#[test]
fn affinity_outlives_the_agent() -> Result<()> {
    attached("affinity-agent", |lab| {
        let all = listeners("127.0.0.1:0", 8)?;
        lab.service(VIP, proto::TCP, &names(&all))?;
        backends_of(lab, VIP, 10)?;
        assert_eq!(lab.dataplane.view().affinity()?, vec![], "there is no affinity yet");
        sticky(lab, VIP, proto::TCP, 10_800)?;
        let first = backend_of(lab, VIP)?;
        let mut next = Dataplane::open(lab.config().clone())?;
        next.attach_cgroup()?;
        assert_eq!(next.view().affinity()?, lab.dataplane.view().affinity()?);
        assert_eq!(backends_of(lab, VIP, 20)?, BTreeSet::from([first]));
        Ok(())
    })
}

/// S8: packets that no socket hook saw have affinity by their source address.
#[test]
fn packets_of_a_client_go_to_its_backend() -> Result<()> {
    let mut lab = Lab::new("affinity-packets", false)?;
    let backends: Vec<String> = (1..=8).map(|n| format!("10.244.2.{n}:8080")).collect();
    let backends: Vec<&str> = backends.iter().map(String::as_str).collect();
    for proto in [proto::TCP, proto::UDP] {
        lab.service(VIP, proto, &backends)?;
        sticky(&mut lab, VIP, proto, 10_800)?;
    }
    let goes_to = |lab: &Lab, packet: &Packet, among: &[&str]| -> Result<String> {
        let (_, bytes) = lab.send(&packet.build())?;
        let found = among.iter().find(|name| packet.clone().to(name).build() == bytes);
        Ok((*found.context("a backend of the service")?).to_owned())
    };
    let mut chosen = BTreeSet::new();
    for client in 1..=12 {
        for udp in [false, true] {
            let request = |port: u16| {
                let from = format!("10.244.1.{client}:{port}");
                if udp { Packet::udp(&from, VIP) } else { Packet::tcp(&from, VIP, tcp::SYN) }
            };
            let first = goes_to(&lab, &request(40_000), &backends)?;
            for port in 40_001..40_010 {
                assert_eq!(goes_to(&lab, &request(port), &backends)?, first);
            }
            chosen.insert(first);
        }
    }
    assert!(chosen.len() > 1, "{chosen:?}");

    // The backend goes.
    let request = |port: u16| Packet::tcp(&format!("10.244.1.1:{port}"), VIP, tcp::SYN);
    let first = goes_to(&lab, &request(50_000), &backends)?;
    let rest: Vec<&str> = backends.iter().copied().filter(|name| **name != *first).collect();
    lab.service(VIP, proto::TCP, &rest)?;
    let second = goes_to(&lab, &request(50_001), &rest)?;
    for port in 50_002..50_020 {
        assert_eq!(goes_to(&lab, &request(port), &rest)?, second);
    }
    Ok(())
}

fn errno<T>(result: io::Result<T>) -> Option<i32> {
    result.err().and_then(|error| error.raw_os_error())
}

/// S17, S35: a port that a ClusterIP does not have is refused with the kernel's own error, at once,
/// over TCP and UDP, in both families; the ports that it has are served.
#[test]
fn port_that_a_cluster_ip_does_not_have_is_refused() -> Result<()> {
    attached("any-port", |lab| {
        for (vip, local) in [(VIP, "127.0.0.1:0"), (VIP6, "[::1]:0")] {
            let all = listeners(local, 1)?;
            lab.service(vip, proto::TCP, &names(&all))?;
            let mut other: SocketAddr = vip.parse()?;
            other.set_port(81);
            lab.cluster_ip(&other.ip().to_string())?;
            let any = if vip.starts_with('[') { "[::]:0" } else { "0.0.0.0:0" };
            let refused = [
                errno(TcpStream::connect(other)),
                errno(UdpSocket::bind(any)?.connect(other)),
                errno(UdpSocket::bind(any)?.send_to(b"x", other)),
                // The protocol is part of what is served.
                errno(UdpSocket::bind(any)?.connect(vip)),
                errno(UdpSocket::bind(any)?.send_to(b"x", vip)),
            ];
            assert_eq!(refused, [Some(ECONNREFUSED); 5], "{vip}");
            // Resolvers connect to port 0 to learn which source address the kernel would take.
            other.set_port(0);
            let route = errno(UdpSocket::bind(any)?.connect(other));
            assert_ne!(route, Some(ECONNREFUSED), "{vip}");
            TcpStream::connect(vip)?;
        }
        assert_eq!(lab.count(Counter::SockRejected), 10);
        Ok(())
    })
}

/// Admits a range to a service port, as the agent would.
fn admit(lab: &mut Lab, vip: &str, proto: u8, ranges: &[(&str, u8)]) -> Result<()> {
    let service =
        lab.tables().frontends.get(&frontend_key(vip, proto)).context("is there")?.service;
    let mut map: LpmTrie<_, SourceRange, u32> =
        LpmTrie::try_from(Map::LpmTrie(lab.map(maps::SOURCE_RANGES)?))?;
    for (address, len) in ranges {
        let key = SourceRangeKey::new(service, addr(address), *len);
        let data = SourceRange { service: key.service, addr: key.addr };
        map.insert(&Key::new(key.prefix_len, data), 1, 0)?;
    }
    lab.adjust(vip, proto, |frontend| {
        frontend.flags = FrontendFlags::LOAD_BALANCER | FrontendFlags::SOURCE_RANGES;
    })
}

fn node_addrs(lab: &Lab, v4: &str, v6: &str) -> Result<()> {
    let mut map: Array<_, NodeAddrs> = Array::try_from(Map::Array(lab.map(maps::NODE_ADDRS)?))?;
    map.set(0, NodeAddrs { v4: addr(v4), v6: addr(v6), ..NodeAddrs::default() }, 0)?;
    Ok(())
}

/// S7, S35: a process of the node reaches a service with source ranges if the node's address is in
/// one of them, and else fails with the kernel's own error.
#[test]
fn source_ranges_are_kept_at_the_nodes_own_sockets() -> Result<()> {
    attached("ranges", |lab| {
        node_addrs(lab, "172.31.0.11", "fd00:172:31::11")?;
        let cases = [
            (VIP, "127.0.0.1:0", ("172.31.0.0", 24), "172.31.0.11"),
            (VIP6, "[::1]:0", ("fd00:172:31::", 64), "fd00:172:31::11"),
        ];
        for (vip, local, range, own) in cases {
            let all = listeners(local, 1)?;
            let server = UdpSocket::bind(local)?;
            let any = if vip.starts_with('[') { "[::]:0" } else { "0.0.0.0:0" };
            lab.service(vip, proto::TCP, &names(&all))?;
            lab.service(vip, proto::UDP, &[&server.local_addr()?.to_string()])?;
            let far = if vip.starts_with('[') { ("2001:db8::", 32) } else { ("198.51.100.0", 24) };
            for proto in [proto::TCP, proto::UDP] {
                admit(lab, vip, proto, &[far])?;
            }
            let tries = || -> Result<[Option<i32>; 3]> {
                Ok([
                    errno(TcpStream::connect(vip)),
                    errno(UdpSocket::bind(any)?.connect(vip)),
                    errno(UdpSocket::bind(any)?.send_to(b"x", vip)),
                ])
            };
            assert_eq!(tries()?, [Some(EHOSTUNREACH); 3], "{vip}");
            for proto in [proto::TCP, proto::UDP] {
                admit(lab, vip, proto, &[range])?;
            }
            assert_eq!(tries()?, [None; 3], "{vip}, which admits {own}");
        }
        assert_eq!(lab.count(Counter::DropSourceRange), 6);
        Ok(())
    })
}

/// S7: what a pod sends to such a service is left to its packets, whose source address says whether
/// it may come: the socket is not connected to a backend.
#[test]
fn source_ranges_leave_pods_to_their_packets() -> Result<()> {
    attached("ranges-pod", |lab| {
        let all = listeners("127.0.0.1:0", 1)?;
        lab.service(VIP, proto::TCP, &names(&all))?;
        lab.service(VIP, proto::UDP, &names(&all))?;
        for proto in [proto::TCP, proto::UDP] {
            admit(lab, VIP, proto, &[("0.0.0.0", 0)])?;
        }
        let pod = NetNs::new("ranges-pod")?;
        pod.ip("link add out type veth peer name far\nlink set far up\nlink set out up\n\
             addr add 10.244.1.5/32 dev out\nroute add default dev out")?;
        pod.run(|| -> Result<()> {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            socket.connect(VIP)?;
            socket.send(b"ping")?;
            UdpSocket::bind("0.0.0.0:0")?.send_to(b"ping", VIP)?;
            ensure!(lab.dataplane.view().sock_peers(SocketKind::Datagram)?.is_empty());
            Ok(())
        })??;
        assert_eq!(lab.count(Counter::SockConnect), 0);
        assert_eq!(lab.count(Counter::SockSendmsg), 0);
        Ok(())
    })
}

fn node_port(lab: &Lab, port: u16, proto: u8) -> Result<()> {
    let mut map: HashMap<_, NodePortKey, u32> =
        HashMap::try_from(Map::HashMap(lab.map(maps::NODE_PORTS)?))?;
    map.insert(NodePortKey { port: Be16::new(port), proto, reserved: 0 }, 7, 0)?;
    Ok(())
}

/// S19, S35: a process of the node cannot bind a NodePort, in either family, and is told that the
/// port is in use; other ports and the other protocol are free, and so are pods.
#[test]
fn node_port_cannot_be_bound_on_the_node() -> Result<()> {
    attached("bind", |lab| {
        node_port(lab, 30_080, proto::TCP)?;
        node_port(lab, 30_053, proto::UDP)?;
        for any in ["0.0.0.0", "127.0.0.1", "[::]", "[::1]"] {
            let tcp = |port: u16| errno(TcpListener::bind(format!("{any}:{port}")));
            let udp = |port: u16| errno(UdpSocket::bind(format!("{any}:{port}")));
            assert_eq!(tcp(30_080), Some(EADDRINUSE), "{any}");
            assert_eq!(udp(30_053), Some(EADDRINUSE), "{any}");
            for at in [format!("{any}:30080"), format!("{any}:0")] {
                bind(|| UdpSocket::bind(&at))?;
            }
            for at in [format!("{any}:30053"), format!("{any}:0")] {
                bind(|| TcpListener::bind(&at))?;
            }
        }
        assert_eq!(lab.count(Counter::BindRefused), 8);
        let pod = NetNs::new("bind-pod")?;
        pod.run(|| -> Result<()> {
            TcpListener::bind("0.0.0.0:30080")?;
            UdpSocket::bind("[::]:30053")?;
            Ok(())
        })??;
        assert_eq!(lab.count(Counter::BindRefused), 8);
        Ok(())
    })
}

/// S35: tables that are not whole (a list that is missing) refuse with the kernel's own error, too.
#[test]
fn broken_tables_refuse_with_the_kernels_own_error() -> Result<()> {
    attached("broken", |lab| {
        for proto in [proto::TCP, proto::UDP] {
            lab.service(VIP, proto, &["127.0.0.1:1"])?;
            lab.adjust(VIP, proto, |frontend| frontend.list += 1_000)?;
        }
        let refused = [
            errno(TcpStream::connect(VIP)),
            errno(UdpSocket::bind("0.0.0.0:0")?.connect(VIP)),
            errno(UdpSocket::bind("0.0.0.0:0")?.send_to(b"x", VIP)),
        ];
        assert_eq!(refused, [Some(ECONNREFUSED); 3]);
        assert_eq!(lab.count(Counter::BackendMissing), 3);
        Ok(())
    })
}

/// S36: a socket that the kernel itself makes and connects (here the subflow of an MPTCP connection)
/// reaches a backend like any other. The kernel closes it without a word, so what was noted of it is
/// found by asking which sockets are gone.
#[test]
fn sockets_of_the_kernel_reach_services() -> Result<()> {
    const IPPROTO_MPTCP: i32 = 262;
    attached("kernel-sockets", |lab| {
        for (vip, local, domain) in
            [(VIP, "127.0.0.1:0", Domain::IPV4), (VIP6, "[::1]:0", Domain::IPV6)]
        {
            let all = listeners(local, 1)?;
            lab.service(vip, proto::TCP, &names(&all))?;
            for _ in 0..20 {
                let socket = Socket::new(domain, Type::STREAM, Some(Protocol::from(IPPROTO_MPTCP)))
                    .context("CONFIG_MPTCP")?;
                socket.connect(&vip.parse::<SocketAddr>()?.into())?;
                let (mut served, _) = all[0].0.accept()?;
                io::Write::write_all(&mut TcpStream::from(socket), b"hello")?;
                let mut got = [0; 5];
                io::Read::read_exact(&mut served, &mut got)?;
                assert_eq!(&got, b"hello");
            }
            lab.service(vip, proto::TCP, &[])?;
            let socket = Socket::new(domain, Type::STREAM, Some(Protocol::from(IPPROTO_MPTCP)))?;
            assert_eq!(
                errno(socket.connect(&vip.parse::<SocketAddr>()?.into())),
                Some(ECONNREFUSED)
            );
        }
        assert_eq!(lab.count(Counter::SockConnect), 40);
        let open = TcpListener::bind("127.0.0.1:0")?;
        lab.service(VIP, proto::TCP, &[&open.local_addr()?.to_string()])?;
        let alive = TcpStream::connect(VIP)?;
        let noted: Vec<u64> = lab
            .dataplane
            .view()
            .sock_peers(SocketKind::Stream)?
            .into_iter()
            .map(|(cookie, _)| cookie)
            .collect();
        assert_eq!(noted.len(), 41, "should the kernel tell one day, this is not needed any more");
        let gone = wait_for("the kernel to close", PATIENCE, || {
            let gone = absent_here(SocketKind::Stream, &noted).ok()?;
            (gone.len() == 40).then_some(gone)
        })?;
        lab.dataplane.forget_socks(SocketKind::Stream, &gone)?;
        assert_eq!(alive.peer_addr()?, VIP.parse()?);
        assert_eq!(lab.dataplane.view().sock_peers(SocketKind::Stream)?.len(), 1);
        Ok(())
    })
}

/// The namespaces of the tests are none but the kernel's: their cookies tell them apart.
#[test]
fn affinity_tells_namespaces_and_addresses_apart() {
    let namespace = AffinityKey::of_namespace(u64::from(u32::MAX) + 7, 3);
    assert_eq!(namespace.client, Addr([6, 1, 0, 0]));
    assert_eq!(namespace.flags, AffinityKey::COOKIE);
}
