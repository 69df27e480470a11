//! Rejects per packet: what nobody serves is answered at once. Needs root.

use std::time::Instant;

use anyhow::Result;
use sluice_abi::{Counter, proto};
use sluice_tests::{
    frame::{IcmpError, fragments, reset_of},
    kernel::{Lab, assert_same, verdict},
    packet::{Packet, extension, protocol, tcp},
};

const CLIENT: &str = "10.244.1.5:40000";
const VIP: &str = "10.96.0.10:80";
const CLIENT6: &str = "[fd00:244:1::5]:40000";
const VIP6: &str = "[fd00:96::10]:80";
const FAMILIES: [(&str, &str); 2] = [(CLIENT, VIP), (CLIENT6, VIP6)];

/// Bytes that an error quotes at most.
const QUOTE: [usize; 2] = [576 - 20 - 8, 1280 - 40 - 8];

/// Services without backends.
fn lab(label: &str) -> Result<Lab> {
    let mut lab = Lab::new(label, false)?;
    for proto in [proto::TCP, proto::UDP] {
        lab.service(VIP, proto, &[])?;
        lab.service(VIP6, proto, &[])?;
    }
    Ok(lab)
}

/// Demands that the packet be sent back as another one.
#[track_caller]
fn expect_answer(lab: &Lab, packet: &[u8], expected: &[u8]) {
    let before = lab.count(Counter::PacketReject);
    let (verdict, bytes) = lab.send(packet).expect("the program runs");
    assert_eq!(verdict, verdict::REDIRECT);
    assert_same(&bytes, expected);
    assert_eq!(lab.count(Counter::PacketReject), before + 1);
}

/// Demands that the packet be dropped unanswered.
#[track_caller]
fn expect_silence(lab: &Lab, packet: &[u8]) {
    let before = lab.count(Counter::DropNoBackend);
    let (verdict, _) = lab.send(packet).expect("the program runs");
    assert_eq!(verdict, verdict::DROP);
    assert_eq!(lab.count(Counter::DropNoBackend), before + 1);
    assert_eq!(lab.count(Counter::PacketReject), 0);
}

/// Demands that the packet pass as it is.
#[track_caller]
fn expect_untouched(lab: &Lab, packet: &[u8]) {
    let (verdict, bytes) = lab.send(packet).expect("the program runs");
    assert_eq!(verdict, verdict::PASS);
    assert_same(&bytes, packet);
}

/// The answer to a packet that is no TCP: from the address that was asked, quoting what fits.
fn unreachable(packet: &Packet, bytes: &[u8]) -> Vec<u8> {
    let quote = QUOTE[usize::from(packet.src.is_ipv6())];
    let mut frame =
        IcmpError::port_unreachable(bytes, quote).frame(packet.dst.ip(), packet.src.ip());
    (frame.to_mac, frame.from_mac) = (packet.from_mac, packet.to_mac);
    frame.build()
}

/// S16: a TCP connection to a service without backends is reset: the reset acknowledges the SYN and
/// the data that came with it.
#[test]
fn a_syn_to_a_service_without_backends_is_reset() -> Result<()> {
    let lab = lab("reset")?;
    for (client, vip) in FAMILIES {
        for payload in [0, 1, 6, 1400] {
            let mut syn = Packet::tcp(client, vip, tcp::SYN);
            syn.payload = vec![0x5a; payload];
            expect_answer(&lab, &syn.build(), &reset_of(&syn));
        }
    }
    assert_eq!(lab.dataplane.conntrack()?, vec![]);
    Ok(())
}

/// S16: headers beyond the fixed ones are not sent back.
#[test]
fn a_reset_has_neither_options_nor_extension_headers() -> Result<()> {
    let lab = lab("reset-options")?;
    for words in 1..=10 {
        let mut syn = Packet::tcp(CLIENT, VIP, tcp::SYN);
        syn.options = vec![1; words * 4];
        expect_answer(&lab, &syn.build(), &reset_of(&syn));
    }
    let mut syn = Packet::tcp(CLIENT6, VIP6, tcp::SYN);
    syn.extensions =
        vec![(extension::HOP_BY_HOP, vec![0; 8]), (extension::DESTINATION, vec![0; 8])];
    expect_answer(&lab, &syn.build(), &reset_of(&syn));
    Ok(())
}

