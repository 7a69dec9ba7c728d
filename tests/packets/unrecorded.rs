//! New flows that get no entry, since there are too many at once: each of their packets goes where it would
//! with one, and comes back.

use std::time::{Duration, Instant};

use nix::sched::{sched_setaffinity, CpuSet};
use nix::unistd::Pid;
use xdplb::datapath::abi::{self, Flow};

use crate::harness::cells::{self, every, Cell, Dress, Mode, Path, PROTOCOLS};
use crate::harness::dialog::ends_of;
use crate::harness::frame::{Protocol, ACK, DOT1AD, DOT1Q, FIN, PSH, RST, SYN};
use crate::harness::{pause, Lab, Verdict, BACKENDS, CLIENTS};

const FLOODED: Verdict = Verdict::Drop("flooded");

/// No new flow gets an entry.
const NONE: u32 = 0;
/// Each does.
const ALL: u32 = u32::MAX;

/// Packets that made no entry, over all backends.
fn unrecorded(lab: &Lab) -> u64 {
    let all = (0..64).flat_map(|id| lab.per_cpu::<abi::traffic>("traffic", id));
    all.map(|traffic| traffic.unrecorded).sum()
}

fn flow(path: &Path) -> Flow {
    Flow {
        source: (path.client.ip(), path.client.port()),
        destination: (path.cell.vip().ip(), path.port),
        protocol: path.protocol.number().0,
    }
}

/// Requests and replies in whole, as those of a connection.
#[track_caller]
fn talk(lab: &Lab, path: &Path) {
    for flags in [ACK, PSH | ACK] {
        path.to_backend(lab, "a request", |ends| path.between(ends, flags).packet());
        if !path.cell.mode.is_direct() {
            for _ in 0..2 {
                path.to_client(lab, "a reply", |ends| {
                    path.back_between(ends, flags).packet()
                });
            }
        }
    }
}

/// Every mode, family and protocol; whatever a flow begins with.
#[test]
fn go_and_come_back() {
    let mut lab = Lab::new(&every());
    lab.limit_new_flows(NONE);
    for cell in cells::all() {
        for protocol in PROTOCOLS {
            for (port, flags) in (1000..).zip([SYN, ACK, PSH | ACK, SYN | ACK, FIN | ACK]) {
                let dress = match port % 3 {
                    0 => Dress::default(),
                    1 => Dress {
                        tags: vec![(DOT1Q, 0x2064)],
                        padding: vec![0; 3],
                    },
                    _ => Dress {
                        tags: vec![(DOT1AD, 100), (DOT1Q, 200)],
                        padding: vec![],
                    },
                };
                let mut path = cell.path(protocol, cell.client_at(port));
                let before = unrecorded(&lab);
                let verdict = path.knock_with(&lab, &dress, flags);
                assert_eq!(verdict, Verdict::Redirect, "{path:?}");
                if cell.mode == Mode::Nat {
                    assert_eq!(path.seen, path.client, "{path:?}");
                }
                assert_eq!(unrecorded(&lab), before + 1, "{path:?}");
                if !cell.mode.is_direct() {
                    path.to_client(&lab, "the first reply", |ends| {
                        path.back_between(ends, SYN | ACK).packet()
                    });
                    path.to_client_in(&lab, "another", &dress, |ends| {
                        path.back_between(ends, ACK)
                            .with(|f| f.payload = vec![9; 333])
                            .packet()
                    });
                }
                talk(&lab, &path);
                assert_eq!(unrecorded(&lab), before + 3, "{path:?}");
            }
        }
    }
    assert_eq!(lab.entries(), []);
    assert_eq!(lab.claims(), 0);
}

