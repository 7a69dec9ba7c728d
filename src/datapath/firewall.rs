//! Writing the firewall: `fw_levels`, `fw_steps`, `fw_prefixes`, and `fw_rules` for people to read.
//!
//! Owns the order: levels and steps go where no packet looks, then the trie's nodes are pointed there, so
//! that each packet meets either the rules before or the new ones. What they are is [`crate::state`]'s.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::sync::Arc;

use libbpf_rs::MapHandle;

use super::abi::{self, bytes_of, from_bytes, name_to, words_of};
use super::array::Array;
use super::grace::Grace;
use super::trie::Changes;
use super::{batch, percpu, Error};
use crate::config::{self, Family, Prefix, RuleAction, RuleProtocol};
use crate::state::firewall::{self as state, Level, Node, Rule, Step};

const NO_LEVEL: u32 = abi::xdplb_limit::NO_LEVEL.0;

/// The firewall's maps, and their known contents.
pub(super) struct FirewallMaps {
    prefixes: MapHandle,
    levels: Array<abi::fw_level>,
    steps: Array<abi::fw_step>,
    rules: Array<abi::fw_rule>,
    hits: MapHandle,
    /// Packets may still be on their way through a half of `levels` and `steps` that is out of use.
    released: bool,
    /// The contents of the maps. `None`: not known.
    applied: Option<Option<Arc<state::Ruleset>>>,
    /// Whether the rules have changed since this was last asked.
    changed: bool,
}

/// A half of `levels` and `steps`: where each begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Side {
    level: u32,
    step: u32,
}

/// A key of the trie as the map has it.
type Key = [u8; size_of::<abi::fw_prefix_key>()];
/// The trie's nodes.
type Nodes = HashMap<Key, abi::fw_prefix>;

impl FirewallMaps {
    pub(super) fn new(map: impl Fn(&str) -> Result<MapHandle, Error>) -> Result<Self, Error> {
        Ok(FirewallMaps {
            prefixes: map("fw_prefixes")?,
            levels: Array::map(&map("fw_levels")?)?,
            steps: Array::map(&map("fw_steps")?)?,
            rules: Array::map(&map("fw_rules")?)?,
            hits: map("fw_hits")?,
            released: false,
            applied: None,
            changed: false,
        })
    }

    /// The same rules over the maps of another object, whose arrays are at least as large. One that is larger is
    /// at least twice as large, so that both halves of the old one lie in the first half of it.
    ///
    /// # Errors
    /// When a map cannot be mapped into memory.
    pub(super) fn moved_to(
        &self,
        map: impl Fn(&str) -> Result<MapHandle, Error>,
    ) -> Result<Self, Error> {
        Ok(FirewallMaps {
            prefixes: map("fw_prefixes")?,
            levels: self.levels.moved_to(&map("fw_levels")?)?,
            steps: self.steps.moved_to(&map("fw_steps")?)?,
            rules: self.rules.moved_to(&map("fw_rules")?)?,
            hits: map("fw_hits")?,
            released: self.released,
            applied: self.applied.clone(),
            changed: self.changed,
        })
    }

    /// Whether the rules have changed since the last call.
    pub(super) fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    /// What the maps hold may have drifted: the next write compares with them.
    pub(super) fn distrust(&mut self) {
        self.applied = None;
    }

    /// Puts the rules and blocklists in force; without a firewall does nothing, which is
    /// [`FirewallMaps::clear`]'s part. Nothing is looked at when it is the one that was written last: a plan is
    /// made whenever a neighbour changes, and comparing half a million prefixes takes half a second.
    pub(super) fn write(
        &mut self,
        desired: Option<&Arc<state::Ruleset>>,
        grace: &Grace,
    ) -> Result<(), Error> {
        let Some(firewall) = desired else {
            return Ok(());
        };
        if self.holds(desired) {
            return Ok(());
        }
        self.check_room(firewall)?;
        self.applied = None;
        let mut live = self.read_nodes()?;
        let in_use = self.half_in_use(&live);
        let half = match in_use.filter(|half| self.holds_rules(*half, firewall)) {
            Some(half) => half,
            None => self.write_rules(in_use, firewall, grace)?,
        };
        self.describe(firewall)?;

        let held = live.len();
        let mut new = Vec::new();
        for (prefix, node) in &firewall.prefixes {
            let key = prefix_key(prefix);
            let value = prefix_value(*node, half);
            let known = live.remove(bytes_of(&key));
            if known.is_none_or(|known| bytes_of(&known) != bytes_of(&value)) {
                new.push((key, known, value));
            }
        }
        let mut obsolete: Vec<(abi::fw_prefix_key, abi::fw_prefix)> = live
            .iter()
            .filter_map(|(key, value)| Some((from_bytes(key)?, *value)))
            .collect();
        // A node decides for sources that have no longer one of the same rules. So the longest come first,
        // before a shorter one is changed, and the longest go last, when no shorter one is left that was
        // never meant for their sources.
        new.sort_by_key(|(key, ..)| Reverse(key.prefixlen));
        obsolete.sort_by_key(|(key, _)| key.prefixlen);
        let mut changes = Changes::default();
        for (key, known, value) in new {
            changes.put(key, known, value);
        }
        for (key, value) in obsolete {
            changes.remove(key, value);
        }
        let written = changes.make(&self.prefixes, held);
        self.changed |= !changes.is_empty();
        self.released = true;
        written?;
        self.applied = Some(Some(Arc::clone(firewall)));
        Ok(())
    }

