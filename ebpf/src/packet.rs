//! Access to a packet's bytes, by what tc and XDP have in common.

use core::{arch::asm, mem::MaybeUninit};

use aya_ebpf::{
    bindings::{
        __sk_buff, BPF_F_CURRENT_NETNS, BPF_F_RECOMPUTE_CSUM, TC_ACT_REDIRECT, bpf_adj_room_mode,
        bpf_sock_tuple,
    },
    helpers::{
        bpf_l3_csum_replace, bpf_l4_csum_replace, bpf_redirect, bpf_sk_lookup_udp, bpf_sk_release,
        bpf_skb_adjust_room, bpf_skb_change_tail, bpf_skb_load_bytes, bpf_skb_pull_data,
        bpf_skb_store_bytes, bpf_skc_lookup_tcp,
    },
};
use sluice_abi::{CtKey, proto};

/// A change could not be made; the packet may be half changed.
pub struct Broken;

/// A packet. Offsets count from the Ethernet header.
///
/// Methods that change bytes invalidate pointers from [`Packet::head`].
pub trait Packet: Copy {
    /// The first `len` bytes, contiguous and writable, or `None` if the packet is shorter.
    fn head(self, len: u32) -> Option<Head>;

    /// Copies out a header of plain bytes. `None` beyond the packet's end.
    fn load<T: Header>(self, offset: u32) -> Option<T>;

    /// Overwrites bytes. Checksums are the caller's business.
    fn store<T: Header>(self, offset: u32, value: &T) -> Result<(), Broken>;

    /// Overwrites bytes behind the Ethernet header where no checksum in the packet makes up for the
    /// change. What the device summed up over the whole packet (`CHECKSUM_COMPLETE`) follows.
    fn replace<T: Header>(self, offset: u32, value: &T) -> Result<(), Broken>;

    /// Adapts the IPv4 header checksum at `offset` to a [`crate::csum::difference`].
    fn fix_ip_checksum(self, offset: u32, difference: u32) -> Result<(), Broken>;

    /// Adapts the checksum of TCP or UDP at `offset` to a [`crate::csum::difference`]; see
    /// `bpf_l4_csum_replace` for the flags.
    fn fix_transport_checksum(self, offset: u32, difference: u32, flags: u64)
    -> Result<(), Broken>;

    /// Whether a socket of that network namespace would take an answer with this key.
    fn meets_socket<const V6: bool>(self, answer: &CtKey, netns: Netns) -> bool;
}

/// A network namespace, as the kernel's socket lookups want it told.
#[derive(Clone, Copy)]
pub struct Netns(u64);

impl Netns {
    /// The one that the packet is in.
    pub const CURRENT: Self = Self(BPF_F_CURRENT_NETNS as i64 as u64);

    /// The one that the packet's has this number for.
    #[inline(always)]
    pub const fn number(number: u32) -> Self {
        // A negative number would be the current one.
        Self((number & i32::MAX as u32) as u64)
    }
}

/// A type that any bytes are a valid value of.
///
/// # Safety
///
/// `repr(C)` without padding, no invalid bit patterns.
pub unsafe trait Header: Copy {}

// SAFETY: every bit pattern is valid.
unsafe impl Header for u8 {}
// SAFETY: every bit pattern is valid.
unsafe impl Header for u16 {}
// SAFETY: every bit pattern is valid.
unsafe impl Header for u32 {}
// SAFETY: every bit pattern is valid.
unsafe impl Header for [u32; 2] {}
// SAFETY: every bit pattern is valid.
unsafe impl Header for [u32; 4] {}

/// The start of a packet, as far as its bounds were checked.
///
/// Words in a packet are not aligned as Rust wants them, and loads byte by byte cost four times the
/// instructions, so these are the machine's own loads and stores, which need no alignment.
#[derive(Clone, Copy)]
pub struct Head(*mut u8);

