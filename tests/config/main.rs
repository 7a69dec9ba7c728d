//! The contents of `lb.toml`: defaults, every fault with its place and remedy, every warning, and that no
//! text at all makes the reader panic. The tables that protect services have a file of their own.

mod protection;

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use proptest::prelude::*;
use xdplb::config::{
    self, AdminState, Config, Error, Forward, HashBy, Limits, Loaded, LogFormat, OnDown, PortRange,
    Prefix, Protocol, Refusal, Timeouts, Tunnel, XdpMode,
};

const FILE: &str = "lb.toml";

/// Before a service that is under test.
const DATAPATH: &str = "[datapath]\ninterfaces = [\"eth0\", \"eth1\"]\n";

/// Every key there is, with another value than its default where it has one.
const EVERYTHING: &str = r#"
[datapath]
interfaces = ["eth0", "eth1"]
xdp_mode = "native"
pin_dir = "/sys/fs/bpf/other"
run_dir = "/run/other"
addresses = ["198.51.100.10", "2001:db8::10"]
hash_seed = 7
unknown_port = "drop"
icmp_echo = false

[limits]
services = 10
backends = 20
connections = 3_000

firewall_rules = 30
sources = 40

[timeouts]
tcp_opening = "500ms"
tcp_established = "2h"
tcp_half_closed = "5m"
tcp_closing = "10s"
udp = "5m"
other = "240h"

[[service]]
name = "web"
vip = ["203.0.113.11", "2001:db8:1::11"]
protocol = ["tcp", "udp"]
port = [443, "8000-8010", 80]
forward = "full-nat"
scheduler = "maglev"
hash = "source-ip"
allow = ["198.51.100.0/24", "2001:db8::/32"]

[[service.backend]]
name = "node5"
address = "10.0.5.2"
port = 8080
weight = 10
state = "drain"
interface = "eth1"
mac = "52:54:00:23:A4:5c"

[[service.backend]]
address = "2001:db8:5::2"
port = 8080
weight = 0
state = "down"

[[service.backend]]
address = "2001:db8:5::2"

[[service]]
name = "any"
vip = "203.0.113.11"
protocol = "udp"
port = "any"
hash = "source-ip-port"
backend = [{ address = "10.0.5.2" }]

[tunnel]
source = ["172.16.0.0/16", "2001:db8::10"]
gue_port = 6081

[[service]]
name = "direct"
vip = "203.0.113.12"
protocol = "tcp"
port = 80
forward = "gue"
no_backend = "reject"
on_down = "rehash"
backend = [{ address = "10.0.5.2" }, { address = "2001:db8:5::2" }]

[firewall]
default = "deny"
blocklists = ["/etc/xdplb/blocklist.txt"]

[[firewall.rule]]
name = "lab"
action = "allow"
source = "198.18.0.0/15"
protocol = "tcp"
source_port = "5000-6000"
port = "22"

[[firewall.rule]]
action = "deny"
protocol = 47

[[dos]]
name = "syn"
protocol = "tcp"
tcp_flags = "syn"
limit = 1000
burst = 2000
action = "block"
block_for = "10m"

[log]
level = "trace"
format = "json"
"#;

fn parse(text: &str) -> Result<Loaded, Error> {
    config::parse(text, Path::new(FILE))
}

fn valid(text: &str) -> Config {
    match parse(text) {
        Ok(loaded) => loaded.config,
        Err(error) => panic!("refused:\n{error}\n{text}"),
    }
}

fn messages(text: &str) -> Vec<String> {
    match parse(text) {
        Ok(_) => panic!("accepted:\n{text}"),
        Err(Error::Invalid(faults)) => faults.iter().map(ToString::to_string).collect(),
        Err(other) => panic!("{other}"),
    }
}

/// Takes the marks `¶` out of a text and gives the places where they stood, as messages begin.
fn marked(text: &str) -> (String, Vec<String>) {
    let mut places = Vec::new();
    let (mut line, mut column) = (1, 1);
    for c in text.chars() {
        match c {
            '¶' => places.push(format!("{FILE}:{line}:{column}: ")),
            '\n' => (line, column) = (line + 1, 1),
            _ => column += 1,
        }
    }
    (text.replace('¶', ""), places)
}

