//! The plugin's binary on the real kernel, in network namespaces of its own. Needs root.

#[allow(dead_code, reason = "each of the tests uses its part")]
mod common;

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::IpAddr;
use std::os::unix::net::UnixListener;
use std::thread;
use std::time::{Duration, Instant};

use common::{Node, Ns, addresses, assert_reaches, finish};
use serde_json::{Value, json};

const DUAL: [&str; 2] = ["10.244.1.0/24", "fd00:244:1::/64"];

#[test]
fn pods_of_a_node_reach_each_other_and_the_node_reaches_them() {
    let node = Node::new(&DUAL);
    node.ns.ip("addr add 192.0.2.1/32 dev lo");
    node.ns.ip("-6 addr add 2001:db8::1/128 dev lo nodad");
    let (a, b) = (Ns::new("a"), Ns::new("b"));
    let a_addresses = node.add("a", &a);
    let b_addresses = node.add("b", &b);
    assert_eq!(a_addresses.len(), 2);
    for (to_a, to_b) in a_addresses.iter().zip(&b_addresses) {
        assert_reaches(&a, &b, *to_b);
        assert_reaches(&b, &a, *to_a);
        assert_reaches(&node.ns, &a, *to_a);
    }
    assert_reaches(&a, &node.ns, "192.0.2.1".parse().expect("address"));
    assert_reaches(&a, &node.ns, "2001:db8::1".parse().expect("address"));
    node.call("CHECK", "a", &a).success();
    node.call("DEL", "a", &a).success();
    assert!(!a.ip("-o link").contains("eth0"));
    assert_reaches(&node.ns, &b, b_addresses[0]);
    node.call("DEL", "b", &b).success();
    node.assert_clean();
}

/// C9
#[test]
fn a_pod_has_no_dad_delay_no_router_advertisements_and_the_right_mtu() {
    let node = Node::new(&DUAL);
    node.ns.ip("link add uplink mtu 1400 type veth peer name wire");
    node.ns.ip("addr add 192.0.2.9/24 dev uplink");
    node.ns.ip("link set uplink up");
    node.ns.ip("route add default via 192.0.2.254");
    let pod = Ns::new("pod");
    let result = node.call("ADD", "a", &pod).success();
    assert_eq!(result["interfaces"][1]["mtu"], 1400);
    let shown = pod.ip("-d addr show dev eth0");
    assert!(shown.contains("mtu 1400"), "{shown}");
    assert!(!shown.contains("tentative"), "{shown}");
    assert!(shown.contains("gso_max_size 65536"), "{shown}");
    assert_eq!(pod.sysctl("ipv6/conf/eth0/accept_ra"), "0");
    assert_eq!(pod.sysctl("ipv6/conf/eth0/accept_dad"), "0");
    assert_eq!(pod.sysctl("ipv4/conf/eth0/arp_notify"), "1");
    let neighbours = pod.ip("neigh");
    for gateway in ["169.254.1.1", "fe80::1"] {
        let permanent =
            neighbours.lines().any(|l| l.starts_with(gateway) && l.contains("PERMANENT"));
        assert!(permanent, "{neighbours}");
    }
}

