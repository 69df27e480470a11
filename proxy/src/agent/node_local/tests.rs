use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::time::Instant;

use sluice_model::SlicePort;

use super::*;

const LOCAL: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const READY: Conditions = Conditions { ready: true, serving: true, terminating: false };

fn endpoint(addr: IpAddr, node: &str) -> Endpoint {
    Endpoint {
        node: Some(node.to_owned()),
        ..Endpoint::new(
            addr,
            vec![SlicePort { name: "dns-tcp".to_owned(), protocol: Protocol::Tcp, port: Some(53) }],
            READY,
        )
    }
}

fn name() -> ObjectName {
    ObjectName::new("kube-system", "kube-dns")
}

/// D19: only a success says that an endpoint is ready; what is no HTTP, or has no such path, says
/// nothing.
#[test]
fn a_status_line_says_ready_or_not_or_nothing() {
    for (line, expected) in [
        ("HTTP/1.1 200 OK\r\n", Some(true)),
        ("HTTP/1.0 204 \r\n", Some(true)),
        ("HTTP/1.1 503 Service Unavailable\r\n", Some(false)),
        ("HTTP/1.1 500 x\r\n", Some(false)),
        ("HTTP/1.1 404 Not Found\r\n", None),
        ("SSH-2.0-OpenSSH 200 x\r\n", None),
        ("HTTP/1.1 20 OK\r\n", None),
        ("HTTP/1.1", None),
        ("", None),
    ] {
        assert_eq!(said(line.as_bytes()), expected, "{line:?}");
    }
}

/// D19: an endpoint without `/ready` (another DNS server) is taken at its port, but one that had it
/// is not ready while it has not: it is being started.
#[test]
fn a_server_without_ready_is_taken_at_its_port() {
    let accepts = Outcome::NoReady { accepts: true };
    let gone = Outcome::NoReady { accepts: false };
    let mut judge = Judge::default();
    for _ in 1..ACCEPTED {
        assert_eq!(judge.judge(accepts), Answers::Nothing);
    }
    assert_eq!(judge.judge(accepts), Answers::Ready);
    assert_eq!(judge.judge(gone), Answers::Nothing);
    assert_eq!(judge.judge(accepts), Answers::Nothing, "not at the first time");

    assert_eq!(judge.judge(Outcome::Said(true)), Answers::Ready);
    assert_eq!(judge.judge(Outcome::Said(false)), Answers::NotReady);
    for _ in 1..WITHOUT {
        assert_eq!(judge.judge(accepts), Answers::Nothing);
    }
    assert_eq!(judge.judge(accepts), Answers::Ready, "it has none any more");
}

/// D19: this node's endpoints are asked, and count only once they said that they are ready; others
/// are left alone.
#[tokio::test]
async fn only_this_nodes_endpoints_have_to_answer() {
    let mut local = NodeLocal::new(Some(name()), "here".to_owned(), 8181);
    let other: IpAddr = [192, 0, 2, 1].into();
    // Discard-only addresses: nobody is asked outside of this host.
    let own: IpAddr = [127, 255, 0, 1].into();
    let endpoints = vec![endpoint(own, "here"), endpoint(other, "there")];
    local.follow(&endpoints);
    assert_eq!(local.asked.keys().collect::<Vec<_>>(), [&own]);
    let seen = local.for_clients(endpoints.clone());
    assert_eq!(seen[0].conditions, Conditions { ready: false, serving: true, terminating: true });
    assert_eq!(seen[1].conditions, READY);
    assert!(!local.for_sockets(endpoints.clone())[0].conditions.serving);
    local.asked.get_mut(&own).expect("asked").answers = Answers::Ready;
    assert_eq!(local.for_clients(endpoints.clone()), endpoints);
    // What is ready here is ready only if the source says so too.
    let mut unready = endpoints;
    unready[0].conditions = Conditions { ready: false, serving: false, terminating: false };
    assert_eq!(local.for_clients(unready.clone()), unready);
    local.follow(&[]);
    assert!(local.asked.is_empty());
}

/// D19, S32: a new agent changes nothing for an endpoint that the one before it had found ready.
#[tokio::test]
async fn what_the_kernel_has_is_ready_until_asked() {
    let mut local = NodeLocal::new(Some(name()), "here".to_owned(), 8181);
    let own: IpAddr = [127, 255, 0, 1].into();
    let endpoints = vec![endpoint(own, "here")];
    local.restored([own]);
    local.follow(&endpoints);
    assert_eq!(local.for_clients(endpoints.clone()), endpoints);
    // One that comes back later has to say so.
    local.follow(&[]);
    local.follow(&endpoints);
    assert!(!local.for_clients(endpoints)[0].conditions.ready);
}

/// Answers requests with the status, until told otherwise.
fn serve(listener: TcpListener, status: &'static str, requests: usize) {
    for _ in 0..requests {
        let (mut stream, _) = listener.accept().expect("a connection");
        let mut head = [0; 512];
        if stream.read(&mut head).is_ok_and(|length| length > 0) {
            let answer = format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n");
            stream.write_all(answer.as_bytes()).expect("answered");
        }
    }
}

/// D19: the death of an endpoint is known by its connection, long before the next request is due.
#[tokio::test]
async fn a_death_is_known_at_once() {
    let listener = TcpListener::bind((LOCAL, 0)).expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let server = std::thread::spawn(move || {
        serve(listener.try_clone().expect("a descriptor"), "200 OK", 1);
        // The connection for the next request, and the end of everything.
        let (next, _) = listener.accept().expect("a connection");
        drop((listener, next));
        Instant::now()
    });
    let mut local = NodeLocal::new(Some(name()), "here".to_owned(), port);
    let mut own = endpoint(LOCAL, "here");
    own.ports.clear();
    local.follow(&[own]);
    assert_eq!(local.changed().await, Some(name()));
    assert_eq!(local.asked[&LOCAL].answers, Answers::Ready);
    assert_eq!(local.note(), "kube-system/kube-dns, 127.0.0.1 ready");
    local.changed().await;
    assert_eq!(local.asked[&LOCAL].answers, Answers::Nothing);
    server.join().expect("no panic");
}

/// D19: 503 while it is about to stop, or has not read its source.
#[tokio::test]
async fn an_endpoint_says_itself_that_it_is_not_ready() {
    let listener = TcpListener::bind((LOCAL, 0)).expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let server = std::thread::spawn(move || serve(listener, "503 Service Unavailable", 1));
    let mut local = NodeLocal::new(Some(name()), "here".to_owned(), port);
    local.follow(&[endpoint(LOCAL, "here")]);
    local.changed().await;
    assert_eq!(local.asked[&LOCAL].answers, Answers::NotReady);
    server.join().expect("no panic");
}
