//! The fast path out of the node: from a pod by an uplink to pods of other nodes and to who is outside
//! the cluster, with real sockets; and all that is left to the stack. Needs root.

use std::net::{IpAddr, SocketAddr, UdpSocket};

use anyhow::{Context, Result, ensure};
use nix::{
    errno::Errno,
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    sys::socket::{setsockopt, sockopt},
    unistd::Pid,
};
use rustix::net::sockopt::{Ipv4PathMtuDiscovery, set_ip_mtu_discover};
use sluice_abi::{CidrKey, Counter, Endpoint, NodeAddrs, proto};
use sluice_proxy::dataplane::{Dataplane, TcHook};
use sluice_tests::{
    PATIENCE,
    bind::bind,
    kernel::{Lab, addr},
    netns::NetNs,
    ping::{Message, Pinger},
    traffic::{self, datagram, exchange, forwarded, wire_pod},
    wait_for,
};

/// One family's addresses.
#[derive(Clone, Copy)]
struct Family {
    node: &'static str,
    /// The node's neighbour, by which everything else is reached.
    neighbour: &'static str,
    pod: &'static str,
    /// Another pod of the node.
    other: &'static str,
    /// A pod of another node.
    remote: &'static str,
    /// Outside the cluster.
    server: &'static str,
    any: &'static str,
    /// What an address of the family is written with.
    bits: u8,
}

const FAMILIES: [Family; 2] = [
    Family {
        node: "172.31.0.11",
        neighbour: "172.31.0.12",
        pod: "10.244.1.2",
        other: "10.244.1.3",
        remote: "10.244.2.7",
        server: "198.51.100.9",
        any: "0.0.0.0:0",
        bits: 32,
    },
    Family {
        node: "fd00:172:31::11",
        neighbour: "fd00:172:31::12",
        pod: "fd00:244:1::2",
        other: "fd00:244:1::3",
        remote: "fd00:244:2::7",
        server: "2001:db8:51::9",
        any: "[::]:0",
        bits: 128,
    },
];

/// A node with two pods and two interfaces to its neighbour, which has the other addresses. The first
/// interface, `eth0`, is an uplink.
struct World {
    lab: Lab,
    node: NetNs,
    pods: [NetNs; 2],
    neighbour: NetNs,
    endpoints: [Endpoint; 2],
}

impl World {
    fn new(label: &str, fast_path: bool, hook: TcHook) -> Result<Self> {
        let mut lab = Lab::new(label, fast_path)?;
        let (node, neighbour) = (NetNs::new(label)?, NetNs::new(&format!("{label}-n"))?);
        let pods = [NetNs::new(&format!("{label}-0"))?, NetNs::new(&format!("{label}-1"))?];
        for netns in [&node, &neighbour] {
            netns.sysctls(&[
                ("ipv4/ip_forward", "1"),
                ("ipv6/conf/all/forwarding", "1"),
                ("ipv4/conf/all/rp_filter", "0"),
                ("ipv4/conf/default/rp_filter", "0"),
                ("ipv4/conf/all/send_redirects", "0"),
                ("ipv4/conf/default/send_redirects", "0"),
            ])?;
        }
        node.veth("eth0", &neighbour, "eth0")?;
        node.veth("eth1", &neighbour, "eth1")?;
        for (ns, last) in [(&node, 11), (&neighbour, 12)] {
            for (interface, net) in [("eth0", 31), ("eth1", 32)] {
                ns.ip(&format!(
                    "addr add 172.{net}.0.{last}/24 dev {interface}\n\
                     addr add fd00:172:{net}::{last}/64 dev {interface} nodad"
                ))?;
            }
        }
        for Family { node: own, neighbour: via, remote, server, bits, .. } in FAMILIES {
            neighbour.ip(&format!(
                "addr add {remote}/{bits} dev lo nodad\naddr add {server}/{bits} dev lo nodad"
            ))?;
            node.ip(&format!("route add {remote}/{bits} via {via}\nroute add default via {via}"))?;
            let pods = if bits == 32 { "10.244.1.0/24" } else { "fd00:244:1::/64" };
            neighbour.ip(&format!("route add {pods} via {own}"))?;
        }
        node.run(|| lab.dataplane.attach_uplink_by("eth0", hook))??;
        let [v4, v6] = FAMILIES.map(|family| addr(family.node));
        let (port_min, port_max, flags) = (50_000, 50_999, NodeAddrs::MASQUERADE);
        lab.dataplane.set_node_addrs(NodeAddrs { v4, v6, port_min, port_max, flags })?;
        let ranges = [("10.244.0.0", 16), ("fd00:244::", 32), ("169.254.0.0", 16)];
        let ranges = ranges.map(|(base, bits)| CidrKey::new(addr(base), bits));
        lab.dataplane.set_non_masquerade(&ranges.into())?;
        let mut endpoints = [Endpoint::default(); 2];
        for (n, pod) in pods.iter().enumerate() {
            let (host, last) = (format!("slu{n}"), u8::try_from(n)?);
            let (mac, host_mac) = ([2, 0, 0, 0, 1, last], [2, 0, 0, 0, 2, last]);
            let addresses = FAMILIES.map(|it| if n == 0 { it.pod } else { it.other });
            wire_pod(&node, &host, pod, addresses, [mac, host_mac])?;
            let ifindex = node.run(|| lab.dataplane.attach_pod_by(&host, hook))??.ifindex;
            let id = u32::from(last) + 1;
            endpoints[n] = Endpoint { ifindex, id, mac, host_mac, ..Endpoint::default() };
            for address in addresses {
                lab.endpoint(address, endpoints[n])?;
            }
        }
        Ok(Self { lab, node, pods, neighbour, endpoints })
    }

