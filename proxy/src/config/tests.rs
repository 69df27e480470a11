use std::io::Write as _;

use super::*;

fn parse(argv: &[&str]) -> Result<Parsed, ArgsError> {
    sluiced_args(std::iter::once("sluiced").chain(argv.iter().copied()).map(OsString::from))
}

const HEAD: &str = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";

/// With a file of those fields, and flags.
fn with_file(fields: &str, argv: &[&str]) -> Result<Parsed, ArgsError> {
    let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
    write!(file, "{HEAD}{fields}").expect("written");
    let path = file.path().to_str().expect("a path in UTF-8").to_owned();
    parse(&[&["--config", &path], argv].concat())
}

fn args(fields: &str, argv: &[&str]) -> SluicedArgs {
    let parsed = with_file(fields, argv).expect("it is right");
    assert_eq!(parsed.warnings, [""; 0], "{fields}");
    parsed.args
}

#[test]
fn fields_say_what_flags_say() {
    type Shows = fn(&SluicedArgs) -> String;
    let rows: [(&str, Shows, &str); 9] = [
        ("hostnameOverride: node-7", |a| a.hostname_override.clone().unwrap_or_default(), "node-7"),
        (
            "nodePortAddresses: [primary, 10.0.0.0/8]",
            |a| a.nodeport_addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "),
            "primary 10.0.0.0/8",
        ),
        (
            "healthzBindAddress: 127.0.0.1",
            |a| a.healthz_bind_address.to_string(),
            "127.0.0.1:10256",
        ),
        ("metricsBindAddress: \"[::1]:9\"", |a| a.metrics_bind_address.to_string(), "[::1]:9"),
        (
            "conntrack: {tcpEstablishedTimeout: 1h30m}",
            |a| a.conntrack_tcp_timeout_established.to_string(),
            "5400",
        ),
        (
            "conntrack: {tcpCloseWaitTimeout: 10m0s}",
            |a| a.conntrack_tcp_timeout_close_wait.to_string(),
            "600",
        ),
        ("conntrack: {udpTimeout: 45s}", |a| a.conntrack_udp_timeout.to_string(), "45"),
        (
            "conntrack: {udpStreamTimeout: 250s}",
            |a| a.conntrack_udp_timeout_stream.to_string(),
            "250",
        ),
        ("logging: {verbosity: 4}", |a| a.log_level.clone(), "debug"),
    ];
    for (fields, shows, expected) in rows {
        assert_eq!(shows(&args(fields, &[])), expected, "{fields}");
    }
}

/// Contrary to kube-proxy, so that a flag that someone adds has an effect.
#[test]
fn flags_that_are_given_win_over_the_file() {
    let file = "hostnameOverride: from-file\nconntrack: {udpTimeout: 45s}\n";
    let both = args(file, &["--hostname-override", "from-flag"]);
    assert_eq!(both.hostname_override.as_deref(), Some("from-flag"));
    assert_eq!(both.conntrack_udp_timeout, 45);
    // Also one that has the default's value.
    assert_eq!(args(file, &["--conntrack-udp-timeout=30"]).conntrack_udp_timeout, 30);
}

/// As kubeadm writes it: everything is there and hardly anything says something.
#[test]
fn fields_that_say_nothing_change_nothing() {
    let file = "bindAddress: 0.0.0.0\nbindAddressHardFail: false\nclientConnection:\n  burst: 0\n  \
                acceptContentTypes: \"\"\n  qps: 0\nconfigSyncPeriod: 0s\nconntrack:\n  maxPerCore: \
                null\n  min: null\n  tcpEstablishedTimeout: null\n  udpTimeout: 0s\ndetectLocal:\n  \
                bridgeInterface: \"\"\nfeatureGates: {}\nhealthzBindAddress: \"\"\n\
                hostnameOverride: \"\"\niptables:\n  masqueradeAll: false\n  syncPeriod: 0s\n\
                ipvs:\n  excludeCIDRs: null\nlogging:\n  flushFrequency: null\n  verbosity: 0\n\
                metricsBindAddress: \"\"\nmode: \"\"\nnodePortAddresses: null\noomScoreAdj: null\n\
                winkernel: null\n";
    assert_eq!(format!("{:?}", SluicedArgs { config: None, ..args(file, &[]) }), {
        format!("{:?}", parse(&[]).expect("no flags").args)
    });
}

