//! Network policies on one node with a real agent: a pod that asks itself through its Service, and what is told of drops.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use sluice_tests::cluster::Cluster;
use sluice_tests::pod::{self, Pod};
use sluice_tests::process::Process;
use sluice_tests::wait::wait_ok;
use sluice_tests::{Result, bin, wait_for};

/// Long enough for anything that comes at all.
const LIMIT: Duration = Duration::from_secs(20);

/// A Service of the pod `default/a` alone, port 80 to its 8080.
const VIPS: [&str; 2] = ["10.96.0.20", "fd00:96::20"];

fn service(pod: &Pod) -> String {
    let mut yaml = format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: a, namespace: default}}\nspec:\n  type: ClusterIP\n  \
         clusterIP: {}\n  clusterIPs: [{0}, \"{}\"]\n  ipFamilies: [IPv4, IPv6]\n  ports:\n  \
         - {{name: t, protocol: TCP, port: 80, targetPort: 8080}}\n  \
         - {{name: u, protocol: UDP, port: 80, targetPort: 8080}}\n",
        VIPS[0], VIPS[1]
    );
    for address in pod.addresses() {
        let family = if address.is_ipv4() { "IPv4" } else { "IPv6" };
        yaml += &format!(
            "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: a-{}, namespace: default, \
             labels: {{kubernetes.io/service-name: a}}}}\naddressType: {family}\n\
             ports: [{{name: t, protocol: TCP, port: 8080}}, {{name: u, protocol: UDP, port: 8080}}]\n\
             endpoints: [{{addresses: [\"{address}\"], nodeName: node-a, conditions: {{ready: true}}}}]\n",
            family.to_lowercase()
        );
    }
    yaml
}

/// A policy for the pod `default/a`, which only those of these labels may ask.
fn only(names: &[&str]) -> String {
    let peers: Vec<String> = names
        .iter()
        .map(|name| format!("{{podSelector: {{matchLabels: {{app: {name}}}}}}}"))
        .collect();
    format!(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: only, namespace: default}}\n\
         spec:\n  podSelector: {{matchLabels: {{app: a}}}}\n  ingress: [{{from: [{}]}}]\n",
        peers.join(", ")
    )
}

/// A node with an agent and the pods `default/a` and `default/b`.
fn node() -> Result<(Cluster, [Pod; 2])> {
    let mut cluster = Cluster::new(1)?;
    cluster.start_agents()?;
    let add = |name: &str| -> Result<Pod> {
        let pod = cluster.node(0).add_pod("default", name)?;
        cluster.apply(&format!("pod-{name}"), &pod.manifest(&[("app", name)]))?;
        Ok(pod)
    };
    let pods = [add("a")?, add("b")?];
    Ok((cluster, pods))
}

/// Waits until the kernel knows that `default/b` may not ask `default/a`.
fn wait_shut(cluster: &Cluster) -> Result<()> {
    wait_ok("the policy to be in force", LIMIT, || {
        let text = cluster.node(0).proxyctl(&[
            "policy",
            "trace",
            "default/b",
            "default/a",
            "80",
            "-o",
            "json",
        ])?;
        let trace: serde_json::Value = serde_json::from_str(&text)?;
        ensure!(trace["agree"] == true && trace["allowed"] == false, "{text}");
        Ok(())
    })
}

