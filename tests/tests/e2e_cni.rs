//! The plugin and the agent together: addresses that leak, ranges that change.

use std::fs::{self, File};
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use anyhow::{Context, ensure};
use serde_json::{Value, json};
use sluice_proxy::control::{self, EndpointDel, EndpointRef, Reply, Request};
use sluice_tests::cluster::{Cluster, node_manifest};
use sluice_tests::netns::NetNs;
use sluice_tests::node::{Node, PodRef};
use sluice_tests::pod::Pod;
use sluice_tests::runtime::PLUGINS;
use sluice_tests::wait::wait_ok;
use sluice_tests::{PATIENCE, Result, wait_for};

/// The record that holds the pod's first address.
fn record(node: &Node, pod: &Pod) -> Result<PathBuf> {
    let address = pod.addresses()[0].to_string();
    let entries = fs::read_dir(node.state_dir().join("endpoints"))?;
    let names = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    let holds = |path: &PathBuf| {
        let name = path.file_stem().unwrap_or_default().to_string_lossy();
        name.split(',').any(|part| part == address)
    };
    names.into_iter().find(holds).with_context(|| format!("no record of {address}"))
}

/// As if the pod had been made ten minutes ago.
fn age(record: &PathBuf) -> Result<()> {
    let file = File::options().write(true).open(record)?;
    Ok(file.set_modified(SystemTime::now() - Duration::from_secs(600))?)
}

/// As if the pod were made only in ten minutes: young however long the test takes.
fn keep_young(record: &PathBuf) -> Result<()> {
    let file = File::options().write(true).open(record)?;
    Ok(file.set_modified(SystemTime::now() + Duration::from_secs(600))?)
}

/// C5: a pod that went without a DEL leaves no address behind, and no runtime has to call GC; a pod
/// that is there, and one whose ADD may be under way, keep theirs.
#[test]
fn the_agent_frees_what_a_pod_left_that_went_without_a_del() -> Result<()> {
    let mut cluster = Cluster::new(1)?;
    cluster.start_agents()?;
    let node = cluster.node(0);
    let (stays, goes, young) = (
        node.add_pod("default", "stays")?,
        node.add_pod("default", "goes")?,
        node.add_pod("default", "young")?,
    );
    let [old, leaked, fresh] =
        [&stays, &goes, &young].map(|pod| record(node, pod).expect("a record"));
    age(&old)?;
    keep_young(&leaked)?;
    keep_young(&fresh)?;
    let address = goes.addresses()[0].to_string();
    // The namespaces go, and with them the interfaces.
    drop((goes, young));
    node.wait_for_view(&["endpoint", "list"], PATIENCE, |rows| {
        !rows.to_string().contains(&address)
    })?;
    ensure!(leaked.exists(), "it is young");
    age(&leaked)?;
    wait_for("the record to go", PATIENCE, || (!leaked.exists()).then_some(()))?;
    ensure!(old.exists() && fresh.exists(), "only what leaked goes");
    let agent = cluster.node_mut(0).agent()?;
    agent.wait_for_log("the pod went without a DEL", PATIENCE)?;
    Ok(())
}

