//! The agent's planner says what the oracle says: of every case, of policies drawn at random, and step by step through
//! changes. It is asked twice, for the tables that it makes and for its explanation.

use proptest::prelude::*;
use sluice_model::{Meta, NetworkPolicy, ObjectName, Pod, PodPhase};
use sluice_tests::policy::cluster::World;
use sluice_tests::policy::planned::{Objects, Planned};
use sluice_tests::policy::random::{self, Draw};
use sluice_tests::policy::{cases, table, yaml};

/// Sets of policies that are drawn.
const SETS: u64 = 3000;
/// Of these, worlds that are changed step by step, and how often.
const WALKS: u64 = 300;
const STEPS: usize = 12;

/// Holds tables and explanations against the oracle.
fn hold(
    planned: &Planned,
    world: &World,
    policies: &[NetworkPolicy],
    queries: impl Iterator<Item = table::Query> + Clone,
    title: &str,
) {
    let found =
        table::compare(world, policies, queries.clone(), |query| planned.allows(world, query));
    assert!(found.is_empty(), "tables: {}", table::report(world, title, &found));
    let found = table::compare(world, policies, queries, |query| planned.explains(world, query));
    assert!(found.is_empty(), "explanations: {}", table::report(world, title, &found));
}

/// A share of the cells that is another one for each seed.
fn some_queries(world: &World, seed: u64) -> impl Iterator<Item = table::Query> + Clone {
    table::queries(world).into_iter().skip(seed as usize % 7).step_by(7)
}

/// Pods that have ended, or are being deleted, and whose addresses are others' by now. Nobody is to be taken for them.
fn ghosts(draw: &mut Draw, world: &World, objects: &mut Objects) {
    for (index, pod) in world.pods.iter().filter(|pod| !pod.host_network).enumerate() {
        if !draw.chance(30) {
            continue;
        }
        let like = draw.one(&world.pods);
        let ended = draw.chance(50);
        let name = ObjectName::new(&like.meta.name.namespace, format!("ghost-{index}"));
        let ghost = Pod {
            meta: Meta {
                name: name.clone(),
                labels: like.meta.labels.clone(),
                deleting: !ended,
                ..Meta::default()
            },
            phase: if ended { PodPhase::Succeeded } else { PodPhase::Running },
            addrs: pod.addrs.clone(),
            node: pod.node.clone(),
            ports: like.ports.clone(),
            ..Pod::default()
        };
        objects.pods.insert(name, ghost);
    }
}

/// P1, P2, P3, P4, P6, P8, P11, P13: every case, every cell.
#[test]
fn every_case_is_planned_and_explained_as_the_oracle_has_it() {
    let world = World::standard();
    let queries = table::queries(&world);
    for case in cases::all(&world) {
        let policies = case.policies();
        let mut planned = Planned::new(&world);
        planned.state(Objects::new(&world, &policies));
        hold(&planned, &world, &policies, queries.iter().copied(), &case.to_string());
    }
}

/// The same from case to case, by what changes alone: what one leaves behind is no trace in the next.
#[test]
fn cases_follow_each_other() {
    let world = World::standard();
    let mut planned = Planned::new(&world);
    for (case, seed) in cases::all(&world).iter().zip(0..) {
        let policies = case.policies();
        planned.state(Objects::new(&world, &policies));
        hold(&planned, &world, &policies, some_queries(&world, seed), &case.to_string());
    }
    planned.state(Objects::new(&world, &[]));
    let operations = planned.state(Objects::new(&world, &[]));
    assert_eq!(operations, 0, "nothing changed");
}

/// P1, P2, P3, P4: policies drawn at random, with pods around that are there no more.
fn a_drawn_set_holds(seed: u64) {
    let mut draw = Draw::new(seed);
    let world = random::world(&mut draw);
    let policies = random::policies(&mut draw, &world, 6);
    holds_among_ghosts(seed, &mut draw, &world, &policies);
}

/// The policies are planned right, with pods around that are there no more.
fn holds_among_ghosts(seed: u64, draw: &mut Draw, world: &World, policies: &[NetworkPolicy]) {
    let mut objects = Objects::new(world, policies);
    ghosts(draw, world, &mut objects);
    let mut planned = Planned::new(world);
    planned.state(objects);
    let title = title(seed, world, policies);
    hold(&planned, world, policies, some_queries(world, seed), &title);
}

/// P1, P2, P3, P4, P6, P11
#[test]
fn drawn_policies_are_planned_and_explained_as_the_oracle_has_them() {
    (0..SETS).for_each(a_drawn_set_holds);
}

/// P9: after each of many changes the tables say what they would if they were made anew, which is what the oracle says.
fn a_walk_holds(seed: u64) {
    let mut draw = Draw::new(seed);
    let mut world = random::world(&mut draw);
    let mut policies = random::policies(&mut draw, &world, 4);
    let mut gone = None;
    let mut planned = Planned::new(&world);
    for step in 0..=STEPS {
        if step > 0 {
            random::change(&mut draw, &mut world, &mut policies, &mut gone);
        }
        let mut objects = Objects::new(&world, &policies);
        if draw.chance(30) {
            ghosts(&mut draw, &world, &mut objects);
        }
        planned.state(objects.clone());
        let title = format!("seed {seed} step {step}\n{}", yaml::write(&policies));
        let queries = some_queries(&world, seed + step as u64);
        hold(&planned, &world, &policies, queries.clone(), &title);
        let mut anew = Planned::new(&world);
        anew.state(objects);
        hold(&anew, &world, &policies, queries, &format!("anew: {title}"));
    }
}

