//! The firewall, compiled: what `fw_prefixes`, `fw_levels`, `fw_steps` and `fw_rules` are to hold.
//!
//! Owns the way from "first match in file order" to one lookup of the source and a binary search
//! for each prefix of rules that contains it, and which id each rule has.

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::config::{self, Limits};
use crate::prefix::Prefix;

/// Files of blocklists that there may be.
pub const BLOCKLIST_LIMIT: usize = 64;

/// Ids for rules, levels, and steps that there is room for under `limits`. Each rule can have a level of
/// its own, next to those of all sources, all IPv4 and all IPv6 addresses. Two bounds of intervals for
/// each of two protocols are a rule's four steps; those with source ports that overlap take more.
pub fn sizes(limits: &Limits) -> (u32, u32, u32) {
    let rules = limits.firewall_rules + BLOCKLIST_LIMIT as u32 + 1;
    (
        rules,
        limits.firewall_rules + 3,
        8 * limits.firewall_rules + 64,
    )
}

/// The rules and blocklists in force. The same allocation as in the plan before when nothing has
/// changed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Firewall {
    /// Every prefix of a rule or blocklist that can decide something, with those of all IPv4 and of all
    /// IPv6 addresses among them; sorted, each once.
    pub prefixes: Vec<(Prefix, Node)>,
    /// The rules of one source prefix each. Indices are into this; the datapath's half is added where
    /// they are written.
    pub levels: Vec<Level>,
    /// The levels' intervals, level by level.
    pub steps: Vec<Step>,
    /// By id, the index into `fw_rules`: rules, blocklists, the default, which has id 0.
    pub rules: BTreeMap<u32, Rule>,
}

/// What is known of the sources in a prefix, `struct fw_prefix` of xdp_lb.h.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Node {
    /// They are denied; the id of the blocklist.
    Blocklisted(u32),
    /// Index into [`Firewall::levels`].
    Level(u32),
}

/// `struct fw_level` of xdp_lb.h.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Level {
    /// Index of its first step.
    pub first: u32,
    /// How many steps it has.
    pub count: u32,
    /// The level of the next shorter prefix.
    pub parent: Option<u32>,
    /// The lowest position in this level and those above it.
    pub position: u32,
}

/// `struct fw_step` of xdp_lb.h.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// IP protocol number times 65,536 plus destination port.
    pub start: u32,
    /// Of the rule in the file; `u32::MAX` for the default.
    pub position: u32,
    /// Its id and whether it denies. `None`: nothing matches from here on.
    pub rule: Option<(u32, config::RuleAction)>,
    /// Source ports that it matches, inclusive.
    pub source_ports: config::PortRange,
}

/// `struct fw_rule` of xdp_lb.h.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rule {
    /// A `[[firewall.rule]]`, with its position in the file.
    File(u32, config::Rule),
    /// A file of `firewall.blocklists`: its position in the list, its path, and how many prefixes it has.
    Blocklist(u32, PathBuf, u32),
    /// `firewall.default`
    Default(config::RuleAction),
}
