//! The directory of address records, safe under concurrent calls and under `kill -9`.
//!
//! Layout of the state directory:
//!
//! - `endpoints/*.json`: one [`Record`] each, only ever made whole by rename;
//! - `endpoints/.new`: a record that is being written; whoever holds the lock may remove it;
//! - `ipam.json`: the boot the records belong to, and the address given out last of each range;
//! - `lock`: every reader and writer holds it (`flock`, so a killed process lets go of it).
//!
//! A record is written before anything is made in the kernel and removed after everything is gone,
//! so an address in use always has a record.
//!
//! Records are not synced to disk, so that no ADD waits for one: after a crash of the node they are
//! of an earlier boot, whole or torn, and dropped. What tells the boot, `ipam.json`, is synced once
//! in each.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::names::Key;
use crate::pool::{LastUsed, Pool, PoolError};
use crate::record::{FileName, RECORD_VERSION, Record};

/// A record without an interface on the node is taken for a leak once it is this old. No ADD takes
/// as long: the wait for the agent is the longest step, and it is bounded by five seconds.
pub const LEAK_AGE: Duration = Duration::from_secs(60);

const PARTIAL: &str = ".new";
/// Bytes that no record has more of, as a rule.
const PROBE: usize = 4096;

/// The state directory, not locked.
#[derive(Clone, Debug)]
pub struct Records {
    dir: PathBuf,
    boot_id: String,
}

/// `ipam.json`.
#[derive(Serialize, Deserialize, Default, Debug)]
#[serde(rename_all = "camelCase", default)]
struct State {
    version: u32,
    boot_id: String,
    last_used: LastUsed,
}

/// One file in the directory: what its name says, without a look at its content.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    /// Its path.
    pub path: PathBuf,
    /// Its name, taken apart.
    pub name: FileName,
}

/// A record whose content cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("record {} is damaged: {problem}", .path.display())]
pub struct Torn {
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it.
    pub problem: String,
}

/// The boot this kernel is in.
pub fn boot_id() -> Result<String, Error> {
    let path = Path::new("/proc/sys/kernel/random/boot_id");
    Ok(fs::read_to_string(path).map_err(|e| Error::io("read", path, e))?.trim().to_owned())
}

impl Records {
    /// The records under `dir`, as of the boot `boot_id`.
    pub fn new(dir: impl Into<PathBuf>, boot_id: impl Into<String>) -> Self {
        Self { dir: dir.into(), boot_id: boot_id.into() }
    }

    /// The boot new records belong to.
    pub fn boot_id(&self) -> &str {
        &self.boot_id
    }

    /// Takes the lock; makes the directory. Drops what an earlier boot left.
    pub fn lock(&self) -> Result<Locked, Error> {
        let endpoints = self.dir.join("endpoints");
        fs::create_dir_all(&endpoints).map_err(|e| Error::io("create", &endpoints, e))?;
        self.lock_existing()
    }

    /// Takes the lock where the directory exists; `None` where nothing was ever recorded.
    pub fn lock_if_exists(&self) -> Result<Option<Locked>, Error> {
        if self.dir.join("endpoints").is_dir() { self.lock_existing().map(Some) } else { Ok(None) }
    }

    /// Whether an ADD would find room for its record: tries it.
    ///
    /// # Errors
    ///
    /// The disk is full or read-only; the error names the directory.
    pub fn check_writable(&self) -> Result<(), Error> {
        let endpoints = self.dir.join("endpoints");
        if !endpoints.is_dir() {
            // Nothing is made by a question.
            let there = self.dir.ancestors().find(|dir| dir.is_dir()).unwrap_or(Path::new("/"));
            return rustix::fs::access(there, rustix::fs::Access::WRITE_OK)
                .map_err(|e| Error::io("write to", there, e.into()));
        }
        let probe = endpoints.join(".probe");
        let written = fs::write(&probe, [b' '; PROBE]);
        let _ = fs::remove_file(&probe);
        written.map_err(|e| Error::io("write to", &endpoints, e))
    }

    fn lock_existing(&self) -> Result<Locked, Error> {
        let path = self.dir.join("lock");
        let opened = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
        let file = match opened {
            // What is there can be read all the same, and a DEL may find nothing to remove.
            Err(e) if e.kind() == io::ErrorKind::ReadOnlyFilesystem => {
                File::open(&path).map_err(|_| e)
            }
            other => other,
        };
        let file = file.map_err(|e| Error::io("open", &path, e))?;
        let lock = Flock::lock(file, FlockArg::LockExclusive)
            .map_err(|(_, errno)| Error::io("lock", &path, errno.into()))?;
        let mut locked = Locked {
            endpoints: self.dir.join("endpoints"),
            state_path: self.dir.join("ipam.json"),
            boot_id: self.boot_id.clone(),
            last_used: LastUsed::new(),
            entries: Vec::new(),
            foreign: Vec::new(),
            state_is_old: false,
            _lock: lock,
        };
        locked.list()?;
        locked.read_state()?;
        Ok(locked)
    }
}

