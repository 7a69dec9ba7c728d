//! The firewall, compiled: what `fw_prefixes`, `fw_levels`, `fw_steps` and `fw_rules` are to hold.
//!
//! Owns the way from "first match in file order" to one lookup of the source and a binary search
//! for each prefix of rules that contains it, and which id each rule has.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::hash::Hash;
use std::path::PathBuf;
use std::sync::Arc;

use super::PlanError;
use crate::config::blocklist::Contents;
use crate::config::{self, Config, FirewallTables, Limits, PortRange, Protocol, RuleProtocol};
use crate::prefix::Prefix;

pub use crate::config::BLOCKLIST_LIMIT;

/// Most prefixes in `fw_prefixes`, and in `allowed_sources`: `PREFIX_LIMIT` of xdp_lb.h.
pub const PREFIX_LIMIT: usize = 4_194_304;
/// Most levels that the datapath follows for a packet, `LEVEL_LIMIT` of xdp_lb.h.
pub const LEVEL_LIMIT: usize = 132;
/// Rules cannot be nested deeper than this: a level for each length of an IPv6 prefix, and that of all
/// sources.
const DEEPEST: usize = 129 + 1;
const _: () = assert!(DEEPEST <= LEVEL_LIMIT);

/// The id of the default.
pub const DEFAULT_ID: u32 = 0;
/// The level of the rules without a source.
const ROOT: u32 = 0;
/// Where the default stands: after every rule.
const LAST: u32 = u32::MAX;

/// Ids for rules, levels, and steps that there is room for under `limits`.
pub fn sizes(limits: &Limits) -> (u32, u32, u32) {
    let FirewallTables {
        rules,
        levels,
        steps,
    } = limits.firewall_tables();
    (rules, levels, steps)
}

/// The rules and blocklists in force. The same allocation as in the plan before when nothing has
/// changed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Ruleset {
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
    /// What the blocklists held when this was compiled, in the order of the file: as long as they and
    /// the rules are the same, there is nothing to compile.
    pub contents: Vec<Arc<[Prefix]>>,
}

/// What is known of the sources in a prefix, `struct fw_prefix` of xdp_lb.h.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Node {
    /// They are denied; the id of the blocklist.
    Blocklisted(u32),
    /// Index into [`Ruleset::levels`].
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
    pub source_ports: PortRange,
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

/// The firewall that `config` asks for, given the one in force; `None` if it asks for none, or for one
/// that would let everything in. With the same rules and blocklists it is the one in force: plans are
/// made whenever a neighbour changes, and blocklists are long.
///
/// # Errors
///
/// When it does not fit the maps, or when `contents` lacks a blocklist.
pub(super) fn plan(
    previous: Option<&Arc<Ruleset>>,
    config: &Config,
    contents: &Contents,
) -> Result<Option<Arc<Ruleset>>, PlanError> {
    let decides = |firewall: &&config::Firewall| {
        firewall.default == config::RuleAction::Deny
            || !firewall.rules.is_empty()
            || !firewall.blocklists.is_empty()
    };
    let Some(wanted) = config.firewall.as_ref().filter(decides) else {
        return Ok(None);
    };
    let unread = |path: &PathBuf| PlanError::Unread { path: path.clone() };
    let contents: Vec<Arc<[Prefix]>> = wanted
        .blocklists
        .iter()
        .map(|path| contents.get(path).cloned().ok_or_else(|| unread(path)))
        .collect::<Result<_, _>>()?;
    if let Some(same) = previous.filter(|previous| previous.is_of(wanted, &contents)) {
        return Ok(Some(Arc::clone(same)));
    }
    let previous = previous.map(Arc::as_ref);
    compile(previous, wanted, &config.limits, contents).map(|firewall| Some(Arc::new(firewall)))
}

impl Ruleset {
    /// Whether this is what compiling `wanted` would give.
    fn is_of(&self, wanted: &config::Firewall, contents: &[Arc<[Prefix]>]) -> bool {
        let count = 1 + wanted.rules.len() + wanted.blocklists.len();
        let stands = |rule: &Rule| match rule {
            Rule::File(position, rule) => wanted.rules.get(*position as usize) == Some(rule),
            Rule::Blocklist(position, path, _) => {
                wanted.blocklists.get(*position as usize) == Some(path)
            }
            Rule::Default(action) => wanted.default == *action,
        };
        // Contents last: they are compared one by one where they were read anew.
        self.rules.len() == count && self.rules.values().all(stands) && self.contents == contents
    }
}

/// Compiles `wanted`, of whose blocklists `contents` has what is in each. Ids are those of `previous`
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
        // What it contains follows a prefix directly. Nothing in a blocklisted one decides.
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

/// Which id each rule and blocklist has.
struct Ids {
    /// By position in the file.
    of_rules: Vec<u32>,
    of_blocklists: Vec<u32>,
}

