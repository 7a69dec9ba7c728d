//! A TOML document with positions: tables that know which of their keys were asked for. Knows nothing
//! of the meaning of keys.

use std::fmt;

use toml::de::{DeArray, DeTable, DeValue};
use toml::Spanned;

use super::place::At;
use super::report::{quoted, Report};

/// The values of a key that holds one or a list of them.
#[derive(Debug)]
pub(super) struct List<T> {
    /// Those that could be read.
    pub items: Vec<At<T>>,
    /// Whether these are all. If not, the rest is reported, and nothing follows from its absence.
    pub complete: bool,
}

impl<T: Copy> List<T> {
    pub fn values(&self) -> impl Iterator<Item = T> + '_ {
        self.items.iter().map(|item| item.value)
    }
}

/// A table that is being read. Every key is asked for once; [`Table::finish`] then reports the
/// others as unknown.
pub(super) struct Table<'a> {
    /// Its name in messages, such as `service "web"`.
    pub what: String,
    /// Where it starts.
    pub at: usize,
    contents: Contents<'a>,
    known: Vec<&'static str>,
}

/// The value at a key that should hold a table.
enum Contents<'a> {
    Entries(&'a DeTable<'a>),
    Absent,
    /// Something else, which is reported: nothing follows from the absence of its keys.
    Wrong,
}

impl<'a> Table<'a> {
    /// The document itself.
    pub fn root(entries: &'a DeTable<'a>) -> Table<'a> {
        Table {
            what: String::new(),
            at: 0,
            contents: Contents::Entries(entries),
            known: Vec::new(),
        }
    }

    /// The value of `key`.
    fn get(&mut self, key: &'static str) -> Option<&'a Spanned<DeValue<'a>>> {
        self.known.push(key);
        match self.contents {
            Contents::Entries(entries) => entries.get(key),
            Contents::Absent | Contents::Wrong => None,
        }
    }

    /// A message about a key or a value of this table.
    fn message(&self, message: impl fmt::Display) -> String {
        match self.what.as_str() {
            "" => message.to_string(),
            what => format!("{what}: {message}"),
        }
    }

    /// The value of `key`, if there is one and `read` accepts it. What `read` says is wrong follows
    /// the key in the message.
    pub fn optional<T>(
        &mut self,
        key: &'static str,
        report: &mut Report,
        read: impl Fn(&DeValue) -> Result<T, String>,
    ) -> Option<At<T>> {
        let value = self.get(key)?;
        self.one(key, value, report, &read)
    }

    /// Likewise, and `default`, at the header, if there is none. `None` stands only for a
    /// value that is wrong and reported.
    pub fn or_default<T>(
        &mut self,
        key: &'static str,
        default: T,
        report: &mut Report,
        read: impl Fn(&DeValue) -> Result<T, String>,
    ) -> Option<At<T>> {
        match self.get(key) {
            Some(value) => self.one(key, value, report, &read),
            None => Some(At {
                value: default,
                at: self.at,
            }),
        }
    }

    /// The value of `key`, and an error if there is none. `example` is the line to add.
    pub fn required<T>(
        &mut self,
        key: &'static str,
        example: &str,
        report: &mut Report,
        read: impl Fn(&DeValue) -> Result<T, String>,
    ) -> Option<At<T>> {
        match self.get(key) {
            Some(value) => self.one(key, value, report, &read),
            None => {
                self.missing(key, example, report);
                None
            }
        }
    }

    /// The values of `key`, which is an array. `example` is one.
    pub fn list<T>(
        &mut self,
        key: &'static str,
        example: &str,
        report: &mut Report,
        read: impl Fn(&DeValue) -> Result<T, String>,
    ) -> Option<At<List<T>>> {
        let value = self.get(key)?;
        let at = value.span().start;
        let list = match value.get_ref() {
            DeValue::Array(array) => self.each(key, array, report, &read),
            other => {
                let message = format!("{key} is {}; write a list: {key} = {example}", kind(other));
                report.error(at, self.message(message));
                List {
                    items: Vec::new(),
                    complete: false,
                }
            }
        };
        Some(At { value: list, at })
    }

    /// Likewise, and an error if there is none.
    pub fn required_list<T>(
        &mut self,
        key: &'static str,
        example: &str,
        report: &mut Report,
        read: impl Fn(&DeValue) -> Result<T, String>,
    ) -> Option<At<List<T>>> {
        let list = self.list(key, example, report, read);
        if list.is_none() {
            self.missing(key, example, report);
        }
        list
    }

    /// The values of `key`, which is one value or an array with at least one; an error if there is
    /// none.
    pub fn one_or_more<T>(
        &mut self,
        key: &'static str,
        example: &str,
        report: &mut Report,
        read: impl Fn(&DeValue) -> Result<T, String>,
    ) -> List<T> {
        self.none_or_more(key, example, report, read)
            .unwrap_or_else(|| {
                self.missing(key, example, report);
                List {
                    items: Vec::new(),
                    complete: false,
                }
            })
    }

    /// Likewise, but there need not be any.
    pub fn none_or_more<T>(
        &mut self,
        key: &'static str,
        example: &str,
        report: &mut Report,
        read: impl Fn(&DeValue) -> Result<T, String>,
    ) -> Option<List<T>> {
        let value = self.get(key)?;
        Some(match value.get_ref() {
            DeValue::Array(array) if array.is_empty() => {
                let message = format!("{key} is an empty list; write {key} = {example}");
                report.error(value.span().start, self.message(message));
                List {
                    items: Vec::new(),
                    complete: false,
                }
            }
            DeValue::Array(array) => self.each(key, array, report, &read),
            _ => {
                let item = self.one(key, value, report, &read);
                List {
                    complete: item.is_some(),
                    items: item.into_iter().collect(),
                }
            }
        })
    }

    /// The table `[key]`, empty if there is none.
    pub fn table(&mut self, key: &'static str, report: &mut Report) -> Table<'a> {
        let what = self.message(key);
        let Some(value) = self.get(key) else {
            return Table {
                what,
                at: self.at,
                contents: Contents::Absent,
                known: Vec::new(),
            };
        };
        let contents = match value.get_ref() {
            DeValue::Table(entries) => Contents::Entries(entries),
            other => {
                let message = format!("{key} is {}; write a table: [{key}]", kind(other));
                report.error(value.span().start, self.message(message));
                Contents::Wrong
            }
        };
        Table {
            what,
            at: value.span().start,
            contents,
            known: Vec::new(),
        }
    }

    /// Whether the document has it, be it wrong.
    pub fn is_present(&self) -> bool {
        !matches!(self.contents, Contents::Absent)
    }

    /// The tables `[[key]]`, none if there is none; `header` is what a person writes for one.
    pub fn tables(
        &mut self,
        key: &'static str,
        header: &str,
        report: &mut Report,
    ) -> Vec<Table<'a>> {
        let Some(value) = self.get(key) else {
            return Vec::new();
        };
        let wrong = |value: &Spanned<DeValue>, report: &mut Report| {
            let message = format!(
                "{key} is {}; begin each one with {header}",
                kind(value.get_ref())
            );
            report.error(value.span().start, self.message(message));
        };
        let DeValue::Array(array) = value.get_ref() else {
            wrong(value, report);
            return Vec::new();
        };
        let mut tables = Vec::with_capacity(array.len());
        for (index, element) in array.iter().enumerate() {
            match element.get_ref() {
                DeValue::Table(entries) => tables.push(Table {
                    what: self.message(format_args!("{key} {}", index + 1)),
                    at: element.span().start,
                    contents: Contents::Entries(entries),
                    known: Vec::new(),
                }),
                _ => wrong(element, report),
            }
        }
        tables
    }

    /// Reports the keys that were not asked for, as unknown.
    pub fn finish(self, report: &mut Report) {
        let Contents::Entries(entries) = &self.contents else {
            return;
        };
        for key in entries.keys() {
            let name: &str = key.get_ref();
            if self.known.contains(&name) {
                continue;
            }
            let remedy = match nearest(name, &self.known) {
                Some(near) => format!("did you mean {near:?}?"),
                None => format!("remove it; the keys here are {}", self.known.join(", ")),
            };
            let message = format!("unknown key {}; {remedy}", quoted(name));
            report.error(key.span().start, self.message(message));
        }
    }

    fn missing(&self, key: &str, example: &str, report: &mut Report) {
        if matches!(self.contents, Contents::Wrong) {
            return;
        }
        report.error(
            self.at,
            self.message(format_args!("{key} is missing; add {key} = {example}")),
        );
    }

    fn one<T>(
        &self,
        key: &str,
        value: &Spanned<DeValue>,
        report: &mut Report,
        read: &impl Fn(&DeValue) -> Result<T, String>,
    ) -> Option<At<T>> {
        let at = value.span().start;
        match read(value.get_ref()) {
            Ok(value) => Some(At { value, at }),
            Err(message) => {
                report.error(at, self.message(format_args!("{key} {message}")));
                None
            }
        }
    }

    fn each<T>(
        &self,
        key: &str,
        array: &DeArray,
        report: &mut Report,
        read: &impl Fn(&DeValue) -> Result<T, String>,
    ) -> List<T> {
        let items: Vec<_> = array
            .iter()
            .filter_map(|value| self.one(key, value, report, read))
            .collect();
        List {
            complete: items.len() == array.len(),
            items,
        }
    }
}

