//! Pods that come and go: many at once, beside an agent that hangs, while there is none, and after that.

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use aya::maps::{HashMap, Map, MapData};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use sluice_abi::{ABI_VERSION, Addr, AffinityKey, Be16, CtEntry, CtFlags, CtKey, maps, proto};
use sluice_proxy::dataplane::Pinned;
use sluice_tests::app::Identity;
use sluice_tests::cluster::Cluster;
use sluice_tests::manifests::{Service, namespace};
use sluice_tests::node::{Node, PodRef};
use sluice_tests::pod::Pod;
use sluice_tests::process::Process;
use sluice_tests::shop::{TARGET, WEB_V4, WEB_V6, web_service};
use sluice_tests::wait::wait_ok;
use sluice_tests::{PATIENCE, Result, wait_for};

/// Pods that are made at once.
const PODS: usize = 24;

/// One node with an agent, and the Service `shop/web` with a pod behind it, in both families.
struct Stage {
    _server: Process,
    web: Pod,
    cluster: Cluster,
}

impl Stage {
    fn open() -> Result<Self> {
        Self::with(web_service())
    }

    fn with(service: Service) -> Result<Self> {
        let mut cluster = Cluster::new(1)?;
        cluster.apply("namespace-shop", &namespace("shop"))?;
        cluster.start_agents()?;
        let web = cluster.node(0).add_pod("shop", "web-0")?;
        let server = web.serve(TARGET)?;
        cluster.apply("web", &service.with_endpoints(&[&web]))?;
        for target in [WEB_V4, WEB_V6] {
            cluster.wait_served(0, target)?;
        }
        Ok(Self { _server: server, web, cluster })
    }

    fn node(&self) -> &Node {
        self.cluster.node(0)
    }

    fn pinned(&self) -> Result<Pinned> {
        Ok(Pinned::open(self.node().bpf_root())?)
    }

    fn signal_agent(&mut self, signal: Signal) -> Result<()> {
        self.cluster.node_mut(0).agent()?.signal(signal)
    }

    fn kill_agent(&mut self) -> Result<()> {
        self.cluster.node_mut(0).kill_agent()
    }

    fn start_agent(&mut self) -> Result<()> {
        let source = self.cluster.source();
        self.cluster.node_mut(0).start_agent(&source)
    }
}

/// Does it for all, each on a thread of its own.
fn at_once<T: Send, U: Send>(
    of: impl IntoIterator<Item = T>,
    work: impl Fn(T) -> Result<U> + Sync,
) -> Result<Vec<U>> {
    let work = &work;
    thread::scope(|scope| {
        let running: Vec<_> = of.into_iter().map(|it| scope.spawn(move || work(it))).collect();
        let ended = running.into_iter().map(|thread| match thread.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        });
        ended.collect()
    })
}

