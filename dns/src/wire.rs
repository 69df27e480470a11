//! Datagrams to questions, answers to datagrams (RFC 1035, RFC 6891).
//!
//! What is no well-formed query is answered as RFC 8906 asks: an unknown opcode with NOTIMP, an
//! unknown EDNS version with BADVERS, unknown EDNS options and flags as if they were not there.
//! Responses and what is shorter than a header get no answer, so two servers never talk in a loop.

mod section;

use std::net::IpAddr;

use hickory_proto::ProtoError;
use hickory_proto::op::{Edns, Message, OpCode, Query, ResponseCode};
use hickory_proto::rr::Record;
use hickory_proto::rr::rdata::opt::{EdnsCode, EdnsOption};
use hickory_proto::serialize::binary::{BinDecodable, BinDecoder, BinEncodable, BinEncoder};

use self::section::{Owner, emit};
use crate::answer::Answer;

/// Octets of a DNS header.
pub(crate) const HEADER: usize = 12;
/// Where the question's name stands.
const QUESTION: u16 = 12;
/// Octets of an OPT record without options.
pub(crate) const OPT: u16 = 11;
/// The most records that are read of a query.
const MAX_RECORDS: usize = 32;
/// The most that a UDP response holds for a client without EDNS (RFC 1035 section 4.2.1).
pub const MIN_UDP: u16 = 512;
/// The most that a UDP response ever holds: it passes any IPv6 path in one piece
/// (<https://www.dnsflagday.net/2020/>).
pub const MAX_UDP: u16 = 1232;

const QR: u8 = 0x80;
const AA: u8 = 0x04;
const TC: u8 = 0x02;
const RD: u8 = 0x01;
const RA: u8 = 0x80;
const AD: u8 = 0x20;
const CD: u8 = 0x10;

/// How a query came, and so how its response goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Transport {
    /// One datagram, of a bounded size.
    Udp,
    /// A stream, where a response has up to 65,535 octets.
    Tcp,
}

/// What the client's OPT record said.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ClientEdns {
    /// The UDP payload size it takes, in octets.
    pub payload: u16,
    /// The DO bit.
    pub dnssec_ok: bool,
}

/// The code of the EDNS option that asks where an answer comes from, and of the one that says it: one
/// of those for local use (RFC 6891 section 9). A query's has no octets, or the 4 or 16 of the address
/// of the client that the question is asked for; a response's is a sentence in UTF-8.
pub const EXPLAIN: u16 = 65_053;
/// The longest explanation, in octets.
const MAX_EXPLANATION: usize = 255;

/// What an [`EXPLAIN`] option asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Explain {
    /// Whose answer this is about; `None` for that of the one who asks.
    pub client: Option<IpAddr>,
}

impl Explain {
    fn of(edns: &Edns) -> Option<Self> {
        let EdnsOption::Unknown(_, data) = edns.option(EdnsCode::Unknown(EXPLAIN))? else {
            return None;
        };
        let v4 = <[u8; 4]>::try_from(&data[..]).map(IpAddr::from);
        let v6 = <[u8; 16]>::try_from(&data[..]).map(IpAddr::from);
        Some(Self { client: v4.or(v6).ok() })
    }
}

/// A well-formed query with one question.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Request {
    /// The query's id.
    pub id: u16,
    /// The RD bit.
    pub recursion_desired: bool,
    /// The AD bit: the client understands it in responses (RFC 6840 section 5.7).
    pub authentic_data: bool,
    /// The CD bit.
    pub checking_disabled: bool,
    /// The question, its name spelled as the client did.
    pub question: Query,
    /// The client's OPT record.
    pub edns: Option<ClientEdns>,
    /// The client wants to know where the answer comes from.
    pub explain: Option<Explain>,
}

impl Request {
    /// The most octets that a response may have.
    pub fn limit(&self, transport: Transport) -> u16 {
        match (transport, self.edns) {
            (Transport::Tcp, _) => u16::MAX,
            (Transport::Udp, None) => MIN_UDP,
            (Transport::Udp, Some(edns)) => edns.payload.clamp(MIN_UDP, MAX_UDP),
        }
    }
}

/// What came in.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Incoming {
    /// Nothing to answer.
    Ignore,
    /// No query that could be resolved; this is the response.
    Reject(Vec<u8>),
    /// A query.
    Query(Request),
}

/// Reads a message.
pub fn read(message: &[u8]) -> Incoming {
    let Some(header) = message.first_chunk::<HEADER>() else { return Incoming::Ignore };
    let (flags, more_flags) = (header[2], header[3]);
    if flags & QR != 0 {
        return Incoming::Ignore;
    }
    let reject = |rcode: ResponseCode| {
        let mut reply = vec![0; HEADER];
        reply[..2].copy_from_slice(&header[..2]);
        // Opcode and RD come back as they were.
        reply[2] = QR | flags & 0x79;
        reply[3] = more_flags & CD | rcode.low();
        Incoming::Reject(reply)
    };
    if OpCode::from_u8(flags >> 3 & 0x0f) != OpCode::Query {
        return reject(ResponseCode::NotImp);
    }
    let count = |at: usize| usize::from(u16::from_be_bytes([header[at], header[at + 1]]));
    // More than one question has no meaning (RFC 9619). Counted before anything is allocated.
    if count(4) != 1 {
        return reject(ResponseCode::FormErr);
    }
    // A client has an OPT record to send, and a signature at most. Thousands of records whose names
    // hang on one another would take far longer to read than to send.
    if count(6) + count(8) + count(10) > MAX_RECORDS {
        return reject(ResponseCode::FormErr);
    }
    if points(&message[HEADER..]) {
        return reject(ResponseCode::FormErr);
    }
    let mut decoder = BinDecoder::new(message);
    let parts = decoder.read_slice(HEADER).and_then(|_| {
        let question = Query::read(&mut decoder)?;
        for at in [6, 8] {
            Message::read_records(&mut decoder, count(at), false, OpCode::Query)?;
        }
        let (_, edns, _) = Message::read_records(&mut decoder, count(10), true, OpCode::Query)?;
        Ok((question, edns))
    });
    let Ok((question, edns)) = parts else { return reject(ResponseCode::FormErr) };
    let request = Request {
        id: u16::from_be_bytes([header[0], header[1]]),
        recursion_desired: flags & RD != 0,
        authentic_data: more_flags & AD != 0,
        checking_disabled: more_flags & CD != 0,
        question,
        edns: edns.as_ref().map(|edns| ClientEdns {
            payload: edns.max_payload(),
            dnssec_ok: edns.flags().dnssec_ok,
        }),
        explain: edns.as_ref().and_then(Explain::of),
    };
    if edns.is_some_and(|edns| edns.version() != 0) {
        let answer = Answer::code(ResponseCode::BADVERS);
        return Incoming::Reject(write(&request, Transport::Udp, &answer, false));
    }
    Incoming::Query(request)
}

