//! Rows of services, backends, flows and pods.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};
use sluice_abi::{
    Addr, Be16, CtEntry, CtFlags, CtKey, Endpoint, FrontendFlags, FrontendKey, SLOTS_PER_CHUNK,
    Scope, SlotKey, SourceRangeKey, proto,
};
use sluice_model::Protocol;
use sluice_plan::Tables;

use super::Row;
use crate::dataplane::partner;

/// One frontend: an address that a Service port is reached at.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceRow {
    /// Namespace of the Service.
    pub namespace: String,
    /// Name of the Service.
    pub name: String,
    /// Name of the port; empty where it has none.
    pub port_name: String,
    /// Kind of the address: ClusterIP and so on.
    pub kind: String,
    /// Address and port.
    pub frontend: SocketAddr,
    /// Protocol.
    pub protocol: String,
    /// Whom it serves: `all`, `node` (processes of the node, at a loopback address), or `inside` (pods and processes of this node) and `outside` where these
    /// get something else (`externalTrafficPolicy: Local`).
    #[serde(default)]
    pub clients: String,
    /// The clients that are admitted (`loadBalancerSourceRanges`); absent: all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_ranges: Option<Vec<String>>,
    /// Seconds that a client keeps its backend (`sessionAffinity: ClientIP`); 0: it does not.
    #[serde(default)]
    pub affinity_secs: u32,
    /// What becomes of connections where there is no backend: `rejects`, or `drops` where a load
    /// balancer is to look elsewhere.
    #[serde(default)]
    pub without_backends: String,
    /// Where new connections go, each with the same chance.
    pub backends: Vec<SocketAddr>,
    /// Backends that the frontend counts but that cannot be found: 0 unless something is broken.
    pub missing: u32,
    /// Number of the Service port in the kernel.
    pub number: u32,
}

/// One backend.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BackendRow {
    /// Address and port.
    pub backend: SocketAddr,
    /// Protocol.
    pub protocol: String,
    /// Service ports that send connections to it.
    pub services: Vec<String>,
    /// Number in the kernel.
    pub number: u32,
}

/// One flow that is translated packet by packet.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ConntrackRow {
    /// Protocol.
    pub protocol: String,
    /// The client.
    pub client: SocketAddr,
    /// What the client sends to.
    pub frontend: SocketAddr,
    /// Who answers.
    pub backend: SocketAddr,
    /// The Service port.
    pub service: String,
    /// Where the flow is in its life: new, established, closing, closed.
    pub state: String,
    /// Seconds since a packet was last seen.
    pub idle_secs: u64,
}

/// One address of a pod of this node.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointRow {
    /// The pod's address.
    pub address: IpAddr,
    /// Namespace and name of the pod, where its record names them.
    pub pod: String,
    /// The host-side interface.
    pub interface: String,
    /// Its index.
    pub ifindex: u32,
    /// Hardware address of the pod's interface.
    pub mac: String,
    /// How the programs are attached: tcx, clsact, or why they are not.
    pub attached: String,
    /// Ports of the node that lead to the pod, `8080->80/TCP`.
    #[serde(default)]
    pub host_ports: Vec<String>,
    /// Number in the kernel.
    pub number: u32,
}

pub(super) fn socket(addr: Addr, port: Be16) -> SocketAddr {
    SocketAddr::new(addr.to_ip(), port.get())
}

fn protocol(number: u8) -> String {
    match number {
        // Not a Service's, but a pod that leaves the cluster may ping.
        proto::ICMP => "ICMP".to_owned(),
        proto::ICMPV6 => "ICMPv6".to_owned(),
        _ => Protocol::from_number(number).map_or_else(|| number.to_string(), |p| p.to_string()),
    }
}

fn kind(flags: u32) -> &'static str {
    [
        (FrontendFlags::CLUSTER_IP, "ClusterIP"),
        (FrontendFlags::NODE_PORT, "NodePort"),
        (FrontendFlags::EXTERNAL_IP, "ExternalIP"),
        (FrontendFlags::LOAD_BALANCER, "LoadBalancer"),
        (FrontendFlags::HOST_PORT, "HostPort"),
    ]
    .into_iter()
    .find(|(bit, _)| flags & bit != 0)
    .map_or("", |(_, name)| name)
}

fn clients(key: &FrontendKey, flags: u32) -> &'static str {
    if key.scope == Scope::External as u8 {
        "outside"
    } else if key.addr.is_loopback() {
        "node"
    } else if flags & FrontendFlags::EXTERNAL_DIFFERS != 0 {
        "inside"
    } else {
        "all"
    }
}

/// A range of clients as people write it.
fn range(key: &SourceRangeKey) -> String {
    let before = if key.addr.is_v4() { 32 + 96 } else { 32 };
    format!("{}/{}", key.addr.to_ip(), key.prefix_len.saturating_sub(before))
}

pub(super) fn service_label(tables: &Tables, number: u32) -> String {
    let Some(name) = tables.names.get(&number) else { return format!("#{number}") };
    match name.parts() {
        (namespace, name, "") => format!("{namespace}/{name}"),
        (namespace, name, port) => format!("{namespace}/{name}:{port}"),
    }
}

