//! The writer: the thread that owns the datapath, the configuration in force, and the plan that the maps hold.
//!
//! It may take its time: it loads files, attaches, writes maps and waits for the kernel, while the control
//! loop goes on. What the network looks like comes to it as plain values.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use log::{debug, error, info, warn};

use super::blocklists;
use super::faults::Faults;
use super::in_force::{Former, InForce};
use super::interfaces::Interfaces;
use super::mtus::Mtus;
use super::orders::{Changes, Order, Outbox, Outcome};
use super::slots::SlotUse;
use super::sweeping::Sweeping;
use super::{target, Error};
use crate::config::blocklist::Contents;
use crate::config::{self, Config};
use crate::control::Answer;
use crate::datapath::pins::PinDir;
use crate::datapath::{Datapath, Settings};
use crate::nat_ports;
use crate::neighbours::{Network, Target};
use crate::number;
use crate::state::{self, Desired, OwnAddress, World};
use crate::{capabilities, logging};

/// How long a start waits for neighbours that have not answered yet, and a reload for those that are new.
const FIRST_ANSWERS: Duration = Duration::from_secs(1);
/// How often counters are looked at.
const LOOK: Duration = Duration::from_secs(1);
/// How often the datapath's clock is compared with the kernel's.
const CLOCK_AGAIN: Duration = Duration::from_secs(60);
/// How often a condition that persists is logged.
const WARN_AGAIN: Duration = Duration::from_secs(60);

/// The writer's initial state.
pub struct Setup {
    /// The configuration file's path.
    pub file: PathBuf,
    /// Has read it.
    pub reader: config::Reader,
    /// Its contents.
    pub config: Config,
    /// The contents of `firewall.blocklists`.
    pub blocklists: Contents,
    /// Links, addresses, routes and neighbours.
    pub network: Network,
}

/// Starts the datapath, follows orders until the last, and releases everything. `stopping` lets long work end
/// early: once it is set, the order to stop is on its way.
pub fn run(setup: Setup, orders: Receiver<Order>, outbox: &Outbox, stopping: &AtomicBool) {
    let inbox = Inbox {
        orders,
        outbox,
        stopping,
        reload: false,
    };
    let ended = match Writer::start(setup, inbox) {
        Ok(mut writer) => {
            outbox.send(Outcome::Started);
            writer.serve();
            Ok(())
        }
        Err(Error::Stopping) => {
            info!("stopped during the start");
            Ok(())
        }
        Err(error) => Err(error),
    };
    outbox.send(Outcome::Ended(ended));
}

/// The loop's orders, and where to answer.
struct Inbox<'a> {
    orders: Receiver<Order>,
    outbox: &'a Outbox,
    stopping: &'a AtomicBool,
    /// A reload came while something else was waited for.
    reload: bool,
}

impl Inbox<'_> {
    /// The next order. `None`: none has come until then.
    fn next(&mut self, until: Instant) -> Option<Order> {
        // Whatever else waits, and whoever has taken the order itself.
        if self.stopping.load(Ordering::Relaxed) {
            return Some(Order::Stop);
        }
        if std::mem::take(&mut self.reload) {
            return Some(Order::Reload);
        }
        let left = until.saturating_duration_since(Instant::now());
        match self.orders.recv_timeout(left) {
            Ok(order) => {
                if matches!(order, Order::Network(..)) {
                    self.outbox.send(Outcome::Taken);
                }
                Some(order)
            }
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => Some(Order::Stop),
        }
    }

    /// For between two steps that take long.
    fn check(&self) -> Result<(), Error> {
        if self.stopping.load(Ordering::Relaxed) {
            return Err(Error::Stopping);
        }
        Ok(())
    }

    /// Gives neighbours that have to be asked a moment to answer, so that backends that are new do not begin
    /// as down.
    fn await_answers(
        &mut self,
        network: &mut Network,
        changes: &mut Changes,
        targets: &BTreeSet<Target>,
    ) -> Result<(), Error> {
        let deadline = Instant::now() + FIRST_ANSWERS;
        let mut reload = false;
        while !targets.iter().all(|target| network.is_resolved(target)) {
            match self.next(deadline) {
                Some(Order::Network(update, changed)) => {
                    network.update(update);
                    changes.add(changed);
                }
                Some(Order::Reload) => reload = true,
                Some(Order::Stop) => return Err(Error::Stopping),
                None => break,
            }
        }
        self.reload = reload;
        self.check()
    }
}

