//! Network policies in the programs: packets built by hand, from a pod whose interface is this
//! namespace's loopback (that is where a test run has its packets) to one behind another interface.
//! Needs root.

use anyhow::Result;
use sluice_abi::{
    Be16, CidrKey, Counter, Direction, DropEvent, DropReason, Endpoint, FrontendFlags, NodeAddrs,
    PolicyKey, PolicySets, maps, proto,
};
use sluice_plan::PolicyOp;
use sluice_proxy::dataplane::{Dataplane, Drops, PolicyError};
use sluice_tests::{
    frame::{Frame, IcmpError, fragments},
    kernel::{Lab, SMALL, addr, verdict},
    packet::{Packet, tcp},
};

/// The pod that sends, and the one that gets what it sends.
const HERE: u32 = 1;
const THERE: u32 = 77;

/// Addresses of the pods and of somebody outside, of each family.
struct Family {
    here: &'static str,
    there: &'static str,
    outside: &'static str,
    vip: &'static str,
    len: u8,
}

const FAMILIES: [Family; 2] = [
    Family {
        here: "10.244.1.2",
        there: "10.244.1.3",
        outside: "203.0.113.7",
        vip: "10.96.0.10",
        len: 32,
    },
    Family {
        here: "fd00:244:1::2",
        there: "fd00:244:1::3",
        outside: "2001:db8:7::7",
        vip: "fd00:96::10",
        len: 128,
    },
];

/// Identities of the pods and of whom is outside; nobody has the last.
const ID_HERE: u32 = 11;
const ID_THERE: u32 = 12;
const ID_OUTSIDE: u32 = 13;
const NOBODY: u32 = 99;

fn at(address: &str, port: u16) -> String {
    if address.contains(':') { format!("[{address}]:{port}") } else { format!("{address}:{port}") }
}

fn allow(set: u32, identity: u32, proto: u8, port: u16, prefix_len: u32) -> PolicyOp {
    PolicyOp::PutRule(PolicyKey {
        prefix_len,
        set,
        identity,
        proto,
        reserved: 0,
        port: Be16::new(port),
    })
}

/// One port.
fn port(set: u32, identity: u32, proto: u8, port: u16) -> PolicyOp {
    allow(set, identity, proto, port, PolicyKey::PORT)
}

/// Everything.
fn all(set: u32, identity: u32) -> PolicyOp {
    allow(set, identity, 0, 0, PolicyKey::ANY)
}

fn take_back(op: &PolicyOp) -> PolicyOp {
    match *op {
        PolicyOp::PutRule(key) => PolicyOp::DeleteRule(key),
        ref other => panic!("{other} is no rule"),
    }
}

fn sets(ifindex: u32, ingress: u32, egress: u32) -> PolicyOp {
    PolicyOp::PutSets(ifindex, PolicySets { ingress, egress })
}

const OPEN: u32 = PolicySets::OPEN;
const CLOSED: u32 = PolicySets::CLOSED;

/// Two pods of a node with the fast path on, with their identities.
fn lab(label: &str) -> Result<Lab> {
    let mut lab = Lab::new(label, true)?;
    for family in FAMILIES {
        for (address, ifindex, identity) in [
            (family.here, HERE, ID_HERE),
            (family.there, THERE, ID_THERE),
            (family.outside, 0, ID_OUTSIDE),
        ] {
            let key = CidrKey::new(addr(address), family.len);
            lab.dataplane.apply_policy(&[PolicyOp::PutIdentity(key, identity)])?;
            if ifindex != 0 {
                let (mac, host_mac) = ([2, 0, 0, 0, 1, 1], [2, 0, 0, 0, 2, 1]);
                let endpoint =
                    Endpoint { ifindex, id: ifindex, mac, host_mac, ..Endpoint::default() };
                lab.endpoint(address, endpoint)?;
            }
        }
    }
    Ok(lab)
}

/// Whether what a pod sends passes.
#[track_caller]
fn sent(lab: &Lab, packet: &[u8]) -> bool {
    let (verdict, _) = lab.send(packet).expect("the program runs");
    verdict != verdict::DROP
}

