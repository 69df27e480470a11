//! Policies as manifests for the agents of [`super::Wiring::Agents`].

use std::fmt;

use anyhow::Result;

use super::{Enforcer, Policies, Stage};

/// Writes the policies into the cluster's manifests, in one step, and then waits as it is told to.
pub struct Manifests<W> {
    wait: W,
}

impl<W: FnMut(&Stage, &Policies) -> Result<()>> Manifests<W> {
    /// `wait` returns once the policies are in force on every node.
    pub fn new(wait: W) -> Self {
        Self { wait }
    }
}

impl<W> fmt::Debug for Manifests<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Manifests").finish_non_exhaustive()
    }
}

impl<W: FnMut(&Stage, &Policies) -> Result<()>> Enforcer for Manifests<W> {
    fn apply(&mut self, stage: &Stage, policies: &Policies) -> Result<()> {
        stage.cluster().apply("policies", &policies.yaml)?;
        (self.wait)(stage, policies)
    }
}
