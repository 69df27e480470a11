//! Clients outside the cluster, and pods that leave it: real agents, real sockets, two nodes, fast path on and off.

use std::net::IpAddr;

use anyhow::{Context as _, ensure};
use sluice_abi::ABI_VERSION;
use sluice_proxy::dataplane::Pinned;
use sluice_tests::app::Identity;
use sluice_tests::load::Load;
use sluice_tests::manifests::Service;
use sluice_tests::netns::NetNs;
use sluice_tests::node::Node;
use sluice_tests::pod;
use sluice_tests::process::{Launch, Process};
use sluice_tests::shop::{Shop, WEB_V4, web_service};
use sluice_tests::wait::wait_ok;
use sluice_tests::{PATIENCE, Result, bin, wait_for};

/// Node ports of `node-a` and `node-b` in both families.
const NODE_PORTS: [[&str; 2]; 2] = [
    ["172.31.0.11:30080", "[fd00:172:31::11]:30080"],
    ["172.31.0.12:30080", "[fd00:172:31::12]:30080"],
];
/// The client's addresses on the LAN.
const CLIENT: [&str; 2] = ["172.31.0.50", "fd00:172:31::50"];

fn node_port_service() -> Service {
    web_service().kind("NodePort").node_port(30080)
}

/// A machine on the LAN that is no node.
struct Outside {
    netns: NetNs,
    dir: std::path::PathBuf,
}

impl Outside {
    fn new(shop: &Shop) -> Result<Self> {
        let netns = NetNs::new("client")?;
        let lan = shop.cluster.lan();
        netns.veth("eth0", lan, "port-client")?;
        lan.ip("link set port-client master lan0")?;
        netns.ip(&format!(
            "addr add {}/24 dev eth0\naddr add {}/64 dev eth0 nodad",
            CLIENT[0], CLIENT[1]
        ))?;
        Ok(Self { netns, dir: shop.cluster.dir().to_owned() })
    }

    fn testapp(&self) -> Result<Launch> {
        Ok(self.netns.launch(bin("testapp")?))
    }

    fn tcp(&self, target: &str) -> Result<Identity> {
        pod::get(self.testapp()?, target)
    }

    fn udp(&self, target: &str) -> Result<Identity> {
        pod::udp(self.testapp()?, target.parse()?)
    }

    fn spawn(&self, label: &str, launch: &Launch) -> Result<Process> {
        launch.spawn(&self.dir.join(format!("outside-{label}.log")))
    }

    /// A server out here.
    fn serve(&self, port: u16) -> Result<Process> {
        let launch = self.testapp()?.env("POD_NAME", "outside").env("NODE_NAME", "outside").args([
            "serve",
            "--udp",
            "--port",
            &port.to_string(),
        ]);
        let mut process = self.spawn("serve", &launch)?;
        process.wait_for_log("listening", PATIENCE)?;
        Ok(process)
    }
}

fn restart_agents(shop: &mut Shop, args: &[&str]) -> Result<()> {
    let source = shop.cluster.source();
    for index in 0..2 {
        let node = shop.cluster.node_mut(index);
        node.stop_agent()?;
        node.start_agent_with(&source, args)?;
    }
    Ok(())
}

fn peer(answer: &Identity) -> Result<IpAddr> {
    let peer: std::net::SocketAddr = answer.peer.parse()?;
    Ok(peer.ip().to_canonical())
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
}

