//! The tc programs between two pods of one node, with real sockets whose packets no socket hook has
//! touched: services per packet, and the fast path. Needs root.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::{TimeVal, TimeValLike as _};
use sluice_abi::{Counter, proto};
use sluice_tests::{
    bind::bind,
    pair::{ADDRESSES, Pair, socket},
    traffic::{self, PATIENCE},
};
use socket2::{Domain, Type};

/// Sends a large body there and back between the two pods; the server sees the client's own address.
fn exchange(node: &Pair, target: SocketAddr, server: SocketAddr) -> Result<()> {
    let done = traffic::exchange(&node.pods[0], &node.pods[1], target, server)?;
    assert_eq!(done.seen, done.client, "the server sees the client's own address");
    Ok(())
}

/// One datagram there and back between the two pods.
fn datagram(node: &Pair, target: SocketAddr, server: SocketAddr, len: usize) -> Result<()> {
    traffic::datagram(&node.pods[0], &node.pods[1], target, server, len).map(drop)
}

/// S1: through a service, translated packet by packet, over the stack and over the fast path.
#[test]
fn pods_reach_each_other_through_a_service_per_packet() -> Result<()> {
    for fast_path in [false, true] {
        let mut node = Pair::new("forward", fast_path)?;
        for (vip, family) in [("10.96.0.10", 0), ("fd00:96::10", 1)] {
            let server = socket(ADDRESSES[1][family], 8080);
            let target = socket(vip, 80);
            for proto in [proto::TCP, proto::UDP] {
                node.lab.service(&target.to_string(), proto, &[&server.to_string()])?;
            }
            exchange(&node, target, server)?;
            for len in [0, 1, 1400] {
                datagram(&node, target, server, len)?;
            }
        }
        assert!(node.lab.count(Counter::PacketForward) > 0);
        assert!(node.lab.count(Counter::PacketReverse) > 0);
        // One connection and three datagrams of three sockets, in each family.
        assert_eq!(node.lab.count(Counter::FlowCreated), 8);
        let forwarded = node.forwarded()?;
        assert_eq!(forwarded == 0, fast_path, "the stack forwarded {forwarded} packets");
        assert_eq!(node.lab.count(Counter::FastPathPod) > 0, fast_path);
    }
    Ok(())
}

/// S1: a backend that is a process of the node answers by the stack, also with the fast path on: what
/// leaves the stack for a pod is translated and goes on as it is, since no packet can be handed to a
/// pod from the egress of its interface.
#[test]
fn a_backend_on_the_node_itself_answers_pods() -> Result<()> {
    for fast_path in [false, true] {
        let mut node = Pair::new("forward-host", fast_path)?;
        node.node.ip("addr add 10.244.1.1/32 dev lo\naddr add fd00:244:1::1/128 dev lo nodad")?;
        for (vip, own) in [("10.96.0.10", "10.244.1.1"), ("fd00:96::10", "fd00:244:1::1")] {
            let server = socket(own, 8080);
            let target = socket(vip, 80);
            for proto in [proto::TCP, proto::UDP] {
                node.lab.service(&target.to_string(), proto, &[&server.to_string()])?;
            }
            let done = traffic::exchange(&node.pods[0], &node.node, target, server)?;
            assert_eq!(done.seen, done.client);
            // A port that nobody listens at: the error comes from the node's stack too.
            let closed = socket(vip, 81);
            node.lab.service(&closed.to_string(), proto::UDP, &[&socket(own, 8081).to_string()])?;
            let any = if target.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
            node.pods[0].run(|| -> Result<()> {
                let client = UdpSocket::bind(any)?;
                client.connect(closed)?;
                assert_eq!(told(&client)?, Errno::ECONNREFUSED, "{closed}");
                Ok(())
            })??;
        }
        assert_eq!(node.lab.count(Counter::FastPathPod), 0);
        // One for each family at least: the stack may have more to say.
        let errors = node.lab.count(Counter::IcmpTranslated);
        assert!(errors >= 2, "{errors} errors were translated");
    }
    Ok(())
}

