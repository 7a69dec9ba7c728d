//! The background sweep: takes out connections that no packet will look up again.
//!
//! The datapath ends a connection when a packet finds it too old; those that no packet finds are swept here,
//! and with them the full-nat ports that no connection holds any more. Packets go on meanwhile: a connection
//! in a set is taken out by compare-and-swap on its way's word, so that it goes as it was judged or stays.
//! What is in a kernel's map goes by the programs of `bpf/sweep.h`, which do the same.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::Ordering;

use libbpf_rs::{MapCore, MapFlags, MapHandle, ProgramMut};
use log::debug;

use super::abi::{self, claim_state, from_bytes, settings, xdplb_limit, Flow};
use super::array::{Array, Windows};
use super::clock::Clock;
use super::connections::{self, Entry, Family, Home, Word, V4, V6};
use super::ends::{Census, Ends};
use super::{batch, syscall, Datapath, Error};

/// Handles to the tables, usable from another thread.
pub struct Sweeper {
    settings: MapHandle,
    epoch: MapHandle,
    tables: [FamilyTables; 2],
    remove_spilled: OwnedFd,
    remove_claim: OwnedFd,
    ends: Ends,
}

/// The tables of one family.
struct FamilyTables {
    connections: MapHandle,
    conntrack: MapHandle,
    claims: MapHandle,
    pending: MapHandle,
}

/// The result of a sweep.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Swept {
    /// Connections looked at.
    pub entries: u64,
    /// Those taken out because they were too old.
    pub expired: u64,
    /// Those taken out because their service no longer has the port.
    pub unbound: u64,
    /// Connections that `conntrack` has lost to others, and which were counted as ended now.
    pub evicted: u64,
    /// Connections that were counted as ended, and are there again.
    pub returned: u64,
    /// Full-nat ports that were released.
    pub ports: u64,
    /// Slots of interfaces that connections name, a bit for each.
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
        let tables = |names: [&str; 4]| {
            Ok(FamilyTables {
                connections: map(names[0])?,
                conntrack: map(names[1])?,
                claims: map(names[2])?,
                pending: map(names[3])?,
            })
        };
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
            tables: [tables(V4::MAPS)?, tables(V6::MAPS)?],
            remove_spilled: program(&self.skeleton.progs.remove_spilled)?,
            remove_claim: program(&self.skeleton.progs.remove_claim)?,
            ends: Ends::new(map)?,
        })
    }
}

impl Sweeper {
    /// Takes out connections that are too old, and those that `still_bound` rejects.
    ///
    /// # Errors
    /// When a table cannot be read; what was taken out until then stays so.
    pub fn sweep(&self, still_bound: &StillBound<'_>) -> Result<Swept, Error> {
        let settings = self.settings()?;
        let Some(clock) = Clock::from_settings(&settings) else {
            return Ok(Swept::default());
        };
        let mut swept = Swept::default();
        let [v4, v6] = &self.tables;
        Pass::new(self, settings, clock, still_bound).family::<V4>(v4, &mut swept)?;
        Pass::new(self, settings, clock, still_bound).family::<V6>(v6, &mut swept)?;
        if swept.unbound > 0 {
            self.raise_epoch();
        }
        debug!("sweep: {swept:?}");
        Ok(swept)
    }

    /// Takes a connection out of `conntrack`, unless it has changed since it was looked at; see
    /// `bpf/sweep.h`.
    ///
    /// # Errors
    /// When the program does not run.
    pub fn remove_spilled(&self, removal: &mut abi::spilled_removal) -> Result<(), Error> {
        syscall::run(&self.remove_spilled, removal)
            .map_err(|source| refused("remove_spilled", source))
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

/// One sweep of one family's tables.
struct Pass<'a> {
    sweeper: &'a Sweeper,
    settings: settings,
    clock: Clock,
    still_bound: &'a StillBound<'a>,
    /// Hashes of the replies' flows of connections that hold a claim. Two may have the same: a claim then
    /// stays until the next sweep, whose hashes are others.
    held: HashSet<u64>,
    hasher: RandomState,
}

/// Whether a connection goes, and why.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    Stays,
    Idle,
    Unbound,
}

impl<'a> Pass<'a> {
    fn new(
        sweeper: &'a Sweeper,
        settings: settings,
        clock: Clock,
        still_bound: &'a StillBound<'a>,
    ) -> Self {
        Pass {
            sweeper,
            settings,
            clock,
            still_bound,
            held: HashSet::new(),
            hasher: RandomState::new(),
        }
    }

    fn family<F: Family>(&mut self, tables: &FamilyTables, swept: &mut Swept) -> Result<(), Error> {
        let start = self.clock.jiffies_now();
        let mut census = self.sweeper.ends.census(F::NUMBER)?;
        let sets: Windows<F::Set> = Windows::new(&tables.connections)?;
        // What sets say of conntrack, before that is read.
        let mut spilled: HashMap<u32, Spilled> = HashMap::new();
        let mut gone: Vec<Entry> = Vec::new();
        connections::for_each_set::<F>(&sets, |index, set| {
            let said = set.spilled().load(Ordering::Acquire);
            if said & SPILL_MASK != 0 {
                spilled.insert(index, Spilled { said, there: 0 });
            }
            for (way, word, entry) in set.entries::<F>() {
                let fate = self.judge(&entry, swept, &mut census);
                if fate == Fate::Stays {
                    continue;
                }
                let freed = word.freed().0;
                let taken_out =
                    way.compare_exchange(word.0, freed, Ordering::AcqRel, Ordering::Relaxed);
                if taken_out.is_ok() {
                    fate.count(swept);
                    gone.push(entry);
                } else {
                    self.hold(&entry);
                }
            }
        })?;
        self.sweep_spilled::<F>(
            tables,
            sets.length(),
            &mut spilled,
            &mut census,
            &mut gone,
            swept,
        )?;
        spilled.retain(|_, spilled| spilled.said & SPILL_MASK != spilled.there);
        if !spilled.is_empty() {
            connections::for_each_set::<F>(&sets, |index, set| {
                if let Some(Spilled { said, there }) = spilled.get(&index) {
                    let next = said & !SPILL_MASK | there;
                    let word = set.spilled();
                    // Not if anything has moved meanwhile, which counts above the bits.
                    let _ = word.compare_exchange(*said, next, Ordering::AcqRel, Ordering::Relaxed);
                }
            })?;
        }
        let difference = census.settle()?;
        swept.evicted += difference.evicted;
        swept.returned += difference.returned;
        for entry in gone {
            self.sweeper.ends.count(&entry);
        }
        swept.interface_slots |= self.pending_slots::<F>(tables)?;
        self.release_claims::<F>(&tables.claims, start, swept)
    }

