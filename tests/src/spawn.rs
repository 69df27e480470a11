//! Closing a socket for good, in a process that starts others.

use std::{
    io::Result,
    process::{Child, Command},
    sync::{PoisonError, RwLock},
};

/// Held by whoever starts a process: shared, since many may.
static STARTING: RwLock<()> = RwLock::new(());

/// Starts a process, as [`Command::spawn`] does; all of this crate does it here.
///
/// # Errors
/// Those of [`Command::spawn`].
pub fn spawn(command: &mut Command) -> Result<Child> {
    let _starting = STARTING.read().unwrap_or_else(PoisonError::into_inner);
    // It returns after the child's `exec`.
    command.spawn()
}

/// Waits until the sockets that were closed before are closed for good.
///
/// A process that another thread is starting has copies of all descriptors of this one until its
/// `exec`: a socket that was closed here lives on there for that moment, with its address.
pub fn settle() {
    drop(STARTING.write().unwrap_or_else(PoisonError::into_inner));
}

/// Closes something, for good.
pub fn close<T>(open: T) {
    drop(open);
    settle();
}

/// Binds an address that a socket may have had which was just closed.
///
/// # Errors
/// Those of `bind`.
pub fn bind<T>(bind: impl FnOnce() -> Result<T>) -> Result<T> {
    settle();
    bind()
}

#[cfg(test)]
mod tests {
    use std::{
        net::UdpSocket,
        sync::atomic::{AtomicBool, Ordering},
    };

    use super::*;

    /// Without the wait it fails within a few hundred rounds.
    #[test]
    fn an_address_is_free_once_its_socket_is_closed() -> anyhow::Result<()> {
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| -> Result<()> {
                while !done.load(Ordering::Relaxed) {
                    spawn(&mut Command::new("true"))?.wait()?;
                }
                Ok(())
            });
            let rounds = || -> Result<()> {
                let address = UdpSocket::bind("127.0.0.1:0")?.local_addr()?;
                for _ in 0..300 {
                    bind(|| UdpSocket::bind(address))?;
                }
                Ok(())
            };
            let result = rounds();
            done.store(true, Ordering::Relaxed);
            Ok(result?)
        })
    }
}
