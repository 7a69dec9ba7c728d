//! Properties of the desired state: ids, generations, bindings, protection, sources, ports, regions,
//! filter. The compiled firewall has tests of its own.
//!
//! Owns what they share: configurations of a few words, and plans made of them. One file a subject.

mod bindings;
mod direct;
mod ids;
mod limits;
mod needs;
mod ports;
mod properties;
mod protection;
mod regions;
mod sources;
mod tables;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use xdplb::config::{
    self, AdminState, Config, Datapath, Forward, HashBy, Limits, Log, LogFormat, MacAddress,
    OnDownByProtocol, PortRange, Prefix, Protocol, Refusal, Timeouts, Tunnel, XdpMode,
};
use xdplb::state::{plan, Backend, Desired, Hop, OwnAddress, PoolSlice, World};

const VIP: &str = "203.0.113.11";
const VIP6: &str = "2001:db8:1::11";

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn config(services: Vec<config::Service>) -> Config {
    let second = Duration::from_secs(1);
    Config {
        datapath: Datapath {
            interfaces: vec!["eth0".into()],
            xdp_mode: XdpMode::Auto,
            pin_dir: PathBuf::from("/sys/fs/bpf/xdplb"),
            run_dir: PathBuf::from("/run/xdplb"),
            addresses: Vec::new(),
            hash_seed: 0,
            unknown_port: Refusal::Pass,
            icmp_echo: true,
        },
        limits: Limits {
            services: 64,
            backends: 1024,
            connections: 1024,
            ..Limits::default()
        },
        timeouts: Timeouts {
            tcp_opening: second,
            tcp_established: second,
            tcp_half_closed: second,
            tcp_closing: second,
            udp: second,
            other: second,
        },
        tunnel: Tunnel::default(),
        services,
        firewall: None,
        dos: Vec::new(),
        log: Log {
            level: log::LevelFilter::Info,
            format: LogFormat::Text,
        },
    }
}

fn service(name: &str, vips: &[&str], port: u16, backends: &[&str]) -> config::Service {
    config::Service {
        name: name.into(),
        vips: vips.iter().map(|vip| ip(vip)).collect(),
        protocols: vec![Protocol::Tcp],
        ports: vec![PortRange {
            first: port,
            last: port,
        }],
        forward: Forward::Nat,
        hash: HashBy::FiveTuple,
        no_backend: Refusal::Drop,
        on_down: OnDownByProtocol::new(None),
        allow: Vec::new(),
        backends: backends
            .iter()
            .map(|address| backend(ip(address)))
            .collect(),
    }
}

fn backend(address: IpAddr) -> config::Backend {
    config::Backend {
        name: address.to_string(),
        address,
        port: None,
        weight: 1,
        state: AdminState::Up,
        interface: None,
        mac: None,
    }
}

const HOP: Hop = Hop {
    mac: MacAddress([2, 0, 0, 0, 0, 1]),
    slot: 1,
    on_link: true,
};

/// A plan in a world where every backend is found behind interface slot 1.
fn planned(previous: &Desired, config: &Config) -> Desired {
    planned_from(previous, config, &[])
}

fn planned_from(previous: &Desired, config: &Config, sources: &[OwnAddress]) -> Desired {
    plan(
        previous,
        config,
        &World {
            blocklists: &BTreeMap::new(),
            hop: &|_| Some(HOP),
            own_addresses: sources,
        },
    )
    .expect("a plan")
}

fn first_plan(config: &Config) -> Desired {
    planned(&Desired::default(), config)
}

fn find<'a>(desired: &'a Desired, address: &str) -> (u32, &'a Backend) {
    let address = ip(address);
    let mut found = desired
        .backends
        .iter()
        .filter(|(_, backend)| backend.address == address);
    let (id, backend) = found.next().expect("the backend");
    assert!(found.next().is_none(), "only one");
    (*id, backend)
}

fn addresses(desired: &Desired, range: PoolSlice) -> Vec<String> {
    let (first, count) = (range.first as usize, range.count as usize);
    desired.nat_pool[first..first + count]
        .iter()
        .map(IpAddr::to_string)
        .collect()
}

fn full_nat(vips: &[&str], backends: &[&str]) -> Config {
    let mut service = service("web", vips, 80, backends);
    service.forward = Forward::FullNat;
    config(vec![service])
}

fn prefix(address: &str, length: u8) -> Prefix {
    let prefix = Prefix::covering(ip(address), length);
    assert_eq!(prefix.address(), ip(address));
    prefix
}

const OWN: [(&str, u16); 3] = [("10.0.0.254", 1), ("10.1.0.254", 2), ("fd00::fe", 1)];

fn own() -> Vec<OwnAddress> {
    OWN.iter()
        .map(|(address, port)| OwnAddress {
            address: ip(address),
            slot: *port,
        })
        .collect()
}
