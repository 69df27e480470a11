//! The plugin in a chain with the reference plugins, as a runtime runs a list of them. Needs root and
//! Debian's containernetworking-plugins.

#[allow(dead_code, reason = "each of the tests uses its part")]
mod common;

use std::io::Write as _;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use common::{Node, Ns, Outcome, addresses, assert_reaches, finish};
use serde_json::{Value, json};

/// Where distributions put the reference plugins.
const DIRECTORIES: [&str; 3] = ["/usr/lib/cni", "/opt/cni/bin", "/usr/libexec/cni"];

fn plugin(kind: &str) -> PathBuf {
    if kind == "sluice-cni" {
        return env!("CARGO_BIN_EXE_sluice-cni").into();
    }
    let found = DIRECTORIES.iter().map(|dir| Path::new(dir).join(kind)).find(|path| path.is_file());
    found.unwrap_or_else(|| panic!("no plugin {kind}: apt-get install containernetworking-plugins"))
}

/// One attachment of one container, done by a list of plugins.
struct Chain<'a> {
    node: &'a Node,
    plugins: Vec<Value>,
    id: &'a str,
    pod: &'a Ns,
}

impl Chain<'_> {
    fn call(&self, command: &str, conf: &Value, prev: &Value) -> Outcome {
        let mut conf = conf.clone();
        conf["cniVersion"] = json!("1.0.0");
        conf["name"] = json!("pods");
        if !prev.is_null() {
            conf["prevResult"] = prev.clone();
        }
        let kind = conf["type"].as_str().expect("a type");
        let mut child = Command::new("nsenter")
            .arg(format!("--net={}", self.node.ns.path().display()))
            .arg(plugin(kind))
            .envs([("CNI_COMMAND", command), ("CNI_CONTAINERID", self.id), ("CNI_IFNAME", "eth0")])
            .env("CNI_NETNS", self.pod.path())
            .env("CNI_PATH", "/usr/lib/cni")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("nsenter");
        let mut stdin = child.stdin.take().expect("piped");
        stdin.write_all(conf.to_string().as_bytes()).expect("write");
        drop(stdin);
        finish(child)
    }

    /// Each with the result of the one before; the last result.
    fn add(&self) -> Value {
        let mut result = Value::Null;
        for conf in &self.plugins {
            result = self.call("ADD", conf, &result).success();
        }
        result
    }

    /// All with the result of ADD.
    fn check(&self, result: &Value) {
        for conf in &self.plugins {
            self.call("CHECK", conf, result).success();
        }
    }

    /// Backwards, all with the result of ADD.
    fn del(&self, result: &Value) {
        for conf in self.plugins.iter().rev() {
            self.call("DEL", conf, result).success();
        }
    }
}

fn ours(node: &Node) -> Value {
    let mut conf = node.conf.clone();
    // Its own name and version are the list's.
    let object = conf.as_object_mut().expect("an object");
    object.remove("cniVersion");
    object.remove("name");
    conf
}

/// C10: bandwidth and tuning come after it, find the pod and the node's end by its result, and what
/// they change is not taken for damage.
#[test]
fn bandwidth_and_tuning_work_after_it() {
    let node = Node::new(&["10.244.1.0/24", "fd00:244:1::/64"]);
    node.ns.ip("addr add 192.0.2.1/32 dev lo");
    let pod = Ns::new("pod");
    let plugins = vec![
        ours(&node),
        json!({"type": "tuning", "sysctl": {"net.core.somaxconn": "577"}, "mtu": 1400}),
        json!({"type": "bandwidth", "ingressRate": 8_000_000, "ingressBurst": 8_000_000,
               "egressRate": 8_000_000, "egressBurst": 8_000_000}),
    ];
    let chain = Chain { node: &node, plugins, id: "a", pod: &pod };
    let result = chain.add();
    let given: Vec<IpAddr> = addresses(&result);
    assert_eq!(given.len(), 2, "{result}");
    assert_eq!(pod.sysctl("core/somaxconn"), "577");
    assert!(pod.ip("link show dev eth0").contains("mtu 1400"));
    // The node's end is limited towards the pod, and a device of bandwidth's own from it.
    let tc = Command::new("tc").args(["-n", &node.ns.name, "qdisc"]).output().expect("tc");
    let tc = String::from_utf8_lossy(&tc.stdout).into_owned();
    let host = result["interfaces"][0]["name"].as_str().expect("the node's end");
    let limited = |device: &str| {
        tc.lines().any(|line| line.contains("qdisc tbf") && line.contains(&format!("dev {device}")))
    };
    assert!(limited(host), "{tc}");
    assert!(limited("bwp"), "{tc}");
    assert_reaches(&node.ns, &pod, given[0]);
    assert_reaches(&pod, &node.ns, "192.0.2.1".parse().expect("address"));
    chain.check(&result);
    chain.del(&result);
    node.assert_clean();
    assert!(!node.ns.ip("-o link").contains("bwp"), "a device of bandwidth's is left");
    // A second DEL, as runtimes send it.
    chain.del(&result);
}

/// C10, S37: the reference plugin for ports after it, in a cluster that has no agent to serve them.
#[test]
fn portmap_works_after_it_where_there_is_no_agent() {
    let node = Node::new(&["10.244.1.0/24"]);
    node.ns.ip("addr add 192.0.2.1/32 dev lo");
    let (pod, client) = (Ns::new("pod"), Ns::new("client"));
    node.add("client", &client);
    let ports = json!([{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]);
    let plugins = vec![
        ours(&node),
        json!({"type": "portmap", "snat": true, "runtimeConfig": {"portMappings": ports}}),
    ];
    let chain = Chain { node: &node, plugins, id: "a", pod: &pod };
    let result = chain.add();
    let rules = Command::new("nsenter")
        .arg(format!("--net={}", node.ns.path().display()))
        .args(["iptables", "-t", "nat", "-S"])
        .output()
        .expect("iptables");
    let rules = String::from_utf8_lossy(&rules.stdout).into_owned();
    let to = format!("--to-destination {}:80", addresses(&result)[0]);
    assert!(rules.contains(&to), "{rules}");
    chain.del(&result);
    node.call("DEL", "client", &client).success();
    node.assert_clean();
}
