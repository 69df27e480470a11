//! The programs of the uplinks on built packets: verdict, bytes, counters and flows. Needs root.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};

use anyhow::Result;
use sluice_abi::{
    Be16, CidrKey, Counter, CtFlags, Endpoint, FrontendFlags, NodeAddrs, NodePortKey,
    SourceRangeKey, proto,
};
use sluice_plan::MapOp;
use sluice_proxy::dataplane::Timeouts;
use sluice_tests::{
    frame::{Frame, IcmpError, fragments, reset_of},
    kernel::{Lab, addr, assert_same, verdict},
    netns::NetNs,
    packet::{ETHERNET, Packet, protocol, tcp},
};

const PORT: u16 = 50_000;

/// One family's addresses.
struct Family {
    client: &'static str,
    /// Another client.
    other: &'static str,
    node: &'static str,
    vip: &'static str,
    /// A pod of this node.
    pod: &'static str,
    /// A pod of another node.
    remote: &'static str,
    /// Outside the cluster.
    server: &'static str,
}

const FAMILIES: [Family; 2] = [
    Family {
        client: "192.0.2.5:40000",
        other: "192.0.2.6:40000",
        node: "172.31.0.11",
        vip: "172.31.0.11:30080",
        pod: "10.244.1.7:8080",
        remote: "10.244.2.7:8080",
        server: "198.51.100.9:443",
    },
    Family {
        client: "[2001:db8:2::5]:40000",
        other: "[2001:db8:2::6]:40000",
        node: "fd00:172:31::11",
        vip: "[fd00:172:31::11]:30080",
        pod: "[fd00:244:1::7]:8080",
        remote: "[fd00:244:2::7]:8080",
        server: "[2001:db8:51::9]:443",
    },
];

/// A namespace with a way to everywhere, and the programs.
struct Bench {
    lab: Lab,
    netns: NetNs,
}

impl Bench {
    fn new(label: &str, fast_path: bool) -> Result<Self> {
        let netns = NetNs::new(label)?;
        netns.sysctls(&[("ipv4/ip_forward", "1"), ("ipv6/conf/all/forwarding", "1")])?;
        netns.ip("link add eth0 type veth peer name peer0\n\
             link set peer0 up\n\
             link set eth0 up\n\
             addr add 172.31.0.11/24 dev eth0\n\
             addr add fd00:172:31::11/64 dev eth0 nodad\n\
             route add default via 172.31.0.1\n\
             route add default via fd00:172:31::1")?;
        let mut this = Self { lab: Lab::new(label, fast_path)?, netns };
        this.node(PORT, PORT, 0)?;
        Ok(this)
    }

    fn node(&mut self, port_min: u16, port_max: u16, flags: u32) -> Result<()> {
        let [v4, v6] = FAMILIES.map(|family| addr(family.node));
        Ok(self.lab.dataplane.set_node_addrs(NodeAddrs { v4, v6, port_min, port_max, flags })?)
    }

    fn service(&mut self, vip: &str, backends: &[&str]) -> Result<()> {
        for proto in [proto::TCP, proto::UDP, proto::SCTP] {
            self.lab.service(vip, proto, backends)?;
        }
        Ok(())
    }

    fn pod(&mut self, pod: &str) -> Result<()> {
        let ip = pod.parse::<SocketAddr>()?.ip().to_string();
        self.lab.endpoint(&ip, endpoint())
    }

    /// What arrives from outside passes to the stack as `expected`.
    #[track_caller]
    fn arrives(&self, packet: &Packet, expected: &Packet) {
        self.check(|lab| lab.arrive(&packet.build()), verdict::PASS, expected);
    }

    /// What arrives from outside is sent on as `expected`.
    #[track_caller]
    fn forwarded(&self, packet: &Packet, expected: &Packet) {
        self.check(|lab| lab.arrive(&packet.build()), verdict::REDIRECT, expected);
    }

    /// What leaves by an uplink passes as `expected`.
    #[track_caller]
    fn leaves(&self, packet: &Packet, expected: &Packet) {
        self.check(|lab| lab.leave(&packet.build()), verdict::PASS, expected);
    }

    /// What a pod sends is sent on as `expected`.
    #[track_caller]
    fn sent_on(&self, packet: &Packet, expected: &Packet) {
        self.check(|lab| lab.send(&packet.build()), verdict::REDIRECT, expected);
    }

