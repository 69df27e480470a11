//! Network policies between two pods of one node and the node itself, with real sockets, by the stack
//! and past it. Needs root.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    path::PathBuf,
};

use anyhow::Result;
use sluice_abi::{Be16, CidrKey, Counter, Endpoint, PolicyKey, PolicySets, proto};
use sluice_plan::PolicyOp;
use sluice_tests::{
    PATIENCE,
    bind::bind,
    kernel::{Lab, addr, isolated},
    netns::NetNs,
    pair::{ADDRESSES, Pair, socket},
    traffic, wait_for,
};
use socket2::{Domain, Protocol, Socket, Type};

const OPEN: u32 = PolicySets::OPEN;
const CLOSED: u32 = PolicySets::CLOSED;

/// A pod's identity.
const fn identity(pod: usize) -> u32 {
    11 + pod as u32
}

fn rule(set: u32, identity: u32, proto: u8, port: u16) -> PolicyOp {
    PolicyOp::PutRule(PolicyKey {
        prefix_len: PolicyKey::PORT,
        set,
        identity,
        proto,
        reserved: 0,
        port: Be16::new(port),
    })
}

fn sets(pair: &Pair, pod: usize, ingress: u32, egress: u32) -> PolicyOp {
    PolicyOp::PutSets(pair.interfaces[pod], PolicySets { ingress, egress })
}

/// A pair whose pods have identities; the node has addresses that pods reach.
fn pair(label: &str, fast_path: bool) -> Result<Pair> {
    named(Pair::new(label, fast_path)?)
}

/// See [`pair`].
fn named(mut pair: Pair) -> Result<Pair> {
    pair.node.ip("addr add 10.244.1.1/32 dev lo\naddr add fd00:244:1::1/128 dev lo nodad")?;
    for (pod, addresses) in ADDRESSES.into_iter().enumerate() {
        for (address, len) in addresses.into_iter().zip([32, 128]) {
            let key = CidrKey::new(addr(address), len);
            pair.lab.dataplane.apply_policy(&[PolicyOp::PutIdentity(key, identity(pod))])?;
        }
    }
    Ok(pair)
}

const NODE: [&str; 2] = ["10.244.1.1", "fd00:244:1::1"];

fn drops(lab: &Lab) -> u64 {
    lab.count(Counter::DropPolicyIngress) + lab.count(Counter::DropPolicyEgress)
}

/// Sends a datagram that is dropped, and demands that it did not arrive.
fn denied(
    lab: &Lab,
    client: &NetNs,
    serves: &NetNs,
    server: std::net::SocketAddr,
    counter: Counter,
) -> Result<()> {
    let before = lab.count(counter);
    let serving = serves.run(|| bind(|| UdpSocket::bind(server)))??;
    serving.set_nonblocking(true)?;
    let any = if server.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = client.run(|| UdpSocket::bind(any))??;
    socket.send_to(b"x", server)?;
    wait_for(&format!("a drop to {server}"), PATIENCE, || {
        (lab.count(counter) > before).then_some(())
    })?;
    let error = serving.recv_from(&mut [0; 8]).expect_err("nothing arrives");
    assert_eq!(error.kind(), ErrorKind::WouldBlock);
    Ok(())
}

/// P1, P5, P7: two pods that are isolated in both directions, and may do one thing: it works as if they
/// were not, also in fragments and through a service; nothing else does.
#[test]
fn isolated_pods_do_what_they_may() -> Result<()> {
    for fast_path in [false, true] {
        let mut pair = pair("policy-pods", fast_path)?;
        let ops: Vec<_> = [proto::TCP, proto::UDP]
            .into_iter()
            .flat_map(|proto| {
                [rule(5, identity(1), proto, 8080), rule(6, identity(0), proto, 8080)]
            })
            .chain([sets(&pair, 0, CLOSED, 5), sets(&pair, 1, 6, CLOSED)])
            .collect();
        pair.lab.dataplane.apply_policy(&ops)?;
        for (vip, family) in [("10.96.0.10", 0), ("fd00:96::10", 1)] {
            let server = socket(ADDRESSES[1][family], 8080);
            let target = socket(vip, 80);
            for proto in [proto::TCP, proto::UDP] {
                pair.lab.service(&target.to_string(), proto, &[&server.to_string()])?;
            }
            for asked in [server, target] {
                traffic::exchange(&pair.pods[0], &pair.pods[1], asked, server)?;
                for len in [0, 1400, 5000, 60_000] {
                    traffic::datagram(&pair.pods[0], &pair.pods[1], asked, server, len)?;
                }
            }
        }
        assert_eq!(drops(&pair.lab), 0);
        let forwarded = pair.forwarded()?;
        assert_eq!(forwarded == 0, fast_path, "the stack forwarded {forwarded} packets");
        for family in [0, 1] {
            let other = socket(ADDRESSES[1][family], 8081);
            let Pair { lab, pods, .. } = &pair;
            denied(lab, &pods[0], &pods[1], other, Counter::DropPolicyEgress)?;
            let back = socket(ADDRESSES[0][family], 8080);
            denied(lab, &pods[1], &pods[0], back, Counter::DropPolicyEgress)?;
        }
        let open = [sets(&pair, 0, OPEN, OPEN)];
        pair.lab.dataplane.apply_policy(&open)?;
        for family in [0, 1] {
            let other = socket(ADDRESSES[1][family], 8081);
            let Pair { lab, pods, .. } = &pair;
            denied(lab, &pods[0], &pods[1], other, Counter::DropPolicyIngress)?;
        }
    }
    Ok(())
}

