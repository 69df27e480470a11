//! Which endpoints a Service port has.

use std::net::IpAddr;
use std::sync::Arc;

use sluice_abi::{Addr, Backend, Be16};
use sluice_model::{Conditions, Endpoint, IpFamily, Protocol};

/// The family of an address as the kernel's tables have it: an IPv4-mapped IPv6 address is IPv4.
pub(crate) fn family(addr: &IpAddr) -> IpFamily {
    if Addr::from(*addr).is_v4() { IpFamily::V4 } else { IpFamily::V6 }
}

/// The backends that new connections to a service port of that name and protocol may get, for a
/// frontend of that family: sorted, each once.
///
/// They are those of the ready endpoints; if none is ready, those that are terminating but still
/// serve, so that a rollout that takes the last ready pod away loses no connection ([KEP-1669]).
/// An endpoint that lists the port under several numbers counts as several backends.
///
/// [KEP-1669]: https://github.com/kubernetes/enhancements/tree/master/keps/sig-network/1669-proxy-terminating-endpoints
pub(crate) fn choose(
    endpoints: &[Endpoint],
    port: &str,
    protocol: Protocol,
    family: IpFamily,
) -> Arc<[Backend]> {
    let ready = collect(endpoints, port, protocol, family, |c| c.ready);
    if !ready.is_empty() {
        return ready.into();
    }
    collect(endpoints, port, protocol, family, |c| c.serving && c.terminating).into()
}

fn collect(
    endpoints: &[Endpoint],
    port: &str,
    protocol: Protocol,
    wanted: IpFamily,
    usable: impl Fn(&Conditions) -> bool,
) -> Vec<Backend> {
    let mut found: Vec<(IpAddr, u16)> = Vec::new();
    for endpoint in endpoints {
        if family(&endpoint.addr) != wanted || !usable(&endpoint.conditions) {
            continue;
        }
        for served in &endpoint.ports {
            if served.name == port
                && served.protocol == protocol
                && let Some(number) = served.port.filter(|number| *number != 0)
            {
                found.push((endpoint.addr, number));
            }
        }
    }
    found.sort_unstable();
    found.dedup();
    found
        .into_iter()
        .map(|(addr, number)| Backend {
            addr: addr.into(),
            port: Be16::new(number),
            proto: protocol.number(),
            flags: 0,
        })
        .collect()
}

#[cfg(test)]
mod tests;
