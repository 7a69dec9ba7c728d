//! `xdplb check`: what would run, in words or as JSON. Reads a validated configuration, and of the host
//! only the interfaces' MTUs, so it needs no privileges.

mod protection;

use std::fmt::Display;
use std::io::{self, Write};
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use super::text::columns;
use crate::config::blocklist::Contents;
use crate::config::{
    duration, AdminState, Backend, Config, Diagnostic, Family, Limits, PortRange, Prefix, Service,
    Tunnel,
};
use crate::mtu::{self, Way};
use crate::neighbours::Neighbours;
use crate::state::firewall::Ruleset;
use crate::state::{self, Desired, PlanError, World};
use protection::{policies, FirewallView, PolicyView};

/// The MTUs of these interfaces, in their order. None at all where this host lacks one of them, since
/// the file is another host's then, or where it cannot be asked.
pub fn mtus(interfaces: &[String]) -> Vec<u32> {
    let Ok(network) = Neighbours::open() else {
        return Vec::new();
    };
    let mtu = |name: &String| network.link_by_name(name).map(|link| link.mtu);
    let mtus: Option<Vec<u32>> = interfaces.iter().map(mtu).collect();
    mtus.unwrap_or_default()
}

/// What comes of the firewall, once everything is known to fit the maps, so far as that does not depend on
/// the network.
///
/// # Errors
///
/// What does not fit.
pub fn compile(config: &Config, blocklists: &Contents) -> Result<Option<Arc<Ruleset>>, PlanError> {
    let world = World {
        hop: &|_| None,
        own_addresses: &[],
        blocklists,
    };
    state::plan(&Desired::default(), config, &world).map(|desired| desired.firewall)
}

/// Writes what `config` would run, and the warnings about it. `mtus` are those of its interfaces, or
/// none; `firewall` is from [`compile`].
///
/// # Errors
///
/// What writing to `out` gives.
pub fn print(
    config: &Config,
    warnings: &[Diagnostic],
    mtus: &[u32],
    firewall: Option<&Ruleset>,
    out: &mut impl Write,
    json: bool,
) -> io::Result<()> {
    let view = Report::new(config, warnings, mtus, firewall);
    if json {
        serde_json::to_writer_pretty(&mut *out, &view)?;
        writeln!(out)
    } else {
        text(&view, out)
    }
}

/// All that is shown, in either form.
#[derive(Serialize)]
struct Report<'a> {
    datapath: DatapathView<'a>,
    limits: LimitsView,
    timeouts: TimeoutsView,
    tunnel: TunnelView,
    services: Vec<ServiceView<'a>>,
    firewall: Option<FirewallView<'a>>,
    dos: Vec<PolicyView<'a>>,
    log: LogView,
    warnings: Vec<WarningView>,
}

#[derive(Serialize)]
struct DatapathView<'a> {
    interfaces: &'a [String],
    xdp_mode: String,
    pin_dir: &'a Path,
    /// Empty: the interfaces' own.
    addresses: &'a [IpAddr],
    hash_seed: u64,
    unknown_port: String,
    icmp_echo: bool,
}

#[derive(Serialize)]
struct LimitsView {
    services: Usage,
    backends: Usage,
    connections: u32,
    connection_tables: TablesView,
    firewall_rules: Usage,
    firewall_tables: FirewallTablesView,
    sources: u32,
    sources_bytes: u64,
}

#[derive(Serialize)]
struct Usage {
    limit: u32,
    used: usize,
}

/// Entries of each address family, and the memory for each.
#[derive(Serialize)]
struct TablesView {
    established_entries: u32,
    opening_entries: u32,
    ipv4_bytes: u64,
    ipv6_bytes: u64,
}

/// What `limits.firewall_rules` takes, whatever rules there are.
#[derive(Serialize)]
struct FirewallTablesView {
    bytes: u64,
    bytes_per_cpu: u64,
}

#[derive(Serialize)]
struct TimeoutsView {
    #[serde(serialize_with = "seconds")]
    tcp_opening: Duration,
    #[serde(serialize_with = "seconds")]
    tcp_established: Duration,
    #[serde(serialize_with = "seconds")]
    tcp_closing: Duration,
    #[serde(serialize_with = "seconds")]
    udp: Duration,
    #[serde(serialize_with = "seconds")]
    other: Duration,
}

