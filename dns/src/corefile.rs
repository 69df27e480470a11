//! From CoreDNS's Corefile to a configuration of this server.
//!
//! What has a counterpart here is carried over: `kubernetes`, `autopath`, `forward`, `cache`, `hosts`
//! with its entries in place, `rewrite name` of one name to another, `log`. What this server does
//! anyway needs no line: `errors`, `health`, `ready`, `prometheus`, `loop`, `reload`, `loadbalance`.
//! All else is named with its line, so that nobody finds out from a failing lookup. So is what counts
//! for a part of the names there and for all of them here.

use std::fmt::Write as _;
use std::net::IpAddr;

use crate::cli;
use crate::config::{CacheFile, File};
use crate::forward::Target;
use crate::tls;

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
    /// Whether it has a block, which may be empty.
    opens: bool,
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
    let mut servers = parse(text)?;
    // What counts for all names comes from the block that is for all of them.
    servers.sort_by_key(|server| !server.words.iter().any(|zone| Zone::of(zone).name == "."));
    for server in servers {
        if server.words.first().is_some_and(|word| word.starts_with('(') || word == "import") {
            imported.left_out.push(format!("{} (snippets)", server.text()));
            continue;
        }
        if !server.opens {
            imported.left_out.push(format!("{} (no block in braces follows)", server.text()));
            continue;
        }
        let zones: Vec<Zone<'_>> = server.words.iter().map(|zone| Zone::of(zone)).collect();
        if zones.iter().any(|zone| !matches!(zone.scheme, "dns" | "tls")) {
            let text = server.text();
            imported.left_out.push(format!("{text} (only DNS, plain or over TLS, is served)"));
            continue;
        }
        for zone in &zones {
            let (flag, usual) = match zone.scheme {
                "tls" => ("--tls-listen", tls::PORT),
                _ => ("--listen", 53),
            };
            if let Some(port) = zone.port.filter(|port| *port != usual) {
                imported.flag(format!("{flag}=0.0.0.0:{port} {flag}=[::]:{port}"));
            }
        }
        let names: Vec<&str> = zones.iter().map(|zone| zone.name).collect();
        for directive in &server.block {
            imported.directive(&names, directive);
        }
    }
    Ok(imported)
}

/// What a server block is for: `dns://example.org:53` is `example.org`, `.:53` the root.
struct Zone<'c> {
    scheme: &'c str,
    name: &'c str,
    port: Option<u16>,
}

impl<'c> Zone<'c> {
    fn of(text: &'c str) -> Self {
        let (scheme, rest) = text.split_once("://").unwrap_or(("dns", text));
        // The colons of an IPv6 network have no port behind them.
        let port = rest.rsplit_once(':').and_then(|(name, port)| Some((name, port.parse().ok()?)));
        match port {
            Some((name, port)) => Self { scheme, name, port: Some(port) },
            None => Self { scheme, name: rest, port: None },
        }
    }
}

impl Imported {
    fn directive(&mut self, zones: &[&str], directive: &Directive) {
        let words: Vec<&str> = directive.words.iter().map(String::as_str).collect();
        match words[..] {
            // Done without being told.
            ["errors" | "loop" | "reload" | "minimal" | "bufsize", ..]
            | ["loadbalance"]
            | ["loadbalance", "round_robin", ..] => {}
            ["health", ref addr @ ..] => {
                self.probe("--health-bind-address", ":8080", addr, directive);
                self.health(directive);
            }
            ["ready", ref addr @ ..] => {
                self.probe("--ready-bind-address", ":8181", addr, directive);
            }
            ["prometheus", ref addr @ ..] => {
                self.probe("--metrics-bind-address", ":9153", addr, directive);
            }
            ["log"] | ["log", "."] if directive.block.is_empty() && zones.contains(&".") => {
                self.file.query_log = Some(true);
            }
            ["log", ..] => {
                self.left_out
                    .push(format!("{} (all queries are logged, or none)", directive.text()));
            }
            ["tls", certificate, key] if directive.block.is_empty() => {
                self.flag(format!("--tls-cert={certificate} --tls-key={key}"));
            }
            ["kubernetes", ref own @ ..] => {
                self.kubernetes(if own.is_empty() { zones } else { own }, directive);
            }
            ["autopath", "@kubernetes"] => self.file.autopath = Some(true),
            ["forward", from, ref to @ ..] => self.forward(zones, from, to, directive),
            ["cache", ref args @ ..] => self.cache(args, directive),
            ["hosts", ref args @ ..] => self.hosts(args, directive),
            ["rewrite", ref args @ ..] => self.rewrite(args, directive),
            _ => self.left_out.push(directive.text()),
        }
    }

