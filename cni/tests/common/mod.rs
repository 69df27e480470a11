//! Network namespaces that go with the test, and a node that runs the plugin.

use std::fs::File;
use std::io::Write as _;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use nix::sched::{CloneFlags, setns};
use serde_json::{Value, json};
use tempfile::TempDir;

static NEXT: AtomicU32 = AtomicU32::new(0);
static SWEPT: Once = Once::new();

/// First part of every name outside this process; the process's number follows.
const PREFIX: &str = "slc-";

/// Removes the namespaces and directories, with what is mounted in them, of runs that were killed.
fn sweep() {
    let is_dead = |name: &str| {
        let number = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next());
        let pid = number.and_then(|number| number.parse::<u32>().ok());
        pid.is_some_and(|pid| !Path::new("/proc").join(pid.to_string()).exists())
    };
    let dead = |dir: &Path| {
        let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        names.filter(|name| is_dead(name)).collect::<Vec<String>>()
    };
    for name in dead(Path::new("/run/netns")) {
        // Another test process may be at it as well.
        let _ = Command::new("ip").args(["netns", "del", &name]).stderr(Stdio::null()).status();
    }
    let temp = std::env::temp_dir();
    for name in dead(&temp) {
        let state = temp.join(&name).join("state");
        let _ = nix::mount::umount2(&state, nix::mount::MntFlags::MNT_DETACH);
        let _ = std::fs::remove_dir_all(temp.join(&name));
    }
}

/// Fails the test where it cannot work, instead of letting it pass.
pub(crate) fn require_root() {
    assert!(
        nix::unistd::Uid::effective().is_root(),
        "this test makes network namespaces: run it as root"
    );
}

/// A named network namespace; deleted when dropped, also by a failing test.
pub(crate) struct Ns {
    pub(crate) name: String,
}

impl Ns {
    pub(crate) fn new(label: &str) -> Self {
        require_root();
        SWEPT.call_once(sweep);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("{PREFIX}{}-{number}-{label}", std::process::id());
        must(Command::new("ip").args(["netns", "add", &name]));
        Self { name }
    }

    pub(crate) fn path(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.name)
    }

    /// `ip` in this namespace; its output.
    pub(crate) fn ip(&self, args: &str) -> String {
        must(Command::new("ip").args(["-n", &self.name]).args(args.split_whitespace()))
    }

    /// Runs code on a thread inside.
    pub(crate) fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            scope
                .spawn(|| {
                    let file = File::open(self.path()).expect("the namespace");
                    setns(&file, CloneFlags::CLONE_NEWNET).expect("setns");
                    work()
                })
                .join()
                .expect("the code inside a namespace")
        })
    }

    /// A sysctl, for example `ipv6/conf/eth0/accept_ra`.
    pub(crate) fn sysctl(&self, name: &str) -> String {
        let path = Path::new("/proc/sys/net").join(name);
        self.run(|| std::fs::read_to_string(&path).expect("sysctl").trim().to_owned())
    }
}

impl Drop for Ns {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.name]).status();
    }
}

fn must(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {stderr}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A TCP connection from one namespace to an address in another carries bytes both ways.
pub(crate) fn assert_reaches(from: &Ns, to: &Ns, address: IpAddr) {
    let listener = to.run(|| TcpListener::bind(SocketAddr::new(address, 0)).expect("listen"));
    let target = listener.local_addr().expect("address");
    thread::scope(|scope| {
        let server = scope.spawn(move || {
            use std::io::{Read as _, Write as _};
            let (mut stream, _) = listener.accept().expect("accept");
            let mut byte = [0];
            stream.read_exact(&mut byte).expect("read");
            stream.write_all(&[byte[0] + 1]).expect("write");
        });
        let answer = from.run(|| {
            use std::io::{Read as _, Write as _};
            let timeout = Duration::from_secs(5);
            let connected = TcpStream::connect_timeout(&target, timeout);
            let Ok(mut stream) = connected else {
                // Let the server go, so that the failure shows.
                let _ = to.run(|| TcpStream::connect_timeout(&target, timeout));
                panic!("{} to {target}: {connected:?}", from.name);
            };
            stream.set_read_timeout(Some(timeout)).expect("timeout");
            stream.write_all(&[41]).expect("write");
            let mut byte = [0];
            stream.read_exact(&mut byte).expect("read");
            byte[0]
        });
        assert_eq!(answer, 42);
        server.join().expect("server");
    });
}

/// What one call of the plugin gave.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) ok: bool,
    pub(crate) stdout: Value,
    pub(crate) stderr: String,
}

impl Outcome {
    #[track_caller]
    pub(crate) fn success(self) -> Value {
        assert!(self.ok, "{} {}", self.stdout, self.stderr);
        self.stdout
    }