#[test]
fn fields_that_do_not_apply_are_named_once_each() {
    let file = "mode: ipvs\nipvs: {scheduler: rr, syncPeriod: 30s}\nhostnameOverride: n\n\
                featureGates: {A: true}\nbindAddress: 10.0.0.1\n";
    let parsed = with_file(file, &[]).expect("it is right");
    assert_eq!(parsed.args.hostname_override.as_deref(), Some("n"));
    let named = |field: &str| {
        let at = format!(": {field} does not apply");
        parsed.warnings.iter().filter(|line| line.contains(&at)).count()
    };
    for field in ["mode", "ipvs.scheduler", "ipvs.syncPeriod", "featureGates", "bindAddress"] {
        assert_eq!(named(field), 1, "{field}: {:?}", parsed.warnings);
    }
    assert_eq!(parsed.warnings.len(), 5, "{:?}", parsed.warnings);
}

#[test]
fn what_is_wrong_is_named_by_its_field() {
    for (fields, expected) in [
        ("hostnameOveride: n", "hostnameOveride: there is no such field"),
        ("conntrack: {udpTimout: 1s}", "conntrack.udpTimout: there is no such field"),
        ("conntrack: [1]", "conntrack: a list is not a mapping"),
        ("conntrack: {udpTimeout: 5 minutes}", "conntrack.udpTimeout: \"5 minutes\" is not a dura"),
        ("conntrack: {udpTimeout: 5}", "conntrack.udpTimeout: 5 is not a duration"),
        ("hostnameOverride: 7", "hostnameOverride: 7 is not a text"),
        ("nodePortAddresses: primary", "nodePortAddresses: \"primary\" is not a list"),
        ("nodePortAddresses: [primary, 1]", "nodePortAddresses: 1 is not a text"),
        ("nodePortAddresses: [eth0]", "nodePortAddresses: \"eth0\" is not what is expected"),
        ("healthzBindAddress: here", "healthzBindAddress: \"here\" is not what is expected"),
        ("iptables: {masqueradeAll: 1}", "iptables.masqueradeAll: 1 is not true or false"),
        ("ipvs: {strictARP: yes please}", "ipvs.strictARP: \"yes please\" is not true or false"),
        ("logging: {verbosity: high}", "logging.verbosity: \"high\" is not a number"),
        ("featureGates: [A]", "featureGates: a list is not a mapping"),
        ("a: {", "at line"),
    ] {
        let error = with_file(fields, &[]).expect_err(fields).to_string();
        assert!(error.starts_with("--config /") && error.contains(expected), "{fields}: {error}");
    }
    let other = "apiVersion: v1\nkind: ConfigMap\n";
    let error = Settings::parse(other).expect_err("another kind").to_string();
    assert!(error.starts_with("apiVersion: \"v1\" is not kubeproxy.config"), "{error}");
    let error = parse(&["--config", "/nonexistent"]).expect_err("no file").to_string();
    assert!(error.starts_with("--config /nonexistent: "), "{error}");
}

/// The arguments of a DaemonSet can be kept.
#[test]
fn flags_of_kube_proxy_that_mean_nothing_are_named_and_left_out() {
    let parsed = parse(&[
        "--proxy-mode=nftables",
        "--iptables-sync-period",
        "30s",
        "--profiling",
        "--hostname-override",
        "node-7",
        "-v",
        "4",
        "--conntrack-tcp-timeout-established=24h0m0s",
        "--ipvs-strict-arp=true",
    ])
    .expect("kube-proxy takes them");
    assert_eq!(parsed.args.hostname_override.as_deref(), Some("node-7"));
    assert_eq!(parsed.args.log_level, "debug");
    assert_eq!(parsed.args.conntrack_tcp_timeout_established, 86_400);
    let names: Vec<&str> =
        parsed.warnings.iter().filter_map(|line| line.split(' ').next()).collect();
    assert_eq!(
        names,
        ["--proxy-mode", "--iptables-sync-period", "--profiling", "--ipvs-strict-arp"]
    );
    assert!(parse(&["--iptables-sink-period", "30s"]).is_err(), "mistyped");
    let loud = parse(&["--v=9", "--log-level", "error"]).expect("both are flags");
    assert_eq!(loud.args.log_level, "error");
}
