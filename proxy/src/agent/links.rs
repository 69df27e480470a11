//! The pods' interfaces, as the kernel tells of them: what one is at this moment, and when one goes
//! or somebody shapes its traffic.

use std::collections::BTreeMap;
use std::io;

use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{AsyncSocket as _, AsyncSocketExt as _, SocketAddr, TokioSocket};
use nix::errno::Errno;
use rtnetlink::packet_core::NetlinkPayload;
use rtnetlink::packet_route::link::{LinkAttribute, LinkMessage};
use rtnetlink::packet_route::tc::{TcAttribute, TcHandle, TcMessage};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use sluice_netlink::{Netlink, NetlinkError};

/// `RTMGRP_*` of `linux/rtnetlink.h`.
const GROUPS: u32 = LINK | TC | IPV4_ADDRESS | IPV6_ADDRESS;
const LINK: u32 = 0x1;
const TC: u32 = 0x8;
const IPV4_ADDRESS: u32 = 0x10;
const IPV6_ADDRESS: u32 = 0x100;

/// Room for a burst of a few thousand events.
const RECEIVE_BUFFER: usize = 1 << 20;

/// Queueing disciplines that an interface has without anybody asking for one; they shape nothing.
const PLAIN: [&str; 4] = ["noqueue", "noop", "pfifo_fast", "mq"];

/// An interface.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Link {
    /// Its index.
    pub(super) index: u32,
    /// The number that this network namespace has for the one that the other end of a veth is in, plus
    /// 1; 0 where there is none.
    pub(super) netns: u32,
    /// The queueing discipline of what it sends.
    root: String,
}

impl Link {
    /// Whether a queueing discipline is meant to see what passes: somebody has put it there. `ingress`
    /// is that of what it receives, of which a clsact is the agent's own if that is how its programs
    /// are attached.
    pub(super) fn is_shaped(&self, ingress: Option<&str>, clsact_is_ours: bool) -> bool {
        let ingress = ingress.filter(|kind| !(clsact_is_ours && *kind == CLSACT));
        ingress.is_some() || !PLAIN.contains(&self.root.as_str())
    }
}

/// The kind of queueing discipline that holds filters and nothing else.
const CLSACT: &str = "clsact";

/// Asks about single interfaces of this thread's network namespace.
pub(super) struct Links(Netlink);

impl Links {
    /// Opens it.
    pub(super) fn open() -> Result<Self, NetlinkError> {
        Netlink::open().map(Self)
    }

    /// The interface of that name, or `None` where there is none.
    ///
    /// # Errors
    ///
    /// The kernel does not answer.
    pub(super) fn get(&mut self, name: &str) -> Result<Option<Link>, NetlinkError> {
        let mut ask = LinkMessage::default();
        ask.attributes.push(LinkAttribute::IfName(name.to_owned()));
        let link = match self.0.get(RouteNetlinkMessage::GetLink(ask)) {
            Ok(RouteNetlinkMessage::NewLink(link)) => link,
            Ok(_) => return Ok(None),
            Err(error) if error.is(Errno::ENODEV) => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut found = Link { index: link.header.index, netns: 0, root: PLAIN[0].to_owned() };
        for attribute in link.attributes {
            match attribute {
                LinkAttribute::Qdisc(kind) => found.root = kind,
                // Below 0: not known.
                LinkAttribute::LinkNetNsId(number) => {
                    found.netns = u32::try_from(number).map_or(0, |number| number + 1);
                }
                _ => {}
            }
        }
        Ok(Some(found))
    }

    /// The queueing disciplines that see what interfaces receive, by the index of those that have one.
    /// The kernel lists them all: a question for one would be told to everybody who watches.
    ///
    /// # Errors
    ///
    /// The kernel does not answer.
    pub(super) fn ingress(&mut self) -> Result<BTreeMap<u32, String>, NetlinkError> {
        let all = self.0.dump(RouteNetlinkMessage::GetQueueDiscipline(TcMessage::default()))?;
        let ingress = all.into_iter().filter_map(|message| {
            let RouteNetlinkMessage::NewQueueDiscipline(it) = message else { return None };
            let index = u32::try_from(it.header.index).ok()?;
            let kind = kind(&it)?.to_owned();
            (it.header.parent == TcHandle::INGRESS).then_some((index, kind))
        });
        Ok(ingress.collect())
    }
}

fn kind(qdisc: &TcMessage) -> Option<&str> {
    qdisc.attributes.iter().find_map(|attribute| match attribute {
        TcAttribute::Kind(kind) => Some(kind.as_str()),
        _ => None,
    })
}

/// What happened to an interface.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Event {
    /// The interface of that index is gone.
    Gone(u32),
    /// A queueing discipline of it came or went.
    Qdisc(u32),
    /// An address of the node came or went.
    Address,
    /// Events were lost: anything may have changed.
    Lost,
}

