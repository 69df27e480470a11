//! Traffic between network namespaces, and what a node's stack has to do with it.

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::atomic::{AtomicU16, Ordering},
};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::{TimeVal, TimeValLike as _};

use crate::PATIENCE;
use crate::{bind::bind, netns::NetNs, wait::wait_ok};

/// The hardware address as `ip` writes it.
pub fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// Joins a pod to a node with a veth, `host` on the node's side and `eth0` in the pod, as the CNI plugin does it: an
/// address of each family, a gateway that the pod takes on trust, a route and a neighbour on the host.
///
/// # Errors
/// `ip` failed.
pub fn wire_pod(
    node: &NetNs,
    host: &str,
    pod: &NetNs,
    addresses: [&str; 2],
    [mac, host_mac]: [[u8; 6]; 2],
) -> Result<()> {
    let [v4, v6] = addresses;
    let (mac, host_mac) = (mac_text(mac), mac_text(host_mac));
    node.veth(host, pod, "eth0")?;
    node.ip(&format!("link set {host} address {host_mac}"))?;
    pod.ip(&format!(
        "link set eth0 address {mac}\n\
         addr add {v4}/32 dev eth0\n\
         addr add {v6}/128 dev eth0 nodad\n\
         neigh add 169.254.1.1 lladdr {host_mac} dev eth0 nud permanent\n\
         neigh add fe80::1 lladdr {host_mac} dev eth0 nud permanent\n\
         route add default via 169.254.1.1 dev eth0 onlink\n\
         route add default via fe80::1 dev eth0 onlink"
    ))?;
    node.ip(&format!(
        "route add {v4}/32 dev {host}\n\
         route add {v6}/128 dev {host}\n\
         neigh add {v4} lladdr {mac} dev {host} nud permanent\n\
         neigh add {v6} lladdr {mac} dev {host} nud permanent"
    ))
}

/// Packets that the stack of a namespace forwarded, IPv4 and IPv6.
///
/// # Errors
/// The kernel's counters cannot be read.
pub fn forwarded(netns: &NetNs) -> Result<u64> {
    let (v4, v6) = netns.run(|| -> Result<(String, String)> {
        // Of the thread, not of the process: the thread is in the namespace.
        Ok((
            std::fs::read_to_string("/proc/thread-self/net/snmp")?,
            std::fs::read_to_string("/proc/thread-self/net/snmp6")?,
        ))
    })??;
    let mut lines = v4.lines().filter(|line| line.starts_with("Ip: "));
    let names = lines.next().context("names of the IP counters")?;
    let values = lines.next().context("values of the IP counters")?;
    let at = names.split(' ').position(|name| name == "ForwDatagrams").context("ForwDatagrams")?;
    let v4: u64 = values.split(' ').nth(at).context("ForwDatagrams")?.parse()?;
    let v6: u64 = v6
        .lines()
        .find_map(|line| line.strip_prefix("Ip6OutForwDatagrams"))
        .context("Ip6OutForwDatagrams")?
        .trim()
        .parse()?;
    Ok(v4 + v6)
}

/// The same bytes on both sides.
pub fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|n| (n * 31 + n / 251) as u8).collect()
}

/// What an exchange showed.
#[derive(Clone, Copy, Debug)]
pub struct Exchanged {
    /// The client's own address.
    pub client: SocketAddr,
    /// The client's address as the server saw it.
    pub seen: SocketAddr,
    /// Bytes of the largest segment that the client sends by now, without headers.
    pub segment: u32,
}

/// Waits until no end of a TCP connection is left in the namespace but one in TIME_WAIT. When that is so on both sides,
/// nothing of the connection is on its way any more, and what counts packets stands still.
fn closed(netns: &NetNs, ends: impl Fn(u16, u16) -> bool + Sync) -> Result<()> {
    const TIME_WAIT: &str = "06";
    let port = |end: &str| u16::from_str_radix(end.rsplit(':').next()?, 16).ok();
    let open = |line: &&str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [_, local, remote, state, ..] = words[..] else { return false };
        let of_it =
            port(local).zip(port(remote)).is_some_and(|(local, remote)| ends(local, remote));
        of_it && state != TIME_WAIT
    };
    wait_ok("the end of a connection", PATIENCE, || {
        let tables = netns.run(|| -> Result<String> {
            // Of the thread, not of the process: the thread is in the namespace.
            Ok(std::fs::read_to_string("/proc/thread-self/net/tcp")?
                + &std::fs::read_to_string("/proc/thread-self/net/tcp6")?)
        })??;
        match tables.lines().find(open) {
            Some(line) => bail!("{line}"),
            None => Ok(()),
        }
    })
}

