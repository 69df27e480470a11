//! Placeholder.
pub mod dataplane;
