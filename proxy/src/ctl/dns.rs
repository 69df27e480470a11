//! `proxyctl dns query`: what a pod gets for a name, step by step, from whom, and why.
//!
//! The steps are those of a resolver with the search list and the `ndots:5` that Kubernetes gives to
//! pods. Each is asked of the instance that the pod's own query could reach: one of the backends that
//! the kernel's tables have for the DNS Service. A `sluice-dns` says where its answer comes from if it
//! is told to say so to this node (`--explain-to`).

use std::fmt;
use std::hash::{BuildHasher as _, RandomState};
use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use hickory_proto::op::{Edns, Message, Query, ResponseCode};
use hickory_proto::rr::rdata::opt::{EdnsCode, EdnsOption};
use hickory_proto::rr::{Name, RecordType};
use serde::Serialize;

use crate::cli::{DnsQueryArgs, Output};
use crate::view::{EndpointRow, Row, ServiceRow, render};

/// The EDNS option of `sluice-dns` that asks where an answer comes from, and says it
/// (`sluice_dns::wire::EXPLAIN`).
const EXPLAIN: u16 = 65_053;
/// How long an instance may take to answer: as long as the resolvers in pods wait.
const PATIENCE: Duration = Duration::from_secs(5);
/// A name with so many dots is first tried as it is (`ndots` of pods).
const NDOTS: usize = 5;

/// Why a pod's query cannot be followed.
#[derive(Debug, thiserror::Error)]
pub enum DnsError {
    /// The pod is not on this node.
    #[error("no pod {0} on this node")]
    NoPod(String),
    /// Nobody says which address is whose.
    #[error("no agent, which alone knows the address of pod {0}")]
    NoNames(String),
    /// The DNS Service has no frontend.
    #[error("no Service {0} with port 53/UDP in this node's kernel")]
    NoService(String),
    /// It has a frontend and no backend.
    #[error("Service {service} has no endpoint: queries to {frontend} are refused")]
    NoInstance {
        /// The Service.
        service: String,
        /// Its address.
        frontend: SocketAddr,
    },
    /// What was given is no name.
    #[error("{name:?} is no name: {reason}")]
    NotAName {
        /// What was given.
        name: String,
        /// What is wrong with it.
        reason: String,
    },
    /// An instance gives no answer.
    #[error("{instance} does not answer: {call}: {source}")]
    Exchange {
        /// The instance.
        instance: SocketAddr,
        /// The call that failed.
        call: &'static str,
        /// Its error.
        #[source]
        source: io::Error,
    },
    /// What an instance answers is no DNS message.
    #[error("{instance} answers with what is no DNS message: {reason}")]
    Malformed {
        /// The instance.
        instance: SocketAddr,
        /// What is wrong with it.
        reason: String,
    },
}

impl DnsError {
    /// What to do about it.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::NoPod(_) => {
                Some("proxyctl endpoint list shows this node's pods; ask on the pod's own node")
            }
            Self::NoNames(_) => Some("start sluiced, and ask again"),
            Self::NoService(_) => Some("name the cluster's DNS Service with --dns-service"),
            Self::NoInstance { .. } => Some("is sluice-dns running, and ready?"),
            Self::NotAName { .. } | Self::Exchange { .. } | Self::Malformed { .. } => None,
        }
    }
}

/// One name that was tried.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Step {
    /// The name.
    pub name: String,
    /// The type asked for.
    pub kind: String,
    /// The instance that was asked.
    pub instance: SocketAddr,
    /// The response code.
    pub rcode: String,
    /// The records of the answer.
    pub answers: Vec<String>,
    /// Where the answer comes from; absent where the instance does not say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

impl Row for Step {
    fn header(_: bool) -> Vec<&'static str> {
        vec!["NAME", "TYPE", "INSTANCE", "RCODE", "ANSWER", "WHY"]
    }

    fn cells(&self, _: bool) -> Vec<String> {
        let answer = if self.answers.is_empty() { "-".to_owned() } else { self.answers.join("\n") };
        let why = self.why.clone().unwrap_or_else(|| "-".to_owned());
        let instance = self.instance.to_string();
        vec![self.name.clone(), self.kind.clone(), instance, self.rcode.clone(), answer, why]
    }
}

