//! Which id each rule and blocklist has: one that it keeps over reloads, since its packets are counted
//! under it.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::hash::Hash;
use std::sync::Arc;

use super::{Rule, Ruleset, DEFAULT_ID};
use crate::config;
use crate::prefix::Prefix;
use crate::state::PlanError;

/// Which id each rule and blocklist has.
pub(super) struct Ids {
    /// By position in the file.
    pub of_rules: Vec<u32>,
    /// Likewise.
    pub of_blocklists: Vec<u32>,
}

impl Ids {
    /// An id that is free in `previous` goes before one that has just become so: packets that are on
    /// their way count for the rule that decides them by its id. Where there is no other it is taken
    /// nevertheless, since a rule cannot be left out until the next plan as a service can, and all that
    /// comes of it is that the rule begins with a few packets of the one before it.
    pub fn assign(
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
        // Names first: a name tells rules apart, while two of them may share their conditions.
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

    /// The rule, blocklist or default of each id.
    pub fn rules(
        &self,
        wanted: &config::Firewall,
        contents: &[Arc<[Prefix]>],
    ) -> BTreeMap<u32, Rule> {
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