/// Whether what comes from outside passes.
#[track_caller]
fn arrived(lab: &Lab, packet: &[u8]) -> bool {
    let (verdict, _) = lab.arrive(packet).expect("the program runs");
    verdict != verdict::DROP
}

fn syn(src: &str, dst: &str) -> Vec<u8> {
    Packet::tcp(src, dst, tcp::SYN).build()
}

fn ack(src: &str, dst: &str) -> Vec<u8> {
    Packet::tcp(src, dst, tcp::ACK).build()
}

fn udp(src: &str, dst: &str) -> Vec<u8> {
    Packet::udp(src, dst).build()
}

/// An ICMP message of that type about nothing, with an identifier.
fn icmp(kind: u8, src: &str, dst: &str, identifier: u16) -> Frame {
    let rest = u32::from(identifier) << 16 | 1;
    let (src, dst) = (addr(src).to_ip(), addr(dst).to_ip());
    IcmpError { kind, code: 0, rest, quote: vec![7; 16] }.frame(src, dst)
}

const fn echo(family: &Family) -> (u8, u8) {
    if family.len == 32 { (8, 0) } else { (128, 129) }
}

/// P1, P3: only what a set of rules allows passes, by identity, protocol and port, in both directions.
#[test]
fn only_what_a_set_allows_passes() -> Result<()> {
    let mut lab = lab("policy-sets")?;
    for family in &FAMILIES {
        let from = at(family.here, 40_000);
        let to = |port| at(family.there, port);
        for (n, (ingress, peer)) in [(true, ID_HERE), (false, ID_THERE)].into_iter().enumerate() {
            let set = 5 + u32::try_from(n)?;
            let (mine, theirs) = if ingress { (OPEN, set) } else { (set, OPEN) };
            lab.dataplane.apply_policy(&[
                port(set, peer, proto::TCP, 80),
                // 8080 to 8095.
                allow(set, peer, proto::TCP, 8080, PolicyKey::PROTO + 12),
                allow(set, peer, proto::UDP, 0, PolicyKey::PROTO),
                port(set, PolicyKey::ANYBODY, proto::SCTP, 132),
                port(set, NOBODY, proto::TCP, 81),
                sets(HERE, OPEN, mine),
                sets(THERE, theirs, OPEN),
            ])?;
            for (port, passes) in
                [(80, true), (8080, true), (8095, true), (81, false), (8079, false), (8096, false)]
            {
                assert_eq!(sent(&lab, &syn(&from, &to(port))), passes, "{} TCP {port}", to(port));
            }
            assert!(sent(&lab, &udp(&from, &to(53))));
            assert!(sent(&lab, &Packet::sctp(&from, &to(132), 1).build()));
            assert!(!sent(&lab, &Packet::sctp(&from, &to(133), 1).build()));
            // No rule without ports: ping is not allowed.
            let ping = icmp(echo(family).0, family.here, family.there, 7);
            assert!(!sent(&lab, &ping.build()));
            lab.dataplane.apply_policy(&[all(set, peer)])?;
            assert!(sent(&lab, &ping.build()));
            assert!(sent(&lab, &syn(&from, &to(81))));
            lab.dataplane.apply_policy(&[
                take_back(&all(set, peer)),
                sets(HERE, OPEN, if ingress { OPEN } else { CLOSED }),
                sets(THERE, if ingress { CLOSED } else { OPEN }, OPEN),
            ])?;
            assert!(!sent(&lab, &syn(&from, &to(80))));
            assert!(!sent(&lab, &ping.build()));
        }
    }
    Ok(())
}