/// The one fault of `text` must be where the mark is and say each of `phrases`.
#[track_caller]
fn refused(text: &str, phrases: &[&str]) {
    let (text, places) = marked(text);
    let messages = messages(&text);
    assert_eq!(messages.len(), places.len(), "{text}\n{messages:#?}");
    for (message, place) in messages.iter().zip(places) {
        assert!(
            message.starts_with(&place),
            "{message}\nis not at {place}\n{text}"
        );
        assert!(!message.contains('\n'), "{message}");
    }
    for phrase in phrases {
        assert!(
            messages[0].contains(phrase),
            "{}\ndoes not say {phrase}",
            messages[0]
        );
    }
}

/// A service of which `lines` are the rest.
fn service(name: &str, lines: &str) -> String {
    format!("[[service]]\nname = \"{name}\"\n{lines}\n")
}

/// A service with everything but `port` and backends.
fn with_port(port: &str) -> String {
    let rest = format!("vip = \"203.0.113.11\"\nprotocol = \"tcp\"\n{port}");
    format!("{DATAPATH}{}", service("web", &rest))
}

/// A service for IPv4 with the backends, each given by its lines.
fn with_backends(backends: &[&str]) -> String {
    let mut text = with_port("port = 80");
    for backend in backends {
        text.push_str("[[service.backend]]\n");
        text.push_str(backend);
        text.push('\n');
    }
    text
}

#[test]
fn defaults() {
    let config = valid(&with_backends(&["address = \"10.0.5.2\""]));
    assert_eq!(config.datapath.interfaces, ["eth0", "eth1"]);
    assert_eq!(config.datapath.xdp_mode, XdpMode::Auto);
    assert_eq!(config.datapath.pin_dir, PathBuf::from("/sys/fs/bpf/xdplb"));
    assert_eq!(config.datapath.run_dir, PathBuf::from("/run/xdplb"));
    assert_eq!(config.datapath.addresses, [] as [IpAddr; 0]);
    assert_eq!(config.datapath.hash_seed, 0);
    assert_eq!(config.datapath.unknown_port, Refusal::Pass);
    assert!(config.datapath.icmp_echo);
    assert_eq!(config.tunnel, Tunnel::default());
    assert_eq!(config.tunnel.gue_port, 6080);
    assert!(config.tunnel.source.is_empty());
    let limits = Limits {
        services: 4096,
        backends: 16384,
        connections: 1_000_000,
        firewall_rules: 65_536,
        sources: 262_144,
    };
    assert_eq!(config.limits, limits);
    let timeouts = Timeouts {
        tcp_opening: Duration::from_secs(30),
        tcp_established: Duration::from_secs(3600),
        tcp_half_closed: Duration::from_secs(600),
        tcp_closing: Duration::from_secs(30),
        udp: Duration::from_secs(60),
        other: Duration::from_secs(60),
    };
    assert_eq!(config.timeouts, timeouts);
    assert_eq!(config.log.level, log::LevelFilter::Info);
    assert_eq!(config.log.format, LogFormat::Text);
    let service = &config.services[0];
    assert_eq!(service.forward, Forward::Nat);
    assert_eq!(service.hash, HashBy::FiveTuple);
    assert_eq!(service.no_backend, Refusal::Drop);
    assert_eq!(
        (service.on_down.tcp, service.on_down.udp),
        (OnDown::Keep, OnDown::Rehash)
    );
    assert_eq!(service.allow, []);
    let backend = &service.backends[0];
    assert_eq!(backend.name, "10.0.5.2");
    assert_eq!(backend.port, None);
    assert_eq!(backend.weight, 1);
    assert_eq!(backend.state, AdminState::Up);
    assert_eq!(backend.interface, None);
    assert_eq!(backend.mac, None);
}

