//! The contents of the maps for the firewall, allowed sources, limits and totals, and what a change
//! leaves as it was.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use libbpf_rs::{MapCore, MapFlags};
use xdplb::config::{
    self, MacAddress, Policy, PolicyAction, PolicyProtocol, PortRange, Prefix, RuleAction,
    RuleProtocol,
};
use xdplb::datapath::abi::{self, bytes_of, from_bytes, xdplb_limit};
use xdplb::state::firewall::{Level, Node, Rule, Ruleset, Step};
use xdplb::state::Hop;

use crate::harness::cases::STANDARD;
use crate::harness::Lab;

const NO_LEVEL: u32 = xdplb_limit::NO_LEVEL.0;
/// By which an admission goes up.
const ADMISSION: u32 = 1 << xdplb_limit::RULE_BITS.0;
/// The ids of the first rule and of the blocklist.
pub const RULE: u32 = 1;
pub const BLOCKLIST: u32 = 2;

fn prefix(text: &str) -> Prefix {
    text.parse()
        .unwrap_or_else(|error| panic!("{text} {error}"))
}

pub fn rule(name: Option<&str>, source: &str, action: RuleAction) -> config::Rule {
    config::Rule {
        name: name.map(str::to_owned),
        action,
        source: Some(prefix(source)),
        protocol: RuleProtocol::Any,
        source_port: PortRange::ANY,
        port: PortRange::ANY,
    }
}

/// A firewall that allows by default, has one rule for an IPv4 source, and a blocklist.
pub fn firewall(rule: config::Rule, blocklist: &[&str]) -> Arc<Ruleset> {
    let step = |id, position, action| Step {
        start: 0,
        position,
        rule: Some((id, action)),
        source_ports: PortRange::ANY,
    };
    let level = |first, count, parent, position| Level {
        first,
        count,
        parent,
        position,
    };
    let mut prefixes: Vec<(Prefix, Node)> = blocklist
        .iter()
        .map(|text| (prefix(text), Node::Blocklisted(BLOCKLIST)))
        .collect();
    prefixes.extend([
        (prefix("::/0"), Node::Level(0)),
        (prefix("0.0.0.0/0"), Node::Level(1)),
        (rule.source.expect("a source"), Node::Level(2)),
    ]);
    prefixes.sort_by_key(|(prefix, _)| *prefix);
    Arc::new(Ruleset {
        prefixes,
        levels: vec![
            level(0, 1, None, u32::MAX),
            level(1, 0, Some(0), u32::MAX),
            level(1, 1, Some(0), 0),
        ],
        steps: vec![
            step(0, u32::MAX, RuleAction::Allow),
            step(RULE, 0, rule.action),
        ],
        rules: BTreeMap::from([
            (0, Rule::Default(RuleAction::Allow)),
            (RULE, Rule::File(0, rule)),
            (
                BLOCKLIST,
                Rule::Blocklist(0, PathBuf::from("/etc/blocklist"), blocklist.len() as u32),
            ),
        ]),
        ..Ruleset::default()
    })
}

impl Lab {
    pub fn put_firewall(&mut self, firewall: Option<Arc<Ruleset>>) {
        self.desired.firewall = firewall;
        self.apply();
    }

    fn nodes(&self) -> BTreeMap<(IpAddr, u32), (u32, u32)> {
        let map = self.map("fw_prefixes");
        map.keys()
            .map(|key| {
                let value = map.lookup(&key, MapFlags::ANY).expect("lookup");
                let value: abi::fw_prefix =
                    from_bytes(&value.expect("a node")).expect("struct fw_prefix");
                let key: abi::fw_prefix_key = from_bytes(&key).expect("struct fw_prefix_key");
                (
                    (abi::address_of(key.address), key.prefixlen),
                    (value.blocklist, value.level),
                )
            })
            .collect()
    }

    /// Where the nodes lead to from this source prefix: first the level, then its parents.
    fn levels(&self, source: &str) -> Vec<(u32, abi::fw_level)> {
        let source = prefix(source);
        let bits = u32::from(source.length()) + if source.address().is_ipv4() { 96 } else { 0 };
        let (_, mut index) = self.nodes()[&(source.address(), bits)];
        let mut levels = Vec::new();
        while index != NO_LEVEL {
            let level: abi::fw_level = self.element("fw_levels", index);
            levels.push((index, level));
            index = level.parent;
        }
        levels
    }
}

