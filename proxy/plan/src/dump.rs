//! The tables as text.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Write as _};
use std::net::{IpAddr, SocketAddr};

use sluice_abi::{
    Addr, Backend, BackendFlags, Be16, Frontend, FrontendFlags, FrontendKey, NodePortKey, Scope,
    ServiceName, Slots, SourceRangeKey, vip_filter_bit,
};
use sluice_model::Protocol;

use crate::frontends::is_any_port;
use crate::{MapOp, Tables, filter, lists};

impl Tables {
    /// The tables as they are, numbers and all: one element a line, in a stable order, without a
    /// line for what is empty.
    pub fn dump(&self) -> String {
        let mut out = String::new();
        for (key, frontend) in self.sorted_frontends() {
            line(&mut out, format_args!("frontend {} {}", Key(key), Value(frontend)));
        }
        for (key, slots) in &self.slots {
            line(&mut out, format_args!("list {}.{} {}", key.list, key.chunk, Chunk(slots)));
        }
        for (number, backend) in &self.backends {
            line(&mut out, format_args!("backend {number} {}", Target(backend)));
        }
        for (number, name) in &self.names {
            line(&mut out, format_args!("name {number} {}", Name(name)));
        }
        for key in self.sorted_ranges() {
            line(&mut out, format_args!("admit {} {}", key.service, Clients(key)));
        }
        for (key, service) in self.sorted_node_ports() {
            line(&mut out, format_args!("node-port {} service {service}", Port(key)));
        }
        for (word, bits) in &self.vip_filter {
            line(&mut out, format_args!("filter {word} {bits:#018x}"));
        }
        out
    }

    /// What the tables mean, whatever the numbers in them: each frontend with its backends, and then
    /// all that is wrong or left over. Two tables with the same text treat every connection alike.
    pub fn canonical(&self) -> String {
        let mut out = String::new();
        let lists = lists::by_list(&self.slots);
        let mut ranges: BTreeMap<u32, Vec<&SourceRangeKey>> = BTreeMap::new();
        for key in self.sorted_ranges() {
            ranges.entry(key.service).or_default().push(key);
        }
        for (key, frontend) in self.sorted_frontends() {
            let has = |flag: u32| frontend.flags & flag != 0;
            let name = match self.names.get(&frontend.service) {
                Some(name) => format!(" {}", Name(name)),
                None if has(FrontendFlags::ANY_PORT) && frontend.service == 0 => String::new(),
                None => " ?".to_owned(),
            };
            line(&mut out, format_args!("{}{name}{}", Key(key), Traits(frontend)));
            if has(FrontendFlags::SOURCE_RANGES) {
                for range in ranges.get(&frontend.service).into_iter().flatten() {
                    line(&mut out, format_args!("  admit {}", Clients(range)));
                }
            }
            if frontend.count == 0 {
                let word = if has(FrontendFlags::LOCAL_ONLY) { "drop" } else { "reject" };
                line(&mut out, format_args!("  {word}"));
            }
            let slots = lists.get(&frontend.list).map_or(&[][..], Vec::as_slice);
            let slots: BTreeMap<u32, &Slots> = slots.iter().copied().collect();
            for text in self.members(frontend, &slots) {
                line(&mut out, format_args!("  {text}"));
            }
        }
        for (key, _) in self.sorted_node_ports() {
            line(&mut out, format_args!("node-port {}", Port(key)));
        }
        for text in self.leftovers(&lists) {
            line(&mut out, format_args!("! {text}"));
        }
        out
    }

    /// Frontends by address as people sort them, not as their bytes lie in memory.
    fn sorted_frontends(&self) -> Vec<(&FrontendKey, &Frontend)> {
        let mut all: Vec<_> = self.frontends.iter().collect();
        all.sort_by_key(|(key, _)| (key.addr.to_ip(), key.port.get(), key.proto, key.scope));
        all
    }

