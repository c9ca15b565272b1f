//! Maps: memory that kernel and agent share, counters read in one system call, maps made at run time.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::ptr::NonNull;

use anyhow::{Context, Result, bail};
use libbpf_rs::{MapCore, MapHandle, MapType};

use super::check;
use crate::abi::{Plain, from_bytes};

/// The one value of an mmapable array, or all of them, in the agent's memory.
pub struct Mapped<T> {
    memory: NonNull<T>,
    len: usize,
    bytes: usize,
}

// SAFETY: the memory belongs to this object alone within the process; what the kernel does with it is not Rust's.
unsafe impl<T: Send> Send for Mapped<T> {}

impl<T: Plain> Mapped<T> {
    /// Maps `len` values of a map made with `BPF_F_MMAPABLE`. Fails when the map is smaller or its values are of
    /// another size.
    pub fn new(map: &MapHandle, len: usize) -> Result<Mapped<T>> {
        let value = map.value_size() as usize;
        if value != size_of::<T>() || (map.max_entries() as usize) < len || !size_of::<T>().is_multiple_of(8) {
            bail!(
                "map {:?} has {} values of {value} bytes, not {len} of {}",
                map.name(),
                map.max_entries(),
                size_of::<T>()
            );
        }
        let bytes = len * size_of::<T>();
        Mapped::map(map.as_fd(), bytes, len)
    }

    /// Maps the first `len` values of type T that stand in the map's one value.
    pub fn within(map: BorrowedFd<'_>, value_size: usize, len: usize) -> Result<Mapped<T>> {
        let bytes = len * size_of::<T>();
        if bytes > value_size {
            bail!("a map's value has {value_size} bytes, not {bytes}");
        }
        Mapped::map(map, bytes, len)
    }

    fn map(map: BorrowedFd<'_>, bytes: usize, len: usize) -> Result<Mapped<T>> {
        // SAFETY: a fresh shared mapping of a map that the kernel keeps alive as long as the mapping; no address is
        // asked for.
        let memory = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                map.as_raw_fd(),
                0,
            )
        };
        if memory == libc::MAP_FAILED {
            return Err(std::io::Error::last_os_error()).context("mapping a BPF map into memory");
        }
        let memory = NonNull::new(memory.cast()).context("mapping a BPF map gave the address 0")?;
        Ok(Mapped { memory, len, bytes })
    }

    /// The values. The kernel may write to them at any time where its programs do.
    pub fn values(&mut self) -> &mut [T] {
        // SAFETY: the mapping has room for len values of T, any bytes are a valid T, and &mut self makes it the only
        // view.
        unsafe { std::slice::from_raw_parts_mut(self.memory.as_ptr(), self.len) }
    }

    /// Number of values.
    #[allow(clippy::len_without_is_empty)] // never empty
    pub fn len(&self) -> usize {
        self.len
    }

    /// Address of a value, for a single volatile or atomic access.
    pub fn at(&self, index: usize) -> *mut T {
        assert!(index < self.len);
        // SAFETY: within the mapping, by the assertion.
        unsafe { self.memory.as_ptr().add(index) }
    }
}

impl<T> Drop for Mapped<T> {
    fn drop(&mut self) {
        // SAFETY: the mapping that new() made, which nothing refers to any more.
        unsafe { libc::munmap(self.memory.as_ptr().cast(), self.bytes) };
    }
}

/// A handle of its own on a map, that lives as long as it likes. Made from the descriptor: to open a map by its id
/// takes CAP_SYS_ADMIN.
pub fn handle<'m, M>(map: &'m M) -> Result<MapHandle>
where
    M: MapCore,
    MapHandle: TryFrom<&'m M, Error = libbpf_rs::Error>,
{
    MapHandle::try_from(map).with_context(|| format!("a handle on map {:?}", map.name()))
}

/// Makes an array that can be the inner map of an array of maps, whatever its size.
pub fn create_inner_array(name: &str, value_size: u32, entries: u32) -> Result<MapHandle> {
    let options = libbpf_sys::bpf_map_create_opts {
        sz: size_of::<libbpf_sys::bpf_map_create_opts>() as _,
        map_flags: libbpf_sys::BPF_F_MMAPABLE | libbpf_sys::BPF_F_INNER_MAP,
        ..Default::default()
    };
    MapHandle::create(MapType::Array, Some(name), 4, value_size, entries, &options)
        .with_context(|| format!("making a map of {entries} entries of {value_size} bytes"))
}

/// Adds up the values of all CPUs of a per-CPU array, in one or a few system calls: `add(index, value of one CPU)`.
pub fn read_per_cpu<T: Plain>(map: &MapHandle, mut add: impl FnMut(u32, T)) -> Result<()> {
    let cpus = libbpf_rs::num_possible_cpus().context("counting CPUs")?;
    let entries = map.max_entries() as usize;
    let value = size_of::<T>().next_multiple_of(8);
    if map.value_size() as usize != size_of::<T>() {
        bail!("map {:?} has values of {} bytes, not {}", map.name(), map.value_size(), size_of::<T>());
    }
    let mut keys = vec![0u32; entries];
    let mut values = vec![0u8; entries * cpus * value];
    let mut token = 0u32;
    let mut count = entries as u32;
    // SAFETY: keys and values have room for `count` entries of this map; the kernel writes no more than that.
    let rc = unsafe {
        libbpf_sys::bpf_map_lookup_batch(
            map.as_fd().as_raw_fd(),
            std::ptr::null_mut(),
            std::ptr::from_mut(&mut token).cast(),
            keys.as_mut_ptr().cast(),
            values.as_mut_ptr().cast(),
            &mut count,
            std::ptr::null(),
        )
    };
    match check(rc) {
        Ok(_) => {}
        // The end of the map was reached: that is how a batch that takes all of it ends.
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
        Err(error) => return Err(error).with_context(|| format!("reading the counters of {:?}", map.name())),
    }
    for (at, &key) in keys.iter().take(count as usize).enumerate() {
        for cpu in 0..cpus {
            let start = (at * cpus + cpu) * value;
            if let Some(one) = from_bytes(&values[start..start + value]) {
                add(key, one);
            }
        }
    }
    Ok(())
}

/// A map, as status shows it.
#[derive(Clone, Debug)]
pub struct MapFacts {
    /// Name in the kernel, at most 15 bytes.
    pub name: String,
    /// Kind of map.
    pub kind: String,
    /// Room for entries.
    pub max_entries: u32,
    /// Entries in use, where that can be told.
    pub entries: Option<u64>,
    /// Memory that keys and values take, in bytes; per-CPU maps once for each CPU.
    pub bytes: u64,
}

/// What a map is and takes.
pub fn facts(map: &impl MapCore) -> MapFacts {
    let value = u64::from(map.value_size());
    let per_entry = u64::from(map.key_size())
        + if map.map_type().is_percpu() {
            value.next_multiple_of(8) * libbpf_rs::num_possible_cpus().unwrap_or(1) as u64
        } else {
            value
        };
    let bytes = match map.map_type() {
        MapType::RingBuf => u64::from(map.max_entries()),
        _ => per_entry * u64::from(map.max_entries()),
    };
    MapFacts {
        name: map.name().to_string_lossy().into_owned(),
        kind: format!("{:?}", map.map_type()).to_lowercase(),
        max_entries: map.max_entries(),
        entries: map.map_type().is_hash_map().then(|| map.keys().count() as u64),
        bytes,
    }
}
