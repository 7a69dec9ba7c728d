//! The targets, their ways, and which of them an event concerns.
//!
//! Owns the indices by which a change finds the few targets that it may concern among ten thousands,
//! and the two queues that follow: whose route to ask for, whose resolution to compute. Asks nothing
//! and decides nothing about a target by itself. Nothing here takes longer than listing all targets,
//! and what is done to each of many is done in steps.

use std::collections::{btree_set, BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::ops::Bound;
use std::vec;

use super::facts::{Concerned, NextHop};
use super::reach::{Matched, Path, Target};

/// Names a target for as long as it is tracked; never given out twice.
pub(super) type Id = u64;

/// Something that may concern targets.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Cause {
    /// A change of the facts about a next hop.
    Hop(NextHop),
    /// A change of the facts about a link, and whether the ways over it are still the same.
    Link { ifindex: u32, reroutes: bool },
    /// A link of this name came, went or changed.
    Name(String),
    /// A link came up that no way has led over yet: what had none may have one now.
    AnotherLink,
    /// Routes.
    Routes(Concerned),
}

#[derive(Debug)]
pub(super) struct Tracked {
    pub target: Target,
    /// `None`: not looked up yet.
    pub path: Option<Result<Path, String>>,
    /// The route that decides, if that is known.
    matched: Option<Matched>,
    /// The last round of [`Targets::track`] that wanted it.
    round: u64,
}

/// The remaining work of a [`Targets::track`].
#[derive(Debug)]
struct Incoming {
    wanted: btree_set::IntoIter<Target>,
    /// Where the walk that takes out the others goes on.
    leaving: Id,
}

/// A cause whose targets are being put into the queues.
#[derive(Debug)]
struct Spreading {
    cause: Cause,
    /// Those that are left.
    targets: vec::IntoIter<Id>,
}

/// Targets that wait for something, each once. They come in turn, so that one that comes back often
/// holds up none that waits by itself.
#[derive(Debug, Default)]
struct Queue {
    waiting: BTreeSet<Id>,
    last: Id,
    /// All targets from this one on wait as well.
    everything_from: Option<Id>,
}

/// See the file's head.
#[derive(Debug, Default)]
pub(super) struct Targets {
    tracked: BTreeMap<Id, Tracked>,
    ids: BTreeMap<Target, Id>,
    last_id: Id,
    round: u64,
    incoming: Option<Incoming>,
    by_address: BTreeSet<(IpAddr, Id)>,
    /// By the interface that the way leads over.
    by_link: BTreeSet<(u32, Id)>,
    /// By the next hop whose MAC address is needed.
    by_hop: BTreeSet<(NextHop, Id)>,
    /// By the interface's name in the target.
    by_name: BTreeMap<String, BTreeSet<Id>>,
    /// Those that have been looked up and have no way.
    wayless: BTreeSet<Id>,
    /// Links that a way has led over.
    used_links: BTreeSet<u32>,
    causes: BTreeSet<Cause>,
    spreading: Option<Spreading>,
    to_ask: Queue,
    to_resolve: Queue,
    /// Where [`Targets::refresh`] goes on.
    refreshed: Id,
    /// Next hops that a target came to or left.
    hops: Vec<NextHop>,
    gone: Vec<Target>,
}

impl Queue {
    fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.everything_from.is_none()
    }

    fn pop(&mut self, all: &BTreeMap<Id, Tracked>) -> Option<Id> {
        let after = (Bound::Excluded(self.last), Bound::Unbounded);
        let next = self.waiting.range(after).next().copied();
        if let Some(id) = next.or_else(|| self.waiting.first().copied()) {
            self.waiting.remove(&id);
            self.last = id;
            return Some(id);
        }
        let from = self.everything_from.take()?;
        let (&id, _) = all.range(from..).next()?;
        self.everything_from = Some(id + 1);
        Some(id)
    }
}

impl Targets {
    /// Replaces the set of targets; [`Self::step`] does it.
    pub fn track(&mut self, wanted: BTreeSet<Target>) {
        self.round += 1;
        self.incoming = Some(Incoming {
            wanted: wanted.into_iter(),
            leaving: 0,
        });
    }

