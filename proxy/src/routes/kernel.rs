//! Route-netlink requests and the conversion between messages and plain values.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures_util::{StreamExt as _, TryStreamExt as _};
use ipnet::IpNet;
use rtnetlink::Handle;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteScope, RouteType,
};

use super::diff::metric;
use super::{HostGwRoute, KernelRoute, ROUTE_PROTOCOL, SERVICE_ROUTE_PROTOCOL};

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

/// All routes of the main table.
pub(super) async fn list(handle: &Handle) -> Result<Vec<KernelRoute>, RouteError> {
    let mut routes = Vec::new();
    for v4 in [true, false] {
        let mut ask = RouteMessage::default();
        ask.header.address_family = family(v4);
        ask.header.table = RouteHeader::RT_TABLE_MAIN;
        let messages: Vec<RouteMessage> =
            handle.route().get(ask).execute().try_collect().await.map_err(|e| {
                RouteError::netlink(if v4 { "list IPv4 routes" } else { "list IPv6 routes" }, e)
            })?;
        routes.extend(messages.iter().filter_map(parse));
    }
    Ok(routes)
}

/// A message of the main table as a plain value; `None` for other tables, for cached routes and
/// for families other than IP.
pub(super) fn parse(message: &RouteMessage) -> Option<KernelRoute> {
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
    };
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Table(t) => table = *t,
            RouteAttribute::Destination(a) => destination = ip(a),
            RouteAttribute::Gateway(a) => route.via = ip(a),
            RouteAttribute::Oif(index) => route.interface = Some(*index),
            RouteAttribute::Priority(metric) => route.metric = *metric,
            _ => {}
        }
    }
    if table != u32::from(RouteHeader::RT_TABLE_MAIN)
        || message.header.flags.contains(RouteFlags::Cloned)
    {
        return None;
    }
    let any =
        if v4 { IpAddr::from(Ipv4Addr::UNSPECIFIED) } else { IpAddr::from(Ipv6Addr::UNSPECIFIED) };
    let length = message.header.destination_prefix_length;
    route.cidr = IpNet::new(destination.unwrap_or(any), length).ok()?;
    Some(route)
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
pub(super) async fn replace(handle: &Handle, route: &HostGwRoute) -> Result<(), RouteError> {
    let mut message = message(&route.cidr, ROUTE_PROTOCOL);
    message.header.scope = RouteScope::Universe;
    message.attributes.push(RouteAttribute::Gateway(route.via.into()));
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
pub(super) async fn delete(handle: &Handle, route: &KernelRoute) -> Result<(), RouteError> {
    let mut message = message(&route.cidr, route.protocol);
    // Any scope and any type.
    message.header.scope = RouteScope::NoWhere;
    message.header.kind = RouteType::Unspec;
    if let Some(via) = route.via {
        message.attributes.push(RouteAttribute::Gateway(via.into()));
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

/// How the kernel would send a packet to an address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Way {
    /// Straight, through this interface.
    OnLink(u32),
    /// Through a router.
    Gateway(IpAddr),
    /// It is an address of this node.
    Local,
}

/// Asks the kernel for the way to an address.
pub(super) async fn way_to(handle: &Handle, address: IpAddr) -> Result<Way, RouteError> {
    let call = || format!("look up the way to {address}");
    let mut ask = RouteMessage::default();
    ask.header.address_family = family(address.is_ipv4());
    ask.header.destination_prefix_length = if address.is_ipv4() { 32 } else { 128 };
    ask.attributes.push(RouteAttribute::Destination(address.into()));
    let answers = handle.route().get(ask).execute();
    let mut answers = std::pin::pin!(answers);
    let answer = match answers.next().await {
        Some(Ok(answer)) => answer,
        Some(Err(e)) => return Err(RouteError::netlink(call(), e)),
        None => return Err(RouteError::new(call(), io::ErrorKind::NetworkUnreachable.into())),
    };
    match answer.header.kind {
        RouteType::Unicast => {}
        RouteType::Local => return Ok(Way::Local),
        other => return Err(RouteError::new(call(), io::Error::other(format!("{other:?}")))),
    }
    let mut interface = 0;
    for attribute in &answer.attributes {
        match attribute {
            RouteAttribute::Gateway(gateway) => {
                if let Some(gateway) = ip(gateway) {
                    return Ok(Way::Gateway(gateway));
                }
            }
            RouteAttribute::Oif(index) => interface = *index,
            _ => {}
        }
    }
    Ok(Way::OnLink(interface))
}
