//! kube-proxy's flags that mean nothing here.

use std::ffi::OsString;

/// Flags that take a value.
const WITH_VALUE: [&str; 41] = [
    "bind-address",
    "cluster-cidr",
    "config-sync-period",
    "conntrack-max-per-core",
    "conntrack-min",
    "detect-local-mode",
    "feature-gates",
    "healthz-port",
    "iptables-masquerade-bit",
    "iptables-min-sync-period",
    "iptables-sync-period",
    "ipvs-exclude-cidrs",
    "ipvs-min-sync-period",
    "ipvs-scheduler",
    "ipvs-sync-period",
    "ipvs-tcp-timeout",
    "ipvs-tcpfin-timeout",
    "ipvs-udp-timeout",
    "kube-api-burst",
    "kube-api-content-type",
    "kube-api-qps",
    "kubeconfig",
    "log-flush-frequency",
    "log-json-info-buffer-size",
    "log-text-info-buffer-size",
    "logging-format",
    "master",
    "metrics-port",
    "network-name",
    "nftables-masquerade-bit",
    "nftables-min-sync-period",
    "nftables-sync-period",
    "oom-score-adj",
    "pod-bridge-interface",
    "pod-interface-name-prefix",
    "proxy-mode",
    "proxy-port-range",
    "root-hnsendpoint-name",
    "show-hidden-metrics-for-version",
    "vmodule",
    "write-config-to",
];

/// Flags that are on or off; a value is given with `=` only.
const SWITCHES: [&str; 14] = [
    "bind-address-hard-fail",
    "cleanup-ipvs",
    "conntrack-tcp-be-liberal",
    "enable-dsr",
    "forward-healthcheck-vip",
    "init-only",
    "ipvs-strict-arp",
    "iptables-localhost-nodeports",
    "log-json-split-stream",
    "log-text-split-stream",
    "logtostderr",
    "masquerade-all",
    "profiling",
    "windows-service",
];

/// Takes kube-proxy's flags that mean nothing here out of a command line, with a warning for each, and
/// translates `-v` and `--v`. `own` tells which flags are `sluiced`'s.
pub(super) fn split(
    argv: impl IntoIterator<Item = OsString>,
    own: impl Fn(&str) -> bool,
) -> (Vec<OsString>, Vec<String>) {
    let mut kept = Vec::new();
    let mut warnings = Vec::new();
    let mut verbosity = None;
    let mut argv = argv.into_iter();
    kept.extend(argv.next());
    while let Some(word) = argv.next() {
        let text = word.to_str().unwrap_or_default();
        let (name, value) = match text.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (text, None),
        };
        if matches!(name, "-v" | "--v") {
            let value = value.or_else(|| argv.next().and_then(|word| word.into_string().ok()));
            verbosity = value;
            continue;
        }
        let Some(name) = name.strip_prefix("--").filter(|name| !own(name)) else {
            kept.push(word);
            continue;
        };
        if WITH_VALUE.contains(&name) {
            if value.is_none() {
                argv.next();
            }
        } else if !SWITCHES.contains(&name) {
            kept.push(word);
            continue;
        }
        warnings.push(format!("--{name} is kube-proxy's and has no meaning for Sluice"));
    }
    let log_level = |word: &OsString| {
        word.to_str().is_some_and(|text| text == "--log-level" || text.starts_with("--log-level="))
    };
    if let Some(verbosity) = verbosity
        && !kept.iter().any(log_level)
    {
        match verbosity.parse() {
            Ok(number) => kept.push(format!("--log-level={}", log_level_of(number)).into()),
            Err(_) => warnings.push(format!("-v {verbosity}: not a number; --log-level says more")),
        }
    }
    (kept, warnings)
}

/// What klog's verbosity is called here: up to 3 is what an operator wants to see, from 4 on what a
/// developer does.
pub(super) fn log_level_of(verbosity: i64) -> &'static str {
    match verbosity {
        ..=3 => "info",
        4..=5 => "debug",
        6.. => "trace",
    }
}
