//! The XDP program that decapsulates: load, fill, attach, count.
//!
//! The only part of `decap` that knows libbpf. The layouts are in `include/decap.h`.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::mem::MaybeUninit;
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use libbpf_rs::skel::{OpenSkel, Skel, SkelBuilder};
use libbpf_rs::{MapCore, MapFlags, MapHandle, ProgramMut};

use super::reasons::REASONS;
use crate::config::XdpMode;
use crate::datapath::abi::words_of;
use crate::datapath::pins::{Contents, PinDir};
use crate::datapath::reasons::Reason;
use crate::datapath::{link, load, Error, Mode};
use crate::neighbours::Link;
use crate::prefix::Prefix;

#[allow(
    missing_docs,
    non_camel_case_types,
    dead_code,
    clippy::all,
    clippy::undocumented_unsafe_blocks
)]
mod skeleton {
    include!(concat!(env!("OUT_DIR"), "/xdp_decap.skel.rs"));
}

use skeleton::types::{decap_address, decap_counter, decap_limit, decap_prefix, decap_reason};
use skeleton::{XdpDecapSkel, XdpDecapSkelBuilder};

/// The most prefixes that sources can be given as.
pub const PREFIX_LIMIT: usize = decap_limit::DECAP_PREFIX_LIMIT.0 as usize;

/// The maps that are pinned.
pub const PINS: Contents = Contents {
    names: &[COUNTERS, "decap_sources", "decap_local"],
    setting: "--pin-dir",
};
const COUNTERS: &str = "decap_counters";

const _: () = assert!(REASONS.len() == decap_reason::NR_DECAP_REASONS.0 as usize);

// SAFETY: C structs of integers, of which every bit pattern is a value, and without padding:
// `include/decap.h` is compiled with -Wpadded as an error.
unsafe impl plain::Plain for decap_address {}
// SAFETY: likewise.
unsafe impl plain::Plain for decap_prefix {}
// SAFETY: likewise.
unsafe impl plain::Plain for decap_counter {}

fn bytes_of<T: plain::Plain>(value: &T) -> &[u8] {
    // SAFETY: `Plain` is implemented above only for types without padding.
    unsafe { plain::as_bytes(value) }
}

/// The value of the maps in which only the keys say something.
const PRESENT: [u8; 4] = 1_u32.to_ne_bytes();

/// The packets counted under one reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Count {
    /// Name, verdict and explanation.
    pub reason: &'static Reason,
    /// Whether the outer header was taken off.
    pub decapsulated: bool,
    /// How many packets.
    pub packets: u64,
    /// Bytes of the inner packets, from their IP header on; 0 for packets that were not decapsulated.
    pub bytes: u64,
}

/// The loaded program. Dropping it detaches it from all interfaces and removes its pins.
pub struct Program {
    // Before the pins: fields are dropped in order.
    links: BTreeMap<String, OwnedFd>,
    pins: Option<PinDir>,
    local: BTreeSet<IpAddr>,
    skeleton: XdpDecapSkel<'static>,
}

impl Program {
    /// Loads the program: which UDP port is GUE's, and from where tunnel packets are taken; without any
    /// prefix from anywhere. Nothing is attached or pinned yet, and no address is local.
    ///
    /// # Errors
    /// When the kernel refuses, with its message.
    pub fn load(gue_port: u16, sources: &[Prefix]) -> Result<Self, Error> {
        load::begin();
        // The skeleton borrows from its object for as long as it lives, which is as long as we do.
        let object = Box::leak(Box::new(MaybeUninit::uninit()));
        let mut open = XdpDecapSkelBuilder::default()
            .open(object)
            .map_err(load::refused)?;
        if let Some(settings) = open.maps.rodata_data.as_deref_mut() {
            settings.gue_port = gue_port.to_be();
            settings.any_source = u32::from(sources.is_empty());
        }
        let skeleton = open.load().map_err(load::refused)?;
        for source in sources {
            skeleton
                .maps
                .decap_sources
                .update(bytes_of(&prefix_key(source)), &PRESENT, MapFlags::ANY)
                .map_err(|error| map_error("decap_sources", "write", error))?;
        }
        Ok(Program {
            links: BTreeMap::new(),
            pins: None,
            local: BTreeSet::new(),
            skeleton,
        })
    }

    /// Pins the maps under `pins`, which then belongs to this program.
    ///
    /// # Errors
    /// When a pin cannot be made.
    pub fn pin(&mut self, pins: PinDir) -> Result<(), Error> {
        self.pins.insert(pins).pin_maps(self.skeleton.object_mut())
    }

