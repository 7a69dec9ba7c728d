//! The background sweep: deletes entries of the connection tables that no packet will look up again.
//!
//! The datapath ends an entry when a packet finds it too old; entries that no packet finds are swept here,
//! and with them the full-nat ports that no connection holds any more.

use std::collections::HashSet;

use libbpf_rs::{MapCore, MapFlags, MapHandle};
use log::debug;
use plain::Plain;

use super::abi::{self, conn_state, from_bytes, settings, Flow};
use super::array::Array;
use super::clock::Clock;
use super::connections::{self, Entry, Family, V4, V6};
use super::{batch, Datapath, Error};

/// Handles to the tables, usable from another thread.
pub struct Sweeper {
    settings: MapHandle,
    epoch: MapHandle,
    tables: [(MapHandle, MapHandle, MapHandle); 2],
    ends: Ends,
}

/// The counter of connections that have ended without the datapath seeing it.
struct Ends {
    backends: Array<abi::backend>,
    expired: Array<abi::expiries>,
}

/// The result of a sweep.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Swept {
    /// Entries looked at; a connection has two, with direct return one.
    pub entries: u64,
    /// Entries taken out because they were too old.
    pub expired: u64,
    /// Entries taken out because their service no longer has the port.
    pub unbound: u64,
    /// Full-nat ports that were released.
    pub ports: u64,
    /// Slots of interfaces that entries name, a bit for each.
    pub interface_slots: u64,
}

/// Whether a connection, by its client's flow and its backend's id, may stay.
pub type StillBound<'a> = dyn Fn(&Flow, u32) -> bool + 'a;

impl Datapath {
    /// Handles for sweeping this datapath's tables.
    ///
    /// # Errors
    /// When the kernel refuses to duplicate one.
    pub fn sweeper(&self) -> Result<Sweeper, Error> {
        let map = |name: &str| super::handle(&self.skeleton, name);
        Ok(Sweeper {
            settings: map("settings")?,
            epoch: map("epoch")?,
            tables: [
                (map("conntrack")?, map("opening")?, map("nat_ports")?),
                (map("conntrack6")?, map("opening6")?, map("nat_ports6")?),
            ],
            ends: Ends {
                backends: Array::map_read_only(&map("backends")?)?,
                expired: Array::map(&map("expired")?)?,
            },
        })
    }
}

impl Sweeper {
    /// Deletes entries that are too old, and those that `still_bound` rejects.
    ///
    /// # Errors
    /// When a table cannot be read; entries deleted until then stay deleted.
    pub fn sweep(&self, still_bound: &StillBound<'_>) -> Result<Swept, Error> {
        let settings = self.settings()?;
        let Some(clock) = Clock::from_settings(&settings) else {
            return Ok(Swept::default());
        };
        let pass = Pass {
            settings,
            clock,
            still_bound,
            ends: &self.ends,
        };
        let mut swept = Swept::default();
        let [v4, v6] = &self.tables;
        pass.family::<V4>(v4, &mut swept)?;
        pass.family::<V6>(v6, &mut swept)?;
        if swept.unbound > 0 {
            self.raise_epoch();
        }
        debug!("sweep: {swept:?}");
        Ok(swept)
    }

    /// Makes the CPUs forget their copies of entries that are gone. Should that fail, the copies expire by
    /// themselves a moment later.
    fn raise_epoch(&self) {
        let key = 0_u32.to_ne_bytes();
        let live = self.epoch.lookup(&key, MapFlags::ANY).ok().flatten();
        if let Some(mut epoch) = live.and_then(|bytes| from_bytes::<abi::epoch>(&bytes)) {
            epoch.number = epoch.number.wrapping_add(1);
            let _ = self
                .epoch
                .update(&key, abi::bytes_of(&epoch), MapFlags::ANY);
        }
    }

    fn settings(&self) -> Result<settings, Error> {
        let layout = || Error::Layout {
            map: "settings".into(),
        };
        let bytes = self
            .settings
            .lookup(&0_u32.to_ne_bytes(), MapFlags::ANY)
            .map_err(|_| layout())?;
        bytes
            .and_then(|bytes| from_bytes(&bytes))
            .ok_or_else(layout)
    }
}

struct Pass<'a> {
    settings: settings,
    clock: Clock,
    still_bound: &'a StillBound<'a>,
    ends: &'a Ends,
}

impl Ends {
    /// Counts the end of the connection that the entry was of: once, with its client's direction, and not
    /// again if the datapath has seen it end. One whose backend is gone has been counted with that.
    fn count(&self, entry: &Entry) {
        let closed = matches!(
            conn_state(entry.state.into()),
            conn_state::CONN_CLOSING | conn_state::CONN_CLOSED
        );
        let backend = self.backends.get(entry.backend);
        let there = backend
            .is_some_and(|backend| backend.forward != 0 && backend.incarnation == entry.generation);
        if !entry.is_reply() && !closed && there {
            self.expired.increment(entry.backend);
        }
    }
}

