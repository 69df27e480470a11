//! What whoever runs the server sees and changes.

use std::net::UdpSocket;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::RecordType;

use crate::support::{Dns, Upstream, WEB, answers, eventually, query, response};

const SHOP: &str = r#"
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.96.0.10, clusterIPs: [10.96.0.10], ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Pod
metadata: {name: worker, namespace: shop}
spec: {nodeName: n1}
status: {phase: Running, podIP: 10.1.0.7, podIPs: [{ip: 10.1.0.7}]}
"#;

/// D17: what was answered is counted under CoreDNS's names, whichever way it was answered.
#[test]
fn answers_are_counted() {
    let upstream =
        Upstream::start(|query, _| vec![response(query, ResponseCode::NoError, &[[192, 0, 2, 1]])]);
    let dns = Dns::start(SHOP, &[&upstream.flag()]);
    for _ in 0..3 {
        dns.udp(WEB, RecordType::A);
        dns.udp("example.com.", RecordType::A);
    }
    dns.tcp(WEB, RecordType::TXT);
    dns.udp("nosuch.shop.svc.cluster.local.", RecordType::AAAA);
    let server = "server=\"dns://:53\",zone=\".\",view=\"\"";
    let expected = [
        format!("coredns_dns_requests_total{{{server},proto=\"udp\",family=\"1\",type=\"A\"}} 6"),
        format!("coredns_dns_requests_total{{{server},proto=\"tcp\",family=\"1\",type=\"TXT\"}} 1"),
        format!("coredns_dns_responses_total{{{server},rcode=\"NXDOMAIN\",plugin=\"\"}} 1"),
        format!("coredns_dns_request_size_bytes_count{{{server},proto=\"udp\"}} 7"),
        format!("coredns_dns_response_size_bytes_count{{{server},proto=\"tcp\"}} 1"),
        format!("coredns_dns_responses_total{{{server},rcode=\"NOERROR\",plugin=\"\"}} 7"),
        "coredns_cache_hits_total{type=\"success\"} 2".to_owned(),
        "coredns_cache_misses_total 1".to_owned(),
        "coredns_cache_entries{type=\"success\"} 1".to_owned(),
        format!("sluice_dns_upstream_down{{to=\"{}\"}} 0", upstream.addr),
    ];
    // A worker counts after it has sent.
    eventually(|| {
        let text = dns.http("/metrics");
        match expected.iter().find(|line| !text.lines().any(|it| it == *line)) {
            None => Ok(()),
            Some(line) => Err(format!("no {line} in\n{text}")),
        }
    });
}

/// D17: the query log has a line a query, if it is asked for.
#[test]
fn the_query_log_is_an_option() {
    let mut dns = Dns::start(SHOP, &["--query-log"]);
    dns.udp(WEB, RecordType::A);
    let line = dns.wait_for_log(&format!("IN A {WEB}"));
    assert!(line.contains("NoError") || line.contains("No Error"), "{line}");
}

/// D7: pods by their address, where a pod has it.
#[test]
fn verified_pods_have_records() {
    let dns = Dns::start(SHOP, &["--pod-records=verified"]);
    let name = "10-1-0-7.shop.pod.cluster.local.";
    dns.udp_until(name, RecordType::A, &[&format!("{name} 5 IN A 10.1.0.7")]);
    let other = dns.udp("10-1-0-8.shop.pod.cluster.local.", RecordType::A);
    assert_eq!(other.metadata.response_code, ResponseCode::NXDomain);
}

/// D12: a stub domain has upstreams of its own.
#[test]
fn a_stub_domain_is_asked_elsewhere() {
    let start = |address: [u8; 4]| {
        Upstream::start(move |query, _| vec![response(query, ResponseCode::NoError, &[address])])
    };
    let (all, corp) = (start([192, 0, 2, 1]), start([192, 0, 2, 2]));
    let stub = format!("--stub-domain=corp.example={}", corp.addr);
    let dns = Dns::start("", &[&all.flag(), &stub]);
    let ask = |name: &str| answers(&dns.udp(name, RecordType::A));
    assert_eq!(ask("a.Corp.example."), ["a.Corp.example. 300 IN A 192.0.2.2"]);
    assert_eq!(ask("xcorp.example."), ["xcorp.example. 300 IN A 192.0.2.1"]);
}