/// S27: datagrams larger than a link takes, there and back through a service, arrive whole.
#[test]
fn large_datagrams_pass_a_service_in_fragments() -> Result<()> {
    for fast_path in [false, true] {
        let mut node = Pair::new("forward-frag", fast_path)?;
        node.lab.cluster_ip("10.96.0.10")?;
        node.lab.cluster_ip("fd00:96::10")?;
        for (vip, family) in [("10.96.0.10", 0), ("fd00:96::10", 1)] {
            let server = socket(ADDRESSES[1][family], 8080);
            let target = socket(vip, 80);
            node.lab.service(&target.to_string(), proto::UDP, &[&server.to_string()])?;
            for len in [1473, 5000, 60_000] {
                datagram(&node, target, server, len)?;
            }
        }
        assert_eq!(node.lab.count(Counter::FragmentUnknown), 0);
        assert_eq!(node.lab.count(Counter::FlowCreated), 6);
    }
    Ok(())
}

/// What a socket that is connected to the target is told about its first datagram.
fn told(socket: &UdpSocket) -> Result<Errno> {
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.send(b"x")?;
    let error = socket.recv(&mut [0; 8]).expect_err("nobody answers");
    Ok(Errno::from_raw(error.raw_os_error().context("an error of the kernel")?))
}

/// S16, S17: real sockets are refused at once: by a service without backends, and by a port that
/// a ClusterIP does not have.
#[test]
fn sockets_are_refused_where_nobody_serves() -> Result<()> {
    for fast_path in [false, true] {
        let mut node = Pair::new("forward-refuse", fast_path)?;
        for (vip, any) in [("10.96.0.10", "0.0.0.0:0"), ("fd00:96::10", "[::]:0")] {
            for proto in [proto::TCP, proto::UDP] {
                node.lab.service(&socket(vip, 80).to_string(), proto, &[])?;
            }
            node.lab.cluster_ip(vip)?;
            for port in [80, 81] {
                let target = socket(vip, port);
                node.pods[0].run(|| -> Result<()> {
                    let error = TcpStream::connect_timeout(&target, PATIENCE)
                        .expect_err("nobody serves it");
                    assert_eq!(error.raw_os_error(), Some(Errno::ECONNREFUSED as i32), "{target}");
                    let client = UdpSocket::bind(any)?;
                    client.connect(target)?;
                    assert_eq!(told(&client)?, Errno::ECONNREFUSED, "{target}");
                    // Larger than what an error may quote, and in fragments.
                    for len in [1400, 4000] {
                        client.send(&vec![0; len])?;
                        let error = client.recv(&mut [0; 8]).expect_err("nobody answers");
                        assert_eq!(error.raw_os_error(), Some(Errno::ECONNREFUSED as i32));
                    }
                    Ok(())
                })??;
            }
        }
        assert_eq!(node.lab.count(Counter::PacketReject), 16);
    }
    Ok(())
}

/// S28: a backend with a closed port refuses, in the service's name.
#[test]
fn the_refusal_of_a_backend_reaches_the_client() -> Result<()> {
    for fast_path in [false, true] {
        let mut node = Pair::new("forward-closed", fast_path)?;
        for (vip, any, family) in [("10.96.0.10", "0.0.0.0:0", 0), ("fd00:96::10", "[::]:0", 1)] {
            let target = socket(vip, 80);
            let server = socket(ADDRESSES[1][family], 8080).to_string();
            for proto in [proto::TCP, proto::UDP] {
                node.lab.service(&target.to_string(), proto, &[&server])?;
            }
            node.pods[0].run(|| -> Result<()> {
                let error =
                    TcpStream::connect_timeout(&target, PATIENCE).expect_err("nobody serves it");
                assert_eq!(error.raw_os_error(), Some(Errno::ECONNREFUSED as i32), "{target}");
                let client = UdpSocket::bind(any)?;
                client.connect(target)?;
                assert_eq!(told(&client)?, Errno::ECONNREFUSED, "{target}");
                Ok(())
            })??;
        }
        assert_eq!(node.lab.count(Counter::IcmpTranslated), 2);
    }
    Ok(())
}

