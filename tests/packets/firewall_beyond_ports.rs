//! The firewall and packets that are not a whole segment or datagram of a service: pings and ICMP errors, other
//! protocols, fragments, ports without a service, packets that would be answered.

use std::net::{IpAddr, SocketAddr};

use libbpf_rs::MapCore;

use crate::harness::cells::{self, every, Cell, Dress, Ends, Path, PROTOCOLS};
use crate::harness::frame::{Protocol, ACK, ROUTING, SYN};
use crate::harness::ip::{Ethernet, Icmp, Packet};
use crate::harness::knock::{Kind, Knock};
use crate::harness::{backend_mac, ip, own_mac, Lab, Verdict, BACKENDS, CLIENTS, ROUTER};

const DENIED: Verdict = Verdict::Drop("firewall");
const UNKNOWN_FRAGMENT: Verdict = Verdict::Drop("unknown_fragment");
const UNRELATED: Verdict = Verdict::Pass("icmp_unrelated");

/// Lets in the client of every cell, and nobody else.
const ONLY_CLIENTS: &str = r#"
[firewall]
default = "deny"
[[firewall.rule]]
action = "allow"
source = "198.51.100.7"
[[firewall.rule]]
action = "allow"
source = "2001:db8:c::7"
"#;

fn denying(conditions: &str) -> String {
    format!("[[firewall.rule]]\naction = \"deny\"\n{conditions}\n")
}

fn with(protection: &str) -> String {
    format!("{}\n{protection}", every())
}

fn from_router(packet: &Packet) -> Vec<u8> {
    let ethernet = Ethernet {
        to: own_mac(CLIENTS),
        from: ROUTER,
        tags: vec![],
    };
    ethernet.carrying(packet)
}

/// Another client than the one of every cell.
fn stranger(cell: Cell) -> IpAddr {
    ip(if cell.ipv6 {
        "2001:db8:c::8"
    } else {
        "198.51.100.8"
    })
}

#[test]
fn pings() {
    let mut lab = Lab::new(&every());
    let keys = lab.datapath_keys.clone();
    for (setting, let_in) in [
        ("icmp_echo = true", Verdict::Answer("echo_answered")),
        ("icmp_echo = false", Verdict::Pass("other_protocol")),
    ] {
        lab.datapath_keys = format!("{keys}\n{setting}");
        for (protection, denied) in [
            (String::new(), false),
            ("[firewall]\ndefault = \"deny\"\n".into(), true),
            (ONLY_CLIENTS.into(), false),
            (denying("protocol = \"icmp\""), true),
            (denying("protocol = \"tcp\""), false),
            (denying("port = 80"), false),
            (denying(""), true),
        ] {
            lab.reload(&with(&protection));
            for cell in cells::all() {
                let knock = Knock::at(cell, Kind::Ping, cell.client_at(0).ip());
                let expected = if denied { DENIED } else { let_in };
                assert_eq!(
                    knock.send(&lab),
                    expected,
                    "{setting}, {protection}, {cell:?}"
                );
            }
        }
    }
    // Of a VIP without backends.
    for cell in cells::all() {
        lab.hops.insert(cell.backend().ip(), None);
    }
    lab.datapath_keys = keys;
    for (protection, expected) in [
        (ONLY_CLIENTS, Verdict::Drop("echo_dropped")),
        ("[firewall]\ndefault = \"deny\"\n", DENIED),
    ] {
        lab.reload(&with(protection));
        for cell in cells::all() {
            let knock = Knock::at(cell, Kind::Ping, cell.client_at(0).ip());
            assert_eq!(knock.send(&lab), expected, "{cell:?}");
        }
    }
}

/// The error about a packet of the backend's, by what a side sees.
fn error_to_backend(path: &Path, ends: Ends, kind: Icmp) -> Packet {
    let frame = path.back_between(ends, ACK).with(|f| {
        f.payload = vec![0x5a; 100];
        f.ttl = 9;
    });
    kind.about(ends.router, ends.server.ip(), &frame.packet().bytes())
}

