//! Tunnel packets for us that contradict themselves: dropped, and never read beyond their end.

use crate::lab::{Lab, Outcome};
use crate::packet::{
    fix_checksum, frame, l3, request, tunnel_ends, wrap, How, Packet, CELLS, IPV4, IPV6,
};

/// Each cell with the outer packet's bytes changed.
#[track_caller]
fn outer_is_refused(what: &str, families: &[u8], change: impl Fn(&mut Vec<u8>)) {
    let lab = Lab::new();
    for (outer, inner, how, kind) in CELLS {
        if !families.contains(&outer) {
            continue;
        }
        let mut packet = wrap(outer, inner, how, &request(inner, 24).bytes()).bytes();
        change(&mut packet);
        lab.expect_dropped(
            &format!("{what}, {kind}"),
            &frame(0, outer, &packet),
            "bad_outer",
        );
    }
}

#[test]
fn outer_ipv4_headers() {
    for version in [0, 5, 6, 15] {
        outer_is_refused("version", &[4], |packet| {
            packet[0] = version << 4 | 5;
            fix_checksum(packet);
        });
    }
    outer_is_refused("longer than the frame", &[4], |packet| {
        let total = packet.len() as u16 + 1;
        packet[2..4].copy_from_slice(&total.to_be_bytes());
        fix_checksum(packet);
    });
    outer_is_refused("65535 bytes long", &[4], |packet| {
        packet[2..4].fill(0xff);
        fix_checksum(packet);
    });
    for at in [1, 4, 8, 10, 11] {
        outer_is_refused("checksum", &[4], |packet| packet[at] ^= 0x10);
    }
    outer_is_refused("checksum 0", &[4], |packet| packet[10..12].fill(0));
    outer_is_refused("checksum 0xffff", &[4], |packet| packet[10..12].fill(0xff));
}

#[test]
fn outer_ipv4_header_lengths() {
    let lab = Lab::new();
    for inner in [4, 6] {
        for words in 0..5 {
            let mut packet = wrap(4, inner, How::Ipip, &request(inner, 24).bytes()).bytes();
            packet[0] = 0x40 | words;
            fix_checksum(&mut packet);
            lab.expect_dropped("header too short", &frame(0, 4, &packet), "bad_outer");
        }
        // Options beyond the packet's end.
        let ends = tunnel_ends(4);
        let protocol = if inner == 4 { IPV4 } else { IPV6 };
        let mut packet = Packet::new(ends.0, ends.1, protocol, vec![0; 12]).bytes();
        packet[0] = 0x4f;
        fix_checksum(&mut packet);
        packet.extend([0; 40]);
        lab.expect_dropped(
            "header longer than the packet",
            &frame(0, 4, &packet),
            "bad_outer",
        );
    }
}

/// Options are part of what the checksum is over.
#[test]
fn checksums_with_options() {
    let lab = Lab::new();
    for words in 1..=10 {
        let packet = wrap(4, 4, How::Ipip, &request(4, 24).bytes())
            .with(|packet| packet.options = vec![1; 4 * words]);
        for at in 20..20 + 4 * words {
            let mut bytes = packet.bytes();
            bytes[at] ^= 0x40;
            lab.expect_dropped("a changed option", &frame(0, 4, &bytes), "bad_outer");
        }
    }
}

#[test]
fn outer_ipv6_headers() {
    for version in [0, 4, 5, 7] {
        outer_is_refused("version", &[6], |packet| packet[0] = version << 4);
    }
    outer_is_refused("longer than the frame", &[6], |packet| {
        let length = packet.len() as u16 - 40 + 1;
        packet[4..6].copy_from_slice(&length.to_be_bytes());
    });
}

#[test]
fn gue_lengths() {
    let lab = Lab::new();
    for (outer, inner, _, kind) in CELLS.into_iter().filter(|cell| cell.2 == How::Gue) {
        let good = wrap(outer, inner, How::Gue, &request(inner, 24).bytes());
        let length = good.payload.len() as u16;
        for wrong in [0, 1, 7, length + 1, 0xffff] {
            let packet = good.with(|packet| {
                packet.payload[4..6].copy_from_slice(&wrong.to_be_bytes());
            });
            lab.expect_dropped(
                &format!("{kind}, length {wrong}"),
                &frame(0, outer, &packet.bytes()),
                "bad_outer",
            );
        }
    }
}

