//! Packets that are decapsulated: every kind, in every form that an outer packet may have.

use crate::lab::Lab;
use crate::packet::{
    frame, request, syn, tunnel_ends, udp, wrap, How, Packet, CELLS, GUE_PORT, UDP,
};

#[test]
fn every_kind_with_tags_options_and_padding() {
    let lab = Lab::new();
    for (outer, inner, how, kind) in CELLS {
        let packets = [
            request(inner, 40),
            request(inner, 0),
            syn(inner),
            // As it came to the balancer: DSCP, a low TTL and options are its own.
            request(inner, 9).with(|packet| {
                packet.class = 0xb8;
                packet.ttl = 1;
                if inner == 4 {
                    packet.options = vec![0x94, 4, 0, 0, 1, 1, 1, 0];
                }
            }),
        ];
        for packet in packets {
            let bytes = packet.bytes();
            for tags in 0..=2 {
                for words in [0, 1, 10] {
                    if outer == 6 && words > 0 {
                        continue;
                    }
                    for padding in [0, 1, 18] {
                        let mut whole = frame(
                            tags,
                            outer,
                            &wrap(outer, inner, how, &bytes)
                                .with(|outer| {
                                    outer.options = vec![1; 4 * words];
                                    outer.class = 0x50;
                                    outer.ttl = 3;
                                })
                                .bytes(),
                        );
                        let mut expected = frame(tags, inner, &bytes);
                        whole.extend(vec![0xee; padding]);
                        expected.extend(vec![0xee; padding]);
                        let what = format!("{kind}, {tags} tags, {words} words of options, {padding} bytes of padding: {packet:?}");
                        lab.expect(&what, &whole, kind, bytes.len(), &expected);
                    }
                }
            }
        }
    }
}

/// An inner packet may be a fragment: putting it together is its receiver's.
#[test]
fn a_fragment_inside_is_a_packet() {
    let lab = Lab::new();
    for how in [How::Ipip, How::Gue] {
        let bytes = request(4, 40)
            .with(|packet| packet.fragment = (5, true))
            .bytes();
        let kind = if how == How::Ipip {
            "ipip_4in4"
        } else {
            "gue_4in4"
        };
        lab.expect(
            "a fragment inside",
            &frame(0, 4, &wrap(4, 4, how, &bytes).bytes()),
            kind,
            bytes.len(),
            &frame(0, 4, &bytes),
        );
    }
}

/// Only one header goes: what is inside is the receiver's, whatever it is.
#[test]
fn a_tunnel_inside_stays() {
    let lab = Lab::new();
    let once = wrap(4, 4, How::Ipip, &request(4, 12).bytes()).bytes();
    lab.expect(
        "a tunnel in a tunnel",
        &frame(1, 6, &wrap(6, 4, How::Gue, &once).bytes()),
        "gue_4in6",
        once.len(),
        &frame(1, 4, &once),
    );
}

/// What the sender left between the end of the inner packet and that of the outer one stays in the frame;
/// the stack cuts it off by the inner length.
#[test]
fn bytes_behind_the_inner_packet() {
    let lab = Lab::new();
    for (outer, inner, how, kind) in CELLS {
        let bytes = request(inner, 20).bytes();
        let longer = [bytes.as_slice(), &[0xaa; 11]].concat();
        lab.expect(
            kind,
            &frame(0, outer, &wrap(outer, inner, how, &longer).bytes()),
            kind,
            bytes.len(),
            &frame(0, inner, &longer),
        );
    }
}

/// The outer IP packet may be longer than its UDP datagram.
#[test]
fn bytes_behind_the_datagram() {
    let lab = Lab::new();
    for (outer, inner, _, kind) in CELLS.into_iter().filter(|cell| cell.2 == How::Gue) {
        let bytes = request(inner, 20).bytes();
        let mut packet = wrap(outer, inner, How::Gue, &bytes);
        packet.payload.extend([0xbb; 7]);
        let expected = [frame(0, inner, &bytes), vec![0xbb; 7]].concat();
        lab.expect(
            kind,
            &frame(0, outer, &packet.bytes()),
            kind,
            bytes.len(),
            &expected,
        );
    }
}

/// A checksum may be there; it is not verified, so a wrong one does not matter.
#[test]
fn gue_with_a_udp_checksum() {
    let lab = Lab::new();
    for (outer, inner, _, kind) in CELLS.into_iter().filter(|cell| cell.2 == How::Gue) {
        let bytes = request(inner, 33).bytes();
        let ends = tunnel_ends(outer);
        let mut datagram = udp(ends, (50_001, GUE_PORT), true, &bytes);
        for what in ["right", "wrong"] {
            let packet = Packet::new(ends.0, ends.1, UDP, datagram.clone());
            lab.expect(
                what,
                &frame(0, outer, &packet.bytes()),
                kind,
                bytes.len(),
                &frame(0, inner, &bytes),
            );
            datagram[6] ^= 0x5a;
        }
    }
}

#[test]
fn another_gue_port() {
    let lab = Lab::with(7000, &[]);
    let bytes = request(4, 8).bytes();
    let ends = tunnel_ends(4);
    let to = |port| {
        let packet = Packet::new(
            ends.0,
            ends.1,
            UDP,
            udp(ends, (GUE_PORT, port), false, &bytes),
        );
        frame(0, 4, &packet.bytes())
    };
    lab.expect(
        "port 7000",
        &to(7000),
        "gue_4in4",
        bytes.len(),
        &frame(0, 4, &bytes),
    );
    lab.expect_left_alone("port 6080", &to(GUE_PORT), "no_tunnel");
}

/// More than a page: XDP sees the first part of such a frame directly, the rest is in fragments.
#[test]
fn jumbo_frames() {
    let lab = Lab::new();
    for (outer, inner, how, kind) in CELLS {
        for data in [1400, 4000, 8000, 40_000] {
            let bytes = request(inner, data).bytes();
            let whole = frame(2, outer, &wrap(outer, inner, how, &bytes).bytes());
            let what = format!("{kind}, {data} bytes");
            lab.expect(&what, &whole, kind, bytes.len(), &frame(2, inner, &bytes));
            let cut = &whole[..whole.len() - 1];
            lab.expect_dropped(&what, cut, "bad_outer");
        }
    }
}
