//! The calls of bpf(2) that aya 0.14 lacks: batches, links replaced in place, information on links;
//! and the one other thing that the programs want to be told by a system call of its own.
//!
//! Shapes are those of `union bpf_attr` and `struct bpf_link_info` in `linux/bpf.h`; the kernel
//! takes a shorter union for one whose rest is zero.
#![allow(unsafe_code, reason = "system calls that no library wraps")]

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsRawFd, BorrowedFd, FromRawFd as _, OwnedFd, RawFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
    ptr,
};

use aya::Pod;

/// `BPF_F_RDONLY`: a map's file descriptor that cannot write.
const RDONLY: u32 = 1 << 3;

/// What `bpf(2)` answers where a map has no such operation (not in POSIX, so without a name).
pub(super) const ENOTSUPP: i32 = 524;

#[derive(Clone, Copy)]
enum Command {
    MapLookup = 1,
    MapUpdate = 2,
    MapDelete = 3,
    MapNextKey = 4,
    ObjectPin = 6,
    ObjectGet = 7,
    ObjectInfo = 15,
    MapLookupBatch = 24,
    MapUpdateBatch = 26,
    MapDeleteBatch = 27,
    LinkCreate = 28,
    LinkUpdate = 29,
}

#[repr(C)]
struct ElementAttr {
    map_fd: u32,
    pad: u32,
    key: u64,
    /// Or the place for the next key.
    value: u64,
    flags: u64,
}

#[repr(C)]
struct BatchAttr {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    element_flags: u64,
    flags: u64,
}

#[repr(C)]
struct ObjectAttr {
    path: u64,
    fd: u32,
    file_flags: u32,
}

#[repr(C)]
struct InfoAttr {
    fd: u32,
    len: u32,
    info: u64,
}

#[repr(C)]
struct LinkCreateAttr {
    program_fd: u32,
    target: u32,
    attach_type: u32,
    flags: u32,
    relative: u32,
    pad: u32,
    expected_revision: u64,
}

#[repr(C)]
struct LinkUpdateAttr {
    link_fd: u32,
    program_fd: u32,
    flags: u32,
    old_program_fd: u32,
}

/// Beginning of `struct bpf_link_info`, as far as cgroup and TCX links fill it.
#[repr(C)]
#[derive(Default)]
struct RawLinkInfo {
    kind: u32,
    id: u32,
    program_id: u32,
    pad: u32,
    /// cgroup: the cgroup's number. TCX: the interface's index, then the attach type.
    first: u64,
    second: u64,
    rest: [u64; 8],
}

/// `BPF_LINK_TYPE_CGROUP`.
const LINK_TYPE_CGROUP: u32 = 3;
/// `BPF_LINK_TYPE_TCX`.
const LINK_TYPE_TCX: u32 = 11;

/// Cookie of the network namespace that this thread is in, as `bpf_get_netns_cookie` has it.
///
/// # Errors
///
/// No socket can be made, or the kernel does not tell.
pub fn netns_cookie() -> io::Result<u64> {
    let socket = std::net::UdpSocket::bind((std::net::Ipv4Addr::UNSPECIFIED, 0))?;
    let mut cookie = 0_u64;
    let mut len = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the pointers are to a value of that length and to the length, and live on.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut len,
        )
    };
    if result == 0 { Ok(cookie) } else { Err(io::Error::last_os_error()) }
}

/// What a link connects to what.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum LinkTarget {
    /// A cgroup by its number, which is its directory's inode number. 0: the cgroup is gone.
    Cgroup(u64),
    /// A network interface by its index. 0: the interface is gone.
    Interface(u32),
    /// Another kind of link (`BPF_LINK_TYPE_*`).
    Other(u32),
}

fn raw<T>(fd: T) -> u32
where
    T: AsRawFd,
{
    fd.as_raw_fd().cast_unsigned()
}

fn address<T: ?Sized>(value: *const T) -> u64 {
    value.cast::<()>().addr() as u64
}

