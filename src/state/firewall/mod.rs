//! The firewall as the maps are to hold it: `fw_prefixes`, `fw_levels`, `fw_steps` and `fw_rules`.
//!
//! Owns what these hold, and when there is nothing to compile. The way there from the file is `compiler`'s,
//! which id each rule has is `ids`'.

mod compiler;
mod ids;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use super::PlanError;
use crate::config::blocklist::Contents;
use crate::config::{self, Config, FirewallTables, PortRange};
use crate::prefix::Prefix;

pub use crate::config::BLOCKLIST_LIMIT;
pub use compiler::compile;

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
    /// The contents of the blocklists when this was compiled, in the order of the file: as long as they
    /// and the rules are the same, there is nothing to compile.
    pub contents: Vec<Arc<[Prefix]>>,
}

/// The verdict on, or the rules for, the sources in a prefix: `struct fw_prefix` of xdp_lb.h.
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
    /// The tables that it fills.
    pub fn tables(&self) -> FirewallTables {
        FirewallTables {
            rules: self.rules.keys().next_back().map_or(0, |id| id + 1),
            levels: self.levels.len() as u32,
            steps: self.steps.len() as u32,
        }
    }

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