/// S16: what Ethernet pads a short frame with is not taken for data.
#[test]
fn padding_is_not_acknowledged_and_not_quoted() -> Result<()> {
    let lab = lab("padding")?;
    let mut syn = Packet::tcp(CLIENT, VIP, tcp::SYN);
    syn.payload.clear();
    let mut bytes = syn.build();
    bytes.extend([0; 6]);
    expect_answer(&lab, &bytes, &reset_of(&syn));
    let mut datagram = Packet::udp(CLIENT, VIP);
    datagram.payload = vec![1];
    let mut bytes = datagram.build();
    let expected = unreachable(&datagram, &bytes);
    bytes.extend([0; 17]);
    expect_answer(&lab, &bytes, &expected);
    Ok(())
}

/// S16: a datagram to a service without backends is answered with an ICMP error that quotes as much
/// of it as may be.
#[test]
fn a_datagram_to_a_service_without_backends_is_answered_with_an_icmp_error() -> Result<()> {
    let lab = lab("unreachable")?;
    for (client, vip) in FAMILIES {
        for payload in [0, 1, 2, 3, 4, 15, 16, 100, 519, 520, 521, 1183, 1184, 1185, 1400] {
            let mut datagram = Packet::udp(client, vip);
            datagram.payload = (0..payload).map(|n| (n * 7) as u8).collect();
            let bytes = datagram.build();
            expect_answer(&lab, &bytes, &unreachable(&datagram, &bytes));
            datagram.udp_checksum = client == CLIENT6;
            let bytes = datagram.build();
            expect_answer(&lab, &bytes, &unreachable(&datagram, &bytes));
        }
    }
    let mut datagram = Packet::udp(CLIENT, VIP);
    datagram.options = vec![1; 12];
    let bytes = datagram.build();
    expect_answer(&lab, &bytes, &unreachable(&datagram, &bytes));
    let mut datagram = Packet::udp(CLIENT6, VIP6);
    datagram.extensions = vec![(extension::DESTINATION, vec![0; 8])];
    let bytes = datagram.build();
    expect_answer(&lab, &bytes, &unreachable(&datagram, &bytes));
    Ok(())
}

/// S17: a port that a ClusterIP does not have is rejected, whatever the protocol; elsewhere it is
/// none of ours, and so is a ping.
#[test]
fn a_port_that_a_cluster_ip_does_not_have_is_rejected() -> Result<()> {
    let mut lab = Lab::new("undefined", false)?;
    let parse = |text: &str| text.parse().expect("an address");
    let others = |client: &str, vip: &str| {
        let other = vip.replace("]:80", "]:81").replace(".10:80", ".10:81");
        let mut packets = vec![Packet::tcp(client, &other, tcp::SYN), Packet::udp(client, &other)];
        // SCTP, and GRE.
        for number in [protocol::SCTP, 47] {
            packets.push(Packet::new(number, parse(client), parse(&other)));
        }
        packets
    };
    for (client, vip) in FAMILIES {
        lab.service(vip, proto::TCP, &[&vip.replace("96", "244")])?;
        for packet in others(client, vip) {
            expect_untouched(&lab, &packet.build());
        }
    }
    lab.cluster_ip("10.96.0.10")?;
    lab.cluster_ip("fd00:96::10")?;
    for (client, vip) in FAMILIES {
        for packet in others(client, vip) {
            let bytes = packet.build();
            let expected = if packet.protocol == protocol::TCP {
                reset_of(&packet)
            } else {
                unreachable(&packet, &bytes)
            };
            expect_answer(&lab, &bytes, &expected);
        }
        // A ping, and the port that there is.
        let number = if client == CLIENT { protocol::ICMP } else { protocol::ICMPV6 };
        let mut ping = Packet::new(number, parse(client), parse(vip));
        if client == CLIENT6 {
            ping.payload = vec![0; 8];
        }
        let mut bytes = ping.build();
        let icmp = bytes.len() - ping.payload.len() - 8;
        bytes[icmp] = if client == CLIENT { 8 } else { 128 };
        expect_untouched(&lab, &bytes);
        let (verdict, _) = lab.send(&Packet::tcp(client, vip, tcp::SYN).build())?;
        assert_eq!(verdict, verdict::PASS);
    }
    Ok(())
}