/// C4: whatever piece is taken away, CHECK names it.
#[test]
fn check_names_what_is_missing() {
    let node = Node::new(&DUAL);
    let host = || {
        let links = node.ns.ip("-o link");
        let start = links.find("slu").expect("the node's end");
        links[start..start + 14].to_owned()
    };
    type Break = fn(&Node, &Ns, &str, &[IpAddr]);
    let cases: [(Break, &str); 11] = [
        (|n, _, _, a| drop(n.ns.ip(&format!("route del {}", a[0]))), "route to 10.244.1."),
        (|n, _, _, a| drop(n.ns.ip(&format!("-6 route del {}", a[1]))), "route to fd00:244:1::"),
        (|n, _, h, a| drop(n.ns.ip(&format!("neigh del {} dev {h}", a[0]))), "neighbour 10.244.1."),
        (|n, _, h, _| drop(n.ns.ip(&format!("link set {h} down"))), "is down on the node"),
        (|n, _, h, _| drop(n.ns.ip(&format!("link set {h} mtu 1300"))), "has MTU 1300, not 1500"),
        (|_, p, _, _| drop(p.ip("link set eth0 address 02:00:00:00:00:01")), "has another MAC"),
        (
            |_, p, _, a| drop(p.ip(&format!("addr del {}/128 dev eth0", a[1]))),
            "address fd00:244:1::",
        ),
        (|_, p, _, _| drop(p.ip("route del default")), "default route through 169.254.1.1"),
        (|_, p, _, _| drop(p.ip("neigh del fe80::1 dev eth0")), "neighbour fe80::1"),
        (|_, p, _, _| drop(p.ip("link del eth0")), "is missing on the node"),
        (
            |n, _, _, a| fs::remove_file(n.record_path(a[0])).expect("remove"),
            "record of eth0 of container",
        ),
    ];
    for (i, (damage, expected)) in cases.into_iter().enumerate() {
        let pod = Ns::new("pod");
        let id = format!("c{i}");
        let given = node.add(&id, &pod);
        node.call("CHECK", &id, &pod).success();
        damage(&node, &pod, &host(), &given);
        let (code, message, _) = node.call("CHECK", &id, &pod).failure();
        assert_eq!(code, 101, "{message}");
        assert!(message.contains(expected), "{expected}: {message}");
        node.call("DEL", &id, &pod).success();
        node.assert_clean();
    }
}

#[test]
fn check_allows_what_later_plugins_of_a_chain_change() {
    let node = Node::new(&DUAL);
    let pod = Ns::new("pod");
    node.add("a", &pod);
    pod.ip("link set eth0 mtu 1400");
    pod.ip("addr add 198.51.100.7/32 dev eth0");
    pod.ip("route add 198.51.100.0/24 via 169.254.1.1 dev eth0 onlink");
    node.call("CHECK", "a", &pod).success();
}

#[test]
fn check_compares_the_result_of_add() {
    let mut node = Node::new(&DUAL);
    let pod = Ns::new("pod");
    let result = node.call("ADD", "a", &pod).success();
    node.conf["prevResult"] = result.clone();
    node.call("CHECK", "a", &pod).success();
    node.conf["prevResult"]["ips"][0]["address"] = json!("10.9.9.9/32");
    node.conf["prevResult"]["interfaces"][1]["mac"] = json!("02:00:00:00:00:01");
    let (_, message, _) = node.call("CHECK", "a", &pod).failure();
    assert!(message.contains("prevResult lacks address 10.244.1.2"), "{message}");
    assert!(message.contains("prevResult has MAC 02:00:00:00:00:01"), "{message}");
    // DEL takes prevResult, right or wrong.
    node.call("DEL", "a", &pod).success();
    node.assert_clean();
}