    #[track_caller]
    fn check(
        &self,
        run: impl FnOnce(&Lab) -> Result<(u32, Vec<u8>)> + Send,
        verdict: u32,
        expected: &Packet,
    ) {
        let result = self.netns.run(|| run(&self.lab)).expect("the namespace");
        let (found, bytes) = result.expect("the program runs");
        assert_eq!(found, verdict, "{expected:?}");
        assert_same(&bytes, &expected.build());
    }

    #[track_caller]
    fn dropped(&self, packet: &Packet, reason: Counter) {
        let before = self.lab.count(reason);
        let run = || self.lab.arrive(&packet.build()).expect("the program runs");
        assert_eq!(self.netns.run(run).expect("the namespace").0, verdict::DROP, "{packet:?}");
        assert_eq!(self.lab.count(reason), before + 1, "{packet:?}");
    }
}

fn endpoint() -> Endpoint {
    Endpoint {
        ifindex: 17,
        id: 1,
        mac: [0x02, 0xaa, 1, 2, 3, 4],
        host_mac: [0x02, 0xbb, 5, 6, 7, 8],
        flags: 0,
        ..Endpoint::default()
    }
}

/// The packet as it is handed to the pod.
fn delivered(packet: Packet) -> Packet {
    Packet { to_mac: endpoint().mac, from_mac: endpoint().host_mac, ..routed(packet) }
}

/// The packet one hop later; the kernel gives it its hardware addresses.
fn routed(packet: Packet) -> Packet {
    Packet { hops: packet.hops - 1, ..packet }
}

fn at(ip: &str, port: u16) -> String {
    let ip: IpAddr = ip.parse().expect("an address");
    SocketAddr::new(ip, port).to_string()
}

/// The first packet of a flow over each protocol.
fn requests(src: &str, dst: &str) -> [Packet; 3] {
    [Packet::tcp(src, dst, tcp::SYN), Packet::udp(src, dst), Packet::sctp(src, dst, 1)]
}

/// The answer to a packet, between other addresses.
fn answer(request: &Packet, src: &str, dst: &str) -> Packet {
    let chunk = 2;
    Packet { tcp_flags: tcp::SYN | tcp::ACK, chunk, ..request.clone().from(src).to(dst) }
}

/// S4, S25: a client outside reaches a pod of this node with its own address, and hears the node
/// answer.
#[test]
fn a_client_outside_reaches_a_pod_of_this_node() -> Result<()> {
    for Family { client, vip, pod, .. } in FAMILIES {
        for request in requests(client, vip) {
            let mut bench = Bench::new("local", false)?;
            bench.service(vip, &[pod])?;
            bench.pod(pod)?;
            bench.arrives(&request, &request.clone().to(pod));
            let back = answer(&request, pod, client);
            // The stack forwards it, and the uplink translates.
            let (verdict, bytes) = bench.lab.send(&back.build())?;
            assert_eq!(verdict, verdict::PASS);
            assert_same(&bytes, &back.build());
            bench.leaves(&back, &back.clone().from(vip));
            assert_eq!(bench.lab.count(Counter::UplinkForward), 1);
            assert_eq!(bench.lab.count(Counter::UplinkReverse), 1);
            assert_eq!(bench.lab.count(Counter::SnatCreated), 0);
        }
    }
    Ok(())
}

/// S4, S25: the same past the stack, both ways.
#[test]
fn a_client_outside_reaches_a_pod_of_this_node_past_the_stack() -> Result<()> {
    for Family { client, vip, pod, .. } in FAMILIES {
        for request in requests(client, vip) {
            let mut bench = Bench::new("local-fast", true)?;
            bench.service(vip, &[pod])?;
            bench.pod(pod)?;
            bench.forwarded(&request, &delivered(request.clone().to(pod)));
            let back = answer(&request, pod, client);
            bench.sent_on(&back, &routed(back.clone().from(vip)));
            assert_eq!(bench.lab.count(Counter::FastPathUplink), 1);
            assert_eq!(bench.lab.count(Counter::UplinkReverse), 1);
        }
    }
    Ok(())
}

