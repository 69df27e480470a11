//! Rewriting of a packet's addresses and ports.

use sluice_abi::{Addr, Be16};

use crate::{
    csum,
    packet::{Broken, Packet},
    parse::{ETH_LEN, Ip, Part, Transport},
};

/// Offset of the IPv4 header checksum.
const IPV4_CHECKSUM: u32 = ETH_LEN + 10;

/// Writes the destination into the packet and into what was read of it.
#[inline(always)]
pub fn set_destination<const V6: bool, P: Packet>(
    packet: P,
    ip: &mut Ip,
    transport: &Transport,
    addr: &Addr,
    port: Be16,
) -> Result<(), Broken> {
    let offset = ETH_LEN + if V6 { 24 } else { 16 };
    rewrite::<V6, P>(packet, transport, offset, &ip.dst, addr)?;
    rewrite_port(packet, transport, 2, transport.dport, port)?;
    ip.dst = *addr;
    Ok(())
}

/// Writes the source into the packet.
#[inline(always)]
pub fn set_source<const V6: bool, P: Packet>(
    packet: P,
    ip: &Ip,
    transport: &Transport,
    addr: &Addr,
    port: Be16,
) -> Result<(), Broken> {
    let offset = ETH_LEN + if V6 { 8 } else { 12 };
    rewrite::<V6, P>(packet, transport, offset, &ip.src, addr)?;
    rewrite_port(packet, transport, 0, transport.sport, port)
}

#[inline(always)]
fn rewrite<const V6: bool, P: Packet>(
    packet: P,
    transport: &Transport,
    offset: u32,
    from: &Addr,
    to: &Addr,
) -> Result<(), Broken> {
    csum::address_changes::<V6, P>(packet, transport, from, to)?;
    if V6 && transport.part == Part::Later {
        // Nothing in the packet makes up for the change.
        packet.replace(offset, &to.0)
    } else if V6 {
        packet.store(offset, &to.0)
    } else {
        packet.fix_ip_checksum(IPV4_CHECKSUM, from.v4(), to.v4())?;
        packet.store(offset, &to.v4())
    }
}

#[inline(always)]
fn rewrite_port<P: Packet>(
    packet: P,
    transport: &Transport,
    at: u32,
    from: Be16,
    to: Be16,
) -> Result<(), Broken> {
    if from == to || transport.part == Part::Later {
        return Ok(());
    }
    csum::port_changes(packet, transport, from, to)?;
    packet.store(transport.offset + at, &to.to_network())
}
