//! The tc programs on built packets: verdict, bytes, counters and flows. Needs root.

use std::{collections::BTreeSet, net::SocketAddr};

use anyhow::Result;
use sluice_abi::{Be16, Counter, CtEntry, CtFlags, CtKey, Endpoint, proto};
use sluice_proxy::dataplane::{Collector, Timeouts};
use sluice_tests::{
    kernel::{Lab, addr, assert_same, verdict},
    packet::{ETHERNET, Packet, Random, ethertype, extension, protocol, tcp},
};

const CLIENT: &str = "10.244.1.5:40000";
const VIP: &str = "10.96.0.10:80";
const BACKEND: &str = "10.244.2.7:8080";
const CLIENT6: &str = "[fd00:244:1::5]:40000";
const VIP6: &str = "[fd00:96::10]:80";
const BACKEND6: &str = "[fd00:244:2::7]:8080";

fn lab(label: &str) -> Result<Lab> {
    let mut lab = Lab::new(label, false)?;
    for proto in [proto::TCP, proto::UDP] {
        lab.service(VIP, proto, &[BACKEND])?;
        lab.service(VIP6, proto, &[BACKEND6])?;
    }
    Ok(lab)
}

/// Demands that a packet pass as it is, without a flow.
#[track_caller]
fn expect_untouched(lab: &Lab, bytes: &[u8]) {
    let (verdict, out) = lab.send(bytes).expect("the program runs");
    assert_eq!(verdict, verdict::PASS);
    assert_same(&out, bytes);
    assert_eq!(lab.dataplane.conntrack().expect("readable"), vec![]);
}

/// The client with the port that the sent packet has instead of the client's own: none that a socket of
/// the client's would pick.
fn moved(client: &str, sent: &[u8]) -> Result<String> {
    let at = ETHERNET + if client.starts_with('[') { 40 } else { 20 };
    let port = u16::from_be_bytes([sent[at], sent[at + 1]]);
    assert!(port >= 61_000, "port {port}");
    let mut moved: SocketAddr = client.parse()?;
    moved.set_port(port);
    Ok(moved.to_string())
}

fn endpoint(ifindex: u32) -> Endpoint {
    Endpoint {
        ifindex,
        id: 1,
        mac: [0x02, 0xaa, 1, 2, 3, 4],
        host_mac: [0x02, 0xbb, 5, 6, 7, 8],
        flags: 0,
        ..Endpoint::default()
    }
}

/// The packet as the fast path delivers it: one hop less, hardware addresses of the last link.
fn delivered(packet: &Packet) -> Packet {
    let endpoint = endpoint(0);
    Packet {
        to_mac: endpoint.mac,
        from_mac: endpoint.host_mac,
        hops: packet.hops - 1,
        ..packet.clone()
    }
}

/// S1: TCP and UDP, IPv4 and IPv6: a packet to the service goes to the backend, the answer seems to
/// come from the service, and both entries of the flow say so.
#[test]
fn packets_to_a_service_go_to_its_backend_and_back() -> Result<()> {
    for (client, vip, backend) in [(CLIENT, VIP, BACKEND), (CLIENT6, VIP6, BACKEND6)] {
        for request in [Packet::tcp(client, vip, tcp::SYN), Packet::udp(client, vip)] {
            let lab = lab("roundtrip")?;
            lab.expect_sent(&request, &request.clone().to(backend));
            let answer = Packet {
                tcp_flags: tcp::SYN | tcp::ACK,
                ..request.clone().from(backend).to(client)
            };
            lab.expect_received(&answer, &answer.clone().from(vip));

            assert_eq!(lab.count(Counter::FlowCreated), 1);
            assert_eq!(lab.count(Counter::PacketForward), 1);
            assert_eq!(lab.count(Counter::PacketReverse), 1);
            let flow = lab.dataplane.conntrack()?;
            assert_eq!(flow.len(), 2, "{flow:?}");
            let (forward, reverse) = match flow.as_slice() {
                [a, b] if a.0.flags == 0 => (a, b),
                [a, b] => (b, a),
                _ => unreachable!("two entries"),
            };
            let ip = |text: &str| text.parse::<std::net::SocketAddr>().expect("an address");
            assert_eq!(forward.0.src, ip(client).ip().into());
            assert_eq!(forward.0.dst, ip(vip).ip().into());
            assert_eq!(
                (forward.1.addr, forward.1.port),
                (ip(backend).ip().into(), Be16::new(8080))
            );
            assert_eq!(reverse.0.flags, CtFlags::REVERSE);
            assert_eq!((reverse.1.addr, reverse.1.port), (ip(vip).ip().into(), Be16::new(80)));
            assert_eq!(reverse.1.flags & CtFlags::REPLIED, CtFlags::REPLIED);
            assert_eq!(lab.dataplane.view().node_state()?.ct_used, 1);
        }
    }
    Ok(())
}

