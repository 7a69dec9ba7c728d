//! The text itself: keys that there are, faults in the TOML, and where a fault is said to be.

use crate::{messages, parse, refused, with_backends, with_port};

#[test]
fn keys() {
    for (text, phrases) in [
        (
            "[datapath]\ninterfaces = [\"eth0\"]\n¶interface = \"eth0\"\n",
            &[
                "datapath: unknown key \"interface\"",
                "did you mean \"interfaces\"?",
            ][..],
        ),
        (
            "[datapath]\ninterfaces = [\"eth0\"]\n¶promiscuous = true\n",
            &[
                "unknown key \"promiscuous\"",
                "remove it; the keys here are interfaces, xdp_mode",
            ],
        ),
        (
            "[datapath]\ninterfaces = [\"eth0\"]\n¶on_exit = \"keep\"\n",
            &["unknown key \"on_exit\"", "remove it"],
        ),
        (
            "[datapath]\ninterfaces = [\"eth0\"]\n[[¶services]]\n",
            &["unknown key \"services\"", "did you mean \"service\"?"],
        ),
        (
            "[datapath]\ninterfaces = [\"eth0\"]\n[¶metrics]\nlisten = \"127.0.0.1:9464\"\n",
            &[
                "unknown key \"metrics\"",
                "the keys here are datapath, limits",
            ],
        ),
        (
            "[datapath]\ninterfaces = [\"eth0\"]\n[limits]\n¶source = 5\n",
            &[
                "limits: unknown key \"source\"",
                "did you mean \"sources\"?",
            ],
        ),
        (
            "[datapath]\ninterfaces = [\"eth0\"]\n[timeouts]\n¶tcp_open = \"5s\"\n",
            &[
                "timeouts: unknown key \"tcp_open\"",
                "did you mean \"tcp_opening\"?",
            ],
        ),
        (
            "[datapath]\ninterfaces = [\"eth0\"]\n[log]\n¶lvl = \"info\"\n",
            &["log: unknown key \"lvl\""],
        ),
        (
            "¶",
            &[
                "datapath: interfaces is missing",
                "add interfaces = [\"eth0\"]",
            ],
        ),
        (
            "\n¶[datapath]\nhash_seed = 1",
            &["datapath: interfaces is missing"],
        ),
        (
            "datapath = ¶5",
            &["datapath is an integer; write a table: [datapath]"],
        ),
    ] {
        refused(text, phrases);
    }
    refused(
        &with_port("port = 80\n¶affinity = \"0s\""),
        &["service \"web\": unknown key \"affinity\""],
    );
    refused(
        &with_port("port = 80\n[service.¶health]\ntype = \"tcp\""),
        &["service \"web\": unknown key \"health\""],
    );
    refused(
        &with_backends(&["address = \"10.0.5.2\"\n¶adress = \"10.0.5.3\""]),
        &[
            "service \"web\": backend 1: unknown key \"adress\"",
            "did you mean \"address\"?",
        ],
    );
}

#[test]
fn all_faults_at_once_in_file_order() {
    let text = "\
[datapath]
interfaces = [\"eth0\", \"eth0\"]
xdp_mod = \"auto\"
[timeouts]
udp = 5
[[service]]
name = \"web\"
vip = [\"nowhere\", \"127.0.0.1\"]
protocol = \"tcp\"
port = [0, 80, 80]
[[service.backend]]
address = \"10.0.5.2\"
weight = 2000
interface = \"eth7\"
";
    let messages = messages(text);
    let places: Vec<_> = messages
        .iter()
        .map(|message| message.splitn(4, ':').take(3).collect::<Vec<_>>().join(":"))
        .collect();
    let expected = [
        "2:23", "3:1", "5:7", "8:8", "8:19", "10:9", "10:16", "13:10", "14:13",
    ];
    assert_eq!(
        places,
        expected.map(|place| format!("lb.toml:{place}")),
        "{messages:#?}"
    );
    // An error prints as one line each.
    let printed = parse(text).expect_err("invalid").to_string();
    assert_eq!(printed.lines().collect::<Vec<_>>(), messages);
}

#[test]
fn faults_in_the_toml() {
    for (text, phrase) in [
        (
            "[datapath]\ninterfaces = ¶eth0\n",
            "string values must be quoted",
        ),
        ("[datapath¶\n", "unclosed table, expected `]`"),
        (
            "[datapath]\n# größe\nxdp_mode = 'auto¶\n",
            "invalid literal string",
        ),
    ] {
        refused(text, &["not valid TOML: ", phrase, "; correct this line"]);
    }
    for (text, key) in [
        ("[datapath]\nhash_seed = 1\n¶hash_seed = 2\n", "hash_seed"),
        ("[datapath]\n[limits]\n[¶datapath]\n", "datapath"),
        ("[[service]]\nname = 'a'\n¶\"name\" = 'b'\n", "name"),
        ("[[service]]\nbackend = [{ port = 1, ¶port = 2 }]\n", "port"),
        ("log.level = 'info'\nlog.¶level = 'info'\n", "level"),
    ] {
        let message = format!("not valid TOML: duplicate key \"{key}\"; keep one of the two");
        refused(text, &[&message]);
    }
}

#[test]
fn columns_count_characters() {
    refused(
        &with_port("port = 80 # größe\nbackend = [{ name = \"größe\", address = \"10.0.5.2\", weight = ¶-1 }]"),
        &["backend \"größe\": weight is -1"],
    );
}