/// P1, P3: a denial counts before a shorter key of its identity and before all that is said of anybody, and what it says
/// nothing of is as without it; it is read back as what it is.
#[test]
fn a_denial_hides_what_shorter_keys_and_anybody_are_allowed() -> Result<()> {
    let mut lab = lab("policy-denials")?;
    let deny = |rule: PolicyOp| match rule {
        PolicyOp::PutRule(key) => PolicyOp::PutDenial(key),
        other => panic!("{other} is no rule"),
    };
    for (family, set) in FAMILIES.iter().zip([5, 6]) {
        let from = at(family.here, 40_000);
        let to = |port| at(family.there, port);
        let ping = icmp(echo(family).0, family.here, family.there, 7);
        let denial = deny(port(set, ID_THERE, proto::TCP, 80));
        lab.dataplane.apply_policy(&[
            all(set, PolicyKey::ANYBODY),
            denial,
            // 8080 to 8095, but for 8085.
            deny(allow(set, ID_THERE, proto::TCP, 8080, PolicyKey::PROTO + 12)),
            port(set, ID_THERE, proto::TCP, 8085),
            deny(allow(set, ID_THERE, proto::UDP, 0, PolicyKey::PROTO)),
            sets(HERE, OPEN, set),
        ])?;
        for (port, passes) in
            [(80, false), (81, true), (8080, false), (8085, true), (8095, false), (8096, true)]
        {
            assert_eq!(sent(&lab, &syn(&from, &to(port))), passes, "{} TCP {port}", to(port));
        }
        assert!(!sent(&lab, &udp(&from, &to(53))));
        assert!(sent(&lab, &Packet::sctp(&from, &to(132), 1).build()));
        assert!(sent(&lab, &ping.build()));
        // Another identity is anybody.
        assert!(sent(&lab, &syn(&from, &at(family.outside, 80))));
        assert!(sent(&lab, &udp(&from, &at(family.outside, 53))));
        // All but one port.
        lab.dataplane
            .apply_policy(&[deny(all(set, ID_THERE)), port(set, ID_THERE, proto::TCP, 80)])?;
        assert!(sent(&lab, &syn(&from, &to(80))) && !sent(&lab, &syn(&from, &to(81))));
        assert!(!sent(&lab, &ping.build()) && !sent(&lab, &udp(&from, &to(53))));
        let tables = lab.dataplane.policy_tables()?;
        let (PolicyOp::PutDenial(key), PolicyOp::PutRule(everything)) =
            (denial, all(set, ID_THERE))
        else {
            unreachable!("they are rules")
        };
        assert!(tables.rules.contains(&key) && !tables.denials.contains(&key), "allowed since");
        assert!(tables.denials.contains(&everything), "{}", tables.dump());
        lab.dataplane.apply_policy(&[PolicyOp::DeleteRule(everything)])?;
        assert!(sent(&lab, &ping.build()));
    }
    Ok(())
}

/// P10: pods that no policy isolates leave nothing behind, and cost nothing once none is.
#[test]
fn pods_that_are_not_isolated_have_no_flows() -> Result<()> {
    let mut lab = lab("policy-none")?;
    assert_eq!(lab.dataplane.view().policy_state()?.policed, 0);
    let packet = syn("10.244.1.2:40000", "10.244.1.3:80");
    assert!(sent(&lab, &packet));
    lab.dataplane.apply_policy(&[sets(3, CLOSED, CLOSED), sets(HERE, OPEN, OPEN)])?;
    assert_ne!(lab.dataplane.view().policy_state()?.policed, 0);
    assert!(sent(&lab, &packet));
    assert!(lab.dataplane.view().policy_flows()?.is_empty());
    lab.dataplane.apply_policy(&[PolicyOp::DeleteSets(3)])?;
    let state = lab.dataplane.view().policy_state()?;
    assert_eq!((state.policed, state.filter), (0, [0; 16]));
    Ok(())
}