/// D12: an upstream that failed is found to answer again by probing, without a query for it.
#[test]
fn an_upstream_that_comes_back_is_noticed() {
    let (away, probed) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicUsize::new(0)));
    let (gone, probes) = (Arc::clone(&away), Arc::clone(&probed));
    let first = Upstream::start(move |query, _| {
        if query.queries[0].query_type() == RecordType::NS {
            probes.fetch_add(1, Ordering::Relaxed);
        }
        match gone.load(Ordering::Relaxed) {
            // Not what was asked: as good as no answer, and no wait for the client.
            true => vec![],
            false => vec![response(query, ResponseCode::NoError, &[[192, 0, 2, 1]])],
        }
    });
    let second =
        Upstream::start(|query, _| vec![response(query, ResponseCode::NoError, &[[192, 0, 2, 2]])]);
    let mut dns = Dns::start("", &[&first.flag(), &second.flag(), "--cache-size=0"]);
    let ask = |dns: &Dns| answers(&dns.udp("example.com.", RecordType::A));
    let by = |n: u8| vec![format!("example.com. 300 IN A 192.0.2.{n}")];
    assert_eq!(ask(&dns), by(2));
    dns.wait_for_log("does not answer");
    away.store(false, Ordering::Relaxed);
    dns.wait_for_log("answers again");
    assert!(probed.load(Ordering::Relaxed) > 0);
    assert_eq!(ask(&dns), by(1));
}

/// D13: an answer that has run out is better than none.
#[test]
fn what_has_run_out_is_given_where_no_upstream_answers() {
    let away = Arc::new(AtomicBool::new(false));
    let gone = Arc::clone(&away);
    let upstream = Upstream::start(move |query, _| {
        let code = if gone.load(Ordering::Relaxed) {
            ResponseCode::ServFail
        } else {
            ResponseCode::NoError
        };
        let mut response = response(query, code, &[[192, 0, 2, 1]]);
        response.answers.iter_mut().for_each(|record| record.ttl = 1);
        if code == ResponseCode::ServFail {
            response.answers.clear();
        }
        vec![response]
    });
    let dns = Dns::start("", &[&upstream.flag()]);
    assert_eq!(dns.udp("example.com.", RecordType::A).answers.len(), 1);
    away.store(true, Ordering::Relaxed);
    dns.udp_until("example.com.", RecordType::A, &["example.com. 30 IN A 192.0.2.1"]);
}