    /// Likewise those in conntrack, and which bits of the sets lead there.
    fn sweep_spilled<F: Family>(
        &mut self,
        tables: &FamilyTables,
        sets: u32,
        spilled: &mut HashMap<u32, Spilled>,
        census: &mut Census<'_>,
        gone: &mut Vec<Entry>,
        swept: &mut Swept,
    ) -> Result<(), Error> {
        let mut candidates: Vec<(F::Client, Word, Entry, Fate)> = Vec::new();
        connections::for_each_spilled::<F>(&tables.conntrack, |client, word, entry| {
            let fate = self.judge(&entry, swept, census);
            if fate != Fate::Stays {
                candidates.push((client, word, entry, fate));
                return;
            }
            let index = F::wide_client(client).index;
            let home = Home::of::<F>(&client, index, self.settings.nat_secret, sets);
            if let Some(spilled) = spilled.get_mut(&home.set) {
                spilled.there |= 1 << home.bit;
            }
        })?;
        for (client, word, entry, fate) in candidates {
            let wide = F::wide_client(client);
            let mut removal = abi::spilled_removal {
                client: wide,
                way: word.0,
                family: F::NUMBER,
                removed: 0,
            };
            self.sweeper.remove_spilled(&mut removal)?;
            if removal.removed != 0 {
                fate.count(swept);
                gone.push(entry);
                continue;
            }
            self.hold(&entry);
            let home = Home::of::<F>(&client, wide.index, self.settings.nat_secret, sets);
            if let Some(spilled) = spilled.get_mut(&home.set) {
                spilled.there |= 1 << home.bit;
            }
        }
        Ok(())
    }

    /// Counts a connection, and whether it is to go.
    fn judge(&mut self, entry: &Entry, swept: &mut Swept, census: &mut Census<'_>) -> Fate {
        swept.entries += 1;
        census.meet(entry);
        // Beyond 63: not known, NO_SLOT.
        let slot = 1_u64.checked_shl(entry.client_slot.into());
        swept.interface_slots |= slot.unwrap_or_default();
        if !(self.still_bound)(&entry.flow, entry.backend) {
            Fate::Unbound
        } else if self.too_old(entry.state, entry.last_seen) {
            Fate::Idle
        } else {
            self.hold(entry);
            Fate::Stays
        }
    }

    /// The connection stays, and with it its claim.
    fn hold(&mut self, entry: &Entry) {
        if entry.has_claim() {
            self.held.insert(self.hasher.hash_one(entry.reply_flow()));
        }
    }

    fn too_old(&self, state: u8, last_seen: u32) -> bool {
        let timeout = self.settings.timeout[usize::from(state) % self.settings.timeout.len()];
        self.clock.now().wrapping_sub(last_seen).cast_signed() > timeout.cast_signed()
    }

    /// The slots of interfaces that flows without a place may go back by.
    fn pending_slots<F: Family>(&self, tables: &FamilyTables) -> Result<u64, Error> {
        let pending: Array<F::Place> = Array::map_read_only(&tables.pending)?;
        let places = (0..pending.length()).filter_map(|index| pending.get(index));
        Ok(places
            .map(|place| F::place(&place))
            .filter(|(word, _)| word.is_in_use() && !self.too_old(word.state(), word.last_seen()))
            .map(|(word, record)| F::entry(word, &record).client_slot)
            .filter_map(|slot| 1_u64.checked_shl(slot.into()))
            .fold(0, |slots, slot| slots | slot))
    }

    /// Releases ports that no connection holds, and after a close no TIME_WAIT either.
    fn release_claims<F: Family>(
        &self,
        claims: &MapHandle,
        start: u64,
        swept: &mut Swept,
    ) -> Result<(), Error> {
        let mut free = Vec::new();
        batch::for_each(claims, |key, value| {
            let (Some(key), Some(status)) = (from_bytes::<F::Flow>(key), status_of(value)) else {
                return;
            };
            let reply: Flow = key.into();
            if self.is_over(status, start) && !self.held.contains(&self.hasher.hash_one(reply)) {
                free.push((key, status));
            }
        })?;
        for (key, status) in free {
            let mut removal = abi::claim_removal {
                reply: F::wide_flow(key),
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

/// The bits of `set4.spilled` that say what is in `conntrack`.
const SPILL_MASK: u64 = (1 << xdplb_limit::SPILL_BITS.0) - 1;

/// What a set said of `conntrack` before that was read, and the bits of what was there.
struct Spilled {
    said: u64,
    there: u64,
}

impl Fate {
    fn count(self, swept: &mut Swept) {
        match self {
            Fate::Stays => {}
            Fate::Idle => swept.expired += 1,
            Fate::Unbound => swept.unbound += 1,
        }
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
