//! The firewall, blocklists, policies and `allow` in a plan.

use std::path::PathBuf;
use std::sync::Arc;

use xdplb::config::blocklist::Contents;
use xdplb::config::{Config, PolicyAction, PolicyProtocol, PortRange, RuleAction, RuleProtocol};
use xdplb::state::{plan, Desired, PlanError, World};

use crate::{config, first_plan, planned, prefix, service, HOP, VIP, VIP6};

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