/// What a pod gets.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Lookup {
    /// `NAMESPACE/NAME` of the pod.
    pub pod: String,
    /// Its address.
    pub address: IpAddr,
    /// `NAMESPACE/NAME` of the DNS Service.
    pub service: String,
    /// The address that the pod asks.
    pub server: SocketAddr,
    /// The instances that a query to it may reach, each with the same chance.
    pub instances: Vec<SocketAddr>,
    /// The search list.
    pub search: Vec<String>,
    /// The names that were tried, in order; the last one has the answer, if any has.
    pub steps: Vec<Step>,
}

impl fmt::Display for Lookup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "Pod:       {} ({})", self.pod, self.address)?;
        writeln!(f, "Server:    {} ({})", self.server, self.service)?;
        let instances: Vec<_> = self.instances.iter().map(ToString::to_string).collect();
        writeln!(f, "Instances: {}", instances.join(", "))?;
        writeln!(f, "Search:    {}\n", self.search.join(" "))?;
        f.write_str(&render(&self.steps, Output::Table).map_err(|_| fmt::Error)?)
    }
}

/// The search list of a pod in that namespace: the cluster's domains, and then those of the node,
/// which pods inherit.
fn search_list(namespace: &str, domain: &str, node: &[String]) -> Vec<String> {
    let domain = domain.trim_matches('.');
    let cluster = [format!("{namespace}.svc.{domain}"), format!("svc.{domain}"), domain.to_owned()];
    let mut list: Vec<String> = cluster.to_vec();
    for search in node {
        let search = search.trim_end_matches('.').to_owned();
        // A node that resolves the cluster's names itself has those already.
        if !search.is_empty() && !list.contains(&search) {
            list.push(search);
        }
    }
    list
}

/// The search list of a `resolv.conf`: the last line that has one counts (resolv.conf(5)).
fn node_search(text: &str) -> Vec<String> {
    let words = |line: &str| -> Option<Vec<String>> {
        let mut words = line.split_whitespace();
        matches!(words.next()?, "search" | "domain").then(|| words.map(str::to_owned).collect())
    };
    text.lines().filter_map(words).next_back().unwrap_or_default()
}

/// The names to try, in the order of the resolvers of glibc and others: a name with a final dot as it
/// is, one with few dots along the search list first.
fn candidates(name: &str, search: &[String]) -> Vec<String> {
    if name.ends_with('.') {
        return vec![name.to_owned()];
    }
    let own = format!("{name}.");
    let listed = search.iter().map(|domain| format!("{name}.{domain}."));
    if name.matches('.').count() >= NDOTS {
        std::iter::once(own).chain(listed).collect()
    } else {
        listed.chain([own]).collect()
    }
}

/// Follows a pod's query. `services` and `endpoints` are what the kernel has.
///
/// # Errors
///
/// See [`DnsError`].
pub fn query(
    args: &DnsQueryArgs,
    services: &[ServiceRow],
    endpoints: &[EndpointRow],
) -> Result<Lookup, DnsError> {
    let pod =
        if args.pod.contains('/') { args.pod.clone() } else { format!("default/{}", args.pod) };
    let addresses: Vec<IpAddr> =
        endpoints.iter().filter(|row| row.pod == pod).map(|row| row.address).collect();
    let namespace = pod.split('/').next().unwrap_or_default();
    let (dns_namespace, dns_name) =
        args.dns_service.split_once('/').unwrap_or(("default", &args.dns_service));
    let frontends = services.iter().filter(|row| {
        (row.namespace.as_str(), row.name.as_str()) == (dns_namespace, dns_name)
            && row.kind == "ClusterIP"
            && row.protocol == "UDP"
            && row.frontend.port() == 53
            && row.clients != "outside"
    });
    // A pod asks the address of its own family.
    let mut pairs = frontends.clone().flat_map(|row| {
        let family = |address: &&IpAddr| address.is_ipv4() == row.frontend.is_ipv4();
        addresses.iter().filter(family).map(move |address| (row, *address))
    });
    let (server, address) = match (pairs.next(), addresses.is_empty()) {
        (Some(pair), _) => pair,
        // The kernel's map has addresses alone.
        (None, true) if endpoints.iter().any(|row| row.pod.is_empty()) => {
            return Err(DnsError::NoNames(pod));
        }
        (None, true) => return Err(DnsError::NoPod(pod)),
        (None, false) => return Err(DnsError::NoService(args.dns_service.clone())),
    };
    let service = args.dns_service.clone();
    if server.backends.is_empty() {
        return Err(DnsError::NoInstance { service, frontend: server.frontend });
    }
    let node = std::fs::read_to_string(&args.resolv_conf).unwrap_or_default();
    let search = search_list(namespace, &args.cluster_domain, &node_search(&node));
    let mut steps = Vec::new();
    for name in candidates(&args.name, &search) {
        // As the kernel does for each socket of the pod: any of them.
        let pick = RandomState::new().hash_one(&name) % server.backends.len() as u64;
        let instance = server.backends[pick as usize];
        let step = ask(&name, args.kind, instance, address)?;
        let found = !step.answers.is_empty();
        steps.push(step);
        if found {
            break;
        }
    }
    let (instances, server) = (server.backends.clone(), server.frontend);
    Ok(Lookup { pod, address, service, server, instances, search, steps })
}

