//! NetworkPolicy and ClusterNetworkPolicy: a reference evaluator, a table of cases, random policies, and truth tables of what a data plane does.
//!
//! The evaluator ([`oracle`]) reads as the API's text does and knows nothing of identities, maps or programs. Whatever
//! computes verdicts is held against it cell by cell: pure code with [`table::compare`] (the agent's planner by
//! [`planned::Planned`]), a data plane with [`live::Stage`]. How much the table of cases can tell apart is measured by [`mutations`].
//!
//! ```no_run
//! use sluice_tests::policy::{cases, cluster::World, oracle, table};
//! let world = World::standard();
//! for case in cases::all(&world) {
//!     let policies = case.policies();
//!     let found = table::compare(&world, &policies, table::queries(&world), |query| {
//!         oracle::verdict(&world, &policies, query).is_allowed() // or what the planner says
//!     });
//!     assert!(found.is_empty(), "{}", table::report(&world, &case.to_string(), &found));
//! }
//! ```

pub mod cases;
pub mod cluster;
pub mod live;
pub mod mutations;
pub mod oracle;
pub mod planned;
pub mod random;
pub mod table;
pub mod tiers;
pub mod yaml;
