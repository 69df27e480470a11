use super::*;

fn parse(vars: &[(&str, &str)]) -> Result<Invocation, String> {
    Invocation::from_env(|name| vars.iter().find(|(k, _)| *k == name).map(|(_, v)| (*v).to_owned()))
        .map_err(|e| {
            assert_eq!(e.code(), 4);
            e.to_string()
        })
}

/// C2: every missing variable is named, not only the first.
#[test]
fn every_missing_variable_is_named() {
    let error = parse(&[("CNI_COMMAND", "ADD")]).expect_err("all is missing");
    for name in ["CNI_CONTAINERID", "CNI_IFNAME", "CNI_NETNS"] {
        assert!(error.contains(name), "{error}");
    }
    let error = parse(&[("CNI_COMMAND", "DEL"), ("CNI_IFNAME", "")]).expect_err("two are missing");
    assert!(error.contains("CNI_CONTAINERID") && error.contains("CNI_IFNAME"), "{error}");
    assert!(!error.contains("CNI_NETNS"), "{error}");
}

#[test]
fn invalid_values_are_refused_by_name() {
    let good = [
        ("CNI_COMMAND", "ADD"),
        ("CNI_CONTAINERID", "c1"),
        ("CNI_IFNAME", "eth0"),
        ("CNI_NETNS", "/run/netns/x"),
    ];
    parse(&good).expect("valid");
    let bad = [
        ("CNI_COMMAND", "add"),
        ("CNI_CONTAINERID", "../../etc"),
        ("CNI_CONTAINERID", "-c"),
        ("CNI_IFNAME", "sixteen-bytes-ab"),
        ("CNI_IFNAME", "a/b"),
        ("CNI_IFNAME", "a b"),
        ("CNI_IFNAME", "a:b"),
        ("CNI_IFNAME", ".."),
        ("CNI_IFNAME", "lo"),
        ("CNI_ARGS", "K8S_POD_NAME"),
    ];
    for (name, value) in bad {
        let vars: Vec<_> =
            good.into_iter().filter(|(k, _)| *k != name).chain([(name, value)]).collect();
        let error = parse(&vars).expect_err(value);
        assert!(error.contains(name), "{error}");
    }
}

#[test]
fn kubernetes_arguments_are_kept_and_unknown_ones_ignored() {
    let invocation = parse(&[
        ("CNI_COMMAND", "DEL"),
        ("CNI_CONTAINERID", "c1"),
        ("CNI_IFNAME", "eth0"),
        ("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=a;X=;"),
    ])
    .expect("valid");
    assert_eq!(invocation.arg("K8S_POD_NAMESPACE"), "default");
    assert_eq!(invocation.arg("K8S_POD_NAME"), "a");
    assert_eq!(invocation.arg("K8S_POD_UID"), "");
    assert_eq!(invocation.netns, None);
}

#[test]
fn commands_about_no_pod_need_no_pod() {
    for command in ["VERSION", "STATUS", "GC"] {
        parse(&[("CNI_COMMAND", command)]).expect(command);
    }
}