    /// With the fast path, by TCX.
    fn fast(label: &str) -> Result<Self> {
        Self::new(label, true, TcHook::Tcx)
    }

    /// A large body to a server there and back, and datagrams, small ones and one in fragments; whom
    /// the server saw.
    fn talk(&self, server: &str) -> Result<IpAddr> {
        let at = socket(server, 8080);
        let seen = exchange(&self.pods[0], &self.neighbour, at, at)?.seen.ip();
        for len in [1, 1400, 5000] {
            let from = datagram(&self.pods[0], &self.neighbour, at, at, len)?.ip();
            ensure!(from == seen, "{server} sees {seen} over TCP and {from} over UDP");
        }
        Ok(seen)
    }

    /// Packets that went past the stack: out by an uplink, into a pod.
    fn past(&self) -> (u64, u64) {
        (self.lab.count(Counter::FastPathUplink), self.lab.count(Counter::FastPathPod))
    }

    /// The error that a datagram of the first pod brings.
    fn told(&self, target: SocketAddr, prepare: impl Fn(&UdpSocket) + Sync) -> Result<Errno> {
        let any = if target.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let error = self.pods[0].run(|| -> Result<i32> {
            let client = UdpSocket::bind(any)?;
            client.set_read_timeout(Some(PATIENCE))?;
            if target.is_ipv4() {
                // Errors that are not hard come on the socket, too.
                setsockopt(&client, sockopt::Ipv4RecvErr, &true)?;
            } else {
                setsockopt(&client, sockopt::Ipv6RecvErr, &true)?;
            }
            prepare(&client);
            client.connect(target)?;
            client.send(b"x")?;
            let error = client.recv(&mut [0; 8]).expect_err("nobody answers");
            error.raw_os_error().context("an error of the kernel")
        })??;
        Ok(Errno::from_raw(error))
    }

    /// Packets that left the node by the interface.
    fn sent_by(&self, interface: &str) -> Result<u64> {
        let text = self.node.ip_output(&["-s", "-j", "link", "show", "dev", interface])?;
        let links: serde_json::Value = serde_json::from_str(&text)?;
        links[0]["stats64"]["tx"]["packets"].as_u64().context("packets that were sent")
    }
}

fn socket(ip: &str, port: u16) -> SocketAddr {
    let ip: IpAddr = ip.parse().unwrap_or_else(|error| panic!("{ip}: {error}"));
    SocketAddr::new(ip, port)
}

/// R1, R6: a pod reaches a pod of another node with its own address and a server outside with the
/// node's, and nothing of it crosses the node's stack, neither way, by TCX and by clsact. Without the
/// fast path the same goes through the stack.
#[test]
fn pods_leave_by_the_uplink_past_the_stack() -> Result<()> {
    for hook in [TcHook::Tcx, TcHook::Clsact] {
        for fast_path in [true, false] {
            let world = World::new("onward", fast_path, hook)?;
            for Family { node, pod, remote, server, .. } in FAMILIES {
                // The neighbour's hardware address is looked for by the stack, which tells if there is none.
                let own: IpAddr = node.parse()?;
                datagram(
                    &world.pods[0],
                    &world.neighbour,
                    socket(server, 9),
                    socket(server, 9),
                    1,
                )?;
                let (before, past) = (forwarded(&world.node)?, world.past());
                assert_eq!(world.talk(remote)?, pod.parse::<IpAddr>()?, "{hook}");
                let masked = world.lab.count(Counter::Masqueraded);
                assert_eq!(world.talk(server)?, own, "{hook}");
                assert_eq!(world.lab.count(Counter::Masqueraded), masked + 4, "{hook}");
                let through = forwarded(&world.node)? - before;
                assert_eq!(through == 0, fast_path, "the stack forwarded {through} by {hook}");
                let (out, into) = world.past();
                assert_eq!(out > past.0, fast_path, "{out} out by {hook}");
                assert_eq!(into > past.1, fast_path, "{into} into the pod by {hook}");
            }
        }
    }
    Ok(())
}

