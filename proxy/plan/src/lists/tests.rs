use super::*;

fn backends(count: u32) -> BTreeMap<u32, Backend> {
    (1..=count).map(|number| (number, Backend::default())).collect()
}

fn table(list: u32, numbers: &[u32]) -> BTreeMap<SlotKey, Slots> {
    chunks(list, numbers).collect()
}

fn content_of(slots: &BTreeMap<SlotKey, Slots>, known: u32) -> Option<Vec<u32>> {
    let lists = by_list(slots);
    let (_, chunks) = lists.first_key_value()?;
    content(chunks, &backends(known)).map(Vec::from)
}

#[test]
fn chunks_hold_sixteen_and_the_last_is_padded_with_zero() {
    for (count, chunks) in [(1, 1), (15, 1), (16, 1), (17, 2), (32, 2), (33, 3), (10_000, 625)] {
        let numbers: Vec<u32> = (1..=count).collect();
        let slots = table(7, &numbers);
        assert_eq!(slots.len(), chunks, "{count} backends");
        let flat: Vec<u32> = slots.values().flat_map(|s| s.backend).collect();
        assert_eq!(flat[..numbers.len()], numbers);
        assert!(flat[numbers.len()..].iter().all(|n| *n == 0));
        assert_eq!(content_of(&slots, count), Some(numbers));
    }
}

#[test]
fn content_is_the_same_in_any_order() {
    assert_eq!(content_of(&table(1, &[3, 1, 2]), 3), Some(vec![1, 2, 3]));
}

#[test]
fn list_that_is_not_whole_has_no_content() {
    let whole: Vec<u32> = (1..=20).collect();
    assert!(content_of(&table(1, &whole), 20).is_some());
    assert_eq!(content_of(&table(1, &whole), 19), None, "a backend is missing");

    let mut slots = table(1, &whole);
    slots.remove(&SlotKey { list: 1, chunk: 0 });
    assert_eq!(content_of(&slots, 20), None, "the first chunk is missing");

    let mut slots = table(1, &whole);
    slots.insert(SlotKey { list: 1, chunk: 3 }, Slots::default());
    assert_eq!(content_of(&slots, 20), None, "a chunk stands apart");

    let mut slots = table(1, &whole);
    slots.insert(SlotKey { list: 1, chunk: 2 }, Slots::default());
    assert_eq!(content_of(&slots, 20), None, "an empty chunk follows");

    let mut slots = table(1, &whole);
    slots.get_mut(&SlotKey { list: 1, chunk: 0 }).expect("there").backend[5] = 0;
    assert_eq!(content_of(&slots, 20), None, "a hole");

    assert_eq!(content_of(&table(1, &[1, 2, 1]), 20), None, "a backend stands twice");
    assert_eq!(content_of(&table(1, &[0]), 20), None, "nothing");
}

#[test]
fn list_number_in_use_is_not_given_again() {
    let slots = table(2, &[1]);
    let mut lists = Lists::default();
    lists.refs.retain(3);
    let numbers: Vec<u32> = (0..3).map(|n| lists.create(vec![n].into(), &slots)).collect();
    assert_eq!(numbers, [1, 4, 5], "2 is in the table, 3 is named by a frontend");
}

#[test]
fn forgotten_list_is_not_found() {
    let mut lists = Lists::default();
    let list = lists.create(vec![1, 2].into(), &BTreeMap::new());
    assert_eq!(lists.find(&[1, 2]), Some(list));
    lists.forget(list, vec![2, 1]);
    assert_eq!(lists.find(&[1, 2]), None);
}
