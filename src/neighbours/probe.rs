//! Which neighbour to ask, when, and how long an unconfirmed MAC address stays in force.
//!
//! Owns a small state machine for each next hop, and a timer for each, so that a call costs as much as
//! is due. Pure: it is given the tables and the time, and gives back what to do; `mod.rs` does it.
//!
//! The kernel confirms a neighbour only while its own stack sends to it. XDP goes past the stack, so
//! a backend that changes its MAC without announcing it would be missed for good. Hence each known
//! next hop is asked for confirmation by unicast, which disturbs nobody else; one that does not
//! answer is forgotten by the kernel on our word and asked for by broadcast (ARP) or multicast (ND).
//! Forgetting first matters: within a second of a change the kernel takes no new MAC address for an
//! entry that it holds valid (`locktime`).

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use super::facts::{Entry, Facts, NextHop, State};
use crate::config::MacAddress;

/// How often a known next hop is confirmed. Half a second to the question and a quarter to give up on
/// the answer keep a silent change of MAC address below one second.
const REVALIDATE: Duration = Duration::from_millis(500);

/// How many are confirmed in a second at most. Each costs both ends a frame, and the kernel and us some
/// ten microseconds. With more than a thousand next hops, each is confirmed less often instead: ten
/// thousand every five seconds. Unknown ones are asked for at this rate likewise.
const RATE: u32 = 2000;

/// How far confirmations may run ahead of that for a moment.
const BURST: Duration = Duration::from_millis(100);

/// How long a unicast question may stay unanswered before it is asked by broadcast or multicast.
const CONFIRM_WITHIN: Duration = Duration::from_millis(200);

/// How often an unknown next hop is asked for.
const SOLICIT: Duration = Duration::from_secs(1);

/// The kernel repeats a question by itself each second, three times, and says when it gives up. Until
/// then it takes no notice of being asked again; should its word be lost, it is asked after this.
const KERNEL_TRIES: Duration = Duration::from_secs(4);

/// How long the last known MAC address stays in force while it is not confirmed. Long enough for a
/// lost question and its repetition a second later, so that one lost frame takes no backend down;
/// short enough that a dead one is out before most health checks notice.
pub(super) const GRACE: Duration = Duration::from_secs(2);

/// A question that is due within this time is asked now, so that few wake-ups serve many next hops.
const SLACK: Duration = Duration::from_millis(10);

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

/// The state of one next hop.
#[derive(Debug)]
struct Watch {
    /// The MAC address that frames are sent to now.
    in_force: Option<MacAddress>,
    /// Since when the kernel has no valid entry. `None`: it has one.
    lost: Option<Instant>,
    /// When to ask next.
    next: Instant,
    /// When the confirmation was asked for that is still outstanding.
    confirming: Option<Instant>,
    /// When everybody was last asked.
    solicited: Option<Instant>,
    /// Start asking anew: the kernel's own repetitions may be waiting for something that has come.
    restart: bool,
    /// Why the kernel would not ask, an errno.
    refusal: Option<i32>,
    /// Where in the period of confirmations this one is, 0..1.
    phase: f64,
    /// When it is to be looked at again; in the timers of this kind under this time.
    wake: Option<(Kind, Instant)>,
}

/// The purpose of a timer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// A known next hop is to be confirmed: not more than [`RATE`] in a second.
    Routine,
    /// All else. The others never hold it up.
    Urgent,
}

/// Next hops by the time at which they are to be looked at.
type Timers = BTreeSet<(Instant, NextHop)>;

/// The next hops in use.
#[derive(Debug, Default)]
pub(super) struct Probes {
    watches: BTreeMap<NextHop, Watch>,
    routine: Timers,
    urgent: Timers,
    /// Interfaces over which unresolved next hops are to be asked for again, with the address from which on.
    restarts: BTreeMap<u32, IpAddr>,
    /// When the next confirmation would be due if they came evenly at [`RATE`] (GCRA, ITU-T I.371).
    even: Option<Instant>,
    /// How many have no valid entry.
    lost: u32,
    /// How many were ever added, to spread them over the period.
    added: u32,
}

