//! The pods of a node, from records to the kernel's map: how much work one of them is, and that
//! nothing is lost. Needs root.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use aya::maps::{HashMap, Map, MapData};
use serde_json::json;
use sluice_abi::{
    ABI_VERSION, Addr, Affinity, AffinityKey, CtEntry, CtKey, Endpoint, PolicyFlow, PolicyFlowKey,
    PolicySets, maps, proto,
};
use sluice_plan::PolicyOp;
use sluice_proxy::agent::{Endpoints, Work};
use sluice_proxy::control::EndpointRef;
use sluice_proxy::dataplane::{Collector, Config, Dataplane, MapSizes, Timeouts};
use sluice_tests::bpffs::BpfRoot;
use sluice_tests::cgroup;
use sluice_tests::cluster::WorkDir;
use sluice_tests::kernel::{SMALL, addr};
use sluice_tests::netns::NetNs;

/// A node with records and interfaces that no plugin made.
struct Pods {
    node: NetNs,
    dir: WorkDir,
    dataplane: Dataplane,
    endpoints: Endpoints,
    config: Config,
    root: BpfRoot,
}

/// A pod by its number.
#[derive(Clone, Copy)]
struct Pod(u32);

impl Pod {
    fn key(self) -> EndpointRef {
        EndpointRef { container_id: format!("c{}", self.0), interface: "eth0".to_owned() }
    }

    fn interface(self) -> String {
        format!("slu{:011x}", self.0)
    }

    /// Makes its interface, in the words of `ip`.
    fn link(self) -> String {
        format!("link add {} type veth peer name pod{}", self.interface(), self.0)
    }

    fn v4(self) -> String {
        format!("10.244.{}.{}", self.0 / 200, self.0 % 200 + 2)
    }

    fn v6(self) -> String {
        format!("fd00:244:1::{:x}", self.0 + 2)
    }

    fn file(self) -> String {
        format!("{},{},{}.json", self.interface(), self.v4(), self.v6())
    }

    fn record(self, hook: &str) -> String {
        json!({
            "version": 1, "network": "pods", "containerId": format!("c{}", self.0),
            "interface": "eth0", "netns": "", "hostInterface": self.interface(),
            "mac": "02:00:00:00:00:01", "hostMac": "02:00:00:00:00:02", "mtu": 1500,
            "addresses": [self.v4(), self.v6()], "podNamespace": "shop",
            "podName": format!("web-{}", self.0), "hook": hook, "bootId": "b",
        })
        .to_string()
    }
}

impl Pods {
    fn new(sizes: MapSizes) -> Result<Self> {
        let root = BpfRoot::new("endpoints")?;
        let node = NetNs::new("endpoints")?;
        let dir = WorkDir::new("endpoints")?;
        fs::create_dir(dir.path().join("endpoints"))?;
        let config = Config {
            bpf_root: root.path().to_owned(),
            cgroup: cgroup::mount_point()?,
            sizes,
            fast_path: true,
        };
        let dataplane = Dataplane::open(config.clone())?;
        let endpoints = Endpoints::new(dir.path().join("endpoints"), true);
        Ok(Self { node, dir, dataplane, endpoints, config, root })
    }

    fn path(&self, pod: Pod) -> PathBuf {
        self.dir.path().join("endpoints").join(pod.file())
    }

    /// As the plugin leaves them: the record, then the interface.
    fn make(&self, pods: &[Pod], hook: &str) -> Result<()> {
        for pod in pods {
            write(&self.path(*pod), &pod.record(hook))?;
        }
        let lines: Vec<String> = pods.iter().map(|pod| pod.link()).collect();
        self.node.ip(&lines.join("\n"))
    }

