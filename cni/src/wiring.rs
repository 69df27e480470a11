//! The kernel's side of an attachment: a veth pair and what makes it carry packets.
//!
//! The pod has single addresses (/32, /128), a default route through a gateway that exists nowhere
//! (169.254.1.1, fe80::1), and a permanent neighbour entry that gives the gateway the MAC of the
//! node's end. The node has one route a pod address and a permanent neighbour entry for it. So
//! nothing is ever resolved on the link, and deleting the pair deletes everything.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkAttribute, LinkMessage};
use netlink_packet_route::route::{RouteAddress, RouteAttribute};
use nix::errno::Errno;
use rustix::net::{AddressFamily, SocketType, netdevice};
use sluice_netlink::{Netlink, NetlinkError, Request};

use crate::error::Error;
use crate::messages::{self, End};
use crate::netns::Netns;
use crate::record::Record;
use crate::sysctl;

/// The gateway of every pod, IPv4.
pub const GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
/// The gateway of every pod, IPv6.
pub const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
/// The MTU where nothing tells one: that of Ethernet.
const DEFAULT_MTU: u32 = 1500;

/// The gateway of an address's family.
pub fn gateway(address: IpAddr) -> IpAddr {
    if address.is_ipv4() { GATEWAY_V4.into() } else { GATEWAY_V6.into() }
}

/// A link, as far as the plugin looks at one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Link {
    /// Interface index.
    pub index: u32,
    /// Whether it is administratively up.
    pub up: bool,
    /// MTU in bytes; 0 if the kernel told none.
    pub mtu: u32,
    /// MAC address; empty if it has none.
    pub mac: Vec<u8>,
}

impl From<LinkMessage> for Link {
    fn from(message: LinkMessage) -> Self {
        let mut link = Self {
            index: message.header.index,
            up: message.header.flags.contains(netlink_packet_route::link::LinkFlags::Up),
            mtu: 0,
            mac: Vec::new(),
        };
        for attribute in message.attributes {
            match attribute {
                LinkAttribute::Mtu(mtu) => link.mtu = mtu,
                LinkAttribute::Address(mac) => link.mac = mac,
                _ => {}
            }
        }
        link
    }
}

/// Opens the route netlink of the calling thread's network namespace.
pub fn open() -> Result<Netlink, Error> {
    Netlink::open().map_err(|source| Error::Kernel { what: "open netlink".into(), source })
}

fn ask_link(
    netlink: &mut Netlink,
    message: LinkMessage,
    name: &str,
) -> Result<Option<Link>, Error> {
    match netlink.get(RouteNetlinkMessage::GetLink(message)) {
        Ok(RouteNetlinkMessage::NewLink(link)) => Ok(Some(link.into())),
        Ok(_) => Ok(None),
        Err(e) if e.is(Errno::ENODEV) => Ok(None),
        Err(source) => Err(Error::Kernel { what: format!("look up interface {name}"), source }),
    }
}

/// A link by its name.
pub fn find_link(netlink: &mut Netlink, name: &str) -> Result<Option<Link>, Error> {
    ask_link(netlink, messages::link_by_name(name), name)
}

/// Index of a link in the calling thread's network namespace. Unlike netlink's answer, this one does
/// not wait for the lock of all interfaces.
pub fn index_of(name: &str) -> Result<u32, Error> {
    let error = |source: rustix::io::Errno| Error::Kernel {
        what: format!("look up interface {name}"),
        source: NetlinkError::Socket(source.into()),
    };
    let socket =
        rustix::net::socket(AddressFamily::INET, SocketType::DGRAM, None).map_err(error)?;
    netdevice::name_to_index(&socket, name).map_err(error)
}

/// Whether the pod has an interface of this name.
pub fn pod_has(netns: &Netns, interface: &str) -> Result<bool, Error> {
    netns.run(|| Ok(find_link(&mut open()?, interface)?.is_some()))?
}

