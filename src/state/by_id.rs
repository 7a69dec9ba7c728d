//! A map by id whose copies share what they have in common.
//!
//! Plans hold tens of thousands of services and backends, and follow each other whenever a neighbour changes.
//! Ids are small and dense, so that they index pages; a copy of the map copies the list of pages, a change
//! copies the page that it falls into, and what differs between two maps is found page by page.

use std::fmt;
use std::ops::Index;
use std::sync::Arc;

/// Ids in a page: about the root of the number of ids that a large configuration has, so that neither the
/// list of pages nor a page is long.
const PAGE: usize = 64;

/// An id and what it stands for. The id stands beside it so that iterating can lend both.
type Entry<T> = Option<(u32, Arc<T>)>;

/// What each id stands for.
pub struct ById<T> {
    /// By id / PAGE, then by id % PAGE; the last page has an entry.
    pages: Vec<Arc<[Entry<T>; PAGE]>>,
}

/// An id whose meaning is not the same in two maps.
#[derive(Debug)]
pub struct Change<'a, T> {
    /// The id.
    pub id: u32,
    /// `None`: it was free.
    pub before: Option<&'a Arc<T>>,
    /// `None`: it is free.
    pub after: Option<&'a Arc<T>>,
}

impl<T> ById<T> {
    /// What the id stands for; `None`: nothing.
    pub fn get(&self, id: &u32) -> Option<&Arc<T>> {
        let (page, place) = split(*id);
        let (_, value) = self.pages.get(page)?[place].as_ref()?;
        Some(value)
    }

    /// Whether the id stands for something.
    pub fn contains_key(&self, id: &u32) -> bool {
        self.get(id).is_some()
    }

    /// Lets the id stand for `value` from now on.
    pub fn insert(&mut self, id: u32, value: Arc<T>) {
        let (page, place) = split(id);
        while self.pages.len() <= page {
            self.pages.push(Arc::new([const { None }; PAGE]));
        }
        Arc::make_mut(&mut self.pages[page])[place] = Some((id, value));
    }

    /// Ids and what they stand for, ascending.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (&u32, &Arc<T>)> + Clone {
        let entries = self.pages.iter().flat_map(|page| page.iter().flatten());
        entries.map(|(id, value)| (id, value))
    }

    /// The ids in use, ascending.
    pub fn keys(&self) -> impl DoubleEndedIterator<Item = &u32> + Clone {
        self.iter().map(|(id, _)| id)
    }

    /// What the ids in use stand for, in their order.
    pub fn values(&self) -> impl DoubleEndedIterator<Item = &Arc<T>> + Clone {
        self.iter().map(|(_, value)| value)
    }

    /// Likewise, to be changed. What other maps share with this one stays as it is in them, the value behind
    /// the pointer as well if [`Arc::make_mut`] is what changes it.
    pub fn values_mut(&mut self) -> impl Iterator<Item = &mut Arc<T>> {
        let entries = self
            .pages
            .iter_mut()
            .flat_map(|page| Arc::make_mut(page).iter_mut().flatten());
        entries.map(|(_, value)| value)
    }

    /// The ids below `limit` that stand for nothing, ascending.
    pub fn free(&self, limit: u32) -> impl Iterator<Item = u32> + '_ {
        (0..limit).filter(|id| !self.contains_key(id))
    }

    /// How many ids are in use.
    pub fn len(&self) -> usize {
        self.iter().count()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.iter().next().is_none()
    }

    /// The ids that do not stand for the same value, the same allocation that is, in both maps, ascending.
    pub fn changes_to<'a>(&'a self, next: &'a Self) -> impl Iterator<Item = Change<'a, T>> {
        let count = self.pages.len().max(next.pages.len());
        let changed =
            (0..count).filter(
                |page| match (self.pages.get(*page), next.pages.get(*page)) {
                    (Some(before), Some(after)) => !Arc::ptr_eq(before, after),
                    _ => true,
                },
            );
        let ids = changed.flat_map(|page| (page * PAGE) as u32..((page + 1) * PAGE) as u32);
        ids.filter_map(|id| {
            let (before, after) = (self.get(&id), next.get(&id));
            let same = match (before, after) {
                (Some(before), Some(after)) => Arc::ptr_eq(before, after),
                (None, None) => true,
                _ => false,
            };
            (!same).then_some(Change { id, before, after })
        })
    }
}

fn split(id: u32) -> (usize, usize) {
    (id as usize / PAGE, id as usize % PAGE)
}

impl<T> Clone for ById<T> {
    fn clone(&self) -> Self {
        ById {
            pages: self.pages.clone(),
        }
    }
}

impl<T> Default for ById<T> {
    fn default() -> Self {
        ById { pages: Vec::new() }
    }
}

impl<T: PartialEq> PartialEq for ById<T> {
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}

impl<T: Eq> Eq for ById<T> {}

impl<T: fmt::Debug> fmt::Debug for ById<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

impl<T> Index<&u32> for ById<T> {
    type Output = Arc<T>;

    /// # Panics
    /// When the id stands for nothing.
    fn index(&self, id: &u32) -> &Arc<T> {
        match self.get(id) {
            Some(value) => value,
            None => panic!("nothing has the id {id}"),
        }
    }
}

impl<T> FromIterator<(u32, Arc<T>)> for ById<T> {
    fn from_iter<I: IntoIterator<Item = (u32, Arc<T>)>>(entries: I) -> Self {
        let mut map = ById::default();
        for (id, value) in entries {
            map.insert(id, value);
        }
        map
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn of(map: &BTreeMap<u32, u8>) -> ById<u8> {
        map.iter()
            .map(|(id, value)| (*id, Arc::new(*value)))
            .collect()
    }

    fn maps() -> impl Strategy<Value = BTreeMap<u32, u8>> {
        prop::collection::btree_map(0..300_u32, any::<u8>(), 0..100)
    }

    proptest! {
        #[test]
        fn it_holds_what_a_map_holds(map in maps(), limit in 0..300_u32) {
            let by_id = of(&map);
            prop_assert!(by_id.iter().map(|(id, value)| (*id, **value)).eq(map.clone()));
            prop_assert!(by_id.iter().rev().map(|(id, _)| *id).eq(map.keys().rev().copied()));
            prop_assert_eq!(by_id.len(), map.len());
            prop_assert_eq!(by_id.is_empty(), map.is_empty());
            prop_assert!((0..400).all(|id| by_id.get(&id).map(|value| **value) == map.get(&id).copied()));
            prop_assert!(by_id.free(limit).eq((0..limit).filter(|id| !map.contains_key(id))));
        }

        #[test]
        fn a_copy_shares_what_is_not_written(map in maps(), id in 0..300_u32) {
            let before = of(&map);
            let mut after = before.clone();
            prop_assert_eq!(before.changes_to(&after).count(), 0);
            after.insert(id, Arc::new(7));
            let ids: Vec<u32> = before.changes_to(&after).map(|change| change.id).collect();
            prop_assert_eq!(ids, [id]);
            prop_assert_eq!(&before, &of(&map));
        }

        #[test]
        fn changes_are_what_differs(before in maps(), after in maps()) {
            let (one, other) = (of(&before), of(&after));
            let mut map = before;
            for Change { id, before, after } in one.changes_to(&other) {
                prop_assert_eq!(map.get(&id), before.map(|value| &**value));
                match after {
                    Some(value) => map.insert(id, **value),
                    None => map.remove(&id),
                };
            }
            prop_assert_eq!(map, after);
        }
    }
}
