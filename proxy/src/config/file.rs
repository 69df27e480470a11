//! `KubeProxyConfiguration`: its fields, and the flags that say the same.

use serde_norway::{Mapping, Value};

use super::duration::seconds;
use super::foreign::log_level_of;

/// A field that says what a flag would.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Setting {
    /// Its path, such as `conntrack.udpTimeout`.
    pub field: &'static str,
    /// The flag, without its dashes.
    pub flag: &'static str,
    /// The value as the flag takes it.
    pub value: String,
}

/// A field that says something, but nothing to Sluice.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Unused {
    /// Its path.
    pub field: &'static str,
    /// Why it does not apply.
    pub why: &'static str,
}

/// What a file says.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Settings {
    /// What applies.
    pub settings: Vec<Setting>,
    /// What does not.
    pub unused: Vec<Unused>,
}

/// What is wrong with a file.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ConfigError {
    /// It is no YAML or JSON.
    #[error("{0}")]
    Syntax(String),
    /// A field has another type, or a value that its flag does not take.
    #[error("{field}: {found} is not {expected}")]
    Value {
        /// The field's path.
        field: String,
        /// What stands there.
        found: String,
        /// What should.
        expected: String,
    },
    /// There is no such field.
    #[error("{field}: there is no such field in KubeProxyConfiguration")]
    Unknown {
        /// The field's path.
        field: String,
    },
}

impl ConfigError {
    /// A value that the flag refuses.
    pub(super) fn value(field: &str, found: &str, error: &clap::Error) -> Self {
        let text = error.to_string();
        let why = text.lines().next().unwrap_or_default().rsplit_once(": ");
        Self::Value {
            field: field.to_owned(),
            found: format!("{found:?}"),
            expected: format!(
                "what is expected ({})",
                why.map_or("see the flag's help", |(_, why)| why)
            ),
        }
    }
}

/// Types of fields.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Text,
    Bool,
    Number,
    /// In Go's notation.
    Duration,
    /// Of texts.
    List,
    /// Whatever its keys are.
    Map,
}

