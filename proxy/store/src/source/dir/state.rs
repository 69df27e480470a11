//! The objects of all files, and what a changed file means for them. Pure.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use sluice_model::{ObjectKey, ResourceKind};

use super::files::{Change, Content, Contents};
use super::packed::Packed;
use crate::{Event, Rejected};

/// A file and the place of an object in it.
type Place = (Arc<str>, usize);

/// What one file holds, last good objects included.
#[derive(Debug, Default)]
struct FileState {
    /// With the origin of each.
    objects: Vec<(Box<str>, Packed)>,
    rejected: Vec<Rejected>,
}

/// The objects of all files. Of an object that is in several places, the first by path and place
/// counts, and the others are rejected.
#[derive(Debug)]
pub(super) struct Manifests {
    kinds: BTreeSet<ResourceKind>,
    files: BTreeMap<Arc<str>, FileState>,
    /// Sorted; nearly every object has one place.
    places: HashMap<ObjectKey, Vec<Place>>,
}

impl Manifests {
    pub(super) fn new(kinds: BTreeSet<ResourceKind>) -> Self {
        Self { kinds, files: BTreeMap::new(), places: HashMap::new() }
    }

    /// Takes these files as all there are. What is wrong in one of them keeps its last good form.
    pub(super) fn relist(&mut self, changes: Vec<Change>) {
        let listed: BTreeSet<&str> = changes.iter().map(|(path, _)| path.as_str()).collect();
        let gone: Vec<Arc<str>> =
            self.files.keys().filter(|path| !listed.contains(&***path)).cloned().collect();
        for path in gone {
            self.replace(&path, Content::Gone);
        }
        for (path, content) in changes {
            self.replace(&path, content);
        }
    }

    /// All objects and all rejections, as between `Init` and `InitDone`, one by one: all of them at
    /// once would take as much memory again.
    pub(super) fn all(&self) -> impl Iterator<Item = Event> {
        let objects = self
            .files
            .iter()
            .flat_map(|(path, file)| file.objects.iter().enumerate().map(move |o| (path, o)))
            .filter(|(path, (i, (_, object)))| {
                let first = self.places.get(&object.key()).and_then(|places| places.first());
                first.is_some_and(|first| first.0 == **path && first.1 == *i)
            })
            .map(|(_, (_, (_, object)))| Event::Apply(Box::new(object.unpack())));
        let paths = self.files.keys().map(|path| &**path);
        let rejected = self.rejected(paths, self.places.keys());
        objects.chain(rejected.into_values().map(Event::Reject))
    }

    /// Takes files as changed and says what that means.
    pub(super) fn change(&mut self, changes: Vec<Change>) -> Vec<Event> {
        let paths: BTreeSet<String> = changes.iter().map(|(path, _)| path.clone()).collect();
        let mut keys: BTreeSet<ObjectKey> = self.keys_of(&paths);
        let names = || paths.iter().map(String::as_str);
        let rejected_before = self.rejected(names(), keys.iter());
        let before: HashMap<ObjectKey, Packed> = keys
            .iter()
            .filter_map(|key| Some((key.clone(), self.winner(key)?.1.clone())))
            .collect();
        for (path, content) in changes {
            self.replace(&path, content);
        }
        keys.extend(self.keys_of(&paths));
        let mut events = Vec::new();
        for key in &keys {
            match (before.get(key), self.winner(key)) {
                (Some(_), None) => events.push(Event::Delete(key.clone())),
                (old, Some((_, new))) if old != Some(new) => {
                    events.push(Event::Apply(Box::new(new.unpack())));
                }
                _ => {}
            }
        }
        // After what was applied, since an `Apply` means that nothing is wrong with its key.
        let rejected = self.rejected(names(), keys.iter());
        let recovered = rejected_before.into_keys().filter(|origin| !rejected.contains_key(origin));
        events.extend(recovered.map(Event::Recover));
        events.extend(rejected.into_values().map(Event::Reject));
        events
    }

    /// The keys of all objects in these files.
    fn keys_of(&self, paths: &BTreeSet<String>) -> BTreeSet<ObjectKey> {
        let files = paths.iter().filter_map(|path| self.files.get(path.as_str()));
        files.flat_map(|file| &file.objects).map(|(_, object)| object.key()).collect()
    }

    /// The object that counts among all of that key, with its origin.
    fn winner(&self, key: &ObjectKey) -> Option<&(Box<str>, Packed)> {
        self.at(self.places.get(key)?.first()?)
    }

    fn at(&self, (path, i): &Place) -> Option<&(Box<str>, Packed)> {
        self.files.get(path)?.objects.get(*i)
    }

    /// What is wrong in these files and with these keys, by origin.
    fn rejected<'a>(
        &self,
        paths: impl Iterator<Item = &'a str>,
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
                    origin: self.at(place)?.0.to_string(),
                    field: String::new(),
                    reason: format!("is there already, in {}; that one counts", first?.0),
                })
            })
        });
        twice.chain(in_files).map(|rejected| (rejected.origin.clone(), rejected)).collect()
    }

    /// Puts a file's new content in the place of its old.
    fn replace(&mut self, path: &str, content: Content) {
        let (path, old) = match self.files.remove_entry(path) {
            Some((path, old)) => (path, old),
            None => (Arc::from(path), FileState::default()),
        };
        for (i, (_, object)) in old.objects.iter().enumerate() {
            let key = object.key();
            if let Some(places) = self.places.get_mut(&key) {
                places.retain(|place| (&*place.0, place.1) != (&*path, i));
                if places.is_empty() {
                    self.places.remove(&key);
                }
            }
        }
        let new = match content {
            Content::Gone => return,
            Content::Manifest(manifest) => self.merge(old, manifest),
            Content::Unreadable(reason) => {
                let origin = path.to_string();
                let rejected = Rejected { key: None, origin, field: String::new(), reason };
                FileState { objects: old.objects, rejected: vec![rejected] }
            }
        };
        for (i, (_, object)) in new.objects.iter().enumerate() {
            let places = self.places.entry(object.key()).or_default();
            let place = (path.clone(), i);
            let at = places.binary_search(&place).unwrap_or_else(|at| at);
            places.insert(at, place);
            places.shrink_to_fit();
        }
        self.files.insert(path, new);
    }

    /// A file's new objects, and those of its old that the new content may still mean: the same
    /// object in a bad form, or any object if it is not known what a bad document was to be.
    fn merge(&self, old: FileState, manifest: Contents) -> FileState {
        let wanted = |kind: ResourceKind| self.kinds.contains(&kind);
        let mut objects = manifest.objects;
        objects.retain(|(_, object)| wanted(object.key().kind));
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
        objects.shrink_to_fit();
        FileState { objects, rejected }
    }
}
