use hickory_proto::op::MessageType;
use hickory_proto::rr::rdata::opt::EdnsOption;
use hickory_proto::rr::{Name, RData, RecordType};
use proptest::prelude::*;

use super::*;

fn name(text: &str) -> Name {
    Name::from_ascii(text).expect("a name")
}

/// A record's owner stands in the message once, however many records it has.
#[test]
fn names_are_compressed_beyond_the_first_hundred() {
    let mut answer = answer(1000, 1000);
    let target = name("db.shop.svc.cluster.local.");
    for record in &mut answer.additionals {
        record.name = target.clone();
    }
    let plain = query(RecordType::A);
    let (reply, length) = reply(&plain, Transport::Tcp, &answer);
    assert_eq!((reply.answers, reply.additionals), (answer.answers, answer.additionals));
    assert!(length < 2000 * 16 + 150, "{length}");
}

/// Owners in any order, the root among them, and names that stand too far behind to be pointed to.
#[test]
fn what_is_written_is_what_was_meant() {
    let mut answer = answer(4000, 0);
    let names = [".", "a.example.", "b.example.", "web.shop.svc.cluster.local.", "example."];
    for (n, record) in answer.answers.iter_mut().enumerate() {
        record.name = name(names[n * n / 3 % names.len()]);
    }
    for n in 0..200 {
        answer.answers[1500 + n].name = name(&format!("n{}.far.example.", n / 2));
    }
    let (reply, _) = reply(&query(RecordType::A), Transport::Tcp, &answer);
    assert!(reply.answers.len() > 1700);
    assert_eq!(reply.answers, answer.answers[..reply.answers.len()]);
}

fn query(kind: RecordType) -> Message {
    let mut query = Message::new(4711, MessageType::Query, OpCode::Query);
    query.metadata.recursion_desired = true;
    query.add_query(Query::query(name("Web.Shop.svc.cluster.local."), kind));
    query
}

fn with_edns(mut query: Message, change: impl FnOnce(&mut Edns)) -> Message {
    let mut edns = Edns::new();
    change(&mut edns);
    query.set_edns(edns);
    query
}

fn read_message(message: &Message) -> Incoming {
    read(&message.to_vec().expect("a message"))
}

fn request(message: &Message) -> Request {
    match read_message(message) {
        Incoming::Query(request) => request,
        other => panic!("{other:?}"),
    }
}

fn rejection(message: &[u8]) -> Message {
    match read(message) {
        Incoming::Reject(reply) => Message::from_vec(&reply).expect("a message"),
        other => panic!("{other:?}"),
    }
}

fn addresses(count: u16) -> Vec<Record> {
    (0..count)
        .map(|n| {
            let [high, low] = n.to_be_bytes();
            let data = RData::A(std::net::Ipv4Addr::new(10, 0, high, low).into());
            Record::from_rdata(name("web.shop.svc.cluster.local."), 5, data)
        })
        .collect()
}

fn answer(answers: u16, additionals: u16) -> Answer {
    Answer {
        authoritative: true,
        answers: addresses(answers),
        additionals: addresses(additionals),
        ..Answer::code(ResponseCode::NoError)
    }
}

fn reply(message: &Message, transport: Transport, answer: &Answer) -> (Message, usize) {
    let bytes = write(&request(message), transport, answer, true);
    (Message::from_vec(&bytes).expect("a message"), bytes.len())
}

#[test]
fn a_reply_repeats_id_question_and_rd() {
    let query = query(RecordType::A);
    let (reply, _) = reply(&query, Transport::Udp, &answer(1, 0));
    let head = &reply.metadata;
    assert_eq!((head.id, head.message_type), (4711, MessageType::Response));
    assert!(head.recursion_desired && head.recursion_available && head.authoritative);
    assert!(!head.truncation && reply.edns.is_none());
    assert!(reply.queries[0].name().eq_case(query.queries[0].name()), "{}", reply.queries[0]);
    assert_eq!(reply.answers, answer(1, 0).answers);
}

/// D11: no answer that could go round in a circle.
#[test]
fn responses_and_fragments_of_a_header_are_ignored() {
    let mut response = query(RecordType::A);
    response.metadata.message_type = MessageType::Response;
    assert_eq!(read_message(&response), Incoming::Ignore);
    for length in 0..HEADER {
        assert_eq!(read(&vec![0; length]), Incoming::Ignore);
    }
}