    /// Runs something of the agent's on the node; what it was in work.
    fn work<T: Send>(
        &mut self,
        call: impl FnOnce(&mut Endpoints, &mut Dataplane) -> T + Send,
    ) -> Result<(T, Work)> {
        let Self { node, dataplane, endpoints, .. } = self;
        let before = endpoints.work();
        let done = node.run(|| call(endpoints, dataplane))?;
        let after = self.endpoints.work();
        let work = Work {
            records_read: after.records_read - before.records_read,
            interfaces_read: after.interfaces_read - before.interfaces_read,
            attached: after.attached - before.attached,
            map_dumps: after.map_dumps - before.map_dumps,
            map_writes: after.map_writes - before.map_writes,
        };
        Ok((done, work))
    }

    fn sync(&mut self) -> Result<Work> {
        let (done, work) = self.work(Endpoints::sync)?;
        done?;
        Ok(work)
    }

    fn touch(&mut self, pod: Pod) -> Result<Work> {
        let (done, work) =
            self.work(|endpoints, dataplane| endpoints.touched(dataplane, &pod.file()))?;
        done?;
        Ok(work)
    }

    fn ifindex(&self, pod: Pod) -> Result<u32> {
        let shown = self.node.ip_output(&["-o", "link", "show", "dev", &pod.interface()])?;
        Ok(shown.split(':').next().context("an index")?.trim().parse()?)
    }

    /// What the kernel's map has of a pod's first address.
    fn entry(&self, pod: Pod) -> Result<Option<Endpoint>> {
        self.at(&pod.v4())
    }

    fn at(&self, address: &str) -> Result<Option<Endpoint>> {
        let wanted: Addr = addr(address);
        let found = self.dataplane.endpoints()?.into_iter().find(|(addr, _)| *addr == wanted);
        Ok(found.map(|(_, endpoint)| endpoint))
    }

    fn gone(&mut self, ifindex: u32) -> Result<()> {
        let call = |endpoints: &mut Endpoints, dataplane: &mut Dataplane| {
            endpoints.interface_changed(dataplane, ifindex, true)
        };
        Ok(self.work(call)?.0?)
    }

    fn remove(&mut self, pod: Pod) -> Result<()> {
        let (done, _) =
            self.work(|endpoints, dataplane| endpoints.remove(dataplane, &pod.key()))?;
        Ok(done?)
    }

    /// A map that the programs write, too.
    fn map<K: aya::Pod, V: aya::Pod>(&self, name: &str) -> Result<HashMap<MapData, K, V>> {
        let path = self.root.path().join(format!("v{ABI_VERSION}/maps")).join(name);
        Ok(Map::from_map_data(MapData::from_pin(path)?)?.try_into()?)
    }

    /// Writes down what the programs would of a pod that asked a service with affinity, and was allowed to.
    fn write_down(&self, pod: Pod) -> Result<()> {
        let (own, service) = (addr(&pod.v4()), addr("10.96.0.10"));
        let flow = CtKey { src: own, dst: service, proto: proto::TCP, ..CtKey::default() };
        self.map::<CtKey, CtEntry>(maps::CONNTRACK)?.insert(flow, CtEntry::default(), 0)?;
        let judged = PolicyFlowKey { low: own, high: service, ..PolicyFlowKey::default() };
        let mut flows = self.map::<PolicyFlowKey, PolicyFlow>(maps::POLICY_FLOWS)?;
        flows.insert(judged, PolicyFlow::default(), 0)?;
        let client = AffinityKey { client: own, service: 7, flags: 0 };
        let mut clients = self.map::<AffinityKey, Affinity>(maps::AFFINITY)?;
        clients.insert(client, Affinity::default(), 0)?;
        // A network namespace whose cookie happens to look like the address.
        let namespace = AffinityKey { flags: AffinityKey::COOKIE, ..client };
        Ok(clients.insert(namespace, Affinity::default(), 0)?)
    }

    /// How many flows of the pod are written down, how many that policies allowed, and how often it is a
    /// client of a service with affinity.
    fn written(&self, pod: Pod) -> Result<[usize; 3]> {
        let (own, view) = (addr(&pod.v4()), self.dataplane.view());
        let flows = view.conntrack()?.into_iter().filter(|(key, _)| key.src == own);
        let judged = view.policy_flows()?.into_iter().filter(|(key, _)| key.low == own);
        let clients = view.affinity()?.into_iter();
        let clients = clients.filter(|(key, _)| key.client == own && key.flags == 0);
        Ok([flows.count(), judged.count(), clients.count()])
    }

