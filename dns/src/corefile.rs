//! From CoreDNS's Corefile to a configuration of this server.
//!
//! What has a counterpart here is carried over: `kubernetes`, `autopath`, `forward`, `cache`, `hosts`
//! with its entries in place, `rewrite name` of one name to another, `log`. What this server does
//! anyway needs no line: `errors`, `health`, `ready`, `prometheus`, `loop`, `reload`, `loadbalance`.
//! All else is named with its line, so that nobody finds out from a failing lookup.

use std::fmt::Write as _;
use std::net::IpAddr;

use crate::config::{CacheFile, File};

/// Why a Corefile cannot be read at all.
#[derive(Debug, thiserror::Error)]
pub enum CorefileError {
    /// A block is not closed, or one is closed that was not opened.
    #[error("line {line}: {reason}")]
    Syntax {
        /// The line, from 1.
        line: usize,
        /// What is wrong.
        reason: &'static str,
    },
    /// The result cannot be written.
    #[error("cannot write the configuration: {0}")]
    Write(#[source] serde_norway::Error),
}

/// What became of a Corefile.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Imported {
    /// The configuration.
    pub file: File,
    /// What the flags have to say, since it does not change while the server runs.
    pub flags: Vec<String>,
    /// What could not be carried over.
    pub left_out: Vec<String>,
}

impl Imported {
    /// The configuration file, with what it does not say as comments in front.
    ///
    /// # Errors
    ///
    /// The YAML cannot be written.
    pub fn render(&self) -> Result<String, CorefileError> {
        let mut text = String::new();
        // Writing to a string does not fail.
        for line in &self.left_out {
            let _ = writeln!(text, "# not carried over: {line}");
        }
        if !self.flags.is_empty() {
            let _ = writeln!(text, "# flags to give: {}", self.flags.join(" "));
        }
        text.push_str(&serde_norway::to_string(&self.file).map_err(CorefileError::Write)?);
        Ok(text)
    }
}

/// A directive with the lines of its block.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Directive {
    line: usize,
    words: Vec<String>,
    block: Vec<Directive>,
}

impl Directive {
    fn text(&self) -> String {
        format!("line {}: {}", self.line, self.words.join(" "))
    }
}

/// Reads a Corefile.
///
/// # Errors
///
/// Its blocks do not match. What it says and this server cannot do is no error.
pub fn import(text: &str) -> Result<Imported, CorefileError> {
    let mut imported = Imported::default();
    for server in parse(text)? {
        let zones: Vec<&str> = server.words.iter().map(|zone| zone_of(zone)).collect();
        if server.words.first().is_some_and(|word| word.starts_with('(') || word == "import") {
            imported.left_out.push(format!("{} (snippets)", server.text()));
            continue;
        }
        for zone in &server.words {
            if let Some((_, port)) = zone.rsplit_once(':').filter(|(_, port)| *port != "53") {
                imported.flags.push(format!("--listen=0.0.0.0:{port} --listen=[::]:{port}"));
            }
        }
        for directive in &server.block {
            imported.directive(&zones, directive);
        }
    }
    imported.flags.dedup();
    Ok(imported)
}

/// A server block's zone: `dns://example.org:53` is `example.org`, `.:53` the root.
fn zone_of(text: &str) -> &str {
    let text = text.split_once("://").map_or(text, |(_, rest)| rest);
    text.rsplit_once(':').map_or(text, |(zone, _)| zone)
}

impl Imported {
    fn directive(&mut self, zones: &[&str], directive: &Directive) {
        let words: Vec<&str> = directive.words.iter().map(String::as_str).collect();
        match words[..] {
            // Done without being told.
            [
                "errors" | "ready" | "loop" | "reload" | "loadbalance" | "minimal" | "bufsize",
                ..,
            ] => {}
            ["health", ..] => self.health(directive),
            ["prometheus", addr] if addr != ":9153" => {
                self.flags.push(format!("--metrics-bind-address={addr}"));
            }
            ["prometheus", ..] => {}
            ["log", ..] => self.file.query_log = Some(true),
            ["kubernetes", ref zones @ ..] => self.kubernetes(zones, directive),
            ["autopath", "@kubernetes"] => self.file.autopath = Some(true),
            ["forward", from, ref to @ ..] => self.forward(zones, from, to, directive),
            ["cache", ref args @ ..] => self.cache(args, directive),
            ["hosts", ref args @ ..] => self.hosts(args, directive),
            ["rewrite", ref args @ ..] => self.rewrite(args, directive),
            _ => self.left_out.push(directive.text()),
        }
    }