/// S29: segments amid a connection are left to the stack, also where nobody serves the port.
#[test]
fn segments_amid_a_connection_are_not_reset() -> Result<()> {
    let mut lab = lab("amid")?;
    lab.cluster_ip("10.96.0.10")?;
    lab.cluster_ip("fd00:96::10")?;
    for (client, vip) in FAMILIES {
        for target in [vip.to_owned(), vip.replace("80", "81")] {
            for flags in [tcp::ACK, tcp::PSH | tcp::ACK, tcp::SYN | tcp::ACK, tcp::RST, tcp::FIN] {
                expect_untouched(&lab, &Packet::tcp(client, &target, flags).build());
            }
        }
    }
    Ok(())
}

/// S16: no answer goes to more than one host, to the node itself or to nowhere, or is caused by
/// a frame to many (RFC 1122 §3.2.2, RFC 4443 §2.4).
#[test]
fn what_was_not_sent_by_one_host_to_one_host_is_not_answered() -> Result<()> {
    let lab = lab("silence")?;
    for source in ["0.0.0.0:1", "127.0.0.1:1", "224.0.0.1:1", "240.0.0.1:1", "255.255.255.255:1"] {
        expect_silence(&lab, &Packet::udp(source, VIP).build());
        expect_silence(&lab, &Packet::tcp(source, VIP, tcp::SYN).build());
    }
    for source in ["[::]:1", "[::1]:1", "[ff02::1]:1"] {
        expect_silence(&lab, &Packet::udp(source, VIP6).build());
        expect_silence(&lab, &Packet::tcp(source, VIP6, tcp::SYN).build());
    }
    for (client, vip) in FAMILIES {
        for mac in [[0xff; 6], [0x01, 0, 0x5e, 0, 0, 1]] {
            let datagram = Packet { to_mac: mac, ..Packet::udp(client, vip) };
            expect_silence(&lab, &datagram.build());
            let syn = Packet { to_mac: mac, ..Packet::tcp(client, vip, tcp::SYN) };
            expect_silence(&lab, &syn.build());
        }
    }
    Ok(())
}

/// S16, S27: of a datagram in fragments, the first one is answered and the others are not.
#[test]
fn only_the_first_fragment_is_answered() -> Result<()> {
    let mut lab = lab("reject-fragments")?;
    lab.cluster_ip("10.96.0.10")?;
    lab.cluster_ip("fd00:96::10")?;
    for (client, vip) in FAMILIES {
        let datagram = Packet { payload: vec![3; 2000], ..Packet::udp(client, vip) };
        let parts = fragments(&datagram.build(), 800, 77);
        let before = lab.count(Counter::FragmentUnknown);
        expect_answer(&lab, &parts[0], &unreachable(&datagram, &parts[0]));
        for part in &parts[1..] {
            let (verdict, _) = lab.send(part)?;
            assert_eq!(verdict, verdict::DROP);
        }
        assert_eq!(lab.count(Counter::FragmentUnknown), before + 2);
    }
    Ok(())
}

/// S16: ICMP errors are limited, so that the node is no tool to flood another; resets are not.
#[test]
fn icmp_errors_are_limited_and_resets_are_not() -> Result<()> {
    const ROUNDS: u64 = 3_000;
    let lab = lab("limit")?;
    let datagram = Packet::udp(CLIENT, VIP).build();
    let start = Instant::now();
    let mut answered = 0;
    for _ in 0..ROUNDS {
        let (verdict, _) = lab.send(&datagram)?;
        answered += u64::from(verdict == verdict::REDIRECT);
    }
    // A hundred at once, then one a millisecond, for each CPU this thread was on. The clock of the
    // programs may be a tick ahead of what was measured.
    let elapsed = u64::try_from(start.elapsed().as_millis())? + 20;
    let cpus = u64::try_from(std::thread::available_parallelism()?.get())?;
    assert!(answered >= 100, "{answered} were answered");
    assert!(answered <= (100 + elapsed) * cpus, "{answered} were answered in {elapsed} ms");
    assert_eq!(lab.count(Counter::DropNoBackend), ROUNDS - answered);
    let syn = Packet::tcp(CLIENT, VIP, tcp::SYN);
    for _ in 0..ROUNDS {
        expect_answer(&lab, &syn.build(), &reset_of(&syn));
    }
    Ok(())
}