    fn problems(&self) -> Vec<String> {
        self.endpoints.problems().map(|(s, m)| format!("{s}: {m}")).collect()
    }
}

/// Whole or not at all, as the plugin writes.
fn write(path: &Path, text: &str) -> Result<()> {
    let partial = path.with_extension("new");
    fs::write(&partial, text)?;
    Ok(fs::rename(partial, path)?)
}

/// C9: among two hundred pods, a request of the plugin reads one record, asks for one interface,
/// attaches to one and writes the addresses of one; nothing is listed or dumped.
#[test]
fn a_request_is_work_for_one_pod_among_two_hundred() -> Result<()> {
    let mut pods = Pods::new(MapSizes { endpoints: 1024, ..SMALL })?;
    let many: Vec<Pod> = (0..200).map(Pod).collect();
    pods.make(&many, "clsact")?;
    let work = pods.sync()?;
    assert_eq!((work.records_read, work.attached, work.map_writes), (200, 200, 400));
    assert_eq!(pods.endpoints.served(), 200);

    let one = Pod(200);
    pods.make(&[one], "clsact")?;
    let (done, work) =
        pods.work(|endpoints, dataplane| endpoints.add(dataplane, &one.key(), Some(&one.file())))?;
    done?;
    let of_one =
        Work { records_read: 1, interfaces_read: 1, attached: 1, map_dumps: 0, map_writes: 2 };
    assert_eq!(work, of_one);
    assert_eq!(pods.endpoints.check(&one.key()), Ok(()));
    ensure!(pods.entry(one)?.is_some_and(|endpoint| endpoint.flags == 0), "it is in the map");

    let (done, work) = pods.work(|endpoints, dataplane| endpoints.remove(dataplane, &one.key()))?;
    done?;
    assert_eq!(work, Work { map_writes: 2, ..Work::default() });
    assert_eq!(pods.entry(one)?, None);
    // The event of the record that goes then, and a look at everything: nothing changed.
    fs::remove_file(pods.path(one))?;
    pods.node.ip(&format!("link del {}", one.interface()))?;
    assert_eq!(pods.touch(one)?, Work::default());
    let work = pods.sync()?;
    assert_eq!((work.records_read, work.attached, work.map_writes), (0, 0, 0));
    assert_eq!(pods.endpoints.served(), 200);

    // A plugin that does not name the record costs a look at all of them, and is served.
    pods.make(&[one], "clsact")?;
    let (done, work) =
        pods.work(|endpoints, dataplane| endpoints.add(dataplane, &one.key(), None))?;
    done?;
    assert_eq!((work.records_read, work.attached, work.map_writes), (1, 1, 2));
    Ok(())
}

/// S30: the programs can ask for a pod's own sockets, by the number that the node has for the pod's
/// network namespace, as soon as the pod's interface is in it.
#[test]
fn a_pods_network_namespace_is_known_by_its_number() -> Result<()> {
    let mut pods = Pods::new(SMALL)?;
    let (there, not_yet) = (Pod(1), Pod(2));
    pods.make(&[there, not_yet], "clsact")?;
    let inside = NetNs::new("endpoints-pod")?;
    pods.node.ip(&format!("link set pod{} netns {}", there.0, inside.name()))?;
    pods.sync()?;
    let number = pods.node.number_of_peer(&there.interface())?.context("a number")?;
    let netns = |pods: &Pods, pod| pods.entry(pod).map(|entry| entry.map(|entry| entry.netns));
    assert_eq!(netns(&pods, there)?, Some(number + 1));
    assert_eq!(netns(&pods, not_yet)?, Some(0));

    pods.node.ip(&format!("link set pod{} netns {}", not_yet.0, inside.name()))?;
    pods.sync()?;
    assert_eq!(netns(&pods, not_yet)?, Some(number + 1));
    Ok(())
}

