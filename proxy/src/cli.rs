//! Flags. What kube-proxy has under a name keeps that name and meaning.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use ipnet::IpNet;
use sluice_model::ObjectName;
use sluice_store::{EtcdArgs, SourceUrl, parse_source};

use crate::config::seconds;
use crate::health::BindAddress;
use crate::node_ports::NodePortAddresses;
use crate::routes::{Encapsulation, VxlanConfig};
use crate::uplinks::{PortRange, Uplinks};

/// Where a node's files are; every one may differ, so that several nodes run on one kernel.
#[derive(Clone, Debug, Args)]
pub struct Paths {
    /// Directory of the control socket, the lock and node.json.
    #[arg(long, default_value = "/run/sluice", value_name = "DIR", global = true)]
    pub run_dir: PathBuf,

    /// Directory in a BPF file system for pinned maps and links.
    #[arg(long, default_value = "/sys/fs/bpf/sluice", value_name = "DIR", global = true)]
    pub bpf_root: PathBuf,
}

impl Paths {
    /// The control socket.
    pub fn socket(&self) -> PathBuf {
        self.run_dir.join("agent.sock")
    }

    /// Addresses of pods that went, whose flows the agent has not forgotten yet.
    pub fn leaving(&self) -> PathBuf {
        self.run_dir.join("leaving")
    }

    /// What the CNI plugin reads of the node.
    pub fn node_file(&self) -> PathBuf {
        self.run_dir.join("node.json")
    }
}