/// The names in a directory; none where there is no such directory.
fn names(dir: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// What a node has of its pods as soon as DEL has returned.
#[derive(PartialEq, Eq, Debug)]
struct Held {
    records: BTreeSet<String>,
    /// Interfaces, routes and neighbours of pods.
    network: BTreeSet<String>,
    endpoints: BTreeSet<IpAddr>,
}

/// What goes a moment after a pod's interface.
#[derive(PartialEq, Eq, Debug)]
struct Rests {
    pins: BTreeSet<String>,
    policy_sets: BTreeSet<u32>,
    /// Addresses whose flows are still to be forgotten.
    leaving: BTreeSet<String>,
}

impl Held {
    fn by(node: &Node) -> Result<Self> {
        let mut network = BTreeSet::new();
        for args in [&["-o", "link"][..], &["route"], &["-6", "route"], &["neigh"]] {
            let shown = node.netns().ip_output(args)?;
            let words = shown.lines().filter(|line| line.contains("slu"));
            // Neither states nor counters.
            network.extend(words.map(|line| {
                let words: Vec<&str> = line.split_whitespace().take(3).collect();
                words.join(" ")
            }));
        }
        let endpoints = Pinned::open(node.bpf_root())?.endpoints()?;
        Ok(Self {
            records: names(&node.state_dir().join("endpoints")),
            network,
            endpoints: endpoints.into_iter().map(|(addr, _)| addr.to_ip()).collect(),
        })
    }
}

impl Rests {
    fn by(node: &Node) -> Result<Self> {
        let pins = names(&node.bpf_root().join(format!("v{ABI_VERSION}/links")));
        let sets = Pinned::open(node.bpf_root())?.policy_tables()?.sets;
        Ok(Self {
            pins: pins.into_iter().filter(|name| name.starts_with("pod_")).collect(),
            policy_sets: sets.into_keys().collect(),
            leaving: names(&node.run_dir().join("leaving")),
        })
    }
}

/// One datagram from every pod to every other, sent once: all arrive, each from who sent it.
fn first_packets_arrive(pods: &[Pod], family: usize) -> Result<()> {
    const PORT: u16 = 7000;
    let at = |pod: &Pod| SocketAddr::new(pod.addresses()[family], PORT);
    let bind = |pod: &Pod| -> Result<UdpSocket> {
        let socket = pod.netns().run(|| UdpSocket::bind(at(pod)))??;
        socket.set_read_timeout(Some(PATIENCE))?;
        Ok(socket)
    };
    let sockets = pods.iter().map(bind).collect::<Result<Vec<_>>>()?;
    let others = |pod: &Pod| pods.iter().map(at).filter(|addr| *addr != at(pod)).collect();
    for (pod, socket) in pods.iter().zip(&sockets) {
        let others: Vec<SocketAddr> = others(pod);
        for other in others {
            socket.send_to(pod.name().as_bytes(), other)?;
        }
    }
    for (pod, socket) in pods.iter().zip(&sockets) {
        let expected: BTreeSet<SocketAddr> = others(pod).into_iter().collect();
        let mut heard = BTreeSet::new();
        while heard.len() < expected.len() {
            let mut buffer = [0; 64];
            let (length, from) = socket
                .recv_from(&mut buffer)
                .with_context(|| format!("{}: only heard {heard:?}", pod.name()))?;
            let sender = pods.iter().find(|pod| at(pod) == from).context("who is that?")?;
            assert_eq!(buffer[..length], *sender.name().as_bytes());
            ensure!(heard.insert(from), "{}: {from} twice", pod.name());
        }
        assert_eq!(heard, expected, "{}", pod.name());
    }
    Ok(())
}

/// C6, C9: pods that are made at once, by either hook: when ADD returns, the pod is in the kernel's table,
/// and its very first packet to the Service is answered; every pod's first packet to every other arrives.
/// They go at once, too, and what DEL leaves behind is nothing.
#[test]
fn pods_made_at_once_are_served_when_add_returns_and_leave_nothing() -> Result<()> {
    let stage = Stage::open()?;
    let (node, pinned) = (stage.node(), stage.pinned()?);
    let (held, rests) = (Held::by(node)?, Rests::by(node)?);
    let pods = at_once(0..PODS, |n| {
        let mut config = node.cni_config();
        config["hook"] = json!(["clsact", "tcx"][n % 2]);
        let pod = node.add_pod_with("shop", &format!("pod-{n}"), &config)?;
        // ADD returned: no waiting.
        let endpoints = pinned.endpoints()?;
        for address in pod.addresses() {
            let known = endpoints.iter().any(|(addr, _)| *addr == Addr::from(*address));
            ensure!(known, "{} has {address}, and the kernel does not know it", pod.name());
        }
        let target = [WEB_V4, WEB_V6][n / 2 % 2];
        assert_eq!(pod.udp(target.parse()?)?.pod, "web-0", "{}", pod.name());
        assert_eq!(pod.get(target)?.pod, "web-0", "{}", pod.name());
        Ok(pod)
    })?;
    let addresses: BTreeSet<&IpAddr> = pods.iter().flat_map(Pod::addresses).collect();
    assert_eq!(addresses.len(), 2 * PODS);
    for family in 0..2 {
        first_packets_arrive(&pods, family)?;
    }
    assert_eq!(Rests::by(node)?.pins.len(), PODS, "two for each pod that asked for tcx");
    let rows: Value = serde_json::from_str(&node.proxyctl(&["endpoint", "list", "-o", "json"])?)?;
    assert_eq!(rows.as_array().map(Vec::len), Some(2 * (PODS + 1)), "{rows}");

    at_once(pods, |pod| node.del_pod(pod))?;
    assert_eq!(Held::by(node)?, held);
    let rows: Value = serde_json::from_str(&node.proxyctl(&["endpoint", "list", "-o", "json"])?)?;
    assert_eq!(rows.as_array().map(Vec::len), Some(2), "{rows}");
    wait_for("nothing to be left of the pods", PATIENCE, || {
        (Rests::by(node).ok()? == rests).then_some(())
    })
    .with_context(|| format!("{:?}, and there was {rests:?}", Rests::by(node)))?;
    // The one that stays is served as before.
    assert_eq!(node.get(WEB_V4)?.pod, "web-0");
    Ok(())
}

/// A pod as the runtime speaks of it; `netns` is [`netns::NetNs::path`](sluice_tests::netns::NetNs::path).
fn reference<'a>(pod: &'a Pod, netns: &'a Path) -> PodRef<'a> {
    PodRef { namespace: pod.namespace(), name: pod.name(), container_id: pod.container_id(), netns }
}

/// Ends a pod, as far as its network is concerned; what the plugin says beside its result.
fn del(node: &Node, pod: &Pod) -> Result<String> {
    let netns = pod.netns().path();
    let output = node.cni_output("DEL", &reference(pod, &netns), &node.cni_config())?;
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "{} {stderr}", String::from_utf8_lossy(&output.stdout));
    Ok(stderr)
}

