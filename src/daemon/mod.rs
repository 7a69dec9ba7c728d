//! The control loop: starts the datapath, keeps it equal to the file and to what the network looks like,
//! and stops it.
//!
//! Owns the order of things. What the maps are to hold is worked out in [`crate::state`], facts of the
//! network come from [`crate::neighbours`], writing is [`crate::datapath`]'s.

mod blocklists;
mod in_force;
mod interfaces;
mod mtus;
mod sweeping;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use log::{debug, error, info, warn};

use crate::capabilities;
use crate::config::blocklist::{self, Contents};
use crate::config::{self, Config, Family, Forward};
use crate::datapath::pins::PinDir;
use crate::datapath::{self, Datapath, Settings};
use crate::logging;
use crate::neighbours::{self, Neighbours, Network, Target, Turn};
use crate::signals::{self, Asked, Signals};
use crate::state::{self, Desired, Health, OwnAddress, World};
use crate::waiting::wait;
use in_force::{Former, InForce};
use interfaces::Interfaces;
use mtus::Mtus;
use sweeping::Sweeping;

/// How long a start waits for neighbours that have not answered yet.
const FIRST_ANSWERS: Duration = Duration::from_secs(1);
/// How often the counters are looked at that call for a warning.
const LOOK: Duration = Duration::from_millis(250);
/// How often a condition that persists is logged.
const WARN_AGAIN: Duration = Duration::from_secs(60);