    /// Admitted ranges by service number and address.
    fn sorted_ranges(&self) -> Vec<&SourceRangeKey> {
        let mut all: Vec<_> = self.source_ranges.iter().collect();
        all.sort_by_key(|key| (key.service, key.addr.to_ip(), key.prefix_len));
        all
    }

    /// Ports of the node by their number.
    fn sorted_node_ports(&self) -> Vec<(&NodePortKey, &u32)> {
        let mut all: Vec<_> = self.node_ports.iter().collect();
        all.sort_by_key(|(key, _)| (key.port.get(), key.proto));
        all
    }

    /// The backends of a frontend, sorted.
    fn members(&self, frontend: &Frontend, chunks: &BTreeMap<u32, &Slots>) -> Vec<String> {
        let mut found: Vec<(Option<(IpAddr, u16)>, String)> = Vec::new();
        // Damaged counts can be huge; what lies behind the last chunk is missing all the same.
        let end = chunks.keys().next_back().map_or(0, |last| last.saturating_add(1));
        let held = end.saturating_mul(lists::CHUNK as u32);
        for slot in 0..frontend.count.min(held) {
            let number = chunks
                .get(&(slot / lists::CHUNK as u32))
                .map_or(0, |slots| slots.backend[slot as usize % lists::CHUNK]);
            found.push(match self.backends.get(&number) {
                Some(backend) => {
                    (Some((backend.addr.to_ip(), backend.port.get())), Target(backend).to_string())
                }
                None => (None, "! no backend".to_owned()),
            });
        }
        if frontend.count > held {
            found.push((None, format!("! {} slots missing", frontend.count - held)));
        }
        let all = chunks.values().flat_map(|slots| lists::members(slots)).count();
        let surplus = all.saturating_sub(frontend.count as usize);
        if surplus > 0 {
            found.push((None, format!("! {surplus} slots too many")));
        }
        found.sort();
        found.into_iter().map(|(_, text)| text).collect()
    }

    /// What no frontend leads to, and what the filter has too much or too little.
    fn leftovers(&self, lists: &BTreeMap<u32, Vec<(u32, &Slots)>>) -> Vec<String> {
        let mut found = Vec::new();
        let used_lists: BTreeSet<u32> =
            self.frontends.values().map(|f| f.list).filter(|list| *list != 0).collect();
        for (list, chunks) in lists {
            let count = chunks.iter().flat_map(|(_, slots)| lists::members(slots)).count();
            if !used_lists.contains(list) {
                found.push(format!("unused list of {count} backends"));
            }
        }
        let used: BTreeSet<u32> = self.slots.values().flat_map(lists::members).collect();
        for (number, backend) in &self.backends {
            if !used.contains(number) {
                found.push(format!("unused backend {}", Target(backend)));
            }
        }
        let used: BTreeSet<u32> = self.frontends.values().map(|f| f.service).collect();
        for (number, name) in &self.names {
            if !used.contains(number) {
                found.push(format!("unused name {}", Name(name)));
            }
        }
        let mut values = BTreeSet::new();
        for backend in self.backends.values().filter(|backend| !values.insert(**backend)) {
            found.push(format!("several numbers for backend {}", Target(backend)));
        }
        // One number for each service port, and one service port for each number.
        let bearers: BTreeSet<(u32, u8)> =
            self.frontends.iter().map(|(key, f)| (f.service, key.proto)).collect();
        let mut ports = BTreeSet::new();
        let mut numbers = BTreeSet::new();
        for (number, proto) in bearers {
            let Some(name) = self.names.get(&number).map(|name| Name(name).to_string()) else {
                continue;
            };
            if !numbers.insert(number) {
                found.push(format!("several protocols for the number of {name}"));
            }
            if !ports.insert((name.clone(), proto)) {
                found.push(format!("several numbers for {name}"));
            }
        }
        let asking: BTreeSet<u32> = self
            .frontends
            .values()
            .filter(|f| f.flags & FrontendFlags::SOURCE_RANGES != 0)
            .map(|f| f.service)
            .collect();
        for key in self.source_ranges.iter().filter(|key| !asking.contains(&key.service)) {
            found.push(format!("unused range {}", Clients(key)));
        }
        for (key, frontend) in &self.frontends {
            let inside = FrontendKey { scope: Scope::Internal as u8, ..*key };
            let differs = |f: &Frontend| f.flags & FrontendFlags::EXTERNAL_DIFFERS != 0;
            if key.scope == Scope::External as u8
                && !self.frontends.get(&inside).is_some_and(differs)
            {
                found.push(format!("unused frontend {}", Key(key)));
            }
            let outside = FrontendKey { scope: Scope::External as u8, ..*key };
            if *key == inside && differs(frontend) && !self.frontends.contains_key(&outside) {
                found.push(format!("no frontend {}", Key(&outside)));
            }
        }
        let served: BTreeSet<(NodePortKey, u32)> = self
            .frontends
            .iter()
            .filter(|(_, f)| f.flags & FrontendFlags::NODE_PORT != 0)
            .map(|(key, f)| {
                (NodePortKey { port: key.port, proto: key.proto, reserved: 0 }, f.service)
            })
            .collect();
        for (key, service) in &self.node_ports {
            if !served.contains(&(*key, *service)) {
                found.push(format!("unused node-port {}", Port(key)));
            }
        }
        for (key, _) in served.iter().filter(|(key, _)| !self.node_ports.contains_key(key)) {
            found.push(format!("no node-port {}", Port(key)));
        }
        let wanted: BTreeMap<u32, IpAddr> = self
            .frontends
            .keys()
            .map(|key| (vip_filter_bit(&key.addr), key.addr.to_ip()))
            .collect();
        let set: BTreeSet<u32> = filter::bits(&self.vip_filter).collect();
        for (bit, addr) in &wanted {
            if !set.contains(bit) {
                found.push(format!("filter hides {addr}"));
            }
        }
        for bit in set.iter().filter(|bit| !wanted.contains_key(bit)) {
            found.push(format!("filter admits bit {bit} in vain"));
        }
        found.sort();
        found
    }
}

