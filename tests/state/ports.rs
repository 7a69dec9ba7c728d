//! Ranges of ports as prefixes.

use proptest::prelude::*;
use xdplb::config::PortRange;
use xdplb::state::ports::{cover, merge, PortPrefix};

fn range() -> impl Strategy<Value = PortRange> {
    (any::<u16>(), any::<u16>()).prop_map(|(a, b)| PortRange {
        first: a.min(b),
        last: a.max(b),
    })
}

#[test]
fn covers_of_the_extremes() {
    assert_eq!(cover(PortRange::ANY), [PortPrefix::new(0, 0)]);
    assert_eq!(
        cover(PortRange {
            first: 65535,
            last: 65535
        }),
        [PortPrefix::new(65535, 16)]
    );
    assert_eq!(
        cover(PortRange {
            first: 1,
            last: 65534
        })
        .len(),
        30
    );
    assert!(cover(PortRange { first: 2, last: 1 }).is_empty());
    assert_eq!(PortPrefix::new(8003, 99), PortPrefix::new(8003, 16));
    let eight: Vec<_> = cover(PortRange {
        first: 8000,
        last: 8010,
    })
    .into_iter()
    .map(|prefix| (prefix.value(), prefix.length()))
    .collect();
    assert_eq!(eight, [(8000, 13), (8008, 15), (8010, 16)]);
}

#[test]
fn merge_joins_what_touches() {
    let ranges = [(80, 80), (81, 90), (85, 87), (443, 443), (65535, 65535)];
    let prefixes = ranges
        .into_iter()
        .rev()
        .flat_map(|(first, last)| cover(PortRange { first, last }));
    let merged: Vec<_> = merge(prefixes)
        .into_iter()
        .map(|range| (range.first, range.last))
        .collect();
    assert_eq!(merged, [(80, 90), (443, 443), (65535, 65535)]);
    assert!(merge([]).is_empty());
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_cover_is_exact_disjoint_and_minimal(range in range()) {
        let prefixes = cover(range);
        prop_assert!(prefixes.len() <= 30);
        prop_assert_eq!(merge(prefixes.iter().copied()), vec![range]);
        // Ascending, each beginning where the one before ends: exact and disjoint.
        let mut next = u32::from(range.first);
        for prefix in &prefixes {
            prop_assert_eq!(u32::from(prefix.range().first), next);
            next = u32::from(prefix.range().last) + 1;
        }
        prop_assert_eq!(next, u32::from(range.last) + 1);
        // Minimal: no prefix could be a bit shorter and still lie within the range. Prefixes nest or
        // are disjoint, so any other cover consists of parts of these.
        for prefix in prefixes {
            let wider = prefix.length().checked_sub(1).map(|length| PortPrefix::new(prefix.value(), length).range());
            prop_assert!(wider.is_none_or(|wider| wider.first < range.first || wider.last > range.last));
        }
    }
}
