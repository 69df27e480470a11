//! Routes between nodes of two subnets with a router between them that lets no pod's address pass: real agents, real
//! pods, vxlan where there is no shared link. Needs root.

mod kernel;
mod walk;
mod world;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use serde_json::Value;
use sluice_tests::Result;
use sluice_tests::pod;
use sluice_tests::shop::web_service;
use sluice_tests::wait::{wait_for, wait_ok};

use kernel::{Lines, expected, held, json, text};
use world::{Member, World};

/// How long a node may take to do what it should; never reached when all is well.
const LIMIT: Duration = Duration::from_secs(30);
/// A pod that tells its name. The kernel sums up UDP of up to 76 bytes anew, whatever it was told of the sum.
const FAR: &str = "web-1-whose-answers-are-long";
const CROSS_SUBNET: [&str; 2] = ["--encapsulation", "cross-subnet"];

fn two_nodes() -> Result<(World, Vec<Member>)> {
    let members = vec![Member::new(0, 0), Member::new(1, 1)];
    Ok((World::new(&members)?, members))
}

fn has_problem(status: &Value, subject: &str, message: &str) -> bool {
    let problems = status["agent"]["problems"].as_array().cloned().unwrap_or_default();
    problems.iter().any(|p| text(p, "subject") == subject && text(p, "message").contains(message))
}

/// R5, O4, S4: without encapsulation the other node is skipped and that is told; with it pods, processes of nodes and clients
/// outside reach pods behind a router that lets no pod's address pass; switched off, and by `--cleanup`, all of it goes.
#[test]
fn pods_and_node_ports_are_served_across_a_router() -> Result<()> {
    let (mut world, members) = two_nodes()?;
    for index in 0..2 {
        world.start(index, &[])?;
    }
    let a = &world.nodes[0];
    a.wait_for_view(&["status"], LIMIT, |status| {
        has_problem(status, "Node node-b", "not on a shared link")
    })?;
    let rows = a.wait_for_view(&["route", "list"], LIMIT, |rows| rows[1]["how"] == "skipped")?;
    assert!(text(&rows[0], "note").contains("172.31.0.1"), "{rows}");
    let old = a.add_pod("shop", "old")?;

    for index in 0..2 {
        world.nodes[index].stop_agent()?;
        world.start(index, &CROSS_SUBNET)?;
    }
    let [a, b] = [&world.nodes[0], &world.nodes[1]];
    for (index, node) in world.nodes.iter().enumerate() {
        let wanted = expected(&members[index], &members, &BTreeSet::new());
        wait_for("the tunnel", LIMIT, || (held(node.netns()).ok()? == wanted).then_some(()))?;
    }
    let rows = a.wait_for_view(&["route", "list"], LIMIT, |rows| rows[1]["how"] == "vxlan")?;
    assert_eq!(
        (text(&rows[0], "via"), text(&rows[0], "node")),
        ("172.31.1.12", "node-b"),
        "{rows}"
    );
    assert!(a.proxyctl(&["status"])?.contains("10.244.2.0/24 by vxlan to 172.31.1.12 (node-b)"));
    a.wait_for_view(&["status"], LIMIT, |status| {
        has_problem(status, "Pod shop/old", "its MTU is 1500")
    })?;
    // There is room for the outer headers in what new pods send.
    let web = [a.add_pod("shop", "web-0")?, b.add_pod("shop", FAR)?];
    for pod in &web {
        let link = json("ip", pod.netns(), &["link", "show", "dev", "eth0"])?;
        assert_eq!(link[0]["mtu"], 1450);
    }
    a.del_pod(old)?;
    world.pods_reach_each_other("tunnel")?;

    // Processes of a node and pods of the other: answers must find back, too.
    let _servers = [web[0].serve(8080)?, web[1].serve(8080)?];
    let app = sluice_tests::bin("testapp")?;
    let host = b.spawn(
        "serve-host",
        &b.launch(&app).args(["serve", "--udp", "--port", "9090"]).env("POD_NAME", "host-b"),
    )?;
    let mut host = host;
    host.wait_for_log("listening", LIMIT)?;
    for address in b.addresses() {
        let target = SocketAddr::new(address, 9090);
        let answer = wait_ok("the host", LIMIT, || web[0].get(&target.to_string()))?;
        let peer: SocketAddr = answer.peer.parse()?;
        assert!(web[0].addresses().contains(&peer.ip().to_canonical()), "{answer:?}");
        wait_ok("the host, UDP", LIMIT, || web[0].udp(target))?;
    }
    for address in web[1].addresses() {
        let target = SocketAddr::new(*address, 8080);
        let answer = wait_ok("from the host", LIMIT, || a.get(&target.to_string()))?;
        let peer: SocketAddr = answer.peer.parse()?;
        assert!(a.addresses().contains(&peer.ip().to_canonical()), "{answer:?}");
    }

    // Clients outside, the endpoint behind the tunnel.
    let service = web_service().kind("NodePort").node_port(30080);
    world.apply("web", &service.with_endpoints(&[&web[1]]))?;
    for target in ["172.31.0.11:30080", "[fd00:172:31::11]:30080"] {
        let outside = || world.router.launch(&app);
        let answer = wait_ok(target, LIMIT, || pod::get(outside(), target))?;
        let peer: SocketAddr = answer.peer.parse()?;
        assert_eq!(answer.pod, FAR);
        assert!(a.addresses().contains(&peer.ip().to_canonical()), "{answer:?}");
        let answer = wait_ok(target, LIMIT, || pod::udp(outside(), target.parse()?))?;
        assert_eq!(answer.pod, FAR);
    }
    // A ClusterIP, from a pod.
    let answer = wait_ok("the ClusterIP", LIMIT, || web[0].get("10.96.0.10:80"))?;
    assert_eq!(answer.pod, FAR);

    // The table is read from the kernel while there is no agent.
    world.nodes[0].kill_agent()?;
    let rows: Value =
        serde_json::from_str(&world.nodes[0].proxyctl(&["route", "list", "-o", "json"])?)?;
    assert!(
        rows.as_array().is_some_and(|rows| rows.iter().all(|row| row["how"] == "vxlan")),
        "{rows}"
    );
    assert_eq!(rows.as_array().map(Vec::len), Some(2));
    // Switched off.
    world.start(0, &[])?;
    let node = &world.nodes[0];
    wait_for("the tunnel to go", LIMIT, || held(node.netns()).ok()?.is_empty().then_some(()))?;
    world.nodes[1].stop_agent()?;
    world.nodes[1].agent_launch(&world.source())?.arg("--cleanup").run()?;
    assert_eq!(held(world.nodes[1].netns())?, Lines::new());
    Ok(())
}
