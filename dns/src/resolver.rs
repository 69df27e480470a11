//! From one message to another: what to answer at once, and what to ask upstreams for first.

use std::net::{IpAddr, SocketAddr};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use arc_swap::{ArcSwap, Guard};
use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::rdata::CNAME;
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use tokio::time::Instant;

use crate::answer::{Answer, Domain, Outcome};
use crate::explain::{self, Explainers};
use crate::fast::{self, Buffer, Query};
use crate::forward::Forwarder;
use crate::local::Local;
use crate::metrics::{Answered, Event, Metrics, Proto, Shard};
use crate::wire::{self, Incoming, Request, Transport};
use crate::zone::Snapshot;

/// What becomes of a message.
#[derive(Debug)]
pub enum Step {
    /// It gets no answer.
    Ignore,
    /// This is the answer.
    Reply(Vec<u8>),
    /// This is the answer, and it is worth asking an upstream for a newer one.
    Refresh(Vec<u8>, Box<Pending>),
    /// An upstream has to be asked: [`Resolver::finish`] does it.
    Ask(Box<Pending>),
}

/// Who asks, and how.
#[derive(Clone, Copy, Debug)]
pub struct Client {
    /// The bounds of its answer.
    pub transport: Transport,
    /// How it is counted.
    pub proto: Proto,
    /// Its address, if it has one.
    pub peer: Option<SocketAddr>,
    /// The address that it asked.
    pub local: Option<IpAddr>,
}

impl Client {
    /// A client of whom nothing is known but the transport.
    pub fn unknown(transport: Transport) -> Self {
        let proto = match transport {
            Transport::Udp => Proto::Udp,
            Transport::Tcp => Proto::Tcp,
        };
        Self { transport, proto, peer: None, local: None }
    }

    fn addr(&self) -> IpAddr {
        // A socket for both families shows IPv4 addresses as mapped ones.
        self.peer.map_or(IpAddr::from([0, 0, 0, 0]), |peer| peer.ip().to_canonical())
    }
}

/// A query that waits for an upstream.
#[derive(Debug)]
pub struct Pending {
    settings: Arc<Settings>,
    request: Request,
    client: Client,
    aliases: Vec<Record>,
    /// The names to ask for: the first that exists is the answer. There is one, or the rest of
    /// a search path.
    targets: Vec<Name>,
    /// The answer where none of a search path exists.
    denial: Option<Answer>,
    size: usize,
    /// What the question's name stands for.
    rewritten: Option<Name>,
    /// Where the answer comes from, as far as is known, for a client that asks for it.
    why: Option<String>,
    /// Since when the client waits.
    begin: Instant,
    /// Whether there is no more time to ask upstreams.
    expired: bool,
}

/// What of the configuration decides about answers. It is replaced as a whole.
#[derive(Debug)]
pub struct Settings {
    /// The cluster's domain.
    pub domain: Domain,
    /// The upstreams.
    pub forwarder: Arc<Forwarder>,
    /// Whether a pod's search path is followed here, and where it goes on after the cluster's
    /// domains: the search list of the node, which its pods have inherited.
    pub autopath: Option<Vec<Name>>,
    /// Names of the configuration itself.
    pub local: Local,
    /// Whether every query is logged.
    pub log: bool,
    /// Who may ask where an answer comes from.
    pub explainers: Explainers,
}

impl Settings {
    /// The settings that have nothing but a domain and upstreams.
    pub fn new(domain: Domain, forwarder: Forwarder) -> Self {
        Self {
            domain,
            forwarder: Arc::new(forwarder),
            autopath: None,
            local: Local::default(),
            log: false,
            explainers: Explainers::default(),
        }
    }
}

#[derive(Clone, Debug)]
struct State {
    settings: Arc<Settings>,
    zone: Arc<Snapshot>,
}

/// The server without its sockets.
#[derive(Debug)]
pub struct Resolver {
    state: ArcSwap<State>,
    metrics: Arc<Metrics>,
}