#[test]
fn a_firewall_comes_changes_and_goes() {
    let mut lab = Lab::new(STANDARD);
    let settings = lab.live();
    assert_eq!(
        (settings.admission, settings.firewall, settings.metered),
        (0, 0, 0)
    );
    assert!(lab.nodes().is_empty());

    let deny = rule(Some("no-lab"), "198.18.0.0/15", RuleAction::Deny);
    lab.put_firewall(Some(firewall(
        deny.clone(),
        &["192.0.2.0/24", "2001:db8:bad::/48"],
    )));
    let settings = lab.live();
    assert_eq!(
        (settings.admission, settings.firewall, settings.metered),
        (ADMISSION, 1, 1)
    );
    let nodes = lab.nodes();
    assert_eq!(
        nodes
            .keys()
            .map(|(address, bits)| format!("{address}/{bits}"))
            .collect::<BTreeSet<_>>(),
        [
            "0.0.0.0/96",
            "192.0.2.0/120",
            "198.18.0.0/111",
            "2001:db8:bad::/48",
            "::/0"
        ]
        .map(str::to_owned)
        .into()
    );
    let blocked = (crate::harness::ip("192.0.2.0"), 120);
    assert_eq!(nodes[&blocked], (BLOCKLIST, NO_LEVEL));
    let found = lab.levels("198.18.0.0/15");
    assert_eq!(found.len(), 2);
    let (of_rule, root) = (found[0], found[1]);
    assert_eq!((of_rule.1.count, of_rule.1.position), (1, 0));
    assert_eq!((root.1.count, root.1.position), (1, u32::MAX));
    let step: abi::fw_step = lab.element("fw_steps", of_rule.1.first);
    assert_eq!(step.rule, RULE | xdplb_limit::RULE_DENIES.0);
    assert_eq!((step.source_first, step.source_last), (0, u16::MAX));
    let described: abi::fw_rule = lab.element("fw_rules", RULE);
    assert_eq!(abi::name_from(&described.name), "no-lab");
    assert_eq!(
        (described.family, described.prefix_length, described.action),
        (4, 15, abi::rule_action::RULE_DENY.0 as u8)
    );

    // Nothing changes: neither by the same plan nor by an equal one.
    lab.apply();
    lab.put_firewall(Some(firewall(
        deny.clone(),
        &["192.0.2.0/24", "2001:db8:bad::/48"],
    )));
    assert_eq!(lab.live().admission, ADMISSION);
    assert_eq!(lab.nodes(), nodes);

    // A blocklist changes: the rules stay where they are.
    lab.put_firewall(Some(firewall(
        deny.clone(),
        &["192.0.2.0/24", "203.0.113.128/25"],
    )));
    assert_eq!(lab.live().admission, 2 * ADMISSION);
    assert_eq!(lab.levels("198.18.0.0/15")[0].0, of_rule.0);
    let keys: BTreeSet<String> = lab
        .nodes()
        .keys()
        .map(|(address, bits)| format!("{address}/{bits}"))
        .collect();
    assert!(keys.contains("203.0.113.128/121") && !keys.contains("2001:db8:bad::/48"));

    // A rule changes: packets are led to other levels, and the former ones are as they were.
    let former: abi::fw_level = lab.element("fw_levels", of_rule.0);
    let allow = rule(Some("no-lab"), "198.18.0.0/16", RuleAction::Allow);
    lab.put_firewall(Some(firewall(allow.clone(), &["192.0.2.0/24"])));
    assert_eq!(lab.live().admission, 3 * ADMISSION);
    let found = lab.levels("198.18.0.0/16");
    assert_ne!(found[0].0, of_rule.0);
    assert_ne!(found[1].0, root.0);
    let step: abi::fw_step = lab.element("fw_steps", found[0].1.first);
    assert_eq!(step.rule, RULE);
    let unchanged: abi::fw_level = lab.element("fw_levels", of_rule.0);
    assert_eq!(bytes_of(&unchanged), bytes_of(&former));
    assert_eq!(lab.nodes()[&blocked], (BLOCKLIST, NO_LEVEL));

    // What has drifted is mended with the next plan.
    let map = lab.map("fw_prefixes");
    for key in map.keys().collect::<Vec<_>>() {
        map.delete(&key).expect("delete");
    }
    lab.put_firewall(Some(firewall(allow, &["192.0.2.0/24"])));
    assert_eq!(lab.nodes().len(), 4);
    assert_eq!(lab.live().admission, 4 * ADMISSION);

    lab.put_firewall(None);
    let settings = lab.live();
    assert_eq!(
        (settings.admission, settings.firewall, settings.metered),
        (5 * ADMISSION, 0, 0)
    );
    assert!(lab.nodes().is_empty());
    let described: abi::fw_rule = lab.element("fw_rules", RULE);
    assert_eq!(described.kind, abi::rule_kind::RULE_FREE.0 as u8);
    lab.apply();
    assert_eq!(lab.live().admission, 5 * ADMISSION);
}

