//! The tunnel's device, and what the kernel keeps for it: forwarding entries, neighbours, rules.
//!
//! The device is ours by its name, and so is all that hangs on it but routes: forwarding entries and
//! permanent neighbours that are not wanted are removed, whoever made them.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;

use futures_util::TryStreamExt as _;
use ipnet::IpNet;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::AddressAttribute;
use rtnetlink::packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoData, InfoKind, InfoVxlan, LinkAttribute,
    LinkFlags, LinkInfo, LinkMessage,
};
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use rtnetlink::{Handle, IpVersion, LinkMessageBuilder, LinkUnspec, LinkVxlan};

use super::encapsulation::{Mac, VxlanConfig};
use super::kernel::RouteError;
use super::{NODE_RULE_PRIORITY, NODE_TABLE, ROUTE_PROTOCOL, TUNNEL_DEVICE};

/// The MTU of an underlay that is not known: Ethernet's.
const DEFAULT_MTU: u32 = 1500;

/// What the device should be like.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct DeviceSpec {
    pub(super) config: VxlanConfig,
    /// Source of outer packets; unspecified: the kernel's choice, of that family.
    pub(super) local: IpAddr,
    pub(super) mac: Mac,
    pub(super) mtu: u32,
}

/// The device as it is.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Device {
    index: u32,
    /// Its settings can stay: what is to be different can be changed in place.
    fits: bool,
    mac: Option<Mac>,
    mtu: u32,
    up: bool,
}

/// Whether the kernel has devices of a kind, which must be one that none is made of without settings.
/// Asks for such a device, and sees what the kernel finds wrong: that there is no such kind, or that
/// settings are missing. A module is loaded if need be; nothing else changes.
pub(super) async fn kernel_has(handle: &Handle, kind: &str) -> bool {
    let kind = InfoKind::Other(kind.to_owned());
    let message =
        LinkMessageBuilder::<LinkUnspec>::new_with_info_kind(kind).name(TUNNEL_DEVICE).build();
    let answer = handle.link().add(message).execute().await;
    let error = answer.err().map(|error| RouteError::netlink("probe", error).source);
    error.and_then(|error| error.raw_os_error()) != Some(libc::EOPNOTSUPP)
}

/// Makes the device, or changes it, or makes it anew, so that it is like `spec` and up. Its index.
pub(super) async fn ensure(handle: &Handle, spec: &DeviceSpec) -> Result<u32, RouteError> {
    let call = |what: &str| format!("{what} {TUNNEL_DEVICE}");
    let mut device = find(handle, Some(spec)).await?;
    if let Some(found) = &device
        && !found.fits
    {
        delete_link(handle, found.index).await?;
        device = None;
    }
    let device = match device {
        Some(device) => device,
        None => {
            create(handle, spec).await?;
            let gone = || io::Error::from(io::ErrorKind::NotFound);
            find(handle, Some(spec)).await?.ok_or_else(|| RouteError::new(call("find"), gone()))?
        }
    };
    let index = device.index;
    if !device.up {
        // No address of its own, before it is up and gets one. Without IPv6 it has none anyway.
        let mut message = LinkUnspec::new_with_index(index).build();
        let mode = AfSpecInet6::AddrGenMode(In6AddrGenMode::None);
        let af_spec = LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![mode])]);
        message.attributes.push(af_spec);
        let _ = handle.link().set(message).execute().await;
    }
    if !device.up || device.mac != Some(spec.mac) || device.mtu != spec.mtu {
        let message =
            LinkUnspec::new_with_index(index).mtu(spec.mtu).address(spec.mac.to_vec()).up().build();
        let set = handle.link().set(message).execute().await;
        set.map_err(|e| {
            let port = spec.config.port;
            RouteError::netlink(format!("bring {TUNNEL_DEVICE} up (UDP port {port})"), e)
        })?;
    }
    Ok(index)
}

async fn create(handle: &Handle, spec: &DeviceSpec) -> Result<(), RouteError> {
    let VxlanConfig { id, port } = spec.config;
    let mut builder = LinkVxlan::new(TUNNEL_DEVICE, id)
        .port(port)
        .append_info_data(InfoVxlan::Learning(false))
        .mtu(spec.mtu)
        .address(spec.mac.to_vec());
    builder = match spec.local {
        // Unspecified is the default of this family, and the kernel takes no zero for an address.
        IpAddr::V4(local) if local.is_unspecified() => builder,
        IpAddr::V4(local) => builder.local(local),
        // Also unspecified: it says the family.
        IpAddr::V6(local) => builder.local6(local),
    };
    handle.link().add(builder.build()).execute().await.map_err(|e| {
        RouteError::netlink(format!("make {TUNNEL_DEVICE} (VNI {id}, UDP port {port})"), e)
    })
}

