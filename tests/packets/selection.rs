//! Which service and which backend a packet gets, and the fate of connections when services and
//! backends change.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use crate::harness::cases::{self, STANDARD};
use crate::harness::dialog::{ends_of, Dialog};
use crate::harness::frame::{tcp, udp, Protocol, ACK, SYN};
use crate::harness::{at, ip, Lab, Verdict, BACKENDS, CLIENTS};

/// The same in both families, so that each test has both: client, VIP, prefix of the backends.
const FAMILIES: [(&str, &str, &str); 2] = [
    ("198.51.100.7", "203.0.113.11", "10.0.0."),
    ("2001:db8:c::7", "2001:db8:1::11", "fd00::"),
];

/// A service on both VIPs, with backends of both families: keys of the service, then number and keys of
/// each backend.
fn service(name: &str, keys: &str, backends: &[(u8, &str)]) -> String {
    let mut text = format!(
        "[[service]]\nname = \"{name}\"\nvip = [\"203.0.113.11\", \"2001:db8:1::11\"]\n{keys}\n"
    );
    for (number, keys) in backends {
        for (prefix, family) in [("10.0.0.", 4), ("fd00::", 6)] {
            text += &format!(
                "[[service.backend]]\nname = \"b{number}-{family}\"\naddress = \"{prefix}{number}\"\n{keys}\n"
            );
        }
    }
    text
}

const WEB: &str = "protocol = \"tcp\"\nport = 80\nforward = \"nat\"";
const WEB_FULL: &str = "protocol = \"tcp\"\nport = 80\nforward = \"full-nat\"";

fn clients(client: &str, count: u16) -> impl Iterator<Item = SocketAddr> {
    let address = ip(client);
    (0..count).map(move |n| SocketAddr::new(address, 1024 + n))
}

fn web(vip: &str) -> SocketAddr {
    SocketAddr::new(ip(vip), 80)
}

#[track_caller]
fn first_packet(lab: &Lab, protocol: Protocol, client: SocketAddr, vip: SocketAddr) -> Verdict {
    let frame = match protocol {
        Protocol::Tcp => tcp(client, vip, SYN),
        Protocol::Udp => udp(client, vip, b"datagram"),
    };
    lab.send(CLIENTS, &frame.bytes()).verdict
}

#[test]
fn services_by_port_and_protocol() {
    let (tcp, udp) = (Protocol::Tcp, Protocol::Udp);
    let services = [
        service(
            "web",
            "protocol = \"tcp\"\nport = [80, 443]\nforward = \"nat\"",
            &[(2, "")],
        ),
        service(
            "range",
            "protocol = [\"tcp\", \"udp\"]\nport = \"8001-8010\"\nforward = \"full-nat\"",
            &[(3, "")],
        ),
        service(
            "dns",
            "protocol = \"udp\"\nport = 53\nforward = \"nat\"",
            &[(4, "port = 5353")],
        ),
        service(
            "rest",
            "protocol = \"udp\"\nport = \"any\"\nforward = \"nat\"",
            &[(5, "")],
        ),
        service(
            "edge",
            "protocol = \"tcp\"\nport = [1, 65535]\nforward = \"nat\"",
            &[(6, "")],
        ),
    ]
    .concat();
    let lab = Lab::new(&services);
    let unknown = Verdict::Pass("unknown_port_passed");
    for (client, vip, prefix) in FAMILIES {
        for (protocol, port, backend) in [
            (tcp, 80, Some((2, 80))),
            (tcp, 443, Some((2, 443))),
            (tcp, 81, None),
            (tcp, 444, None),
            (tcp, 8000, None),
            (tcp, 8001, Some((3, 8001))),
            (tcp, 8008, Some((3, 8008))),
            (tcp, 8010, Some((3, 8010))),
            (tcp, 8011, None),
            (tcp, 53, None),
            (tcp, 0, None),
            (tcp, 1, Some((6, 1))),
            (tcp, 2, None),
            (tcp, 65534, None),
            (tcp, 65535, Some((6, 65535))),
            (udp, 53, Some((4, 5353))),
            (udp, 52, Some((5, 52))),
            (udp, 54, Some((5, 54))),
            (udp, 80, Some((5, 80))),
            (udp, 8000, Some((5, 8000))),
            (udp, 8001, Some((3, 8001))),
            (udp, 8010, Some((3, 8010))),
            (udp, 8011, Some((5, 8011))),
            (udp, 1, Some((5, 1))),
            (udp, 65535, Some((5, 65535))),
        ] {
            let (client, vip) = (
                SocketAddr::new(ip(client), 4242),
                SocketAddr::new(ip(vip), port),
            );
            match backend {
                None => assert_eq!(first_packet(&lab, protocol, client, vip), unknown, "{vip}"),
                Some((number, port)) => {
                    let d = Dialog::open(&lab, protocol, client, vip);
                    let expected = SocketAddr::new(ip(&format!("{prefix}{number}")), port);
                    assert_eq!(d.backend, expected, "{protocol:?} {vip}");
                }
            }
        }
    }
}

