use super::*;

fn forwarder(policy: Policy, count: u16) -> Forwarder {
    let upstreams =
        (1..=count).map(|port| SocketAddr::from(([127, 0, 0, 1], port)).into()).collect();
    let options = ForwardOptions { upstreams, policy, ..ForwardOptions::default() };
    Forwarder::with_options(options, Arc::default())
}

fn ports(forwarder: &Forwarder) -> Vec<u16> {
    let order = forwarder.order(&forwarder.groups[0]);
    order.into_iter().map(|(upstream, _)| upstream.peer.addr.port()).collect()
}

/// D12: sequential, in turn, at random.
#[test]
fn the_policy_says_which_upstream_comes_first() {
    let sequential = forwarder(Policy::Sequential, 3);
    assert_eq!([ports(&sequential), ports(&sequential)], [[1, 2, 3], [1, 2, 3]]);
    let turns = forwarder(Policy::RoundRobin, 3);
    let firsts: Vec<_> = (0..4).map(|_| ports(&turns)).collect();
    assert_eq!(firsts, [[1, 2, 3], [2, 3, 1], [3, 1, 2], [1, 2, 3]]);
    let random = forwarder(Policy::Random, 3);
    let firsts: std::collections::HashSet<_> = (0..200).map(|_| ports(&random)[0]).collect();
    assert_eq!(firsts.len(), 3);
}

/// D12: an upstream that failed twice in a row is tried last, whatever the policy; all down, all
/// are tried all the same.
#[tokio::test]
async fn an_upstream_that_fails_is_tried_last() {
    let forwarder = forwarder(Policy::Sequential, 3);
    let upstream = |index: usize| &forwarder.groups[0].upstreams[index];
    upstream(0).failed(&ExchangeError::Timeout);
    assert_eq!(ports(&forwarder), [1, 2, 3], "one datagram may be lost");
    upstream(0).failed(&ExchangeError::Timeout);
    assert_eq!(ports(&forwarder), [2, 3, 1]);
    upstream(0).answered();
    assert_eq!(ports(&forwarder), [1, 2, 3]);
    for index in [0, 0, 1, 1, 2, 2] {
        upstream(index).failed(&ExchangeError::Timeout);
    }
    assert_eq!(ports(&forwarder), [1, 2, 3]);
    assert_eq!(forwarder.metrics.count(Event::HealthcheckBroken), 1);
}

/// D12: an attempt that the client's patience cuts short says nothing about the upstream, and whose
/// patience is over asks nobody.
#[tokio::test]
async fn an_attempt_that_is_cut_short_is_no_failure() {
    let silent = std::net::UdpSocket::bind("127.0.0.1:0").expect("a free port");
    silent.set_nonblocking(true).expect("set");
    let forwarder = Forwarder::new([silent.local_addr().expect("bound")], 0);
    let name = Name::from_ascii("www.example.").expect("a name");
    let request = Request {
        id: 7,
        recursion_desired: true,
        authentic_data: false,
        checking_disabled: false,
        question: Query::query(name.clone(), RecordType::A),
        edns: None,
        explain: None,
    };
    let begin = Instant::now() + Duration::from_secs(1) - TOTAL;
    let result = forwarder.ask(&request, &name, Transport::Udp, Some(begin)).await;
    assert!(matches!(result, Err(ForwardError::Failed { source: ExchangeError::Timeout, .. })));
    assert!(silent.recv(&mut [0; 512]).is_ok(), "it was asked");
    assert!(silent.recv(&mut [0; 512]).is_err(), "once");
    assert_eq!(forwarder.groups[0].upstreams[0].failures.load(Ordering::Relaxed), 0);

    for begin in [Some(Instant::now() - TOTAL), None] {
        let result = forwarder.ask(&request, &name, Transport::Udp, begin).await;
        assert!(matches!(result, Err(ForwardError::Busy)));
    }
    assert!(silent.recv(&mut [0; 512]).is_err(), "nobody was asked");
}