#[test]
fn every_key() {
    let config = valid(EVERYTHING);
    assert_eq!(config.datapath.xdp_mode, XdpMode::Native);
    assert_eq!(config.datapath.pin_dir, PathBuf::from("/sys/fs/bpf/other"));
    assert_eq!(config.datapath.run_dir, PathBuf::from("/run/other"));
    assert_eq!(config.datapath.addresses.len(), 2);
    assert_eq!(config.datapath.hash_seed, 7);
    assert_eq!(config.datapath.unknown_port, Refusal::Drop);
    assert!(!config.datapath.icmp_echo);
    let sources: Vec<_> = config.tunnel.source.iter().map(Prefix::to_string).collect();
    assert_eq!(sources, ["172.16.0.0/16", "2001:db8::10"]);
    assert_eq!(config.tunnel.gue_port, 6081);
    let limits = Limits {
        services: 10,
        backends: 20,
        connections: 3000,
        firewall_rules: 30,
        sources: 40,
    };
    assert_eq!(config.limits, limits);
    assert_eq!(config.timeouts.tcp_opening, Duration::from_millis(500));
    assert_eq!(config.timeouts.tcp_established, Duration::from_secs(7200));
    assert_eq!(config.timeouts.tcp_half_closed, Duration::from_secs(300));
    assert_eq!(config.timeouts.tcp_closing, Duration::from_secs(10));
    assert_eq!(config.timeouts.udp, Duration::from_secs(300));
    assert_eq!(config.timeouts.other, Duration::from_secs(10 * 86_400));
    assert_eq!(config.log.level, log::LevelFilter::Trace);
    assert_eq!(config.log.format, LogFormat::Json);

    let [web, any, direct] = config.services.as_slice() else {
        panic!("three services")
    };
    assert_eq!(direct.forward, Forward::Gue);
    assert_eq!(direct.no_backend, Refusal::Reject);
    assert_eq!(
        (direct.on_down.tcp, direct.on_down.udp),
        (OnDown::Rehash, OnDown::Rehash)
    );
    assert_eq!(direct.backends.len(), 2);
    assert_eq!(web.vips.len(), 2);
    assert_eq!(web.protocols, [Protocol::Tcp, Protocol::Udp]);
    let ranges = [(80, 80), (443, 443), (8000, 8010)];
    assert_eq!(
        web.ports,
        ranges.map(|(first, last)| PortRange { first, last })
    );
    assert_eq!(web.forward, Forward::FullNat);
    assert_eq!(web.hash, HashBy::SourceIp);
    assert_eq!(web.allow.len(), 2);
    let firewall = config.firewall.as_ref().expect("a firewall");
    assert_eq!((firewall.rules.len(), config.dos.len()), (2, 1));
    assert_eq!(any.ports, [PortRange::ANY]);
    assert_eq!(any.hash, HashBy::SourceIpPort);

    let names: Vec<_> = web
        .backends
        .iter()
        .map(|backend| backend.name.as_str())
        .collect();
    assert_eq!(names, ["node5", "[2001:db8:5::2]:8080", "2001:db8:5::2"]);
    let node5 = &web.backends[0];
    assert_eq!(node5.port, Some(8080));
    assert_eq!(node5.weight, 10);
    assert_eq!(node5.state, AdminState::Drain);
    assert_eq!(node5.interface.as_deref(), Some("eth1"));
    assert_eq!(
        node5.mac.map(|mac| mac.to_string()).as_deref(),
        Some("52:54:00:23:a4:5c")
    );
    assert_eq!(web.backends[1].weight, 0);
    assert_eq!(web.backends[1].state, AdminState::Down);
}

#[test]
fn no_service_is_valid() {
    let loaded = parse(DATAPATH).expect("valid");
    assert!(loaded.config.services.is_empty());
    assert!(loaded.warnings.is_empty());
}

#[test]
fn the_remaining_values() {
    for (key, value) in [
        ("xdp_mode", "auto"),
        ("xdp_mode", "generic"),
        ("unknown_port", "pass"),
        ("unknown_port", "reject"),
    ] {
        valid(&format!("{DATAPATH}{key} = \"{value}\"\n"));
    }
    for (key, value) in [
        ("forward", "l2"),
        ("forward", "ipip"),
        ("no_backend", "drop"),
        ("no_backend", "pass"),
        ("on_down", "keep"),
        ("on_down", "rehash"),
    ] {
        valid(&with_port(&format!("port = 80\n{key} = \"{value}\"")));
    }
    for level in ["error", "warn", "info", "debug", "trace"] {
        valid(&format!(
            "{DATAPATH}[log]\nlevel = \"{level}\"\nformat = \"text\"\n"
        ));
    }
    for port in [
        "1",
        "65535",
        "0x50",
        "\"1-65535\"",
        "\"80-80\"",
        "[\"80-90\", 91]",
    ] {
        valid(&with_port(&format!("port = {port}")));
    }
}

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

