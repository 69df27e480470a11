//! The etcd of a kube-apiserver.
//!
//! Everything under the watched prefixes is listed at one revision and then watched from the next.
//! A broken stream is taken up where it ended, at the next member if need be. Where that cannot be
//! (the history is compacted, a backup was restored, it is another cluster), everything is listed
//! again; the reader sees that as one `Init` to `InitDone` and what it knew stays until then.

mod client;
mod keys;
mod position;
#[cfg(test)]
mod tests;

use std::time::Duration;

use etcd_client::{EventType, WatchResponse, WatchStream};
use sluice_model::ResourceKind;
use tokio::time::{sleep, timeout};
use tracing::{debug, info, warn};

use self::client::{Connection, Connector, Failure};
use self::keys::{Keys, events};
use self::position::{Header, Position};
use super::backoff::Backoff;
use crate::stream::Sink;
use crate::{EtcdEndpoint, Event, SourceError, SourceOptions};

/// First and longest wait after every member has failed. Short, because the view is to be right
/// again within a second of etcd's return.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(1));

/// Longest wait where etcd answers and refuses (wrong password, no permission): its answer will
/// hardly change soon.
const RETRY_REFUSED: Duration = Duration::from_secs(5);

/// How long etcd may take to take up a watch.
const WATCH_TIMEOUT: Duration = Duration::from_secs(5);

/// An etcd cluster.
#[derive(Debug)]
pub(crate) struct Source {
    connector: Connector,
    keys: Keys,
    /// Up to where everything has been handed over; `None` where a list is needed.
    position: Option<Position>,
}

impl Source {
    /// # Errors
    /// Options that can never work.
    pub(crate) fn new(
        endpoints: Vec<EtcdEndpoint>,
        options: &SourceOptions,
    ) -> Result<Self, SourceError> {
        Ok(Self {
            connector: Connector::new(endpoints, &options.etcd)?,
            keys: Keys::new(&options.etcd.prefix, &options.kinds)?,
            position: None,
        })
    }

    /// Lists and watches until nobody reads the stream any more.
    pub(crate) async fn run(mut self, sink: Sink) {
        let mut backoff = Backoff::new(RETRY.0, RETRY.1);
        let mut refused = Backoff::new(RETRY.0, RETRY_REFUSED);
        let mut failures = 0;
        loop {
            let mut up = false;
            let failure = tokio::select! {
                failure = self.follow(&sink, &mut up) => failure,
                () = sink.closed() => return,
            };
            if up {
                failures = 0;
                backoff.reset();
                refused.reset();
            }
            let wait = match failure {
                Failure::Closed => return,
                Failure::Relist(why) => {
                    info!(endpoint = %self.connector.endpoint(), "listing everything again: {why}");
                    self.position = None;
                    backoff.next()
                }
                Failure::Away { error, answered } => {
                    let error = format!("{}: {error}", self.connector.endpoint());
                    if sink.disconnected(&error) {
                        warn!("etcd is away: {error}; what was read stays");
                    }
                    self.connector.advance();
                    failures += 1;
                    if failures % self.connector.count() != 0 {
                        // Another member may do.
                        continue;
                    }
                    if answered { refused.next() } else { backoff.next() }
                }
            };
            tokio::select! {
                () = sleep(wait) => {}
                () = sink.closed() => return,
            }
        }
    }

    /// Follows one member until that fails. `up` is set once it can be read.
    async fn follow(&mut self, sink: &Sink, up: &mut bool) -> Failure {
        match self.try_follow(sink, up).await {
            Ok(never) => match never {},
            Err(failure) => failure,
        }
    }

    async fn try_follow(
        &mut self,
        sink: &Sink,
        up: &mut bool,
    ) -> Result<std::convert::Infallible, Failure> {
        let mut connection = self.connector.connect().await?;
        let here = connection.header(self.keys.any()).await?;
        if let Some(why) = self.position.as_ref().and_then(|position| position.void(&here)) {
            info!(endpoint = %self.connector.endpoint(), "listing everything again: {why}");
            self.position = None;
        }
        if self.position.is_none() {
            let position = self.list(&mut connection, sink).await?;
            self.position = Some(position);
            *up = true;
        }
        let mut stream = self.watch(&mut connection).await?;
        sink.connected();
        *up = true;
        loop {
            let response = match stream.message().await {
                Ok(Some(response)) => response,
                Ok(None) => return Err(Failure::away("etcd ended the watch")),
                Err(error) => return Err(error.into()),
            };
            self.handle(&response, sink).await?;
        }
    }

