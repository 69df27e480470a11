//! Cluster-wide network policies. What is wrong is in force all the same, closed, and says why: a rule by
//! itself, as the API's types have it of a peer of an unknown kind ([`ClusterPolicyRule::understood`]), all of
//! the policy where something else is wrong.

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use sluice_model::{
    ClusterNetworkPolicy, ClusterPolicyPeer, ClusterPolicyPort, ClusterPolicyRule, NamespacedPods,
    PolicyAction, PolicyFault, PolicyTier, Protocol, ResourceKind,
};

use super::FieldError;
use super::field::{cidr, port, unknown};
use super::meta::meta;
use super::policy::{port_name, selector};
use crate::wire;

/// The largest `spec.priority`.
const LAST_PRIORITY: u16 = 1000;

/// # Errors
/// Only metadata that names no policy.
pub(super) fn cluster_policy(
    wire: wire::ClusterNetworkPolicy,
) -> Result<ClusterNetworkPolicy, FieldError> {
    let meta = meta(ResourceKind::ClusterNetworkPolicy, wire.metadata)?;
    // Faults of the policy, then those of its rules.
    let (mut faults, mut of_rules) = (Vec::new(), Vec::new());
    let mut spec = match wire.spec {
        Value::Object(spec) => spec,
        other => {
            let reason = if other.is_null() { "is missing" } else { "is no object" };
            faults.push(FieldError::new("spec", reason));
            Map::new()
        }
    };
    let mut policy = ClusterNetworkPolicy { meta, ..ClusterNetworkPolicy::default() };
    if faults.is_empty() {
        let tier = read("spec.tier", taken(&mut spec, "tier")).and_then(|word: String| tier(&word));
        policy.tier = or_fault(tier, &mut faults);
        let priority = read("spec.priority", taken(&mut spec, "priority")).and_then(priority);
        policy.priority = or_fault(priority, &mut faults);
        policy.subject = match read("spec.subject", taken(&mut spec, "subject")) {
            Ok(wire) => subject(wire, &mut faults),
            Err(fault) => {
                faults.push(fault);
                NamespacedPods::default()
            }
        };
        for (field, rules, is_ingress) in
            [("ingress", &mut policy.ingress, true), ("egress", &mut policy.egress, false)]
        {
            let field_path = format!("spec.{field}");
            match spec.remove(field).unwrap_or_default() {
                Value::Null => {}
                Value::Array(list) => {
                    *rules = rules_of(&field_path, list, is_ingress, &mut of_rules);
                }
                _ => faults.push(FieldError::new(field_path, "is no list")),
            }
        }
        // A misspelt `egress` would else say nothing of any connection.
        let rest =
            spec.keys().map(|key| FieldError::new(format_args!("spec.{key}"), "is not known"));
        faults.extend(rest);
    }
    if !faults.is_empty() {
        faults.append(&mut of_rules);
        return Ok(closed(policy, faults));
    }
    policy.faults = of_rules.into_iter().map(fault).collect();
    Ok(policy)
}

/// A policy in the tier and for the pods that are known, which denies them everything.
pub(crate) fn closed(
    policy: ClusterNetworkPolicy,
    faults: Vec<FieldError>,
) -> ClusterNetworkPolicy {
    let denial = ClusterPolicyRule {
        name: String::new(),
        action: PolicyAction::Deny,
        peers: Vec::new(),
        ports: Vec::new(),
        understood: false,
    };
    ClusterNetworkPolicy {
        ingress: vec![denial.clone()],
        egress: vec![denial],
        faults: faults.into_iter().map(fault).collect(),
        ..policy
    }
}

fn fault(error: FieldError) -> PolicyFault {
    PolicyFault { field: error.field, message: error.reason }
}

fn or_fault<T: Default>(read: Result<T, FieldError>, faults: &mut Vec<FieldError>) -> T {
    read.unwrap_or_else(|fault| {
        faults.push(fault);
        T::default()
    })
}

fn taken(spec: &mut Map<String, Value>, field: &str) -> Value {
    spec.remove(field).unwrap_or_default()
}

/// Reads a part of the tree; a fault names the field below `at`.
fn read<T: DeserializeOwned>(at: &str, value: Value) -> Result<T, FieldError> {
    if value.is_null() {
        return Err(FieldError::new(at, "is missing"));
    }
    serde_path_to_error::deserialize(value).map_err(|error| {
        let path = error.path().to_string();
        let field = if path == "." { at.to_owned() } else { format!("{at}.{path}") };
        FieldError::new(field, error.into_inner())
    })
}

fn tier(word: &str) -> Result<PolicyTier, FieldError> {
    match word {
        "Admin" => Ok(PolicyTier::Admin),
        "Baseline" => Ok(PolicyTier::Baseline),
        other => Err(unknown("spec.tier", other, "Admin or Baseline")),
    }
}

