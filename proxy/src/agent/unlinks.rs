//! Pods' interfaces that the agent deletes for the plugin.
//!
//! The kernel tells everybody that an interface is gone long before it lets go of whoever deleted it:
//! `netdev_run_todo` waits for a whole grace period (`rcu_barrier`) to free the memory, about three
//! quarters of the time that a deletion takes. A process cannot leave while it waits, so a plugin that
//! deletes by itself keeps the runtime waiting for nothing. Here a thread waits, and the plugin's answer
//! goes out when the interface is gone.

use std::collections::BTreeMap;
use std::time::Duration;

use nix::errno::Errno;
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::LinkMessage;
use sluice_netlink::{Netlink, NetlinkError, Request};
use tokio::sync::oneshot;

use crate::control::{Answer, Reply};

/// How long the plugin is kept waiting. It deletes by itself what is still there then.
const PATIENCE: Duration = Duration::from_secs(1);

/// Deletions under way.
#[derive(Debug, Default)]
pub(super) struct Unlinks {
    /// Who waits until the interface of that index is gone.
    waiting: BTreeMap<u32, oneshot::Sender<()>>,
}

impl Unlinks {
    /// Deletes an interface of this network namespace, and answers once it is gone.
    pub(super) fn begin(&mut self, ifindex: u32, name: String, answer: oneshot::Sender<Answer>) {
        let (sender, gone) = oneshot::channel();
        self.waiting.retain(|_, waiting| !waiting.is_closed());
        self.waiting.insert(ifindex, sender);
        let deletion = tokio::task::spawn_blocking(move || delete(ifindex, name));
        tokio::spawn(async move {
            let unlinked = tokio::select! {
                Ok(()) = gone => true,
                Ok(deleted) = deletion => match deleted {
                    Ok(()) => true,
                    Err((name, error)) => {
                        tracing::warn!("pods of this node: delete interface {name}: {error}");
                        false
                    }
                },
                () = tokio::time::sleep(PATIENCE) => false,
                else => false,
            };
            // A client that left wants no answer.
            let _ = answer.send(Answer::data(Reply::Unlinked(unlinked)));
        });
    }

    /// The kernel says that an interface is gone.
    pub(super) fn gone(&mut self, ifindex: u32) {
        if let Some(waiting) = self.waiting.remove(&ifindex) {
            // Whoever waited may have been answered by the deletion itself.
            let _ = waiting.send(());
        }
    }
}

/// Deletes an interface; one that is gone already is no error.
fn delete(ifindex: u32, name: String) -> Result<(), (String, NetlinkError)> {
    let mut link = LinkMessage::default();
    link.header.index = ifindex;
    let request = Request {
        what: format!("delete interface {name}"),
        flags: 0,
        message: RouteNetlinkMessage::DelLink(link),
    };
    let deleted = Netlink::open().map_err(|error| (0, error)).and_then(|mut it| it.run(&[request]));
    match deleted {
        Err((_, error)) if error.is(Errno::ENODEV) => Ok(()),
        other => other.map_err(|(_, error)| (name, error)),
    }
}