/// The device's index, if it is there.
pub(super) async fn index(handle: &Handle) -> Result<Option<u32>, RouteError> {
    Ok(find(handle, None).await?.map(|device| device.index))
}

/// Removes the device with all that hangs on it. Whether it was there.
pub(super) async fn remove(handle: &Handle) -> Result<bool, RouteError> {
    match find(handle, None).await? {
        Some(device) => delete_link(handle, device.index).await.map(|()| true),
        None => Ok(false),
    }
}

async fn delete_link(handle: &Handle, index: u32) -> Result<(), RouteError> {
    let done = handle.link().del(index).execute().await;
    done.map_err(|e| RouteError::netlink(format!("delete {TUNNEL_DEVICE}"), e))
}

/// The device; a link of another kind that has its name is an error if one is `wanted`, and none of
/// ours otherwise.
async fn find(handle: &Handle, wanted: Option<&DeviceSpec>) -> Result<Option<Device>, RouteError> {
    let mut links = handle.link().get().match_name(TUNNEL_DEVICE).execute();
    let link = match links.try_next().await {
        Ok(link) => link,
        Err(e) => {
            let error = RouteError::netlink(format!("look up {TUNNEL_DEVICE}"), e);
            match error.source.raw_os_error() {
                Some(libc::ENODEV) => None,
                _ => return Err(error),
            }
        }
    };
    let Some(link) = link else { return Ok(None) };
    match parse_device(&link, wanted) {
        Some(device) => Ok(Some(device)),
        None if wanted.is_none() => Ok(None),
        None => {
            let other = io::Error::other("there is a link of another kind with this name");
            Err(RouteError::new(format!("make {TUNNEL_DEVICE}"), other))
        }
    }
}

fn parse_device(link: &LinkMessage, wanted: Option<&DeviceSpec>) -> Option<Device> {
    let mut device = Device {
        index: link.header.index,
        fits: true,
        mac: None,
        mtu: 0,
        up: link.header.flags.contains(LinkFlags::Up),
    };
    let mut settings: Option<&[InfoVxlan]> = None;
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::Mtu(mtu) => device.mtu = *mtu,
            LinkAttribute::Address(bytes) => device.mac = bytes.as_slice().try_into().ok(),
            LinkAttribute::LinkInfo(infos) => {
                settings = infos.iter().find_map(|info| match info {
                    LinkInfo::Data(InfoData::Vxlan(settings)) => Some(settings.as_slice()),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    let settings = settings?;
    if let Some(spec) = wanted {
        device.fits = fits(settings, spec);
    }
    Some(device)
}

fn fits(settings: &[InfoVxlan], spec: &DeviceSpec) -> bool {
    let mut id = None;
    let mut port = None;
    let mut local = match spec.local {
        // What the kernel leaves out.
        IpAddr::V4(_) => IpAddr::from([0u8; 4]),
        IpAddr::V6(_) => IpAddr::from([0u16; 8]),
    };
    let mut others = false;
    for setting in settings {
        match setting {
            InfoVxlan::Id(value) => id = Some(*value),
            InfoVxlan::Port(value) => port = Some(*value),
            InfoVxlan::Local(ip) => local = (*ip).into(),
            InfoVxlan::Local6(ip) => local = (*ip).into(),
            InfoVxlan::Group(ip) => others |= !ip.is_unspecified(),
            InfoVxlan::Group6(ip) => others |= !ip.is_unspecified(),
            InfoVxlan::Learning(on) | InfoVxlan::CollectMetadata(on) => others |= on,
            _ => {}
        }
    }
    !others && (id, port) == (Some(spec.config.id), Some(spec.config.port)) && local == spec.local
}

/// Where outer packets leave this node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Underlay {
    /// Index of the interface that has this node's address; `None` where none has it.
    pub(super) interface: Option<u32>,
    /// Its MTU, in bytes.
    pub(super) mtu: u32,
}

/// Asks for the interface that has the address, and which of `addrs` this machine has at all.
pub(super) async fn underlay(
    handle: &Handle,
    own: IpAddr,
    addrs: &[IpAddr],
) -> Result<(Underlay, Vec<IpAddr>), RouteError> {
    let mut here = BTreeMap::new();
    let mut all = handle.address().get().execute();
    let error = |e| RouteError::netlink("list addresses", e);
    while let Some(message) = all.try_next().await.map_err(error)? {
        // Of a point-to-point link, `Address` is the peer's.
        let local = message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Local(ip) => Some(*ip),
            _ => None,
        });
        let other = message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Address(ip) => Some(*ip),
            _ => None,
        });
        here.extend(local.or(other).map(|ip| (ip, message.header.index)));
    }
    let sources = addrs.iter().copied().filter(|ip| here.contains_key(ip)).collect();
    let Some(interface) = here.get(&own).copied() else {
        return Ok((Underlay { interface: None, mtu: DEFAULT_MTU }, sources));
    };
    let mut links = handle.link().get().match_index(interface).execute();
    let error = |e| RouteError::netlink(format!("look up interface {interface}"), e);
    let link = links.try_next().await.map_err(error)?;
    let mtu = link.iter().flat_map(|link| &link.attributes).find_map(|attribute| match attribute {
        LinkAttribute::Mtu(mtu) => Some(*mtu),
        _ => None,
    });
    Ok((Underlay { interface: Some(interface), mtu: mtu.unwrap_or(DEFAULT_MTU) }, sources))
}