/// Those about a connection pass the default, which path MTU discovery could not do without, and no rule
/// or blocklist.
#[test]
fn errors_about_a_connection() {
    let mut lab = Lab::new(&every());
    lab.set_blocklist("list", &["192.0.2.0/24", "2001:db8:f::/48"]);
    lab.reload(&with(ONLY_CLIENTS));
    let paths: Vec<Path> = cells::all()
        .flat_map(|cell| PROTOCOLS.map(|protocol| (cell, protocol)))
        .map(|(cell, protocol)| cell.establish(&lab, protocol, 1000))
        .collect();
    let blocklisted = ONLY_CLIENTS.replace("default", "blocklists = [\"list\"]\ndefault");
    for (protection, denied) in [
        (String::new(), None),
        (ONLY_CLIENTS.to_string(), None),
        // Somebody says so, of routers or of all.
        (
            format!("{ONLY_CLIENTS}{}", denying("protocol = \"icmp\"")),
            Some(DENIED),
        ),
        (format!("{ONLY_CLIENTS}{}", denying("")), Some(DENIED)),
        (
            format!(
                "{ONLY_CLIENTS}{}{}",
                denying("source = \"192.0.2.0/24\""),
                denying("source = \"2001:db8:f::1\"")
            ),
            Some(DENIED),
        ),
        (
            format!("{ONLY_CLIENTS}{}", denying("protocol = \"tcp\"")),
            None,
        ),
        (blocklisted, Some(Verdict::Drop("blocklisted"))),
    ] {
        lab.reload(&with(&protection));
        let by_default = lab.hits(0).packets;
        for path in &paths {
            for kind in Icmp::ERRORS {
                let what = format!("{kind:?}, {protection}");
                let shape = |ends| error_to_backend(path, ends, kind);
                match denied {
                    None => path.to_backend(&lab, &what, shape),
                    Some(denied) => {
                        let error = path.sent(&Dress::default(), shape);
                        let verdict = lab.send(CLIENTS, &error).verdict;
                        assert_eq!(verdict, denied, "{what}, {path:?}");
                    }
                }
            }
        }
        // What it has not denied, it has not decided.
        if protection.contains("default") {
            assert_eq!(lab.hits(0).packets, by_default, "{protection}");
        }
    }
}

/// How an IPv6 router asks whether the VIP is still where it was (RFC 4861, section 7.3): ARP passes too.
#[test]
fn neighbour_discovery() {
    let mut lab = Lab::new(&every());
    let [solicitation, advertisement, ping] = [135, 136, 128];
    for (protection, expected) in [
        ("", None),
        ("[firewall]\ndefault = \"deny\"\n", None),
        (
            "[[firewall.rule]]\naction = \"deny\"\nprotocol = \"icmp\"\n",
            Some(DENIED),
        ),
        (
            "[[firewall.rule]]\naction = \"deny\"\nsource = \"fe80::/10\"\n",
            Some(DENIED),
        ),
    ] {
        lab.reload(&with(protection));
        for cell in cells::all().filter(|cell| cell.ipv6) {
            for kind in [solicitation, advertisement] {
                let vip = cell.vip().ip();
                let IpAddr::V6(target) = vip else {
                    panic!("{vip}");
                };
                let mut packet = Icmp::EchoRequest
                    .message(ip("fe80::1"), vip, [0; 4], &target.octets())
                    .with(|p| p.ttl = 255);
                packet.payload[0] = kind;
                let verdict = lab.send(CLIENTS, &from_router(&packet)).verdict;
                let passed = Verdict::Pass("other_protocol");
                assert_eq!(
                    verdict,
                    expected.unwrap_or(passed),
                    "{protection}, {cell:?}"
                );

                // From another link (RFC 4861, section 7.1), or something else.
                let strange = if protection.is_empty() {
                    passed
                } else {
                    DENIED
                };
                let routed = packet.with(|p| p.ttl = 254);
                let verdict = lab.send(CLIENTS, &from_router(&routed)).verdict;
                assert_eq!(verdict, strange, "{protection}, {cell:?}");
                packet.payload[0] = ping;
                let verdict = lab.send(CLIENTS, &from_router(&packet)).verdict;
                assert_eq!(
                    verdict == DENIED,
                    strange == DENIED,
                    "{protection}, {cell:?}"
                );
            }
        }
    }
}

#[test]
fn errors_about_nothing() {
    let mut lab = Lab::new(&every());
    for (protection, denied) in [
        ("", false),
        ("[firewall]\ndefault = \"deny\"\n", true),
        (ONLY_CLIENTS, true),
        (
            "[[firewall.rule]]\naction = \"deny\"\nprotocol = \"icmp\"",
            true,
        ),
    ] {
        lab.reload(&with(protection));
        for cell in cells::all() {
            for protocol in PROTOCOLS {
                let path = cell.path(protocol, SocketAddr::new(stranger(cell), 1000));
                // Of a port that no service has: with direct return, the others' connections are
                // known by their hash.
                let mut ends = path.outside();
                ends.server.set_port(81);
                for kind in Icmp::ERRORS {
                    let error = from_router(&error_to_backend(&path, ends, kind));
                    let expected = if denied { DENIED } else { UNRELATED };
                    let verdict = lab.send(CLIENTS, &error).verdict;
                    assert_eq!(verdict, expected, "{protection}, {kind:?}, {cell:?}");
                }
            }
        }
    }
}

