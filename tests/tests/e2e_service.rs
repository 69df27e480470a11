//! Services on a real kernel: who reaches them, by which path, and what answers.

use std::collections::BTreeSet;

use sluice_tests::manifests::Service;
use sluice_tests::process::Launch;
use sluice_tests::shop::{Shop, WEB_V4, WEB_V6, web_service};
use sluice_tests::wait::wait_ok;
use sluice_tests::{PATIENCE, Result, bin, pod};

/// Asks over TCP and UDP, both families, and expects a web pod each time.
fn ask_every_way(who: &str, testapp: impl Fn() -> Launch) -> Result<()> {
    let web = BTreeSet::from(["web-0".to_owned(), "web-1".to_owned()]);
    for target in [WEB_V4, WEB_V6] {
        let answer = pod::get(testapp(), target)?;
        assert!(web.contains(&answer.pod), "{who}, TCP {target}: {answer:?}");
        let answer = pod::udp(testapp(), target.parse()?)?;
        assert!(web.contains(&answer.pod), "{who}, UDP {target}: {answer:?}");
        // The program checks that the answers come from the service address, too.
        let lines = testapp().args(["udp", target, "--unconnected", "--count", "3"]).run()?;
        assert_eq!(lines.lines().count(), 3, "{who}, unconnected UDP {target}: {lines}");
    }
    Ok(())
}

/// S1
#[test]
fn a_cluster_ip_serves_pods_and_host_processes_over_tcp_and_udp_in_both_families() -> Result<()> {
    let shop = Shop::open()?;
    let testapp = bin("testapp")?;
    ask_every_way("pod on node-a", || shop.client.launch(&testapp))?;
    ask_every_way("backend itself", || shop.web[1].launch(&testapp))?;
    for node in shop.cluster.nodes() {
        ask_every_way(node.name(), || node.launch(&testapp))?;
    }

    // Spread: chi-square with one degree of freedom over 10,000 connections. 19.5 is exceeded by chance once in
    // 100,000 runs.
    let report = shop.client.load(WEB_V4, 10_000)?;
    assert_eq!((report.ok, report.failed), (10_000, 0), "{report:?}");
    let half = 5_000.0;
    let chi_square: f64 = report
        .backends
        .values()
        .map(|count| (f64::from(u32::try_from(*count).unwrap()) - half).powi(2) / half)
        .sum();
    assert_eq!(report.backends.len(), 2, "{report:?}");
    assert!(chi_square < 19.5, "chi-square {chi_square}: {report:?}");
    Ok(())
}

/// S2
#[test]
fn one_address_and_port_leads_elsewhere_for_tcp_than_for_udp() -> Result<()> {
    let shop = Shop::open()?;
    let (tcp, udp) = ("10.96.0.20:53", "10.96.0.20:53".parse()?);
    let split = Service::new("shop", "split-tcp").cluster_ip("10.96.0.20").tcp("tcp", 53, 8080);
    shop.cluster.apply("split-tcp", &split.with_endpoints(&[&shop.web[0]]))?;
    let split = Service::new("shop", "split-udp").cluster_ip("10.96.0.20").udp("udp", 53, 8080);
    shop.cluster.apply("split-udp", &split.with_endpoints(&[&shop.web[1]]))?;
    shop.cluster.wait_served(0, tcp)?;
    wait_ok("UDP to be served", PATIENCE, || shop.client.udp(udp))?;
    for _ in 0..8 {
        assert_eq!(shop.client.get(tcp)?.pod, "web-0");
        assert_eq!(shop.client.udp(udp)?.pod, "web-1");
    }
    Ok(())
}

#[test]
fn packets_that_no_socket_hook_saw_are_translated_one_by_one() -> Result<()> {
    let shop = Shop::open()?;
    let testapp = bin("testapp")?;
    ask_every_way("unhooked process in a pod", || shop.client.launch_unhooked(&testapp))?;
    let launch = shop.client.launch_unhooked(&testapp);
    let report = pod::load(launch, WEB_V4, 500)?;
    assert_eq!((report.ok, report.failed), (500, 0), "{report:?}");
    assert_eq!(report.backends.len(), 2, "local and remote backends: {report:?}");
    Ok(())
}

