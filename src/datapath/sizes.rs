//! How large the maps are: those that `[limits]` or the file gives the size of.
//!
//! What a file does not use is not allocated. Its tables have some room beside what it needs, so that few
//! reloads have to make them larger (see [`super::grow`]), and never more than `[limits]` says.

use crate::config::{Family, FirewallTables, Limits};
use crate::state::{regions, Needs};

use super::abi;

/// Of the tables of a family without a VIP.
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
    let tables = limits.connection_tables(libbpf_rs::num_possible_cpus().unwrap_or(1));
    let entries = |family, entries: u32| match needs.of(family).vips {
        true => entries,
        false => LEAST_ENTRIES.min(entries),
    };
    let claims = |family| match needs.of(family).full_nat {
        true => limits.connections,
        false => limits.connections.min(LEAST_CLAIMS),
    };
    let (v4, v6) = (Family::Ipv4, Family::Ipv6);
    [
        fixed("connections", entries(v4, tables.sets)),
        fixed("connections6", entries(v6, tables.sets)),
        fixed("conntrack", entries(v4, tables.overflow)),
        fixed("conntrack6", entries(v6, tables.overflow)),
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::state::FamilyNeeds;

    fn size(limits: &Limits, needs: &Needs, map: &str) -> Size {
        let sizes = sizes(limits, needs, 0);
        let found = sizes.into_iter().find(|size| size.map == map);
        found.expect("a size")
    }

    fn tables(slots: u64, largest: u32) -> Needs {
        Needs {
            slots,
            largest,
            ..Needs::default()
        }
    }

    #[test]
    fn maglev_has_room_for_all_tables_anew() {
        let limits = Limits::default();
        let entries = |needs: &Needs| size(&limits, needs, "maglev").created;
        assert_eq!(entries(&Needs::default()), 32_768);
        // Twice, a quarter more, and twice the largest: 73,714 slots.
        assert_eq!(entries(&tables(16_381, 16_381)), 65_536);
        // 16,777,216 would be more than half of what the limits allow.
        assert_eq!(entries(&tables(3_400_000, 131_071)), 9_041_659);
        assert_eq!(entries(&tables(u64::MAX, u32::MAX)), 9_041_659);
    }

    #[test]
    fn tables_in_use_need_their_room_beside_the_new_ones() {
        let limits = Limits::default();
        let needs = tables(16_381, 16_381);
        let least = |taken| {
            let sizes = sizes(&limits, &needs, taken);
            let found = sizes.iter().find(|size| size.map == "maglev");
            found.expect("a size").least
        };
        assert_eq!(least(0), (16_381_u32 + 4_095 + 32_762).div_ceil(2));
        assert_eq!(least(16_381), (32_762_u32 + 8_190 + 32_762).div_ceil(2));
    }

    #[test]
    fn a_family_without_a_vip_has_the_smallest_tables() {
        let limits = Limits::default();
        let vips = FamilyNeeds {
            vips: true,
            full_nat: false,
        };
        let needs = Needs {
            ipv6: vips,
            ..Needs::default()
        };
        let entries = |map| size(&limits, &needs, map).created;
        assert_eq!((entries("connections"), entries("conntrack")), (64, 64));
        assert_eq!(entries("connections6"), 142_858);
        assert!(entries("conntrack6") >= 200_000);
        assert_eq!(
            (entries("nat_ports"), entries("nat_ports6")),
            (65_536, 65_536)
        );
    }

    fn needs() -> impl Strategy<Value = Needs> {
        let family = || (any::<bool>(), any::<bool>());
        let firewall = (1..70_000_u32, 1..70_000_u32, 1..600_000_u32);
        let firewall = prop::option::of(firewall);
        let tables = (0..20_000_000_u64, 0..131_072_u32);
        (family(), family(), firewall, any::<bool>(), tables).prop_map(
            |(ipv4, ipv6, firewall, policies, (slots, largest))| {
                let family = |(vips, full_nat)| FamilyNeeds { vips, full_nat };
                Needs {
                    slots,
                    largest,
                    ipv4: family(ipv4),
                    ipv6: family(ipv6),
                    firewall: firewall.map(|(rules, levels, steps)| FirewallTables {
                        rules,
                        levels,
                        steps,
                    }),
                    policies,
                }
            },
        )
    }

    fn limits() -> impl Strategy<Value = Limits> {
        (
            1..5000_u32,
            1..20_000_u32,
            1..2_000_000_u32,
            1..131_000_u32,
            1..300_000_u32,
        )
            .prop_map(
                |(services, backends, connections, firewall_rules, sources)| Limits {
                    services,
                    backends,
                    connections,
                    firewall_rules,
                    sources,
                },
            )
    }

    proptest! {
        /// What the firewall's two halves rely on, and what makes a second growth rare.
        #[test]
        fn what_is_made_larger_at_least_doubles(limits in limits(), before in needs(), after in needs(), taken in 0..9_000_000_u64) {
            let all = sizes(&limits, &Needs::everything(&limits), 0);
            let before = sizes(&limits, &before, 0);
            let after = sizes(&limits, &after, taken);
            for ((before, after), all) in before.iter().zip(&after).zip(&all) {
                prop_assert_eq!(before.map, after.map);
                prop_assert!(after.least <= after.created, "{after:?}");
                prop_assert!(after.created <= all.created, "{after:?}, {all:?}");
                prop_assert_eq!(all.least, all.created);
                let halves = ["fw_levels", "fw_steps"].contains(&after.map);
                if halves && after.least > before.created {
                    prop_assert!(after.created >= 2 * before.created, "{before:?}, {after:?}");
                }
            }
        }
    }
}