/// Flags of `sluiced`.
#[derive(Clone, Debug, Parser)]
#[command(
    name = "sluiced",
    version,
    about = "Sluice's node agent: programs the kernel with the cluster's services, pods and routes",
    after_help = "Stopping sluiced stops no traffic: its programs and maps stay in the kernel, and \
                  the next start takes them over."
)]
pub struct SluicedArgs {
    /// Where objects come from: dir:PATH or etcd:URL[,URL...].
    #[arg(long, default_value = "dir:/etc/sluice/manifests", value_name = "URL",
          value_parser = parse_source)]
    pub source: SourceUrl,

    /// kube-proxy's settings (a KubeProxyConfiguration in YAML or JSON): the fields that apply say what
    /// flags say, and flags that are given win over them.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Name of this node's Node object; the host's name where it is not given.
    #[arg(long, value_name = "NAME")]
    pub hostname_override: Option<String>,

    /// Files of the node.
    #[command(flatten)]
    pub paths: Paths,

    /// Directory of the records that sluice-cni writes.
    #[arg(long, default_value = "/var/lib/sluice", value_name = "DIR")]
    pub state_dir: PathBuf,

    /// Processes below this cgroup (v2) reach services through their sockets; the mounted root of
    /// the hierarchy where it is not given.
    #[arg(long, value_name = "DIR")]
    pub cgroup_root: Option<PathBuf>,

    /// Balance connections where a program calls connect or sendto.
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set, value_name = "BOOL")]
    pub socket_lb: bool,

    /// Reset TCP connections of this node's sockets to an endpoint of a Service once the endpoint is
    /// gone (not while it is terminating). Connected UDP sockets are always woken.
    #[arg(long, default_value_t = false, action = clap::ArgAction::Set, value_name = "BOOL")]
    pub reset_deleted_endpoint_connections: bool,

    /// Attach to the pods that sluice-cni made: balance what did not pass a socket hook.
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set, value_name = "BOOL")]
    pub pod_programs: bool,

    /// Enforce NetworkPolicies on pods that sluice-cni made. With false none is read, and none that was
    /// in force stays so.
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set, value_name = "BOOL")]
    pub network_policy: bool,

    /// Hand packets to pods of this node, and send those of its pods out by uplinks, without crossing
    /// the host's stack: netfilter does not see them.
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set, value_name = "BOOL")]
    pub fast_path: bool,

    /// Keep routes to the other nodes' pods.
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set, value_name = "BOOL")]
    pub routes: bool,

    /// Packets for which nodes' pods are encapsulated (vxlan): "never" (nodes that do not share a link
    /// with this one are skipped, which is reported), "cross-subnet" (those nodes' only), or "always".
    /// All nodes of the cluster need the same, and the UDP port open between them. Takes --routes.
    #[arg(
        long,
        default_value = "never",
        value_enum,
        value_name = "never|cross-subnet|always",
        hide_possible_values = true
    )]
    pub encapsulation: Encapsulation,

    /// The VXLAN network identifier, the same on all nodes.
    #[arg(long, default_value_t = VxlanConfig::default().id, value_name = "VNI",
          value_parser = clap::value_parser!(u32).range(1..1 << 24))]
    pub vxlan_id: u32,

    /// The UDP port for encapsulated packets, the same on all nodes.
    #[arg(long, default_value_t = VxlanConfig::default().port, value_name = "PORT",
          value_parser = clap::value_parser!(u16).range(1..))]
    pub vxlan_port: u16,

    /// The node's addresses that NodePorts are served on: "primary" (of each family the first
    /// InternalIP of the Node object), "localhost" (127.0.0.1 and ::1, for processes of the node),
    /// "all" (all addresses of the Node object, and localhost), or CIDRs that choose among these.
    #[arg(
        long,
        default_value = "primary,localhost",
        value_delimiter = ',',
        value_name = "CIDR|WORD,..."
    )]
    pub nodeport_addresses: Vec<NodePortAddresses>,

    /// The interfaces by which clients outside reach Services, and pods leave the cluster: "auto"
    /// (those with a default route, and those that hold an InternalIP of the Node object), names, or
    /// nothing for none.
    #[arg(long, default_value = "auto", value_name = "auto|NAME,...")]
    pub uplinks: Uplinks,

    /// Ports of the node's address that stand for the ports of clients where their address must not
    /// be seen. A port that is a NodePort in use is never taken.
    #[arg(long, default_value = "32768-65535", value_name = "FIRST-LAST")]
    pub snat_port_range: PortRange,

    /// Give pods that leave the cluster the node's address (pods that sluice-cni made; those of
    /// another plugin are that plugin's business).
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set, value_name = "BOOL")]
    pub masquerade: bool,

    /// Give clients outside the node's address also where the endpoint is on this node, except under
    /// externalTrafficPolicy: Local.
    #[arg(long, default_value_t = false, action = clap::ArgAction::Set, num_args = 0..=1,
          default_missing_value = "true", value_name = "BOOL")]
    pub masquerade_all: bool,

    /// Ranges that pods reach with their own addresses; those of --cluster-cidr (else the pod CIDRs
    /// of all nodes) and the nodes' addresses where it is not given. Link-local and multicast
    /// addresses are always among them.
    #[arg(long, value_delimiter = ',', value_name = "CIDR,...")]
    pub non_masquerade_cidrs: Vec<IpNet>,

    /// Ranges of all pods of the cluster.
    #[arg(long, value_delimiter = ',', value_name = "CIDR,...")]
    pub cluster_cidr: Vec<IpNet>,
    /// The ranges of ClusterIPs, one a family, as the API server has them: packets to addresses of
    /// theirs that no Service has are dropped on this node, whatever its routes say.
    #[arg(long, value_delimiter = ',', value_parser = service_range, value_name = "CIDR,...")]
    pub service_cluster_ip_range: Vec<ipnet::IpNet>,

    /// Serve the spec.externalIPs of Services; false where their authors are not trusted with it.
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set, value_name = "BOOL")]
    pub allow_service_external_ips: bool,

    /// The Service of the cluster's DNS, NAMESPACE/NAME: clients of this node get the endpoint on this
    /// node while it is ready, and all ready ones of the cluster while it is not. Empty: no Service is
    /// treated so.
    #[arg(long, default_value = "kube-system/kube-dns", value_parser = service_name, value_name = "NAMESPACE/NAME")]
    pub node_local_dns: OptionalService,

    /// Port of those endpoints at which /ready says whether they are (sluice-dns and CoreDNS have it
    /// at 8181); where there is none, they are ready if they accept connections.
    #[arg(long, default_value_t = 8181, value_parser = clap::value_parser!(u16).range(1..), value_name = "PORT")]
    pub node_local_dns_ready_port: u16,

    /// MTU of pods; where it is not given, that of the interface with the default route, or with
    /// --encapsulation what is left of the node's own interface's.
    #[arg(long, value_name = "BYTES")]
    pub mtu: Option<u32>,

    /// Access to etcd.
    #[command(flatten)]
    pub etcd: EtcdArgs,

    /// Sizes of the kernel's maps.
    #[command(flatten)]
    pub sizes: SizeArgs,

    /// Where load balancers and kubelet ask for /healthz and /livez; empty: nowhere.
    #[arg(long, default_value = "0.0.0.0:10256", value_parser = BindAddress::healthz, value_name = "ADDR:PORT")]
    pub healthz_bind_address: BindAddress,

    /// Where Prometheus asks for /metrics; empty: nowhere.
    #[arg(long, default_value = "127.0.0.1:10249", value_parser = BindAddress::metrics, value_name = "ADDR:PORT")]
    pub metrics_bind_address: BindAddress,

    /// Time after which an idle established TCP flow is forgotten (flows that are translated packet by
    /// packet only): a number of seconds, or as in 24h0m0s.
    #[arg(long, default_value = "24h", value_parser = seconds, value_name = "DURATION")]
    pub conntrack_tcp_timeout_established: u64,

    /// The same for TCP flows that one side has closed.
    #[arg(long, default_value = "1h", value_parser = seconds, value_name = "DURATION")]
    pub conntrack_tcp_timeout_close_wait: u64,

    /// The same for UDP flows that nobody has answered.
    #[arg(long, default_value = "30s", value_parser = seconds, value_name = "DURATION")]
    pub conntrack_udp_timeout: u64,

    /// The same for UDP flows that were answered.
    #[arg(long, default_value = "120s", value_parser = seconds, value_name = "DURATION")]
    pub conntrack_udp_timeout_stream: u64,

    /// Take back everything that sluiced ever did to this node and exit: programs, maps and routes, of
    /// whatever version, and its files. What sluice-cni made stays.
    #[arg(long)]
    pub cleanup: bool,

    /// What to log: error, warn, info, debug, trace, or a filter such as "info,sluice_store=debug".
    #[arg(long, default_value = "info", env = "RUST_LOG", value_name = "FILTER")]
    pub log_level: String,
}

