//! Packets that go to the stack unchanged: those that are not tunnel packets, and tunnel packets of others.

use crate::lab::{Lab, Outcome};
use crate::packet::{
    fix_checksum, frame, ip, l3, request, syn, tunnel_ends, udp, wrap, How, Packet, CELLS,
    GUE_PORT, IPV4, IPV6, UDP,
};

#[test]
fn packets_that_are_no_tunnels() {
    let lab = Lab::with(GUE_PORT, &[]);
    let arp = [vec![0xff; 6], vec![2, 0, 0, 0, 0, 1, 8, 6], vec![0; 46]].concat();
    lab.expect_left_alone("ARP", &arp, "no_tunnel");
    for family in [4, 6] {
        for tags in 0..=2 {
            for packet in [request(family, 40), syn(family)] {
                lab.expect_left_alone(
                    "TCP, UDP",
                    &frame(tags, family, &packet.bytes()),
                    "no_tunnel",
                );
            }
        }
        let ends = tunnel_ends(family);
        for protocol in [1, 47, 50, 58, 132, 0, 60, 43, 59] {
            let packet = Packet::new(ends.0, ends.1, protocol, request(4, 20).bytes());
            lab.expect_left_alone(
                &format!("protocol {protocol}"),
                &frame(0, family, &packet.bytes()),
                "no_tunnel",
            );
        }
        let answer = udp(ends, (GUE_PORT, 50_001), false, &request(4, 20).bytes());
        lab.expect_left_alone(
            "from the GUE port, not to it",
            &frame(0, family, &Packet::new(ends.0, ends.1, UDP, answer).bytes()),
            "no_tunnel",
        );
    }
    for length in 14..34 {
        let whole = frame(0, 4, &wrap(4, 4, How::Ipip, &request(4, 0).bytes()).bytes());
        lab.expect_left_alone("cut off in the outer header", &whole[..length], "no_tunnel");
    }
}

#[test]
fn three_vlan_tags_are_too_many() {
    let lab = Lab::new();
    let mut whole = frame(2, 4, &wrap(4, 4, How::Ipip, &request(4, 0).bytes()).bytes());
    whole.splice(12..12, [0x88, 0xa8, 0, 1]);
    lab.expect_left_alone("three tags", &whole, "no_tunnel");
}

/// RFC 2473's tunnel encapsulation limit is such a header.
#[test]
fn behind_an_ipv6_extension_header() {
    let lab = Lab::new();
    for number in [0, 43, 60] {
        let inner = request(4, 12).bytes();
        let payload = [&[IPV4, 0, 4, 1, 4, 1, 0, 0], inner.as_slice()].concat();
        let ends = tunnel_ends(6);
        let packet = Packet::new(ends.0, ends.1, number, payload);
        lab.expect_left_alone(
            &format!("header {number}"),
            &frame(0, 6, &packet.bytes()),
            "no_tunnel",
        );
    }
}

/// A tunnel packet of each kind, with its ends set by `change`.
fn each_kind(change: impl Fn(u8, &mut Packet), mut visit: impl FnMut(u8, &str, &[u8])) {
    for (outer, inner, how, kind) in CELLS {
        let packet = wrap(outer, inner, how, &request(inner, 16).bytes())
            .with(|packet| change(outer, packet));
        visit(outer, kind, &frame(0, outer, &packet.bytes()));
    }
}

#[test]
fn sources_that_were_not_given() {
    let lab = Lab::with(GUE_PORT, &["198.51.100.0/25", "2001:db8:b::/48"]);
    for (v4, v6, taken) in [
        ("198.51.100.0", "2001:db8:b::", true),
        (
            "198.51.100.127",
            "2001:db8:b:ffff:ffff:ffff:ffff:ffff",
            true,
        ),
        ("198.51.100.128", "2001:db8:c::", false),
        (
            "198.51.99.255",
            "2001:db8:a:ffff:ffff:ffff:ffff:ffff",
            false,
        ),
        ("10.0.5.2", "2001:db8:5::2", false),
        // 198.51.100.1, but in an IPv6 header.
        ("10.1.1.1", "::ffff:198.51.100.1", false),
    ] {
        each_kind(
            |outer, packet| packet.source = ip(if outer == 4 { v4 } else { v6 }),
            |outer, kind, whole| {
                let what = format!("{kind} from {}", if outer == 4 { v4 } else { v6 });
                if taken {
                    let (outcome, _) = lab.send(whole);
                    assert!(
                        matches!(outcome, Outcome::Decapsulated(found, _) if found == kind),
                        "{what}: {outcome:?}"
                    );
                } else {
                    lab.expect_left_alone(&what, whole, "other_source");
                }
            },
        );
    }
}

