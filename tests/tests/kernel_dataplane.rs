//! Maps, pins and attachments. Needs root.

use std::fs;

use anyhow::{Context, Result};
use sluice_abi::{
    ABI_VERSION, Addr, Backend, Be16, Endpoint, Frontend, FrontendKey, NodePortKey, ServiceName,
    SlotKey, Slots, SourceRangeKey, maps, proto,
};
use sluice_plan::{MapOp, Tables};
use sluice_proxy::dataplane::{
    ApplyError, Dataplane, DataplaneError, MapSizes, Notice, Pinned, TcHook,
};
use sluice_tests::{
    bpffs::BpfRoot,
    kernel::{Lab, SMALL, addr},
    netns::NetNs,
};

fn backend(n: u32) -> Backend {
    Backend {
        addr: Addr::from_v4((0x0af4_0000 + n).to_be()),
        port: Be16::new(8080),
        proto: proto::TCP,
        flags: 0,
    }
}

fn frontend(n: u32) -> (FrontendKey, Frontend) {
    let key = FrontendKey {
        addr: Addr::from_v4((0x0a60_0000 + n).to_be()),
        port: Be16::new(80),
        proto: proto::TCP,
        scope: 0,
    };
    (key, Frontend { service: n, list: n, count: 1, flags: 1, affinity_secs: 0 })
}

/// IPv4 and IPv6 in turn.
fn source_range(n: u32) -> SourceRangeKey {
    let addr = if n.is_multiple_of(2) { "203.0.113.0" } else { "2001:db8::" };
    SourceRangeKey::new(n, addr.parse::<std::net::IpAddr>().expect("an address").into(), 24)
}

fn node_port(n: u32) -> NodePortKey {
    NodePortKey { port: Be16::new(30_000 + n as u16), proto: proto::TCP, reserved: 0 }
}

/// Many elements of every kind.
fn plan(count: u32) -> Vec<MapOp> {
    let mut ops = Vec::new();
    ops.extend((1..=count).map(|n| MapOp::PutBackend(n, backend(n))));
    ops.extend(
        (1..=count)
            .map(|n| MapOp::PutSlots(SlotKey { list: n, chunk: 0 }, Slots { backend: [n; 16] })),
    );
    ops.extend(
        (1..=count).map(|n| MapOp::PutName(n, ServiceName::new("ns", &format!("s{n}"), ""))),
    );
    ops.extend((1..=count).map(|n| MapOp::PutSourceRange(source_range(n))));
    ops.extend((1..=count.min(200)).map(|n| MapOp::PutNodePort(node_port(n), n)));
    ops.extend((0..count).map(|n| MapOp::SetFilterWord(n * 16, u64::from(n) << 32 | 1)));
    ops.extend((1..=count).map(|n| {
        let (key, value) = frontend(n);
        MapOp::PutFrontend(key, value)
    }));
    ops
}

/// What was applied is what a dump shows; doing it again changes nothing; deleting it leaves
/// nothing, and deleting what is gone is no error.
#[test]
fn a_dump_shows_what_was_applied() -> Result<()> {
    let mut lab = Lab::new("dump", false)?;
    assert_eq!(lab.dataplane.tables()?, Tables::default());
    let ops = plan(1000);
    for _ in 0..2 {
        lab.apply(&ops)?;
        assert_eq!(lab.dataplane.tables()?, *lab.tables());
    }
    assert_eq!(lab.tables().frontends.len(), 1000);
    assert_eq!(Pinned::open(lab.root())?.tables()?, *lab.tables());

    let mut deletes: Vec<MapOp> =
        (1..=1000).map(|n| MapOp::DeleteFrontend(frontend(n).0)).collect();
    deletes.extend((0..1000).map(|n| MapOp::SetFilterWord(n * 16, 0)));
    deletes.extend((1..=1000).map(|n| MapOp::DeleteSlots(SlotKey { list: n, chunk: 0 })));
    deletes.extend((1..=1000).map(|n| MapOp::DeleteSourceRange(source_range(n))));
    deletes.extend((1..=200).map(|n| MapOp::DeleteNodePort(node_port(n))));
    deletes.extend((1..=1000).map(MapOp::DeleteName));
    deletes.extend((1..=1000).map(MapOp::DeleteBackend));
    // One is gone already, in the middle of a batch.
    lab.apply(&[MapOp::DeleteBackend(500)])?;
    for _ in 0..2 {
        lab.apply(&deletes)?;
        assert_eq!(lab.dataplane.tables()?, Tables::default());
    }
    Ok(())
}

