//! The commands' end of the control socket.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use super::{line, Answer, Request, SOCKET};

/// There was no answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No daemon listens.
    #[error(
        "no xdplb answers at {}: start it, or say where it runs with --run-dir DIR, the datapath.run_dir of \
         its file",
        .0.display()
    )]
    NoDaemon(PathBuf),
    /// The socket's permissions exclude this user.
    #[error(
        "cannot open {}: run as root, or as the user that xdplb runs as (sudo xdplb …)",
        .0.display()
    )]
    Denied(PathBuf),
    /// The daemon ended before it answered.
    #[error("xdplb ended before it answered; its log says why")]
    Ended,
    /// The answer has another form than expected.
    #[error("this version of the command does not understand the answer of the daemon ({error}): {answer}")]
    Answer {
        /// The line that came.
        answer: String,
        /// The fault in it.
        error: serde_json::Error,
    },
    /// The daemon answered with an error.
    #[error("xdplb: {0}")]
    Said(String),
    /// A system call failed.
    #[error("{}: {source}", path.display())]
    System {
        /// The socket.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
}

/// Asks the daemon of that run directory, and waits for its answer for as long as that takes.
///
/// # Errors
/// When there is none, or it does not answer; [`Answer::Error`] is one too.
pub fn ask(run_dir: &Path, request: &Request) -> Result<Answer, Error> {
    let path = run_dir.join(SOCKET);
    let failed = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => Error::NoDaemon(path.clone()),
        io::ErrorKind::PermissionDenied => Error::Denied(path.clone()),
        io::ErrorKind::ConnectionReset => Error::Ended,
        _ => Error::System {
            path: path.clone(),
            source,
        },
    };
    let mut socket = UnixStream::connect(&path).map_err(failed)?;
    match socket.write_all(&line(request)) {
        // A daemon that turns a client away sends the reason before it closes.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
        written => written.map_err(failed)?,
    }
    let mut answer = String::new();
    BufReader::new(socket)
        .read_line(&mut answer)
        .map_err(failed)?;
    let answer = answer.trim_end();
    if answer.is_empty() {
        return Err(Error::Ended);
    }
    match serde_json::from_str(answer) {
        Ok(Answer::Error { error }) => Err(Error::Said(error)),
        Ok(answer) => Ok(answer),
        Err(error) => Err(Error::Answer {
            answer: answer.into(),
            error,
        }),
    }
}
