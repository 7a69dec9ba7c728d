//! `xdplb drops`: why packets were not balanced, and how many.

use std::io::Write;

use serde::Serialize;

use super::{text, Error};
use crate::cli::Look;
use crate::datapath::reasons::Verdict;
use crate::datapath::View;

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
    let rows: Vec<Row> = View::open(&look.pin_dir)?
        .drops()?
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