/// S1: what is translated packet by packet leaves the same way: a Service whose backend is on another
/// node.
#[test]
fn a_service_with_a_backend_elsewhere_is_reached_past_the_stack() -> Result<()> {
    let mut world = World::fast("onward-svc")?;
    for (Family { remote, pod, server, .. }, vip) in
        FAMILIES.into_iter().zip(["10.96.0.10", "fd00:96::10"])
    {
        datagram(&world.pods[0], &world.neighbour, socket(server, 9), socket(server, 9), 1)?;
        let (target, backend) = (socket(vip, 80), socket(remote, 8080));
        for proto in [proto::TCP, proto::UDP] {
            world.lab.service(&target.to_string(), proto, &[&backend.to_string()])?;
        }
        let before = forwarded(&world.node)?;
        let done = exchange(&world.pods[0], &world.neighbour, target, backend)?;
        assert_eq!(done.seen.ip(), pod.parse::<IpAddr>()?);
        for len in [1, 5000] {
            datagram(&world.pods[0], &world.neighbour, target, backend, len)?;
        }
        assert_eq!(forwarded(&world.node)?, before);
    }
    assert!(world.lab.count(Counter::PacketForward) > 0);
    Ok(())
}

/// S28: the last hop, and a way that is closed, are answered by the stack with the error that it
/// has for each; so is a destination whose neighbour does not answer. Nothing of it leaves.
#[test]
fn what_cannot_be_sent_on_is_answered_by_the_stack() -> Result<()> {
    let world = World::fast("onward-errors")?;
    // All errors are for one pod.
    world.node.sysctls(&[("ipv4/icmp_ratelimit", "0"), ("ipv6/icmp/ratelimit", "0")])?;
    for Family { server, .. } in FAMILIES {
        datagram(&world.pods[0], &world.neighbour, socket(server, 9), socket(server, 9), 1)?;
    }
    // A neighbour that does not answer is given up soon.
    for family in ["ipv4", "ipv6"] {
        world.node.sysctls(&[(&format!("{family}/neigh/eth0/retrans_time_ms"), "50")])?;
    }
    world.node.ip("route add unreachable 203.0.113.1/32\nroute add prohibit 203.0.113.2/32\n\
         route add 203.0.113.3/32 via 172.31.0.99\n\
         route add unreachable 2001:db8:113::1/128\nroute add prohibit 2001:db8:113::2/128\n\
         route add 2001:db8:113::3/128 via fd00:172:31::99")?;
    let leave = |_: &UdpSocket| {};
    for (target, expected) in [
        ("203.0.113.1", Errno::EHOSTUNREACH),
        ("203.0.113.2", Errno::EHOSTUNREACH),
        ("203.0.113.3", Errno::EHOSTUNREACH),
        ("2001:db8:113::1", Errno::ENETUNREACH),
        ("2001:db8:113::2", Errno::EACCES),
        ("2001:db8:113::3", Errno::EHOSTUNREACH),
    ] {
        assert_eq!(world.told(socket(target, 9), leave)?, expected, "{target}");
    }
    for Family { remote, .. } in FAMILIES {
        let (out, _) = world.past();
        let last_hop = |client: &UdpSocket| {
            let result = if remote.contains(':') {
                setsockopt(client, sockopt::Ipv6Ttl, &1)
            } else {
                setsockopt(client, sockopt::Ipv4Ttl, &1)
            };
            result.expect("the kernel takes a hop limit");
        };
        assert_eq!(world.told(socket(remote, 9), last_hop)?, Errno::EHOSTUNREACH, "{remote}");
        assert_eq!(world.past().0, out, "{remote}");
    }
    Ok(())
}

/// S28: the way takes less than the pod's link. The stack tells the pod, whose segments get smaller;
/// a large packet that the kernel will cut into segments is judged by those. What may be fragmented
/// the stack fragments.
#[test]
fn packets_too_large_for_the_way_are_left_to_the_stack() -> Result<()> {
    let world = World::fast("onward-mtu")?;
    for Family { remote, neighbour, bits, server, any, .. } in FAMILIES {
        datagram(&world.pods[0], &world.neighbour, socket(server, 9), socket(server, 9), 1)?;
        world.node.ip(&format!("route replace {remote}/{bits} via {neighbour} mtu lock 1300"))?;
        let at = socket(remote, 8080);
        let out = world.past().0;
        let done = exchange(&world.pods[0], &world.neighbour, at, at)?;
        assert!(done.segment <= 1260, "the pod sends segments of {} bytes", done.segment);
        assert!(world.past().0 > out, "what fits leaves past the stack");
        // The pod has learned it, and fragments by itself; a datagram that may be fragmented on the
        // way is sent whole all the same.
        let serving = world.neighbour.run(|| bind(|| UdpSocket::bind(at)))??;
        serving.set_read_timeout(Some(PATIENCE))?;
        let out = world.past().0;
        world.pods[0].run(|| -> Result<()> {
            let client = UdpSocket::bind(any)?;
            if at.is_ipv4() {
                set_ip_mtu_discover(&client, Ipv4PathMtuDiscovery::INTERFACE)?;
            }
            client.send_to(&traffic::pattern(1400), at)?;
            Ok(())
        })??;
        let mut buffer = [0; 2000];
        let got = serving.recv(&mut buffer)?;
        assert_eq!(buffer[..got], traffic::pattern(1400));
        if at.is_ipv4() {
            assert_eq!(world.past().0, out, "the stack fragments");
        }
    }
    Ok(())
}