/// A port that stays the same, an odd payload, and addresses whose checksums carry.
#[test]
fn checksums_stay_right_for_many_packets() -> Result<()> {
    let mut lab = Lab::new("checksums", false)?;
    let mut random = Random::new(7);
    for round in 0..50 {
        let n = random.number();
        let vip = format!("10.96.{}.{}:{}", n as u8, (n >> 8) as u8, (n >> 16) as u16 | 1);
        let backend = format!("10.{}.255.{}:{}", (n >> 32) as u8, (n >> 40) as u8, (n >> 48) | 1);
        lab.service(&vip, proto::UDP, &[&backend])?;
        lab.service(&vip, proto::TCP, &[&backend])?;
        for mut packet in [Packet::udp(CLIENT, &vip), Packet::tcp(CLIENT, &vip, tcp::SYN)] {
            packet.payload = random.bytes(round);
            lab.expect_sent(&packet, &packet.clone().to(&backend));
        }
    }
    Ok(())
}

/// A UDP datagram without a checksum stays without one.
#[test]
fn udp_without_checksum_keeps_none() -> Result<()> {
    let lab = lab("no-checksum")?;
    let request = Packet { udp_checksum: false, ..Packet::udp(CLIENT, VIP) };
    lab.expect_sent(&request, &request.clone().to(BACKEND));
    let answer = Packet { udp_checksum: false, ..Packet::udp(BACKEND, CLIENT) };
    lab.expect_received(&answer, &answer.clone().from(VIP));
    Ok(())
}

/// IPv4 options of every length.
#[test]
fn ipv4_options_are_passed_over() -> Result<()> {
    let lab = lab("options")?;
    for words in 1..=10 {
        for mut packet in [Packet::tcp(CLIENT, VIP, tcp::SYN), Packet::udp(CLIENT, VIP)] {
            packet.options = vec![1; words * 4];
            lab.expect_sent(&packet, &packet.clone().to(BACKEND));
        }
    }
    Ok(())
}

/// IPv6 extension headers, alone and together.
#[test]
fn ipv6_extension_headers_are_passed_over() -> Result<()> {
    let lab = lab("extensions")?;
    let options = |number: u8, units: u8| {
        let mut header = vec![0; (usize::from(units) + 1) * 8];
        header[1] = units;
        (number, header)
    };
    // RFC 4302: the length is in words of 4 bytes, less 2.
    let authentication = {
        let mut header = vec![0; 24];
        header[1] = 4;
        (extension::AUTHENTICATION, header)
    };
    for extensions in [
        vec![options(extension::HOP_BY_HOP, 0)],
        vec![options(extension::DESTINATION, 3)],
        vec![authentication.clone()],
        vec![
            options(extension::HOP_BY_HOP, 1),
            options(extension::DESTINATION, 0),
            authentication,
            options(extension::DESTINATION, 2),
        ],
    ] {
        for mut packet in [Packet::tcp(CLIENT6, VIP6, tcp::SYN), Packet::udp(CLIENT6, VIP6)] {
            packet.extensions.clone_from(&extensions);
            lab.expect_sent(&packet, &packet.clone().to(BACKEND6));
        }
    }
    Ok(())
}

/// What the program does not translate, it does not touch.
#[test]
fn what_is_not_for_a_service_is_untouched() -> Result<()> {
    let lab = lab("untouched")?;
    let vlan = Packet { vlan: Some(7), ..Packet::tcp(CLIENT, VIP, tcp::SYN) };
    let later = Packet { fragment: 0x00b9, ..Packet::udp(CLIENT, VIP) };
    let later6 = Packet {
        extensions: vec![(extension::FRAGMENT, vec![0, 0, 0, 0xb8, 0, 0, 0, 9])],
        ..Packet::udp(CLIENT6, VIP6)
    };
    let routed = Packet {
        extensions: vec![(extension::ROUTING, [0, 2, 0, 1, 0, 0, 0, 0].repeat(3))],
        ..Packet::udp(CLIENT6, VIP6)
    };
    let endless = Packet {
        extensions: vec![(extension::HOP_BY_HOP, vec![0; 8]); 9],
        ..Packet::udp(CLIENT6, VIP6)
    };
    let parse = |text: &str| text.parse().expect("an address");
    let icmp = Packet::new(protocol::ICMP, parse(CLIENT), parse(VIP));
    let icmp6 = Packet::new(protocol::ICMPV6, parse(CLIENT6), parse(VIP6));
    let sctp = Packet::new(protocol::SCTP, parse(CLIENT), parse(VIP));
    for packet in [
        Packet::tcp(CLIENT, "10.96.0.10:81", tcp::SYN),
        Packet::tcp(CLIENT, "10.244.9.9:80", tcp::SYN),
        Packet::tcp(CLIENT, VIP, tcp::ACK),
        Packet::tcp(CLIENT, VIP, tcp::SYN | tcp::ACK),
        Packet::tcp(CLIENT, VIP, tcp::RST),
        vlan,
        later,
        later6,
        routed,
        endless,
        icmp,
        icmp6,
        sctp,
    ] {
        expect_untouched(&lab, &packet.build());
    }
    let mut other = Packet::tcp(CLIENT, VIP, tcp::SYN).build();
    other[12..14].copy_from_slice(&0x0806_u16.to_be_bytes());
    expect_untouched(&lab, &other);
    // A version, and a header length, that cannot be.
    for first_byte in [0x44, 0x55, 0x05] {
        let mut other = Packet::tcp(CLIENT, VIP, tcp::SYN).build();
        other[ETHERNET] = first_byte;
        expect_untouched(&lab, &other);
    }
    Ok(())
}