/// Each cell with the inner packet's bytes changed.
#[track_caller]
fn inner_is_refused(what: &str, families: &[u8], change: impl Fn(&mut Vec<u8>)) {
    let lab = Lab::new();
    for (outer, inner, how, kind) in CELLS {
        if !families.contains(&inner) {
            continue;
        }
        let mut bytes = request(inner, 24).bytes();
        change(&mut bytes);
        let packet = wrap(outer, inner, how, &bytes);
        lab.expect_dropped(
            &format!("{what}, {kind}"),
            &frame(0, outer, &packet.bytes()),
            "bad_inner",
        );
    }
}

#[test]
fn inner_ipv4_headers() {
    for words in 0..5 {
        inner_is_refused("header too short", &[4], |bytes| bytes[0] = 0x40 | words);
    }
    inner_is_refused("shorter than its header", &[4], |bytes| {
        bytes[2..4].copy_from_slice(&19_u16.to_be_bytes());
    });
    inner_is_refused("shorter than its options", &[4], |bytes| {
        bytes[0] = 0x4f;
        bytes[2..4].copy_from_slice(&59_u16.to_be_bytes());
    });
    inner_is_refused("longer than the tunnel's packet", &[4], |bytes| {
        let total = bytes.len() as u16 + 1;
        bytes[2..4].copy_from_slice(&total.to_be_bytes());
    });
}

#[test]
fn inner_ipv6_headers() {
    for length in [25 + 8, 0xffff_u16] {
        inner_is_refused("longer than the tunnel's packet", &[6], |bytes| {
            bytes[4..6].copy_from_slice(&length.to_be_bytes());
        });
    }
}

/// Padding after the outer packet cannot make an inner one whole.
#[test]
fn inner_packets_are_not_completed_by_padding() {
    let lab = Lab::new();
    for (outer, inner, how, kind) in CELLS {
        let bytes = request(inner, 24).bytes();
        for missing in [1, 20, bytes.len() - 1] {
            let mut whole = frame(
                0,
                outer,
                &wrap(outer, inner, how, &bytes[..bytes.len() - missing]).bytes(),
            );
            whole.extend(&bytes[bytes.len() - missing..]);
            lab.expect_dropped(&format!("{kind}, {missing} short"), &whole, "bad_inner");
        }
    }
}

#[test]
fn versions_that_the_protocol_does_not_say() {
    let lab = Lab::new();
    for outer in [4, 6] {
        let ends = tunnel_ends(outer);
        for (protocol, right) in [(IPV4, 4), (IPV6, 6)] {
            for nibble in (0..16).filter(|&nibble| nibble != right) {
                let mut bytes = request(right, 60).bytes();
                bytes[0] = nibble << 4 | bytes[0] & 15;
                let packet = Packet::new(ends.0, ends.1, protocol, bytes);
                lab.expect_dropped(
                    &format!("version {nibble} in protocol {protocol}"),
                    &frame(0, outer, &packet.bytes()),
                    "bad_inner",
                );
            }
            let other = request(10 - right, 60).bytes();
            let packet = Packet::new(ends.0, ends.1, protocol, other);
            lab.expect_dropped(
                "the other family",
                &frame(0, outer, &packet.bytes()),
                "bad_inner",
            );
            let packet = Packet::new(ends.0, ends.1, protocol, Vec::new());
            lab.expect_dropped(
                "nothing inside",
                &frame(0, outer, &packet.bytes()),
                "bad_inner",
            );
        }
    }
}

/// A frame that was cut off anywhere: dropped or left alone, the latter unchanged, never decapsulated.
#[test]
fn truncated_at_every_length() {
    let lab = Lab::new();
    for (outer, inner, how, kind) in CELLS {
        for tags in 0..=2 {
            for words in [0, 3] {
                if outer == 6 && words > 0 {
                    continue;
                }
                let packet = wrap(outer, inner, how, &request(inner, 24).bytes())
                    .with(|packet| packet.options = vec![1; 4 * words]);
                let whole = frame(tags, outer, &packet.bytes());
                let seen = l3(tags) + if outer == 4 { 20 } else { 40 };
                for length in 14..whole.len() {
                    let (outcome, _) = lab.send(&whole[..length]);
                    let expected = match outcome {
                        Outcome::Dropped("bad_outer") => length >= seen,
                        // A port that is cut off is not known to be GUE's.
                        Outcome::LeftAlone("no_tunnel") => {
                            length < seen || how == How::Gue && length < seen + 4 * words + 8
                        }
                        _ => false,
                    };
                    assert!(
                        expected,
                        "{kind}, {tags} tags, {length} of {}: {outcome:?}",
                        whole.len()
                    );
                }
            }
        }
    }
}
