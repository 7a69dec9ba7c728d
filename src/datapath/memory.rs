//! The kernel memory that the maps take, before anything is created.
//!
//! Owns how the kernel reckons it: each map type's `map_mem_usage` (Linux 6.4 and later, kernel/bpf), which
//! `bpftool map show` prints as `memlock`.

use std::mem::MaybeUninit;

use libbpf_rs::skel::OpenSkel;
use libbpf_rs::{MapType, OpenMap};
use serde::Serialize;

use super::{load, open_sized, Error};
use crate::config::Limits;
use crate::state::Needs;

/// A hash table's bucket, and an element's header.
const BUCKET: u64 = 16;
const HASH_HEADER: u64 = 48;
/// A trie's node, without its key's address and the value: until Linux 6.12, 24 bytes since.
const TRIE_HEADER: u64 = 40;
const POINTER: u64 = 8;
/// `BPF_F_NO_PREALLOC` and `BPF_F_MMAPABLE` of linux/bpf.h.
const NO_PREALLOC: u32 = 1 << 0;
const MMAPABLE: u32 = 1 << 10;

/// A map, and the memory that it takes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Table {
    /// Its name.
    pub name: String,
    /// The elements that there is room for.
    pub entries: u32,
    /// Bytes that it takes as soon as it is created.
    pub bytes: u64,
    /// Bytes that each element takes at most besides, once it is there.
    pub bytes_per_entry: u64,
}

/// The maps of a datapath that starts with these limits and needs on this machine. Needs no privileges.
///
/// # Errors
/// When the datapath's object cannot be read.
pub fn tables(limits: &Limits, needs: &Needs) -> Result<Vec<Table>, Error> {
    load::begin();
    let cpus = libbpf_rs::num_possible_cpus().map_err(load::refused)?;
    let mut object = MaybeUninit::uninit();
    let open = open_sized(&mut object, limits, needs)?;
    let machine = Machine {
        cpus: cpus as u64,
        page: page_size(),
    };
    Ok(open
        .open_object()
        .maps()
        .map(|map| machine.table(&map))
        .collect())
}

/// Bytes of a page, which an array that is mapped into memory is rounded up to.
fn page_size() -> u64 {
    let size = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE);
    size.ok()
        .flatten()
        .and_then(|size| size.try_into().ok())
        .unwrap_or(4096)
}

struct Machine {
    cpus: u64,
    page: u64,
}

impl Machine {
    fn table(&self, map: &OpenMap<'_>) -> Table {
        let (entries, key, value) = (
            u64::from(map.max_entries()),
            u64::from(map.key_size()),
            u64::from(map.value_size()),
        );
        let wide = |bytes: u64| bytes.next_multiple_of(8);
        let flags = map.map_flags();
        let per_entry = match map.map_type() {
            MapType::LpmTrie => wide(TRIE_HEADER + key - 4 + value),
            // The allocator's list has a pointer in front of each.
            MapType::Hash if flags & NO_PREALLOC != 0 => {
                POINTER + HASH_HEADER + wide(key) + wide(value)
            }
            _ => 0,
        };
        let bytes = match map.map_type() {
            MapType::LpmTrie => 0,
            MapType::Hash if flags & NO_PREALLOC != 0 => BUCKET * entries.next_power_of_two(),
            // An element more for each CPU lets it replace one that is in use.
            MapType::Hash => {
                BUCKET * entries.next_power_of_two()
                    + (entries + self.cpus) * (HASH_HEADER + wide(key) + wide(value))
            }
            MapType::LruHash => {
                BUCKET * entries.next_power_of_two()
                    + entries * (HASH_HEADER + wide(key) + wide(value))
            }
            MapType::PercpuArray => entries * (POINTER + wide(value) * self.cpus),
            MapType::Devmap => entries * POINTER,
            _ if flags & MMAPABLE != 0 => (entries * wide(value)).next_multiple_of(self.page),
            _ => entries * wide(value),
        };
        Table {
            name: map.name().to_string_lossy().into_owned(),
            entries: map.max_entries(),
            bytes,
            bytes_per_entry: per_entry,
        }
    }
}
