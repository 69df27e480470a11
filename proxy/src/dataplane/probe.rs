//! What the kernel can do, asked before anything is changed: one line that names what is missing is
//! worth more than the verifier's log.
//!
//! The kernel is asked, not its version: distributions take features back to older kernels, and
//! leave others out. Each question is a program of two instructions or one query.

use std::path::Path;

use aya::programs::{ProgramError, ProgramType, SchedClassifier, TcAttachType};
use aya::sys::{BpfHelper, SyscallError, is_helper_supported};

/// The oldest kernel that has everything that is needed; older ones with what is needed taken back
/// are not turned away.
const OLDEST: &str = "6.1";

/// Something that the programs use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Feature {
    /// Its name.
    name: &'static str,
    /// The Linux version that brought it.
    since: &'static str,
    /// What is done without it; `None`: nothing can be.
    fallback: Option<&'static str>,
}

/// Whether the kernel has it; `None` where it could not be asked.
type Found = (Feature, Option<bool>);

/// The kernel, as far as it matters.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Kernel {
    /// Its release, as `uname -r` prints it.
    pub release: String,
    /// What it lacks and what is done instead.
    pub fallbacks: Vec<String>,
    tcx: bool,
}

impl Kernel {
    /// How programs are attached to pods' interfaces.
    pub fn pod_hook(&self) -> &'static str {
        match self.tcx {
            true => "clsact, or TCX where the network's configuration asks for it",
            false => "clsact, this kernel has no TCX",
        }
    }
}

/// The kernel lacks what the programs cannot do without.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("kernel {release} lacks {missing}: Sluice needs Linux {OLDEST} or later")]
pub struct KernelLacks {
    release: String,
    missing: String,
}

const fn needed(name: &'static str, since: &'static str) -> Feature {
    Feature { name, since, fallback: None }
}

const TCX: Feature = Feature {
    name: "TCX",
    since: "6.6",
    fallback: Some("pods' programs are filters of the clsact queueing discipline"),
};

const BTF: Feature = Feature {
    name: "/sys/kernel/btf/vmlinux (CONFIG_DEBUG_INFO_BTF)",
    since: "5.4",
    fallback: Some("the programs are loaded without it"),
};

/// Asks the kernel.
///
/// # Errors
///
/// Names everything that is missing and cannot be done without. What could not be asked, for want
/// of rights most likely, is taken to be there: loading will tell.
pub fn probe() -> Result<Kernel, KernelLacks> {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let helper = |kind, helper| answer(is_helper_supported(kind, helper));
    let sock_addr = ProgramType::CgroupSockAddr;
    let tc = ProgramType::SchedClassifier;
    let found = [
        (
            needed("bpf_get_socket_cookie in cgroup/sock_release programs", "5.9"),
            helper(ProgramType::CgroupSock, BpfHelper::BPF_FUNC_get_socket_cookie),
        ),
        (
            needed("bpf_set_retval in cgroup/connect programs", "5.18"),
            helper(sock_addr, BpfHelper::BPF_FUNC_set_retval),
        ),
        (
            needed("bpf_redirect_peer in tc programs", "5.10"),
            helper(tc, BpfHelper::BPF_FUNC_redirect_peer),
        ),
        (
            needed("bpf_ktime_get_coarse_ns in tc programs", "5.11"),
            helper(tc, BpfHelper::BPF_FUNC_ktime_get_coarse_ns),
        ),
        (TCX, tcx()),
        (BTF, Some(Path::new("/sys/kernel/btf/vmlinux").exists())),
    ];
    assess(release, &found)
}

/// What follows from the answers.
fn assess(release: String, found: &[Found]) -> Result<Kernel, KernelLacks> {
    let mut missing = Vec::new();
    let mut kernel = Kernel { release, fallbacks: Vec::new(), tcx: true };
    for (feature, there) in found {
        if there.unwrap_or(true) {
            continue;
        }
        let Feature { name, since, fallback } = feature;
        kernel.tcx &= *feature != TCX;
        match fallback {
            Some(instead) => kernel.fallbacks.push(format!("no {name} (Linux {since}): {instead}")),
            None => missing.push(format!("{name} (Linux {since})")),
        }
    }
    if missing.is_empty() {
        Ok(kernel)
    } else {
        Err(KernelLacks { release: kernel.release, missing: missing.join(", ") })
    }
}

fn answer(asked: Result<bool, ProgramError>) -> Option<bool> {
    asked.inspect_err(|error| tracing::debug!(%error, "the kernel could not be asked")).ok()
}

/// Whether TCX is there: a query for programs on the loopback interface, which every network
/// namespace has. A kernel that does not know the attach type says so.
fn tcx() -> Option<bool> {
    match SchedClassifier::query_tcx("lo", TcAttachType::Ingress) {
        Ok(_) => Some(true),
        Err(ProgramError::SyscallError(SyscallError { io_error, .. }))
            if io_error.raw_os_error() == Some(libc::EINVAL) =>
        {
            Some(false)
        }
        Err(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RETVAL: Feature = needed("bpf_set_retval in cgroup/connect programs", "5.18");
    const PEER: Feature = needed("bpf_redirect_peer in tc programs", "5.10");

    /// O6: the refusal names everything at once, with the versions that brought it.
    #[test]
    fn a_kernel_that_lacks_what_is_needed_is_refused_by_name() {
        let found =
            [(RETVAL, Some(false)), (PEER, Some(false)), (TCX, Some(false)), (BTF, Some(true))];
        let error = assess("5.4.0-42".to_owned(), &found).expect_err("too old");
        assert_eq!(
            error.to_string(),
            "kernel 5.4.0-42 lacks bpf_set_retval in cgroup/connect programs (Linux 5.18), \
             bpf_redirect_peer in tc programs (Linux 5.10): Sluice needs Linux 6.1 or later"
        );
    }

    /// O6: the fallback that is taken is named.
    #[test]
    fn a_kernel_that_lacks_what_can_be_replaced_is_taken_with_a_word() {
        let found = [(RETVAL, Some(true)), (TCX, Some(false)), (BTF, Some(false))];
        let kernel = assess("6.1.0".to_owned(), &found).expect("new enough");
        assert_eq!(
            kernel.fallbacks,
            [
                "no TCX (Linux 6.6): pods' programs are filters of the clsact queueing discipline",
                "no /sys/kernel/btf/vmlinux (CONFIG_DEBUG_INFO_BTF) (Linux 5.4): the programs are \
                 loaded without it",
            ]
        );
        assert!(kernel.pod_hook().starts_with("clsact"));
    }

    #[test]
    fn what_could_not_be_asked_is_left_for_loading_to_tell() {
        let kernel = assess("6.18".to_owned(), &[(RETVAL, None), (TCX, None)]).expect("unknown");
        assert_eq!(kernel.fallbacks.len(), 0);
        assert!(kernel.pod_hook().contains("or TCX"), "{}", kernel.pod_hook());
    }
}