/// D11: RFC 8906 section 3.1.4.
#[test]
fn an_unknown_opcode_is_not_implemented() {
    let mut bytes = query(RecordType::A).to_vec().expect("a message");
    for opcode in (1u8..16).filter(|opcode| *opcode != 0) {
        bytes[2] = opcode << 3 | RD;
        let reply = rejection(&bytes);
        assert_eq!(reply.metadata.response_code, ResponseCode::NotImp);
        assert_eq!((reply.metadata.id, reply.queries.len()), (4711, 0));
        assert_eq!(reply.metadata.op_code, OpCode::from_u8(opcode));
    }
}

/// D11: one question, no more and no less (RFC 9619).
#[test]
fn several_questions_and_none_are_malformed() {
    let mut two = query(RecordType::A);
    two.add_query(two.queries[0].clone());
    let mut none = query(RecordType::A);
    none.queries.clear();
    let mut claims = query(RecordType::A).to_vec().expect("a message");
    claims[4..6].copy_from_slice(&[0xff, 0xff]);
    for bytes in [two.to_vec().expect("a message"), none.to_vec().expect("a message"), claims] {
        assert_eq!(rejection(&bytes).metadata.response_code, ResponseCode::FormErr);
    }
}

/// D11: RFC 6891 section 6.1.1, more than one OPT record.
#[test]
fn two_opt_records_are_malformed() {
    let mut bytes = with_edns(query(RecordType::A), |_| {}).to_vec().expect("a message");
    let opt = bytes[bytes.len() - usize::from(OPT)..].to_vec();
    bytes.extend(opt);
    bytes[11] = 2;
    assert_eq!(rejection(&bytes).metadata.response_code, ResponseCode::FormErr);
}

/// D11: RFC 6891 section 6.1.3.
#[test]
fn an_unknown_edns_version_is_told_the_known_one() {
    let query = with_edns(query(RecordType::A), |edns| {
        edns.set_version(1);
    });
    let reply = rejection(&query.to_vec().expect("a message"));
    // BADVERS and BADSIG share the number 16.
    assert_eq!(u16::from(reply.metadata.response_code), 16);
    let edns = reply.edns.expect("an OPT record");
    assert_eq!(edns.version(), 0);
    assert!(reply.answers.is_empty());
}

/// D11: RFC 8906 section 3.2: unknown options and flags are as if they were not there; DO comes
/// back (RFC 3225).
#[test]
fn unknown_edns_options_and_flags_are_not_echoed() {
    let query = with_edns(query(RecordType::A), |edns| {
        edns.set_max_payload(4096);
        edns.set_dnssec_ok(true);
        edns.flags_mut().z = 0x80;
        edns.options_mut().insert(EdnsOption::Unknown(100, vec![1, 2, 3]));
    });
    let (reply, _) = reply(&query, Transport::Udp, &answer(1, 0));
    let edns = reply.edns.expect("an OPT record");
    assert!(edns.options().as_ref().is_empty());
    assert!(edns.flags().dnssec_ok);
    assert_eq!((edns.flags().z, edns.max_payload(), edns.version()), (0, MAX_UDP, 0));
    assert_eq!(reply.answers.len(), 1);
}

/// D11: 512 octets without EDNS, what the client takes with it, at most 1232; the OPT record is
/// there even where records are cut off.
#[test]
fn udp_replies_keep_to_the_size_and_say_when_they_are_cut() {
    for (payload, limit) in [(None, 512), (Some(100), 512), (Some(800), 800), (Some(4096), 1232)] {
        let mut query = query(RecordType::A);
        if let Some(payload) = payload {
            query = with_edns(query, |edns| {
                edns.set_max_payload(payload);
            });
        }
        let (cut, length) = reply(&query, Transport::Udp, &answer(200, 5));
        assert!(cut.metadata.truncation, "{payload:?}");
        assert!(length <= limit && length + 16 > limit, "{length} of {limit}");
        assert!(!cut.answers.is_empty() && cut.additionals.is_empty());
        assert_eq!(cut.edns.is_some(), payload.is_some());

        let (whole, _) = reply(&query, Transport::Tcp, &answer(200, 5));
        assert!(!whole.metadata.truncation);
        assert_eq!((whole.answers.len(), whole.additionals.len()), (200, 5));
    }
}

