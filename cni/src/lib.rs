//! The CNI plugin of Sluice: gives a pod a veth pair, addresses of the node's pod CIDRs and routes.
//!
//! It speaks the CNI specification in the versions 0.3.1, 0.4.0, 1.0.0 and 1.1.0 and works with or
//! without the node's agent. [`run`] is one call of the plugin; the modules below it are split into
//! what is pure ([`pool`], [`ports`], [`config`], [`env`], [`names`], [`record`], [`result`]), what
//! touches files ([`records`]) and what touches the kernel ([`wiring`], [`check`]).

pub mod agent;
pub mod check;
pub mod commands;
pub mod config;
pub mod env;
pub mod error;
pub mod messages;
pub mod names;
pub mod netns;
pub mod pool;
pub mod ports;
pub mod record;
pub mod records;
pub mod result;
pub mod sysctl;
pub mod version;
pub mod wiring;

use serde_json::Value;

use crate::config::NetConf;
use crate::env::{Command, Invocation};
use crate::error::{Error, ErrorReport};
use crate::version::SpecVersion;

/// One call of the plugin: the environment through `var`, the configuration as it came on stdin.
///
/// Returns what to print on stdout; the error is to be printed there too, with exit status 1.
pub fn run(
    var: impl Fn(&str) -> Option<String>,
    stdin: &[u8],
) -> Result<Option<Value>, ErrorReport> {
    let mut version = SpecVersion::NEWEST;
    call(var, stdin, &mut version).map_err(|e| e.report(version))
}

fn call(
    var: impl Fn(&str) -> Option<String>,
    stdin: &[u8],
    version: &mut SpecVersion,
) -> Result<Option<Value>, Error> {
    let invocation = Invocation::from_env(var)?;
    if invocation.command == Command::Version && stdin.trim_ascii().is_empty() {
        return Ok(Some(result::versions(None)));
    }
    let mut object = config::parse_object(stdin)?;
    let known = config::peek_version(&object);
    *version = known.unwrap_or(*version);
    if invocation.command == Command::Version {
        // A runtime asks this of a plugin it knows nothing of: an unknown version is no error.
        return Ok(Some(result::versions(known)));
    }
    if matches!(invocation.command, Command::Del | Command::Gc) {
        // What ADD is asked for; an ADD that was refused for it is followed by a DEL with the same
        // configuration, which must succeed.
        object.remove("runtimeConfig");
    }
    commands::run(&NetConf::parse(&object)?, &invocation)
}
