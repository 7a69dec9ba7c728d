//! Which rule decides about a packet: its source, protocol and ports, the order of the file, the default.

use std::net::IpAddr;
use std::thread;

use xdplb::config;

use crate::harness::cells::{self, every_port, Cell, Dress, Mode};
use crate::harness::frame::{tcp, udp, DESTINATION_OPTIONS, DOT1AD, DOT1Q, HOP_BY_HOP, SYN};
use crate::harness::knock::{Kind, Knock};
use crate::harness::{ip, own_mac, Lab, Verdict, CLIENTS, ROUTER};
use crate::model::decide;

const DENIED: Verdict = Verdict::Drop("firewall");

/// With services on every port, and this firewall.
fn lab(firewall: &str) -> Lab {
    Lab::new(&with(firewall))
}

fn with(firewall: &str) -> String {
    format!("{}\n[firewall]\n{firewall}", every_port())
}

fn rule(action: &str, conditions: &str) -> String {
    format!("[[firewall.rule]]\naction = \"{action}\"\n{conditions}\n")
}

fn cell(mode: Mode, ipv6: bool) -> Cell {
    let mut cells = cells::main_ways();
    let found = cells.find(|cell| cell.mode == mode && cell.ipv6 == ipv6);
    found.expect("a cell of that mode and family")
}

/// One of the cell's own family.
fn of_family<'a>(cell: Cell, ipv4: &'a str, ipv6: &'a str) -> &'a str {
    if cell.ipv6 {
        ipv6
    } else {
        ipv4
    }
}

/// Whether each of the packets is let in is what the model says of the firewall in force.
#[track_caller]
fn check(lab: &Lab, firewall: &config::Firewall, knock: &Knock, dress: &Dress) {
    let decision = decide(firewall, &[], &knock.seen());
    let expected = if decision.denies() {
        DENIED
    } else {
        knock.let_in()
    };
    let verdict = knock.send_in(lab, dress);
    assert_eq!(
        verdict, expected,
        "{knock:?} in {dress:?}, {decision:?} of {firewall:?}"
    );
}

/// What the text of a file says.
fn parse(text: &str) -> config::Firewall {
    let text = format!("[datapath]\ninterfaces = [\"eth0\"]\n{text}");
    let loaded = config::parse(&text, std::path::Path::new("lb.toml"));
    let config = loaded.unwrap_or_else(|error| panic!("{error}")).config;
    config.firewall.expect("a firewall")
}

const SOURCES: [&str; 5] = [
    "",
    "source = \"198.51.100.0/24\"\n",
    "source = \"198.51.100.7\"\n",
    "source = \"2001:db8:c::/48\"\n",
    "source = \"2001:db8:c::7\"\n",
];
const SOURCE_PORTS: [&str; 3] = ["", "source_port = 4242\n", "source_port = \"4240-4250\"\n"];
const PORTS: [&str; 3] = ["", "port = 80\n", "port = \"80-90\"\n"];

/// Every combination of what a rule can have.
fn conditions() -> Vec<String> {
    let mut all = Vec::new();
    for source in SOURCES {
        for protocol in ["any", "tcp", "udp"] {
            for source_port in SOURCE_PORTS {
                for port in PORTS {
                    all.push(format!(
                        "{source}protocol = \"{protocol}\"\n{source_port}{port}"
                    ));
                }
            }
        }
        all.push(format!("{source}protocol = \"icmp\"\n"));
        all.push(format!("{source}protocol = 47\n"));
    }
    all
}

/// Packets that match what [`conditions`] may ask for in all fields, in all but one, and in fewer.
fn knocks(cell: Cell) -> Vec<Knock> {
    let mut all = Vec::new();
    for source in [
        of_family(cell, "198.51.100.7", "2001:db8:c::7"),
        of_family(cell, "198.51.100.8", "2001:db8:c::8"),
        of_family(cell, "198.51.101.7", "2001:db8:d::7"),
    ] {
        let source = ip(source);
        for kind in [Kind::Tcp, Kind::Udp] {
            for source_port in [4242, 4250, 4251] {
                for port in [80, 90, 91] {
                    all.push(Knock {
                        source_port,
                        port,
                        ..Knock::at(cell, kind, source)
                    });
                }
            }
        }
        for kind in [Kind::Ping, Kind::Other(47), Kind::Other(112)] {
            all.push(Knock::at(cell, kind, source));
        }
    }
    all
}

