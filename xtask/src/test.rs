//! `cargo xtask test`: what runs, how long it takes, and what came of it.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::cargo::{cargo, root, show, target_dir};
use crate::setup::{self, Need};

/// Every invocation selects the same packages, so that cargo unifies features once and builds nothing twice.
const SELECT: [&str; 4] = ["test", "--workspace", "--exclude", "sluice-ebpf"];

/// What the names of tests begin with that stand beside their crate but need root or a real store: they run with the
/// end-to-end group.
const NOT_UNIT: [&str; 3] = ["etcd", "plugin", "routes"];

/// What the properties draw their cases from, in every run of the tests: a change is judged by what it changes, not by
/// the luck of the draw. `explore` looks where nobody has looked yet.
const SEED: (&str, &str) = ("PROPTEST_RNG_SEED", "20261121");

/// How many cases `explore` draws for each property; a run of the tests draws some hundred.
const EXPLORED: (&str, &str) = ("PROPTEST_CASES", "10000");

/// What came of one step.
struct Outcome {
    name: String,
    passed: u64,
    failed: u64,
    ignored: u64,
    time: Duration,
    note: String,
}

pub(crate) fn main(args: &[&str]) -> Result<ExitCode> {
    let mut done = Vec::new();
    match args {
        [] => {
            setup::ensure(Need::ALL)?;
            lint(&mut done)?;
            unit(&mut done)?;
            binaries(&mut done)?;
            group("kernel", &mut done)?;
            group("e2e", &mut done)?;
            demo(&mut done)?;
        }
        ["unit"] => {
            setup::ensure(Need::BUILD)?;
            unit(&mut done)?;
        }
        [name @ ("kernel" | "e2e")] => {
            setup::ensure(Need::BUILD | Need::TEST)?;
            binaries(&mut done)?;
            group(name, &mut done)?;
        }
        ["explore"] => {
            setup::ensure(Need::BUILD)?;
            let mut command = unit_tests()?;
            step(&mut done, "explore", command.env(EXPLORED.0, EXPLORED.1))?;
        }
        ["lint"] => {
            setup::ensure(Need::BUILD | Need::LINT)?;
            lint(&mut done)?;
        }
        ["vm"] => bail!("the vm group (other kernels in qemu) is not built yet"),
        _ => bail!(
            "no such group: {}; there are unit, explore, kernel, e2e, vm, lint",
            args.join(" ")
        ),
    }
    Ok(summary(&done))
}

fn lint(done: &mut Vec<Outcome>) -> Result<()> {
    step(done, "rustfmt", &mut cargo(&["fmt", "--all", "--check"]))?;
    let clippy = ["clippy", "--workspace", "--exclude", "sluice-ebpf", "--all-targets"];
    step(done, "clippy", &mut cargo(&[&clippy[..], &["--", "-D", "warnings"]].concat()))?;
    bpf_clippy(done)
}

/// The BPF side needs the compiler that builds it; that one may come without clippy.
fn bpf_clippy(done: &mut Vec<Outcome>) -> Result<()> {
    let toolchain = setup::bpf_toolchain();
    let clippy = toolchain.as_ref().filter(|it| it.sysroot.join("bin/cargo-clippy").is_file());
    let Some(toolchain) = clippy else {
        let note = "not run: the BPF compiler here comes without clippy".to_owned();
        eprintln!("\n== clippy (bpf) == {note}");
        done.push(Outcome { note, ..Outcome::new("clippy (bpf)") });
        return Ok(());
    };
    let args = ["clippy", "--package", "sluice-ebpf", "--target", "bpfel-unknown-none"];
    let mut command = match &toolchain.name {
        Some(name) => {
            let mut command = Command::new("rustup");
            command.args(["run", name, "cargo"]).args(args).env_remove("CARGO");
            command.current_dir(root());
            command
        }
        None => cargo(&args),
    };
    command.args(["-Z", "build-std=core", "--", "-D", "warnings"]).env("RUSTC_BOOTSTRAP", "1");
    step(done, "clippy (bpf)", &mut command)
}

fn unit(done: &mut Vec<Outcome>) -> Result<()> {
    step(done, "unit", seeded(&mut unit_tests()?))?;
    step(done, "doc", &mut cargo(&[&SELECT[..], &["--doc"]].concat()))
}

