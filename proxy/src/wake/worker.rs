//! The thread that destroys sockets: it waits for the kernel, so that the agent's loop does not.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};

use sluice_abi::{Addr, Be16};

use super::diag::Diag;
use super::namespaces::Namespaces;
use super::select::Doomed;
use crate::dataplane::SocketKind;

/// How often a socket is looked for that is not there: one that is being connected right now has
/// been noted already, and is not among the kernel's yet.
const ATTEMPTS: u8 = 3;

/// What was done in one namespace.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Done {
    /// Cookies of the sockets that were destroyed.
    pub destroyed: HashSet<u64>,
    /// How many sockets the kernel named on the way.
    pub named: usize,
}

/// Destroys the sockets that are in this thread's network namespace.
///
/// # Errors
///
/// What the kernel says to the first request that fails.
pub fn destroy_here(doomed: &[Doomed]) -> io::Result<Done> {
    let mut diag = Diag::open()?;
    let mut done = Done::default();
    let mut by_port: BTreeMap<(SocketKind, Be16), Vec<&Doomed>> = BTreeMap::new();
    for socket in doomed {
        by_port.entry((socket.kind, socket.port)).or_default().push(socket);
    }
    for ((kind, port), sockets) in by_port {
        let cookies: HashSet<u64> = sockets.iter().map(|socket| socket.cookie).collect();
        let named = diag.connected_to(kind, only_address(&sockets), port)?;
        done.named += named.len();
        for socket in named {
            if cookies.contains(&socket.cookie) && diag.destroy(kind, &socket)? {
                done.destroyed.insert(socket.cookie);
            }
        }
    }
    Ok(done)
}

/// The address of the backend, if all had the same.
fn only_address(sockets: &[&Doomed]) -> Option<Addr> {
    let first = sockets.first()?.addr;
    sockets.iter().all(|socket| socket.addr == first).then_some(first)
}

/// Which of the sockets are in this thread's network namespace no more.
///
/// # Errors
///
/// What the kernel says to the first request that fails.
pub fn absent_here(kind: SocketKind, sockets: &[u64]) -> io::Result<Vec<u64>> {
    let there = Diag::open()?.cookies(kind)?;
    Ok(sockets.iter().copied().filter(|cookie| !there.contains(cookie)).collect())
}

/// A socket that a program noted: its kind, its namespace's cookie, its own.
pub type Note = (SocketKind, u64, u64);

/// What the thread tells others.
#[derive(Debug, Default)]
struct Shared {
    streams: AtomicU64,
    datagrams: AtomicU64,
    problem: Mutex<Option<String>>,
    /// Answer to the last question for sockets that are gone.
    gone: Mutex<Option<Vec<Note>>>,
}

/// What the thread is to do.
enum Job {
    /// Destroy these, which are all whose backend is gone.
    Wake(Vec<Doomed>),
    /// Find out which of these are gone.
    Verify(Vec<Note>),
}

/// The thread. It ends with this.
#[derive(Debug)]
pub struct Waker {
    jobs: mpsc::Sender<Job>,
    shared: Arc<Shared>,
}

impl Waker {
    /// Starts the thread. `records` names the network namespaces of the node's pods, as far as they
    /// are known; others are looked for among those of all processes.
    ///
    /// # Errors
    ///
    /// The thread cannot be started.
    pub fn start(records: impl Fn() -> Vec<PathBuf> + Send + 'static) -> io::Result<Self> {
        let (jobs, queue) = mpsc::channel::<Job>();
        let shared = Arc::new(Shared::default());
        let mut worker = Worker {
            namespaces: Namespaces::new(records),
            tried: HashMap::new(),
            shared: Arc::clone(&shared),
        };
        std::thread::Builder::new().name("waker".to_owned()).spawn(move || {
            while let Ok(first) = queue.recv() {
                let (mut doomed, mut notes) = (None, None);
                for job in std::iter::once(first).chain(queue.try_iter()) {
                    // Each job names all that there is: the last one of its kind will do.
                    match job {
                        Job::Wake(sockets) => doomed = Some(sockets),
                        Job::Verify(sockets) => notes = Some(sockets),
                    }
                }
                if let Some(doomed) = doomed {
                    worker.work(doomed);
                }
                if let Some(notes) = notes {
                    worker.verify(notes);
                }
            }
        })?;
        Ok(Self { jobs, shared })
    }

    /// These are all the sockets whose backend is gone. Returns at once.
    pub fn wake(&self, doomed: Vec<Doomed>) {
        // The thread ends with the sender only.
        let _ = self.jobs.send(Job::Wake(doomed));
    }

