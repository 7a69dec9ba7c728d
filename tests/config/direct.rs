//! Direct return, and `[tunnel]`.

use crate::{parse, refused, service, valid, DATAPATH};

/// A service with VIPs of these families and that forward, with the backends, each given by its lines.
fn direct(vips: &str, forward: &str, backends: &[&str]) -> String {
    let rest = format!("vip = {vips}\nprotocol = \"tcp\"\nport = 80\nforward = \"{forward}\"");
    let mut text = format!("{DATAPATH}{}", service("web", &rest));
    for backend in backends {
        text.push_str(&format!("[[service.backend]]\n{backend}\n"));
    }
    text
}

#[test]
fn rules_of_direct_return() {
    let (v4, v6) = ("\"203.0.113.11\"", "\"2001:db8:1::11\"");
    let both = format!("[{v4}, {v6}]");
    let (node4, node6) = ("address = \"10.0.5.2\"", "address = \"2001:db8:5::2\"");
    for forward in ["l2", "ipip", "gue"] {
        refused(
            &direct(v4, forward, &[&format!("{node4}\nport = ¶80")]),
            &[
                "service \"web\": backend 1: port cannot be set with forward =",
                forward,
                "remove this key, or use nat or full-nat",
            ],
        );
        // By address alone, whatever the service's port.
        refused(
            &direct(
                v4,
                forward,
                &[node4, "name = \"b\"\naddress = ¶\"10.0.5.2\""],
            ),
            &["has the same address; remove one"],
        );
        valid(&direct(&both, forward, &[node4, node6]));
    }
    // Only a tunnel carries one family to the other.
    for (vip, address) in [(v4, "2001:db8:5::2"), (v6, "10.0.5.2")] {
        let text = direct(vip, "l2", &[&format!("address = ¶\"{address}\"")]);
        let family = if vip == v4 { "IPv6" } else { "IPv4" };
        refused(
            &text,
            &[
                &format!("the service has no {family} VIP and l2 does not carry"),
                "or use ipip or gue",
            ],
        );
        for forward in ["ipip", "gue"] {
            let text = direct(vip, forward, &[&format!("address = \"{address}\"")]);
            let warnings = parse(&text).expect("valid").warnings;
            assert!(warnings.is_empty(), "{warnings:#?}");
        }
    }
    // What follows from a mode that is none is not said.
    refused(
        &direct(v4, "¶gre", &[node6]).replace("\"¶gre", "¶\"gre"),
        &["forward is \"gre\"; write one of \"nat\""],
    );
    for (forward, warned) in [("l2", 1), ("ipip", 0), ("gue", 0)] {
        let warnings = parse(&direct(&both, forward, &[node4]))
            .expect("valid")
            .warnings;
        assert_eq!(warnings.len(), warned, "{forward}: {warnings:#?}");
    }
    // In each family's table.
    let text = direct(&both, "ipip", &[node4, node6]);
    refused(
        &format!("{text}[limits]\nbackends = ¶3\n"),
        &["backends is 3, but the file has 4", "write backends = 4"],
    );
    valid(&format!("{text}[limits]\nbackends = 4\n"));
}

#[test]
fn tunnel_values() {
    for (lines, phrase) in [
        ("gue_port = ¶0", "write a number from 1 to 65535"),
        ("gue_port = ¶65536", "write a number from 1 to 65535"),
        ("source = ¶5", "source is an integer; write a string"),
        (
            "source = ¶[]",
            "source is an empty list; write source = \"192.0.2.1\"",
        ),
        (
            "source = ¶\"eth0\"",
            "which is not a prefix; write an address, or an address and a length",
        ),
        ("source = ¶\"192.0.2.1/\"", "not a number from 0 to 32"),
        ("source = ¶\"192.0.2.0/+8\"", "not a number from 0 to 32"),
        ("source = ¶\"192.0.2.0/33\"", "not a number from 0 to 32"),
        ("source = ¶\"2001:db8::/129\"", "not a number from 0 to 128"),
        (
            "source = ¶\"172.16.0.1/16\"",
            "has bits set beyond its length; write 172.16.0.0/16 for the prefix, or 172.16.0.1",
        ),
        (
            "source = ¶\"2001:db8::1/64\"",
            "write 2001:db8::/64 for the prefix, or 2001:db8::1",
        ),
        (
            "source = ¶\"127.0.0.1\"",
            "a loopback address; write a unicast address",
        ),
        (
            "source = ¶\"126.0.0.0/7\"",
            "whose last address is 127.255.255.255, a loopback",
        ),
        ("source = ¶\"0.0.0.0/0\"", "the unspecified address; write"),
        ("source = ¶\"::/96\"", "the unspecified address; write"),
        ("source = ¶\"224.0.0.0/8\"", "a multicast address; write"),
        (
            "source = ¶\"255.255.255.0/24\"",
            "the broadcast address; write",
        ),
        ("source = ¶\"fe80::/96\"", "a link-local address; write"),
        ("source = ¶\"::ffff:10.0.0.0/104\"", "in IPv6 notation"),
        (
            "source = [\"192.0.2.1\", ¶\"192.0.2.2\"]",
            "both IPv4; keep one, and to vary the source write a prefix, such as \"172.16.0.0/16\"",
        ),
        (
            "source = [\"2001:db8::/96\", \"192.0.2.1\", ¶\"2001:db8::1\"]",
            "source has 2001:db8::/96 and 2001:db8::1, both IPv6",
        ),
        ("¶sources = \"192.0.2.1\"", "did you mean \"source\"?"),
    ] {
        refused(
            &format!("{DATAPATH}[tunnel]\n{lines}\n"),
            &["tunnel: ", phrase],
        );
    }
    for (source, expected, low_bits) in [
        ("\"192.0.2.1\"", "192.0.2.1", 0),
        ("\"192.0.2.1/32\"", "192.0.2.1", 0),
        ("\"172.16.0.0/12\"", "172.16.0.0/12", 0x000f_ffff),
        ("[\"198.51.100.8/31\"]", "198.51.100.8/31", 1),
        ("\"2001:db8::1\"", "2001:db8::1", 0),
        ("\"2001:db8::100/120\"", "2001:db8::100/120", 0xff),
        ("\"2001:db8::/96\"", "2001:db8::/96", u32::MAX),
        ("\"2001:db8::/32\"", "2001:db8::/32", u32::MAX),
    ] {
        let config = valid(&format!("{DATAPATH}[tunnel]\nsource = {source}\n"));
        let [prefix] = config.tunnel.source[..] else {
            panic!("one source")
        };
        assert_eq!(
            (&*prefix.to_string(), prefix.low_bits()),
            (expected, low_bits)
        );
    }
}