/// C6: a name that leads elsewhere, or to the record of another attachment, is not followed.
#[test]
fn a_request_with_a_wrong_name_finds_its_record_all_the_same() -> Result<()> {
    let mut pods = Pods::new(SMALL)?;
    let (one, other) = (Pod(1), Pod(2));
    pods.make(&[one, other], "clsact")?;
    let elsewhere = format!("../endpoints/{}", one.file());
    for name in [other.file(), elsewhere, "none.json".to_owned(), String::new()] {
        let (done, _) =
            pods.work(|endpoints, dataplane| endpoints.add(dataplane, &one.key(), Some(&name)))?;
        done?;
        assert_eq!(pods.endpoints.check(&one.key()), Ok(()), "{name}");
    }
    Ok(())
}

/// C6: a record that is changed, damaged or removed by hand, and an interface that is deleted by hand:
/// the map follows, and a pod that runs is not lost for a damaged record.
#[test]
fn what_is_done_by_hand_is_followed() -> Result<()> {
    let mut pods = Pods::new(SMALL)?;
    let (a, b, c) = (Pod(1), Pod(2), Pod(3));
    pods.make(&[a, b, c], "tcx")?;
    pods.sync()?;
    let number = pods.entry(a)?.context("served")?.id;

    let moved = a.record("tcx").replace(&a.v4(), "10.244.9.9");
    write(&pods.path(a), &moved)?;
    let work = pods.touch(a)?;
    assert_eq!((work.records_read, work.attached, work.map_writes), (1, 0, 2));
    assert_eq!(pods.entry(a)?, None);
    assert_eq!(pods.at("10.244.9.9")?.context("its new address")?.id, number);

    write(&pods.path(a), "{\"vers")?;
    pods.touch(a)?;
    ensure!(pods.at("10.244.9.9")?.is_some(), "a pod that runs goes on");
    let problems = pods.problems();
    ensure!(problems.len() == 1 && problems[0].contains(&a.file()), "{problems:?}");
    ensure!(problems[0].contains("served by what the record said before"), "{problems:?}");
    pods.sync()?;
    ensure!(pods.at("10.244.9.9")?.is_some(), "also after a look at everything");

    fs::remove_file(pods.path(a))?;
    assert_eq!(pods.touch(a)?.map_writes, 2);
    assert_eq!((pods.at("10.244.9.9")?, pods.problems()), (None, Vec::new()));

    let ifindex = pods.ifindex(b)?;
    pods.node.ip(&format!("link del {}", b.interface()))?;
    let (done, _) =
        pods.work(|endpoints, dataplane| endpoints.interface_changed(dataplane, ifindex, true))?;
    done?;
    assert_eq!(pods.entry(b)?, None);
    ensure!(pods.endpoints.check(&b.key()).is_err(), "it has no interface");
    ensure!(pods.entry(c)?.is_some(), "nothing happened to it");
    // Its record stands, and so it comes back with its interface.
    pods.node.ip(&b.link())?;
    pods.sync()?;
    assert_eq!(pods.entry(b)?.context("served again")?.ifindex, pods.ifindex(b)?);
    Ok(())
}

/// S32, C6: an agent that starts where another one was takes the pods over as they are, and forgets
/// what went in between.
#[test]
fn an_agent_that_was_restarted_goes_on_where_the_other_was() -> Result<()> {
    let mut pods = Pods::new(SMALL)?;
    let (a, b, c) = (Pod(1), Pod(2), Pod(3));
    pods.make(&[a, b], "clsact")?;
    pods.sync()?;
    let before = pods.entry(a)?.context("served")?;
    pods.endpoints = Endpoints::new(pods.dir.path().join("endpoints"), true);
    fs::remove_file(pods.path(b))?;
    pods.node.ip(&format!("link del {}", b.interface()))?;
    pods.make(&[c], "clsact")?;
    let work = pods.sync()?;
    assert_eq!((work.records_read, work.attached, work.map_writes), (2, 2, 4));
    assert_eq!((pods.entry(a)?, pods.entry(b)?), (Some(before), None));
    ensure!(pods.entry(c)?.context("served")?.id != before.id, "a number of its own");
    Ok(())
}

