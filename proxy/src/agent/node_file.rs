//! `node.json`: what the CNI plugin needs to know of the node.

use std::fs;
use std::io::{self, Write};
use std::path::Path;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// Contents of `node.json`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct NodeFile {
    /// Name of the node.
    pub node: String,
    /// `spec.podCIDRs` of its Node object.
    #[serde(rename = "podCIDRs")]
    pub pod_cidrs: Vec<IpNet>,
    /// MTU of pods in bytes; absent: that of the interface with the default route.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
}

impl NodeFile {
    /// Writes the file so that a reader sees the old one or the new one, whole.
    ///
    /// # Errors
    ///
    /// Those of the file system.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        let mut text = serde_json::to_vec(self)?;
        text.push(b'\n');
        let temporary = path.with_extension("json.tmp");
        let mut file = fs::File::create(&temporary)?;
        file.write_all(&text)?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_what_the_plugin_reads() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("node.json");
        let file = NodeFile {
            node: "a".to_owned(),
            pod_cidrs: vec!["10.244.1.0/24".parse().expect("a CIDR")],
            mtu: Some(1400),
        };
        file.write(&path).expect("written");
        assert_eq!(
            fs::read_to_string(&path).expect("read"),
            "{\"node\":\"a\",\"podCIDRs\":[\"10.244.1.0/24\"],\"mtu\":1400}\n"
        );
    }
}
