//! Errors between the program and the kernel, for the operator.

use std::io;
use std::path::PathBuf;

use libbpf_rs::MapCore;

/// Why the kernel or a map refused.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel did not take the programs or maps.
    #[error("the kernel refused the datapath: {source:#}{remedy}")]
    Load {
        /// libbpf's error.
        source: libbpf_rs::Error,
        /// The messages of libbpf, and the remedy; begins with a separator.
        remedy: String,
    },
    /// A call on one map failed.
    #[error("cannot {action} the map {map}: {source}")]
    Map {
        /// Its name.
        map: String,
        /// The action that failed.
        action: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// A map is not of the shape that this program was built for.
    #[error("the map {map} has another layout than this xdplb knows; it belongs to another version: stop that one first")]
    Layout {
        /// Its name.
        map: String,
    },
    /// One of the sweep's programs did not run.
    #[error("cannot run the program {program}: {source}; xdplb needs CAP_BPF")]
    Program {
        /// Its name.
        program: String,
        /// Why.
        source: io::Error,
    },
    /// The `clock` program did not run.
    #[error("cannot read the kernel's jiffies: {source:#}; xdplb needs CAP_BPF")]
    Clock {
        /// libbpf's error.
        source: libbpf_rs::Error,
    },
    /// The system does not say how long a jiffy lasts.
    #[error("cannot read the resolution of CLOCK_MONOTONIC_COARSE: {0}")]
    Tick(io::Error),
    /// XDP could not be attached to an interface.
    #[error("cannot attach XDP to {interface}: {reason}")]
    Attach {
        /// Its name.
        interface: String,
        /// Why, and what to do.
        reason: String,
    },
    /// Something about the pin directory.
    #[error("{}: {reason}", path.display())]
    Pins {
        /// The directory, or a file in it.
        path: PathBuf,
        /// Why, and what to do.
        reason: String,
    },
    /// More VIPs with port ranges than the trie holds.
    #[error("the VIPs and port ranges of the services are {needed} prefixes, and there is room for {room}: raise limits.services and restart, or use wider ranges")]
    Bindings {
        /// How many there are.
        needed: usize,
        /// How many there may be.
        room: usize,
    },
    /// More rules or prefixes than the firewall's maps hold.
    #[error("the firewall needs {needed} {what}, and there is room for {room}: {remedy}")]
    FirewallRoom {
        /// Of what.
        what: &'static str,
        /// How many there are.
        needed: usize,
        /// How many there may be.
        room: usize,
        /// The remedy.
        remedy: &'static str,
    },
    /// A trie holds the new elements of a change beside those that are to go.
    #[error("{needed} prefixes of the map {map}, those in force and those to come, do not fit beside each other: there is room for {room}; first reload a file without those that are to go")]
    Beside {
        /// Its name.
        map: String,
        /// How many there would be for a moment.
        needed: usize,
        /// How many there may be.
        room: usize,
    },
    /// The maps could not be made larger while they are in use.
    #[error("the file needs larger tables ({maps}), and there can be none beside those in use: {source}; or stop xdplb and start it with this file")]
    Growth {
        /// Their names.
        maps: String,
        /// Why.
        source: Box<Error>,
    },
    /// All Maglev regions are taken.
    #[error("no room for the Maglev table of service {service}: raise limits.services or limits.backends and restart")]
    Regions {
        /// Its name.
        service: String,
    },
}

impl Error {
    pub(super) fn map(map: &impl MapCore, action: &'static str, source: io::Error) -> Error {
        Error::Map {
            map: map.name().to_string_lossy().into_owned(),
            action,
            source,
        }
    }
}
