//! `proxyctl monitor`: what the programs tell as it happens.

use std::collections::HashMap;
use std::io::{self, Write};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::Serialize;
use sluice_abi::{Direction, DropEvent, DropReason, PolicySets};
use sluice_model::Protocol;

use super::CtlError;
use crate::cli::{Output, ProxyctlArgs};
use crate::clock;
use crate::control::{self, Notice, Notices, PodRef, Reply, Request};
use crate::dataplane::Drops;
use crate::view::{EndpointRow, PodPolicies};

/// How long what the agent said of a pod is taken for what it would say.
const FRESH: Duration = Duration::from_secs(1);

/// A packet that policies did not let pass.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Drop {
    /// Milliseconds ago when it was read.
    pub ago_ms: u64,
    /// Whose rules were asked: for connections to the pod (`ingress`), or from it (`egress`).
    pub direction: &'static str,
    /// Why: `not_allowed`, `closed`, `unknown_fragment`.
    pub reason: &'static str,
    /// The pod, or its interface where no agent tells its name.
    pub pod: String,
    /// The policies that isolate it.
    pub policies: Vec<String>,
    /// The sender.
    pub source: SocketAddr,
    /// The receiver, after translation.
    pub destination: SocketAddr,
    /// The pods of this node among these two.
    pub names: [Option<String>; 2],
    /// Protocol.
    pub protocol: String,
    /// The pod's set of rules.
    pub set: u32,
    /// Identity of the other end; 0: no rule tells it apart.
    pub peer_identity: u32,
    /// Whether the packet was taken for an answer of a connection that is not known.
    pub answer: bool,
    /// Bytes.
    pub length: u32,
}

impl std::fmt::Display for Drop {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let end = |addr: SocketAddr, name: &Option<String>| match name {
            Some(name) => format!("{addr} ({name})"),
            None => addr.to_string(),
        };
        let (from, to) = (end(self.source, &self.names[0]), end(self.destination, &self.names[1]));
        let answer = if self.answer { " answer" } else { "" };
        write!(
            f,
            "{} of {}: {} {from} > {to}{answer}: {}, identity {}",
            self.direction, self.pod, self.protocol, self.reason, self.peer_identity
        )?;
        match self.set {
            PolicySets::CLOSED => f.write_str(", closed")?,
            set => write!(f, ", set {set}")?,
        }
        if !self.policies.is_empty() {
            write!(f, ", isolated by {}", self.policies.join(", "))?;
        }
        Ok(())
    }
}

/// Prints each packet that policies drop, until nobody reads any more.
///
/// The agent reads the ring buffer for all monitors. Where there is none, this one reads it by itself,
/// until an agent is there.
///
/// # Errors
///
/// The agent refuses, or, where there is none, the ring buffer cannot be opened or waited for.
pub fn drops(args: &ProxyctlArgs, out: &mut dyn Write) -> Result<(), CtlError> {
    let mut printer = Printer { args, agent: Agent::new(args), out };
    let mut reads = true;
    while reads {
        reads = match control::follow(&args.paths.socket()) {
            Ok(notices) => printer.notices(notices)?,
            Err(error) if error.is_gone() => match printer.ring()? {
                Some(notices) => printer.notices(notices)?,
                None => false,
            },
            Err(error) => return Err(CtlError::Client(error)),
        };
    }
    Ok(())
}

/// Prints what was dropped.
struct Printer<'a> {
    args: &'a ProxyctlArgs,
    agent: Agent<'a>,
    out: &'a mut dyn Write,
}

