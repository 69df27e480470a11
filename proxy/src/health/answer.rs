//! What is answered to whom: pure functions from what is known to status, headers and body.

use std::time::SystemTime;

use jiff::Timestamp;
use serde_json::json;
use sluice_model::ObjectName;

use super::{ServiceCheck, Verdict};

/// How a load balancer learns how many endpoints are behind a node, beside the body.
pub const WEIGHT_HEADER: &str = "x-load-balancing-endpoint-weight";

/// An answer, before it is HTTP.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Answer {
    /// Status code.
    pub status: u16,
    /// `Content-Type`.
    pub content_type: &'static str,
    /// Value of [`WEIGHT_HEADER`], where there is one.
    pub weight: Option<usize>,
    /// The body.
    pub body: String,
}

/// `Content-Type` of JSON.
const JSON: &str = "application/json";
/// `Content-Type` of plain text.
const TEXT: &str = "text/plain; charset=utf-8";
/// `Content-Type` of what `prometheus-client` writes.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

impl Answer {
    fn text(status: u16, body: impl Into<String>) -> Self {
        Self { status, content_type: TEXT, weight: None, body: body.into() }
    }

    /// There is nothing at that path.
    pub fn not_found() -> Self {
        Self::text(404, "404 page not found\n")
    }

    /// Everything here is only read.
    pub fn method_not_allowed() -> Self {
        Self::text(405, "only GET and HEAD\n")
    }

    /// Something that should not happen did.
    pub fn failed(why: &str) -> Self {
        Self::text(500, format!("{why}\n"))
    }

    /// Figures, as text.
    pub fn metrics(body: String) -> Self {
        Self { status: 200, content_type: OPEN_METRICS, weight: None, body }
    }
}

/// 200 or 503.
fn status(ok: bool) -> u16 {
    if ok { 200 } else { 503 }
}

/// A time as RFC 3339, in UTC.
fn time(time: SystemTime) -> String {
    // What no calendar holds is as good as never.
    Timestamp::try_from(time).unwrap_or_default().to_string()
}

/// What `lastUpdated` says. As kube-proxy since 1.29: a node that is fit is up to date now, however
/// long nothing has changed.
fn last_updated(verdict: &Verdict, fit: bool, now: SystemTime) -> String {
    time(if fit { now } else { verdict.updated })
}

/// `/healthz`: whether the node may have traffic. `reason` is there where it may not.
pub fn healthz(verdict: &Verdict, now: SystemTime) -> Answer {
    let mut body = json!({
        "lastUpdated": last_updated(verdict, verdict.healthy(), now),
        "currentTime": time(now),
        "nodeEligible": verdict.eligible,
    });
    let reason = verdict.reason();
    if let Some(reason) = &reason {
        body["reason"] = json!(reason);
    }
    Answer {
        status: status(reason.is_none()),
        content_type: JSON,
        weight: None,
        body: body.to_string(),
    }
}

/// `/livez`: whether the agent does its work, whatever is to become of the node. A source that has
/// not answered yet, or a write that the kernel refuses, is no reason to start the agent anew.
pub fn livez(verdict: &Verdict, now: SystemTime) -> Answer {
    let reason = verdict.hung_reason();
    let mut body = json!({
        "lastUpdated": last_updated(verdict, reason.is_none(), now),
        "currentTime": time(now),
    });
    if let Some(reason) = &reason {
        body["reason"] = json!(reason);
    }
    Answer {
        status: status(reason.is_none()),
        content_type: JSON,
        weight: None,
        body: body.to_string(),
    }
}

/// A Service's `healthCheckNodePort`, at whatever path.
pub fn service(name: &ObjectName, check: ServiceCheck, verdict: &Verdict) -> Answer {
    let healthy = verdict.healthy();
    Answer {
        status: status(check.local > 0 && healthy),
        content_type: JSON,
        weight: Some(check.local),
        body: json!({
            "service": { "namespace": name.namespace, "name": name.name },
            "localEndpoints": check.local,
            "serviceProxyHealthy": healthy,
        })
        .to_string(),
    }
}

