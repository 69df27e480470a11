//! The collector of flows that have ended.
//!
//! The map evicts what was not used for longest when it is full; the collector removes what is over
//! before that, both entries of a flow together.

use std::{path::Path, time::Duration};

use sluice_abi::{Addr, CtEntry, CtFlags, CtKey, maps, proto};

use super::{
    Dataplane, DataplaneError,
    leaving::Leaving,
    map::{Map, Progress},
    remains::Remains,
    view::map_error,
};

/// How long a flow without packets is kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Timeouts {
    /// TCP, answered (kube-proxy's `--conntrack-tcp-timeout-established`).
    pub tcp_established: Duration,
    /// TCP, not answered.
    pub tcp_opening: Duration,
    /// TCP, one side has said that it is done (kube-proxy's `--conntrack-tcp-timeout-close-wait`).
    pub tcp_half_closed: Duration,
    /// TCP, reset or done on both sides.
    pub tcp_closed: Duration,
    /// UDP or ping, not answered.
    pub udp: Duration,
    /// UDP or ping, answered.
    pub udp_stream: Duration,
}

impl Default for Timeouts {
    /// As the kernel's connection tracker has them with kube-proxy's defaults.
    fn default() -> Self {
        Self {
            tcp_established: Duration::from_secs(86_400),
            tcp_opening: Duration::from_secs(120),
            tcp_half_closed: Duration::from_secs(3_600),
            tcp_closed: Duration::from_secs(10),
            udp: Duration::from_secs(30),
            udp_stream: Duration::from_secs(120),
        }
    }
}

impl Timeouts {
    /// That of a flow with these flags.
    fn of(&self, proto: u8, flags: u16) -> Duration {
        const BOTH: u16 = CtFlags::FIN_CLIENT | CtFlags::FIN_BACKEND;
        let replied = flags & CtFlags::REPLIED != 0;
        // An echo request says as little of its end as a datagram.
        if matches!(proto, proto::UDP | proto::ICMP | proto::ICMPV6) {
            return if replied { self.udp_stream } else { self.udp };
        }
        if flags & CtFlags::RST != 0 || flags & BOTH == BOTH {
            self.tcp_closed
        } else if flags & BOTH != 0 {
            self.tcp_half_closed
        } else if replied {
            self.tcp_established
        } else {
            self.tcp_opening
        }
    }
}

/// What the collector did.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Collected {
    /// Entries that were looked at.
    pub seen: usize,
    /// Entries that were removed.
    pub removed: usize,
}

/// The key of the flow's other entry.
pub(crate) fn partner(key: &CtKey, entry: &CtEntry) -> CtKey {
    let forward = key.flags & CtFlags::REVERSE == 0;
    // Of the client's two addresses, the one on the other side.
    let (client, client_port) = match (entry.flags & CtFlags::SNAT != 0, forward) {
        (true, _) => (entry.nat_addr, entry.nat_port),
        (false, true) => (key.src, key.sport),
        (false, false) => (key.dst, key.dport),
    };
    if forward {
        CtKey {
            src: entry.addr,
            dst: client,
            sport: entry.port,
            dport: client_port,
            proto: key.proto,
            flags: CtFlags::REVERSE,
            reserved: 0,
        }
    } else {
        CtKey {
            src: client,
            dst: entry.addr,
            sport: client_port,
            dport: entry.port,
            proto: key.proto,
            flags: 0,
            reserved: 0,
        }
    }
}

/// Whether `other` is the other entry of the flow and not that of a later one.
fn belongs(key: &CtKey, entry: &CtEntry, other_key: &CtKey, other: &CtEntry) -> bool {
    partner(other_key, other) == *key && other.backend == entry.backend
}

fn idle(now_ns: u64, last_seen: u64) -> Duration {
    Duration::from_nanos(now_ns.saturating_sub(last_seen))
}

impl Dataplane {
    /// Removes the flows from and to these addresses.
    pub(super) fn forget_flows(
        &self,
        is_one: &dyn Fn(&Addr) -> bool,
    ) -> Result<(), DataplaneError> {
        let map = &self.view.maps.conntrack;
        let mut keys = Vec::new();
        map.for_each(CtEntry::default(), |key, entry| {
            if concerns(key, entry, is_one) {
                keys.push(*key);
            }
        })
        .map_err(map_error(map, "read"))?;
        map.delete_all(&keys).map_err(|stopped| map_error(map, "delete from")(stopped.error))
    }

    /// The collector of this node's flows, which sees to those of pods that went, too. What it is to
    /// forget stands in `directory` meanwhile: what an agent before this one left there, and what comes.
    ///
    /// # Errors
    ///
    /// Where the pinned map cannot be opened, or the directory cannot be made or read.
    pub fn collector(&mut self, directory: &Path) -> Result<Collector, DataplaneError> {
        let leaving = Leaving::default();
        leaving.remember_in(directory).map_err(|source| DataplaneError::File {
            action: "read",
            path: directory.to_owned(),
            source,
        })?;
        self.leaving = Some(leaving.clone());
        self.collector_of(leaving)
    }