#[test]
fn warnings() {
    let dual = |backends: &str| {
        let rest = "vip = [\"203.0.113.11\", ¶\"2001:db8:1::11\"]\nprotocol = \"tcp\"\nport = 80";
        format!("{DATAPATH}{}{backends}", service("web", rest))
    };
    let one = "[[service.backend]]\naddress = \"10.0.5.2\"\n";
    let idle = "no backend that is up with a weight above 0";
    let header = |text: String| text.replacen("[[service]]", "¶[[service]]", 1);
    for (text, phrase) in [
        (dual(one), "no IPv6 backend is up with a weight above 0"),
        (
            dual(&format!(
                "{one}[[service.backend]]\naddress = \"2001:db8:5::2\"\nweight = 0\n"
            )),
            "no IPv6 backend is up with a weight above 0",
        ),
        (
            header(with_backends(&[])),
            "has no backend, so its packets are dropped; add a [[",
        ),
        (
            header(with_backends(&["address = \"10.0.5.2\"\nweight = 0"])),
            idle,
        ),
        (
            header(with_backends(&[
                "address = \"10.0.5.2\"\nstate = \"drain\"",
            ])),
            idle,
        ),
        (
            with_port("port = \"any\"\nbackend = [{ address = \"10.0.5.2\", port = ¶80 }]"),
            "leave this key out to keep the client's",
        ),
    ] {
        let (text, places) = marked(&text);
        let warnings = parse(&text).expect("valid").warnings;
        assert_eq!(warnings.len(), 1, "{warnings:#?}");
        let warning = warnings[0].to_string();
        assert!(
            warning.starts_with(&places[0]),
            "{warning} is not at {}",
            places[0]
        );
        assert!(warning.contains(phrase), "{warning}");
    }
    for (no_backend, fate) in [
        ("pass", "passed to the host's stack"),
        ("reject", "rejected"),
    ] {
        let text = with_port(&format!("port = 80\nno_backend = \"{no_backend}\""));
        let warning = parse(&text).expect("valid").warnings[0].to_string();
        assert!(
            warning.contains(&format!("so its packets are {fate};")),
            "{warning}"
        );
    }
    assert!(parse(&with_backends(&["address = \"10.0.5.2\""]))
        .expect("valid")
        .warnings
        .is_empty());
}

#[test]
fn files() {
    let directory = std::env::temp_dir().join(format!("xdplb-config-{}", std::process::id()));
    std::fs::create_dir_all(&directory).expect("a directory for the test");
    let file = directory.join("lb.toml");
    std::fs::write(&file, DATAPATH).expect("a file for the test");
    assert!(config::load(&file).is_ok());

    std::fs::write(&file, b"[datapath]\n# gr\xc3\xb6\xffe\n").expect("a file for the test");
    let message = config::load(&file).expect_err("not UTF-8").to_string();
    assert_eq!(
        message,
        format!(
            "{}:2:6: this byte is not UTF-8; save the file as UTF-8",
            file.display()
        )
    );

    let message = config::load(&directory)
        .expect_err("a directory")
        .to_string();
    assert!(
        message.contains("directory") && message.contains("name the file in it"),
        "{message}"
    );

    let absent = directory.join("absent.toml");
    let message = config::load(&absent).expect_err("absent").to_string();
    assert!(
        message.starts_with(&format!("{}: ", absent.display())),
        "{message}"
    );
    assert!(
        message.contains("No such file") && message.contains("--config"),
        "{message}"
    );
    std::fs::remove_dir_all(&directory).expect("ours to remove");
}

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

fn never_panics(text: &str) {
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