#[derive(Serialize)]
struct TunnelView {
    /// Of a family that has none: the first of `datapath.addresses`, else the interface's own.
    source: Vec<String>,
    gue_port: u16,
}

#[derive(Serialize)]
struct ServiceView<'a> {
    name: &'a str,
    vips: &'a [IpAddr],
    protocols: Vec<String>,
    ports: Vec<String>,
    forward: String,
    scheduler: &'static str,
    hash: String,
    no_backend: String,
    /// Empty: everybody.
    allow: Vec<String>,
    backends: Vec<BackendView<'a>>,
}

#[derive(Serialize)]
struct BackendView<'a> {
    name: &'a str,
    address: IpAddr,
    /// `None`: the one that the client asked for.
    port: Option<u16>,
    weight: u16,
    state: String,
    /// Of the new connections to the VIPs that it serves.
    share_percent: f64,
    interface: Option<&'a str>,
    mac: Option<String>,
}

#[derive(Serialize)]
struct LogView {
    level: String,
    format: String,
}

#[derive(Serialize)]
struct WarningView {
    /// In the file. Without it, about this host.
    #[serde(flatten)]
    place: Option<Place>,
    message: String,
    #[serde(skip)]
    whole: String,
}

#[derive(Serialize)]
struct Place {
    /// As text: a name on the command line need not be UTF-8.
    file: String,
    line: usize,
    column: usize,
}

fn seconds<S: serde::Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(duration.as_secs_f64())
}

fn seconds_or_none<S: serde::Serializer>(
    duration: &Option<Duration>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    duration
        .as_ref()
        .map(Duration::as_secs_f64)
        .serialize(serializer)
}

impl<'a> Report<'a> {
    fn new(
        config: &'a Config,
        warnings: &[Diagnostic],
        mtus: &[u32],
        firewall: Option<&'a Ruleset>,
    ) -> Report<'a> {
        let datapath = &config.datapath;
        let timeouts = &config.timeouts;
        Report {
            datapath: DatapathView {
                interfaces: &datapath.interfaces,
                xdp_mode: datapath.xdp_mode.to_string(),
                pin_dir: &datapath.pin_dir,
                addresses: &datapath.addresses,
                hash_seed: datapath.hash_seed,
                unknown_port: datapath.unknown_port.to_string(),
                icmp_echo: datapath.icmp_echo,
            },
            limits: LimitsView::new(config),
            timeouts: TimeoutsView {
                tcp_opening: timeouts.tcp_opening,
                tcp_established: timeouts.tcp_established,
                tcp_closing: timeouts.tcp_closing,
                udp: timeouts.udp,
                other: timeouts.other,
            },
            tunnel: TunnelView::new(&config.tunnel),
            services: config.services.iter().map(ServiceView::new).collect(),
            firewall: FirewallView::new(config, firewall),
            dos: config.dos.iter().map(PolicyView::new).collect(),
            log: LogView {
                level: config.log.level.to_string().to_lowercase(),
                format: config.log.format.to_string(),
            },
            warnings: warnings
                .iter()
                .map(WarningView::of_file)
                .chain(narrow(config, mtus).map(WarningView::of_host))
                .collect(),
        }
    }
}

impl LimitsView {
    fn new(config: &Config) -> LimitsView {
        let limits: &Limits = &config.limits;
        let tables = limits.connection_tables();
        let firewall = limits.firewall_tables();
        LimitsView {
            services: Usage {
                limit: limits.services,
                used: config
                    .services
                    .iter()
                    .map(|service| service.families().count())
                    .sum(),
            },
            backends: Usage {
                limit: limits.backends,
                used: config.services.iter().map(backends_used).sum(),
            },
            connections: limits.connections,
            connection_tables: TablesView {
                established_entries: tables.established,
                opening_entries: tables.opening,
                ipv4_bytes: tables.ipv4_bytes(),
                ipv6_bytes: tables.ipv6_bytes(),
            },
            firewall_rules: Usage {
                limit: limits.firewall_rules,
                used: config
                    .firewall
                    .as_ref()
                    .map_or(0, |firewall| firewall.rules.len()),
            },
            firewall_tables: FirewallTablesView {
                bytes: firewall.bytes(),
                bytes_per_cpu: firewall.bytes_per_cpu(),
            },
            sources: limits.sources,
            sources_bytes: limits.sources_bytes(),
        }
    }
}

