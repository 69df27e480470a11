use proptest::prelude::*;

use super::*;
use crate::routes::{Encapsulated, TunnelHop};

/// Index of the tunnel's device.
const DEVICE: u32 = 9;

/// What the kernel does with an op: replace by CIDR and metric whatever the protocol, delete
/// exactly.
fn apply(kernel: &mut Vec<KernelRoute>, op: &RouteOp) {
    match op {
        RouteOp::Replace(r) => {
            let metric = metric(&r.cidr);
            kernel.retain(|k| (k.cidr, k.metric) != (r.cidr, metric));
            kernel.push(KernelRoute {
                cidr: r.cidr,
                via: Some(r.via),
                interface: Some(r.tunnel.map_or(2, |hop| hop.device)),
                protocol: ROUTE_PROTOCOL,
                metric,
                source: r.tunnel.and_then(|hop| hop.source),
            });
        }
        RouteOp::Delete(r) => {
            let before = kernel.len();
            kernel.retain(|k| k != r);
            assert!(kernel.len() < before, "{r} was not there");
        }
    }
}

fn cidr(i: u8, v6: bool) -> IpNet {
    let text = if v6 { format!("fd00:{i:x}::/64") } else { format!("10.244.{i}.0/24") };
    text.parse().expect("test range")
}

fn via(i: u8, v6: bool) -> IpAddr {
    let text = if v6 { format!("2001:db8::{i:x}") } else { format!("192.0.2.{i}") };
    text.parse().expect("test address")
}

/// Half of the nodes are reached through the tunnel.
fn wanted(i: u8, v6: bool, to: u8) -> PodRoute {
    let node = format!("node-{to}");
    if i.is_multiple_of(2) {
        return PodRoute::direct(cidr(i, v6), via(to, v6), node);
    }
    let pods = Encapsulated { cidr: cidr(i, v6), peer: via(to, false), node };
    PodRoute::encapsulated(&pods, DEVICE, &[via(9, false)])
}

fn desired_routes() -> impl Strategy<Value = Vec<PodRoute>> {
    prop::collection::btree_map((0u8..6, any::<bool>()), 1u8..4, 0..10)
        .prop_map(|routes| routes.into_iter().map(|((i, v6), to)| wanted(i, v6, to)).collect())
}

/// One route a CIDR and metric, as the kernel's tables have it.
fn kernel_routes() -> impl Strategy<Value = Vec<KernelRoute>> {
    let key = (0u8..6, any::<bool>(), prop::sample::select(vec![0u32, 1024, 7]));
    let value = (1u8..4, prop::sample::select(vec![ROUTE_PROTOCOL, ROUTE_PROTOCOL, 3, 4]));
    prop::collection::btree_map(key, value, 0..16).prop_map(|routes| {
        routes
            .into_iter()
            .map(|((i, v6, metric), (to, protocol))| KernelRoute {
                cidr: cidr(i, v6),
                via: Some(via(to, v6)),
                // Some go by the tunnel's device, whatever is wanted.
                interface: Some(if to == 3 { DEVICE } else { 2 }),
                protocol,
                // IPv6 has no metric 0.
                metric: if v6 && metric == 0 { 512 } else { metric },
                source: None,
            })
            .collect()
    })
}

