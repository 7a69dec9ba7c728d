//! What the file says, and what it means when it says nothing.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use xdplb::config::{
    AdminState, Forward, HashBy, Limits, LogFormat, OnDown, PortRange, Prefix, Protocol, Refusal,
    Timeouts, Tunnel, XdpMode,
};

use crate::{parse, valid, with_backends, with_port, DATAPATH, EVERYTHING};

#[test]
fn defaults() {
    let config = valid(&with_backends(&["address = \"10.0.5.2\""]));
    assert_eq!(config.datapath.interfaces, ["eth0", "eth1"]);
    assert_eq!(config.datapath.xdp_mode, XdpMode::Auto);
    assert_eq!(config.datapath.pin_dir, PathBuf::from("/sys/fs/bpf/xdplb"));
    assert_eq!(config.datapath.run_dir, PathBuf::from("/run/xdplb"));
    assert_eq!(config.datapath.addresses, [] as [IpAddr; 0]);
    assert_eq!(config.datapath.hash_seed, 0);
    assert_eq!(config.datapath.unknown_port, Refusal::Pass);
    assert!(config.datapath.icmp_echo);
    assert_eq!(config.tunnel, Tunnel::default());
    assert_eq!(config.tunnel.gue_port, 6080);
    assert!(config.tunnel.source.is_empty());
    let limits = Limits {
        services: 4096,
        backends: 16384,
        connections: 1_000_000,
        firewall_rules: 65_536,
        sources: 262_144,
    };
    assert_eq!(config.limits, limits);
    let timeouts = Timeouts {
        tcp_opening: Duration::from_secs(30),
        tcp_established: Duration::from_secs(3600),
        tcp_half_closed: Duration::from_secs(600),
        tcp_closing: Duration::from_secs(30),
        udp: Duration::from_secs(60),
        other: Duration::from_secs(60),
    };
    assert_eq!(config.timeouts, timeouts);
    assert_eq!(config.log.level, log::LevelFilter::Info);
    assert_eq!(config.log.format, LogFormat::Text);
    let service = &config.services[0];
    assert_eq!(service.forward, Forward::Nat);
    assert_eq!(service.hash, HashBy::FiveTuple);
    assert_eq!(service.no_backend, Refusal::Drop);
    assert_eq!(
        (service.on_down.tcp, service.on_down.udp),
        (OnDown::Keep, OnDown::Rehash)
    );
    assert_eq!(service.allow, []);
    let backend = &service.backends[0];
    assert_eq!(backend.name, "10.0.5.2");
    assert_eq!(backend.port, None);
    assert_eq!(backend.weight, 1);
    assert_eq!(backend.state, AdminState::Up);
    assert_eq!(backend.interface, None);
    assert_eq!(backend.mac, None);
}

#[test]
fn every_key() {
    let config = valid(EVERYTHING);
    assert_eq!(config.datapath.xdp_mode, XdpMode::Native);
    assert_eq!(config.datapath.pin_dir, PathBuf::from("/sys/fs/bpf/other"));
    assert_eq!(config.datapath.run_dir, PathBuf::from("/run/other"));
    assert_eq!(config.datapath.addresses.len(), 2);
    assert_eq!(config.datapath.hash_seed, 7);
    assert_eq!(config.datapath.unknown_port, Refusal::Drop);
    assert!(!config.datapath.icmp_echo);
    let sources: Vec<_> = config.tunnel.source.iter().map(Prefix::to_string).collect();
    assert_eq!(sources, ["172.16.0.0/16", "2001:db8::10"]);
    assert_eq!(config.tunnel.gue_port, 6081);
    let limits = Limits {
        services: 10,
        backends: 20,
        connections: 3000,
        firewall_rules: 30,
        sources: 40,
    };
    assert_eq!(config.limits, limits);
    assert_eq!(config.timeouts.tcp_opening, Duration::from_millis(500));
    assert_eq!(config.timeouts.tcp_established, Duration::from_secs(7200));
    assert_eq!(config.timeouts.tcp_half_closed, Duration::from_secs(300));
    assert_eq!(config.timeouts.tcp_closing, Duration::from_secs(10));
    assert_eq!(config.timeouts.udp, Duration::from_secs(300));
    assert_eq!(config.timeouts.other, Duration::from_secs(10 * 86_400));
    assert_eq!(config.log.level, log::LevelFilter::Trace);
    assert_eq!(config.log.format, LogFormat::Json);

    let [web, any, direct] = config.services.as_slice() else {
        panic!("three services")
    };
    assert_eq!(direct.forward, Forward::Gue);
    assert_eq!(direct.no_backend, Refusal::Reject);
    assert_eq!(
        (direct.on_down.tcp, direct.on_down.udp),
        (OnDown::Rehash, OnDown::Rehash)
    );
    assert_eq!(direct.backends.len(), 2);
    assert_eq!(web.vips.len(), 2);
    assert_eq!(web.protocols, [Protocol::Tcp, Protocol::Udp]);
    let ranges = [(80, 80), (443, 443), (8000, 8010)];
    assert_eq!(
        web.ports,
        ranges.map(|(first, last)| PortRange { first, last })
    );
    assert_eq!(web.forward, Forward::FullNat);
    assert_eq!(web.hash, HashBy::SourceIp);
    assert_eq!(web.allow.len(), 2);
    let firewall = config.firewall.as_ref().expect("a firewall");
    assert_eq!((firewall.rules.len(), config.dos.len()), (2, 1));
    assert_eq!(any.ports, [PortRange::ANY]);
    assert_eq!(any.hash, HashBy::SourceIpPort);

    let names: Vec<_> = web
        .backends
        .iter()
        .map(|backend| backend.name.as_str())
        .collect();
    assert_eq!(names, ["node5", "[2001:db8:5::2]:8080", "2001:db8:5::2"]);
    let node5 = &web.backends[0];
    assert_eq!(node5.port, Some(8080));
    assert_eq!(node5.weight, 10);
    assert_eq!(node5.state, AdminState::Drain);
    assert_eq!(node5.interface.as_deref(), Some("eth1"));
    assert_eq!(
        node5.mac.map(|mac| mac.to_string()).as_deref(),
        Some("52:54:00:23:a4:5c")
    );
    assert_eq!(web.backends[1].weight, 0);
    assert_eq!(web.backends[1].state, AdminState::Down);
}

#[test]
fn no_service_is_valid() {
    let loaded = parse(DATAPATH).expect("valid");
    assert!(loaded.config.services.is_empty());
    assert!(loaded.warnings.is_empty());
}

#[test]
fn the_remaining_values() {
    for (key, value) in [
        ("xdp_mode", "auto"),
        ("xdp_mode", "generic"),
        ("unknown_port", "pass"),
        ("unknown_port", "reject"),
    ] {
        valid(&format!("{DATAPATH}{key} = \"{value}\"\n"));
    }
    for (key, value) in [
        ("forward", "l2"),
        ("forward", "ipip"),
        ("no_backend", "drop"),
        ("no_backend", "pass"),
        ("on_down", "keep"),
        ("on_down", "rehash"),
    ] {
        valid(&with_port(&format!("port = 80\n{key} = \"{value}\"")));
    }
    for level in ["error", "warn", "info", "debug", "trace"] {
        valid(&format!(
            "{DATAPATH}[log]\nlevel = \"{level}\"\nformat = \"text\"\n"
        ));
    }
    for port in [
        "1",
        "65535",
        "0x50",
        "\"1-65535\"",
        "\"80-80\"",
        "[\"80-90\", 91]",
    ] {
        valid(&with_port(&format!("port = {port}")));
    }
}
