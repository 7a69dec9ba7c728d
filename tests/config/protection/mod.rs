//! The tables that protect services: `[firewall]`, `[[dos]]`, `service.allow`, and the files of blocklists.

mod allow;
mod blocklists;
mod firewall;
mod policies;

use std::path::Path;

use proptest::prelude::*;
use xdplb::config::{blocklist, Firewall, PortRange, Prefix, Rule};

use crate::any_text::never_panics;
use crate::{marked, parse, valid, DATAPATH};

fn prefix(text: &str) -> Prefix {
    text.parse().expect("a prefix")
}

fn one(port: u16) -> PortRange {
    PortRange {
        first: port,
        last: port,
    }
}

fn firewall(lines: &str) -> Firewall {
    let config = valid(&format!("{DATAPATH}[firewall]\n{lines}\n"));
    config.firewall.expect("a firewall")
}

/// The rule with these lines after its action.
fn rule(lines: &str) -> Rule {
    let lines = format!("[[firewall.rule]]\naction = \"deny\"\n{lines}");
    firewall(&lines).rules.remove(0)
}

/// The one warning about `text` must be where the mark is and say each of `phrases`.
#[track_caller]
fn warned(text: &str, phrases: &[&str]) {
    let (text, places) = marked(text);
    let warnings = parse(&text).expect("valid").warnings;
    let warnings: Vec<String> = warnings.iter().map(ToString::to_string).collect();
    assert_eq!(warnings.len(), places.len(), "{text}\n{warnings:#?}");
    for (warning, place) in warnings.iter().zip(places) {
        assert!(warning.starts_with(&place), "{warning} is not at {place}");
    }
    for phrase in phrases {
        assert!(warnings[0].contains(phrase), "{warnings:#?}\nlack {phrase}");
    }
}

#[track_caller]
fn not_warned(text: &str) {
    let warnings = parse(text).expect("valid").warnings;
    assert!(warnings.is_empty(), "{text}\n{warnings:#?}");
}

proptest! {
    #[test]
    fn no_blocklist_panics(text in "([0-9./:a-f#\r\n \t\u{a0}é]|10\\.0\\.0\\.0/8|::1){0,60}") {
        match blocklist::parse(&text, Path::new("list.txt")) {
            Ok(prefixes) => prop_assert!(prefixes.len() <= text.lines().count()),
            Err(error) => {
                for line in error.to_string().lines() {
                    prop_assert!(line.starts_with("list.txt:"), "{}", line);
                }
            }
        }
    }

    #[test]
    fn no_value_panics(
        key in "source|protocol|port|source_port|tcp_flags|limit|burst|block_for",
        value in "[\\[\\]\"0-9a-z:./,+ -]{0,20}",
    ) {
        never_panics(&format!("{DATAPATH}[[firewall.rule]]\naction = \"deny\"\n{key} = {value}\n"));
        never_panics(&format!("{DATAPATH}[[firewall.rule]]\naction = \"deny\"\n{key} = \"{value}\"\n"));
        never_panics(&format!("{DATAPATH}[[dos]]\nname = \"p\"\n{key} = {value}\n"));
        never_panics(&format!("{DATAPATH}[[dos]]\nname = \"p\"\n{key} = \"{value}\"\n"));
    }
}
