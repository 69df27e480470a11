//! Reads the files of the directory that changed.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::fs::{self, File, Metadata};
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::packed::Packed;
use crate::Rejected;
use crate::manifest::parse_manifest;

/// The largest file that is read. Ten thousand Services with their slices are a tenth of it.
const MAX_FILE: u64 = 256 << 20;

/// A file or directory as such, whatever it is called.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Identity {
    device: u64,
    inode: u64,
}

impl Identity {
    /// Of the directory at that path.
    pub(super) fn of(path: &Path) -> io::Result<Self> {
        let metadata = fs::metadata(path)?;
        if !metadata.is_dir() {
            return Err(io::Error::from(io::ErrorKind::NotADirectory));
        }
        Ok(Self { device: metadata.dev(), inode: metadata.ino() })
    }
}

/// What tells one state of a file from another without reading it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

/// What one file holds, each object with its origin.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Contents {
    pub(super) objects: Vec<(Box<str>, Packed)>,
    pub(super) rejected: Vec<Rejected>,
}

/// What became of one file.
#[derive(Clone, PartialEq, Debug)]
pub(super) enum Content {
    /// Read and parsed.
    Manifest(Contents),
    /// It is there and cannot be read; why.
    Unreadable(String),
    /// It is not there any more.
    Gone,
}

/// A file, by its full path, and what became of it.
pub(super) type Change = (String, Content);

/// The manifest files of a directory and in which state they were read.
#[derive(Debug)]
pub(super) struct Files {
    directory: PathBuf,
    stamps: BTreeMap<OsString, Option<Stamp>>,
}

impl Files {
    /// Of which none has been read yet.
    pub(super) fn new(directory: &Path) -> Self {
        Self { directory: directory.to_owned(), stamps: BTreeMap::new() }
    }

    /// Reads these files, changed or not.
    pub(super) fn read_named(&mut self, names: BTreeSet<OsString>) -> Vec<Change> {
        names
            .into_iter()
            .filter(|name| is_manifest(name))
            .filter_map(|name| self.read(name))
            .collect()
    }

    /// Reads the files that are not as they were when they were last read. With `settled`, those
    /// written to within that time are left for later: their writer may not be done.
    pub(super) fn scan(&mut self, settled: Option<Duration>) -> io::Result<Vec<Change>> {
        let mut names = BTreeSet::new();
        for entry in fs::read_dir(&self.directory)? {
            let name = entry?.file_name();
            if is_manifest(&name) {
                names.insert(name);
            }
        }
        let gone: Vec<_> =
            self.stamps.keys().filter(|name| !names.contains(*name)).cloned().collect();
        let changed = names.into_iter().filter(|name| {
            let metadata = fs::metadata(self.directory.join(name)).ok();
            let young = |metadata: &Metadata| {
                let age = metadata.modified().ok().and_then(age);
                settled.is_some_and(|settled| age.is_some_and(|age| age < settled))
            };
            let stamp = metadata.as_ref().map(Stamp::of);
            self.stamps.get(name) != Some(&stamp) && !metadata.as_ref().is_some_and(young)
        });
        let changed: Vec<_> = changed.collect();
        Ok(gone.into_iter().chain(changed).filter_map(|name| self.read(name)).collect())
    }

    /// Reads one file and notes its state. `None` for what is no file.
    fn read(&mut self, name: OsString) -> Option<Change> {
        let path = self.directory.join(&name);
        let shown = path.display().to_string();
        match load(&path) {
            Ok((stamp, text)) => {
                self.stamps.insert(name, Some(stamp));
                let text = text?;
                Some(match String::from_utf8(text) {
                    Ok(text) => {
                        let manifest = parse_manifest(&shown, &text);
                        // Packed at once: whole, the objects of all files would take many times as
                        // much memory for a moment.
                        let pack = |(origin, object): (String, _)| {
                            (origin.into_boxed_str(), Packed::new(object))
                        };
                        let objects = manifest.objects.into_iter().map(pack).collect();
                        let rejected = manifest.rejected;
                        (shown, Content::Manifest(Contents { objects, rejected }))
                    }
                    Err(_) => (shown, Content::Unreadable("is not UTF-8 text".to_owned())),
                })
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound && !is_link(&path) => {
                self.stamps.remove(&name);
                Some((shown, Content::Gone))
            }
            Err(error) => {
                // As `scan` sees it, so that the file is read again once that changes.
                let stamp = fs::metadata(&path).ok().as_ref().map(Stamp::of);
                self.stamps.insert(name, stamp);
                Some((shown, Content::Unreadable(format!("cannot be read: {error}"))))
            }
        }
    }
}

/// How long ago that was; `None` if it is in the future.
fn age(at: SystemTime) -> Option<Duration> {
    SystemTime::now().duration_since(at).ok()
}

/// Whether there is a symbolic link, even one that leads nowhere.
fn is_link(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_symlink())
}

/// A file's state and content; no content for a directory, socket or the like.
fn load(path: &Path) -> io::Result<(Stamp, Option<Vec<u8>>)> {
    // Not opened before it is known to be a file: opening a FIFO waits for its writer.
    let metadata = fs::metadata(path)?;
    if !metadata.is_file() {
        return Ok((Stamp::of(&metadata), None));
    }
    let file = File::open(path)?;
    let metadata = file.metadata()?;
    let mut text = Vec::new();
    file.take(MAX_FILE + 1).read_to_end(&mut text)?;
    if text.len() as u64 > MAX_FILE {
        return Err(io::Error::from(io::ErrorKind::FileTooLarge));
    }
    Ok((Stamp::of(&metadata), Some(text)))
}

/// Whether a file of that name is read.
pub(super) fn is_manifest(name: &OsStr) -> bool {
    let Some(name) = name.to_str() else { return false };
    !name.starts_with('.') && [".yaml", ".yml", ".json"].iter().any(|end| name.ends_with(end))
}
