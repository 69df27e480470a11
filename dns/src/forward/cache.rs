//! Answers of upstreams, kept as long as they may be (RFC 1035 section 3.2.1, RFC 2308, RFC 9520),
//! asked for again before they run out where they are in demand, and given after that for a while
//! where no upstream answers (RFC 8767).
//!
//! An answer is kept as the octets that follow the question in a response. The question has the same
//! length in any spelling, so the pointers in those octets stay right, and an answer from the cache
//! is the client's own question with a copy behind it. Time is handed in, so that tests need not
//! wait.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hickory_proto::op::{Message, Query as Question, ResponseCode};
use hickory_proto::rr::{Name, RData, RecordType};
use hickory_proto::serialize::binary::BinEncodable;
use tokio::time::Instant;

use crate::answer::Answer;
use crate::fast::{Buffer, Done, Query, RECURSION_AVAILABLE, Writer};
use crate::wire::{self, HEADER, Request, Transport};

/// Each shard has a lock of its own.
const SHARDS: usize = 64;
/// Messages above this size, in octets, are not kept: there are few, and they would crowd out many.
const MAX_MESSAGE: usize = 4096;
/// What an entry may take on average, in octets, its key and its place in the table included: the
/// bound on the entries is one on memory with it.
const ENTRY: usize = 512;
/// What an entry takes beside its octets.
const OVERHEAD: usize = 128;
/// The longest that an answer is kept, whatever its TTL, as in CoreDNS.
const MAX_POSITIVE: Duration = Duration::from_secs(3600);
/// The longest that a denial is kept, as in CoreDNS.
const MAX_NEGATIVE: Duration = Duration::from_secs(1800);
/// How long an upstream's failure is kept, as in CoreDNS (RFC 9520 section 3.2: at least a second).
const FAILURE: Duration = Duration::from_secs(5);
/// The TTL of what has run out, in seconds (RFC 8767 section 4).
const STALE_TTL: u32 = 30;
/// An answer in demand is asked for again when a tenth of its lifetime is left.
const PREFETCH_PART: u32 = 10;
/// The AD bit.
const AUTHENTIC: u8 = 0x20;

/// How a cache keeps.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CacheOptions {
    /// About how many answers; 0 keeps none.
    pub entries: usize,
    /// The longest that an answer is kept.
    pub max_positive: Duration,
    /// The longest that a denial is kept.
    pub max_negative: Duration,
    /// How often an answer must have been given to be asked for again before it runs out; 0 for
    /// never.
    pub prefetch: u32,
    /// How long an answer that has run out is given where no upstream answers.
    pub stale: Duration,
}

impl Default for CacheOptions {
    fn default() -> Self {
        Self {
            entries: 10_000,
            max_positive: MAX_POSITIVE,
            max_negative: MAX_NEGATIVE,
            prefetch: 10,
            stale: Duration::from_secs(3600),
        }
    }
}

/// What makes two questions the same: the name in wire form and lower case, the type, and the bits
/// below.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct Key(Box<[u8]>);

/// An answer with signatures is another one than without.
const DNSSEC_OK: u8 = 1;
/// An answer that was not validated is not for those who count on that.
const CHECKING_DISABLED: u8 = 2;
/// Octets of a key beside the name.
const KEY_TAIL: usize = 3;

fn tail(kind: u16, dnssec_ok: bool, checking_disabled: bool) -> [u8; KEY_TAIL] {
    let [high, low] = kind.to_be_bytes();
    let bits = if dnssec_ok { DNSSEC_OK } else { 0 };
    [high, low, bits | if checking_disabled { CHECKING_DISABLED } else { 0 }]
}

impl Key {
    /// The key of a question about `name`, with the type and the flags of the request. `None` where
    /// the client wants no recursion: what the upstream has at hand is not what it could find out.
    pub(super) fn new(request: &Request, name: &Name) -> Option<Self> {
        if !request.recursion_desired {
            return None;
        }
        let dnssec_ok = request.edns.is_some_and(|edns| edns.dnssec_ok);
        let kind = u16::from(request.question.query_type());
        let mut bytes = name.to_lowercase().to_bytes().ok()?;
        bytes.extend(tail(kind, dnssec_ok, request.checking_disabled));
        Some(Self(bytes.into()))
    }

    fn kind(&self) -> u16 {
        match &self.0[self.0.len() - KEY_TAIL..] {
            [high, low, _] => u16::from_be_bytes([*high, *low]),
            _ => 0,
        }
    }
}