/// A prefix of one family says nothing of the other, not even the shortest.
#[test]
fn everything_of_one_family() {
    for (given, family) in [("0.0.0.0/0", 4), ("::/0", 6)] {
        let lab = Lab::with(GUE_PORT, &[given]);
        each_kind(
            |_, _| {},
            |outer, kind, whole| {
                if outer != family {
                    lab.expect_left_alone(kind, whole, "other_source");
                } else {
                    let (outcome, _) = lab.send(whole);
                    let decapsulated = matches!(outcome, Outcome::Decapsulated(..));
                    assert!(decapsulated, "{given}, {kind}: {outcome:?}");
                }
            },
        );
    }
}

#[test]
fn any_source_unless_some_are_given() {
    let lab = Lab::with(GUE_PORT, &[]);
    each_kind(
        |outer, packet| packet.source = ip(if outer == 4 { "192.0.2.99" } else { "fe80::99" }),
        |_, kind, whole| {
            let (outcome, _) = lab.send(whole);
            let decapsulated = matches!(outcome, Outcome::Decapsulated(..));
            assert!(decapsulated, "{kind}: {outcome:?}");
        },
    );
}

#[test]
fn packets_for_other_hosts() {
    let mut lab = Lab::with(GUE_PORT, &[]);
    for (v4, v6) in [
        ("10.0.5.3", "2001:db8:5::3"),
        ("10.0.5.255", "2001:db8:5::"),
        ("255.255.255.255", "ff02::1"),
        ("224.0.0.1", "ff05::1:3"),
        // Our IPv4 address, but in an IPv6 header.
        ("0.0.0.0", "::ffff:10.0.5.2"),
        ("127.0.0.1", "::"),
    ] {
        each_kind(
            |outer, packet| packet.destination = ip(if outer == 4 { v4 } else { v6 }),
            |_, kind, whole| lab.expect_left_alone(kind, whole, "not_local"),
        );
    }
    // Before the source is looked at.
    lab = Lab::new();
    each_kind(
        |outer, packet| {
            packet.source = ip(if outer == 4 { "192.0.2.99" } else { "fe80::99" });
            packet.destination = packet.source;
        },
        |_, kind, whole| lab.expect_left_alone(kind, whole, "not_local"),
    );
}

#[test]
fn addresses_that_come_and_go() {
    let mut lab = Lab::new();
    let usual = [4, 6].map(|family| tunnel_ends(family).1);
    let others = [ip("10.0.5.3"), ip("2001:db8:5::3")];
    for (own, taken) in [
        (vec![], false),
        (usual.to_vec(), true),
        (others.to_vec(), false),
        ([usual, others].concat(), true),
    ] {
        lab.own(&own);
        each_kind(
            |_, _| {},
            |_, kind, whole| {
                if taken {
                    let (outcome, _) = lab.send(whole);
                    let decapsulated = matches!(outcome, Outcome::Decapsulated(..));
                    assert!(decapsulated, "{own:?}, {kind}: {outcome:?}");
                } else {
                    lab.expect_left_alone(kind, whole, "not_local");
                }
            },
        );
    }
}

#[test]
fn ipv4_fragments() {
    let lab = Lab::new();
    for (inner, how) in [(4, How::Ipip), (6, How::Ipip), (4, How::Gue), (6, How::Gue)] {
        for (fragment, first) in [((0, true), true), ((3, true), false), ((185, false), false)] {
            let packet = wrap(4, inner, how, &request(inner, 64).bytes())
                .with(|packet| packet.fragment = fragment);
            // Without its first fragment a datagram has no port.
            let reason = if how == How::Gue && !first {
                "no_tunnel"
            } else {
                "fragmented"
            };
            lab.expect_left_alone(
                &format!("{how:?}, {fragment:?}"),
                &frame(1, 4, &packet.bytes()),
                reason,
            );
        }
    }
}

