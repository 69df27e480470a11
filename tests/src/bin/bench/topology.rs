//! Nodes to measure on: two pods each, wired alike, whatever carries the packets between them.

use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use sluice_tests::cgroup::Cgroup;
use sluice_tests::cluster::{Cluster, WorkDir};
use sluice_tests::netns::NetNs;
use sluice_tests::pod::Pod;
use sluice_tests::process::{Launch, Process};
use sluice_tests::{bin, wait_for};

use crate::rules::{self, Service};

/// The port that the service leads to.
pub(crate) const PORT: u16 = 8080;
/// The port for clients that take the pod's own address. With one port for both, the answers of a connection through
/// the service and of one without would look alike, and connection tracking would search for another client port.
pub(crate) const POD_PORT: u16 = 8081;
/// The address of a node without Sluice.
const NODE: Ipv4Addr = Ipv4Addr::new(172, 31, 0, 11);
/// What a pod's default route goes through, as Sluice's plugin has it.
const GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);

/// A node with a client and a server that runs.
pub(crate) enum Node {
    /// Plain forwarding, with or without rules.
    Plain(Box<Plain>),
    /// The real agent and plugin.
    Sluice(Box<Sluice>),
}

impl Node {
    /// A command in the client's pod.
    pub(crate) fn client(&self, program: &Path) -> Launch {
        match self {
            Self::Plain(it) => it.launch(&it.client, program),
            Self::Sluice(it) => it.client.launch(program),
        }
    }

    /// A command in the server's pod.
    pub(crate) fn server(&self, program: &Path) -> Launch {
        match self {
            Self::Plain(it) => it.launch(&it.server, program),
            Self::Sluice(it) => it.server.launch(program),
        }
    }

    /// The server pod's address.
    pub(crate) fn server_address(&self) -> Ipv4Addr {
        match self {
            Self::Plain(_) => PLAIN_SERVER,
            Self::Sluice(it) => it.server_address,
        }
    }
}

/// Two pods' namespaces, and a node's that forwards between them.
pub(crate) struct Plain {
    // Dropped in this order: the server ends before its namespace goes.
    _servers: [Process; 2],
    cgroup: Cgroup,
    client: NetNs,
    server: NetNs,
    _node: NetNs,
}

const PLAIN_CLIENT: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 2);
/// The server pod's address on a node without Sluice.
pub(crate) const PLAIN_SERVER: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 3);

/// How rules are loaded.
pub(crate) enum Rules {
    None,
    Iptables(Vec<Service>),
    Nftables(Vec<Service>),
}

impl Plain {
    pub(crate) fn new(label: &str, rules: &Rules, dir: &WorkDir, cpu: usize) -> Result<Self> {
        let node = NetNs::new(&format!("{label}-node"))?;
        let (client, server) =
            (NetNs::new(&format!("{label}-cli"))?, NetNs::new(&format!("{label}-srv"))?);
        node.sysctls(&[
            ("ipv4/ip_forward", "1"),
            ("ipv4/conf/all/send_redirects", "0"),
            ("ipv4/conf/default/send_redirects", "0"),
        ])?;
        node.ip(&format!("addr add {NODE}/24 dev lo"))?;
        for (pod, port, address) in
            [(&client, "cali0", PLAIN_CLIENT), (&server, "cali1", PLAIN_SERVER)]
        {
            wire(&node, port, pod, address)?;
        }
        let (loader, inputs) = match rules {
            Rules::None => (Launch::new("true"), Vec::new()),
            Rules::Iptables(services) => {
                (node.launch("iptables-restore"), vec![rules::iptables(services)])
            }
            Rules::Nftables(services) => {
                (node.launch("nft").arg("-f"), rules::nftables(services, NODE))
            }
        };
        let file = dir.path().join(format!("{label}.rules"));
        for input in inputs {
            fs::write(&file, input).with_context(|| file.display().to_string())?;
            loader.clone().arg(&file).run()?;
        }
        tune(&client)?;
        let cgroup = Cgroup::new(label)?;
        let launch = Launch::new(bin("perf")?).netns(&server).cgroup(&cgroup);
        let servers = start_servers(&launch, label, dir, cpu)?;
        Ok(Self { _servers: servers, cgroup, client, server, _node: node })
    }

    fn launch(&self, netns: &NetNs, program: &Path) -> Launch {
        Launch::new(program).netns(netns).cgroup(&self.cgroup)
    }
}

