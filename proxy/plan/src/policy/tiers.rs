//! What the rules of a pod say together in one direction: those of the tier before NetworkPolicies, those of
//! NetworkPolicies, and those of the tier after them.
//!
//! The kernel knows no order of rules. It asks what a set says of the peer's identity, and where that has
//! nothing, what it says of anybody; in each, the longest key counts. So the order is worked out here, once
//! for each set and identity: which ports of which protocols pass. An identity's keys are where that differs
//! from anybody's.

use std::collections::BTreeSet;

use sluice_abi::{PolicyKey, proto};
use sluice_model::PolicyAction;

use super::classes::Element;
use super::ports::{Ports, merged, range_keys};
use super::tables::PolicyOp;

/// Peers by number ([`PolicyKey::ANYBODY`] for all) and their ports, sorted.
pub(super) type Rules = Box<[(u32, Ports)]>;

/// Everything, of everybody.
const ALL: (u32, Ports) = (PolicyKey::ANYBODY, Ports::All);

/// Brings rules into the one form that they have whatever their order.
fn canonical(mut rules: Vec<(u32, Ports)>) -> Rules {
    if rules.contains(&ALL) {
        return Box::new([ALL]);
    }
    rules.sort_unstable();
    rules.dedup();
    rules.into()
}

/// A rule of a tier. The first that is for a connection counts.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct Step {
    pub(super) action: PolicyAction,
    rules: Rules,
}

impl Step {
    pub(super) fn new(action: PolicyAction, rules: Vec<(u32, Ports)>) -> Self {
        Self { action, rules: canonical(rules) }
    }

    fn is_for_all(&self) -> bool {
        *self.rules == [ALL]
    }

    fn denies_all(&self) -> bool {
        self.action == PolicyAction::Deny && self.is_for_all()
    }
}

/// All rules of a pod in one direction.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub(super) struct Content {
    /// The tier before NetworkPolicies.
    admin: Box<[Step]>,
    /// What NetworkPolicies allow, if any isolates the pod.
    allowed: Option<Rules>,
    /// The tier after them.
    baseline: Box<[Step]>,
}

/// A tier without what no connection gets to, or what changes nothing: `last` does what comes after all of it.
fn tier(steps: Vec<Step>, last: &[PolicyAction]) -> Box<[Step]> {
    let mut tier: Vec<Step> = Vec::new();
    for step in steps.into_iter().filter(|step| !step.rules.is_empty()) {
        let for_all = step.is_for_all();
        tier.push(step);
        if for_all {
            break;
        }
    }
    while tier.last().is_some_and(|step| last.contains(&step.action)) {
        tier.pop();
    }
    tier.into()
}

impl Content {
    /// `None` where everything passes.
    pub(super) fn new(
        admin: Vec<Step>,
        allowed: Option<Vec<(u32, Ports)>>,
        baseline: Vec<Step>,
    ) -> Option<Self> {
        let admin = tier(admin, &[PolicyAction::Pass]);
        let allowed = allowed.map(canonical);
        let baseline = match allowed {
            Some(_) => Box::default(),
            None => tier(baseline, &[PolicyAction::Pass, PolicyAction::Accept]),
        };
        let denies = |steps: &[Step]| steps.iter().any(|step| step.action == PolicyAction::Deny);
        let open = allowed.is_none() && !denies(&admin) && !denies(&baseline);
        (!open).then_some(Self { admin, allowed, baseline })
    }

    /// Whether nothing passes.
    pub(super) fn is_closed(&self) -> bool {
        match (self.admin.first(), &self.allowed, self.baseline.first()) {
            (Some(step), ..) => step.denies_all(),
            (None, Some(rules), _) => rules.is_empty(),
            (None, None, step) => step.is_some_and(Step::denies_all),
        }
    }

    /// What NetworkPolicies allow, where nothing but them has a say.
    pub(super) fn plain(&self) -> Option<&Rules> {
        self.allowed.as_ref().filter(|_| self.admin.is_empty())
    }

    /// The peers that it names, without anybody.
    pub(super) fn peers(&self) -> BTreeSet<u32> {
        let steps = self.admin.iter().chain(&self.baseline).flat_map(|step| &step.rules);
        let rules = steps.chain(self.allowed.iter().flatten());
        rules.map(|(peer, _)| *peer).filter(|peer| *peer != PolicyKey::ANYBODY).collect()
    }

