//! The random walk: the cluster changes, agents are killed and come back, somebody breaks what is ours.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, ensure};
use sluice_proxy::routes::TUNNEL_DEVICE;
use sluice_tests::Result;
use sluice_tests::netns::{self, NetNs};
use sluice_tests::policy::random::Draw;
use sluice_tests::wait::{wait_for, wait_ok};

use crate::kernel::{Lines, expected, held, json, text, with_length};
use crate::world::{Member, World, ip};
use crate::{CROSS_SUBNET, LIMIT};

/// Somebody else's route.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Foreign {
    node: usize,
    table: &'static str,
    kind: &'static str,
    destination: String,
    protocol: u8,
    /// Index of the tunnel's device, if it hangs on that.
    device: Option<u64>,
}

impl Foreign {
    fn command(&self, verb: &str) -> String {
        let Self { table, kind, destination, protocol, .. } = self;
        let family = if destination.contains(':') { "-6" } else { "-4" };
        let (before, after) = if self.device.is_some() {
            ("", format!("dev {TUNNEL_DEVICE}"))
        } else {
            (*kind, String::new())
        };
        format!(
            "{family} route {verb} {before} {destination} {after} proto {protocol} metric 77 table {table}"
        )
    }
}

fn device_index(netns: &NetNs) -> Result<Option<u64>> {
    let links = json("ip", netns, &["link", "show"])?;
    let link = links.iter().find(|link| text(link, "ifname") == TUNNEL_DEVICE);
    Ok(link.and_then(|link| link["ifindex"].as_u64()))
}

/// Whether a foreign route is as it was put there.
fn stands(foreign: &Foreign, netns: &NetNs) -> Result<bool> {
    let family = if foreign.destination.contains(':') { "-6" } else { "-4" };
    let args = [family, "-N", "route", "show", "table", foreign.table];
    let routes = json("ip", netns, &args)?;
    Ok(routes.iter().any(|route| {
        with_length(text(route, "dst")) == foreign.destination
            && text(route, "protocol") == foreign.protocol.to_string()
            && (foreign.device.is_none() || text(route, "dev") == TUNNEL_DEVICE)
    }))
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().and_then(|text| text.parse().ok())
}

/// The random walk: what the nodes are to be, and what was done to them.
struct Walk {
    world: World,
    members: Vec<Member>,
    foreign: Vec<Foreign>,
    /// Agents that were killed, and for how many steps they stay so.
    down: BTreeMap<usize, usize>,
    random: Draw,
    log: String,
}

impl Walk {
    fn note(&mut self, what: String) {
        let _ = writeln!(self.log, "{what}");
    }

