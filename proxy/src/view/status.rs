//! The state of a node in one answer.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::{Deserialize, Serialize};
use sluice_abi::{Counter, maps};

use super::{RouteHow, RouteRow};
use crate::dataplane::{DataplaneError, Pinned};

/// What `proxyctl status` shows.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// The agent; `None` where it did not answer and the rest was read from the pinned maps.
    pub agent: Option<AgentStatus>,
    /// Service frontends in the kernel.
    pub frontends: usize,
    /// Backends in the kernel.
    pub backends: usize,
    /// Addresses of pods of this node in the kernel.
    pub endpoints: usize,
    /// Entries of each map.
    pub maps: Vec<MapUse>,
    /// Counters of the programs, summed over all CPUs.
    pub counters: Vec<CounterRow>,
}

/// What only a live agent knows.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AgentStatus {
    /// Version of the binary.
    pub version: String,
    /// Process id.
    pub pid: u32,
    /// Seconds since it started.
    pub uptime_secs: u64,
    /// Name of the node.
    pub node: String,
    /// Where objects come from.
    pub source: SourceView,
    /// The parts of Sluice, and whether they are on.
    pub parts: Vec<PartStatus>,
    /// Routes to other nodes.
    pub routes: Vec<RouteRow>,
    /// Everything that a person should look at, newest kinds of trouble first.
    pub problems: Vec<ProblemRow>,
}

/// State of a source.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SourceView {
    /// Its URL.
    pub url: String,
    /// Whether it answers.
    pub connected: bool,
    /// Seconds since `connected` last changed: how long the view has been stale where it is false.
    pub since_secs: u64,
    /// Whether it has been read to its end at least once.
    pub synced: bool,
    /// Its revision, where it counts them.
    pub revision: Option<i64>,
    /// The last thing that went wrong, while it is away.
    pub last_error: Option<String>,
}

/// One part of Sluice.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PartStatus {
    /// Its name.
    pub name: String,
    /// Whether it is on.
    pub on: bool,
    /// How, or why not.
    pub note: String,
}

/// Something that a person should look at.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProblemRow {
    /// What it is about: an object, a file, a map.
    pub subject: String,
    /// What is wrong with it, and the remedy where there is one.
    pub message: String,
}

/// How full a map is.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MapUse {
    /// Its name.
    pub name: String,
    /// Entries in use.
    pub used: usize,
    /// Entries it can hold.
    pub size: u32,
}

/// A counter of the programs.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CounterRow {
    /// Its name.
    pub name: String,
    /// Its value since the maps were made.
    pub value: u64,
}

impl Status {
    /// Adds what the maps say.
    ///
    /// # Errors
    ///
    /// Where a map cannot be read.
    pub fn fill(mut self, maps: &Pinned) -> Result<Self, DataplaneError> {
        let tables = maps.tables()?;
        let endpoints = maps.endpoints()?.len();
        self.frontends = tables.frontends.len();
        self.backends = tables.backends.len();
        self.endpoints = endpoints;
        let used = [
            (maps::FRONTENDS, tables.frontends.len()),
            (maps::SLOTS, tables.slots.len()),
            (maps::BACKENDS, tables.backends.len()),
            (maps::SERVICE_NAMES, tables.names.len()),
            (maps::SOURCE_RANGES, tables.source_ranges.len()),
            (maps::NODE_PORTS, tables.node_ports.len()),
            (maps::CONNTRACK, maps.conntrack()?.len()),
            (maps::UDP_PEERS, maps.udp_peers()?.len()),
            (maps::ENDPOINTS, endpoints),
        ];
        for (name, used) in used {
            let size = maps.size(name).unwrap_or(0);
            self.maps.push(MapUse { name: name.to_owned(), used, size });
        }
        let names: BTreeMap<Counter, &str> = Counter::ALL.into();
        for (counter, value) in maps.counters()? {
            let name = names.get(&counter).copied().unwrap_or_default().to_owned();
            self.counters.push(CounterRow { name, value });
        }
        Ok(self)
    }

    /// The status as text for people. `wide` adds the counters that are 0.
    pub fn text(&self, wide: bool) -> String {
        let mut out = String::new();
        match &self.agent {
            Some(agent) => agent.text(&mut out),
            None => line(&mut out, "Agent", "does not answer; read from the pinned maps"),
        }
        line(
            &mut out,
            "Kernel",
            &format!(
                "{} frontends, {} backends, {} pod addresses",
                self.frontends, self.backends, self.endpoints
            ),
        );
        for map in &self.maps {
            line(&mut out, &format!("  {}", map.name), &format!("{} of {}", map.used, map.size));
        }
        let counters: Vec<_> = self.counters.iter().filter(|c| wide || c.value > 0).collect();
        if !counters.is_empty() {
            line(&mut out, "Counters", "");
        }
        for counter in counters {
            line(&mut out, &format!("  {}", counter.name), &counter.value.to_string());
        }
        out
    }
}

impl AgentStatus {
    fn text(&self, out: &mut String) {
        let uptime = duration(self.uptime_secs);
        line(
            out,
            "Agent",
            &format!("sluiced {} on {}, pid {}, up {uptime}", self.version, self.node, self.pid),
        );
        let source = &self.source;
        let state = match (source.connected, source.synced) {
            (true, true) => "in sync".to_owned(),
            (true, false) => "being read for the first time".to_owned(),
            (false, true) => format!("AWAY for {}, last view kept", duration(source.since_secs)),
            (false, false) => format!("AWAY for {}, never read", duration(source.since_secs)),
        };
        let revision = source.revision.map(|r| format!(", revision {r}")).unwrap_or_default();
        line(out, "Source", &format!("{} ({state}{revision})", source.url));
        if let Some(error) = &source.last_error {
            line(out, "", error);
        }
        for part in &self.parts {
            let state = if part.on { "on" } else { "off" };
            let note =
                if part.note.is_empty() { String::new() } else { format!(" ({})", part.note) };
            line(out, &part.name, &format!("{state}{note}"));
        }
        for route in &self.routes {
            let RouteRow { destination, how, via, node, .. } = route;
            let via = via.map(|via| via.to_string()).unwrap_or_default();
            let by = if *how == RouteHow::Vxlan { "by vxlan to" } else { "via" };
            line(out, "Route", &format!("{destination} {by} {via} ({node})"));
        }
        for problem in &self.problems {
            line(out, "Problem", &format!("{}: {}", problem.subject, problem.message));
        }
    }
}

fn line(out: &mut String, label: &str, text: &str) {
    let text = format!("{label:<17} {text}");
    writeln!(out, "{}", text.trim_end()).expect("a String takes all that is written to it");
}

fn duration(secs: u64) -> String {
    match (secs / 86_400, secs / 3600 % 24, secs / 60 % 60, secs % 60) {
        (0, 0, 0, s) => format!("{s}s"),
        (0, 0, m, s) => format!("{m}m{s}s"),
        (0, h, m, _) => format!("{h}h{m}m"),
        (d, h, _, _) => format!("{d}d{h}h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_label_is_told_from_what_follows() {
        let mut out = String::new();
        line(&mut out, "Source", "dir:/manifests");
        line(&mut out, "  drop_conntrack_full", "7");
        assert_eq!(out, "Source            dir:/manifests\n  drop_conntrack_full 7\n");
    }
}