/// Backends and ports are those that an entry would have had, and has once there is room for one.
#[test]
fn as_if_there_were_an_entry() {
    let many: String = ["nat", "full-nat", "l2", "ipip"]
        .iter()
        .zip(11..)
        .map(|(forward, number)| {
            let port = if forward.contains("nat") {
                "port = 8080\n"
            } else {
                ""
            };
            let backends: String = (2..9)
                .flat_map(|n| [format!("10.0.0.{n}"), format!("fd00::{n}")])
                .filter(|address| *forward != "ipip" || address.contains('.'))
                .map(|address| format!("[[service.backend]]\naddress = \"{address}\"\n{port}"))
                .collect();
            format!(
                "[[service]]\nname = \"{forward}\"\n\
                 vip = [\"203.0.113.{number}\", \"2001:db8:1::{number}\"]\n\
                 protocol = [\"tcp\", \"udp\"]\nport = 80\nforward = \"{forward}\"\n{backends}"
            )
        })
        .collect();
    let mut lab = Lab::new(&many);
    let mut flooded = 0;
    for (number, mode) in (11..).zip([Mode::Nat, Mode::FullNat, Mode::L2, Mode::Ipip]) {
        for ipv6 in [false, true] {
            let vip = crate::harness::at(&if ipv6 {
                format!("[2001:db8:1::{number}]:80")
            } else {
                format!("203.0.113.{number}:80")
            });
            let cell = Cell {
                mode,
                ipv6,
                outer_ipv6: ipv6 && mode != Mode::Ipip,
            };
            for protocol in PROTOCOLS {
                for port in 5000..5060 {
                    let path = cell.path(protocol, cell.client_at(port));
                    let frame = path.request(SYN).with(|f| f.destination = vip).bytes();
                    lab.limit_new_flows(NONE);
                    let without = lab.send(CLIENTS, &frame);
                    let again = lab.send(CLIENTS, &frame);
                    lab.limit_new_flows(ALL);
                    let with = lab.send(CLIENTS, &frame);
                    let found = lab.send(CLIENTS, &frame);
                    // One of those before it has the port that it would begin with.
                    if mode == Mode::FullNat && without.verdict == FLOODED {
                        flooded += 1;
                        continue;
                    }
                    assert_eq!(without.verdict, Verdict::Redirect, "{path:?}");
                    // A SYN claims another port of ours than one without a claim has.
                    let (same, other) = if mode == Mode::FullNat && protocol == Protocol::Tcp {
                        (vec![(&again, &without), (&found, &with)], true)
                    } else {
                        let all = [&again, &with, &found];
                        (all.map(|sent| (sent, &without)).to_vec(), false)
                    };
                    for (sent, before) in same {
                        assert_eq!(sent.verdict, without.verdict, "{path:?}");
                        assert!(sent.bytes == before.bytes, "{path:?} goes elsewhere");
                    }
                    if other {
                        let (seen, backend) = ends_of(&without.bytes);
                        let (claimed, chosen) = ends_of(&with.bytes);
                        assert_eq!(backend, chosen, "{path:?}");
                        assert_ne!(seen, claimed, "{path:?}");
                    }
                }
            }
        }
    }
    assert!(flooded < 20, "{flooded} of 240 flows without a port");
}

/// The second packet finds room: from there on it is a connection like others.
#[test]
fn until_there_is_room() {
    let mut lab = Lab::new(&every());
    for cell in cells::all() {
        for protocol in PROTOCOLS {
            lab.limit_new_flows(NONE);
            let mut path = cell.path(protocol, cell.client_at(1000));
            assert_eq!(path.knock(&lab, &Dress::default()), Verdict::Redirect);
            if !cell.mode.is_direct() {
                path.to_client(&lab, "SYN|ACK", |ends| {
                    path.back_between(ends, SYN | ACK).packet()
                });
            }
            assert_eq!(lab.entry(&flow(&path)), None);
            lab.limit_new_flows(ALL);
            talk(&lab, &path);
            let entry = lab.entry(&flow(&path)).expect("an entry");
            assert_eq!(entry.stage, "proven", "{path:?}");
            let state = match protocol {
                Protocol::Tcp => "established",
                Protocol::Udp => "udp",
            };
            assert_eq!(entry.state, state, "{path:?}");
            // What comes now does not matter to it.
            lab.limit_new_flows(NONE);
            talk(&lab, &path);
        }
    }
}