/// C12: ranges come from the Node object; new pods get addresses of the new ones, those that run keep
/// theirs, and people are told of it.
#[test]
fn a_changed_pod_cidr_is_for_new_pods_and_the_others_are_named() -> Result<()> {
    let mut cluster = Cluster::new(1)?;
    cluster.start_agents()?;
    let before = cluster.node(0).add_pod("default", "before")?;
    ensure!(before.addresses()[0].to_string().starts_with("10.244.1."), "{before:?}");
    let status = cluster.node(0).proxyctl(&["status"])?;
    ensure!(!status.contains("is not in the node's pod CIDRs"), "{status}");

    let mut spec = cluster.node(0).spec().clone();
    spec.pod_cidrs = vec!["10.244.9.0/24".to_owned(), "fd00:244:9::/64".to_owned()];
    cluster.apply("node-a", &node_manifest(&spec))?;
    let node_file = cluster.node(0).run_dir().join("node.json");
    wait_ok("the new ranges", PATIENCE, || {
        let text = fs::read_to_string(&node_file)?;
        ensure!(text.contains("10.244.9.0/24"), "{text}");
        Ok(())
    })?;
    let after = cluster.node(0).add_pod("default", "after")?;
    let expected: [IpAddr; 2] = ["10.244.9.2".parse()?, "fd00:244:9::2".parse()?];
    assert_eq!(after.addresses(), expected);
    // Both are served.
    let servers = [before.serve(8080)?, after.serve(8080)?];
    assert_eq!(after.get(&format!("{}:8080", before.ipv4()?))?.pod, "before");
    assert_eq!(before.get(&format!("{}:8080", after.ipv4()?))?.pod, "after");
    drop(servers);
    let status = cluster.node(0).proxyctl(&["status"])?;
    let told = status.lines().filter(|line| line.contains("is not in the node's pod CIDRs"));
    let told: Vec<&str> = told.collect();
    ensure!(told.iter().all(|line| line.contains("default/before")), "{status}");
    assert_eq!(told.len(), 2, "{status}");
    let log = cluster.node_mut(0).agent()?.log();
    ensure!(log.contains("pod CIDRs of node-a changed"), "{log}");
    cluster.node(0).del_pod(before)?;
    let status = cluster.node(0).proxyctl(&["status"])?;
    ensure!(!status.contains("is not in the node's pod CIDRs"), "{status}");
    Ok(())
}

/// The row of `proxyctl endpoint list` that a pod's IPv4 address has.
fn row(rows: &Value, pod: &Pod) -> Option<Value> {
    let address = pod.ipv4().ok()?.to_string();
    rows.as_array()?.iter().find(|row| row["address"] == address).cloned()
}

/// How a pod is attached, once that is what `expected` says.
fn wait_attached(node: &Node, pod: &Pod, expected: &str) -> Result<()> {
    let there = |rows: &Value| row(rows, pod).is_some_and(|row| row["attached"] == expected);
    node.wait_for_view(&["endpoint", "list"], PATIENCE, there).map(drop)
}

/// A network with that hook in its configuration, or none, is served by the hook expected, also from an agent that starts
/// anew, which replaces the programs in place.
fn is_served_by(asked: Option<&str>, expected: &str) -> Result<()> {
    let mut cluster = Cluster::new(1)?;
    cluster.start_agents()?;
    let node = cluster.node(0);
    let mut config = node.cni_config();
    if let Some(asked) = asked {
        config["hook"] = json!(asked);
    }
    let (a, b) =
        (node.add_pod_with("default", "a", &config)?, node.add_pod_with("default", "b", &config)?);
    let server = b.serve(8080)?;
    let target = format!("{}:8080", b.ipv4()?);
    assert_eq!(a.get(&target)?.pod, "b");
    wait_attached(node, &a, expected)?;
    let source = cluster.source();
    cluster.node_mut(0).kill_agent()?;
    assert_eq!(a.get(&target)?.pod, "b", "without an agent");
    cluster.node_mut(0).start_agent(&source)?;
    let node = cluster.node(0);
    wait_attached(node, &a, expected)?;
    assert_eq!(a.get(&target)?.pod, "b");
    let rows = serde_json::from_str(&node.proxyctl(&["endpoint", "list", "-o", "json"])?)?;
    let interface = row(&rows, &a).context("a row")?["interface"].as_str().unwrap_or("").to_owned();
    for direction in ["ingress", "egress"] {
        let filters =
            node.launch("tc").args(["filter", "show", "dev", &interface, direction]).run()?;
        let wanted = usize::from(expected == "clsact");
        assert_eq!(filters.matches("direct-action").count(), wanted, "{filters}");
    }
    drop(server);
    node.del_pod(a)?;
    node.del_pod(b)
}