    /// Goes on with the last [`Self::track`] over at most `most` targets. True when nothing is left of it.
    pub fn step(&mut self, most: usize) -> bool {
        let Some(mut incoming) = self.incoming.take() else {
            return true;
        };
        let mut left = most;
        while left > 0 {
            let Some(target) = incoming.wanted.next() else {
                break;
            };
            left -= 1;
            self.add(target);
        }
        if left > 0 {
            let former: Vec<(Id, bool)> = self
                .tracked
                .range(incoming.leaving..)
                .take(left)
                .map(|(&id, tracked)| (id, tracked.round == self.round))
                .collect();
            for &(id, wanted) in &former {
                incoming.leaving = id + 1;
                if !wanted {
                    self.remove(id);
                }
            }
            if former.len() < left {
                return true;
            }
        }
        self.incoming = Some(incoming);
        false
    }

    fn add(&mut self, target: Target) {
        if let Some(known) = self
            .ids
            .get(&target)
            .and_then(|id| self.tracked.get_mut(id))
        {
            known.round = self.round;
            return;
        }
        self.last_id += 1;
        let id = self.last_id;
        self.ids.insert(target.clone(), id);
        self.by_address.insert((target.address, id));
        if let Some(name) = &target.interface {
            self.by_name.entry(name.clone()).or_default().insert(id);
        }
        self.to_ask.waiting.insert(id);
        self.to_resolve.waiting.insert(id);
        let tracked = Tracked {
            target,
            path: None,
            matched: None,
            round: self.round,
        };
        self.tracked.insert(id, tracked);
    }

    fn remove(&mut self, id: Id) {
        self.set_path(id, None);
        let Some(Tracked { target, .. }) = self.tracked.remove(&id) else {
            return;
        };
        self.ids.remove(&target);
        self.by_address.remove(&(target.address, id));
        if let Some(name) = &target.interface {
            if let Some(ids) = self.by_name.get_mut(name) {
                ids.remove(&id);
                if ids.is_empty() {
                    self.by_name.remove(name);
                }
            }
        }
        self.to_ask.waiting.remove(&id);
        self.to_resolve.waiting.remove(&id);
        self.gone.push(target);
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.tracked.len()
    }

    pub fn get(&self, id: Id) -> Option<&Tracked> {
        self.tracked.get(&id)
    }

    pub fn find(&self, target: &Target) -> Option<&Tracked> {
        self.tracked.get(self.ids.get(target)?)
    }

    /// Whether a target needs this next hop's MAC address.
    pub fn uses(&self, hop: NextHop) -> bool {
        self.by_hop
            .range((hop, 0)..=(hop, Id::MAX))
            .next()
            .is_some()
    }

    /// Next hops that a target came to or left since the last call: ask [`Self::uses`].
    pub fn take_hops(&mut self) -> Vec<NextHop> {
        std::mem::take(&mut self.hops)
    }

    /// Targets taken out since the last call.
    pub fn take_gone(&mut self) -> Vec<Target> {
        std::mem::take(&mut self.gone)
    }

    /// Sets the way of a target. The route that decided it is not known then.
    pub fn set_path(&mut self, id: Id, path: Option<Result<Path, String>>) {
        if let Some(tracked) = self.tracked.get_mut(&id) {
            tracked.matched = None;
            self.confirm_path(id, path);
        }
    }

