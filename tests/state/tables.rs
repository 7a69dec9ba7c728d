//! Which backends take slots, how large a table is and when it is made anew; what a VIP does without any.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use xdplb::config::{AdminState, Config, Refusal};
use xdplb::state::{bindings_changed, plan, replan, Desired, Echo, Health, World};

use crate::{
    config, find, first_plan, full_nat, ip, own, planned, planned_from, service, HOP, VIP, VIP6,
};

#[test]
fn only_usable_backends_take_slots() {
    let mut web = service(
        "web",
        &[VIP],
        80,
        &["10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5"],
    );
    web.backends[1].state = AdminState::Drain;
    web.backends[2].state = AdminState::Down;
    web.backends[3].weight = 0;
    let lost = ip("10.0.0.5");
    let world = World {
        blocklists: &BTreeMap::new(),
        hop: &|backend| (backend.address != lost).then_some(HOP),
        own_addresses: &[],
    };
    let desired = plan(&Desired::default(), &config(vec![web]), &world).expect("a plan");
    let usable: Vec<bool> = desired
        .backends
        .values()
        .map(|backend| backend.usable)
        .collect();
    assert_eq!(usable, [true, true, false, true, false]);
    assert_eq!(find(&desired, "10.0.0.5").1.health, Health::Unresolved);
    assert_eq!(*desired.services[&0].table, [0; 2_039]);
}

/// What becomes unusable across the limit of a size class moves its own slots and few others, however it
/// becomes so: two instances that see it differently agree on the rest.
#[test]
fn the_size_of_a_table_follows_the_file() {
    let lost = ip("10.0.0.7");
    let gone = World {
        blocklists: &BTreeMap::new(),
        hop: &|backend| (backend.address != lost).then_some(HOP),
        own_addresses: &[],
    };
    for count in [2_u32, 23, 181] {
        let addresses: Vec<String> = (7..7 + count)
            .map(|last| format!("10.0.{}.{}", last >> 8, last & 255))
            .collect();
        let addresses: Vec<&str> = addresses.iter().map(String::as_str).collect();
        let all = config(vec![service("web", &[VIP], 80, &addresses)]);
        let before = first_plan(&all);
        type Change = fn(&mut config::Backend);
        let changes: [Change; 3] = [
            |backend| backend.state = AdminState::Down,
            |backend| backend.state = AdminState::Drain,
            |backend| backend.weight = 0,
        ];
        let mut after: Vec<Desired> = changes
            .iter()
            .map(|change| {
                let mut less = all.clone();
                change(&mut less.services[0].backends[0]);
                planned(&before, &less)
            })
            .collect();
        after.push(plan(&before, &all, &gone).expect("a plan"));
        let (id, _) = find(&before, "10.0.0.7");
        let table = |desired: &Desired| Arc::clone(&desired.services[&0].table);
        let whole = table(&before);
        let own = whole.iter().filter(|slot| **slot == id).count();
        for less in after.iter().map(table) {
            assert_eq!(less.len(), whole.len(), "{count}");
            let moved = whole
                .iter()
                .zip(less.iter())
                .filter(|(a, b)| a != b)
                .count();
            let most = own + whole.len() / 20;
            assert!(
                moved <= most,
                "{moved} of {} moved, {own} had to",
                whole.len()
            );
        }
    }
}

#[test]
fn a_table_is_made_anew_only_when_it_changes() {
    let original = config(vec![service("web", &[VIP], 80, &["10.0.0.1", "10.0.0.2"])]);
    let before = first_plan(&original);
    let table = |desired: &Desired| Arc::clone(&desired.services[&0].table);
    assert!(Arc::ptr_eq(
        &table(&before),
        &table(&planned(&before, &original))
    ));

    let mut reseeded = original.clone();
    reseeded.datapath.hash_seed = 1;
    assert_ne!(table(&before), table(&planned(&before, &reseeded)));

    let unresolved = World {
        blocklists: &BTreeMap::new(),
        hop: &|_| None,
        own_addresses: &[],
    };
    let down = plan(&before, &original, &unresolved).expect("a plan");
    assert!(table(&down).is_empty());
    assert_eq!(table(&before), table(&planned(&down, &original)));

    let mut stripped = before.clone();
    stripped
        .services
        .values_mut()
        .for_each(|service| Arc::make_mut(service).table = Arc::default());
    assert_eq!(table(&before), table(&planned(&stripped, &original)));
}

/// Other own addresses may change every backend: then the whole is planned, whatever is said to have changed.
#[test]
fn other_own_addresses_are_no_small_change() {
    let config = full_nat(&[VIP], &["10.0.0.1"]);
    let before = first_plan(&config);
    assert_eq!(find(&before, "10.0.0.1").1.health, Health::NoSource);
    let world = World {
        blocklists: &BTreeMap::new(),
        hop: &|_| Some(HOP),
        own_addresses: &own(),
    };
    let after = replan(&before, &config, &world, &BTreeSet::new()).expect("a plan");
    assert_eq!(after, planned_from(&before, &config, &own()));
    assert_eq!(find(&after, "10.0.0.1").1.health, Health::Up);
}

#[test]
fn a_vip_answers_ping_while_a_backend_can_be_chosen() {
    let mut config = config(vec![
        service("web", &[VIP, VIP6], 80, &["10.0.0.1"]),
        service("tls", &[VIP], 443, &["10.0.0.2"]),
    ]);
    let resolved = |addresses: &'static [&str]| {
        move |backend: &config::Backend| {
            let address = backend.address.to_string();
            addresses.contains(&&*address).then_some(HOP)
        }
    };
    let planned = |previous: &Desired, config: &Config, addresses| {
        let world = World {
            blocklists: &BTreeMap::new(),
            hop: &resolved(addresses),
            own_addresses: &[],
        };
        plan(previous, config, &world).expect("a plan")
    };
    let all = planned(&Desired::default(), &config, &["10.0.0.1", "10.0.0.2"]);
    assert_eq!(all.echoes[&ip(VIP)], Echo::Answer);
    assert_eq!(
        all.echoes[&ip(VIP6)],
        Echo::Drop,
        "no backend of its family"
    );
    assert_eq!(all.echoes.len(), 2);
    let one = planned(&all, &config, &["10.0.0.2"]);
    assert_eq!(one.echoes[&ip(VIP)], Echo::Answer, "tls is still there");
    let none = planned(&one, &config, &[]);
    assert_eq!(none.echoes[&ip(VIP)], Echo::Drop);
    assert!(!bindings_changed(&all, &none) && !bindings_changed(&none, &all));

    // A draining backend serves who is there, and takes nobody new.
    for service in &mut config.services {
        service.backends[0].state = AdminState::Drain;
    }
    let draining = planned(&all, &config, &["10.0.0.1", "10.0.0.2"]);
    assert_eq!(draining.echoes[&ip(VIP)], Echo::Drop);

    config.datapath.icmp_echo = false;
    let passed = planned(&all, &config, &["10.0.0.1", "10.0.0.2"]);
    assert_eq!(passed.echoes[&ip(VIP)], Echo::Pass);
    assert_eq!(passed.echoes[&ip(VIP6)], Echo::Pass);
}

#[test]
fn no_backend_is_the_services_own() {
    let mut config = config(vec![
        service("web", &[VIP], 80, &[]),
        service("tls", &[VIP], 443, &[]),
    ]);
    config.services[1].no_backend = Refusal::Reject;
    let desired = first_plan(&config);
    let fates: Vec<Refusal> = desired.services.values().map(|s| s.no_backend).collect();
    assert_eq!(fates, [Refusal::Drop, Refusal::Reject]);
}