#[test]
fn unknown_ports_passed_or_dropped() {
    let mut lab = Lab::new(STANDARD);
    let keys = lab.datapath_keys.clone();
    for (value, verdict) in [
        ("pass", Verdict::Pass("unknown_port_passed")),
        ("drop", Verdict::Drop("unknown_port_dropped")),
    ] {
        lab.datapath_keys = format!("{keys}\nunknown_port = \"{value}\"");
        lab.reload(STANDARD);
        for case in cases::all() {
            let mut vip = case.vip();
            vip.set_port(81);
            assert_eq!(
                first_packet(&lab, case.protocol, case.client(), vip),
                verdict
            );
            // Those that a service has are balanced either way, and the host's own are not touched.
            let d = case.establish(&lab);
            d.to_backend(&lab, ACK);
            let host = at(if case.ipv6 {
                "[fd00::1]:22"
            } else {
                "10.0.0.1:22"
            });
            let verdict = first_packet(&lab, case.protocol, case.client(), host);
            assert_eq!(verdict, Verdict::Pass("not_ours"));
        }
    }
}

#[test]
fn no_backend() {
    let none = Verdict::Drop("no_backend");
    let mut lab = Lab::new(STANDARD);
    for mode in [WEB, WEB_FULL] {
        for (what, backends) in [
            ("none at all", vec![]),
            ("weight 0", vec![(2, "weight = 0"), (3, "weight = 0")]),
            ("down", vec![(2, "state = \"down\"")]),
            ("draining", vec![(2, "state = \"drain\"")]),
        ] {
            lab.reload(&service("web", mode, &backends));
            for (client, vip, _) in FAMILIES {
                let client = SocketAddr::new(ip(client), 4242);
                assert_eq!(
                    first_packet(&lab, Protocol::Tcp, client, web(vip)),
                    none,
                    "{what}"
                );
            }
        }
        // Nobody answers for the backend's address.
        for (_, _, prefix) in FAMILIES {
            lab.hops.insert(ip(&format!("{prefix}2")), None);
        }
        lab.reload(&service("web", mode, &[(2, "")]));
        for (client, vip, _) in FAMILIES {
            let client = SocketAddr::new(ip(client), 4242);
            assert_eq!(
                first_packet(&lab, Protocol::Tcp, client, web(vip)),
                none,
                "unresolved"
            );
        }
        lab.hops.clear();
    }
    // Nothing to send from.
    lab.datapath_keys = String::new();
    lab.reload(&service("web", WEB_FULL, &[(2, "")]));
    for (client, vip, _) in FAMILIES {
        let client = SocketAddr::new(ip(client), 4242);
        assert_eq!(
            first_packet(&lab, Protocol::Tcp, client, web(vip)),
            none,
            "no source"
        );
    }
    assert_eq!(lab.entries(), []);
}