/// What a backend or a router behind us has to say to a client is nothing that comes to a VIP.
#[test]
fn errors_to_clients() {
    let mut lab = Lab::new(&every());
    let paths: Vec<Path> = cells::translated()
        .flat_map(|cell| PROTOCOLS.map(|protocol| (cell, protocol)))
        .map(|(cell, protocol)| cell.establish(&lab, protocol, 1000))
        .collect();
    lab.reload(&with(&denying("")));
    for path in &paths {
        for kind in Icmp::ERRORS {
            path.to_client(&lab, "an error", |ends| {
                let frame = path.between(ends, ACK).with(|f| f.payload = vec![7; 100]);
                kind.about(ends.router, ends.client.ip(), &frame.packet().bytes())
            });
        }
    }
}

/// What is neither TCP nor UDP nor ICMP goes to the stack, if it is let in.
#[test]
fn other_protocols() {
    let mut lab = Lab::new(&every());
    for (protection, of) in [
        ("".to_string(), None),
        ("[firewall]\ndefault = \"deny\"\n[[firewall.rule]]\naction = \"allow\"\nprotocol = 112\n".into(), Some(vec![47, 50, 51, 89, 4, 41])),
        (denying("protocol = 47"), Some(vec![47])),
        (denying("protocol = \"icmp\""), Some(vec![1, 58])),
        (denying("port = 80"), Some(vec![])),
    ] {
        lab.reload(&with(&protection));
        for cell in cells::all() {
            for protocol in [4, 41, 47, 50, 51, 89, 112, if cell.ipv6 { 1 } else { 58 }] {
                let knock = Knock::at(cell, Kind::Other(protocol), stranger(cell));
                let denied = match &of {
                    None => false,
                    Some(denied) => denied.contains(&protocol) || (protection.contains("default") && protocol != 112),
                };
                let expected = if denied { DENIED } else { knock.let_in() };
                assert_eq!(knock.send(&lab), expected, "{protection}, {knock:?}");
            }
        }
    }
}

/// A packet on its way along a list of routers: nobody has seen its ports.
#[test]
fn routing_headers() {
    let mut lab = Lab::new(&every());
    for (protection, expected) in [
        (String::new(), Verdict::Pass("other_protocol")),
        ("[firewall]\ndefault = \"deny\"\n".into(), DENIED),
        (denying("source = \"2001:db8:c::/48\""), DENIED),
        (denying("protocol = 43"), DENIED),
    ] {
        lab.reload(&with(&protection));
        for cell in cells::all().filter(|cell| cell.ipv6) {
            let path = cell.path(Protocol::Tcp, cell.client_at(1000));
            let frame = path.request(SYN).with(|f| {
                let mut body = vec![2, 4, 1];
                body.resize(23, 0);
                f.extensions = vec![(ROUTING, body)];
            });
            let verdict = lab.send(CLIENTS, &frame.bytes()).verdict;
            assert_eq!(verdict, expected, "{protection}, {cell:?}");
        }
    }
}

/// A packet of the client's in three fragments.
fn pieces(path: &Path, ends: Ends, flags: u8, id: u32) -> Vec<Packet> {
    let frame = path.between(ends, flags).with(|f| {
        f.payload = (0..200).map(|i| (i * 7 + 13) as u8).collect();
    });
    let id = id | u32::from(path.protocol.number().0) << 8;
    frame.packet().fragments(id, 0, &[64, 128])
}

fn nth(path: &Path, flags: u8, id: u32, n: usize) -> Vec<u8> {
    path.sent(&Dress::default(), |ends| {
        pieces(path, ends, flags, id)[n].clone()
    })
}

