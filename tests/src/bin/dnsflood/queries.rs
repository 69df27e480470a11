//! The file of queries: what `dnsperf` reads, and what is to be answered in lines that it takes for
//! comments.

use std::path::Path;

use anyhow::{Context, Result, bail};
use hickory_proto::rr::RecordType;
use sluice_tests::dns::message::{self, Expect};

/// A line that begins so tells what the queries below it are answered with.
const EXPECT: &str = ";expect ";

/// A query as it is sent, but for its id.
pub(crate) struct Query {
    pub(crate) message: Vec<u8>,
    pub(crate) expect: Expect,
}

/// Reads a file of queries.
pub(crate) fn read(path: &Path) -> Result<Vec<Query>> {
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    parse(&text).with_context(|| path.display().to_string())
}

fn parse(text: &str) -> Result<Vec<Query>> {
    let mut queries = Vec::new();
    let mut expect = Expect::Answer;
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        let place = || format!("line {}", number + 1);
        if let Some(word) = line.strip_prefix(EXPECT) {
            expect = word.parse().with_context(place)?;
        } else if !line.is_empty() && !line.starts_with(';') {
            let (name, kind) = line.split_once(' ').with_context(place)?;
            let kind: RecordType = kind.parse().with_context(place)?;
            let message = message::query(name, kind).with_context(place)?;
            queries.push(Query { message, expect });
        }
    }
    if queries.is_empty() {
        bail!("no query");
    }
    Ok(queries)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_has_what_is_expected_above_it() {
        let text = "a.example. A\n\n;expect nxdomain\nb.example. SRV\n; a comment\nc.example. AAAA\n;expect nodata\nd. A\n";
        let queries = parse(text).unwrap();
        let expected: Vec<_> = queries.iter().map(|query| query.expect).collect();
        use Expect::{Answer, NoData, NxDomain};
        assert_eq!(expected, [Answer, NxDomain, NxDomain, NoData]);
        let same = message::query("b.example", RecordType::SRV).unwrap();
        assert_eq!(queries[1].message[2..], same[2..], "all but the id");
    }

    #[test]
    fn a_line_that_is_no_query_is_refused() {
        for text in ["", "; nothing\n", "name\n", "name TYPE\n", ";expect anything\na. A\n"] {
            assert!(parse(text).is_err(), "{text:?}");
        }
    }
}