/// C3: DEL succeeds and leaves nothing, whatever is missing.
#[test]
fn del_succeeds_whatever_is_missing() {
    let node = Node::new(&DUAL);
    let never = Ns::new("never");
    node.call("DEL", "never-added", &never).success();
    node.del_without_netns("never-added").success();

    let pod = Ns::new("pod");
    node.add("twice", &pod);
    node.call("DEL", "twice", &pod).success();
    node.call("DEL", "twice", &pod).success();
    node.assert_clean();

    // The namespace is gone, and with it the veth pair.
    let pod = Ns::new("pod");
    let path = pod.path();
    node.add("no-netns", &pod);
    drop(pod);
    finish(node.start("DEL", "no-netns", Some(&path), &node.conf)).success();
    node.assert_clean();

    // The runtime does not tell the namespace, which is still there.
    let pod = Ns::new("pod");
    node.add("netns-untold", &pod);
    node.del_without_netns("netns-untold").success();
    node.assert_clean();

    // ADD was cut short after the record, and after the interfaces but with the record lost.
    let pod = Ns::new("pod");
    node.add("half", &pod);
    pod.ip("link del eth0");
    node.del_without_netns("half").success();
    node.assert_clean();
    let given = node.add("no-record", &pod);
    fs::remove_file(node.record_path(given[0])).expect("remove");
    node.call("DEL", "no-record", &pod).success();
    node.assert_clean();

    // The record is damaged.
    let given = node.add("torn", &pod);
    fs::write(node.record_path(given[0]), "{\"vers").expect("write");
    node.call("DEL", "torn", &pod).success();
    node.assert_clean();

    // The node was rebooted: record and state are of an earlier boot, the interfaces are gone.
    let given = node.add("rebooted", &pod);
    pod.ip("link del eth0");
    as_of_earlier_boot(&node, given[0]);
    node.del_without_netns("rebooted").success();
    node.assert_clean();

    // The agent is away, and so is its node file.
    let mut node = node;
    node.conf["agentSocket"] = json!("/nonexistent/agent.sock");
    node.conf["podCIDRs"] = json!([]);
    node.conf["nodeFile"] = json!("/nonexistent/node.json");
    node.call("DEL", "twice", &pod).success();
}

/// Rewrites what is on disk as if it had been written before a reboot.
fn as_of_earlier_boot(node: &Node, address: IpAddr) {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").expect("boot id");
    for path in [node.record_path(address), node.dir.path().join("state/ipam.json")] {
        let text = fs::read_to_string(&path).expect("read");
        assert!(text.contains(boot.trim()));
        fs::write(&path, text.replace(boot.trim(), "an-earlier-boot")).expect("write");
    }
}

/// C7: after a reboot all addresses are free, but those given last before it rest.
#[test]
fn a_reboot_frees_all_addresses() {
    let node = Node::new(&["10.244.1.0/29"]);
    let pods: Vec<Ns> = (0..5).map(|_| Ns::new("pod")).collect();
    let given: Vec<IpAddr> =
        pods.iter().enumerate().map(|(i, p)| node.add(&format!("c{i}"), p)[0]).collect();
    let extra = Ns::new("pod");
    let (code, message, details) = node.call("ADD", "extra", &extra).failure();
    assert_eq!(code, 11);
    assert!(message.contains("5 of 5 in 10.244.1.0/29 are in use"), "{message}");
    assert!(!details.is_empty());
    assert_eq!(node.records().len(), 5);
    for (pod, address) in pods.iter().zip(given) {
        pod.ip("link del eth0");
        as_of_earlier_boot_record(&node, address);
    }
    assert_eq!(node.add("after", &extra)[0].to_string(), "10.244.1.2");
    assert_eq!(node.records().len(), 1);
}

fn as_of_earlier_boot_record(node: &Node, address: IpAddr) {
    let state = node.dir.path().join("state/ipam.json");
    let now = fs::read_to_string(&state).expect("read");
    if now.contains("an-earlier-boot") {
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").expect("boot id");
        fs::write(&state, now.replace("an-earlier-boot", boot.trim())).expect("write");
    }
    as_of_earlier_boot(node, address);
}

#[test]
fn a_second_add_is_refused_and_harms_nothing() {
    let node = Node::new(&DUAL);
    node.ns.ip("addr add 192.0.2.1/32 dev lo");
    let pod = Ns::new("pod");
    let given = node.add("a", &pod);
    let (code, message, _) = node.call("ADD", "a", &pod).failure();
    assert_eq!(code, 4);
    assert!(message.contains("CNI_IFNAME eth0 already exists"), "{message}");
    // Nor does another container's ADD into the same namespace.
    let (code, message, _) = node.call("ADD", "b", &pod).failure();
    assert_eq!(code, 4);
    assert!(message.contains("CNI_IFNAME eth0 already exists"), "{message}");
    assert_eq!(node.records().len(), 1);
    node.call("CHECK", "a", &pod).success();
    assert_reaches(&node.ns, &pod, given[0]);
}

