//! ICMP and ICMPv6: pings of a VIP, and errors about packets of connections.

use std::net::{IpAddr, SocketAddr};

use crate::harness::cells::{self, every, Cell, Dress, Ends, Mode, Path, PROTOCOLS};
use crate::harness::frame::{
    Frame, Protocol, ACK, DESTINATION_OPTIONS, DOT1AD, DOT1Q, FRAGMENT, HOP_BY_HOP, PSH, SYN,
};
use crate::harness::ip::{Ethernet, Icmp, Packet};
use crate::harness::{
    assert_same, backend_mac, ip, own_mac, Lab, Verdict, BACKENDS, CLIENTS, ROUTER,
};
use crate::property::one_in;

const NOT_OURS: Verdict = Verdict::Pass("not_ours");
const UNRELATED: Verdict = Verdict::Pass("icmp_unrelated");
const ANSWERED: Verdict = Verdict::Answer("echo_answered");

/// Client, VIP and another address of this host, in each family.
const FAMILIES: [[&str; 3]; 2] = [
    ["198.51.100.7", "203.0.113.11", "10.0.0.1"],
    ["2001:db8:c::7", "2001:db8:1::11", "fd00::1"],
];

fn from_router(tags: &[(u16, u16)]) -> Ethernet {
    Ethernet {
        to: own_mac(CLIENTS),
        from: ROUTER,
        tags: tags.to_vec(),
    }
}

/// Sends the request, and holds the answer against the reply that it asks for.
#[track_caller]
fn echoes(lab: &Lab, what: &str, rest: [u8; 4], payload: &[u8], dress: impl Fn(&mut Packet)) {
    for [client, vip, _] in FAMILIES {
        for tags in [
            vec![],
            vec![(DOT1Q, 0x2064)],
            vec![(DOT1AD, 100), (DOT1Q, 200)],
        ] {
            let ethernet = from_router(&tags);
            let (client, vip) = (ip(client), ip(vip));
            let mut request = Icmp::EchoRequest.message(client, vip, rest, payload);
            dress(&mut request);
            let mut reply = Icmp::EchoReply.message(vip, client, rest, payload);
            dress(&mut reply);
            reply.ttl = 64;
            let sent = lab.send(CLIENTS, &ethernet.carrying(&request));
            assert_eq!(sent.verdict, ANSWERED, "{what}, {vip}");
            let expected = ethernet.swapped().carrying(&reply);
            assert_same(&format!("{what}, {vip}"), &sent.bytes, &expected);
        }
    }
}

#[test]
fn pings_are_answered() {
    let lab = Lab::new(&every());
    for length in [0, 1, 2, 56, 1400] {
        let payload: Vec<u8> = (0..length).map(|i| (i * 3 + 1) as u8).collect();
        let what = format!("{length} bytes");
        echoes(&lab, &what, [0x12, 0x34, 0, 1], &payload, |_| ());
    }
    for ttl in [255, 64, 63, 2, 1] {
        echoes(&lab, "TTL", [1, 2, 3, 4], b"payload", |p| p.ttl = ttl);
    }
    echoes(&lab, "nothing but zeros", [0; 4], &[0; 56], |_| ());
    echoes(&lab, "no payload", [0; 4], &[], |_| ());
    echoes(&lab, "header fields stay", [0, 1, 0, 1], b"payload", |p| {
        p.tos = 0xb9;
        p.id = 0x4321;
        p.dont_fragment = false;
        p.flow_label = 0x54321;
    });
    echoes(&lab, "options stay", [0, 1, 0, 1], b"payload", |p| {
        p.options = vec![1, 1, 1, 0];
        p.extensions = vec![
            (HOP_BY_HOP, vec![0, 1, 4, 0, 0, 0, 0]),
            (DESTINATION_OPTIONS, vec![0, 1, 4, 0, 0, 0, 0]),
        ];
    });
    echoes(
        &lab,
        "ten words of options",
        [0, 1, 0, 1],
        b"payload",
        |p| {
            p.options = vec![1; 40];
        },
    );
}