/// R5: a way by an interface that is no uplink is the stack's, whatever is behind it; once it is an
/// uplink, packets leave by it past the stack, and no longer once it is none any more, also across a
/// restart of the agent.
#[test]
fn only_uplinks_are_left_by_past_the_stack() -> Result<()> {
    let mut world = World::fast("onward-links")?;
    for Family { remote, bits, .. } in FAMILIES {
        let via = if bits == 32 { "172.32.0.12" } else { "fd00:172:32::12" };
        world.node.ip(&format!("route replace {remote}/{bits} via {via}"))?;
    }
    let check = |world: &World, past: bool| -> Result<()> {
        for Family { remote, pod, .. } in FAMILIES {
            let (out, sent) = (world.past().0, world.sent_by("eth1")?);
            assert_eq!(world.talk(remote)?, pod.parse::<IpAddr>()?);
            assert_eq!(world.past().0 > out, past, "{remote}");
            assert!(world.sent_by("eth1")? > sent, "{remote}");
        }
        Ok(())
    };
    check(&world, false)?;
    let ifindex =
        world.node.run(|| world.lab.dataplane.attach_uplink_by("eth1", TcHook::Tcx))??.ifindex;
    check(&world, true)?;
    // The next agent keeps what is pinned.
    world.lab.dataplane = Dataplane::open(world.lab.config().clone())?;
    check(&world, true)?;
    world.node.run(|| world.lab.dataplane.detach_uplink(ifindex, Some("eth1")))??;
    check(&world, false)?;
    assert!(!world.lab.dataplane.view().uplinks()?.contains(&ifindex));
    // A filter has no pin: the next agent attaches it before it counts.
    world.node.run(|| world.lab.dataplane.attach_uplink_by("eth1", TcHook::Clsact))??;
    check(&world, true)?;
    world.lab.dataplane = Dataplane::open(world.lab.config().clone())?;
    check(&world, false)?;
    world.node.run(|| world.lab.dataplane.attach_uplink_by("eth1", TcHook::Clsact))??;
    check(&world, true)
}

/// R3: a flow that goes on follows the routing table, though the table is not asked for each of its
/// packets: out by another uplink, and back to the stack where the way is by none.
#[test]
fn a_flow_follows_its_route_when_that_changes() -> Result<()> {
    let mut world = World::fast("onward-follows")?;
    let ifindex =
        world.node.run(|| world.lab.dataplane.attach_uplink_by("eth1", TcHook::Tcx))??.ifindex;
    for Family { remote, neighbour, any, bits, .. } in FAMILIES {
        let serving = world.neighbour.run(|| bind(|| UdpSocket::bind(socket(remote, 9))))??;
        let client = world.pods[0].run(|| UdpSocket::bind(any))??;
        serving.set_read_timeout(Some(PATIENCE))?;
        let send = || -> Result<()> {
            client.send_to(b"x", socket(remote, 9))?;
            serving.recv(&mut [0; 8]).context("the datagram")?;
            Ok(())
        };
        // Sends until it leaves by the interface and, if so, past the stack.
        let leaves_by = |interface: &str, past: bool| {
            wait_for(&format!("{remote} to be reached by {interface}"), PATIENCE, || {
                let before = (world.sent_by(interface).ok()?, world.past().0);
                (0..20).try_for_each(|_| send()).ok()?;
                let sent = world.sent_by(interface).ok()? - before.0;
                let through = world.past().0 - before.1;
                (sent >= 20 && through == if past { 20 } else { 0 }).then_some(())
            })
        };
        leaves_by("eth0", true)?;
        let other = if bits == 32 { "172.32.0.12" } else { "fd00:172:32::12" };
        for (via, interface) in [(other, "eth1"), (neighbour, "eth0"), (other, "eth1")] {
            world.node.ip(&format!("route replace {remote}/{bits} via {via}"))?;
            leaves_by(interface, true)?;
        }
    }
    world.node.run(|| world.lab.dataplane.detach_uplink(ifindex, Some("eth1")))??;
    for Family { remote, .. } in FAMILIES {
        let past = world.past().0;
        datagram(&world.pods[0], &world.neighbour, socket(remote, 9), socket(remote, 9), 1)?;
        assert_eq!(world.past().0, past, "{remote}");
    }
    Ok(())
}

