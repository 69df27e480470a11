//! A million requests while the services change under them: who answers is checked for every one.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use etcd_client::Client;
use serde_json::{Value, json};
use sluice_abi::{Addr, Be16, FrontendKey, Scope, SlotKey, proto};
use sluice_proxy::dataplane::Pinned;
use sluice_tests::cluster::Cluster;
use sluice_tests::demo::publish::Publisher;
use sluice_tests::node::Node;
use sluice_tests::pod::Pod;
use sluice_tests::process::{Launch, Process};
use sluice_tests::stress::{Answers, BUCKET_MS, History, Marks};
use sluice_tests::{PATIENCE, bin, wait_for};

/// Services that clients ask; each has a ClusterIP, an external IP and a node port, TCP and UDP.
const SERVICES: u32 = 32;
/// Services that come and go and are asked by nobody, so that numbers are used again.
const PASSERS_BY: u32 = 16;
/// Pods behind the services, in turn on the one node and the other, each with several ports.
const PODS: u16 = 6;
const PORTS: u16 = 8;
const FIRST_PORT: u16 = 9000;
/// Endpoints that a service may have, of all; neighbours share most of theirs.
const POOL: u32 = 12;
/// Changes a second.
const PACE: u32 = 1_000;
/// The service whose only endpoint has another port at every mark.
const MARKED: u32 = 63;
/// Changes between two marks.
const MARK_EVERY: u64 = 20;
/// How long what was written last may take to be in force, on a machine that has other things to do.
const SETTLED: Duration = Duration::from_secs(120);
/// Requests after the last change, to see that it is in force.
const REQUESTS_AFTER: u64 = 40_000;
/// Requests, of all clients together; `SLUICE_STRESS_REQUESTS` says otherwise.
const REQUESTS: u64 = 1_000_000;
/// How long the clients may take.
const LIMIT: Duration = Duration::from_secs(1_000);

/// Number `index` of the services' addresses.
fn cluster_ip(service: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 96, 1, 0)) + service)
}

fn external_ip(service: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(203, 0, 113, 0)) + service)
}

fn service_object(service: u32) -> (String, Value) {
    let name = format!("s{service}");
    let ip = cluster_ip(service).to_string();
    let object = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": name, "namespace": "stress"},
        "spec": {
            "type": "NodePort", "clusterIP": ip, "clusterIPs": [ip],
            "externalIPs": [external_ip(service).to_string()],
            "ports": [
                {"name": "tcp", "protocol": "TCP", "port": 80, "nodePort": node_port(service)},
                {"name": "udp", "protocol": "UDP", "port": 80, "nodePort": node_port(service)},
            ],
        },
    });
    (format!("/registry/services/specs/stress/{name}"), object)
}

/// The slice of one endpoint: every port is another number, and a slice has one set of ports for all its addresses.
fn slice_object(service: u32, endpoint: &Endpoint) -> Value {
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {
            "name": format!("s{service}-{}", endpoint.number), "namespace": "stress",
            "labels": {"kubernetes.io/service-name": format!("s{service}")},
        },
        "addressType": "IPv4",
        "ports": [
            {"name": "tcp", "protocol": "TCP", "port": endpoint.port},
            {"name": "udp", "protocol": "UDP", "port": endpoint.port},
        ],
        "endpoints": [{
            "addresses": [endpoint.address.to_string()], "nodeName": endpoint.node,
            "conditions": {"ready": true, "serving": true, "terminating": false},
        }],
    })
}

fn slice_key(service: u32, endpoint: u32) -> String {
    format!("/registry/endpointslices/stress/s{service}-{endpoint}")
}

#[derive(Debug, Clone)]
struct Endpoint {
    number: u32,
    address: Ipv4Addr,
    port: u16,
    node: String,
}

/// The endpoints that a service may have.
fn pool(service: u32, all: u32) -> Vec<u32> {
    (0..POOL).map(|index| (service * 3 + index * 5) % all).collect()
}

struct Stage {
    // Dropped in this order: what runs in the pods ends before they do.
    _servers: Vec<Process>,
    endpoints: Vec<Endpoint>,
    pods: Vec<Pod>,
    client: Pod,
    publisher: Publisher,
    cluster: Cluster,
}

