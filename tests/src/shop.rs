//! A small cluster that most end-to-end tests want: two nodes, a web service with a pod on each, and a client.

use anyhow::Result;

use crate::cluster::Cluster;
use crate::manifests::{Service, namespace};
use crate::pod::Pod;
use crate::process::Process;

/// The web service's IPv4 address and port, TCP and UDP.
pub const WEB_V4: &str = "10.96.0.10:80";
/// The web service's IPv6 address and port, TCP and UDP.
pub const WEB_V6: &str = "[fd00:96::10]:80";
/// The port that the web pods listen on.
pub const TARGET: u16 = 8080;

/// Two nodes with agents; `web-0` on `node-a`, `web-1` on `node-b`, `client` on `node-a`; the dual-stack Service
/// `shop/web` with TCP and UDP on one port, served on both nodes.
#[derive(Debug)]
pub struct Shop {
    /// The servers' processes, in the order of [`Shop::web`].
    pub servers: Vec<Process>,
    /// The pods behind the service.
    pub web: Vec<Pod>,
    /// A pod that only asks.
    pub client: Pod,
    /// The nodes.
    pub cluster: Cluster,
}

impl Shop {
    /// Makes it and waits until both nodes serve the Service in both families.
    ///
    /// # Errors
    /// A part does not come up.
    pub fn open() -> Result<Self> {
        let mut cluster = Cluster::new(2)?;
        cluster.apply("namespace-shop", &namespace("shop"))?;
        cluster.start_agents()?;
        let web = vec![
            cluster.node(0).add_pod("shop", "web-0")?,
            cluster.node(1).add_pod("shop", "web-1")?,
        ];
        let servers = web.iter().map(|pod| pod.serve(TARGET)).collect::<Result<Vec<_>>>()?;
        let client = cluster.node(0).add_pod("shop", "client")?;
        let this = Self { servers, web, client, cluster };
        let pods: Vec<&Pod> = this.web.iter().collect();
        this.cluster.apply("web", &web_service().with_endpoints(&pods))?;
        for node in 0..2 {
            this.cluster.wait_served(node, WEB_V4)?;
            this.cluster.wait_served(node, WEB_V6)?;
        }
        Ok(this)
    }
}

/// The Service `shop/web`.
pub fn web_service() -> Service {
    Service::new("shop", "web")
        .cluster_ip("10.96.0.10")
        .cluster_ip("fd00:96::10")
        .tcp("http", 80, TARGET)
        .udp("echo", 80, TARGET)
}
