//! Requests and answers.

use serde::{Deserialize, Serialize};

use sluice_model::Protocol;

use crate::view::{
    AffinityRow, BackendRow, ConntrackRow, EndpointRow, IdentityRow, PodPolicies, PolicyRow,
    PolicyTrace, RouteRow, ServiceRow, Status,
};

/// Version of the protocol.
pub const PROTOCOL_VERSION: u32 = 1;

/// A request with its version: `{"version":1,"request":"status"}`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Envelope {
    /// [`PROTOCOL_VERSION`] of the sender.
    pub version: u32,
    /// What is asked.
    #[serde(flatten)]
    pub request: Request,
}

/// What can be asked of the agent.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "kebab-case")]
pub enum Request {
    /// Whether the agent answers.
    Ping,
    /// State of the node.
    Status,
    /// Frontends.
    ServiceList,
    /// Why a Service has no frontend.
    ServiceNote(ServiceRef),
    /// Backends.
    BackendList,
    /// Flows that are translated packet by packet.
    ConntrackList,
    /// Clients of services with session affinity.
    AffinityList,
    /// Pods of this node.
    EndpointList,
    /// Routes to other nodes' pods.
    RouteList,
    /// Network policies of the source.
    PolicyList,
    /// What network policies make of a pod of this node.
    PolicyGet(PodRef),
    /// Whether one end may talk to another.
    PolicyTrace(TraceRequest),
    /// Addresses that the rules in force tell apart.
    IdentityList,
    /// Each packet that policies drop from now on: the answer is followed by a [`super::Notice`] a line,
    /// until one of the two ends leaves.
    MonitorDrops,
    /// From `sluice-cni`: a pod's record and interface are there; answer once it is served.
    EndpointAdd(EndpointAdd),
    /// From `sluice-cni`: a pod is about to go.
    EndpointDel(EndpointDel),
}

/// A pod whose record and interface are there.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct EndpointAdd {
    /// Which attachment it is.
    #[serde(flatten)]
    pub key: EndpointRef,
    /// The name of the record's file, which spares the agent a look through all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub record: Option<String>,
}

/// A pod that is about to go.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointDel {
    /// Which attachment it is.
    #[serde(flatten)]
    pub key: EndpointRef,
    /// The node's end of its interface; under the same container and interface, another network may have
    /// another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_interface: Option<String>,
    /// Its index. If the agent knows the attachment by this one, it deletes it, and answers with
    /// [`Reply::Unlinked`]. The name is not enough: a request that comes late, from a plugin that gave
    /// up, must not meet the interface that the same attachment has got since.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_ifindex: Option<u32>,
}

/// A Service by its name.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ServiceRef {
    /// `NAMESPACE/NAME`, or a name in the namespace `default`.
    pub service: String,
}

/// A pod by its name.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PodRef {
    /// `NAMESPACE/NAME`, or a name in the namespace `default`.
    pub pod: String,
}

/// A connection that policies are asked about.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct TraceRequest {
    /// Who asks: a pod as in [`PodRef`], or an address.
    pub from: String,
    /// Who is asked, in the same way.
    pub to: String,
    /// The port of `to`, after every translation.
    pub port: u16,
    /// Protocol.
    pub protocol: Protocol,
}

/// An attachment of a container to the network.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointRef {
    /// `CNI_CONTAINERID`.
    pub container_id: String,
    /// `CNI_IFNAME`.
    pub interface: String,
}

/// An answer with its version: `{"version":1,"ok":true,"data":{...}}` or
/// `{"version":1,"ok":false,"error":"...","hint":"..."}`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Answer {
    /// [`PROTOCOL_VERSION`] of the agent.
    pub version: u32,
    /// Whether the request was carried out.
    pub ok: bool,
    /// What was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<Reply>,
    /// What went wrong.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

impl Answer {
    /// Carried out, nothing to tell.
    pub fn done() -> Self {
        Self { version: PROTOCOL_VERSION, ok: true, data: None, error: None, hint: None }
    }

    /// Carried out, with what was asked for.
    pub fn data(reply: Reply) -> Self {
        Self { data: Some(reply), ..Self::done() }
    }

    /// Not carried out.
    pub fn error(error: impl Into<String>, hint: impl Into<String>) -> Self {
        let hint = hint.into();
        Self {
            ok: false,
            error: Some(error.into()),
            hint: (!hint.is_empty()).then_some(hint),
            ..Self::done()
        }
    }
}

/// What an answer carries.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Reply {
    /// To [`Request::Status`].
    Status(Box<Status>),
    /// To [`Request::ServiceList`].
    Services(Vec<ServiceRow>),
    /// To [`Request::ServiceNote`].
    ServiceNote(String),
    /// To [`Request::BackendList`].
    Backends(Vec<BackendRow>),
    /// To [`Request::ConntrackList`].
    Conntrack(Vec<ConntrackRow>),
    /// To [`Request::AffinityList`].
    Affinity(Vec<AffinityRow>),
    /// To [`Request::EndpointList`].
    Endpoints(Vec<EndpointRow>),
    /// To [`Request::RouteList`].
    Routes(Vec<RouteRow>),
    /// To [`Request::PolicyList`].
    Policies(Vec<PolicyRow>),
    /// To [`Request::PolicyGet`].
    PodPolicies(Box<PodPolicies>),
    /// To [`Request::PolicyTrace`].
    PolicyTrace(Box<PolicyTrace>),
    /// To [`Request::IdentityList`].
    Identities(Vec<IdentityRow>),
    /// To [`Request::EndpointDel`]: whether the pod's interface is gone. Where it is not, or where this
    /// is not said, the plugin deletes it.
    Unlinked(bool),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_read_as_documented() {
        let line =
            r#"{"version":1,"request":"endpoint-add","containerId":"c1","interface":"eth0"}"#;
        let envelope: Envelope = serde_json::from_str(line).expect("a documented request");
        assert_eq!(
            envelope.request,
            Request::EndpointAdd(EndpointAdd {
                key: EndpointRef { container_id: "c1".to_owned(), interface: "eth0".to_owned() },
                record: None,
            })
        );
        assert_eq!(serde_json::to_string(&envelope).expect("plain data"), line);
        let named = line.replace('}', r#","record":"slu0,10.0.0.2.json"}"#);
        let envelope: Envelope = serde_json::from_str(&named).expect("a documented request");
        let Request::EndpointAdd(add) = envelope.request else { panic!("another request") };
        assert_eq!(add.record.as_deref(), Some("slu0,10.0.0.2.json"));
    }

    #[test]
    fn answers_leave_out_what_they_do_not_say() {
        let done = serde_json::to_string(&Answer::done()).expect("plain data");
        assert_eq!(done, r#"{"version":1,"ok":true}"#);
        let error = serde_json::to_string(&Answer::error("no", "do")).expect("plain data");
        assert_eq!(error, r#"{"version":1,"ok":false,"error":"no","hint":"do"}"#);
    }
}