/// Sends a large body there and back over TCP, so that segments are as large as offload makes them. The client asks
/// `target`, the server is at `server`. The connection is over when this returns, to its last packet.
///
/// # Errors
/// A call failed or took too long, or the body arrived changed.
///
/// # Panics
/// If a thread does; the panic is passed on.
pub fn exchange(
    client: &NetNs,
    serves: &NetNs,
    target: SocketAddr,
    server: SocketAddr,
) -> Result<Exchanged> {
    const LEN: usize = 4 << 20;
    let listener = serves.run(|| bind(|| TcpListener::bind(server)))??;
    // Waiting for a client ends, too.
    let limit = TimeVal::seconds(PATIENCE.as_secs().cast_signed());
    setsockopt(&listener, sockopt::ReceiveTimeout, &limit)?;
    std::thread::scope(|scope| {
        let serving = scope.spawn(|| -> Result<SocketAddr> {
            let (mut stream, from) = listener.accept().context("a connection")?;
            stream.set_read_timeout(Some(PATIENCE))?;
            let mut body = vec![0; LEN];
            stream.read_exact(&mut body).context("the body")?;
            ensure!(body == pattern(LEN), "the body arrived changed");
            stream.write_all(&body)?;
            Ok(from)
        });
        let asked = client.run(|| -> Result<(SocketAddr, u32)> {
            let mut stream = TcpStream::connect_timeout(&target, PATIENCE)
                .with_context(|| format!("connect to {target}"))?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.set_write_timeout(Some(PATIENCE))?;
            stream.write_all(&pattern(LEN)).context("send the body")?;
            let mut body = vec![0; LEN];
            stream.read_exact(&mut body).context("the body's return")?;
            ensure!(body == pattern(LEN), "the body came back changed");
            let segment = nix::sys::socket::getsockopt(&stream, sockopt::TcpMaxSeg)?;
            Ok((stream.local_addr()?, segment))
        })?;
        let seen = serving.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        let ((from, segment), seen) = (asked?, seen?);
        closed(client, |local, _| local == from.port())?;
        closed(serves, |local, remote| (local, remote) == (server.port(), seen.port()))?;
        Ok(Exchanged { client: from, seen, segment })
    })
}

/// A port that no socket picks by itself, another one each time: sockets made one after the other may get the same port
/// from the kernel, and then they are one flow to whoever counts flows.
fn next_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    10_000 + NEXT.fetch_add(1, Ordering::Relaxed) % 20_000
}

/// One datagram of the length given there and back; the client's address as the server saw it.
///
/// # Errors
/// A call failed or took too long, or the body arrived changed, or the answer came from another address.
pub fn datagram(
    client: &NetNs,
    serves: &NetNs,
    target: SocketAddr,
    server: SocketAddr,
    len: usize,
) -> Result<SocketAddr> {
    let serving = serves.run(|| bind(|| UdpSocket::bind(server)))??;
    let any: IpAddr = if target.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
    let client = client.run(|| UdpSocket::bind((any, next_port())))??;
    for socket in [&serving, &client] {
        socket.set_read_timeout(Some(PATIENCE))?;
    }
    let body = pattern(len);
    let mut buffer = vec![0; 65536];
    client.send_to(&body, target)?;
    let (got, seen) = serving.recv_from(&mut buffer).context("the datagram")?;
    ensure!(buffer[..got] == body[..], "the datagram arrived changed");
    serving.send_to(&body, seen)?;
    let (got, from) = client.recv_from(&mut buffer).context("the datagram's answer")?;
    ensure!(buffer[..got] == body[..], "the datagram came back changed");
    ensure!(from == target, "{from} answers, but {target} was asked");
    Ok(seen)
}
