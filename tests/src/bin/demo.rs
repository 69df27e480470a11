//! Shows Sluice on this machine: `cargo xtask demo`.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand, ValueEnum};
use sluice_tests::demo::guard::{self, Guard, PidFile};
use sluice_tests::demo::screen::Screen;
use sluice_tests::demo::stage::{SourceKind, Stage};
use sluice_tests::demo::{PREFIX, story};
use sluice_tests::{bin, interrupt, names, require_root};

/// Two nodes, a small application, names, services, a rolling change, a killed agent.
#[derive(Parser)]
struct Args {
    /// Check everything, take it down, and fail at the first thing that is not so.
    #[arg(long)]
    check: bool,
    /// Where the cluster's objects are.
    #[arg(long, value_enum, default_value = "dir")]
    source: Source,
    #[command(subcommand)]
    command: Option<Action>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Source {
    /// A directory of manifests.
    Dir,
    /// A real etcd, started for it.
    Etcd,
}

#[derive(Subcommand)]
enum Action {
    /// Take down the demo that is up, and what an earlier one left.
    Down,
    /// Wait for the demo's end and remove what it left (started by the demo itself).
    #[command(hide = true)]
    Guard {
        /// PID of the demo.
        owner: u32,
    },
}

fn main() -> ExitCode {
    names::set_prefix(PREFIX);
    let args = Args::parse();
    let outcome = match args.command {
        Some(Action::Guard { owner }) => guard::watch(owner),
        Some(Action::Down) => require_root().and_then(|()| guard::down()).map(|text| {
            println!("{text}");
        }),
        None => show(&args),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if interrupt::interrupted() => {
            eprintln!("\ninterrupted; everything was taken down ({error:#})");
            ExitCode::from(130)
        }
        Err(error) => {
            eprintln!("\ndemo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn show(args: &Args) -> Result<()> {
    require_root()?;
    interrupt::take_over()?;
    let pid_file = if args.check { None } else { Some(PidFile::write()?) };
    let guard = Guard::start()?;
    let kind = match args.source {
        Source::Dir => SourceKind::Dir,
        Source::Etcd => SourceKind::Etcd,
    };
    let mut screen = Screen::new();
    let stage = story::tell(&mut screen, kind)?;
    if !args.check {
        invite(&mut screen, &stage)?;
        while !interrupt::interrupted() {
            std::thread::sleep(Duration::from_millis(100));
        }
        screen.plain("\ntaking it down …");
    }
    let seconds = screen.elapsed().as_secs_f64();
    drop(stage);
    drop(guard);
    drop(pid_file);
    if args.check {
        screen.plain("");
        screen.ok(&format!("all of it holds, and is taken down again ({seconds:.0} s)"));
    }
    Ok(())
}

/// Says what to type next, and makes that short: a script for each node and one for the pods.
fn invite(screen: &mut Screen, stage: &Stage) -> Result<()> {
    let dir = stage.cluster.dir();
    let proxyctl = bin("proxyctl")?;
    for node in stage.cluster.nodes() {
        script(
            &dir.join(node.name()).join("proxyctl"),
            &format!(
                "exec nsenter --net={} -- {} --run-dir {} --bpf-root {} \"$@\"",
                node.netns().path().display(),
                proxyctl.display(),
                node.run_dir().display(),
                node.bpf_root().display(),
            ),
        )?;
    }
    let mut cases = String::new();
    for (name, pod) in &stage.pods {
        cases.push_str(&format!(
            "{name}) cgroup={} netns={} namespace={} ;;\n",
            pod.pod.cgroup().path().display(),
            pod.pod.netns().path().display(),
            pod.spec.namespace,
        ));
    }
    script(
        &dir.join("pod"),
        &format!(
            "name=${{1:?usage: pod NAME [COMMAND...]}}; shift\ncase \"$name\" in\n{cases}\
             *) echo \"no pod $name; there are: {}\" >&2; exit 1 ;;\nesac\n\
             [ $# -gt 0 ] || set -- sh\n\
             echo $$ > \"$cgroup/cgroup.procs\"\n\
             exec nsenter --net=\"$netns\" -- unshare --mount sh -c \
             '[ -e \"$0\" ] && mount --bind \"$0\" /etc/resolv.conf; exec \"$@\"' \
             \"{}/resolv-$namespace.conf\" \"$@\"",
            stage.pods.keys().cloned().collect::<Vec<_>>().join(" "),
            dir.display(),
        ),
    )?;
    let here = dir.display();
    screen.step("It is all up. What to type next, in another terminal (as root)");
    for (command, what) in [
        (format!("{here}/node-a/proxyctl status"), "the agent, its source, the kernel's maps"),
        (format!("{here}/node-a/proxyctl service list"), "every frontend with its backends"),
        (format!("{here}/node-b/proxyctl endpoint list -o wide"), "the pods of node-b"),
        (format!("{here}/node-b/proxyctl conntrack list"), "flows translated packet by packet"),
        (format!("{here}/pod client-0"), "a shell in a pod: dig web, curl http://web/"),
        (format!("{here}/pod client-1 curl -s http://catalog:8080/"), "who answers"),
    ] {
        screen.command(&command);
        screen.note(&format!("  {what}"));
    }
    if stage.cluster.manifests().join("service-shop-web.yaml").exists() {
        screen.command(&format!("$EDITOR {here}/manifests/service-shop-web.yaml"));
        screen.note("  change a Service and look again");
    }
    screen.plain("");
    screen.plain("Ctrl-C here, or `cargo xtask demo down`, takes it down.");
    Ok(())
}

fn script(path: &Path, body: &str) -> Result<()> {
    fs::write(path, format!("#!/bin/sh\n{body}\n")).with_context(|| path.display().to_string())?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))
        .with_context(|| path.display().to_string())
}
