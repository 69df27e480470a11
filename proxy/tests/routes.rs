//! Host-gw routes on the real kernel, in network namespaces of their own. Needs root.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use sluice_proxy::routes::{PodRoute, RouteManager, RouteReport, SkipReason, prepare_forwarding};

static NEXT: AtomicU32 = AtomicU32::new(0);
/// How long anything may take; never reached when all is well.
const PATIENCE: Duration = Duration::from_secs(60);

/// A named network namespace; deleted when dropped, also by a failing test.
struct Ns {
    name: String,
}

impl Ns {
    fn new(label: &str) -> Self {
        assert!(
            rustix::process::geteuid().is_root(),
            "this test makes network namespaces: run it as root"
        );
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("slc-r{}-{number}-{label}", std::process::id());
        must(Command::new("ip").args(["netns", "add", &name]));
        let ns = Self { name };
        ns.ip("link set lo up");
        ns
    }

    fn path(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.name)
    }

    fn ip(&self, args: &str) -> String {
        must(Command::new("ip").args(["-n", &self.name]).args(args.split_whitespace()))
    }

    /// Many `ip` commands in one process.
    fn batch(&self, commands: &str) {
        let mut child = Command::new("ip")
            .args(["-n", &self.name, "-batch", "-"])
            .stdin(Stdio::piped())
            .spawn()
            .expect("ip");
        child.stdin.take().expect("piped").write_all(commands.as_bytes()).expect("commands");
        assert!(child.wait().expect("ip").success());
    }

    /// Runs code on a thread inside.
    fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                let file = File::open(self.path()).expect("the namespace");
                let kind = rustix::thread::LinkNameSpaceType::Network;
                rustix::thread::move_into_link_name_space(file.as_fd(), Some(kind)).expect("setns");
                work()
            });
            inside.join().expect("the code inside a namespace")
        })
    }

    /// Runs async code with a route manager inside; all of it must be done in time.
    fn with_manager<T: Send>(&self, work: impl AsyncFnOnce(RouteManager) -> T + Send) -> T {
        self.run(|| {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().expect("tokio");
            runtime.block_on(async {
                let manager = RouteManager::open().expect("netlink");
                tokio::time::timeout(PATIENCE, work(manager)).await.expect("done in time")
            })
        })
    }

    fn routes(&self) -> String {
        self.ip("route") + &self.ip("-6 route")
    }
}

impl Drop for Ns {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.name]).status();
    }
}

