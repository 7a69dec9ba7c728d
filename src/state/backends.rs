//! The backends of a plan: which id each has, where its packets go, whether it can be used, and which of
//! them take new connections.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use super::maglev::{self, Candidate};
use super::own_addresses::SourceAddresses;
use super::{Backend, ById, Desired, Family, Health, Hop, PoolSlice, Service, World};
use crate::config::{self, AdminState, Forward};

/// Gives backends their ids and generations.
pub(super) struct BackendIds<'a> {
    /// Those of the plan before that have not been met in this one, with their ids.
    known: HashMap<Identity, (u32, &'a Arc<Backend>)>,
    fresh: Box<dyn Iterator<Item = u32> + 'a>,
}

/// What makes a backend the same in two plans, with the forward mode: service, address and port.
type Identity = (u32, IpAddr, Option<u16>);

/// What a backend is given.
pub(super) struct Given<'a> {
    pub id: u32,
    pub generation: u32,
    /// As it was in the plan before.
    pub before: Option<&'a Arc<Backend>>,
}

impl<'a> BackendIds<'a> {
    pub fn new(previous: &'a Desired, limit: u32) -> Self {
        let kept = previous.backends.iter().filter(|(id, _)| **id < limit);
        BackendIds {
            known: kept
                .map(|(&id, backend)| {
                    (
                        (backend.service, backend.address, backend.port),
                        (id, backend),
                    )
                })
                .collect(),
            fresh: Box::new(previous.backends.free(limit)),
        }
    }

    /// The id and generation of a backend of the service with that id; `None` where only ids that are freed
    /// just now are left.
    pub fn give(
        &mut self,
        service: u32,
        forward: Forward,
        backend: &config::Backend,
        next_generation: &mut u32,
    ) -> Option<Given<'a>> {
        let known = self.known.remove(&(service, backend.address, backend.port));
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
