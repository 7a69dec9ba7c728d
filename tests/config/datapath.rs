//! `[datapath]`, `[limits]` and `[timeouts]`.

use crate::{marked, messages, refused, service, valid, with_backends, with_port, DATAPATH};

#[test]
fn datapath_values() {
    let interfaces = "interfaces = [\"eth0\"]\n";
    for (lines, phrases) in [
        (
            "interfaces = ¶[]",
            &["interfaces is empty", "name at least one"][..],
        ),
        (
            "interfaces = ¶\"eth0\"",
            &["interfaces is a string; write a list"],
        ),
        (
            "interfaces = [\"eth0\", ¶5]",
            &["interfaces is an integer; write a string"],
        ),
        (
            "interfaces = [\"eth0\", ¶\"eth0\"]",
            &["has eth0 twice; remove one"],
        ),
        (
            "interfaces = [¶\"\"]",
            &["write a name that `ip link` shows"],
        ),
        (
            "interfaces = [¶\"abcdefghijklmnop\"]",
            &["write a name that `ip link` shows"],
        ),
        (
            "interfaces = [¶\"a/b\"]",
            &["write a name that `ip link` shows"],
        ),
        (
            "interfaces = [¶\"a b\"]",
            &["write a name that `ip link` shows"],
        ),
        (
            "interfaces = [¶\"a:b\"]",
            &["write a name that `ip link` shows"],
        ),
        (
            "interfaces = [¶\"..\"]",
            &["write a name that `ip link` shows"],
        ),
        (
            "interfaces = [¶\"a\\u0000\"]",
            &["write a name that `ip link` shows"],
        ),
        (
            "xdp_mode = ¶\"skb\"",
            &["is \"skb\"; write one of \"auto\", \"native\", \"generic\""],
        ),
        (
            "xdp_mode = ¶true",
            &["is a boolean; write one of \"auto\", \"native\", \"generic\""],
        ),
        ("pin_dir = ¶\"xdplb\"", &["write an absolute path"]),
        ("pin_dir = ¶\"/a\\u0000b\"", &["write an absolute path"]),
        ("pin_dir = ¶1.5", &["is a float; write a string"]),
        (
            "run_dir = ¶\"run/xdplb\"",
            &["write an absolute path such as \"/run/xdplb\""],
        ),
        (
            &format!("run_dir = ¶\"/{}\"", "x".repeat(100)),
            &["is 101 bytes long", "room for 94", "write a shorter path"],
        ),
        (
            "addresses = ¶\"192.0.2.1\"",
            &["write a list: addresses = ["],
        ),
        (
            "addresses = [¶\"192.0.2\"]",
            &["is not an address; write an IPv4 or IPv6 address"],
        ),
        (
            "addresses = [¶\"127.0.0.1\"]",
            &["a loopback address; write a unicast address of this"],
        ),
        (
            "addresses = [\"192.0.2.1\", ¶\"192.0.2.1\"]",
            &["has 192.0.2.1 twice; remove one"],
        ),
        (
            "addresses = [\"2001:db8::1\", ¶\"2001:db8:0::1\"]",
            &["has 2001:db8::1 twice"],
        ),
        (
            "hash_seed = ¶-1",
            &["is -1; write a number from 0 to 9223372036854775807"],
        ),
        (
            "hash_seed = ¶0xffff_ffff_ffff_ffff",
            &["is 0xffffffffffffffff; write a number from 0"],
        ),
        (
            "hash_seed = ¶\"1\"",
            &["is a string; write a number from 0"],
        ),
        (
            "unknown_port = ¶\"refuse\"",
            &["write one of \"pass\", \"drop\", \"reject\""],
        ),
        (
            "icmp_echo = ¶\"true\"",
            &["is a string; write true or false, without quotes"],
        ),
    ] {
        let other = if lines.starts_with("interfaces") {
            ""
        } else {
            interfaces
        };
        refused(&format!("[datapath]\n{other}{lines}\n"), phrases);
    }

    let names = |count: usize| {
        (0..count)
            .map(|i| format!("\"eth{i}\""))
            .collect::<Vec<_>>()
    };
    valid(&format!(
        "[datapath]\ninterfaces = [{}]",
        names(64).join(",")
    ));
    let text = format!(
        "[datapath]\ninterfaces = [{},\n¶\"x\"]",
        names(64).join(",")
    );
    refused(&text, &["has 65 entries of at most 64", "leave out those"]);
    let addresses: Vec<_> = (0..4096)
        .map(|i| format!("\"10.1.{}.{}\"", i / 256, i % 256))
        .collect();
    let text = format!(
        "{DATAPATH}addresses = [{},\n¶\"10.9.9.9\"]",
        addresses.join(",")
    );
    refused(&text, &["has 4097 entries of at most 4096"]);
}

