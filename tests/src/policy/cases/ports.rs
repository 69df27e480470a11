//! To which ports: numbers, ranges, names, protocols.

use super::{BOTH, Case, for_pod_a, rule, words};

const PORTS: [(&str, &[&str]); 29] = [
    ("tcp-80", &["{protocol: TCP, port: 80}"]),
    ("tcp-81", &["{protocol: TCP, port: 81}"]),
    ("udp-80", &["{protocol: UDP, port: 80}"]),
    ("udp-81", &["{protocol: UDP, port: 81}"]),
    ("sctp-80", &["{protocol: SCTP, port: 80}"]),
    ("tcp", &["{protocol: TCP}"]),
    ("udp", &["{protocol: UDP}"]),
    ("sctp", &["{protocol: SCTP}"]),
    ("number-alone", &["{port: 80}"]),
    ("string-alone", &["{port: \"web\"}"]),
    ("nothing-said", &["{}"]),
    ("range", &["{protocol: TCP, port: 80, endPort: 81}"]),
    ("range-up-to", &["{protocol: TCP, port: 70, endPort: 80}"]),
    ("range-from", &["{protocol: TCP, port: 81, endPort: 90}"]),
    ("range-of-one", &["{protocol: TCP, port: 80, endPort: 80}"]),
    ("range-whole", &["{protocol: TCP, port: 1, endPort: 65535}"]),
    ("range-beside", &["{protocol: TCP, port: 82, endPort: 90}"]),
    ("range-udp", &["{protocol: UDP, port: 80, endPort: 81}"]),
    ("range-sctp", &["{protocol: SCTP, port: 81, endPort: 65535}"]),
    ("name", &["{protocol: TCP, port: web}"]),
    ("name-other", &["{protocol: TCP, port: alt}"]),
    ("name-udp", &["{protocol: UDP, port: dns}"]),
    ("name-sctp", &["{protocol: SCTP, port: sig}"]),
    ("name-of-another-protocol", &["{protocol: UDP, port: web}"]),
    ("name-of-nothing", &["{protocol: TCP, port: nothing}"]),
    ("two", &["{protocol: TCP, port: 80}", "{protocol: UDP, port: 81}"]),
    ("name-and-number", &["{protocol: TCP, port: web}", "{protocol: TCP, port: 80}"]),
    ("name-and-range", &["{protocol: UDP, port: dns}", "{protocol: TCP, port: 81, endPort: 100}"]),
    ("all-protocols", &["{protocol: TCP}", "{protocol: UDP}", "{protocol: SCTP}"]),
];

/// Peers that a port stands with.
const WITH: [(&str, &str); 3] = [
    ("pod", "{podSelector: {matchLabels: {pod: b}}}"),
    ("namespace", "{namespaceSelector: {matchLabels: {ns: y}}}"),
    ("block", "{ipBlock: {cidr: \"10.244.0.0/16\"}}"),
];

const WITH_PORTS: [&str; 4] = ["tcp-80", "range", "name", "name-udp"];

/// Each kind without a peer in each direction, and some with one.
pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for direction in BOTH {
        let (_, field) = words(direction);
        for (name, ports) in PORTS {
            let yaml = for_pod_a(direction, &[rule(direction, &[], ports)]);
            cases.push(Case::new(format!("ports/{field}/{name}"), &["P3"], yaml));
            if WITH_PORTS.contains(&name) {
                for (with, peer) in WITH {
                    let yaml = for_pod_a(direction, &[rule(direction, &[peer], ports)]);
                    let name = format!("ports/{field}/{name}-with-{with}");
                    cases.push(Case::new(name, &["P2", "P3", "P4"], yaml));
                }
            }
        }
    }
    cases
}
