//! Cluster-wide network policies, which come before and after those of namespaces.

use ipnet::IpNet;

use crate::{LabelSelector, Meta, PolicyFault, Protocol};

/// `tier`: when a policy is asked.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub enum PolicyTier {
    /// Before NetworkPolicies.
    #[default]
    Admin,
    /// After them, for pods that none of them isolates in the direction.
    Baseline,
}

impl std::fmt::Display for PolicyTier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Admin => "Admin",
            Self::Baseline => "Baseline",
        })
    }
}

/// `action`: what becomes of a connection that a rule is for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum PolicyAction {
    /// It passes, whatever comes after.
    Accept,
    /// It does not pass, whatever comes after.
    Deny,
    /// The rest of the tier is left out, the next one decides.
    Pass,
}

impl std::fmt::Display for PolicyAction {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Accept => "Accept",
            Self::Deny => "Deny",
            Self::Pass => "Pass",
        })
    }
}

/// Pods of the pod network by label: `subject`, and the peers `namespaces` and `pods`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct NamespacedPods {
    /// `namespaces`, or `pods.namespaceSelector`.
    pub namespaces: LabelSelector,
    /// `pods.podSelector`; empty where there is `namespaces`.
    pub pods: LabelSelector,
}

/// One entry of `from` or `to`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum ClusterPolicyPeer {
    /// `namespaces` or `pods`.
    Pods(NamespacedPods),
    /// `nodes`: the addresses of the nodes with these labels. Only in `to`.
    Nodes(LabelSelector),
    /// `networks`, without host bits. Only in `to`.
    Networks(Vec<IpNet>),
}

/// One entry of `protocols`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum ClusterPolicyPort {
    /// `tcp`, `udp` or `sctp`: a port, or the first and the last of a range.
    Numbers(Protocol, u16, u16),
    /// `destinationNamedPort`: the container port of that name, of any protocol.
    Name(String),
}

/// One entry of `ingress` or `egress`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ClusterPolicyRule {
    /// `name`, for people; may be empty.
    pub name: String,
    /// `action`; that of a rule whose action cannot be read is [`PolicyAction::Deny`].
    pub action: PolicyAction,
    /// `from` or `to`.
    pub peers: Vec<ClusterPolicyPeer>,
    /// `protocols`; empty means everything, ICMP included.
    pub ports: Vec<ClusterPolicyPort>,
    /// Whether all of the rule is understood. One that is not fails closed, as the API has it of
    /// a peer of an unknown kind: if it accepts, it is for nobody; if it denies or passes, it denies
    /// everything.
    pub understood: bool,
}

/// A `policy.networking.k8s.io/v1alpha2` ClusterNetworkPolicy.
///
/// What it means is what the API's types say: [clusternetworkpolicy_types.go].
///
/// A rule that cannot be read fails closed ([`ClusterPolicyRule::understood`]), and so does a policy
/// of which something else cannot: it has one rule in each direction then, which denies everything. What
/// cannot be read of `tier`, `priority` and `subject` is the first one (Admin, 0) and all pods. `faults` says
/// why.
///
/// [clusternetworkpolicy_types.go]: https://github.com/kubernetes-sigs/network-policy-api/blob/main/apis/v1alpha2/clusternetworkpolicy_types.go
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ClusterNetworkPolicy {
    /// Metadata. A policy is in no namespace.
    pub meta: Meta,
    /// `spec.tier`.
    pub tier: PolicyTier,
    /// `spec.priority`, 0 to 1000: of a tier's policies, those with lower numbers are asked first. The API
    /// leaves open which of two with the same number is; here it is the one whose name sorts first.
    pub priority: u16,
    /// `spec.subject`: the pods that the policy is for.
    pub subject: NamespacedPods,
    /// `spec.ingress`: rules for connections to those pods, of which the first that is for a connection
    /// counts. Empty where the policy says nothing of them.
    pub ingress: Vec<ClusterPolicyRule>,
    /// The same for connections from those pods.
    pub egress: Vec<ClusterPolicyRule>,
    /// What could not be read; empty for a policy that is in force as written.
    pub faults: Vec<PolicyFault>,
}
