//! Truth tables: what is asked, how two answers are compared, and how a difference is printed.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::IpAddr;

use sluice_model::{NetworkPolicy, Protocol};

use super::cluster::{PORTS, Who, World};
use super::oracle::{Verdict, subject_pod, verdict};

/// One end of a connection.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct End {
    /// Who it is.
    pub who: Who,
    /// The address in use.
    pub addr: IpAddr,
}

/// May `from` open a connection to this port of `to`? Both addresses are of one family.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Query {
    /// Protocol.
    pub protocol: Protocol,
    /// Destination port.
    pub port: u16,
    /// Who asks.
    pub from: End,
    /// Whom it asks.
    pub to: End,
}

impl Query {
    /// The query with the parties' names: `y/a > x/a TCP/80 v4`.
    pub fn text(&self, world: &World) -> String {
        let (from, to) = (world.name(self.from.who), world.name(self.to.who));
        format!(
            "{from} > {to} {}/{} {}",
            self.protocol,
            self.port,
            family(self.from.addr.is_ipv6())
        )
    }

    /// Reads what [`Query::text`] writes. `None` if a word is unknown, or a party has no address of that family.
    pub fn parse(world: &World, text: &str) -> Option<Self> {
        let words: Vec<&str> = text.split_whitespace().collect();
        let [from, ">", to, port, family] = words[..] else { return None };
        let v6 = match family {
            "v4" => false,
            "v6" => true,
            _ => return None,
        };
        let end = |name: &str| {
            let who = world.find(name)?;
            Some(End { who, addr: world.addr(who, v6)? })
        };
        let (protocol, port) = port.split_once('/')?;
        let protocol = PROTOCOLS.into_iter().find(|known| known.to_string() == protocol)?;
        Some(Self { from: end(from)?, to: end(to)?, protocol, port: port.parse().ok()? })
    }
}

/// All protocols that a policy can name.
pub const PROTOCOLS: [Protocol; 3] = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];

fn family(v6: bool) -> &'static str {
    if v6 { "v6" } else { "v4" }
}

/// Every pair of which at least one is a pod of the pod network, in both families, with these protocols and ports.
pub fn queries_of(world: &World, ports: &[(Protocol, u16)]) -> Vec<Query> {
    let everybody = world.everybody();
    let subject = |who| subject_pod(world, who).is_some();
    let mut queries = Vec::new();
    for v6 in [false, true] {
        for &(protocol, port) in ports {
            for &from in &everybody {
                for &to in &everybody {
                    if !subject(from) && !subject(to) {
                        continue;
                    }
                    if let (Some(source), Some(target)) = (world.addr(from, v6), world.addr(to, v6))
                    {
                        let from = End { who: from, addr: source };
                        let to = End { who: to, addr: target };
                        queries.push(Query { protocol, port, from, to });
                    }
                }
            }
        }
    }
    queries
}

/// [`queries_of`] all protocols with [`PORTS`], and for TCP the ports before and after them.
pub fn queries(world: &World) -> Vec<Query> {
    let mut ports: Vec<(Protocol, u16)> =
        PROTOCOLS.into_iter().flat_map(|protocol| PORTS.map(|port| (protocol, port))).collect();
    ports.extend([(Protocol::Tcp, PORTS[0] - 1), (Protocol::Tcp, PORTS[1] + 1)]);
    queries_of(world, &ports)
}

/// A cell on which the oracle and something else disagree.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Difference {
    /// The cell.
    pub query: Query,
    /// What the oracle says.
    pub expected: Verdict,
    /// What was found: whether the connection passes.
    pub found: bool,
}

/// Asks something else than the oracle (`true`: allowed) and returns where the two differ.
pub fn compare(
    world: &World,
    policies: &[NetworkPolicy],
    queries: impl IntoIterator<Item = Query>,
    mut allowed: impl FnMut(&Query) -> bool,
) -> Vec<Difference> {
    let mut differences = Vec::new();
    for query in queries {
        let expected = verdict(world, policies, &query);
        let found = allowed(&query);
        if expected.is_allowed() != found {
            differences.push(Difference { query, expected, found });
        }
    }
    differences
}

