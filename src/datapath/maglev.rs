//! The Maglev tables in the flat array `maglev`.
//!
//! Owns comparing a table with what a region holds, and writing one where no packet looks. Which region is a
//! service's is said by `service.table`, and publishing that is [`super::apply`]'s part. What the slots hold
//! is worked out in [`crate::state::maglev`], whose regions are whose in [`crate::state::regions`].

use std::sync::atomic::{AtomicU64, Ordering};

use libbpf_rs::MapCore;

use super::abi::{self, region, region_parts};
use super::array::Array;
use super::grace::Grace;
use super::Error;
use crate::state::regions::Regions;

/// A word holds the slots `backend[0]` and `backend[1]` of `struct slots` as its low and high half.
const _: () = assert!(cfg!(target_endian = "little"));
const SLOT_BITS: usize = u32::BITS as usize;

/// The array, and which part of it is whose.
pub(super) struct MaglevTables {
    slots: Array<abi::slots>,
    regions: Regions,
}

impl MaglevTables {
    /// Of an array of which nothing is in use.
    pub(super) fn new(slots: Array<abi::slots>) -> Self {
        let regions = Regions::new(capacity(&slots));
        MaglevTables { slots, regions }
    }

    /// The same tables at the same places of another map, which is at least as large.
    ///
    /// # Errors
    /// When it cannot be mapped into memory.
    pub(super) fn moved_to(&self, map: &impl MapCore) -> Result<Self, Error> {
        let slots = self.slots.moved_to(map)?;
        let mut regions = self.regions.clone();
        regions.extend(capacity(&slots));
        Ok(MaglevTables { slots, regions })
    }

    /// How many slots there are.
    pub(super) fn capacity(&self) -> u32 {
        capacity(&self.slots)
    }

    /// How many slots are in use.
    pub(super) fn used(&self) -> u64 {
        self.regions.used()
    }

    /// Whether the region holds this table.
    pub(super) fn holds(&self, table: u64, wanted: &[u32]) -> bool {
        let (offset, size) = region_parts(table);
        if size as usize != wanted.len() {
            return false;
        }
        let Some((first, pairs, last)) = self.cut(offset, wanted) else {
            return false;
        };
        let half = |half: Option<Half<'_>>| {
            half.is_none_or(|half| {
                (half.word.load(Ordering::Relaxed) >> half.shift) as u32 == half.slot
            })
        };
        half(first)
            && half(last)
            && pairs
                .0
                .iter()
                .zip(pairs.1.chunks_exact(2))
                .all(|(word, slots)| word.load(Ordering::Relaxed) == pair(slots))
    }

    /// Writes a table where no packet looks, and gives back its region: 0 for an empty one. The slots are
    /// ordered with nothing: packets may be led there by a store with Release.
    ///
    /// # Errors
    /// When no region is free, or the kernel refuses to wait for those that packets may still be in.
    pub(super) fn write(
        &mut self,
        service: &str,
        wanted: &[u32],
        grace: &Grace,
    ) -> Result<u64, Error> {
        let no_room = || Error::Regions {
            service: service.to_owned(),
        };
        let size = u32::try_from(wanted.len()).map_err(|_| no_room())?;
        if size == 0 {
            return Ok(0);
        }
        let offset = match self.regions.allocate(size) {
            None if self.regions.has_released() => {
                grace.wait()?;
                self.regions.reclaim();
                self.regions.allocate(size)
            }
            offset => offset,
        };
        let offset = offset.ok_or_else(no_room)?;
        let (first, pairs, last) = self.cut(offset, wanted).ok_or_else(no_room)?;
        for half in first.into_iter().chain(last) {
            // The other half may be a slot of a neighbouring region: it is written as it is.
            let other = half.word.load(Ordering::Relaxed) & !(u64::from(u32::MAX) << half.shift);
            let slot = u64::from(half.slot) << half.shift;
            half.word.store(other | slot, Ordering::Relaxed);
        }
        for (word, slots) in pairs.0.iter().zip(pairs.1.chunks_exact(2)) {
            word.store(pair(slots), Ordering::Relaxed);
        }
        Ok(region(offset, size))
    }

    /// Gives a region back that no packet is led to any more.
    pub(super) fn release(&mut self, table: u64) {
        let (offset, size) = region_parts(table);
        if size > 0 {
            self.regions.release(offset, size);
        }
    }

    /// The words of a table that begins at `offset`: a half at its beginning if that is in the middle of a
    /// word, those that it fills, and a half at its end if it ends in the middle of one. `None`: it does not
    /// lie within the array.
    fn cut<'a>(&'a self, offset: u32, table: &'a [u32]) -> Option<Cut<'a>> {
        let words = self.slots.words();
        let mut at = offset as usize / 2;
        let mut rest = table;
        let mut first = None;
        if let (1, Some((&slot, after))) = (offset % 2, table.split_first()) {
            first = Some(Half {
                word: words.get(at)?,
                shift: SLOT_BITS,
                slot,
            });
            (at, rest) = (at + 1, after);
        }
        let whole = words.get(at..at + rest.len() / 2)?;
        let last = match rest.len() % 2 {
            1 => Some(Half {
                word: words.get(at + whole.len())?,
                shift: 0,
                slot: *rest.last()?,
            }),
            _ => None,
        };
        Some((first, (whole, rest), last))
    }
}

fn capacity(slots: &Array<abi::slots>) -> u32 {
    slots.length().saturating_mul(2)
}

/// A word of which a table has one slot.
struct Half<'a> {
    word: &'a AtomicU64,
    /// Of the slot in the word.
    shift: usize,
    /// The slot's present contents.
    slot: u32,
}

/// The half at the beginning, whole words with the slots that begin with theirs, the half at the end.
type Cut<'a> = (
    Option<Half<'a>>,
    (&'a [AtomicU64], &'a [u32]),
    Option<Half<'a>>,
);

fn pair(slots: &[u32]) -> u64 {
    slots
        .iter()
        .rev()
        .fold(0, |word, &slot| word << SLOT_BITS | u64::from(slot))
}