/// S33: a full map is named with its size and flag; what was programmed stays, and what comes after
/// it is not done.
#[test]
fn a_full_map_is_named_and_keeps_what_it_has() -> Result<()> {
    let mut lab = Lab::new("full", false)?;
    lab.apply(&plan(10))?;
    let mut ops: Vec<_> = (1..=5000).map(|n| MapOp::PutBackend(n, backend(n))).collect();
    let (key, value) = frontend(4242);
    ops.push(MapOp::PutFrontend(key, value));
    let error = lab.dataplane.apply(&ops).expect_err("there is no room for 5000");
    let ApplyError::Full { map, size, flag, ref op, done } = error else {
        panic!("another error: {error}");
    };
    assert_eq!((map, size, flag), (maps::BACKENDS, 4096, "--map-size-backends"));
    assert_eq!(**op, ops[done]);
    assert_eq!(done, 4096);
    let text = error.to_string();
    assert!(text.contains("BACKENDS") && text.contains("--map-size-backends"), "{text}");
    let tables = lab.dataplane.tables()?;
    assert_eq!(tables.backends.len(), 4096);
    assert_eq!(tables.frontends, lab.tables().frontends);
    Ok(())
}

/// S33: each map whose size is a flag and which gives nothing up by itself, full once: named with its
/// flag, and what it has stays.
#[test]
fn each_map_is_named_when_it_is_full() -> Result<()> {
    type Op = fn(u32) -> MapOp;
    let rows: [(&str, &str, u32, Op); 6] = [
        (maps::FRONTENDS, "--map-size-frontends", SMALL.frontends, |n| {
            let (key, value) = frontend(n);
            MapOp::PutFrontend(key, value)
        }),
        (maps::SLOTS, "--map-size-slots", SMALL.slots, |n| {
            MapOp::PutSlots(SlotKey { list: n, chunk: 0 }, Slots { backend: [n; 16] })
        }),
        (maps::BACKENDS, "--map-size-backends", SMALL.backends, |n| {
            MapOp::PutBackend(n, backend(n))
        }),
        (maps::SERVICE_NAMES, "--map-size-names", SMALL.names, |n| {
            MapOp::PutName(n, ServiceName::new("ns", "web", ""))
        }),
        (maps::SOURCE_RANGES, "--map-size-source-ranges", SMALL.source_ranges, |n| {
            MapOp::PutSourceRange(source_range(n))
        }),
        (maps::NODE_PORTS, "--map-size-node-ports", SMALL.node_ports, |n| {
            MapOp::PutNodePort(node_port(n), n)
        }),
    ];
    let mut lab = Lab::new("each-full", false)?;
    for (name, size_flag, room, op) in rows {
        let ops: Vec<MapOp> = (1..=room + 10).map(op).collect();
        let error = lab.dataplane.apply(&ops).expect_err("there is no room");
        let ApplyError::Full { map, size, flag, done, .. } = error else {
            panic!("{name}: another error: {error}");
        };
        assert_eq!((map, flag, size, done), (name, size_flag, room, room as usize));
        let tables = lab.dataplane.tables()?;
        let mut expected = Tables::default();
        ops[..done].iter().for_each(|op| expected.apply(op));
        let held = |tables: &Tables| match name {
            maps::FRONTENDS => format!("{:?}", tables.frontends),
            maps::SLOTS => format!("{:?}", tables.slots),
            maps::BACKENDS => format!("{:?}", tables.backends),
            maps::SERVICE_NAMES => format!("{:?}", tables.names),
            maps::SOURCE_RANGES => format!("{:?}", tables.source_ranges),
            _ => format!("{:?}", tables.node_ports),
        };
        assert!(held(&tables) == held(&expected), "{name}: what was written is not what is there");
    }
    for n in 0..SMALL.endpoints {
        lab.endpoint(&format!("10.244.{}.{}", n / 250, n % 250 + 1), Endpoint::default())?;
    }
    let error = lab.dataplane.put_endpoint(addr("10.245.0.1"), Endpoint::default());
    let text = error.expect_err("there is no room").to_string();
    assert!(text.contains("ENDPOINTS") && text.contains("--map-size-endpoints"), "{text}");
    assert_eq!(lab.dataplane.endpoints()?.len(), SMALL.endpoints as usize);
    Ok(())
}

