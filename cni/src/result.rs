//! The success result of ADD, in the shape of each version of the specification.

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::error::Error;
use crate::record::Record;
use crate::version::SpecVersion;
use crate::wiring::gateway;

/// `dns` of a configuration and of a result.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Dns {
    /// Resolvers, as IP addresses.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub nameservers: Vec<String>,
    /// Local domain.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub domain: String,
    /// Search list.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub search: Vec<String>,
    /// Resolver options.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<String>,
}

/// An interface that an earlier plugin, or an earlier ADD, reported.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
pub struct PrevInterface {
    /// Its name.
    pub name: String,
    /// Its MAC address; empty where the plugin gave none.
    #[serde(default)]
    pub mac: String,
    /// Its network namespace; empty for the node's own.
    #[serde(default)]
    pub sandbox: String,
}

/// `prevResult`: kept as it came, with the parts CHECK compares.
#[derive(Clone, PartialEq, Debug)]
pub struct PrevResult {
    raw: Value,
    /// `interfaces`.
    pub interfaces: Vec<PrevInterface>,
    /// `ips[].address`.
    pub addresses: Vec<IpNet>,
}

impl PrevResult {
    /// Checks the parts that are used. `version` is the configuration's, which the result shares.
    pub fn parse(raw: &Value, version: SpecVersion) -> Result<Self, Error> {
        #[derive(Deserialize)]
        struct Ip {
            address: IpNet,
        }
        if let Some(has) = raw.get("cniVersion").and_then(Value::as_str)
            && has != version.as_str()
        {
            return Err(Error::config(
                "prevResult.cniVersion",
                format!("{has:?} differs from the configuration's {version}"),
            ));
        }
        let interfaces = list::<PrevInterface>(raw, "interfaces")?;
        let addresses = list::<Ip>(raw, "ips")?.into_iter().map(|ip| ip.address).collect();
        list::<Value>(raw, "routes")?;
        Ok(Self { raw: raw.clone(), interfaces, addresses })
    }
}

fn list<T: serde::de::DeserializeOwned>(raw: &Value, field: &str) -> Result<Vec<T>, Error> {
    match raw.get(field) {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(value) => serde_json::from_value(value.clone())
            .map_err(|e| Error::config(format!("prevResult.{field}"), e.to_string())),
    }
}

/// The result of an ADD: what `prev` holds, then this attachment.
pub fn success(
    record: &Record,
    dns: &Dns,
    prev: Option<&PrevResult>,
    version: SpecVersion,
) -> Value {
    let empty = json!({});
    let prev = prev.map_or(&empty, |p| &p.raw);
    let earlier =
        |field: &str| prev.get(field).and_then(Value::as_array).cloned().unwrap_or_default();

    let mut interfaces = earlier("interfaces");
    let pod_index = interfaces.len() + 1;
    let mut ends = [
        json!({"name": record.host_interface, "mac": record.host_mac}),
        json!({"name": record.interface, "mac": record.mac, "sandbox": record.netns}),
    ];
    if version >= SpecVersion::V1_1_0 {
        ends.iter_mut().for_each(|end| end["mtu"] = record.mtu.into());
    }
    interfaces.extend(ends);

    let (mut ips, mut routes) = (earlier("ips"), earlier("routes"));
    for &address in &record.addresses {
        let mut ip = json!({
            "address": IpNet::from(address).to_string(),
            "gateway": gateway(address),
            "interface": pod_index,
        });
        if version < SpecVersion::V1_0_0 {
            ip["version"] = if address.is_ipv4() { "4" } else { "6" }.into();
        }
        ips.push(ip);
        let everything = if address.is_ipv4() { "0.0.0.0/0" } else { "::/0" };
        routes.push(json!({"dst": everything, "gw": gateway(address)}));
    }

    // The configuration's resolvers win; those of an earlier plugin stand where it has none.
    let dns = if *dns == Dns::default() {
        prev.get("dns").cloned().unwrap_or_else(|| json!({}))
    } else {
        json!(dns)
    };
    json!({
        "cniVersion": version.as_str(),
        "interfaces": interfaces,
        "ips": ips,
        "routes": routes,
        "dns": dns,
    })
}

/// The answer to VERSION.
pub fn versions(asked: Option<SpecVersion>) -> Value {
    json!({
        "cniVersion": asked.unwrap_or(SpecVersion::NEWEST).as_str(),
        "supportedVersions": SpecVersion::ALL.map(SpecVersion::as_str),
    })
}

#[cfg(test)]
mod tests;