/// What hangs on the device: which hardware address is at which end, and which next hop has which
/// hardware address.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Entries {
    pub(super) forwarding: BTreeSet<(Mac, IpAddr)>,
    pub(super) neighbours: BTreeSet<(IpAddr, Mac)>,
}

impl Entries {
    /// Those that the kernel has.
    pub(super) async fn read(handle: &Handle, device: u32) -> Result<Self, RouteError> {
        let mut found = Self::default();
        for (family, call) in [
            (AddressFamily::Bridge, "list forwarding entries"),
            (AddressFamily::Inet, "list IPv4 neighbours"),
            (AddressFamily::Inet6, "list IPv6 neighbours"),
        ] {
            let mut all = handle.neighbours().get().set_address_family(family).execute();
            while let Some(entry) =
                all.try_next().await.map_err(|e| RouteError::netlink(call, e))?
            {
                found.take(&entry, device);
            }
        }
        Ok(found)
    }

    fn take(&mut self, entry: &NeighbourMessage, device: u32) {
        // Bits: others set `NUD_NOARP` beside.
        let permanent = u16::from(NeighbourState::Permanent);
        if entry.header.ifindex != device || u16::from(entry.header.state) & permanent == 0 {
            return;
        }
        let mut mac: Option<Mac> = None;
        let mut to = None;
        for attribute in &entry.attributes {
            match attribute {
                NeighbourAttribute::LinkLayerAddress(bytes) => {
                    mac = bytes.as_slice().try_into().ok()
                }
                NeighbourAttribute::Destination(address) => to = address_of(address),
                _ => {}
            }
        }
        if let (Some(mac), Some(to)) = (mac, to) {
            if entry.header.family == AddressFamily::Bridge {
                self.forwarding.insert((mac, to));
            } else {
                self.neighbours.insert((to, mac));
            }
        }
    }

    /// Makes what is missing in `held`, before any route needs it. One that the kernel refuses does not
    /// stop the others; the first error is returned.
    pub(super) async fn add(
        &self,
        handle: &Handle,
        device: u32,
        held: &Self,
    ) -> Result<(), RouteError> {
        let mut result = Ok(());
        for (mac, to) in self.forwarding.difference(&held.forwarding) {
            let add = handle.neighbours().add_bridge(device, mac).destination(*to);
            let done = add.flags(NeighbourFlags::Own).replace().execute().await;
            result = result.and(
                done.map_err(|e| RouteError::netlink(format!("set forwarding entry to {to}"), e)),
            );
        }
        for (ip, mac) in self.neighbours.difference(&held.neighbours) {
            let add = handle.neighbours().add(device, *ip).link_layer_address(mac);
            let done = add.replace().execute().await;
            result =
                result.and(done.map_err(|e| RouteError::netlink(format!("set neighbour {ip}"), e)));
        }
        result
    }

    /// Removes what `held` has beyond these, once no route needs it. How many there were.
    pub(super) async fn remove_others(
        &self,
        handle: &Handle,
        device: u32,
        held: &Self,
    ) -> Result<usize, RouteError> {
        let mut removed = 0;
        for (mac, to) in held.forwarding.difference(&self.forwarding) {
            let mut message = entry(device, AddressFamily::Bridge, *to);
            message.header.flags = NeighbourFlags::Own;
            message.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.to_vec()));
            let call = format!("delete forwarding entry to {to}");
            removed += usize::from(delete_entry(handle, message, call).await?);
        }
        let wanted: BTreeSet<IpAddr> = self.neighbours.iter().map(|(ip, _)| *ip).collect();
        for (ip, _) in held.neighbours.difference(&self.neighbours) {
            // One whose hardware address changed was replaced.
            if wanted.contains(ip) {
                continue;
            }
            let family = if ip.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
            let message = entry(device, family, *ip);
            let call = format!("delete neighbour {ip}");
            removed += usize::from(delete_entry(handle, message, call).await?);
        }
        Ok(removed)
    }
}