/// The command with the seed, unless whoever calls asks for another.
fn seeded(command: &mut Command) -> &mut Command {
    if std::env::var_os(SEED.0).is_some() { command } else { command.env(SEED.0, SEED.1) }
}

/// The tests that need neither root nor a store.
fn unit_tests() -> Result<Command> {
    let mut args: Vec<String> = SELECT.iter().map(ToString::to_string).collect();
    args.extend(["--no-fail-fast", "--lib", "--bins"].map(str::to_owned));
    for name in integration_tests()? {
        if group_of(&name) == "unit" {
            args.extend(["--test".to_owned(), name]);
        }
    }
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    Ok(cargo(&args))
}

/// What the end-to-end tests start.
fn binaries(done: &mut Vec<Outcome>) -> Result<()> {
    step(done, "build", &mut cargo(&["build"]))
}

fn group(name: &str, done: &mut Vec<Outcome>) -> Result<()> {
    let mut args: Vec<String> = SELECT.iter().map(ToString::to_string).collect();
    args.push("--no-fail-fast".to_owned());
    for test in integration_tests()? {
        if group_of(&test) == name {
            args.extend(["--test".to_owned(), test]);
        }
    }
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    step(done, name, seeded(&mut cargo(&args)))
}

/// The group of an integration test, from its name.
fn group_of(test: &str) -> &'static str {
    if test.starts_with("kernel_") {
        "kernel"
    } else if test.starts_with("e2e_") || NOT_UNIT.iter().any(|start| test.starts_with(start)) {
        "e2e"
    } else {
        "unit"
    }
}

fn demo(done: &mut Vec<Outcome>) -> Result<()> {
    for source in ["dir", "etcd"] {
        let mut command = Command::new(target_dir().join("debug/demo"));
        command.args(["--check", "--source", source]).current_dir(root());
        step(done, &format!("demo ({source})"), &mut command)?;
    }
    Ok(())
}

/// The names of all integration tests of the workspace, from its `tests` directories.
fn integration_tests() -> Result<Vec<String>> {
    let mut names = Vec::new();
    for package in [
        "cni",
        "dns",
        "ebpf/abi",
        "netlink",
        "proxy",
        "proxy/model",
        "proxy/plan",
        "proxy/store",
        "tests",
        "xtask",
    ] {
        let dir = root().join(package).join("tests");
        let Ok(entries) = std::fs::read_dir(&dir) else { continue };
        for entry in entries {
            let path = entry.with_context(|| dir.display().to_string())?.path();
            names.extend(test_name(&path));
        }
    }
    names.sort();
    names.dedup();
    Ok(names)
}

/// As cargo names it: `tests/NAME.rs` or `tests/NAME/main.rs`.
fn test_name(path: &Path) -> Option<String> {
    let is_test = path.extension().is_some_and(|extension| extension == "rs")
        || path.join("main.rs").is_file();
    let name = path.file_stem()?.to_str()?;
    is_test.then(|| name.to_owned())
}

impl Outcome {
    fn new(name: &str) -> Self {
        let time = Duration::ZERO;
        Self { name: name.to_owned(), passed: 0, failed: 0, ignored: 0, time, note: String::new() }
    }

    /// Adds libtest's closing line, if this is one.
    fn count(&mut self, line: &str) -> bool {
        let Some(rest) = line.strip_prefix("test result: ") else { return false };
        let rest = rest.split_once(". ").map_or(rest, |(_, counts)| counts);
        for part in rest.split("; ") {
            let mut words = part.split(' ');
            let (Some(number), Some(what)) = (words.next(), words.next()) else { continue };
            let Ok(number) = number.parse::<u64>() else { continue };
            match what {
                "passed" => self.passed += number,
                "failed" => self.failed += number,
                "ignored" => self.ignored += number,
                _ => {}
            }
        }
        true
    }
}

