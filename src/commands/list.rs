//! `xdplb list`: services and backends, in the shape of `ipvsadm -Ln`.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::net::IpAddr;
use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::rates::{self, Rates, TrafficRate};
use super::stats::Stats;
use super::{text, Error};
use crate::cli::Look;
use crate::config::{PortRange, Protocol};
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
    #[serde(skip_serializing_if = "Option::is_none")]
    rate: Option<TrafficRate>,
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
    #[serde(skip_serializing_if = "Option::is_none")]
    rate: Option<TrafficRate>,
}

/// Prints every service with its backends; with rates a second, measured for as long as `rate` says, if it
/// is given.
///
/// # Errors
/// When no datapath is pinned there, or nothing can be printed.
pub fn run(
    look: &Look,
    stats: bool,
    rate: Option<Duration>,
    out: &mut impl Write,
) -> Result<(), Error> {
    let view = View::open(&look.pin_dir)?;
    let mut services = view.services()?;
    let mut rates = None;
    if let Some(interval) = rate {
        let then = Instant::now();
        thread::sleep(interval);
        let elapsed = then.elapsed();
        let before = Stats::of(std::mem::replace(&mut services, view.services()?));
        rates = Some(rates::between(
            &before,
            &Stats::of(services.clone()),
            elapsed,
        ));
    }
    let mut counts = Counts::default();
    view.for_each_connection(|connection| {
        counts.add(connection.entry.backend, connection);
        Ok::<(), Error>(())
    })?;
    let mut rows = rows(services, &counts);
    if let Some(rates) = &rates {
        add_rates(&mut rows, rates);
    }
    if look.json {
        return text::json(out, &rows);
    }
    print(out, &rows, stats, rates.is_some())
}

/// Both are of the same services and backends.
fn add_rates(rows: &mut [ServiceRow], rates: &Rates) {
    for row in rows {
        let mut services = rates.services.iter();
        let Some(service) = services.find(|service| service.name == row.name) else {
            continue;
        };
        row.rate = Some(service.rate);
        for row in &mut row.backends {
            let mut backends = service.backends.iter();
            let found =
                backends.find(|known| (known.address, known.port) == (row.address, row.port));
            row.rate = found.map(|backend| backend.rate);
        }
    }
}

/// A service's two address families are one service again.
fn rows(services: BTreeMap<u32, Service>, counts: &Counts<u32>) -> Vec<ServiceRow> {
    let mut rows: Vec<ServiceRow> = Vec::new();
    for service in services.into_values() {
        let backends = service.backends.iter().map(|(id, backend)| {
            let (active, inactive) = counts.of(id);
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
                rate: None,
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
                rate: None,
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

/// How many connections there are by some key: active ones (established TCP, UDP) and the others, as IPVS
/// tells them apart.
pub(super) struct Counts<K>(BTreeMap<K, (u64, u64)>);

impl<K> Default for Counts<K> {
    fn default() -> Self {
        Counts(BTreeMap::new())
    }
}

impl<K: Ord> Counts<K> {
    pub fn add(&mut self, key: K, connection: &Connection) {
        let (active, inactive) = self.0.entry(key).or_default();
        match connection.state {
            "established" | "udp" => *active += 1,
            _ => *inactive += 1,
        }
    }

    /// Active ones, and the others.
    pub fn of(&self, key: &K) -> (u64, u64) {
        self.0.get(key).copied().unwrap_or_default()
    }
}

fn print(out: &mut impl Write, rows: &[ServiceRow], stats: bool, rates: bool) -> Result<(), Error> {
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
    if rates {
        let columns = ["Conns/s", "InPkts/s", "OutPkts/s", "InBits/s", "OutBits/s"];
        header.extend(columns.map(str::to_owned));
    }
    // All but the backend, its name, forward, state and health.
    let numbers: Vec<usize> = (3..header.len())
        .filter(|column| ![4, 5].contains(column))
        .collect();
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
            cells.extend(backend.rate.iter().flat_map(TrafficRate::cells));
            table.push(cells);
        }
    }
    let mut aligned = Vec::new();
    text::columns(&mut aligned, &table, &numbers)?;
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