impl std::borrow::Borrow<[u8]> for Key {
    fn borrow(&self) -> &[u8] {
        &self.0
    }
}

#[derive(Debug)]
struct Entry {
    rcode: ResponseCode,
    authentic: bool,
    denial: bool,
    /// Records of the answer, authority and additional sections.
    counts: [u16; 3],
    /// What follows the question.
    body: Box<[u8]>,
    /// Where the TTLs are in it.
    ttls: Box<[u16]>,
    stored: Instant,
    lifetime: Duration,
    hits: u32,
    refreshing: bool,
}

impl Entry {
    fn cost(&self, key: &[u8]) -> usize {
        OVERHEAD + key.len() + self.body.len() + 2 * self.ttls.len()
    }

    fn age(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.stored)
    }

    fn fresh(&self, now: Instant) -> bool {
        self.age(now) < self.lifetime
    }

    /// Whether it is time to ask for it again.
    fn due(&self, now: Instant, options: &CacheOptions) -> bool {
        let left = self.lifetime.saturating_sub(self.age(now));
        options.prefetch > 0
            && self.hits >= options.prefetch
            && !self.refreshing
            && self.lifetime >= Duration::from_secs(PREFETCH_PART.into())
            && left <= self.lifetime / PREFETCH_PART
    }

    /// Copies the body with TTLs as they are now.
    fn copy(&self, place: &mut [u8], now: Instant) {
        place.copy_from_slice(&self.body);
        let age = u32::try_from(self.age(now).as_secs()).unwrap_or(u32::MAX);
        let fresh = self.fresh(now);
        for at in &self.ttls {
            let at = usize::from(*at);
            let Some(ttl) = place[at..].first_chunk_mut::<4>() else { continue };
            let left = if fresh { u32::from_be_bytes(*ttl).saturating_sub(age) } else { STALE_TTL };
            *ttl = left.to_be_bytes();
        }
    }

    /// The message as an upstream would send it now.
    fn message(&self, name: &Name, kind: u16, now: Instant) -> Option<Message> {
        let mut bytes = vec![0; HEADER];
        bytes[2] = 0x81;
        bytes[3] = self.rcode.low() | if self.authentic { AUTHENTIC } else { 0 };
        bytes[5] = 1;
        for (place, count) in bytes[6..].chunks_exact_mut(2).zip(self.counts) {
            place.copy_from_slice(&count.to_be_bytes());
        }
        bytes.extend(name.to_bytes().ok()?);
        bytes.extend(kind.to_be_bytes());
        bytes.extend([0, 1]);
        let start = bytes.len();
        bytes.resize(start + self.body.len(), 0);
        self.copy(&mut bytes[start..], now);
        Message::from_vec(&bytes).ok()
    }
}

/// What a cache holds for a question.
#[derive(Debug)]
pub struct Cached {
    /// The answer, its TTLs reduced by the time it has been here.
    pub message: Message,
    /// Whether it is a denial.
    pub denial: bool,
    /// Whether the caller should ask for it again, and nobody else does.
    pub refresh: bool,
}

#[derive(Debug, Default)]
struct Shard {
    entries: HashMap<Key, Entry>,
    /// What the entries take, in octets.
    bytes: usize,
}

impl Shard {
    fn remove(&mut self, key: &[u8]) {
        if let Some(entry) = self.entries.remove(key) {
            self.bytes -= entry.cost(key);
        }
    }
}

/// A cache of a bounded size.
#[derive(Debug)]
pub(super) struct Cache {
    hasher: RandomState,
    shards: Box<[Mutex<Shard>]>,
    /// The most entries of a shard; 0 keeps nothing.
    capacity: usize,
    options: CacheOptions,
}

impl Cache {
    /// An empty cache.
    pub(super) fn new(options: CacheOptions) -> Self {
        Self {
            hasher: RandomState::new(),
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            capacity: options.entries.div_ceil(SHARDS),
            options,
        }
    }

    /// The answer to a question, its owner spelled like `name`.
    pub(super) fn get(&self, key: &Key, name: &Name, now: Instant) -> Option<Cached> {
        let mut shard = self.shard(&key.0);
        let entry = shard.entries.get_mut(&*key.0).filter(|entry| entry.fresh(now))?;
        let refresh = entry.due(now, &self.options);
        entry.refreshing |= refresh;
        entry.hits = entry.hits.saturating_add(1);
        let message = entry.message(name, key.kind(), now)?;
        Some(Cached { message, denial: entry.denial, refresh })
    }