/// Each kind of flow has so many entries a second; no kind takes another's.
#[test]
fn each_kind_has_its_own() {
    let mut cpu = CpuSet::new();
    cpu.set(0).expect("a first CPU");
    sched_setaffinity(Pid::from_raw(0), &cpu).expect("to stay on one CPU");
    let mut lab = Lab::new(&every());
    let kinds = [
        (Protocol::Tcp, SYN, false),
        (Protocol::Tcp, ACK, false),
        (Protocol::Udp, 0, false),
        (Protocol::Tcp, SYN, true),
    ];
    // All that a new flow sends.
    let frames_of = |path: &Path, flags: u8, in_fragments: bool| {
        let whole = path.request(flags);
        if !in_fragments {
            return vec![whole.bytes()];
        }
        let id = u32::from(path.client.port());
        let piece = |n: usize| {
            path.sent(&Dress::default(), |ends| {
                let frame = path.between(ends, flags).with(|f| f.payload = vec![7; 200]);
                frame.packet().fragments(id, 0, &[64, 128])[n].clone()
            })
        };
        vec![piece(0), piece(1), piece(2)]
    };
    // In each order, since what matters is who comes first.
    for (attempt, order) in [[0, 1, 2, 3], [3, 2, 1, 0], [1, 2, 0, 3], [3, 0, 2, 1]]
        .iter()
        .enumerate()
    {
        for (number, cell) in (0..).zip(cells::all()) {
            // Another port each time: connections of one client port are in one set, however many there are.
            let first: u16 = 1000 + 12_000 * attempt as u16 + 6 * number;
            let frames: Vec<Vec<u8>> = order
                .iter()
                .flat_map(|&kind: &usize| {
                    let (protocol, flags, in_fragments) = kinds[kind];
                    (0..6_u16).flat_map(move |n| {
                        let port = first + 3000 * kind as u16 + n;
                        let path = cell.path(protocol, cell.client_at(port));
                        frames_of(&path, flags, in_fragments)
                    })
                })
                .collect();
            let entries = lab.entries().len();
            lab.limit_new_flows(4);
            let start = Instant::now();
            for frame in &frames {
                lab.run(CLIENTS, frame);
            }
            // A second later there are four more.
            if start.elapsed() > Duration::from_millis(900) {
                continue;
            }
            let each = if cell.mode.is_direct() { 1 } else { 2 };
            assert_eq!(
                lab.entries().len(),
                entries + kinds.len() * 4 * each,
                "{order:?}, {cell:?}"
            );
        }
    }
    // Four more.
    let cell = cells::main_ways().next().expect("a cell");
    lab.limit_new_flows(4);
    let send = |lab: &Lab, ports: std::ops::Range<u16>| {
        for port in ports {
            let path = cell.path(Protocol::Tcp, cell.client_at(port));
            lab.send(CLIENTS, &path.request(SYN).bytes());
        }
    };
    let entries = lab.entries().len();
    send(&lab, 20_000..20_008);
    pause(Duration::from_secs(1));
    send(&lab, 20_010..20_018);
    let made = lab.entries().len() - entries;
    assert!((16..=24).contains(&made), "{made} entries in two seconds");
}

