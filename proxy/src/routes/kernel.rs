//! Route-netlink requests and the conversion between messages and plain values.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures_util::{StreamExt as _, TryStreamExt as _};
use ipnet::IpNet;
use rtnetlink::Handle;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteScope, RouteType,
    RouteVia,
};

use super::diff::metric;
use super::settle::Way;
use super::{KernelRoute, NODE_TABLE, PodRoute, ROUTE_PROTOCOL, SERVICE_ROUTE_PROTOCOL};

/// A routing table of the kernel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Table {
    /// Where all routes are.
    Main,
    /// Where routes to other nodes are, for packets of this node's pods.
    Nodes,
}

impl Table {
    const fn number(self) -> u8 {
        match self {
            Self::Main => RouteHeader::RT_TABLE_MAIN,
            Self::Nodes => NODE_TABLE,
        }
    }
}

/// A failed call to the kernel.
#[derive(Debug, thiserror::Error)]
#[error("{call}: {source}")]
pub struct RouteError {
    /// What was done, naming the object.
    pub call: String,
    /// The kernel's answer.
    pub source: io::Error,
}

impl RouteError {
    pub(crate) fn new(call: impl Into<String>, source: io::Error) -> Self {
        Self { call: call.into(), source }
    }

    pub(super) fn netlink(call: impl Into<String>, error: rtnetlink::Error) -> Self {
        let source = match error {
            rtnetlink::Error::NetlinkError(message) => message.to_io(),
            other => io::Error::other(other.to_string()),
        };
        Self::new(call, source)
    }
}

fn family(v4: bool) -> AddressFamily {
    if v4 { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

/// All routes, with their tables.
pub(super) async fn list(handle: &Handle) -> Result<Vec<(Table, KernelRoute)>, RouteError> {
    let mut routes = Vec::new();
    for v4 in [true, false] {
        let mut ask = RouteMessage::default();
        ask.header.address_family = family(v4);
        let messages: Vec<RouteMessage> =
            handle.route().get(ask).execute().try_collect().await.map_err(|e| {
                RouteError::netlink(if v4 { "list IPv4 routes" } else { "list IPv6 routes" }, e)
            })?;
        routes.extend(messages.iter().filter_map(parse));
    }
    Ok(routes)
}

/// The routes of one table.
pub(super) async fn list_table(
    handle: &Handle,
    table: Table,
) -> Result<Vec<KernelRoute>, RouteError> {
    let routes = list(handle).await?.into_iter();
    Ok(routes.filter(|(of, _)| *of == table).map(|(_, route)| route).collect())
}

/// A message as a plain value, with its table; `None` for tables other than those of [`Table`], for
/// cached routes and for families other than IP.
pub(super) fn parse(message: &RouteMessage) -> Option<(Table, KernelRoute)> {
    let v4 = match message.header.address_family {
        AddressFamily::Inet => true,
        AddressFamily::Inet6 => false,
        _ => return None,
    };
    let mut table = u32::from(message.header.table);
    let mut destination = None;
    let mut route = KernelRoute {
        cidr: IpNet::default(),
        via: None,
        interface: None,
        protocol: message.header.protocol.into(),
        metric: 0,
        source: None,
    };
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Table(t) => table = *t,
            RouteAttribute::Destination(a) => destination = ip(a),
            RouteAttribute::Gateway(a) => route.via = ip(a),
            RouteAttribute::Via(RouteVia::Inet(a)) => route.via = Some((*a).into()),
            RouteAttribute::Via(RouteVia::Inet6(a)) => route.via = Some((*a).into()),
            RouteAttribute::PrefSource(a) => route.source = ip(a),
            RouteAttribute::Oif(index) => route.interface = Some(*index),
            RouteAttribute::Priority(metric) => route.metric = *metric,
            _ => {}
        }
    }
    let table =
        [Table::Main, Table::Nodes].into_iter().find(|known| u32::from(known.number()) == table)?;
    if message.header.flags.contains(RouteFlags::Cloned) {
        return None;
    }
    let any =
        if v4 { IpAddr::from(Ipv4Addr::UNSPECIFIED) } else { IpAddr::from(Ipv6Addr::UNSPECIFIED) };
    let length = message.header.destination_prefix_length;
    route.cidr = IpNet::new(destination.unwrap_or(any), length).ok()?;
    Some((table, route))
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(a) => Some((*a).into()),
        RouteAddress::Inet6(a) => Some((*a).into()),
        _ => None,
    }
}

fn message(cidr: &IpNet, protocol: u8) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family(matches!(cidr, IpNet::V4(_)));
    message.header.destination_prefix_length = cidr.prefix_len();
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = protocol.into();
    message.header.kind = RouteType::Unicast;
    message.attributes.push(RouteAttribute::Destination(cidr.network().into()));
    message
}