/// S32: maps that are pinned keep what they hold and their sizes; other sizes are reported.
#[test]
fn pinned_maps_keep_their_contents_and_sizes() -> Result<()> {
    let mut lab = Lab::new("sizes", false)?;
    lab.apply(&plan(20))?;
    lab.endpoint("10.244.1.9", Endpoint { ifindex: 7, ..Endpoint::default() })?;
    let mut config = lab.config().clone();
    config.sizes = MapSizes { frontends: 2048, ..SMALL };
    let dataplane = Dataplane::open(config)?;
    assert_eq!(dataplane.tables()?, *lab.tables());
    assert_eq!(dataplane.endpoints()?.len(), 1);
    assert_eq!(dataplane.view().size(maps::FRONTENDS), Some(1024));
    assert_eq!(
        dataplane.notices(),
        [Notice::SizeKept {
            map: maps::FRONTENDS,
            flag: "--map-size-frontends",
            kept: 1024,
            asked: 2048
        }]
    );
    Ok(())
}

/// A pinned map of another shape is refused by name, and is left as it is.
#[test]
fn a_pinned_map_of_another_shape_is_refused() -> Result<()> {
    let root = BpfRoot::new("shape")?;
    let pin = root.path().join(format!("v{ABI_VERSION}/maps")).join(maps::BACKENDS);
    fs::create_dir_all(root.path().join(format!("v{ABI_VERSION}/maps")))?;
    // Without preallocation, with the right key, and with a value of 8 bytes.
    let foreign = aya::maps::HashMap::<aya::maps::MapData, u32, u64>::create(SMALL.backends, 1)?;
    foreign.pin(&pin)?;
    let config = sluice_proxy::dataplane::Config {
        bpf_root: root.path().to_owned(),
        cgroup: sluice_tests::cgroup::mount_point()?,
        sizes: SMALL,
        fast_path: false,
    };
    let error = Dataplane::open(config).expect_err("the shape is wrong");
    let DataplaneError::PinnedShape { path, field, found, expected } = &error else {
        panic!("another error: {error}");
    };
    assert_eq!((path, *field), (&pin, "value size"));
    assert_eq!((found.as_str(), expected.as_str()), ("8", "20"));
    assert!(pin.exists());
    Ok(())
}

/// The error for a directory that is not on bpffs says what to mount.
#[test]
fn a_directory_elsewhere_is_refused_with_a_hint() -> Result<()> {
    sluice_tests::require_root()?;
    let directory = tempfile::tempdir()?;
    let config = sluice_proxy::dataplane::Config {
        bpf_root: directory.path().join("sluice"),
        cgroup: sluice_tests::cgroup::mount_point()?,
        sizes: SMALL,
        fast_path: false,
    };
    let error = Dataplane::open(config).expect_err("it is no BPF file system");
    assert!(matches!(error, DataplaneError::NotBpfFs { .. }), "{error}");
    assert!(error.to_string().contains("mount -t bpf bpf /sys/fs/bpf"), "{error}");
    Ok(())
}

/// O8: with nothing pinned, the view says so.
#[test]
fn a_view_of_nothing_says_so() -> Result<()> {
    let root = BpfRoot::new("nothing")?;
    let error = Pinned::open(root.path()).expect_err("nothing is pinned");
    assert!(matches!(error, DataplaneError::NothingPinned { .. }), "{error}");
    Ok(())
}

/// Endpoints are put, changed and deleted.
#[test]
fn endpoints_are_put_changed_and_deleted() -> Result<()> {
    let mut lab = Lab::new("endpoints", false)?;
    let (one, two) = (addr("10.244.1.1"), addr("fd00:244:1::1"));
    let endpoint = Endpoint { ifindex: 7, id: 1, ..Endpoint::default() };
    lab.dataplane.put_endpoint(two, endpoint)?;
    lab.dataplane.put_endpoint(one, endpoint)?;
    let moved = Endpoint { ifindex: 8, ..endpoint };
    lab.dataplane.put_endpoint(one, moved)?;
    assert_eq!(lab.dataplane.endpoints()?, [(one, moved), (two, endpoint)]);
    assert!(lab.dataplane.delete_endpoint(one)?);
    assert!(!lab.dataplane.delete_endpoint(one)?);
    assert_eq!(lab.dataplane.endpoints()?, [(two, endpoint)]);
    Ok(())
}

/// The pins of pods' links.
fn pod_pins(lab: &Lab) -> Result<Vec<String>> {
    let mut names: Vec<String> = fs::read_dir(lab.root().join(format!("v{ABI_VERSION}/links")))?
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<Result<_>>()?;
    names.sort();
    Ok(names)
}

