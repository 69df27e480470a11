//! From the model to kernel map entries, and the difference to what the kernel holds as operations.
//!
//! Pure: no I/O, no clock, no async.

mod ops;
mod planner;
mod warning;

pub use ops::{MapOp, Tables};
pub use planner::{Plan, Planner};
pub use warning::Warning;
