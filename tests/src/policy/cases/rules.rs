//! More than one rule in a policy.

use super::{BOTH, Case, for_pod_a, rule, words};
use crate::policy::oracle::Direction;

const B: &str = "{podSelector: {matchLabels: {pod: b}}}";
const C: &str = "{podSelector: {matchLabels: {pod: c}}}";
const Y: &str = "{namespaceSelector: {matchLabels: {ns: y}}}";
const Z: &str = "{namespaceSelector: {matchLabels: {ns: z}}}";
const TCP_80: &str = "{protocol: TCP, port: 80}";
const TCP_81: &str = "{protocol: TCP, port: 81}";
const UDP_80: &str = "{protocol: UDP, port: 80}";

/// Each in both directions.
pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for direction in BOTH {
        let (_, field) = words(direction);
        for (name, rules) in lists(direction) {
            cases.push(Case::new(
                format!("rules/{field}/{name}"),
                &["P1", "P2", "P3"],
                for_pod_a(direction, &rules),
            ));
        }
    }
    cases
}

fn lists(direction: Direction) -> Vec<(&'static str, Vec<String>)> {
    let rule = |peers: &[&str], ports: &[&str]| rule(direction, peers, ports);
    vec![
        ("none", vec![]),
        ("each-peer-with-its-port", vec![rule(&[B], &[TCP_80]), rule(&[Y], &[TCP_81])]),
        ("every-peer-with-every-port", vec![rule(&[B, Y], &[TCP_80, UDP_80])]),
        ("same-peer-two-ports", vec![rule(&[Z], &[TCP_80]), rule(&[Z], &[UDP_80])]),
        ("same-port-two-peers", vec![rule(&[C], &[TCP_81]), rule(&[Z], &[TCP_81])]),
        ("one-is-wider", vec![rule(&[Y], &[TCP_80]), rule(&[Y], &[])]),
        ("one-allows-all", vec![rule(&[B], &[TCP_80]), rule(&[], &[])]),
        ("three", vec![rule(&[B], &[TCP_80]), rule(&[C], &[TCP_81]), rule(&[Z], &[UDP_80])]),
    ]
}
