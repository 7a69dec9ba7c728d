//! What holds for every plan, whatever the configurations and whatever came before.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use proptest::prelude::*;
use xdplb::config::{AdminState, Config, Forward, PortRange};
use xdplb::state::maglev::size_for;
use xdplb::state::ports::{cover, merge};
use xdplb::state::regions::capacity_for;
use xdplb::state::{
    bindings_changed, filter, plan, replan, Backend, Desired, Echo, Family, Hop, Vip, World,
};

use crate::{backend, config, ip, own, planned_from, service, HOP};

const FORWARDS: [Forward; 5] = [
    Forward::Nat,
    Forward::FullNat,
    Forward::L2,
    Forward::Ipip,
    Forward::Gue,
];

/// A valid configuration: services on VIPs of their own, some of both families.
fn configs() -> impl Strategy<Value = Config> {
    let backend_options = (
        0u8..12,
        any::<bool>(),
        prop::option::of(1u16..4),
        0..=3u16,
        0..4u8,
    );
    let backends = prop::collection::vec(backend_options, 0..8).prop_map(|options| {
        let mut backends = BTreeMap::new();
        for (host, v6, port, weight, state) in options {
            let address = if v6 {
                ip(&format!("fd00::{host}"))
            } else {
                IpAddr::from([10, 0, 0, host])
            };
            let state = [
                AdminState::Up,
                AdminState::Up,
                AdminState::Drain,
                AdminState::Down,
            ][usize::from(state)];
            let name = format!("{address} {port:?}");
            backends.insert(
                (address, port),
                config::Backend {
                    name,
                    port,
                    weight,
                    state,
                    ..backend(address)
                },
            );
        }
        backends.into_values().collect::<Vec<_>>()
    });
    let ports = prop::collection::vec((any::<u16>(), any::<u16>()), 1..3).prop_map(|pairs| {
        merge(pairs.into_iter().flat_map(|(a, b)| {
            cover(PortRange {
                first: a.min(b),
                last: a.max(b),
            })
        }))
    });
    let services = prop::collection::btree_map(0u8..6, (backends, ports, 1u8..4, 0..5usize), 0..5);
    let services = services.prop_map(|services| {
        let build =
            |(index, (mut backends, ports, families, forward)): (u8, (Vec<_>, _, u8, usize))| {
                let mut vips = vec![
                    IpAddr::from([203, 0, 113, index]),
                    ip(&format!("2001:db8::{index}")),
                ];
                vips.retain(|vip| families & if vip.is_ipv4() { 1 } else { 2 } != 0);
                let forward = FORWARDS[forward];
                if forward.is_direct() {
                    backends.dedup_by_key(|backend: &mut config::Backend| backend.address);
                    backends.iter_mut().for_each(|backend| backend.port = None);
                }
                config::Service {
                    vips,
                    ports,
                    forward,
                    backends,
                    ..service(&format!("s{index}"), &[], 0, &[])
                }
            };
        services.into_iter().map(build).collect()
    });
    services.prop_map(config)
}

/// The same configuration, services and backends in another order.
fn shuffled(original: Config) -> impl Strategy<Value = Config> {
    let services: Vec<_> = original
        .services
        .iter()
        .map(|service| {
            let service = service.clone();
            Just(service.backends.clone())
                .prop_shuffle()
                .prop_map(move |backends| config::Service {
                    backends,
                    ..service.clone()
                })
        })
        .collect();
    services.prop_shuffle().prop_map(move |services| Config {
        services,
        ..original.clone()
    })
}

