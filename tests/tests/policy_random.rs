//! Random worlds and policies: what must hold of any verdicts, and that the draws are what they are meant to be.

use sluice_model::NetworkPolicy;
use sluice_tests::policy::cluster::World;
use sluice_tests::policy::oracle::{Verdict, verdict};
use sluice_tests::policy::random::{self, Draw};
use sluice_tests::policy::{table, yaml};

/// Sets of policies that each test draws.
const SETS: u64 = 3000;

fn drawn(seed: u64) -> (World, Vec<NetworkPolicy>) {
    let mut draw = Draw::new(seed);
    let world = random::world(&mut draw);
    let policies = random::policies(&mut draw, &world, 6);
    (world, policies)
}

/// A fair share of the cells, so that all pairs and ports come up.
fn some_queries(world: &World, seed: u64) -> impl Iterator<Item = table::Query> {
    table::queries(world).into_iter().skip(seed as usize % 7).step_by(7)
}

/// P1: a policy more opens nothing that it does not allow by itself, whichever order the policies come in.
#[test]
fn the_order_of_policies_does_not_matter() {
    for seed in 0..SETS {
        let (world, policies) = drawn(seed);
        let mut reversed = policies.clone();
        reversed.reverse();
        let found = table::compare(&world, &policies, some_queries(&world, seed), |query| {
            verdict(&world, &reversed, query).is_allowed()
        });
        assert!(found.is_empty(), "{}", table::report(&world, &yaml::write(&policies), &found));
    }
}

/// P1, P4: rules only add. A policy without one of its rules allows nothing that it did not allow before.
#[test]
fn a_rule_less_allows_no_more() {
    for seed in 0..SETS {
        let (world, policies) = drawn(seed);
        let mut fewer = policies.clone();
        for policy in &mut fewer {
            for rules in policy.ingress.iter_mut().chain(&mut policy.egress) {
                if !rules.is_empty() {
                    rules.remove(seed as usize % rules.len());
                }
            }
        }
        for query in some_queries(&world, seed) {
            let (before, after) =
                (verdict(&world, &policies, &query), verdict(&world, &fewer, &query));
            assert!(
                before.is_allowed() || !after.is_allowed(),
                "seed {seed}: {}: {before:?}\n{}",
                query.text(&world),
                yaml::write(&policies)
            );
        }
    }
}

/// P6, P8: whatever the policies are, a pod reaches itself, and its node reaches it.
#[test]
fn a_pod_reaches_itself_and_its_node_reaches_it() {
    for seed in 0..SETS {
        let (world, policies) = drawn(seed);
        for query in some_queries(&world, seed) {
            let node = |who: &str| {
                world
                    .pods
                    .iter()
                    .find(|pod| pod.meta.name.to_string() == world.name(query.to.who))
                    .is_some_and(|pod| pod.node.as_deref() == Some(who))
            };
            if query.from.who == query.to.who || node(&world.name(query.from.who)) {
                assert_eq!(
                    verdict(&world, &policies, &query),
                    Verdict::Allow,
                    "seed {seed}: {}",
                    query.text(&world)
                );
            }
        }
    }
}

/// What is drawn has allowed and denied cells in number, faults, blocks that contain pods, and sets that differ.
#[test]
fn draws_are_neither_all_open_nor_all_closed() {
    let (mut allowed, mut denied, mut faults, mut mixed) = (0, 0, 0, 0);
    for seed in 0..SETS {
        let (world, policies) = drawn(seed);
        faults += policies.iter().filter(|policy| !policy.faults.is_empty()).count();
        let cells: Vec<bool> = some_queries(&world, seed)
            .map(|query| verdict(&world, &policies, &query).is_allowed())
            .collect();
        let open = cells.iter().filter(|open| **open).count();
        allowed += open;
        denied += cells.len() - open;
        mixed += usize::from(open > 0 && open < cells.len());
    }
    println!(
        "{SETS} sets: {allowed} cells allowed, {denied} denied, {faults} policies with a fault, {mixed} sets with both"
    );
    assert!(allowed * 5 > denied && denied * 5 > allowed, "{allowed} {denied}");
    assert!(faults > 20 && mixed as u64 * 10 > SETS * 7, "{faults} {mixed}");
}

#[test]
fn what_is_drawn_can_be_written_and_read() {
    for seed in 0..SETS {
        let mut draw = Draw::new(seed);
        let world = random::world(&mut draw);
        let policies = random::sound_policies(&mut draw, &world, 6);
        let text = yaml::write(&policies);
        assert_eq!(yaml::policies(&text), policies, "{text}");
    }
}
