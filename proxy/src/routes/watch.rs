//! Notices when someone else changes routes, links or addresses.

use std::io;

use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{AsyncSocket as _, AsyncSocketExt as _, SocketAddr, TokioSocket};
use rtnetlink::Handle;
use rtnetlink::packet_core::NetlinkPayload;
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use rtnetlink::packet_route::route::RouteMessage;
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
    /// A default route of another table appeared, was replaced, or went.
    OtherDefault,
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

    /// Leaves out what has happened up to now, for who is about to look at everything: else every event
    /// of a burst would be a reason for a look of its own.
    pub(crate) fn skip_all(&self) {
        loop {
            match self.socket.socket_ref().recv_from_full() {
                Ok(_) => {}
                Err(e) if e.raw_os_error() == Some(libc::ENOBUFS) => {}
                // There is no more, or the next wait tells what is wrong.
                Err(_) => return,
            }
        }
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
            RouteNetlinkMessage::NewRoute(m) => of_route(&m, Event::RouteSet),
            RouteNetlinkMessage::DelRoute(m) => of_route(&m, Event::RouteGone),
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

/// What became of a route, if that is anybody's concern.
fn of_route(message: &RouteMessage, of_main: impl FnOnce(KernelRoute) -> Event) -> Option<Event> {
    match parse(message) {
        Some((Table::Main, route)) => Some(of_main(route)),
        Some((Table::Nodes, _)) => Some(Event::NodeRoute),
        None => (message.header.destination_prefix_length == 0).then_some(Event::OtherDefault),
    }
}

fn name(link: LinkMessage) -> Option<String> {
    link.attributes.into_iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use rtnetlink::packet_core::{NetlinkHeader, NetlinkMessage};
    use rtnetlink::packet_route::AddressFamily;
    use rtnetlink::packet_route::route::{RouteAttribute, RouteHeader};

    use super::*;

    /// The events of one message, as the kernel sends it.
    fn events_of(message: RouteNetlinkMessage) -> Vec<Event> {
        let mut whole = NetlinkMessage::new(NetlinkHeader::default(), message.into());
        whole.finalize();
        let mut bytes = vec![0; whole.buffer_len()];
        whole.serialize(&mut bytes);
        events(&bytes)
    }

    fn default_route(table: u8) -> RouteMessage {
        let mut route = RouteMessage::default();
        route.header.address_family = AddressFamily::Inet;
        route.header.table = table;
        route.attributes.push(RouteAttribute::Oif(7));
        route
    }

    #[test]
    fn a_link_is_told_with_the_name_that_it_has_now() {
        let mut link = LinkMessage::default();
        link.header.index = 7;
        link.header.flags = LinkFlags::Up | LinkFlags::LowerUp;
        link.attributes.push(LinkAttribute::IfName("wan0".to_owned()));
        let named = |up| Event::Link { index: 7, up, name: Some("wan0".to_owned()) };
        assert_eq!(events_of(RouteNetlinkMessage::NewLink(link.clone())), [named(true)]);
        assert_eq!(events_of(RouteNetlinkMessage::DelLink(link.clone())), [named(false)]);
        link.attributes.clear();
        let nameless = Event::Link { index: 7, up: true, name: None };
        assert_eq!(events_of(RouteNetlinkMessage::NewLink(link)), [nameless]);
    }

    /// R4: whichever table a default route is in, somebody hears of it.
    #[test]
    fn a_default_route_is_told_of_whatever_its_table_is() {
        let main =
            events_of(RouteNetlinkMessage::NewRoute(default_route(RouteHeader::RT_TABLE_MAIN)));
        assert!(matches!(&main[..], [Event::RouteSet(route)] if route.interface == Some(7)));
        let other = default_route(100);
        assert_eq!(events_of(RouteNetlinkMessage::NewRoute(other.clone())), [Event::OtherDefault]);
        assert_eq!(events_of(RouteNetlinkMessage::DelRoute(other.clone())), [Event::OtherDefault]);
        // Any other route of such a table is nobody's concern.
        let mut route = other;
        route.header.destination_prefix_length = 24;
        assert_eq!(events_of(RouteNetlinkMessage::NewRoute(route)), []);
    }

    #[test]
    fn an_unreadable_event_is_a_lost_one() {
        let mut bytes = [0xff; 32];
        bytes[..4].copy_from_slice(&32_u32.to_ne_bytes());
        bytes[4..6].copy_from_slice(&16_u16.to_ne_bytes());
        assert_eq!(events(&bytes[..20]), [Event::Lost]);
    }
}
