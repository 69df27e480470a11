//! Which sockets are connected to a backend that is gone. Pure.

use std::collections::HashMap;

use sluice_abi::{
    Addr, Be16, Frontend, FrontendKey, SLOTS_PER_CHUNK, Scope, SlotKey, SockPeer, proto,
};
use sluice_model::{Conditions, Endpoint, ObjectName};
use sluice_plan::Tables;

use crate::dataplane::SocketKind;

/// A socket to be destroyed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Doomed {
    /// Cookie of its network namespace.
    pub netns: u64,
    /// What it is.
    pub kind: SocketKind,
    /// Port of the backend that it is connected to.
    pub port: Be16,
    /// Address of that backend.
    pub addr: Addr,
    /// Number of that backend.
    pub backend: u32,
    /// Its cookie.
    pub cookie: u64,
}

/// The sockets of that kind whose backend is gone.
///
/// A datagram socket is doomed where the service has nothing at the address any more that the socket
/// was connected to (the Service was deleted, or the port), or where its backend is neither among
/// those that new connections go to nor an endpoint that serves. One that is terminating and serves
/// on is kept, so that what speaks QUIC may say goodbye.
///
/// A stream is doomed only where its endpoint is gone for good: not while it is terminating, not for
/// being unready, and not where the whole Service is gone, since that says nothing of its pods.
///
/// `endpoints` are those of a Service, all of them; `None` where there is no such Service.
pub fn doomed(
    kind: SocketKind,
    peers: &[(u64, SockPeer)],
    tables: &Tables,
    endpoints: impl FnMut(&ObjectName) -> Option<Vec<Endpoint>>,
) -> Vec<Doomed> {
    let mut view = View { kind, tables, endpoints, asked: HashMap::new(), lists: HashMap::new() };
    peers
        .iter()
        .filter(|(_, peer)| !view.stays(peer))
        .map(|(cookie, peer)| Doomed {
            netns: peer.netns,
            kind,
            port: peer.backend_port,
            addr: peer.backend_addr,
            backend: peer.backend,
            cookie: *cookie,
        })
        .collect()
}

/// The state of things, and what was found out about it already: many sockets have one backend.
struct View<'a, F> {
    kind: SocketKind,
    tables: &'a Tables,
    endpoints: F,
    /// Endpoints of a Service.
    asked: HashMap<ObjectName, Option<Vec<Endpoint>>>,
    /// Whether a list has a backend.
    lists: HashMap<(u32, u32), bool>,
}

impl<F: FnMut(&ObjectName) -> Option<Vec<Endpoint>>> View<'_, F> {
    fn stays(&mut self, peer: &SockPeer) -> bool {
        let proto = match self.kind {
            SocketKind::Stream => proto::TCP,
            SocketKind::Datagram => proto::UDP,
        };
        let key =
            FrontendKey { addr: peer.addr, port: peer.port, proto, scope: Scope::Internal as u8 };
        let frontend = self.tables.frontends.get(&key).copied();
        if let Some(frontend) = frontend
            && self.lists(&frontend, peer)
        {
            return true;
        }
        match self.kind {
            SocketKind::Datagram => frontend.is_some_and(|frontend| {
                self.has_endpoint(frontend.service, peer, proto, |c| c.ready || c.serving)
                    .unwrap_or(false)
            }),
            SocketKind::Stream => {
                self.has_endpoint(peer.service, peer, proto, |_| true).unwrap_or(true)
            }
        }
    }

    /// Whether new connections may go to the backend.
    fn lists(&mut self, frontend: &Frontend, peer: &SockPeer) -> bool {
        if frontend.count == 0 {
            return false;
        }
        if frontend.list == peer.list {
            return true;
        }
        let tables = self.tables;
        *self.lists.entry((frontend.list, peer.backend)).or_insert_with(|| {
            (0..frontend.count.div_ceil(SLOTS_PER_CHUNK)).any(|chunk| {
                let slots = tables.slots.get(&SlotKey { list: frontend.list, chunk });
                slots.is_some_and(|slots| slots.backend.contains(&peer.backend))
            })
        })
    }

    /// Whether the Service that has the number has the backend among its endpoints; `None` where
    /// there is no such Service.
    fn has_endpoint(
        &mut self,
        service: u32,
        peer: &SockPeer,
        proto: u8,
        lives: impl Fn(Conditions) -> bool,
    ) -> Option<bool> {
        let (namespace, name, port) = self.tables.names.get(&service)?.parts();
        let service = ObjectName::new(namespace, name);
        let Self { asked, endpoints, .. } = self;
        let endpoints = asked.entry(service).or_insert_with_key(endpoints).as_ref()?;
        Some(endpoints.iter().any(|endpoint| {
            Addr::from(endpoint.addr) == peer.backend_addr
                && lives(endpoint.conditions)
                && endpoint.ports.iter().any(|served| {
                    served.name == port
                        && served.protocol.number() == proto
                        && served.port == Some(peer.backend_port.get())
                })
        }))
    }
}

#[cfg(test)]
mod tests;
