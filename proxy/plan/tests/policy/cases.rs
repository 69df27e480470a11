//! What policies mean, case by case, with the verdicts written out by hand: the tables and the
//! objects are both asked.

use std::net::IpAddr;

use sluice_model::{ObjectName, Protocol};
use sluice_plan::{Judgement, LocalPod, Party, PolicyPlanner};

use crate::common::{World, ip, verdict};

/// Two namespaces and their pods, all on the node but `shop/far`:
///
/// | pod | labels | address | ports |
/// | --- | --- | --- | --- |
/// | `shop/web` | app=web | 10.244.0.1, fd01::1 | http 8080/TCP |
/// | `shop/db` | app=db, tier=data | 10.244.0.2, fd01::2 | pg 5432/TCP, dns 53/UDP |
/// | `shop/far` | app=db, tier=data | 10.244.1.2 | pg 5433/TCP |
/// | `ops/mon` | app=web | 10.244.0.3 | |
/// | `ops/agent` | app=web, on the host's network | 172.31.0.2 | |
const PODS: &str = r#"
apiVersion: v1
kind: Namespace
metadata: {name: ops, labels: {team: blue}}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, labels: {app: web}}
spec: {nodeName: node-a, containers: [{ports: [{name: http, containerPort: 8080}]}]}
status: {phase: Running, podIPs: [{ip: 10.244.0.1}, {ip: "fd01::1"}]}
---
apiVersion: v1
kind: Pod
metadata: {name: db, namespace: shop, labels: {app: db, tier: data}}
spec:
  nodeName: node-a
  containers: [{ports: [{name: pg, containerPort: 5432}, {name: dns, containerPort: 53, protocol: UDP}]}]
status: {phase: Running, podIPs: [{ip: 10.244.0.2}, {ip: "fd01::2"}]}
---
apiVersion: v1
kind: Pod
metadata: {name: far, namespace: shop, labels: {app: db, tier: data}}
spec: {nodeName: node-b, containers: [{ports: [{name: pg, containerPort: 5433}]}]}
status: {phase: Running, podIPs: [{ip: 10.244.1.2}]}
---
apiVersion: v1
kind: Pod
metadata: {name: mon, namespace: ops, labels: {app: web}}
spec: {nodeName: node-a}
status: {phase: Running, podIPs: [{ip: 10.244.0.3}]}
---
apiVersion: v1
kind: Pod
metadata: {name: agent, namespace: ops, labels: {app: web}}
spec: {nodeName: node-b, hostNetwork: true}
status: {phase: Running, podIPs: [{ip: 172.31.0.2}]}
"#;

const WEB: &str = "10.244.0.1";
const DB: &str = "10.244.0.2";
const FAR: &str = "10.244.1.2";
const MON: &str = "10.244.0.3";
const HOST: &str = "172.31.0.2";
const OUT: &str = "203.0.113.7";

struct Case {
    world: World,
    planner: PolicyPlanner,
}

/// The pods above with these policies of namespace `shop`, each a `spec`.
fn with(specs: &[&str]) -> Case {
    let mut text = PODS.to_owned();
    for (i, spec) in specs.iter().enumerate() {
        text.push_str(&format!(
            "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n\
             metadata: {{name: p{i}, namespace: shop}}\nspec: {spec}\n"
        ));
    }
    let world = World::parse(&text);
    assert_eq!(world.policies.len(), specs.len(), "{text}");
    Case { planner: world.rebuild(), world }
}

impl Case {
    /// Whether a connection passes, by the tables of the node (both ends as far as they are on it) and
    /// by the objects.
    fn passes(&self, from: &str, to: &str, port: &str) -> bool {
        let (from, to) = (ip(from), ip(to));
        let (protocol, number) = match port.split_once('/') {
            Some((number, "UDP")) => (Some(Protocol::Udp), number.parse().unwrap()),
            Some((number, "SCTP")) => (Some(Protocol::Sctp), number.parse().unwrap()),
            Some((number, "TCP")) => (Some(Protocol::Tcp), number.parse().unwrap()),
            _ => (None, 0),
        };
        let ifindex = |addr: IpAddr| {
            let mut local = self.world.local.values();
            local.find(|local| local.addrs.contains(&addr)).map(|local| local.ifindex)
        };
        let ends = [(ifindex(from), false, to), (ifindex(to), true, from)];
        let tables = ends.into_iter().all(|(ifindex, ingress, peer)| {
            ifindex.is_none_or(|ifindex| {
                verdict(self.planner.tables(), &(ifindex, ingress, peer, protocol, number))
            })
        });
        let explanation =
            self.planner.explain(Party::Addr(from), Party::Addr(to), protocol, number);
        assert_eq!(tables, explanation.allows(), "{from} to {to} {port}: {explanation:?}");
        tables
    }