fn entry(device: u32, family: AddressFamily, to: IpAddr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = family;
    message.header.ifindex = device;
    message.header.state = NeighbourState::Permanent;
    message.attributes.push(NeighbourAttribute::Destination(to.into()));
    message
}

/// Whether it was there.
async fn delete_entry(
    handle: &Handle,
    message: NeighbourMessage,
    call: String,
) -> Result<bool, RouteError> {
    let Err(e) = handle.neighbours().del(message).execute().await else { return Ok(true) };
    let error = RouteError::netlink(call, e);
    match error.source.raw_os_error() {
        Some(libc::ENOENT) => Ok(false),
        _ => Err(error),
    }
}

/// Of a forwarding entry the crate leaves the address undecided.
fn address_of(address: &NeighbourAddress) -> Option<IpAddr> {
    match address {
        NeighbourAddress::Inet(ip) => Some((*ip).into()),
        NeighbourAddress::Inet6(ip) => Some((*ip).into()),
        NeighbourAddress::Other(bytes) => <[u8; 4]>::try_from(bytes.as_slice())
            .map(IpAddr::from)
            .or_else(|_| <[u8; 16]>::try_from(bytes.as_slice()).map(IpAddr::from))
            .ok(),
        _ => None,
    }
}

/// Makes the kernel look up packets with a source in one of `ranges` in the table of nodes first, and
/// no others: removes all other rules under our protocol. How many were removed.
pub(super) async fn set_rules(
    handle: &Handle,
    ranges: &BTreeSet<IpNet>,
) -> Result<usize, RouteError> {
    let mut held = Vec::new();
    for (version, call) in [(IpVersion::V4, "list IPv4 rules"), (IpVersion::V6, "list IPv6 rules")]
    {
        let rules = handle.rule().get(version).execute();
        let rules: Vec<_> = rules.try_collect().await.map_err(|e| RouteError::netlink(call, e))?;
        held.extend(rules.into_iter().filter(is_ours));
    }
    let mut right = BTreeSet::new();
    let mut stale = Vec::new();
    for message in held {
        match range_of(&message).filter(|range| ranges.contains(range)) {
            Some(range) if right.insert(range) => {}
            _ => stale.push(message),
        }
    }
    for range in ranges.difference(&right) {
        let mut add = handle.rule().add();
        *add.message_mut() = rule(range);
        let done = add.execute().await;
        done.map_err(|e| RouteError::netlink(format!("set rule from {range}"), e))?;
    }
    let removed = stale.len();
    for message in stale {
        let done = handle.rule().del(message).execute().await;
        done.map_err(|e| RouteError::netlink("delete a stale rule", e))?;
    }
    Ok(removed)
}

fn is_ours(message: &RuleMessage) -> bool {
    message.attributes.contains(&RuleAttribute::Protocol(ROUTE_PROTOCOL.into()))
}

fn rule(range: &IpNet) -> RuleMessage {
    let mut message = RuleMessage::default();
    let v4 = range.addr().is_ipv4();
    message.header.family = if v4 { AddressFamily::Inet } else { AddressFamily::Inet6 };
    message.header.src_len = range.prefix_len();
    message.header.table = NODE_TABLE;
    message.header.action = RuleAction::ToTable;
    message.attributes = vec![
        RuleAttribute::Source(range.network()),
        RuleAttribute::Priority(NODE_RULE_PRIORITY),
        RuleAttribute::Protocol(ROUTE_PROTOCOL.into()),
    ];
    message
}

/// The range of a rule that says what [`rule`] would; `None` for any other.
fn range_of(message: &RuleMessage) -> Option<IpNet> {
    let source = message.attributes.iter().find_map(|attribute| match attribute {
        RuleAttribute::Source(ip) => Some(*ip),
        _ => None,
    })?;
    let says = message.header.action == RuleAction::ToTable
        && message.header.table == NODE_TABLE
        && message.header.dst_len == 0
        && message.attributes.contains(&RuleAttribute::Priority(NODE_RULE_PRIORITY));
    IpNet::new(source, message.header.src_len).ok().filter(|_| says)
}