/// P5, P7: an answer is never judged as new: not by the rules of whom it is for, nor by those of whom
/// it is from. A connection the other way round is.
#[test]
fn answers_pass_and_are_not_judged() -> Result<()> {
    let mut lab = lab("policy-answers")?;
    for family in &FAMILIES {
        // The pod is asked by somebody outside, and may ask nobody.
        let (client, server) = (at(family.outside, 40_000), at(family.here, 80));
        lab.dataplane.apply_policy(&[
            port(5, ID_OUTSIDE, proto::TCP, 80),
            port(5, ID_OUTSIDE, proto::UDP, 80),
            port(5, ID_OUTSIDE, proto::SCTP, 80),
            sets(HERE, 5, CLOSED),
        ])?;
        assert!(!sent(&lab, &udp(&server, &client)), "nothing to answer yet");
        assert!(!sent(&lab, &syn(&server, &client)));
        assert!(arrived(&lab, &syn(&client, &server)));
        assert!(arrived(&lab, &udp(&client, &server)));
        assert!(arrived(&lab, &Packet::sctp(&client, &server, 1).build()));
        let flows = lab.dataplane.view().policy_flows()?.len();
        for flags in [tcp::SYN | tcp::ACK, tcp::ACK, tcp::FIN | tcp::ACK, tcp::RST] {
            assert!(sent(&lab, &Packet::tcp(&server, &client, flags).build()));
        }
        assert!(sent(&lab, &udp(&server, &client)));
        assert!(sent(&lab, &Packet::sctp(&server, &client, 2).build()));
        assert!(arrived(&lab, &ack(&client, &server)));
        assert_eq!(lab.dataplane.view().policy_flows()?.len(), flows, "no flow but these");
        // From the same ports, but as one that asks.
        assert!(!sent(&lab, &syn(&server, &client)));
        assert!(!sent(&lab, &Packet::sctp(&server, &client, 1).build()));
        // It asks, and nobody may ask it.
        lab.dataplane.apply_policy(&[
            port(6, ID_OUTSIDE, proto::TCP, 443),
            port(6, ID_OUTSIDE, proto::UDP, 443),
            sets(HERE, CLOSED, 6),
        ])?;
        let (client, server) = (at(family.here, 41_000), at(family.outside, 443));
        assert!(!arrived(&lab, &udp(&server, &client)));
        assert!(sent(&lab, &syn(&client, &server)));
        assert!(sent(&lab, &udp(&client, &server)));
        assert!(arrived(&lab, &Packet::tcp(&server, &client, tcp::SYN | tcp::ACK).build()));
        assert!(arrived(&lab, &udp(&server, &client)));
        assert!(!arrived(&lab, &syn(&server, &client)));
    }
    Ok(())
}

/// P5: another policy holds for connections that were allowed, as if they began anew the way they did.
#[test]
fn a_change_holds_for_established_connections() -> Result<()> {
    let mut lab = lab("policy-epoch")?;
    for family in &FAMILIES {
        let (client, server) = (at(family.outside, 40_000), at(family.here, 80));
        let rule = port(5, ID_OUTSIDE, proto::TCP, 80);
        lab.dataplane.apply_policy(&[rule, sets(HERE, 5, OPEN)])?;
        assert!(arrived(&lab, &syn(&client, &server)));
        assert!(sent(&lab, &ack(&server, &client)));
        lab.dataplane.apply_policy(&[take_back(&rule)])?;
        assert!(!arrived(&lab, &ack(&client, &server)));
        // Not by what the answer would be allowed if it began something.
        assert!(!sent(&lab, &ack(&server, &client)));
        lab.dataplane.apply_policy(&[rule])?;
        assert!(sent(&lab, &ack(&server, &client)));
        assert!(arrived(&lab, &ack(&client, &server)));
        // A peer that becomes another.
        let key = CidrKey::new(addr(family.outside), family.len);
        lab.dataplane.apply_policy(&[PolicyOp::PutIdentity(key, NOBODY)])?;
        assert!(!arrived(&lab, &ack(&client, &server)));
        lab.dataplane.apply_policy(&[PolicyOp::PutIdentity(key, ID_OUTSIDE)])?;
        assert!(arrived(&lab, &ack(&client, &server)));
    }
    Ok(())
}

/// P5: a connection from before its pod was isolated: the end with the lower port is taken for the
/// server; where both are ports that sockets pick, either may be.
#[test]
fn a_connection_from_before_is_judged_by_its_ports() -> Result<()> {
    let mut lab = lab("policy-before")?;
    for family in &FAMILIES {
        // It may be asked at port 80 and ask nobody.
        lab.dataplane.apply_policy(&[
            port(5, ID_OUTSIDE, proto::TCP, 80),
            port(5, ID_OUTSIDE, proto::TCP, 50_000),
            sets(HERE, 5, CLOSED),
        ])?;
        for (port, peer, passes) in
            [(80, 40_000, true), (40_000, 80, false), (81, 40_000, false), (50_000, 40_000, true)]
        {
            let (here, outside) = (at(family.here, port), at(family.outside, peer));
            assert_eq!(sent(&lab, &ack(&here, &outside)), passes, "{here} to {outside}");
            assert_eq!(arrived(&lab, &ack(&outside, &here)), passes, "{outside} to {here}");
        }
    }
    Ok(())
}

