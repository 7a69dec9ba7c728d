//! `xdplb stats`: packets, bytes and connections so far, by protocol, by service and by backend.
//!
//! Owns the sums. Rates per second are [`super::rates`]'s.

use std::collections::BTreeMap;
use std::io::Write;
use std::net::IpAddr;

use serde::Serialize;

use super::list::Counts;
use super::{text, Error};
use crate::cli::Look;
use crate::datapath::view::{Class, Exchange, Service, Traffic};
use crate::datapath::View;

/// Everything that is counted, at one moment.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Stats {
    /// In the order of [`Class::ALL`]; over the services that there are.
    pub protocols: [Exchange; Class::ALL.len()],
    /// In the order of the maps.
    pub services: Vec<ServiceStats>,
}

/// A service, both address families of it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct ServiceStats {
    pub name: String,
    /// Of its backends, and of those that it no longer has.
    pub traffic: Traffic,
    pub backends: Vec<BackendStats>,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct BackendStats {
    /// Those in the maps: two if it serves VIPs of both families.
    ids: Vec<u32>,
    pub name: String,
    pub address: IpAddr,
    /// `None`: the packet's own.
    pub port: Option<u16>,
    pub traffic: Traffic,
}

impl Stats {
    /// Adds up what the maps have: a service's two address families are one service again.
    pub fn of(services: BTreeMap<u32, Service>) -> Stats {
        let mut stats = Stats::default();
        for service in services.into_values() {
            let index = stats.place(&service.name);
            let Some(sums) = stats.services.get_mut(index) else {
                continue;
            };
            sums.traffic += service.past;
            for (id, backend) in service.backends {
                sums.traffic += backend.traffic;
                let place = (backend.address, backend.port);
                let mut known = sums.backends.iter_mut();
                match known.find(|known| (known.address, known.port) == place) {
                    Some(known) => {
                        known.ids.push(id);
                        known.traffic += backend.traffic;
                    }
                    None => sums.backends.push(BackendStats {
                        ids: vec![id],
                        name: backend.name,
                        address: backend.address,
                        port: backend.port,
                        traffic: backend.traffic,
                    }),
                }
            }
        }
        for service in &stats.services {
            for (sum, exchange) in stats.protocols.iter_mut().zip(service.traffic.by) {
                *sum += exchange;
            }
        }
        stats
    }

    /// Where the service of this name is, or will be from now on.
    fn place(&mut self, name: &str) -> usize {
        let mut known = self.services.iter();
        known
            .position(|known| known.name == name)
            .unwrap_or_else(|| {
                self.services.push(ServiceStats {
                    name: name.to_owned(),
                    traffic: Traffic::default(),
                    backends: Vec::new(),
                });
                self.services.len() - 1
            })
    }
}

impl BackendStats {
    /// How a table calls it.
    pub fn label(&self) -> String {
        let port = self.port.map_or("*".to_owned(), |port| port.to_string());
        format!("  -> {} {}", self.name, text::bound(self.address, port))
    }
}

#[derive(Serialize)]
struct Row {
    protocols: Vec<ProtocolRow>,
    services: Vec<ServiceRow>,
}

#[derive(Serialize)]
struct ProtocolRow {
    protocol: &'static str,
    #[serde(flatten)]
    exchange: ExchangeRow,
    active: u64,
    inactive: u64,
}

#[derive(Serialize)]
struct ServiceRow {
    name: String,
    #[serde(flatten)]
    counts: CountsRow,
    backends: Vec<BackendRow>,
}

#[derive(Serialize)]
struct BackendRow {
    name: String,
    address: IpAddr,
    port: Option<u16>,
    #[serde(flatten)]
    counts: CountsRow,
    #[serde(skip)]
    label: String,
}

#[derive(Serialize, Clone, Copy)]
struct ExchangeRow {
    packets_in: u64,
    bytes_in: u64,
    packets_out: u64,
    bytes_out: u64,
}

#[derive(Serialize)]
struct CountsRow {
    #[serde(flatten)]
    exchange: ExchangeRow,
    opened: u64,
    closed: u64,
    active: u64,
    inactive: u64,
    unrecorded: u64,
    /// Only those with packets.
    protocols: BTreeMap<&'static str, ExchangeRow>,
}

impl From<Exchange> for ExchangeRow {
    fn from(exchange: Exchange) -> Self {
        ExchangeRow {
            packets_in: exchange.packets_in,
            bytes_in: exchange.bytes_in,
            packets_out: exchange.packets_out,
            bytes_out: exchange.bytes_out,
        }
    }
}

impl CountsRow {
    fn new(traffic: &Traffic, (active, inactive): (u64, u64)) -> CountsRow {
        let by = Class::ALL.into_iter().zip(traffic.by);
        CountsRow {
            exchange: traffic.total().into(),
            opened: traffic.opened,
            closed: traffic.closed,
            active,
            inactive,
            unrecorded: traffic.unrecorded,
            protocols: by
                .filter(|(_, exchange)| *exchange != Exchange::default())
                .map(|(class, exchange)| (class.name(), exchange.into()))
                .collect(),
        }
    }

    fn cells(&self, label: &str) -> Vec<String> {
        let connections = [
            self.opened,
            self.closed,
            self.active,
            self.inactive,
            self.unrecorded,
        ];
        let mut cells = self.exchange.cells(label);
        cells.extend(connections.map(|number| number.to_string()));
        cells
    }
}

