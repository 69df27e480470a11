//! The kinds of sources.

mod backoff;
pub(crate) mod dir;
pub(crate) mod etcd;
