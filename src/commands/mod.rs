//! Commands other than balancing, one file each. Those that only look read the pinned maps or the file, and
//! need no daemon; the others ask it through its control socket.

pub mod check;
pub mod completions;
pub mod conns;
pub mod dos;
pub mod drops;
pub mod firewall;
pub mod list;
pub mod man;
pub mod rates;
pub mod reload;
pub mod stats;
mod text;

use crate::config::Prefix;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file, or one that it names.
    #[error(transparent)]
    Config(#[from] crate::config::Error),
    /// The file does not fit the tables.
    #[error(transparent)]
    Plan(#[from] crate::state::PlanError),
    /// The maps could not be read.
    #[error(transparent)]
    Datapath(#[from] crate::datapath::Error),
    /// A source that there is nothing to let go of.
    #[error("{0} is not blocked; `xdplb dos` lists the sources that are")]
    NotBlocked(Prefix),
    /// Signals.
    #[error("cannot handle signals: {0}")]
    Signals(#[from] ctrlc::Error),
    /// A file that was to be written.
    #[error("{}: {source}; name a directory that this user can write to", path.display())]
    Unwritable {
        /// The file, or its directory.
        path: std::path::PathBuf,
        /// The error of the system.
        source: std::io::Error,
    },
    /// The daemon gave no answer.
    #[error(transparent)]
    Control(#[from] crate::control::client::Error),
    /// The daemon keeps the configuration that it has.
    #[error("{}\n{} was refused; xdplb keeps the previous configuration", faults.join("\n"), file.display())]
    Refused {
        /// Which file.
        file: std::path::PathBuf,
        /// Why, each a line.
        faults: Vec<String>,
    },
    /// Nothing could be printed.
    #[error(transparent)]
    Output(#[from] std::io::Error),
}

impl Error {
    /// Whether the file is wrong, not the run.
    pub fn is_of_file(&self) -> bool {
        matches!(self, Error::Config(_) | Error::Plan(_))
    }
}

impl From<serde_json::Error> for Error {
    fn from(error: serde_json::Error) -> Self {
        Error::Output(error.into())
    }
}
