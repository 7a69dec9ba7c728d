//! The memory of the maps: `xdplb check` says what the kernel says.

use std::fs;
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;

use libbpf_rs::{MapCore, MapFlags, MapType};
use xdplb::config::blocklist::Contents;
use xdplb::config::{self, Limits};
use xdplb::datapath::memory::{self, Table};
use xdplb::datapath::Loaded;
use xdplb::state::{self, Needs};

/// Bytes of the kernel's own structure for a map, in whole pages where it is mapped, and of its locks.
const HEAD: u64 = 2 * 4096;

/// Since then the kernel reckons with what a map takes, before it with what its elements have in them.
const EXACT: (u32, u32) = (6, 4);

/// What a file may have beside its services.
const FIREWALL: &str =
    "[firewall]\ndefault = \"deny\"\n[[firewall.rule]]\naction = \"allow\"\nport = 80\n";
const DOS: &str = "[[dos]]\nname = \"few\"\nprotocol = \"tcp\"\nlimit = 10\n";
const IPV4: (&str, &str) = ("203.0.113.11", "10.0.0.2");
const IPV6: (&str, &str) = ("2001:db8:1::11", "fd00::2");

fn service(name: &str, forward: &str, ends: &[(&str, &str)]) -> String {
    let list =
        |one: fn(&(&str, &str)) -> String| ends.iter().map(one).collect::<Vec<_>>().join(", ");
    format!(
        "[[service]]\nname = \"{name}\"\nvip = [{}]\nprotocol = \"tcp\"\nport = 80\nforward = \"{forward}\"\n\
         backend = [{}]\n",
        list(|(vip, _)| format!("\"{vip}\"")),
        list(|(_, backend)| format!("{{ address = \"{backend}\" }}")),
    )
}

/// The file's limits, and what it needs.
fn needs(limits: &str, rest: &str) -> (Limits, Needs) {
    let text = format!("[datapath]\ninterfaces = [\"eth0\"]\n[limits]\n{limits}\n{rest}");
    let loaded =
        config::parse(&text, Path::new("lb.toml")).unwrap_or_else(|error| panic!("{error}"));
    let plan = state::plan_of_file(&loaded.config, &Contents::new()).expect("a plan");
    (loaded.config.limits, plan.needs)
}

/// Smaller connection tables than the defaults: not every machine has a gigabyte to spare.
const FEWER: &str = "connections = 50000";
/// No limit is a power of two, or what anything has room for at least.
const ODD: &str =
    "services = 100\nbackends = 700\nconnections = 3000\nfirewall_rules = 10\nsources = 33";

#[test]
fn as_the_kernel_reckons() {
    let (nat4, nat) = (
        service("web", "nat", &[IPV4]),
        service("web", "nat", &[IPV4, IPV6]),
    );
    let full_nat = service("web", "full-nat", &[IPV4, IPV6]);
    let all = format!("{full_nat}{FIREWALL}{DOS}");
    for (limits, rest) in [
        (FEWER, &nat4),
        (FEWER, &nat),
        (FEWER, &format!("{nat4}{FIREWALL}")),
        (FEWER, &format!("{nat4}{DOS}")),
        ("connections = 100000", &service("web", "full-nat", &[IPV6])),
        (FEWER, &all),
        (ODD, &nat4),
        (ODD, &all),
    ] {
        let (limits, needs) = needs(limits, rest);
        let loaded = Loaded::load_for(&limits, &needs).expect("a load");
        let tables = memory::tables(&limits, &needs).expect("the object");
        assert_as_reckoned(&loaded, &tables);
    }
    let (limits, _) = needs(FEWER, &nat4);
    let everything = Needs::everything(&limits);
    let loaded = Loaded::load(&limits).expect("a load");
    let tables = memory::tables(&limits, &everything).expect("the object");
    assert_as_reckoned(&loaded, &tables);
}

