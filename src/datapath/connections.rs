//! Reading the connection tables: connections as plain values.
//!
//! Commands put them into words for people; [`super::sweep`] decides which are over. The tables are written
//! by packets meanwhile: a record counts only if its way's word says before and after that it is the same
//! connection's (see `bpf/set.h`).

use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::atomic::{fence, AtomicU64, Ordering};

use libbpf_rs::MapHandle;
use plain::Plain;

use super::abi::{
    self, address_of, conn_state, forward_mode, from_bytes, ipv4_of, way_word, xdplb_limit, Flow,
};
use super::array::{Array, Windows};
use super::{batch, Error};

/// Ways of a set.
const WAYS: usize = xdplb_limit::SET_WAYS.0 as usize;

/// A connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// Its client's packets.
    pub flow: Flow,
    /// The 5-tuple that they leave with. Where the backend answers directly, its own.
    pub becomes: Flow,
    /// Index into `backends`.
    pub backend: u32,
    /// `backend.generation` when it was chosen.
    pub generation: u32,
    /// Slot of the interface that the client's link has.
    pub client_slot: u16,
    /// `enum conn_state`
    pub state: u8,
    /// `enum conn_flag`
    pub flags: u8,
    /// Both directions have been seen, or a client that goes on where nothing is seen of the backend's.
    pub proven: bool,
    /// `enum forward_mode`
    pub forward: u8,
    /// Jiffies, the low 32 bits.
    pub last_seen: u32,
}

impl Entry {
    /// Whether its source is translated too.
    pub fn is_full_nat(&self) -> bool {
        u32::from(self.forward) == forward_mode::FORWARD_FULL_NAT.0
    }

    /// Whether the backend answers its client directly: nothing is seen of its packets.
    pub fn is_direct(&self) -> bool {
        u32::from(self.forward) >= forward_mode::FORWARD_L2.0
    }

    /// Whether it goes by a source that it has claimed, and its replies find it by that claim.
    pub fn has_claim(&self) -> bool {
        !self.is_direct() && self.becomes.source != self.flow.source
    }

    /// The replies' flow, unless it is direct.
    pub fn reply_flow(&self) -> Flow {
        self.becomes.reversed()
    }
}

/// The meaning of a way's word: `enum way_word`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Word(pub u64);

impl Word {
    /// `enum conn_state`
    pub fn state(self) -> u8 {
        self.bits(0, way_word::WAY_STATE_BITS.0) as u8
    }

    /// Whether there is a connection that may be read.
    pub fn is_in_use(self) -> bool {
        u32::from(self.state()) != conn_state::CONN_FREE.0
            && self.bits(way_word::WAY_BUSY.0, 1) == 0
    }

    /// Jiffies, the low 32 bits.
    pub fn last_seen(self) -> u32 {
        (self.0 >> way_word::WAY_AGE.0) as u32
    }

    /// The way's word when the connection has been taken out of it: another version of nothing.
    pub fn freed(self) -> Word {
        let version = Self::mask(way_word::WAY_VERSION, way_word::WAY_AGE);
        Word(self.0.wrapping_add(1 << way_word::WAY_VERSION.0) & version)
    }

    fn flags(self) -> u8 {
        (self.bits(way_word::WAY_FLAGS.0, 4) << 1) as u8
    }

    fn is_proven(self) -> bool {
        self.bits(way_word::WAY_PROVEN.0, 1) != 0
    }

    /// Whether the two are of the same connection, whatever its state and age.
    fn is_same_as(self, other: Word) -> bool {
        let identity = Self::mask(way_word::WAY_TAG, way_word::WAY_AGE);
        (self.0 ^ other.0) & (identity | 1 << way_word::WAY_BUSY.0) == 0
    }

    /// The bits from one on, up to another.
    fn mask(from: way_word, to: way_word) -> u64 {
        (1 << to.0) - (1 << from.0)
    }

    fn bits(self, from: u32, count: u32) -> u64 {
        self.0 >> from & ((1 << count) - 1)
    }
}

