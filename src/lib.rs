//! xdplb: a layer-4 load balancer in XDP.
//!
//! Data goes one way: `lb.toml` → [`config`] → [`state`] (desired, pure) → diff against the live
//! maps → [`datapath`] → packet. Facts from the world ([`neighbours`]) enter at the desired state as
//! plain values.

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
pub mod neighbours;
pub mod number;
pub mod prefix;
pub mod signals;
pub mod state;
mod waiting;