/// A service that loses all its backends for a moment loses no connection.
#[test]
fn connections_outlive_a_moment_without_backends() {
    for mode in [WEB, WEB_FULL] {
        let mut lab = Lab::new(&service("web", mode, &[(2, "")]));
        let dialogs: Vec<Dialog> = FAMILIES
            .iter()
            .map(|(client, vip, _)| establish(&lab, SocketAddr::new(ip(client), 4242), web(vip)))
            .collect();
        lab.reload(&service("web", mode, &[(2, "state = \"down\"")]));
        for d in &dialogs {
            let sent = lab.send(CLIENTS, &d.request(ACK).bytes());
            assert_eq!(sent.verdict, Verdict::Drop("no_backend"));
            // What the backend still says is said.
            d.to_client(&lab, ACK);
        }
        lab.reload(&service("web", mode, &[(2, "")]));
        for d in &dialogs {
            d.to_backend(&lab, ACK);
            d.to_client(&lab, ACK);
        }
    }
}

#[track_caller]
fn establish(lab: &Lab, client: SocketAddr, vip: SocketAddr) -> Dialog {
    let d = Dialog::open(lab, Protocol::Tcp, client, vip);
    d.to_client(lab, SYN | ACK);
    d.to_backend(lab, ACK);
    d
}

#[test]
fn draining_backends_keep_what_they_have() {
    for mode in [WEB, WEB_FULL] {
        let all = [(2, ""), (3, ""), (4, "")];
        let mut lab = Lab::new(&service("web", mode, &all));
        let mut dialogs = Vec::new();
        for (client, vip, _) in FAMILIES {
            dialogs.extend(clients(client, 40).map(|client| establish(&lab, client, web(vip))));
        }
        // One, then another beside it, as an operator does it.
        for draining in [vec![2], vec![2, 3]] {
            let backends = all.map(|(number, keys)| {
                let drains = draining.contains(&number);
                (number, if drains { "state = \"drain\"" } else { keys })
            });
            lab.reload(&service("web", mode, &backends));
            for d in &dialogs {
                d.to_backend(&lab, ACK);
                d.to_client(&lab, ACK);
            }
            for (client, vip, prefix) in FAMILIES {
                for client in clients(client, 30) {
                    let client =
                        SocketAddr::new(client.ip(), client.port() + 5000 * draining.len() as u16);
                    let d = establish(&lab, client, web(vip));
                    for number in &draining {
                        assert_ne!(d.backend.ip(), ip(&format!("{prefix}{number}")));
                    }
                }
            }
        }
        // And back in use.
        lab.reload(&service("web", mode, &all));
        for d in &dialogs {
            d.to_backend(&lab, ACK);
            d.to_client(&lab, ACK);
        }
    }
}

#[test]
fn weight_zero_keeps_what_it_has_and_gets_nothing_new() {
    let mut lab = Lab::new(&service("web", WEB, &[(2, ""), (3, "")]));
    let mut dialogs = Vec::new();
    for (client, vip, _) in FAMILIES {
        dialogs.extend(clients(client, 30).map(|client| establish(&lab, client, web(vip))));
    }
    lab.reload(&service("web", WEB, &[(2, "weight = 0"), (3, "")]));
    for d in &dialogs {
        d.to_backend(&lab, ACK);
        d.to_client(&lab, ACK);
    }
    for (client, vip, prefix) in FAMILIES {
        for client in clients(client, 30) {
            let client = SocketAddr::new(client.ip(), client.port() + 5000);
            assert_eq!(
                establish(&lab, client, web(vip)).backend.ip(),
                ip(&format!("{prefix}3"))
            );
        }
    }
}

