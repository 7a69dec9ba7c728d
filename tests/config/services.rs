//! `[[service]]` and `[[service.backend]]`.

use crate::{marked, messages, refused, service, valid, with_backends, with_port, DATAPATH};

#[test]
fn service_values() {
    let long = "x".repeat(64);
    let vip = "vip = \"203.0.113.11\"";
    let whole = |name: &str, vip: &str, protocol: &str, rest: &str| {
        format!("{DATAPATH}[[service]]\n{name}\n{vip}\n{protocol}\n{rest}\n")
    };
    let (name, tcp, port) = ("name = \"web\"", "protocol = \"tcp\"", "port = 80");
    valid(&whole(
        &format!("name = \"{}\"", &long[1..]),
        vip,
        tcp,
        port,
    ));
    valid(&whole("name = \"größe-日本\"", vip, tcp, port));
    for (text, phrase) in [
        ("¶\"\"", "0 bytes long; a name has 1 to 63"),
        (
            &*format!("¶\"{long}\""),
            "64 bytes long; a name has 1 to 63",
        ),
        ("¶\"a b\"", "leave out the ' '"),
        ("¶\"a\\tb\"", "leave out the '\\t'"),
        ("¶\"a\\u202eb\"", "leave out the '\\u{202e}'"),
        ("¶\"a\\u00a0b\"", "only printable characters and no spaces"),
        ("¶7", "name is an integer; write a string"),
    ] {
        refused(
            &whole(&format!("name = {text}"), vip, tcp, port),
            &["service 1: name is", phrase],
        );
    }
    for (text, phrase) in [
        (
            "¶\"0.0.0.0\"",
            "the unspecified address; write the unicast address that clients",
        ),
        ("¶\"::\"", "the unspecified address; write"),
        ("¶\"224.0.0.5\"", "a multicast address; write"),
        ("¶\"ff02::5\"", "a multicast address; write"),
        ("¶\"255.255.255.255\"", "the broadcast address; write"),
        ("¶\"127.1.2.3\"", "a loopback address; write"),
        ("¶\"::1\"", "a loopback address; write"),
        ("¶\"fe80::1\"", "a link-local address; write"),
        (
            "¶\"::ffff:192.0.2.1\"",
            "in IPv6 notation; write \"192.0.2.1\"",
        ),
        (
            "¶\"192.0.2.1/32\"",
            "is not an address; write an IPv4 or IPv6 address without a port",
        ),
        ("¶\"fe80::1%eth0\"", "is not an address; write"),
        ("¶\"\"", "is not an address; write"),
        ("¶[]", "vip is an empty list; write vip ="),
        ("¶{}", "vip is a table; write a string"),
        (
            "[\"192.0.2.1\", ¶\"192.0.2.1\"]",
            "has 192.0.2.1 twice; remove one",
        ),
    ] {
        refused(
            &whole(name, &format!("vip = {text}"), tcp, port),
            &["service \"web\": ", phrase],
        );
    }
    for (text, phrase) in [
        ("¶\"sctp\"", "write one of \"tcp\", \"udp\""),
        ("¶\"ipsec\"", "write one of \"tcp\", \"udp\""),
        ("¶[]", "protocol is an empty list; write protocol = \"tcp\""),
        (
            "[\"tcp\", ¶6]",
            "is an integer; write one of \"tcp\", \"udp\"",
        ),
        ("[\"udp\", ¶\"udp\"]", "has udp twice; remove one"),
    ] {
        let protocol = format!("protocol = {text}");
        refused(
            &whole(name, vip, &protocol, port),
            &["service \"web\": ", phrase],
        );
    }
    for (text, phrase) in [
        ("¶0", "port is 0; write a number from 1 to 65535"),
        ("¶65536", "port is 65536; write a number from 1 to 65535"),
        ("¶-1", "port is -1; write"),
        (
            "¶\"http\"",
            "write a port such as 80, a range such as \"8000-8010\", or \"any\"",
        ),
        ("¶\"80\"", "write 80 without quotes"),
        ("¶\"022\"", "is \"022\", with leading zeros; write 22"),
        ("[¶\"022\", 80]", "is \"022\", with leading zeros; write 22"),
        (
            "¶\"0080-090\"",
            "is \"0080-090\", with leading zeros; write \"80-90\"",
        ),
        ("¶\"+80\"", "is \"+80\"; write a port such as 80"),
        ("¶\"80-+90\"", "is \"80-+90\"; write a port such as 80"),
        ("¶\"000\"", "is \"000\"; write a port such as 80"),
        ("¶\"0-10\"", "(ports are 1 to 65535)"),
        ("¶\"1-65536\"", "(ports are 1 to 65535)"),
        ("¶\"+1-2\"", "write a port such as 80"),
        ("¶\"1-2-3\"", "write a port such as 80"),
        ("¶\"8010-8000\"", "is backwards; write \"8000-8010\""),
        ("¶80.5", "is a float; write a port such as 80"),
        ("¶[]", "port is an empty list; write port = 80"),
        (
            "[80, ¶80]",
            "port 80 overlaps 80 in this list; name each once",
        ),
        ("[80, ¶\"70-90\"]", "port 70-90 overlaps 80 in this list"),
        ("[\"70-90\", ¶80]", "port 80 overlaps 70-90 in this list"),
        ("[80, ¶\"any\"]", "write port = \"any\" alone"),
    ] {
        refused(
            &with_port(&format!("port = {text}")),
            &["service \"web\": ", phrase],
        );
    }
    for (text, phrase) in [
        (
            "forward = ¶\"relay\"",
            "write one of \"nat\", \"full-nat\", \"l2\", \"ipip\", \"gue\"",
        ),
        (
            "no_backend = ¶\"refuse\"",
            "write one of \"pass\", \"drop\", \"reject\"",
        ),
        (
            "on_down = ¶\"drop\"",
            "on_down is \"drop\"; write one of \"keep\", \"rehash\"",
        ),
        (
            "scheduler = ¶\"random\"",
            "scheduler is \"random\"; write one of \"maglev\"",
        ),
        (
            "hash = ¶\"quic-cid\"",
            "write one of \"5-tuple\", \"source-ip\", \"source-ip-port\"",
        ),
        (
            "backend = ¶5",
            "backend is an integer; begin each one with [[service.backend]]",
        ),
        (
            "backend = [¶5]",
            "backend is an integer; begin each one with [[service.backend]]",
        ),
        (
            "¶[service.backend]\naddress = \"10.0.5.2\"",
            "begin each one with [[service.backend]]",
        ),
    ] {
        refused(
            &with_port(&format!("port = 80\n{text}")),
            &["service \"web\": ", phrase],
        );
    }
    refused(
        &format!("{DATAPATH}¶[service]\nname = \"web\"\n"),
        &["service is a table; begin each one with [[service]]"],
    );
    // All that is required, at the header.
    let text = format!("{DATAPATH}[[service]]\n");
    let messages = messages(&text);
    let keys = [
        "name = \"web\"",
        "vip = \"203.0.113.11\"",
        "protocol = \"tcp\"",
        "port = 80",
    ];
    assert_eq!(messages.len(), keys.len(), "{messages:#?}");
    for (message, key) in messages.iter().zip(keys) {
        assert!(message.starts_with("lb.toml:3:"), "{message}");
        assert!(
            message.ends_with(&format!("is missing; add {key}")),
            "{message}"
        );
    }
}