/// Makes the veth pair. A node's end that an unfinished ADD of the same key left is replaced; an
/// interface that the pod has already is an error, and nothing is changed.
pub fn create(host: &mut Netlink, netns: &Netns, record: &Record) -> Result<(), Error> {
    let request = messages::create_veth(
        End { name: &record.host_interface, mac: record.host_mac },
        End { name: &record.interface, mac: record.mac },
        netns.raw_fd(),
        record.mtu,
    );
    match host.run(std::slice::from_ref(&request)) {
        Err((_, e)) if e.is(Errno::EEXIST) => {
            if pod_has(netns, &record.interface)? {
                return Err(interface_exists(&record.interface, netns));
            }
            remove(host, &record.host_interface)?;
            run(host, &[request])
        }
        Err((_, source)) => {
            // The kernel says EINVAL of a namespace that is none; entering it tells.
            netns.run(|| ())?;
            Err(Error::Kernel { what: request.what, source })
        }
        Ok(()) => Ok(()),
    }
}

/// The error for an interface that is in the pod already, which the specification demands.
pub fn interface_exists(interface: &str, netns: &Netns) -> Error {
    Error::Environment(format!(
        "CNI_IFNAME {interface} already exists in CNI_NETNS {}",
        netns.path().display()
    ))
}

/// Sets up both ends. What was done stays where this fails: the caller removes the node's end, and
/// all goes with it.
pub fn configure(host: &mut Netlink, netns: &Netns, record: &Record) -> Result<(), Error> {
    wire_host(host, record)?;
    netns.run(|| wire_pod(record))?
}

fn wire_host(host: &mut Netlink, record: &Record) -> Result<(), Error> {
    let name = &record.host_interface;
    let (v4, v6) = families(record);
    let index = index_of(name)?;
    sysctl::enable_forwarding(v4, v6)?;
    if v4 {
        sysctl::ensure(&format!("ipv4/conf/{name}/forwarding"), "1")?;
    }
    if v6 {
        sysctl::ensure(&format!("ipv6/conf/{name}/disable_ipv6"), "0")?;
        sysctl::set(&format!("ipv6/conf/{name}/accept_dad"), "0")?;
        sysctl::set(&format!("ipv6/conf/{name}/accept_ra"), "0")?;
        sysctl::ensure(&format!("ipv6/conf/{name}/forwarding"), "1")?;
    }
    // The node's end needs no address at all; 1 is IN6_ADDR_GEN_MODE_NONE.
    sysctl::set_if_there(&format!("ipv6/conf/{name}/addr_gen_mode"), "1")?;

    let mut requests = vec![messages::set_up(name)];
    let addresses = &record.addresses;
    requests.extend(addresses.iter().map(|a| messages::add_neighbour(index, *a, record.mac)));
    let first_route = requests.len();
    requests.extend(addresses.iter().map(|a| messages::add_host_route(index, *a)));
    host.run(&requests).map_err(|(place, source)| {
        match place.checked_sub(first_route).and_then(|i| addresses.get(i)) {
            Some(address) if source.is(Errno::EEXIST) => Error::AddressRouted(*address),
            _ => kernel(&requests, place, source),
        }
    })
}

/// Runs on a thread inside the pod's namespace.
fn wire_pod(record: &Record) -> Result<(), Error> {
    let name = &record.interface;
    let (v4, v6) = families(record);
    let mut pod = open()?;
    let index = index_of(name)?;
    if v4 {
        sysctl::set(&format!("ipv4/conf/{name}/arp_notify"), "1")?;
    }
    if v6 {
        sysctl::ensure(&format!("ipv6/conf/{name}/disable_ipv6"), "0")?;
    }
    sysctl::set_if_there(&format!("ipv6/conf/{name}/accept_ra"), "0")?;
    sysctl::set_if_there(&format!("ipv6/conf/{name}/accept_dad"), "0")?;

    let mut requests = vec![messages::set_up("lo"), messages::set_up(name)];
    for &address in &record.addresses {
        requests.push(messages::add_address(index, address));
        requests.push(messages::add_neighbour(index, gateway(address), record.host_mac));
        requests.push(messages::add_default_route(index, gateway(address)));
    }
    run(&mut pod, &requests)
}

