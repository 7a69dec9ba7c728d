//! Truncated and lying headers: dropped and counted where they are for a VIP, untouched where they are
//! for somebody else. IPv6 extension headers, which have rules of their own, too.

use crate::harness::cases::{self, Case, STANDARD};
use crate::harness::dialog::Dialog;
use crate::harness::frame::{
    fix_ipv4_checksum, Frame, Protocol, ACK, DESTINATION_OPTIONS, DOT1Q, FRAGMENT, HOP_BY_HOP,
    ROUTING, SYN,
};
use crate::harness::{ip, Lab, Verdict, BACKENDS, CLIENTS};

const BAD: Verdict = Verdict::Drop("bad_header");
const NOT_OURS: Verdict = Verdict::Pass("not_ours");

/// The same packet for a VIP, for an address that the filter has never heard of, and as a backend would
/// send it to this host.
struct Three {
    for_vip: Frame,
    for_others: Frame,
    from_backend: Frame,
}

impl Three {
    fn of(case: Case) -> Three {
        let dialog = Dialog {
            protocol: case.protocol,
            client: case.client(),
            vip: case.vip(),
            backend: case.backend(),
            seen: case.client(),
            router: crate::harness::ROUTER,
            slot: CLIENTS,
        };
        let for_vip = dialog
            .request(SYN)
            .with(|f| f.payload = b"some payload".to_vec());
        let others = if case.ipv6 {
            "2001:db8:9::9"
        } else {
            "192.0.2.99"
        };
        let host = if case.ipv6 { "fd00::1" } else { "10.0.0.1" };
        Three {
            for_others: for_vip.with(|f| f.destination.set_ip(ip(others))),
            from_backend: for_vip.with(|f| {
                f.source = case.backend();
                f.destination.set_ip(ip(host));
            }),
            for_vip,
        }
    }

    /// Changes the bytes of each; the VIP's meets `verdict`, the others are passed on.
    #[track_caller]
    fn meet(&self, lab: &Lab, what: &str, verdict: Verdict, change: impl Fn(&Frame, &mut Vec<u8>)) {
        for (frame, slot, expected) in [
            (&self.for_vip, CLIENTS, verdict),
            (&self.for_others, CLIENTS, NOT_OURS),
            (&self.from_backend, BACKENDS, NOT_OURS),
        ] {
            let mut bytes = frame.bytes();
            change(frame, &mut bytes);
            // An address filter that is never wrong for these: they were chosen so. What parsing cannot
            // even take for IP is counted as that, whoever it is for.
            let expected = match expected {
                NOT_OURS if verdict == Verdict::Pass("not_ip") => verdict,
                expected => expected,
            };
            let sent = lab.send(slot, &bytes);
            assert_eq!(sent.verdict, expected, "{what}: {frame:?}");
        }
    }
}

#[test]
fn truncated_at_every_length() {
    let lab = Lab::new(STANDARD);
    for case in cases::all() {
        let three = Three::of(case);
        let length = three.for_vip.bytes().len();
        let ip_header = if case.ipv6 { 40 } else { 20 };
        for cut in 14..length {
            let verdict = if cut < 14 + ip_header {
                Verdict::Pass("not_ip")
            } else {
                BAD
            };
            three.meet(&lab, &format!("cut to {cut} bytes"), verdict, |_, bytes| {
                bytes.truncate(cut);
            });
        }
        let tagged = three
            .for_vip
            .with(|f| f.tags = vec![(DOT1Q, 1), (DOT1Q, 2)]);
        for cut in 14..22 + ip_header {
            let sent = lab.send(CLIENTS, &tagged.bytes()[..cut]);
            assert_eq!(sent.verdict, Verdict::Pass("not_ip"), "tags, cut to {cut}");
        }
    }
    assert_eq!(lab.entries(), []);
}

/// The IP header says that the packet ends earlier than it does: in the middle of a header, mostly.
#[test]
fn ip_lengths_that_lie() {
    let lab = Lab::new(STANDARD);
    for case in cases::all() {
        let three = Three::of(case);
        let at = if case.ipv6 { 14 + 4 } else { 14 + 2 };
        let base = if case.ipv6 { 0 } else { 20 };
        let header: u16 = match case.protocol {
            Protocol::Tcp => 20,
            // UDP's own length covers the payload as well.
            Protocol::Udp => 8 + 12,
        };
        let whole = (three.for_vip.bytes().len() - three.for_vip.l4()) as u16;
        let lies = (0..base + header).chain([base + whole + 1, base + whole + 1000, u16::MAX]);
        for lie in lies {
            three.meet(&lab, &format!("IP length {lie}"), BAD, |frame, bytes| {
                bytes[at..at + 2].copy_from_slice(&lie.to_be_bytes());
                if !case.ipv6 {
                    fix_ipv4_checksum(bytes, frame.l3());
                }
            });
        }
    }
    assert_eq!(lab.entries(), []);
}