/// Who is not let in takes nobody's room, nor does a SYN that is sent again, nor what is not for a VIP.
#[test]
fn room_is_for_those_who_are_let_in() {
    let mut lab = Lab::new(&every());
    lab.reload(&format!(
        "{}\n[[firewall.rule]]\naction = \"deny\"\nsource_port = 9\n\
         [[dos]]\nname = \"icmp\"\nprotocol = \"icmp\"\nlimit = 1\naction = \"block\"\n",
        every()
    ));
    for cell in cells::all() {
        for protocol in PROTOCOLS {
            for repeated in [false, protocol == Protocol::Tcp] {
                lab.limit_new_flows(ALL);
                let port = if repeated { 2000 } else { 1000 };
                let half_open = cell.open(&lab, protocol, port);
                let denied = cell.path(protocol, cell.client_at(9)).request(SYN);
                let mut closed = cell.path(protocol, cell.client_at(port));
                closed.port = 81;
                let own = denied.with(|f| {
                    f.source = std::net::SocketAddr::new(cell.backend().ip(), 5000);
                    f.destination.set_ip(crate::harness::ip(if cell.outer_ipv6 {
                        "fd00::1"
                    } else {
                        "10.0.0.1"
                    }));
                });
                let attempt = |base: u16| {
                    lab.limit_new_flows(1);
                    let start = Instant::now();
                    for _ in 0..10 {
                        let verdict = lab.send(CLIENTS, &denied.bytes()).verdict;
                        assert_eq!(verdict, Verdict::Drop("firewall"));
                        let verdict = lab.send(CLIENTS, &closed.request(SYN).bytes()).verdict;
                        assert_eq!(verdict, Verdict::Pass("unknown_port_passed"));
                        let verdict = lab.send(BACKENDS, &own.bytes()).verdict;
                        assert_eq!(verdict, Verdict::Pass("not_ours"));
                        if repeated {
                            half_open.to_backend(&lab, "again", |ends| {
                                half_open.between(ends, SYN).packet()
                            });
                        }
                    }
                    let path = cell.open(&lab, protocol, base);
                    let recorded = lab.entry(&flow(&path)).is_some();
                    // A second later there is room for another.
                    (start.elapsed() < Duration::from_millis(900)).then_some(recorded)
                };
                let recorded = (port + 1..port + 20).find_map(attempt);
                assert_eq!(
                    recorded,
                    Some(true),
                    "again: {repeated}, {cell:?}, {protocol:?}"
                );
            }
        }
    }
}

/// Tens of thousands of others do not touch a connection, half-open or not.
#[test]
fn connections_go_on() {
    let mut lab = Lab::new(&every());
    let paths: Vec<Path> = cells::all()
        .flat_map(|cell| PROTOCOLS.map(|protocol| (cell, protocol)))
        .map(|(cell, protocol)| cell.establish(&lab, protocol, 1000))
        .collect();
    let half_open: Vec<Path> = cells::all()
        .map(|cell| cell.open(&lab, Protocol::Tcp, 1001))
        .collect();
    lab.limit_new_flows(NONE);
    let (entries, claims) = (lab.entries(), lab.claims());
    for port in 2000..6000 {
        for cell in cells::all() {
            let path = cell.path(Protocol::Tcp, cell.client_at(port));
            lab.run(CLIENTS, &path.request(SYN).bytes());
        }
        for path in paths.iter().filter(|_| port % 500 == 0) {
            talk(&lab, path);
        }
    }
    assert_eq!(lab.entries().len(), entries.len());
    assert_eq!(lab.claims(), claims);
    for path in &paths {
        talk(&lab, path);
    }
    for path in &half_open {
        talk(&lab, path);
        let entry = lab.entry(&flow(path)).expect("an entry");
        assert_eq!(entry.state, "established", "{path:?}");
    }
}

fn full_nat() -> impl Iterator<Item = Cell> {
    cells::all().filter(|cell| cell.mode == Mode::FullNat)
}