    /// An answer that has run out, but not too long ago; its TTLs are 30 seconds.
    pub(super) fn stale(&self, key: &Key, name: &Name, now: Instant) -> Option<Message> {
        let shard = self.shard(&key.0);
        let entry = shard.entries.get(&*key.0).filter(|entry| self.is_usable(entry, now))?;
        entry.message(name, key.kind(), now)
    }

    /// Whether there is one.
    pub(super) fn has_stale(&self, key: &Key, now: Instant) -> bool {
        let shard = self.shard(&key.0);
        shard.entries.get(&*key.0).is_some_and(|entry| self.is_usable(entry, now))
    }

    /// Whether an answer may be given that has run out, if it has.
    fn is_usable(&self, entry: &Entry, now: Instant) -> bool {
        // A failure that was kept is no better than another one.
        entry.rcode != ResponseCode::ServFail
            && entry.age(now) < entry.lifetime.saturating_add(self.options.stale)
    }

    /// Says that the answer was asked for again, and none came.
    pub(super) fn not_refreshed(&self, key: &Key) {
        if let Some(entry) = self.shard(&key.0).entries.get_mut(&*key.0) {
            entry.refreshing = false;
        }
    }

    /// Answers a common query the short way, and says whether it was a denial. `None` where nothing
    /// is kept, where it does not fit, or where the answer is due to be asked for again.
    pub(super) fn write(
        &self,
        query: &Query<'_>,
        now: Instant,
        out: &mut Buffer,
    ) -> Option<(Done, bool)> {
        if !query.recursion_desired() || self.capacity == 0 {
            return None;
        }
        let name = query.name();
        let mut key = [0; 255 + KEY_TAIL];
        let key = key.get_mut(..name.len() + KEY_TAIL)?;
        key[..name.len()].copy_from_slice(name);
        let dnssec_ok = query.edns.is_some_and(|edns| edns.dnssec_ok);
        let tail = tail(query.kind, dnssec_ok, query.checking_disabled());
        key[name.len()..].copy_from_slice(&tail);
        let mut shard = self.shard(key);
        let entry = shard.entries.get_mut(&*key).filter(|entry| entry.fresh(now))?;
        if entry.due(now, &self.options) {
            return None;
        }
        let mut writer = Writer::new(query, out);
        entry.copy(writer.take(entry.body.len())?, now);
        entry.hits = entry.hits.saturating_add(1);
        for (section, count) in entry.counts.into_iter().enumerate() {
            writer.count(section, count);
        }
        let authentic = entry.authentic && query.wants_authentic();
        let flags = RECURSION_AVAILABLE | if authentic { AUTHENTIC } else { 0 };
        Some((writer.finish(0, flags, entry.rcode), entry.denial))
    }

    /// Keeps an answer, if it may be kept; says how many others had to go for it.
    pub(super) fn put(&self, key: Key, message: &Message, now: Instant) -> u64 {
        let kind = RecordType::from(key.kind());
        let Some((lifetime, denial)) = lifetime(message, kind, &self.options) else { return 0 };
        if self.capacity == 0 || lifetime.is_zero() {
            return 0;
        }
        let Some(entry) = entry(&key, message, (lifetime, denial), now) else { return 0 };
        let (cost, budget) =
            (entry.cost(&key.0), self.capacity.saturating_mul(ENTRY).max(MAX_MESSAGE));
        let mut shard = self.shard(&key.0);
        shard.remove(&key.0);
        let full =
            |shard: &Shard| shard.entries.len() >= self.capacity || shard.bytes + cost > budget;
        let mut evicted = 0;
        if full(&shard) {
            let before = shard.entries.len();
            let Shard { entries, bytes } = &mut *shard;
            entries.retain(|key, entry| {
                let keep = entry.fresh(now);
                *bytes -= if keep { 0 } else { entry.cost(&key.0) };
                keep
            });
            evicted += (before - entries.len()) as u64;
        }
        while full(&shard) {
            // Any other goes: the map's order is as good as random.
            let Some(victim) = shard.entries.keys().next().cloned() else { break };
            shard.remove(&victim.0);
            evicted += 1;
        }
        shard.bytes += cost;
        shard.entries.insert(key, entry);
        evicted
    }

