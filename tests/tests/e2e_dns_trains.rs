//! Answers that leave `sluice-dns` as trains of datagrams (`UDP_SEGMENT`): on every way between a client and an
//! instance they arrive one by one, each once, from the address that was asked.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use sluice_tests::cluster::WorkDir;
use sluice_tests::dns::{DNS_V4, DNS_V6, DnsCluster, DnsFloodReport};
use sluice_tests::manifests::Service;
use sluice_tests::netns::NetNs;
use sluice_tests::pod::Pod;
use sluice_tests::process::Launch;
use sluice_tests::wait::wait_ok;
use sluice_tests::{PATIENCE, Result, bin};

/// Queries of one run of the client.
const COUNT: u64 = 2000;
/// Sockets, and queries under way by all of them: A and AAAA by each socket as a resolver asks, and as many as a
/// proxy or a cache has.
const CLIENTS: [(usize, usize); 2] = [(8, 16), (2, 64)];

/// Asks by one client, and makes sure that every query is answered, rightly and once.
fn ask(
    client: Launch,
    server: &str,
    queries: &Path,
    (sockets, under_way): (usize, usize),
) -> Result<()> {
    let text = client
        .arg(server)
        .arg(queries)
        .arg(format!("--sockets={sockets}"))
        .arg(format!("--under-way={under_way}"))
        .arg(format!("--count={COUNT}"))
        .arg(format!("--timeout={}", PATIENCE.as_millis()))
        .run()?;
    let report: DnsFloodReport = serde_json::from_str(&text).with_context(|| text.clone())?;
    ensure!((report.answered, report.lost, report.wrong) == (COUNT, 0, 0), "{server}: {report:?}");
    Ok(())
}

/// How often something was counted in a network namespace, as `/proc/net/snmp` and `snmp6` name it: the group and
/// the counter of the one, the counter of the other.
fn counted(netns: &NetNs, group: &str, name: &str, name6: &str) -> Result<u64> {
    netns.run(|| {
        let text = std::fs::read_to_string("/proc/thread-self/net/snmp").context("snmp")?;
        let mut lines =
            text.lines().filter_map(|line| line.strip_prefix(group)?.strip_prefix(": "));
        let (names, values) = lines.next().zip(lines.next()).context("a group of snmp")?;
        let mut pairs = names.split(' ').zip(values.split(' '));
        let value = pairs.find(|(it, _)| *it == name).context("a counter of snmp")?.1;
        let text = std::fs::read_to_string("/proc/thread-self/net/snmp6").context("snmp6")?;
        let value6 =
            text.lines().find_map(|line| line.strip_prefix(name6)).context("a counter of snmp6")?;
        Ok(value.parse::<u64>()? + value6.trim().parse::<u64>()?)
    })?
}

/// How many datagrams a namespace has sent. A train counts as one.
fn sent(netns: &NetNs) -> Result<u64> {
    counted(netns, "Udp", "OutDatagrams", "Udp6OutDatagrams")
}

/// A file of queries for A and AAAA in pairs, for which there are answers of several lengths, and none.
fn queries(dir: &Path) -> Result<PathBuf> {
    let path = dir.join("queries.txt");
    let mut text = String::new();
    for name in ["web.shop", "second-web.shop", "db.shop"] {
        text += &format!(
            ";expect answer\n{name}.svc.cluster.local. A\n{name}.svc.cluster.local. AAAA\n"
        );
        text += ";expect nxdomain\nno-such.shop.svc.cluster.local. A\nno-such.shop.svc.cluster.local. AAAA\n";
    }
    std::fs::write(&path, text).with_context(|| path.display().to_string())?;
    Ok(path)
}

