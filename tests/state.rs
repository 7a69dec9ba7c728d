//! Properties of the desired state: ids, generations, bindings, protection, sources, ports, regions,
//! filter. The compiled firewall has tests of its own.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use xdplb::config::blocklist::Contents;
use xdplb::config::{
    self, AdminState, Config, Datapath, Forward, HashBy, Limits, Log, LogFormat, MacAddress,
    OnDownByProtocol, PolicyAction, PolicyProtocol, PortRange, Prefix, Protocol, Refusal,
    RuleAction, RuleProtocol, Timeouts, Tunnel, XdpMode,
};
use xdplb::state::maglev::{size_for, MAX_SLOTS};
use xdplb::state::ports::{cover, merge, PortPrefix};
use xdplb::state::regions::{capacity_for, Regions};
use xdplb::state::{
    bindings_changed, filter, plan, replan, Backend, Desired, Echo, Family, Health, Hop,
    OwnAddress, PlanError, PoolSlice, Vip, World, NAT_POOL_LIMIT,
};

const VIP: &str = "203.0.113.11";
const VIP6: &str = "2001:db8:1::11";

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn config(services: Vec<config::Service>) -> Config {
    let second = Duration::from_secs(1);
    Config {
        datapath: Datapath {
            interfaces: vec!["eth0".into()],
            xdp_mode: XdpMode::Auto,
            pin_dir: PathBuf::from("/sys/fs/bpf/xdplb"),
            run_dir: PathBuf::from("/run/xdplb"),
            addresses: Vec::new(),
            hash_seed: 0,
            unknown_port: Refusal::Pass,
            icmp_echo: true,
        },
        limits: Limits {
            services: 64,
            backends: 1024,
            connections: 1024,
            ..Limits::default()
        },
        timeouts: Timeouts {
            tcp_opening: second,
            tcp_established: second,
            tcp_half_closed: second,
            tcp_closing: second,
            udp: second,
            other: second,
        },
        tunnel: Tunnel::default(),
        services,
        firewall: None,
        dos: Vec::new(),
        log: Log {
            level: log::LevelFilter::Info,
            format: LogFormat::Text,
        },
    }
}

fn service(name: &str, vips: &[&str], port: u16, backends: &[&str]) -> config::Service {
    config::Service {
        name: name.into(),
        vips: vips.iter().map(|vip| ip(vip)).collect(),
        protocols: vec![Protocol::Tcp],
        ports: vec![PortRange {
            first: port,
            last: port,
        }],
        forward: Forward::Nat,
        hash: HashBy::FiveTuple,
        no_backend: Refusal::Drop,
        on_down: OnDownByProtocol::new(None),
        allow: Vec::new(),
        backends: backends
            .iter()
            .map(|address| backend(ip(address)))
            .collect(),
    }
}

fn backend(address: IpAddr) -> config::Backend {
    config::Backend {
        name: address.to_string(),
        address,
        port: None,
        weight: 1,
        state: AdminState::Up,
        interface: None,
        mac: None,
    }
}

const HOP: Hop = Hop {
    mac: MacAddress([2, 0, 0, 0, 0, 1]),
    slot: 1,
    on_link: true,
};

/// A plan in a world where every backend is found behind interface slot 1.
fn planned(previous: &Desired, config: &Config) -> Desired {
    planned_from(previous, config, &[])
}

fn planned_from(previous: &Desired, config: &Config, sources: &[OwnAddress]) -> Desired {
    plan(
        previous,
        config,
        &World {
            blocklists: &BTreeMap::new(),
            hop: &|_| Some(HOP),
            own_addresses: sources,
        },
    )
    .expect("a plan")
}

fn first_plan(config: &Config) -> Desired {
    planned(&Desired::default(), config)
}

fn find<'a>(desired: &'a Desired, address: &str) -> (u32, &'a Backend) {
    let address = ip(address);
    let mut found = desired
        .backends
        .iter()
        .filter(|(_, backend)| backend.address == address);
    let (id, backend) = found.next().expect("the backend");
    assert!(found.next().is_none(), "only one");
    (*id, backend)
}

fn addresses(desired: &Desired, range: PoolSlice) -> Vec<String> {
    let (first, count) = (range.first as usize, range.count as usize);
    desired.nat_pool[first..first + count]
        .iter()
        .map(IpAddr::to_string)
        .collect()
}

// ------------------------------------------------------------------------------------------- ids

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

// ------------------------------------------------------------------------------------ protection

