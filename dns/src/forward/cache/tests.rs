use std::net::Ipv4Addr;

use hickory_proto::op::{MessageType, OpCode, Query};
use hickory_proto::rr::Record;
use hickory_proto::rr::rdata::SOA;

use super::*;
use crate::wire::ClientEdns;

fn name(text: &str) -> Name {
    Name::from_ascii(text).expect("a name")
}

fn request(text: &str) -> Request {
    Request {
        id: 1,
        recursion_desired: true,
        authentic_data: false,
        checking_disabled: false,
        question: Query::query(name(text), RecordType::A),
        edns: None,
        explain: None,
    }
}

fn key(text: &str) -> Key {
    Key::new(&request(text), &name(text)).expect("recursion is desired")
}

fn address(owner: &str, ttl: u32) -> Record {
    Record::from_rdata(name(owner), ttl, RData::A(Ipv4Addr::new(192, 0, 2, 1).into()))
}

fn soa(ttl: u32, minimum: u32) -> Record {
    let zone = name("example.");
    Record::from_rdata(
        zone.clone(),
        ttl,
        RData::SOA(SOA::new(zone.clone(), zone, 1, 2, 3, 4, minimum)),
    )
}

fn message(code: ResponseCode, answers: Vec<Record>, authorities: Vec<Record>) -> Message {
    let mut message = Message::new(1, MessageType::Response, OpCode::Query);
    message.metadata.response_code = code;
    message.answers = answers;
    message.authorities = authorities;
    message
}

fn sized(entries: usize) -> Cache {
    Cache::new(CacheOptions { entries, ..CacheOptions::default() })
}

/// How long a cache keeps a message, in seconds, as seen from outside.
fn kept(message: &Message) -> u64 {
    let (cache, now) = (sized(100), Instant::now());
    cache.put(key("a.example."), message, now);
    let at = |seconds| {
        cache.get(&key("a.example."), &name("a.example."), now + Duration::from_secs(seconds))
    };
    (0..4000).find(|seconds| at(*seconds).is_none()).expect("an end")
}

/// D13: as long as the lowest TTL, an hour at most.
#[test]
fn answers_live_as_long_as_their_lowest_ttl() {
    let answer = |ttls: &[u32]| {
        let answers = ttls.iter().map(|ttl| address("a.example.", *ttl)).collect();
        kept(&message(ResponseCode::NoError, answers, vec![]))
    };
    assert_eq!(answer(&[300, 20]), 20);
    assert_eq!(answer(&[86400]), 3600);
    assert_eq!(answer(&[300, 0]), 0);
}

/// D13: a denial as long as its SOA says, half an hour at most; without an SOA not at all.
#[test]
fn denials_live_as_long_as_their_soa_says() {
    let denial = |code, authorities| kept(&message(code, vec![], authorities));
    for code in [ResponseCode::NXDomain, ResponseCode::NoError] {
        assert_eq!(denial(code, vec![soa(900, 60)]), 60);
        assert_eq!(denial(code, vec![soa(30, 60)]), 30);
        assert_eq!(denial(code, vec![soa(86400, 86400)]), 1800);
        assert_eq!(denial(code, vec![]), 0);
    }
    // An alias whose target has no such data is a denial, too.
    let alias = RData::CNAME(hickory_proto::rr::rdata::CNAME(name("b.example.")));
    let alias = Record::from_rdata(name("a.example."), 600, alias);
    assert_eq!(kept(&message(ResponseCode::NoError, vec![alias], vec![soa(900, 60)])), 60);
}

/// D13: failures shortly; what is cut short, refused or malformed not at all.
#[test]
fn failures_live_shortly_and_refusals_not_at_all() {
    assert_eq!(kept(&message(ResponseCode::ServFail, vec![], vec![])), 5);
    assert_eq!(kept(&message(ResponseCode::Refused, vec![], vec![])), 0);
    assert_eq!(kept(&message(ResponseCode::FormErr, vec![], vec![])), 0);
    let mut cut = message(ResponseCode::NoError, vec![address("a.example.", 60)], vec![]);
    cut.metadata.truncation = true;
    assert_eq!(kept(&cut), 0);
}

