//! What a source says.

use std::fmt;

use sluice_model::{Object, ObjectKey};

/// One thing a source says.
///
/// `Apply` and `Reject` between `Init` and `InitDone` make up a new list. At `InitDone` everything
/// that the new list does not name is gone; until then the old list stays in force. Outside of such
/// a list, each event is a single change.
#[derive(Clone, PartialEq, Debug)]
pub enum Event {
    /// A list begins. A list that had begun and was not done is void.
    Init,
    /// The object is there, in this form.
    Apply(Box<Object>),
    /// The object is gone.
    Delete(ObjectKey),
    /// An object could not be understood; its last good form stays. A NetworkPolicy is applied just
    /// before in another form, which denies everything.
    Reject(Rejected),
    /// What was rejected at this origin (see [`Rejected::origin`]) is right again or gone. An
    /// `Apply` or `Delete` of the rejected key says the same without this event.
    Recover(String),
    /// The list is complete.
    InitDone,
}

/// An object that could not be understood. The cache keeps the last good version of that key, if
/// there is one, but of a NetworkPolicy, which fails closed.
///
/// It prints as one line that names all it knows:
/// `Service shop/web: spec.ports[1].port: 70000 is not 1 to 65535 (/etc/sluice/web.yaml#2)`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Rejected {
    /// Which object, as far as that could be read.
    pub key: Option<ObjectKey>,
    /// Where it is: `FILE#DOCUMENT` (from 1), with `[ITEM]` (from 0) in a list, or the etcd key.
    pub origin: String,
    /// The field's path in the object, such as `spec.ports[1].port`; empty where none is to blame.
    pub field: String,
    /// What is wrong with it, with the bad value.
    pub reason: String,
}

impl fmt::Display for Rejected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(key) = &self.key {
            write!(f, "{key}: ")?;
        }
        if !self.field.is_empty() {
            write!(f, "{}: ", self.field)?;
        }
        write!(f, "{} ({})", self.reason, self.origin)
    }
}