/// The writer of a running instance.
struct Writer<'a> {
    file: PathBuf,
    reader: config::Reader,
    config: Config,
    /// The backends of `config`.
    targets: BTreeSet<Target>,
    blocklists: Contents,
    // Stopped before the datapath goes.
    sweeping: Sweeping,
    datapath: Datapath,
    interfaces: Interfaces,
    network: Network,
    inbox: Inbox<'a>,
    in_force: InForce,
    faults: Faults,
    mtus: Mtus,
    exhausted: Watch,
    /// The maps could not follow the network, or go back to the plan before; it is tried again.
    is_behind: bool,
    /// Changes of `network` that came while something else was done, and are not followed yet.
    missed: Changes,
}

/// A counter whose growth is worth a warning.
#[derive(Default)]
struct Watch {
    seen: u64,
    warned: Option<Instant>,
}

impl<'a> Writer<'a> {
    /// Everything that can fail does so here, before any packet is touched, but for attaching itself.
    fn start(setup: Setup, mut inbox: Inbox<'a>) -> Result<Self, Error> {
        let Setup {
            file,
            reader,
            config,
            blocklists,
            mut network,
        } = setup;
        let slot_use = SlotUse::default();
        let interfaces = Interfaces::find(&config, &network, slot_use.clone())?;
        // Asked for while the datapath is loaded.
        let targets = targets(&config);
        inbox.outbox.send(Outcome::Track(targets.clone()));
        let pins = PinDir::open(&config.datapath.pin_dir)?;
        let first = state::plan_of_file(&config, &blocklists)?;
        let mut datapath = Datapath::load_for(&config.limits, &first.needs)?;
        datapath.pin(pins)?;
        inbox.check()?;

        let mut missed = Changes::default();
        inbox.await_answers(&mut network, &mut missed, &targets)?;
        let mut in_force = InForce::default();
        in_force
            .put(&mut datapath, &settings(&config), |before| {
                // Compiled already.
                let before = Desired {
                    firewall: first.firewall.clone(),
                    ..Desired::clone(before)
                };
                plan(&before, &config, &blocklists, &network, &interfaces, None)
            })
            .map_err(|(error, _)| error)?;
        let mut faults = Faults::default();
        faults.check(&config, in_force.plan(), &network, &interfaces, None);
        let mut mtus = Mtus::default();
        mtus.check(in_force.plan(), &interfaces);
        inbox.check()?;

        let modes = interfaces.attach_all(&mut datapath, config.datapath.xdp_mode)?;
        capabilities::drop_unneeded();
        let sweeper = datapath.shared_sweeper()?;
        let sweeping = Sweeping::start(sweeper, &config.timeouts, in_force.bindings(), slot_use)
            .map_err(|source| Error::System {
                action: "start the sweep's thread",
                source,
            })?;
        blocklists::log_changes(&Contents::new(), &blocklists);
        info!(
            "balancing {} over {modes}; maps in {}",
            number::count(config.services.len() as u64, "service", "services"),
            config.datapath.pin_dir.display()
        );
        Ok(Writer {
            file,
            reader,
            config,
            targets,
            blocklists,
            sweeping,
            datapath,
            interfaces,
            network,
            inbox,
            in_force,
            faults,
            mtus,
            exhausted: Watch::default(),
            is_behind: false,
            missed,
        })
    }

    fn serve(&mut self) {
        self.catch_up();
        let mut next_look = Instant::now() + LOOK;
        let mut next_clock = Instant::now() + CLOCK_AGAIN;
        loop {
            let due = self.interfaces.next_deadline();
            match self.inbox.next(due.unwrap_or(next_look).min(next_look)) {
                Some(Order::Network(update, changes)) => {
                    self.network.update(update);
                    self.follow(&changes);
                }
                Some(Order::Reload) => {
                    let answer = self.reload();
                    self.catch_up();
                    self.inbox.outbox.send(Outcome::Reloaded(answer));
                }
                Some(Order::Stop) => return,
                None => {}
            }
            let now = Instant::now();
            if self
                .interfaces
                .next_deadline()
                .is_some_and(|due| due <= now)
            {
                self.follow(&Changes::default());
            }
            if now >= next_look {
                next_look = now + LOOK;
                self.warn_if_exhausted(now);
                if self.is_behind {
                    self.follow(&Changes::default());
                }
            }
            if now >= next_clock {
                next_clock = now + CLOCK_AGAIN;
                if let Err(error) = self.datapath.read_clock() {
                    debug!("{error}");
                }
            }
        }
    }