/// P6: the node reaches a pod that nobody may reach and that may reach nobody, and is answered. The pod
/// does not reach the node.
#[test]
fn the_node_reaches_its_pods_under_every_policy() -> Result<()> {
    for fast_path in [false, true] {
        let mut pair = pair("policy-node", fast_path)?;
        let shut = [sets(&pair, 0, CLOSED, CLOSED)];
        pair.lab.dataplane.apply_policy(&shut)?;
        for family in [0, 1] {
            let server = socket(ADDRESSES[0][family], 8080);
            traffic::exchange(&pair.node, &pair.pods[0], server, server)?;
            for len in [1, 5000] {
                traffic::datagram(&pair.node, &pair.pods[0], server, server, len)?;
            }
        }
        assert_eq!(drops(&pair.lab), 0);
        for family in [0, 1] {
            let node = socket(NODE[family], 8080);
            let Pair { lab, pods, node: host, .. } = &pair;
            denied(lab, &pods[0], host, node, Counter::DropPolicyEgress)?;
            // The other pod is no part of the node.
            let server = socket(ADDRESSES[0][family], 8081);
            denied(lab, &pods[1], &pods[0], server, Counter::DropPolicyIngress)?;
        }
    }
    Ok(())
}

/// P5: a connection that is not allowed any more stops, and goes on when it is allowed again.
#[test]
fn an_established_connection_follows_the_rules() -> Result<()> {
    for fast_path in [false, true] {
        let mut pair = pair("policy-stop", fast_path)?;
        let allowed = rule(6, identity(0), proto::TCP, 8080);
        let PolicyOp::PutRule(key) = allowed else { unreachable!("it is a rule") };
        let ops = [allowed, sets(&pair, 1, 6, OPEN)];
        pair.lab.dataplane.apply_policy(&ops)?;
        for family in [0, 1] {
            let server = socket(ADDRESSES[1][family], 8080);
            let listener = pair.pods[1].run(|| bind(|| TcpListener::bind(server)))??;
            let mut client =
                pair.pods[0].run(|| TcpStream::connect_timeout(&server, PATIENCE))??;
            let (mut serving, _) = listener.accept()?;
            serving.set_read_timeout(Some(PATIENCE))?;
            let mut byte = [0];
            client.write_all(b"a")?;
            serving.read_exact(&mut byte)?;
            pair.lab.dataplane.apply_policy(&[PolicyOp::DeleteRule(key)])?;
            let before = drops(&pair.lab);
            client.write_all(b"b")?;
            wait_for("a segment to be dropped", PATIENCE, || {
                (drops(&pair.lab) > before).then_some(())
            })?;
            serving.set_nonblocking(true)?;
            let error = serving.read(&mut byte).expect_err("nothing arrives");
            assert_eq!(error.kind(), ErrorKind::WouldBlock);
            serving.set_nonblocking(false)?;
            pair.lab.dataplane.apply_policy(&[allowed])?;
            serving.read_exact(&mut byte)?;
            assert_eq!(&byte, b"b");
        }
    }
    Ok(())
}

/// P8: a pod that asks itself through its Service, packet by packet: judged once, wherever its packets
/// go, also where they leave by the queueing discipline of its interface.
#[test]
fn a_pod_reaches_itself_through_its_service_if_it_may() -> Result<()> {
    for (fast_path, flags) in
        [(false, 0), (true, 0), (false, Endpoint::NO_FAST_PATH), (true, Endpoint::NO_FAST_PATH)]
    {
        let mut pair = pair("policy-self", fast_path)?;
        for (address, endpoint) in pair.lab.dataplane.endpoints()? {
            pair.lab.dataplane.put_endpoint(address, Endpoint { flags, ..endpoint })?;
        }
        let ops = [rule(5, identity(0), proto::TCP, 8080), sets(&pair, 0, 5, 5)];
        pair.lab.dataplane.apply_policy(&ops)?;
        for (vip, family) in [("10.96.0.10", 0), ("fd00:96::10", 1)] {
            let server = socket(ADDRESSES[0][family], 8080);
            let target = socket(vip, 80);
            pair.lab.service(&target.to_string(), proto::TCP, &[&server.to_string()])?;
            traffic::exchange(&pair.pods[0], &pair.pods[0], target, server)?;
        }
        assert_eq!(drops(&pair.lab), 0);
    }
    Ok(())
}

