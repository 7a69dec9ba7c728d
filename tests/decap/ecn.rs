//! Congestion marks at decapsulation (RFC 6040, section 4.2).

use crate::lab::Lab;
use crate::packet::{frame, request, wrap, CELLS};
use crate::property::one_in;

const NOT_ECT: u8 = 0;
const ECT1: u8 = 1;
const ECT0: u8 = 2;
const CE: u8 = 3;

/// Figure 4 of the RFC, normal mode: inner, outer, what comes out (`None`: dropped).
const TABLE: [(u8, u8, Option<u8>); 16] = [
    (NOT_ECT, NOT_ECT, Some(NOT_ECT)),
    (NOT_ECT, ECT0, Some(NOT_ECT)),
    (NOT_ECT, ECT1, Some(NOT_ECT)),
    (NOT_ECT, CE, None),
    (ECT0, NOT_ECT, Some(ECT0)),
    (ECT0, ECT0, Some(ECT0)),
    (ECT0, ECT1, Some(ECT1)),
    (ECT0, CE, Some(CE)),
    (ECT1, NOT_ECT, Some(ECT1)),
    (ECT1, ECT0, Some(ECT1)),
    (ECT1, ECT1, Some(ECT1)),
    (ECT1, CE, Some(CE)),
    (CE, NOT_ECT, Some(CE)),
    (CE, ECT0, Some(CE)),
    (CE, ECT1, Some(CE)),
    (CE, CE, Some(CE)),
];

/// DSCP of the outer and of the inner header: neither has a say in the other.
const DSCP: [(u8, u8); 3] = [(0, 0), (0xb8, 0x28), (0xfc, 0xfc)];

#[test]
fn the_table() {
    let lab = Lab::new();
    for (outer, inner, how, kind) in CELLS {
        for (marked, arrived, left) in TABLE {
            for (outer_dscp, inner_dscp) in DSCP {
                let packet = request(inner, 10).with(|packet| packet.class = inner_dscp | marked);
                let whole = wrap(outer, inner, how, &packet.bytes())
                    .with(|packet| packet.class = outer_dscp | arrived);
                let whole = frame(1, outer, &whole.bytes());
                let what = format!(
                    "{kind}: inner {marked}, outer {arrived}, DSCP {outer_dscp:#x} {inner_dscp:#x}"
                );
                match left {
                    None => lab.expect_dropped(&what, &whole, "bad_ecn"),
                    Some(left) => {
                        let expected = packet.with(|packet| packet.class = inner_dscp | left);
                        let expected = expected.bytes();
                        lab.expect(
                            &what,
                            &whole,
                            kind,
                            expected.len(),
                            &frame(1, inner, &expected),
                        );
                    }
                }
            }
        }
    }
}

/// The header checksum after a mark, wherever it stood before: carries and the two zeroes included.
#[test]
fn checksums_of_marked_headers() {
    let lab = Lab::new();
    for (marked, arrived, left) in [(ECT0, CE, CE), (ECT1, CE, CE), (ECT0, ECT1, ECT1)] {
        for identification in (0..=u16::MAX)
            .step_by(17 * one_in())
            .chain([0xffff, 0xfffe, 1])
        {
            let inner = request(4, 0).with(|packet| {
                packet.identification = identification;
                packet.class = marked;
            });
            let whole = wrap(6, 4, crate::packet::How::Ipip, &inner.bytes())
                .with(|packet| packet.class = arrived);
            let expected = inner.with(|packet| packet.class = left).bytes();
            lab.expect(
                &format!("identification {identification:#06x}"),
                &frame(0, 6, &whole.bytes()),
                "ipip_4in6",
                expected.len(),
                &frame(0, 4, &expected),
            );
        }
    }
}

/// A checksum that was wrong stays wrong by as much: the stack finds it as before.
#[test]
fn a_wrong_checksum_is_not_mended() {
    let lab = Lab::new();
    let mut bytes = request(4, 4).with(|packet| packet.class = ECT0).bytes();
    bytes[11] = bytes[11].wrapping_add(3);
    let whole = wrap(4, 4, crate::packet::How::Gue, &bytes).with(|packet| packet.class = CE);
    let (_, out) = lab.send(&frame(0, 4, &whole.bytes()));
    let (header, _) = etherparse::Ipv4Header::from_slice(&out[14..]).expect("an IPv4 header");
    assert_eq!(header.ecn.value(), CE);
    assert_ne!(header.header_checksum, header.calc_header_checksum());
}
