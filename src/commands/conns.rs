//! `xdplb conns`: the connection table, as clients and operators see it.
//!
//! Connections are printed as they are read, a million of them in little memory, and no further than somebody
//! reads them.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::io::{BufWriter, Write};
use std::net::{IpAddr, SocketAddr};

use clap::ValueEnum;
use serde::ser::SerializeSeq;
use serde::{Serialize, Serializer};

use super::{text, Error};
use crate::cli::{ConnectionFilter, Look, ProtocolName};
use crate::config::Protocol;
use crate::datapath::view::{Backend, Connection, Service};
use crate::datapath::View;

/// So much is printed at once.
const BUFFER: usize = 64 << 10;

/// Prints the connections that `filter` lets through, or only their number.
///
/// # Errors
/// When no datapath is pinned there, or nothing can be printed.
pub fn run(
    look: &Look,
    filter: &ConnectionFilter,
    count: bool,
    out: &mut impl Write,
) -> Result<(), Error> {
    let view = View::open(&look.pin_dir)?;
    let backends = backends(view.services()?);
    let filter = Filter::of(filter);
    let for_each = |visit: &mut dyn FnMut(&Row<'_>) -> Result<(), Error>| -> Result<(), Error> {
        view.for_each_connection(|connection| {
            let row = Row::of(connection, &backends);
            match filter.lets_through(&row) {
                true => visit(&row),
                false => Ok(()),
            }
        })
    };
    if count {
        let mut count = 0_u64;
        for_each(&mut |_| {
            count += 1;
            Ok(())
        })?;
        return match look.json {
            true => text::json(out, &serde_json::json!({ "count": count })),
            false => Ok(writeln!(out, "{count}")?),
        };
    }
    let mut out = BufWriter::with_capacity(BUFFER, out);
    if look.json {
        let mut json = serde_json::Serializer::pretty(&mut out);
        let mut list = json.serialize_seq(None)?;
        for_each(&mut |row| Ok(list.serialize_element(row)?))?;
        list.end()?;
        writeln!(out)?;
        return Ok(out.flush()?);
    }
    let head = [
        "Prot", "State", "Expires", "Client", "VIP", "Service", "Backend", "Address", "Source",
    ];
    let mut table = text::Table::new(out, &[2], head);
    for_each(&mut |row| row.print(&mut table))?;
    Ok(table.end()?)
}

/// A backend, and the name of its service.
struct Known {
    service: String,
    backend: Backend,
}

/// Backends by id.
fn backends(services: BTreeMap<u32, Service>) -> BTreeMap<u32, Known> {
    services
        .into_values()
        .flat_map(|service| {
            let name = service.name;
            service.backends.into_iter().map(move |(id, backend)| {
                let service = name.clone();
                (id, Known { service, backend })
            })
        })
        .collect()
}

/// A connection in the words of its output.
#[derive(Serialize)]
struct Row<'a> {
    #[serde(serialize_with = "name_of")]
    protocol: u8,
    state: &'static str,
    /// Seconds.
    expires: f64,
    client: SocketAddr,
    vip: SocketAddr,
    service: &'a str,
    backend: &'a str,
    /// Empty where, with direct return, the backend has gone since.
    #[serde(serialize_with = "or_empty")]
    backend_address: Option<SocketAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    source: Option<SocketAddr>,
}

impl<'a> Row<'a> {
    fn of(connection: &Connection, backends: &'a BTreeMap<u32, Known>) -> Self {
        let entry = &connection.entry;
        let client = entry.flow;
        let known = backends.get(&entry.backend);
        let (backend, source) = if entry.is_direct() {
            // The packet itself says nothing of where it is sent.
            let port = client.destination.1;
            (known.map(|known| (known.backend.address, port)), None)
        } else {
            let reply = entry.reply_flow();
            (Some(reply.source), Some(reply.destination))
        };
        Row {
            protocol: client.protocol,
            state: connection.state,
            expires: connection.expires.as_secs_f64(),
            client: client.source.into(),
            vip: client.destination.into(),
            service: known.map_or("", |known| &known.service),
            backend: known.map_or("", |known| &known.backend.name),
            backend_address: backend.map(SocketAddr::from),
            // Only where it is not the client's own.
            source: source
                .filter(|source| *source != client.source)
                .map(SocketAddr::from),
        }
    }

    fn print<W: Write>(&self, table: &mut text::Table<'_, W, 9>) -> Result<(), Error> {
        let protocol: &dyn Display = match protocol_of(self.protocol) {
            Some(Protocol::Tcp) => &"TCP",
            Some(Protocol::Udp) => &"UDP",
            None => &self.protocol,
        };
        table.row([
            protocol,
            &self.state,
            &format_args!("{:.0}s", self.expires),
            &self.client,
            &self.vip,
            &self.service,
            &self.backend,
            or_nothing(self.backend_address.as_ref()),
            or_nothing(self.source.as_ref()),
        ])?;
        Ok(())
    }
}

fn protocol_of(number: u8) -> Option<Protocol> {
    let mut all = [Protocol::Tcp, Protocol::Udp].into_iter();
    all.find(|known| known.number() == number)
}

fn name_of<S: Serializer>(protocol: &u8, serializer: S) -> Result<S::Ok, S::Error> {
    match protocol_of(*protocol) {
        Some(known) => serializer.collect_str(&known),
        None => serializer.collect_str(protocol),
    }
}

fn or_empty<S: Serializer>(address: &Option<SocketAddr>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(or_nothing(address.as_ref()))
}

fn or_nothing(address: Option<&SocketAddr>) -> &dyn Display {
    address.map_or(&"", |address| address)
}

/// What is asked for, as rows have it.
struct Filter<'a> {
    protocol: Option<u8>,
    state: Option<String>,
    client: Option<IpAddr>,
    vip: Option<IpAddr>,
    service: Option<&'a str>,
    /// A name, and the address that it may be as well.
    backend: Option<(&'a str, Option<IpAddr>)>,
}

impl<'a> Filter<'a> {
    fn of(filter: &'a ConnectionFilter) -> Self {
        let protocol = filter.protocol.map(|protocol| match protocol {
            ProtocolName::Tcp => Protocol::Tcp,
            ProtocolName::Udp => Protocol::Udp,
        });
        let state = filter.state.and_then(|state| state.to_possible_value());
        let backend = filter.backend.as_deref();
        Filter {
            protocol: protocol.map(Protocol::number),
            state: state.map(|state| state.get_name().to_owned()),
            client: filter.client,
            vip: filter.vip,
            service: filter.service.as_deref(),
            backend: backend.map(|backend| (backend, backend.parse().ok())),
        }
    }

    fn lets_through(&self, row: &Row<'_>) -> bool {
        fn is<T: PartialEq>(wanted: Option<&T>, value: &T) -> bool {
            wanted.is_none_or(|wanted| wanted == value)
        }
        is(self.protocol.as_ref(), &row.protocol)
            && is(self.state.as_deref().as_ref(), &row.state)
            && is(self.client.as_ref(), &row.client.ip())
            && is(self.vip.as_ref(), &row.vip.ip())
            && is(self.service.as_ref(), &row.service)
            && self.backend.is_none_or(|(name, address)| {
                let there = row.backend_address.map(|place| place.ip());
                row.backend == name || address.is_some_and(|address| there == Some(address))
            })
    }
}
