//! The plugin on a state directory that is full or read-only. Needs root.

#[allow(dead_code, reason = "each of the tests uses its part")]
mod common;

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use common::{Node, Ns, addresses};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::json;

/// A file system of its own in a directory; unmounted when dropped, also by a failing test.
struct Disk {
    path: PathBuf,
}

impl Disk {
    /// Room for a handful of records.
    fn new(path: PathBuf) -> Self {
        common::require_root();
        fs::create_dir_all(&path).expect("directory");
        mount(Some("none"), &path, Some("tmpfs"), MsFlags::empty(), Some("size=64k,mode=755"))
            .expect("mount a tmpfs");
        Self { path }
    }

    /// Fills it to the brim; the file that does it.
    fn fill(&self) -> PathBuf {
        let path = self.path.join("ballast");
        let mut file = File::create(&path).expect("a file");
        while file.write_all(&[0; 512]).is_ok() {}
        path
    }

    fn read_only(&self, on: bool) {
        let flags = if on { MsFlags::MS_RDONLY } else { MsFlags::empty() };
        mount(
            None::<&str>,
            &self.path,
            None::<&str>,
            MsFlags::MS_REMOUNT | flags,
            Some("size=64k"),
        )
        .expect("remount");
    }

    fn names(&self) -> Vec<String> {
        let mut names = Vec::new();
        walk(&self.path, &mut names);
        names.sort();
        names
    }
}