    /// The network has changed: interfaces, routes, neighbours.
    fn follow(&mut self, changes: &Changes) {
        let former = places(&self.interfaces);
        self.interfaces.follow(
            &self.config,
            &self.network,
            &mut self.datapath,
            Instant::now(),
        );
        let whole = changes.links || self.is_behind || former != places(&self.interfaces);
        let addresses = changes.targets.iter().map(|target| target.address);
        let changed: Option<BTreeSet<IpAddr>> = (!whole).then(|| addresses.collect());
        // The part that was written stays in force; the next change starts from it.
        match self.put_in_force(changed.as_ref()) {
            Ok(()) => self.is_behind = false,
            Err((error, _)) => {
                // Once, not with each time that it is tried again.
                if !self.is_behind {
                    error!("the network has changed, but the maps could not be updated; trying again: {error}");
                }
                self.is_behind = true;
            }
        }
        self.tell(changed.as_ref());
    }

    /// Changes that came while something else was done.
    fn catch_up(&mut self) {
        let missed = std::mem::take(&mut self.missed);
        if missed.any() {
            self.follow(&missed);
        }
    }

    /// Tells the operator what the plan in force lacks. `changed` has the addresses of the backends whose next
    /// hop may be another than before; `None`: any may.
    fn tell(&mut self, changed: Option<&BTreeSet<IpAddr>>) {
        self.faults.check(
            &self.config,
            self.in_force.plan(),
            &self.network,
            &self.interfaces,
            changed,
        );
        self.mtus.check(self.in_force.plan(), &self.interfaces);
    }

    /// Puts in force what the file, the blocklists and the network ask for now.
    /// `changed` has the addresses of the backends whose next hop may be another than in the plan in force;
    /// `None`: anything may.
    fn put_in_force(&mut self, changed: Option<&BTreeSet<IpAddr>>) -> Result<(), (Error, Former)> {
        let Writer {
            config,
            blocklists,
            network,
            interfaces,
            ..
        } = self;
        let put = self
            .in_force
            .put(&mut self.datapath, &settings(config), |before| {
                plan(before, config, blocklists, network, interfaces, changed)
            });
        self.purge();
        put
    }

    fn purge(&mut self) {
        if self.in_force.take_purge() {
            self.sweeping.purge();
        }
    }

    /// A file that cannot be used changes nothing.
    fn reload(&mut self) -> Answer {
        let file = self.file.clone();
        let mut warnings = Vec::new();
        match self.try_reload(&mut warnings) {
            Ok(()) => {
                let services = self.config.services.len();
                let count = number::count(services as u64, "service", "services");
                info!("reloaded {}: {count}", file.display());
                Answer::InForce {
                    file,
                    services,
                    warnings,
                }
            }
            Err(error) => {
                // Every fault of a file is a line of its own.
                let faults: Vec<String> = error.to_string().lines().map(str::to_owned).collect();
                for fault in &faults {
                    error!("reload refused: {fault}");
                }
                error!("keeping the previous configuration");
                Answer::Refused {
                    file,
                    faults,
                    warnings,
                }
            }
        }
    }

    fn try_reload(&mut self, said: &mut Vec<String>) -> Result<(), Error> {
        let config::Loaded {
            config,
            blocklists,
            warnings,
        } = self.reader.load(&self.file)?;
        said.extend(warnings.iter().map(ToString::to_string));
        self.check_restart(&config)?;
        let (blocklists, kept) = blocklists::reload(&blocklists, &self.blocklists)?;
        for warning in said.iter() {
            warn!("{warning}");
        }
        for fault in &kept {
            error!("{fault}");
        }
        said.extend(kept);

        // Interfaces first: attaching is what can fail, and a backend behind a new one needs its slot.
        let former_names = self.interfaces.names();
        self.interfaces
            .add(&config, &self.network, &mut self.datapath, Instant::now())?;
        let former = std::mem::replace(&mut self.config, config);
        let former_lists = std::mem::replace(&mut self.blocklists, blocklists);
        let targets = targets(&self.config);
        let others = targets != self.targets;
        if let Err((error, passed)) = self.adopt(&targets) {
            self.config = former;
            self.blocklists = former_lists;
            let settings = settings(&self.config);
            let went = self.in_force.go_back(&mut self.datapath, &settings, passed);
            self.is_behind |= !went;
            self.purge();
            self.interfaces
                .keep_only(&former_names, &mut self.datapath, Instant::now());
            if others {
                self.track(self.targets.clone());
            }
            return Err(error);
        }
        if others {
            self.targets = targets;
            self.track(self.targets.clone());
        }
        self.interfaces.keep_only(
            &self.config.datapath.interfaces,
            &mut self.datapath,
            Instant::now(),
        );
        logging::reconfigure(self.config.log);
        blocklists::log_changes(&former_lists, &self.blocklists);
        self.sweeping.set_timeouts(&self.config.timeouts);
        // An operator who reloads hears again of what is still wrong.
        self.mtus.forget();
        let wanted = &self.config.datapath.interfaces;
        if former_names.iter().any(|name| !wanted.contains(name)) {
            // Backends may stand behind an interface that is no longer ours.
            self.missed.links = true;
        } else {
            self.tell(None);
        }
        self.mend(said);
        Ok(())
    }

