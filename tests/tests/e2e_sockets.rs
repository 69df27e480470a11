//! Sockets that outlive what they were connected to, and clients that keep their backend: the real agent, from a
//! manifest to the application's errno.

use std::collections::BTreeSet;

use anyhow::{Context, ensure};
use sluice_tests::netns::NetNs;
use sluice_tests::process::{Launch, Process};
use sluice_tests::shop::{Shop, WEB_V4, WEB_V6, web_service};
use sluice_tests::wait::{wait_for, wait_ok};
use sluice_tests::{PATIENCE, Result, bin, pod};

/// A client that holds on to one connected socket, and how much of its story was read.
struct Story {
    name: String,
    process: Process,
    read: usize,
}

impl Story {
    fn begin(shop: &Shop, name: &str, launch: Launch) -> Result<Self> {
        let process = shop.cluster.node(0).spawn(name, &launch)?;
        Ok(Self { name: name.to_owned(), process, read: 0 })
    }

    /// Expects the next line to begin so.
    fn expect(&mut self, start: &str) -> Result<()> {
        let line = wait_for(&format!("{}: {start}", self.name), PATIENCE, || {
            self.process.log().lines().nth(self.read).map(str::to_owned)
        })?;
        ensure!(line.starts_with(start), "{}: {start} expected, not {line}", self.name);
        self.read += 1;
        Ok(())
    }

    /// Expects that the pod answers.
    fn expect_answer(&mut self, pod: &str) -> Result<()> {
        let line = wait_for(&format!("{}: an answer of {pod}", self.name), PATIENCE, || {
            self.process.log().lines().nth(self.read).map(str::to_owned)
        })?;
        ensure!(
            line.starts_with("answered") && line.contains(&format!("\"{pod}\"")),
            "{}: an answer of {pod} expected, not {line}",
            self.name
        );
        self.read += 1;
        Ok(())
    }

    /// Expects that nothing more was said.
    fn expect_silence(&self) -> Result<()> {
        let log = self.process.log();
        ensure!(log.lines().count() == self.read, "{}: {log}", self.name);
        Ok(())
    }
}

/// EndpointSlices in which the pods that were terminating are unready instead.
fn unready(slices: &str) -> String {
    slices.replace("serving: true\n    terminating: true", "serving: false\n    terminating: false")
}

/// S22: a connected UDP socket whose backend goes wakes up, and finds another when it connects anew: endpoint removed,
/// last endpoint removed and back, unready and ready again, removed while no agent runs, Service deleted. In a pod and
/// on the node, in both families.
#[test]
fn connected_udp_sockets_never_stay_with_a_backend_that_is_gone() -> Result<()> {
    let mut shop = Shop::open()?;
    let testapp = bin("testapp")?;
    let service = web_service();
    let publish = |shop: &Shop, slices: &str| {
        shop.cluster.apply("web", &format!("{}---\n{slices}", service.yaml()))
    };
    publish(&shop, &service.slices(&[&shop.web[0]]))?;
    let only = format!("{}:8080", shop.web[0].ipv4()?);
    shop.cluster.node(0).wait_for_view(&["service", "get", "shop/web"], PATIENCE, |rows| {
        let udp = rows.as_array().into_iter().flatten().filter(|row| row["protocol"] == "UDP");
        udp.filter(|row| row["frontend"] == WEB_V4)
            .any(|row| row["backends"] == serde_json::json!([only]))
    })?;
    let mut stories = Vec::new();
    for (family, target) in [("v4", WEB_V4), ("v6", WEB_V6)] {
        let pod = shop.client.launch(&testapp).args(["stick", target]);
        let node = shop.cluster.node(0).launch(&testapp).args(["stick", target]);
        stories.push(Story::begin(&shop, &format!("stick-pod-{family}"), pod)?);
        stories.push(Story::begin(&shop, &format!("stick-node-{family}"), node)?);
    }
    let mut each = |act: &dyn Fn(&mut Story) -> Result<()>| stories.iter_mut().try_for_each(act);
    let moves_to = |pod: &'static str| {
        move |story: &mut Story| {
            story.expect("woken ConnectionAborted")?;
            story.expect_answer(pod)
        }
    };
    each(&|story| story.expect_answer("web-0"))?;
    // Removed.
    publish(&shop, &service.slices(&[&shop.web[1]]))?;
    each(&moves_to("web-1"))?;
    // The last one removed, and one is back.
    publish(&shop, &service.slices(&[]))?;
    each(&|story| {
        story.expect("woken ConnectionAborted")?;
        story.expect("refused ConnectionRefused")
    })?;
    publish(&shop, &service.slices(&[&shop.web[0]]))?;
    each(&|story| story.expect_answer("web-0"))?;
    // Unready, then ready again while the other is not.
    publish(&shop, &unready(&service.slices_of(&[(&shop.web[0], false), (&shop.web[1], true)])))?;
    each(&moves_to("web-1"))?;
    publish(&shop, &unready(&service.slices_of(&[(&shop.web[0], true), (&shop.web[1], false)])))?;
    each(&moves_to("web-0"))?;
    // Removed while no agent runs: the next one sees to it.
    shop.cluster.node_mut(0).kill_agent()?;
    publish(&shop, &service.slices(&[&shop.web[1]]))?;
    each(&|story| story.expect_silence())?;
    let source = shop.cluster.source();
    shop.cluster.node_mut(0).start_agent(&source)?;
    each(&moves_to("web-1"))?;
    // The Service deleted.
    shop.cluster.delete("web")?;
    each(&|story| story.expect("woken ConnectionAborted"))?;

    // Two rounds of this agent, four sockets each. They are counted after they have woken.
    let said = |status: &serde_json::Value| {
        let mut parts = status["agent"]["parts"].as_array().into_iter().flatten();
        parts.any(|part| part["name"] == "Socket waking" && part["note"] == "8 UDP so far")
    };
    shop.cluster.node(0).wait_for_view(&["status"], PATIENCE, said).map(drop)
}

