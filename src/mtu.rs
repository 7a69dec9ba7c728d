//! Whether packets still fit their way once a tunnel's header is in front of them.
//!
//! Decides only: reading MTUs, and telling the operator, are the callers' part.

use std::collections::BTreeMap;
use std::fmt;

use crate::config::{Family, Forward};

/// Bytes of a TCP header without options, RFC 9293.
const TCP_HEADER: u32 = 20;

/// The way of packets to one backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Way<'a> {
    /// The interface that they leave by.
    pub interface: &'a str,
    /// Its MTU, in bytes.
    pub mtu: u32,
    /// How they reach the backend.
    pub forward: Forward,
    /// Of the backend's address.
    pub outer: Family,
    /// Of the VIP.
    pub inner: Family,
}

/// An interface that cannot take in one piece what another brings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shortage {
    /// Its name.
    pub interface: String,
    /// Its MTU, in bytes.
    pub mtu: u32,
    /// The smallest MTU of all interfaces.
    pub smallest: u32,
    /// The size of such a packet with its tunnel header.
    pub needed: u32,
    /// The largest TCP segment that still fits.
    pub segment: u32,
}

/// The interfaces whose MTU is too small for a packet of the smallest of `mtus` plus the header of a way,
/// each with the MTU that its longest header needs. Larger packets may come too, but path MTU discovery
/// has told their senders about the smallest MTU; packets of that size fit everywhere but here.
pub fn shortages<'a>(
    mtus: impl IntoIterator<Item = u32>,
    ways: impl IntoIterator<Item = Way<'a>>,
) -> Vec<Shortage> {
    let Some(smallest) = mtus.into_iter().min() else {
        return Vec::new();
    };
    let mut shortages: BTreeMap<&str, Shortage> = BTreeMap::new();
    for way in ways {
        let overhead = way.forward.overhead(way.outer);
        let needed = smallest.saturating_add(overhead);
        if overhead == 0 || needed <= way.mtu {
            continue;
        }
        let headers = overhead + way.inner.header() + TCP_HEADER;
        let segment = way.mtu.saturating_sub(headers);
        let shortage = shortages.entry(way.interface).or_insert_with(|| Shortage {
            interface: way.interface.into(),
            mtu: way.mtu,
            smallest,
            needed,
            segment,
        });
        shortage.needed = shortage.needed.max(needed);
        shortage.segment = shortage.segment.min(segment);
    }
    shortages.into_values().collect()
}

impl fmt::Display for Shortage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Shortage {
            interface,
            mtu,
            smallest,
            needed,
            segment,
        } = self;
        write!(
            f,
            "{interface} has an MTU of {mtu}, but a packet of {smallest} bytes (the smallest MTU of \
             datapath.interfaces) is {needed} with its tunnel header; raise the MTU here and on the path to \
             the backends: ip link set dev {interface} mtu {needed}; or have clients send smaller \
             segments, on each backend: ip route change default via GATEWAY advmss {segment}"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn way(interface: &str, mtu: u32, forward: Forward, outer: Family) -> Way<'_> {
        Way {
            interface,
            mtu,
            forward,
            outer,
            inner: Family::Ipv4,
        }
    }

    #[test]
    fn what_each_header_needs() {
        for (forward, outer, needed) in [
            (Forward::Ipip, Family::Ipv4, 1520),
            (Forward::Ipip, Family::Ipv6, 1540),
            (Forward::Gue, Family::Ipv4, 1528),
            (Forward::Gue, Family::Ipv6, 1548),
        ] {
            let found = shortages([1500, 9000], [way("eth1", needed - 1, forward, outer)]);
            assert_eq!(found.len(), 1, "{forward} {outer}");
            assert_eq!((found[0].smallest, found[0].needed), (1500, needed));
            assert_eq!(found[0].segment, needed - 1 - (needed - 1500) - 40);
            assert_eq!(
                shortages([9000, 1500], [way("eth1", needed, forward, outer)]),
                []
            );
        }
        for forward in [Forward::Nat, Forward::FullNat, Forward::L2] {
            let narrow = way("eth1", 1280, forward, Family::Ipv4);
            assert_eq!(shortages([1500], [narrow]), []);
        }
        assert_eq!(
            shortages([], [way("eth1", 1280, Forward::Gue, Family::Ipv4)]),
            []
        );
    }

    #[test]
    fn the_longest_header_speaks_for_its_interface() {
        let inner_ipv6 = Way {
            inner: Family::Ipv6,
            ..way("eth1", 1500, Forward::Ipip, Family::Ipv4)
        };
        let found = shortages(
            [1500],
            [
                way("eth1", 1500, Forward::Ipip, Family::Ipv4),
                way("eth1", 1500, Forward::Gue, Family::Ipv6),
                inner_ipv6,
                way("eth2", 1520, Forward::Ipip, Family::Ipv4),
                way("eth3", 1519, Forward::Ipip, Family::Ipv4),
            ],
        );
        let names: Vec<_> = found.iter().map(|s| (&*s.interface, s.needed)).collect();
        assert_eq!(names, [("eth1", 1548), ("eth3", 1520)]);
        assert_eq!(found[0].segment, 1500 - 48 - 40);
    }

    #[test]
    fn numbers_and_remedy() {
        let found = shortages([1500], [way("eth1", 1500, Forward::Ipip, Family::Ipv4)]);
        let text = found[0].to_string();
        for part in [
            "eth1 has an MTU of 1500",
            "is 1520 with its tunnel header",
            "ip link set dev eth1 mtu 1520",
            "advmss 1440",
        ] {
            assert!(text.contains(part), "{text}\ndoes not say {part}");
        }
    }
}
