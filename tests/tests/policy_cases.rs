//! The table of cases: its size, the facts written by hand, and how much it can tell apart.

use std::collections::{BTreeMap, BTreeSet};

use sluice_tests::policy::cases::{self, Case};
use sluice_tests::policy::cluster::World;
use sluice_tests::policy::oracle::verdict;
use sluice_tests::policy::table::{self, Query};
use sluice_tests::policy::{mutations, yaml};

/// P1, P2, P3, P4, P6, P11
#[test]
fn the_table_has_all_kinds_of_cases() {
    let cases = cases::all(&World::standard());
    let mut groups: BTreeMap<&str, usize> = BTreeMap::new();
    for case in &cases {
        *groups.entry(case.group()).or_default() += 1;
    }
    println!("{} cases: {groups:?}", cases.len());
    assert!(cases.len() >= 230, "{} cases", cases.len());
    assert!(groups["peers"] >= 110 && groups["ports"] >= 70, "{groups:?}");
    let names: BTreeSet<&str> = cases.iter().map(|case| case.name.as_str()).collect();
    assert_eq!(names.len(), cases.len(), "names are unique");
    let texts: BTreeSet<&str> = cases.iter().map(|case| case.yaml.as_str()).collect();
    assert_eq!(texts.len(), cases.len(), "no case is there twice");
}

/// P11: only the cases that are there for their faults have any.
#[test]
fn cases_are_policies_without_faults_but_for_those_about_faults() {
    for case in cases::all(&World::standard()) {
        let faulty = case.policies().iter().any(|policy| !policy.faults.is_empty());
        assert_eq!(faulty, case.group() == "faults", "{case}");
    }
}

/// P1, P2, P3, P4, P6, P8, P11
#[test]
fn the_oracle_agrees_with_the_facts_written_by_hand() {
    let world = World::standard();
    let cases = cases::all(&world);
    let facts = cases::facts(&world);
    println!("{} facts", facts.len());
    assert!(facts.len() >= 60);
    for fact in facts {
        let case = cases.iter().find(|case| case.name == fact.case);
        let case = case.unwrap_or_else(|| panic!("facts.txt:{}: no case {}", fact.line, fact.case));
        let found = verdict(&world, &case.policies(), &fact.query);
        let text = fact.query.text(&world);
        assert_eq!(
            found.is_allowed(),
            fact.allowed,
            "facts.txt:{}: {text}: {found:?}\n{case}",
            fact.line
        );
    }
}

/// Cases that are looked for in proof of a wrong evaluator; more prove no more.
const PROOFS: usize = 5;

/// Every rule of the API that an evaluator may get wrong shows in some cell of some case.
#[test]
fn every_wrong_evaluator_is_caught_by_a_case() {
    let world = World::standard();
    let mutations = mutations::all();
    assert!(mutations.len() >= 20);
    let queries = table::queries(&world);
    let mut caught: Vec<Vec<String>> = vec![Vec::new(); mutations.len()];
    for case in cases::all(&world) {
        let policies = case.policies();
        let right = table::expected(&world, &policies, queries.iter().copied());
        for (mutation, by) in mutations.iter().zip(&mut caught) {
            if by.len() < PROOFS && mutation.is_caught(&world, &case, &policies, &right) {
                by.push(case.name.clone());
            }
        }
    }
    println!("{} wrong evaluators, each with the first cases that catch it:", mutations.len());
    for (mutation, by) in mutations.iter().zip(&caught) {
        println!("{mutation:?}: {}", by.join(", "));
    }
    let proved = mutations.iter().zip(&caught);
    let missed: Vec<_> = proved.filter(|(_, by)| by.is_empty()).map(|(missed, _)| missed).collect();
    assert!(missed.is_empty(), "no case tells these from the oracle: {missed:#?}");
}

/// P6: by its packets a pod of the host network cannot be told from its node.
#[test]
fn a_pod_of_the_host_network_is_judged_as_its_node() {
    let world = World::standard();
    let find = |name: &str| world.find(name).unwrap();
    for (pod, node) in [("x/host", "node-a"), ("y/host", "node-b")] {
        for case in cases::all(&world) {
            let policies = case.policies();
            let host = find(pod);
            let of_the_pod = |query: &Query| query.from.who == host || query.to.who == host;
            for query in table::queries(&world).into_iter().filter(of_the_pod) {
                let swap = |end: table::End| {
                    let who = if end.who == host { find(node) } else { end.who };
                    table::End { who, ..end }
                };
                let as_node = Query { from: swap(query.from), to: swap(query.to), ..query };
                assert_eq!(
                    verdict(&world, &policies, &query),
                    verdict(&world, &policies, &as_node),
                    "{}\n{case}",
                    query.text(&world)
                );
            }
        }
    }
}

#[test]
fn what_is_written_is_read_as_it_was() {
    for case in cases::all(&World::standard()).iter().filter(|case| case.group() != "faults") {
        let policies = case.policies();
        let text = yaml::write(&policies);
        assert_eq!(yaml::policies(&text), policies, "{case}\n{text}");
    }
}

#[test]
fn a_difference_is_a_table_with_the_cell_marked_and_the_reason() {
    let world = World::standard();
    let case = case(&world, "peers/ingress/pod");
    let policies = case.policies();
    let wrong = Query::parse(&world, "y/b > x/a TCP/80 v4").unwrap();
    let queries = table::queries_of(&world, &[(wrong.protocol, wrong.port)]);
    let right = table::expected(&world, &policies, queries.iter().copied());
    let found = table::compare(&world, &policies, queries, |query| {
        if *query == wrong { !right[query] } else { right[query] }
    });
    assert_eq!(found.len(), 1);
    let mut seen = right.clone();
    seen.insert(wrong, true);
    let report = table::report_table(&world, &case.name, &found, &seen);
    println!("{report}");
    assert!(report.contains("TCP/80 v4") && !report.contains("TCP/80 v6"), "{report}");
    let row = report.lines().find(|line| line.starts_with("y/b ")).unwrap();
    let cells: Vec<&str> = row.split_whitespace().skip(1).collect();
    assert_eq!(&cells[..2], ["[.]", "."], "{report}");
    let reason =
        "y/b > x/a TCP/80 v4: allowed, must be denied (ingress of x/a: isolated by x/ingress-of-a";
    assert!(report.contains(reason), "{report}");
}

fn case(world: &World, name: &str) -> Case {
    cases::all(world).into_iter().find(|case| case.name == name).unwrap()
}
