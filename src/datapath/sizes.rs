//! How large the maps are: those that `[limits]` or the file gives the size of.
//!
//! What a file does not use is not allocated. Its tables have some room beside what it needs, so that few
//! reloads have to make them larger (see [`super::grow`]), and never more than `[limits]` says.

use crate::config::{Family, FirewallTables, Limits};
use crate::state::{regions, Needs};

use super::abi;

/// An LRU map hands elements out to CPUs in batches: with fewer it evicts entries that are just made.
const LEAST_ENTRIES: u32 = 64;
/// Room for claims where full-nat makes none.
const LEAST_CLAIMS: u32 = 65_536;
/// Of a table that grows with the file; the smallest size, and so a power of two.
const LEAST_SLOTS: u32 = 65_536;
const LEAST_RULES: u32 = 64;
const LEAST_LEVELS: u32 = 64;
const LEAST_STEPS: u32 = 512;

/// The size of a map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Size {
    /// Its name.
    pub map: &'static str,
    /// The fewest elements that will do: one that has them need not be made larger.
    pub least: u32,
    /// The elements that it has when it is created.
    pub created: u32,
}

/// Of each map whose size is not the same always. `taken` Maglev slots are in use while the file's tables are
/// written.
pub(super) fn sizes(limits: &Limits, needs: &Needs, taken: u64) -> Vec<Size> {
    let mut sizes = vec![
        // A range of ports is at most 30 prefixes; the trie takes memory only as it is used.
        fixed("vips", limits.services.saturating_mul(64)),
        fixed("services", limits.services),
        fixed("backends", limits.backends),
        fixed("traffic", limits.backends),
        fixed("past", limits.services),
        fixed("expired", limits.backends),
        maglev(limits, needs, taken),
        sources(limits, needs),
    ];
    sizes.extend(connections(limits, needs));
    sizes.extend(firewall(limits, needs));
    sizes
}

/// The tables of connections: each family's only where there is a VIP of it.
fn connections(limits: &Limits, needs: &Needs) -> [Size; 6] {
    let tables = limits.connection_tables();
    let entries = |family, entries: u32| match needs.of(family).vips {
        true => entries.max(LEAST_ENTRIES),
        false => LEAST_ENTRIES,
    };
    let claims = |family| match needs.of(family).full_nat {
        true => limits.connections,
        false => limits.connections.min(LEAST_CLAIMS),
    };
    let (v4, v6) = (Family::Ipv4, Family::Ipv6);
    [
        fixed("conntrack", entries(v4, tables.established)),
        fixed("conntrack6", entries(v6, tables.established)),
        fixed("opening", entries(v4, tables.opening)),
        fixed("opening6", entries(v6, tables.opening)),
        fixed("nat_ports", claims(v4)),
        fixed("nat_ports6", claims(v6)),
    ]
}

/// Tables that have changed are written beside those in force, which takes as much again if all have; a
/// quarter more is against gaps, and there is room to write the two largest anew.
fn maglev(limits: &Limits, needs: &Needs, taken: u64) -> Size {
    let full = regions::capacity_for(limits);
    let slots = |tables: u64| {
        let gaps = tables / 4;
        let anew = 2 * u64::from(needs.largest);
        let slots = tables.saturating_add(gaps).saturating_add(anew);
        u32::try_from(slots).unwrap_or(u32::MAX).min(full)
    };
    let least = slots(needs.slots.saturating_add(taken));
    let usual = slots(needs.slots.saturating_mul(2));
    let size = stepped("maglev", least, usual.max(least), LEAST_SLOTS, full);
    // An element has two.
    Size {
        least: size.least.div_ceil(2),
        created: size.created.div_ceil(2),
        ..size
    }
}

/// Any rule of a ruleset may have its hits counted: a larger map would have to take them over, while packets
/// are counted. So there is room for all as soon as there is a firewall.
fn firewall(limits: &Limits, needs: &Needs) -> [Size; 4] {
    let full = limits.firewall_tables();
    let needed = needs.firewall.unwrap_or(FirewallTables {
        rules: 0,
        levels: 0,
        steps: 0,
    });
    let hits = match needs.firewall {
        Some(_) => full.rules,
        None => 1,
    };
    let rules = stepped(
        "fw_rules",
        needed.rules,
        needed.rules,
        LEAST_RULES,
        full.rules,
    );
    // New ones stand beside those in use.
    let twice = |size: Size| Size {
        least: size.least.saturating_mul(2),
        created: size.created.saturating_mul(2),
        ..size
    };
    let halves = |map, needed, least, full| twice(stepped(map, needed, needed, least, full));
    [
        rules,
        fixed("fw_hits", hits),
        halves("fw_levels", needed.levels, LEAST_LEVELS, full.levels),
        halves("fw_steps", needed.steps, LEAST_STEPS, full.steps),
    ]
}

fn sources(limits: &Limits, needs: &Needs) -> Size {
    let sets = limits.sources.div_ceil(abi::xdplb_limit::SOURCE_WAYS.0);
    fixed("dos_sources", if needs.policies { sets.max(1) } else { 1 })
}

fn fixed(map: &'static str, entries: u32) -> Size {
    Size {
        map,
        least: entries,
        created: entries,
    }
}

/// Of a map that needs `least` elements and would rather have `usual`. It is a power of two, or `full`, and
/// at most half of it otherwise: one that is made larger has at least twice as many elements as before.
fn stepped(map: &'static str, least: u32, usual: u32, smallest: u32, full: u32) -> Size {
    let power = usual.checked_next_power_of_two().unwrap_or(u32::MAX);
    let created = power.max(smallest);
    Size {
        map,
        least: least.min(full),
        created: if created > full / 2 { full } else { created },
    }
}
