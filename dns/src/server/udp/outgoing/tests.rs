use std::net::{IpAddr, SocketAddr};

use proptest::prelude::*;

use super::super::Local;
use super::*;

fn from(peer: &str, local: &str) -> From {
    let local: IpAddr = local.parse().unwrap();
    From { peer: peer.parse().unwrap(), local: Local::Bound(local) }
}

fn filled(answers: impl IntoIterator<Item = (From, usize)>) -> Outgoing {
    let mut outgoing = Outgoing::new();
    for (to, length) in answers {
        outgoing.push(length, to);
    }
    outgoing.order.sort_unstable();
    outgoing
}

/// What leaves together: the lengths of each train, by whom it is for.
fn departures(answers: &[(From, usize)]) -> Vec<(SocketAddr, Vec<usize>)> {
    let outgoing = filled(answers.iter().copied());
    let mut departures: Vec<_> = outgoing
        .trains()
        .map(|train| {
            let cars = || outgoing.order[train.clone()].iter().map(|key| key.place());
            let peers: Vec<_> = cars().map(|car| outgoing.to[car].peer).collect();
            assert!(peers.iter().all(|peer| *peer == peers[0]));
            (peers[0], cars().map(|car| outgoing.lengths[car]).collect())
        })
        .collect();
    departures.sort();
    departures
}

#[test]
fn answers_of_one_length_leave_together_and_the_last_may_be_shorter() {
    let to = from("10.0.0.1:1000", "10.0.0.53");
    let of = |lengths: &[usize]| {
        let answers: Vec<_> = lengths.iter().map(|length| (to, *length)).collect();
        departures(&answers).into_iter().map(|(_, lengths)| lengths).collect::<Vec<_>>()
    };
    assert_eq!(of(&[80]), [[80]]);
    assert_eq!(of(&[80, 80, 80]), [[80, 80, 80]]);
    assert_eq!(of(&[60, 80]), [[80, 60]]);
    assert_eq!(of(&[60, 80, 80]), [[80, 80, 60]]);
    // A train ends with its first shorter one.
    assert_eq!(of(&[60, 80, 60, 80]), [vec![60], vec![80, 80, 60]]);
    assert_eq!(of(&[50, 60, 70, 80]), [[60, 50], [80, 70]]);
}

#[test]
fn neither_two_clients_nor_two_addresses_of_the_server_share_a_train() {
    let pairs = [
        // Another port, another address, another scope.
        (("10.0.0.1:1000", "10.0.0.53"), ("10.0.0.1:1001", "10.0.0.53")),
        (("10.0.0.1:1000", "10.0.0.53"), ("10.0.0.2:1000", "10.0.0.53")),
        (("[fe80::1%2]:1000", "::1"), ("[fe80::1%3]:1000", "::1")),
        // Addresses that differ in what the order does not go by.
        (("[2001:db8::1]:1000", "::1"), ("[2001:db9::1]:1000", "::1")),
        // One client asks two addresses of the server: each answer has to come from its own.
        (("10.0.0.1:1000", "10.0.0.53"), ("10.0.0.1:1000", "10.0.0.54")),
    ];
    for ((peer, local), (other_peer, other_local)) in pairs {
        let (one, other) = (from(peer, local), from(other_peer, other_local));
        let mixed = [(one, 80), (other, 80)];
        assert_eq!(departures(&mixed).len(), 2, "{one:?} {other:?}");
        assert_eq!(departures(&[(one, 80), (one, 80)]).len(), 1, "{one:?}");
    }
}

/// Two clients that the order takes for one: their answers are mixed in it, and leave apart.
#[test]
fn clients_whose_keys_collide_are_kept_apart() {
    let (one, other) = (from("10.0.0.1:1000", "10.0.0.53"), from("10.1.0.1:1001", "10.0.0.53"));
    assert_eq!(Key::new(&one, 80, 0), Key::new(&other, 80, 0), "a collision");
    let both = departures(&[(one, 80), (other, 70), (one, 60), (other, 50)]);
    assert_eq!(both.len(), 4, "{both:?}");
    let both = departures(&[(one, 80), (other, 80), (one, 80), (other, 80)]);
    assert_eq!(both.iter().map(|(_, lengths)| lengths.len()).sum::<usize>(), 4, "{both:?}");
}

fn any_client() -> impl Strategy<Value = From> {
    // Few, so that many answers are for one; the first two collide.
    let clients = [
        ("10.0.0.1:1000", "10.0.0.53"),
        ("10.1.0.1:1001", "10.0.0.53"),
        ("10.0.0.1:1000", "10.0.0.54"),
        ("10.0.0.1:1001", "10.0.0.53"),
        ("[fd00::1]:1000", "fd00::53"),
        ("[fd00:1::1]:1000", "fd00::53"),
    ];
    proptest::sample::select(clients.map(|(peer, local)| from(peer, local)).to_vec())
}

proptest! {
    /// Whatever a batch holds, each answer leaves once, and every train is one that the kernel takes
    /// apart into just its answers.
    #[test]
    fn every_answer_leaves_once(
        answers in prop::collection::vec((any_client(), 12..=40usize), 0..=BATCH),
    ) {
        let outgoing = filled(answers.iter().copied());
        let mut left = Vec::new();
        for train in outgoing.trains() {
            let cars: Vec<_> = outgoing.order[train].iter().map(|key| key.place()).collect();
            let (last, others) = cars.split_last().expect("never empty");
            for car in &cars {
                prop_assert!(answers[*car].0.is_same(&answers[cars[0]].0));
            }
            for car in others {
                prop_assert_eq!(answers[*car].1, answers[cars[0]].1);
            }
            prop_assert!(answers[*last].1 <= answers[cars[0]].1);
            left.extend(cars);
        }
        left.sort_unstable();
        prop_assert_eq!(left, (0..answers.len()).collect::<Vec<_>>());
    }
}