impl ExchangeRow {
    fn cells(&self, label: &str) -> Vec<String> {
        let numbers = [
            self.packets_in,
            self.packets_out,
            self.bytes_in,
            self.bytes_out,
        ];
        let mut cells = vec![label.to_owned()];
        cells.extend(numbers.map(|number| number.to_string()));
        cells
    }
}

/// Prints the totals.
///
/// # Errors
/// When no datapath is pinned there, or nothing can be printed.
pub fn run(look: &Look, out: &mut impl Write) -> Result<(), Error> {
    let view = View::open(&look.pin_dir)?;
    let stats = Stats::of(view.services()?);
    let mut by_backend = Counts::default();
    let mut by_protocol = Counts::default();
    view.for_each_connection(|connection| {
        let entry = &connection.entry;
        by_backend.add(entry.backend, connection);
        by_protocol.add(Class::of(entry.flow.protocol), connection);
        Ok::<(), Error>(())
    })?;
    let of_backends = |backends: &[BackendStats]| {
        let ids = backends.iter().flat_map(|backend| &backend.ids);
        let counts = ids.map(|id| by_backend.of(id));
        counts.fold((0, 0), |sum, count| (sum.0 + count.0, sum.1 + count.1))
    };
    let protocols = Class::ALL.into_iter().zip(stats.protocols);
    let row = Row {
        protocols: protocols
            .map(|(class, exchange)| {
                let (active, inactive) = by_protocol.of(&class);
                ProtocolRow {
                    protocol: class.name(),
                    exchange: exchange.into(),
                    active,
                    inactive,
                }
            })
            .collect(),
        services: stats
            .services
            .iter()
            .map(|service| ServiceRow {
                name: service.name.clone(),
                counts: CountsRow::new(&service.traffic, of_backends(&service.backends)),
                backends: service
                    .backends
                    .iter()
                    .map(|backend| BackendRow {
                        name: backend.name.clone(),
                        address: backend.address,
                        port: backend.port,
                        counts: CountsRow::new(
                            &backend.traffic,
                            of_backends(std::slice::from_ref(backend)),
                        ),
                        label: backend.label(),
                    })
                    .collect(),
            })
            .collect(),
    };
    if look.json {
        return text::json(out, &row);
    }
    print(out, &row)
}

fn print(out: &mut impl Write, row: &Row) -> Result<(), Error> {
    let header = [
        "",
        "InPkts",
        "OutPkts",
        "InBytes",
        "OutBytes",
        "Opened",
        "Closed",
        "ActiveConn",
        "InActConn",
        "Unrecorded",
    ];
    let mut table = vec![header.map(str::to_owned).to_vec()];
    for protocol in &row.protocols {
        let mut cells = protocol.exchange.cells(protocol.protocol);
        // How many were opened and closed is not counted by protocol.
        cells.extend(["-".to_owned(), "-".to_owned()]);
        cells.extend([protocol.active, protocol.inactive].map(|number| number.to_string()));
        table.push(cells);
    }
    for service in &row.services {
        table.push(Vec::new());
        table.push(service.counts.cells(&service.name));
        for backend in &service.backends {
            table.push(backend.counts.cells(&backend.label));
        }
    }
    let numbers: Vec<usize> = (1..header.len()).collect();
    text::columns(out, &table, &numbers)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{AdminState, Forward, HashBy};
    use crate::datapath::view::Backend;

    fn traffic(packets_in: u64, opened: u64) -> Traffic {
        let mut traffic = Traffic {
            opened,
            ..Traffic::default()
        };
        traffic.by[Class::Udp as usize].packets_in = packets_in;
        traffic
    }

    fn service(name: &str, past: Traffic, backends: &[(u32, &str, Traffic)]) -> Service {
        let backends = backends.iter().map(|(id, address, traffic)| {
            let backend = Backend {
                name: format!("at {address}"),
                address: address.parse().expect("an address"),
                port: None,
                weight: 1,
                state: AdminState::Up,
                health: "up",
                traffic: *traffic,
            };
            (*id, backend)
        });
        Service {
            name: name.into(),
            forward: Forward::Ipip,
            hash: HashBy::FiveTuple,
            vips: BTreeMap::new(),
            past,
            backends: backends.collect(),
        }
    }

    #[test]
    fn a_service_is_its_backends_and_those_that_it_had() {
        let half = |past, backends: &[_]| service("web", past, backends);
        let one = traffic(1, 1);
        let stats = Stats::of(BTreeMap::from([
            // The two families, which share a backend.
            (
                0,
                half(
                    traffic(100, 10),
                    &[(0, "10.0.0.2", one), (1, "10.0.0.3", one)],
                ),
            ),
            (
                1,
                service("dns", traffic(0, 0), &[(2, "10.0.0.2", traffic(7, 0))]),
            ),
            (
                2,
                half(traffic(1000, 20), &[(3, "10.0.0.2", traffic(4, 2))]),
            ),
        ]));
        let [web, dns] = stats.services.as_slice() else {
            panic!("{stats:?}");
        };
        assert_eq!((web.name.as_str(), dns.name.as_str()), ("web", "dns"));
        assert_eq!(web.traffic.total().packets_in, 1106);
        assert_eq!(web.traffic.opened, 34);
        assert_eq!(web.backends.len(), 2);
        assert_eq!(web.backends[0].ids, [0, 3]);
        assert_eq!(web.backends[0].traffic, traffic(5, 3));
        assert_eq!(dns.traffic, traffic(7, 0));
        assert_eq!(stats.protocols[Class::Udp as usize].packets_in, 1113);
        assert_eq!(stats.protocols[Class::Tcp as usize], Exchange::default());
    }
}
