//! Network policies. One with a field that is wrong is not refused, since without it its pods would be
//! open: it is in force and allows nothing, and says why.

use std::collections::BTreeSet;

use ipnet::IpNet;
use sluice_model::{
    LabelOperator, LabelRequirement, LabelSelector, Meta, NetworkPolicy, PolicyFault, PolicyPeer,
    PolicyPort, PolicyPortRange, PolicyRule, ResourceKind,
};

use super::FieldError;
use super::field::{cidr, port, protocol, unknown};
use super::meta::meta;
use crate::wire;

/// # Errors
/// Only metadata that names no policy.
pub(super) fn policy(wire: wire::NetworkPolicy) -> Result<NetworkPolicy, FieldError> {
    let meta = meta(ResourceKind::NetworkPolicy, wire.metadata)?;
    let spec = wire.spec.unwrap_or_default();
    let mut faults = Vec::new();
    let pods = pod_selector(spec.pod_selector, &mut faults);
    let ingress = spec.ingress.into_iter().map(|rule| (rule.from, rule.ports));
    let ingress = rules("spec.ingress", "from", ingress, &mut faults);
    let egress = spec.egress.into_iter().map(|rule| (rule.to, rule.ports));
    let egress = rules("spec.egress", "to", egress, &mut faults);
    // By default ingress, and egress where there is anything to say of it.
    let (mut isolates_in, mut isolates_out) = (true, !egress.is_empty());
    if !spec.policy_types.is_empty() {
        (isolates_in, isolates_out) = (false, false);
        for (i, kind) in spec.policy_types.iter().enumerate() {
            match kind.as_str() {
                "Ingress" => isolates_in = true,
                "Egress" => isolates_out = true,
                other => {
                    let field = format_args!("spec.policyTypes[{i}]");
                    faults.push(unknown(field, other, "Ingress or Egress"));
                }
            }
        }
    }
    if !faults.is_empty() {
        return Ok(closed(meta, pods, faults));
    }
    Ok(NetworkPolicy {
        meta,
        pods,
        ingress: isolates_in.then_some(ingress),
        egress: isolates_out.then_some(egress),
        faults: Vec::new(),
    })
}

/// A policy whose rules cannot be read at all.
///
/// # Errors
/// Only metadata that names no policy.
pub(super) fn outline(
    wire: wire::PolicyOutline,
    why: FieldError,
) -> Result<NetworkPolicy, FieldError> {
    let meta = meta(ResourceKind::NetworkPolicy, wire.metadata)?;
    let mut faults = vec![why];
    let pods = pod_selector(wire.spec.unwrap_or_default().pod_selector, &mut faults);
    Ok(closed(meta, pods, faults))
}

/// A policy that isolates its pods in both directions and allows nothing.
pub(crate) fn closed(meta: Meta, pods: LabelSelector, faults: Vec<FieldError>) -> NetworkPolicy {
    let faults =
        faults.into_iter().map(|fault| PolicyFault { field: fault.field, message: fault.reason });
    NetworkPolicy {
        meta,
        pods,
        ingress: Some(Vec::new()),
        egress: Some(Vec::new()),
        faults: faults.collect(),
    }
}

/// The pods that a policy is for: all of its namespace where that cannot be read.
fn pod_selector(wire: Option<wire::LabelSelector>, faults: &mut Vec<FieldError>) -> LabelSelector {
    let before = faults.len();
    let selector = selector("spec.podSelector", wire.unwrap_or_default(), faults);
    if faults.len() > before { LabelSelector::default() } else { selector }
}

fn rules(
    field: &str,
    peers_field: &str,
    rules: impl Iterator<Item = (Vec<wire::PolicyPeer>, Vec<wire::PolicyPort>)>,
    faults: &mut Vec<FieldError>,
) -> Vec<PolicyRule> {
    let mut converted = Vec::new();
    for (i, (peers, ports)) in rules.enumerate() {
        let mut rule = PolicyRule::default();
        for (j, entry) in peers.into_iter().enumerate() {
            let at = format!("{field}[{i}].{peers_field}[{j}]");
            rule.peers.extend(peer(&at, entry, faults));
        }
        for (j, entry) in ports.into_iter().enumerate() {
            match policy_port(&format!("{field}[{i}].ports[{j}]"), entry) {
                Ok(port) => rule.ports.push(port),
                Err(fault) => faults.push(fault),
            }
        }
        converted.push(rule);
    }
    converted
}

fn peer(at: &str, wire: wire::PolicyPeer, faults: &mut Vec<FieldError>) -> Option<PolicyPeer> {
    let selects = wire.pod_selector.is_some() || wire.namespace_selector.is_some();
    match wire.ip_block {
        Some(_) if selects => {
            faults.push(FieldError::new(
                at,
                "has an ipBlock and a selector; only one of them may be",
            ));
            None
        }
        Some(block) => match ip_block(at, &block) {
            Ok(peer) => Some(peer),
            Err(fault) => {
                faults.push(fault);
                None
            }
        },
        None if selects => {
            let mut read = |field: &str, wire: Option<wire::LabelSelector>| {
                wire.map(|wire| selector(&format!("{at}.{field}"), wire, faults))
            };
            let namespaces = read("namespaceSelector", wire.namespace_selector);
            let pods = read("podSelector", wire.pod_selector);
            Some(PolicyPeer::Pods { namespaces, pods })
        }
        None => {
            faults.push(FieldError::new(
                at,
                "has neither a podSelector, nor a namespaceSelector, nor an ipBlock",
            ));
            None
        }
    }
}

