//! The names that all servers have, each in its own form, and the queries for them.

use std::fmt::Write as _;

/// Services are spread over so many namespaces.
const NAMESPACES: usize = 20;
/// Names outside of the cluster.
const FOREIGN: usize = 2_000;
/// Queries of a case; `dnsperf` begins again at the end of them.
const QUERIES: usize = 20_000;
/// Endpoints of the headless Service.
const ENDPOINTS: usize = 100;
/// Objects of one manifest file.
const CHUNK: usize = 1_000;

/// How a query is answered, in the words of `dnsflood`.
const ANSWER: &str = "answer";
const NODATA: &str = "nodata";
const NXDOMAIN: &str = "nxdomain";

/// A cluster with so many Services, and one headless Service beside them.
pub(super) struct Names {
    pub(super) services: usize,
}

fn namespace(n: usize) -> String {
    format!("team-{}", n % NAMESPACES)
}

fn address(first: u8, n: usize) -> String {
    format!("10.{}.{}.{}", usize::from(first) + n / 60_000, n / 240 % 250, n % 240 + 1)
}

/// A name that an upstream knows.
pub(super) fn foreign(n: usize) -> String {
    format!("www.site-{}.example.", n % FOREIGN)
}

/// A number that looks random, and is the same for every server and in every run.
fn scatter(n: usize) -> usize {
    n.wrapping_mul(2_654_435_761) >> 7
}

impl Names {
    /// The name of a Service.
    pub(super) fn name(&self, n: usize) -> String {
        let n = n % self.services;
        format!("svc-{n}.{}.svc.cluster.local.", namespace(n))
    }

    /// The Services as JSON lists.
    pub(super) fn manifests(&self) -> Vec<String> {
        let services = (0..self.services).map(|n| {
            format!(
                r#"{{"apiVersion":"v1","kind":"Service","metadata":{{"name":"svc-{n}","namespace":"{}"}},"spec":{{"clusterIP":"{ip}","clusterIPs":["{ip}"],"ports":[{{"name":"http","port":80}}]}}}}"#,
                namespace(n),
                ip = address(96, n),
            )
        });
        let headless = r#"{"apiVersion":"v1","kind":"Service","metadata":{"name":"db","namespace":"team-0"},"spec":{"clusterIP":"None","ports":[{"name":"pg","port":5432}]}}"#;
        let mut list: Vec<String> = services.collect();
        list.push(headless.to_owned());
        list.push(slice("db", "team-0", 0, ENDPOINTS));
        lists(&list)
    }

    /// The same names as a zone file.
    pub(super) fn zone(&self) -> String {
        let mut text = String::from(
            "$ORIGIN cluster.local.\n$TTL 5\n\
             @ SOA ns.dns hostmaster 1 7200 1800 86400 5\n@ NS ns.dns\nns.dns A 127.0.0.1\n",
        );
        // Writing to a string does not fail.
        for n in 0..self.services {
            let name = self.name(n);
            let _ = writeln!(text, "{name} A {}", address(96, n));
            let _ = writeln!(text, "_http._tcp.{name} SRV 0 100 80 {name}");
        }
        for n in 0..ENDPOINTS {
            let _ = writeln!(text, "db.team-0.svc A {}", address(200, n));
        }
        text
    }

    /// The addresses of the Services as Unbound's configuration.
    pub(super) fn local_data(&self) -> String {
        let mut text = String::new();
        for n in 0..self.services {
            let _ = writeln!(text, "  local-data: \"{} 5 A {}\"", self.name(n), address(96, n));
        }
        text
    }

    /// The queries for names of a kind, in the form that `dnsperf` reads; how they are answered, in lines
    /// that it takes for comments, for `dnsflood`.
    pub(super) fn queries(&self, kind: &str) -> String {
        let mut text = String::new();
        let mut told = "";
        for n in 0..QUERIES {
            let (query, expect) = self.query(kind, n);
            if expect != told {
                let _ = writeln!(text, ";expect {expect}");
                told = expect;
            }
            let _ = writeln!(text, "{query}");
        }
        text
    }