    #[track_caller]
    fn check(&self, rows: &[(&str, &str, &str, bool)]) {
        for (from, to, port, expected) in rows {
            assert_eq!(self.passes(from, to, port), *expected, "{from} to {to} {port}");
        }
    }
}

/// P1: nobody selected, nothing in the kernel.
#[test]
fn without_policies_everything_is_open() {
    let case = with(&[]);
    case.check(&[(WEB, DB, "5432/TCP", true), (OUT, WEB, "icmp", true), (DB, OUT, "1/SCTP", true)]);
    let tables = case.planner.tables();
    assert_eq!((tables.rules.len(), tables.identities.len()), (0, 0));
}

/// P1: `ingress: []`, an empty selector, and the default of policyTypes.
#[test]
fn a_policy_without_rules_denies_all_to_the_namespace() {
    for spec in ["{}", "{podSelector: {}}", "{ingress: []}", "{policyTypes: [Ingress]}"] {
        let case = with(&[spec]);
        case.check(
            &[
                (WEB, DB, "5432/TCP", false),
                (OUT, WEB, "icmp", false),
                (WEB, OUT, "80/TCP", true),
                (WEB, MON, "80/TCP", true),
                (DB, FAR, "5433/TCP", true),
            ][..4],
        );
        assert_eq!(case.planner.tables().rules.len(), 0, "closed takes no rule");
    }
}

/// P1: the union of what several policies allow; `[{}]` is everything.
#[test]
fn policies_add_up() {
    let case = with(&[
        "{podSelector: {matchLabels: {app: db}}, ingress: [{ports: [{port: 5432}]}]}",
        "{podSelector: {matchLabels: {tier: data}}, ingress: [{from: [{podSelector: {}}]}]}",
    ]);
    case.check(&[
        (OUT, DB, "5432/TCP", true),
        (OUT, DB, "5433/TCP", false),
        (OUT, DB, "5432/UDP", false),
        (WEB, DB, "22/TCP", true),
        (MON, DB, "22/TCP", false),
        (MON, WEB, "22/TCP", true),
    ]);
    let case = with(&["{}", "{ingress: [{}]}"]);
    case.check(&[(OUT, DB, "1/SCTP", true), (OUT, DB, "icmp", true)]);
}

/// P1: egress alone isolates for egress alone.
#[test]
fn directions_are_apart() {
    let case = with(&["{podSelector: {matchLabels: {app: web}}, policyTypes: [Egress]}"]);
    case.check(&[
        (WEB, DB, "5432/TCP", false),
        (DB, WEB, "80/TCP", true),
        (OUT, WEB, "1/UDP", true),
    ]);
    let case = with(&[
        "{podSelector: {matchLabels: {app: web}}, egress: [{to: [{podSelector: {matchLabels: {app: db}}}]}]}",
    ]);
    case.check(&[
        (WEB, DB, "1/TCP", true),
        (WEB, FAR, "1/TCP", true),
        (WEB, MON, "1/TCP", false),
        (DB, WEB, "1/TCP", false),
    ]);
}

/// P2: own namespace, other namespaces, both at once, either; the name's label without an object.
#[test]
fn peers_are_selected_by_pod_and_by_namespace() {
    let db = |from: &str| {
        with(&[&format!(
            "{{podSelector: {{matchLabels: {{app: db}}}}, ingress: [{{from: {from}}}]}}"
        )])
    };
    for (from, web, mon) in [
        ("[{podSelector: {matchLabels: {app: web}}}]", true, false),
        ("[{namespaceSelector: {matchLabels: {team: blue}}}]", false, true),
        ("[{namespaceSelector: {}, podSelector: {matchLabels: {app: web}}}]", true, true),
        (
            "[{namespaceSelector: {matchLabels: {team: blue}}, podSelector: {matchLabels: {app: db}}}]",
            false,
            false,
        ),
        (
            "[{namespaceSelector: {matchLabels: {team: blue}}}, {podSelector: {matchLabels: {app: web}}}]",
            true,
            true,
        ),
        ("[{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: shop}}}]", true, false),
        ("[{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: ops}}}]", false, true),
        (
            "[{namespaceSelector: {matchExpressions: [{key: team, operator: DoesNotExist}]}}]",
            true,
            false,
        ),
        (
            "[{namespaceSelector: {matchExpressions: [{key: team, operator: In, values: [red, blue]}]}}]",
            false,
            true,
        ),
        (
            "[{namespaceSelector: {matchExpressions: [{key: team, operator: NotIn, values: [blue]}]}}]",
            true,
            false,
        ),
        ("[{podSelector: {matchExpressions: [{key: app, operator: Exists}]}}]", true, false),
        (
            "[{podSelector: {matchExpressions: [{key: tier, operator: NotIn, values: [data]}]}}]",
            true,
            false,
        ),
    ] {
        let case = db(from);
        case.check(&[
            (WEB, DB, "5432/TCP", web),
            (MON, DB, "5432/TCP", mon),
            (OUT, DB, "5432/TCP", false),
        ]);
    }
}

