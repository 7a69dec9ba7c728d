//! `service.allow`: who may reach a service, in addition to the firewall.

use std::net::{IpAddr, SocketAddr};

use crate::harness::cells::{self, every, Cell, Dress, Mode};
use crate::harness::frame::{ACK, SYN};
use crate::harness::ip::Icmp;
use crate::harness::knock::{Kind, Knock};
use crate::harness::{ip, Lab, Verdict, CLIENTS};

const NOT_ALLOWED: Verdict = Verdict::Drop("not_allowed");
const DENIED: Verdict = Verdict::Drop("firewall");

/// Every service with this list.
fn allowing(prefixes: &[&str]) -> String {
    let list: Vec<String> = prefixes.iter().map(|text| format!("\"{text}\"")).collect();
    let key = format!("allow = [{}]\nforward =", list.join(", "));
    every().replace("forward =", &key)
}

#[test]
fn of_each_family() {
    let mut lab = Lab::new(&every());
    // Whether each list has the first two IPv4 sources below, then the first two IPv6 ones.
    for (allow, has) in [
        (vec![], [true; 4]),
        (vec!["198.51.100.7"], [true, false, false, false]),
        (vec!["198.51.100.0/24"], [true, true, false, false]),
        (vec!["0.0.0.0/0"], [true, true, false, false]),
        (vec!["2001:db8:c::7"], [false, false, true, false]),
        (vec!["2001:db8:c::/48"], [false, false, true, true]),
        (vec!["::/0"], [false, false, true, true]),
        (
            vec!["198.51.100.8", "2001:db8:c::8"],
            [false, true, false, true],
        ),
        (vec!["192.0.2.0/24", "2001:db8:d::/48"], [false; 4]),
        (vec!["0.0.0.0/0", "::/0"], [true; 4]),
    ] {
        lab.reload(&allowing(&allow));
        for cell in cells::all() {
            let sources = [
                ("198.51.100.7", has[0]),
                ("198.51.100.8", has[1]),
                ("2001:db8:c::7", has[2]),
                ("2001:db8:c::8", has[3]),
            ];
            for (source, has) in sources {
                let source: IpAddr = ip(source);
                if source.is_ipv6() != cell.ipv6 {
                    continue;
                }
                for kind in [Kind::Tcp, Kind::Udp] {
                    let knock = Knock::at(cell, kind, source);
                    let expected = if has { Verdict::Redirect } else { NOT_ALLOWED };
                    assert_eq!(knock.send(&lab), expected, "{allow:?}, {knock:?}");
                }
                // Of the VIP, not of a service.
                for kind in [Kind::Ping, Kind::Other(47)] {
                    let knock = Knock::at(cell, kind, source);
                    assert_eq!(knock.send(&lab), knock.let_in(), "{allow:?}, {knock:?}");
                }
                let elsewhere = Knock {
                    port: 81,
                    ..Knock::at(cell, Kind::Tcp, source)
                };
                let passed = Verdict::Pass("unknown_port_passed");
                assert_eq!(elsewhere.send(&lab), passed, "{allow:?}, {elsewhere:?}");
            }
        }
    }
}

