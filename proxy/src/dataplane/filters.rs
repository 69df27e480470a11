//! Programs as filters of the clsact queueing discipline, which live as long as the interface.
//!
//! The two requests of an interface go out in one write. No interface is looked up by name, and
//! nothing waits for a grace period of the kernel, as attaching by TCX does.

use std::os::fd::{AsRawFd as _, BorrowedFd};

use nix::errno::Errno;
use rtnetlink::packet_core::{DefaultNla, NLM_F_CREATE, NLM_F_EXCL};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::tc::{TcAttribute, TcHandle, TcMessage};
use sluice_netlink::{Netlink, NetlinkError, Request};

use super::links::Done;

/// Priority and handle of our filters, so that a restart finds them.
const PRIORITY: u32 = 1;
const HANDLE: TcHandle = TcHandle { major: 0, minor: 0x51 };
/// `ETH_P_ALL`.
const ALL_PROTOCOLS: u16 = 0x0003;

/// `TCA_OPTIONS`, and what a filter that is a program has in it.
const OPTIONS: u16 = 2;
const FD: u16 = 6;
const NAME: u16 = 7;
const FLAGS: u16 = 8;
/// `TCA_BPF_FLAG_ACT_DIRECT`: the program's answer is the verdict.
const DIRECT: u32 = 1;

/// Which way a packet goes at the interface.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Direction {
    /// The interface receives it.
    Ingress,
    /// The interface sends it.
    Egress,
}

impl Direction {
    fn parent(self) -> TcHandle {
        let minor = match self {
            Self::Ingress => TcHandle::MIN_INGRESS,
            Self::Egress => TcHandle::MIN_EGRESS,
        };
        TcHandle { major: u16::MAX, minor }
    }
}

/// Why programs could not be attached.
#[derive(Debug, thiserror::Error)]
pub(super) enum FilterError {
    /// What the interface receives goes through another's queueing discipline.
    #[error("another's ingress queueing discipline is in the place of clsact")]
    Occupied,
    /// The kernel refuses.
    #[error("{call}: {source}")]
    Kernel {
        /// The failing call.
        call: String,
        /// Its answer.
        source: NetlinkError,
    },
}

/// Attaches programs to an interface, or replaces those that hang there already.
pub(super) fn attach(
    ifindex: u32,
    programs: [(&str, Direction, BorrowedFd<'_>); 2],
) -> Result<Done, FilterError> {
    let mut netlink = open()?;
    let clsact = message(
        ifindex,
        TcHandle { major: u16::MAX, minor: 0 },
        TcHandle::CLSACT,
        0,
        [TcAttribute::Kind("clsact".to_owned())],
    );
    // Not `NLM_F_EXCL`: one that is there will do. One of another kind in its place is refused, and
    // no filter may be put there: both directions would see what is received.
    let clsact = Request {
        what: "add the clsact queueing discipline".to_owned(),
        flags: NLM_F_CREATE,
        message: RouteNetlinkMessage::NewQueueDiscipline(clsact),
    };
    netlink.run(std::slice::from_ref(&clsact)).map_err(|(_, source)| {
        if source.is(Errno::EINVAL) || source.is(Errno::EEXIST) {
            FilterError::Occupied
        } else {
            FilterError::Kernel { call: clsact.what, source }
        }
    })?;
    let add =
        |flags| programs.map(|(name, direction, fd)| filter(ifindex, name, direction, fd, flags));
    match netlink.run(&add(NLM_F_CREATE | NLM_F_EXCL)) {
        Ok(()) => Ok(Done::Attached),
        // Each is replaced at once: there is no moment without a program.
        Err((_, source)) if source.is(Errno::EEXIST) => {
            run(&mut netlink, &add(NLM_F_CREATE))?;
            Ok(Done::Replaced)
        }
        Err((place, source)) => Err(refused(&add(0), place, source)),
    }
}

/// Removes such a filter; says whether it was there.
pub(super) fn detach(ifindex: u32, direction: Direction) -> Result<bool, FilterError> {
    let none: [TcAttribute; 0] = [];
    let request = Request {
        what: format!("remove the filter ({direction:?})"),
        flags: 0,
        message: RouteNetlinkMessage::DelTrafficFilter(message(
            ifindex,
            HANDLE,
            direction.parent(),
            info(),
            none,
        )),
    };
    match run(&mut open()?, &[request]) {
        Ok(()) => Ok(true),
        // No interface, no such queueing discipline, no such filter.
        Err(FilterError::Kernel { source, .. })
            if [Errno::ENODEV, Errno::EINVAL, Errno::ENOENT].iter().any(|it| source.is(*it)) =>
        {
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

fn open() -> Result<Netlink, FilterError> {
    let call = "open netlink".to_owned();
    Netlink::open().map_err(|source| FilterError::Kernel { call, source })
}

fn run(netlink: &mut Netlink, requests: &[Request]) -> Result<(), FilterError> {
    netlink.run(requests).map_err(|(place, source)| refused(requests, place, source))
}

fn refused(requests: &[Request], place: usize, source: NetlinkError) -> FilterError {
    let call = requests.get(place).map_or_else(String::new, |request| request.what.clone());
    FilterError::Kernel { call, source }
}

fn filter(
    ifindex: u32,
    name: &str,
    direction: Direction,
    program: BorrowedFd<'_>,
    flags: u16,
) -> Request {
    let mut options = Vec::new();
    append(&mut options, FD, &program.as_raw_fd().to_ne_bytes());
    append(&mut options, NAME, &[name.as_bytes(), &[0]].concat());
    append(&mut options, FLAGS, &DIRECT.to_ne_bytes());
    let attributes = [
        TcAttribute::Kind("bpf".to_owned()),
        TcAttribute::Other(DefaultNla::new(OPTIONS, options)),
    ];
    Request {
        what: format!("add a filter ({direction:?})"),
        flags,
        message: RouteNetlinkMessage::NewTrafficFilter(message(
            ifindex,
            HANDLE,
            direction.parent(),
            info(),
            attributes,
        )),
    }
}

/// A filter's priority and protocol.
fn info() -> u32 {
    PRIORITY << 16 | u32::from(ALL_PROTOCOLS.to_be())
}

fn message(
    ifindex: u32,
    handle: TcHandle,
    parent: TcHandle,
    info: u32,
    attributes: impl IntoIterator<Item = TcAttribute>,
) -> TcMessage {
    let mut message = TcMessage::default();
    message.header.index = ifindex.cast_signed();
    message.header.handle = handle;
    message.header.parent = parent;
    message.header.info = info;
    message.attributes = attributes.into_iter().collect();
    message
}

/// Appends an attribute: length and kind, then the value, filled up to words.
fn append(bytes: &mut Vec<u8>, kind: u16, value: &[u8]) {
    // The longest is a program's name.
    let len = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
    bytes.extend(len.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}
