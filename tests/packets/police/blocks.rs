//! Sources that are blocked: which, what for, how long, and what a flood of others does to them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use xdplb::datapath::abi;

use super::{exhaust, hits, policy, slow_down, source, with, BLOCKED, LIMITED};
use crate::harness::cells::{self, every, Cell, Dress, PROTOCOLS};
use crate::harness::frame::{Protocol, ACK, SYN};
use crate::harness::knock::{Kind, Knock};
use crate::harness::{pause, Lab, Verdict, CLIENTS};
use crate::property::one_in;

/// A block is for the protocol of its policy, all of it, and for the source, wherever it sends.
#[test]
fn who_is_blocked_and_what_for() {
    let mut lab = Lab::new(&every());
    let mut number = 0;
    for kind in [Kind::Tcp, Kind::Udp, Kind::Ping] {
        for cell in cells::all() {
            number += 1;
            lab.reload(&every());
            let client = SocketAddr::new(source(cell, number), 1000);
            let established = PROTOCOLS.map(|protocol| {
                let mut path = cell.path(protocol, client);
                assert_eq!(path.knock(&lab, &Dress::default()), Verdict::Redirect);
                if !cell.mode.is_direct() {
                    path.to_client(&lab, "a reply", |ends| {
                        path.back_between(ends, SYN | ACK).packet()
                    });
                }
                path.to_backend(&lab, "ACK", |ends| path.between(ends, ACK).packet());
                path
            });
            let (name, flags) = match kind {
                Kind::Tcp => ("tcp", "tcp_flags = \"syn\"\n"),
                Kind::Udp => ("udp", ""),
                _ => ("icmp", ""),
            };
            let keys = format!("{flags}limit = 1\naction = \"block\"\nblock_for = \"1h\"");
            lab.reload(&with(&policy(name, name, &keys)));
            slow_down(&lab);
            let knock = Knock {
                source_port: 2000,
                ..Knock::at(cell, kind, client.ip())
            };
            exhaust(&lab, &knock, 1, knock.let_in(), BLOCKED);

            for other in cells::all().filter(|other| other.ipv6 == cell.ipv6) {
                for of in [Kind::Tcp, Kind::Udp, Kind::Ping, Kind::Other(47)] {
                    let knock = Knock {
                        source_port: 3000,
                        ..Knock::at(other, of, client.ip())
                    };
                    let expected = if of == kind { BLOCKED } else { knock.let_in() };
                    assert_eq!(knock.send(&lab), expected, "{kind:?} blocked, {knock:?}");
                }
            }
            for path in &established {
                let is_blocked = (path.protocol == Protocol::Tcp && kind == Kind::Tcp)
                    || (path.protocol == Protocol::Udp && kind == Kind::Udp);
                // Not only what the policy counts.
                if is_blocked {
                    let verdict = lab.send(CLIENTS, &path.request(ACK).bytes()).verdict;
                    assert_eq!(verdict, BLOCKED, "{path:?}");
                } else {
                    path.to_backend(&lab, "another protocol", |ends| {
                        path.between(ends, ACK).packet()
                    });
                }
                if !cell.mode.is_direct() {
                    path.to_client(&lab, "a reply", |ends| {
                        path.back_between(ends, ACK).packet()
                    });
                }
            }
            // Its neighbours: in IPv6, all of its /64 is the same one.
            let (same, others) = match client.ip() {
                IpAddr::V4(v4) => (
                    vec![],
                    [v4.to_bits() ^ 1, v4.to_bits() ^ 1 << 24].map(|bits| IpAddr::V4(bits.into())),
                ),
                IpAddr::V6(v6) => (
                    [0, 1, 63]
                        .map(|bit| IpAddr::V6((v6.to_bits() ^ 1 << bit).into()))
                        .to_vec(),
                    [64, 96].map(|bit| IpAddr::V6((v6.to_bits() ^ 1 << bit).into())),
                ),
            };
            for address in same {
                let knock = Knock::at(cell, kind, address);
                assert_eq!(knock.send(&lab), BLOCKED, "{knock:?}");
            }
            for address in others {
                let knock = Knock::at(cell, kind, address);
                assert_eq!(knock.send(&lab), knock.let_in(), "{knock:?}");
            }
        }
    }
}

/// A block ends when it is to end, however much the source has sent meanwhile, and the next one takes as
/// much as the first.
#[test]
fn blocks_end_and_begin_anew() {
    const BLOCK: Duration = Duration::from_millis(600);
    let lab = Lab::new(&with(&policy(
        "udp",
        "udp",
        "limit = 3\naction = \"block\"\nblock_for = \"600ms\"",
    )));
    slow_down(&lab);
    let attempt = |number: u16| {
        let knocks: Vec<Knock> = cells::main_ways()
            .zip(10 * number..)
            .map(|(cell, number)| Knock::at(cell, Kind::Udp, source(cell, number)))
            .collect();
        for round in 0..3 {
            for knock in &knocks {
                let start = Instant::now();
                let verdicts: Vec<Verdict> = (0..6).map(|_| knock.send(&lab)).collect();
                if start.elapsed() > BLOCK / 2 {
                    return None;
                }
                let expected = [Verdict::Redirect; 3].into_iter().chain([BLOCKED; 3]);
                assert_eq!(
                    verdicts,
                    expected.collect::<Vec<_>>(),
                    "round {round}, {knock:?}"
                );
            }
            let start = Instant::now();
            pause(BLOCK / 4);
            for knock in &knocks {
                let verdict = knock.send(&lab);
                if start.elapsed() > BLOCK / 2 {
                    return None;
                }
                assert_eq!(verdict, BLOCKED, "in between, {knock:?}");
            }
            pause(BLOCK);
        }
        assert_eq!(hits(&lab, Kind::Udp).1 % 3, 0);
        Some(())
    };
    (0..20).find_map(attempt).expect("a machine with some time");
}

