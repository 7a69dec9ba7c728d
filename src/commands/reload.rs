//! `xdplb reload`: has the daemon read its file again, and says what came of it.

use std::io::Write;
use std::path::Path;

use super::Error;
use crate::control::{client, Answer, Request};

/// Waits until the file is in force or refused.
///
/// # Errors
/// When it is refused, with all reasons, when no daemon answers, or nothing can be printed.
pub fn run(run_dir: &Path, json: bool, out: &mut impl Write) -> Result<(), Error> {
    let answer = client::ask(run_dir, &Request::Reload {})?;
    if json {
        serde_json::to_writer(&mut *out, &answer)?;
        writeln!(out)?;
    }
    match answer {
        Answer::InForce {
            file,
            services,
            warnings,
        } => {
            if !json {
                warn(&warnings);
                let plural = if services == 1 { "" } else { "s" };
                writeln!(
                    out,
                    "{} is in force: {services} service{plural}",
                    file.display()
                )?;
            }
            Ok(())
        }
        Answer::Refused {
            file,
            faults,
            warnings,
        } => {
            if !json {
                warn(&warnings);
            }
            Err(Error::Refused { file, faults })
        }
        Answer::Error { error } => Err(client::Error::Said(error).into()),
    }
}

fn warn(warnings: &[String]) {
    for warning in warnings {
        eprintln!("xdplb: warning: {warning}");
    }
}
