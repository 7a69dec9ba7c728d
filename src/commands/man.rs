//! `xdplb man`: a manual page for the program and one for each command, made of their help.

use std::fs;
use std::path::Path;

use clap::{Command, CommandFactory};
use clap_mangen::Man;

use super::Error;
use crate::cli::Cli;

/// Of the manual: commands for the administrator.
const SECTION: &str = "8";

/// Writes the pages into `directory`, which is made if it is not there: `xdplb.8`, `xdplb-list.8`, ...
///
/// # Errors
/// When a page cannot be written.
pub fn run(directory: &Path) -> Result<(), Error> {
    let mut command = Cli::command().disable_help_subcommand(true);
    command.build();
    fs::create_dir_all(directory).map_err(|error| unwritable(directory, error))?;
    write(&command, directory)
}

/// The page of a command, and those of its own commands.
fn write(command: &Command, directory: &Path) -> Result<(), Error> {
    for command in command.get_subcommands() {
        write(command, directory)?;
    }
    let name = command
        .get_display_name()
        .unwrap_or_else(|| command.get_name());
    let path = directory.join(format!("{name}.{SECTION}"));
    let mut page = Vec::new();
    Man::new(command.clone())
        .section(SECTION)
        .source(concat!("xdplb ", env!("CARGO_PKG_VERSION")))
        .manual("xdplb")
        .render(&mut page)?;
    fs::write(&path, page).map_err(|error| unwritable(&path, error))
}

fn unwritable(path: &Path, source: std::io::Error) -> Error {
    Error::Unwritable {
        path: path.to_owned(),
        source,
    }
}