    /// Sets the way, and leaves the route that decides it as it is known.
    pub fn confirm_path(&mut self, id: Id, path: Option<Result<Path, String>>) {
        let Some(tracked) = self.tracked.get_mut(&id) else {
            return;
        };
        if tracked.path == path {
            return;
        }
        let target = &tracked.target;
        let hop = |path: &Path| target.mac.is_none().then(|| path.hop(target));
        if let Some(Ok(former)) = &tracked.path {
            self.by_link.remove(&(former.ifindex, id));
            if let Some(hop) = hop(former) {
                self.by_hop.remove(&(hop, id));
                self.hops.push(hop);
            }
        }
        match &path {
            Some(Ok(way)) => {
                self.by_link.insert((way.ifindex, id));
                self.used_links.insert(way.ifindex);
                if let Some(hop) = hop(way) {
                    self.by_hop.insert((hop, id));
                    self.hops.push(hop);
                }
                self.wayless.remove(&id);
            }
            Some(Err(_)) => {
                self.wayless.insert(id);
            }
            None => {
                self.wayless.remove(&id);
            }
        }
        tracked.path = path;
        self.to_resolve.waiting.insert(id);
    }

    /// Sets the route that decides over a target, once that is known.
    pub fn set_matched(&mut self, id: Id, matched: Matched) {
        if let Some(tracked) = self.tracked.get_mut(&id) {
            tracked.matched = Some(matched);
        }
    }

    /// Something has happened; [`Self::spread`] finds the targets that it concerns. The same again before that costs
    /// nothing more.
    pub fn happened(&mut self, cause: Cause) {
        let concerns_any = match &cause {
            // Of a million routes that a routing daemon loads, few lead to a backend.
            Cause::Routes(Concerned::Prefix { prefix, .. }) => {
                let addresses = (prefix.address(), 0)..=(prefix.last(), Id::MAX);
                self.by_address.range(addresses).next().is_some()
            }
            _ => true,
        };
        if concerns_any {
            self.causes.insert(cause);
        }
    }

    /// A link has come up: routes over it hold again, not all of them with an event (IPv4 lets the
    /// next hops of a multipath route rise in silence).
    pub fn link_came_up(&mut self, ifindex: u32) {
        self.happened(if self.used_links.contains(&ifindex) {
            Cause::Routes(Concerned::All)
        } else {
            Cause::AnotherLink
        });
    }

    /// Puts the targets that causes concern into the queues, at most `most` of them. True when no cause is
    /// left.
    pub fn spread(&mut self, most: usize) -> bool {
        let mut left = most;
        while left > 0 {
            let Some(mut spreading) = self.spreading.take().or_else(|| self.next_cause()) else {
                return true;
            };
            for id in spreading.targets.by_ref().take(left) {
                left -= 1;
                self.concern(&spreading.cause, id);
            }
            if spreading.targets.len() > 0 {
                self.spreading = Some(spreading);
            }
        }
        self.spreading.is_none() && self.causes.is_empty()
    }

    /// The next cause that may concern any, with those.
    fn next_cause(&mut self) -> Option<Spreading> {
        while let Some(cause) = self.causes.pop_first() {
            let targets: Vec<Id> = match &cause {
                Cause::Hop(hop) => {
                    let ids = self.by_hop.range((*hop, 0)..=(*hop, Id::MAX));
                    ids.map(|&(_, id)| id).collect()
                }
                Cause::Link { ifindex, .. } => {
                    let ids = self.by_link.range((*ifindex, 0)..=(*ifindex, Id::MAX));
                    ids.map(|&(_, id)| id).collect()
                }
                Cause::Name(name) => self
                    .by_name
                    .get(name)
                    .into_iter()
                    .flatten()
                    .copied()
                    .collect(),
                Cause::AnotherLink => self.wayless.iter().copied().collect(),
                Cause::Routes(Concerned::Prefix { prefix, .. }) => {
                    let addresses = (prefix.address(), 0)..=(prefix.last(), Id::MAX);
                    let ids = self.by_address.range(addresses);
                    ids.map(|&(_, id)| id).collect()
                }
                Cause::Routes(Concerned::All) => {
                    self.to_ask.everything_from = Some(0);
                    Vec::new()
                }
            };
            if !targets.is_empty() {
                let targets = targets.into_iter();
                return Some(Spreading { cause, targets });
            }
        }
        None
    }

