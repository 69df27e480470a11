//! Does what is wanted reach the kernel? A pure record of it, with the clock passed in.

use std::time::{Duration, Instant, SystemTime};

use sluice_model::Node;

/// How long a change may wait for the kernel, and the loop be silent, before the node is called
/// unhealthy. kube-proxy allows twice its sync period, which is a minute by default.
pub const STUCK_AFTER: Duration = Duration::from_secs(60);

/// Taint of a node that the cluster autoscaler is about to remove (KEP-3836).
const TO_BE_DELETED: &str = "ToBeDeletedByClusterAutoscaler";

/// What is known of the node's fitness.
#[derive(Clone, Debug)]
pub struct Progress {
    /// When the oldest change that the kernel does not have came from the source.
    waiting: Option<Instant>,
    /// When the loop last showed that it runs.
    alive: Instant,
    /// When the kernel last had everything.
    updated: SystemTime,
    /// Whether the kernel has been given anything at all, by this agent or one before it.
    programmed: bool,
    /// Whether the node may have new traffic, as its object says.
    eligible: bool,
}

/// What the endpoints tell.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Verdict {
    /// For how long the loop has not moved, if that is too long. A restart of the agent may help:
    /// this alone is what `/livez` tells.
    pub hung: Option<Duration>,
    /// For how long a change has been waiting for the kernel, if that is too long: the kernel
    /// refuses it, and will refuse it to the next agent as well.
    pub stuck: Option<Duration>,
    /// Whether the kernel has been given services.
    pub programmed: bool,
    /// Whether the node may have new traffic: it is not about to be removed.
    pub eligible: bool,
    /// When the kernel last had everything.
    pub updated: SystemTime,
}

impl Verdict {
    /// Whether services work on this node: what `serviceProxyHealthy` tells.
    pub fn healthy(&self) -> bool {
        self.hung.is_none() && self.stuck.is_none() && self.programmed
    }

    /// Why `/healthz` fails, if it does.
    pub fn reason(&self) -> Option<String> {
        if self.hung.is_some() {
            self.hung_reason()
        } else if let Some(waiting) = self.stuck {
            Some(format!("a change has waited for the kernel for {} s", waiting.as_secs()))
        } else if !self.programmed {
            Some("the source has not been read yet".to_owned())
        } else if !self.eligible {
            Some("the node is about to be removed".to_owned())
        } else {
            None
        }
    }

    /// Why `/livez` fails, if it does.
    pub fn hung_reason(&self) -> Option<String> {
        self.hung.map(|silent| format!("the agent's loop has not moved for {} s", silent.as_secs()))
    }
}

impl Progress {
    /// At the start of the agent.
    pub fn new(now: Instant, wall: SystemTime) -> Self {
        Self { waiting: None, alive: now, updated: wall, programmed: false, eligible: true }
    }

    /// The loop runs.
    pub fn alive(&mut self, now: Instant) {
        self.alive = now;
    }

    /// The kernel holds services.
    pub fn programmed(&mut self) {
        self.programmed = true;
    }

    /// A change came from the source.
    pub fn begin(&mut self, now: Instant) {
        self.alive = now;
        self.waiting.get_or_insert(now);
    }

    /// All that came was handed to the kernel; with `done` false, it did not take all of it.
    pub fn end(&mut self, done: bool, now: Instant, wall: SystemTime) {
        self.alive = now;
        if done {
            self.waiting = None;
            self.updated = wall;
        }
    }

    /// What the Node object says, as kube-proxy reads it: a node that is deleted or tainted by the
    /// autoscaler gets no new traffic. Without an object nothing is said against it.
    pub fn node(&mut self, node: Option<&Node>) {
        self.eligible = node.is_none_or(|node| {
            !node.meta.deleting && !node.taints.iter().any(|taint| taint.key == TO_BE_DELETED)
        });
    }

    /// How long the oldest change has been waiting.
    pub fn waiting(&self, now: Instant) -> Option<Duration> {
        self.waiting.map(|since| now.saturating_duration_since(since))
    }

