//! Which interface has which slot.
//!
//! A connection's entry names the slot that its client's link has. A slot whose interface has left is
//! given to another only when no entry names it any more: replies would go out of the wrong link. The
//! sweep looks at every entry anyway and says which slots it has met.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::attempts::Refused;
use crate::config::INTERFACE_LIMIT;
use crate::datapath::Interface;

/// A CPU's own copy of an entry, and a packet on its way, may name a slot for this long after the
/// interface has left.
const SETTLED: Duration = Duration::from_secs(1);

/// The slots that sweeps have found in use, shared with the thread that sweeps.
#[derive(Debug, Clone, Default)]
pub struct SlotUse(Arc<Mutex<[Option<Seen>; 2]>>);

/// The slots that one sweep has found in use.
#[derive(Debug, Clone, Copy)]
struct Seen {
    start: Instant,
    /// A bit for each slot.
    slots: u64,
}

impl SlotUse {
    /// Notes a whole sweep that began at `start`, and the slots that entries named in it, a bit for each.
    pub fn note(&self, start: Instant, slots: u64) {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *seen = [seen[1], Some(Seen { start, slots })];
    }

    /// Whether no entry can name the slot of an interface that left then. Two sweeps have to agree:
    /// an entry that moves to another table meanwhile may escape one.
    fn is_free(&self, slot: usize, left: Instant) -> bool {
        let seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        seen.iter().all(|seen| {
            seen.is_some_and(|seen| seen.start >= left + SETTLED && seen.slots >> slot & 1 == 0)
        })
    }
}

/// One slot.
#[derive(Debug)]
enum Slot {
    /// Never given out, or no entry names it any more.
    Free,
    Taken(Held),
    /// The interface of this name has left; entries may name the slot.
    Left {
        name: String,
        since: Instant,
    },
}

/// An interface of the file.
#[derive(Debug)]
pub struct Held {
    /// As the datapath knows it; index 0: it is gone, or XDP could not be attached.
    pub interface: Interface,
    /// The last time that XDP could not be attached.
    pub refused: Option<Refused>,
}

/// By position.
#[derive(Debug)]
pub struct Slots {
    slots: Vec<Slot>,
    in_use: SlotUse,
}

impl Slots {
    /// All free.
    pub fn new(in_use: SlotUse) -> Self {
        Slots {
            slots: Vec::new(),
            in_use,
        }
    }

    /// Gives the interface a slot: the one that it had, if it has left lately.
    ///
    /// # Errors
    /// When there is none; how many are held for connections of interfaces that left.
    pub fn take(&mut self, interface: Interface) -> Result<u16, usize> {
        let own = self
            .slots
            .iter()
            .position(|slot| matches!(slot, Slot::Left { name, .. } if *name == interface.name));
        let free = || {
            let unused = self
                .slots
                .iter()
                .position(|slot| matches!(slot, Slot::Free));
            unused.or((self.slots.len() < INTERFACE_LIMIT).then_some(self.slots.len()))
        };
        let left = || {
            (0..)
                .zip(&self.slots)
                .find_map(|(position, slot)| match slot {
                    Slot::Left { since, .. } => {
                        self.in_use.is_free(position, *since).then_some(position)
                    }
                    _ => None,
                })
        };
        let position = own
            .or_else(free)
            .or_else(left)
            .ok_or_else(|| self.held_for_connections())?;
        if position == self.slots.len() {
            self.slots.push(Slot::Free);
        }
        self.slots[position] = Slot::Taken(Held {
            interface,
            refused: None,
        });
        Ok(position as u16)
    }

    /// Takes the slot away from its interface. No other gets it while an entry may name it.
    pub fn leave(&mut self, slot: u16, now: Instant) {
        let Some(slot) = self.slots.get_mut(usize::from(slot)) else {
            return;
        };
        if let Slot::Taken(held) = slot {
            let name = std::mem::take(&mut held.interface.name);
            *slot = Slot::Left { name, since: now };
        }
    }

    /// Those that are taken, by slot.
    pub fn taken(&self) -> impl Iterator<Item = (u16, &Held)> {
        (0..)
            .zip(&self.slots)
            .filter_map(|(position, slot)| match slot {
                Slot::Taken(held) => Some((position, held)),
                _ => None,
            })
    }

    /// Likewise, to change.
    pub fn taken_mut(&mut self) -> impl Iterator<Item = (u16, &mut Held)> {
        (0..)
            .zip(&mut self.slots)
            .filter_map(|(position, slot)| match slot {
                Slot::Taken(held) => Some((position, held)),
                _ => None,
            })
    }

    fn held_for_connections(&self) -> usize {
        let left = |slot: &&Slot| matches!(slot, Slot::Left { .. });
        self.slots.iter().filter(left).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interface(name: &str) -> Interface {
        Interface {
            ifindex: 1,
            name: name.into(),
            mac: Default::default(),
            mtu: 1500,
            ipv4: None,
            ipv6: None,
        }
    }

    fn take(slots: &mut Slots, name: &str) -> Result<u16, usize> {
        slots.take(interface(name))
    }

    #[test]
    fn a_slot_that_entries_may_name_is_given_to_no_other() {
        let mut slots = Slots::new(SlotUse::default());
        assert_eq!(take(&mut slots, "eth0"), Ok(0));
        assert_eq!(take(&mut slots, "eth1"), Ok(1));
        slots.leave(0, Instant::now());
        assert_eq!(take(&mut slots, "eth2"), Ok(2));
        assert_eq!(take(&mut slots, "eth3"), Ok(3));
        let names: Vec<&str> = slots
            .taken()
            .map(|(_, held)| held.interface.name.as_str())
            .collect();
        assert_eq!(names, ["eth1", "eth2", "eth3"]);
    }

    #[test]
    fn an_interface_that_comes_back_gets_the_slot_that_its_connections_name() {
        let mut slots = Slots::new(SlotUse::default());
        for (slot, name) in (0..).zip(["eth0", "eth1", "eth2"]) {
            assert_eq!(take(&mut slots, name), Ok(slot));
        }
        slots.leave(1, Instant::now());
        slots.leave(2, Instant::now());
        assert_eq!(take(&mut slots, "eth2"), Ok(2));
        assert_eq!(take(&mut slots, "eth1"), Ok(1));
    }

    #[test]
    fn when_all_are_taken_or_named_there_is_none_until_sweeps_find_one_that_is_not() {
        let seen = SlotUse::default();
        let mut slots = Slots::new(seen.clone());
        for n in 0..INTERFACE_LIMIT {
            assert_eq!(take(&mut slots, &format!("eth{n}")), Ok(n as u16));
        }
        assert_eq!(take(&mut slots, "new"), Err(0));
        let left = Instant::now();
        slots.leave(5, left);
        slots.leave(63, left);
        assert_eq!(take(&mut slots, "new"), Err(2));

        let all_but = |free: u32| !(1 << free);
        // A sweep that began too early, and one that stands alone.
        seen.note(left, all_but(63));
        seen.note(left + SETTLED, all_but(63));
        assert_eq!(take(&mut slots, "new"), Err(2));
        // Two that do not agree.
        seen.note(left + SETTLED * 2, all_but(5));
        assert_eq!(take(&mut slots, "new"), Err(2));
        seen.note(left + SETTLED * 3, all_but(5));
        assert_eq!(take(&mut slots, "new"), Ok(5));
        assert_eq!(take(&mut slots, "newer"), Err(1));
    }
}
