//! Binding an address again that the same test had before.

use std::{
    io::{ErrorKind, Result},
    time::{Duration, Instant},
};

use crate::PATIENCE;

/// Binds, and tries again while the address is in use.
///
/// A process that another thread is starting has copies of all descriptors of this one until its
/// `exec`: a socket that was closed here lives on there for that moment, and so does its address.
///
/// # Errors
/// Any other error of `bind`, and `AddrInUse` after [`PATIENCE`].
pub fn bind<T>(mut bind: impl FnMut() -> Result<T>) -> Result<T> {
    let start = Instant::now();
    loop {
        match bind() {
            Err(error) if error.kind() == ErrorKind::AddrInUse && start.elapsed() < PATIENCE => {
                std::thread::sleep(Duration::from_millis(1));
            }
            result => return result,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;

    #[test]
    fn an_address_is_waited_for() -> Result<()> {
        let holder = UdpSocket::bind("127.0.0.1:0")?;
        let address = holder.local_addr()?;
        let mut holder = Some(holder);
        let mut refused = 0;
        let socket = bind(|| {
            UdpSocket::bind(address).inspect_err(|_| {
                refused += 1;
                if refused == 3 {
                    holder = None;
                }
            })
        })?;
        assert_eq!(socket.local_addr()?, address);
        assert_eq!(refused, 3);
        Ok(())
    }

    #[test]
    fn other_errors_come_at_once() {
        // An address of documentation, which no interface has.
        let error = bind(|| UdpSocket::bind("192.0.2.1:0")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AddrNotAvailable);
    }
}