fn planned_with(previous: &Desired, config: &Config, blocklists: &Contents) -> Desired {
    let world = World {
        blocklists,
        hop: &|_| Some(HOP),
        own_addresses: &[],
    };
    plan(previous, config, &world).expect("a plan")
}

fn read(lists: &[(&str, &[&str])]) -> Contents {
    lists
        .iter()
        .map(|(path, prefixes)| {
            let prefixes = prefixes.iter().map(|text| text.parse().expect("a prefix"));
            (PathBuf::from(path), prefixes.collect())
        })
        .collect()
}

fn protected(lists: &[&str], rules: usize) -> Config {
    let rule = config::Rule {
        name: None,
        action: RuleAction::Deny,
        source: Some(prefix("198.51.100.0", 24)),
        protocol: RuleProtocol::Any,
        source_port: PortRange::ANY,
        port: PortRange::ANY,
    };
    Config {
        firewall: Some(config::Firewall {
            default: RuleAction::Allow,
            blocklists: lists.iter().map(PathBuf::from).collect(),
            rules: vec![rule; rules],
        }),
        ..config(vec![service("web", &[VIP], 80, &["10.0.0.1"])])
    }
}

#[test]
fn a_firewall_that_lets_everything_in_is_none() {
    let none = read(&[]);
    let mut config = protected(&[], 0);
    let before = planned_with(&Desired::default(), &protected(&[], 1), &none);
    assert!(before.firewall.is_some());
    assert_eq!(planned_with(&before, &config, &none).firewall, None);
    config.firewall = None;
    assert_eq!(planned_with(&before, &config, &none).firewall, None);
    config.firewall = Some(config::Firewall {
        default: RuleAction::Deny,
        blocklists: vec![],
        rules: vec![],
    });
    assert!(planned_with(&before, &config, &none).firewall.is_some());
    let empty = planned_with(&before, &protected(&["x"], 0), &read(&[("x", &[])]));
    assert!(empty.firewall.is_some(), "it is there to be seen");
}

#[test]
fn the_firewall_is_compiled_when_it_changes() {
    let lists = read(&[("x", &["192.0.2.0/24"]), ("y", &["2001:db8::/32"])]);
    let config = protected(&["x", "y"], 2);
    let before = planned_with(&Desired::default(), &config, &lists);
    let of = |desired: &Desired| desired.firewall.clone().expect("a firewall");
    let same = |config: &Config, lists: &Contents| {
        let after = planned_with(&before, config, lists);
        Arc::ptr_eq(&of(&after), &of(&before))
    };
    assert!(same(&config, &lists));
    // Read anew.
    let again = read(&[("x", &["192.0.2.0/24"]), ("y", &["2001:db8::/32"])]);
    assert!(same(&config, &again));
    // What is not named is not looked at.
    let mut more = lists.clone();
    more.extend(read(&[("z", &["10.0.0.0/8"])]));
    assert!(same(&config, &more));

    let longer = read(&[
        ("x", &["192.0.2.0/24", "10.0.0.0/8"]),
        ("y", &["2001:db8::/32"]),
    ]);
    let other = read(&[("x", &["192.0.2.0/25"]), ("y", &["2001:db8::/32"])]);
    assert!(!same(&config, &longer));
    assert!(!same(&config, &other));
    type Change = fn(&mut config::Firewall);
    let changes: [Change; 6] = [
        |firewall| firewall.default = RuleAction::Deny,
        |firewall| firewall.blocklists.swap(0, 1),
        |firewall| drop(firewall.blocklists.pop()),
        |firewall| drop(firewall.rules.pop()),
        |firewall| firewall.rules[1].action = RuleAction::Allow,
        |firewall| firewall.rules[1].name = Some("a".into()),
    ];
    for change in changes {
        let mut config = config.clone();
        change(config.firewall.as_mut().expect("a firewall"));
        assert!(!same(&config, &lists));
    }
    let mut swapped = protected(&["x", "y"], 2);
    let rules = &mut swapped.firewall.as_mut().expect("a firewall").rules;
    rules[0].action = RuleAction::Allow;
    let one = planned_with(&before, &swapped, &lists);
    let rules = &mut swapped.firewall.as_mut().expect("a firewall").rules;
    rules.swap(0, 1);
    let other = planned_with(&one, &swapped, &lists);
    assert_ne!(of(&one), of(&other), "their order counts");
}

