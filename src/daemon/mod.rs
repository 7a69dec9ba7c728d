//! The daemon: balances until it is told to stop.
//!
//! Three threads, and what each owns:
//!
//! - The *control loop* (this file, the main thread) owns signals, the network's facts
//!   ([`crate::neighbours`]) and the control socket ([`crate::control`]). It never waits for anything but all
//!   of these at once, and works for milliseconds at most before it waits again: clients, timers and later
//!   the backends' health depend on it.
//! - The *writer* (`writer`) owns the configuration in force, the datapath and its interfaces, and the plan
//!   that the maps hold. It loads files, plans ([`crate::state`]), writes and attaches
//!   ([`crate::datapath`]), however long that takes.
//! - The *sweep* (`sweeping`) owns walking through the connection tables.
//!
//! The loop sends the writer orders, one for the network and one for a reload at a time, and gets outcomes
//! back (`orders`); the writer tells the sweep what to do. Facts of the network go over as plain values.

mod blocklists;
mod error;
mod faults;
mod in_force;
mod interfaces;
mod mtus;
mod orders;
mod reloads;
mod slots;
mod stops;
mod sweeping;
mod writer;

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Sender};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Instant;

use log::{debug, info, warn};

use crate::config::blocklist::{self, Contents};
use crate::control::run_dir::RunDir;
use crate::control::server::{ClientId, Server};
use crate::control::{Answer, Request};
use crate::neighbours::{Neighbours, Target};
use crate::signals::Signals;
use crate::waiting::wait;
use crate::{capabilities, config, logging};
pub use error::Error;
use orders::{outcomes, Changes, Order, Outcome, Outcomes};
use reloads::Reloads;
use stops::Stops;
use writer::Setup;

/// Targets that are handed to the writer in one order.
const TARGETS_AT_ONCE: usize = 1024;

/// Runs until SIGINT or SIGTERM.
///
/// # Errors
/// When it cannot start. Once it runs, faults are logged, and mended where they can be.
pub fn run(file: &Path) -> Result<(), Error> {
    // First of all: a signal that comes during the start is acted on after it.
    let signals = Signals::install()?;
    let mut reader = config::Reader::default();
    let config::Loaded {
        config,
        blocklists,
        warnings,
    } = reader.load(file)?;
    if logging::init(config.log).is_err() {
        debug!("another logger is installed");
    }
    for warning in &warnings {
        warn!("{warning}");
    }
    let blocklists = blocklist::load_all(&blocklists, &Contents::new())?;
    capabilities::check()?;
    let run_dir = RunDir::open(&config.datapath.run_dir)?;
    let server = Server::bind(&run_dir).map_err(|source| Error::System {
        action: "listen at control.sock in datapath.run_dir",
        source,
    })?;
    let neighbours = Neighbours::open()?;
    let setup = Setup {
        file: file.into(),
        reader,
        config,
        blocklists,
        network: neighbours.network(),
    };
    let done = Daemon::start(signals, neighbours, server, setup)?.serve();
    drop(run_dir);
    done
}

/// The control loop.
struct Daemon {
    signals: Signals,
    neighbours: Neighbours,
    server: Server,
    writer: Writer,
    reloads: Reloads<Asker>,
    /// Of the network, since the writer last had it.
    changes: Changes,
    /// The writer has not taken the last network yet.
    network_under_way: bool,
    stops: Stops,
}

/// The origin of a reload request.
#[derive(Debug, Clone, Copy)]
enum Asker {
    Signal,
    Client(ClientId),
}

