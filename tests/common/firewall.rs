//! A model of a firewall, in as little code as possible: blocklists, then the first rule in file order that
//! matches, then the default. Beside it random firewalls and packets that meet each other, drawn from a
//! few addresses and ports. The compiled rules, and the running program, are compared with it.

use std::net::IpAddr;

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;
use xdplb::config::{Firewall, PortRange, Prefix, Rule, RuleAction, RuleProtocol};

/// What rules look at.
#[derive(Debug, Clone, Copy)]
pub struct Packet {
    pub source: IpAddr,
    pub protocol: u8,
    /// Source and destination, of TCP and UDP.
    pub ports: Option<(u16, u16)>,
}

/// What decides about a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Denied. The position of the blocklist: of those with the shortest prefix around the source, the
    /// first.
    Blocklist(usize),
    /// The position of the rule, and what it says.
    Rule(usize, RuleAction),
    /// What the default says.
    Default(RuleAction),
}

impl Decision {
    pub fn denies(self) -> bool {
        matches!(
            self,
            Decision::Blocklist(_)
                | Decision::Rule(_, RuleAction::Deny)
                | Decision::Default(RuleAction::Deny)
        )
    }
}

/// What becomes of a packet. `blocklists` are the contents of the firewall's, in its order.
pub fn decide(firewall: &Firewall, blocklists: &[Vec<Prefix>], packet: &Packet) -> Decision {
    let listed = blocklists.iter().enumerate().flat_map(|(position, list)| {
        let around = list.iter().filter(|prefix| contains(prefix, packet.source));
        around.map(move |prefix| (prefix.length(), position))
    });
    if let Some((_, position)) = listed.min() {
        return Decision::Blocklist(position);
    }
    for (position, rule) in firewall.rules.iter().enumerate() {
        if matches(rule, packet) {
            return Decision::Rule(position, rule.action);
        }
    }
    Decision::Default(firewall.default)
}

fn matches(rule: &Rule, packet: &Packet) -> bool {
    let source = rule
        .source
        .is_none_or(|prefix| contains(&prefix, packet.source));
    let protocol = match rule.protocol {
        RuleProtocol::Any => true,
        RuleProtocol::Icmp => packet.protocol == 1 || packet.protocol == 58,
        RuleProtocol::Number(number) => packet.protocol == number,
    };
    let within = |range: PortRange, port: u16| range.first <= port && port <= range.last;
    let ports = match packet.ports {
        Some((from, to)) => within(rule.source_port, from) && within(rule.port, to),
        None => rule.source_port == PortRange::ANY && rule.port == PortRange::ANY,
    };
    source && protocol && ports
}

fn contains(prefix: &Prefix, address: IpAddr) -> bool {
    let host_bits = |all: u8| u32::from(all - prefix.length());
    match (prefix.address(), address) {
        (IpAddr::V4(a), IpAddr::V4(b)) => {
            let differing = u64::from(a.to_bits() ^ b.to_bits());
            differing >> host_bits(32) == 0
        }
        (IpAddr::V6(a), IpAddr::V6(b)) => {
            let differing = a.to_bits() ^ b.to_bits();
            differing.checked_shr(host_bits(128)).unwrap_or(0) == 0
        }
        _ => false,
    }
}

/// Sources that share prefixes of many lengths.
const SOURCES: [&str; 12] = [
    "10.0.0.0",
    "10.0.0.1",
    "10.0.1.1",
    "10.1.0.1",
    "198.51.100.7",
    "203.0.113.255",
    "::1",
    "2001:db8::",
    "2001:db8::1",
    "2001:db8:0:1::1",
    "2001:db8:1::1",
    "fd00::ffff:1",
];
/// Lengths that part them, and the shortest and longest. Beyond 32, only IPv6 has them.
const LENGTHS: [u8; 14] = [0, 1, 7, 8, 15, 16, 23, 24, 31, 32, 48, 64, 127, 128];
const PORTS: [u16; 9] = [1, 2, 53, 79, 80, 81, 443, 65_534, 65_535];
/// TCP and UDP, those beside them in number, both of ICMP, and others.
const PROTOCOLS: [u8; 11] = [0, 1, 2, 5, 6, 7, 17, 18, 47, 58, 255];