#[test]
fn backend_values() {
    let address = "address = \"10.0.5.2\"\n";
    for (line, phrase) in [
        ("port = ¶0", "port is 0; write a number from 1 to 65535"),
        (
            "port = ¶\"any\"",
            "port is a string; write a number from 1 to 65535",
        ),
        (
            "weight = ¶1001",
            "weight is 1001; write a number from 0 to 1000",
        ),
        (
            "weight = ¶-1",
            "weight is -1; write a number from 0 to 1000",
        ),
        (
            "state = ¶\"off\"",
            "write one of \"up\", \"drain\", \"down\"",
        ),
        (
            "interface = ¶\"eth9\"",
            "is not one of datapath.interfaces; add it there",
        ),
        ("interface = ¶\"a b\"", "write a name that `ip link` shows"),
        ("mac = ¶\"52:54:00:23:a4\"", "write six pairs of hex digits"),
        (
            "mac = ¶\"52-54-00-23-a4-5c\"",
            "write six pairs of hex digits",
        ),
        (
            "mac = ¶\"52:54:00:23:a4:+c\"",
            "write six pairs of hex digits",
        ),
        (
            "mac = ¶\"ff:ff:ff:ff:ff:ff\"",
            "is a group address or all zeros; write the MAC address of one machine",
        ),
        (
            "mac = ¶\"00:00:00:00:00:00\"",
            "is a group address or all zeros; write the MAC address of one machine",
        ),
        ("name = ¶\"a b\"", "leave out the ' '"),
    ] {
        let text = with_backends(&[&format!("{address}{line}")]);
        refused(&text, &["service \"web\": backend 1: ", phrase]);
    }
    for (value, phrase) in [
        (
            "0.0.0.0",
            "the unspecified address; write the backend's own unicast address",
        ),
        ("224.0.0.5", "a multicast address; write"),
        ("255.255.255.255", "the broadcast address; write"),
        ("127.0.0.1", "a loopback address; write"),
        ("::1", "a loopback address; write"),
        ("169.254.1.1", "a link-local address; write"),
        ("fe80::1", "a link-local address; write"),
        ("::ffff:10.0.5.2", "write \"10.0.5.2\""),
        ("node5.example", "is not an address; write"),
        ("203.0.113.11", "is a VIP of service \"web\""),
        ("2001:db8:5::2", "is IPv6, but the service has no IPv6 VIP"),
    ] {
        let text = with_backends(&[&format!("name = \"a\"\naddress = ¶\"{value}\"")]);
        refused(&text, &["service \"web\": backend \"a\": ", phrase]);
    }
    let (text, _) = marked(&with_backends(&["weight = 1"]));
    let messages = messages(&text);
    assert_eq!(messages.len(), 1);
    assert!(messages[0].contains("backend 1: address is missing; add address = \"10.0.5.2\""));

    let same = "earlier backend of this service has the same address and port";
    for backends in [
        ["address = \"10.0.5.2\"", "address = ¶\"10.0.5.2\""],
        [
            "address = \"10.0.5.2\"\nport = 8080",
            "address = ¶\"10.0.5.2\"\nport = 8080",
        ],
        // The service's only port is the default.
        [
            "address = \"10.0.5.2\"\nport = 80",
            "name = \"b\"\naddress = ¶\"10.0.5.2\"",
        ],
    ] {
        refused(&with_backends(&backends), &[same, "remove one"]);
    }
    refused(
        &with_backends(&[
            "name = \"a\"\naddress = \"10.0.5.2\"",
            "name = ¶\"a\"\naddress = \"10.0.5.3\"",
        ]),
        &[
            "service \"web\": backend \"a\": ",
            "same name; give each its own",
        ],
    );
    valid(&with_backends(&[
        "address = \"10.0.5.2\"",
        "address = \"10.0.5.2\"\nport = 8080",
    ]));
}

