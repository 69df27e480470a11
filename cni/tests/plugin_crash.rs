//! The plugin killed at every system call, and in a crowd: nothing is lost, nothing is given twice.
//! Needs root.

#[allow(dead_code, reason = "each of the tests uses its part")]
mod common;
#[path = "common/killer.rs"]
mod killer;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};

use common::{Node, Ns, finish};
use killer::{End, kill_at};
use proptest::prelude::RngExt as _;
use proptest::test_runner::{RngAlgorithm, TestRng};

/// 13 addresses of IPv4.
const SMALL: [&str; 2] = ["10.244.1.0/28", "fd00:244:1::/64"];

/// Starts a call that stops itself before it becomes the plugin.
fn start_stopped(node: &Node, command: &str, id: &str, pod: &Ns) -> Child {
    // It goes with this test: nobody would ever let it go on.
    let mut shell = Command::new("setpriv");
    shell
        .args(["--pdeathsig", "KILL", "nsenter"])
        .arg(format!("--net={}", node.ns.path().display()))
        .args(["sh", "-c", "kill -STOP $$; exec \"$0\"", env!("CARGO_BIN_EXE_sluice-cni")])
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .envs([("CNI_COMMAND", command), ("CNI_CONTAINERID", id), ("CNI_IFNAME", "eth0")])
        .env("CNI_NETNS", pod.path())
        .process_group(0)
        .stdin(stdin(&node.conf.to_string()))
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    shell.spawn().expect("nsenter")
}

/// The configuration as a file: nobody has to feed a pipe to a process that is stopped.
fn stdin(text: &str) -> std::fs::File {
    use std::io::{Seek as _, Write as _};
    let mut file = tempfile::tempfile().expect("a file");
    file.write_all(text.as_bytes()).expect("write");
    file.rewind().expect("rewind");
    file
}

/// The host-side interfaces of the node.
fn links(node: &Node) -> BTreeSet<String> {
    let links = node.ns.ip("-o link");
    links
        .lines()
        .filter_map(|line| line.split_whitespace().nth(1))
        .map(|name| name.split(['@', ':']).next().unwrap_or(name).to_owned())
        .filter(|name| name.starts_with("slu"))
        .collect()
}

/// The host-side interfaces that records name.
fn recorded(node: &Node) -> BTreeSet<String> {
    node.records().iter().filter_map(|name| name.split(',').next()).map(str::to_owned).collect()
}

/// All addresses of a node that has no pods but those of `kept`: as many as there are, each once.
fn assert_all_are_there(node: &Node, kept: &BTreeSet<IpAddr>) {
    let mut seen = kept.clone();
    let pods: Vec<Ns> = (0..13 - 1).map(|_| Ns::new("pod")).collect();
    for (i, pod) in pods.iter().enumerate() {
        for address in node.add(&format!("all-{i}"), pod) {
            assert!(seen.insert(address), "{address} was given twice");
        }
    }
    for (i, pod) in pods.iter().enumerate() {
        node.call("DEL", &format!("all-{i}"), pod).success();
    }
}

/// C6: ADD killed at each of its system calls. Whatever is left holds its address; a second ADD of the
/// same attachment or a DEL puts it right.
#[test]
fn an_add_killed_at_any_system_call_is_healed() {
    let node = Node::new(&SMALL);
    let (neighbour, pod, third) = (Ns::new("neighbour"), Ns::new("pod"), Ns::new("third"));
    let kept: BTreeSet<IpAddr> = node.add("neighbour", &neighbour).into_iter().collect();
    let mut n = 0;
    let (mut with_record, mut with_link) = (0, 0);
    loop {
        n += 1;
        let (end, status) = kill_at(start_stopped(&node, "ADD", "a", &pod), n);
        if end == End::Finished {
            assert!(status.is_some_and(|status| status.success()), "{status:?}");
            node.call("CHECK", "a", &pod).success();
            node.call("DEL", "a", &pod).success();
            break;
        }
        // No interface without a record: its address is taken.
        let (links, records) = (links(&node), recorded(&node));
        assert!(links.is_subset(&records), "call {n}: {links:?} {records:?}");
        with_record += usize::from(records.len() > 1);
        with_link += usize::from(links.len() > 1);
        let given: BTreeSet<IpAddr> = node.add("third", &third).into_iter().collect();
        assert!(given.is_disjoint(&kept), "call {n}: {given:?}");
        if n % 2 == 0 && !pod.ip("-o link").contains("eth0") {
            // What a runtime does that tries again.
            let again: BTreeSet<IpAddr> = node.add("a", &pod).into_iter().collect();
            assert!(again.is_disjoint(&kept) && again.is_disjoint(&given), "call {n}: {again:?}");
            node.call("CHECK", "a", &pod).success();
        }
        node.call("DEL", "a", &pod).success();
        node.call("DEL", "third", &third).success();
        assert_eq!((links_left(&node), node.records().len()), (1, 1), "call {n}");
        assert!(!pod.ip("-o link").contains("eth0"), "call {n}");
    }
    // The calls were really met: before the record, with the record, and with the interface.
    assert!(n > 100 && with_record > with_link && with_link > 20, "{n} {with_record} {with_link}");
    node.call("CHECK", "neighbour", &neighbour).success();
    assert_all_are_there(&node, &kept);
}

fn links_left(node: &Node) -> usize {
    links(node).len()
}

