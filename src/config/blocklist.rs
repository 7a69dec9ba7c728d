//! The files of `firewall.blocklists`: one prefix or address a line, with `#` comments.
//!
//! Owns their syntax and where they are. A [`Config`](super::Config) has their names only: their contents
//! are read apart from it, and may change while it stays.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::error::{Diagnostic, Error};
use super::place::Place;
use super::report::quoted;
use super::{NamedFile, Prefix};

/// Faults of one file that are told apart; the others are only counted.
const NAMED_FAULTS: usize = 10;

/// The prefixes in each file of `firewall.blocklists`, by the path as it is written there.
pub type Contents = BTreeMap<PathBuf, Arc<[Prefix]>>;

/// Where a blocklist is that the configuration file `config` names: a path that is not absolute begins
/// where that file is, so that the two can be moved and checked from anywhere together.
pub fn locate(config: &Path, blocklist: &Path) -> PathBuf {
    match config.parent() {
        Some(directory) => directory.join(blocklist),
        None => blocklist.to_owned(),
    }
}

/// Reads these blocklists one after the other. One whose contents are those in `known` is the same
/// allocation.
pub fn read<'a>(
    lists: &'a [NamedFile],
    known: &'a Contents,
) -> impl Iterator<Item = (&'a PathBuf, Result<Arc<[Prefix]>, Error>)> {
    lists.iter().map(move |list| {
        let prefixes = load(list).map(|prefixes| {
            let same = known.get(&list.path).filter(|known| ***known == *prefixes);
            same.map_or_else(|| prefixes.into(), Arc::clone)
        });
        (&list.path, prefixes)
    })
}

/// [`read`], all or nothing.
///
/// # Errors
///
/// [`Error::Blocklists`] with the faults of each of them.
pub fn load_all(lists: &[NamedFile], known: &Contents) -> Result<Contents, Error> {
    let mut contents = Contents::new();
    let mut errors = Vec::new();
    for (path, prefixes) in read(lists, known) {
        match prefixes {
            Ok(prefixes) => {
                contents.insert(path.clone(), prefixes);
            }
            Err(error) => errors.push(error),
        }
    }
    if errors.is_empty() {
        Ok(contents)
    } else {
        Err(Error::Blocklists(errors))
    }
}

/// Reads one list. A fault in a line is reported at that line, and a file that cannot be read where the
/// configuration names it.
fn load(list: &NamedFile) -> Result<Vec<Prefix>, Error> {
    let path = locate(&list.place.file, &list.path);
    let bytes = std::fs::read(&path).map_err(|error| {
        let remedy = match error.kind() {
            io::ErrorKind::NotFound => "create it, or take it out of this list",
            io::ErrorKind::IsADirectory => "name the files in it instead",
            io::ErrorKind::PermissionDenied => {
                "make it readable for the user that xdplb runs as, or take it out of this list"
            }
            _ => "make it readable, or take it out of this list",
        };
        Error::Invalid(vec![Diagnostic {
            place: list.place.clone(),
            message: format!(
                "firewall: blocklists names {}: {error}; {remedy}",
                path.display()
            ),
        }])
    })?;
    let text =
        std::str::from_utf8(&bytes).map_err(|error| Error::not_utf8(&path, &bytes, error))?;
    parse(text, &path)
}

/// The prefixes in `text`, the contents of `file`, in their order; the file itself is not touched.
///
/// # Errors
///
/// [`Error::Invalid`] with the first lines that are no prefixes, and how many there are.
pub fn parse(text: &str, file: &Path) -> Result<Vec<Prefix>, Error> {
    // Written on Windows, it may begin with a byte order mark.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut prefixes = Vec::new();
    let mut faults = Vec::new();
    let mut unnamed = 0;
    for (index, line) in text.lines().enumerate() {
        let entry = line.split_once('#').map_or(line, |(entry, _)| entry);
        let entry = entry.trim();
        if entry.is_empty() {
            continue;
        }
        match entry.parse() {
            Ok(prefix) => prefixes.push(prefix),
            Err(_) if faults.len() > NAMED_FAULTS => unnamed += 1,
            Err(error) => {
                let before = line.chars().take_while(|c| c.is_whitespace());
                faults.push(Diagnostic {
                    place: Place {
                        file: file.to_owned(),
                        line: index + 1,
                        column: before.count() + 1,
                    },
                    message: format!("{} {error}", quoted(entry)),
                });
            }
        }
    }
    if let (Some(last), true) = (faults.last_mut(), unnamed > 0) {
        last.message =
            format!("this line and {unnamed} after it are not prefixes either; correct them too");
    }
    if faults.is_empty() {
        Ok(prefixes)
    } else {
        Err(Error::Invalid(faults))
    }
}
