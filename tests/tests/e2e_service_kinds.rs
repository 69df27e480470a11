//! Every address of a Service, from inside: NodePort, load balancer, external IP; traffic policies; changes of type.

use std::collections::BTreeSet;

use serde_json::Value;
use sluice_tests::cluster::node_manifest;
use sluice_tests::load::Load;
use sluice_tests::manifests::Service;
use sluice_tests::process::Launch;
use sluice_tests::shop::{Shop, WEB_V4, WEB_V6, web_service};
use sluice_tests::wait::wait_ok;
use sluice_tests::{PATIENCE, Result, bin, pod, wait_for};

/// Node ports of `node-a` and `node-b` in both families.
const NODE_PORTS: [[&str; 2]; 2] = [
    ["172.31.0.11:30080", "[fd00:172:31::11]:30080"],
    ["172.31.0.12:30080", "[fd00:172:31::12]:30080"],
];
const LOCALHOST: [&str; 2] = ["127.0.0.1:30080", "[::1]:30080"];

fn node_port_service() -> Service {
    web_service().kind("NodePort").node_port(30080)
}

/// Asks over TCP and UDP, connected and not, and expects one of these pods each time.
fn ask(who: &str, testapp: impl Fn() -> Launch, targets: &[&str], pods: &[&str]) -> Result<()> {
    for target in targets {
        let answer = pod::get(testapp(), target)?;
        assert!(pods.contains(&&*answer.pod), "{who}, TCP {target}: {answer:?}");
        let answer = pod::udp(testapp(), target.parse()?)?;
        assert!(pods.contains(&&*answer.pod), "{who}, UDP {target}: {answer:?}");
        // The program checks that the answers come from the address that it asked, too.
        let lines = testapp().args(["udp", target, "--unconnected", "--count", "3"]).run()?;
        assert_eq!(lines.lines().count(), 3, "{who}, unconnected UDP {target}: {lines}");
    }
    Ok(())
}

fn refused(testapp: Launch, target: &str) -> Result<()> {
    match pod::get(testapp, target) {
        Err(error) if format!("{error:#}").contains("refused") => Ok(()),
        other => anyhow::bail!("{target}: {other:?}"),
    }
}

/// The addresses that `proxyctl service list` shows under a type.
fn frontends(rows: &Value, kind: &str) -> BTreeSet<String> {
    let rows = rows.as_array().into_iter().flatten();
    rows.filter(|row| row["kind"] == kind)
        .filter_map(|row| row["frontend"].as_str().map(str::to_owned))
        .collect()
}

/// The part of NodePorts that is inside the node; it has an endpoint or not.
#[test]
fn a_node_port_serves_pods_and_host_processes_on_the_nodes_addresses_and_localhost() -> Result<()> {
    let shop = Shop::open()?;
    let testapp = bin("testapp")?;
    // The only endpoint is on node-a.
    shop.cluster.apply("web", &node_port_service().with_endpoints(&[&shop.web[0]]))?;
    for (index, targets) in NODE_PORTS.iter().enumerate() {
        let node = shop.cluster.node(index);
        shop.cluster.wait_served(index, targets[1])?;
        for targets in [targets, &LOCALHOST] {
            ask(node.name(), || node.launch(&testapp), targets, &["web-0"])?;
        }
    }
    ask("pod on node-a", || shop.client.launch(&testapp), &NODE_PORTS[0], &["web-0"])?;
    ask("pod on node-b", || shop.web[1].launch(&testapp), &NODE_PORTS[1], &["web-0"])?;
    ask("the endpoint itself", || shop.web[0].launch(&testapp), &NODE_PORTS[0], &["web-0"])?;
    let unhooked = || shop.client.launch_unhooked(&testapp);
    ask("unhooked process in a pod", unhooked, &NODE_PORTS[0], &["web-0"])?;
    Ok(())
}

/// A pod's loopback is the pod's, whatever the node serves on its own.
#[test]
fn a_node_port_takes_nothing_from_a_pods_own_localhost() -> Result<()> {
    let shop = Shop::open()?;
    let pods: Vec<_> = shop.web.iter().collect();
    shop.cluster.apply("web", &node_port_service().with_endpoints(&pods))?;
    for target in LOCALHOST {
        shop.cluster.wait_served(0, target)?;
        refused(shop.client.launch(bin("testapp")?), target)?;
    }
    let own = shop.client.serve(30080)?;
    ask("pod", || shop.client.launch(bin("testapp").unwrap()), &LOCALHOST, &["client"])?;
    drop(own);
    Ok(())
}

