//! Network namespaces: opening one and running code inside.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd as _, RawFd};
use std::os::linux::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::thread;

use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};

use crate::error::Error;

/// An open handle on a network namespace; it keeps the namespace alive.
#[derive(Debug)]
pub struct Netns {
    path: PathBuf,
    file: File,
}

impl Netns {
    /// Opens the namespace bound at `path`.
    pub fn open(path: &Path) -> Result<Self, Error> {
        match File::open(path) {
            Ok(file) => Ok(Self { path: path.to_owned(), file }),
            Err(e)
                if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) =>
            {
                Err(Error::NoNetns(path.to_owned()))
            }
            Err(e) => Err(Error::io("open CNI_NETNS", path, e)),
        }
    }

    /// The path it was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// For `IFLA_NET_NS_FD`.
    pub fn raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    /// Whether it is the namespace this process runs in.
    pub fn is_own(&self) -> Result<bool, Error> {
        let own = Path::new("/proc/self/ns/net");
        let own = fs::metadata(own).map_err(|e| Error::io("stat", own, e))?;
        let it = self.file.metadata().map_err(|e| Error::io("stat", &self.path, e))?;
        Ok((own.st_dev(), own.st_ino()) == (it.st_dev(), it.st_ino()))
    }

    /// Runs `work` in the namespace, on a thread that ends with it: no other thread ever changes
    /// namespace. Sockets that `work` opens belong to the namespace for good, and `/proc/sys/net`
    /// is the namespace's.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, Error> {
        let inside = || match setns(&self.file, CloneFlags::CLONE_NEWNET) {
            Ok(()) => Ok(work()),
            Err(Errno::EINVAL) => Err(Error::Environment(format!(
                "CNI_NETNS {} is not a network namespace",
                self.path.display()
            ))),
            Err(e) => Err(Error::EnterNetns { path: self.path.clone(), source: e.into() }),
        };
        thread::scope(|scope| match scope.spawn(inside).join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    }
}
