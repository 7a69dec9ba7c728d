//! The memory of the maps: `xdplb check` says what the kernel says.

use std::fs;
use std::os::fd::{AsFd, AsRawFd};

use libbpf_rs::{MapCore, MapFlags, MapType};
use xdplb::config::Limits;
use xdplb::datapath::memory::{self, Table};
use xdplb::datapath::Loaded;

/// Bytes of the kernel's own structure for a map, in whole pages where it is mapped, and of its locks.
const HEAD: u64 = 2 * 4096;

/// Since then the kernel reckons with what a map takes, before it with what its elements have in them.
const EXACT: (u32, u32) = (6, 4);

#[test]
fn as_the_kernel_reckons() {
    for limits in [
        // Smaller connection tables than the defaults: not every machine has a gigabyte to spare.
        Limits {
            connections: 50_000,
            ..Limits::default()
        },
        Limits {
            services: 100,
            backends: 700,
            connections: 3000,
            firewall_rules: 10,
            sources: 33,
        },
    ] {
        let tables = memory::tables(&limits).expect("the object");
        let loaded = Loaded::load(&limits).expect("a load");
        let maps = loaded.maps().expect("all maps");
        assert_eq!(maps.len(), tables.len());
        for map in maps {
            let name = map.name().to_string_lossy().into_owned();
            let table: &Table = tables
                .iter()
                .find(|table| table.name == name || table.name.ends_with(&name))
                .unwrap_or_else(|| panic!("{name}"));
            assert_eq!(table.entries, map.max_entries(), "{name}");
            let kernel = locked(&map);
            if is_exact() {
                assert!(
                    kernel.abs_diff(table.bytes) <= HEAD,
                    "{name}: {kernel} bytes, {} reckoned",
                    table.bytes
                );
            }
        }
    }
}

/// Of those that grow: the bytes that an entry adds.
#[test]
fn an_entry_takes_what_is_said() {
    let limits = Limits {
        connections: 3000,
        ..Limits::default()
    };
    let tables = memory::tables(&limits).expect("the object");
    let loaded = Loaded::load(&limits).expect("a load");
    let mut grown = 0;
    for map in loaded.maps().expect("all maps") {
        let name = map.name().to_string_lossy().into_owned();
        let table = tables.iter().find(|table| table.name == name);
        let Some(table) = table.filter(|table| table.bytes_per_entry > 0) else {
            continue;
        };
        grown += 1;
        let before = locked(&map);
        let key = vec![0; map.key_size() as usize];
        let value = vec![0; map.value_size() as usize];
        map.update(&key, &value, MapFlags::ANY).expect("room");
        if is_exact() {
            let added = locked(&map) - before;
            let said = table.bytes_per_entry;
            // A trie's node has become smaller by 16 bytes since Linux 6.12; and no rounding is counted.
            let spare = if map.map_type() == MapType::LpmTrie {
                16
            } else {
                0
            } + 7;
            assert!(
                (said - spare..=said).contains(&added),
                "{name}: {added} bytes, {said} reckoned"
            );
        }
    }
    assert_eq!(grown, 5, "tries and claims");
}

/// What the kernel says that the map takes.
fn locked(map: &libbpf_rs::MapHandle) -> u64 {
    let path = format!("/proc/self/fdinfo/{}", map.as_fd().as_raw_fd());
    let info = fs::read_to_string(path).expect("fdinfo");
    info.lines()
        .find_map(|line| line.strip_prefix("memlock:"))
        .and_then(|bytes| bytes.trim().parse().ok())
        .expect("memlock")
}

fn is_exact() -> bool {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").expect("a kernel");
    let mut numbers = release
        .split(['.', '-'])
        .map_while(|part| part.parse().ok());
    let version: (u32, u32) = numbers.next().zip(numbers.next()).expect("a version");
    version >= EXACT
}