    /// The judgement at `now`.
    pub fn verdict(&self, now: Instant) -> Verdict {
        let too_long = |time: &Duration| *time > STUCK_AFTER;
        Verdict {
            hung: Some(now.saturating_duration_since(self.alive)).filter(too_long),
            stuck: self.waiting(now).filter(too_long),
            programmed: self.programmed,
            eligible: self.eligible,
            updated: self.updated,
        }
    }
}

#[cfg(test)]
mod tests {
    use sluice_model::Taint;

    use super::*;

    fn at(start: Instant, secs: u64) -> Instant {
        start + Duration::from_secs(secs)
    }

    /// S12
    #[test]
    fn a_change_that_waits_for_more_than_a_minute_is_stuck_until_it_is_done() {
        let (start, wall) = (Instant::now(), SystemTime::now());
        let mut progress = Progress::new(start, wall);
        progress.programmed();
        progress.begin(at(start, 10));
        progress.end(false, at(start, 11), wall);
        // Later changes do not make the first one younger, nor does a loop that runs.
        progress.begin(at(start, 69));
        progress.end(false, at(start, 70), wall);
        assert_eq!(progress.waiting(at(start, 70)), Some(Duration::from_secs(60)));
        assert!(progress.verdict(at(start, 70)).healthy());
        let verdict = progress.verdict(at(start, 71));
        assert!(!verdict.healthy());
        assert_eq!(verdict.hung_reason(), None, "a new agent would fare no better");
        assert_eq!(
            verdict.reason().as_deref(),
            Some("a change has waited for the kernel for 61 s")
        );
        progress.end(true, at(start, 72), wall + Duration::from_secs(72));
        let verdict = progress.verdict(at(start, 73));
        assert!(verdict.healthy());
        assert_eq!(verdict.updated, wall + Duration::from_secs(72));
    }

    /// S12
    #[test]
    fn a_loop_that_does_not_move_is_hung_and_a_quiet_one_is_not() {
        let start = Instant::now();
        let mut progress = Progress::new(start, SystemTime::now());
        progress.programmed();
        assert_eq!(progress.verdict(at(start, 60)).reason(), None);
        let verdict = progress.verdict(at(start, 61));
        assert!(!verdict.healthy());
        assert_eq!(
            verdict.hung_reason().as_deref(),
            Some("the agent's loop has not moved for 61 s")
        );
        progress.alive(at(start, 61));
        assert_eq!(progress.verdict(at(start, 120)).reason(), None);
    }

    /// S12
    #[test]
    fn a_node_that_is_about_to_go_is_healthy_and_not_eligible() {
        let start = Instant::now();
        let mut progress = Progress::new(start, SystemTime::now());
        progress.programmed();
        let taint = |key: &str| Taint { key: key.to_owned(), effect: "NoSchedule".to_owned() };
        let tainted =
            Node { taints: vec![taint("other"), taint(TO_BE_DELETED)], ..Node::default() };
        progress.node(Some(&tainted));
        let verdict = progress.verdict(start);
        assert!(verdict.healthy() && !verdict.eligible && verdict.reason().is_some());
        progress.node(Some(&Node { taints: vec![taint("other")], ..Node::default() }));
        assert_eq!(progress.verdict(start).reason(), None);
        let mut deleted = Node::default();
        deleted.meta.deleting = true;
        progress.node(Some(&deleted));
        assert!(!progress.verdict(start).eligible);
        progress.node(None);
        assert!(progress.verdict(start).eligible);
    }

    #[test]
    fn a_node_that_was_never_programmed_is_unhealthy_but_not_hung() {
        let start = Instant::now();
        let mut progress = Progress::new(start, SystemTime::now());
        let verdict = progress.verdict(start);
        assert!(!verdict.healthy() && verdict.hung.is_none(), "{verdict:?}");
        progress.programmed();
        assert!(progress.verdict(start).healthy());
    }
}