/// P5: ping and its answers; errors about a flow that was allowed; what neighbours say to each other.
#[test]
fn icmp_follows_its_flow() -> Result<()> {
    let mut lab = lab("policy-icmp")?;
    for family in &FAMILIES {
        let (request, reply) = echo(family);
        lab.dataplane.apply_policy(&[
            all(6, ID_OUTSIDE),
            port(7, ID_OUTSIDE, proto::UDP, 53),
            sets(HERE, CLOSED, 6),
        ])?;
        let ping = |kind, src, dst| icmp(kind, src, dst, 7).build();
        assert!(sent(&lab, &ping(request, family.here, family.outside)));
        assert!(arrived(&lab, &ping(reply, family.outside, family.here)));
        assert!(!arrived(&lab, &ping(request, family.outside, family.here)));
        assert!(!arrived(&lab, &icmp(request, family.outside, family.here, 8).build()));
        lab.dataplane.apply_policy(&[sets(HERE, CLOSED, 7)])?;
        // The answer too goes by the rules that are now.
        assert!(!arrived(&lab, &ping(reply, family.outside, family.here)));

        let asked = udp(&at(family.here, 40_000), &at(family.outside, 53));
        let router = addr(if family.len == 32 { "192.0.2.1" } else { "2001:db8::1" }).to_ip();
        let here = addr(family.here).to_ip();
        let error = |about: &[u8]| IcmpError::too_big(about, 48, 1280).frame(router, here).build();
        assert!(!arrived(&lab, &error(&asked)), "about nothing");
        assert!(sent(&lab, &asked));
        assert!(arrived(&lab, &error(&asked)));
        let other = udp(&at(family.here, 40_000), &at(family.outside, 54));
        assert!(!arrived(&lab, &error(&other)));

        if family.len == 128 {
            lab.dataplane.apply_policy(&[sets(HERE, CLOSED, CLOSED)])?;
            let solicitation = |hops| {
                let mut frame = icmp(135, "fe80::2", "fe80::1", 0);
                frame.hops = hops;
                frame.build()
            };
            assert!(sent(&lab, &solicitation(255)));
            assert!(!sent(&lab, &solicitation(64)), "from no neighbour");
        }
    }
    Ok(())
}

/// Fragments pass as the first one does; what overtakes it does not.
#[test]
fn fragments_follow_the_first_one() -> Result<()> {
    let mut lab = lab("policy-fragments")?;
    for family in &FAMILIES {
        lab.dataplane
            .apply_policy(&[port(6, ID_OUTSIDE, proto::UDP, 53), sets(HERE, CLOSED, 6)])?;
        for (target, id, passes) in [(53, 1, true), (54, 2, false)] {
            let (src, dst) = (at(family.here, 40_000), at(family.outside, target));
            let packet =
                Packet { fragment: 0, payload: vec![7; 3000], ..Packet::udp(&src, &dst) }.build();
            for part in fragments(&packet, 1400, id) {
                assert_eq!(sent(&lab, &part), passes, "{dst}");
            }
            let late = fragments(&packet, 1400, id + 10);
            assert!(!sent(&lab, &late[1]));
        }
        // Ping, in fragments.
        lab.dataplane.apply_policy(&[all(8, ID_OUTSIDE), sets(HERE, CLOSED, 8)])?;
        let (request, reply) = echo(family);
        let ping = |kind, src, dst| {
            let mut frame = icmp(kind, src, dst, 7);
            frame.fragment = 0;
            frame.payload.extend(vec![7; 3000]);
            fragments(&frame.build(), 1400, 5)
        };
        for part in ping(request, family.here, family.outside) {
            assert!(sent(&lab, &part));
        }
        for part in ping(reply, family.outside, family.here) {
            assert!(arrived(&lab, &part));
        }
    }
    let events = events(&lab)?;
    assert!(events.iter().any(|event| event.reason == DropReason::UnknownFragment as u8));
    Ok(())
}

