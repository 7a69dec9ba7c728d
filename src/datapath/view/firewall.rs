//! The rules in force, with the packets that each has decided.

use super::View;
use crate::config::{Family, PortRange, Prefix, RuleAction, RuleProtocol};
use crate::datapath::abi::{self, address_of, name_from, rule_kind, rule_protocol};
use crate::datapath::array::Array;
use crate::datapath::{percpu, Error};

/// A rule, a blocklist, or the default: each decides about packets to a VIP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Which of them, in the order in which they are asked.
    pub kind: RuleKind,
    /// The rule's name, or the blocklist's file. `None`: it has none.
    pub name: Option<String>,
    /// The fate of packets that it decides.
    pub action: RuleAction,
    /// `None`: from anywhere, or from where a blocklist says.
    pub source: Option<Prefix>,
    /// Of which protocol.
    pub protocol: RuleProtocol,
    /// Source ports.
    pub source_port: PortRange,
    /// Destination ports.
    pub port: PortRange,
    /// Packets that it has decided.
    pub packets: u64,
    /// Their bytes, Ethernet header on.
    pub bytes: u64,
}

/// The kind of a [`Rule`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum RuleKind {
    /// A file of `firewall.blocklists`: its place among them, and how many prefixes it has.
    Blocklist(u32, u32),
    /// A `[[firewall.rule]]`: its place in the file.
    Rule(u32),
    /// `firewall.default`
    Default,
}

impl View {
    /// The rules, in the order in which they are asked. Empty: there is no firewall.
    ///
    /// # Errors
    /// When a map cannot be read.
    pub fn firewall(&self) -> Result<Vec<Rule>, Error> {
        let hits = self.map("fw_hits")?;
        let array: Array<abi::fw_rule> = Array::map_read_only(&self.map("fw_rules")?)?;
        let mut rules = Vec::new();
        for id in 0..array.length() {
            let Some(mut rule) = array.get(id).as_ref().and_then(rule_of) else {
                continue;
            };
            for cpu in percpu::read::<abi::hits>(&hits, id)? {
                rule.packets += cpu.packets;
                rule.bytes += cpu.bytes;
            }
            rules.push(rule);
        }
        rules.sort_by_key(|rule| rule.kind);
        Ok(rules)
    }
}

/// `None`: the id is free.
fn rule_of(rule: &abi::fw_rule) -> Option<Rule> {
    let kind = match rule_kind(rule.kind.into()) {
        rule_kind::RULE_OF_FILE => RuleKind::Rule(rule.position),
        rule_kind::RULE_BLOCKLIST => RuleKind::Blocklist(rule.position, rule.prefixes),
        rule_kind::RULE_DEFAULT => RuleKind::Default,
        _ => return None,
    };
    let of_family = |family: Family| rule.family == family.number();
    let has_source = Family::ALL.into_iter().any(of_family);
    Some(Rule {
        kind,
        name: Some(name_from(&rule.name)).filter(|name| !name.is_empty()),
        action: if u32::from(rule.action) == abi::rule_action::RULE_ALLOW.0 {
            RuleAction::Allow
        } else {
            RuleAction::Deny
        },
        source: has_source.then(|| Prefix::covering(address_of(rule.source), rule.prefix_length)),
        protocol: match rule_protocol(rule.protocol.into()) {
            rule_protocol::PROTOCOL_ANY => RuleProtocol::Any,
            rule_protocol::PROTOCOL_ICMP => RuleProtocol::Icmp,
            _ => RuleProtocol::Number(rule.protocol as u8),
        },
        source_port: PortRange {
            first: rule.source_port_first,
            last: rule.source_port_last,
        },
        port: PortRange {
            first: rule.port_first,
            last: rule.port_last,
        },
        packets: 0,
        bytes: 0,
    })
}