#[test]
fn a_blocklist_that_was_not_read_is_no_empty_one() {
    let world = World {
        blocklists: &read(&[("x", &[])]),
        hop: &|_| Some(HOP),
        own_addresses: &[],
    };
    let error = plan(&Desired::default(), &protected(&["x", "y"], 1), &world).expect_err("unread");
    assert_eq!(error, PlanError::Unread { path: "y".into() });
}

fn policy(name: &str, protocol: PolicyProtocol) -> config::Policy {
    config::Policy {
        name: name.into(),
        protocol,
        tcp_flags: (0, 0),
        limit: 10,
        burst: 10,
        action: PolicyAction::Limit,
    }
}

#[test]
fn policies_stay_in_their_slots() {
    let (tcp, udp) = (PolicyProtocol::Tcp, PolicyProtocol::Udp);
    let with = |policies: &[(&str, PolicyProtocol)]| Config {
        dos: policies
            .iter()
            .map(|(name, protocol)| policy(name, *protocol))
            .collect(),
        ..config(vec![])
    };
    let slots = |desired: &Desired| -> Vec<(PolicyProtocol, u8, String)> {
        let slots = desired.policies.iter();
        slots
            .map(|((protocol, slot), policy)| {
                assert_eq!(policy.protocol, *protocol);
                (*protocol, *slot, policy.name.clone())
            })
            .collect()
    };
    let slot = |protocol, slot, name: &str| (protocol, slot, name.to_owned());
    let first = first_plan(&with(&[("a", tcp), ("u", udp), ("b", tcp), ("c", tcp)]));
    let expected = [
        slot(tcp, 0, "a"),
        slot(tcp, 1, "b"),
        slot(tcp, 2, "c"),
        slot(udp, 0, "u"),
    ];
    assert_eq!(slots(&first), expected);
    // In another order; one is new, and a slot that has just become free waits; one has another protocol.
    let second = planned(
        &first,
        &with(&[("d", tcp), ("c", tcp), ("a", udp), ("u", udp), ("b", tcp)]),
    );
    let expected = [
        slot(tcp, 1, "b"),
        slot(tcp, 2, "c"),
        slot(tcp, 3, "d"),
        slot(udp, 0, "u"),
        slot(udp, 1, "a"),
    ];
    assert_eq!(slots(&second), expected);
    // All eight, whatever was there before.
    let names = ["b", "1", "2", "3", "4", "5", "6", "7", "8"];
    let full: Vec<_> = names.iter().map(|name| (*name, tcp)).collect();
    let third = planned(&second, &with(&full[..8]));
    assert_eq!(third.policies.len(), 8);
    assert_eq!(third.policies[&(tcp, 1)].name, "b");
    for slot in [2, 3] {
        assert_eq!(
            third.policies[&(tcp, slot)].name,
            ["6", "7"][usize::from(slot) - 2]
        );
    }
    let world = World {
        blocklists: &Contents::new(),
        hop: &|_| Some(HOP),
        own_addresses: &[],
    };
    let error = plan(&third, &with(&full), &world).expect_err("nine");
    assert_eq!(
        error,
        PlanError::Policies {
            protocol: tcp,
            count: 9
        }
    );
    assert!(planned(&third, &with(&[])).policies.is_empty());
}

#[test]
fn both_families_of_a_service_have_its_allow() {
    let mut web = service("web", &[VIP, VIP6], 80, &["10.0.0.1", "fd00::1"]);
    web.allow = vec![prefix("198.51.100.0", 24), prefix("2001:db8::", 32)];
    let desired = first_plan(&config(vec![web.clone()]));
    assert_eq!(desired.services.len(), 2);
    assert!(desired
        .services
        .values()
        .all(|half| half.allow == web.allow));
}

// ------------------------------------------------------------------------- usability and tables

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

// ------------------------------------------------------------------------------------- sources

fn full_nat(vips: &[&str], backends: &[&str]) -> Config {
    let mut service = service("web", vips, 80, backends);
    service.forward = Forward::FullNat;
    config(vec![service])
}

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

// -------------------------------------------------------------------------------- direct return

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

