//! The parameters a runtime passes in the environment (specification, section 2, "Parameters").

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::error::Error;

/// `CNI_COMMAND`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Command {
    /// Attach a pod.
    Add,
    /// Detach a pod.
    Del,
    /// Compare an attachment with what ADD made.
    Check,
    /// Say whether an ADD could be served.
    Status,
    /// Free what the runtime no longer knows.
    Gc,
    /// Tell the supported versions.
    Version,
}

impl Command {
    /// As in `CNI_COMMAND`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
            Self::Check => "CHECK",
            Self::Status => "STATUS",
            Self::Gc => "GC",
            Self::Version => "VERSION",
        }
    }
}

/// The environment of one call, checked. Which fields are set depends on the command.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Invocation {
    /// `CNI_COMMAND`.
    pub command: Command,
    /// `CNI_CONTAINERID`; empty for VERSION, STATUS and GC.
    pub container_id: String,
    /// `CNI_IFNAME`, the interface's name in the pod; empty for VERSION, STATUS and GC.
    pub interface: String,
    /// `CNI_NETNS`; may be missing for DEL.
    pub netns: Option<PathBuf>,
    /// `CNI_ARGS`, `KEY=VALUE` pairs.
    pub args: BTreeMap<String, String>,
}

impl Invocation {
    /// Reads the environment through `var`, which answers `None` for an unset variable.
    ///
    /// An error names every variable that is missing or invalid, as code 4 demands.
    pub fn from_env(var: impl Fn(&str) -> Option<String>) -> Result<Self, Error> {
        let var = |name: &str| var(name).filter(|v| !v.is_empty());
        let command = match var("CNI_COMMAND").as_deref() {
            Some("ADD") => Command::Add,
            Some("DEL") => Command::Del,
            Some("CHECK") => Command::Check,
            Some("STATUS") => Command::Status,
            Some("GC") => Command::Gc,
            Some("VERSION") => Command::Version,
            Some(other) => {
                return Err(Error::Environment(format!(
                    "CNI_COMMAND {other:?} is none of ADD, DEL, CHECK, STATUS, GC, VERSION"
                )));
            }
            None => return Err(Error::Environment("CNI_COMMAND is not set".into())),
        };
        let mut problems = Vec::new();
        let mut invocation = Self {
            command,
            container_id: String::new(),
            interface: String::new(),
            netns: None,
            args: BTreeMap::new(),
        };
        if matches!(command, Command::Version | Command::Status | Command::Gc) {
            return Ok(invocation);
        }
        match var("CNI_CONTAINERID") {
            None => problems.push("CNI_CONTAINERID is not set".to_owned()),
            Some(id) if !valid_identifier(&id) => problems.push(format!(
                "CNI_CONTAINERID {id:?} must start with a letter or digit and go on with those, \
                 '_', '.' or '-'"
            )),
            Some(id) => invocation.container_id = id,
        }
        match var("CNI_IFNAME") {
            None => problems.push("CNI_IFNAME is not set".to_owned()),
            Some(name) => match interface_name_problem(&name) {
                Some(problem) => problems.push(format!("CNI_IFNAME {name:?} {problem}")),
                None => invocation.interface = name,
            },
        }
        match var("CNI_NETNS") {
            None if command != Command::Del => problems.push("CNI_NETNS is not set".to_owned()),
            None => {}
            Some(path) => invocation.netns = Some(path.into()),
        }
        if let Some(args) = var("CNI_ARGS") {
            match parse_args(&args) {
                Ok(args) => invocation.args = args,
                Err(problem) => problems.push(problem),
            }
        }
        if problems.is_empty() {
            Ok(invocation)
        } else {
            Err(Error::Environment(problems.join("; ")))
        }
    }

    /// A value of `CNI_ARGS`, empty where it is not given.
    pub fn arg(&self, key: &str) -> &str {
        self.args.get(key).map_or("", String::as_str)
    }
}

/// Whether `s` is a container id or a network name by the specification's rule.
pub fn valid_identifier(s: &str) -> bool {
    s.starts_with(|c: char| c.is_ascii_alphanumeric())
        && s.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'))
}

/// Why the kernel (`dev_valid_name`) or the specification would refuse an interface's name.
fn interface_name_problem(name: &str) -> Option<&'static str> {
    if name.len() > 15 {
        Some("is longer than 15 bytes")
    } else if name == "." || name == ".." || name == "lo" || name == "all" || name == "default" {
        Some("is reserved")
    } else if name.contains(|c: char| c == '/' || c == ':' || c.is_whitespace() || c.is_control()) {
        Some("has a '/', a ':' or white space in it")
    } else {
        None
    }
}

/// `K=V;K=V`. Unknown keys are kept and ignored, as `IgnoreUnknown=1` asks and older callers expect.
fn parse_args(args: &str) -> Result<BTreeMap<String, String>, String> {
    args.split(';')
        .filter(|pair| !pair.is_empty())
        .map(|pair| {
            pair.split_once('=')
                .map(|(k, v)| (k.to_owned(), v.to_owned()))
                .ok_or_else(|| format!("CNI_ARGS has {pair:?}, which is no KEY=VALUE"))
        })
        .collect()
}

#[cfg(test)]
mod tests;
