//! The memory of the maps: `xdplb check` says what the kernel says.

use std::fs;
use std::os::fd::{AsFd, AsRawFd};

use libbpf_rs::MapCore;
use xdplb::config::Limits;
use xdplb::datapath::memory::{self, Table};
use xdplb::datapath::Loaded;

/// Bytes of the kernel's own structure for a map, and of its locks, which nobody needs to know of.
const HEADS: u64 = 8 * 4096;

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
                    kernel.abs_diff(table.bytes) <= HEADS,
                    "{name}: {kernel} bytes, {} reckoned",
                    table.bytes
                );
            }
        }
    }
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