    fn leave_out(&mut self, inside: &str, directive: &Directive) {
        self.left_out.push(format!("{} (in {inside})", directive.text()));
    }

    fn health(&mut self, directive: &Directive) {
        if let Some(addr) = directive.words.get(1).filter(|addr| *addr != ":8080") {
            self.flags.push(format!("--health-bind-address={addr}"));
        }
        for option in &directive.block {
            match option.words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
                ["lameduck", time] => match seconds(time) {
                    Some(seconds) => self.flags.push(format!("--lameduck-seconds={seconds}")),
                    None => self.leave_out("health", option),
                },
                _ => self.leave_out("health", option),
            }
        }
    }

    fn kubernetes(&mut self, zones: &[&str], directive: &Directive) {
        // Reverse zones are served as far as the addresses are the cluster's, and fall through.
        let mut forward = zones.iter().filter(|zone| !zone.ends_with(".arpa"));
        match (forward.next(), forward.next()) {
            (Some(zone), None) => {
                self.file.cluster_domain = Some(zone.trim_end_matches('.').to_owned());
            }
            (None, _) => {}
            _ => self.left_out.push(format!("{} (more than one domain)", directive.text())),
        }
        for option in &directive.block {
            match option.words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
                ["pods", mode @ ("disabled" | "insecure" | "verified")] => {
                    self.file.pod_records = Some(mode.to_owned());
                }
                ["ttl", ttl] if ttl.parse::<u32>().is_ok_and(|ttl| ttl <= 3600) => {
                    self.file.ttl = ttl.parse().ok();
                }
                ["fallthrough", ref zones @ ..]
                    if zones.is_empty() || zones.iter().all(|zone| zone.ends_with(".arpa")) => {}
                ["endpoint_pod_names", ..] => self.leave_out("kubernetes", option),
                _ => self.leave_out("kubernetes", option),
            }
        }
    }

    fn forward(&mut self, zones: &[&str], from: &str, to: &[&str], directive: &Directive) {
        let mut upstreams = Vec::new();
        let option = |name: &str| directive.block.iter().find(|it| it.words[0] == name);
        let name = option("tls_servername").and_then(|it| it.words.get(1));
        for to in to {
            match *to {
                // Where the upstreams come from by default.
                "/etc/resolv.conf" => {}
                file if file.starts_with('/') => self.flags.push(format!("--resolv-conf={file}")),
                addr if addr.starts_with("tls://") => {
                    let name = name.map_or_else(String::new, |name| format!("#{name}"));
                    upstreams.push(format!("{addr}{name}"));
                }
                addr if addr.contains("://") && !addr.starts_with("dns://") => {
                    let text = directive.text();
                    self.left_out.push(format!("{text} (only dns:// and tls:// upstreams)"));
                }
                addr => upstreams.push(addr.trim_start_matches("dns://").to_owned()),
            }
        }
        // The directive's own domain, or those of its server block.
        let domains: Vec<&str> = if from == "." { zones.to_vec() } else { vec![from] };
        for domain in domains {
            if domain == "." || domain.is_empty() {
                if !upstreams.is_empty() {
                    self.file.upstreams = Some(upstreams.clone());
                }
            } else if upstreams.is_empty() {
                self.left_out.push(format!("{} (a stub domain needs addresses)", directive.text()));
            } else {
                self.file.stub_domains.insert(domain.to_owned(), upstreams.clone());
            }
        }
        for option in &directive.block {
            match option.words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
                ["policy", policy @ ("random" | "round_robin" | "sequential")] => {
                    self.file.policy = Some(policy.to_owned());
                }
                // Said with the upstreams.
                ["tls_servername", _] => {}
                // Whom the system trusts.
                ["tls"] => {}
                ["tls", authorities] => self.file.upstream_tls_ca = Some(authorities.into()),
                ["tls", certificate, key, ref rest @ ..] => {
                    self.file.upstream_tls_ca = rest.first().map(Into::into);
                    let line = option.line;
                    self.left_out.push(format!("line {line}: {certificate} {key} (no certificate of its own is shown to upstreams)"));
                }
                // A bound that this server has anyway, and its own way to probe.
                ["max_concurrent" | "health_check" | "max_fails" | "prefer_udp" | "expire", ..] => {
                }
                _ => self.leave_out("forward", option),
            }
        }
        // CoreDNS's own default.
        if self.file.policy.is_none() && to.len() > 1 {
            self.file.policy = Some("random".to_owned());
        }
    }

    fn cache(&mut self, args: &[&str], directive: &Directive) {
        let mut cache = CacheFile::default();
        if let Some(ttl) = args.first().and_then(|ttl| ttl.parse().ok()) {
            (cache.max_positive_seconds, cache.max_negative_seconds) = (Some(ttl), Some(ttl));
        }
        for option in &directive.block {
            match option.words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
                ["success", entries, ref rest @ ..] => {
                    cache.entries = entries.parse().ok();
                    if let Some(ttl) = rest.first() {
                        cache.max_positive_seconds = ttl.parse().ok();
                    }
                }
                ["denial", _, ref rest @ ..] => {
                    if let Some(ttl) = rest.first() {
                        cache.max_negative_seconds = ttl.parse().ok();
                    }
                }
                ["prefetch", amount, ..] => cache.prefetch = amount.parse().ok(),
                ["serve_stale", ref rest @ ..] => {
                    let time = rest.first().copied().unwrap_or("1h");
                    cache.stale_seconds = seconds(time);
                }
                _ => self.leave_out("cache", option),
            }
        }
        self.file.cache = Some(cache);
    }

    fn hosts(&mut self, args: &[&str], directive: &Directive) {
        if let Some(file) = args.first() {
            let text = directive.text();
            self.left_out.push(format!("{text} (give the entries of {file} under hosts)"));
        }
        for option in &directive.block {
            match option.words.split_first() {
                Some((addr, names)) if addr.parse::<IpAddr>().is_ok() && !names.is_empty() => {
                    if let Ok(addr) = addr.parse() {
                        self.file.hosts.entry(addr).or_default().extend(names.iter().cloned());
                    }
                }
                Some((word, _)) if word == "fallthrough" => {}
                _ => self.leave_out("hosts", option),
            }
        }
    }

    fn rewrite(&mut self, args: &[&str], directive: &Directive) {
        let args = match args {
            ["stop" | "continue", rest @ ..] => rest,
            all => all,
        };
        match args {
            ["name", "exact", from, to] | ["name", from, to]
                if !from.contains('*') && *from != "regex" =>
            {
                let from = from.trim_end_matches('.').to_owned();
                self.file.rewrites.insert(from, to.trim_end_matches('.').to_owned());
            }
            _ => self.left_out.push(directive.text()),
        }
    }
}