/// Settings and zone as they were at one moment.
#[derive(Debug)]
pub struct Zone {
    state: Guard<Arc<State>>,
    now: Instant,
}

impl Resolver {
    /// A resolver for a domain, whose zone is empty and not synced yet.
    pub fn new(domain: Domain, forwarder: Forwarder) -> Self {
        Self::with_settings(Settings::new(domain, forwarder))
    }

    /// A resolver with these settings, whose zone is empty and not synced yet. It counts where the
    /// forwarder does.
    pub fn with_settings(settings: Settings) -> Self {
        let metrics = Arc::clone(settings.forwarder.metrics());
        let state = State { settings: Arc::new(settings), zone: Arc::new(Snapshot::new()) };
        Self { state: ArcSwap::from_pointee(state), metrics }
    }

    /// Where it counts.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// The zone as it is now.
    pub fn zone(&self) -> Arc<Snapshot> {
        Arc::clone(&self.state.load().zone)
    }

    /// The settings as they are now.
    pub fn settings(&self) -> Arc<Settings> {
        Arc::clone(&self.state.load().settings)
    }

    /// Settings and zone for a batch of queries.
    pub fn load(&self) -> Zone {
        Zone { state: self.state.load(), now: Instant::now() }
    }

    /// Puts a new zone in place of the old one. Questions under way keep what they began with.
    pub fn set_zone(&self, zone: Snapshot) {
        let zone = Arc::new(zone);
        self.state
            .rcu(|old| State { zone: Arc::clone(&zone), settings: Arc::clone(&old.settings) });
    }

    /// Puts new settings in place of the old ones. Questions under way keep what they began with.
    pub fn set_settings(&self, settings: Settings) {
        let settings = Arc::new(settings);
        self.state
            .rcu(|old| State { settings: Arc::clone(&settings), zone: Arc::clone(&old.zone) });
    }

    /// Takes a message. All that the cluster and the cache know is answered here, without waiting.
    pub fn accept(&self, message: &[u8], client: &Client, shard: &Shard) -> Step {
        // A message that trips over a mistake of ours must not silence the socket for all others.
        // Nothing is changed here, so nothing is left half done.
        let step = catch_unwind(AssertUnwindSafe(|| self.step(message, client, shard)));
        step.unwrap_or_else(|_| {
            shard.event(Event::Panic);
            tracing::error!(?message, "this message made the server panic; it is ignored");
            Step::Ignore
        })
    }

    fn step(&self, message: &[u8], client: &Client, shard: &Shard) -> Step {
        let request = match wire::read(message) {
            Incoming::Ignore => return Step::Ignore,
            Incoming::Reject(reply) => {
                let rcode = ResponseCode::from(0, reply.get(3).map_or(0, |flags| flags & 0x0f));
                count(shard, client, 0, rcode, message.len(), reply.len());
                return Step::Reply(reply);
            }
            Incoming::Query(request) => request,
        };
        let State { settings, zone } = &**self.state.load();
        let mut request = request;
        request.explain = request.explain.filter(|_| settings.explainers.admit(client.peer));
        // Whose answer it is: that of another, if somebody asks on another's behalf.
        let behalf = request.explain.and_then(|explain| explain.client);
        let asker = match behalf {
            Some(addr) => &Client { peer: Some(SocketAddr::new(addr, 0)), ..*client },
            None => client,
        };
        let question = &request.question;
        let rewritten = settings.local.rewrite(question.name()).cloned();
        let (name, kind) = (rewritten.as_ref().unwrap_or(question.name()), question.query_type());
        let outcome = if question.query_class() == DNSClass::IN {
            match settings.local.answer(name, kind) {
                Some(answer) => Outcome::Answer(answer),
                None => settings.domain.answer(zone, name, kind, client.local),
            }
        } else {
            Outcome::Answer(Answer::code(ResponseCode::Refused))
        };
        let why = request.explain.map(|_| settings.explain(zone, name, rewritten.is_some()));
        let mut pending = Pending {
            settings: Arc::clone(settings),
            client: *client,
            aliases: Vec::new(),
            targets: Vec::new(),
            denial: None,
            size: message.len(),
            rewritten,
            request,
            why,
            begin: Instant::now(),
            expired: false,
        };
        match outcome {
            Outcome::Answer(mut answer) => {
                let walk = settings.walk(zone, &pending.request, asker, &answer);
                match walk {
                    Walk::Over => {}
                    Walk::Found(found) => {
                        shard.event(Event::Autopath);
                        pending.because(|| "found along the search path".to_owned());
                        answer = found;
                    }
                    Walk::Chase { aliases, targets } => {
                        (pending.aliases, pending.targets) = (aliases, targets);
                        pending.denial = Some(answer);
                        pending.because(|| "looked for along the search path".to_owned());
                        return pending.look_up(shard);
                    }
                }
                rotate(&mut answer.answers, pending.request.id);
                Step::Reply(pending.reply(&answer, shard))
            }
            Outcome::Chase { aliases, target } => {
                (pending.aliases, pending.targets) = (aliases, vec![target]);
                pending.look_up(shard)
            }
            Outcome::Forward => {
                pending.targets = vec![pending.name().clone()];
                pending.look_up(shard)
            }
        }
    }

