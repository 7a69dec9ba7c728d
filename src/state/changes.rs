//! What differs between two sorted maps, found by walking through both at once.

use std::cmp::Ordering;
use std::collections::BTreeMap;

/// A key with its value in each of two maps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Change<'a, K, V> {
    /// In at least one of the maps.
    pub key: &'a K,
    /// `None`: it has come.
    pub before: Option<&'a V>,
    /// `None`: it has gone.
    pub after: Option<&'a V>,
}

/// The keys that are not in both maps with the `same` value, ascending.
pub fn changes<'a, K: Ord, V>(
    before: &'a BTreeMap<K, V>,
    after: &'a BTreeMap<K, V>,
    same: impl Fn(&V, &V) -> bool + 'a,
) -> impl Iterator<Item = Change<'a, K, V>> + 'a {
    let (mut olds, mut news) = (before.iter().peekable(), after.iter().peekable());
    std::iter::from_fn(move || loop {
        let order = match (olds.peek(), news.peek()) {
            (None, None) => return None,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some((old, _)), Some((new, _))) => old.cmp(new),
        };
        let old = if order.is_le() { olds.next() } else { None };
        let new = if order.is_ge() { news.next() } else { None };
        let (before, after) = (old.map(|(_, value)| value), new.map(|(_, value)| value));
        if before
            .zip(after)
            .is_some_and(|(before, after)| same(before, after))
        {
            continue;
        }
        let key = old.or(new).map(|(key, _)| key)?;
        return Some(Change { key, before, after });
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_comes_goes_and_becomes_another() {
        let before = BTreeMap::from([(1, 'a'), (2, 'b'), (4, 'd')]);
        let after = BTreeMap::from([(2, 'b'), (3, 'c'), (4, 'e')]);
        let found: Vec<_> = changes(&before, &after, char::eq)
            .map(|change| (*change.key, change.before.copied(), change.after.copied()))
            .collect();
        assert_eq!(
            found,
            [
                (1, Some('a'), None),
                (3, None, Some('c')),
                (4, Some('d'), Some('e'))
            ]
        );
    }

    proptest! {
        #[test]
        fn changes_lead_from_one_to_the_other(
            before: BTreeMap<u8, u8>,
            after: BTreeMap<u8, u8>,
        ) {
            let mut map = before.clone();
            for change in changes(&before, &after, u8::eq) {
                prop_assert_ne!(change.before, change.after);
                prop_assert_eq!(map.get(change.key), change.before);
                match change.after {
                    Some(value) => map.insert(*change.key, *value),
                    None => map.remove(change.key),
                };
            }
            prop_assert_eq!(map, after);
        }
    }
}
