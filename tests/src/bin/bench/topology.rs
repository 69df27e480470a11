//! Nodes to measure on: two pods each, wired alike, whatever carries the packets between them.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use sluice_tests::cgroup::Cgroup;
use sluice_tests::cluster::{Cluster, WorkDir};
use sluice_tests::netns::NetNs;
use sluice_tests::pod::Pod;
use sluice_tests::process::{Launch, Process};
use sluice_tests::{bin, wait_for};

use crate::rules::{self, Family, Service};

/// The port that the service leads to.
pub(crate) const PORT: u16 = 8080;
/// The port for clients that take the pod's own address. With one port for both, the answers of a connection through
/// the service and of one without would look alike, and connection tracking would search for another client port.
pub(crate) const POD_PORT: u16 = 8081;
/// The addresses of a node, with or without Sluice.
const NODE_V4: Ipv4Addr = Ipv4Addr::new(172, 31, 0, 11);
const NODE_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x172, 0x31, 0, 0, 0, 0, 0x11);
/// What a pod's default routes go through, as Sluice's plugin has it.
const GATEWAYS: [&str; 2] = ["169.254.1.1", "fe80::1"];

/// The node's address.
pub(crate) fn node_address(family: Family) -> IpAddr {
    match family {
        Family::V4 => NODE_V4.into(),
        Family::V6 => NODE_V6.into(),
    }
}

/// Where a client runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum From {
    /// In a pod beside the server's.
    Pod,
    /// In the node's own namespace.
    Host,
    /// On the network outside the node.
    Outside,
    /// In the server's own pod.
    Server,
}

/// A node with a server that runs, and clients' places.
pub(crate) enum Node {
    /// Plain forwarding, with or without rules.
    Plain(Box<Plain>),
    /// The real agent and plugin.
    Sluice(Box<Sluice>),
}

impl Node {
    /// A command in the place of a client.
    pub(crate) fn client(&self, from: From, program: &Path) -> Launch {
        match self {
            Self::Plain(it) => match from {
                From::Pod => it.launch(&it.client, program),
                From::Host => it.launch(&it.node, program),
                From::Outside => it.launch(&it.lan, program),
                From::Server => it.launch(&it.server, program),
            },
            Self::Sluice(it) => match from {
                From::Pod => it.client.launch(program),
                From::Host => it.cluster.node(0).launch(program),
                From::Outside => it.cluster.lan().launch(program),
                From::Server => it.server.launch(program),
            },
        }
    }

    /// The server pod's address.
    pub(crate) fn server_address(&self, family: Family) -> IpAddr {
        match (self, family) {
            (Self::Plain(_), _) => plain_server(family),
            (Self::Sluice(it), Family::V4) => it.addresses.0.into(),
            (Self::Sluice(it), Family::V6) => it.addresses.1.into(),
        }
    }
}

/// Two pods' namespaces, a node's that forwards between them, and the network outside.
pub(crate) struct Plain {
    // Dropped in this order: the servers end before their namespace goes.
    _servers: Vec<Process>,
    cgroup: Cgroup,
    client: NetNs,
    server: NetNs,
    node: NetNs,
    lan: NetNs,
}

/// The client pod's address on a node without Sluice.
pub(crate) fn plain_client(family: Family) -> IpAddr {
    plain_pod(family, 2)
}

/// The server pod's address on a node without Sluice.
pub(crate) fn plain_server(family: Family) -> IpAddr {
    plain_pod(family, 3)
}

fn plain_pod(family: Family, number: u8) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::new(10, 244, 1, number).into(),
        Family::V6 => Ipv6Addr::new(0xfd00, 0x244, 1, 0, 0, 0, 0, number.into()).into(),
    }
}

/// How rules are loaded: with the services of each family.
pub(crate) enum Rules {
    None,
    Iptables([Vec<Service>; 2]),
    Nftables([Vec<Service>; 2]),
    /// The same, and a table of network policies.
    Policed([Vec<Service>; 2], String),
}

