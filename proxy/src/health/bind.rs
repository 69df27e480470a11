//! Addresses to listen on, as kube-proxy's flags give them.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

/// Port of `/healthz` where the flag names none.
pub const HEALTHZ_PORT: u16 = 10256;
/// Port of `/metrics` where the flag names none.
pub const METRICS_PORT: u16 = 10249;

/// An address and port, or nothing: the server is off.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BindAddress(pub Option<SocketAddr>);

/// The text is no address.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0:?} is not ADDRESS:PORT, ADDRESS or empty")]
pub struct BindAddressError(String);

impl BindAddress {
    /// From a flag: `ADDRESS:PORT`, `ADDRESS` with `port`, or empty for off.
    ///
    /// # Errors
    ///
    /// Anything else; names are not resolved.
    pub fn parse(text: &str, port: u16) -> Result<Self, BindAddressError> {
        if text.is_empty() {
            return Ok(Self(None));
        }
        let bare = text.strip_prefix('[').and_then(|t| t.strip_suffix(']')).unwrap_or(text);
        let with_port = text.parse::<SocketAddr>().ok();
        with_port
            .or_else(|| bare.parse::<IpAddr>().ok().map(|addr| SocketAddr::new(addr, port)))
            .map(|addr| Self(Some(addr)))
            .ok_or_else(|| BindAddressError(text.to_owned()))
    }

    /// For `--healthz-bind-address`.
    ///
    /// # Errors
    ///
    /// As [`BindAddress::parse`].
    pub fn healthz(text: &str) -> Result<Self, BindAddressError> {
        Self::parse(text, HEALTHZ_PORT)
    }

    /// For `--metrics-bind-address`.
    ///
    /// # Errors
    ///
    /// As [`BindAddress::parse`].
    pub fn metrics(text: &str) -> Result<Self, BindAddressError> {
        Self::parse(text, METRICS_PORT)
    }
}

impl fmt::Display for BindAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(addr) => addr.fmt(f),
            None => f.write_str("off"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_may_lack_its_port_and_nothing_is_off() {
        let parsed = |text| BindAddress::healthz(text).map(|bind| bind.to_string());
        assert_eq!(parsed("127.0.0.1:80").as_deref(), Ok("127.0.0.1:80"));
        assert_eq!(parsed("0.0.0.0").as_deref(), Ok("0.0.0.0:10256"));
        assert_eq!(parsed("::").as_deref(), Ok("[::]:10256"));
        assert_eq!(parsed("[::1]").as_deref(), Ok("[::1]:10256"));
        assert_eq!(parsed("[::1]:9").as_deref(), Ok("[::1]:9"));
        assert_eq!(parsed("").as_deref(), Ok("off"));
        for bad in ["localhost", "1.2.3.4:70000", "1.2.3", ":x"] {
            assert_eq!(parsed(bad), Err(BindAddressError(bad.to_owned())));
        }
    }
}
