//! `xdplb completions`: a completion script for a shell.

use std::io::Write;

use clap::CommandFactory;
use clap_complete::Shell;

use super::Error;
use crate::cli::Cli;

/// Prints the script.
///
/// # Errors
/// When nothing can be printed.
pub fn run(shell: Shell, out: &mut impl Write) -> Result<(), Error> {
    // The generator would panic where it cannot write.
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "xdplb", &mut script);
    out.write_all(&script)?;
    Ok(())
}
