//! Leaves out of a batch what a later event of the same batch makes void.

use std::collections::HashSet;

use sluice_model::ObjectKey;

use crate::Event;

/// Of all `Apply` and `Delete` events of a key, only the last is kept; a `Reject` of a key goes when
/// an `Apply` or `Delete` of that key follows. Nothing moves across `Init` or `InitDone`, and what
/// stays keeps its order.
pub(crate) fn coalesce(mut events: Vec<Event>) -> Vec<Event> {
    if events.len() < 2 {
        return events;
    }
    let mut later: HashSet<ObjectKey> = HashSet::new();
    let mut keep = vec![true; events.len()];
    for (i, event) in events.iter().enumerate().rev() {
        match event {
            Event::Init | Event::InitDone => later.clear(),
            Event::Apply(object) => keep[i] = later.insert(object.key()),
            Event::Delete(key) => keep[i] = later.insert(key.clone()),
            Event::Reject(rejected) => {
                keep[i] = !rejected.key.as_ref().is_some_and(|key| later.contains(key));
            }
            Event::Recover(_) => {}
        }
    }
    let mut keep = keep.into_iter();
    // `retain` visits every event once and in order.
    events.retain(|_| keep.next().unwrap_or(true));
    events
}

#[cfg(test)]
mod tests {
    use sluice_model::{Meta, Namespace, Object, ObjectName, ResourceKind};

    use super::*;
    use crate::Rejected;

    fn apply(name: &str, uid: &str) -> Event {
        let meta = Meta { name: ObjectName::new("", name), uid: uid.to_owned(), ..Meta::default() };
        Event::Apply(Box::new(Object::Namespace(Namespace { meta })))
    }

    fn key(name: &str) -> ObjectKey {
        ObjectKey { kind: ResourceKind::Namespace, name: ObjectName::new("", name) }
    }

    fn reject(name: &str) -> Event {
        Event::Reject(Rejected {
            key: Some(key(name)),
            origin: format!("/{name}"),
            field: String::new(),
            reason: "bad".to_owned(),
        })
    }

    #[test]
    fn the_last_event_of_a_key_wins() {
        let events = vec![
            apply("a", "1"),
            apply("b", "1"),
            apply("a", "2"),
            Event::Delete(key("b")),
            apply("a", "3"),
        ];
        assert_eq!(coalesce(events), [Event::Delete(key("b")), apply("a", "3")]);
    }

    #[test]
    fn a_rejected_update_keeps_the_good_one_before_it() {
        let events = vec![apply("a", "1"), reject("a")];
        assert_eq!(coalesce(events.clone()), events);
        assert_eq!(coalesce(vec![reject("a"), apply("a", "2")]), [apply("a", "2")]);
    }

    #[test]
    fn nothing_is_dropped_across_the_bounds_of_a_list() {
        let events =
            vec![apply("a", "1"), Event::Init, apply("a", "2"), Event::InitDone, apply("a", "3")];
        assert_eq!(coalesce(events.clone()), events);
    }
}
