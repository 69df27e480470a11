//! Ctrl-C and SIGTERM: cleanup completes before the process goes.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};
use tokio::signal::unix::{SignalKind, signal};

static INTERRUPTED: AtomicBool = AtomicBool::new(false);
static INSTALLED: OnceLock<()> = OnceLock::new();

/// Runs `action` on a thread of its own when the first SIGINT or SIGTERM arrives, and only then.
///
/// The signal's number is passed on. The process does not end by itself; `action` decides.
///
/// # Errors
/// The handler could not be installed.
pub fn on_signal(action: impl FnOnce(i32) + Send + 'static) -> Result<()> {
    let (ready, installed) = std::sync::mpsc::channel();
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        let wait = || -> Result<i32> {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                let mut interrupt = signal(SignalKind::interrupt())?;
                let mut terminate = signal(SignalKind::terminate())?;
                // The receiver waits for this message; should it be gone, nobody cares.
                let _ = ready.send(());
                Ok(tokio::select! {
                    _ = interrupt.recv() => SignalKind::interrupt().as_raw_value(),
                    _ = terminate.recv() => SignalKind::terminate().as_raw_value(),
                })
            })
        };
        if let Ok(number) = wait() {
            INTERRUPTED.store(true, Ordering::SeqCst);
            action(number);
        }
    })?;
    installed.recv().context("the signal handler could not be installed")
}

/// True once SIGINT or SIGTERM has arrived and a handler was installed.
pub fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::SeqCst)
}

/// Installs, once a process, the handler that suits tests: remove everything this process made, then exit.
///
/// Fixtures call this. A program that wants an orderly end of its own calls [`take_over`] before its first fixture.
pub(crate) fn clean_up_on_signal() {
    INSTALLED.get_or_init(|| {
        // Without a handler the next run sweeps; nothing to report here.
        let _ = on_signal(|number| {
            // The tests run on meanwhile: what they were about to make is there after the first sweep.
            crate::names::close();
            while crate::sweep::own() > 0 {}
            std::process::exit(128 + number);
        });
    });
}

/// Installs a handler that only sets [`interrupted`], for programs with a main loop that ends in order.
///
/// # Errors
/// The handler could not be installed.
pub fn take_over() -> Result<()> {
    if INSTALLED.set(()).is_ok() { on_signal(|_| {}) } else { Ok(()) }
}
