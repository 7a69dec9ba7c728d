//! From a configuration and the plan before it to the next plan.
//!
//! Owns the rules by which services and backends keep their ids and generations, and what a plan takes over
//! from the one before. Whether a backend can be used is [`super::backends`]', the plan after a change of
//! the network alone [`super::replan`]'s, the tables are [`maglev`]'s.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use super::backends::{backend, candidates, table, BackendIds, KnownBackends};
use super::origin::{Membership, Origin, Place};
use super::own_addresses::SourceAddresses;
use super::{
    filter, firewall, maglev, policies, ports, Desired, Echo, Family, Needs, PlanError, Service,
    Vip, World,
};
use crate::config::blocklist::Contents;
use crate::config::{self, Config};

/// The desired contents of the maps under `config`, given the plan that is in force.
///
/// A service keeps its id when one of its name and family was there before or else, being renamed, when
/// it has a binding of one whose name is gone. A backend keeps its id and generation as long as service,
/// address, port and forward mode stay. All others get an id that `previous` does not use, since the maps
/// are not written at one instant and a reader must not meet a new owner under an old reference.
pub fn plan(previous: &Desired, config: &Config, world: &World<'_>) -> Result<Desired, PlanError> {
    let parts = parts(config);
    check_limits(config, &parts)?;
    let sources = SourceAddresses::new(config, world.own_addresses)?;
    let ids = service_ids(previous, &parts, config.limits.services);

    let mut next = Desired {
        firewall: firewall::plan(previous.firewall.as_ref(), config, world.blocklists)?,
        policies: policies::slots(previous, &config.dos)?,
        nat_pool: sources.pool(),
        seed: config.datapath.hash_seed,
        next_generation: previous.next_generation,
        ..Desired::default()
    };
    next.needs = needs(config, &parts, next.firewall.as_deref());
    let mut vips = BTreeMap::new();
    let known_backends = KnownBackends::new(previous, config.limits.backends);
    let mut backend_ids = BackendIds::new(previous, config.limits.backends);
    let mut places = Vec::new();
    let mut memberships = BTreeMap::new();
    for (part, id) in parts.iter().zip(ids) {
        for &address in part.vips() {
            vips.insert(
                Vip {
                    address,
                    ports: None,
                },
                None,
            );
        }
        let Some(id) = id else {
            next.deferred += 1;
            continue;
        };
        for binding in part.bindings() {
            // No two services share a binding in a valid file; in any other, the first one has it.
            vips.entry(binding).or_insert(Some(id));
        }
        let forward = part.service.forward;
        let mut members = Vec::new();
        let mut former = known_backends.of(id);
        for (position, configured) in part.backends() {
            let generation = &mut next.next_generation;
            let Some(given) = backend_ids.give(&mut former, forward, configured, generation) else {
                next.deferred += 1;
                continue;
            };
            let planned = backend(
                id,
                part.service,
                configured,
                given.generation,
                world,
                &sources,
            );
            let planned = match given.before {
                Some(before) if **before == planned => Arc::clone(before),
                _ => Arc::new(planned),
            };
            next.backends.insert(given.id, planned);
            members.push(given.id);
            places.push(Place {
                address: configured.address,
                id: given.id,
                service: part.position,
                backend: position,
            });
        }
        members.sort_unstable();
        let before = previous.services.get(&id);
        let candidates = candidates(&members, &next.backends);
        let size = maglev::size_for(part.backends().count());
        let reusable = before.filter(|_| previous.seed == next.seed);
        let (candidates, table) = table(reusable, candidates, size, next.seed);
        let service = Service {
            name: part.service.name.clone(),
            family: part.family,
            forward: part.service.forward,
            hash: part.service.hash,
            no_backend: part.service.no_backend,
            allow: part.service.allow.clone(),
            candidates,
            table,
        };
        let service = match before {
            Some(before) if **before == service => Arc::clone(before),
            _ => Arc::new(service),
        };
        next.services.insert(id, service);
        memberships.insert(
            id,
            Membership {
                service: part.position,
                size,
                backends: members,
            },
        );
    }
    next.vips = shared(&previous.vips, vips);
    let echoes = echoes(&next, config.datapath.icmp_echo);
    next.echoes = shared(&previous.echoes, echoes);
    next.filter = filter::words(
        next.vips
            .keys()
            .map(|vip| vip.address)
            .chain(next.backends.values().map(|backend| backend.address)),
    );
    next.origin = Origin::new(world.own_addresses.to_vec(), sources, places, memberships);
    Ok(next)
}

/// The first plan as far as it follows from the file and its blocklists, as if no backend could be reached.
///
/// # Errors
/// As [`plan`].
pub fn plan_of_file(config: &Config, blocklists: &Contents) -> Result<Desired, PlanError> {
    let world = World {
        hop: &|_| None,
        own_addresses: &[],
        blocklists,
    };
    plan(&Desired::default(), config, &world)
}

/// `next`, as the allocation of the plan before if it is the same: then nobody need compare it.
fn shared<T: PartialEq>(previous: &Arc<T>, next: T) -> Arc<T> {
    if **previous == next {
        Arc::clone(previous)
    } else {
        Arc::new(next)
    }
}

/// One address family of a configured service.
struct FamilyPart<'a> {
    /// Its position in the file.
    position: usize,
    service: &'a config::Service,
    family: Family,
}