/// Each of the 65,536 sums that a request can have.
#[test]
fn pings_of_every_checksum() {
    let lab = Lab::new(&every());
    let mut sent = 0;
    for [client, vip, _] in FAMILIES {
        let (client, vip) = (ip(client), ip(vip));
        let ethernet = from_router(&[]);
        for word in (0..=u16::MAX).step_by(one_in()) {
            sent += 1;
            let [high, low] = word.to_be_bytes();
            let rest = [0x12, 0x34, high, low];
            let request = Icmp::EchoRequest.message(client, vip, rest, b"");
            let reply = Icmp::EchoReply.message(vip, client, rest, b"");
            let (_, bytes) = lab.run(CLIENTS, &ethernet.carrying(&request));
            assert_same("a reply", &bytes, &ethernet.swapped().carrying(&reply));
        }
    }
    assert_eq!(lab.reasons()["echo_answered"], sent);
}

/// An identifier and a sequence of 0, and a payload that makes the sum what it may be.
#[test]
fn pings_whose_sum_is_nothing() {
    let lab = Lab::new(&every());
    for [client, vip, _] in FAMILIES {
        let (client, vip) = (ip(client), ip(vip));
        for word in (0..=u16::MAX)
            .step_by(97 * one_in())
            .chain([0xf7ff, 0xffff, 0x7fff])
        {
            let payload = word.to_be_bytes();
            let request = Icmp::EchoRequest.message(client, vip, [0; 4], &payload);
            let reply = Icmp::EchoReply.message(vip, client, [0; 4], &payload);
            let sent = lab.send(CLIENTS, &from_router(&[]).carrying(&request));
            let mut expected = from_router(&[]).swapped().carrying(&reply);
            // 0 and 0xffff are one number, and a receiver takes either.
            let check = expected.len() - payload.len() - 6;
            let sum = |bytes: &[u8]| u16::from_be_bytes([bytes[check], bytes[check + 1]]);
            assert_eq!(sum(&sent.bytes) % 0xffff, sum(&expected) % 0xffff);
            expected[check..check + 2].copy_from_slice(&sent.bytes[check..check + 2]);
            assert_same("a reply", &sent.bytes, &expected);
        }
    }
}

#[test]
fn pings_with_padding() {
    let lab = Lab::new(&every());
    for [client, vip, _] in FAMILIES {
        let (client, vip) = (ip(client), ip(vip));
        let request = Icmp::EchoRequest.message(client, vip, [0, 1, 0, 1], b"odd");
        let reply = Icmp::EchoReply.message(vip, client, [0, 1, 0, 1], b"odd");
        let mut frame = from_router(&[]).carrying(&request);
        frame.extend([0xa5; 11]);
        let sent = lab.send(CLIENTS, &frame);
        let mut expected = from_router(&[]).swapped().carrying(&reply);
        expected.extend([0xa5; 11]);
        assert_same("a reply", &sent.bytes, &expected);
    }
}