fn priority(number: i64) -> Result<u16, FieldError> {
    let priority = u16::try_from(number).ok().filter(|priority| *priority <= LAST_PRIORITY);
    priority.ok_or_else(|| {
        FieldError::new("spec.priority", format_args!("{number} is not 0 to {LAST_PRIORITY}"))
    })
}

/// The pods that a policy is for: all where that cannot be read.
fn subject(wire: wire::Subject, faults: &mut Vec<FieldError>) -> NamespacedPods {
    let before = faults.len();
    let subject = match (wire.namespaces, wire.pods) {
        (Some(namespaces), None) => {
            Some(all_pods_of("spec.subject.namespaces", namespaces, faults))
        }
        (None, Some(pods)) => namespaced_pods("spec.subject.pods", pods, faults),
        (None, None) => {
            faults.push(FieldError::new("spec.subject", "has neither namespaces nor pods"));
            None
        }
        (Some(_), Some(_)) => {
            faults.push(FieldError::new(
                "spec.subject",
                "has namespaces and pods; only one of them may be",
            ));
            None
        }
    };
    subject.filter(|_| faults.len() == before).unwrap_or_default()
}

fn all_pods_of(
    at: &str,
    namespaces: wire::LabelSelector,
    faults: &mut Vec<FieldError>,
) -> NamespacedPods {
    let namespaces = selector(at, namespaces, faults);
    NamespacedPods { namespaces, ..NamespacedPods::default() }
}

fn namespaced_pods(
    at: &str,
    wire: wire::NamespacedPod,
    faults: &mut Vec<FieldError>,
) -> Option<NamespacedPods> {
    let namespaces = wire.namespace_selector.unwrap_or_default();
    let namespaces = selector(&format!("{at}.namespaceSelector"), namespaces, faults);
    let Some(pods) = wire.pod_selector else {
        faults.push(FieldError::new(format_args!("{at}.podSelector"), "is missing"));
        return None;
    };
    let pods = selector(&format!("{at}.podSelector"), pods, faults);
    Some(NamespacedPods { namespaces, pods })
}

fn rules_of(
    field: &str,
    list: Vec<Value>,
    is_ingress: bool,
    faults: &mut Vec<FieldError>,
) -> Vec<ClusterPolicyRule> {
    let rule = |(i, value)| rule(&format!("{field}[{i}]"), value, is_ingress, faults);
    list.into_iter().enumerate().map(rule).collect()
}

fn rule(
    at: &str,
    value: Value,
    is_ingress: bool,
    faults: &mut Vec<FieldError>,
) -> ClusterPolicyRule {
    let before = faults.len();
    // What can be told of a rule of which no more can be read.
    let text = |field: &str| value.get(field).and_then(Value::as_str).unwrap_or_default();
    let name = text("name").to_owned();
    let action = match text("action") {
        "Accept" => PolicyAction::Accept,
        "Deny" => PolicyAction::Deny,
        "Pass" => PolicyAction::Pass,
        other => {
            let field = format_args!("{at}.action");
            faults.push(unknown(field, other, "Accept, Deny or Pass"));
            PolicyAction::Deny
        }
    };
    let read = if is_ingress {
        read(at, value).map(|rule: wire::ClusterIngressRule| (rule.from, rule.protocols))
    } else {
        read(at, value).map(|rule: wire::ClusterEgressRule| (rule.to, rule.protocols))
    };
    let (peers, ports) = match read {
        Ok((peers, protocols)) => {
            let peers = peers_of(at, peers, is_ingress, faults);
            let ports = ports_of(at, protocols, faults);
            (peers, ports)
        }
        Err(fault) => {
            faults.push(fault);
            (Vec::new(), Vec::new())
        }
    };
    let named = ports.iter().any(|port| matches!(port, ClusterPolicyPort::Name(_)));
    let of_pods = |peer: &ClusterPolicyPeer| matches!(peer, ClusterPolicyPeer::Pods(_));
    if named && !peers.iter().all(of_pods) {
        let reason = "has destinationNamedPort, which only pods have";
        faults.push(FieldError::new(format_args!("{at}.protocols"), reason));
    }
    let understood = faults.len() == before;
    ClusterPolicyRule { name, action, peers, ports, understood }
}

fn peers_of(
    at: &str,
    list: Vec<wire::ClusterPeer>,
    is_ingress: bool,
    faults: &mut Vec<FieldError>,
) -> Vec<ClusterPolicyPeer> {
    let field = if is_ingress { "from" } else { "to" };
    if list.is_empty() {
        faults.push(FieldError::new(format_args!("{at}.{field}"), "is empty"));
    }
    let mut peers = Vec::with_capacity(list.len());
    for (i, wire) in list.into_iter().enumerate() {
        peers.extend(peer(&format!("{at}.{field}[{i}]"), wire, is_ingress, faults));
    }
    peers
}