/// S4, S20: on every node, with and without an endpoint there; who is behind the node asked sees the client, who is
/// behind another one sees the node that was asked.
#[test]
fn node_ports_serve_clients_outside_on_every_node() -> Result<()> {
    let mut shop = Shop::open()?;
    let outside = Outside::new(&shop)?;
    for fast_path in ["true", "false"] {
        restart_agents(&mut shop, &["--fast-path", fast_path])?;
        for (slot, name) in [(0, "web-0"), (1, "web-1")] {
            shop.cluster.apply("web", &node_port_service().with_endpoints(&[&shop.web[slot]]))?;
            for (index, targets) in NODE_PORTS.iter().enumerate() {
                for (family, target) in targets.iter().enumerate() {
                    let label = format!("fast path {fast_path}, {name} through {target}");
                    let answer = wait_ok(&label, PATIENCE, || {
                        let answer = outside.tcp(target)?;
                        anyhow::ensure!(answer.pod == name, "{answer:?}");
                        Ok(answer)
                    })?;
                    let node = shop.cluster.node(index).addresses()[family];
                    let expected = if index == slot { ip(CLIENT[family]) } else { node };
                    assert_eq!(peer(&answer)?, expected, "TCP, {label}");
                    // The program checks that the answer comes from whom it asked. The two protocols are switched one
                    // after the other.
                    let answer = wait_ok(&label, PATIENCE, || {
                        let answer = outside.udp(target)?;
                        anyhow::ensure!(answer.pod == name, "{answer:?}");
                        Ok(answer)
                    })?;
                    assert_eq!(peer(&answer)?, expected, "UDP, {label}");
                }
            }
        }
        let pods: Vec<_> = shop.web.iter().collect();
        shop.cluster.apply("web", &node_port_service().with_endpoints(&pods))?;
        for target in NODE_PORTS.iter().flatten() {
            wait_ok("both endpoints", PATIENCE, || {
                let report = pod::load(outside.testapp()?, target, 60)?;
                anyhow::ensure!(report.ok == 60 && report.backends.len() == 2, "{report:?}");
                Ok(())
            })?;
        }
    }
    Ok(())
}

/// S20: a client that has a route to the service addresses through a node.
#[test]
fn a_cluster_ip_serves_clients_outside_that_have_a_route() -> Result<()> {
    let shop = Shop::open()?;
    let outside = Outside::new(&shop)?;
    outside.netns.ip(
        "route add 10.96.0.0/16 via 172.31.0.11\nroute add fd00:96::/112 via fd00:172:31::11",
    )?;
    for target in ["10.96.0.10:80", "[fd00:96::10]:80"] {
        let report = pod::load(outside.testapp()?, target, 60)?;
        assert!(report.ok == 60 && report.backends.len() == 2, "{report:?}");
        for _ in 0..8 {
            outside.udp(target)?;
        }
    }
    Ok(())
}

/// R6: outside sees the node, the cluster sees the pod; over TCP and UDP, and the answers arrive.
#[test]
fn pods_leave_the_cluster_with_the_nodes_address() -> Result<()> {
    let mut shop = Shop::open()?;
    let outside = Outside::new(&shop)?;
    let _server = outside.serve(9000)?;
    for fast_path in ["true", "false"] {
        restart_agents(&mut shop, &["--fast-path", fast_path])?;
        for (family, node) in shop.cluster.node(0).addresses().into_iter().enumerate() {
            let target = std::net::SocketAddr::new(ip(CLIENT[family]), 9000);
            let answer = shop.client.get(&target.to_string())?;
            assert_eq!((answer.pod.as_str(), peer(&answer)?), ("outside", node));
            let answer = shop.client.udp(target)?;
            assert_eq!((answer.pod.as_str(), peer(&answer)?), ("outside", node));
            // A pod of the other node, and the other node itself, are inside.
            let own = shop.client.addresses()[family];
            let other = std::net::SocketAddr::new(shop.web[1].addresses()[family], 8080);
            let answer = shop.client.get(&other.to_string())?;
            assert_eq!((answer.pod.as_str(), peer(&answer)?), ("web-1", own));
        }
    }
    // Turned off, the pod goes out as itself, and nobody out there knows the way back.
    restart_agents(&mut shop, &["--masquerade", "false"])?;
    assert!(shop.client.udp(std::net::SocketAddr::new(ip(CLIENT[0]), 9000)).is_err());
    let report = shop.cluster.node(0).proxyctl(&["status"])?;
    assert!(report.contains("Uplinks") && report.contains("eth0 by"), "{report}");
    Ok(())
}

