//! The planner through its public face: single changes, random sequences of them, golden files.

mod bad_input;
mod common;
mod golden;
mod host_ports;
mod node;
mod north_south;
mod planner;
mod properties;