impl Pass<'_> {
    fn family<F: Family>(
        &self,
        (established, opening, claims): &(MapHandle, MapHandle, MapHandle),
        swept: &mut Swept,
    ) -> Result<(), Error> {
        let start = self.clock.now();
        // Keys of the directions whose other one is alive: an idle direction outlives its timeout as long
        // as the other is in use.
        let mut idle: Vec<(bool, Vec<u8>, Entry)> = Vec::new();
        let mut unbound: Vec<(bool, Vec<u8>, Entry)> = Vec::new();
        let mut in_use: HashSet<Flow> = HashSet::new();
        let mut held: HashSet<Flow> = HashSet::new();
        for (is_established, map) in [(true, established), (false, opening)] {
            connections::for_each::<F>(map, |key, entry| {
                swept.entries += 1;
                // Beyond 63: not known, NO_SLOT.
                let slot = 1_u64.checked_shl(entry.client_slot.into());
                swept.interface_slots |= slot.unwrap_or_default();
                if !(self.still_bound)(&entry.client_flow(), entry.backend) {
                    unbound.push((is_established, key.to_vec(), entry));
                } else if self.too_old(entry.state, entry.last_seen) {
                    idle.push((is_established, key.to_vec(), entry));
                } else if entry.is_full_nat() {
                    held.insert(entry.reply_flow());
                }
            })?;
        }
        // Only the idle ones' other directions are of interest.
        let wanted: HashSet<Flow> = idle
            .iter()
            .filter_map(|(_, _, entry)| entry.other())
            .collect();
        if !wanted.is_empty() {
            for map in [established, opening] {
                connections::for_each::<F>(map, |_, entry| {
                    if wanted.contains(&entry.flow) && !self.too_old(entry.state, entry.last_seen) {
                        in_use.insert(entry.flow);
                    }
                })?;
            }
        }
        for (is_established, key, entry) in idle {
            let map = if is_established { established } else { opening };
            if entry.other().is_some_and(|other| in_use.contains(&other)) {
                if entry.is_full_nat() {
                    held.insert(entry.reply_flow());
                }
            } else if let Some(removed) = self.remove_if_old::<F>(map, &key) {
                self.ends.count(&removed);
                swept.expired += 1;
            } else if entry.is_full_nat() {
                held.insert(entry.reply_flow());
            }
        }
        for (is_established, key, entry) in unbound {
            let map = if is_established { established } else { opening };
            if map.delete(&key).is_ok() {
                self.ends.count(&entry);
                swept.unbound += 1;
            }
        }
        self.release_claims::<F>(claims, start, &held, swept)
    }

    fn too_old(&self, state: u8, last_seen: u32) -> bool {
        let timeout = self.settings.timeout[usize::from(state) % self.settings.timeout.len()];
        self.clock.now().wrapping_sub(last_seen).cast_signed() > timeout.cast_signed()
    }

    /// Deletes an entry that was too old when it was read, and gives it back; leaves it if a packet has
    /// renewed it since.
    fn remove_if_old<F: Family>(&self, map: &MapHandle, key: &[u8]) -> Option<Entry> {
        let value = map.lookup_and_delete(key).ok()??;
        let entry = F::entry(from_bytes(key)?, from_bytes(&value)?);
        if self.too_old(entry.state, entry.last_seen) {
            return Some(entry);
        }
        // Refused if yet another packet has made it anew, which is as well.
        let _ = map.update(key, &value, MapFlags::NO_EXIST);
        None
    }

    /// Releases ports that no connection holds. The datapath claims a port before it stores the
    /// connection: claims of the last seconds are too young to judge.
    fn release_claims<F: Family>(
        &self,
        claims: &MapHandle,
        start: u32,
        held: &HashSet<Flow>,
        swept: &mut Swept,
    ) -> Result<(), Error> {
        let young = start.wrapping_sub(2 * self.clock.hz);
        let mut free = Vec::new();
        batch::for_each(claims, |key, value| {
            let flow = from_bytes::<F::Key>(key).map(Into::into);
            let since = since_of(value);
            let old = since.is_some_and(|since| since.wrapping_sub(young).cast_signed() < 0);
            if old && flow.is_some_and(|flow| !held.contains(&flow)) {
                free.push(key.to_vec());
            }
        })?;
        for key in free {
            swept.ports += u64::from(claims.delete(&key).is_ok());
        }
        Ok(())
    }
}

/// When a claim of either family was made; it ends with that field.
fn since_of(value: &[u8]) -> Option<u32> {
    fn at<T: Plain + Copy + Default>(value: &[u8], since: fn(T) -> u32) -> Option<u32> {
        from_bytes::<T>(value).map(since)
    }
    at::<abi::claim4>(value, |claim| claim.since)
        .or_else(|| at::<abi::claim6>(value, |claim| claim.since))
}