    fn collector_of(&self, leaving: Leaving) -> Result<Collector, DataplaneError> {
        let path = self.dirs.maps.join(maps::CONNTRACK);
        let map = Map::open(maps::CONNTRACK, &path, false)
            .map_err(|source| DataplaneError::File { action: "open", path, source })?;
        let remains = Remains::open(&self.dirs.maps)?;
        let (progress, pass) = (Progress::default(), Collected::default());
        Ok(Collector { map, progress, pass, begun: false, leaving, remains })
    }

    /// Goes through all flows at once; see [`Collector::step`].
    pub fn conntrack_gc(
        &mut self,
        now_ns: u64,
        timeouts: &Timeouts,
    ) -> Result<Collected, DataplaneError> {
        let mut collector = self.collector_of(Leaving::default())?;
        loop {
            if let Some(collected) = collector.step(now_ns, timeouts)? {
                return Ok(collected);
            }
        }
    }
}

/// Removes flows that were silent for longer than their time-out, some at a time: half a million of
/// them at once would keep a CPU busy for as long as people notice.
#[derive(Debug)]
pub struct Collector {
    map: Map<CtKey, CtEntry>,
    progress: Progress,
    pass: Collected,
    /// The pass is under way.
    begun: bool,
    leaving: Leaving,
    remains: Remains,
}

/// Whether a flow's entry tells of one of these addresses.
fn concerns(key: &CtKey, entry: &CtEntry, is_one: &dyn Fn(&Addr) -> bool) -> bool {
    let client = entry.flags & CtFlags::SNAT != 0 && is_one(&entry.nat_addr);
    is_one(&key.src) || is_one(&key.dst) || is_one(&entry.addr) || client
}

impl Collector {
    /// Waits until there are flows of pods that went, or for as long as that.
    pub fn wait(&self, at_most: Duration) {
        self.leaving.wait(at_most);
    }

