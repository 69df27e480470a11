//! Functions that the verifier looks at once, for any arguments, instead of anew wherever they are
//! called: global functions (Linux 5.6, with pointers 5.12). Without them a program would be looked
//! at for all combinations of what its parts decide.
//!
//! Arguments are the packet, numbers, and pointers to structures without padding, which such a
//! function has to compare with null. Results are numbers.

use aya_ebpf::bindings::__sk_buff;
use sluice_abi::{Addr, Counter, CtEntry, CtKey};

use crate::{
    DROP, PASS,
    ct::{self, Created, Origin},
    fastpath::{self, Route, Way},
    fragment::{self, Ports},
    icmp, icmp_error,
    lb::Pick,
    nat::{self, Rewrite},
    packet::Skb,
    parse::{self, Ip, Transport},
    path,
    policy::{self, Case},
    reject,
    service::{self, Chosen, Decision, Place},
    uplink,
};

/// Defines a global function, and its safe front.
macro_rules! global {
    (
        $(#[$doc:meta])*
        $front:ident = $name:ident($($arg:ident: $kind:tt $ty:ty),*) -> $out:ty, else $else:expr, $body:expr
    ) => {
        #[inline(never)]
        #[unsafe(no_mangle)]
        extern "C" fn $name($($arg: global!(@raw $kind $ty)),*) -> u32 {
            $(let Some($arg) = global!(@check $kind $arg) else { return $else as u32 };)*
            let result: $out = $body;
            result as u32
        }

        $(#[$doc])*
        #[inline(always)]
        pub fn $front($($arg: global!(@safe $kind $ty)),*) -> $out {
            <$out>::from_code($name($(global!(@pass $kind $arg)),*))
        }
    };
    (@raw packet $ty:ty) => { *mut __sk_buff };
    (@raw number $ty:ty) => { u32 };
    (@raw wide $ty:ty) => { u64 };
    (@raw shared $ty:ty) => { *const $ty };
    (@raw changed $ty:ty) => { *mut $ty };
    (@check packet $arg:ident) => { Some(Skb($arg)) };
    (@check number $arg:ident) => { Some(<_>::from_code($arg)) };
    (@check wide $arg:ident) => { Some($arg) };
    // SAFETY: the fronts pass references; the verifier holds the function to the type's size.
    (@check shared $arg:ident) => { unsafe { $arg.as_ref() } };
    // SAFETY: as above.
    (@check changed $arg:ident) => { unsafe { $arg.as_mut() } };
    (@safe packet $ty:ty) => { Skb };
    (@safe number $ty:ty) => { $ty };
    (@safe wide $ty:ty) => { u64 };
    (@safe shared $ty:ty) => { &$ty };
    (@safe changed $ty:ty) => { &mut $ty };
    (@pass packet $arg:ident) => { $arg.0 };
    (@pass number $arg:ident) => { $arg as u32 };
    (@pass wide $arg:ident) => { $arg };
    (@pass shared $arg:ident) => { core::ptr::from_ref($arg) };
    (@pass changed $arg:ident) => { core::ptr::from_mut($arg) };
}

/// As [`global`], one function for each family, and one front for both. In the body, `V6` says which.
macro_rules! families {
    (
        $(#[$doc:meta])*
        $front:ident = $four:ident $name4:ident, $six:ident $name6:ident
        ($($arg:ident: $kind:tt $ty:ty),*) -> $out:ty, else $else:expr, $body:expr
    ) => {
        families!(@one false $four = $name4($($arg: $kind $ty),*) -> $out, else $else, $body);
        families!(@one true $six = $name6($($arg: $kind $ty),*) -> $out, else $else, $body);

        $(#[$doc])*
        #[inline(always)]
        pub fn $front<const SIX: bool>($($arg: global!(@safe $kind $ty)),*) -> $out {
            if SIX { $six($($arg),*) } else { $four($($arg),*) }
        }
    };
    (
        @one $v6:literal
        $front:ident = $name:ident($($arg:ident: $kind:tt $ty:ty),*) -> $out:ty, else $else:expr, $body:expr
    ) => {
        global!($front = $name($($arg: $kind $ty),*) -> $out, else $else, {
            const V6: bool = $v6;
            $body
        });
    };
}

/// A number that stands for a value.
pub trait Code {
    /// The value; of numbers that stand for none, the one that does the least harm.
    fn from_code(code: u32) -> Self;
}

impl Code for u32 {
    #[inline(always)]
    fn from_code(code: u32) -> Self {
        code
    }
}

impl Code for i32 {
    #[inline(always)]
    fn from_code(code: u32) -> Self {
        code as i32
    }
}

impl Code for bool {
    #[inline(always)]
    fn from_code(code: u32) -> Self {
        code != 0
    }
}

macro_rules! codes {
    ($ty:ty: $($variant:ident),*; $other:ident) => {
        impl Code for $ty {
            #[inline(always)]
            fn from_code(code: u32) -> Self {
                $(if code == Self::$variant as u32 {
                    return Self::$variant;
                })*
                Self::$other
            }
        }
    };
}

codes!(Created: Yes, Full, Clash; NoPort);
codes!(Origin: Pod, Outside; Masked);
codes!(Chosen: NotService, Kept, Backend, Empty, NoLocal, NotAdmitted; Missing);
codes!(Decision: Leave, Translate, Shortcut, Direct, Reject; Drop);
codes!(Ports: Known, Orphan; None);
codes!(Place: PodToPod, PodFast, Pod, AtPod, FromOutside; ToOutside);
codes!(Route: Found, Unresolved, TooBig; None);

families!(
    /// [`ct::create`].
    create = create4 sluice_create4, create6 sluice_create6
    (packet: packet (), ip: shared Ip, transport: shared Transport, pick: shared Pick, origin: number Origin) -> Created, else Created::Full,
    ct::create::<V6, _>(packet, ip, transport, pick, origin)
);
families!(
    /// [`parse::echo`].
    echo = echo4 sluice_echo4, echo6 sluice_echo6
    (packet: packet (), ip: shared Ip, transport: changed Transport) -> bool, else false,
    parse::echo::<V6, _>(packet, ip, transport)
);
global!(
    /// [`ct::claim`].
    claim = sluice_claim(reverse: shared CtKey, entry: shared CtEntry, now: wide u64) -> Created, else Created::Full,
    ct::claim(reverse, entry, now)
);
global!(
    /// [`ct::supersede`].
    supersede = sluice_supersede(ip: shared Ip, transport: shared Transport) -> bool, else false,
    ct::supersede(ip, transport)
);
global!(
    /// [`ct::take_back`]; `true` in any case.
    take_back = sluice_take_back(to: shared Rewrite, proto: number u32) -> bool, else true, {
        ct::take_back(to, proto);
        true
    }
);
global!(
    /// [`service::choose`].
    choose = sluice_choose(ip: shared Ip, transport: shared Transport, origin: number Origin, pick: changed Pick) -> Chosen, else Chosen::Missing,
    service::choose(ip, transport, origin, pick)
);
global!(
    /// [`service::direct`].
    direct = sluice_direct(ip: shared Ip, transport: shared Transport, pick: changed Pick) -> Chosen, else Chosen::Missing,
    service::direct(ip, transport, pick)
);
global!(
    /// [`service::select`].
    select = sluice_select(ip: shared Ip, transport: shared Transport, pick: changed Pick) -> Chosen, else Chosen::Missing,
    service::select(ip, transport, pick)
);
global!(
    /// [`service::answer`].
    answer = sluice_answer(ip: shared Ip, transport: shared Transport, place: number Place, to: changed Rewrite) -> Decision, else Decision::Leave,
    service::answer(ip, transport, place, to)
);
families!(
    /// [`nat::apply`]; whether it could be done.
    apply = apply4 sluice_apply4, apply6 sluice_apply6
    (packet: packet (), ip: changed Ip, transport: changed Transport, to: shared Rewrite) -> bool, else false,
    nat::apply::<V6, _>(packet, ip, transport, to).is_ok()
);
families!(
    /// [`fastpath::route`].
    route = route4 sluice_route4, route6 sluice_route6
    (packet: packet (), ip: shared Ip, transport: shared Transport, to: shared Rewrite, way: changed Way) -> Route, else Route::None,
    fastpath::route::<V6>(packet, ip, transport, to, way)
);
families!(
    /// [`fastpath::onward`].
    onward = onward4 sluice_onward4, onward6 sluice_onward6
    (packet: packet (), ip: shared Ip) -> i32, else PASS,
    fastpath::onward::<V6>(packet, ip)
);
families!(
    /// [`fastpath::again`].
    again = again4 sluice_again4, again6 sluice_again6
    (packet: packet ()) -> i32, else PASS,
    fastpath::again::<V6>(packet)
);
families!(
    /// [`path::take`].
    take = take4 sluice_take4, take6 sluice_take6
    (packet: packet (), ip: changed Ip, transport: changed Transport, to: shared Rewrite, decision: number Decision) -> i32, else DROP,
    path::take::<V6>(packet, ip, transport, to, decision)
);
families!(
    /// [`uplink::straight`].
    straight = straight4 sluice_straight4, straight6 sluice_straight6
    (packet: packet ()) -> i32, else PASS,
    uplink::straight::<V6>(packet)
);
families!(
    /// [`fastpath::to_pod`].
    to_pod = to_pod4 sluice_to_pod4, to_pod6 sluice_to_pod6
    (packet: packet (), ip: shared Ip) -> i32, else PASS,
    fastpath::to_pod::<V6>(packet, ip)
);
families!(
    /// [`fragment::transport`].
    transport = transport4 sluice_transport4, transport6 sluice_transport6
    (packet: packet (), ip: shared Ip, transport: changed Transport) -> Ports, else Ports::None,
    fragment::transport::<V6, _>(packet, ip, transport)
);
global!(
    /// [`service::is_cluster_ip`].
    is_cluster_ip = sluice_is_cluster_ip(ip: shared Ip) -> bool, else false,
    service::is_cluster_ip(ip)
);
families!(
    /// [`icmp::error`].
    icmp_error = icmp4 sluice_icmp4, icmp6 sluice_icmp6
    (packet: packet (), ip: shared Ip, place: number Place, transport: changed Transport, to: changed Rewrite) -> Decision, else Decision::Leave,
    icmp::error::<V6>(packet, ip, place, transport, to)
);
families!(
    /// [`policy::read`].
    read = read4 sluice_read4, read6 sluice_read6
    (packet: packet (), ip: shared Ip, transport: shared Transport, case: changed Case) -> u32, else 0,
    policy::read::<V6>(packet, ip, transport, case)
);
families!(
    /// [`policy::is_related`].
    is_related = is_related4 sluice_is_related4, is_related6 sluice_is_related6
    (packet: packet (), ip: shared Ip, at: number u32) -> bool, else false,
    policy::is_related::<V6>(packet, ip, at)
);
global!(
    /// [`policy::judge`].
    judge = sluice_judge(ip: shared Ip, to: shared Rewrite, case: shared Case) -> bool, else false,
    policy::judge(ip, to, case)
);
global!(
    /// [`policy::allows`].
    allows = sluice_allows(set: number u32, peer: shared Addr, wanted: number u32) -> bool, else false,
    policy::allows(set, peer, wanted)
);
families!(
    /// [`reject::answer`].
    reject = reject4 sluice_reject4, reject6 sluice_reject6
    (packet: packet (), ip: shared Ip) -> i32, else DROP,
    reject::answer::<V6>(packet, ip)
);
families!(
    /// Says to the sender that the packet is too big, see [`icmp_error::send`].
    too_big = too_big4 sluice_too_big4, too_big6 sluice_too_big6
    (packet: packet (), ip: shared Ip, mtu: number u32) -> i32, else DROP,
    icmp_error::send::<V6>(packet, ip, icmp_error::packet_too_big(V6, mtu), Counter::DropNoRoute)
);
families!(
    /// Says to the sender that the packet has no hop left, see [`icmp_error::send`].
    expired = expired4 sluice_expired4, expired6 sluice_expired6
    (packet: packet (), ip: shared Ip) -> i32, else DROP,
    icmp_error::send::<V6>(packet, ip, icmp_error::time_exceeded(V6), Counter::DropNoRoute)
);