    /// One change of the cluster, or of a kernel.
    fn step(&mut self) -> Result<()> {
        let index = self.random.below(self.members.len());
        let mut member = self.members[index].clone();
        let netns = self.world.nodes[index].netns().name().to_owned();
        let of_node = |command: String| format!("{netns}: {command}");
        match self.random.below(20) {
            0..3 => {
                let used: BTreeSet<u8> = self.members.iter().map(|member| member.host).collect();
                let free: Vec<u8> = (11..40).filter(|host| !used.contains(host)).collect();
                member.host = free[self.random.below(free.len())];
            }
            3..6 => member.subnet = 1 - member.subnet,
            // Of few: some overlap.
            6..9 => member.pods = 1 + u8::try_from(self.random.below(5))?,
            9..11 => member.known = !member.known,
            11 => member.six_first = !member.six_first,
            12..14 => {
                if !self.down.contains_key(&index) {
                    self.world.nodes[index].kill_agent()?;
                    let steps = 1 + self.random.below(4);
                    self.note(format!("agent of {} killed for {steps} steps", member.name));
                    self.down.insert(index, steps);
                }
            }
            14..17 => {
                // Somebody breaks what is ours.
                let netns = self.world.nodes[index].netns();
                let lines: Vec<String> = held(netns)?.into_iter().collect();
                if lines.is_empty() {
                    return Ok(());
                }
                let line = lines[self.random.below(lines.len())].clone();
                let words: Vec<&str> = line.split_whitespace().collect();
                let command = match words[0] {
                    "table" => {
                        let family = if words[2].contains(':') { "-6" } else { "-4" };
                        let table = words[1].trim_end_matches(':');
                        format!("{family} route del {} table {table} proto 92", words[2])
                    }
                    "rule" => {
                        let family = if words[3].contains(':') { "-6" } else { "-4" };
                        format!("{family} rule del priority 29092 from {}", words[3])
                    }
                    "device" if self.random.below(2) == 0 => format!("link del {TUNNEL_DEVICE}"),
                    "device" => format!("link set {TUNNEL_DEVICE} down"),
                    "neighbour" => format!("neigh del {} dev {TUNNEL_DEVICE}", words[1]),
                    _ => {
                        netns::run(
                            "bridge",
                            &[
                                "-n",
                                netns.name(),
                                "fdb",
                                "del",
                                words[1],
                                "dev",
                                TUNNEL_DEVICE,
                                "dst",
                                words[3],
                            ],
                        )?;
                        self.note(of_node(line));
                        return Ok(());
                    }
                };
                ip(netns, &command)?;
                if words[0] == "device" {
                    // The kernel takes them along.
                    self.foreign
                        .retain(|foreign| foreign.node != index || foreign.device.is_none());
                }
                self.note(of_node(command));
            }
            17 | 18 => return self.add_foreign(index),
            _ => {
                if self.foreign.is_empty() {
                    return Ok(());
                }
                let chosen = self.random.below(self.foreign.len());
                let foreign = self.foreign.swap_remove(chosen);
                ip(self.world.nodes[foreign.node].netns(), &foreign.command("del"))?;
                self.note(format!("somebody removes {foreign:?}"));
            }
        }
        if member != self.members[index] {
            self.note(format!("{member:?}"));
            self.world.place(index, &member)?;
            self.members[index] = member;
        }
        Ok(())
    }

    fn add_foreign(&mut self, node: usize) -> Result<()> {
        let netns = self.world.nodes[node].netns();
        let device = device_index(netns)?;
        let salt = self.random.below(200);
        let any = Foreign {
            node,
            table: "main",
            kind: "blackhole",
            destination: format!("203.0.113.{salt}/32"),
            protocol: 4,
            device: None,
        };
        let pods = &self.members[self.random.below(self.members.len())].spec().pod_cidrs;
        let foreign = match self.random.below(6) {
            0 => any,
            1 => Foreign { protocol: 17, kind: "unreachable", ..any },
            2 => Foreign { table: "92", ..any },
            3 if device.is_some() => {
                let destination = format!("198.51.100.{salt}/32");
                Foreign { device, destination, protocol: 186, ..any }
            }
            kind => Foreign { destination: pods[kind % 2].clone(), protocol: 186, ..any },
        };
        let same =
            |other: &Foreign| (other.node, &other.destination) == (node, &foreign.destination);
        if self.foreign.iter().any(same) {
            return Ok(());
        }
        ip(netns, &foreign.command("add"))?;
        self.note(format!("somebody adds {foreign:?}"));
        self.foreign.push(foreign);
        Ok(())
    }

    /// Agents whose time has come are started.
    fn revive(&mut self, all: bool) -> Result<()> {
        for index in 0..self.members.len() {
            let Some(steps) = self.down.get_mut(&index) else { continue };
            *steps = steps.saturating_sub(1);
            if *steps > 0 && !all {
                continue;
            }
            if !self.members[index].known {
                // It would wait for its Node object.
                self.members[index].known = true;
                self.world.place(index, &self.members[index])?;
            }
            self.down.remove(&index);
            self.note(format!("agent of {} starts", self.members[index].name));
            self.world.start(index, &CROSS_SUBNET)?;
        }
        Ok(())
    }

