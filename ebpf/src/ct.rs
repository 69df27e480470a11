//! Flows that are translated packet by packet.

use core::ptr;

use aya_ebpf::{bindings::BPF_NOEXIST, helpers::bpf_ktime_get_coarse_ns};
use sluice_abi::{Addr, Be16, CtEntry, CtFlags, CtKey};

use crate::{
    lb::Pick,
    maps::CONNTRACK,
    parse::{Ip, Transport, tcp},
};

/// How old a flow's last packet may get before it is written down anew. Less often, and the entry's
/// cache line stays shared between the CPUs that read it.
const TOUCH_NS: u64 = 1_000_000_000;

/// A flow that was silent for so long gives way to another with the same addresses: a pod that was
/// killed says no goodbye.
const IDLE_NS: u64 = 60_000_000_000;

const EEXIST: i32 = -17;

/// Why a flow has no entry.
pub enum Refused {
    /// The map has no room even after it evicted.
    Full,
    /// At the backend, the flow would be the same as another one.
    Clash,
}

/// Which way a packet goes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// From the client to the service.
    Client,
    /// From the backend to the client.
    Backend,
}

/// Now, as the entries tell time: to the tick, which is exact enough and far cheaper.
#[inline(always)]
pub fn now() -> u64 {
    // SAFETY: the helper has no conditions.
    unsafe { bpf_ktime_get_coarse_ns() }
}

/// The key of the packet as it stands.
#[inline(always)]
pub fn key(ip: &Ip, transport: &Transport, side: Side) -> CtKey {
    CtKey {
        src: ip.src,
        dst: ip.dst,
        sport: transport.sport,
        dport: transport.dport,
        proto: transport.proto,
        flags: if side == Side::Backend { CtFlags::REVERSE } else { 0 },
        reserved: 0,
    }
}

/// The key of the answers that a backend gives to the client of `forward`.
#[inline(always)]
fn answers(forward: &CtKey, addr: &Addr, port: Be16) -> CtKey {
    CtKey {
        // Word by word: a copy of the whole would become a call of memmove.
        src: Addr([addr.0[0], addr.0[1], addr.0[2], addr.0[3]]),
        dst: forward.src,
        sport: port,
        dport: forward.sport,
        proto: forward.proto,
        flags: CtFlags::REVERSE,
        reserved: 0,
    }
}

/// The entry under the key.
///
/// It is used at once, and a lookup marks it as used lately, so that it is not evicted meanwhile.
#[inline(always)]
pub fn find(key: &CtKey) -> Option<&'static mut CtEntry> {
    // SAFETY: valid until this program ends, see above. Other CPUs may write the fields that
    // `note` writes: words of their own, of which either value will do.
    unsafe { CONNTRACK.get_ptr_mut(key).and_then(|entry| entry.as_mut()) }
}

/// Writes down that a packet was seen, where it says something new.
#[inline(always)]
pub fn note(entry: &mut CtEntry, side: Side, flags: u8, now: u64) {
    let (fin, also) = match side {
        Side::Client => (CtFlags::FIN_CLIENT, 0),
        Side::Backend => (CtFlags::FIN_BACKEND, CtFlags::REPLIED),
    };
    let mut seen = entry.flags | also;
    if flags & tcp::FIN != 0 {
        seen |= fin;
    }
    if flags & tcp::RST != 0 {
        seen |= CtFlags::RST;
    }
    let entry = ptr::from_mut(entry);
    // SAFETY: the pointer comes from a reference; volatile, since other CPUs write too.
    unsafe {
        if ptr::read_volatile(&raw const (*entry).flags) != seen {
            ptr::write_volatile(&raw mut (*entry).flags, seen);
        }
        if now.wrapping_sub(ptr::read_volatile(&raw const (*entry).last_seen)) >= TOUCH_NS {
            ptr::write_volatile(&raw mut (*entry).last_seen, now);
        }
    }
}

