//! Writing `allowed_sources`: the source prefixes that may reach services with an `allow`.
//!
//! Owns the order: prefixes are there before the service that asks for them, and go after it.

use std::collections::{BTreeMap, BTreeSet};

use libbpf_rs::MapHandle;

use super::abi::{self, bytes_of, from_bytes, words_of};
use super::firewall::mapped_length;
use super::trie::Changes;
use super::{batch, Error};
use crate::config::{Family, Prefix};
use crate::state::Desired;

/// Bits of a key before the address.
const BITS_BEFORE_ADDRESS: u32 = 32;

type Key = [u8; size_of::<abi::allowed_key>()];

/// The map, and its known contents.
pub(super) struct Allowed {
    sources: MapHandle,
    /// The contents of the map, by service. `None`: not known.
    applied: Option<BTreeMap<u32, Vec<Prefix>>>,
    /// Prefixes to delete once the services are written.
    obsolete: Vec<u8>,
    /// Whether the permitted sources have changed since this was last asked.
    changed: bool,
}

impl Allowed {
    pub(super) fn new(sources: MapHandle) -> Self {
        Allowed {
            sources,
            applied: None,
            obsolete: Vec::new(),
            changed: false,
        }
    }

    /// Whether the permitted sources have changed since the last call.
    pub(super) fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    /// What the map holds may have drifted: the next write compares with it.
    pub(super) fn distrust(&mut self) {
        self.applied = None;
    }

    /// Adds the prefixes that are new, before the services are written.
    pub(super) fn widen(&mut self, desired: &Desired) -> Result<(), Error> {
        if self.applied.as_ref().is_some_and(|applied| {
            let applied = applied.iter().map(|(id, allow)| (*id, allow));
            applied.eq(restricted(desired))
        }) {
            return Ok(());
        }
        self.applied = None;
        let wanted: BTreeSet<Key> = restricted(desired)
            .flat_map(|(id, allow)| allow.iter().map(move |prefix| (id, prefix)))
            .filter(|(id, prefix)| {
                // In the keys, ::/0 would have every IPv4 address as well.
                let family = desired.services.get(id).map(|service| service.family);
                family == Some(Family::of(prefix.address()))
            })
            .map(|(id, prefix)| key(id, prefix))
            .collect();
        let mut live = BTreeSet::new();
        batch::for_each(&self.sources, |key, _| {
            live.extend(Key::try_from(key));
        })?;
        let mut new = Changes::default();
        for key in wanted
            .difference(&live)
            .filter_map(|key| from_bytes::<abi::allowed_key>(key))
        {
            new.put(key, None, 1_u32);
        }
        self.obsolete = live.difference(&wanted).flatten().copied().collect();
        self.changed |= !new.is_empty() || !self.obsolete.is_empty();
        new.make(&self.sources, live.len())
    }

    /// Takes out the prefixes that are gone, after the services were written.
    pub(super) fn narrow(&mut self, desired: &Desired) -> Result<(), Error> {
        batch::delete(&self.sources, &self.obsolete)?;
        self.obsolete = Vec::new();
        if self.applied.is_none() {
            let restricted = restricted(desired).map(|(id, allow)| (id, allow.clone()));
            self.applied = Some(restricted.collect());
        }
        Ok(())
    }

    /// A service has become restricted, or has ceased to be.
    pub(super) fn note_change(&mut self) {
        self.changed = true;
    }
}

/// The services that have an `allow`, in order of ids.
fn restricted(desired: &Desired) -> impl Iterator<Item = (u32, &Vec<Prefix>)> {
    let services = desired.services.iter();
    services
        .map(|(id, service)| (*id, &service.allow))
        .filter(|(_, allow)| !allow.is_empty())
}

fn key(service: u32, prefix: &Prefix) -> Key {
    let key = abi::allowed_key {
        prefixlen: BITS_BEFORE_ADDRESS + mapped_length(prefix),
        service,
        address: words_of(prefix.address()),
    };
    let mut bytes = Key::default();
    bytes.copy_from_slice(bytes_of(&key));
    bytes
}
