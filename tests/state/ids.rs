//! Ids and generations: who keeps them over a plan, who gets new ones, and when a freed one comes back.

use std::sync::Arc;

use xdplb::config::{AdminState, Config, Forward, Limits};
use xdplb::state::{Desired, Family};

use crate::{config, find, first_plan, ip, planned, service, VIP, VIP6};

#[test]
fn each_address_family_is_a_service() {
    let web = service(
        "web",
        &[VIP, VIP6, "203.0.113.12"],
        80,
        &["10.0.0.1", "fd00::1", "10.0.0.2"],
    );
    let desired = first_plan(&config(vec![web]));
    assert_eq!(desired.services.len(), 2);
    for (id, service) in desired.services.iter() {
        assert_eq!(service.name, "web");
        let mut members = desired
            .backends
            .values()
            .filter(|backend| backend.service == *id);
        assert!(members.all(|backend| Family::of(backend.address) == service.family));
        assert_eq!(
            service.table.len() as u32,
            if service.family == Family::Ipv4 {
                2039
            } else {
                251
            }
        );
    }
    assert_eq!(
        desired
            .vips
            .values()
            .filter(|service| service.is_none())
            .count(),
        3
    );
    assert_eq!(desired.vips.len(), 6);
}

#[test]
fn a_renamed_service_keeps_its_id_and_connections() {
    let before = first_plan(&config(vec![
        service("other", &[VIP], 443, &["10.0.0.3"]),
        service("old", &[VIP], 80, &["10.0.0.1"]),
    ]));
    let after = planned(
        &before,
        &config(vec![service("new", &[VIP], 80, &["10.0.0.1"])]),
    );
    let (id, renamed) = after.services.iter().next().expect("a service");
    assert_eq!(before.services[id].name, "old");
    assert_eq!(renamed.name, "new");
    assert_eq!(find(&after, "10.0.0.1"), find(&before, "10.0.0.1"));
    assert!(Arc::ptr_eq(&renamed.table, &before.services[id].table));
}

#[test]
fn a_name_counts_for_more_than_a_binding() {
    let before = first_plan(&config(vec![
        service("a", &[VIP], 80, &["10.0.0.1"]),
        service("b", &[VIP], 443, &["10.0.0.2"]),
    ]));
    let after = planned(
        &before,
        &config(vec![
            service("c", &[VIP], 443, &["10.0.0.2"]),
            service("b", &[VIP], 80, &["10.0.0.2"]),
        ]),
    );
    let id_of = |desired: &Desired, name: &str| {
        desired
            .services
            .iter()
            .find(|(_, service)| service.name == name)
            .map(|(id, _)| *id)
    };
    assert_eq!(id_of(&after, "b"), id_of(&before, "b"));
    // Port 443 was b's, which is still there under its name: c is a new service.
    assert!(id_of(&after, "c").is_some_and(|id| !before.services.contains_key(&id)));
}

#[test]
fn a_backend_is_new_when_what_it_is_has_changed() {
    let original = config(vec![service("web", &[VIP], 80, &["10.0.0.1", "10.0.0.2"])]);
    let before = first_plan(&original);
    let (id, old) = find(&before, "10.0.0.1");

    type Change = fn(&mut Config);
    let kept: [Change; 4] = [
        |config| config.services[0].backends[0].weight = 7,
        |config| config.services[0].backends[0].name = "node".into(),
        |config| config.services[0].backends[0].state = AdminState::Drain,
        |config| config.services[0].vips.push(ip("203.0.113.99")),
    ];
    for change in kept {
        let mut config = original.clone();
        change(&mut config);
        let after = planned(&before, &config);
        let (same, backend) = find(&after, "10.0.0.1");
        assert_eq!((same, backend.generation), (id, old.generation));
    }
    let replaced: [Change; 2] = [
        |config| config.services[0].backends[0].port = Some(8080),
        |config| config.services[0].forward = Forward::FullNat,
    ];
    for change in replaced {
        let mut config = original.clone();
        change(&mut config);
        let after = planned(&before, &config);
        let (other, backend) = find(&after, "10.0.0.1");
        assert!(!before.backends.contains_key(&other));
        assert!(backend.generation >= before.next_generation);
    }
}

#[test]
fn a_freed_id_comes_back_one_plan_later() {
    let with = |backends: &[&str]| config(vec![service("web", &[VIP], 80, backends)]);
    let first = first_plan(&with(&["10.0.0.1", "10.0.0.2"]));
    let second = planned(&first, &with(&["10.0.0.2", "10.0.0.3"]));
    assert_eq!(second.backends.keys().copied().collect::<Vec<_>>(), [1, 2]);
    let third = planned(&second, &with(&["10.0.0.2", "10.0.0.3", "10.0.0.4"]));
    let (id, reused) = find(&third, "10.0.0.4");
    assert_eq!(id, 0);
    assert!(reused.generation > find(&third, "10.0.0.3").1.generation);
}

#[test]
fn what_finds_only_freed_ids_waits_for_the_next_plan() {
    let with = |vip, name, backends: &[&str]| {
        let mut config = config(vec![service(name, &[vip], 80, backends)]);
        config.limits = Limits {
            services: 1,
            backends: 2,
            connections: 1,
            ..Limits::default()
        };
        config
    };
    let first = first_plan(&with(VIP, "a", &["10.0.0.1", "10.0.0.2"]));
    let wanted = with("203.0.113.50", "b", &["10.0.0.3", "10.0.0.4"]);
    let second = planned(&first, &wanted);
    assert_eq!(
        (
            second.deferred,
            second.services.len(),
            second.backends.len()
        ),
        (1, 0, 0)
    );
    let third = planned(&second, &wanted);
    assert_eq!(
        (third.deferred, third.services.len(), third.backends.len()),
        (0, 1, 2)
    );

    let fourth = planned(
        &third,
        &with("203.0.113.50", "b", &["10.0.0.4", "10.0.0.5"]),
    );
    assert_eq!((fourth.deferred, fourth.backends.len()), (1, 1));
}

#[test]
fn generations_skip_zero() {
    let before = Desired {
        next_generation: u32::MAX,
        ..Desired::default()
    };
    let web = service("web", &[VIP], 80, &["10.0.0.1", "10.0.0.2", "10.0.0.3"]);
    let after = planned(&before, &config(vec![web]));
    let generations: Vec<u32> = after
        .backends
        .values()
        .map(|backend| backend.generation)
        .collect();
    assert_eq!(generations, [u32::MAX, 1, 2]);
}
