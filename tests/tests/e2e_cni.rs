//! The plugin and the agent together: addresses that leak, ranges that change.

use std::fs::{self, File};
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use anyhow::{Context, ensure};
use sluice_tests::cluster::{Cluster, node_manifest};
use sluice_tests::node::Node;
use sluice_tests::pod::Pod;
use sluice_tests::wait::wait_ok;
use sluice_tests::{Result, wait_for};

const LIMIT: Duration = Duration::from_secs(30);

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
    let address = goes.addresses()[0].to_string();
    // The namespaces go, and with them the interfaces.
    drop((goes, young));
    node.wait_for_view(&["endpoint", "list"], LIMIT, |rows| !rows.to_string().contains(&address))?;
    ensure!(leaked.exists(), "it is young");
    age(&leaked)?;
    wait_for("the record to go", LIMIT, || (!leaked.exists()).then_some(()))?;
    ensure!(old.exists() && fresh.exists(), "only what leaked goes");
    let agent = cluster.node_mut(0).agent()?;
    agent.wait_for_log("the pod went without a DEL", LIMIT)?;
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
    wait_ok("the new ranges", LIMIT, || {
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