/// S32: connections from outside, to both kinds of endpoints, while the agents are killed and come back.
#[test]
fn connections_from_outside_outlive_the_agents() -> Result<()> {
    let mut shop = Shop::open()?;
    let outside = Outside::new(&shop)?;
    let pods: Vec<_> = shop.web.iter().collect();
    shop.cluster.apply("web", &node_port_service().with_endpoints(&pods))?;
    let mut loads = Vec::new();
    for (n, target) in NODE_PORTS.iter().flatten().enumerate() {
        wait_ok("the NodePort", PATIENCE, || outside.tcp(target))?;
        let launch =
            outside.testapp()?.args(["load", target, "--rate", "50", "--concurrency", "4"]);
        loads.push(Load::new(outside.spawn(&format!("new-{n}"), &launch)?)?);
        let kept = outside.spawn(&format!("kept-{n}"), &launch.arg("--keep-alive"))?;
        loads.push(Load::new(kept)?);
    }
    let source = shop.cluster.source();
    for index in 0..2 {
        shop.cluster.node_mut(index).kill_agent()?;
        for target in NODE_PORTS.iter().flatten() {
            outside.tcp(target)?;
            outside.udp(target)?;
        }
        shop.cluster.node_mut(index).start_agent(&source)?;
    }
    for target in NODE_PORTS.iter().flatten() {
        outside.tcp(target)?;
    }
    for load in loads {
        load.finish()?;
    }
    Ok(())
}

/// An interface that is none of the uplinks any more loses its programs, and gets them back.
#[test]
fn uplinks_follow_the_flag() -> Result<()> {
    let mut shop = Shop::open()?;
    let outside = Outside::new(&shop)?;
    let pods: Vec<_> = shop.web.iter().collect();
    shop.cluster.apply("web", &node_port_service().with_endpoints(&pods))?;
    let target = NODE_PORTS[0][0];
    wait_ok("the NodePort", PATIENCE, || outside.tcp(target))?;
    restart_agents(&mut shop, &["--uplinks", ""])?;
    wait_ok("the end of the NodePort for clients outside", PATIENCE, || {
        anyhow::ensure!(outside.tcp(target).is_err(), "still served");
        Ok(())
    })?;
    restart_agents(&mut shop, &["--uplinks", "eth0"])?;
    wait_ok("the NodePort", PATIENCE, || outside.tcp(target))?;
    Ok(())
}

/// Indexes of the interfaces by which packets of pods may leave past the stack: those with the programs of an
/// uplink.
fn ways(node: &Node) -> Result<Vec<u32>> {
    Ok(Pinned::open(node.bpf_root())?.uplinks()?)
}

fn index(node: &Node, interface: &str) -> Result<u32> {
    let shown = node.netns().ip_output(&["-o", "link", "show", "dev", interface])?;
    Ok(shown.split(':').next().context("an index")?.trim().parse()?)
}

/// Waits until these are the uplinks, by their index, and the programs are attached to no other interface.
fn wait_uplinks(node: &Node, expected: &[u32]) -> Result<()> {
    let links = node.bpf_root().join(format!("v{ABI_VERSION}/links"));
    wait_ok("the uplinks", PATIENCE, || {
        let mut found = ways(node)?;
        found.sort_unstable();
        ensure!(found == expected, "{found:?}, and expected is {expected:?}");
        let entries = std::fs::read_dir(&links)?.flatten();
        let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
        let pins: Vec<String> = names.filter(|name| name.starts_with("uplink_")).collect();
        for index in expected {
            let prefix = format!("uplink_{index}_");
            ensure!(pins.iter().filter(|pin| pin.starts_with(&prefix)).count() == 2, "{pins:?}");
        }
        ensure!(pins.len() == 2 * expected.len(), "{pins:?}");
        Ok(())
    })
}