#[test]
fn weights_are_followed() {
    let lab = Lab::new(&service(
        "web",
        WEB,
        &[(2, "weight = 1"), (3, "weight = 3")],
    ));
    for (client, vip, prefix) in FAMILIES {
        let mut count: BTreeMap<_, u32> = BTreeMap::new();
        for client in clients(client, 800) {
            let (_, bytes) = lab.run(CLIENTS, &tcp(client, web(vip), SYN).bytes());
            *count.entry(ends_of(&bytes).1.ip()).or_default() += 1;
        }
        let heavy = count[&ip(&format!("{prefix}3"))];
        // 600 expected; the standard deviation of a fair draw is 12.
        assert!((530..=670).contains(&heavy), "{count:?}");
    }
}

/// Those on a backend that is down or gone are chosen anew, the others stay where they are.
#[test]
fn connections_of_a_lost_backend_are_chosen_anew() {
    for mode in [WEB, WEB_FULL] {
        for (what, after) in [
            ("down", vec![(2, "state = \"down\""), (3, ""), (4, "")]),
            ("removed", vec![(3, ""), (4, "")]),
        ] {
            let mut lab = Lab::new(&service("web", mode, &[(2, ""), (3, ""), (4, "")]));
            let mut dialogs = Vec::new();
            for (client, vip, prefix) in FAMILIES {
                let lost = ip(&format!("{prefix}2"));
                for client in clients(client, 30) {
                    dialogs.push((establish(&lab, client, web(vip)), lost));
                }
            }
            lab.reload(&service("web", mode, &after));
            let mut moved = 0;
            for (d, lost) in &dialogs {
                if d.backend.ip() != *lost {
                    d.to_backend(&lab, ACK);
                    d.to_client(&lab, ACK);
                    continue;
                }
                moved += 1;
                // What it still says reaches the client, while the entry lives.
                d.to_client(&lab, ACK);
                let sent = lab.send(CLIENTS, &d.request(ACK).bytes());
                assert_eq!(sent.verdict, Verdict::Redirect, "{what}");
                let (seen, backend) = ends_of(&sent.bytes);
                assert_ne!(backend.ip(), *lost, "{what}");
                let anew = Dialog {
                    seen,
                    backend,
                    ..d.clone()
                };
                anew.to_client(&lab, ACK);
                anew.to_backend(&lab, ACK);
                // The old backend no longer has a part in it.
                let late = lab.send(BACKENDS, &d.reply(ACK).bytes());
                assert_eq!(late.verdict, Verdict::Pass("not_ours"), "{what}");
            }
            assert!(moved > 5, "{what}: {moved} of {}", dialogs.len());
            // Each holds one full-nat port; the former ones rest, as after any end.
            let held = if mode == WEB_FULL {
                dialogs.len() + moved
            } else {
                0
            };
            assert_eq!(lab.claims(), held, "{what}");
        }
    }
}

/// Another backend under an id that a connection remembers is not its backend.
#[test]
fn ids_of_backends_are_not_confused() {
    for mode in [WEB, WEB_FULL] {
        let mut lab = Lab::new(&service("web", mode, &[(2, "")]));
        let dialogs: Vec<_> = FAMILIES
            .iter()
            .map(|(client, vip, prefix)| {
                (
                    establish(&lab, SocketAddr::new(ip(client), 4242), web(vip)),
                    prefix,
                )
            })
            .collect();
        let before: BTreeSet<u32> = lab.desired.backends.keys().copied().collect();
        // A plan gives no id to another at once; with one between them it may.
        lab.reload(&service("web", mode, &[(9, "")]));
        lab.reload(&service("web", mode, &[(5, "")]));
        let after: BTreeSet<u32> = lab.desired.backends.keys().copied().collect();
        assert_eq!(
            before, after,
            "the ids are used again, or this tests nothing"
        );
        for (d, prefix) in dialogs {
            let sent = lab.send(CLIENTS, &d.request(ACK).bytes());
            assert_eq!(sent.verdict, Verdict::Redirect);
            let (seen, backend) = ends_of(&sent.bytes);
            assert_eq!(backend.ip(), ip(&format!("{prefix}5")));
            let anew = Dialog { seen, backend, ..d };
            anew.to_client(&lab, ACK);
            // It counts as its connection, not as one of the backend before.
            let id = lab.backend_id(if prefix.contains(':') { "b5-6" } else { "b5-4" });
            assert_eq!(lab.traffic(id).connections, 1);
            assert_eq!(lab.traffic(id).packets_in, 1);
        }
    }
}