macro_rules! access {
    (load $load:ident, $ty:ty, $machine:literal) => {
        /// The value at `OFFSET`, as it stands in memory.
        #[inline(always)]
        pub fn $load<const OFFSET: i16>(self) -> $ty {
            let value: u64;
            // SAFETY: the verifier refuses the program unless the bounds were checked.
            unsafe {
                asm!(
                    concat!("{value} = *(", $machine, " *)({base} + {offset})"),
                    value = out(reg) value,
                    base = in(reg) self.0,
                    offset = const OFFSET,
                    options(readonly, nostack, preserves_flags),
                );
            }
            value as $ty
        }
    };
    (store $store:ident, $ty:ty, $machine:literal) => {
        /// Overwrites the value at `OFFSET`.
        #[inline(always)]
        pub fn $store<const OFFSET: i16>(self, value: $ty) {
            // SAFETY: the verifier refuses the program unless the bounds were checked.
            unsafe {
                asm!(
                    concat!("*(", $machine, " *)({base} + {offset}) = {value}"),
                    value = in(reg) u64::from(value),
                    base = in(reg) self.0,
                    offset = const OFFSET,
                    options(nostack, preserves_flags),
                );
            }
        }
    };
}

impl Head {
    access!(load u8, u8, "u8");
    access!(store set_u8, u8, "u8");
    access!(load u16, u16, "u16");
    access!(store set_u16, u16, "u16");
    access!(load u32, u32, "u32");
}

/// What one program of this node tells another of a packet, bits: in a field that belongs to traffic
/// control and is used by nobody else in between.
pub mod note {
    /// To the program at an uplink's egress: nothing is left to do.
    pub const DONE: u32 = 1;
    /// To the same: it comes from `bpf_redirect_neigh`.
    pub const ROUTED: u32 = 2;
    /// To the program at a pod's interface: policies have let it pass.
    pub const JUDGED: u32 = 4;
    /// The bits that are not ours, and tell that the others are.
    pub(super) const OURS: u32 = 0x51c8;
    pub(super) const BITS: u32 = DONE | ROUTED | JUDGED;
}

/// A packet at a tc hook.
#[derive(Clone, Copy)]
pub struct Skb(pub *mut __sk_buff);

impl Skb {
    /// The EtherType, in network byte order; of a packet with a VLAN tag, which nothing here
    /// handles, `None`.
    #[inline(always)]
    pub fn ethertype(self) -> Option<u16> {
        // SAFETY: the context is valid while the program runs.
        unsafe {
            if (*self.0).vlan_present != 0 {
                return None;
            }
            Some((*self.0).protocol as u16)
        }
    }

    /// Index of the interface that the packet is at.
    #[inline(always)]
    pub fn ifindex(self) -> u32 {
        // SAFETY: the context is valid while the program runs.
        unsafe { (*self.0).ifindex }
    }

    /// Payload bytes of the segments that the kernel will cut the packet into before it leaves; 0 if
    /// it is one as it is.
    #[inline(always)]
    pub fn segment_size(self) -> u32 {
        // SAFETY: the context is valid while the program runs.
        unsafe { (*self.0).gso_size }
    }

    /// The mark that somebody gave the packet, which rules for routes may ask for.
    #[inline(always)]
    pub fn mark(self) -> u32 {
        // SAFETY: the context is valid while the program runs.
        unsafe { (*self.0).mark }
    }

    /// Leaves [`note`]s for a program that sees the packet later; 0 takes away what there is.
    #[inline(always)]
    pub fn set_notes(self, notes: u32) {
        // SAFETY: the context is valid while the program runs.
        unsafe { (*self.0).tc_index = if notes == 0 { 0 } else { note::OURS | notes } };
    }

    /// The [`note`]s that a program left, or somebody who knows of them; 0 if there are none.
    #[inline(always)]
    pub fn notes(self) -> u32 {
        // SAFETY: the context is valid while the program runs.
        let value = unsafe { (*self.0).tc_index };
        if value & !note::BITS == note::OURS { value & note::BITS } else { 0 }
    }

    /// Takes away what somebody else may have written there.
    #[inline(always)]
    pub fn forget_notes(self) {
        if self.notes() != 0 {
            self.set_notes(0);
        }
    }

    /// Notes the interface of the pod that the packet is handed to, 0 for none, in a field that is the
    /// program's own while it runs: a place on the stack is dearer.
    #[inline(always)]
    pub fn set_receiver(self, ifindex: u32) {
        // SAFETY: the context is valid while the program runs.
        unsafe { (*self.0).cb[0] = ifindex };
    }

