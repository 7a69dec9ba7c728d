//! The backends of a plan: which id each has, where its packets go, whether it can be used, and which of
//! them take new connections.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use super::maglev::{self, Candidate};
use super::own_addresses::SourceAddresses;
use super::{Backend, ById, Desired, Family, Health, Hop, PoolSlice, Service, World};
use crate::config::{self, AdminState, Forward};

/// The backends of the plan before.
pub(super) struct KnownBackends<'a> {
    /// In order of services, then of ids.
    backends: Vec<Known<'a>>,
}

/// With its id.
type Known<'a> = (u32, &'a Arc<Backend>);

impl<'a> KnownBackends<'a> {
    /// Those with ids below `limit`.
    pub fn new(previous: &'a Desired, limit: u32) -> Self {
        let kept = previous.backends.iter().filter(|(id, _)| **id < limit);
        let mut backends: Vec<Known<'a>> = kept.map(|(&id, backend)| (id, backend)).collect();
        backends.sort_by_key(|(_, backend)| backend.service);
        KnownBackends { backends }
    }

    /// Those of a service.
    pub fn of(&self, service: u32) -> Former<'_> {
        let all = &self.backends;
        let from = all.partition_point(|(_, backend)| backend.service < service);
        let until = all.partition_point(|(_, backend)| backend.service <= service);
        Former {
            in_order: &all[from..until],
            by_place: None,
        }
    }
}

/// Backends of a service in the plan before that have not been met in this one.
pub(super) struct Former<'a> {
    /// In order of ids. Where none has come or gone that is the order of the file, and the next one is the
    /// one that is asked for.
    in_order: &'a [Known<'a>],
    /// In place of that from the first one on that was not.
    by_place: Option<HashMap<Place, Known<'a>>>,
}

/// What makes a backend of a service the same in two plans, with the forward mode.
type Place = (IpAddr, Option<u16>);

impl<'a> Former<'a> {
    fn take(&mut self, place: Place) -> Option<Known<'a>> {
        let place_of = |known: &Known<'_>| (known.1.address, known.1.port);
        let in_order = self.in_order;
        if self.by_place.is_none() {
            if let Some((next, rest)) = in_order.split_first() {
                if place_of(next) == place {
                    self.in_order = rest;
                    return Some(*next);
                }
            }
        }
        let all = || in_order.iter().map(|known| (place_of(known), *known));
        let by_place = self.by_place.get_or_insert_with(|| all().collect());
        by_place.remove(&place)
    }
}

/// Gives backends their ids and generations.
pub(super) struct BackendIds<'a> {
    fresh: Box<dyn Iterator<Item = u32> + 'a>,
}

/// What a backend is given.
pub(super) struct Given<'a> {
    pub id: u32,
    pub generation: u32,
    /// As it was in the plan before.
    pub before: Option<&'a Arc<Backend>>,
}

impl<'a> BackendIds<'a> {
    pub fn new(previous: &'a Desired, limit: u32) -> Self {
        BackendIds {
            fresh: Box::new(previous.backends.free(limit)),
        }
    }

    /// The id and generation of a backend of a service that had those of `former`; `None` where only ids
    /// that are freed just now are left.
    pub fn give<'f>(
        &mut self,
        former: &mut Former<'f>,
        forward: Forward,
        backend: &config::Backend,
        next_generation: &mut u32,
    ) -> Option<Given<'f>> {
        let known = former.take((backend.address, backend.port));
        if let Some((id, before)) = known.filter(|(_, before)| before.forward == forward) {
            return Some(Given {
                id,
                generation: before.generation,
                before: Some(before),
            });
        }
        let id = self.fresh.next()?;
        // 0 stands for `down` in the map; the count wraps past it.
        let generation = (*next_generation).max(1);
        *next_generation = generation.wrapping_add(1).max(1);
        Some(Given {
            id,
            generation,
            before: None,
        })
    }
}

/// A backend, of a service with the id `service`, as the file and the world have it.
pub(super) fn backend(
    service: u32,
    of: &config::Service,
    backend: &config::Backend,
    generation: u32,
    world: &World<'_>,
    sources: &SourceAddresses,
) -> Backend {
    let forward = of.forward;
    let hop = (world.hop)(backend).filter(|hop| hop.reaches(forward));
    let family = Family::of(backend.address);
    let range = match hop {
        Some(Hop { slot, .. }) if forward == Forward::FullNat => sources.range(family, slot),
        _ => PoolSlice::default(),
    };
    let outer = hop
        .filter(|_| forward.is_tunnel())
        .and_then(|hop| sources.outer(family, hop.slot));
    let lacks_source = match forward {
        Forward::FullNat => range.count == 0,
        Forward::Ipip | Forward::Gue => outer.is_none(),
        Forward::Nat | Forward::L2 => false,
    };
    let health = match hop {
        None => Health::Unresolved,
        Some(_) if lacks_source => Health::NoSource,
        Some(_) => Health::Up,
    };
    Backend {
        service,
        name: backend.name.clone(),
        address: backend.address,
        port: backend.port,
        weight: backend.weight,
        forward,
        state: backend.state,
        health,
        hop,
        generation,
        usable: backend.state != AdminState::Down && health == Health::Up,
        on_down: of.on_down,
        nat_pool: range,
        outer,
    }
}

/// Those of `members`, which are in order of ids, that take new connections.
pub(super) fn candidates(members: &[u32], backends: &ById<Backend>) -> Vec<Candidate> {
    let members = members
        .iter()
        .filter_map(|id| Some((*id, backends.get(id)?)));
    members
        .filter(|(_, backend)| {
            backend.usable && backend.state == AdminState::Up && backend.weight > 0
        })
        .map(|(id, backend)| Candidate {
            address: backend.address,
            port: backend.port.unwrap_or(0),
            weight: backend.weight,
            id,
        })
        .collect()
}

/// The candidates of a service and its table of `size` slots: those of the service `before`, which had the
/// same seed, where nothing that the table depends on has changed, since tables are what takes time.
pub(super) fn table(
    before: Option<&Arc<Service>>,
    candidates: Vec<Candidate>,
    size: u32,
    seed: u64,
) -> (Arc<[Candidate]>, Arc<[u32]>) {
    let length = if candidates.is_empty() { 0 } else { size };
    let unchanged = before.filter(|before| {
        *before.candidates == *candidates
            // Other backends in the file, or a plan rebuilt from the maps that lacks its tables.
            && before.table.len() == length as usize
    });
    match unchanged {
        Some(before) => (Arc::clone(&before.candidates), Arc::clone(&before.table)),
        None => {
            let table = maglev::table(&candidates, size, seed).into();
            (candidates.into(), table)
        }
    }
}
