//! What each command does.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::Value;
use sluice_netlink::Netlink;

use crate::agent::{self, Event, Told};
use crate::check;
use crate::config::{MIN_MTU_V6, NetConf};
use crate::env::{Command, Invocation};
use crate::error::Error;
use crate::names::Key;
use crate::netns::Netns;
use crate::pool::{Pool, PoolError};
use crate::record::{RECORD_VERSION, Record};
use crate::records::{Locked, Records, boot_id};
use crate::result;
use crate::version::SpecVersion;
use crate::wiring;

/// Runs one command. What it returns goes to stdout; warnings go to stderr.
pub fn run(conf: &NetConf, invocation: &Invocation) -> Result<Option<Value>, Error> {
    let needs = match invocation.command {
        Command::Add | Command::Del | Command::Version => SpecVersion::V0_3_1,
        Command::Check => SpecVersion::V0_4_0,
        Command::Status | Command::Gc => SpecVersion::V1_1_0,
    };
    if conf.version < needs {
        return Err(Error::CommandTooNew {
            command: invocation.command.as_str(),
            needs,
            has: conf.version,
        });
    }
    let key = Key {
        network: conf.name.clone(),
        container_id: invocation.container_id.clone(),
        interface: invocation.interface.clone(),
    };
    let records = Records::new(&conf.state_dir, boot_id()?);
    match invocation.command {
        Command::Add => add(conf, invocation, &key, &records).map(Some),
        Command::Del => del(conf, &key, &records).map(|()| None),
        Command::Check => check(conf, invocation, &key, &records).map(|()| None),
        Command::Status => status(conf, &records).map(|()| None),
        Command::Gc => gc(conf, &records).map(|()| None),
        Command::Version => Ok(Some(result::versions(Some(conf.version)))),
    }
}

fn warn(what: impl std::fmt::Display) {
    eprintln!("sluice-cni: {what}");
}

fn open_netns(invocation: &Invocation) -> Result<Netns, Error> {
    let path = invocation
        .netns
        .as_deref()
        .ok_or_else(|| Error::Environment("CNI_NETNS is not set".into()))?;
    let netns = Netns::open(path)?;
    if netns.is_own()? {
        return Err(Error::Environment(format!(
            "CNI_NETNS {} is the node's own network namespace",
            path.display()
        )));
    }
    Ok(netns)
}

/// What a failed ADD takes back, in the reverse of the order it was done in.
enum Undo {
    FreeRecord,
    RemoveInterface,
    TellAgent,
}

fn add(
    conf: &NetConf,
    invocation: &Invocation,
    key: &Key,
    records: &Records,
) -> Result<Value, Error> {
    let netns = open_netns(invocation)?;
    let (pool, mtu) = conf.node_settings()?;
    let mut host = wiring::open()?;
    let mtu = match mtu {
        Some(mtu) => mtu,
        None => wiring::default_mtu(&mut host)?,
    };
    if pool.has_v6() && mtu < MIN_MTU_V6 {
        return Err(Error::config("mtu", format!("{mtu} is below {MIN_MTU_V6}, IPv6's smallest")));
    }
    let wanted = Record {
        version: RECORD_VERSION,
        network: key.network.clone(),
        container_id: key.container_id.clone(),
        interface: key.interface.clone(),
        netns: netns.path().display().to_string(),
        host_interface: key.host_interface(),
        mac: conf.requested_mac.unwrap_or_else(|| key.pod_mac()),
        host_mac: key.host_mac(),
        mtu,
        addresses: Vec::new(),
        pod_namespace: invocation.arg("K8S_POD_NAMESPACE").to_owned(),
        pod_name: invocation.arg("K8S_POD_NAME").to_owned(),
        pod_uid: invocation.arg("K8S_POD_UID").to_owned(),
        host_ports: conf.port_mappings.clone(),
        hook: conf.hook,
        created: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
        boot_id: records.boot_id().to_owned(),
    };
    let mut undo = Vec::with_capacity(3);
    let made = attach(conf, key, records, &pool, wanted, &netns, &mut host, &mut undo);
    if made.is_err() {
        take_back(conf, key, records, &mut host, undo);
    }
    made
}