/// P7: packets to a service are judged by the backend that they get, and answers not at all.
#[test]
fn service_traffic_is_judged_after_translation() -> Result<()> {
    for family in &FAMILIES {
        let mut lab = lab("policy-service")?;
        let (client, vip, server) =
            (at(family.here, 40_000), at(family.vip, 80), at(family.there, 8080));
        lab.service(&vip, proto::TCP, &[&server])?;
        lab.service(&vip, proto::UDP, &[&server])?;
        lab.dataplane.apply_policy(&[
            port(5, ID_THERE, proto::TCP, 80),
            sets(HERE, CLOSED, 5),
            sets(THERE, 6, CLOSED),
        ])?;
        assert!(!sent(&lab, &syn(&client, &vip)));
        lab.dataplane.apply_policy(&[port(5, ID_THERE, proto::TCP, 8080)])?;
        assert!(!sent(&lab, &syn(&client, &vip)), "the backend's rules");
        lab.dataplane.apply_policy(&[port(6, ID_HERE, proto::TCP, 8080)])?;
        assert!(sent(&lab, &syn(&client, &vip)));
        assert!(sent(&lab, &ack(&client, &vip)));
        assert!(!sent(&lab, &udp(&client, &vip)));
        assert_eq!(lab.dataplane.view().policy_flows()?.len(), 1);
        // The pod there answers. What is sent comes from `HERE`, as far as a test run can have it: so
        // the two change places.
        for (address, ifindex) in [(family.here, THERE), (family.there, HERE)] {
            lab.endpoint(address, Endpoint { ifindex, ..Endpoint::default() })?;
        }
        lab.dataplane.apply_policy(&[sets(THERE, CLOSED, 5), sets(HERE, 6, CLOSED)])?;
        let answer = Packet::tcp(&server, &client, tcp::SYN | tcp::ACK).build();
        let (verdict, bytes) = lab.send(&answer)?;
        assert_eq!(verdict, verdict::REDIRECT);
        assert_eq!(source(&bytes), vip);
        assert!(!sent(&lab, &syn(&server, &client)));
        assert_eq!(lab.dataplane.view().policy_flows()?.len(), 1);
    }
    Ok(())
}

/// P8: a pod that reaches itself through its Service is judged, by its own identity.
#[test]
fn a_pod_that_asks_itself_through_its_service_is_judged() -> Result<()> {
    let mut lab = lab("policy-hairpin")?;
    for family in &FAMILIES {
        let (client, vip, server) =
            (at(family.here, 40_000), at(family.vip, 80), at(family.here, 8080));
        lab.service(&vip, proto::TCP, &[&server])?;
        let rule = port(5, ID_HERE, proto::TCP, 8080);
        lab.dataplane.apply_policy(&[take_back(&rule), sets(HERE, 5, OPEN)])?;
        assert!(!sent(&lab, &syn(&client, &vip)));
        lab.dataplane.apply_policy(&[rule, sets(HERE, 5, CLOSED)])?;
        assert!(!sent(&lab, &syn(&client, &vip)));
        lab.dataplane.apply_policy(&[sets(HERE, 5, 5)])?;
        assert!(sent(&lab, &syn(&client, &vip)));
        // It answers whom it sees.
        let seen = at(family.vip, 40_000);
        let answer = Packet::tcp(&server, &seen, tcp::SYN | tcp::ACK).build();
        assert!(sent(&lab, &answer));
        lab.dataplane.apply_policy(&[take_back(&rule)])?;
        assert!(!sent(&lab, &answer), "judged again, by who really asked");
        lab.remove(&vip, proto::TCP)?;
    }
    Ok(())
}

