use serde_json::json;

use super::*;

fn parse(value: &Value) -> Result<NetConf, Error> {
    NetConf::parse(value.as_object().expect("an object"))
}

fn minimal() -> Value {
    json!({"cniVersion": "1.1.0", "name": "pods", "type": "sluice-cni"})
}

#[test]
fn a_minimal_configuration_has_defaults() {
    let conf = parse(&minimal()).expect("valid");
    assert_eq!(conf.version, SpecVersion::V1_1_0);
    assert_eq!(conf.node_file, Path::new(DEFAULT_NODE_FILE));
    assert_eq!(conf.state_dir, Path::new(DEFAULT_STATE_DIR));
    assert_eq!((conf.pod_cidrs, conf.agent_socket, conf.mtu), (None, None, None));
}

#[test]
fn unknown_fields_and_nulls_are_ignored() {
    let mut value = minimal();
    value["ipam"] = json!({"type": "host-local"});
    value["cni.dev/attachments"] = json!(7);
    value["mtu"] = json!(null);
    value["prevResult"] = json!(null);
    assert_eq!(parse(&value).expect("valid"), parse(&minimal()).expect("valid"));
}

/// C2: a wrong field is named, with the specification's code.
#[test]
fn wrong_fields_are_named_with_their_code() {
    let cases = [
        ("cniVersion", json!(null), 7, "cniVersion"),
        ("cniVersion", json!(1), 7, "cniVersion"),
        ("cniVersion", json!("9.9.9"), 1, "cniVersion"),
        ("name", json!(null), 7, "name"),
        ("name", json!(5), 7, "name"),
        ("name", json!("a/b"), 7, "name"),
        ("name", json!(""), 7, "name"),
        ("mtu", json!("1500"), 7, "mtu"),
        ("mtu", json!(67), 7, "mtu"),
        ("mtu", json!(65536), 7, "mtu"),
        ("mtu", json!(-1), 7, "mtu"),
        ("podCIDRs", json!("10.0.0.0/24"), 7, "podCIDRs"),
        ("podCIDRs", json!(["10.0.0.0"]), 7, "podCIDRs"),
        ("podCIDRs", json!(["10.0.0.1/24"]), 7, "podCIDRs"),
        ("nodeFile", json!("run/node.json"), 7, "nodeFile"),
        ("stateDir", json!(false), 7, "stateDir"),
        ("agentSocket", json!("agent.sock"), 7, "agentSocket"),
        ("hook", json!("xdp"), 7, "hook"),
        ("hook", json!(1), 7, "hook"),
        ("runtimeConfig", json!({"bandwidth": 1}), 7, "runtimeConfig.bandwidth"),
        ("dns", json!([]), 7, "dns"),
        ("dns", json!({"nameservers": "10.96.0.10"}), 7, "dns.nameservers"),
        ("dns", json!({"nameservers": ["resolver"]}), 7, "dns.nameservers"),
        ("dns", json!({"domain": 1}), 7, "dns.domain"),
        ("exclude", json!(["10.0.0"]), 7, "exclude"),
        ("runtimeConfig", json!({"ips": ["x"]}), 7, "runtimeConfig.ips"),
        ("runtimeConfig", json!({"ips": "10.0.0.1"}), 7, "runtimeConfig.ips"),
        ("runtimeConfig", json!({"ips": ["10.0.0.1", "10.0.0.2/24"]}), 2, "runtimeConfig.ips"),
        ("runtimeConfig", json!({"mac": "02:00"}), 7, "runtimeConfig.mac"),
        ("runtimeConfig", json!({"mac": "01:00:00:00:00:01"}), 7, "runtimeConfig.mac"),
        ("runtimeConfig", json!({"mac": "00:00:00:00:00:00"}), 7, "runtimeConfig.mac"),
        ("prevResult", json!("x"), 7, "prevResult"),
        ("prevResult", json!({"cniVersion": "0.4.0"}), 7, "prevResult.cniVersion"),
        ("prevResult", json!({"ips": [{"address": 1}]}), 7, "prevResult.ips"),
        ("prevResult", json!({"interfaces": [{}]}), 7, "prevResult.interfaces"),
        ("cni.dev/valid-attachments", json!({}), 7, "cni.dev/valid-attachments"),
        (
            "cni.dev/valid-attachments",
            json!([{"ifname": "eth0"}]),
            7,
            "cni.dev/valid-attachments.containerID",
        ),
    ];
    for (field, value, code, named) in cases {
        let mut conf = minimal();
        conf[field] = value.clone();
        let error = parse(&conf).expect_err(&format!("{field}: {value}"));
        assert_eq!(error.code(), code, "{field}: {value}: {error}");
        assert!(error.to_string().contains(named), "{error}");
    }
}