/// Every way, plain and in tags, one after the other.
fn ways() -> impl Iterator<Item = (Cell, Dress)> {
    let tags = [
        vec![],
        vec![(DOT1Q, 0x2064)],
        vec![(DOT1AD, 100), (DOT1Q, 200)],
    ];
    let all: Vec<(Cell, Dress)> = cells::main_ways()
        .flat_map(|cell| {
            let dresses = tags.clone().map(|tags| Dress {
                tags,
                ..Dress::default()
            });
            dresses.map(|dress| (cell, dress))
        })
        .collect();
    all.into_iter().cycle()
}

#[test]
fn every_combination_of_fields() {
    thread::scope(|scope| {
        for (action, default) in [("deny", "allow"), ("allow", "deny")] {
            scope.spawn(move || {
                let mut lab = Lab::with_limits(&every_port(), 65_536);
                let mut ways = ways();
                for conditions in conditions() {
                    let firewall =
                        format!("default = \"{default}\"\n{}", rule(action, &conditions));
                    lab.reload(&with(&firewall));
                    let firewall = parse(&format!("[firewall]\n{firewall}"));
                    // A packet of each kind by one way, a rule's by all ways: the next rule's begin with
                    // the way after.
                    for nth in 0..knocks(cell(Mode::Nat, false)).len() {
                        let (cell, dress) = ways.next().expect("a cycle has no end");
                        check(&lab, &firewall, &knocks(cell)[nth], &dress);
                    }
                    ways.next();
                }
            });
        }
    });
}

/// Sends from and to each of these ports, by the way of each family.
fn check_ports(lab: &Lab, firewall: &config::Firewall, ports: &[(u16, u16)]) {
    for ipv6 in [false, true] {
        let cell = cell(Mode::Ipip, ipv6);
        let source = cell.client_at(0).ip();
        for kind in [Kind::Tcp, Kind::Udp] {
            for &(source_port, port) in ports {
                let knock = Knock {
                    source_port,
                    port,
                    ..Knock::at(cell, kind, source)
                };
                check(lab, firewall, &knock, &Dress::default());
            }
        }
    }
}