fn list_backends(tables: &Tables, list: u32, count: u32) -> impl Iterator<Item = Option<u32>> {
    (0..count).map(move |slot| {
        let key = SlotKey { list, chunk: slot / SLOTS_PER_CHUNK };
        let slots = tables.slots.get(&key)?;
        let number = slots.backend[(slot % SLOTS_PER_CHUNK) as usize];
        tables.backends.contains_key(&number).then_some(number)
    })
}

impl ServiceRow {
    /// A row a frontend, by namespace, name and port. Those that stand for all other ports of an
    /// address are no Service's and have none.
    pub fn all(tables: &Tables) -> Vec<Self> {
        let mut ranges: BTreeMap<u32, Vec<String>> = BTreeMap::new();
        for key in &tables.source_ranges {
            ranges.entry(key.service).or_default().push(range(key));
        }
        let mut rows: Vec<Self> = tables
            .frontends
            .iter()
            .filter(|(_, frontend)| frontend.flags & FrontendFlags::ANY_PORT == 0)
            .map(|(key, frontend)| {
                let (namespace, name, port_name) = tables
                    .names
                    .get(&frontend.service)
                    .map(sluice_abi::ServiceName::parts)
                    .unwrap_or_default();
                let mut backends = Vec::new();
                let mut missing = 0;
                for number in list_backends(tables, frontend.list, frontend.count) {
                    match number.and_then(|n| tables.backends.get(&n)) {
                        Some(backend) => backends.push(socket(backend.addr, backend.port)),
                        None => missing += 1,
                    }
                }
                backends.sort();
                Self {
                    namespace: namespace.to_owned(),
                    name: name.to_owned(),
                    port_name: port_name.to_owned(),
                    kind: kind(frontend.flags).to_owned(),
                    frontend: socket(key.addr, key.port),
                    protocol: protocol(key.proto),
                    clients: clients(key, frontend.flags).to_owned(),
                    source_ranges: (frontend.flags & FrontendFlags::SOURCE_RANGES != 0)
                        .then(|| ranges.get(&frontend.service).cloned().unwrap_or_default()),
                    affinity_secs: frontend.affinity_secs,
                    without_backends: if frontend.flags & FrontendFlags::LOCAL_ONLY != 0 {
                        "drops".to_owned()
                    } else {
                        "rejects".to_owned()
                    },
                    backends,
                    missing,
                    number: frontend.service,
                }
            })
            .collect();
        rows.sort();
        rows
    }
}

impl BackendRow {
    /// A row a backend, by address.
    pub fn all(tables: &Tables) -> Vec<Self> {
        let mut users: BTreeMap<u32, BTreeSet<u32>> = BTreeMap::new();
        for frontend in tables.frontends.values() {
            for number in list_backends(tables, frontend.list, frontend.count).flatten() {
                users.entry(number).or_default().insert(frontend.service);
            }
        }
        let mut rows: Vec<Self> = tables
            .backends
            .iter()
            .map(|(number, backend)| Self {
                backend: socket(backend.addr, backend.port),
                protocol: protocol(backend.proto),
                services: users
                    .get(number)
                    .into_iter()
                    .flatten()
                    .map(|service| service_label(tables, *service))
                    .collect(),
                number: *number,
            })
            .collect();
        rows.sort();
        rows
    }
}

impl ConntrackRow {
    /// A row a flow, from its forward entry. `now` is the kernel's monotonic clock in nanoseconds.
    pub fn all(entries: &[(CtKey, CtEntry)], tables: &Tables, now: u64) -> Vec<Self> {
        // What the backend did stands in the entry that its packets are looked up by.
        let answers: BTreeMap<CtKey, &CtEntry> = entries
            .iter()
            .filter(|(key, _)| key.flags & CtFlags::REVERSE != 0)
            .map(|(key, entry)| (*key, entry))
            .collect();
        let mut rows: Vec<Self> = entries
            .iter()
            .filter(|(key, _)| key.flags & CtFlags::REVERSE == 0)
            .map(|(key, entry)| {
                let answer = answers.get(&partner(key, entry));
                let flags = entry.flags | answer.map_or(0, |answer| answer.flags);
                let last_seen = entry.last_seen.max(answer.map_or(0, |answer| answer.last_seen));
                Self {
                    protocol: protocol(key.proto),
                    client: socket(key.src, key.sport),
                    frontend: socket(key.dst, key.dport),
                    backend: socket(entry.addr, entry.port),
                    service: service_label(tables, entry.service),
                    state: ct_state(flags).to_owned(),
                    idle_secs: now.saturating_sub(last_seen) / 1_000_000_000,
                }
            })
            .collect();
        rows.sort();
        rows
    }
}

fn ct_state(flags: u16) -> &'static str {
    const BOTH: u16 = CtFlags::FIN_CLIENT | CtFlags::FIN_BACKEND;
    if flags & CtFlags::RST != 0 || flags & BOTH == BOTH {
        "closed"
    } else if flags & BOTH != 0 {
        "closing"
    } else if flags & CtFlags::REPLIED != 0 {
        "established"
    } else {
        "new"
    }
}