#[test]
fn hits_stay_with_their_rule() {
    let mut lab = Lab::new(STANDARD);
    let counted = abi::hits {
        packets: 3,
        bytes: 180,
    };
    let cpus = libbpf_rs::num_possible_cpus().expect("the number of CPUs") as u64;
    let named = |name, source| rule(Some(name), source, RuleAction::Deny);
    let unnamed = |source| rule(None, source, RuleAction::Deny);
    lab.put_firewall(Some(firewall(named("a", "10.1.0.0/16"), &["192.0.2.0/24"])));
    for (next, kept) in [
        // By its name.
        (named("a", "10.2.0.0/16"), true),
        // By what it says.
        (named("b", "10.2.0.0/16"), true),
        (unnamed("10.2.0.0/16"), true),
        (unnamed("10.3.0.0/16"), false),
        (named("a", "10.2.0.0/16"), false),
    ] {
        lab.set_per_cpu("fw_hits", RULE, &counted);
        lab.set_per_cpu("fw_hits", BLOCKLIST, &counted);
        lab.put_firewall(Some(firewall(next.clone(), &["198.51.100.0/24"])));
        let expected = if kept { 3 * cpus } else { 0 };
        assert_eq!(lab.hits(RULE).packets, expected, "{next:?}");
        assert_eq!(
            lab.hits(BLOCKLIST).packets,
            3 * cpus,
            "the file is the same"
        );
    }
}

#[test]
fn a_list_of_many_batches() {
    let mut lab = Lab::new(STANDARD);
    let deny = rule(None, "10.0.0.0/8", RuleAction::Deny);
    let list = |from: u32, to: u32| {
        let mut firewall = Arc::unwrap_or_clone(firewall(deny.clone(), &[]));
        let addresses = (from..to).map(|n| {
            let address = IpAddr::from((0xc612_0000 + n).to_be_bytes());
            (Prefix::of(address), Node::Blocklisted(BLOCKLIST))
        });
        firewall.prefixes.extend(addresses);
        firewall.prefixes.sort_by_key(|(prefix, _)| *prefix);
        Some(Arc::new(firewall))
    };
    lab.put_firewall(list(0, 20_000));
    assert_eq!(lab.nodes().len(), 20_003);
    lab.put_firewall(list(5_000, 30_000));
    let nodes = lab.nodes();
    assert_eq!(nodes.len(), 25_003);
    let first = nodes.keys().find(|(_, bits)| *bits == 128);
    assert_eq!(
        first.map(|(address, _)| address.to_string()),
        Some("198.18.19.136".into())
    );
    lab.put_firewall(None);
    assert!(lab.nodes().is_empty());
}

/// A service of both families.
fn of_both(name: &str) -> String {
    format!(
        r#"
[[service]]
name = "{name}"
vip = ["203.0.113.11", "2001:db8:1::11"]
protocol = "tcp"
port = 80
forward = "nat"
[[service.backend]]
name = "n4"
address = "10.0.0.2"
"#
    )
}

