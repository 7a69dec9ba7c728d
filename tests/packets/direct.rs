//! Backends that answer directly: a packet after `l2`, `ipip` and `gue`, byte by byte.

use std::collections::BTreeSet;
use std::net::IpAddr;

use crate::harness::cells::{self, Cell, Dress, Ends, Mode, Path, PROTOCOLS};
use crate::harness::dialog::ends_of;
use crate::harness::frame::{
    Frame, Protocol, ACK, DESTINATION_OPTIONS, DOT1AD, DOT1Q, FIN, FRAGMENT, HOP_BY_HOP, PSH, RST,
    SYN,
};
use crate::harness::{at, Lab, Verdict, CLIENTS};
use crate::property::one_in;
use xdplb::datapath::abi::Flow;

/// An established connection and the first packet of another, changed alike.
#[track_caller]
fn unharmed_by(lab: &Lab, what: &str, dress: &Dress, change: impl Fn(&mut Frame)) {
    // Each gets ports of its own, so that none meets a former one's connection.
    static PORT: std::sync::atomic::AtomicU16 = std::sync::atomic::AtomicU16::new(1024);
    for cell in cells::all() {
        for protocol in PROTOCOLS {
            let port = PORT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            let path = cell.establish(lab, protocol, port);
            let shape = |ends: Ends| path.between(ends, PSH | ACK).with(&change).packet();
            path.to_backend_in(lab, what, dress, shape);
            if !cell.mode.is_direct() {
                let shape = |ends: Ends| path.back_between(ends, PSH | ACK).with(&change).packet();
                path.to_client_in(lab, what, dress, shape);
            }
            // What the first packet has of all this makes no difference to the flow's place.
            let first = path.sent(dress, |ends| {
                let ends = Ends {
                    client: cell.client_at(port + 20000),
                    ..ends
                };
                path.between(ends, SYN).with(&change).packet()
            });
            let sent = lab.send(CLIENTS, &first);
            assert_eq!(sent.verdict, Verdict::Redirect, "{what}, {cell:?}");
            let other = cell.open(lab, protocol, port + 20000);
            let shape = |ends: Ends| other.between(ends, SYN).with(&change).packet();
            if cell.mode.is_direct() {
                crate::harness::assert_same(what, &sent.bytes, &other.arriving(dress, shape));
            }
        }
    }
}

#[test]
fn connections_from_first_to_last() {
    let lab = Lab::new(&cells::every());
    for cell in cells::direct() {
        let path = cell.establish(&lab, Protocol::Tcp, 1000);
        for flags in [PSH | ACK, ACK, FIN | ACK, ACK, RST] {
            path.to_backend(&lab, "TCP", |ends| path.between(ends, flags).packet());
        }
        let path = cell.establish(&lab, Protocol::Udp, 1000);
        for _ in 0..4 {
            path.to_backend(&lab, "UDP", |ends| path.between(ends, 0).packet());
        }
    }
}

#[test]
fn tags_and_padding() {
    let lab = Lab::new(&cells::every());
    for tags in [
        vec![],
        vec![(DOT1Q, 0x2064)],
        vec![(DOT1AD, 100), (DOT1Q, 200)],
        vec![(DOT1Q, 1), (DOT1Q, 2)],
    ] {
        for padding in [0, 1, 6, 46] {
            let dress = Dress {
                tags: tags.clone(),
                // Not zeros: counted into a checksum, they would show.
                padding: vec![0xa5; padding],
            };
            let what = format!("tags {tags:x?}, {padding} bytes of padding");
            unharmed_by(&lab, &what, &dress, |_| ());
        }
    }
}

#[test]
fn lengths() {
    let lab = Lab::new(&cells::every());
    for length in [0, 1, 2, 3, 5, 17, 18, 255, 1391] {
        let payload: Vec<u8> = (0..length).map(|i| (i * 7 + 13) as u8).collect();
        unharmed_by(
            &lab,
            &format!("{length} bytes"),
            &Dress::default(),
            |frame| frame.payload.clone_from(&payload),
        );
    }
}

#[test]
fn jumbo_frames() {
    let mut lab = Lab::new(&cells::every());
    lab.set_mtu(65535);
    for length in [3000, 4096, 20001, 65400] {
        let payload: Vec<u8> = (0..length).map(|i| (i % 251) as u8).collect();
        unharmed_by(
            &lab,
            &format!("{length} bytes"),
            &Dress::default(),
            |frame| frame.payload.clone_from(&payload),
        );
    }
}

