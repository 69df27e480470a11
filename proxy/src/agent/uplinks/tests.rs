use ipnet::IpNet;

use super::*;
use crate::routes::KernelRoute;

/// Index of the one uplink that has its programs.
const ATTACHED: u32 = 2;

/// Whether the part would look at the interfaces again, where these names are uplinks by themselves.
fn looks(event: &Event, named: &[&str]) -> bool {
    let named = named.iter().map(|name| (*name).to_owned()).collect();
    matters(event, |index| index == ATTACHED, &named)
}

fn link(index: u32, name: &str) -> Event {
    Event::Link { index, up: true, name: Some(name.to_owned()) }
}

fn route(cidr: &str) -> KernelRoute {
    let cidr: IpNet = cidr.parse().expect("a range");
    KernelRoute { cidr, via: None, interface: Some(9), protocol: 4, metric: 0, source: None }
}

/// C9: a pod's interface that is made, set up, shaped and deleted, with its routes and neighbours, is
/// nothing to look at; nor is any other that is none of the uplinks.
#[test]
fn pods_that_come_and_go_start_no_look() {
    for named in [&[TUNNEL_DEVICE][..], &[TUNNEL_DEVICE, "eth0", "wan0"]] {
        for event in [
            link(9, "slu0123456789a"),
            Event::Link { index: 9, up: false, name: Some("slu0123456789a".to_owned()) },
            link(10, "docker0"),
            Event::RouteSet(route("10.244.1.7/32")),
            Event::RouteGone(route("fd00:244:1::7/128")),
            Event::RouteSet(route("10.244.2.0/24")),
            Event::Neighbour { index: 9 },
            Event::NodeRoute,
            Event::Rule,
        ] {
            assert!(!looks(&event, named), "{event:?}");
        }
    }
}

/// What makes an interface an uplink, or ends it: its name, a default route, an address; what becomes of
/// one that is an uplink; and whatever may have been any of that.
#[test]
fn whatever_may_make_or_end_an_uplink_starts_a_look() {
    for event in [
        link(ATTACHED, "eth0"),
        link(ATTACHED, "renamed"),
        Event::Link { index: ATTACHED, up: false, name: None },
        // It may be any.
        Event::Link { index: 9, up: true, name: None },
        link(9, "wan0"),
        link(11, TUNNEL_DEVICE),
        Event::RouteSet(route("0.0.0.0/0")),
        Event::RouteGone(route("::/0")),
        Event::OtherDefault,
        Event::Address,
        Event::Lost,
    ] {
        assert!(looks(&event, &[TUNNEL_DEVICE, "wan0"]), "{event:?}");
    }
    // One that was renamed away from a name that counts is attached, or never was there.
    assert!(!looks(&link(9, "wan1"), &[TUNNEL_DEVICE, "wan0"]));
}
