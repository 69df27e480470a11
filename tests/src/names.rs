//! Unique names for what a fixture makes outside its own process.
//!
//! A name is `PREFIX-PID-SERIAL-LABEL`, for example `slb-4711-3-node-a`. The PID is the owner's, so that runs side by
//! side never meet, and [`crate::sweep`] can tell what a dead run left behind.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

static PREFIX: OnceLock<String> = OnceLock::new();
static SERIAL: AtomicU32 = AtomicU32::new(1);
static CLOSED: AtomicBool = AtomicBool::new(false);

/// The prefix of test fixtures, unless [`set_prefix`] was called.
pub const DEFAULT_PREFIX: &str = "slb";

/// Chooses another prefix for this process, before the first fixture is made.
///
/// Returns false if a name was already given out or a prefix already set.
pub fn set_prefix(prefix: &str) -> bool {
    PREFIX.set(prefix.to_owned()).is_ok()
}

/// The prefix in use.
pub fn prefix() -> &'static str {
    PREFIX.get_or_init(|| DEFAULT_PREFIX.to_owned())
}

/// No more names: whoever asks for one waits for the end of this process, which is near.
pub(crate) fn close() {
    CLOSED.store(true, Ordering::SeqCst);
}

/// A new name that nobody on this machine has: `PREFIX-PID-SERIAL-LABEL`.
pub fn unique(label: &str) -> String {
    while CLOSED.load(Ordering::SeqCst) {
        std::thread::park();
    }
    let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
    format!("{}-{}-{serial}-{label}", prefix(), std::process::id())
}

/// The PID of the process that made `name`, if it is a name of this prefix.
pub fn owner(name: &str) -> Option<u32> {
    name.strip_prefix(prefix())?.strip_prefix('-')?.split('-').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_tells_its_owner() {
        let name = unique("node-a");
        assert_eq!(owner(&name), Some(std::process::id()));
        assert_ne!(name, unique("node-a"));
    }

    #[test]
    fn foreign_names_have_no_owner() {
        for name in
            ["", "slb", "slb-", "slb-x-1-a", "slbx-12-1-a", "cni-1234", "slb-99999999999-1-a"]
        {
            assert_eq!(owner(name), None, "{name}");
        }
    }
}