/// What is known of a pod beside the kernel's entry.
#[derive(Clone, Debug, Default)]
pub struct EndpointNote {
    /// Namespace and name of the pod.
    pub pod: String,
    /// The host-side interface.
    pub interface: String,
    /// How the programs are attached.
    pub attached: String,
    /// Ports of the node that lead to the pod.
    pub host_ports: Vec<String>,
}

impl EndpointRow {
    /// A row an address; `note` tells what the records and the agent know of it.
    pub fn all(
        endpoints: &[(Addr, Endpoint)],
        note: impl Fn(IpAddr, &Endpoint) -> EndpointNote,
    ) -> Vec<Self> {
        let mut rows: Vec<Self> = endpoints
            .iter()
            .map(|(addr, endpoint)| {
                let address = addr.to_ip();
                let EndpointNote { pod, interface, attached, host_ports } = note(address, endpoint);
                Self {
                    address,
                    pod,
                    interface,
                    ifindex: endpoint.ifindex,
                    mac: mac(&endpoint.mac),
                    attached,
                    host_ports,
                    number: endpoint.id,
                }
            })
            .collect();
        rows.sort();
        rows
    }
}

fn mac(bytes: &[u8; 6]) -> String {
    let [a, b, c, d, e, f] = bytes;
    format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
}

/// The first few of a list, and how many more there are.
fn some(list: &[SocketAddr], wide: bool) -> String {
    const SHOWN: usize = 3;
    let shown = if wide { list.len() } else { SHOWN.min(list.len()) };
    let mut text: Vec<String> = list[..shown].iter().map(ToString::to_string).collect();
    if shown < list.len() {
        text.push(format!("+{} more", list.len() - shown));
    }
    text.join(if wide { "\n" } else { ", " })
}

impl Row for ServiceRow {
    fn header(wide: bool) -> Vec<&'static str> {
        let mut header =
            vec!["NAMESPACE", "NAME", "PORT", "TYPE", "FRONTEND", "PROTO", "CLIENTS", "COUNT"];
        header.push("BACKENDS");
        if wide {
            header.extend(["AFFINITY", "ADMITS", "NUMBER"]);
        }
        header
    }

    fn cells(&self, wide: bool) -> Vec<String> {
        let backends = match (self.backends.is_empty(), self.missing) {
            (true, 0) => format!("none: {}", self.without_backends),
            (_, 0) => some(&self.backends, wide),
            (_, missing) => format!("{} ({missing} MISSING)", some(&self.backends, wide)),
        };
        let mut cells = vec![
            self.namespace.clone(),
            self.name.clone(),
            self.port_name.clone(),
            self.kind.clone(),
            self.frontend.to_string(),
            self.protocol.clone(),
            match &self.source_ranges {
                Some(_) => format!("{}, limited", self.clients),
                None => self.clients.clone(),
            },
            self.backends.len().to_string(),
            backends,
        ];
        if wide {
            cells.push(match self.affinity_secs {
                0 => "none".to_owned(),
                secs => format!("{secs}s"),
            });
            cells.push(match &self.source_ranges {
                None => "all".to_owned(),
                Some(ranges) if ranges.is_empty() => "nobody".to_owned(),
                Some(ranges) => ranges.join("\n"),
            });
            cells.push(self.number.to_string());
        }
        cells
    }
}

impl Row for BackendRow {
    fn header(wide: bool) -> Vec<&'static str> {
        let mut header = vec!["BACKEND", "PROTO", "SERVICES"];
        if wide {
            header.push("NUMBER");
        }
        header
    }

    fn cells(&self, wide: bool) -> Vec<String> {
        let mut cells =
            vec![self.backend.to_string(), self.protocol.clone(), self.services.join(", ")];
        if wide {
            cells.push(self.number.to_string());
        }
        cells
    }
}

impl Row for ConntrackRow {
    fn header(_wide: bool) -> Vec<&'static str> {
        vec!["PROTO", "CLIENT", "FRONTEND", "BACKEND", "SERVICE", "STATE", "IDLE"]
    }

    fn cells(&self, _wide: bool) -> Vec<String> {
        vec![
            self.protocol.clone(),
            self.client.to_string(),
            self.frontend.to_string(),
            self.backend.to_string(),
            self.service.clone(),
            self.state.clone(),
            format!("{}s", self.idle_secs),
        ]
    }
}

impl Row for EndpointRow {
    fn header(wide: bool) -> Vec<&'static str> {
        let mut header = vec!["ADDRESS", "POD", "INTERFACE", "PROGRAMS", "HOST PORTS"];
        if wide {
            header.extend(["IFINDEX", "MAC", "NUMBER"]);
        }
        header
    }

    fn cells(&self, wide: bool) -> Vec<String> {
        let mut cells = vec![
            self.address.to_string(),
            self.pod.clone(),
            self.interface.clone(),
            self.attached.clone(),
            self.host_ports.join(", "),
        ];
        if wide {
            cells.extend([self.ifindex.to_string(), self.mac.clone(), self.number.to_string()]);
        }
        cells
    }
}
