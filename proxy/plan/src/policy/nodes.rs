//! Nodes: who is at an address, for peers that name nodes.

use std::collections::{BTreeMap, BTreeSet};

use sluice_model::{LabelSelector, Node};

use super::net::Net;
use super::selector::{Labels, matches};

#[derive(Clone, PartialEq, Eq, Debug, Default)]
struct State {
    labels: Labels,
    nets: BTreeSet<Net>,
}

/// All nodes, by name.
#[derive(Clone, Debug, Default)]
pub(super) struct Nodes {
    states: BTreeMap<String, State>,
    at: BTreeMap<Net, BTreeSet<String>>,
}

impl Nodes {
    /// States what a node is now; returns the addresses that this concerns.
    pub(super) fn set(&mut self, name: &str, node: Option<&Node>) -> BTreeSet<Net> {
        let new = node.map(|node| State {
            labels: node.meta.labels.clone(),
            nets: node.addrs.iter().map(|address| Net::host(address.addr)).collect(),
        });
        // Its status is written again and again.
        if self.states.get(name) == new.as_ref() {
            return BTreeSet::new();
        }
        let mut touched = BTreeSet::new();
        if let Some(old) = self.states.remove(name) {
            for net in &old.nets {
                if let Some(there) = self.at.get_mut(net) {
                    there.remove(name);
                    if there.is_empty() {
                        self.at.remove(net);
                    }
                }
            }
            touched.extend(old.nets);
        }
        if let Some(new) = new {
            for net in &new.nets {
                self.at.entry(*net).or_default().insert(name.to_owned());
            }
            touched.extend(&new.nets);
            self.states.insert(name.to_owned(), new);
        }
        touched
    }

    /// Whether a node with such labels has the address.
    pub(super) fn is(&self, net: Net, selector: &LabelSelector) -> bool {
        let mut names = self.at.get(&net).into_iter().flatten();
        names.any(|name| self.states.get(name).is_some_and(|s| matches(selector, &s.labels)))
    }

    /// Whether any node has it.
    pub(super) fn has(&self, net: Net) -> bool {
        self.at.contains_key(&net)
    }

    /// The addresses of the nodes with such labels.
    pub(super) fn nets(&self, selector: &LabelSelector) -> impl Iterator<Item = Net> {
        let selected = self.states.values().filter(|state| matches(selector, &state.labels));
        selected.flat_map(|state| state.nets.iter().copied())
    }
}