fn prefix(address: &str, length: u8) -> Prefix {
    let prefix = Prefix::covering(ip(address), length);
    assert_eq!(prefix.address(), ip(address));
    prefix
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

// --------------------------------------------------------------------------------------- errors

#[test]
fn limits_are_named_with_what_to_do() {
    let refused = |config: &Config, sources: &[OwnAddress]| {
        let world = World {
            blocklists: &BTreeMap::new(),
            hop: &|_| Some(HOP),
            own_addresses: sources,
        };
        plan(&Desired::default(), config, &world).expect_err("refused")
    };
    let mut web = config(vec![service(
        "web",
        &[VIP, VIP6],
        80,
        &["10.0.0.1", "10.0.0.2"],
    )]);
    web.limits.services = 1;
    let error = refused(&web, &[]);
    assert_eq!(
        error,
        PlanError::Services {
            needed: 2,
            limit: 1
        }
    );
    assert!(
        error
            .to_string()
            .contains("raise limits.services to 2 or more"),
        "{error}"
    );

    web.limits.services = 2;
    web.limits.backends = 1;
    let error = refused(&web, &[]);
    assert_eq!(
        error,
        PlanError::Backends {
            needed: 2,
            limit: 1
        }
    );
    assert!(
        error
            .to_string()
            .contains("raise limits.backends to 2 or more"),
        "{error}"
    );

    let many = |count: usize| {
        (0..count as u32).map(|index| OwnAddress {
            address: IpAddr::from((0x0b00_0000 + index).to_be_bytes()),
            slot: 0,
        })
    };
    let error = refused(
        &full_nat(&[VIP], &[]),
        &many(NAT_POOL_LIMIT + 1).collect::<Vec<_>>(),
    );
    assert_eq!(error, PlanError::NatPool { count: 4097 });
    assert!(error.to_string().contains("datapath.addresses"), "{error}");

    let mut crowd = config(vec![service("crowd", &[VIP], 80, &[])]);
    crowd.services[0].backends = many(65_536).map(|source| backend(source.address)).collect();
    crowd.limits.backends = 100_000;
    let error = refused(&crowd, &[]);
    assert_eq!(
        error,
        PlanError::ServiceBackends {
            service: "crowd".into(),
            count: 65_536
        }
    );
}

// ------------------------------------------------------------------------------------- bindings

#[test]
fn a_port_belongs_to_the_longest_prefix() {
    let mut any = service("any", &[VIP], 0, &[]);
    any.ports = vec![PortRange::ANY];
    let desired = first_plan(&config(vec![any, service("web", &[VIP], 80, &[])]));
    assert_eq!(desired.still_bound(ip(VIP), 6, 81), Some(0));
    assert_eq!(desired.still_bound(ip(VIP), 6, 80), Some(1));
    assert_eq!(desired.still_bound(ip(VIP), 17, 80), None);
    assert_eq!(desired.still_bound(ip(VIP), 1, 0), None);
    assert_eq!(desired.still_bound(ip("10.0.0.1"), 6, 80), None);
}

#[test]
fn bindings_change_when_a_port_changes_hands() {
    let web = || service("web", &[VIP], 80, &["10.0.0.1"]);
    let tls = || service("tls", &[VIP], 443, &["10.0.0.1"]);
    let any = || config::Service {
        ports: vec![PortRange::ANY],
        ..service("any", &[VIP], 0, &[])
    };
    let before = first_plan(&config(vec![web(), tls()]));
    let changed = |services| bindings_changed(&before, &planned(&before, &config(services)));
    assert!(!changed(vec![tls(), web()]));
    assert!(!changed(vec![
        web(),
        tls(),
        service("dns", &[VIP], 53, &[])
    ]));
    assert!(!changed(vec![tls(), service("renamed", &[VIP], 80, &[])]));
    assert!(changed(vec![web()]));
    assert!(changed(vec![service("web", &[VIP], 81, &[]), tls()]));
    assert!(changed(vec![
        config::Service {
            protocols: vec![Protocol::Udp],
            ..web()
        },
        tls()
    ]));

    let wide = first_plan(&config(vec![any()]));
    let narrowed = planned(&wide, &config(vec![any(), web()]));
    assert!(
        bindings_changed(&wide, &narrowed),
        "web took port 80 from any"
    );
}

// ----------------------------------------------------------------------------- plans, properties

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

const OWN: [(&str, u16); 3] = [("10.0.0.254", 1), ("10.1.0.254", 2), ("fd00::fe", 1)];

fn own() -> Vec<OwnAddress> {
    OWN.iter()
        .map(|(address, port)| OwnAddress {
            address: ip(address),
            slot: *port,
        })
        .collect()
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

// ---------------------------------------------------------------------------------------- ports

fn range() -> impl Strategy<Value = PortRange> {
    (any::<u16>(), any::<u16>()).prop_map(|(a, b)| PortRange {
        first: a.min(b),
        last: a.max(b),
    })
}

#[test]
fn covers_of_the_extremes() {
    assert_eq!(cover(PortRange::ANY), [PortPrefix::new(0, 0)]);
    assert_eq!(
        cover(PortRange {
            first: 65535,
            last: 65535
        }),
        [PortPrefix::new(65535, 16)]
    );
    assert_eq!(
        cover(PortRange {
            first: 1,
            last: 65534
        })
        .len(),
        30
    );
    assert!(cover(PortRange { first: 2, last: 1 }).is_empty());
    assert_eq!(PortPrefix::new(8003, 99), PortPrefix::new(8003, 16));
    let eight: Vec<_> = cover(PortRange {
        first: 8000,
        last: 8010,
    })
    .into_iter()
    .map(|prefix| (prefix.value(), prefix.length()))
    .collect();
    assert_eq!(eight, [(8000, 13), (8008, 15), (8010, 16)]);
}

#[test]
fn merge_joins_what_touches() {
    let ranges = [(80, 80), (81, 90), (85, 87), (443, 443), (65535, 65535)];
    let prefixes = ranges
        .into_iter()
        .rev()
        .flat_map(|(first, last)| cover(PortRange { first, last }));
    let merged: Vec<_> = merge(prefixes)
        .into_iter()
        .map(|range| (range.first, range.last))
        .collect();
    assert_eq!(merged, [(80, 90), (443, 443), (65535, 65535)]);
    assert!(merge([]).is_empty());
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_cover_is_exact_disjoint_and_minimal(range in range()) {
        let prefixes = cover(range);
        prop_assert!(prefixes.len() <= 30);
        prop_assert_eq!(merge(prefixes.iter().copied()), vec![range]);
        // Ascending, each beginning where the one before ends: exact and disjoint.
        let mut next = u32::from(range.first);
        for prefix in &prefixes {
            prop_assert_eq!(u32::from(prefix.range().first), next);
            next = u32::from(prefix.range().last) + 1;
        }
        prop_assert_eq!(next, u32::from(range.last) + 1);
        // Minimal: no prefix could be a bit shorter and still lie within the range. Prefixes nest or
        // are disjoint, so any other cover consists of parts of these.
        for prefix in prefixes {
            let wider = prefix.length().checked_sub(1).map(|length| PortPrefix::new(prefix.value(), length).range());
            prop_assert!(wider.is_none_or(|wider| wider.first < range.first || wider.last > range.last));
        }
    }
}

// --------------------------------------------------------------------------------------- filter

#[test]
fn filter_bits_are_those_of_the_datapath() {
    let expected = |word: u32| (word.wrapping_mul(0x9E37_79B1) >> 16) as u16;
    let v4 = u32::from_ne_bytes([203, 0, 113, 11]);
    assert_eq!(filter::bit(ip(VIP)), expected(v4));
    let words = [
        [0x20, 1, 0x0d, 0xb8],
        [0, 1, 0, 0],
        [0, 0, 0, 0],
        [0, 0, 0, 0x11],
    ]
    .map(u32::from_ne_bytes);
    let folded =
        words[0] ^ words[1].rotate_left(8) ^ words[2].rotate_left(16) ^ words[3].rotate_left(24);
    assert_eq!(filter::bit(ip(VIP6)), expected(folded));

    let words = filter::words([ip(VIP), ip(VIP6)]);
    assert_eq!(words.iter().map(|word| word.count_ones()).sum::<u32>(), 2);
}

// -------------------------------------------------------------------------------------- regions

#[test]
fn a_released_region_rests_and_is_joined_again() {
    let mut regions = Regions::new(1000);
    assert_eq!(regions.allocate(400), Some(0));
    assert_eq!(regions.allocate(600), Some(400));
    assert_eq!(regions.allocate(1), None);
    assert!(!regions.has_released());
    assert!(regions.release(0, 400));
    assert!(!regions.release(0, 400), "it is not in use any more");
    assert!(regions.has_released());
    assert_eq!(regions.allocate(1), None);
    regions.reclaim();
    assert!(!regions.has_released());
    assert_eq!(regions.allocate(400), Some(0));
    assert!(regions.release(400, 600) && regions.release(0, 400));
    regions.reclaim();
    assert_eq!(regions.allocate(1000), Some(0));
}

#[test]
fn odd_requests_change_nothing() {
    let mut regions = Regions::new(100);
    assert_eq!(regions.allocate(0), None);
    assert_eq!(regions.allocate(101), None);
    assert!(
        !regions.reserve(50, 51) && !regions.reserve(u32::MAX, u32::MAX) && !regions.reserve(0, 0)
    );
    assert!(regions.reserve(10, 20));
    assert!(!regions.reserve(29, 1));
    assert!(!regions.release(10, 19));
    assert_eq!(regions.allocate(10), Some(0));
    assert_eq!(regions.allocate(70), Some(30));
    assert_eq!(Regions::new(0).allocate(1), None);
}

#[derive(Debug, Clone)]
enum Step {
    Allocate(u32),
    Release(prop::sample::Index),
    Reclaim,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => prop_oneof![Just(251), Just(2039), Just(16_381), 1..5000u32].prop_map(Step::Allocate),
        2 => any::<prop::sample::Index>().prop_map(Step::Release),
        1 => Just(Step::Reclaim),
    ]
}

fn overlap(one: (u32, u32), other: (u32, u32)) -> bool {
    one.0 < other.0 + other.1 && other.0 < one.0 + one.1
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn regions_never_overlap_and_none_is_lost(steps in prop::collection::vec(step(), 0..200)) {
        const CAPACITY: u32 = 60_000;
        let mut regions = Regions::new(CAPACITY);
        let mut live: Vec<(u32, u32)> = Vec::new();
        let mut resting: Vec<(u32, u32)> = Vec::new();
        for step in steps {
            match step {
                Step::Allocate(size) => {
                    let allocated = regions.allocate(size);
                    let taken = || live.iter().chain(&resting);
                    if let Some(offset) = allocated {
                        prop_assert!(offset + size <= CAPACITY);
                        prop_assert!(taken().all(|region| !overlap(*region, (offset, size))));
                        live.push((offset, size));
                    } else {
                        let used: u32 = taken().map(|region| region.1).sum();
                        let gaps = taken().count() as u32 + 1;
                        prop_assert!((CAPACITY - used).div_ceil(gaps) < size, "some gap was large enough");
                    }
                }
                Step::Release(which) if !live.is_empty() => {
                    let (offset, size) = live.swap_remove(which.index(live.len()));
                    prop_assert!(regions.release(offset, size));
                    resting.push((offset, size));
                }
                Step::Release(_) => {}
                Step::Reclaim => {
                    regions.reclaim();
                    resting.clear();
                }
            }
        }
        for (offset, size) in live {
            prop_assert!(regions.release(offset, size));
        }
        regions.reclaim();
        prop_assert_eq!(regions.allocate(CAPACITY), Some(0));
    }

    /// However backends are spread over services, their tables fit, the two largest twice.
    #[test]
    fn every_configuration_has_room(
        services in 1..6000u32,
        backends in 1..40_000u32,
        sizes in prop::collection::vec(
            (prop_oneof![Just(1u32), Just(2), Just(23), Just(181), 1..400u32], 1..3000usize),
            1..6,
        ),
    ) {
        let capacity = capacity_for(&Limits { services, backends, connections: 1, ..Limits::default() });
        let mut left = backends;
        let mut total = 2 * u64::from(MAX_SLOTS);
        let wanted = sizes.into_iter().flat_map(|(size, times)| std::iter::repeat_n(size, times));
        for size in wanted.take(services as usize) {
            let count = size.min(left);
            left -= count;
            total += u64::from(size_for(count as usize));
        }
        prop_assert!(total <= u64::from(capacity));
    }
}

#[test]
fn capacity_allows_for_mixed_sizes() {
    let limits = Limits {
        services: 4096,
        backends: 16384,
        connections: 1,
        ..Limits::default()
    };
    // The worst case: 45 services of 181 backends beside 4,051 of two.
    let worst: u64 = 45 * 131_071 + 4_051 * 2_039;
    let capacity = u64::from(capacity_for(&limits));
    assert!(capacity >= worst * 5 / 4 + 2 * 131_071);
    assert!(capacity < worst * 5 / 4 + 3 * 131_071);
    let endless = Limits {
        services: u32::MAX,
        backends: u32::MAX,
        connections: 1,
        ..Limits::default()
    };
    assert_eq!(capacity_for(&endless), u32::MAX);
    assert_eq!(
        capacity_for(&Limits {
            services: 0,
            backends: 0,
            connections: 0,
            ..Limits::default()
        }),
        2 * MAX_SLOTS
    );
}