impl Plain {
    pub(crate) fn new(label: &str, rules: &Rules, dir: &WorkDir, cpu: usize) -> Result<Self> {
        let node = NetNs::new(&format!("{label}-node"))?;
        let lan = NetNs::new(&format!("{label}-lan"))?;
        let (client, server) =
            (NetNs::new(&format!("{label}-cli"))?, NetNs::new(&format!("{label}-srv"))?);
        // The network outside is a bridge, as it is for a node with Sluice.
        lan.bridge("lan0")?;
        node.veth("eth0", &lan, "port-a")?;
        lan.ip("link set port-a master lan0\naddr add 172.31.0.1/24 dev lan0\n\
             addr add fd00:172:31::1/64 dev lan0 nodad")?;
        // The default route is what a process of the node looks a cluster IP up by, before a rule translates it.
        node.ip(&format!(
            "addr add {NODE_V4}/24 dev eth0\naddr add {NODE_V6}/64 dev eth0 nodad\n\
             route add 0.0.0.0/0 via 172.31.0.1 dev eth0\nroute add ::/0 via fd00:172:31::1 dev eth0"
        ))?;
        forward(&node, "eth0")?;
        for (pod, port, number) in [(&client, "cali0", 2), (&server, "cali1", 3)] {
            wire(&node, port, pod, Family::ALL.map(|family| plain_pod(family, number)))?;
        }
        let mut inputs = Vec::new();
        match rules {
            Rules::None => {}
            Rules::Iptables(services) => {
                for (family, services) in Family::ALL.into_iter().zip(services) {
                    let program = match family {
                        Family::V4 => "iptables-restore",
                        Family::V6 => "ip6tables-restore",
                    };
                    inputs.push((node.launch(program), rules::iptables(family, services)));
                }
            }
            Rules::Nftables(services) | Rules::Policed(services, _) => {
                for (family, services) in Family::ALL.into_iter().zip(services) {
                    let load = node.launch("nft").arg("-f");
                    let all = rules::nftables(family, services, node_address(family));
                    inputs.extend(all.into_iter().map(|input| (load.clone(), input)));
                }
            }
        }
        if let Rules::Policed(_, table) = rules {
            inputs.push((node.launch("nft").arg("-f"), table.clone()));
        }
        let file = dir.path().join(format!("{label}.rules"));
        for (loader, input) in inputs {
            fs::write(&file, input).with_context(|| file.display().to_string())?;
            loader.arg(&file).run()?;
        }
        for netns in [&client, &node, &lan] {
            tune(netns)?;
        }
        route_to_pods(&lan)?;
        let cgroup = Cgroup::new(label)?;
        let launch = Launch::new(bin("perf")?).netns(&server).cgroup(&cgroup);
        let servers = start_servers(&launch, label, dir, cpu)?;
        Ok(Self { _servers: servers, cgroup, client, server, node, lan })
    }

    fn launch(&self, netns: &NetNs, program: &Path) -> Launch {
        Launch::new(program).netns(netns).cgroup(&self.cgroup)
    }
}

/// A pod as Sluice's plugin wires it: one address a family, a gateway that the pod takes on trust, a host route.
pub(crate) fn wire(node: &NetNs, port: &str, pod: &NetNs, addresses: [IpAddr; 2]) -> Result<()> {
    node.veth(port, pod, "eth0")?;
    let mac = |netns: &NetNs, name: &str| -> Result<String> {
        let text = netns.ip_output(&["-o", "link", "show", "dev", name])?;
        let mac = text.split("link/ether ").nth(1).and_then(|rest| rest.split(' ').next());
        Ok(mac.context("MAC address of a veth")?.to_owned())
    };
    let (host_mac, pod_mac) = (mac(node, port)?, mac(pod, "eth0")?);
    for (address, gateway) in addresses.into_iter().zip(GATEWAYS) {
        let (bits, nodad) = if address.is_ipv4() { (32, "") } else { (128, " nodad") };
        let on_link = if address.is_ipv4() {
            format!("route add {gateway} dev eth0 scope link\n")
        } else {
            String::new()
        };
        let any = if address.is_ipv4() { "0.0.0.0/0" } else { "::/0" };
        pod.ip(&format!(
            "addr add {address}/{bits} dev eth0{nodad}\n{on_link}\
             neigh replace {gateway} lladdr {host_mac} dev eth0 nud permanent\n\
             route add {any} via {gateway} dev eth0"
        ))?;
        node.ip(&format!(
            "route add {address}/{bits} dev {port}\n\
             neigh replace {address} lladdr {pod_mac} dev {port} nud permanent"
        ))?;
    }
    Ok(())
}

