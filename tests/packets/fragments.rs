//! Fragments: the first decides, later ones follow it, and nothing slips past the ports.

use xdplb::datapath::abi::{self, from_bytes};

use crate::harness::cells::{self, every, Dress, Ends, Mode, Path, PROTOCOLS};
use crate::harness::frame::{Protocol, ACK, DESTINATION_OPTIONS, DOT1AD, DOT1Q, HOP_BY_HOP, SYN};
use crate::harness::ip::Packet;
use crate::harness::{ip, Lab, Verdict, BACKENDS, CLIENTS};
use libbpf_rs::{MapCore, MapFlags};

const NOT_OURS: Verdict = Verdict::Pass("not_ours");
const UNKNOWN: Verdict = Verdict::Drop("unknown_fragment");
const BAD: Verdict = Verdict::Drop("bad_fragment");

/// IPv6 counts the packets of all protocols as one (RFC 8200, section 4.5): each has identifications of its
/// own here.
fn own_id(path: &Path, id: u32) -> u32 {
    id | u32::from(path.protocol.number().0) << 8
}

/// A packet of the client's in three fragments.
fn pieces(path: &Path, ends: Ends, flags: u8, id: u32) -> Vec<Packet> {
    let frame = path.between(ends, flags).with(|f| {
        f.payload = (0..200).map(|i| (i * 7 + 13) as u8).collect();
        f.dont_fragment = false;
    });
    frame.packet().fragments(own_id(path, id), 0, &[64, 128])
}

fn back(path: &Path, ends: Ends, id: u32) -> Vec<Packet> {
    let frame = path.back_between(ends, ACK).with(|f| {
        f.payload = (0..200).map(|i| (i * 5 + 1) as u8).collect();
    });
    frame.packet().fragments(own_id(path, id), 0, &[64, 128])
}

/// The nth of them as the client sends it.
fn nth(path: &Path, flags: u8, id: u32, n: usize) -> Vec<u8> {
    path.sent(&Dress::default(), |ends| {
        pieces(path, ends, flags, id)[n].clone()
    })
}

#[test]
fn in_order_and_not_both_ways() {
    let lab = Lab::new(&every());
    for cell in cells::all() {
        for protocol in PROTOCOLS {
            let path = cell.establish(&lab, protocol, 1000);
            for (id, order) in (1..).zip([[0, 1, 2], [0, 2, 1], [0, 0, 1], [0, 1, 1]]) {
                for n in order {
                    let what = format!("fragment {n} of {order:?}");
                    path.to_backend(&lab, &what, |ends| pieces(&path, ends, ACK, id)[n].clone());
                    if !cell.mode.is_direct() {
                        path.to_client(&lab, &what, |ends| back(&path, ends, id)[n].clone());
                    }
                }
            }
        }
    }
}

/// The first packet of a connection can come in fragments as well.
#[test]
fn of_a_new_connection() {
    let lab = Lab::new(&every());
    for cell in cells::all() {
        for protocol in PROTOCOLS {
            let path = cell.path(protocol, cell.client_at(1000));
            for n in 0..3 {
                let verdict = lab.send(CLIENTS, &nth(&path, SYN, 1, n)).verdict;
                assert_eq!(verdict, Verdict::Redirect, "{n}, {cell:?}");
            }
            let path = cell.open(&lab, protocol, 1000);
            path.to_backend(&lab, "later", |ends| pieces(&path, ends, SYN, 1)[2].clone());
        }
    }
}

