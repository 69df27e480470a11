//! Attachments that outlive the agent: links, pinned, whose program is replaced in place.

use std::{
    fs, io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    path::Path,
};

use super::sys::{self, LinkTarget};

/// Attach types of `enum bpf_attach_type`.
pub(super) mod attach_type {
    use sluice_abi::programs;

    pub(crate) const TCX_INGRESS: u32 = 46;
    pub(crate) const TCX_EGRESS: u32 = 47;

    /// That of a cgroup program.
    pub(crate) fn of_cgroup(program: &str) -> Option<u32> {
        Some(match program {
            programs::CONNECT4 => 10,
            programs::CONNECT6 => 11,
            programs::SENDMSG4 => 14,
            programs::SENDMSG6 => 15,
            programs::RECVMSG4 => 19,
            programs::RECVMSG6 => 20,
            programs::GETPEERNAME4 => 29,
            programs::GETPEERNAME6 => 30,
            programs::RELEASE => 34,
            programs::POST_BIND4 => 12,
            programs::POST_BIND6 => 13,
            _ => return None,
        })
    }
}

/// Where to attach.
#[derive(Clone, Copy)]
pub(super) enum Place<'a> {
    /// A cgroup and its number.
    Cgroup(BorrowedFd<'a>, u64),
    /// An interface by its index.
    Interface(u32),
}

impl Place<'_> {
    fn target(self) -> LinkTarget {
        match self {
            Self::Cgroup(_, id) => LinkTarget::Cgroup(id),
            Self::Interface(index) => LinkTarget::Interface(index),
        }
    }

    fn number(self) -> u32 {
        match self {
            Self::Cgroup(fd, _) => sys::fd_target(fd),
            Self::Interface(index) => index,
        }
    }
}

/// What was done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Done {
    Attached,
    Replaced,
}

/// Attaches the program, or puts it in the place of the one that the pinned link has.
///
/// A link that is attached elsewhere, or whose cgroup or interface is gone, is given up only once
/// the new one is attached.
pub(super) fn attach(
    pin: &Path,
    program: BorrowedFd<'_>,
    place: Place<'_>,
    attach_type: u32,
) -> io::Result<Done> {
    if let Some(link) = open(pin)? {
        if sys::link_target(link.as_fd())? == place.target() {
            match sys::update_link(link.as_fd(), program) {
                Ok(()) => return Ok(Done::Replaced),
                // The cgroup or interface went just now.
                Err(error) if error.raw_os_error() == Some(libc::ENOLINK) => {}
                Err(error) => return Err(error),
            }
        }
        let link = sys::create_link(program, place.number(), attach_type)?;
        fs::remove_file(pin)?;
        sys::pin(link.as_fd(), pin)?;
        return Ok(Done::Attached);
    }
    let link = sys::create_link(program, place.number(), attach_type)?;
    sys::pin(link.as_fd(), pin)?;
    Ok(Done::Attached)
}

/// Opens the pinned link, if there is one.
pub(super) fn open(pin: &Path) -> io::Result<Option<OwnedFd>> {
    match sys::open_pin(pin, false) {
        Ok(link) => Ok(Some(link)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether a link is pinned there that still has its interface.
pub(super) fn is_there(pin: &Path) -> io::Result<bool> {
    Ok(open(pin)?.is_some() && !is_gone(pin)?)
}

/// Whether the pinned link has lost its interface.
pub(super) fn is_gone(pin: &Path) -> io::Result<bool> {
    let Some(link) = open(pin)? else { return Ok(false) };
    Ok(matches!(sys::link_target(link.as_fd())?, LinkTarget::Interface(0) | LinkTarget::Cgroup(0)))
}
