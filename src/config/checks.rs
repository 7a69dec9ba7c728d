//! Rules that several tables share, and helpers that turn raw values into validated ones.

use std::collections::{HashMap, HashSet};
use std::fmt::Display;
use std::hash::Hash;

use super::document::List;
use super::place::At;
use super::raw;
use super::report::Report;
use super::Family;

/// Reports every name that an earlier one of its kind has. `named` is what messages call each, and its
/// name.
pub(super) fn check_names<'a>(
    kind: &str,
    named: impl Iterator<Item = (&'a str, &'a At<String>)>,
    report: &mut Report,
) {
    let mut places = HashMap::new();
    for (what, At { value: name, at }) in named {
        if let Some(first) = places.insert(name, *at) {
            let first = report.place(first);
            let message = format!("{what}: this name is also at {first}; give each {kind} its own");
            report.error(*at, message);
        }
    }
}

/// Reports every item that equals an earlier one.
pub(super) fn check_repeats<T: Eq + Hash + Display>(
    what: &str,
    key: &str,
    list: &List<T>,
    report: &mut Report,
) {
    let mut seen = HashSet::new();
    for At { value, at } in &list.items {
        if !seen.insert(value) {
            report.error(
                *at,
                format_args!("{what}: {key} has {value} twice; remove one"),
            );
        }
    }
}

/// Reports the first item beyond `limit`.
pub(super) fn check_length<T>(
    what: &str,
    key: &str,
    limit: usize,
    remedy: &str,
    list: &List<T>,
    report: &mut Report,
) {
    if let Some(beyond) = list.items.get(limit) {
        let count = list.items.len();
        let message = format!("{what}: {key} has {count} entries of at most {limit}; {remedy}");
        report.error(beyond.at, message);
    }
}

/// The address families of the VIPs, IPv4 first.
pub(super) fn families(service: &raw::Service) -> Vec<Family> {
    Family::ALL
        .into_iter()
        .filter(|family| service.vips.values().any(|vip| Family::of(vip) == *family))
        .collect()
}

/// The value, or the default where the file has none.
pub(super) fn given<T>(value: Option<At<T>>, default: T) -> T {
    value.map_or(default, |value| value.value)
}

/// The values without their places.
pub(super) fn items<T>(list: List<T>) -> Vec<T> {
    list.items.into_iter().map(|item| item.value).collect()
}