impl Ids {
    /// An id that is free in `previous` goes before one that has just become so: packets that are on
    /// their way count for the rule that decides them by its id. Where there is no other it is taken
    /// nevertheless, since a rule cannot be left out until the next plan as a service can, and all that
    /// comes of it is that the rule begins with a few packets of the one before it.
    fn assign(
        previous: Option<&Ruleset>,
        wanted: &config::Firewall,
        limit: u32,
    ) -> Result<Ids, PlanError> {
        let none = BTreeMap::new();
        let previous = previous.map_or(&none, |previous| &previous.rules);
        let known = || {
            previous
                .iter()
                .filter(|(id, _)| (DEFAULT_ID + 1..limit).contains(*id))
        };
        let known_rules = known().filter_map(|(&id, rule)| match rule {
            Rule::File(position, rule) => Some((*position, (id, rule))),
            _ => None,
        });
        let mut known_rules: BTreeMap<_, _> = known_rules.collect();
        let mut of_rules = vec![None; wanted.rules.len()];
        // First what is certain: a name tells more than the conditions, which two rules may share.
        let nameless = |rule: &config::Rule| config::Rule {
            name: None,
            ..rule.clone()
        };
        claim(&mut of_rules, &wanted.rules, &mut known_rules, |rule| {
            rule.name.clone()
        });
        claim(&mut of_rules, &wanted.rules, &mut known_rules, |rule| {
            Some(rule.clone())
        });
        claim(&mut of_rules, &wanted.rules, &mut known_rules, |rule| {
            Some(nameless(rule))
        });

        let known_files = known().filter_map(|(&id, rule)| match rule {
            Rule::Blocklist(position, path, _) => Some((*position, (id, path))),
            _ => None,
        });
        let mut known_files: BTreeMap<_, _> = known_files.collect();
        let mut of_blocklists = vec![None; wanted.blocklists.len()];
        claim(
            &mut of_blocklists,
            &wanted.blocklists,
            &mut known_files,
            |path| Some(path.clone()),
        );

        let kept: BTreeSet<u32> = of_rules
            .iter()
            .chain(&of_blocklists)
            .copied()
            .flatten()
            .collect();
        let free = |id: &u32| !previous.contains_key(id);
        let freed = |id: &u32| previous.contains_key(id) && !kept.contains(id);
        let every = || DEFAULT_ID + 1..limit;
        let mut fresh = every().filter(free).chain(every().filter(freed));
        let mut complete = |ids: Vec<Option<u32>>| {
            let ids = ids.into_iter().map(|id| id.or_else(|| fresh.next()));
            ids.collect::<Option<Vec<u32>>>()
        };
        let count = wanted.rules.len() + wanted.blocklists.len();
        match (complete(of_rules), complete(of_blocklists)) {
            (Some(of_rules), Some(of_blocklists)) => Ok(Ids {
                of_rules,
                of_blocklists,
            }),
            _ => Err(PlanError::Rules {
                needed: count,
                limit,
            }),
        }
    }

    /// What each id stands for.
    fn rules(&self, wanted: &config::Firewall, contents: &[Arc<[Prefix]>]) -> BTreeMap<u32, Rule> {
        let rules = (0..).zip(&wanted.rules).zip(&self.of_rules);
        let rules = rules.map(|((position, rule), &id)| (id, Rule::File(position, rule.clone())));
        let files = (0..).zip(&wanted.blocklists).zip(contents);
        let files = files.zip(&self.of_blocklists);
        let files = files.map(|(((position, path), prefixes), &id)| {
            let count = u32::try_from(prefixes.len()).unwrap_or(u32::MAX);
            (id, Rule::Blocklist(position, path.clone(), count))
        });
        let default = (DEFAULT_ID, Rule::Default(wanted.default));
        rules.chain(files).chain([default]).collect()
    }
}

/// Gives those of `wanted` that have no id yet that of the first in `known`, which is by position, with
/// the same `key`, and takes that out of it.
fn claim<T, K: Hash + Eq>(
    ids: &mut [Option<u32>],
    wanted: &[T],
    known: &mut BTreeMap<u32, (u32, &T)>,
    key: impl Fn(&T) -> Option<K>,
) {
    let mut by_key: HashMap<K, VecDeque<u32>> = HashMap::new();
    for (&position, (_, rule)) in known.iter() {
        if let Some(key) = key(rule) {
            by_key.entry(key).or_default().push_back(position);
        }
    }
    for (id, rule) in ids.iter_mut().zip(wanted).filter(|(id, _)| id.is_none()) {
        let position = key(rule).and_then(|key| by_key.get_mut(&key)?.pop_front());
        *id = position
            .and_then(|position| known.remove(&position))
            .map(|(id, _)| id);
    }
}