/// Two nodes with an instance on each, and the names of [`queries`].
fn open() -> Result<(DnsCluster, PathBuf)> {
    let dns = DnsCluster::open(2)?;
    let service = |name: &str, last: u8| {
        Service::new("shop", name)
            .cluster_ip(&format!("10.96.0.{last}"))
            .cluster_ip(&format!("fd00:96::{last}"))
            .tcp("http", 80, 8080)
    };
    dns.cluster.apply("web", &service("web", 80).yaml())?;
    dns.cluster.apply("second-web", &service("second-web", 81).yaml())?;
    let db = Service::new("shop", "db").cluster_ip("None").tcp("db", 5432, 5432);
    let clients: Vec<&Pod> = dns.clients.iter().collect();
    dns.cluster.apply("db", &db.with_endpoints(&clients))?;
    for index in 0..dns.pods.len() {
        for name in ["web", "second-web", "db"] {
            dns.wait_for_name(index, &format!("{name}.shop.svc.cluster.local"))?;
        }
    }
    let queries = queries(dns.cluster.dir())?;
    Ok((dns, queries))
}

/// Asks the server from a pod, as sockets that a program connects to an endpoint and as packets that are translated
/// one by one, and makes sure that there were trains among what the instance sent.
fn ask_both_ways(client: &Pod, server: &str, queries: &Path, instance: &Pod) -> Result<()> {
    let before = sent(instance.netns())?;
    let mut asked = 0;
    for sockets in CLIENTS {
        ask(client.launch(bin("dnsflood")?), server, queries, sockets)?;
        ask(client.launch_unhooked(bin("dnsflood")?), server, queries, sockets)?;
        asked += 2 * COUNT;
    }
    let sent = sent(instance.netns())? - before;
    ensure!(sent < asked, "{server}: {sent} datagrams for {asked} answers: no train among them");
    Ok(())
}

/// Every way from the client of node 0: to the instance there and to the other one, through the Service and not.
fn ask_every_way(dns: &DnsCluster, queries: &Path) -> Result<()> {
    let client = &dns.clients[0];
    for server in [DNS_V4, DNS_V6] {
        ask_both_ways(client, server, queries, &dns.pods[0])?;
    }
    for instance in &dns.pods {
        ask_both_ways(client, &format!("{}:53", instance.ipv4()?), queries, instance)?;
        ask_both_ways(client, &format!("[{}]:53", instance.ipv6()?), queries, instance)?;
    }
    Ok(())
}

/// The clients may ask the instances for names and do nothing else, and the instances may send nothing but answers.
const POLICIES: &str = "apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: dns, namespace: kube-system}
spec:
  podSelector: {}
  policyTypes: [Ingress, Egress]
  ingress:
  - from: [{namespaceSelector: {}, podSelector: {matchLabels: {app: client}}}]
    ports: [{port: 53, protocol: UDP}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: client, namespace: shop}
spec:
  podSelector: {}
  policyTypes: [Ingress, Egress]
  egress:
  - to: [{namespaceSelector: {}, podSelector: {matchLabels: {app: dns}}}]
    ports: [{port: 53, protocol: UDP}]
";

/// Waits until both nodes' kernels hold the policies, for every pair of a client and an instance.
fn wait_for_policies(dns: &DnsCluster) -> Result<()> {
    let judged =
        |node: usize, client: &Pod, instance: &Pod, port: &str, allowed: bool| -> Result<()> {
            let [from, to] =
                [client, instance].map(|pod| format!("{}/{}", pod.namespace(), pod.name()));
            let words = ["policy", "trace", &from, &to, port, "-o", "json"];
            let text = dns.cluster.node(node).proxyctl(&words)?;
            let trace: serde_json::Value = serde_json::from_str(&text)?;
            ensure!(trace["agree"] == true && trace["allowed"] == allowed, "node {node}: {text}");
            Ok(())
        };
    wait_ok("the policies to be in force", PATIENCE, || {
        for (from, client) in dns.clients.iter().enumerate() {
            for (to, instance) in dns.pods.iter().enumerate() {
                for node in [from, to] {
                    judged(node, client, instance, "53/UDP", true)?;
                    judged(node, client, instance, "80/TCP", false)?;
                }
            }
        }
        Ok(())
    })
}

