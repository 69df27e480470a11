//! A client that holds on to one connected socket, and says what becomes of it.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::thread::sleep;
use std::time::Duration;

use anyhow::Result;
use sluice_tests::interrupt;

/// Between attempts to connect, and between looks for a signal.
const PAUSE: Duration = Duration::from_millis(50);

/// Connects, asks once, then waits on the socket for ever; prints what happens, a line each:
/// `answered BODY`, `woken ERROR`, `refused ERROR`. What was woken or refused connects anew.
pub(crate) fn stick(target: SocketAddr, tcp: bool) -> Result<()> {
    interrupt::take_over()?;
    let mut last = String::new();
    while !interrupt::interrupted() {
        let line = match if tcp { hold_tcp(target) } else { hold_udp(target) } {
            Ok(error) => format!("woken {:?}", error.kind()),
            Err(error) => format!("refused {:?}", error.kind()),
        };
        // Refused twenty times a second is said once.
        if line.starts_with("woken") || line != last {
            println!("{line}");
        }
        last = line;
        sleep(PAUSE);
    }
    Ok(())
}

/// The error that ended the wait; `Err` where it did not come to that.
fn hold_udp(target: SocketAddr) -> std::io::Result<std::io::Error> {
    let any: SocketAddr = if target.is_ipv4() { ([0; 4], 0).into() } else { ([0; 16], 0).into() };
    let socket = UdpSocket::bind(any)?;
    socket.connect(target)?;
    socket.set_read_timeout(Some(PAUSE))?;
    socket.send(b"hello")?;
    let mut buffer = [0; 2048];
    wait(|| {
        let length = socket.recv(&mut buffer)?;
        println!("answered {}", String::from_utf8_lossy(&buffer[..length]));
        Ok(())
    })
}

fn hold_tcp(target: SocketAddr) -> std::io::Result<std::io::Error> {
    let mut socket = TcpStream::connect(target)?;
    socket.set_read_timeout(Some(PAUSE))?;
    socket.write_all(b"GET / HTTP/1.1\r\nHost: stick\r\n\r\n")?;
    let mut buffer = [0; 2048];
    wait(|| match socket.read(&mut buffer)? {
        0 => Err(ErrorKind::UnexpectedEof.into()),
        length => {
            println!(
                "answered {}",
                String::from_utf8_lossy(&buffer[..length]).replace("\r\n", " ")
            );
            Ok(())
        }
    })
}

fn wait(mut read: impl FnMut() -> std::io::Result<()>) -> std::io::Result<std::io::Error> {
    loop {
        match read() {
            Ok(()) => {}
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(error) => return Ok(error),
        }
        if interrupt::interrupted() {
            return Err(ErrorKind::Interrupted.into());
        }
    }
}