/// P7: a client outside is judged by its own address, also where the pod sees the node's.
#[test]
fn clients_outside_are_judged_by_their_own_address() -> Result<()> {
    for flags in [0, NodeAddrs::SNAT_ALWAYS] {
        let mut lab = lab("policy-outside")?;
        let (v4, v6) = (addr("172.31.0.11"), addr("fd00:172:31::11"));
        let (port_min, port_max) = (50_000, 50_999);
        lab.dataplane.set_node_addrs(NodeAddrs { v4, v6, port_min, port_max, flags })?;
        for family in &FAMILIES {
            let (client, vip, server) =
                (at(family.outside, 40_000), at(family.vip, 80), at(family.here, 8080));
            lab.service(&vip, proto::TCP, &[&server])?;
            lab.adjust(&vip, proto::TCP, |frontend| {
                frontend.flags &= !FrontendFlags::CLUSTER_IP;
            })?;
            let rule = port(5, ID_OUTSIDE, proto::TCP, 8080);
            lab.dataplane.apply_policy(&[take_back(&rule), sets(HERE, 5, CLOSED)])?;
            assert!(!arrived(&lab, &syn(&client, &vip)));
            lab.dataplane.apply_policy(&[rule])?;
            let (verdict, bytes) = lab.arrive(&syn(&client, &vip))?;
            assert_eq!(verdict, verdict::REDIRECT);
            // It answers whom it sees.
            let seen = source(&bytes);
            assert_eq!(seen == client, flags == 0, "{seen}");
            let answer = Packet::tcp(&server, &seen, tcp::SYN | tcp::ACK).build();
            assert!(sent(&lab, &answer));
            lab.dataplane.apply_policy(&[take_back(&rule)])?;
            assert!(!sent(&lab, &answer), "judged again, by who really asked");
            assert!(!arrived(&lab, &ack(&client, &vip)));
        }
    }
    Ok(())
}

/// The source address and port of a TCP packet.
fn source(packet: &[u8]) -> String {
    let v4 = packet[12] == 0x08;
    let (ip, port) = if v4 {
        let octets: [u8; 4] = packet[26..30].try_into().expect("four bytes");
        (std::net::IpAddr::from(octets), &packet[34..36])
    } else {
        let octets: [u8; 16] = packet[22..38].try_into().expect("sixteen bytes");
        (std::net::IpAddr::from(octets), &packet[54..56])
    };
    std::net::SocketAddr::new(ip, u16::from_be_bytes([port[0], port[1]])).to_string()
}

fn events(lab: &Lab) -> Result<Vec<DropEvent>> {
    let mut drops = Drops::open(lab.root())?;
    Ok(std::iter::from_fn(|| drops.take()).collect())
}

/// P12: a drop is counted, for the node and for the pod, and told with all that explains it.
#[test]
fn a_drop_is_counted_and_told() -> Result<()> {
    let mut lab = lab("policy-drops")?;
    lab.dataplane.apply_policy(&[
        port(5, ID_HERE, proto::TCP, 80),
        sets(HERE, OPEN, CLOSED),
        sets(THERE, 5, OPEN),
    ])?;
    let packet = syn("10.244.1.2:40000", "10.244.1.3:81");
    assert!(!sent(&lab, &packet));
    lab.dataplane.apply_policy(&[sets(HERE, OPEN, OPEN)])?;
    assert!(!sent(&lab, &packet));
    assert!(!sent(&lab, &packet));
    assert_eq!(lab.count(Counter::DropPolicyEgress), 1);
    assert_eq!(lab.count(Counter::DropPolicyIngress), 2);
    let drops = lab.dataplane.view().policy_drops()?;
    let drops: Vec<_> = drops.into_iter().map(|(at, n)| (at, n.ingress, n.egress)).collect();
    assert_eq!(drops, [(HERE, 0, 1), (THERE, 2, 0)]);
    let events = events(&lab)?;
    assert_eq!(events.len(), 3);
    let [first, second, _] = events[..] else { panic!("three events") };
    let expected = DropEvent {
        time: first.time,
        src: addr("10.244.1.2"),
        dst: addr("10.244.1.3"),
        ifindex: HERE,
        set: CLOSED,
        identity: ID_THERE,
        len: u32::try_from(packet.len())?,
        sport: Be16::new(40_000),
        dport: Be16::new(81),
        proto: proto::TCP,
        direction: Direction::Egress as u8,
        reason: DropReason::Closed as u8,
        answer: 0,
    };
    assert_eq!(first, expected);
    let expected = DropEvent {
        time: second.time,
        ifindex: THERE,
        set: 5,
        identity: ID_HERE,
        direction: Direction::Ingress as u8,
        reason: DropReason::NotAllowed as u8,
        ..expected
    };
    assert_eq!(second, expected);
    assert!(second.time >= first.time && first.time > 0);
    lab.dataplane.apply_policy(&[PolicyOp::DeleteSets(THERE)])?;
    assert_eq!(lab.dataplane.view().policy_drops()?.len(), 1);
    Ok(())
}

