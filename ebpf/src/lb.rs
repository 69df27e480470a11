//! Choice of a backend. Knows nothing of packets or sockets.

use core::ptr;

use aya_ebpf::helpers::bpf_get_prandom_u32;
use sluice_abi::{
    Addr, Backend, BackendFlags, Be16, Frontend, FrontendFlags, FrontendKey, SLOTS_PER_CHUNK, SlotKey,
    vip_filter_bit,
};

use crate::node;
use crate::maps::{BACKENDS, FRONTENDS, SLOTS, VIP_FILTER};

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

/// Chooses a backend at random.
///
/// Everything that was read is right if the frontend is the same afterwards as before: a list is
/// never changed once a frontend names it, and neither it nor its backends are deleted before the
/// frontend names another. So a frontend that was switched meanwhile, or a map element that was
/// deleted and reused for another key while this program was preempted, shows in a second look at
/// the frontend, and the choice is made anew.
#[inline(always)]
pub fn select(key: &FrontendKey) -> Choice {
    for _ in 0..ATTEMPTS {
        let Some(found) = frontend(key) else { return Choice::NotService };
        if found.count == 0 {
            return Choice::Empty;
        }
        // SAFETY: the helper has no conditions.
        let random = unsafe { bpf_get_prandom_u32() };
        let slot = ((u64::from(random) * u64::from(found.count)) >> 32) as u32;
        let slot_key = SlotKey { list: found.list, chunk: slot / SLOTS_PER_CHUNK };
        // SAFETY: one word is read; the second look at the frontend proves it right.
        let Some(slots) = (unsafe { SLOTS.get(&slot_key) }) else { continue };
        let number = slots.backend[(slot % SLOTS_PER_CHUNK) as usize];
        // SAFETY: copied at once; the second look at the frontend proves it right.
        let Some(backend) = (unsafe { BACKENDS.get(&number).copied() }) else { continue };
        match frontend(key) {
            Some(still) if still.list == found.list && still.service == found.service => {
                return Choice::Picked(Pick { frontend: found, number, backend });
            }
            _ => {}
        }
    }
    Choice::Missing
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
