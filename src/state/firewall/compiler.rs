//! From rules and blocklists in the order of the file to what the datapath looks up.
//!
//! Owns the way from "first match in file order" to one lookup of the source and a binary search for each
//! prefix of rules that contains it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::ids::Ids;
use super::{Level, Node, Ruleset, Step, BLOCKLIST_LIMIT, DEFAULT_ID, PREFIX_LIMIT};
use crate::config::{self, Limits, PortRange, Protocol, RuleProtocol};
use crate::prefix::Prefix;
use crate::state::PlanError;

/// The level of the rules without a source.
const ROOT: u32 = 0;
/// Where the default stands: after every rule.
const LAST: u32 = u32::MAX;

/// Compiles `wanted`, with the prefixes of its blocklists in `contents`. Ids are those of `previous`
/// where a rule of the same name, or else with the same conditions, was in it.
///
/// # Errors
///
/// When it does not fit the maps of `limits`.
pub fn compile(
    previous: Option<&Ruleset>,
    wanted: &config::Firewall,
    limits: &Limits,
    contents: Vec<Arc<[Prefix]>>,
) -> Result<Ruleset, PlanError> {
    let tables = limits.firewall_tables();
    if wanted.rules.len() > limits.firewall_rules as usize {
        return Err(PlanError::Rules {
            needed: wanted.rules.len(),
            limit: limits.firewall_rules,
        });
    }
    if wanted.blocklists.len() > BLOCKLIST_LIMIT {
        return Err(PlanError::Blocklists {
            count: wanted.blocklists.len(),
        });
    }
    let ids = Ids::assign(previous, wanted, tables.rules)?;
    let mut compiler = Compiler {
        room: tables.steps as usize,
        firewall: Ruleset {
            rules: ids.rules(wanted, &contents),
            ..Ruleset::default()
        },
    };

    let mut by_source: BTreeMap<Option<Prefix>, Vec<Match>> = BTreeMap::new();
    for ((position, rule), &id) in (0..).zip(&wanted.rules).zip(&ids.of_rules) {
        let matching = by_source.entry(rule.source).or_default();
        matching.push(Match::of(position, id, rule));
    }
    let mut everywhere = by_source.remove(&None).unwrap_or_default();
    everywhere.push(Match {
        position: LAST,
        rule: (DEFAULT_ID, wanted.default),
        keys: vec![(0, LAST_KEY)],
        source_ports: PortRange::ANY,
    });
    compiler.level(None, &everywhere)?;

    // With the blocklist's position. Of the same prefix, blocklists come first, and of them the first.
    const NO_LIST: u32 = u32::MAX;
    let sources = by_source.keys().copied().flatten();
    let mut entries: Vec<(Prefix, u32)> = families()
        .chain(sources)
        .map(|prefix| (prefix, NO_LIST))
        .collect();
    for (position, prefixes) in (0..).zip(&contents) {
        entries.extend(prefixes.iter().map(|prefix| (*prefix, position)));
    }
    entries.sort_unstable();
    entries.dedup_by_key(|(prefix, _)| *prefix);

    let mut blocklisted: Option<Prefix> = None;
    // The levels whose prefixes contain the one at hand, the longest last.
    let mut around: Vec<(Prefix, u32)> = Vec::new();
    for (prefix, list) in entries {
        // The prefixes inside a prefix follow it directly. None within a blocklisted one decides anything.
        if blocklisted.is_some_and(|outer| outer.covers(&prefix)) {
            continue;
        }
        let node = if let Some(&id) = ids.of_blocklists.get(list as usize) {
            blocklisted = Some(prefix);
            Node::Blocklisted(id)
        } else {
            while around
                .last()
                .is_some_and(|(outer, _)| !outer.covers(&prefix))
            {
                around.pop();
            }
            let parent = around.last().map_or(ROOT, |(_, level)| *level);
            // All of a family may have no rules of its own.
            Node::Level(match by_source.get(&Some(prefix)) {
                Some(matching) => {
                    let level = compiler.level(Some(parent), matching)?;
                    around.push((prefix, level));
                    level
                }
                None => parent,
            })
        };
        compiler.firewall.prefixes.push((prefix, node));
    }
    let mut firewall = compiler.firewall;
    if firewall.prefixes.len() > PREFIX_LIMIT {
        return Err(PlanError::Prefixes {
            key: "firewall.blocklists and the sources of [[firewall.rule]]",
            count: firewall.prefixes.len(),
        });
    }
    firewall.contents = contents;
    Ok(firewall)
}

/// All addresses of each family.
fn families() -> impl Iterator<Item = Prefix> {
    let unspecified = ["0.0.0.0", "::"].map(str::parse);
    unspecified
        .into_iter()
        .flatten()
        .map(|address| Prefix::covering(address, 0))
}

