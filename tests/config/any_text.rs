//! Texts that nobody would write: none makes the reader panic, and each fault has a place.

use proptest::prelude::*;
use xdplb::config::{self, Loaded, PortRange};

use crate::{parse, with_backends, with_port, DATAPATH, EVERYTHING};

/// What a reader of a Config relies on.
fn check(loaded: &Loaded) {
    let config = &loaded.config;
    assert!(!config.datapath.interfaces.is_empty());
    for service in &config.services {
        assert!(!service.name.is_empty() && service.name.len() <= config::NAME_LIMIT);
        assert!(!service.vips.is_empty() && !service.protocols.is_empty());
        assert!(!service.ports.is_empty());
        assert!(service
            .ports
            .windows(2)
            .all(|pair| pair[0].last < pair[1].first));
        for backend in &service.backends {
            assert!(!backend.name.is_empty() && backend.name.len() <= config::NAME_LIMIT);
            assert!(backend.weight <= 1000);
        }
    }
    for rule in config.firewall.iter().flat_map(|firewall| &firewall.rules) {
        let any = [rule.port, rule.source_port] == [PortRange::ANY; 2];
        assert!(any || rule.protocol.has_ports());
    }
    for policy in &config.dos {
        let (mask, set) = policy.tcp_flags;
        assert!(set & !mask == 0 && policy.limit > 0 && policy.burst > 0);
    }
}

pub fn never_panics(text: &str) {
    match parse(text) {
        Ok(loaded) => check(&loaded),
        Err(error) => {
            for line in error.to_string().lines() {
                assert!(line.starts_with("lb.toml:"), "{line}");
            }
        }
    }
}

#[test]
fn deep_nesting() {
    never_panics(&format!("a = {}", "[".repeat(100_000)));
    never_panics(&format!("a = {}1{}", "[".repeat(5_000), "]".repeat(5_000)));
    never_panics(&format!("a = {}", "{a=".repeat(5_000)));
    never_panics(&format!("{} = 1", vec!["a"; 5_000].join(".")));
    never_panics("\u{feff}[datapath]\r\ninterfaces = [\"eth0\"]\r\n");
}

proptest! {
    #[test]
    fn any_text(text in any::<String>()) {
        never_panics(&text);
    }

    #[test]
    fn any_toml_like_text(text in "([\\[\\]{}=.,\"'\\-0-9a-z_ \n#é]|service|backend|port|vip){0,80}") {
        never_panics(&text);
    }

    #[test]
    fn any_value(key in "interfaces|pin_dir|run_dir|addresses|hash_seed|icmp_echo", value in "[\\[\\]\"0-9a-z:./, -]{0,30}") {
        never_panics(&format!("{DATAPATH}{key} = {value}\n"));
        never_panics(&format!("{DATAPATH}[tunnel]\nsource = \"{value}\"\n"));
        never_panics(&with_port(&format!("port = {value}")));
        never_panics(&with_port(&format!("port = \"{value}\"")));
        never_panics(&with_backends(&[&format!("address = \"{value}\"")]));
    }

    /// A piece of a valid file goes, or is put elsewhere, or something else is put in its place.
    #[test]
    fn mutations(
        cuts in prop::collection::vec(
            (any::<prop::sample::Index>(), 0..40_usize, prop_oneof!["[\\PC\n]{0,6}", any::<String>()]),
            1..4,
        ),
        moved in any::<Option<(prop::sample::Index, prop::sample::Index)>>(),
    ) {
        let mut chars: Vec<char> = EVERYTHING.chars().collect();
        for (start, length, with) in cuts {
            let start = start.index(chars.len());
            let end = (start + length).min(chars.len());
            chars.splice(start..end, with.chars());
            chars.push('\n');
        }
        let text: String = chars.into_iter().collect();
        never_panics(&text);
        if let Some((from, to)) = moved {
            let mut lines: Vec<&str> = EVERYTHING.lines().collect();
            let line = lines.remove(from.index(lines.len()));
            lines.insert(to.index(lines.len()), line);
            never_panics(&lines.join("\n"));
        }
    }
}