/// The types of a family's tables.
pub(super) trait Family {
    /// Key of `nat_ports`.
    type Flow: Plain + Copy + Default + Into<Flow>;
    /// A set.
    type Set: Plain + Copy + Default;
    /// A record in it.
    type Record: Plain + Copy + Default;
    /// Value of `conntrack`.
    type Place: Plain + Copy + Default;
    /// Its key.
    type Client: Plain + Copy + Default;
    /// 4 or 6.
    const NUMBER: u32;
    /// The names of `connections`, `conntrack`, `nat_ports`, `pending`.
    const MAPS: [&'static str; 4];
    /// The meaning of a record whose way has this word.
    fn entry(word: Word, record: &Self::Record) -> Entry;
    /// The parts of a place.
    fn place(place: &Self::Place) -> (Word, Self::Record);
    /// A flow as the datapath has it in one shape for both families.
    fn wide_flow(flow: Self::Flow) -> abi::flow6;
    /// Likewise a client.
    fn wide_client(client: Self::Client) -> abi::client6;
    /// What `bpf/set.h` hashes a client by, word by word.
    fn hashed(client: &Self::Client) -> impl Iterator<Item = u64>;
}

pub(super) struct V4;
pub(super) struct V6;

fn entry(
    word: Word,
    session: &abi::session,
    flow: Flow,
    source: (IpAddr, u16),
    backend: (IpAddr, u16),
) -> Entry {
    let mut entry = Entry {
        flow,
        becomes: flow,
        backend: session.backend,
        generation: session.generation,
        client_slot: session.hop.slot,
        state: word.state(),
        flags: word.flags(),
        proven: word.is_proven(),
        forward: session.forward,
        last_seen: word.last_seen(),
    };
    if !entry.is_direct() {
        entry.becomes.source = source;
        entry.becomes.destination = backend;
    }
    entry
}

impl Family for V4 {
    type Flow = abi::flow4;
    type Set = abi::set4;
    type Record = abi::record4;
    type Place = abi::place4;
    type Client = abi::client4;
    const NUMBER: u32 = 4;
    const MAPS: [&'static str; 4] = ["connections", "conntrack", "nat_ports", "pending"];
    fn entry(word: Word, record: &abi::record4) -> Entry {
        let source = (ipv4_of(record.source), u16::from_be(record.source_port));
        let backend = (ipv4_of(record.backend), u16::from_be(record.backend_port));
        entry(word, &record.session, record.flow.into(), source, backend)
    }
    fn place(place: &abi::place4) -> (Word, abi::record4) {
        (Word(place.way), place.record)
    }
    fn wide_flow(flow: abi::flow4) -> abi::flow6 {
        abi::flow6 {
            saddr: abi::words_of(ipv4_of(flow.saddr)),
            daddr: abi::words_of(ipv4_of(flow.daddr)),
            sport: flow.sport,
            dport: flow.dport,
            protocol: flow.protocol,
            pad: flow.pad,
        }
    }
    fn wide_client(client: abi::client4) -> abi::client6 {
        abi::client6 {
            address: abi::words_of(ipv4_of(client.address)),
            port: client.port,
            protocol: client.protocol,
            index: client.index,
            pad: 0,
        }
    }
    fn hashed(client: &abi::client4) -> impl Iterator<Item = u64> {
        let ends = u64::from(client.port) << 32 | u64::from(client.protocol) << 48;
        std::iter::once(u64::from(client.address) | ends)
    }
}

impl Family for V6 {
    type Flow = abi::flow6;
    type Set = abi::set6;
    type Record = abi::record6;
    type Place = abi::place6;
    type Client = abi::client6;
    const NUMBER: u32 = 6;
    const MAPS: [&'static str; 4] = ["connections6", "conntrack6", "nat_ports6", "pending6"];
    fn entry(word: Word, record: &abi::record6) -> Entry {
        let source = (address_of(record.source), u16::from_be(record.source_port));
        let backend = (
            address_of(record.backend),
            u16::from_be(record.backend_port),
        );
        entry(word, &record.session, record.flow.into(), source, backend)
    }
    fn place(place: &abi::place6) -> (Word, abi::record6) {
        (Word(place.way), place.record)
    }
    fn wide_flow(flow: abi::flow6) -> abi::flow6 {
        flow
    }
    fn wide_client(client: abi::client6) -> abi::client6 {
        client
    }
    fn hashed(client: &abi::client6) -> impl Iterator<Item = u64> {
        let [a, b, c, d] = client.address.map(u64::from);
        let ends = u64::from(client.port) | u64::from(client.protocol) << 16;
        [a | b << 32, c | d << 32, ends].into_iter()
    }
}

/// Where `bpf/set.h` has a client's connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Home {
    /// Index of the set.
    pub set: u32,
    /// The bit of its `spilled` for the key's index.
    pub bit: u32,
}

impl Home {
    /// Of a key of `conntrack`.
    pub fn of<F: Family>(client: &F::Client, index: u8, secret: u64, sets: u32) -> Home {
        let hash = F::hashed(client).fold(secret, |hash, word| avalanche(hash ^ word));
        let tag = (hash & ((1 << way_word::WAY_TAG_BITS.0) - 1)) as u32;
        let spread = (tag + u32::from(index) * 1021) & ((1 << way_word::WAY_TAG_BITS.0) - 1);
        Home {
            set: (((hash >> 32) * u64::from(sets)) >> 32) as u32,
            bit: (spread * xdplb_limit::SPILL_BITS.0) >> way_word::WAY_TAG_BITS.0,
        }
    }
}

/// The last step of XXH64, as `include/xxhash.h` has it.
fn avalanche(mut hash: u64) -> u64 {
    hash ^= hash >> 33;
    hash = hash.wrapping_mul(0xC2B2_AE3D_27D4_EB4F);
    hash ^= hash >> 29;
    hash = hash.wrapping_mul(0x1656_67B1_9E37_79F9);
    hash ^ hash >> 32
}

/// A set in memory.
pub(super) struct Set<'a> {
    words: &'a [AtomicU64],
}

impl<'a> Set<'a> {
    /// `words` are all of the set's.
    pub fn new(words: &'a [AtomicU64]) -> Self {
        Set { words }
    }

