//! What the cluster's zone answers on real sockets.

use std::fmt::Write as _;
use std::io::Write as _;
use std::net::{SocketAddr, TcpStream, UdpSocket};

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::RecordType;

use crate::support::{Dns, answers, ask_udp, eventually, query};

const SHOP: &str = r#"
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
  clusterIP: 10.96.0.10
  clusterIPs: [10.96.0.10]
  ports: [{name: http, port: 80}]
"#;

/// A headless Service with one endpoint slice of these addresses.
fn headless(addresses: impl IntoIterator<Item = String>) -> String {
    let mut text = format!(
        r#"{SHOP}---
apiVersion: v1
kind: Service
metadata: {{name: db, namespace: shop}}
spec: {{clusterIP: None, ports: [{{name: pg, port: 5432}}]}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: db-1
  namespace: shop
  labels: {{kubernetes.io/service-name: db}}
addressType: IPv4
ports: [{{name: pg, port: 5432}}]
endpoints:
"#
    );
    for address in addresses {
        writeln!(text, "- {{addresses: [{address}]}}").expect("a string");
    }
    text
}

fn db(addresses: &[&str]) -> Vec<String> {
    let record = |a: &&str| format!("db.shop.svc.cluster.local. 5 IN A {a}");
    addresses.iter().map(record).collect()
}

/// D1, D2, D3: by UDP and by TCP, the same answers.
#[test]
fn services_are_answered_by_udp_and_tcp() {
    let dns = Dns::start(SHOP, &[]);
    let name = "web.shop.svc.cluster.local.";
    for ask in [Dns::udp, Dns::tcp] {
        let reply = ask(&dns, name, RecordType::A);
        assert!(reply.metadata.authoritative && !reply.metadata.truncation);
        assert_eq!(answers(&reply), [format!("{name} 5 IN A 10.96.0.10")]);

        let nodata = ask(&dns, name, RecordType::AAAA);
        assert_eq!(nodata.metadata.response_code, ResponseCode::NoError);
        assert!(nodata.answers.is_empty());
        assert_eq!(nodata.authorities[0].record_type(), RecordType::SOA);

        let port = format!("_http._tcp.{name}");
        let srv = ask(&dns, &port, RecordType::SRV);
        assert_eq!(answers(&srv), [format!("{port} 5 IN SRV 0 100 80 {name}")]);
        assert_eq!(srv.additionals[0].to_string(), format!("{name} 5 IN A 10.96.0.10"));

        let reverse = "10.0.96.10.in-addr.arpa.";
        let ptr = ask(&dns, reverse, RecordType::PTR);
        assert_eq!(answers(&ptr), [format!("{reverse} 5 IN PTR {name}")]);

        let unknown = ask(&dns, "nosuch.shop.svc.cluster.local.", RecordType::A);
        assert_eq!(unknown.metadata.response_code, ResponseCode::NXDomain);
    }
}

/// D4: a changed set of endpoints is answered without a restart, and an empty one is no name.
#[test]
fn endpoints_follow_the_manifest() {
    let name = "db.shop.svc.cluster.local.";
    let dns = Dns::start(&headless(["10.1.0.1".to_owned()]), &[]);
    let ask = |expected: &[String]| {
        let expected: Vec<_> = expected.iter().map(String::as_str).collect();
        dns.udp_until(name, RecordType::A, &expected);
    };
    ask(&db(&["10.1.0.1"]));
    dns.rewrite(&headless(["10.1.0.1", "10.1.0.2"].map(str::to_owned)));
    ask(&db(&["10.1.0.1", "10.1.0.2"]));
    let second = "172-16-0-1.db.shop.svc.cluster.local.";
    assert_eq!(dns.udp(second, RecordType::A).metadata.response_code, ResponseCode::NXDomain);
    dns.rewrite(SHOP);
    eventually(|| match dns.udp(name, RecordType::A).metadata.response_code {
        ResponseCode::NXDomain => Ok(()),
        other => Err(format!("{other}")),
    });
}

/// D5: a Service that changes from ExternalName to ClusterIP answers so.
#[test]
fn an_alias_that_becomes_a_cluster_ip_answers_with_it() {
    let service = |spec: &str| {
        format!(
            "{SHOP}---\napiVersion: v1\nkind: Service\nmetadata: {{name: x, namespace: shop}}\nspec: {spec}\n"
        )
    };
    let name = "x.shop.svc.cluster.local.";
    let alias = "{type: ExternalName, externalName: web.shop.svc.cluster.local}";
    let dns = Dns::start(&service(alias), &[]);
    let expected = [
        "web.shop.svc.cluster.local. 5 IN A 10.96.0.10",
        "x.shop.svc.cluster.local. 5 IN CNAME web.shop.svc.cluster.local.",
    ];
    dns.udp_until(name, RecordType::A, &expected);
    dns.rewrite(&service("{clusterIP: 10.96.0.77, ports: [{port: 80}]}"));
    dns.udp_until(name, RecordType::A, &["x.shop.svc.cluster.local. 5 IN A 10.96.0.77"]);
}

/// D11: what does not fit into a datagram is cut, and whole by TCP.
#[test]
fn a_large_set_is_cut_by_udp_and_whole_by_tcp() {
    let dns = Dns::start(&headless((1..=250).map(|n| format!("10.1.0.{n}"))), &[]);
    let name = "db.shop.svc.cluster.local.";
    let cut = dns.udp(name, RecordType::A);
    assert!(cut.metadata.truncation && !cut.answers.is_empty());
    let whole = dns.tcp(name, RecordType::A);
    assert!(!whole.metadata.truncation);
    assert_eq!(whole.answers.len(), 250);
}

/// D9: the TTL and the domain are flags.
#[test]
fn domain_and_ttl_are_those_of_the_flags() {
    let dns = Dns::start(SHOP, &["--cluster-domain=k8s.example.org", "--ttl=30"]);
    let name = "web.shop.svc.k8s.example.org.";
    let reply = dns.udp(name, RecordType::A);
    assert_eq!(answers(&reply), [format!("{name} 30 IN A 10.96.0.10")]);
}

/// D18: garbage and clients that stall cost the others nothing.
#[test]
fn garbage_and_stalling_clients_do_not_stop_the_server() {
    let dns = Dns::start(SHOP, &[]);
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    let good = query("web.shop.svc.cluster.local.", RecordType::A).to_vec().expect("a message");
    for n in 0..2000usize {
        // Every beginning of a query, and bytes without sense.
        let garbage: Vec<u8> = match n % 2 {
            0 => good[..n / 2 % good.len()].to_vec(),
            _ => (0..n % 600).map(|i| ((i * n * 31) >> 3) as u8).collect(),
        };
        socket.send_to(&garbage, dns.addr).expect("sent");
    }
    let stalled: Vec<_> = (0..50)
        .map(|_| {
            let mut stream = TcpStream::connect(dns.addr).expect("connected");
            stream.write_all(&[0xff, 0xff, 1]).expect("sent");
            stream
        })
        .collect();
    for ask in [Dns::udp, Dns::tcp] {
        assert_eq!(ask(&dns, "web.shop.svc.cluster.local.", RecordType::A).answers.len(), 1);
    }
    drop(stalled);
}

/// A socket bound to the wildcard answers from the address that was asked.
#[test]
fn an_answer_comes_from_the_address_that_was_asked() {
    for listen in ["0.0.0.0:0", "127.0.0.1:0"] {
        let dns = Dns::start_on(listen, SHOP, &[]);
        let asked = if listen.starts_with('0') { [127, 0, 0, 2] } else { [127, 0, 0, 1] };
        let addr = SocketAddr::from((asked, dns.addr.port()));
        // The connected socket takes nothing from elsewhere.
        let reply = ask_udp(addr, &query("ns.dns.cluster.local.", RecordType::A));
        let [a, b, c, d] = asked;
        assert_eq!(answers(&reply), [format!("ns.dns.cluster.local. 5 IN A {a}.{b}.{c}.{d}")]);
    }
}

/// D10: the store is lost, and what it said is answered on.
#[test]
fn a_lost_source_leaves_the_answers_as_they_were() {
    let mut dns = Dns::start(SHOP, &[]);
    let away = dns.manifests.path().with_extension("away");
    std::fs::rename(dns.manifests.path(), &away).expect("renamed");
    dns.wait_for_log("cannot read the manifest directory");
    assert_eq!(dns.udp("web.shop.svc.cluster.local.", RecordType::A).answers.len(), 1);
    assert_eq!(dns.probe("/ready"), "HTTP/1.1 200 OK");
    std::fs::rename(&away, dns.manifests.path()).expect("renamed");
}

/// O5: one broken object is warned about, and the others are served.
#[test]
fn a_broken_object_is_skipped_with_a_warning() {
    let broken = "---\napiVersion: v1\nkind: Service\nmetadata: {name: bad, namespace: shop}\n\
                  spec: {clusterIP: 10.96.0.300, ports: [{port: 80}]}\n";
    let mut dns = Dns::start(&format!("{SHOP}{broken}"), &[]);
    assert_eq!(dns.udp("web.shop.svc.cluster.local.", RecordType::A).answers.len(), 1);
    let warning = dns.wait_for_log("shop/bad");
    assert!(warning.contains("WARN") && warning.contains("10.96.0.300"), "{warning}");
}
