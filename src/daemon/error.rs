//! Why the daemon could not start, or ended.

use crate::control::run_dir;
use crate::{capabilities, config, datapath, neighbours, signals, state};

/// Why the daemon could not start, or ended; of a reload, why it was refused.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file.
    #[error(transparent)]
    Config(#[from] config::Error),
    /// The kernel's side.
    #[error(transparent)]
    Datapath(#[from] datapath::Error),
    /// Netlink.
    #[error(transparent)]
    Neighbours(#[from] neighbours::Error),
    /// The plan does not fit.
    #[error(transparent)]
    Plan(#[from] state::PlanError),
    /// Privileges.
    #[error(transparent)]
    Capabilities(#[from] capabilities::Missing),
    /// Signals.
    #[error(transparent)]
    Signals(#[from] signals::Error),
    /// The run directory.
    #[error(transparent)]
    RunDir(#[from] run_dir::Error),
    /// An interface of the file cannot be used.
    #[error("datapath.interfaces: {0}")]
    Interface(String),
    /// A reload asks for what only a restart can change.
    #[error("{0} can only change with a restart: stop xdplb and start it again")]
    NeedsRestart(&'static str),
    /// A reload was under way when xdplb was told to stop.
    #[error("xdplb is stopping")]
    Stopping,
    /// A fault of ours.
    #[error("the thread that writes the maps has ended unexpectedly; the log says why. Start xdplb again")]
    WriterEnded,
    /// The system refused something basic.
    #[error("{action}: {source}")]
    System {
        /// The action that failed.
        action: &'static str,
        /// The error of the system.
        source: std::io::Error,
    },
}
