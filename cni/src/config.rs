//! The network configuration on stdin and the node file of the agent.
//!
//! Fields are taken out of the parsed JSON one by one, so that an error names the field; unknown
//! fields are ignored, as the specification asks.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use serde_json::{Map, Value};

use crate::env::valid_identifier;
use crate::error::Error;
use crate::names::{Mac, MacError};
use crate::pool::Pool;
use crate::ports::{self, PortMapping};
use crate::record::Hook;
use crate::result::{Dns, PrevResult};
use crate::version::SpecVersion;

/// Where the agent writes what it knows of its node.
pub const DEFAULT_NODE_FILE: &str = "/run/sluice/node.json";
/// Where address records are kept.
pub const DEFAULT_STATE_DIR: &str = "/var/lib/sluice";

/// Smallest MTU of an IPv4 interface (`ETH_MIN_MTU`).
const MIN_MTU: u64 = 68;
/// Smallest MTU of IPv6 (RFC 8200, section 5).
pub const MIN_MTU_V6: u32 = 1280;
/// Largest MTU of a veth (`ETH_MAX_MTU`).
const MAX_MTU: u64 = 65535;

/// One network configuration, checked.
#[derive(Clone, PartialEq, Debug)]
pub struct NetConf {
    /// `cniVersion`, the version of the result.
    pub version: SpecVersion,
    /// `name` of the network.
    pub name: String,
    /// `nodeFile`.
    pub node_file: PathBuf,
    /// `podCIDRs`; wins over the node file's.
    pub pod_cidrs: Option<Vec<IpNet>>,
    /// `exclude`: ranges or single addresses that no pod gets.
    pub exclude: Vec<IpNet>,
    /// `runtimeConfig.ips` (capability `ips`): addresses the pod shall have, at most one a family.
    pub requested: Vec<IpAddr>,
    /// `runtimeConfig.mac` (capability `mac`): the MAC address the pod's end shall have.
    pub requested_mac: Option<Mac>,
    /// `runtimeConfig.portMappings` (capability `portMappings`): ports of the node that the pod has.
    pub port_mappings: Vec<PortMapping>,
    /// `hook`: how the agent attaches its programs; [`Hook::DEFAULT`] where it says nothing. A pod
    /// whose bandwidth is limited (`runtimeConfig.bandwidth`) gets them by TCX, whatever it says.
    pub hook: Hook,
    /// `agentSocket`; without it the plugin works alone.
    pub agent_socket: Option<PathBuf>,
    /// `stateDir`.
    pub state_dir: PathBuf,
    /// `mtu` in bytes; absent or 0 means that of the node file, else of the default route's device.
    pub mtu: Option<u32>,
    /// `dns`, handed on in the result.
    pub dns: Dns,
    /// `prevResult` of an earlier plugin in the chain, or of ADD for CHECK.
    pub prev_result: Option<PrevResult>,
    /// `cni.dev/valid-attachments` of GC: container id and interface.
    pub valid_attachments: Option<Vec<(String, String)>>,
}

/// What an error can be reported with before the whole configuration is understood.
pub fn peek_version(object: &Map<String, Value>) -> Option<SpecVersion> {
    object.get("cniVersion")?.as_str()?.parse().ok()
}

/// Parses stdin into a JSON object.
pub fn parse_object(stdin: &[u8]) -> Result<Map<String, Value>, Error> {
    match serde_json::from_slice(stdin) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(other) => Err(Error::Decode(format!("it is {}, not an object", kind(&other)))),
        Err(e) => Err(Error::Decode(e.to_string())),
    }
}

impl NetConf {
    /// Checks a configuration; the error names the first field that is wrong.
    pub fn parse(object: &Map<String, Value>) -> Result<Self, Error> {
        let top = Fields { object, path: "" };
        let version = match top.string("cniVersion")? {
            Some(v) => v.parse()?,
            None => return Err(Error::config("cniVersion", "is missing")),
        };
        let name = top.string("name")?.ok_or_else(|| Error::config("name", "is missing"))?;
        if !valid_identifier(name) {
            return Err(Error::config(
                "name",
                format!(
                    "{name:?} must start with a letter or digit and go on with those, '_', '.' or \
                     '-'"
                ),
            ));
        }
        let mtu = match top.number("mtu")? {
            None | Some(0) => None,
            Some(n) => Some(check_mtu(n).map_err(|p| Error::config("mtu", p))?),
        };
        Ok(Self {
            version,
            name: name.to_owned(),
            node_file: top.path_or("nodeFile", DEFAULT_NODE_FILE)?,
            pod_cidrs: top.cidrs("podCIDRs")?.filter(|c| !c.is_empty()),
            exclude: excluded(&top)?,
            requested: requested_addresses(&top)?,
            requested_mac: requested_mac(&top)?,
            port_mappings: ports::parse(&top)?,
            hook: hook(&top)?,
            agent_socket: match top.string("agentSocket")? {
                None | Some("") => None,
                Some(path) => Some(absolute("agentSocket", path)?),
            },
            state_dir: top.path_or("stateDir", DEFAULT_STATE_DIR)?,
            mtu,
            dns: dns(&top)?,
            prev_result: top
                .object("prevResult")?
                .map(|_| PrevResult::parse(&object["prevResult"], version))
                .transpose()?,
            valid_attachments: valid_attachments(&top)?,
        })
    }