impl WarningView {
    fn of_file(diagnostic: &Diagnostic) -> WarningView {
        WarningView {
            place: Some(Place {
                file: diagnostic.file.display().to_string(),
                line: diagnostic.line,
                column: diagnostic.column,
            }),
            message: diagnostic.message.clone(),
            whole: diagnostic.to_string(),
        }
    }

    fn of_host(message: String) -> WarningView {
        WarningView {
            place: None,
            whole: message.clone(),
            message,
        }
    }
}

impl TunnelView {
    fn new(tunnel: &Tunnel) -> TunnelView {
        TunnelView {
            source: tunnel.source.iter().map(Prefix::to_string).collect(),
            gue_port: tunnel.gue_port,
        }
    }
}

/// Which interface a backend is behind is known only where it runs: it is too narrow if even the widest
/// is.
fn narrow(config: &Config, mtus: &[u32]) -> impl Iterator<Item = String> {
    let interfaces = || config.datapath.interfaces.iter().zip(mtus.iter().copied());
    let way = |service: &Service, inner, backend: &Backend| {
        let (interface, mtu) = interfaces()
            .filter(|(name, _)| {
                backend
                    .interface
                    .as_ref()
                    .is_none_or(|given| given == *name)
            })
            .max_by_key(|(_, mtu)| *mtu)?;
        Some(Way {
            interface,
            mtu,
            forward: service.forward,
            outer: Family::of(backend.address),
            inner,
        })
    };
    let ways = config.services.iter().flat_map(|service| {
        service.families().flat_map(move |inner| {
            service
                .backends_for(inner)
                .filter_map(move |backend| way(service, inner, backend))
        })
    });
    let shortages = mtu::shortages(mtus.iter().copied(), ways);
    shortages.into_iter().map(|shortage| shortage.to_string())
}

/// How many of `limits.backends` a service takes.
fn backends_used(service: &Service) -> usize {
    service
        .families()
        .map(|family| service.backends_for(family).count())
        .sum()
}

impl<'a> ServiceView<'a> {
    fn new(service: &'a Service) -> ServiceView<'a> {
        let backend = |backend: &'a Backend| BackendView {
            name: &backend.name,
            address: backend.address,
            port: backend.port,
            weight: backend.weight,
            state: backend.state.to_string(),
            share_percent: share(service, backend),
            interface: backend.interface.as_deref(),
            mac: backend.mac.map(|mac| mac.to_string()),
        };
        ServiceView {
            name: &service.name,
            vips: &service.vips,
            protocols: service.protocols.iter().map(ToString::to_string).collect(),
            ports: service.ports.iter().map(PortRange::to_string).collect(),
            forward: service.forward.to_string(),
            scheduler: "maglev",
            hash: service.hash.to_string(),
            no_backend: service.no_backend.to_string(),
            allow: service.allow.iter().map(Prefix::to_string).collect(),
            backends: service.backends.iter().map(backend).collect(),
        }
    }
}

/// Percent of the new connections that a backend is meant to get: its weight among those that serve the
/// same VIPs and are up.
fn share(service: &Service, backend: &Backend) -> f64 {
    let weight = |backend: &Backend| match backend.state {
        AdminState::Up => u64::from(backend.weight),
        AdminState::Drain | AdminState::Down => 0,
    };
    let family = Family::of(backend.address);
    let total: u64 = service
        .backends
        .iter()
        .filter(|other| service.forward.carries(family, Family::of(other.address)))
        .map(weight)
        .sum();
    // Both are far below 2^53, so that f64 holds them.
    weight(backend) as f64 * 100.0 / total.max(1) as f64
}

