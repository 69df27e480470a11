//! Answers of upstreams, kept as long as they may be (RFC 1035 section 3.2.1, RFC 2308, RFC 9520).
//!
//! Messages are kept as octets: compact, so that the bound on their number and size is one on
//! memory. Time is handed in, so that tests need not wait.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::{Name, RData, RecordType};
use tokio::time::Instant;

use crate::wire::Request;

/// Each shard has a lock of its own.
const SHARDS: usize = 64;
/// Messages above this size, in octets, are not kept: there are few, and they would crowd out many.
const MAX_MESSAGE: usize = 4096;
/// The longest that an answer is kept, whatever its TTL, as in CoreDNS.
const MAX_POSITIVE: Duration = Duration::from_secs(3600);
/// The longest that a denial is kept, as in CoreDNS.
const MAX_NEGATIVE: Duration = Duration::from_secs(1800);
/// How long an upstream's failure is kept, as in CoreDNS (RFC 9520 section 3.2: at least a second).
const FAILURE: Duration = Duration::from_secs(5);

/// What makes two questions the same.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct Key {
    /// In lower case.
    name: Name,
    kind: RecordType,
    /// An answer with signatures is another one than without.
    dnssec_ok: bool,
    /// An answer that was not validated is not for those who count on that.
    checking_disabled: bool,
}

impl Key {
    /// The key of a question about `name`, with the type and the flags of the request. `None` where
    /// the client wants no recursion: what the upstream has at hand is not what it could find out.
    pub(super) fn new(request: &Request, name: &Name) -> Option<Self> {
        request.recursion_desired.then(|| Self {
            name: name.to_lowercase(),
            kind: request.question.query_type(),
            dnssec_ok: request.edns.is_some_and(|edns| edns.dnssec_ok),
            checking_disabled: request.checking_disabled,
        })
    }
}

#[derive(Debug)]
struct Entry {
    message: Box<[u8]>,
    stored: Instant,
    expires: Instant,
}

/// A cache of a bounded size.
#[derive(Debug)]
pub(super) struct Cache {
    hasher: RandomState,
    shards: Box<[Mutex<HashMap<Key, Entry>>]>,
    /// The most entries of a shard; 0 keeps nothing.
    capacity: usize,
}

impl Cache {
    /// A cache of about so many entries; none at all for 0.
    pub(super) fn new(entries: usize) -> Self {
        Self {
            hasher: RandomState::new(),
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            capacity: entries.div_ceil(SHARDS),
        }
    }

    /// The answer to a question, its TTLs reduced by the time it has been here, its owner spelled
    /// like `name`.
    pub(super) fn get(&self, key: &Key, name: &Name, now: Instant) -> Option<Message> {
        let (bytes, age) = {
            let shard = self.shard(key);
            let entry = shard.get(key).filter(|entry| entry.expires > now)?;
            (entry.message.clone(), now.saturating_duration_since(entry.stored))
        };
        let mut message = Message::from_vec(&bytes).ok()?;
        let age = u32::try_from(age.as_secs()).unwrap_or(u32::MAX);
        let Message { answers, authorities, additionals, .. } = &mut message;
        for record in answers.iter_mut().chain(authorities).chain(additionals) {
            record.decrement_ttl(age);
            if record.name == *name {
                record.name = name.clone();
            }
        }
        Some(message)
    }

    /// Keeps an answer, if it may be kept.
    pub(super) fn put(&self, key: Key, message: &Message, now: Instant) {
        let Some(lifetime) = lifetime(message, key.kind) else { return };
        if self.capacity == 0 || lifetime.is_zero() {
            return;
        }
        let Ok(bytes) = message.to_vec() else { return };
        if bytes.len() > MAX_MESSAGE {
            return;
        }
        let entry = Entry { message: bytes.into(), stored: now, expires: now + lifetime };
        let mut shard = self.shard(&key);
        if shard.len() >= self.capacity && !shard.contains_key(&key) {
            shard.retain(|_, entry| entry.expires > now);
        }
        if shard.len() >= self.capacity && !shard.contains_key(&key) {
            // Any other goes: the map's order is as good as random.
            let victim = shard.keys().next().cloned();
            victim.and_then(|victim| shard.remove(&victim));
        }
        shard.insert(key, entry);
    }

    fn shard(&self, key: &Key) -> MutexGuard<'_, HashMap<Key, Entry>> {
        // The remainder is below SHARDS, so the cast loses nothing.
        let shard = (self.hasher.hash_one(key) % SHARDS as u64) as usize;
        // Nothing is left half done by a panic here.
        self.shards[shard].lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().map_or(0, |shard| shard.len())).sum()
    }
}

/// How long an answer may be kept; `None` for one that may not.
fn lifetime(message: &Message, kind: RecordType) -> Option<Duration> {
    if message.metadata.truncation {
        return None;
    }
    match message.metadata.response_code {
        ResponseCode::NoError | ResponseCode::NXDomain => {}
        ResponseCode::ServFail => return Some(FAILURE),
        _ => return None,
    }
    let all = message.answers.iter().chain(&message.authorities).chain(&message.additionals);
    let lowest = Duration::from_secs(all.map(|record| record.ttl).min().unwrap_or(0).into());
    let answered = message.metadata.response_code == ResponseCode::NoError
        && message.answers.iter().any(|r| r.record_type() == kind || kind == RecordType::ANY);
    if answered {
        return Some(lowest.min(MAX_POSITIVE));
    }
    // A denial without an SOA says nothing about how long it holds (RFC 2308 section 5).
    let minimum = message.authorities.iter().find_map(|record| match &record.data {
        RData::SOA(soa) => Some(soa.minimum),
        _ => None,
    })?;
    Some(lowest.min(Duration::from_secs(minimum.into())).min(MAX_NEGATIVE))
}

#[cfg(test)]
mod tests;
