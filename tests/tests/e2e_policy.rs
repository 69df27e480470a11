//! Truth tables of the agents by real connections. The stage proves itself first: on a data plane that is right by
//! construction it sees what is allowed and what is denied, and on one that is wrong it says where.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde_json::Value;
use sluice_tests::node::Node;
use sluice_tests::pod::Pod;
use sluice_tests::policy::cases;
use sluice_tests::policy::cluster::Who;
use sluice_tests::policy::live::agents::Agents;
use sluice_tests::policy::live::filter::Filter;
use sluice_tests::policy::live::{Enforcer, Policies, Stage, Wiring};
use sluice_tests::policy::table::Query;
use sluice_tests::wait::wait_ok;
use sluice_tests::{Result, wait_for};

/// Long enough for anything that comes at all.
const LIMIT: Duration = Duration::from_secs(20);

/// Cases of each kind, for a data plane that needs no more proof than the stage does.
const SOME: [&str; 6] = [
    "namespaces/deny-all",
    "peers/ingress/pod-of-namespace-beside-another-in-rules",
    "peers/egress/except-pods-v6",
    "ports/egress/name",
    "host/ingress/address",
    "faults/beside-a-good-one",
];

/// All of these hold, cell by cell, and after them everything is open again.
fn agree(
    stage: &Stage,
    enforcer: &mut dyn Enforcer,
    cases: impl IntoIterator<Item = (String, Policies)>,
    drawn: impl IntoIterator<Item = (String, Policies)>,
) -> Result<()> {
    let cases = stage.hold_all(enforcer, cases)?;
    let drawn = stage.hold_all(enforcer, drawn)?;
    for (name, of) in [("cases", cases), ("drawn", drawn)] {
        println!("{name}: {of:?}, {:?} a table", of.elapsed / of.sets as u32);
        assert!(of.denied > 0 && of.denied < of.cells, "{of:?}");
    }
    let seen = stage.hold(enforcer, &Policies::read(""))?;
    assert!(seen.table.values().all(|allowed| *allowed));
    Ok(())
}