/// DSCP and ECN, DF, TTL, IPv4 options.
#[test]
fn ip_header_fields() {
    let lab = Lab::new(&cells::every());
    // Expedited forwarding, each ECN codepoint, all and none.
    for tos in [0, 1, 2, 3, 0xb8, 0xba, 0xfc, 0xff] {
        for dont_fragment in [false, true] {
            let what = format!("TOS {tos:#x}, DF {dont_fragment}");
            unharmed_by(&lab, &what, &Dress::default(), |frame| {
                frame.tos = tos;
                frame.dont_fragment = dont_fragment;
            });
        }
    }
    for ttl in [255, 3, 2] {
        unharmed_by(&lab, &format!("TTL {ttl}"), &Dress::default(), |frame| {
            frame.ttl = ttl;
        });
    }
    for words in 1..=10 {
        let what = format!("ihl {}", 5 + words);
        unharmed_by(&lab, &what, &Dress::default(), |frame| {
            frame.options = vec![1; 4 * words];
            frame.options[4 * words - 1] = 0;
        });
    }
}

#[test]
fn tcp_options_and_ipv6_extensions() {
    let lab = Lab::new(&cells::every());
    for words in [1, 3, 10] {
        let what = format!("doff {}", 5 + words);
        unharmed_by(&lab, &what, &Dress::default(), |frame| {
            frame.tcp_options = vec![1; 4 * words];
        });
    }
    let options = vec![0, 1, 4, 0, 0, 0, 0];
    for chain in [
        vec![(HOP_BY_HOP, options.clone())],
        vec![(DESTINATION_OPTIONS, options.clone())],
        // An atomic fragment (RFC 6946).
        vec![(FRAGMENT, vec![0, 0, 0, 0, 0, 0, 9])],
        vec![
            (HOP_BY_HOP, options.clone()),
            (DESTINATION_OPTIONS, options.clone()),
        ],
    ] {
        unharmed_by(&lab, &format!("{chain:?}"), &Dress::default(), |frame| {
            if frame.source.is_ipv6() {
                frame.extensions.clone_from(&chain);
            }
        });
    }
}

/// A packet of the flow's with another flow label is still of the flow, and the outer one has none.
#[test]
fn flow_labels() {
    let lab = Lab::new(&cells::every());
    for cell in cells::all().filter(|cell| cell.ipv6) {
        let path = cell.establish(&lab, Protocol::Tcp, 1000);
        for flow_label in [1, 0x12345, 0xfffff] {
            path.to_backend(&lab, "flow label", |ends| {
                let packet = path.between(ends, ACK).packet();
                packet.with(|p| p.flow_label = flow_label)
            });
        }
    }
}

#[test]
fn udp_without_a_checksum() {
    let lab = Lab::new(&cells::every());
    for cell in cells::all().filter(|cell| !cell.ipv6) {
        let path = cell.establish(&lab, Protocol::Udp, 1000);
        path.to_backend(&lab, "no checksum", |ends| {
            path.between(ends, 0).with(|f| f.checksum = false).packet()
        });
    }
}

/// What is behind the datagram in its packet is in no checksum.
#[test]
fn udp_shorter_than_its_packet() {
    let lab = Lab::new(&cells::every());
    for cell in cells::direct() {
        let path = cell.establish(&lab, Protocol::Udp, 1000);
        path.to_backend(&lab, "trailing bytes", |ends| {
            let packet = path.between(ends, 0).packet();
            packet.with(|p| p.payload.extend(b"trailing"))
        });
    }
}

/// Every sum of the packet, those around 0 and 0xffff above all, makes the outer checksum right.
#[test]
fn every_checksum() {
    let lab = Lab::new(&cells::every());
    for cell in cells::direct() {
        for protocol in PROTOCOLS {
            let path = cell.establish(&lab, protocol, 1000);
            for word in (0..=u16::MAX)
                .step_by(251 * one_in())
                .chain(0..8)
                .chain(0xfff8..=0xffff)
            {
                path.to_backend(&lab, "checksum", |ends| {
                    let frame = path.between(ends, ACK);
                    frame
                        .with(|f| f.payload = word.to_be_bytes().to_vec())
                        .packet()
                });
            }
        }
    }
}

