//! Next hops: which MAC address and interface lead to each backend.
//!
//! Owns netlink. Facts about links, addresses, routes and neighbours come in here and leave as
//! plain values ([`Link`], [`Resolution`]); nothing outside this module knows netlink's messages.
//!
//! `netlink` talks to the kernel, `facts` keeps what it said and decides over it, `probe` says whom to
//! ask. Routes are not kept: the kernel is asked for the route to each target, so its rules, metrics
//! and multipath choices need no copy here.

mod facts;
mod netlink;
mod probe;
mod usable;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use nix::libc;

pub use facts::{Link, Resolution, State, Target};
pub use usable::usable_link;

use facts::{Event, Facts, Lookup, NextHop, Path, RouteAnswer, Touched};
use netlink::{Answer, EventSocket, Heard, Request, RequestSocket};
use probe::{Action, Probes};

/// How often [`Neighbours::tick`] is to be called.
pub const TICK: Duration = Duration::from_millis(250);

/// The kernel is asked for all routes at most this often, however fast they change (a full BGP table
/// is loaded with hundreds of thousands of changes).
const ROUTES_APART: Duration = Duration::from_millis(100);

/// The kernel is asked for all routes at least this often. A few changes come without an event: a
/// redirect learnt or expired, a next hop that multipath avoids.
const ROUTES_REFRESH: Duration = Duration::from_secs(10);

/// Datagrams read at most in one call, so that a flood of events cannot hold the caller up. What is
/// left keeps the socket readable.
const READS: usize = 4096;