    /// Looks at the next few thousand entries: of flows, and where a pod went, of what else was written
    /// down of it. `now_ns` is the monotonic clock (`CLOCK_MONOTONIC`) in nanoseconds, which is the clock
    /// of the entries. Says what was done to flows since the first entry, once it was the last; then it
    /// begins anew.
    ///
    /// Flows go on meanwhile: what was used since it was read is left alone.
    ///
    /// # Errors
    ///
    /// Where the kernel refuses to read or delete.
    pub fn step(
        &mut self,
        now_ns: u64,
        timeouts: &Timeouts,
    ) -> Result<Option<Collected>, DataplaneError> {
        let Self { map, progress, pass, begun, leaving, remains } = self;
        if !std::mem::replace(begun, true) {
            leaving.begin_pass();
        }
        if remains.are_due() {
            if !remains.step(leaving)? {
                return Ok(None);
            }
            leaving.end_pass();
            *begun = false;
            return Ok(Some(std::mem::take(pass)));
        }
        let shortest = timeouts.tcp_closed.min(timeouts.udp).min(timeouts.tcp_opening);
        let mut silent = Vec::new();
        let mut found = Vec::new();
        let watched = !leaving.is_empty();
        let last = map
            .visit_some(progress, CtEntry::default(), &mut |key, entry| {
                pass.seen += 1;
                if idle(now_ns, entry.last_seen) >= shortest {
                    silent.push((*key, *entry));
                }
                if watched {
                    found.push((*key, *entry));
                }
            })
            .map_err(map_error(map, "read"))?;
        // Whoever takes an address back finds its flows as they are, or gone.
        let forgotten = leaving.with(|is_leaving| {
            found.retain(|(key, entry)| concerns(key, entry, is_leaving));
            let keys: Vec<CtKey> = found.iter().map(|(key, _)| *key).collect();
            map.delete_all(&keys).map(|()| keys.len())
        });
        pass.removed +=
            forgotten.map_err(|stopped| map_error(map, "delete from")(stopped.error))?;

        for (key, seen) in silent {
            let read =
                |key: &CtKey| map.get(key, CtEntry::default()).map_err(map_error(map, "read"));
            // It went with its partner, or a packet came meanwhile.
            let Some(entry) = read(&key)? else { continue };
            if entry.last_seen != seen.last_seen {
                continue;
            }
            let other_key = partner(&key, &entry);
            let other = read(&other_key)?.filter(|other| belongs(&key, &entry, &other_key, other));
            let (last_seen, flags) = match other {
                Some(other) => (entry.last_seen.max(other.last_seen), entry.flags | other.flags),
                // Half a flow: the other half was evicted, so it cannot go on.
                None => (entry.last_seen, entry.flags | CtFlags::RST),
            };
            if idle(now_ns, last_seen) < timeouts.of(key.proto, flags) {
                continue;
            }
            let keys = if other.is_some() { vec![key, other_key] } else { vec![key] };
            for key in keys {
                if map.delete(&key).map_err(map_error(map, "delete from"))? {
                    pass.removed += 1;
                }
            }
        }
        if last && !leaving.is_empty() {
            remains.begin();
            return Ok(None);
        }
        if last {
            *begun = false;
        }
        Ok(last.then(|| std::mem::take(pass)))
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use sluice_abi::Be16;

    use super::*;

    fn addr(text: &str) -> Addr {
        text.parse::<IpAddr>().expect("an address").into()
    }

    fn flow() -> ((CtKey, CtEntry), (CtKey, CtEntry)) {
        let forward = CtKey {
            src: addr("10.244.1.5"),
            dst: addr("10.96.0.10"),
            sport: Be16::new(40000),
            dport: Be16::new(80),
            proto: proto::TCP,
            flags: 0,
            reserved: 0,
        };
        let to_backend = CtEntry {
            addr: addr("10.244.2.7"),
            port: Be16::new(8080),
            backend: 3,
            ..CtEntry::default()
        };
        let reverse = CtKey {
            src: addr("10.244.2.7"),
            dst: addr("10.244.1.5"),
            sport: Be16::new(8080),
            dport: Be16::new(40000),
            proto: proto::TCP,
            flags: CtFlags::REVERSE,
            reserved: 0,
        };
        let to_client = CtEntry {
            addr: addr("10.96.0.10"),
            port: Be16::new(80),
            backend: 3,
            ..CtEntry::default()
        };
        ((forward, to_backend), (reverse, to_client))
    }

    #[test]
    fn the_two_entries_of_a_flow_find_each_other() {
        let ((forward, to_backend), (reverse, to_client)) = flow();
        assert_eq!(partner(&forward, &to_backend), reverse);
        assert_eq!(partner(&reverse, &to_client), forward);
        assert!(belongs(&forward, &to_backend, &reverse, &to_client));
        assert!(belongs(&reverse, &to_client, &forward, &to_backend));
    }

    #[test]
    fn the_two_entries_of_a_flow_with_another_source_find_each_other() {
        let ((forward, to_backend), (reverse, to_client)) = flow();
        let (node, port) = (addr("172.31.0.11"), Be16::new(50_000));
        let flags = CtFlags::SNAT | CtFlags::EXTERNAL;
        let to_backend = CtEntry { nat_addr: node, nat_port: port, flags, ..to_backend };
        let reverse = CtKey { dst: node, dport: port, ..reverse };
        let to_client =
            CtEntry { nat_addr: forward.src, nat_port: forward.sport, flags, ..to_client };
        assert_eq!(partner(&forward, &to_backend), reverse);
        assert_eq!(partner(&reverse, &to_client), forward);
        assert!(belongs(&forward, &to_backend, &reverse, &to_client));
        // Another flow of the backend has got the port since.
        let later = CtEntry { nat_port: Be16::new(40_001), ..to_client };
        assert!(!belongs(&forward, &to_backend, &reverse, &later));
    }

    #[test]
    fn an_entry_of_a_later_flow_does_not_belong() {
        let ((forward, to_backend), (reverse, to_client)) = flow();
        let other_service = CtEntry { addr: addr("10.96.0.11"), ..to_client };
        assert!(!belongs(&forward, &to_backend, &reverse, &other_service));
        let other_backend = CtEntry { backend: 4, ..to_client };
        assert!(!belongs(&forward, &to_backend, &reverse, &other_backend));
    }

    #[test]
    fn timeouts_follow_what_was_seen() {
        let timeouts = Timeouts::default();
        let cases = [
            (proto::TCP, 0, timeouts.tcp_opening),
            (proto::TCP, CtFlags::REPLIED, timeouts.tcp_established),
            (proto::TCP, CtFlags::REPLIED | CtFlags::FIN_CLIENT, timeouts.tcp_half_closed),
            (proto::TCP, CtFlags::REPLIED | CtFlags::FIN_BACKEND, timeouts.tcp_half_closed),
            (proto::TCP, CtFlags::FIN_CLIENT | CtFlags::FIN_BACKEND, timeouts.tcp_closed),
            (proto::TCP, CtFlags::RST, timeouts.tcp_closed),
            (proto::SCTP, CtFlags::REPLIED, timeouts.tcp_established),
            (proto::SCTP, CtFlags::RST, timeouts.tcp_closed),
            (proto::UDP, 0, timeouts.udp),
            (proto::UDP, CtFlags::REPLIED, timeouts.udp_stream),
        ];
        for (proto, flags, expected) in cases {
            assert_eq!(timeouts.of(proto, flags), expected, "protocol {proto}, flags {flags:#x}");
        }
    }
}
