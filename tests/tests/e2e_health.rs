//! What load balancers, kubelet and Prometheus see of a node.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use anyhow::{Context, bail};
use serde_json::Value;
use sluice_tests::Result;
use sluice_tests::cluster::{Cluster, node_manifest};
use sluice_tests::manifests::{Service, namespace};
use sluice_tests::netns::NetNs;
use sluice_tests::node::Node;
use sluice_tests::shop::{Shop, WEB_V4, web_service};
use sluice_tests::wait::wait_ok;

/// How long a change of an object may take to be seen.
const LIMIT: Duration = Duration::from_secs(20);
/// Where `sluiced` answers by default.
const HEALTHZ_PORT: u16 = 10256;
const METRICS: &str = "127.0.0.1:10249";

/// An answer: status, head in lower case, body.
struct Answer {
    status: u16,
    head: String,
    body: String,
}

/// One request from a network namespace, on a connection of its own.
fn ask(from: &NetNs, addr: &str, path: &str) -> Result<Answer> {
    let addr: SocketAddr = addr.parse().with_context(|| addr.to_owned())?;
    let text = from.run(|| -> Result<String> {
        let mut stream = TcpStream::connect_timeout(&addr, LIMIT)?;
        stream.set_read_timeout(Some(LIMIT))?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    })??;
    let (head, body) = text.split_once("\r\n\r\n").with_context(|| text.clone())?;
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok());
    Ok(Answer {
        status: status.with_context(|| text.clone())?,
        head: head.to_lowercase(),
        body: body.to_owned(),
    })
}

/// Waits for a status, and returns the answer's JSON.
fn wait_for_status(from: &NetNs, addr: &str, path: &str, status: u16) -> Result<Value> {
    wait_ok(&format!("{status} from {addr}{path}"), LIMIT, || {
        let answer = ask(from, addr, path)?;
        if answer.status != status {
            bail!("{} {}", answer.status, answer.body);
        }
        serde_json::from_str(&answer.body).with_context(|| answer.body.clone())
    })
}

/// The value of a metric, named with its labels.
fn metric(node: &Node, name: &str) -> Result<f64> {
    let text = ask(node.netns(), METRICS, "/metrics")?.body;
    let prefix = format!("{name} ");
    let value = text.lines().find_map(|line| line.strip_prefix(&prefix));
    value.and_then(|value| value.parse().ok()).with_context(|| format!("{name} is not in\n{text}"))
}

/// S12: and only then; `/livez` goes on through it all.
#[test]
fn healthz_fails_on_the_autoscalers_taint_and_livez_does_not() -> Result<()> {
    let mut cluster = Cluster::new(1)?;
    cluster.start_agents()?;
    let addr = format!("172.31.0.11:{HEALTHZ_PORT}");
    let outside = cluster.lan();
    let body = wait_for_status(outside, &addr, "/healthz", 200)?;
    assert_eq!(body["nodeEligible"], true, "{body}");
    assert!(body["lastUpdated"].is_string() && body["currentTime"].is_string(), "{body}");

    let node = node_manifest(cluster.node(0).spec());
    let tainted = node.replacen(
        "spec:\n",
        "spec:\n  taints:\n  - key: ToBeDeletedByClusterAutoscaler\n    value: \"1\"\n    \
         effect: NoSchedule\n",
        1,
    );
    cluster.apply("node-a", &tainted)?;
    let body = wait_for_status(outside, &addr, "/healthz", 503)?;
    assert_eq!(body["nodeEligible"], false, "{body}");
    assert_eq!(ask(outside, &addr, "/livez")?.status, 200);
    cluster.apply("node-a", &node)?;
    wait_for_status(outside, &addr, "/healthz", 200)?;
    Ok(())
}