/// C9: clsact is what a network gets that asks for nothing: its attachment waits for no grace period.
#[test]
fn a_network_is_served_by_clsact() -> Result<()> {
    is_served_by(None, "clsact")
}

/// C9: a network that asks for TCX gets it.
#[test]
fn a_network_that_asks_for_tcx_is_served_by_it() -> Result<()> {
    is_served_by(Some("tcx"), "tcx")
}

/// Packets that a queueing discipline of the node has let pass, by the beginning of the interface's name.
fn shaped(node: &Node, interface: &str) -> Result<u64> {
    let all = node.launch("tc").args(["-j", "-s", "qdisc", "show"]).run()?;
    let all: Value = serde_json::from_str(&all)?;
    let of = |it: &&Value| {
        it["kind"] == "tbf" && it["dev"].as_str().is_some_and(|dev| dev.starts_with(interface))
    };
    let found = all.as_array().into_iter().flatten().find(of);
    found.and_then(|it| it["packets"].as_u64()).with_context(|| format!("{interface}: {all}"))
}

/// IPv4 packets that the node's stack has forwarded.
fn forwarded(node: &Node) -> Result<u64> {
    let text = node.launch("cat").args(["/proc/self/net/snmp"]).run()?;
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("Ip: "));
    let (names, values) = lines.next().zip(lines.next()).context("two lines of Ip")?;
    let column = names.split(' ').position(|name| name == "ForwDatagrams").context("a column")?;
    Ok(values.split(' ').nth(column).context("a value")?.parse()?)
}

/// C10: the bandwidth plugin after ours, with limits in both directions: both are there, the pod is
/// kept on the stack where they see its packets, every one of them by their counters, and its DEL
/// leaves nothing. Other pods' packets go past the stack as before.
#[test]
fn a_pod_that_bandwidth_limits_keeps_off_the_fast_path() -> Result<()> {
    const REQUESTS: u64 = 5;
    let mut cluster = Cluster::new(1)?;
    cluster.start_agents()?;
    let node = cluster.node(0);
    // As a runtime tells a plugin that has the capability `bandwidth`.
    let mut config = node.cni_config();
    config["runtimeConfig"] = json!({"bandwidth": {"egressRate": 80_000_000}});
    let limited = node.add_pod_with("default", "limited", &config)?;
    let (free, other) = (node.add_pod("default", "free")?, node.add_pod("default", "other")?);
    wait_attached(node, &limited, "tcx")?;
    wait_attached(node, &free, "clsact")?;
    let file = record(node, &limited)?;
    let held: Value = serde_json::from_slice(&fs::read(&file)?)?;
    let interface = held["hostInterface"].as_str().context("a name")?.to_owned();
    let plugin = PLUGINS.iter().map(|dir| PathBuf::from(dir).join("bandwidth"));
    let plugin = plugin.into_iter().find(|path| path.is_file());
    let plugin = plugin.context("no bandwidth: apt-get install containernetworking-plugins")?;
    let netns = limited.netns().path();
    let conf = json!({
        "cniVersion": "1.0.0", "name": "sluice", "type": "bandwidth",
        "ingressRate": 80_000_000, "ingressBurst": 80_000_000,
        "egressRate": 80_000_000, "egressBurst": 80_000_000,
        "prevResult": {
            "cniVersion": "1.0.0",
            "interfaces": [
                {"name": interface, "mac": held["hostMac"]},
                {"name": "eth0", "mac": held["mac"], "sandbox": netns},
            ],
            "ips": [{"address": format!("{}/32", limited.ipv4()?), "interface": 1}],
        },
    });
    let bandwidth = |command: &str| -> Result<()> {
        let launch = node
            .launch(&plugin)
            .env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", limited.container_id())
            .env("CNI_NETNS", &netns)
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", plugin.parent().context("a directory")?);
        let output = launch.output_with_input(conf.to_string().as_bytes())?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        Ok(())
    };
    bandwidth("ADD")?;
    wait_attached(node, &limited, "tcx, no fast path")?;
    wait_attached(node, &free, "clsact")?;

    let servers = [limited.serve(8080)?, free.serve(8080)?];
    // To the pod, from the pod, through the node's stack.
    let seen = || -> Result<[u64; 3]> {
        Ok([shaped(node, &interface)?, shaped(node, "bwp")?, forwarded(node)?])
    };
    // Of a connection there and one back, what each end sends at least: SYN, request or answer, FIN.
    let each_way = 2 * 3 * REQUESTS;
    let before = seen()?;
    for _ in 0..REQUESTS {
        assert_eq!(free.get(&format!("{}:8080", limited.ipv4()?))?.pod, "limited");
        assert_eq!(limited.get(&format!("{}:8080", free.ipv4()?))?.pod, "free");
    }
    let after = seen()?;
    for (n, least) in [each_way, each_way, 2 * each_way].into_iter().enumerate() {
        ensure!(after[n] >= before[n] + least, "{n}: {before:?} {after:?}");
    }
    for _ in 0..REQUESTS {
        assert_eq!(other.get(&format!("{}:8080", free.ipv4()?))?.pod, "free");
    }
    // What is left of the connections before may still pass.
    let passed = forwarded(node)? - after[2];
    ensure!(passed < 2 * 3 * REQUESTS, "{passed} packets of other pods on the stack");
    drop(servers);
    bandwidth("DEL")?;
    node.del_pod(limited)?;
    let links = node.netns().ip_output(&["-o", "link"])?;
    ensure!(!links.contains(&interface) && !links.contains("bwp"), "{links}");
    node.del_pod(free)?;
    node.del_pod(other)
}