/// Makes a node forward, and send no redirects out of its interface: a packet that leaves by the interface it came in by
/// is meant to.
pub(crate) fn forward(node: &NetNs, interface: &str) -> Result<()> {
    node.sysctls(&[
        ("ipv4/ip_forward", "1"),
        ("ipv6/conf/all/forwarding", "1"),
        ("ipv4/conf/all/send_redirects", "0"),
        ("ipv4/conf/default/send_redirects", "0"),
        (&format!("ipv4/conf/{interface}/send_redirects"), "0"),
    ])
}

/// Clients outside reach pods through the node, to measure without a service.
fn route_to_pods(lan: &NetNs) -> Result<()> {
    lan.ip(&format!(
        "route replace 10.244.1.0/24 via {NODE_V4} dev lan0\n\
         route replace fd00:244:1::/64 via {NODE_V6} dev lan0"
    ))
}

/// Settings of the client's namespace, the same for every variant: enough ports that none is waited for.
pub(crate) fn tune(client: &NetNs) -> Result<()> {
    client.sysctls(&[("ipv4/ip_local_port_range", "1024 65535")])
}

pub(crate) fn start_servers(
    launch: &Launch,
    label: &str,
    dir: &WorkDir,
    cpu: usize,
) -> Result<Vec<Process>> {
    let start = |listen: String, udp: bool| -> Result<Process> {
        let mut launch = launch.clone().args(["server", &listen]);
        if udp {
            launch = launch.arg("--udp");
        }
        let log = dir.path().join(format!("{label}-{listen}-{udp}.log"));
        let mut process = launch.cpu(cpu).urgent().spawn(&log)?;
        process.wait_for_log("listening", Duration::from_secs(10))?;
        Ok(process)
    };
    let mut servers = Vec::new();
    for address in ["0.0.0.0", "[::]"] {
        servers.push(start(format!("{address}:{POD_PORT}"), false)?);
        for udp in [false, true] {
            servers.push(start(format!("{address}:{PORT}"), udp)?);
        }
    }
    Ok(servers)
}

/// A node with the real agent, its manifests, and pods by the real plugin.
pub(crate) struct Sluice {
    _servers: Vec<Process>,
    client: Pod,
    server: Pod,
    addresses: (Ipv4Addr, Ipv6Addr),
    cluster: Cluster,
}

impl Sluice {
    pub(crate) fn new(count: usize, node_ports: bool, dir: &WorkDir, cpu: usize) -> Result<Self> {
        let label = format!("sluice-{count}");
        let mut cluster = Cluster::new(1)?;
        let source = cluster.source();
        // The pods come first, because the manifests name the server's address.
        // A service with a node port has eight frontends: more services have one than the default range has ports.
        let room = ["--map-size-frontends", "131072"];
        cluster.node_mut(0).start_agent_with(&source, &room)?;
        let server = cluster.node(0).add_pod("default", "server")?;
        let client = cluster.node(0).add_pod("default", "client")?;
        let addresses = (server.ipv4()?, server.ipv6()?);
        let [v4, v6] = [(Family::V4, IpAddr::from(addresses.0)), (Family::V6, addresses.1.into())]
            .map(|(family, address)| rules::services(family, count, (address, PORT), node_ports));
        let both: Vec<_> = v4.iter().zip(&v6).filter(|(it, _)| it.protocol == "tcp").collect();
        for (number, chunk) in both.chunks(500).enumerate() {
            let yaml: Vec<String> = chunk.iter().map(|(v4, v6)| manifest(v4, v6)).collect();
            cluster.apply(&format!("services-{number}"), &yaml.concat())?;
        }
        for netns in [client.netns(), cluster.node(0).netns(), cluster.lan()] {
            tune(netns)?;
        }
        route_to_pods(cluster.lan())?;
        let servers = start_servers(&server.launch(bin("perf")?), &label, dir, cpu)?;
        let mut seen = 0;
        let programmed =
            wait_for(&format!("{count} services in the kernel"), Duration::from_secs(120), || {
                let list = cluster.node(0).proxyctl(&["service", "list"]).unwrap_or_default();
                let own = |line: &&str| line.contains("10.96.") || line.contains("[fd00:96::");
                seen = list.lines().filter(own).count();
                (seen >= 2 * count).then_some(())
            });
        if let Err(error) = programmed {
            bail!("{error:#}; proxyctl lists {seen}");
        }
        Ok(Self { _servers: servers, client, server, addresses, cluster })
    }