/// S4, S20, S25: a backend on another node sees this node, so that its answers come by here, and the
/// client hears this node answer.
#[test]
fn a_client_outside_reaches_a_pod_of_another_node_through_this_one() -> Result<()> {
    for Family { client, vip, node, remote, .. } in FAMILIES {
        let own = at(node, PORT);
        for request in requests(client, vip) {
            let mut bench = Bench::new("remote", false)?;
            bench.service(vip, &[remote])?;
            let forward = request.clone().from(&own).to(remote);
            bench.forwarded(&request, &routed(forward.clone()));
            let back = answer(&request, remote, &own);
            bench.forwarded(&back, &routed(back.clone().from(vip).to(client)));
            // The flow goes on as it began.
            bench.forwarded(&request, &routed(forward));
            assert_eq!(bench.lab.count(Counter::SnatCreated), 1);
            assert_eq!(bench.lab.count(Counter::FlowCreated), 1);
            assert_eq!(bench.lab.count(Counter::FastPathUplink), 3);
        }
    }
    Ok(())
}

/// Checksums of every kind of packet survive a change of both addresses and both ports.
#[test]
fn checksums_stay_right_when_everything_changes() -> Result<()> {
    for Family { vip, node, remote, .. } in FAMILIES {
        let mut bench = Bench::new("lengths", false)?;
        bench.service(vip, &[remote])?;
        for len in 0..20_u16 {
            let port = 41_000 + len;
            bench.node(port, port, 0)?;
            let client = if vip.starts_with('[') { "2001:db8:2::5" } else { "192.0.2.5" };
            for mut request in requests(&at(client, port.wrapping_mul(3)), vip) {
                request.payload = (0..len * 67).map(|n| (n * 7 + len) as u8).collect();
                let forward = request.clone().from(&at(node, port)).to(remote);
                bench.forwarded(&request, &routed(forward));
            }
        }
    }
    Ok(())
}

/// S20: an off-cluster client that has a route to the service addresses.
#[test]
fn a_cluster_ip_serves_clients_outside() -> Result<()> {
    let Family { client, node, remote, .. } = FAMILIES[0];
    let mut bench = Bench::new("cluster-ip", false)?;
    bench.service("10.96.0.10:80", &[remote])?;
    for request in requests(client, "10.96.0.10:80") {
        let forward = request.clone().from(&at(node, PORT)).to(remote);
        bench.forwarded(&request, &routed(forward));
        let back = answer(&request, remote, &at(node, PORT));
        bench.forwarded(&back, &routed(back.clone().from("10.96.0.10:80").to(client)));
    }
    Ok(())
}

/// S20: `--masquerade-all`: a pod of this node sees the node too, and its answers come back.
#[test]
fn with_masquerade_all_a_pod_of_this_node_sees_the_node() -> Result<()> {
    for Family { client, vip, node, pod, .. } in FAMILIES {
        for request in requests(client, vip) {
            let mut bench = Bench::new("always", false)?;
            bench.node(PORT, PORT, NodeAddrs::SNAT_ALWAYS)?;
            bench.service(vip, &[pod])?;
            bench.pod(pod)?;
            let own = at(node, PORT);
            bench.forwarded(&request, &delivered(request.clone().from(&own).to(pod)));
            let back = answer(&request, pod, &own);
            bench.sent_on(&back, &routed(back.clone().from(vip).to(client)));
        }
    }
    Ok(())
}

/// S9: clients outside have backends of their own, without SNAT; where there is none they are
/// dropped, not rejected, while pods are served.
#[test]
fn external_traffic_policy_local_serves_outside_from_this_node_or_not_at_all() -> Result<()> {
    let Family { client, vip, pod, remote, .. } = FAMILIES[0];
    let mut bench = Bench::new("policy", false)?;
    bench.node(PORT, PORT, NodeAddrs::SNAT_ALWAYS)?;
    bench.service(vip, &[remote])?;
    bench.pod(pod)?;
    for proto in [proto::TCP, proto::UDP, proto::SCTP] {
        bench.lab.outside(vip, proto, FrontendFlags::LOCAL_ONLY, &[pod])?;
    }
    for request in requests(client, vip) {
        // The client keeps its address.
        bench.arrives(&request, &request.clone().to(pod));
        let inside = request.clone().from("10.244.1.5:40001");
        bench.lab.expect_sent(&inside, &inside.clone().to(remote));
    }
    for proto in [proto::TCP, proto::UDP, proto::SCTP] {
        bench.lab.outside(vip, proto, FrontendFlags::LOCAL_ONLY, &[])?;
    }
    for request in requests("192.0.2.77:40000", vip) {
        bench.dropped(&request, Counter::DropNoLocal);
        let inside = request.clone().from("10.244.1.6:40001");
        bench.lab.expect_sent(&inside, &inside.clone().to(remote));
    }
    Ok(())
}