/// Many flows, more than there is room to remember their ways apart: each is sent on as its own
/// destination asks for, with the pod's address within the cluster and with the node's outside.
#[test]
fn flows_that_share_a_place_keep_their_ways() -> Result<()> {
    let mut world = World::fast("onward-share")?;
    let [v4, v6] = FAMILIES.map(|family| addr(family.node));
    let (port_min, port_max, flags) = (40_000, 59_999, NodeAddrs::MASQUERADE);
    world.lab.dataplane.set_node_addrs(NodeAddrs { v4, v6, port_min, port_max, flags })?;
    for Family { remote, server, pod, node, any, .. } in FAMILIES {
        datagram(&world.pods[0], &world.neighbour, socket(server, 9), socket(server, 9), 1)?;
        let ends = [(remote, pod), (server, node)];
        let serving = world.neighbour.run(|| -> Result<Vec<UdpSocket>> {
            let sockets = ends.map(|(at, _)| bind(|| UdpSocket::bind(socket(at, 9))));
            Ok(sockets.into_iter().collect::<Result<_, _>>()?)
        })??;
        let clients = world.pods[0].run(|| -> Result<Vec<UdpSocket>> {
            Ok((0..500).map(|_| UdpSocket::bind(any)).collect::<Result<_, _>>()?)
        })??;
        let past = world.past().0;
        for _ in 0..2 {
            for client in &clients {
                for ((at, expected), serving) in ends.iter().zip(&serving) {
                    client.send_to(b"x", socket(at, 9))?;
                    serving.set_read_timeout(Some(PATIENCE))?;
                    let (_, seen) = serving.recv_from(&mut [0; 8]).context("the datagram")?;
                    assert_eq!(seen.ip(), expected.parse::<IpAddr>()?, "{at}");
                }
            }
        }
        assert_eq!(world.past().0, past + 2_000, "all of them past the stack");
    }
    Ok(())
}

/// The way that a flow took a moment ago is for packets from the same pod's interface alone, whatever
/// others say they are; and it ends where a pod of this node gets the destination's address.
#[test]
fn a_known_way_is_the_pods_own_and_ends_where_a_pod_begins() -> Result<()> {
    let mut world = World::fast("onward-own")?;
    // Ways are remembered by each CPU for itself.
    let allowed = sched_getaffinity(Pid::from_raw(0))?;
    let cpu = (0..CpuSet::count()).find(|cpu| allowed.is_set(*cpu) == Ok(true));
    let mut one = CpuSet::new();
    one.set(cpu.context("a CPU")?)?;
    sched_setaffinity(Pid::from_raw(0), &one)?;
    for Family { pod, remote, bits, .. } in FAMILIES {
        world.pods[1].ip(&format!("addr add {pod}/{bits} dev lo nodad"))?;
        let serving = world.neighbour.run(|| bind(|| UdpSocket::bind(socket(remote, 9))))??;
        serving.set_read_timeout(Some(PATIENCE))?;
        let [own, forged] =
            [0, 1].map(|n| world.pods[n].run(|| bind(|| UdpSocket::bind(socket(pod, 7000)))));
        let (own, forged) = (own??, forged??);
        let send = |client: &UdpSocket| -> Result<u64> {
            let before = world.past().0;
            client.send_to(b"x", socket(remote, 9))?;
            serving.recv(&mut [0; 8]).context("the datagram")?;
            Ok(world.past().0 - before)
        };
        // The stack looks for the neighbour.
        wait_for(&format!("{remote} past the stack"), PATIENCE, || {
            send(&own).ok().filter(|past| *past == 1)
        })?;
        for _ in 0..20 {
            assert_eq!(send(&own)?, 1, "{remote}: the first asks, or knows");
            assert_eq!(send(&own)?, 1, "{remote}: the second knows");
            assert_eq!(send(&forged)?, 0, "{remote}: left to the stack");
        }

        world.pods[1]
            .ip(&format!("addr del {pod}/{bits} dev lo\naddr add {remote}/{bits} dev lo nodad"))?;
        let here = world.pods[1].run(|| bind(|| UdpSocket::bind(socket(remote, 9))))??;
        here.set_nonblocking(true)?;
        world.lab.endpoint(remote, world.endpoints[1])?;
        wait_for(&format!("{remote} to be reached on this node"), PATIENCE, || {
            own.send_to(b"x", socket(remote, 9)).ok()?;
            here.recv(&mut [0; 8]).ok()
        })?;
    }
    Ok(())
}

