use proptest::prelude::*;

use super::*;

fn net(s: &str) -> IpNet {
    s.parse().expect("test range")
}

fn addr(s: &str) -> IpAddr {
    s.parse().expect("test address")
}

fn pool(cidrs: &[&str]) -> Pool {
    Pool::new(&cidrs.iter().map(|c| net(c)).collect::<Vec<_>>()).expect("test pool")
}

/// Takes every address there is, in the order the pool gives them.
fn drain(pool: &Pool) -> (Vec<IpAddr>, PoolError) {
    let (mut used, mut last, mut order) = (BTreeSet::new(), LastUsed::new(), Vec::new());
    loop {
        match pool.allocate(&used, &mut last, &[]) {
            Err(e) => return (order, e),
            Ok(addresses) => {
                for a in addresses {
                    assert!(used.insert(a), "{a} given twice");
                    order.push(a);
                }
            }
        }
    }
}

#[test]
fn network_broadcast_and_first_address_are_never_given() {
    let cases: [(&str, &[&str]); 6] = [
        ("10.0.0.0/29", &["10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.6"]),
        ("10.0.0.8/30", &["10.0.0.10"]),
        ("10.0.0.0/31", &["10.0.0.0", "10.0.0.1"]),
        ("10.0.0.7/32", &["10.0.0.7"]),
        ("fd00::/126", &["fd00::2", "fd00::3"]),
        ("fd00::/127", &["fd00::", "fd00::1"]),
    ];
    for (cidr, expected) in cases {
        let expected: Vec<_> = expected.iter().map(|a| addr(a)).collect();
        assert_eq!(drain(&pool(&[cidr])).0, expected, "{cidr}");
    }
}

/// C7: the error tells how large the pool is and how much of it is in use.
#[test]
fn a_full_pool_tells_its_figures() {
    let (_, error) = drain(&pool(&["10.0.0.0/29", "10.0.1.0/30"]));
    assert_eq!(
        error.to_string(),
        "no free IPv4 address: 6 of 6 in 10.0.0.0/29, 10.0.1.0/30 are in use"
    );
}

#[test]
fn a_pod_gets_an_address_of_each_family_or_none() {
    let pool = pool(&["fd00::/126", "10.0.0.0/29"]);
    let (order, error) = drain(&pool);
    assert_eq!(order[..2], [addr("10.0.0.2"), addr("fd00::2")]);
    assert_eq!(order.len(), 4);
    assert!(matches!(error, PoolError::Full { family: "IPv6", used: 2, size: 2, .. }));
}

#[test]
fn the_whole_of_ipv6_is_no_problem() {
    let pool = pool(&["::/0"]);
    let given = pool.allocate(&BTreeSet::new(), &mut LastUsed::new(), &[]).expect("an address");
    assert_eq!(given, [addr("::2")]);
}

#[test]
fn excluded_addresses_are_stepped_over() {
    let nets = |list: &[&str]| list.iter().map(|c| net(c)).collect::<Vec<_>>();
    let excluded = nets(&["10.0.0.0/30", "10.0.0.2/32", "10.0.0.6/32", "10.9.0.0/16", "fd00::/64"]);
    let few = pool(&["10.0.0.0/29"]).excluding(&excluded);
    let (order, error) = drain(&few);
    assert_eq!(order, [addr("10.0.0.4"), addr("10.0.0.5")]);
    assert!(matches!(error, PoolError::Full { used: 2, size: 2, .. }), "{error}");
    assert!(!few.contains(addr("10.0.0.2")) && few.contains(addr("10.0.0.4")));
    // 2^64 addresses are not looked at one by one.
    let large = pool(&["fd00::/56"]).excluding(&excluded);
    assert_eq!(
        large.allocate(&BTreeSet::new(), &mut LastUsed::new(), &[]),
        Ok(vec![addr("fd00:0:0:1::")])
    );
    let none = pool(&["10.9.1.0/24"]).excluding(&excluded);
    let error = none.check_free(&BTreeSet::new()).expect_err("all is excluded");
    assert!(matches!(error, PoolError::Full { used: 0, size: 0, .. }), "{error}");
    let end = pool(&["::/0"]).excluding(&nets(&["8000::/1", "::/1"]));
    assert!(end.check_free(&BTreeSet::new()).is_err());
}

#[test]
fn bad_ranges_are_refused() {
    assert_eq!(Pool::new(&[]), Err(PoolError::NoRange));
    let (a, b) = (net("10.0.0.0/16"), net("10.0.3.0/24"));
    assert_eq!(Pool::new(&[a, b]), Err(PoolError::Overlap(a, b)));
    assert_eq!(Pool::new(&[b, a]), Err(PoolError::Overlap(b, a)));
}

#[test]
fn a_kept_address_outside_the_pool_is_replaced() {
    let pool = pool(&["10.0.0.0/24"]);
    let kept = [addr("10.9.9.9"), addr("fd00::1")];
    let used = BTreeSet::from(kept);
    let given = pool.allocate(&used, &mut LastUsed::new(), &kept).expect("an address");
    assert_eq!(given, [addr("10.0.0.2")]);
    let given = pool.allocate(&used, &mut LastUsed::new(), &[addr("10.0.0.9")]).expect("kept");
    assert_eq!(given, [addr("10.0.0.9")]);
}

proptest! {
    /// C7: a freed address rests until every other free one was given.
    #[test]
    fn a_freed_address_comes_back_last(keep in 0usize..28, prefix in 27u8..29) {
        let pool = pool(&[&format!("10.1.0.0/{prefix}")]);
        let all = drain(&pool).0;
        let keep = keep % all.len();
        // `keep` addresses stay; then one pod after the other comes and goes.
        let mut used: BTreeSet<_> = all[..keep].iter().copied().collect();
        let mut last = LastUsed::new();
        let free = all.len() - keep;
        let mut order = Vec::new();
        for _ in 0..free * 2 {
            let given = pool.allocate(&used, &mut last, &[]).expect("there are free ones")[0];
            used.insert(given);
            used.remove(&given);
            order.push(given);
        }
        prop_assert_eq!(order[..free].iter().collect::<BTreeSet<_>>().len(), free);
        prop_assert_eq!(&order[..free], &order[free..]);
    }

    /// Whatever comes and goes, what is given is in range, was free, and is only refused when the
    /// pool is full.
    #[test]
    fn given_addresses_were_free(ops in prop::collection::vec((any::<bool>(), 0usize..64), 1..200)) {
        let pool = pool(&["10.1.0.0/28", "10.2.0.0/29", "fd00::/124"]);
        let (mut used, mut last) = (BTreeSet::new(), LastUsed::new());
        let mut pods: Vec<Vec<IpAddr>> = Vec::new();
        for (add, pick) in ops {
            if add || pods.is_empty() {
                match pool.allocate(&used, &mut last, &[]) {
                    Ok(given) => {
                        prop_assert_eq!(given.len(), 2);
                        for a in &given {
                            prop_assert!(pool.contains(*a));
                            prop_assert!(used.insert(*a), "{} was in use", a);
                        }
                        pods.push(given);
                    }
                    // 13 and 5 of IPv4, 14 of IPv6: IPv6 ends first.
                    Err(_) => prop_assert_eq!(pods.len(), 14),
                }
            } else {
                for a in pods.swap_remove(pick % pods.len()) {
                    used.remove(&a);
                }
            }
        }
    }
}