/// S24, S15: with the flag, a TCP connection to an endpoint that is gone is reset, but not while the endpoint is
/// terminating; without it, the connection stays.
#[test]
fn tcp_connections_are_reset_when_their_endpoint_is_gone_if_asked_for() -> Result<()> {
    let mut shop = Shop::open()?;
    let testapp = bin("testapp")?;
    let source = shop.cluster.source();
    shop.cluster.node_mut(0).stop_agent()?;
    shop.cluster
        .node_mut(0)
        .start_agent_with(&source, &["--reset-deleted-endpoint-connections", "true"])?;
    let service = web_service();
    let publish =
        |slices: &str| shop.cluster.apply("web", &format!("{}---\n{slices}", service.yaml()));
    let backends_are = |pods: &[&str]| -> Result<()> {
        let mut addresses = Vec::new();
        for pod in &shop.web {
            if pods.contains(&pod.name()) {
                addresses.push(format!("{}:8080", pod.ipv4()?));
            }
        }
        for node in shop.cluster.nodes() {
            node.wait_for_view(&["service", "get", "shop/web"], PATIENCE, |rows| {
                let mut rows = rows.as_array().into_iter().flatten();
                rows.any(|row| {
                    row["frontend"] == WEB_V4
                        && row["protocol"] == "TCP"
                        && row["backends"] == serde_json::json!(addresses)
                })
            })?;
        }
        Ok(())
    };
    publish(&service.slices(&[&shop.web[0]]))?;
    backends_are(&["web-0"])?;
    let pod = shop.client.launch(&testapp).args(["stick", "--tcp", WEB_V4]);
    let node = shop.cluster.node(0).launch(&testapp).args(["stick", "--tcp", WEB_V4]);
    let elsewhere = shop.cluster.node(1).launch(&testapp).args(["stick", "--tcp", WEB_V4]);
    let mut asked =
        [Story::begin(&shop, "stick-tcp-pod", pod)?, Story::begin(&shop, "stick-tcp-node", node)?];
    let mut unasked = Story::begin(&shop, "stick-tcp-unasked", elsewhere)?;
    for story in asked.iter_mut().chain([&mut unasked]) {
        story.expect_answer("web-0")?;
    }
    // Terminating: everything goes on.
    publish(&service.slices_of(&[(&shop.web[0], false), (&shop.web[1], true)]))?;
    backends_are(&["web-1"])?;
    for story in asked.iter().chain([&unasked]) {
        story.expect_silence()?;
    }
    // Gone.
    publish(&service.slices(&[&shop.web[1]]))?;
    for story in &mut asked {
        story.expect("woken ConnectionAborted")?;
        story.expect_answer("web-1")?;
    }
    unasked.expect_silence()
}