/// Calls bpf(2).
///
/// # Safety
///
/// `attr` must be the shape that the command takes, and what it points to must be as large as the
/// command reads or writes.
unsafe fn bpf<T>(command: Command, attr: &mut T) -> io::Result<i64> {
    // SAFETY: the caller vouches for `attr`; its own size is given.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command as libc::c_int,
            ptr::from_mut(attr),
            size_of::<T>() as libc::c_uint,
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn owned(fd: i64) -> io::Result<OwnedFd> {
    let fd = RawFd::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the kernel just made this file descriptor for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(io::Error::from)
}

/// Opens what is pinned at the path (`BPF_OBJ_GET`). `read_only` goes for maps only.
pub(super) fn open_pin(path: &Path, read_only: bool) -> io::Result<OwnedFd> {
    let c_path = c_path(path)?;
    let mut attr = ObjectAttr {
        path: address(c_path.as_ptr()),
        fd: 0,
        file_flags: if read_only { RDONLY } else { 0 },
    };
    // SAFETY: the path is a C string that outlives the call.
    owned(unsafe { bpf(Command::ObjectGet, &mut attr) }?)
}

/// Pins a map, program or link at the path (`BPF_OBJ_PIN`).
pub(super) fn pin(fd: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let c_path = c_path(path)?;
    let mut attr = ObjectAttr { path: address(c_path.as_ptr()), fd: raw(fd), file_flags: 0 };
    // SAFETY: the path is a C string that outlives the call.
    unsafe { bpf(Command::ObjectPin, &mut attr) }.map(drop)
}

/// Attaches a program with a link (`BPF_LINK_CREATE`). `target` is a cgroup's file descriptor or an
/// interface's index.
pub(super) fn create_link(
    program: BorrowedFd<'_>,
    target: u32,
    attach_type: u32,
) -> io::Result<OwnedFd> {
    let mut attr = LinkCreateAttr {
        program_fd: raw(program),
        target,
        attach_type,
        flags: 0,
        relative: 0,
        pad: 0,
        expected_revision: 0,
    };
    // SAFETY: the shape is the command's; there are no pointers.
    owned(unsafe { bpf(Command::LinkCreate, &mut attr) }?)
}

/// The number that [`create_link`] takes for a cgroup.
pub(super) fn fd_target(cgroup: BorrowedFd<'_>) -> u32 {
    raw(cgroup)
}

/// Puts another program in a link's place, with no moment in between (`BPF_LINK_UPDATE`).
pub(super) fn update_link(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = LinkUpdateAttr {
        link_fd: raw(link),
        program_fd: raw(program),
        flags: 0,
        old_program_fd: 0,
    };
    // SAFETY: the shape is the command's; there are no pointers.
    unsafe { bpf(Command::LinkUpdate, &mut attr) }.map(drop)
}

/// Where a link is attached (`BPF_OBJ_GET_INFO_BY_FD`).
pub(super) fn link_target(link: BorrowedFd<'_>) -> io::Result<LinkTarget> {
    let mut info = RawLinkInfo::default();
    let mut attr = InfoAttr {
        fd: raw(link),
        len: size_of::<RawLinkInfo>() as u32,
        info: address(&raw const info),
    };
    attr.info = ptr::from_mut(&mut info).expose_provenance() as u64;
    // SAFETY: the kernel writes at most `len` bytes to `info`.
    unsafe { bpf(Command::ObjectInfo, &mut attr) }?;
    Ok(match info.kind {
        LINK_TYPE_CGROUP => LinkTarget::Cgroup(info.first),
        LINK_TYPE_TCX => LinkTarget::Interface(info.first as u32),
        kind => LinkTarget::Other(kind),
    })
}

/// Reads one element; `None` if there is none. `value` may be longer than one element for per-CPU
/// maps.
pub(super) fn lookup<K: Pod, V: Pod>(
    map: BorrowedFd<'_>,
    key: &K,
    value: &mut [V],
) -> io::Result<bool> {
    let mut attr = ElementAttr {
        map_fd: raw(map),
        pad: 0,
        key: address(ptr::from_ref(key)),
        value: value.as_mut_ptr().expose_provenance() as u64,
        flags: 0,
    };
    // SAFETY: the map's key and value have the sizes of K and of `value`, which was checked when
    // the map was opened.
    match unsafe { bpf(Command::MapLookup, &mut attr) } {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Inserts or replaces one element.
pub(super) fn update<K: Pod, V: Pod>(map: BorrowedFd<'_>, key: &K, value: &V) -> io::Result<()> {
    let mut attr = ElementAttr {
        map_fd: raw(map),
        pad: 0,
        key: address(ptr::from_ref(key)),
        value: address(ptr::from_ref(value)),
        flags: 0,
    };
    // SAFETY: the map's key and value have the sizes of K and V, which was checked when the map was
    // opened.
    unsafe { bpf(Command::MapUpdate, &mut attr) }.map(drop)
}

/// Deletes one element; says whether there was one.
pub(super) fn delete<K: Pod>(map: BorrowedFd<'_>, key: &K) -> io::Result<bool> {
    let mut attr = ElementAttr {
        map_fd: raw(map),
        pad: 0,
        key: address(ptr::from_ref(key)),
        value: 0,
        flags: 0,
    };
    // SAFETY: the map's key has the size of K, which was checked when the map was opened.
    match unsafe { bpf(Command::MapDelete, &mut attr) } {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

/// The key after `key`, or the first one; `None` at the end.
pub(super) fn next_key<K: Pod>(map: BorrowedFd<'_>, key: Option<&K>) -> io::Result<Option<K>> {
    let mut next = std::mem::MaybeUninit::<K>::uninit();
    let mut attr = ElementAttr {
        map_fd: raw(map),
        pad: 0,
        key: key.map_or(0, |key| address(ptr::from_ref(key))),
        value: next.as_mut_ptr().expose_provenance() as u64,
        flags: 0,
    };
    // SAFETY: the map's key has the size of K, which was checked when the map was opened.
    match unsafe { bpf(Command::MapNextKey, &mut attr) } {
        // SAFETY: the kernel has written the whole key, and any bytes are valid for a Pod.
        Ok(_) => Ok(Some(unsafe { next.assume_init() })),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// A batch that stopped: so many elements were done before the one that failed.
pub(super) struct Stopped {
    pub(super) done: usize,
    pub(super) error: io::Error,
}

fn batch(
    command: Command,
    map: BorrowedFd<'_>,
    keys: u64,
    values: u64,
    count: usize,
) -> Result<(), Stopped> {
    let mut attr = BatchAttr {
        in_batch: 0,
        out_batch: 0,
        keys,
        values,
        count: u32::try_from(count)
            .map_err(|error| Stopped { done: 0, error: io::Error::other(error) })?,
        map_fd: raw(map),
        element_flags: 0,
        flags: 0,
    };
    // SAFETY: the callers pass slices of `count` elements of the map's sizes.
    match unsafe { bpf(command, &mut attr) } {
        Ok(_) => Ok(()),
        Err(error) => {
            // The kernel writes the count back only once it has begun.
            let unbegun = [libc::EINVAL, libc::EPERM, libc::EBADF, ENOTSUPP]
                .contains(&error.raw_os_error().unwrap_or(0));
            let done = if unbegun { 0 } else { (attr.count as usize).min(count) };
            Err(Stopped { done, error })
        }
    }
}

/// Inserts or replaces elements in order (`BPF_MAP_UPDATE_BATCH`, Linux 5.6).
pub(super) fn update_batch<K: Pod, V: Pod>(
    map: BorrowedFd<'_>,
    keys: &[K],
    values: &[V],
) -> Result<(), Stopped> {
    assert_eq!(keys.len(), values.len(), "every key has a value");
    batch(
        Command::MapUpdateBatch,
        map,
        address(keys.as_ptr()),
        address(values.as_ptr()),
        keys.len(),
    )
}

/// Deletes elements in order (`BPF_MAP_DELETE_BATCH`, Linux 5.6); stops at one that is not there.
pub(super) fn delete_batch<K: Pod>(map: BorrowedFd<'_>, keys: &[K]) -> Result<(), Stopped> {
    batch(Command::MapDeleteBatch, map, address(keys.as_ptr()), 0, keys.len())
}

/// Where a batch of lookups goes on.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Cursor {
    /// Large enough for every key: the kernel keeps a bucket's or an element's index in it.
    token: [u64; 8],
    begun: bool,
}

/// What a batch of lookups found.
pub(super) enum Found {
    /// So many elements, and there are more.
    More(usize),
    /// So many elements, and they are the last.
    Last(usize),
    /// The buffers do not hold what one bucket of the map has.
    TooSmall,
}

/// Reads as many elements as the buffers hold (`BPF_MAP_LOOKUP_BATCH`, Linux 5.6).
pub(super) fn lookup_batch<K: Pod, V: Pod>(
    map: BorrowedFd<'_>,
    cursor: &mut Cursor,
    keys: &mut [K],
    values: &mut [V],
) -> io::Result<Found> {
    assert_eq!(keys.len(), values.len(), "every key has a value");
    let token = cursor.token;
    let mut attr = BatchAttr {
        in_batch: if cursor.begun { address(&raw const token) } else { 0 },
        out_batch: ptr::from_mut(&mut cursor.token).expose_provenance() as u64,
        keys: keys.as_mut_ptr().expose_provenance() as u64,
        values: values.as_mut_ptr().expose_provenance() as u64,
        count: u32::try_from(keys.len()).map_err(io::Error::other)?,
        map_fd: raw(map),
        element_flags: 0,
        flags: 0,
    };
    // SAFETY: the buffers hold `count` elements of the map's sizes, the tokens more than a key.
    let result = unsafe { bpf(Command::MapLookupBatch, &mut attr) };
    cursor.begun = true;
    let count = (attr.count as usize).min(keys.len());
    match result {
        Ok(_) => Ok(Found::More(count)),
        Err(error) => match error.raw_os_error() {
            Some(libc::ENOENT) => Ok(Found::Last(count)),
            Some(libc::ENOSPC) => Ok(Found::TooSmall),
            _ => Err(error),
        },
    }
}

/// The value that the bytes are; `None` if they are fewer than it has.
pub(super) fn from_bytes<T: Pod>(bytes: &[u8]) -> Option<T> {
    if bytes.len() < size_of::<T>() {
        return None;
    }
    // SAFETY: there are as many bytes as the value has (checked above), and any bytes are valid for a
    // Pod.
    Some(unsafe { ptr::read_unaligned(bytes.as_ptr().cast()) })
}