    /// See [`Skb::set_receiver`].
    #[inline(always)]
    pub fn receiver(self) -> u32 {
        // SAFETY: the context is valid while the program runs.
        unsafe { (*self.0).cb[0] }
    }

    /// Index of the interface that the packet came in by; 0 if it is the node's own.
    #[inline(always)]
    pub fn ingress_ifindex(self) -> u32 {
        // SAFETY: the context is valid while the program runs.
        unsafe { (*self.0).ingress_ifindex }
    }

    #[inline(always)]
    fn linear(self, len: u32) -> Option<Head> {
        // SAFETY: the context is valid while the program runs.
        let (data, end) = unsafe { ((*self.0).data as usize, (*self.0).data_end as usize) };
        if data + len as usize > end { None } else { Some(Head(data as *mut u8)) }
    }

    /// Bytes of the packet, its Ethernet header included.
    #[inline(always)]
    pub fn len(self) -> u32 {
        // SAFETY: the context is valid while the program runs.
        unsafe { (*self.0).len }
    }

    /// Whether the frame was sent to this host, and to no other.
    #[inline(always)]
    pub fn is_to_this_host(self) -> bool {
        // `linux/if_packet.h`.
        const PACKET_HOST: u32 = 0;
        // SAFETY: the context is valid while the program runs.
        unsafe { (*self.0).pkt_type == PACKET_HOST }
    }

    /// Whether the frame was sent to more than one host.
    #[inline(always)]
    pub fn is_to_many(self) -> bool {
        // `linux/if_packet.h`.
        const PACKET_BROADCAST: u32 = 1;
        const PACKET_MULTICAST: u32 = 2;
        // SAFETY: the context is valid while the program runs.
        matches!(unsafe { (*self.0).pkt_type }, PACKET_BROADCAST | PACKET_MULTICAST)
    }

    /// Whether the checksum at `offset` is still to be completed (`CHECKSUM_PARTIAL`): it holds the
    /// sum of the pseudo header alone, and whoever sends the packet on adds the rest.
    ///
    /// No field of the context tells; but of a change that is none of the pseudo header, the helper
    /// leaves such a checksum as it is.
    #[inline(always)]
    pub fn is_partial(self, offset: u32) -> bool {
        let Some(before) = self.load::<u16>(offset) else { return false };
        if self.fix_transport_checksum(offset, 1, 0).is_err() {
            return false;
        }
        if self.load::<u16>(offset) == Some(before) {
            return true;
        }
        let _ = self.store(offset, &before);
        false
    }

    /// Cuts the packet's end, or keeps its length; also makes it one that is no longer to be
    /// segmented.
    #[inline(always)]
    pub fn cut(self, len: u32) -> Result<(), Broken> {
        // SAFETY: the context is valid; the helper checks the length.
        if unsafe { bpf_skb_change_tail(self.0, len, 0) } == 0 { Ok(()) } else { Err(Broken) }
    }

    /// Makes room between the Ethernet and the IP header.
    #[inline(always)]
    pub fn make_room(self, len: u32) -> Result<(), Broken> {
        // SAFETY: the context is valid; the helper checks the length.
        let failed = unsafe {
            bpf_skb_adjust_room(self.0, len as i32, bpf_adj_room_mode::BPF_ADJ_ROOM_MAC, 0)
        };
        if failed == 0 { Ok(()) } else { Err(Broken) }
    }

    /// Takes bytes out that follow the fixed IP header.
    #[inline(always)]
    pub fn take_out(self, len: u32) -> Result<(), Broken> {
        // SAFETY: the context is valid; the helper checks the length.
        let failed = unsafe {
            bpf_skb_adjust_room(self.0, -(len as i32), bpf_adj_room_mode::BPF_ADJ_ROOM_NET, 0)
        };
        if failed == 0 { Ok(()) } else { Err(Broken) }
    }

    /// Sends the packet out of the interface that it came in by. The verdict.
    #[inline(always)]
    pub fn send_back(self) -> Option<i32> {
        self.set_notes(note::DONE);
        // SAFETY: the helper has no conditions.
        let verdict = unsafe { bpf_redirect(self.ifindex(), 0) } as i32;
        if verdict == TC_ACT_REDIRECT as i32 { Some(verdict) } else { None }
    }

