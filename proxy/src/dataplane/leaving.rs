//! Addresses of pods that went, whose flows are still to be forgotten.
//!
//! Another pod gets such an address only after every other one of the node (next fit), so the flows
//! need not go at once: the collector, which goes through all of them anyway, takes those of any
//! number of pods along. Should a pod have such an address before that, they go first. What is
//! left to do stands in a directory, a file for each address, since the agent may die before it is done.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use sluice_abi::Addr;

/// The addresses; clones share them.
#[derive(Clone, Debug, Default)]
pub(super) struct Leaving {
    shared: Arc<(Mutex<State>, Condvar)>,
}

#[derive(Debug, Default)]
struct State {
    /// With what the collector is to do: a pass that was under way when the pod went may have been
    /// past its flows.
    addrs: BTreeMap<Addr, Due>,
    directory: Option<PathBuf>,
}

/// Which pass of the collector an address waits for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Due {
    Next,
    This,
}

impl Leaving {
    /// Remembers the addresses in a directory from now on, and takes up those that stand there.
    pub(super) fn remember_in(&self, directory: &Path) -> io::Result<()> {
        fs::create_dir_all(directory)?;
        let mut state = self.lock();
        for entry in fs::read_dir(directory)? {
            let name = entry?.file_name();
            if let Some(addr) = name.to_str().and_then(|name| name.parse::<IpAddr>().ok()) {
                state.addrs.insert(addr.into(), Due::Next);
            }
        }
        state.directory = Some(directory.to_owned());
        Ok(())
    }

    /// A pod's address to see to.
    pub(super) fn add(&self, addr: Addr) -> io::Result<()> {
        let (_, changed) = &*self.shared;
        let mut state = self.lock();
        state.addrs.insert(addr, Due::Next);
        changed.notify_all();
        match state.file(addr) {
            Some(path) => File::create(path).map(drop),
            None => Ok(()),
        }
    }

    /// All of them.
    pub(super) fn all(&self) -> BTreeSet<Addr> {
        self.lock().addrs.keys().copied().collect()
    }

    /// The address has been seen to: nobody removes a flow of it after this.
    pub(super) fn done(&self, addr: Addr) {
        let mut state = self.lock();
        if state.addrs.remove(&addr).is_some() {
            state.forget_file(addr);
        }
    }

    /// Waits until there is something to do, or for as long as that.
    pub(super) fn wait(&self, at_most: Duration) {
        let (_, changed) = &*self.shared;
        let idle = |state: &mut State| state.addrs.is_empty();
        // Nothing can be wrong with what is not read.
        drop(changed.wait_timeout_while(self.lock(), at_most, idle));
    }

    /// A pass over all flows begins.
    pub(super) fn begin_pass(&self) {
        self.lock().addrs.values_mut().for_each(|due| *due = Due::This);
    }

    /// It has come to its end.
    pub(super) fn end_pass(&self) {
        let mut state = self.lock();
        let done: Vec<Addr> = state
            .addrs
            .iter()
            .filter(|(_, due)| **due == Due::This)
            .map(|(addr, _)| *addr)
            .collect();
        for addr in done {
            state.addrs.remove(&addr);
            state.forget_file(addr);
        }
    }

    /// Does something with the addresses, which stay as they are meanwhile.
    pub(super) fn with<T>(&self, work: impl FnOnce(&dyn Fn(&Addr) -> bool) -> T) -> T {
        let state = self.lock();
        work(&|addr| state.addrs.contains_key(addr))
    }

    /// Whether there are none.
    pub(super) fn is_empty(&self) -> bool {
        self.lock().addrs.is_empty()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // What it holds is right after every step.
        self.shared.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn file(&self, addr: Addr) -> Option<PathBuf> {
        self.directory.as_ref().map(|directory| directory.join(addr.to_ip().to_string()))
    }

    /// One that stays costs the next agent a look.
    fn forget_file(&self, addr: Addr) {
        if let Some(path) = self.file(addr)
            && let Err(error) = fs::remove_file(&path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!("remove {}: {error}", path.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addr(text: &str) -> Addr {
        text.parse::<IpAddr>().expect("an address").into()
    }

    #[test]
    fn an_address_waits_for_a_whole_pass() {
        let leaving = Leaving::default();
        leaving.begin_pass();
        leaving.add(addr("10.244.1.5")).expect("nothing to write");
        leaving.end_pass();
        assert!(!leaving.is_empty(), "that pass had begun before");
        leaving.begin_pass();
        leaving.add(addr("10.244.1.6")).expect("nothing to write");
        assert!(leaving.with(|is_leaving| is_leaving(&addr("10.244.1.5"))));
        leaving.end_pass();
        assert_eq!(leaving.all(), [addr("10.244.1.6")].into(), "the other one is done");
        leaving.done(addr("10.244.1.6"));
        assert!(leaving.is_empty());
        leaving.wait(Duration::ZERO);
    }

    /// S32: what one agent did not come to do the next one does.
    #[test]
    fn what_is_left_to_do_outlives_the_agent() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("leaving");
        let files = || fs::read_dir(&path).expect("the directory").count();
        let before = Leaving::default();
        before.remember_in(&path).expect("a directory");
        for text in ["10.244.1.5", "fd00:244:1::5", "10.244.1.6"] {
            before.add(addr(text)).expect("a file");
        }
        before.done(addr("10.244.1.6"));
        assert_eq!(files(), 2);
        drop(before);
        fs::write(path.join("notes.txt"), "").expect("a file of somebody's");
        let after = Leaving::default();
        after.remember_in(&path).expect("a directory");
        assert!(after.with(|is_leaving| is_leaving(&addr("fd00:244:1::5"))));
        assert!(!after.with(|is_leaving| is_leaving(&addr("10.244.1.6"))));
        after.begin_pass();
        after.end_pass();
        assert!(after.is_empty());
        assert_eq!(files(), 1, "only the other file stays");
    }
}