impl<'a> FamilyPart<'a> {
    fn vips(&self) -> impl Iterator<Item = &'a IpAddr> {
        let family = self.family;
        self.service
            .vips
            .iter()
            .filter(move |vip| Family::of(**vip) == family)
    }

    /// Those that serve it, with their position in the service.
    fn backends(&self) -> impl Iterator<Item = (usize, &'a config::Backend)> {
        let (family, forward) = (self.family, self.service.forward);
        let all = self.service.backends.iter().enumerate();
        all.filter(move |(_, backend)| forward.carries(family, Family::of(backend.address)))
    }

    /// Each VIP with each protocol and port prefix.
    fn bindings(&self) -> impl Iterator<Item = Vip> + 'a {
        let service = self.service;
        let prefixes: Vec<_> = service
            .ports
            .iter()
            .flat_map(|range| ports::cover(*range))
            .collect();
        self.vips().flat_map(move |&address| {
            let prefixes = prefixes.clone();
            service.protocols.iter().flat_map(move |&protocol| {
                prefixes.clone().into_iter().map(move |prefix| Vip {
                    address,
                    ports: Some((protocol, prefix)),
                })
            })
        })
    }
}

fn parts(config: &Config) -> Vec<FamilyPart<'_>> {
    let services = config.services.iter().enumerate();
    let both = services.flat_map(|(position, service)| {
        Family::ALL.map(|family| FamilyPart {
            position,
            service,
            family,
        })
    });
    both.filter(|part| part.vips().next().is_some()).collect()
}

fn needs(config: &Config, parts: &[FamilyPart<'_>], firewall: Option<&firewall::Ruleset>) -> Needs {
    let mut needs = Needs {
        firewall: firewall.map(firewall::Ruleset::tables),
        policies: !config.dos.is_empty(),
        ..Needs::default()
    };
    for part in parts {
        needs.add_table(maglev::size_for(part.backends().count()));
        let family = needs.of_mut(part.family);
        family.vips = true;
        family.full_nat |= part.service.forward == config::Forward::FullNat;
    }
    needs
}

fn check_limits(config: &Config, parts: &[FamilyPart<'_>]) -> Result<(), PlanError> {
    let limits = &config.limits;
    if parts.len() > limits.services as usize {
        return Err(PlanError::Services {
            needed: parts.len(),
            limit: limits.services,
        });
    }
    let mut needed = 0;
    for part in parts {
        let count = part.backends().count();
        if count > maglev::MAX_BACKENDS {
            return Err(PlanError::ServiceBackends {
                service: part.service.name.clone(),
                count,
            });
        }
        needed += count;
    }
    if needed > limits.backends as usize {
        return Err(PlanError::Backends {
            needed,
            limit: limits.backends,
        });
    }
    let allowed = parts.iter().map(|part| part.service.allow.len()).sum();
    if allowed > firewall::PREFIX_LIMIT {
        return Err(PlanError::Prefixes {
            key: "the services' allow",
            count: allowed,
        });
    }
    Ok(())
}

/// The id of each part; `None` where only ids that are freed just now are left.
fn service_ids(previous: &Desired, parts: &[FamilyPart<'_>], limit: u32) -> Vec<Option<u32>> {
    // Those beyond the limit cannot be kept: the maps that `limit` is the size of have no such index.
    let known = || previous.services.iter().filter(|(id, _)| **id < limit);
    let by_name: HashMap<_, _> = known()
        .map(|(&id, service)| ((service.name.as_str(), service.family), id))
        .collect();
    let mut unclaimed: BTreeSet<u32> = known().map(|(&id, _)| id).collect();
    let mut ids: Vec<_> = parts
        .iter()
        .map(|part| {
            by_name
                .get(&(part.service.name.as_str(), part.family))
                .copied()
                .filter(|id| unclaimed.remove(id))
        })
        .collect();

    // Only now is it known which names are gone.
    let mut fresh = previous.services.free(limit);
    for (part, id) in parts.iter().zip(&mut ids).filter(|(_, id)| id.is_none()) {
        *id = part
            .bindings()
            .filter_map(|binding| previous.vips.get(&binding).copied().flatten())
            .find(|id| unclaimed.remove(id))
            .or_else(|| fresh.next());
    }
    ids
}

/// What becomes of a ping for each VIP.
fn echoes(desired: &Desired, icmp_echo: bool) -> BTreeMap<IpAddr, Echo> {
    let alone = desired.vips.keys().filter(|vip| vip.ports.is_none());
    alone
        .map(|vip| (vip.address, answers(desired, vip.address, icmp_echo)))
        .collect()
}

/// What becomes of a ping for a VIP: it answers while one of its services has a backend.
pub(super) fn answers(desired: &Desired, vip: IpAddr, icmp_echo: bool) -> Echo {
    if !icmp_echo {
        return Echo::Pass;
    }
    let alone = Vip {
        address: vip,
        ports: None,
    };
    let mut bound = desired
        .vips
        .range(alone..)
        .take_while(|(key, _)| key.address == vip)
        .filter_map(|(_, service)| desired.services.get(service.as_ref()?));
    if bound.any(|service| !service.table.is_empty()) {
        Echo::Answer
    } else {
        Echo::Drop
    }
}