/// The tables are what was written, also for the next agent; a plan may be applied twice.
#[test]
fn the_tables_outlive_the_agent() -> Result<()> {
    let mut lab = lab("policy-restart")?;
    let ops = [all(5, ID_HERE), port(5, ID_THERE, proto::UDP, 53), sets(HERE, 5, CLOSED)];
    let mut expected = lab.dataplane.policy_tables()?;
    assert_eq!(expected.identities.len(), 6);
    for _ in 0..2 {
        lab.dataplane.apply_policy(&ops)?;
    }
    ops.iter().for_each(|op| expected.apply(op));
    assert_eq!(lab.dataplane.policy_tables()?, expected);
    let state = lab.dataplane.view().policy_state()?;
    let next = Dataplane::open(lab.config().clone())?;
    assert_eq!(next.policy_tables()?, expected);
    assert_eq!(next.view().policy_state()?, state);
    Ok(())
}

/// A table that is full is named with its flag and what found no room; what was written before holds.
#[test]
fn a_table_that_is_full_is_named() -> Result<()> {
    let mut lab = Lab::new("policy-full", true)?;
    let ops: Vec<_> = (0..=SMALL.policy).map(|n| all(n + 1, ID_HERE)).collect();
    let epoch = lab.dataplane.view().policy_state()?.epoch;
    let error = lab.dataplane.apply_policy(&ops).expect_err("there is no room");
    assert_eq!(error.map(), Some(maps::POLICY));
    let PolicyError::Apply(ref apply) = error else { panic!("{error}") };
    assert_eq!(apply.done(), SMALL.policy as usize);
    assert!(error.to_string().contains("--map-size-policy"), "{error}");
    assert_eq!(lab.dataplane.policy_tables()?.rules.len(), SMALL.policy as usize);
    assert_eq!(lab.dataplane.view().policy_state()?.epoch, epoch + 1);
    Ok(())
}

/// A flood of requests to a Service that policies deny leaves nothing in the connection tracker, whoever
/// sends it: neither takes it the place of others' flows. One that was answered stays.
#[test]
fn denied_requests_leave_nothing_in_the_connection_tracker() -> Result<()> {
    let mut lab = lab("policy-flood")?;
    for family in &FAMILIES {
        let vip = at(family.vip, 80);
        let flows = |lab: &Lab| -> Result<usize> { Ok(lab.dataplane.view().conntrack()?.len()) };
        for (server, closed) in [(family.there, [OPEN, CLOSED]), (family.here, [CLOSED, OPEN])] {
            let backend = at(server, 8080);
            for proto in [proto::TCP, proto::UDP, proto::SCTP] {
                lab.service(&vip, proto, &[&backend])?;
            }
            // From a pod of the node to the other, or from outside to the pod here.
            let ask: fn(&Lab, &[u8]) -> bool = if server == family.there { sent } else { arrived };
            let asker = if server == family.there { family.here } else { family.outside };
            lab.dataplane.apply_policy(&[sets(HERE, OPEN, OPEN), sets(THERE, OPEN, OPEN)])?;
            let known = at(asker, 9_999);
            assert!(ask(&lab, &udp(&known, &vip)));
            let made = flows(&lab)?;
            assert!(made >= 2, "{made}");
            // Its answer, where the server's own program sees it.
            let answered = server == family.here;
            if answered {
                assert!(sent(&lab, &udp(&backend, &known)));
            }
            lab.dataplane
                .apply_policy(&[sets(HERE, closed[0], OPEN), sets(THERE, closed[1], OPEN)])?;
            let before = lab.count(Counter::DropPolicyIngress);
            for port in 10_000..11_000 {
                let from = at(asker, port);
                assert!(!ask(&lab, &syn(&from, &vip)));
                assert!(!ask(&lab, &udp(&from, &vip)));
                assert!(!ask(&lab, &Packet::sctp(&from, &vip, 1).build()));
            }
            assert_eq!(lab.count(Counter::DropPolicyIngress), before + 3_000);
            assert_eq!(flows(&lab)?, made);
            assert!(!ask(&lab, &udp(&known, &vip)));
            assert_eq!(flows(&lab)?, if answered { made } else { made - 2 });
        }
    }
    Ok(())
}
