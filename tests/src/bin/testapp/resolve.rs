//! Names to addresses: by the system's resolver, or by one DNS server, since `/etc/resolv.conf` belongs to a mount
//! namespace that these pods do not have.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, ToSocketAddrs, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use hickory_proto::op::{Message, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, RecordType};

/// As the resolver of a pod has it: names with fewer dots are tried with the search domains first.
const NDOTS: usize = 5;

/// The address of a DNS server, port 53 where none is given.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Server(SocketAddr);

impl std::str::FromStr for Server {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        if let Ok(address) = text.parse::<IpAddr>() {
            return Ok(Self(SocketAddr::new(address, 53)));
        }
        Ok(Self(text.parse().with_context(|| format!("{text}: ADDRESS or ADDRESS:PORT"))?))
    }
}

/// The first address of `host`, IPv4 before IPv6.
pub(crate) fn resolve(
    host: &str,
    port: u16,
    server: Option<&Server>,
    search: &[String],
    timeout: Duration,
) -> Result<SocketAddr> {
    if let Ok(address) = host.parse::<IpAddr>() {
        return Ok(SocketAddr::new(address, port));
    }
    let Some(server) = server else {
        let mut found =
            (host, port).to_socket_addrs().with_context(|| format!("resolve {host}"))?;
        return found.next().with_context(|| format!("resolve {host}: no address"));
    };
    let mut last = format!("resolve {host}: no such name");
    for name in candidates(host, search) {
        for kind in [RecordType::A, RecordType::AAAA] {
            match ask(server.0, &name, kind, timeout)? {
                Answer::Address(address) => return Ok(SocketAddr::new(address, port)),
                Answer::NoData => {}
                Answer::Refused(code) => {
                    last = format!("resolve {name}: {code}");
                    break;
                }
            }
        }
    }
    bail!(last)
}

/// The full names to try, in order, as resolv.conf(5) says.
fn candidates(host: &str, search: &[String]) -> Vec<String> {
    if host.ends_with('.') {
        return vec![host.to_owned()];
    }
    let mut names: Vec<String> =
        search.iter().map(|domain| format!("{host}.{}.", domain.trim_end_matches('.'))).collect();
    let absolute = format!("{host}.");
    if host.matches('.').count() >= NDOTS {
        names.insert(0, absolute);
    } else {
        names.push(absolute);
    }
    names
}

enum Answer {
    Address(IpAddr),
    NoData,
    Refused(ResponseCode),
}

fn ask(server: SocketAddr, name: &str, kind: RecordType, timeout: Duration) -> Result<Answer> {
    let mut query = Message::query();
    query.metadata.recursion_desired = true;
    query.add_query(Query::query(Name::from_ascii(name).context("name")?, kind));
    let bytes = query.to_vec().context("encode the query")?;
    let mut reply = over_udp(server, &bytes, query.metadata.id, timeout)
        .with_context(|| format!("ask {server} for {name}"))?;
    if reply.metadata.truncation {
        reply = over_tcp(server, &bytes, timeout)
            .with_context(|| format!("ask {server} over TCP for {name}"))?;
    }
    if reply.metadata.response_code != ResponseCode::NoError {
        return Ok(Answer::Refused(reply.metadata.response_code));
    }
    // A CNAME's target comes in the same answer, whatever its name is.
    let address = reply.answers.iter().find_map(|record| match &record.data {
        RData::A(a) => Some(IpAddr::V4(a.0)),
        RData::AAAA(aaaa) => Some(IpAddr::V6(aaaa.0)),
        _ => None,
    });
    Ok(address.map_or(Answer::NoData, Answer::Address))
}

fn over_udp(server: SocketAddr, query: &[u8], id: u16, timeout: Duration) -> Result<Message> {
    let any: SocketAddr = if server.is_ipv4() { ([0; 4], 0).into() } else { ([0; 16], 0).into() };
    let socket = UdpSocket::bind(any)?;
    socket.connect(server)?;
    // Two tries, as stub resolvers do.
    socket.set_read_timeout(Some(timeout / 2))?;
    let mut buffer = [0; 4096];
    let mut last = None;
    for _ in 0..2 {
        socket.send(query)?;
        match socket.recv(&mut buffer) {
            Ok(length) => {
                let message = Message::from_vec(&buffer[..length])?;
                if message.metadata.id == id {
                    return Ok(message);
                }
            }
            Err(error) => last = Some(error),
        }
    }
    match last {
        Some(error) => Err(error).context("no answer"),
        None => bail!("the answer has another query's ID"),
    }
}

fn over_tcp(server: SocketAddr, query: &[u8], timeout: Duration) -> Result<Message> {
    let mut stream = TcpStream::connect_timeout(&server, timeout)?;
    stream.set_read_timeout(Some(timeout))?;
    let length = u16::try_from(query.len()).context("query length")?;
    stream.write_all(&[&length.to_be_bytes(), query].concat())?;
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut reply = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut reply)?;
    Ok(Message::from_vec(&reply)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn search_domains_come_first_for_names_with_few_dots() {
        let search = ["shop.svc.cluster.local".to_owned(), "cluster.local".to_owned()];
        assert_eq!(
            candidates("web", &search),
            ["web.shop.svc.cluster.local.", "web.cluster.local.", "web."]
        );
        assert_eq!(candidates("a.b.c.d.e.f", &search)[0], "a.b.c.d.e.f.");
        assert_eq!(candidates("web.", &search), ["web."]);
    }
}
