//! Which packets for other nodes are encapsulated, and what both ends of the tunnel take for granted
//! of each other. Pure.
//!
//! Nothing is agreed upon between nodes: the hardware address of a node's end, and the next hop that
//! stands for it, follow from the node's `InternalIP`.

use std::net::{IpAddr, Ipv6Addr};

use clap::ValueEnum;
use ipnet::IpNet;

/// `--encapsulation`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, ValueEnum)]
pub enum Encapsulation {
    /// No packet. Nodes that do not share a link with this one have no route.
    #[default]
    Never,
    /// Packets for nodes that do not share a link with this one.
    CrossSubnet,
    /// Packets for all other nodes.
    Always,
}

/// What nodes of one cluster must have in common (`--vxlan-id`, `--vxlan-port`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct VxlanConfig {
    /// The VXLAN network identifier, 24 bits.
    pub id: u32,
    /// The UDP port that nodes receive at, in the host's byte order.
    pub port: u16,
}

impl Default for VxlanConfig {
    /// Apart from those of flannel (1, 8472), Calico (4096, 4789) and Cilium (8472), whose device may
    /// still be on a node.
    fn default() -> Self {
        Self { id: 92, port: 8492 }
    }
}

/// A hardware address.
pub type Mac = [u8; 6];

/// Bytes that encapsulation puts before a packet: Ethernet, VXLAN, UDP and the outer IP header.
pub fn overhead(underlay: IpAddr) -> u32 {
    const INNER: u32 = 14 + 8 + 8;
    match underlay {
        IpAddr::V4(_) => INNER + 20,
        IpAddr::V6(_) => INNER + 40,
    }
}

/// The hardware address of the tunnel's end at `underlay`: locally administered, for IPv4 with the
/// address itself in it, for IPv6 with 40 bits of its hash (FNV-1a).
pub fn mac(underlay: IpAddr) -> Mac {
    match underlay {
        IpAddr::V4(ip) => {
            let [a, b, c, d] = ip.octets();
            [0x0e, 0x5c, a, b, c, d]
        }
        IpAddr::V6(ip) => {
            let hash = ip.octets().iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
                (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
            });
            // The low bits of FNV-1a are its weaker ones.
            let [a, b, c, d, e, ..] = (hash ^ (hash >> 24)).to_le_bytes();
            [0x0a, a, b, c, d, e]
        }
    }
}

/// The next hop that stands for the tunnel's end at `underlay` in a route to `destination`: for IPv4
/// over IPv4 the end itself, else a link-local address made of its hardware address (RFC 4291,
/// appendix A), which no routing table can lead elsewhere.
pub fn gateway(destination: &IpNet, underlay: IpAddr) -> IpAddr {
    if destination.addr().is_ipv4() && underlay.is_ipv4() {
        return underlay;
    }
    let [a, b, c, d, e, f] = mac(underlay);
    let word = |high, low| u16::from_be_bytes([high, low]);
    Ipv6Addr::new(0xfe80, 0, 0, 0, word(a ^ 0x02, b), word(c, 0xff), word(0xfe, d), word(e, f))
        .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    /// R5: both ends know each other's hardware address without a word.
    #[test]
    fn hardware_addresses_follow_from_the_nodes_address() {
        assert_eq!(mac(ip("192.0.2.7")), [0x0e, 0x5c, 192, 0, 2, 7]);
        let six = mac(ip("2001:db8::7"));
        assert_eq!(six, mac(ip("2001:db8::7")));
        assert_ne!(six, mac(ip("2001:db8::8")));
        for mac in [six, mac(ip("192.0.2.7"))] {
            assert_eq!(mac[0] & 0b11, 0b10, "locally administered, and one station's: {mac:x?}");
        }
    }

    #[test]
    fn ten_thousand_neighbouring_nodes_have_different_addresses() {
        let base = u128::from("2001:db8::".parse::<Ipv6Addr>().expect("an address"));
        let all: std::collections::BTreeSet<Mac> =
            (0..10_000).map(|i| mac(Ipv6Addr::from(base + i).into())).collect();
        assert_eq!(all.len(), 10_000);
    }

    #[test]
    fn next_hops_are_of_a_family_that_the_underlay_has() {
        let (v4, v6) = ("10.244.2.0/24".parse().expect("v4"), "fd00:2::/64".parse().expect("v6"));
        assert_eq!(gateway(&v4, ip("192.0.2.7")), ip("192.0.2.7"));
        assert_eq!(gateway(&v6, ip("192.0.2.7")), ip("fe80::c5c:c0ff:fe00:207"));
        assert_eq!(gateway(&v4, ip("2001:db8::7")), gateway(&v6, ip("2001:db8::7")));
    }
}
