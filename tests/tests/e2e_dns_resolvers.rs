//! The resolvers that programs have get the same answers: glibc's, musl's and dig's.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use sluice_tests::dns::DnsCluster;
use sluice_tests::manifests::Service;
use sluice_tests::resolvers::{self, Said};
use sluice_tests::wait::wait_ok;
use sluice_tests::{PATIENCE, Result};

struct Resolvers {
    dns: DnsCluster,
    conf: PathBuf,
    glibc: PathBuf,
    musl: PathBuf,
}

impl Resolvers {
    /// A command in a pod of the namespace `shop`, with the resolver's configuration of its pods.
    fn run(&self, words: &[&str]) -> Result<String> {
        let pod = &self.dns.clients[0];
        let launch = pod
            .launch("unshare")
            .args(["--mount", "sh", "-c"])
            .arg("mount --bind \"$0\" /etc/resolv.conf && exec \"$@\"")
            .arg(&self.conf)
            .args(words);
        let output = launch.output()?;
        let (text, error) = (
            String::from_utf8(output.stdout)?,
            String::from_utf8_lossy(&output.stderr).into_owned(),
        );
        // getent has a status of its own for what it does not find.
        let found = output.status.success() || output.status.code() == Some(2);
        ensure!(found && error.is_empty(), "{words:?}: {} {error}", output.status);
        Ok(text)
    }

    fn library(&self, program: &Path, name: &str) -> Result<Said> {
        let program = program.to_str().context("a path")?;
        let text = self.run(&[program, name])?;
        Said::read(&text)
    }

    fn getent(&self, name: &str) -> Result<BTreeSet<String>> {
        let text = self.run(&["getent", "ahosts", name])?;
        Ok(text.lines().filter_map(|line| line.split(' ').next()).map(str::to_owned).collect())
    }

    /// The addresses that `dig` finds along the search path, in both families.
    fn dig(&self, name: &str) -> Result<BTreeSet<String>> {
        let mut found = BTreeSet::new();
        for kind in ["A", "AAAA"] {
            let text =
                self.run(&["dig", "+short", "+search", "+tries=1", "+time=20", name, kind])?;
            // An alias is a line of its own, with the final dot.
            found.extend(text.lines().filter(|line| !line.ends_with('.')).map(str::to_owned));
        }
        Ok(found)
    }
}

fn open() -> Result<Resolvers> {
    let dns = DnsCluster::open_with_upstream(2)?;
    let web = Service::new("shop", "web")
        .cluster_ip("10.96.0.80")
        .cluster_ip("fd00:96::80")
        .tcp("http", 80, 8080);
    let db = Service::new("shop", "db").cluster_ip("None").tcp("pg", 5432, 5432);
    let v6 = Service::new("shop", "six").cluster_ip("fd00:96::81").tcp("http", 80, 8080);
    let v4 = Service::new("lab", "four").cluster_ip("10.96.0.82").tcp("http", 80, 8080);
    let clients: Vec<_> = dns.clients.iter().collect();
    dns.cluster.apply("web", &web.yaml())?;
    dns.cluster.apply("db", &db.with_endpoints(&clients))?;
    dns.cluster.apply("six", &v6.yaml())?;
    dns.cluster.apply("four", &v4.yaml())?;
    dns.cluster.apply(
        "alias",
        "apiVersion: v1\nkind: Service\nmetadata: {name: alias, namespace: shop}\n\
         spec: {type: ExternalName, externalName: web.shop.svc.cluster.local}\n",
    )?;
    for index in 0..2 {
        dns.wait_for_name(index, "alias.shop.svc.cluster.local")?;
        dns.wait_for_name(index, "db.shop.svc.cluster.local")?;
        dns.wait_for_name(index, "four.lab.svc.cluster.local")?;
    }
    let conf = dns.cluster.dir().join("resolv.conf");
    fs::write(
        &conf,
        "nameserver 10.96.0.10\nsearch shop.svc.cluster.local svc.cluster.local cluster.local\n\
         options ndots:5 timeout:20 attempts:1\n",
    )?;
    let [glibc, musl] =
        resolvers::LIBRARIES.map(|(_, compiler)| resolvers::build(dns.cluster.dir(), compiler));
    let (glibc, musl) = (glibc?, musl?);
    Ok(Resolvers { dns, conf, glibc, musl })
}