impl Stage {
    fn open() -> Result<Self> {
        let mut cluster = Cluster::new(2)?;
        let publisher = Publisher::etcd(cluster.lan(), cluster.dir())?;
        for node in cluster.nodes() {
            let file = cluster.manifests().join(format!("{}.yaml", node.name()));
            publisher.apply(&serde_norway::from_str(&std::fs::read_to_string(file)?)?)?;
        }
        for index in 0..2 {
            cluster.node_mut(index).start_agent(&publisher.url())?;
        }
        let (mut pods, mut servers, mut endpoints) = (Vec::new(), Vec::new(), Vec::new());
        for index in 0..PODS {
            let node = cluster.node(usize::from(index % 2));
            let pod = node.add_pod("stress", &format!("server-{index}"))?;
            let number = u32::from(index * PORTS);
            let launch = pod.launch(bin("stress")?).args([
                "serve",
                "0.0.0.0",
                &FIRST_PORT.to_string(),
                &PORTS.to_string(),
                &number.to_string(),
            ]);
            let mut server = pod.spawn("stress", &launch)?;
            server.wait_for_log("listening", PATIENCE)?;
            for port in 0..PORTS {
                endpoints.push(Endpoint {
                    number: number + u32::from(port),
                    address: pod.ipv4()?,
                    port: FIRST_PORT + port,
                    node: node.name().to_owned(),
                });
            }
            servers.push(server);
            pods.push(pod);
        }
        let client = cluster.node(0).add_pod("stress", "client")?;
        Ok(Self { _servers: servers, endpoints, pods, client, publisher, cluster })
    }

    /// What the kernel counted of datagrams in every namespace, and what the programs did: for who looks
    /// for one that was lost.
    fn counted(&self) -> Result<String> {
        let nodes = self.cluster.nodes();
        let mut text = String::new();
        let pods = self.pods.iter().chain([&self.client]).map(Pod::netns);
        for netns in nodes.iter().map(Node::netns).chain(pods) {
            // Of the thread, not of the process: the thread is in the namespace.
            let all = netns.run(|| std::fs::read_to_string("/proc/thread-self/net/snmp"))??;
            let told =
                all.lines().filter(|line| line.starts_with("Udp: ") || line.starts_with("Ip: "));
            text += &format!("{}\n{}\n", netns.name(), told.collect::<Vec<_>>().join("\n"));
        }
        for node in nodes {
            text += &format!("{}\n{}\n", node.name(), node.proxyctl(&["status"])?);
        }
        Ok(text)
    }

    /// The arguments that name the targets.
    fn targets(addresses: impl Fn(u32) -> Vec<SocketAddr>) -> Vec<String> {
        let of = |service| addresses(service).into_iter().map(move |at| format!("{service}={at}"));
        (0..SERVICES).flat_map(of).collect()
    }
}

/// Both frontends of a service.
fn both(service: u32) -> Vec<SocketAddr> {
    vec![(cluster_ip(service), 80).into(), (external_ip(service), 80).into()]
}

/// The node port on both nodes.
fn node_ports(service: u32) -> Vec<SocketAddr> {
    [11, 12].map(|last| (Ipv4Addr::new(172, 31, 0, last), node_port(service)).into()).into()
}

fn node_port(service: u32) -> u16 {
    30_000 + u16::try_from(service).unwrap_or(0)
}

/// The mark that a node's tables show, if one of them can be read while they change.
fn shown(pinned: &Pinned) -> Result<Option<usize>> {
    let tables = pinned.tables()?;
    let key = FrontendKey {
        addr: Addr::from(std::net::IpAddr::V4(cluster_ip(MARKED))),
        port: Be16::new(80),
        proto: proto::TCP,
        scope: Scope::Internal as u8,
    };
    let backend = tables.frontends.get(&key).and_then(|frontend| {
        let slots = tables.slots.get(&SlotKey { list: frontend.list, chunk: 0 })?;
        tables.backends.get(&slots.backend[0])
    });
    Ok(backend.map(|backend| usize::from(backend.port.get() - FIRST_PORT)))
}

