//! The compiled firewall: that looking a packet up as the datapath does gives the verdict of the rules,
//! which ids rules have, which prefixes are dropped as redundant, and rules that do not fit.

#[path = "common/firewall.rs"]
mod model;
#[path = "common/property.rs"]
mod property;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use model::{decide, Decision, Packet};
use proptest::prelude::*;
use xdplb::config::{
    self, Firewall as Wanted, Limits, PortRange, Prefix, RuleAction, RuleProtocol,
};
use xdplb::state::firewall::{
    compile, Level, Node, Rule, Ruleset, Step, BLOCKLIST_LIMIT, DEFAULT_ID, LEVEL_LIMIT,
};
use xdplb::state::PlanError;

const LIMITS: Limits = Limits {
    services: 1,
    backends: 1,
    connections: 1,
    firewall_rules: 256,
    sources: 1,
};

fn contents(lists: &[Vec<Prefix>]) -> Vec<Arc<[Prefix]>> {
    lists.iter().map(|list| list.as_slice().into()).collect()
}

fn compiled(previous: Option<&Ruleset>, wanted: &Wanted, lists: &[Vec<Prefix>]) -> Ruleset {
    compile(previous, wanted, &LIMITS, contents(lists)).expect("it fits")
}

// --------------------------------------------------------------------------------------- lookup