/// What is summed of the inner packet is nothing: that is a sum like any other.
#[test]
fn inner_pseudo_headers_that_sum_to_nothing() {
    let lab = Lab::new(&cells::every());
    let cell = Cell {
        outer_ipv6: true,
        ..gue(false)
    };
    // The words of this address, of 203.0.113.17, of protocol 17 and of 18 bytes are 0xffff together.
    let client = at("198.51.253.150:1000");
    let known = cell.open(&lab, Protocol::Udp, 1000);
    let path = Path {
        client,
        seen: client,
        ..known
    };
    let sent = lab.send(CLIENTS, &path.request(0).bytes());
    let gue_port = ends_of(&sent.bytes).0.port();
    let path = Path { gue_port, ..path };
    assert_eq!(path.request(0).payload.len(), 10);
    path.to_backend(&lab, "nothing", |ends| path.between(ends, 0).packet());
}

/// An outer checksum of 0 is sent as 0xffff (RFC 768).
#[test]
fn outer_checksums_that_become_zero() {
    let lab = Lab::new(&cells::every());
    // Where it is, in a frame to the backend.
    let check_of = |frame: &[u8]| u16::from_be_bytes([frame[60], frame[61]]);
    for cell in cells::direct().filter(|cell| cell.mode == Mode::Gue && cell.outer_ipv6) {
        let known = cell.open(&lab, Protocol::Udp, 1000);
        let found = (0..2000_u16).find_map(|n| {
            let [high, low] = n.to_be_bytes();
            let mut client = known.client;
            if !cell.ipv6 {
                client.set_ip([198, 51, low, high].into());
            }
            let mut path = Path {
                client,
                seen: client,
                ..known
            };
            let sent = lab.send(CLIENTS, &path.request(0).bytes());
            path.gue_port = ends_of(&sent.bytes).0.port();
            let of = |ends, length: u16| {
                let frame = path.between(ends, 0);
                frame.with(|f| f.payload = vec![0; length.into()]).packet()
            };
            let base = check_of(&path.arriving(&Dress::default(), |ends| of(ends, 0)));
            // Each byte of payload takes one from the checksum, and so does each of the flow label.
            let (length, flow_label) = match (cell.ipv6, base) {
                (true, label) => (0, label.into()),
                (false, 0..=1300) => (base, 0),
                _ => return None,
            };
            Some((path.clone(), of(path.inside(), length), flow_label))
        });
        let (path, packet, flow_label) = found.expect("a flow whose sum can become 0");
        let shape = |_| packet.with(|p| p.flow_label = flow_label);
        let expected = path.arriving(&Dress::default(), shape);
        assert_eq!(check_of(&expected), 0xffff, "the test's own sum, {cell:?}");
        path.to_backend(&lab, "the sum 0", shape);
    }
}

fn gue(ipv6: bool) -> Cell {
    Cell {
        mode: Mode::Gue,
        ipv6,
        outer_ipv6: false,
    }
}

/// Of one flow always the same, of many all of the range (RFC 6335's dynamic ports).
#[test]
fn gue_source_ports_spread() {
    let lab = Lab::new(&cells::every());
    for ipv6 in [false, true] {
        let ports: Vec<u16> = (0..600)
            .map(|n| gue(ipv6).open(&lab, Protocol::Udp, 2000 + n).gue_port)
            .collect();
        let distinct: BTreeSet<u16> = ports.iter().copied().collect();
        // 600 of 16,384: eleven pairs are to be expected.
        assert!(distinct.len() > 550, "{} of 600", distinct.len());
        let (low, high) = (distinct.first().unwrap(), distinct.last().unwrap());
        assert!(*low < 0xc200 && *high > 0xfe00, "{low:#x} to {high:#x}");
    }
}

#[test]
fn gue_destination_port() {
    let mut lab = Lab::new(&cells::every());
    lab.reload(&format!("{}\n[tunnel]\ngue_port = 6635\n", cells::every()));
    for ipv6 in [false, true] {
        let client = gue(ipv6).client_at(1000);
        let frame = crate::harness::frame::udp(client, gue(ipv6).vip(), b"x");
        let sent = lab.send(CLIENTS, &frame.bytes());
        assert_eq!(ends_of(&sent.bytes).1.port(), 6635);
    }
}

/// The outer source of a frame, the inner of which is not looked at.
fn outer_source(bytes: &[u8]) -> IpAddr {
    use etherparse::{NetSlice, SlicedPacket};
    match SlicedPacket::from_ethernet(bytes).expect("a packet").net {
        Some(NetSlice::Ipv4(ip)) => ip.header().source_addr().into(),
        Some(NetSlice::Ipv6(ip)) => ip.header().source_addr().into(),
        other => panic!("not IP: {other:?}"),
    }
}

