//! The datapath by tables: each packet in, the verdict, and the whole packet out.
//!
//! Owns what runs the loaded program over packets with BPF_PROG_TEST_RUN. The tests need root, Linux 6.1
//! or newer with BPF and veth, and iproute2; without these they fail and say so. One file a subject.

#[path = "../common/frames.rs"]
mod frames;
#[path = "../common/firewall.rs"]
mod model;
#[path = "../common/property.rs"]
mod property;

mod admission;
mod allowed;
mod answers;
mod applied;
mod blocklists;
mod commands;
mod conns;
mod direct;
mod endings;
mod evictions;
mod firewall;
mod firewall_beyond_ports;
mod firewall_properties;
mod forward;
mod fragments;
mod growth;
mod harness;
mod host_traffic;
mod icmp;
mod leaving;
mod malformed;
mod many_cpus;
mod memory;
mod not_ours;
mod police;
mod program;
mod properties;
mod refused;
mod relay;
mod retries;
mod selection;
mod sources;
mod states;
mod sweep;
mod totals;
mod unrecorded;
mod waiting;