    /// The bits of what is in `conntrack`, and above them how often something has moved there.
    pub fn spilled(&self) -> &'a AtomicU64 {
        &self.words[0]
    }

    /// The connections in it, with the words of their ways.
    pub fn entries<F: Family>(self) -> impl Iterator<Item = (&'a AtomicU64, Word, Entry)> {
        (0..WAYS).filter_map(move |way| {
            let word = &self.words[1 + way];
            let (found, record) = self.read::<F>(way)?;
            Some((word, found, F::entry(found, &record)))
        })
    }

    /// A way's word and record, if it has one and nobody writes it.
    fn read<F: Family>(&self, way: usize) -> Option<(Word, F::Record)> {
        let size = size_of::<F::Record>() / size_of::<u64>();
        let from = 1 + WAYS + way * size;
        let before = Word(self.words[1 + way].load(Ordering::Acquire));
        if !before.is_in_use() {
            return None;
        }
        let mut record = F::Record::default();
        // SAFETY: `Record` is plain: all its bytes are initialised, and any values of them are valid.
        let bytes = unsafe { plain::as_mut_bytes(&mut record) };
        for (word, bytes) in self.words[from..from + size]
            .iter()
            .zip(bytes.chunks_exact_mut(size_of::<u64>()))
        {
            bytes.copy_from_slice(&word.load(Ordering::Relaxed).to_ne_bytes());
        }
        fence(Ordering::Acquire);
        let after = Word(self.words[1 + way].load(Ordering::Relaxed));
        after.is_same_as(before).then_some((after, record))
    }
}

/// Calls `visit` with every set of a family, and its index.
///
/// # Errors
/// When the kernel refuses.
pub(super) fn for_each_set<F: Family>(
    sets: &Windows<F::Set>,
    mut visit: impl FnMut(u32, Set<'_>),
) -> Result<(), Error> {
    sets.for_each(0..sets.length(), |first, window| {
        for (index, set) in (first..).zip(sets_in::<F>(window)) {
            visit(index, set);
        }
        Ok(())
    })
}

fn sets_in<F: Family>(window: &Array<F::Set>) -> impl Iterator<Item = Set<'_>> {
    let size = size_of::<F::Set>() / size_of::<u64>();
    window.words().chunks_exact(size).map(Set::new)
}

/// Calls `visit` with every connection of a `conntrack`, its key and its way's word. What comes or goes
/// meanwhile may be missed.
///
/// # Errors
/// When the kernel refuses.
pub(super) fn for_each_spilled<F: Family>(
    map: &MapHandle,
    mut visit: impl FnMut(F::Client, Word, Entry),
) -> Result<(), Error> {
    batch::for_each(map, |key, value| {
        if let Some((client, word, entry)) = spilled::<F>(key, value) {
            visit(client, word, entry);
        }
    })
}

/// An element of a `conntrack`: its key, and its way's word.
fn spilled<F: Family>(key: &[u8], value: &[u8]) -> Option<(F::Client, Word, Entry)> {
    let (word, record) = F::place(&from_bytes::<F::Place>(value)?);
    let client = from_bytes::<F::Client>(key).filter(|_| word.is_in_use())?;
    Some((client, word, F::entry(word, &record)))
}