/// S5, S6: addresses of a proxy are left alone, and there need not be a node port.
#[test]
fn a_load_balancers_address_and_an_external_ip_serve_pods_and_host_processes() -> Result<()> {
    let shop = Shop::open()?;
    let testapp = bin("testapp")?;
    let pods: Vec<_> = shop.web.iter().collect();
    let service = web_service()
        .kind("LoadBalancer")
        .spec("allocateLoadBalancerNodePorts: false")
        .spec("externalIPs: [\"192.0.2.10\", \"2001:db8:2::10\"]")
        .spec("externalTrafficPolicy: Local")
        .ingress("198.51.100.10", "VIP")
        .ingress("2001:db8:51::10", "VIP")
        .ingress("198.51.100.11", "Proxy");
    shop.cluster.apply("web", &service.with_endpoints(&pods))?;
    let targets =
        ["192.0.2.10:80", "[2001:db8:2::10]:80", "198.51.100.10:80", "[2001:db8:51::10]:80"];
    for target in targets {
        shop.cluster.wait_served(0, target)?;
        shop.cluster.wait_served(1, target)?;
    }
    let both = ["web-0", "web-1"];
    ask("pod", || shop.client.launch(&testapp), &targets, &both)?;
    ask("unhooked", || shop.client.launch_unhooked(&testapp), &targets, &both)?;
    for node in shop.cluster.nodes() {
        ask(node.name(), || node.launch(&testapp), &targets, &both)?;
    }
    // Clients inside get the endpoints of the whole cluster under externalTrafficPolicy: Local.
    let report = shop.client.load(targets[2], 200)?;
    assert_eq!((report.ok, report.backends.len()), (200, 2), "{report:?}");

    let rows = shop.cluster.node(0).wait_for_view(&["service", "list"], PATIENCE, |_| true)?;
    assert_eq!(
        frontends(&rows, "LoadBalancer"),
        [targets[2], targets[3]].map(str::to_owned).into(),
        "{rows}"
    );
    assert_eq!(frontends(&rows, "NodePort"), [].into(), "{rows}");
    Ok(())
}

/// S5: what `--allow-service-external-ips` and `--nodeport-addresses` leave out is not served, also where the kernel
/// held it before.
#[test]
fn flags_choose_what_is_served() -> Result<()> {
    let mut shop = Shop::open()?;
    let pods: Vec<_> = shop.web.iter().collect();
    let service = node_port_service().spec("externalIPs: [\"192.0.2.10\"]");
    shop.cluster.apply("web", &service.with_endpoints(&pods))?;
    let [v4, v6] = NODE_PORTS[0];
    let all: BTreeSet<String> = [v4, v6, LOCALHOST[0], LOCALHOST[1]].map(str::to_owned).into();
    shop.cluster.node(0).wait_for_view(&["service", "list"], PATIENCE, |rows| {
        frontends(rows, "NodePort") == all
            && frontends(rows, "ExternalIP") == ["192.0.2.10:80".to_owned()].into()
    })?;
    let source = shop.cluster.source();
    let node = shop.cluster.node_mut(0);
    node.stop_agent()?;
    let flags =
        ["--allow-service-external-ips", "false", "--nodeport-addresses", "172.31.0.0/24,::1/128"];
    node.start_agent_with(&source, &flags)?;
    let some: BTreeSet<String> = [v4, LOCALHOST[1]].map(str::to_owned).into();
    shop.cluster.node(0).wait_for_view(&["service", "list"], PATIENCE, |rows| {
        frontends(rows, "NodePort") == some && frontends(rows, "ExternalIP").is_empty()
    })?;
    shop.cluster.node(0).get(v4)?;
    shop.cluster.node(0).get(LOCALHOST[1])?;
    refused(shop.cluster.node(0).launch(bin("testapp")?), v6)?;
    refused(shop.cluster.node(0).launch(bin("testapp")?), LOCALHOST[0])?;
    Ok(())
}

