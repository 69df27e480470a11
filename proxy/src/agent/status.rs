//! Answers to the control socket's questions.

use std::time::{Instant, SystemTime};

use sluice_model::ObjectName;
use sluice_store::{Rejected, SourceStatus};

use super::routes::Routes;
use super::run::Agent;
use crate::clock;
use crate::control::{Answer, PodRef, Reply, Request, ServiceRef};
use crate::dataplane::DataplaneError;
use crate::health::BindAddress;
use crate::view::{
    AffinityRow, AgentStatus, BackendRow, ConntrackRow, EndpointRow, PartStatus, ProblemRow,
    ServiceRow, SourceView, Status, service_note,
};

impl Agent {
    /// Carries a request out.
    pub(super) fn answer(&mut self, request: Request) -> Answer {
        let reply = match request {
            Request::Ping => return Answer::done(),
            Request::Status => self.status().map(|status| Reply::Status(Box::new(status))),
            Request::ServiceList => {
                self.dataplane.tables().map(|tables| Reply::Services(ServiceRow::all(&tables)))
            }
            Request::ServiceNote(ServiceRef { service }) => return self.service_note(&service),
            Request::BackendList => {
                self.dataplane.tables().map(|tables| Reply::Backends(BackendRow::all(&tables)))
            }
            Request::ConntrackList => self.conntrack(),
            Request::AffinityList => self.affinity(),
            Request::EndpointList => self.dataplane.endpoints().map(|endpoints| {
                let rows = EndpointRow::all(&endpoints, |addr, _| self.endpoints.note(addr));
                Reply::Endpoints(rows)
            }),
            Request::RouteList => {
                let rows = self.routes.as_ref().map(Routes::rows).unwrap_or_default();
                Ok(Reply::Routes(rows.to_vec()))
            }
            Request::PolicyList => return self.policy_answer(self.policy_list()),
            Request::PolicyGet(PodRef { pod }) => {
                let (namespace, name) = pod.split_once('/').unwrap_or(("default", &pod));
                let told = self.policy_get(&ObjectName::new(namespace, name));
                return self.policy_answer(told);
            }
            Request::PolicyTrace(trace) => return self.policy_answer(self.policy_trace(&trace)),
            Request::IdentityList => return self.policy_answer(self.identity_list()),
            // The socket's own business.
            Request::MonitorDrops => return Answer::error("this is no monitor's connection", ""),
            Request::EndpointAdd(add) => return self.add_pod(&add.key, add.record.as_deref()),
            Request::EndpointDel(del) => return self.remove_pod(&del),
        };
        match reply {
            Ok(reply) => Answer::data(reply),
            Err(error) => Answer::error(error.to_string(), "see sluiced's log"),
        }
    }

    fn service_note(&self, name: &str) -> Answer {
        let (namespace, name) = name.split_once('/').unwrap_or(("default", name));
        let name = ObjectName::new(namespace, name);
        match self.cache.service(&name) {
            Some(service) => {
                let note = service_note(service, &self.cache.endpoints(&name));
                Answer::data(Reply::ServiceNote(note))
            }
            None => Answer::error(format!("no Service {name} in the source"), ""),
        }
    }

    fn conntrack(&self) -> Result<Reply, DataplaneError> {
        let tables = self.dataplane.tables()?;
        let entries = self.dataplane.conntrack()?;
        Ok(Reply::Conntrack(ConntrackRow::all(&entries, &tables, clock::monotonic_nanos())))
    }

    fn affinity(&self) -> Result<Reply, DataplaneError> {
        let tables = self.dataplane.tables()?;
        let view = self.dataplane.view();
        let node = view.node_state()?.netns;
        let rows = AffinityRow::all(&view.affinity()?, &tables, node, clock::monotonic_nanos());
        Ok(Reply::Affinity(rows))
    }

    fn status(&self) -> Result<Status, DataplaneError> {
        let status = Status {
            agent: Some(AgentStatus {
                version: env!("CARGO_PKG_VERSION").to_owned(),
                pid: std::process::id(),
                uptime_secs: Instant::now().duration_since(self.started).as_secs(),
                node: self.node.clone(),
                source: source_view(&self.args.source.to_string(), &self.source.borrow()),
                parts: self.parts(),
                routes: self.routes.iter().flat_map(Routes::held).cloned().collect(),
                problems: self.problems(),
            }),
            ..Status::default()
        };
        status.fill(self.dataplane.view())
    }

