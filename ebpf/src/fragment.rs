//! Fragments: only the first one of a datagram has the ports, which the others find in a map.
//!
//! A fragment is translated like a whole packet, so that the datagram arrives whole at one backend;
//! where there is no transport header, only addresses change. The kernel sends the fragments of a
//! datagram in order. One that overtakes the first cannot be translated and is not held back.

use sluice_abi::{FragmentKey, FragmentPorts};

use crate::{
    maps::FRAGMENTS,
    node::{self, copy},
    packet::Packet,
    parse::{self, Ip, Part, Transport},
};

/// Whether the ports of a packet are known.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Ports {
    /// They are.
    Known,
    /// It has none that are understood, or is cut off.
    None,
    /// It is a fragment whose datagram is not known.
    Orphan,
}

#[inline(always)]
fn key(ip: &Ip, transport: &Transport) -> FragmentKey {
    let zero = node::zero() as u8;
    FragmentKey {
        src: copy(&ip.src),
        dst: copy(&ip.dst),
        id: transport.id,
        proto: transport.proto,
        reserved: [zero, zero, zero],
    }
}

/// Reads the transport header, or finds the ports that the first fragment had.
#[inline(always)]
pub fn transport<const V6: bool, P: Packet>(packet: P, ip: &Ip, out: &mut Transport) -> Ports {
    let Some(transport) = parse::transport::<V6, P>(packet, ip) else { return Ports::None };
    *out = transport;
    if transport.part == Part::Later && !find(ip, out) { Ports::Orphan } else { Ports::Known }
}

/// Fills in the ports that the first fragment had, if they are known.
#[inline(always)]
pub fn find(ip: &Ip, transport: &mut Transport) -> bool {
    // SAFETY: copied at once. Should the element have been reused meanwhile, the fragment goes
    // astray, as one that comes so late would anyway.
    match unsafe { FRAGMENTS.get(&key(ip, transport)).copied() } {
        Some(ports) => {
            transport.sport = ports.sport;
            transport.dport = ports.dport;
            true
        }
        None => false,
    }
}

/// Writes down the ports of a first fragment, for those that follow. Call it before the packet is
/// changed: they arrive as it did.
#[inline(always)]
pub fn remember(ip: &Ip, transport: &Transport) {
    if transport.part == Part::First {
        record(ip, transport);
    }
}

#[inline(always)]
fn record(ip: &Ip, transport: &Transport) {
    let ports = FragmentPorts { sport: transport.sport, dport: transport.dport };
    // Without room, the fragments that follow are orphans.
    let _ = FRAGMENTS.insert(&key(ip, transport), &ports, 0);
}