#[test]
fn pings_of_a_vip_without_backends() {
    let mut lab = Lab::new(&every());
    let ping = |lab: &Lab, vip: &str| {
        let client = if ip(vip).is_ipv6() {
            FAMILIES[1][0]
        } else {
            FAMILIES[0][0]
        };
        let request = Icmp::EchoRequest.message(ip(client), ip(vip), [0, 1, 0, 1], b"payload");
        lab.send(CLIENTS, &from_router(&[]).carrying(&request))
            .verdict
    };
    for address in ["10.0.0.2", "fd00::2", "10.0.0.5"] {
        lab.hops.insert(ip(address), None);
    }
    lab.reload(&every());
    for (vip, verdict) in [
        ("203.0.113.11", Verdict::Drop("echo_dropped")),
        ("2001:db8:1::11", Verdict::Drop("echo_dropped")),
        ("203.0.113.14", Verdict::Drop("echo_dropped")),
        ("2001:db8:1::14", Verdict::Drop("echo_dropped")),
        ("203.0.113.12", ANSWERED),
        ("2001:db8:1::12", ANSWERED),
        ("203.0.113.15", ANSWERED),
    ] {
        assert_eq!(ping(&lab, vip), verdict, "{vip}");
    }
    lab.datapath_keys += "\nicmp_echo = false";
    lab.reload(&every());
    for vip in [
        "203.0.113.11",
        "2001:db8:1::11",
        "203.0.113.12",
        "2001:db8:1::12",
    ] {
        assert_eq!(ping(&lab, vip), Verdict::Pass("other_protocol"), "{vip}");
    }
}

/// What looks like a ping for a VIP and is none: other addresses, other types, fragments, the other
/// family's protocol, senders that are nobody.
#[test]
fn pings_that_are_not_answered() {
    let lab = Lab::new(&every());
    let send = |packet: &Packet| {
        lab.send(CLIENTS, &from_router(&[]).carrying(packet))
            .verdict
    };
    for [client, vip, host] in FAMILIES {
        let (client, vip, host) = (ip(client), ip(vip), ip(host));
        let ping = |from, to| Icmp::EchoRequest.message(from, to, [0, 1, 0, 1], &[7; 64]);
        assert_eq!(send(&ping(client, host)), NOT_OURS);
        let backend = ip(if vip.is_ipv6() { "fd00::2" } else { "10.0.0.2" });
        assert_eq!(send(&ping(client, backend)), NOT_OURS);
        assert_eq!(send(&ping(backend, host)), NOT_OURS);
        assert_eq!(send(&ping(backend, client)), NOT_OURS);

        let other = Verdict::Pass("other_protocol");
        let reply = Icmp::EchoReply.message(client, vip, [0, 1, 0, 1], &[7; 64]);
        assert_eq!(send(&reply), other);
        let foreign = if vip.is_ipv6() { 1 } else { 58 };
        for kind in [8, 128] {
            let packet = ping(client, vip).with(|p| {
                p.protocol = foreign;
                p.payload[0] = kind;
            });
            assert_eq!(send(&packet), other, "{packet:?}");
        }
        for piece in ping(client, vip).fragments(9, 0, &[16, 32]) {
            assert_eq!(send(&piece), other, "{piece:?}");
        }
        for length in 0..8 {
            let cut = ping(client, vip).with(|p| p.payload.truncate(length));
            assert_eq!(send(&cut), Verdict::Drop("bad_header"), "{length} bytes");
        }
        let nobody: &[&str] = if vip.is_ipv6() {
            &["::", "::1", "ff02::1", "ff0e::1"]
        } else {
            &[
                "0.0.0.0",
                "127.0.0.1",
                "224.0.0.1",
                "239.1.1.1",
                "255.255.255.255",
            ]
        };
        for from in nobody {
            let verdict = send(&ping(ip(from), vip));
            assert_eq!(verdict, Verdict::Drop("unanswerable"), "{from}");
        }
    }
}

/// A frame to a group must not be answered, and its destination is no sender.
#[test]
fn pings_to_a_group_of_stations() {
    let lab = Lab::new(&every());
    for [client, vip, _] in FAMILIES {
        let ping = Icmp::EchoRequest.message(ip(client), ip(vip), [0, 1, 0, 1], b"all");
        for to in [
            [0xff; 6],
            [0x01, 0x00, 0x5e, 0, 0, 1],
            [0x33, 0x33, 0, 0, 0, 1],
        ] {
            let ethernet = Ethernet {
                to: xdplb::config::MacAddress(to),
                ..from_router(&[])
            };
            let sent = lab.send(CLIENTS, &ethernet.carrying(&ping));
            assert_eq!(sent.verdict, Verdict::Drop("unanswerable"));
        }
    }
}

