//! The report of `xdplb check` in words, for people.

use std::fmt::Display;
use std::io::{self, Write};

use super::report::{
    BackendShare, FirewallLengths, FullNatPorts, Limits, Memory, Report, ServiceShares,
};
use crate::commands::text::columns;
use crate::config::{duration, Datapath, OnDown, Policy, Timeouts, Tunnel};

pub(super) fn print(report: &Report, out: &mut impl Write) -> io::Result<()> {
    datapath(report.datapath, out)?;
    limits(&report.limits, out)?;
    tables(&report.memory, out)?;
    timeouts(report.timeouts, out)?;
    tunnel(report.tunnel, out)?;
    if let Some(ports) = &report.full_nat {
        full_nat(ports, out)?;
    }
    writeln!(out, "log")?;
    line(out, "level", report.log.level_word())?;
    line(out, "format", report.log.format)?;
    for one in &report.services {
        service(one, out)?;
    }
    if let Some(one) = &report.firewall {
        firewall(one, out)?;
    }
    policies(report.dos, out)?;
    if !report.warnings.is_empty() {
        writeln!(out)?;
    }
    for warning in &report.warnings {
        writeln!(out, "warning: {}", warning.line)?;
    }
    Ok(())
}

fn datapath(datapath: &Datapath, out: &mut impl Write) -> io::Result<()> {
    writeln!(out, "datapath")?;
    line(out, "interfaces", list(&datapath.interfaces, ""))?;
    line(out, "xdp_mode", datapath.xdp_mode)?;
    line(out, "pin_dir", datapath.pin_dir.display())?;
    line(out, "run_dir", datapath.run_dir.display())?;
    line(
        out,
        "addresses",
        list(&datapath.addresses, "the interfaces' own"),
    )?;
    line(out, "hash_seed", datapath.hash_seed)?;
    line(out, "unknown_port", datapath.unknown_port)?;
    line(out, "icmp_echo", datapath.icmp_echo)
}

fn limits(limits: &Limits, out: &mut impl Write) -> io::Result<()> {
    let Limits {
        services,
        backends,
        connections,
        firewall_rules,
        sources,
    } = limits;
    let usage = |limit: u32, used: usize| format!("{used} of {limit}");
    writeln!(out, "limits")?;
    line(out, "services", usage(services.limit, services.used))?;
    line(out, "backends", usage(backends.limit, backends.used))?;
    line(
        out,
        "connections",
        format_args!("{connections} of each address family"),
    )?;
    line(
        out,
        "firewall_rules",
        usage(firewall_rules.limit, firewall_rules.used),
    )?;
    line(out, "sources", sources)
}

/// Every map, and the sum.
fn tables(all: &Memory, out: &mut impl Write) -> io::Result<()> {
    writeln!(out, "memory")?;
    let row = |name: &str, entries: String, bytes: u64, more: String| {
        [name.to_owned(), entries, memory(bytes), more]
    };
    let each = all.tables.iter().map(|table| {
        let more = match table.bytes_per_entry {
            0 => String::new(),
            bytes => format!("up to {bytes} bytes more for each entry that is there"),
        };
        row(&table.name, table.entries.to_string(), table.bytes, more)
    });
    let sum = row("all", String::new(), all.bytes, String::new());
    table(
        out,
        "tables",
        ["table", "entries", "memory", ""],
        each.chain([sum]),
    )
}

fn timeouts(timeouts: &Timeouts, out: &mut impl Write) -> io::Result<()> {
    writeln!(out, "timeouts")?;
    for (key, timeout) in [
        ("tcp_opening", timeouts.tcp_opening),
        ("tcp_established", timeouts.tcp_established),
        ("tcp_half_closed", timeouts.tcp_half_closed),
        ("tcp_closing", timeouts.tcp_closing),
        ("udp", timeouts.udp),
        ("other", timeouts.other),
    ] {
        line(out, key, duration::format(timeout))?;
    }
    Ok(())
}

fn tunnel(tunnel: &Tunnel, out: &mut impl Write) -> io::Result<()> {
    writeln!(out, "tunnel")?;
    line(
        out,
        "source",
        list(&tunnel.source, "the first of addresses"),
    )?;
    line(out, "gue_port", tunnel.gue_port)
}

fn full_nat(ports: &FullNatPorts, out: &mut impl Write) -> io::Result<()> {
    let FullNatPorts {
        first_port,
        last_port,
        connections_per_second,
        rest_seconds,
    } = ports;
    writeln!(out, "full-nat")?;
    line(out, "ports", format_args!("{first_port} to {last_port}"))?;
    line(
        out,
        "rate",
        format_args!("{connections_per_second} new connections a second from each address to each backend port"),
    )?;
    line(
        out,
        "",
        format_args!("a port is used again {rest_seconds} s after its connection has closed"),
    )
}