/// The event socket.
pub(super) struct Watch {
    socket: TokioSocket,
}

impl Watch {
    /// Opens it in the calling thread's network namespace, inside a runtime.
    pub(super) fn open() -> io::Result<Self> {
        let mut socket = TokioSocket::new(NETLINK_ROUTE)?;
        // A smaller buffer only means that events are lost sooner, which is handled.
        let _ = socket.socket_ref().set_rx_buf_sz(RECEIVE_BUFFER);
        socket.socket_mut().bind(&SocketAddr::new(0, GROUPS))?;
        Ok(Self { socket })
    }

    /// Waits for the next events that matter. Cancel-safe: a datagram is either handed out or still
    /// queued.
    pub(super) async fn next(&mut self) -> Vec<Event> {
        loop {
            let events = match self.socket.recv_from_full().await {
                Ok((bytes, _)) => events(&bytes),
                Err(error) => {
                    if error.raw_os_error() != Some(libc::ENOBUFS) {
                        tracing::warn!("watching interfaces: {error}");
                        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
                    }
                    vec![Event::Lost]
                }
            };
            if !events.is_empty() {
                return events;
            }
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
            // A port that leaves a bridge is told of in the bridge's family.
            RouteNetlinkMessage::DelLink(link) => {
                let whole = link.header.interface_family == AddressFamily::Unspec;
                whole.then_some(Event::Gone(link.header.index))
            }
            RouteNetlinkMessage::NewQueueDiscipline(qdisc)
            | RouteNetlinkMessage::DelQueueDiscipline(qdisc) => {
                // Every pod that is attached so gets one, from the agent; another's is seen at the
                // next look at everything.
                let ours = kind(&qdisc) == Some(CLSACT);
                u32::try_from(qdisc.header.index).ok().filter(|_| !ours).map(Event::Qdisc)
            }
            RouteNetlinkMessage::NewAddress(_) | RouteNetlinkMessage::DelAddress(_) => {
                Some(Event::Address)
            }
            _ => None,
        });
    }
    events
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_shaped(root: &str, ingress: Option<&str>, clsact_is_ours: bool) -> bool {
        Link { index: 7, netns: 0, root: root.to_owned() }.is_shaped(ingress, clsact_is_ours)
    }

    /// C10: what the bandwidth plugin puts on an interface, towards the pod and from it, counts; what
    /// every interface has does not.
    #[test]
    fn a_queueing_discipline_that_somebody_put_there_shapes() {
        for plain in PLAIN {
            assert!(!is_shaped(plain, None, false), "{plain}");
        }
        for root in ["tbf", "htb", "netem", "fq_codel"] {
            assert!(is_shaped(root, None, true), "{root}");
        }
        assert!(is_shaped("noqueue", Some("ingress"), false));
        assert!(is_shaped("noqueue", Some("clsact"), false), "somebody's filters");
        assert!(!is_shaped("noqueue", Some("clsact"), true), "our own");
    }

    #[test]
    fn an_unreadable_event_is_a_lost_one() {
        let mut bytes = [0xff; 32];
        bytes[..4].copy_from_slice(&32_u32.to_ne_bytes());
        bytes[4..6].copy_from_slice(&16_u16.to_ne_bytes());
        assert_eq!(events(&bytes[..20]), [Event::Lost]);
        assert_eq!(events(&[]), []);
    }

    #[test]
    fn the_loopback_is_found_and_plain() {
        let mut links = Links::open().expect("netlink");
        let lo = links.get("lo").expect("an answer").expect("a loopback");
        assert_eq!((lo.index, lo.is_shaped(None, false)), (1, false));
        assert_eq!(links.get("no-such-link").expect("an answer"), None);
    }
}