/// S10
#[test]
fn internal_traffic_policy_local_keeps_a_cluster_ip_on_the_node() -> Result<()> {
    let shop = Shop::open()?;
    let service = node_port_service().spec("internalTrafficPolicy: Local");
    let pods: Vec<_> = shop.web.iter().collect();
    shop.cluster.apply("web", &service.with_endpoints(&pods))?;
    for (index, own) in [(0, "web-0"), (1, "web-1")] {
        let node = shop.cluster.node(index);
        wait_ok("the node's own endpoint alone", PATIENCE, || {
            let report = node.load(WEB_V4, 32)?;
            let alone = report.ok == 32 && report.backends.keys().eq([own]);
            if alone { Ok(()) } else { anyhow::bail!("{report:?}") }
        })?;
        ask(node.name(), || node.launch(bin("testapp").unwrap()), &[WEB_V4, WEB_V6], &[own])?;
    }
    let client = || shop.client.launch(bin("testapp").unwrap());
    ask("pod on node-a", client, &[WEB_V4, WEB_V6], &["web-0"])?;

    // None on node-a: refused there, though node-b has one; the NodePort has the cluster's endpoints.
    shop.cluster.apply("web", &service.with_endpoints(&[&shop.web[1]]))?;
    // Frontends are switched one after the other.
    for target in [WEB_V4, WEB_V6] {
        wait_ok("the refusal", PATIENCE, || refused(client(), target))?;
    }
    refused(shop.cluster.node(0).launch(bin("testapp")?), WEB_V6)?;
    wait_ok("the NodePort's other endpoint", PATIENCE, || {
        let report = pod::load(client(), NODE_PORTS[0][1], 32)?;
        let alone = report.ok == 32 && report.backends.keys().eq(["web-1"]);
        if alone { Ok(()) } else { anyhow::bail!("{report:?}") }
    })?;
    ask("pod on node-a", client, &NODE_PORTS[0], &["web-1"])?;
    assert_eq!(shop.cluster.node(1).get(WEB_V4)?.pod, "web-1");
    Ok(())
}

/// S13: a zone's own endpoints, and all of them once the node is in another zone.
#[test]
fn zone_hints_lead_to_the_nodes_zone_and_follow_the_node() -> Result<()> {
    let shop = Shop::open()?;
    let pods: Vec<_> = shop.web.iter().collect();
    let spec = shop.cluster.node(0).spec().clone();
    let in_zone = |zone: &str| {
        node_manifest(&spec).replace(
            "  labels:\n",
            &format!("  labels:\n    topology.kubernetes.io/zone: {zone}\n"),
        )
    };
    let zoned = web_service().spec("trafficDistribution: PreferSameZone").with_endpoints(&pods);
    // As the endpoint slice controller writes them: node-a is in the west.
    let mut hinted = String::new();
    for line in zoned.lines() {
        hinted.push_str(line);
        hinted.push('\n');
        if let Some(node) = line.trim().strip_prefix("nodeName: ") {
            let zone = if node == "node-a" { "west" } else { "east" };
            hinted
                .push_str(&format!("  zone: {zone}\n  hints:\n    forZones: [{{name: {zone}}}]\n"));
        }
    }
    shop.cluster.apply("node-a", &in_zone("west"))?;
    shop.cluster.apply("web", &hinted)?;
    let reaches = |expected: &[&str]| {
        wait_ok(&format!("{expected:?}"), PATIENCE, || {
            let report = shop.client.load(WEB_V4, 64)?;
            let found = report.backends.keys().map(String::as_str).eq(expected.iter().copied());
            if found && report.ok == 64 { Ok(()) } else { anyhow::bail!("{report:?}") }
        })
    };
    reaches(&["web-0"])?;
    shop.cluster.apply("node-a", &in_zone("east"))?;
    reaches(&["web-1"])?;
    shop.cluster.apply("node-a", &in_zone("north"))?;
    reaches(&["web-0", "web-1"])
}

/// S31: with load on all the time.
#[test]
fn a_service_changes_its_type_in_place_and_fails_no_request() -> Result<()> {
    let shop = Shop::open()?;
    let pods: Vec<_> = shop.web.iter().collect();
    let launch = shop.client.launch(bin("testapp")?);
    let launch = launch.args(["load", WEB_V4, "--rate", "200", "--concurrency", "2"]);
    let load = Load::new(shop.client.spawn("load", &launch)?)?;
    let [node_port, _] = NODE_PORTS[0];
    let client = || shop.client.launch(bin("testapp").unwrap());
    for _ in 0..3 {
        shop.cluster.apply("web", &node_port_service().with_endpoints(&pods))?;
        shop.cluster.wait_served(0, node_port)?;
        let balanced = web_service().kind("LoadBalancer").ingress("198.51.100.10", "VIP");
        shop.cluster.apply("web", &balanced.with_endpoints(&pods))?;
        shop.cluster.wait_served(0, "198.51.100.10:80")?;
        wait_ok("the end of the NodePort", PATIENCE, || refused(client(), node_port))?;
        shop.cluster.apply("web", &web_service().with_endpoints(&pods))?;
        shop.cluster.node(0).wait_for_view(&["service", "list"], PATIENCE, |rows| {
            frontends(rows, "LoadBalancer").is_empty()
        })?;
    }
    load.finish()?;
    Ok(())
}