    /// Asks the upstreams, and makes the response: SERVFAIL if none of them answers.
    pub async fn finish(&self, mut pending: Box<Pending>) -> Vec<u8> {
        let settings = Arc::clone(&pending.settings);
        let (forwarder, shard) = (&settings.forwarder, self.metrics.shared());
        let mut answer = Answer::code(ResponseCode::ServFail);
        for target in std::mem::take(&mut pending.targets) {
            let transport = pending.client.transport;
            let asked = forwarder.ask(&pending.request, &target, transport, pending.since()).await;
            pending.because(|| {
                let result = asked.as_ref().map(|(_, origin)| Some(*origin));
                explain::upstream(forwarder, &target, result)
            });
            match asked {
                Ok((message, _)) => {
                    let denied = message.metadata.response_code == ResponseCode::NXDomain;
                    match (&pending.denial, denied) {
                        (Some(denial), true) => answer = denial.clone(),
                        (walk, _) => {
                            if walk.is_some() {
                                shard.event(Event::Autopath);
                            }
                            answer = pending.relayed(&target, message);
                            break;
                        }
                    }
                }
                Err(error) => {
                    let question = &pending.request.question;
                    tracing::debug!(%question, %error, "forwarding failed");
                    answer = Answer::code(ResponseCode::ServFail);
                    break;
                }
            }
        }
        let reply = pending.reply(&answer, shard);
        shard.took(pending.begin.elapsed(), 1);
        reply
    }

    /// Until when a query may wait for its turn to ask the upstreams.
    pub fn patience(&self, pending: &Pending) -> Instant {
        let now = Instant::now();
        let Some((target, begin)) = pending.targets.first().zip(pending.since()) else {
            return now;
        };
        begin + pending.settings.forwarder.patience(&pending.request, target)
    }

    /// Gives up to ask for a newer answer than the one that was given.
    pub fn forgo(&self, pending: &Pending) {
        for target in &pending.targets {
            pending.settings.forwarder.forgo(&pending.request, target);
        }
    }
}

impl Zone {
    /// Answers a common query the short way: how many octets were written. `None` where
    /// [`Resolver::accept`] has to answer.
    pub fn fast(
        &self,
        query: &Query<'_>,
        client: &Client,
        out: &mut Buffer,
        shard: &Shard,
    ) -> Option<usize> {
        let State { settings, zone } = &**self.state;
        if settings.log || settings.local.has(query.name()) {
            return None;
        }
        let recursion = !settings.forwarder.is_empty();
        let deny = |namespace: &[u8]| !settings.walks(zone, client, namespace);
        let (apex, labels) = settings.domain.wire();
        let done = if query.below(apex, labels).is_some() {
            fast::answer(query, &settings.domain, zone, recursion, deny, out)?
        } else if settings.domain.has_in_clusterset(zone, query) {
            return None;
        } else if query.labels() == 0 || query.label(query.labels() - 1) == b"arpa" {
            // An address may be the cluster's.
            return None;
        } else {
            settings.forwarder.cached_fast(query, self.now, out, shard)?
        };
        count(shard, client, query.kind, done.rcode, query.size(), done.length);
        Some(done.length)
    }
}

