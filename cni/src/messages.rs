//! The route-netlink messages the plugin sends, each as a function of plain values.

use std::net::IpAddr;
use std::os::fd::RawFd;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::address::{
    AddressAttribute, AddressHeaderFlags, AddressMessage, AddressScope,
};
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope,
    RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use sluice_netlink::Request;

use crate::names::Mac;

fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

/// Prefix length of a single address.
pub fn host_prefix(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

/// One end of a veth pair.
#[derive(Clone, Copy, Debug)]
pub struct End<'a> {
    /// Interface name.
    pub name: &'a str,
    /// MAC address.
    pub mac: Mac,
}

/// Makes a veth pair, the second end at once in its own namespace and under its last name: nothing
/// is moved or renamed later, which costs the kernel far more.
pub fn create_veth(host: End<'_>, pod: End<'_>, netns: RawFd, mtu: u32) -> Request {
    let end = |end: End<'_>| {
        vec![
            LinkAttribute::IfName(end.name.to_owned()),
            LinkAttribute::Address(end.mac.0.to_vec()),
            LinkAttribute::Mtu(mtu),
        ]
    };
    let mut peer = LinkMessage::default();
    peer.attributes = end(pod);
    peer.attributes.push(LinkAttribute::NetNsFd(netns));
    let mut message = LinkMessage::default();
    message.attributes = end(host);
    message.attributes.push(LinkAttribute::LinkInfo(vec![
        LinkInfo::Kind(InfoKind::Veth),
        LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
    ]));
    Request {
        what: format!("create veth pair {} and {} in the pod", host.name, pod.name),
        flags: NLM_F_CREATE | NLM_F_EXCL,
        message: RouteNetlinkMessage::NewLink(message),
    }
}

/// A link by its name, for a question or a deletion.
pub fn link_by_name(name: &str) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(name.to_owned()));
    message
}

/// A link by its index.
pub fn link_by_index(index: u32) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message
}

/// Deletes a link by its name.
pub fn delete_link(name: &str) -> Request {
    Request {
        what: format!("delete interface {name}"),
        flags: 0,
        message: RouteNetlinkMessage::DelLink(link_by_name(name)),
    }
}

/// Sets a link up.
pub fn set_up(name: &str) -> Request {
    let mut message = link_by_name(name);
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
    Request {
        what: format!("set interface {name} up"),
        flags: 0,
        message: RouteNetlinkMessage::SetLink(message),
    }
}

/// Gives an interface a single address, without duplicate address detection.
pub fn add_address(index: u32, address: IpAddr) -> Request {
    let mut message = AddressMessage::default();
    message.header.family = family(address);
    message.header.prefix_len = host_prefix(address);
    message.header.scope = AddressScope::Universe;
    message.header.index = index;
    if address.is_ipv6() {
        message.header.flags = AddressHeaderFlags::Nodad;
    }
    message.attributes = vec![AddressAttribute::Local(address), AddressAttribute::Address(address)];
    Request {
        what: format!("add address {address}"),
        flags: NLM_F_CREATE | NLM_F_EXCL,
        message: RouteNetlinkMessage::NewAddress(message),
    }
}

/// A permanent neighbour: the address is never asked for on the link.
pub fn add_neighbour(index: u32, address: IpAddr, mac: Mac) -> Request {
    let mut message = NeighbourMessage::default();
    message.header.family = family(address);
    message.header.ifindex = index;
    message.header.state = NeighbourState::Permanent;
    message.header.kind = RouteType::Unicast;
    let destination = match address {
        IpAddr::V4(a) => NeighbourAddress::Inet(a),
        IpAddr::V6(a) => NeighbourAddress::Inet6(a),
    };
    message.attributes = vec![
        NeighbourAttribute::Destination(destination),
        NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()),
    ];
    Request {
        what: format!("add neighbour {address}"),
        flags: NLM_F_CREATE | NLM_F_REPLACE,
        message: RouteNetlinkMessage::NewNeighbour(message),
    }
}

fn route(family: AddressFamily, index: u32, scope: RouteScope) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family;
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::Static;
    message.header.scope = scope;
    message.header.kind = RouteType::Unicast;
    message.attributes.push(RouteAttribute::Oif(index));
    message
}

/// The node's route to a pod's address. Fails with `EEXIST` where there is one already.
pub fn add_host_route(index: u32, address: IpAddr) -> Request {
    let mut message = route(family(address), index, RouteScope::Link);
    message.header.destination_prefix_length = host_prefix(address);
    message.attributes.push(RouteAttribute::Destination(RouteAddress::from(address)));
    Request {
        what: format!("add route to {address}"),
        flags: NLM_F_CREATE | NLM_F_EXCL,
        message: RouteNetlinkMessage::NewRoute(message),
    }
}

/// A pod's default route through a gateway that no subnet of its own makes reachable.
pub fn add_default_route(index: u32, gateway: IpAddr) -> Request {
    let mut message = route(family(gateway), index, RouteScope::Universe);
    message.header.flags = RouteFlags::Onlink;
    message.attributes.push(RouteAttribute::Gateway(RouteAddress::from(gateway)));
    Request {
        what: format!("add default route through {gateway}"),
        flags: NLM_F_CREATE | NLM_F_EXCL,
        message: RouteNetlinkMessage::NewRoute(message),
    }
}

/// Asks for all routes of a family in the main table.
pub fn list_routes(v4: bool) -> RouteNetlinkMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = if v4 { AddressFamily::Inet } else { AddressFamily::Inet6 };
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    RouteNetlinkMessage::GetRoute(message)
}
