//! The contents of `lb.toml`: defaults, every fault with its place and remedy, every warning, and that no
//! text at all makes the reader panic.
//!
//! Owns what they share: texts of a few words, and where in them the faults have to be. One file a subject.

mod any_text;
mod datapath;
mod direct;
mod files;
mod protection;
mod services;
mod syntax;
mod values;

use std::path::Path;

use xdplb::config::{self, Config, Error, Loaded};

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
