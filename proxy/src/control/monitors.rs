//! Dropped packets for any number of monitors.
//!
//! An event of the ring buffer is read once, so one thread reads for all monitors, and only while there
//! is one: what a flood of drops costs is not the agent's loop's to pay, and nobody's where nobody looks
//! on. Each monitor has a thread and a queue of its own. One that is slower than the drops loses some,
//! and is told how many.

use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use sluice_abi::DropEvent;

use super::{Answer, Notice};
use crate::dataplane::{DataplaneError, Drops};

/// Monitors at once.
pub const MAX_MONITORS: usize = 16;

/// Events that wait for a monitor, more than the ring buffer holds.
const QUEUE: usize = 4096;

/// How often it is looked whether a monitor is still there while nothing is dropped.
const LOOK: Duration = Duration::from_secs(1);

/// What a monitor's thread and the reader share.
#[derive(Debug)]
struct Place {
    events: SyncSender<DropEvent>,
    lost: Arc<AtomicU64>,
}

/// The monitors that are there.
#[derive(Debug, Default)]
struct Shared {
    places: Vec<Place>,
    /// Whether the thread runs that reads the ring buffer.
    reading: bool,
}

/// Serves the drops of one node to monitors.
#[derive(Clone, Debug)]
pub struct Monitors {
    bpf_root: PathBuf,
    shared: Arc<Mutex<Shared>>,
}