/// C1: all commands, each version, and a result in the version asked for.
#[test]
fn every_version_is_answered_in_kind() {
    let mut node = Node::new(&DUAL);
    for version in ["0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        node.conf["cniVersion"] = json!(version);
        let pod = Ns::new("pod");
        let result = node.call("ADD", "a", &pod).success();
        assert_eq!(result["cniVersion"], version);
        assert_eq!(result["interfaces"][1]["sandbox"], pod.path().display().to_string());
        assert_eq!(result["ips"][0].get("version").is_some(), version < "1.0.0");
        assert_eq!(result["interfaces"][0].get("mtu").is_some(), version == "1.1.0");
        let check = node.call("CHECK", "a", &pod);
        if version == "0.3.1" {
            assert_eq!(check.failure().0, 1);
        } else {
            assert_eq!(check.success(), Value::Null);
        }
        node.conf["cni.dev/valid-attachments"] = json!([{"containerID": "a", "ifname": "eth0"}]);
        for command in ["STATUS", "GC"] {
            let outcome = node.call(command, "", &pod);
            if version == "1.1.0" {
                assert_eq!(outcome.success(), Value::Null);
            } else {
                assert_eq!(outcome.failure().0, 1, "{command} {version}");
            }
        }
        assert_eq!(node.records().len(), 1);
        assert_eq!(node.call("DEL", "a", &pod).success(), Value::Null);
        let answer = node.call("VERSION", "", &pod).success();
        assert_eq!(answer["cniVersion"], version);
        let supported = json!(["0.3.1", "0.4.0", "1.0.0", "1.1.0"]);
        assert_eq!(answer["supportedVersions"], supported);
    }
    node.assert_clean();
}

/// C2: every error is JSON on stdout with its code and names what is wrong; nothing is left.
#[test]
fn errors_are_json_with_the_specifications_codes() {
    let node = Node::new(&DUAL);
    let pod = Ns::new("pod");
    let netns = pod.path().display().to_string();
    let own = node.ns.path().display().to_string();
    let env: Vec<(&str, &str)> = vec![
        ("CNI_COMMAND", "ADD"),
        ("CNI_CONTAINERID", "a"),
        ("CNI_IFNAME", "eth0"),
        ("CNI_NETNS", &netns),
    ];
    let with = |name: &str, value: &str, conf: &str| {
        let mut env: Vec<(String, String)> =
            env.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        for pair in &mut env {
            if pair.0 == name {
                pair.1 = value.to_owned();
            }
        }
        let env: Vec<(&str, &str)> = env.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        node.raw(&env, conf.as_bytes()).failure()
    };
    let conf = node.conf.to_string();
    let without_name = conf.replace("\"name\":\"pods\"", "\"x\":1");
    let bad_version = conf.replace("1.1.0", "7.0.0");
    let bad_mtu = conf.replace("\"type\"", "\"mtu\":\"big\",\"type\"");
    let no_node_file = r#"{"cniVersion":"1.0.0","name":"p","nodeFile":"/nonexistent/n.json"}"#;
    let cases = [
        ("CNI_COMMAND", "FLY", conf.as_str(), 4, "CNI_COMMAND"),
        ("CNI_CONTAINERID", "", &conf, 4, "CNI_CONTAINERID"),
        ("CNI_IFNAME", "a/b", &conf, 4, "CNI_IFNAME"),
        ("CNI_NETNS", "", &conf, 4, "CNI_NETNS"),
        ("CNI_NETNS", "/nonexistent/netns", &conf, 3, "CNI_NETNS"),
        ("CNI_NETNS", "/etc/hostname", &conf, 4, "CNI_NETNS"),
        ("CNI_NETNS", &own, &conf, 4, "CNI_NETNS"),
        ("", "", "{", 6, "JSON"),
        ("", "", "", 6, "JSON"),
        ("", "", &without_name, 7, "name"),
        ("", "", &bad_version, 1, "7.0.0"),
        ("", "", &bad_mtu, 7, "mtu"),
        ("", "", no_node_file, 11, "/nonexistent/n.json"),
    ];
    for (name, value, conf, code, named) in cases {
        let (got, message, _) = with(name, value, conf);
        assert_eq!(got, code, "{name}={value}: {message}");
        assert!(message.contains(named), "{named}: {message}");
        node.assert_clean();
    }
}

