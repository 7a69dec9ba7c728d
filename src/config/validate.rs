//! The rules between values, the defaults, and the way from what the file says to [`Config`].
//!
//! Every rule is checked, even where others have failed, so that all faults are reported at once; only
//! faults that would follow from a value that is itself reported are left out.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use super::checks::{check_length, check_names, check_repeats, families, given, items};
use super::place::At;
use super::protection;
use super::raw;
use super::report::Report;
use super::{
    AdminState, Backend, Config, Datapath, Family, Forward, HashBy, Limits, Log, OnDownByProtocol,
    PortRange, Refusal, Service, Timeouts, Tunnel, XdpMode, ADDRESS_LIMIT, INTERFACE_LIMIT,
    PIN_DIR, RUN_DIR,
};

/// Checks everything.
pub(super) fn check(file: &raw::File, report: &mut Report) {
    check_between(file, report);
    for service in &file.services {
        check_service(service, report);
    }
}

/// Checks everything but what [`check_service`] does.
pub(super) fn check_between(file: &raw::File, report: &mut Report) {
    check_datapath(&file.datapath, report);
    check_limits(file, report);
    check_tunnel(&file.tunnel, report);
    check_overlaps(&file.services, report);
    let names = file
        .services
        .iter()
        .filter_map(|service| Some((service.what.as_str(), service.name.as_ref()?)));
    check_names("service", names, report);
    let context = Context::new(file);
    for service in &file.services {
        for backend in &service.backends {
            check_place(backend, &context, report);
        }
        check_full_nat(service, &context, report);
    }
    protection::check(file, report);
}

/// Checks what only the service itself decides.
pub(super) fn check_service(service: &raw::Service, report: &mut Report) {
    let what = &service.what;
    check_repeats(what, "vip", &service.vips, report);
    check_repeats(what, "protocol", &service.protocols, report);
    check_ports(service, report);
    check_backends(service, report);
    protection::check_allow(service, report);
    warn_of_idle(service, report);
}

/// The parts of the file outside a service that its rules look at.
struct Context<'a> {
    /// `None`: not known, since it is itself reported.
    interfaces: Option<HashSet<&'a str>>,
    /// The full-nat source pool. `None`: not known, since it is itself reported.
    pool: Option<HashSet<IpAddr>>,
    /// Each VIP with the service that has it first.
    vips: HashMap<IpAddr, &'a raw::Service>,
}