/// The port of a connection is nobody else's: who would need it is dropped, and gets in once there is room.
#[test]
fn ports_that_connections_hold() {
    let mut lab = Lab::new(&every());
    lab.settings.nat_ports = (20000, 20000);
    lab.apply();
    for cell in full_nat() {
        for protocol in PROTOCOLS {
            lab.limit_new_flows(ALL);
            let holder = cell.establish(&lab, protocol, 1000);
            assert_eq!(holder.seen.port(), 20000);
            lab.limit_new_flows(NONE);
            let before = unrecorded(&lab);
            for port in 1001..1010 {
                let mut path = cell.path(protocol, cell.client_at(port));
                assert_eq!(path.knock(&lab, &Dress::default()), FLOODED, "{path:?}");
            }
            assert_eq!(unrecorded(&lab), before);
            talk(&lab, &holder);
        }
    }
    // A spare one beside it: flows without an entry share it, until a connection claims it.
    lab.settings.nat_ports = (20000, 20001);
    lab.apply();
    for cell in full_nat() {
        for protocol in PROTOCOLS {
            lab.limit_new_flows(NONE);
            for port in 2000..2100 {
                let mut path = cell.path(protocol, cell.client_at(port));
                assert_eq!(path.knock(&lab, &Dress::default()), Verdict::Redirect);
                assert_eq!(path.seen.port(), 20001, "{path:?}");
                talk(&lab, &path);
            }
            lab.limit_new_flows(ALL);
            let mut holder = cell.path(protocol, cell.client_at(2100));
            assert_eq!(
                holder.knock_with(&lab, &Dress::default(), ACK),
                Verdict::Redirect
            );
            assert_eq!(holder.seen.port(), 20001, "{holder:?}");
            talk(&lab, &holder);
            lab.limit_new_flows(NONE);
            for port in 2101..2110 {
                let mut path = cell.path(protocol, cell.client_at(port));
                assert_eq!(path.knock(&lab, &Dress::default()), FLOODED, "{path:?}");
            }
            talk(&lab, &holder);
        }
    }
}

/// A SYN that is sent again while there is no room goes where the first one went.
#[test]
fn retransmissions() {
    let mut lab = Lab::new(&every());
    for cell in cells::all() {
        lab.limit_new_flows(ALL);
        let path = cell.open(&lab, Protocol::Tcp, 1000);
        let entries = lab.entries().len();
        lab.limit_new_flows(NONE);
        for _ in 0..3 {
            path.to_backend(&lab, "again", |ends| path.between(ends, SYN).packet());
        }
        if !cell.mode.is_direct() {
            path.to_client(&lab, "SYN|ACK", |ends| {
                path.back_between(ends, SYN | ACK).packet()
            });
        }
        talk(&lab, &path);
        let entry = lab.entry(&flow(&path)).expect("an entry");
        assert_eq!(entry.state, "established", "{path:?}");
        assert_eq!(lab.entries().len(), entries);
    }
}

/// A connection had to make room: it is no stranger to its own port.
#[test]
fn a_connections_own_port() {
    let mut lab = Lab::new(&every());
    for cell in full_nat() {
        for protocol in PROTOCOLS {
            lab.limit_new_flows(ALL);
            let path = cell.establish(&lab, protocol, 1000);
            lab.evict(&flow(&path));
            lab.limit_new_flows(NONE);
            talk(&lab, &path);
            lab.limit_new_flows(ALL);
            talk(&lab, &path);
        }
    }
}

/// Two VIPs, one backend, and a client that uses one port for both, as it may. Without an entry the second
/// flow does not get its own port, and waits until there is room for one. The first does not notice.
#[test]
fn one_client_port_for_two_vips() {
    let both = "[[service]]\nname = \"both\"\nvip = [\"203.0.113.11\", \"203.0.113.12\", \
                \"2001:db8:1::11\", \"2001:db8:1::12\"]\nprotocol = [\"tcp\", \"udp\"]\nport = 80\n\
                forward = \"nat\"\n\
                [[service.backend]]\naddress = \"10.0.0.2\"\nport = 8080\n\
                [[service.backend]]\naddress = \"fd00::2\"\nport = 8080\n";
    let mut lab = Lab::new(both);
    for cell in cells::all().filter(|cell| cell.mode == Mode::Nat) {
        for protocol in PROTOCOLS {
            lab.limit_new_flows(ALL);
            let first = cell.establish(&lab, protocol, 1000);
            // The other VIP, as a cell has it whose backend is another.
            let other_vip = Cell {
                mode: Mode::FullNat,
                ..cell
            }
            .vip();
            let request = first.request(SYN).with(|f| f.destination = other_vip);
            lab.limit_new_flows(NONE);
            let sent = lab.send(CLIENTS, &request.bytes());
            assert_eq!(sent.verdict, Verdict::Redirect, "{first:?}");
            talk(&lab, &first);
            lab.limit_new_flows(ALL);
            let sent = lab.send(CLIENTS, &request.bytes());
            assert_eq!(sent.verdict, Verdict::Redirect, "{first:?}");
            let (seen, backend) = ends_of(&sent.bytes);
            assert_eq!(backend, cell.backend());
            assert_ne!(seen, first.seen, "{first:?}");
            let second = Path {
                seen,
                ..first.clone()
            };
            let reply = second.sent_back(&Dress::default(), |ends| {
                second.back_between(ends, SYN | ACK).packet()
            });
            let sent = lab.send(BACKENDS, &reply);
            assert_eq!(sent.verdict, Verdict::Redirect, "{first:?}");
            assert_eq!(ends_of(&sent.bytes), (other_vip, first.client));
            talk(&lab, &first);
        }
    }
}

