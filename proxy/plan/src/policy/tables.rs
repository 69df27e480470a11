//! The kernel's policy tables as userspace sees them, and the operations that change them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Write as _};
use std::net::IpAddr;

use sluice_abi::{Addr, Be16, CidrKey, PolicyKey, PolicySets, proto};

/// What the kernel's policy maps hold.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct PolicyTables {
    /// The identity of each prefix; the longest that has an address counts, and an address that none
    /// has is [`PolicyKey::ANYBODY`].
    pub identities: BTreeMap<CidrKey, u32>,
    /// What each set allows each identity.
    pub rules: BTreeSet<PolicyKey>,
    /// What each set denies each identity, though a shorter key of `rules`, or one for anybody, would allow
    /// it. No key is in both.
    pub denials: BTreeSet<PolicyKey>,
    /// The sets of each pod of this node, by the interface index of its host-side veth.
    pub sets: BTreeMap<u32, PolicySets>,
}

/// One change to one element of one map. Every operation may be done twice, and an element that is
/// to be deleted may be gone already.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PolicyOp {
    /// Allows something.
    PutRule(PolicyKey),
    /// Denies something of what else would be allowed.
    PutDenial(PolicyKey),
    /// Allows or denies it no more.
    DeleteRule(PolicyKey),
    /// Gives a prefix an identity, or another one: the one atomic write that changes what an address
    /// may do.
    PutIdentity(CidrKey, u32),
    /// Takes it back; the next shorter prefix counts then.
    DeleteIdentity(CidrKey),
    /// Gives the pod at that interface its sets: the one atomic write that changes what it allows.
    PutSets(u32, PolicySets),
    /// The interface is gone.
    DeleteSets(u32),
}

impl PolicyTables {
    /// Does to these tables what [`PolicyOp`] does to the kernel's.
    pub fn apply(&mut self, op: &PolicyOp) {
        match *op {
            PolicyOp::PutRule(key) => {
                self.denials.remove(&key);
                self.rules.insert(key);
            }
            PolicyOp::PutDenial(key) => {
                self.rules.remove(&key);
                self.denials.insert(key);
            }
            PolicyOp::DeleteRule(key) => {
                self.rules.remove(&key);
                self.denials.remove(&key);
            }
            PolicyOp::PutIdentity(key, identity) => {
                self.identities.insert(key, identity);
            }
            PolicyOp::DeleteIdentity(key) => {
                self.identities.remove(&key);
            }
            PolicyOp::PutSets(ifindex, sets) => {
                self.sets.insert(ifindex, sets);
            }
            PolicyOp::DeleteSets(ifindex) => {
                self.sets.remove(&ifindex);
            }
        }
    }

    /// The identity of an address, as the programs look it up.
    pub fn identity(&self, addr: IpAddr) -> u32 {
        let Addr(words) = Addr::from(addr);
        (0..=128_u32)
            .rev()
            .find_map(|len| {
                let mut prefix = words;
                for (i, word) in prefix.iter_mut().enumerate() {
                    let bits = len.saturating_sub(32 * i as u32).min(32);
                    let mask = if bits == 0 { 0 } else { u32::MAX << (32 - bits) };
                    *word = (u32::from_be(*word) & mask).to_be();
                }
                self.identities.get(&CidrKey { prefix_len: len, addr: Addr(prefix) }).copied()
            })
            .unwrap_or(PolicyKey::ANYBODY)
    }

    /// Whether a set allows a peer, as the programs look it up. `port` is that of the destination;
    /// both are 0 for protocols without ports.
    pub fn allows(&self, set: u32, peer: IpAddr, proto: u8, port: u16) -> bool {
        let allows = |(_, allows): (PolicyKey, bool)| allows;
        set == PolicySets::OPEN || self.matching(set, peer, proto, port).is_some_and(allows)
    }

    /// The rule of a set that decides on a peer, as the programs look it up, and whether it allows; `None`:
    /// none does, and nothing is allowed.
    pub fn matching(
        &self,
        set: u32,
        peer: IpAddr,
        proto: u8,
        port: u16,
    ) -> Option<(PolicyKey, bool)> {
        let identities = [self.identity(peer), PolicyKey::ANYBODY];
        let lengths = (PolicyKey::ANY..=PolicyKey::PORT).rev();
        let mut keys = identities.into_iter().flat_map(|identity| {
            lengths.clone().map(move |prefix_len| {
                let bits = prefix_len.saturating_sub(PolicyKey::PROTO);
                let mask = if bits == 0 { 0 } else { u16::MAX << (16 - bits) };
                let proto = if prefix_len == PolicyKey::ANY { 0 } else { proto };
                let port = Be16::new(port & mask);
                PolicyKey { prefix_len, set, identity, proto, reserved: 0, port }
            })
        });
        keys.find_map(|key| self.says(&key).map(|allows| (key, allows)))
    }

