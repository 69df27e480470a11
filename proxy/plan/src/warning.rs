//! What of the model cannot be programmed.

use std::fmt;

use sluice_model::ObjectName;

/// Something of a Service that cannot be programmed. The rest of it is.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Warning {
    /// The Service.
    pub service: ObjectName,
    /// The field, as the Kubernetes API spells it.
    pub field: String,
    /// What is wrong with it.
    pub reason: String,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Service {}: {}: {}", self.service, self.field, self.reason)
    }
}
