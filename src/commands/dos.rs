//! `xdplb dos`: the policies with what they have dropped, and the sources that they hold blocked;
//! `xdplb dos unblock`: letting one of these go.

use std::io::Write;

use serde::Serialize;

use super::{text, Error};
use crate::cli::Look;
use crate::config::{duration, PolicyAction, Prefix};
use crate::datapath::view::{Blocked, Policy};
use crate::datapath::View;

#[derive(Serialize)]
struct Rows {
    policies: Vec<PolicyRow>,
    blocked: Vec<BlockedRow>,
}

#[derive(Serialize)]
struct PolicyRow {
    name: String,
    protocol: String,
    /// Those that have to be set. Empty: every packet counts.
    tcp_flags: Vec<&'static str>,
    /// Packets a second.
    limit: u32,
    burst: u32,
    action: &'static str,
    /// Seconds.
    block_for: Option<f64>,
    dropped: u64,
    blocked: u64,
    #[serde(skip)]
    action_text: String,
}

#[derive(Serialize)]
struct BlockedRow {
    source: String,
    protocol: String,
    policy: String,
    /// Seconds.
    expires: f64,
}

impl From<Policy> for PolicyRow {
    fn from(row: Policy) -> Self {
        let policy = row.policy;
        let (action, block_for) = match policy.action {
            PolicyAction::Limit => ("limit", None),
            PolicyAction::Block(duration) => ("block", Some(duration)),
        };
        PolicyRow {
            tcp_flags: policy.flag_names().collect(),
            name: policy.name,
            protocol: policy.protocol.to_string(),
            limit: policy.limit,
            burst: policy.burst,
            action,
            block_for: block_for.map(|duration| duration.as_secs_f64()),
            dropped: row.dropped,
            blocked: row.blocked,
            action_text: match block_for {
                None => action.to_owned(),
                Some(block_for) => format!("{action} {}", duration::format(block_for)),
            },
        }
    }
}

impl From<Blocked> for BlockedRow {
    fn from(blocked: Blocked) -> Self {
        BlockedRow {
            source: blocked.source.to_string(),
            protocol: blocked.protocol.to_string(),
            policy: blocked.policy,
            expires: blocked.expires.as_secs_f64(),
        }
    }
}

/// Prints the policies, then the sources that are blocked now.
///
/// # Errors
/// When no datapath is pinned there, or nothing can be printed.
pub fn run(look: &Look, out: &mut impl Write) -> Result<(), Error> {
    let view = View::open(&look.pin_dir)?;
    let policies = view.policies()?.into_values();
    let rows = Rows {
        policies: policies.map(PolicyRow::from).collect(),
        blocked: view.blocked()?.into_iter().map(BlockedRow::from).collect(),
    };
    if look.json {
        return text::json(out, &rows);
    }
    print_policies(out, rows.policies)?;
    writeln!(out)?;
    print_blocked(out, rows.blocked)
}

fn print_policies(out: &mut impl Write, policies: Vec<PolicyRow>) -> Result<(), Error> {
    if policies.is_empty() {
        writeln!(out, "no [[dos]] policies: sources are not limited")?;
        return Ok(());
    }
    let header = [
        "Policy", "Protocol", "Flags", "Limit", "Burst", "Action", "Dropped", "Blocked",
    ];
    let mut table = vec![header.map(str::to_owned).to_vec()];
    for row in policies {
        table.push(vec![
            row.name,
            row.protocol,
            if row.tcp_flags.is_empty() {
                "any".to_owned()
            } else {
                row.tcp_flags.join(",")
            },
            format!("{}/s", row.limit),
            row.burst.to_string(),
            row.action_text,
            row.dropped.to_string(),
            row.blocked.to_string(),
        ]);
    }
    text::columns(out, &table, &[3, 4, 6, 7])?;
    Ok(())
}

fn print_blocked(out: &mut impl Write, blocked: Vec<BlockedRow>) -> Result<(), Error> {
    if blocked.is_empty() {
        writeln!(out, "no source is blocked")?;
        return Ok(());
    }
    let header = ["Source", "Protocol", "Policy", "Expires"];
    let mut table = vec![header.map(str::to_owned).to_vec()];
    for row in blocked {
        table.push(vec![
            row.source,
            row.protocol,
            row.policy,
            // Rounded up: it is blocked for as long as it is shown.
            format!("{}s", row.expires.ceil()),
        ]);
    }
    text::columns(out, &table, &[3])?;
    Ok(())
}

#[derive(Serialize)]
struct Unblocked {
    source: String,
    protocols: Vec<String>,
}

/// Lets go of the source that has this address, for every protocol.
///
/// # Errors
/// When it is not blocked, no datapath is pinned there, or nothing can be printed.
pub fn unblock(look: &Look, source: Prefix, out: &mut impl Write) -> Result<(), Error> {
    let protocols = View::open(&look.pin_dir)?.unblock(source)?;
    if protocols.is_empty() {
        return Err(Error::NotBlocked(source));
    }
    let unblocked = Unblocked {
        source: source.to_string(),
        protocols: protocols.iter().map(ToString::to_string).collect(),
    };
    if look.json {
        return text::json(out, &unblocked);
    }
    writeln!(
        out,
        "{}: {} unblocked",
        unblocked.source,
        unblocked.protocols.join(", ")
    )?;
    Ok(())
}