fn families(record: &Record) -> (bool, bool) {
    let has = |v4| record.addresses.iter().any(|a| a.is_ipv4() == v4);
    (has(true), has(false))
}

fn run(netlink: &mut Netlink, requests: &[Request]) -> Result<(), Error> {
    netlink.run(requests).map_err(|(place, source)| kernel(requests, place, source))
}

fn kernel(requests: &[Request], place: usize, source: NetlinkError) -> Error {
    let what = requests.get(place).map_or_else(String::new, |r| r.what.clone());
    Error::Kernel { what, source }
}

/// Deletes the node's end, and with it the pod's, all addresses and all routes. An interface that
/// is not there is no error.
pub fn remove(host: &mut Netlink, host_interface: &str) -> Result<(), Error> {
    match run(host, &[messages::delete_link(host_interface)]) {
        Err(Error::Kernel { source, .. }) if source.is(Errno::ENODEV) => Ok(()),
        other => other,
    }
}

/// A route of the main table, as far as the plugin looks at one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Route {
    /// Destination; `None` is a default route.
    pub destination: Option<IpAddr>,
    /// Prefix length of the destination.
    pub prefix_len: u8,
    /// Next hop, if there is one.
    pub gateway: Option<IpAddr>,
    /// Interface index, 0 for a route without one.
    pub index: u32,
}

/// All routes of a family in the main table.
pub fn routes(netlink: &mut Netlink, v4: bool) -> Result<Vec<Route>, Error> {
    let answer = netlink
        .dump(messages::list_routes(v4))
        .map_err(|source| Error::Kernel { what: "list routes".into(), source })?;
    let main = u32::from(netlink_packet_route::route::RouteHeader::RT_TABLE_MAIN);
    Ok(answer
        .into_iter()
        .filter_map(|message| {
            let RouteNetlinkMessage::NewRoute(message) = message else { return None };
            let mut table = u32::from(message.header.table);
            let mut route = Route {
                destination: None,
                prefix_len: message.header.destination_prefix_length,
                gateway: None,
                index: 0,
            };
            for attribute in message.attributes {
                match attribute {
                    RouteAttribute::Destination(a) => route.destination = ip(&a),
                    RouteAttribute::Gateway(a) => route.gateway = ip(&a),
                    RouteAttribute::Oif(index) => route.index = index,
                    RouteAttribute::Table(t) => table = t,
                    _ => {}
                }
            }
            (table == main).then_some(route)
        })
        .collect())
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(a) => Some((*a).into()),
        RouteAddress::Inet6(a) => Some((*a).into()),
        _ => None,
    }
}

/// Every single address that the node has a route to.
pub fn routed_addresses(host: &mut Netlink) -> Result<BTreeSet<IpAddr>, Error> {
    let mut addresses = BTreeSet::new();
    for v4 in [true, false] {
        addresses.extend(routes(host, v4)?.iter().filter_map(|route| {
            route.destination.filter(|a| route.prefix_len == messages::host_prefix(*a))
        }));
    }
    Ok(addresses)
}

/// MTU of the device of the default route, IPv4's before IPv6's; 1500 where there is none.
pub fn default_mtu(host: &mut Netlink) -> Result<u32, Error> {
    for v4 in [true, false] {
        let default = routes(host, v4)?
            .into_iter()
            .find(|r| r.prefix_len == 0 && r.index != 0)
            .map(|r| r.index);
        if let Some(index) = default
            && let Some(link) = ask_link(host, messages::link_by_index(index), "by its index")?
            && link.mtu != 0
        {
            return Ok(link.mtu);
        }
    }
    Ok(DEFAULT_MTU)
}