/// S11
#[test]
fn a_health_check_node_port_tells_which_nodes_have_endpoints() -> Result<()> {
    let mut shop = Shop::open()?;
    let balanced = |port: u16, pods: &[&sluice_tests::pod::Pod]| {
        let service = web_service();
        let spec = format!(
            "  type: LoadBalancer\n  externalTrafficPolicy: Local\n  healthCheckNodePort: {port}\n"
        );
        let yaml = service.yaml().replacen("  type: ClusterIP\n", &spec, 1);
        format!("{yaml}---\n{}", service.slices(pods))
    };
    let (a, b) = ("172.31.0.11:32100", "172.31.0.12:32100");
    let outside = shop.cluster.lan();
    shop.cluster.apply("web", &balanced(32100, &[&shop.web[0], &shop.web[1]]))?;
    for addr in [a, b] {
        let body = wait_for_status(outside, addr, "/", 200)?;
        assert_eq!(body["service"]["namespace"], "shop", "{body}");
        assert_eq!(body["service"]["name"], "web", "{body}");
        // A pod with an address in each family is one endpoint.
        assert_eq!(body["localEndpoints"], 1, "{body}");
        assert_eq!(body["serviceProxyHealthy"], true, "{body}");
        let head = ask(outside, addr, "/")?.head;
        assert!(head.contains("x-load-balancing-endpoint-weight: 1"), "{head}");
    }
    // IPv6 reaches the same port.
    wait_for_status(outside, "[fd00:172:31::11]:32100", "/", 200)?;

    shop.cluster.apply("web", &balanced(32100, &[&shop.web[1]]))?;
    let body = wait_for_status(outside, a, "/", 503)?;
    assert_eq!((&body["localEndpoints"], &body["serviceProxyHealthy"]), (&0.into(), &true.into()));
    assert_eq!(ask(outside, b, "/")?.status, 200);

    // A port that somebody else has is a problem row, not the end of the agent.
    let holder = shop.cluster.node(0).netns().run(|| TcpListener::bind("0.0.0.0:32101"))??;
    shop.cluster.apply("web", &balanced(32101, &[&shop.web[0]]))?;
    let status = shop.cluster.node(0).wait_for_view(&["status"], LIMIT, |status| {
        status["agent"]["problems"].to_string().contains("32101")
    })?;
    assert!(status["agent"]["problems"].to_string().contains("Service shop/web"), "{status}");
    drop(holder);
    wait_for_status(outside, "172.31.0.11:32101", "/", 200)?;

    shop.cluster.delete("web")?;
    wait_ok("the port to be closed", LIMIT, || match ask(outside, "172.31.0.11:32101", "/") {
        Err(_) => Ok(()),
        Ok(answer) => bail!("{} {}", answer.status, answer.body),
    })?;
    assert!(shop.cluster.node_mut(0).agent()?.is_running());
    Ok(())
}

