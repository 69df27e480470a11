//! Rewriting of a packet's addresses and ports.

use sluice_abi::{Addr, Be16};

use crate::{
    csum, fragment,
    node::copy,
    packet::{Broken, Packet},
    parse::{self, ETH_LEN, Ip, Part, Transport},
};

/// Offset of the IPv4 header checksum.
const IPV4_CHECKSUM: u32 = ETH_LEN + 10;

/// What a packet's addresses and ports are to be.
#[repr(C)]
pub struct Rewrite {
    /// Source address.
    pub src: Addr,
    /// Destination address.
    pub dst: Addr,
    /// Source port.
    pub sport: Be16,
    /// Destination port.
    pub dport: Be16,
}

impl Rewrite {
    /// What they are.
    #[inline(always)]
    pub fn none(ip: &Ip, transport: &Transport) -> Self {
        Self {
            src: copy(&ip.src),
            dst: copy(&ip.dst),
            sport: transport.sport,
            dport: transport.dport,
        }
    }
}

/// Both ports as they stand in the packet.
#[inline(always)]
fn word(sport: Be16, dport: Be16) -> u32 {
    let [a, b] = sport.to_network().to_ne_bytes();
    let [c, d] = dport.to_network().to_ne_bytes();
    u32::from_ne_bytes([a, b, c, d])
}

/// Writes addresses and ports into the packet and into what was read of it.
#[inline(always)]
pub fn apply<const V6: bool, P: Packet>(
    packet: P,
    ip: &mut Ip,
    transport: &mut Transport,
    to: &Rewrite,
) -> Result<(), Broken> {
    fragment::remember(ip, transport);
    if V6 && transport.part == Part::Later {
        // Nothing in the packet makes up for the change.
        packet.replace(ETH_LEN + 8, &to.src.0)?;
        packet.replace(ETH_LEN + 24, &to.dst.0)?;
    } else if V6 {
        let [a, b, c, d] = ip.src.0;
        let [e, f, g, h] = ip.dst.0;
        let [i, j, k, l] = to.src.0;
        let [m, n, o, p] = to.dst.0;
        let difference = csum::difference([a, b, c, d, e, f, g, h], [i, j, k, l, m, n, o, p]);
        csum::addresses_change::<V6, P>(packet, transport, difference)?;
        packet.store(ETH_LEN + 8, &to.src.0)?;
        packet.store(ETH_LEN + 24, &to.dst.0)?;
    } else {
        let new = [to.src.v4(), to.dst.v4()];
        let difference = csum::difference([ip.src.v4(), ip.dst.v4()], new);
        csum::addresses_change::<V6, P>(packet, transport, difference)?;
        packet.fix_ip_checksum(IPV4_CHECKSUM, difference)?;
        packet.store(ETH_LEN + 12, &new)?;
    }
    let old = word(transport.sport, transport.dport);
    let new = word(to.sport, to.dport);
    if old != new && transport.part != Part::Later {
        csum::ports_change(packet, ip, transport, old, new)?;
        if transport.is_icmp() {
            // Of the two, one is 0.
            let id = to.sport.to_network() | to.dport.to_network();
            packet.store(transport.offset + parse::ECHO_ID, &id)?;
        } else {
            packet.store(transport.offset, &new)?;
        }
    }
    ip.src = copy(&to.src);
    ip.dst = copy(&to.dst);
    transport.sport = to.sport;
    transport.dport = to.dport;
    Ok(())
}
