//! Rows of routes to other nodes' pods.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::Row;
use crate::routes::{Conflict, KernelRoute, PodRoute, Skipped};

/// How packets get to another node's pods.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RouteHow {
    /// Straight, over a shared link.
    Direct,
    /// Encapsulated.
    Vxlan,
    /// There is a route, but it is somebody else's.
    Foreign,
    /// There is no route.
    Skipped,
}

impl RouteHow {
    /// As people read it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Vxlan => "vxlan",
            Self::Foreign => "foreign",
            Self::Skipped => "skipped",
        }
    }
}

/// A pod CIDR of another node.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RouteRow {
    /// The CIDR; empty where the Node has none.
    pub destination: String,
    /// How packets get there.
    pub how: RouteHow,
    /// The node's address that they are sent to, or encapsulated for. `None` without a route.
    pub via: Option<IpAddr>,
    /// The node's name; empty where no agent says it.
    pub node: String,
    /// Why there is no route, or none of ours.
    pub note: String,
}

impl From<&PodRoute> for RouteRow {
    fn from(route: &PodRoute) -> Self {
        let (how, via) = match &route.tunnel {
            Some(hop) => (RouteHow::Vxlan, hop.peer),
            None => (RouteHow::Direct, route.via),
        };
        Self {
            destination: route.cidr.to_string(),
            how,
            via: Some(via),
            node: route.node.clone(),
            note: String::new(),
        }
    }
}

impl From<&Skipped> for RouteRow {
    fn from(skipped: &Skipped) -> Self {
        Self {
            destination: skipped.cidr.as_ref().map(ToString::to_string).unwrap_or_default(),
            how: RouteHow::Skipped,
            via: None,
            node: skipped.node.clone(),
            note: skipped.reason.to_string(),
        }
    }
}

impl From<&Conflict> for RouteRow {
    fn from(conflict: &Conflict) -> Self {
        Self {
            destination: conflict.wanted.cidr.to_string(),
            how: RouteHow::Foreign,
            via: conflict.foreign.via,
            node: conflict.wanted.node.clone(),
            note: format!("{} is there and not ours", conflict.foreign),
        }
    }
}

impl RouteRow {
    /// Of a route of ours that the kernel holds, where no agent says more. `device` is the index of the
    /// tunnel's device.
    pub fn of_kernel(route: &KernelRoute, device: Option<u32>) -> Self {
        let through = device.is_some() && route.interface == device;
        Self {
            destination: route.cidr.to_string(),
            how: if through { RouteHow::Vxlan } else { RouteHow::Direct },
            via: route.via,
            node: String::new(),
            note: String::new(),
        }
    }
}

impl Row for RouteRow {
    fn header(_wide: bool) -> Vec<&'static str> {
        vec!["PODS", "HOW", "VIA", "NODE", "NOTE"]
    }

    fn cells(&self, _wide: bool) -> Vec<String> {
        vec![
            self.destination.clone(),
            self.how.name().to_owned(),
            self.via.map(|via| via.to_string()).unwrap_or_default(),
            self.node.clone(),
            self.note.clone(),
        ]
    }
}
