//! The tables that protect services: `[firewall]`, `[[dos]]`, `service.allow`, and the files of blocklists.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use xdplb::config::blocklist::{self, Contents};
use xdplb::config::{
    Error, Firewall, Policy, PolicyAction, PolicyProtocol, PortRange, Prefix, Rule, RuleAction,
    RuleProtocol,
};

use super::{marked, messages, parse, refused, valid, with_port, DATAPATH, FILE};

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

fn policy(lines: &str) -> Policy {
    let text = format!("{DATAPATH}[[dos]]\nname = \"p\"\n{lines}\n");
    valid(&text).dos.remove(0)
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

// ------------------------------------------------------------------------------------- firewall

#[test]
fn absent() {
    let config = valid(DATAPATH);
    assert_eq!(config.firewall, None);
    assert!(config.dos.is_empty());
    assert_eq!(config.limits.firewall_rules, 65_536);
    assert_eq!(config.limits.sources, 262_144);
}

#[test]
fn defaults_of_a_firewall() {
    let expected = Firewall {
        default: RuleAction::Allow,
        blocklists: vec![],
        rules: vec![],
    };
    assert_eq!(firewall(""), expected);
    let expected = Rule {
        name: None,
        action: RuleAction::Deny,
        source: None,
        protocol: RuleProtocol::Any,
        source_port: PortRange::ANY,
        port: PortRange::ANY,
    };
    assert_eq!(rule(""), expected);
    // The table of the rules is enough.
    let text = format!("{DATAPATH}[[firewall.rule]]\naction = \"allow\"\n");
    assert_eq!(
        valid(&text).firewall.map(|firewall| firewall.rules.len()),
        Some(1)
    );
}

#[test]
fn every_key_of_a_firewall() {
    let firewall = firewall(
        r#"
default = "deny"
blocklists = ["/etc/xdplb/blocklist.txt", "lists/more.txt"]
[[firewall.rule]]
name = "no-lab"
action = "deny"
source = "198.18.0.0/15"
protocol = "tcp"
source_port = "any"
port = "8000-9000"
[[firewall.rule]]
name = "office"
action = "allow"
source = "2001:db8::/32"
protocol = "udp"
source_port = "5000-6000"
port = 53
"#,
    );
    let range = |first, last| PortRange { first, last };
    let expected = Firewall {
        default: RuleAction::Deny,
        blocklists: ["/etc/xdplb/blocklist.txt", "lists/more.txt"]
            .map(PathBuf::from)
            .to_vec(),
        rules: vec![
            Rule {
                name: Some("no-lab".into()),
                action: RuleAction::Deny,
                source: Some(prefix("198.18.0.0/15")),
                protocol: RuleProtocol::Number(6),
                source_port: PortRange::ANY,
                port: range(8000, 9000),
            },
            Rule {
                name: Some("office".into()),
                action: RuleAction::Allow,
                source: Some(prefix("2001:db8::/32")),
                protocol: RuleProtocol::Number(17),
                source_port: range(5000, 6000),
                port: one(53),
            },
        ],
    };
    assert_eq!(firewall, expected);
}

#[test]
fn what_conditions_may_be() {
    for (text, expected) in [
        ("\"any\"", RuleProtocol::Any),
        ("\"tcp\"", RuleProtocol::Number(6)),
        ("\"udp\"", RuleProtocol::Number(17)),
        ("\"icmp\"", RuleProtocol::Icmp),
        ("0", RuleProtocol::Number(0)),
        ("47", RuleProtocol::Number(47)),
        ("255", RuleProtocol::Number(255)),
        ("\"47\"", RuleProtocol::Number(47)),
        ("\"6\"", RuleProtocol::Number(6)),
    ] {
        let protocol = rule(&format!("protocol = {text}")).protocol;
        assert_eq!(protocol, expected, "{text}");
    }
    for (text, first, last) in [
        ("22", 22, 22),
        ("\"22\"", 22, 22),
        ("\"5000-6000\"", 5000, 6000),
        ("\"1-65535\"", 1, 65_535),
        ("\"any\"", 0, 65_535),
    ] {
        for protocol in ["\"any\"", "\"tcp\"", "6", "\"udp\"", "17"] {
            let rule = rule(&format!(
                "protocol = {protocol}\nport = {text}\nsource_port = {text}"
            ));
            let expected = PortRange { first, last };
            assert_eq!((rule.port, rule.source_port), (expected, expected));
        }
    }
    let any = rule("protocol = \"icmp\"\nport = \"any\"\nsource_port = \"any\"");
    assert_eq!(any.port, PortRange::ANY);
    for (text, expected) in [
        ("any", None),
        ("198.51.100.7", Some("198.51.100.7/32")),
        ("198.51.100.0/24", Some("198.51.100.0/24")),
        ("0.0.0.0/0", Some("0.0.0.0/0")),
        ("2001:db8::/32", Some("2001:db8::/32")),
        ("::/0", Some("::/0")),
    ] {
        let source = rule(&format!("source = \"{text}\"")).source;
        assert_eq!(source, expected.map(prefix), "{text}");
    }
}

#[test]
fn faults_of_a_firewall() {
    for (lines, phrases) in [
        (
            "default = ¶\"drop\"",
            &["firewall: default is \"drop\"; write one of \"allow\", \"deny\""][..],
        ),
        (
            "¶rules = []",
            &["firewall: unknown key \"rules\"", "did you mean \"rule\"?"],
        ),
        (
            "blocklists = ¶\"/etc/list\"",
            &["blocklists is a string; write a list: blocklists = ["],
        ),
        (
            "blocklists = [¶\"\"]",
            &["blocklists is \"\"; write the path of a file"],
        ),
        (
            "blocklists = [¶\"a\\u0000\"]",
            &["write the path of a file such as \"/etc/xdplb/blocklist.txt\""],
        ),
        ("blocklists = [¶7]", &["is an integer; write a string"]),
        (
            "blocklists = [\"a\", \"b\", ¶\"a\"]",
            &["firewall: blocklists has a twice; remove one"],
        ),
        (
            "rule = ¶5",
            &["rule is an integer; begin each one with [[firewall.rule]]"],
        ),
        (
            "¶[[firewall.rule]]\nname = \"a\"",
            &["firewall: rule \"a\": action is missing; add action = \"deny\""],
        ),
        (
            "[[firewall.rule]]\naction = ¶\"drop\"",
            &["firewall: rule 1: action is \"drop\"; write one of \"allow\", \"deny\""],
        ),
        (
            "[[firewall.rule]]\naction = \"deny\"\n¶destination_port = 80",
            &[
                "firewall: rule 1: unknown key \"destination_port\"",
                "the keys here are name",
            ],
        ),
        (
            "[[firewall.rule]]\nname = \"a\"\naction = \"deny\"\nport = 1\n\
             [[firewall.rule]]\nname = ¶\"a\"\naction = \"deny\"\nport = 2",
            &["rule \"a\": this name is also at lb.toml:5:8; give each rule its own"],
        ),
    ] {
        refused(&format!("{DATAPATH}[firewall]\n{lines}\n"), phrases);
    }
    refused(
        &format!("firewall = ¶true\n{DATAPATH}"),
        &["firewall is a boolean; write a table: [firewall]"],
    );
    let files: Vec<String> = (0..64).map(|n| format!("\"{n}\"")).collect();
    let files = files.join(",");
    assert_eq!(
        firewall(&format!("blocklists = [{files}]"))
            .blocklists
            .len(),
        64
    );
    refused(
        &format!("{DATAPATH}[firewall]\nblocklists = [{files},¶\"x\"]"),
        &["firewall: blocklists has 65 entries of at most 64; put the rest into one file"],
    );
}

#[test]
fn faults_of_a_rule() {
    let protocols = "write \"any\", \"tcp\", \"udp\", \"icmp\", or the number of a protocol";
    for (lines, phrase) in [
        ("name = ¶\"\"", "a name has 1 to 63"),
        ("name = ¶\"a b\"", "leave out the ' '"),
        (
            "source = ¶\"lab\"",
            "is \"lab\", which is not a prefix; write an address",
        ),
        (
            "source = ¶\"10.0.0.0/33\"",
            "not a number from 0 to 32; write 10.0.0.0 for the one address, or a network with its length \
             such as 10.0.0.0/24",
        ),
        (
            "source = ¶\"10.0.0.0/08\"",
            "with leading zeros; write 10.0.0.0/8",
        ),
        (
            "source = ¶\"10.0.0.1/8\"",
            "write 10.0.0.0/8 for the prefix, or 10.0.0.1",
        ),
        (
            "source = ¶\"::ffff:192.0.2.0/120\"",
            "in IPv6 notation; write 192.0.2.0/24",
        ),
        ("source = ¶[\"10.0.0.0/8\"]", "is an array; write a string"),
        ("protocol = ¶\"sctp\"", protocols),
        ("protocol = ¶\"256\"", protocols),
        ("protocol = ¶\"+6\"", protocols),
        ("protocol = ¶\"\"", protocols),
        (
            "protocol = ¶256",
            "protocol is 256; write a number from 0 to 255",
        ),
        (
            "protocol = ¶-1",
            "protocol is -1; write a number from 0 to 255",
        ),
        (
            "protocol = ¶[\"tcp\"]",
            "is an array; write \"any\", \"tcp\"",
        ),
        ("port = ¶0", "port is 0; write a number from 1 to 65535"),
        ("port = ¶\"0\"", "write a port such as 80"),
        ("port = ¶\"65536\"", "write a port such as 80"),
        (
            "source_port = ¶\"+1\"",
            "source_port is \"+1\"; write a port such as 80",
        ),
        ("port = ¶\"022\"", "is \"022\", with leading zeros; write 22"),
        (
            "source_port = ¶\"22-0100\"",
            "is \"22-0100\", with leading zeros; write \"22-100\"",
        ),
        (
            "protocol = ¶\"047\"",
            "is \"047\", with leading zeros; write 47",
        ),
        ("protocol = ¶\"0256\"", protocols),
        ("port = ¶\"9-8\"", "is backwards; write \"8-9\""),
        (
            "port = ¶[80, 443]",
            "port is an array; write a port such as 80",
        ),
        (
            "protocol = \"icmp\"\nport = ¶8",
            "port cannot be set with protocol icmp, which has no ports",
        ),
        (
            "protocol = \"icmp\"\nsource_port = ¶8",
            "source_port cannot be set with protocol icmp",
        ),
        (
            "protocol = 47\nport = ¶\"1-65535\"",
            "port cannot be set with protocol 47, which",
        ),
        (
            "protocol = \"132\"\nport = ¶8",
            "remove this key, or write protocol = \"tcp\", \"udp\" or \"any\"",
        ),
    ] {
        let text = format!("{DATAPATH}[[firewall.rule]]\naction = \"deny\"\n{lines}\n");
        refused(&text, &["firewall: rule ", phrase]);
    }
    // What follows from a protocol that is none is not said.
    let text = "[[firewall.rule]]\naction = \"deny\"\nprotocol = ¶\"ipx\"\nport = 8\n";
    refused(&format!("{DATAPATH}{text}"), &[protocols]);
}

#[test]
fn limits() {
    for (lines, phrase) in [
        (
            "firewall_rules = ¶0",
            "firewall_rules is 0; write a number from 1 to 131000",
        ),
        (
            "firewall_rules = ¶131_001",
            "write a number from 1 to 131000",
        ),
        (
            "sources = ¶0",
            "sources is 0; write a number from 1 to 16777216",
        ),
        ("sources = ¶16_777_217", "write a number from 1 to 16777216"),
    ] {
        refused(
            &format!("{DATAPATH}[limits]\n{lines}\n"),
            &["limits: ", phrase],
        );
    }
    let config = valid(&format!(
        "{DATAPATH}[limits]\nfirewall_rules = 131_000\nsources = 16_777_216\n"
    ));
    assert_eq!(config.limits.firewall_rules, 131_000);
    assert_eq!(config.limits.sources, 16_777_216);

    let rule = |port| format!("[[firewall.rule]]\naction = \"deny\"\nport = {port}\n");
    let two = format!("{}{}", rule(1), rule(2));
    refused(
        &format!("{DATAPATH}[limits]\nfirewall_rules = ¶1\n{two}"),
        &["firewall_rules is 1, but the file has 2; write firewall_rules = 2 or more"],
    );
    valid(&format!("{DATAPATH}[limits]\nfirewall_rules = 2\n{two}"));
}

#[test]
fn rules_that_cannot_match() {
    let text = |first: &str, second: &str| {
        format!(
            "{DATAPATH}[[firewall.rule]]\naction = \"allow\"\n{first}\n\
             [[firewall.rule]]\naction = \"deny\"\n{second}\n"
        )
    };
    let later = |first: &str, second: &str| {
        text(first, second).replace(
            "[[firewall.rule]]\naction = \"deny\"",
            "¶[[firewall.rule]]\naction = \"deny\"",
        )
    };
    for (first, second) in [
        ("port = 80", "port = 80"),
        ("port = 80", "port = 80\nprotocol = \"udp\""),
        ("port = 80", "port = 80\nsource_port = \"1-9\""),
        ("protocol = \"tcp\"", "protocol = 6\nport = 80"),
        ("protocol = \"icmp\"", "protocol = 58"),
        (
            "protocol = \"icmp\"",
            "protocol = 1\nsource = \"192.0.2.1\"",
        ),
        ("source = \"10.0.0.0/8\"", "source = \"10.1.0.0/16\""),
        (
            "source = \"10.0.0.0/8\"",
            "source = \"10.0.0.0/8\"\nprotocol = 47",
        ),
        (
            "source = \"0.0.0.0/0\"",
            "source = \"10.1.0.0/16\"\nport = 1",
        ),
        ("source = \"2001:db8::/32\"", "source = \"2001:db8:1::/48\""),
        (
            "source = \"::/0\"\nport = 80",
            "source = \"2001:db8::1\"\nport = 80",
        ),
    ] {
        warned(
            &later(first, second),
            &[
                "firewall: rule 2 can never match: the rule at lb.toml:3:1 already matches all its packets",
                "remove one, or change their order",
            ],
        );
    }
    for (first, second) in [
        ("port = 80", ""),
        ("port = 80", "port = 443"),
        ("port = 80", "protocol = \"icmp\""),
        ("protocol = 6", "protocol = 17"),
        ("protocol = 1", "protocol = \"icmp\""),
        ("source = \"10.0.0.0/8\"", ""),
        ("source = \"10.1.0.0/16\"", "source = \"10.0.0.0/8\""),
        ("source = \"10.0.0.0/8\"", "source = \"11.0.0.0/16\""),
        ("source = \"0.0.0.0/0\"", "source = \"::/0\""),
        ("source = \"::/0\"", "source = \"192.0.2.1\""),
        (
            "source = \"10.0.0.0/8\"\nport = 80",
            "source = \"10.0.0.0/16\"",
        ),
        ("source_port = 80", "port = 80"),
    ] {
        not_warned(&text(first, second));
    }
    // Once for all.
    let mut many = later("", "name = \"a\"");
    for port in 1..100 {
        let rule = format!("[[firewall.rule]]\naction = \"allow\"\nport = {port}\n");
        many.push_str(&rule);
    }
    warned(&many, &["rule \"a\" and those after it can never match"]);
}

#[test]
fn nobody_let_in() {
    let deny = "[[firewall.rule]]\naction = \"deny\"\nport = 1\n";
    let allow = "[[firewall.rule]]\naction = \"allow\"\nport = 2\n";
    for rules in [String::new(), deny.to_owned()] {
        warned(
            &format!("{DATAPATH}[firewall]\ndefault = ¶\"deny\"\n{rules}"),
            &["no rule allows anything, so every packet for a VIP is dropped; add a [[firewall.rule]]"],
        );
    }
    not_warned(&format!(
        "{DATAPATH}[firewall]\ndefault = \"deny\"\n{deny}{allow}"
    ));
    not_warned(&format!("{DATAPATH}[firewall]\n{deny}"));
}

// ------------------------------------------------------------------------------------- policies

#[test]
fn every_key_of_a_policy() {
    let lines = "protocol = \"tcp\"\ntcp_flags = \"syn\"\nlimit = 1000\nburst = 2000\n\
                 action = \"block\"\nblock_for = \"90s\"";
    let expected = Policy {
        name: "p".into(),
        protocol: PolicyProtocol::Tcp,
        tcp_flags: (0x12, 0x02),
        limit: 1000,
        burst: 2000,
        action: PolicyAction::Block(Duration::from_secs(90)),
    };
    assert_eq!(policy(lines), expected);
    let expected = Policy {
        name: "p".into(),
        protocol: PolicyProtocol::Icmp,
        tcp_flags: (0, 0),
        limit: 5,
        burst: 5,
        action: PolicyAction::Limit,
    };
    assert_eq!(policy("protocol = \"icmp\"\nlimit = 5"), expected);
    let block = policy("protocol = \"udp\"\nlimit = 5\naction = \"block\"");
    assert_eq!(block.action, PolicyAction::Block(Duration::from_secs(60)));
    assert_eq!(block.protocol, PolicyProtocol::Udp);
    assert_eq!(
        policy("protocol = \"udp\"\nlimit = 10_000_000").limit,
        10_000_000
    );
}

#[test]
fn flags() {
    for (text, expected, shown) in [
        ("\"syn\"", (0x12, 0x02), "syn"),
        ("\"syn,ack\"", (0x12, 0x12), "syn,ack"),
        ("\"ack+syn\"", (0x12, 0x12), "syn,ack"),
        ("\"syn, ack\"", (0x12, 0x12), "syn,ack"),
        ("[\"syn\", \"ack\"]", (0x12, 0x12), "syn,ack"),
        ("[\"syn\"]", (0x12, 0x02), "syn"),
        ("\"syn+syn\"", (0x12, 0x02), "syn"),
        ("\"ack\"", (0x10, 0x10), "ack"),
        ("\"rst\"", (0x04, 0x04), "rst"),
        ("\"fin+syn\"", (0x13, 0x03), "fin,syn"),
        (
            "\"fin,syn,rst,psh,ack,urg,ece,cwr\"",
            (0xff, 0xff),
            "fin,syn,rst,psh,ack,urg,ece,cwr",
        ),
    ] {
        let policy = policy(&format!(
            "protocol = \"tcp\"\nlimit = 1\ntcp_flags = {text}"
        ));
        assert_eq!(policy.tcp_flags, expected, "{text}");
        let names: Vec<_> = policy.flag_names().collect();
        assert_eq!(names.join(","), shown, "{text}");
    }
    let every = policy("protocol = \"tcp\"\nlimit = 1");
    assert_eq!(every.flag_names().count(), 0);
}

#[test]
fn faults_of_a_policy() {
    let flags = "write flags such as \"syn\", \"syn,ack\" or [\"syn\", \"ack\"], of fin, syn, rst, psh, ack";
    let seconds = "write a number and a unit";
    for (lines, phrase) in [
        (
            "limit = ¶0",
            "limit is 0; write a number from 1 to 10000000",
        ),
        ("limit = ¶10_000_001", "write a number from 1 to 10000000"),
        ("limit = ¶\"1000/s\"", "is a string; write a number from 1"),
        (
            "limit = 1\nburst = ¶0",
            "burst is 0; write a number from 1 to 10000000",
        ),
        (
            "limit = 1\naction = ¶\"drop\"",
            "write one of \"limit\", \"block\"",
        ),
        ("limit = 1\ntcp_flags = ¶\"SYN\"", flags),
        ("limit = 1\ntcp_flags = ¶\"\"", flags),
        ("limit = 1\ntcp_flags = ¶\"syn,\"", flags),
        ("limit = 1\ntcp_flags = ¶[7]", flags),
        ("limit = 1\ntcp_flags = ¶2", flags),
        (
            "limit = 1\ntcp_flags = ¶[]",
            "is an empty list; write flags",
        ),
        ("limit = 1\naction = \"block\"\nblock_for = ¶60", seconds),
        (
            "limit = 1\naction = \"block\"\nblock_for = ¶\"0s\"",
            "write more than 0",
        ),
        (
            "limit = 1\nblock_for = ¶\"60s\"",
            "block_for cannot be set with action = \"limit\", which drops only the excess",
        ),
        ("limit = 1\n¶rate = 5", "unknown key \"rate\""),
    ] {
        let text = format!("{DATAPATH}[[dos]]\nname = \"p\"\nprotocol = \"tcp\"\n{lines}\n");
        refused(&text, &["dos \"p\": ", phrase]);
    }
    for protocol in ["udp", "icmp"] {
        let lines =
            format!("name = \"p\"\nprotocol = \"{protocol}\"\nlimit = 1\ntcp_flags = ¶\"syn\"");
        refused(
            &format!("{DATAPATH}[[dos]]\n{lines}\n"),
            &[
                "tcp_flags cannot be set with protocol =",
                "or write protocol = \"tcp\"",
            ],
        );
    }
    refused(
        &format!("{DATAPATH}[[dos]]\nname = \"p\"\nprotocol = ¶\"any\"\nlimit = 1\n"),
        &["write one of \"tcp\", \"udp\", \"icmp\""],
    );
    refused(
        &format!("{DATAPATH}¶[dos]\nname = \"p\"\n"),
        &["dos is a table; begin each one with [[dos]]"],
    );
    // All that is required, at the header.
    let found = messages(&format!("{DATAPATH}[[dos]]\n"));
    let keys = ["name = \"syn\"", "protocol = \"tcp\"", "limit = 1000"];
    assert_eq!(found.len(), keys.len(), "{found:#?}");
    for (message, key) in found.iter().zip(keys) {
        assert!(message.starts_with("lb.toml:3:"), "{message}");
        assert!(
            message.ends_with(&format!("is missing; add {key}")),
            "{message}"
        );
    }
}

#[test]
fn rules_between_policies() {
    let one = |name: &str, protocol: &str| {
        format!("[[dos]]\nname = \"{name}\"\nprotocol = \"{protocol}\"\nlimit = 1\n")
    };
    refused(
        &format!(
            "{DATAPATH}{}{}",
            one("a", "tcp"),
            one("a", "udp").replace("\"a\"", "¶\"a\"")
        ),
        &["dos \"a\": this name is also at lb.toml:4:8; give each policy its own"],
    );
    let eight: String = (1..=8).map(|n| one(&n.to_string(), "udp")).collect();
    let others = format!("{}{}", one("t", "tcp"), one("i", "icmp"));
    assert_eq!(valid(&format!("{DATAPATH}{eight}{others}")).dos.len(), 10);
    refused(
        &format!("{DATAPATH}{eight}{others}¶{}{}", one("ninth", "udp"), one("tenth", "udp")),
        &["dos \"ninth\" is one more policy of udp than the 8 that a protocol can have; remove one"],
    );
}

// ---------------------------------------------------------------------------------------- allow

#[test]
fn allow() {
    let with = |allow: &str| {
        with_port(&format!(
            "port = 80\nallow = {allow}\nbackend = [{{ address = \"10.0.5.2\" }}]"
        ))
    };
    let of = |text: &str| valid(&with(text)).services.remove(0).allow;
    assert_eq!(of("[]"), []);
    assert_eq!(
        of("[\"198.51.100.0/24\", \"192.0.2.1\"]"),
        [prefix("198.51.100.0/24"), prefix("192.0.2.1")]
    );
    assert_eq!(valid(&with_port("port = 80")).services[0].allow, []);
    for (text, phrase) in [
        (
            "¶\"10.0.0.0/8\"",
            "allow is a string; write a list: allow = [",
        ),
        (
            "[¶\"any\"]",
            "allow is \"any\", which is not a prefix; write an address",
        ),
        ("[¶\"10.0.0.1/8\"]", "write 10.0.0.0/8 for the prefix"),
        ("[¶\"::ffff:10.0.0.1\"]", "in IPv6 notation; write 10.0.0.1"),
        (
            "[¶7]",
            "is an integer; write a string such as \"198.51.100.0/24\"",
        ),
        (
            "[\"10.0.0.0/8\", ¶\"10.0.0.0/8\"]",
            "allow has 10.0.0.0/8 twice; remove one",
        ),
    ] {
        refused(&with(text), &["service \"web\": ", phrase]);
    }

    let (v4, v6) = ("\"198.51.100.0/24\"", "\"2001:db8::/32\"");
    not_warned(&with(&format!("[{v4}]")));
    not_warned(&with("[]"));
    warned(
        &with(&format!("¶[{v4}, {v6}]")),
        &["allow has 2001:db8::/32, but the service has no IPv6 VIP; add one, or remove the prefix"],
    );
    let both = "vip = [\"203.0.113.11\", \"2001:db8:1::11\"]\nprotocol = \"tcp\"\nport = 80\n\
                backend = [{ address = \"10.0.5.2\" }, { address = \"2001:db8:5::2\" }]\n";
    let both =
        |allow: &str| format!("{DATAPATH}[[service]]\nname = \"web\"\n{both}allow = {allow}\n");
    not_warned(&both(&format!("[{v4}, {v6}]")));
    warned(
        &both(&format!("¶[{v4}]")),
        &["allow has no IPv6 prefix, so no client reaches its IPv6 VIPs; add one, or remove"],
    );
    // Both: the prefix is of no use, and nobody reaches the VIP.
    let warnings = parse(&with(&format!("[{v6}]"))).expect("valid").warnings;
    assert_eq!(warnings.len(), 2, "{warnings:#?}");
}

// ----------------------------------------------------------------------------------- blocklists

#[test]
fn what_a_blocklist_may_hold() {
    let text =
        "\u{feff}# made by hand\r\n\r\n  198.51.100.0/24  \r\n192.0.2.1\r\n\t2001:db8::/32 # lab\n\
                10.0.0.0/8#none\n#\n   \n2001:db8::1\n0.0.0.0/0\n198.51.100.0/24";
    let expected = [
        "198.51.100.0/24",
        "192.0.2.1",
        "2001:db8::/32",
        "10.0.0.0/8",
        "2001:db8::1",
        "0.0.0.0/0",
        "198.51.100.0/24",
    ];
    let prefixes = blocklist::parse(text, Path::new("list.txt")).expect("valid");
    assert_eq!(prefixes, expected.map(prefix));
    assert_eq!(
        blocklist::parse("", Path::new("list.txt")).expect("valid"),
        []
    );
}

fn faults(text: &str) -> Vec<String> {
    match blocklist::parse(text, Path::new("list.txt")) {
        Err(Error::Invalid(faults)) => faults.iter().map(ToString::to_string).collect(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn faults_of_a_blocklist() {
    for (text, expected) in [
        (
            "192.0.2.1\n  # ok\n  example.com # no\n",
            "list.txt:3:3: \"example.com\" is not a prefix; write an address, or an address and a length",
        ),
        (
            "198.51.100.7/24",
            "list.txt:1:1: \"198.51.100.7/24\" has bits set beyond its length; write 198.51.100.0/24 for \
             the prefix, or 198.51.100.7",
        ),
        ("\n10.0.0.0/33", "list.txt:2:1: \"10.0.0.0/33\" has a length that is not a number from 0 to 32; write 10.0.0.0 for"),
        ("::ffff:192.0.2.1", "is IPv4 in IPv6 notation; write 192.0.2.1"),
        ("192.0.2.1 192.0.2.2", "list.txt:1:1: \"192.0.2.1 192.0.2.2\" is not a prefix"),
        ("192.0.2.1,", "is not a prefix"),
        ("192.0.2.1 ; why", "is not a prefix"),
        ("\u{a0}\u{a0}x", "list.txt:1:3: \"x\" is not a prefix"),
        ("\u{1b}[2J", "list.txt:1:1: \"\\u{1b}[2J\" is not a prefix"),
    ] {
        let [ref fault] = faults(text)[..] else {
            panic!("{:#?}", faults(text))
        };
        assert!(fault.contains(expected), "{fault}");
    }
    // A few of many, and how many there are.
    let lines: String = (0..1000).map(|n| format!("192.0.2.1\nbad-{n}\n")).collect();
    let found = faults(&lines);
    assert_eq!(found.len(), 11);
    assert!(
        found[0].starts_with("list.txt:2:1: \"bad-0\""),
        "{}",
        found[0]
    );
    assert!(
        found[9].starts_with("list.txt:20:1: \"bad-9\""),
        "{}",
        found[9]
    );
    assert_eq!(
        found[10],
        "list.txt:22:1: this line and 989 after it are not prefixes either; correct them too"
    );
    let eleven = faults(&"bad\n".repeat(11));
    assert!(eleven[10].starts_with("list.txt:11:1: \"bad\" is not a prefix"));
}

#[test]
fn where_a_blocklist_is() {
    for (config, written, place) in [
        ("/etc/xdplb/lb.toml", "/var/list", "/var/list"),
        ("/etc/xdplb/lb.toml", "list", "/etc/xdplb/list"),
        ("/etc/xdplb/lb.toml", "../list", "/etc/xdplb/../list"),
        ("conf/lb.toml", "list", "conf/list"),
        ("lb.toml", "list", "list"),
    ] {
        let found = blocklist::locate(Path::new(config), Path::new(written));
        assert_eq!(found, Path::new(place));
    }
}

#[test]
fn files_of_blocklists() {
    let directory = std::env::temp_dir().join(format!("xdplb-blocklist-{}", std::process::id()));
    std::fs::create_dir_all(directory.join("d")).expect("a directory for the test");
    let write = |name: &str, text: &[u8]| {
        std::fs::write(directory.join(name), text).expect("a file for the test");
    };
    write("a", b"192.0.2.1\n");
    write("b", b"198.51.100.0/24\n2001:db8::/32\n");
    let file = directory.join(FILE);
    let lists = |files: &str| {
        let text = format!("{DATAPATH}[firewall]\nblocklists = [{files}]\n");
        let loaded = xdplb::config::parse(&text, &file).expect("valid");
        let firewall = loaded.config.firewall.expect("a firewall");
        let named = loaded.blocklists.iter().map(|list| &list.path);
        assert!(firewall.blocklists.iter().eq(named));
        loaded.blocklists
    };
    let both = lists("\"a\", \"b\"");
    let first = blocklist::load_all(&both, &Contents::new()).expect("valid");
    assert_eq!(first.len(), 2);
    assert_eq!(first[Path::new("b")].len(), 2);

    // What has not changed is the same allocation.
    write("b", b"198.51.100.0/24\n");
    let second = blocklist::load_all(&both, &first).expect("valid");
    let same = |path: &str| Arc::ptr_eq(&first[Path::new(path)], &second[Path::new(path)]);
    assert!(same("a") && !same("b"));
    assert_eq!(second[Path::new("b")].len(), 1);

    // Everything that is wrong, file by file.
    write("a", b"192.0.2.1\nlocalhost\n");
    write("c", b"# \xff\n");
    let all = lists("\"a\", \"none\", \"b\",\n  \"c\", \"d\"");
    let error = blocklist::load_all(&all, &first)
        .expect_err("faults")
        .to_string();
    let lines: Vec<&str> = error.lines().collect();
    let expected = [
        ("a:2:1: ", "\"localhost\" is not a prefix; write"),
        (
            "lb.toml:4:20: firewall: blocklists names ",
            "/none: No such file or directory (os error 2); create it, or take it out of this list",
        ),
        ("c:1:3: ", "this byte is not UTF-8; save the file as UTF-8"),
        (
            "lb.toml:5:8: firewall: blocklists names ",
            "/d: Is a directory (os error 21); name the files in it instead",
        ),
    ];
    assert_eq!(lines.len(), expected.len(), "{error}");
    for (line, (place, phrase)) in lines.iter().zip(expected) {
        let place = format!("{}/{place}", directory.display());
        assert!(line.starts_with(&place) && line.contains(phrase), "{line}");
    }
    // Without a firewall there are none.
    assert_eq!(parse(DATAPATH).expect("valid").blocklists, []);
    std::fs::remove_dir_all(&directory).expect("ours to remove");
}

/// Reloads read them while packets flow; what is quadratic here would not end.
#[test]
fn a_long_blocklist() {
    let mut text = String::new();
    for n in 0..500_000u32 {
        writeln!(text, "{}", std::net::Ipv4Addr::from(0x0a00_0000 + 2 * n)).expect("text");
    }
    let prefixes = blocklist::parse(&text, Path::new("list.txt")).expect("valid");
    assert_eq!(prefixes.len(), 500_000);
    assert_eq!(prefixes[499_999], prefix("10.15.66.62"));
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
        super::never_panics(&format!("{DATAPATH}[[firewall.rule]]\naction = \"deny\"\n{key} = {value}\n"));
        super::never_panics(&format!("{DATAPATH}[[firewall.rule]]\naction = \"deny\"\n{key} = \"{value}\"\n"));
        super::never_panics(&format!("{DATAPATH}[[dos]]\nname = \"p\"\n{key} = {value}\n"));
        super::never_panics(&format!("{DATAPATH}[[dos]]\nname = \"p\"\n{key} = \"{value}\"\n"));
    }
}
