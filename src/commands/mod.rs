//! Commands other than balancing, one file each. They look at the pinned maps, or at the file; none
//! needs the daemon.

pub mod check;
pub mod conns;
pub mod drops;
pub mod list;
mod text;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The maps could not be read.
    #[error(transparent)]
    Datapath(#[from] crate::datapath::Error),
    /// Nothing could be printed.
    #[error(transparent)]
    Output(#[from] std::io::Error),
}

impl From<serde_json::Error> for Error {
    fn from(error: serde_json::Error) -> Self {
        Error::Output(error.into())
    }
}
