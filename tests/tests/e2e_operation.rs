//! Operation: bad input, a second agent, and the tool without an agent.

use sluice_tests::manifests::Service;
use sluice_tests::shop::{Shop, WEB_V4};
use sluice_tests::{PATIENCE, Result, bin};

/// O4: programs, maps and routes of this version and of others, files of the agent; not what the CNI
/// plugin made, nor what somebody else did. A second time finds nothing to do.
#[test]
fn cleanup_takes_back_what_the_agent_did_and_only_that() -> Result<()> {
    let mut shop = Shop::open()?;
    let source = shop.cluster.source();
    shop.cluster.node_mut(0).stop_agent()?;
    let range = ["--service-cluster-ip-range", "10.96.0.0/16"];
    shop.cluster.node_mut(0).start_agent_with(&source, &range)?;
    // Not under a living agent.
    let refused = shop.cluster.node(0).agent_launch(&source)?.arg("--cleanup").output()?;
    assert!(!refused.status.success());
    assert!(String::from_utf8_lossy(&refused.stderr).contains("another sluiced"), "{refused:?}");
    shop.client.get(WEB_V4)?;
    shop.cluster.node_mut(0).kill_agent()?;
    let node = shop.cluster.node(0);
    // Pins of another version, and things that are nobody's business.
    let root = node.bpf_root();
    let maps = |version: &str| root.join(version).join("maps");
    std::fs::create_dir_all(maps("v1"))?;
    std::fs::create_dir_all(root.join("v1/links"))?;
    for map in ["FRONTENDS", "OLDER"] {
        let other = aya::maps::HashMap::<aya::maps::MapData, u32, u64>::create(4, 0)?;
        other.pin(maps("v1").join(map))?;
    }
    std::fs::create_dir_all(root.join("vendor"))?;
    let foreign = aya::maps::HashMap::<aya::maps::MapData, u32, u64>::create(4, 0)?;
    foreign.pin(root.join("vendor/MAP"))?;
    node.netns().ip("route add blackhole 10.97.0.0/16 proto 94")?;
    std::fs::write(node.run_dir().join("of-somebody"), "")?;
    let records = || -> Result<usize> {
        Ok(std::fs::read_dir(shop.cluster.node(0).state_dir().join("endpoints"))?.count())
    };
    let pods = records()?;
    assert!(pods > 0);

    for _ in 0..2 {
        let output = node.agent_launch(&source)?.arg("--cleanup").output()?;
        assert!(output.status.success(), "{output:?}");
        let left: Vec<_> =
            std::fs::read_dir(root)?.map(|e| e.map(|e| e.file_name())).collect::<Result<_, _>>()?;
        assert_eq!(left, ["vendor"]);
        assert!(root.join("vendor/MAP").exists());
        let routes = node.netns().ip_output(&["route", "show", "table", "main"])?;
        assert!(!routes.contains("proto 92") && !routes.contains("proto 93"), "{routes}");
        assert!(routes.contains("10.97.0.0/16"), "{routes}");
        let files: Vec<_> = std::fs::read_dir(node.run_dir())?
            .map(|e| e.map(|e| e.file_name()))
            .collect::<Result<_, _>>()?;
        assert_eq!(files, ["of-somebody"]);
        assert_eq!(records()?, pods, "the plugin's records");
        assert!(shop.client.get(WEB_V4).is_err(), "the programs are detached");
        // The pod has its interface and its address.
        let own = shop.web[0].ipv4()?;
        shop.client.get(&format!("{own}:8080"))?;
    }
    // As on the first day.
    shop.cluster.node_mut(0).start_agent(&source)?;
    shop.cluster.wait_served(0, WEB_V4)?;
    shop.client.get(WEB_V4)?;
    Ok(())
}

