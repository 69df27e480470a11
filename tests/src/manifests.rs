//! Kubernetes objects as YAML, for [`crate::cluster::Cluster::apply`].

use std::fmt::Write as _;
use std::net::IpAddr;

use crate::pod::Pod;

/// A Namespace object.
pub fn namespace(name: &str) -> String {
    format!("apiVersion: v1\nkind: Namespace\nmetadata:\n  name: {name}\n")
}

/// A Service with one or more ports, and the EndpointSlices that name its pods.
#[derive(Debug, Clone)]
pub struct Service {
    namespace: String,
    name: String,
    kind: String,
    cluster_ips: Vec<String>,
    ports: Vec<Port>,
    spec: Vec<String>,
    ingress: Vec<String>,
}

#[derive(Debug, Clone)]
struct Port {
    name: String,
    protocol: &'static str,
    port: u16,
    target: u16,
    node_port: Option<u16>,
}

impl Service {
    /// A ClusterIP Service without addresses and ports yet.
    pub fn new(namespace: &str, name: &str) -> Self {
        Self {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            kind: "ClusterIP".to_owned(),
            cluster_ips: Vec::new(),
            ports: Vec::new(),
            spec: Vec::new(),
            ingress: Vec::new(),
        }
    }

    /// Sets `spec.type`.
    #[must_use]
    pub fn kind(mut self, kind: &str) -> Self {
        kind.clone_into(&mut self.kind);
        self
    }

    /// Gives every port that node port; they must differ in their protocols.
    #[must_use]
    pub fn node_port(mut self, number: u16) -> Self {
        for port in &mut self.ports {
            port.node_port = Some(number);
        }
        self
    }

    /// Adds a line to `spec`, for example `internalTrafficPolicy: Local`.
    #[must_use]
    pub fn spec(mut self, line: &str) -> Self {
        self.spec.push(line.to_owned());
        self
    }

    /// Adds an entry to `status.loadBalancer.ingress`, with that `ipMode`.
    #[must_use]
    pub fn ingress(mut self, address: &str, mode: &str) -> Self {
        self.ingress.push(format!("{{ip: \"{address}\", ipMode: {mode}}}"));
        self
    }

    /// Adds a cluster IP, or `None` as the only one for a headless Service.
    #[must_use]
    pub fn cluster_ip(mut self, address: &str) -> Self {
        self.cluster_ips.push(address.to_owned());
        self
    }

    /// Adds a TCP port that leads to the pods' `target`.
    #[must_use]
    pub fn tcp(self, name: &str, port: u16, target: u16) -> Self {
        self.port(name, "TCP", port, target)
    }

    /// Adds a UDP port that leads to the pods' `target`.
    #[must_use]
    pub fn udp(self, name: &str, port: u16, target: u16) -> Self {
        self.port(name, "UDP", port, target)
    }

    fn port(mut self, name: &str, protocol: &'static str, port: u16, target: u16) -> Self {
        let name = name.to_owned();
        self.ports.push(Port { name, protocol, port, target, node_port: None });
        self
    }

    /// The Service object alone.
    pub fn yaml(&self) -> String {
        let mut yaml = format!(
            "apiVersion: v1\nkind: Service\nmetadata:\n  name: {}\n  namespace: {}\nspec:\n  type: {}\n",
            self.name, self.namespace, self.kind
        );
        // Writing to a String cannot fail.
        if let Some(first) = self.cluster_ips.first() {
            let _ = writeln!(yaml, "  clusterIP: \"{first}\"\n  clusterIPs:");
            for address in &self.cluster_ips {
                let _ = writeln!(yaml, "  - \"{address}\"");
            }
            let families: Vec<_> = self
                .cluster_ips
                .iter()
                .map(|ip| if ip.contains(':') { "IPv6" } else { "IPv4" })
                .collect();
            let _ = writeln!(yaml, "  ipFamilies: [{}]", families.join(", "));
        }
        for line in &self.spec {
            let _ = writeln!(yaml, "  {line}");
        }
        yaml.push_str("  ports:\n");
        for port in &self.ports {
            let _ = writeln!(
                yaml,
                "  - name: {}\n    protocol: {}\n    port: {}\n    targetPort: {}",
                port.name, port.protocol, port.port, port.target
            );
            if let Some(number) = port.node_port {
                let _ = writeln!(yaml, "    nodePort: {number}");
            }
        }
        if !self.ingress.is_empty() {
            let entries = self.ingress.join(", ");
            let _ = writeln!(yaml, "status:\n  loadBalancer:\n    ingress: [{entries}]");
        }
        yaml
    }