/// C2: an exhausted pool and an absent agent show in STATUS before an ADD meets them.
#[test]
fn status_tells_of_exhaustion_and_of_an_absent_agent() {
    let mut node = Node::new(&["10.244.1.0/30"]);
    let pod = Ns::new("pod");
    node.call("STATUS", "", &pod).success();
    node.add("a", &pod);
    let (code, message, _) = node.call("STATUS", "", &pod).failure();
    assert_eq!(code, 50);
    assert!(message.contains("1 of 1 in 10.244.1.0/30"), "{message}");
    node.call("DEL", "a", &pod).success();
    node.conf["agentSocket"] = json!("/nonexistent/agent.sock");
    let (code, message, _) = node.call("STATUS", "", &pod).failure();
    assert_eq!(code, 50);
    assert!(message.contains("/nonexistent/agent.sock"), "{message}");
}

/// Answers every request of the plugin with `answer` and returns the requests' names.
fn serve(listener: UnixListener, answer: &str, requests: usize, seen: impl Fn()) -> Vec<String> {
    let mut asked = Vec::new();
    for _ in 0..requests {
        let (mut stream, _) = listener.accept().expect("accept");
        let mut line = String::new();
        BufReader::new(&stream).read_line(&mut line).expect("read");
        let request: Value = serde_json::from_str(&line).expect("JSON");
        asked.push(request["request"].as_str().expect("request").to_owned());
        seen();
        stream.write_all(answer.as_bytes()).expect("write");
    }
    asked
}

#[test]
fn add_waits_for_the_agent_which_finds_the_record_and_the_interface() {
    let mut node = Node::new(&DUAL);
    let socket = node.dir.path().join("agent.sock");
    let listener = UnixListener::bind(&socket).expect("bind");
    node.conf["agentSocket"] = json!(socket);
    let pod = Ns::new("pod");
    thread::scope(|scope| {
        let agent = scope.spawn(|| {
            serve(listener, "{\"version\":1,\"ok\":true}\n", 2, || {
                let record = node.records().pop().expect("a record");
                let path = node.dir.path().join("state/endpoints").join(record);
                let record: Value =
                    serde_json::from_slice(&fs::read(path).expect("read")).expect("JSON");
                assert_eq!(record["podName"], "web");
                assert_eq!(record["podNamespace"], "default");
                let host = record["hostInterface"].as_str().expect("name").to_owned();
                node.ns.ip(&format!("link show dev {host}"));
            })
        });
        node.add("a", &pod);
        node.call("DEL", "a", &pod).success();
        assert_eq!(agent.join().expect("agent"), ["endpoint-add", "endpoint-del"]);
    });
    node.assert_clean();
}

#[test]
fn an_agent_that_refuses_or_is_away_undoes_the_add() {
    let mut node = Node::new(&DUAL);
    let socket = node.dir.path().join("agent.sock");
    node.conf["agentSocket"] = json!(socket);
    let pod = Ns::new("pod");
    let (code, message, details) = node.call("ADD", "a", &pod).failure();
    assert_eq!(code, 11);
    assert!(message.contains("agent.sock"), "{message}");
    assert!(details.contains("sluiced"), "{details}");
    node.assert_clean();
    assert!(!pod.ip("-o link").contains("eth0"));

    let listener = UnixListener::bind(&socket).expect("bind");
    thread::scope(|scope| {
        let answer = "{\"version\":1,\"ok\":false,\"error\":\"map full\",\"hint\":\"enlarge\"}\n";
        let agent = scope.spawn(|| serve(listener, answer, 2, || ()));
        let (code, message, details) = node.call("ADD", "a", &pod).failure();
        assert_eq!((code, details.as_str()), (11, "enlarge"));
        assert!(message.contains("map full"), "{message}");
        assert_eq!(agent.join().expect("agent"), ["endpoint-add", "endpoint-del"]);
    });
    node.assert_clean();
    assert!(!pod.ip("-o link").contains("eth0"));
}

