//! What an upstream is called: `9.9.9.9`, `[2620:fe::fe]:5353`, `tls://9.9.9.9#dns.quad9.net`.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use rustls::pki_types::ServerName;

use super::resolv_conf;
use crate::tls;

/// An upstream resolver: where it is, and how it is spoken to.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Target {
    /// Its address.
    pub addr: SocketAddr,
    /// The name that its certificate has to be for, where it is spoken to over TLS.
    pub tls: Option<ServerName<'static>>,
}

impl From<SocketAddr> for Target {
    fn from(addr: SocketAddr) -> Self {
        Self { addr, tls: None }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.tls {
            None => self.addr.fmt(f),
            Some(name) => write!(f, "tls://{}#{}", self.addr, name.to_str()),
        }
    }
}

impl FromStr for Target {
    type Err = String;

    /// `[dns://]ADDR[:PORT]`, port 53 by default, or `tls://ADDR[:PORT][#NAME]`, port 853 by default.
    /// Without a name the certificate has to be for the address.
    fn from_str(text: &str) -> Result<Self, String> {
        let (secure, rest) = match text.split_once("://") {
            None | Some(("dns", _)) => (false, text.strip_prefix("dns://").unwrap_or(text)),
            Some(("tls", rest)) => (true, rest),
            Some((scheme, _)) => {
                return Err(format!("{scheme}:// is not spoken here; there are dns:// and tls://"));
            }
        };
        let (place, name) = match rest.split_once('#') {
            Some((place, name)) if secure => (place, Some(name)),
            Some(_) => return Err("a name is for tls:// upstreams only".to_owned()),
            None => (rest, None),
        };
        let port = if secure { tls::PORT } else { resolv_conf::PORT };
        let bare = place.strip_prefix('[').and_then(|it| it.strip_suffix(']')).unwrap_or(place);
        let addr = match (place.parse::<SocketAddr>(), bare.parse::<IpAddr>()) {
            (Ok(addr), _) => addr,
            (_, Ok(ip)) => SocketAddr::new(ip, port),
            _ => {
                return Err(
                    "expected an address, such as 9.9.9.9, 9.9.9.9:5353, [2620:fe::fe]:53 \
                            or tls://9.9.9.9#dns.quad9.net; a name alone would need a resolver \
                            itself"
                        .to_owned(),
                );
            }
        };
        if addr.ip().is_unspecified() || addr.port() == 0 {
            return Err("this is no address that can be asked".to_owned());
        }
        if !secure {
            return Ok(addr.into());
        }
        let name = match name {
            None => ServerName::IpAddress(addr.ip().into()),
            Some(name) => ServerName::try_from(name.trim_end_matches('.').to_owned())
                .map_err(|_| format!("{name:?} is no name that a certificate could be for"))?,
        };
        Ok(Self { addr, tls: Some(name) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// D12: upstreams over TLS have a name, or go by their address.
    #[test]
    fn upstreams_are_read_and_written() {
        for (text, expected) in [
            ("9.9.9.9", "9.9.9.9:53"),
            ("dns://9.9.9.9:5353", "9.9.9.9:5353"),
            ("[2620:fe::fe]", "[2620:fe::fe]:53"),
            ("tls://9.9.9.9", "tls://9.9.9.9:853#9.9.9.9"),
            ("tls://9.9.9.9:8853#dns.quad9.net.", "tls://9.9.9.9:8853#dns.quad9.net"),
            ("tls://2620:fe::fe#dns.quad9.net", "tls://[2620:fe::fe]:853#dns.quad9.net"),
        ] {
            let target: Target = text.parse().expect(text);
            assert_eq!(target.to_string(), expected);
            assert_eq!(expected.parse(), Ok(target));
        }
    }

    #[test]
    fn what_is_no_upstream_is_told_why() {
        for (text, expected) in [
            ("dns.example", "expected an address"),
            ("tls://dns.example", "expected an address"),
            ("tls://0.0.0.0", "no address that can be asked"),
            ("9.9.9.9#dns.quad9.net", "tls:// upstreams only"),
            ("https://9.9.9.9", "https:// is not spoken here"),
            ("tls://9.9.9.9#a..b", "no name that a certificate"),
        ] {
            let error = text.parse::<Target>().expect_err(text);
            assert!(error.contains(expected), "{error}");
        }
    }
}