impl Lab {
    /// The sources of each service, as the map has them.
    fn allowed(&self) -> BTreeSet<(u32, String)> {
        let map = self.map("allowed_sources");
        let keys = map.keys().map(|key| {
            let key: abi::allowed_key = from_bytes(&key).expect("struct allowed_key");
            let address = abi::address_of(key.address);
            (key.service, format!("{address}/{}", key.prefixlen - 32))
        });
        keys.collect()
    }

    fn is_restricted(&self, service: u32) -> bool {
        self.element::<abi::service>("services", service).restricted == 1
    }

    /// The id of the IPv4 half, then that of the IPv6 one.
    fn ids(&self, name: &str) -> [u32; 2] {
        [config::Family::Ipv4, config::Family::Ipv6].map(|family| {
            let mut services = self.desired.services.iter();
            let found = services.find(|(_, s)| s.name == name && s.family == family);
            *found.unwrap_or_else(|| panic!("no service {name}")).0
        })
    }
}

#[test]
fn allowed_sources_follow_the_services() {
    let mut lab = Lab::new(STANDARD);
    let allow = |lab: &mut Lab, prefixes: &[&str]| {
        let allow: Vec<Prefix> = prefixes.iter().map(|text| prefix(text)).collect();
        for service in lab.desired.services.values_mut() {
            if service.name == "web" {
                Arc::make_mut(service).allow = allow.clone();
            }
        }
        lab.apply();
    };
    lab.reload(&of_both("web"));
    let before = lab.live().admission;
    assert!(lab.allowed().is_empty());
    let [v4, v6] = lab.ids("web");
    assert!(!lab.is_restricted(v4) && !lab.is_restricted(v6));

    allow(&mut lab, &["198.51.100.0/24", "::/0", "2001:db8:c::/48"]);
    assert!(lab.is_restricted(v4) && lab.is_restricted(v6));
    let entry = |id, text: &str| (id, text.to_owned());
    assert_eq!(
        lab.allowed(),
        // ::/0 does not let IPv4 in.
        [
            entry(v4, "198.51.100.0/120"),
            entry(v6, "::/0"),
            entry(v6, "2001:db8:c::/48")
        ]
        .into()
    );
    assert_eq!(lab.live().admission, before + ADMISSION);
    lab.apply();
    assert_eq!(lab.live().admission, before + ADMISSION);

    allow(&mut lab, &["192.0.2.0/24"]);
    assert_eq!(lab.allowed(), [entry(v4, "192.0.2.0/120")].into());
    assert!(lab.is_restricted(v6), "nobody may reach it");
    assert_eq!(lab.live().admission, before + 2 * ADMISSION);

    allow(&mut lab, &[]);
    assert!(lab.allowed().is_empty());
    assert!(!lab.is_restricted(v4) && !lab.is_restricted(v6));
    assert_eq!(lab.live().admission, before + 3 * ADMISSION);

    // Another service gets the ids: nothing of the former one is left.
    allow(&mut lab, &["192.0.2.0/24"]);
    lab.reload("");
    assert!(lab.allowed().is_empty());
    lab.reload(&of_both("other"));
    assert_eq!(lab.ids("other"), [v4, v6]);
    assert!(!lab.is_restricted(v4) && lab.allowed().is_empty());
}

pub fn policy(name: &str, limit: u32, action: PolicyAction) -> Policy {
    Policy {
        name: name.into(),
        protocol: PolicyProtocol::Udp,
        tcp_flags: (0, 0),
        limit,
        burst: limit,
        action,
    }
}

/// `dos_policies`: the first of UDP.
const UDP: u32 = xdplb_limit::POLICY_LIMIT.0;

impl Lab {
    pub fn put_policies(&mut self, policies: &[Option<Policy>]) {
        let slots = (0..).zip(policies.iter().cloned());
        self.desired.policies = slots
            .filter_map(|(slot, policy)| Some(((PolicyProtocol::Udp, slot), policy?)))
            .collect();
        self.apply();
    }