/// Packets that end in the middle of a header pass as they are; nothing is read beyond their end.
#[test]
fn truncated_packets_are_untouched() -> Result<()> {
    let lab = lab("truncated")?;
    let mut with_options = Packet::tcp(CLIENT, VIP, tcp::SYN);
    with_options.options = vec![1; 40];
    let mut with_extension = Packet::udp(CLIENT6, VIP6);
    with_extension.extensions = vec![(extension::HOP_BY_HOP, vec![0; 8])];
    for packet in [
        Packet::tcp(CLIENT, VIP, tcp::SYN),
        Packet::udp(CLIENT, VIP),
        Packet::tcp(CLIENT6, VIP6, tcp::SYN),
        Packet::udp(CLIENT6, VIP6),
        with_options,
        with_extension,
    ] {
        let bytes = packet.build();
        let whole = bytes.len() - packet.payload.len();
        // The kernel runs no program on less than the fixed IP header.
        let fixed = if packet.src.is_ipv4() { 20 } else { 40 };
        for len in ETHERNET + fixed..whole {
            expect_untouched(&lab, &bytes[..len]);
        }
    }
    Ok(())
}

/// O9: garbage passes or is left alone; it makes no flow unless it happens to be a packet to the
/// service.
#[test]
fn garbage_does_no_harm() -> Result<()> {
    let lab = lab("garbage")?;
    let mut random = Random::new(0x5eed);
    for round in 0..20_000 {
        let len = ETHERNET + 40 + (random.number() % 100) as usize;
        let mut bytes = random.bytes(len);
        let kind = if round % 2 == 0 { ethertype::IPV4 } else { ethertype::IPV6 };
        bytes[12..14].copy_from_slice(&kind.to_be_bytes());
        // Half of it aims at the service, so that more than the first check is reached.
        if round % 4 >= 2 {
            let packet = if kind == ethertype::IPV4 {
                Packet::udp(CLIENT, VIP).build()
            } else {
                Packet::udp(CLIENT6, VIP6).build()
            };
            let keep = if kind == ethertype::IPV4 { ETHERNET + 20 } else { ETHERNET + 40 };
            let mut header = packet[..keep].to_vec();
            // Any protocol or next header, any length of the options.
            if kind == ethertype::IPV4 {
                header[ETHERNET + 9] = random.number() as u8;
                header[ETHERNET] = 0x40 | (random.number() & 0xf) as u8;
            } else {
                header[ETHERNET + 6] = [0, 6, 17, 43, 44, 51, 60][(random.number() % 7) as usize];
            }
            bytes[..keep].copy_from_slice(&header);
        }
        let (verdict, out) = lab.send(&bytes)?;
        assert_eq!(verdict, verdict::PASS, "{bytes:02x?}");
        assert_eq!(out.len(), bytes.len());
        let (verdict, out) = lab.receive(&bytes)?;
        assert_eq!(verdict, verdict::PASS, "{bytes:02x?}");
        assert_eq!(out.len(), bytes.len());
    }
    Ok(())
}

/// S2: one address and port may be TCP and UDP with different backends.
#[test]
fn tcp_and_udp_of_one_port_are_different_services() -> Result<()> {
    let mut lab = Lab::new("protocols", false)?;
    lab.service(VIP, proto::TCP, &["10.244.2.1:1001"])?;
    lab.service(VIP, proto::UDP, &["10.244.2.2:1002"])?;
    let tcp = Packet::tcp(CLIENT, VIP, tcp::SYN);
    lab.expect_sent(&tcp, &tcp.clone().to("10.244.2.1:1001"));
    let udp = Packet::udp(CLIENT, VIP);
    lab.expect_sent(&udp, &udp.clone().to("10.244.2.2:1002"));
    Ok(())
}