/// S33: a full map of pods is a metric, a problem in `proxyctl status` and a line of the log, and pods
/// without a place in it are reached all the same.
#[test]
fn a_full_map_of_pods_is_told_like_other_full_maps() -> Result<()> {
    let mut cluster = Cluster::new(1)?;
    let source = cluster.source();
    cluster.node_mut(0).start_agent_with(&source, &["--map-size-endpoints", "2"])?;
    let node = cluster.node(0);
    let (a, b) = (node.add_pod("default", "a")?, node.add_pod("default", "b")?);
    let status = node.proxyctl(&["status"])?;
    let address = b.ipv4()?.to_string();
    ensure!(status.contains("--map-size-endpoints") && status.contains(&address), "{status}");
    let metrics = node
        .launch("curl")
        .args(["--silent", "--show-error", "http://127.0.0.1:10249/metrics"])
        .run()?;
    let prefix = "sluice_apply_failures_total{map=\"ENDPOINTS\"} ";
    let failures = metrics.lines().find_map(|line| line.strip_prefix(prefix)?.parse::<u64>().ok());
    ensure!(failures.is_some_and(|failures| failures >= 2), "{metrics}");
    let server = b.serve(8080)?;
    assert_eq!(a.get(&format!("{address}:8080"))?.pod, "b");
    drop(server);
    node.del_pod(a)?;
    let status = node.proxyctl(&["status"])?;
    ensure!(!status.contains("--map-size-endpoints"), "there is room: {status}");
    let rows = node.proxyctl(&["endpoint", "list"])?;
    ensure!(rows.contains(&address), "{rows}");
    let log = cluster.node_mut(0).agent()?.log();
    ensure!(log.contains("map ENDPOINTS is full at 2"), "{log}");
    cluster.node(0).del_pod(b)
}

