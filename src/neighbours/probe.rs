//! Which neighbour to ask, when, and how long an unconfirmed MAC address stays in force.
//!
//! Owns a small state machine for each next hop. Pure: it is given the tables and the time, and
//! gives back what to do; `mod.rs` does it.
//!
//! The kernel confirms a neighbour only while its own stack sends to it. XDP goes past the stack, so
//! a backend that changes its MAC without announcing it would be missed for good. Hence each known
//! next hop is asked for confirmation by unicast, which disturbs nobody else; one that does not
//! answer is forgotten by the kernel on our word and asked for by broadcast (ARP) or multicast (ND).
//! Forgetting first matters: within a second of a change the kernel takes no new MAC address for an
//! entry that it holds valid (`locktime`).

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::facts::{Entry, Facts, NextHop, State};
use crate::config::MacAddress;

/// How often a known next hop is confirmed. Half a second to the question and a quarter to give up on
/// the answer keep a silent change of MAC address below one second.
const REVALIDATE: Duration = Duration::from_millis(500);

/// How long a unicast question may stay unanswered before everybody is asked. A little less than the
/// tick of 250 ms, so that the tick after the question decides.
const CONFIRM_WITHIN: Duration = Duration::from_millis(200);

/// How often an unknown next hop is asked for. The kernel repeats by itself each second, three times,
/// then gives up; this keeps it going.
const SOLICIT: Duration = Duration::from_secs(1);

/// How long the last known MAC address stays in force while nobody confirms it. Long enough for a
/// lost question and its repetition a second later, so that one lost frame takes no backend down;
/// short enough that a dead one is out before most health checks notice.
pub(super) const GRACE: Duration = Duration::from_secs(2);

/// Ticks come a little early as well as late; what is due within this is due.
const SLACK: Duration = Duration::from_millis(25);

/// Revalidation is spread over this many points of its period, so that a thousand next hops learnt at
/// once are not asked at once for ever after.
const PHASES: u32 = 4;

/// Something to tell the kernel about a neighbour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    /// Ask for it as if a packet were waiting: by broadcast or multicast if it is not known.
    Solicit(NextHop),
    /// Ask it, at the MAC address known, whether it is still there.
    Confirm(NextHop),
    /// Forget the MAC address known.
    Forget(NextHop),
}

#[derive(Debug)]
struct Watch {
    /// What frames are sent to now.
    in_force: Option<MacAddress>,
    /// Since when the kernel has no valid entry.
    lost: Option<Instant>,
    /// When to ask next.
    next: Instant,
    /// When the confirmation was asked for that is still outstanding.
    confirming: Option<Instant>,
    /// Start asking anew: the kernel's own repetitions may be waiting for something that has come.
    restart: bool,
    /// Why the kernel would not ask, an errno.
    refusal: Option<i32>,
    /// Where in the period of revalidation this one is.
    phase: Duration,
}

/// The next hops in use.
#[derive(Debug, Default)]
pub(super) struct Probes {
    watches: BTreeMap<NextHop, Watch>,
    /// How many were ever added, to deal out the phases.
    added: u32,
}

impl Probes {
    /// Replaces the set of next hops. Those that stay keep what is known of them.
    pub fn watch(&mut self, hops: impl IntoIterator<Item = NextHop>, facts: &Facts, now: Instant) {
        let hops: BTreeSet<NextHop> = hops.into_iter().collect();
        self.watches.retain(|hop, _| hops.contains(hop));
        for hop in hops {
            if self.watches.contains_key(&hop) {
                continue;
            }
            self.added = self.added.wrapping_add(1);
            let phase = REVALIDATE * (self.added % PHASES + 1) / PHASES;
            // What the kernel has confirmed lately can wait for its turn; all else is asked at once.
            let fresh = matches!(
                facts.neighbours.get(&hop),
                Some(Entry {
                    state: State::Reachable,
                    ..
                })
            );
            let watch = Watch {
                in_force: None,
                lost: None,
                next: if fresh { now + phase } else { now },
                confirming: None,
                restart: false,
                refusal: None,
                phase,
            };
            self.watches.insert(hop, watch);
            self.observe(&hop, facts, now);
        }
    }