    /// The Service and an EndpointSlice per family with all addresses of `pods`, ready; one file.
    pub fn with_endpoints(&self, pods: &[&Pod]) -> String {
        format!("{}---\n{}", self.yaml(), self.slices(pods))
    }

    /// EndpointSlices, IPv4 and IPv6, with all addresses of `pods`, ready.
    pub fn slices(&self, pods: &[&Pod]) -> String {
        self.slices_of(&pods.iter().map(|pod| (*pod, true)).collect::<Vec<_>>())
    }

    /// EndpointSlices with pods that are ready (`true`) or terminating and still serving (`false`).
    pub fn slices_of(&self, pods: &[(&Pod, bool)]) -> String {
        let endpoints: Vec<(IpAddr, &str, &str, bool)> = pods
            .iter()
            .flat_map(|(pod, ready)| {
                pod.addresses().iter().map(|address| (*address, pod.name(), pod.node(), *ready))
            })
            .collect();
        ["IPv4", "IPv6"].map(|family| self.slice(family, &endpoints)).join("---\n")
    }

    fn slice(&self, family: &str, endpoints: &[(IpAddr, &str, &str, bool)]) -> String {
        let mut yaml = format!(
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: {0}-{1}\n  namespace: {2}\n  \
             labels:\n    kubernetes.io/service-name: {0}\naddressType: {family}\nports:\n",
            self.name,
            family.to_lowercase(),
            self.namespace
        );
        // Writing to a String cannot fail.
        for port in &self.ports {
            let _ = writeln!(
                yaml,
                "- name: {}\n  protocol: {}\n  port: {}",
                port.name, port.protocol, port.target
            );
        }
        let of_family: Vec<_> = endpoints
            .iter()
            .filter(|(address, ..)| address.is_ipv6() == (family == "IPv6"))
            .collect();
        if of_family.is_empty() {
            yaml.push_str("endpoints: []\n");
        } else {
            yaml.push_str("endpoints:\n");
        }
        for (address, pod, node, ready) in of_family {
            let _ = writeln!(
                yaml,
                "- addresses: [\"{address}\"]\n  nodeName: {node}\n  targetRef:\n    kind: Pod\n    name: {pod}\n    \
                 namespace: {}\n  conditions:\n    ready: {ready}\n    serving: true\n    terminating: {}",
                self.namespace, !ready
            );
        }
        yaml
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_are_yaml_with_what_they_were_made_from() {
        let service = Service::new("shop", "web")
            .cluster_ip("10.96.0.10")
            .cluster_ip("fd00:96::10")
            .tcp("http", 80, 8080)
            .udp("echo", 80, 8081);
        let value: serde_json::Value = serde_norway::from_str(&service.yaml()).unwrap();
        assert_eq!(value["spec"]["clusterIPs"][1], "fd00:96::10");
        assert_eq!(value["spec"]["ports"][1]["protocol"], "UDP");
        let endpoints = [("10.244.1.2".parse().unwrap(), "web-0", "node-a", true)];
        let slice: serde_json::Value =
            serde_norway::from_str(&service.slice("IPv4", &endpoints)).unwrap();
        assert_eq!(slice["endpoints"][0]["addresses"][0], "10.244.1.2");
        assert_eq!(slice["ports"][1]["port"], 8081);
        let slice: serde_json::Value =
            serde_norway::from_str(&service.slice("IPv6", &endpoints)).unwrap();
        assert_eq!(slice["endpoints"].as_array().map(Vec::len), Some(0));
    }
}
