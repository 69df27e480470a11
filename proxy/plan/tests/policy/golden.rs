//! Scenarios in `testdata/policy/`: manifests in, operations and tables out.
//!
//! A scenario is a YAML file of steps, each all that the cluster is at that time; a line that begins
//! with `#: ` gives a step's title. `#: restart: TITLE` starts a new agent on what the kernel holds.
//! `BLESS=1 cargo test -p sluice-plan` writes the expected files anew.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::{env, fs};

use sluice_plan::PolicyPlanner;

use crate::common::{Kernel, World};

/// A test for each scenario, and the list of them all.
macro_rules! scenarios {
    ($($(#[$doc:meta])* $name:ident)*) => {
        $($(#[$doc])* #[test] fn $name() { check(stringify!($name)); })*
        const SCENARIOS: &[&str] = &[$(stringify!($name)),*];
    };
}

scenarios! {
    /// P1, P2: a database that only the shop's web pods reach, as it comes, changes and goes.
    database
    /// P4: blocks with exceptions, pods in them, prefixes around prefixes.
    blocks
    /// P3: names of ports, of the pod itself and of those it sends to; ranges as prefixes.
    ports
}

/// A scenario that no test reads is a mistake.
#[test]
fn every_scenario_has_a_test() {
    let files: BTreeSet<String> = fs::read_dir(testdata())
        .expect("testdata is readable")
        .filter_map(|entry| {
            Some(entry.expect("testdata is readable").path().file_stem()?.to_str()?.to_owned())
        })
        .collect();
    assert_eq!(files, SCENARIOS.iter().map(|name| (*name).to_owned()).collect());
}

fn testdata() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/policy")
}

fn check(name: &str) {
    let input = testdata().join(format!("{name}.yaml"));
    let golden = testdata().join(format!("{name}.golden"));
    let text = fs::read_to_string(&input).unwrap_or_else(|e| panic!("{}: {e}", input.display()));
    let actual = run(&text);
    if env::var_os("BLESS").is_some_and(|value| value == "1") {
        fs::write(&golden, &actual).unwrap_or_else(|e| panic!("{}: {e}", golden.display()));
        return;
    }
    let expected = fs::read_to_string(&golden)
        .unwrap_or_else(|e| panic!("{}: {e} (BLESS=1 writes it)", golden.display()));
    assert_eq!(actual, expected, "{} (BLESS=1 writes it anew)", golden.display());
}

fn run(text: &str) -> String {
    let mut out = String::new();
    let mut kernel = Kernel::default();
    let mut planner = PolicyPlanner::new();
    let mut world = World::default();
    let steps: Vec<&str> = text.split("#: ").skip(1).collect();
    assert!(!steps.is_empty(), "a scenario has at least one step");
    for step in steps {
        let (title, manifests) = step.split_once('\n').expect("a title is a line");
        if title.starts_with("restart: ") {
            planner = PolicyPlanner::restore(kernel.tables.clone());
            world = World::default();
        }
        let new = World::parse(manifests);
        new.state(&world, &mut planner);
        world = new;
        writeln!(out, "== {title}").expect("a String takes it");
        for op in planner.plan() {
            kernel.apply(&op);
            writeln!(out, "{op}").expect("a String takes it");
        }
        assert_eq!(kernel.tables, *planner.tables(), "{title}");
        write!(out, "-- tables\n{}", kernel.tables.dump()).expect("a String takes it");
    }
    out
}