    /// Whether a key allows or denies; `None`: it is not there.
    fn says(&self, key: &PolicyKey) -> Option<bool> {
        let denies = || self.denials.contains(key).then_some(false);
        self.rules.contains(key).then_some(true).or_else(denies)
    }

    /// A rule for people: `set 3 allows identity 4 TCP 80`.
    pub fn rule_text(key: &PolicyKey, allows: bool) -> String {
        Rule(key, allows).to_string()
    }

    /// A prefix for people: `10.0.0.0/8`.
    pub fn prefix_text(key: &CidrKey) -> String {
        Prefix(key).to_string()
    }

    /// The keys of a set, or of a set and one identity, each with whether it allows.
    pub fn of(
        &self,
        set: u32,
        identities: std::ops::RangeInclusive<u32>,
    ) -> impl Iterator<Item = (PolicyKey, bool)> + use<'_> {
        let bound = |identity, end: bool| PolicyKey {
            prefix_len: if end { u32::MAX } else { 0 },
            set,
            identity,
            proto: if end { u8::MAX } else { 0 },
            reserved: 0,
            port: Be16::new(if end { u16::MAX } else { 0 }),
        };
        let range = bound(*identities.start(), false)..=bound(*identities.end(), true);
        let rules = self.rules.range(range.clone()).map(|key| (*key, true));
        rules.chain(self.denials.range(range).map(|key| (*key, false)))
    }

    /// One line an element, for people and golden files.
    pub fn dump(&self) -> String {
        let mut out = String::new();
        for (key, identity) in &self.identities {
            let _ = writeln!(out, "identity {} is {identity}", Prefix(key));
        }
        for key in &self.rules {
            let _ = writeln!(out, "{}", Rule(key, true));
        }
        for key in &self.denials {
            let _ = writeln!(out, "{}", Rule(key, false));
        }
        for (ifindex, sets) in &self.sets {
            let _ = writeln!(out, "interface {ifindex} has {}", Sets(sets));
        }
        out
    }
}

struct Prefix<'a>(&'a CidrKey);

impl fmt::Display for Prefix<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let CidrKey { prefix_len, addr } = self.0;
        match addr.to_ip() {
            IpAddr::V4(v4) if *prefix_len >= 96 => write!(f, "{v4}/{}", prefix_len - 96),
            ip => write!(f, "{ip}/{prefix_len}"),
        }
    }
}

/// A key, and whether it allows.
struct Rule<'a>(&'a PolicyKey, bool);

impl fmt::Display for Rule<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(key, allows) = self;
        let verb = if *allows { "allows" } else { "denies" };
        write!(f, "set {} {verb} ", key.set)?;
        match key.identity {
            PolicyKey::ANYBODY => f.write_str("anybody")?,
            identity => write!(f, "identity {identity}")?,
        }
        if key.prefix_len == PolicyKey::ANY {
            return f.write_str(" everything");
        }
        match key.proto {
            proto::TCP => f.write_str(" TCP")?,
            proto::UDP => f.write_str(" UDP")?,
            proto::SCTP => f.write_str(" SCTP")?,
            other => write!(f, " protocol {other}")?,
        }
        let first = key.port.get();
        match key.prefix_len - PolicyKey::PROTO {
            0 => Ok(()),
            16 => write!(f, " {first}"),
            bits => write!(f, " {first}-{}", first | (u16::MAX >> bits)),
        }
    }
}

struct Sets<'a>(&'a PolicySets);

impl fmt::Display for Sets<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = |set| match set {
            PolicySets::OPEN => "open".to_owned(),
            PolicySets::CLOSED => "closed".to_owned(),
            number => format!("set {number}"),
        };
        write!(f, "in: {}, out: {}", name(self.0.ingress), name(self.0.egress))
    }
}

impl fmt::Display for PolicyOp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PutRule(key) => write!(f, "put: {}", Rule(key, true)),
            Self::PutDenial(key) => write!(f, "put: {}", Rule(key, false)),
            Self::DeleteRule(key) => write!(f, "delete: {}", Rule(key, true)),
            Self::PutIdentity(key, identity) => {
                write!(f, "put: identity {} is {identity}", Prefix(key))
            }
            Self::DeleteIdentity(key) => write!(f, "delete: identity {}", Prefix(key)),
            Self::PutSets(ifindex, sets) => {
                write!(f, "put: interface {ifindex} has {}", Sets(sets))
            }
            Self::DeleteSets(ifindex) => write!(f, "delete: interface {ifindex}"),
        }
    }
}
