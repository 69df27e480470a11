//! One map with typed keys and values.

use std::{
    fmt::Debug,
    io,
    marker::PhantomData,
    os::fd::{AsFd as _, OwnedFd},
    path::Path,
};

use aya::Pod;

use super::sys::{self, Cursor, Found, Stopped};

/// Elements read with one system call.
const CHUNK: usize = 4096;

/// How often an update is tried again when the kernel is short of memory: it refills its caches in
/// the background, and a long batch may be faster.
const MEMORY_RETRIES: u32 = 16;

/// A map, by its file descriptor.
#[derive(Debug)]
pub(super) struct Map<K, V> {
    name: &'static str,
    fd: OwnedFd,
    shape: PhantomData<(K, V)>,
}

/// How far the elements of a map were visited.
#[derive(Debug)]
pub(super) struct Progress {
    cursor: Cursor,
    /// Elements to be read at once.
    size: usize,
}

impl Default for Progress {
    fn default() -> Self {
        Self { cursor: Cursor::default(), size: CHUNK }
    }
}

/// Keys and values: plain bytes that can be made up and printed.
pub(super) trait Plain: Pod + Default + Debug {}

impl<T: Pod + Default + Debug> Plain for T {}

impl<K: Plain, V: Pod> Map<K, V> {
    /// Opens a pinned map. The caller has checked that keys and values have these sizes.
    pub(super) fn open(name: &'static str, path: &Path, read_only: bool) -> io::Result<Self> {
        Ok(Self { name, fd: sys::open_pin(path, read_only)?, shape: PhantomData })
    }

    pub(super) fn name(&self) -> &'static str {
        self.name
    }

    pub(super) fn get(&self, key: &K, empty: V) -> io::Result<Option<V>> {
        let mut value = [empty];
        Ok(sys::lookup(self.fd.as_fd(), key, &mut value)?.then_some(value[0]))
    }

    /// The values of all CPUs.
    pub(super) fn get_per_cpu(&self, key: &K, values: &mut [V]) -> io::Result<bool> {
        sys::lookup(self.fd.as_fd(), key, values)
    }

    pub(super) fn put(&self, key: &K, value: &V) -> io::Result<()> {
        sys::update(self.fd.as_fd(), key, value)
    }

    /// Says whether there was such an element.
    pub(super) fn delete(&self, key: &K) -> io::Result<bool> {
        sys::delete(self.fd.as_fd(), key)
    }

    pub(super) fn is_empty(&self) -> io::Result<bool> {
        Ok(sys::next_key::<K>(self.fd.as_fd(), None)?.is_none())
    }

    /// Writes elements in order. On an error, says how many were written before.
    pub(super) fn put_all(&self, keys: &[K], values: &[V]) -> Result<(), Stopped> {
        let mut done = 0;
        let mut retries = 0;
        while done < keys.len() {
            let stopped = match sys::update_batch(self.fd.as_fd(), &keys[done..], &values[done..]) {
                Ok(()) => return Ok(()),
                Err(stopped) => stopped,
            };
            if stopped.done > 0 {
                retries = 0;
            }
            done += stopped.done;
            match stopped.error.raw_os_error() {
                Some(libc::EINTR) => {}
                Some(libc::ENOMEM) if retries < MEMORY_RETRIES => {
                    retries += 1;
                    std::thread::yield_now();
                }
                Some(sys::ENOTSUPP | libc::EINVAL) if done < keys.len() => {
                    // No batches for this map on this kernel.
                    self.put(&keys[done], &values[done])
                        .map_err(|error| Stopped { done, error })?;
                    done += 1;
                }
                _ => return Err(Stopped { done, error: stopped.error }),
            }
        }
        Ok(())
    }

    /// Deletes elements; those that are not there are no error.
    pub(super) fn delete_all(&self, keys: &[K]) -> Result<(), Stopped> {
        let mut done = 0;
        while done < keys.len() {
            let stopped = match sys::delete_batch(self.fd.as_fd(), &keys[done..]) {
                Ok(()) => return Ok(()),
                Err(stopped) => stopped,
            };
            done += stopped.done;
            match stopped.error.raw_os_error() {
                Some(libc::EINTR) => {}
                Some(libc::ENOENT) => done += 1,
                Some(sys::ENOTSUPP | libc::EINVAL) if done < keys.len() => {
                    self.delete(&keys[done]).map_err(|error| Stopped { done, error })?;
                    done += 1;
                }
                _ => return Err(Stopped { done, error: stopped.error }),
            }
        }
        Ok(())
    }

    /// Visits every element. Elements that come or go meanwhile may be seen or not; one that stays
    /// is seen at least once.
    pub(super) fn for_each(&self, empty: V, mut visit: impl FnMut(&K, &V)) -> io::Result<()> {
        let mut progress = Progress::default();
        while !self.visit_some(&mut progress, empty, &mut visit)? {}
        Ok(())
    }

    /// Visits the next elements, with one system call where the kernel can, and says whether they
    /// were the last; then the next call begins anew.
    pub(super) fn visit_some(
        &self,
        progress: &mut Progress,
        empty: V,
        visit: &mut impl FnMut(&K, &V),
    ) -> io::Result<bool> {
        let mut keys = vec![K::default(); progress.size];
        let mut values = vec![empty; progress.size];
        let before = progress.cursor;
        let found = loop {
            let cursor = &mut progress.cursor;
            match sys::lookup_batch(self.fd.as_fd(), cursor, &mut keys, &mut values) {
                Ok(Found::TooSmall) => {
                    progress.size *= 2;
                    progress.cursor = before;
                    keys.resize(progress.size, K::default());
                    values.resize(progress.size, empty);
                }
                Ok(found) => break found,
                Err(error) if error.raw_os_error() == Some(libc::EINTR) => {
                    progress.cursor = before;
                }
                Err(error)
                    if matches!(error.raw_os_error(), Some(sys::ENOTSUPP | libc::EINVAL)) =>
                {
                    self.for_each_singly(empty, visit)?;
                    progress.cursor = Cursor::default();
                    return Ok(true);
                }
                Err(error) => return Err(error),
            }
        };
        let (count, last) = match found {
            Found::More(count) => (count, false),
            Found::Last(count) => (count, true),
            Found::TooSmall => (0, false),
        };
        for (key, value) in keys.iter().zip(&values).take(count) {
            visit(key, value);
        }
        if last {
            progress.cursor = Cursor::default();
        }
        Ok(last)
    }

    fn for_each_singly(&self, empty: V, visit: &mut impl FnMut(&K, &V)) -> io::Result<()> {
        let mut key = sys::next_key::<K>(self.fd.as_fd(), None)?;
        while let Some(current) = key {
            if let Some(value) = self.get(&current, empty)? {
                visit(&current, &value);
            }
            key = sys::next_key(self.fd.as_fd(), Some(&current))?;
        }
        Ok(())
    }
}