impl Probes {
    /// Adds a next hop, unless it is there.
    pub fn watch(&mut self, hop: NextHop, facts: &Facts, now: Instant) {
        if self.watches.contains_key(&hop) {
            return;
        }
        self.added = self.added.wrapping_add(1);
        let entry = facts.neighbours.get(&hop);
        let in_force = entry.and_then(Entry::usable_mac);
        let phase = spread(self.added);
        // A next hop that the kernel has confirmed lately can wait for its turn; others are asked at once.
        let next = if entry.is_some_and(|entry| entry.state == State::Reachable) {
            now + self.period_of_confirmations().mul_f64(phase)
        } else {
            now
        };
        self.lost += u32::from(in_force.is_none());
        let watch = Watch {
            in_force,
            lost: in_force.is_none().then_some(now),
            next,
            confirming: None,
            solicited: None,
            restart: false,
            refusal: None,
            phase,
            wake: None,
        };
        self.watches.insert(hop, watch);
        self.set_timer(hop, facts);
    }

    /// Takes a next hop out.
    pub fn unwatch(&mut self, hop: NextHop) {
        if let Some(watch) = self.watches.remove(&hop) {
            self.lost -= u32::from(watch.lost.is_some());
            if let Some((kind, wake)) = watch.wake {
                self.timers(kind).remove(&(wake, hop));
            }
        }
    }

    /// Whether this next hop is in use.
    pub fn watches(&self, hop: NextHop) -> bool {
        self.watches.contains_key(&hop)
    }

