//! What clients see whose packets no socket hook has seen, with the real agent.

use std::net::{SocketAddr, TcpStream, UdpSocket};

use anyhow::{Context, bail};
use nix::errno::Errno;
use sluice_tests::app::Identity;
use sluice_tests::manifests::Service;
use sluice_tests::netns::NetNs;
use sluice_tests::shop::{Shop, WEB_V4, WEB_V6};
use sluice_tests::wait::wait_ok;
use sluice_tests::{PATIENCE, Result};

/// The error that a TCP connection from the namespace to the target fails with.
fn tcp(from: &NetNs, target: SocketAddr) -> Result<Errno> {
    let outcome = from.run(|| TcpStream::connect_timeout(&target, PATIENCE))?;
    let error = outcome.err().with_context(|| format!("{target} is served"))?;
    Ok(Errno::from_raw(error.raw_os_error().unwrap_or_default()))
}

/// The error that a datagram from the namespace to the target is answered with.
fn udp(from: &NetNs, target: SocketAddr) -> Result<Errno> {
    let error = from.run(|| -> std::io::Result<std::io::Error> {
        let any: SocketAddr =
            if target.is_ipv4() { ([0; 4], 0).into() } else { ([0; 16], 0).into() };
        let socket = UdpSocket::bind(any)?;
        socket.set_read_timeout(Some(PATIENCE / 10))?;
        socket.connect(target)?;
        socket.send(b"x")?;
        match socket.recv(&mut [0; 8]) {
            Ok(_) => Err(std::io::Error::other("the datagram was answered")),
            Err(error) => Ok(error),
        }
    })??;
    Ok(Errno::from_raw(error.raw_os_error().unwrap_or_default()))
}

/// S16: a Service without endpoints refuses the packets of clients that no socket hook has seen, TCP
/// and UDP, both families; once it has an endpoint it serves them, and then refuses again.
#[test]
fn a_service_without_endpoints_refuses_packet_by_packet() -> Result<()> {
    let shop = Shop::open()?;
    let empty = Service::new("shop", "empty")
        .cluster_ip("10.96.0.30")
        .cluster_ip("fd00:96::30")
        .tcp("http", 80, 8080)
        .udp("echo", 80, 8080);
    let targets: [SocketAddr; 2] = ["10.96.0.30:80".parse()?, "[fd00:96::30]:80".parse()?];
    let from = shop.client.netns();
    let refused = || -> Result<()> {
        // A datagram is asked for last: while the address leads nowhere, no error ends its wait.
        for ask in [tcp, udp] {
            for target in targets {
                let error = ask(from, target)?;
                if error != Errno::ECONNREFUSED {
                    bail!("{target}: {error}");
                }
            }
        }
        Ok(())
    };
    shop.cluster.apply("empty", &empty.with_endpoints(&[]))?;
    // Nothing leads to the addresses before they are known.
    shop.cluster.wait_served(0, WEB_V4)?;
    wait_ok("the refusal", PATIENCE, refused)?;
    shop.cluster.apply("empty", &empty.with_endpoints(&[&shop.web[0], &shop.web[1]]))?;
    shop.cluster.wait_served(0, "10.96.0.30:80")?;
    wait_ok("the service", PATIENCE, || {
        Ok(from.run(|| TcpStream::connect_timeout(&targets[0], PATIENCE))??)
    })?;
    shop.cluster.apply("empty", &empty.with_endpoints(&[]))?;
    wait_ok("the refusal again", PATIENCE, refused)
}

/// S27: a datagram that takes several fragments arrives whole at one backend, on this node or on
/// another one.
#[test]
fn a_large_datagram_arrives_whole_at_one_backend() -> Result<()> {
    let shop = Shop::open()?;
    for target in [WEB_V4, WEB_V6] {
        let target: SocketAddr = target.parse()?;
        let mut answered = std::collections::BTreeSet::new();
        for _ in 0..20 {
            let answer = shop.client.netns().run(|| -> Result<String> {
                let any: SocketAddr =
                    if target.is_ipv4() { ([0; 4], 0).into() } else { ([0; 16], 0).into() };
                let socket = UdpSocket::bind(any)?;
                socket.set_read_timeout(Some(PATIENCE))?;
                socket.connect(target)?;
                socket.send(&[b'x'; 6000])?;
                let mut buffer = [0; 2048];
                let len = socket.recv(&mut buffer)?;
                Ok(String::from_utf8_lossy(&buffer[..len]).into_owned())
            })??;
            answered.insert(serde_json::from_str::<Identity>(&answer)?.pod);
        }
        assert_eq!(answered.len(), 2, "{target}: {answered:?}");
    }
    Ok(())
}
