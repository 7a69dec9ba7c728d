//! The file table by table: which keys there are, with what each says and where. Owns the names of
//! the keys; defaults and the rules between values are `validate`'s, but for a default that must be told
//! from a value that is wrong.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use log::LevelFilter;
use toml::de::DeTable;

use super::document::{List, Table};
use super::keyword::{Maglev, OnExcess};
use super::place::At;
use super::report::Report;
use super::{
    value, AdminState, Forward, HashBy, LogFormat, MacAddress, OnDown, PolicyProtocol, PortRange,
    Prefix, Protocol, Refusal, RuleAction, RuleProtocol, XdpMode,
};

pub(super) struct File {
    pub datapath: Datapath,
    pub limits: Limits,
    pub timeouts: Timeouts,
    pub tunnel: Tunnel,
    /// Shared with those who read the file again.
    pub services: Vec<Arc<Service>>,
    /// `None`: absent.
    pub firewall: Option<Firewall>,
    pub dos: Vec<Policy>,
    pub level: Option<At<LevelFilter>>,
    pub format: Option<At<LogFormat>>,
}

pub(super) struct Datapath {
    /// `None`: absent, and reported.
    pub interfaces: Option<At<List<String>>>,
    pub xdp_mode: Option<At<XdpMode>>,
    pub pin_dir: Option<At<PathBuf>>,
    pub run_dir: Option<At<PathBuf>>,
    pub addresses: Option<At<List<IpAddr>>>,
    pub hash_seed: Option<At<u64>>,
    pub unknown_port: Option<At<Refusal>>,
    pub icmp_echo: Option<At<bool>>,
}

pub(super) struct Limits {
    pub services: Option<At<u32>>,
    pub backends: Option<At<u32>>,
    pub connections: Option<At<u32>>,
    pub firewall_rules: Option<At<u32>>,
    pub sources: Option<At<u32>>,
}

pub(super) struct Timeouts {
    pub tcp_opening: Option<At<Duration>>,
    pub tcp_established: Option<At<Duration>>,
    pub tcp_half_closed: Option<At<Duration>>,
    pub tcp_closing: Option<At<Duration>>,
    pub udp: Option<At<Duration>>,
    pub other: Option<At<Duration>>,
}

pub(super) struct Tunnel {
    pub source: Option<List<Prefix>>,
    pub gue_port: Option<At<u16>>,
}

pub(super) struct Service {
    /// Its name in messages: `service "web"`, or `service 2` while it has no name.
    pub what: String,
    /// Where its header stands.
    pub at: usize,
    /// `None`: absent or wrong, and reported.
    pub name: Option<At<String>>,
    pub vips: List<IpAddr>,
    pub protocols: List<Protocol>,
    pub ports: List<PortRange>,
    /// The default if absent. `None`: wrong, and reported.
    pub forward: Option<At<Forward>>,
    pub hash: Option<At<HashBy>>,
    pub no_backend: Option<At<Refusal>>,
    pub on_down: Option<At<OnDown>>,
    pub allow: Option<At<List<Prefix>>>,
    pub backends: Vec<Backend>,
}

pub(super) struct Backend {
    /// Its name in messages: `service "web": backend "node5"`.
    pub what: String,
    /// Where its header stands.
    pub at: usize,
    pub name: Option<At<String>>,
    /// `None`: absent or wrong, and reported.
    pub address: Option<At<IpAddr>>,
    pub port: Option<At<u16>>,
    pub weight: Option<At<u16>>,
    pub state: Option<At<AdminState>>,
    pub interface: Option<At<String>>,
    pub mac: Option<At<MacAddress>>,
}

pub(super) struct Firewall {
    pub default: Option<At<RuleAction>>,
    pub blocklists: Option<At<List<String>>>,
    pub rules: Vec<Rule>,
}

/// The default where a condition is absent. `None`: wrong, and reported.
pub(super) struct Rule {
    /// Its name in messages: `firewall: rule "no-lab"`, or `firewall: rule 2` without a name.
    pub what: String,
    /// Where its header stands.
    pub at: usize,
    pub name: Option<At<String>>,
    /// `None`: absent or wrong, and reported.
    pub action: Option<At<RuleAction>>,
    pub source: Option<At<Option<Prefix>>>,
    pub protocol: Option<At<RuleProtocol>>,
    pub source_port: Option<At<PortRange>>,
    pub port: Option<At<PortRange>>,
}