/// What has no frontend is explained, and what was refused is named beside what is still in force.
#[test]
fn proxyctl_explains_a_service_of_every_kind() -> Result<()> {
    let shop = Shop::open()?;
    let node = shop.cluster.node(0);
    let pods: Vec<_> = shop.web.iter().collect();
    let told = |expected: &str| {
        wait_for(&format!("proxyctl service get to say {expected:?}"), PATIENCE, || {
            let text = node.proxyctl(&["service", "get", "shop/web"]).ok()?;
            text.contains(expected).then_some(text)
        })
    };
    told("ClusterIP")?;
    let wrong = web_service().with_endpoints(&pods).replace("    port: 80\n", "    port: 99999\n");
    shop.cluster.apply("web", &wrong)?;
    let text = told("spec.ports[0].port: 99999")?;
    assert!(text.contains(WEB_V4), "the last good version stays: {text}");
    let bare = || Service::new("shop", "web");
    let external = bare().kind("ExternalName").spec("externalName: example.org");
    shop.cluster.apply("web", &external.yaml())?;
    assert!(told("cluster DNS answers with example.org")?.starts_with("shop/web: ExternalName"));
    let headless = bare().cluster_ip("None").tcp("http", 80, 8080);
    shop.cluster.apply("web", &headless.with_endpoints(&pods))?;
    let text = told("headless: cluster DNS answers with")?;
    for pod in &pods {
        assert!(text.contains(&pod.ipv4()?.to_string()), "{text}");
    }
    let list = node.proxyctl(&["service", "get", "shop/web", "-o", "json"])?;
    assert_eq!(serde_json::from_str::<Value>(&list)?, Value::Array(Vec::new()));
    let error = node.proxyctl(&["service", "get", "shop/nobody"]).unwrap_err();
    assert!(format!("{error:#}").contains("no Service shop/nobody in the source"), "{error:#}");
    Ok(())
}

/// S32: the kernel holds NodePorts while no agent lives, and the next one keeps them.
#[test]
fn a_node_port_outlives_its_agent_and_follows_the_node() -> Result<()> {
    let mut shop = Shop::open()?;
    let pods: Vec<_> = shop.web.iter().collect();
    shop.cluster.apply("web", &node_port_service().with_endpoints(&pods))?;
    shop.cluster.wait_served(0, NODE_PORTS[0][0])?;
    let launch = shop.client.launch(bin("testapp")?);
    let launch = launch.args(["load", NODE_PORTS[0][0], "--rate", "200", "--concurrency", "2"]);
    let load = Load::new(shop.client.spawn("load", &launch)?)?;
    let source = shop.cluster.source();
    shop.cluster.node_mut(0).kill_agent()?;
    for target in NODE_PORTS[0].iter().chain(&LOCALHOST) {
        shop.cluster.node(0).get(target)?;
    }
    shop.cluster.node_mut(0).start_agent(&source)?;
    for target in NODE_PORTS[0].iter().chain(&LOCALHOST) {
        shop.cluster.node(0).get(target)?;
    }
    load.finish()?;

    // The new agent is in charge: the node gets another address, and the NodePort with it.
    shop.cluster.node(0).netns().ip("addr add 172.31.0.111/24 dev eth0")?;
    let mut spec = shop.cluster.node(0).spec().clone();
    spec.addresses[0] = "172.31.0.111/24".to_owned();
    shop.cluster.apply("node-a", &node_manifest(&spec))?;
    shop.cluster.wait_served(0, "172.31.0.111:30080")?;
    wait_ok("the end of the old address", PATIENCE, || {
        refused(shop.client.launch(bin("testapp")?), NODE_PORTS[0][0])
    })?;
    Ok(())
}