/// How much of the packet in question an error quotes: up to the checksum, and beyond it.
const QUOTES: [usize; 8] = [8, 9, 16, 18, 19, 20, 60, 548];

/// What the client's side was sent: the error's receiver takes it for its own.
fn quoted(path: &Path, ends: Ends, change: impl Fn(&mut Frame)) -> Frame {
    path.back_between(ends, PSH | ACK).with(|f| {
        f.payload = vec![0x5a; 700];
        f.ttl = 9;
        change(f);
    })
}

/// The error about a packet of the backend's, by what a side sees, of so many bytes beyond IP.
fn error_to_backend(
    path: &Path,
    ends: Ends,
    kind: Icmp,
    length: usize,
    change: impl Fn(&mut Frame),
) -> Packet {
    let frame = quoted(path, ends, change);
    let header = frame.l4() - frame.l3();
    let packet = frame.packet().bytes();
    let error = kind.about(ends.router, ends.server.ip(), &packet[..header + length]);
    error.with(|p| p.id = 0x7777)
}

/// Likewise, about a packet of the client's.
fn error_to_client(
    path: &Path,
    ends: Ends,
    kind: Icmp,
    length: usize,
    change: impl Fn(&mut Frame),
) -> Packet {
    let frame = path.between(ends, PSH | ACK).with(|f| {
        f.payload = vec![0xa5; 700];
        f.ttl = 9;
        change(f);
    });
    let header = frame.l4() - frame.l3();
    let packet = frame.packet().bytes();
    let error = kind.about(ends.router, ends.client.ip(), &packet[..header + length]);
    error.with(|p| p.id = 0x7777)
}

/// Every mode, protocol, kind of error and length of quote, both ways.
#[test]
fn errors_reach_who_sent_the_packet() {
    let lab = Lab::new(&every());
    for cell in cells::all() {
        for protocol in PROTOCOLS {
            let path = cell.establish(&lab, protocol, 1000);
            for kind in Icmp::ERRORS {
                for length in QUOTES {
                    let what = format!("{kind:?}, {length} bytes quoted");
                    path.to_backend(&lab, &what, |ends| {
                        error_to_backend(&path, ends, kind, length, |_| ())
                    });
                    if !cell.mode.is_direct() {
                        path.to_client(&lab, &what, |ends| {
                            error_to_client(&path, ends, kind, length, |_| ())
                        });
                    }
                }
            }
            path.to_backend(&lab, "afterwards", |ends| path.between(ends, ACK).packet());
        }
    }
}