    fn parts(&self) -> Vec<PartStatus> {
        let part = |name: &str, on, note: String| PartStatus { name: name.to_owned(), on, note };
        let listener = |name, address: BindAddress| {
            part(name, address.0.is_some(), address.0.map(|a| a.to_string()).unwrap_or_default())
        };
        let cgroup = self.cgroup.as_ref().map(|path| path.display().to_string());
        vec![
            part("Socket balancing", self.cgroup.is_some(), cgroup.unwrap_or_default()),
            part("Socket waking", true, self.wakes.note()),
            part("Pod programs", self.args.pod_programs, self.kernel.pod_hook().to_owned()),
            part("Network policies", self.policies.is_on(), self.policies.note()),
            part("Fast path", self.args.pod_programs && self.args.fast_path, String::new()),
            part(
                "Routes",
                self.args.routes,
                self.routes.as_ref().map(Routes::text).unwrap_or_default(),
            ),
            part("Uplinks", self.uplinks.on(), self.uplinks.note_text()),
            part("Masquerade", self.uplinks.on() && self.args.masquerade, String::new()),
            part("Service ranges", self.service_ranges.is_on(), self.service_ranges.text()),
            part(
                "Node-local DNS",
                self.args.node_local_dns.0.is_some(),
                self.reconciler.node_local().note(),
            ),
            listener("Health checks", self.args.healthz_bind_address),
            listener("Metrics", self.args.metrics_bind_address),
        ]
    }

    pub(super) fn problems(&self) -> Vec<ProblemRow> {
        let row = |subject: &str, message: &str| ProblemRow {
            subject: subject.to_owned(),
            message: message.to_owned(),
        };
        let mut rows: Vec<_> = self.reconciler.problems().map(|(s, m)| row(&s, &m)).collect();
        rows.extend(self.cache.rejected().map(rejected_row));
        rows.extend(self.endpoints.problems().map(|(s, m)| row(s, m)));
        rows.extend(self.policies.problem().map(|(s, m)| row(s, m)));
        rows.extend(self.without_programs());
        rows.extend(self.outside_of_the_node());
        rows.extend(self.too_large_for_the_tunnel());
        rows.extend(self.port_problems.values().flatten().map(|(s, m)| row(s, m)));
        rows.extend(self.routes.iter().flat_map(Routes::problems).map(|(s, m)| row(s, m)));
        rows.extend(self.uplinks.problems().map(|(s, m)| row(s, m)));
        rows.extend(self.service_ranges.problems().map(|(s, m)| row(s, m)));
        rows.extend(self.health.problems().iter().map(|(s, m)| row(s, m)));
        rows.extend(self.wakes.problem().map(|problem| row("sockets", &problem)));
        rows.extend(self.notices.iter().map(|notice| row("map size", notice)));
        rows
    }
}

impl Agent {
    /// Policies without anything to enforce them.
    fn without_programs(&self) -> Option<ProblemRow> {
        let idle = self.policies.is_on() && !self.args.pod_programs;
        let policies = self.cache.policies().count() + self.cache.cluster_policies().count();
        (idle && policies > 0).then(|| ProblemRow {
            subject: "policies".to_owned(),
            message: format!(
                "none of {policies} network policies is enforced: sluiced runs with --pod-programs false"
            ),
        })
    }
}

impl Agent {
    /// Pods that kept addresses which the node's pod CIDRs no longer hold.
    fn outside_of_the_node(&self) -> Vec<ProblemRow> {
        let Some(node) = self.cache.node(&self.node).filter(|node| !node.pod_cidrs.is_empty())
        else {
            return Vec::new();
        };
        let cidrs: Vec<String> = node.pod_cidrs.iter().map(ToString::to_string).collect();
        let cidrs = cidrs.join(", ");
        let pods = self.endpoints.outside(&node.pod_cidrs);
        pods.map(|(pod, addr)| ProblemRow {
            subject: format!("Pod {pod}"),
            message: format!(
                "{addr} is not in the node's pod CIDRs ({cidrs}): other nodes have no route to it \
                 until the pod is made anew"
            ),
        })
        .collect()
    }
}

impl Agent {
    /// Pods that were made before packets were encapsulated.
    fn too_large_for_the_tunnel(&self) -> Vec<ProblemRow> {
        let Some(mtu) = self.routes.as_ref().and_then(Routes::tunnel_mtu) else {
            return Vec::new();
        };
        let pods = self.endpoints.with_larger_mtu(mtu);
        pods.map(|(pod, has)| ProblemRow {
            subject: format!("Pod {pod}"),
            message: format!(
                "its MTU is {has}, and encapsulated packets of more than {mtu} bytes do not fit: \
                 large ones to nodes behind the tunnel are answered with an ICMP error until the \
                 pod is made anew"
            ),
        })
        .collect()
    }
}

/// A refused object: where it is, then what is wrong with what.
fn rejected_row(rejected: &Rejected) -> ProblemRow {
    let mut message = String::new();
    if let Some(key) = &rejected.key {
        message.push_str(&format!("{key}: "));
    }
    if !rejected.field.is_empty() {
        message.push_str(&format!("{}: ", rejected.field));
    }
    message.push_str(&rejected.reason);
    ProblemRow { subject: rejected.origin.clone(), message }
}

fn source_view(url: &str, status: &SourceStatus) -> SourceView {
    let since = SystemTime::now().duration_since(status.since).unwrap_or_default();
    SourceView {
        url: url.to_owned(),
        connected: status.connected,
        since_secs: since.as_secs(),
        synced: status.synced,
        revision: status.revision,
        last_error: status.last_error.clone(),
    }
}