/// GC as a runtime calls it that knows of these pods; what the plugin says beside its result.
fn gc(node: &Node, valid: &[&Pod]) -> Result<String> {
    let mut config = node.cni_config();
    let valid =
        valid.iter().map(|pod| json!({"containerID": pod.container_id(), "ifname": "eth0"}));
    config["cni.dev/valid-attachments"] = valid.collect();
    let nobody = PodRef { namespace: "", name: "", container_id: "", netns: Path::new("") };
    let output = node.cni_output("GC", &nobody, &config)?;
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "{} {stderr}", String::from_utf8_lossy(&output.stdout));
    Ok(stderr)
}

/// What the plugin says of an agent that hangs, however many pods are concerned.
const GIVEN_UP: &str = "no answer within 2 seconds; it will notice by itself";

fn has_interface(pod: &Pod) -> Result<bool> {
    Ok(pod.netns().ip_output(&["-o", "link"])?.contains("eth0"))
}

/// The addresses that the agent shows.
fn shown(rows: &Value) -> BTreeSet<&str> {
    rows.as_array().into_iter().flatten().filter_map(|row| row["address"].as_str()).collect()
}

/// Waits until the agent and the kernel's tables have these pods and no others, by interface and by
/// address.
fn wait_held(node: &Node, pods: &[&Pod]) -> Result<()> {
    let texts: Vec<String> =
        pods.iter().flat_map(|pod| pod.addresses()).map(ToString::to_string).collect();
    let wanted: BTreeSet<&str> = texts.iter().map(String::as_str).collect();
    node.wait_for_view(&["endpoint", "list"], PATIENCE, |rows| shown(rows) == wanted)?;
    wait_for("the rules of pods that are gone to go", PATIENCE, || {
        (Rests::by(node).ok()?.policy_sets.len() == pods.len()).then_some(())
    })
}

/// C3, C5, S37: beside an agent that hangs, DEL and GC do what they can without it, say so, and end;
/// nothing of the other pods is lost. The agent puts the rest right when it lives again, and one that is
/// started in its place does.
#[test]
fn del_and_gc_end_beside_an_agent_that_hangs_which_puts_the_rest_right() -> Result<()> {
    let mut stage = Stage::open()?;
    for restarted in [false, true] {
        let node = stage.node();
        let stays = node.add_pod("shop", "stays")?;
        let mappings = json!([{"hostPort": 9080, "containerPort": TARGET, "protocol": "tcp"}]);
        let name = format!("deleted-{restarted}");
        let deleted = node.add_pod_with_ports("shop", &name, mappings)?;
        let server = deleted.serve(TARGET)?;
        assert_eq!(stays.get("172.31.0.11:9080")?.pod, name);
        let unlisted = [node.add_pod("shop", "unlisted-0")?, node.add_pod("shop", "unlisted-1")?];

        stage.signal_agent(Signal::STOP)?;
        let node = stage.node();
        let said = del(node, &deleted)?;
        assert_eq!(said.matches(GIVEN_UP).count(), 1, "{said}");
        ensure!(!has_interface(&deleted)?, "DEL left the interface");
        let said = gc(node, &[&stage.web, &stays])?;
        assert_eq!(said.matches(GIVEN_UP).count(), 1, "once is enough: {said}");
        for pod in &unlisted {
            ensure!(!has_interface(pod)?, "GC left the interface of {}", pod.name());
        }
        assert_eq!(names(&node.state_dir().join("endpoints")).len(), 2);
        // Again, for what is gone.
        del(node, &deleted)?;
        // The others go on.
        for target in [WEB_V4, WEB_V6] {
            assert_eq!(stays.get(target)?.pod, "web-0");
            assert_eq!(node.get(target)?.pod, "web-0");
        }

        if restarted {
            stage.kill_agent()?;
            stage.start_agent()?;
        } else {
            stage.signal_agent(Signal::CONT)?;
        }
        let node = stage.node();
        wait_held(node, &[&stage.web, &stays])?;
        let error = stays.get("172.31.0.11:9080").expect_err("the port's pod is gone");
        ensure!(format!("{error:#}").contains("refused"), "{error:#}");
        for target in [WEB_V4, WEB_V6] {
            assert_eq!(stays.get(target)?.pod, "web-0");
        }
        // As on any other day.
        let later = node.add_pod("shop", "later")?;
        assert_eq!(later.get(WEB_V4)?.pod, "web-0");
        node.del_pod(later)?;
        let said = del(node, &stays)?;
        assert_eq!(said, "", "the agent answers again");
        drop((server, stays, deleted, unlisted));
        wait_held(node, &[&stage.web])?;
    }
    Ok(())
}

