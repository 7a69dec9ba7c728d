//! Random firewalls and random packets: the loaded program does with each as a plain model says, and
//! counts each for the rule that has decided it. Every case is a few reloads, from one firewall to the next,
//! with the same packets after each: most of them belong to connections that the one before had let in.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::IpAddr;
use std::path::PathBuf;
use std::thread;

use proptest::collection::vec;
use proptest::prelude::*;
use xdplb::config::{Firewall, Prefix};
use xdplb::datapath::abi;
use xdplb::state::firewall::Rule;

use crate::harness::cells::{self, every_port, Cell, Dress, Mode};
use crate::harness::frame::Protocol;
use crate::harness::ip::{Ethernet, Icmp, Packet};
use crate::harness::{own_mac, Lab, CLIENTS, ROUTER};
use crate::model::{self, decide, Decision};
use crate::property::check;

/// Reloads wait for packets that are still on their way; the threads wait together.
const THREADS: u32 = 12;
const CASES: u32 = 35;

/// The firewall as a file has it.
fn text(firewall: &Firewall) -> String {
    let mut text = format!("[firewall]\ndefault = \"{}\"\n", action(firewall.default));
    let lists: Vec<String> = firewall
        .blocklists
        .iter()
        .map(|path| format!("{:?}", path.to_string_lossy()))
        .collect();
    let _ = writeln!(text, "blocklists = [{}]", lists.join(", "));
    for rule in &firewall.rules {
        let _ = writeln!(
            text,
            "[[firewall.rule]]\naction = \"{}\"",
            action(rule.action)
        );
        if let Some(source) = rule.source {
            let _ = writeln!(text, "source = \"{source}\"");
        }
        for (key, value) in [
            ("protocol", rule.protocol.to_string()),
            ("source_port", rule.source_port.to_string()),
            ("port", rule.port.to_string()),
        ] {
            let _ = writeln!(text, "{key} = \"{value}\"");
        }
    }
    text
}

fn action(action: xdplb::config::RuleAction) -> &'static str {
    match action {
        xdplb::config::RuleAction::Allow => "allow",
        xdplb::config::RuleAction::Deny => "deny",
    }
}

fn put(lab: &mut Lab, firewall: &Firewall, lists: &[Vec<Prefix>]) {
    lab.blocklists = firewall
        .blocklists
        .iter()
        .cloned()
        .zip(lists.iter().map(|list| list.as_slice().into()))
        .collect();
    lab.reload(&format!("{}\n{}", every_port(), text(firewall)));
}

/// The frame, by the way of a mode. IPv6 has no protocol 0.
fn frame(packet: &model::Packet, mode: Mode) -> Option<Vec<u8>> {
    let ipv6 = packet.source.is_ipv6();
    let mut cells = cells::main_ways();
    let cell: Cell = cells.find(|cell| cell.mode == mode && cell.ipv6 == ipv6)?;
    let vip = cell.vip().ip();
    let portless = match (packet.protocol, packet.ports) {
        (0, _) if ipv6 => return None,
        (6 | 17, Some((from, to))) => {
            let protocol = if packet.protocol == 6 {
                Protocol::Tcp
            } else {
                Protocol::Udp
            };
            let mut path = cell.path(protocol, (packet.source, from).into());
            path.port = to;
            let shape = |ends| path.between(ends, crate::harness::frame::SYN).packet();
            return Some(path.sent(&Dress::default(), shape));
        }
        (1, _) if !ipv6 => Icmp::EchoRequest.message(packet.source, vip, [0, 1, 0, 1], b"ping"),
        (58, _) if ipv6 => Icmp::EchoRequest.message(packet.source, vip, [0, 1, 0, 1], b"ping"),
        (number, _) => Packet::new(packet.source, vip, number, vec![0; 40]),
    };
    let ethernet = Ethernet {
        to: own_mac(CLIENTS),
        from: ROUTER,
        tags: vec![],
    };
    Some(ethernet.carrying(&portless))
}

/// How many packets have been dropped for the firewall's sake.
fn drops(lab: &Lab) -> [u64; 2] {
    [
        abi::reason::REASON_FIREWALL,
        abi::reason::REASON_BLOCKLISTED,
    ]
    .map(|reason| {
        let cpus: Vec<abi::counter> = lab.per_cpu("counters", reason.0);
        cpus.iter().map(|cpu| cpu.packets).sum()
    })
}