/// R3: rules for routes hold past the stack as well: by the source, and by the port asked for.
#[test]
fn rules_for_routes_hold_past_the_stack() -> Result<()> {
    let mut world = World::fast("onward-rules")?;
    world.node.run(|| world.lab.dataplane.attach_uplink_by("eth1", TcHook::Tcx))??;
    for Family { remote, pod, bits, server, .. } in FAMILIES {
        datagram(&world.pods[0], &world.neighbour, socket(server, 9), socket(server, 9), 1)?;
        let (via, dash) =
            if bits == 32 { ("172.32.0.12", "-4") } else { ("fd00:172:32::12", "-6") };
        world.node.ip_output(&[dash, "route", "add", "default", "via", via, "table", "100"])?;
        let at = socket(remote, 8080);
        for rule in [&["from", pod][..], &["ipproto", "tcp", "dport", "8080"]] {
            let rule = |verb| [&[dash, "rule", verb][..], rule, &["lookup", "100"]].concat();
            world.node.ip_output(&rule("add"))?;
            // The neighbour on the other interface is found by the first packet.
            exchange(&world.pods[0], &world.neighbour, at, at)?;
            let (before, sent) = (forwarded(&world.node)?, world.sent_by("eth1")?);
            exchange(&world.pods[0], &world.neighbour, at, at)?;
            assert_eq!(forwarded(&world.node)?, before, "{rule:?}", rule = rule("add"));
            assert!(world.sent_by("eth1")? > sent + 10, "{rule:?}", rule = rule("add"));
            world.node.ip_output(&rule("del"))?;
            let sent = world.sent_by("eth1")?;
            exchange(&world.pods[0], &world.neighbour, at, at)?;
            assert!(world.sent_by("eth1")? < sent + 10, "without the rule by the other way");
        }
    }
    Ok(())
}