    fn flag(&mut self, flag: String) {
        if !self.flags.contains(&flag) {
            self.flags.push(flag);
        }
    }

    /// Where a probe is served.
    fn probe(&mut self, flag: &str, usual: &str, addr: &[&str], directive: &Directive) {
        match addr {
            [] => {}
            [addr] if *addr == usual => {}
            [addr] if cli::probe(addr).is_ok() => self.flag(format!("{flag}={addr}")),
            _ => self.left_out.push(format!("{} ({flag} takes [ADDR]:PORT)", directive.text())),
        }
    }

    fn leave_out(&mut self, inside: &str, directive: &Directive) {
        self.left_out.push(format!("{} (in {inside})", directive.text()));
    }

    fn health(&mut self, directive: &Directive) {
        for option in &directive.block {
            match option.words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
                ["lameduck", time] => match seconds(time) {
                    Some(seconds) => self.flag(format!("--lameduck-seconds={seconds}")),
                    None => self.leave_out("health", option),
                },
                _ => self.leave_out("health", option),
            }
        }
    }

    fn kubernetes(&mut self, zones: &[&str], directive: &Directive) {
        // Reverse zones are served as far as the addresses are the cluster's, and fall through.
        let reverse =
            |zone: &str| zone.trim_end_matches('.').ends_with(".arpa") || is_network(zone);
        let mut forward = zones.iter().filter(|zone| !reverse(zone) && **zone != ".");
        match (forward.next(), forward.next()) {
            (Some(zone), None) => {
                let zone = zone.trim_end_matches('.').to_owned();
                match &self.file.cluster_domain {
                    Some(known) if !known.eq_ignore_ascii_case(&zone) => {
                        let text = directive.text();
                        self.left_out
                            .push(format!("{text} (the cluster's domain is {known} already)"));
                    }
                    _ => self.file.cluster_domain = Some(zone),
                }
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
                    if !zones.is_empty() && zones.iter().all(|zone| reverse(zone)) => {}
                _ => self.leave_out("kubernetes", option),
            }
        }
    }

    fn forward(&mut self, zones: &[&str], from: &str, to: &[&str], directive: &Directive) {
        let mut upstreams = Vec::new();
        let option = |name: &str| {
            directive.block.iter().find(|it| it.words.first().is_some_and(|word| word == name))
        };
        let name = option("tls_servername").and_then(|it| it.words.get(1));
        for to in to {
            match *to {
                // Where the upstreams come from by default.
                "/etc/resolv.conf" => {}
                file if file.starts_with('/') => self.flag(format!("--resolv-conf={file}")),
                addr if addr.starts_with("tls://") => {
                    let name = name.map_or_else(String::new, |name| format!("#{name}"));
                    self.upstream(format!("{addr}{name}"), &mut upstreams, directive);
                }
                addr if addr.contains("://") && !addr.starts_with("dns://") => {
                    let text = directive.text();
                    self.left_out.push(format!("{text} (only dns:// and tls:// upstreams)"));
                }
                addr => {
                    let addr = addr.trim_start_matches("dns://").to_owned();
                    self.upstream(addr, &mut upstreams, directive);
                }
            }
        }
        // The directive's own domain, or those of its server block.
        let domains: Vec<&str> = if from == "." { zones.to_vec() } else { vec![from] };
        for domain in domains {
            if domain == "." || domain.is_empty() {
                match &self.file.upstreams {
                    _ if upstreams.is_empty() => {}
                    Some(known) if *known != upstreams => {
                        let text = directive.text();
                        self.left_out.push(format!("{text} (there are other upstreams already)"));
                    }
                    _ => self.file.upstreams = Some(upstreams.clone()),
                }
            } else if is_network(domain) {
                let text = directive.text();
                self.left_out.push(format!("{text} (name {domain} as a domain below arpa)"));
            } else if upstreams.is_empty() {
                self.left_out.push(format!("{} (a stub domain needs addresses)", directive.text()));
            } else {
                let domain = domain.trim_end_matches('.').to_owned();
                self.file.stub_domains.insert(domain, upstreams.clone());
            }
        }
        for option in &directive.block {
            match option.words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
                ["policy", policy @ ("random" | "round_robin" | "sequential")]
                    if self.file.policy.as_ref().is_none_or(|known| known == policy) =>
                {
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
        // CoreDNS's own default. How many upstreams a file names is not known here.
        if self.file.policy.is_none() && (to.len() > 1 || to.iter().any(|to| to.starts_with('/'))) {
            self.file.policy = Some("random".to_owned());
        }
    }

    /// Takes an upstream, if it is one that can be asked here.
    fn upstream(&mut self, text: String, upstreams: &mut Vec<String>, directive: &Directive) {
        match text.parse::<Target>() {
            Ok(_) => upstreams.push(text),
            Err(error) => self.left_out.push(format!("{} ({text}: {error})", directive.text())),
        }
    }

    fn cache(&mut self, args: &[&str], directive: &Directive) {
        let mut cache = CacheFile::default();
        // The lifetime may be left out before the zones.
        let ttl = args.first().and_then(|ttl| ttl.parse().ok());
        (cache.max_positive_seconds, cache.max_negative_seconds) = (ttl, ttl);
        if args.len() > usize::from(ttl.is_some()) {
            let text = directive.text();
            self.left_out.push(format!("{text} (the names of all zones are kept alike)"));
        }
        for option in &directive.block {
            let understood = match option.words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
                ["success", entries, ref rest @ ..] => {
                    number(&mut cache.entries, &[entries])
                        && number(&mut cache.max_positive_seconds, rest)
                }
                ["denial", _, ref rest @ ..] => number(&mut cache.max_negative_seconds, rest),
                ["prefetch", amount, ..] => number(&mut cache.prefetch, &[amount]),
                ["serve_stale", ref rest @ ..] => {
                    cache.stale_seconds = seconds(rest.first().copied().unwrap_or("1h"));
                    cache.stale_seconds.is_some()
                }
                _ => false,
            };
            if !understood {
                self.leave_out("cache", option);
            }
        }
        match &self.file.cache {
            Some(known) if *known != cache => {
                let text = directive.text();
                self.left_out.push(format!("{text} (there is one cache, and it is set already)"));
            }
            _ => self.file.cache = Some(cache),
        }
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

/// Takes the first of these words, if there is one; `false` where it is no number.
fn number<T: std::str::FromStr>(place: &mut Option<T>, words: &[&str]) -> bool {
    let Some(word) = words.first() else { return true };
    let Ok(number) = word.parse() else { return false };
    *place = Some(number);
    true
}

/// Whether a zone is written as a network, such as `10.0.0.0/8`.
fn is_network(zone: &str) -> bool {
    zone.parse::<ipnet::IpNet>().is_ok()
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
        vec![Directive { line: 0, words: Vec::new(), opens: true, block: Vec::new() }];
    // Zones whose block has yet to come, since a comma stands at the end of their line.
    let mut before: Vec<String> = Vec::new();
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
            let goes_on = !opens && words.last().is_some_and(|word| word.ends_with(','));
            let zones = words.iter().flat_map(|word| word.split(',')).filter(|it| !it.is_empty());
            before.extend(zones.map(str::to_owned));
            if goes_on {
                continue;
            }
            std::mem::take(&mut before)
        } else {
            words
        };
        if words.is_empty() {
            return Err(syntax("nothing stands before this brace"));
        }
        let directive = Directive { line: line_number, words, opens, block: Vec::new() };
        if opens {
            open.push(directive);
        } else if let Some(outer) = open.last_mut() {
            outer.block.push(directive);
        }
    }
    match &open[..] {
        [file] if before.is_empty() => Ok(file.block.clone()),
        [_] => Err(CorefileError::Syntax {
            line: text.lines().count(),
            reason: "a comma stands at the end",
        }),
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
            (". {\n forward . 192.0.2.1 {\n  {\n  }\n }\n}\n", "line 3: nothing stands before"),
            ("{\n errors\n}\n", "line 1: nothing stands before"),
            (". {\n}\na.example,\n", "line 3: a comma"),
        ] {
            let error = import(text).expect_err(text).to_string();
            assert!(error.starts_with(expected), "{error}");
        }
    }

    /// D16: what would mean something else here, or nothing at all, is named, whatever it looks like.
    #[test]
    fn what_has_another_meaning_is_named() {
        for (text, named) in [
            (
                ".:53 {\n log . {\n  class error\n }\n}\n",
                "line 2: log . (all queries are logged, or none)",
            ),
            ("a.example {\n log\n}\n", "line 2: log (all queries"),
            (
                ".:53 {\n ready localhost:8181\n}\n",
                "line 2: ready localhost:8181 (--ready-bind-address takes",
            ),
            (".:53 {\n loadbalance weighted w\n}\n", "line 2: loadbalance weighted w"),
            (
                ".:53 {\n kubernetes a.example {\n  fallthrough\n }\n}\n",
                "line 3: fallthrough (in kubernetes)",
            ),
            (
                ". {\n kubernetes a.example\n kubernetes b.example\n}\n",
                "line 3: kubernetes b.example (the cluster's domain is a.example already)",
            ),
            (
                ". {\n forward . dns.example\n}\n",
                "line 2: forward . dns.example (dns.example: expected an address",
            ),
            ("10.0.0.0/8 {\n forward . 192.0.2.1\n}\n", "(name 10.0.0.0/8 as a domain below arpa)"),
            ("fd00::/8 {\n forward . 192.0.2.1\n}\n", "(name fd00::/8 as a domain below arpa)"),
            ("https://. {\n forward . 192.0.2.1\n}\n", "line 1: https://. (only DNS"),
            (
                "example.org\nforward . 192.0.2.1\n",
                "line 1: example.org (no block in braces follows)",
            ),
            (
                ". {\n cache 30\n}\na.example {\n cache 5\n}\n",
                "line 5: cache 5 (there is one cache",
            ),
            (". {\n cache 30 a.example\n}\n", "line 2: cache 30 a.example (the names of all zones"),
            (". {\n cache {\n  serve_stale 500ms\n }\n}\n", "line 3: serve_stale 500ms (in cache)"),
            (". {\n cache {\n  success many\n }\n}\n", "line 3: success many (in cache)"),
        ] {
            let imported = import(text).expect(text);
            assert!(
                imported.left_out.iter().any(|line| line.contains(named)),
                "{text}{:#?}",
                imported.left_out
            );
            assert_ne!(imported.file.query_log, Some(true), "{text}");
            let args = ["sluice-dns", "--source=dir:/tmp"].into_iter().map(str::to_owned);
            let flags = imported.flags.iter().flat_map(|flag| flag.split(' ')).map(str::to_owned);
            let parsed = <cli::Args as clap::Parser>::try_parse_from(args.chain(flags));
            assert!(parsed.is_ok(), "{text}{:?}", imported.flags);
        }
    }

    /// D16: the block of all names decides, wherever it stands; zones may go over several lines.
    #[test]
    fn the_block_of_the_root_counts_first() {
        let text = "a.example:53,\nb.example:53 {\n forward . 192.0.2.2 {\n  policy sequential\n }\n cache 5\n}\n\
                    .:1053 {\n forward . 192.0.2.1 {\n  policy round_robin\n }\n cache 30\n ready :8282\n}\n\
                    tls://.:8853 {\n tls own.pem own.key\n forward . 192.0.2.1\n cache 30\n}\n\
                    k8s.example {\n kubernetes\n}\n";
        let imported = import(text).expect("a Corefile");
        let file = &imported.file;
        assert_eq!(file.upstreams, Some(vec!["192.0.2.1".to_owned()]));
        assert_eq!(file.stub_domains.keys().collect::<Vec<_>>(), ["a.example", "b.example"]);
        assert_eq!(file.policy.as_deref(), Some("round_robin"));
        assert_eq!(file.cache.as_ref().and_then(|cache| cache.max_positive_seconds), Some(30));
        assert_eq!(file.cluster_domain.as_deref(), Some("k8s.example"));
        let expected = [
            "--listen=0.0.0.0:1053 --listen=[::]:1053",
            "--ready-bind-address=:8282",
            "--tls-listen=0.0.0.0:8853 --tls-listen=[::]:8853",
            "--tls-cert=own.pem --tls-key=own.key",
        ];
        assert_eq!(imported.flags, expected);
        assert_eq!(imported.left_out.len(), 2, "{:#?}", imported.left_out);
        assert!(imported.left_out[0].contains("policy sequential (in forward)"));
        assert!(imported.left_out[1].contains("cache 5"));
    }

    #[test]
    fn durations_are_those_of_go() {
        let durations = [("5s", 5), ("1h30m", 5400), ("90", 90)];
        assert!(durations.iter().all(|(text, expected)| seconds(text) == Some(*expected)));
        assert!(["", "5x", "5s5", "ms"].iter().all(|text| seconds(text).unwrap_or(0) == 0));
    }
}
