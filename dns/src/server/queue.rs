//! Queries that upstreams have to be asked for.
//!
//! A bounded number is under way at once, each in a task of the runtime. Those beyond wait as they
//! are: a task of its own, and a future with room for all that it may ever do, would take many times
//! the memory, and a flood makes them faster than the runtime ends them. Under overload whoever came
//! last has the best chance to be still waited for, so the newest goes first, and the oldest is
//! turned away when too many wait.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;

use super::udp::Sender;
use crate::metrics::Event;
use crate::resolver::{Pending, Resolver};

/// How many queries may be under way at once. Each holds a socket.
const MAX_IN_FLIGHT: usize = 2048;
/// How many more may wait for their turn.
const MAX_WAITING: usize = 2048;
/// How often is looked for those that have waited too long.
const SWEEP: Duration = Duration::from_millis(100);

/// Where a reply goes.
#[derive(Debug)]
pub(super) enum To {
    /// To a client that sent a datagram.
    Datagram(Sender),
    /// To a connection.
    Stream(Reply),
    /// To nobody: only the cache wants to know.
    Nobody,
}

impl To {
    /// Whether nobody waits for it any more.
    fn is_gone(&self) -> bool {
        matches!(self, Self::Stream(reply) if reply.sender.is_closed())
    }

    /// Waits until nobody waits for it any more.
    async fn gone(&self) {
        match self {
            Self::Stream(reply) => reply.sender.closed().await,
            Self::Datagram(_) | Self::Nobody => std::future::pending().await,
        }
    }

    async fn send(self, reply: Vec<u8>) {
        match self {
            Self::Datagram(sender) => sender.send(&reply).await,
            Self::Stream(stream) => stream.send(reply),
            Self::Nobody => {}
        }
    }
}

/// What a connection gets: a reply, or `None` where the query made way for newer ones.
pub(super) type Replies = mpsc::UnboundedSender<Option<Vec<u8>>>;

/// The one reply that a connection waits for; it learns that there is none when this goes.
#[derive(Debug)]
pub(super) struct Reply {
    sender: Replies,
    sent: bool,
}

impl Reply {
    pub(super) fn new(sender: Replies) -> Self {
        Self { sender, sent: false }
    }

    fn send(mut self, reply: Vec<u8>) {
        self.sent = true;
        // A connection that has ended wants none.
        let _ = self.sender.send(Some(reply));
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        if !self.sent {
            let _ = self.sender.send(None);
        }
    }
}

/// A query, and where its reply goes.
#[derive(Debug)]
struct Job {
    pending: Box<Pending>,
    to: To,
}

#[derive(Debug)]
struct State {
    /// How many more may be under way.
    free: usize,
    /// The newest at the back, each with how long it may wait.
    waiting: VecDeque<(Job, Instant)>,
    /// Whether a task looks for those that have waited too long.
    sweeping: bool,
}

