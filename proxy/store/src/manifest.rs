//! Manifest files: Kubernetes YAML or JSON, several documents a file, List kinds.

use serde::Deserialize;
use serde_json::Value;
use sluice_model::{Object, ObjectKey, ResourceKind};
use tracing::debug;

use crate::Rejected;
use crate::closed::{fault, substitute};
use crate::convert::object_name;
use crate::decode::{DecodeError, decode_tree, kind};
use crate::wire::{ObjectMeta, TypeMeta};

/// What one manifest file holds.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Manifest {
    /// The objects of the kinds that Sluice uses, each with its origin (see [`Rejected::origin`]),
    /// in the file's order.
    pub objects: Vec<(String, Object)>,
    /// What could not be understood. A NetworkPolicy among it is among the objects too, closed.
    pub rejected: Vec<Rejected>,
}

/// Reads the text of a manifest file. `path` is used in messages, and to tell JSON (`.json`) from
/// YAML. A document or an object that is wrong is rejected; all others are there.
pub fn parse_manifest(path: &str, text: &str) -> Manifest {
    let mut manifest = Manifest::default();
    if path.ends_with(".json") {
        let documents = serde_json::Deserializer::from_str(text).into_iter::<Value>();
        for (i, document) in documents.enumerate() {
            let origin = format!("{path}#{}", i + 1);
            match document {
                Ok(value) => manifest.read(&value, None, origin),
                Err(error) => manifest.reject_document(origin, error.to_string()),
            }
        }
    } else {
        for (i, document) in documents(text).into_iter().enumerate() {
            let origin = format!("{path}#{}", i + 1);
            match yaml(document.text) {
                Ok(value) => manifest.read(&value, None, origin),
                Err(error) => {
                    // Parsed again, moved down to where it is in the file, so that the message
                    // tells the file's line.
                    let moved = "\n".repeat(document.line) + document.text;
                    let error = yaml(&moved).err().unwrap_or(error);
                    manifest.reject_document(origin, error.to_string());
                }
            }
        }
    }
    manifest
}

/// One YAML document as a tree, anchors and merge keys resolved.
fn yaml(text: &str) -> Result<Value, serde_norway::Error> {
    let mut value: serde_norway::Value = serde_norway::from_str(text)?;
    value.apply_merge()?;
    Value::deserialize(value)
}

/// One document of a YAML file.
struct Document<'a> {
    text: &'a str,
    /// How many lines of the file are before it.
    line: usize,
}

/// Cuts a YAML file at its document markers, as `kubectl` does, so that a document that is not YAML
/// leaves the others alone. Documents without content are left out.
fn documents(text: &str) -> Vec<Document<'_>> {
    let mut documents = Vec::new();
    let (mut start, mut start_line) = (0, 0);
    let mut position = 0;
    let mut cut = |start: usize, end: usize, line: usize| {
        let text = &text[start..end];
        let content = |line: &str| {
            let line = line.trim();
            !line.is_empty() && !line.starts_with(['#', '%'])
        };
        if text.lines().any(content) {
            documents.push(Document { text, line });
        }
    };
    for (number, line) in text.split_inclusive('\n').enumerate() {
        let marker = ["---", "..."].into_iter().any(|marker| {
            line.strip_prefix(marker)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with(char::is_whitespace))
        });
        if marker {
            cut(start, position, start_line);
            // The rest of the marker's line belongs to the document that it begins.
            (start, start_line) = (position + 3, number);
        }
        position += line.len();
    }
    cut(start, text.len(), start_line);
    documents
}

impl Manifest {
    fn reject_document(&mut self, origin: String, reason: String) {
        self.rejected.push(Rejected { key: None, origin, field: String::new(), reason });
    }

    /// Reads one tree. Items of a list such as `ServiceList` may leave out their type: `inherited`
    /// has it.
    fn read(&mut self, value: &Value, inherited: Option<&TypeMeta>, origin: String) {
        if value.is_null() {
            return;
        }
        if !value.is_object() {
            self.reject_document(origin, "is not an object".to_owned());
            return;
        }
        let type_meta = match serde_path_to_error::deserialize::<_, TypeMeta>(value) {
            Ok(type_meta) => type_meta,
            Err(error) => {
                let field = error.path().to_string();
                let reason = error.into_inner().to_string();
                self.rejected.push(Rejected { key: None, origin, field, reason });
                return;
            }
        };
        let type_meta = match inherited {
            Some(inherited) if type_meta.kind.is_empty() => inherited.clone(),
            _ => type_meta,
        };
        if let (Some(item), Some(items)) = (type_meta.kind.strip_suffix("List"), value.get("items"))
        {
            let inherited = (!item.is_empty())
                .then(|| TypeMeta { api_version: type_meta.api_version, kind: item.to_owned() });
            match items {
                Value::Null => {}
                Value::Array(items) => {
                    for (i, item) in items.iter().enumerate() {
                        self.read(item, inherited.as_ref(), format!("{origin}[{i}]"));
                    }
                }
                _ => self.rejected.push(Rejected {
                    key: None,
                    origin,
                    field: "items".to_owned(),
                    reason: "is not a list".to_owned(),
                }),
            }
            return;
        }
        let decoded = kind(&type_meta)
            .map_err(|error| (None, error))
            .and_then(|kind| decode_tree(kind, value).map_err(|error| (Some(kind), error)));
        match decoded {
            Ok(object) => {
                self.rejected.extend(fault(&object, &origin));
                self.objects.push((origin, object));
            }
            Err((_, DecodeError::Ignored { api_version, kind })) => {
                debug!(origin, api_version, kind, "left out an object of a kind that is not used");
            }
            Err((kind, error)) => {
                let key = kind.and_then(|kind| object_key(kind, value));
                let rejected = rejection(key, origin.clone(), error);
                match substitute(&rejected) {
                    Some(object) => {
                        self.rejected.extend(fault(&object, &origin));
                        self.objects.push((origin, object));
                    }
                    None => self.rejected.push(rejected),
                }
            }
        }
    }
}

/// The name of an object of which nothing else may be readable.
fn object_key(kind: ResourceKind, value: &Value) -> Option<ObjectKey> {
    let text = |field: &str| value.get("metadata")?.get(field)?.as_str().map(str::to_owned);
    let metadata = ObjectMeta {
        name: text("name")?,
        namespace: text("namespace").unwrap_or_default(),
        ..ObjectMeta::default()
    };
    object_name(kind, Some(&metadata)).ok().map(|name| ObjectKey { kind, name })
}

/// A decode error as what the source says of it.
pub(crate) fn rejection(key: Option<ObjectKey>, origin: String, error: DecodeError) -> Rejected {
    match error {
        DecodeError::Field { name, error } => Rejected {
            key: key.or_else(|| name.map(|(kind, name)| ObjectKey { kind, name })),
            origin,
            field: error.field,
            reason: error.reason,
        },
        other => Rejected { key, origin, field: String::new(), reason: other.to_string() },
    }
}

#[cfg(test)]
mod tests;