    /// Whether this next hop is in use.
    pub fn watches(&self, hop: &NextHop) -> bool {
        self.watches.contains_key(hop)
    }

    /// The MAC address that frames to this next hop go to.
    pub fn in_force(&self, hop: &NextHop) -> Option<MacAddress> {
        self.watches.get(hop)?.in_force
    }

    /// Why the kernel would not ask for this next hop: an errno.
    pub fn refusal(&self, hop: &NextHop) -> Option<i32> {
        self.watches.get(hop)?.refusal
    }

    /// Takes over what the tables say of one next hop now. True when the MAC address in force changed.
    pub fn observe(&mut self, hop: &NextHop, facts: &Facts, now: Instant) -> bool {
        match self.watches.get_mut(hop) {
            Some(watch) => watch.observe(facts.neighbours.get(hop), now),
            None => false,
        }
    }

    /// The same for all: time alone changes something as well. True when anything changed.
    pub fn observe_all(&mut self, facts: &Facts, now: Instant) -> bool {
        let mut changed = false;
        for (hop, watch) in &mut self.watches {
            changed |= watch.observe(facts.neighbours.get(hop), now);
        }
        changed
    }

    /// Asks anew for what is unknown on this interface: it has come up, or got an address to ask from.
    pub fn restart(&mut self, ifindex: u32) {
        for (hop, watch) in &mut self.watches {
            watch.restart |= hop.ifindex == ifindex;
        }
    }

    /// Notes how the kernel took the request to ask for a next hop.
    pub fn note_refusal(&mut self, hop: &NextHop, refusal: Option<i32>) {
        if let Some(watch) = self.watches.get_mut(hop) {
            watch.refusal = refusal;
        }
    }

    /// What to do now. To be called after the tables have taken in what the kernel said so far.
    pub fn advance(&mut self, facts: &Facts, now: Instant) -> Vec<Action> {
        let mut actions = Vec::new();
        for (&hop, watch) in &mut self.watches {
            match facts.links.get(&hop.ifindex) {
                Some(link) if link.up && link.ethernet => {
                    watch.advance(hop, facts.neighbours.get(&hop), now, &mut actions);
                }
                // Nobody can answer; the kernel would only report errors.
                _ => watch.confirming = None,
            }
        }
        actions
    }
}

impl Watch {
    fn observe(&mut self, entry: Option<&Entry>, now: Instant) -> bool {
        match entry.and_then(Entry::usable_mac) {
            Some(mac) => {
                if self.lost.take().is_some() {
                    self.next = now + self.phase;
                }
                self.refusal = None;
                self.in_force.replace(mac) != Some(mac)
            }
            None => {
                let lost = *self.lost.get_or_insert(now);
                let over = now.saturating_duration_since(lost) >= GRACE;
                over && self.in_force.take().is_some()
            }
        }
    }