fn text(view: &Report, out: &mut impl Write) -> io::Result<()> {
    let Report {
        datapath,
        limits,
        timeouts,
        tunnel,
        services,
        firewall,
        dos,
        log,
        warnings,
    } = view;
    let addresses = match datapath.addresses {
        [] => "the interfaces' own".to_owned(),
        addresses => list(addresses),
    };
    let source = match tunnel.source.as_slice() {
        [] => "the first of addresses".to_owned(),
        source => list(source),
    };
    let tables = &limits.connection_tables;
    writeln!(out, "datapath")?;
    line(out, "interfaces", list(datapath.interfaces))?;
    line(out, "xdp_mode", &datapath.xdp_mode)?;
    line(out, "pin_dir", datapath.pin_dir.display())?;
    line(out, "addresses", addresses)?;
    line(out, "hash_seed", datapath.hash_seed)?;
    line(out, "unknown_port", &datapath.unknown_port)?;
    line(out, "icmp_echo", datapath.icmp_echo)?;
    writeln!(out, "limits")?;
    for (key, usage) in [
        ("services", &limits.services),
        ("backends", &limits.backends),
    ] {
        line(out, key, format_args!("{} of {}", usage.used, usage.limit))?;
    }
    line(
        out,
        "connections",
        format_args!("{} of each address family", limits.connections),
    )?;
    line(
        out,
        "",
        format_args!("{} of memory for IPv4", memory(tables.ipv4_bytes)),
    )?;
    line(
        out,
        "",
        format_args!("{} of memory for IPv6", memory(tables.ipv6_bytes)),
    )?;
    let rules = &limits.firewall_rules;
    line(
        out,
        "firewall_rules",
        format_args!("{} of {}", rules.used, rules.limit),
    )?;
    line(
        out,
        "",
        format_args!(
            "{} of memory, and {} for each CPU",
            memory(limits.firewall_tables.bytes),
            memory(limits.firewall_tables.bytes_per_cpu)
        ),
    )?;
    line(out, "sources", limits.sources)?;
    line(
        out,
        "",
        format_args!("{} of memory", memory(limits.sources_bytes)),
    )?;
    writeln!(out, "timeouts")?;
    for (key, timeout) in [
        ("tcp_opening", timeouts.tcp_opening),
        ("tcp_established", timeouts.tcp_established),
        ("tcp_closing", timeouts.tcp_closing),
        ("udp", timeouts.udp),
        ("other", timeouts.other),
    ] {
        line(out, key, duration::format(timeout))?;
    }
    writeln!(out, "tunnel")?;
    line(out, "source", source)?;
    line(out, "gue_port", tunnel.gue_port)?;
    writeln!(out, "log")?;
    line(out, "level", &log.level)?;
    line(out, "format", &log.format)?;
    for service in services {
        writeln!(out, "\nservice {}", service.name)?;
        line(out, "vip", list(service.vips))?;
        line(out, "protocol", list(&service.protocols))?;
        line(out, "port", list(&service.ports))?;
        line(out, "forward", &service.forward)?;
        line(out, "scheduler", service.scheduler)?;
        line(out, "hash", &service.hash)?;
        line(out, "no_backend", &service.no_backend)?;
        let allow = match service.allow.as_slice() {
            [] => "all".to_owned(),
            allow => list(allow),
        };
        line(out, "allow", allow)?;
        backends(&service.backends, out)?;
    }
    if let Some(firewall) = firewall {
        firewall.text(out)?;
    }
    policies(dos, out)?;
    if !warnings.is_empty() {
        writeln!(out)?;
    }
    for warning in warnings {
        writeln!(out, "warning: {}", warning.whole)?;
    }
    Ok(())
}

fn line(out: &mut impl Write, key: &str, value: impl Display) -> io::Result<()> {
    writeln!(out, "  {key:<16} {value}")
}

fn list<T: Display>(items: &[T]) -> String {
    items
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(", ")
}

fn memory(bytes: u64) -> String {
    if bytes < 1 << 20 {
        format!("{:.1} KiB", bytes as f64 / f64::from(1 << 10))
    } else {
        format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
    }
}

/// The backends of one service as a table.
fn backends(backends: &[BackendView], out: &mut impl Write) -> io::Result<()> {
    const HEADER: [&str; 8] = [
        "backend",
        "address",
        "port",
        "weight",
        "state",
        "share",
        "interface",
        "mac",
    ];
    let mut rows = vec![HEADER.map(str::to_owned).to_vec()];
    rows.extend(backends.iter().map(|backend| {
        vec![
            backend.name.to_owned(),
            backend.address.to_string(),
            backend
                .port
                .map_or("same".to_owned(), |port| port.to_string()),
            backend.weight.to_string(),
            backend.state.clone(),
            format!("{:.1}%", backend.share_percent),
            backend.interface.unwrap_or("by route").to_owned(),
            backend.mac.clone().unwrap_or("resolved".to_owned()),
        ]
    }));
    indented(out, "backends", rows)
}