/// The last key of protocol and port.
const LAST_KEY: u32 = 0x00ff_ffff;

/// A rule as far as its source is settled.
struct Match {
    position: u32,
    rule: (u32, config::RuleAction),
    /// First and last of the keys, protocol and destination port, that it matches; disjoint.
    keys: Vec<(u32, u32)>,
    source_ports: PortRange,
}

impl Match {
    fn of(position: u32, id: u32, rule: &config::Rule) -> Match {
        let (tcp, udp) = (Protocol::Tcp.number(), Protocol::Udp.number());
        let any_port = rule.port == PortRange::ANY && rule.source_port == PortRange::ANY;
        let key = |protocol: u8, port: u16| u32::from(protocol) << 16 | u32::from(port);
        let of = |protocol| {
            (
                key(protocol, rule.port.first),
                key(protocol, rule.port.last),
            )
        };
        Match {
            position,
            rule: (id, rule.action),
            keys: match rule.protocol {
                RuleProtocol::Any if any_port => vec![(0, LAST_KEY)],
                // Others have no ports.
                RuleProtocol::Any => vec![of(tcp), of(udp)],
                RuleProtocol::Icmp => vec![of(ICMP), of(ICMPV6)],
                RuleProtocol::Number(protocol) => vec![of(protocol)],
            },
            source_ports: rule.source_port,
        }
    }

    fn step(&self, start: u32) -> Step {
        Step {
            start,
            position: self.position,
            rule: Some(self.rule),
            source_ports: self.source_ports,
        }
    }
}

/// IP protocol numbers (IANA).
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;

/// Appends levels with their steps.
struct Compiler {
    firewall: Ruleset,
    /// Steps that there may be.
    room: usize,
}

impl Compiler {
    /// Adds the level of the rules of one prefix, which are in file order, and gives its index.
    fn level(&mut self, parent: Option<u32>, matching: &[Match]) -> Result<u32, PlanError> {
        let first = self.firewall.steps.len();
        self.cut(matching)?;
        let levels = &mut self.firewall.levels;
        let above = parent.and_then(|parent| levels.get(parent as usize));
        let lowest = matching.first().map_or(LAST, |first| first.position);
        let level = levels.len() as u32;
        levels.push(Level {
            first: first as u32,
            count: (self.firewall.steps.len() - first) as u32,
            parent,
            position: above.map_or(lowest, |above| above.position.min(lowest)),
        });
        Ok(level)
    }

    /// Cuts the keys into intervals in which the same rules match, and adds the steps of each.
    fn cut(&mut self, matching: &[Match]) -> Result<(), PlanError> {
        // From which key on a rule matches, or does no longer.
        let mut bounds: Vec<(u32, usize, bool)> = Vec::new();
        for (index, rule) in matching.iter().enumerate() {
            for &(first, last) in &rule.keys {
                bounds.push((first, index, true));
                if last < LAST_KEY {
                    bounds.push((last + 1, index, false));
                }
            }
        }
        bounds.sort_unstable();

        // The first interval begins with the first key, be it that nothing matches there.
        let mut start = 0;
        let mut active: BTreeSet<usize> = BTreeSet::new();
        // The first of the active ones that every source port matches: those after it are not reached.
        let mut end: Option<usize> = None;
        let mut changed = true;
        for (key, index, begins) in bounds {
            if key > start {
                if changed {
                    end = self.interval(start, matching, &active)?;
                }
                (start, changed) = (key, false);
            }
            if begins {
                active.insert(index);
            } else {
                active.remove(&index);
            }
            changed |= end.is_none_or(|end| index <= end);
        }
        if changed {
            self.interval(start, matching, &active)?;
        }
        Ok(())
    }

    /// Adds the steps of the interval that begins at `start`: those of the `active` rules from the last
    /// that can be reached to the first. Gives that last one, if it matches every source port.
    fn interval(
        &mut self,
        start: u32,
        matching: &[Match],
        active: &BTreeSet<usize>,
    ) -> Result<Option<usize>, PlanError> {
        let steps = &mut self.firewall.steps;
        let first = steps.len();
        let mut end = None;
        for &index in active {
            let Some(rule) = matching.get(index) else {
                continue;
            };
            steps.push(rule.step(start));
            if rule.source_ports == PortRange::ANY {
                end = Some(index);
                break;
            }
        }
        match steps.get_mut(first..) {
            Some([]) | None => steps.push(Step {
                start,
                position: LAST,
                rule: None,
                source_ports: PortRange::ANY,
            }),
            Some(added) => added.reverse(),
        }
        if steps.len() > self.room {
            return Err(PlanError::Steps { limit: self.room });
        }
        Ok(end)
    }
}