/// S7: checked before translation, of clients outside and of pods.
#[test]
fn source_ranges_admit_some_clients_alone() -> Result<()> {
    for Family { client, other, vip, pod, .. } in FAMILIES {
        let mut bench = Bench::new("ranges", false)?;
        bench.service(vip, &[pod])?;
        bench.pod(pod)?;
        for proto in [proto::TCP, proto::UDP, proto::SCTP] {
            let key = sluice_tests::kernel::frontend_key(vip, proto);
            let service = bench.lab.tables().frontends[&key].service;
            let ip = client.parse::<SocketAddr>()?.ip();
            let len = if ip.is_ipv4() { 32 } else { 128 };
            let range = SourceRangeKey::new(service, ip.into(), len);
            bench.lab.apply(&[MapOp::PutSourceRange(range)])?;
            bench.lab.adjust(vip, proto, |f| f.flags |= FrontendFlags::SOURCE_RANGES)?;
        }
        for request in requests(client, vip) {
            bench.arrives(&request, &request.clone().to(pod));
            let stranger = request.clone().from(other);
            bench.dropped(&stranger, Counter::DropSourceRange);
            // A pod is asked for its address too.
            assert_eq!(bench.lab.send(&stranger.build())?.0, verdict::DROP);
        }
    }
    Ok(())
}

/// Two clients of one backend get ports of their own; one more than there are ports is dropped and
/// counted, until a flow is over.
#[test]
fn flows_never_share_a_port_and_exhaustion_is_counted() -> Result<()> {
    for Family { client, other, vip, node, remote, .. } in FAMILIES {
        let mut bench = Bench::new("ports", false)?;
        bench.node(PORT, PORT + 1, 0)?;
        bench.service(vip, &[remote])?;
        let mut ports = BTreeSet::new();
        for from in [client, other] {
            let syn = Packet::tcp(from, vip, tcp::SYN);
            let out = bench.netns.run(|| bench.lab.arrive(&syn.build()))??;
            assert_eq!(out.0, verdict::REDIRECT);
            let found = [PORT, PORT + 1].into_iter().find(|port| {
                out.1 == routed(syn.clone().from(&at(node, *port)).to(remote)).build()
            });
            ports.insert(found.expect("a port of the range"));
        }
        assert_eq!(ports.len(), 2);
        let third = client.replace(":40000", ":40001");
        let syn = Packet::tcp(&third, vip, tcp::SYN);
        bench.dropped(&syn, Counter::DropSnatExhausted);
        assert!(bench.lab.count(Counter::SnatRetry) >= 2);
        // The first one ends: its port is free for another, and it is not heard of again.
        let reset = Packet::tcp(client, vip, tcp::RST);
        bench.netns.run(|| bench.lab.arrive(&reset.build()))??;
        let out = bench.netns.run(|| bench.lab.arrive(&syn.build()))??;
        assert_eq!(out.0, verdict::REDIRECT);
        let late = Packet::tcp(client, vip, tcp::ACK);
        bench.arrives(&late, &late);
    }
    Ok(())
}

/// S4: the range for sources may overlap the NodePorts: a port that is one, for that protocol, is not taken, since
/// what comes to it is a request. Pods that leave the cluster get none either.
#[test]
fn a_flow_never_takes_a_port_that_is_a_node_port() -> Result<()> {
    for Family { client, other, vip, node, remote, pod, server } in FAMILIES {
        let mut bench = Bench::new("clash", false)?;
        bench.node(PORT, PORT + 1, NodeAddrs::MASQUERADE)?;
        bench.service(vip, &[remote])?;
        bench.pod(pod)?;
        let key = |port, proto| NodePortKey { port: Be16::new(port), proto, reserved: 0 };
        bench.lab.apply(&[MapOp::PutNodePort(key(PORT, proto::UDP), 1)])?;
        let request = Packet::udp(client, vip);
        bench.forwarded(&request, &routed(request.clone().from(&at(node, PORT + 1)).to(remote)));
        bench.dropped(&Packet::udp(other, vip), Counter::DropSnatExhausted);
        // Whichever is drawn first, the other one is it: ten servers, one after the other.
        for n in 0..10 {
            let server = server.replace(":443", &format!(":{}", 7000 + n));
            let leaves = Packet::udp(pod, &server);
            bench.leaves(&leaves, &leaves.clone().from(&at(node, PORT + 1)));
        }
        // Of another protocol it is a port like others.
        let mut ports = BTreeSet::new();
        for from in [client, other] {
            let syn = Packet::tcp(from, vip, tcp::SYN);
            let out = bench.netns.run(|| bench.lab.arrive(&syn.build()))??;
            assert_eq!(out.0, verdict::REDIRECT);
            // Both came from different ports of the node, so the packets differ.
            ports.insert(out.1);
        }
        assert_eq!(ports.len(), 2);
    }
    Ok(())
}

