//! xdplb: a layer-4 load balancer in XDP.
//!
//! # The way of a configuration value
//!
//! Data goes one way. Here is the line `weight = 10` of a `[[service.backend]]` on its way from the file
//! to a packet; on the left the form that it has, on the right the module that turns it into the next.
//!
//! ```text
//! lb.toml    weight = 10
//!   |          config::document   TOML, with the line and column of each value
//!   |          config::raw        the keys of each table; config::value reads one value: 0 to 1000
//!   v
//! raw        Option<At<u16>>: 10, at line 21, column 11
//!   |          config::validate   the rules between values; the defaults, here 1
//!   v
//! Config     Backend { weight: 10, .. }: valid, and nothing after this point asks again
//!   |          state::plan        with facts of the world, and ids from the plan before
//!   v
//! Desired    backend 7 has weight 10, and its share of the slots in its service's Maglev table
//!   |          datapath::apply    compares with the maps and writes the difference only
//!   v
//! maps       backends[7].weight = 10; maglev[...] = 7 in each of these slots
//!   |          bpf/xdp_lb.bpf.c   hash of the flow -> slot -> backend 7
//!   v
//! packet
//! ```
//!
//! Everything before the maps is pure: [`config`] reads text, and [`state`] works out plain values. Both
//! are tested without root. [`datapath`] is the only part that knows libbpf; C and Rust share the structs of
//! `include/xdp_lb.h`, which [`datapath::abi`] has as Rust types.
//!
//! # Facts of the world
//!
//! They enter at [`state::plan()`], as plain values in a [`state::World`], and change the desired state as
//! an edit of the file does; the same diff then writes what they change.
//!
//! - **Next hops** of backends, and the interfaces' own addresses, from [`neighbours`], which follows links,
//!   addresses, routes and neighbours through netlink. A backend without a next hop counts as down.
//! - **Links**: [`daemon`] attaches XDP to an interface that comes back, and gives each interface its slot,
//!   which a next hop names.
//! - **Contents of blocklists**, from [`config::blocklist`]. The configuration has only their names.
//! - **Health** of a backend is worked out from these facts ([`state::Health`]); checks of its service
//!   belong here too.
//!
//! # Around it
//!
//! - [`daemon`] owns the order of things: start, reload, events of the network, the end.
//! - [`commands`] are one file each. Most read the pinned maps, through [`datapath::view`], so they show the
//!   state that packets meet; `check` goes the way above as far as the desired state.
//! - [`cli`] describes the command line and does nothing.
//! - [`decap`] runs on backends, with an XDP program of its own, and shares only the tools.

mod attempts;
pub mod capabilities;
pub mod cli;
pub mod commands;
pub mod config;
pub mod control;
pub mod daemon;
pub mod datapath;
pub mod decap;
pub mod logging;
pub mod mtu;
pub mod nat_ports;
pub mod neighbours;
pub mod number;
pub mod prefix;
pub mod signals;
pub mod state;
mod waiting;
