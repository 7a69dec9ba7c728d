//! Next hops: which MAC address and interface lead to each backend.
//!
//! Owns netlink. Facts about links, addresses, routes and neighbours come in here and leave as
//! plain values ([`Network`]); nothing outside this module knows netlink's messages.
//!
//! Never waits, and does a bounded amount in each [`Neighbours::turn`], so that the control loop
//! stands still for milliseconds at most, however large and restless the network. The cost follows
//! the changes: an event finds the targets that it may concern, and only those are looked up again.
//!
//! `netlink` talks to the kernel, `asker` waits for its answers on a thread, `facts` keeps what it
//! said, `targets` knows which targets a change concerns, `reach` decides how a target is reached,
//! `probe` says which neighbour to ask. Routes are not kept: the kernel is asked for the way to each target, so its rules,
//! metrics and multipath choices need no copy here.

mod asker;
mod facts;
mod netlink;
mod probe;
mod reach;
mod targets;
mod usable;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};
use std::vec;

use nix::libc;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};

pub use facts::{Link, State};
pub use reach::{Resolution, Target};
pub use usable::usable_link;

use asker::{Asker, Order, Report};
use facts::{Entry, Event, Facts, NextHop, Touched};
use netlink::{Answer, EventSocket, Heard, Request, RequestSocket};
use probe::{Action, Probes};
use reach::{Lookup, RouteAnswer};
use targets::{Cause, Id, Targets};

/// Events taken in by one turn. Each takes some microseconds.
const EVENTS: usize = 256;
/// Events thrown away by one turn after an overrun.
const DISCARDED: usize = 2048;
/// Targets that one turn takes over from [`Neighbours::track`], finds concerned, or resolves anew; next hops
/// that it compares with what was listed anew, or begins to ask for again.
const TARGETS: usize = 512;
/// Next hops that one order asks.
const HOPS: usize = 256;
/// Targets whose way one order asks for, with two requests each.
const WAYS: usize = 128;

/// Orders about routes leave at most this often: even where routes flap without end, asking after
/// them takes a part of one CPU only.
const WAYS_APART: Duration = Duration::from_millis(10);
/// Likewise about neighbours: few wake-ups for many next hops.
const HOPS_APART: Duration = Duration::from_millis(20);

/// The way to each target is asked for at least this often. A few changes come without an event: a
/// redirect learnt or expired, a next hop that multipath avoids.
const REFRESH: Duration = Duration::from_secs(10);
/// How many targets are asked for so in a second at most: with more, each has its turn less often.
const REFRESH_RATE: u32 = 1000;
/// How often some of them are asked for.
const REFRESH_STEP: Duration = Duration::from_millis(100);

/// How long nothing is asked after the conversation with the kernel has failed.
const AFTER_FAILURE: Duration = Duration::from_secs(1);
/// The longest [`Neighbours::next_deadline`] ahead.
const IDLE: Duration = Duration::from_secs(60);

/// Why netlink failed. A target that cannot be reached is not an error.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No netlink socket, or it could not subscribe.
    #[error("cannot open a netlink socket for links, routes and neighbours: {0}; a sandbox must allow AF_NETLINK (RestrictAddressFamilies= in systemd)")]
    Open(#[source] io::Error),
    /// A request or its answer failed.
    #[error("netlink: cannot {what}: {source}")]
    Io {
        /// The action that failed.
        what: &'static str,
        /// The error of the kernel.
        source: io::Error,
    },
    /// A request got no answer.
    #[error("netlink: the kernel did not answer within {waited:?}: cannot {what}")]
    Silent {
        /// The action that failed.
        what: &'static str,
        /// How long the answer was waited for.
        waited: Duration,
    },
    /// The thread that asks has ended.
    #[error(
        "the thread that asks the kernel about routes and neighbours has ended; restart xdplb"
    )]
    Ended,
}