/// Programs are attached to a pod's interface once, replaced in place after that, and their pins
/// go when the interface has gone.
#[test]
fn pod_programs_are_replaced_in_place_and_go_with_the_interface() -> Result<()> {
    let mut lab = Lab::new("attach", false)?;
    let node = NetNs::new("attach")?;
    let pod = NetNs::new("attach-pod")?;
    node.veth("slu0", &pod, "eth0")?;
    let first = node.run(|| lab.dataplane.attach_pod("slu0", TcHook::Tcx))??;
    assert!(!first.replaced);
    let pins = pod_pins(&lab)?;
    let second = node.run(|| lab.dataplane.attach_pod("slu0", TcHook::Tcx))??;
    assert!(second.replaced || second.hook == TcHook::Clsact);
    assert_eq!(second.ifindex, first.ifindex);
    assert_eq!(pod_pins(&lab)?, pins);

    assert_eq!(lab.dataplane.detach_gone()?, Vec::<u32>::new());
    node.ip("link del slu0")?;
    if first.hook == TcHook::Tcx {
        assert_eq!(pins.len(), 2, "{pins:?}");
        assert_eq!(lab.dataplane.detach_gone()?, [first.ifindex]);
    }
    assert_eq!(pod_pins(&lab)?, Vec::<String>::new());
    Ok(())
}

/// An interface that took the index of one that is gone gets programs of its own.
#[test]
fn a_new_interface_with_an_old_index_is_attached() -> Result<()> {
    let mut lab = Lab::new("index", false)?;
    let node = NetNs::new("index")?;
    node.ip("link add slu0 index 77 type veth peer name peer0")?;
    let first = node.run(|| lab.dataplane.attach_pod("slu0", TcHook::Tcx))??;
    assert_eq!(first.ifindex, 77);
    node.ip("link del slu0\nlink add slu1 index 77 type veth peer name peer1")?;
    let second = node.run(|| lab.dataplane.attach_pod("slu1", TcHook::Tcx))??;
    assert!(!second.replaced);
    assert_eq!(lab.dataplane.detach_gone()?, Vec::<u32>::new());
    Ok(())
}

/// Where TCX is not to be had, filters do the same job, one each way however often.
#[test]
fn filters_are_replaced_in_place() -> Result<()> {
    let mut lab = Lab::new("clsact", false)?;
    let node = NetNs::new("clsact")?;
    node.ip("link add slu0 type veth peer name peer0")?;
    let attach = |lab: &mut Lab| {
        node.run(|| lab.dataplane.attach_pod_by("slu0", TcHook::Clsact))
            .context("enter the namespace")
    };
    assert!(!attach(&mut lab)??.replaced);
    assert!(attach(&mut lab)??.replaced);
    for direction in ["ingress", "egress"] {
        let filters = node.run(|| {
            sluice_tests::netns::run("tc", &["filter", "show", "dev", "slu0", direction])
        })??;
        assert_eq!(filters.matches("direct-action").count(), 1, "{filters}");
    }
    Ok(())
}

/// Where another's ingress queueing discipline is, there is no room for clsact, and nothing is put into what is there; an
/// interface that has its programs by TCX keeps them so.
#[test]
fn an_interface_is_attached_once_and_leaves_room_for_others() -> Result<()> {
    let lab = Lab::new("occupied", false)?;
    let node = NetNs::new("occupied")?;
    node.ip("link add slu0 type veth peer name peer0")?;
    let tc = |args: &[&str]| -> Result<String> {
        node.run(|| sluice_tests::netns::run("tc", args)).context("enter the namespace")?
    };
    tc(&["qdisc", "add", "dev", "slu0", "handle", "ffff:", "ingress"])?;
    let by_filter = node.run(|| lab.dataplane.attach_pod_by("slu0", TcHook::Clsact))?;
    let error = by_filter.expect_err("it is taken").to_string();
    assert!(error.contains("another's ingress"), "{error}");
    let first = node.run(|| lab.dataplane.attach_pod("slu0", TcHook::Clsact))??;
    assert_eq!((first.hook, first.replaced), (TcHook::Tcx, false));
    assert_eq!(tc(&["filter", "show", "dev", "slu0", "ingress"])?, "");
    // The place is free now, but one pair of programs is enough.
    tc(&["qdisc", "del", "dev", "slu0", "ingress"])?;
    let second = node.run(|| lab.dataplane.attach_pod("slu0", TcHook::Clsact))??;
    assert_eq!((second.hook, second.replaced), (TcHook::Tcx, true));
    assert!(!tc(&["qdisc", "show", "dev", "slu0"])?.contains("clsact"));
    Ok(())
}

/// An interface that is not there is named.
#[test]
fn an_unknown_interface_is_named() -> Result<()> {
    let lab = Lab::new("unknown", false)?;
    let error = lab.dataplane.attach_pod("slu-none", TcHook::Tcx).expect_err("there is none");
    assert!(error.to_string().contains("slu-none"), "{error}");
    Ok(())
}