/// GC frees what is not listed, leaves other networks alone, and goes on after a failure.
#[test]
fn gc_frees_what_is_not_listed_and_goes_on_after_an_error() {
    let mut node = Node::new(&DUAL);
    let pods: Vec<Ns> = (0..4).map(|_| Ns::new("pod")).collect();
    let kept = node.add("kept", &pods[0])[0];
    node.add("gone", &pods[1]);
    let gone_netns = Ns::new("pod");
    node.add("gone-netns", &gone_netns);
    drop(gone_netns);
    let mut second = node.conf.clone();
    second["name"] = json!("second");
    let other = finish(node.start("ADD", "other", Some(&pods[2].path()), &second)).success();
    // A record that cannot be read at all: a directory.
    let bad = node.dir.path().join("state/endpoints/slu00000000000,10.244.1.99.json");
    fs::create_dir(&bad).expect("directory");

    node.conf["cni.dev/valid-attachments"] = json!([{"containerID": "kept", "ifname": "eth0"}]);
    let (code, message, _) = node.call("GC", "", &pods[0]).failure();
    assert_eq!(code, 102);
    assert!(message.contains("slu00000000000"), "{message}");
    fs::remove_dir(&bad).expect("remove");
    node.call("GC", "", &pods[0]).success();

    assert_eq!(node.records().len(), 2);
    node.record_path(kept);
    node.record_path(addresses(&other)[0]);
    assert!(!pods[1].ip("-o link").contains("eth0"));
    node.call("CHECK", "kept", &pods[0]).success();
}

/// C6: 200 ADDs at once, each a process of its own, never share an address or an interface.
#[test]
fn two_hundred_adds_at_once_never_share_an_address() {
    let node = Node::new(&DUAL);
    let pods: Vec<Ns> = (0..200).map(|_| Ns::new("pod")).collect();
    let running: Vec<_> = pods
        .iter()
        .enumerate()
        .map(|(i, pod)| node.start("ADD", &format!("c{i}"), Some(&pod.path()), &node.conf))
        .collect();
    let results: Vec<Value> = running.into_iter().map(|c| finish(c).success()).collect();
    let unique: BTreeSet<IpAddr> = results.iter().flat_map(addresses).collect();
    assert_eq!(unique.len(), 400);
    assert_eq!(node.records().len(), 200);
    let running: Vec<_> =
        (0..200).map(|i| node.start("DEL", &format!("c{i}"), None, &node.conf)).collect();
    for child in running {
        finish(child).success();
    }
    node.assert_clean();
}

/// C6: an ADD that is killed at whatever instruction leaves nothing that the next call does not
/// heal.
#[test]
fn a_killed_add_leaks_nothing() {
    // 13 addresses.
    let node = Node::new(&["10.244.1.0/28"]);
    let pod = Ns::new("pod");
    let started = Instant::now();
    node.add("warm", &pod);
    let whole = started.elapsed();
    node.call("DEL", "warm", &pod).success();
    let rounds = 40;
    for i in 0..rounds {
        let mut child = node.start("ADD", "a", Some(&pod.path()), &node.conf);
        // The instant is the point of the test: from the start to past the end of a usual ADD.
        let instant = Instant::now() + whole * i / rounds;
        thread::sleep(instant.saturating_duration_since(Instant::now()));
        child.kill().expect("kill");
        child.wait().expect("wait");
        if i % 2 == 0 || pod.ip("-o link").contains("eth0") {
            node.call("DEL", "a", &pod).success();
            node.assert_clean();
        }
        // Healed by DEL, or by this ADD of the same key.
        let given = node.add("a", &pod);
        assert_reaches_node(&node, &pod, given[0]);
        node.call("DEL", "a", &pod).success();
        node.assert_clean();
    }
    let pods: Vec<Ns> = (0..13).map(|_| Ns::new("pod")).collect();
    for (i, pod) in pods.iter().enumerate() {
        node.add(&format!("c{i}"), pod);
    }
}

