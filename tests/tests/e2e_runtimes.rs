//! Container runtimes that are not ours call the plugin: containerd by `ctr` and by its CRI, podman.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use anyhow::ensure;
use serde_json::Value;
use sluice_tests::cri::{Linux, Metadata, PortMapping, Sandbox};
use sluice_tests::node::{Node, PodRef};
use sluice_tests::runtime::{Containerd, Home, IMAGE, PAGE, PORT, Podman};
use sluice_tests::shop::{Shop, WEB_V4};
use sluice_tests::{Result, wait_for};

const LIMIT: Duration = Duration::from_secs(20);

/// The records on the node.
fn records(node: &Node) -> Result<Vec<Value>> {
    let mut records = Vec::new();
    for entry in fs::read_dir(node.state_dir().join("endpoints"))? {
        let path = entry?.path();
        if path.extension().is_some_and(|ending| ending == "json") {
            records.push(serde_json::from_slice(&fs::read(path)?)?);
        }
    }
    Ok(records)
}

/// Nothing of a container is left but what the pods of the shop have.
fn clean(node: &Node, before: &[Value]) -> Result<()> {
    assert_eq!(records(node)?.len(), before.len());
    let links = node.netns().ip_output(&["-o", "link"])?;
    assert_eq!(links.matches(": slu").count(), before.len(), "{links}");
    Ok(())
}

fn page(node: &Node, url: &str) -> Result<String> {
    node.launch("busybox").args(["wget", "-q", "-O", "-", url]).run()
}

/// C11: containerd by hand. The container reaches a Service, and its network ends with it.
#[test]
fn a_container_that_ctr_runs_reaches_services() -> Result<()> {
    let shop = Shop::open()?;
    let node = shop.cluster.node(0);
    let home = Home::new(node, shop.cluster.dir())?;
    let containerd = Containerd::start(node, &home)?;
    let before = records(node)?;
    let url = format!("http://{WEB_V4}/");
    let output = containerd
        .ctr(node, &home)
        .args(["run", "--rm", "--cni", "--snapshotter", "native", "--cgroup"])
        .arg(format!("{}/by-hand", home.cgroup()))
        .args([IMAGE, "by-hand", "wget", "-q", "-O", "-", &url])
        .run()?;
    ensure!(output.contains("web-"), "{output}\n{}", containerd.log());
    clean(node, &before)
}

/// C11, S37: containerd as a kubelet drives it: Kubernetes' arguments are in the record, the pod is
/// reached by its address and by its port of the node, and stopping it twice leaves nothing.
#[test]
fn a_pod_sandbox_of_the_cri_is_served_until_it_is_stopped() -> Result<()> {
    let shop = Shop::open()?;
    let node = shop.cluster.node(0);
    let home = Home::new(node, shop.cluster.dir())?;
    let containerd = Containerd::start(node, &home)?;
    let before = records(node)?;
    let cri = containerd.cri()?;
    let sandbox = Sandbox {
        metadata: Some(Metadata {
            name: "api-0".to_owned(),
            uid: "0b1c2d3e".to_owned(),
            namespace: "shop".to_owned(),
            attempt: 0,
        }),
        hostname: "api-0".to_owned(),
        log_directory: home.path().display().to_string(),
        port_mappings: vec![PortMapping {
            protocol: 0,
            container_port: i32::from(PORT),
            host_port: 9080,
            host_ip: String::new(),
        }],
        linux: Some(Linux { cgroup_parent: home.cgroup().to_owned() }),
        ..Sandbox::default()
    };
    let id = cri.run(sandbox)?;
    let addresses = cri.addresses(&id)?;
    assert_eq!(addresses.len(), 2, "{addresses:?}");
    let record = records(node)?.into_iter().find(|record| record["podName"] == "api-0");
    let record = record.expect("a record of the pod");
    assert_eq!(record["containerId"], *id);
    assert_eq!((&record["podNamespace"], &record["podUid"]), (&"shop".into(), &"0b1c2d3e".into()));
    assert_eq!(record["addresses"][0], addresses[0].to_string());

    // Its pause process is a web server.
    let direct = format!("http://{}:{PORT}/", addresses[0]);
    wait_for("the page", LIMIT, || page(node, &direct).ok().filter(|text| text == PAGE))?;
    for url in ["http://172.31.0.11:9080/", "http://127.0.0.1:9080/"] {
        assert_eq!(page(node, url)?, PAGE, "{url}");
    }
    let endpoints = node.proxyctl(&["endpoint", "list"])?;
    ensure!(endpoints.contains("shop/api-0"), "{endpoints}");

    cri.stop(&id)?;
    clean(node, &before)?;
    ensure!(page(node, "http://127.0.0.1:9080/").is_err(), "the port is served after the pod");
    cri.stop(&id)?;
    cri.remove(&id)?;
    clean(node, &before)
}