/// Looks at a node's tables until `done`, and notes the marks that they show.
fn watch(pinned: &Pinned, node: usize, marks: &Mutex<Marks>, done: &AtomicBool) -> Result<()> {
    while !done.load(Ordering::Relaxed) {
        if let Some(mark) = shown(pinned)? {
            lock(marks).see(node, mark);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

fn lock(marks: &Mutex<Marks>) -> std::sync::MutexGuard<'_, Marks> {
    marks.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Changes services for as long as clients ask.
struct Changer<'a> {
    client: Client,
    endpoints: Vec<Endpoint>,
    random: u64,
    passers_by: BTreeSet<u32>,
    marks: &'a Mutex<Marks>,
}

impl Changer<'_> {
    fn random(&mut self, below: usize) -> usize {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        usize::try_from(self.random % below as u64).unwrap_or(0)
    }

    async fn put(&mut self, key: &str, object: &Value) -> Result<()> {
        self.client
            .put(key, object.to_string(), None)
            .await
            .map(drop)
            .with_context(|| key.to_owned())
    }

    async fn delete(&mut self, key: &str) -> Result<()> {
        self.client.delete(key, None).await.map(drop).with_context(|| key.to_owned())
    }

    /// Gives every service its first endpoints.
    async fn begin(&mut self, history: &mut History) -> Result<()> {
        let all = u32::try_from(self.endpoints.len())?;
        for service in 0..SERVICES {
            let set: BTreeSet<u32> = pool(service, all)[..4].iter().copied().collect();
            for endpoint in &set {
                let slice = slice_object(service, &self.endpoints[*endpoint as usize]);
                self.put(&slice_key(service, *endpoint), &slice).await?;
            }
            let (key, object) = service_object(service);
            history.set(service, set);
            self.put(&key, &object).await?;
        }
        self.mark().await?;
        let (key, object) = service_object(MARKED);
        self.put(&key, &object).await
    }

    /// Writes the next mark, and returns its number.
    async fn mark(&mut self) -> Result<usize> {
        let mark = lock(self.marks).write();
        let port = u16::try_from(mark).ok().and_then(|mark| mark.checked_add(FIRST_PORT));
        let port = port.context("more changes than there are ports to mark them with")?;
        let endpoint = Endpoint { number: 0, port, ..self.endpoints[0].clone() };
        self.put(&slice_key(MARKED, 0), &slice_object(MARKED, &endpoint)).await?;
        Ok(mark)
    }

    /// Waits until all that was written is in force on every node.
    async fn settle(&mut self, nodes: usize) -> Result<()> {
        let begun = Instant::now();
        for _ in 0..2 {
            let mark = self.mark().await?;
            while !(0..nodes).all(|node| lock(self.marks).last(node) == Some(mark)) {
                if begun.elapsed() > SETTLED {
                    let seen: Vec<_> = (0..nodes).map(|node| lock(self.marks).last(node)).collect();
                    bail!("the last changes are not in force: mark {mark}, seen {seen:?}");
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        Ok(())
    }

    /// One change: an endpoint comes or goes, or a service that nobody asks does.
    async fn step(&mut self, history: &mut History) -> Result<()> {
        let all = u32::try_from(self.endpoints.len())?;
        if self.random(8) == 0 {
            let service = SERVICES + u32::try_from(self.random(PASSERS_BY as usize))?;
            let (key, object) = service_object(service);
            let slice = pool(service, all)[0];
            if self.passers_by.remove(&service) {
                self.delete(&key).await?;
                return self.delete(&slice_key(service, slice)).await;
            }
            self.passers_by.insert(service);
            let object_of_slice = slice_object(service, &self.endpoints[slice as usize]);
            self.put(&slice_key(service, slice), &object_of_slice).await?;
            return self.put(&key, &object).await;
        }
        let service = u32::try_from(self.random(SERVICES as usize))?;
        let pool = pool(service, all);
        let endpoint = pool[self.random(pool.len())];
        let mut set = history.current(service).cloned().unwrap_or_default();
        let key = slice_key(service, endpoint);
        if set.contains(&endpoint) {
            // One at least stays, or requests would be refused.
            if set.len() == 1 {
                return Ok(());
            }
            set.remove(&endpoint);
            history.set(service, set);
            self.delete(&key).await
        } else {
            set.insert(endpoint);
            history.set(service, set);
            let slice = slice_object(service, &self.endpoints[endpoint as usize]);
            self.put(&key, &slice).await
        }
    }

    /// At most [`PACE`] changes a second until `done`.
    async fn run(&mut self, history: &mut History, done: &AtomicBool) -> Result<()> {
        let mut due = tokio::time::interval(Duration::from_secs(1) / PACE);
        due.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Burst);
        for change in 0_u64.. {
            if done.load(Ordering::Relaxed) {
                break;
            }
            due.tick().await;
            self.step(history).await?;
            if change % MARK_EVERY == 0 {
                self.mark().await?;
            }
        }
        Ok(())
    }
}

/// Starts the clients, and returns what they saw, by their names.
fn clients(
    launches: Vec<(&'static str, Launch)>,
    stage: &Stage,
) -> Result<BTreeMap<&'static str, Answers>> {
    let mut running = Vec::new();
    for (name, launch) in launches {
        let log = stage.cluster.dir().join(format!("{name}.json"));
        running.push((name, launch.spawn(&log)?));
    }
    let mut answers = BTreeMap::new();
    for (name, mut process) in running {
        let status = process.wait(LIMIT).with_context(|| name.to_owned())?;
        let log = process.log();
        ensure!(status.success(), "{name}: {status}: {log}");
        let line = log.lines().last().with_context(|| format!("{name} said nothing"))?;
        answers.insert(name, serde_json::from_str(line).with_context(|| name.to_owned())?);
    }
    Ok(answers)
}

/// What is wrong with the answers: whatever failed, and endpoints that answered though they were not the service's.
fn faults(name: &str, answers: &Answers, history: &History, marks: &Marks) -> Vec<String> {
    let mut faults = Vec::new();
    let failed: u64 = answers.failures.values().sum();
    if failed > 0 {
        let some: Vec<_> = answers.failures.iter().take(5).collect();
        faults.push(format!("{name}: {} answered, {failed} failed: {some:#?}", answers.ok));
    }
    let wrong: Vec<_> = answers
        .seen
        .iter()
        .filter(|(service, endpoint, bucket, end)| {
            !history.allows(*service, *endpoint, marks.in_force(bucket * BUCKET_MS), *end)
        })
        .collect();
    if !wrong.is_empty() {
        faults.push(format!(
            "{name}: {} times an endpoint answered that was not the service's; (service, endpoint, \
             began/{BUCKET_MS} ms, ended ms): {:?}",
            wrong.len(),
            &wrong[..wrong.len().min(5)]
        ));
    }
    let for_nothing = |(service, begin, end): &&(u32, u64, u64)| {
        !history.lost_one(*service, marks.in_force(*begin), *end)
    };
    let woken: Vec<_> = answers.woken.iter().filter(for_nothing).collect();
    if !woken.is_empty() {
        faults.push(format!("{name}: sockets were woken though no backend went: {woken:?}"));
    }
    faults
}

/// The programs that ask, each with its share of the requests.
struct Clients<'a> {
    stage: &'a Stage,
    stress: PathBuf,
    inside: Vec<String>,
    node_ports: Vec<String>,
}

impl Clients<'_> {
    fn launches(&self, requests: u64) -> Vec<(&'static str, Launch)> {
        let ask = |launch: Launch, targets: &[String], by: &str, share: u64, ports: Option<u16>| {
            let share = (requests * share / 100).to_string();
            let mut launch = launch.args(["ask", "--by", by, "--requests", &share]);
            if let Some(first) = ports {
                launch = launch.args(["--ports", &first.to_string()]);
            }
            launch.args(targets)
        };
        let inside = |launch, by, share, ports| ask(launch, &self.inside, by, share, ports);
        let outside = |launch, by, share, ports| ask(launch, &self.node_ports, by, share, ports);
        let hooked = || self.stage.client.launch(&self.stress);
        let unhooked = || self.stage.client.launch_unhooked(&self.stress);
        let host = || self.stage.cluster.node(1).launch(&self.stress);
        let lan = || self.stage.cluster.lan().launch(&self.stress);
        vec![
            ("pod-tcp", inside(hooked(), "tcp", 25, None)),
            ("pod-udp", inside(hooked(), "udp", 25, None)),
            ("pod-unconnected", inside(hooked(), "unconnected", 20, None)),
            ("host-tcp", inside(host(), "tcp", 8, None)),
            // Packet by packet, with any port, and with few that are used again and again.
            ("packets-tcp", inside(unhooked(), "tcp", 4, None)),
            ("packets-tcp-ports", inside(unhooked(), "tcp", 4, Some(20_000))),
            ("packets-udp-ports", inside(unhooked(), "udp", 4, Some(22_000))),
            // From outside, by the node's port.
            ("outside-tcp", outside(lan(), "tcp", 5, None)),
            ("outside-udp-ports", outside(lan(), "udp", 5, Some(24_000))),
        ]
    }

    /// Asks, with all programs at once.
    fn ask(&self, requests: u64) -> Result<BTreeMap<&'static str, Answers>> {
        clients(self.launches(requests), self.stage)
    }
}