/// D13, D9: TTLs go down, and the owner is spelled as it was asked for.
#[test]
fn a_kept_answer_ages_and_takes_the_spelling_of_the_question() {
    let (cache, now) = (sized(100), Instant::now());
    let answers = vec![address("a.example.", 60), address("other.example.", 60)];
    cache.put(key("a.example."), &message(ResponseCode::NoError, answers, vec![]), now);
    let spelled = name("A.eXample.");
    let later = now + Duration::from_millis(20_900);
    let got = cache.get(&key("A.EXAMPLE."), &spelled, later).expect("kept").message;
    assert!(got.answers[0].name.eq_case(&spelled));
    // What it has in common with the question is the question's: DNS has no case (RFC 4343).
    assert_eq!(got.answers[1].name, name("other.example."));
    assert_eq!(got.answers[0].ttl, 40);
}

/// D13: another type, DO or CD is another question; without recursion nothing is kept.
#[test]
fn questions_that_differ_are_kept_apart() {
    let plain = request("a.example.");
    let name = name("a.example.");
    let edns = |dnssec_ok| Some(ClientEdns { payload: 1232, dnssec_ok });
    let key = |request: Request| Key::new(&request, &name);
    let same = key(Request { id: 2, edns: edns(false), ..plain.clone() });
    assert_eq!(key(plain.clone()), same);
    let other_type = Query::query(name.clone(), RecordType::AAAA);
    for other in [
        Request { edns: edns(true), ..plain.clone() },
        Request { checking_disabled: true, ..plain.clone() },
        Request { question: other_type, ..plain.clone() },
    ] {
        assert_ne!(key(plain.clone()), key(other));
    }
    assert_eq!(key(Request { recursion_desired: false, ..plain }), None);
}

/// D13: bounded in memory.
#[test]
fn a_full_cache_makes_room() {
    let (cache, now) = (sized(640), Instant::now());
    let answer = message(ResponseCode::NoError, vec![address("a.example.", 60)], vec![]);
    for n in 0..5000 {
        cache.put(key(&format!("n{n}.example.")), &answer, now);
    }
    let len = cache.len().0;
    assert!(len <= 640 && len > 300, "{len}");
    let newest = "n4999.example.";
    assert!(cache.get(&key(newest), &name(newest), now).is_some());
    // The expired go first.
    let later = now + Duration::from_secs(61);
    cache.put(key("fresh.example."), &answer, later);
    assert!(cache.get(&key("fresh.example."), &name("fresh.example."), later).is_some());

    let none = sized(0);
    none.put(key("a.example."), &answer, now);
    let large = (0..400).map(|n| address(&format!("n{n}.example."), 60)).collect();
    cache.put(key("large.example."), &message(ResponseCode::NoError, large, vec![]), now);
    assert!(cache.get(&key("large.example."), &name("large.example."), now).is_none());
    assert_eq!(none.len(), (0, 0));
}

/// D13: the bound holds in octets as well, whatever is kept.
#[test]
fn the_memory_of_a_full_cache_is_bounded() {
    let (cache, now) = (sized(640), Instant::now());
    for n in 0..2000 {
        let owner = format!("n{n}.example.");
        let large = (0..60).map(|_| address(&owner, 60)).collect();
        cache.put(key(&owner), &message(ResponseCode::NoError, large, vec![]), now);
    }
    let limit = SHARDS * (10 * ENTRY).max(MAX_MESSAGE);
    assert!(cache.bytes() <= limit, "{} of {limit}", cache.bytes());
    assert!(cache.bytes() > limit / 4, "{} of {limit}", cache.bytes());
}

/// D13: an answer in demand is asked for again once before it runs out; one that nobody wants is
/// not, and one that could not be had is tried again.
#[test]
fn an_answer_in_demand_is_asked_for_again_in_time() {
    let options = CacheOptions { prefetch: 3, ..CacheOptions::default() };
    let (cache, now) = (Cache::new(options), Instant::now());
    let at = |name: &str, seconds| {
        let now = now + Duration::from_secs(seconds);
        cache.get(&key(name), &self::name(name), now).expect("kept").refresh
    };
    for owner in ["wanted.example.", "lonely.example."] {
        let answer = message(ResponseCode::NoError, vec![address(owner, 100)], vec![]);
        cache.put(key(owner), &answer, now);
    }
    assert_eq!([(); 3].map(|()| at("wanted.example.", 50)), [false; 3]);
    assert!(!at("lonely.example.", 95));
    assert!(at("wanted.example.", 91));
    assert!(!at("wanted.example.", 92), "somebody does already");
    cache.not_refreshed(&key("wanted.example."));
    assert!(at("wanted.example.", 93));
}