/// Questions that wait for an agent that hangs.
fn waiting(node: &Node) -> Result<usize> {
    let all = node.launch("ss").args(["-xlH"]).run()?;
    let socket = node.run_dir().join("agent.sock").display().to_string();
    let line = all.lines().find(|line| line.contains(&socket));
    let line = line.with_context(|| format!("nobody listens on {socket}: {all}"))?;
    // Type, state, length of the queue.
    Ok(line.split_whitespace().nth(2).context("a queue")?.parse()?)
}

/// C3: what an agent that hangs was asked comes to it late, and in the order in which it was asked: a pod
/// that was deleted and made anew under the same container, as a runtime does that restarts it, is there.
#[test]
fn a_pod_made_anew_is_not_lost_to_the_del_before_it() -> Result<()> {
    let mut stage = Stage::open()?;
    let pod = stage.node().add_pod("shop", "restarted")?;
    let netns = pod.netns().path();
    let pid = stage.cluster.node_mut(0).agent()?.pid();
    let pid = Pid::from_raw(i32::try_from(pid)?).context("the agent's PID")?;
    kill_process(pid, Signal::STOP)?;
    let node = stage.node();
    ensure!(del(node, &pod)?.contains(GIVEN_UP), "the agent hangs");
    let added = thread::scope(|scope| {
        let add = scope.spawn(|| node.cni("ADD", &reference(&pod, &netns), &node.cni_config()));
        let asked = wait_for("both to be asked", PATIENCE, || {
            (waiting(node).ok()? == 2 || add.is_finished()).then_some(())
        });
        kill_process(pid, Signal::CONT)?;
        asked.and(add.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })?;
    let text = added["ips"][0]["address"].as_str().context("an address")?;
    let address: IpAddr = text.split('/').next().context("an address")?.parse()?;
    let pinned = stage.pinned()?;
    let known = || -> Result<bool> {
        Ok(pinned.endpoints()?.iter().any(|(addr, _)| *addr == Addr::from(address)))
    };
    ensure!(known()?, "ADD returned, and the kernel does not know the pod");
    // Whatever the agent was asked before this is done when it answers.
    let rows: Value = serde_json::from_str(&node.proxyctl(&["endpoint", "list", "-o", "json"])?)?;
    ensure!(shown(&rows).contains(address.to_string().as_str()), "{rows}");
    ensure!(known()?, "the pod was taken away by a DEL of the past");
    assert_eq!(pod.get(WEB_V4)?.pod, "web-0");
    del(node, &pod).map(drop)
}

/// What the pod asks for that another one has, or had.
fn with_addresses(mut config: Value) -> Value {
    config["runtimeConfig"] = json!({"ips": ["10.244.1.77/24", "fd00:244:1::77/64"]});
    config
}

/// The port from which pods ask here.
const PORT: u16 = 40_000;
/// Too long for an answer, were there one, and not so long that nobody would wait for the test.
const MOMENT: Duration = Duration::from_millis(500);

/// Asks from [`PORT`] by a socket that no hook sees: who answers, and from where. Asks again where
/// there is no answer.
fn ask(pod: &Pod, family: usize, target: SocketAddr) -> Result<(SocketAddr, Identity)> {
    let own = SocketAddr::new(pod.addresses()[family], PORT);
    let socket = pod.netns().run(|| UdpSocket::bind(own))??;
    socket.set_read_timeout(Some(MOMENT))?;
    let mut buffer = [0; 2048];
    let (length, from) = wait_ok(&format!("an answer of {target}"), PATIENCE, || {
        socket.send_to(b"hello", target)?;
        Ok(socket.recv_from(&mut buffer)?)
    })?;
    Ok((from, serde_json::from_slice(&buffer[..length])?))
}

/// What is written down of a pod's addresses: flows, and clients of services with affinity.
fn written(pinned: &Pinned, addresses: &[IpAddr]) -> Result<(usize, usize)> {
    let one = |addr: &Addr| addresses.contains(&addr.to_ip());
    let flows = pinned.conntrack()?;
    let flows = flows.iter().filter(|(key, entry)| {
        one(&key.src) || one(&key.dst) || one(&entry.addr) || one(&entry.nat_addr)
    });
    let clients = pinned.affinity()?;
    let clients = clients.iter().filter(|(key, _)| key.flags & AffinityKey::COOKIE == 0);
    Ok((flows.count(), clients.filter(|(key, _)| one(&key.client)).count()))
}

/// When the address of a pod has another one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Successor {
    /// At once, beside a living agent.
    AtOnce,
    /// While there is no agent, by a configuration that does without.
    WithoutAgent,
    /// As soon as there is one again.
    AfterRestart,
    /// Never.
    None,
}