/// The key of what the client of `reverse` sends.
#[inline(always)]
fn requests(reverse: &CtKey, entry: &CtEntry) -> CtKey {
    CtKey {
        src: reverse.dst,
        // Word by word, as in `answers`.
        dst: Addr([entry.addr.0[0], entry.addr.0[1], entry.addr.0[2], entry.addr.0[3]]),
        sport: reverse.dport,
        dport: entry.port,
        proto: reverse.proto,
        flags: 0,
        reserved: 0,
    }
}

/// Whether a TCP connection with these flags has ended.
#[inline(always)]
const fn is_closed(flags: u16) -> bool {
    const BOTH: u16 = CtFlags::FIN_CLIENT | CtFlags::FIN_BACKEND;
    flags & CtFlags::RST != 0 || flags & BOTH == BOTH
}

/// Whether the flow has ended, so that a SYN begins another one. The two entries know of a FIN each.
#[inline(always)]
pub fn has_ended(forward: &CtKey, entry: &CtEntry) -> bool {
    match find(&answers(forward, &entry.addr, entry.port)) {
        Some(reverse) => is_closed(entry.flags | reverse.flags),
        // Evicted: answers could not find the client any more.
        None => true,
    }
}

/// Whether the flow of a reverse entry may give way to another with the same addresses and ports at
/// the backend.
#[inline(always)]
fn gives_way(reverse: &CtKey, entry: &CtEntry, now: u64) -> bool {
    let Some(forward) = find(&requests(reverse, entry)) else { return true };
    is_closed(entry.flags | forward.flags)
        || (now.wrapping_sub(entry.last_seen) >= IDLE_NS
            && now.wrapping_sub(forward.last_seen) >= IDLE_NS)
}

/// A connection that is not translated begins. If it is, at the backend, the same as one that was
/// translated and is over, that one is forgotten, or else the answers would seem to come from the
/// service.
#[inline(always)]
pub fn supersede(ip: &Ip, transport: &Transport, now: u64) {
    let reverse = CtKey {
        src: ip.dst,
        dst: ip.src,
        sport: transport.dport,
        dport: transport.sport,
        proto: transport.proto,
        flags: CtFlags::REVERSE,
        reserved: 0,
    };
    let Some(entry) = find(&reverse) else { return };
    if gives_way(&reverse, entry, now) {
        let _ = CONNTRACK.remove(&requests(&reverse, entry));
        let _ = CONNTRACK.remove(&reverse);
    }
}

/// Forgets the answers of the backend that the flow had, before it gets another.
#[inline(always)]
pub fn forget_answers(forward: &CtKey, entry: &CtEntry) {
    let _ = CONNTRACK.remove(&answers(forward, &entry.addr, entry.port));
}

/// Makes the two entries of a flow: the reverse one first, so that no answer comes before it.
#[inline(always)]
pub fn create(forward: &CtKey, pick: &Pick, now: u64) -> Result<(), Refused> {
    let reverse = answers(forward, &pick.backend.addr, pick.backend.port);
    let mut entry = CtEntry {
        last_seen: now,
        addr: forward.dst,
        port: forward.dport,
        flags: 0,
        service: pick.frontend.service,
        backend: pick.number,
        list: pick.frontend.list,
        nat_addr: Addr([0; 4]),
        nat_port: Be16::new(0),
        reserved: 0,
        reserved2: 0,
    };
    match CONNTRACK.insert(&reverse, &entry, u64::from(BPF_NOEXIST)) {
        Ok(()) => {}
        Err(EEXIST) => {
            if let Some(other) = find(&reverse) {
                let same = other.addr == forward.dst && other.port == forward.dport;
                if !same && !gives_way(&reverse, other, now) {
                    return Err(Refused::Clash);
                }
            }
            CONNTRACK.insert(&reverse, &entry, 0).map_err(|_| Refused::Full)?;
        }
        Err(_) => return Err(Refused::Full),
    }
    entry.addr = pick.backend.addr;
    entry.port = pick.backend.port;
    if CONNTRACK.insert(forward, &entry, 0).is_err() {
        let _ = CONNTRACK.remove(&reverse);
        return Err(Refused::Full);
    }
    Ok(())
}