/// A pod as Sluice's plugin wires it: a /32, a gateway that the pod takes on trust, a host route.
fn wire(node: &NetNs, port: &str, pod: &NetNs, address: Ipv4Addr) -> Result<()> {
    node.veth(port, pod, "eth0")?;
    let mac = |netns: &NetNs, name: &str| -> Result<String> {
        let text = netns.ip_output(&["-o", "link", "show", "dev", name])?;
        let mac = text.split("link/ether ").nth(1).and_then(|rest| rest.split(' ').next());
        Ok(mac.context("MAC address of a veth")?.to_owned())
    };
    let (host_mac, pod_mac) = (mac(node, port)?, mac(pod, "eth0")?);
    pod.ip(&format!(
        "addr add {address}/32 dev eth0\nroute add {GATEWAY} dev eth0 scope link\n\
         route add default via {GATEWAY} dev eth0\n\
         neigh replace {GATEWAY} lladdr {host_mac} dev eth0 nud permanent"
    ))?;
    node.ip(&format!(
        "route add {address}/32 dev {port} scope link\n\
         neigh replace {address} lladdr {pod_mac} dev {port} nud permanent"
    ))
}

/// Settings of the client's namespace, the same for every variant: enough ports that none is waited for.
fn tune(client: &NetNs) -> Result<()> {
    client.sysctls(&[("ipv4/ip_local_port_range", "1024 65535")])
}

fn start_servers(launch: &Launch, label: &str, dir: &WorkDir, cpu: usize) -> Result<[Process; 2]> {
    let start = |port: u16| -> Result<Process> {
        let launch = launch.clone().args(["server", &format!("0.0.0.0:{port}")]).cpu(cpu).urgent();
        let mut process = launch.spawn(&dir.path().join(format!("{label}-{port}.log")))?;
        process.wait_for_log("listening", Duration::from_secs(10))?;
        Ok(process)
    };
    Ok([start(PORT)?, start(POD_PORT)?])
}

/// A node with the real agent, its manifests, and pods by the real plugin.
pub(crate) struct Sluice {
    _servers: [Process; 2],
    client: Pod,
    server: Pod,
    server_address: Ipv4Addr,
    _cluster: Cluster,
}

impl Sluice {
    pub(crate) fn new(count: usize, dir: &WorkDir, cpu: usize) -> Result<(Self, Vec<Service>)> {
        let label = format!("sluice-{count}");
        let mut cluster = Cluster::new(1)?;
        let source = cluster.source();
        // The pods come first, because the manifests name the server's address.
        cluster.node_mut(0).start_agent(&source)?;
        let server = cluster.node(0).add_pod("default", "server")?;
        let client = cluster.node(0).add_pod("default", "client")?;
        let server_address = server.ipv4()?;
        let services = rules::services(count, (server_address, PORT));
        for (number, chunk) in services.chunks(500).enumerate() {
            let yaml: Vec<String> = chunk.iter().map(manifest).collect();
            cluster.apply(&format!("services-{number}"), &yaml.concat())?;
        }
        tune(client.netns())?;
        let servers = start_servers(&server.launch(bin("perf")?), &label, dir, cpu)?;
        let mut seen = 0;
        let programmed =
            wait_for(&format!("{count} services in the kernel"), Duration::from_secs(120), || {
                let list = cluster.node(0).proxyctl(&["service", "list"]).unwrap_or_default();
                seen = list.lines().filter(|line| line.contains("10.96.")).count();
                (seen >= count).then_some(())
            });
        if let Err(error) = programmed {
            bail!("{error:#}; proxyctl lists {seen}");
        }
        Ok((
            Self { _servers: servers, client, server, server_address, _cluster: cluster },
            services,
        ))
    }
}

/// A Service and its EndpointSlice.
fn manifest(service: &Service) -> String {
    let Service { name, address, port, endpoints, .. } = service;
    let addresses: String = endpoints
        .iter()
        .map(|(address, _)| {
            format!("- addresses: [\"{address}\"]\n  conditions: {{ready: true}}\n")
        })
        .collect();
    let target = endpoints.first().map_or(PORT, |(_, port)| *port);
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: default}}\nspec:\n  \
         clusterIP: {address}\n  clusterIPs: [{address}]\n  ports: [{{name: p, protocol: TCP, port: {port}, targetPort: {target}}}]\n---\n\
         apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: {name}-1, namespace: default, \
         labels: {{kubernetes.io/service-name: {name}}}}}\naddressType: IPv4\n\
         ports: [{{name: p, protocol: TCP, port: {target}}}]\nendpoints:\n{addresses}---\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn manifests_of_the_services_are_yaml() {
        let services = rules::services(3, (Ipv4Addr::new(10, 244, 1, 2), PORT));
        let text = manifest(&services[1]);
        let mut documents = text.split("---\n").filter(|text| !text.is_empty());
        let service: serde_json::Value = serde_norway::from_str(documents.next().unwrap()).unwrap();
        assert_eq!(service["metadata"]["name"], "target");
        assert_eq!(service["spec"]["clusterIP"], "10.96.0.17");
        let slice: serde_json::Value = serde_norway::from_str(documents.next().unwrap()).unwrap();
        assert_eq!(slice["endpoints"][0]["addresses"][0], "10.244.1.2");
        assert_eq!(slice["metadata"]["labels"]["kubernetes.io/service-name"], "target");
    }
}
