//! Rule sets in the shape that kube-proxy writes, for any number of services: what a packet of its nodes crosses.
//!
//! Every service is a ClusterIP with one TCP port; all but the measured one have three endpoints. To the sets of a real
//! node also belong `default/kubernetes`, one service without endpoints and one with a node port. Left out is what no
//! measured packet meets: the accounting match (`nfacct`) behind the test for invalid packets, canary chains, IPv6.

mod iptables;
mod nftables;

use std::net::Ipv4Addr;

pub(crate) use iptables::iptables;
pub(crate) use nftables::nftables;

/// The range of pods, as `--cluster-cidr` says.
const CLUSTER_CIDR: &str = "10.244.0.0/16";
/// The range of cluster IPs.
const SERVICE_CIDR: &str = "10.96.0.0/16";
/// The mark of packets to be masqueraded.
const MARK: &str = "0x4000";

/// One service with one port.
#[derive(Debug, Clone)]
pub(crate) struct Service {
    pub(crate) name: String,
    pub(crate) address: Ipv4Addr,
    pub(crate) port: u16,
    pub(crate) endpoints: Vec<(Ipv4Addr, u16)>,
    pub(crate) node_port: Option<u16>,
}

impl Service {
    /// Eight characters as kube-proxy's hashes have them, unlike for any two services and endpoints.
    fn hash(&self, salt: usize) -> String {
        // FNV-1a; a name must be unique and of full length, no more.
        let mut hash = 0xcbf2_9ce4_8422_2325_u64;
        for byte in self.name.bytes().chain(salt.to_le_bytes()) {
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

/// `count` services. The measured one, `target`, stands in the middle, where a list that is walked meets it on average.
pub(crate) fn services(count: usize, target: (Ipv4Addr, u16)) -> Vec<Service> {
    (0..count)
        .map(|index| {
            let measured = index == count / 2;
            let other = |number: usize| (address([10, 245], index * 3 + number), 8080);
            Service {
                name: if measured { "target".to_owned() } else { format!("svc{index}") },
                address: address([10, 96], index + 16),
                port: 80,
                endpoints: if measured { vec![target] } else { (0..3).map(other).collect() },
                node_port: None,
            }
        })
        .collect()
}

/// What every cluster has besides.
pub(crate) fn extras() -> Vec<Service> {
    let plain = |name: &str, last: u8, endpoints: Vec<(Ipv4Addr, u16)>, node_port| Service {
        name: name.to_owned(),
        address: Ipv4Addr::new(10, 96, 0, last),
        port: if name == "kubernetes" { 443 } else { 80 },
        endpoints,
        node_port,
    };
    vec![
        plain("kubernetes", 1, vec![(Ipv4Addr::new(172, 31, 0, 1), 6443)], None),
        plain("empty", 2, Vec::new(), None),
        plain("edge", 3, vec![(Ipv4Addr::new(10, 245, 255, 1), 8080)], Some(30_100)),
    ]
}

/// Address number `index` of a /16, or of the following ones.
fn address(prefix: [u8; 2], index: usize) -> Ipv4Addr {
    let base = u32::from(Ipv4Addr::new(prefix[0], prefix[1], 0, 0));
    Ipv4Addr::from(base + u32::try_from(index).unwrap_or(u32::MAX - base))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_service_and_endpoint_is_another_one() {
        let services = services(10_000, (Ipv4Addr::new(10, 244, 1, 2), 8080));
        let addresses: BTreeSet<_> = services.iter().map(|it| it.address).collect();
        let hashes: BTreeSet<_> =
            services.iter().flat_map(|it| (0..4).map(|salt| it.hash(salt))).collect();
        let endpoints: BTreeSet<_> = services.iter().flat_map(|it| it.endpoints.clone()).collect();
        assert_eq!(addresses.len(), 10_000);
        assert_eq!(hashes.len(), 40_000);
        assert_eq!(endpoints.len(), 3 * 9_999 + 1);
        assert_eq!(services[5_000].name, "target");
        assert!(addresses.iter().all(|address| address.octets()[..2] == [10, 96]));
    }
}
