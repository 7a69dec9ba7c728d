//! How large the tables are that `[limits]` gives the size of, before anything is created.

use super::{Limits, BLOCKLIST_LIMIT};

/// Connections in a set: `SET_WAYS` of xdp_lb.h.
const WAYS: u32 = 7;
/// The kernel's LRU keeps up to so many free elements for each CPU, which others do not get.
const ELEMENTS_OF_CPU: usize = 256;

/// Bytes of a prefix in the firewall's trie at most: its node and one that joins it to its neighbour, each
/// the kernel's header of up to 40, an address of 16 and a value of 8.
const PREFIX: u64 = 2 * 64;

/// The connection tables that `limits.connections` asks for. Each address family has its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConnectionTables {
    /// Sets of seven connections.
    pub sets: u32,
    /// Room for connections whose set is full. Where there are as many connections as there is room for, by
    /// chance 15 % find their set full (what is above 7 of a Poisson distribution with a mean of 7).
    pub overflow: u32,
}

/// The tables of the firewall that `limits.firewall_rules` asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FirewallTables {
    /// Ids of rules, blocklists and the default.
    pub rules: u32,
    /// Source prefixes that have rules. There is twice this room, since new ones stand beside those in
    /// use.
    pub levels: u32,
    /// Steps that the rules of all prefixes are cut into; likewise.
    pub steps: u32,
}

impl Limits {
    /// The sizes of the firewall's tables. Each rule can have a source prefix of its own, next to those
    /// of all sources, all IPv4 and all IPv6 addresses. Two bounds of intervals for each of two protocols
    /// are a rule's four steps, and one more begins its prefix; those with source ports that overlap take
    /// more.
    pub fn firewall_tables(&self) -> FirewallTables {
        FirewallTables {
            rules: self
                .firewall_rules
                .saturating_add(BLOCKLIST_LIMIT as u32 + 1),
            levels: self.firewall_rules.saturating_add(3),
            steps: self.firewall_rules.saturating_mul(8).saturating_add(64),
        }
    }

    /// The sizes of the connection tables on a machine with so many CPUs.
    pub fn connection_tables(&self, cpus: usize) -> ConnectionTables {
        let of_cpus = u32::try_from(cpus * ELEMENTS_OF_CPU).unwrap_or(u32::MAX);
        ConnectionTables {
            sets: self.connections.div_ceil(WAYS).max(1),
            overflow: (self.connections / 5).saturating_add(of_cpus),
        }
    }
}

impl FirewallTables {
    /// Bytes that so many prefixes take at most, once they are there.
    pub fn prefix_bytes(prefixes: usize) -> u64 {
        prefixes as u64 * PREFIX
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_limits() {
        let tables = Limits::default().connection_tables(2);
        assert_eq!((tables.sets, tables.overflow), (142_858, 200_512));
    }

    #[test]
    fn the_firewalls() {
        let tables = Limits::default().firewall_tables();
        let FirewallTables {
            rules,
            levels,
            steps,
        } = tables;
        assert_eq!((rules, levels, steps), (65_601, 65_539, 524_352));
    }

    #[test]
    fn the_smallest() {
        let limits = Limits {
            connections: 1,
            ..Limits::default()
        };
        let tables = limits.connection_tables(1);
        assert_eq!((tables.sets, tables.overflow), (1, 256));
    }
}
