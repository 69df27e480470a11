//! The tunnel's device on the real kernel, in network namespaces of its own. Needs root.

use std::fs::File;
use std::os::fd::AsFd as _;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use sluice_model::{Meta, Node, NodeAddress, NodeAddressKind, ObjectName};
use sluice_proxy::routes::{
    Desired, Encapsulation, RouteManager, RouteReport, SkipReason, VxlanConfig, desired,
};

static NEXT: AtomicU32 = AtomicU32::new(0);
/// How long anything may take; never reached when all is well.
const PATIENCE: Duration = Duration::from_secs(60);

/// A named network namespace; deleted when dropped, also by a failing test.
struct Ns(String);

impl Ns {
    /// A node at 192.0.2.1 and 2001:db8::1, with a router.
    fn node() -> Self {
        assert!(
            rustix::process::geteuid().is_root(),
            "this test makes network namespaces: run it as root"
        );
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("slc-v{}-{number}-node", std::process::id());
        run(Command::new("ip").args(["netns", "add", &name]));
        let ns = Self(name);
        for command in [
            "link set lo up",
            "link add uplink type veth peer name wire",
            "link set wire up",
            "link set uplink mtu 1400 up",
            "addr add 192.0.2.1/24 dev uplink",
            "-6 addr add 2001:db8::1/64 dev uplink nodad",
            "route add default via 192.0.2.254",
            "-6 route add default via 2001:db8::fe",
        ] {
            ns.ip(command);
        }
        ns
    }

    fn ip(&self, args: &str) -> String {
        run(Command::new("ip").args(["-n", &self.0]).args(args.split_whitespace()))
    }

    fn bridge(&self, args: &str) -> String {
        run(Command::new("bridge").args(["-n", &self.0]).args(args.split_whitespace()))
    }

    fn has_device(&self) -> bool {
        self.ip("link").contains("sluice-vxlan")
    }

    /// Runs async code with a route manager inside; all of it must be done in time.
    fn with_manager<T: Send>(
        &self,
        config: VxlanConfig,
        work: impl AsyncFnOnce(RouteManager) -> T + Send,
    ) -> T {
        let inside = || {
            let file = File::open(format!("/run/netns/{}", self.0)).expect("the namespace");
            let kind = rustix::thread::LinkNameSpaceType::Network;
            rustix::thread::move_into_link_name_space(file.as_fd(), Some(kind)).expect("setns");
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().expect("tokio");
            runtime.block_on(async {
                let manager = RouteManager::open_with_tunnel(config).expect("netlink");
                tokio::time::timeout(PATIENCE, work(manager)).await.expect("done in time")
            })
        };
        thread::scope(|scope| scope.spawn(inside).join().expect("the code inside a namespace"))
    }
}

impl Drop for Ns {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.0]).status();
    }
}

fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {stderr}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn node(name: &str, cidrs: &[&str], addrs: &[&str]) -> Node {
    let address = |text: &&str| NodeAddress {
        kind: NodeAddressKind::Internal,
        addr: text.parse().expect("an address"),
    };
    Node {
        meta: Meta { name: ObjectName::new("", name), ..Meta::default() },
        pod_cidrs: cidrs.iter().map(|c| c.parse().expect("a range")).collect(),
        addrs: addrs.iter().map(address).collect(),
        taints: Vec::new(),
    }
}

/// The tunnel from 192.0.2.1, or from 2001:db8::1, to a node with addresses of that family alone.
fn wanted(v4: bool) -> Desired {
    let (own, other) =
        if v4 { (["192.0.2.1"], ["198.51.100.2"]) } else { (["2001:db8::1"], ["2001:db8:51::2"]) };
    let nodes = [
        node("a", &["10.244.1.0/24", "fd00:1::/64"], &own),
        node("b", &["10.244.2.0/24", "fd00:2::/64"], &other),
    ];
    desired("a", &nodes, Encapsulation::CrossSubnet)
}

async fn reconcile(manager: &mut RouteManager, desired: &Desired) -> RouteReport {
    manager.reconcile_all(desired).await.expect("the kernel answers")
}

/// R5: both families of pods over either family of the underlay, with room for the outer headers; done again, nothing is
/// left to do.
#[test]
fn both_families_go_over_either() {
    for (v4, mtu) in [(true, 1350), (false, 1330)] {
        let ns = Ns::node();
        ns.with_manager(VxlanConfig::default(), async |mut manager| {
            let report = reconcile(&mut manager, &wanted(v4)).await;
            assert!(report.is_complete(), "{report:?}");
            assert_eq!(report.replaced.len(), 2, "{report:?}");
            assert_eq!(report.tunnel.expect("a tunnel").mtu, mtu);
            let report = reconcile(&mut manager, &wanted(v4)).await;
            assert_eq!((report.replaced.len(), report.unchanged.len()), (0, 2), "{report:?}");
        });
        let peer = if v4 { "198.51.100.2" } else { "2001:db8:51::2" };
        assert!(ns.bridge("fdb show dev sluice-vxlan").contains(&format!("dst {peer}")));
        let ways = ns.ip("route get 10.244.2.5") + &ns.ip("-6 route get fd00:2::5");
        assert_eq!(ways.matches("dev sluice-vxlan").count(), 2, "{ways}");
        // What pods send to the other node goes the same way; what the node sends does not.
        let family = if v4 { "" } else { "-6 " };
        ns.ip("link add pod type veth peer name pod-peer");
        ns.ip("link set pod up");
        let (pod, reach) =
            if v4 { ("10.244.1.5", "10.244.1.0/24") } else { ("fd00:1::5", "fd00:1::/64") };
        ns.ip(&format!("{family}route add {reach} dev pod"));
        let way = ns.ip(&format!("{family}route get {peer} from {pod} iif pod"));
        assert!(way.contains("dev sluice-vxlan"), "{way}");
        let way = ns.ip(&format!("{family}route get {peer}"));
        assert!(way.contains("dev uplink"), "{way}");
    }
}