/// What can fail in the conversation with the kernel. A target that cannot be reached is no error.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No netlink socket, or it could not subscribe.
    #[error("cannot open a netlink socket for links, routes and neighbours: {0}; a sandbox must allow AF_NETLINK (RestrictAddressFamilies= in systemd)")]
    Open(#[source] io::Error),
    /// A request or its answer failed.
    #[error("netlink: cannot {what}: {source}")]
    Io {
        /// What was being done.
        what: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// A request got no answer.
    #[error("netlink: the kernel gave no answer within {waited:?} when told to {what}")]
    Silent {
        /// What was being done.
        what: &'static str,
        /// How long the answer was waited for.
        waited: Duration,
    },
}

/// What changed since the resolutions were last computed.
#[derive(Debug, Default)]
struct Dirt {
    /// Something that this module's users can see: links or own addresses.
    visible: bool,
    /// The routes have to be asked for again.
    routes: bool,
    /// Next hops in use of which the kernel said something.
    hops: BTreeSet<NextHop>,
    /// All resolutions have to be computed again.
    all: bool,
}

/// Follows links, own addresses, routes and neighbours, and keeps the targets resolved.
pub struct Neighbours {
    events: EventSocket,
    requests: RequestSocket,
    facts: Facts,
    probes: Probes,
    /// The targets, each with its way or the reason why it has none.
    paths: BTreeMap<Target, Option<Result<Path, String>>>,
    /// What was last said of each target.
    resolved: BTreeMap<Target, Resolution>,
    dirt: Dirt,
    /// Events were lost; nothing holds until all has been read anew.
    overrun: bool,
    routes_asked: Option<Instant>,
}

impl Neighbours {
    /// Subscribes to changes in this thread's network namespace and reads what is there.
    ///
    /// Needs no privilege. Asking neighbours does: without `CAP_NET_ADMIN` only what the kernel
    /// happens to know gets resolved, and the [`Resolution`] of the rest says so.
    ///
    /// # Errors
    /// When there is no netlink or the kernel does not answer.
    pub fn open() -> Result<Self, Error> {
        let mut neighbours = Neighbours {
            // Subscribed before all is read, so that no change falls in between.
            events: EventSocket::open()?,
            requests: RequestSocket::open()?,
            facts: Facts::default(),
            probes: Probes::default(),
            paths: BTreeMap::new(),
            resolved: BTreeMap::new(),
            dirt: Dirt::default(),
            overrun: false,
            routes_asked: None,
        };
        neighbours.reread()?;
        neighbours.dirt = Dirt::default();
        Ok(neighbours)
    }

    /// The event socket: when it is readable, call [`Self::handle_events`].
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.events.as_fd()
    }

    /// Takes in what the kernel has said, without waiting. True when a link, an own address or a
    /// resolution changed.
    ///
    /// # Errors
    /// When netlink fails. What was taken in so far holds, and a later call goes on from there.
    pub fn handle_events(&mut self) -> Result<bool, Error> {
        self.step(Instant::now(), false)
    }

    /// Asks whom it is time to ask and lets age what nobody confirms. To be called every [`TICK`].
    /// True when a link, an own address or a resolution changed.
    ///
    /// # Errors
    /// As [`Self::handle_events`].
    pub fn tick(&mut self, now: Instant) -> Result<bool, Error> {
        self.step(now, true)
    }

    /// Sets what to keep resolved, in place of the former set. New targets are looked up and asked
    /// for at once; those that are gone leave nothing behind.
    pub fn track(&mut self, targets: impl IntoIterator<Item = Target>) {
        let mut former = std::mem::take(&mut self.paths);
        for target in targets {
            let path = former.remove(&target).flatten();
            self.paths.insert(target, path);
        }
        self.resolved
            .retain(|target, _| self.paths.contains_key(target));
        let now = Instant::now();
        let result = self.ask_routes(now).and_then(|()| self.probe(now));
        self.resolve_all();
        if let Err(error) = result {
            // The next tick tries again, and it can say so.
            log::warn!("{error}");
        }
    }

    /// What a target resolves to now. One that is not tracked does not resolve.
    pub fn resolve(&self, target: &Target) -> Resolution {
        let path = self.paths.get(target).and_then(Option::as_ref);
        facts::resolve(&self.facts, &self.probes, target, path)
    }

    /// What the kernel thinks of a target's next hop, for people to read. `None` for a target with
    /// no next hop, or whose MAC address is configured.
    pub fn state(&self, target: &Target) -> Option<State> {
        let path = self.paths.get(target)?.as_ref()?.as_ref().ok()?;
        if target.mac.is_some() {
            return None;
        }
        let entry = self.facts.neighbours.get(&path.hop(target));
        Some(entry.map_or(State::Incomplete, |entry| entry.state))
    }

    /// All links, by the kernel's number.
    pub fn links(&self) -> &BTreeMap<u32, Link> {
        &self.facts.links
    }

    /// The link that has this name now.
    pub fn link_by_name(&self, name: &str) -> Option<&Link> {
        self.facts.link_by_name(name)
    }

    /// This machine's addresses of global scope, each with its interface, that can serve as a source
    /// for long: none that is tentative, deprecated, a duplicate or temporary (IPv6).
    pub fn addresses(&self) -> impl Iterator<Item = (u32, IpAddr)> + '_ {
        self.facts.addresses.iter().copied()
    }

    /// Every address of this machine, whatever its interface, scope and state. A change by itself does
    /// not make [`Self::handle_events`] say true.
    pub fn local_addresses(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.facts.local.iter().map(|&(_, address)| address)
    }

    /// One round: listen, look up routes, ask neighbours, compare.
    fn step(&mut self, now: Instant, ticking: bool) -> Result<bool, Error> {
        self.listen()?;
        let since = self
            .routes_asked
            .map(|asked| now.saturating_duration_since(asked));
        if since.is_none_or(|since| {
            since >= ROUTES_REFRESH || (self.dirt.routes && (ticking || since >= ROUTES_APART))
        }) {
            self.ask_routes(now)?;
        }
        let hops = std::mem::take(&mut self.dirt.hops);
        for hop in &hops {
            self.dirt.all |= self.probes.observe(hop, &self.facts, now);
        }
        if ticking || !hops.is_empty() || self.dirt.all {
            self.dirt.all |= self.probes.observe_all(&self.facts, now);
            self.probe(now)?;
        }
        let mut changed = std::mem::take(&mut self.dirt.visible);
        let all = std::mem::take(&mut self.dirt.all);
        // Each tick computes all anew: reasons depend on states that are not worth following one by one.
        if ticking || all {
            changed |= self.resolve_all();
        }
        Ok(changed)
    }

    /// Reads the events that wait.
    fn listen(&mut self) -> Result<(), Error> {
        for _ in 0..READS {
            if self.overrun {
                break;
            }
            match self.events.read()? {
                Heard::Silence => break,
                Heard::Events(events) => events.into_iter().for_each(|event| self.take_in(event)),
                Heard::Overrun => self.overrun = true,
            }
        }
        if self.overrun {
            log::debug!("netlink events came faster than they were read; reading all anew");
            // After an overrun the kernel queues nothing more until the queue is empty. What is in it
            // is older than what is read next, and would put old facts back over new ones.
            while !matches!(self.events.read()?, Heard::Silence) {}
            self.reread()?;
        }
        Ok(())
    }

    fn take_in(&mut self, event: Event) {
        match self.facts.apply(event) {
            Touched::Nothing => {}
            // A link that came up can be asked over, a new address can be asked from.
            Touched::Link(ifindex) | Touched::Addresses(ifindex) => {
                self.dirt.visible = true;
                self.dirt.routes = true;
                self.dirt.all = true;
                self.probes.restart(ifindex);
            }
            Touched::OtherAddress(ifindex) => self.probes.restart(ifindex),
            Touched::Neighbour(hop) if self.probes.watches(&hop) => {
                self.dirt.hops.insert(hop);
            }
            Touched::Neighbour(_) => {}
            Touched::Routes => self.dirt.routes = true,
        }
    }

    /// Reads everything from the beginning, in place of what was known. Events that are queued
    /// meanwhile repeat or go beyond what is read here, so taking them in afterwards does no harm.
    fn reread(&mut self) -> Result<(), Error> {
        let mut facts = Facts::default();
        for event in self.requests.dump()? {
            facts.apply(event);
        }
        self.facts = facts;
        self.overrun = false;
        self.dirt.visible = true;
        self.dirt.routes = true;
        self.dirt.all = true;
        Ok(())
    }

    /// Asks the kernel for the way to each target.
    fn ask_routes(&mut self, now: Instant) -> Result<(), Error> {
        // Until it has succeeded.
        self.dirt.routes = true;
        let mut questions: Vec<(IpAddr, Option<u32>)> = Vec::new();
        for (target, path) in &mut self.paths {
            match facts::lookup(&self.facts, target) {
                Lookup::Known(known) => *path = Some(known),
                Lookup::Ask(oif) => questions.push((target.address, oif)),
            }
        }
        questions.sort_unstable();
        questions.dedup();
        let requests: Vec<Request> = questions
            .iter()
            .map(|&(address, oif)| Request::Route(address, oif))
            .collect();
        let answers: BTreeMap<(IpAddr, Option<u32>), RouteAnswer> = questions
            .into_iter()
            .zip(self.requests.ask(&requests)?)
            .map(|(question, answer)| match answer {
                Answer::Route(route) => (question, route),
                Answer::Refused(errno) => (question, RouteAnswer::Refused(errno)),
                Answer::Done => (question, RouteAnswer::Refused(libc::EPROTO)),
            })
            .collect();
        for (target, path) in &mut self.paths {
            if let Lookup::Ask(oif) = facts::lookup(&self.facts, target) {
                *path = answers
                    .get(&(target.address, oif))
                    .map(|answer| facts::path(target, answer));
            }
        }
        let hops = self
            .paths
            .iter()
            .filter(|(target, _)| target.mac.is_none())
            .filter_map(|(target, path)| Some(path.as_ref()?.as_ref().ok()?.hop(target)));
        self.probes.watch(hops, &self.facts, now);
        self.routes_asked = Some(now);
        self.dirt.routes = false;
        self.dirt.all = true;
        Ok(())
    }

    /// Asks the neighbours whose time has come.
    fn probe(&mut self, now: Instant) -> Result<(), Error> {
        let actions = self.probes.advance(&self.facts, now);
        let requests: Vec<Request> = actions.iter().copied().map(Request::Neighbour).collect();
        for (action, answer) in actions.into_iter().zip(self.requests.ask(&requests)?) {
            match (action, answer) {
                (Action::Solicit(hop), Answer::Refused(errno)) => {
                    self.probes.note_refusal(&hop, Some(errno));
                }
                (Action::Solicit(hop), _) => self.probes.note_refusal(&hop, None),
                // The kernel holds no valid entry to confirm, whatever we thought: ask from scratch.
                (Action::Confirm(hop), Answer::Refused(libc::ENOENT | libc::EINVAL)) => {
                    self.take_in(Event::NeighbourGone(hop));
                }
                // Refused for want of privilege, or forgotten before we said so. An unknown next hop
                // reports it when it is asked for.
                (Action::Confirm(_) | Action::Forget(_), _) => {}
            }
        }
        Ok(())
    }

    /// Computes all resolutions and says whether one changed.
    fn resolve_all(&mut self) -> bool {
        let resolved: BTreeMap<Target, Resolution> = self
            .paths
            .keys()
            .map(|target| (target.clone(), self.resolve(target)))
            .collect();
        let changed = resolved != self.resolved;
        self.resolved = resolved;
        changed
    }
}