/// S1: one connection, one backend: a SYN sent again and all that follows go where the first went.
#[test]
fn a_connection_keeps_its_backend() -> Result<()> {
    let mut lab = Lab::new("keeps", false)?;
    let backends: Vec<String> = (1..=40).map(|n| format!("10.244.2.{n}:8080")).collect();
    let backends: Vec<&str> = backends.iter().map(String::as_str).collect();
    lab.service(VIP, proto::TCP, &backends)?;
    let mut used = BTreeSet::new();
    for port in 0..200 {
        let client = format!("10.244.1.5:{}", 40000 + port);
        let syn = Packet::tcp(&client, VIP, tcp::SYN).build();
        let (_, first) = lab.send(&syn)?;
        for flags in [tcp::SYN, tcp::ACK, tcp::PSH | tcp::ACK, tcp::FIN | tcp::ACK] {
            let (_, later) = lab.send(&Packet::tcp(&client, VIP, flags).build())?;
            assert_eq!(first[30..38], later[30..38], "flags {flags:#x}");
        }
        used.insert(first[30..34].to_vec());
    }
    assert!(used.len() > 30, "200 connections used {} of 40 backends", used.len());
    Ok(())
}

/// S15: a connection goes on after its backend left the list, even with none left; a new one is not
/// made.
#[test]
fn a_connection_outlives_its_backends_place_in_the_list() -> Result<()> {
    let mut lab = lab("outlives")?;
    let syn = Packet::tcp(CLIENT, VIP, tcp::SYN);
    lab.expect_sent(&syn, &syn.clone().to(BACKEND));
    lab.service(VIP, proto::TCP, &[])?;
    let ack = Packet::tcp(CLIENT, VIP, tcp::ACK);
    lab.expect_sent(&ack, &ack.clone().to(BACKEND));
    let (verdict, _) = lab.send(&Packet::tcp("10.244.1.5:40001", VIP, tcp::SYN).build())?;
    assert_eq!(verdict, verdict::REDIRECT);
    assert_eq!(lab.count(Counter::PacketReject), 1);
    Ok(())
}

/// A SYN on a connection that has ended begins another one, with any backend.
#[test]
fn a_port_used_again_begins_a_new_connection() -> Result<()> {
    const NEW: &str = "10.244.2.8:8080";
    for ending in ["fin", "rst"] {
        let mut lab = lab("again")?;
        let syn = Packet::tcp(CLIENT, VIP, tcp::SYN);
        lab.expect_sent(&syn, &syn.clone().to(BACKEND));
        // Both backends are in the list: only the ended connection makes it choose anew.
        if ending == "fin" {
            let fin = Packet::tcp(CLIENT, VIP, tcp::FIN | tcp::ACK);
            lab.expect_sent(&fin, &fin.clone().to(BACKEND));
            lab.service(VIP, proto::TCP, &[BACKEND, NEW])?;
            // Only one side is done: the connection keeps its backend.
            for _ in 0..20 {
                lab.expect_sent(&syn, &syn.clone().to(BACKEND));
            }
            let fin = Packet::tcp(BACKEND, CLIENT, tcp::FIN | tcp::ACK);
            lab.expect_received(&fin, &fin.clone().from(VIP));
        } else {
            lab.service(VIP, proto::TCP, &[BACKEND, NEW])?;
            let rst = Packet::tcp(BACKEND, CLIENT, tcp::RST);
            lab.expect_received(&rst, &rst.clone().from(VIP));
        }
        lab.service(VIP, proto::TCP, &[NEW])?;
        lab.expect_sent(&syn, &syn.clone().to(NEW));
        assert_eq!(lab.dataplane.conntrack()?.len(), 2, "{ending}: the old flow is gone");
        assert_eq!(lab.count(Counter::FlowCreated), 2, "{ending}");
    }
    Ok(())
}