fn walk(dir: &Path, names: &mut Vec<String>) {
    for entry in fs::read_dir(dir).expect("directory") {
        let path = entry.expect("entry").path();
        names.push(path.display().to_string());
        if path.is_dir() {
            walk(&path, names);
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = umount2(&self.path, MntFlags::MNT_DETACH);
    }
}

/// The disk goes first: its directory is the node's.
struct Lab {
    disk: Disk,
    node: Node,
}

impl Lab {
    fn new() -> Self {
        let node = Node::new(&["10.244.1.0/29"]);
        Self { disk: Disk::new(node.dir.path().join("state")), node }
    }

    fn links(&self) -> usize {
        self.node.ns.ip("-o link").matches(": slu").count()
    }
}

/// C2, C3, C6: on a full disk ADD fails with the code for I/O, names the file and leaves nothing; DEL
/// needs no room; CHECK and GC work and STATUS tells. With room again everything does.
#[test]
fn a_full_disk_fails_add_and_nothing_else() {
    let lab = Lab::new();
    let mut node_conf = lab.node.conf.clone();
    node_conf["cni.dev/valid-attachments"] = json!([{"containerID": "a", "ifname": "eth0"}]);
    let node = &lab.node;
    let (a, b, c) = (Ns::new("a"), Ns::new("b"), Ns::new("c"));
    node.add("a", &a);
    node.add("b", &b);
    let ballast = lab.disk.fill();
    let before = lab.disk.names();

    for _ in 0..2 {
        let (code, message, _) = node.call("ADD", "c", &c).failure();
        assert_eq!(code, 5, "{message}");
        assert!(message.contains("state/") && message.contains("No space left"), "{message}");
    }
    assert_eq!(lab.disk.names(), before);
    assert_eq!(lab.links(), 2);
    assert!(!c.ip("-o link").contains("eth0"));
    let (code, message, _) = node.call("STATUS", "", &c).failure();
    assert_eq!(code, 50, "{message}");
    assert!(message.contains("endpoints") && message.contains("No space left"), "{message}");
    assert_eq!(lab.disk.names(), before);

    node.call("CHECK", "a", &a).success();
    // What a runtime sends after an ADD that failed.
    node.call("DEL", "c", &c).success();
    common::finish(node.start("GC", "", None, &node_conf)).success();
    assert_eq!((lab.links(), node.records().len()), (1, 1), "GC frees b");
    lab.disk.fill();
    node.call("DEL", "a", &a).success();
    node.assert_clean();

    fs::remove_file(ballast).expect("room");
    node.call("STATUS", "", &c).success();
    let given = addresses(&node.call("ADD", "c", &c).success());
    node.call("CHECK", "c", &c).success();
    assert_eq!(given.len(), 1);
    // Nothing is held by what failed: all five are there.
    let pods: Vec<Ns> = (0..4).map(|_| Ns::new("pod")).collect();
    for (i, pod) in pods.iter().enumerate() {
        node.add(&format!("rest-{i}"), pod);
    }
}

/// C3, C7: after a reboot on a full disk a DEL still frees what it is asked to, and what is torn is not
/// taken for a record of this boot once there is room.
#[test]
fn a_reboot_with_a_full_disk_does_not_stop_del() {
    let lab = Lab::new();
    let node = &lab.node;
    let (a, b) = (Ns::new("a"), Ns::new("b"));
    let given = node.add("a", &a);
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").expect("boot id");
    for path in [node.record_path(given[0]), lab.disk.path.join("ipam.json")] {
        let text = fs::read_to_string(&path).expect("read");
        fs::write(&path, text.replace(boot.trim(), "an-earlier-boot")).expect("write");
    }
    a.ip("link del eth0");
    let torn = lab.disk.path.join("endpoints/slu0000000000a,10.244.1.5.json");
    fs::write(&torn, "{\"vers").expect("write");
    let ballast = lab.disk.fill();
    node.del_without_netns("a").success();
    node.assert_clean();
    fs::remove_file(ballast).expect("room");
    node.add("b", &b);
    let state = fs::read_to_string(lab.disk.path.join("ipam.json")).expect("read");
    assert!(state.contains(boot.trim()), "{state}");
}

/// C2, C3: on a read-only disk every command that would write fails with a clear error and leaves the
/// node as it was or can be repeated; reading works.
#[test]
fn a_read_only_disk_is_told_and_del_succeeds_later() {
    let lab = Lab::new();
    let mut conf = lab.node.conf.clone();
    conf["cni.dev/valid-attachments"] = json!([]);
    let node = &lab.node;
    let (a, b) = (Ns::new("a"), Ns::new("b"));
    node.add("a", &a);
    lab.disk.read_only(true);
    let before = lab.disk.names();

    let (code, message, _) = node.call("ADD", "b", &b).failure();
    assert_eq!(code, 5, "{message}");
    assert!(message.contains("state/") && message.contains("Read-only"), "{message}");
    assert_eq!(lab.links(), 1);
    assert!(!b.ip("-o link").contains("eth0"));
    let (code, message, _) = node.call("STATUS", "", &b).failure();
    assert_eq!(code, 50, "{message}");
    assert!(message.contains("endpoints") && message.contains("Read-only"), "{message}");
    node.call("CHECK", "a", &a).success();
    // There is nothing to free.
    node.call("DEL", "b", &b).success();
    let (code, message, _) = common::finish(node.start("GC", "", None, &conf)).failure();
    assert_eq!(code, 102, "{message}");
    assert!(message.contains("Read-only"), "{message}");
    let (code, message, _) = node.call("DEL", "a", &a).failure();
    assert_eq!(code, 5, "{message}");
    assert!(message.contains(".json") && message.contains("Read-only"), "{message}");
    assert_eq!(lab.disk.names(), before);

    lab.disk.read_only(false);
    node.call("STATUS", "", &b).success();
    node.call("DEL", "a", &a).success();
    node.assert_clean();
    node.add("b", &b);
}

/// C2: a state directory that cannot even be made.
#[test]
fn a_state_directory_that_cannot_be_made_is_named() {
    let lab = Lab::new();
    let mut conf = lab.node.conf.clone();
    conf["stateDir"] = json!(lab.disk.path.join("deeper/state"));
    lab.disk.read_only(true);
    let pod = Ns::new("pod");
    let call = |command: &str| {
        let id = if command == "STATUS" { "" } else { "a" };
        common::finish(lab.node.start(command, id, Some(&pod.path()), &conf))
    };
    for (command, expected) in [("ADD", 5), ("STATUS", 50)] {
        let (code, message, _) = call(command).failure();
        assert_eq!(code, expected, "{command}: {message}");
        assert!(message.contains("state") && message.contains("Read-only"), "{message}");
    }
    call("DEL").success();
    lab.node.assert_clean();
}