/// The type of a value with its article, for messages: "a string".
pub(super) fn kind(value: &DeValue) -> String {
    let kind = value.type_str();
    let article = if kind.starts_with(['a', 'i']) {
        "an"
    } else {
        "a"
    };
    format!("{article} {kind}")
}

/// The known key that `name` is probably a slip of: at most a third of its letters differ.
fn nearest(name: &str, known: &[&'static str]) -> Option<&'static str> {
    known
        .iter()
        .map(|key| (distance(name, key), *key))
        .filter(|(distance, key)| *distance <= (key.len() / 3).max(1))
        .min()
        .map(|(_, key)| key)
}

/// Levenshtein's distance: letters inserted, deleted or replaced. A name that is far too long is
/// not looked at.
fn distance(name: &str, key: &str) -> usize {
    if name.len() > 2 * key.len() + 2 {
        return usize::MAX;
    }
    let key: Vec<char> = key.chars().collect();
    let mut row: Vec<usize> = (0..=key.len()).collect();
    for (i, a) in name.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, b) in key.iter().enumerate() {
            let replaced = diagonal + usize::from(a != *b);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[key.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_keys() {
        let known = ["interfaces", "xdp_mode", "port", "vip"];
        assert_eq!(nearest("interface", &known), Some("interfaces"));
        assert_eq!(nearest("xdpmode", &known), Some("xdp_mode"));
        assert_eq!(nearest("ports", &known), Some("port"));
        assert_eq!(nearest("vips", &known), Some("vip"));
        assert_eq!(nearest("health", &known), None);
        assert_eq!(nearest(&"x".repeat(1_000_000), &known), None);
    }
}
