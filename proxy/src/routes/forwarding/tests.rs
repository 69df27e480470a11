use super::*;

/// A directory with these sysctls.
fn sysctls(values: &[(&str, &str)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("directory");
    for (name, value) in values {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().expect("a parent")).expect("directory");
        fs::write(path, format!("{value}\n")).expect("sysctl");
    }
    dir
}

fn get(dir: &tempfile::TempDir, name: &str) -> String {
    fs::read_to_string(dir.path().join(name)).expect(name).trim().to_owned()
}

#[test]
fn forwarding_is_set_and_router_advertisements_stay_accepted() {
    let dir = sysctls(&[
        ("net/ipv4/ip_forward", "0"),
        ("net/ipv6/conf/all/forwarding", "0"),
        ("net/ipv6/conf/eth0/accept_ra", "1"),
        ("net/ipv6/conf/eth1/accept_ra", "0"),
    ]);
    let problems = prepare_forwarding(dir.path(), true, true);
    assert!(problems.is_empty(), "{problems:?}");
    assert_eq!(get(&dir, "net/ipv4/ip_forward"), "1");
    assert_eq!(get(&dir, "net/ipv6/conf/all/forwarding"), "1");
    assert_eq!(get(&dir, "net/ipv6/conf/eth0/accept_ra"), "2");
    assert_eq!(get(&dir, "net/ipv6/conf/eth1/accept_ra"), "0");
}

#[test]
fn a_family_that_is_not_in_use_is_left_alone() {
    let dir = sysctls(&[("net/ipv4/ip_forward", "0"), ("net/ipv6/conf/all/forwarding", "0")]);
    assert!(prepare_forwarding(dir.path(), false, false).is_empty());
    assert_eq!(get(&dir, "net/ipv4/ip_forward"), "0");
    assert_eq!(get(&dir, "net/ipv6/conf/all/forwarding"), "0");
}

/// R7: what cannot be set is reported by its name, with what does not work.
#[test]
fn what_cannot_be_set_is_reported_by_name() {
    let dir = sysctls(&[("net/ipv6/conf/all/other", "0")]);
    // A directory where the value should be: nobody can write it, not even root.
    fs::create_dir_all(dir.path().join("net/ipv4/ip_forward")).expect("directory");
    fs::create_dir_all(dir.path().join("net/ipv6/conf/all/forwarding")).expect("directory");
    let problems = prepare_forwarding(dir.path(), true, true);
    let names: Vec<_> = problems.iter().map(|p| p.name.as_str()).collect();
    assert_eq!(names, ["net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"]);
    assert!(problems[0].to_string().contains("no IPv4 packet"), "{}", problems[0]);
}

#[test]
fn strict_reverse_paths_are_named() {
    let dir = sysctls(&[
        ("net/ipv4/conf/all/rp_filter", "0"),
        ("net/ipv4/conf/default/rp_filter", "1"),
        ("net/ipv4/conf/lo/rp_filter", "1"),
        ("net/ipv4/conf/eth0/rp_filter", "1"),
        ("net/ipv4/conf/eth0.5/rp_filter", "1"),
        ("net/ipv4/conf/eth1/rp_filter", "2"),
        ("net/ipv4/conf/eth2/rp_filter", "0"),
    ]);
    let expected = ["net.ipv4.conf.eth0.rp_filter", "net.ipv4.conf.eth0/5.rp_filter"];
    assert_eq!(strict_reverse_paths(dir.path()), expected);
    fs::write(dir.path().join("net/ipv4/conf/all/rp_filter"), "1").expect("sysctl");
    assert_eq!(strict_reverse_paths(dir.path()).len(), 3);
    fs::write(dir.path().join("net/ipv4/conf/all/rp_filter"), "2").expect("sysctl");
    assert!(strict_reverse_paths(dir.path()).is_empty());
}