    /// Puts a target that a cause may concern into the queues.
    fn concern(&mut self, cause: &Cause, id: Id) {
        let Some(tracked) = self.tracked.get(&id) else {
            // It has gone since it was found.
            return;
        };
        let (ask, resolve) = match cause {
            Cause::Hop(_) => (false, true),
            Cause::Link { reroutes, .. } => (*reroutes, true),
            Cause::Name(_) => (true, true),
            Cause::AnotherLink | Cause::Routes(Concerned::All) => (true, false),
            Cause::Routes(Concerned::Prefix { table, prefix }) => {
                let decided = tracked.matched;
                let holds = decided.is_some_and(|matched| matched.withstands(*table, prefix));
                (!holds, false)
            }
        };
        if ask {
            self.to_ask.waiting.insert(id);
        }
        if resolve {
            self.to_resolve.waiting.insert(id);
        }
    }

    /// Asks and resolves all anew.
    pub fn start_over(&mut self) {
        self.causes.clear();
        self.spreading = None;
        self.to_ask.everything_from = Some(0);
        self.to_resolve.everything_from = Some(0);
    }

    /// Puts a target into the queue of those to ask for.
    pub fn ask_again(&mut self, id: Id) {
        if self.tracked.contains_key(&id) {
            self.to_ask.waiting.insert(id);
        }
    }

    /// Whether any waits to be asked for.
    pub fn has_to_ask(&self) -> bool {
        !self.to_ask.is_empty()
    }

    /// The next one to ask for.
    pub fn next_to_ask(&mut self) -> Option<Id> {
        self.to_ask.pop(&self.tracked)
    }

    /// Whether any waits to be resolved.
    pub fn has_to_resolve(&self) -> bool {
        !self.to_resolve.is_empty()
    }

    /// The next one to resolve.
    pub fn next_to_resolve(&mut self) -> Option<Id> {
        self.to_resolve.pop(&self.tracked)
    }

    /// The next `count` of an endless round through all.
    pub fn refresh(&mut self, count: usize) -> Vec<Id> {
        let after = (Bound::Excluded(self.refreshed), Bound::Unbounded);
        let rest = self.tracked.range(after).chain(&self.tracked);
        let ids: Vec<Id> = rest
            .take(count.min(self.tracked.len()))
            .map(|(&id, _)| id)
            .collect();
        self.refreshed = ids.last().copied().unwrap_or_default();
        ids
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(last: u8) -> Target {
        Target {
            address: [10, 0, 0, last].into(),
            interface: None,
            mac: None,
        }
    }

    fn drain(targets: &mut Targets) -> (Vec<Id>, Vec<Id>) {
        let asked = std::iter::from_fn(|| targets.next_to_ask()).collect();
        let resolved = std::iter::from_fn(|| targets.next_to_resolve()).collect();
        (asked, resolved)
    }

    #[test]
    fn what_a_cause_concerns_is_found_in_steps() {
        let mut targets = Targets::default();
        targets.track((1..=10).map(target).collect());
        assert!(targets.step(100));
        let (all, _) = drain(&mut targets);
        let path = Path {
            ifindex: 1,
            gateway: None,
        };
        for &id in &all {
            targets.set_path(id, Some(Ok(path)));
        }
        drain(&mut targets);
        let ways = Cause::Link {
            ifindex: 1,
            reroutes: true,
        };
        targets.happened(ways.clone());
        assert!(!targets.spread(4));
        assert_eq!(drain(&mut targets), (all[..4].to_vec(), all[..4].to_vec()));
        // One that goes before its turn, and one more to whom nothing has happened.
        targets.track((1..=11).filter(|last| *last != 6).map(target).collect());
        assert!(targets.step(100));
        let (added, _) = drain(&mut targets);
        assert_eq!(added.len(), 1);
        // The same again: those before have their turn once more.
        targets.happened(ways);
        assert!(!targets.spread(6));
        let rest: Vec<Id> = all[4..]
            .iter()
            .copied()
            .filter(|id| *id != all[5])
            .collect();
        assert_eq!(drain(&mut targets), (rest.clone(), rest.clone()));
        assert!(targets.spread(9));
        let all = [&all[..4], &rest].concat();
        assert_eq!(drain(&mut targets), (all.clone(), all));
    }
}