fn ip_block(at: &str, wire: &wire::IpBlock) -> Result<PolicyPeer, FieldError> {
    let block = cidr(format_args!("{at}.ipBlock.cidr"), &wire.cidr)?;
    let mut except: Vec<IpNet> = Vec::with_capacity(wire.except.len());
    for (i, text) in wire.except.iter().enumerate() {
        let field = format!("{at}.ipBlock.except[{i}]");
        let hole = cidr(&field, text)?;
        if !block.contains(&hole) {
            return Err(FieldError::new(field, format_args!("{text:?} is not inside {block}")));
        }
        // The API server asks for a strict part.
        if hole == block {
            return Err(FieldError::new(field, format_args!("{text:?} leaves nothing of {block}")));
        }
        except.push(hole);
    }
    Ok(PolicyPeer::Block { cidr: block, except })
}

fn policy_port(at: &str, wire: wire::PolicyPort) -> Result<PolicyPort, FieldError> {
    let protocol = protocol(format_args!("{at}.protocol"), &wire.protocol.unwrap_or_default())?;
    let end_field = format!("{at}.endPort");
    let ports = match (wire.port, wire.end_port) {
        (None, None) => PolicyPortRange::All,
        (None, Some(_)) => {
            return Err(FieldError::new(end_field, "needs a port that it is the end to"));
        }
        (Some(entry), end) => match entry.kind {
            0 => {
                let first = port(format_args!("{at}.port"), entry.int)?;
                let last = end.map(|end| port(&end_field, end)).transpose()?.unwrap_or(first);
                if last < first {
                    let reason = format_args!("{last} is below the port, {first}");
                    return Err(FieldError::new(end_field, reason));
                }
                PolicyPortRange::Numbers(first, last)
            }
            1 if end.is_some() => {
                return Err(FieldError::new(end_field, "needs a port that is a number"));
            }
            1 => PolicyPortRange::Name(port_name(format_args!("{at}.port"), entry.string)?),
            other => {
                return Err(FieldError::new(
                    format_args!("{at}.port"),
                    format_args!("is of type {other}, neither a number nor a name"),
                ));
            }
        },
    };
    Ok(PolicyPort { protocol, ports })
}

/// A name as container ports have it ([RFC 6335] §5.1).
///
/// [RFC 6335]: https://www.rfc-editor.org/rfc/rfc6335
pub(super) fn port_name(field: impl std::fmt::Display, name: String) -> Result<String, FieldError> {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let valid = (1..=15).contains(&name.len())
        && name.chars().all(allowed)
        && name.chars().any(|c| c.is_ascii_lowercase())
        && !name.contains("--")
        && !name.starts_with('-')
        && !name.ends_with('-');
    if valid { Ok(name) } else { Err(unknown(field, &name, "a port's name")) }
}

pub(super) fn selector(
    field: &str,
    wire: wire::LabelSelector,
    faults: &mut Vec<FieldError>,
) -> LabelSelector {
    for (key, value) in &wire.match_labels {
        let field = format!("{field}.matchLabels");
        faults.extend(label_key(&field, key).err());
        faults.extend(label_value(&format!("{field}[{key}]"), value).err());
    }
    let mut expressions = Vec::with_capacity(wire.match_expressions.len());
    for (i, entry) in wire.match_expressions.into_iter().enumerate() {
        let at = format!("{field}.matchExpressions[{i}]");
        faults.extend(label_key(&format!("{at}.key"), &entry.key).err());
        for (j, value) in entry.values.iter().enumerate() {
            faults.extend(label_value(&format!("{at}.values[{j}]"), value).err());
        }
        match operator(&at, &entry.operator, entry.values) {
            Ok(operator) => expressions.push(LabelRequirement { key: entry.key, operator }),
            Err(fault) => faults.push(fault),
        }
    }
    LabelSelector { labels: wire.match_labels, expressions }
}

fn operator(at: &str, word: &str, values: Vec<String>) -> Result<LabelOperator, FieldError> {
    let field = format!("{at}.values");
    let some = !values.is_empty();
    let values: BTreeSet<String> = values.into_iter().collect();
    match word {
        "In" if some => Ok(LabelOperator::In(values)),
        "NotIn" if some => Ok(LabelOperator::NotIn(values)),
        "In" | "NotIn" => Err(FieldError::new(field, format_args!("is empty, which {word} needs"))),
        "Exists" if !some => Ok(LabelOperator::Exists),
        "DoesNotExist" if !some => Ok(LabelOperator::DoesNotExist),
        "Exists" | "DoesNotExist" => {
            Err(FieldError::new(field, format_args!("is not empty, which {word} does not take")))
        }
        other => {
            Err(unknown(format_args!("{at}.operator"), other, "In, NotIn, Exists or DoesNotExist"))
        }
    }
}

/// Letters, digits, `-`, `_` and `.`, with a letter or digit at either end, and no longer than 63.
fn is_qualified(text: &str) -> bool {
    let inner = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let ends = |c: char| c.is_ascii_alphanumeric();
    text.len() <= 63 && text.chars().all(inner) && text.starts_with(ends) && text.ends_with(ends)
}

/// A name, or a DNS subdomain and a name.
fn label_key(field: &str, key: &str) -> Result<(), FieldError> {
    let is_domain = |domain: &str| {
        let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        let is_label = |label: &str| {
            !label.is_empty()
                && label.chars().all(allowed)
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        domain.len() <= 253 && domain.split('.').all(is_label)
    };
    let valid = match key.split_once('/') {
        Some((domain, name)) => is_domain(domain) && is_qualified(name),
        None => is_qualified(key),
    };
    if valid { Ok(()) } else { Err(unknown(field, key, "a label's key")) }
}

fn label_value(field: &str, value: &str) -> Result<(), FieldError> {
    if value.is_empty() || is_qualified(value) {
        Ok(())
    } else {
        Err(unknown(field, value, "a label's value"))
    }
}

#[cfg(test)]
mod tests;