/// Whether a question's name has a pointer, or a label of a kind that does not exist: there is no name
/// before it that it could point to, but the header.
fn points(name: &[u8]) -> bool {
    let mut at = 0;
    while let Some(&length) = name.get(at) {
        match length {
            0 => return false,
            1..=63 => at += 1 + usize::from(length),
            _ => return true,
        }
    }
    false
}

/// Writes a response. What does not fit is left out: of the answer and authority sections with the
/// TC bit, of the additional section without it (RFC 2181 section 9). OPT always fits.
pub fn write(
    request: &Request,
    transport: Transport,
    answer: &Answer,
    recursion_available: bool,
) -> Vec<u8> {
    write_explained(request, transport, answer, recursion_available, None)
}

/// The same with an [`EXPLAIN`] option, if the client speaks EDNS.
pub fn write_explained(
    request: &Request,
    transport: Transport,
    answer: &Answer,
    recursion_available: bool,
    explanation: Option<&str>,
) -> Vec<u8> {
    let written = encode(request, transport, answer, recursion_available, explanation);
    written.unwrap_or_else(|error| {
        tracing::error!(question = %request.question, %error, "a response cannot be encoded");
        let mut reply = vec![0; HEADER];
        reply[..2].copy_from_slice(&request.id.to_be_bytes());
        reply[2] = QR | if request.recursion_desired { RD } else { 0 };
        reply[3] = ResponseCode::ServFail.low();
        reply
    })
}

fn encode(
    request: &Request,
    transport: Transport,
    answer: &Answer,
    recursion_available: bool,
    explanation: Option<&str>,
) -> Result<Vec<u8>, ProtoError> {
    let limit = request.limit(transport);
    let mut bytes = Vec::with_capacity(usize::from(MIN_UDP));
    let mut encoder = BinEncoder::new(&mut bytes);
    encoder.emit_vec(&[0; HEADER])?;
    // The longest name leaves room for much.
    request.question.emit(&mut encoder)?;
    // What explains comes before what is explained, and behind the question.
    let room = usize::from(limit - OPT - 4).saturating_sub(encoder.len());
    let explanation = explanation.map(|text| {
        let fits = |end: &usize| text.is_char_boundary(*end);
        let most = text.len().min(MAX_EXPLANATION).min(room);
        &text[..(0..=most).rev().find(fits).unwrap_or(0)]
    });
    // A code and a length before it.
    let option = explanation.map_or(0, |text| 4 + text.len() as u16);
    encoder.set_max_size(if request.edns.is_some() { limit - OPT - option } else { limit });
    let mut owner = Owner::new(request.question.name(), QUESTION);
    let (answers, mut complete) = emit(&mut encoder, &mut owner, &answer.answers)?;
    let (mut authorities, mut additionals) = (0, 0);
    if complete {
        (authorities, complete) = emit(&mut encoder, &mut owner, &answer.authorities)?;
    }
    if complete {
        (additionals, _) = emit(&mut encoder, &mut owner, &answer.additionals)?;
    }
    if let Some(client) = request.edns {
        let mut edns = Edns::new();
        edns.set_max_payload(MAX_UDP);
        edns.set_dnssec_ok(client.dnssec_ok);
        edns.set_rcode_high(answer.rcode.high());
        if let Some(text) = explanation {
            edns.options_mut().insert(EdnsOption::Unknown(EXPLAIN, text.into()));
        }
        encoder.set_max_size(limit);
        Record::from(&edns).emit(&mut encoder)?;
        additionals += 1;
    }
    let set = |bit: u8, on: bool| if on { bit } else { 0 };
    let flags = QR
        | set(AA, answer.authoritative)
        | set(TC, answer.truncated || !complete)
        | set(RD, request.recursion_desired);
    let wants_ad = request.authentic_data || request.edns.is_some_and(|edns| edns.dnssec_ok);
    let more_flags = set(RA, recursion_available)
        | set(AD, answer.authentic && wants_ad)
        | set(CD, request.checking_disabled)
        | answer.rcode.low();
    let mut header = [0; HEADER];
    let words =
        [request.id, u16::from_be_bytes([flags, more_flags]), 1, answers, authorities, additionals];
    for (place, word) in header.chunks_exact_mut(2).zip(words) {
        place.copy_from_slice(&word.to_be_bytes());
    }
    bytes[..HEADER].copy_from_slice(&header);
    Ok(bytes)
}

#[cfg(test)]
mod tests;