#[test]
fn fragments_of_the_denied_and_of_the_allowed() {
    let mut lab = Lab::new(&with(ONLY_CLIENTS));
    for cell in cells::all() {
        for protocol in PROTOCOLS {
            // The first is denied: nothing is left for the others to follow, not even once it would be
            // let in.
            let path = cell.path(protocol, SocketAddr::new(stranger(cell), 1000));
            for (n, expected) in [
                (1, UNKNOWN_FRAGMENT),
                (0, DENIED),
                (1, UNKNOWN_FRAGMENT),
                (2, UNKNOWN_FRAGMENT),
                (0, DENIED),
            ] {
                let verdict = lab.send(CLIENTS, &nth(&path, SYN, 1, n)).verdict;
                assert_eq!(verdict, expected, "fragment {n}, {cell:?}");
            }
            assert_eq!(lab.map("fragments").keys().count(), 0);
        }
    }
    for cell in cells::all() {
        for protocol in PROTOCOLS {
            let path = cell.establish(&lab, protocol, 1000);
            for n in [0, 2, 1, 1] {
                path.to_backend(&lab, "of the allowed", |ends| {
                    pieces(&path, ends, ACK, 2)[n].clone()
                });
            }
        }
    }
    lab.reload(&every());
    for cell in cells::all() {
        for protocol in PROTOCOLS {
            let path = cell.path(protocol, SocketAddr::new(stranger(cell), 1000));
            let verdict = lab.send(CLIENTS, &nth(&path, SYN, 1, 1)).verdict;
            assert_eq!(verdict, UNKNOWN_FRAGMENT, "{cell:?}");
        }
    }
}

/// Those whose first one was let in, by the rules before.
#[test]
fn fragments_in_the_middle_of_a_reload() {
    let mut lab = Lab::new(&with(ONLY_CLIENTS));
    let paths: Vec<Path> = cells::all()
        .flat_map(|cell| PROTOCOLS.map(|protocol| (cell, protocol)))
        .map(|(cell, protocol)| cell.establish(&lab, protocol, 1000))
        .collect();
    for (protection, denied) in [
        (ONLY_CLIENTS, false),
        ("[firewall]\ndefault = \"deny\"", true),
        ("", false),
        (
            "[[firewall.rule]]\naction = \"deny\"\nport = 80\nsource_port = 1000",
            true,
        ),
        (
            "[[firewall.rule]]\naction = \"deny\"\nport = 80\nsource_port = 1001",
            false,
        ),
    ] {
        for (id, path) in (100..).zip(&paths) {
            let sent = lab.send(CLIENTS, &nth(path, ACK, id, 0));
            // The firewall before may have denied it.
            assert!(
                matches!(sent.verdict, Verdict::Redirect | DENIED),
                "{path:?}"
            );
        }
        let firsts = lab.map("fragments").keys().count();
        lab.reload(&with(protection));
        for (id, path) in (100..).zip(&paths) {
            if denied {
                let verdict = lab.send(CLIENTS, &nth(path, ACK, id, 1)).verdict;
                assert_eq!(verdict, DENIED, "{protection}, {path:?}");
            } else {
                path.to_backend(&lab, protection, |ends| {
                    pieces(path, ends, ACK, id)[1].clone()
                });
            }
        }
        assert_eq!(lab.map("fragments").keys().count(), firsts);
    }
}

/// A rule by the port is one for all of the packet.
#[test]
fn fragments_by_the_ports_of_the_first() {
    let services = every().replace("port = 80\n", "port = [80, 81]\n");
    let lab = Lab::new(&format!("{services}\n{}", denying("port = 81")));
    for cell in cells::all() {
        for protocol in PROTOCOLS {
            for (port, first, later) in [
                (81, DENIED, UNKNOWN_FRAGMENT),
                (80, Verdict::Redirect, Verdict::Redirect),
            ] {
                let mut path = cell.path(protocol, cell.client_at(1000));
                path.port = port;
                for (n, expected) in [(0, first), (1, later), (2, later)] {
                    let frame = nth(&path, SYN, u32::from(port), n);
                    let verdict = lab.send(CLIENTS, &frame).verdict;
                    assert_eq!(verdict, expected, "port {port}, fragment {n}, {cell:?}");
                }
            }
        }
    }
}

