//! Ports of a node that lead to a pod: who reaches them, who has them, and for how long.

use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use serde_json::{Value, json};
use sluice_tests::app::Identity;
use sluice_tests::cluster::Cluster;
use sluice_tests::manifests::{Service, namespace};
use sluice_tests::node::Node;
use sluice_tests::pod::{self, Pod};
use sluice_tests::process::{Launch, Process};
use sluice_tests::wait::wait_ok;
use sluice_tests::{PATIENCE, Result, bin};

const TARGET: u16 = 8080;
const ON_NODE: [&str; 2] = ["172.31.0.11:9080", "[fd00:172:31::11]:9080"];
const LOCALHOST: [&str; 2] = ["127.0.0.1:9080", "[::1]:9080"];

/// One node with an agent, and a pod that asks.
struct Stage {
    client: Pod,
    cluster: Cluster,
}

impl Stage {
    fn open() -> Result<Self> {
        let mut cluster = Cluster::new(1)?;
        cluster.apply("namespace-shop", &namespace("shop"))?;
        cluster.start_agents()?;
        let client = cluster.node(0).add_pod("shop", "client")?;
        Ok(Self { client, cluster })
    }

    fn node(&self) -> &Node {
        self.cluster.node(0)
    }

    /// A pod with these port mappings and a server of TCP and UDP.
    fn serve(&self, name: &str, mappings: Value) -> Result<(Pod, Process)> {
        let pod = self.node().add_pod_with_ports("shop", name, mappings)?;
        let server = pod.serve(TARGET)?;
        Ok((pod, server))
    }

    /// Everybody inside, hooked or not, over TCP and UDP.
    fn reached_by_all(&self, targets: &[&str], name: &str) -> Result<()> {
        let testapp = bin("testapp")?;
        for target in targets {
            answers("pod", || self.client.launch(&testapp), target, name)?;
            let unhooked = || self.client.launch_unhooked(&testapp);
            answers("pod whose packets are translated one by one", unhooked, target, name)?;
            answers("node", || self.node().launch(&testapp), target, name)?;
        }
        Ok(())
    }

    fn refused_by_node(&self, target: &str) -> Result<()> {
        refused(self.node().launch(bin("testapp")?), target)
    }
}

fn both(port: u16) -> Value {
    json!([
        {"hostPort": port, "containerPort": TARGET, "protocol": "tcp"},
        {"hostPort": port, "containerPort": TARGET, "protocol": "udp"},
    ])
}

fn answers(who: &str, testapp: impl Fn() -> Launch, target: &str, name: &str) -> Result<()> {
    let answer = pod::get(testapp(), target)?;
    assert_eq!(answer.pod, name, "{who}, TCP {target}");
    let answer = pod::udp(testapp(), target.parse()?)?;
    assert_eq!(answer.pod, name, "{who}, UDP {target}");
    Ok(())
}

fn refused(testapp: Launch, target: &str) -> Result<()> {
    match pod::get(testapp, target) {
        Err(error) if format!("{error:#}").contains("refused") => Ok(()),
        other => anyhow::bail!("{target}: {other:?}"),
    }
}

/// S37: TCP and UDP, both families, from pods and from the node, also on its localhost; gone with the
/// pod; shown to people.
#[test]
fn a_host_port_leads_pods_and_the_node_to_the_pod_and_goes_with_it() -> Result<()> {
    let stage = Stage::open()?;
    // ADD returned: no waiting.
    let (web, server) = stage.serve("web-0", both(9080))?;
    stage.reached_by_all(&ON_NODE, "web-0")?;
    for target in LOCALHOST {
        answers("node", || stage.node().launch(bin("testapp").unwrap()), target, "web-0")?;
        // A pod's loopback is the pod's.
        refused(stage.client.launch(bin("testapp")?), target)?;
    }
    // The pod itself, as everybody else.
    answers("itself", || web.launch(bin("testapp").unwrap()), ON_NODE[0], "web-0")?;

    let table = stage.node().proxyctl(&["service", "list"])?;
    let row = table.lines().find(|line| line.contains(ON_NODE[0]) && line.contains("TCP"));
    let row = row.unwrap_or_else(|| panic!("{table}"));
    assert!(row.contains("HostPort") && row.contains("web-0"), "{row}");
    let table = stage.node().proxyctl(&["endpoint", "list"])?;
    assert!(table.contains("9080->8080/TCP, 9080->8080/UDP"), "{table}");

    drop(server);
    stage.node().del_pod(web)?;
    for target in ON_NODE.iter().chain(&LOCALHOST) {
        stage.refused_by_node(target)?;
    }
    let rows = stage.node().wait_for_view(&["service", "list"], PATIENCE, |_| true)?;
    assert_eq!(rows, json!([]));
    Ok(())
}

/// S37: clients on other machines reach it, keep their address, and are refused once the pod is gone;
/// what is on the node's localhost is not theirs.
#[test]
fn a_host_port_serves_clients_outside_who_keep_their_address() -> Result<()> {
    let stage = Stage::open()?;
    let mut mappings = both(9080);
    let own = json!({"hostPort": 9081, "containerPort": TARGET, "protocol": "tcp", "hostIP": "127.0.0.1"});
    mappings.as_array_mut().expect("a list").push(own);
    let (web, server) = stage.serve("web-0", mappings)?;
    let testapp = bin("testapp")?;
    let outside = || stage.cluster.lan().launch(&testapp);
    for (target, client) in ON_NODE.iter().zip(["172.31.0.1", "fd00:172:31::1"]) {
        answers("outside", outside, target, "web-0")?;
        let answer = pod::get(outside(), target)?;
        let peer: SocketAddr = answer.peer.parse()?;
        assert_eq!(peer.ip().to_canonical().to_string(), client, "{answer:?}");
    }
    refused(outside(), "172.31.0.11:9081")?;
    drop(server);
    stage.node().del_pod(web)?;
    for target in ON_NODE {
        refused(outside(), target)?;
    }
    Ok(())
}