/// S20, R6: an interface that comes while the agent runs is an uplink by a default route, of whatever table, by an
/// address of the node, and as long as it has that; a new name changes nothing else; and it may go. Clients outside are
/// served by it meanwhile.
#[test]
fn uplinks_follow_interfaces_that_come_go_and_change() -> Result<()> {
    let shop = Shop::open()?;
    let pods: Vec<_> = shop.web.iter().collect();
    shop.cluster.apply("web", &node_port_service().with_endpoints(&pods))?;
    let node = shop.cluster.node(0);
    let eth0 = index(node, "eth0")?;
    wait_uplinks(node, &[eth0])?;
    let ip = |command: &str| node.netns().ip(command);

    // Another machine, at another cable.
    let far = NetNs::new("far")?;
    node.netns().veth("eth1", &far, "eth0")?;
    far.ip("addr add 192.0.2.1/24 dev eth0\nroute add 172.31.0.11 via 192.0.2.2")?;
    let eth1 = index(node, "eth1")?;
    ip("addr add 192.0.2.2/24 dev eth1")?;
    // The end of duplicate address detection is an event of its own, which would hide that another is missed.
    wait_for("the link-local address", PATIENCE, || {
        let shown = node.netns().ip_output(&["-6", "-o", "addr", "show", "dev", "eth1"]).ok()?;
        (shown.contains("fe80:") && !shown.contains("tentative")).then_some(())
    })?;
    let testapp = bin("testapp")?;
    let asks = || pod::get_within(far.launch(&testapp), NODE_PORTS[0][0], 5);

    for table in ["main", "100"] {
        ip(&format!("route add default via 192.0.2.1 table {table}"))?;
        wait_uplinks(node, &[eth0, eth1])?;
        let answer = wait_ok("the NodePort by the new uplink", PATIENCE, asks)?;
        assert!(answer.pod.starts_with("web-"), "{answer:?}");
        ip(&format!("route del default via 192.0.2.1 table {table}"))?;
        wait_uplinks(node, &[eth0])?;
    }

    // An address of the node moves to it, and back.
    for (from, to, expected) in [("eth0", "eth1", vec![eth0, eth1]), ("eth1", "eth0", vec![eth0])] {
        let v4 = "172.31.0.11/24";
        ip(&format!("addr del {v4} dev {from}\naddr add {v4} dev {to}"))?;
        wait_uplinks(node, &expected)?;
    }

    // Its name changes, and nothing else does.
    ip("route add default via 192.0.2.1")?;
    wait_uplinks(node, &[eth0, eth1])?;
    ip("link set eth1 name wan0")?;
    node.wait_for_view(&["status"], PATIENCE, |status| {
        let text = status.to_string();
        text.contains("wan0 by") && !text.contains("eth1 by")
    })?;
    wait_uplinks(node, &[eth0, eth1])?;
    wait_ok("the NodePort by the uplink with its new name", PATIENCE, asks)?;

    // It goes, and another one comes in its place.
    ip("link del wan0")?;
    wait_uplinks(node, &[eth0])?;
    node.netns().veth("wan0", &far, "eth0")?;
    far.ip("addr add 192.0.2.1/24 dev eth0\nroute add 172.31.0.11 via 192.0.2.2")?;
    ip("addr add 192.0.2.2/24 dev wan0\nroute add default via 192.0.2.1")?;
    let wan0 = index(node, "wan0")?;
    ensure!(wan0 != eth1, "another interface");
    wait_uplinks(node, &[eth0, wan0])?;
    wait_ok("the NodePort by the uplink in its place", PATIENCE, asks)?;
    Ok(())
}

/// C9: pods that come and go start no look at the uplinks, and nothing is attached to those anew.
#[test]
fn pods_that_come_and_go_leave_the_uplinks_alone() -> Result<()> {
    let mut shop = Shop::open()?;
    restart_agents(&mut shop, &["--log-level", "info,sluice_proxy::agent::uplinks=debug"])?;
    wait_uplinks(shop.cluster.node(0), &[index(shop.cluster.node(0), "eth0")?])?;
    let count = |shop: &mut Shop| -> Result<[usize; 2]> {
        let log = shop.cluster.node_mut(0).agent()?.log();
        let lines = |text: &str| log.lines().filter(|line| line.contains(text)).count();
        Ok([lines("looking at the uplinks"), lines("serving uplink")])
    };
    let before = count(&mut shop)?;
    ensure!(before.iter().all(|lines| *lines > 0), "{before:?}");
    for n in 0..6 {
        let node = shop.cluster.node(0);
        let mut config = node.cni_config();
        config["hook"] = serde_json::json!(["clsact", "tcx"][n % 2]);
        let pod = node.add_pod_with("shop", &format!("passing-{n}"), &config)?;
        pod.get(WEB_V4)?;
        node.del_pod(pod)?;
    }
    // What the agent hears of later than of all those makes it look: then it has heard of them, too.
    shop.cluster.node(0).netns().ip("addr add 192.0.2.9/32 dev lo")?;
    wait_ok("a look for another reason", PATIENCE, || {
        let now = count(&mut shop)?;
        ensure!(now[0] > before[0], "{now:?}");
        Ok(())
    })?;
    assert_eq!(count(&mut shop)?, [before[0] + 1, before[1]]);
    Ok(())
}
