//! `xdplb firewall`: the rules in the order in which they are asked, with what each has decided.

use std::io::Write;

use serde::Serialize;

use super::{text, Error};
use crate::cli::Look;
use crate::datapath::view::{Rule, RuleKind};
use crate::datapath::View;
use crate::prefix;

#[derive(Serialize)]
struct Row {
    kind: &'static str,
    packets: u64,
    bytes: u64,
    action: String,
    /// `None`: those of a blocklist.
    source: Option<String>,
    /// Of a blocklist.
    prefixes: Option<u32>,
    protocol: String,
    source_port: String,
    port: String,
    name: Option<String>,
}

impl From<Rule> for Row {
    fn from(rule: Rule) -> Self {
        let source = rule
            .source
            .map_or("any".to_owned(), |source| source.to_string());
        let (kind, source, prefixes) = match rule.kind {
            RuleKind::Blocklist(_, prefixes) => ("blocklist", None, Some(prefixes)),
            RuleKind::Rule(_) => ("rule", Some(source), None),
            RuleKind::Default => ("default", Some(source), None),
        };
        Row {
            kind,
            packets: rule.packets,
            bytes: rule.bytes,
            action: rule.action.to_string(),
            source,
            prefixes,
            protocol: rule.protocol.to_string(),
            source_port: rule.source_port.to_string(),
            port: rule.port.to_string(),
            name: rule.name,
        }
    }
}

/// Prints every rule, the default last.
///
/// # Errors
/// When no datapath is pinned there, or nothing can be printed.
pub fn run(look: &Look, out: &mut impl Write) -> Result<(), Error> {
    let rules = View::open(&look.pin_dir)?.firewall()?;
    let rows: Vec<Row> = rules.into_iter().map(Row::from).collect();
    if look.json {
        return text::json(out, &rows);
    }
    if rows.is_empty() {
        writeln!(out, "no firewall: every source may send to every VIP")?;
        return Ok(());
    }
    let header = [
        "Packets", "Bytes", "Action", "Source", "Protocol", "SrcPort", "Port", "Name",
    ];
    let mut table = vec![header.map(str::to_owned).to_vec()];
    table.extend(rows.into_iter().map(cells));
    text::columns(out, &table, &[0, 1])?;
    Ok(())
}

fn cells(row: Row) -> Vec<String> {
    let source = match row.prefixes {
        Some(prefixes) => prefix::count(prefixes as usize),
        None => row.source.unwrap_or_default(),
    };
    let name = match row.kind {
        "default" => "(default)".to_owned(),
        _ => row.name.unwrap_or_default(),
    };
    vec![
        row.packets.to_string(),
        row.bytes.to_string(),
        row.action,
        source,
        row.protocol,
        row.source_port,
        row.port,
        name,
    ]
}