/// Every connection of both families, by the maps' names.
///
/// # Errors
/// When the kernel refuses.
pub fn all(map: impl Fn(&str) -> Result<MapHandle, Error>) -> Result<Vec<Entry>, Error> {
    let settings: Array<abi::settings> = Array::map_read_only(&map("settings")?)?;
    let secret = settings.get(0).unwrap_or_default().nat_secret;
    let mut all = Vec::new();
    for_each(map, secret, |entry| {
        all.push(entry);
        Ok::<(), Error>(())
    })?;
    Ok(all)
}

/// Calls `visit` with every connection of both families, by the maps' names, until `visit` has an error. Each is
/// visited once; what comes or goes meanwhile may be missed. `secret` is that of the settings.
///
/// # Errors
/// When the kernel refuses, or that of `visit`.
pub(super) fn for_each<E: From<Error>>(
    map: impl Fn(&str) -> Result<MapHandle, Error>,
    secret: u64,
    mut visit: impl FnMut(Entry) -> Result<(), E>,
) -> Result<(), E> {
    for_each_of::<V4, E>(&map, secret, &mut visit)?;
    for_each_of::<V6, E>(&map, secret, &mut visit)
}

/// Those in sets first.
fn for_each_of<F: Family, E: From<Error>>(
    map: impl Fn(&str) -> Result<MapHandle, Error>,
    secret: u64,
    mut visit: impl FnMut(Entry) -> Result<(), E>,
) -> Result<(), E> {
    let [connections, conntrack, ..] = F::MAPS;
    let sets: Windows<F::Set> = Windows::read_only(&map(connections)?)?;
    let mut met = Met::new(sets.length());
    sets.for_each::<E>(0..sets.length(), |first, window| {
        for (index, set) in (first..).zip(sets_in::<F>(window)) {
            for (place, (_, _, entry)) in set.entries::<F>().enumerate() {
                met.enter(index, place, &entry.flow);
                visit(entry)?;
            }
        }
        Ok(())
    })?;
    batch::try_for_each(&map(conntrack)?, |key, value| {
        let Some((client, _, entry)) = spilled::<F>(key, value) else {
            return Ok(());
        };
        let home = Home::of::<F>(&client, F::wide_client(client).index, secret, sets.length());
        match met.has(home.set, &entry.flow) {
            true => Ok(()),
            false => visit(entry),
        }
    })
}

/// The connections that were met in each set: one may move to `conntrack` after that. Of each a hash of 32
/// bits is kept, a few MiB where whole flows would take many; that one is taken for another of the same set,
/// and left out, happens once in hundreds of millions.
struct Met {
    /// By set; 0: none.
    hashes: Vec<[u32; WAYS]>,
    hasher: RandomState,
}

impl Met {
    fn new(sets: u32) -> Self {
        Met {
            hashes: vec![[0; WAYS]; sets as usize],
            hasher: RandomState::new(),
        }
    }

    fn enter(&mut self, set: u32, place: usize, flow: &Flow) {
        let hash = self.hash(flow);
        let hashes = self.hashes.get_mut(set as usize);
        if let Some(entry) = hashes.and_then(|hashes| hashes.get_mut(place)) {
            *entry = hash;
        }
    }

    fn has(&self, set: u32, flow: &Flow) -> bool {
        let hashes = self.hashes.get(set as usize);
        hashes.is_some_and(|hashes| hashes.contains(&self.hash(flow)))
    }

    fn hash(&self, flow: &Flow) -> u32 {
        self.hasher.hash_one(flow) as u32 | 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_that_moves_to_conntrack_is_known_by_its_set() {
        let flow = |port| Flow {
            source: ([192, 0, 2, 1].into(), port),
            destination: ([203, 0, 113, 1].into(), 80),
            protocol: 6,
        };
        let mut met = Met::new(3);
        for port in 0..21 {
            met.enter(u32::from(port) / 7, usize::from(port) % 7, &flow(port));
        }
        for (port, set) in (0..21).flat_map(|port| [(port, 0), (port, 1), (port, 2)]) {
            assert_eq!(met.has(set, &flow(port)), set == u32::from(port) / 7);
        }
        assert!(!met.has(1, &flow(30)));
        assert!(!met.has(3, &flow(0)));
    }

    #[test]
    fn a_word_is_of_the_same_connection_while_tag_and_version_stay() {
        let word = Word(0x1234_5678_9abc_c002);
        let older = Word((word.0 - (3 << way_word::WAY_AGE.0)) | 5 << way_word::WAY_FLAGS.0);
        assert!(older.is_same_as(word));
        assert!(!word.freed().is_same_as(word));
        assert!(!Word(word.0 | 1 << way_word::WAY_BUSY.0).is_same_as(word));
        assert_eq!(word.freed().state(), 0);
        assert!(!word.freed().is_in_use());
    }
}
