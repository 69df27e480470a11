//! From Deployments and StatefulSets to pods, as the cluster's own controllers would make them.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use serde_json::{Map, Value, json};

/// One YAML document of the manifests.
#[derive(Debug, Clone, PartialEq)]
pub struct Document {
    /// `kind`.
    pub kind: String,
    /// `metadata.namespace`, empty for cluster-scoped objects.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
    /// The whole of it.
    pub value: Value,
}

/// Reads all documents of a YAML text.
///
/// # Errors
/// It is not YAML, or a document has no kind or name.
pub fn documents(yaml: &str) -> Result<Vec<Document>> {
    serde_norway::Deserializer::from_str(yaml)
        .map(|document| {
            let value = Value::deserialize(document).context("manifest")?;
            let text = |pointer: &str| value.pointer(pointer).and_then(Value::as_str);
            Ok(Document {
                kind: text("/kind").context("a document without kind")?.to_owned(),
                namespace: text("/metadata/namespace").unwrap_or_default().to_owned(),
                name: text("/metadata/name").context("a document without name")?.to_owned(),
                value,
            })
        })
        .collect()
}

/// One pod to be: name, object without status, and what the kubelet needs of it.
#[derive(Debug, Clone, PartialEq)]
pub struct PodSpec {
    /// `metadata.namespace`.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
    /// The Pod object: metadata and spec.
    pub object: Value,
}

impl PodSpec {
    /// The container's command.
    ///
    /// # Errors
    /// There is none: the demo has no images to take one from.
    pub fn command(&self) -> Result<Vec<String>> {
        let words = self.object.pointer("/spec/containers/0/command").and_then(Value::as_array);
        let words: Vec<String> =
            words.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect();
        if words.is_empty() {
            bail!("pod {}/{} has no command", self.namespace, self.name);
        }
        Ok(words)
    }

    /// Port and path of the container's `readinessProbe.httpGet`, named ports resolved.
    pub fn probe(&self) -> Option<(u16, String)> {
        let container = self.object.pointer("/spec/containers/0")?;
        let get = container.pointer("/readinessProbe/httpGet")?;
        let path = get["path"].as_str().unwrap_or("/").to_owned();
        let port = match &get["port"] {
            Value::String(name) => {
                let ports = container["ports"].as_array()?;
                let port = ports.iter().find(|port| port["name"] == name.as_str())?;
                port["containerPort"].as_u64()?
            }
            number => number.as_u64()?,
        };
        Some((u16::try_from(port).ok()?, path))
    }

    /// Whether the pod's resolver is the cluster's DNS (`dnsPolicy: ClusterFirst`, the default).
    pub fn cluster_dns(&self) -> bool {
        self.object.pointer("/spec/dnsPolicy").is_none_or(|policy| policy == "ClusterFirst")
    }

    /// How long it has to end.
    pub fn grace_secs(&self) -> u64 {
        let grace = self.object.pointer("/spec/terminationGracePeriodSeconds");
        grace.and_then(Value::as_u64).unwrap_or(5)
    }
}

/// A Deployment, a StatefulSet or a DaemonSet.
#[derive(Debug, Clone)]
pub struct Workload {
    /// `metadata.namespace`.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
    /// `spec.replicas`; `None` for a DaemonSet, which has one on every node.
    pub replicas: Option<usize>,
    template: Value,
    /// Of a StatefulSet: its pods have names that stay, and host names below this Service.
    service: Option<String>,
}

impl Workload {
    /// From a document, if it is one of these.
    pub fn new(document: &Document) -> Option<Self> {
        let spec = &document.value["spec"];
        let service = match document.kind.as_str() {
            "Deployment" | "DaemonSet" => None,
            "StatefulSet" => Some(spec["serviceName"].as_str().unwrap_or_default().to_owned()),
            _ => return None,
        };
        Some(Self {
            namespace: document.namespace.clone(),
            name: document.name.clone(),
            replicas: (document.kind != "DaemonSet")
                .then(|| usize::try_from(spec["replicas"].as_u64().unwrap_or(1)).unwrap_or(1)),
            template: spec["template"].clone(),
            service,
        })
    }

    /// Replica number `index`, to run on `node`. `labels` replace those of the template that have
    /// the same key, as an edit of the template would.
    pub fn pod(&self, index: usize, node: &str, labels: &BTreeMap<&str, &str>) -> PodSpec {
        let name = format!("{}-{index}", self.name);
        let mut metadata = self.template["metadata"].clone();
        if !metadata.is_object() {
            metadata = Value::Object(Map::new());
        }
        metadata["name"] = json!(name);
        metadata["namespace"] = json!(self.namespace);
        for (key, value) in labels {
            metadata["labels"][*key] = json!(value);
        }
        let mut spec = self.template["spec"].clone();
        spec["nodeName"] = json!(node);
        if let Some(service) = &self.service {
            spec["hostname"] = json!(name);
            spec["subdomain"] = json!(service);
        }
        PodSpec {
            namespace: self.namespace.clone(),
            name,
            object: json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shop_becomes_the_pods_that_controllers_would_make() {
        let documents = documents(crate::demo::MANIFESTS[1].1).unwrap();
        let workloads: Vec<_> = documents.iter().filter_map(Workload::new).collect();
        let names: Vec<_> =
            workloads.iter().map(|workload| (workload.name.as_str(), workload.replicas)).collect();
        let some = [("web", 4), ("catalog", 2), ("db", 2), ("client", 2)];
        assert_eq!(names, some.map(|(name, count)| (name, Some(count))));
        let db = workloads[2].pod(1, "node-b", &BTreeMap::new());
        assert_eq!(db.name, "db-1");
        assert_eq!(db.object["spec"]["hostname"], "db-1");
        assert_eq!(db.object["spec"]["subdomain"], "db");
        assert_eq!(db.probe(), Some((5432, "/".to_owned())));
        let web = workloads[0].pod(7, "node-a", &[("version", "v2")].into());
        assert_eq!(web.object["metadata"]["labels"]["version"], "v2");
        assert_eq!(web.object["metadata"]["labels"]["app"], "web");
        assert_eq!(web.command().unwrap()[0], "testapp");
        assert!(web.cluster_dns());
    }
}