    /// Code, message and details of the error.
    #[track_caller]
    pub(crate) fn failure(self) -> (u64, String, String) {
        assert!(!self.ok, "{}", self.stdout);
        let text = |field: &str| self.stdout[field].as_str().unwrap_or_default().to_owned();
        (self.stdout["code"].as_u64().expect("a code"), text("msg"), text("details"))
    }
}

/// A namespace with state and configuration of its own.
pub(crate) struct Node {
    pub(crate) ns: Ns,
    pub(crate) dir: TempDir,
    pub(crate) conf: Value,
}

impl Node {
    pub(crate) fn new(pod_cidrs: &[&str]) -> Self {
        let ns = Ns::new("node");
        ns.ip("link set lo up");
        let prefix = format!("{PREFIX}{}-", std::process::id());
        let dir = tempfile::Builder::new().prefix(&prefix).tempdir().expect("directory");
        let conf = json!({
            "cniVersion": "1.1.0",
            "name": "pods",
            "type": "sluice-cni",
            "podCIDRs": pod_cidrs,
            "stateDir": dir.path().join("state"),
        });
        Self { ns, dir, conf }
    }

    pub(crate) fn start(
        &self,
        command: &str,
        id: &str,
        netns: Option<&Path>,
        conf: &Value,
    ) -> Child {
        self.start_raw(
            &[
                ("CNI_COMMAND", command),
                ("CNI_CONTAINERID", id),
                ("CNI_IFNAME", "eth0"),
                ("CNI_NETNS", &netns.map(|p| p.display().to_string()).unwrap_or_default()),
                ("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web"),
            ],
            conf.to_string().as_bytes(),
        )
    }

    pub(crate) fn start_raw(&self, env: &[(&str, &str)], stdin: &[u8]) -> Child {
        let mut child = Command::new("nsenter")
            .arg(format!("--net={}", self.ns.path().display()))
            .arg(env!("CARGO_BIN_EXE_sluice-cni"))
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .envs(env.iter().copied().filter(|(_, v)| !v.is_empty()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("nsenter");
        // A plugin that fails early may close its stdin first.
        let _ = child.stdin.take().expect("piped").write_all(stdin);
        child
    }

    pub(crate) fn raw(&self, env: &[(&str, &str)], stdin: &[u8]) -> Outcome {
        finish(self.start_raw(env, stdin))
    }

    pub(crate) fn call(&self, command: &str, id: &str, pod: &Ns) -> Outcome {
        finish(self.start(command, id, Some(&pod.path()), &self.conf))
    }

    /// DEL as a runtime sends it once the namespace is gone.
    pub(crate) fn del_without_netns(&self, id: &str) -> Outcome {
        finish(self.start("DEL", id, None, &self.conf))
    }

    /// ADD that must succeed: the addresses.
    #[track_caller]
    pub(crate) fn add(&self, id: &str, pod: &Ns) -> Vec<IpAddr> {
        addresses(&self.call("ADD", id, pod).success())
    }

    /// File names of the records.
    pub(crate) fn records(&self) -> Vec<String> {
        let endpoints = self.dir.path().join("state/endpoints");
        let Ok(items) = std::fs::read_dir(endpoints) else { return Vec::new() };
        let mut names: Vec<String> =
            items.map(|i| i.expect("entry").file_name().into_string().expect("UTF-8")).collect();
        names.sort();
        names
    }

    pub(crate) fn record_path(&self, address: IpAddr) -> PathBuf {
        let address = address.to_string();
        let name = self
            .records()
            .into_iter()
            .find(|n| n.trim_end_matches(".json").split(',').any(|part| part == address))
            .expect("a record with the address");
        self.dir.path().join("state/endpoints").join(name)
    }

    /// Everything the plugin could have left: records, interfaces, routes.
    #[track_caller]
    pub(crate) fn assert_clean(&self) {
        assert_eq!(self.records(), [""; 0]);
        let links = self.ns.ip("-o link");
        assert!(!links.contains("slu"), "{links}");
        let routes = self.ns.ip("route") + &self.ns.ip("-6 route");
        assert!(!routes.contains("slu"), "{routes}");
    }
}

pub(crate) fn finish(child: Child) -> Outcome {
    let output = child.wait_with_output().expect("the plugin");
    let text = String::from_utf8_lossy(&output.stdout);
    let stdout = if text.trim().is_empty() {
        Value::Null
    } else {
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("stdout {text:?}: {e}"))
    };
    Outcome {
        ok: output.status.success(),
        stdout,
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// The addresses of a result.
pub(crate) fn addresses(result: &Value) -> Vec<IpAddr> {
    let ips = result["ips"].as_array().expect("ips");
    ips.iter()
        .map(|ip| {
            let text = ip["address"].as_str().expect("address");
            text.split('/').next().expect("address").parse().expect("address")
        })
        .collect()
}
