//! Allocates regions of the flat array `maglev` to services.
//!
//! Owns the allocation of regions, and keeping those apart that have been released but that a packet may
//! still read. What the slots hold is [`super::maglev`]'s; writing them, and knowing when packets are
//! through, the datapath's.

use std::collections::{BTreeMap, BTreeSet};

use super::maglev::{MAX_SLOTS, SIZE_CLASSES};
use crate::config::Limits;

/// The regions of an array of slots. All offsets and sizes are in slots.
#[derive(Debug, Clone)]
pub struct Regions {
    capacity: u32,
    /// Size by offset; no two touch.
    free: BTreeMap<u32, u32>,
    /// Size by offset.
    live: BTreeMap<u32, u32>,
    /// Offset and size of those that have been released: a packet that has read the old offset may still be
    /// on its way to the slot.
    released: BTreeSet<(u32, u32)>,
}

impl Regions {
    /// An array of `capacity` slots, all free.
    pub fn new(capacity: u32) -> Self {
        let free = if capacity > 0 {
            BTreeMap::from([(0, capacity)])
        } else {
            BTreeMap::new()
        };
        Regions {
            capacity,
            free,
            live: BTreeMap::new(),
            released: BTreeSet::new(),
        }
    }

    /// Takes the smallest free region that is large enough and gives its offset. `None`: none is now;
    /// after [`Regions::reclaim`] one may be. Of size 0 there is none.
    pub fn allocate(&mut self, size: u32) -> Option<u32> {
        let fitting = self
            .free
            .iter()
            .filter(|(_, free)| size > 0 && **free >= size);
        let (&offset, _) = fitting.min_by_key(|(offset, free)| (**free, **offset))?;
        self.take(offset, offset, size);
        Some(offset)
    }

    /// Takes a region that is known to be in use, as when adopting the maps of an earlier process.
    /// False, and nothing changes, when part of it is not free.
    pub fn reserve(&mut self, offset: u32, size: u32) -> bool {
        let Some((&start, &free)) = self.free.range(..=offset).next_back() else {
            return false;
        };
        let fits =
            size > 0 && u64::from(offset) + u64::from(size) <= u64::from(start) + u64::from(free);
        if fits {
            self.take(start, offset, size);
        }
        fits
    }

    /// Gives a region back; it can be allocated again after [`Regions::reclaim`]. False, and nothing
    /// changes, when no such region is in use.
    pub fn release(&mut self, offset: u32, size: u32) -> bool {
        let known = self.live.get(&offset) == Some(&size);
        if known {
            self.live.remove(&offset);
            self.released.insert((offset, size));
        }
        known
    }

    /// Whether released regions wait to be reclaimed.
    pub fn has_released(&self) -> bool {
        !self.released.is_empty()
    }

    /// How many slots are in use; those that have been released can be had again.
    pub fn used(&self) -> u64 {
        self.live.values().map(|&size| u64::from(size)).sum()
    }

    /// The array has `capacity` slots from now on, those that it had and free ones behind them. It does not
    /// become smaller.
    pub fn extend(&mut self, capacity: u32) {
        if capacity > self.capacity {
            self.free_again(self.capacity, capacity - self.capacity);
            self.capacity = capacity;
        }
    }

    /// Cuts a region out of the free one at `start`, which has to contain it.
    fn take(&mut self, start: u32, offset: u32, size: u32) {
        let Some(free) = self.free.remove(&start) else {
            return;
        };
        let before = offset - start;
        let after = free - before - size;
        if before > 0 {
            self.free.insert(start, before);
        }
        if after > 0 {
            self.free.insert(offset + size, after);
        }
        self.live.insert(offset, size);
    }

    /// Frees all that has been released, joined with the free regions beside it. To be called when every
    /// packet is through that began before the last release.
    pub fn reclaim(&mut self) {
        while let Some((offset, size)) = self.released.pop_first() {
            self.free_again(offset, size);
        }
    }

    fn free_again(&mut self, mut offset: u32, mut size: u32) {
        if let Some(after) = self.free.remove(&(offset + size)) {
            size += after;
        }
        if let Some((&start, &before)) = self.free.range(..offset).next_back() {
            if start + before == offset {
                self.free.remove(&start);
                (offset, size) = (start, size + before);
            }
        }
        self.free.insert(offset, size);
    }
}

/// Slots that the array needs so that the tables of any configuration within `limits` fit, with a
/// quarter more against gaps and for many changes at once, and room to write the two largest tables
/// anew. Saturates at `u32::MAX`.
///
/// The size of a service's table depends by steps on the number of backends that the file gives it; the most that all
/// services can take together is found on the concave hull of these steps, for any mix of sizes: of all lines `a + b * backends` that lie on or above every step, the lowest
/// `a * limits.services + b * limits.backends`.
pub fn capacity_for(limits: &Limits) -> u32 {
    let (services, backends) = (i128::from(limits.services), i128::from(limits.backends));
    let points: Vec<(i128, i128)> = std::iter::once((0, 0))
        .chain(
            SIZE_CLASSES
                .iter()
                .map(|class| (i128::from(class.backends), i128::from(class.slots))),
        )
        .collect();
    let mut most = services * i128::from(MAX_SLOTS);
    for (index, &(x, y)) in points.iter().enumerate() {
        for &(to_x, to_y) in &points[index + 1..] {
            let (run, rise) = (to_x - x, to_y - y);
            if points
                .iter()
                .all(|&(n, slots)| (slots - y) * run <= rise * (n - x))
            {
                let product = (y * run - rise * x) * services + rise * backends;
                most = most.min((product + run - 1) / run);
            }
        }
    }
    u32::try_from(most + most / 4 + 2 * i128::from(MAX_SLOTS)).unwrap_or(u32::MAX)
}