/// A port that a socket of the node has is not taken.
#[test]
fn a_flow_never_takes_a_port_that_a_socket_of_the_node_has() -> Result<()> {
    for Family { client, vip, node, remote, .. } in FAMILIES {
        let mut bench = Bench::new("sockets", false)?;
        bench.service(vip, &[remote])?;
        let here: SocketAddr = at(node, PORT).parse()?;
        let sockets = bench
            .netns
            .run(|| -> Result<_> { Ok((TcpListener::bind(here)?, UdpSocket::bind(here)?)) })??;
        for request in [Packet::tcp(client, vip, tcp::SYN), Packet::udp(client, vip)] {
            bench.dropped(&request, Counter::DropSnatExhausted);
        }
        bench.node(PORT, PORT + 1, 0)?;
        for request in [Packet::tcp(client, vip, tcp::SYN), Packet::udp(client, vip)] {
            let forward = request.clone().from(&at(node, PORT + 1)).to(remote);
            bench.forwarded(&request, &routed(forward));
        }
        drop(sockets);
    }
    Ok(())
}

/// The other way round: a socket of the node that would meet a flow's answers gets another port on
/// its way out; others go as they are.
#[test]
fn a_socket_of_the_node_never_meets_a_flows_answers() -> Result<()> {
    for Family { client, vip, node, remote, server, .. } in FAMILIES {
        for request in requests(client, vip) {
            let mut bench = Bench::new("own", false)?;
            bench.service(vip, &[remote])?;
            bench.forwarded(&request, &routed(request.clone().from(&at(node, PORT)).to(remote)));
            bench.node(PORT, PORT + 1, 0)?;
            let own = at(node, PORT);
            let other = request.clone().from(&own).to(server);
            bench.leaves(&other, &other);
            // The first try may meet the flow, the next one does not.
            let same = request.clone().from(&own).to(remote);
            let masked = at(node, PORT + 1);
            bench.leaves(&same, &same.clone().from(&masked));
            let back = answer(&request, remote, &masked);
            bench.arrives(&back, &back.clone().to(&own));
        }
    }
    Ok(())
}

/// R6: a pod that leaves the cluster has the node's address, and its answers find it; inside it keeps
/// its own.
#[test]
fn a_pod_that_leaves_the_cluster_has_the_nodes_address() -> Result<()> {
    for Family { node, pod, remote, server, .. } in FAMILIES {
        for fast_path in [false, true] {
            for request in requests(pod, server) {
                let mut bench = Bench::new("masquerade", fast_path)?;
                bench.node(PORT, PORT, NodeAddrs::MASQUERADE)?;
                let inside = remote.parse::<SocketAddr>()?.ip();
                let len = if inside.is_ipv4() { 24 } else { 64 };
                let ranges = BTreeSet::from([CidrKey::new(inside.into(), len)]);
                bench.lab.dataplane.set_non_masquerade(&ranges)?;
                // Before the node has a pod of that address, it is none of ours.
                bench.leaves(&request, &request);
                bench.pod(pod)?;
                let kept = request.clone().to(remote);
                bench.leaves(&kept, &kept);
                let own = at(node, PORT);
                bench.leaves(&request, &request.clone().from(&own));
                let back = answer(&request, server, &own);
                if fast_path {
                    bench.forwarded(&back, &delivered(back.clone().to(pod)));
                } else {
                    bench.arrives(&back, &back.clone().to(pod));
                }
                assert_eq!(bench.lab.count(Counter::Masqueraded), 1);
                // Amid a connection that is not known, nothing is changed (S29).
                if request.protocol == protocol::TCP {
                    let amid = Packet::tcp(&pod.replace("8080", "8081"), server, tcp::ACK);
                    bench.leaves(&amid, &amid);
                }
            }
        }
    }
    Ok(())
}