/// S22: a datagram flow moves when its backend leaves the list, and only then.
#[test]
fn udp_flow_moves_when_its_backend_goes() -> Result<()> {
    const OTHER: &str = "10.244.2.8:8080";
    let mut lab = lab("udp-moves")?;
    let request = Packet::udp(CLIENT, VIP);
    lab.expect_sent(&request, &request.clone().to(BACKEND));
    // More backends: it stays.
    let many: Vec<String> = (10..60).map(|n| format!("10.244.3.{n}:8080")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).chain([BACKEND]).collect();
    lab.service(VIP, proto::UDP, &many)?;
    for _ in 0..20 {
        lab.expect_sent(&request, &request.clone().to(BACKEND));
    }
    // Its backend goes: it moves.
    lab.service(VIP, proto::UDP, &[OTHER])?;
    lab.expect_sent(&request, &request.clone().to(OTHER));
    let late = Packet::udp(BACKEND, CLIENT);
    lab.expect_received(&late, &late);
    let answer = Packet::udp(OTHER, CLIENT);
    lab.expect_received(&answer, &answer.clone().from(VIP));
    // The last one goes: rejected, not sent to where nobody is.
    lab.service(VIP, proto::UDP, &[])?;
    assert_eq!(lab.send(&request.build())?.0, verdict::REDIRECT);
    assert_eq!(lab.count(Counter::PacketReject), 1);
    // The Service goes.
    lab.remove(VIP, proto::UDP)?;
    lab.expect_sent(&request, &request);
    // And comes back.
    lab.service(VIP, proto::UDP, &[BACKEND])?;
    lab.expect_sent(&request, &request.clone().to(BACKEND));
    Ok(())
}

/// S30: two Services on one backend, the same client port: the second flow has another port at the
/// backend, and their answers are never mixed up.
#[test]
fn flows_that_would_be_the_same_at_the_backend_get_another_port() -> Result<()> {
    for (client, vip, other_vip, backend) in
        [(CLIENT, VIP, "10.96.0.11:80", BACKEND), (CLIENT6, VIP6, "[fd00:96::11]:80", BACKEND6)]
    {
        for proto in [proto::TCP, proto::UDP] {
            let mut lab = lab("clash")?;
            lab.service(other_vip, proto, &[backend])?;
            let packet = |from: &str, to: &str, flags| match proto {
                proto::TCP => Packet::tcp(from, to, flags),
                _ => Packet::udp(from, to),
            };
            let (one, two) = (packet(client, vip, tcp::SYN), packet(client, other_vip, tcp::SYN));
            lab.expect_sent(&one, &one.clone().to(backend));
            let (verdict, sent) = lab.send(&two.build())?;
            assert_eq!(verdict, verdict::PASS);
            let moved = moved(client, &sent)?;
            assert_same(&sent, &two.clone().from(&moved).to(backend).build());
            // Again, and the flow has the same port.
            lab.expect_sent(&two, &two.clone().from(&moved).to(backend));

            let answer = packet(backend, client, tcp::SYN | tcp::ACK);
            lab.expect_received(&answer, &answer.clone().from(vip));
            let answer = packet(backend, &moved, tcp::SYN | tcp::ACK);
            lab.expect_received(&answer, &answer.clone().from(other_vip).to(client));
            assert_eq!(lab.count(Counter::SnatCreated), 1);
            assert_eq!(lab.count(Counter::DropFlowClash), 0);
        }
    }
    Ok(())
}

/// S30: a connection straight to the backend, with the ports of a translated one that is over, is
/// answered by the backend.
#[test]
fn a_direct_connection_supersedes_a_translated_one_that_is_over() -> Result<()> {
    for ending in ["client resets", "backend resets", "both finish"] {
        let lab = lab("supersede")?;
        let syn = Packet::tcp(CLIENT, VIP, tcp::SYN);
        lab.expect_sent(&syn, &syn.clone().to(BACKEND));
        let answer = Packet::tcp(BACKEND, CLIENT, tcp::SYN | tcp::ACK);
        lab.expect_received(&answer, &answer.clone().from(VIP));
        end(&lab, ending, VIP);

        let direct = syn.clone().to(BACKEND);
        lab.expect_sent(&direct, &direct);
        lab.expect_received(&answer, &answer);
        assert_eq!(lab.dataplane.conntrack()?, vec![], "{ending}");
        assert_eq!(lab.dataplane.view().node_state()?.ct_beside, 0);
    }
    Ok(())
}

/// Ends the connection of the client with what it knows as `vip`, of which the backend knows its
/// own address.
fn end(lab: &Lab, ending: &str, vip: &str) {
    let (from_client, from_backend) = match ending {
        "client resets" => (Some(tcp::RST), None),
        "backend resets" => (None, Some(tcp::RST)),
        _ => (Some(tcp::FIN | tcp::ACK), Some(tcp::FIN | tcp::ACK)),
    };
    if let Some(flags) = from_client {
        let last = Packet::tcp(CLIENT, vip, flags);
        lab.expect_sent(&last, &last.clone().to(BACKEND));
    }
    if let Some(flags) = from_backend {
        let last = Packet::tcp(BACKEND, CLIENT, flags);
        lab.expect_received(&last, &last.clone().from(vip));
    }
}