fn assert_as_reckoned(loaded: &Loaded, tables: &[Table]) {
    let maps = loaded.maps().expect("all maps");
    assert_eq!(maps.len(), tables.len());
    let (mut kernels, mut reckoned) = (0, 0);
    for map in maps {
        let name = map.name().to_string_lossy().into_owned();
        let table: &Table = tables
            .iter()
            .find(|table| table.name == name || table.name.ends_with(&name))
            .unwrap_or_else(|| panic!("{name}"));
        assert_eq!(table.entries, map.max_entries(), "{name}");
        let kernel = locked(&map);
        (kernels, reckoned) = (kernels + kernel, reckoned + table.bytes);
        if is_exact() {
            assert!(
                kernel.abs_diff(table.bytes) <= HEAD,
                "{name}: {kernel} bytes, {} reckoned",
                table.bytes
            );
        }
    }
    if is_exact() {
        let heads = HEAD * tables.len() as u64;
        assert!(
            kernels.abs_diff(reckoned) <= heads,
            "{kernels} bytes, {reckoned} reckoned"
        );
    }
}

/// The bytes of the tables of that name, and of its namesake for IPv6, with the default limits.
fn bytes(rest: &str, names: &[&str]) -> u64 {
    let (limits, needs) = needs("", rest);
    let tables = memory::tables(&limits, &needs).expect("the object");
    let named = tables
        .iter()
        .filter(|table| names.contains(&table.name.as_str()));
    named.map(|table| table.bytes).sum()
}

/// At most a few pages for each of them.
const NOTHING: std::ops::Range<u64> = 0..90_000;

#[test]
fn what_a_file_does_not_use_takes_nothing() {
    let (nat4, nat6) = (
        service("web", "nat", &[IPV4]),
        service("web", "nat", &[IPV6]),
    );
    let both = service("web", "nat", &[IPV4, IPV6]);
    let tables4 = ["connections", "conntrack"];
    let tables6 = ["connections6", "conntrack6"];
    const MIB: u64 = 1 << 20;
    for (rest, names, expected) in [
        (&nat4, &tables6[..], NOTHING),
        (&nat6, &tables4, NOTHING),
        (&both, &tables4, 90 * MIB..105 * MIB),
        (&both, &tables6, 160 * MIB..185 * MIB),
        (
            &both,
            &["fw_rules", "fw_hits", "fw_levels", "fw_steps"],
            NOTHING,
        ),
        (&both, &["dos_sources"], NOTHING),
        (&both, &["nat_ports", "nat_ports6"], 2 * MIB..2 * MIB + 1),
        (&both, &["maglev"], MIB / 4..MIB / 4 + 1),
        (
            &format!("{nat4}{DOS}"),
            &["dos_sources"],
            22 * MIB..23 * MIB,
        ),
        (
            &format!("{nat4}{FIREWALL}"),
            &["fw_rules", "fw_levels", "fw_steps"],
            NOTHING,
        ),
        (
            &service("web", "full-nat", &[IPV6]),
            &["nat_ports6"],
            16 * MIB..16 * MIB + 1,
        ),
        (
            &service("web", "full-nat", &[IPV6]),
            &["nat_ports"],
            MIB..MIB + 1,
        ),
    ] {
        let taken = bytes(rest, names);
        assert!(
            expected.contains(&taken),
            "{names:?}: {taken} bytes\n{rest}"
        );
    }
}

/// All but the connection tables, with nat over both families and the default limits.
#[test]
fn the_other_tables_are_small() {
    let (limits, needs) = needs("", &service("web", "nat", &[IPV4, IPV6]));
    let tables = memory::tables(&limits, &needs).expect("the object");
    let of_connections = [
        "connections",
        "connections6",
        "conntrack",
        "conntrack6",
        "pending",
        "pending6",
    ];
    let others = tables
        .iter()
        .filter(|table| !of_connections.contains(&table.name.as_str()));
    let bytes: u64 = others.map(|table| table.bytes).sum();
    let cpus = libbpf_rs::num_possible_cpus().expect("the number of CPUs") as u64;
    // Counts of each of 16,384 backends, for each CPU.
    let most = (8 << 20) + cpus * (3 << 20);
    assert!(bytes <= most, "{bytes} bytes");
    let all: u64 = tables.iter().map(|table| table.bytes).sum();
    let most = (294 << 20) + cpus * (3 << 20);
    assert!(all <= most, "{all} bytes");
}

/// Of those that grow: the bytes that an entry adds.
#[test]
fn an_entry_takes_what_is_said() {
    let limits = Limits {
        connections: 3000,
        ..Limits::default()
    };
    let needs = Needs::everything(&limits);
    let tables = memory::tables(&limits, &needs).expect("the object");
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