/// Rows with a header as a table, or that there is none of `what`.
fn indented(out: &mut impl Write, what: &str, mut rows: Vec<Vec<String>>) -> io::Result<()> {
    if rows.len() < 2 {
        return line(out, what, "none");
    }
    for cell in rows.iter_mut().filter_map(|row| row.first_mut()) {
        cell.insert_str(0, "  ");
    }
    columns(out, &rows, &[])
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = r#"
[datapath]
interfaces = ["eth0", "eth1"]
[[service]]
name = "web"
vip = ["203.0.113.11", "2001:db8:1::11"]
protocol = ["tcp", "udp"]
port = [443, "8000-8010", 80]
[[service.backend]]
name = "node5"
address = "10.0.5.2"
port = 8080
weight = 30
interface = "eth1"
mac = "52:54:00:23:a4:5c"
[[service.backend]]
address = "10.0.5.3"
weight = 10
[[service.backend]]
address = "10.0.5.4"
weight = 100
state = "drain"
[[service.backend]]
address = "2001:db8:5::2"
[[service]]
name = "empty"
vip = "203.0.113.12"
protocol = "udp"
port = "any"
"#;

    fn printed(file: &str, mtus: &[u32], json: bool) -> String {
        with_blocklists(file, &Contents::new(), mtus, json)
    }

    fn with_blocklists(file: &str, blocklists: &Contents, mtus: &[u32], json: bool) -> String {
        let loaded = crate::config::parse(file, Path::new("lb.toml")).expect("a valid file");
        let (config, warnings) = (&loaded.config, &loaded.warnings);
        let firewall = compile(config, blocklists).expect("it fits");
        let mut out = Vec::new();
        print(config, warnings, mtus, firewall.as_deref(), &mut out, json)
            .expect("a vector takes all");
        String::from_utf8(out).expect("text")
    }

    #[test]
    fn in_words() {
        let expected = "\
datapath
  interfaces       eth0, eth1
  xdp_mode         auto
  pin_dir          /sys/fs/bpf/xdplb
  addresses        the interfaces' own
  hash_seed        0
  unknown_port     pass
  icmp_echo        true
limits
  services         3 of 4096
  backends         4 of 16384
  connections      1000000 of each address family
                   307.0 MiB of memory for IPv4
                   421.5 MiB of memory for IPv6
  firewall_rules   0 of 65536
                   28.5 MiB of memory, and 1.0 MiB for each CPU
  sources          262144
                   22.0 MiB of memory
timeouts
  tcp_opening      30s
  tcp_established  1h
  tcp_closing      30s
  udp              1m
  other            1m
tunnel
  source           the first of addresses
  gue_port         6080
log
  level            info
  format           text

service web
  vip              203.0.113.11, 2001:db8:1::11
  protocol         tcp, udp
  port             80, 443, 8000-8010
  forward          nat
  scheduler        maglev
  hash             5-tuple
  no_backend       drop
  allow            all
  backend        address        port  weight  state  share   interface  mac
  node5          10.0.5.2       8080  30      up     75.0%   eth1       52:54:00:23:a4:5c
  10.0.5.3       10.0.5.3       same  10      up     25.0%   by route   resolved
  10.0.5.4       10.0.5.4       same  100     drain  0.0%    by route   resolved
  2001:db8:5::2  2001:db8:5::2  same  1       up     100.0%  by route   resolved

service empty
  vip              203.0.113.12
  protocol         udp
  port             any
  forward          nat
  scheduler        maglev
  hash             5-tuple
  no_backend       drop
  allow            all
  backends         none

warning: lb.toml:25:1: service \"empty\" has no backend, so its packets are dropped; add a [[service.backend]]
";
        assert_eq!(printed(FILE, &[1500, 1500], false), expected);
    }

    #[test]
    fn as_json() {
        let view: serde_json::Value =
            serde_json::from_str(&printed(FILE, &[], true)).expect("JSON");
        assert_eq!(view["datapath"]["interfaces"][1], "eth1");
        assert_eq!(view["limits"]["services"]["used"], 3);
        assert_eq!(
            view["limits"]["connection_tables"]["established_entries"],
            2_000_000
        );
        assert_eq!(view["timeouts"]["tcp_established"], 3600.0);
        let service = &view["services"][0];
        assert_eq!(service["vips"][1], "2001:db8:1::11");
        assert_eq!(
            service["ports"],
            serde_json::json!(["80", "443", "8000-8010"])
        );
        assert_eq!(service["backends"][0]["share_percent"], 75.0);
        assert_eq!(service["backends"][0]["mac"], "52:54:00:23:a4:5c");
        assert_eq!(service["backends"][1]["port"], serde_json::Value::Null);
        assert_eq!(service["backends"][2]["state"], "drain");
        assert_eq!(view["log"]["level"], "info");
        assert_eq!(view["warnings"][0]["line"], 25);
        assert_eq!(view["datapath"]["icmp_echo"], true);
        assert_eq!(view["tunnel"]["source"], serde_json::json!([]));
        assert_eq!(view["tunnel"]["gue_port"], 6080);
        assert_eq!(service["no_backend"], "drop");
    }

    const PROTECTED: &str = r#"
[datapath]
interfaces = ["eth0"]
[limits]
firewall_rules = 1000
sources = 1000
[[service]]
name = "web"
vip = "203.0.113.11"
protocol = "tcp"
port = 80
allow = ["198.51.100.0/24", "192.0.2.1"]
backend = [{ address = "10.0.5.2" }]
[firewall]
default = "deny"
blocklists = ["/etc/xdplb/blocklist.txt", "more.txt"]
[[firewall.rule]]
name = "no-lab"
action = "deny"
source = "198.18.0.0/15"
protocol = "tcp"
port = "8000-9000"
[[firewall.rule]]
action = "allow"
protocol = 47
[[firewall.rule]]
action = "allow"
source = "2001:db8::/32"
protocol = "udp"
source_port = 53
[[dos]]
name = "syn"
protocol = "tcp"
tcp_flags = "syn"
limit = 1000
action = "block"
[[dos]]
name = "ping"
protocol = "icmp"
limit = 10
burst = 50
"#;

    fn blocklists() -> Contents {
        let list = |texts: &[&str]| {
            texts
                .iter()
                .map(|text| text.parse().expect("a prefix"))
                .collect()
        };
        Contents::from([
            (
                "/etc/xdplb/blocklist.txt".into(),
                list(&["192.0.2.0/24", "192.0.2.7"]),
            ),
            ("more.txt".into(), list(&["10.0.0.0/8"])),
        ])
    }

    #[test]
    fn protection_in_words() {
        let text = with_blocklists(PROTECTED, &blocklists(), &[], false);
        for expected in [
            "  firewall_rules   3 of 1000\n                   458.1 KiB of memory, and 16.6 KiB for each CPU\n",
            "  sources          1000\n                   85.9 KiB of memory\n",
            "  allow            198.51.100.0/24, 192.0.2.1\n",
            "
firewall
  default          deny
  prefixes         6, at most 0.8 KiB of memory
  rule  name    action  source         protocol  source_port  port
  1     no-lab  deny    198.18.0.0/15  tcp       any          8000-9000
  2             allow   any            47        any          any
  3             allow   2001:db8::/32  udp       53           any
  blocklist                 prefixes
  /etc/xdplb/blocklist.txt  2
  more.txt                  1

dos
  policy  protocol  tcp_flags  limit  burst  action  block_for
  syn     tcp       syn        1000   1000   block   1m
  ping    icmp      any        10     50     limit
",
        ] {
            assert!(text.contains(expected), "{text}\nlacks {expected}");
        }
        assert!(!text.contains("warning"), "{text}");

        let empty = format!("{FILE}[firewall]\n");
        let text = printed(&empty, &[], false);
        let expected = "
firewall
  default          allow
  rules            none
  blocklists       none
";
        assert!(text.contains(expected), "{text}");
    }

    #[test]
    fn protection_as_json() {
        let text = with_blocklists(PROTECTED, &blocklists(), &[], true);
        let view: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        let limits = &view["limits"];
        assert_eq!(limits["firewall_rules"]["used"], 3);
        assert_eq!(limits["firewall_rules"]["limit"], 1000);
        assert_eq!(limits["firewall_tables"]["bytes_per_cpu"], 1065 * 16);
        assert_eq!(limits["sources"], 1000);
        assert_eq!(limits["sources_bytes"], 250 * 352);
        let allow = serde_json::json!(["198.51.100.0/24", "192.0.2.1"]);
        assert_eq!(view["services"][0]["allow"], allow);
        let firewall = &view["firewall"];
        assert_eq!(firewall["default"], "deny");
        assert_eq!(firewall["prefixes"], 6);
        let rule = serde_json::json!({
            "name": "no-lab", "action": "deny", "source": "198.18.0.0/15", "protocol": "tcp",
            "source_port": "any", "port": "8000-9000",
        });
        assert_eq!(firewall["rules"][0], rule);
        assert_eq!(firewall["rules"][1]["name"], serde_json::Value::Null);
        let list = serde_json::json!({ "path": "/etc/xdplb/blocklist.txt", "prefixes": 2 });
        assert_eq!(firewall["blocklists"][0], list);
        let policies = serde_json::json!([
            {
                "name": "syn", "protocol": "tcp", "tcp_flags": ["syn"], "limit": 1000,
                "burst": 1000, "action": "block", "block_for": 60.0,
            },
            {
                "name": "ping", "protocol": "icmp", "tcp_flags": [], "limit": 10, "burst": 50,
                "action": "limit", "block_for": null,
            },
        ]);
        assert_eq!(view["dos"], policies);

        let view: serde_json::Value =
            serde_json::from_str(&printed(FILE, &[], true)).expect("JSON");
        assert_eq!(view["firewall"], serde_json::Value::Null);
        assert_eq!(view["dos"], serde_json::json!([]));
    }

    #[test]
    fn what_does_not_fit() {
        let loaded = crate::config::parse(PROTECTED, Path::new("lb.toml")).expect("a valid file");
        let error = compile(&loaded.config, &Contents::new()).expect_err("blocklists are missing");
        assert!(matches!(error, PlanError::Unread { .. }), "{error}");
    }

    const TUNNELS: &str = r#"
[datapath]
interfaces = ["eth0", "eth1"]
unknown_port = "reject"
icmp_echo = false
[tunnel]
source = ["172.16.0.0/16", "2001:db8::10"]
gue_port = 6081
[[service]]
name = "web"
vip = ["203.0.113.11", "2001:db8:1::11"]
protocol = "tcp"
port = 80
forward = "ipip"
no_backend = "reject"
[[service.backend]]
address = "10.0.5.2"
weight = 3
[[service.backend]]
address = "2001:db8:5::2"
interface = "eth1"
"#;

    #[test]
    fn tunnels() {
        let text = printed(TUNNELS, &[], false);
        for expected in [
            "  unknown_port     reject\n  icmp_echo        false\n",
            "tunnel\n  source           172.16.0.0/16, 2001:db8::10\n  gue_port         6081\n",
            // Each serves both families.
            "  backends         4 of 16384\n",
            "  forward          ipip\n",
            "  no_backend       reject\n",
            "10.0.5.2       10.0.5.2       same  3       up     75.0%  by route",
            "2001:db8:5::2  2001:db8:5::2  same  1       up     25.0%  eth1 ",
        ] {
            assert!(text.contains(expected), "{text}\nlacks {expected}");
        }
        assert!(!text.contains("warning"), "{text}");
    }

    #[test]
    fn mtus_that_tunnels_do_not_fit() {
        let warnings = |mtus: &[u32]| {
            let text = printed(TUNNELS, mtus, true);
            let view: serde_json::Value = serde_json::from_str(&text).expect("JSON");
            view["warnings"].as_array().expect("a list").clone()
        };
        assert_eq!(warnings(&[1500, 9000]), [] as [serde_json::Value; 0]);
        // The IPv4 backend may be behind eth0, the other one is not.
        let [ref warning] = warnings(&[9000, 1500])[..] else {
            panic!("one warning")
        };
        let message = warning["message"].as_str().expect("text");
        assert!(message.starts_with("eth1 has an MTU of 1500"), "{message}");
        assert!(message.contains("is 1540"), "{message}");
        assert_eq!(warning.get("line"), None);
        let text = printed(TUNNELS, &[1500, 1500], false);
        assert!(
            text.contains("\nwarning: eth1 has an MTU of 1500"),
            "{text}"
        );
    }

    #[test]
    fn this_hosts_mtus() {
        let lo = "lo".to_owned();
        assert_eq!(mtus(std::slice::from_ref(&lo)).len(), 1);
        assert!(mtus(&[lo, "xdplb-none".to_owned()]).is_empty());
    }
}
