//! The fixtures themselves: what they make is isolated, and nothing stays.

use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;

use sluice_tests::bpffs::BpfRoot;
use sluice_tests::cgroup::{self, Cgroup};
use sluice_tests::cluster::Cluster;
use sluice_tests::netns::{self, NetNs, run};
use sluice_tests::{PATIENCE, Result, names, sweep, wait_for};

fn netns_path(name: &str) -> PathBuf {
    Path::new(netns::DIR).join(name)
}

#[test]
fn namespaces_joined_by_a_veth_talk_and_are_gone_after_drop() -> Result<()> {
    let (left, right) = (NetNs::new("left")?, NetNs::new("right")?);
    left.veth("eth0", &right, "eth0")?;
    left.ip("addr add 192.0.2.1/24 dev eth0")?;
    right.ip("addr add 192.0.2.2/24 dev eth0")?;
    let listener = right.run(|| TcpListener::bind("192.0.2.2:80"))??;
    let stream = left.run(|| TcpStream::connect("192.0.2.2:80"))??;
    assert_eq!(listener.accept()?.1, stream.local_addr()?);
    let paths = [left.path(), right.path()];
    assert!(paths.iter().all(|path| path.exists()));
    drop((left, right));
    assert!(!paths.iter().any(|path| path.exists()));
    Ok(())
}

#[test]
fn a_panic_leaves_no_namespace() {
    let name = std::sync::Mutex::new(String::new());
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let netns = NetNs::new("panic").unwrap();
        netns.name().clone_into(&mut name.lock().unwrap());
        netns.run(|| panic!("inside")).unwrap();
    }));
    assert!(result.is_err());
    let name = name.lock().map_or_else(|poison| poison.into_inner().clone(), |name| name.clone());
    assert!(!name.is_empty());
    assert!(!netns_path(&name).exists());
}

#[test]
fn a_command_runs_in_its_namespace_and_cgroup() -> Result<()> {
    let netns = NetNs::new("place")?;
    let cgroup = Cgroup::new("place")?;
    let seen = netns
        .launch("sh")
        .cgroup(&cgroup)
        .args(["-c", "cat /proc/self/cgroup; readlink /proc/self/ns/net; test -d /sys/fs/cgroup"])
        .run()?;
    let name = cgroup.path().file_name().unwrap().to_string_lossy().into_owned();
    assert!(seen.contains(&format!("0::/{name}\n")), "{seen}");
    let outside = std::fs::read_link("/proc/self/ns/net")?;
    assert!(!seen.contains(&*outside.to_string_lossy()), "{seen}");
    Ok(())
}

#[test]
fn a_cgroup_ends_what_runs_in_it_and_below() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let cgroup = Cgroup::new("kill")?;
    let child = cgroup.child("pod")?;
    let mut sleeper = sluice_tests::process::Launch::new("sleep")
        .arg("1000")
        .cgroup(&child)
        .spawn(&dir.path().join("log"))?;
    let pid = sleeper.pid();
    wait_for("the process in its cgroup", PATIENCE, || {
        child.processes().is_ok_and(|pids| pids.contains(&pid)).then_some(())
    })?;
    let path = cgroup.path().to_owned();
    drop((child, cgroup));
    assert!(!path.exists());
    assert!(!sleeper.wait(PATIENCE)?.success());
    Ok(())
}

#[test]
fn leftovers_of_a_dead_run_are_swept_and_those_of_a_living_one_stay() -> Result<()> {
    sluice_tests::require_root()?;
    let mut child = Command::new("true").spawn()?;
    let dead = format!("{}-{}-1-left", names::prefix(), child.id());
    child.wait()?;
    let living = NetNs::new("living")?;
    run("ip", &["netns", "add", &dead])?;
    let group = cgroup::mount_point()?.join(&dead);
    std::fs::create_dir(&group)?;
    let pins = BpfRoot::new("pins")?;
    let dead_pins = pins.path().parent().unwrap().join(&dead);
    std::fs::create_dir(&dead_pins)?;
    // Another test process that starts now may be the one that sweeps; either way they go.
    sweep::dead();
    for path in [netns_path(&dead), group, dead_pins] {
        wait_for(&format!("{} to be swept", path.display()), PATIENCE, || {
            (!path.exists()).then_some(())
        })?;
    }
    assert!(living.path().exists() && pins.path().exists());
    Ok(())
}

#[test]
fn nodes_of_a_cluster_reach_each_other_in_both_families() -> Result<()> {
    let cluster = Cluster::new(2)?;
    for target in ["172.31.0.12:7000", "[fd00:172:31::12]:7000"] {
        let listener = cluster.node(1).netns().run(|| TcpListener::bind(target))??;
        let stream = cluster.node(0).netns().run(|| TcpStream::connect(target))??;
        assert_eq!(listener.accept()?.1, stream.local_addr()?);
    }
    assert!(cluster.manifests().join("node-b.yaml").exists());
    Ok(())
}
