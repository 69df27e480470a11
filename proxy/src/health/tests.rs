//! The servers on real sockets, loopback only, no rights needed.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant, SystemTime};

use serde_json::Value;
use sluice_model::{
    AddressType, Conditions, EndpointSlice, Meta, Node, Object, ObjectKey, ObjectName, Service,
    ServiceKind, SliceEndpoint, Taint, TrafficPolicy,
};
use sluice_store::{Cache, Event, SourceStatus};
use tokio::sync::{mpsc, watch};

use super::{BindAddress, Config, Figures, Health, Refresh};

/// Long enough for a machine that is busy with other things.
const LIMIT: Duration = Duration::from_secs(60);

struct Fixture {
    health: Health,
    refreshes: mpsc::Receiver<Refresh>,
    source: watch::Sender<SourceStatus>,
    cache: Cache,
}

fn loopback() -> BindAddress {
    BindAddress(Some(SocketAddr::from(([127, 0, 0, 1], 0))))
}

impl Fixture {
    fn start(healthz: BindAddress, metrics: BindAddress) -> Self {
        let (source, status) = watch::channel(SourceStatus {
            connected: true,
            since: SystemTime::now(),
            synced: true,
            revision: None,
            last_error: None,
        });
        let config = Config { healthz, metrics, maps: None, source: status };
        let (health, refreshes) = Health::start(config).expect("the thread starts");
        Self { health, refreshes, source, cache: Cache::new() }
    }

    /// Where `subject` is answered, once it is.
    fn address(&self, subject: &str) -> SocketAddr {
        wait_for(|| self.health.bound().get(subject).copied())
    }

    fn ingest(&mut self, objects: Vec<Object>) {
        let events = objects.into_iter().map(|object| Event::Apply(Box::new(object)));
        let changes = self.cache.ingest(events);
        self.health.services(&self.cache, "node-a", &changes.services);
    }
}