/// The address as the trie has it.
fn mapped(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().to_bits(),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

/// The value of the longest prefix, as an LPM trie with IPv4 in IPv6 finds it.
fn longest(firewall: &Ruleset, source: IpAddr) -> Node {
    let bits = |prefix: &Prefix| match prefix.address() {
        IpAddr::V4(_) => 96 + u32::from(prefix.length()),
        IpAddr::V6(_) => u32::from(prefix.length()),
    };
    let around = firewall.prefixes.iter().filter(|(prefix, _)| {
        let differing = mapped(prefix.address()) ^ mapped(source);
        differing.checked_shr(128 - bits(prefix)).unwrap_or(0) == 0
    });
    let (_, node) = around
        .max_by_key(|(prefix, _)| bits(prefix))
        .expect("all addresses of both families are there");
    *node
}

/// The step of a level that a packet comes to, by the datapath's search.
fn step<'a>(firewall: &'a Ruleset, level: &Level, key: u32, source_port: u16) -> Option<&'a Step> {
    let (first, count) = (level.first as usize, level.count as usize);
    let steps = &firewall.steps[first..first + count];
    let (mut low, mut high) = (0, steps.len());
    while low < high {
        let middle = (low + high) / 2;
        if steps[middle].start <= key {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    let found = &steps[..low];
    let start = found.last()?.start;
    found
        .iter()
        .rev()
        .take_while(|step| step.start == start)
        .find(|step| (step.source_ports.first..=step.source_ports.last).contains(&source_port))
        .filter(|step| step.rule.is_some())
}

/// What decides about a packet, and its id, found as the datapath finds it.
fn look_up(firewall: &Ruleset, packet: &Packet) -> (u32, bool) {
    let level = match longest(firewall, packet.source) {
        Node::Blocklisted(id) => return (id, true),
        Node::Level(level) => level,
    };
    let (source_port, port) = packet.ports.unwrap_or((0, 0));
    let key = u32::from(packet.protocol) << 16 | u32::from(port);
    let mut best: Option<&Step> = None;
    let mut next = Some(level);
    let mut levels = 0;
    while let Some(level) = next.map(|index| firewall.levels[index as usize]) {
        levels += 1;
        assert!(levels <= LEVEL_LIMIT);
        if best.is_some_and(|best| best.position < level.position) {
            break;
        }
        if let Some(found) = step(firewall, &level, key, source_port) {
            best = best
                .filter(|best| best.position < found.position)
                .or(Some(found));
        }
        next = level.parent;
    }
    let (id, action) = best
        .and_then(|step| step.rule)
        .expect("the default matches");
    (id, action == RuleAction::Deny)
}

/// The decision that an id stands for.
fn decision(firewall: &Ruleset, (id, denies): (u32, bool)) -> Decision {
    let action = if denies {
        RuleAction::Deny
    } else {
        RuleAction::Allow
    };
    match &firewall.rules[&id] {
        Rule::File(position, _) => Decision::Rule(*position as usize, action),
        Rule::Blocklist(position, ..) => Decision::Blocklist(*position as usize),
        Rule::Default(_) => Decision::Default(action),
    }
}

/// What whoever writes the maps, and the datapath, rely on.
fn check_shape(firewall: &Ruleset, limits: &Limits) {
    let tables = limits.firewall_tables();
    assert!(firewall.prefixes.is_sorted_by(|(a, _), (b, _)| a < b));
    assert!(firewall.levels.len() <= tables.levels as usize);
    assert!(firewall.steps.len() <= tables.steps as usize);
    let mut end = 0;
    for (index, level) in firewall.levels.iter().enumerate() {
        assert_eq!(level.first, end, "level by level");
        end = level.first + level.count;
        let steps = &firewall.steps[level.first as usize..end as usize];
        assert_eq!(steps[0].start, 0, "every key has an interval");
        for pair in steps.windows(2) {
            let (a, b) = (&pair[0], &pair[1]);
            assert!(a.start < b.start || a.start == b.start && a.position > b.position);
            assert!(a.start < b.start || b.source_ports != PortRange::ANY);
        }
        let lowest = steps.iter().map(|step| step.position).min();
        let above = level.parent.map(|parent| {
            assert!((parent as usize) < index, "parents first");
            firewall.levels[parent as usize].position
        });
        assert_eq!(Some(level.position), lowest.into_iter().chain(above).min());
        assert_eq!(level.parent.is_none(), index == 0);
    }
    assert_eq!(end as usize, firewall.steps.len());
    assert!(firewall.rules.keys().all(|id| *id < tables.rules));
    assert!(matches!(firewall.rules[&DEFAULT_ID], Rule::Default(_)));
}

#[test]
fn first_match_in_file_order() {
    let strategy = (
        model::firewall(24),
        prop::collection::vec(model::packet(), 30),
    );
    property::check(3000, &strategy, |((wanted, lists), packets)| {
        let firewall = compiled(None, &wanted, &lists);
        check_shape(&firewall, &LIMITS);
        for packet in packets {
            let (id, denied) = look_up(&firewall, &packet);
            let expected = decide(&wanted, &lists, &packet);
            assert_eq!(denied, expected.denies(), "{packet:?}");
            assert_eq!(decision(&firewall, (id, denied)), expected, "{packet:?}");
        }
    });
}

/// A test whose packets all meet the default would say nothing.
#[test]
fn random_packets_meet_rules_blocklists_and_the_default() {
    let counts = std::cell::RefCell::new([0u32; 3]);
    let nested = std::cell::Cell::new(0u32);
    property::check(
        1000,
        &(model::firewall(24), model::packet()),
        |((wanted, lists), packet)| {
            let kind = match decide(&wanted, &lists, &packet) {
                Decision::Blocklist(_) => 0,
                Decision::Rule(..) => 1,
                Decision::Default(_) => 2,
            };
            counts.borrow_mut()[kind] += 1;
            let firewall = compiled(None, &wanted, &lists);
            if let Node::Level(level) = longest(&firewall, packet.source) {
                let parent = firewall.levels[level as usize].parent;
                let above = parent.and_then(|parent| firewall.levels[parent as usize].parent);
                nested.set(nested.get() + u32::from(above.is_some()));
            }
        },
    );
    for count in *counts.borrow() {
        assert!(count > 50, "{counts:?}");
    }
    assert!(nested.get() > 100, "{nested:?}");
}

// ------------------------------------------------------------------------------------------ ids

fn rule(source: Option<&str>, protocol: RuleProtocol, port: Option<u16>) -> config::Rule {
    config::Rule {
        name: None,
        action: RuleAction::Deny,
        source: source.map(|source| source.parse().expect("a prefix")),
        protocol,
        source_port: PortRange::ANY,
        port: port.map_or(PortRange::ANY, one),
    }
}

fn one(port: u16) -> PortRange {
    PortRange {
        first: port,
        last: port,
    }
}

fn tcp(port: u16) -> config::Rule {
    rule(None, RuleProtocol::TCP, Some(port))
}

fn named(name: &str, rule: config::Rule) -> config::Rule {
    config::Rule {
        name: Some(name.into()),
        ..rule
    }
}

fn wanted(rules: Vec<config::Rule>, blocklists: &[&str]) -> Wanted {
    Wanted {
        default: RuleAction::Allow,
        blocklists: blocklists.iter().map(PathBuf::from).collect(),
        rules,
    }
}

/// The ids of the rules, in file order.
fn ids(firewall: &Ruleset) -> Vec<u32> {
    let mut positions: Vec<_> = firewall
        .rules
        .iter()
        .filter_map(|(id, rule)| match rule {
            Rule::File(position, _) => Some((*position, *id)),
            _ => None,
        })
        .collect();
    positions.sort_unstable();
    positions.into_iter().map(|(_, id)| id).collect()
}

fn files(firewall: &Ruleset) -> BTreeMap<PathBuf, u32> {
    let file = |(id, rule): (&u32, &Rule)| match rule {
        Rule::Blocklist(_, path, _) => Some((path.clone(), *id)),
        _ => None,
    };
    firewall.rules.iter().filter_map(file).collect()
}

#[test]
fn ids_stay_with_rules() {
    let before = compiled(
        None,
        &wanted(
            vec![
                named("a", tcp(1)),
                tcp(2),
                tcp(3),
                named("b", tcp(4)),
                tcp(5),
            ],
            &["x", "y"],
        ),
        &[vec![], vec![]],
    );
    let old = ids(&before);
    let after = compiled(
        Some(&before),
        &wanted(
            vec![
                // New.
                tcp(6),
                // Moved.
                tcp(3),
                // Changed, but of the same name.
                named("b", tcp(1)),
                // Another name, the conditions of a name that is gone.
                named("c", tcp(1)),
                // Named now.
                named("d", tcp(2)),
                // New, though one like it has the name of another.
                tcp(4),
            ],
            &["z", "y"],
        ),
        &[vec![], vec![]],
    );
    let new = ids(&after);
    assert_eq!(new[1..5], [old[2], old[3], old[0], old[1]]);
    for fresh in [new[0], new[5], files(&after)[&PathBuf::from("z")]] {
        assert!(!before.rules.contains_key(&fresh), "{fresh} was in use");
    }
    let y = PathBuf::from("y");
    assert_eq!(files(&after)[&y], files(&before)[&y]);
    let unique: BTreeSet<_> = after.rules.keys().collect();
    assert_eq!(unique.len(), 6 + 2 + 1);
}

#[test]
fn a_name_counts_for_more_than_the_conditions() {
    let before = compiled(
        None,
        &wanted(vec![named("a", tcp(1)), named("b", tcp(2))], &[]),
        &[],
    );
    let after = compiled(
        Some(&before),
        &wanted(vec![named("b", tcp(1)), named("a", tcp(2))], &[]),
        &[],
    );
    let (old, new) = (ids(&before), ids(&after));
    assert_eq!([new[1], new[0]], [old[0], old[1]]);
}

#[test]
fn the_same_rule_twice_has_two_ids() {
    let twice = wanted(vec![tcp(1), tcp(1)], &[]);
    let before = compiled(None, &twice, &[]);
    let after = compiled(Some(&before), &twice, &[]);
    assert_eq!(ids(&after), ids(&before));
    assert_ne!(ids(&before)[0], ids(&before)[1]);
}

/// Rules cannot wait for the next plan: with no id but those just freed, they get these.
#[test]
fn ids_that_are_just_freed_are_the_last_choice() {
    let limits = Limits {
        firewall_rules: 100,
        ..LIMITS
    };
    let room = limits.firewall_tables().rules as usize - 1;
    let all = |first: u16| wanted((first..first + 100).map(tcp).collect(), &[]);
    let mut before = compile(None, &all(1), &limits, vec![]).expect("it fits");
    for first in [101, 201, 301] {
        let after = compile(Some(&before), &all(first), &limits, vec![]).expect("it fits");
        let (old, new) = (ids(&before), ids(&after));
        let reused = new.iter().filter(|id| old.contains(id)).count();
        assert_eq!(reused, 200 - room, "no more than it takes");
        assert_eq!(new.iter().collect::<BTreeSet<_>>().len(), 100);
        check_shape(&after, &limits);
        before = after;
    }
}

/// What a reload does to a list of rules.
#[derive(Debug, Clone)]
enum Edit {
    Remove(prop::sample::Index),
    Move(prop::sample::Index, prop::sample::Index),
    Insert(prop::sample::Index, config::Rule, Option<u8>),
    Rename(prop::sample::Index, Option<u8>),
}

fn edit() -> impl Strategy<Value = Edit> {
    let index = any::<prop::sample::Index>;
    let name = || proptest::option::of(0..40u8);
    prop_oneof![
        index().prop_map(Edit::Remove),
        (index(), index()).prop_map(|(from, to)| Edit::Move(from, to)),
        (index(), model::rule(), name()).prop_map(|(at, rule, name)| Edit::Insert(at, rule, name)),
        (index(), name()).prop_map(|(at, name)| Edit::Rename(at, name)),
    ]
}

/// Gives the rule a name that no other has.
fn rename(rules: &[config::Rule], rule: &mut config::Rule, name: Option<u8>) {
    let name = name.map(|name| format!("rule-{name}"));
    let taken = name.is_some() && rules.iter().any(|other| other.name == name);
    rule.name = name.filter(|_| !taken);
}

fn edited(mut rules: Vec<config::Rule>, edits: Vec<Edit>) -> Vec<config::Rule> {
    for edit in edits {
        match edit {
            Edit::Insert(at, mut rule, name) => {
                rename(&rules, &mut rule, name);
                rules.insert(at.index(rules.len() + 1), rule);
            }
            _ if rules.is_empty() => {}
            Edit::Remove(at) => {
                rules.remove(at.index(rules.len()));
            }
            Edit::Move(from, to) => {
                let rule = rules.remove(from.index(rules.len()));
                rules.insert(to.index(rules.len() + 1), rule);
            }
            Edit::Rename(at, name) => {
                let at = at.index(rules.len());
                let mut rule = rules[at].clone();
                rename(&rules, &mut rule, name);
                rules[at] = rule;
            }
        }
    }
    rules
}

#[test]
fn reloads() {
    let reload = || prop::collection::vec(edit(), 0..8);
    let strategy = (
        (model::firewall(16), reload(), reload(), reload()),
        model::firewall(0),
        prop::collection::vec(model::packet(), 20),
    );
    property::check(
        1500,
        &strategy,
        |((first, a, b, c), (second, lists), packets)| {
            let (mut wanted, first_lists) = first;
            wanted.rules = edited(wanted.rules, a);
            let mut before = compiled(None, &wanted, &first_lists);
            for edits in [b, c] {
                let rules = edited(wanted.rules.clone(), edits);
                let next = Wanted {
                    rules,
                    ..second.clone()
                };
                let after = compiled(Some(&before), &next, &lists);
                check_shape(&after, &LIMITS);
                check_ids((&wanted, &before), (&next, &after));
                for packet in &packets {
                    let found = decision(&after, look_up(&after, packet));
                    assert_eq!(found, decide(&next, &lists, packet), "{packet:?}");
                }
                (wanted, before) = (next, after);
            }
        },
    );
}

fn check_ids((wanted, before): (&Wanted, &Ruleset), (next, after): (&Wanted, &Ruleset)) {
    let (old, new) = (ids(before), ids(after));
    let unique: BTreeSet<_> = new.iter().chain(files(after).values()).copied().collect();
    assert_eq!(unique.len(), next.rules.len() + next.blocklists.len());
    assert!(!unique.contains(&DEFAULT_ID));
    for (rule, id) in next.rules.iter().zip(&new) {
        let same_name = wanted
            .rules
            .iter()
            .position(|before| before.name.is_some() && before.name == rule.name);
        if let Some(position) = same_name {
            assert_eq!(*id, old[position], "{rule:?}");
        } else if let Some(position) = old.iter().position(|old| old == id) {
            let nameless = |rule: &config::Rule| config::Rule {
                name: None,
                ..rule.clone()
            };
            let before = &wanted.rules[position];
            assert_eq!(nameless(before), nameless(rule));
        } else {
            assert!(!before.rules.contains_key(id), "{id} has just been freed");
        }
    }
    // As many of each content keep an id as both have.
    let mut left: Vec<&config::Rule> = wanted.rules.iter().filter(|r| r.name.is_none()).collect();
    for (rule, id) in next
        .rules
        .iter()
        .zip(&new)
        .filter(|(r, _)| r.name.is_none())
    {
        if let Some(at) = left.iter().position(|before| *before == rule) {
            left.remove(at);
            assert!(old.contains(id), "{rule:?}");
        }
    }
    for (path, id) in files(after) {
        if let Some(old) = files(before).get(&path) {
            assert_eq!(id, *old);
        }
    }
}

// ------------------------------------------------------------------------------ prefixes, levels

fn prefixes(texts: &[&str]) -> Vec<Prefix> {
    let prefix = |text: &&str| text.parse().expect("a prefix");
    texts.iter().map(prefix).collect()
}

fn found(firewall: &Ruleset) -> Vec<(String, bool)> {
    let listed = |node: &Node| matches!(node, Node::Blocklisted(_));
    firewall
        .prefixes
        .iter()
        .map(|(prefix, node)| (prefix.to_string(), listed(node)))
        .collect()
}

#[test]
fn what_decides_nothing_is_left_out() {
    let lists = [
        prefixes(&["10.1.2.3", "10.1.0.0/16", "192.0.2.0/24", "2001:db8::/32"]),
        prefixes(&[
            "10.1.0.0/16",
            "10.1.255.0/24",
            "192.0.0.0/16",
            "192.0.2.0/24",
        ]),
    ];
    let any = RuleProtocol::Any;
    let rules = vec![
        rule(Some("10.0.0.0/8"), any, None),
        rule(Some("10.1.2.0/24"), any, None),
        rule(Some("192.0.2.0/24"), any, None),
        rule(Some("2001:db8:1::/48"), any, None),
        rule(Some("2001::/16"), any, None),
    ];
    let firewall = compiled(None, &wanted(rules, &["x", "y"]), &lists);
    let expected = [
        ("0.0.0.0/0", false),
        ("10.0.0.0/8", false),
        ("10.1.0.0/16", true),
        ("192.0.0.0/16", true),
        ("::/0", false),
        ("2001::/16", false),
        ("2001:db8::/32", true),
    ];
    assert_eq!(
        found(&firewall),
        expected.map(|(prefix, listed)| (prefix.to_owned(), listed))
    );
    // All sources and the two prefixes of rules that are left.
    assert_eq!(firewall.levels.len(), 3);
    // The first list has the first of two that are the same.
    let list = |source: &str| {
        let packet = Packet {
            source: source.parse().expect("an address"),
            protocol: 6,
            ports: Some((1, 1)),
        };
        decision(&firewall, look_up(&firewall, &packet))
    };
    assert_eq!(list("10.1.255.1"), Decision::Blocklist(0));
    assert_eq!(list("192.0.2.1"), Decision::Blocklist(1));
    // What is left out is there to be seen.
    let counts = firewall.rules.values().filter_map(|rule| match rule {
        Rule::Blocklist(_, _, count) => Some(*count),
        _ => None,
    });
    assert_eq!(counts.collect::<Vec<_>>(), [4, 4]);
    assert_eq!(ids(&firewall).len(), 5);
}

#[test]
fn a_whole_family_in_a_blocklist() {
    let rules = vec![rule(Some("10.0.0.0/8"), RuleProtocol::Any, None)];
    let lists = [prefixes(&["0.0.0.0/0"])];
    let firewall = compiled(None, &wanted(rules, &["x"]), &lists);
    let expected = [("0.0.0.0/0".to_owned(), true), ("::/0".to_owned(), false)];
    assert_eq!(found(&firewall), expected);
    assert_eq!(firewall.levels.len(), 1);
}

/// The trie has IPv4 inside IPv6: prefixes of IPv6 around it must not reach it.
#[test]
fn families_are_apart() {
    let any = RuleProtocol::Any;
    for (prefix, source, hit) in [
        ("::/0", "10.0.0.1", false),
        ("::/64", "10.0.0.1", false),
        ("::/80", "10.0.0.1", false),
        ("::/0", "::1", true),
        ("0.0.0.0/0", "::1", false),
        ("0.0.0.0/0", "2001:db8::1", false),
        ("0.0.0.0/0", "10.0.0.1", true),
    ] {
        let packet = Packet {
            source: source.parse().expect("an address"),
            protocol: 58,
            ports: None,
        };
        let by_rule = compiled(None, &wanted(vec![rule(Some(prefix), any, None)], &[]), &[]);
        assert_eq!(look_up(&by_rule, &packet).1, hit, "{prefix} {source}");
        let lists = [prefixes(&[prefix])];
        let by_list = compiled(None, &wanted(vec![], &["x"]), &lists);
        assert_eq!(look_up(&by_list, &packet).1, hit, "{prefix} {source}");
    }
}

/// Each rule inside the one before it, and each decides about another port.
#[test]
fn as_deep_as_prefixes_go() {
    for (address, longest) in [("255.255.255.255", 32), ("2001:db8::1", 128)] {
        let address: IpAddr = address.parse().expect("an address");
        let rules: Vec<_> = (0..=longest)
            .map(|length| config::Rule {
                source: Some(Prefix::covering(address, length)),
                ..tcp(1000 + u16::from(length))
            })
            .collect();
        let wanted = wanted(rules, &[]);
        let firewall = compiled(None, &wanted, &[]);
        check_shape(&firewall, &LIMITS);
        assert_eq!(firewall.levels.len(), usize::from(longest) + 2);
        for port in 999..=1001 + u16::from(longest) {
            let packet = Packet {
                source: address,
                protocol: 6,
                ports: Some((1, port)),
            };
            let found = decision(&firewall, look_up(&firewall, &packet));
            assert_eq!(found, decide(&wanted, &[], &packet));
        }
    }
}

#[test]
fn only_the_default() {
    for default in [RuleAction::Allow, RuleAction::Deny] {
        let wanted = Wanted {
            default,
            ..wanted(vec![], &["empty"])
        };
        let firewall = compiled(None, &wanted, &[vec![]]);
        check_shape(&firewall, &LIMITS);
        assert_eq!(firewall.prefixes.len(), 2);
        assert_eq!((firewall.levels.len(), firewall.steps.len()), (1, 1));
        for source in ["192.0.2.1", "2001:db8::1"] {
            let packet = Packet {
                source: source.parse().expect("an address"),
                protocol: 255,
                ports: None,
            };
            let found = look_up(&firewall, &packet);
            assert_eq!(found, (DEFAULT_ID, default == RuleAction::Deny));
        }
    }
}

// --------------------------------------------------------------------------------------- limits

/// The most steps that rules without source ports can take.
#[test]
fn as_many_rules_as_there_may_be() {
    let limits = Limits {
        firewall_rules: 20_000,
        ..LIMITS
    };
    // Every second port, of TCP and UDP, with a source of its own or none.
    let rules = |with_source: bool| -> Vec<config::Rule> {
        (0..20_000u16)
            .map(|n| config::Rule {
                source: with_source
                    .then(|| Prefix::of(IpAddr::V4((0x0a00_0000 + u32::from(n)).into()))),
                ..rule(None, RuleProtocol::Any, Some(2 * n + 1))
            })
            .collect()
    };
    for with_source in [false, true] {
        let wanted = wanted(rules(with_source), &[]);
        let firewall = compile(None, &wanted, &limits, vec![]).expect("it fits");
        check_shape(&firewall, &limits);
        assert!(firewall.steps.len() >= 80_000);
        for n in [0, 1, 9_999, 19_999] {
            let packet = Packet {
                source: IpAddr::V4((0x0a00_0000 + u32::from(n)).into()),
                protocol: 17,
                ports: Some((1, 2 * n + 1)),
            };
            let found = decision(&firewall, look_up(&firewall, &packet));
            assert_eq!(found, decide(&wanted, &[], &packet));
        }
    }
}

#[test]
fn what_does_not_fit() {
    let limits = Limits {
        firewall_rules: 3,
        ..LIMITS
    };
    let four = wanted((1..5).map(tcp).collect(), &[]);
    let error = compile(None, &four, &limits, vec![]).expect_err("one too many");
    assert_eq!(
        error,
        PlanError::Rules {
            needed: 4,
            limit: 3
        }
    );
    assert!(error
        .to_string()
        .contains("raise limits.firewall_rules to 4 or more"));

    let names: Vec<String> = (0..=BLOCKLIST_LIMIT).map(|n| n.to_string()).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let most = wanted(vec![], &names[1..]);
    let lists = vec![vec![]; BLOCKLIST_LIMIT];
    assert_eq!(files(&compiled(None, &most, &lists)).len(), BLOCKLIST_LIMIT);
    let lists = contents(&vec![vec![]; BLOCKLIST_LIMIT + 1]);
    let error = compile(None, &wanted(vec![], &names), &LIMITS, lists).expect_err("one too many");
    assert_eq!(error, PlanError::Blocklists { count: 65 });

    // Each interval has all rules that begin before it: that many squared, were it not refused.
    let limits = Limits {
        firewall_rules: 100_000,
        ..LIMITS
    };
    let rules = (1..=60_000u16)
        .map(|n| config::Rule {
            source_port: one(n),
            port: PortRange {
                first: n,
                last: 65_535,
            },
            ..rule(None, RuleProtocol::TCP, None)
        })
        .collect();
    let error = compile(None, &wanted(rules, &[]), &limits, vec![]).expect_err("too many");
    assert_eq!(error, PlanError::Steps { limit: 800_064 });
    assert!(error
        .to_string()
        .contains("give fewer of them a source_port"));
}