/// The result of [`Neighbours::turn`].
#[derive(Debug, Default)]
pub struct Turn {
    /// A link or one of [`Network::addresses`] has changed.
    pub links: bool,
    /// These targets resolve otherwise than before: to something else, or to nothing for another
    /// reason.
    pub targets: Vec<Target>,
    /// More is to be done at once: the next turn need not wait for anything.
    pub more: bool,
}

impl Turn {
    /// Whether anything of [`Network`] has changed.
    pub fn changed(&self) -> bool {
        self.links || !self.targets.is_empty()
    }
}

/// The facts about the network at one moment, as plain values. Cheap to clone and to hand to another
/// thread: the tables are shared until they change.
#[derive(Debug, Clone, Default)]
pub struct Network {
    links: Arc<BTreeMap<u32, Link>>,
    addresses: Arc<BTreeSet<(u32, IpAddr)>>,
    resolved: Arc<BTreeMap<Target, Resolution>>,
}

impl Network {
    /// All links, by the kernel's number.
    pub fn links(&self) -> &BTreeMap<u32, Link> {
        &self.links
    }

    /// The link that has this name.
    pub fn link_by_name(&self, name: &str) -> Option<&Link> {
        facts::by_name(&self.links, name)
    }

    /// This machine's addresses of global scope, each with its interface, that can serve as a source
    /// for long: none that is tentative, deprecated, a duplicate or temporary (IPv6).
    pub fn addresses(&self) -> impl Iterator<Item = (u32, IpAddr)> + '_ {
        self.addresses.iter().copied()
    }

    /// The resolution of a target. One that is not tracked does not resolve.
    pub fn resolve(&self, target: &Target) -> Resolution {
        match self.resolved.get(target) {
            Some(resolution) => resolution.clone(),
            None => Resolution::Unresolved {
                reason: reach::not_looked_up(target),
            },
        }
    }

    /// Whether frames for a target can be sent.
    pub fn is_resolved(&self, target: &Target) -> bool {
        matches!(self.resolved.get(target), Some(Resolution::Resolved { .. }))
    }

    /// Takes in what has changed.
    pub fn update(&mut self, update: Update) {
        self.links = update.links;
        self.addresses = update.addresses;
        let resolved = Arc::make_mut(&mut self.resolved);
        for (target, resolution) in update.targets {
            match resolution {
                Some(resolution) => resolved.insert(target, resolution),
                None => resolved.remove(&target),
            };
        }
    }

    /// Forgets all targets but these.
    pub fn retain(&mut self, targets: &BTreeSet<Target>) {
        Arc::make_mut(&mut self.resolved).retain(|target, _| targets.contains(target));
    }
}

/// What a [`Network`] on another thread lacks. Unlike a new one it shares no large table, which would have to
/// be copied with the next change.
#[derive(Debug, Clone)]
pub struct Update {
    links: Arc<BTreeMap<u32, Link>>,
    addresses: Arc<BTreeSet<(u32, IpAddr)>>,
    /// `None`: it is not tracked any more.
    targets: Vec<(Target, Option<Resolution>)>,
}

/// How much has been done so far, for benchmarks and tests.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Work {
    /// Events read.
    pub events: u64,
    /// Times that events were lost and everything was listed anew.
    pub rereads: u64,
    /// Targets whose way was asked for since something may have changed it, with two requests each.
    pub ways: u64,
    /// Targets whose way was asked for in turn, with one request each.
    pub refreshed: u64,
    /// Requests to ask a neighbour, or to forget it.
    pub neighbours: u64,
    /// Targets resolved anew.
    pub resolved: u64,
    /// Most events that one turn read.
    pub most_events: usize,
    /// Most requests that one turn gave out.
    pub most_requests: usize,
    /// Most targets that one turn resolved anew.
    pub most_resolved: usize,
}

