//! The planner: from Services, one at a time, to operations.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use sluice_abi::{Backend, FrontendKey};
use sluice_model::{Endpoint, ObjectName, Service};

use crate::claims::{Claims, Rank};
use crate::frontends::{self, Want, Wants, inside, is_any_port};
use crate::mirror::Mirror;
use crate::node::Depends;
use crate::restore::Held;
use crate::stage::Stage;
use crate::warning::Problem;
use crate::{MapOp, NodeContext, Tables, Warning, lists, services};

/// What one change of the model asks of the kernel.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Plan {
    /// The operations, in the order in which they must be done: backends, lists, names and filter
    /// bits before the frontends that need them, and what is no longer needed after the frontends
    /// that needed it. After any number of them each frontend is as it was or as it will be.
    pub ops: Vec<MapOp>,
    /// What of the model is not programmed and why, each when it first becomes so.
    pub warnings: Vec<Warning>,
}

/// Keeps the kernel's service tables in step with the Services, incrementally: a change of one
/// Service costs work in proportion to that Service.
///
/// The planner assumes that its operations succeed. Where one fails, or where the kernel's tables
/// were changed by somebody else, make a new planner from what the kernel really holds
/// ([`Planner::restore`]), sweep, state all Services again and prune: it keeps every number and only
/// repairs what differs. What may be done of plans that are made before that, [`Setback`] tells.
///
/// [`Setback`]: crate::Setback
#[derive(Clone, Debug, Default)]
pub struct Planner {
    mirror: Mirror,
    node: NodeContext,
    services: HashMap<ObjectName, Entry>,
    claims: Claims,
    held: Held,
}

/// What is known of a Service.
#[derive(Clone, Debug)]
struct Entry {
    rank: Rank,
    wants: Wants,
    /// Frontends that it asks for and does not get, with the Service that has each.
    lost: BTreeMap<FrontendKey, ObjectName>,
}

impl Planner {
    /// A planner for a kernel whose tables are empty.
    pub fn new() -> Self {
        Self::default()
    }

    /// A planner for a kernel that holds `tables`: after a restart of the agent, or after an
    /// operation failed.
    ///
    /// Service, backend and list numbers are kept. The tables may be damaged or left over from a
    /// plan that was not finished: stating the Services again and pruning puts them right. A
    /// restored frontend is left alone until its Service is stated or removed, or until
    /// [`Planner::prune`].
    pub fn restore(tables: Tables) -> Self {
        Self {
            held: Held::restore(&tables),
            mirror: Mirror::restore(tables),
            node: NodeContext::default(),
            services: HashMap::new(),
            claims: Claims::default(),
        }
    }

    /// States what the node is now, and returns the Services that it makes a difference to: they
    /// must be stated again. Nothing changes until they are, and then Service by Service.
    pub fn set_node(&mut self, node: NodeContext) -> BTreeSet<ObjectName> {
        let changed = Depends::differing(&self.node, &node);
        self.node = node;
        let entries = self.services.iter();
        entries
            .filter(|(_, entry)| entry.wants.depends.meets(changed))
            .map(|(name, _)| name.clone())
            .collect()
    }

    /// The node as it was stated last.
    pub fn node(&self) -> &NodeContext {
        &self.node
    }

    /// States what one Service and all its endpoints are now. The plan makes the kernel's tables
    /// so, and is empty if they are so already.
    pub fn upsert(&mut self, service: &Service, endpoints: &[Endpoint]) -> Plan {
        let mut wants = frontends::wants(service, endpoints, &self.node);
        if is_api_server(&service.meta.name) {
            self.keep_api_server(&mut wants);
        }
        let rank = Rank { created: service.meta.created, service: service.meta.name.clone() };
        self.state(rank, wants)
    }

    /// States all frontends that somebody asks for, and its place in the queue for them.
    pub(crate) fn state(&mut self, rank: Rank, wants: Wants) -> Plan {
        // Most of what changes in a Service or its endpoints is of no consequence here.
        if self.services.get(&rank.service).is_some_and(|e| e.wants == wants && e.rank == rank) {
            return Plan::default();
        }
        let (mut affected, old) = self.retract(&rank.service);
        for key in wants.keys() {
            self.claims.add(*key, rank.clone());
            affected.insert(*key);
        }
        let (known, mut lost) = old.map(|old| (old.wants.warnings, old.lost)).unwrap_or_default();
        lost.retain(|key, _| wants.frontends.contains_key(key));
        let warnings = wants.warnings.iter().filter(|w| !known.contains(w)).cloned().collect();
        self.services.insert(rank.service.clone(), Entry { rank, wants, lost });
        self.settle(affected, warnings)
    }

    /// States that a Service is gone. What it alone had goes; what others wait for goes to them.
    pub fn remove(&mut self, name: &ObjectName) -> Plan {
        let (affected, _) = self.retract(name);
        self.settle(affected, Vec::new())
    }

    /// Deletes what was restored and belongs to no Service that was stated since. To be called when
    /// every source has been heard to its end, so that a half-read list empties nothing.
    pub fn prune(&mut self) -> Plan {
        self.held.release_all();
        // What Services ask for and was held back until now is among them.
        let affected = self.mirror.tables().frontends.keys().map(inside).collect();
        let mut stage = Stage::default();
        self.mirror.sweep(&mut stage);
        self.settle_in(stage, affected, Vec::new())
    }

    /// Deletes what takes room and nothing refers to: left over from plans that were not finished.
    /// No frontend changes, whether its Service was stated or not.
    pub fn sweep(&mut self) -> Plan {
        let mut stage = Stage::default();
        self.mirror.sweep_unused(&mut stage);
        self.settle_in(stage, BTreeSet::new(), Vec::new())
    }