    /// That nothing differs that only a restart can change.
    fn check_restart(&self, next: &Config) -> Result<(), Error> {
        let (now, then) = (&self.config, next);
        for (same, key) in [
            (
                now.datapath.pin_dir == then.datapath.pin_dir,
                "datapath.pin_dir",
            ),
            (
                now.datapath.run_dir == then.datapath.run_dir,
                "datapath.run_dir",
            ),
            (
                now.datapath.xdp_mode == then.datapath.xdp_mode,
                "datapath.xdp_mode",
            ),
            (now.limits == then.limits, "[limits]"),
        ] {
            if !same {
                return Err(Error::NeedsRestart(key));
            }
        }
        Ok(())
    }

    /// Puts `self.config` in force, whose backends are `targets`.
    fn adopt(&mut self, targets: &BTreeSet<Target>) -> Result<(), (Error, Former)> {
        if *targets != self.targets {
            let new: BTreeSet<Target> = targets.difference(&self.targets).cloned().collect();
            // Those of both, or what is in force would lose its neighbours should this fail.
            self.track(self.targets.union(targets).cloned().collect());
            self.inbox
                .await_answers(&mut self.network, &mut self.missed, &new)
                .map_err(|error| (error, Former::new()))?;
        }
        self.put_in_force(None)
    }

    /// Has what drifted from the plan written as well. What was in force stays so.
    fn mend(&mut self, said: &mut Vec<String>) {
        let settings = settings(&self.config);
        if let Err(error) = self.in_force.mend(&mut self.datapath, &settings) {
            let fault = format!(
                "the new file is in force, but what drifted in the maps could not be mended; trying again: {error}"
            );
            error!("{fault}");
            said.push(fault);
            self.is_behind = true;
        }
    }

    fn track(&mut self, targets: BTreeSet<Target>) {
        self.network.retain(&targets);
        self.inbox.outbox.send(Outcome::Track(targets));
    }

    fn warn_if_exhausted(&mut self, now: Instant) {
        let count = match self.datapath.ports_exhausted() {
            Ok(count) => count,
            Err(error) => return debug!("{error}"),
        };
        let warned = self.exhausted.warned;
        let due = warned.is_none_or(|warned| now - warned >= WARN_AGAIN);
        if count > self.exhausted.seen && due {
            warn!(
                "full-nat found no free source port for {}: add addresses to datapath.addresses",
                number::count(count - self.exhausted.seen, "packet", "packets")
            );
            self.exhausted = Watch {
                seen: count,
                warned: Some(now),
            };
        }
    }
}

/// Which slot stands for which interface of the kernel.
fn places(interfaces: &Interfaces) -> Vec<(u16, u32)> {
    let taken = interfaces.taken();
    taken
        .map(|(slot, interface)| (slot, interface.ifindex))
        .collect()
}

fn targets(config: &Config) -> BTreeSet<Target> {
    let services = config.services.iter();
    services
        .flat_map(|service| &service.backends)
        .map(target)
        .collect()
}

fn plan(
    previous: &Desired,
    config: &Config,
    blocklists: &Contents,
    network: &Network,
    interfaces: &Interfaces,
    changed: Option<&BTreeSet<IpAddr>>,
) -> Result<Desired, Error> {
    let own_addresses: Vec<OwnAddress> = network
        .addresses()
        .filter_map(|(ifindex, address)| {
            Some(OwnAddress {
                address,
                slot: interfaces.slot(ifindex)?,
            })
        })
        .collect();
    let hop = |backend: &config::Backend| interfaces.hop(network, &target(backend)).ok();
    let world = World {
        blocklists,
        hop: &hop,
        own_addresses: &own_addresses,
    };
    let planned = match changed {
        Some(changed) => state::replan(previous, config, &world, changed),
        None => state::plan(previous, config, &world),
    };
    Ok(planned?)
}

fn settings(config: &Config) -> Settings {
    Settings {
        timeouts: config.timeouts,
        unknown_port: config.datapath.unknown_port,
        hash_seed: config.datapath.hash_seed,
        gue_port: config.tunnel.gue_port,
        nat_ports: nat_ports::range(),
    }
}