#[test]
fn pods_reach_pods_and_nodes_across_nodes_with_their_own_addresses() -> Result<()> {
    let shop = Shop::open()?;
    let v4 = format!("{}:8080", shop.web[1].ipv4()?);
    let v6 = format!("[{}]:8080", shop.web[1].ipv6()?);
    let answer = shop.client.get(&v4)?;
    assert_eq!(answer.pod, "web-1");
    assert!(answer.peer.starts_with(&format!("{}:", shop.client.ipv4()?)), "{answer:?}");
    let answer = shop.client.get(&v6)?;
    assert!(answer.peer.starts_with(&format!("[{}]:", shop.client.ipv6()?)), "{answer:?}");
    for node in shop.cluster.nodes() {
        assert_eq!(node.get(&v4)?.pod, "web-1", "from {}", node.name());
        assert_eq!(node.get(&v6)?.pod, "web-1", "from {}", node.name());
    }
    Ok(())
}

#[test]
fn a_service_without_endpoints_refuses_until_it_has_one() -> Result<()> {
    let shop = Shop::open()?;
    let empty = Service::new("shop", "empty").cluster_ip("10.96.0.30").tcp("http", 80, 8080);
    shop.cluster.apply("empty", &empty.with_endpoints(&[]))?;
    let refused = || -> Result<()> {
        match shop.client.get("10.96.0.30:80") {
            Err(error) if format!("{error:#}").contains("refused") => Ok(()),
            other => anyhow::bail!("{other:?}"),
        }
    };
    wait_ok("the refusal", PATIENCE, refused)?;
    shop.cluster.apply("empty", &empty.with_endpoints(&[&shop.web[0]]))?;
    shop.cluster.wait_served(0, "10.96.0.30:80")?;
    shop.cluster.apply("empty", &empty.with_endpoints(&[]))?;
    wait_ok("the refusal again", PATIENCE, refused)
}

#[test]
fn a_headless_service_has_no_frontend_and_disturbs_nothing() -> Result<()> {
    let shop = Shop::open()?;
    let headless = Service::new("shop", "headless").cluster_ip("None").tcp("http", 80, 8080);
    let next = Service::new("shop", "next").cluster_ip("10.96.0.40").tcp("http", 80, 8080);
    let pods: Vec<_> = shop.web.iter().collect();
    let both = format!("{}---\n{}", headless.with_endpoints(&pods), next.with_endpoints(&pods));
    shop.cluster.apply("headless", &both)?;
    shop.cluster.wait_served(0, "10.96.0.40:80")?;
    let list = shop.cluster.node(0).proxyctl(&["service", "list"])?;
    let frontends: Vec<_> = list.lines().filter(|line| line.contains("headless")).collect();
    assert!(frontends.iter().all(|line| !line.contains(":80")), "{list}");
    Ok(())
}

#[test]
fn a_service_that_is_deleted_is_served_no_more() -> Result<()> {
    let shop = Shop::open()?;
    shop.cluster.delete("web")?;
    for target in [WEB_V4, WEB_V6] {
        wait_ok("the end of the service", PATIENCE, || {
            // No route leads to the address once nothing translates it: any failure will do, an answer will not.
            let launch = shop.client.launch(bin("testapp")?);
            match launch.args(["get", target, "--timeout", "0.5"]).run() {
                Ok(answer) => anyhow::bail!("still served: {answer}"),
                Err(_) => Ok(()),
            }
        })?;
    }
    shop.cluster.apply("web", &web_service().with_endpoints(&[&shop.web[1]]))?;
    shop.cluster.wait_served(0, WEB_V4)?;
    assert_eq!(shop.client.get(WEB_V4)?.pod, "web-1");
    Ok(())
}