/// O5
#[test]
fn malformed_objects_are_skipped_with_one_warning_each_and_the_others_are_served() -> Result<()> {
    let mut shop = Shop::open()?;
    let service = |name: &str, address: &str, port: &str, protocol: &str| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata:\n  name: {name}\n  namespace: shop\nspec:\n  \
             clusterIP: \"{address}\"\n  clusterIPs: [\"{address}\"]\n  \
             ports:\n  - port: {port}\n    protocol: {protocol}\n"
        )
    };
    let bad = [
        ("bad-address", service("bad-address", "10.96.0.999", "80", "TCP")),
        ("bad-zero", service("bad-zero", "10.96.0.50", "0", "TCP")),
        ("bad-large", service("bad-large", "10.96.0.51", "70000", "TCP")),
        ("bad-enum", service("bad-enum", "10.96.0.52", "80", "CARRIER-PIGEON")),
        // Of two that claim an address, neither with a creation time, the one first by name has it.
        ("z-double", service("z-double", "10.96.0.10", "80", "TCP")),
    ];
    let good = Service::new("shop", "good").cluster_ip("10.96.0.60").tcp("http", 80, 8080);
    // All in one file, the good one last: nothing bad stops what follows.
    let mut file: Vec<String> = bad.iter().map(|(_, yaml)| yaml.clone()).collect();
    file.push(good.with_endpoints(&[&shop.web[0]]));
    shop.cluster.apply("mixed", &file.join("---\n"))?;
    shop.cluster.wait_served(0, "10.96.0.60:80")?;
    // The owner keeps its address.
    for _ in 0..8 {
        assert!(shop.client.get(WEB_V4)?.pod.starts_with("web-"));
    }
    let agent = shop.cluster.node_mut(0).agent()?;
    let names = bad.map(|(name, _)| name);
    let warnings = |log: &str, name: &str| {
        log.lines().filter(|line| line.contains("WARN") && line.contains(name)).count()
    };
    agent.wait_until("a warning for every bad object", PATIENCE, |log| {
        names.iter().all(|name| warnings(log, name) > 0)
    })?;
    // Further changes repeat no warning.
    shop.cluster.apply(
        "more",
        &Service::new("shop", "more")
            .cluster_ip("10.96.0.61")
            .tcp("http", 80, 8080)
            .with_endpoints(&[&shop.web[1]]),
    )?;
    shop.cluster.wait_served(0, "10.96.0.61:80")?;
    let log = shop.cluster.node_mut(0).agent()?.log();
    for name in names {
        assert_eq!(warnings(&log, name), 1, "{name}:\n{log}");
    }
    Ok(())
}

/// O3
#[test]
fn a_second_agent_refuses_to_start_and_says_who_holds_the_node() -> Result<()> {
    let mut shop = Shop::open()?;
    let holder = shop.cluster.node_mut(0).agent()?.pid().to_string();
    let source = shop.cluster.source();
    let output = shop.cluster.node(0).agent_launch(&source)?.output()?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(!output.status.success(), "{stdout}{stderr}");
    assert!(format!("{stdout}{stderr}").contains(&holder), "holder {holder}: {stdout}{stderr}");
    assert!(shop.cluster.node_mut(0).agent()?.is_running());
    shop.client.get(WEB_V4)?;
    // Killed, the holder holds nothing.
    shop.cluster.node_mut(0).kill_agent()?;
    shop.cluster.node_mut(0).start_agent(&source)
}

/// O8
#[test]
fn proxyctl_shows_the_kernel_while_the_agent_is_dead_and_says_so() -> Result<()> {
    let mut shop = Shop::open()?;
    let alive = shop.cluster.node(0).proxyctl(&["service", "list"])?;
    assert!(alive.contains("10.96.0.10"), "{alive}");
    shop.cluster.node_mut(0).kill_agent()?;
    let node = shop.cluster.node(0);
    let output = node
        .launch(bin("proxyctl")?)
        .args(["service", "list"])
        .arg("--run-dir")
        .arg(node.run_dir())
        .arg("--bpf-root")
        .arg(node.bpf_root())
        .output()?;
    let stdout = String::from_utf8_lossy(&output.stdout);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stdout}{stderr}");
    assert!(stdout.contains("10.96.0.10") && stdout.contains("web"), "{stdout}{stderr}");
    assert!(stderr.contains("agent"), "it says that nobody is in charge: {stderr}");
    Ok(())
}
