//! The Container Runtime Interface, as a kubelet speaks it: the calls that make and end a pod's sandbox.
//!
//! The messages are the part of `runtime.v1` (k8s.io/cri-api) that is used here, with its field numbers.

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};
use tonic_prost::ProstCodec;

/// How long a runtime has for one call.
const LIMIT: Duration = Duration::from_secs(60);

/// `PodSandboxMetadata`: who the pod is.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Metadata {
    /// `metadata.name`.
    #[prost(string, tag = "1")]
    pub name: String,
    /// `metadata.uid`.
    #[prost(string, tag = "2")]
    pub uid: String,
    /// `metadata.namespace`.
    #[prost(string, tag = "3")]
    pub namespace: String,
    /// How many sandboxes the pod had before.
    #[prost(uint32, tag = "4")]
    pub attempt: u32,
}

/// `PortMapping`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PortMapping {
    /// 0 TCP, 1 UDP, 2 SCTP.
    #[prost(int32, tag = "1")]
    pub protocol: i32,
    /// The pod's port.
    #[prost(int32, tag = "2")]
    pub container_port: i32,
    /// The node's port.
    #[prost(int32, tag = "3")]
    pub host_port: i32,
    /// The node's address that has it; empty: all.
    #[prost(string, tag = "4")]
    pub host_ip: String,
}

/// `LinuxPodSandboxConfig`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Linux {
    /// The cgroup that the pod's is made in.
    #[prost(string, tag = "1")]
    pub cgroup_parent: String,
}

/// `PodSandboxConfig`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Sandbox {
    /// Who the pod is.
    #[prost(message, optional, tag = "1")]
    pub metadata: Option<Metadata>,
    /// Its host name.
    #[prost(string, tag = "2")]
    pub hostname: String,
    /// Where its containers log to.
    #[prost(string, tag = "3")]
    pub log_directory: String,
    /// Its ports of the node.
    #[prost(message, repeated, tag = "5")]
    pub port_mappings: Vec<PortMapping>,
    /// Its labels.
    #[prost(map = "string, string", tag = "6")]
    pub labels: HashMap<String, String>,
    /// What is said of Linux.
    #[prost(message, optional, tag = "8")]
    pub linux: Option<Linux>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct RunRequest {
    #[prost(message, optional, tag = "1")]
    config: Option<Sandbox>,
}

/// A request or an answer with nothing but a sandbox's id.
#[derive(Clone, PartialEq, prost::Message)]
struct SandboxId {
    #[prost(string, tag = "1")]
    id: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Empty {}

#[derive(Clone, PartialEq, prost::Message)]
struct SandboxStatusAnswer {
    #[prost(message, optional, tag = "1")]
    status: Option<SandboxStatus>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct SandboxStatus {
    #[prost(message, optional, tag = "5")]
    network: Option<Network>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Network {
    #[prost(string, tag = "1")]
    ip: String,
    #[prost(message, repeated, tag = "2")]
    additional_ips: Vec<SandboxId>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct StatusAnswer {
    #[prost(message, optional, tag = "1")]
    status: Option<RuntimeStatus>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct RuntimeStatus {
    #[prost(message, repeated, tag = "1")]
    conditions: Vec<Condition>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Condition {
    #[prost(string, tag = "1")]
    kind: String,
    #[prost(bool, tag = "2")]
    status: bool,
    #[prost(string, tag = "4")]
    message: String,
}

/// A connection to a runtime.
#[derive(Debug)]
pub struct Cri {
    runtime: tokio::runtime::Runtime,
    channel: Channel,
}

impl Cri {
    /// Connects to the runtime's socket.
    ///
    /// # Errors
    /// Nothing listens there.
    pub fn connect(socket: &Path) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let uri = format!("unix://{}", socket.display());
        let endpoint = Endpoint::from_shared(uri)?.timeout(LIMIT).connect_timeout(LIMIT);
        let connect = async { endpoint.connect().await };
        let channel = runtime.block_on(connect).with_context(|| socket.display().to_string())?;
        Ok(Self { runtime, channel })
    }

    fn call<Q, A>(&self, method: &str, request: Q) -> Result<A>
    where
        Q: prost::Message + Send + Sync + 'static,
        A: prost::Message + Default + Send + Sync + 'static,
    {
        let path: PathAndQuery = format!("/runtime.v1.RuntimeService/{method}").parse()?;
        let mut grpc = Grpc::new(self.channel.clone());
        let answer = self.runtime.block_on(async {
            grpc.ready().await?;
            let codec = ProstCodec::<Q, A>::default();
            anyhow::Ok(grpc.unary(tonic::Request::new(request), path, codec).await?)
        });
        Ok(answer.with_context(|| method.to_owned())?.into_inner())
    }

    /// `RunPodSandbox`: namespaces, network and the pause process. Returns the sandbox's id.
    ///
    /// # Errors
    /// The runtime's, with what the plugin said.
    pub fn run(&self, sandbox: Sandbox) -> Result<String> {
        let answer: SandboxId = self.call("RunPodSandbox", RunRequest { config: Some(sandbox) })?;
        Ok(answer.id)
    }

    /// The addresses that the runtime knows of a sandbox.
    ///
    /// # Errors
    /// There is no such sandbox.
    pub fn addresses(&self, id: &str) -> Result<Vec<IpAddr>> {
        let id = SandboxId { id: id.to_owned() };
        let answer: SandboxStatusAnswer = self.call("PodSandboxStatus", id)?;
        let network = answer.status.and_then(|status| status.network).context("no network")?;
        let all =
            std::iter::once(network.ip).chain(network.additional_ips.into_iter().map(|ip| ip.id));
        all.map(|ip| ip.parse().with_context(|| format!("address {ip:?}"))).collect()
    }

    /// `StopPodSandbox`: its network and its processes end. May be repeated.
    ///
    /// # Errors
    /// The runtime's, with what the plugin said.
    pub fn stop(&self, id: &str) -> Result<()> {
        self.call::<_, Empty>("StopPodSandbox", SandboxId { id: id.to_owned() }).map(drop)
    }

    /// `RemovePodSandbox`.
    ///
    /// # Errors
    /// The runtime's.
    pub fn remove(&self, id: &str) -> Result<()> {
        self.call::<_, Empty>("RemovePodSandbox", SandboxId { id: id.to_owned() }).map(drop)
    }

    /// Whether the runtime has read a network configuration; else what it says instead.
    ///
    /// # Errors
    /// The runtime does not answer, or is not ready.
    pub fn network_ready(&self) -> Result<()> {
        let answer: StatusAnswer = self.call("Status", Empty {})?;
        let conditions = answer.status.context("no status")?.conditions;
        let network = conditions.into_iter().find(|it| it.kind == "NetworkReady");
        let network = network.context("no condition NetworkReady")?;
        anyhow::ensure!(network.status, "{}", network.message);
        Ok(())
    }
}