/// What the error has around it, and what the quoted packet has.
#[test]
fn errors_in_every_dress() {
    let lab = Lab::new(&every());
    for cell in cells::all() {
        for protocol in PROTOCOLS {
            let path = cell.establish(&lab, protocol, 1000);
            let check = |what: &str,
                         dress: &Dress,
                         outer: &dyn Fn(&mut Packet),
                         inner: &dyn Fn(&mut Frame)| {
                for kind in [Icmp::TooBig(1400), Icmp::TimeExceeded] {
                    path.to_backend_in(&lab, what, dress, |ends| {
                        error_to_backend(&path, ends, kind, 64, inner).with(outer)
                    });
                    if !cell.mode.is_direct() {
                        path.to_client_in(&lab, what, dress, |ends| {
                            error_to_client(&path, ends, kind, 64, inner).with(outer)
                        });
                    }
                }
            };
            let plain = Dress::default();
            for tags in [vec![(DOT1Q, 0x2064)], vec![(DOT1AD, 100), (DOT1Q, 200)]] {
                let dress = Dress {
                    tags,
                    padding: vec![0xa5; 5],
                };
                check("tags and padding", &dress, &|_| (), &|_| ());
            }
            check("TOS", &plain, &|p| p.tos = 0xc0, &|f| f.tos = 0xb8);
            for ttl in [255, 2] {
                check("TTL", &plain, &|p| p.ttl = ttl, &|f| f.ttl = 1);
            }
            check("no DF", &plain, &|p| p.dont_fragment = false, &|f| {
                f.dont_fragment = false
            });
            if cell.ipv6 {
                let options = (DESTINATION_OPTIONS, vec![0, 1, 4, 0, 0, 0, 0]);
                let hops = (HOP_BY_HOP, vec![0, 1, 4, 0, 0, 0, 0]);
                let atomic = (FRAGMENT, vec![0, 0, 0, 0, 0, 0, 9]);
                check(
                    "extensions outside",
                    &plain,
                    &|p| p.extensions = vec![options.clone()],
                    &|_| (),
                );
                check("extensions inside", &plain, &|_| (), &|f| {
                    f.extensions = vec![hops.clone(), options.clone(), atomic.clone()];
                });
            } else {
                check(
                    "options outside",
                    &plain,
                    &|p| p.options = vec![1; 8],
                    &|_| (),
                );
                check("options inside", &plain, &|_| (), &|f| {
                    f.options = vec![1; 40]
                });
                if protocol == Protocol::Udp {
                    check("no UDP checksum", &plain, &|_| (), &|f| f.checksum = false);
                }
            }
        }
    }
}

/// Sums around 0 and 0xffff, of the message and of what it quotes.
#[test]
fn errors_of_many_checksums() {
    let lab = Lab::new(&every());
    for cell in cells::all() {
        for protocol in PROTOCOLS {
            let path = cell.establish(&lab, protocol, 1000);
            for word in (0..=u16::MAX)
                .step_by(509 * one_in())
                .chain(0..4)
                .chain(0xfffc..=0xffff)
            {
                let inner = |f: &mut Frame| {
                    f.payload = word.to_be_bytes().to_vec();
                    f.payload.resize(40, 0);
                };
                path.to_backend(&lab, "a checksum", |ends| {
                    error_to_backend(&path, ends, Icmp::HostUnreachable, 28, inner)
                });
                if !cell.mode.is_direct() {
                    path.to_client(&lab, "a checksum", |ends| {
                        error_to_client(&path, ends, Icmp::HostUnreachable, 28, inner)
                    });
                }
            }
        }
    }
}

/// An error about the first fragment of a packet is as good as one about a whole one.
#[test]
fn errors_about_fragments() {
    let lab = Lab::new(&every());
    for cell in cells::all() {
        for protocol in PROTOCOLS {
            let path = cell.establish(&lab, protocol, 1000);
            let about = |ends: Ends, nth: usize| {
                let packet = quoted(&path, ends, |_| ()).packet();
                let piece = packet.fragments(5, 0, &[400])[nth].bytes();
                Icmp::TooBig(1300).about(ends.router, ends.server.ip(), &piece[..100])
            };
            path.to_backend(&lab, "about a first fragment", |ends| about(ends, 0));
            let later = path.sent(&Dress::default(), |ends| about(ends, 1));
            assert_eq!(lab.send(CLIENTS, &later).verdict, UNRELATED, "{cell:?}");
        }
    }
}