/// S33: the map is named by metric, log and status; what was programmed stays.
#[test]
fn figures_tell_what_the_kernel_did_and_what_it_refused() -> Result<()> {
    let mut cluster = Cluster::new(1)?;
    cluster.apply("namespace-shop", &namespace("shop"))?;
    let source = cluster.source();
    cluster.node_mut(0).start_agent_with(&source, &["--map-size-frontends", "4"])?;
    let pod = cluster.node(0).add_pod("shop", "web-0")?;
    let _server = pod.serve(8080)?;
    let web = Service::new("shop", "web").cluster_ip("10.96.0.10").tcp("http", 80, 8080);
    cluster.apply("web", &web.with_endpoints(&[&pod]))?;
    cluster.wait_served(0, WEB_V4)?;

    let node = cluster.node(0);
    let connects = "sluice_program_events_total{event=\"sock_connect\"}";
    let before = metric(node, connects)?;
    assert!(before >= 1.0, "{before}");
    node.get(WEB_V4)?;
    assert!(metric(node, connects)? > before);
    let capacity = metric(node, "sluice_map_capacity{map=\"FRONTENDS\"}")?;
    // One for the port, one for all others of the address.
    let entries = metric(node, "sluice_map_entries{map=\"FRONTENDS\"}")?;
    assert!((capacity - 4.0).abs() < 0.1 && (entries - 2.0).abs() < 0.1, "{entries} of {capacity}");
    for (name, least) in [
        ("sluice_endpoints", 1.0),
        ("sluice_source_connected", 1.0),
        ("sluice_source_synced", 1.0),
        ("kubeproxy_sync_proxy_rules_duration_seconds_count", 1.0),
        ("kubeproxy_sync_proxy_rules_last_timestamp_seconds", 1.0),
        ("process_resident_memory_bytes", 1.0),
    ] {
        assert!(metric(node, name)? >= least, "{name}");
    }
    assert!(metric(node, "sluice_change_waiting_seconds")? < 0.001);
    assert_eq!(ask(node.netns(), METRICS, "/healthz")?.body, "ok");

    // More ports than the map has room for.
    let mut large = Service::new("shop", "large").cluster_ip("10.96.0.11");
    for port in 1..=6 {
        large = large.tcp(&format!("p{port}"), port, 8080);
    }
    cluster.apply("large", &large.with_endpoints(&[&pod]))?;
    let node = cluster.node(0);
    wait_ok("the failure to be counted", LIMIT, || {
        let failures = metric(node, "sluice_apply_failures_total{map=\"FRONTENDS\"}")?;
        let waiting = metric(node, "sluice_change_waiting_seconds")?;
        let problems = metric(node, "sluice_problems")?;
        if failures < 1.0 || waiting <= 0.0 || problems < 1.0 {
            bail!("{failures} failures, waiting for {waiting} s, {problems} problems");
        }
        Ok(())
    })?;
    node.wait_for_view(&["status"], LIMIT, |status| {
        status["agent"]["problems"].to_string().contains("--map-size-frontends")
    })?;
    assert_eq!(node.get(WEB_V4)?.pod, "web-0", "what was programmed stays");
    let log = cluster.node_mut(0).agent()?.log();
    assert!(log.contains("map FRONTENDS is full at 4"), "{log}");

    cluster.delete("large")?;
    let node = cluster.node(0);
    wait_ok("the kernel to have everything again", LIMIT, || {
        let waiting = metric(node, "sluice_change_waiting_seconds")?;
        if waiting > 0.0 { bail!("waiting for {waiting} s") } else { Ok(()) }
    })
}

/// O6: the kernel is asked and found to have what is needed; the way pods are attached is the one it has.
#[test]
fn servers_that_are_turned_off_or_find_no_port_do_not_keep_the_agent_from_its_work() -> Result<()> {
    let mut cluster = Cluster::new(1)?;
    let source = cluster.source();
    let args = ["--healthz-bind-address", "", "--metrics-bind-address", "198.51.100.1:10249"];
    cluster.node_mut(0).start_agent_with(&source, &args)?;
    let pod = cluster.node(0).add_pod("default", "web-0")?;
    let node = cluster.node(0);
    let status = node.wait_for_view(&["status"], LIMIT, |status| {
        status["agent"]["problems"].to_string().contains("198.51.100.1:10249")
    })?;
    let part = |name: &str| {
        let parts = status["agent"]["parts"].as_array();
        let found = parts.and_then(|parts| parts.iter().find(|part| part["name"] == name));
        found.cloned().with_context(|| format!("{name} in {status}"))
    };
    assert_eq!(part("Health checks")?["on"], false);
    assert_eq!(part("Metrics")?["on"], true);
    assert!(ask(node.netns(), &format!("127.0.0.1:{HEALTHZ_PORT}"), "/livez").is_err());
    let endpoints = node.proxyctl(&["endpoint", "list", "-o", "json"])?;
    let hook = part("Pod programs")?["note"].to_string();
    assert!(hook.contains("clsact") && endpoints.contains("clsact"), "{hook} {endpoints}");
    let log = cluster.node_mut(0).agent()?.log();
    assert!(!log.contains(" lacks "), "{log}");
    cluster.node(0).del_pod(pod)
}
