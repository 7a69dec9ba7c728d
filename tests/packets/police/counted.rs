//! What a policy counts: by flags, family and protocol; pings, errors and fragments; behind the firewall.

use std::net::SocketAddr;

use xdplb::datapath::abi;

use super::{exhaust, policy, slow_down, source, with, BLOCKED, LIMITED};
use crate::harness::cells::{self, every, Dress, Mode, Path, PROTOCOLS};
use crate::harness::frame::{tcp, Protocol, ACK, FIN, PSH, RST, SYN};
use crate::harness::ip::Icmp;
use crate::harness::knock::{Kind, Knock};
use crate::harness::{ip, own_mac, Lab, Verdict, CLIENTS, ROUTER};

/// The flags that a policy names, whatever others there are; a SYN of the answer's kind opens nothing.
#[test]
fn flags() {
    let mut lab = Lab::new(&every());
    let mut number = 0;
    let every_flags = 0..64_u8;
    for (name, counted) in [
        ("\"syn\"", (SYN, SYN | ACK)),
        ("\"ack\"", (ACK, ACK)),
        ("\"fin\"", (FIN, FIN)),
        ("\"rst\"", (RST, RST)),
        ("\"psh\"", (PSH, PSH)),
        ("\"syn,ack\"", (SYN | ACK, SYN | ACK)),
        ("[\"syn\", \"fin\"]", (SYN | FIN, SYN | FIN | ACK)),
        ("\"fin,psh\"", (FIN | PSH, FIN | PSH)),
    ] {
        let keys = format!("tcp_flags = {name}\nlimit = 1\naction = \"limit\"");
        lab.reload(&with(&policy("flags", "tcp", &keys)));
        slow_down(&lab);
        for cell in cells::main_ways() {
            for flags in every_flags.clone() {
                number += 1;
                let client = SocketAddr::new(source(cell, number), 1000);
                let frame = tcp(client, cell.vip(), flags).between(ROUTER, own_mac(CLIENTS));
                // A byte, beyond what the builder has names for.
                let mut bytes = frame.bytes();
                let at = frame.l4() + 13;
                bytes[at] = flags;
                let (set, mask) = counted;
                let is_counted = flags & mask == set;
                for nth in 0..3 {
                    let limited = lab.send(CLIENTS, &bytes).verdict == LIMITED;
                    assert_eq!(
                        limited,
                        is_counted && nth > 0,
                        "{name}, flags {flags:#x}, {cell:?}"
                    );
                }
            }
        }
    }
}

/// An IPv4 source and an IPv6 one whose first words are the same, and two protocols of each: as many sources
/// as there are places in a set, all of them in one.
#[test]
fn families_and_protocols_are_apart() {
    let policies = ["tcp", "udp"]
        .map(|protocol| policy(protocol, protocol, "limit = 3\naction = \"block\""))
        .concat();
    let lab = Lab::new(&with(&policies));
    slow_down(&lab);
    let one_set = abi::settings {
        source_sets: 1,
        ..lab.live()
    };
    lab.set_element("settings", 0, &one_set);
    let of = |ipv6, kind| {
        let mut cells = cells::main_ways();
        let cell = cells.find(|cell| cell.ipv6 == ipv6).expect("a cell");
        let source = if ipv6 {
            ip("a09:1:0:0:1::")
        } else {
            ip("10.9.0.1")
        };
        Knock::at(cell, kind, source)
    };
    for kind in [Kind::Tcp, Kind::Udp] {
        for ipv6 in [false, true] {
            exhaust(&lab, &of(ipv6, kind), 3, Verdict::Redirect, BLOCKED);
        }
    }
    let set: abi::dos_set = lab.element("dos_sources", 0);
    assert!(set.ways.iter().all(|way| way.family != 0), "four sources");
}

