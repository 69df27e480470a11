//! The cluster's DNS on every node: who answers, and what a restart of it costs.

use sluice_tests::dns::{DNS_V4, DNS_V6, DnsCluster, DnsLoad, DnsLoadReport, WHO};
use sluice_tests::manifests::Service;
use sluice_tests::wait::wait_ok;
use sluice_tests::{PATIENCE, Result, bin};

/// Queries a second, of all nodes together; `SLUICE_DNS_RATE` says otherwise.
const RATE: u64 = 3000;

fn rate() -> u64 {
    std::env::var("SLUICE_DNS_RATE").ok().and_then(|text| text.parse().ok()).unwrap_or(RATE)
}

/// What the instance of a node says to [`WHO`].
fn who(node: usize) -> Vec<String> {
    vec![format!("192.0.2.{}", 1 + node)]
}

/// Names for loads: a ClusterIP, a headless Service with an address a node, and no such name.
fn names(dns: &DnsCluster) -> Result<Vec<String>> {
    let web = Service::new("shop", "web").cluster_ip("10.96.0.80").tcp("http", 80, 8080);
    let db = Service::new("shop", "db").cluster_ip("None").tcp("db", 5432, 5432);
    let clients: Vec<_> = dns.clients.iter().collect();
    dns.cluster.apply("web", &web.yaml())?;
    dns.cluster.apply("db", &db.with_endpoints(&clients))?;
    for index in 0..dns.pods.len() {
        dns.wait_for_name(index, "web.shop.svc.cluster.local")?;
        dns.wait_for_name(index, "db.shop.svc.cluster.local")?;
    }
    let mut addrs = Vec::new();
    for client in &dns.clients {
        addrs.push(client.ipv4()?.to_string());
    }
    Ok(vec![
        "web.shop.svc.cluster.local=10.96.0.80".to_owned(),
        format!("db.shop.svc.cluster.local={}", addrs.join("+")),
        "no-such.shop.svc.cluster.local=".to_owned(),
    ])
}

/// A load in the client of each node, half of them by IPv6.
fn loads(dns: &DnsCluster, names: &[String]) -> Result<Vec<DnsLoad>> {
    let each = rate() / dns.clients.len() as u64;
    let start = |(index, client)| {
        let server = if index % 2 == 0 { DNS_V4 } else { DNS_V6 };
        DnsLoad::start(client, "all", server, each, names)
    };
    dns.clients.iter().enumerate().map(start).collect()
}

/// Ends the loads, and prints what each of them has seen, node by node.
fn stop(loads: Vec<DnsLoad>) -> Result<Vec<DnsLoadReport>> {
    let reports = loads.into_iter().map(DnsLoad::stop).collect::<Result<Vec<_>>>()?;
    for (node, report) in reports.iter().enumerate() {
        println!("node {node}: {report:?}");
    }
    Ok(reports)
}

fn total(reports: &[DnsLoadReport]) -> (u64, f64) {
    (reports.iter().map(|r| r.asked).sum(), reports.iter().map(|r| r.rate).sum())
}

/// D19: pods and processes of a node, by UDP and TCP and in both families, are answered by their
/// node's instance, and nothing of it is in the connection table; with it away, by another one, at
/// once; with it back, by it again.
#[test]
fn every_node_is_served_by_its_own_instance() -> Result<()> {
    let mut dns = DnsCluster::open(3)?;
    for node in 0..3 {
        for server in ["10.96.0.10", "fd00:96::10"] {
            for transport in ["+notcp", "+tcp"] {
                for _ in 0..4 {
                    let found = dns.dig(node, server, &[transport, WHO])?;
                    assert_eq!(found, who(node), "{server} {transport} on node {node}");
                }
            }
        }
        let host = dns.cluster.node(node).launch("dig");
        let text = host.args(["+short", "@10.96.0.10", WHO]).run()?;
        assert_eq!(text.trim(), who(node)[0], "a process of node {node}");
        let flows = dns.cluster.node(node).proxyctl(&["conntrack", "list", "-o", "json"])?;
        assert_eq!(flows.trim(), "[]", "node {node}");
    }
    dns.kill(0)?;
    dns.wait_for_others(0)?;
    for _ in 0..8 {
        let found = dns.dig(0, "10.96.0.10", &[WHO])?;
        assert!(found == who(1) || found == who(2), "{found:?}");
    }
    assert_eq!(dns.dig(1, "10.96.0.10", &[WHO])?, who(1), "another node is not concerned");
    dns.start(0)?;
    dns.wait_for_own(0)?;
    assert_eq!(dns.dig(0, "10.96.0.10", &[WHO])?, who(0));
    Ok(())
}