/// The writer's thread. Dropping it ends it.
struct Writer {
    orders: Sender<Order>,
    outcomes: Outcomes,
    stopping: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    fn start(setup: Setup) -> io::Result<Self> {
        let (orders, inbox) = mpsc::channel();
        let (outbox, outcomes) = outcomes()?;
        let stopping = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stopping);
        let thread = thread::Builder::new()
            .name("writer".into())
            .spawn(move || writer::run(setup, inbox, &outbox, &told))?;
        Ok(Writer {
            orders,
            outcomes,
            stopping,
            thread: Some(thread),
        })
    }

    /// That it has ended shows in the outcomes.
    fn send(&self, order: Order) {
        let _ = self.orders.send(order);
    }

    fn stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
        self.send(Order::Stop);
    }

    fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.stop();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Daemon {
    fn start(
        signals: Signals,
        neighbours: Neighbours,
        server: Server,
        setup: Setup,
    ) -> Result<Self, Error> {
        let writer = Writer::start(setup).map_err(|source| Error::System {
            action: "start the writer's thread",
            source,
        })?;
        // Loading and attaching are the writer's, which gives them up when it has started.
        capabilities::drop_unneeded();
        Ok(Daemon {
            signals,
            neighbours,
            server,
            writer,
            reloads: Reloads::default(),
            changes: Changes::default(),
            network_under_way: false,
            stops: Stops::new(),
        })
    }

    fn serve(&mut self) -> Result<(), Error> {
        loop {
            let now = Instant::now();
            self.take_signals()?;
            for (client, Request::Reload {}) in self.server.turn(now) {
                self.ask_reload(Asker::Client(client));
            }
            self.writer.outcomes.clear();
            while let Some(outcome) = self.writer.outcomes.next()? {
                if let Outcome::Ended(ended) = outcome {
                    return ended;
                }
                self.take(outcome);
            }
            self.hear(now);
            self.wait(now)?;
        }
    }

    fn take_signals(&mut self) -> Result<(), Error> {
        let asked = self.signals.take()?;
        if asked.reload {
            self.ask_reload(Asker::Signal);
        }
        if asked.stop && !self.writer.is_stopping() {
            info!("stopping");
            self.writer.stop();
            for asker in self.reloads.take_all() {
                self.answer(asker, &stopping());
            }
        }
        Ok(())
    }

    fn ask_reload(&mut self, asker: Asker) {
        if self.writer.is_stopping() {
            self.answer(asker, &stopping());
        } else if self.reloads.ask(asker) {
            self.begin_reload();
        }
    }

    fn begin_reload(&mut self) {
        self.stops.take();
        self.writer.send(Order::Reload);
    }

    fn take(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Taken => self.network_under_way = false,
            Outcome::Track(targets) => self.neighbours.track(targets),
            Outcome::Reloaded(answer) => {
                let (askers, again) = self.reloads.done();
                for asker in askers {
                    self.answer(asker, &answer);
                }
                debug!("during the reload {}", self.stops.take());
                if again {
                    self.begin_reload();
                }
            }
            Outcome::Started | Outcome::Ended(_) => {}
        }
    }

    /// The log has told who sent a signal.
    fn answer(&mut self, asker: Asker, answer: &Answer) {
        if let Asker::Client(client) = asker {
            self.server.answer(client, answer, Instant::now());
        }
    }

    /// Takes in what the network says, and hands it on once the writer can have it.
    fn hear(&mut self, now: Instant) {
        match self.neighbours.turn(now) {
            Ok(turn) => self.changes.add(Changes {
                links: turn.links,
                targets: turn.targets.into_iter().collect(),
            }),
            // Transient: the module asks anew.
            Err(error) => warn!("{error}"),
        }
        if self.changes.any() && !self.network_under_way {
            self.network_under_way = true;
            let changes = self.changes.take(TARGETS_AT_ONCE);
            let update = self.neighbours.update(&changes.targets);
            self.writer.send(Order::Network(update, changes));
        }
    }

    fn wait(&mut self, now: Instant) -> Result<(), Error> {
        let deadlines = [
            Some(self.neighbours.next_deadline(now)),
            self.server.deadline(),
        ];
        let until = deadlines.into_iter().flatten().min().unwrap_or(now);
        let descriptors = [
            self.signals.as_fd(),
            self.neighbours.as_fd(),
            self.server.as_fd(),
            self.writer.outcomes.as_fd(),
        ];
        self.stops.end();
        let waited = wait(&descriptors, until);
        self.stops.begin();
        waited.map_err(|source| Error::System {
            action: "wait for events",
            source,
        })
    }
}

fn stopping() -> Answer {
    Answer::Error {
        error: Error::Stopping.to_string(),
    }
}

fn target(backend: &config::Backend) -> Target {
    Target {
        address: backend.address,
        interface: backend.interface.clone(),
        mac: backend.mac,
    }
}
