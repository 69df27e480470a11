//! Where Kubernetes objects come from, and the cache behind them.
//!
//! A [`SourceUrl`] names a source: a directory of manifests (`dir:/etc/sluice/manifests`) or the
//! etcd that a kube-apiserver writes to (`etcd:https://a:2379,b:2379`). [`Stream::open`] starts it;
//! [`Stream::next_batch`] yields typed [`Event`]s; [`Cache::ingest`] folds them into what the
//! cluster looks like and says what changed, in proportion to the change.
//!
//! ```text
//! bytes -> wire (serde and protobuf) -> convert (checks, defaults) -> sluice_model -> Event -> Cache
//! ```
//!
//! An object that cannot be understood is a [`Rejected`] that names the object, the field and the
//! bad value; whatever was known of it before stays, and all other objects go on. A NetworkPolicy
//! alone does not stay as it was: it fails closed, and is told as rejected.

#[cfg(feature = "args")]
mod args;
mod cache;
mod closed;
mod coalesce;
mod convert;
mod decode;
mod error;
mod event;
mod manifest;
mod options;
mod source;
mod stream;
mod url;
mod wire;

#[cfg(feature = "args")]
pub use args::{EtcdArgs, PasswordError, parse_source};
pub use cache::{Cache, Changes};
pub use convert::FieldError;
pub use decode::{DecodeError, decode_value};
pub use error::SourceError;
pub use event::{Event, Rejected};
pub use manifest::{Manifest, parse_manifest};
pub use options::{EtcdOptions, SourceOptions};
pub use stream::{SourceStatus, Stream};
pub use url::{EtcdEndpoint, SourceUrl, UrlError};
