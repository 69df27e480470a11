//! What inotify tells of the directory.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io;
use std::path::Path;

use futures_util::StreamExt as _;
use inotify::{EventMask, EventOwned, EventStream, Inotify, WatchMask};

use super::files::is_manifest;

/// Room for a burst of events with names.
const BUFFER: usize = 16 << 10;

/// An inotify watch on one directory.
pub(super) struct Watch {
    events: EventStream<Vec<u8>>,
}

impl Watch {
    pub(super) fn new(directory: &Path) -> io::Result<Self> {
        let inotify = Inotify::init().map_err(|error| {
            let hint = "fs.inotify.max_user_instances may be too low";
            io::Error::new(error.kind(), format!("inotify: {error}; {hint}"))
        })?;
        // Not MODIFY: a file is read when its writer closes it, and not half-written.
        let mask = WatchMask::CLOSE_WRITE
            | WatchMask::CREATE
            | WatchMask::DELETE
            | WatchMask::MOVE
            | WatchMask::ATTRIB
            | WatchMask::DELETE_SELF
            | WatchMask::MOVE_SELF
            | WatchMask::ONLYDIR;
        inotify.watches().add(directory, mask)?;
        Ok(Self { events: inotify.into_event_stream(vec![0; BUFFER])? })
    }

    /// The next event. Cancel-safe.
    pub(super) async fn next(&mut self) -> io::Result<EventOwned> {
        match self.events.next().await {
            Some(event) => event,
            None => Err(io::Error::from(io::ErrorKind::UnexpectedEof)),
        }
    }
}

/// What a burst of events comes down to.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// Files to read again.
    pub(super) files: BTreeSet<OsString>,
    /// A manifest was removed or renamed.
    pub(super) gone: bool,
    /// Anything may have changed.
    pub(super) everything: bool,
    /// The directory was removed, renamed or unmounted.
    pub(super) directory_gone: bool,
}

impl Seen {
    pub(super) fn add(&mut self, event: EventOwned, directory: &Path) {
        let mask = event.mask;
        if mask.contains(EventMask::Q_OVERFLOW) {
            self.everything = true;
            return;
        }
        if mask.intersects(
            EventMask::DELETE_SELF | EventMask::MOVE_SELF | EventMask::IGNORED | EventMask::UNMOUNT,
        ) {
            self.directory_gone = true;
            return;
        }
        let Some(name) = event.name else { return };
        self.gone |=
            mask.intersects(EventMask::DELETE | EventMask::MOVED_FROM) && is_manifest(&name);
        if name.as_encoded_bytes().starts_with(b"..") {
            // `..data` of a mounted ConfigMap: every file leads through it.
            self.everything = true;
        } else if !mask.contains(EventMask::CREATE) || complete_at_once(&directory.join(&name)) {
            self.files.insert(name);
        }
    }
}

/// Whether a file that was just created will not be told of again when its writer closes it: a
/// symbolic or a hard link.
fn complete_at_once(path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    std::fs::symlink_metadata(path)
        .is_ok_and(|metadata| metadata.is_symlink() || metadata.nlink() > 1)
}
