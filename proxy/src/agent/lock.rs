//! One agent a node.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

/// The node's lock; held while this value lives, and let go by the kernel when the process ends in
/// whatever way.
#[derive(Debug)]
pub struct NodeLock {
    _file: File,
}

/// Why the lock could not be taken.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another agent holds it.
    #[error("another sluiced ({holder}) runs on this node: it holds {}", path.display())]
    Held {
        /// The lock file.
        path: PathBuf,
        /// Who wrote the file.
        holder: String,
    },
    /// The file could not be made.
    #[error("cannot lock {}: {call}: {source}", path.display())]
    Io {
        /// The lock file.
        path: PathBuf,
        /// The failing call.
        call: &'static str,
        /// Its error.
        source: io::Error,
    },
}

impl NodeLock {
    /// Takes the lock in `run_dir`, which is made if need be, and writes the process id into it.
    ///
    /// # Errors
    ///
    /// [`LockError::Held`] names the process that has it.
    pub fn take(run_dir: &Path) -> Result<Self, LockError> {
        let path = run_dir.join("sluiced.lock");
        let error = |call| {
            let path = path.clone();
            move |source: io::Error| LockError::Io { path, call, source }
        };
        fs::create_dir_all(run_dir).map_err(error("mkdir"))?;
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(error("open"))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let mut holder = String::new();
                // The holder writes its id after it has the lock; in between the file is empty.
                let _ = file.read_to_string(&mut holder);
                let holder = match holder.trim() {
                    "" => "just started".to_owned(),
                    pid => format!("pid {pid}"),
                };
                return Err(LockError::Held { path, holder });
            }
            Err(errno) => return Err(error("flock")(errno.into())),
        }
        file.set_len(0).map_err(error("truncate"))?;
        file.rewind().map_err(error("seek"))?;
        writeln!(file, "{}", std::process::id()).map_err(error("write"))?;
        Ok(Self { _file: file })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// O3: a second agent on the same node refuses to start and says who holds it.
    #[test]
    fn a_second_agent_is_told_who_holds_the_node() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let first = NodeLock::take(dir.path()).expect("the first takes it");
        let error = NodeLock::take(dir.path()).expect_err("the second does not");
        let text = error.to_string();
        assert!(text.contains(&format!("pid {}", std::process::id())), "{text}");
        drop(first);
        NodeLock::take(dir.path()).expect("free again once the first is gone");
    }
}