fn peer(
    at: &str,
    wire: wire::ClusterPeer,
    is_ingress: bool,
    faults: &mut Vec<FieldError>,
) -> Option<ClusterPolicyPeer> {
    let wire::ClusterPeer { namespaces, pods, nodes, networks, domain_names } = wire;
    let mut fault = |field: &str, reason: &str| {
        let field = if field.is_empty() { at.to_owned() } else { format!("{at}.{field}") };
        faults.push(FieldError::new(field, reason));
        None
    };
    let there = [
        namespaces.is_some(),
        pods.is_some(),
        nodes.is_some(),
        networks.is_some(),
        domain_names.is_some(),
    ];
    match there.into_iter().filter(|is_there| *is_there).count() {
        // One of a kind that is not known, or none.
        0 => return fault("", "is of no kind that Sluice knows"),
        1 => {}
        _ => return fault("", "is of several kinds; only one may be"),
    }
    if is_ingress {
        for (field, is_there) in ["nodes", "networks", "domainNames"].iter().zip(&there[2..]) {
            if *is_there {
                return fault(field, "is no peer of ingress");
            }
        }
    }
    if domain_names.is_some() {
        return fault("domainNames", "is not supported");
    }
    if let Some(namespaces) = namespaces {
        let all = all_pods_of(&format!("{at}.namespaces"), namespaces, faults);
        return Some(ClusterPolicyPeer::Pods(all));
    }
    if let Some(pods) = pods {
        return namespaced_pods(&format!("{at}.pods"), pods, faults).map(ClusterPolicyPeer::Pods);
    }
    if let Some(nodes) = nodes {
        return Some(ClusterPolicyPeer::Nodes(selector(&format!("{at}.nodes"), nodes, faults)));
    }
    let networks = networks.unwrap_or_default();
    if networks.is_empty() {
        return fault("networks", "is empty");
    }
    let mut blocks = Vec::with_capacity(networks.len());
    for (i, text) in networks.iter().enumerate() {
        match cidr(format_args!("{at}.networks[{i}]"), text) {
            Ok(block) => blocks.push(block),
            Err(fault) => faults.push(fault),
        }
    }
    Some(ClusterPolicyPeer::Networks(blocks))
}

fn ports_of(
    at: &str,
    protocols: Option<Vec<wire::ClusterProtocol>>,
    faults: &mut Vec<FieldError>,
) -> Vec<ClusterPolicyPort> {
    let Some(protocols) = protocols else { return Vec::new() };
    if protocols.is_empty() {
        faults.push(FieldError::new(format_args!("{at}.protocols"), "is empty"));
    }
    let mut ports = Vec::with_capacity(protocols.len());
    for (i, wire) in protocols.into_iter().enumerate() {
        match protocol(&format!("{at}.protocols[{i}]"), wire) {
            Ok(port) => ports.push(port),
            Err(fault) => faults.push(fault),
        }
    }
    ports
}

fn protocol(at: &str, wire: wire::ClusterProtocol) -> Result<ClusterPolicyPort, FieldError> {
    let transports = [
        ("tcp", Protocol::Tcp, wire.tcp),
        ("udp", Protocol::Udp, wire.udp),
        ("sctp", Protocol::Sctp, wire.sctp),
    ];
    let mut there =
        transports.into_iter().filter_map(|(field, protocol, part)| Some((field, protocol, part?)));
    let only = |more: bool| {
        if more { Err(FieldError::new(at, "is of several kinds; only one may be")) } else { Ok(()) }
    };
    let Some((field, protocol, transport)) = there.next() else {
        let Some(name) = wire.destination_named_port else {
            return Err(FieldError::new(at, "is of no kind that Sluice knows"));
        };
        let name = port_name(format_args!("{at}.destinationNamedPort"), name)?;
        return Ok(ClusterPolicyPort::Name(name));
    };
    only(there.next().is_some() || wire.destination_named_port.is_some())?;
    let at = format!("{at}.{field}.destinationPort");
    let Some(wire::TransportPort { number, range }) = transport.destination_port else {
        return Err(FieldError::new(at, "is missing"));
    };
    match (number, range) {
        (Some(number), None) => {
            let number = port(format_args!("{at}.number"), number)?;
            Ok(ClusterPolicyPort::Numbers(protocol, number, number))
        }
        (None, Some(range)) => {
            let first = port(format_args!("{at}.range.start"), range.start)?;
            let last = port(format_args!("{at}.range.end"), range.end)?;
            if first >= last {
                let reason = format_args!("{last} is not above the start, {first}");
                return Err(FieldError::new(format_args!("{at}.range.end"), reason));
            }
            Ok(ClusterPolicyPort::Numbers(protocol, first, last))
        }
        (None, None) => Err(FieldError::new(at, "has neither a number nor a range")),
        (Some(_), Some(_)) => {
            Err(FieldError::new(at, "has a number and a range; only one of them may be"))
        }
    }
}

#[cfg(test)]
mod tests;
