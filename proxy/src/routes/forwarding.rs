//! Sysctls without which packets of pods do not pass the node.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// A sysctl that is not as pods need it and that could not be set.
#[derive(Debug, thiserror::Error)]
#[error("sysctl {name} = {wanted} could not be set: {source}; {effect}")]
pub struct SysctlProblem {
    /// Dotted name, for example `net.ipv4.ip_forward`.
    pub name: String,
    /// The value it should have.
    pub wanted: &'static str,
    /// What does not work as it is.
    pub effect: &'static str,
    /// The system's answer.
    pub source: io::Error,
}

/// Sysctls of a network namespace, under a directory.
struct Sysctls<'a> {
    root: &'a Path,
    problems: Vec<SysctlProblem>,
}

impl Sysctls<'_> {
    fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    fn get(&self, name: &str) -> io::Result<String> {
        fs::read_to_string(self.path(name)).map(|v| v.trim().to_owned())
    }

    /// Sets one unless it has the value already; a failure is noted.
    fn ensure(&mut self, name: &str, wanted: &'static str, effect: &'static str) -> bool {
        let done = match self.get(name) {
            Ok(value) if value == wanted => Ok(()),
            _ => fs::write(self.path(name), wanted),
        };
        match done {
            Ok(()) => true,
            Err(source) => {
                let name = dotted(name);
                self.problems.push(SysctlProblem { name, wanted, effect, source });
                false
            }
        }
    }

    fn interfaces(&self, family: &str) -> Vec<String> {
        let Ok(items) = fs::read_dir(self.path(&format!("net/{family}/conf"))) else {
            return Vec::new();
        };
        let mut names: Vec<String> =
            items.flatten().filter_map(|i| i.file_name().into_string().ok()).collect();
        names.sort();
        names
    }
}

/// `net/ipv4/conf/eth0.5/rp_filter` as `sysctl` prints it: dots in interface names become slashes.
fn dotted(name: &str) -> String {
    name.split('/').map(|part| part.replace('.', "/")).collect::<Vec<_>>().join(".")
}

/// Makes the node forward packets of the families in use and returns what could not be set.
/// `root` is `/proc/sys`; it shows the network namespace of the calling thread.
///
/// With IPv6 forwarding on, the kernel ignores router advertisements on interfaces whose
/// `accept_ra` is 1, and a node that has its default route from one would lose it after a while.
/// Those get `accept_ra` 2 first; if that fails, forwarding is left as it is.
pub fn prepare_forwarding(root: &Path, v4: bool, v6: bool) -> Vec<SysctlProblem> {
    let mut sysctls = Sysctls { root, problems: Vec::new() };
    if v4 {
        sysctls.ensure(
            "net/ipv4/ip_forward",
            "1",
            "no IPv4 packet of a pod gets beyond this node or to another pod",
        );
    }
    if v6 && sysctls.get("net/ipv6/conf/all/forwarding").is_ok_and(|v| v == "1") {
        return sysctls.problems;
    }
    if v6 {
        let mut kept_default_routes = true;
        for interface in sysctls.interfaces("ipv6") {
            let name = format!("net/ipv6/conf/{interface}/accept_ra");
            if sysctls.get(&name).is_ok_and(|v| v == "1") {
                kept_default_routes &= sysctls.ensure(
                    &name,
                    "2",
                    "with IPv6 forwarding on, the node would lose its default route",
                );
            }
        }
        if kept_default_routes {
            sysctls.ensure(
                "net/ipv6/conf/all/forwarding",
                "1",
                "no IPv6 packet of a pod gets beyond this node or to another pod",
            );
        }
    }
    sysctls.problems
}

/// Interfaces other than loopback whose reverse-path filter is strict, as dotted sysctl names.
///
/// A strict filter (1) drops a packet that arrives on another interface than the one the route back
/// to its sender uses; that happens between nodes with several uplinks. The larger of `all` and the
/// interface's own value counts, and 2 is loose (`Documentation/networking/ip-sysctl.rst`).
pub fn strict_reverse_paths(root: &Path) -> Vec<String> {
    let sysctls = Sysctls { root, problems: Vec::new() };
    let value = |interface: &str| -> u8 {
        sysctls
            .get(&format!("net/ipv4/conf/{interface}/rp_filter"))
            .ok()
            .and_then(|v| v.parse().ok())
            .unwrap_or(0)
    };
    let all = value("all");
    sysctls
        .interfaces("ipv4")
        .into_iter()
        .filter(|i| !matches!(i.as_str(), "all" | "default" | "lo"))
        .filter(|i| value(i).max(all) == 1)
        .map(|i| dotted(&format!("net/ipv4/conf/{i}/rp_filter")))
        .collect()
}

#[cfg(test)]
mod tests;
