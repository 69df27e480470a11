//! Answers that leave as trains of datagrams: many queries of one client that wait for the server at
//! once. Each is answered once, with the octets of the answer that it gets alone.

use std::collections::BTreeMap;
use std::io::IoSliceMut;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::time::Duration;

use hickory_proto::op::Edns;
use hickory_proto::rr::RecordType;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg, setsockopt, sockopt};

use crate::support::{Dns, query};

/// Far longer than anything takes that works.
const PATIENCE: Duration = Duration::from_secs(20);
/// More than a batch of the server's.
const QUERIES: u16 = 48;
/// The id of a query that is asked last.
const LAST: u16 = 0xffff;

const CLUSTER: &str = r#"
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.96.0.10, clusterIPs: [10.96.0.10], ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: db, namespace: shop}
spec: {clusterIP: None, ports: [{name: pg, port: 5432}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: db-1, namespace: shop, labels: {kubernetes.io/service-name: db}}
addressType: IPv4
ports: [{name: pg, port: 5432}]
endpoints: [{addresses: [10.1.0.1]}, {addresses: [10.1.0.2]}, {addresses: [10.1.0.3]}]
"#;

/// Queries by id, whose answers have many lengths: of both ways through the server, with and without
/// EDNS, for what is there and what is not.
fn queries() -> BTreeMap<u16, Vec<u8>> {
    let mut queries = BTreeMap::new();
    for id in 0..QUERIES {
        let long = format!("{}.shop.svc.cluster.local.", "n".repeat(1 + usize::from(id)));
        let (name, kind) = match id % 8 {
            0 => ("web.shop.svc.cluster.local.", RecordType::A),
            1 => ("web.shop.svc.cluster.local.", RecordType::AAAA),
            2 => ("db.shop.svc.cluster.local.", RecordType::A),
            3 => ("_pg._tcp.db.shop.svc.cluster.local.", RecordType::SRV),
            4 => ("10.0.96.10.in-addr.arpa.", RecordType::PTR),
            5 => ("dns-version.cluster.local.", RecordType::TXT),
            6 => (long.as_str(), RecordType::A),
            _ => ("web.shop.svc.cluster.local.", RecordType::A),
        };
        let mut message = query(name, kind);
        message.metadata.id = id;
        if id % 3 == 0 {
            let mut edns = Edns::new();
            edns.set_max_payload(1232);
            message.edns = Some(edns);
        }
        queries.insert(id, message.to_vec().expect("a message"));
    }
    queries
}

fn last() -> Vec<u8> {
    let mut message = query("web.shop.svc.cluster.local.", RecordType::A);
    message.metadata.id = LAST;
    message.to_vec().expect("a message")
}

/// A connected socket, which takes answers from the address it asks only.
fn client(server: SocketAddr) -> UdpSocket {
    let any: SocketAddr = if server.is_ipv4() { ([0; 4], 0).into() } else { ([0u16; 8], 0).into() };
    let socket = UdpSocket::bind(any).expect("a socket");
    socket.connect(server).expect("connected");
    socket.set_read_timeout(Some(PATIENCE)).expect("set");
    socket
}

/// What is received at once: one datagram, or those of a train where the socket asks for that.
fn receive(socket: &UdpSocket) -> Vec<Vec<u8>> {
    let mut buffer = vec![0; 65536];
    let mut control = nix::cmsg_space!(i32);
    let mut parts = [IoSliceMut::new(&mut buffer)];
    let received =
        recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut control), MsgFlags::empty())
            .expect("an answer");
    let segment = received.cmsgs().expect("whole").find_map(|part| match part {
        ControlMessageOwned::UdpGroSegments(size) => usize::try_from(size).ok(),
        _ => None,
    });
    let length = received.bytes;
    buffer[..length].chunks(segment.unwrap_or(length).max(1)).map(<[u8]>::to_vec).collect()
}

fn id(message: &[u8]) -> u16 {
    u16::from_be_bytes([message[0], message[1]])
}

/// The answers to queries that are asked one after another.
fn alone(server: SocketAddr) -> BTreeMap<u16, Vec<u8>> {
    let ask = |(id, query): (u16, Vec<u8>)| {
        let socket = client(server);
        socket.send(&query).expect("sent");
        (id, receive(&socket).remove(0))
    };
    queries().into_iter().map(ask).collect()
}

/// Asks all queries by these sockets in turn while the server stands still, so that it finds them all when
/// it goes on, and takes what each socket gets: all of its answers, each once. Says how many datagrams
/// each receive had.
fn at_once(dns: &Dns, sockets: &[UdpSocket], expected: &BTreeMap<u16, Vec<u8>>) -> Vec<usize> {
    dns.freeze();
    let mut asked = vec![Vec::new(); sockets.len()];
    for (index, (id, query)) in queries().into_iter().enumerate() {
        let number = index % sockets.len();
        sockets[number].send(&query).expect("sent");
        asked[number].push(id);
    }
    dns.thaw();
    let mut sizes = Vec::new();
    for (socket, asked) in sockets.iter().zip(asked) {
        let mut got = Vec::new();
        while got.len() < asked.len() {
            let answers = receive(socket);
            sizes.push(answers.len());
            for answer in answers {
                assert_eq!(answer, expected[&id(&answer)], "the answer to {}", id(&answer));
                got.push(id(&answer));
            }
        }
        got.sort_unstable();
        assert_eq!(got, asked, "each once");
        // What the server sent before this answer has arrived before it.
        socket.send(&last()).expect("sent");
        assert_eq!(receive(socket).iter().map(|answer| id(answer)).collect::<Vec<_>>(), [LAST]);
    }
    sizes
}

/// A server for each kind of address, and where to ask it.
fn servers() -> impl Iterator<Item = (Dns, SocketAddr)> {
    let kinds = [
        ("127.0.0.1:0", "127.0.0.1"),
        ("0.0.0.0:0", "127.0.0.2"),
        ("[::1]:0", "::1"),
        ("[::]:0", "::1"),
    ];
    kinds.into_iter().map(|(listen, asked)| {
        let dns = Dns::start_on(listen, CLUSTER, &[]);
        let addr = SocketAddr::new(asked.parse().expect("an address"), dns.addr.port());
        (dns, addr)
    })
}

/// One client with more queries than the server takes at once: every answer arrives, by trains.
#[test]
fn queries_of_one_socket_at_once_are_answered_as_one_by_one() {
    for (dns, addr) in servers() {
        let expected = alone(addr);
        at_once(&dns, &[client(addr)], &expected);

        // A socket that takes trains as they are sees that there are some.
        let socket = client(addr);
        setsockopt(&socket, sockopt::UdpGroSegment, &true).expect("UDP_GRO");
        let sizes = at_once(&dns, &[socket], &expected);
        assert!(sizes.iter().any(|size| *size > 2), "{addr}: {sizes:?}");
    }
}

/// Several clients whose queries are mixed: nobody gets another one's answers.
#[test]
fn queries_of_several_sockets_at_once_are_answered_to_each() {
    for (dns, addr) in servers() {
        let expected = alone(addr);
        for count in [2, 5, usize::from(QUERIES)] {
            let sockets: Vec<_> = (0..count).map(|_| client(addr)).collect();
            at_once(&dns, &sockets, &expected);
        }
    }
}