/// A prefix as `tunnel.source`: the host's bits are the flow's, the others as given.
#[test]
fn outer_sources_out_of_a_prefix() {
    let mut lab = Lab::new(&cells::every());
    let tunnel = "[tunnel]\nsource = [\"172.16.0.0/16\", \"fd00:1::/64\"]\n";
    lab.reload(&format!("{}\n{tunnel}", cells::every()));
    for cell in cells::direct().filter(|cell| cell.mode.is_tunnel()) {
        let of = |port, flags| -> (IpAddr, Vec<u8>) {
            let path = cell.path(Protocol::Tcp, cell.client_at(port));
            let sent = lab.send(CLIENTS, &path.request(flags).bytes());
            assert_eq!(sent.verdict, Verdict::Redirect);
            (outer_source(&sent.bytes), sent.bytes)
        };
        let mut sources = BTreeSet::new();
        for port in 3000..3200 {
            let (source, bytes) = of(port, SYN);
            match source {
                IpAddr::V4(source) => assert_eq!(source.octets()[..2], [172, 16]),
                IpAddr::V6(source) => {
                    assert_eq!(source.segments()[..6], [0xfd00, 1, 0, 0, 0, 0]);
                }
            }
            assert_eq!(of(port, ACK).0, source, "the flow's own");
            sources.insert(source);
            // The rest is as ever, whatever the source.
            let client = cell.client_at(port);
            let path = Path {
                gue_port: match cell.mode {
                    Mode::Gue => ends_of(&bytes).0.port(),
                    _ => 0,
                },
                ..cell.path(Protocol::Tcp, client)
            };
            let mut tunnel = path.tunnel().expect("a tunnel");
            tunnel.source = source;
            let inner = path.request(SYN).packet().forwarded();
            assert_eq!(bytes[14..], inner.within(&tunnel).bytes(), "{cell:?}");
        }
        assert!(sources.len() > 190, "{} of 200, {cell:?}", sources.len());
    }
}

/// A backend of either family behind one VIP: each packet gets the header of the one it goes to.
#[test]
fn one_service_with_backends_of_both_families() {
    let lab = Lab::new(
        "[[service]]\nname = \"both\"\nvip = [\"203.0.113.14\", \"2001:db8:1::14\"]\nprotocol = \"tcp\"\n\
         port = 80\nforward = \"ipip\"\n[[service.backend]]\naddress = \"10.0.0.5\"\n\
         [[service.backend]]\naddress = \"fd00::5\"\n",
    );
    for ipv6 in [false, true] {
        let mut met = [0; 2];
        for port in 1000..1100 {
            let cell = |outer_ipv6| Cell {
                mode: Mode::Ipip,
                ipv6,
                outer_ipv6,
            };
            let client = cell(false).client_at(port);
            let path = |outer_ipv6| cell(outer_ipv6).path(Protocol::Tcp, client);
            // Both cells have one VIP here.
            let request = path(false).request(SYN);
            let sent = lab.send(CLIENTS, &request.bytes());
            let outer_ipv6 = outer_source(&sent.bytes).is_ipv6();
            met[usize::from(outer_ipv6)] += 1;
            let tunnel = path(outer_ipv6).tunnel().expect("a tunnel");
            let expected = request.packet().forwarded().within(&tunnel);
            assert_eq!(sent.bytes[14..], expected.bytes());
        }
        assert!(met[0] > 20 && met[1] > 20, "{met:?}");
    }
}

/// Table and state of a direct connection's only entry.
fn state(lab: &Lab, path: &Path) -> Option<(&'static str, &'static str)> {
    let vip = path.cell.vip();
    let entry = lab.entry(&Flow {
        source: (path.client.ip(), path.client.port()),
        destination: (vip.ip(), vip.port()),
        protocol: path.protocol.number().0,
    });
    entry.map(|entry| (entry.stage, entry.state))
}

