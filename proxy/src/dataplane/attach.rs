//! Attaching the programs to the cgroup and to pods' interfaces.

use std::{
    fs::{self, File},
    io,
    os::{
        fd::{AsFd as _, BorrowedFd},
        unix::fs::MetadataExt as _,
    },
    path::PathBuf,
};

use aya::programs::{Program, ProgramFd};
use rustix::net::{AddressFamily, SocketType, netdevice};
use sluice_abi::programs;

use super::{
    Dataplane, DataplaneError,
    filters::{self, Direction, FilterError},
    links::{self, Done, Place, attach_type},
    load,
    view::map_error,
};

/// How a program hangs on an interface.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TcHook {
    /// By a TCX link (Linux 6.6).
    Tcx,
    /// By a filter of the clsact queueing discipline.
    Clsact,
}

impl std::fmt::Display for TcHook {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Tcx => "tcx",
            Self::Clsact => "clsact",
        })
    }
}

/// What an interface is to the node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Role {
    Pod,
    Uplink,
}

impl Role {
    /// The programs that it gets, and where.
    fn programs(self) -> [(&'static str, Direction); 2] {
        match self {
            Self::Pod => {
                [(programs::POD_SEND, Direction::Ingress), (programs::POD_RECV, Direction::Egress)]
            }
            Self::Uplink => [
                (programs::UPLINK_IN, Direction::Ingress),
                (programs::UPLINK_OUT, Direction::Egress),
            ],
        }
    }

    /// What its pins begin with.
    fn prefix(self) -> &'static str {
        match self {
            Self::Pod => "pod_",
            Self::Uplink => "uplink_",
        }
    }

    /// The pin of a link: `pod_7_sluice_pod_send`.
    fn pin_name(self, ifindex: u32, program: &str) -> String {
        format!("{}{ifindex}_{program}", self.prefix())
    }

    fn ifindex_of(self, pin: &str) -> Option<u32> {
        pin.strip_prefix(self.prefix())?.split_once('_')?.0.parse().ok()
    }
}

/// An interface whose programs are attached.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Attachment {
    /// The interface's name.
    pub interface: String,
    /// Its index in this network namespace.
    pub ifindex: u32,
    /// How.
    pub hook: TcHook,
    /// Whether programs were there before and were replaced in place.
    pub replaced: bool,
}

impl Dataplane {
    /// Attaches the cgroup programs to the cgroup of the configuration, for it and all below.
    ///
    /// Programs of an agent that ran before are replaced in place: there is no moment without.
    pub fn attach_cgroup(&mut self) -> Result<(), DataplaneError> {
        let path = self.config.cgroup.clone();
        let file_error =
            |source| DataplaneError::File { action: "open", path: path.clone(), source };
        let cgroup = File::open(&path).map_err(file_error)?;
        // A cgroup's number is its directory's inode number (kernfs, 64 bit).
        let id = cgroup.metadata().map_err(file_error)?.ino();
        for name in programs::CGROUP {
            let error = |source: Box<dyn std::error::Error + Send + Sync>| DataplaneError::Attach {
                program: name,
                target: path.display().to_string(),
                source,
            };
            let fd = match self.ebpf.program(name) {
                Some(Program::CgroupSockAddr(program)) => program.fd(),
                Some(Program::CgroupSock(program)) => program.fd(),
                _ => return Err(DataplaneError::NoObject),
            };
            let fd = fd.map_err(|source| error(source.into()))?;
            let attach_type = attach_type::of_cgroup(name).ok_or(DataplaneError::NoObject)?;
            let place = Place::Cgroup(cgroup.as_fd(), id);
            links::attach(&self.dirs.links.join(name), fd_of(fd), place, attach_type)
                .map_err(|source| permission_or(source, name, error))?;
        }
        Ok(())
    }

