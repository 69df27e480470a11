//! Identities: addresses of which the rules in force say the same.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::naming::Naming;
use super::net::Net;
use crate::ids::Ids;

/// A peer that an address is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) struct Element {
    /// The peer's number.
    pub(super) peer: u32,
    /// The port that the address has by the peer's name for it; 0 for a peer without.
    pub(super) port: u16,
}

/// All that rules say of an address, sorted.
pub(super) type Class = Box<[Element]>;

#[derive(Clone, Debug)]
struct Identity {
    class: Class,
    nets: BTreeSet<Net>,
}

#[derive(Clone, Debug, Default)]
struct Prefix {
    /// The blocks whose range this is.
    cidr_of: BTreeSet<u32>,
    /// The blocks whose hole this is.
    except_of: BTreeSet<u32>,
    /// What it is in the kernel's table; `None`: it is not.
    identity: Option<u32>,
}

impl Prefix {
    fn is_bound(&self) -> bool {
        !self.cidr_of.is_empty() || !self.except_of.is_empty()
    }
}

/// Which prefix has which identity, and which identity is what.
#[derive(Clone, Debug, Default)]
pub(super) struct Classes {
    ids: Ids,
    by_class: HashMap<Class, u32>,
    identities: BTreeMap<u32, Identity>,
    naming: Naming,
    prefixes: BTreeMap<Net, Prefix>,
    /// How many prefixes are bounds of blocks, by their length.
    lengths: BTreeMap<u8, u32>,
    /// Numbers to prefer, from before a restart.
    hints: HashMap<Class, u32>,
}

impl Classes {
    /// Begins with numbers above those in use, but prefers the given ones.
    pub(super) fn prefer(&mut self, used: impl Iterator<Item = u32>, hints: HashMap<Class, u32>) {
        self.ids = Ids::after(used);
        self.hints = hints;
    }

    /// Enters a block; returns the prefixes whose class this changes.
    pub(super) fn add_block(&mut self, peer: u32, cidr: Net, except: &[Net]) -> Vec<Net> {
        self.bind(cidr, |prefix| {
            prefix.cidr_of.insert(peer);
        });
        for hole in except {
            self.bind(*hole, |prefix| {
                prefix.except_of.insert(peer);
            });
        }
        self.inside(cidr)
    }

    /// Takes a block out; returns the prefixes whose class this changes.
    pub(super) fn remove_block(&mut self, peer: u32, cidr: Net, except: &[Net]) -> Vec<Net> {
        self.bind(cidr, |prefix| {
            prefix.cidr_of.remove(&peer);
        });
        for hole in except {
            self.bind(*hole, |prefix| {
                prefix.except_of.remove(&peer);
            });
        }
        self.inside(cidr)
    }

    fn inside(&self, net: Net) -> Vec<Net> {
        let there = self.prefixes.range(net.span()).map(|(inner, _)| *inner);
        there.filter(|inner| net.contains(*inner)).collect()
    }

    fn bind(&mut self, net: Net, change: impl FnOnce(&mut Prefix)) {
        let prefix = self.prefixes.entry(net).or_default();
        let before = prefix.is_bound();
        change(prefix);
        let count = self.lengths.entry(net.len()).or_default();
        match (before, prefix.is_bound()) {
            (false, true) => *count += 1,
            (true, false) => *count -= 1,
            _ => {}
        }
        if *count == 0 {
            self.lengths.remove(&net.len());
        }
    }

    /// The blocks that a prefix is in.
    pub(super) fn blocks(&self, net: Net, found: &mut Vec<Element>) {
        let (mut inside, mut holes) = (BTreeSet::new(), BTreeSet::new());
        for len in self.lengths.range(..=net.len()).map(|(len, _)| *len) {
            let Some(prefix) = self.prefixes.get(&net.widened(len)) else { continue };
            inside.extend(&prefix.cidr_of);
            holes.extend(&prefix.except_of);
        }
        found.extend(inside.difference(&holes).map(|peer| Element { peer: *peer, port: 0 }));
    }

    /// Whether the prefix is a bound of a block, so that it needs an identity of its own.
    pub(super) fn is_bound(&self, net: Net) -> bool {
        self.prefixes.get(&net).is_some_and(Prefix::is_bound)
    }

    /// The identity of a prefix in the kernel's table.
    pub(super) fn identity(&self, net: Net) -> Option<u32> {
        self.prefixes.get(&net)?.identity
    }

    /// The identity of a class, and whether it is new.
    pub(super) fn intern(&mut self, class: Class) -> (u32, bool) {
        if class.is_empty() {
            return (0, false);
        }
        if let Some(number) = self.by_class.get(&class) {
            return (*number, false);
        }
        let identities = &self.identities;
        let number = match self.hints.remove(&class) {
            Some(number) => number,
            None => self.ids.allocate(|n| identities.contains_key(&n)),
        };
        self.naming.add(class.iter().map(|element| element.peer), number);
        self.by_class.insert(class.clone(), number);
        self.identities.insert(number, Identity { class, nets: BTreeSet::new() });
        (number, true)
    }

    /// Counts a prefix among those of the identity that it is about to get.
    pub(super) fn join(&mut self, net: Net, identity: Option<u32>) {
        if let Some(identity) = identity.and_then(|identity| self.identities.get_mut(&identity)) {
            identity.nets.insert(net);
        }
    }

    /// Gives a prefix another identity, or none, after [`Classes::join`]; returns the class of the old one and its number if
    /// nothing has it any more.
    pub(super) fn assign(&mut self, net: Net, identity: Option<u32>) -> Option<(u32, Class)> {
        let prefix = self.prefixes.entry(net).or_default();
        let old = std::mem::replace(&mut prefix.identity, identity);
        if identity.is_none() && !prefix.is_bound() {
            self.prefixes.remove(&net);
        }
        let old = old.filter(|old| Some(*old) != identity)?;
        let entry = self.identities.get_mut(&old)?;
        entry.nets.remove(&net);
        if !entry.nets.is_empty() {
            return None;
        }
        let class = self.identities.remove(&old)?.class;
        self.by_class.remove(&class);
        self.naming.remove(class.iter().map(|element| element.peer), old);
        Some((old, class))
    }

    /// The identities that are that peer.
    pub(super) fn of_peer(&self, peer: u32) -> impl Iterator<Item = u32> + use<'_> {
        self.naming.of(peer)
    }

    /// The prefixes that have an identity which is that peer.
    pub(super) fn nets_of_peer(&self, peer: u32) -> impl Iterator<Item = Net> + use<'_> {
        let identities = self.of_peer(peer).filter_map(|number| self.identities.get(&number));
        identities.flat_map(|identity| identity.nets.iter().copied())
    }

    /// What an identity is.
    pub(super) fn class(&self, identity: u32) -> &[Element] {
        self.identities.get(&identity).map_or(&[], |identity| &identity.class)
    }

    /// Every identity: number, class, and one of the prefixes that have it.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, &Class, Net)> {
        let entries = self.identities.iter();
        entries.filter_map(|(number, identity)| {
            Some((*number, &identity.class, *identity.nets.first()?))
        })
    }
}
