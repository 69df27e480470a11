//! The iptables mode: lists of rules that a new connection walks.

use std::fmt::Write as _;

use super::{Family, MARK, Service};

/// Input for `iptables-restore` or `ip6tables-restore`.
pub(crate) fn iptables(family: Family, services: &[Service]) -> String {
    let mut out = String::new();
    filter(&mut out, family, services);
    nat(&mut out, family, services);
    out
}

// Writing to a String cannot fail.
macro_rules! line {
    ($out:expr, $($arg:tt)*) => { let _ = writeln!($out, $($arg)*); };
}

fn filter(out: &mut String, family: Family, services: &[Service]) {
    out.push_str(
        "*filter\n:INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n\
         :KUBE-EXTERNAL-SERVICES - [0:0]\n:KUBE-FIREWALL - [0:0]\n:KUBE-FORWARD - [0:0]\n:KUBE-NODEPORTS - [0:0]\n\
         :KUBE-PROXY-FIREWALL - [0:0]\n:KUBE-SERVICES - [0:0]\n\
         -A INPUT -j KUBE-FIREWALL\n",
    );
    let new = |chain: &str, what: &str, to: &str| {
        format!("-A {chain} -m conntrack --ctstate NEW -m comment --comment \"{what}\" -j {to}\n")
    };
    let firewall = ("kubernetes load balancer firewall", "KUBE-PROXY-FIREWALL");
    let portals = ("kubernetes service portals", "KUBE-SERVICES");
    let external = ("kubernetes externally-visible service portals", "KUBE-EXTERNAL-SERVICES");
    out.push_str(&new("INPUT", firewall.0, firewall.1));
    out.push_str(
        "-A INPUT -m comment --comment \"kubernetes health check service ports\" -j KUBE-NODEPORTS\n",
    );
    out.push_str(&new("INPUT", external.0, external.1));
    out.push_str(&new("FORWARD", firewall.0, firewall.1));
    out.push_str(
        "-A FORWARD -m comment --comment \"kubernetes forwarding rules\" -j KUBE-FORWARD\n",
    );
    out.push_str(&new("FORWARD", portals.0, portals.1));
    out.push_str(&new("FORWARD", external.0, external.1));
    out.push_str("-A OUTPUT -j KUBE-FIREWALL\n");
    out.push_str(&new("OUTPUT", firewall.0, firewall.1));
    out.push_str(&new("OUTPUT", portals.0, portals.1));
    if family == Family::V4 {
        out.push_str(
            "-A KUBE-FIREWALL ! -s 127.0.0.0/8 -d 127.0.0.0/8 -m comment --comment \"block incoming localnet \
             connections\" -m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP\n",
        );
    }
    out.push_str("-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP\n");
    line!(
        out,
        "-A KUBE-FORWARD -m comment --comment \"kubernetes forwarding rules\" -m mark --mark {MARK}/{MARK} -j ACCEPT"
    );
    out.push_str(
        "-A KUBE-FORWARD -m comment --comment \"kubernetes forwarding conntrack rule\" -m conntrack --ctstate \
         RELATED,ESTABLISHED -j ACCEPT\n",
    );
    let unreachable = match family {
        Family::V4 => "icmp-port-unreachable",
        Family::V6 => "icmp6-port-unreachable",
    };
    for service in services.iter().filter(|it| it.endpoints.is_empty()) {
        line!(
            out,
            "-A KUBE-SERVICES -d {}/{} -p {protocol} -m comment --comment \"default/{}:p has no endpoints\" -m {protocol} \
             --dport {} -j REJECT --reject-with {unreachable}",
            service.address,
            family.bits(),
            service.name,
            service.port,
            protocol = service.protocol
        );
    }
    out.push_str("COMMIT\n");
}