    fn query(&self, kind: &str, n: usize) -> (String, &'static str) {
        let at = scatter(n);
        match kind {
            "hit" => (format!("{} A", self.name(at)), ANSWER),
            "aaaa" => (format!("{} AAAA", self.name(at)), NODATA),
            "nxdomain" => (format!("no-{at}.{}.svc.cluster.local. A", namespace(at)), NXDOMAIN),
            "headless" => ("db.team-0.svc.cluster.local. A".to_owned(), ANSWER),
            "srv" => (format!("_http._tcp.{} SRV", self.name(at)), ANSWER),
            super::CACHED => (format!("{} A", foreign(at)), ANSWER),
            // What a resolver with ndots:5 asks on its way out of the cluster, and what it asks for in
            // the cluster.
            _ => {
                let (own, site) = (namespace(at), foreign(at / 7));
                match n % 6 {
                    0 => (format!("{site}{own}.svc.cluster.local. A"), NXDOMAIN),
                    1 => (format!("{site}svc.cluster.local. A"), NXDOMAIN),
                    2 => (format!("{site}cluster.local. A"), NXDOMAIN),
                    3 => (format!("{} A", self.name(at)), ANSWER),
                    4 => (format!("{} AAAA", self.name(at)), NODATA),
                    _ => (format!("{site}{own}.svc.cluster.local. AAAA"), NXDOMAIN),
                }
            }
        }
    }
}

/// Services with so many endpoints each, as JSON lists.
pub(super) fn with_endpoints(services: usize, endpoints: usize) -> Vec<String> {
    let names = Names { services };
    let mut list = Vec::new();
    for chunk in names.manifests() {
        list.push(chunk);
    }
    let slices: Vec<String> = (0..services)
        .map(|n| slice(&format!("svc-{n}"), &namespace(n), n * endpoints, endpoints))
        .collect();
    list.extend(lists(&slices));
    list
}

fn slice(service: &str, namespace: &str, first: usize, count: usize) -> String {
    let endpoints: Vec<String> = (first..first + count)
        .map(|n| {
            format!(r#"{{"addresses":["{}"],"conditions":{{"ready":true}}}}"#, address(200, n))
        })
        .collect();
    format!(
        r#"{{"apiVersion":"discovery.k8s.io/v1","kind":"EndpointSlice","metadata":{{"name":"{service}-1","namespace":"{namespace}","labels":{{"kubernetes.io/service-name":"{service}"}}}},"addressType":"IPv4","ports":[{{"name":"http","port":8080}}],"endpoints":[{}]}}"#,
        endpoints.join(",")
    )
}

fn lists(objects: &[String]) -> Vec<String> {
    let list = |chunk: &[String]| {
        format!(r#"{{"apiVersion":"v1","kind":"List","items":[{}]}}"#, chunk.join(",\n"))
    };
    objects.chunks(CHUNK).map(list).collect()
}

/// The zone of the foreign names.
pub(super) fn foreign_zone() -> String {
    let mut text = String::from(
        "$ORIGIN example.\n$TTL 3600\n@ SOA ns hostmaster 1 7200 1800 86400 60\n@ NS ns\n\
         ns A 127.0.0.1\n",
    );
    for n in 0..FOREIGN {
        let _ = writeln!(text, "{} A {}", foreign(n), address(30, n));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_hit_is_in_the_zone_and_no_miss_is() {
        let names = Names { services: 50 };
        let zone = names.zone();
        for query in names.queries("hit").lines().filter(|line| !line.starts_with(';')) {
            let name = query.split(' ').next().expect("a name");
            assert!(zone.contains(&format!("\n{name} A ")), "{name}");
        }
        for query in names.queries("nxdomain").lines().filter(|line| !line.starts_with(';')) {
            let name = query.split(' ').next().expect("a name");
            assert!(!zone.contains(name), "{name}");
        }
    }

    #[test]
    fn the_manifests_are_json() {
        for list in (Names { services: 30 }).manifests().iter().chain(&with_endpoints(3, 2)) {
            let value: serde_json::Value = serde_json::from_str(list).expect("JSON");
            assert!(value["items"].as_array().is_some_and(|items| !items.is_empty()));
        }
    }
}