/// S22, S32, C3: a pod goes, while there is no agent or not, and another one has its address, before the
/// agent is back or right after that: nothing of the first is held against the second. Its datagram from
/// the same port to the backend itself is answered by the backend itself, and of services with affinity
/// it is a new client. Where nobody gets the address, all that is forgotten as well, and of others' flows
/// nothing is.
#[test]
fn what_was_written_down_of_a_pod_is_not_held_against_the_next_with_its_address() -> Result<()> {
    let mut stage = Stage::with(web_service().spec("sessionAffinity: ClientIP"))?;
    let services: [SocketAddr; 2] = [WEB_V4.parse()?, WEB_V6.parse()?];
    let bystander = stage.node().add_pod("shop", "bystander")?;
    for successor in
        [Successor::AtOnce, Successor::WithoutAgent, Successor::AfterRestart, Successor::None]
    {
        let node = stage.node();
        // Young, so that it has no reason to go.
        for (family, service) in services.into_iter().enumerate() {
            assert_eq!(ask(&bystander, family, service)?.0, service);
        }
        let old = node.add_pod_with("shop", "old", &with_addresses(node.cni_config()))?;
        let addresses = old.addresses().to_vec();
        assert_eq!(written(&stage.pinned()?, &addresses)?, (0, 0), "{successor:?}");
        for (family, service) in services.into_iter().enumerate() {
            let (from, answer) = ask(&old, family, service)?;
            assert_eq!((from, answer.pod.as_str()), (service, "web-0"));
        }
        assert_eq!(written(&stage.pinned()?, &addresses)?, (4, 2), "{successor:?}");

        if successor != Successor::AtOnce {
            stage.kill_agent()?;
        }
        let said = del(stage.node(), &old)?;
        assert_eq!(said.contains("agent.sock"), successor != Successor::AtOnce, "{said}");
        drop(old);
        let new = |stage: &Stage, config| {
            stage.node().add_pod_with("shop", "new", &with_addresses(config)).map(Some)
        };
        let new = match successor {
            Successor::AtOnce => new(&stage, stage.node().cni_config())?,
            Successor::WithoutAgent => {
                let new = new(&stage, stage.node().cni_config_alone())?;
                assert_eq!(written(&stage.pinned()?, &addresses)?, (4, 2), "there is no agent");
                stage.start_agent()?;
                new
            }
            Successor::AfterRestart => {
                stage.start_agent()?;
                new(&stage, stage.node().cni_config())?
            }
            Successor::None => {
                stage.start_agent()?;
                None
            }
        };
        let pinned = stage.pinned()?;
        if let Some(new) = new {
            assert_eq!(new.addresses(), addresses);
            // The agent has seen to it: no waiting.
            assert_eq!(written(&pinned, &addresses)?, (0, 0), "{successor:?}");
            for (family, backend) in stage.web.addresses().iter().enumerate() {
                let backend = SocketAddr::new(*backend, TARGET);
                let (from, answer) = ask(&new, family, backend)?;
                assert_eq!((from, answer.pod.as_str()), (backend, "web-0"), "{successor:?}");
            }
            assert_eq!(written(&pinned, &addresses)?, (0, 0), "{successor:?}");
            stage.node().del_pod(new)?;
        } else {
            wait_for("it to be forgotten", PATIENCE, || {
                (written(&pinned, &addresses).ok()? == (0, 0)).then_some(())
            })?;
        }
        assert_eq!(written(&pinned, bystander.addresses())?, (4, 2), "{successor:?}");
    }
    Ok(())
}

