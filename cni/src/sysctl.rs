//! Sysctls of the calling thread's network namespace.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::error::Error;

/// The file of a sysctl; `/` separates its parts, since interface names may hold dots.
fn path(name: &str) -> PathBuf {
    Path::new("/proc/sys/net").join(name)
}

/// Sets one.
pub fn set(name: &str, value: &str) -> Result<(), Error> {
    let path = path(name);
    fs::write(&path, value).map_err(|e| Error::io("set sysctl", &path, e))
}

/// Sets one that most often has its value already: to read it takes no lock, and to write it takes
/// that of all interfaces.
pub fn ensure(name: &str, value: &str) -> Result<(), Error> {
    if get(name)?.as_deref() == Some(value) { Ok(()) } else { set(name, value) }
}

/// Sets one that a kernel may lack (IPv6 switched off, an old release).
pub fn set_if_there(name: &str, value: &str) -> Result<(), Error> {
    match set(name, value) {
        Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Reads one; `None` where the kernel lacks it.
pub fn get(name: &str) -> Result<Option<String>, Error> {
    let path = path(name);
    match fs::read_to_string(&path) {
        Ok(value) => Ok(Some(value.trim().to_owned())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::io("read sysctl", &path, e)),
    }
}

/// Makes the node forward packets between its interfaces.
///
/// Forwarding of IPv6 makes the kernel ignore router advertisements where `accept_ra` is 1, and a
/// node that has its default route from one would lose it; such interfaces get `accept_ra` 2 first
/// (`Documentation/networking/ip-sysctl.rst`).
pub fn enable_forwarding(v4: bool, v6: bool) -> Result<(), Error> {
    if v4 && get("ipv4/ip_forward")?.as_deref() == Some("0") {
        set("ipv4/ip_forward", "1")?;
    }
    if v6 && get("ipv6/conf/all/forwarding")?.as_deref() == Some("0") {
        let conf = path("ipv6/conf");
        let list = |e| Error::io("list", &conf, e);
        for item in fs::read_dir(&conf).map_err(list)? {
            let name = item.map_err(list)?.file_name();
            let name = format!("ipv6/conf/{}/accept_ra", name.to_string_lossy());
            if get(&name)?.as_deref() == Some("1") {
                set_if_there(&name, "2")?;
            }
        }
        set("ipv6/conf/all/forwarding", "1")?;
    }
    Ok(())
}