    /// Empties the maps if there is to be no firewall. No packet may ask it any more from before the call
    /// on.
    pub(super) fn clear(
        &mut self,
        desired: Option<&Arc<state::Ruleset>>,
        grace: &Grace,
    ) -> Result<(), Error> {
        if desired.is_some() || self.holds(desired) {
            return Ok(());
        }
        self.applied = None;
        let obsolete: Vec<u8> = self.read_nodes()?.into_keys().flatten().collect();
        if !obsolete.is_empty() {
            // Packets that have begun to ask.
            grace.wait()?;
            batch::delete(&self.prefixes, &obsolete)?;
        }
        self.describe(&state::Ruleset::default())?;
        self.applied = Some(None);
        Ok(())
    }

    fn holds(&self, desired: Option<&Arc<state::Ruleset>>) -> bool {
        match (&self.applied, desired) {
            (Some(Some(applied)), Some(desired)) => Arc::ptr_eq(applied, desired),
            (Some(None), None) => true,
            _ => false,
        }
    }

    /// The plan sees to it: this is for plans made otherwise.
    fn check_room(&self, firewall: &state::Ruleset) -> Result<(), Error> {
        let ids = firewall.rules.keys().next_back().map_or(0, |id| id + 1);
        let limits = "raise limits.firewall_rules and restart";
        for (what, needed, room, remedy) in [
            ("ids of rules", ids as usize, self.rules.length(), limits),
            (
                "source prefixes of rules",
                firewall.levels.len(),
                self.levels.length() / 2,
                limits,
            ),
            (
                "intervals of ports",
                firewall.steps.len(),
                self.steps.length() / 2,
                limits,
            ),
            (
                "prefixes",
                firewall.prefixes.len(),
                abi::xdplb_limit::PREFIX_LIMIT.0,
                "use shorter blocklists",
            ),
        ] {
            if needed > room as usize {
                return Err(Error::FirewallRoom {
                    what,
                    needed,
                    room: room as usize,
                    remedy,
                });
            }
        }
        Ok(())
    }

    fn read_nodes(&self) -> Result<Nodes, Error> {
        let mut nodes = Nodes::new();
        batch::for_each(&self.prefixes, |key, value| {
            if let (Ok(key), Some(value)) = (key.try_into(), from_bytes(value)) {
                nodes.insert(key, value);
            }
        })?;
        Ok(nodes)
    }

    /// Where the trie leads to. Into both halves it can only if the kernel has refused a part of what was
    /// to be written: then where most of it leads to.
    fn half_in_use(&self, live: &Nodes) -> Option<Side> {
        let halves = self.halves();
        let mut counts = [0_usize; 2];
        for node in live.values().filter(|node| node.level != NO_LEVEL) {
            counts[usize::from(node.level >= halves[1].level)] += 1;
        }
        match counts {
            [0, 0] => None,
            [first, second] => Some(halves[usize::from(second > first)]),
        }
    }

    fn halves(&self) -> [Side; 2] {
        let second = Side {
            level: self.levels.length() / 2,
            step: self.steps.length() / 2,
        };
        [Side { level: 0, step: 0 }, second]
    }

    fn holds_rules(&self, half: Side, firewall: &state::Ruleset) -> bool {
        let levels = (half.level..).zip(&firewall.levels).all(|(index, level)| {
            let live = self.levels.get(index);
            live.is_some_and(|live| bytes_of(&live) == bytes_of(&level_value(level, half)))
        });
        levels
            && (half.step..).zip(&firewall.steps).all(|(index, step)| {
                let live = self.steps.get(index);
                live.is_some_and(|live| bytes_of(&live) == bytes_of(&step_value(step)))
            })
    }

    /// Writes levels and steps to the half that is not in use, once packets that may still be on their way
    /// through it have left it.
    fn write_rules(
        &mut self,
        in_use: Option<Side>,
        firewall: &state::Ruleset,
        grace: &Grace,
    ) -> Result<Side, Error> {
        let [first, second] = self.halves();
        let half = if in_use == Some(first) { second } else { first };
        if self.released {
            grace.wait()?;
            self.released = false;
        }
        for (index, level) in (half.level..).zip(&firewall.levels) {
            self.levels.set(index, &level_value(level, half));
        }
        for (index, step) in (half.step..).zip(&firewall.steps) {
            self.steps.set(index, &step_value(step));
        }
        Ok(half)
    }