/// A Service, or none.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct OptionalService(pub Option<ObjectName>);

fn service_name(text: &str) -> Result<OptionalService, String> {
    if text.is_empty() {
        return Ok(OptionalService(None));
    }
    match text.split_once('/') {
        Some((namespace, name))
            if !namespace.is_empty() && !name.is_empty() && !name.contains('/') =>
        {
            Ok(OptionalService(Some(ObjectName::new(namespace, name))))
        }
        _ => Err("expected NAMESPACE/NAME such as kube-system/kube-dns, or nothing".to_owned()),
    }
}

fn record_type(text: &str) -> Result<hickory_proto::rr::RecordType, String> {
    text.to_ascii_uppercase()
        .parse()
        .map_err(|_| "expected a type such as A, AAAA or SRV".to_owned())
}

/// A range of ClusterIPs.
fn service_range(text: &str) -> Result<ipnet::IpNet, String> {
    let range: ipnet::IpNet =
        text.trim().parse().map_err(|_| format!("{text:?} is not a CIDR such as 10.96.0.0/12"))?;
    if range.prefix_len() == 0 {
        return Err(format!("{text:?} would drop everything that is routed"));
    }
    Ok(range.trunc())
}

/// Sizes of the kernel's maps, in entries.
#[derive(Clone, Copy, Debug, Args)]
pub struct SizeArgs {
    /// Frontends: one a Service port and address.
    #[arg(long, default_value_t = 65_536, value_name = "N")]
    pub map_size_frontends: u32,
    /// Chunks of backend lists: one for 16 endpoints of a Service port and family.
    #[arg(long, default_value_t = 65_536, value_name = "N")]
    pub map_size_slots: u32,
    /// Backends: one an endpoint and port.
    #[arg(long, default_value_t = 131_072, value_name = "N")]
    pub map_size_backends: u32,
    /// Conntrack entries: two a flow that is translated packet by packet.
    #[arg(long, default_value_t = 524_288, value_name = "N")]
    pub map_size_conntrack: u32,
    /// Names of Service ports, for people who read the maps.
    #[arg(long, default_value_t = 16_384, value_name = "N")]
    pub map_size_names: u32,
    /// Sockets connected to a Service, so many streams and so many datagram sockets; beyond that,
    /// sockets name their backend as the peer.
    #[arg(long, default_value_t = 131_072, value_name = "N")]
    pub map_size_sock_peers: u32,
    /// Entries for datagram sockets that are not connected: two a conversation.
    #[arg(long, default_value_t = 65_536, value_name = "N")]
    pub map_size_udp_peers: u32,
    /// Addresses of this node's pods.
    #[arg(long, default_value_t = 4_096, value_name = "N")]
    pub map_size_endpoints: u32,
    /// Clients of Services with session affinity.
    #[arg(long, default_value_t = 65_536, value_name = "N")]
    pub map_size_affinity: u32,
    /// Ranges of clients that Services admit (loadBalancerSourceRanges), for each Service port.
    #[arg(long, default_value_t = 16_384, value_name = "N")]
    pub map_size_source_ranges: u32,
    /// Ports of the node that Services are served at, for each protocol.
    #[arg(long, default_value_t = 16_384, value_name = "N")]
    pub map_size_node_ports: u32,
    /// Addresses and ranges that the rules of network policies tell apart.
    #[arg(long, default_value_t = 65_536, value_name = "N")]
    pub map_size_identities: u32,
    /// What the rules of network policies allow: one a set of rules, identity and prefix of ports.
    #[arg(long, default_value_t = 262_144, value_name = "N")]
    pub map_size_policy: u32,
    /// Flows of pods that network policies isolate.
    #[arg(long, default_value_t = 131_072, value_name = "N")]
    pub map_size_policy_flows: u32,
}

