//! Fragmented datagrams to and from services, translated per packet. Needs root.

use anyhow::Result;
use sluice_abi::{Counter, Endpoint, proto};
use sluice_tests::{
    frame::fragments,
    kernel::{Lab, assert_same, verdict},
    packet::{ETHERNET, Packet, extension, tcp},
};

const CLIENT: &str = "10.244.1.5:40000";
const VIP: &str = "10.96.0.10:80";
const BACKEND: &str = "10.244.2.7:8080";
const CLIENT6: &str = "[fd00:244:1::5]:40000";
const VIP6: &str = "[fd00:96::10]:80";
const BACKEND6: &str = "[fd00:244:2::7]:8080";
const FAMILIES: [(&str, &str, &str); 2] = [(CLIENT, VIP, BACKEND), (CLIENT6, VIP6, BACKEND6)];

fn lab(label: &str) -> Result<Lab> {
    let mut lab = Lab::new(label, false)?;
    for proto in [proto::TCP, proto::UDP] {
        lab.service(VIP, proto, &[BACKEND])?;
        lab.service(VIP6, proto, &[BACKEND6])?;
    }
    Ok(lab)
}

fn datagram(client: &str, server: &str, len: usize) -> Packet {
    let payload = (0..len).map(|n| (n * 31) as u8).collect();
    Packet { fragment: 0, payload, ..Packet::udp(client, server) }
}

/// Demands that fragments pass, changed into others.
#[track_caller]
fn expect(
    run: impl Fn(&[u8]) -> Result<(u32, Vec<u8>)>,
    parts: &[Vec<u8>],
    expected: &[Vec<u8>],
    with: u32,
) {
    assert_eq!(parts.len(), expected.len());
    for (part, expected) in parts.iter().zip(expected) {
        let (verdict, bytes) = run(part).expect("the program runs");
        assert_eq!(verdict, with);
        assert_same(&bytes, expected);
    }
}

/// S27: every fragment of a datagram goes to the backend, and every fragment of the answer seems to
/// come from the service; put together again, the checksums are right.
#[test]
fn fragments_to_a_service_and_back_are_translated() -> Result<()> {
    let lab = lab("fragments")?;
    for (client, vip, backend) in FAMILIES {
        for (id, len) in [(1, 2000), (2, 4000), (3, 1473), (4, 60_000)] {
            let request = datagram(client, vip, len);
            let translated = request.clone().to(backend);
            expect(
                |bytes| lab.send(bytes),
                &fragments(&request.build(), 1400, id),
                &fragments(&translated.build(), 1400, id),
                verdict::PASS,
            );
            let answer = datagram(backend, client, len);
            let translated = answer.clone().from(vip);
            expect(
                |bytes| lab.receive(bytes),
                &fragments(&answer.build(), 1400, id),
                &fragments(&translated.build(), 1400, id),
                verdict::PASS,
            );
        }
    }
    assert_eq!(lab.count(Counter::FragmentUnknown), 0);
    assert_eq!(lab.count(Counter::FlowCreated), 2);
    Ok(())
}

/// S27: a datagram arrives whole at one backend of many, also where the list of backends changes
/// while its fragments are on their way.
#[test]
fn all_fragments_go_to_one_backend() -> Result<()> {
    let mut lab = Lab::new("fragments-one", false)?;
    let backends: Vec<String> = (1..=40).map(|n| format!("10.244.2.{n}:8080")).collect();
    let backends: Vec<&str> = backends.iter().map(String::as_str).collect();
    for n in 0..40_u16 {
        lab.service(VIP, proto::UDP, &backends)?;
        let client = format!("10.244.1.5:{}", 40_000 + n);
        let parts = fragments(&datagram(&client, VIP, 4000).build(), 800, u32::from(n));
        let mut to = Vec::new();
        for (at, part) in parts.iter().enumerate() {
            if at == 2 {
                lab.service(VIP, proto::UDP, &["10.244.3.1:8080"])?;
            }
            let (verdict, bytes) = lab.send(part)?;
            assert_eq!(verdict, verdict::PASS);
            to.push(bytes[ETHERNET + 16..ETHERNET + 20].to_vec());
        }
        assert!(to.iter().all(|addr| *addr == to[0]), "{to:?}");
        assert_ne!(to[0], [10, 96, 0, 10]);
    }
    Ok(())
}