impl<'a> Context<'a> {
    fn new(file: &'a raw::File) -> Context<'a> {
        let interfaces = file.datapath.interfaces.as_ref().map(|list| &list.value);
        let pool = file.datapath.addresses.as_ref().map(|list| &list.value);
        let mut vips = HashMap::new();
        for service in &file.services {
            for vip in service.vips.values() {
                vips.entry(vip).or_insert(service.as_ref());
            }
        }
        Context {
            interfaces: interfaces.filter(|list| list.complete).map(|list| {
                list.items
                    .iter()
                    .map(|interface| interface.value.as_str())
                    .collect()
            }),
            pool: match pool {
                None => Some(HashSet::new()),
                Some(list) => list.complete.then(|| list.values().collect()),
            },
            vips,
        }
    }
}

fn check_datapath(datapath: &raw::Datapath, report: &mut Report) {
    if let Some(At {
        value: interfaces,
        at,
    }) = &datapath.interfaces
    {
        if interfaces.complete && interfaces.items.is_empty() {
            let message =
                "datapath: interfaces is empty; name at least one: interfaces = [\"eth0\"]";
            report.error(*at, message);
        }
        let remedy = "leave out those that lead to no client and no backend";
        check_length(
            "datapath",
            "interfaces",
            INTERFACE_LIMIT,
            remedy,
            interfaces,
            report,
        );
        check_repeats("datapath", "interfaces", interfaces, report);
    }
    if let Some(At {
        value: addresses, ..
    }) = &datapath.addresses
    {
        check_length(
            "datapath",
            "addresses",
            ADDRESS_LIMIT,
            "remove the rest",
            addresses,
            report,
        );
        check_repeats("datapath", "addresses", addresses, report);
    }
}

/// Everything must fit the maps, whose sizes `[limits]` fixes.
fn check_limits(file: &raw::File, report: &mut Report) {
    let defaults = Limits::default();
    let services = file
        .services
        .iter()
        .map(|service| (families(service).len(), service.at));
    check_limit(
        "services",
        " (one with VIPs of both families counts twice)",
        &file.limits.services,
        defaults.services,
        services,
        report,
    );
    let backends = file.services.iter().flat_map(|service| {
        let families = families(service);
        service
            .backends
            .iter()
            .map(move |backend| (places(service, backend, &families), backend.at))
    });
    check_limit(
        "backends",
        " (one that serves VIPs of both families counts twice)",
        &file.limits.backends,
        defaults.backends,
        backends,
        report,
    );
    let rules = file.firewall.iter().flat_map(|firewall| &firewall.rules);
    check_limit(
        "firewall_rules",
        "",
        &file.limits.firewall_rules,
        defaults.firewall_rules,
        rules.map(|rule| (1, rule.at)),
        report,
    );
}

/// How many of the service's families a backend serves; one that is at fault is counted once.
fn places(service: &raw::Service, backend: &raw::Backend, families: &[Family]) -> usize {
    let (Some(forward), Some(address)) = (&service.forward, &backend.address) else {
        return 1;
    };
    let served = |family: &&Family| forward.value.carries(**family, Family::of(address.value));
    families.iter().filter(served).count().max(1)
}

/// One outer source of each family: which of several a packet gets, nothing would say.
fn check_tunnel(tunnel: &raw::Tunnel, report: &mut Report) {
    let mut seen = HashMap::new();
    for At { value: source, at } in tunnel.source.iter().flat_map(|list| &list.items) {
        let family = Family::of(source.address());
        if let Some(first) = seen.insert(family, source) {
            let message = format!(
                "tunnel: source has {first} and {source}, both {family}; keep one, and to vary the \
                 source write a prefix, such as \"{}\"",
                match family {
                    Family::Ipv4 => "172.16.0.0/16",
                    Family::Ipv6 => "2001:db8:1::/96",
                }
            );
            report.error(*at, message);
        }
    }
}

/// `items` are counted, each with its weight and its place. The fault is at the limit if
/// the file gives one, else at the first item beyond it.
fn check_limit(
    key: &str,
    note: &str,
    given: &Option<At<u32>>,
    default: u32,
    items: impl Iterator<Item = (usize, usize)>,
    report: &mut Report,
) {
    let limit = given.as_ref().map_or(default, |given| given.value);
    let mut count = 0;
    let mut beyond = None;
    for (weight, at) in items {
        count += weight;
        if count > limit as usize && beyond.is_none() {
            beyond = Some(at);
        }
    }
    if let Some(beyond) = beyond {
        let message = format!(
            "limits: {key} is {limit}, but the file has {count}{note}; write {key} = {count} or more"
        );
        report.error(given.as_ref().map_or(beyond, |given| given.at), message);
    }
}

/// The pairs of `claims` whose ports overlap, each pair in the order of the claimants. Of many that
/// overlap each other, every one is in at least one pair.
fn overlapping<T: Ord + Copy>(
    mut claims: Vec<(PortRange, T)>,
) -> Vec<((PortRange, T), (PortRange, T))> {
    claims.sort_unstable();
    let mut pairs = Vec::new();
    // The one that reaches furthest of those that begin before the next.
    let mut widest: Option<(PortRange, T)> = None;
    for claim in claims {
        if let Some(other) = widest.filter(|other| claim.0.first <= other.0.last) {
            pairs.push(if other.1 <= claim.1 {
                (other, claim)
            } else {
                (claim, other)
            });
        }
        if widest.is_none_or(|widest| claim.0.last >= widest.0.last) {
            widest = Some(claim);
        }
    }
    pairs
}

/// No packet may belong to two services, except that one that names the port goes before "any".
fn check_overlaps(services: &[Arc<raw::Service>], report: &mut Report) {
    let mut claims: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for (index, service) in services.iter().enumerate() {
        for vip in service.vips.values() {
            for protocol in service.protocols.values() {
                for At { value: ports, at } in &service.ports.items {
                    let any = *ports == PortRange::ANY;
                    let claimants = claims.entry((vip, protocol, any)).or_default();
                    claimants.push((*ports, (index, *at)));
                }
            }
        }
    }
    let mut reported = HashSet::new();
    for ((vip, protocol, _), claims) in claims {
        for ((_, (first, first_at)), (ports, (second, at))) in overlapping(claims) {
            if first == second || !reported.insert((first, second)) {
                continue;
            }
            let message = format!(
                "{}: {protocol} port {ports} of {vip} is also taken by {} ({}); give one of them \
                 another VIP, protocol or port",
                services[second].what,
                services[first].what,
                report.place(first_at),
            );
            report.error(at, message);
        }
    }
}

/// The ports of one service: disjoint, and "any" by itself.
fn check_ports(service: &raw::Service, report: &mut Report) {
    let what = &service.what;
    let ports = &service.ports.items;
    let any = ports.iter().find(|ports| ports.value == PortRange::ANY);
    if let (Some(any), true) = (any, ports.len() > 1) {
        report.error(
            any.at,
            format_args!(
                "{what}: port has \"any\" in a list; write port = \"any\" alone, or leave it out"
            ),
        );
        return;
    }
    let claims = ports.iter().map(|ports| (ports.value, ports.at)).collect();
    for ((other, _), (ports, at)) in overlapping(claims) {
        let message = format!("{what}: port {ports} overlaps {other} in this list; name each once");
        report.error(at, message);
    }
}

/// The backend is another machine, and behind an interface that is ours.
fn check_place(backend: &raw::Backend, context: &Context, report: &mut Report) {
    check_interface(backend, context, report);
    let what = &backend.what;
    let Some(At { value: address, at }) = backend.address else {
        return;
    };
    if let Some(owner) = context.vips.get(&address) {
        let message = format!(
            "{what}: address {address} is a VIP of {}, so its packets would come back here; \
             write the backend's own address",
            owner.what
        );
        report.error(at, message);
    } else if context
        .pool
        .as_ref()
        .is_some_and(|pool| pool.contains(&address))
    {
        let message = format!(
            "{what}: address {address} is one of datapath.addresses and so this host's own, \
             which XDP cannot deliver to; write the address of another machine"
        );
        report.error(at, message);
    }
}

fn check_backends(service: &raw::Service, report: &mut Report) {
    let families = families(service);
    let mut names = HashSet::new();
    let mut places = HashSet::new();
    for backend in &service.backends {
        let what = &backend.what;
        let Some(At { value: address, at }) = backend.address else {
            continue;
        };
        let family = Family::of(address);
        if let Some(At { value: forward, .. }) = service.forward {
            let served = families.iter().any(|vip| forward.carries(*vip, family));
            if service.vips.complete && !served {
                let message = format!(
                    "{what}: address {address} is {family}, but the service has no {family} VIP and \
                     {forward} does not carry one family to the other; add an {family} VIP, write an \
                     address of the other family, or use ipip or gue"
                );
                report.error(at, message);
            }
            check_no_port(forward, backend, report);
        }
        if !places.insert((address, effective_port(service, backend))) {
            let message = format!(
                "{what}: an earlier backend of this service has the same address{}",
                if is_direct(service) {
                    "; remove one"
                } else {
                    " and port; remove one, or change its port"
                }
            );
            report.error(at, message);
        } else if !names.insert(backend_name(backend, address)) {
            // Only else: two at the same address and port that have no name have the same name.
            let at = backend.name.as_ref().map_or(at, |name| name.at);
            let message = format!(
                "{what}: an earlier backend of this service has the same name; give each its own"
            );
            report.error(at, message);
        }
        warn_of_one_port(service, backend, report);
    }
}

fn check_interface(backend: &raw::Backend, context: &Context, report: &mut Report) {
    let (Some(At { value, at }), Some(interfaces)) = (&backend.interface, &context.interfaces)
    else {
        return;
    };
    if !interfaces.contains(value.as_str()) {
        let message = format!(
            "{}: interface {value:?} is not one of datapath.interfaces; add it there, or leave \
             this key out to follow the route",
            backend.what
        );
        report.error(*at, message);
    }
}

/// With direct return the backend gets the client's own packet, whose port is the client's choice.
fn check_no_port(forward: Forward, backend: &raw::Backend, report: &mut Report) {
    if let (true, Some(port)) = (forward.is_direct(), &backend.port) {
        let message = format!(
            "{}: port cannot be set with forward = \"{forward}\": packets come to the backend at the \
             VIP's own port; remove this key, or use nat or full-nat",
            backend.what
        );
        report.error(port.at, message);
    }
}

/// Whether backends answer directly, as far as it is known.
fn is_direct(service: &raw::Service) -> bool {
    service
        .forward
        .as_ref()
        .is_some_and(|forward| forward.value.is_direct())
}

/// Warns of a backend that gets all 65,536 ports at one of its own.
fn warn_of_one_port(service: &raw::Service, backend: &raw::Backend, report: &mut Report) {
    let Some(At { value: port, at }) = backend.port else {
        return;
    };
    if is_direct(service) {
        return;
    }
    if service.ports.values().any(|ports| ports == PortRange::ANY) {
        let message = format!(
            "{}: every port of the VIP goes to port {port} here, since the service's port is \
             \"any\"; leave this key out to keep the client's",
            backend.what
        );
        report.warning(at, message);
    }
}

/// The port at which a backend is reached, if that does not depend on the packet.
fn effective_port(service: &raw::Service, backend: &raw::Backend) -> Option<u16> {
    if is_direct(service) {
        return None;
    }
    match (&backend.port, service.ports.items.as_slice()) {
        (Some(port), _) => Some(port.value),
        (
            None,
            [At {
                value: PortRange { first, last },
                ..
            }],
        ) if first == last => Some(*first),
        _ => None,
    }
}

fn backend_name(backend: &raw::Backend, address: IpAddr) -> String {
    match (&backend.name, &backend.port) {
        (Some(name), _) => name.value.clone(),
        (None, Some(port)) => SocketAddr::new(address, port.value).to_string(),
        (None, None) => address.to_string(),
    }
}

/// A pool that is given must have a source for every family that full-nat sends in.
fn check_full_nat(service: &raw::Service, context: &Context, report: &mut Report) {
    let Some(At {
        value: Forward::FullNat,
        at,
    }) = &service.forward
    else {
        return;
    };
    let Some(pool) = context.pool.as_ref().filter(|pool| !pool.is_empty()) else {
        return;
    };
    for family in families(service) {
        let needed = backends(service).any(|(address, _)| Family::of(address) == family);
        if needed && !pool.iter().any(|own| Family::of(*own) == family) {
            let message = format!(
                "{}: forward = \"full-nat\" to {family} backends needs an {family} source; add one \
                 to datapath.addresses, or leave that key out to use the interfaces' own",
                service.what
            );
            report.error(*at, message);
        }
    }
}

/// Addresses of the backends, with whether each is given new connections.
fn backends(service: &raw::Service) -> impl Iterator<Item = (IpAddr, bool)> + '_ {
    service.backends.iter().filter_map(|backend| {
        let up = backend
            .state
            .as_ref()
            .is_none_or(|state| state.value == AdminState::Up);
        let weight = backend
            .weight
            .as_ref()
            .is_none_or(|weight| weight.value > 0);
        backend
            .address
            .as_ref()
            .map(|address| (address.value, up && weight))
    })
}