#[test]
fn in_tags_and_with_ip_options() {
    let lab = Lab::new(&every());
    for cell in cells::all() {
        for protocol in PROTOCOLS {
            let path = cell.establish(&lab, protocol, 1000);
            let dress = Dress {
                tags: vec![(DOT1AD, 100), (DOT1Q, 200)],
                padding: vec![0xa5; 9],
            };
            let options = || vec![0, 1, 4, 0, 0, 0, 0];
            for (id, kept, chain) in [
                (1, 0, vec![]),
                (2, 1, vec![(HOP_BY_HOP, options())]),
                (3, 0, vec![(DESTINATION_OPTIONS, options())]),
                (
                    4,
                    1,
                    vec![(HOP_BY_HOP, options()), (DESTINATION_OPTIONS, options())],
                ),
            ] {
                for n in 0..3 {
                    let shape = |ends: Ends| {
                        let frame = path.between(ends, ACK).with(|f| {
                            f.tos = 0xb9;
                            f.payload = vec![3; 200];
                            f.options = vec![1; 8];
                            if cell.ipv6 {
                                f.extensions.clone_from(&chain);
                            }
                        });
                        let kept = if cell.ipv6 { kept } else { 0 };
                        frame
                            .packet()
                            .fragments(own_id(&path, id), kept, &[64, 128])[n]
                            .clone()
                    };
                    let what = format!("fragment {n}, {chain:?}");
                    path.to_backend_in(&lab, &what, &dress, shape);
                }
            }
        }
    }
}

#[test]
fn before_the_first() {
    let lab = Lab::new(&every());
    for cell in cells::all() {
        for protocol in PROTOCOLS {
            let path = cell.establish(&lab, protocol, 1000);
            let send = |id, n| lab.send(CLIENTS, &nth(&path, ACK, id, n)).verdict;
            assert_eq!(send(1, 2), UNKNOWN, "{cell:?}");
            assert_eq!(send(1, 1), UNKNOWN, "{cell:?}");
            assert_eq!(send(1, 0), Verdict::Redirect, "{cell:?}");
            assert_eq!(send(1, 1), Verdict::Redirect, "{cell:?}");
            // Another packet's, and another client's.
            assert_eq!(send(2, 1), UNKNOWN, "{cell:?}");
            let mut stranger = pieces(&path, path.outside(), ACK, 1)[1].clone();
            stranger.source = ip(if cell.ipv6 {
                "2001:db8:c::8"
            } else {
                "198.51.100.8"
            });
            let frame = path.request(ACK).ethernet().carrying(&stranger);
            assert_eq!(lab.send(CLIENTS, &frame).verdict, UNKNOWN, "{cell:?}");
            // IPv4 counts the packets of each protocol for itself (RFC 791).
            if !cell.ipv6 {
                let mut other = pieces(&path, path.outside(), ACK, 1)[1].clone();
                other.protocol = if protocol == Protocol::Tcp { 17 } else { 6 };
                let frame = path.request(ACK).ethernet().carrying(&other);
                assert_eq!(lab.send(CLIENTS, &frame).verdict, UNKNOWN, "{cell:?}");
            }
            // A backend's is for the host's stack, which may have talked to it.
            if !cell.mode.is_direct() {
                let reply =
                    path.sent_back(&Dress::default(), |ends| back(&path, ends, 1)[1].clone());
                assert_eq!(lab.send(BACKENDS, &reply).verdict, NOT_OURS, "{cell:?}");
            }
        }
    }
}

/// Half a minute after its first one, a fragment has nothing to follow.
#[test]
fn long_after_the_first() {
    let lab = Lab::new(&every());
    let hz = u64::from(lab.live().hz);
    let map = lab.map("fragments");
    let age = |jiffies: u64| {
        for key in map.keys() {
            let value = map.lookup(&key, MapFlags::ANY).expect("fragments");
            let value = value.expect("a value");
            let mut first: abi::fragment = from_bytes(&value).expect("struct fragment");
            first.since = first.since.wrapping_sub(jiffies);
            map.update(&key, abi::bytes_of(&first), MapFlags::ANY)
                .expect("an older time");
        }
    };
    for cell in cells::all() {
        let path = cell.establish(&lab, Protocol::Udp, 1000);
        let send = |n| lab.send(CLIENTS, &nth(&path, ACK, 1, n)).verdict;
        assert_eq!(send(0), Verdict::Redirect);
        age(25 * hz);
        assert_eq!(send(1), Verdict::Redirect, "{cell:?}");
        age(6 * hz);
        assert_eq!(send(1), UNKNOWN, "{cell:?}");
        // As many jiffies as 32 bits count, 50 days at a thousand a second: it is no younger for that.
        age((1 << 32) - 31 * hz);
        assert_eq!(send(1), UNKNOWN, "{cell:?}");
        // Its id can be another packet's now, with other ports.
        let other = cell.establish(&lab, Protocol::Udp, 1001);
        let first = lab.send(CLIENTS, &nth(&other, ACK, 1, 0));
        assert_eq!(first.verdict, Verdict::Redirect, "{cell:?}");
        other.to_backend(&lab, "its own", |ends| {
            pieces(&other, ends, ACK, 1)[1].clone()
        });
    }
}

