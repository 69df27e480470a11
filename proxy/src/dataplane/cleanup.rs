//! The way back: everything that was ever pinned or attached goes.

use std::fs;
use std::io;
use std::path::Path;

use aya::programs::{TcAttachType, tc};
use sluice_abi::programs;

use super::DataplaneError;

/// What [`cleanup`] removed.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Removed {
    /// Attached programs.
    pub links: usize,
    /// Maps, with all that they held.
    pub maps: usize,
    /// Programs that hung on interfaces by filters, where the kernel has no links for them.
    pub filters: usize,
}

/// Detaches all programs that are pinned under the root (`--bpf-root`) and unpins all maps, of
/// whatever version of Sluice; then detaches the programs that hang on interfaces of this network
/// namespace by filters. Links go first: no program is left that would look into maps half gone.
///
/// What is under the root and in no directory of a version is somebody else's and stays.
///
/// # Errors
///
/// Names the pin that cannot be removed.
pub fn cleanup(bpf_root: &Path) -> Result<Removed, DataplaneError> {
    let mut removed = Removed::default();
    let versions = version_directories(bpf_root)?;
    for version in &versions {
        removed.links += unpin_all(&version.join("links"))?;
    }
    removed.filters = detach_filters();
    for version in &versions {
        removed.maps += unpin_all(&version.join("maps"))?;
        remove_empty(version)?;
    }
    remove_empty(bpf_root)?;
    Ok(removed)
}

/// `v1`, `v2`, and so on.
fn version_directories(bpf_root: &Path) -> Result<Vec<std::path::PathBuf>, DataplaneError> {
    let error = |source| DataplaneError::File { action: "read", path: bpf_root.to_owned(), source };
    let entries = match fs::read_dir(bpf_root) {
        Ok(entries) => entries,
        Err(source) if source.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(error(source)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.map_err(error)?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let digits = name.strip_prefix('v').unwrap_or_default();
        if !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()) && path.is_dir() {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// Removes all pins in a directory, and the directory.
fn unpin_all(directory: &Path) -> Result<usize, DataplaneError> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(source) if source.kind() == io::ErrorKind::NotFound => return Ok(0),
        Err(source) => {
            return Err(DataplaneError::File {
                action: "read",
                path: directory.to_owned(),
                source,
            });
        }
    };
    let mut count = 0;
    for entry in entries.flatten() {
        let path = entry.path();
        match fs::remove_file(&path) {
            Ok(()) => count += 1,
            Err(source) if source.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(DataplaneError::File { action: "unpin", path, source }),
        }
    }
    remove_empty(directory)?;
    Ok(count)
}

/// Removes a directory if it is there and nothing is in it.
fn remove_empty(directory: &Path) -> Result<(), DataplaneError> {
    match fs::remove_dir(directory) {
        Err(source)
            if !matches!(
                source.kind(),
                io::ErrorKind::NotFound
                    | io::ErrorKind::DirectoryNotEmpty
                    // The root may be the file system's own.
                    | io::ErrorKind::ResourceBusy
                    | io::ErrorKind::PermissionDenied
            ) =>
        {
            Err(DataplaneError::File { action: "remove", path: directory.to_owned(), source })
        }
        _ => Ok(()),
    }
}

/// Programs are known by their names. An interface without such a filter is an error to the kernel,
/// and none to us.
fn detach_filters() -> usize {
    // The namespace of this thread, unlike /sys/class/net.
    let text = fs::read_to_string("/proc/thread-self/net/dev").unwrap_or_default();
    let interfaces = text.lines().filter_map(|line| Some(line.split_once(':')?.0.trim()));
    let hooks = [TcAttachType::Ingress, TcAttachType::Egress];
    interfaces
        .flat_map(|interface| {
            hooks.iter().flat_map(move |hook| {
                programs::TC.map(|name| {
                    // The kernel keeps fifteen bytes of a name.
                    let kept = &name[..name.len().min(15)];
                    tc::qdisc_detach_program(interface, *hook, name).is_ok()
                        || (kept != name
                            && tc::qdisc_detach_program(interface, *hook, kept).is_ok())
                })
            })
        })
        .filter(|detached| *detached)
        .count()
}