    /// A source that the policy in this slot holds blocked, and that owes to every policy.
    fn block(&self, set: u32, way: usize, class: abi::protocol_class, slot: u8) {
        let mut value: abi::dos_set = self.element("dos_sources", set);
        value.ways[way] = abi::dos_source {
            source: [u32::from_ne_bytes([198, 51, 100, way as u8]), 0],
            family: 4,
            class: class.0 as u8,
            policy: slot,
            pad: 0,
            last_seen: 7,
            blocked_until: 1 << 40,
            due: [1 << 60; xdplb_limit::POLICY_LIMIT.0 as usize],
        };
        self.set_element("dos_sources", set, &value);
    }

    pub fn source(&self, set: u32, way: usize) -> abi::dos_source {
        self.element::<abi::dos_set>("dos_sources", set).ways[way]
    }
}

/// That jiffies go as the clock says: 250 a second taken for 300 would be off by 60 ms after that time.
#[test]
fn the_clock_goes_with_the_kernels() {
    const TIME: Duration = Duration::from_millis(300);
    let mut lab = Lab::new(STANDARD);
    let before = lab.datapath.clock();
    std::thread::sleep(TIME);
    lab.datapath.read_clock().expect("the clock");
    let after = lab.datapath.clock();
    assert_eq!(before.hz, after.hz);
    let off = after.zero.wrapping_sub(before.zero).cast_signed();
    assert!(off.unsigned_abs() < 30_000_000, "{off} ns");
    assert_eq!(lab.live().clock_zero, after.zero);
    assert_eq!(lab.live().hz, after.hz);
}

#[test]
fn policies_and_what_they_hold() {
    let mut lab = Lab::new(STANDARD);
    let hz = u64::from(lab.datapath.clock().hz);
    let minute = PolicyAction::Block(Duration::from_secs(60));
    assert_eq!(lab.live().source_sets, 1024 / xdplb_limit::SOURCE_WAYS.0);
    assert_eq!(lab.live().policies, [0; 4]);

    lab.put_policies(&[
        Some(policy("a", 100, minute)),
        Some(policy("b", 10, PolicyAction::Limit)),
    ]);
    assert_eq!(lab.live().policies, [0, 3, 0, 0]);
    assert_eq!(lab.live().metered, 1);
    let a: abi::dos_policy = lab.element("dos_policies", UDP);
    assert_eq!(abi::name_from(&a.name), "a");
    assert_eq!(a.interval, (hz << xdplb_limit::TICK_SHIFT.0) / 100);
    assert_eq!((a.tolerance, a.block_for), (100 * a.interval, 60 * hz));
    assert_eq!((a.limit, a.burst, a.class, a.used), (100, 100, 1, 1));

    let hits = abi::policy_hits {
        dropped: 5,
        blocked: 1,
    };
    let dropped = |lab: &Lab, slot: u32| -> u64 {
        let cpus: Vec<abi::policy_hits> = lab.per_cpu("dos_hits", UDP + slot);
        cpus.iter().map(|cpu| cpu.dropped).sum()
    };
    lab.set_per_cpu("dos_hits", UDP, &hits);
    lab.set_per_cpu("dos_hits", UDP + 1, &hits);
    let last = lab.live().source_sets - 1;
    lab.block(last, 0, abi::protocol_class::CLASS_UDP, 0);
    lab.block(last, 1, abi::protocol_class::CLASS_UDP, 1);
    lab.block(last, 2, abi::protocol_class::CLASS_TCP, 0);

    // Nothing changes, nobody is freed.
    lab.apply();
    assert_eq!(lab.source(last, 0).blocked_until, 1 << 40);

    // A policy changes: it keeps its counts, not whom it holds.
    lab.put_policies(&[
        Some(policy("a", 200, minute)),
        Some(policy("b", 10, PolicyAction::Limit)),
    ]);
    let first = lab.source(last, 0);
    assert_eq!((first.blocked_until, first.due[0]), (0, 0));
    assert_eq!((first.due[1], first.last_seen), (1 << 60, 7));
    let second = lab.source(last, 1);
    assert_eq!((second.blocked_until, second.due[0]), (1 << 40, 0));
    let of_tcp = lab.source(last, 2);
    assert_eq!((of_tcp.blocked_until, of_tcp.due[0]), (1 << 40, 1 << 60));
    assert!(dropped(&lab, 0) > 0 && dropped(&lab, 1) > 0);
    assert_eq!(lab.live().policies, [0, 3, 0, 0]);

    // One goes, and the slot gets another.
    lab.put_policies(&[Some(policy("c", 200, minute)), None]);
    assert_eq!(lab.live().policies, [0, 1, 0, 0]);
    assert_eq!(dropped(&lab, 0), 0);
    assert_eq!(lab.source(last, 1).blocked_until, 0);
    let gone: abi::dos_policy = lab.element("dos_policies", UDP + 1);
    assert_eq!(gone.used, 0);

    lab.put_policies(&[]);
    assert_eq!((lab.live().policies, lab.live().metered), ([0; 4], 0));
    assert_eq!(lab.source(last, 2).blocked_until, 1 << 40, "that is TCP's");
}