impl fmt::Display for MapOp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PutBackend(number, backend) => {
                write!(f, "put backend {number} {}", Target(backend))
            }
            Self::DeleteBackend(number) => write!(f, "delete backend {number}"),
            Self::PutSlots(key, slots) => {
                write!(f, "put list {}.{} {}", key.list, key.chunk, Chunk(slots))
            }
            Self::DeleteSlots(key) => write!(f, "delete list {}.{}", key.list, key.chunk),
            Self::PutName(number, name) => write!(f, "put name {number} {}", Name(name)),
            Self::DeleteName(number) => write!(f, "delete name {number}"),
            Self::SetFilterWord(word, bits) => write!(f, "set filter {word} {bits:#018x}"),
            Self::PutSourceRange(key) => {
                write!(f, "put admit {} {}", key.service, Clients(key))
            }
            Self::DeleteSourceRange(key) => {
                write!(f, "delete admit {} {}", key.service, Clients(key))
            }
            Self::PutNodePort(key, service) => {
                write!(f, "put node-port {} service {service}", Port(key))
            }
            Self::DeleteNodePort(key) => write!(f, "delete node-port {}", Port(key)),
            Self::PutFrontend(key, frontend) => {
                write!(f, "put frontend {} {}", Key(key), Value(frontend))
            }
            Self::DeleteFrontend(key) => write!(f, "delete frontend {}", Key(key)),
        }
    }
}

fn line(out: &mut String, text: fmt::Arguments<'_>) {
    // Writing to a String does not fail.
    let _ = writeln!(out, "{text}");
}

/// `10.96.0.10:53/UDP`, with the scope where it is not internal.
struct Key<'a>(&'a FrontendKey);

impl fmt::Display for Key<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let FrontendKey { addr, port, proto, scope } = *self.0;
        if is_any_port(&FrontendKey { scope: Scope::Internal as u8, ..*self.0 }) {
            write!(f, "{} any", addr.to_ip())?;
        } else {
            write!(f, "{}", Socket(addr, port, proto))?;
        }
        match scope {
            s if s == Scope::Internal as u8 => Ok(()),
            s if s == Scope::External as u8 => f.write_str(" external"),
            s => write!(f, " scope-{s}"),
        }
    }
}

