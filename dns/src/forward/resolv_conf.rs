//! `/etc/resolv.conf`: the name servers in it (resolv.conf(5)).

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::Path;

use hickory_proto::rr::Name;

use super::Target;

/// The port of DNS.
pub const PORT: u16 = 53;

/// The name servers of a file's text, in order, and the lines that name none although they should.
pub fn name_servers(text: &str) -> (Vec<SocketAddr>, Vec<String>) {
    let (mut servers, mut wrong) = (Vec::new(), Vec::new());
    for line in text.lines() {
        let mut words = line.split_whitespace();
        if words.next() != Some("nameserver") {
            continue;
        }
        // A scope such as `fe80::1%eth0` has a meaning in its own network namespace only.
        match words.next().and_then(|word| word.parse::<IpAddr>().ok()) {
            Some(addr) => servers.push(SocketAddr::new(addr, PORT)),
            None => wrong.push(line.trim().to_owned()),
        }
    }
    (servers, wrong)
}

/// The name servers of a file; what is wrong with it is logged.
pub fn read(path: &Path) -> Vec<SocketAddr> {
    let shown = path.display();
    match std::fs::read_to_string(path) {
        Ok(text) => {
            let (servers, wrong) = name_servers(&text);
            for line in wrong {
                tracing::warn!("{shown}: {line:?} names no address that can be asked");
            }
            servers
        }
        Err(error) => {
            tracing::warn!("cannot read {shown}: {error}");
            Vec::new()
        }
    }
}

/// The search list of a file without the domains of the cluster: what the pods' own search lists end
/// with. Empty where there is none.
pub fn search(path: &Path, apex: &Name) -> Vec<Name> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    search_list(&text).into_iter().filter(|name| !apex.zone_of(name)).collect()
}

/// The search list of a file's text: the last line that has one counts (resolv.conf(5)).
fn search_list(text: &str) -> Vec<Name> {
    let mut list = Vec::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        if !matches!(words.next(), Some("search" | "domain")) {
            continue;
        }
        list = words
            .filter_map(|word| Name::from_ascii(word).ok())
            .map(|mut name| {
                name.set_fqdn(true);
                name
            })
            .filter(|name| !name.is_root())
            .collect();
    }
    list
}

/// Upstreams without this server itself, as bound to these addresses.
pub fn without_self(mut upstreams: Vec<Target>, own: &[SocketAddr]) -> Vec<Target> {
    upstreams.retain(|upstream| {
        let own = own.iter().any(|own| is_self(upstream.addr, *own));
        if own {
            tracing::warn!("upstream {upstream} is this server itself, and is left out");
        }
        !own
    });
    upstreams
}

/// Whether an upstream is this very server, as bound to `listen`: it would ask itself for ever.
pub fn is_self(upstream: SocketAddr, listen: SocketAddr) -> bool {
    if upstream.port() != listen.port() {
        return false;
    }
    if !listen.ip().is_unspecified() {
        return upstream.ip() == listen.ip();
    }
    // Only an address of this host can be bound.
    upstream.is_ipv4() == listen.is_ipv4() && UdpSocket::bind((upstream.ip(), 0)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// D12: the default upstreams are those of `/etc/resolv.conf`.
    #[test]
    fn name_servers_are_read_in_order_and_wrong_lines_told() {
        let text = "# nameserver 9.9.9.9\nsearch example.org\nnameserver 10.0.0.53\n\
                    nameserver\tfd00::53\nnameserver fe80::1%eth0\nnameserver\noptions ndots:5\n";
        let (servers, wrong) = name_servers(text);
        assert_eq!(servers, ["10.0.0.53:53", "[fd00::53]:53"].map(|a| a.parse().expect("addr")));
        assert_eq!(wrong, ["nameserver fe80::1%eth0", "nameserver"]);
    }

    /// D14: pods inherit the node's search list; the last one of a file counts.
    #[test]
    fn the_search_list_is_the_last_one() {
        let text = "search old.example\nnameserver 10.0.0.1\nsearch a.example B.example .\n";
        let names: Vec<_> = search_list(text).iter().map(ToString::to_string).collect();
        assert_eq!(names, ["a.example.", "B.example."]);
    }

    #[test]
    fn an_upstream_that_is_this_server_is_recognised() {
        let addr = |text: &str| text.parse::<SocketAddr>().expect("an address");
        assert!(is_self(addr("127.0.0.1:5353"), addr("127.0.0.1:5353")));
        assert!(is_self(addr("127.0.0.1:5353"), addr("0.0.0.0:5353")));
        assert!(!is_self(addr("127.0.0.1:53"), addr("0.0.0.0:5353")));
        assert!(!is_self(addr("127.0.0.2:53"), addr("127.0.0.1:53")));
        // TEST-NET-1 is nobody's address.
        assert!(!is_self(addr("192.0.2.1:53"), addr("0.0.0.0:53")));
    }
}
