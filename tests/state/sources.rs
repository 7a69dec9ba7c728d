//! The addresses that full-nat sends from.

use std::collections::BTreeMap;
use std::net::IpAddr;

use xdplb::state::{plan, Desired, Health, Hop, OwnAddress, World};

use crate::{addresses, config, find, full_nat, ip, planned_from, service, HOP, VIP, VIP6};

#[test]
fn listed_addresses_serve_every_backend_of_their_family() {
    let mut config = full_nat(&[VIP, VIP6], &["10.0.0.1", "fd00::1"]);
    config.datapath.addresses = ["192.0.2.2", "2001:db8::2", "192.0.2.1"].map(ip).to_vec();
    let own = [OwnAddress {
        address: ip("10.0.0.254"),
        slot: 1,
    }];
    let desired = planned_from(&Desired::default(), &config, &own);
    let from = |address| addresses(&desired, find(&desired, address).1.nat_pool);
    assert_eq!(from("10.0.0.1"), ["192.0.2.1", "192.0.2.2"]);
    assert_eq!(from("fd00::1"), ["2001:db8::2"]);
}

#[test]
fn own_addresses_are_those_of_the_interface_or_else_all() {
    let config = full_nat(&[VIP], &["10.0.0.1", "10.1.0.1", "10.2.0.1"]);
    let own = [
        ("10.1.0.254", 2),
        ("10.0.0.254", 1),
        ("10.0.0.253", 1),
        ("fd00::1", 1),
        // Of no use: a VIP, loopback and link-local addresses.
        (VIP, 1),
        ("127.0.0.1", 1),
        ("fe80::1", 2),
    ];
    let own = own.map(|(address, port)| OwnAddress {
        address: ip(address),
        slot: port,
    });
    let third = |address: IpAddr| match address {
        IpAddr::V4(address) => u16::from(address.octets()[1]) + 1,
        IpAddr::V6(_) => 0,
    };
    let hop = |backend: &config::Backend| {
        Some(Hop {
            slot: third(backend.address),
            ..HOP
        })
    };
    let desired = plan(
        &Desired::default(),
        &config,
        &World {
            blocklists: &BTreeMap::new(),
            hop: &hop,
            own_addresses: &own,
        },
    )
    .expect("a plan");
    let from = |address| addresses(&desired, find(&desired, address).1.nat_pool);
    assert_eq!(from("10.0.0.1"), ["10.0.0.253", "10.0.0.254"]);
    assert_eq!(from("10.1.0.1"), ["10.1.0.254"]);
    assert_eq!(from("10.2.0.1"), ["10.0.0.253", "10.0.0.254", "10.1.0.254"]);
    assert_eq!(desired.nat_pool.len(), 4);
}

#[test]
fn full_nat_needs_a_source() {
    let mut config = full_nat(&[VIP], &["10.0.0.1"]);
    config.datapath.addresses = vec![ip("2001:db8::2")];
    let own = [OwnAddress {
        address: ip("10.0.0.254"),
        slot: 1,
    }];
    let desired = planned_from(&Desired::default(), &config, &own);
    let (_, backend) = find(&desired, "10.0.0.1");
    assert_eq!((backend.health, backend.usable), (Health::NoSource, false));
    assert!(desired.services[&0].table.is_empty());
}

#[test]
fn a_host_whose_only_address_is_the_vip_sends_from_it() {
    let own = [OwnAddress {
        address: ip(VIP),
        slot: 1,
    }];
    let desired = planned_from(&Desired::default(), &full_nat(&[VIP], &["10.0.0.1"]), &own);
    let (_, backend) = find(&desired, "10.0.0.1");
    assert_eq!(addresses(&desired, backend.nat_pool), [VIP]);
    assert!(backend.usable);
}

#[test]
fn nat_alone_leaves_the_pool_empty() {
    let own = [OwnAddress {
        address: ip("10.0.0.254"),
        slot: 1,
    }];
    let config = config(vec![service("web", &[VIP], 80, &["10.0.0.1"])]);
    assert!(planned_from(&Desired::default(), &config, &own)
        .nat_pool
        .is_empty());
}