/// D11: RFC 2181 section 9: what is left out of the additional section is no truncation.
#[test]
fn glue_that_does_not_fit_is_left_out_silently() {
    let (reply, length) = reply(&query(RecordType::SRV), Transport::Udp, &answer(10, 200));
    assert!(!reply.metadata.truncation && length <= 512);
    assert_eq!(reply.answers.len(), 10);
    assert!(reply.additionals.len() < 200);
}

/// D11: even a stream has an end.
#[test]
fn more_than_a_message_can_hold_is_cut_over_tcp() {
    let (reply, length) = reply(&query(RecordType::A), Transport::Tcp, &answer(5000, 0));
    assert!(reply.metadata.truncation && length <= usize::from(u16::MAX));
    assert!(reply.answers.len() > 4000, "{}", reply.answers.len());
}

#[test]
fn the_ad_bit_is_for_clients_that_know_it() {
    let validated = Answer { authentic: true, ..answer(1, 0) };
    let plain = query(RecordType::A);
    assert!(!reply(&plain, Transport::Udp, &validated).0.metadata.authentic_data);
    let mut knows = plain.clone();
    knows.metadata.authentic_data = true;
    assert!(reply(&knows, Transport::Udp, &validated).0.metadata.authentic_data);
    let asks = with_edns(plain, |edns| {
        edns.set_dnssec_ok(true);
    });
    assert!(reply(&asks, Transport::Udp, &validated).0.metadata.authentic_data);
}

/// Bytes that look like a query up to some point.
fn nearly_a_query() -> impl Strategy<Value = Vec<u8>> {
    let noise = proptest::collection::vec(any::<u8>(), 0..600);
    let base = with_edns(query(RecordType::A), |edns| {
        edns.options_mut().insert(EdnsOption::Unknown(10, vec![7; 8]));
    })
    .to_vec()
    .expect("a message");
    let flips = proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8);
    let broken =
        (flips, any::<prop::sample::Index>(), any::<bool>()).prop_map(move |(flips, end, cut)| {
            let mut bytes = base.clone();
            for (at, value) in flips {
                let at = at.index(bytes.len());
                bytes[at] = value;
            }
            if cut {
                bytes.truncate(end.index(bytes.len()));
            }
            bytes
        });
    prop_oneof![noise, broken]
}

proptest! {
    /// D18: whatever comes in, nothing panics, and what goes out is a response to it.
    #[test]
    fn garbage_gets_an_error_or_nothing(bytes in nearly_a_query()) {
        let out = match read(&bytes) {
            Incoming::Ignore => return Ok(()),
            Incoming::Reject(reply) => reply,
            Incoming::Query(request) => {
                let reply = write(&request, Transport::Udp, &answer(3, 0), true);
                prop_assert!(reply.len() <= usize::from(MAX_UDP));
                reply
            }
        };
        prop_assert_eq!(&out[..2], &bytes[..2]);
        let reply = Message::from_vec(&out);
        prop_assert!(reply.is_ok_and(|r| r.metadata.message_type == MessageType::Response));
    }
}

/// D20: an explanation takes the room that the question leaves, and no more.
#[test]
fn an_explanation_leaves_room_for_the_question() {
    let mut long = query(RecordType::A);
    long.queries[0] = Query::query(
        name(&format!("{}.", ["a"; 4].map(|a| a.repeat(61)).join("."))),
        RecordType::A,
    );
    let long = with_edns(long, |edns| {
        edns.set_max_payload(512);
    });
    let Incoming::Query(request) = read(&long.to_vec().expect("a message")) else {
        panic!("it is a query");
    };
    let why = "why ".repeat(100);
    let bytes = write_explained(&request, Transport::Udp, &answer(3, 0), true, Some(&why));
    assert!(bytes.len() <= 512, "{}", bytes.len());
    let reply = Message::from_vec(&bytes).expect("a message");
    assert_eq!(
        (reply.metadata.response_code, &reply.queries),
        (ResponseCode::NoError, &long.queries)
    );
    let edns = reply.edns.expect("the client speaks it");
    let Some(EdnsOption::Unknown(_, text)) = edns.option(EdnsCode::Unknown(EXPLAIN)) else {
        panic!("it is explained");
    };
    assert!(text.len() > 200 && why.as_bytes().starts_with(text));
}