/// Runs a step to its end, with its output on the terminal. A step without tests of its own counts as one check.
fn step(done: &mut Vec<Outcome>, name: &str, command: &mut Command) -> Result<()> {
    eprintln!("\n== {name} == {}", show(command));
    let start = Instant::now();
    let mut outcome = Outcome::new(name);
    let mut has_tests = false;
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("start {}", show(command)))?;
    let mut output = BufReader::new(child.stdout.take().context("stdout of a child")?);
    let mut line = Vec::new();
    while output.read_until(b'\n', &mut line)? > 0 {
        let text = String::from_utf8_lossy(&line);
        print!("{text}");
        has_tests |= outcome.count(text.trim_end());
        line.clear();
    }
    let status = child.wait()?;
    outcome.time = start.elapsed();
    match (status.success(), has_tests) {
        (true, false) => outcome.passed = 1,
        // It did not build, or a test ended the whole process.
        (false, _) if outcome.failed == 0 => {
            outcome.failed = 1;
            outcome.note = format!("ended with {status}");
        }
        _ => {}
    }
    done.push(outcome);
    Ok(())
}

fn summary(done: &[Outcome]) -> ExitCode {
    println!("\n{:14} {:>7} {:>7} {:>8}", "step", "passed", "failed", "time");
    for it in done {
        let mut note = it.note.clone();
        if it.ignored > 0 {
            note = format!("{} ignored {note}", it.ignored);
        }
        let line = format!(
            "{:14} {:>7} {:>7} {:>7.1}s  {note}",
            it.name,
            it.passed,
            it.failed,
            it.time.as_secs_f64()
        );
        println!("{}", line.trim_end());
    }
    let passed: u64 = done.iter().map(|it| it.passed).sum();
    let failed: u64 = done.iter().map(|it| it.failed).sum();
    println!("\n{passed} passed, {failed} failed");
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closing_lines_of_test_binaries_add_up() {
        let mut outcome = Outcome::new("unit");
        assert!(outcome.count(
            "test result: ok. 11 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.03s"
        ));
        assert!(outcome.count("test result: FAILED. 2 passed; 3 failed; 0 ignored; 0 measured"));
        assert!(!outcome.count("test wait::tests::a ... ok"));
        assert_eq!((outcome.passed, outcome.failed, outcome.ignored), (13, 3, 1));
    }

    #[test]
    fn a_step_that_fails_without_a_test_counts_as_a_failure() {
        let mut done = Vec::new();
        step(&mut done, "bad", Command::new("sh").args(["-c", "exit 3"])).unwrap();
        step(&mut done, "good", &mut Command::new("true")).unwrap();
        let crash = "echo 'test result: ok. 4 passed; 0 failed'; exit 101";
        step(&mut done, "crash", Command::new("sh").args(["-c", crash])).unwrap();
        let counts: Vec<_> = done.iter().map(|it| (it.passed, it.failed)).collect();
        assert_eq!(counts, [(0, 1), (1, 0), (4, 1)]);
    }

    #[test]
    fn every_group_has_its_tests() {
        let names = integration_tests().unwrap();
        for group in ["unit", "kernel", "e2e"] {
            assert!(names.iter().any(|name| group_of(name) == group), "{group}: {names:?}");
        }
        for start in NOT_UNIT {
            assert!(names.iter().any(|test| test.starts_with(start)), "{start} is gone: {names:?}");
        }
    }

    /// The unit group is for whoever has no root: what says in its first line that it needs it is elsewhere.
    #[test]
    fn unit_tests_need_no_root() {
        let tests = ["cni/tests", "dns/tests", "proxy/tests", "proxy/store/tests", "tests/tests"];
        let mut with_root = 0;
        for dir in tests {
            for entry in std::fs::read_dir(root().join(dir)).unwrap() {
                let path = entry.unwrap().path();
                let (Some(name), Ok(text)) = (test_name(&path), std::fs::read_to_string(&path))
                else {
                    continue;
                };
                let mut head = text.lines().take_while(|line| line.starts_with("//!"));
                if head.any(|line| line.contains("Needs root")) {
                    with_root += 1;
                    assert_ne!(group_of(&name), "unit", "{}", path.display());
                }
            }
        }
        assert!(with_root > 0);
    }

    #[test]
    fn tests_are_named_as_cargo_names_them() {
        assert_eq!(test_name(Path::new("tests/e2e_service.rs")).as_deref(), Some("e2e_service"));
        assert_eq!(test_name(Path::new("tests/golden.yaml")), None);
    }
}
