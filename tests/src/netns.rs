//! Network namespaces with names, as `ip netns` makes them.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, setns};

use crate::process::Launch;
use crate::{interrupt, names, root, sweep};

/// Where `ip netns` keeps the names.
pub const DIR: &str = "/run/netns";

/// A named network namespace with its loopback up. Removed on drop.
#[derive(Debug)]
pub struct NetNs {
    name: String,
}

impl NetNs {
    /// Makes a namespace with a unique name that ends in `label`.
    ///
    /// # Errors
    /// Not root, or iproute2 is missing.
    pub fn new(label: &str) -> Result<Self> {
        root::require_root()?;
        sweep::once();
        interrupt::clean_up_on_signal();
        let name = names::unique(label);
        run("ip", &["netns", "add", &name])?;
        let this = Self { name };
        this.ip("link set lo up")?;
        Ok(this)
    }

    /// The name that `ip -n` takes.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The path that a runtime passes as `CNI_NETNS`.
    pub fn path(&self) -> PathBuf {
        Path::new(DIR).join(&self.name)
    }

    /// Runs `ip` commands in this namespace, one a line, without the leading `ip`. They stop at the first that fails.
    ///
    /// # Errors
    /// `ip` refused a line; the message holds it.
    pub fn ip(&self, lines: &str) -> Result<()> {
        let mut child = Command::new("ip")
            .args(["-n", &self.name, "-batch", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("start ip")?;
        child.stdin.take().context("stdin of ip")?.write_all(lines.as_bytes())?;
        let output = child.wait_with_output()?;
        if !output.status.success() {
            let stderr = String::from_utf8_lossy(&output.stderr);
            bail!("ip -n {} failed: {}\n{lines}", self.name, stderr.trim());
        }
        Ok(())
    }

    /// What `ip -n NAME ARGS` prints.
    ///
    /// # Errors
    /// `ip` failed.
    pub fn ip_output(&self, args: &[&str]) -> Result<String> {
        run("ip", &[&["-n", self.name.as_str()], args].concat())
    }

    /// Sets sysctls below `/proc/sys/net`, for example `("ipv4/ip_forward", "1")`.
    ///
    /// # Errors
    /// The kernel has no such sysctl, or refuses the value.
    pub fn sysctls(&self, settings: &[(&str, &str)]) -> Result<()> {
        self.run(|| {
            for (name, value) in settings {
                let path = Path::new("/proc/sys/net").join(name);
                std::fs::write(&path, value)
                    .with_context(|| format!("set {} to {value}", path.display()))?;
            }
            Ok(())
        })?
    }

    /// Runs `work` on a thread of its own inside this namespace and returns its value. Sockets made there stay there.
    /// The thread keeps the cgroup of this process: socket hooks of a node do not see it.
    ///
    /// # Errors
    /// The namespace cannot be entered.
    ///
    /// # Panics
    /// If `work` does; the panic is passed on.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        let file = File::open(self.path()).with_context(|| self.path().display().to_string())?;
        std::thread::scope(|scope| {
            let thread = scope.spawn(move || -> Result<T> {
                setns(file, CloneFlags::CLONE_NEWNET).context("setns")?;
                Ok(work())
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// A command that will run in this namespace, and in the cgroup of this process.
    pub fn launch(&self, program: impl AsRef<std::ffi::OsStr>) -> Launch {
        Launch::new(program).netns(self)
    }

    /// Joins this namespace and `other` with a veth pair: `here` in this one, `there` in the other, both up.
    ///
    /// # Errors
    /// `ip` failed; interface names hold at most 15 bytes.
    pub fn veth(&self, here: &str, other: &Self, there: &str) -> Result<()> {
        self.ip(&format!(
            "link add {here} type veth peer name {there} netns {}\nlink set {here} up",
            other.name
        ))?;
        other.ip(&format!("link set {there} up"))
    }

    /// The number that this namespace has for the one at the other end of the veth `here`
    /// (`IFLA_LINK_NETNSID`), if it has one.
    ///
    /// # Errors
    /// There is no such interface.
    pub fn number_of_peer(&self, here: &str) -> Result<Option<u32>> {
        let shown = self.ip_output(&["-json", "-details", "link", "show", here])?;
        let shown: serde_json::Value = serde_json::from_str(&shown).context("what ip shows")?;
        Ok(shown[0]["link_netnsid"].as_u64().map(u32::try_from).transpose()?)
    }

    /// Makes a bridge, up.
    ///
    /// # Errors
    /// `ip` failed.
    pub fn bridge(&self, name: &str) -> Result<()> {
        self.ip(&format!("link add {name} type bridge forward_delay 0\nlink set {name} up"))
    }
}

impl Drop for NetNs {
    fn drop(&mut self) {
        if self.path().exists()
            && let Err(error) = run("ip", &["netns", "del", &self.name])
        {
            eprintln!("{error:#}");
        }
    }
}

/// Runs a command to its end and returns what it printed.
///
/// # Errors
/// It cannot be started, or ends with another status than 0; the message holds its stderr.
pub fn run(program: &str, args: &[&str]) -> Result<String> {
    let output = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("start {program}"))?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        bail!("{program} {} failed ({}): {}", args.join(" "), output.status, stderr.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
