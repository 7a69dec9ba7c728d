//! `xdplb conns`: the connection table, as clients and operators see it.

use std::collections::BTreeMap;
use std::io::Write;
use std::net::IpAddr;

use clap::ValueEnum;
use serde::Serialize;

use super::{text, Error};
use crate::cli::{ConnectionFilter, Look, ProtocolName};
use crate::config::Protocol;
use crate::datapath::view::{Backend, Connection, Service};
use crate::datapath::View;

#[derive(Serialize)]
struct Row {
    protocol: String,
    state: &'static str,
    /// Seconds.
    expires: f64,
    client: String,
    vip: String,
    service: String,
    backend: String,
    /// Empty where, with direct return, the backend has gone since.
    backend_address: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    source: Option<String>,
    #[serde(skip)]
    client_ip: IpAddr,
    #[serde(skip)]
    vip_ip: IpAddr,
    #[serde(skip)]
    backend_ip: Option<IpAddr>,
}

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
    let rows: Vec<Row> = view
        .connections()?
        .iter()
        .map(|connection| row(connection, &backends))
        .filter(|row| matches(row, filter))
        .collect();
    match (count, look.json) {
        (true, true) => text::json(out, &serde_json::json!({ "count": rows.len() })),
        (true, false) => Ok(writeln!(out, "{}", rows.len())?),
        (false, true) => text::json(out, &rows),
        (false, false) => print(out, &rows),
    }
}

/// Backends by id, each with the name of its service.
fn backends(services: BTreeMap<u32, Service>) -> BTreeMap<u32, (String, Backend)> {
    services
        .into_values()
        .flat_map(|service| {
            let name = service.name;
            service
                .backends
                .into_iter()
                .map(move |(id, backend)| (id, (name.clone(), backend)))
        })
        .collect()
}

fn row(connection: &Connection, backends: &BTreeMap<u32, (String, Backend)>) -> Row {
    let entry = &connection.entry;
    let client = entry.flow;
    let known = backends.get(&entry.backend);
    let (backend, source) = if entry.is_direct() {
        // The packet itself says nothing of where it is sent.
        let port = client.destination.1;
        (known.map(|(_, backend)| (backend.address, port)), None)
    } else {
        let reply = entry.reply_flow();
        (Some(reply.source), Some(reply.destination))
    };
    let protocol = [Protocol::Tcp, Protocol::Udp]
        .into_iter()
        .find(|known| known.number() == client.protocol);
    let (service, name) = known.map_or_else(Default::default, |(service, backend)| {
        (service.clone(), backend.name.clone())
    });
    Row {
        protocol: protocol.map_or_else(
            || client.protocol.to_string(),
            |protocol| protocol.to_string(),
        ),
        state: connection.state,
        expires: connection.expires.as_secs_f64(),
        client: text::endpoint(client.source.0, client.source.1),
        vip: text::endpoint(client.destination.0, client.destination.1),
        service,
        backend: name,
        backend_address: backend
            .map(|(address, port)| text::endpoint(address, port))
            .unwrap_or_default(),
        // Only where it is not the client's own.
        source: source
            .filter(|source| *source != client.source)
            .map(|(address, port)| text::endpoint(address, port)),
        client_ip: client.source.0,
        vip_ip: client.destination.0,
        backend_ip: backend.map(|(address, _)| address),
    }
}

fn matches(row: &Row, filter: &ConnectionFilter) -> bool {
    let ConnectionFilter {
        protocol,
        state,
        client,
        vip,
        service,
        backend,
    } = filter;
    let protocol = protocol.map(|protocol| match protocol {
        ProtocolName::Tcp => "tcp",
        ProtocolName::Udp => "udp",
    });
    let state = state.and_then(|state| Some(state.to_possible_value()?.get_name().to_owned()));
    protocol.is_none_or(|protocol| row.protocol == protocol)
        && state.is_none_or(|state| row.state == state)
        && client.is_none_or(|client| row.client_ip == client)
        && vip.is_none_or(|vip| row.vip_ip == vip)
        && service
            .as_ref()
            .is_none_or(|service| row.service == *service)
        && backend.as_ref().is_none_or(|backend| {
            row.backend == *backend
                || backend
                    .parse::<IpAddr>()
                    .is_ok_and(|address| row.backend_ip == Some(address))
        })
}

fn print(out: &mut impl Write, rows: &[Row]) -> Result<(), Error> {
    let header = [
        "Prot", "State", "Expires", "Client", "VIP", "Service", "Backend", "Address", "Source",
    ];
    let mut table = vec![header.map(str::to_owned).to_vec()];
    for row in rows {
        table.push(vec![
            row.protocol.to_uppercase(),
            row.state.into(),
            format!("{:.0}s", row.expires),
            row.client.clone(),
            row.vip.clone(),
            row.service.clone(),
            row.backend.clone(),
            row.backend_address.clone(),
            row.source.clone().unwrap_or_default(),
        ]);
    }
    text::columns(out, &table, &[2])?;
    Ok(())
}