    /// What is put for an identity; that of anybody has no elements.
    pub(super) fn ops(&self, set: u32, identity: u32, class: &[Element]) -> Vec<PolicyOp> {
        let own = Passing::new(self, class);
        let mut ops = Vec::new();
        let mut put = |proto, ranges: &Ranges, allows: bool| {
            for key in range_keys(set, identity, proto, ranges) {
                ops.push(if allows { PolicyOp::PutRule(key) } else { PolicyOp::PutDenial(key) });
            }
        };
        let anybody = match identity {
            PolicyKey::ANYBODY => Passing::default(),
            _ => Passing::new(self, &[]),
        };
        if own.others == anybody.others {
            for (proto, passing) in &own.ranges {
                let known = anybody.of(*proto);
                put(*proto, &minus(passing, &known), true);
                put(*proto, &minus(&known, passing), false);
            }
            return ops;
        }
        // One key for every protocol; it hides what is said of anybody.
        for (proto, passing) in &own.ranges {
            let different = if own.others { minus(&full(), passing) } else { passing.clone() };
            put(*proto, &different, !own.others);
        }
        let key = PolicyKey { prefix_len: PolicyKey::ANY, set, identity, ..PolicyKey::default() };
        ops.push(if own.others { PolicyOp::PutRule(key) } else { PolicyOp::PutDenial(key) });
        ops
    }
}

/// Ports from the first to the last, sorted, with gaps between them.
type Ranges = Vec<(u16, u16)>;

fn full() -> Ranges {
    vec![(0, u16::MAX)]
}

/// What is in the first and not in the second.
fn minus(from: &Ranges, what: &Ranges) -> Ranges {
    let mut left = Vec::new();
    for &(first, last) in from {
        let mut next = u32::from(first);
        for &(hole_first, hole_last) in what {
            if hole_last < first || hole_first > last {
                continue;
            }
            if u32::from(hole_first) > next {
                left.push((next as u16, hole_first - 1));
            }
            next = next.max(u32::from(hole_last) + 1);
        }
        if next <= u32::from(last) {
            left.push((next as u16, last));
        }
    }
    left
}

/// What is in both.
fn both(a: &Ranges, b: &Ranges) -> Ranges {
    minus(a, &minus(a, b))
}

fn add(to: &mut Ranges, more: &Ranges) {
    to.extend(more);
    *to = merged(std::mem::take(to));
}

/// What passes between a pod and an identity.
#[derive(Default)]
struct Passing {
    /// By protocol.
    ranges: Vec<(u8, Ranges)>,
    /// Whether other protocols do.
    others: bool,
}

impl Passing {
    fn new(content: &Content, class: &[Element]) -> Self {
        let of = |proto| passing(content, class, proto);
        let protocols = [proto::TCP, proto::UDP, proto::SCTP];
        Self {
            ranges: protocols.into_iter().map(|proto| (proto, of(Some(proto)))).collect(),
            others: !of(None).is_empty(),
        }
    }

    fn of(&self, proto: u8) -> Ranges {
        let found = self.ranges.iter().find(|(other, _)| *other == proto);
        found.map(|(_, ranges)| ranges.clone()).unwrap_or_default()
    }
}

/// The ports of a protocol that pass. One without ports has all or none.
fn passing(content: &Content, class: &[Element], proto: Option<u8>) -> Ranges {
    let mut allowed = Ranges::new();
    // Of the tier, the ports that none of the rules so far was for, and those that go on to the next.
    let run = |steps: &[Step], mut open: Ranges, allowed: &mut Ranges| {
        let mut passed = Ranges::new();
        for step in steps {
            let taken = both(&open, &matched(&step.rules, class, proto));
            open = minus(&open, &taken);
            match step.action {
                PolicyAction::Accept => add(allowed, &taken),
                PolicyAction::Deny => {}
                PolicyAction::Pass => add(&mut passed, &taken),
            }
        }
        add(&mut passed, &open);
        passed
    };
    let next = run(&content.admin, full(), &mut allowed);
    let rest = match &content.allowed {
        Some(rules) => both(&next, &matched(rules, class, proto)),
        None => run(&content.baseline, next, &mut allowed),
    };
    add(&mut allowed, &rest);
    allowed
}