fn must(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {stderr}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A node on a link it shares with others: 192.0.2.1 and 2001:db8::1 on `uplink`.
fn node_on_a_link() -> Ns {
    let node = Ns::new("node");
    node.ip("link add uplink type veth peer name wire");
    node.ip("link set wire up");
    node.ip("link set uplink up");
    node.ip("addr add 192.0.2.1/24 dev uplink");
    node.ip("-6 addr add 2001:db8::1/64 dev uplink nodad");
    node
}

fn route(cidr: &str, via: &str) -> PodRoute {
    PodRoute::direct(cidr.parse().expect("range"), via.parse().expect("address"), "other")
}

async fn reconcile(manager: &mut RouteManager, desired: &[PodRoute]) -> RouteReport {
    manager.reconcile(desired).await.expect("the kernel answers")
}

/// `ip monitor route` in a namespace.
struct Monitor {
    child: Child,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Monitor {
    /// Returns once it listens: a route that comes and goes shows up. Setting one that is there
    /// would not do, for what changes nothing is not told.
    fn start(ns: &Ns) -> Self {
        let mut child = Command::new("timeout")
            .args([&PATIENCE.as_secs().to_string(), "ip", "-n", &ns.name, "monitor", "route"])
            .stdout(Stdio::piped())
            .spawn()
            .expect("ip monitor");
        let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let mut monitor = Self { child, lines };
        let listening = AtomicBool::new(false);
        let seen = thread::scope(|scope| {
            scope.spawn(|| {
                while !listening.load(Ordering::Relaxed) {
                    ns.ip("route add blackhole 203.0.113.1/32");
                    ns.ip("route del blackhole 203.0.113.1/32");
                }
            });
            let seen = monitor.find("203.0.113.1");
            listening.store(true, Ordering::Relaxed);
            seen
        });
        seen.unwrap_or_else(|seen| panic!("ip monitor shows no routes: {seen}"));
        monitor
    }

    /// All lines up to one that has `text` in it.
    fn until(&mut self, text: &str) -> String {
        self.find(text).unwrap_or_else(|seen| panic!("ip monitor ended without {text}: {seen}"))
    }

    /// The same, or what was seen instead.
    fn find(&mut self, text: &str) -> Result<String, String> {
        let mut seen = String::new();
        for line in &mut self.lines {
            let line = line.expect("a line");
            seen += &line;
            seen.push('\n');
            if line.contains(text) {
                return Ok(seen);
            }
        }
        Err(seen)
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// R1: one route a CIDR and family, and a changed next hop replaces it without a gap.
#[test]
fn a_changed_next_hop_replaces_the_route_in_place() {
    let node = node_on_a_link();
    node.with_manager(async |mut manager| {
        let before = [route("10.244.2.0/24", "192.0.2.2"), route("fd00:2::/64", "2001:db8::2")];
        let report = reconcile(&mut manager, &before).await;
        assert_eq!(report.replaced, before);
        assert!(report.is_complete());
        let mut monitor = Monitor::start(&node);
        let after = [route("10.244.2.0/24", "192.0.2.3"), route("fd00:2::/64", "2001:db8::3")];
        let report = reconcile(&mut manager, &after).await;
        assert_eq!(report.replaced, after);
        assert_eq!(report.deleted, []);
        node.ip("route add blackhole 203.0.113.2/32");
        let seen = monitor.until("203.0.113.2");
        assert!(seen.contains("via 192.0.2.3") && seen.contains("via 2001:db8::3"), "{seen}");
        assert!(!seen.contains("Deleted 10.244") && !seen.contains("Deleted fd00"), "{seen}");
        assert_eq!(manager.list().await.expect("list").len(), 2);
        let report = reconcile(&mut manager, &after).await;
        assert_eq!((report.unchanged.len(), report.replaced.len()), (2, 0));
    });
    let routes = node.routes();
    assert!(routes.contains("10.244.2.0/24 via 192.0.2.3 dev uplink proto 92"), "{routes}");
    assert!(routes.contains("fd00:2::/64 via 2001:db8::3 dev uplink proto 92"), "{routes}");
}

/// R2: routes of nodes that went, or changed their CIDR, are removed; also those that went stale
/// while no agent ran.
#[test]
fn stale_routes_are_removed_also_those_of_an_earlier_run() {
    let node = node_on_a_link();
    node.ip("route add 10.244.7.0/24 via 192.0.2.7 proto 92");
    node.ip("route add 10.244.8.0/24 via 192.0.2.7 proto 92 metric 77");
    node.ip("route add unreachable 10.244.9.0/24 proto 92");
    node.ip("-6 route add fd00:7::/64 via 2001:db8::7 proto 92");
    node.ip("route add 10.244.3.0/24 via 192.0.2.3 proto 92");
    node.with_manager(async |mut manager| {
        let desired = [route("10.244.2.0/24", "192.0.2.2"), route("10.244.3.0/24", "192.0.2.3")];
        let report = reconcile(&mut manager, &desired).await;
        assert_eq!(report.deleted.len(), 4, "{report:?}");
        assert_eq!(report.unchanged.len(), 1);
        assert!(report.is_complete(), "{report:?}");
        assert_eq!(manager.list().await.expect("list").len(), 2);
        let report = reconcile(&mut manager, &desired[..1]).await;
        assert_eq!(report.deleted.len(), 1);
    });
    let routes = node.routes();
    assert_eq!(routes.matches("proto 92").count(), 1, "{routes}");
}

/// R3: foreign routes stay, are reported where they are in the way, and once one is gone the own
/// route takes its place.
#[test]
fn foreign_routes_are_reported_and_never_touched() {
    let node = node_on_a_link();
    let foreign = [
        "10.244.2.0/24 via 192.0.2.99 dev uplink",
        "10.244.3.0/24 via 192.0.2.99 dev uplink proto static metric 50",
        "10.244.9.0/24 via 192.0.2.99 dev uplink proto bird",
    ];
    for line in foreign {
        node.ip(&format!("route add {line}"));
    }
    node.ip("-6 route add fd00:2::/64 via 2001:db8::99 proto static");
    node.with_manager(async |mut manager| {
        let desired = [
            route("10.244.2.0/24", "192.0.2.2"),
            route("10.244.3.0/24", "192.0.2.3"),
            route("10.244.4.0/24", "192.0.2.4"),
            route("fd00:2::/64", "2001:db8::2"),
        ];
        let report = reconcile(&mut manager, &desired).await;
        assert_eq!(report.conflicts.len(), 3, "{report:?}");
        assert_eq!(report.replaced, desired[2..3]);
        assert_eq!(report.deleted, []);
        let routes = node.routes();
        for line in foreign {
            assert!(routes.contains(line), "{line}: {routes}");
        }
        assert!(routes.contains("fd00:2::/64 via 2001:db8::99"), "{routes}");

        node.ip("route del 10.244.2.0/24");
        manager.changed().await.expect("an event");
        let report = reconcile(&mut manager, &desired).await;
        assert_eq!(report.replaced, desired[..1]);

        // Someone takes the place of ours.
        node.ip("route replace 10.244.4.0/24 via 192.0.2.99 proto static");
        manager.changed().await.expect("an event");
        let report = reconcile(&mut manager, &desired).await;
        assert_eq!(report.conflicts.len(), 3, "{report:?}");

        // Nothing is left to us; nothing but ours goes.
        reconcile(&mut manager, &[]).await;
        assert_eq!(manager.list().await.expect("list"), []);
    });
    let routes = node.routes();
    assert!(routes.contains("10.244.4.0/24 via 192.0.2.99 dev uplink proto static"), "{routes}");
    assert!(routes.contains(foreign[1]) && routes.contains(foreign[2]), "{routes}");
}

/// R4: a deleted route comes back on the kernel's event; there is no timer to wait for.
#[test]
fn a_deleted_route_comes_back() {
    let node = node_on_a_link();
    node.with_manager(async |mut manager| {
        let desired = [route("10.244.2.0/24", "192.0.2.2"), route("fd00:2::/64", "2001:db8::2")];
        reconcile(&mut manager, &desired).await;
        let deletions = ["route del 10.244.2.0/24", "-6 route del fd00:2::/64"];
        for (i, deletion) in deletions.into_iter().enumerate() {
            node.ip(deletion);
            manager.changed().await.expect("an event");
            let report = reconcile(&mut manager, &desired).await;
            assert_eq!(report.replaced, desired[i..=i]);
        }
        // The kernel drops IPv4 routes of a link that goes down, without an event for each.
        node.ip("link set uplink down");
        manager.changed().await.expect("an event");
        reconcile(&mut manager, &desired[..1]).await;
        node.ip("link set uplink up");
        while !reconcile(&mut manager, &desired[..1]).await.is_complete() {
            manager.changed().await.expect("an event");
        }
    });
    assert!(node.routes().contains("10.244.2.0/24 via 192.0.2.2"), "{}", node.routes());
}

/// R4: when the kernel drops events because nobody read them, everything is looked at again.
#[test]
fn lost_events_lead_to_a_resync() {
    let node = node_on_a_link();
    node.with_manager(async |mut manager| {
        let desired = [route("10.244.2.0/24", "192.0.2.2")];
        reconcile(&mut manager, &desired).await;
        // None of these is our business, and they fill the socket.
        let flood: String = (0..16_000u32)
            .map(|i| format!("route add blackhole 100.{}.{}.0/24\n", 64 + i / 256, i % 256))
            .collect();
        node.batch(&flood);
        node.ip("route del 10.244.2.0/24");
        manager.changed().await.expect("an event");
        let report = reconcile(&mut manager, &desired).await;
        assert_eq!(report.replaced, desired);
    });
}

/// R5: a next hop that no shared link leads to is told by a route lookup and skipped.
#[test]
fn next_hops_off_the_link_are_skipped_with_the_reason() {
    let node = node_on_a_link();
    node.ip("route add 198.51.100.0/24 via 192.0.2.254");
    node.with_manager(async |mut manager| {
        let desired = [
            route("10.244.2.0/24", "198.51.100.2"),
            route("10.244.3.0/24", "203.0.113.3"),
            route("10.244.4.0/24", "192.0.2.1"),
            route("10.244.5.0/24", "192.0.2.5"),
        ];
        let report = reconcile(&mut manager, &desired).await;
        assert_eq!(report.replaced, desired[3..]);
        let reasons: Vec<_> = report.skipped.iter().map(|s| &s.reason).collect();
        let gateway: IpAddr = "192.0.2.254".parse().expect("address");
        assert!(
            matches!(reasons[0], SkipReason::NotOnLink { gateway: g, .. } if *g == gateway),
            "{report:?}"
        );
        assert!(matches!(reasons[1], SkipReason::Unreachable { .. }), "{report:?}");
        assert_eq!(*reasons[2], SkipReason::OwnAddress(desired[2].via));

        // It gets on a link: that is noticed.
        node.ip("addr add 203.0.113.1/24 dev uplink");
        manager.changed().await.expect("an event");
        let report = reconcile(&mut manager, &desired).await;
        assert_eq!(report.replaced, desired[1..2]);
    });
}

/// Two nodes on a bridge, one pod each; forwarding and routes are the agent's.
#[test]
fn pods_of_two_nodes_reach_each_other() {
    let switch = Ns::new("switch");
    switch.ip("link add br0 type bridge");
    switch.ip("link set br0 up");
    let nodes = [Ns::new("node1"), Ns::new("node2")];
    let pods = [Ns::new("pod1"), Ns::new("pod2")];
    for (i, (node, pod)) in nodes.iter().zip(&pods).enumerate() {
        let i = i + 1;
        switch.ip(&format!("link add port{i} type veth peer name uplink netns {}", node.name));
        switch.ip(&format!("link set port{i} master br0 up"));
        node.ip("link set uplink up");
        node.ip(&format!("addr add 192.0.2.{i}/24 dev uplink"));
        node.ip(&format!("-6 addr add 2001:db8::{i}/64 dev uplink nodad"));
        node.ip(&format!("link add slu0 type veth peer name eth0 netns {}", pod.name));
        node.ip("link set slu0 up");
        node.ip("addr add 169.254.1.1/32 dev slu0");
        node.ip("-6 addr add fe80::1/64 dev slu0 nodad");
        node.ip(&format!("route add 10.244.{i}.5 dev slu0"));
        node.ip(&format!("-6 route add fd00:{i}::5 dev slu0"));
        pod.ip(&format!("addr add 10.244.{i}.5/32 dev eth0"));
        pod.ip(&format!("-6 addr add fd00:{i}::5/128 dev eth0 nodad"));
        pod.ip("link set eth0 up");
        pod.ip("route add default via 169.254.1.1 dev eth0 onlink");
        pod.ip("-6 route add default via fe80::1 dev eth0");
        let problems = node.run(|| prepare_forwarding(Path::new("/proc/sys"), true, true));
        assert!(problems.is_empty(), "{problems:?}");
        let other = 3 - i;
        let desired = [
            route(&format!("10.244.{other}.0/24"), &format!("192.0.2.{other}")),
            route(&format!("fd00:{other}::/64"), &format!("2001:db8::{other}")),
        ];
        node.with_manager(async |mut manager| {
            let report = reconcile(&mut manager, &desired).await;
            assert!(report.is_complete(), "{report:?}");
        });
    }
    for (from, to, address) in [
        (&pods[0], &pods[1], "10.244.2.5"),
        (&pods[1], &pods[0], "10.244.1.5"),
        (&pods[0], &pods[1], "fd00:2::5"),
        (&pods[1], &pods[0], "fd00:1::5"),
    ] {
        let address = SocketAddr::new(address.parse().expect("address"), 0);
        let listener = to.run(|| TcpListener::bind(address).expect("listen"));
        let target = listener.local_addr().expect("address");
        let connected = from.run(|| TcpStream::connect_timeout(&target, PATIENCE));
        let stream = connected.unwrap_or_else(|e| panic!("{} to {target}: {e}", from.name));
        let (_, peer) = listener.accept().expect("accept");
        assert_eq!(peer, stream.local_addr().expect("address"));
    }
}