/// D1, D4, D5, D8, D11: every resolver gets the same of every kind of name, by the search path and in
/// full.
#[test]
fn all_resolvers_get_the_same() -> Result<()> {
    let resolvers = open()?;
    let web = ["10.96.0.80", "fd00:96::80"].map(str::to_owned).to_vec();
    let mut db = Vec::new();
    for client in &resolvers.dns.clients {
        db.extend(client.addresses().iter().map(ToString::to_string));
    }
    let first = resolvers.dns.clients[0].ipv4()?.to_string();
    let dashed = format!("{}.db", first.replace('.', "-"));
    let full = |name: &str| Some(format!("{name}.svc.cluster.local"));
    let table: Vec<(&str, Option<String>, Vec<String>)> = vec![
        ("web", full("web.shop"), web.clone()),
        ("web.shop", full("web.shop"), web.clone()),
        ("web.shop.svc", full("web.shop"), web.clone()),
        ("web.shop.svc.cluster.local", full("web.shop"), web.clone()),
        ("web.shop.svc.cluster.local.", full("web.shop"), web.clone()),
        ("WEB.Shop", full("web.shop"), web.clone()),
        ("four.lab", full("four.lab"), vec!["10.96.0.82".to_owned()]),
        ("six", full("six.shop"), vec!["fd00:96::81".to_owned()]),
        ("db", full("db.shop"), db),
        (&dashed, None, vec![first]),
        ("alias", full("web.shop"), web.clone()),
        ("alias.shop.svc.cluster.local", full("web.shop"), web),
        ("no-such", None, vec![]),
        ("no-such.shop.svc.cluster.local.", None, vec![]),
        ("four", None, vec![]),
        ("x.web", None, vec![]),
    ];
    for (name, canonical, addrs) in table {
        let addrs: BTreeSet<String> = addrs.into_iter().collect();
        for (library, program) in [("glibc", &resolvers.glibc), ("musl", &resolvers.musl)] {
            let said = resolvers.library(program, name)?;
            assert_eq!(said.addrs, addrs, "{name} by {library}");
            if let Some(canonical) = &canonical {
                let said = said.canonical.context("a name")?.to_ascii_lowercase();
                let said = said.trim_end_matches('.').to_owned();
                assert_eq!(said, *canonical, "{name} by {library}");
            }
        }
        assert_eq!(resolvers.getent(name)?, addrs, "{name} by getent");
        assert_eq!(resolvers.dig(name)?, addrs, "{name} by dig");
    }
    Ok(())
}

/// D2, D5: what only `dig` asks for: SRV with its target, the alias itself, and the code of a denial.
#[test]
fn records_that_libraries_do_not_ask_for() -> Result<()> {
    let resolvers = open()?;
    let short = |words: &[&str]| {
        let words = [&["dig", "+short", "+search", "+tries=1", "+time=20"], words].concat();
        Ok::<_, anyhow::Error>(resolvers.run(&words)?.trim().to_owned())
    };
    assert_eq!(short(&["_http._tcp.web", "SRV"])?, "0 50 80 web.shop.svc.cluster.local.");
    assert_eq!(short(&["alias", "CNAME"])?, "web.shop.svc.cluster.local.");
    assert_eq!(short(&["-x", "10.96.0.80"])?, "web.shop.svc.cluster.local.");
    assert_eq!(short(&["dns-version.cluster.local", "TXT"])?, "\"1.1.0\"");
    let denied =
        resolvers.run(&["dig", "+tries=1", "+time=20", "no-such.shop.svc.cluster.local"])?;
    assert!(denied.contains("status: NXDOMAIN"), "{denied}");
    let none =
        resolvers.run(&["dig", "+tries=1", "+time=20", "six.shop.svc.cluster.local", "A"])?;
    assert!(none.contains("status: NOERROR") && none.contains("ANSWER: 0"), "{none}");
    Ok(())
}

/// D20: names of the cluster set are resolved by every library, as soon as a Service is imported; a
/// short name is never one of them.
#[test]
fn imports_are_resolved() -> Result<()> {
    let resolvers = open()?;
    let import = "apiVersion: multicluster.x-k8s.io/v1alpha1\nkind: ServiceImport\n\
                  metadata: {name: far, namespace: shop}\n\
                  spec: {type: ClusterSetIP, ips: [10.96.9.1], ports: [{name: http, port: 80}]}\n";
    resolvers.dns.cluster.apply("far", import)?;
    let name = "far.shop.svc.clusterset.local";
    wait_ok("the import", PATIENCE, || {
        ensure!(resolvers.dig(name)? == ["10.96.9.1".to_owned()].into(), "{name} is not known");
        Ok(())
    })?;
    for program in [&resolvers.glibc, &resolvers.musl] {
        assert_eq!(resolvers.library(program, name)?.addrs, ["10.96.9.1".to_owned()].into());
        assert!(resolvers.library(program, "far")?.addrs.is_empty());
    }
    Ok(())
}
