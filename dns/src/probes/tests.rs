use super::*;
use crate::answer::Domain;
use crate::fixture;
use crate::forward::Forwarder;

async fn start() -> (std::net::SocketAddr, Arc<Resolver>, Arc<Health>) {
    let domain = Domain::new("cluster.local", 5).expect("a domain");
    let resolver = Arc::new(Resolver::new(domain, Forwarder::new([], 0)));
    let health = Arc::new(Health::new(Arc::clone(&resolver)));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let addr = listener.local_addr().expect("bound");
    tokio::spawn(serve(listener, Arc::clone(&health)));
    (addr, resolver, health)
}

async fn talk(addr: std::net::SocketAddr, request: &[u8]) -> String {
    let mut stream = TcpStream::connect(addr).await.expect("connected");
    stream.write_all(request).await.expect("sent");
    let mut response = Vec::new();
    // A reset is an end as well: what was too long is not read to its end.
    let _ = stream.read_to_end(&mut response).await;
    String::from_utf8(response).expect("text")
}

async fn status(addr: std::net::SocketAddr, request: &str) -> String {
    let response = talk(addr, format!("{request} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).await;
    response.lines().next().unwrap_or_default().to_owned()
}

/// D16: ready once synced, and not any more when a stop begins; healthy all the time.
#[tokio::test]
async fn ready_follows_the_source_and_the_stop() {
    let (addr, resolver, health) = start().await;
    assert_eq!(status(addr, "GET /health").await, "HTTP/1.1 200 OK");
    assert_eq!(status(addr, "GET /ready").await, "HTTP/1.1 503 Service Unavailable");
    resolver.set_zone(fixture::zone(&[]));
    assert_eq!(status(addr, "GET /ready?verbose").await, "HTTP/1.1 200 OK");
    health.stop();
    assert_eq!(status(addr, "GET /ready").await, "HTTP/1.1 503 Service Unavailable");
    assert_eq!(status(addr, "GET /health").await, "HTTP/1.1 200 OK");
}

/// A part that broke off is for the supervisor to see.
#[tokio::test]
async fn a_broken_server_is_not_healthy_and_goes_on() {
    let (addr, resolver, health) = start().await;
    resolver.set_zone(fixture::zone(&[]));
    health.fail();
    assert_eq!(status(addr, "GET /health").await, "HTTP/1.1 503 Service Unavailable");
    assert_eq!(status(addr, "GET /ready").await, "HTTP/1.1 200 OK");
}

#[tokio::test]
async fn head_has_no_body_and_the_same_length() {
    let (addr, _, _) = start().await;
    let response = talk(addr, b"HEAD /health HTTP/1.0\r\n\r\n").await;
    assert!(response.contains("Content-Length: 3\r\n") && response.ends_with("\r\n\r\n"));
}

#[tokio::test]
async fn what_is_no_probe_is_told_so() {
    let (addr, _, _) = start().await;
    assert_eq!(status(addr, "GET /nothing").await, "HTTP/1.1 404 Not Found");
    assert_eq!(status(addr, "POST /health").await, "HTTP/1.1 405 Method Not Allowed");
    let response = talk(addr, b"\x00\xff\x00\r\n\r\n").await;
    assert!(response.starts_with("HTTP/1.1 400"), "{response}");
    talk(addr, &[b'a'; 3 * MAX_HEAD]).await;
    assert_eq!(status(addr, "GET /health").await, "HTTP/1.1 200 OK");
}

/// D19: who holds a connection open for its next request learns of a stop at once.
#[tokio::test]
async fn a_stop_closes_connections_without_a_request() {
    let (addr, _, health) = start().await;
    let mut idle = TcpStream::connect(addr).await.expect("connected");
    // Another one that came later was answered, so this one is being waited at.
    status(addr, "GET /health").await;
    health.stop();
    let read = timeout(DEADLINE / 2, idle.read(&mut [0; 1])).await;
    assert_eq!(read.expect("not only after the deadline").expect("an orderly end"), 0);
}