/// What of `--metrics-bind-address` needs no figures; `None` for `/metrics` itself.
pub fn metrics_path(path: &str) -> Option<Answer> {
    match path {
        "/metrics" => None,
        "/healthz" => Some(Answer::text(200, "ok")),
        "/proxyMode" => Some(Answer::text(200, "ebpf")),
        _ => Some(Answer::not_found()),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::Value;

    use super::*;

    fn well() -> Verdict {
        let updated = SystemTime::UNIX_EPOCH;
        Verdict { hung: None, stuck: None, programmed: true, eligible: true, updated }
    }

    fn now() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(86_400)
    }

    fn body(answer: &Answer) -> Value {
        serde_json::from_str(&answer.body).expect("JSON")
    }

    #[test]
    fn a_node_that_is_well_is_up_to_date_now() {
        let answer = healthz(&well(), now());
        assert_eq!((answer.status, answer.content_type), (200, JSON));
        let expected = json!({
            "lastUpdated": "1970-01-02T00:00:00Z",
            "currentTime": "1970-01-02T00:00:00Z",
            "nodeEligible": true,
        });
        assert_eq!(body(&answer), expected);
        assert_eq!(livez(&well(), now()).status, 200);
    }

    /// S12
    #[test]
    fn a_node_that_is_about_to_go_fails_healthz_and_not_livez() {
        let verdict = Verdict { eligible: false, ..well() };
        let answer = healthz(&verdict, now());
        assert_eq!(answer.status, 503);
        assert_eq!(body(&answer)["nodeEligible"], false);
        assert_eq!(body(&answer)["lastUpdated"], "1970-01-02T00:00:00Z");
        assert_eq!(livez(&verdict, now()).status, 200);
    }

    /// S12
    #[test]
    fn a_hung_agent_fails_both_and_says_since_when() {
        let verdict = Verdict { hung: Some(Duration::from_secs(61)), ..well() };
        for answer in [healthz(&verdict, now()), livez(&verdict, now())] {
            assert_eq!(answer.status, 503);
            assert_eq!(body(&answer)["lastUpdated"], "1970-01-01T00:00:00Z");
            assert_eq!(body(&answer)["reason"], "the agent's loop has not moved for 61 s");
        }
    }

    /// S12
    #[test]
    fn a_write_that_the_kernel_refuses_keeps_traffic_away_but_not_the_agent_down() {
        let verdict = Verdict { stuck: Some(Duration::from_secs(61)), ..well() };
        let answer = healthz(&verdict, now());
        assert_eq!(answer.status, 503);
        assert_eq!(body(&answer)["reason"], "a change has waited for the kernel for 61 s");
        assert_eq!(livez(&verdict, now()).status, 200);
    }

    #[test]
    fn a_source_that_was_never_read_keeps_traffic_away_but_not_the_agent_down() {
        let verdict = Verdict { programmed: false, ..well() };
        assert_eq!(healthz(&verdict, now()).status, 503);
        assert_eq!(livez(&verdict, now()).status, 200);
    }

    /// S11
    #[test]
    fn a_service_is_well_where_it_has_endpoints_and_the_proxy_works() {
        let name = ObjectName::new("shop", "web");
        let two = ServiceCheck { port: 32000, local: 2 };
        let answer = service(&name, two, &well());
        assert_eq!((answer.status, answer.weight), (200, Some(2)));
        let expected = json!({
            "service": {"namespace": "shop", "name": "web"},
            "localEndpoints": 2,
            "serviceProxyHealthy": true,
        });
        assert_eq!(body(&answer), expected);

        let answer = service(&name, ServiceCheck { local: 0, ..two }, &well());
        assert_eq!((answer.status, answer.weight), (503, Some(0)));
        assert_eq!(body(&answer)["serviceProxyHealthy"], true);

        let stuck = Verdict { stuck: Some(Duration::from_secs(61)), ..well() };
        let answer = service(&name, two, &stuck);
        assert_eq!((answer.status, answer.weight), (503, Some(2)));
        assert_eq!(body(&answer)["serviceProxyHealthy"], false);

        // The taint is the node's business: connections drain, the Service goes on.
        let leaving = Verdict { eligible: false, ..well() };
        assert_eq!(service(&name, two, &leaving).status, 200);
    }

    #[test]
    fn the_metrics_port_answers_what_kube_proxys_does() {
        assert_eq!(metrics_path("/metrics"), None);
        assert_eq!(metrics_path("/healthz").map(|a| a.body).as_deref(), Some("ok"));
        assert_eq!(metrics_path("/proxyMode").map(|a| a.status), Some(200));
        assert_eq!(metrics_path("/").map(|a| a.status), Some(404));
    }
}