proptest! {
    /// The diff applied to the kernel gives the desired routes, but for conflicts; applied again it
    /// is empty; foreign routes are as they were after every single step.
    #[test]
    fn applying_the_diff_gives_what_is_desired(
        desired in desired_routes(),
        before in kernel_routes(),
    ) {
        let out = diff(&desired, &before, Some(DEVICE));
        let foreign = |routes: &[KernelRoute]| -> BTreeSet<KernelRoute> {
            routes.iter().filter(|r| !r.is_ours()).cloned().collect()
        };
        let mut kernel = before.clone();
        for op in &out.ops {
            let served: Vec<IpNet> =
                kernel.iter().filter(|r| r.is_ours()).map(|r| r.cidr).collect();
            apply(&mut kernel, op);
            prop_assert_eq!(foreign(&kernel), foreign(&before));
            // No gap: a CIDR that had a route of ours, and shall have one, never lacks one.
            for route in &desired {
                let conflict = out.conflicts.iter().any(|c| c.wanted == *route);
                prop_assert!(
                    conflict
                        || !served.contains(&route.cidr)
                        || kernel.iter().any(|r| r.is_ours() && r.cidr == route.cidr)
                );
            }
        }
        let ours: BTreeMap<IpNet, IpAddr> = kernel
            .iter()
            .filter(|r| r.is_ours())
            .map(|r| (r.cidr, r.via.expect("each has one")))
            .collect();
        prop_assert_eq!(ours.len(), kernel.iter().filter(|r| r.is_ours()).count());
        for route in &desired {
            let blocked = foreign(&before).iter().any(|f| f.cidr == route.cidr);
            prop_assert_eq!(out.conflicts.iter().any(|c| c.wanted == *route), blocked);
            if !blocked {
                prop_assert_eq!(ours.get(&route.cidr), Some(&route.via));
            }
        }
        for (cidr, via) in &ours {
            prop_assert!(desired.iter().any(|r| r.cidr == *cidr && r.via == *via));
        }
        let again = diff(&desired, &kernel, Some(DEVICE));
        prop_assert_eq!(again.ops, []);
    }
}

/// R5: a node that gets on a shared link, or leaves it, keeps its next hop; the route changes all the
/// same, in one step.
#[test]
fn a_route_that_leaves_the_tunnel_is_replaced() {
    let pods = Encapsulated { cidr: cidr(1, false), peer: via(2, false), node: "b".into() };
    let through = PodRoute::encapsulated(&pods, DEVICE, &[via(9, false)]);
    let straight = PodRoute::direct(pods.cidr, via(2, false), "b");
    assert_eq!(through.via, straight.via);
    let mut kernel = Vec::new();
    for (wanted, device) in
        [(&through, Some(DEVICE)), (&straight, Some(DEVICE)), (&through, Some(DEVICE))]
    {
        let out = diff(std::slice::from_ref(wanted), &kernel, device);
        assert_eq!(out.ops, [RouteOp::Replace(wanted.clone())]);
        out.ops.iter().for_each(|op| apply(&mut kernel, op));
    }
    // Another address of this node is to be the source, and the device was made anew.
    for hop in [
        TunnelHop { device: DEVICE, peer: via(2, false), source: Some(via(8, false)) },
        TunnelHop { device: DEVICE + 1, peer: via(2, false), source: Some(via(9, false)) },
    ] {
        let wanted = PodRoute { tunnel: Some(hop), ..through.clone() };
        let out = diff(std::slice::from_ref(&wanted), &kernel, Some(hop.device));
        assert_eq!(out.ops, [RouteOp::Replace(wanted)]);
    }
}

#[test]
fn a_changed_next_hop_is_one_replacement() {
    let wanted = PodRoute::direct(cidr(1, false), via(2, false), "b");
    let old = KernelRoute {
        cidr: wanted.cidr,
        via: Some(via(1, false)),
        interface: Some(2),
        protocol: ROUTE_PROTOCOL,
        metric: 0,
        source: None,
    };
    let out = diff(std::slice::from_ref(&wanted), &[old], None);
    assert_eq!(out.ops, [RouteOp::Replace(wanted)]);
}

#[test]
fn a_conflict_is_said_in_words() {
    let wanted = PodRoute::direct(cidr(1, false), via(2, false), "b");
    let foreign = KernelRoute {
        cidr: wanted.cidr,
        via: None,
        interface: Some(3),
        protocol: 3,
        metric: 50,
        source: None,
    };
    let out = diff(&[wanted], &[foreign], None);
    assert_eq!(out.ops, []);
    assert_eq!(
        out.conflicts[0].to_string(),
        "route 10.244.1.0/24 via 192.0.2.2 (node b) is not set: 10.244.1.0/24 proto 3 metric 50 \
         is there and not ours"
    );
}