/// S30: two services on one backend, one service on two frontends, the same client ports used again and again: every
/// request is answered, by a backend of its service, under a thousand changes a second. A connected datagram socket whose
/// backend went may be woken (S22), and gets its answer at the second try. After the last change the answers come from
/// exactly the endpoints that there are then.
#[test]
fn a_million_requests_under_change_are_answered_by_their_own_service() -> Result<()> {
    let stage = Stage::open()?;
    let requests = match std::env::var("SLUICE_STRESS_REQUESTS") {
        Ok(text) => text.parse().context("SLUICE_STRESS_REQUESTS")?,
        Err(_) => REQUESTS,
    };
    let clients = Clients {
        stage: &stage,
        stress: bin("stress")?,
        inside: Stage::targets(both),
        node_ports: Stage::targets(node_ports),
    };
    let pinned = stage.cluster.nodes().iter().map(|node| Pinned::open(node.bpf_root()));
    let pinned = pinned.collect::<Result<Vec<_>, _>>()?;

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let marks = Mutex::new(Marks::new(pinned.len()));
    let mut history = History::default();
    let (asked, over) = (AtomicBool::new(false), AtomicBool::new(false));
    let endpoint = stage.publisher.url().trim_start_matches("etcd:").to_owned();
    let begun = Instant::now();
    let answers = std::thread::scope(|scope| -> Result<_> {
        let (ready, started) = std::sync::mpsc::channel();
        let (history, asked, over, marks) = (&mut history, &asked, &over, &marks);
        let (lan, runtime, nodes) = (stage.cluster.lan(), &runtime, pinned.len());
        let endpoints = stage.endpoints.clone();
        let watchers: Vec<_> = (0..nodes)
            .map(|node| (node, &pinned[node]))
            .map(|(node, pinned)| scope.spawn(move || watch(pinned, node, marks, over)))
            .collect();
        let change = async move || -> Result<()> {
            let client = Client::connect([endpoint], None).await?;
            let passers_by = BTreeSet::new();
            let random = 0x2545_f491_4f6c_dd1d;
            let mut changer = Changer { client, endpoints, random, passers_by, marks };
            changer.begin(history).await?;
            ready.send(())?;
            changer.run(history, asked).await?;
            changer.settle(nodes).await
        };
        let changer = scope.spawn(move || lan.run(move || runtime.block_on(change())));
        let result = started.recv().context("the changer failed").and_then(|()| {
            for node in stage.cluster.nodes() {
                wait_for(&format!("services on {}", node.name()), PATIENCE, || {
                    let list = node.proxyctl(&["service", "list"]).ok()?;
                    let served = (0..SERVICES).all(|service| {
                        let at = format!("{}:80", external_ip(service));
                        list.lines().filter(|line| line.contains(&at)).count() == 2
                    });
                    served.then_some(())
                })?;
            }
            clients.ask(requests)
        });
        asked.store(true, Ordering::Relaxed);
        let changed = changer.join().map_err(|_| anyhow::anyhow!("the changer panicked"))?;
        over.store(true, Ordering::Relaxed);
        for watcher in watchers {
            watcher.join().map_err(|_| anyhow::anyhow!("a watcher panicked"))??;
        }
        // What went wrong first explains the rest.
        changed?.context("changes")?;
        result
    })?;
    let seconds = begun.elapsed().as_secs_f64();
    let marks = marks.into_inner()?;
    let total: u64 = answers.values().map(|answers| answers.ok).sum();
    let woken: usize = answers.values().map(|answers| answers.woken.len()).sum();
    println!(
        "{total} requests, {} changes, in force after at most {} ms, {woken} sockets woken in {seconds:.0} s",
        history.changes(),
        marks.longest(),
    );
    let faults: Vec<String> = answers
        .iter()
        .flat_map(|(name, answers)| faults(name, answers, &history, &marks))
        .collect();
    assert!(faults.is_empty(), "{}\n{}", faults.join("\n"), stage.counted()?);
    assert_eq!(total, requests);
    // The clients must have met changes; how many depends on the machine.
    assert!(history.changes() as u64 > requests / 1_000, "{} changes", history.changes());

    // Nothing changes any more.
    for (name, answers) in clients.ask(REQUESTS_AFTER)? {
        let faults = (&answers.failures, &answers.woken);
        if faults != (&BTreeMap::new(), &Vec::new()) {
            bail!("{name}: {faults:?}\n{}", stage.counted()?);
        }
        let mut answered = BTreeMap::<u32, BTreeSet<u32>>::new();
        for (service, endpoint, ..) in answers.seen {
            answered.entry(service).or_default().insert(endpoint);
        }
        for service in 0..SERVICES {
            let answered = answered.get(&service).cloned().unwrap_or_default();
            let current = history.current(service).context("a service's endpoints")?;
            assert!(answered.is_subset(current), "{name}: service {service}: {answered:?}");
            // Those that ask often meet them all.
            assert!(name != "pod-tcp" || answered == *current, "{name}: service {service}");
        }
    }
    Ok(())
}