/// C11: podman with its CNI backend.
#[test]
fn a_container_of_podman_reaches_services_and_is_reached() -> Result<()> {
    let shop = Shop::open()?;
    let node = shop.cluster.node(0);
    let home = Home::new(node, shop.cluster.dir())?;
    let podman = Podman::new(node, &home)?;
    let before = records(node)?;
    let url = format!("http://{WEB_V4}/");
    let cgroup = home.cgroup();
    let common = ["run", "--rm", "--network", "sluice", "--cgroup-parent", cgroup];
    let output = podman.launch().args(common).args([IMAGE, "wget", "-q", "-O", "-", &url]).run()?;
    ensure!(output.contains("web-"), "{output}");
    clean(node, &before)?;

    // One call, because podman's network namespace is known in its mount namespace only.
    let script = format!(
        "podman run --detach --name page --network sluice --cgroup-parent {cgroup} \
         --publish 9080:{PORT} {IMAGE} >&2 && \
         busybox wget -q -O - http://172.31.0.11:9080/; \
         podman rm --force --time 0 page >&2"
    );
    let output = podman.in_one(&script).run()?;
    assert_eq!(output.trim(), PAGE);
    clean(node, &before)
}

/// C4: CHECK as a runtime asks it that uses libcni. Of the runtimes of Debian none does (CRI-O would), so this puts the
/// call together from what libcni has in its cache: the network's configuration and the result of ADD.
fn check(node: &Node, cached: &Value, plugin: &Value, netns: &Path) -> Result<()> {
    let text = |key: &str| cached[key].as_str().unwrap_or_default();
    let mut conf = plugin.clone();
    conf["name"] = cached["networkName"].clone();
    conf["cniVersion"] = cached["result"]["cniVersion"].clone();
    conf["prevResult"] = cached["result"].clone();
    let pod = PodRef { namespace: "shop", name: "kept", container_id: text("containerId"), netns };
    node.cni("CHECK", &pod, &conf).map(drop)
}

/// C11, C3, C4: of several configurations the first in lexical order counts, as libcni has it; what
/// ADD gave is in its cache, stands up to CHECK until something of it is taken away, and comes back
/// with DEL; without the cache DEL does as well.
#[test]
fn the_first_configuration_counts_and_the_result_cache_may_be_lost() -> Result<()> {
    let shop = Shop::open()?;
    let node = shop.cluster.node(0);
    let home = Home::new(node, shop.cluster.dir())?;
    let networks = home.path().join("net.d");
    let text = fs::read_to_string(networks.join("10-sluice.conflist"))?;
    let mut list: Value = serde_json::from_str(&text)?;
    // One that tells what it was given, before ours.
    let told = home.path().join("told");
    fs::create_dir(&told)?;
    let spy = home.path().join("bin/spy");
    let script = format!(
        "#!/bin/sh\ncat > {dir}/$CNI_COMMAND-$CNI_CONTAINERID\n\
         [ $CNI_COMMAND != ADD ] || echo '{{\"cniVersion\":\"1.0.0\"}}'\n",
        dir = told.display()
    );
    fs::write(&spy, script)?;
    fs::set_permissions(&spy, fs::Permissions::from_mode(0o755))?;
    list["name"] = "first".into();
    let plugins = list["plugins"].as_array_mut().expect("a list");
    plugins.insert(0, serde_json::json!({"type": "spy"}));
    fs::write(networks.join("05-first.conflist"), list.to_string())?;
    let broken = r#"{"cniVersion":"1.0.0","name":"last","plugins":[{"type":"no-such-plugin"}]}"#;
    fs::write(networks.join("90-last.conflist"), broken)?;

    let containerd = Containerd::start(node, &home)?;
    let before = records(node)?;
    let cri = containerd.cri()?;
    let cache = containerd.root().join("var/lib/cni/results");
    for (name, cached) in [("kept", true), ("lost", false)] {
        let sandbox = Sandbox {
            metadata: Some(Metadata {
                name: name.to_owned(),
                uid: name.to_owned(),
                namespace: "shop".to_owned(),
                attempt: 0,
            }),
            hostname: name.to_owned(),
            log_directory: home.path().display().to_string(),
            linux: Some(Linux { cgroup_parent: home.cgroup().to_owned() }),
            ..Sandbox::default()
        };
        let id = cri.run(sandbox)?;
        let record = records(node)?.into_iter().find(|record| record["podName"] == name);
        let record = record.expect("a record of the pod");
        assert_eq!(record["network"], "first");
        let file = cache.join(format!("first-{id}-eth0"));
        let held: Value = serde_json::from_slice(&fs::read(&file)?)?;
        let address = record["addresses"][0].as_str().expect("an address");
        ensure!(held["result"]["ips"].to_string().contains(address), "{held}");
        if cached {
            // It is mounted where containerd can see it alone.
            let path = record["netns"].as_str().expect("a path").trim_start_matches('/');
            let netns = containerd.root().join(path);
            check(node, &held, &list["plugins"][1], &netns)?;
            let inside = |command: &str| {
                let nsenter = node.launch("nsenter").arg(format!("--net={}", netns.display()));
                nsenter.args(["ip"]).args(command.split(' ')).run()
            };
            inside("route del default")?;
            let error = check(node, &held, &list["plugins"][1], &netns).expect_err("it is gone");
            let named = "default route through 169.254.1.1 is missing in the pod";
            ensure!(format!("{error:#}").contains(named), "{error:#}");
        } else {
            fs::remove_file(&file)?;
        }
        cri.stop(&id)?;
        let del: Value = serde_json::from_slice(&fs::read(told.join(format!("DEL-{id}")))?)?;
        assert_eq!(del["prevResult"].to_string().contains(address), cached, "{del}");
        clean(node, &before)?;
        ensure!(!file.exists(), "libcni forgets what is deleted");
        cri.remove(&id)?;
    }
    Ok(())
}
