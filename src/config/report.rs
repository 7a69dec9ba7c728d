//! Collects the errors and warnings about one file while it is read and validated.

use std::cell::OnceCell;
use std::fmt;
use std::path::Path;

use super::error::Diagnostic;
use super::place::{At, Lines, Place};

/// Collects errors and warnings, in any order.
pub(super) struct Report<'a> {
    /// Of the file, which has the places.
    text: &'a str,
    file: &'a Path,
    lines: OnceCell<Lines<'a>>,
    pieces: Pieces,
    errors: Vec<At<String>>,
    warnings: Vec<At<String>>,
}

/// What is read in place of a file: pieces of it, each with its beginning in what is read and in the file,
/// in order.
pub(super) type Pieces = Vec<(usize, usize)>;

impl<'a> Report<'a> {
    pub fn new(text: &'a str, file: &'a Path) -> Report<'a> {
        Report::of_pieces(text, file, vec![(0, 0)])
    }

    /// About pieces of `text`, which is the file's: it is given bytes of what is read.
    pub fn of_pieces(text: &'a str, file: &'a Path, pieces: Pieces) -> Report<'a> {
        Report {
            text,
            file,
            lines: OnceCell::new(),
            pieces,
            errors: Vec::new(),
            warnings: Vec::new(),
        }
    }

    pub fn error(&mut self, at: usize, message: impl fmt::Display) {
        self.errors.push(At {
            value: message.to_string(),
            at: self.in_file(at),
        });
    }

    pub fn warning(&mut self, at: usize, message: impl fmt::Display) {
        self.warnings.push(At {
            value: message.to_string(),
            at: self.in_file(at),
        });
    }

    /// Adds the warnings of another report, about a piece that begins at that byte of the file.
    pub fn add_warnings(&mut self, warnings: &[At<String>], begins: usize) {
        let moved = warnings.iter().map(|warning| At {
            value: warning.value.clone(),
            at: begins + warning.at,
        });
        self.warnings.extend(moved);
    }

    fn in_file(&self, at: usize) -> usize {
        let next = self.pieces.partition_point(|(begins, _)| *begins <= at);
        let piece = self.pieces[..next].last();
        piece.map_or(at, |(begins, in_file)| in_file + (at - begins))
    }

    fn lines(&self) -> &Lines<'a> {
        self.lines.get_or_init(|| Lines::new(self.text))
    }

    /// An error of the TOML parser.
    pub fn syntax(&mut self, error: &toml::de::Error) {
        let span = error.span().unwrap_or_default();
        let at = span.start;
        let message: Vec<_> = error.message().lines().collect();
        let mut message = message.join(", ");
        let mut remedy = "correct this line";
        // The parser does not say which.
        if let ("duplicate key", Some(key)) = (message.as_str(), self.text.get(span)) {
            message = format!("duplicate key {}", quoted(key.trim_matches(['"', '\''])));
            remedy = "keep one of the two";
        }
        self.error(at, format_args!("not valid TOML: {message}; {remedy}"));
    }

    /// The place of a byte of the file.
    pub fn place(&self, at: usize) -> Place {
        self.lines().place(self.file, self.in_file(at))
    }

    /// Warnings and their places, unless there are errors.
    pub fn warnings(self) -> Option<Vec<At<String>>> {
        self.errors.is_empty().then_some(self.warnings)
    }

    /// Errors and warnings, each in file order.
    pub fn finish(mut self) -> (Vec<Diagnostic>, Vec<Diagnostic>) {
        let (errors, warnings) = (
            std::mem::take(&mut self.errors),
            std::mem::take(&mut self.warnings),
        );
        let diagnostics = |mut messages: Vec<At<String>>| {
            messages.sort_by_key(|message| message.at);
            messages
                .into_iter()
                .map(|At { value, at }| Diagnostic {
                    place: self.lines().place(self.file, at),
                    message: value,
                })
                .collect()
        };
        (diagnostics(errors), diagnostics(warnings))
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
