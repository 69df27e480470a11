//! Policies as nftables rules made of the oracle's verdicts: a data plane that is right by construction, to prove the
//! stage with.

use std::fmt::Write as _;

use anyhow::{Context, Result, bail};

use super::{Enforcer, Policies, Stage};
use crate::policy::oracle::verdict;
use crate::policy::table::Query;

/// Drops in every node's forward chain what the oracle denies.
///
/// What never passes that chain (a node and its own pods, a pod and itself) is allowed, as it must be.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Cells that get the wrong verdict, to prove that the stage finds them.
    pub wrong: Vec<Query>,
    /// Cells whose answers are dropped.
    pub mute: Vec<Query>,
}

impl Enforcer for Filter {
    fn apply(&mut self, stage: &Stage, policies: &Policies) -> Result<()> {
        let rules = self.rules(stage, policies);
        let path = stage.cluster().dir().join("filter.nft");
        std::fs::write(&path, &rules).with_context(|| path.display().to_string())?;
        for node in stage.cluster().nodes() {
            let output = node.netns().launch("nft").arg("-f").arg(&path).output()?;
            if !output.status.success() {
                bail!("nft: {}\n{rules}", String::from_utf8_lossy(&output.stderr).trim());
            }
        }
        Ok(())
    }
}

impl Filter {
    /// Input for `nft -f`: the whole table, in place of the one before.
    fn rules(&self, stage: &Stage, policies: &Policies) -> String {
        let world = &stage.world().with(policies.cluster.clone());
        let mut denied = [Vec::new(), Vec::new()];
        for query in stage.queries() {
            let allowed = verdict(world, &policies.list, &query).is_allowed();
            if allowed == self.wrong.contains(&query) {
                let (from, to) = (query.from.addr, query.to.addr);
                let protocol = query.protocol.to_string().to_lowercase();
                denied[usize::from(from.is_ipv6())]
                    .push(format!("{from} . {to} . {protocol} . {}", query.port));
            }
        }
        let mut text =
            String::from("add table inet oracle\ndelete table inet oracle\ntable inet oracle {\n");
        // Writing to a String cannot fail.
        for ((set, kind), list) in
            [("denied4", "ipv4_addr"), ("denied6", "ipv6_addr")].into_iter().zip(&denied)
        {
            let _ = writeln!(
                text,
                "  set {set} {{\n    type {kind} . {kind} . inet_proto . inet_service"
            );
            if !list.is_empty() {
                let _ = writeln!(text, "    elements = {{ {} }}", list.join(", "));
            }
            text.push_str("  }\n");
        }
        text.push_str(
            "  chain forward {\n    type filter hook forward priority filter; policy accept;\n",
        );
        for Query { protocol, port, from, to } in &self.mute {
            let ip = if from.addr.is_ipv6() { "ip6" } else { "ip" };
            let protocol = protocol.to_string().to_lowercase();
            let _ = writeln!(
                text,
                "    {ip} saddr {} {ip} daddr {} {protocol} sport {port} drop",
                to.addr, from.addr
            );
        }
        text.push_str(
            "    ct state established,related accept\n    ip saddr . ip daddr . meta l4proto . th dport @denied4 drop\n    \
             ip6 saddr . ip6 daddr . meta l4proto . th dport @denied6 drop\n  }\n}\n",
        );
        text
    }
}