/// P1, P2, P3, P4, P6, P8: some cases and random sets, cell by cell.
#[test]
fn tables_of_a_right_data_plane_agree() -> Result<()> {
    let stage = Stage::new(Wiring::Plugin)?;
    let mut filter = Filter::default();
    let mut sets = stage.cases();
    sets.retain(|(name, _)| SOME.contains(&name.as_str()));
    assert_eq!(sets.len(), SOME.len());
    agree(&stage, &mut filter, sets, stage.drawn(0..10))
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

/// Cases and drawn sets that are tried with real agents: every so many of them, so that each group has its share.
const EVERY_CASE: usize = 3;
const EVERY_DRAWN: usize = 5;
/// With this in the environment, all of them are.
const ALL: &str = "SLUICE_POLICY_TABLES";
/// Sets that are drawn.
const DRAWN: u64 = 500;

/// Every so many are tried, or all of them if that is asked for.
fn every(step: usize) -> usize {
    if std::env::var(ALL).is_ok_and(|value| value == "all") { 1 } else { step }
}

/// P1, P2, P3, P4, P5, P6, P8, P11: real agents, real connections, cell by cell.
#[test]
fn tables_of_the_agents_agree() -> Result<()> {
    let stage = Stage::new(Wiring::Agents)?;
    let (cases, drawn) = (stage.cases().into_iter(), stage.drawn(0..DRAWN));
    agree(&stage, &mut Agents, cases.step_by(every(EVERY_CASE)), drawn.step_by(every(EVERY_DRAWN)))
}

/// Sets of policies of the cluster that are drawn.
const DRAWN_TIERS: u64 = 100;

/// P1, P2, P3, P4, P11: policies of the cluster, with real agents and real connections, cell by cell.
#[test]
fn tables_of_tiers_agree() -> Result<()> {
    let stage = Stage::new(Wiring::Agents)?;
    let (cases, drawn) = (stage.tiers().into_iter(), stage.drawn_tiers(0..DRAWN_TIERS));
    agree(&stage, &mut Agents, cases.step_by(every(EVERY_CASE)), drawn.step_by(every(EVERY_DRAWN)))
}

/// Beside a NetworkPolicy that shuts `x/a`: who of `y` may ask it nevertheless, and at which port nobody may.
const TIERS: &str = "apiVersion: policy.networking.k8s.io/v1alpha2
kind: ClusterNetworkPolicy
metadata: {name: platform}
spec:
  tier: Admin
  priority: 7
  subject: {namespaces: {matchLabels: {ns: x}}}
  ingress:
  - {name: no-81, action: Deny, from: [{namespaces: {}}], protocols: [{tcp: {destinationPort: {number: 81}}}]}
  - {action: Accept, from: [{pods: {namespaceSelector: {matchLabels: {ns: y}}, podSelector: {matchLabels: {pod: a}}}}]}
  - {action: Pass, from: [{namespaces: {matchLabels: {ns: y}}}]}
  egress:
  - {action: Deny, to: [{domainNames: [example.com]}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: nobody, namespace: x}
spec: {podSelector: {matchLabels: {pod: a}}, policyTypes: [Ingress]}
";

/// P11, P13: which rule of which tier decides is told, by the objects and by the kernel alike; so is what is not understood.
#[test]
fn the_rule_that_decides_is_named() -> Result<()> {
    let stage = Stage::new(Wiring::Agents)?;
    stage.hold(&mut Agents, &Policies::read(TIERS))?;
    let node = stage.cluster().node(0);
    for (from, to, port, says) in [
        ("y/a", "x/a", "81", "Deny by rule 0 (no-81) of platform, Admin tier, priority 7"),
        ("y/a", "x/a", "80", "Accept by rule 1 of platform, Admin tier, priority 7"),
        (
            "y/b",
            "x/a",
            "80",
            "Pass by rule 2 of platform, Admin tier, priority 7; then isolated by x/nobody, none allows it",
        ),
        (
            "x/a",
            "z/a",
            "80",
            "Deny by rule 0 of platform, Admin tier, priority 7; it is not understood",
        ),
    ] {
        let text = node.proxyctl(&["policy", "trace", from, to, port])?;
        assert!(text.contains(says), "{says}:\n{text}");
        assert!(!text.contains("does not do what the policies say"), "{text}");
    }
    let list = node.proxyctl(&["policy", "list"])?;
    let line = list.lines().find(|line| line.starts_with("platform")).context(list.clone())?;
    let field = "spec.egress[0].to[0].domainNames";
    for word in ["Admin", " 7 ", "ingress, egress", "refused, fails closed", field] {
        assert!(line.contains(word), "{word}:\n{list}");
    }
    let pod = node.proxyctl(&["policy", "get", "x/a"])?;
    for line in [
        "Admin tier, priority 7: platform, rule 0 (no-81): Deny",
        "Admin tier, priority 7: platform, rule 2: Pass",
        "rule 0: Deny; not understood, so it fails closed",
    ] {
        assert!(pod.contains(line), "{line}:\n{pod}");
    }
    let metrics = metrics(node)?;
    let metric =
        format!("sluice_policy_refused{{namespace=\"\",name=\"platform\",field=\"{field}\"}} 1");
    assert!(metrics.contains(&metric), "{metrics}");
    Ok(())
}

/// For `x/a`: only pods that are `pod: b` of namespaces with `ns: y` may ask.
const ONLY_YB: &str = "apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: only-yb, namespace: x}
spec:
  podSelector: {matchLabels: {pod: a}}
  policyTypes: [Ingress, Egress]
  ingress: [{from: [{namespaceSelector: {matchLabels: {ns: y}}, podSelector: {matchLabels: {pod: b}}}]}]
";

/// What one node's agent and kernel say of a connection; they must agree.
fn traced(node: &Node, from: &str, to: &str, port: &str) -> Result<bool> {
    let text = node.proxyctl(&["policy", "trace", from, to, port, "-o", "json"])?;
    let trace: Value = serde_json::from_str(&text)?;
    anyhow::ensure!(trace["agree"] == true, "{text}");
    trace["allowed"].as_bool().with_context(|| text.clone())
}

/// P9: verdicts follow labels of pods and namespaces, and policies that come and go.
#[test]
fn verdicts_follow_labels() -> Result<()> {
    let mut stage = Stage::new(Wiring::Agents)?;
    let policies = Policies::read(ONLY_YB);
    stage.hold(&mut Agents, &policies)?;
    let place = |stage: &Stage, name: &str| match stage.world().find(name) {
        Some(Who::Pod(index)) => index,
        other => panic!("{name}: {other:?}"),
    };
    let (ya, yb) = (place(&stage, "y/a"), place(&stage, "y/b"));
    let on_node_a = |stage: &Stage, from: &str| traced(stage.cluster().node(0), from, "x/a", "80");
    assert!(!on_node_a(&stage, "y/a")? && on_node_a(&stage, "y/b")?);

    // Two pods exchange their labels.
    let begun = Instant::now();
    stage.change_world(|world| {
        let labels = std::mem::take(&mut world.pods[ya].meta.labels);
        world.pods[ya].meta.labels = std::mem::replace(&mut world.pods[yb].meta.labels, labels);
    })?;
    wait_ok("y/a to be allowed", LIMIT, || {
        anyhow::ensure!(on_node_a(&stage, "y/a")? && !on_node_a(&stage, "y/b")?);
        Ok(())
    })?;
    println!("a pod's labels: {:?} from the manifest to the kernel", begun.elapsed());
    stage.check("labels of pods", &policies.list)?;

    // Namespace z becomes one of those that are named, and y ceases to.
    let begun = Instant::now();
    stage.change_world(|world| {
        for namespace in &mut world.namespaces {
            let is_z = namespace.meta.name.name == "z";
            let label = if is_z { "y" } else { "other" };
            namespace.meta.labels.insert("ns".to_owned(), label.to_owned());
        }
    })?;
    wait_ok("z/b to be allowed", LIMIT, || {
        anyhow::ensure!(on_node_a(&stage, "z/b")? && !on_node_a(&stage, "y/a")?);
        Ok(())
    })?;
    println!("a namespace's labels: {:?} from the manifest to the kernel", begun.elapsed());
    stage.check("labels of namespaces", &policies.list)?;
    Ok(())
}

/// P9: nothing opens while an agent is killed, away and back; what changed meanwhile is in force after that.
#[test]
fn a_restart_of_the_agents_opens_nothing() -> Result<()> {
    let mut stage = Stage::new(Wiring::Agents)?;
    let policies = Policies::read(ONLY_YB);
    stage.hold(&mut Agents, &policies)?;
    let source = stage.cluster().source();
    // Somebody who may not asks all the time.
    let target = SocketAddr::from((stage.pod("x/a").context("x/a")?.ipv4()?, 80));
    let (asking, asked) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicU64::new(0)));
    let (still_asking, count) = (Arc::clone(&asking), Arc::clone(&asked));
    let ask = move || -> Result<()> {
        while still_asking.load(Ordering::Relaxed) {
            let found = TcpStream::connect_timeout(&target, Duration::from_millis(50));
            anyhow::ensure!(found.is_err(), "y/a reached x/a");
            count.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    };
    // A thread is in the namespace of the one that begins it.
    let asker = stage.pod("y/a").context("y/a")?.netns().run(|| thread::spawn(ask))?;
    let restarts = (|| -> Result<()> {
        for index in [0, 1, 0] {
            stage.cluster_mut().node_mut(index).kill_agent()?;
            stage.check("killed", &policies.list)?;
            stage.cluster_mut().node_mut(index).start_agent(&source)?;
            stage.check("back", &policies.list)?;
        }
        let before = asked.load(Ordering::Relaxed);
        let more = || (asked.load(Ordering::Relaxed) > before + 3).then_some(());
        wait_for("a few more questions", LIMIT, more)
    })();
    asking.store(false, Ordering::Relaxed);
    let asker = asker.join().map_err(|_| anyhow::anyhow!("the asker panicked"))?;
    restarts.and(asker)?;
    // A change while no agent runs.
    stage.cluster_mut().node_mut(0).kill_agent()?;
    stage.cluster().apply("policies", "")?;
    stage.check("still in force", &policies.list)?;
    stage.cluster_mut().node_mut(0).start_agent(&source)?;
    stage.hold(&mut Agents, &Policies::read(""))?;
    Ok(())
}

/// What Prometheus would get of a node.
fn metrics(node: &Node) -> Result<String> {
    node.netns().run(|| -> Result<String> {
        let mut stream = TcpStream::connect("127.0.0.1:10249")?;
        stream.set_read_timeout(Some(LIMIT))?;
        write!(stream, "GET /metrics HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    })?
}

/// P11: a policy that cannot be read is told by name and field: by `proxyctl policy list`, by a metric and in the log; its
/// pods are closed. P13: so is what it comes to.
#[test]
fn a_policy_that_cannot_be_read_is_told_and_closes_its_pods() -> Result<()> {
    let stage = Stage::new(Wiring::Agents)?;
    let broken = "apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: broken, namespace: x}
spec:
  podSelector: {matchLabels: {pod: a}}
  ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/33}}]}]
