//! Faults and warnings about a configuration file or a blocklist, with their places.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::str::Utf8Error;

use super::place::{Lines, Place};

/// One fault or one warning, with its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostic {
    /// Where.
    pub place: Place,
    /// The fault and its remedy, in one line.
    pub message: String,
}

/// `file:line:column: message`
impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.message)
    }
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("{}: {source}; {remedy}", path.display())]
    Read {
        /// The file as it was named.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
        /// The remedy.
        remedy: &'static str,
    },
    /// The file is no valid configuration, or no blocklist: at least one fault, in file order, shown one a line.
    #[error("{}", lines(.0))]
    Invalid(Vec<Diagnostic>),
    /// Files of `firewall.blocklists` that cannot be read, or have faults: at least one file.
    #[error("{}", lines(.0))]
    Blocklists(Vec<Error>),
}

fn lines<T: fmt::Display>(faults: &[T]) -> String {
    faults
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join("\n")
}

impl Error {
    pub(super) fn read(path: &Path, source: io::Error) -> Error {
        let remedy = match source.kind() {
            io::ErrorKind::NotFound => "create it, or name another file with --config",
            io::ErrorKind::PermissionDenied => {
                "make it readable for this user, or run as the user that owns it"
            }
            io::ErrorKind::IsADirectory => "name the file in it with --config",
            _ => "make it readable, or name another file with --config",
        };
        Error::Read {
            path: path.to_owned(),
            source,
            remedy,
        }
    }

    pub(super) fn not_utf8(path: &Path, bytes: &[u8], error: Utf8Error) -> Error {
        let good = String::from_utf8_lossy(&bytes[..error.valid_up_to()]);
        Error::Invalid(vec![Diagnostic {
            place: Lines::new(&good).place(path, good.len()),
            message: "this byte is not UTF-8; save the file as UTF-8".to_owned(),
        }])
    }
}