/// A duration of Go in seconds: `5s`, `1h30m`, or a bare number of seconds.
fn seconds(text: &str) -> Option<u64> {
    if let Ok(seconds) = text.parse() {
        return Some(seconds);
    }
    let (mut total, mut number) = (0u64, String::new());
    for letter in text.chars() {
        if letter.is_ascii_digit() {
            number.push(letter);
            continue;
        }
        let unit = match letter {
            's' => 1,
            'm' => 60,
            'h' => 3600,
            _ => return None,
        };
        total = total.checked_add(number.parse::<u64>().ok()?.checked_mul(unit)?)?;
        number.clear();
    }
    number.is_empty().then_some(total)
}

/// The server blocks, each with its directives.
fn parse(text: &str) -> Result<Vec<Directive>, CorefileError> {
    // The blocks that are open, the outermost first; the first is the file itself.
    let mut open: Vec<Directive> =
        vec![Directive { line: 0, words: Vec::new(), block: Vec::new() }];
    for (index, line) in text.lines().enumerate() {
        let line_number = index + 1;
        let syntax = |reason| CorefileError::Syntax { line: line_number, reason };
        let mut words = words(line);
        if words.is_empty() {
            continue;
        }
        if words == ["}"] {
            let closed = open.pop().filter(|_| !open.is_empty());
            let closed = closed.ok_or(syntax("this } closes nothing"))?;
            // There is one below: it was looked at.
            if let Some(outer) = open.last_mut() {
                outer.block.push(closed);
            }
            continue;
        }
        let opens = words.last().is_some_and(|word| word == "{");
        if opens {
            words.pop();
        }
        if words.iter().any(|word| word == "{" || word == "}") {
            return Err(syntax("a brace stands at the end of a line, or alone"));
        }
        let words = if open.len() == 1 {
            // Zones may be separated by commas.
            let zones = words.iter().flat_map(|word| word.split(',')).filter(|it| !it.is_empty());
            zones.map(str::to_owned).collect()
        } else {
            words
        };
        let directive = Directive { line: line_number, words, block: Vec::new() };
        if opens {
            open.push(directive);
        } else if let Some(outer) = open.last_mut() {
            outer.block.push(directive);
        }
    }
    match &open[..] {
        [file] => Ok(file.block.clone()),
        [.., unclosed] => {
            Err(CorefileError::Syntax { line: unclosed.line, reason: "this block is not closed" })
        }
        [] => Ok(Vec::new()),
    }
}