/// Asks one instance about one name, on behalf of the pod with that address.
fn ask(name: &str, kind: RecordType, instance: SocketAddr, pod: IpAddr) -> Result<Step, DnsError> {
    let owner = Name::from_ascii(name)
        .map_err(|error| DnsError::NotAName { name: name.to_owned(), reason: error.to_string() })?;
    let mut query = Message::query();
    query.metadata.recursion_desired = true;
    query.add_query(Query::query(owner, kind));
    let mut edns = Edns::new();
    edns.set_max_payload(1232);
    let data = match pod {
        IpAddr::V4(addr) => addr.octets().to_vec(),
        IpAddr::V6(addr) => addr.octets().to_vec(),
    };
    edns.options_mut().insert(EdnsOption::Unknown(EXPLAIN, data));
    query.set_edns(edns);
    let malformed = |reason: String| DnsError::Malformed { instance, reason };
    let bytes = query.to_vec().map_err(|error| malformed(error.to_string()))?;
    let failed = |call| move |source| DnsError::Exchange { instance, call, source };
    let mut reply = by_udp(&query, &bytes, instance).map_err(failed("UDP"))?;
    // The TC bit.
    if reply[2] & 0x02 != 0 {
        reply = by_tcp(&bytes, instance).map_err(failed("TCP"))?;
    }
    let reply = Message::from_vec(&reply).map_err(|error| malformed(error.to_string()))?;
    let code = EdnsCode::Unknown(EXPLAIN);
    let why = reply.edns.as_ref().and_then(|edns| edns.option(code)).and_then(|it| match it {
        EdnsOption::Unknown(_, text) => Some(String::from_utf8_lossy(text).into_owned()),
        _ => None,
    });
    Ok(Step {
        name: name.to_owned(),
        kind: kind.to_string(),
        instance,
        rcode: code_name(reply.metadata.response_code),
        answers: reply.answers.iter().map(ToString::to_string).collect(),
        why,
    })
}

/// A response code as `dig` writes it.
fn code_name(code: ResponseCode) -> String {
    match code {
        ResponseCode::NoError => "NOERROR".to_owned(),
        ResponseCode::FormErr => "FORMERR".to_owned(),
        ResponseCode::ServFail => "SERVFAIL".to_owned(),
        ResponseCode::NXDomain => "NXDOMAIN".to_owned(),
        ResponseCode::NotImp => "NOTIMP".to_owned(),
        ResponseCode::Refused => "REFUSED".to_owned(),
        other => format!("RCODE{}", u16::from(other)),
    }
}

fn by_udp(query: &Message, bytes: &[u8], instance: SocketAddr) -> io::Result<Vec<u8>> {
    let any: IpAddr = match instance {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(instance)?;
    socket.send(bytes)?;
    let (deadline, mut buffer) = (Instant::now() + PATIENCE, vec![0; 65_535]);
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        socket.set_read_timeout(Some(left))?;
        let length = match socket.recv(&mut buffer) {
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Err(error) => return Err(error),
        };
        if length >= 12 && buffer[..2] == query.metadata.id.to_be_bytes() {
            return Ok(buffer[..length].to_vec());
        }
    }
}

fn by_tcp(bytes: &[u8], instance: SocketAddr) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect_timeout(&instance, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let length = u16::try_from(bytes.len()).map_err(io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes(), bytes].concat())?;
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut reply = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut reply)?;
    Ok(reply)
}

#[cfg(test)]
mod tests;