/// S27: datagrams whose fragments are on their way at the same time are told apart by their
/// identification.
#[test]
fn datagrams_that_overlap_are_told_apart() -> Result<()> {
    let mut lab = lab("fragments-overlap")?;
    let other = "10.244.2.9:9090";
    lab.service("10.96.0.10:90", proto::UDP, &[other])?;
    let (a, b) = (datagram(CLIENT, VIP, 3000), datagram(CLIENT, "10.96.0.10:90", 3000));
    let (from_a, from_b) = (fragments(&a.build(), 1400, 5), fragments(&b.build(), 1400, 6));
    let to_a = fragments(&a.clone().to(BACKEND).build(), 1400, 5);
    let to_b = fragments(&b.clone().to(other).build(), 1400, 6);
    for n in 0..from_a.len() {
        expect(|bytes| lab.send(bytes), &from_a[n..=n], &to_a[n..=n], verdict::PASS);
        expect(|bytes| lab.send(bytes), &from_b[n..=n], &to_b[n..=n], verdict::PASS);
    }
    Ok(())
}

/// S27: TCP in fragments is translated too.
#[test]
fn a_segment_in_fragments_is_translated() -> Result<()> {
    let lab = lab("fragments-tcp")?;
    for (client, vip, backend) in FAMILIES {
        let syn = Packet::tcp(client, vip, tcp::SYN);
        lab.expect_sent(&syn, &syn.clone().to(backend));
        let mut segment = Packet::tcp(client, vip, tcp::PSH | tcp::ACK);
        segment.fragment = 0;
        segment.payload = vec![9; 2000];
        expect(
            |bytes| lab.send(bytes),
            &fragments(&segment.build(), 1000, 8),
            &fragments(&segment.clone().to(backend).build(), 1000, 8),
            verdict::PASS,
        );
    }
    Ok(())
}

/// S27: a fragment that overtakes the first one is dropped and counted at a ClusterIP, whose
/// datagrams nobody else could take, and passes as it is elsewhere.
#[test]
fn fragments_before_the_first_are_dropped_at_a_cluster_ip_only() -> Result<()> {
    let mut lab = lab("fragments-orphan")?;
    let orphans: Vec<Vec<u8>> = FAMILIES
        .iter()
        .map(|(client, vip, _)| fragments(&datagram(client, vip, 3000).build(), 1400, 3).remove(1))
        .collect();
    for orphan in &orphans {
        let (verdict, bytes) = lab.send(orphan)?;
        assert_eq!(verdict, verdict::PASS);
        assert_same(&bytes, orphan);
    }
    lab.cluster_ip("10.96.0.10")?;
    lab.cluster_ip("fd00:96::10")?;
    for orphan in &orphans {
        let (verdict, _) = lab.send(orphan)?;
        assert_eq!(verdict, verdict::DROP);
    }
    assert_eq!(lab.count(Counter::FragmentUnknown), 2);
    assert_eq!(lab.dataplane.conntrack()?, vec![]);
    Ok(())
}

/// S27: fragments that are not for a service pass as they are, even while flows are translated.
#[test]
fn fragments_of_others_are_untouched() -> Result<()> {
    let lab = lab("fragments-others")?;
    lab.expect_sent(&Packet::udp(CLIENT, VIP), &Packet::udp(CLIENT, BACKEND));
    for (from, to) in [(CLIENT, "10.244.9.9:80"), (CLIENT6, "[fd00:244:9::9]:80")] {
        for part in fragments(&datagram(from, to, 4000).build(), 1400, 4) {
            for (verdict, bytes) in [lab.send(&part)?, lab.receive(&part)?] {
                assert_eq!(verdict, verdict::PASS);
                assert_same(&bytes, &part);
            }
        }
    }
    assert_eq!(lab.count(Counter::FragmentUnknown), 0);
    Ok(())
}