/// A first fragment without all of the TCP or UDP header (RFC 1858).
#[test]
fn tiny_first_fragments() {
    let lab = Lab::new(&every());
    for cell in cells::all() {
        let path = cell.establish(&lab, Protocol::Tcp, 1000);
        let send = |packet: &Packet| {
            let frame = path.request(ACK).ethernet().carrying(packet);
            lab.send(CLIENTS, &frame).verdict
        };
        let of = |words: usize, cut: usize| {
            let frame = path.request(ACK).with(|f| {
                f.payload = vec![1; 100];
                f.tcp_options = vec![1; 4 * words];
            });
            frame
                .packet()
                .fragments(words as u32 * 1000 + cut as u32, 0, &[cut])
        };
        for cut in [8, 16] {
            let pieces = of(0, cut);
            assert_eq!(send(&pieces[0]), BAD, "{cut} bytes, {cell:?}");
            assert_eq!(send(&pieces[1]), UNKNOWN, "after {cut} bytes, {cell:?}");
        }
        for cut in [24, 32, 40, 48, 56] {
            assert_eq!(send(&of(10, cut)[0]), BAD, "{cut} bytes, {cell:?}");
        }
        let pieces = of(10, 64);
        assert_eq!(send(&pieces[0]), Verdict::Redirect, "{cell:?}");
        assert_eq!(send(&pieces[1]), Verdict::Redirect, "{cell:?}");
        // Eight bytes are a UDP header, less is none.
        let udp = cell.establish(&lab, Protocol::Udp, 1000);
        for length in 0..=8 {
            let mut first = pieces_of_udp(&udp)[0].clone();
            first.payload.truncate(length);
            let expected = if length < 8 { BAD } else { Verdict::Redirect };
            assert_eq!(send(&first), expected, "{length} bytes of UDP, {cell:?}");
        }
    }
}

fn pieces_of_udp(path: &Path) -> Vec<Packet> {
    let frame = path.request(0).with(|f| f.payload = vec![1; 100]);
    frame.packet().fragments(77, 0, &[8])
}