/// What has no ports is judged by its protocol, each fragment for itself.
#[test]
fn fragments_of_pings_and_other_protocols() {
    let mut lab = Lab::new(&every());
    for (protection, denied) in [
        (String::new(), [false, false]),
        ("[firewall]\ndefault = \"deny\"\n".into(), [true, true]),
        (ONLY_CLIENTS.into(), [false, false]),
        (denying("protocol = \"icmp\""), [true, false]),
        (denying("protocol = 47"), [false, true]),
        (denying("port = 80"), [false, false]),
    ] {
        lab.reload(&with(&protection));
        for cell in cells::all() {
            let (client, vip) = (cell.client_at(0).ip(), cell.vip().ip());
            let ping = Icmp::EchoRequest.message(client, vip, [0, 1, 0, 1], &[7; 64]);
            let gre = Packet::new(client, vip, 47, vec![0; 72]);
            for (whole, denied) in [ping, gre].iter().zip(denied) {
                for (n, piece) in (0..).zip(whole.fragments(9, 0, &[16, 32])) {
                    let expected = if denied {
                        DENIED
                    } else {
                        Verdict::Pass("other_protocol")
                    };
                    let verdict = lab.send(CLIENTS, &from_router(&piece)).verdict;
                    assert_eq!(verdict, expected, "{protection}, fragment {n}, {cell:?}");
                }
            }
        }
    }
}

#[test]
fn ports_without_a_service() {
    let mut lab = Lab::new(&every());
    let keys = lab.datapath_keys.clone();
    for (setting, let_in) in [
        ("pass", Verdict::Pass("unknown_port_passed")),
        ("drop", Verdict::Drop("unknown_port_dropped")),
        ("reject", Verdict::Answer("unknown_port_rejected")),
    ] {
        lab.datapath_keys = format!("{keys}\nunknown_port = \"{setting}\"");
        for (protection, denied) in [
            (String::new(), false),
            ("[firewall]\ndefault = \"deny\"\n".into(), true),
            (ONLY_CLIENTS.into(), false),
            (denying("port = 81"), true),
            (denying("port = 80"), false),
        ] {
            lab.reload(&with(&protection));
            for cell in cells::all() {
                for kind in [Kind::Tcp, Kind::Udp] {
                    let knock = Knock {
                        port: 81,
                        ..Knock::at(cell, kind, cell.client_at(0).ip())
                    };
                    let expected = if denied { DENIED } else { let_in };
                    assert_eq!(
                        knock.send(&lab),
                        expected,
                        "{setting}, {protection}, {knock:?}"
                    );
                }
            }
            lab.refill_answers();
        }
    }
    assert_eq!(lab.entries(), []);
}

/// Neither a reset nor an error tells the denied that there is somebody.
#[test]
fn the_denied_get_no_answer() {
    let mut lab = Lab::new(&every());
    let open: Vec<Path> = cells::all()
        .flat_map(|cell| PROTOCOLS.map(|protocol| (cell, protocol)))
        .map(|(cell, protocol)| cell.establish(&lab, protocol, 1000))
        .collect();
    for cell in cells::all().filter(|cell| cell.mode.is_tunnel()) {
        // A service that rejects has nothing to say either.
        lab.hops.insert(cell.backend().ip(), None);
    }
    let rejecting = every().replace("forward =", "no_backend = \"reject\"\nforward =");
    lab.reload(&format!("{rejecting}\n{}", denying("")));
    for path in &open {
        let new = path.cell.path(path.protocol, path.cell.client_at(1001));
        for frame in [path.request(ACK), new.request(SYN)] {
            for frame in [
                frame.clone(),
                frame.with(|f| f.ttl = 1),
                frame.with(|f| f.payload = vec![1; 1460]),
            ] {
                let verdict = lab.send(CLIENTS, &frame.bytes()).verdict;
                assert_eq!(verdict, DENIED, "{frame:?}");
            }
        }
    }
}

/// Whom a backend answers, it answers.
#[test]
fn replies_in_fragments() {
    let mut lab = Lab::new(&every());
    let paths: Vec<Path> = cells::translated()
        .flat_map(|cell| PROTOCOLS.map(|protocol| (cell, protocol)))
        .map(|(cell, protocol)| cell.establish(&lab, protocol, 1000))
        .collect();
    lab.reload(&with(&denying("")));
    for path in &paths {
        for n in 0..3 {
            path.to_client(&lab, "a fragment", |ends| {
                let frame = path
                    .back_between(ends, ACK)
                    .with(|f| f.payload = vec![3; 200]);
                let id = u32::from(path.protocol.number().0);
                frame.packet().fragments(id, 0, &[64, 128])[n].clone()
            });
        }
        // What no connection is behind is the host's.
        let stray = Ethernet {
            to: own_mac(BACKENDS),
            from: backend_mac(path.cell.backend().ip()),
            tags: vec![],
        };
        let frame = path
            .back_between(path.inside(), ACK)
            .with(|f| f.source.set_port(9));
        let verdict = lab.send(BACKENDS, &stray.carrying(&frame.packet())).verdict;
        assert_eq!(verdict, Verdict::Pass("not_ours"), "{path:?}");
    }
}