/// The client's segments alone say how far a connection is.
#[test]
fn tcp_states() {
    let lab = Lab::new(&cells::every());
    for cell in cells::direct() {
        let before = lab.entries().len();
        let path = cell.open(&lab, Protocol::Tcp, 1000);
        let walk = |steps: &[(u8, (&'static str, &'static str))]| {
            for (flags, expected) in steps {
                path.to_backend(&lab, "a step", |ends| path.between(ends, *flags).packet());
                assert_eq!(state(&lab, &path), Some(*expected), "{flags:#x}, {cell:?}");
            }
        };
        assert_eq!(state(&lab, &path), Some(("half-open", "opening")));
        walk(&[
            (SYN, ("half-open", "opening")),
            (ACK, ("proven", "established")),
            (PSH | ACK, ("proven", "established")),
            (SYN, ("proven", "established")),
            (FIN | ACK, ("proven", "half-closed")),
            (ACK, ("proven", "half-closed")),
            // The client has done with it, and takes the port anew.
            (SYN, ("half-open", "opening")),
            (ACK, ("proven", "established")),
            (RST, ("proven", "closed")),
            (ACK, ("proven", "closed")),
            (SYN, ("half-open", "opening")),
            (RST | ACK, ("half-open", "closed")),
            (SYN, ("half-open", "opening")),
        ]);
        assert_eq!(lab.entries().len(), before + 1, "one entry a connection");
    }
}

#[test]
fn udp_states() {
    let lab = Lab::new(&cells::every());
    for cell in cells::direct() {
        let before = lab.entries().len();
        let path = cell.open(&lab, Protocol::Udp, 1000);
        assert_eq!(state(&lab, &path), Some(("half-open", "udp")));
        for _ in 0..2 {
            path.to_backend(&lab, "another", |ends| path.between(ends, 0).packet());
            assert_eq!(state(&lab, &path), Some(("proven", "udp")));
        }
        assert_eq!(lab.entries().len(), before + 1, "one entry a connection");
    }
}

/// Later fragments are of the first datagram still.
#[test]
fn one_fragmented_datagram_is_no_second_one() {
    let lab = Lab::new(&cells::every());
    for cell in cells::direct() {
        let path = cell.path(Protocol::Udp, cell.client_at(1000));
        for nth in 0..3 {
            let frame = path.sent(&Dress::default(), |ends| {
                let frame = path.between(ends, 0).with(|f| f.payload = vec![1; 100]);
                frame.packet().fragments(1, 0, &[48, 96])[nth].clone()
            });
            assert_eq!(lab.send(CLIENTS, &frame).verdict, Verdict::Redirect);
            assert_eq!(state(&lab, &path), Some(("half-open", "udp")));
        }
    }
}

/// A reset of no connection goes by the hash, and leaves nothing.
#[test]
fn reset_without_a_connection() {
    let lab = Lab::new(&cells::every());
    for cell in cells::direct() {
        let known = cell.open(&lab, Protocol::Tcp, 1000);
        let client = cell.client_at(1001);
        let path = Path {
            client,
            seen: client,
            ..known
        };
        let entries = lab.entries().len();
        let sent = lab.send(CLIENTS, &path.request(RST).bytes());
        assert_eq!(sent.verdict, Verdict::Redirect);
        let gue_port = match cell.mode {
            Mode::Gue => ends_of(&sent.bytes).0.port(),
            _ => 0,
        };
        let path = Path { gue_port, ..path };
        path.to_backend(&lab, "RST", |ends| path.between(ends, RST).packet());
        assert_eq!(lab.entries().len(), entries);
        // As the flow's own packets would have gone.
        let opened = cell.open(&lab, Protocol::Tcp, 1001);
        assert_eq!(opened.gue_port, gue_port);
    }
}

#[test]
fn traffic_is_counted_as_it_came() {
    let lab = Lab::new(&cells::every());
    for cell in cells::direct() {
        let path = cell.establish(&lab, Protocol::Tcp, 1000);
        let vip = cell.vip();
        let entry = lab
            .entry(&Flow {
                source: (path.client.ip(), 1000),
                destination: (vip.ip(), vip.port()),
                protocol: 6,
            })
            .expect("an entry");
        let before = lab.traffic(entry.backend);
        let frame = path.request(PSH | ACK).with(|f| f.padding = vec![0; 18]);
        lab.send(CLIENTS, &frame.bytes());
        let after = lab.traffic(entry.backend);
        assert_eq!(after.packets_in, before.packets_in + 1);
        let length = frame.bytes().len() as u64 - 18;
        assert_eq!(after.bytes_in, before.bytes_in + length, "{cell:?}");
        assert_eq!(
            (after.packets_out, after.connections),
            (0, before.connections)
        );
    }
}