/// C6: the agent deletes the interface of a pod that goes, and the plugin returns when it is gone; of what
/// another network calls by the same names, nothing is touched.
#[test]
fn the_agent_deletes_the_interface_of_a_pod_that_goes() -> Result<()> {
    let mut cluster = Cluster::new(1)?;
    cluster.start_agents()?;
    let node = cluster.node(0);
    let (a, b) = (node.add_pod("default", "a")?, node.add_pod("default", "b")?);
    let interface = |pod: &Pod| -> Result<String> {
        let record: Value = serde_json::from_str(&fs::read_to_string(record(node, pod)?)?)?;
        Ok(record["hostInterface"].as_str().context("a name")?.to_owned())
    };
    let index = |interface: &str| -> Result<u32> {
        let text = node.netns().ip_output(&["-j", "link", "show", "dev", interface])?;
        let links: Value = serde_json::from_str(&text)?;
        Ok(u32::try_from(links[0]["ifindex"].as_u64().context("an index")?)?)
    };
    let ask = |pod: &Pod, host_interface: &str, ifindex: u32| {
        let key = EndpointRef {
            container_id: pod.container_id().to_owned(),
            interface: "eth0".to_owned(),
        };
        let host_interface = Some(host_interface.to_owned());
        let del = EndpointDel { key, host_interface, host_ifindex: Some(ifindex) };
        control::request(&node.run_dir().join("agent.sock"), Request::EndpointDel(del))
    };
    let links = || node.launch("ip").args(["-o", "link", "show"]).run();
    let (of_a, of_b) = (interface(&a)?, interface(&b)?);
    let (at_a, at_b) = (index(&of_a)?, index(&of_b)?);

    // Names that belong to different attachments.
    ensure!(!matches!(ask(&a, &of_b, at_b), Ok(Some(Reply::Unlinked(_)))), "nothing is deleted");
    let server = a.serve(8080)?;
    assert_eq!(b.get(&format!("{}:8080", a.ipv4()?))?.pod, "a");
    drop(server);
    let rows = node.proxyctl(&["endpoint", "list"])?;
    ensure!(a.addresses().iter().all(|addr| rows.contains(&addr.to_string())), "{rows}");

    assert_eq!(ask(&a, &of_a, at_a)?, Some(Reply::Unlinked(true)));
    let left = links()?;
    ensure!(!left.contains(&of_a) && left.contains(&of_b), "{left}");
    ensure!(a.netns().ip("link show eth0").is_err(), "the pod's end is gone, too");
    // The plugin finds nothing left to do.
    node.del_pod(a)?;
    // An attachment may come back at once, under the same names.
    let netns = NetNs::new("again")?;
    let path = netns.path();
    let again = PodRef { namespace: "default", name: "again", container_id: "again", netns: &path };
    let before = links()?.lines().count();
    for _ in 0..10 {
        node.cni("ADD", &again, &node.cni_config())?;
        assert_eq!(links()?.lines().count(), before + 1);
        node.cni("DEL", &again, &node.cni_config())?;
        assert_eq!(links()?.lines().count(), before);
    }
    // The agent answers STATUS, too.
    node.cni("STATUS", &again, &node.cni_config())?;
    let rows = node.proxyctl(&["endpoint", "list"])?;
    assert_eq!(rows.lines().filter(|line| line.contains("10.")).count(), 1, "{rows}");
    node.del_pod(b)
}

/// C6: what is done by hand while the agent runs is followed: an interface that is deleted, a record
/// that is removed, a directory of records that is made anew.
#[test]
fn the_agent_follows_what_is_done_by_hand() -> Result<()> {
    let mut cluster = Cluster::new(1)?;
    cluster.start_agents()?;
    let node = cluster.node(0);
    let (a, b) = (node.add_pod("default", "a")?, node.add_pod("default", "b")?);
    let gone = |pod: &Pod| {
        node.wait_for_view(&["endpoint", "list"], PATIENCE, |rows| row(rows, pod).is_none())
            .map(drop)
    };
    a.netns().ip("link del eth0")?;
    gone(&a)?;
    fs::remove_file(record(node, &b)?)?;
    gone(&b)?;

    let directory = node.state_dir().join("endpoints");
    fs::remove_dir_all(&directory)?;
    let c = node.add_pod("default", "c")?;
    let server = c.serve(8080)?;
    assert_eq!(node.get(&format!("{}:8080", c.ipv4()?))?.pod, "c");
    drop(server);
    node.wait_for_view(&["endpoint", "list"], PATIENCE, |rows| row(rows, &c).is_some())?;
    node.del_pod(c)
}
