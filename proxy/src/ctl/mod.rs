//! The commands of `proxyctl`.
//!
//! The agent is asked first. If none is there, the pinned maps are read: the same rows come out,
//! and a note says that nobody keeps them up to date.

pub mod dns;
pub mod monitor;

use std::fmt::Display;

use serde::Serialize;
use sluice_model::ObjectName;

use crate::agent::identities;
use crate::cli::{DnsVerb, ListVerb, NamedVerb, Noun, Output, PolicyVerb, ProxyctlArgs};
use crate::clock;
use crate::control::{self, ClientError, PodRef, Reply, Request, ServiceRef, TraceRequest};
use crate::dataplane::{DataplaneError, Pinned};
use crate::routes::{RouteError, RouteManager};
use crate::view::{
    AffinityRow, BackendRow, ConntrackRow, EndpointNote, EndpointRow, RouteRow, ServiceRow, Status,
    render,
};

/// What to print.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Printed {
    /// For standard output.
    pub text: String,
    /// For standard error: where the answer comes from, if not from the agent.
    pub note: Option<String>,
}

/// Why there is nothing to print.
#[derive(Debug, thiserror::Error)]
pub enum CtlError {
    /// The agent is there but did not answer as it should.
    #[error("{0}")]
    Client(#[source] ClientError),
    /// What the programs tell cannot be read.
    #[error(transparent)]
    Monitor(DataplaneError),
    /// No agent, and what was asked for is in no map.
    #[error("{0}, and only the agent knows the policies")]
    NeedsAgent(#[source] ClientError),
    /// No agent, and the pinned maps cannot be read either.
    #[error("{agent}, and {maps}")]
    Neither {
        /// Why the agent does not answer.
        agent: Box<ClientError>,
        /// Why the maps cannot be read.
        maps: Box<DataplaneError>,
    },
    /// No agent, and the kernel does not tell its routes.
    #[error("{agent}, and {routes}")]
    NoRoutes {
        /// Why the agent does not answer.
        agent: String,
        /// What the kernel says.
        routes: RouteError,
    },
    /// No such Service in the kernel.
    #[error("no Service {0} in this node's kernel")]
    NotFound(ObjectName),
    /// A pod's DNS query cannot be followed.
    #[error(transparent)]
    Dns(#[from] dns::DnsError),
    /// The answer could not be written.
    #[error("cannot write the answer: {0}")]
    Render(#[from] anyhow::Error),
}

impl CtlError {
    /// What to do about it.
    pub fn hint(&self) -> Option<&str> {
        match self {
            Self::Client(ClientError::Denied { .. }) => Some("run proxyctl as root"),
            Self::Client(ClientError::Refused { hint, .. }) => hint.as_deref(),
            Self::Client(_) => Some("see sluiced's log"),
            Self::Neither { .. } => {
                Some("is Sluice installed on this node? --run-dir and --bpf-root say where")
            }
            Self::Monitor(_) => Some(
                "is Sluice installed on this node? --bpf-root says where; run proxyctl as root",
            ),
            Self::NeedsAgent(_) => Some(
                "what was in force stays so; proxyctl identity list shows what the kernel holds of it",
            ),
            Self::NoRoutes { .. } => None,
            Self::NotFound(_) => Some(
                "proxyctl service list shows what there is; with an agent, it is told what headless ones are for",
            ),
            Self::Dns(error) => error.hint(),
            Self::Render(_) => None,
        }
    }
}

/// Carries a command out.
///
/// # Errors
///
/// See [`CtlError`].
pub fn run(args: &ProxyctlArgs) -> Result<Printed, CtlError> {
    let request = match &args.noun {
        Noun::Dns(verb) => return follow(args, verb),
        Noun::Monitor(_) => {
            monitor::drops(args, &mut std::io::stdout())?;
            return Ok(Printed { text: String::new(), note: None });
        }
        Noun::Status => Request::Status,
        Noun::Service(_) => Request::ServiceList,
        Noun::Backend(ListVerb::List) => Request::BackendList,
        Noun::Conntrack(ListVerb::List) => Request::ConntrackList,
        Noun::Affinity(ListVerb::List) => Request::AffinityList,
        Noun::Endpoint(ListVerb::List) => Request::EndpointList,
        Noun::Route(ListVerb::List) => Request::RouteList,
        Noun::Policy(verb) => policy_request(verb),
        Noun::Identity(ListVerb::List) => Request::IdentityList,
    };
    let (reply, note) = fetch(args, &request)?;
    let text = match reply {
        Reply::Status(status) => print_status(&status, args.output)?,
        Reply::Services(rows) => services(args, rows, note.is_none())?,
        Reply::ServiceNote(text) => text,
        Reply::Backends(rows) => render(&rows, args.output)?,
        Reply::Conntrack(rows) => render(&rows, args.output)?,
        Reply::Affinity(rows) => render(&rows, args.output)?,
        Reply::Endpoints(rows) => render(&rows, args.output)?,
        Reply::Routes(rows) => render(&rows, args.output)?,
        Reply::Policies(rows) => render(&rows, args.output)?,
        Reply::Identities(rows) => render(&rows, args.output)?,
        Reply::PodPolicies(pod) => print(&*pod, args.output)?,
        Reply::PolicyTrace(trace) => print(&*trace, args.output)?,
        // To nothing that is asked here.
        Reply::Unlinked(_) => String::new(),
    };
    Ok(Printed { text, note })
}

/// What the agent answers, or what the pinned maps say where there is none, with a note that tells so.
fn fetch(args: &ProxyctlArgs, request: &Request) -> Result<(Reply, Option<String>), CtlError> {
    match control::request(&args.paths.socket(), request.clone()) {
        Ok(Some(reply)) => Ok((reply, None)),
        Ok(None) => Err(CtlError::Client(ClientError::Refused {
            message: "the agent's answer is empty".to_owned(),
            hint: None,
        })),
        Err(agent @ ClientError::Absent { .. }) => {
            if matches!(
                request,
                Request::PolicyList | Request::PolicyGet(_) | Request::PolicyTrace(_)
            ) {
                return Err(CtlError::NeedsAgent(agent));
            }
            if *request == Request::RouteList {
                let rows = from_kernel()
                    .map_err(|routes| CtlError::NoRoutes { agent: agent.to_string(), routes })?;
                let note = format!("{agent}: read from the kernel's routing table");
                return Ok((Reply::Routes(rows), Some(note)));
            }
            let root = &args.paths.bpf_root;
            match from_pins(root, request) {
                Ok(reply) => {
                    let note = format!("{agent}: read from the maps pinned in {}", root.display());
                    Ok((reply, Some(note)))
                }
                Err(maps) => Err(CtlError::Neither { agent: agent.into(), maps: maps.into() }),
            }
        }
        Err(error) => Err(CtlError::Client(error)),
    }
}

/// Follows a pod's DNS query.
fn follow(args: &ProxyctlArgs, verb: &DnsVerb) -> Result<Printed, CtlError> {
    let DnsVerb::Query(query) = verb;
    let (services, note) = fetch(args, &Request::ServiceList)?;
    let (endpoints, _) = fetch(args, &Request::EndpointList)?;
    let (Reply::Services(services), Reply::Endpoints(endpoints)) = (services, endpoints) else {
        let message = "the agent answers another question".to_owned();
        return Err(CtlError::Client(ClientError::Refused { message, hint: None }));
    };
    let lookup = dns::query(query, &services, &endpoints)?;
    Ok(Printed { text: print(&lookup, args.output)?, note })
}

/// What is asked for policies.
fn policy_request(verb: &PolicyVerb) -> Request {
    match verb {
        PolicyVerb::List => Request::PolicyList,
        PolicyVerb::Get { pod } => Request::PolicyGet(PodRef { pod: pod.clone() }),
        PolicyVerb::Trace { from, to, port: (port, protocol) } => {
            let (from, to) = (from.clone(), to.clone());
            Request::PolicyTrace(TraceRequest { from, to, port: *port, protocol: *protocol })
        }
    }
}

/// Something that is no list, as people read it or as scripts do.
fn print<T: Display + Serialize>(told: &T, output: Output) -> Result<String, CtlError> {
    Ok(match output {
        Output::Table | Output::Wide => told.to_string(),
        Output::Json => serde_json::to_string_pretty(told).map_err(anyhow::Error::from)? + "\n",
        Output::Yaml => serde_norway::to_string(told).map_err(anyhow::Error::from)?,
    })
}

/// One Service is shown with all that is known of it.
fn output_of(noun: &Noun, output: Output) -> Output {
    match (noun, output) {
        (Noun::Service(NamedVerb::Get { .. }), Output::Table) => Output::Wide,
        _ => output,
    }
}

/// What the agent has to say about the Service that was asked for: addresses that it does not get, and
/// fields that cannot be programmed.
fn problems(args: &ProxyctlArgs) -> Result<String, CtlError> {
    let Noun::Service(NamedVerb::Get { name }) = &args.noun else { return Ok(String::new()) };
    let reply =
        control::request(&args.paths.socket(), Request::Status).map_err(CtlError::Client)?;
    let Some(Reply::Status(status)) = reply else { return Ok(String::new()) };
    let (namespace, name) = name.split_once('/').unwrap_or(("default", name));
    let name = ObjectName::new(namespace, name).to_string();
    let concerns = |subject: &str, message: &str| {
        subject.strip_prefix("Service ") == Some(&name)
            // A refused object is named after the file or key that it stands in.
            || message.strip_prefix("Service ").is_some_and(|rest| rest.starts_with(&format!("{name}:")))
    };
    let rows = status.agent.map(|agent| agent.problems).unwrap_or_default();
    let found = rows.iter().filter(|row| concerns(&row.subject, &row.message));
    Ok(found.map(|row| format!("Problem: {}: {}\n", row.subject, row.message)).collect())
}

/// All Services, or the one that was asked for with all that is known of it.
fn services(
    args: &ProxyctlArgs,
    mut rows: Vec<ServiceRow>,
    has_agent: bool,
) -> Result<String, CtlError> {
    let Noun::Service(NamedVerb::Get { name }) = &args.noun else {
        return Ok(render(&rows, args.output)?);
    };
    let (namespace, name) = name.split_once('/').unwrap_or(("default", name));
    rows.retain(|row| row.namespace == namespace && row.name == name);
    let for_people = matches!(args.output, Output::Table | Output::Wide);
    let mut text = match (rows.is_empty(), has_agent) {
        (true, false) => return Err(CtlError::NotFound(ObjectName::new(namespace, name))),
        (true, true) => {
            let service = format!("{namespace}/{name}");
            let request = Request::ServiceNote(ServiceRef { service });
            match control::request(&args.paths.socket(), request).map_err(CtlError::Client)? {
                Some(Reply::ServiceNote(note)) if for_people => note + "\n",
                _ => render(&rows, args.output)?,
            }
        }
        _ => render(&rows, output_of(&args.noun, args.output))?,
    };
    if has_agent && for_people {
        text.push_str(&problems(args)?);
    }
    Ok(text)
}

fn from_pins(root: &std::path::Path, request: &Request) -> Result<Reply, DataplaneError> {
    let pinned = Pinned::open(root)?;
    Ok(match request {
        Request::ServiceList => Reply::Services(ServiceRow::all(&pinned.tables()?)),
        Request::BackendList => Reply::Backends(BackendRow::all(&pinned.tables()?)),
        Request::ConntrackList => {
            let now = clock::monotonic_nanos();
            Reply::Conntrack(ConntrackRow::all(&pinned.conntrack()?, &pinned.tables()?, now))
        }
        Request::AffinityList => {
            let (tables, node) = (pinned.tables()?, pinned.node_state()?.netns);
            let now = clock::monotonic_nanos();
            Reply::Affinity(AffinityRow::all(&pinned.affinity()?, &tables, node, now))
        }
        Request::EndpointList => {
            Reply::Endpoints(EndpointRow::all(&pinned.endpoints()?, |_, _| EndpointNote::default()))
        }
        // They are in no map.
        Request::RouteList => Reply::Routes(Vec::new()),
        Request::IdentityList => Reply::Identities(identities(&pinned.policy_tables()?)),
        // `fetch` does not come here: only the agent knows policies and pods.
        Request::PolicyList | Request::PolicyGet(_) | Request::PolicyTrace(_) => {
            Reply::Policies(Vec::new())
        }
        // Nor those, which are asked of an agent alone.
        Request::Status
        | Request::ServiceNote(_)
        | Request::MonitorDrops
        | Request::Ping
        | Request::EndpointAdd(_)
        | Request::EndpointDel(_) => Reply::Status(Box::new(Status::default().fill(&pinned)?)),
    })
}

/// The routes of this network namespace that are ours.
fn from_kernel() -> Result<Vec<RouteRow>, RouteError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime =
        runtime.map_err(|source| RouteError { call: "start a runtime".to_owned(), source })?;
    runtime.block_on(async {
        let manager = RouteManager::open()?;
        let device = manager.tunnel_device().await?;
        let routes = manager.list().await?;
        let mut rows: Vec<_> =
            routes.iter().map(|route| RouteRow::of_kernel(route, device)).collect();
        rows.sort();
        Ok(rows)
    })
}

fn print_status(status: &Status, output: Output) -> Result<String, CtlError> {
    Ok(match output {
        Output::Table | Output::Wide => status.text(output == Output::Wide),
        Output::Json => serde_json::to_string_pretty(status).map_err(anyhow::Error::from)? + "\n",
        Output::Yaml => serde_norway::to_string(status).map_err(anyhow::Error::from)?,
    })
}
