//! Nodes in two subnets, with a router between them that lets no pod's address pass.

use std::fs;
use std::net::{IpAddr, SocketAddr};

use anyhow::ensure;
use sluice_tests::Result;
use sluice_tests::cluster::{WorkDir, node_manifest};
use sluice_tests::manifests::namespace;
use sluice_tests::netns::NetNs;
use sluice_tests::node::{Node, NodeSpec};
use sluice_tests::process::Process;
use sluice_tests::wait::wait_ok;

use crate::LIMIT;

/// Subnets with a router between them, and nodes in them.
pub(crate) struct World {
    pub(crate) nodes: Vec<Node>,
    pub(crate) router: NetNs,
    pub(crate) dir: WorkDir,
}

/// What a node is to be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Member {
    pub(crate) name: String,
    /// Which of the two.
    pub(crate) subnet: u8,
    /// Last part of its addresses.
    pub(crate) host: u8,
    /// Part of its pod CIDRs.
    pub(crate) pods: u8,
    /// Whether its first address is of IPv6.
    pub(crate) six_first: bool,
    /// Whether there is a Node object.
    pub(crate) known: bool,
}

impl Member {
    pub(crate) fn new(index: u8, subnet: u8) -> Self {
        let letter = char::from(b'a' + index);
        let name = format!("node-{letter}");
        Self { name, subnet, host: 11 + index, pods: 1 + index, six_first: false, known: true }
    }

    pub(crate) fn addresses(&self) -> [String; 2] {
        let Self { subnet, host, .. } = self;
        [format!("172.31.{subnet}.{host}"), format!("fd00:172:31:{subnet}::{host}")]
    }

    pub(crate) fn spec(&self) -> NodeSpec {
        let [v4, v6] = self.addresses();
        let mut addresses = vec![format!("{v4}/24"), format!("{v6}/64")];
        if self.six_first {
            addresses.reverse();
        }
        let pods = self.pods;
        let pod_cidrs = vec![format!("10.244.{pods}.0/24"), format!("fd00:244:{pods}::/64")];
        NodeSpec { name: self.name.clone(), addresses, pod_cidrs }
    }

    /// The Node object as the agent's model has it.
    pub(crate) fn object(&self) -> sluice_model::Node {
        let spec = self.spec();
        let bare = |text: &String| text.split('/').next().unwrap_or_default().parse().unwrap();
        let mut node = sluice_model::Node::default();
        node.meta.name = sluice_model::ObjectName::new("", &self.name);
        node.pod_cidrs = spec.pod_cidrs.iter().map(|cidr| cidr.parse().unwrap()).collect();
        let internal = |text: &String| sluice_model::NodeAddress {
            kind: sluice_model::NodeAddressKind::Internal,
            addr: bare(text),
        };
        node.addrs = spec.addresses.iter().map(internal).collect();
        node
    }

    pub(crate) fn addrs(&self) -> Vec<IpAddr> {
        self.object().addrs.iter().map(|address| address.addr).collect()
    }
}

/// One `ip` command, which may begin with a family.
pub(crate) fn ip(netns: &NetNs, command: &str) -> Result<()> {
    netns.ip_output(&command.split_whitespace().collect::<Vec<_>>()).map(drop)
}

pub(crate) fn subnet_of(address: &IpAddr) -> u8 {
    match address {
        IpAddr::V4(ip) => ip.octets()[2],
        IpAddr::V6(ip) => u8::try_from(ip.segments()[3]).unwrap(),
    }
}