    /// The pool and the MTU this node gives to pods, from the configuration or the node file.
    ///
    /// The MTU is `None` where neither names one.
    pub fn node_settings(&self) -> Result<(Pool, Option<u32>), Error> {
        if let Some(cidrs) = &self.pod_cidrs {
            let mtu = match self.mtu {
                Some(mtu) => Some(mtu),
                None => read_node_file(&self.node_file)?.and_then(|n| n.mtu),
            };
            return Ok((Pool::new(cidrs)?.excluding(&self.exclude), mtu));
        }
        let node = read_node_file(&self.node_file)?.ok_or_else(|| Error::NodeFile {
            path: self.node_file.clone(),
            problem: "does not exist, and the configuration has no podCIDRs".into(),
        })?;
        Ok((Pool::new(&node.pod_cidrs)?.excluding(&self.exclude), self.mtu.or(node.mtu)))
    }
}

struct NodeFile {
    pod_cidrs: Vec<IpNet>,
    mtu: Option<u32>,
}

fn read_node_file(path: &Path) -> Result<Option<NodeFile>, Error> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::io("read node file", path, e)),
    };
    let problem = |e: Error| Error::NodeFile { path: path.to_owned(), problem: e.to_string() };
    let object = parse_object(&bytes).map_err(problem)?;
    let top = Fields { object: &object, path: "" };
    let mtu = match top.number("mtu").map_err(problem)? {
        None | Some(0) => None,
        Some(n) => Some(check_mtu(n).map_err(|p| problem(Error::config("mtu", p)))?),
    };
    let pod_cidrs = top.cidrs("podCIDRs").map_err(problem)?.unwrap_or_default();
    Ok(Some(NodeFile { pod_cidrs, mtu }))
}

fn check_mtu(n: u64) -> Result<u32, String> {
    match u32::try_from(n) {
        Ok(mtu) if (MIN_MTU..=MAX_MTU).contains(&n) => Ok(mtu),
        _ => Err(format!("{n} is not between {MIN_MTU} and {MAX_MTU}")),
    }
}

fn absolute(field: &str, path: &str) -> Result<PathBuf, Error> {
    if path.starts_with('/') {
        Ok(path.into())
    } else {
        Err(Error::config(field, format!("{path:?} is not an absolute path")))
    }
}

fn dns(top: &Fields<'_>) -> Result<Dns, Error> {
    let Some(object) = top.object("dns")? else { return Ok(Dns::default()) };
    let fields = Fields { object, path: "dns." };
    let nameservers = fields.strings("nameservers")?.unwrap_or_default();
    if let Some(bad) = nameservers.iter().find(|s| s.parse::<IpAddr>().is_err()) {
        return Err(Error::config("dns.nameservers", format!("{bad:?} is not an IP address")));
    }
    Ok(Dns {
        nameservers,
        domain: fields.string("domain")?.unwrap_or_default().to_owned(),
        search: fields.strings("search")?.unwrap_or_default(),
        options: fields.strings("options")?.unwrap_or_default(),
    })
}

fn excluded(top: &Fields<'_>) -> Result<Vec<IpNet>, Error> {
    let list = top.strings("exclude")?.unwrap_or_default();
    list.iter()
        .map(|s| {
            s.parse::<IpAddr>()
                .map(IpNet::from)
                .or_else(|_| s.parse::<IpNet>())
                .map(|net| net.trunc())
                .map_err(|_| {
                    Error::config("exclude", format!("{s:?} is no address and no address range"))
                })
        })
        .collect()
}

/// Each is an address, with or without a prefix length, which does not matter here.
fn requested_addresses(top: &Fields<'_>) -> Result<Vec<IpAddr>, Error> {
    const FIELD: &str = "runtimeConfig.ips";
    let Some(object) = top.object("runtimeConfig")? else { return Ok(Vec::new()) };
    let list = Fields { object, path: "runtimeConfig." }.strings("ips")?.unwrap_or_default();
    let mut addresses: Vec<IpAddr> = Vec::new();
    for s in &list {
        let address = s
            .parse::<IpAddr>()
            .or_else(|_| s.parse::<IpNet>().map(|net| net.addr()))
            .map_err(|_| Error::config(FIELD, format!("{s:?} is no IP address")))?;
        if addresses.iter().any(|a| a.is_ipv4() == address.is_ipv4()) {
            return Err(Error::UnsupportedField {
                field: FIELD.into(),
                problem: "has more than one address of a family".into(),
            });
        }
        addresses.push(address);
    }
    Ok(addresses)
}