/// S33: a full map is counted and named, the pods that have a place keep it, and a place that becomes
/// free is taken without anybody asking.
#[test]
fn a_full_map_is_named_and_a_free_place_is_taken() -> Result<()> {
    let mut pods = Pods::new(MapSizes { endpoints: 4, ..SMALL })?;
    let (a, b, c) = (Pod(1), Pod(2), Pod(3));
    pods.make(&[a, b], "clsact")?;
    pods.sync()?;
    assert_eq!(pods.endpoints.failures(), 0);
    pods.make(&[c], "clsact")?;
    let (done, _) =
        pods.work(|endpoints, dataplane| endpoints.add(dataplane, &c.key(), Some(&c.file())))?;
    done?;
    assert_eq!((pods.endpoints.failures(), pods.endpoints.addresses()), (2, 4));
    assert_eq!(pods.endpoints.check(&c.key()), Ok(()), "it is reached through the stack");
    let problems = pods.problems();
    assert_eq!(problems.len(), 2, "{problems:?}");
    let text = &problems[0];
    ensure!(text.contains(&c.v4()) && text.contains("map ENDPOINTS is full at 4"), "{text}");
    ensure!(text.contains("--map-size-endpoints"), "{text}");
    ensure!(pods.entry(a)?.is_some() && pods.entry(b)?.is_some(), "they keep their places");

    let (done, _) = pods.work(|endpoints, dataplane| endpoints.remove(dataplane, &a.key()))?;
    done?;
    ensure!(pods.entry(c)?.is_some(), "it has the place");
    assert_eq!(pods.problems(), Vec::<String>::new());
    Ok(())
}

/// C10: what a plugin puts on a pod's interface to shape its traffic keeps the pod off the fast path,
/// towards the pod and from it, and only as long as it is there.
#[test]
fn a_pod_that_is_shaped_stays_on_the_stack() -> Result<()> {
    let mut pods = Pods::new(SMALL)?;
    let pod = Pod(1);
    pods.make(&[pod], "tcx")?;
    pods.sync()?;
    let ifindex = pods.ifindex(pod)?;
    let interface = pod.interface();
    let tbf = ["root", "tbf", "rate", "8mbit", "burst", "64kb", "latency", "25ms"];
    for (shape, of) in [(&tbf[..], "root"), (&["ingress"][..], "ingress")] {
        for (verb, rest, flags) in [("add", shape, Endpoint::NO_FAST_PATH), ("del", &[of][..], 0)] {
            let args = [&["qdisc", verb, "dev", &interface][..], rest].concat();
            let run = || sluice_tests::netns::run("tc", &args);
            pods.node.run(run)??;
            let (done, work) = pods.work(|endpoints, dataplane| {
                endpoints.interface_changed(dataplane, ifindex, false)
            })?;
            done?;
            assert_eq!(work.map_writes, 2, "{args:?}");
            assert_eq!(pods.entry(pod)?.context("served")?.flags, flags, "{args:?}");
        }
    }
    Ok(())
}

/// One pass of the collector over all that is written down; nothing is old enough to go by itself.
fn pass(collector: &mut Collector) -> Result<()> {
    while collector.step(0, &Timeouts::default())?.is_none() {}
    Ok(())
}