/// The state directory while this process alone may change it.
#[derive(Debug)]
pub struct Locked {
    endpoints: PathBuf,
    state_path: PathBuf,
    boot_id: String,
    last_used: LastUsed,
    entries: Vec<Entry>,
    foreign: Vec<PathBuf>,
    /// The state file could not be brought to the present boot.
    state_is_old: bool,
    _lock: Flock<File>,
}

impl Locked {
    fn list(&mut self) -> Result<(), Error> {
        let read = |e| Error::io("list", &self.endpoints, e);
        for item in fs::read_dir(&self.endpoints).map_err(read)? {
            let path = item.map_err(read)?.path();
            let Some(name) = path.file_name().and_then(|n| n.to_str()) else { continue };
            if name == PARTIAL {
                // Left by a process that was killed while it wrote; the lock says it is gone. Where
                // it cannot be removed, the next record cannot be written either, and that tells.
                let _ = fs::remove_file(&path);
            } else if let Some(name) = FileName::parse(name) {
                self.entries.push(Entry { path, name });
            } else if name.ends_with(".json") {
                self.foreign.push(path);
            }
        }
        Ok(())
    }

    /// Reads `ipam.json`; after a reboot drops every record of before.
    ///
    /// A missing or damaged file costs only the memory of what was given out last.
    fn read_state(&mut self) -> Result<(), Error> {
        let state: Option<State> =
            fs::read(&self.state_path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let known_boot = state.as_ref().map(|s| s.boot_id.clone());
        self.last_used = state.unwrap_or_default().last_used;
        if known_boot.as_deref() != Some(self.boot_id.as_str()) {
            let rebooted = known_boot.is_some();
            self.drop_earlier_boots(rebooted)?;
            // Who frees an address needs no room on the disk; who takes one tries again.
            self.state_is_old = self.write_state(true).is_err();
        }
        Ok(())
    }

    /// A damaged record tells no boot. It is of an earlier one if the state file is, since no
    /// record is written before the state file is brought to the present boot.
    fn drop_earlier_boots(&mut self, rebooted: bool) -> Result<(), Error> {
        let mut kept = Vec::new();
        for entry in std::mem::take(&mut self.entries) {
            let earlier = match self.read(&entry)? {
                Ok(record) => record.boot_id != self.boot_id,
                Err(_) => rebooted,
            };
            if earlier {
                remove_file(&entry.path)?;
            } else {
                kept.push(entry);
            }
        }
        self.entries = kept;
        Ok(())
    }

    /// Synced where it is the first of a boot: from then on a torn record is known to be of this one.
    /// Otherwise to lose it costs no more than an address that is reused early.
    fn write_state(&self, sync: bool) -> Result<(), Error> {
        let state =
            State { version: 1, boot_id: self.boot_id.clone(), last_used: self.last_used.clone() };
        let bytes = serde_json::to_vec(&state)
            .map_err(|e| Error::io("encode", &self.state_path, e.into()))?;
        let partial = self.state_path.with_extension("new");
        replace(&partial, &self.state_path, &bytes, sync)
            .map_err(|e| Error::io("write", &self.state_path, e))
    }

    /// All records, by their names.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// JSON files that no release of this plugin named; they are left alone.
    pub fn foreign(&self) -> &[PathBuf] {
        &self.foreign
    }

    /// The record of a key, by its name.
    pub fn find(&self, key: &Key) -> Option<&Entry> {
        let host_interface = key.host_interface();
        self.entries.iter().find(|e| e.name.host_interface == host_interface)
    }

    /// Every address that a record holds, of whatever network.
    pub fn used(&self) -> BTreeSet<IpAddr> {
        self.entries.iter().flat_map(|e| e.name.addresses.iter().copied()).collect()
    }

    /// The content of a record; the inner error if it is damaged.
    pub fn read(&self, entry: &Entry) -> Result<Result<Record, Torn>, Error> {
        let bytes = match fs::read(&entry.path) {
            Ok(bytes) => bytes,
            Err(e) => return Err(Error::io("read record", &entry.path, e)),
        };
        let torn = |problem: String| Torn { path: entry.path.clone(), problem };
        Ok(match serde_json::from_slice::<Record>(&bytes) {
            Err(e) => Err(torn(e.to_string())),
            Ok(r) if r.version != RECORD_VERSION => {
                Err(torn(format!("version {} is not {RECORD_VERSION}", r.version)))
            }
            Ok(r) if r.host_interface != entry.name.host_interface => {
                Err(torn(format!("it names {}", r.host_interface)))
            }
            Ok(r) if r.addresses != entry.name.addresses => {
                Err(torn(format!("it holds {:?}", r.addresses)))
            }
            Ok(r) => Ok(r),
        })
    }

    /// Gives addresses to `record` and writes it. An earlier record of the same key is replaced and
    /// its addresses are kept, as far as the pool still has them.
    ///
    /// `requested` are addresses the attachment shall have, at most one a family. `avoid` are
    /// addresses that no record holds but that are in use nonetheless.
    pub fn allocate(
        &mut self,
        pool: &Pool,
        mut record: Record,
        requested: &[IpAddr],
        avoid: &BTreeSet<IpAddr>,
    ) -> Result<Record, Error> {
        let earlier = self.find(&record.key()).cloned();
        let own: Vec<IpAddr> = earlier
            .iter()
            .flat_map(|e| &e.name.addresses)
            .copied()
            .filter(|a| !avoid.contains(a))
            .collect();
        let mut used = self.used();
        for &address in requested {
            if !pool.contains(address) {
                return Err(Error::config(
                    "runtimeConfig.ips",
                    format!("{address} is not one of this node's addresses for pods"),
                ));
            }
            if avoid.contains(&address) {
                return Err(Error::AddressRouted(address));
            }
            if used.contains(&address) && !own.contains(&address) {
                return Err(Error::AddressTaken(address));
            }
        }
        // What is asked for comes first, then what the attachment has already.
        let kept: Vec<IpAddr> = requested.iter().copied().chain(own).collect();
        used.extend(avoid);
        let before = self.last_used.clone();
        // Ranges that were taken from the node long ago need no memory.
        self.last_used.retain(|cidr, _| pool.has_range(cidr) || cidr_in_use(cidr, &used));
        record.addresses = pool.allocate(&used, &mut self.last_used, &kept)?;
        if self.last_used != before || self.state_is_old {
            self.write_state(self.state_is_old)?;
            self.state_is_old = false;
        }
        let path = self.endpoints.join(record.file_name());
        self.write_record(&path, &record)?;
        if let Some(earlier) = earlier.filter(|e| e.path != path) {
            self.remove(&earlier)?;
        }
        self.entries.retain(|e| e.path != path);
        let name = FileName {
            host_interface: record.host_interface.clone(),
            addresses: record.addresses.clone(),
        };
        self.entries.push(Entry { path, name });
        Ok(record)
    }

    fn write_record(&self, path: &Path, record: &Record) -> Result<(), Error> {
        let partial = self.endpoints.join(PARTIAL);
        serde_json::to_vec(record)
            .map_err(io::Error::from)
            .and_then(|bytes| replace(&partial, path, &bytes, false))
            .map_err(|e| Error::io("write record", path, e))
    }

    /// Frees a record; one that is gone already is no error.
    ///
    /// Not synced: a record that a power failure brings back is of an earlier boot.
    pub fn remove(&mut self, entry: &Entry) -> Result<(), Error> {
        remove_file(&entry.path)?;
        self.entries.retain(|e| e.path != entry.path);
        Ok(())
    }

    /// Records older than [`LEAK_AGE`] whose interface `exists` denies: their pods are gone without
    /// a DEL.
    pub fn leaked(&self, mut exists: impl FnMut(&str) -> bool) -> Vec<Entry> {
        let now = SystemTime::now();
        let old = |entry: &Entry| {
            fs::metadata(&entry.path)
                .and_then(|m| m.modified())
                .is_ok_and(|t| now.duration_since(t).is_ok_and(|age| age >= LEAK_AGE))
        };
        let leaked = |e: &&Entry| old(e) && !exists(&e.name.host_interface);
        self.entries.iter().filter(leaked).cloned().collect()
    }

    /// Whether the pool has an address of each family left.
    pub fn check_free(&self, pool: &Pool) -> Result<(), PoolError> {
        pool.check_free(&self.used())
    }
}

/// Writes a file whole or not at all, by way of `partial`, of which nothing is left.
fn replace(partial: &Path, path: &Path, bytes: &[u8], sync: bool) -> io::Result<()> {
    let written = File::create(partial).and_then(|mut file| {
        file.write_all(bytes)?;
        if sync { file.sync_all() } else { Ok(()) }
    });
    let renamed = written.and_then(|()| fs::rename(partial, path));
    if renamed.is_err() {
        let _ = fs::remove_file(partial);
    }
    renamed
}

fn cidr_in_use(cidr: &ipnet::IpNet, used: &BTreeSet<IpAddr>) -> bool {
    used.iter().any(|a| cidr.contains(a))
}

fn remove_file(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Error::io("remove", path, e)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