impl Work {
    /// What has been done since then.
    pub fn since(&self, then: &Work) -> Work {
        Work {
            events: self.events - then.events,
            rereads: self.rereads - then.rereads,
            ways: self.ways - then.ways,
            refreshed: self.refreshed - then.refreshed,
            neighbours: self.neighbours - then.neighbours,
            resolved: self.resolved - then.resolved,
            ..*self
        }
    }
}

/// The state of reading the event socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hearing {
    /// Events are taken in.
    Listening,
    /// Events were lost. The kernel queues nothing more until the queue is empty, and what is in it is
    /// older than what will be listed: it would put old facts back over new ones.
    Discarding,
    /// Everything is being listed anew. Events wait until that is in: they repeat it or go beyond it.
    Rereading,
}

/// The subject of a request of the order under way.
#[derive(Debug)]
enum Question {
    Neighbour(Action),
    /// The way to a target; whether the route that decides it is asked for as well.
    Way(Id, bool),
    /// The route that decides it.
    Route(Id),
}

/// What is left to be compared with what was listed anew.
struct Adopting {
    /// Neighbours as they were known before.
    former: HashMap<NextHop, Entry>,
    hops: vec::IntoIter<NextHop>,
}

/// Follows links, own addresses, routes and neighbours, and keeps the targets resolved.
pub struct Neighbours {
    /// Readable when the event socket or the asker is.
    epoll: Epoll,
    events: EventSocket,
    asker: Asker,
    facts: Facts,
    /// What was known before `facts` were listed anew, while that is being taken over.
    adopting: Option<Adopting>,
    probes: Probes,
    targets: Targets,
    resolved: Arc<BTreeMap<Target, Resolution>>,
    hearing: Hearing,
    /// Of the order under way.
    questions: Vec<Question>,
    /// Nothing is asked before.
    paused: Instant,
    /// When the next orders may leave.
    next_hops: Instant,
    next_ways: Instant,
    next_refresh: Instant,
    /// Found since the last turn that succeeded.
    found: Turn,
    /// The last turn left something.
    more: bool,
    work: Work,
}

impl Neighbours {
    /// Subscribes to changes in this thread's network namespace and reads what is there, which waits
    /// for the kernel. Starts a thread.
    ///
    /// Needs no privilege. Asking neighbours does: without `CAP_NET_ADMIN` only what the kernel
    /// happens to know gets resolved, and the [`Resolution`] of the rest says so.
    ///
    /// # Errors
    /// When there is no netlink or the kernel does not answer.
    pub fn open() -> Result<Self, Error> {
        // Subscribed before all is read, so that no change falls in between.
        let events = EventSocket::open()?;
        let mut requests = RequestSocket::open()?;
        let facts = requests.dump()?;
        let asker = Asker::start(requests).map_err(Error::Open)?;
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(open_failed)?;
        epoll.add(events.as_fd(), readable()).map_err(open_failed)?;
        epoll.add(asker.as_fd(), readable()).map_err(open_failed)?;
        let now = Instant::now();
        Ok(Neighbours {
            epoll,
            events,
            asker,
            facts,
            adopting: None,
            probes: Probes::default(),
            targets: Targets::default(),
            resolved: Arc::default(),
            hearing: Hearing::Listening,
            questions: Vec::new(),
            paused: now,
            next_hops: now,
            next_ways: now,
            next_refresh: now,
            found: Turn::default(),
            more: false,
            work: Work::default(),
        })
    }