#[test]
fn limits_and_timeouts() {
    for (lines, phrase) in [
        (
            "[limits]\nservices = ¶0",
            "services is 0; write a number from 1 to 65536",
        ),
        (
            "[limits]\nservices = ¶65_537",
            "services is 65537; write a number from 1 to 65536",
        ),
        (
            "[limits]\nbackends = ¶0",
            "backends is 0; write a number from 1 to 1048576",
        ),
        (
            "[limits]\nbackends = ¶1_048_577",
            "write a number from 1 to 1048576",
        ),
        (
            "[limits]\nconnections = ¶0",
            "connections is 0; write a number from 1 to 400000000",
        ),
        (
            "[limits]\nconnections = ¶400_000_001",
            "write a number from 1 to 400000000",
        ),
        (
            "[limits]\nconnections = ¶1e6",
            "is a float; write a number from 1",
        ),
        (
            "[limits]\nconnections = ¶99999999999999999999",
            "write a number from 1",
        ),
        (
            "[timeouts]\ntcp_opening = ¶30",
            "is 30 without a unit; write a number and a unit",
        ),
        (
            "[timeouts]\ntcp_established = ¶\"1 h\"",
            "is not a duration; write a number and a unit",
        ),
        (
            "[timeouts]\ntcp_closing = ¶\"0s\"",
            "write more than 0 and at most \"240h\" (10 days)",
        ),
        (
            "[timeouts]\nudp = ¶\"241h\"",
            "write more than 0 and at most \"240h\" (10 days)",
        ),
        (
            "[timeouts]\nother = ¶[]",
            "is an array; write a number and a unit",
        ),
        (
            "[timeouts]\nother = ¶12:00:00",
            "is a datetime; write a number and a unit",
        ),
        (
            "[log]\nlevel = ¶\"off\"",
            "write one of \"error\", \"warn\", \"info\", \"debug\", \"trace\"",
        ),
        (
            "[log]\nformat = ¶\"xml\"",
            "write one of \"text\", \"json\"",
        ),
    ] {
        refused(&format!("{DATAPATH}{lines}\n"), &[phrase]);
    }
    valid(&format!(
        "{DATAPATH}[limits]\nconnections = 400_000_000\nservices = 65536\n"
    ));
    valid(&format!(
        "{DATAPATH}[timeouts]\nudp = \"240h\"\nother = \"1ms\"\n"
    ));
}

#[test]
fn rules_of_the_source_pool() {
    let full_nat = |addresses: &str, forward: &str, backend: &str| {
        format!(
            "{DATAPATH}addresses = {addresses}\n[[service]]\nname = \"web\"\nvip = [\"203.0.113.11\", \
             \"2001:db8:1::11\"]\nprotocol = \"tcp\"\nport = 80\nforward = {forward}\n\
             [[service.backend]]\naddress = {backend}\n"
        )
    };
    let v6 = "\"2001:db8:5::2\"";
    refused(
        &full_nat("[\"192.0.2.9\"]", "¶\"full-nat\"", v6),
        &["to IPv6 backends needs an IPv6 source; add one to datapath.addresses"],
    );
    refused(
        &full_nat("[\"2001:db8::9\"]", "¶\"full-nat\"", "\"10.0.5.2\""),
        &["to IPv4 backends needs an IPv4 source"],
    );
    for addresses in [
        "[]",
        "[\"2001:db8::9\"]",
        "[\"2001:db8::9\", \"192.0.2.9\"]",
    ] {
        valid(&full_nat(addresses, "\"full-nat\"", v6));
    }
    valid(&full_nat("[\"192.0.2.9\"]", "\"nat\"", v6));
    refused(
        &full_nat("[\"192.0.2.9\"]", "\"nat\"", "¶\"192.0.2.9\""),
        &[
            "is one of datapath.addresses",
            "write the address of another machine",
        ],
    );
}

#[test]
fn what_must_fit_the_limits() {
    let limits = |lines: &str| {
        with_backends(&["address = \"10.0.5.2\"", "address = \"10.0.5.3\""])
            + &service(
                "b",
                "vip = [\"192.0.2.1\", \"2001:db8::1\"]\nprotocol = \"tcp\"\nport = 1",
            )
            + lines
    };
    refused(
        &limits("[limits]\nservices = ¶2\n"),
        &[
            "services is 2, but the file has 3 (one with VIPs of both families",
            "write services = 3",
        ],
    );
    refused(
        &limits("[limits]\nbackends = ¶1\n"),
        &[
            "backends is 1, but the file has 2 (one that serves VIPs of both families",
            "write backends = 2 or more",
        ],
    );
    valid(&limits("[limits]\nservices = 3\nbackends = 2\n"));

    // Without a limit in the file, at what is beyond the default.
    let mut text = with_port("port = 80");
    for i in 0..16_385 {
        let mark = if i == 16_384 { "¶" } else { "" };
        text += &format!(
            "[[{mark}service.backend]]\naddress = \"10.0.{}.{}\"\n",
            i / 256,
            i % 256
        );
    }
    let (text, _) = marked(&text);
    let messages = messages(&text);
    assert_eq!(messages.len(), 1);
    let line = text.lines().count() - 1;
    assert!(
        messages[0].starts_with(&format!("lb.toml:{line}:1: limits: backends is 16384")),
        "{}",
        messages[0]
    );
}