    /// Asks which of these sockets are gone: [`Waker::gone`] will tell. Returns at once.
    pub fn verify(&self, notes: Vec<Note>) {
        let _ = self.jobs.send(Job::Verify(notes));
    }

    /// Those of the last question that are gone; `None` where the answer is not there yet, or was
    /// given already.
    pub fn gone(&self) -> Option<Vec<Note>> {
        self.shared.gone.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// How many sockets of the kind were destroyed so far.
    pub fn destroyed(&self, kind: SocketKind) -> u64 {
        self.shared.counter(kind).load(Ordering::Relaxed)
    }

    /// Why the last round of sockets, or some of it, was not woken.
    pub fn problem(&self) -> Option<String> {
        self.shared.problem.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Shared {
    fn counter(&self, kind: SocketKind) -> &AtomicU64 {
        match kind {
            SocketKind::Stream => &self.streams,
            SocketKind::Datagram => &self.datagrams,
        }
    }
}

struct Worker {
    namespaces: Namespaces,
    /// How often a socket with that backend was looked for.
    tried: HashMap<(u64, u32), u8>,
    shared: Arc<Shared>,
}

impl Worker {
    fn work(&mut self, doomed: Vec<Doomed>) {
        let mut tried = std::mem::take(&mut self.tried);
        let mut by_namespace: BTreeMap<u64, Vec<Doomed>> = BTreeMap::new();
        for socket in doomed {
            // A socket that was destroyed is noted until it is closed or connected anew.
            let key = (socket.cookie, socket.backend);
            let attempts = tried.remove(&key).unwrap_or(0);
            self.tried.insert(key, attempts);
            if attempts < ATTEMPTS {
                by_namespace.entry(socket.netns).or_default().push(socket);
            }
        }
        let mut problem = None;
        for (netns, sockets) in by_namespace {
            if let Err(error) = self.wake_in(netns, &sockets) {
                tracing::warn!(sockets = sockets.len(), "sockets whose backend is gone: {error}");
                problem = Some(error);
            }
        }
        *self.shared.problem.lock().unwrap_or_else(PoisonError::into_inner) = problem;
    }

    fn verify(&mut self, notes: Vec<Note>) {
        let mut by_namespace: BTreeMap<(u64, SocketKind), Vec<u64>> = BTreeMap::new();
        for (kind, netns, cookie) in notes {
            by_namespace.entry((netns, kind)).or_default().push(cookie);
        }
        let mut gone = Vec::new();
        for ((netns, kind), sockets) in by_namespace {
            let absent = match self.namespaces.run(netns, || absent_here(kind, &sockets)) {
                Ok(Some(Ok(absent))) => absent,
                // Sockets go with their namespace.
                Ok(None) => sockets,
                Ok(Some(Err(error))) | Err(error) => {
                    tracing::warn!("sockets of network namespace {netns}: {error}");
                    continue;
                }
            };
            gone.extend(absent.into_iter().map(|cookie| (kind, netns, cookie)));
        }
        *self.shared.gone.lock().unwrap_or_else(PoisonError::into_inner) = Some(gone);
    }

    fn wake_in(&mut self, netns: u64, sockets: &[Doomed]) -> Result<(), String> {
        let done = self
            .namespaces
            .run(netns, || destroy_here(sockets))
            .map_err(|error| format!("cannot enter network namespace {netns}: {error}"))?;
        for socket in sockets {
            *self.tried.entry((socket.cookie, socket.backend)).or_insert(0) += 1;
        }
        let Some(done) = done else {
            return Err(format!(
                "network namespace {netns} was not found: the agent must see the processes of the \
                 node (hostPID)"
            ));
        };
        let done = done.map_err(|error| match error.raw_os_error() {
            Some(libc::EOPNOTSUPP) => {
                "this kernel cannot destroy sockets (CONFIG_INET_DIAG_DESTROY)".to_owned()
            }
            _ => format!("sock_diag in network namespace {netns}: {error}"),
        })?;
        let mut woken = 0;
        for socket in sockets.iter().filter(|s| done.destroyed.contains(&s.cookie)) {
            self.tried.insert((socket.cookie, socket.backend), ATTEMPTS);
            self.shared.counter(socket.kind).fetch_add(1, Ordering::Relaxed);
            woken += 1;
        }
        if woken > 0 {
            tracing::info!(sockets = woken, netns, "woke sockets whose backend is gone");
        }
        Ok(())
    }
}