/// D16: a changed configuration counts without a restart, a wrong one changes nothing, and no query
/// is lost over it.
#[test]
fn the_configuration_is_read_again_without_a_lost_query() {
    let directory = tempfile::TempDir::new().expect("a temporary directory");
    let path = directory.path().join("dns.yaml");
    let write = |text: &str| {
        let new = directory.path().join("new");
        std::fs::write(&new, text).expect("written");
        std::fs::rename(&new, &path).expect("renamed");
    };
    write("ttl: 7\n");
    let mut dns = Dns::start(SHOP, &[&format!("--config={}", path.display())]);
    let record = |ttl: u32| format!("{WEB} {ttl} IN A 10.96.0.10");
    assert_eq!(answers(&dns.udp(WEB, RecordType::A)), [record(7)]);

    let (addr, done) = (dns.addr, Arc::new(AtomicBool::new(false)));
    let over = Arc::clone(&done);
    let client = std::thread::spawn(move || {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
        socket.connect(addr).expect("connected");
        socket.set_read_timeout(Some(Duration::from_secs(20))).expect("set");
        let bytes = query(WEB, RecordType::A).to_vec().expect("a message");
        let mut asked = 0;
        while !over.load(Ordering::Relaxed) {
            socket.send(&bytes).expect("sent");
            let mut buffer = [0; 512];
            let length = socket.recv(&mut buffer).expect("every query is answered");
            let reply = Message::from_vec(&buffer[..length]).expect("a message");
            assert_eq!(reply.answers.len(), 1);
            asked += 1;
        }
        asked
    });
    write(
        "ttl: 9\nhosts: {192.0.2.9: [gate.example]}\nrewrites: {shop.example: web.shop.svc.cluster.local}\n",
    );
    dns.wait_for_log("the configuration was read again");
    assert_eq!(answers(&dns.udp(WEB, RecordType::A)), [record(9)]);
    let gate = answers(&dns.udp("gate.example.", RecordType::A));
    assert_eq!(gate, ["gate.example. 3600 IN A 192.0.2.9"]);
    let shop = answers(&dns.udp("shop.example.", RecordType::A));
    assert_eq!(shop, ["shop.example. 9 IN A 10.96.0.10"]);
    write("ttl: 4000\n");
    dns.wait_for_log("the old one stays");
    assert_eq!(answers(&dns.udp(WEB, RecordType::A)), [record(9)]);
    done.store(true, Ordering::Relaxed);
    assert!(client.join().expect("no query is lost") > 0);
}

/// D16: a configuration that cannot be used because of a file that it names is tried again.
#[test]
fn a_configuration_counts_as_soon_as_its_files_are_there() {
    let directory = tempfile::TempDir::new().expect("a temporary directory");
    let (path, authorities) = (directory.path().join("dns.yaml"), directory.path().join("ca.pem"));
    std::fs::write(&path, "ttl: 7\n").expect("written");
    let mut dns = Dns::start(SHOP, &[&format!("--config={}", path.display())]);
    let text = format!(
        "ttl: 9\nupstreams: ['tls://192.0.2.1']\nupstreamTlsCa: {}\n",
        authorities.display()
    );
    std::fs::write(&path, text).expect("written");
    let line = dns.wait_for_log("the old one stays");
    let whole =
        line.contains("--config") && line.contains("upstreamTlsCa") && line.contains("ca.pem");
    assert!(whole, "{line}");
    crate::tls::write_authority(directory.path(), "ca");
    dns.wait_for_log("the configuration was read again");
    assert_eq!(answers(&dns.udp(WEB, RecordType::A)), [format!("{WEB} 9 IN A 10.96.0.10")]);
}

/// D16: what is wrong with the configuration at the start is told once, with its file.
#[test]
fn a_configuration_that_cannot_be_used_is_told() {
    let directory = tempfile::TempDir::new().expect("a temporary directory");
    let failure = |name: &str| {
        let path = directory.path().join(name);
        let output = crate::support::command("dir:/tmp")
            .arg("--listen=127.0.0.1:0")
            .arg(format!("--config={}", path.display()))
            .output()
            .expect("it runs");
        assert!(!output.status.success());
        String::from_utf8(output.stderr).expect("text")
    };
    let error = failure("none.yaml");
    assert!(error.contains("none.yaml"), "{error}");
    assert_eq!(error.matches("No such file").count(), 1, "{error}");
    std::fs::write(directory.path().join("wrong.yaml"), "upstream: [192.0.2.1]\n")
        .expect("written");
    let error = failure("wrong.yaml");
    assert!(error.contains("wrong.yaml"), "{error}");
    assert_eq!(error.matches("unknown field `upstream`").count(), 1, "{error}");
    std::fs::write(directory.path().join("value.yaml"), "ttl: 4000\n").expect("written");
    let error = failure("value.yaml");
    assert!(error.contains("value.yaml") && error.contains("ttl: \"4000\""), "{error}");
}

