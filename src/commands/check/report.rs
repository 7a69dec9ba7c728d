//! The report of `xdplb check`: the configuration itself, and what follows from it: memory, shares of
//! backends, lengths of blocklists, warnings. Serialised, it is the JSON.

use std::path::Path;

use serde::Serialize;

use super::{mtu, Host};
use crate::config::{
    AdminState, Backend, Config, Datapath, Diagnostic, Family, Firewall, FirewallTables, Forward,
    Log, Policy, Service, Timeouts, Tunnel,
};
use crate::datapath::memory::Table;
use crate::nat_ports;
use crate::state::firewall::{Rule, Ruleset};

/// All that is shown, in either form.
#[derive(Serialize)]
pub(super) struct Report<'a> {
    pub datapath: &'a Datapath,
    pub limits: Limits,
    pub memory: Memory<'a>,
    pub timeouts: &'a Timeouts,
    pub tunnel: &'a Tunnel,
    pub full_nat: Option<FullNatPorts>,
    pub services: Vec<ServiceShares<'a>>,
    pub firewall: Option<FirewallLengths<'a>>,
    pub dos: &'a [Policy],
    pub log: &'a Log,
    pub warnings: Vec<Warning>,
}

/// The kernel memory that the datapath's maps take.
#[derive(Serialize)]
pub(super) struct Memory<'a> {
    /// The largest first.
    pub tables: Vec<&'a Table>,
    /// Of all tables together, as soon as they are created.
    pub bytes: u64,
}

/// How many connections full-nat can carry, where a service has it.
#[derive(Serialize)]
pub(super) struct FullNatPorts {
    pub first_port: u16,
    pub last_port: u16,
    /// New TCP connections a second from one of our addresses to one backend port, for as long as that may
    /// be: after each, the port rests.
    pub connections_per_second: u64,
    pub rest_seconds: u64,
}

/// The limits, with what the file uses of them.
#[derive(Serialize)]
pub(super) struct Limits {
    pub services: Usage,
    pub backends: Usage,
    pub connections: u32,
    pub firewall_rules: Usage,
    pub sources: u32,
}

#[derive(Serialize)]
pub(super) struct Usage {
    pub limit: u32,
    pub used: usize,
}

/// A service, with the share of each backend.
#[derive(Serialize)]
pub(super) struct ServiceShares<'a> {
    #[serde(flatten)]
    pub service: &'a Service,
    pub scheduler: &'static str,
    pub backends: Vec<BackendShare<'a>>,
}

#[derive(Serialize)]
pub(super) struct BackendShare<'a> {
    #[serde(flatten)]
    pub backend: &'a Backend,
    /// Of the new connections to the VIPs that it serves.
    pub share_percent: f64,
}

/// The firewall, with the length of each blocklist.
#[derive(Serialize)]
pub(super) struct FirewallLengths<'a> {
    #[serde(flatten)]
    pub firewall: &'a Firewall,
    pub blocklists: Vec<BlocklistLength<'a>>,
    /// Those that decide something, of rules and blocklists.
    pub prefixes: usize,
    pub prefix_bytes: u64,
}

#[derive(Serialize)]
pub(super) struct BlocklistLength<'a> {
    /// As in the file.
    pub path: &'a Path,
    pub prefixes: u32,
}

#[derive(Serialize)]
pub(super) struct Warning {
    /// In the file. Without it, about this host.
    #[serde(flatten)]
    place: Option<Place>,
    message: String,
    /// Both, as text.
    #[serde(skip)]
    pub line: String,
}

#[derive(Serialize)]
struct Place {
    /// As text: a name on the command line need not be UTF-8.
    file: String,
    line: usize,
    column: usize,
}