fn wait_for<T>(mut condition: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(start.elapsed() < LIMIT, "it did not come to pass within {LIMIT:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Status, head and body of a request on a connection of its own.
fn ask(addr: SocketAddr, method: &str, path: &str) -> (u16, String, String) {
    let mut stream = TcpStream::connect(addr).expect("somebody listens");
    stream.set_read_timeout(Some(LIMIT)).expect("a time-out");
    write!(stream, "{method} {path} HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n")
        .expect("a request");
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("an answer");
    let (head, body) = text.split_once("\r\n\r\n").expect("a head and a body");
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status");
    (status, head.to_lowercase(), body.to_owned())
}

fn get(addr: SocketAddr, path: &str) -> (u16, Value) {
    let (status, _, body) = ask(addr, "GET", path);
    (status, serde_json::from_str(&body).expect("JSON"))
}

fn meta(name: &str) -> Meta {
    Meta { name: ObjectName::new("shop", name), ..Meta::default() }
}

fn balanced(name: &str, port: u16) -> Object {
    Object::Service(Service {
        meta: meta(name),
        kind: ServiceKind::LoadBalancer,
        external_policy: TrafficPolicy::Local,
        health_check_node_port: Some(port),
        ..Service::default()
    })
}

fn slice(service: &str, node: &str) -> Object {
    Object::EndpointSlice(EndpointSlice {
        meta: meta(service),
        service: Some(ObjectName::new("shop", service)),
        import: None,
        cluster: None,
        address_type: AddressType::V4,
        endpoints: vec![SliceEndpoint {
            addresses: vec!["10.0.0.1".parse().expect("an address")],
            conditions: Conditions::default(),
            node: Some(node.to_owned()),
            ..SliceEndpoint::default()
        }],
        ports: Vec::new(),
    })
}

/// A port that was free a moment ago.
fn free_port() -> u16 {
    let listener = TcpListener::bind(("0.0.0.0", 0)).expect("a free port");
    listener.local_addr().expect("its address").port()
}

/// S12
#[test]
fn healthz_fails_for_a_node_that_is_to_go_and_livez_does_not() {
    let fixture = Fixture::start(loopback(), BindAddress(None));
    let addr = fixture.address("healthz");
    assert_eq!(get(addr, "/healthz").0, 503, "nothing is programmed yet");
    assert_eq!(get(addr, "/livez").0, 200);
    fixture.health.programmed();
    let (status, body) = get(addr, "/healthz");
    assert_eq!((status, &body["nodeEligible"]), (200, &Value::Bool(true)), "{body}");

    let key = "ToBeDeletedByClusterAutoscaler".to_owned();
    let taints = vec![Taint { key, effect: "NoSchedule".to_owned() }];
    fixture.health.node(Some(&Node { taints, ..Node::default() }));
    let (status, body) = get(addr, "/healthz");
    assert_eq!((status, &body["nodeEligible"]), (503, &Value::Bool(false)), "{body}");
    assert_eq!(get(addr, "/livez").0, 200);
    fixture.health.node(Some(&Node::default()));
    assert_eq!(get(addr, "/healthz").0, 200);
}

#[test]
fn only_what_is_served_is_answered() {
    let fixture = Fixture::start(loopback(), BindAddress(None));
    fixture.health.programmed();
    let addr = fixture.address("healthz");
    assert_eq!(ask(addr, "GET", "/").0, 404);
    assert_eq!(ask(addr, "POST", "/healthz").0, 405);
    let (status, head, body) = ask(addr, "HEAD", "/healthz");
    assert_eq!((status, body.as_str()), (200, ""));
    assert!(head.contains("content-type: application/json"), "{head}");
    let mut stream = TcpStream::connect(addr).expect("somebody listens");
    stream.write_all(b"\x16\x03\x01 this is not HTTP\r\n\r\n").expect("sent");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("the server hangs up");
    assert_eq!(get(addr, "/livez").0, 200, "and goes on");
}

/// S11
#[test]
fn health_check_node_ports_come_change_and_go_with_their_services() {
    let mut fixture = Fixture::start(BindAddress(None), BindAddress(None));
    fixture.health.programmed();
    let port = free_port();
    fixture.ingest(vec![balanced("web", port), slice("web", "node-a")]);
    let addr = SocketAddr::from(([127, 0, 0, 1], fixture.address("Service shop/web").port()));
    assert_eq!(addr.port(), port);
    let (status, head, body) = ask(addr, "GET", "/anything");
    assert_eq!(status, 200, "{body}");
    assert!(head.contains("x-load-balancing-endpoint-weight: 1"), "{head}");
    let body: Value = serde_json::from_str(&body).expect("JSON");
    assert_eq!(body["service"]["name"], "web");
    assert_eq!((&body["localEndpoints"], &body["serviceProxyHealthy"]), (&1.into(), &true.into()));

    fixture.ingest(vec![slice("web", "node-b")]);
    let (status, body) = get(addr, "/");
    assert_eq!((status, &body["localEndpoints"]), (503, &0.into()), "{body}");

    let moved = free_port();
    fixture.ingest(vec![balanced("web", moved)]);
    wait_for(|| {
        let bound = fixture.health.bound();
        bound.get("Service shop/web").filter(|addr| addr.port() == moved).copied()
    });
    assert!(TcpStream::connect(addr).is_err(), "the old port is closed");

    let key = ObjectKey {
        kind: sluice_model::ResourceKind::Service,
        name: ObjectName::new("shop", "web"),
    };
    let changes = fixture.cache.ingest([Event::Delete(key)]);
    fixture.health.services(&fixture.cache, "node-a", &changes.services);
    wait_for(|| fixture.health.bound().is_empty().then_some(()));
    assert!(TcpStream::connect(("127.0.0.1", moved)).is_err(), "closed with its Service");
}

/// S11
#[test]
fn a_port_that_is_taken_is_a_problem_until_it_is_free() {
    let taken = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
    let addr = taken.local_addr().expect("its address");
    let mut fixture = Fixture::start(BindAddress(Some(addr)), BindAddress(None));
    let in_use = TcpListener::bind(("0.0.0.0", 0)).expect("a free port");
    let port = in_use.local_addr().expect("its address").port();
    fixture.ingest(vec![balanced("web", port), balanced("zeta", port)]);
    let problems = wait_for(|| {
        let problems = fixture.health.problems();
        (problems.len() == 3).then_some(problems)
    });
    let text = format!("{problems:?}");
    assert!(text.contains("healthz") && text.contains("Service shop/web"), "{text}");
    assert!(text.contains("is that of Service shop/web"), "{text}");
    drop(taken);
    assert_eq!(fixture.address("healthz"), addr);
    wait_for(|| (fixture.health.problems().len() == 2).then_some(()));
    assert_eq!(get(addr, "/livez").0, 200);
}

#[test]
fn metrics_are_those_of_the_moment_they_are_asked_for() {
    let mut fixture = Fixture::start(loopback(), loopback());
    let (metrics, healthz) = (fixture.address("metrics"), fixture.address("healthz"));
    let events =
        [Event::Apply(Box::new(balanced("web", 1))), Event::Apply(Box::new(slice("web", "b")))];
    let begun = fixture.health.begin(&events);
    fixture.health.end(begun, true, true);
    fixture.ingest(vec![balanced("web", free_port()), slice("web", "node-b")]);
    assert_eq!(get(healthz, "/healthz").0, 503);

    // The loop is what brings the figures up to date; here it is this thread.
    let scrape = std::thread::spawn(move || ask(metrics, "GET", "/metrics"));
    let refresh = fixture.refreshes.blocking_recv().expect("a scrape asks");
    let figures = Figures { rejected: 4, problems: 5, endpoints: 6 };
    fixture.health.metrics().refresh(figures);
    fixture.health.metrics().apply_failures("SLOTS", 3);
    refresh.send(()).expect("the scrape waits");
    let (status, head, text) = scrape.join().expect("the scrape ends");
    assert_eq!(status, 200);
    assert!(head.contains("application/openmetrics-text; version=1.0.0"), "{head}");
    for line in [
        "kubeproxy_sync_proxy_rules_duration_seconds_count 1",
        "kubeproxy_sync_full_proxy_rules_duration_seconds_count 1",
        "kubeproxy_sync_proxy_rules_service_changes_total 1",
        "kubeproxy_sync_proxy_rules_endpoint_changes_total 1",
        "kubeproxy_sync_proxy_rules_no_local_endpoints_total{traffic_policy=\"external\"} 1",
        "kubeproxy_proxy_healthz_total{code=\"503\"} 1",
        "sluice_apply_failures_total{map=\"SLOTS\"} 3",
        "sluice_rejected_objects 4",
        "sluice_problems 5",
        "sluice_endpoints 6",
        "sluice_source_connected 1.0",
        "sluice_source_stale_seconds 0.0",
        "# EOF",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
    }
    assert!(text.contains("sluice_build_info{version="), "{text}");
    assert!(!text.contains("sync_proxy_rules_last_timestamp_seconds 0"), "{text}");

    // A source that went away makes the view stale; a loop that is busy keeps no scrape waiting.
    fixture.source.send_modify(|status| {
        status.connected = false;
        status.since = SystemTime::now() - Duration::from_secs(100);
    });
    let (_, _, text) = ask(metrics, "GET", "/metrics");
    let stale = text.lines().find_map(|line| line.strip_prefix("sluice_source_stale_seconds "));
    assert!(stale.and_then(|s| s.parse::<f64>().ok()).is_some_and(|s| s >= 100.0), "{text}");

    assert_eq!(ask(metrics, "GET", "/healthz").2, "ok");
    assert_eq!(ask(metrics, "GET", "/proxyMode").2, "ebpf");
}

#[test]
fn the_servers_end_with_their_owner() {
    let fixture = Fixture::start(loopback(), BindAddress(None));
    let addr = fixture.address("healthz");
    assert_eq!(get(addr, "/livez").0, 200);
    drop(fixture);
    wait_for(|| TcpStream::connect(addr).is_err().then_some(()));
}