    /// The cluster of this node.
    pub(crate) fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// The client's pod and the server's.
    pub(crate) fn pods(&self) -> (&Pod, &Pod) {
        (&self.client, &self.server)
    }
}

/// A Service and its EndpointSlices. The measured one has a port for UDP, too.
fn manifest(v4: &Service, v6: &Service) -> String {
    let Service { name, address, port, endpoints, node_port, .. } = v4;
    let target = endpoints.first().map_or(PORT, |(_, port)| *port);
    let protocols: &[&str] = if name == "target" { &["TCP", "UDP"] } else { &["TCP"] };
    let list = |line: &dyn Fn(&str) -> String| -> String {
        let lines: Vec<String> = protocols.iter().map(|protocol| line(protocol)).collect();
        format!("[{}]", lines.join(", "))
    };
    let node_port = node_port.map_or_else(String::new, |number| format!(", nodePort: {number}"));
    let ports = list(&|protocol| {
        format!(
            "{{name: p-{}, protocol: {protocol}, port: {port}, targetPort: {target}{node_port}}}",
            protocol.to_lowercase()
        )
    });
    let kind = if node_port.is_empty() { "ClusterIP" } else { "NodePort" };
    let mut yaml = format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: default}}\nspec:\n  type: {kind}\n  \
         clusterIP: {address}\n  clusterIPs: [\"{address}\", \"{}\"]\n  ports: {ports}\n---\n",
        v6.address
    );
    let served = list(&|protocol| {
        format!("{{name: p-{}, protocol: {protocol}, port: {target}}}", protocol.to_lowercase())
    });
    for (family, service) in [("IPv4", v4), ("IPv6", v6)] {
        let addresses: String = service
            .endpoints
            .iter()
            .map(|(address, _)| {
                format!(
                    "- addresses: [\"{address}\"]\n  nodeName: node-a\n  conditions: {{ready: true}}\n"
                )
            })
            .collect();
        yaml += &format!(
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: {name}-{}, namespace: default, \
             labels: {{kubernetes.io/service-name: {name}}}}}\naddressType: {family}\nports: {served}\n\
             endpoints:\n{addresses}---\n",
            family.to_lowercase()
        );
    }
    yaml
}

/// Where a client of a service connects to.
pub(crate) fn service_target(family: Family, count: usize) -> SocketAddr {
    (rules::measured_address(family, count), 80).into()
}

/// Where a client outside connects to.
pub(crate) fn node_port_target(family: Family, count: usize) -> SocketAddr {
    (node_address(family), rules::node_port(count)).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn manifests_of_the_services_are_yaml() {
        let [v4, v6] = Family::ALL
            .map(|family| rules::services(family, 3, (plain_server(family), PORT), true));
        let text = manifest(&v4[1], &v6[1]);
        let documents: Vec<serde_json::Value> = text
            .split("---\n")
            .filter(|text| !text.is_empty())
            .map(|text| serde_norway::from_str(text).unwrap())
            .collect();
        assert_eq!(documents[0]["metadata"]["name"], "target");
        assert_eq!(documents[0]["spec"]["clusterIPs"][1], "fd00:96::11");
        assert_eq!(documents[0]["spec"]["ports"][1]["protocol"], "UDP");
        assert_eq!(documents[0]["spec"]["ports"][1]["nodePort"], 20_001);
        assert_eq!(documents[1]["endpoints"][0]["addresses"][0], "10.244.1.3");
        assert_eq!(documents[2]["endpoints"][0]["addresses"][0], "fd00:244:1::3");
    }
}
