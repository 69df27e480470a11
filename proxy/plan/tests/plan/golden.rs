//! Scenarios in `testdata/`: Kubernetes manifests in, operations and tables out.
//!
//! A scenario is a YAML file of one or more steps. Each step is all that the manifest directory
//! holds at that time; the node is the Node `node-a` of the manifests, if there is one, with NodePorts
//! on its addresses and on the loopback's; a line that begins with `#: ` ends the one before and gives the step's title.
//! `#: restart: TITLE` starts a new agent on what the kernel holds, and `#: restart on nothing:
//! TITLE` one on empty maps. `BLESS=1 cargo test -p sluice-plan` writes the expected files anew.

use std::collections::BTreeSet;
use std::fmt::{Display, Write as _};
use std::path::{Path, PathBuf};
use std::{env, fs};

use sluice_model::Node;
use sluice_plan::{NodeContext, Planner};
use sluice_store::{Cache, Event, parse_manifest};

use crate::common::Kernel;

/// A test for each scenario, and the list of them all.
macro_rules! scenarios {
    ($($(#[$doc:meta])* $name:ident)*) => {
        $($(#[$doc])* #[test] fn $name() { check(stringify!($name)); })*
        const SCENARIOS: &[&str] = &[$(stringify!($name)),*];
    };
}

scenarios! {
    single
    /// S3: each Service port has the endpoints' port of its name.
    named_ports
    /// S26: also with endpoints of one family only.
    dual_stack
    /// S2: DNS has both on port 53.
    tcp_and_udp_on_one_port
    headless
    external_name
    no_endpoints
    /// S14: ready, then terminating, then neither.
    terminating_fallback
    /// O5: the older one has it until it goes.
    duplicate_cluster_ip
    /// S30: one pod behind two Services; each may go without harm to the other.
    shared_backend
    /// S31: ports, ClusterIP, type and the port's name.
    changes_in_place
    /// S32: with the same input a restart writes nothing.
    restart_with_the_same_input
    /// S32: with other input it writes the difference and prunes last.
    restart_with_changed_input
    /// S18: they are left alone.
    foreign_labels
    /// O5: what is wrong is skipped, the rest is programmed.
    malformed_objects
    /// Endpoints that no EndpointSlice lists: those of the pods that the selector finds.
    selector_without_slices
    /// On the node's addresses and localhost, in a LoadBalancer too (S6: where it has one), and when
    /// the node's addresses change.
    node_port
    /// S5: ingress addresses and external IPs, together and apart; those of a proxy are left alone.
    load_balancer
    /// S10: which endpoints each kind of address has for clients inside.
    traffic_policies
    /// S13: nodes, then zones, then all; and when the node changes its zone.
    hints
    /// S34: the API server's last backends stay, also across a restart, until there are others.
    api_server
    /// A list of more than one chunk.
    twenty_endpoints
}

/// A directory without steps for a file, or a file that no test reads, is a mistake.
#[test]
fn every_scenario_has_a_test() {
    let files: BTreeSet<String> = fs::read_dir(testdata())
        .expect("testdata is readable")
        .map(|entry| entry.expect("testdata is readable").path())
        .filter(|path| path.extension().is_some_and(|e| e == "yaml" || e == "golden"))
        .filter_map(|path| Some(path.file_stem()?.to_str()?.to_owned()))
        .collect();
    assert_eq!(files, SCENARIOS.iter().map(|name| (*name).to_owned()).collect());
}

fn testdata() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata")
}

fn check(name: &str) {
    let input = testdata().join(format!("{name}.yaml"));
    let golden = testdata().join(format!("{name}.golden"));
    let text =
        fs::read_to_string(&input).unwrap_or_else(|error| panic!("{}: {error}", input.display()));
    let actual = run(&text);
    if env::var_os("BLESS").is_some_and(|value| value == "1") {
        fs::write(&golden, &actual).unwrap_or_else(|e| panic!("{}: {e}", golden.display()));
        return;
    }
    let expected = fs::read_to_string(&golden)
        .unwrap_or_else(|error| panic!("{}: {error} (BLESS=1 writes it)", golden.display()));
    if let Some(line) = (0..).find_map(|n| {
        let (have, want) = (actual.lines().nth(n), expected.lines().nth(n));
        (have != want || have.is_none()).then_some((n + 1, have, want))
    }) && (line.1.is_some() || line.2.is_some())
    {
        let (number, have, want) = line;
        panic!(
            "{}:{number}: expected {want:?}, got {have:?} (BLESS=1 writes it anew)\n{actual}",
            golden.display()
        );
    }
}

/// What precedes a step.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Agent {
    Runs,
    Restarts,
    RestartsOnNothing,
}

/// Title, agent and manifests of each step.
fn steps(text: &str) -> Vec<(String, Agent, String)> {
    let mut steps = Vec::new();
    for line in text.lines() {
        if let Some(title) = line.strip_prefix("#: ") {
            let (agent, title) = if let Some(title) = title.strip_prefix("restart: ") {
                (Agent::Restarts, title)
            } else if let Some(title) = title.strip_prefix("restart on nothing: ") {
                (Agent::RestartsOnNothing, title)
            } else {
                (Agent::Runs, title)
            };
            steps.push((title.to_owned(), agent, String::new()));
        } else if let Some((_, _, text)) = steps.last_mut() {
            text.push_str(line);
            text.push('\n');
        } else {
            assert!(line.is_empty() || line.starts_with('#'), "a step begins with `#: TITLE`");
        }
    }
    assert!(!steps.is_empty(), "a scenario has at least one step");
    steps
}

fn run(text: &str) -> String {
    let mut out = String::new();
    let mut kernel = Kernel::default();
    let mut planner = Planner::new();
    let mut cache = Cache::new();
    for (title, agent, manifests) in steps(text) {
        match agent {
            Agent::Runs => {}
            Agent::Restarts => {
                planner = Planner::restore(kernel.tables.clone());
                cache = Cache::new();
            }
            Agent::RestartsOnNothing => {
                kernel = Kernel::default();
                planner = Planner::new();
                cache = Cache::new();
            }
        }
        let first = !cache.synced();
        let changes = cache.ingest(events(&manifests));
        // The store's own words are its own tests' matter.
        let mut warnings: Vec<String> = changes
            .rejected
            .iter()
            .filter_map(|r| Some(format!("{}: {} is rejected", r.key.as_ref()?, r.field)))
            .collect();
        let mut ops = Vec::new();
        let mut plans = Vec::new();
        let mut services = changes.services;
        if let Some(node) = cache.node("node-a") {
            services.extend(planner.set_node(context(node)));
        }
        for name in &services {
            plans.push(match cache.service(name) {
                Some(service) => planner.upsert(service, &cache.endpoints(name)),
                None => planner.remove(name),
            });
        }
        if first {
            plans.push(planner.prune());
        }
        for plan in plans {
            kernel.apply_watched(&plan.ops);
            ops.extend(plan.ops);
            warnings.extend(plan.warnings.iter().map(ToString::to_string));
        }
        assert_eq!(kernel.tables, *planner.tables(), "{title}");
        section(&mut out, &format!("== {title}"), &[""; 0]);
        section(&mut out, "-- warnings", &warnings);
        section(&mut out, "-- operations", &ops);
        section(&mut out, "-- tables", &kernel.tables.dump().lines().collect::<Vec<_>>());
        section(&mut out, "-- meaning", &kernel.tables.canonical().lines().collect::<Vec<_>>());
    }
    out
}

fn context(node: &Node) -> NodeContext {
    let loopbacks = ["127.0.0.1", "::1"].map(|ip| ip.parse().expect("an address"));
    NodeContext {
        name: node.meta.name.name.clone(),
        zone: node.zone().map(str::to_owned),
        node_port_addrs: node.addrs.iter().map(|a| a.addr).chain(loopbacks).collect(),
        addrs: node.addrs.iter().map(|a| a.addr).collect(),
        external_ips: true,
        node_local: None,
    }
}

/// A heading and its lines; nothing for a part without lines, but for a step's own heading.
fn section(out: &mut String, heading: &str, lines: &[impl Display]) {
    if !lines.is_empty() || heading.starts_with("==") {
        writeln!(out, "{heading}").expect("a String takes it");
        for line in lines {
            writeln!(out, "{line}").expect("a String takes it");
        }
    }
}

/// What a source says that finds these manifests.
fn events(manifests: &str) -> Vec<Event> {
    let manifest = parse_manifest("scenario.yaml", manifests);
    let mut events = vec![Event::Init];
    events.extend(manifest.objects.into_iter().map(|(_, object)| Event::Apply(Box::new(object))));
    events.extend(manifest.rejected.into_iter().map(Event::Reject));
    events.push(Event::InitDone);
    events
}
