//! Choice of a backend. Knows nothing of packets or sockets.

use core::ptr;

use aya_ebpf::{
    btf_maps::lpm_trie::Key,
    helpers::{bpf_get_prandom_u32, bpf_ktime_get_coarse_ns},
};
use sluice_abi::{
    Addr, Affinity, AffinityKey, Backend, BackendFlags, Be16, Frontend, FrontendFlags, FrontendKey,
    SLOTS_PER_CHUNK, Scope, SlotKey, SourceRange, SourceRangeKey, vip_filter_bit,
};

use crate::{
    maps::{AFFINITY, BACKENDS, FRONTENDS, SLOTS, SOURCE_RANGES, VIP_FILTER},
    node,
};

/// How often a choice is made anew when the list was switched meanwhile.
const ATTEMPTS: u32 = 3;

/// Chunks that [`contains`] looks through: lists of up to 1,024 backends.
const MAX_CHUNKS: u32 = 64;

/// Whether the address may be a service's. `false` is certain.
#[inline(always)]
pub fn may_be_service(addr: &Addr) -> bool {
    let bit = vip_filter_bit(addr);
    match VIP_FILTER.get_ptr(bit / 64) {
        // SAFETY: elements of an array exist as long as the map, and are words.
        Some(word) => unsafe { ptr::read_volatile(word) & (1 << (bit % 64)) != 0 },
        None => false,
    }
}

/// The frontend under the key.
#[inline(always)]
pub fn frontend(key: &FrontendKey) -> Option<Frontend> {
    // SAFETY: the value is copied at once. It may be another frontend's if the element was reused
    // meanwhile; `select` looks twice, `contains` only ever says no wrongly.
    unsafe { FRONTENDS.get(key).copied() }
}

/// Whether what is no frontend at this address is rejected: it is a ClusterIP, and has no such port.
#[inline(always)]
pub fn rejects_other_ports(addr: &Addr) -> bool {
    let addr = Addr([addr.0[0], addr.0[1], addr.0[2], addr.0[3]]);
    let key = FrontendKey { addr, port: Be16::new(0), proto: 0, scope: Scope::Internal as u8 };
    frontend(&key).is_some_and(|found| found.flags & FrontendFlags::ANY_PORT != 0)
}

/// Whether the frontend, which has [`FrontendFlags::SOURCE_RANGES`], admits the client.
#[inline(always)]
pub fn admits(frontend: &Frontend, client: &Addr) -> bool {
    let key = SourceRangeKey {
        prefix_len: 8 * size_of::<SourceRange>() as u32,
        service: frontend.service,
        addr: node::copy(client),
    };
    // SAFETY: the same fields, without padding, and no alignment is asked for.
    let key: &Key<SourceRange> = unsafe { &*(&raw const key).cast() };
    SOURCE_RANGES.get(key).is_some()
}

/// A backend that was chosen.
#[repr(C)]
pub struct Pick {
    /// The frontend it was chosen for.
    pub frontend: Frontend,
    /// Its number.
    pub number: u32,
    /// Its address and port.
    pub backend: Backend,
}

impl Pick {
    /// No backend of no service.
    #[inline(always)]
    pub fn none() -> Self {
        let zero = node::zero();
        Self {
            frontend: Frontend {
                service: zero,
                list: zero,
                count: zero,
                flags: zero,
                affinity_secs: zero,
            },
            number: zero,
            backend: Backend { addr: node::no_addr(), port: Be16::new(0), proto: 0, flags: 0 },
        }
    }

    /// Whether the tables say that it is on this node.
    #[inline(always)]
    pub const fn is_local(&self) -> bool {
        self.backend.flags & BackendFlags::LOCAL != 0
    }

    /// Whether it is to see the client's own address in any case.
    #[inline(always)]
    pub const fn keeps_client(&self) -> bool {
        self.frontend.flags & FrontendFlags::LOCAL_ONLY != 0
    }
}

/// Who asks: services with session affinity tell clients apart by it.
#[derive(Clone, Copy)]
pub struct Client {
    /// The client's address; of a socket, its network namespace's cookie: see
    /// [`AffinityKey::client`].
    pub id: Addr,
    /// [`AffinityKey::COOKIE`] or 0.
    pub flags: u32,
}

impl Client {
    /// A client that is known by what its packets come from.
    #[inline(always)]
    pub const fn address(addr: &Addr) -> Self {
        Self { id: Addr([addr.0[0], addr.0[1], addr.0[2], addr.0[3]]), flags: 0 }
    }

    /// The sockets of a network namespace.
    #[inline(always)]
    pub const fn namespace(cookie: u64) -> Self {
        let AffinityKey { client, flags, .. } = AffinityKey::of_namespace(cookie, 0);
        Self { id: client, flags }
    }
}

/// What [`select`] found.
pub enum Choice {
    /// No service is at this address, port and protocol.
    NotService,
    /// The service has no backend.
    Empty,
    /// The list or the backend is not there, after several looks.
    Missing,
    /// The backend to go to.
    Picked(Pick),
}

