//! From a configuration and the plan before it to the next plan.
//!
//! Owns the rules by which services and backends keep their ids and generations, and by which a
//! backend counts as usable. The types are [`super`]'s, the tables [`maglev`]'s.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use thiserror::Error;

use super::maglev::{self, Candidate};
use super::own_addresses::SourceAddresses;
use super::NAT_POOL_LIMIT;
use super::{
    filter, firewall, policies, ports, Backend, Desired, Echo, Family, Health, Hop, PoolSlice,
    Service, Vip, World,
};
use crate::config::{self, AdminState, Config, Forward};

/// Why a configuration that is valid in itself cannot be put in force.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
pub enum PlanError {
    /// More services than the maps have room for.
    #[error(
        "{needed} services, counting one with VIPs of both address families twice, are more than \
         limits.services = {limit}: raise limits.services to {needed} or more"
    )]
    Services {
        /// In the file.
        needed: usize,
        /// `limits.services`
        limit: u32,
    },
    /// More backends than the maps have room for.
    #[error(
        "{needed} backends, counting one that serves VIPs of both address families twice, are more than limits.backends = {limit}: \
         raise limits.backends to {needed} or more"
    )]
    Backends {
        /// In the file.
        needed: usize,
        /// `limits.backends`
        limit: u32,
    },
    /// More backends of one family in one service than a Maglev table can tell apart.
    #[error(
        "service \"{service}\" has {count} backends of one address family, but its table serves at most {limit}: \
         split it into several services",
        limit = maglev::MAX_BACKENDS
    )]
    ServiceBackends {
        /// Its name.
        service: String,
        /// Its backends of that family.
        count: usize,
    },
    /// More source addresses than the pool holds.
    #[error(
        "{count} addresses to send full-nat packets from are more than the {limit} that the pool holds: \
         list the ones to use in datapath.addresses",
        limit = NAT_POOL_LIMIT
    )]
    NatPool {
        /// Listed, or found on the interfaces.
        count: usize,
    },
    /// More rules than the maps have room for.
    #[error(
        "{needed} [[firewall.rule]] are more than limits.firewall_rules = {limit}: raise \
         limits.firewall_rules to {needed} or more"
    )]
    Rules {
        /// In the file.
        needed: usize,
        /// `limits.firewall_rules`
        limit: u32,
    },
    /// More blocklists than there are ids for.
    #[error(
        "firewall.blocklists has {count} files of at most {limit}: put several into one",
        limit = firewall::BLOCKLIST_LIMIT
    )]
    Blocklists {
        /// In the file.
        count: usize,
    },
    /// A blocklist that nobody has read.
    #[error("{} of firewall.blocklists has not been read: reload", path.display())]
    Unread {
        /// As in the file.
        path: PathBuf,
    },
    /// Rules with source ports whose ports overlap too often.
    #[error(
        "the rules of the firewall take more than the {limit} steps that limits.firewall_rules gives room \
         for, since many with a source_port have ports that overlap: raise limits.firewall_rules, or give \
         fewer of them a source_port"
    )]
    Steps {
        /// That there is room for.
        limit: usize,
    },
    /// More prefixes than a trie holds.
    #[error(
        "{key} have {count} prefixes, more than the {limit} that there is room for: merge some of them \
         into shorter ones",
        limit = firewall::PREFIX_LIMIT
    )]
    Prefixes {
        /// Where they stand.
        key: &'static str,
        /// Those that are not part of others.
        count: usize,
    },
    /// More policies of a protocol than it has slots.
    #[error(
        "{count} [[dos]] policies of {protocol} are more than the {limit} that a protocol can have: remove \
         some",
        limit = config::POLICY_LIMIT
    )]
    Policies {
        /// Whose.
        protocol: config::PolicyProtocol,
        /// In the file.
        count: usize,
    },
}

/// What the maps are to hold so that `config` is in force, given what they hold now.
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

    let firewall = firewall::plan(previous.firewall.as_ref(), config, world.blocklists)?;
    let mut next = Desired {
        firewall,
        policies: policies::slots(previous, &config.dos)?,
        nat_pool: sources.pool(),
        seed: config.datapath.hash_seed,
        next_generation: previous.next_generation,
        ..Desired::default()
    };
    let mut planner = BackendPlanner::new(previous, config.limits.backends);
    let mut sizes = BTreeMap::new();
    for (part, id) in parts.iter().zip(ids) {
        for &address in part.vips() {
            next.vips.insert(
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
            next.vips.entry(binding).or_insert(Some(id));
        }
        sizes.insert(id, maglev::size_for(part.backends().count()));
        for backend in part.backends() {
            planner.place(&mut next, id, part.service, backend, world, &sources);
        }
        let service = Service {
            name: part.service.name.clone(),
            family: part.family,
            forward: part.service.forward,
            hash: part.service.hash,
            no_backend: part.service.no_backend,
            allow: part.service.allow.clone(),
            table: Arc::default(),
        };
        next.services.insert(id, service);
    }
    fill_tables(previous, &mut next, &sizes);
    next.echoes = echoes(&next, config.datapath.icmp_echo);
    next.filter = filter::words(
        next.vips
            .keys()
            .map(|vip| vip.address)
            .chain(next.backends.values().map(|backend| backend.address)),
    );
    Ok(next)
}