/// A reset opens nothing, with room or without.
#[test]
fn resets() {
    let mut lab = Lab::new(&every());
    for limit in [NONE, ALL] {
        lab.limit_new_flows(limit);
        for cell in cells::all() {
            for flags in [RST, RST | ACK] {
                let mut path = cell.path(Protocol::Tcp, cell.client_at(1000));
                let before = unrecorded(&lab);
                let verdict = path.knock_with(&lab, &Dress::default(), flags);
                assert_eq!(verdict, Verdict::Redirect, "{path:?}");
                assert_eq!(unrecorded(&lab), before + 1);
                if !cell.mode.is_direct() {
                    // Nobody answers a reset.
                    let reply = path.sent_back(&Dress::default(), |ends| {
                        path.back_between(ends, ACK).packet()
                    });
                    let verdict = lab.send(BACKENDS, &reply).verdict;
                    assert_eq!(verdict, Verdict::Pass("not_ours"), "{path:?}");
                }
            }
        }
    }
    assert_eq!(lab.entries(), []);
}

/// A flow before this one has left a half-open connection at the backend, under the same port of ours: the
/// backend answers the SYN with an ACK, and the client's reset has to reach it, or the next SYN comes to
/// nothing as well (RFC 9293, section 3.5.2).
#[test]
fn a_reset_goes_where_its_syn_went() {
    let mut lab = Lab::new(&every());
    lab.limit_new_flows(NONE);
    for cell in cells::translated() {
        for port in 1000..1020 {
            let mut path = cell.path(Protocol::Tcp, cell.client_at(port));
            assert_eq!(path.knock(&lab, &Dress::default()), Verdict::Redirect);
            path.to_client(&lab, "an ACK", |ends| path.back_between(ends, ACK).packet());
            path.to_backend(&lab, "the reset", |ends| path.between(ends, RST).packet());
        }
    }
}

/// Fragments of flows without an entry, both ways.
#[test]
fn fragments() {
    let mut lab = Lab::new(&every());
    lab.limit_new_flows(NONE);
    for cell in cells::all() {
        for protocol in PROTOCOLS {
            let mut path = cell.path(protocol, cell.client_at(1000));
            assert_eq!(path.knock(&lab, &Dress::default()), Verdict::Redirect);
            let id = u32::from(protocol.number().0);
            for n in [0, 1, 2] {
                path.to_backend(&lab, "a fragment", |ends| {
                    let frame = path.between(ends, ACK).with(|f| f.payload = vec![5; 200]);
                    frame.packet().fragments(id, 0, &[64, 128])[n].clone()
                });
                if !cell.mode.is_direct() {
                    path.to_client(&lab, "a fragment", |ends| {
                        let frame = path
                            .back_between(ends, ACK)
                            .with(|f| f.payload = vec![6; 200]);
                        frame.packet().fragments(id, 0, &[64, 128])[n].clone()
                    });
                }
            }
        }
    }
    assert_eq!(lab.entries(), []);
}