/// Chooses a backend at random; with session affinity, the one that the client had.
///
/// Everything that was read is right if the frontend is the same afterwards as before: a list is
/// never changed once a frontend names it, and neither it nor its backends are deleted before the
/// frontend names another. So a frontend that was switched meanwhile, or a map element that was
/// deleted and reused for another key while this program was preempted, shows in a second look at
/// the frontend, and the choice is made anew.
#[inline(always)]
pub fn select(key: &FrontendKey, client: &Client) -> Choice {
    select_by(key, || *client)
}

/// As [`select`], for callers who find out who the client is only where that matters.
#[inline(always)]
pub fn select_by(key: &FrontendKey, client: impl Fn() -> Client) -> Choice {
    for attempt in 0..ATTEMPTS {
        let Some(found) = frontend(key) else { return Choice::NotService };
        if found.count == 0 {
            return Choice::Empty;
        }
        // What the client had is asked for once: should it be gone, any other will do.
        let had = if found.affinity_secs != 0 && attempt == 0 {
            affinity_of(&affinity_key(key, &found, &client()), &found)
        } else {
            None
        };
        let number = match had {
            Some(number) => number,
            None => match random(&found) {
                Some(number) => number,
                None => continue,
            },
        };
        // SAFETY: copied at once; the second look at the frontend proves it right.
        let Some(backend) = (unsafe { BACKENDS.get(&number).copied() }) else { continue };
        match frontend(key) {
            Some(still) if still.list == found.list && still.service == found.service => {
                if found.affinity_secs != 0 {
                    attach(&affinity_key(key, &found, &client()), number, found.list);
                }
                return Choice::Picked(Pick { frontend: found, number, backend });
            }
            _ => {}
        }
    }
    Choice::Missing
}

/// Any backend of the list; `None` where the list is not there any more.
#[inline(always)]
fn random(frontend: &Frontend) -> Option<u32> {
    // SAFETY: the helper has no conditions.
    let random = unsafe { bpf_get_prandom_u32() };
    let slot = ((u64::from(random) * u64::from(frontend.count)) >> 32) as u32;
    let slot_key = SlotKey { list: frontend.list, chunk: slot / SLOTS_PER_CHUNK };
    // SAFETY: one word is read; the second look at the frontend proves it right.
    let slots = unsafe { SLOTS.get(&slot_key) }?;
    Some(slots.backend[(slot % SLOTS_PER_CHUNK) as usize])
}

#[inline(always)]
fn affinity_key(key: &FrontendKey, frontend: &Frontend, client: &Client) -> AffinityKey {
    // The families of a service have lists of their own.
    let family = if key.addr.is_v4() { 0 } else { AffinityKey::V6 };
    AffinityKey { client: client.id, service: frontend.service, flags: client.flags | family }
}

/// The backend that the client had, if that is not too long ago and the list still has it.
#[inline(never)]
fn affinity_of(key: &AffinityKey, frontend: &Frontend) -> Option<u32> {
    // SAFETY: copied at once. Should the element have been reused meanwhile, it is another client's
    // backend, and the list is asked for it all the same.
    let had = unsafe { AFFINITY.get(key).copied() }?;
    // SAFETY: the helper has no conditions.
    let age = unsafe { bpf_ktime_get_coarse_ns() }.wrapping_sub(had.last_used);
    let young = age < u64::from(frontend.affinity_secs) * 1_000_000_000;
    (young && keeps(frontend, had.backend, had.list)).then_some(had.backend)
}

/// Writes down which backend the client has from now on.
#[inline(never)]
fn attach(key: &AffinityKey, backend: u32, list: u32) {
    // SAFETY: the helper has no conditions.
    let last_used = unsafe { bpf_ktime_get_coarse_ns() };
    // The map evicts where it is full; with no memory at all, the next connection chooses anew.
    let _ = AFFINITY.insert(key, &Affinity { last_used, backend, list }, 0);
}

/// Whether a flow that was sent to this backend when the frontend named the list `seen` may stay
/// with it.
#[inline(always)]
pub fn keeps(frontend: &Frontend, backend: u32, seen: u32) -> bool {
    frontend.count != 0
        && (frontend.list == seen || contains(frontend.list, frontend.count, backend))
}

/// Whether the list holds the backend. Of a list too long to look through, this says whether the
/// backend exists at all.
#[inline(never)]
fn contains(list: u32, count: u32, backend: u32) -> bool {
    let chunks = count.div_ceil(SLOTS_PER_CHUNK);
    for chunk in 0..MAX_CHUNKS {
        if chunk >= chunks {
            return false;
        }
        // SAFETY: the numbers are compared only.
        let Some(slots) = (unsafe { SLOTS.get(&SlotKey { list, chunk }) }) else { return false };
        for number in &slots.backend {
            if *number == backend {
                return true;
            }
        }
    }
    // SAFETY: the value is not read.
    unsafe { BACKENDS.get(&backend).is_some() }
}
