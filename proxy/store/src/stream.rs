//! A running source.

use std::time::SystemTime;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use crate::coalesce::coalesce;
use crate::source;
use crate::{Event, SourceError, SourceOptions, SourceUrl};

/// How many events may wait between the source and its reader. When they do, the source waits too:
/// an etcd then holds the rest back by flow control.
const CHANNEL: usize = 4096;

/// The same for a source that is read in place. Objects are at their largest on this way: thousands
/// of them are megabytes that nobody needs again.
const CHANNEL_IN_PLACE: usize = 256;

/// The most events of one batch. Small enough that a reader soon sees the first changes of a large
/// list, large enough to coalesce a burst.
const BATCH: usize = 4096;

/// How a source is doing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SourceStatus {
    /// Whether the source can be read now.
    pub connected: bool,
    /// Since when `connected` has been what it is.
    pub since: SystemTime,
    /// Whether a complete list has been read since the start.
    pub synced: bool,
    /// The store's revision up to which everything has been read, where it has revisions.
    pub revision: Option<i64>,
    /// Why it is not connected, or what went wrong last.
    pub last_error: Option<String>,
}

impl SourceStatus {
    fn new() -> Self {
        Self {
            connected: false,
            since: SystemTime::now(),
            synced: false,
            revision: None,
            last_error: None,
        }
    }
}

/// A running source: a task that reads it and a bounded channel of what it says. Dropping the
/// stream ends the task.
#[derive(Debug)]
pub struct Stream {
    events: mpsc::Receiver<Event>,
    status: watch::Receiver<SourceStatus>,
    task: JoinHandle<()>,
}

impl Stream {
    /// Starts the source. Must be called inside a tokio runtime with its I/O and time drivers on.
    ///
    /// # Errors
    /// Only a configuration that can never work is an error. A source that is away is not: its
    /// status says so, and it is tried again.
    pub fn open(url: &SourceUrl, options: &SourceOptions) -> Result<Self, SourceError> {
        let runtime = tokio::runtime::Handle::try_current()?;
        if options.kinds.is_empty() {
            return Err(SourceError::NoKinds);
        }
        let room = if options.in_place { CHANNEL_IN_PLACE } else { CHANNEL };
        let (sender, events) = mpsc::channel(room);
        let (status_sender, status) = watch::channel(SourceStatus::new());
        let sink = Sink { events: sender, status: status_sender };
        let task = match url {
            SourceUrl::Dir(path) => {
                let source = source::dir::Source::new(path.clone(), options);
                runtime.spawn(source.run(sink))
            }
            SourceUrl::Etcd(endpoints) => {
                let source = source::etcd::Source::new(endpoints.clone(), options)?;
                runtime.spawn(source.run(sink))
            }
        };
        Ok(Self { events, status, task })
    }

    /// All events that are pending, coalesced: of several changes of one object only the last is
    /// there. Waits for the first one. `None` when the source has ended, which it does by itself
    /// never.
    ///
    /// Cancel-safe: a call that is dropped loses no event.
    pub async fn next_batch(&mut self) -> Option<Vec<Event>> {
        let mut batch = Vec::new();
        if self.events.recv_many(&mut batch, BATCH).await == 0 {
            return None;
        }
        Some(coalesce(batch))
    }

    /// The source's status, to be read at any time or awaited.
    pub fn status(&self) -> watch::Receiver<SourceStatus> {
        self.status.clone()
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The reader of the stream is gone; the source ends.
#[derive(Debug)]
pub(crate) struct Closed;

/// The source's end of a stream.
#[derive(Debug)]
pub(crate) struct Sink {
    events: mpsc::Sender<Event>,
    status: watch::Sender<SourceStatus>,
}

impl Sink {
    /// Hands one event over, waiting for room.
    pub(crate) async fn send(&self, event: Event) -> Result<(), Closed> {
        let done = matches!(event, Event::InitDone);
        self.events.send(event).await.map_err(|_| Closed)?;
        if done {
            self.status.send_if_modified(|status| !std::mem::replace(&mut status.synced, true));
        }
        Ok(())
    }

    /// Hands events over in order.
    pub(crate) async fn send_all(
        &self,
        events: impl IntoIterator<Item = Event>,
    ) -> Result<(), Closed> {
        for event in events {
            self.send(event).await?;
        }
        Ok(())
    }

    /// The source can be read.
    pub(crate) fn connected(&self) {
        self.status.send_if_modified(|status| {
            let changed = !status.connected || status.last_error.is_some();
            if !status.connected {
                status.connected = true;
                status.since = SystemTime::now();
            }
            status.last_error = None;
            changed
        });
    }

    /// The source cannot be read. Says whether that is news, so that it is logged once and not at
    /// every attempt.
    pub(crate) fn disconnected(&self, error: &str) -> bool {
        self.status.send_if_modified(|status| {
            let changed = status.connected || status.last_error.as_deref() != Some(error);
            if status.connected {
                status.connected = false;
                status.since = SystemTime::now();
            }
            status.last_error = Some(error.to_owned());
            changed
        })
    }

    /// Everything up to this revision has been handed over.
    pub(crate) fn revision(&self, revision: i64) {
        self.status.send_if_modified(|status| status.revision.replace(revision) != Some(revision));
    }

    /// Whether the reader is gone.
    pub(crate) async fn closed(&self) {
        self.events.closed().await;
    }
}