/// S37: hostIP.
#[test]
fn a_host_ip_alone_has_the_port() -> Result<()> {
    let stage = Stage::open()?;
    let mappings = json!([
        {"hostPort": 9080, "containerPort": TARGET, "protocol": "tcp", "hostIP": "127.0.0.1"},
        {"hostPort": 9080, "containerPort": TARGET, "protocol": "udp", "hostIP": "127.0.0.1"},
        {"hostPort": 9081, "containerPort": TARGET, "protocol": "tcp", "hostIP": "0.0.0.0"},
        {"hostPort": 9082, "containerPort": TARGET, "protocol": "tcp", "hostIP": "198.51.100.1"},
    ]);
    let _web = stage.serve("web-0", mappings)?;
    answers("node", || stage.node().launch(bin("testapp").unwrap()), LOCALHOST[0], "web-0")?;
    for target in [LOCALHOST[1], ON_NODE[0], ON_NODE[1], "[fd00:172:31::11]:9081"] {
        stage.refused_by_node(target)?;
    }
    assert_eq!(stage.client.get("172.31.0.11:9081")?.pod, "web-0");
    // Somebody else's address is not taken from him, and people are told.
    let status = stage.node().proxyctl(&["status"])?;
    assert!(status.contains("198.51.100.1 is no address of this node"), "{status}");
    Ok(())
}

/// S37, S32: ports live as long as their pods, whatever becomes of the agent; the port of a pod that
/// went meanwhile is gone when the next one is up.
#[test]
fn a_host_port_outlives_its_agent_but_not_its_pod() -> Result<()> {
    let mut stage = Stage::open()?;
    let _stays = stage.serve("stays", both(9080))?;
    let (goes, server) = stage.serve("goes", both(9090))?;
    let source = stage.cluster.source();
    stage.cluster.node_mut(0).kill_agent()?;
    stage.reached_by_all(&ON_NODE, "stays")?;
    drop(server);
    // Its DEL finds no agent, and needs none.
    stage.node().del_pod(goes)?;
    stage.cluster.node_mut(0).start_agent(&source)?;
    stage.reached_by_all(&ON_NODE, "stays")?;
    stage.refused_by_node("172.31.0.11:9090")?;
    stage.refused_by_node("127.0.0.1:9090")?;
    // An agent that has read all of its source keeps it, too.
    stage.cluster.apply("web", &Service::new("shop", "web").cluster_ip("10.96.0.7").yaml())?;
    stage.node().wait_for_view(&["status"], PATIENCE, |status| {
        status["agent"]["source"]["synced"] == true
    })?;
    stage.reached_by_all(&ON_NODE, "stays")
}

/// S37: of two that want a port the first has it, the other is named in a warning and has it next.
#[test]
fn the_first_pod_keeps_the_port_and_the_next_one_inherits_it() -> Result<()> {
    let stage = Stage::open()?;
    let (first, server) = stage.serve("a-first", both(9080))?;
    let _second = stage.serve("b-second", both(9080))?;
    stage.reached_by_all(&ON_NODE, "a-first")?;
    let status = stage.node().proxyctl(&["status"])?;
    let line = status.lines().find(|line| line.contains("belongs to Pod shop/a-first"));
    assert!(line.is_some_and(|line| line.contains("Pod shop/b-second")), "{status}");
    drop(server);
    stage.node().del_pod(first)?;
    stage.reached_by_all(&ON_NODE, "b-second")?;
    let status = stage.node().proxyctl(&["status"])?;
    assert!(!status.contains("belongs to Pod"), "{status}");
    Ok(())
}

/// S37: a flow of datagrams from one port of a client, translated packet by packet, moves to the next
/// owner of the port.
#[test]
fn a_udp_flow_does_not_stick_to_a_former_owner() -> Result<()> {
    let stage = Stage::open()?;
    let target: SocketAddr = ON_NODE[0].parse()?;
    let own = SocketAddr::from((stage.client.ipv4()?, 40_000));
    // No socket hook sees this one: the thread is in the pod's namespace and outside its cgroup.
    let socket = stage.client.netns().run(|| UdpSocket::bind(own))??;
    let ask = |limit: Duration| -> Result<String> {
        socket.set_read_timeout(Some(limit))?;
        socket.send_to(b"hello", target)?;
        let mut buffer = [0; 2048];
        let (length, from) = socket.recv_from(&mut buffer)?;
        anyhow::ensure!(from == target, "answered by {from}");
        Ok(serde_json::from_slice::<Identity>(&buffer[..length])?.pod)
    };
    let (old, server) = stage.serve("old", both(9080))?;
    assert_eq!(ask(PATIENCE)?, "old");
    assert_eq!(ask(PATIENCE)?, "old");
    drop(server);
    stage.node().del_pod(old)?;
    // Too long for an answer, were there one, and not so long that nobody would wait for the test.
    let moment = Duration::from_millis(500);
    assert!(ask(moment).is_err(), "nobody has the port");
    let _new = stage.serve("new", both(9080))?;
    wait_ok("an answer of the new owner", PATIENCE, || {
        let name = ask(moment)?;
        anyhow::ensure!(name == "new", "{name} answered");
        Ok(())
    })
}
