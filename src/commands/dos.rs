//! `xdplb dos`: the policies with the packets that they have dropped, and the sources that are blocked;
//! `xdplb dos unblock`: unblocks one of these.

use std::io::Write;

use serde::Serialize;

use super::{text, Error};
use crate::cli::Look;
use crate::config::{self, duration, Prefix};
use crate::datapath::view::{Blocked, Policy};
use crate::datapath::View;

#[derive(Serialize)]
struct Rows {
    policies: Vec<PolicyRow>,
    blocked: Vec<BlockedRow>,
}

/// A policy, with the packets that it has dropped and the times that it has blocked a source.
#[derive(Serialize)]
struct PolicyRow {
    #[serde(flatten)]
    policy: config::Policy,
    dropped: u64,
    blocked: u64,
}

#[derive(Serialize)]
struct BlockedRow {
    source: Prefix,
    protocol: config::PolicyProtocol,
    policy: String,
    /// Seconds.
    expires: f64,
}

impl From<Policy> for PolicyRow {
    fn from(row: Policy) -> Self {
        PolicyRow {
            policy: row.policy,
            dropped: row.dropped,
            blocked: row.blocked,
        }
    }
}

impl From<Blocked> for BlockedRow {
    fn from(blocked: Blocked) -> Self {
        BlockedRow {
            source: blocked.source,
            protocol: blocked.protocol,
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
        let policy = row.policy;
        let flags: Vec<_> = policy.flag_names().collect();
        let block_for = policy.action.block_for().map(duration::format);
        table.push(vec![
            policy.name.clone(),
            policy.protocol.to_string(),
            if flags.is_empty() {
                "any".to_owned()
            } else {
                flags.join(",")
            },
            format!("{}/s", policy.limit),
            policy.burst.to_string(),
            match block_for {
                None => policy.action.word().to_owned(),
                Some(block_for) => format!("{} {block_for}", policy.action.word()),
            },
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
            row.source.to_string(),
            row.protocol.to_string(),
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

/// Unblocks a source, for every protocol.
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
