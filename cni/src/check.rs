//! CHECK: compares an attachment with its record, piece by piece.

use std::net::IpAddr;

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use sluice_netlink::Netlink;

use crate::error::Error;
use crate::messages::host_prefix;
use crate::names::Mac;
use crate::netns::Netns;
use crate::record::Record;
use crate::result::PrevResult;
use crate::wiring::{Link, find_link, gateway, open, routes};

/// Every piece that is missing or different, each as one sentence; empty if all is well.
///
/// What else is on the interfaces is left alone: later plugins of a chain may have put it there, and
/// may have changed the pod's MTU. A changed MAC is told, since the node sends to the recorded one.
pub fn compare(
    record: &Record,
    netns: &Netns,
    prev: Option<&PrevResult>,
) -> Result<Vec<String>, Error> {
    let mut found = prev.map(|p| compare_result(record, p)).unwrap_or_default();
    found.extend(compare_host(record)?);
    found.extend(netns.run(|| compare_pod(record))??);
    Ok(found)
}

fn compare_result(record: &Record, prev: &PrevResult) -> Vec<String> {
    let mut found = Vec::new();
    for &address in &record.addresses {
        if !prev.addresses.iter().any(|net| net.addr() == address) {
            found.push(format!("prevResult lacks address {address} of the record"));
        }
    }
    let ends = [
        (&record.host_interface, record.host_mac, ""),
        (&record.interface, record.mac, record.netns.as_str()),
    ];
    for (name, mac, sandbox) in ends {
        // A runtime may reach the same namespace by another path; only inside or outside counts.
        let end = prev
            .interfaces
            .iter()
            .find(|i| i.name == *name && i.sandbox.is_empty() == sandbox.is_empty());
        match end {
            None => found.push(format!("prevResult lacks interface {name}")),
            Some(i) if !i.mac.is_empty() && !i.mac.eq_ignore_ascii_case(&mac.to_string()) => {
                found.push(format!("prevResult has MAC {} for {name}, not {mac}", i.mac));
            }
            Some(_) => {}
        }
    }
    found
}

fn compare_host(record: &Record) -> Result<Vec<String>, Error> {
    let mut host = open()?;
    let name = &record.host_interface;
    let Some(link) = find_link(&mut host, name)? else {
        return Ok(vec![format!("interface {name} is missing on the node")]);
    };
    let mut found = compare_link(&link, name, "on the node", record.host_mac);
    if link.mtu != record.mtu {
        let (has, should) = (link.mtu, record.mtu);
        found.push(format!("interface {name} has MTU {has}, not {should}, on the node"));
    }
    for v4 in [true, false] {
        let addresses: Vec<_> = record.addresses.iter().filter(|a| a.is_ipv4() == v4).collect();
        if addresses.is_empty() {
            continue;
        }
        let routes = routes(&mut host, v4)?;
        for &&address in &addresses {
            let there = routes.iter().any(|r| {
                r.destination == Some(address)
                    && r.prefix_len == host_prefix(address)
                    && r.index == link.index
            });
            if !there {
                found.push(format!("route to {address} through {name} is missing on the node"));
            }
        }
    }
    let neighbours = neighbours(&mut host, link.index)?;
    for &address in &record.addresses {
        if !neighbours.contains(&(address, record.mac)) {
            found.push(format!("neighbour {address} on {name} is missing on the node"));
        }
    }
    Ok(found)
}

fn compare_pod(record: &Record) -> Result<Vec<String>, Error> {
    let mut pod = open()?;
    let name = &record.interface;
    let Some(link) = find_link(&mut pod, name)? else {
        return Ok(vec![format!("interface {name} is missing in the pod")]);
    };
    let mut found = compare_link(&link, name, "in the pod", record.mac);
    let addresses = addresses(&mut pod, link.index)?;
    let neighbours = neighbours(&mut pod, link.index)?;
    for &address in &record.addresses {
        if !addresses.contains(&address) {
            found.push(format!("address {address} is missing on {name} in the pod"));
        }
        let gateway = gateway(address);
        if !neighbours.contains(&(gateway, record.host_mac)) {
            found.push(format!("neighbour {gateway} on {name} is missing in the pod"));
        }
        let default = routes(&mut pod, address.is_ipv4())?
            .into_iter()
            .any(|r| r.prefix_len == 0 && r.gateway == Some(gateway) && r.index == link.index);
        if !default {
            found.push(format!("default route through {gateway} is missing in the pod"));
        }
    }
    Ok(found)
}

fn compare_link(link: &Link, name: &str, place: &str, mac: Mac) -> Vec<String> {
    let mut found = Vec::new();
    if !link.up {
        found.push(format!("interface {name} is down {place}"));
    }
    if link.mac != mac.0 {
        found.push(format!("interface {name} has another MAC than {mac} {place}"));
    }
    found
}

fn dump(
    netlink: &mut Netlink,
    what: &str,
    message: RouteNetlinkMessage,
) -> Result<Vec<RouteNetlinkMessage>, Error> {
    netlink.dump(message).map_err(|source| Error::Kernel { what: what.into(), source })
}

fn addresses(netlink: &mut Netlink, index: u32) -> Result<Vec<IpAddr>, Error> {
    let ask = RouteNetlinkMessage::GetAddress(AddressMessage::default());
    let mut addresses = Vec::new();
    for answer in dump(netlink, "list addresses", ask)? {
        let RouteNetlinkMessage::NewAddress(message) = answer else { continue };
        if message.header.index != index {
            continue;
        }
        addresses.extend(message.attributes.into_iter().filter_map(|a| match a {
            AddressAttribute::Address(a) | AddressAttribute::Local(a) => Some(a),
            _ => None,
        }));
    }
    Ok(addresses)
}

/// The permanent neighbours of an interface.
fn neighbours(netlink: &mut Netlink, index: u32) -> Result<Vec<(IpAddr, Mac)>, Error> {
    let ask = RouteNetlinkMessage::GetNeighbour(NeighbourMessage::default());
    let mut neighbours = Vec::new();
    for answer in dump(netlink, "list neighbours", ask)? {
        let RouteNetlinkMessage::NewNeighbour(message) = answer else { continue };
        if message.header.ifindex != index || message.header.state != NeighbourState::Permanent {
            continue;
        }
        let (mut address, mut mac) = (None, None);
        for attribute in message.attributes {
            match attribute {
                NeighbourAttribute::Destination(NeighbourAddress::Inet(a)) => {
                    address = Some(IpAddr::from(a));
                }
                NeighbourAttribute::Destination(NeighbourAddress::Inet6(a)) => {
                    address = Some(IpAddr::from(a));
                }
                NeighbourAttribute::LinkLayerAddress(bytes) => {
                    mac = <[u8; 6]>::try_from(bytes).ok().map(Mac);
                }
                _ => {}
            }
        }
        neighbours.extend(address.zip(mac));
    }
    Ok(neighbours)
}
