//! The plan after a change of the network alone.
//!
//! Owns what follows from another next hop: the backend, the table of its service, and whether its VIPs
//! answer a ping. All else is that of the plan before, in the same allocations, so that the work is that of
//! what has changed and not that of the file.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use super::backends::{backend, candidates, table};
use super::plan::{answers, plan};
use super::{Desired, Family, PlanError, Service, World};
use crate::config::Config;

/// The plan for a world in which the way to the backends at `changed` may be another, and to no others.
///
/// `previous` has to be a plan of the same `config` and blocklists. It may have been made with other
/// own addresses, or lack what had no id yet: then this is a whole [`plan()`].
///
/// # Errors
/// As [`plan()`].
pub fn replan(
    previous: &Desired,
    config: &Config,
    world: &World<'_>,
    changed: &BTreeSet<IpAddr>,
) -> Result<Desired, PlanError> {
    let origin = &previous.origin;
    let sources = origin.sources(world.own_addresses);
    let Some(sources) = sources.filter(|_| previous.deferred == 0) else {
        return plan(previous, config, world);
    };
    let mut next = previous.clone();
    let mut services = BTreeSet::new();
    for place in changed.iter().flat_map(|address| origin.at(*address)) {
        let service = config.services.get(place.service);
        let configured = service.and_then(|service| service.backends.get(place.backend));
        let (Some(service), Some(configured), Some(before)) =
            (service, configured, previous.backends.get(&place.id))
        else {
            // The configuration is another after all.
            return plan(previous, config, world);
        };
        let planned = backend(
            before.service,
            service,
            configured,
            before.generation,
            world,
            sources,
        );
        if **before != planned {
            services.insert(before.service);
            next.backends.insert(place.id, Arc::new(planned));
        }
    }
    for id in services {
        let (Some(before), Some(membership)) = (previous.services.get(&id), origin.service(id))
        else {
            return plan(previous, config, world);
        };
        let candidates = candidates(&membership.backends, &next.backends);
        let (candidates, table) = table(Some(before), candidates, membership.size, next.seed);
        if Arc::ptr_eq(&table, &before.table) {
            continue;
        }
        let echo_changed = table.is_empty() != before.table.is_empty();
        let service = Service {
            candidates,
            table,
            ..Service::clone(before)
        };
        next.services.insert(id, Arc::new(service));
        if let Some(configured) = config
            .services
            .get(membership.service)
            .filter(|_| echo_changed)
        {
            let vips = configured.vips.iter();
            for &vip in vips.filter(|vip| Family::of(**vip) == before.family) {
                let echo = answers(&next, vip, config.datapath.icmp_echo);
                Arc::make_mut(&mut next.echoes).insert(vip, echo);
            }
        }
    }
    Ok(next)
}
