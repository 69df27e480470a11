//! The stage for truth tables proves itself: on a data plane that is right by construction it sees what is allowed and
//! what is denied, and on one that is wrong it says where.

use sluice_tests::Result;
use sluice_tests::policy::cases;
use sluice_tests::policy::live::filter::Filter;
use sluice_tests::policy::live::manifests::Manifests;
use sluice_tests::policy::live::{Policies, Stage, Wiring};
use sluice_tests::policy::table::Query;

/// Cases of each kind, for a data plane that needs no more proof than the stage does.
const SOME: [&str; 6] = [
    "namespaces/deny-all",
    "peers/ingress/pod-of-namespace-beside-another-in-rules",
    "peers/egress/except-pods-v6",
    "ports/egress/name",
    "host/ingress/address",
    "faults/beside-a-good-one",
];

/// P1, P2, P3, P4, P6, P8: some cases and random sets, cell by cell.
#[test]
fn tables_of_a_right_data_plane_agree() -> Result<()> {
    let stage = Stage::new(Wiring::Plugin)?;
    let mut filter = Filter::default();
    let mut sets = stage.cases();
    sets.retain(|(name, _)| SOME.contains(&name.as_str()));
    assert_eq!(sets.len(), SOME.len());
    let cases = stage.hold_all(&mut filter, sets)?;
    let drawn = stage.hold_all(&mut filter, stage.drawn(0..10))?;
    for (name, of) in [("cases", cases), ("drawn", drawn)] {
        println!("{name}: {of:?}, {:?} a table", of.elapsed / of.sets as u32);
        assert!(of.denied > 0 && of.denied < of.cells, "{of:?}");
    }
    // And open again.
    let seen = stage.hold(&mut filter, &Policies::read(""))?;
    assert!(seen.table.values().all(|allowed| *allowed));
    Ok(())
}

/// P1, P5: one wrong rule of a thousand is found, in either sense, and so is an answer that is lost.
#[test]
fn one_wrong_cell_is_found_and_shown() -> Result<()> {
    let stage = Stage::new(Wiring::Plugin)?;
    let world = stage.world();
    let cell = |text: &str| Query::parse(world, text).unwrap();
    let case = cases::all(world).into_iter().find(|case| case.name == "peers/ingress/pod").unwrap();
    let policies = Policies::read(&case.yaml);
    for (wrong, says) in [
        ("y/b > x/a TCP/81 v6", "allowed, must be denied"),
        ("y/b > x/a UDP/80 v4", "allowed, must be denied"),
        ("x/b > x/a UDP/81 v6", "denied, must be allowed"),
        ("x/b > x/a TCP/80 v4", "denied, must be allowed"),
        ("z/c > out TCP/80 v4", "denied, must be allowed"),
    ] {
        let mut filter = Filter { wrong: vec![cell(wrong)], ..Filter::default() };
        let error = stage.hold(&mut filter, &policies).expect_err(wrong).to_string();
        assert!(error.contains(&format!("{wrong}: {says}")), "{error}");
        assert_eq!(error.matches(", must be ").count(), 1, "{error}");
        let marked = if says.starts_with("allowed") { "[.]" } else { "[X]" };
        assert_eq!(error.matches(marked).count(), 1, "{error}");
    }
    let lost = "x/b > x/a UDP/80 v4";
    let mut filter = Filter { mute: vec![cell(lost)], ..Filter::default() };
    let error = stage.hold(&mut filter, &policies).expect_err(lost).to_string();
    assert!(
        error.contains(&format!("{lost}: the question arrived, the answer did not")),
        "{error}"
    );
    // Of many sets, those that differ are named.
    let mut filter = Filter { wrong: vec![cell("x/a > y/a TCP/80 v4")], ..Filter::default() };
    let error = stage.hold_all(&mut filter, stage.drawn(0..2)).expect_err("both are wrong");
    let error = format!("{error:#}");
    assert!(error.starts_with("2 of 2 differ: seed 0, seed 1"), "{error}");
    assert!(error.contains("x/a > y/a TCP/80 v4: "), "{error}");
    stage.hold(&mut Filter::default(), &policies)?;
    Ok(())
}

/// P1: real agents, whose programs the packets pass, and no policy: every pair talks.
#[test]
fn without_policies_every_pair_talks_through_the_agents() -> Result<()> {
    let stage = Stage::new(Wiring::Agents)?;
    let mut agents = Manifests::new(|_: &Stage, _: &Policies| Ok(()));
    let seen = stage.hold(&mut agents, &Policies::read(""))?;
    assert_eq!(seen.table.len(), stage.queries().len());
    assert!(stage.cluster().manifests().join("policies.yaml").is_file());
    Ok(())
}