/// A direct connection that is not in the tables: where its packets would go, there goes the error.
#[test]
fn errors_of_flows_that_only_the_hash_knows() {
    let mut services = every();
    for (name, number) in [("l2", 4), ("ipip6", 5), ("gue4", 6)] {
        let end = services
            .find(&format!("name = \"{name}\""))
            .expect("a service");
        let end = services[end..]
            .find("[[service]]\n")
            .map_or(services.len(), |at| end + at);
        let family = if name == "gue4" { "10.0.0." } else { "fd00::" };
        services.insert_str(
            end,
            &(20..24)
                .map(|n| format!("[[service.backend]]\naddress = \"{family}{number}{n}\"\n"))
                .collect::<String>(),
        );
    }
    services = services
        .replace("10.0.0.620", "10.0.0.120")
        .replace("10.0.0.621", "10.0.0.121");
    services = services
        .replace("10.0.0.622", "10.0.0.122")
        .replace("10.0.0.623", "10.0.0.123");
    let (lab, other) = (Lab::new(&services), Lab::new(&services));
    let mut met = std::collections::BTreeSet::new();
    for cell in cells::direct() {
        for protocol in PROTOCOLS {
            for port in 1000..1030 {
                let path = cell.path(protocol, cell.client_at(port));
                let error = path.sent(&Dress::default(), |ends| {
                    error_to_backend(&path, ends, Icmp::TooBig(1400), 8, |_| ())
                });
                let sent = lab.send(CLIENTS, &error);
                assert_eq!(sent.verdict, Verdict::Redirect, "{cell:?}");
                // Another instance has the connection: same next hop, outer addresses and ports.
                let opened = other.send(CLIENTS, &path.request(SYN).bytes());
                assert_eq!(sent.bytes[..12], opened.bytes[..12], "{cell:?}, {port}");
                if let Some(tunnel) = path.tunnel() {
                    let length = match (cell.outer_ipv6, tunnel.ports) {
                        (false, _) => 26..34 + 4 * usize::from(tunnel.ports.is_some()),
                        (true, _) => 22..54 + 4 * usize::from(tunnel.ports.is_some()),
                    };
                    assert_eq!(sent.bytes[length.clone()], opened.bytes[length], "{cell:?}");
                }
                met.insert(sent.bytes[..6].to_vec());
            }
        }
    }
    assert_eq!(lab.entries(), [], "an error made an entry");
    assert!(met.len() > 10, "only {} backends met", met.len());
}

#[test]
fn errors_about_nothing_of_ours() {
    let lab = Lab::new(&every());
    for cell in cells::all() {
        for protocol in PROTOCOLS {
            let path = cell.establish(&lab, protocol, 1000);
            let client = cell.client_at(1999);
            let stranger = Path {
                client,
                seen: client,
                ..path.clone()
            };
            let send = |packet: &Packet| {
                let frame = from_router(&[]).carrying(packet);
                lab.send(CLIENTS, &frame).verdict
            };
            let outside = path.outside();
            let error = |path: &Path| {
                error_to_backend(path, path.outside(), Icmp::TimeExceeded, 64, |_| ())
            };
            // No entry, and none is needed where the backend answers directly.
            let expected = if cell.mode.is_direct() {
                Verdict::Redirect
            } else {
                UNRELATED
            };
            assert_eq!(send(&error(&stranger)), expected, "{cell:?}");
            // Of a port that no service has.
            let closed = Ends {
                server: SocketAddr::new(outside.server.ip(), 81),
                ..outside
            };
            let about =
                |ends, length| error_to_backend(&path, ends, Icmp::TimeExceeded, length, |_| ());
            assert_eq!(send(&about(closed, 64)), UNRELATED, "{cell:?}");
            // Too short to have the ports' eight bytes.
            for length in 0..8 {
                assert_eq!(send(&about(outside, length)), UNRELATED, "{length} bytes");
            }
            // About a packet that its receiver has not sent.
            let mut elsewhere = error(&path);
            elsewhere.destination = ip(if cell.ipv6 {
                "2001:db8:1::12"
            } else {
                "203.0.113.12"
            });
            if cell.mode != Mode::FullNat {
                assert_eq!(send(&elsewhere), UNRELATED, "{cell:?}");
            }
            // Quoting a ping, which has no ports.
            let ping =
                Icmp::EchoReply.message(outside.server.ip(), outside.client.ip(), [0; 4], b"ping");
            let about_ping =
                Icmp::TimeExceeded.about(outside.router, outside.server.ip(), &ping.bytes());
            assert_eq!(send(&about_ping), UNRELATED);
            // For this host or through it.
            let host: IpAddr = ip(if cell.ipv6 { "fd00::1" } else { "10.0.0.1" });
            let own = Ends {
                server: SocketAddr::new(host, 22),
                ..outside
            };
            assert_eq!(send(&about(own, 64)), NOT_OURS);
        }
    }
}