    /// When it is readable, call [`Self::turn`].
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.0.as_fd()
    }

    /// When to call [`Self::turn`] next even if nothing is readable.
    pub fn next_deadline(&self, now: Instant) -> Instant {
        let idle = now + IDLE;
        if self.more {
            return now;
        }
        // Its report makes the descriptor readable.
        if self.asker.is_busy() || self.hearing != Hearing::Listening {
            return idle;
        }
        let hops = self.probes.next().map(|next| next.max(self.next_hops));
        let ways = self.targets.has_to_ask().then_some(self.next_ways);
        let refresh = self.next_refresh.max(self.next_ways);
        let refresh = (self.targets.count() > 0).then_some(refresh);
        let earliest = [hops, ways, refresh].into_iter().flatten().min();
        earliest.map_or(idle, |next| next.max(self.paused).min(idle))
    }

    /// Takes in what the kernel has said, asks what it is time to ask, and lets age what nobody
    /// confirms. Does not wait, and stops after some milliseconds' work: see [`Turn::more`].
    ///
    /// # Errors
    /// When netlink fails. What was taken in so far holds, a later call goes on from there and reports it.
    pub fn turn(&mut self, now: Instant) -> Result<Turn, Error> {
        let received = self.receive(now);
        let heard = self.listen(now);
        let tracked = self.targets.step(TARGETS);
        let adopted = self.compare(now);
        let restarted = self.probes.step(TARGETS, &self.facts, now);
        let spread = self.targets.spread(TARGETS);
        self.follow_hops(now);
        self.give_order(now);
        self.resolve();
        self.more = true;
        received?;
        let all_heard = heard?;
        self.more = !(all_heard && tracked && adopted && restarted && spread)
            || self.targets.has_to_resolve();
        Ok(Turn {
            more: self.more,
            ..std::mem::take(&mut self.found)
        })
    }

    /// Sets what to keep resolved, in place of the former set, within the next turns. What is known of
    /// targets in both stays; those that are gone leave nothing behind.
    pub fn track(&mut self, targets: BTreeSet<Target>) {
        self.targets.track(targets);
        // At once where they are few. The loop may not be about to call by itself.
        self.more |= !self.targets.step(TARGETS);
        self.drop_gone();
        let now = Instant::now();
        self.follow_hops(now);
        self.give_order(now);
    }

    /// The facts as they are now. Later changes do not show in it.
    pub fn network(&self) -> Network {
        Network {
            links: Arc::clone(&self.facts.links),
            addresses: Arc::clone(&self.facts.addresses),
            resolved: Arc::clone(&self.resolved),
        }
    }

    /// What a network lacks that is up to date but for links, addresses and these targets.
    pub fn update<'a>(&self, targets: impl IntoIterator<Item = &'a Target>) -> Update {
        let targets = targets
            .into_iter()
            .map(|target| (target.clone(), self.resolved.get(target).cloned()));
        Update {
            links: Arc::clone(&self.facts.links),
            addresses: Arc::clone(&self.facts.addresses),
            targets: targets.collect(),
        }
    }

    /// The state of a target's next hop in the kernel's table, for people to read. `None` for a target with
    /// no next hop, or whose MAC address is configured.
    pub fn state(&self, target: &Target) -> Option<State> {
        let path = self.targets.find(target)?.path.as_ref()?.as_ref().ok()?;
        if target.mac.is_some() {
            return None;
        }
        let entry = self.facts.neighbours.get(&path.hop(target));
        Some(entry.map_or(State::Incomplete, |entry| entry.state))
    }

    /// Every address of this machine, of any interface, scope and state. A change by itself does
    /// not make a [`Turn`] say so.
    pub fn local_addresses(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.facts.local.iter().map(|&(_, address)| address)
    }

    /// How much has been done so far.
    pub fn work(&self) -> Work {
        self.work
    }

    /// Takes the asker's report, if there is one.
    fn receive(&mut self, now: Instant) -> Result<(), Error> {
        let report = self.asker.report().inspect_err(|_| self.pause(now))?;
        let failure = match report {
            None => return Ok(()),
            Some(Report::Answers(Ok(answers))) => {
                self.take_answers(answers, now);
                return Ok(());
            }
            Some(Report::Facts(Ok(facts))) => {
                self.adopt(facts, now);
                return Ok(());
            }
            // Neighbours have timers of their own.
            Some(Report::Answers(Err(error))) => {
                for question in std::mem::take(&mut self.questions) {
                    if let Question::Way(id, _) = question {
                        self.targets.ask_again(id);
                    }
                }
                error
            }
            Some(Report::Facts(Err(error))) => error,
        };
        self.pause(now);
        Err(failure)
    }

    fn pause(&mut self, now: Instant) {
        self.paused = now + AFTER_FAILURE;
    }

    /// Reads events that wait. True when none is left.
    fn listen(&mut self, now: Instant) -> Result<bool, Error> {
        if self.hearing == Hearing::Listening {
            for read in 0..EVENTS {
                match self.events.read()? {
                    Heard::Silence => return Ok(true),
                    Heard::Events(events) => {
                        self.work.events += events.len() as u64;
                        self.work.most_events = self.work.most_events.max(read + 1);
                        for event in events {
                            self.take_in(event, now);
                        }
                    }
                    Heard::Overrun => {
                        log::debug!(
                            "netlink events came faster than they were read; listing all anew"
                        );
                        self.work.rereads += 1;
                        self.hearing = Hearing::Discarding;
                        break;
                    }
                }
            }
        }
        if self.hearing == Hearing::Discarding {
            for _ in 0..DISCARDED {
                if !self.events.discard()? {
                    self.hearing = Hearing::Rereading;
                    // Not to be woken by what is not to be read yet.
                    let _ = self.epoll.delete(self.events.as_fd());
                    break;
                }
            }
        }
        Ok(self.hearing == Hearing::Rereading)
    }

    fn take_in(&mut self, event: Event, now: Instant) {
        match self.facts.apply(event) {
            Touched::Nothing => {}
            Touched::Link(ifindex, former) => {
                self.found.links = true;
                self.follow_link(ifindex, former.as_ref());
            }
            Touched::Address {
                ifindex,
                visible,
                gone,
            } => {
                self.found.links |= visible;
                if gone {
                    // Routes that prefer it as their source go with it, without an event.
                    self.targets.happened(Cause::Routes(facts::Concerned::All));
                } else {
                    // A new address can be asked from; it may be the link-local one of ND.
                    self.probes.restart(ifindex);
                }
            }
            Touched::Neighbour(hop) => {
                if self.probes.watches(hop) && self.probes.observe(hop, &self.facts, now) {
                    self.targets.happened(Cause::Hop(hop));
                }
            }
            Touched::Routes(concerned) => self.targets.happened(Cause::Routes(concerned)),
        }
    }

    /// Marks the ways and neighbours that a change of a link concerns.
    fn follow_link(&mut self, ifindex: u32, former: Option<&Link>) {
        let link = self.facts.links.get(&ifindex);
        let names: BTreeSet<&String> = [former, link]
            .into_iter()
            .flatten()
            .map(|link| &link.name)
            .collect();
        for name in names {
            self.targets.happened(Cause::Name(name.clone()));
        }
        let carries = |link: Option<&Link>| link.map(|link| (link.enabled, link.up, link.ethernet));
        let reroutes = carries(former) != carries(link);
        self.targets.happened(Cause::Link { ifindex, reroutes });
        let is_up = |link: Option<&Link>| link.is_some_and(|link| link.up);
        if is_up(link) && !is_up(former) {
            self.targets.link_came_up(ifindex);
        }
        self.probes.restart(ifindex);
    }

    /// Puts what was listed anew in the place of what was known.
    fn adopt(&mut self, facts: Facts, now: Instant) {
        // Listed anew twice within a few turns: what is left of the first time has to be compared with it.
        while !self.compare(now) {}
        let former = std::mem::replace(&mut self.facts, facts);
        self.hearing = Hearing::Listening;
        if let Err(errno) = self.epoll.add(self.events.as_fd(), readable()) {
            log::warn!("netlink events are heard late: {errno}");
        }
        self.found.links |=
            former.links != self.facts.links || former.addresses != self.facts.addresses;
        let hops: Vec<NextHop> = self.probes.hops().collect();
        self.adopting = Some(Adopting {
            former: former.neighbours,
            hops: hops.into_iter(),
        });
        let changed: Vec<u32> = self
            .facts
            .links
            .iter()
            .filter(|(index, link)| former.links.get(index) != Some(link))
            .map(|(&index, _)| index)
            .collect();
        for ifindex in changed {
            self.probes.restart(ifindex);
        }
        self.targets.start_over();
    }

    /// Goes on with the next hops whose entries may be other ones since everything was listed anew. True when
    /// none is left.
    fn compare(&mut self, now: Instant) -> bool {
        let Some(mut adopting) = self.adopting.take() else {
            return true;
        };
        for hop in adopting.hops.by_ref().take(TARGETS) {
            let same = adopting.former.get(&hop) == self.facts.neighbours.get(&hop);
            if !same && self.probes.observe(hop, &self.facts, now) {
                self.targets.happened(Cause::Hop(hop));
            }
        }
        if adopting.hops.len() == 0 {
            return true;
        }
        self.adopting = Some(adopting);
        false
    }

    fn take_answers(&mut self, answers: Vec<Answer>, now: Instant) {
        let mut answers = answers.into_iter();
        for question in std::mem::take(&mut self.questions) {
            let Some(answer) = answers.next() else {
                return;
            };
            match question {
                Question::Neighbour(action) => self.take_neighbours_answer(action, &answer, now),
                Question::Way(id, with_route) => {
                    let Some(tracked) = self.targets.get(id) else {
                        continue;
                    };
                    let path = reach::path(&tracked.target, &route_answer(answer));
                    if with_route {
                        self.targets.set_path(id, Some(path));
                    } else {
                        self.targets.confirm_path(id, Some(path));
                    }
                }
                Question::Route(id) => {
                    if let RouteAnswer::Found { matched, .. } = route_answer(answer) {
                        self.targets.set_matched(id, matched);
                    }
                }
            }
        }
    }

    fn take_neighbours_answer(&mut self, action: Action, answer: &Answer, now: Instant) {
        let refusal = match answer {
            Answer::Refused(errno) => Some(*errno),
            _ => None,
        };
        match (action, refusal) {
            (Action::Solicit(hop), refusal) => {
                if self.probes.note_refusal(&hop, refusal) {
                    self.targets.happened(Cause::Hop(hop));
                }
            }
            (Action::Confirm(hop), None) => {
                self.probes.note_confirming(hop, &self.facts, now);
            }
            // The kernel holds no valid entry to confirm: ask from scratch.
            (Action::Confirm(hop), Some(libc::ENOENT | libc::EINVAL)) => {
                self.take_in(Event::NeighbourGone(hop), now);
            }
            // Refused for want of privilege, or forgotten before we said so. An unknown next hop
            // reports it when it is asked for.
            (Action::Confirm(_) | Action::Forget(_), _) => {}
        }
    }

    /// Watches the next hops that targets use, and no others.
    fn follow_hops(&mut self, now: Instant) {
        for hop in self.targets.take_hops() {
            if self.targets.uses(hop) {
                self.probes.watch(hop, &self.facts, now);
            } else {
                self.probes.unwatch(hop);
            }
        }
    }

    /// Asks what it is time to ask, unless an order is under way.
    fn give_order(&mut self, now: Instant) {
        if self.asker.is_busy() || now < self.paused {
            return;
        }
        match self.hearing {
            Hearing::Listening => {}
            Hearing::Discarding => return,
            Hearing::Rereading => return self.asker.order(Order::Reread),
        }
        let mut requests = Vec::new();
        if now >= self.next_hops {
            self.ask_hops(now, &mut requests);
        }
        let asked_hops = requests.len();
        if now >= self.next_ways {
            self.ask_ways(now, &mut requests);
        }
        if requests.is_empty() {
            return;
        }
        self.work.neighbours += asked_hops as u64;
        self.work.most_requests = self.work.most_requests.max(requests.len());
        self.asker.order(Order::Ask(requests));
    }

    /// Requests to the neighbours whose time has come.
    fn ask_hops(&mut self, now: Instant, requests: &mut Vec<Request>) {
        if self.probes.next().is_none_or(|next| next > now) {
            return;
        }
        self.next_hops = now + HOPS_APART;
        let mut lapsed = Vec::new();
        let actions = self.probes.advance(&self.facts, now, HOPS, &mut lapsed);
        for hop in lapsed {
            self.targets.happened(Cause::Hop(hop));
        }
        for action in actions {
            requests.push(Request::Neighbour(action));
            self.questions.push(Question::Neighbour(action));
        }
    }

    /// Requests for the ways of targets that events concerned, and of some more in turn.
    fn ask_ways(&mut self, now: Instant, requests: &mut Vec<Request>) {
        let mut asked = 0;
        while asked < WAYS {
            let Some(id) = self.targets.next_to_ask() else {
                break;
            };
            asked += 1;
            if let Some((address, oif)) = self.question(id) {
                self.work.ways += 1;
                requests.push(Request::Way(address, oif));
                self.questions.push(Question::Way(id, true));
                requests.push(Request::Route(address, oif));
                self.questions.push(Question::Route(id));
            }
        }
        if now >= self.next_refresh {
            let count = self.targets.count() as u32;
            let round = REFRESH.max(Duration::from_secs(1) * count / REFRESH_RATE);
            let step = REFRESH_STEP.max(round / count.max(1));
            self.next_refresh = now + step;
            let share = step.as_secs_f64() / round.as_secs_f64() * f64::from(count);
            for id in self.targets.refresh(share.ceil() as usize) {
                asked += 1;
                if let Some((address, oif)) = self.question(id) {
                    self.work.refreshed += 1;
                    requests.push(Request::Way(address, oif));
                    self.questions.push(Question::Way(id, false));
                }
            }
        }
        if asked > 0 {
            self.next_ways = now + WAYS_APART;
        }
    }

    /// The question to the kernel about a target's way. `None` where there is nothing to ask.
    fn question(&mut self, id: Id) -> Option<(IpAddr, Option<u32>)> {
        let target = &self.targets.get(id)?.target;
        match reach::lookup(&self.facts, target) {
            Lookup::Ask(oif) => Some((target.address, oif)),
            Lookup::Known(path) => {
                self.targets.set_path(id, Some(path));
                None
            }
        }
    }

    /// Computes resolutions anew, those that changes concern.
    fn resolve(&mut self) {
        self.drop_gone();
        for resolved in 1..=TARGETS {
            let Some(id) = self.targets.next_to_resolve() else {
                return;
            };
            let Some(tracked) = self.targets.get(id) else {
                continue;
            };
            self.work.resolved += 1;
            self.work.most_resolved = self.work.most_resolved.max(resolved);
            let resolution = reach::resolve(
                &self.facts,
                &self.probes,
                &tracked.target,
                tracked.path.as_ref(),
            );
            if self.resolved.get(&tracked.target) != Some(&resolution) {
                Arc::make_mut(&mut self.resolved).insert(tracked.target.clone(), resolution);
                self.found.targets.push(tracked.target.clone());
            }
        }
    }

    fn drop_gone(&mut self) {
        for target in self.targets.take_gone() {
            if self.resolved.contains_key(&target) {
                Arc::make_mut(&mut self.resolved).remove(&target);
            }
        }
    }
}

fn route_answer(answer: Answer) -> RouteAnswer {
    match answer {
        Answer::Route(route) => route,
        Answer::Refused(errno) => RouteAnswer::Refused(errno),
        Answer::Done => RouteAnswer::Refused(libc::EPROTO),
    }
}

fn readable() -> EpollEvent {
    EpollEvent::new(EpollFlags::EPOLLIN, 0)
}

fn open_failed(errno: nix::errno::Errno) -> Error {
    Error::Open(errno.into())
}