/// Flags of `proxyctl`.
#[derive(Clone, Debug, Parser)]
#[command(
    name = "proxyctl",
    version,
    about = "Shows what Sluice does in this node's kernel",
    after_help = "Works while sluiced is dead: it then reads the pinned maps, and says so."
)]
pub struct ProxyctlArgs {
    /// Files of the node.
    #[command(flatten)]
    pub paths: Paths,

    /// Form of the output.
    #[arg(short, long, default_value = "table", value_enum, global = true)]
    pub output: Output,

    /// What to show.
    #[command(subcommand)]
    pub noun: Noun,
}

/// Form of the output.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Output {
    /// Columns for people.
    Table,
    /// More columns.
    Wide,
    /// JSON, one document.
    Json,
    /// YAML, one document.
    Yaml,
}

/// What `proxyctl` shows.
#[derive(Clone, Debug, Subcommand)]
pub enum Noun {
    /// The agent, its source, the parts that are on, maps, counters and warnings.
    Status,
    /// Service frontends with their backends.
    #[command(subcommand, alias = "svc", visible_alias = "services")]
    Service(NamedVerb),
    /// Backends with the services that use them.
    #[command(subcommand, visible_alias = "backends")]
    Backend(ListVerb),
    /// Flows that are translated packet by packet.
    #[command(subcommand, alias = "ct")]
    Conntrack(ListVerb),
    /// Clients of Services with session affinity, and the backend that each keeps.
    #[command(subcommand)]
    Affinity(ListVerb),
    /// Pods of this node.
    #[command(subcommand, alias = "ep", visible_alias = "endpoints")]
    Endpoint(ListVerb),
    /// Routes to other nodes' pods: straight, by vxlan, or none and why.
    #[command(subcommand, visible_alias = "routes")]
    Route(ListVerb),
    /// Network policies: which there are, what they make of a pod, and whether one end may talk to
    /// another.
    #[command(subcommand, alias = "netpol", visible_alias = "policies")]
    Policy(PolicyVerb),
    /// Addresses that the rules of network policies tell apart.
    #[command(subcommand, visible_alias = "identities")]
    Identity(ListVerb),
    /// What a pod gets for a name.
    #[command(subcommand)]
    Dns(DnsVerb),
    /// What happens to packets, a line each, until it is interrupted.
    Monitor(MonitorArgs),
}