/// D18: with several workers every client is served, and each of them answers some.
#[test]
fn clients_are_spread_over_workers() {
    let dns = Dns::start(SHOP, &["--workers=4"]);
    for _ in 0..64 {
        assert_eq!(dns.udp(WEB, RecordType::A).answers.len(), 1);
    }
    let threads = format!("/proc/{}/task", dns.pid());
    let names: Vec<String> = std::fs::read_dir(threads)
        .expect("the process is there")
        .filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok())
        .collect();
    assert_eq!(names.iter().filter(|name| name.starts_with("dns-")).count(), 4, "{names:?}");
}

/// D16: a Corefile becomes a configuration.
#[test]
fn a_corefile_can_be_imported() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_sluice-dns"))
        .args(["import-corefile", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("it runs");
    let corefile = ".:53 {\n kubernetes k8s.example\n forward . 192.0.2.1\n dnssec\n}\n";
    std::io::Write::write_all(&mut child.stdin.take().expect("piped"), corefile.as_bytes())
        .expect("written");
    let output = child.wait_with_output().expect("it ends");
    let text = String::from_utf8(output.stdout).expect("text");
    assert!(output.status.success());
    assert!(text.starts_with("# not carried over: line 4: dnssec\n"), "{text}");
    assert!(text.contains("clusterDomain: k8s.example"), "{text}");
}

/// Asks where the answer comes from, on behalf of a client with that address.
fn explained(dns: &Dns, name: &str, behalf: &[u8]) -> (Message, Option<String>) {
    use hickory_proto::rr::rdata::opt::{EdnsCode, EdnsOption};
    let mut query = query(name, RecordType::A);
    let mut edns = hickory_proto::op::Edns::new();
    edns.options_mut().insert(EdnsOption::Unknown(sluice_dns::wire::EXPLAIN, behalf.to_vec()));
    query.set_edns(edns);
    let reply = crate::support::ask_udp(dns.addr, &query);
    let code = EdnsCode::Unknown(sluice_dns::wire::EXPLAIN);
    let option = reply.edns.as_ref().and_then(|edns| edns.option(code)).cloned();
    let why = option.map(|option| match option {
        EdnsOption::Unknown(_, text) => String::from_utf8(text).expect("text"),
        other => panic!("{other:?}"),
    });
    (reply, why)
}

/// D17: who may ask is told where an answer comes from, and nobody else is.
#[test]
fn an_answer_is_explained_to_those_who_may_ask() {
    let upstream =
        Upstream::start(|query, _| vec![response(query, ResponseCode::NoError, &[[192, 0, 2, 1]])]);
    let flag = upstream.flag();
    let dns = Dns::start(SHOP, &[&flag, "--autopath"]);
    let why = |name: &str| explained(&dns, name, &[]).1.expect("explained");
    assert_eq!(why(WEB), "zone cluster.local. Service shop/web, ClusterIP");
    let gone = why("gone.shop.svc.cluster.local.");
    assert_eq!(gone, "zone cluster.local. there is no Service shop/gone");
    let gone = why("web.lab.svc.cluster.local.");
    assert_eq!(gone, "zone cluster.local. there is no namespace lab");
    assert_eq!(why("a.example."), format!("upstream {}", upstream.addr));
    assert_eq!(why("a.example."), "kept answer of an upstream");
    // On behalf of a pod, whose search path is followed.
    let name = "web.shop.shop.svc.cluster.local.";
    let (reply, why) = explained(&dns, name, &[10, 1, 0, 7]);
    assert_eq!(answers(&reply).len(), 2, "{reply}");
    assert!(why.expect("explained").ends_with("found along the search path"));
    assert_eq!(
        explained(&dns, name, &[10, 1, 0, 8]).0.metadata.response_code,
        ResponseCode::NXDomain
    );

    let silent = Dns::start(SHOP, &[&flag, "--explain-to=192.0.2.0/24", "--autopath"]);
    let (reply, why) = explained(&silent, name, &[10, 1, 0, 7]);
    assert_eq!((reply.metadata.response_code, why), (ResponseCode::NXDomain, None));
}