/// Services of one VIP: each for itself, by its ports and protocols.
#[test]
fn of_two_services_of_a_vip() {
    let services = |first: &str, second: &str| {
        let service = |name, ports, protocol, allow| {
            format!(
                "[[service]]\nname = \"{name}\"\nvip = [\"203.0.113.11\", \"2001:db8:1::11\"]\n\
                 protocol = {protocol}\nport = {ports}\nforward = \"nat\"\nallow = [{allow}]\n\
                 [[service.backend]]\naddress = \"10.0.0.2\"\nport = 8080\n\
                 [[service.backend]]\naddress = \"fd00::2\"\nport = 8080\n"
            )
        };
        service("one", "[80, \"8000-8010\"]", "[\"tcp\"]", first)
            + &service("two", "[443, \"8011-8020\"]", "[\"tcp\"]", second)
            + &service("three", "[80, 443]", "[\"udp\"]", "")
    };
    let mut lab = Lab::new("");
    let seven = "\"198.51.100.7\", \"2001:db8:c::7\"";
    let eight = "\"198.51.100.8\", \"2001:db8:c::8\"";
    for (first, second) in [
        ("", ""),
        (seven, ""),
        ("", seven),
        (seven, eight),
        (eight, seven),
        (seven, seven),
    ] {
        lab.reload(&services(first, second));
        for cell in cells::all().filter(|cell| cell.mode == Mode::Nat) {
            let sources = if cell.ipv6 {
                ["2001:db8:c::7", "2001:db8:c::8"]
            } else {
                ["198.51.100.7", "198.51.100.8"]
            };
            for (number, source) in (7000..).zip(sources) {
                for (ports, allow) in [([80, 8000, 8010], first), ([443, 8011, 8020], second)] {
                    for (nth, port) in (0..).zip(ports) {
                        let knock = Knock {
                            port,
                            // One port for each: nat would move the others elsewhere.
                            source_port: number + nth * 10 + port / 80,
                            ..Knock::at(cell, Kind::Tcp, ip(source))
                        };
                        let may = allow.is_empty() || allow.contains(&format!("\"{source}\""));
                        let expected = if may { Verdict::Redirect } else { NOT_ALLOWED };
                        assert_eq!(knock.send(&lab), expected, "{first} {second}, {knock:?}");
                        let udp = Knock {
                            kind: Kind::Udp,
                            ..knock
                        };
                        let expected = if [80, 443].contains(&port) {
                            Verdict::Redirect
                        } else {
                            Verdict::Pass("unknown_port_passed")
                        };
                        assert_eq!(udp.send(&lab), expected, "{first} {second}, {udp:?}");
                    }
                }
            }
        }
    }
}

/// Both have to let the packet in, and the firewall is asked first.
#[test]
fn beside_the_firewall() {
    let mut lab = Lab::new(&every());
    let allowed = allowing(&["198.51.100.0/24", "2001:db8:c::/48"]);
    lab.set_blocklist(
        "list",
        &[
            "198.51.100.9",
            "2001:db8:c::9",
            "192.0.2.9",
            "2001:db8:d::9",
        ],
    );
    lab.reload(&format!(
        "{allowed}\n[firewall]\ndefault = \"deny\"\nblocklists = [\"list\"]\n\
         [[firewall.rule]]\naction = \"deny\"\nsource_port = 9\n\
         [[firewall.rule]]\naction = \"allow\"\nprotocol = \"tcp\"\n"
    ));
    for cell in cells::all() {
        for (ipv4, ipv6, in_allow, listed) in [
            ("198.51.100.7", "2001:db8:c::7", true, false),
            ("192.0.2.7", "2001:db8:d::7", false, false),
            ("198.51.100.9", "2001:db8:c::9", true, true),
            ("192.0.2.9", "2001:db8:d::9", false, true),
        ] {
            let source = ip(if cell.ipv6 { ipv6 } else { ipv4 });
            for (kind, source_port, let_in) in [
                (Kind::Tcp, 1000, true),
                (Kind::Tcp, 9, false),
                (Kind::Udp, 1000, false),
            ] {
                let knock = Knock {
                    source_port,
                    ..Knock::at(cell, kind, source)
                };
                let expected = match (listed, let_in, in_allow) {
                    (true, ..) => Verdict::Drop("blocklisted"),
                    (false, false, _) => DENIED,
                    (false, true, false) => NOT_ALLOWED,
                    (false, true, true) => Verdict::Redirect,
                };
                assert_eq!(knock.send(&lab), expected, "{knock:?}");
            }
        }
    }
}