    fn advance(
        &mut self,
        hop: NextHop,
        entry: Option<&Entry>,
        now: Instant,
        out: &mut Vec<Action>,
    ) {
        let restart = std::mem::take(&mut self.restart);
        if entry.is_some_and(Entry::settled) {
            self.confirming = None;
            return;
        }
        let due = now + SLACK >= self.next;
        if entry.and_then(Entry::usable_mac).is_none() {
            self.confirming = None;
            if restart {
                out.push(Action::Forget(hop));
            }
            if restart || due {
                out.push(Action::Solicit(hop));
                self.next = now + SOLICIT;
            }
            return;
        }
        if let Some(asked) = self.confirming {
            let answered = entry.is_some_and(|entry| entry.state != State::Probe);
            if !answered {
                if now.saturating_duration_since(asked) >= CONFIRM_WITHIN {
                    self.confirming = None;
                    self.next = now + SOLICIT;
                    out.extend([Action::Forget(hop), Action::Solicit(hop)]);
                }
                return;
            }
            self.confirming = None;
        }
        if due {
            out.push(Action::Confirm(hop));
            self.confirming = Some(now);
            // Keeps to its phase, unless it is so late that it would have to catch up.
            self.next = (self.next + REVALIDATE).max(now + REVALIDATE / 2);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::facts::{Event, LinkNews};
    use super::*;

    const MAC: MacAddress = MacAddress([2, 0, 0, 0, 0, 1]);
    const TICK: Duration = Duration::from_millis(250);

    fn hop(n: u8) -> NextHop {
        NextHop {
            ifindex: 1,
            address: [10, 0, 0, n].into(),
        }
    }

    fn facts() -> Facts {
        let mut facts = Facts::default();
        set_link(&mut facts, true);
        facts
    }

    fn set_link(facts: &mut Facts, lower_up: bool) {
        facts.apply(Event::Link(LinkNews {
            index: 1,
            ethernet: true,
            enabled: true,
            lower_up,
            name: Some("eth0".into()),
            mac: None,
            mtu: None,
        }));
    }

    fn set(facts: &mut Facts, hop: NextHop, state: State) {
        let mac = (!matches!(state, State::Failed | State::Incomplete)).then_some(MAC);
        facts.apply(Event::Neighbour(
            hop,
            Entry {
                state,
                mac,
                owned: false,
            },
        ));
    }

    #[test]
    fn an_unknown_next_hop_is_asked_for_at_once_and_each_second() {
        let (facts, mut probes, start) = (facts(), Probes::default(), Instant::now());
        probes.watch([hop(2)], &facts, start);
        let asked: Vec<u32> = (0..12)
            .filter(|&tick| {
                let actions = probes.advance(&facts, start + TICK * tick);
                assert!(actions.iter().all(|a| *a == Action::Solicit(hop(2))));
                !actions.is_empty()
            })
            .collect();
        assert_eq!(asked, [0, 4, 8]);
    }

    #[test]
    fn a_stale_next_hop_is_in_force_and_confirmed_at_once() {
        let (mut facts, mut probes, start) = (facts(), Probes::default(), Instant::now());
        set(&mut facts, hop(2), State::Stale);
        probes.watch([hop(2)], &facts, start);
        assert_eq!(probes.in_force(&hop(2)), Some(MAC));
        assert_eq!(probes.advance(&facts, start), [Action::Confirm(hop(2))]);
    }

    #[test]
    fn an_answered_confirmation_asks_nobody_else() {
        let (mut facts, mut probes, start) = (facts(), Probes::default(), Instant::now());
        set(&mut facts, hop(2), State::Stale);
        probes.watch([hop(2)], &facts, start);
        for tick in 0..20 {
            for action in probes.advance(&facts, start + TICK * tick) {
                assert_eq!(action, Action::Confirm(hop(2)));
                assert_eq!(tick % 2, 0, "each half second");
                set(&mut facts, hop(2), State::Probe);
                set(&mut facts, hop(2), State::Reachable);
            }
        }
    }

    #[test]
    fn an_unanswered_confirmation_asks_everybody_by_the_next_tick() {
        let (mut facts, mut probes, start) = (facts(), Probes::default(), Instant::now());
        set(&mut facts, hop(2), State::Stale);
        probes.watch([hop(2)], &facts, start);
        probes.advance(&facts, start);
        set(&mut facts, hop(2), State::Probe);
        assert_eq!(
            probes.advance(&facts, start + Duration::from_millis(100)),
            []
        );
        assert_eq!(
            probes.advance(&facts, start + TICK),
            [Action::Forget(hop(2)), Action::Solicit(hop(2))]
        );
    }

    #[test]
    fn the_mac_stays_in_force_for_the_grace_and_no_longer() {
        let (mut facts, mut probes, start) = (facts(), Probes::default(), Instant::now());
        set(&mut facts, hop(2), State::Reachable);
        probes.watch([hop(2)], &facts, start);
        set(&mut facts, hop(2), State::Failed);
        assert!(!probes.observe(&hop(2), &facts, start));
        assert!(!probes.observe_all(&facts, start + GRACE - TICK));
        assert_eq!(probes.in_force(&hop(2)), Some(MAC));
        assert!(probes.observe_all(&facts, start + GRACE));
        assert_eq!(probes.in_force(&hop(2)), None);
        set(&mut facts, hop(2), State::Reachable);
        assert!(probes.observe_all(&facts, start + GRACE));
        assert_eq!(probes.in_force(&hop(2)), Some(MAC));
    }

    #[test]
    fn a_new_mac_takes_effect_as_soon_as_it_is_heard() {
        let (mut facts, mut probes, start) = (facts(), Probes::default(), Instant::now());
        set(&mut facts, hop(2), State::Reachable);
        probes.watch([hop(2)], &facts, start);
        let moved = MacAddress([2, 0, 0, 0, 0, 2]);
        facts.apply(Event::Neighbour(
            hop(2),
            Entry {
                state: State::Stale,
                mac: Some(moved),
                owned: false,
            },
        ));
        assert!(probes.observe(&hop(2), &facts, start));
        assert_eq!(probes.in_force(&hop(2)), Some(moved));
    }

    #[test]
    fn what_others_keep_is_used_and_left_alone() {
        let (mut facts, mut probes, start) = (facts(), Probes::default(), Instant::now());
        set(&mut facts, hop(2), State::Permanent);
        facts.apply(Event::Neighbour(
            hop(3),
            Entry {
                state: State::Stale,
                mac: Some(MAC),
                owned: true,
            },
        ));
        probes.watch([hop(2), hop(3)], &facts, start);
        assert_eq!(probes.in_force(&hop(2)), Some(MAC));
        assert_eq!(probes.in_force(&hop(3)), Some(MAC));
        for tick in 0..12 {
            assert_eq!(probes.advance(&facts, start + TICK * tick), []);
        }
    }

    #[test]
    fn nothing_is_asked_over_a_dead_link() {
        let (mut facts, mut probes, start) = (facts(), Probes::default(), Instant::now());
        set_link(&mut facts, false);
        probes.watch([hop(2)], &facts, start);
        assert_eq!(probes.advance(&facts, start), []);
        set_link(&mut facts, true);
        probes.restart(1);
        assert_eq!(
            probes.advance(&facts, start + TICK),
            [Action::Forget(hop(2)), Action::Solicit(hop(2))]
        );
    }

    #[test]
    fn a_dropped_next_hop_is_not_asked_again() {
        let (facts, mut probes, start) = (facts(), Probes::default(), Instant::now());
        probes.watch([hop(2), hop(3)], &facts, start);
        probes.watch([hop(3)], &facts, start);
        assert!(!probes.watches(&hop(2)));
        assert_eq!(probes.advance(&facts, start), [Action::Solicit(hop(3))]);
    }

    #[test]
    fn many_next_hops_do_not_ask_in_one_tick() {
        let (mut facts, mut probes, start) = (facts(), Probes::default(), Instant::now());
        let hops: Vec<NextHop> = (0..1000u32)
            .map(|n| NextHop {
                ifindex: 1,
                address: (0x0a00_0000 + n).to_be_bytes().into(),
            })
            .collect();
        for &hop in &hops {
            set(&mut facts, hop, State::Reachable);
        }
        probes.watch(hops, &facts, start);
        for tick in 1..20 {
            let actions = probes.advance(&facts, start + TICK * tick);
            assert_eq!(actions.len(), 500, "tick {tick}");
        }
    }
}
