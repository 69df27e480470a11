//! A directory of manifests, watched with inotify.
//!
//! Files named `*.yaml`, `*.yml` and `*.json` directly in the directory are read, as `kubectl apply
//! -f DIR` does; files whose name begins with a dot are not, nor are the temporary files of editors.
//! A ConfigMap or Secret mounted as a directory works: its files are symbolic links through `..data`,
//! which is replaced whole.

mod files;
mod packed;
mod state;
#[cfg(test)]
mod tests;
mod watch;

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};
use tracing::{debug, info, warn};

use crate::source::backoff::Backoff;
use crate::stream::{Closed, Sink};
use crate::{Event, SourceOptions};
use files::{Files, Identity};
use state::Manifests;
use watch::{Seen, Watch};

/// How long to wait for more after the first sign of a change: one `kubectl` or one ConfigMap update
/// makes several. What was closed or renamed is whole, so waiting longer would only make it late.
const GATHER: Duration = Duration::from_millis(1);

/// How long to wait for a file that went: an editor may be about to write it anew.
const DEBOUNCE: Duration = Duration::from_millis(10);

/// How often all files are looked at (not read), in case of changes that inotify does not tell: on a
/// network file system, or behind a symbolic link that leads out of the directory.
const LOOK: Duration = Duration::from_secs(10);

/// When such a look finds a file changed that has not been written to for this long, it is complete.
const SETTLED: Duration = Duration::from_secs(2);

/// How often to see whether the directory itself is there, or is another one now.
const LOOK_FOR_DIRECTORY: Duration = Duration::from_millis(500);

/// First and longest wait for a directory that cannot be read.
const RETRY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_millis(500));

/// A directory of manifests.
#[derive(Debug)]
pub(crate) struct Source {
    path: PathBuf,
    manifests: Manifests,
    /// See [`SourceOptions::in_place`].
    in_place: bool,
}

/// Why watching ended.
enum End {
    /// Nobody reads any more.
    Closed,
    /// The directory went away or cannot be read.
    Lost(io::Error),
    /// Another directory has its name now.
    Replaced,
}

impl From<Closed> for End {
    fn from(_: Closed) -> Self {
        Self::Closed
    }
}

impl From<io::Error> for End {
    fn from(error: io::Error) -> Self {
        Self::Lost(error)
    }
}

impl Source {
    pub(crate) fn new(path: PathBuf, options: &SourceOptions) -> Self {
        let manifests = Manifests::new(options.kinds.clone());
        Self { path, manifests, in_place: options.in_place }
    }

    /// Reads and watches until nobody reads the stream any more.
    pub(crate) async fn run(mut self, sink: Sink) {
        let mut backoff = Backoff::new(RETRY.0, RETRY.1);
        loop {
            match self.follow(&sink, &mut backoff).await {
                End::Closed => return,
                End::Replaced => {
                    info!(path = %self.path.display(), "the manifest directory is another one now");
                }
                End::Lost(error) => {
                    let error = format!("{}: {error}", self.path.display());
                    if sink.disconnected(&error) {
                        warn!("cannot read the manifest directory: {error}; what was read stays");
                    }
                    tokio::select! {
                        () = sleep(backoff.next()) => {}
                        () = sink.closed() => return,
                    }
                }
            }
        }
    }

    /// Lists the directory and then follows its changes.
    async fn follow(&mut self, sink: &Sink, backoff: &mut Backoff) -> End {
        match self.try_follow(sink, backoff).await {
            Ok(end) | Err(end) => end,
        }
    }

    async fn try_follow(&mut self, sink: &Sink, backoff: &mut Backoff) -> Result<End, End> {
        let identity = Identity::of(&self.path)?;
        // Watched before it is read: what changes in between is read again.
        let mut watch = Watch::new(&self.path)?;
        let (mut files, listed) = self.read(Files::new(&self.path), |files| files.scan(None)).await;
        self.manifests.relist(listed?);
        sink.connected();
        sink.send(Event::Init).await?;
        sink.send_all(self.manifests.all()).await?;
        sink.send(Event::InitDone).await?;
        backoff.reset();
        debug!(path = %self.path.display(), "listed the manifest directory");

        let mut look_at = Instant::now() + LOOK;
        loop {
            let mut seen = Seen::default();
            let mut look = false;
            tokio::select! {
                () = sink.closed() => return Ok(End::Closed),
                event = watch.next() => {
                    seen.add(event?, &self.path);
                    let first = Instant::now();
                    let quiet = |seen: &Seen| first + if seen.gone { DEBOUNCE } else { GATHER };
                    while let Ok(event) = timeout_at(quiet(&seen), watch.next()).await {
                        seen.add(event?, &self.path);
                    }
                }
                () = sleep(LOOK_FOR_DIRECTORY) => {
                    if Identity::of(&self.path)? != identity {
                        return Ok(End::Replaced);
                    }
                    look = Instant::now() >= look_at;
                    if !look {
                        continue;
                    }
                    look_at = Instant::now() + LOOK;
                }
            }
            if seen.directory_gone {
                // Either it is really gone, and this says so, or there is a new one.
                Identity::of(&self.path)?;
                return Ok(End::Replaced);
            }
            let (read, changed) = self
                .read(files, move |files| {
                    let mut changed = files.read_named(seen.files);
                    if seen.everything || look {
                        changed.extend(files.scan(look.then_some(SETTLED))?);
                    }
                    Ok::<_, io::Error>(changed)
                })
                .await;
            files = read;
            sink.send_all(self.manifests.change(changed?)).await?;
        }
    }

    /// Reads and parses off the runtime's own threads, unless told otherwise: a large directory takes a
    /// while.
    async fn read<T: Send + 'static>(
        &self,
        mut files: Files,
        read: impl FnOnce(&mut Files) -> T + Send + 'static,
    ) -> (Files, T) {
        if self.in_place {
            let result = read(&mut files);
            return (files, result);
        }
        let task = tokio::task::spawn_blocking(move || {
            let result = read(&mut files);
            (files, result)
        });
        match task.await {
            Ok(result) => result,
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            // The runtime shuts down, and with it whoever waits here.
            Err(_) => std::future::pending().await,
        }
    }
}
