//! As much of HTTP/1.1 as two ends of one program need.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail};

/// Longest head or body that is read, in bytes.
const LIMIT: u64 = 64 * 1024;

/// `[http://]HOST:PORT[/PATH]`, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Target {
    /// Name or address, without brackets.
    pub(crate) host: String,
    /// Port, 80 where none is given.
    pub(crate) port: u16,
    /// Path with its slash.
    pub(crate) path: String,
}

impl std::str::FromStr for Target {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let rest = text.strip_prefix("http://").unwrap_or(text);
        let (authority, path) = match rest.find('/') {
            Some(at) => rest.split_at(at),
            None => (rest, "/"),
        };
        let (host, port) = match authority.strip_prefix('[') {
            Some(bracketed) => {
                let (host, rest) = bracketed.split_once(']').context("a bracket is not closed")?;
                (host, rest.strip_prefix(':').unwrap_or("80"))
            }
            None => authority.rsplit_once(':').unwrap_or((authority, "80")),
        };
        if host.is_empty() {
            bail!("{text}: no host");
        }
        let port = port.parse().with_context(|| format!("{text}: port {port}"))?;
        Ok(Self { host: host.to_owned(), port, path: path.to_owned() })
    }
}

/// The head of a message: its first line, and the two headers that matter here.
struct Head {
    first: String,
    length: u64,
    close: bool,
}

/// Reads a head; `None` where the peer closed before its first byte.
fn read_head(reader: &mut impl BufRead) -> Result<Option<Head>> {
    let mut head = Head { first: String::new(), length: 0, close: false };
    let mut limited = reader.take(LIMIT);
    loop {
        let mut line = String::new();
        if limited.read_line(&mut line).context("read")? == 0 {
            if head.first.is_empty() {
                return Ok(None);
            }
            bail!("read: the connection was closed within a message");
        }
        let line = line.trim_end();
        if head.first.is_empty() {
            line.clone_into(&mut head.first);
        } else if line.is_empty() {
            return Ok(Some(head));
        } else if let Some((name, value)) = line.split_once(':') {
            let value = value.trim();
            if name.eq_ignore_ascii_case("content-length") {
                head.length = value.parse().context("content-length")?;
            } else if name.eq_ignore_ascii_case("connection") {
                head.close = value.eq_ignore_ascii_case("close");
            }
        }
    }
}

/// A request as a server sees it.
pub(crate) struct Request {
    /// The path.
    pub(crate) path: String,
    /// The client will not send another one.
    pub(crate) close: bool,
}

/// Reads the next request; `None` where the client closed.
pub(crate) fn read_request(reader: &mut BufReader<TcpStream>) -> Result<Option<Request>> {
    let Some(head) = read_head(reader)? else { return Ok(None) };
    let path = head.first.split(' ').nth(1).context("not an HTTP request")?.to_owned();
    std::io::copy(&mut reader.take(head.length.min(LIMIT)), &mut std::io::sink())?;
    Ok(Some(Request { path, close: head.close }))
}

/// Writes a JSON response in one segment.
pub(crate) fn respond(stream: &mut TcpStream, status: &str, body: &str, close: bool) -> Result<()> {
    let connection = if close { "close" } else { "keep-alive" };
    let message = format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: {connection}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(message.as_bytes()).context("write")
}

/// A client's connection.
pub(crate) struct Connection {
    reader: BufReader<TcpStream>,
    used: bool,
}

/// A response: status code, body, and whether the server closes.
pub(crate) struct Response {
    /// For example 200.
    pub(crate) status: u16,
    /// All of it.
    pub(crate) body: String,
    /// The connection cannot be used again.
    pub(crate) close: bool,
}

impl Connection {
    /// Connects; `timeout` holds for this and for every read and write.
    pub(crate) fn open(address: SocketAddr, timeout: Duration) -> Result<Self> {
        let stream = TcpStream::connect_timeout(&address, timeout).context("connect")?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(timeout))?;
        stream.set_write_timeout(Some(timeout))?;
        Ok(Self { reader: BufReader::new(stream), used: false })
    }

    /// True once a request was answered on it: an idle connection may be closed by the server at any time.
    pub(crate) fn used(&self) -> bool {
        self.used
    }

    /// One request and its response.
    pub(crate) fn get(&mut self, host: &str, path: &str, keep_alive: bool) -> Result<Response> {
        let connection = if keep_alive { "keep-alive" } else { "close" };
        let message =
            format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: {connection}\r\n\r\n");
        self.reader.get_mut().write_all(message.as_bytes()).context("write")?;
        let head = read_head(&mut self.reader)?.context("read: closed without an answer")?;
        let status = head.first.split(' ').nth(1).and_then(|code| code.parse().ok());
        let status = status.with_context(|| format!("not an HTTP response: {}", head.first))?;
        let mut body = String::new();
        self.reader.by_ref().take(head.length.min(LIMIT)).read_to_string(&mut body)?;
        self.used = true;
        Ok(Response { status, body, close: head.close })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_taken_apart() {
        let parse = |text: &str| {
            let target: Target = text.parse().unwrap();
            (target.host, target.port, target.path)
        };
        assert_eq!(parse("10.96.0.1:80"), ("10.96.0.1".into(), 80, "/".into()));
        assert_eq!(parse("http://web.shop:8080/a/b"), ("web.shop".into(), 8080, "/a/b".into()));
        assert_eq!(parse("[fd00::1]:81/x"), ("fd00::1".into(), 81, "/x".into()));
        assert_eq!(parse("http://web"), ("web".into(), 80, "/".into()));
        for bad in ["", "http://", "web:x", "web:70000", "[::1"] {
            assert!(bad.parse::<Target>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_head_that_ends_early_is_an_error_and_a_closed_peer_is_not() {
        assert!(read_head(&mut &b""[..]).unwrap().is_none());
        assert!(read_head(&mut &b"GET / HTTP/1.1\r\nHost: a\r\n"[..]).is_err());
        let head = read_head(
            &mut &b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\nCONNECTION: Close\r\n\r\n"[..],
        );
        let head = head.unwrap().unwrap();
        assert_eq!((head.length, head.close), (5, true));
    }
}