impl State {
    /// Takes the newest that waits and is still waited for.
    fn newest(&mut self) -> Option<Job> {
        loop {
            let (job, _) = self.waiting.pop_back()?;
            if !job.to.is_gone() {
                return Some(job);
            }
        }
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Queue {
    state: Mutex<State>,
    at_once: usize,
    most_waiting: usize,
    resolver: Arc<Resolver>,
    runtime: Handle,
    /// Tells when nothing is under way and nothing waits.
    idle: Notify,
}

impl Queue {
    /// An empty queue, whose tasks run in this runtime.
    pub(super) fn new(resolver: Arc<Resolver>, runtime: Handle) -> Arc<Self> {
        Self::with_bounds(resolver, runtime, (MAX_IN_FLIGHT, MAX_WAITING))
    }

    fn with_bounds(
        resolver: Arc<Resolver>,
        runtime: Handle,
        (at_once, most_waiting): (usize, usize),
    ) -> Arc<Self> {
        let state = State { free: at_once, waiting: VecDeque::new(), sweeping: false };
        let (state, idle) = (Mutex::new(state), Notify::new());
        Arc::new(Self { state, at_once, most_waiting, resolver, runtime, idle })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing is left half done by a panic here.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks for it now, or when its turn comes.
    pub(super) fn push(self: &Arc<Self>, pending: Box<Pending>, to: To) {
        let job = Job { pending, to };
        let mut state = self.lock();
        if state.free > 0 {
            state.free -= 1;
            drop(state);
            self.start(job);
            return;
        }
        if matches!(job.to, To::Nobody) {
            drop(state);
            // Clients come first, and the next of them tries again.
            self.resolver.forgo(&job.pending);
            return;
        }
        let until = self.resolver.patience(&job.pending);
        state.waiting.push_back((job, until));
        let full = state.waiting.len() > self.most_waiting;
        let oldest = if full { state.waiting.pop_front() } else { None };
        let sweep = !std::mem::replace(&mut state.sweeping, true);
        drop(state);
        if sweep {
            self.runtime.spawn(Sweeper::new(Arc::clone(self)).run());
        }
        if oldest.is_some() {
            self.resolver.metrics().shared().event(Event::ForwardReject);
        }
    }

    fn start(self: &Arc<Self>, job: Job) {
        self.runtime.spawn(run(job, Turn::new(Arc::clone(self))));
    }

    /// Waits until nothing is under way and nothing waits.
    pub(super) async fn idle(&self) {
        loop {
            // Made before looking, so that no end between the two is missed.
            let mut idle = std::pin::pin!(self.idle.notified());
            idle.as_mut().enable();
            if self.is_idle(&self.lock()) {
                return;
            }
            idle.await;
        }
    }

    fn is_idle(&self, state: &State) -> bool {
        state.free == self.at_once && state.waiting.is_empty() && !state.sweeping
    }

    fn tell_if_idle(&self, state: &State) {
        if self.is_idle(state) {
            self.idle.notify_waiters();
        }
    }
}

/// The right to be under way.
///
/// Nothing is started where this is dropped: that happens at the end of the runtime too, which drops
/// whatever is started then, and each would drop the next one inside of itself.
struct Turn {
    queue: Arc<Queue>,
    /// Given back already.
    over: bool,
}

impl Turn {
    fn new(queue: Arc<Queue>) -> Self {
        Self { queue, over: false }
    }

    /// The newest that waits; `None` gives the turn back.
    fn next(&mut self) -> Option<Job> {
        let mut state = self.queue.lock();
        let next = state.newest();
        if next.is_none() {
            self.over = true;
            state.free += 1;
            self.queue.tell_if_idle(&state);
        }
        next
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if !self.over {
            // A mistake of ours made the task panic. Who waits is started by another, or swept.
            let mut state = self.queue.lock();
            state.free += 1;
            self.queue.tell_if_idle(&state);
        }
    }
}

async fn run(first: Job, mut turn: Turn) {
    let mut next = Some(first);
    while let Some(Job { pending, to }) = next {
        let reply = tokio::select! {
            reply = turn.queue.resolver.finish(pending) => Some(reply),
            () = to.gone() => None,
        };
        if let Some(reply) = reply {
            to.send(reply).await;
        }
        next = turn.next();
    }
}

/// Answers those that have waited as long as they may, until none waits.
struct Sweeper {
    queue: Arc<Queue>,
    over: bool,
}

impl Sweeper {
    fn new(queue: Arc<Queue>) -> Self {
        Self { queue, over: false }
    }

    async fn run(mut self) {
        while !self.over {
            tokio::time::sleep(SWEEP).await;
            for mut job in self.expired() {
                self.queue.resolver.metrics().shared().event(Event::ForwardReject);
                job.pending.expire();
                job.to.send(self.queue.resolver.finish(job.pending).await).await;
            }
            self.end_if_none_waits();
        }
    }

    fn expired(&self) -> Vec<Job> {
        let now = Instant::now();
        self.start_free();
        let mut state = self.queue.lock();
        let mut expired = Vec::new();
        for _ in 0..state.waiting.len() {
            let Some((job, until)) = state.waiting.pop_front() else { break };
            if until <= now {
                expired.push(job);
            } else {
                state.waiting.push_back((job, until));
            }
        }
        expired
    }

    /// Starts those that wait although they need not: a turn was not passed on.
    fn start_free(&self) {
        loop {
            let job = {
                let mut state = self.queue.lock();
                if state.free == 0 {
                    return;
                }
                let Some(job) = state.newest() else { return };
                state.free -= 1;
                job
            };
            self.queue.start(job);
        }
    }

    fn end_if_none_waits(&mut self) {
        let mut state = self.queue.lock();
        if state.waiting.is_empty() {
            self.over = true;
            state.sweeping = false;
            self.queue.tell_if_idle(&state);
        }
    }
}

impl Drop for Sweeper {
    fn drop(&mut self) {
        if !self.over {
            // It panicked; whoever comes next starts another.
            self.queue.lock().sweeping = false;
        }
    }
}

#[cfg(test)]
mod tests;