/// S30: a connection straight to the backend, with the ports of a translated one that lives, gets
/// another port there, so that neither hears the other's answers; when it is over, and the translated
/// one too, the next has its own port again.
#[test]
fn a_direct_connection_beside_a_translated_one_gets_another_port() -> Result<()> {
    for (client, vip, backend) in [(CLIENT, VIP, BACKEND), (CLIENT6, VIP6, BACKEND6)] {
        let lab = lab("beside")?;
        let syn = Packet::tcp(client, vip, tcp::SYN);
        lab.expect_sent(&syn, &syn.clone().to(backend));
        let direct = syn.clone().to(backend);
        let (verdict, sent) = lab.send(&direct.build())?;
        assert_eq!(verdict, verdict::PASS);
        let moved = moved(client, &sent)?;
        assert_same(&sent, &direct.clone().from(&moved).build());
        // Again, and what follows: the same port.
        for flags in [tcp::SYN, tcp::ACK, tcp::ACK | tcp::FIN] {
            let next = Packet::tcp(client, backend, flags);
            lab.expect_sent(&next, &next.clone().from(&moved));
        }
        for flags in [tcp::SYN | tcp::ACK, tcp::ACK | tcp::FIN] {
            let answer = Packet::tcp(backend, client, flags);
            lab.expect_received(&answer, &answer.clone().from(vip));
            let answer = answer.to(&moved);
            lab.expect_received(&answer, &answer.clone().to(client));
        }
        // Both are over: of the translated one, the backend has finished, and now the client.
        let last = Packet::tcp(client, vip, tcp::FIN | tcp::ACK);
        lab.expect_sent(&last, &last.clone().to(backend));
        lab.expect_sent(&direct, &direct);
        let answer = Packet::tcp(backend, client, tcp::SYN | tcp::ACK);
        lab.expect_received(&answer, &answer);
        assert_eq!(lab.dataplane.conntrack()?, vec![]);
        assert_eq!(lab.count(Counter::DropFlowClash), 0);
    }
    Ok(())
}

/// A pod that goes takes its flows with it, so that the next pod with its address has none.
#[test]
fn flows_go_with_their_pod() -> Result<()> {
    let mut lab = lab("flows-go")?;
    lab.endpoint("10.244.1.5", endpoint(17))?;
    for client in [CLIENT, "10.244.1.6:40000"] {
        let syn = Packet::tcp(client, VIP, tcp::SYN);
        lab.expect_sent(&syn, &syn.clone().to(BACKEND));
    }
    assert!(lab.dataplane.delete_endpoint(addr("10.244.1.5"))?);
    let left = lab.dataplane.conntrack()?;
    assert_eq!(left.len(), 2, "{left:?}");
    assert!(left.iter().any(|(key, _)| key.src == addr("10.244.1.6")), "{left:?}");
    Ok(())
}

/// The entries that a pass over all flows removes; none is old enough to go by itself.
fn pass(collector: &mut Collector) -> Result<usize> {
    loop {
        if let Some(collected) = collector.step(0, &Timeouts::default())? {
            return Ok(collected.removed);
        }
    }
}

/// S22, S32: where a collector is at work, a pod that goes costs no look through all flows: its own
/// go with the next pass, those of several pods with one. A pod that gets such an address earlier
/// finds no flow of the one before, and keeps those that it opens. What an agent did not come to do,
/// the next one does.
#[test]
fn flows_of_pods_that_went_go_with_the_collectors_pass() -> Result<()> {
    let mut lab = lab("flows-pass")?;
    let dir = tempfile::tempdir()?;
    let leaving = dir.path().join("leaving");
    let mut collector = lab.dataplane.collector(&leaving)?;
    let open = |lab: &mut Lab, pod: &str| -> Result<()> {
        lab.endpoint(pod, endpoint(17))?;
        let syn = Packet::tcp(&format!("{pod}:40000"), VIP, tcp::SYN);
        lab.expect_sent(&syn, &syn.clone().to(BACKEND));
        Ok(())
    };
    let entries = |lab: &Lab| lab.dataplane.conntrack().map(|entries| entries.len());
    let pods = ["10.244.1.5", "10.244.1.6", "10.244.1.7"];
    for pod in pods {
        open(&mut lab, pod)?;
    }
    for pod in &pods[..2] {
        assert!(lab.dataplane.delete_endpoint(addr(pod))?);
    }
    assert_eq!(entries(&lab)?, 6, "nobody looked for them");
    assert_eq!(pass(&mut collector)?, 4);
    assert!(
        lab.dataplane
            .conntrack()?
            .iter()
            .all(|(key, _)| { key.src == addr(pods[2]) || key.dst == addr(pods[2]) })
    );

    assert!(lab.dataplane.delete_endpoint(addr(pods[2]))?);
    assert_eq!(entries(&lab)?, 2);
    lab.endpoint(pods[2], endpoint(18))?;
    assert_eq!(entries(&lab)?, 0, "the address has another pod");
    open(&mut lab, pods[2])?;
    assert_eq!(pass(&mut collector)?, 0, "they are the new one's");

    assert!(lab.dataplane.delete_endpoint(addr(pods[2]))?);
    drop(collector);
    let mut collector = lab.dataplane.collector(&leaving)?;
    assert_eq!(pass(&mut collector)?, 2);
    assert_eq!(entries(&lab)?, 0);
    assert_eq!(std::fs::read_dir(&leaving)?.count(), 0, "nothing is left to do");
    Ok(())
}