#[test]
fn header_lengths_and_versions_that_lie() {
    let lab = Lab::new(STANDARD);
    for case in cases::all() {
        let three = Three::of(case);
        for version in (0..16).filter(|version| *version != if case.ipv6 { 6 } else { 4 }) {
            three.meet(&lab, &format!("version {version}"), BAD, |frame, bytes| {
                let byte = &mut bytes[frame.l3()];
                *byte = *byte & 0x0f | version << 4;
            });
        }
        if !case.ipv6 {
            // 5 words of IP, then 8 bytes of UDP or 20 of TCP and 12 of payload: more than that lies.
            let whole = (three.for_vip.bytes().len() - 14) / 4;
            for ihl in (0..5).chain(whole as u8 + 1..16) {
                three.meet(&lab, &format!("ihl {ihl}"), BAD, |frame, bytes| {
                    bytes[frame.l3()] = 0x40 | ihl;
                });
            }
        }
        match case.protocol {
            Protocol::Tcp => {
                // 20 bytes and 12 of payload are 8 words.
                for doff in (0..5).chain(9..16) {
                    three.meet(&lab, &format!("doff {doff}"), BAD, |frame, bytes| {
                        bytes[frame.l4() + 12] = doff << 4;
                    });
                }
            }
            Protocol::Udp => {
                for length in (0..8).chain([21, 22, 1000, u16::MAX]) {
                    three.meet(
                        &lab,
                        &format!("UDP length {length}"),
                        BAD,
                        |frame, bytes| {
                            let at = frame.l4() + 4;
                            bytes[at..at + 2].copy_from_slice(&length.to_be_bytes());
                        },
                    );
                }
            }
        }
    }
    assert_eq!(lab.entries(), []);
}

/// Options padded to `words` times 8 bytes: the body of a hop-by-hop or destination options header.
fn padded(words: u8) -> Vec<u8> {
    // Length without the first 8 bytes, then one PadN option over the rest (RFC 8200, section 4.2).
    let rest = usize::from(words) * 8 - 4;
    let mut body = vec![words - 1, 1, rest as u8];
    body.resize(3 + rest, 0);
    body
}

/// Type 0 (RFC 5095), one address, with so many segments left.
fn routing(segments_left: u8) -> Vec<u8> {
    let mut body = vec![2, 0, segments_left, 0, 0, 0, 0];
    body.extend([0x20; 16]);
    body
}

fn atomic() -> Vec<u8> {
    vec![0, 0, 0, 0, 0, 0, 9]
}

#[test]
fn extension_headers_are_walked() {
    let lab = Lab::new(STANDARD);
    for case in cases::all().filter(|case| case.ipv6) {
        for (port, chain) in (5000..).zip([
            vec![(HOP_BY_HOP, padded(1))],
            vec![(HOP_BY_HOP, padded(3))],
            vec![(DESTINATION_OPTIONS, padded(1))],
            vec![(DESTINATION_OPTIONS, padded(32))],
            vec![(ROUTING, routing(0))],
            vec![(FRAGMENT, atomic())],
            vec![
                (HOP_BY_HOP, padded(2)),
                (DESTINATION_OPTIONS, padded(1)),
                (ROUTING, routing(0)),
                (FRAGMENT, atomic()),
            ],
            // As many as RFC 8200, section 4.1 has, authentication and encryption left out.
            vec![
                (HOP_BY_HOP, padded(1)),
                (DESTINATION_OPTIONS, padded(1)),
                (ROUTING, routing(0)),
                (FRAGMENT, atomic()),
                (DESTINATION_OPTIONS, padded(2)),
            ],
            vec![(DESTINATION_OPTIONS, padded(1)); 6],
        ]) {
            let d = Dialog::open(&lab, case.protocol, case.client_at(port), case.vip());
            let change = |f: &mut Frame| f.extensions.clone_from(&chain);
            d.answer(&lab, &d.reply(SYN | ACK).with(change));
            d.deliver(&lab, &d.request(ACK).with(change));
            d.answer(&lab, &d.reply(ACK).with(change));
            // A first packet with them makes the same connection as one without.
            let first = d.with_client(case.client_at(port + 1000));
            let sent = lab.send(CLIENTS, &first.request(SYN).with(change).bytes());
            assert_eq!(sent.verdict, Verdict::Redirect, "{chain:?}");
        }
    }
}