/// S21, S28: a pod that asks its own Service at a port that it does not listen at hears so from the
/// Service, by the stack and past it.
#[test]
fn the_refusal_of_a_pod_by_itself_reaches_it() -> Result<()> {
    for fast_path in [false, true] {
        let mut node = Pair::new("forward-hairpin", fast_path)?;
        for (vip, any, family) in [("10.96.0.10", "0.0.0.0:0", 0), ("fd00:96::10", "[::]:0", 1)] {
            let target = socket(vip, 80);
            let server = socket(ADDRESSES[0][family], 8080).to_string();
            node.lab.service(&target.to_string(), proto::UDP, &[&server])?;
            node.pods[0].run(|| -> Result<()> {
                let client = UdpSocket::bind(any)?;
                client.connect(target)?;
                assert_eq!(told(&client)?, Errno::ECONNREFUSED, "{target}");
                Ok(())
            })??;
        }
        assert_eq!(node.lab.count(Counter::IcmpTranslated), 2);
    }
    Ok(())
}

/// S28: a link on the way to the backend takes less than the client's: the node's stack says so, and
/// the client, which knows the service alone, sends smaller segments.
#[test]
fn a_client_learns_the_mtu_of_the_path_to_its_backend() -> Result<()> {
    let mut node = Pair::new("forward-mtu", false)?;
    // The node answers from addresses of its own, and what goes to the other pod is cut short.
    node.node.ip("addr add 10.244.1.1/32 dev lo\n\
         addr add fd00:244:1::1/128 dev lo nodad\n\
         link set slu1 mtu 1300")?;
    let mut errors = 0;
    for (vip, family) in [("10.96.0.10", 0), ("fd00:96::10", 1)] {
        let server = socket(ADDRESSES[1][family], 8080);
        let target = socket(vip, 80);
        node.lab.service(&target.to_string(), proto::TCP, &[&server.to_string()])?;
        exchange(&node, target, server)?;
        let translated = node.lab.count(Counter::IcmpTranslated);
        assert!(translated > errors, "the client was told of the path to {target}");
        errors = translated;
    }
    Ok(())
}

/// S30: two connections of a pod to one backend with one port of the pod's, of which one was
/// connected straight to the backend (as by a socket hook), and the other asks a service and is
/// translated packet by packet. Whichever is first, both live, and each hears its own answers.
#[test]
fn a_direct_connection_and_a_translated_one_share_a_port() -> Result<()> {
    for fast_path in [false, true] {
        for direct_first in [true, false] {
            let mut node = Pair::new("forward-beside", fast_path)?;
            for (vip, family) in [("10.96.0.10", 0), ("fd00:96::10", 1)] {
                let [own, server] = [0, 1].map(|pod| socket(ADDRESSES[pod][family], 8080));
                let own = SocketAddr::new(own.ip(), 40_000);
                let target = socket(vip, 80);
                node.lab.service(&target.to_string(), proto::TCP, &[&server.to_string()])?;
                let listener = node.pods[1].run(|| bind(|| TcpListener::bind(server)))??;
                let mut asked = [server, target];
                if !direct_first {
                    asked.reverse();
                }
                let mut pairs = Vec::new();
                for asked in asked {
                    let client = node.pods[0].run(|| connect_from(own, asked))??;
                    let (served, seen) = accept(&listener)?;
                    let as_it_is = pairs.is_empty();
                    ensure!((seen == own) == as_it_is, "{asked} is asked from {seen}");
                    ensure!(seen.ip() == own.ip(), "{asked} is asked from {seen}");
                    pairs.push((client, served));
                }
                // By turns, so that each meets what the other left behind.
                for round in 0..3u8 {
                    for (n, (client, served)) in pairs.iter().enumerate() {
                        let word = [round, u8::try_from(n)?];
                        for (mut from, mut to) in [(client, served), (served, client)] {
                            from.write_all(&word)?;
                            let mut heard = [0; 2];
                            to.read_exact(&mut heard).with_context(|| format!("{asked:?}"))?;
                            ensure!(heard == word, "{heard:?} is heard, {word:?} was said");
                        }
                    }
                }
                // And a third, once they are over: the port is free again. Who closes first is left
                // with the connection for a while: the backend.
                for (mut client, served) in pairs {
                    drop(served);
                    ensure!(client.read(&mut [0])? == 0, "{asked:?}");
                }
                let _client = node.pods[0].run(|| connect_from(own, target))??;
                accept(&listener)?;
            }
            assert_eq!(node.lab.count(Counter::DropFlowClash), 0);
        }
    }
    Ok(())
}