/// After a change of the network only what differs is written; a reload mends what has drifted as well.
#[test]
fn a_change_of_the_network_touches_nothing_else() {
    let mut lab = Lab::new(&format!(
        "{}{}",
        service_of("web", &["10.0.0.2", "10.0.0.3"]),
        service_of("api", &["10.0.0.4", "10.0.0.5"]).replace("203.0.113.11", "203.0.113.12"),
    ));
    let id = |lab: &Lab, address| lab.backend_id(address);
    let (lost, other) = (id(&lab, "10.0.0.2"), id(&lab, "10.0.0.4"));
    let [web, api] = [lost, other].map(|id| lab.desired.backends[&id].service);
    let backend = |lab: &Lab, id| lab.element::<abi::backend>("backends", id);
    let service = |lab: &Lab, id| lab.element::<abi::service>("services", id);
    let slots = |lab: &Lab, id| {
        let (offset, size) = abi::region_parts(service(lab, id).table);
        let slots = (offset..offset + size).map(|slot| {
            let pair: abi::slots = lab.element("maglev", slot / 2);
            pair.backend[slot as usize % 2]
        });
        slots.collect::<BTreeSet<u32>>()
    };
    let in_trie = |lab: &Lab| lab.map("vips").keys().count();

    // Somebody else has been at the maps.
    let drifted = abi::backend {
        weight: 77,
        ..backend(&lab, other)
    };
    lab.set_element("backends", other, &drifted);
    let (offset, _) = abi::region_parts(service(&lab, api).table);
    let pair: abi::slots = lab.element("maglev", offset / 2 + 1);
    lab.set_element("maglev", offset / 2 + 1, &abi::slots { backend: [9, 9] });
    let vips = lab.map("vips");
    let key = vips.keys().last().expect("a VIP");
    vips.delete(&key).expect("delete");
    let before = in_trie(&lab);

    lab.set_way("10.0.0.2", None);
    assert_eq!(
        backend(&lab, lost).health,
        abi::backend_health::HEALTH_UNRESOLVED.0 as u8
    );
    assert!(!slots(&lab, web).contains(&lost));
    assert_eq!(backend(&lab, other).weight, 77);
    assert!(slots(&lab, api).contains(&9));
    assert_eq!(in_trie(&lab), before);

    // The last one of a service: its VIP answers no longer.
    lab.set_way("10.0.0.3", None);
    assert_eq!(service(&lab, web).table, 0);
    let echo = |lab: &Lab| {
        let keys = vips.keys().filter(|key| {
            let key: abi::vip_key = from_bytes(key).expect("struct vip_key");
            key.prefixlen == 128
                && abi::address_of(key.address) == crate::harness::ip("203.0.113.11")
        });
        let found: Vec<u32> = keys
            .map(|key| {
                let value = lab.map("vips").lookup(&key, MapFlags::ANY).expect("lookup");
                from_bytes::<abi::vip>(&value.expect("a VIP"))
                    .expect("struct vip")
                    .echo
            })
            .collect();
        assert_eq!(found.len(), 1);
        found[0]
    };
    assert_eq!(echo(&lab), abi::echo::ECHO_DROP.0);
    lab.set_way(
        "10.0.0.2",
        Some(Hop {
            mac: MacAddress([2, 0, 0, 0, 0, 9]),
            slot: 1,
            on_link: true,
        }),
    );
    assert_eq!(echo(&lab), abi::echo::ECHO_ANSWER.0);
    assert_eq!(slots(&lab, web), [lost].into());

    // The same plan by way of a reload.
    lab.apply();
    assert_eq!(backend(&lab, other).weight, 1);
    let mended: abi::slots = lab.element("maglev", offset / 2 + 1);
    let (region, _) = abi::region_parts(service(&lab, api).table);
    assert!(region != offset || mended.backend == pair.backend);
    assert_eq!(slots(&lab, api).len(), 2);
    assert_eq!(in_trie(&lab), before + 1);
}

