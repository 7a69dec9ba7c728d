//! `xdplb decap`: on a backend, takes the tunnel header off packets before its stack sees them.
//!
//! Owns the order of things: starts the program, keeps the host's addresses in it, follows its
//! interfaces, and stops it. Independent of the balancer, its maps and its pins.

pub mod program;
pub mod reasons;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Instant;

use log::{debug, error, info, warn, LevelFilter};

use crate::attempts::Refused;
use crate::capabilities;
use crate::cli::{DecapOptions, ModeName};
use crate::config::{Log, LogFormat, XdpMode};
use crate::datapath;
use crate::datapath::pins::PinDir;
use crate::datapath::reasons::Verdict;
use crate::logging;
use crate::neighbours::{self, usable_link, Neighbours};
use crate::signals::{self, Signals};
use crate::waiting::wait;
use program::{Count, Program, PINS, PREFIX_LIMIT};

/// Why it could not start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel's side.
    #[error(transparent)]
    Datapath(#[from] datapath::Error),
    /// Netlink.
    #[error(transparent)]
    Neighbours(#[from] neighbours::Error),
    /// Privileges.
    #[error(transparent)]
    Capabilities(#[from] capabilities::Missing),
    /// Signals.
    #[error(transparent)]
    Signals(#[from] signals::Error),
    /// An interface of the command line cannot be used.
    #[error("--interface: {0}")]
    Interface(String),
    /// More sources than the map holds.
    #[error("--from: {given} prefixes, and there is room for {PREFIX_LIMIT}; use wider ones")]
    Sources {
        /// How many there are.
        given: usize,
    },
    /// The system refused something basic.
    #[error("{action}: {source}")]
    System {
        /// The action that failed.
        action: &'static str,
        /// The error of the system.
        source: std::io::Error,
    },
}

/// Runs until SIGINT or SIGTERM.
///
/// # Errors
/// When it cannot start. Once it runs, faults are logged, and mended where they can be.
pub fn run(options: &DecapOptions) -> Result<(), Error> {
    // First of all: a signal during the start is answered once the start is done, and leaves nothing.
    let signals = Signals::install()?;
    let log = Log {
        level: LevelFilter::Info,
        format: LogFormat::Text,
    };
    if logging::init(log).is_err() {
        debug!("another logger is installed");
    }
    capabilities::check()?;
    Decap::start(options, signals)?.serve()
}

/// A running instance.
struct Decap {
    mode: XdpMode,
    program: Program,
    interfaces: BTreeMap<String, Place>,
    neighbours: Neighbours,
    signals: Signals,
}

/// An interface of the command line.
#[derive(Default)]
struct Place {
    /// The kernel's index; 0 while it is not attached.
    ifindex: u32,
    /// The last time that XDP could not be attached.
    refused: Option<Refused>,
}

impl Decap {
    fn start(options: &DecapOptions, signals: Signals) -> Result<Self, Error> {
        if options.from.len() > PREFIX_LIMIT {
            return Err(Error::Sources {
                given: options.from.len(),
            });
        }
        let mode = match options.xdp_mode {
            ModeName::Auto => XdpMode::Auto,
            ModeName::Native => XdpMode::Native,
            ModeName::Generic => XdpMode::Generic,
        };
        let neighbours = Neighbours::open()?;
        let network = neighbours.network();
        let names: BTreeSet<&String> = options.interface.iter().collect();
        let found = names
            .iter()
            .map(|name| {
                usable_link(name, network.links())
                    .cloned()
                    .map_err(Error::Interface)
            })
            .collect::<Result<Vec<_>, _>>()?;
        let pins = PinDir::open_for(&options.pin_dir, PINS)?;
        let mut program = Program::load(options.gue_port, &options.from)?;
        program.set_local(neighbours.local_addresses().collect())?;
        program.pin(pins)?;

        let mut attached = Vec::new();
        for link in &found {
            let mode = program.attach(link, mode)?;
            attached.push(format!("{} ({mode})", link.name));
        }
        capabilities::drop_unneeded();
        if options.from.is_empty() {
            warn!(
                "without --from, every host that can reach this one can send it tunnel packets with a forged \
                 source address inside, past the filters on the way: name the balancers with --from"
            );
        }
        info!(
            "decapsulating on {} from {}; counters in {}",
            attached.join(", "),
            listed(&options.from),
            options.pin_dir.display()
        );
        Ok(Decap {
            mode,
            program,
            interfaces: found
                .into_iter()
                .map(|link| {
                    let place = Place {
                        ifindex: link.index,
                        refused: None,
                    };
                    (link.name, place)
                })
                .collect(),
            neighbours,
            signals,
        })
    }

    fn serve(&mut self) -> Result<(), Error> {
        loop {
            let refused = self.interfaces.values().filter_map(|place| place.refused);
            let again = refused.map(Refused::again);
            let next = self.neighbours.next_deadline(Instant::now());
            self.wait(again.fold(next, Instant::min))?;
            if self.signals.take()?.stop {
                self.sum_up();
                return Ok(());
            }
            if let Err(error) = self.neighbours.turn(Instant::now()) {
                // The module asks anew.
                warn!("{error}");
            }
            self.follow(Instant::now());
        }
    }

    fn wait(&self, until: Instant) -> Result<(), Error> {
        let descriptors = [self.signals.as_fd(), self.neighbours.as_fd()];
        wait(&descriptors, until).map_err(|source| Error::System {
            action: "wait for events",
            source,
        })
    }

    /// The host's addresses, and interfaces that went and came back under their name. Tries again what was
    /// refused, when it is time.
    fn follow(&mut self, now: Instant) {
        let local: BTreeSet<IpAddr> = self.neighbours.local_addresses().collect();
        if local != *self.program.local() {
            if let Err(error) = self.program.set_local(local) {
                error!(
                    "the host's addresses have changed, but the maps could not be updated: {error}"
                );
            }
        }
        let network = self.neighbours.network();
        for (name, place) in &mut self.interfaces {
            let Some(link) = network.link_by_name(name) else {
                if place.ifindex != 0 {
                    warn!("{name}: the interface has gone; xdplb attaches again when it is back");
                    self.program.detach(name);
                }
                *place = Place::default();
                continue;
            };
            let waits = |refused: Refused| refused.waits(link.index, now);
            if link.index == place.ifindex || place.refused.is_some_and(waits) {
                continue;
            }
            self.program.detach(name);
            *place = match self.program.attach(link, self.mode) {
                Ok(mode) => {
                    info!("{name}: attached again ({mode})");
                    Place {
                        ifindex: link.index,
                        refused: None,
                    }
                }
                Err(error) => {
                    let refused = Refused::new(place.refused, link.index, now);
                    warn!("{error}; {refused}");
                    Place {
                        ifindex: 0,
                        refused: Some(refused),
                    }
                }
            };
        }
    }

    fn sum_up(&self) {
        match self.program.counts() {
            Ok(counts) => info!("stopping; {}", summary(&counts)),
            Err(error) => warn!("stopping; {error}"),
        }
    }
}

fn listed(sources: &[crate::prefix::Prefix]) -> String {
    if sources.is_empty() {
        return "any source".into();
    }
    let texts: Vec<String> = sources.iter().map(ToString::to_string).collect();
    texts.join(", ")
}

/// The counters in one line.
fn summary(counts: &[Count]) -> String {
    let of = |wanted: &dyn Fn(&Count) -> bool| {
        let parts: Vec<String> = counts
            .iter()
            .filter(|count| count.packets > 0 && wanted(count))
            .map(|count| {
                let bytes = if count.decapsulated {
                    format!(" ({} bytes)", count.bytes)
                } else {
                    String::new()
                };
                format!("{} {}{bytes}", count.packets, count.reason.name)
            })
            .collect();
        if parts.is_empty() {
            "none".into()
        } else {
            parts.join(", ")
        }
    };
    format!(
        "packets decapsulated: {}; left alone: {}; dropped: {}",
        of(&|count| count.decapsulated),
        of(&|count| !count.decapsulated && count.reason.verdict == Verdict::Pass),
        of(&|count| count.reason.verdict == Verdict::Drop),
    )
}

#[cfg(test)]
mod tests {
    use super::reasons::REASONS;
    use super::*;

    #[test]
    fn a_summary_names_what_there_was() {
        let count = |name: &str, decapsulated, packets, bytes| Count {
            reason: REASONS
                .iter()
                .find(|reason| reason.name == name)
                .expect(name),
            decapsulated,
            packets,
            bytes,
        };
        assert_eq!(
            summary(&[
                count("ipip_4in4", true, 0, 0),
                count("no_tunnel", false, 0, 0)
            ]),
            "packets decapsulated: none; left alone: none; dropped: none"
        );
        assert_eq!(
            summary(&[
                count("ipip_4in4", true, 3, 180),
                count("gue_6in6", true, 1, 60),
                count("no_tunnel", false, 7, 0),
                count("bad_ecn", false, 2, 0),
            ]),
            "packets decapsulated: 3 ipip_4in4 (180 bytes), 1 gue_6in6 (60 bytes); \
             left alone: 7 no_tunnel; dropped: 2 bad_ecn"
        );
    }
}