/// A list that changes holds for those who are in already.
#[test]
fn connections_are_asked_again() {
    let mut lab = Lab::new(&every());
    let paths: Vec<_> = cells::all()
        .flat_map(|cell| cells::PROTOCOLS.map(|protocol| (cell, protocol)))
        .map(|(cell, protocol)| cell.establish(&lab, protocol, 1000))
        .collect();
    for (allow, may) in [
        (vec!["198.51.100.7", "2001:db8:c::7"], true),
        (vec!["198.51.100.8", "2001:db8:c::8"], false),
        (vec![], true),
        (vec!["198.51.100.8", "2001:db8:c::8"], false),
        (vec!["198.51.100.0/24", "2001:db8:c::/48"], true),
    ] {
        for path in &paths {
            // Into the CPU's own copies, where they have been let in before.
            for _ in 0..3 {
                lab.send(CLIENTS, &path.request(ACK).bytes());
            }
        }
        lab.reload(&allowing(&allow));
        for path in &paths {
            for _ in 0..3 {
                if may {
                    path.to_backend(&lab, "allowed", |ends| path.between(ends, ACK).packet());
                } else {
                    let verdict = lab.send(CLIENTS, &path.request(ACK).bytes()).verdict;
                    assert_eq!(verdict, NOT_ALLOWED, "{allow:?}, {path:?}");
                }
                if !path.cell.mode.is_direct() {
                    path.to_client(&lab, "a reply", |ends| {
                        path.back_between(ends, ACK).packet()
                    });
                }
            }
        }
    }
}

/// A connection that is over says nothing of whom its port has been given to since.
#[test]
fn a_stale_connection_on_a_port_of_another_service() {
    let services = |first: &str, second: &str, state: &str| {
        let service = |name, port, allow, address, state| {
            format!(
                "[[service]]\nname = \"{name}\"\nvip = [\"203.0.113.11\", \"2001:db8:1::11\"]\n\
                 protocol = [\"tcp\", \"udp\"]\nport = [{port}]\nforward = \"nat\"\nallow = [{allow}]\n\
                 [[service.backend]]\naddress = \"10.0.0.{address}\"\nport = 8080\nstate = \"{state}\"\n\
                 [[service.backend]]\naddress = \"fd00::{address}\"\nport = 8080\nstate = \"{state}\"\n"
            )
        };
        let others = "\"198.51.100.8\", \"2001:db8:c::8\"";
        service("open", first, "", 2, state) + &service("closed", second, others, 3, "up")
    };
    let mut lab = Lab::new(&services("80, 82", "81", "up"));
    let paths: Vec<_> = cells::all()
        .filter(|cell| cell.mode == Mode::Nat)
        .flat_map(|cell| cells::PROTOCOLS.map(|protocol| (cell, protocol)))
        .map(|(cell, protocol)| cell.establish(&lab, protocol, 1000))
        .collect();
    // The first one's backends keep nobody, and its port is the second one's, which lets in others only.
    lab.reload(&services("82", "80, 81", "down"));
    for path in &paths {
        for _ in 0..2 {
            let verdict = lab.send(CLIENTS, &path.request(ACK).bytes()).verdict;
            assert_eq!(verdict, NOT_ALLOWED, "{path:?}");
        }
    }
}

#[test]
fn fragments_and_errors() {
    let mut lab = Lab::new(&every());
    let paths: Vec<_> = cells::all()
        .flat_map(|cell| cells::PROTOCOLS.map(|protocol| (cell, protocol)))
        .map(|(cell, protocol)| cell.establish(&lab, protocol, 1000))
        .collect();
    lab.reload(&allowing(&["198.51.100.7", "2001:db8:c::7"]));
    let stranger = |cell: Cell| {
        let source = if cell.ipv6 {
            "2001:db8:c::8"
        } else {
            "198.51.100.8"
        };
        SocketAddr::new(ip(source), 1000)
    };
    for path in &paths {
        let other = path.cell.path(path.protocol, stranger(path.cell));
        let id = u32::from(path.protocol.number().0);
        for (path, first, later) in [
            (path, Verdict::Redirect, Verdict::Redirect),
            (&other, NOT_ALLOWED, Verdict::Drop("unknown_fragment")),
        ] {
            for (n, expected) in [(0, first), (1, later), (2, later)] {
                let frame = path.sent(&Dress::default(), |ends| {
                    let frame = path.between(ends, SYN).with(|f| f.payload = vec![1; 200]);
                    frame.packet().fragments(id, 0, &[64, 128])[n].clone()
                });
                let verdict = lab.send(CLIENTS, &frame).verdict;
                assert_eq!(verdict, expected, "fragment {n}, {path:?}");
            }
        }
        // A router between is in nobody's list.
        for kind in Icmp::ERRORS {
            path.to_backend(&lab, "an error", |ends| {
                let frame = path.back_between(ends, ACK);
                kind.about(ends.router, ends.server.ip(), &frame.packet().bytes())
            });
        }
    }
}