/// What nobody has sent a packet for, and what is long ago, is no reply.
#[test]
fn replies_of_no_flow() {
    let mut lab = Lab::new(&every());
    lab.limit_new_flows(NONE);
    for cell in cells::translated() {
        for protocol in PROTOCOLS {
            // No two protocols share a port: a reply of the one is none of the other.
            let port = 1000 + u16::from(protocol.number().0);
            let mut path = cell.path(protocol, cell.client_at(port));
            assert_eq!(path.knock(&lab, &Dress::default()), Verdict::Redirect);
            let reply = path.back_between(path.inside(), ACK);
            let ethernet = crate::harness::ip::Ethernet {
                to: crate::harness::own_mac(BACKENDS),
                from: crate::harness::backend_mac(cell.backend().ip()),
                tags: vec![],
            };
            for frame in [
                reply.with(|f| f.source.set_port(8081)),
                reply.with(|f| f.destination.set_port(1)),
                reply.with(|f| {
                    f.protocol = match protocol {
                        Protocol::Tcp => Protocol::Udp,
                        Protocol::Udp => Protocol::Tcp,
                    }
                }),
            ] {
                let verdict = lab
                    .send(BACKENDS, &ethernet.carrying(&frame.packet()))
                    .verdict;
                assert_eq!(verdict, Verdict::Pass("not_ours"), "{frame:?}");
            }
            path.to_client(&lab, "a reply", |ends| {
                path.back_between(ends, ACK).packet()
            });
        }
    }
    lab.set_timeouts(|timeouts| {
        timeouts.tcp_opening = Duration::from_millis(40);
        timeouts.udp = Duration::from_millis(40);
    });
    lab.limit_new_flows(NONE);
    let paths: Vec<Path> = cells::translated()
        .flat_map(|cell| PROTOCOLS.map(|protocol| (cell, protocol)))
        .map(|(cell, protocol)| {
            let mut path = cell.path(protocol, cell.client_at(1000));
            assert_eq!(path.knock(&lab, &Dress::default()), Verdict::Redirect);
            path
        })
        .collect();
    pause(Duration::from_millis(40));
    for path in &paths {
        let reply = path.sent_back(&Dress::default(), |ends| {
            path.back_between(ends, ACK).packet()
        });
        let verdict = lab.send(BACKENDS, &reply).verdict;
        assert_eq!(verdict, Verdict::Pass("not_ours"), "{path:?}");
    }
}

/// Without an entry, every packet is judged and counted by itself.
#[test]
fn behind_the_firewall_and_within_limits() {
    let mut lab = Lab::new(&every());
    lab.reload(&format!(
        "{}\n[[firewall.rule]]\nname = \"deny\"\naction = \"deny\"\nsource_port = 9\n\
         [[firewall.rule]]\nname = \"web\"\naction = \"allow\"\nport = 80\n",
        every()
    ));
    lab.limit_new_flows(NONE);
    let mut sent = 0;
    for cell in cells::all() {
        for protocol in PROTOCOLS {
            let mut denied = cell.path(protocol, cell.client_at(9));
            let verdict = denied.knock(&lab, &Dress::default());
            assert_eq!(verdict, Verdict::Drop("firewall"), "{denied:?}");
            let mut path = cell.path(protocol, cell.client_at(1000));
            assert_eq!(path.knock(&lab, &Dress::default()), Verdict::Redirect);
            talk(&lab, &path);
            sent += 3;
            let hits = lab.hits(lab.rule_id("web"));
            assert_eq!(hits.packets, sent, "{path:?}");
        }
    }
    lab.reload(&format!(
        "{}\n[[dos]]\nname = \"all\"\nprotocol = \"tcp\"\nlimit = 1\nburst = 5\naction = \"block\"\n",
        every()
    ));
    lab.limit_new_flows(NONE);
    let cell = cells::main_ways().next().expect("a cell");
    let verdicts: Vec<Verdict> = (0..2000)
        .map(|n| {
            let mut path = cell.path(Protocol::Tcp, cell.client_at(2000 + n));
            path.knock(&lab, &Dress::default())
        })
        .take_while(|verdict| *verdict == Verdict::Redirect)
        .collect();
    assert!((5..2000).contains(&verdicts.len()), "{}", verdicts.len());
}
