//! Packets, bits and connections a second: measured for `xdplb list --rate`, and again and again for
//! `xdplb stats --watch`.

use std::io::Write;
use std::net::IpAddr;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::stats::Stats;
use super::{text, Error};
use crate::cli::Look;
use crate::datapath::view::{Class, Exchange, Traffic};
use crate::datapath::View;

/// Clears a terminal before the screen is printed again: cursor to the top left, delete all below.
const HOME: &str = "\x1b[H\x1b[J";

/// All that is counted, per second.
#[derive(Serialize)]
pub(super) struct Rates {
    /// Over which it was measured.
    seconds: f64,
    protocols: Vec<ProtocolRow>,
    pub services: Vec<ServiceRow>,
}

#[derive(Serialize)]
struct ProtocolRow {
    protocol: &'static str,
    #[serde(flatten)]
    rate: ExchangeRate,
}

#[derive(Serialize)]
pub(super) struct ServiceRow {
    pub name: String,
    #[serde(flatten)]
    pub rate: TrafficRate,
    pub backends: Vec<BackendRow>,
}

#[derive(Serialize)]
pub(super) struct BackendRow {
    name: String,
    pub address: IpAddr,
    pub port: Option<u16>,
    #[serde(flatten)]
    pub rate: TrafficRate,
    #[serde(skip)]
    label: String,
}

/// Both directions, per second.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(super) struct ExchangeRate {
    packets_in: f64,
    bits_in: f64,
    packets_out: f64,
    bits_out: f64,
}

/// Both directions and connections, per second.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(super) struct TrafficRate {
    #[serde(flatten)]
    exchange: ExchangeRate,
    opened: f64,
    closed: f64,
    unrecorded: f64,
}

/// Divides an increase by the seconds in which it happened. A counter that is lower than before was reset
/// meanwhile and counts as no increase.
#[derive(Clone, Copy)]
struct Over(f64);

impl Over {
    fn rate(self, before: u64, now: u64) -> f64 {
        let rate = now.saturating_sub(before) as f64 / self.0;
        (rate * 10.0).round() / 10.0
    }

    fn exchange(self, before: &Exchange, now: &Exchange) -> ExchangeRate {
        ExchangeRate {
            packets_in: self.rate(before.packets_in, now.packets_in),
            bits_in: 8.0 * self.rate(before.bytes_in, now.bytes_in),
            packets_out: self.rate(before.packets_out, now.packets_out),
            bits_out: 8.0 * self.rate(before.bytes_out, now.bytes_out),
        }
    }

    fn traffic(self, before: &Traffic, now: &Traffic) -> TrafficRate {
        TrafficRate {
            exchange: self.exchange(&before.total(), &now.total()),
            opened: self.rate(before.opened, now.opened),
            closed: self.rate(before.closed, now.closed),
            unrecorded: self.rate(before.unrecorded, now.unrecorded),
        }
    }
}

/// Prints the rates of each interval until a signal ends it.
///
/// # Errors
/// When no datapath is pinned there, or nothing can be printed.
pub fn run(
    look: &Look,
    interval: Duration,
    terminal: bool,
    out: &mut impl Write,
) -> Result<(), Error> {
    let view = View::open(&look.pin_dir)?;
    let (stop, stopped) = mpsc::channel();
    // Once the loop below has ended, signals are not read any more; the process ends then.
    ctrlc::set_handler(move || {
        let _ = stop.send(());
    })?;
    let mut before = Stats::of(view.services()?);
    let mut then = Instant::now();
    loop {
        let left = (then + interval).saturating_duration_since(Instant::now());
        if stopped.recv_timeout(left).is_ok() {
            return Ok(());
        }
        let now = Instant::now();
        let stats = Stats::of(view.services()?);
        let rates = between(&before, &stats, now - then);
        if look.json {
            serde_json::to_writer(&mut *out, &rates)?;
            writeln!(out)?;
        } else {
            if terminal {
                write!(out, "{HOME}")?;
            }
            print(out, &rates)?;
            if !terminal {
                writeln!(out)?;
            }
        }
        out.flush()?;
        (before, then) = (stats, now);
    }
}

