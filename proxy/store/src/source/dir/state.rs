//! The objects of all files, and what a changed file means for them. Pure.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use sluice_model::{Object, ObjectKey, ResourceKind};

use super::files::{Change, Content};
use crate::manifest::Manifest;
use crate::{Event, Rejected};

/// A file and the place of an object in it.
type Place = (String, usize);

/// What one file holds, last good objects included.
#[derive(Debug, Default)]
struct FileState {
    /// With the origin of each.
    objects: Vec<(String, Object)>,
    rejected: Vec<Rejected>,
}

/// The objects of all files. Of an object that is in several places, the first by path and place
/// counts, and the others are rejected.
#[derive(Debug)]
pub(super) struct Manifests {
    kinds: BTreeSet<ResourceKind>,
    files: BTreeMap<String, FileState>,
    places: HashMap<ObjectKey, BTreeSet<Place>>,
}

impl Manifests {
    pub(super) fn new(kinds: BTreeSet<ResourceKind>) -> Self {
        Self { kinds, files: BTreeMap::new(), places: HashMap::new() }
    }

    /// Takes these files as all there are. What is wrong in one of them keeps its last good form.
    pub(super) fn relist(&mut self, changes: Vec<Change>) {
        let listed: BTreeSet<&String> = changes.iter().map(|(path, _)| path).collect();
        let gone: Vec<String> =
            self.files.keys().filter(|path| !listed.contains(path)).cloned().collect();
        for path in gone {
            self.replace(path, Content::Gone);
        }
        for (path, content) in changes {
            self.replace(path, content);
        }
    }

    /// All objects and all rejections, as between `Init` and `InitDone`.
    pub(super) fn all(&self) -> Vec<Event> {
        let mut events: Vec<Event> = self
            .files
            .iter()
            .flat_map(|(path, file)| file.objects.iter().enumerate().map(move |o| (path, o)))
            .filter(|(path, (i, (_, object)))| {
                let first = self.places.get(&object.key()).and_then(BTreeSet::first);
                first.is_some_and(|first| first.0 == **path && first.1 == *i)
            })
            .map(|(_, (_, (_, object)))| Event::Apply(Box::new(object.clone())))
            .collect();
        let rejected = self.rejected(self.files.keys(), self.places.keys());
        events.extend(rejected.into_values().map(Event::Reject));
        events
    }

    /// Takes files as changed and says what that means.
    pub(super) fn change(&mut self, changes: Vec<Change>) -> Vec<Event> {
        let paths: BTreeSet<String> = changes.iter().map(|(path, _)| path.clone()).collect();
        let mut keys: BTreeSet<ObjectKey> = self.keys_of(&paths);
        let rejected_before = self.rejected(paths.iter(), keys.iter());
        let before: HashMap<ObjectKey, Object> = keys
            .iter()
            .filter_map(|key| Some((key.clone(), self.winner(key)?.1.clone())))
            .collect();
        for (path, content) in changes {
            self.replace(path, content);
        }
        keys.extend(self.keys_of(&paths));
        let mut events = Vec::new();
        for key in &keys {
            match (before.get(key), self.winner(key)) {
                (Some(_), None) => events.push(Event::Delete(key.clone())),
                (old, Some((_, new))) if old != Some(new) => {
                    events.push(Event::Apply(Box::new(new.clone())));
                }
                _ => {}
            }
        }
        // After what was applied, since an `Apply` means that nothing is wrong with its key.
        let rejected = self.rejected(paths.iter(), keys.iter());
        let recovered = rejected_before.into_keys().filter(|origin| !rejected.contains_key(origin));
        events.extend(recovered.map(Event::Recover));
        events.extend(rejected.into_values().map(Event::Reject));
        events
    }

    /// The keys of all objects in these files.
    fn keys_of(&self, paths: &BTreeSet<String>) -> BTreeSet<ObjectKey> {
        let files = paths.iter().filter_map(|path| self.files.get(path));
        files.flat_map(|file| &file.objects).map(|(_, object)| object.key()).collect()
    }

    /// The object that counts among all of that key, with its origin.
    fn winner(&self, key: &ObjectKey) -> Option<&(String, Object)> {
        self.at(self.places.get(key)?.first()?)
    }

    fn at(&self, (path, i): &Place) -> Option<&(String, Object)> {
        self.files.get(path)?.objects.get(*i)
    }

    /// What is wrong in these files and with these keys, by origin.
    fn rejected<'a>(
        &self,
        paths: impl Iterator<Item = &'a String>,
        keys: impl Iterator<Item = &'a ObjectKey>,
    ) -> BTreeMap<String, Rejected> {
        let in_files =
            paths.filter_map(|path| self.files.get(path)).flat_map(|file| &file.rejected).cloned();
        let twice = keys.flat_map(|key| {
            let mut places = self.places.get(key).into_iter().flatten();
            let first = places.next().and_then(|place| self.at(place));
            places.filter_map(move |place| {
                Some(Rejected {
                    key: Some(key.clone()),
                    origin: self.at(place)?.0.clone(),
                    field: String::new(),
                    reason: format!("is there already, in {}; that one counts", first?.0),
                })
            })
        });
        twice.chain(in_files).map(|rejected| (rejected.origin.clone(), rejected)).collect()
    }

    /// Puts a file's new content in the place of its old.
    fn replace(&mut self, path: String, content: Content) {
        let old = self.files.remove(&path).unwrap_or_default();
        for (i, (_, object)) in old.objects.iter().enumerate() {
            let key = object.key();
            if let Some(places) = self.places.get_mut(&key) {
                places.remove(&(path.clone(), i));
                if places.is_empty() {
                    self.places.remove(&key);
                }
            }
        }
        let new = match content {
            Content::Gone => return,
            Content::Manifest(manifest) => self.merge(old, manifest),
            Content::Unreadable(reason) => {
                let rejected =
                    Rejected { key: None, origin: path.clone(), field: String::new(), reason };
                FileState { objects: old.objects, rejected: vec![rejected] }
            }
        };
        for (i, (_, object)) in new.objects.iter().enumerate() {
            self.places.entry(object.key()).or_default().insert((path.clone(), i));
        }
        self.files.insert(path, new);
    }

    /// A file's new objects, and those of its old that the new content may still mean: the same
    /// object in a bad form, or any object if it is not known what a bad document was to be.
    fn merge(&self, old: FileState, manifest: Manifest) -> FileState {
        let wanted = |kind: ResourceKind| self.kinds.contains(&kind);
        let mut objects = manifest.objects;
        objects.retain(|(_, object)| wanted(object.kind()));
        let mut rejected = manifest.rejected;
        rejected.retain(|rejected| rejected.key.as_ref().is_none_or(|key| wanted(key.kind)));
        if !rejected.is_empty() {
            let good: BTreeSet<ObjectKey> = objects.iter().map(|(_, o)| o.key()).collect();
            let any = rejected.iter().any(|rejected| rejected.key.is_none());
            let bad: BTreeSet<&ObjectKey> =
                rejected.iter().filter_map(|rejected| rejected.key.as_ref()).collect();
            objects.extend(old.objects.into_iter().filter(|(_, object)| {
                let key = object.key();
                !good.contains(&key) && (any || bad.contains(&key))
            }));
        }
        FileState { objects, rejected }
    }
}