/// What would be written over the ports that decided (RFC 3128, RFC 5722).
#[test]
fn overlapping_fragments() {
    let lab = Lab::new(&every());
    for cell in cells::all() {
        for protocol in PROTOCOLS {
            let path = cell.establish(&lab, protocol, 1000);
            let send = |packet: &Packet| {
                let frame = path.request(ACK).ethernet().carrying(packet);
                lab.send(CLIENTS, &frame).verdict
            };
            let whole = pieces(&path, path.outside(), ACK, 9);
            assert_eq!(send(&whole[0]), Verdict::Redirect);
            let moved = |offset: usize| {
                let mut piece = whole[2].clone();
                piece.fragment.0 = offset;
                if let Some((_, body)) = piece.extensions.last_mut() {
                    body[1..3].copy_from_slice(&(offset as u16).to_be_bytes());
                }
                piece
            };
            let header = if protocol == Protocol::Tcp { 20 } else { 8 };
            for offset in (8..64).step_by(8) {
                let expected = if offset < header {
                    BAD
                } else {
                    Verdict::Redirect
                };
                assert_eq!(send(&moved(offset)), expected, "at {offset}, {cell:?}");
            }
            // A second first one, with another port.
            let mut ends = path.outside();
            ends.server.set_port(81);
            assert_eq!(send(&pieces(&path, ends, ACK, 9)[0]), BAD, "{cell:?}");
            let mut ends = path.outside();
            ends.client.set_port(999);
            assert_eq!(send(&pieces(&path, ends, ACK, 9)[0]), BAD, "{cell:?}");
            assert_eq!(send(&whole[2]), Verdict::Redirect, "{cell:?}");
        }
        if cell.ipv6 {
            // Extension headers behind the fragment header are before the ports too.
            let path = cell.establish(&lab, Protocol::Tcp, 1001);
            let frame = path.request(ACK).with(|f| {
                f.payload = vec![1; 100];
                f.extensions = vec![(DESTINATION_OPTIONS, vec![0, 1, 4, 0, 0, 0, 0])];
            });
            for (cut, first, later) in [
                (24, BAD, UNKNOWN),
                (32, Verdict::Redirect, Verdict::Redirect),
            ] {
                let pieces = frame.packet().fragments(cut as u32, 0, &[cut]);
                let ethernet = frame.ethernet();
                let send = |piece| lab.send(CLIENTS, &ethernet.carrying(piece)).verdict;
                assert_eq!(send(&pieces[0]), first, "{cut}, {cell:?}");
                assert_eq!(send(&pieces[1]), later, "{cut}, {cell:?}");
            }
            let mut over = frame.packet().fragments(32, 0, &[32])[1].clone();
            over.extensions[0].1[1..3].copy_from_slice(&24_u16.to_be_bytes());
            let sent = lab.send(CLIENTS, &frame.ethernet().carrying(&over));
            assert_eq!(sent.verdict, BAD, "{cell:?}");
        }
    }
}

#[test]
fn not_for_a_vip() {
    let lab = Lab::new(&every());
    for cell in cells::all() {
        for protocol in PROTOCOLS {
            let path = cell.establish(&lab, protocol, 1000);
            let host = ip(if cell.ipv6 { "fd00::1" } else { "10.0.0.1" });
            let backend = path.cell.backend();
            for (slot, from) in [(CLIENTS, path.client), (BACKENDS, backend)] {
                if from.is_ipv6() != host.is_ipv6() {
                    continue;
                }
                let ends = Ends {
                    client: from,
                    server: std::net::SocketAddr::new(host, 80),
                    ..path.outside()
                };
                let pieces = pieces(&path, ends, ACK, 3);
                for n in [1, 0, 2, 0, 1] {
                    let frame = path.request(ACK).ethernet().carrying(&pieces[n]);
                    assert_eq!(lab.send(slot, &frame).verdict, NOT_OURS, "{cell:?}");
                }
                let mut tiny = pieces[0].clone();
                tiny.payload.truncate(4);
                let frame = path.request(ACK).ethernet().carrying(&tiny);
                assert_eq!(lab.send(slot, &frame).verdict, NOT_OURS, "{cell:?}");
            }
        }
    }
}

/// What becomes of the first becomes of the others, and a fragment is not rejected twice.
#[test]
fn of_a_port_without_service() {
    let mut lab = Lab::new(&every());
    let keys = lab.datapath_keys.clone();
    for (setting, first, later) in [
        (
            "pass",
            Verdict::Pass("unknown_port_passed"),
            Verdict::Pass("unknown_port_passed"),
        ),
        (
            "drop",
            Verdict::Drop("unknown_port_dropped"),
            Verdict::Drop("unknown_port_dropped"),
        ),
        (
            "reject",
            Verdict::Answer("unknown_port_rejected"),
            Verdict::Drop("unanswerable"),
        ),
    ] {
        lab.datapath_keys = format!("{keys}\nunknown_port = \"{setting}\"");
        lab.reload(&every());
        for cell in cells::all() {
            for protocol in PROTOCOLS {
                let path = cell.path(protocol, cell.client_at(2000));
                let mut ends = path.outside();
                ends.server.set_port(81);
                for (n, expected) in [(0, first), (1, later), (2, later)] {
                    let piece = &pieces(&path, ends, ACK, 5)[n];
                    let frame = path.request(ACK).ethernet().carrying(piece);
                    let verdict = lab.send(CLIENTS, &frame).verdict;
                    assert_eq!(verdict, expected, "{setting}, {n}, {cell:?}");
                }
            }
        }
    }
}