#[allow(clippy::too_many_arguments, reason = "the steps of one ADD share all of it")]
fn attach(
    conf: &NetConf,
    key: &Key,
    records: &Records,
    pool: &Pool,
    wanted: Record,
    netns: &Netns,
    host: &mut Netlink,
    undo: &mut Vec<Undo>,
) -> Result<Value, Error> {
    let none = BTreeSet::new();
    let mut record = reserve(conf, records, pool, wanted.clone(), &none, netns, host)?;
    undo.push(Undo::FreeRecord);
    wiring::create(host, netns, &record)?;
    undo.push(Undo::RemoveInterface);
    match wiring::configure(host, netns, &record) {
        // Only where records were lost, by hand or by a full disk: look at what the kernel has.
        Err(Error::AddressRouted(address)) => {
            warn(format_args!("{address} is routed without a record; taking another address"));
            wiring::remove(host, &record.host_interface)?;
            let routed = wiring::routed_addresses(host)?;
            record = reserve(conf, records, pool, wanted, &routed, netns, host)?;
            wiring::create(host, netns, &record)?;
            wiring::configure(host, netns, &record)?;
        }
        other => other?,
    }
    if let Some(socket) = &conf.agent_socket {
        undo.push(Undo::TellAgent);
        agent::tell(socket, Event::Add { record: &record.file_name() }, key)?;
    }
    Ok(result::success(&record, &conf.dns, conf.prev_result.as_ref(), conf.version))
}

/// Takes addresses for the attachment; refuses one that stands.
fn reserve(
    conf: &NetConf,
    records: &Records,
    pool: &Pool,
    wanted: Record,
    avoid: &BTreeSet<std::net::IpAddr>,
    netns: &Netns,
    host: &mut Netlink,
) -> Result<Record, Error> {
    let mut locked = records.lock()?;
    for path in locked.foreign() {
        warn(format_args!("{} is no record's name; it is left alone", path.display()));
    }
    // Without a record the kernel refuses the second interface; with one, it must not be touched.
    if locked.find(&wanted.key()).is_some() && wiring::pod_has(netns, &wanted.interface)? {
        return Err(wiring::interface_exists(&wanted.interface, netns));
    }
    match locked.allocate(pool, wanted.clone(), &conf.requested, avoid) {
        Err(Error::Pool(PoolError::Full { .. })) if reclaim(&mut locked, host)? > 0 => {
            locked.allocate(pool, wanted, &conf.requested, avoid)
        }
        other => other,
    }
}

/// Frees the records of pods that went without a DEL. Returns how many there were.
fn reclaim(locked: &mut Locked, host: &mut Netlink) -> Result<usize, Error> {
    // An interface that cannot be looked up counts as one that is there.
    let leaked = locked.leaked(|name| !matches!(wiring::find_link(host, name), Ok(None)));
    for entry in &leaked {
        warn(format_args!("{} leaked; its addresses are free again", entry.path.display()));
        locked.remove(entry)?;
    }
    Ok(leaked.len())
}

fn take_back(conf: &NetConf, key: &Key, records: &Records, host: &mut Netlink, undo: Vec<Undo>) {
    for step in undo.into_iter().rev() {
        let done = match step {
            Undo::TellAgent => conf.agent_socket.as_deref().map_or(Ok(()), |socket| {
                agent::tell(socket, Event::Del { ifindex: None }, key).map(drop)
            }),
            Undo::RemoveInterface => wiring::remove(host, &key.host_interface()),
            Undo::FreeRecord => free(records, key),
        };
        if let Err(e) = done {
            warn(format_args!("undoing ADD of {key}: {e}"));
        }
    }
}

fn free(records: &Records, key: &Key) -> Result<(), Error> {
    let Some(mut locked) = records.lock_if_exists()? else { return Ok(()) };
    match locked.find(key).cloned() {
        Some(entry) => locked.remove(&entry),
        None => Ok(()),
    }
}

/// Never fails for something that is missing: a record, the interface, the namespace, the agent,
/// the node file. The record goes last, so that a DEL that was cut short can be repeated and the
/// addresses stay taken while anything of the pod is left.
fn del(conf: &NetConf, key: &Key, records: &Records) -> Result<(), Error> {
    let mut agent = conf.agent_socket.as_deref();
    detach(&mut agent, key, &key.host_interface(), &mut wiring::open()?)?;
    free(records, key)
}