/// What `proxyctl monitor` shows.
#[derive(Clone, Debug, Args)]
pub struct MonitorArgs {
    /// Packets that network policies do not let pass: whose rules were asked, in which direction, why,
    /// and who the other end is. Where no agent runs, each is shown by one monitor only.
    #[arg(long, required = true)]
    pub drops: bool,
}

/// Verbs of `proxyctl policy`.
#[derive(Clone, Debug, Subcommand)]
pub enum PolicyVerb {
    /// All policies of the source; of one that cannot be read, which field is wrong.
    List,
    /// What isolates a pod of this node, and what it is allowed, as the kernel has it.
    Get {
        /// NAMESPACE/NAME of the pod, or NAME in the namespace "default".
        pod: String,
    },
    /// Whether FROM may talk to TO, and which rule says so: by the policies, and by the kernel's maps.
    Trace {
        /// A pod, NAMESPACE/NAME, or an address.
        from: String,
        /// The same of whom is asked. What goes by a Service is judged by the endpoint.
        to: String,
        /// Port of TO, such as 80 or 53/UDP; TCP where no protocol is given.
        #[arg(value_parser = port_and_protocol)]
        port: (u16, sluice_model::Protocol),
    },
}

/// `80` or `53/UDP`.
fn port_and_protocol(text: &str) -> Result<(u16, sluice_model::Protocol), String> {
    use sluice_model::Protocol::{Sctp, Tcp, Udp};
    let (number, name) = text.split_once('/').unwrap_or((text, "TCP"));
    let number = number.parse().map_err(|_| format!("{number:?} is not a port"))?;
    let known = [Tcp, Udp, Sctp].into_iter();
    let protocol = known.into_iter().find(|known| known.to_string().eq_ignore_ascii_case(name));
    Ok((number, protocol.ok_or_else(|| format!("{name:?} is not TCP, UDP or SCTP"))?))
}

/// Verbs of `proxyctl dns`.
#[derive(Clone, Debug, Subcommand)]
pub enum DnsVerb {
    /// Follows a pod's query along its search path: the instance that is asked, what it answers, why.
    Query(DnsQueryArgs),
}

/// What of a pod's query is to be known.
#[derive(Clone, Debug, Args)]
pub struct DnsQueryArgs {
    /// The name, as the pod would ask for it.
    pub name: String,
    /// The pod, one of this node: NAMESPACE/NAME, or NAME in the namespace "default".
    #[arg(long, value_name = "NAMESPACE/NAME")]
    pub pod: String,
    /// The type of the records: A, AAAA, SRV, PTR and so on.
    #[arg(long = "type", default_value = "A", value_name = "TYPE", value_parser = record_type)]
    pub kind: hickory_proto::rr::RecordType,
    /// The Service that pods ask.
    #[arg(long, default_value = "kube-system/kube-dns", value_name = "NAMESPACE/NAME")]
    pub dns_service: String,
    /// The cluster's domain.
    #[arg(long, default_value = "cluster.local", value_name = "NAME")]
    pub cluster_domain: String,
    /// The node's own resolver configuration, whose search list pods inherit.
    #[arg(long, default_value = "/etc/resolv.conf", value_name = "FILE")]
    pub resolv_conf: PathBuf,
}

/// Verbs of nouns that have names.
#[derive(Clone, Debug, Subcommand)]
pub enum NamedVerb {
    /// All of them.
    List,
    /// One, by NAMESPACE/NAME or by NAME in the namespace "default".
    Get {
        /// NAMESPACE/NAME.
        name: String,
    },
}

/// The verb of nouns that are only listed.
#[derive(Clone, Copy, Debug, Subcommand)]
pub enum ListVerb {
    /// All of them.
    List,
}