/// Where a pod's search path leads.
enum Walk {
    /// Nowhere: it is not followed, or has come to its end.
    Over,
    /// To this answer.
    Found(Answer),
    /// To upstreams.
    Chase { aliases: Vec<Record>, targets: Vec<Name> },
}

impl Settings {
    /// Where the answer about a name comes from, as far as the configuration and the zone say.
    fn explain(&self, zone: &Snapshot, name: &Name, rewritten: bool) -> String {
        let mut parts = Vec::new();
        if rewritten {
            parts.push(format!("rewritten to {name}"));
        }
        if self.local.answer(name, RecordType::A).is_some() {
            parts.push("hosts of the configuration".to_owned());
        } else {
            parts.extend(explain::zone(&self.domain, zone, name));
        }
        parts.join("; ")
    }

    /// Whether the search path is followed here for a name below that namespace: it is that of the
    /// client, so that this is the first name of its search path.
    fn walks(&self, zone: &Snapshot, client: &Client, namespace: &[u8]) -> bool {
        self.autopath.is_some()
            && zone
                .pod_namespace(&client.addr())
                .is_some_and(|own| own.as_bytes().eq_ignore_ascii_case(namespace))
    }

    /// Follows the search path of a known pod where the first name of it was denied, so that the
    /// pod's resolver need not ask for one name after the other.
    fn walk(&self, zone: &Snapshot, request: &Request, client: &Client, denial: &Answer) -> Walk {
        let name = request.question.name();
        let apex = self.domain.apex();
        let below = name.iter().len().saturating_sub(apex.iter().len());
        let Some(search) = self
            .autopath
            .as_ref()
            .filter(|_| denial.rcode == ResponseCode::NXDomain && below >= 3 && apex.zone_of(name))
        else {
            return Walk::Over;
        };
        let labels: Vec<&[u8]> = name.iter().take(below).collect();
        let [bare @ .., namespace, svc] = &labels[..] else { return Walk::Over };
        if !svc.eq_ignore_ascii_case(b"svc") || !self.walks(zone, client, namespace) {
            return Walk::Over;
        }
        let Ok(bare) = Name::from_labels(bare.iter().copied()) else { return Walk::Over };
        let join = |domain: &Name| bare.clone().append_domain(domain).ok();
        let svc = Name::from_labels(["svc"]).ok().and_then(|svc| svc.append_domain(apex).ok());
        for candidate in [svc.as_ref(), Some(apex)].into_iter().flatten().filter_map(join) {
            let kind = request.question.query_type();
            match self.domain.answer(zone, &candidate, kind, client.local) {
                Outcome::Answer(answer) if answer.rcode == ResponseCode::NXDomain => {}
                Outcome::Answer(mut answer) => {
                    answer.answers.insert(0, self.alias(name, &candidate));
                    return Walk::Found(answer);
                }
                Outcome::Chase { aliases, target } => {
                    let first = self.alias(name, &candidate);
                    let aliases = std::iter::once(first).chain(aliases).collect();
                    return Walk::Chase { aliases, targets: vec![target] };
                }
                Outcome::Forward => {}
            }
        }
        if self.forwarder.is_empty() {
            return Walk::Over;
        }
        let mut targets: Vec<Name> = search.iter().filter_map(join).collect();
        let mut last = bare;
        last.set_fqdn(true);
        targets.push(last);
        Walk::Chase { aliases: Vec::new(), targets }
    }

    fn alias(&self, from: &Name, to: &Name) -> Record {
        Record::from_rdata(from.clone(), self.domain.ttl(), RData::CNAME(CNAME(to.clone())))
    }
}