    /// What the kernel holds after all operations returned so far.
    pub fn tables(&self) -> &Tables {
        self.mirror.tables()
    }

    /// All that is not programmed as it stands, whenever it became so: a plan tells each once, this
    /// tells it as long as it is so.
    pub fn warnings(&self) -> impl Iterator<Item = Warning> {
        self.services.values().flat_map(|entry| {
            let lost = entry.lost.iter().filter_map(|(key, owner)| conflict(entry, key, owner));
            entry.wants.warnings.iter().cloned().chain(lost)
        })
    }

    /// A frontend of the API server's Service that is to have no backend keeps those that it had last:
    /// the list of its endpoints comes through the API server itself, whose absence is the likeliest
    /// reason for a list that is empty, and a node that cannot reach it cannot learn better. What it
    /// had is read off the tables, so that it holds across restarts.
    fn keep_api_server(&self, wants: &mut Wants) {
        for (key, want) in &mut wants.frontends {
            if want.backends.is_empty()
                && let Some(last) = self.last_backends(key, want)
            {
                want.backends = last;
            }
        }
    }

    /// The backends that the service port has in the tables for frontends of that family.
    fn last_backends(&self, key: &FrontendKey, want: &Want) -> Option<Arc<[Backend]>> {
        let tables = self.mirror.tables();
        let name = services::kernel_name(&want.port);
        let same_port = |other: &FrontendKey| {
            other.proto == key.proto
                && other.scope == key.scope
                && other.addr.is_v4() == key.addr.is_v4()
        };
        let (_, frontend) = tables.frontends.iter().find(|(other, frontend)| {
            frontend.count != 0
                && same_port(other)
                && tables.names.get(&frontend.service) == Some(&name)
        })?;
        let chunks = lists::keys(&tables.slots, frontend.list);
        let numbers = chunks.filter_map(|key| tables.slots.get(&key)).flat_map(lists::members);
        let mut backends: Vec<Backend> =
            numbers.filter_map(|number| tables.backends.get(&number).copied()).collect();
        backends.retain(|backend| backend.proto == key.proto);
        backends.sort_unstable_by_key(|backend| (backend.addr.to_ip(), backend.port.get()));
        backends.dedup();
        Some(backends.into())
    }

    /// Takes back all that the Service asked for; returns the frontends that it had in hand.
    fn retract(&mut self, name: &ObjectName) -> (BTreeSet<FrontendKey>, Option<Entry>) {
        let mut affected = self.held.release(name);
        let old = self.services.remove(name);
        if let Some(old) = &old {
            for key in old.wants.keys() {
                self.claims.remove(key, &old.rank);
                affected.insert(*key);
            }
        }
        (affected, old)
    }

    /// Makes each of these frontends what the first in its queue wants.
    pub(crate) fn settle(
        &mut self,
        affected: BTreeSet<FrontendKey>,
        warnings: Vec<Warning>,
    ) -> Plan {
        self.settle_in(Stage::default(), affected, warnings)
    }

    /// Makes each of these frontends what the first in its queue wants.
    fn settle_in(
        &mut self,
        mut stage: Stage,
        affected: BTreeSet<FrontendKey>,
        mut warnings: Vec<Warning>,
    ) -> Plan {
        for key in affected {
            if self.held.holds(&key) {
                continue;
            }
            match self.claims.queue(&key) {
                // It is the same whoever asks for it.
                Some(_) if is_any_port(&key) => {
                    self.mirror.put_any_port(key, &mut stage);
                    continue;
                }
                Some((owner, _)) => {
                    if let Some(want) = want(&self.services, owner, &key) {
                        self.mirror.put(key, want, &mut stage);
                    }
                }
                None => self.mirror.delete(key, &mut stage),
            }
            self.note_losers(&key, &mut warnings);
        }
        self.mirror.collect(&mut stage);
        Plan { ops: stage.into_ops(), warnings }
    }

    /// Warns of each Service that has just lost the frontend, or lost it to another than before.
    fn note_losers(&mut self, key: &FrontendKey, warnings: &mut Vec<Warning>) {
        let Some((owner, losers)) = self.claims.queue(key) else { return };
        if let Some(entry) = self.services.get_mut(owner) {
            entry.lost.remove(key);
        }
        for loser in losers {
            let Some(entry) = self.services.get_mut(&loser.service) else { continue };
            if entry.lost.insert(*key, owner.clone()).as_ref() == Some(owner) {
                continue;
            }
            warnings.extend(conflict(entry, key, owner));
        }
    }
}

/// Whether it is the Service that the API server is reached by.
fn is_api_server(name: &ObjectName) -> bool {
    name.namespace == "default" && name.name == "kubernetes"
}

/// The warning of a Service that asks for a frontend which `owner` has.
fn conflict(entry: &Entry, key: &FrontendKey, owner: &ObjectName) -> Option<Warning> {
    entry.wants.frontends.get(key).map(|want| Warning {
        service: entry.rank.service.clone(),
        field: want.field.clone(),
        problem: Problem::Conflict {
            addr: key.addr.to_ip(),
            port: key.port.get(),
            protocol: want.port.protocol,
            owner: owner.clone(),
        },
    })
}

/// What a Service wants a frontend to be.
fn want<'a>(
    services: &'a HashMap<ObjectName, Entry>,
    service: &ObjectName,
    key: &FrontendKey,
) -> Option<&'a Want> {
    services.get(service)?.wants.frontends.get(key)
}
