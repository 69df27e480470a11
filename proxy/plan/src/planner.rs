//! The planner.

use sluice_model::{Endpoint, ObjectName, Service};

use crate::{MapOp, Tables, Warning};

/// What one change of the model asks of the kernel.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Plan {
    /// The operations, in the order in which they must be done.
    pub ops: Vec<MapOp>,
    /// What of the model could not be programmed.
    pub warnings: Vec<Warning>,
}

/// Plans the kernel's tables.
#[derive(Debug, Default)]
pub struct Planner {
    tables: Tables,
}

impl Planner {
    /// A planner for empty tables.
    pub fn new() -> Self {
        Self::default()
    }

    /// A planner for a kernel that holds `tables`.
    pub fn restore(tables: Tables) -> Self {
        Self { tables }
    }

    /// The desired state of one Service.
    pub fn upsert(&mut self, _service: &Service, _endpoints: &[Endpoint]) -> Plan {
        Plan::default()
    }

    /// The Service is gone.
    pub fn remove(&mut self, _name: &ObjectName) -> Plan {
        Plan::default()
    }

    /// Deletes what was restored and nobody claimed.
    pub fn prune(&mut self) -> Plan {
        Plan::default()
    }

    /// What the kernel holds after all operations returned so far.
    pub fn tables(&self) -> &Tables {
        &self.tables
    }
}