/// While no flow was ever translated, what a pod receives is not looked up.
#[test]
fn nothing_is_looked_up_before_the_first_flow() -> Result<()> {
    let lab = lab("unused")?;
    assert_eq!(lab.dataplane.view().node_state()?.ct_used, 0);
    let answer = Packet::tcp(BACKEND, CLIENT, tcp::ACK);
    lab.expect_received(&answer, &answer);
    assert_eq!(lab.count(Counter::PacketReverse), 0);
    Ok(())
}

/// A packet for a pod of this node goes straight into it, one hop older, from the host's side of
/// its interface.
#[test]
fn fast_path_delivers_to_pods_of_this_node() -> Result<()> {
    let mut lab = Lab::new("fast", true)?;
    lab.endpoint("10.244.1.9", endpoint(17))?;
    lab.endpoint("fd00:244:1::9", endpoint(17))?;
    let parse = |text: &str| text.parse().expect("an address");
    let fragment = Packet { fragment: 0x00b9, ..Packet::udp(CLIENT, "10.244.1.9:53") };
    let icmp = Packet::new(protocol::ICMP, parse(CLIENT), parse("10.244.1.9:0"));
    let last_but_one = Packet { hops: 2, ..Packet::udp(CLIENT, "10.244.1.9:53") };
    let most = Packet { hops: 255, ..Packet::udp(CLIENT, "10.244.1.9:53") };
    let packets = [
        Packet::tcp(CLIENT, "10.244.1.9:80", tcp::SYN),
        Packet::udp(CLIENT, "10.244.1.9:53"),
        Packet::tcp(CLIENT6, "[fd00:244:1::9]:80", tcp::ACK),
        Packet::udp(CLIENT6, "[fd00:244:1::9]:53"),
        fragment,
        icmp,
        last_but_one,
        most,
    ];
    for packet in &packets {
        let (verdict, bytes) = lab.send(&packet.build())?;
        assert_eq!(verdict, verdict::REDIRECT, "{packet:?}");
        assert_same(&bytes, &delivered(packet).build());
    }
    assert_eq!(lab.count(Counter::FastPathPod), packets.len() as u64);
    Ok(())
}

/// Every value of the header checksum survives the lost hop.
#[test]
fn fast_path_keeps_every_header_checksum_right() -> Result<()> {
    let mut lab = Lab::new("hops", true)?;
    lab.endpoint("10.244.1.9", endpoint(17))?;
    for n in 0..2000_u32 {
        let hops = (n % 254) as u8 + 2;
        let client = format!("10.{}.{}.{}:99", n % 256, n / 8 % 256, n * 37 % 256);
        let packet = Packet { hops, ..Packet::udp(&client, "10.244.1.9:53") };
        let (_, bytes) = lab.send(&packet.build())?;
        assert_same(&bytes, &delivered(&packet).build());
    }
    Ok(())
}

/// The stack gets what needs it: the last hop, for its ICMP error; tagged frames; other addresses.
#[test]
fn fast_path_leaves_the_rest_to_the_stack() -> Result<()> {
    let mut lab = Lab::new("slow", true)?;
    lab.endpoint("10.244.1.9", endpoint(17))?;
    lab.endpoint("fd00:244:1::9", endpoint(17))?;
    let to_pod = Packet::udp(CLIENT, "10.244.1.9:53");
    for packet in [
        Packet { hops: 1, ..to_pod.clone() },
        Packet { hops: 0, ..to_pod.clone() },
        Packet { hops: 1, ..Packet::udp(CLIENT6, "[fd00:244:1::9]:53") },
        Packet { vlan: Some(3), ..to_pod.clone() },
        to_pod.clone().to("10.244.1.10:53"),
    ] {
        lab.expect_sent(&packet, &packet);
    }
    let off = self::lab("fast-off")?;
    off.expect_sent(&to_pod, &to_pod);
    assert_eq!(lab.count(Counter::FastPathPod), 0);
    Ok(())
}

