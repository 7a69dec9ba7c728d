//! xdplb: a layer-4 load balancer in XDP.
//!
//! Data goes one way: `lb.toml` → [`config`] → [`state`] (desired, pure) → diff against the live
//! maps → [`datapath`] → packet. Facts from the world ([`neighbours`]) enter at the desired state as
//! plain values.

pub mod config;
pub mod neighbours;
