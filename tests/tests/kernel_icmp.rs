//! ICMP errors about translated packets. Needs root.

use std::net::{IpAddr, SocketAddr};

use anyhow::Result;
use sluice_abi::{Counter, Endpoint, proto};
use sluice_tests::{
    frame::{Frame, IcmpError},
    kernel::{Lab, assert_same, verdict},
    packet::{ETHERNET, Packet, Random, extension, tcp},
};

const CLIENT: &str = "10.244.1.5:40000";
const VIP: &str = "10.96.0.10:80";
const BACKEND: &str = "10.244.2.7:8080";
const ROUTER: &str = "10.0.0.9";
const CLIENT6: &str = "[fd00:244:1::5]:40000";
const VIP6: &str = "[fd00:96::10]:80";
const BACKEND6: &str = "[fd00:244:2::7]:8080";
const ROUTER6: &str = "fd00::9";
const FAMILIES: [[&str; 4]; 2] =
    [[CLIENT, VIP, BACKEND, ROUTER], [CLIENT6, VIP6, BACKEND6, ROUTER6]];

/// Errors of each family: type and code.
const KINDS: [[(u8, u8); 4]; 2] =
    [[(3, 3), (3, 4), (11, 0), (12, 0)], [(1, 4), (2, 0), (3, 0), (4, 0)]];

/// Quotations: the least that RFC 792 demands, those that end before and behind TCP's checksum, a whole header,
/// and all there is.
const QUOTES: [usize; 5] = [8, 16, 18, 20, 1000];

fn ip(text: &str) -> IpAddr {
    match text.parse::<SocketAddr>() {
        Ok(address) => address.ip(),
        Err(_) => text.parse().unwrap_or_else(|error| panic!("{text}: {error}")),
    }
}

/// A node with a flow of each protocol and family.
fn lab(label: &str) -> Result<Lab> {
    let mut lab = Lab::new(label, false)?;
    for proto in [proto::TCP, proto::UDP] {
        lab.service(VIP, proto, &[BACKEND])?;
        lab.service(VIP6, proto, &[BACKEND6])?;
    }
    for [client, vip, backend, _] in FAMILIES {
        for packet in [Packet::tcp(client, vip, tcp::SYN), Packet::udp(client, vip)] {
            lab.expect_sent(&packet, &packet.clone().to(backend));
        }
    }
    Ok(lab)
}

/// The packets of a flow between two addresses, as somebody on the way quotes them.
fn packets(src: &str, dst: &str) -> Vec<Packet> {
    let mut bare = Packet::udp(src, dst);
    bare.udp_checksum = false;
    let mut packets = vec![Packet::tcp(src, dst, tcp::ACK), Packet::udp(src, dst), bare];
    for packet in &mut packets {
        packet.hops = 61;
    }
    packets
}

fn error(packet: &Packet, (kind, code): (u8, u8), quote: usize) -> IcmpError {
    let header = if packet.src.is_ipv4() { 20 + packet.options.len() } else { 40 };
    let bytes = packet.build();
    let quote = bytes[ETHERNET..].iter().copied().take(header + quote).collect();
    // The word after the checksum is none of our business: MTU, pointer, unused.
    IcmpError { kind, code, rest: 1280, quote }
}

#[track_caller]
fn expect(outcome: Result<(u32, Vec<u8>)>, expected: &[u8]) {
    let (verdict, bytes) = outcome.expect("the program runs");
    assert_eq!(verdict, verdict::PASS);
    assert_same(&bytes, expected);
}

/// S28: an error about a packet to a service, from the backend or a router on the way to it, reaches
/// the client with the packet that the client sent. It comes from the service if it came from the
/// backend, and from the router if it came from there.
#[test]
fn errors_about_packets_to_a_service_reach_the_client() -> Result<()> {
    let lab = lab("icmp-client")?;
    let mut count = 0;
    for (family, [client, vip, backend, router]) in FAMILIES.into_iter().enumerate() {
        for packet in packets(client, backend) {
            for kind in KINDS[family] {
                for quote in QUOTES {
                    for (from, seen) in [(backend, vip), (router, router)] {
                        let told = error(&packet, kind, quote).frame(ip(from), ip(client));
                        let sent = packet.clone().to(vip);
                        let heard = error(&sent, kind, quote).frame(ip(seen), ip(client));
                        expect(lab.receive(&told.build()), &heard.build());
                        count += 1;
                    }
                }
            }
        }
    }
    assert_eq!(lab.count(Counter::IcmpTranslated), count);
    Ok(())
}