pub(super) struct Policy {
    /// Its name in messages: `dos "syn"`, or `dos 1` while it has no name.
    pub what: String,
    /// Where its header stands.
    pub at: usize,
    /// `None`, here and in the next two: absent or wrong, and reported.
    pub name: Option<At<String>>,
    pub protocol: Option<At<PolicyProtocol>>,
    pub limit: Option<At<u32>>,
    pub tcp_flags: Option<At<(u8, u8)>>,
    pub burst: Option<At<u32>>,
    /// The default if absent. `None`: wrong, and reported.
    pub action: Option<At<OnExcess>>,
    pub block_for: Option<At<Duration>>,
}

/// Reads all of a document. What cannot be read is reported and then absent.
pub(super) fn read(document: &DeTable, report: &mut Report) -> File {
    let mut root = Table::root(document);
    let datapath = datapath(root.table("datapath", report), report);
    let limits = limits(root.table("limits", report), report);
    let timeouts = timeouts(root.table("timeouts", report), report);
    let tunnel = tunnel(root.table("tunnel", report), report);
    let services = services(&mut root, report);
    let firewall = root.table("firewall", report);
    let firewall = firewall
        .is_present()
        .then(|| self::firewall(firewall, report));
    let dos = root
        .tables("dos", "[[dos]]", report)
        .into_iter()
        .map(|table| policy(table, report))
        .collect();
    let mut log = root.table("log", report);
    let file = File {
        datapath,
        limits,
        timeouts,
        tunnel,
        services,
        firewall,
        dos,
        level: log.optional("level", report, value::keyword),
        format: log.optional("format", report, value::keyword),
    };
    log.finish(report);
    root.finish(report);
    file
}

/// Reads a document that has services and nothing else.
pub(super) fn read_services(document: &DeTable, report: &mut Report) -> Vec<Arc<Service>> {
    let mut root = Table::root(document);
    let services = services(&mut root, report);
    root.finish(report);
    services
}

fn services(root: &mut Table, report: &mut Report) -> Vec<Arc<Service>> {
    root.tables("service", "[[service]]", report)
        .into_iter()
        .map(|table| Arc::new(service(table, report)))
        .collect()
}