/// Tells the agent that an attachment goes, and deletes its interface unless the agent did. An agent that
/// does not answer is none from then on.
fn detach(
    agent: &mut Option<&Path>,
    key: &Key,
    host_interface: &str,
    host: &mut Netlink,
) -> Result<(), Error> {
    let mut told = Told::default();
    if let Some(socket) = *agent {
        // One that is not there is nothing to delete; other errors tell when it comes to that.
        let ifindex = wiring::index_of(host_interface).ok();
        told = agent::tell(socket, Event::Del { ifindex }, key).unwrap_or_else(|e| {
            warn(format_args!("{e}; it will notice by itself"));
            *agent = None;
            Told::default()
        });
    }
    if told.unlinked { Ok(()) } else { wiring::remove(host, host_interface) }
}

fn check(
    conf: &NetConf,
    invocation: &Invocation,
    key: &Key,
    records: &Records,
) -> Result<(), Error> {
    let netns = open_netns(invocation)?;
    let record = {
        let locked = records.lock_if_exists()?;
        let found = locked.as_ref().and_then(|l| Some((l, l.find(key)?)));
        let Some((locked, entry)) = found else {
            return Err(Error::CheckFailed(vec![format!("record of {key} is missing")]));
        };
        locked.read(entry)?.map_err(|torn| Error::CheckFailed(vec![torn.to_string()]))?
    };
    let mut found = check::compare(&record, &netns, conf.prev_result.as_ref())?;
    if let Some(socket) = &conf.agent_socket
        && let Err(e) = agent::probe(socket)
    {
        found.push(e.to_string());
    }
    if found.is_empty() { Ok(()) } else { Err(Error::CheckFailed(found)) }
}

fn status(conf: &NetConf, records: &Records) -> Result<(), Error> {
    let mut problems = Vec::new();
    match conf.node_settings() {
        Err(e) => problems.push(e.to_string()),
        Ok((pool, _)) => {
            if let Err(e) = records.check_writable() {
                problems.push(e.to_string());
            }
            if let Some(locked) = records.lock_if_exists()? {
                if let Err(e) = locked.check_free(&pool) {
                    problems.push(e.to_string());
                }
                for entry in locked.entries() {
                    if let Err(torn) = locked.read(entry)? {
                        warn(torn);
                    }
                }
            }
        }
    }
    if let Some(socket) = &conf.agent_socket
        && let Err(e) = agent::probe(socket)
    {
        problems.push(e.to_string());
    }
    if problems.is_empty() { Ok(()) } else { Err(Error::NotReady(problems)) }
}

/// Frees every attachment of this network that is not listed, and goes on after a failure.
///
/// A damaged record tells no network; it goes if it is not listed and its interface is gone.
fn gc(conf: &NetConf, records: &Records) -> Result<(), Error> {
    let valid = conf
        .valid_attachments
        .as_ref()
        .ok_or_else(|| Error::config("cni.dev/valid-attachments", "is missing"))?;
    let valid: BTreeSet<String> = valid
        .iter()
        .map(|(container_id, interface)| {
            Key {
                network: conf.name.clone(),
                container_id: container_id.clone(),
                interface: interface.clone(),
            }
            .host_interface()
        })
        .collect();
    let Some(mut locked) = records.lock_if_exists()? else { return Ok(()) };
    let mut host = wiring::open()?;
    let mut failed = Vec::new();
    // One that does not answer is waited for once: the records are locked meanwhile.
    let mut reachable = conf.agent_socket.as_deref();
    for entry in locked.entries().to_vec() {
        let interface = &entry.name.host_interface;
        if valid.contains(interface) {
            continue;
        }
        let freed = match locked.read(&entry) {
            Err(e) => Err(e),
            Ok(Ok(record)) if record.network != conf.name => continue,
            Ok(Ok(record)) => detach(&mut reachable, &record.key(), interface, &mut host)
                .and_then(|()| locked.remove(&entry)),
            Ok(Err(torn)) => match wiring::find_link(&mut host, interface) {
                Ok(None) => locked.remove(&entry),
                Ok(Some(_)) => {
                    warn(format_args!("{torn}; kept, since {interface} is there"));
                    Ok(())
                }
                Err(e) => Err(e),
            },
        };
        if let Err(e) = freed {
            failed.push(format!("{interface}: {e}"));
        }
    }
    if failed.is_empty() { Ok(()) } else { Err(Error::GcIncomplete(failed)) }
}
