//! `[[dos]]`: values, faults, and what policies of one protocol must not share.

use std::time::Duration;

use xdplb::config::{Policy, PolicyAction, PolicyProtocol};

use crate::{messages, refused, valid, DATAPATH};

fn policy(lines: &str) -> Policy {
    let text = format!("{DATAPATH}[[dos]]\nname = \"p\"\n{lines}\n");
    valid(&text).dos.remove(0)
}

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