fn address() -> impl Strategy<Value = IpAddr> {
    select(SOURCES.as_slice()).prop_map(|text| text.parse().expect("an address"))
}

/// Any prefix of one of the sources.
pub fn prefix() -> impl Strategy<Value = Prefix> {
    (address(), select(LENGTHS.as_slice()))
        .prop_map(|(address, length)| Prefix::covering(address, length))
}

fn ports() -> impl Strategy<Value = PortRange> {
    let port = || select(PORTS.as_slice());
    prop_oneof![
        2 => Just(PortRange::ANY),
        1 => port().prop_map(|port| PortRange { first: port, last: port }),
        2 => (port(), port()).prop_map(|(a, b)| PortRange { first: a.min(b), last: a.max(b) }),
    ]
}

/// A rule without a name, as a file may have it.
pub fn rule() -> impl Strategy<Value = Rule> {
    let protocol = prop_oneof![
        3 => Just(RuleProtocol::Any),
        3 => Just(RuleProtocol::TCP),
        2 => Just(RuleProtocol::UDP),
        1 => Just(RuleProtocol::Icmp),
        1 => select(PROTOCOLS.as_slice()).prop_map(RuleProtocol::Number),
    ];
    let conditions = (option::of(prefix()), protocol, ports(), ports());
    (action(), conditions).prop_map(|(action, (source, protocol, source_port, port))| {
        let with_ports = protocol.has_ports();
        let of = |ports| if with_ports { ports } else { PortRange::ANY };
        Rule {
            name: None,
            action,
            source,
            protocol,
            source_port: of(source_port),
            port: of(port),
        }
    })
}

pub fn action() -> impl Strategy<Value = RuleAction> {
    select(&[RuleAction::Allow, RuleAction::Deny][..])
}

/// A firewall of that many rules at most, with what its blocklists hold, in their order.
pub fn firewall(rules: usize) -> impl Strategy<Value = (Firewall, Vec<Vec<Prefix>>)> {
    // Long prefixes: of short ones, nothing would be left for the rules.
    let listed = (address(), select(&LENGTHS[5..]));
    let listed = listed.prop_map(|(address, length)| Prefix::covering(address, length));
    let lists = vec(vec(listed, 0..3), 0..3);
    (action(), vec(rule(), 0..=rules), lists).prop_map(|(default, rules, lists)| {
        let blocklists = (0..lists.len()).map(|index| format!("list-{index}").into());
        let firewall = Firewall {
            default,
            blocklists: blocklists.collect(),
            rules,
        };
        (firewall, lists)
    })
}

/// A packet from one of the sources, or from just beside one.
pub fn packet() -> impl Strategy<Value = Packet> {
    let source =
        (address(), prop_oneof![3 => Just(0u8), 1 => 1..4u8]).prop_map(|(address, flip)| {
            match address {
                IpAddr::V4(v4) => IpAddr::V4((v4.to_bits() ^ u32::from(flip)).into()),
                IpAddr::V6(v6) => IpAddr::V6((v6.to_bits() ^ u128::from(flip)).into()),
            }
        });
    let protocol = prop_oneof![3 => Just(6u8), 2 => Just(17u8), 2 => select(PROTOCOLS.as_slice())];
    let port = || prop_oneof![8 => select(PORTS.as_slice()), 1 => any::<u16>()];
    (source, protocol, port(), port()).prop_map(|(source, protocol, from, to)| Packet {
        source,
        protocol,
        ports: matches!(protocol, 6 | 17).then_some((from, to)),
    })
}
