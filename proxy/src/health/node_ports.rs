//! The `healthCheckNodePort`s: one small server a Service.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use sluice_model::ObjectName;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::ServiceCheck;
use super::answer::{self, Answer};
use super::server::listen;
use super::shared::Shared;

/// The servers that run.
pub(super) struct NodePorts {
    shared: Arc<Shared>,
    checks: watch::Receiver<BTreeMap<ObjectName, ServiceCheck>>,
    open: BTreeMap<u16, Open>,
    /// Services whose port another one has.
    refused: Vec<String>,
}

struct Open {
    service: ObjectName,
    task: JoinHandle<()>,
}

impl NodePorts {
    pub(super) fn new(
        shared: Arc<Shared>,
        checks: watch::Receiver<BTreeMap<ObjectName, ServiceCheck>>,
    ) -> Self {
        Self { shared, checks, open: BTreeMap::new(), refused: Vec::new() }
    }

    /// Opens and closes ports. Of two Services with one port (which an API server does not let
    /// happen) the first by name has it; the other is a problem.
    pub(super) async fn reconcile(&mut self, checks: &BTreeMap<ObjectName, ServiceCheck>) {
        let (wanted, losers) = owners(checks);
        let refused: Vec<String> = losers.iter().map(|(service, ..)| subject(service)).collect();
        for subject in self.refused.iter().filter(|subject| !refused.contains(subject)) {
            self.shared.closed(subject);
        }
        let gone: Vec<u16> = self
            .open
            .iter()
            .filter(|(port, open)| wanted.get(port) != Some(&&open.service))
            .map(|(port, _)| *port)
            .collect();
        for port in gone {
            let Some(open) = self.open.remove(&port) else { continue };
            open.task.abort();
            // Only now is the socket closed.
            let _ = open.task.await;
            self.shared.closed(&subject(&open.service));
        }
        for (port, service) in wanted {
            if self.open.contains_key(&port) {
                continue;
            }
            let (name, shared) = (service.clone(), Arc::clone(&self.shared));
            let checks = self.checks.clone();
            let answers =
                move |_: String| std::future::ready(answer(&name, &checks.borrow(), &shared));
            let addr = wildcard(port);
            let shared = Arc::clone(&self.shared);
            let task = tokio::spawn(listen(subject(service), addr, shared, answers));
            self.open.insert(port, Open { service: service.clone(), task });
        }
        for (service, port, owner) in losers {
            let subject = subject(service);
            let problem = format!("healthCheckNodePort {port} is that of Service {owner}");
            if self.shared.refused(&subject, &problem) {
                tracing::warn!("{subject}: {problem}");
            }
        }
        self.refused = refused;
    }
}

impl Drop for NodePorts {
    fn drop(&mut self) {
        for open in self.open.values() {
            open.task.abort();
        }
    }
}

/// Who has each port, and who does not get theirs.
type Owners<'a> = (BTreeMap<u16, &'a ObjectName>, Vec<(&'a ObjectName, u16, &'a ObjectName)>);

fn owners(checks: &BTreeMap<ObjectName, ServiceCheck>) -> Owners<'_> {
    let mut wanted: BTreeMap<u16, &ObjectName> = BTreeMap::new();
    let mut losers = Vec::new();
    for (name, check) in checks {
        match wanted.get(&check.port) {
            None => {
                wanted.insert(check.port, name);
            }
            Some(owner) => losers.push((name, check.port, *owner)),
        }
    }
    (wanted, losers)
}

/// What `proxyctl status` calls the port.
fn subject(service: &ObjectName) -> String {
    format!("Service {service}")
}

fn answer(
    name: &ObjectName,
    checks: &BTreeMap<ObjectName, ServiceCheck>,
    shared: &Shared,
) -> Answer {
    match checks.get(name) {
        Some(check) => answer::service(name, *check, &shared.verdict(Instant::now())),
        // The Service went a moment ago, and the port goes with it.
        None => Answer::not_found(),
    }
}

/// All addresses of the node, in the families that it has.
fn wildcard(port: u16) -> SocketAddr {
    if Path::new("/proc/net/if_inet6").exists() {
        SocketAddr::from((Ipv6Addr::UNSPECIFIED, port))
    } else {
        SocketAddr::from((Ipv4Addr::UNSPECIFIED, port))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_two_services_with_one_port_the_first_by_name_has_it() {
        let check = |port| ServiceCheck { port, local: 0 };
        let name = |name: &str| ObjectName::new("shop", name);
        let checks = [(name("a"), check(1)), (name("b"), check(1)), (name("c"), check(2))].into();
        let (wanted, losers) = owners(&checks);
        assert_eq!(wanted, [(1, &name("a")), (2, &name("c"))].into());
        assert_eq!(losers, [(&name("b"), 1, &name("a"))]);
    }
}