/// S27: an IPv6 datagram in one piece may have a fragment header (RFC 6946), and fragments may have
/// extension headers before theirs; with one behind it they are left alone.
#[test]
fn fragment_headers_among_other_extension_headers() -> Result<()> {
    let lab = lab("fragments-extensions")?;
    let fragment = |offset: u16, more: bool| {
        let mut header = vec![0, 0];
        header.extend((offset << 3 | u16::from(more)).to_be_bytes());
        header.extend(9_u32.to_be_bytes());
        (extension::FRAGMENT, header)
    };
    let options = (extension::HOP_BY_HOP, vec![0; 8]);
    for extensions in [vec![fragment(0, false)], vec![options.clone(), fragment(0, false)]] {
        let packet = Packet { extensions, ..Packet::udp(CLIENT6, VIP6) };
        lab.expect_sent(&packet, &packet.clone().to(BACKEND6));
    }
    let first = Packet {
        extensions: vec![options.clone(), fragment(0, true)],
        payload: vec![1; 24],
        ..Packet::udp(CLIENT6, VIP6)
    };
    lab.expect_sent(&first, &first.clone().to(BACKEND6));
    let later = Packet { extensions: vec![options, fragment(4, false)], ..first.clone() };
    let (verdict, bytes) = lab.send(&later.build())?;
    assert_eq!(verdict, verdict::PASS);
    let mut expected = later.build();
    expected[ETHERNET + 24..ETHERNET + 40].copy_from_slice(&first.to(BACKEND6).build()[38..54]);
    assert_same(&bytes, &expected);

    let behind = Packet {
        extensions: vec![fragment(0, true), (extension::DESTINATION, vec![0; 8])],
        ..Packet::udp(CLIENT6, VIP6)
    };
    let (verdict, bytes) = lab.send(&behind.build())?;
    assert_eq!(verdict, verdict::PASS);
    assert_same(&bytes, &behind.build());
    Ok(())
}

/// S27: the fast path delivers every fragment, translated both ways.
#[test]
fn fragments_take_the_fast_path() -> Result<()> {
    let mut lab = Lab::new("fragments-fast", true)?;
    let endpoint = |mac: u8| Endpoint {
        ifindex: 1,
        id: 1,
        mac: [2, 0, 0, 0, 3, mac],
        host_mac: [2, 0, 0, 0, 4, mac],
        flags: 0,
        ..Endpoint::default()
    };
    lab.service(VIP, proto::UDP, &[BACKEND])?;
    lab.service(VIP6, proto::UDP, &[BACKEND6])?;
    for (address, mac) in
        [("10.244.1.5", 1), ("10.244.2.7", 2), ("fd00:244:1::5", 1), ("fd00:244:2::7", 2)]
    {
        lab.endpoint(address, endpoint(mac))?;
    }
    let delivered = |packet: Packet, mac: u8| Packet {
        to_mac: endpoint(mac).mac,
        from_mac: endpoint(mac).host_mac,
        hops: packet.hops - 1,
        ..packet
    };
    for (client, vip, backend) in FAMILIES {
        let request = datagram(client, vip, 5000);
        expect(
            |bytes| lab.send(bytes),
            &fragments(&request.build(), 1400, 1),
            &fragments(&delivered(request.clone().to(backend), 2).build(), 1400, 1),
            verdict::REDIRECT,
        );
        let answer = datagram(backend, client, 5000);
        expect(
            |bytes| lab.send(bytes),
            &fragments(&answer.build(), 1400, 1),
            &fragments(&delivered(answer.clone().from(vip), 1).build(), 1400, 1),
            verdict::REDIRECT,
        );
    }
    Ok(())
}