fn assert_reaches_node(node: &Node, pod: &Ns, address: IpAddr) {
    if !node.ns.ip("addr show dev lo").contains("192.0.2.1") {
        node.ns.ip("addr add 192.0.2.1/32 dev lo");
    }
    assert_reaches(&node.ns, pod, address);
}

#[test]
fn pods_that_went_without_del_are_reclaimed_when_the_pool_is_full() {
    let node = Node::new(&["10.244.1.0/30"]);
    let pod = Ns::new("pod");
    let given = node.add("a", &pod);
    let record = node.record_path(given[0]);
    drop(pod);
    let gone = Instant::now() + Duration::from_secs(10);
    while node.ns.ip("-o link").contains("slu") {
        assert!(Instant::now() < gone, "the kernel did not remove the interface");
        thread::yield_now();
    }
    // Young enough to be an ADD under way.
    let pod = Ns::new("pod");
    assert_eq!(node.call("ADD", "b", &pod).failure().0, 11);
    let old = std::time::SystemTime::now() - Duration::from_secs(600);
    fs::File::options()
        .write(true)
        .open(record)
        .and_then(|f| f.set_modified(old))
        .expect("set time");
    assert_eq!(node.add("b", &pod), given);
}

#[test]
fn lost_records_do_not_give_an_address_twice() {
    let node = Node::new(&DUAL);
    let (a, b) = (Ns::new("a"), Ns::new("b"));
    let first = node.add("a", &a);
    fs::remove_dir_all(node.dir.path().join("state")).expect("remove");
    let second = node.add("b", &b);
    assert!(first.iter().all(|address| !second.contains(address)), "{first:?} {second:?}");
    for (to_a, to_b) in first.iter().zip(&second) {
        assert_reaches(&b, &a, *to_a);
        assert_reaches(&a, &b, *to_b);
    }
}

/// C8: ranges, several of a family, exclusions, the first address never given, both families,
/// requested addresses and MAC, MTU and resolvers in the result.
#[test]
fn a_pod_gets_the_addresses_the_mac_and_the_mtu_asked_for() {
    let mut node = Node::new(&["10.244.1.0/30", "10.244.9.0/29", "fd00:244:1::/64"]);
    node.conf["exclude"] = json!(["10.244.9.2", "10.244.9.4/31"]);
    node.conf["mtu"] = json!(1300);
    node.conf["dns"] = json!({"nameservers": ["10.96.0.10"], "search": ["cluster.local"]});
    let pods: Vec<Ns> = (0..4).map(|_| Ns::new("pod")).collect();
    assert_eq!(node.add("a", &pods[0])[0].to_string(), "10.244.1.2");
    assert_eq!(node.add("b", &pods[1])[0].to_string(), "10.244.9.3");
    node.conf["runtimeConfig"] = json!({"ips": ["fd00:244:1::77/64"], "mac": "02:00:5e:00:53:01"});
    let result = node.call("ADD", "c", &pods[2]).success();
    let given: Vec<String> = addresses(&result).iter().map(ToString::to_string).collect();
    assert_eq!(given, ["10.244.9.6", "fd00:244:1::77"]);
    assert_eq!(result["interfaces"][1]["mac"], "02:00:5e:00:53:01");
    assert_eq!(result["dns"], node.conf["dns"]);
    let shown = pods[2].ip("addr show dev eth0");
    assert!(shown.contains("link/ether 02:00:5e:00:53:01"), "{shown}");
    assert!(shown.contains("mtu 1300") && shown.contains("fd00:244:1::77/128"), "{shown}");
    assert_reaches(&pods[0], &pods[2], addresses(&result)[0]);
    // Three of three are given; the requested address is taken.
    let (code, message, _) = node.call("ADD", "d", &pods[3]).failure();
    assert_eq!(code, 11);
    assert!(message.contains("fd00:244:1::77 is in use"), "{message}");
    node.conf["runtimeConfig"] = json!({});
    let (_, message, _) = node.call("ADD", "d", &pods[3]).failure();
    assert!(message.contains("3 of 3 in 10.244.1.0/30, 10.244.9.0/29"), "{message}");
}

