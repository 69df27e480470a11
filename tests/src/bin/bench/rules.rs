//! Rule sets in the shape that kube-proxy writes, for any number of services: what a packet of its nodes crosses.
//!
//! Every service is a ClusterIP with one TCP port; all but the measured one have three endpoints. The measured one has a
//! UDP port, too. To the sets of a real node also belong `default/kubernetes`, one service without endpoints and one with
//! a node port; where node ports are measured, every service has one. Left out is what no measured packet meets: the
//! accounting match (`nfacct`) behind the test for invalid packets, and canary chains.

mod iptables;
mod nftables;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

pub(crate) use iptables::iptables;
pub(crate) use nftables::nftables;

/// An address family: kube-proxy keeps a rule set for each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Family {
    V4,
    V6,
}

impl Family {
    /// Both.
    pub(crate) const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// The range of pods, as `--cluster-cidr` says.
    fn cluster_cidr(self) -> &'static str {
        match self {
            Self::V4 => "10.244.0.0/16",
            Self::V6 => "fd00:244::/32",
        }
    }

    /// The range of cluster IPs.
    fn service_cidr(self) -> &'static str {
        match self {
            Self::V4 => "10.96.0.0/16",
            Self::V6 => "fd00:96::/32",
        }
    }

    /// Length of the prefix that is one address.
    fn bits(self) -> u8 {
        match self {
            Self::V4 => 32,
            Self::V6 => 128,
        }
    }

    /// Address number `index` of the range of cluster IPs, or of one of pods that no pod has.
    fn address(self, services: bool, index: usize) -> IpAddr {
        match self {
            Self::V4 => {
                let second = if services { 96 } else { 245 };
                let base = u32::from(Ipv4Addr::new(10, second, 0, 0));
                Ipv4Addr::from(base + u32::try_from(index).unwrap_or(u32::MAX - base)).into()
            }
            Self::V6 => {
                let second = if services { 0x96 } else { 0x245 };
                let base = u128::from(Ipv6Addr::new(0xfd00, second, 0, 0, 0, 0, 0, 0));
                Ipv6Addr::from(base + index as u128).into()
            }
        }
    }
}

/// The mark of packets to be masqueraded.
const MARK: &str = "0x4000";

/// One port of one service.
#[derive(Debug, Clone)]
pub(crate) struct Service {
    pub(crate) name: String,
    /// `tcp` or `udp`.
    pub(crate) protocol: &'static str,
    pub(crate) address: IpAddr,
    pub(crate) port: u16,
    pub(crate) endpoints: Vec<(IpAddr, u16)>,
    pub(crate) node_port: Option<u16>,
}

impl Service {
    /// Eight characters as kube-proxy's hashes have them, unlike for any two services and endpoints.
    fn hash(&self, salt: usize) -> String {
        // FNV-1a; a name must be unique and of full length, no more.
        let mut hash = 0xcbf2_9ce4_8422_2325_u64;
        for byte in self.name.bytes().chain(self.protocol.bytes()).chain(salt.to_le_bytes()) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        const ALPHABET: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
        (0..13)
            .map(|_| {
                let letter = ALPHABET[(hash % 32) as usize];
                hash /= 32;
                char::from(letter)
            })
            .collect()
    }
}

/// The first node port, where every service has one.
const FIRST_NODE_PORT: u16 = 20_000;

/// The node port of the measured one of `count` services.
pub(crate) fn node_port(count: usize) -> u16 {
    FIRST_NODE_PORT + u16::try_from(count / 2).unwrap_or(0)
}

/// The cluster IP of the measured one of `count` services.
pub(crate) fn measured_address(family: Family, count: usize) -> IpAddr {
    family.address(true, count / 2 + 16)
}

/// `count` services. The measured one, which leads to `target`, stands in the middle, where a list that is walked meets it
/// on average.
pub(crate) fn services(
    family: Family,
    count: usize,
    target: (IpAddr, u16),
    node_ports: bool,
) -> Vec<Service> {
    let mut all = Vec::with_capacity(count + 1);
    for index in 0..count {
        let measured = index == count / 2;
        let other = |number: usize| (family.address(false, index * 3 + number), 8080);
        let number = node_ports.then(|| FIRST_NODE_PORT + u16::try_from(index).unwrap_or(0));
        let tcp = Service {
            name: if measured { "target".to_owned() } else { format!("svc{index}") },
            protocol: "tcp",
            address: family.address(true, index + 16),
            port: 80,
            endpoints: if measured { vec![target] } else { (0..3).map(other).collect() },
            node_port: number,
        };
        let udp = measured.then(|| Service { protocol: "udp", ..tcp.clone() });
        all.push(tcp);
        all.extend(udp);
    }
    all
}

/// What every cluster has besides.
pub(crate) fn extras(family: Family) -> Vec<Service> {
    let plain = |name: &str, last: usize, endpoints: Vec<(IpAddr, u16)>, node_port| Service {
        name: name.to_owned(),
        protocol: "tcp",
        address: family.address(true, last),
        port: if name == "kubernetes" { 443 } else { 80 },
        endpoints,
        node_port,
    };
    let elsewhere = |index| family.address(false, index);
    vec![
        plain("kubernetes", 1, vec![(elsewhere(65_001), 6443)], None),
        plain("empty", 2, Vec::new(), None),
        plain("edge", 3, vec![(elsewhere(65_002), 8080)], Some(30_100)),
    ]
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_service_and_endpoint_is_another_one() {
        for family in Family::ALL {
            let target = (family.address(false, 65_100), 8080);
            let services = services(family, 10_000, target, true);
            let addresses: BTreeSet<_> = services.iter().map(|it| it.address).collect();
            let hashes: BTreeSet<_> =
                services.iter().flat_map(|it| (0..4).map(|salt| it.hash(salt))).collect();
            let endpoints: BTreeSet<_> =
                services.iter().flat_map(|it| it.endpoints.clone()).collect();
            let ports: BTreeSet<_> = services.iter().filter_map(|it| it.node_port).collect();
            assert_eq!((addresses.len(), ports.len()), (10_000, 10_000));
            assert_eq!(hashes.len(), 4 * 10_001);
            assert_eq!(endpoints.len(), 3 * 9_999 + 1);
            let target: Vec<_> = services.iter().filter(|it| it.name == "target").collect();
            assert_eq!(target.len(), 2);
            assert_eq!(target[0].address, measured_address(family, 10_000));
            assert_eq!(target[1].node_port, Some(node_port(10_000)));
        }
    }
}