    /// Replaces the host's own addresses: new ones are added before old ones are removed.
    ///
    /// # Errors
    /// When the map refuses, most likely because it is full. What was written so far holds.
    pub fn set_local(&mut self, addresses: BTreeSet<IpAddr>) -> Result<(), Error> {
        let map = &self.skeleton.maps.decap_local;
        for address in addresses.difference(&self.local.clone()) {
            map.update(bytes_of(&address_key(*address)), &PRESENT, MapFlags::ANY)
                .map_err(|error| map_error("decap_local", "write", error))?;
            self.local.insert(*address);
        }
        for address in self.local.clone().difference(&addresses) {
            map.delete(bytes_of(&address_key(*address)))
                .map_err(|error| map_error("decap_local", "write", error))?;
            self.local.remove(address);
        }
        Ok(())
    }

    /// The addresses that were made the host's own.
    pub fn local(&self) -> &BTreeSet<IpAddr> {
        &self.local
    }

    /// Attaches to an interface.
    ///
    /// # Errors
    /// When the kernel refuses or the interface has another XDP program.
    pub fn attach(&mut self, link: &Link, mode: XdpMode) -> Result<Mode, Error> {
        let program = self.skeleton.progs.xdp_decap.as_fd();
        let (attached, mode) = link::attach(program, &link.name, link.index, mode)?;
        self.links.insert(link.name.clone(), attached);
        Ok(mode)
    }

    /// Detaches from the interface of that name, if it is attached there.
    pub fn detach(&mut self, name: &str) {
        self.links.remove(name);
    }

    /// The counters since the load, in the order of the list.
    ///
    /// # Errors
    /// When the counters cannot be read.
    pub fn counts(&self) -> Result<Vec<Count>, Error> {
        read_counts(&self.skeleton.maps.decap_counters)
    }

    /// The packet program, for running it over packets.
    pub fn program(&self) -> &ProgramMut<'static> {
        &self.skeleton.progs.xdp_decap
    }
}

/// The counters of the program whose maps are pinned in `directory`; `None` if none are.
///
/// # Errors
/// When its counters cannot be read.
pub fn pinned_counts(directory: &Path) -> Result<Option<Vec<Count>>, Error> {
    let path = directory.join(COUNTERS);
    if path.symlink_metadata().is_err() {
        return Ok(None);
    }
    let map = MapHandle::from_pinned_path(&path).map_err(|error| Error::Pins {
        path,
        reason: format!("cannot open the map: {error}; run it as root, or with CAP_BPF"),
    })?;
    if map.value_size() as usize != size_of::<decap_counter>()
        || map.max_entries() as usize != REASONS.len()
    {
        return Err(Error::Layout {
            map: COUNTERS.into(),
        });
    }
    read_counts(&map).map(Some)
}

fn read_counts(map: &impl MapCore) -> Result<Vec<Count>, Error> {
    (0_u32..)
        .zip(REASONS)
        .map(|(index, reason)| {
            let values = map
                .lookup_percpu(&index.to_ne_bytes(), MapFlags::ANY)
                .map_err(|error| map_error(COUNTERS, "read", error))?;
            let mut count = Count {
                reason,
                decapsulated: index < decap_limit::DECAP_KINDS.0,
                packets: 0,
                bytes: 0,
            };
            for bytes in values.iter().flatten() {
                let mut cpu = decap_counter::default();
                if plain::copy_from_bytes(&mut cpu, bytes).is_ok() {
                    count.packets += cpu.packets;
                    count.bytes += cpu.bytes;
                }
            }
            Ok(count)
        })
        .collect()
}

fn map_error(map: &str, action: &'static str, error: libbpf_rs::Error) -> Error {
    Error::Map {
        map: map.into(),
        action,
        source: io::Error::other(error),
    }
}

fn address_key(address: IpAddr) -> decap_address {
    decap_address {
        family: if address.is_ipv4() { 4 } else { 6 },
        address: words_of(address),
    }
}

/// The trie counts the bits of the family, and of the mapping that IPv4 addresses begin with.
fn prefix_key(prefix: &Prefix) -> decap_prefix {
    let before = if prefix.address().is_ipv4() {
        32 + 96
    } else {
        32
    };
    decap_prefix {
        length: before + u32::from(prefix.length()),
        address: address_key(prefix.address()),
    }
}
