use std::net::SocketAddr;

use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RecordType};
use tokio::net::UdpSocket;

use super::*;
use crate::answer::Domain;
use crate::forward::Forwarder;
use crate::resolver::{Client, Step};
use crate::wire::Transport;

/// A queue of a resolver whose one upstream is the test itself.
struct Bench {
    queue: Arc<Queue>,
    upstream: UdpSocket,
    replies: (Replies, mpsc::UnboundedReceiver<Option<Vec<u8>>>),
}

impl Bench {
    async fn new(bounds: (usize, usize)) -> Self {
        let upstream = UdpSocket::bind("127.0.0.1:0").await.expect("a socket");
        let addr = upstream.local_addr().expect("bound");
        let domain = Domain::new("cluster.local", 5).expect("a domain");
        let resolver = Arc::new(Resolver::new(domain, Forwarder::new([addr], 100)));
        let queue = Queue::with_bounds(resolver, Handle::current(), bounds);
        Self { queue, upstream, replies: mpsc::unbounded_channel() }
    }

    fn pending(&self, name: &str) -> Box<Pending> {
        let mut query = Message::new(7, MessageType::Query, OpCode::Query);
        query.metadata.recursion_desired = true;
        query.add_query(Query::query(Name::from_ascii(name).expect("a name"), RecordType::A));
        let (client, bytes) = (Client::unknown(Transport::Udp), query.to_vec().expect("a message"));
        let resolver = &self.queue.resolver;
        match resolver.accept(&bytes, &client, resolver.metrics().shared()) {
            Step::Ask(pending) => pending,
            step => panic!("{name}: {step:?}"),
        }
    }

    fn push(&self, name: &str) {
        let reply = Reply::new(self.replies.0.clone());
        self.queue.push(self.pending(name), To::Stream(reply));
    }

    /// The next query that reaches the upstream, and where it came from.
    async fn asked(&self) -> (Message, SocketAddr) {
        let mut buffer = [0; 512];
        let (length, from) = self.upstream.recv_from(&mut buffer).await.expect("a query");
        (Message::from_vec(&buffer[..length]).expect("a message"), from)
    }

    /// Denies the next query that reaches the upstream, and returns its name.
    async fn deny(&self) -> String {
        let (query, from) = self.asked().await;
        let mut reply = Message::new(query.metadata.id, MessageType::Response, OpCode::Query);
        reply.metadata.response_code = ResponseCode::NXDomain;
        reply.add_queries(query.queries.iter().cloned());
        let bytes = reply.to_vec().expect("a message");
        self.upstream.send_to(&bytes, from).await.expect("sent");
        query.queries[0].name().to_string()
    }

    /// The next reply's name and code; `None` where one was turned away.
    async fn reply(&mut self) -> Option<(String, ResponseCode)> {
        let reply = self.replies.1.recv().await.expect("the sender is here");
        let reply = Message::from_vec(&reply?).expect("a message");
        Some((reply.queries[0].name().to_string(), reply.metadata.response_code))
    }

    fn rejected(&self) -> u64 {
        self.queue.resolver.metrics().count(Event::ForwardReject)
    }
}

fn denied(name: &str) -> Option<(String, ResponseCode)> {
    Some((name.to_owned(), ResponseCode::NXDomain))
}

/// D18: the newest goes first, and the oldest is turned away when too many wait.
#[tokio::test]
async fn the_newest_goes_first_and_the_oldest_is_turned_away() {
    let mut bench = Bench::new((1, 2)).await;
    for name in ["first.", "oldest.", "newer.", "newest."] {
        bench.push(name);
    }
    assert_eq!(bench.reply().await, None, "turned away at once");
    assert_eq!(bench.rejected(), 1);
    for name in ["first.", "newest.", "newer."] {
        assert_eq!(bench.deny().await, name);
        assert_eq!(bench.reply().await, denied(name));
    }
    bench.queue.idle().await;
    assert_eq!(bench.queue.lock().free, 1);
}

/// D18: who has gone does not take the turn with it, whether its query waits or is under way.
#[tokio::test]
async fn who_has_gone_is_passed_over() {
    let mut bench = Bench::new((1, 8)).await;
    let (sender, receiver) = mpsc::unbounded_channel();
    let pending = bench.pending("gone.");
    bench.queue.push(pending, To::Stream(Reply::new(sender.clone())));
    assert_eq!(bench.asked().await.0.queries[0].name().to_string(), "gone.");
    bench.push("waits.");
    let pending = bench.pending("gone-as-well.");
    bench.queue.push(pending, To::Stream(Reply::new(sender)));
    drop(receiver);
    assert_eq!(bench.deny().await, "waits.");
    assert_eq!(bench.reply().await, denied("waits."));
    bench.queue.idle().await;
}

/// D18: who has waited too long is answered without a turn, and counted.
#[tokio::test]
async fn who_has_waited_too_long_gets_an_error() {
    let mut bench = Bench::new((1, 8)).await;
    bench.push("first.");
    let (query, _) = bench.asked().await;
    assert_eq!(query.queries[0].name().to_string(), "first.");
    let mut late = bench.pending("late.");
    late.expire();
    bench.queue.push(late, To::Stream(Reply::new(bench.replies.0.clone())));
    assert_eq!(bench.reply().await, Some(("late.".to_owned(), ResponseCode::ServFail)));
    assert_eq!((bench.rejected(), bench.queue.lock().free), (1, 0));
}

/// D13: what is only asked for again does not wait, and does not keep others from trying.
#[tokio::test]
async fn what_nobody_waits_for_takes_no_place() {
    let mut bench = Bench::new((1, 8)).await;
    bench.push("first.");
    let again = bench.pending("again.");
    bench.queue.push(again, To::Nobody);
    assert!(bench.queue.lock().waiting.is_empty());
    assert_eq!(bench.deny().await, "first.");
    assert_eq!(bench.reply().await, denied("first."));
    bench.queue.idle().await;
    let again = bench.pending("again.");
    bench.queue.push(again, To::Nobody);
    assert_eq!(bench.deny().await, "again.", "there is a turn to be had");
    bench.queue.idle().await;
}

/// D18: thousands of queries are under way at once, so each should be small.
#[tokio::test]
async fn a_query_under_way_takes_little() {
    let bench = Bench::new((1, 8)).await;
    let job = Job { pending: bench.pending("first."), to: To::Nobody };
    let future = run(job, Turn(Arc::clone(&bench.queue)));
    let size = size_of_val(&future);
    bench.queue.lock().free -= 1;
    drop(future);
    assert!(size < 4096, "a task of {size} octets");
    let waiting = size_of::<Job>() + size_of::<Pending>();
    assert!(waiting < 1024, "{waiting} octets for one that waits");
}
