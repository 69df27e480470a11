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
            self.runtime.spawn(Sweeper(Arc::clone(self)).run());
        }
        if oldest.is_some() {
            self.resolver.metrics().shared().event(Event::ForwardReject);
        }
    }

    fn start(self: &Arc<Self>, job: Job) {
        self.runtime.spawn(run(job, Turn(Arc::clone(self))));
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

/// The right to be under way; it passes to the newest that waits when it is dropped.
struct Turn(Arc<Queue>);

impl Drop for Turn {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        while let Some((job, _)) = state.waiting.pop_back() {
            if !job.to.is_gone() {
                drop(state);
                self.0.start(job);
                return;
            }
        }
        state.free += 1;
        self.0.tell_if_idle(&state);
    }
}

async fn run(job: Job, turn: Turn) {
    let Job { pending, to } = job;
    let reply = tokio::select! {
        reply = turn.0.resolver.finish(pending) => reply,
        () = to.gone() => return,
    };
    to.send(reply).await;
}

/// Answers those that have waited as long as they may, until none waits.
struct Sweeper(Arc<Queue>);

impl Sweeper {
    async fn run(self) {
        loop {
            tokio::time::sleep(SWEEP).await;
            for mut job in self.expired() {
                self.0.resolver.metrics().shared().event(Event::ForwardReject);
                job.pending.expire();
                job.to.send(self.0.resolver.finish(job.pending).await).await;
            }
            if self.0.lock().waiting.is_empty() {
                return;
            }
        }
    }

    fn expired(&self) -> Vec<Job> {
        let now = Instant::now();
        let mut state = self.0.lock();
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
}

impl Drop for Sweeper {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        // What came since the look has to be seen to as well.
        state.sweeping = !state.waiting.is_empty();
        if state.sweeping {
            self.0.runtime.spawn(Self(Arc::clone(&self.0)).run());
        }
        self.0.tell_if_idle(&state);
    }
}

#[cfg(test)]
mod tests;
