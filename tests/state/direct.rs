//! Direct return: l2, ipip and gue.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use xdplb::config::{Config, Forward};
use xdplb::state::{plan, Desired, Family, Health, Hop, OwnAddress, PlanError, World};

use crate::{config, find, first_plan, ip, planned, planned_from, prefix, service, HOP, VIP, VIP6};

const DIRECT: [Forward; 3] = [Forward::L2, Forward::Ipip, Forward::Gue];

/// Each mode's own addresses are there, so that backends can be used.
fn direct(forward: Forward, vips: &[&str], backends: &[&str]) -> Config {
    let mut config = config(vec![config::Service {
        forward,
        ..service("web", vips, 80, backends)
    }]);
    config.tunnel.source = vec![prefix("192.0.2.1", 32), prefix("2001:db8::1", 128)];
    config
}

#[test]
fn a_tunnel_serves_both_families_with_every_backend() {
    let members = |forward| {
        let desired = first_plan(&direct(
            forward,
            &[VIP, VIP6],
            &["10.0.0.1", "fd00::1", "10.0.0.2"],
        ));
        let of = |family| {
            let (id, service) = desired
                .services
                .iter()
                .find(|(_, service)| service.family == family)
                .expect("a service of each family");
            let in_table: BTreeSet<IpAddr> = service
                .table
                .iter()
                .map(|backend| desired.backends[backend].address)
                .collect();
            let own = desired.backends.values().filter(|b| b.service == *id);
            assert_eq!(own.map(|b| b.address).collect::<BTreeSet<_>>(), in_table);
            in_table.len()
        };
        [of(Family::Ipv4), of(Family::Ipv6)]
    };
    assert_eq!(members(Forward::L2), [2, 1]);
    assert_eq!(members(Forward::Ipip), [3, 3]);
    assert_eq!(members(Forward::Gue), [3, 3]);

    // A VIP of one family is enough.
    let desired = first_plan(&direct(Forward::Gue, &[VIP6], &["10.0.0.1"]));
    assert_eq!(desired.services.len(), 1);
    let (id, backend) = find(&desired, "10.0.0.1");
    assert!(backend.usable);
    assert_eq!(*desired.services[&0].table, [id; 251]);
    assert_eq!(desired.services[&0].family, Family::Ipv6);
}

#[test]
fn backends_of_a_tunnel_count_for_each_family() {
    let mut config = direct(Forward::Ipip, &[VIP, VIP6], &["10.0.0.1", "10.0.0.2"]);
    config.limits.backends = 3;
    let world = World {
        blocklists: &BTreeMap::new(),
        hop: &|_| Some(HOP),
        own_addresses: &[],
    };
    assert_eq!(
        plan(&Desired::default(), &config, &world),
        Err(PlanError::Backends {
            needed: 4,
            limit: 3
        })
    );
}

#[test]
fn only_l2_needs_the_backend_on_the_link() {
    let behind = Hop {
        on_link: false,
        ..HOP
    };
    for forward in DIRECT {
        let config = direct(forward, &[VIP], &["10.0.0.1"]);
        let world = World {
            blocklists: &BTreeMap::new(),
            hop: &|_| Some(behind),
            own_addresses: &[],
        };
        let desired = plan(&Desired::default(), &config, &world).expect("a plan");
        let (_, backend) = find(&desired, "10.0.0.1");
        let expected = match forward {
            Forward::L2 => (Health::Unresolved, None),
            _ => (Health::Up, Some(behind)),
        };
        assert_eq!((backend.health, backend.hop), expected, "{forward}");
        assert_eq!(backend.usable, forward != Forward::L2);
        assert!(find(&first_plan(&config), "10.0.0.1").1.usable);
    }
}

#[test]
fn a_tunnel_begins_at_the_first_source_that_there_is() {
    let own = [
        (VIP, 1),
        ("203.0.113.200", 1),
        ("10.9.0.1", 2),
        ("fe80::1", 1),
    ];
    let own = own.map(|(address, port)| OwnAddress {
        address: ip(address),
        slot: port,
    });
    let mut config = direct(Forward::Ipip, &[VIP], &["10.0.0.1", "fd00::1"]);
    let outer = |config: &Config| {
        let desired = planned_from(&Desired::default(), config, &own);
        ["10.0.0.1", "fd00::1"].map(|address| {
            let (_, backend) = find(&desired, address);
            let usable = backend.outer.is_some();
            assert_eq!(backend.usable, usable);
            assert_eq!(backend.health == Health::NoSource, !usable);
            backend.outer.map(|outer| outer.to_string())
        })
    };
    let some = |address: &str| Some(address.to_owned());
    config.datapath.addresses = ["2001:db8::9", "192.0.2.9", "192.0.2.3"].map(ip).to_vec();
    config.tunnel.source = vec![prefix("172.16.0.0", 16)];
    assert_eq!(outer(&config), [some("172.16.0.0/16"), some("2001:db8::9")]);
    config.tunnel.source = vec![prefix("2001:db8:7::", 64)];
    assert_eq!(outer(&config), [some("192.0.2.9"), some("2001:db8:7::/64")]);
    // The interface's own, which is no VIP; none that is only good on its link.
    config.tunnel.source.clear();
    config.datapath.addresses.clear();
    assert_eq!(outer(&config), [some("203.0.113.200"), None]);

    // The header that l2 does not have needs none.
    config.services[0].forward = Forward::L2;
    let desired = planned_from(&Desired::default(), &config, &[]);
    let (_, backend) = find(&desired, "10.0.0.1");
    assert_eq!((backend.outer, backend.usable), (None, true));
}

#[test]
fn tunnels_follow_their_settings_with_their_connections() {
    let before_config = direct(Forward::Gue, &[VIP], &["10.0.0.1"]);
    let before = first_plan(&before_config);
    let (id, old) = find(&before, "10.0.0.1");
    let mut config = before_config.clone();
    config.tunnel.source = vec![prefix("172.16.0.0", 16)];
    config.tunnel.gue_port = 5555;
    let after = planned(&before, &config);
    let (same, new) = find(&after, "10.0.0.1");
    assert_eq!((same, new.generation), (id, old.generation));
    assert_ne!(new.outer, old.outer);
    assert!(Arc::ptr_eq(
        &after.services[&0].table,
        &before.services[&0].table
    ));

    config.services[0].forward = Forward::Ipip;
    let after = planned(&before, &config);
    let (other, new) = find(&after, "10.0.0.1");
    assert_ne!(other, id);
    assert_ne!(new.generation, old.generation);
}
