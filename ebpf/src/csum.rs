//! Checksums of TCP and UDP that follow a change of address or port.

use aya_ebpf::{
    bindings::{BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR},
    helpers::bpf_csum_diff,
};
use sluice_abi::{Addr, Be16, proto};

use crate::{
    packet::{Broken, Packet},
    parse::Transport,
};

/// Where the checksum stands in the packet, and how the helper is to treat it: UDP's 0 means that
/// there is none, and stays.
#[inline(always)]
fn field(transport: &Transport) -> (u32, u64) {
    if transport.proto == proto::UDP {
        (transport.offset + 6, u64::from(BPF_F_MARK_MANGLED_0))
    } else {
        (transport.offset + 16, 0)
    }
}

/// An address of the pseudo header changes.
#[inline(always)]
pub fn address_changes<const V6: bool, P: Packet>(
    packet: P,
    transport: &Transport,
    from: &Addr,
    to: &Addr,
) -> Result<(), Broken> {
    let (offset, flags) = field(transport);
    let flags = flags | u64::from(BPF_F_PSEUDO_HDR);
    if V6 {
        // SAFETY: both are 16 bytes.
        let difference = unsafe {
            bpf_csum_diff(from.0.as_ptr().cast_mut(), 16, to.0.as_ptr().cast_mut(), 16, 0)
        };
        packet.fix_transport_checksum(offset, 0, difference as u64, flags)
    } else {
        packet.fix_transport_checksum(offset, u64::from(from.v4()), u64::from(to.v4()), flags | 4)
    }
}

/// A port changes.
#[inline(always)]
pub fn port_changes<P: Packet>(
    packet: P,
    transport: &Transport,
    from: Be16,
    to: Be16,
) -> Result<(), Broken> {
    let (offset, flags) = field(transport);
    packet.fix_transport_checksum(
        offset,
        u64::from(from.to_network()),
        u64::from(to.to_network()),
        flags | 2,
    )
}