/// How a client asks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Asks {
    Stream,
    Connected,
    Unconnected,
}

impl Asks {
    const ALL: [Self; 3] = [Self::Stream, Self::Connected, Self::Unconnected];

    /// Asks, and waits for nothing; the socket is to be kept meanwhile.
    fn ask(self, netns: &NetNs, target: SocketAddr) -> Result<Socket> {
        netns.run(|| -> Result<Socket> {
            let domain = Domain::for_address(target);
            let (kind, protocol) = match self {
                Self::Stream => (Type::STREAM, Protocol::TCP),
                _ => (Type::DGRAM, Protocol::UDP),
            };
            let socket = Socket::new(domain, kind, Some(protocol))?;
            socket.set_nonblocking(true)?;
            match self {
                Self::Stream => match socket.connect(&target.into()) {
                    Err(error)
                        if error.raw_os_error() != Some(nix::errno::Errno::EINPROGRESS as i32) =>
                    {
                        return Err(error.into());
                    }
                    _ => {}
                },
                Self::Connected => {
                    socket.connect(&target.into())?;
                    socket.send(b"x")?;
                }
                Self::Unconnected => {
                    socket.send_to(b"x", &target.into())?;
                }
            }
            Ok(socket)
        })?
    }
}

/// A connected datagram socket asks `target`, is answered, and knows only that.
fn connected_datagram(
    client: &NetNs,
    serves: &NetNs,
    target: SocketAddr,
    server: SocketAddr,
) -> Result<()> {
    let serving = serves.run(|| bind(|| UdpSocket::bind(server)))??;
    let any = if target.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let client = client.run(|| -> std::io::Result<UdpSocket> {
        let socket = UdpSocket::bind(any)?;
        socket.connect(target)?;
        Ok(socket)
    })??;
    for socket in [&serving, &client] {
        socket.set_read_timeout(Some(PATIENCE))?;
    }
    assert_eq!(client.peer_addr()?, target);
    let mut buffer = [0; 8];
    for _ in 0..2 {
        client.send(b"ask")?;
        let (len, from) = serving.recv_from(&mut buffer)?;
        assert_eq!(&buffer[..len], b"ask");
        serving.send_to(b"answer", from)?;
        let len = client.recv(&mut buffer)?;
        assert_eq!(&buffer[..len], b"answer");
    }
    Ok(())
}

/// Every way to ask works.
fn asks_and_is_answered(pair: &Pair, target: SocketAddr, server: SocketAddr) -> Result<()> {
    let pod = &pair.pods[0];
    traffic::exchange(pod, pod, target, server)?;
    connected_datagram(pod, pod, target, server)?;
    traffic::datagram(pod, pod, target, server, 100)?;
    Ok(())
}

