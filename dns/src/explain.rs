//! Where an answer comes from, in a sentence: for whoever asks why a pod gets what it gets.

use std::net::{IpAddr, SocketAddr};

use hickory_proto::rr::Name;
use ipnet::IpNet;

use crate::answer::cluster::{self, Found};
use crate::answer::{Domain, reverse};
use crate::forward::{ForwardError, Forwarder, Origin};
use crate::zone::{Shape, Snapshot};

/// Who may ask.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Explainers(pub Vec<IpNet>);

impl Explainers {
    pub(crate) fn admit(&self, peer: Option<SocketAddr>) -> bool {
        let addr: Option<IpAddr> = peer.map(|peer| peer.ip().to_canonical());
        addr.is_some_and(|addr| self.0.iter().any(|net| net.contains(&addr)))
    }
}

/// What the cluster's zone has to say about a name; `None` where it is not about it.
pub(crate) fn zone(domain: &Domain, snapshot: &Snapshot, name: &Name) -> Option<String> {
    let apex = domain.apex();
    if !apex.zone_of(name) {
        let addr = reverse::parse(name)?;
        if !snapshot.synced() {
            return Some("reverse name: the source has not been read yet".to_owned());
        }
        let owners = snapshot.owners(&addr).len();
        return (owners > 0).then(|| format!("reverse name: {owners} names have {addr}"));
    }
    let why = match cluster::find_name(domain, snapshot, name) {
        Found::Missing if !snapshot.synced() => "the source has not been read yet".to_owned(),
        Found::Missing => missing(domain, snapshot, name),
        Found::Empty => "the name has nothing but names below it".to_owned(),
        Found::Apex => "the name is the zone's own".to_owned(),
        Found::NameServer => "the name is the server's own".to_owned(),
        Found::Version => "the version of the specification".to_owned(),
        Found::Alias(target) => format!("an ExternalName Service leads to {target}"),
        Found::Pod(addr) => format!("the name spells the pod address {addr}"),
        Found::Service(found) => {
            let key = &found.records.key;
            let (service, namespace) = key.rsplit_once('.').unwrap_or((key, ""));
            let kind = match &found.records.shape {
                Shape::Cluster { .. } => "ClusterIP".to_owned(),
                Shape::Headless => {
                    format!("headless, {} endpoints published", found.records.endpoints.len())
                }
                Shape::External(_) | Shape::Nothing => "ExternalName".to_owned(),
            };
            format!("Service {namespace}/{service}, {kind}")
        }
    };
    Some(format!("zone {apex} {why}"))
}

fn missing(domain: &Domain, snapshot: &Snapshot, name: &Name) -> String {
    let below = name.iter().len() - domain.apex().iter().len();
    let labels: Vec<String> = name
        .iter()
        .take(below)
        .map(|label| String::from_utf8_lossy(label).to_ascii_lowercase())
        .collect();
    match &labels[..] {
        [.., namespace, svc] if svc == "svc" && !snapshot.has_namespace(namespace) => {
            format!("there is no namespace {namespace}")
        }
        [.., service, namespace, svc] if svc == "svc" => {
            let known = snapshot.service(&format!("{service}.{namespace}")).is_some();
            if known && labels.len() > 3 {
                format!("Service {namespace}/{service} has no such endpoint or port")
            } else if known {
                format!("Service {namespace}/{service} has no endpoint that is published")
            } else {
                format!("there is no Service {namespace}/{service}")
            }
        }
        _ => "there is no such name".to_owned(),
    }
}

/// What an upstream's answer has to say, fresh or kept, or that there is none.
pub(crate) fn upstream(
    forwarder: &Forwarder,
    name: &Name,
    result: Result<Option<Origin>, &ForwardError>,
) -> String {
    let mut text = match result {
        Ok(None) => "kept answer of an upstream".to_owned(),
        Ok(Some(Origin::Upstream(addr))) => format!("upstream {addr}"),
        Ok(Some(Origin::Stale)) => "kept answer that has run out; no upstream answers".to_owned(),
        Err(error) => error.to_string(),
    };
    if let Some(domain) = forwarder.domain_of(name).filter(|domain| !domain.is_root()) {
        text.push_str(&format!(", stub domain {domain}"));
    }
    text
}