/// S21: a pod reaches itself through its own Service, and sees the service ask.
#[test]
fn a_pod_reaches_itself_through_its_service() -> Result<()> {
    for (pod, vip, port) in [("10.244.1.7", "10.96.0.10", 80), ("fd00:244:1::7", "fd00:96::10", 80)]
    {
        let (client, server, vip_port) = (at(pod, 40000), at(pod, 8080), at(vip, port));
        for request in requests(&client, &vip_port) {
            for fast_path in [false, true] {
                let mut bench = Bench::new("hairpin", fast_path)?;
                bench.service(&vip_port, &[&server])?;
                bench.pod(&server)?;
                let seen = at(vip, 40000);
                bench.sent_on(&request, &delivered(request.clone().from(&seen).to(&server)));
                let back = answer(&request, &server, &seen);
                bench.sent_on(&back, &delivered(back.clone().from(&vip_port).to(&client)));
                let flow = bench.lab.dataplane.conntrack()?;
                assert_eq!(flow.len(), 2, "{flow:?}");
                assert!(flow.iter().all(|(_, entry)| entry.flags & CtFlags::HAIRPIN != 0));
            }
        }
    }
    Ok(())
}

/// S29: what is amid a connection that is not known goes to the stack as it is, and is not reset.
#[test]
fn packets_amid_unknown_connections_are_left_to_the_stack() -> Result<()> {
    for Family { client, vip, pod, remote, .. } in FAMILIES {
        let mut bench = Bench::new("amid", true)?;
        bench.service(vip, &[pod, remote])?;
        for flags in [tcp::ACK, tcp::SYN | tcp::ACK, tcp::FIN | tcp::ACK, tcp::RST] {
            let packet = Packet::tcp(client, vip, flags);
            bench.arrives(&packet, &packet);
            let packet = Packet::tcp(pod, client, flags);
            bench.leaves(&packet, &packet);
        }
        let data = Packet::sctp(client, vip, 0);
        bench.arrives(&data, &data);
        assert_eq!(bench.lab.dataplane.conntrack()?, vec![]);
    }
    Ok(())
}

/// A client's port that is used again begins a new connection once the old one is over, and not
/// before.
#[test]
fn a_clients_port_used_again_begins_a_new_connection() -> Result<()> {
    const NEW: &str = "10.244.2.8:8080";
    let Family { client, vip, node, remote, .. } = FAMILIES[0];
    let mut bench = Bench::new("again", false)?;
    bench.service(vip, &[remote])?;
    let own = at(node, PORT);
    let syn = Packet::tcp(client, vip, tcp::SYN);
    bench.forwarded(&syn, &routed(syn.clone().from(&own).to(remote)));
    let fin = Packet::tcp(client, vip, tcp::FIN | tcp::ACK);
    bench.forwarded(&fin, &routed(fin.clone().from(&own).to(remote)));
    bench.service(vip, &[remote, NEW])?;
    bench.forwarded(&syn, &routed(syn.clone().from(&own).to(remote)));
    let fin = Packet::tcp(remote, &own, tcp::FIN | tcp::ACK);
    bench.forwarded(&fin, &routed(fin.clone().from(vip).to(client)));
    bench.service(vip, &[NEW])?;
    bench.forwarded(&syn, &routed(syn.clone().from(&own).to(NEW)));
    assert_eq!(bench.lab.dataplane.conntrack()?.len(), 2, "the old flow is gone");
    Ok(())
}