    /// All that are in use.
    pub fn hops(&self) -> impl Iterator<Item = NextHop> + '_ {
        self.watches.keys().copied()
    }

    /// The MAC address that frames to this next hop go to.
    pub fn in_force(&self, hop: &NextHop) -> Option<MacAddress> {
        self.watches.get(hop)?.in_force
    }

    /// Why the kernel would not ask for this next hop: an errno.
    pub fn refusal(&self, hop: &NextHop) -> Option<i32> {
        self.watches.get(hop)?.refusal
    }

    /// Takes over what the tables say of one next hop now. True when what it resolves to may have
    /// changed, or the reason why to nothing.
    pub fn observe(&mut self, hop: NextHop, facts: &Facts, now: Instant) -> bool {
        let confirm_every = self.period_of_confirmations();
        let Some(watch) = self.watches.get_mut(&hop) else {
            return false;
        };
        let was_lost = watch.lost.is_some();
        let changed = watch.observe(facts.neighbours.get(&hop), now, confirm_every);
        match (was_lost, watch.lost.is_some()) {
            (true, false) => self.lost -= 1,
            (false, true) => self.lost += 1,
            _ => {}
        }
        self.set_timer(hop, facts);
        changed
    }

    /// Asks again for the unresolved next hops on this interface: it has come up, or got an address to ask
    /// from. [`Self::step`] does it.
    pub fn restart(&mut self, ifindex: u32) {
        let lowest = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        self.restarts.insert(ifindex, lowest);
    }

    /// Goes on with restarts, over at most `most` next hops. True when nothing is left of them.
    pub fn step(&mut self, most: usize, facts: &Facts, now: Instant) -> bool {
        let mut left = most;
        while left > 0 {
            let Some((ifindex, address)) = self.restarts.pop_first() else {
                return true;
            };
            let from = NextHop { ifindex, address };
            let mut hops: Vec<NextHop> = self
                .watches
                .range(from..)
                .map(|(&hop, _)| hop)
                .take_while(|hop| hop.ifindex == ifindex)
                .take(left + 1)
                .collect();
            if hops.len() > left {
                self.restarts
                    .extend(hops.pop().map(|next| (ifindex, next.address)));
            }
            left -= hops.len().min(left);
            for hop in hops {
                self.ask_again(hop, facts, now);
            }
        }
        self.restarts.is_empty()
    }

    fn ask_again(&mut self, hop: NextHop, facts: &Facts, now: Instant) {
        let Some(watch) = self.watches.get_mut(&hop) else {
            return;
        };
        let is_unknown = watch.lost.is_some();
        if is_unknown {
            watch.restart = true;
            watch.next = now;
        }
        // A link that came up can be asked over: timers stand still without one.
        if is_unknown || watch.wake.is_none() {
            self.set_timer(hop, facts);
        }
    }

    /// Notes how the kernel took the request to ask for a next hop. True when that is news.
    pub fn note_refusal(&mut self, hop: &NextHop, refusal: Option<i32>) -> bool {
        match self.watches.get_mut(hop) {
            Some(watch) => std::mem::replace(&mut watch.refusal, refusal) != refusal,
            None => false,
        }
    }

    /// Notes that the kernel has asked a next hop for confirmation: its time to answer begins.
    pub fn note_confirming(&mut self, hop: NextHop, facts: &Facts, now: Instant) {
        if let Some(watch) = self.watches.get_mut(&hop) {
            if watch.confirming.is_some() {
                watch.confirming = Some(now);
                self.set_timer(hop, facts);
            }
        }
    }

    /// When [`Self::advance`] next has something to do.
    pub fn next(&self) -> Option<Instant> {
        let urgent = self.urgent.first().map(|&(wake, _)| wake);
        let routine = self.routine.first().map(|&(wake, _)| match self.even {
            Some(even) => wake.max(even - BURST),
            None => wake,
        });
        [urgent, routine].into_iter().flatten().min()
    }

    /// The actions that are due now, for at most `most` next hops: those that wait longest. To be called after the
    /// tables have taken in what the kernel said so far. Adds the next hops whose MAC address is no
    /// longer in force to `lapsed`.
    pub fn advance(
        &mut self,
        facts: &Facts,
        now: Instant,
        most: usize,
        lapsed: &mut Vec<NextHop>,
    ) -> Vec<Action> {
        let mut actions = Vec::new();
        for _ in 0..most {
            let due = |timers: &Timers| {
                let (wake, hop) = timers.first()?;
                (*wake <= now + SLACK).then_some(*hop)
            };
            let Some(hop) = due(&self.urgent).or_else(|| {
                let room = self.even.is_none_or(|even| even <= now + BURST);
                room.then(|| due(&self.routine)).flatten()
            }) else {
                break;
            };
            let (confirm_every, solicit_every) = (
                self.period_of_confirmations(),
                self.period_of_solicitations(),
            );
            let Some(watch) = self.watches.get_mut(&hop) else {
                break;
            };
            let entry = facts.neighbours.get(&hop);
            if watch.lapse(now) {
                lapsed.push(hop);
            }
            if can_ask(facts, hop) {
                watch.advance(hop, entry, now, confirm_every, solicit_every, &mut actions);
            } else {
                // Nobody can answer; the kernel would only report errors.
                watch.confirming = None;
            }
            if actions.last() == Some(&Action::Confirm(hop)) {
                let even = self.even.map_or(now, |even| even.max(now));
                self.even = Some(even + Duration::from_secs(1) / RATE);
            }
            self.set_timer(hop, facts);
        }
        actions
    }

    fn timers(&mut self, kind: Kind) -> &mut Timers {
        match kind {
            Kind::Routine => &mut self.routine,
            Kind::Urgent => &mut self.urgent,
        }
    }

    fn period_of_confirmations(&self) -> Duration {
        let known = self.watches.len() as u32 - self.lost;
        REVALIDATE.max(Duration::from_secs(1) * known / RATE)
    }

    fn period_of_solicitations(&self) -> Duration {
        SOLICIT.max(Duration::from_secs(1) * self.lost / RATE)
    }

    fn set_timer(&mut self, hop: NextHop, facts: &Facts) {
        let Some(watch) = self.watches.get_mut(&hop) else {
            return;
        };
        let wake = watch.wake(can_ask(facts, hop), facts.neighbours.get(&hop));
        if wake == watch.wake {
            return;
        }
        if let Some((kind, former)) = std::mem::replace(&mut watch.wake, wake) {
            self.timers(kind).remove(&(former, hop));
        }
        if let Some((kind, wake)) = wake {
            self.timers(kind).insert((wake, hop));
        }
    }
}

/// Whether frames can leave towards the next hop.
fn can_ask(facts: &Facts, hop: NextHop) -> bool {
    facts
        .links
        .get(&hop.ifindex)
        .is_some_and(|link| link.up && link.ethernet)
}

/// The `n`th of a sequence in 0..1 whose members lie evenly, however many there are (the golden
/// ratio's multiples).
fn spread(n: u32) -> f64 {
    (f64::from(n) * 0.618_033_988_749_895).fract()
}