/// P8: a socket that asks its own pod through a Service is led there by the packet, where policies see
/// it, if they isolate the pod; else as any other.
#[test]
fn a_socket_that_asks_its_own_pod_is_judged() -> Result<()> {
    isolated("policy-own", |_: &NetNs, cgroup: PathBuf| {
        let mut lab = Lab::with_cgroup("policy-own", true, cgroup)?;
        lab.dataplane.attach_cgroup()?;
        let mut pair = named(Pair::with_lab(lab, "policy-own")?)?;
        let at_socket =
            |lab: &Lab| lab.count(Counter::SockConnect) + lab.count(Counter::SockSendmsg);
        for (vip, family) in [("10.96.0.10", 0), ("fd00:96::10", 1)] {
            let (server, target) = (socket(ADDRESSES[0][family], 8080), socket(vip, 80));
            for proto in [proto::TCP, proto::UDP] {
                pair.lab.service(&target.to_string(), proto, &[&server.to_string()])?;
            }
            // The server has the service for its client, whose port is none of the service's.
            pair.lab.cluster_ip(vip)?;
            // Policies for nobody, then for another pod.
            for other in [OPEN, CLOSED] {
                let ops = [sets(&pair, 0, OPEN, OPEN), sets(&pair, 1, other, other)];
                pair.lab.dataplane.apply_policy(&ops)?;
                let before = (at_socket(&pair.lab), pair.lab.count(Counter::PacketForward));
                asks_and_is_answered(&pair, target, server)?;
                let after = (at_socket(&pair.lab), pair.lab.count(Counter::PacketForward));
                assert_eq!((after.0 - before.0, after.1), (3, before.1), "{target}");
            }
            // It may.
            let may = [
                rule(5, identity(0), proto::TCP, 8080),
                rule(5, identity(0), proto::UDP, 8080),
                sets(&pair, 0, 5, 5),
            ];
            pair.lab.dataplane.apply_policy(&may)?;
            let before = (at_socket(&pair.lab), drops(&pair.lab));
            asks_and_is_answered(&pair, target, server)?;
            assert_eq!((at_socket(&pair.lab), drops(&pair.lab)), before, "{target}");
            // A socket to another pod is connected as always.
            let elsewhere = socket(ADDRESSES[1][family], 8080);
            let ops = [sets(&pair, 1, OPEN, OPEN), sets(&pair, 0, OPEN, OPEN)];
            pair.lab.dataplane.apply_policy(&ops)?;
            pair.lab.service(&target.to_string(), proto::TCP, &[&elsewhere.to_string()])?;
            let ops = [sets(&pair, 0, CLOSED, OPEN)];
            pair.lab.dataplane.apply_policy(&ops)?;
            traffic::exchange(&pair.pods[0], &pair.pods[1], target, elsewhere)?;
            assert_eq!(at_socket(&pair.lab), before.0 + 1, "{target}");
            pair.lab.service(&target.to_string(), proto::TCP, &[&server.to_string()])?;
            // It may not be asked, or may not ask.
            for (ingress, egress, counter) in [
                (CLOSED, OPEN, Counter::DropPolicyIngress),
                (OPEN, CLOSED, Counter::DropPolicyEgress),
            ] {
                let ops = [sets(&pair, 0, ingress, egress)];
                pair.lab.dataplane.apply_policy(&ops)?;
                let Pair { lab, pods, .. } = &pair;
                let listener = pods[0].run(|| bind(|| TcpListener::bind(server)))??;
                let datagrams = pods[0].run(|| bind(|| UdpSocket::bind(server)))??;
                listener.set_nonblocking(true)?;
                datagrams.set_nonblocking(true)?;
                for asks in Asks::ALL {
                    let before = lab.count(counter);
                    let _asking = asks.ask(&pods[0], target)?;
                    wait_for(&format!("{asks:?} to {target} to be dropped"), PATIENCE, || {
                        (lab.count(counter) > before).then_some(())
                    })?;
                    let error = match asks {
                        Asks::Stream => listener.accept().map(drop),
                        _ => datagrams.recv_from(&mut [0; 8]).map(drop),
                    };
                    assert_eq!(error.expect_err("nobody came").kind(), ErrorKind::WouldBlock);
                }
            }
        }
        Ok(())
    })
}

/// What is denied to a client of a Service leaves no translated flow behind, whether it is dropped where
/// it leaves the client or, by the stack, where it reaches the server.
#[test]
fn denied_requests_leave_no_flow_behind() -> Result<()> {
    for fast_path in [false, true] {
        let mut pair = pair("policy-flood", fast_path)?;
        for (vip, family) in [("10.96.0.10", 0), ("fd00:96::10", 1)] {
            let (server, target) = (socket(ADDRESSES[1][family], 8080), socket(vip, 80));
            for proto in [proto::TCP, proto::UDP] {
                pair.lab.service(&target.to_string(), proto, &[&server.to_string()])?;
            }
            let may = [rule(6, identity(0), proto::UDP, 8080), sets(&pair, 1, 6, OPEN)];
            pair.lab.dataplane.apply_policy(&may)?;
            traffic::datagram(&pair.pods[0], &pair.pods[1], target, server, 100)?;
            let answered = pair.lab.dataplane.view().conntrack()?;
            assert!(!answered.is_empty());
            let ops = [sets(&pair, 1, CLOSED, OPEN)];
            pair.lab.dataplane.apply_policy(&ops)?;
            let before = drops(&pair.lab);
            let mut asking = Vec::new();
            for asks in [Asks::Stream, Asks::Unconnected] {
                for _ in 0..100 {
                    asking.push(asks.ask(&pair.pods[0], target)?);
                }
            }
            let all = before + asking.len() as u64;
            wait_for("all to be dropped", PATIENCE, || (drops(&pair.lab) >= all).then_some(()))?;
            drop(asking);
            let keys = |flows: Vec<(sluice_abi::CtKey, sluice_abi::CtEntry)>| -> Vec<_> {
                flows.into_iter().map(|(key, _)| key).collect()
            };
            // A segment that comes again makes a flow for a moment.
            let answered = keys(answered);
            wait_for("what was denied to be gone", PATIENCE, || {
                let left = keys(pair.lab.dataplane.view().conntrack().ok()?);
                (left == answered).then_some(())
            })?;
        }
    }
    Ok(())
}
