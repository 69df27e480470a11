//! `runtimeConfig.portMappings`: ports of the node that lead to the pod (capability `portMappings`
//! of the CNI conventions; `hostPort` of a Kubernetes container). Pure.
//!
//! The plugin checks them and writes them into the pod's record; the agent serves them.

use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::config::Fields;
use crate::error::Error;

/// Name of the field, for errors.
const FIELD: &str = "runtimeConfig.portMappings";

/// A protocol that has ports.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Protocol {
    /// From its name in any case, as runtimes differ in it.
    fn parse(name: &str) -> Option<Self> {
        match name.to_ascii_lowercase().as_str() {
            "tcp" => Some(Self::Tcp),
            "udp" => Some(Self::Udp),
            "sctp" => Some(Self::Sctp),
            _ => None,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        })
    }
}

/// One port of the node that leads to a port of the pod.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PortMapping {
    /// The node's port, never 0.
    pub host_port: u16,
    /// The pod's port, never 0.
    pub container_port: u16,
    /// The protocol of both.
    pub protocol: Protocol,
    /// The one address of the node that has the port. None or an unspecified address: all of them,
    /// of both families or of that one.
    #[serde(rename = "hostIP", default, skip_serializing_if = "Option::is_none")]
    pub host_ip: Option<IpAddr>,
}

impl fmt::Display for PortMapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host_ip {
            Some(IpAddr::V6(ip)) => write!(f, "[{ip}]:")?,
            Some(ip) => write!(f, "{ip}:")?,
            None => {}
        }
        write!(f, "{}/{}", self.host_port, self.protocol)
    }
}

/// Reads the mappings out of a network configuration; empty where it has none.
pub(crate) fn parse(top: &Fields<'_>) -> Result<Vec<PortMapping>, Error> {
    let Some(object) = top.object("runtimeConfig")? else { return Ok(Vec::new()) };
    let runtime = Fields { object, path: "runtimeConfig." };
    let mut mappings: Vec<PortMapping> = Vec::new();
    for (index, item) in runtime.array("portMappings")?.into_iter().flatten().enumerate() {
        let path = format!("{FIELD}[{index}]");
        let Some(object) = item.as_object() else {
            return Err(Error::config(path, "must be an object"));
        };
        let object = canonical(object);
        let fields = Fields { object: &object, path: &format!("{path}.") };
        let mapping = PortMapping {
            host_port: port(&fields, "hostPort")?,
            container_port: port(&fields, "containerPort")?,
            protocol: protocol(&fields)?,
            host_ip: host_ip(&fields)?,
        };
        let same = |other: &PortMapping| {
            (other.host_port, other.protocol, other.host_ip)
                == (mapping.host_port, mapping.protocol, mapping.host_ip)
        };
        if let Some(first) = mappings.iter().position(same) {
            return Err(Error::config(path, format!("{mapping} stands at [{first}] already")));
        }
        mappings.push(mapping);
    }
    Ok(mappings)
}

/// The same with the names of the fields as the conventions spell them: containerd sends `HostPort`,
/// and the reference plugin, being written in Go, reads names in any case.
fn canonical(object: &Map<String, Value>) -> Map<String, Value> {
    const NAMES: [&str; 4] = ["hostPort", "containerPort", "protocol", "hostIP"];
    let named = object.iter().filter_map(|(key, value)| {
        let name = NAMES.iter().find(|name| name.eq_ignore_ascii_case(key))?;
        Some(((*name).to_owned(), value.clone()))
    });
    named.collect()
}

fn port(fields: &Fields<'_>, name: &str) -> Result<u16, Error> {
    let field = || format!("{}{name}", fields.path);
    match fields.number(name)? {
        None => Err(Error::config(field(), "is missing")),
        Some(number) => match u16::try_from(number) {
            Ok(port) if port != 0 => Ok(port),
            _ => Err(Error::config(field(), format!("{number} is no port: 1 to 65535"))),
        },
    }
}

/// TCP where none is named, as Kubernetes has it.
fn protocol(fields: &Fields<'_>) -> Result<Protocol, Error> {
    match fields.string("protocol")? {
        None | Some("") => Ok(Protocol::Tcp),
        Some(name) => Protocol::parse(name).ok_or_else(|| {
            Error::config(
                format!("{}protocol", fields.path),
                format!("{name:?} is none of tcp, udp, sctp"),
            )
        }),
    }
}

fn host_ip(fields: &Fields<'_>) -> Result<Option<IpAddr>, Error> {
    match fields.string("hostIP")? {
        None | Some("") => Ok(None),
        Some(text) => text.parse().map(Some).map_err(|_| {
            Error::config(format!("{}hostIP", fields.path), format!("{text:?} is no IP address"))
        }),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(mappings: &Value) -> Result<Vec<PortMapping>, Error> {
        let conf = json!({"runtimeConfig": {"portMappings": mappings}});
        parse(&Fields { object: conf.as_object().expect("an object"), path: "" })
    }

    /// S37: the conventions' shape, with what runtimes leave out or leave empty.
    #[test]
    fn mappings_are_read_as_runtimes_write_them() {
        let read = read(&json!([
            {"hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": ""},
            {"hostPort": 8080, "containerPort": 53, "protocol": "UDP"},
            {"hostPort": 8080, "containerPort": 81, "hostIP": "127.0.0.1"},
            {"HostPort": 9, "ContainerPort": 9, "Protocol": "SCTP", "HostIP": "::"},
        ]))
        .expect("valid");
        let texts: Vec<String> = read.iter().map(ToString::to_string).collect();
        assert_eq!(texts, ["8080/tcp", "8080/udp", "127.0.0.1:8080/tcp", "[::]:9/sctp"]);
        assert_eq!(read[1].container_port, 53);
        let record = serde_json::to_value(&read[2]).expect("plain data");
        let expected = json!({
            "hostPort": 8080, "containerPort": 81, "protocol": "tcp", "hostIP": "127.0.0.1"
        });
        assert_eq!(record, expected);
    }

    /// S37: nonsense is refused, and the error says where.
    #[test]
    fn nonsense_is_refused_by_its_field() {
        let cases = [
            (json!(7), "runtimeConfig.portMappings"),
            (json!([7]), "portMappings[0]"),
            (json!([{"containerPort": 80}]), "portMappings[0].hostPort"),
            (json!([{"hostPort": 0, "containerPort": 80}]), "portMappings[0].hostPort"),
            (json!([{"hostPort": 65536, "containerPort": 80}]), "portMappings[0].hostPort"),
            (json!([{"hostPort": -1, "containerPort": 80}]), "portMappings[0].hostPort"),
            (json!([{"hostPort": "80", "containerPort": 80}]), "portMappings[0].hostPort"),
            (json!([{"hostPort": 80, "containerPort": 0}]), "portMappings[0].containerPort"),
            (
                json!([{"hostPort": 80, "containerPort": 80, "protocol": "icmp"}]),
                "portMappings[0].protocol",
            ),
            (
                json!([{"hostPort": 80, "containerPort": 80, "hostIP": "eth0"}]),
                "portMappings[0].hostIP",
            ),
            (
                json!([{"hostPort": 80, "containerPort": 80}, {"hostPort": 80, "containerPort": 81}]),
                "portMappings[1]",
            ),
        ];
        for (mappings, named) in cases {
            let error = read(&mappings).expect_err(named);
            assert_eq!(error.code(), 7, "{mappings}: {error}");
            assert!(error.to_string().contains(named), "{mappings}: {error}");
        }
    }
}