/// A truth table: for each cell whether it is allowed.
pub type Table = BTreeMap<Query, bool>;

/// The oracle's table.
pub fn expected(
    world: &World,
    policies: &[NetworkPolicy],
    queries: impl IntoIterator<Item = Query>,
) -> Table {
    let cell = |query: Query| (query, verdict(world, policies, &query).is_allowed());
    queries.into_iter().map(cell).collect()
}

/// The cells of one family, protocol and port, as they are printed.
type Grid = BTreeMap<(Who, Who), String>;

/// A table for people: a grid for each family, protocol and port, sources down, destinations across. `.` is allowed,
/// `X` denied, a blank was not asked. A cell in `differing` stands in brackets with what was found.
pub fn render(world: &World, table: &Table, differing: &BTreeSet<Query>) -> String {
    let mut grids: BTreeMap<(bool, Protocol, u16), Grid> = BTreeMap::new();
    for (query, allowed) in table {
        let sign = if *allowed { '.' } else { 'X' };
        let cell =
            if differing.contains(query) { format!("[{sign}]") } else { format!(" {sign} ") };
        grids
            .entry((query.from.addr.is_ipv6(), query.protocol, query.port))
            .or_default()
            .insert((query.from.who, query.to.who), cell);
    }
    let mut text = String::new();
    for ((v6, protocol, port), cells) in grids {
        let sources: BTreeSet<Who> = cells.keys().map(|(from, _)| *from).collect();
        let targets: BTreeSet<Who> = cells.keys().map(|(_, to)| *to).collect();
        let width = sources.iter().map(|who| world.name(*who).len()).max().unwrap_or_default();
        // Writing to a String cannot fail.
        let _ = write!(text, "{protocol}/{port} {}\n{:width$} ", family(v6), "");
        for target in &targets {
            let _ = write!(text, " {:^6}", world.name(*target));
        }
        text.push('\n');
        for source in &sources {
            let _ = write!(text, "{:width$} ", world.name(*source));
            for target in &targets {
                let cell = cells.get(&(*source, *target)).map_or("", String::as_str);
                let _ = write!(text, " {cell:^6}");
            }
            text.truncate(text.trim_end().len());
            text.push('\n');
        }
        text.push('\n');
    }
    text
}

/// Differences for people: the grids that have one, then each with the oracle's reason.
pub fn report(world: &World, title: &str, differences: &[Difference]) -> String {
    let marked: BTreeSet<Query> = differences.iter().map(|difference| difference.query).collect();
    let table: Table =
        differences.iter().map(|difference| (difference.query, difference.found)).collect();
    report_in(world, title, differences, &render(world, &table, &marked))
}

/// Differences for people within the whole table that was found; grids without a difference are left out.
pub fn report_table(
    world: &World,
    title: &str,
    differences: &[Difference],
    found: &Table,
) -> String {
    let marked: BTreeSet<Query> = differences.iter().map(|difference| difference.query).collect();
    let grid = |query: &Query| (query.from.addr.is_ipv6(), query.protocol, query.port);
    let grids: BTreeSet<_> = marked.iter().map(grid).collect();
    let shown: Table = found
        .iter()
        .filter(|(query, _)| grids.contains(&grid(query)))
        .map(|(query, allowed)| (*query, *allowed))
        .collect();
    report_in(world, title, differences, &render(world, &shown, &marked))
}

/// How many differences are explained one by one.
const EXPLAINED: usize = 20;

fn report_in(world: &World, title: &str, differences: &[Difference], grids: &str) -> String {
    let mut text = format!("{title}\n\n{grids}");
    // Writing to a String cannot fail.
    for Difference { query, expected, found } in differences.iter().take(EXPLAINED) {
        let found = if *found { "allowed" } else { "denied" };
        let expected = match expected {
            Verdict::Allow => "allowed".to_owned(),
            Verdict::Deny { why } => format!("denied ({why})"),
        };
        let _ = writeln!(text, "{}: {found}, must be {expected}", query.text(world));
    }
    if let Some(more) = differences.len().checked_sub(EXPLAINED).filter(|more| *more > 0) {
        let _ = writeln!(text, "and {more} more");
    }
    text
}