/// P3: numbers, ranges, protocols; a rule for SCTP isolates TCP.
#[test]
fn ports_are_numbers_ranges_and_protocols() {
    let case = with(&[
        "{ingress: [{ports: [{port: 80, endPort: 90}, {protocol: UDP}, {protocol: SCTP, port: 7}]}]}",
    ]);
    case.check(&[
        (OUT, WEB, "79/TCP", false),
        (OUT, WEB, "80/TCP", true),
        (OUT, WEB, "90/TCP", true),
        (OUT, WEB, "91/TCP", false),
        (OUT, WEB, "65535/UDP", true),
        (OUT, WEB, "7/SCTP", true),
        (OUT, WEB, "80/SCTP", false),
        (OUT, WEB, "icmp", false),
    ]);
    let case = with(&["{ingress: [{ports: [{protocol: SCTP, port: 80}]}]}"]);
    case.check(&[(OUT, WEB, "80/TCP", false), (OUT, WEB, "80/SCTP", true)]);
}

/// P3: a name is the destination's: of the pod itself, and of each pod that it sends to.
#[test]
fn named_ports_are_those_of_the_destination() {
    let case =
        with(&["{ingress: [{ports: [{port: pg}, {port: dns}, {port: dns, protocol: UDP}]}]}"]);
    case.check(&[
        (OUT, DB, "5432/TCP", true),
        (OUT, DB, "53/UDP", true),
        (OUT, DB, "53/TCP", false),
        (OUT, WEB, "5432/TCP", false),
    ]);
    for to in ["[{podSelector: {}}]", "[]", "[{ipBlock: {cidr: 10.244.0.0/16}}]"] {
        let case = with(&[&format!(
            "{{podSelector: {{matchLabels: {{app: web}}}}, egress: [{{to: {to}, ports: [{{port: pg}}]}}]}}"
        )]);
        case.check(&[
            (WEB, DB, "5432/TCP", true),
            (WEB, DB, "5433/TCP", false),
            (WEB, FAR, "5433/TCP", true),
            (WEB, FAR, "5432/TCP", false),
            (WEB, OUT, "5432/TCP", false),
            (WEB, MON, "5432/TCP", false),
        ]);
    }
}

/// P4: blocks hold pods too, exceptions do not bind another rule, and the families are apart.
#[test]
fn blocks_are_of_addresses_whoever_has_them() {
    let case = with(&[
        "{podSelector: {matchLabels: {app: db}}, ingress: [{from: [{ipBlock: {cidr: 10.244.7.7/16, except: [10.244.0.3/32]}}]}]}",
    ]);
    case.check(&[
        (WEB, DB, "1/TCP", true),
        (MON, DB, "1/TCP", false),
        (OUT, DB, "1/TCP", false),
        ("fd01::1", "fd01::2", "1/TCP", false),
    ]);
    let case = with(&[
        "{podSelector: {matchLabels: {app: db}}, ingress: [{from: [{ipBlock: {cidr: 0.0.0.0/0, except: [203.0.113.0/24]}}]}]}",
        "{podSelector: {matchLabels: {app: db}}, ingress: [{from: [{ipBlock: {cidr: 203.0.113.0/25}}], ports: [{port: 80}]}]}",
    ]);
    case.check(&[
        (OUT, DB, "80/TCP", true),
        (OUT, DB, "81/TCP", false),
        ("203.0.113.200", DB, "80/TCP", false),
        ("198.51.100.1", DB, "81/TCP", true),
        (HOST, DB, "81/TCP", true),
        ("2001:db8::1", "fd01::2", "81/TCP", false),
    ]);
    let case = with(&["{ingress: [{from: [{ipBlock: {cidr: \"::/0\"}}]}]}"]);
    case.check(&[("2001:db8::1", "fd01::2", "1/TCP", true), (OUT, DB, "1/TCP", false)]);
}