impl Pending {
    /// Says that there is no more time for upstreams: what is kept has to do.
    pub fn expire(&mut self) {
        self.expired = true;
    }

    /// Since when there is time for upstreams; `None` where there is no more.
    fn since(&self) -> Option<Instant> {
        (!self.expired).then_some(self.begin)
    }

    /// Answers from the cache as far as it knows, and leaves the rest to the upstreams.
    fn look_up(mut self, shard: &Shard) -> Step {
        let forwarder = Arc::clone(&self.settings.forwarder);
        while let Some(target) = self.targets.first() {
            let Some(found) = forwarder.cached(&self.request, target, shard) else {
                return Step::Ask(Box::new(self));
            };
            if found.message.metadata.response_code == ResponseCode::NXDomain
                && let Some(denial) = &self.denial
            {
                let denial = denial.clone();
                self.targets.remove(0);
                if self.targets.is_empty() {
                    return Step::Reply(self.reply(&denial, shard));
                }
                continue;
            }
            if self.denial.is_some() {
                shard.event(Event::Autopath);
            }
            let target = target.clone();
            self.because(|| explain::upstream(&forwarder, &target, Ok(None)));
            let answer = self.relayed(&target, found.message);
            let reply = self.reply(&answer, shard);
            return if found.refresh {
                shard.event(Event::CachePrefetch);
                Step::Refresh(reply, Box::new(self))
            } else {
                Step::Reply(reply)
            };
        }
        Step::Reply(self.reply(&Answer::code(ResponseCode::ServFail), shard))
    }

    /// Adds to where the answer comes from, if anybody wants to know.
    fn because(&mut self, text: impl FnOnce() -> String) {
        if let Some(why) = &mut self.why {
            if !why.is_empty() {
                why.push_str("; ");
            }
            why.push_str(&text());
        }
    }

    /// The name that is looked up: the question's, or what that stands for.
    fn name(&self) -> &Name {
        self.rewritten.as_ref().unwrap_or(self.request.question.name())
    }

    fn reply(&self, answer: &Answer, shard: &Shard) -> Vec<u8> {
        let mut restored;
        let answer = match &self.rewritten {
            None => answer,
            Some(name) => {
                restored = answer.clone();
                for record in &mut restored.answers {
                    if record.name == *name {
                        record.name.clone_from(self.request.question.name());
                    }
                }
                &restored
            }
        };
        let available = !self.settings.forwarder.is_empty();
        let (transport, why) = (self.client.transport, self.why.as_deref());
        let reply = wire::write_explained(&self.request, transport, answer, available, why);
        let question = &self.request.question;
        let kind = u16::from(question.query_type());
        count(shard, &self.client, kind, answer.rcode, self.size, reply.len());
        if self.settings.log {
            tracing::info!(
                target: "query",
                "{} {} {} {} {} {} {} {}",
                self.client.peer.map_or_else(|| "-".to_owned(), |peer| peer.to_string()),
                self.request.id,
                question.query_class(),
                question.query_type(),
                question.name(),
                self.size,
                answer.rcode,
                reply.len(),
            );
        }
        reply
    }

    /// An upstream's answer for a target, behind the aliases that led to it.
    fn relayed(&self, target: &Name, message: Message) -> Answer {
        let mut answers = self.aliases.clone();
        if self.denial.is_some() && answers.is_empty() {
            // The end of a search path.
            answers.push(self.settings.alias(self.request.question.name(), target));
        }
        // AA speaks of the first owner name (RFC 1035 section 4.1.1): ours, if there are aliases.
        let authoritative = !answers.is_empty();
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
}

fn count(
    shard: &Shard,
    client: &Client,
    kind: u16,
    rcode: ResponseCode,
    request: usize,
    response: usize,
) {
    let (proto, peer) = (client.proto, client.addr());
    shard.answered(&Answered { proto, peer, kind, rcode, request, response });
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