/// P8: a pod that asks itself through its Service is judged like anybody else, by sockets of every kind and in both
/// families; by its own address, and by nobody's policy, it reaches itself.
#[test]
fn a_pod_is_judged_through_its_own_service() -> Result<()> {
    let (cluster, [a, b]) = node()?;
    cluster.apply("service", &service(&a))?;
    let _serving = a.serve(8080)?;
    let own: Vec<String> =
        a.addresses().iter().map(|address| SocketAddr::new(*address, 8080).to_string()).collect();
    let targets: Vec<SocketAddr> = VIPS
        .iter()
        .map(|vip| Ok(SocketAddr::new(vip.parse::<IpAddr>()?, 80)))
        .collect::<Result<_>>()?;
    let within = |pod: &Pod, target: &str| -> Result<()> {
        pod::get_within(pod.launch(bin("testapp")?), target, 1).map(drop)
    };
    let everybody = |who: &str, pods: &[&Pod]| -> Result<()> {
        for pod in pods {
            for target in &targets {
                wait_ok(&format!("{who}: {} asks {target}", pod.name()), LIMIT, || {
                    pod.get(&target.to_string())?;
                    pod.udp(*target)?;
                    let asks = pod.launch(bin("testapp")?).args(["udp", &target.to_string()]);
                    asks.args(["--unconnected", "--timeout", "1"]).run()?;
                    Ok(())
                })?;
            }
        }
        Ok(())
    };
    everybody("no policy", &[&a, &b])?;

    cluster.apply("policy", &only(&["b"]))?;
    wait_for("the pod not to reach itself", LIMIT, || {
        targets.iter().all(|target| within(&a, &target.to_string()).is_err()).then_some(())
    })?;
    for target in &targets {
        for how in [&[][..], &["--unconnected"]] {
            let asked =
                a.launch(bin("testapp")?).args(["udp", &target.to_string(), "--timeout", "1"]);
            assert!(asked.args(how).run().is_err(), "a datagram to {target}, {how:?}");
        }
    }
    for own in &own {
        a.get(own).context("its own address")?;
    }
    everybody("one may", &[&b])?;
    let drops = cluster.node(0).proxyctl(&["policy", "get", "default/a"])?;
    assert!(drops.contains("isolated by default/only"), "{drops}");

    cluster.apply("policy", &only(&["a", "b"]))?;
    everybody("both may", &[&a, &b])?;
    cluster.apply("policy", "")?;
    everybody("no policy any more", &[&a, &b])?;
    Ok(())
}

/// P12: every monitor is told of every drop, and goes on when the agent goes and comes back.
#[test]
fn every_monitor_sees_every_drop() -> Result<()> {
    let (mut cluster, [a, b]) = node()?;
    cluster.apply("policy", &only(&["nobody"]))?;
    wait_shut(&cluster)?;
    let node = cluster.node(0);
    let monitor = |label: &str| -> Result<Process> {
        let launch = node
            .launch(bin("proxyctl")?)
            .args(["monitor", "--drops", "-o", "json", "--run-dir"])
            .arg(node.run_dir())
            .arg("--bpf-root")
            .arg(node.bpf_root());
        node.spawn(label, &launch)
    };
    let mut monitors = [monitor("monitor-1")?, monitor("monitor-2")?, monitor("monitor-3")?];
    let address = IpAddr::from(a.ipv4()?);
    let socket = b.netns().run(|| UdpSocket::bind("0.0.0.0:0"))??;
    let ask = |port: u16| socket.send_to(b"x", SocketAddr::new(address, port));
    let saw = |monitor: &Process, port: u16| {
        monitor.log().contains(&format!("\"destination\":\"{}\"", SocketAddr::new(address, port)))
    };
    // Each is there once it tells anything.
    wait_for("all monitors to look on", LIMIT, || {
        ask(9).ok()?;
        monitors.iter().all(|monitor| saw(monitor, 9)).then_some(())
    })?;
    let ports = 20_000..20_200;
    for port in ports.clone() {
        ask(port)?;
    }
    wait_for("all monitors to tell of all drops", LIMIT, || {
        let told = |monitor: &Process| ports.clone().all(|port| saw(monitor, port));
        monitors.iter().all(told).then_some(())
    })?;
    let once = monitors[0].log();
    assert_eq!(once.matches(&format!(":{}\"", ports.start)).count(), 1, "{once}");
    assert!(once.contains("\"pod\":\"default/a\""), "{once}");

    // Without an agent, each reads what the others leave.
    let source = cluster.source();
    cluster.node_mut(0).kill_agent()?;
    wait_for("some monitor to go on", LIMIT, || {
        ask(10).ok()?;
        monitors.iter().any(|monitor| saw(monitor, 10)).then_some(())
    })
    .with_context(|| monitors.iter().map(Process::log).collect::<String>())?;
    cluster.node_mut(0).start_agent(&source)?;
    let mut port = 30_000;
    wait_for("all monitors to be with the new agent", LIMIT, || {
        port += 1;
        ask(port).ok()?;
        let told = || monitors.iter().all(|monitor| saw(monitor, port)).then_some(());
        wait_for("one drop", Duration::from_secs(1), told).ok()
    })?;
    for monitor in &mut monitors {
        assert!(monitor.is_running(), "{}", monitor.log());
    }
    Ok(())
}
