//! The table of cases: its size, the facts written by hand, and how much it can tell apart.

use std::collections::{BTreeMap, BTreeSet};

use sluice_model::{
    ClusterNetworkPolicy, ClusterPolicyPeer, ClusterPolicyPort, ClusterPolicyRule, LabelSelector,
    PolicyAction, PolicyTier,
};
use sluice_tests::policy::cases::{self, Case};
use sluice_tests::policy::cluster::World;
use sluice_tests::policy::oracle::verdict;
use sluice_tests::policy::random::{self, Draw};
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

/// Cases of policies of the cluster have names of their own, and faults where they are there for them.
#[test]
fn the_table_has_all_kinds_of_cases_of_tiers() {
    let cases = cases::tiers(&World::standard());
    let mut kinds: BTreeMap<&str, usize> = BTreeMap::new();
    for case in &cases {
        let kind = case.name.split('/').nth(1).unwrap_or_default();
        *kinds.entry(kind).or_default() += 1;
        let faulty = case.cluster_policies().iter().any(|policy| !policy.faults.is_empty());
        assert_eq!(faulty, kind == "closed", "{case}");
    }
    println!("{} cases: {kinds:?}", cases.len());
    assert!(cases.len() >= 75, "{} cases", cases.len());
    let names: BTreeSet<&str> = cases.iter().map(|case| case.name.as_str()).collect();
    let texts: BTreeSet<&str> = cases.iter().map(|case| case.yaml.as_str()).collect();
    assert_eq!((names.len(), texts.len()), (cases.len(), cases.len()), "no case is there twice");
}

/// P1, P2, P3, P4, P11: every case of policies of the cluster has facts, and the oracle agrees with them.
#[test]
fn the_oracle_agrees_with_the_facts_about_tiers() {
    let standard = World::standard();
    let cases = cases::tiers(&standard);
    let facts = cases::tier_facts(&standard);
    println!("{} facts", facts.len());
    for case in &cases {
        assert!(facts.iter().any(|fact| fact.case == case.name), "no fact about {}", case.name);
    }
    for fact in facts {
        let case = cases.iter().find(|case| case.name == fact.case);
        let case = case.unwrap_or_else(|| panic!("tiers.txt:{}: no case {}", fact.line, fact.case));
        let world = standard.with(case.cluster_policies());
        let found = verdict(&world, &case.policies(), &fact.query);
        let (line, text) = (fact.line, fact.query.text(&world));
        assert_eq!(found.is_allowed(), fact.allowed, "tiers.txt:{line}: {text}: {found:?}\n{case}");
    }
}

/// What an evaluator may get wrong of policies of the cluster, as a change of what they say.
type Wrong = (&'static str, fn(&mut ClusterNetworkPolicy));

fn each_rule(policy: &mut ClusterNetworkPolicy, mut change: impl FnMut(&mut ClusterPolicyRule)) {
    policy.ingress.iter_mut().chain(&mut policy.egress).for_each(&mut change);
}

fn replace_action(policy: &mut ClusterNetworkPolicy, from: PolicyAction, to: PolicyAction) {
    each_rule(policy, |rule| {
        if rule.action == from {
            rule.action = to;
        }
    });
}

const WRONG: [Wrong; 17] = [
    ("tiers are exchanged", |policy| {
        policy.tier = match policy.tier {
            PolicyTier::Admin => PolicyTier::Baseline,
            PolicyTier::Baseline => PolicyTier::Admin,
        };
    }),
    ("the baseline is asked with the others", |policy| policy.tier = PolicyTier::Admin),
    ("priorities count the other way", |policy| policy.priority = 5000 - policy.priority),
    ("priorities do not count", |policy| policy.priority = 0),
    ("the last rule counts", |policy| {
        policy.ingress.reverse();
        policy.egress.reverse();
    }),
    ("Pass accepts", |policy| replace_action(policy, PolicyAction::Pass, PolicyAction::Accept)),
    ("Pass denies", |policy| replace_action(policy, PolicyAction::Pass, PolicyAction::Deny)),
    ("Accept passes", |policy| replace_action(policy, PolicyAction::Accept, PolicyAction::Pass)),
    ("Pass goes on with the next rule", |policy| {
        policy.ingress.retain(|rule| rule.action != PolicyAction::Pass);
        policy.egress.retain(|rule| rule.action != PolicyAction::Pass);
    }),
    ("Deny goes on", |policy| {
        policy.ingress.retain(|rule| rule.action != PolicyAction::Deny);
        policy.egress.retain(|rule| rule.action != PolicyAction::Deny);
    }),
    ("what is not understood is left out", |policy| {
        policy.ingress.retain(|rule| rule.understood);
        policy.egress.retain(|rule| rule.understood);
    }),
    ("what is not understood denies, whatever its action", |policy| {
        each_rule(policy, |rule| {
            if !rule.understood {
                rule.action = PolicyAction::Deny;
            }
        });
    }),
    ("the parts of a rule that are understood count", |policy| {
        each_rule(policy, |rule| rule.understood = true);
    }),
    ("ports do not count", |policy| each_rule(policy, |rule| rule.ports.clear())),
    ("ports by name are left out", |policy| {
        each_rule(policy, |rule| {
            rule.ports.retain(|port| !matches!(port, ClusterPolicyPort::Name(_)));
        });
    }),
    ("nodes are no peers", |policy| {
        each_rule(policy, |rule| {
            rule.peers.retain(|peer| !matches!(peer, ClusterPolicyPeer::Nodes(_)));
        });
    }),
    ("labels of pods do not count in subjects", |policy| {
        policy.subject.pods = LabelSelector::default();
    }),
];

/// How much the cases can tell apart: each wrong reading shows in some cell of some case.
#[test]
fn every_wrong_reading_of_tiers_is_caught_by_a_case() {
    let standard = World::standard();
    let queries = table::queries(&standard);
    let mut missed: Vec<&str> = WRONG.iter().map(|(name, _)| *name).collect();
    for case in cases::tiers(&standard) {
        let (policies, of_cluster) = (case.policies(), case.cluster_policies());
        let right = standard.with(of_cluster.clone());
        missed.retain(|name| {
            let (_, change) = WRONG.iter().find(|(known, _)| known == name).expect("it is there");
            let mut changed = of_cluster.clone();
            changed.iter_mut().for_each(change);
            let wrong = standard.with(changed);
            let differs = |query: &Query| {
                verdict(&right, &policies, query).is_allowed()
                    != verdict(&wrong, &policies, query).is_allowed()
            };
            !queries.iter().any(differs)
        });
    }
    assert_eq!(missed, [""; 0], "no case tells these from the oracle");
}

/// What is drawn can be written, and is read as it was but for faults.
#[test]
fn policies_of_the_cluster_are_read_as_they_were_written() {
    for seed in 0..500 {
        let mut draw = Draw::new(seed);
        let world = random::world(&mut draw);
        let policies = random::cluster_policies(&mut draw, &world, 5);
        let text = yaml::write_cluster(&policies);
        let mut read = yaml::cluster_policies(&text);
        read.iter_mut().for_each(|policy| policy.faults.clear());
        assert_eq!(read, policies, "{text}");
    }
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