impl Monitors {
    /// None yet. The ring buffer is pinned under `bpf_root`.
    pub fn new(bpf_root: &Path) -> Self {
        Self { bpf_root: bpf_root.to_owned(), shared: Arc::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Answers a monitor and serves it on threads until it leaves.
    ///
    /// # Errors
    ///
    /// The stream cannot be written to, or no thread be started.
    pub(super) fn serve(&self, mut stream: UnixStream) -> io::Result<()> {
        stream.set_nonblocking(false)?;
        let (answer, place) = match self.join() {
            Ok(place) => (Answer::done(), Some(place)),
            Err(answer) => (answer, None),
        };
        let line = serde_json::to_string(&answer)? + "\n";
        let work = move || -> io::Result<()> {
            let Some((events, lost)) = place else { return stream.write_all(line.as_bytes()) };
            stream.write_all(line.as_bytes())?;
            tell(&mut stream, &events, &lost)
        };
        let done = move || {
            if let Err(error) = work() {
                tracing::debug!(%error, "a monitor left");
            }
        };
        thread::Builder::new().name("monitor".to_owned()).spawn(done).map(drop)
    }

    /// A place for one more monitor, which gets what is dropped from now on; or why there is none.
    fn join(&self) -> Result<(Receiver<DropEvent>, Arc<AtomicU64>), Answer> {
        let mut shared = self.lock();
        if shared.places.len() >= MAX_MONITORS {
            return Err(Answer::error(
                format!("{MAX_MONITORS} monitors look on already"),
                "end one of them",
            ));
        }
        if !shared.reading {
            self.read().map_err(|error| Answer::error(error.to_string(), "see sluiced's log"))?;
            shared.reading = true;
        }
        let (events, queue) = sync_channel(QUEUE);
        let lost = Arc::new(AtomicU64::new(0));
        shared.places.push(Place { events, lost: Arc::clone(&lost) });
        Ok((queue, lost))
    }

    /// Starts the thread that reads, until no monitor is left.
    fn read(&self) -> Result<(), ReadError> {
        let mut ring = Drops::open(&self.bpf_root)?;
        // What happened before is not what somebody who looks on waits for.
        ring.skip_all();
        let this = self.clone();
        let read = move || {
            while this.pass_on(&mut ring) {
                let until = Timespec { tv_sec: 1, tv_nsec: 0 };
                match poll(&mut [PollFd::new(&ring, PollFlags::IN)], Some(&until)) {
                    Ok(_) | Err(rustix::io::Errno::INTR) => {}
                    Err(error) => {
                        tracing::warn!("cannot wait for dropped packets: {error}");
                        // Monitors learn by the end of their queues.
                        *this.lock() = Shared::default();
                        return;
                    }
                }
            }
        };
        thread::Builder::new().name("drops".to_owned()).spawn(read)?;
        Ok(())
    }

    /// Gives all that is in the buffer to all who wait for it. Whether anybody does.
    fn pass_on(&self, ring: &mut Drops) -> bool {
        while let Some(event) = ring.take() {
            self.lock().places.retain(|place| match place.events.try_send(event) {
                Ok(()) => true,
                Err(TrySendError::Full(_)) => {
                    place.lost.fetch_add(1, Ordering::Relaxed);
                    true
                }
                Err(TrySendError::Disconnected(_)) => false,
            });
        }
        // One whose monitor left holds the last reference to its count.
        let mut shared = self.lock();
        shared.places.retain(|place| Arc::strong_count(&place.lost) > 1);
        // With the lock held, so that nobody joins a thread that ends.
        if shared.places.is_empty() {
            shared.reading = false;
        }
        shared.reading
    }
}

/// Why dropped packets cannot be read.
#[derive(Debug, thiserror::Error)]
enum ReadError {
    #[error(transparent)]
    Ring(#[from] DataplaneError),
    #[error("cannot start a thread: {0}")]
    Thread(#[from] io::Error),
}

/// Writes events to a monitor until one of the two ends.
fn tell(stream: &mut UnixStream, events: &Receiver<DropEvent>, lost: &AtomicU64) -> io::Result<()> {
    let write = |notice: &Notice, stream: &mut UnixStream| -> io::Result<()> {
        stream.write_all((serde_json::to_string(notice)? + "\n").as_bytes())
    };
    loop {
        match events.recv_timeout(LOOK) {
            Ok(event) => write(&Notice::Dropped((&event).into()), stream)?,
            Err(RecvTimeoutError::Timeout) => {
                // A monitor says nothing: what can be read is that it has left.
                stream.set_nonblocking(true)?;
                let read = stream.read(&mut [0]);
                stream.set_nonblocking(false)?;
                match read {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    _ => return Ok(()),
                }
            }
            Err(RecvTimeoutError::Disconnected) => return Ok(()),
        }
        let lost = lost.swap(0, Ordering::Relaxed);
        if lost > 0 {
            write(&Notice::Lost(lost), stream)?;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead as _, BufReader};

    use super::*;

    fn event(number: u32) -> DropEvent {
        DropEvent { len: number, ..DropEvent::default() }
    }

    /// A monitor that reads nothing while more is dropped than its queue has room for.
    #[test]
    fn a_slow_monitor_loses_the_rest_and_is_told_how_many() {
        let monitors = Monitors::new(Path::new("/nonexistent"));
        monitors.lock().reading = true;
        let (queue, lost) = monitors.join().expect("there is room");
        let sent = QUEUE + 10;
        for number in 0..sent {
            for place in &monitors.lock().places {
                if place.events.try_send(event(u32::try_from(number).expect("few"))).is_err() {
                    place.lost.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
        monitors.lock().places.clear();
        let (mut ours, theirs) = UnixStream::pair().expect("a pair of sockets");
        let writer = thread::spawn(move || tell(&mut ours, &queue, &lost));
        let (mut told, mut missed) = (0, 0);
        for line in BufReader::new(theirs).lines() {
            match serde_json::from_str(&line.expect("a line")).expect("a notice") {
                Notice::Dropped(_) => told += 1,
                Notice::Lost(count) => missed += count,
            }
        }
        assert_eq!((told, missed), (QUEUE, 10));
        writer.join().expect("it does not panic").expect("it ends with the queue");
    }

    #[test]
    fn there_are_only_so_many_monitors() {
        let monitors = Monitors::new(Path::new("/nonexistent"));
        monitors.lock().reading = true;
        let places: Vec<_> = (0..MAX_MONITORS).map(|_| monitors.join().expect("room")).collect();
        let refused = monitors.join().expect_err("no room");
        assert!(refused.error.is_some_and(|error| error.contains("monitors look on already")));
        drop(places);
    }

    #[test]
    fn without_a_ring_buffer_a_monitor_is_told_why() {
        let monitors = Monitors::new(Path::new("/nonexistent"));
        let refused = monitors.join().expect_err("nothing is pinned there");
        assert!(refused.error.is_some_and(|error| error.contains("/nonexistent")));
        assert!(!monitors.lock().reading);
    }
}
