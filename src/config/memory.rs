//! How large the tables are that `[limits]` gives the size of: what a limit costs, before anything is
//! created.

use super::{Limits, BLOCKLIST_LIMIT};

/// Bytes of a hash table's bucket in the kernel.
const BUCKET: u64 = 16;
/// Bytes of an element: the kernel's header, key and value, each rounded up to 8.
const IPV4_ELEMENT: u64 = 48 + 16 + 64;
const IPV6_ELEMENT: u64 = 48 + 40 + 88;

/// Bytes of the firewall's elements in xdp_lb.h: `fw_level`, `fw_step`, `fw_rule`, `hits`.
const LEVEL: u64 = 16;
const STEP: u64 = 16;
const RULE: u64 = 168;
const HITS: u64 = 16;
/// Bytes of a prefix in the firewall's trie at most: its node and one that joins it to its neighbour, each
/// the kernel's header of up to 40, an address of 16 and a value of 8.
const PREFIX: u64 = 2 * 64;
/// Sources in a set, and a set's bytes.
const SOURCE_WAYS: u32 = 4;
const SOURCE_SET: u64 = 4 * 88;

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

    /// Bytes of kernel memory that the sources of `[[dos]]` policies take.
    pub fn sources_bytes(&self) -> u64 {
        u64::from(self.sources.div_ceil(SOURCE_WAYS)) * SOURCE_SET
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

impl ConnectionTables {
    /// Bytes of kernel memory that the IPv4 tables take.
    pub fn ipv4_bytes(&self) -> u64 {
        self.bytes(IPV4_ELEMENT)
    }

    /// Bytes of kernel memory that the IPv6 tables take.
    pub fn ipv6_bytes(&self) -> u64 {
        self.bytes(IPV6_ELEMENT)
    }

    /// Both tables of a family: all elements are allocated when a table is created, and there are
    /// as many buckets as elements, rounded up to a power of two.
    fn bytes(&self, element: u64) -> u64 {
        [self.established, self.opening]
            .into_iter()
            .map(u64::from)
            .map(|entries| entries * element + entries.next_power_of_two() * BUCKET)
            .sum()
    }
}

impl FirewallTables {
    /// Bytes of kernel memory that all but the counters and the prefixes take.
    pub fn bytes(&self) -> u64 {
        let [rules, levels, steps] = [self.rules, self.levels, self.steps].map(u64::from);
        rules * RULE + 2 * (levels * LEVEL + steps * STEP)
    }

    /// Bytes that the counters take, for each CPU.
    pub fn bytes_per_cpu(&self) -> u64 {
        u64::from(self.rules) * HITS
    }

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
        // 2^21 and 2^19 buckets.
        let buckets = (2_097_152 + 524_288) * 16;
        assert_eq!(tables.ipv4_bytes(), 2_500_000 * 128 + buckets);
        assert_eq!(tables.ipv6_bytes(), 2_500_000 * 176 + buckets);
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
        assert_eq!(tables.bytes(), 65_601 * 168 + 65_539 * 32 + 524_352 * 32);
        assert_eq!(tables.bytes_per_cpu(), 65_601 * 16);
        assert_eq!(Limits::default().sources_bytes(), 65_536 * 352);
        let limits = Limits {
            sources: 5,
            ..Limits::default()
        };
        assert_eq!(limits.sources_bytes(), 2 * 352);
    }

    #[test]
    fn the_smallest() {
        let limits = Limits {
            connections: 1,
            ..Limits::default()
        };
        let tables = limits.connection_tables();
        assert_eq!((tables.established, tables.opening), (2, 1));
        assert_eq!(tables.ipv4_bytes(), 3 * 128 + 3 * 16);
    }
}