/// What could not be written as a whole is compared with the maps the next time, whatever has changed.
#[test]
fn after_a_write_that_failed_everything_is_compared() {
    let mut lab = Lab::new(&service_of("web", &["10.0.0.2", "10.0.0.3"]));
    let id = lab.backend_id("10.0.0.3");
    let good = lab.desired.clone();
    // Rules that the maps have no room for, found out on the way.
    let mut firewall =
        Arc::unwrap_or_clone(firewall(rule(None, "10.0.0.0/8", RuleAction::Deny), &[]));
    firewall
        .rules
        .insert(u32::MAX - 1, Rule::Default(RuleAction::Allow));
    lab.desired.firewall = Some(Arc::new(firewall));
    let settings = lab.settings;
    let refused = lab.datapath.follow(&lab.desired, &settings);
    assert!(refused.is_err());

    let live: abi::backend = lab.element("backends", id);
    lab.set_element("backends", id, &abi::backend { weight: 77, ..live });
    lab.datapath.follow(&good, &settings).expect("follow");
    let mended: abi::backend = lab.element("backends", id);
    assert_eq!(mended.weight, 1);
}

/// Two backends of one service, or only the first.
fn service_of(name: &str, backends: &[&str]) -> String {
    let mut text = format!(
        "[[service]]\nname = \"{name}\"\nvip = \"203.0.113.11\"\nprotocol = \"tcp\"\nport = 80\nforward = \"nat\"\n"
    );
    for address in backends {
        text += &format!("[[service.backend]]\naddress = \"{address}\"\n");
    }
    text
}

#[test]
fn a_services_totals_outlive_its_backends() {
    let mut lab = Lab::new(&service_of("web", &["10.0.0.2", "10.0.0.3"]));
    let cpus = libbpf_rs::num_possible_cpus().expect("the number of CPUs") as u64;
    let id = lab.backend_id("10.0.0.3");
    let service = lab.desired.backends[&id].service;
    let mut counted = abi::traffic {
        opened: 10,
        closed: 4,
        unrecorded: 2,
        ..Default::default()
    };
    counted.by[0].packets_in = 100;
    counted.by[0].bytes_out = 5000;
    lab.set_per_cpu("traffic", id, &counted);

    lab.reload(&service_of("web", &["10.0.0.2"]));
    let past: abi::traffic = lab.element("past", service);
    assert_eq!(past.by[0].packets_in, 100 * cpus);
    assert_eq!(past.by[0].bytes_out, 5000 * cpus);
    // Nobody is connected to a backend that is gone.
    assert_eq!((past.opened, past.closed), (10 * cpus, 10 * cpus));
    assert_eq!(past.unrecorded, 2 * cpus);

    // Another backend gets the id, and begins anew.
    lab.set_element("expired", id, &abi::expiries { connections: 3 });
    lab.reload(&service_of("renamed", &["10.0.0.2", "10.0.0.4"]));
    assert_eq!(lab.backend_id("10.0.0.4"), id);
    assert_eq!(lab.traffic(id).packets_in, 0);
    assert_eq!(lab.element::<abi::expiries>("expired", id).connections, 0);
    let past: abi::traffic = lab.element("past", service);
    assert_eq!(
        past.opened,
        10 * cpus,
        "a service by another name is the same"
    );

    lab.reload("");
    lab.reload(&service_of("other", &["10.0.0.2"]));
    let other = lab.desired.backends[&lab.backend_id("10.0.0.2")].service;
    assert_eq!(other, service);
    let past: abi::traffic = lab.element("past", service);
    assert_eq!(past.opened, 0);
}
