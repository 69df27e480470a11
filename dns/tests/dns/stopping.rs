//! Starting wrongly, and stopping well.

use std::net::{TcpStream, UdpSocket};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::RecordType;
use nix::sys::signal::Signal;

use crate::support::{
    Dns, Upstream, ask_udp, command, eventually, query, read_framed, response, write_framed,
};

/// D16: a query that waits for an upstream when SIGTERM comes is answered, while the server is not
/// ready any more; then it ends well.
#[test]
fn a_stop_answers_what_is_under_way() {
    let (asked, was_asked) = channel();
    let (release, released): (_, Receiver<()>) = channel();
    let held = Arc::new(Mutex::new((asked, released)));
    let upstream = Upstream::start(move |query, _| {
        let held = held.lock().expect("one query at a time");
        held.0.send(()).expect("the test waits");
        held.1.recv().expect("the test releases");
        vec![response(query, ResponseCode::NoError, &[[192, 0, 2, 1]])]
    });
    let mut dns = Dns::start("", &[&upstream.flag(), "--lameduck-seconds=0"]);
    assert_eq!(dns.probe("/ready"), "HTTP/1.1 200 OK");
    let addr = dns.addr;
    let client = std::thread::spawn(move || ask_udp(addr, &query("example.com.", RecordType::A)));
    was_asked.recv().expect("the query reaches the upstream");
    dns.terminate();
    eventually(|| match dns.probe("/ready") {
        status if status.starts_with("HTTP/1.1 503") => Ok(()),
        status => Err(status),
    });
    assert_eq!(dns.probe("/health"), "HTTP/1.1 200 OK");
    release.send(()).expect("the upstream waits");
    let reply = client.join().expect("answered");
    assert_eq!(reply.answers.len(), 1);
    assert!(dns.wait().success());
}

/// D16: what waits in the sockets when SIGTERM comes is answered, by UDP and by TCP.
#[test]
fn a_stop_answers_what_has_arrived() {
    let mut dns = Dns::start("", &["--lameduck-seconds=0"]);
    let question = query("dns-version.cluster.local.", RecordType::TXT);
    let bytes = question.to_vec().expect("a message");
    let udp = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    udp.connect(dns.addr).expect("connected");
    udp.set_read_timeout(Some(Duration::from_secs(20))).expect("set");
    dns.signal(Signal::SIGSTOP);
    for _ in 0..100 {
        udp.send(&bytes).expect("sent");
    }
    let mut streams: Vec<_> = (0..20)
        .map(|_| TcpStream::connect(dns.addr).expect("the kernel accepts"))
        .inspect(|mut stream| write_framed(&mut stream, &bytes))
        .collect();
    dns.terminate();
    dns.signal(Signal::SIGCONT);
    for _ in 0..100 {
        udp.recv(&mut [0; 512]).expect("an answer");
    }
    for stream in &mut streams {
        read_framed(stream).expect("an answer");
    }
    assert!(dns.wait().success());
}

/// D16: in the lame duck's time new queries are still answered.
#[test]
fn a_lame_duck_answers_new_queries() {
    let mut dns = Dns::start("", &["--lameduck-seconds=600"]);
    dns.terminate();
    dns.wait_for_log("stopping");
    let reply = dns.udp("dns-version.cluster.local.", RecordType::TXT);
    assert_eq!(reply.answers.len(), 1);
    // A second signal ends it at once.
    dns.terminate();
    assert!(dns.wait().success());
}

fn failure(flags: &[&str]) -> String {
    let directory = tempfile::TempDir::new().expect("a temporary directory");
    let output = command(&format!("dir:{}", directory.path().display()))
        .args(flags)
        .output()
        .expect("it runs");
    assert!(!output.status.success());
    String::from_utf8(output.stderr).expect("text")
}

/// A port that is taken is one line that says what to do.
#[test]
fn a_taken_port_is_one_clear_line() {
    let dns = Dns::start("", &[]);
    let error = failure(&[&format!("--listen={}", dns.addr)]);
    assert_eq!(error.lines().count(), 1, "{error}");
    assert!(error.contains(&format!("cannot serve on {}", dns.addr)), "{error}");
    assert!(error.contains("another process has port"), "{error}");
}

#[test]
fn wrong_flags_are_told_with_what_would_be_right() {
    let error = failure(&["--listen=127.0.0.1:0", "--cluster-domain=a..b"]);
    assert!(error.contains("--cluster-domain") && error.contains("a..b"), "{error}");
    let error = failure(&["--listen=127.0.0.1:0", "--upstream=dns.example"]);
    assert!(error.contains("expected an address"), "{error}");
}