/// D13: what has run out is still there for a while, with a short TTL.
#[test]
fn what_has_run_out_is_there_where_no_upstream_answers() {
    let (cache, now) = (sized(100), Instant::now());
    let answer = message(ResponseCode::NoError, vec![address("a.example.", 60)], vec![]);
    cache.put(key("a.example."), &answer, now);
    let at = |seconds| {
        let now = now + Duration::from_secs(seconds);
        cache.stale(&key("a.example."), &name("a.example."), now)
    };
    assert_eq!(at(61).expect("stale").answers[0].ttl, 30);
    assert!(at(3600 + 59).is_some());
    assert!(at(3600 + 61).is_none());
    let failure = message(ResponseCode::ServFail, vec![], vec![]);
    cache.put(key("a.example."), &failure, now);
    assert!(at(61).is_none(), "a failure is nothing to fall back on");
}

/// D13: any number of seconds may be configured, without a sum that is too large.
#[test]
fn what_has_run_out_may_be_kept_for_ever() {
    let options = CacheOptions { stale: Duration::from_secs(u64::MAX), ..CacheOptions::default() };
    let (cache, now) = (Cache::new(options), Instant::now());
    let answer = message(ResponseCode::NoError, vec![address("a.example.", 60)], vec![]);
    cache.put(key("a.example."), &answer, now);
    assert!(cache.has_stale(&key("a.example."), now + Duration::from_secs(100 * 24 * 3600)));
}

/// D13, D18: the short way out of the cache says what the long way says.
#[test]
fn the_short_way_out_of_the_cache_says_the_same() {
    let (cache, now) = (sized(100), Instant::now());
    let alias = RData::CNAME(hickory_proto::rr::rdata::CNAME(name("b.Example.")));
    let alias = Record::from_rdata(name("a.example."), 600, alias);
    let answers = vec![alias, address("b.Example.", 60), address("b.Example.", 40)];
    let mut kept = message(ResponseCode::NoError, answers, vec![soa(900, 60)]);
    kept.metadata.authentic_data = true;
    cache.put(key("a.example."), &kept, now);
    let mut query = Message::new(77, MessageType::Query, OpCode::Query);
    query.metadata.recursion_desired = true;
    query.metadata.authentic_data = true;
    query.add_query(Query::query(name("A.eXample."), RecordType::A));
    let bytes = query.to_vec().expect("a message");
    let query = crate::fast::Query::read(&bytes).expect("common");
    let mut out = [0; 1232];
    let later = now + Duration::from_secs(10);
    let (done, denial) = cache.write(&query, later, &mut out).expect("kept");
    let fast = Message::from_vec(&out[..done.length]).expect("a message");
    let slow = cache.get(&key("a.example."), &name("A.eXample."), later).expect("kept").message;
    assert!(!denial && fast.metadata.authentic_data && fast.metadata.recursion_available);
    assert_eq!((fast.metadata.id, &fast.answers), (77, &slow.answers));
    assert_eq!(fast.authorities, slow.authorities);
    assert!(fast.answers[0].name.eq_case(&name("A.eXample.")));
    assert_eq!(fast.answers[1].ttl, 50);
    assert!(cache.write(&query, now + Duration::from_secs(41), &mut out).is_none());
}

/// D13, D18: whatever an upstream answers, nothing panics, and what is kept of it comes out the short
/// way as it comes out the long way, or not at all.
#[test]
fn broken_answers_are_no_exception() {
    crate::fuzz::run(crate::fuzz::ANSWERS, |bytes| {
        let Ok(answer) = Message::from_vec(bytes) else { return };
        let (cache, now) = (sized(64), Instant::now());
        let owner = "www.example.com.";
        cache.put(key(owner), &answer, now);
        let mut query = Message::new(77, MessageType::Query, OpCode::Query);
        query.metadata.recursion_desired = true;
        query.add_query(Query::query(name(owner), RecordType::A));
        let query = query.to_vec().expect("a message");
        let query = crate::fast::Query::read(&query).expect("common");
        let mut out = [0; 1232];
        let fast = cache.write(&query, now, &mut out).map(|(done, _)| done.length);
        let slow = cache.get(&key(owner), &name(owner), now);
        let Some(length) = fast else { return };
        let fast = Message::from_vec(&out[..length]).expect("what is written can be read");
        let slow = slow.expect("kept for both").message;
        assert_eq!(fast.metadata.response_code, slow.metadata.response_code);
        assert_eq!((fast.answers, fast.authorities), (slow.answers, slow.authorities));
        assert_eq!(fast.additionals, slow.additionals);
    });
}