/// What becomes of a field.
#[derive(Clone, Copy, Debug)]
enum Use {
    /// It says what the flag says.
    Flag(&'static str),
    /// klog's verbosity.
    Verbosity,
    /// It does not apply.
    Unused(&'static str),
}

const RULES: &str = "does not apply: Sluice has no rules to write at intervals";
const IPVS: &str = "does not apply: Sluice has no IPVS mode";
const WINDOWS: &str = "does not apply: Sluice has no Windows mode";
const LOCAL: &str = "does not apply: Sluice knows the node's pods from its CNI plugin";
const NO_CLIENT: &str = "does not apply: the source is --source";
const CONNTRACK: &str =
    "does not apply: Sluice's conntrack table is its own (--map-size-conntrack)";
const LOGS: &str = "does not apply: --log-level says what is logged";

/// Every field of `kubeproxy.config.k8s.io/v1alpha1`.
const FIELDS: [(&str, Kind, Use); 61] = {
    use Kind::{Bool, Duration, List, Map, Number, Text};
    use Use::{Flag, Unused, Verbosity};
    [
        ("featureGates", Map, Unused("does not apply: Sluice has no feature gates")),
        ("clientConnection.kubeconfig", Text, Flag("kubeconfig")),
        ("clientConnection.acceptContentTypes", Text, Unused(NO_CLIENT)),
        ("clientConnection.contentType", Text, Unused(NO_CLIENT)),
        ("clientConnection.qps", Number, Unused(NO_CLIENT)),
        ("clientConnection.burst", Number, Unused(NO_CLIENT)),
        ("logging.format", Text, Unused(LOGS)),
        ("logging.flushFrequency", Text, Unused(LOGS)),
        ("logging.verbosity", Number, Verbosity),
        ("logging.vmodule", List, Unused(LOGS)),
        ("logging.options", Map, Unused(LOGS)),
        ("hostnameOverride", Text, Flag("hostname-override")),
        (
            "bindAddress",
            Text,
            Unused("does not apply: --nodeport-addresses says where NodePorts are"),
        ),
        ("healthzBindAddress", Text, Flag("healthz-bind-address")),
        ("metricsBindAddress", Text, Flag("metrics-bind-address")),
        (
            "bindAddressHardFail",
            Bool,
            Unused(
                "does not apply: a port that is taken is tried again and shown by proxyctl status",
            ),
        ),
        ("enableProfiling", Bool, Unused("does not apply: Sluice has no profiler")),
        ("showHiddenMetricsForVersion", Text, Unused("does not apply: Sluice hides no metrics")),
        ("mode", Text, Unused("does not apply: Sluice has one mode, eBPF")),
        ("iptables.masqueradeBit", Number, Unused("does not apply: Sluice marks no packets")),
        ("iptables.masqueradeAll", Bool, Flag("masquerade-all")),
        (
            "iptables.localhostNodePorts",
            Bool,
            Unused("does not apply: --nodeport-addresses has the word localhost"),
        ),
        ("iptables.syncPeriod", Duration, Unused(RULES)),
        ("iptables.minSyncPeriod", Duration, Unused(RULES)),
        ("ipvs.syncPeriod", Duration, Unused(IPVS)),
        ("ipvs.minSyncPeriod", Duration, Unused(IPVS)),
        ("ipvs.scheduler", Text, Unused(IPVS)),
        ("ipvs.excludeCIDRs", List, Unused(IPVS)),
        ("ipvs.strictARP", Bool, Unused(IPVS)),
        ("ipvs.tcpTimeout", Duration, Unused(IPVS)),
        ("ipvs.tcpFinTimeout", Duration, Unused(IPVS)),
        ("ipvs.udpTimeout", Duration, Unused(IPVS)),
        ("nftables.masqueradeBit", Number, Unused("does not apply: Sluice marks no packets")),
        ("nftables.masqueradeAll", Bool, Flag("masquerade-all")),
        ("nftables.syncPeriod", Duration, Unused(RULES)),
        ("nftables.minSyncPeriod", Duration, Unused(RULES)),
        ("winkernel.networkName", Text, Unused(WINDOWS)),
        ("winkernel.sourceVip", Text, Unused(WINDOWS)),
        ("winkernel.enableDSR", Bool, Unused(WINDOWS)),
        ("winkernel.rootHnsEndpointName", Text, Unused(WINDOWS)),
        ("winkernel.forwardHealthCheckVip", Bool, Unused(WINDOWS)),
        ("detectLocalMode", Text, Unused(LOCAL)),
        ("detectLocal.bridgeInterface", Text, Unused(LOCAL)),
        ("detectLocal.interfaceNamePrefix", Text, Unused(LOCAL)),
        ("clusterCIDR", Text, Flag("cluster-cidr")),
        ("nodePortAddresses", List, Flag("nodeport-addresses")),
        ("oomScoreAdj", Number, Unused("does not apply: the pod's or the unit's settings say it")),
        ("conntrack.maxPerCore", Number, Unused(CONNTRACK)),
        ("conntrack.min", Number, Unused(CONNTRACK)),
        ("conntrack.tcpEstablishedTimeout", Duration, Flag("conntrack-tcp-timeout-established")),
        ("conntrack.tcpCloseWaitTimeout", Duration, Flag("conntrack-tcp-timeout-close-wait")),
        (
            "conntrack.tcpBeLiberal",
            Bool,
            Unused("does not apply: Sluice does not look at sequence numbers"),
        ),
        ("conntrack.udpTimeout", Duration, Flag("conntrack-udp-timeout")),
        ("conntrack.udpStreamTimeout", Duration, Flag("conntrack-udp-timeout-stream")),
        ("configSyncPeriod", Duration, Unused("does not apply: the source tells of every change")),
        ("portRange", Text, Unused("does not apply: kube-proxy itself ignores it")),
        ("windowsRunAsService", Bool, Unused(WINDOWS)),
        // Of older versions.
        ("udpIdleTimeout", Duration, Unused("does not apply: kube-proxy itself ignores it")),
        ("resourceContainer", Text, Unused("does not apply: kube-proxy itself ignores it")),
        ("conntrack.max", Number, Unused(CONNTRACK)),
        ("iptables.masqueradeMark", Number, Unused("does not apply: Sluice marks no packets")),
    ]
};

const API_VERSION: &str = "kubeproxy.config.k8s.io/v1alpha1";
const KIND: &str = "KubeProxyConfiguration";

impl Settings {
    /// Reads a file's text, YAML or JSON.
    ///
    /// # Errors
    ///
    /// Names the field that is unknown or has another type.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let value: Value =
            serde_norway::from_str(text).map_err(|error| ConfigError::Syntax(error.to_string()))?;
        let mut settings = Self::default();
        let mapping = mapping(&value, "the file")?;
        for (field, expected) in [("apiVersion", API_VERSION), ("kind", KIND)] {
            let found = mapping.get(field).unwrap_or(&Value::Null);
            if found.as_str() != Some(expected) {
                return Err(wrong(field, found, expected));
            }
        }
        settings.walk(mapping, "")?;
        Ok(settings)
    }

    fn walk(&mut self, mapping: &Mapping, prefix: &str) -> Result<(), ConfigError> {
        for (key, value) in mapping {
            let key = key.as_str().ok_or_else(|| wrong(prefix, key, "the name of a field"))?;
            let path = format!("{prefix}{key}");
            if let Some((field, kind, become_of)) = FIELDS.iter().find(|(field, ..)| *field == path)
            {
                self.take(field, *kind, *become_of, value)?;
            } else if FIELDS.iter().any(|(field, ..)| field.starts_with(&format!("{path}."))) {
                if !value.is_null() {
                    self.walk(self::mapping(value, &path)?, &format!("{path}."))?;
                }
            } else if !(prefix.is_empty() && matches!(key, "apiVersion" | "kind")) {
                return Err(ConfigError::Unknown { field: path });
            }
        }
        Ok(())
    }

    fn take(
        &mut self,
        field: &'static str,
        kind: Kind,
        become_of: Use,
        value: &Value,
    ) -> Result<(), ConfigError> {
        let Some(text) = text_of(field, kind, value)? else { return Ok(()) };
        let (flag, value) = match become_of {
            Use::Flag(flag) => (flag, text),
            Use::Verbosity => {
                let number = text.parse().map_err(|_| wrong(field, value, "a whole number"))?;
                ("log-level", log_level_of(number).to_owned())
            }
            Use::Unused(why) => {
                self.unused.push(Unused { field, why });
                return Ok(());
            }
        };
        self.settings.push(Setting { field, flag, value });
        Ok(())
    }
}

/// What a field says, as a flag has it; `None` where it says nothing.
fn text_of(field: &str, kind: Kind, value: &Value) -> Result<Option<String>, ConfigError> {
    let text = match (kind, value) {
        (_, Value::Null) => return Ok(None),
        (Kind::Text, Value::String(text)) => text.trim().to_owned(),
        (Kind::Bool, Value::Bool(true)) => "true".to_owned(),
        (Kind::Bool, Value::Bool(false)) => String::new(),
        (Kind::Number, Value::Number(number)) => {
            if number.as_f64() == Some(0.0) {
                String::new()
            } else {
                number.to_string()
            }
        }
        (Kind::Duration, Value::String(text)) => match seconds(text) {
            Ok(0) => String::new(),
            Ok(seconds) => seconds.to_string(),
            Err(_) => return Err(wrong(field, value, "a duration such as 1h0m0s")),
        },
        (Kind::List, Value::Sequence(items)) => {
            let mut texts = Vec::new();
            for item in items {
                texts.push(item.as_str().ok_or_else(|| wrong(field, item, "a text"))?.trim());
            }
            texts.join(",")
        }
        (Kind::Map, Value::Mapping(map)) => {
            if map.is_empty() {
                String::new()
            } else {
                "map".to_owned()
            }
        }
        (Kind::Text, _) => return Err(wrong(field, value, "a text")),
        (Kind::Bool, _) => return Err(wrong(field, value, "true or false")),
        (Kind::Number, _) => return Err(wrong(field, value, "a number")),
        (Kind::Duration, _) => return Err(wrong(field, value, "a duration such as 1h0m0s")),
        (Kind::List, _) => return Err(wrong(field, value, "a list")),
        (Kind::Map, _) => return Err(wrong(field, value, "a mapping")),
    };
    // The wildcard is what kube-proxy's default for its address is.
    let default = field == "bindAddress" && matches!(text.as_str(), "0.0.0.0" | "::");
    Ok(Some(text).filter(|text| !text.is_empty() && !default))
}

fn mapping<'a>(value: &'a Value, field: &str) -> Result<&'a Mapping, ConfigError> {
    value.as_mapping().ok_or_else(|| wrong(field, value, "a mapping"))
}

fn wrong(field: &str, found: &Value, expected: &str) -> ConfigError {
    let found = match found {
        Value::Null => "nothing".to_owned(),
        Value::Sequence(_) => "a list".to_owned(),
        Value::Mapping(_) => "a mapping".to_owned(),
        value => serde_json::to_string(value).unwrap_or_default(),
    };
    ConfigError::Value { field: field.to_owned(), found, expected: expected.to_owned() }
}