/// C10: what came before it in a chain.
#[test]
fn the_result_of_an_earlier_plugin_is_kept() {
    let mut node = Node::new(&DUAL);
    node.conf["prevResult"] = json!({
        "cniVersion": "1.1.0",
        "interfaces": [{"name": "net1", "sandbox": "/run/netns/x"}],
        "ips": [{"address": "192.0.2.7/24", "interface": 0}],
        "routes": [],
    });
    let pod = Ns::new("pod");
    let result = node.call("ADD", "a", &pod).success();
    assert_eq!(result["interfaces"][0]["name"], "net1");
    assert_eq!(result["ips"][1]["interface"], 2);
    assert_eq!(result["interfaces"][2]["name"], "eth0");
}

#[test]
fn without_a_command_it_says_what_it_is() {
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_sluice-cni"))
        .env_remove("CNI_COMMAND")
        .output()
        .expect("the plugin");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success());
    assert_eq!(text.lines().count(), 1);
    assert!(text.contains(env!("CARGO_PKG_VERSION")) && text.contains("1.1.0"), "{text}");
}

/// S37: the ports of the node stand in the record, where the agent reads them, and go with it.
#[test]
fn host_ports_stand_in_the_record_of_the_pod() {
    let mut node = Node::new(&DUAL);
    let pod = Ns::new("pod");
    let mappings = json!([
        {"hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": ""},
        {"hostPort": 5353, "containerPort": 53, "protocol": "UDP", "hostIP": "192.0.2.1"},
    ]);
    node.conf["runtimeConfig"] = json!({"portMappings": mappings});
    let given = node.add("a", &pod);
    let text = fs::read(node.record_path(given[0])).expect("the record");
    let record: Value = serde_json::from_slice(&text).expect("JSON");
    let expected = json!([
        {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
        {"hostPort": 5353, "containerPort": 53, "protocol": "udp", "hostIP": "192.0.2.1"},
    ]);
    assert_eq!(record["hostPorts"], expected);
    assert!(record["created"].as_u64().is_some_and(|seconds| seconds > 1_600_000_000), "{record}");
    node.call("CHECK", "a", &pod).success();
    node.call("DEL", "a", &pod).success();
    node.assert_clean();
}

/// S37, C3: an ADD that is refused for its port mappings leaves nothing, and the DEL that follows it
/// with the same configuration succeeds.
#[test]
fn nonsense_in_port_mappings_fails_add_and_not_del() {
    let mut node = Node::new(&DUAL);
    let pod = Ns::new("pod");
    let one = json!({"hostPort": 8080, "containerPort": 80});
    let cases = [
        (json!([{"hostPort": 0, "containerPort": 80}]), "portMappings[0].hostPort"),
        (json!([{"hostPort": 80, "containerPort": 80, "protocol": "x"}]), "[0].protocol"),
        (json!([one, one]), "portMappings[1]"),
    ];
    for (mappings, named) in cases {
        node.conf["runtimeConfig"] = json!({"portMappings": mappings});
        let (code, message, _) = node.call("ADD", "a", &pod).failure();
        assert_eq!(code, 7, "{message}");
        assert!(message.contains(named), "{named}: {message}");
        node.assert_clean();
        node.call("DEL", "a", &pod).success();
    }
}
