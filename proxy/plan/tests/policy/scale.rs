//! Sizes: what a change costs, and what is not written. Counted in operations, not in time.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use sluice_model::{
    LabelSelector, Meta, NetworkPolicy, ObjectName, Pod, PodPhase, PolicyPeer, PolicyPort,
    PolicyPortRange, PolicyRule, Protocol,
};
use sluice_plan::{LocalPod, PolicyPlanner};

const PODS: u32 = 10_000;
const POLICIES: u32 = 1_000;
const RULES: u32 = 100;
/// Pods of this node, and how many of them one policy selects.
const LOCAL: u32 = 100;

fn labels(app: u32) -> BTreeMap<String, String> {
    [("app".to_owned(), format!("app-{app}"))].into()
}

fn app(app: u32) -> LabelSelector {
    LabelSelector { labels: labels(app), expressions: Vec::new() }
}

fn name(kind: &str, i: u32) -> ObjectName {
    ObjectName::new("shop", format!("{kind}-{i:05}"))
}

fn addr(i: u32) -> IpAddr {
    Ipv4Addr::from_bits(0x0af4_0000 + i).into()
}

/// A pod of one of 1,000 applications.
fn pod(i: u32, app: u32) -> Pod {
    Pod {
        meta: Meta { name: name("pod", i), labels: labels(app), ..Meta::default() },
        phase: PodPhase::Running,
        addrs: vec![addr(i)],
        ..Pod::default()
    }
}

/// A policy for one application with a hundred rules, each for another one and two ports.
fn policy(i: u32) -> NetworkPolicy {
    let rule = |j| PolicyRule {
        peers: vec![PolicyPeer::Pods { namespaces: None, pods: Some(app((i + j) % 1000)) }],
        ports: [80, 443]
            .map(|port| PolicyPort {
                protocol: Protocol::Tcp,
                ports: PolicyPortRange::Numbers(port, port),
            })
            .into(),
    };
    NetworkPolicy {
        meta: Meta { name: name("policy", i), ..Meta::default() },
        pods: app(i),
        ingress: Some((1..=RULES).map(rule).collect()),
        ..NetworkPolicy::default()
    }
}

/// P10: 10,000 pods, 1,000 policies with 100 rules each, 100 pods of ten applications on the node.
#[test]
fn work_follows_the_change() {
    let mut planner = PolicyPlanner::new();
    for i in 0..PODS {
        planner.set_pod(&name("pod", i), Some(&pod(i, i % 1000)));
    }
    for i in 0..LOCAL {
        // The pods 0 to 9, 1000 to 1009 and so on: ten applications.
        let i = i / 10 * 1000 + i % 10;
        planner.set_local(
            &name("pod", i),
            Some(LocalPod { ifindex: i + 1, addrs: vec![addr(i)], ..LocalPod::default() }),
        );
    }
    for i in 0..POLICIES {
        planner.set_policy(&name("policy", i), Some(&policy(i)));
    }
    planner.plan();
    // Ten policies are in force; they name 109 applications with ten pods each.
    assert_eq!(planner.in_force(), 10);
    let tables = planner.tables();
    assert_eq!(tables.identities.len(), 109 * 10);
    assert_eq!(tables.rules.len(), 10 * 100 * 2);
    assert_eq!(tables.sets.len(), LOCAL as usize);

    // A pod that no policy in force names: nothing. One that begins to be named: one write.
    planner.set_pod(&name("pod", 500), Some(&pod(500, 501)));
    assert_eq!(planner.plan(), []);
    planner.set_pod(&name("pod", 500), Some(&pod(500, 50)));
    assert_eq!(planner.plan().len(), 1);
    planner.set_pod(&name("pod", 500), None);
    assert_eq!(planner.plan().len(), 1);
    // A policy for pods elsewhere: nothing.
    planner.set_policy(&name("policy", 700), None);
    assert_eq!(planner.plan(), []);
    // A policy in force: its set's rules, once more and once less, and its ten pods.
    let mut changed = policy(5);
    if let Some(rules) = &mut changed.ingress {
        rules[50].ports.truncate(1);
    }
    planner.set_policy(&name("policy", 5), Some(&changed));
    assert_eq!(planner.plan().len(), 199 + 10 + 200);
    // The pods of one application of the node change: a write each for who they are, none for what
    // they may, since other pods have the rules.
    planner.set_pod(&name("pod", 1003), Some(&pod(1003, 4)));
    assert_eq!(planner.plan().len(), 2);
}

/// P10: pods that rules do not tell apart share an identity; pods with the same rules share a set.
#[test]
fn memory_follows_what_rules_tell_apart() {
    let mut planner = PolicyPlanner::new();
    let everybody = PolicyRule {
        peers: vec![PolicyPeer::Pods { namespaces: None, pods: Some(LabelSelector::default()) }],
        ports: Vec::new(),
    };
    let same = NetworkPolicy {
        meta: Meta { name: name("policy", 0), ..Meta::default() },
        ingress: Some(vec![everybody]),
        ..NetworkPolicy::default()
    };
    planner.set_policy(&same.meta.name, Some(&same));
    for i in 0..PODS {
        let pod = pod(i, i);
        planner.set_pod(&pod.meta.name, Some(&pod));
        if i < LOCAL {
            let local = LocalPod { ifindex: i + 1, addrs: pod.addrs, ..LocalPod::default() };
            planner.set_local(&pod.meta.name, Some(local));
        }
    }
    planner.plan();
    let tables = planner.tables();
    assert_eq!(tables.identities.len(), PODS as usize);
    assert_eq!(tables.rules.len(), 1, "10,000 label sets, one identity; 100 pods, one set");
}
