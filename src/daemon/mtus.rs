//! Tells the operator of interfaces that are too narrow for the tunnels that leave by them.
//!
//! Owns the record of warnings given, so that none is repeated. [`crate::mtu`] decides which interfaces are
//! too narrow.

use std::collections::BTreeMap;

use log::warn;

use super::interfaces::Interfaces;
use crate::config::Family;
use crate::mtu::{self, Way};
use crate::state::Desired;

/// The MTUs that were last seen, and the warnings given about them.
#[derive(Default)]
pub struct Mtus {
    /// By slot.
    seen: BTreeMap<u16, u32>,
    /// The MTU that each interface was said to need: less than that is no news.
    said: BTreeMap<String, u32>,
}

impl Mtus {
    /// Says everything again the next time.
    pub fn forget(&mut self) {
        self.said.clear();
    }

    /// Warns of interfaces that are too narrow, of each once while no MTU changes.
    pub fn check(&mut self, desired: &Desired, interfaces: &Interfaces) {
        let interfaces: BTreeMap<_, _> = interfaces.taken().collect();
        let seen = interfaces.iter().map(|(slot, i)| (*slot, i.mtu)).collect();
        if seen != self.seen {
            self.seen = seen;
            self.forget();
        }
        let ways = desired.backends.values().filter_map(|backend| {
            let interface = interfaces.get(&backend.hop?.slot)?;
            Some(Way {
                interface: &interface.name,
                mtu: interface.mtu,
                forward: backend.forward,
                outer: Family::of(backend.address),
                inner: desired.services.get(&backend.service)?.family,
            })
        });
        for shortage in mtu::shortages(self.seen.values().copied(), ways) {
            let said = self.said.entry(shortage.interface.clone()).or_default();
            if *said < shortage.needed {
                *said = shortage.needed;
                warn!("{shortage}");
            }
        }
    }
}