/// `10.244.1.2:5353/UDP`.
struct Target<'a>(&'a Backend);

impl fmt::Display for Target<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Backend { addr, port, proto, flags } = *self.0;
        write!(f, "{}", Socket(addr, port, proto))?;
        match flags {
            0 => Ok(()),
            BackendFlags::LOCAL => f.write_str(" local"),
            flags => write!(f, " flags {flags:#x}"),
        }
    }
}

/// Address, port and protocol.
struct Socket(Addr, Be16, u8);

impl fmt::Display for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/", SocketAddr::new(self.0.to_ip(), self.1.get()))?;
        match Protocol::from_number(self.2) {
            Some(protocol) => write!(f, "{protocol}"),
            None => write!(f, "{}", self.2),
        }
    }
}

/// `203.0.113.0/24`.
struct Clients<'a>(&'a SourceRangeKey);

impl fmt::Display for Clients<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let SourceRangeKey { prefix_len, addr, .. } = *self.0;
        let before = if addr.is_v4() { 32 + 96 } else { 32 };
        match prefix_len.checked_sub(before) {
            Some(len) => write!(f, "{}/{len}", addr.to_ip()),
            None => write!(f, "{} of {prefix_len} bits", addr.to_ip()),
        }
    }
}

/// `30080/TCP`.
struct Port<'a>(&'a NodePortKey);

impl fmt::Display for Port<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/", self.0.port.get())?;
        match Protocol::from_number(self.0.proto) {
            Some(protocol) => write!(f, "{protocol}"),
            None => write!(f, "{}", self.0.proto),
        }
    }
}

/// `-> service 1 list 2 count 3 cluster-ip affinity 10800s`.
struct Value<'a>(&'a Frontend);

impl fmt::Display for Value<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Frontend { service, list, count, .. } = self.0;
        write!(f, "service {service} list {list} count {count}{}", Traits(self.0))
    }
}

/// Flags and affinity, each after a blank.
struct Traits<'a>(&'a Frontend);

impl fmt::Display for Traits<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = self.0.flags;
        for (flag, word) in [
            (FrontendFlags::CLUSTER_IP, "cluster-ip"),
            (FrontendFlags::NODE_PORT, "node-port"),
            (FrontendFlags::EXTERNAL_IP, "external-ip"),
            (FrontendFlags::LOAD_BALANCER, "load-balancer"),
            (FrontendFlags::HOST_PORT, "host-port"),
            (FrontendFlags::ANY_PORT, "any-port"),
            (FrontendFlags::EXTERNAL_DIFFERS, "external-differs"),
            (FrontendFlags::LOCAL_ONLY, "local-only"),
            (FrontendFlags::SOURCE_RANGES, "source-ranges"),
        ] {
            if rest & flag != 0 {
                write!(f, " {word}")?;
                rest &= !flag;
            }
        }
        if rest != 0 {
            write!(f, " flags-{rest:#x}")?;
        }
        match self.0.affinity_secs {
            0 => Ok(()),
            secs => write!(f, " affinity {secs}s"),
        }
    }
}

/// The numbers in a chunk up to the last that is not 0.
struct Chunk<'a>(&'a Slots);

impl fmt::Display for Chunk<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let end = self.0.backend.iter().rposition(|n| *n != 0).map_or(0, |last| last + 1);
        let numbers: Vec<String> = self.0.backend[..end].iter().map(u32::to_string).collect();
        write!(f, "[{}]", numbers.join(" "))
    }
}

/// `kube-system/kube-dns:dns`.
struct Name<'a>(&'a ServiceName);

impl fmt::Display for Name<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (namespace, name, port) = self.0.parts();
        write!(f, "{namespace}/{name}")?;
        if port.is_empty() { Ok(()) } else { write!(f, ":{port}") }
    }
}

#[cfg(test)]
mod tests;