/// C3, P5, S8: what the programs wrote down of a pod goes with it, be it a flow, what policies allowed, or
/// a backend that it kept: with the collector's next pass, or before another pod has its address. So does
/// what it still sends between its DEL and the end of its interface. Of other pods nothing goes.
#[test]
fn nothing_that_was_written_down_of_a_pod_is_left_to_the_next() -> Result<()> {
    const ALL: [usize; 3] = [1; 3];
    const NONE: [usize; 3] = [0; 3];
    let mut pods = Pods::new(SMALL)?;
    let (goes, stays) = (Pod(1), Pod(2));
    pods.make(&[goes, stays], "clsact")?;
    pods.sync()?;
    for pod in [goes, stays] {
        pods.write_down(pod)?;
    }
    // As another agent finds it.
    pods.dataplane = Dataplane::open(pods.config.clone())?;
    let leaving = pods.dir.path().join("leaving");
    let mut collector = pods.dataplane.collector(&leaving)?;
    let before = pods.ifindex(goes)?;
    pods.remove(goes)?;
    assert_eq!(pods.written(goes)?, ALL, "nobody looked for it");
    pass(&mut collector)?;
    assert_eq!((pods.written(goes)?, pods.written(stays)?), (NONE, ALL));

    // It has its interface, and sends on.
    pods.write_down(goes)?;
    pass(&mut collector)?;
    assert_eq!(pods.written(goes)?, ALL, "nobody knows of it");
    pods.node.ip(&format!("link del {}", goes.interface()))?;
    fs::remove_file(pods.path(goes))?;
    pods.touch(goes)?;
    pods.gone(before)?;
    pass(&mut collector)?;
    assert_eq!((pods.written(goes)?, pods.written(stays)?), (NONE, ALL));

    // The same, and before the agent hears that the interface is gone, another pod has the address.
    pods.make(&[goes], "clsact")?;
    pods.sync()?;
    let before = pods.ifindex(goes)?;
    pods.remove(goes)?;
    pass(&mut collector)?;
    pods.write_down(goes)?;
    pods.node.ip(&format!("link del {}", goes.interface()))?;
    pods.make(&[goes], "clsact")?;
    let (done, _) = pods
        .work(|endpoints, dataplane| endpoints.add(dataplane, &goes.key(), Some(&goes.file())))?;
    done?;
    assert_eq!(pods.written(goes)?, NONE, "it is another pod");
    pods.write_down(goes)?;
    pods.gone(before)?;
    pass(&mut collector)?;
    assert_eq!(pods.written(goes)?, ALL, "that is its own");

    // The agent did not hear that an interface is gone, and looks for itself.
    pods.remove(goes)?;
    pass(&mut collector)?;
    pods.write_down(goes)?;
    pods.node.ip(&format!("link del {}", goes.interface()))?;
    fs::remove_file(pods.path(goes))?;
    pods.sync()?;
    pass(&mut collector)?;
    assert_eq!((pods.written(goes)?, pods.written(stays)?), (NONE, ALL));
    assert_eq!(fs::read_dir(&leaving)?.count(), 0, "nothing is left to do");
    let namespaces = pods.dataplane.view().affinity()?.into_iter();
    assert_eq!(namespaces.filter(|(key, _)| key.flags == AffinityKey::COOKIE).count(), 2);
    Ok(())
}

/// C9: a pod goes without a look at what is written down where nothing can be: no flow was ever translated
/// packet by packet, and no pod isolated.
#[test]
fn where_nothing_can_be_written_down_nobody_looks() -> Result<()> {
    let mut pods = Pods::new(SMALL)?;
    let (first, second) = (Pod(1), Pod(2));
    pods.make(&[first, second], "clsact")?;
    pods.sync()?;
    let leaving = pods.dir.path().join("leaving");
    let _collector = pods.dataplane.collector(&leaving)?;
    pods.remove(first)?;
    assert_eq!(fs::read_dir(&leaving)?.count(), 0);
    let closed = PolicySets { ingress: PolicySets::CLOSED, egress: PolicySets::OPEN };
    let isolated = pods.ifindex(second)?;
    pods.dataplane.apply_policy(&[PolicyOp::PutSets(isolated, closed)])?;
    pods.dataplane.apply_policy(&[PolicyOp::DeleteSets(isolated)])?;
    pods.remove(second)?;
    assert_eq!(fs::read_dir(&leaving)?.count(), 2, "one was isolated once");
    Ok(())
}
