//! `[firewall]` and its rules: values, faults, warnings.

use std::path::PathBuf;

use xdplb::config::{Firewall, PortRange, Rule, RuleAction, RuleProtocol};

use super::{firewall, not_warned, one, prefix, rule, warned};
use crate::{refused, valid, DATAPATH};

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
