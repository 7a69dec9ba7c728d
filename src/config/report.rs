//! Collects the errors and warnings about one file while it is read and validated.

use std::fmt;
use std::path::Path;

use super::error::Diagnostic;
use super::place::{At, Lines, Place};

/// Collects errors and warnings, in any order.
pub(super) struct Report<'a> {
    lines: Lines<'a>,
    file: &'a Path,
    errors: Vec<At<String>>,
    warnings: Vec<At<String>>,
}

impl<'a> Report<'a> {
    pub fn new(text: &'a str, file: &'a Path) -> Report<'a> {
        Report {
            lines: Lines::new(text),
            file,
            errors: Vec::new(),
            warnings: Vec::new(),
        }
    }

    pub fn error(&mut self, at: usize, message: impl fmt::Display) {
        self.errors.push(At {
            value: message.to_string(),
            at,
        });
    }

    pub fn warning(&mut self, at: usize, message: impl fmt::Display) {
        self.warnings.push(At {
            value: message.to_string(),
            at,
        });
    }

    /// An error of the TOML parser.
    pub fn syntax(&mut self, error: &toml::de::Error) {
        let span = error.span().unwrap_or_default();
        let at = span.start;
        let message: Vec<_> = error.message().lines().collect();
        let mut message = message.join(", ");
        let mut remedy = "correct this line";
        // The parser does not say which.
        if let ("duplicate key", Some(key)) = (message.as_str(), self.lines.text.get(span)) {
            message = format!("duplicate key {}", quoted(key.trim_matches(['"', '\''])));
            remedy = "keep one of the two";
        }
        self.error(at, format_args!("not valid TOML: {message}; {remedy}"));
    }

    /// The place of a byte of the file.
    pub fn place(&self, at: usize) -> Place {
        self.lines.place(self.file, at)
    }

    /// Errors and warnings, each in file order.
    pub fn finish(self) -> (Vec<Diagnostic>, Vec<Diagnostic>) {
        let diagnostics = |mut messages: Vec<At<String>>| {
            messages.sort_by_key(|message| message.at);
            messages
                .into_iter()
                .map(|At { value, at }| Diagnostic {
                    place: self.lines.place(self.file, at),
                    message: value,
                })
                .collect()
        };
        (diagnostics(self.errors), diagnostics(self.warnings))
    }
}

/// The first characters of what the file says, quoted and escaped: fit for one line of a terminal.
pub(super) fn quoted(text: &str) -> String {
    const SHOWN: usize = 64;
    match text.char_indices().nth(SHOWN) {
        None => format!("{text:?}"),
        Some((end, _)) => format!("{:?}...", &text[..end]),
    }
}