#[test]
fn stdin_that_is_no_object_is_a_decode_error() {
    for stdin in ["", "{", "[]", "\"x\"", "{\"a\":1}}"] {
        assert_eq!(parse_object(stdin.as_bytes()).expect_err(stdin).code(), 6, "{stdin}");
    }
}

/// Ranges come from the node file, and from the configuration where it has some.
#[test]
fn ranges_come_from_the_node_file_unless_the_configuration_has_some() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("node.json");
    let mut value = minimal();
    value["nodeFile"] = json!(path);
    let error = parse(&value).expect("valid").node_settings().expect_err("no node file");
    assert_eq!(error.code(), 11);
    assert!(error.to_string().contains("node.json"), "{error}");

    let node = json!({"node": "a", "podCIDRs": ["10.244.1.0/24", "fd00:1::/64"], "mtu": 1450});
    fs::write(&path, node.to_string()).expect("write");
    let (pool, mtu) = parse(&value).expect("valid").node_settings().expect("node file");
    assert_eq!(mtu, Some(1450));
    assert!(pool.contains("10.244.1.9".parse().expect("address")));
    assert!(pool.has_v6());

    value["podCIDRs"] = json!(["10.9.0.0/24"]);
    value["mtu"] = json!(9000);
    let (pool, mtu) = parse(&value).expect("valid").node_settings().expect("own ranges");
    assert_eq!(mtu, Some(9000));
    assert!(!pool.contains("10.244.1.9".parse().expect("address")));
    assert!(!pool.has_v6());
}

#[test]
fn an_unusable_node_file_asks_to_try_again() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("node.json");
    let mut value = minimal();
    value["nodeFile"] = json!(path);
    for content in ["", "{\"podCIDRs\":[\"10.0.0.1/24\"]}", "{\"podCIDRs\":[]}", "{\"mtu\":1}"] {
        fs::write(&path, content).expect("write");
        let error = parse(&value).expect("valid").node_settings().expect_err(content);
        assert_eq!(error.code(), 11, "{content}: {error}");
    }
}

/// C10: where the bandwidth plugin has something to do, the way to attach leaves room for it.
#[test]
fn a_pod_with_limits_is_attached_by_tcx() {
    let hook = |hook: Value, limits: Value| {
        let mut value = minimal();
        value["hook"] = hook;
        value["runtimeConfig"] = json!({"bandwidth": limits});
        parse(&value).expect("valid").hook
    };
    assert_eq!(hook(json!(null), json!(null)), Hook::Clsact);
    assert_eq!(hook(json!("tcx"), json!(null)), Hook::Tcx);
    assert_eq!(hook(json!("clsact"), json!(null)), Hook::Clsact);
    assert_eq!(hook(json!("clsact"), json!({})), Hook::Clsact);
    assert_eq!(hook(json!(null), json!({"egressRate": 1_000_000})), Hook::Tcx);
    assert_eq!(hook(json!("clsact"), json!({"egressRate": 1_000_000})), Hook::Tcx);
}