/// Only the first one's Next Header counts (RFC 8200, section 4.5): what later ones say there, if it is
/// another protocol or none, neither takes them from their packet nor to the host.
#[test]
fn next_headers_of_later_ones() {
    const ICMPV6: u8 = 58;
    const NO_NEXT_HEADER: u8 = 59;
    let lab = Lab::new(&every());
    for cell in cells::all().filter(|cell| cell.ipv6) {
        for protocol in PROTOCOLS {
            let path = cell.establish(&lab, protocol, 1000);
            for next in [6, 17, ICMPV6, NO_NEXT_HEADER, HOP_BY_HOP, 132, 255] {
                let id = 0x1000 | u32::from(next);
                let what = format!("next header {next}");
                let named = |packet: Packet, n| {
                    packet.with(|p| {
                        if n > 0 {
                            p.protocol = next;
                        }
                    })
                };
                for n in [0, 1, 2] {
                    path.to_backend(&lab, &what, |ends| {
                        named(pieces(&path, ends, ACK, id)[n].clone(), n)
                    });
                    if !cell.mode.is_direct() {
                        path.to_client(&lab, &what, |ends| {
                            named(back(&path, ends, id)[n].clone(), n)
                        });
                    }
                }
            }
        }
        // Without the first one, what they say is all there is to go by.
        let path = cell.establish(&lab, Protocol::Udp, 1000);
        for (next, expected) in [
            (6, UNKNOWN),
            (17, UNKNOWN),
            (DESTINATION_OPTIONS, UNKNOWN),
            (ICMPV6, Verdict::Pass("other_protocol")),
            (NO_NEXT_HEADER, Verdict::Pass("other_protocol")),
        ] {
            let piece = pieces(&path, path.outside(), ACK, 0x2000)[1].with(|p| p.protocol = next);
            let frame = path.request(ACK).ethernet().carrying(&piece);
            let verdict = lab.send(CLIENTS, &frame).verdict;
            assert_eq!(verdict, expected, "next header {next}, {cell:?}");
        }
    }
}

/// Fragments of two packets of two connections, in between each other.
#[test]
fn of_two_packets_at_a_time() {
    let lab = Lab::new(&every());
    for cell in cells::all().filter(|cell| cell.mode != Mode::L2) {
        for protocol in PROTOCOLS {
            let paths = [1000, 1001].map(|port| cell.establish(&lab, protocol, port));
            for n in 0..3 {
                for (path, id) in paths.iter().zip([11, 12]) {
                    path.to_backend(&lab, "in between", |ends| {
                        pieces(path, ends, ACK, id)[n].clone()
                    });
                }
            }
        }
    }
}

/// A service that hashes by source alone sends each fragment to the one backend, too.
#[test]
fn of_a_service_by_source() {
    let services = every().replace(
        "forward = \"l2\"\n",
        "forward = \"l2\"\nhash = \"source-ip\"\n",
    );
    let lab = Lab::new(&services);
    for cell in cells::all().filter(|cell| cell.mode == Mode::L2) {
        for protocol in PROTOCOLS {
            let path = cell.establish(&lab, protocol, 1000);
            for n in 0..3 {
                path.to_backend(&lab, "by source", |ends| {
                    pieces(&path, ends, ACK, 1)[n].clone()
                });
            }
        }
    }
}
