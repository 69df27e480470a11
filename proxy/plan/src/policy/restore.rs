//! The first plan after a restart: what still means what it meant keeps its number.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use sluice_abi::{CidrKey, PolicyKey, PolicySets};

use super::classes::Class;
use super::planner::PolicyPlanner;
use super::tables::{PolicyOp, PolicyTables};
use super::tiers::Content;

/// What a set says of an identity, whatever their numbers are.
type Meaning = BTreeSet<(u32, u8, u16, bool)>;

/// By set and identity.
fn meanings(tables: &PolicyTables) -> BTreeMap<(u32, u32), Meaning> {
    let mut meanings: BTreeMap<_, Meaning> = BTreeMap::new();
    let rules = tables.rules.iter().map(|key| (key, true));
    for (key, allows) in rules.chain(tables.denials.iter().map(|key| (key, false))) {
        let meaning = meanings.entry((key.set, key.identity)).or_default();
        meaning.insert((key.prefix_len, key.proto, key.port.get(), allows));
    }
    meanings
}

/// The numbers that sets and identities had.
#[derive(Default)]
struct Hints {
    sets: HashMap<Content, u32>,
    classes: HashMap<Class, u32>,
}

impl PolicyPlanner {
    /// Plans everything anew, with the numbers that the kernel has where it can, and returns the
    /// difference.
    ///
    /// Prefixes get their identities before pods get their sets. Where both changed while no agent ran,
    /// a connection that begins in between may be denied though it was and will be allowed.
    pub(super) fn resume(&mut self, held: PolicyTables) -> Vec<PolicyOp> {
        let hints = {
            let mut trial = self.clone();
            trial.settle();
            trial.hints(&held)
        };
        // A set may be without a rule, while its peers are nowhere.
        let named = held.sets.values().flat_map(|sets| [sets.ingress, sets.egress]);
        let keys = || held.rules.iter().chain(&held.denials);
        self.sets.prefer(keys().map(|key| key.set).chain(named), hints.sets);
        let identities = keys().map(|key| key.identity);
        self.classes.prefer(identities.chain(held.identities.values().copied()), hints.classes);
        self.settle();
        difference(&held, &self.tables)
    }

    /// Which numbers of `held` may stand for what this planner has. A pair of set and identity that
    /// both keep theirs has the same rules there.
    fn hints(&self, held: &PolicyTables) -> Hints {
        let mut sets: BTreeMap<u32, u32> = BTreeMap::new();
        let mut taken = BTreeSet::from([PolicySets::OPEN, PolicySets::CLOSED]);
        for (ifindex, now) in &self.tables.sets {
            let Some(then) = held.sets.get(ifindex) else { continue };
            for (now, then) in [(now.ingress, then.ingress), (now.egress, then.egress)] {
                let numbered = now != PolicySets::OPEN && now != PolicySets::CLOSED;
                if numbered && !sets.contains_key(&now) && taken.insert(then) {
                    sets.insert(now, then);
                }
            }
        }
        let mut identities: BTreeMap<u32, u32> = BTreeMap::new();
        let mut taken = BTreeSet::from([PolicyKey::ANYBODY]);
        for (number, _, net) in self.classes.iter() {
            if let Some(then) = held.identities.get(&net.key())
                && taken.insert(*then)
            {
                identities.insert(number, *then);
            }
        }
        let (now, then) = (meanings(&self.tables), meanings(held));
        let differs = |set: (&u32, &u32), identity: (&u32, &u32)| {
            now.get(&(*set.0, *identity.0)) != then.get(&(*set.1, *identity.1))
        };
        let anybody = (&PolicyKey::ANYBODY, &PolicyKey::ANYBODY);
        // A set that differs for most is another one; else the identities that differ are.
        sets.retain(|now, then| {
            let different = identities.iter().filter(|pair| differs((now, then), *pair)).count();
            !differs((now, then), anybody) && different * 2 <= identities.len()
        });
        identities.retain(|now, then| !sets.iter().any(|pair| differs(pair, (now, then))));
        let classes = self
            .classes
            .iter()
            .filter_map(|(number, class, _)| Some((class.clone(), *identities.get(&number)?)));
        let contents = self
            .sets
            .iter()
            .filter_map(|(number, content)| Some((content.clone(), *sets.get(&number)?)));
        Hints { classes: classes.collect(), sets: contents.collect() }
    }
}

/// What makes one out of the other: first what is referred to, last what is referred to no more.
/// Prefixes come as [`PolicyPlanner::plan`] has them.
fn difference(old: &PolicyTables, new: &PolicyTables) -> Vec<PolicyOp> {
    let mut ops: Vec<PolicyOp> =
        new.rules.difference(&old.rules).map(|key| PolicyOp::PutRule(*key)).collect();
    ops.extend(new.denials.difference(&old.denials).map(|key| PolicyOp::PutDenial(*key)));
    let changed = |(key, value): &(&CidrKey, &u32)| old.identities.get(key) != Some(value);
    let identities = new.identities.iter().rev().filter(changed);
    ops.extend(identities.map(|(key, value)| PolicyOp::PutIdentity(*key, *value)));
    let changed = |(key, value): &(&u32, &PolicySets)| old.sets.get(key) != Some(value);
    let sets = new.sets.iter().filter(changed);
    ops.extend(sets.map(|(key, value)| PolicyOp::PutSets(*key, *value)));
    let gone = old.sets.keys().filter(|key| !new.sets.contains_key(key));
    ops.extend(gone.map(|key| PolicyOp::DeleteSets(*key)));
    let gone = old.identities.keys().filter(|key| !new.identities.contains_key(key));
    ops.extend(gone.map(|key| PolicyOp::DeleteIdentity(*key)));
    let gone = old.rules.iter().chain(&old.denials);
    let gone = gone.filter(|key| !new.rules.contains(*key) && !new.denials.contains(*key));
    ops.extend(gone.map(|key| PolicyOp::DeleteRule(*key)));
    ops
}