/// P6: pods on the host's network are no pods to a selector, and no policy is for them.
#[test]
fn pods_on_the_hosts_network_are_neither_subjects_nor_peers() {
    let case = with(&["{ingress: [{from: [{namespaceSelector: {}}]}]}"]);
    case.check(&[(MON, DB, "1/TCP", true), (HOST, DB, "1/TCP", false), (DB, HOST, "1/TCP", true)]);
    let db = Party::Addr(ip(DB));
    let to = |party| case.planner.explain(party, db, Some(Protocol::Tcp), 1);
    assert!(!to(Party::Addr(ip(HOST))).allows());
    assert_eq!(to(Party::OwnNode(ip(HOST))).ingress, Judgement::OwnNode);
}

/// P10: a policy that selects no pod of the node is nowhere in its kernel.
#[test]
fn a_policy_for_pods_elsewhere_costs_nothing() {
    let mut case =
        with(&["{podSelector: {matchLabels: {app: db}}, ingress: [{from: [{podSelector: {}}]}]}"]);
    assert_eq!(case.planner.in_force(), 1);
    assert_ne!(case.planner.tables().identities.len(), 0);
    case.planner.set_local(&ObjectName::new("shop", "db"), None);
    case.planner.plan();
    assert_eq!(case.planner.in_force(), 0);
    let tables = case.planner.tables();
    assert_eq!((tables.rules.len(), tables.identities.len()), (0, 0), "{}", tables.dump());
}

/// P11: what cannot be read denies everything, for the pods that it names.
#[test]
fn a_policy_with_a_fault_is_closed() {
    let case =
        with(&["{podSelector: {matchLabels: {app: db}}, policyTypes: [Both], ingress: [{}]}"]);
    case.check(&[(WEB, DB, "1/TCP", false), (DB, WEB, "1/TCP", false), (WEB, OUT, "1/TCP", true)]);
    let whole = with(&["{podSelector: everything, ingress: [{}]}"]);
    whole.check(&[
        (OUT, WEB, "1/TCP", false),
        (WEB, OUT, "1/TCP", false),
        (OUT, MON, "1/TCP", true),
    ]);
}

/// P9: a pod of which nothing but its interface is known is shut where a policy could be for it, and
/// judged by its labels as soon as they are known.
#[test]
fn a_new_pod_is_shut_until_it_is_known() {
    let mut case = with(&["{podSelector: {matchLabels: {app: db}}}"]);
    let local =
        |ifindex| Some(LocalPod { ifindex, addrs: vec![ip("10.244.0.9")], ..LocalPod::default() });
    let name = ObjectName::new("shop", "new");
    case.planner.set_local(&name, local(9));
    case.planner.plan();
    let passes = |planner: &PolicyPlanner| {
        verdict(planner.tables(), &(9, true, ip(OUT), Some(Protocol::Tcp), 1))
    };
    assert!(!passes(&case.planner), "it may be one that the policy selects");
    case.planner.set_policy(&ObjectName::new("shop", "p0"), None);
    case.planner.plan();
    assert!(passes(&case.planner), "no policy is left that could");
    case.planner.set_policy(&ObjectName::new("shop", "p0"), case.world.policies.values().next());
    case.planner.plan();
    assert!(!passes(&case.planner));
    case.planner.set_pod(&name, case.world.pods.get(&ObjectName::new("shop", "web")));
    case.planner.plan();
    assert!(passes(&case.planner), "it is none of them");

    // Before the first list, whatever there may be.
    let unread = PolicyPlanner::restore(case.planner.tables().clone());
    assert_eq!(unread.protect(9), None, "it keeps what it has");
    assert_eq!(
        unread.protect(10).unwrap().to_string(),
        "put: interface 10 has in: closed, out: closed"
    );
}

/// P9: the address of a pod of this node counts before the Pod object has it.
#[test]
fn a_pod_of_the_node_is_known_by_its_interface() {
    let mut case = with(&[
        "{podSelector: {matchLabels: {app: db}}, ingress: [{from: [{podSelector: {matchLabels: {app: web}}}]}]}",
    ]);
    let name = ObjectName::new("shop", "new");
    let mut pod = case.world.pods[&ObjectName::new("shop", "web")].clone();
    pod.addrs.clear();
    case.planner.set_pod(&name, Some(&pod));
    case.planner.set_local(
        &name,
        Some(LocalPod { ifindex: 9, addrs: vec![ip("10.244.0.9")], ..LocalPod::default() }),
    );
    case.planner.plan();
    case.check(&[("10.244.0.9", DB, "1/TCP", true)]);
}