/// Warns of VIPs that have no usable backend.
fn warn_of_idle(service: &raw::Service, report: &mut Report) {
    let what = &service.what;
    let fate = match given(service.no_backend, Refusal::Drop) {
        Refusal::Pass => "passed to the host's stack",
        Refusal::Drop => "dropped",
        Refusal::Reject => "rejected",
    };
    if service.backends.is_empty() {
        let message =
            format!("{what} has no backend, so its packets are {fate}; add a [[service.backend]]");
        report.warning(service.at, message);
        return;
    }
    if !backends(service).any(|(_, usable)| usable) {
        let message = format!(
            "{what} has no backend that is up with a weight above 0, so new connections are \
             {fate}; set state = \"up\" and a weight on one"
        );
        report.warning(service.at, message);
        return;
    }
    let Some(At { value: forward, .. }) = service.forward else {
        return;
    };
    for family in families(service) {
        let serves = |address| forward.carries(family, Family::of(address));
        if backends(service).any(|(address, usable)| usable && serves(address)) {
            continue;
        }
        let vips = service.vips.items.iter();
        for vip in vips.filter(|vip| Family::of(vip.value) == family) {
            let message = format!(
                "{what}: no {family} backend is up with a weight above 0, so new connections to \
                 {} are {fate}; add one, or remove the VIP",
                vip.value
            );
            report.warning(vip.at, message);
        }
    }
}