impl World {
    pub(crate) fn new(members: &[Member]) -> Result<Self> {
        let router = NetNs::new("router")?;
        let dir = WorkDir::new("routes")?;
        for subnet in 0..2 {
            router.bridge(&format!("lan{subnet}"))?;
            router.ip(&format!(
                "addr add 172.31.{subnet}.1/24 dev lan{subnet}\n\
                 addr add fd00:172:31:{subnet}::1/64 dev lan{subnet} nodad"
            ))?;
        }
        router.sysctls(&[("ipv4/ip_forward", "1"), ("ipv6/conf/all/forwarding", "1")])?;
        // As a cloud does with addresses that it did not give away itself.
        for rule in ["from 10.244.0.0/16", "to 10.244.0.0/16"] {
            ip(&router, &format!("rule add {rule} blackhole"))?;
        }
        for rule in ["from fd00:244::/32", "to fd00:244::/32"] {
            ip(&router, &format!("-6 rule add {rule} blackhole"))?;
        }
        let mut this = Self { nodes: Vec::new(), router, dir };
        fs::create_dir(this.manifests())?;
        this.apply("namespace-shop", &namespace("shop"))?;
        for (index, member) in members.iter().enumerate() {
            let bridge = format!("lan{}", member.subnet);
            let port = format!("port-{index}");
            let node = Node::new(member.spec(), &this.router, &bridge, &port, this.dir.path())?;
            this.nodes.push(node);
            this.place(index, member)?;
        }
        Ok(this)
    }

    pub(crate) fn manifests(&self) -> std::path::PathBuf {
        self.dir.path().join("manifests")
    }

    pub(crate) fn source(&self) -> String {
        format!("dir:{}", self.manifests().display())
    }

    pub(crate) fn apply(&self, name: &str, yaml: &str) -> Result<()> {
        let temporary = self.dir.path().join(format!(".{name}.yaml"));
        fs::write(&temporary, yaml)?;
        Ok(fs::rename(&temporary, self.manifests().join(format!("{name}.yaml")))?)
    }

    /// Gives a node its addresses and a way to the router, and writes its object or removes it.
    pub(crate) fn place(&self, index: usize, member: &Member) -> Result<()> {
        let netns = self.nodes[index].netns();
        let subnet = member.subnet;
        let [v4, v6] = member.addresses();
        let held = netns.ip_output(&["addr", "show", "dev", "eth0"])?;
        if !(held.contains(&format!("{v4}/24")) && held.contains(&format!("{v6}/64")))
            || netns.ip_output(&["route", "show", "default"])?.is_empty()
        {
            self.router.ip(&format!("link set port-{index} master lan{subnet}"))?;
            for command in [
                "-4 addr flush dev eth0",
                "-6 addr flush dev eth0 scope global",
                &format!("addr add {v4}/24 dev eth0"),
                &format!("addr add {v6}/64 dev eth0 nodad"),
                &format!("route replace default via 172.31.{subnet}.1"),
                &format!("-6 route replace default via fd00:172:31:{subnet}::1"),
            ] {
                ip(netns, command)?;
            }
        }
        let path = self.manifests().join(format!("{}.yaml", member.name));
        if member.known {
            self.apply(&member.name, &node_manifest(&member.spec()))
        } else if path.exists() {
            Ok(fs::remove_file(path)?)
        } else {
            Ok(())
        }
    }

    pub(crate) fn start(&mut self, index: usize, args: &[&str]) -> Result<()> {
        let source = self.source();
        self.nodes[index].start_agent_with(&source, args)
    }

    /// A pod on each node, and each reaches each, in both families, with its own address.
    pub(crate) fn pods_reach_each_other(&self, round: &str) -> Result<()> {
        let mut pods = Vec::new();
        let mut servers: Vec<Process> = Vec::new();
        for node in &self.nodes {
            let pod = node.add_pod("shop", &format!("{}-{round}", node.name()))?;
            servers.push(pod.serve(8080)?);
            pods.push(pod);
        }
        for from in &pods {
            for to in &pods {
                for address in to.addresses() {
                    let target = SocketAddr::new(*address, 8080);
                    let what = format!("{} to {} at {target}", from.name(), to.name());
                    let answer = wait_ok(&what, LIMIT, || from.get(&target.to_string()))?;
                    let peer: SocketAddr = answer.peer.parse()?;
                    ensure!(answer.pod == to.name(), "{what}: {answer:?}");
                    ensure!(
                        from.addresses().contains(&peer.ip().to_canonical()),
                        "{what}: {answer:?}"
                    );
                }
            }
        }
        drop(servers);
        for (node, pod) in self.nodes.iter().zip(pods) {
            node.del_pod(pod)?;
        }
        Ok(())
    }
}
