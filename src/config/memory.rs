//! How large the connection tables are: what a limit costs, before anything is created.

use super::Limits;

/// Bytes of a hash table's bucket in the kernel.
const BUCKET: u64 = 16;
/// Bytes of an element: the kernel's header, key and value, each rounded up to 8.
const IPV4_ELEMENT: u64 = 48 + 16 + 48;
const IPV6_ELEMENT: u64 = 48 + 40 + 72;

/// The connection tables that `limits.connections` asks for. Each address family has one of each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConnectionTables {
    /// Entries for connections that have shown both directions: two for each connection.
    pub established: u32,
    /// Entries for half-open connections: a quarter of the established ones, at least one.
    pub opening: u32,
}

impl Limits {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_limits() {
        let tables = Limits::default().connection_tables();
        assert_eq!((tables.established, tables.opening), (2_000_000, 500_000));
        // 2^21 and 2^19 buckets.
        let buckets = (2_097_152 + 524_288) * 16;
        assert_eq!(tables.ipv4_bytes(), 2_500_000 * 112 + buckets);
        assert_eq!(tables.ipv6_bytes(), 2_500_000 * 160 + buckets);
    }

    #[test]
    fn the_smallest() {
        let limits = Limits {
            connections: 1,
            ..Limits::default()
        };
        let tables = limits.connection_tables();
        assert_eq!((tables.established, tables.opening), (2, 1));
        assert_eq!(tables.ipv4_bytes(), 3 * 112 + 3 * 16);
    }
}