    /// Detaches the cgroup programs that an agent before this one attached, if any: a socket that
    /// they connected stays connected, new ones are left alone.
    ///
    /// # Errors
    ///
    /// Where a pin cannot be removed.
    pub fn detach_cgroup(&mut self) -> Result<(), DataplaneError> {
        for name in programs::CGROUP {
            let path = self.dirs.links.join(name);
            match std::fs::remove_file(&path) {
                Err(source) if source.kind() != io::ErrorKind::NotFound => {
                    return Err(DataplaneError::File { action: "unpin", path, source });
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Attaches both tc programs to the host side of a pod's interface, in the network namespace of
    /// this thread: by the kind of hook that is asked for, or by the other one where that cannot be.
    /// Doing it again replaces the programs in place.
    ///
    /// # Errors
    ///
    /// There is no such interface, or the kernel refuses.
    pub fn attach_pod(&self, interface: &str, hook: TcHook) -> Result<Attachment, DataplaneError> {
        if hook == TcHook::Tcx {
            return self.attach_role(interface, Role::Pod);
        }
        // Packets would pass through the programs twice.
        if self.has_links(index_of(interface)?, Role::Pod)? {
            return self.attach_role_by(interface, Role::Pod, TcHook::Tcx);
        }
        match self.attach_role_by(interface, Role::Pod, TcHook::Clsact) {
            Err(DataplaneError::Attach { source, .. }) if is_occupied(&*source) => {
                self.attach_role_by(interface, Role::Pod, TcHook::Tcx)
            }
            result => result,
        }
    }

    /// Whether links of these programs are on the interface.
    fn has_links(&self, ifindex: u32, role: Role) -> Result<bool, DataplaneError> {
        for (name, _) in role.programs() {
            let path = self.dirs.links.join(role.pin_name(ifindex, name));
            // One whose interface is gone is another's, which had the index before.
            match links::is_there(&path) {
                Ok(true) => return Ok(true),
                Ok(false) => {}
                Err(source) => {
                    return Err(DataplaneError::File { action: "look at the link", path, source });
                }
            }
        }
        Ok(false)
    }

    /// Attaches both tc programs to an uplink, in the network namespace of this thread. Doing it
    /// again replaces the programs in place.
    ///
    /// # Errors
    ///
    /// There is no such interface, or the kernel refuses.
    pub fn attach_uplink(&mut self, interface: &str) -> Result<Attachment, DataplaneError> {
        let attachment = self.attach_role(interface, Role::Uplink)?;
        self.open_way(attachment)
    }

    /// As [`Dataplane::attach_uplink`], by one kind of hook.
    ///
    /// # Errors
    ///
    /// As [`Dataplane::attach_uplink`].
    pub fn attach_uplink_by(
        &mut self,
        interface: &str,
        hook: TcHook,
    ) -> Result<Attachment, DataplaneError> {
        let attachment = self.attach_role_by(interface, Role::Uplink, hook)?;
        self.open_way(attachment)
    }

    /// Lets pods' packets leave by an uplink past the host's stack, now that its programs see them.
    fn open_way(&self, attachment: Attachment) -> Result<Attachment, DataplaneError> {
        let map = &self.view.maps.uplinks;
        map.put(&attachment.ifindex, &1).map_err(map_error(map, "write"))?;
        Ok(attachment)
    }

    /// Ends that, before the programs go.
    fn close_way(&self, ifindex: u32) -> Result<(), DataplaneError> {
        let map = &self.view.maps.uplinks;
        map.delete(&ifindex).map(drop).map_err(map_error(map, "delete from"))
    }

    /// Ends it for interfaces that no pinned program is on: those whose filters an agent before this
    /// one attached are opened again when this one attaches its own.
    pub(super) fn close_ways_without_pins(&self) -> Result<(), DataplaneError> {
        let pinned = self.pinned_uplinks()?;
        for ifindex in self.view.uplinks()? {
            if pinned.binary_search(&ifindex).is_err() {
                self.close_way(ifindex)?;
            }
        }
        Ok(())
    }

    /// Detaches the programs of an uplink that is none any more: by its index, and by its name where
    /// it still has one. What is not attached is no error.
    ///
    /// # Errors
    ///
    /// A pin cannot be removed.
    pub fn detach_uplink(
        &mut self,
        ifindex: u32,
        interface: Option<&str>,
    ) -> Result<(), DataplaneError> {
        self.close_way(ifindex)?;
        for (name, direction) in Role::Uplink.programs() {
            let path = self.dirs.links.join(Role::Uplink.pin_name(ifindex, name));
            match fs::remove_file(&path) {
                Ok(()) => {}
                Err(source) if source.kind() == io::ErrorKind::NotFound => {
                    // A filter, if anything; it goes with an interface that is gone.
                    if interface.is_some()
                        && let Err(error) = filters::detach(ifindex, direction)
                    {
                        tracing::debug!(interface, program = name, "{error}");
                    }
                }
                Err(source) => {
                    return Err(DataplaneError::File { action: "unpin", path, source });
                }
            }
        }
        Ok(())
    }

    /// The uplinks that have pinned programs, by their index, sorted: also those that an agent
    /// before this one left.
    ///
    /// # Errors
    ///
    /// The directory of pins cannot be read.
    pub fn pinned_uplinks(&self) -> Result<Vec<u32>, DataplaneError> {
        let mut found = self.pins(|name| Role::Uplink.ifindex_of(name))?;
        found.sort_unstable();
        found.dedup_by_key(|(ifindex, _)| *ifindex);
        Ok(found.into_iter().map(|(ifindex, _)| ifindex).collect())
    }

    fn attach_role(&self, interface: &str, role: Role) -> Result<Attachment, DataplaneError> {
        match self.attach_role_by(interface, role, TcHook::Tcx) {
            // Before Linux 6.6, there is no such attach type.
            Err(DataplaneError::Attach { source, .. }) if is_unknown_attach_type(&*source) => {
                self.attach_role_by(interface, role, TcHook::Clsact)
            }
            result => result,
        }
    }

    /// As [`Dataplane::attach_pod`], by this kind of hook and no other.
    ///
    /// # Errors
    ///
    /// As [`Dataplane::attach_pod`].
    pub fn attach_pod_by(
        &self,
        interface: &str,
        hook: TcHook,
    ) -> Result<Attachment, DataplaneError> {
        self.attach_role_by(interface, Role::Pod, hook)
    }

    fn attach_role_by(
        &self,
        interface: &str,
        role: Role,
        hook: TcHook,
    ) -> Result<Attachment, DataplaneError> {
        let ifindex = index_of(interface)?;
        let error = |name: &'static str, source: Box<dyn std::error::Error + Send + Sync>| {
            DataplaneError::Attach { program: name, target: interface.to_owned(), source }
        };
        let mut programs = Vec::with_capacity(2);
        for (name, direction) in role.programs() {
            let Some(Program::SchedClassifier(program)) = self.ebpf.program(name) else {
                return Err(DataplaneError::NoObject);
            };
            let fd = program.fd().map_err(|source| error(name, source.into()))?;
            programs.push((name, direction, fd_of(fd)));
        }
        let [first, second] = <[_; 2]>::try_from(programs).map_err(|_| DataplaneError::NoObject)?;
        let mut replaced = false;
        match hook {
            TcHook::Tcx => {
                for (name, direction, fd) in [first, second] {
                    let pin = self.dirs.links.join(role.pin_name(ifindex, name));
                    let attach_type = match direction {
                        Direction::Ingress => attach_type::TCX_INGRESS,
                        Direction::Egress => attach_type::TCX_EGRESS,
                    };
                    let place = Place::Interface(ifindex);
                    let done = links::attach(&pin, fd, place, attach_type).map_err(|source| {
                        permission_or(source, name, |source| error(name, source))
                    })?;
                    replaced |= done == Done::Replaced;
                }
            }
            TcHook::Clsact => {
                let done = filters::attach(ifindex, [first, second])
                    .map_err(|source| error(first.0, source.into()))?;
                replaced = done == Done::Replaced;
            }
        }
        Ok(Attachment { interface: interface.to_owned(), ifindex, hook, replaced })
    }

    /// Removes the pins of one pod's interface, which is gone. What is not pinned is no error.
    ///
    /// # Errors
    ///
    /// A pin cannot be removed.
    pub fn unpin_pod(&mut self, ifindex: u32) -> Result<(), DataplaneError> {
        for (name, _) in Role::Pod.programs() {
            let path = self.dirs.links.join(Role::Pod.pin_name(ifindex, name));
            match fs::remove_file(&path) {
                Err(source) if source.kind() != io::ErrorKind::NotFound => {
                    return Err(DataplaneError::File { action: "unpin", path, source });
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Removes the pins of links whose interface is gone, and says which interfaces those were.
    pub fn detach_gone(&mut self) -> Result<Vec<u32>, DataplaneError> {
        let mut gone = Vec::new();
        let of_any =
            |name: &str| Role::Pod.ifindex_of(name).or_else(|| Role::Uplink.ifindex_of(name));
        for (ifindex, path) in self.pins(of_any)? {
            let looked_at = |source| DataplaneError::File {
                action: "look at the link",
                path: path.clone(),
                source,
            };
            if links::is_gone(&path).map_err(looked_at)? {
                self.close_way(ifindex)?;
                fs::remove_file(&path).map_err(|source| DataplaneError::File {
                    action: "remove",
                    path: path.clone(),
                    source,
                })?;
                gone.push(ifindex);
            }
        }
        gone.sort_unstable();
        gone.dedup();
        Ok(gone)
    }

    /// The pins of links whose name tells an interface.
    fn pins(
        &self,
        ifindex_of: impl Fn(&str) -> Option<u32>,
    ) -> Result<Vec<(u32, PathBuf)>, DataplaneError> {
        let directory = &self.dirs.links;
        let read =
            |source| DataplaneError::File { action: "read", path: directory.clone(), source };
        let mut found = Vec::new();
        for entry in fs::read_dir(directory).map_err(read)? {
            let path = entry.map_err(read)?.path();
            if let Some(ifindex) = path.file_name().and_then(|name| ifindex_of(name.to_str()?)) {
                found.push((ifindex, path));
            }
        }
        Ok(found)
    }
}

fn fd_of(program: &ProgramFd) -> BorrowedFd<'_> {
    program.as_fd()
}

fn permission_or(
    source: io::Error,
    program: &str,
    otherwise: impl FnOnce(Box<dyn std::error::Error + Send + Sync>) -> DataplaneError,
) -> DataplaneError {
    if load::is_permission(&source) {
        DataplaneError::NotPermitted { action: format!("attach the program {program}") }
    } else {
        otherwise(source.into())
    }
}

fn is_unknown_attach_type(source: &(dyn std::error::Error + 'static)) -> bool {
    source
        .downcast_ref::<io::Error>()
        .is_some_and(|error| error.raw_os_error() == Some(libc::EINVAL))
}

fn is_occupied(source: &(dyn std::error::Error + 'static)) -> bool {
    matches!(source.downcast_ref(), Some(FilterError::Occupied))
}

/// The interface's index in this network namespace.
fn index_of(interface: &str) -> Result<u32, DataplaneError> {
    let error = |source: rustix::io::Errno| DataplaneError::Interface {
        name: interface.to_owned(),
        source: source.into(),
    };
    let socket =
        rustix::net::socket(AddressFamily::INET, SocketType::DGRAM, None).map_err(error)?;
    netdevice::name_to_index(&socket, interface).map_err(error)
}

/// The programs by name, for those who run them on packets of their own.
impl Dataplane {
    /// A program of the object, loaded.
    pub fn program(&self, name: &str) -> Option<&Program> {
        self.ebpf.program(name)
    }
}

#[cfg(test)]
mod tests {
    use sluice_abi::programs;

    use super::Role;

    #[test]
    fn a_pin_tells_its_interface() {
        let (pod, uplink) = (Role::Pod, Role::Uplink);
        assert_eq!(pod.ifindex_of(&pod.pin_name(17, programs::POD_SEND)), Some(17));
        assert_eq!(pod.ifindex_of(&pod.pin_name(u32::MAX, programs::POD_RECV)), Some(u32::MAX));
        assert_eq!(uplink.ifindex_of(&uplink.pin_name(2, programs::UPLINK_IN)), Some(2));
        assert_eq!(pod.ifindex_of(&uplink.pin_name(2, programs::UPLINK_IN)), None);
        assert_eq!(pod.ifindex_of(programs::CONNECT4), None);
        assert_eq!(pod.ifindex_of("pod_"), None);
        assert_eq!(pod.ifindex_of("pod_x_y"), None);
    }
}