/// A port that goes from one service to another takes no connection along.
#[test]
fn services_do_not_share_connections() {
    let one = |port| {
        service(
            "one",
            &format!("protocol = [\"tcp\", \"udp\"]\nport = {port}\nforward = \"nat\""),
            &[(2, "")],
        )
    };
    let two = |port| {
        service(
            "two",
            &format!("protocol = [\"tcp\", \"udp\"]\nport = {port}\nforward = \"nat\""),
            &[(3, "")],
        )
    };
    let mut lab = Lab::new(&[one(80), two(81)].concat());
    let mut dialogs = Vec::new();
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        for (client, vip, prefix) in FAMILIES {
            let d = Dialog::open(&lab, protocol, SocketAddr::new(ip(client), 4242), web(vip));
            d.to_client(&lab, SYN | ACK);
            d.to_backend(&lab, ACK);
            assert_eq!(d.backend.ip(), ip(&format!("{prefix}2")));
            dialogs.push((d, prefix));
        }
    }
    lab.reload(&[one(81), two(80)].concat());
    let swept = lab.sweep();
    assert_eq!(swept.unbound, 4, "{swept:?}");
    for (d, prefix) in dialogs {
        let sent = lab.send(CLIENTS, &d.request(ACK).bytes());
        assert_eq!(ends_of(&sent.bytes).1.ip(), ip(&format!("{prefix}3")));
    }
}

/// What the slot is chosen by decides which flows stay together.
#[test]
fn hash_by_source() {
    let backends = [(2, ""), (3, ""), (4, ""), (5, "")];
    let keys = |hash| {
        format!(
            "protocol = [\"tcp\", \"udp\"]\nport = [80, 443]\nforward = \"nat\"\nhash = \"{hash}\""
        )
    };
    let backend_of = |lab: &Lab, frame: &crate::harness::frame::Frame| {
        let (_, bytes) = lab.run(CLIENTS, &frame.bytes());
        ends_of(&bytes).1.ip()
    };
    let mut lab = Lab::new(&service("web", &keys("source-ip"), &backends));
    for (client, vip, _) in FAMILIES {
        let mut all = BTreeSet::new();
        for last in 1..=30 {
            let client = ip(&client.replace('7', &last.to_string()));
            let mut same = BTreeSet::new();
            for (port, to) in [(1024, 80), (1025, 80), (1026, 443)] {
                let (client, vip) = (SocketAddr::new(client, port), SocketAddr::new(ip(vip), to));
                same.insert(backend_of(&lab, &tcp(client, vip, SYN)));
                same.insert(backend_of(&lab, &udp(client, vip, b"datagram")));
            }
            assert_eq!(same.len(), 1, "{client}");
            all.extend(same);
        }
        assert_eq!(all.len(), backends.len());
    }
    lab.reload(&service("web", &keys("source-ip-port"), &backends));
    for (client, vip, _) in FAMILIES {
        let mut all = BTreeSet::new();
        for client in clients(client, 40) {
            let client = SocketAddr::new(client.ip(), client.port() + 9000);
            let to = |port| SocketAddr::new(ip(vip), port);
            let same = BTreeSet::from([
                backend_of(&lab, &tcp(client, to(80), SYN)),
                backend_of(&lab, &tcp(client, to(443), SYN)),
                backend_of(&lab, &udp(client, to(80), b"datagram")),
            ]);
            assert_eq!(same.len(), 1, "{client}");
            all.extend(same);
        }
        assert_eq!(all.len(), backends.len());
    }
}
