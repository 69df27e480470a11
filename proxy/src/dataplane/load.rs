//! Loading of the object, and the pins of its maps.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use aya::{
    Ebpf, EbpfError, EbpfLoader,
    maps::{MapError, MapInfo},
    programs::{Program, ProgramError},
    sys::SyscallError,
};
use sluice_abi::{ABI_VERSION, programs};

use super::{DataplaneError, Notice, spec::Spec};

/// The programs as an ELF object; empty where they could not be built.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/sluice.bpf.o"));

/// `BPF_FS_MAGIC` of `linux/magic.h`.
const BPF_FS_MAGIC: u64 = 0xcafe_4a11;

/// The ELF object with the programs and the description of their maps. Empty if this binary was
/// built without the toolchain for it.
pub fn object() -> &'static [u8] {
    OBJECT
}

/// Where things are pinned.
#[derive(Clone, Debug)]
pub(super) struct PinDirs {
    pub(super) maps: PathBuf,
    pub(super) links: PathBuf,
}

impl PinDirs {
    /// The directories of this ABI version under the root.
    pub(super) fn new(bpf_root: &Path) -> Self {
        let version = bpf_root.join(format!("v{ABI_VERSION}"));
        Self { maps: version.join("maps"), links: version.join("links") }
    }

    /// Makes them, on a BPF file system only.
    pub(super) fn create(&self, bpf_root: &Path) -> Result<(), DataplaneError> {
        let existing = bpf_root.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
        let stat = rustix::fs::statfs(existing).map_err(|error| DataplaneError::File {
            action: "stat",
            path: existing.to_owned(),
            source: error.into(),
        })?;
        if stat.f_type as u64 != BPF_FS_MAGIC {
            return Err(DataplaneError::NotBpfFs { path: existing.to_owned() });
        }
        for directory in [&self.maps, &self.links] {
            fs::create_dir_all(directory).map_err(|source| {
                if source.kind() == io::ErrorKind::PermissionDenied {
                    DataplaneError::NotPermitted { action: format!("make {}", directory.display()) }
                } else {
                    DataplaneError::File { action: "make", path: directory.clone(), source }
                }
            })?;
        }
        Ok(())
    }
}

/// What `/sys/fs/bpf` has under the path, compared with what is needed. `Ok(None)` if nothing is
/// pinned there, else how many elements it has room for.
pub(super) fn check_pin(spec: &Spec, path: &Path) -> Result<Option<u32>, DataplaneError> {
    let info = match MapInfo::from_pin(path) {
        Ok(info) => info,
        Err(MapError::SyscallError(SyscallError { io_error, .. }))
            if io_error.kind() == io::ErrorKind::NotFound =>
        {
            return Ok(None);
        }
        Err(MapError::SyscallError(SyscallError { io_error, .. })) if is_permission(&io_error) => {
            return Err(DataplaneError::NotPermitted {
                action: format!("open {}", path.display()),
            });
        }
        Err(source) => {
            return Err(DataplaneError::MapInfo {
                path: path.to_owned(),
                source: Box::new(source),
            });
        }
    };
    let differs = |field, found: String, expected: String| {
        if found == expected {
            Ok(())
        } else {
            Err(DataplaneError::PinnedShape { path: path.to_owned(), field, found, expected })
        }
    };
    let kind = info.map_type().map_err(|source| DataplaneError::MapInfo {
        path: path.to_owned(),
        source: Box::new(source),
    })?;
    differs("type", format!("{kind:?}"), format!("{:?}", spec.kind))?;
    differs("key size", info.key_size().to_string(), spec.key_size.to_string())?;
    differs("value size", info.value_size().to_string(), spec.value_size.to_string())?;
    differs("flags", info.map_flags().to_string(), spec.flags.to_string())?;
    Ok(Some(info.max_entries()))
}

/// Loads the programs, with the maps that are pinned or new ones that are pinned now. Sizes in
/// `specs` become those that the maps have.
pub(super) fn load(
    dirs: &PinDirs,
    specs: &mut [Spec],
    notices: &mut Vec<Notice>,
) -> Result<Ebpf, DataplaneError> {
    if OBJECT.is_empty() {
        return Err(DataplaneError::NoObject);
    }
    let mut loader = EbpfLoader::new();
    for spec in specs {
        let path = dirs.maps.join(spec.name);
        if let Some(found) = check_pin(spec, &path)?
            && found != spec.max_entries
        {
            let Some(flag) = spec.size_flag else {
                return Err(DataplaneError::PinnedShape {
                    path,
                    field: "size",
                    found: found.to_string(),
                    expected: spec.max_entries.to_string(),
                });
            };
            notices.push(Notice::SizeKept {
                map: spec.name,
                flag,
                kept: found,
                asked: spec.max_entries,
            });
            spec.max_entries = found;
        }
        if spec.size_flag.is_some() {
            loader.map_max_entries(spec.name, spec.max_entries);
        }
        loader.map_pin_path(spec.name, path);
    }
    let mut ebpf = loader.load(OBJECT).map_err(|error| {
        if permission_of(&error) {
            DataplaneError::NotPermitted { action: "make eBPF maps".to_owned() }
        } else {
            DataplaneError::Object(Box::new(error))
        }
    })?;
    for name in programs::CGROUP.into_iter().chain(programs::TC) {
        let program = ebpf.program_mut(name).ok_or(DataplaneError::NoObject)?;
        let loaded = match program {
            Program::CgroupSockAddr(program) => program.load(),
            Program::CgroupSock(program) => program.load(),
            Program::SchedClassifier(program) => program.load(),
            _ => return Err(DataplaneError::NoObject),
        };
        loaded.map_err(|source| match source {
            ProgramError::LoadError { ref io_error, .. }
                if io_error.raw_os_error() == Some(libc::EPERM) =>
            {
                DataplaneError::NotPermitted { action: format!("load the program {name}") }
            }
            source => DataplaneError::Program { program: name, source: Box::new(source) },
        })?;
    }
    Ok(ebpf)
}

/// Whether the kernel said that the process may not.
pub(super) fn is_permission(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EPERM | libc::EACCES))
}

fn permission_of(error: &EbpfError) -> bool {
    match error {
        EbpfError::MapError(
            MapError::CreateError { io_error, .. }
            | MapError::SyscallError(SyscallError { io_error, .. }),
        ) => is_permission(io_error),
        _ => false,
    }
}