/// S28: an error about an answer of a service, from the client or a router on the way to it, reaches
/// the backend with the packet that the backend sent.
#[test]
fn errors_about_answers_reach_the_backend() -> Result<()> {
    let lab = lab("icmp-backend")?;
    for (family, [client, vip, backend, router]) in FAMILIES.into_iter().enumerate() {
        for packet in packets(vip, client) {
            for kind in KINDS[family] {
                for quote in QUOTES {
                    for from in [client, router] {
                        let told = error(&packet, kind, quote).frame(ip(from), ip(vip));
                        let sent = packet.clone().from(backend);
                        let heard = error(&sent, kind, quote).frame(ip(from), ip(backend));
                        expect(lab.send(&told.build()), &heard.build());
                    }
                }
            }
        }
    }
    Ok(())
}

/// S28: options and extension headers in what is quoted are passed over.
#[test]
fn quoted_options_and_extension_headers_are_passed_over() -> Result<()> {
    let lab = lab("icmp-options")?;
    for mut packet in packets(CLIENT, BACKEND) {
        packet.options = vec![1; 12];
        let told = error(&packet, (3, 4), 1000).frame(ip(ROUTER), ip(CLIENT));
        let heard = error(&packet.clone().to(VIP), (3, 4), 1000).frame(ip(ROUTER), ip(CLIENT));
        expect(lab.receive(&told.build()), &heard.build());
    }
    for mut packet in packets(CLIENT6, BACKEND6) {
        packet.extensions =
            vec![(extension::HOP_BY_HOP, vec![0; 8]), (extension::DESTINATION, vec![0; 8])];
        let told = error(&packet, (2, 0), 1000).frame(ip(ROUTER6), ip(CLIENT6));
        let heard = error(&packet.clone().to(VIP6), (2, 0), 1000).frame(ip(ROUTER6), ip(CLIENT6));
        expect(lab.receive(&told.build()), &heard.build());
    }
    Ok(())
}

/// S28: checksums are right whatever is quoted.
#[test]
fn checksums_of_errors_stay_right() -> Result<()> {
    let mut lab = Lab::new("icmp-checksums", false)?;
    let mut random = Random::new(11);
    for round in 0..60_usize {
        let n = random.number();
        let vip = format!("10.96.{}.{}:{}", n as u8, (n >> 8) as u8, (n >> 16) as u16 | 1);
        let backend = format!("10.{}.255.{}:{}", (n >> 32) as u8, (n >> 40) as u8, (n >> 48) | 1);
        lab.service(&vip, proto::UDP, &[&backend])?;
        let mut packet = Packet::udp(CLIENT, &vip);
        packet.payload = random.bytes(round);
        lab.expect_sent(&packet, &packet.clone().to(&backend));
        let told = error(&packet.clone().to(&backend), (3, 4), 1000).frame(ip(ROUTER), ip(CLIENT));
        let heard = error(&packet, (3, 4), 1000).frame(ip(ROUTER), ip(CLIENT));
        expect(lab.receive(&told.build()), &heard.build());
    }
    Ok(())
}