/// Makes a route, in one step in place of one with the same CIDR and metric.
///
/// In IPv4 as in IPv6 the kernel looks for the route to replace by destination and metric, not by
/// protocol; the caller has made sure that it is none of someone else's.
pub(super) async fn replace(
    handle: &Handle,
    table: Table,
    route: &PodRoute,
) -> Result<(), RouteError> {
    let mut message = message(&route.cidr, ROUTE_PROTOCOL);
    message.header.table = table.number();
    message.header.scope = RouteScope::Universe;
    message.attributes.push(if route.via.is_ipv4() == route.cidr.addr().is_ipv4() {
        RouteAttribute::Gateway(route.via.into())
    } else {
        RouteAttribute::Via(route.via.into())
    });
    if let Some(hop) = &route.tunnel {
        message.attributes.push(RouteAttribute::Oif(hop.device));
        // The device has no addresses. A link-local next hop is on it anyway, and the kernel would
        // compare what is said to be on a link with its other routes.
        if route.via.is_ipv4() {
            message.header.flags |= RouteFlags::Onlink;
        }
        message.attributes.extend(hop.source.map(|ip| RouteAttribute::PrefSource(ip.into())));
    }
    message.attributes.push(RouteAttribute::Priority(metric(&route.cidr)));
    handle
        .route()
        .add(message)
        .replace()
        .execute()
        .await
        .map_err(|e| RouteError::netlink(format!("set route {route}"), e))
}

/// Makes a route to nowhere under [`SERVICE_ROUTE_PROTOCOL`]. Fails where there is a route to the
/// range already.
pub(super) async fn add_blackhole(handle: &Handle, range: &IpNet) -> Result<(), RouteError> {
    let mut message = message(range, SERVICE_ROUTE_PROTOCOL);
    message.header.scope = RouteScope::Universe;
    message.header.kind = RouteType::BlackHole;
    message.attributes.push(RouteAttribute::Priority(metric(range)));
    handle
        .route()
        .add(message)
        .execute()
        .await
        .map_err(|e| RouteError::netlink(format!("set route blackhole {range}"), e))
}

/// Deletes a route of ours; one that is gone already is no error. The protocol is part of the
/// request, so a foreign route to the same CIDR is never hit.
pub(super) async fn delete(
    handle: &Handle,
    table: Table,
    route: &KernelRoute,
) -> Result<(), RouteError> {
    let mut message = message(&route.cidr, route.protocol);
    message.header.table = table.number();
    // Any scope and any type.
    message.header.scope = RouteScope::NoWhere;
    message.header.kind = RouteType::Unspec;
    match route.via {
        Some(via) if via.is_ipv4() == route.cidr.addr().is_ipv4() => {
            message.attributes.push(RouteAttribute::Gateway(via.into()));
        }
        // The other attributes tell it from all others: a CIDR has one route of ours and metric.
        _ => {}
    }
    if let Some(interface) = route.interface {
        message.attributes.push(RouteAttribute::Oif(interface));
    }
    if route.metric != 0 {
        message.attributes.push(RouteAttribute::Priority(route.metric));
    }
    match handle.route().del(message).execute().await {
        Ok(()) => Ok(()),
        Err(e) => {
            let error = RouteError::netlink(format!("delete route {route}"), e);
            // ESRCH: "No such process" is the kernel's word for "no such route".
            if error.source.raw_os_error() == Some(libc::ESRCH) { Ok(()) } else { Err(error) }
        }
    }
}

/// Asks the kernel for the way to an address.
pub(super) async fn way_to(handle: &Handle, address: IpAddr) -> Way {
    let nowhere = |problem: &dyn ToString| Way::Nowhere(problem.to_string());
    let mut ask = RouteMessage::default();
    ask.header.address_family = family(address.is_ipv4());
    ask.header.destination_prefix_length = if address.is_ipv4() { 32 } else { 128 };
    ask.attributes.push(RouteAttribute::Destination(address.into()));
    let answers = handle.route().get(ask).execute();
    let mut answers = std::pin::pin!(answers);
    let answer = match answers.next().await {
        Some(Ok(answer)) => answer,
        Some(Err(e)) => return nowhere(&RouteError::netlink("", e).source),
        None => return nowhere(&io::Error::from(io::ErrorKind::NetworkUnreachable)),
    };
    match answer.header.kind {
        RouteType::Unicast => {}
        RouteType::Local => return Way::Local,
        other => return nowhere(&format!("{other:?}")),
    }
    let mut interface = 0;
    for attribute in &answer.attributes {
        let gateway = match attribute {
            RouteAttribute::Gateway(gateway) => ip(gateway),
            RouteAttribute::Via(RouteVia::Inet6(gateway)) => Some((*gateway).into()),
            RouteAttribute::Oif(index) => {
                interface = *index;
                None
            }
            _ => None,
        };
        if let Some(gateway) = gateway {
            return Way::Gateway(gateway);
        }
    }
    Way::OnLink(interface)
}
