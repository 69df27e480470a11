//! Notices when someone else changes routes, links or addresses.

use std::io;

use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{AsyncSocket as _, AsyncSocketExt as _, SocketAddr, TokioSocket};
use rtnetlink::Handle;
use rtnetlink::packet_core::NetlinkPayload;
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use tokio::task::JoinHandle;

use super::KernelRoute;
use super::kernel::{RouteError, Table, parse};

/// `RTMGRP_*` of `linux/rtnetlink.h`: links, addresses and routes of both families.
const GROUPS: u32 = LINK | IPV4_ADDRESS | IPV4_ROUTE | IPV6_ADDRESS | IPV6_ROUTE;
const LINK: u32 = 0x1;
const IPV4_ADDRESS: u32 = 0x10;
const IPV4_ROUTE: u32 = 0x40;
const IPV6_ADDRESS: u32 = 0x100;
const IPV6_ROUTE: u32 = 0x400;
/// What matters to a tunnel beside: neighbours with forwarding entries, and rules.
const TUNNEL_GROUPS: u32 = NEIGH | IPV4_RULE | IPV6_RULE;
const NEIGH: u32 = 0x4;
const IPV4_RULE: u32 = 0x80;
/// Of `RTNLGRP_IPV6_RULE`, which has no old name.
const IPV6_RULE: u32 = 1 << (19 - 1);

/// Room for a burst of a few thousand events.
const RECEIVE_BUFFER: usize = 1 << 20;

/// One thing that happened.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Event {
    /// A route of the main table appeared or was replaced.
    RouteSet(KernelRoute),
    /// A route of the main table went.
    RouteGone(KernelRoute),
    /// A link came, went, or changed. IPv4 routes go with a link that is down, without a word.
    Link {
        /// Its index.
        index: u32,
        /// Whether it is up.
        up: bool,
        /// Its name, where the event tells it.
        name: Option<String>,
    },
    /// An address came or went; next hops may have become reachable.
    Address,
    /// A route of the table of nodes appeared, was replaced, or went.
    NodeRoute,
    /// A neighbour or forwarding entry of an interface appeared, changed, or went.
    Neighbour {
        /// The interface's index.
        index: u32,
    },
    /// A rule came or went.
    Rule,
    /// Events were lost, or not understood: everything may have changed.
    Lost,
}

/// What a part of the agent needs to ask, to change and to notice. Ends with its owner.
pub(crate) struct Netlink {
    /// For questions and changes.
    pub(crate) handle: Handle,
    /// For events.
    pub(crate) watch: Watch,
    connection: JoinHandle<()>,
}

impl Netlink {
    /// Opens the sockets in the calling thread's network namespace, inside a runtime; `tunnel` says
    /// whether what matters to a tunnel is watched, too.
    pub(crate) fn open(tunnel: bool) -> Result<Self, RouteError> {
        // Before the first list, so that nothing is missed in between.
        let watch = Watch::open(if tunnel { GROUPS | TUNNEL_GROUPS } else { GROUPS })?;
        let (connection, handle, _) =
            rtnetlink::new_connection().map_err(|e| RouteError::new("open netlink", e))?;
        Ok(Self { handle, watch, connection: tokio::spawn(connection) })
    }
}

impl Drop for Netlink {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

/// The event socket.
pub(crate) struct Watch {
    socket: TokioSocket,
}

impl Watch {
    fn open(groups: u32) -> Result<Self, RouteError> {
        let open = || -> io::Result<TokioSocket> {
            let mut socket = TokioSocket::new(NETLINK_ROUTE)?;
            // A smaller buffer only means that events are lost sooner, which is handled.
            let _ = socket.socket_ref().set_rx_buf_sz(RECEIVE_BUFFER);
            socket.socket_mut().bind(&SocketAddr::new(0, groups))?;
            Ok(socket)
        };
        open().map(|socket| Self { socket }).map_err(|e| RouteError::new("watch routes", e))
    }

    /// Waits for the next events. Cancel-safe: a datagram is either handed out or still queued.
    pub(crate) async fn next(&mut self) -> Result<Vec<Event>, RouteError> {
        match self.socket.recv_from_full().await {
            Ok((bytes, _)) => Ok(events(&bytes)),
            // The kernel dropped events because we were slow.
            Err(e) if e.raw_os_error() == Some(libc::ENOBUFS) => Ok(vec![Event::Lost]),
            Err(e) => Err(RouteError::new("watch routes", e)),
        }
    }
}

/// The events of one datagram.
fn events(bytes: &[u8]) -> Vec<Event> {
    let mut events = Vec::new();
    for message in sluice_netlink::messages(bytes) {
        let Ok(message) = message else {
            events.push(Event::Lost);
            break;
        };
        let NetlinkPayload::InnerMessage(inner) = message.payload else { continue };
        events.extend(match inner {
            RouteNetlinkMessage::NewRoute(m) => parse(&m).map(|(table, route)| match table {
                Table::Main => Event::RouteSet(route),
                Table::Nodes => Event::NodeRoute,
            }),
            RouteNetlinkMessage::DelRoute(m) => parse(&m).map(|(table, route)| match table {
                Table::Main => Event::RouteGone(route),
                Table::Nodes => Event::NodeRoute,
            }),
            RouteNetlinkMessage::NewLink(m) => Some(Event::Link {
                index: m.header.index,
                up: m.header.flags.contains(LinkFlags::Up | LinkFlags::LowerUp),
                name: name(m),
            }),
            RouteNetlinkMessage::DelLink(m) => {
                Some(Event::Link { index: m.header.index, up: false, name: name(m) })
            }
            RouteNetlinkMessage::NewAddress(_) | RouteNetlinkMessage::DelAddress(_) => {
                Some(Event::Address)
            }
            RouteNetlinkMessage::NewNeighbour(m) | RouteNetlinkMessage::DelNeighbour(m) => {
                Some(Event::Neighbour { index: m.header.ifindex })
            }
            RouteNetlinkMessage::NewRule(_) | RouteNetlinkMessage::DelRule(_) => Some(Event::Rule),
            _ => None,
        });
    }
    events
}

fn name(link: LinkMessage) -> Option<String> {
    link.attributes.into_iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name),
        _ => None,
    })
}
