//! Records of pods that went without a DEL: a runtime that crashed never sends one, and runtimes do
//! not call the plugin's GC. The agent frees their addresses by itself.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

/// A record without an interface is a leak once it is this old: the plugin writes the record first
/// and makes the interface then, and no ADD takes as long.
pub(super) const GRACE: Duration = Duration::from_secs(60);

/// Removes each record below `state_dir` whose host-side interface `is_gone` confirms to be gone and
/// that is older than `grace` at `now`; returns their paths. Nothing is removed while the plugin is
/// at work on the records (its lock is held): the next call will do.
///
/// # Errors
///
/// A record or the directory cannot be read or written; the others are seen to nonetheless.
pub(super) fn heal(
    state_dir: &Path,
    now: SystemTime,
    grace: Duration,
    is_gone: impl Fn(&str) -> bool,
) -> io::Result<Vec<PathBuf>> {
    let directory = super::records::directory(state_dir);
    let leaked = |path: &Path| {
        let Some(interface) = host_interface(path) else { return false };
        let age = fs::metadata(path).and_then(|meta| meta.modified());
        let old = age.is_ok_and(|time| now.duration_since(time).is_ok_and(|age| age >= grace));
        old && is_gone(interface)
    };
    // Without the lock first: as a rule nothing is to be done.
    let suspects = records(&directory)?.into_iter().filter(|path| leaked(path)).collect::<Vec<_>>();
    if suspects.is_empty() {
        return Ok(Vec::new());
    }
    let lock =
        File::options().create(true).truncate(false).write(true).open(state_dir.join("lock"))?;
    match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(Errno::WOULDBLOCK) => return Ok(Vec::new()),
        Err(errno) => return Err(errno.into()),
    }
    let mut removed = Vec::new();
    let mut failure = None;
    // A second look, now that nobody else may change anything.
    for path in suspects.into_iter().filter(|path| leaked(path)) {
        match fs::remove_file(&path) {
            Ok(()) => removed.push(path),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => failure = Some(error),
        }
    }
    failure.map_or(Ok(removed), Err)
}

fn records(directory: &Path) -> io::Result<Vec<PathBuf>> {
    match fs::read_dir(directory) {
        Ok(entries) => entries.map(|entry| entry.map(|entry| entry.path())).collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// The interface in a record's name, which is `INTERFACE,ADDRESS[,ADDRESS].json` with an interface of
/// the plugin's making. It stands in the name so that a damaged record tells it, too.
fn host_interface(path: &Path) -> Option<&str> {
    let interface = path.file_name()?.to_str()?.strip_suffix(".json")?.split(',').next()?;
    let digits = interface.strip_prefix("slu")?;
    let ours = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    ours.then_some(interface)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct State(tempfile::TempDir);

    impl State {
        /// With these records, all as old as that.
        fn new(names: &[&str], age: Duration) -> Self {
            let dir = tempfile::tempdir().expect("a directory");
            fs::create_dir(dir.path().join("endpoints")).expect("a directory");
            for name in names {
                let path = dir.path().join("endpoints").join(name);
                let file = File::create(path).expect("a file");
                file.set_modified(SystemTime::now() - age).expect("its time");
            }
            Self(dir)
        }

        fn heal(&self) -> Vec<PathBuf> {
            let gone = |name: &str| name != "slu0000000000a";
            heal(self.0.path(), SystemTime::now(), GRACE, gone).expect("no failure")
        }

        fn left(&self) -> Vec<String> {
            let paths = records(&self.0.path().join("endpoints")).expect("readable");
            let name = |path: &PathBuf| path.file_name().expect("a name").to_string_lossy().into();
            let mut names: Vec<String> = paths.iter().map(name).collect();
            names.sort();
            names
        }
    }

    const LIVE: &str = "slu0000000000a,10.0.0.2.json";
    const GONE: &str = "slu0000000000b,10.0.0.3,fd00::3.json";

    /// C5: the record of a pod that is gone goes; damaged or not, its name is enough.
    #[test]
    fn old_records_without_an_interface_go_and_nothing_else_does() {
        let foreign = ["notes.json", "slu0000000000c", "sluxyz,10.0.0.4.json"];
        let state = State::new(&[&[LIVE, GONE], &foreign[..]].concat(), GRACE);
        assert_eq!(state.heal(), [state.0.path().join("endpoints").join(GONE)]);
        assert_eq!(state.left(), ["notes.json", LIVE, "slu0000000000c", "sluxyz,10.0.0.4.json"]);
        assert!(state.heal().is_empty());
    }

    /// C5: an ADD that has written its record and not made its interface yet loses nothing.
    #[test]
    fn a_young_record_may_be_an_add_under_way() {
        let state = State::new(&[GONE], GRACE - Duration::from_secs(10));
        assert!(state.heal().is_empty());
        assert_eq!(state.left(), [GONE]);
    }

    /// C5: while the plugin holds its lock, records are the plugin's.
    #[test]
    fn nothing_is_removed_while_the_plugin_is_at_work() {
        let state = State::new(&[GONE], GRACE);
        let lock = File::create(state.0.path().join("lock")).expect("a file");
        flock(&lock, FlockOperation::LockExclusive).expect("the lock");
        assert!(state.heal().is_empty());
        assert_eq!(state.left(), [GONE]);
        drop(lock);
        assert_eq!(state.heal().len(), 1);
    }

    #[test]
    fn a_state_directory_that_is_not_there_has_no_leaks() {
        let found = heal(Path::new("/nonexistent/state"), SystemTime::now(), GRACE, |_| true);
        assert!(found.expect("no failure").is_empty());
    }
}
