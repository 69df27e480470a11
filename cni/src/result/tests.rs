use serde_json::json;

use super::*;
use crate::names::Key;

fn record() -> Record {
    let key = Key { network: "pods".into(), container_id: "c1".into(), interface: "eth0".into() };
    Record {
        version: 1,
        network: "pods".into(),
        container_id: "c1".into(),
        interface: "eth0".into(),
        netns: "/run/netns/c1".into(),
        host_interface: key.host_interface(),
        mac: key.pod_mac(),
        host_mac: key.host_mac(),
        mtu: 1450,
        addresses: vec!["10.0.0.2".parse().expect("address"), "fd00::2".parse().expect("address")],
        pod_namespace: String::new(),
        pod_name: String::new(),
        pod_uid: String::new(),
        host_ports: Vec::new(),
        hook: crate::record::Hook::DEFAULT,
        created: 0,
        boot_id: "b".into(),
    }
}

/// C1: each version's result has the fields of that version and no others.
#[test]
fn a_result_has_the_shape_of_its_version() {
    for version in SpecVersion::ALL {
        let result = success(&record(), &Dns::default(), None, version);
        assert_eq!(result["cniVersion"], version.as_str());
        assert_eq!(result["ips"][0]["address"], "10.0.0.2/32");
        assert_eq!(result["ips"][1]["gateway"], "fe80::1");
        assert_eq!(result["ips"][1]["interface"], 1);
        assert_eq!(result["routes"][0], json!({"dst": "0.0.0.0/0", "gw": "169.254.1.1"}));
        assert_eq!(result["interfaces"][1]["sandbox"], "/run/netns/c1");
        assert!(result["interfaces"][0].get("sandbox").is_none());
        assert_eq!(result["ips"][1].get("version").is_some(), version < SpecVersion::V1_0_0);
        assert_eq!(result["interfaces"][0].get("mtu").is_some(), version >= SpecVersion::V1_1_0);
    }
}

/// What earlier plugins made stays, and the new addresses point at the new interface.
#[test]
fn the_result_of_earlier_plugins_is_passed_on() {
    let version = SpecVersion::V1_0_0;
    let raw = json!({
        "cniVersion": "1.0.0",
        "interfaces": [{"name": "net1", "sandbox": "/run/netns/c1", "extra": 1}],
        "ips": [{"address": "192.0.2.7/24", "interface": 0}],
        "routes": [{"dst": "192.0.2.0/24"}],
        "dns": {"nameservers": ["192.0.2.53"]},
    });
    let prev = PrevResult::parse(&raw, version).expect("valid");
    let result = success(&record(), &Dns::default(), Some(&prev), version);
    assert_eq!(result["interfaces"].as_array().map(Vec::len), Some(3));
    assert_eq!(result["interfaces"][0], raw["interfaces"][0]);
    assert_eq!(result["ips"][0], raw["ips"][0]);
    assert_eq!(result["ips"][1]["interface"], 2);
    assert_eq!(result["interfaces"][2]["name"], "eth0");
    assert_eq!(result["routes"].as_array().map(Vec::len), Some(3));
    assert_eq!(result["dns"], raw["dns"]);

    let own = Dns { nameservers: vec!["10.96.0.10".into()], ..Dns::default() };
    let result = success(&record(), &own, Some(&prev), version);
    assert_eq!(result["dns"], json!({"nameservers": ["10.96.0.10"]}));
}
