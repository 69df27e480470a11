//! Functions that the verifier looks at once, for any arguments, instead of anew wherever they are
//! called: global functions (Linux 5.6, with pointers 5.12). Without them a program would be looked
//! at for all combinations of what its parts decide.
//!
//! Arguments are the packet, numbers, and pointers to structures without padding, which such a
//! function has to compare with null. Results are numbers.

use aya_ebpf::bindings::__sk_buff;
use sluice_abi::{Counter, CtEntry, CtKey};

use crate::{
    DROP, PASS,
    ct::{self, Created, Origin},
    fastpath::{self, Route, Way},
    fragment::{self, Ports},
    icmp, icmp_error,
    lb::Pick,
    nat::{self, Rewrite},
    packet::Skb,
    parse::{Ip, Transport},
    path, reject,
    service::{self, Chosen, Decision, Place},
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
            $body as u32
        }

        $(#[$doc])*
        #[inline(always)]
        fn $front($($arg: global!(@safe $kind $ty)),*) -> $out {
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

global!(create4 = sluice_create4(packet: packet (), ip: shared Ip, transport: shared Transport, pick: shared Pick, origin: number Origin) -> Created, else Created::Full,
    ct::create::<false, _>(packet, ip, transport, pick, origin));
global!(create6 = sluice_create6(packet: packet (), ip: shared Ip, transport: shared Transport, pick: shared Pick, origin: number Origin) -> Created, else Created::Full,
    ct::create::<true, _>(packet, ip, transport, pick, origin));

/// [`ct::create`].
#[inline(always)]
pub fn create<const V6: bool>(
    packet: Skb,
    ip: &Ip,
    transport: &Transport,
    pick: &Pick,
    origin: Origin,
) -> Created {
    if V6 {
        create6(packet, ip, transport, pick, origin)
    } else {
        create4(packet, ip, transport, pick, origin)
    }
}

global!(claim_once = sluice_claim(reverse: shared CtKey, entry: shared CtEntry, now: wide u64) -> Created, else Created::Full,
    ct::claim(reverse, entry, now));

/// [`ct::claim`].
#[inline(always)]
pub fn claim(reverse: &CtKey, entry: &CtEntry, now: u64) -> Created {
    claim_once(reverse, entry, now)
}

global!(supersede_once = sluice_supersede(ip: shared Ip, transport: shared Transport) -> bool, else false,
    ct::supersede(ip, transport));

/// [`ct::supersede`].
#[inline(always)]
pub fn supersede(ip: &Ip, transport: &Transport) -> bool {
    supersede_once(ip, transport)
}

global!(choose_once = sluice_choose(ip: shared Ip, transport: shared Transport, origin: number Origin, pick: changed Pick) -> Chosen, else Chosen::Missing,
    service::choose(ip, transport, origin, pick));

/// [`service::choose`].
#[inline(always)]
pub fn choose(ip: &Ip, transport: &Transport, origin: Origin, pick: &mut Pick) -> Chosen {
    choose_once(ip, transport, origin, pick)
}

global!(select_once = sluice_select(ip: shared Ip, transport: shared Transport, pick: changed Pick) -> Chosen, else Chosen::Missing,
    service::select(ip, transport, pick));

/// [`service::select`].
#[inline(always)]
pub fn select(ip: &Ip, transport: &Transport, pick: &mut Pick) -> Chosen {
    select_once(ip, transport, pick)
}

global!(answer_once = sluice_answer(ip: shared Ip, transport: shared Transport, place: number Place, to: changed Rewrite) -> Decision, else Decision::Leave,
    service::answer(ip, transport, place, to));

/// [`service::answer`].
#[inline(always)]
pub fn answer(ip: &Ip, transport: &Transport, place: Place, to: &mut Rewrite) -> Decision {
    answer_once(ip, transport, place, to)
}

global!(apply4 = sluice_apply4(packet: packet (), ip: changed Ip, transport: changed Transport, to: shared Rewrite) -> bool, else false,
    nat::apply::<false, _>(packet, ip, transport, to).is_ok());
global!(apply6 = sluice_apply6(packet: packet (), ip: changed Ip, transport: changed Transport, to: shared Rewrite) -> bool, else false,
    nat::apply::<true, _>(packet, ip, transport, to).is_ok());

/// [`nat::apply`]; whether it could be done.
#[inline(always)]
pub fn apply<const V6: bool>(
    packet: Skb,
    ip: &mut Ip,
    transport: &mut Transport,
    to: &Rewrite,
) -> bool {
    if V6 { apply6(packet, ip, transport, to) } else { apply4(packet, ip, transport, to) }
}

global!(route4 = sluice_route4(packet: packet (), ip: shared Ip, transport: shared Transport, to: shared Rewrite, way: changed Way) -> Route, else Route::None,
    fastpath::route::<false>(packet, ip, transport, to, way));
global!(route6 = sluice_route6(packet: packet (), ip: shared Ip, transport: shared Transport, to: shared Rewrite, way: changed Way) -> Route, else Route::None,
    fastpath::route::<true>(packet, ip, transport, to, way));

/// [`fastpath::route`].
#[inline(always)]
pub fn route<const V6: bool>(
    packet: Skb,
    ip: &Ip,
    transport: &Transport,
    to: &Rewrite,
    way: &mut Way,
) -> Route {
    if V6 { route6(packet, ip, transport, to, way) } else { route4(packet, ip, transport, to, way) }
}

global!(onward4 = sluice_onward4(packet: packet (), ip: shared Ip) -> i32, else PASS,
    fastpath::onward::<false>(packet, ip));
global!(onward6 = sluice_onward6(packet: packet (), ip: shared Ip) -> i32, else PASS,
    fastpath::onward::<true>(packet, ip));

/// [`fastpath::onward`].
#[inline(always)]
pub fn onward<const V6: bool>(packet: Skb, ip: &Ip) -> i32 {
    if V6 { onward6(packet, ip) } else { onward4(packet, ip) }
}

global!(take4 = sluice_take4(packet: packet (), ip: changed Ip, transport: changed Transport, to: shared Rewrite, decision: number Decision) -> i32, else DROP,
    path::take::<false>(packet, ip, transport, to, decision));
global!(take6 = sluice_take6(packet: packet (), ip: changed Ip, transport: changed Transport, to: shared Rewrite, decision: number Decision) -> i32, else DROP,
    path::take::<true>(packet, ip, transport, to, decision));

/// [`path::take`].
#[inline(always)]
pub fn take<const V6: bool>(
    packet: Skb,
    ip: &mut Ip,
    transport: &mut Transport,
    to: &Rewrite,
    decision: Decision,
) -> i32 {
    if V6 {
        take6(packet, ip, transport, to, decision)
    } else {
        take4(packet, ip, transport, to, decision)
    }
}

global!(to_pod4 = sluice_to_pod4(packet: packet (), ip: shared Ip) -> i32, else PASS,
    fastpath::to_pod::<false>(packet, ip));
global!(to_pod6 = sluice_to_pod6(packet: packet (), ip: shared Ip) -> i32, else PASS,
    fastpath::to_pod::<true>(packet, ip));

/// [`fastpath::to_pod`].
#[inline(always)]
pub fn to_pod<const V6: bool>(packet: Skb, ip: &Ip) -> i32 {
    if V6 { to_pod6(packet, ip) } else { to_pod4(packet, ip) }
}

global!(transport4 = sluice_transport4(packet: packet (), ip: shared Ip, transport: changed Transport) -> Ports, else Ports::None,
    fragment::transport::<false, _>(packet, ip, transport));
global!(transport6 = sluice_transport6(packet: packet (), ip: shared Ip, transport: changed Transport) -> Ports, else Ports::None,
    fragment::transport::<true, _>(packet, ip, transport));

/// [`fragment::transport`].
#[inline(always)]
pub fn transport<const V6: bool>(packet: Skb, ip: &Ip, transport: &mut Transport) -> Ports {
    if V6 { transport6(packet, ip, transport) } else { transport4(packet, ip, transport) }
}

global!(is_cluster_ip_once = sluice_is_cluster_ip(ip: shared Ip) -> bool, else false,
    service::is_cluster_ip(ip));

/// [`service::is_cluster_ip`].
#[inline(always)]
pub fn is_cluster_ip(ip: &Ip) -> bool {
    is_cluster_ip_once(ip)
}

global!(icmp4 = sluice_icmp4(packet: packet (), ip: shared Ip, place: number Place, transport: changed Transport, to: changed Rewrite) -> Decision, else Decision::Leave,
    icmp::error::<false>(packet, ip, place, transport, to));
global!(icmp6 = sluice_icmp6(packet: packet (), ip: shared Ip, place: number Place, transport: changed Transport, to: changed Rewrite) -> Decision, else Decision::Leave,
    icmp::error::<true>(packet, ip, place, transport, to));

/// [`icmp::error`].
#[inline(always)]
pub fn icmp_error<const V6: bool>(
    packet: Skb,
    ip: &Ip,
    place: Place,
    transport: &mut Transport,
    to: &mut Rewrite,
) -> Decision {
    if V6 {
        icmp6(packet, ip, place, transport, to)
    } else {
        icmp4(packet, ip, place, transport, to)
    }
}

global!(reject4 = sluice_reject4(packet: packet (), ip: shared Ip) -> i32, else DROP,
    reject::answer::<false>(packet, ip));
global!(reject6 = sluice_reject6(packet: packet (), ip: shared Ip) -> i32, else DROP,
    reject::answer::<true>(packet, ip));

/// [`reject::answer`].
#[inline(always)]
pub fn reject<const V6: bool>(packet: Skb, ip: &Ip) -> i32 {
    if V6 { reject6(packet, ip) } else { reject4(packet, ip) }
}

global!(too_big4 = sluice_too_big4(packet: packet (), ip: shared Ip, mtu: number u32) -> i32, else DROP,
    icmp_error::send::<false>(packet, ip, icmp_error::packet_too_big(false, mtu), Counter::DropNoRoute));
global!(too_big6 = sluice_too_big6(packet: packet (), ip: shared Ip, mtu: number u32) -> i32, else DROP,
    icmp_error::send::<true>(packet, ip, icmp_error::packet_too_big(true, mtu), Counter::DropNoRoute));

/// Says to the sender that the packet is too big, see [`icmp_error::send`].
#[inline(always)]
pub fn too_big<const V6: bool>(packet: Skb, ip: &Ip, mtu: u32) -> i32 {
    if V6 { too_big6(packet, ip, mtu) } else { too_big4(packet, ip, mtu) }
}

global!(expired4 = sluice_expired4(packet: packet (), ip: shared Ip) -> i32, else DROP,
    icmp_error::send::<false>(packet, ip, icmp_error::time_exceeded(false), Counter::DropNoRoute));
global!(expired6 = sluice_expired6(packet: packet (), ip: shared Ip) -> i32, else DROP,
    icmp_error::send::<true>(packet, ip, icmp_error::time_exceeded(true), Counter::DropNoRoute));

/// Says to the sender that the packet has no hop left, see [`icmp_error::send`].
#[inline(always)]
pub fn expired<const V6: bool>(packet: Skb, ip: &Ip) -> i32 {
    if V6 { expired6(packet, ip) } else { expired4(packet, ip) }
}