impl<'a> Report<'a> {
    /// As for [`super::print`].
    pub fn new(
        config: &'a Config,
        warnings: &[Diagnostic],
        host: &Host<'a>,
        ruleset: Option<&'a Ruleset>,
    ) -> Report<'a> {
        let firewall = config.firewall.as_ref();
        Report {
            datapath: &config.datapath,
            limits: Limits::new(config),
            memory: Memory::new(host.tables),
            timeouts: &config.timeouts,
            tunnel: &config.tunnel,
            full_nat: FullNatPorts::new(config, host.nat_ports),
            services: config.services.iter().map(ServiceShares::new).collect(),
            firewall: firewall.map(|firewall| FirewallLengths::new(firewall, ruleset)),
            dos: &config.dos,
            log: &config.log,
            warnings: warnings
                .iter()
                .map(Warning::about_file)
                .chain(mtu::warnings(config, host.mtus).map(Warning::about_host))
                .collect(),
        }
    }
}

impl<'a> Memory<'a> {
    fn new(tables: &'a [Table]) -> Memory<'a> {
        let mut tables: Vec<&Table> = tables.iter().collect();
        tables.sort_by(|a, b| b.bytes.cmp(&a.bytes).then_with(|| a.name.cmp(&b.name)));
        Memory {
            bytes: tables.iter().map(|table| table.bytes).sum(),
            tables,
        }
    }
}

impl FullNatPorts {
    fn new(config: &Config, (first_port, last_port): (u16, u16)) -> Option<FullNatPorts> {
        let mut services = config.services.iter();
        let ports = u64::from(last_port) + 1 - u64::from(first_port);
        let rest_seconds = nat_ports::HOLD.as_secs();
        services
            .any(|service| service.forward == Forward::FullNat)
            .then_some(FullNatPorts {
                first_port,
                last_port,
                connections_per_second: ports / rest_seconds,
                rest_seconds,
            })
    }
}

impl Limits {
    fn new(config: &Config) -> Limits {
        let limits = &config.limits;
        let services = config.services.iter();
        let rules = config.firewall.iter().flat_map(|firewall| &firewall.rules);
        Limits {
            services: Usage {
                limit: limits.services,
                used: services
                    .clone()
                    .map(|service| service.families().count())
                    .sum(),
            },
            backends: Usage {
                limit: limits.backends,
                used: services.map(backends_used).sum(),
            },
            connections: limits.connections,
            firewall_rules: Usage {
                limit: limits.firewall_rules,
                used: rules.count(),
            },
            sources: limits.sources,
        }
    }
}

/// How many of `limits.backends` a service takes.
fn backends_used(service: &Service) -> usize {
    service
        .families()
        .map(|family| service.backends_for(family).count())
        .sum()
}

impl<'a> ServiceShares<'a> {
    fn new(service: &'a Service) -> ServiceShares<'a> {
        let backends = service.backends.iter().map(|backend| BackendShare {
            backend,
            share_percent: share(service, backend),
        });
        ServiceShares {
            service,
            // The only one there is.
            scheduler: "maglev",
            backends: backends.collect(),
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

impl<'a> FirewallLengths<'a> {
    /// Without a ruleset it lets everything in.
    fn new(firewall: &'a Firewall, ruleset: Option<&'a Ruleset>) -> FirewallLengths<'a> {
        let rules = ruleset.iter().flat_map(|ruleset| ruleset.rules.values());
        let mut blocklists: Vec<(u32, BlocklistLength)> = rules
            .filter_map(|rule| match rule {
                Rule::Blocklist(position, path, prefixes) => {
                    let prefixes = *prefixes;
                    Some((*position, BlocklistLength { path, prefixes }))
                }
                _ => None,
            })
            .collect();
        blocklists.sort_unstable_by_key(|(position, _)| *position);
        let prefixes = ruleset.map_or(0, |ruleset| ruleset.prefixes.len());
        FirewallLengths {
            firewall,
            blocklists: blocklists.into_iter().map(|(_, list)| list).collect(),
            prefixes,
            prefix_bytes: FirewallTables::prefix_bytes(prefixes),
        }
    }
}

impl Warning {
    fn about_file(diagnostic: &Diagnostic) -> Warning {
        let place = &diagnostic.place;
        Warning {
            place: Some(Place {
                file: place.file.display().to_string(),
                line: place.line,
                column: place.column,
            }),
            message: diagnostic.message.clone(),
            line: diagnostic.to_string(),
        }
    }

    fn about_host(message: String) -> Warning {
        Warning {
            place: None,
            line: message.clone(),
            message,
        }
    }
}
