//! From network policies, pods and namespaces to the entries of the kernel's policy maps, and from
//! the difference to operations. Pure, like the rest of the crate.
//!
//! ```text
//! POLICY_SETS interface -> {ingress set, egress set}      the pods of this node
//!  IDENTITIES prefix    -> identity                       everybody whom a rule names
//!      POLICY {set, identity, proto, port} -> verdict     what is allowed, and what is not though more is
//! ```
//!
//! Only policies that select a pod of this node count; all others cost nothing here. Their rules name
//! peers: selectors and blocks of addresses, each once however often it is named. An identity stands
//! for the peers that an address is (and for the numbers that it has for the ports that rules name),
//! so that there are no more identities than the rules in force can tell apart. An address that is no
//! peer has none. A set stands for the rules that a pod has in one direction; pods with the same rules
//! share it.
//!
//! Rules of cluster-wide policies come in an order, and may deny; what they come to together with those of
//! NetworkPolicies is worked out for each set and identity ([`tiers`]).
//!
//! What a set and an identity mean never changes while something in the kernel refers to them: another
//! meaning has another number. Rules are written before the identity or the pod that needs them, and
//! deleted after. So each change of one object is one atomic write for each address or pod that it
//! concerns, and in between every verdict is the old or the new one.

mod classes;
mod explain;
mod naming;
mod net;
mod nodes;
mod peers;
mod planner;
mod pods;
mod ports;
mod restore;
mod selector;
mod sets;
mod tables;
mod tiers;

pub use explain::{ClusterRule, Explanation, Judgement, Party};
pub use planner::PolicyPlanner;
pub use pods::LocalPod;
pub use tables::{PolicyOp, PolicyTables};