/// S30: two services on one pod, the same client and port: at the pod the second one has another
/// port, and each hears its own service.
#[test]
fn two_services_on_one_pod_are_never_crossed() -> Result<()> {
    let Family { client, vip, pod, .. } = FAMILIES[0];
    const OTHER_VIP: &str = "198.51.100.80:80";
    let mut bench = Bench::new("crossed", false)?;
    bench.service(vip, &[pod])?;
    bench.service(OTHER_VIP, &[pod])?;
    bench.pod(pod)?;
    for (one, two) in requests(client, vip).iter().zip(requests(client, OTHER_VIP)) {
        bench.arrives(one, &one.clone().to(pod));
        let (verdict, bytes) = bench.netns.run(|| bench.lab.arrive(&two.build()))??;
        assert_eq!(verdict, verdict::PASS);
        // A port of the program's choosing, that no socket of the client's would pick.
        let port = u16::from_be_bytes([bytes[ETHERNET + 20], bytes[ETHERNET + 21]]);
        assert!(port >= 61_000, "port {port}");
        let seen = at("192.0.2.5", port);
        assert_same(&bytes, &two.clone().from(&seen).to(pod).build());
        let back = answer(one, pod, client);
        bench.leaves(&back, &back.clone().from(vip));
        let back = answer(one, pod, &seen);
        bench.leaves(&back, &back.clone().from(OTHER_VIP).to(client));
    }
    Ok(())
}

/// S28: without a way to the backend, the packet is dropped and counted; with no hop left, the client
/// is told, so that it can trace the route.
#[test]
fn what_has_no_way_is_dropped_and_counted() -> Result<()> {
    let Family { client, vip, remote, .. } = FAMILIES[0];
    let mut bench = Bench::new("no-way", false)?;
    bench.service(vip, &[remote])?;
    let last = Packet { hops: 1, ..Packet::udp(client, vip) };
    let bytes = last.build();
    let quote = bytes[ETHERNET..].to_vec();
    let told = IcmpError { kind: 11, code: 0, rest: 0, quote };
    let mut frame = told.frame(ip(vip), ip(client));
    (frame.to_mac, frame.from_mac) = (last.from_mac, last.to_mac);
    bench.redirected(&bytes, &frame.build());
    bench.netns.ip("route del default via 172.31.0.1")?;
    bench.dropped(&Packet::udp(client, vip), Counter::DropNoRoute);
    Ok(())
}

/// Flows with another source are collected whole, and go with their pod.
#[test]
fn flows_with_another_source_are_collected_whole() -> Result<()> {
    let Family { client, vip, node, pod, remote, server, .. } = FAMILIES[0];
    let mut bench = Bench::new("collected", false)?;
    bench.node(PORT, PORT, NodeAddrs::MASQUERADE)?;
    bench.service(vip, &[remote])?;
    bench.pod(pod)?;
    let syn = Packet::tcp(client, vip, tcp::SYN);
    let own = at(node, PORT);
    bench.forwarded(&syn, &routed(syn.clone().from(&own).to(remote)));
    let datagram = Packet::udp(pod, server);
    bench.leaves(&datagram, &datagram.clone().from(&own));
    let entries = bench.lab.dataplane.conntrack()?;
    assert_eq!(entries.len(), 4, "{entries:?}");
    let last = entries.iter().map(|(_, entry)| entry.last_seen).max().expect("entries");
    let timeouts = Timeouts::default();
    let removed = |bench: &mut Bench, seconds: u64| {
        let now = last + seconds * 1_000_000_000;
        bench.lab.dataplane.conntrack_gc(now, &timeouts).map(|collected| collected.removed)
    };
    assert_eq!(removed(&mut bench, 5)?, 0, "both are whole");
    assert!(bench.lab.dataplane.delete_endpoint(addr("10.244.1.7"))?);
    let left = bench.lab.dataplane.conntrack()?;
    assert_eq!(left.len(), 2, "{left:?}");
    assert_eq!(removed(&mut bench, 121)?, 2);
    Ok(())
}

fn ip(text: &str) -> IpAddr {
    text.parse::<SocketAddr>().map_or_else(|_| addr(text).to_ip(), |address| address.ip())
}

/// An ICMP error one hop later.
fn later(frame: Frame) -> Vec<u8> {
    Frame { hops: frame.hops - 1, ..frame }.build()
}

impl Bench {
    /// What arrives from outside is sent somewhere as the bytes given.
    #[track_caller]
    fn redirected(&self, packet: &[u8], expected: &[u8]) {
        let result = self.netns.run(|| self.lab.arrive(packet)).expect("the namespace");
        let (found, bytes) = result.expect("the program runs");
        assert_eq!(found, verdict::REDIRECT);
        assert_same(&bytes, expected);
    }
}

