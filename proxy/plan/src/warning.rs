//! What of the model cannot be programmed.

use std::fmt;
use std::net::IpAddr;

use sluice_model::{ObjectName, Protocol};

use crate::host_ports::Subject;

/// A field of a Service, or of a Pod with ports of the node, that cannot be programmed as it stands.
/// The rest of the object is.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Warning {
    /// The Service, or the name that stands for a Pod; [`Warning::subject`] tells them apart.
    pub service: ObjectName,
    /// The field, as the Kubernetes API spells it.
    pub field: String,
    /// What is wrong with it.
    pub problem: Problem,
}

/// What is wrong with a field.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Problem {
    /// Another Service has the same address, port and protocol and was there first (the older
    /// `creationTimestamp`, then the lesser namespace and name). This one gets the frontend when
    /// that one goes.
    Conflict {
        /// The address in question.
        addr: IpAddr,
        /// Its port.
        port: u16,
        /// Its protocol.
        protocol: Protocol,
        /// The Service that has it, or the name that stands for a Pod.
        owner: ObjectName,
    },
    /// Another port of the same Service has the same name and protocol; this one is left out.
    DuplicatePortName {
        /// The name.
        name: String,
        /// Index of the port that is programmed.
        first: usize,
    },
    /// Another port of the same Service has the same number and protocol; this one is left out.
    DuplicatePort {
        /// The number.
        port: u16,
        /// The protocol.
        protocol: Protocol,
        /// Name of the port that is programmed.
        first: String,
    },
    /// A range of clients that cannot be read; it admits nobody.
    BadSourceRange {
        /// What stands there.
        text: String,
        /// Whether no range is left, so that nobody at all is admitted.
        nobody: bool,
    },
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Conflict { addr, port, protocol, owner } => write!(
                f,
                "{addr} port {port}/{protocol} belongs to {}; this Service does not get it",
                Subject(owner)
            ),
            Self::DuplicatePortName { name, first } => {
                write!(
                    f,
                    "{name:?} is the name of spec.ports[{first}] already; the port is skipped"
                )
            }
            Self::BadSourceRange { text, nobody } => {
                write!(f, "{text:?} is not a CIDR and admits no client")?;
                if *nobody {
                    f.write_str("; no other is left, so nobody is admitted")
                } else {
                    Ok(())
                }
            }
            Self::DuplicatePort { port, protocol, first } => {
                write!(f, "{port}/{protocol} is taken by the port {first:?}; the port is skipped")
            }
        }
    }
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.subject(), self.message())
    }
}

impl Warning {
    /// `Service shop/web` or `Pod shop/web-0`.
    pub fn subject(&self) -> impl fmt::Display {
        Subject(&self.service)
    }

    /// The field, and what is wrong with it.
    pub fn message(&self) -> String {
        match &self.problem {
            Problem::Conflict { addr, port, protocol, owner }
                if Subject(&self.service).is_pod() =>
            {
                format!(
                    "{}: {addr} port {port}/{protocol} belongs to {}; this Pod is not reached there",
                    self.field,
                    Subject(owner)
                )
            }
            problem => format!("{}: {problem}", self.field),
        }
    }
}
