//! Policies as manifests for the agents of [`super::Wiring::Agents`].

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Result, bail};
use sluice_proxy::control::{self, Reply, Request};

use super::{Enforcer, Policies, Stage};
use crate::node::Node;
use crate::wait::wait_ok;

/// How long an agent may take to read a manifest.
const LIMIT: Duration = Duration::from_secs(20);

/// Numbers the manifests of all stages.
static SERIAL: AtomicU64 = AtomicU64::new(0);

/// Writes the policies into the cluster's manifests, in one step, and waits until every agent has them in force.
///
/// One more policy goes with them, of a namespace without pods: an agent that lists it has put into the kernel all that
/// the manifest says, since it does one thing at a time.
#[derive(Clone, Copy, Debug, Default)]
pub struct Agents;

impl Enforcer for Agents {
    fn apply(&mut self, stage: &Stage, policies: &Policies) -> Result<()> {
        let marker = format!("marker-{}", SERIAL.fetch_add(1, Ordering::Relaxed));
        let yaml = format!(
            "{}\n---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n\
             metadata: {{name: {marker}, namespace: nobody}}\nspec: {{}}\n",
            policies.yaml
        );
        stage.cluster().apply("policies", &yaml)?;
        for node in stage.cluster().nodes() {
            wait_ok("the agent to have the policies", LIMIT, || lists(node, &marker))?;
        }
        Ok(())
    }
}

fn lists(node: &Node, marker: &str) -> Result<()> {
    let socket = node.run_dir().join("agent.sock");
    match control::request(&socket, Request::PolicyList)? {
        Some(Reply::Policies(rows)) if rows.iter().any(|row| row.name == marker) => Ok(()),
        other => bail!("{}: no {marker} in {other:?}", node.name()),
    }
}
