//! Up to where a store has been read, and whether reading can go on from there. Pure.

use std::collections::BTreeMap;

use etcd_client::ResponseHeader;
use sluice_model::ResourceKind;

/// What every answer of etcd says of the store.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Header {
    /// Which cluster it is.
    pub(super) cluster: u64,
    /// How many elections it has had.
    pub(super) term: u64,
    /// The store's revision.
    pub(super) revision: i64,
}

impl From<&ResponseHeader> for Header {
    fn from(header: &ResponseHeader) -> Self {
        Self { cluster: header.cluster_id(), term: header.raft_term(), revision: header.revision() }
    }
}

/// Up to where everything has been handed over.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Position {
    cluster: u64,
    term: u64,
    /// The highest revision that the store is known to have had.
    revision: i64,
    /// The first revision of which each kind's watch has not told all. Each kind has its own, since
    /// watches that catch up do so one by one.
    next: BTreeMap<ResourceKind, i64>,
}

impl Position {
    /// Right after a list.
    pub(super) fn listed(header: Header, kinds: impl Iterator<Item = ResourceKind>) -> Self {
        Self {
            cluster: header.cluster,
            term: header.term,
            revision: header.revision,
            next: kinds.map(|kind| (kind, header.revision + 1)).collect(),
        }
    }

    /// The highest revision seen.
    pub(super) fn revision(&self) -> i64 {
        self.revision
    }

    /// Where a kind's watch is to begin. 1 is the beginning of all history, which etcd refuses as
    /// soon as any of it is compacted; it never comes up for a kind that was listed.
    pub(super) fn next(&self, kind: ResourceKind) -> i64 {
        self.next.get(&kind).copied().unwrap_or(1)
    }

    /// Why a watch cannot go on from here in a store that answers so, if it cannot.
    ///
    /// The answer must come from a linearizable read: then a revision or term below one that was
    /// seen before means that the store is not what it was. etcd itself would not tell: it takes a
    /// watch from a revision in its future as one to wait for.
    pub(super) fn void(&self, here: &Header) -> Option<String> {
        if here.cluster != self.cluster {
            Some(format!("it is cluster {:x} now and was {:x}", here.cluster, self.cluster))
        } else if here.revision < self.revision {
            Some(format!("its revision went back from {} to {}", self.revision, here.revision))
        } else if here.term < self.term {
            Some(format!("its raft term went back from {} to {}", self.term, here.term))
        } else {
            None
        }
    }

    /// Like [`Self::void`], for an answer on a stream that is open. Revisions in it may be old.
    pub(super) fn void_in_stream(&self, header: &Header) -> Option<String> {
        (header.cluster != self.cluster)
            .then(|| format!("it is cluster {:x} now and was {:x}", header.cluster, self.cluster))
    }

    /// Notes what an answer says of the store.
    pub(super) fn seen(&mut self, header: &Header) {
        self.revision = self.revision.max(header.revision);
        self.term = self.term.max(header.term);
    }

    /// An event of that revision was handed over. The revision is read again after a break, since a
    /// large one may come in several answers; that does no harm.
    pub(super) fn event(&mut self, kind: ResourceKind, revision: i64) {
        self.next.insert(kind, revision);
        self.revision = self.revision.max(revision);
    }

    /// A watch told that there is nothing more up to that revision. Only what etcd sends by itself
    /// counts (`progress_notify`): the answer to a request for progress can overtake events in
    /// versions before 3.4.25 and 3.5.8.
    pub(super) fn progress(&mut self, kind: ResourceKind, revision: i64) {
        let next = self.next.entry(kind).or_insert(revision + 1);
        *next = (*next).max(revision + 1);
    }
}
