//! `xdplb drops`: why packets were not balanced, or what `xdplb decap` did with them, and how many.

use std::io::Write;

use serde::Serialize;

use super::{text, Error};
use crate::cli::Look;
use crate::datapath::reasons::Verdict;
use crate::datapath::View;
use crate::decap::program;

#[derive(Serialize)]
struct Row {
    reason: &'static str,
    verdict: &'static str,
    packets: u64,
    text: &'static str,
}

/// Prints every reason, those that never occurred too: the list is the documentation.
///
/// # Errors
/// When no datapath is pinned there, or nothing can be printed.
pub fn run(look: &Look, out: &mut impl Write) -> Result<(), Error> {
    let counted = match program::pinned_counts(&look.pin_dir)? {
        Some(counts) => counts
            .into_iter()
            .map(|count| (count.reason, count.packets))
            .collect(),
        None => View::open(&look.pin_dir)?.drops()?,
    };
    let rows: Vec<Row> = counted
        .into_iter()
        .map(|(reason, packets)| Row {
            reason: reason.name,
            verdict: match reason.verdict {
                Verdict::Drop => "drop",
                Verdict::Pass => "pass",
                Verdict::Answer => "answer",
            },
            packets,
            text: reason.text,
        })
        .collect();
    if look.json {
        return text::json(out, &rows);
    }
    let mut table = vec![["Packets", "Verdict", "Reason", "Meaning"]
        .map(str::to_owned)
        .to_vec()];
    for row in rows {
        table.push(vec![
            row.packets.to_string(),
            row.verdict.into(),
            row.reason.into(),
            row.text.into(),
        ]);
    }
    text::columns(out, &table, &[0])?;
    Ok(())
}