fn service(one: &ServiceShares, out: &mut impl Write) -> io::Result<()> {
    let service = one.service;
    writeln!(out, "\nservice {}", service.name)?;
    line(out, "vip", list(&service.vips, ""))?;
    line(out, "protocol", list(&service.protocols, ""))?;
    line(out, "port", list(&service.ports, ""))?;
    line(out, "forward", service.forward)?;
    line(out, "scheduler", one.scheduler)?;
    line(out, "hash", service.hash)?;
    line(out, "no_backend", service.no_backend)?;
    let on_down: Vec<OnDown> = (service.protocols.iter())
        .map(|&protocol| service.on_down.of(protocol))
        .collect();
    line(out, "on_down", list(&on_down, "none"))?;
    line(out, "allow", list(&service.allow, "all"))?;
    let row = |BackendShare {
                   backend,
                   share_percent,
               }: &BackendShare| {
        [
            backend.name.clone(),
            backend.address.to_string(),
            or("same", backend.port),
            backend.weight.to_string(),
            backend.state.to_string(),
            format!("{share_percent:.1}%"),
            or("by route", backend.interface.as_ref()),
            or("resolved", backend.mac),
        ]
    };
    let header = [
        "backend",
        "address",
        "port",
        "weight",
        "state",
        "share",
        "interface",
        "mac",
    ];
    table(out, "backends", header, one.backends.iter().map(row))
}

fn firewall(one: &FirewallLengths, out: &mut impl Write) -> io::Result<()> {
    writeln!(out, "\nfirewall")?;
    line(out, "default", one.firewall.default)?;
    if one.prefixes > 0 {
        let prefixes = one.prefixes;
        let most = memory(one.prefix_bytes);
        line(
            out,
            "prefixes",
            format_args!("{prefixes}, at most {most} of memory"),
        )?;
    }
    let header = [
        "rule",
        "name",
        "action",
        "source",
        "protocol",
        "source_port",
        "port",
    ];
    let rules = one.firewall.rules.iter().zip(1..).map(|(rule, number)| {
        [
            number.to_string(),
            or("", rule.name.as_ref()),
            rule.action.to_string(),
            or("any", rule.source),
            rule.protocol.to_string(),
            rule.source_port.to_string(),
            rule.port.to_string(),
        ]
    });
    table(out, "rules", header, rules)?;
    let lists = one.blocklists.iter();
    let lists = lists.map(|list| [list.path.display().to_string(), list.prefixes.to_string()]);
    table(out, "blocklists", ["blocklist", "prefixes"], lists)
}

fn policies(policies: &[Policy], out: &mut impl Write) -> io::Result<()> {
    if policies.is_empty() {
        return Ok(());
    }
    writeln!(out, "\ndos")?;
    let header = [
        "policy",
        "protocol",
        "tcp_flags",
        "limit",
        "burst",
        "action",
        "block_for",
    ];
    let row = |policy: &Policy| {
        let flags: Vec<_> = policy.flag_names().collect();
        [
            policy.name.clone(),
            policy.protocol.to_string(),
            or(
                "any",
                Some(flags.join(",")).filter(|flags| !flags.is_empty()),
            ),
            policy.limit.to_string(),
            policy.burst.to_string(),
            policy.action.word().to_owned(),
            or("", policy.action.block_for().map(duration::format)),
        ]
    };
    table(out, "policies", header, policies.iter().map(row))
}

fn line(out: &mut impl Write, key: &str, value: impl Display) -> io::Result<()> {
    writeln!(out, "  {key:<16} {value}")
}

/// The items, or `empty` where there is none.
fn list<T: Display>(items: &[T], empty: &str) -> String {
    if items.is_empty() {
        return empty.to_owned();
    }
    let items: Vec<_> = items.iter().map(ToString::to_string).collect();
    items.join(", ")
}

/// The value, or `absent` where there is none.
fn or(absent: &str, value: Option<impl ToString>) -> String {
    value.map_or(absent.to_owned(), |value| value.to_string())
}

fn memory(bytes: u64) -> String {
    if bytes < 1 << 10 {
        format!("{bytes} bytes")
    } else if bytes < 1 << 20 {
        format!("{:.1} KiB", bytes as f64 / f64::from(1 << 10))
    } else {
        format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
    }
}

/// Rows below their header, or that there is none of `what`.
fn table<const N: usize>(
    out: &mut impl Write,
    what: &str,
    header: [&str; N],
    rows: impl Iterator<Item = [String; N]>,
) -> io::Result<()> {
    let mut table = vec![header.map(str::to_owned).to_vec()];
    table.extend(rows.map(Vec::from));
    if table.len() < 2 {
        return line(out, what, "none");
    }
    for cell in table.iter_mut().filter_map(|row| row.first_mut()) {
        cell.insert_str(0, "  ");
    }
    columns(out, &table, &[])
}
