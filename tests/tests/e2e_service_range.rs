//! Addresses in the range of ClusterIPs that no Service has.

use anyhow::bail;
use sluice_tests::shop::{Shop, WEB_V4, WEB_V6};
use sluice_tests::wait::wait_ok;
use sluice_tests::{PATIENCE, Result, bin, pod};

const RANGES: &str = "10.96.0.0/16,fd00:96::/112";
/// Nobody's; a server beyond the default route has them all the same.
const STRAYS: [(&str, &str); 2] =
    [("10.96.200.1", "10.96.200.1:8080"), ("fd00:96::c8", "[fd00:96::c8]:8080")];

/// S17: from pod, node and outside. Without the range the default route takes the packets out of the
/// node, which shows that the test would notice.
#[test]
fn unallocated_service_address_ends_at_the_node() -> Result<()> {
    let mut shop = Shop::open()?;
    let lan = shop.cluster.lan();
    for (addr, _) in STRAYS {
        let (length, nodad) = if addr.contains(':') { (128, " nodad") } else { (32, "") };
        lan.ip(&format!("addr add {addr}/{length} dev lo{nodad}"))?;
    }
    lan.ip("link set lo up\nroute add 10.244.1.0/24 via 172.31.0.11\nroute add fd00:244:1::/64 via fd00:172:31::11")?;
    let launch = lan.launch(bin("testapp")?).args(["serve", "--udp", "--port", "8080"]);
    let mut server = launch.spawn(&shop.cluster.dir().join("stray.log"))?;
    server.wait_for_log("listening", PATIENCE)?;
    let node = shop.cluster.node(0).netns();
    node.ip("route add default via 172.31.0.1\nroute add default via fd00:172:31::1")?;
    for (_, target) in STRAYS {
        shop.client.get(target)?;
        shop.cluster.node(0).get(target)?;
    }

    let source = shop.cluster.source();
    shop.cluster.node_mut(0).stop_agent()?;
    shop.cluster.node_mut(0).start_agent_with(&source, &["--service-cluster-ip-range", RANGES])?;
    let node = shop.cluster.node(0);
    let own = shop.client.ipv4()?.to_string();
    let own6 = shop.client.ipv6()?.to_string();
    for (addr, target) in STRAYS {
        let from_pod = shop.client.launch(bin("testapp")?);
        assert!(pod::get_within(from_pod, target, 2).is_err(), "{target} is reached from a pod");
        assert!(node.get_within(target, 2).is_err(), "{target} is reached from the node");
        // What arrives from a pod, and from outside, has no way on.
        let (from, lan) =
            if addr.contains(':') { (&*own6, "fd00:172:31::1") } else { (&*own, "172.31.0.1") };
        let veths = node.netns().ip_output(&["-o", "route", "get", from])?;
        let veth = veths.split(" dev ").nth(1).and_then(|rest| rest.split(' ').next());
        let Some(veth) = veth else { bail!("no interface in {veths}") };
        for (from, interface) in [(from, veth), (lan, "eth0")] {
            let way =
                node.netns().ip_output(&["route", "get", addr, "from", from, "iif", interface]);
            assert!(
                !matches!(&way, Ok(text) if !text.contains("blackhole")),
                "{addr} from {from}: {way:?}"
            );
        }
    }
    // Services go on, and the address is served as soon as it is one's.
    shop.client.get(WEB_V4)?;
    shop.client.get(WEB_V6)?;
    node.get(WEB_V4)?;
    let status = node.proxyctl(&["status"])?;
    assert!(status.contains("10.96.0.0/16"), "{status}");
    Ok(())
}

/// S17: the route is repaired, gives way to nobody, and goes when the range does.
#[test]
fn route_of_the_service_range_is_kept_and_taken_back() -> Result<()> {
    let mut shop = Shop::open()?;
    let source = shop.cluster.source();
    shop.cluster.node_mut(0).stop_agent()?;
    // Somebody else's, which stays whatever happens.
    let node = shop.cluster.node(0).netns();
    node.ip("route add blackhole 10.97.0.0/16")?;
    let args = ["--service-cluster-ip-range", "10.96.0.0/16,10.97.0.0/16,fd00:96::/112"];
    shop.cluster.node_mut(0).start_agent_with(&source, &args)?;
    let routes = |shop: &Shop| -> Result<String> {
        let node = shop.cluster.node(0).netns();
        Ok(node.ip_output(&["route", "show", "type", "blackhole"])?
            + &node.ip_output(&["-6", "route", "show", "type", "blackhole"])?)
    };
    let there = |shop: &Shop, want: &[&str]| {
        wait_ok("the routes", PATIENCE, || {
            let text = routes(shop)?;
            let found: Vec<&str> = text.lines().filter(|line| line.contains("proto 93")).collect();
            if found.len() == want.len() && want.iter().all(|w| text.contains(w)) {
                return Ok(());
            }
            bail!("{text}")
        })
    };
    let both = ["blackhole 10.96.0.0/16 proto 93", "blackhole fd00:96::/112 "];
    there(&shop, &both)?;
    let problem = "10.97.0.0/16";
    let status = shop.cluster.node(0).proxyctl(&["status"])?;
    assert!(status.lines().any(|l| l.starts_with("Problem") && l.contains(problem)), "{status}");
    let node = shop.cluster.node(0).netns();
    node.ip("route del blackhole 10.96.0.0/16\nroute del blackhole fd00:96::/112")?;
    there(&shop, &both)?;
    // While the agent is away the range changes.
    shop.cluster.node_mut(0).stop_agent()?;
    there(&shop, &both)?;
    let args = ["--service-cluster-ip-range", "10.96.0.0/17"];
    shop.cluster.node_mut(0).start_agent_with(&source, &args)?;
    there(&shop, &["blackhole 10.96.0.0/17 proto 93"])?;
    shop.cluster.node_mut(0).stop_agent()?;
    shop.cluster.node_mut(0).start_agent(&source)?;
    there(&shop, &[])?;
    assert!(routes(&shop)?.contains("blackhole 10.97.0.0/16"), "a foreign route is gone");
    Ok(())
}