/// What is for the node itself, for many, or for a link alone stays with the stack.
#[test]
fn what_is_not_to_be_forwarded_stays_with_the_stack() -> Result<()> {
    let world = World::fast("onward-stays")?;
    for Family { node, neighbour, server, .. } in FAMILIES {
        datagram(&world.pods[0], &world.neighbour, socket(server, 9), socket(server, 9), 1)?;
        let out = world.past().0;
        let at = socket(node, 8080);
        exchange(&world.pods[0], &world.node, at, at)?;
        assert_eq!(world.past().0, out, "{node}");
        // The same interface, and an address that is forwarded.
        let at = socket(neighbour, 8080);
        datagram(&world.pods[0], &world.neighbour, at, at, 1)?;
        assert_eq!(world.past().0, out + 1, "{neighbour}");
    }
    let out = world.past().0;
    for target in ["224.1.2.3:9", "169.254.7.7:9", "240.0.0.1:9", "[ff0e::1:2:3]:9"] {
        let target: SocketAddr = target.parse()?;
        world.pods[0].run(|| -> Result<()> {
            let client = UdpSocket::bind(if target.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" })?;
            // Class E is refused at once by some kernels.
            let _ = client.send_to(b"x", target);
            Ok(())
        })??;
    }
    // A packet with a source that is not the pod's at that interface is for the stack to judge.
    world.pods[1].ip(&format!("addr add {}/32 dev eth0", FAMILIES[0].pod))?;
    world.pods[1].run(|| -> Result<()> {
        let client = bind(|| UdpSocket::bind(socket(FAMILIES[0].pod, 0)))?;
        client.send_to(b"x", socket(FAMILIES[0].remote, 9))?;
        Ok(())
    })??;
    // Packets of one interface are seen in their order, those of two not: the second is asked, too.
    let at = socket(FAMILIES[0].node, 8081);
    for pod in &world.pods {
        let server = world.node.run(|| bind(|| UdpSocket::bind(at)))??;
        server.set_read_timeout(Some(PATIENCE))?;
        pod.run(|| -> Result<()> {
            UdpSocket::bind("0.0.0.0:0")?.send_to(b"y", at)?;
            Ok(())
        })??;
        server.recv(&mut [0; 8])?;
    }
    assert_eq!(world.past().0, out);
    Ok(())
}

/// C10: a pod whose packets something on the stack is meant to see, such as the bandwidth plugin's
/// queueing disciplines, stays on it: to and from the other pods of the node, pods elsewhere and the
/// outside; others go past it as before.
#[test]
fn a_pod_can_be_kept_on_the_stack() -> Result<()> {
    let mut world = World::fast("onward-kept")?;
    let kept = Endpoint { flags: Endpoint::NO_FAST_PATH, ..world.endpoints[0] };
    for Family { pod, .. } in FAMILIES {
        world.lab.endpoint(pod, kept)?;
    }
    for (Family { node, pod, other, remote, server, .. }, vip) in
        FAMILIES.into_iter().zip(["10.96.0.10", "fd00:96::10"])
    {
        let past = world.past();
        assert_eq!(world.talk(remote)?, pod.parse::<IpAddr>()?);
        assert_eq!(world.talk(server)?, node.parse::<IpAddr>()?);
        let at = socket(other, 8080);
        exchange(&world.pods[0], &world.pods[1], at, at)?;
        let at = socket(pod, 8080);
        exchange(&world.pods[1], &world.pods[0], at, at)?;
        // By a Service, with a backend here and elsewhere.
        for backend in [other, remote] {
            let (target, backend) = (socket(vip, 80), socket(backend, 8080));
            world.lab.service(&target.to_string(), proto::TCP, &[&backend.to_string()])?;
            let serves =
                if backend == socket(other, 8080) { &world.pods[1] } else { &world.neighbour };
            exchange(&world.pods[0], serves, target, backend)?;
        }
        // From outside, by a NodePort.
        let (target, backend) = (socket(node, 30_080), socket(pod, 8080));
        world.lab.service(&target.to_string(), proto::TCP, &[&backend.to_string()])?;
        exchange(&world.neighbour, &world.pods[0], target, backend)?;
        // Pods that are not kept answer each other past the stack, so packets for the kept one alone
        // were all there were.
        let (out, into) = world.past();
        assert_eq!(out, past.0, "out by the uplink");
        assert_eq!(into, past.1, "into pods");
    }
    Ok(())
}

/// C10, S20: with `--masquerade-all` a client outside reaches such a pod with the node's address, which
/// the stack would refuse: packets go to it by the queueing discipline of its host's side.
#[test]
fn what_the_stack_would_refuse_passes_the_queueing_discipline() -> Result<()> {
    let mut world = World::fast("onward-qdisc")?;
    let [v4, v6] = FAMILIES.map(|family| addr(family.node));
    let (port_min, port_max) = (50_000, 50_999);
    let flags = NodeAddrs::MASQUERADE | NodeAddrs::SNAT_ALWAYS;
    world.lab.dataplane.set_node_addrs(NodeAddrs { v4, v6, port_min, port_max, flags })?;
    let name = world.node.name().to_owned();
    let tc = |args: &[&str]| sluice_tests::netns::run("tc", &[&["-n", &name][..], args].concat());
    tc(&["qdisc", "replace", "dev", "slu0", "root", "pfifo", "limit", "1000"])?;
    for Family { node, pod, .. } in FAMILIES {
        let kept = Endpoint { flags: Endpoint::NO_FAST_PATH, ..world.endpoints[0] };
        world.lab.endpoint(pod, kept)?;
        let (target, backend) = (socket(node, 30_080), socket(pod, 8080));
        world.lab.service(&target.to_string(), proto::TCP, &[&backend.to_string()])?;
        let into = world.past().1;
        let passed = || -> Result<u64> {
            let text = tc(&["-s", "-j", "qdisc", "show", "dev", "slu0"])?;
            let all: serde_json::Value = serde_json::from_str(&text)?;
            let all = all.as_array().context("a list")?;
            let root = all.iter().find(|it| it["kind"] == "pfifo").context("the qdisc")?;
            root["bytes"].as_u64().context("bytes that passed")
        };
        let before = passed()?;
        let done = exchange(&world.neighbour, &world.pods[0], target, backend)?;
        assert_eq!(done.seen.ip(), node.parse::<IpAddr>()?);
        assert_eq!(world.past().1, into, "nothing is handed to the pod past its interface");
        assert!(passed()? > before + (4 << 20), "the body passed the queueing discipline");
    }
    Ok(())
}

/// S28, S20: ICMP errors that meet the programs at the uplink: a backend's to a client outside, one
/// from outside to a pod behind the node's address, and such a pod's own. By the stack and past it,
/// by TCX and by clsact.
#[test]
fn errors_cross_the_uplink_translated() -> Result<()> {
    for hook in [TcHook::Tcx, TcHook::Clsact] {
        for fast_path in [false, true] {
            let mut world = World::new("onward-icmp", fast_path, hook)?;
            for Family { node, pod, server, any, .. } in FAMILIES {
                let translated = world.lab.count(Counter::IcmpTranslated);
                // Nobody listens at the backend's port: the client outside hears it from the node.
                let (target, backend) = (socket(node, 30_080), socket(pod, 8080));
                world.lab.service(&target.to_string(), proto::UDP, &[&backend.to_string()])?;
                let refused = |client: &UdpSocket| -> Result<()> {
                    client.set_read_timeout(Some(PATIENCE))?;
                    let error = client.recv(&mut [0; 8]).expect_err("nobody answers");
                    ensure!(error.raw_os_error() == Some(Errno::ECONNREFUSED as i32), "{error}");
                    Ok(())
                };
                let client = world.neighbour.run(|| UdpSocket::bind(any))??;
                client.connect(target)?;
                client.send(b"x")?;
                refused(&client).context("a client outside")?;
                assert_eq!(world.lab.count(Counter::IcmpTranslated), translated + 1);

                // Nobody listens outside: the pod, which is seen with the node's address, hears it.
                let error = world.told(socket(server, 9), |_| {})?;
                assert_eq!(error, Errno::ECONNREFUSED, "{server}");
                assert_eq!(world.lab.count(Counter::IcmpTranslated), translated + 2);

                // The pod's socket is gone when the answer comes: the server hears it.
                let serving =
                    world.neighbour.run(|| bind(|| UdpSocket::bind(socket(server, 7))))??;
                serving.set_read_timeout(Some(PATIENCE))?;
                world.pods[0].run(|| -> Result<()> {
                    UdpSocket::bind(any)?.send_to(b"x", socket(server, 7))?;
                    Ok(())
                })??;
                let (_, seen) = serving.recv_from(&mut [0; 8])?;
                assert_eq!(seen.ip(), node.parse::<IpAddr>()?);
                serving.connect(seen)?;
                serving.send(b"y")?;
                refused(&serving).context("a server outside")?;
                assert_eq!(world.lab.count(Counter::IcmpTranslated), translated + 3);
            }
        }
    }
    Ok(())
}

/// S4: clients outside reach a pod of the node by a NodePort with the programs attached by filters,
/// and the pod's answers leave by them.
#[test]
fn node_ports_are_served_by_filters_at_uplinks() -> Result<()> {
    for fast_path in [false, true] {
        let mut world = World::new("onward-clsact", fast_path, TcHook::Clsact)?;
        for Family { node, pod, neighbour, .. } in FAMILIES {
            let (target, backend) = (socket(node, 30_080), socket(pod, 8080));
            for proto in [proto::TCP, proto::UDP] {
                world.lab.service(&target.to_string(), proto, &[&backend.to_string()])?;
            }
            let done = exchange(&world.neighbour, &world.pods[0], target, backend)?;
            assert_eq!(done.seen, done.client);
            assert_eq!(done.client.ip(), neighbour.parse::<IpAddr>()?);
            traffic::datagram(&world.neighbour, &world.pods[0], target, backend, 5000)?;
        }
        assert!(world.lab.count(Counter::UplinkForward) > 0);
        assert!(world.lab.count(Counter::UplinkReverse) > 0);
    }
    Ok(())
}

/// R6: pings of pods that leave the cluster come from the node, each with an identifier of its own; the
/// answers, and errors about them, find the pod that asked. The node's own pings are never taken for a
/// pod's. Inside the cluster a pod keeps its address.
#[test]
fn pings_of_pods_leave_with_the_nodes_address() -> Result<()> {
    for fast_path in [false, true] {
        let world = World::new("onward-ping", fast_path, TcHook::Tcx)?;
        for Family { node, pod, remote, server, .. } in FAMILIES {
            let ip = |text: &str| text.parse::<IpAddr>();
            let (own, pod, server, remote) = (ip(node)?, ip(pod)?, ip(server)?, ip(remote)?);
            let open = |netns: &NetNs| netns.run(|| Pinger::open(own.is_ipv6()))?;
            let [one, two] = [open(&world.pods[0])?, open(&world.pods[1])?];
            let (host, there) = (open(&world.node)?, open(&world.neighbour)?);
            let request = |message: &Message| matches!(message, Message::Request(_));
            // Both have the same identifier.
            let mut seen = Vec::new();
            for pinger in [&one, &two] {
                pinger.ask(server, 777)?;
                let (from, Message::Request(id)) = there.hear(request)? else { unreachable!() };
                ensure!(from == own && (50_000..51_000).contains(&id), "{from} asks, with {id}");
                let answer = pinger.hear(|message| matches!(message, Message::Reply(_)))?;
                assert_eq!(answer, (server, Message::Reply(777)));
                seen.push(id);
            }
            assert_ne!(seen[0], seen[1]);
            // The node asks with the identifier that the first pod has outside.
            host.ask(server, seen[0])?;
            let (from, Message::Request(id)) = there.hear(request)? else { unreachable!() };
            assert_eq!(from, own);
            assert_ne!(id, seen[0]);
            let answer = host.hear(|message| matches!(message, Message::Reply(_)))?;
            assert_eq!(answer, (server, Message::Reply(seen[0])));
            // The pod goes on with what it had.
            one.ask(server, 777)?;
            assert_eq!(there.hear(request)?, (own, Message::Request(seen[0])));
            one.hear(|message| *message == Message::Reply(777))?;

            // Nobody has that address, and a router says so.
            let nowhere = ip(if own.is_ipv4() { "203.0.113.1" } else { "2001:db8:52::1" })?;
            world.neighbour.ip(&format!("route add unreachable {nowhere}"))?;
            one.ask(nowhere, 778)?;
            let (_, told) = one.hear(|message| matches!(message, Message::Error(..)))?;
            assert_eq!(told, Message::Error(pod, nowhere, 778));

            // Of another node's pod it is known as itself.
            one.ask(remote, 779)?;
            let asked = |message: &Message| *message == Message::Request(779);
            assert_eq!(there.hear(asked)?.0, pod);
            one.hear(|message| *message == Message::Reply(779))?;
        }
        assert_eq!(world.lab.count(Counter::DropRewrite), 0);
    }
    Ok(())
}