/// Flows that fill the map nearly.
const MANY: u32 = 500_000;

/// Writes down that the pod has so many flows, two entries each, and that others have the rest of
/// [`MANY`] entries.
fn fill(node: &Node, pod: Addr, flows: u16) -> Result<()> {
    let path = node.bpf_root().join(format!("v{ABI_VERSION}/maps")).join(maps::CONNTRACK);
    let map = Map::from_map_data(MapData::from_pin(path)?)?;
    let mut map: HashMap<MapData, CtKey, CtEntry> = map.try_into()?;
    let service: SocketAddr = WEB_V4.parse()?;
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let last_seen = u64::try_from(now.tv_sec)? * 1_000_000_000;
    for n in 0..MANY / 2 {
        let (client, port) = if n < u32::from(flows) {
            (pod, u16::try_from(n)? + 1)
        } else {
            (Addr::from(IpAddr::from(Ipv4Addr::from(0x0b00_0000 + n))), 40_000)
        };
        let backend = Addr::from(IpAddr::from(Ipv4Addr::from(0x0af5_0000 + n % 16_000)));
        let forward = CtKey {
            src: client,
            dst: service.ip().into(),
            sport: Be16::new(port),
            dport: Be16::new(service.port()),
            proto: proto::TCP,
            flags: 0,
            reserved: 0,
        };
        let flags = CtFlags::REPLIED;
        let to_backend = CtEntry {
            addr: backend,
            port: Be16::new(TARGET),
            last_seen,
            flags,
            ..CtEntry::default()
        };
        let reverse = CtKey {
            src: backend,
            dst: client,
            sport: Be16::new(TARGET),
            dport: forward.sport,
            flags: CtFlags::REVERSE,
            ..forward
        };
        let to_client =
            CtEntry { addr: forward.dst, port: forward.dport, last_seen, flags, ..to_backend };
        map.insert(forward, to_backend, 0)?;
        map.insert(reverse, to_client, 0)?;
    }
    Ok(())
}

/// C9: among half a million flows, DEL's answer comes before anybody has looked through them: most of the
/// pod's own are still there. The next pod with its address finds none of them.
#[test]
fn del_does_not_wait_for_a_look_through_half_a_million_flows() -> Result<()> {
    const FLOWS: u16 = 1_000;
    let stage = Stage::open()?;
    let (node, pinned) = (stage.node(), stage.pinned()?);
    let old = node.add_pod_with("shop", "old", &with_addresses(node.cni_config()))?;
    let addresses = old.addresses().to_vec();
    // The programs know that flows are written down since they did so themselves.
    assert_eq!(ask(&old, 0, WEB_V4.parse()?)?.1.pod, "web-0");
    let measure = |what: &str, pods: &mut dyn FnMut() -> Result<()>| -> Result<()> {
        let begun = Instant::now();
        pods()?;
        println!("{what}: {:?}", begun.elapsed());
        Ok(())
    };
    let without = node.add_pod("shop", "without")?;
    measure("DEL with a handful of flows", &mut || del(node, &without).map(drop))?;
    fill(node, Addr::from(addresses[0]), FLOWS)?;
    let all = pinned.conntrack()?.len();
    ensure!(all > 490_000, "{all} flows");

    measure("DEL with half a million flows", &mut || {
        assert_eq!(del(node, &old)?, "", "the agent answered");
        Ok(())
    })?;
    let (left, _) = written(&pinned, &addresses)?;
    ensure!(left > usize::from(FLOWS), "somebody has looked through them: {left} left");
    drop(old);
    let mut new = None;
    measure("ADD of the next with its address", &mut || {
        new = Some(node.add_pod_with("shop", "new", &with_addresses(node.cni_config()))?);
        Ok(())
    })?;
    assert_eq!(written(&pinned, &addresses)?.0, 0);
    let others = pinned.conntrack()?.len();
    ensure!(others + 2 * usize::from(FLOWS) + 2 >= all, "{others} of {all} flows");
    node.del_pod(new.context("a pod")?)
}
