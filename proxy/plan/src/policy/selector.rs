//! What a label selector selects.

use std::collections::{BTreeMap, BTreeSet};

use sluice_model::{LabelOperator, LabelRequirement, LabelSelector};

/// Labels, or the pairs of a selector.
pub(super) type Labels = BTreeMap<String, String>;

/// Whether all parts of the selector hold.
pub(super) fn matches(selector: &LabelSelector, labels: &Labels) -> bool {
    selector.labels.iter().all(|(key, value)| labels.get(key) == Some(value))
        && selector.expressions.iter().all(|requirement| holds(requirement, labels))
}

fn holds(requirement: &LabelRequirement, labels: &Labels) -> bool {
    let value = labels.get(&requirement.key);
    match &requirement.operator {
        LabelOperator::In(values) => value.is_some_and(|value| values.contains(value)),
        LabelOperator::NotIn(values) => value.is_none_or(|value| !values.contains(value)),
        LabelOperator::Exists => value.is_some(),
        LabelOperator::DoesNotExist => value.is_none(),
    }
}

/// A selector for people, as kubectl writes it: `app=web,tier in (a,b),!old`; an empty one is `all`.
pub(super) fn text(selector: &LabelSelector) -> String {
    let labels = selector.labels.iter().map(|(key, value)| format!("{key}={value}"));
    let expressions = selector.expressions.iter().map(|LabelRequirement { key, operator }| {
        let list = |values: &BTreeSet<String>| {
            let values: Vec<&str> = values.iter().map(String::as_str).collect();
            values.join(",")
        };
        match operator {
            LabelOperator::In(values) => format!("{key} in ({})", list(values)),
            LabelOperator::NotIn(values) => format!("{key} notin ({})", list(values)),
            LabelOperator::Exists => key.clone(),
            LabelOperator::DoesNotExist => format!("!{key}"),
        }
    });
    let parts: Vec<String> = labels.chain(expressions).collect();
    if parts.is_empty() { "all".to_owned() } else { parts.join(",") }
}

/// A label and values of it, one of which everything has that the selector selects; `None` where
/// there is no such label. The last of the pairs, since labels sort from the general (`app`) to the
/// particular (`tier`) more often than not.
pub(super) fn needed(selector: &LabelSelector) -> Option<(&String, Vec<&String>)> {
    if let Some((key, value)) = selector.labels.last_key_value() {
        return Some((key, vec![value]));
    }
    selector.expressions.iter().find_map(|requirement| match &requirement.operator {
        LabelOperator::In(values) => Some((&requirement.key, values.iter().collect())),
        _ => None,
    })
}

/// Things by a label's key and value, to find those that a selector may select, or the selectors that
/// may select a thing.
#[derive(Clone, Debug, Default)]
pub(super) struct ByLabel(BTreeMap<String, BTreeMap<String, BTreeSet<u32>>>);

impl ByLabel {
    pub(super) fn insert(&mut self, key: &str, value: &str, number: u32) {
        let values = self.0.entry(key.to_owned()).or_default();
        values.entry(value.to_owned()).or_default().insert(number);
    }

    pub(super) fn remove(&mut self, key: &str, value: &str, number: u32) {
        let Some(values) = self.0.get_mut(key) else { return };
        let Some(numbers) = values.get_mut(value) else { return };
        numbers.remove(&number);
        if numbers.is_empty() {
            values.remove(value);
            if values.is_empty() {
                self.0.remove(key);
            }
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn get(&self, key: &str, value: &str) -> impl Iterator<Item = u32> + use<'_> {
        self.0.get(key).and_then(|values| values.get(value)).into_iter().flatten().copied()
    }
}