/// S16: clients outside are refused at once by a NodePort without endpoints.
#[test]
fn clients_outside_are_refused_where_nobody_serves() -> Result<()> {
    let mut bench = Bench::new("uplink-reject", false)?;
    for family in FAMILIES {
        bench.service(family.vip, &[])?;
        let syn = Packet::tcp(family.client, family.vip, tcp::SYN);
        bench.redirected(&syn.build(), &reset_of(&syn));
        let datagram = Packet::udp(family.client, family.vip);
        let bytes = datagram.build();
        let mut frame =
            IcmpError::port_unreachable(&bytes, 500).frame(ip(family.vip), ip(family.client));
        (frame.to_mac, frame.from_mac) = (datagram.from_mac, datagram.to_mac);
        bench.redirected(&bytes, &frame.build());
    }
    assert_eq!(bench.lab.count(Counter::PacketReject), 4);
    Ok(())
}

/// S28: errors about flows through this node find the client outside, or the backend elsewhere, with
/// the packet that they sent; neither sees the other's address.
#[test]
fn icmp_errors_pass_the_node_both_ways() -> Result<()> {
    let mut bench = Bench::new("uplink-icmp", false)?;
    for family in FAMILIES {
        bench.service(family.vip, &[family.remote])?;
        let inside = at(family.node, PORT);
        let request = Packet::udp(family.client, family.vip);
        let sent = request.clone().from(&inside).to(family.remote);
        bench.forwarded(&request, &routed(sent.clone()));
        // A router on the way to the backend, and the backend itself.
        for from in [family.server, family.remote] {
            let told =
                IcmpError::too_big(&sent.build(), 500, 1300).frame(ip(from), ip(family.node));
            let heard = IcmpError::too_big(&request.build(), 500, 1300)
                .frame(ip(family.vip), ip(family.client));
            bench.redirected(&told.build(), &later(heard));
        }
        // The client has closed its socket.
        let answer = Packet::udp(family.vip, family.client);
        let given = Packet::udp(family.remote, &inside);
        let told = IcmpError::port_unreachable(&answer.build(), 500)
            .frame(ip(family.client), ip(family.vip));
        let heard = IcmpError::port_unreachable(&given.build(), 500)
            .frame(ip(family.node), ip(family.remote));
        bench.redirected(&told.build(), &later(heard));
    }
    assert_eq!(bench.lab.count(Counter::IcmpTranslated), 6);
    Ok(())
}

/// S27: a datagram in fragments arrives whole at a backend on another node, and its answer at the
/// client.
#[test]
fn fragments_pass_the_node_both_ways() -> Result<()> {
    let mut bench = Bench::new("uplink-fragments", false)?;
    for family in FAMILIES {
        bench.service(family.vip, &[family.remote])?;
        let inside = at(family.node, PORT);
        let large = |src: &str, dst: &str| Packet {
            fragment: 0,
            payload: vec![5; 4000],
            ..Packet::udp(src, dst)
        };
        let pairs = [
            (large(family.client, family.vip), large(&inside, family.remote)),
            (large(family.remote, &inside), large(family.vip, family.client)),
        ];
        for (packet, expected) in pairs {
            let expected = fragments(&routed(expected).build(), 1400, 6);
            for (part, expected) in fragments(&packet.build(), 1400, 6).iter().zip(&expected) {
                bench.redirected(part, expected);
            }
        }
    }
    Ok(())
}

/// S28: a packet that is too big for the way to the backend is answered with the size that fits, from
/// the address that the client asked.
#[test]
fn a_client_outside_learns_the_mtu_of_the_way_to_the_backend() -> Result<()> {
    let mut bench = Bench::new("uplink-mtu", false)?;
    bench.netns.ip("link set eth0 mtu 1300")?;
    for family in FAMILIES {
        bench.service(family.vip, &[family.remote])?;
        let large = Packet { payload: vec![7; 1380], ..Packet::udp(family.client, family.vip) };
        let bytes = large.build();
        let quote = if large.src.is_ipv4() { 548 } else { 1232 };
        let mut frame = IcmpError::too_big(&bytes[..ETHERNET + quote], quote, 1300)
            .frame(ip(family.vip), ip(family.client));
        (frame.to_mac, frame.from_mac) = (large.from_mac, large.to_mac);
        bench.redirected(&bytes, &frame.build());
    }
    Ok(())
}
