//! Flags, checked against the machine.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use sluice_model::{Node, ResourceKind};
use sluice_plan::NodeContext;
use sluice_store::SourceOptions;

use super::StartError;
use crate::cli::SluicedArgs;
use crate::dataplane::{self, Timeouts};
use crate::node_ports::node_port_addrs;

/// Nothing works without.
pub(super) fn require_root() -> Result<(), StartError> {
    if rustix::process::geteuid().is_root() {
        return Ok(());
    }
    Err(StartError::new("sluiced needs root to program the kernel", "run it as root"))
}

/// Name of this node: the flag, else the host's name in lower case, as kubelet registers it.
pub(super) fn node_name(args: &SluicedArgs) -> String {
    args.hostname_override.clone().unwrap_or_else(|| {
        rustix::system::uname().nodename().to_string_lossy().trim().to_lowercase()
    })
}

/// What the planner is told of this node; `node` is its object, if it is known.
pub(super) fn node_context(args: &SluicedArgs, name: &str, node: Option<&Node>) -> NodeContext {
    NodeContext {
        name: name.to_owned(),
        zone: node.and_then(Node::zone).map(str::to_owned),
        node_port_addrs: node_port_addrs(&args.nodeport_addresses, node),
        addrs: node.iter().flat_map(|node| &node.addrs).map(|address| address.addr).collect(),
        external_ips: args.allow_service_external_ips,
        node_local: args.node_local_dns.0.clone(),
    }
}

/// The cgroup whose processes use the socket hooks: the flag, else the mounted root.
pub(super) fn cgroup_root(args: &SluicedArgs) -> Result<PathBuf, StartError> {
    if let Some(path) = &args.cgroup_root {
        return if path.join("cgroup.procs").exists() {
            Ok(path.clone())
        } else {
            Err(StartError::new(
                format!("--cgroup-root {} is not a cgroup (v2)", path.display()),
                "name a directory below the cgroup2 mount; `mount -t cgroup2` shows it",
            ))
        };
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo").map_err(|error| {
        StartError::new(format!("cannot read /proc/self/mountinfo: {error}"), "mount /proc")
    })?;
    cgroup2_mount(&mounts).ok_or_else(|| {
        StartError::new(
            "no cgroup2 file system is mounted",
            "mount -t cgroup2 none /sys/fs/cgroup, or set --socket-lb false",
        )
    })
}

/// Mount point of the cgroup2 hierarchy from the text of `mountinfo` (proc(5)). A hybrid host has
/// it at `/sys/fs/cgroup/unified`.
fn cgroup2_mount(mountinfo: &str) -> Option<PathBuf> {
    mountinfo.lines().find_map(|line| {
        let (left, right) = line.split_once(" - ")?;
        (right.split(' ').next() == Some("cgroup2"))
            .then(|| left.split(' ').nth(4).map(PathBuf::from))
            .flatten()
    })
}

pub(super) fn source_options(args: &SluicedArgs) -> Result<SourceOptions, StartError> {
    use ResourceKind::{
        ClusterNetworkPolicy, EndpointSlice, Namespace, NetworkPolicy, Node, Pod, Service,
    };
    let mut kinds = vec![Service, EndpointSlice, Pod, Node];
    if args.network_policy {
        kinds.extend([Namespace, NetworkPolicy, ClusterNetworkPolicy]);
    }
    args.etcd.options(kinds).map_err(|error| {
        StartError::new(error.to_string(), "name a readable file that holds the password alone")
    })
}

pub(super) fn map_sizes(args: &SluicedArgs) -> dataplane::MapSizes {
    dataplane::MapSizes {
        frontends: args.sizes.map_size_frontends,
        slots: args.sizes.map_size_slots,
        backends: args.sizes.map_size_backends,
        conntrack: args.sizes.map_size_conntrack,
        names: args.sizes.map_size_names,
        sock_peers: args.sizes.map_size_sock_peers,
        udp_peers: args.sizes.map_size_udp_peers,
        endpoints: args.sizes.map_size_endpoints,
        affinity: args.sizes.map_size_affinity,
        source_ranges: args.sizes.map_size_source_ranges,
        node_ports: args.sizes.map_size_node_ports,
        identities: args.sizes.map_size_identities,
        policy: args.sizes.map_size_policy,
        policy_flows: args.sizes.map_size_policy_flows,
    }
}

/// How long a flow without packets is kept.
pub(super) fn timeouts(args: &SluicedArgs) -> Timeouts {
    Timeouts {
        tcp_established: Duration::from_secs(args.conntrack_tcp_timeout_established),
        tcp_half_closed: Duration::from_secs(args.conntrack_tcp_timeout_close_wait),
        udp: Duration::from_secs(args.conntrack_udp_timeout),
        udp_stream: Duration::from_secs(args.conntrack_udp_timeout_stream),
        ..Timeouts::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cgroup_mount_is_found_where_it_is() {
        let hybrid = "30 23 0:26 / /sys/fs/cgroup ro - tmpfs tmpfs ro\n\
                      31 30 0:27 / /sys/fs/cgroup/unified rw shared:9 - cgroup2 cgroup2 rw\n";
        assert_eq!(cgroup2_mount(hybrid), Some(PathBuf::from("/sys/fs/cgroup/unified")));
        let unified = "31 30 0:27 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate\n";
        assert_eq!(cgroup2_mount(unified), Some(PathBuf::from("/sys/fs/cgroup")));
        assert_eq!(cgroup2_mount("1 0 0:1 / / rw - ext4 /dev/vda rw\n"), None);
    }
}