/// The words of a line, without its comment. Quotes hold words together.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quoted, mut begun) = (Vec::new(), String::new(), false, false);
    for letter in line.chars() {
        match letter {
            '"' => (quoted, begun) = (!quoted, true),
            '#' if !quoted && !begun => break,
            letter if letter.is_whitespace() && !quoted => {
                if begun {
                    words.push(std::mem::take(&mut word));
                }
                begun = false;
            }
            letter => {
                word.push(letter);
                begun = true;
            }
        }
    }
    if begun {
        words.push(word);
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The Corefile of kubeadm, with what people add to it.
    const COREFILE: &str = r#"
.:53 {
    errors
    health {
       lameduck 5s
    }
    ready
    log
    kubernetes cluster.local in-addr.arpa ip6.arpa { # the cluster
       pods verified
       fallthrough in-addr.arpa ip6.arpa
       ttl 30
    }
    autopath @kubernetes
    hosts {
       192.0.2.7 gate.example gate2.example
       fallthrough
    }
    rewrite name exact old.example new.example.
    rewrite name regex (.*)\.foo {1}.bar
    prometheus :9153
    forward . 192.0.2.1 tls://192.0.2.2 {
       max_concurrent 1000
       policy sequential
       tls_servername dns.example
       tls /etc/own.pem /etc/own.key /etc/ca.pem
    }
    cache 30 {
       prefetch 5 1m
       serve_stale 2h
       disable success cluster.local
    }
    loop
    reload
    loadbalance
    dnssec
}
corp.example:53 {
    forward . 10.1.1.1 10.1.1.2 https://10.1.1.3
}
"#;

    /// D12, D13, D14, D16: what has a counterpart is carried over, and the rest is named.
    #[test]
    fn a_corefile_is_carried_over_and_the_rest_is_named() {
        let imported = import(COREFILE).expect("a Corefile");
        let text = imported.render().expect("YAML");
        let file = File::parse(&text).expect("what was written can be read");
        assert_eq!(file, imported.file);
        assert_eq!(file.cluster_domain.as_deref(), Some("cluster.local"));
        assert_eq!((file.ttl, file.autopath, file.query_log), (Some(30), Some(true), Some(true)));
        assert_eq!(file.pod_records.as_deref(), Some("verified"));
        let upstreams = ["192.0.2.1", "tls://192.0.2.2#dns.example"].map(str::to_owned);
        assert_eq!(file.upstreams, Some(upstreams.to_vec()));
        assert_eq!(file.upstream_tls_ca, Some("/etc/ca.pem".into()));
        assert_eq!(file.policy.as_deref(), Some("sequential"));
        assert_eq!(file.stub_domains["corp.example"], ["10.1.1.1", "10.1.1.2"]);
        assert_eq!(file.rewrites["old.example"], "new.example");
        assert_eq!(file.hosts.values().next().map(Vec::len), Some(2));
        let cache = file.cache.expect("a cache");
        assert_eq!((cache.max_positive_seconds, cache.stale_seconds), (Some(30), Some(7200)));
        assert_eq!(cache.prefetch, Some(5));
        assert_eq!(imported.flags, ["--lameduck-seconds=5"]);
        let expected = [
            "rewrite name regex",
            "/etc/own.pem /etc/own.key",
            "disable success cluster.local (in cache)",
            "dnssec",
            "https://10.1.1.3",
        ];
        assert_eq!(imported.left_out.len(), expected.len(), "{:#?}", imported.left_out);
        for (line, expected) in imported.left_out.iter().zip(expected) {
            assert!(line.contains(expected), "{line} is not about {expected}");
        }
    }

    #[test]
    fn braces_that_do_not_match_are_told_with_their_line() {
        for (text, expected) in [
            (".:53 {\n  errors\n", "line 1: this block is not closed"),
            ("}\n", "line 1: this } closes nothing"),
            (". {\n cache { 30 }\n}\n", "line 2: a brace"),
        ] {
            let error = import(text).expect_err(text).to_string();
            assert!(error.starts_with(expected), "{error}");
        }
    }

    #[test]
    fn durations_are_those_of_go() {
        let durations = [("5s", 5), ("1h30m", 5400), ("90", 90)];
        assert!(durations.iter().all(|(text, expected)| seconds(text) == Some(*expected)));
        assert!(["", "5x", "5s5", "ms"].iter().all(|text| seconds(text).unwrap_or(0) == 0));
    }
}
