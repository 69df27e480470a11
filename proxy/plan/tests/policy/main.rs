//! The policy planner through its public face: cases, random sequences of changes, size.

mod cases;
mod common;
mod golden;
mod properties;
mod scale;
