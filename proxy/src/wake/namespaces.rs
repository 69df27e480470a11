//! Network namespaces by their cookie.
//!
//! The programs know a namespace by its cookie (`SO_NETNS_COOKIE`); to enter it takes a path. The
//! paths that are known are tried first: this process's own, those of the pods' records, what
//! `ip netns` keeps, and last of all those of every process. A cookie, other than an inode number,
//! is never used again, so it is compared each time before anything is done.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::dataplane::netns_cookie;

/// Where namespaces were found.
pub(super) struct Namespaces {
    records: Box<dyn Fn() -> Vec<PathBuf> + Send>,
    known: HashMap<u64, PathBuf>,
}

impl Namespaces {
    /// None yet. `records` names the namespaces of the node's pods, as far as someone knows them.
    pub(super) fn new(records: impl Fn() -> Vec<PathBuf> + Send + 'static) -> Self {
        Self { records: Box::new(records), known: HashMap::new() }
    }

    /// Does `work` in the namespace, on a thread of its own; `None` if there is no such namespace,
    /// or no way into it: then it has no processes that this one can see.
    ///
    /// # Errors
    ///
    /// The thread cannot be started.
    pub(super) fn run<T: Send>(
        &mut self,
        cookie: u64,
        mut work: impl FnMut() -> T + Send,
    ) -> io::Result<Option<T>> {
        if let Some(path) = self.known.get(&cookie)
            && let Ok(Some(done)) = enter(path, cookie, &mut work)
        {
            return Ok(Some(done));
        }
        self.search(cookie);
        match self.known.get(&cookie) {
            Some(path) => enter(path, cookie, &mut work),
            None => Ok(None),
        }
    }

    /// Looks for the namespace, and forgets what is not there any more.
    fn search(&mut self, wanted: u64) {
        self.known.clear();
        let mut seen = std::collections::HashSet::new();
        let fixed = [PathBuf::from("/proc/thread-self/ns/net")];
        let candidates = fixed
            .into_iter()
            .chain((self.records)())
            .chain(entries("/run/netns"))
            .chain(entries("/proc").map(|process| process.join("ns/net")));
        for path in candidates {
            // Following the link, if it is one: what counts is the namespace.
            let Ok(metadata) = fs::metadata(&path) else { continue };
            if !seen.insert((metadata.dev(), metadata.ino())) {
                continue;
            }
            if let Ok(cookie) = cookie_of(&path) {
                self.known.insert(cookie, path);
                if cookie == wanted {
                    return;
                }
            }
        }
    }
}

impl std::fmt::Debug for Namespaces {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Namespaces").field("known", &self.known).finish_non_exhaustive()
    }
}

/// What is in a directory; nothing where it cannot be read.
fn entries(directory: &str) -> impl Iterator<Item = PathBuf> + use<> {
    fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path())
}

/// The cookie of the namespace that the path leads to.
pub(crate) fn cookie_of(path: &Path) -> io::Result<u64> {
    inside(path, netns_cookie)?
}

/// Does the work if the path leads to the namespace with that cookie.
fn enter<T: Send>(
    path: &Path,
    cookie: u64,
    work: &mut (impl FnMut() -> T + Send),
) -> io::Result<Option<T>> {
    inside(path, || (netns_cookie().ok() == Some(cookie)).then(work))
}

/// Does the work on a thread in the namespace that the path leads to: no other thread ever changes
/// its namespace.
fn inside<T: Send>(path: &Path, work: impl FnOnce() -> T + Send) -> io::Result<T> {
    let file = File::open(path)?;
    std::thread::scope(|scope| {
        let inside = || -> io::Result<T> {
            move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))?;
            Ok(work())
        };
        let thread = std::thread::Builder::new().name("netns".to_owned());
        let thread = thread.spawn_scoped(scope, inside)?;
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}