/// The rates between two readings, `elapsed` apart.
pub(super) fn between(before: &Stats, now: &Stats, elapsed: Duration) -> Rates {
    let over = Over(elapsed.as_secs_f64());
    let protocols = before.protocols.iter().zip(&now.protocols);
    Rates {
        seconds: (over.0 * 1000.0).round() / 1000.0,
        protocols: Class::ALL
            .into_iter()
            .zip(protocols)
            .map(|(class, (before, now))| ProtocolRow {
                protocol: class.name(),
                rate: over.exchange(before, now),
            })
            .collect(),
        services: now
            .services
            .iter()
            .map(|service| {
                let mut known = before.services.iter();
                let known = known.find(|known| known.name == service.name);
                let former = known.map_or(&[][..], |known| &known.backends);
                let backends = service.backends.iter().map(|backend| {
                    let place = (backend.address, backend.port);
                    let mut former = former.iter();
                    let former = former.find(|known| (known.address, known.port) == place);
                    let former = former.map(|known| known.traffic);
                    BackendRow {
                        name: backend.name.clone(),
                        address: backend.address,
                        port: backend.port,
                        rate: over.traffic(&former.unwrap_or_default(), &backend.traffic),
                        label: backend.label(),
                    }
                });
                let former = known.map(|known| known.traffic).unwrap_or_default();
                ServiceRow {
                    name: service.name.clone(),
                    rate: over.traffic(&former, &service.traffic),
                    backends: backends.collect(),
                }
            })
            .collect(),
    }
}

fn print(out: &mut impl Write, rates: &Rates) -> Result<(), Error> {
    let header = [
        "",
        "Conns/s",
        "InPkts/s",
        "OutPkts/s",
        "InBits/s",
        "OutBits/s",
        "Unrecorded/s",
    ];
    let mut table = vec![header.map(str::to_owned).to_vec()];
    for protocol in &rates.protocols {
        let mut cells = vec![protocol.protocol.to_owned(), "-".to_owned()];
        cells.extend(exchange_cells(&protocol.rate));
        table.push(cells);
    }
    let cells = |label: &str, rate: &TrafficRate| {
        let mut cells = vec![label.to_owned()];
        cells.extend(rate.cells());
        cells.push(text::short(rate.unrecorded));
        cells
    };
    for service in &rates.services {
        table.push(Vec::new());
        table.push(cells(&service.name, &service.rate));
        for backend in &service.backends {
            table.push(cells(&backend.label, &backend.rate));
        }
    }
    let numbers: Vec<usize> = (1..header.len()).collect();
    text::columns(out, &table, &numbers)?;
    Ok(())
}

impl TrafficRate {
    /// Connections, then packets and bits, each to the backend and back.
    pub fn cells(&self) -> Vec<String> {
        let mut cells = vec![text::short(self.opened)];
        cells.extend(exchange_cells(&self.exchange));
        cells
    }
}

fn exchange_cells(rate: &ExchangeRate) -> [String; 4] {
    [
        rate.packets_in,
        rate.packets_out,
        rate.bits_in,
        rate.bits_out,
    ]
    .map(text::short)
}

#[cfg(test)]
mod tests {
    use super::super::stats::ServiceStats;
    use super::*;

    fn traffic(packets: u64, opened: u64) -> Traffic {
        let mut traffic = Traffic {
            opened,
            closed: opened / 2,
            ..Traffic::default()
        };
        traffic.by[0].packets_in = packets;
        traffic.by[0].bytes_in = 100 * packets;
        traffic
    }

    fn stats(name: &str, traffic: Traffic) -> Stats {
        Stats {
            protocols: traffic.by,
            services: vec![ServiceStats {
                name: name.into(),
                traffic,
                backends: Vec::new(),
            }],
        }
    }

    #[test]
    fn what_was_added_over_the_time_that_it_took() {
        let before = stats("web", traffic(1000, 10));
        let now = stats("web", traffic(1500, 14));
        let row = between(&before, &now, Duration::from_millis(2000));
        let rate = row.services[0].rate;
        assert_eq!(
            (rate.exchange.packets_in, rate.exchange.bits_in),
            (250.0, 200_000.0)
        );
        assert_eq!((rate.opened, rate.closed, rate.unrecorded), (2.0, 1.0, 0.0));
        assert_eq!(row.protocols[0].rate, rate.exchange);
        assert_eq!(row.seconds, 2.0);
    }

    #[test]
    fn what_is_new_or_began_anew_has_no_rate_below_zero() {
        let second = Duration::from_secs(1);
        let fewer = between(
            &stats("web", traffic(1000, 10)),
            &stats("web", traffic(5, 0)),
            second,
        );
        assert_eq!(fewer.services[0].rate.exchange.packets_in, 0.0);
        let new = between(
            &stats("web", traffic(9, 0)),
            &stats("dns", traffic(7, 0)),
            second,
        );
        assert_eq!(new.services[0].rate.exchange.packets_in, 7.0);
    }

    #[test]
    fn a_line_of_json_is_an_object() {
        let row = between(
            &stats("web", traffic(0, 0)),
            &stats("web", traffic(10, 1)),
            Duration::from_secs(4),
        );
        let json = serde_json::to_value(&row).expect("JSON");
        assert_eq!(json["seconds"], 4.0);
        assert_eq!(json["protocols"][0]["protocol"], "tcp");
        assert_eq!(json["protocols"][0]["packets_in"], 2.5);
        assert_eq!(json["services"][0]["opened"], 0.3);
        assert_eq!(json["services"][0]["bits_in"], 2000.0);
    }
}
