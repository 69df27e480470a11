use hickory_proto::op::{MessageType, OpCode};
use hickory_proto::rr::{RData, Record};

use super::*;

#[test]
fn names_are_tried_in_the_order_of_resolvers() {
    let search = search_list("shop", "cluster.local.", &["corp.example.".to_owned()]);
    let expected = ["shop.svc.cluster.local", "svc.cluster.local", "cluster.local", "corp.example"];
    assert_eq!(search, expected);
    let names = candidates("web", &search);
    assert_eq!((names[0].as_str(), names[4].as_str()), ("web.shop.svc.cluster.local.", "web."));
    assert_eq!(candidates("www.example.com.", &search), ["www.example.com."]);
    let names = candidates("a.b.c.d.e.f", &search);
    let second = "a.b.c.d.e.f.shop.svc.cluster.local.";
    assert_eq!((names[0].as_str(), names[1].as_str()), ("a.b.c.d.e.f.", second));
}

#[test]
fn the_nodes_own_search_list_is_its_last_one() {
    let text = "search old.example\nnameserver 10.0.0.1\nsearch a.example b.example\n";
    assert_eq!(node_search(text), ["a.example", "b.example"]);
    assert!(node_search("nameserver 10.0.0.1\n").is_empty());
}

/// An instance that knows one name, and says that it does.
fn instance() -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a free port");
    let addr = socket.local_addr().expect("bound");
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok((length, peer)) = socket.recv_from(&mut buffer) {
            let query = Message::from_vec(&buffer[..length]).expect("a query");
            let mut reply = Message::new(query.metadata.id, MessageType::Response, OpCode::Query);
            reply.add_queries(query.queries.iter().cloned());
            let name = query.queries[0].name().clone();
            if name.to_ascii() == "web.svc.cluster.local." {
                let data = RData::A(Ipv4Addr::new(10, 96, 0, 10).into());
                reply.add_answers([Record::from_rdata(name, 5, data)]);
            } else {
                reply.metadata.response_code = ResponseCode::NXDomain;
            }
            let option = query.edns.as_ref().and_then(|it| it.option(EdnsCode::Unknown(EXPLAIN)));
            let Some(EdnsOption::Unknown(_, pod)) = option else { panic!("nobody asks why") };
            let mut edns = Edns::new();
            let why = format!("for {pod:?}");
            edns.options_mut().insert(EdnsOption::Unknown(EXPLAIN, why.into()));
            reply.set_edns(edns);
            socket.send_to(&reply.to_vec().expect("a message"), peer).expect("sent");
        }
    });
    addr
}

fn service(frontend: &str, backends: Vec<SocketAddr>) -> ServiceRow {
    ServiceRow {
        namespace: "kube-system".to_owned(),
        name: "kube-dns".to_owned(),
        port_name: "dns".to_owned(),
        kind: "ClusterIP".to_owned(),
        frontend: frontend.parse().expect("an address"),
        protocol: "UDP".to_owned(),
        clients: "all".to_owned(),
        source_ranges: None,
        affinity_secs: 0,
        without_backends: "rejects".to_owned(),
        backends,
        missing: 0,
        number: 1,
    }
}

fn pod(name: &str, address: &str) -> EndpointRow {
    EndpointRow {
        address: address.parse().expect("an address"),
        pod: name.to_owned(),
        interface: "veth0".to_owned(),
        ifindex: 7,
        mac: String::new(),
        attached: "tcx".to_owned(),
        host_ports: Vec::new(),
        number: 1,
    }
}

fn args(name: &str) -> DnsQueryArgs {
    DnsQueryArgs {
        name: name.to_owned(),
        pod: "shop/worker".to_owned(),
        kind: RecordType::A,
        dns_service: "kube-system/kube-dns".to_owned(),
        cluster_domain: "cluster.local".to_owned(),
        resolv_conf: "/dev/null".into(),
    }
}

#[test]
fn a_pods_query_is_followed_step_by_step() {
    let instance = instance();
    let services = [service("[fd00::a]:53", vec![]), service("10.96.0.10:53", vec![instance])];
    let pods = [pod("shop/other", "10.1.0.8"), pod("shop/worker", "10.1.0.7")];
    let lookup = query(&args("web"), &services, &pods).expect("answered");
    assert_eq!((lookup.address, lookup.server), (pods[1].address, services[1].frontend));
    let steps: Vec<_> =
        lookup.steps.iter().map(|step| (step.name.as_str(), step.rcode.as_str())).collect();
    let expected =
        [("web.shop.svc.cluster.local.", "NXDOMAIN"), ("web.svc.cluster.local.", "NOERROR")];
    assert_eq!(steps, expected);
    assert_eq!(lookup.steps[1].answers, ["web.svc.cluster.local. 5 IN A 10.96.0.10"]);
    assert_eq!(lookup.steps[1].why.as_deref(), Some("for [10, 1, 0, 7]"));
    let text = lookup.to_string();
    assert!(text.contains("Server:    10.96.0.10:53 (kube-system/kube-dns)"), "{text}");
    assert!(text.contains("for [10, 1, 0, 7]"), "{text}");
}

#[test]
fn what_is_missing_is_told() {
    let services = [service("10.96.0.10:53", vec![])];
    let pods = [pod("shop/worker", "10.1.0.7")];
    let error = |services: &[ServiceRow], pods: &[EndpointRow]| {
        query(&args("web"), services, pods).expect_err("something is missing").to_string()
    };
    assert_eq!(error(&services, &[]), "no pod shop/worker on this node");
    // O8: as the pinned maps have it, while no agent runs.
    let nameless = [pod("", "10.1.0.7")];
    assert!(error(&services, &nameless).contains("no agent"));
    assert!(error(&[], &pods).contains("no Service kube-system/kube-dns"));
    assert!(error(&services, &pods).contains("has no endpoint"));
}