#[test]
fn extension_headers_that_are_refused() {
    let lab = Lab::new(STANDARD);
    let bad = Verdict::Drop("bad_extension");
    for case in cases::all().filter(|case| case.ipv6) {
        let three = Three::of(case);
        for (what, chain, verdict) in [
            ("too many", vec![(DESTINATION_OPTIONS, padded(1)); 7], bad),
            (
                "far too many",
                vec![(DESTINATION_OPTIONS, padded(1)); 40],
                bad,
            ),
            (
                "the VIP is only a stop on the way",
                vec![(ROUTING, routing(1))],
                Verdict::Pass("other_protocol"),
            ),
            (
                "longer than the packet",
                vec![(DESTINATION_OPTIONS, vec![255, 0, 0, 0, 0, 0, 0])],
                bad,
            ),
            (
                "longer than the packet, then another",
                vec![
                    (HOP_BY_HOP, vec![20, 0, 0, 0, 0, 0, 0]),
                    (DESTINATION_OPTIONS, padded(1)),
                ],
                bad,
            ),
        ] {
            for (frame, slot, expected) in [
                (&three.for_vip, CLIENTS, verdict),
                (&three.for_others, CLIENTS, NOT_OURS),
                (&three.from_backend, BACKENDS, NOT_OURS),
            ] {
                let bytes = frame.with(|f| f.extensions.clone_from(&chain)).bytes();
                assert_eq!(
                    lab.send(slot, &bytes).verdict,
                    expected,
                    "{what}: {frame:?}"
                );
            }
        }
        // Cut off anywhere within the chain, the lengths as if it were not.
        let chain = vec![(HOP_BY_HOP, padded(2)), (DESTINATION_OPTIONS, padded(1))];
        let whole = three.for_vip.with(|f| f.extensions = chain);
        for cut in 54..whole.bytes().len() {
            assert_eq!(
                lab.send(CLIENTS, &whole.bytes()[..cut]).verdict,
                BAD,
                "cut to {cut}"
            );
        }
        // Cut off, and the length true: the chain says more than there is.
        for cut in 54..whole.l4() {
            let mut bytes = whole.bytes();
            bytes.truncate(cut);
            bytes[18..20].copy_from_slice(&((cut - 54) as u16).to_be_bytes());
            assert_eq!(lab.send(CLIENTS, &bytes).verdict, bad, "true, cut to {cut}");
        }
    }
    assert_eq!(lab.entries(), []);
}

/// A jumbogram (RFC 2675) has a payload length of 0 and is nothing that Ethernet carries.
#[test]
fn ipv6_without_a_payload_length() {
    let lab = Lab::new(STANDARD);
    for case in cases::all().filter(|case| case.ipv6) {
        let three = Three::of(case);
        let jumbo = vec![(HOP_BY_HOP, vec![0, 0xc2, 4, 0, 1, 0, 0])];
        let frame = three.for_vip.with(|f| f.extensions = jumbo);
        let mut bytes = frame.bytes();
        bytes[18..20].fill(0);
        assert_eq!(
            lab.send(CLIENTS, &bytes).verdict,
            Verdict::Drop("bad_extension")
        );
        // No next header: nothing to balance.
        let mut bytes = three.for_vip.bytes();
        bytes[20] = 59;
        assert_eq!(
            lab.send(CLIENTS, &bytes).verdict,
            Verdict::Pass("other_protocol")
        );
    }
}

/// In a frame of many pages the headers have to be where XDP can read them.
#[test]
fn lies_in_jumbo_frames() {
    let mut lab = Lab::new(STANDARD);
    lab.set_mtu(9000);
    for case in cases::all() {
        let three = Three::of(case);
        let frame = three.for_vip.with(|f| f.payload = vec![7; 8000]);
        let whole = frame.bytes();
        for cut in [3000, 4096, 8000, whole.len() - 1] {
            assert_eq!(
                lab.send(CLIENTS, &whole[..cut]).verdict,
                BAD,
                "{case:?}, {cut}"
            );
        }
        assert_eq!(lab.send(CLIENTS, &whole).verdict, Verdict::Redirect);
        if case.ipv6 {
            // Two long headers push the rest beyond the first page.
            let chain = vec![(DESTINATION_OPTIONS, long_options()); 2];
            let far = frame.with(|f| f.extensions = chain);
            let sent = lab.send(CLIENTS, &far.bytes());
            assert_eq!(sent.verdict, Verdict::Drop("split_header"));
        }
    }
}

/// The longest options header there is, 2,048 bytes.
fn long_options() -> Vec<u8> {
    let mut body = vec![255];
    // PadN options of 255 bytes, and what is left over.
    while body.len() + 257 <= 2047 {
        body.extend([1, 255]);
        body.extend([0; 255]);
    }
    let rest = 2047 - body.len() - 2;
    body.extend([1, rest as u8]);
    body.resize(2047, 0);
    body
}

#[test]
fn established_connections_take_no_bad_packets_either() {
    let lab = Lab::new(STANDARD);
    for case in cases::all() {
        let d = case.establish(&lab);
        let request = d.request(ACK).bytes();
        for cut in request.len() - 4..request.len() {
            assert_eq!(lab.send(CLIENTS, &request[..cut]).verdict, BAD, "{case:?}");
        }
        // The backend's are not for a VIP: the host's stack may say what it thinks of them.
        let reply = d.reply(ACK).bytes();
        let sent = lab.send(BACKENDS, &reply[..reply.len() - 1]);
        assert_eq!(sent.verdict, NOT_OURS, "{case:?}");
        d.to_backend(&lab, ACK);
        d.to_client(&lab, ACK);
    }
}
