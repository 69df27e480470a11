//! What is wrong with a part of the agent, for people.

use std::collections::BTreeSet;

/// Subjects and messages; each is logged when it comes up, and shown while it lasts.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Problems(BTreeSet<(String, String)>);

impl Problems {
    /// Adds one.
    pub(super) fn add(&mut self, subject: impl Into<String>, message: impl ToString) {
        self.0.insert((subject.into(), message.to_string()));
    }

    /// Takes the place of `before`, and logs what that did not have.
    pub(super) fn succeed(self, before: &mut Self) {
        for (subject, message) in self.0.difference(&before.0) {
            tracing::warn!("{subject}: {message}");
        }
        *before = self;
    }

    /// Whether there are none.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Subject and message of each.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(subject, message)| (subject.as_str(), message.as_str()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_takes_the_place_of_what_was() {
        let mut held = Problems::default();
        let mut now = Problems::default();
        now.add("a", "broken");
        now.add("a", "broken");
        now.succeed(&mut held);
        assert_eq!(held.iter().collect::<Vec<_>>(), [("a", "broken")]);
        Problems::default().succeed(&mut held);
        assert!(held.is_empty());
    }
}