#[test]
fn rules_between_services() {
    let web = "vip = \"203.0.113.11\"\nprotocol = \"tcp\"\n";
    let two = |a: &str, b: &str| format!("{DATAPATH}{}{}", service("a", a), service("b", b));
    let with = |rest: &str| format!("{web}{rest}");

    refused(
        &format!(
            "{}[[service]]\nname = ¶\"web\"\nvip = \"192.0.2.1\"\nprotocol = \"tcp\"\nport = 1",
            with_port("port = 80")
        ),
        &["this name is also at lb.toml:4:8; give each service its own"],
    );
    for (a, b) in [
        ("port = 80", "port = ¶80"),
        ("port = [79, 80]", "port = [81, ¶80]"),
        ("port = 80", "port = ¶\"1-100\""),
        ("port = \"1-100\"", "port = [¶50, 60]"),
        ("port = \"any\"", "port = ¶\"any\""),
    ] {
        refused(
            &two(&with(a), &with(b)),
            &[
                "service \"b\": tcp port",
                "of 203.0.113.11 is also taken by service \"a\" (lb.toml:7:",
                "give one of them another VIP, protocol or port",
            ],
        );
    }
    // The later one is named wherever its ports are.
    refused(
        &two(&with("port = \"60-100\""), &with("port = ¶\"1-80\"")),
        &["service \"b\": tcp port 1-80"],
    );
    // Once for each pair, however many VIPs and protocols they share.
    let both = "vip = [\"203.0.113.11\", \"2001:db8::1\"]\nprotocol = [\"tcp\", \"udp\"]\n";
    refused(
        &two(&format!("{both}port = 80"), &format!("{both}port = ¶80")),
        &["is also taken by"],
    );

    for (a, b) in [
        (with("port = \"any\""), with("port = 80")),
        (with("port = 80"), with("port = \"any\"")),
        (with("port = \"1-65535\""), with("port = \"any\"")),
        (with("port = 80"), with("port = 81")),
        (
            with("port = 80"),
            "vip = \"203.0.113.11\"\nprotocol = \"udp\"\nport = 80".to_owned(),
        ),
        (
            with("port = 80"),
            "vip = \"203.0.113.12\"\nprotocol = \"tcp\"\nport = 80".to_owned(),
        ),
    ] {
        valid(&two(&a, &b));
    }

    // A backend may not be a VIP, be it of another service.
    let looped = with("port = 80\n[[service.backend]]\naddress = ¶\"192.0.2.1\"");
    refused(
        &two(
            &looped,
            "vip = \"192.0.2.1\"\nprotocol = \"tcp\"\nport = 80",
        ),
        &[
            "is a VIP of service \"b\"",
            "write the backend's own address",
        ],
    );
}