    #[inline(always)]
    fn write<T: Header>(self, offset: u32, value: &T, flags: u64) -> Result<(), Broken> {
        // SAFETY: the pointer is to as many bytes as the size says.
        let failed = unsafe {
            bpf_skb_store_bytes(
                self.0,
                offset,
                core::ptr::from_ref(value).cast_mut().cast(),
                size_of::<T>() as u32,
                flags,
            )
        };
        if failed == 0 { Ok(()) } else { Err(Broken) }
    }
}

impl Packet for Skb {
    #[inline(always)]
    fn head(self, len: u32) -> Option<Head> {
        if let Some(head) = self.linear(len) {
            return Some(head);
        }
        // Its headers are not in one piece, or it is too short.
        // SAFETY: the context is valid; it fails where the packet is shorter.
        if unsafe { bpf_skb_pull_data(self.0, len) } != 0 {
            return None;
        }
        self.linear(len)
    }

    #[inline(always)]
    fn load<T: Header>(self, offset: u32) -> Option<T> {
        let mut value = MaybeUninit::<T>::uninit();
        // SAFETY: the pointer is to as many bytes as the size says.
        let failed = unsafe {
            bpf_skb_load_bytes(
                self.0.cast(),
                offset,
                value.as_mut_ptr().cast(),
                size_of::<T>() as u32,
            )
        };
        if failed != 0 {
            return None;
        }
        // SAFETY: all bytes were written, and any bytes are valid.
        Some(unsafe { value.assume_init() })
    }

    #[inline(always)]
    fn store<T: Header>(self, offset: u32, value: &T) -> Result<(), Broken> {
        self.write(offset, value, 0)
    }

    #[inline(always)]
    fn replace<T: Header>(self, offset: u32, value: &T) -> Result<(), Broken> {
        self.write(offset, value, u64::from(BPF_F_RECOMPUTE_CSUM))
    }

    #[inline(always)]
    fn fix_ip_checksum(self, offset: u32, difference: u32) -> Result<(), Broken> {
        // SAFETY: the context is valid; the helper checks the offset.
        let failed = unsafe { bpf_l3_csum_replace(self.0, offset, 0, u64::from(difference), 0) };
        if failed == 0 { Ok(()) } else { Err(Broken) }
    }

    #[inline(always)]
    fn fix_transport_checksum(
        self,
        offset: u32,
        difference: u32,
        flags: u64,
    ) -> Result<(), Broken> {
        // SAFETY: the context is valid; the helper checks the offset.
        let failed =
            unsafe { bpf_l4_csum_replace(self.0, offset, 0, u64::from(difference), flags) };
        if failed == 0 { Ok(()) } else { Err(Broken) }
    }

    #[inline(never)]
    fn meets_socket<const V6: bool>(self, answer: &CtKey, netns: Netns) -> bool {
        // `bpf_sock_tuple`: addresses, then ports; remote, then local.
        let [a, b] = answer.sport.to_network().to_ne_bytes();
        let [c, d] = answer.dport.to_network().to_ne_bytes();
        let ports = u32::from_ne_bytes([a, b, c, d]);
        let (mut tuple, len) = if V6 {
            let [a, b, c, d] = answer.src.0;
            let [e, f, g, h] = answer.dst.0;
            ([a, b, c, d, e, f, g, h, ports], 36)
        } else {
            let zero = crate::node::zero();
            let [src, dst] = [answer.src.v4(), answer.dst.v4()];
            ([src, dst, ports, zero, zero, zero, zero, zero, zero], 12)
        };
        let tuple: *mut bpf_sock_tuple = tuple.as_mut_ptr().cast();
        let netns = netns.0;
        // SAFETY: the tuple is as long as `len` says; what is found is given back at once.
        unsafe {
            let found = match answer.proto {
                proto::TCP => bpf_skc_lookup_tcp(self.0.cast(), tuple, len, netns, 0),
                proto::UDP => bpf_sk_lookup_udp(self.0.cast(), tuple, len, netns, 0),
                // The kernel has no such lookup for SCTP.
                _ => return false,
            };
            if found.is_null() {
                return false;
            }
            bpf_sk_release(found.cast());
        }
        true
    }
}