/// An address that a pod had counts no more once the pod has ended, and goes to the one that has it.
#[test]
fn an_address_is_the_living_pods() {
    let mut case = with(&[
        "{podSelector: {matchLabels: {app: db}}, ingress: [{from: [{podSelector: {matchLabels: {app: web}}}]}]}",
    ]);
    let name = ObjectName::new("shop", "old");
    let mut pod = case.world.pods[&ObjectName::new("shop", "web")].clone();
    pod.addrs = vec![ip("10.244.1.9")];
    case.planner.set_pod(&name, Some(&pod));
    case.planner.plan();
    case.check(&[("10.244.1.9", DB, "1/TCP", true)]);
    pod.phase = sluice_model::PodPhase::Succeeded;
    case.planner.set_pod(&name, Some(&pod));
    case.planner.plan();
    case.check(&[("10.244.1.9", DB, "1/TCP", false)]);
}

/// P6: a pod asks its own node whatever isolates it, at any address that the node has at the moment.
#[test]
fn pods_may_always_ask_their_own_node() {
    let mut case = with(&["{policyTypes: [Ingress, Egress]}"]);
    let icmp = |case: &Case, to: &str| {
        let sets =
            case.planner.tables().sets[&case.world.local[&ObjectName::new("shop", "db")].ifindex];
        let allows = |set, peer: &str| case.planner.tables().allows(set, ip(peer), 1, 0);
        (allows(sets.egress, to), allows(sets.ingress, to))
    };
    assert_eq!(icmp(&case, HOST), (false, false));
    case.planner.set_node([ip(HOST), ip("fd01::ffff")]);
    case.planner.plan();
    assert_eq!(icmp(&case, HOST), (true, false), "its packets are told by where they come from");
    assert_eq!(icmp(&case, "fd01::ffff"), (true, false));
    assert_eq!(icmp(&case, OUT), (false, false));
    case.planner.set_node([ip(OUT)]);
    case.planner.plan();
    assert_eq!((icmp(&case, HOST), icmp(&case, OUT)), ((false, false), (true, false)));
}

/// P9: a pod that is attached twice, in two sandboxes or to two networks, is isolated at both ends.
#[test]
fn every_attachment_of_a_pod_has_its_rules() {
    let mut case =
        with(&["{podSelector: {matchLabels: {app: db}}, ingress: [{ports: [{port: 1}]}]}"]);
    let name = ObjectName::new("shop", "db");
    let sets = |case: &Case, ifindex| case.planner.tables().sets.get(&ifindex).copied();
    let local = |ifindex, others: &[u32]| LocalPod {
        ifindex,
        addrs: vec![ip(DB)],
        others: others.iter().copied().collect(),
    };
    case.planner.set_local(&name, Some(local(90, &[91])));
    case.planner.plan();
    assert!(sets(&case, 90).is_some_and(|sets| sets.ingress != 0 && sets.egress == 0));
    assert_eq!(sets(&case, 90), sets(&case, 91));
    case.planner.set_local(&name, Some(local(91, &[])));
    assert_eq!(case.planner.plan().len(), 1, "the other one is forgotten, this one stays");
    assert_eq!(sets(&case, 90), None);
    case.planner.set_local(&name, None);
    case.planner.plan();
    assert_eq!(sets(&case, 91), None);
}

/// P13: the explanation names the policy and the rule, or the policies that isolate.
#[test]
fn an_explanation_names_policy_and_rule() {
    let case = with(&[
        "{podSelector: {matchLabels: {app: db}}}",
        "{podSelector: {matchLabels: {app: db}}, ingress: [{ports: [{port: 1}]}, {from: [{podSelector: {}}]}]}",
    ]);
    let policy = |i: u8| ObjectName::new("shop", format!("p{i}"));
    let tcp = |from: &str, to: &str| {
        let [from, to] = [from, to].map(|addr| Party::Addr(ip(addr)));
        case.planner.explain(from, to, Some(Protocol::Tcp), 5432)
    };
    let allowed = tcp(WEB, DB);
    assert_eq!(
        allowed.pods,
        (Some(ObjectName::new("shop", "web")), Some(ObjectName::new("shop", "db")))
    );
    assert_eq!(allowed.egress, Judgement::NotIsolated);
    assert_eq!(allowed.ingress, Judgement::Allowed { policy: policy(1), rule: 1 });
    let denied = tcp(OUT, DB);
    assert_eq!((denied.pods.0, denied.egress), (None, Judgement::NoSubject));
    assert_eq!(denied.ingress, Judgement::Denied { policies: vec![policy(0), policy(1)] });
}
