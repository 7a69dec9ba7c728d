//! `xdplb list`: services and backends, in the shape of `ipvsadm -Ln`.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::net::IpAddr;

use serde::Serialize;

use super::{text, Error};
use crate::cli::Look;
use crate::config::{PortRange, Protocol};
use crate::datapath::connections::Entry;
use crate::datapath::view::{Connection, Exchange, Service};
use crate::datapath::View;

/// The only scheduler there is.
const SCHEDULER: &str = "maglev";

#[derive(Serialize)]
struct ServiceRow {
    name: String,
    vips: Vec<IpAddr>,
    protocols: Vec<String>,
    ports: Vec<String>,
    forward: String,
    scheduler: &'static str,
    hash: String,
    backends: Vec<BackendRow>,
    #[serde(skip)]
    bindings: Vec<(Protocol, IpAddr, Vec<PortRange>)>,
}

impl ServiceRow {
    /// A backend that serves VIPs of both families is one backend again.
    fn add(&mut self, backend: BackendRow) {
        let place = |row: &BackendRow| (row.address, row.port);
        let mut rows = self.backends.iter_mut();
        let Some(row) = rows.find(|row| place(row) == place(&backend)) else {
            self.backends.push(backend);
            return;
        };
        row.active += backend.active;
        row.inactive += backend.inactive;
        row.packets_in += backend.packets_in;
        row.bytes_in += backend.bytes_in;
        row.packets_out += backend.packets_out;
        row.bytes_out += backend.bytes_out;
        row.connections += backend.connections;
    }
}

#[derive(Serialize)]
struct BackendRow {
    name: String,
    address: IpAddr,
    port: Option<u16>,
    weight: u16,
    state: String,
    health: &'static str,
    active: u64,
    inactive: u64,
    packets_in: u64,
    bytes_in: u64,
    packets_out: u64,
    bytes_out: u64,
    connections: u64,
}

/// Prints every service with its backends.
///
/// # Errors
/// When no datapath is pinned there, or nothing can be printed.
pub fn run(look: &Look, stats: bool, out: &mut impl Write) -> Result<(), Error> {
    let view = View::open(&look.pin_dir)?;
    let rows = rows(view.services()?, &view.connections()?);
    if look.json {
        return text::json(out, &rows);
    }
    print(out, &rows, stats)
}

/// A service's two address families are one service again.
fn rows(services: BTreeMap<u32, Service>, connections: &[Connection]) -> Vec<ServiceRow> {
    let counts = count(connections, |entry| entry.backend);
    let mut rows: Vec<ServiceRow> = Vec::new();
    for service in services.into_values() {
        let backends = service.backends.iter().map(|(id, backend)| {
            let (active, inactive) = counts.get(id).copied().unwrap_or_default();
            let Exchange {
                packets_in,
                bytes_in,
                packets_out,
                bytes_out,
            } = backend.traffic.total();
            BackendRow {
                name: backend.name.clone(),
                address: backend.address,
                port: backend.port,
                weight: backend.weight,
                state: backend.state.to_string(),
                health: backend.health,
                active,
                inactive,
                packets_in,
                bytes_in,
                packets_out,
                bytes_out,
                connections: backend.traffic.opened,
            }
        });
        let bindings = service.vips.iter().flat_map(|(&vip, protocols)| {
            protocols
                .iter()
                .map(move |(&protocol, ports)| (protocol, vip, ports.clone()))
        });
        match rows.iter_mut().find(|row| row.name == service.name) {
            Some(row) => {
                backends.for_each(|backend| row.add(backend));
                row.bindings.extend(bindings);
                row.vips.extend(service.vips.keys());
            }
            None => rows.push(ServiceRow {
                name: service.name.clone(),
                vips: service.vips.keys().copied().collect(),
                protocols: distinct(service.vips.values().flat_map(BTreeMap::keys)),
                ports: distinct(service.vips.values().flat_map(BTreeMap::values).flatten()),
                forward: service.forward.to_string(),
                scheduler: SCHEDULER,
                hash: service.hash.to_string(),
                backends: backends.collect(),
                bindings: bindings.collect(),
            }),
        }
    }
    rows
}

fn distinct<T: ToString + Ord>(values: impl Iterator<Item = T>) -> Vec<String> {
    values
        .collect::<BTreeSet<T>>()
        .iter()
        .map(ToString::to_string)
        .collect()
}

/// Connections by what `key` tells them apart by: active ones (established TCP, UDP) and the others, as
/// IPVS tells them apart.
pub(super) fn count<K: Ord>(
    connections: &[Connection],
    key: impl Fn(&Entry) -> K,
) -> BTreeMap<K, (u64, u64)> {
    let mut counts: BTreeMap<K, (u64, u64)> = BTreeMap::new();
    for connection in connections {
        let (active, inactive) = counts.entry(key(&connection.entry)).or_default();
        match connection.state {
            "established" | "udp" => *active += 1,
            _ => *inactive += 1,
        }
    }
    counts
}

fn print(out: &mut impl Write, rows: &[ServiceRow], stats: bool) -> Result<(), Error> {
    let mut header: Vec<String> = [
        "  -> RemoteAddress:Port",
        "Name",
        "Forward",
        "Weight",
        "State",
        "Health",
        "ActiveConn",
        "InActConn",
    ]
    .map(str::to_owned)
    .to_vec();
    if stats {
        header.extend(["Conns", "InPkts", "OutPkts", "InBytes", "OutBytes"].map(str::to_owned));
    }
    // One table for all services, so that their columns stand below each other.
    let mut table = vec![header];
    let mut heads = Vec::new();
    for row in rows {
        heads.push(table.len());
        for backend in &row.backends {
            let port = backend.port.map_or("*".to_owned(), |port| port.to_string());
            let mut cells = vec![
                format!("  -> {}", text::bound(backend.address, port)),
                backend.name.clone(),
                row.forward.clone(),
                backend.weight.to_string(),
                backend.state.clone(),
                backend.health.to_owned(),
                backend.active.to_string(),
                backend.inactive.to_string(),
            ];
            if stats {
                cells.extend(
                    [
                        backend.connections,
                        backend.packets_in,
                        backend.packets_out,
                        backend.bytes_in,
                        backend.bytes_out,
                    ]
                    .map(|number| number.to_string()),
                );
            }
            table.push(cells);
        }
    }
    let mut aligned = Vec::new();
    text::columns(&mut aligned, &table, &[3, 6, 7, 8, 9, 10, 11, 12])?;
    let aligned = String::from_utf8_lossy(&aligned).into_owned();
    let lines: Vec<&str> = aligned.lines().collect();

    writeln!(out, "Prot LocalAddress:Port Scheduler Service")?;
    writeln!(out, "{}", lines.first().unwrap_or(&""))?;
    for (row, start) in rows.iter().zip(heads) {
        for (protocol, vip, ports) in &row.bindings {
            let protocol = protocol.to_string().to_uppercase();
            writeln!(
                out,
                "{protocol:<4} {} {} {}",
                text::bound(*vip, text::ranges(ports)),
                row.scheduler,
                row.name
            )?;
        }
        for line in &lines[start..start + row.backends.len()] {
            writeln!(out, "{line}")?;
        }
    }
    Ok(())
}
