//! What a large cluster takes.

use std::fmt::Write as _;

use hickory_proto::rr::RecordType;

use crate::support::{Dns, answers};

/// The cluster that the bound is for.
const SERVICES: usize = 10_000;
/// Endpoints of each Service.
const ENDPOINTS: usize = 10;
/// The most that the process may ever have had in memory with them, in KiB.
const BOUND: u64 = 60 * 1024;

fn namespace(n: usize) -> String {
    format!("team-{}", n % 20)
}

fn address(net: usize, n: usize) -> String {
    format!("{}.{}.{}.{}", net, n / 62_500, n / 250 % 250, n % 250 + 1)
}

/// Each thousand Services, and then each thousand slices, as one list, as an export of a cluster has
/// them. JSON is YAML, and takes a fraction of the time to be read.
fn manifests() -> Vec<String> {
    let service = |n: usize| {
        format!(
            r#"{{"apiVersion":"v1","kind":"Service","metadata":{{"name":"svc-{n}","namespace":"{}"}},"spec":{{"clusterIP":"{ip}","clusterIPs":["{ip}"],"ports":[{{"name":"http","port":80}}]}}}}"#,
            namespace(n),
            ip = address(96, n),
        )
    };
    let slice = |n: usize| {
        let mut endpoints = String::new();
        for endpoint in n * ENDPOINTS..(n + 1) * ENDPOINTS {
            let comma = if endpoint % ENDPOINTS > 0 { "," } else { "" };
            let ip = address(10, endpoint);
            write!(endpoints, r#"{comma}{{"addresses":["{ip}"],"conditions":{{"ready":true}}}}"#)
                .expect("a string");
        }
        format!(
            r#"{{"apiVersion":"discovery.k8s.io/v1","kind":"EndpointSlice","metadata":{{"name":"svc-{n}-1","namespace":"{}","labels":{{"kubernetes.io/service-name":"svc-{n}"}}}},"addressType":"IPv4","ports":[{{"name":"http","port":8080}}],"endpoints":[{endpoints}]}}"#,
            namespace(n),
        )
    };
    let all: Vec<String> = (0..SERVICES).map(service).chain((0..SERVICES).map(slice)).collect();
    let list = |items: &[String]| {
        format!(r#"{{"apiVersion":"v1","kind":"List","items":[{}]}}"#, items.join(",\n"))
    };
    all.chunks(1000).map(list).collect()
}

/// The most that a process ever had in memory, in KiB.
fn peak(pid: u32) -> u64 {
    let path = format!("/proc/{pid}/status");
    let text = std::fs::read_to_string(&path).expect("the process is there");
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let size = line.and_then(|it| it.trim().strip_suffix(" kB"));
    size.and_then(|size| size.parse().ok()).unwrap_or_else(|| panic!("no VmHWM in {text}"))
}

/// D18: 10,000 Services with ten endpoints each fit into 60 MiB, at the worst moment of the start, too.
#[test]
fn a_large_cluster_fits_into_its_memory() {
    let directory = tempfile::TempDir::new().expect("a temporary directory");
    for (index, text) in manifests().into_iter().enumerate() {
        std::fs::write(directory.path().join(format!("{index}.json")), text).expect("written");
    }
    // Two, as on a small node; each has buffers of its own.
    let source = format!("dir:{}", directory.path().display());
    let mut dns = Dns::launch(&source, &["--workers=2"]);
    dns.wait_for_log("synced");
    let last = SERVICES - 1;
    let name = format!("svc-{last}.{}.svc.cluster.local.", namespace(last));
    let expected = format!("{name} 5 IN A {}", address(96, last));
    dns.udp_until(&name, RecordType::A, &[&expected]);
    let reverse = address(10, SERVICES * ENDPOINTS - 1);
    let reverse: Vec<&str> = reverse.rsplit('.').collect();
    let reverse = format!("{}.in-addr.arpa.", reverse.join("."));
    assert_eq!(answers(&dns.udp(&reverse, RecordType::PTR)).len(), 1, "its endpoints are there");
    let peak = peak(dns.pid());
    assert!(peak <= BOUND, "{peak} KiB, and the bound is {BOUND} KiB");
}
