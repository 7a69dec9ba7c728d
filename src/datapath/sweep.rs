//! The background sweep: deletes entries of the connection tables that no packet will look up again.
//!
//! The datapath ends an entry when a packet finds it too old; entries that no packet finds are swept here,
//! and with them the full-nat ports that no connection holds any more. Reading the tables takes a while, in
//! which connections go on: entries that are found here are candidates, and the datapath's own programs of
//! `bpf/sweep.h` look once more before they delete one.

use std::collections::HashSet;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use libbpf_rs::{MapCore, MapFlags, MapHandle, ProgramMut};
use log::debug;

use super::abi::{self, claim_state, from_bytes, settings, xdplb_limit, Flow};
use super::clock::Clock;
use super::connections::{self, Entry, Family, V4, V6};
use super::ends::Ends;
use super::{batch, syscall, Datapath, Error};

/// Handles to the tables, usable from another thread.
pub struct Sweeper {
    settings: MapHandle,
    epoch: MapHandle,
    tables: [FamilyTables; 2],
    remove_entry: OwnedFd,
    remove_claim: OwnedFd,
    ends: Ends,
}

/// The tables of one family.
struct FamilyTables {
    established: MapHandle,
    opening: MapHandle,
    claims: MapHandle,
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
    /// Connections whose entries the LRU has given to others, and which were counted as ended now.
    pub evicted: u64,
    /// Connections that were counted as ended, and are there again.
    pub returned: u64,
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
        let program = |program: &ProgramMut<'_>| {
            let duplicate = program.as_fd().try_clone_to_owned();
            duplicate.map_err(|source| Error::Program {
                program: program.name().to_string_lossy().into_owned(),
                source,
            })
        };
        Ok(Sweeper {
            settings: map("settings")?,
            epoch: map("epoch")?,
            tables: [
                FamilyTables {
                    established: map("conntrack")?,
                    opening: map("opening")?,
                    claims: map("nat_ports")?,
                },
                FamilyTables {
                    established: map("conntrack6")?,
                    opening: map("opening6")?,
                    claims: map("nat_ports6")?,
                },
            ],
            remove_entry: program(&self.skeleton.progs.remove_entry)?,
            remove_claim: program(&self.skeleton.progs.remove_claim)?,
            ends: Ends::new(map)?,
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
            sweeper: self,
            settings,
            clock,
            still_bound,
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

    /// Takes out an entry, unless it has changed since it was looked at; see `bpf/sweep.h`.
    ///
    /// # Errors
    /// When the program does not run.
    pub fn remove_entry(&self, removal: &mut abi::entry_removal) -> Result<(), Error> {
        syscall::run(&self.remove_entry, removal).map_err(|source| refused("remove_entry", source))
    }

    /// Likewise a claim.
    ///
    /// # Errors
    /// When the program does not run.
    pub fn remove_claim(&self, removal: &mut abi::claim_removal) -> Result<(), Error> {
        syscall::run(&self.remove_claim, removal).map_err(|source| refused("remove_claim", source))
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

/// One sweep.
struct Pass<'a> {
    sweeper: &'a Sweeper,
    settings: settings,
    clock: Clock,
    still_bound: &'a StillBound<'a>,
}

/// An entry that is to go.
struct Candidate {
    established: bool,
    key: abi::flow6,
    entry: Entry,
}

impl Pass<'_> {
    fn family<F: Family>(&self, tables: &FamilyTables, swept: &mut Swept) -> Result<(), Error> {
        let start = self.clock.jiffies_now();
        let mut idle: Vec<Candidate> = Vec::new();
        let mut unbound: Vec<Candidate> = Vec::new();
        // The keys of the backend's direction of full-nat connections.
        let mut held: HashSet<Flow> = HashSet::new();
        let mut census = self.sweeper.ends.census(F::NUMBER)?;
        // In the order of find_connection: the datapath moves an entry from the one to the other meanwhile,
        // and has it in both before it takes it out of `opening`.
        for (established, map) in [(false, &tables.opening), (true, &tables.established)] {
            connections::for_each::<F>(map, |key, entry| {
                swept.entries += 1;
                census.meet(&entry, established);
                // Beyond 63: not known, NO_SLOT.
                let slot = 1_u64.checked_shl(entry.client_slot.into());
                swept.interface_slots |= slot.unwrap_or_default();
                let candidate = |key| Candidate {
                    established,
                    key: F::wide(key),
                    entry,
                };
                if !(self.still_bound)(&entry.client_flow(), entry.backend) {
                    unbound.push(candidate(key));
                } else if self.too_old(entry.state, entry.last_seen) {
                    idle.push(candidate(key));
                } else if entry.is_full_nat() {
                    held.insert(entry.reply_flow());
                }
            })?;
        }
        let difference = census.settle()?;
        swept.evicted += difference.evicted;
        swept.returned += difference.returned;
        for (candidates, unbound, count) in [
            (idle, false, &mut swept.expired),
            (unbound, true, &mut swept.unbound),
        ] {
            for candidate in candidates {
                let entry = &candidate.entry;
                // Another plan may be in force by now.
                if unbound && (self.still_bound)(&entry.client_flow(), entry.backend) {
                    continue;
                }
                let removed = self.remove_entry::<F>(&candidate, unbound)?;
                if let Some(removed) = removed {
                    self.sweeper.ends.count(&removed);
                    *count += 1;
                } else if candidate.entry.is_full_nat() {
                    held.insert(candidate.entry.reply_flow());
                }
            }
        }
        self.release_claims::<F>(&tables.claims, start, &held, swept)
    }

    fn too_old(&self, state: u8, last_seen: u32) -> bool {
        let timeout = self.settings.timeout[usize::from(state) % self.settings.timeout.len()];
        self.clock.now().wrapping_sub(last_seen).cast_signed() > timeout.cast_signed()
    }

    /// Deletes an entry if it is still too old, and its other direction as well: an idle direction lives on
    /// as long as the other is in use. One that is `unbound`, if it is still of that backend. Gives back
    /// the entry as it was.
    fn remove_entry<F: Family>(
        &self,
        candidate: &Candidate,
        unbound: bool,
    ) -> Result<Option<abi::conn>, Error> {
        let mut removal = abi::entry_removal {
            flow: candidate.key,
            conn: abi::conn {
                backend: candidate.entry.backend,
                generation: candidate.entry.generation,
                ..Default::default()
            },
            family: F::NUMBER,
            established: candidate.established.into(),
            unbound: unbound.into(),
            removed: 0,
        };
        self.sweeper.remove_entry(&mut removal)?;
        Ok((removal.removed != 0).then_some(removal.conn))
    }

    /// Releases ports that no connection holds, and after a close no TIME_WAIT either.
    fn release_claims<F: Family>(
        &self,
        claims: &MapHandle,
        start: u64,
        held: &HashSet<Flow>,
        swept: &mut Swept,
    ) -> Result<(), Error> {
        let mut free = Vec::new();
        batch::for_each(claims, |key, value| {
            let (Some(key), Some(status)) = (from_bytes::<F::Key>(key), status_of(value)) else {
                return;
            };
            if self.is_over(status, start) && !held.contains(&key.into()) {
                free.push((key, status));
            }
        })?;
        for (key, status) in free {
            let mut removal = abi::claim_removal {
                reply: F::wide(key),
                status,
                family: F::NUMBER,
                removed: 0,
            };
            self.sweeper.remove_claim(&mut removal)?;
            swept.ports += u64::from(removal.removed);
        }
        Ok(())
    }

    /// Whether a claim may go if there is no entry of its connection. The datapath claims a port before it
    /// stores the connection: claims of the last seconds before `start` are too young to judge.
    fn is_over(&self, status: u64, start: u64) -> bool {
        let since = status >> xdplb_limit::CLAIM_STATE_BITS.0;
        let state = claim_state((status as u32) & ((1 << xdplb_limit::CLAIM_STATE_BITS.0) - 1));
        let seconds = match state {
            claim_state::CLAIM_CLOSED => u64::from(xdplb_limit::PORT_HOLD_SECONDS.0),
            _ => 2,
        };
        start.saturating_sub(since) > seconds * u64::from(self.clock.hz)
    }
}

fn refused(program: &str, source: io::Error) -> Error {
    Error::Program {
        program: program.into(),
        source,
    }
}

/// The word of a claim of either family.
fn status_of(value: &[u8]) -> Option<u64> {
    from_bytes::<abi::claim4>(value)
        .map(|claim| claim.status)
        .or_else(|| from_bytes::<abi::claim6>(value).map(|claim| claim.status))
}