/// R5, R2: what went stale while no agent ran is removed, whoever made it; a device with other settings is made anew;
/// without a tunnel all of it goes, and other rules and devices stay.
#[test]
fn what_is_stale_goes_and_what_is_broken_comes_back() {
    let ns = Ns::node();
    ns.ip("link add sluice-vxlan type vxlan id 7 dstport 4789 remote 198.51.100.9");
    ns.ip("link add other type vxlan id 8 dstport 4788");
    ns.ip("rule add from 10.9.0.0/16 lookup 92 pref 29092 proto 92");
    ns.ip("rule add from 10.9.0.0/16 lookup 91 pref 29092");
    let index = |ns: &Ns| ns.ip("-o link show sluice-vxlan").split(':').next().map(str::to_owned);
    let first = index(&ns);
    ns.with_manager(VxlanConfig::default(), async |mut manager| {
        let report = reconcile(&mut manager, &wanted(true)).await;
        assert!(report.is_complete(), "{report:?}");
        let made = index(&ns);
        assert_ne!(made, first);
        let mac = "0e:5c:00:00:00:07";
        ns.bridge(&format!("fdb add {mac} dev sluice-vxlan dst 198.51.100.7"));
        ns.ip(&format!("neigh add 198.51.100.7 lladdr {mac} dev sluice-vxlan nud permanent"));
        reconcile(&mut manager, &wanted(true)).await;
        let entries =
            ns.bridge("fdb show dev sluice-vxlan") + &ns.ip("neigh show dev sluice-vxlan");
        assert!(!entries.contains(mac) && entries.contains("198.51.100.2"), "{entries}");
        let rules = ns.ip("rule");
        assert!(!rules.contains("from 10.9.0.0/16 lookup 92"), "{rules}");
        assert!(rules.contains("from 10.9.0.0/16 lookup 91"), "{rules}");

        // Each is missed at once, by the kernel's word; there is no timer to wait for.
        let breaks = [
            "link del sluice-vxlan",
            "neigh flush dev sluice-vxlan nud permanent",
            "rule del from 10.244.1.0/24 lookup 92",
            "route flush table 92",
            "route del 10.244.2.0/24",
            "link set sluice-vxlan mtu 1280",
            "link set sluice-vxlan down",
        ];
        // Some fail while the device or the table is gone.
        let state = || {
            let shown = [
                "neigh show dev sluice-vxlan nud permanent",
                "rule",
                "route",
                "route show table 92",
                "-6 route",
                "-o link show sluice-vxlan up",
            ];
            shown.map(|args| {
                let args = args.split_whitespace();
                let output = Command::new("ip").args(["-n", &ns.0]).args(args).output();
                let text = String::from_utf8_lossy(&output.expect("ip").stdout).into_owned();
                // The device's index changes.
                text.split_once(": ").map_or(text.clone(), |(_, rest)| rest.to_owned())
            })
        };
        let right = state();
        for command in breaks {
            ns.ip(command);
            while state() != right {
                manager.changed().await.expect("an event");
                reconcile(&mut manager, &wanted(true)).await;
            }
        }
        reconcile(&mut manager, &wanted(true)).await;
        assert!(ns.ip("link show sluice-vxlan").contains("mtu 1350"));
        // The underlay has less room.
        ns.ip("link set uplink mtu 1380");
        while !ns.ip("link show sluice-vxlan").contains("mtu 1330") {
            manager.changed().await.expect("an event");
            reconcile(&mut manager, &wanted(true)).await;
        }
    });
    let made = index(&ns);
    ns.with_manager(VxlanConfig { id: 93, port: 8492 }, async |mut manager| {
        assert!(reconcile(&mut manager, &wanted(true)).await.is_complete());
        assert_ne!(index(&ns), made);
        let report = manager.reconcile(&[]).await.expect("the kernel answers");
        assert!(report.tunnel_removed);
    });
    assert!(!ns.has_device());
    let left = ns.ip("rule") + &ns.ip("route show table all proto 92") + &ns.ip("link");
    assert!(!left.contains("lookup 92") && !left.contains("10.244"), "{left}");
    assert!(left.contains("lookup 91") && left.contains("other"), "{left}");
}

/// R3: a link of another kind that has the device's name is somebody else's.
#[test]
fn somebody_elses_link_is_left_alone() {
    let ns = Ns::node();
    ns.ip("link add sluice-vxlan type bridge");
    ns.with_manager(VxlanConfig::default(), async |mut manager| {
        let report = reconcile(&mut manager, &wanted(true)).await;
        let error = report.tunnel_error.expect("no tunnel").to_string();
        assert!(error.contains("another kind"), "{error}");
        assert_eq!(report.skipped.len(), 2);
        let no_tunnel =
            |s: &sluice_proxy::routes::Skipped| matches!(s.reason, SkipReason::NoTunnel(_));
        assert!(report.skipped.iter().all(no_tunnel), "{:?}", report.skipped);
        assert!(!manager.reconcile(&[]).await.expect("the kernel answers").tunnel_removed);
    });
    assert!(ns.has_device());
}

/// O6: a kind of device that the kernel does not have is told from one that it has, and asking makes none.
#[test]
fn what_the_kernel_lacks_is_known_before_it_is_needed() {
    let ns = Ns::node();
    ns.with_manager(VxlanConfig::default(), async |manager| {
        assert!(manager.kernel_has("vxlan").await);
        assert!(!manager.kernel_has("no-such-kind").await);
    });
    assert!(!ns.has_device());
}
