//! How large the tables are that `[limits]` gives the size of, before anything is created.

use super::{Limits, BLOCKLIST_LIMIT};

/// Bytes of a prefix in the firewall's trie at most: its node and one that joins it to its neighbour, each
/// the kernel's header of up to 40, an address of 16 and a value of 8.
const PREFIX: u64 = 2 * 64;

/// The connection tables that `limits.connections` asks for. Each address family has one of each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConnectionTables {
    /// Entries for connections that have shown both directions: two for each connection.
    pub established: u32,
    /// Entries for half-open connections: a quarter of the established ones, at least one.
    pub opening: u32,
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

    /// The sizes of the connection tables.
    pub fn connection_tables(&self) -> ConnectionTables {
        let established = self.connections.saturating_mul(2);
        ConnectionTables {
            established,
            opening: (established / 4).max(1),
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
        let tables = Limits::default().connection_tables();
        assert_eq!((tables.established, tables.opening), (2_000_000, 500_000));
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
        let tables = limits.connection_tables();
        assert_eq!((tables.established, tables.opening), (2, 1));
    }
}
