//! What the kernel says of its interfaces.

use std::net::IpAddr;

use futures_util::{StreamExt as _, TryStreamExt as _};
use rtnetlink::Handle;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::AddressAttribute;
use rtnetlink::packet_route::link::{LinkAttribute, LinkFlags};
use rtnetlink::packet_route::route::{RouteAttribute, RouteMessage, RouteType};

use super::Interfaces;

impl Interfaces {
    /// Asks the kernel, for the network namespace of `handle`.
    ///
    /// # Errors
    ///
    /// Netlink's.
    pub async fn read(handle: &Handle) -> Result<Self, rtnetlink::Error> {
        let mut found = Self::default();
        let mut links = handle.link().get().execute();
        while let Some(link) = links.try_next().await? {
            if link.header.flags.contains(LinkFlags::Loopback) {
                continue;
            }
            let name = link.attributes.into_iter().find_map(|attribute| match attribute {
                LinkAttribute::IfName(name) => Some(name),
                _ => None,
            });
            found.names.extend(name.map(|name| (link.header.index, name)));
        }
        let mut addresses = handle.address().get().execute();
        while let Some(address) = addresses.try_next().await? {
            // Of a point-to-point link, `Address` is the peer's.
            let mut own = None;
            let mut other = None;
            for attribute in &address.attributes {
                match attribute {
                    AddressAttribute::Local(ip) => own = Some(*ip),
                    AddressAttribute::Address(ip) => other = Some(*ip),
                    _ => {}
                }
            }
            if let Some(ip) = own.or(other).filter(|ip| !is_link_local(ip)) {
                found.addrs.push((address.header.index, ip));
            }
        }
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut ask = RouteMessage::default();
            ask.header.address_family = family;
            let mut routes = std::pin::pin!(handle.route().get(ask).execute());
            while let Some(route) = routes.next().await {
                let route = route?;
                let default = route.header.destination_prefix_length == 0
                    && route.header.kind == RouteType::Unicast;
                if !default {
                    continue;
                }
                for attribute in &route.attributes {
                    match attribute {
                        RouteAttribute::Oif(index) => {
                            found.defaults.insert(*index);
                        }
                        RouteAttribute::MultiPath(ways) => {
                            found.defaults.extend(ways.iter().map(|way| way.interface_index));
                        }
                        _ => {}
                    }
                }
            }
        }
        Ok(found)
    }
}

fn is_link_local(ip: &IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_link_local() || ip.is_loopback(),
        IpAddr::V6(ip) => ip.is_unicast_link_local() || ip.is_loopback(),
    }
}