/// D11, D19: A and AAAA asked at once by one socket, and many queries by few, are all answered, from the address
/// that was asked: on the node and from another one, through the Service and past it, at the socket and packet by
/// packet; and so they are with policies in force, under which answers pass because they were asked for.
#[test]
fn queries_that_are_asked_at_once_are_all_answered() -> Result<()> {
    let (mut dns, queries) = open()?;
    ask_every_way(&dns, &queries)?;

    for (pods, app) in [(&dns.clients, "client"), (&dns.pods, "dns")] {
        for pod in pods {
            dns.cluster.apply(&format!("pod-{}", pod.name()), &pod.manifest(&[("app", app)]))?;
        }
    }
    dns.cluster.apply("policies", POLICIES)?;
    wait_for_policies(&dns)?;
    ask_every_way(&dns, &queries)?;

    // The Service's only endpoint is on the other node: its answers are translated where they come in.
    dns.kill(0)?;
    dns.wait_for_others(0)?;
    for server in [DNS_V4, DNS_V6] {
        ask_both_ways(&dns.clients[0], server, &queries, &dns.pods[1])?;
    }
    Ok(())
}

/// D11: a way whose packets are shorter than an answer takes no trains, and every answer arrives all the same.
#[test]
fn a_way_that_takes_no_trains_takes_the_answers_one_by_one() -> Result<()> {
    let dir = WorkDir::new("dns-trains")?;
    let netns = NetNs::new("dnstrains")?;
    let manifests = dir.path().join("manifests");
    std::fs::create_dir(&manifests)?;
    let endpoints: Vec<String> = (1..=25).map(|n| format!("{{addresses: [10.1.0.{n}]}}")).collect();
    let db = Service::new("shop", "db").cluster_ip("None").tcp("db", 5432, 5432).yaml();
    let slice = format!(
        "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: db-1, namespace: shop, \
         labels: {{kubernetes.io/service-name: db}}}}\naddressType: IPv4\nports: [{{name: db, port: 5432}}]\n\
         endpoints: [{}]\n",
        endpoints.join(", ")
    );
    std::fs::write(manifests.join("db.yaml"), db + &slice)?;
    let queries = dir.path().join("queries.txt");
    std::fs::write(&queries, "db.shop.svc.cluster.local. A\n")?;
    // Bound to an address, and to all of them: answers leave by different calls.
    for (listen, server) in [("127.0.0.1:53", "127.0.0.1:53"), ("0.0.0.0:54", "127.0.0.2:54")] {
        let launch = netns.launch(bin("sluice-dns")?).args([
            format!("--source=dir:{}", manifests.display()),
            format!("--listen={listen}"),
            "--resolv-conf=/dev/null".to_owned(),
            "--health-bind-address=".to_owned(),
            "--ready-bind-address=".to_owned(),
            "--metrics-bind-address=".to_owned(),
        ]);
        let mut process = launch.spawn(&dir.path().join(format!("{}.log", &listen[..3])))?;
        process.wait_for_log("synced", PATIENCE)?;
        let fragments = || counted(&netns, "Ip", "FragCreates", "Ip6FragCreates");
        // An answer has 445 octets, a query 46.
        for (mtu, trains) in [(65536, true), (300, false)] {
            netns.ip(&format!("link set lo mtu {mtu}"))?;
            let before = (sent(&netns)?, fragments()?);
            ask(netns.launch(bin("dnsflood")?), server, &queries, (2, 64))?;
            let (sent, fragments) = (sent(&netns)? - before.0, fragments()? - before.1);
            // What the client sends is counted there, too: at least one datagram, at most one a query.
            if trains {
                ensure!(
                    sent < COUNT && fragments == 0,
                    "{listen}: {sent} sent, {fragments} fragments"
                );
            } else {
                ensure!(
                    sent > COUNT && fragments >= 2 * COUNT,
                    "{listen}: {sent} sent, {fragments} fragments"
                );
            }
        }
    }
    Ok(())
}
