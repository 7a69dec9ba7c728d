//! The control socket: how other programs ask the running daemon for something.
//!
//! The daemon listens on `control.sock` in `datapath.run_dir` (`/run/xdplb`), a stream socket. The directory
//! and the socket are accessible to their owner alone; besides, the daemon answers only root and its own user,
//! as the kernel identifies the peer (SO_PEERCRED). A client sends requests and gets answers, each a JSON object
//! on a line of its own. Requests of one connection are answered one after the other, in order; a client may
//! send several without waiting.
//!
//! | request | answers |
//! | --- | --- |
//! | `{"request":"reload"}` | `in_force` or `refused`, once the file that was there when it was asked, or a later one, has been read |
//!
//! | answer | says |
//! | --- | --- |
//! | `{"result":"in_force","file":F,"services":N,"warnings":[…]}` | the file F is in force, with so many services |
//! | `{"result":"refused","file":F,"faults":[…],"warnings":[…]}` | nothing has changed, for these reasons |
//! | `{"result":"error","error":E}` | the request itself was no good, or the daemon is about to stop |
//!
//! A line may be up to 4096 bytes long. A client that sends no whole request, or does not take its answer, for
//! ten seconds is disconnected; while its request is being worked on it may wait for as long as that takes.
//!
//! `server` is the daemon's end, `client` that of commands, `run_dir` the directory and its lock.

pub mod client;
pub mod run_dir;
pub mod server;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// The socket's name in the run directory.
pub const SOCKET: &str = "control.sock";

/// A request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// To read the configuration file and put it in force.
    Reload {},
}

/// An answer to a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "result", rename_all = "snake_case")]
pub enum Answer {
    /// The file is in force.
    InForce {
        /// Its path.
        file: PathBuf,
        /// How many `[[service]]` it has.
        services: usize,
        /// Remarks about the file that are no faults.
        warnings: Vec<String>,
    },
    /// The file cannot be used; the previous configuration stays in force.
    Refused {
        /// Its path.
        file: PathBuf,
        /// Why, in the order of the file.
        faults: Vec<String>,
        /// Remarks about the file that are no faults.
        warnings: Vec<String>,
    },
    /// The request is not valid, or cannot be answered.
    Error {
        /// Why, for the operator.
        error: String,
    },
}

/// Reads a line, without its end.
///
/// # Errors
/// With the message for the client.
fn parse(line: &[u8]) -> Result<Request, String> {
    serde_json::from_slice(line).map_err(|error| {
        format!("not a request: {error}; requests are such as {{\"request\":\"reload\"}}")
    })
}

/// The JSON of a request or answer, as a line.
fn line(message: &impl Serialize) -> Vec<u8> {
    // Strings, numbers and lists of them: nothing that JSON has no form for, but a path that is no text.
    let mut line = serde_json::to_vec(message).unwrap_or_else(|error| {
        let error = Answer::Error {
            error: error.to_string(),
        };
        serde_json::to_vec(&error).unwrap_or_default()
    });
    line.push(b'\n');
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests() {
        assert_eq!(parse(b"{\"request\":\"reload\"}"), Ok(Request::Reload {}));
        assert_eq!(line(&Request::Reload {}), b"{\"request\":\"reload\"}\n");
        for wrong in [
            "",
            "reload",
            "{}",
            "{\"request\":\"reload\",\"file\":\"/etc/passwd\"}",
            "{\"request\":\"stop\"}",
            "{\"request\":\"reload\"}{\"request\":\"reload\"}",
            "\u{0}",
        ] {
            let error = parse(wrong.as_bytes()).expect_err(wrong);
            assert!(error.starts_with("not a request: "), "{error}");
        }
        let error = parse(b"{\"request\":\"stop\"}").expect_err("no such request");
        assert!(
            error.contains("`stop`") && error.contains("`reload`"),
            "{error}"
        );
    }

    #[test]
    fn answers() {
        let (file, warnings) = (PathBuf::from("/etc/xdplb/lb.toml"), vec![]);
        for (answer, text) in [
            (
                Answer::InForce {
                    file: file.clone(),
                    services: 3,
                    warnings: vec!["a \"quoted\"\nwarning".into()],
                },
                "{\"result\":\"in_force\",\"file\":\"/etc/xdplb/lb.toml\",\"services\":3,\
                 \"warnings\":[\"a \\\"quoted\\\"\\nwarning\"]}\n",
            ),
            (
                Answer::Refused {
                    file,
                    faults: vec!["one".into(), "two".into()],
                    warnings,
                },
                "{\"result\":\"refused\",\"file\":\"/etc/xdplb/lb.toml\",\"faults\":[\"one\",\"two\"],\
                 \"warnings\":[]}\n",
            ),
            (
                Answer::Error {
                    error: "stopping".into(),
                },
                "{\"result\":\"error\",\"error\":\"stopping\"}\n",
            ),
        ] {
            assert_eq!(String::from_utf8_lossy(&line(&answer)), text);
            let read: Answer = serde_json::from_str(text).expect("an answer");
            assert_eq!(read, answer);
        }
    }
}