#[test]
fn boundaries_of_port_ranges() {
    let mut lab = lab("");
    for (range, inside, outside) in [
        ("80", vec![80], vec![79, 81]),
        (
            "\"80-90\"",
            vec![80, 81, 85, 89, 90],
            vec![79, 91, 0, 65535],
        ),
        ("1", vec![1], vec![0, 2, 257]),
        ("\"1-2\"", vec![1, 2], vec![0, 3]),
        ("65535", vec![65535], vec![65534, 0, 255]),
        ("\"65534-65535\"", vec![65534, 65535], vec![65533, 0]),
        ("\"1-65535\"", vec![1, 80, 65535], vec![0]),
        ("\"255-256\"", vec![255, 256], vec![254, 257]),
        ("\"any\"", vec![0, 1, 80, 65535], vec![]),
    ] {
        for key in ["port", "source_port"] {
            for protocol in ["any", "tcp", "udp"] {
                lab.reload(&with(&rule(
                    "deny",
                    &format!("protocol = \"{protocol}\"\n{key} = {range}"),
                )));
                for (ports, meant) in [(&inside, true), (&outside, false)] {
                    for &port in ports {
                        for kind in [Kind::Tcp, Kind::Udp] {
                            for ipv6 in [false, true] {
                                let cell = cell(Mode::Nat, ipv6);
                                let mut knock = Knock::at(cell, kind, cell.client_at(0).ip());
                                if key == "port" {
                                    knock.port = port;
                                } else {
                                    knock.source_port = port;
                                }
                                let of_protocol = match protocol {
                                    "tcp" => kind == Kind::Tcp,
                                    "udp" => kind == Kind::Udp,
                                    _ => true,
                                };
                                let expected = if meant && of_protocol {
                                    DENIED
                                } else {
                                    knock.let_in()
                                };
                                let verdict = knock.send(&lab);
                                assert_eq!(verdict, expected, "{key} = {range}, {knock:?}");
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Ranges that overlap, touch, lie in one another, and are the same.
#[test]
fn ranges_that_meet() {
    let ranges = [
        "port = \"80-90\"\nprotocol = \"tcp\"",
        "port = \"85-95\"\nprotocol = \"any\"",
        "port = \"91-100\"\nprotocol = \"udp\"",
        "port = 95",
        "port = \"60-120\"\nsource_port = \"1000-2000\"",
        "port = \"85-95\"\nsource_port = \"1500-3000\"",
        "source_port = 1500",
    ];
    let ports: Vec<(u16, u16)> = [999, 1000, 1500, 2000, 2001, 3000, 3001]
        .into_iter()
        .flat_map(|from| {
            [
                59, 60, 79, 80, 84, 85, 90, 91, 94, 95, 96, 100, 101, 120, 121,
            ]
            .map(|to| (from, to))
        })
        .collect();
    let mut lab = lab("");
    // Each first in turn, with both actions in turn from there.
    for first in 0..ranges.len() {
        for default in ["allow", "deny"] {
            let mut text = format!("[firewall]\ndefault = \"{default}\"\n");
            for nth in 0..ranges.len() {
                let action = if nth % 2 == 0 { "deny" } else { "allow" };
                text += &rule(action, ranges[(first + nth) % ranges.len()]);
            }
            lab.reload(&format!("{}\n{text}", every_port()));
            check_ports(&lab, &parse(&text), &ports);
        }
    }
}

#[test]
fn boundaries_of_prefixes() {
    let mut lab = lab("");
    for (prefix, inside, outside) in [
        (
            "198.51.100.0/24",
            vec!["198.51.100.0", "198.51.100.1", "198.51.100.255"],
            vec!["198.51.99.255", "198.51.101.0", "199.51.100.1"],
        ),
        (
            "198.51.100.128/25",
            vec!["198.51.100.128", "198.51.100.255"],
            vec!["198.51.100.127", "198.51.101.128"],
        ),
        (
            "198.18.0.0/15",
            vec!["198.18.0.0", "198.19.255.255"],
            vec!["198.17.255.255", "198.20.0.0"],
        ),
        (
            "192.0.2.6/31",
            vec!["192.0.2.6", "192.0.2.7"],
            vec!["192.0.2.5", "192.0.2.8"],
        ),
        (
            "192.0.2.7",
            vec!["192.0.2.7"],
            vec!["192.0.2.6", "192.0.2.8"],
        ),
        (
            "128.0.0.0/1",
            vec!["128.0.0.1", "198.51.100.7"],
            vec!["100.127.255.255", "10.9.9.9"],
        ),
        (
            "0.0.0.0/0",
            vec!["10.9.9.9", "198.51.100.7", "223.255.255.255"],
            vec!["2001:db8::1", "::1:2", "::ffff"],
        ),
        (
            "::/0",
            vec!["2001:db8::1", "2001:db8:ffff::ffff", "::2"],
            vec!["10.9.9.9", "198.51.100.7"],
        ),
        (
            "2001:db8:c::/48",
            vec!["2001:db8:c::", "2001:db8:c:ffff:ffff:ffff:ffff:ffff"],
            vec!["2001:db8:b:ffff::1", "2001:db8:d::"],
        ),
        (
            "2001:db8:c:4000::/51",
            vec!["2001:db8:c:4000::", "2001:db8:c:5fff::1"],
            vec!["2001:db8:c:3fff::1", "2001:db8:c:6000::"],
        ),
        (
            "2001:db8::/33",
            vec!["2001:db8:7fff::1"],
            vec!["2001:db8:8000::", "2001:db9::"],
        ),
        (
            "2001:db8::8000:0:0:0/65",
            vec!["2001:db8::8000:0:0:0", "2001:db8::ffff:0:0:1"],
            vec!["2001:db8::7fff:0:0:0", "2001:db8:0:1:8000::"],
        ),
        (
            "2001:db8::6/127",
            vec!["2001:db8::6", "2001:db8::7"],
            vec!["2001:db8::5", "2001:db8::8"],
        ),
        (
            "2001:db8::6",
            vec!["2001:db8::6"],
            vec!["2001:db8::7", "2001:db8:1::6"],
        ),
        // The words of an IPv4 address, elsewhere.
        (
            "198.51.100.7/32",
            vec!["198.51.100.7"],
            vec!["::c633:6407", "2001:db8::c633:6407"],
        ),
    ] {
        lab.reload(&with(&rule("deny", &format!("source = \"{prefix}\""))));
        for (sources, expected) in [(inside, Some(DENIED)), (outside, None)] {
            for source in sources {
                let source: IpAddr = ip(source);
                for mode in [Mode::Nat, Mode::FullNat, Mode::Ipip] {
                    for kind in [Kind::Tcp, Kind::Udp, Kind::Ping, Kind::Other(47)] {
                        let knock = Knock::at(cell(mode, source.is_ipv6()), kind, source);
                        let expected = expected.unwrap_or(knock.let_in());
                        assert_eq!(knock.send(&lab), expected, "{prefix}, {knock:?}");
                    }
                }
            }
        }
    }
}

/// A prefix in another decides only if it stands before it.
#[test]
fn the_first_in_the_file_decides() {
    let rules = [
        ("allow", "source = \"198.51.100.7\"\nport = 80"),
        ("deny", "source = \"198.51.100.0/24\""),
        ("allow", "source = \"198.51.0.0/16\"\nprotocol = \"tcp\""),
        ("deny", "port = \"80-443\"\nprotocol = \"tcp\""),
    ];
    // The same among IPv6 addresses.
    let twin = |conditions: &str| {
        conditions
            .replace("198.51.100.7", "2001:db8:c:1::7")
            .replace("198.51.100.0/24", "2001:db8:c:1::/64")
            .replace("198.51.0.0/16", "2001:db8:c::/48")
    };
    let mut lab = lab("");
    for order in permutations(rules.len()) {
        for default in ["allow", "deny"] {
            let mut text = format!("[firewall]\ndefault = \"{default}\"\n");
            for &nth in &order {
                let (action, conditions) = rules[nth];
                text += &rule(action, conditions);
                if conditions.starts_with("source") {
                    text += &rule(action, &twin(conditions));
                }
            }
            lab.reload(&format!("{}\n{text}", every_port()));
            let firewall = parse(&text);
            for (ipv4, ipv6) in [
                ("198.51.100.7", "2001:db8:c:1::7"),
                ("198.51.100.8", "2001:db8:c:1::8"),
                ("198.51.1.7", "2001:db8:c:2::7"),
                ("198.52.100.7", "2001:db8:d:1::7"),
            ] {
                for source in [ip(ipv4), ip(ipv6)] {
                    for kind in [Kind::Tcp, Kind::Udp, Kind::Ping] {
                        for port in [80, 443, 444] {
                            let cell = cell(Mode::FullNat, source.is_ipv6());
                            let knock = Knock {
                                port,
                                ..Knock::at(cell, kind, source)
                            };
                            check(&lab, &firewall, &knock, &Dress::default());
                        }
                    }
                }
            }
        }
    }
}

fn permutations(count: usize) -> Vec<Vec<usize>> {
    if count == 0 {
        return vec![vec![]];
    }
    let mut all = Vec::new();
    for order in permutations(count - 1) {
        for place in 0..count {
            let mut order = order.clone();
            order.insert(place, count - 1);
            all.push(order);
        }
    }
    all
}

/// Said of by hand, what [`the_first_in_the_file_decides`] has of the model.
#[test]
fn shorter_and_longer_prefixes_in_both_orders() {
    let (short, long) = (
        ("deny", "source = \"198.51.0.0/16\""),
        ("allow", "source = \"198.51.100.0/24\""),
    );
    let knock = |source| Knock::at(cell(Mode::Nat, false), Kind::Tcp, ip(source));
    let mut lab = lab(&(rule(short.0, short.1) + &rule(long.0, long.1)));
    assert_eq!(knock("198.51.100.7").send(&lab), DENIED);
    assert_eq!(knock("198.51.7.7").send(&lab), DENIED);
    assert_eq!(knock("198.50.7.7").send(&lab), Verdict::Redirect);
    lab.reload(&with(&(rule(long.0, long.1) + &rule(short.0, short.1))));
    assert_eq!(knock("198.51.100.7").send(&lab), Verdict::Redirect);
    assert_eq!(knock("198.51.7.7").send(&lab), DENIED);
    assert_eq!(knock("198.50.7.7").send(&lab), Verdict::Redirect);
}

#[test]
fn the_default() {
    let mut lab = Lab::new(&every_port());
    for (text, denied) in [
        ("", false),
        ("[firewall]", false),
        ("[firewall]\ndefault = \"allow\"", false),
        ("[firewall]\ndefault = \"deny\"", true),
        // For packets that no rule is about.
        (
            "[firewall]\ndefault = \"deny\"\n[[firewall.rule]]\naction = \"allow\"\nsource = \"192.0.2.1\"",
            true,
        ),
        (
            "[[firewall.rule]]\naction = \"deny\"\nsource = \"192.0.2.1\"",
            false,
        ),
    ] {
        lab.reload(&format!("{}\n{text}", every_port()));
        for cell in cells::all() {
            for kind in [Kind::Tcp, Kind::Udp, Kind::Ping, Kind::Other(112)] {
                let knock = Knock::at(cell, kind, cell.client_at(0).ip());
                let expected = if denied { DENIED } else { knock.let_in() };
                assert_eq!(knock.send(&lab), expected, "{text}, {knock:?}");
            }
        }
    }
}

/// Ports in a rule make it one for TCP and UDP, whatever lies in their place in other packets.
#[test]
fn rules_with_ports_are_for_tcp_and_udp() {
    let mut lab = lab("");
    for (conditions, meant) in [
        ("source_port = 53", (53, 80)),
        ("port = 443", (4242, 443)),
        ("source_port = 53\nport = 443", (53, 443)),
    ] {
        lab.reload(&with(&rule("deny", conditions)));
        for cell in cells::main_ways() {
            for kind in [
                Kind::Tcp,
                Kind::Udp,
                Kind::Ping,
                Kind::Other(47),
                Kind::Other(132),
            ] {
                for source_port in [53, 54, 4242] {
                    for port in [80, 443] {
                        let knock = Knock {
                            source_port,
                            port,
                            ..Knock::at(cell, kind, cell.client_at(0).ip())
                        };
                        let matches = match conditions {
                            "source_port = 53" => source_port == meant.0,
                            "port = 443" => port == meant.1,
                            _ => (source_port, port) == meant,
                        };
                        let expected = if matches && matches!(kind, Kind::Tcp | Kind::Udp) {
                            DENIED
                        } else {
                            knock.let_in()
                        };
                        assert_eq!(knock.send(&lab), expected, "{conditions}, {knock:?}");
                    }
                }
            }
        }
    }
}

/// By its number, each protocol by itself; "icmp" is both.
#[test]
fn protocols_by_number() {
    let mut lab = lab("");
    let kinds = |ipv6: bool| {
        let other = [2, 47, 50, 89, 112, 132, 255, if ipv6 { 1 } else { 58 }].map(Kind::Other);
        [Kind::Tcp, Kind::Udp, Kind::Ping].into_iter().chain(other)
    };
    for protocol in [
        "1", "2", "6", "17", "47", "\"47\"", "50", "58", "89", "112", "255", "\"icmp\"",
    ] {
        lab.reload(&with(&rule("deny", &format!("protocol = {protocol}"))));
        for ipv6 in [false, true] {
            let cell = cell(Mode::Nat, ipv6);
            for kind in kinds(ipv6) {
                let knock = Knock::at(cell, kind, cell.client_at(0).ip());
                let number = knock.seen().protocol;
                let meant = match protocol {
                    "\"icmp\"" => number == 1 || number == 58,
                    text => text.trim_matches('"') == number.to_string(),
                };
                let expected = if meant { DENIED } else { knock.let_in() };
                assert_eq!(knock.send(&lab), expected, "{protocol}, {knock:?}");
            }
        }
    }
}

/// What is between the IP header and TCP does not hide it, nor what its flags are.
#[test]
fn behind_options_and_extensions() {
    let lab = lab(&rule(
        "deny",
        "protocol = \"tcp\"\nport = 80\nsource_port = 4242",
    ));
    let options = || vec![0, 1, 4, 0, 0, 0, 0];
    for cell in cells::main_ways() {
        for (port, expected) in [(4242, DENIED), (4243, Verdict::Redirect)] {
            for flags in [SYN, 0x10, 0x01, 0x04, 0x14, 0xff, 0] {
                let frame = tcp(cell.client_at(port), cell.vip(), flags)
                    .between(ROUTER, own_mac(CLIENTS))
                    .with(|f| {
                        f.options = vec![1; 40];
                        f.tcp_options = vec![1; 40];
                        if cell.ipv6 {
                            f.extensions =
                                vec![(HOP_BY_HOP, options()), (DESTINATION_OPTIONS, options())];
                        }
                    });
                let verdict = lab.send(CLIENTS, &frame.bytes()).verdict;
                assert_eq!(verdict, expected, "port {port}, flags {flags:#x}, {cell:?}");
            }
            let frame = udp(cell.client_at(port), cell.vip(), b"datagram");
            let sent = lab.send(CLIENTS, &frame.between(ROUTER, own_mac(CLIENTS)).bytes());
            assert_eq!(sent.verdict, Verdict::Redirect, "{cell:?}");
        }
    }
}

/// A rule of each length of prefix around one address, each for a port of its own: all of them are
/// reached, wherever in the file the deciding one stands.
#[test]
fn prefixes_in_prefixes_in_prefixes() {
    let mut lab = lab("");
    for (address, most) in [("198.51.100.7", 32_u16), ("2001:db8:c::7", 128)] {
        let address = ip(address);
        let cell = cell(Mode::Nat, address.is_ipv6());
        for longest_first in [true, false] {
            let mut lengths: Vec<u16> = (0..=most).collect();
            if longest_first {
                lengths.reverse();
            }
            let rules: String = lengths
                .iter()
                .map(|&length| {
                    let prefix = config::Prefix::covering(address, length as u8);
                    let conditions = format!("source = \"{prefix}\"\nport = {}", 1000 + length);
                    rule("deny", &conditions)
                })
                .collect();
            lab.reload(&with(&(rules + &rule("deny", "port = 999"))));
            for port in 998..=1001 + most {
                let knock = Knock {
                    port,
                    ..Knock::at(cell, Kind::Tcp, address)
                };
                let expected = if (999..=1000 + most).contains(&port) {
                    DENIED
                } else {
                    Verdict::Redirect
                };
                assert_eq!(
                    knock.send(&lab),
                    expected,
                    "longest first: {longest_first}, {knock:?}"
                );
            }
        }
    }
}

/// Rules of one port that differ in the source port only.
#[test]
fn many_source_ports_for_one_port() {
    let rules: String = (0..600)
        .map(|n| {
            let action = if n % 3 == 0 { "allow" } else { "deny" };
            rule(action, &format!("port = 80\nsource_port = {}", 2000 + n))
        })
        .collect();
    let firewall = format!("default = \"deny\"\n{rules}{}", rule("allow", "port = 81"));
    let lab = lab(&firewall);
    for ipv6 in [false, true] {
        let cell = cell(Mode::Ipip, ipv6);
        for source_port in 1998..2602_u16 {
            for port in [79, 80, 81] {
                let knock = Knock {
                    source_port,
                    port,
                    ..Knock::at(cell, Kind::Udp, cell.client_at(0).ip())
                };
                let of_rules = (2000..2600).contains(&source_port);
                let allowed = match port {
                    80 => of_rules && (source_port - 2000) % 3 == 0,
                    port => port == 81,
                };
                let expected = if allowed { Verdict::Redirect } else { DENIED };
                assert_eq!(knock.send(&lab), expected, "{knock:?}");
            }
        }
    }
}