    /// Writes the description of each id; an id that now belongs to another rule counts from 0.
    fn describe(&mut self, firewall: &state::Ruleset) -> Result<(), Error> {
        for id in 0..self.rules.length() {
            let value = firewall
                .rules
                .get(&id)
                .map_or_else(Default::default, rule_value);
            let live = self.rules.get(id).unwrap_or_default();
            if value.kind != 0 && !same_rule(&live, &value) {
                percpu::clear::<abi::hits>(&self.hits, id)?;
            }
            self.rules.set(id, &value);
        }
        Ok(())
    }
}

/// Whether two descriptions are of one rule, perhaps changed: it has kept its name or its conditions.
fn same_rule(a: &abi::fw_rule, b: &abi::fw_rule) -> bool {
    let conditions = |rule: &abi::fw_rule| abi::fw_rule {
        position: 0,
        prefixes: 0,
        name: name_to(""),
        ..*rule
    };
    let same_name = a.name == b.name;
    a.kind == b.kind
        && if u32::from(a.kind) == abi::rule_kind::RULE_OF_FILE.0 {
            same_name && a.name[0] != 0 || bytes_of(&conditions(a)) == bytes_of(&conditions(b))
        } else {
            same_name
        }
}

/// The key of a prefix: of an IPv4 one, within the mapped addresses.
fn prefix_key(prefix: &Prefix) -> abi::fw_prefix_key {
    abi::fw_prefix_key {
        prefixlen: mapped_length(prefix),
        address: words_of(prefix.address()),
    }
}

/// Bits of a prefix as the maps have addresses.
pub(super) fn mapped_length(prefix: &Prefix) -> u32 {
    let family = Family::of(prefix.address());
    u32::from(Family::Ipv6.bits() - family.bits() + prefix.length())
}

fn prefix_value(node: Node, half: Side) -> abi::fw_prefix {
    match node {
        Node::Blocklisted(blocklist) => abi::fw_prefix {
            blocklist,
            level: NO_LEVEL,
        },
        Node::Level(level) => abi::fw_prefix {
            blocklist: 0,
            level: half.level + level,
        },
    }
}

fn level_value(level: &Level, half: Side) -> abi::fw_level {
    abi::fw_level {
        first: half.step + level.first,
        count: level.count,
        parent: level.parent.map_or(NO_LEVEL, |parent| half.level + parent),
        position: level.position,
    }
}

fn step_value(step: &Step) -> abi::fw_step {
    abi::fw_step {
        start: step.start,
        position: step.position,
        rule: match step.rule {
            None => abi::xdplb_limit::NO_RULE.0,
            Some((id, RuleAction::Allow)) => id,
            Some((id, RuleAction::Deny)) => id | abi::xdplb_limit::RULE_DENIES.0,
        },
        source_first: step.source_ports.first,
        source_last: step.source_ports.last,
    }
}

fn rule_value(rule: &Rule) -> abi::fw_rule {
    let any = config::PortRange::ANY;
    let nothing_said = abi::fw_rule {
        protocol: abi::rule_protocol::PROTOCOL_ANY.0 as u16,
        port_first: any.first,
        port_last: any.last,
        source_port_first: any.first,
        source_port_last: any.last,
        ..Default::default()
    };
    match rule {
        Rule::File(position, rule) => abi::fw_rule {
            position: *position,
            source: rule
                .source
                .map_or([0; 4], |prefix| words_of(prefix.address())),
            family: rule
                .source
                .map_or(0, |prefix| Family::of(prefix.address()).number()),
            prefix_length: rule.source.map_or(0, |prefix| prefix.length()),
            kind: abi::rule_kind::RULE_OF_FILE.0 as u8,
            action: rule_action(rule.action),
            protocol: match rule.protocol {
                RuleProtocol::Any => abi::rule_protocol::PROTOCOL_ANY.0 as u16,
                RuleProtocol::Icmp => abi::rule_protocol::PROTOCOL_ICMP.0 as u16,
                RuleProtocol::Number(number) => number.into(),
            },
            port_first: rule.port.first,
            port_last: rule.port.last,
            source_port_first: rule.source_port.first,
            source_port_last: rule.source_port.last,
            name: name_to(rule.name.as_deref().unwrap_or_default()),
            ..nothing_said
        },
        Rule::Blocklist(position, path, prefixes) => abi::fw_rule {
            position: *position,
            prefixes: *prefixes,
            kind: abi::rule_kind::RULE_BLOCKLIST.0 as u8,
            action: rule_action(RuleAction::Deny),
            name: name_to(&path.to_string_lossy()),
            ..nothing_said
        },
        Rule::Default(action) => abi::fw_rule {
            kind: abi::rule_kind::RULE_DEFAULT.0 as u8,
            action: rule_action(*action),
            ..nothing_said
        },
    }
}

fn rule_action(action: RuleAction) -> u8 {
    match action {
        RuleAction::Allow => abi::rule_action::RULE_ALLOW,
        RuleAction::Deny => abi::rule_action::RULE_DENY,
    }
    .0 as u8
}