impl Printer<'_> {
    /// Prints what the agent tells, until it is gone. Whether anybody still reads.
    fn notices(&mut self, notices: Notices) -> Result<bool, CtlError> {
        for notice in notices {
            match notice.map_err(CtlError::Client)? {
                Notice::Dropped(packet) => {
                    if !self.print(&(&packet).into())? {
                        return Ok(false);
                    }
                }
                Notice::Lost(count) => {
                    eprintln!("{count} more packets were dropped than could be shown");
                }
            }
        }
        Ok(true)
    }

    /// Prints what is in the ring buffer, until an agent does that; `None` if nobody reads any more.
    fn ring(&mut self) -> Result<Option<Notices>, CtlError> {
        let mut ring = Drops::open(&self.args.paths.bpf_root).map_err(CtlError::Monitor)?;
        // What happened before is not what somebody who looks on waits for.
        ring.skip_all();
        let mut looked = Instant::now();
        loop {
            while let Some(event) = ring.take() {
                if !self.print(&event)? {
                    return Ok(None);
                }
            }
            let second = Timespec { tv_sec: 1, tv_nsec: 0 };
            match poll(&mut [PollFd::new(&ring, PollFlags::IN)], Some(&second)) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => {
                    let error = io::Error::from(error);
                    return Err(CtlError::Render(anyhow::anyhow!("poll: {error}")));
                }
            }
            if looked.elapsed() >= FRESH {
                looked = Instant::now();
                if let Ok(notices) = control::follow(&self.args.paths.socket()) {
                    return Ok(Some(notices));
                }
            }
        }
    }

    /// Prints one packet. Whether anybody still reads.
    fn print(&mut self, event: &DropEvent) -> Result<bool, CtlError> {
        let told = self.agent.tell(event);
        let line = match self.args.output {
            Output::Table | Output::Wide => told.to_string(),
            Output::Json => serde_json::to_string(&told).map_err(anyhow::Error::from)?,
            Output::Yaml => format!(
                "---\n{}",
                serde_norway::to_string(&told).map_err(anyhow::Error::from)?.trim_end()
            ),
        };
        Ok(writeln!(self.out, "{line}").and_then(|()| self.out.flush()).is_ok())
    }
}

/// What the agent, if there is one, says of pods.
struct Agent<'a> {
    args: &'a ProxyctlArgs,
    endpoints: Vec<EndpointRow>,
    asked: Option<Instant>,
    pods: HashMap<String, (Instant, PodPolicies)>,
}

impl<'a> Agent<'a> {
    fn new(args: &'a ProxyctlArgs) -> Self {
        Self { args, endpoints: Vec::new(), asked: None, pods: HashMap::new() }
    }

    /// An agent that is away or does not know says nothing.
    fn ask(&self, request: Request) -> Option<Reply> {
        control::request(&self.args.paths.socket(), request).ok().flatten()
    }

    fn refresh(&mut self) {
        if self.asked.is_some_and(|asked| asked.elapsed() < FRESH) {
            return;
        }
        self.asked = Some(Instant::now());
        if let Some(Reply::Endpoints(rows)) = self.ask(Request::EndpointList) {
            self.endpoints = rows;
        }
    }

    /// The pod of this node at an address.
    fn at(&self, addr: IpAddr) -> Option<String> {
        let found = self.endpoints.iter().find(|row| row.address == addr && !row.pod.is_empty());
        found.map(|row| row.pod.clone())
    }

    /// The policies that isolate a pod in a direction.
    fn policies(&mut self, pod: &str, ingress: bool) -> Vec<String> {
        let fresh = |known: &(Instant, PodPolicies)| known.0.elapsed() < FRESH;
        if !self.pods.get(pod).is_some_and(fresh)
            && let Some(Reply::PodPolicies(policies)) =
                self.ask(Request::PolicyGet(PodRef { pod: pod.to_owned() }))
        {
            self.pods.insert(pod.to_owned(), (Instant::now(), *policies));
        }
        let Some((_, policies)) = self.pods.get(pod) else { return Vec::new() };
        let direction = if ingress { &policies.ingress } else { &policies.egress };
        direction.policies.clone()
    }

    fn tell(&mut self, event: &DropEvent) -> Drop {
        self.refresh();
        let mut own = self.endpoints.iter().filter(|row| row.ifindex == event.ifindex);
        let name = own.find(|row| !row.pod.is_empty()).map(|row| row.pod.clone());
        let ingress = event.direction == Direction::Ingress as u8;
        let policies = match &name {
            Some(name) => self.policies(name, ingress),
            None => Vec::new(),
        };
        let socket = |addr: sluice_abi::Addr, port: sluice_abi::Be16| {
            SocketAddr::new(addr.to_ip(), port.get())
        };
        let reason = DropReason::ALL.into_iter().find(|(it, _)| *it as u8 == event.reason);
        let ago = Duration::from_nanos(clock::monotonic_nanos().saturating_sub(event.time));
        Drop {
            ago_ms: u64::try_from(ago.as_millis()).unwrap_or(u64::MAX),
            direction: if ingress { "ingress" } else { "egress" },
            reason: reason.map_or("unknown", |(_, name)| name),
            pod: name.unwrap_or_else(|| format!("interface {}", event.ifindex)),
            policies,
            source: socket(event.src, event.sport),
            destination: socket(event.dst, event.dport),
            names: [event.src, event.dst].map(|addr| self.at(addr.to_ip())),
            protocol: Protocol::from_number(event.proto)
                .map_or_else(|| format!("protocol {}", event.proto), |known| known.to_string()),
            set: event.set,
            peer_identity: event.identity,
            answer: event.answer != 0,
            length: event.len,
        }
    }
}