/// D19: an instance that has not read its source yet gets no queries, though its endpoint is ready
/// by the EndpointSlice.
#[test]
fn an_instance_without_a_source_gets_no_queries() -> Result<()> {
    let mut dns = DnsCluster::open(2)?;
    dns.stop(0)?;
    let pod = &dns.pods[0];
    let launch = pod
        .launch(bin("sluice-dns")?)
        // Nobody answers there.
        .args(["--source", "etcd:http://127.0.0.1:1", "--resolv-conf", "/dev/null"])
        .args(["--listen", &format!("{}:53", pod.ipv4()?)]);
    let mut blind = pod.spawn("dns-blind", &launch)?;
    blind.wait_for_log("serving DNS", PATIENCE)?;
    let status = dns.cluster.node(0);
    status.wait_for_view(&["status"], PATIENCE, |view| {
        view.to_string().contains(&format!("{} not ready", pod.addresses()[0]))
    })?;
    for _ in 0..8 {
        assert_eq!(dns.dig(0, "10.96.0.10", &[WHO])?, who(1));
    }
    Ok(())
}

/// D19, S32: an agent that is killed and started again changes nothing: not one query is lost, by the
/// node's own processes either, and all the time the node's instance answers.
#[test]
fn a_new_agent_changes_nothing() -> Result<()> {
    let mut dns = DnsCluster::open(2)?;
    let names = names(&dns)?;
    let loads = loads(&dns, &names)?;
    let source = dns.cluster.source();
    dns.cluster.node_mut(0).kill_agent()?;
    assert_eq!(dns.dig(0, "10.96.0.10", &[WHO])?, who(0));
    dns.cluster.node_mut(0).start_agent(&source)?;
    for _ in 0..8 {
        assert_eq!(dns.dig(0, "10.96.0.10", &[WHO])?, who(0));
    }
    dns.wait_for_own(0)?;
    let flows = dns.cluster.node(0).proxyctl(&["conntrack", "list", "-o", "json"])?;
    assert_eq!(flows.trim(), "[]");
    for load in loads {
        let report = load.stop()?;
        assert!(report.answered > 0, "{report:?}");
        assert_eq!((report.lost, report.wrong, report.reopened), (0, 0, 0), "{report:?}");
    }
    Ok(())
}

/// D19: all instances restarted one after another, with queries from pods of every node by sockets of
/// every kind: not one is lost, and none is answered wrongly.
///
/// With 20,000 queries a second, on a machine that carries them:
/// `SLUICE_DNS_RATE=20000 cargo test --release -p sluice-tests --test e2e_dns rolling -- --nocapture`
#[test]
fn a_rolling_restart_loses_no_query() -> Result<()> {
    let mut dns = DnsCluster::open(3)?;
    let names = names(&dns)?;
    let loads = loads(&dns, &names)?;
    for node in 0..3 {
        dns.stop(node)?;
        dns.start(node)?;
        dns.wait_for_own(node)?;
    }
    let reports = stop(loads)?;
    let (asked, rate) = total(&reports);
    println!("{asked} queries, {rate:.0} a second");
    for (node, report) in reports.iter().enumerate() {
        assert!(report.answered > 0, "node {node}: {report:?}");
        assert_eq!((report.lost, report.wrong), (0, 0), "node {node}: {report:?}");
        assert_eq!(report.answered, report.asked, "node {node}: {report:?}");
    }
    Ok(())
}

/// D19: an instance that is killed loses what it has in hand and what is asked until that is noticed,
/// and no more; clients of other nodes lose nothing.
#[test]
fn a_killed_instance_loses_only_what_it_has_in_hand() -> Result<()> {
    let mut dns = DnsCluster::open(3)?;
    let names = names(&dns)?;
    let loads = loads(&dns, &names)?;
    dns.kill(1)?;
    dns.wait_for_others(1)?;
    let after = DnsLoad::start(&dns.clients[1], "after", DNS_V4, rate() / 3, &names)?;
    // As long as it takes to see that nothing more gets lost.
    wait_ok("answers after the kill", PATIENCE, || {
        dns.dig(1, "10.96.0.10", &["web.shop.svc.cluster.local"]).map(drop)
    })?;
    dns.start(1)?;
    dns.wait_for_own(1)?;
    let after = after.stop()?;
    assert_eq!((after.lost, after.wrong), (0, 0), "{after:?}");
    for (node, report) in stop(loads)?.iter().enumerate() {
        assert_eq!(report.wrong, 0, "node {node}: {report:?}");
        // Of a second's queries, most were answered.
        let bound = if node == 1 { rate() / 3 } else { 0 };
        assert!(report.lost <= bound, "node {node}: {report:?}");
    }
    Ok(())
}