    /// Hands over everything under the prefixes, as of one revision.
    async fn list(&self, connection: &mut Connection, sink: &Sink) -> Result<Position, Failure> {
        sink.send(Event::Init).await?;
        let mut snapshot: Option<Header> = None;
        let mut count = 0;
        for prefix in self.keys.prefixes() {
            let mut pages = connection.pages(&prefix.key);
            while let Some((header, page)) =
                pages.next(snapshot.as_ref().map(|header| header.revision)).await?
            {
                snapshot.get_or_insert(header);
                for (key, value) in page {
                    count += 1;
                    sink.send_all(events(prefix, &key, Some(&value))).await?;
                }
            }
        }
        sink.send(Event::InitDone).await?;
        let Some(header) = snapshot else {
            return Err(Failure::away("etcd answered without a header"));
        };
        sink.connected();
        sink.revision(header.revision);
        debug!(revision = header.revision, count, "listed etcd");
        Ok(Position::listed(header, self.keys.prefixes().iter().map(|prefix| prefix.kind)))
    }

    /// Watches every prefix from where it was read up to, over one stream.
    async fn watch(&self, connection: &mut Connection) -> Result<WatchStream, Failure> {
        let Some(position) = &self.position else {
            return Err(Failure::Relist("nothing was listed".to_owned()));
        };
        let watches =
            self.keys.prefixes().iter().map(|prefix| {
                (prefix.key.as_str(), watch_id(prefix.kind), position.next(prefix.kind))
            });
        timeout(WATCH_TIMEOUT, connection.watch(watches))
            .await
            .unwrap_or_else(|_| Err(Failure::away("etcd does not take up the watch")))
    }

    /// Hands over what a response of the watch says.
    async fn handle(&mut self, response: &WatchResponse, sink: &Sink) -> Result<(), Failure> {
        if response.canceled() {
            let compacted = response.compact_revision();
            return Err(if compacted > 0 {
                Failure::Relist(format!("the history is compacted up to revision {compacted}"))
            } else {
                Failure::away(format!("etcd ended the watch: {}", response.cancel_reason()))
            });
        }
        let (Some(header), Some(position)) = (response.header(), &mut self.position) else {
            return Err(Failure::away("etcd answered without a header"));
        };
        let header = Header::from(header);
        if let Some(why) = position.void_in_stream(&header) {
            return Err(Failure::Relist(why));
        }
        if response.created() {
            position.seen(&header);
            return Ok(());
        }
        let Some(prefix) =
            self.keys.prefixes().iter().find(|prefix| watch_id(prefix.kind) == response.watch_id())
        else {
            return Ok(());
        };
        let mut last = None;
        for event in response.events() {
            let Some(pair) = event.kv() else { continue };
            let value = match event.event_type() {
                EventType::Put => Some(pair.value()),
                EventType::Delete => None,
            };
            sink.send_all(events(prefix, pair.key(), value)).await?;
            last = Some(pair.mod_revision());
        }
        match last {
            Some(revision) => position.event(prefix.kind, revision),
            None => position.progress(prefix.kind, header.revision),
        }
        position.seen(&header);
        sink.revision(position.revision());
        Ok(())
    }
}

/// The number of a kind's watch on the stream; 0 would let etcd choose.
fn watch_id(kind: ResourceKind) -> i64 {
    match kind {
        ResourceKind::Service => 1,
        ResourceKind::EndpointSlice => 2,
        ResourceKind::Pod => 3,
        ResourceKind::Node => 4,
        ResourceKind::Namespace => 5,
        ResourceKind::NetworkPolicy => 6,
        ResourceKind::ServiceImport => 7,
        ResourceKind::ClusterNetworkPolicy => 8,
    }
}