/// The hits of everything that is in force, by what the model calls it.
fn hits(lab: &Lab) -> BTreeMap<String, (u64, u64)> {
    let Some(firewall) = &lab.desired.firewall else {
        return BTreeMap::new();
    };
    let all = firewall.rules.iter().map(|(&id, rule)| {
        let name = match rule {
            Rule::File(position, _) => format!("rule {position}"),
            Rule::Blocklist(position, ..) => format!("blocklist {position}"),
            Rule::Default(_) => "default".into(),
        };
        let hits = lab.hits(id);
        (name, (hits.packets, hits.bytes))
    });
    all.collect()
}

fn name(decision: Decision) -> String {
    match decision {
        Decision::Rule(position, _) => format!("rule {position}"),
        Decision::Blocklist(position) => format!("blocklist {position}"),
        Decision::Default(_) => "default".into(),
    }
}

/// Sends every packet, and holds verdicts and counts against the model.
fn try_packets(
    lab: &Lab,
    firewall: &Firewall,
    lists: &[Vec<Prefix>],
    packets: &[(model::Packet, Mode)],
) {
    let mut expected = hits(lab);
    for (packet, mode) in packets {
        let Some(frame) = frame(packet, *mode) else {
            continue;
        };
        let decision = decide(firewall, lists, packet);
        let before = drops(lab);
        lab.run(CLIENTS, &frame);
        let [denied, blocklisted] = drops(lab);
        let dropped = match decision {
            Decision::Blocklist(_) => [0, 1],
            decision => [u64::from(decision.denies()), 0],
        };
        assert_eq!(
            [denied - before[0], blocklisted - before[1]],
            dropped,
            "{packet:?} by {mode:?}: {decision:?}\n{}{lists:?}",
            text(firewall)
        );
        if let Some((packets, bytes)) = expected.get_mut(&name(decision)) {
            *packets += 1;
            *bytes += frame.len() as u64;
        }
    }
    assert_eq!(
        hits(lab),
        expected,
        "{packets:?}\n{}{lists:?}",
        text(firewall)
    );
}

#[test]
fn every_packet_is_decided_as_the_file_says() {
    let mode = prop::sample::select(&[Mode::Nat, Mode::FullNat, Mode::Ipip][..]);
    let strategy = (
        vec(model::firewall(9), 2..5),
        vec((model::packet(), mode), 1..40),
    );
    thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                let lab = std::cell::RefCell::new(Lab::new(&every_port()));
                check(CASES, &strategy, |(firewalls, packets)| {
                    let mut lab = lab.borrow_mut();
                    for (firewall, lists) in &firewalls {
                        put(&mut lab, firewall, lists);
                        try_packets(&lab, firewall, lists, &packets);
                    }
                });
            });
        }
    });
}

/// Nothing of a firewall is left once it is gone, and it is as if it had never been.
#[test]
fn nothing_is_left_of_it() {
    let lab = std::cell::RefCell::new(Lab::new(&every_port()));
    let strategy = (
        model::firewall(9),
        vec((model::packet(), Just(Mode::Nat)), 1..20),
    );
    check(40, &strategy, |((firewall, lists), packets)| {
        let mut lab = lab.borrow_mut();
        put(&mut lab, &firewall, &lists);
        try_packets(&lab, &firewall, &lists, &packets);
        lab.blocklists = BTreeMap::<PathBuf, _>::new();
        lab.reload(&every_port());
        let before = drops(&lab);
        for (packet, mode) in &packets {
            if let Some(frame) = frame(packet, *mode) {
                lab.run(CLIENTS, &frame);
            }
        }
        assert_eq!(drops(&lab), before, "{packets:?}\n{}", text(&firewall));
    });
}

/// Addresses that no rule was written with, and longer prefixes of them.
#[test]
fn blocklists_of_many_prefixes() {
    let address = any::<u32>().prop_map(|bits| IpAddr::V4((bits & 0x3fff | 0x0a00_0000).into()));
    let prefix = (address.clone(), 18..=32_u8)
        .prop_map(|(address, length)| Prefix::covering(address, length));
    let strategy = (vec(vec(prefix, 0..300), 1..4), vec(address, 200));
    let lab = std::cell::RefCell::new(Lab::new(&every_port()));
    check(20, &strategy, |(lists, sources)| {
        let mut lab = lab.borrow_mut();
        let firewall = Firewall {
            default: xdplb::config::RuleAction::Allow,
            blocklists: (0..lists.len())
                .map(|n| format!("list-{n}").into())
                .collect(),
            rules: vec![],
        };
        put(&mut lab, &firewall, &lists);
        let packets: Vec<_> = sources
            .into_iter()
            .map(|source| {
                let packet = model::Packet {
                    source,
                    protocol: 1,
                    ports: None,
                };
                (packet, Mode::Nat)
            })
            .collect();
        try_packets(&lab, &firewall, &lists, &packets);
    });
}
