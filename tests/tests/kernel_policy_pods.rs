//! Network policies between two pods of one node and the node itself, with real sockets, by the stack
//! and past it. Needs root.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{TcpListener, TcpStream, UdpSocket},
};

use anyhow::Result;
use sluice_abi::{Be16, CidrKey, Counter, Endpoint, PolicyKey, PolicySets, proto};
use sluice_plan::PolicyOp;
use sluice_tests::{
    PATIENCE,
    bind::bind,
    kernel::{Lab, addr},
    netns::NetNs,
    pair::{ADDRESSES, Pair, socket},
    traffic, wait_for,
};

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
    let mut pair = Pair::new(label, fast_path)?;
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