/// What holds for every plan, given the one before it.
fn is_sound(previous: &Desired, next: &Desired, config: &Config) -> Result<(), TestCaseError> {
    prop_assert_eq!(next.deferred, 0);
    let generations: BTreeSet<u32> = next
        .backends
        .values()
        .map(|backend| backend.generation)
        .collect();
    prop_assert_eq!(generations.len(), next.backends.len());
    prop_assert!(!generations.contains(&0));
    for (id, backend) in next.backends.iter() {
        let service = &next.services[&backend.service];
        prop_assert!(backend
            .forward
            .carries(service.family, Family::of(backend.address)));
        prop_assert_eq!(backend.forward, service.forward);
        prop_assert_eq!(backend.outer.is_some(), backend.forward.is_tunnel());
        prop_assert!(
            (backend.nat_pool.first + backend.nat_pool.count) as usize <= next.nat_pool.len()
        );
        match previous.backends.get(id) {
            Some(old) => {
                let identity = |backend: &Backend| {
                    (
                        backend.service,
                        backend.address,
                        backend.port,
                        backend.forward,
                        backend.generation,
                    )
                };
                prop_assert_eq!(
                    identity(old),
                    identity(backend),
                    "an id does not change hands"
                );
            }
            None => prop_assert!(backend.generation >= previous.next_generation),
        }
        let bit = filter::bit(backend.address);
        prop_assert!(next.filter[usize::from(bit >> 6)] & (1 << (bit & 63)) != 0);
    }
    for (id, service) in next.services.iter() {
        prop_assert!(previous
            .services
            .get(id)
            .is_none_or(|old| old.family == service.family));
        let takes = |id: &u32| {
            let backend = &next.backends[id];
            backend.usable && backend.state == AdminState::Up && backend.weight > 0
        };
        let members: BTreeSet<u32> = next
            .backends
            .keys()
            .copied()
            .filter(|backend| next.backends[backend].service == *id && takes(backend))
            .collect();
        let configured = config.services.iter().find(|one| one.name == service.name);
        let count = configured.map_or(0, |one| one.backends_for(service.family).count());
        let size = if members.is_empty() {
            0
        } else {
            size_for(count)
        };
        prop_assert_eq!(service.table.len() as u32, size);
        prop_assert_eq!(
            service.table.iter().copied().collect::<BTreeSet<_>>(),
            members
        );
    }
    let total: u64 = next
        .services
        .values()
        .map(|service| service.table.len() as u64)
        .sum();
    prop_assert!(total <= u64::from(capacity_for(&config.limits)));
    for service in &config.services {
        for (&vip, range) in service
            .vips
            .iter()
            .flat_map(|vip| service.ports.iter().map(move |range| (vip, range)))
        {
            prop_assert_eq!(
                next.vips.get(&Vip {
                    address: vip,
                    ports: None
                }),
                Some(&None)
            );
            let bound = next.vips.iter().filter(|(key, _)| key.address == vip);
            let serving = bound
                .filter_map(|(_, service)| *service)
                .any(|id| !next.services[&id].table.is_empty());
            let echo = if serving { Echo::Answer } else { Echo::Drop };
            prop_assert_eq!(next.echoes.get(&vip), Some(&echo));
            for port in [range.first, range.last] {
                let bound = next.still_bound(vip, 6, port).map(|id| &next.services[&id]);
                prop_assert_eq!(bound.map(|bound| &bound.name), Some(&service.name));
            }
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn order_does_not_matter((one, other) in configs().prop_flat_map(|one| (Just(one.clone()), shuffled(one)))) {
        let before = planned_from(&Desired::default(), &one, &own());
        let again = planned_from(&before, &one, &own());
        prop_assert_eq!(&before, &again);
        let after = planned_from(&before, &other, &own());
        prop_assert_eq!(&before, &after);
        for (id, service) in after.services.iter() {
            prop_assert!(Arc::ptr_eq(&service.table, &before.services[id].table));
        }
    }

    /// However the network changes, what comes of looking at the changes alone is what comes of looking at
    /// everything; and whatever has not changed is shared.
    #[test]
    fn a_change_of_the_network_ends_where_a_whole_plan_does(
        config in configs(),
        rounds in prop::collection::vec((prop::collection::btree_set(0..24_u8, 0..6), any::<bool>()), 1..6),
    ) {
        let at = |last: &u8| match last {
            0..12 => IpAddr::from([10, 0, 0, *last]),
            _ => ip(&format!("fd00::{}", last - 12)),
        };
        let mut ways: BTreeMap<IpAddr, Option<Hop>> = BTreeMap::new();
        let mut current = planned_from(&Desired::default(), &config, &own());
        for (touched, goes) in &rounds {
            let changed: BTreeSet<IpAddr> = touched.iter().map(at).collect();
            for address in &changed {
                let way = (!goes).then_some(Hop { slot: 2, ..HOP });
                ways.insert(*address, way);
            }
            let world = World {
                blocklists: &BTreeMap::new(),
                hop: &|backend| ways.get(&backend.address).copied().unwrap_or(Some(HOP)),
                own_addresses: &own(),
            };
            let next = replan(&current, &config, &world, &changed).expect("a plan");
            let whole = plan(&current, &config, &world).expect("a plan");
            prop_assert_eq!(&next, &whole);
            for change in current.backends.changes_to(&next.backends) {
                prop_assert!(change.after.is_some_and(|backend| changed.contains(&backend.address)));
            }
            for change in current.services.changes_to(&next.services) {
                let members = next.backends.values().filter(|backend| backend.service == change.id);
                prop_assert!(members.into_iter().any(|backend| changed.contains(&backend.address)));
            }
            prop_assert!(Arc::ptr_eq(&current.vips, &next.vips));
            current = next;
        }
    }

    #[test]
    fn plans_follow_each_other_soundly(configs in prop::collection::vec(configs(), 1..6)) {
        let mut previous = Desired::default();
        // Of every generation, the backend that had it.
        let mut holders = BTreeMap::new();
        for config in &configs {
            let next = planned_from(&previous, config, &own());
            is_sound(&previous, &next, config)?;
            for (id, backend) in next.backends.iter() {
                let holder = (*id, backend.address, backend.port);
                prop_assert_eq!(*holders.entry(backend.generation).or_insert(holder), holder);
            }
            let moved = previous.vips.iter().filter_map(|(vip, service)| vip.ports.zip(*service).map(|bound| (vip.address, bound)))
                .any(|(vip, ((protocol, ports), service))| {
                    let PortRange { first, last } = ports.range();
                    [first, last].into_iter().any(|port| next.still_bound(vip, protocol.number(), port) != Some(service))
                });
            prop_assert!(!moved || bindings_changed(&previous, &next));
            previous = next;
        }
    }
}