/// An error is not answered, however it fares.
#[test]
fn errors_beget_no_errors() {
    let mut lab = Lab::new(&every());
    let paths: Vec<(Cell, Path)> = cells::all()
        .map(|cell| (cell, cell.establish(&lab, Protocol::Udp, 1000)))
        .collect();
    for (cell, path) in &paths {
        for ttl in [0, 1] {
            let error = path.sent(&Dress::default(), |ends| {
                error_to_backend(path, ends, Icmp::TooBig(1400), 64, |_| ()).with(|p| p.ttl = ttl)
            });
            let verdict = lab.send(CLIENTS, &error).verdict;
            assert_eq!(verdict, Verdict::Drop("unanswerable"), "{cell:?}");
        }
    }
    lab.set_mtu(600);
    for (cell, path) in &paths {
        let error = path.sent(&Dress::default(), |ends| {
            error_to_backend(path, ends, Icmp::TooBig(1400), 548, |_| ())
        });
        let verdict = lab.send(CLIENTS, &error).verdict;
        let fits = error.len() - 14 + cell.overhead() <= 600;
        let expected = if fits {
            Verdict::Redirect
        } else {
            Verdict::Drop("unanswerable")
        };
        assert_eq!(verdict, expected, "{cell:?}");
    }
    // Without a connection that is refused, nobody is told.
    lab.datapath_keys += "\nunknown_port = \"reject\"";
    lab.reload(&every());
    for (cell, path) in &paths {
        let closed = |ends: Ends| Ends {
            server: SocketAddr::new(ends.server.ip(), 81),
            ..ends
        };
        let error = path.sent(&Dress::default(), |ends| {
            error_to_backend(path, closed(ends), Icmp::PortUnreachable, 64, |_| ())
        });
        assert_eq!(lab.send(CLIENTS, &error).verdict, UNRELATED, "{cell:?}");
    }
}

/// A backend without the VIP sends the error back to us, and we do not send it again.
#[test]
fn errors_do_not_go_round() {
    let lab = Lab::new(&every());
    for cell in cells::direct() {
        let mac = backend_mac(cell.backend().ip());
        let tracked = cell.establish(&lab, Protocol::Udp, 1000);
        let client = cell.client_at(1001);
        let hashed = Path {
            client,
            seen: client,
            ..tracked.clone()
        };
        for path in [tracked, hashed] {
            let error = error_to_backend(&path, path.outside(), Icmp::TooBig(1400), 64, |_| ());
            let back = Ethernet {
                to: own_mac(BACKENDS),
                from: mac,
                tags: vec![],
            };
            let sent = lab.send(BACKENDS, &back.carrying(&error));
            assert_eq!(sent.verdict, Verdict::Drop("loop"), "{cell:?}");
        }
    }
}

/// The backend of a connection is gone: there is nobody to tell.
#[test]
fn errors_for_a_backend_that_is_down() {
    let mut lab = Lab::new(&every());
    let paths: Vec<Path> = cells::all()
        .map(|cell| cell.establish(&lab, Protocol::Udp, 1000))
        .collect();
    for cell in cells::all() {
        lab.hops.insert(cell.backend().ip(), None);
    }
    lab.reload(&every());
    for path in paths {
        let error = path.sent(&Dress::default(), |ends| {
            error_to_backend(&path, ends, Icmp::TooBig(1400), 64, |_| ())
        });
        let verdict = lab.send(CLIENTS, &error).verdict;
        assert!(
            matches!(verdict, Verdict::Drop(_) | UNRELATED),
            "{verdict:?}, {path:?}"
        );
    }
}