impl Watch {
    fn observe(&mut self, entry: Option<&Entry>, now: Instant, confirm_every: Duration) -> bool {
        match entry.and_then(Entry::usable_mac) {
            Some(mac) => {
                if self.lost.take().is_some() {
                    self.next = now + confirm_every.mul_f64(self.phase);
                }
                if entry.is_some_and(|entry| entry.state != State::Probe) {
                    self.confirming = None;
                }
                self.solicited = None;
                self.refusal = None;
                self.in_force.replace(mac) != Some(mac)
            }
            None => {
                self.lost.get_or_insert(now);
                self.confirming = None;
                if entry.is_none_or(|entry| entry.state == State::Failed) {
                    // The kernel asks no longer: go on at once, in the rhythm that it had.
                    let asked = self.solicited.map_or(now, |asked| asked + SOLICIT);
                    self.next = self.next.min(asked.max(now));
                }
                self.in_force.is_none()
            }
        }
    }

    /// Lets the MAC address go that nobody has confirmed for too long. True if there was one.
    fn lapse(&mut self, now: Instant) -> bool {
        let over = self.lost.is_some_and(|lost| now + SLACK >= lost + GRACE);
        over && self.in_force.take().is_some()
    }

    /// When there may be something to do, and of what kind.
    fn wake(&self, can_ask: bool, entry: Option<&Entry>) -> Option<(Kind, Instant)> {
        let lapses = self.lost.filter(|_| self.in_force.is_some());
        let lapses = lapses.map(|lost| lost + GRACE);
        if !can_ask || entry.is_some_and(Entry::settled) {
            return lapses.map(|lapses| (Kind::Urgent, lapses));
        }
        if let Some(asked) = self.confirming {
            return Some((Kind::Urgent, asked + CONFIRM_WITHIN));
        }
        if self.lost.is_none() {
            return Some((Kind::Routine, self.next));
        }
        let next = lapses.map_or(self.next, |lapses| lapses.min(self.next));
        Some((Kind::Urgent, next))
    }

