//! Checks of single values, and the error that names the field.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use sluice_model::{IpFamily, Protocol};

/// A field whose value is wrong.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{field}: {reason}")]
pub struct FieldError {
    /// The field's path in the object, such as `spec.ports[1].port`.
    pub field: String,
    /// What is wrong with it, with the bad value.
    pub reason: String,
}

impl FieldError {
    pub(super) fn new(field: impl fmt::Display, reason: impl fmt::Display) -> Self {
        Self { field: field.to_string(), reason: reason.to_string() }
    }
}

/// 1 to 65535.
pub(super) fn port(field: impl fmt::Display, value: i32) -> Result<u16, FieldError> {
    u16::try_from(value)
        .ok()
        .filter(|&port| port != 0)
        .ok_or_else(|| FieldError::new(field, format_args!("{value} is not 1 to 65535")))
}

/// 1 to 65535; 0 means none.
pub(super) fn optional_port(
    field: impl fmt::Display,
    value: i32,
) -> Result<Option<u16>, FieldError> {
    if value == 0 { Ok(None) } else { port(field, value).map(Some) }
}

/// Empty means TCP.
pub(super) fn protocol(field: impl fmt::Display, value: &str) -> Result<Protocol, FieldError> {
    match value {
        "" | "TCP" => Ok(Protocol::Tcp),
        "UDP" => Ok(Protocol::Udp),
        "SCTP" => Ok(Protocol::Sctp),
        _ => Err(unknown(field, value, "TCP, UDP or SCTP")),
    }
}

/// A word that is none of those that the field may have.
pub(super) fn unknown(field: impl fmt::Display, value: &str, known: &str) -> FieldError {
    FieldError::new(field, format_args!("{value:?} is not {known}"))
}

/// An address in its usual notation. Octets with leading zeros are refused: some programs read them
/// as octal (CVE-2021-29923). So are IPv4 addresses mapped into IPv6, which would be a second name
/// for the same address.
pub(super) fn addr(field: impl fmt::Display, value: &str) -> Result<IpAddr, FieldError> {
    match value.parse() {
        Ok(IpAddr::V6(v6)) if v6.to_ipv4_mapped().is_some() => Err(FieldError::new(
            field,
            format_args!("{value:?} is an IPv4 address mapped into IPv6"),
        )),
        Ok(addr) => Ok(addr),
        Err(_) => Err(FieldError::new(field, format_args!("{value:?} is not an IP address"))),
    }
}

/// An address that packets of one connection can be sent to.
pub(super) fn unicast(field: impl fmt::Display, value: &str) -> Result<IpAddr, FieldError> {
    let parsed = addr(&field, value)?;
    let what = if parsed.is_unspecified() {
        "the unspecified address"
    } else if parsed.is_multicast() {
        "a multicast address"
    } else if parsed == IpAddr::from([255, 255, 255, 255]) {
        "the broadcast address"
    } else {
        return Ok(parsed);
    };
    Err(FieldError::new(field, format_args!("{value:?} is {what}")))
}

/// A unicast address that a node may take over for a Service: not its own loopback, not link-local.
pub(super) fn virtual_addr(field: impl fmt::Display, value: &str) -> Result<IpAddr, FieldError> {
    let parsed = unicast(&field, value)?;
    let what = if parsed.is_loopback() {
        "a loopback address"
    } else if match parsed {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    } {
        "a link-local address"
    } else {
        return Ok(parsed);
    };
    Err(FieldError::new(field, format_args!("{value:?} is {what}")))
}

/// A prefix in CIDR notation; host bits are tolerated and cleared, as the API server does.
pub(super) fn cidr(field: impl fmt::Display, value: &str) -> Result<IpNet, FieldError> {
    let bad = || FieldError::new(&field, format_args!("{value:?} is not a CIDR"));
    // The address by the standard library's rules: `IpNet` itself would take leading zeros.
    let (addr, length) = value.split_once('/').ok_or_else(bad)?;
    let addr: IpAddr = addr.parse().map_err(|_| bad())?;
    if matches!(addr, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some()) {
        return Err(FieldError::new(
            &field,
            format_args!("{value:?} is an IPv4 prefix mapped into IPv6"),
        ));
    }
    let digits = (1..=3).contains(&length.len()) && length.bytes().all(|b| b.is_ascii_digit());
    let length = length.parse().ok().filter(|_| digits).ok_or_else(bad)?;
    Ok(IpNet::new(addr, length).map_err(|_| bad())?.trunc())
}

/// Refuses a second entry of one family.
pub(super) fn one_a_family<T: fmt::Display>(
    field: &str,
    entries: &[T],
    family: impl Fn(&T) -> IpFamily,
) -> Result<(), FieldError> {
    for (i, entry) in entries.iter().enumerate() {
        if entries[..i].iter().any(|other| family(other) == family(entry)) {
            let family = family_name(family(entry));
            return Err(FieldError::new(
                format_args!("{field}[{i}]"),
                format_args!("{entry} is a second {family} entry"),
            ));
        }
    }
    Ok(())
}

/// As Kubernetes spells a family.
pub(super) fn family_name(family: IpFamily) -> &'static str {
    match family {
        IpFamily::V4 => "IPv4",
        IpFamily::V6 => "IPv6",
    }
}

/// Converts a list entry by entry, into a list that takes no more room than it needs: there may be
/// hundreds of thousands of them.
pub(super) fn each<T, U, I>(
    entries: I,
    mut convert: impl FnMut(usize, T) -> Result<U, FieldError>,
) -> Result<Vec<U>, FieldError>
where
    I: IntoIterator<Item = T, IntoIter: ExactSizeIterator>,
{
    let entries = entries.into_iter();
    let mut converted = Vec::with_capacity(entries.len());
    for (i, entry) in entries.enumerate() {
        converted.push(convert(i, entry)?);
    }
    Ok(converted)
}

/// The text, unless it is empty.
pub(super) fn nonempty(text: String) -> Option<String> {
    (!text.is_empty()).then_some(text)
}