/// A service whose backend is a pod of this node: translated and delivered at once; the answer,
/// which takes the fast path too, gets the service's address on the way.
#[test]
fn fast_path_translates_both_ways() -> Result<()> {
    for (client, vip, backend) in [(CLIENT, VIP, BACKEND), (CLIENT6, VIP6, BACKEND6)] {
        for request in [Packet::tcp(client, vip, tcp::SYN), Packet::udp(client, vip)] {
            let mut lab = Lab::new("fast-both", true)?;
            lab.service(vip, request.protocol, &[backend])?;
            for pod in [client, backend] {
                let ip = pod.parse::<std::net::SocketAddr>()?.ip().to_string();
                lab.endpoint(&ip, endpoint(17))?;
            }
            let (verdict, bytes) = lab.send(&request.build())?;
            assert_eq!(verdict, verdict::REDIRECT);
            assert_same(&bytes, &delivered(&request.clone().to(backend)).build());

            let answer = Packet {
                tcp_flags: tcp::SYN | tcp::ACK,
                ..request.clone().from(backend).to(client)
            };
            let (verdict, bytes) = lab.send(&answer.build())?;
            assert_eq!(verdict, verdict::REDIRECT);
            assert_same(&bytes, &delivered(&answer.clone().from(vip)).build());
        }
    }
    Ok(())
}

/// A list that is named but missing drops the packet under a name of its own, and the next one
/// finds it again.
#[test]
fn a_missing_list_is_counted_and_heals() -> Result<()> {
    use sluice_plan::MapOp;
    let mut lab = lab("missing")?;
    let (key, slots) = {
        let frontend = lab.tables().frontends[&sluice_tests::kernel::frontend_key(VIP, proto::TCP)];
        let key = sluice_abi::SlotKey { list: frontend.list, chunk: 0 };
        (key, lab.tables().slots[&key])
    };
    lab.apply(&[MapOp::DeleteSlots(key)])?;
    let syn = Packet::tcp(CLIENT, VIP, tcp::SYN);
    assert_eq!(lab.send(&syn.build())?.0, verdict::DROP);
    assert_eq!(lab.count(Counter::BackendMissing), 1);
    lab.apply(&[MapOp::PutSlots(key, slots)])?;
    lab.expect_sent(&syn, &syn.clone().to(BACKEND));
    Ok(())
}

/// Flows that were silent too long, or are over, are collected, both entries together; others stay.
#[test]
fn the_collector_removes_what_is_over() -> Result<()> {
    let mut lab = lab("collector")?;
    let timeouts = Timeouts::default();
    let open = Packet::tcp(CLIENT, VIP, tcp::SYN);
    lab.expect_sent(&open, &open.clone().to(BACKEND));
    let answer = Packet::tcp(BACKEND, CLIENT, tcp::SYN | tcp::ACK);
    lab.expect_received(&answer, &answer.clone().from(VIP));
    let over = Packet::tcp("10.244.1.5:40001", VIP, tcp::SYN);
    lab.expect_sent(&over, &over.clone().to(BACKEND));
    let reset = Packet::tcp(BACKEND, "10.244.1.5:40001", tcp::RST);
    lab.expect_received(&reset, &reset.clone().from(VIP));
    let datagram = Packet::udp(CLIENT, VIP);
    lab.expect_sent(&datagram, &datagram.clone().to(BACKEND));
    let entries = lab.dataplane.conntrack()?;
    assert_eq!(entries.len(), 6);
    let last = entries.iter().map(|(_, entry)| entry.last_seen).max().expect("entries");

    let now = last + 1_000_000_000;
    assert_eq!(lab.dataplane.conntrack_gc(now, &timeouts)?.removed, 0);
    let now = last + 11_000_000_000;
    let collected = lab.dataplane.conntrack_gc(now, &timeouts)?;
    assert_eq!((collected.seen, collected.removed), (6, 2), "the reset one");
    let now = last + 31_000_000_000;
    assert_eq!(lab.dataplane.conntrack_gc(now, &timeouts)?.removed, 2, "the datagram's");
    let left: Vec<(CtKey, CtEntry)> = lab.dataplane.conntrack()?;
    assert!(left.iter().all(|(key, _)| key.proto == proto::TCP), "{left:?}");
    assert!(
        left.iter().all(|(key, _)| key.sport == Be16::new(40000) || key.src == addr("10.244.2.7"))
    );
    let now = last + 86_401_000_000_000;
    assert_eq!(lab.dataplane.conntrack_gc(now, &timeouts)?.removed, 2);
    assert_eq!(lab.dataplane.conntrack()?, vec![]);
    Ok(())
}