/// C6, C3: DEL killed at each of its system calls. The address stays taken until the interface is gone,
/// and the next DEL ends it.
#[test]
fn a_del_killed_at_any_system_call_is_finished_by_the_next() {
    let node = Node::new(&SMALL);
    let (neighbour, pod, third) = (Ns::new("neighbour"), Ns::new("pod"), Ns::new("third"));
    let kept: BTreeSet<IpAddr> = node.add("neighbour", &neighbour).into_iter().collect();
    let mut n = 0;
    let mut half = 0;
    loop {
        n += 1;
        node.add("a", &pod);
        let (end, status) = kill_at(start_stopped(&node, "DEL", "a", &pod), n);
        if end == End::Finished {
            assert!(status.is_some_and(|status| status.success()), "{status:?}");
            break;
        }
        let (links, records) = (links(&node), recorded(&node));
        assert!(links.is_subset(&records), "call {n}: {links:?} {records:?}");
        half += usize::from(links.len() < records.len());
        let given: BTreeSet<IpAddr> = node.add("third", &third).into_iter().collect();
        assert!(given.is_disjoint(&kept), "call {n}: {given:?}");
        node.call("DEL", "third", &third).success();
        node.call("DEL", "a", &pod).success();
        assert_eq!((links_left(&node), node.records().len()), (1, 1), "call {n}");
    }
    assert!(n > 50 && half > 0, "{n} {half}");
    node.call("CHECK", "neighbour", &neighbour).success();
    assert_all_are_there(&node, &kept);
}

/// C6: 200 calls at once, ADDs and DELs in random order, a fifth of them killed at a random moment;
/// addresses, interfaces and records agree at the end of every round.
#[test]
fn a_crowd_of_adds_and_dels_with_random_kills_never_loses_or_shares_an_address() {
    const PODS: usize = 200;
    const ROUNDS: usize = 20;
    let seed = std::time::UNIX_EPOCH.elapsed().map_or(1, |since| since.as_nanos());
    eprintln!("seed {seed}");
    let mut random = TestRng::from_seed(RngAlgorithm::XorShift, &seed.to_ne_bytes());
    let node = Node::new(&["10.244.0.0/23", "fd00:244:1::/64"]);
    let pods: Vec<Ns> = (0..PODS).map(|_| Ns::new("pod")).collect();
    // Whether each has an attachment, as far as the runtime knows.
    let mut attached = vec![false; PODS];
    let mut killed = 0;
    for round in 0..ROUNDS {
        let mut order: Vec<usize> = (0..PODS).collect();
        for i in (1..PODS).rev() {
            order.swap(i, random.random_range(0..i + 1));
        }
        let mut running: Vec<(usize, bool, Option<Child>)> = Vec::new();
        for pod in order {
            let command = if attached[pod] { "DEL" } else { "ADD" };
            let child =
                node.start(command, &format!("c{pod}"), Some(&pods[pod].path()), &node.conf);
            let mut victim = None;
            if random.random_range(0..5) == 0 {
                // One of those that are under way, at whatever point it is.
                victim = Some(random.random_range(0..running.len() + 1));
            }
            running.push((pod, attached[pod], Some(child)));
            if let Some((_, _, Some(child))) = victim.and_then(|at| running.get_mut(at)) {
                // It may have ended already, and then nothing happens to it.
                child.kill().expect("kill");
                killed += 1;
            }
        }
        for (pod, was_attached, child) in &mut running {
            let output = child.take().expect("running").wait_with_output().expect("wait");
            let text = String::from_utf8_lossy(&output.stdout);
            if output.status.success() {
                attached[*pod] = !*was_attached;
            } else {
                assert!(output.status.code().is_none(), "round {round}: c{pod}: {text}");
                // A runtime that does not know what became of a call sends a DEL.
                let id = format!("c{pod}");
                finish(node.start("DEL", &id, Some(&pods[*pod].path()), &node.conf)).success();
                attached[*pod] = false;
            }
        }
        agree(&node, &pods, &attached, round);
    }
    assert!(killed > 0);
    for (pod, _) in attached.iter().enumerate().filter(|(_, attached)| **attached) {
        node.call("DEL", &format!("c{pod}"), &pods[pod]).success();
    }
    node.assert_clean();
}

/// The node and its pods have exactly what the records say, and no address is in two of them.
fn agree(node: &Node, pods: &[Ns], attached: &[bool], round: usize) {
    assert_eq!(links(node), recorded(node), "round {round}");
    let mut holders: BTreeMap<String, String> = BTreeMap::new();
    for record in node.records() {
        let mut parts = record.trim_end_matches(".json").split(',');
        let interface = parts.next().expect("an interface").to_owned();
        for address in parts {
            let other = holders.insert(address.to_owned(), interface.clone());
            assert_eq!(other, None, "round {round}: {address} is in two records");
        }
    }
    let expected = attached.iter().filter(|attached| **attached).count();
    assert_eq!(node.records().len(), expected, "round {round}");
    let routes = node.ns.ip("route") + &node.ns.ip("-6 route");
    for (address, interface) in &holders {
        let there = routes.lines().any(|line| {
            let mut words = line.split_whitespace();
            words.next() == Some(address) && words.any(|word| word == interface)
        });
        assert!(there, "round {round}: no route to {address} through {interface}");
    }
    let routed = routes.lines().filter(|line| line.contains("dev slu")).count();
    // A node's end has no address of its own, so there is no other route through it.
    assert_eq!(routed, holders.len(), "round {round}: {routes}");
    // A sample of them, in full.
    for (pod, _) in attached.iter().enumerate().filter(|(_, attached)| **attached).take(5) {
        node.call("CHECK", &format!("c{pod}"), &pods[pod]).success();
    }
}
