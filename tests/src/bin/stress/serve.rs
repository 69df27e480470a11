//! The servers: every port is an endpoint of its own.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};

use anyhow::{Context, Result};

use crate::{ANSWER, REQUEST};

#[derive(clap::Args)]
pub(crate) struct Serve {
    /// Address to listen on
    address: IpAddr,
    /// First port
    port: u16,
    /// How many ports
    count: u16,
    /// Number of the first port's endpoint; the others follow
    number: u32,
}

/// Answers until killed.
pub(crate) fn serve(options: &Serve) -> Result<()> {
    std::thread::scope(|scope| {
        for index in 0..options.count {
            let at = SocketAddr::new(options.address, options.port + index);
            let number = options.number + u32::from(index);
            let listener = TcpListener::bind(at).with_context(|| format!("bind TCP {at}"))?;
            let socket = UdpSocket::bind(at).with_context(|| format!("bind UDP {at}"))?;
            scope.spawn(move || {
                loop {
                    // A client that was stopped leaves broken connections; they are its own affair.
                    let _ = listener.accept().and_then(|(stream, _)| tcp(stream, number));
                }
            });
            scope.spawn(move || {
                loop {
                    let _ = udp(&socket, number);
                }
            });
        }
        println!("listening");
        Ok(())
    })
}

/// The server closes first: TIME_WAIT stays here, where the next SYN from the same port takes over.
fn tcp(mut stream: TcpStream, number: u32) -> std::io::Result<()> {
    let mut request = [0; REQUEST];
    stream.read_exact(&mut request)?;
    stream.write_all(&answer(request, number))
}

fn udp(socket: &UdpSocket, number: u32) -> std::io::Result<()> {
    let mut request = [0; REQUEST];
    let (_, from) = socket.recv_from(&mut request)?;
    socket.send_to(&answer(request, number), from).map(drop)
}

fn answer(request: [u8; REQUEST], number: u32) -> [u8; ANSWER] {
    let mut answer = [0; ANSWER];
    answer[..REQUEST].copy_from_slice(&request);
    answer[REQUEST..].copy_from_slice(&number.to_be_bytes());
    answer
}
