//! From one message to another: what to answer at once, and what to ask upstreams for first.

use std::net::IpAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use arc_swap::ArcSwap;
use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, Record, RecordType};

use crate::answer::{Answer, Domain, Outcome};
use crate::forward::Forwarder;
use crate::wire::{self, Incoming, Request, Transport};
use crate::zone::Snapshot;

/// What becomes of a message.
#[derive(Debug)]
pub enum Step {
    /// It gets no answer.
    Ignore,
    /// This is the answer.
    Reply(Vec<u8>),
    /// An upstream has to be asked: [`Resolver::finish`] does it.
    Ask(Box<Pending>),
}

/// A query that waits for an upstream.
#[derive(Debug)]
pub struct Pending {
    request: Request,
    transport: Transport,
    aliases: Vec<Record>,
    target: Name,
}

/// The server without its sockets.
#[derive(Debug)]
pub struct Resolver {
    domain: Domain,
    zone: ArcSwap<Snapshot>,
    forwarder: Forwarder,
}

impl Resolver {
    /// A resolver for a domain, whose zone is empty and not synced yet.
    pub fn new(domain: Domain, forwarder: Forwarder) -> Self {
        Self { domain, zone: ArcSwap::from_pointee(Snapshot::new()), forwarder }
    }

    /// The zone as it is now.
    pub fn zone(&self) -> Arc<Snapshot> {
        self.zone.load_full()
    }

    /// Puts a new zone in place of the old one. Questions under way keep what they began with.
    pub fn set_zone(&self, zone: Snapshot) {
        self.zone.store(Arc::new(zone));
    }

    /// Takes a message. All that the cluster and the cache know is answered here, without waiting. `local` is
    /// the address that the message was sent to.
    pub fn accept(&self, message: &[u8], transport: Transport, local: Option<IpAddr>) -> Step {
        // A message that trips over a mistake of ours must not silence the socket for all others.
        // Nothing is changed here, so nothing is left half done.
        let step = catch_unwind(AssertUnwindSafe(|| self.step(message, transport, local)));
        step.unwrap_or_else(|_| {
            tracing::error!(?message, "this message made the server panic; it is ignored");
            Step::Ignore
        })
    }

    fn step(&self, message: &[u8], transport: Transport, local: Option<IpAddr>) -> Step {
        let request = match wire::read(message) {
            Incoming::Ignore => return Step::Ignore,
            Incoming::Reject(reply) => return Step::Reply(reply),
            Incoming::Query(request) => request,
        };
        let question = &request.question;
        let outcome = if question.query_class() == DNSClass::IN {
            let zone = self.zone.load();
            self.domain.answer(&zone, question.name(), question.query_type(), local)
        } else {
            Outcome::Answer(Answer::code(ResponseCode::Refused))
        };
        let (aliases, target) = match outcome {
            Outcome::Answer(mut answer) => {
                rotate(&mut answer.answers, request.id);
                return Step::Reply(self.reply(&request, transport, &answer));
            }
            Outcome::Chase { aliases, target } => (aliases, target),
            Outcome::Forward => (Vec::new(), question.name().clone()),
        };
        if let Some(message) = self.forwarder.cached(&request, &target) {
            return Step::Reply(self.reply(&request, transport, &relayed(aliases, message)));
        }
        Step::Ask(Box::new(Pending { request, transport, aliases, target }))
    }

    /// Asks the upstreams, and makes the response. SERVFAIL if none of them answers.
    pub async fn finish(&self, pending: Pending) -> Vec<u8> {
        let Pending { request, transport, aliases, target } = pending;
        let answer = match self.forwarder.ask(&request, &target, transport).await {
            Ok(message) => relayed(aliases, message),
            Err(error) => {
                tracing::debug!(question = %request.question, %error, "forwarding failed");
                Answer::code(ResponseCode::ServFail)
            }
        };
        self.reply(&request, transport, &answer)
    }

    fn reply(&self, request: &Request, transport: Transport, answer: &Answer) -> Vec<u8> {
        wire::write(request, transport, answer, !self.forwarder.is_empty())
    }
}

/// An upstream's answer, behind the aliases that led to it.
fn relayed(aliases: Vec<Record>, message: Message) -> Answer {
    // AA speaks of the first owner name (RFC 1035 section 4.1.1): ours, if there are aliases.
    let authoritative = !aliases.is_empty();
    let mut answers = aliases;
    answers.extend(message.answers);
    Answer {
        rcode: message.metadata.response_code,
        authoritative,
        authentic: message.metadata.authentic_data && !authoritative,
        truncated: message.metadata.truncation,
        answers,
        authorities: message.authorities,
        additionals: message.additionals,
    }
}

/// Lets the addresses of an answer begin elsewhere each time, since many clients take the first.
/// The query's id is as good as random.
fn rotate(answers: &mut [Record], id: u16) {
    let is_address = |r: &Record| matches!(r.record_type(), RecordType::A | RecordType::AAAA);
    let first = answers.iter().position(is_address).unwrap_or(answers.len());
    let addresses = &mut answers[first..];
    if addresses.len() > 1 {
        let by = usize::from(id) % addresses.len();
        addresses.rotate_left(by);
    }
}

#[cfg(test)]
mod tests;