    fn shard(&self, key: &[u8]) -> MutexGuard<'_, Shard> {
        // The remainder is below SHARDS, so the cast loses nothing.
        let shard = (self.hasher.hash_one(key) % SHARDS as u64) as usize;
        // Nothing is left half done by a panic here.
        self.shards[shard].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many answers and how many denials there are.
    pub(super) fn len(&self) -> (usize, usize) {
        let (mut positive, mut denials) = (0, 0);
        for shard in &self.shards {
            let shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            let count = shard.entries.values().filter(|entry| entry.denial).count();
            denials += count;
            positive += shard.entries.len() - count;
        }
        (positive, denials)
    }

    /// What the entries take, in octets.
    #[cfg(test)]
    fn bytes(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().map_or(0, |shard| shard.bytes)).sum()
    }
}

/// An answer in the form that is kept; `None` for one that is too large or cannot be written.
fn entry(
    key: &Key,
    message: &Message,
    (lifetime, denial): (Duration, bool),
    now: Instant,
) -> Option<Entry> {
    let name = name_of(key)?;
    let mut answer = Answer::code(message.metadata.response_code);
    answer.answers.clone_from(&message.answers);
    answer.authorities.clone_from(&message.authorities);
    answer.additionals.clone_from(&message.additionals);
    for record in &mut answer.answers {
        if record.name == name {
            // It points to the question, and so takes any question's spelling.
            record.name.clone_from(&name);
        }
    }
    let request = Request {
        id: 0,
        recursion_desired: true,
        authentic_data: false,
        checking_disabled: false,
        question: Question::query(name, RecordType::from(key.kind())),
        edns: None,
        explain: None,
    };
    let bytes = wire::write(&request, Transport::Tcp, &answer, true);
    let start = HEADER + key.0.len() - KEY_TAIL + 4;
    // Written whole, without TC; what could not be written is a bare header.
    if bytes.len() > MAX_MESSAGE || bytes.len() < start || bytes[2] & 0x02 != 0 {
        return None;
    }
    let count = |at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
    let counts = [count(6), count(8), count(10)];
    let body: Box<[u8]> = bytes[start..].into();
    let ttls = ttls(&body, counts.iter().map(|count| usize::from(*count)).sum())?;
    let rcode = message.metadata.response_code;
    let authentic = message.metadata.authentic_data;
    let (stored, hits, refreshing) = (now, 0, false);
    Some(Entry { rcode, authentic, denial, counts, body, ttls, stored, lifetime, hits, refreshing })
}

fn name_of(key: &Key) -> Option<Name> {
    use hickory_proto::serialize::binary::BinDecodable as _;
    Name::from_bytes(&key.0[..key.0.len() - KEY_TAIL]).ok()
}

/// Where the TTLs of so many records are.
fn ttls(body: &[u8], records: usize) -> Option<Box<[u16]>> {
    let mut ttls = Vec::with_capacity(records);
    let mut at = 0usize;
    for _ in 0..records {
        loop {
            let length = *body.get(at)?;
            if length & 0xc0 == 0xc0 {
                at += 2;
                break;
            }
            at += 1 + usize::from(length);
            if length == 0 {
                break;
            }
        }
        ttls.push(u16::try_from(at + 4).ok()?);
        let length = body.get(at + 8..at + 10)?;
        at += 10 + usize::from(u16::from_be_bytes([length[0], length[1]]));
    }
    (at == body.len()).then(|| ttls.into())
}

/// How long an answer may be kept, and whether it is a denial; `None` for one that may not.
fn lifetime(
    message: &Message,
    kind: RecordType,
    options: &CacheOptions,
) -> Option<(Duration, bool)> {
    if message.metadata.truncation {
        return None;
    }
    match message.metadata.response_code {
        ResponseCode::NoError | ResponseCode::NXDomain => {}
        ResponseCode::ServFail => return Some((FAILURE, true)),
        _ => return None,
    }
    let all = message.answers.iter().chain(&message.authorities).chain(&message.additionals);
    let lowest = Duration::from_secs(all.map(|record| record.ttl).min().unwrap_or(0).into());
    let answered = message.metadata.response_code == ResponseCode::NoError
        && message.answers.iter().any(|r| r.record_type() == kind || kind == RecordType::ANY);
    if answered {
        return Some((lowest.min(options.max_positive), false));
    }
    // A denial without an SOA says nothing about how long it holds (RFC 2308 section 5).
    let minimum = message.authorities.iter().find_map(|record| match &record.data {
        RData::SOA(soa) => Some(soa.minimum),
        _ => None,
    })?;
    Some((lowest.min(Duration::from_secs(minimum.into())).min(options.max_negative), true))
}

#[cfg(test)]
mod tests;