/// The configuration that `file` describes, with the defaults filled in; worth something only if there are
/// no errors. Leaves out what lacks a required value, all of which is reported.
pub(super) fn build(file: raw::File) -> Config {
    let raw::File {
        datapath,
        limits,
        timeouts,
        tunnel,
        services,
        firewall,
        dos,
        level,
        format,
    } = file;
    let default_limits = Limits::default();
    let default_timeouts = Timeouts::default();
    let default_tunnel = Tunnel::default();
    let default_log = Log::default();
    Config {
        datapath: Datapath {
            interfaces: datapath
                .interfaces
                .map(|list| items(list.value))
                .unwrap_or_default(),
            xdp_mode: given(datapath.xdp_mode, XdpMode::Auto),
            pin_dir: given(datapath.pin_dir, PathBuf::from(PIN_DIR)),
            run_dir: given(datapath.run_dir, PathBuf::from(RUN_DIR)),
            addresses: datapath
                .addresses
                .map(|list| items(list.value))
                .unwrap_or_default(),
            hash_seed: given(datapath.hash_seed, 0),
            unknown_port: given(datapath.unknown_port, Refusal::Pass),
            icmp_echo: given(datapath.icmp_echo, true),
        },
        limits: Limits {
            services: given(limits.services, default_limits.services),
            backends: given(limits.backends, default_limits.backends),
            connections: given(limits.connections, default_limits.connections),
            firewall_rules: given(limits.firewall_rules, default_limits.firewall_rules),
            sources: given(limits.sources, default_limits.sources),
        },
        timeouts: Timeouts {
            tcp_opening: given(timeouts.tcp_opening, default_timeouts.tcp_opening),
            tcp_established: given(timeouts.tcp_established, default_timeouts.tcp_established),
            tcp_half_closed: given(timeouts.tcp_half_closed, default_timeouts.tcp_half_closed),
            tcp_closing: given(timeouts.tcp_closing, default_timeouts.tcp_closing),
            udp: given(timeouts.udp, default_timeouts.udp),
            other: given(timeouts.other, default_timeouts.other),
        },
        tunnel: Tunnel {
            source: tunnel.source.map(items).unwrap_or_default(),
            gue_port: given(tunnel.gue_port, default_tunnel.gue_port),
        },
        services: services
            .iter()
            .filter_map(|service| build_service(service))
            .collect(),
        firewall: firewall.map(protection::firewall),
        dos: dos.into_iter().filter_map(protection::policy).collect(),
        log: Log {
            level: given(level, default_log.level),
            format: given(format, default_log.format),
        },
    }
}

fn build_service(service: &raw::Service) -> Option<Service> {
    let mut ports: Vec<PortRange> = service.ports.values().collect();
    ports.sort_unstable();
    let allow = service.allow.iter().flat_map(|list| list.value.values());
    Some(Service {
        name: service.name.as_ref()?.value.clone(),
        vips: service.vips.values().collect(),
        protocols: service.protocols.values().collect(),
        ports,
        forward: service.forward?.value,
        hash: given(service.hash, HashBy::FiveTuple),
        no_backend: given(service.no_backend, Refusal::Drop),
        on_down: OnDownByProtocol::new(service.on_down.map(|at| at.value)),
        allow: allow.collect(),
        backends: service.backends.iter().filter_map(build_backend).collect(),
    })
}

fn build_backend(backend: &raw::Backend) -> Option<Backend> {
    let address = backend.address?.value;
    let interface = backend.interface.as_ref();
    Some(Backend {
        name: backend_name(backend, address),
        address,
        port: backend.port.map(|port| port.value),
        weight: given(backend.weight, 1),
        state: given(backend.state, AdminState::Up),
        interface: interface.map(|interface| interface.value.clone()),
        mac: backend.mac.map(|mac| mac.value),
    })
}