/// A connection from that address and port, which others may have too.
fn connect_from(own: SocketAddr, target: SocketAddr) -> Result<TcpStream> {
    let socket = socket2::Socket::new(Domain::for_address(target), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.bind(&own.into())?;
    socket
        .connect_timeout(&target.into(), PATIENCE)
        .with_context(|| format!("{own} asks {target}"))?;
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

fn accept(listener: &TcpListener) -> Result<(TcpStream, SocketAddr)> {
    setsockopt(
        listener,
        sockopt::ReceiveTimeout,
        &TimeVal::seconds(PATIENCE.as_secs().cast_signed()),
    )?;
    let (stream, seen) = listener.accept().context("a connection")?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok((stream, seen))
}

/// Pods reach each other's addresses over the fast path: large segments, large datagrams that are
/// fragmented, and nothing of it through the node's stack.
#[test]
fn pods_reach_each_other_over_the_fast_path() -> Result<()> {
    let node = Pair::new("direct", true)?;
    for ip in ADDRESSES[1] {
        let server = socket(ip, 8080);
        exchange(&node, server, server)?;
        for len in [0, 1400, 5000, 60_000] {
            datagram(&node, server, server, len)?;
        }
    }
    assert_eq!(node.forwarded()?, 0);
    assert_eq!(node.lab.count(Counter::PacketForward), 0);
    assert_eq!(node.lab.count(Counter::FlowCreated), 0);
    Ok(())
}

/// The last hop is the stack's: it answers that the time is exceeded.
#[test]
fn the_last_hop_is_answered_by_the_stack() -> Result<()> {
    let node = Pair::new("ttl", true)?;
    let server = socket(ADDRESSES[1][0], 8080);
    // The node answers from an address of its own.
    node.node.ip("addr add 10.244.1.1/32 dev lo")?;
    let error = node.pods[0].run(|| -> Result<i32> {
        let client = UdpSocket::bind("0.0.0.0:0")?;
        client.set_ttl(1)?;
        client.set_read_timeout(Some(PATIENCE))?;
        // The error comes back on the socket.
        nix::sys::socket::setsockopt(&client, nix::sys::socket::sockopt::Ipv4RecvErr, &true)?;
        client.connect(server)?;
        client.send(b"x")?;
        let mut buffer = [0; 8];
        let error = client.recv(&mut buffer).expect_err("nobody answers");
        error.raw_os_error().context("an error of the kernel")
    })??;
    assert_eq!(error, nix::errno::Errno::EHOSTUNREACH as i32);
    assert_eq!(node.lab.count(Counter::FastPathPod), 0);
    Ok(())
}

/// A pod that is gone, while its endpoint is still known: packets for it go nowhere, and other pods
/// go on.
#[test]
fn packets_for_a_pod_that_is_gone_are_dropped() -> Result<()> {
    let mut node = Pair::new("gone", true)?;
    drop(node.pods.pop());
    // Namespaces are taken down in the background.
    let gone = sluice_tests::wait::wait_ok("the pod's interface to go", PATIENCE, || {
        let gone = node.lab.dataplane.detach_gone()?;
        ensure!(!gone.is_empty(), "the interface is still there");
        Ok(gone)
    })?;
    assert_eq!(gone.len(), 1);
    let client = node.pods[0].run(|| UdpSocket::bind("0.0.0.0:0"))??;
    for _ in 0..10 {
        client.send_to(b"x", socket(ADDRESSES[1][0], 8080))?;
    }
    assert_eq!(node.lab.count(Counter::FastPathPod), 10);
    assert_eq!(node.forwarded()?, 0);
    Ok(())
}
