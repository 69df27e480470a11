//! As many DNS answers a second as a server can give: a client that costs less than the server.
//!
//! `dnsperf` needs more CPU for a query than a fast server for its answer, so that with one CPU each it
//! is its own rate that it tells. This client does as little as can be: queries are encoded beforehand,
//! its sockets are connected, it never sleeps, so that no server pays for waking it up, and what leaves by
//! one socket at once leaves as a train (`UDP_SEGMENT`), which the kernel takes apart again before the
//! server's socket: sending datagrams one by one over loopback costs as much as answering them, since the
//! sender delivers them. Answers are taken as they come, in batches, and never coalesced (`UDP_GRO`): what
//! a server meets and what it has to do is the same as with any client.
//!
//! It keeps a number of queries under way, shared out evenly to its sockets. Each answer has to have the
//! id and the question of one of them, by the socket that it left by, and what the file of queries
//! expects: a server that refuses is not a fast one. A query without an answer is lost, and not asked
//! again.

mod line;
mod queries;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::Parser;
use sluice_tests::dns::DnsFloodReport;
use sluice_tests::interrupt;

use self::line::{Line, MAX_UNDER_WAY, Tally};
use self::queries::Query;

/// How often is looked for queries that were not answered.
const LOOK: Duration = Duration::from_millis(100);

#[derive(Parser)]
#[command(name = "dnsflood", about = "As many DNS answers a second as a server can give")]
struct Args {
    /// The server
    server: SocketAddr,
    /// A file of queries as dnsperf reads it: NAME TYPE; ";expect answer|nodata|nxdomain" tells how those
    /// below it are answered
    queries: PathBuf,
    /// Sockets to ask by
    #[arg(long, default_value_t = 4)]
    sockets: usize,
    /// Queries under way, by all sockets together
    #[arg(long, default_value_t = 150)]
    under_way: usize,
    /// How long to ask, in seconds
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,
    /// Ask so many queries, however long that takes, but none any more once one is lost
    #[arg(long)]
    count: Option<u64>,
    /// How long a query may take, in milliseconds
    #[arg(long, default_value_t = 1_000)]
    timeout: u64,
}

/// The queries, again and again.
struct Source<'q> {
    queries: &'q [Query],
    next: usize,
    /// How many are still to be asked.
    left: u64,
}

impl<'q> Source<'q> {
    fn next(&mut self) -> &'q Query {
        let query = &self.queries[self.next];
        self.next = (self.next + 1) % self.queries.len();
        query
    }
}

fn main() -> Result<()> {
    let args = Args::parse();
    let queries = queries::read(&args.queries)?;
    interrupt::take_over()?;
    let report = flood(&args, &queries)?;
    println!("{}", serde_json::to_string(&report)?);
    Ok(())
}

fn flood(args: &Args, queries: &[Query]) -> Result<DnsFloodReport> {
    let sockets = args.sockets.max(1);
    let window = args.under_way.div_ceil(sockets).clamp(1, MAX_UNDER_WAY);
    let timeout = Duration::from_millis(args.timeout);
    let mut lines: Vec<Line<'_>> =
        (0..sockets).map(|_| Line::new(args.server, window)).collect::<Result<_>>()?;
    let mut source = Source { queries, next: 0, left: args.count.unwrap_or(u64::MAX) };
    let mut tally = Tally::default();
    let start = Instant::now();
    let end = start + Duration::from_secs_f64(args.seconds);
    let goes_on = |now: Instant, left: u64, lost: u64| match args.count {
        Some(_) => left > 0 && lost == 0,
        None => now < end,
    };
    let (mut now, mut looked, mut idle) = (start, start, Duration::ZERO);
    while goes_on(now, source.left, tally.lost) && !interrupt::interrupted() {
        let mut taken = 0;
        for line in &mut lines {
            taken += line.take(&mut tally)?;
            line.ask(&mut source, now)?;
        }
        let before = std::mem::replace(&mut now, Instant::now());
        if taken == 0 {
            idle += now - before;
        }
        if now - looked >= LOOK {
            looked = now;
            lines.iter_mut().for_each(|line| line.give_up(now, timeout, &mut tally));
        }
    }
    // What was asked before the end counts as lost only if it is not answered at all, and for the rate not
    // at all.
    let (in_time, seconds) = (tally.answered, (now - start).as_secs_f64());
    while lines.iter().any(Line::waits) && !interrupt::interrupted() {
        for line in &mut lines {
            line.take(&mut tally)?;
            line.give_up(Instant::now(), timeout, &mut tally);
        }
    }
    #[allow(clippy::cast_precision_loss, reason = "for people")]
    let rate = in_time as f64 / seconds;
    Ok(DnsFloodReport {
        answered: tally.answered,
        lost: tally.lost,
        wrong: tally.wrong,
        failures: tally.failures,
        seconds,
        rate,
        busy: (1.0 - idle.as_secs_f64() / seconds) * 100.0,
    })
}