/// The ports of a protocol that rules name for an identity.
fn matched(rules: &Rules, class: &[Element], proto: Option<u8>) -> Ranges {
    let mut found = Ranges::new();
    for (peer, ports) in rules {
        let anybody = (*peer == PolicyKey::ANYBODY).then_some(0);
        let elements = class.iter().filter(|element| element.peer == *peer);
        for own in elements.map(|element| element.port).chain(anybody) {
            match *ports {
                Ports::All => return full(),
                Ports::Protocol(of) if Some(of) == proto => found.push((0, u16::MAX)),
                Ports::Range(of, first, last) if Some(of) == proto => found.push((first, last)),
                Ports::Peers(of) if Some(of) == proto => found.push((own, own)),
                _ => {}
            }
        }
    }
    merged(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ranges behave as sets of ports.
    #[test]
    fn ranges_are_subtracted_exactly() {
        let sets: [&[(u16, u16)]; 8] = [
            &[],
            &[(0, u16::MAX)],
            &[(0, 0)],
            &[(u16::MAX, u16::MAX)],
            &[(5, 10), (20, 30)],
            &[(7, 25)],
            &[(0, 4), (11, 19), (31, 65_534)],
            &[(10, 20)],
        ];
        let has = |ranges: &Ranges, port: u16| {
            ranges.iter().filter(|(first, last)| (*first..=*last).contains(&port)).count()
        };
        for a in sets {
            for b in sets {
                let (a, b) = (a.to_vec(), b.to_vec());
                let (less, common) = (minus(&a, &b), both(&a, &b));
                let mut sum = a.clone();
                add(&mut sum, &b);
                for port in 0..=u16::MAX {
                    let (in_a, in_b) = (has(&a, port) > 0, has(&b, port) > 0);
                    assert_eq!(
                        has(&less, port),
                        usize::from(in_a && !in_b),
                        "{a:?} - {b:?}: {port}"
                    );
                    assert_eq!(
                        has(&common, port),
                        usize::from(in_a && in_b),
                        "{a:?} & {b:?}: {port}"
                    );
                    assert_eq!(has(&sum, port), usize::from(in_a || in_b), "{a:?} | {b:?}: {port}");
                }
            }
        }
    }

    fn step(action: PolicyAction, peer: u32, ports: Ports) -> Step {
        Step::new(action, vec![(peer, ports)])
    }

    /// A pod to which tiers change nothing is not isolated, and one that they shut is closed: neither has rules.
    #[test]
    fn what_changes_nothing_is_nothing() {
        use PolicyAction::{Accept, Deny, Pass};
        let anybody = PolicyKey::ANYBODY;
        let open = |admin, baseline| Content::new(admin, None, baseline).is_none();
        assert!(open(vec![], vec![]));
        assert!(open(vec![step(Accept, 1, Ports::All)], vec![step(Pass, 2, Ports::All)]));
        assert!(open(vec![], vec![step(Accept, anybody, Ports::All), step(Deny, 2, Ports::All)]));
        assert!(!open(vec![step(Accept, 1, Ports::All)], vec![step(Deny, 2, Ports::All)]));
        let closed = |admin, allowed, baseline| {
            Content::new(admin, allowed, baseline).is_some_and(|content| content.is_closed())
        };
        let deny = || vec![step(Deny, anybody, Ports::All)];
        assert!(closed(deny(), None, vec![]));
        assert!(closed(deny(), Some(vec![ALL]), vec![]));
        assert!(closed(vec![], None, deny()));
        assert!(closed(vec![step(Pass, 1, Ports::All)], Some(vec![]), vec![]));
        assert!(!closed(vec![step(Accept, 1, Ports::All)], Some(vec![]), vec![]));
        assert!(!closed(vec![], Some(vec![ALL]), deny()));
    }

    /// Of one denied port, the peer has one key, and anybody has one for everything.
    #[test]
    fn a_denial_is_one_key_beside_what_anybody_may() {
        let deny = step(PolicyAction::Deny, 1, Ports::Range(proto::TCP, 80, 80));
        let content = Content::new(vec![deny], None, vec![]).unwrap();
        let of = |identity, class: &[Element]| content.ops(9, identity, class);
        let key = |identity, prefix_len, proto, port| PolicyKey {
            prefix_len,
            set: 9,
            identity,
            proto,
            reserved: 0,
            port: sluice_abi::Be16::new(port),
        };
        assert_eq!(of(PolicyKey::ANYBODY, &[]), [PolicyOp::PutRule(key(0, PolicyKey::ANY, 0, 0))]);
        let denial = key(4, PolicyKey::PORT, proto::TCP, 80);
        assert_eq!(of(4, &[Element { peer: 1, port: 0 }]), [PolicyOp::PutDenial(denial)]);
        assert_eq!(of(5, &[Element { peer: 2, port: 0 }]), []);
    }
}
