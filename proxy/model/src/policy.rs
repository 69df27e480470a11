//! Network policies and the selectors they are made of.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;

use crate::{Meta, Protocol};

/// A set-based requirement on a label (`matchExpressions`).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum LabelOperator {
    /// The label is there, with one of these values.
    In(BTreeSet<String>),
    /// The label is not there, or has none of these values.
    NotIn(BTreeSet<String>),
    /// The label is there.
    Exists,
    /// The label is not there.
    DoesNotExist,
}

/// One entry of `matchExpressions`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct LabelRequirement {
    /// `key`.
    pub key: String,
    /// `operator`, with its `values`.
    pub operator: LabelOperator,
}

/// `meta/v1.LabelSelector`: all of its parts must hold, and an empty one selects everything.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct LabelSelector {
    /// `matchLabels`.
    pub labels: BTreeMap<String, String>,
    /// `matchExpressions`.
    pub expressions: Vec<LabelRequirement>,
}

/// `from` or `to`: whom a rule allows.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum PolicyPeer {
    /// Pods by label.
    Pods {
        /// `namespaceSelector`; without one, the policy's own namespace.
        namespaces: Option<LabelSelector>,
        /// `podSelector`; without one, every pod of those namespaces.
        pods: Option<LabelSelector>,
    },
    /// `ipBlock`.
    Block {
        /// `cidr`, without its host bits.
        cidr: IpNet,
        /// `except`, without host bits, each inside `cidr`.
        except: Vec<IpNet>,
    },
}

/// `port` of a rule.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum PolicyPortRange {
    /// Every port of the protocol.
    All,
    /// `port` to `endPort`, both included; `endPort` is `port` where none is given.
    Numbers(u16, u16),
    /// The container port of that name, of each destination pod by itself.
    Name(String),
}

/// One entry of `ports`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PolicyPort {
    /// `protocol`.
    pub protocol: Protocol,
    /// `port` and `endPort`.
    pub ports: PolicyPortRange,
}

/// One entry of `ingress` or `egress`: what is allowed is a peer and a port, both listed here.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct PolicyRule {
    /// `from` or `to`; empty means everybody.
    pub peers: Vec<PolicyPeer>,
    /// `ports`; empty means every port of every protocol.
    pub ports: Vec<PolicyPort>,
}

/// What could not be read of a policy.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PolicyFault {
    /// Path of the field, such as `spec.ingress[0].from[1].ipBlock.cidr`.
    pub field: String,
    /// What is wrong with it.
    pub message: String,
}

/// A `networking.k8s.io/v1` NetworkPolicy.
///
/// A policy that cannot be read fails closed: the pods that it selects (all of its namespace where
/// the selector itself is the fault) are isolated in both directions, and it allows nothing.
/// `faults` then says why.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct NetworkPolicy {
    /// Metadata.
    pub meta: Meta,
    /// `spec.podSelector`: the pods of its namespace that the policy is for.
    pub pods: LabelSelector,
    /// Rules for connections to those pods. `None` where `policyTypes` leaves the direction out
    /// (the pods are not isolated by this policy); empty where nothing is allowed.
    pub ingress: Option<Vec<PolicyRule>>,
    /// The same for connections from those pods.
    pub egress: Option<Vec<PolicyRule>>,
    /// Why the policy could not be read; empty for one that is in force as written.
    pub faults: Vec<PolicyFault>,
}
