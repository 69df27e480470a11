//! A node with two pods, wired as the CNI plugin does it, and the tc programs between them.

use std::net::{IpAddr, SocketAddr};

use anyhow::Result;
use sluice_abi::Endpoint;
use sluice_proxy::dataplane::{TcHook, netns_cookie};

use crate::{
    kernel::Lab,
    netns::NetNs,
    traffic::{self, wire_pod},
};

/// The addresses of the two pods, one of each family.
pub const ADDRESSES: [[&str; 2]; 2] =
    [["10.244.1.2", "fd00:244:1::2"], ["10.244.1.3", "fd00:244:1::3"]];

/// A node with two pods.
#[derive(Debug)]
pub struct Pair {
    /// Its dataplane, with the programs attached to both pods' interfaces.
    pub lab: Lab,
    /// The node's network namespace.
    pub node: NetNs,
    /// The pods'.
    pub pods: Vec<NetNs>,
    /// Indexes of the host sides of their interfaces.
    pub interfaces: [u32; 2],
}

impl Pair {
    /// Makes them, with the fast path on or off.
    ///
    /// # Errors
    /// Not root, or whatever [`Lab::new`] says.
    pub fn new(label: &str, fast_path: bool) -> Result<Self> {
        Self::with_lab(Lab::new(label, fast_path)?, label)
    }

    /// Makes them around a dataplane.
    ///
    /// # Errors
    /// Not root, or the kernel refuses.
    pub fn with_lab(lab: Lab, label: &str) -> Result<Self> {
        let node = NetNs::new(label)?;
        node.sysctls(&[
            ("ipv4/ip_forward", "1"),
            ("ipv6/conf/all/forwarding", "1"),
            ("ipv4/conf/all/send_redirects", "0"),
            ("ipv4/conf/default/send_redirects", "0"),
        ])?;
        let mut this = Self { lab, node, pods: Vec::new(), interfaces: [0; 2] };
        for (n, [v4, v6]) in ADDRESSES.into_iter().enumerate() {
            let pod = NetNs::new(&format!("{label}-{n}"))?;
            let host = format!("slu{n}");
            let last = u8::try_from(n)?;
            let (mac, host_mac) = ([2, 0, 0, 0, 1, last], [2, 0, 0, 0, 2, last]);
            wire_pod(&this.node, &host, &pod, [v4, v6], [mac, host_mac])?;
            let attachment =
                this.node.run(|| this.lab.dataplane.attach_pod(&host, TcHook::Tcx))??;
            let netns = this.node.number_of_peer(&host)?.map_or(0, |number| number + 1);
            let (ifindex, cookie) = (attachment.ifindex, pod.run(netns_cookie)??);
            for address in [v4, v6] {
                let id = u32::from(last) + 1;
                let endpoint =
                    Endpoint { ifindex, id, mac, host_mac, cookie, netns, ..Endpoint::default() };
                this.lab.endpoint(address, endpoint)?;
            }
            this.interfaces[n] = ifindex;
            this.pods.push(pod);
        }
        Ok(this)
    }

    /// Packets that the node's own stack forwarded.
    ///
    /// # Errors
    /// As [`traffic::forwarded`].
    pub fn forwarded(&self) -> Result<u64> {
        traffic::forwarded(&self.node)
    }
}

/// A socket address.
///
/// # Panics
/// If the address is none.
pub fn socket(ip: &str, port: u16) -> SocketAddr {
    let ip: IpAddr = ip.parse().unwrap_or_else(|error| panic!("{ip}: {error}"));
    SocketAddr::new(ip, port)
}