#[test]
fn pings_errors_and_fragments() {
    let lab = Lab::new(&with(
        &["tcp", "udp", "icmp"]
            .map(|protocol| policy(protocol, protocol, "limit = 6\naction = \"limit\""))
            .concat(),
    ));
    slow_down(&lab);
    for (number, cell) in (1..).zip(cells::all()) {
        // ICMP, of every kind: a ping, an error about a connection, one about nothing, a fragment, what is
        // neither.
        let router = source(cell, number);
        let path = cell.path(
            Protocol::Udp,
            SocketAddr::new(source(cell, 1000 + number), 1000),
        );
        let vip = cell.vip().ip();
        let ping = Icmp::EchoRequest.message(router, vip, [0, 1, 0, 1], &[7; 64]);
        let mut own = path.clone();
        assert_eq!(own.knock(&lab, &Dress::default()), Verdict::Redirect);
        let about = |path: &Path, port| {
            let mut ends = path.outside();
            ends.server.set_port(port);
            let frame = path.back_between(ends, ACK);
            Icmp::TimeExceeded.about(router, vip, &frame.packet().bytes())
        };
        let fragments = ping.fragments(9, 0, &[16]);
        let ethernet = path.request(0).ethernet();
        for (packet, expected) in [
            (ping.clone(), Verdict::Answer("echo_answered")),
            (about(&own, 80), Verdict::Redirect),
            (about(&own, 81), Verdict::Pass("icmp_unrelated")),
            (fragments[0].clone(), Verdict::Pass("other_protocol")),
            (fragments[1].clone(), Verdict::Pass("other_protocol")),
            (
                Icmp::EchoReply.message(router, vip, [0; 4], b"nothing asked"),
                Verdict::Pass("other_protocol"),
            ),
            (ping, LIMITED),
            (about(&own, 80), LIMITED),
            (about(&own, 81), LIMITED),
            (fragments[0].clone(), LIMITED),
            (fragments[1].clone(), LIMITED),
        ] {
            let verdict = lab.send(CLIENTS, &ethernet.carrying(&packet)).verdict;
            assert_eq!(verdict, expected, "{packet:?}, {cell:?}");
        }
        // Datagrams and segments in fragments: each of them is a packet.
        for protocol in PROTOCOLS {
            let client = SocketAddr::new(source(cell, 2000 + number), 1000);
            let path = cell.path(protocol, client);
            let piece = |id: u32, n: usize| {
                path.sent(&Dress::default(), |ends| {
                    let frame = path.between(ends, SYN).with(|f| f.payload = vec![1; 200]);
                    let id = id | u32::from(protocol.number().0) << 8;
                    frame.packet().fragments(id, 0, &[64, 128])[n].clone()
                })
            };
            for (id, n, expected) in [
                (1, 0, Verdict::Redirect),
                (1, 1, Verdict::Redirect),
                (1, 2, Verdict::Redirect),
                (2, 0, Verdict::Redirect),
                (2, 1, Verdict::Redirect),
                (1, 2, Verdict::Redirect),
                (2, 2, LIMITED),
                (1, 1, LIMITED),
                (3, 0, LIMITED),
                // It was dropped before it could be followed.
                (3, 1, Verdict::Drop("unknown_fragment")),
            ] {
                let verdict = lab.send(CLIENTS, &piece(id, n)).verdict;
                assert_eq!(verdict, expected, "packet {id}, fragment {n}, {path:?}");
            }
        }
    }
}

/// Only what the firewall and the service let in is counted, and what is not let in makes no entry.
#[test]
fn after_the_firewall() {
    let mut lab = Lab::new(&every());
    lab.set_blocklist("list", &["10.9.3.0/24", "2001:db8:c:300::/56"]);
    let services = every().replace(
        "forward =",
        "allow = [\"10.9.0.0/16\", \"2001:db8:c::/49\"]\nforward =",
    );
    let limits = ["tcp", "udp"]
        .map(|protocol| policy(protocol, protocol, "limit = 2\naction = \"block\""))
        .concat();
    lab.reload(&format!(
        "{services}\n[firewall]\nblocklists = [\"list\"]\n\
         [[firewall.rule]]\naction = \"deny\"\nsource_port = 9\n{limits}"
    ));
    slow_down(&lab);
    for (number, cell) in (1..).zip(cells::all()) {
        for kind in [Kind::Tcp, Kind::Udp] {
            let own = Knock::at(cell, kind, source(cell, number));
            let denied = Knock {
                source_port: 9,
                ..own
            };
            let listed = Knock::at(cell, kind, source(cell, 0x300 + number));
            let outside = if cell.ipv6 {
                "2001:db8:d::1"
            } else {
                "10.10.0.1"
            };
            let outside = Knock::at(cell, kind, ip(outside));
            let entries = lab.entries().len();
            for _ in 0..10 {
                assert_eq!(denied.send(&lab), Verdict::Drop("firewall"), "{denied:?}");
                assert_eq!(
                    listed.send(&lab),
                    Verdict::Drop("blocklisted"),
                    "{listed:?}"
                );
                assert_eq!(
                    outside.send(&lab),
                    Verdict::Drop("not_allowed"),
                    "{outside:?}"
                );
            }
            assert_eq!(lab.entries().len(), entries);
            let new = |source_port| Knock { source_port, ..own };
            let claims = lab.claims();
            assert_eq!(new(1000).send(&lab), Verdict::Redirect);
            assert_eq!(new(1001).send(&lab), Verdict::Redirect);
            let of_two = if cell.mode.is_direct() { 2 } else { 4 };
            assert_eq!(lab.entries().len(), entries + of_two, "{cell:?}");
            let ports = if cell.mode == Mode::FullNat { 2 } else { 0 };
            for port in 1002..1010 {
                assert_eq!(new(port).send(&lab), BLOCKED);
            }
            assert_eq!(lab.entries().len(), entries + of_two, "{cell:?}");
            assert_eq!(lab.claims(), claims + ports, "{cell:?}");
        }
    }
}