fn requested_mac(top: &Fields<'_>) -> Result<Option<Mac>, Error> {
    const FIELD: &str = "runtimeConfig.mac";
    let Some(object) = top.object("runtimeConfig")? else { return Ok(None) };
    let fields = Fields { object, path: "runtimeConfig." };
    let Some(text) = fields.string("mac")?.filter(|s| !s.is_empty()) else { return Ok(None) };
    let mac: Mac = text.parse().map_err(|e: MacError| Error::config(FIELD, e.to_string()))?;
    if mac.is_usable() {
        Ok(Some(mac))
    } else {
        Err(Error::config(FIELD, format!("{mac} is not the address of one interface")))
    }
}

fn hook(top: &Fields<'_>) -> Result<Hook, Error> {
    let hook = match top.string("hook")? {
        None | Some("") => Hook::DEFAULT,
        Some(name) => Hook::parse(name).ok_or_else(|| {
            Error::config("hook", format!("{name:?} is neither \"tcx\" nor \"clsact\""))
        })?,
    };
    let Some(object) = top.object("runtimeConfig")? else { return Ok(hook) };
    // Another plugin of the chain limits it, by a queueing discipline that clsact keeps out.
    let limits = Fields { object, path: "runtimeConfig." }.object("bandwidth")?;
    Ok(if limits.is_some_and(|limits| !limits.is_empty()) { Hook::Tcx } else { hook })
}

fn valid_attachments(top: &Fields<'_>) -> Result<Option<Vec<(String, String)>>, Error> {
    const FIELD: &str = "cni.dev/valid-attachments";
    let Some(list) = top.array(FIELD)? else { return Ok(None) };
    list.iter()
        .map(|item| {
            let object = item.as_object().ok_or_else(|| wrong_kind(FIELD, "object", item))?;
            let fields = Fields { object, path: "cni.dev/valid-attachments." };
            let get = |name: &str| {
                fields.string(name)?.map(str::to_owned).ok_or_else(|| {
                    Error::config(format!("{FIELD}.{name}"), "is missing in an entry")
                })
            };
            Ok((get("containerID")?, get("ifname")?))
        })
        .collect::<Result<_, _>>()
        .map(Some)
}

/// Typed access to the fields of an object; `null` counts as absent.
pub(crate) struct Fields<'a> {
    pub(crate) object: &'a Map<String, Value>,
    /// What stands before the field's name in an error: empty, or a path that ends in a dot.
    pub(crate) path: &'a str,
}

impl<'a> Fields<'a> {
    fn get(&self, name: &str) -> Option<&'a Value> {
        self.object.get(name).filter(|v| !v.is_null())
    }

    fn typed<T>(
        &self,
        name: &str,
        expected: &str,
        as_type: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, Error> {
        self.get(name)
            .map(|v| {
                as_type(v).ok_or_else(|| wrong_kind(&format!("{}{name}", self.path), expected, v))
            })
            .transpose()
    }

    pub(crate) fn string(&self, name: &str) -> Result<Option<&'a str>, Error> {
        self.typed(name, "a string", Value::as_str)
    }

    pub(crate) fn number(&self, name: &str) -> Result<Option<u64>, Error> {
        self.typed(name, "a whole number", Value::as_u64)
    }

    pub(crate) fn object(&self, name: &str) -> Result<Option<&'a Map<String, Value>>, Error> {
        self.typed(name, "an object", Value::as_object)
    }

    pub(crate) fn array(&self, name: &str) -> Result<Option<&'a Vec<Value>>, Error> {
        self.typed(name, "a list", Value::as_array)
    }

    fn strings(&self, name: &str) -> Result<Option<Vec<String>>, Error> {
        self.typed(name, "a list of strings", |v| {
            v.as_array()?.iter().map(|s| s.as_str().map(str::to_owned)).collect()
        })
    }

    fn path_or(&self, name: &str, default: &str) -> Result<PathBuf, Error> {
        match self.string(name)? {
            None | Some("") => Ok(default.into()),
            Some(path) => absolute(name, path),
        }
    }

    fn cidrs(&self, name: &str) -> Result<Option<Vec<IpNet>>, Error> {
        let Some(list) = self.strings(name)? else { return Ok(None) };
        list.iter()
            .map(|s| {
                let net: IpNet = s
                    .parse()
                    .map_err(|_| Error::config(name, format!("{s:?} is no address range")))?;
                if net.trunc() == net {
                    Ok(net)
                } else {
                    Err(Error::config(
                        name,
                        format!("{s:?} has host bits; did you mean {}?", net.trunc()),
                    ))
                }
            })
            .collect::<Result<_, _>>()
            .map(Some)
    }
}

fn wrong_kind(field: &str, expected: &str, value: &Value) -> Error {
    Error::config(field, format!("must be {expected}, not {}", kind(value)))
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests;