";
    stage.hold(&mut Agents, &Policies::read(broken))?;
    let field = "spec.ingress[0].from[0].ipBlock.cidr";
    let node = stage.cluster().node(0);
    let list = node.proxyctl(&["policy", "list"])?;
    let line = list.lines().find(|line| line.contains("x/broken")).with_context(|| list.clone())?;
    assert!(line.contains("refused") && line.contains(field), "{list}");
    let log = std::fs::read_to_string(node.log_dir().join("sluiced.log"))?;
    assert!(
        log.lines().any(|line| line.contains("x/broken") && line.contains(field)),
        "no line of the log names policy and field:\n{log}"
    );
    let metrics = metrics(node)?;
    let metric =
        format!("sluice_policy_refused{{namespace=\"x\",name=\"broken\",field=\"{field}\"}} 1");
    assert!(metrics.contains(&metric), "{metrics}");
    let pod = node.proxyctl(&["policy", "get", "x/a"])?;
    assert!(pod.contains("isolated by x/broken") && pod.contains("closed"), "{pod}");
    let trace = node.proxyctl(&["policy", "trace", "y/a", "x/a", "80"])?;
    assert!(trace.contains("isolated by x/broken, none allows it"), "{trace}");
    Ok(())
}

/// P9: what nobody knows yet is shut where policies may be for it, and open where none can be.
#[test]
fn a_new_pod_is_shut_until_it_is_known() -> Result<()> {
    let stage = Stage::new(Wiring::Agents)?;
    let of_x = "apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web-alone, namespace: x}
spec: {podSelector: {matchLabels: {tier: web}}}
";
    stage.hold(&mut Agents, &Policies::read(of_x))?;
    let node = stage.cluster().node(0);
    let asker = stage.pod("y/a").context("y/a")?;
    let ask = |pod: &Pod| asker.get(&format!("{}:8080", pod.ipv4()?)).map(drop);
    let free = node.add_pod("z", "new")?;
    let _serving = free.serve(8080)?;
    wait_ok("a pod of a namespace without policies", LIMIT, || ask(&free))?;
    let shut = node.add_pod("x", "new")?;
    let _serving = shut.serve(8080)?;
    let get = node.proxyctl(&["policy", "get", "x/new"])?;
    assert_eq!(get.matches("closed").count(), 2, "{get}");
    // The node itself reaches it: so it is there, and serves.
    let own = format!("{}:8080", shut.ipv4()?);
    wait_ok("its own node", LIMIT, || node.get(&own).map(drop))?;
    assert!(ask(&shut).is_err(), "nobody knows the pod");
    // Known, and not selected: open.
    stage.cluster().apply("new", &shut.manifest(&[("tier", "db")]))?;
    wait_ok("a pod that no policy selects", LIMIT, || ask(&shut))?;
    // Selected.
    stage.cluster().apply("new", &shut.manifest(&[("tier", "web")]))?;
    wait_for("the policy to be for it", LIMIT, || ask(&shut).is_err().then_some(()))?;
    Ok(())
}
