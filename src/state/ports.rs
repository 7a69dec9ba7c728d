//! Port ranges as prefixes, the form that a longest-prefix-match trie can hold.
//!
//! Owns the way from a range to prefixes and back. What the prefixes are bound to is [`super`]'s.

use crate::config::PortRange;

/// The ports that agree with `value` in their first `length` bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortPrefix {
    /// Host order; the bits after the prefix are 0.
    value: u16,
    /// 0..=16.
    length: u8,
}

impl PortPrefix {
    /// The prefix of `length` bits that `port` lies in. A length above 16 counts as 16.
    pub fn new(port: u16, length: u8) -> Self {
        let length = length.min(16);
        let mask = u16::MAX.checked_shl(u32::from(16 - length)).unwrap_or(0);
        PortPrefix {
            value: port & mask,
            length,
        }
    }

    /// The lowest port, host order.
    pub fn value(self) -> u16 {
        self.value
    }

    /// Leading bits that count, 0..=16.
    pub fn length(self) -> u8 {
        self.length
    }

    /// The ports that it stands for.
    pub fn range(self) -> PortRange {
        let rest = u16::MAX.checked_shr(u32::from(self.length)).unwrap_or(0);
        PortRange {
            first: self.value,
            last: self.value | rest,
        }
    }
}

/// The fewest prefixes that together are exactly `range`: ascending, disjoint, at most 30.
pub fn cover(range: PortRange) -> Vec<PortPrefix> {
    let mut prefixes = Vec::new();
    let mut first = u32::from(range.first);
    let last = u32::from(range.last);
    while first <= last {
        // The largest block that may begin here and does not end too late. Blocks have at most 2^16
        // ports, so that neither number is above 16.
        let aligned = first.trailing_zeros().min(16);
        let fitting = (last - first + 1).ilog2();
        let bits = aligned.min(fitting);
        prefixes.push(PortPrefix::new(first as u16, (16 - bits) as u8));
        first += 1 << bits;
    }
    prefixes
}

/// The ranges that prefixes add up to: ascending, disjoint, none touching the next.
pub fn merge(prefixes: impl IntoIterator<Item = PortPrefix>) -> Vec<PortRange> {
    let mut pieces: Vec<PortRange> = prefixes.into_iter().map(PortPrefix::range).collect();
    pieces.sort_unstable();
    let mut ranges: Vec<PortRange> = Vec::new();
    for piece in pieces {
        match ranges.last_mut() {
            Some(range) if piece.first <= range.last.saturating_add(1) => {
                range.last = range.last.max(piece.last)
            }
            _ => ranges.push(piece),
        }
    }
    ranges
}
