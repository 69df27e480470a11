//! The programs of several pods that are made at once.
//!
//! A question about an interface and a filter each wait for the lock of all interfaces, which the
//! plugins at work on other pods hold in turn. What waits side by side waits once.

use std::collections::BTreeMap;
use std::thread;

use sluice_netlink::NetlinkError;

use super::links::{Link, Links};
use crate::dataplane::{Attachment, Dataplane, DataplaneError, TcHook};

/// What was done for an interface beforehand.
#[derive(Debug)]
pub(super) struct Prepared {
    /// What the kernel says of it.
    pub(super) link: Result<Option<Link>, NetlinkError>,
    /// Its programs.
    pub(super) attached: Result<Attachment, DataplaneError>,
}

/// Attaches programs to interfaces, a thread each; by the interface's name. One that is missing in the
/// answer was not seen to.
pub(super) fn attach_all(
    dataplane: &Dataplane,
    interfaces: &[(String, TcHook)],
) -> BTreeMap<String, Prepared> {
    let attach = |name: &str, hook| Prepared {
        link: Links::open().and_then(|mut links| links.get(name)),
        attached: dataplane.attach_pod(name, hook),
    };
    thread::scope(|scope| {
        let mut under_way = Vec::with_capacity(interfaces.len());
        for (name, hook) in interfaces {
            let work = move || attach(name, *hook);
            match thread::Builder::new().spawn_scoped(scope, work) {
                Ok(thread) => under_way.push((name.clone(), thread)),
                // It is seen to by itself, later.
                Err(error) => tracing::warn!(interface = name, "no thread to attach by: {error}"),
            }
        }
        let ended = under_way.into_iter().map(|(name, thread)| match thread.join() {
            Ok(prepared) => (name, prepared),
            Err(panic) => std::panic::resume_unwind(panic),
        });
        ended.collect()
    })
}