/// A source of each family that no other number has, one packet of it, to a port without a service: what
/// a flood from everywhere is.
fn flood(cell: Cell, kind: Kind, number: u32) -> Vec<u8> {
    let hash = xxhash_rust::xxh64::xxh64(&number.to_le_bytes(), 7);
    let source: IpAddr = if cell.ipv6 {
        let high = 0x2001_0db8_u64 << 32 | u64::from(hash as u32);
        Ipv6Addr::from_bits(u128::from(high) << 64 | u128::from(hash)).into()
    } else {
        Ipv4Addr::from_bits(11 << 24 | hash as u32 & 0x00ff_ffff).into()
    };
    let protocol = match kind {
        Kind::Tcp => Protocol::Tcp,
        _ => Protocol::Udp,
    };
    let mut path = cell.path(protocol, SocketAddr::new(source, 1000));
    path.port = 81;
    path.request(SYN).bytes()
}

/// There is room for 1,024 sources, and tens of thousands come: who is blocked stays so, and who sends more
/// than he may gets no more for it.
#[test]
fn a_flood_frees_nobody() {
    let mut lab = Lab::new(&every());
    lab.datapath_keys += "\nunknown_port = \"drop\"";
    let policies = ["tcp", "udp"].map(|protocol| {
        policy(protocol, protocol, "limit = 20\naction = \"limit\"")
            + &policy(
                &format!("{protocol}-block"),
                protocol,
                "limit = 60\naction = \"block\"\nblock_for = \"1h\"",
            )
    });
    for (action, verdict) in [("block", BLOCKED), ("limit", LIMITED)] {
        let policies = if action == "block" {
            policies.concat().replace("limit = 20", "limit = 2000")
        } else {
            policies.concat().replace("limit = 60", "limit = 6000")
        };
        lab.reload(&with(&policies));
        slow_down(&lab);
        let mut victims = Vec::new();
        for (number, cell) in (1..).zip(cells::main_ways()) {
            for kind in [Kind::Tcp, Kind::Udp] {
                let knock = Knock::at(cell, kind, source(cell, 100 + number));
                let passed = (0..100)
                    .filter(|_| knock.send(&lab) == Verdict::Redirect)
                    .count();
                assert_eq!(passed, if action == "block" { 60 } else { 20 });
                victims.push(knock);
            }
        }
        let frames: Vec<Vec<u8>> = victims
            .iter()
            .map(|knock| {
                let protocol = match knock.kind {
                    Kind::Tcp => Protocol::Tcp,
                    _ => Protocol::Udp,
                };
                let client = SocketAddr::new(knock.source, knock.source_port);
                knock.cell.path(protocol, client).request(SYN).bytes()
            })
            .collect();
        let cells: Vec<Cell> = cells::main_ways().collect();
        let blocked_before = hits(&lab, Kind::Tcp).1 + hits(&lab, Kind::Udp).1;
        let mut freed = Vec::new();
        // Enough to fill the sets several times over.
        for number in 0..(40_000 / one_in() as u32).max(10_000) {
            let cell = cells[number as usize % cells.len()];
            let kind = if number % 2 == 0 {
                Kind::Tcp
            } else {
                Kind::Udp
            };
            lab.run(CLIENTS, &flood(cell, kind, number));
            // The limited one does not stop, though several others come to its set in between.
            if action == "limit" && number % 2000 == 0 {
                for (frame, knock) in frames.iter().zip(&victims) {
                    const XDP_DROP: u32 = 1;
                    if lab.run(CLIENTS, frame).0 != XDP_DROP {
                        freed.push((number, knock));
                    }
                }
            }
        }
        assert!(
            freed.is_empty(),
            "{} times, first {:?}",
            freed.len(),
            freed.first()
        );
        let met = (0..lab.live().source_sets)
            .flat_map(|set| lab.element::<abi::dos_set>("dos_sources", set).ways)
            .filter(|way| way.family != 0)
            .count();
        assert_eq!(met, 1024, "the sets are full");
        for knock in &victims {
            assert_eq!(knock.send(&lab), verdict, "{knock:?}");
        }
        let blocked = hits(&lab, Kind::Tcp).1 + hits(&lab, Kind::Udp).1;
        assert_eq!(blocked, blocked_before, "nobody is blocked anew");
    }
}