#[test]
fn ipv6_fragments() {
    let lab = Lab::new();
    let ends = tunnel_ends(6);
    for (protocol, payload) in [
        (IPV4, request(4, 64).bytes()),
        (IPV6, request(6, 64).bytes()),
        (
            UDP,
            udp(ends, (50_001, GUE_PORT), false, &request(4, 64).bytes()),
        ),
    ] {
        // The last one is whole (RFC 6946), and not ours to look into either.
        for (offset, more) in [(0, 1), (3, 1), (180, 0), (0, 0)] {
            let [high, low] = (offset << 3 | more as u16).to_be_bytes();
            let header = [protocol, 0, high, low, 0, 0, 0, 9];
            let packet = Packet::new(ends.0, ends.1, 44, [&header, payload.as_slice()].concat());
            let reason = if protocol == UDP && offset > 0 {
                "no_tunnel"
            } else {
                "fragmented"
            };
            lab.expect_left_alone(
                &format!("{protocol}, offset {offset}, more {more}"),
                &frame(0, 6, &packet.bytes()),
                reason,
            );
        }
    }
}

/// GUE of variant 0 has a header of its own, and its control messages too; FOU may carry anything.
#[test]
fn other_contents_on_the_gue_port() {
    let lab = Lab::new();
    for family in [4, 6] {
        let ends = tunnel_ends(family);
        let mut contents = vec![vec![]];
        for nibble in (0..16).filter(|nibble| ![4, 6].contains(nibble)) {
            let mut bytes = request(4, 20).bytes();
            bytes[0] = nibble << 4 | 5;
            contents.push(bytes);
            contents.push(vec![nibble << 4]);
        }
        for bytes in contents {
            let datagram = udp(ends, (50_001, GUE_PORT), false, &bytes);
            let packet = Packet::new(ends.0, ends.1, UDP, datagram);
            let what = format!("contents {:02x?}", bytes.first());
            lab.expect_left_alone(&what, &frame(0, family, &packet.bytes()), "other_gue");
        }
    }
}

/// What cannot be told to be for us is not judged.
#[test]
fn broken_packets_of_others() {
    let lab = Lab::new();
    let mut packet = wrap(4, 4, How::Ipip, &[1, 2, 3])
        .with(|packet| packet.destination = ip("10.0.5.9"))
        .bytes();
    packet[0] = 0x4f;
    fix_checksum(&mut packet);
    let whole = frame(0, 4, &packet);
    assert!(whole.len() > l3(0));
    lab.expect_left_alone("broken, for another", &whole, "not_local");
}

/// A driver may leave a frame's headers beyond what XDP reaches directly: nothing is known of them, and
/// the stack copes.
#[test]
fn headers_out_of_reach() {
    let lab = Lab::new();
    for (outer, inner, how, kind) in CELLS {
        for words in [0, 10] {
            if outer == 6 && words > 0 {
                continue;
            }
            let packet = wrap(outer, inner, how, &request(inner, 100).bytes())
                .with(|packet| packet.options = vec![1; 4 * words]);
            let whole = frame(1, outer, &packet.bytes());
            let seen = l3(1) + if outer == 4 { 20 } else { 40 };
            let port = seen + 4 * words + if how == How::Gue { 8 } else { 0 };
            let needed = port + if inner == 4 { 20 } else { 40 };
            for reached in 14..=needed + 1 {
                let (outcome, _) = lab.send_split(&whole, reached);
                let expected = match outcome {
                    Outcome::LeftAlone("no_tunnel") => {
                        reached < seen || how == How::Gue && reached < port
                    }
                    Outcome::LeftAlone("split_headers") => reached >= seen && reached < needed,
                    Outcome::Decapsulated(found, _) => found == kind && reached >= needed,
                    _ => false,
                };
                assert!(
                    expected,
                    "{kind}, {words} words, {reached} bytes: {outcome:?}"
                );
            }
        }
    }
}