/// Why the daemon could not start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file.
    #[error(transparent)]
    Config(#[from] config::Error),
    /// The kernel's side.
    #[error(transparent)]
    Datapath(#[from] datapath::Error),
    /// Netlink.
    #[error(transparent)]
    Neighbours(#[from] neighbours::Error),
    /// The plan does not fit.
    #[error(transparent)]
    Plan(#[from] state::PlanError),
    /// Privileges.
    #[error(transparent)]
    Capabilities(#[from] capabilities::Missing),
    /// Signals.
    #[error(transparent)]
    Signals(#[from] signals::Error),
    /// An interface of the file cannot be used.
    #[error("datapath.interfaces: {0}")]
    Interface(String),
    /// A reload asks for what only a restart can change.
    #[error("{0} can only change with a restart: stop xdplb and start it again")]
    NeedsRestart(&'static str),
    /// The system refused something basic.
    #[error("{action}: {source}")]
    System {
        /// What was tried.
        action: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
}

/// Runs until SIGINT or SIGTERM.
///
/// # Errors
/// When it cannot start. Once it runs, what goes wrong is logged and mended where it can be.
pub fn run(file: &Path) -> Result<(), Error> {
    // First of all: what is asked for during the start is done after it.
    let signals = Signals::install()?;
    let loaded = config::load(file)?;
    if logging::init(loaded.config.log).is_err() {
        debug!("another logger is installed");
    }
    for warning in &loaded.warnings {
        warn!("{warning}");
    }
    let blocklists = blocklist::load_all(&loaded.blocklists, &Contents::new())?;
    capabilities::check()?;
    match Daemon::start(file, loaded.config, blocklists, signals)? {
        Started::Running(mut daemon) => daemon.serve(),
        Started::Stopped => {
            info!("stopped before the start was done");
            Ok(())
        }
    }
}

/// How a start ended.
enum Started {
    Running(Box<Daemon>),
    /// A signal asked for it.
    Stopped,
}

/// A running instance.
struct Daemon {
    file: PathBuf,
    config: Config,
    blocklists: Contents,
    // Stopped before the datapath goes.
    sweeping: Sweeping,
    datapath: Datapath,
    interfaces: Interfaces,
    neighbours: Neighbours,
    signals: Signals,
    /// What signals have asked for and is still to be done.
    asked: Asked,
    in_force: InForce,
    /// Addresses of backends that cannot be used, with the reasons that were logged.
    faults: Faults,
    mtus: Mtus,
    exhausted: Watch,
}

/// Addresses of backends, with each reason why one there counts as down.
type Faults = BTreeSet<(IpAddr, String)>;

/// A counter whose growth is worth a warning.
struct Watch {
    seen: u64,
    warned: Option<Instant>,
}

impl Daemon {
    /// Everything that can fail does so here, before any packet is touched, but for attaching itself.
    fn start(
        file: &Path,
        config: Config,
        blocklists: Contents,
        signals: Signals,
    ) -> Result<Started, Error> {
        let mut asked = Asked::default();
        let mut neighbours = Neighbours::open()?;
        let interfaces = Interfaces::find(&config, &neighbours.network())?;
        let pins = PinDir::open(&config.datapath.pin_dir)?;
        let mut datapath = Datapath::load(&config.limits)?;
        datapath.pin(pins)?;
        asked.add(signals.take()?);
        if asked.stop {
            return Ok(Started::Stopped);
        }

        neighbours.track(targets(&config));
        wait_for_answers(&mut neighbours, &targets(&config))?;
        asked.add(signals.take()?);
        if asked.stop {
            return Ok(Started::Stopped);
        }
        let mut in_force = InForce::default();
        in_force
            .put(&mut datapath, &settings(&config), |before| {
                plan(
                    before,
                    &config,
                    &blocklists,
                    &neighbours.network(),
                    &interfaces,
                )
            })
            .map_err(|(error, _)| error)?;
        let faults = faults(&config, in_force.plan(), &neighbours.network(), &interfaces);
        log_faults(&config, &Faults::new(), &faults);
        let mut mtus = Mtus::default();
        mtus.check(in_force.plan(), &interfaces);

        let modes = interfaces.attach_all(&mut datapath, config.datapath.xdp_mode)?;
        capabilities::drop_unneeded();
        let sweeping = Sweeping::start(datapath.sweeper()?, &config.timeouts, in_force.bindings())
            .map_err(|source| Error::System {
                action: "start the sweep's thread",
                source,
            })?;
        blocklists::log_changes(&Contents::new(), &blocklists);
        info!(
            "balancing {} services over {modes}; maps in {}",
            config.services.len(),
            config.datapath.pin_dir.display()
        );
        Ok(Started::Running(Box::new(Daemon {
            file: file.into(),
            config,
            blocklists,
            sweeping,
            datapath,
            interfaces,
            neighbours,
            signals,
            asked,
            in_force,
            faults,
            mtus,
            exhausted: Watch {
                seen: 0,
                warned: None,
            },
        })))
    }

    fn serve(&mut self) -> Result<(), Error> {
        let mut next_look = Instant::now() + LOOK;
        loop {
            self.asked.add(self.signals.take()?);
            if self.asked.stop {
                info!("stopping");
                return Ok(());
            }
            if std::mem::take(&mut self.asked.reload) {
                self.reload();
            }
            let next = self.neighbours.next_deadline(Instant::now());
            self.wait(next.min(next_look))?;
            let now = Instant::now();
            let changed = heard(self.neighbours.turn(now));
            if now >= next_look {
                next_look = now + LOOK;
                self.warn_if_exhausted(now);
            }
            if changed {
                self.follow();
            }
        }
    }

    fn wait(&self, until: Instant) -> Result<(), Error> {
        let descriptors = [self.signals.as_fd(), self.neighbours.as_fd()];
        wait(&descriptors, until).map_err(|source| Error::System {
            action: "wait for events",
            source,
        })
    }

    /// The network has changed: interfaces, routes, neighbours.
    fn follow(&mut self) {
        self.interfaces
            .follow(&self.config, &self.neighbours.network(), &mut self.datapath);
        // What was written of it holds; the next change goes on from there.
        if let Err((error, _)) = self.put_in_force() {
            error!("the network has changed, and the datapath could not follow: {error}");
        }
        let faults = faults(
            &self.config,
            self.in_force.plan(),
            &self.neighbours.network(),
            &self.interfaces,
        );
        log_faults(&self.config, &self.faults, &faults);
        self.faults = faults;
        self.mtus.check(self.in_force.plan(), &self.interfaces);
    }

    /// Puts in force what the file, the blocklists and the network ask for now.
    fn put_in_force(&mut self) -> Result<(), (Error, Former)> {
        let Daemon {
            config,
            blocklists,
            neighbours,
            interfaces,
            ..
        } = self;
        let network = neighbours.network();
        let put = self
            .in_force
            .put(&mut self.datapath, &settings(config), |before| {
                plan(before, config, blocklists, &network, interfaces)
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
    fn reload(&mut self) {
        match self.try_reload() {
            Ok(()) => info!(
                "reloaded {}: {} services",
                self.file.display(),
                self.config.services.len()
            ),
            Err(error) => {
                // Every fault of a file is a line of its own.
                for line in error.to_string().lines() {
                    error!("reload refused: {line}");
                }
                error!("the configuration before it stays in force");
            }
        }
    }

    fn try_reload(&mut self) -> Result<(), Error> {
        let config::Loaded {
            config,
            blocklists,
            warnings,
        } = config::load(&self.file)?;
        if config.datapath.pin_dir != self.config.datapath.pin_dir {
            return Err(Error::NeedsRestart("datapath.pin_dir"));
        }
        if config.datapath.xdp_mode != self.config.datapath.xdp_mode {
            return Err(Error::NeedsRestart("datapath.xdp_mode"));
        }
        if config.limits != self.config.limits {
            return Err(Error::NeedsRestart("[limits]"));
        }
        let blocklists = blocklists::reload(&blocklists, &self.blocklists)?;
        for warning in &warnings {
            warn!("{warning}");
        }

        // Interfaces first: attaching is what can fail, and a backend behind a new one needs its slot.
        let former_names = self.interfaces.names();
        self.interfaces
            .add(&config, &self.neighbours.network(), &mut self.datapath)?;
        let former = std::mem::replace(&mut self.config, config);
        let former_lists = std::mem::replace(&mut self.blocklists, blocklists);
        if let Err((error, passed)) = self.adopt(&former) {
            self.config = former;
            self.blocklists = former_lists;
            self.interfaces.keep_only(&former_names, &mut self.datapath);
            self.neighbours.track(targets(&self.config));
            let settings = settings(&self.config);
            self.in_force.go_back(&mut self.datapath, &settings, passed);
            self.purge();
            return Err(error);
        }
        self.interfaces
            .keep_only(&self.config.datapath.interfaces, &mut self.datapath);
        logging::reconfigure(self.config.log);
        blocklists::log_changes(&former_lists, &self.blocklists);
        self.sweeping.set_timeouts(&self.config.timeouts);
        // Whoever reloads hears again what is still wrong.
        self.mtus.forget();
        // Backends may have stood behind an interface that is no longer ours.
        self.follow();
        Ok(())
    }

    /// Puts `self.config` in force after `former`.
    fn adopt(&mut self, former: &Config) -> Result<(), (Error, Former)> {
        let known = targets(former);
        let targets = targets(&self.config);
        self.neighbours.track(targets.clone());
        let new: BTreeSet<Target> = targets.difference(&known).cloned().collect();
        wait_for_answers(&mut self.neighbours, &new).map_err(|error| (error, Former::new()))?;
        self.put_in_force()
    }

    fn warn_if_exhausted(&mut self, now: Instant) {
        let count = match self.datapath.ports_exhausted() {
            Ok(count) => count,
            Err(error) => return debug!("{error}"),
        };
        let due = self
            .exhausted
            .warned
            .is_none_or(|warned| now - warned >= WARN_AGAIN);
        if count > self.exhausted.seen && due {
            warn!(
                "full-nat found no free source port for {} packets: add addresses to datapath.addresses",
                count - self.exhausted.seen
            );
            self.exhausted = Watch {
                seen: count,
                warned: Some(now),
            };
        }
    }
}

/// Netlink errors are transient: the module asks anew.
fn heard(result: Result<Turn, neighbours::Error>) -> bool {
    match result {
        Ok(turn) => turn.changed(),
        Err(error) => {
            warn!("{error}");
            false
        }
    }
}

fn targets(config: &Config) -> BTreeSet<Target> {
    config
        .services
        .iter()
        .flat_map(|service| &service.backends)
        .map(target)
        .collect()
}

fn target(backend: &config::Backend) -> Target {
    Target {
        address: backend.address,
        interface: backend.interface.clone(),
        mac: backend.mac,
    }
}

/// Gives neighbours that have to be asked a moment to answer, so that backends that are new do not begin
/// as down.
fn wait_for_answers(neighbours: &mut Neighbours, targets: &BTreeSet<Target>) -> Result<(), Error> {
    let deadline = Instant::now() + FIRST_ANSWERS;
    loop {
        let now = Instant::now();
        neighbours.turn(now)?;
        let network = neighbours.network();
        if now >= deadline || targets.iter().all(|target| network.is_resolved(target)) {
            return Ok(());
        }
        let until = neighbours.next_deadline(now).min(deadline);
        wait(&[neighbours.as_fd()], until).map_err(|source| Error::System {
            action: "wait for neighbours",
            source,
        })?;
    }
}

/// Why backends that the file may have up count as down.
fn faults(
    config: &Config,
    desired: &Desired,
    network: &Network,
    interfaces: &Interfaces,
) -> Faults {
    let unreachable = config.services.iter().flat_map(|service| {
        service.backends.iter().filter_map(|backend| {
            let obstacle = interfaces.obstacle(network, service.forward, &target(backend))?;
            Some((backend.address, obstacle))
        })
    });
    let without_source = desired
        .backends
        .values()
        .filter(|backend| backend.health == Health::NoSource)
        .map(|backend| {
            let (address, forward) = (backend.address, backend.forward);
            (address, no_source(forward, Family::of(address)))
        });
    unreachable.chain(without_source).collect()
}

fn no_source(forward: Forward, family: Family) -> String {
    let keys = if forward.is_tunnel() {
        "tunnel.source or datapath.addresses"
    } else {
        "datapath.addresses"
    };
    format!(
        "{forward} has no {family} address of this host to send from; write one into {keys}, or give \
         one to an interface of datapath.interfaces"
    )
}

/// Logs what has become unusable or usable since the last time.
fn log_faults(config: &Config, known: &Faults, current: &Faults) {
    for (address, reason) in current.difference(known) {
        warn!("backend {address} counts as down: {reason}");
    }
    let current: BTreeSet<IpAddr> = current.iter().map(|(address, _)| *address).collect();
    let configured: BTreeSet<IpAddr> = targets(config)
        .iter()
        .map(|target| target.address)
        .collect();
    let mended: BTreeSet<IpAddr> = known
        .iter()
        .map(|(address, _)| *address)
        .filter(|address| configured.contains(address) && !current.contains(address))
        .collect();
    for address in mended {
        info!("backend {address} is resolved");
    }
}

fn plan(
    previous: &Desired,
    config: &Config,
    blocklists: &Contents,
    network: &Network,
    interfaces: &Interfaces,
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
    Ok(state::plan(
        previous,
        config,
        &World {
            blocklists,
            hop: &hop,
            own_addresses: &own_addresses,
        },
    )?)
}

fn settings(config: &Config) -> Settings {
    Settings {
        timeouts: config.timeouts,
        unknown_port: config.datapath.unknown_port,
        hash_seed: config.datapath.hash_seed,
        gue_port: config.tunnel.gue_port,
        nat_ports: interfaces::nat_ports(),
    }
}