fn nat(out: &mut String, family: Family, services: &[Service]) {
    out.push_str(
        "*nat\n:PREROUTING ACCEPT [0:0]\n:INPUT ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n:POSTROUTING ACCEPT [0:0]\n\
         :KUBE-MARK-MASQ - [0:0]\n:KUBE-NODEPORTS - [0:0]\n:KUBE-POSTROUTING - [0:0]\n:KUBE-SERVICES - [0:0]\n",
    );
    let served = || services.iter().filter(|it| !it.endpoints.is_empty());
    for service in served() {
        line!(out, ":KUBE-SVC-{} - [0:0]", service.hash(0));
        for number in 1..=service.endpoints.len() {
            line!(out, ":KUBE-SEP-{} - [0:0]", service.hash(number));
        }
        if service.node_port.is_some() {
            line!(out, ":KUBE-EXT-{} - [0:0]", service.hash(0));
        }
    }
    out.push_str(
        "-A PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES\n\
         -A OUTPUT -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES\n\
         -A POSTROUTING -m comment --comment \"kubernetes postrouting rules\" -j KUBE-POSTROUTING\n",
    );
    line!(out, "-A KUBE-MARK-MASQ -j MARK --set-xmark {MARK}/{MARK}");
    line!(out, "-A KUBE-POSTROUTING -m mark ! --mark {MARK}/{MARK} -j RETURN");
    line!(out, "-A KUBE-POSTROUTING -j MARK --set-xmark {MARK}/0x0");
    out.push_str(
        "-A KUBE-POSTROUTING -m comment --comment \"kubernetes service traffic requiring SNAT\" -j MASQUERADE \
         --random-fully\n",
    );
    for service in served() {
        chains_of(out, family, service);
    }
    for service in served() {
        line!(
            out,
            "-A KUBE-SERVICES -d {}/{} -p {protocol} -m comment --comment \"default/{}:p cluster IP\" -m {protocol} --dport \
             {} -j KUBE-SVC-{}",
            service.address,
            family.bits(),
            service.name,
            service.port,
            service.hash(0),
            protocol = service.protocol
        );
    }
    out.push_str(
        "-A KUBE-SERVICES -m comment --comment \"kubernetes service nodeports; NOTE: this must be the last rule in this \
         chain\" -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS\nCOMMIT\n",
    );
}

fn chains_of(out: &mut String, family: Family, service: &Service) {
    let Service { name, protocol, address, port, endpoints, node_port } = service;
    let (cidr, bits) = (family.cluster_cidr(), family.bits());
    let hash = service.hash(0);
    if let Some(node_port) = node_port {
        line!(
            out,
            "-A KUBE-NODEPORTS -p {protocol} -m comment --comment \"default/{name}:p\" -m {protocol} --dport {node_port} -j KUBE-EXT-{hash}"
        );
        line!(
            out,
            "-A KUBE-EXT-{hash} -m comment --comment \"masquerade traffic for default/{name}:p external destinations\" -j \
             KUBE-MARK-MASQ"
        );
        line!(out, "-A KUBE-EXT-{hash} -j KUBE-SVC-{hash}");
    }
    line!(
        out,
        "-A KUBE-SVC-{hash} ! -s {cidr} -d {address}/{bits} -p {protocol} -m comment --comment \"default/{name}:p cluster \
         IP\" -m {protocol} --dport {port} -j KUBE-MARK-MASQ"
    );
    for (index, (endpoint, target)) in endpoints.iter().enumerate() {
        let sep = service.hash(index + 1);
        let at = std::net::SocketAddr::new(*endpoint, *target);
        let left = u32::try_from(endpoints.len() - index).unwrap_or(1);
        let chance = if left == 1 {
            String::new()
        } else {
            format!(" -m statistic --mode random --probability {:.11}", 1.0 / f64::from(left))
        };
        line!(
            out,
            "-A KUBE-SVC-{hash} -m comment --comment \"default/{name}:p -> {at}\"{chance} -j KUBE-SEP-{sep}"
        );
        line!(
            out,
            "-A KUBE-SEP-{sep} -s {endpoint}/{bits} -m comment --comment \"default/{name}:p\" -j KUBE-MARK-MASQ"
        );
        line!(
            out,
            "-A KUBE-SEP-{sep} -p {protocol} -m comment --comment \"default/{name}:p\" -m {protocol} -j DNAT --to-destination \
             {at}"
        );
    }
}