/// S8: with `sessionAffinity: ClientIP`, each client keeps one backend, also while the agent is killed and another one
/// starts; when the backend goes, it gets another and keeps that. `proxyctl affinity list` tells who has what.
#[test]
fn a_client_keeps_its_backend_across_a_restart_of_the_agent() -> Result<()> {
    let mut shop = Shop::open()?;
    let (tcp, udp) = ("10.96.0.20:80", "10.96.0.20:80".parse()?);
    let service = sluice_tests::manifests::Service::new("shop", "sticky")
        .cluster_ip("10.96.0.20")
        .tcp("http", 80, 8080)
        .udp("echo", 80, 8080)
        .spec("sessionAffinity: ClientIP")
        .spec("sessionAffinityConfig: {clientIP: {timeoutSeconds: 600}}");
    let pods: Vec<_> = shop.web.iter().collect();
    shop.cluster.apply("sticky", &service.with_endpoints(&pods))?;
    shop.cluster.wait_served(0, tcp)?;
    let ask = |shop: &Shop| -> Result<BTreeSet<String>> {
        (0..15).map(|_| Ok(shop.client.get(tcp)?.pod)).collect()
    };
    let ask_udp = |shop: &Shop| -> Result<BTreeSet<String>> {
        (0..15).map(|_| Ok(shop.client.udp(udp)?.pod)).collect()
    };
    let (first, first_udp) = (ask(&shop)?, ask_udp(&shop)?);
    assert_eq!((first.len(), first_udp.len()), (1, 1), "{first:?}, {first_udp:?}");
    shop.cluster.node_mut(0).kill_agent()?;
    assert_eq!(ask(&shop)?, first);
    let source = shop.cluster.source();
    shop.cluster.node_mut(0).start_agent(&source)?;
    assert_eq!((ask(&shop)?, ask_udp(&shop)?), (first.clone(), first_udp));

    let rows = shop.cluster.node(0).proxyctl(&["affinity", "list", "-o", "json"])?;
    let rows: serde_json::Value = serde_json::from_str(&rows)?;
    let of_pod = rows.as_array().into_iter().flatten().find(|row| {
        row["service"] == "shop/sticky:http"
            && row["client"].as_str().is_some_and(|client| client.starts_with("netns"))
    });
    let of_pod = of_pod.with_context(|| format!("the pod's row in {rows}"))?;
    let keeps = shop.web.iter().find(|pod| first.contains(pod.name())).context("a web pod")?;
    assert_eq!(of_pod["backend"], format!("{}:8080", keeps.ipv4()?), "{rows}");
    assert!(of_pod["leftSecs"].as_u64().is_some_and(|left| left > 0 && left <= 600), "{rows}");

    // Its backend goes, and comes back: the client stays with the one it got meanwhile.
    let other = shop.web.iter().find(|pod| !first.contains(pod.name())).context("the other")?;
    shop.cluster.apply("sticky", &service.with_endpoints(&[other]))?;
    let second = BTreeSet::from([other.name().to_owned()]);
    wait_ok("the other backend", PATIENCE, || {
        let now = ask(&shop)?;
        ensure!(now == second, "{now:?}");
        Ok(())
    })?;
    shop.cluster.apply("sticky", &service.with_endpoints(&pods))?;
    shop.cluster.node(0).wait_for_view(&["service", "get", "shop/sticky"], PATIENCE, |rows| {
        let mut rows = rows.as_array().into_iter().flatten();
        rows.all(|row| row["backends"].as_array().is_some_and(|backends| backends.len() == 2))
    })?;
    assert_eq!(ask(&shop)?, second);
    Ok(())
}

/// S36: a network namespace of the node that is no pod of ours keeps working: its processes reach Services like those
/// of the node, pods by their addresses, and what they serve on their own loopback, on whatever port.
#[test]
fn other_network_namespaces_of_the_node_keep_working() -> Result<()> {
    let shop = Shop::open()?;
    let node = shop.cluster.node(0);
    let testapp = bin("testapp")?;
    let other = NetNs::new("other")?;
    other.veth("eth0", node.netns(), "other0")?;
    node.netns().ip("addr add 10.200.0.1/24 dev other0")?;
    other
        .ip("link set lo up\naddr add 10.200.0.2/24 dev eth0\nroute add default via 10.200.0.1")?;
    let local = web_service().with_endpoints(&[&shop.web[0]]);
    let node_port = sluice_tests::manifests::Service::new("shop", "outside")
        .kind("NodePort")
        .cluster_ip("10.96.0.30")
        .tcp("http", 80, 8080)
        .node_port(30_080);
    shop.cluster.apply("web", &local)?;
    shop.cluster.apply("outside", &node_port.with_endpoints(&[&shop.web[0]]))?;
    shop.cluster.wait_served(0, "127.0.0.1:30080")?;

    let hooked = || node.launch(&testapp).netns(&other);
    let unhooked = || other.launch(&testapp);
    wait_ok("the service from the other namespace", PATIENCE, || {
        let answer = pod::get(hooked(), WEB_V4)?;
        ensure!(answer.pod == "web-0", "{answer:?}");
        Ok(())
    })?;
    assert_eq!(pod::udp(hooked(), WEB_V4.parse()?)?.pod, "web-0");
    let own = format!("{}:8080", shop.web[0].ipv4()?);
    assert_eq!(pod::get(hooked(), &own)?.pod, "web-0");
    assert_eq!(pod::get(unhooked(), &own)?.pod, "web-0");

    // Its loopback is its own, though the node has a NodePort there.
    let launch = hooked().env("POD_NAME", "other").args(["serve", "--port", "30080"]);
    let mut server = node.spawn("other-server", &launch)?;
    server.wait_for_log("listening", PATIENCE)?;
    assert_eq!(pod::get(hooked(), "127.0.0.1:30080")?.pod, "other");
    assert_eq!(node.get("127.0.0.1:30080")?.pod, "web-0");
    Ok(())
}
