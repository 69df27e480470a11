//! Sets of rules, each for all pods that have the same.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use sluice_abi::{PolicyKey, PolicySets};

use super::classes::Element;
use super::naming::Naming;
use super::ports::{Ports, keys};
use super::tables::PolicyOp;
use super::tiers::{Content, Rules};
use crate::ids::Ids;

#[derive(Clone, Debug)]
struct Set {
    content: Content,
    uses: u32,
}

/// What rules name of a peer.
fn ports_of(rules: &Rules, peer: u32) -> impl Iterator<Item = Ports> + use<'_> {
    let from = rules.partition_point(|(other, _)| *other < peer);
    let rules = rules[from..].iter();
    rules.take_while(move |(other, _)| *other == peer).map(|(_, ports)| *ports)
}

/// The sets of the pods of this node.
#[derive(Clone, Debug, Default)]
pub(super) struct Sets {
    ids: Ids,
    by_content: HashMap<Content, u32>,
    sets: BTreeMap<u32, Set>,
    naming: Naming,
    /// Numbers to prefer, from before a restart.
    hints: HashMap<Content, u32>,
}

impl Sets {
    /// Begins with numbers above those in use, but prefers the given ones.
    pub(super) fn prefer(&mut self, used: impl Iterator<Item = u32>, hints: HashMap<Content, u32>) {
        self.ids = Ids::after(used.filter(|number| *number != PolicySets::CLOSED));
        self.hints = hints;
    }

    /// Counts one more pod that has the set; its number, and whether it is new.
    pub(super) fn retain(&mut self, content: Content) -> (u32, bool) {
        if content.is_closed() {
            return (PolicySets::CLOSED, false);
        }
        if let Some(number) = self.by_content.get(&content).copied() {
            if let Some(set) = self.sets.get_mut(&number) {
                set.uses += 1;
            }
            return (number, false);
        }
        let sets = &self.sets;
        let taken = |n| n == PolicySets::CLOSED || sets.contains_key(&n);
        let number = match self.hints.remove(&content) {
            Some(number) => number,
            None => self.ids.allocate(taken),
        };
        self.naming.add(content.peers().into_iter(), number);
        self.by_content.insert(content.clone(), number);
        self.sets.insert(number, Set { content, uses: 1 });
        (number, true)
    }

    /// Counts one less; whether that was the last.
    pub(super) fn release(&mut self, number: u32) -> bool {
        let Some(set) = self.sets.get_mut(&number) else { return false };
        set.uses -= 1;
        if set.uses > 0 {
            return false;
        }
        if let Some(Set { content, .. }) = self.sets.remove(&number) {
            self.by_content.remove(&content);
            self.naming.remove(content.peers().into_iter(), number);
        }
        true
    }

    /// The peers that a set names, without anybody.
    pub(super) fn peers(&self, number: u32) -> BTreeSet<u32> {
        self.sets.get(&number).map(|set| set.content.peers()).unwrap_or_default()
    }

    /// The sets that name one of these peers.
    pub(super) fn naming(&self, class: &[Element]) -> BTreeSet<u32> {
        class.iter().flat_map(|element| self.naming.of(element.peer)).collect()
    }

    /// What is put for what a set says of an identity.
    pub(super) fn ops(&self, number: u32, identity: u32, class: &[Element]) -> Vec<PolicyOp> {
        let Some(set) = self.sets.get(&number) else { return Vec::new() };
        let Some(rules) = set.content.plain() else {
            return set.content.ops(number, identity, class);
        };
        let keys = if identity == PolicyKey::ANYBODY {
            keys(number, identity, ports_of(rules, PolicyKey::ANYBODY))
        } else {
            let ports = class.iter().flat_map(|element| {
                ports_of(rules, element.peer).map(|ports| match ports {
                    Ports::Peers(proto) => Ports::Range(proto, element.port, element.port),
                    other => other,
                })
            });
            keys(number, identity, ports)
        };
        keys.into_iter().map(PolicyOp::PutRule).collect()
    }

    /// Every set: number and content.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, &Content)> {
        self.sets.iter().map(|(number, set)| (*number, &set.content))
    }
}