/// P9
#[test]
fn changes_step_by_step_end_where_the_oracle_is() {
    (0..WALKS).for_each(a_walk_holds);
}

/// P1, P2, P3, P4, P13: every case of policies of the cluster, every cell.
#[test]
fn every_case_of_tiers_is_planned_and_explained_as_the_oracle_has_it() {
    let world = World::standard();
    for case in cases::tiers(&world) {
        let world = world.with(case.cluster_policies());
        let policies = case.policies();
        let mut planned = Planned::new(&world);
        planned.state(Objects::new(&world, &policies));
        hold(&planned, &world, &policies, table::queries(&world).into_iter(), &case.to_string());
    }
}

/// P9: the same one after the other, by the same planners, and back to nothing.
#[test]
fn cases_of_tiers_follow_each_other() {
    let standard = World::standard();
    let mut planned = Planned::new(&standard);
    for (case, seed) in cases::tiers(&standard).iter().zip(0..) {
        let world = standard.with(case.cluster_policies());
        let policies = case.policies();
        planned.state(Objects::new(&world, &policies));
        hold(&planned, &world, &policies, some_queries(&world, seed), &case.to_string());
    }
    planned.state(Objects::new(&standard, &[]));
    let operations = planned.state(Objects::new(&standard, &[]));
    assert_eq!(operations, 0, "nothing changed");
}

fn drawn_tiers(draw: &mut Draw) -> (World, Vec<NetworkPolicy>) {
    let mut world = random::world(draw);
    let policies = if draw.chance(60) { random::policies(draw, &world, 3) } else { Vec::new() };
    world.cluster_policies = random::cluster_policies(draw, &world, 5);
    (world, policies)
}

fn title(seed: u64, world: &World, policies: &[NetworkPolicy]) -> String {
    let cluster = yaml::write_cluster(&world.cluster_policies);
    format!("seed {seed}\n{}{cluster}", yaml::write(policies))
}

/// P1, P2, P3, P4: policies of the cluster drawn at random, with and without those of namespaces between them.
fn drawn_tiers_hold(seed: u64) {
    let mut draw = Draw::new(seed);
    let (world, policies) = drawn_tiers(&mut draw);
    holds_among_ghosts(seed, &mut draw, &world, &policies);
}

/// P1, P2, P3, P4
#[test]
fn drawn_tiers_are_planned_and_explained_as_the_oracle_has_them() {
    (0..SETS).for_each(drawn_tiers_hold);
}

/// P9: policies, pods, namespaces and nodes change step by step; tables made anew say the same.
fn a_walk_through_tiers_holds(seed: u64) {
    let mut draw = Draw::new(seed);
    let (mut world, mut policies) = drawn_tiers(&mut draw);
    let mut gone = None;
    let mut planned = Planned::new(&world);
    for step in 0..=STEPS {
        if step > 0 && draw.chance(50) {
            random::change(&mut draw, &mut world, &mut policies, &mut gone);
        } else if step > 0 {
            random::change_cluster(&mut draw, &mut world);
        }
        let mut objects = Objects::new(&world, &policies);
        if draw.chance(30) {
            ghosts(&mut draw, &world, &mut objects);
        }
        planned.state(objects.clone());
        let title = format!("step {step}, {}", title(seed, &world, &policies));
        let queries = some_queries(&world, seed + step as u64);
        hold(&planned, &world, &policies, queries.clone(), &title);
        let mut anew = Planned::new(&world);
        anew.state(objects);
        hold(&anew, &world, &policies, queries, &format!("anew: {title}"));
    }
}

/// P9
#[test]
fn changes_of_tiers_end_where_the_oracle_is() {
    (0..WALKS).for_each(a_walk_through_tiers_holds);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    /// The same for seeds that are others in every run.
    #[test]
    fn any_drawn_set_holds(seed: u64) {
        a_drawn_set_holds(seed);
    }

    /// P9
    #[test]
    fn any_walk_holds(seed in 0..u64::MAX - 100) {
        a_walk_holds(seed);
    }

    /// P1, P2, P3, P4
    #[test]
    fn any_drawn_tiers_hold(seed: u64) {
        drawn_tiers_hold(seed);
    }

    /// P9
    #[test]
    fn any_walk_through_tiers_holds(seed in 0..u64::MAX - 100) {
        a_walk_through_tiers_holds(seed);
    }
}

/// Nothing of this holds by itself: a planner that was not told of a policy, or of a label, differs.
#[test]
fn what_is_not_stated_is_missed() {
    let world = World::standard();
    let case = cases::all(&world).into_iter().find(|case| case.name == "peers/ingress/pod");
    let policies = case.expect("a case").policies();
    let differs = |objects: Objects| {
        let mut planned = Planned::new(&world);
        planned.state(objects);
        let all = table::queries(&world);
        let by = |allows: &dyn Fn(&table::Query) -> bool| {
            table::compare(&world, &policies, all.iter().copied(), allows).len()
        };
        (by(&|query| planned.allows(&world, query)), by(&|query| planned.explains(&world, query)))
    };
    assert_eq!(differs(Objects::new(&world, &policies)), (0, 0));
    let without_policy = differs(Objects::new(&world, &[]));
    assert!(without_policy.0 > 0 && without_policy.1 > 0, "{without_policy:?}");
    let mut unlabelled = Objects::new(&world, &policies);
    unlabelled.pods.values_mut().for_each(|pod| pod.meta.labels.clear());
    let unlabelled = differs(unlabelled);
    assert!(unlabelled.0 > 0 && unlabelled.1 > 0, "{unlabelled:?}");
}