    fn advance(
        &mut self,
        hop: NextHop,
        entry: Option<&Entry>,
        now: Instant,
        confirm_every: Duration,
        solicit_every: Duration,
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
                let kernel_asks = entry.is_some_and(|entry| entry.state == State::Incomplete)
                    && self
                        .solicited
                        .is_some_and(|asked| now < asked + KERNEL_TRIES);
                if restart || !kernel_asks {
                    out.push(Action::Solicit(hop));
                    self.solicited = Some(now);
                }
                self.next = now + solicit_every;
            }
            return;
        }
        if let Some(asked) = self.confirming {
            if now + SLACK >= asked + CONFIRM_WITHIN {
                self.confirming = None;
                self.next = now + solicit_every;
                self.solicited = Some(now);
                out.extend([Action::Forget(hop), Action::Solicit(hop)]);
            }
            return;
        }
        if due {
            out.push(Action::Confirm(hop));
            self.confirming = Some(now);
            // Keeps to its place in the period, unless it is so late that it would have to catch up.
            self.next = (self.next + confirm_every).max(now + confirm_every / 2);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::facts::{Event, LinkNews};
    use super::*;

    const MAC: MacAddress = MacAddress([2, 0, 0, 0, 0, 1]);
    const STEP: Duration = Duration::from_millis(50);

    fn hop(n: u8) -> NextHop {
        NextHop {
            ifindex: 1,
            address: [10, 0, 0, n].into(),
        }
    }

    /// The tables, the next hops and a clock.
    struct Bench {
        facts: Facts,
        probes: Probes,
        start: Instant,
        now: Instant,
    }

    impl Bench {
        fn new() -> Bench {
            let now = Instant::now();
            let mut bench = Bench {
                facts: Facts::default(),
                probes: Probes::default(),
                start: now,
                now,
            };
            bench.set_link(true);
            bench
        }

        fn set_link(&mut self, lower_up: bool) {
            self.facts.apply(Event::Link(LinkNews {
                index: 1,
                ethernet: true,
                enabled: true,
                lower_up,
                name: Some("eth0".into()),
                mac: None,
                mtu: None,
            }));
        }

        fn watch(&mut self, hop: NextHop) {
            self.probes.watch(hop, &self.facts, self.now);
        }

        /// The kernel says so.
        fn set(&mut self, hop: NextHop, state: State) -> bool {
            let mac = (!matches!(state, State::Failed | State::Incomplete)).then_some(MAC);
            self.set_entry(hop, state, mac, false)
        }

        fn set_entry(
            &mut self,
            hop: NextHop,
            state: State,
            mac: Option<MacAddress>,
            owned: bool,
        ) -> bool {
            let entry = Entry { state, mac, owned };
            self.facts.apply(Event::Neighbour(hop, entry));
            self.probes.observe(hop, &self.facts, self.now)
        }

        /// What is to be done now; all of it.
        fn advance(&mut self) -> Vec<Action> {
            let mut lapsed = Vec::new();
            self.probes
                .advance(&self.facts, self.now, usize::MAX, &mut lapsed)
        }

        /// The link has come up.
        fn restart(&mut self) {
            self.probes.restart(1);
            assert!(self.probes.step(usize::MAX - 1, &self.facts, self.now));
        }

        fn at(&mut self, millis: u64) -> &mut Bench {
            self.now = self.start + Duration::from_millis(millis);
            self
        }

        fn millis(&self) -> u128 {
            (self.now - self.start).as_millis()
        }
    }

    #[test]
    fn an_unknown_next_hop_is_asked_for_at_once_and_each_second() {
        let mut bench = Bench::new();
        bench.watch(hop(2));
        let mut asked = Vec::new();
        for _ in 0..60 {
            for action in bench.advance() {
                assert_eq!(action, Action::Solicit(hop(2)));
                asked.push(bench.millis());
            }
            bench.now += STEP;
        }
        assert_eq!(asked, [0, 1000, 2000]);
    }

    #[test]
    fn while_the_kernel_asks_it_is_left_to_it_and_when_it_gives_up_it_is_told_to_go_on() {
        let mut bench = Bench::new();
        bench.watch(hop(2));
        let mut asked = Vec::new();
        for _ in 0..200 {
            for action in bench.advance() {
                assert_eq!(action, Action::Solicit(hop(2)));
                asked.push(bench.millis());
                bench.set(hop(2), State::Incomplete);
            }
            // As Linux does after three questions, a second each.
            if asked
                .last()
                .is_some_and(|last| bench.millis() == last + 3000)
            {
                bench.set(hop(2), State::Failed);
                assert_eq!(bench.probes.next(), Some(bench.now));
                assert_eq!(bench.advance(), [Action::Solicit(hop(2))]);
                asked.push(bench.millis());
                bench.set(hop(2), State::Incomplete);
            }
            bench.now += STEP;
        }
        assert_eq!(asked, [0, 3000, 6000, 9000]);
    }

    #[test]
    fn should_the_kernels_word_be_lost_it_is_told_all_the_same() {
        let mut bench = Bench::new();
        bench.watch(hop(2));
        assert_eq!(bench.advance(), [Action::Solicit(hop(2))]);
        bench.set(hop(2), State::Incomplete);
        for second in 1..4 {
            assert_eq!(bench.at(second * 1000).advance(), []);
        }
        assert_eq!(bench.at(4000).advance(), [Action::Solicit(hop(2))]);
    }

    #[test]
    fn a_next_hop_that_fails_at_once_is_asked_for_once_a_second() {
        let mut bench = Bench::new();
        bench.watch(hop(2));
        let mut asked = 0;
        for _ in 0..100 {
            asked += bench.advance().len();
            bench.set(hop(2), State::Incomplete);
            bench.set(hop(2), State::Failed);
            bench.now += STEP;
        }
        assert_eq!(asked, 5, "in five seconds");
    }

    #[test]
    fn a_stale_next_hop_is_in_force_and_confirmed_at_once() {
        let mut bench = Bench::new();
        bench.set(hop(2), State::Stale);
        bench.watch(hop(2));
        assert_eq!(bench.probes.in_force(&hop(2)), Some(MAC));
        assert_eq!(bench.advance(), [Action::Confirm(hop(2))]);
    }

    #[test]
    fn an_answered_confirmation_asks_nobody_else() {
        let mut bench = Bench::new();
        bench.set(hop(2), State::Stale);
        bench.watch(hop(2));
        let mut asked = Vec::new();
        for _ in 0..40 {
            for action in bench.advance() {
                assert_eq!(action, Action::Confirm(hop(2)));
                asked.push(bench.millis());
                bench
                    .probes
                    .note_confirming(hop(2), &bench.facts, bench.now);
                bench.set(hop(2), State::Probe);
                bench.set(hop(2), State::Reachable);
            }
            bench.now += STEP;
        }
        assert_eq!(asked, [0, 500, 1000, 1500]);
    }

    #[test]
    fn an_unanswered_confirmation_asks_everybody() {
        let mut bench = Bench::new();
        bench.set(hop(2), State::Stale);
        bench.watch(hop(2));
        bench.advance();
        bench.at(20);
        bench
            .probes
            .note_confirming(hop(2), &bench.facts, bench.now);
        bench.set(hop(2), State::Probe);
        assert_eq!(bench.at(200).advance(), [], "asked at 20 ms");
        assert_eq!(
            bench.at(220).advance(),
            [Action::Forget(hop(2)), Action::Solicit(hop(2))]
        );
    }

    #[test]
    fn the_mac_stays_in_force_for_the_grace_and_no_longer() {
        let mut bench = Bench::new();
        bench.set(hop(2), State::Reachable);
        bench.watch(hop(2));
        assert!(!bench.set(hop(2), State::Failed));
        let mut lapsed = Vec::new();
        for millis in (0..2000).step_by(50) {
            bench.at(millis);
            bench
                .probes
                .advance(&bench.facts, bench.now, 10, &mut lapsed);
            assert_eq!(bench.probes.in_force(&hop(2)), Some(MAC), "{millis}");
        }
        assert_eq!(lapsed, []);
        bench.at(2000);
        assert!(bench.probes.next() <= Some(bench.now));
        bench
            .probes
            .advance(&bench.facts, bench.now, 10, &mut lapsed);
        assert_eq!(lapsed, [hop(2)]);
        assert_eq!(bench.probes.in_force(&hop(2)), None);
        assert!(bench.set(hop(2), State::Reachable));
        assert_eq!(bench.probes.in_force(&hop(2)), Some(MAC));
    }

    #[test]
    fn a_new_mac_takes_effect_as_soon_as_it_is_heard() {
        let mut bench = Bench::new();
        bench.set(hop(2), State::Reachable);
        bench.watch(hop(2));
        let moved = MacAddress([2, 0, 0, 0, 0, 2]);
        assert!(bench.set_entry(hop(2), State::Stale, Some(moved), false));
        assert_eq!(bench.probes.in_force(&hop(2)), Some(moved));
    }

    #[test]
    fn what_others_keep_is_used_and_left_alone() {
        let mut bench = Bench::new();
        bench.set(hop(2), State::Permanent);
        bench.set_entry(hop(3), State::Stale, Some(MAC), true);
        bench.watch(hop(2));
        bench.watch(hop(3));
        assert_eq!(bench.probes.in_force(&hop(2)), Some(MAC));
        assert_eq!(bench.probes.in_force(&hop(3)), Some(MAC));
        assert_eq!(bench.probes.next(), None);
        assert_eq!(bench.at(10_000).advance(), []);
    }

    #[test]
    fn nothing_is_asked_over_a_dead_link() {
        let mut bench = Bench::new();
        bench.set_link(false);
        bench.watch(hop(2));
        bench.set(hop(3), State::Stale);
        bench.watch(hop(3));
        assert_eq!(bench.probes.next(), None);
        assert_eq!(bench.at(5000).advance(), []);
        bench.set_link(true);
        bench.restart();
        let mut actions = bench.advance();
        actions.sort_by_key(|action| format!("{action:?}"));
        assert_eq!(
            actions,
            [
                Action::Confirm(hop(3)),
                Action::Forget(hop(2)),
                Action::Solicit(hop(2))
            ]
        );
    }

    #[test]
    fn a_dropped_next_hop_is_not_asked_again() {
        let mut bench = Bench::new();
        bench.watch(hop(2));
        bench.watch(hop(3));
        bench.probes.unwatch(hop(2));
        assert!(!bench.probes.watches(hop(2)));
        assert_eq!(bench.advance(), [Action::Solicit(hop(3))]);
        bench.probes.unwatch(hop(3));
        assert_eq!((bench.probes.next(), bench.probes.lost), (None, 0));
    }

    /// Runs ten seconds with so many next hops that answer; gives back how often each was asked, and
    /// how many were asked in each 50 ms after the first five seconds.
    fn confirmations(count: u32) -> (BTreeMap<NextHop, u32>, Vec<usize>) {
        let mut bench = Bench::new();
        for n in 0..count {
            let hop = NextHop {
                ifindex: 1,
                address: (0x0a00_0000 + n).to_be_bytes().into(),
            };
            bench.set(hop, State::Reachable);
            bench.watch(hop);
        }
        let (mut asked, mut each_step) = (BTreeMap::new(), Vec::new());
        for step in 0..200 {
            let actions = bench.advance();
            if step >= 100 {
                each_step.push(actions.len());
            }
            for action in actions {
                let Action::Confirm(hop) = action else {
                    panic!("{action:?}")
                };
                *asked.entry(hop).or_default() += 1;
                bench.set(hop, State::Probe);
                bench.set(hop, State::Reachable);
            }
            bench.now += STEP;
        }
        (asked, each_step)
    }

    #[test]
    fn all_of_an_interface_are_asked_for_again_in_steps_each_once() {
        let mut bench = Bench::new();
        let hops: Vec<NextHop> = (1..=10).map(hop).collect();
        let elsewhere = NextHop {
            ifindex: 2,
            ..hop(1)
        };
        for &hop in hops.iter().chain([&elsewhere]) {
            bench.watch(hop);
        }
        bench.advance();
        bench.probes.restart(1);
        let (mut asked, mut done) = (Vec::new(), false);
        for (count, is_last) in [(4, false), (4, false), (2, true)] {
            assert!(!done);
            done = bench.probes.step(4, &bench.facts, bench.now);
            assert_eq!(done, is_last);
            let actions = bench.advance();
            assert_eq!(actions.len(), 2 * count);
            asked.extend(actions);
        }
        let expected: Vec<Action> = hops
            .iter()
            .flat_map(|&hop| [Action::Forget(hop), Action::Solicit(hop)])
            .collect();
        asked.sort_by_key(|action| match action {
            Action::Solicit(hop) | Action::Confirm(hop) | Action::Forget(hop) => *hop,
        });
        assert_eq!(asked, expected);
        // Once more while it is being done: from the first on.
        bench.probes.restart(1);
        assert!(!bench.probes.step(4, &bench.facts, bench.now));
        bench.probes.restart(1);
        assert!(!bench.probes.step(9, &bench.facts, bench.now));
        assert!(bench.probes.step(1, &bench.facts, bench.now));
    }

    #[test]
    fn next_hops_are_confirmed_spread_over_the_period() {
        for count in [500, 1000] {
            let (asked, each_step) = confirmations(count);
            // Twice a second, from within the first half second on.
            assert!(asked.values().all(|&n| (19..=20).contains(&n)), "{asked:?}");
            assert_eq!(asked.len(), count as usize);
            let even = count as usize / 10;
            assert!(
                each_step.iter().all(|n| n.abs_diff(even) <= even / 5),
                "{each_step:?}"
            );
        }
    }

    #[test]
    fn ten_thousand_next_hops_are_confirmed_less_often_instead_of_more_at_a_time() {
        let (asked, each_step) = confirmations(10_000);
        assert_eq!(asked.len(), 10_000);
        assert!(asked.values().all(|&n| (1..=2).contains(&n)), "every 5 s");
        let (step, burst) = (RATE as usize / 20, RATE as usize / 10);
        assert!(
            each_step.iter().all(|&n| n <= step + burst + 1),
            "{each_step:?}"
        );
        let all: usize = each_step.iter().sum();
        assert!(all <= 5 * RATE as usize + burst, "{all} in 5 s");
    }

    #[test]
    fn one_call_does_as_much_as_it_is_told() {
        let mut bench = Bench::new();
        for n in 0..100 {
            bench.watch(hop(n));
        }
        let mut asked = BTreeSet::new();
        for _ in 0..10 {
            let actions = bench
                .probes
                .advance(&bench.facts, bench.now, 10, &mut Vec::new());
            assert_eq!(actions.len(), 10);
            asked.extend(actions.iter().map(|action| format!("{action:?}")));
        }
        assert_eq!(asked.len(), 100, "each once");
        assert_eq!(bench.advance(), []);
    }
}