/// S28: the fast path takes a backend's errors to the client, and a client's to the backend.
#[test]
fn errors_take_the_fast_path() -> Result<()> {
    let mut lab = Lab::new("icmp-fast", true)?;
    let endpoint = |mac: u8| Endpoint {
        ifindex: 1,
        id: 1,
        mac: [2, 0, 0, 0, 3, mac],
        host_mac: [2, 0, 0, 0, 4, mac],
        flags: 0,
        ..Endpoint::default()
    };
    let delivered = |frame: Frame, mac: u8| Frame {
        to_mac: endpoint(mac).mac,
        from_mac: endpoint(mac).host_mac,
        hops: frame.hops - 1,
        ..frame
    };
    for (family, [client, vip, backend, _]) in FAMILIES.into_iter().enumerate() {
        lab.service(vip, proto::UDP, &[backend])?;
        lab.endpoint(&ip(client).to_string(), endpoint(1))?;
        lab.endpoint(&ip(backend).to_string(), endpoint(2))?;
        let (verdict, _) = lab.send(&Packet::udp(client, vip).build())?;
        assert_eq!(verdict, verdict::REDIRECT);
        let kind = KINDS[family][0];
        let cases = [
            // Nobody listens at the backend's port.
            (
                error(&Packet::udp(client, backend), kind, 1000).frame(ip(backend), ip(client)),
                error(&Packet::udp(client, vip), kind, 1000).frame(ip(vip), ip(client)),
                1,
            ),
            // The client has closed its socket.
            (
                error(&Packet::udp(vip, client), kind, 1000).frame(ip(client), ip(vip)),
                error(&Packet::udp(backend, client), kind, 1000).frame(ip(client), ip(backend)),
                2,
            ),
        ];
        for (told, heard, mac) in cases {
            let (verdict, bytes) = lab.send(&told.build())?;
            assert_eq!(verdict, verdict::REDIRECT);
            assert_same(&bytes, &delivered(heard, mac).build());
        }
    }
    Ok(())
}

/// What is no error, or about no flow of ours, or to somebody else than who sent the packet, passes
/// as it is; so does what is cut off anywhere.
#[test]
fn other_icmp_messages_are_untouched() -> Result<()> {
    let lab = lab("icmp-untouched")?;
    let untouched = |bytes: &[u8]| {
        expect(lab.receive(bytes), bytes);
        expect(lab.send(bytes), bytes);
    };
    for (family, [client, _, backend, router]) in FAMILIES.into_iter().enumerate() {
        let packet = Packet::udp(client, backend);
        // Echo, redirect, neighbour discovery.
        for kind in if family == 0 { [0, 5, 8, 13] } else { [128, 129, 135, 137] } {
            untouched(&error(&packet, (kind, 0), 1000).frame(ip(router), ip(client)).build());
        }
        let kind = KINDS[family][0];
        let other = packet.clone().from(if family == 0 {
            "10.244.1.5:40001"
        } else {
            "[fd00:244:1::5]:40001"
        });
        untouched(&error(&other, kind, 1000).frame(ip(router), ip(client)).build());
        untouched(&error(&packet, kind, 1000).frame(ip(router), ip(router)).build());
        let whole = error(&packet, kind, 8);
        for len in 0..whole.quote.len() - 4 {
            let cut = IcmpError { quote: whole.quote[..len].to_vec(), ..whole.clone() };
            untouched(&cut.frame(ip(router), ip(client)).build());
        }
    }
    // A fragment other than the first has no ports to quote.
    let later = Packet { fragment: 0x00b9, ..Packet::udp(CLIENT, BACKEND) };
    untouched(&error(&later, (3, 4), 1000).frame(ip(ROUTER), ip(CLIENT)).build());
    assert_eq!(lab.count(Counter::IcmpTranslated), 0);
    Ok(())
}

/// O9: garbage in the place of a quotation does no harm.
#[test]
fn garbage_in_errors_does_no_harm() -> Result<()> {
    let lab = lab("icmp-garbage")?;
    let mut random = Random::new(0x1c3b);
    for round in 0..10_000 {
        let family = round % 2;
        let [client, vip, backend, router] = FAMILIES[family];
        let kind = KINDS[family][random.number() as usize % 4];
        let mut told = error(&Packet::udp(client, backend), kind, 1000);
        let keep = random.number() as usize % (told.quote.len() + 1);
        told.quote.truncate(keep);
        let len = random.number() as usize % 80;
        told.quote.extend(random.bytes(len));
        for to in [client, vip] {
            let bytes = told.frame(ip(router), ip(to)).build();
            for (verdict, out) in [lab.send(&bytes)?, lab.receive(&bytes)?] {
                assert_eq!(verdict, verdict::PASS);
                assert_eq!(out.len(), bytes.len());
            }
        }
    }
    Ok(())
}