fn datapath(mut table: Table, report: &mut Report) -> Datapath {
    let datapath = Datapath {
        interfaces: table.required_list("interfaces", r#"["eth0"]"#, report, value::interface),
        xdp_mode: table.optional("xdp_mode", report, value::keyword),
        pin_dir: table.optional("pin_dir", report, value::pin_directory),
        run_dir: table.optional("run_dir", report, value::run_directory),
        addresses: table.list("addresses", r#"["192.0.2.1"]"#, report, value::own_address),
        hash_seed: table.optional("hash_seed", report, value::hash_seed),
        unknown_port: table.optional("unknown_port", report, value::keyword),
        icmp_echo: table.optional("icmp_echo", report, value::boolean),
    };
    table.finish(report);
    datapath
}

fn limits(mut table: Table, report: &mut Report) -> Limits {
    let limits = Limits {
        services: table.optional("services", report, |v| value::count(v, 1..=65_536)),
        backends: table.optional("backends", report, |v| value::count(v, 1..=1_048_576)),
        // Two entries for each, and a quarter more half-open: a table's size is a u32.
        connections: table.optional("connections", report, |v| value::count(v, 1..=400_000_000)),
        // With blocklists and the default they have 17 bits for their ids.
        firewall_rules: table.optional("firewall_rules", report, |v| value::count(v, 1..=131_000)),
        sources: table.optional("sources", report, |v| value::count(v, 1..=16_777_216)),
    };
    table.finish(report);
    limits
}

fn timeouts(mut table: Table, report: &mut Report) -> Timeouts {
    let mut timeout = |key| table.optional(key, report, value::timeout);
    let timeouts = Timeouts {
        tcp_opening: timeout("tcp_opening"),
        tcp_established: timeout("tcp_established"),
        tcp_half_closed: timeout("tcp_half_closed"),
        tcp_closing: timeout("tcp_closing"),
        udp: timeout("udp"),
        other: timeout("other"),
    };
    table.finish(report);
    timeouts
}

fn tunnel(mut table: Table, report: &mut Report) -> Tunnel {
    let tunnel = Tunnel {
        source: table.none_or_more("source", r#""192.0.2.1""#, report, value::source),
        gue_port: table.optional("gue_port", report, |v| value::short(v, 1..=u16::MAX)),
    };
    table.finish(report);
    tunnel
}

fn service(mut table: Table, report: &mut Report) -> Service {
    let name = table.required("name", r#""web""#, report, value::name);
    if let Some(name) = &name {
        table.what = format!("service {:?}", name.value);
    }
    let vips = table.one_or_more("vip", r#""203.0.113.11""#, report, value::vip);
    let protocols = table.one_or_more("protocol", r#""tcp""#, report, value::keyword);
    let ports = table.one_or_more("port", "80", report, value::ports);
    let forward = table.or_default("forward", Forward::Nat, report, value::keyword);
    table.optional("scheduler", report, value::keyword::<Maglev>);
    let hash = table.optional("hash", report, value::keyword);
    let no_backend = table.optional("no_backend", report, value::keyword);
    let on_down = table.optional("on_down", report, value::keyword);
    let allow = table.list("allow", r#"["198.51.100.0/24"]"#, report, value::prefix);
    let backends = table
        .tables("backend", "[[service.backend]]", report)
        .into_iter()
        .map(|backend_table| backend(backend_table, &table.what, report))
        .collect();
    let (what, at) = (table.what.clone(), table.at);
    table.finish(report);
    Service {
        what,
        at,
        name,
        vips,
        protocols,
        ports,
        forward,
        hash,
        no_backend,
        on_down,
        allow,
        backends,
    }
}

fn firewall(mut table: Table, report: &mut Report) -> Firewall {
    let firewall = Firewall {
        default: table.optional("default", report, value::keyword),
        blocklists: table.list(
            "blocklists",
            r#"["/etc/xdplb/blocklist.txt"]"#,
            report,
            value::file,
        ),
        rules: table
            .tables("rule", "[[firewall.rule]]", report)
            .into_iter()
            .map(|rule_table| rule(rule_table, report))
            .collect(),
    };
    table.finish(report);
    firewall
}

fn rule(mut table: Table, report: &mut Report) -> Rule {
    let name = table.optional("name", report, value::name);
    if let Some(name) = &name {
        table.what = format!("firewall: rule {:?}", name.value);
    }
    let (any, every) = (PortRange::ANY, RuleProtocol::Any);
    let rule = Rule {
        what: table.what.clone(),
        at: table.at,
        name,
        action: table.required("action", r#""deny""#, report, value::keyword),
        source: table.or_default("source", None, report, value::rule_source),
        protocol: table.or_default("protocol", every, report, value::rule_protocol),
        source_port: table.or_default("source_port", any, report, value::rule_ports),
        port: table.or_default("port", any, report, value::rule_ports),
    };
    table.finish(report);
    rule
}

fn policy(mut table: Table, report: &mut Report) -> Policy {
    let name = table.required("name", r#""syn""#, report, value::name);
    if let Some(name) = &name {
        table.what = format!("dos {:?}", name.value);
    }
    let policy = Policy {
        what: table.what.clone(),
        at: table.at,
        name,
        protocol: table.required("protocol", r#""tcp""#, report, value::keyword),
        limit: table.required("limit", "1000", report, value::packets),
        tcp_flags: table.optional("tcp_flags", report, value::tcp_flags),
        burst: table.optional("burst", report, value::packets),
        action: table.or_default("action", OnExcess::Limit, report, value::keyword),
        block_for: table.optional("block_for", report, value::timeout),
    };
    table.finish(report);
    policy
}

fn backend(mut table: Table, service: &str, report: &mut Report) -> Backend {
    let name = table.optional("name", report, value::name);
    if let Some(name) = &name {
        table.what = format!("{service}: backend {:?}", name.value);
    }
    let backend = Backend {
        what: table.what.clone(),
        at: table.at,
        name,
        address: table.required("address", r#""10.0.5.2""#, report, value::backend_address),
        port: table.optional("port", report, |v| value::short(v, 1..=u16::MAX)),
        weight: table.optional("weight", report, |v| value::short(v, 0..=1000)),
        state: table.optional("state", report, value::keyword),
        interface: table.optional("interface", report, value::interface),
        mac: table.optional("mac", report, value::mac),
    };
    table.finish(report);
    backend
}