    /// Waits until every kernel whose agent lives holds what the model says, and sees to it that what is somebody
    /// else's is there.
    fn settle(&mut self) -> Result<()> {
        for index in 0..self.members.len() {
            let netns = self.world.nodes[index].netns();
            if !self.down.contains_key(&index) {
                let foreign: BTreeSet<String> = self
                    .foreign
                    .iter()
                    .filter(|foreign| foreign.node == index && foreign.table == "main")
                    .map(|foreign| foreign.destination.clone())
                    .collect();
                let wanted = expected(&self.members[index], &self.members, &foreign);
                // One of ours that is right stays beside somebody else's, and none is made.
                let may = expected(&self.members[index], &self.members, &BTreeSet::new());
                let mut last = Lines::new();
                let right = || {
                    last = held(netns).unwrap_or_else(|error| Lines::from([format!("{error:#}")]));
                    (last.is_superset(&wanted) && last.is_subset(&may)).then_some(())
                };
                let name = &self.members[index].name;
                wait_for(&format!("{name} to hold what the model says"), LIMIT, right)
                    .with_context(|| {
                        let lines = |a: &Lines, b: &Lines| {
                            a.difference(b).cloned().collect::<Vec<_>>().join("\n  ")
                        };
                        format!(
                            "missing:\n  {}\nbeyond:\n  {}\nforeign: {foreign:?}",
                            lines(&wanted, &last),
                            lines(&last, &wanted)
                        )
                    })?;
            }
            // Routes go with the device that they hang on.
            let device = device_index(netns)?;
            self.foreign.retain(|foreign| {
                foreign.node != index || foreign.device.is_none() || foreign.device == device
            });
            for foreign in self.foreign.iter().filter(|foreign| foreign.node == index) {
                ensure!(stands(foreign, netns)?, "{foreign:?} of somebody else is gone");
            }
        }
        Ok(())
    }
}

/// R1, R2, R3, R4, R5: addresses, subnets, pod CIDRs and membership of three nodes change at random, agents are killed and
/// come back, somebody breaks what is ours and puts routes of his own there: after every step the kernels hold what the
/// model says, foreign routes are untouched, and pods reach each other.
///
/// `SLUICE_SEED` repeats a run, `SLUICE_STEPS` makes it longer.
#[test]
fn kernels_follow_the_model_through_random_changes() -> Result<()> {
    let clock =
        || SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |now| now.as_micros() as u64);
    let seed = number("SLUICE_SEED").unwrap_or_else(clock).max(1);
    let steps = number("SLUICE_STEPS").unwrap_or(300);
    println!("SLUICE_SEED={seed}");
    let members = vec![Member::new(0, 0), Member::new(1, 0), Member::new(2, 1)];
    let world = World::new(&members)?;
    let down = BTreeMap::new();
    let mut walk = Walk {
        world,
        members,
        foreign: Vec::new(),
        down,
        random: Draw::new(seed),
        log: String::new(),
    };
    for index in 0..3 {
        walk.world.start(index, &CROSS_SUBNET)?;
    }
    let result = (|| {
        walk.settle()?;
        walk.world.pods_reach_each_other("first")?;
        for step in 0..steps {
            walk.note(format!("step {step}"));
            walk.step()?;
            walk.revive(false)?;
            walk.settle().with_context(|| format!("step {step}"))?;
            if step % 100 == 99 {
                mend(&mut walk)?;
                walk.world.pods_reach_each_other(&format!("s{step}"))?;
            }
        }
        mend(&mut walk)?;
        walk.world.pods_reach_each_other("last")
    })();
    result.with_context(|| {
        let from = walk.log.lines().count().saturating_sub(30);
        let tail: Vec<&str> = walk.log.lines().skip(from).collect();
        format!("SLUICE_SEED={seed}\n{}", tail.join("\n"))
    })
}

/// Brings the walk where all pods can reach all others: members, with ranges and families that go together, and no
/// foreign routes in the way.
fn mend(walk: &mut Walk) -> Result<()> {
    for foreign in std::mem::take(&mut walk.foreign) {
        ip(walk.world.nodes[foreign.node].netns(), &foreign.command("del"))?;
    }
    let six_first = walk.members[0].six_first;
    for index in 0..walk.members.len() {
        let member = &mut walk.members[index];
        member.known = true;
        member.pods = 10 + u8::try_from(index)?;
        member.six_first = six_first;
        walk.world.place(index, &walk.members[index])?;
    }
    walk.revive(true)?;
    walk.settle()?;
    // The plugin reads the ranges from there.
    for (node, member) in walk.world.nodes.iter().zip(&walk.members) {
        let path = node.run_dir().join("node.json");
        let range = &member.spec().pod_cidrs[0];
        wait_ok("node.json", LIMIT, || {
            ensure!(fs::read_to_string(&path)?.contains(range), "another range");
            Ok(())
        })?;
    }
    Ok(())
}
