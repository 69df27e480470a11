//! What a node's kernel holds of ours, and what the pure model says that it should.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use anyhow::Context as _;
use serde_json::Value;
use sluice_proxy::routes::encapsulation::mac;
use sluice_proxy::routes::{Desired, Encapsulation, PodRoute, TUNNEL_DEVICE, Way, desired, settle};
use sluice_tests::Result;
use sluice_tests::netns::{self, NetNs};

use crate::world::{Member, subnet_of};

/// What a kernel holds, or should hold: a line each.
pub(crate) type Lines = BTreeSet<String>;

pub(crate) fn json(program: &str, netns: &NetNs, args: &[&str]) -> Result<Vec<Value>> {
    let text = netns::run(program, &[&["-n", netns.name(), "-j"], args].concat())?;
    if text.trim().is_empty() {
        return Ok(Vec::new());
    }
    serde_json::from_str(&text).with_context(|| format!("{program} {args:?}: {text}"))
}

pub(crate) fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or("-")
}

pub(crate) fn with_length(destination: &str) -> String {
    match (destination.contains('/'), destination.contains(':')) {
        (true, _) => destination.to_owned(),
        (false, true) => format!("{destination}/128"),
        (false, false) => format!("{destination}/32"),
    }
}

pub(crate) fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// What a node's kernel holds of ours. Routes by an interface other than the tunnel's have no source to compare.
pub(crate) fn held(netns: &NetNs) -> Result<Lines> {
    let mut lines = Lines::new();
    for family in ["-4", "-6"] {
        for table in ["main", "92"] {
            let args = [family, "-N", "route", "show", "table", table, "proto", "92"];
            // An IPv6 table that nothing was ever put into does not exist.
            for route in json("ip", netns, &args).or_else(|error| {
                if format!("{error:#}").contains("FIB table does not exist") {
                    Ok(Vec::new())
                } else {
                    Err(error)
                }
            })? {
                let via = match &route["via"] {
                    Value::Object(via) => via["host"].as_str().unwrap_or("-"),
                    _ => text(&route, "gateway"),
                };
                lines.insert(format!(
                    "table {table}: {} via {via} dev {} src {}",
                    with_length(text(&route, "dst")),
                    text(&route, "dev"),
                    text(&route, "prefsrc"),
                ));
            }
        }
        for rule in json("ip", netns, &[family, "-N", "rule", "show"])? {
            if text(&rule, "protocol") == "92" || rule["protocol"] == 92 {
                lines.insert(format!(
                    "rule {} from {}/{} table {}",
                    rule["priority"],
                    text(&rule, "src"),
                    rule["srclen"],
                    text(&rule, "table")
                ));
            }
        }
    }
    let links = json("ip", netns, &["-d", "link", "show"])?;
    let Some(link) = links.iter().find(|link| text(link, "ifname") == TUNNEL_DEVICE) else {
        return Ok(lines);
    };
    let data = &link["linkinfo"]["info_data"];
    let local = data["local"].as_str().or_else(|| data["local6"].as_str()).unwrap_or("-");
    lines.insert(format!(
        "device {} local {local} id {} port {} mtu {} up {}",
        text(link, "address"),
        data["id"],
        data["port"],
        link["mtu"],
        link["flags"].as_array().is_some_and(|flags| flags.contains(&"UP".into())),
    ));
    for entry in json("bridge", netns, &["fdb", "show", "dev", TUNNEL_DEVICE])? {
        lines.insert(format!("forwarding {} to {}", text(&entry, "mac"), text(&entry, "dst")));
    }
    for entry in json("ip", netns, &["neigh", "show", "dev", TUNNEL_DEVICE, "nud", "permanent"])? {
        lines.insert(format!("neighbour {} is {}", text(&entry, "dst"), text(&entry, "lladdr")));
    }
    Ok(lines)
}

/// What the pure model says that a node's kernel should hold. `foreign` are destinations that somebody else has a route
/// to.
pub(crate) fn expected(own: &Member, members: &[Member], foreign: &BTreeSet<String>) -> Lines {
    let objects: Vec<_> = members.iter().filter(|m| m.known).map(Member::object).collect();
    let wanted = desired(&own.name, &objects, Encapsulation::CrossSubnet);
    let here = own.addrs();
    let way = |hop: IpAddr| {
        if here.contains(&hop) {
            Way::Local
        } else if subnet_of(&hop) == own.subnet {
            Way::OnLink(2)
        } else {
            Way::Gateway("172.31.0.1".parse().unwrap())
        }
    };
    let ways: BTreeMap<_, _> = wanted.hops().map(|hop| (hop, way(hop))).collect();
    let settled = settle(&wanted, &ways);
    let Desired { tunnel, .. } = &wanted;
    let mut lines = Lines::new();
    let mut route = |table: &str, route: &PodRoute| {
        let cidr = route.cidr.to_string();
        let (dev, source) = match &route.tunnel {
            Some(hop) => (TUNNEL_DEVICE, hop.source),
            None => ("eth0", None),
        };
        let source = source.map_or("-".to_owned(), |ip| ip.to_string());
        if table != "main" || !foreign.contains(&cidr) {
            lines.insert(format!("table {table}: {cidr} via {} dev {dev} src {source}", route.via));
        }
    };
    let through = |to, sources: &[IpAddr]| PodRoute::encapsulated(to, 1, sources);
    settled.direct.iter().for_each(|direct| route("main", direct));
    settled.pods.iter().for_each(|pods| route("main", &through(pods, &here)));
    settled.nodes.iter().for_each(|node| route("92", &through(node, &[])));
    for to in settled.pods.iter().chain(&settled.nodes) {
        let mac = mac_text(mac(to.peer));
        lines.insert(format!("forwarding {mac} to {}", to.peer));
        lines.insert(format!("neighbour {} is {mac}", through(to, &[]).via));
    }
    if let Some(tunnel) = tunnel {
        let mtu = if tunnel.own.is_ipv4() { 1450 } else { 1430 };
        lines.insert(format!(
            "device {} local {} id 92 port 8492 mtu {mtu} up true",
            mac_text(mac(tunnel.own)),
            tunnel.own
        ));
        for range in &tunnel.own_cidrs {
            let v4 = range.addr().is_ipv4();
            if settled.nodes.iter().any(|node| node.cidr.addr().is_ipv4() == v4) {
                lines.insert(format!(
                    "rule 29092 from {}/{} table 92",
                    range.network(),
                    range.prefix_len()
                ));
            }
        }
    }
    lines
}