/// One address family of a configured service.
struct FamilyPart<'a> {
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

    fn backends(&self) -> impl Iterator<Item = &'a config::Backend> {
        self.service.backends_for(self.family)
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
    let both = config
        .services
        .iter()
        .flat_map(|service| Family::ALL.map(|family| FamilyPart { service, family }));
    both.filter(|part| part.vips().next().is_some()).collect()
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
    let mut fresh = fresh_ids(&previous.services, limit);
    for (part, id) in parts.iter().zip(&mut ids).filter(|(_, id)| id.is_none()) {
        *id = part
            .bindings()
            .filter_map(|binding| previous.vips.get(&binding).copied().flatten())
            .find(|id| unclaimed.remove(id))
            .or_else(|| fresh.next());
    }
    ids
}

/// The ids that `held` does not use, lowest first.
fn fresh_ids<T>(held: &BTreeMap<u32, T>, limit: u32) -> impl Iterator<Item = u32> + '_ {
    (0..limit).filter(|id| !held.contains_key(id))
}

/// Gives backends their ids and generations.
struct BackendPlanner<'a> {
    /// Those of the plan before that have not been met in this one, by service, address and port.
    known: HashMap<(u32, IpAddr, Option<u16>), (u32, &'a Backend)>,
    fresh: Box<dyn Iterator<Item = u32> + 'a>,
}

impl<'a> BackendPlanner<'a> {
    fn new(previous: &'a Desired, limit: u32) -> Self {
        let kept = previous.backends.iter().filter(|(id, _)| **id < limit);
        BackendPlanner {
            known: kept
                .map(|(&id, backend)| {
                    (
                        (backend.service, backend.address, backend.port),
                        (id, backend),
                    )
                })
                .collect(),
            fresh: Box::new(fresh_ids(&previous.backends, limit)),
        }
    }

    /// Adds a backend to the plan, or counts it as deferred.
    fn place(
        &mut self,
        next: &mut Desired,
        service: u32,
        of: &config::Service,
        backend: &config::Backend,
        world: &World<'_>,
        sources: &SourceAddresses,
    ) {
        let forward = of.forward;
        let known = self.known.remove(&(service, backend.address, backend.port));
        let (id, generation) = match known.filter(|(_, before)| before.forward == forward) {
            Some((id, before)) => (id, before.generation),
            None => {
                let Some(id) = self.fresh.next() else {
                    next.deferred += 1;
                    return;
                };
                // 0 stands for `down` in the map; the count wraps past it.
                let generation = next.next_generation.max(1);
                next.next_generation = generation.wrapping_add(1).max(1);
                (id, generation)
            }
        };
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
        let planned = Backend {
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
        };
        next.backends.insert(id, planned);
    }
}

/// Gives each service its table, of the size that `sizes` has for its id: that of the plan before where
/// nothing it depends on has changed, since a plan is made whenever a neighbour changes, and tables are what
/// takes time.
fn fill_tables(previous: &Desired, next: &mut Desired, sizes: &BTreeMap<u32, u32>) {
    let mut before = candidates(previous);
    let mut now = candidates(next);
    for (id, service) in &mut next.services {
        let candidates = now.remove(id).unwrap_or_default();
        let size = sizes.get(id).copied().unwrap_or(0);
        let length = if candidates.is_empty() { 0 } else { size };
        let unchanged = previous.services.get(id).filter(|old| {
            previous.seed == next.seed
                && before.remove(id).unwrap_or_default() == candidates
                // Other backends in the file, or a plan rebuilt from the maps that lacks its tables.
                && old.table.len() == length as usize
        });
        service.table = match unchanged {
            Some(old) => Arc::clone(&old.table),
            None => maglev::table(&candidates, size, next.seed).into(),
        };
    }
}

/// A VIP answers while one of its services does.
fn echoes(desired: &Desired, icmp_echo: bool) -> BTreeMap<IpAddr, Echo> {
    let none = if icmp_echo { Echo::Drop } else { Echo::Pass };
    let mut echoes: BTreeMap<IpAddr, Echo> =
        desired.vips.keys().map(|vip| (vip.address, none)).collect();
    let serving = desired.vips.iter().filter(|(_, service)| {
        service
            .and_then(|id| desired.services.get(&id))
            .is_some_and(|service| !service.table.is_empty())
    });
    if icmp_echo {
        echoes.extend(serving.map(|(vip, _)| (vip.address, Echo::Answer)));
    }
    echoes
}

/// The backends that take new connections, by service, in order of ids.
fn candidates(desired: &Desired) -> HashMap<u32, Vec<Candidate>> {
    let mut candidates: HashMap<u32, Vec<Candidate>> = HashMap::new();
    for (&id, backend) in &desired.backends {
        if backend.usable && backend.state == AdminState::Up && backend.weight > 0 {
            let port = backend.port.unwrap_or(0);
            let candidate = Candidate {
                address: backend.address,
                port,
                weight: backend.weight,
                id,
            };
            candidates
                .entry(backend.service)
                .or_default()
                .push(candidate);
        }
    }
    candidates
}
