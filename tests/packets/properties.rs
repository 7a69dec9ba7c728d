//! Properties of any packet: never a crash, never a broken packet out of a sound one, never a change to
//! what is passed on, and one backend a flow.

use std::cell::Cell as Count;
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;

use etherparse::{EtherType, IpNumber, Ipv4Header, Ipv6Header, TcpSlice, UdpHeader};
use proptest::prelude::*;

use crate::harness::cases::{self, STANDARD};
use crate::harness::cells::{self, every, Cell, Dress, Ends, Mode, PROTOCOLS};
use crate::harness::dialog::{ends_of, Dialog};
use crate::harness::frame::{
    fix_ipv4_checksum, tcp, Frame, Protocol, ACK, DESTINATION_OPTIONS, DOT1AD, DOT1Q, FRAGMENT,
    HOP_BY_HOP, IPV4, IPV6, ROUTING, SYN,
};
use crate::harness::ip::{Ethernet, Icmp, Packet};
use crate::harness::{assert_same, at, hex, ip, own_mac, Lab, Verdict, BACKENDS, CLIENTS, ROUTER};
use crate::property::{check, one_in};

/// A sound TCP or UDP packet, taken apart by etherparse: where its parts are.
struct Sound {
    l3: usize,
    l4: usize,
    protocol: Protocol,
    ipv6: bool,
    /// Where the IP packet ends.
    end: usize,
}

impl Sound {
    /// `None` if it is none: a header that does not parse, or a checksum that is wrong.
    fn parse(bytes: &[u8]) -> Option<Sound> {
        let (l3, ethertype) = after_tags(bytes)?;
        let (l4, protocol, end, addresses) = match ethertype {
            IPV4 => {
                let (ip, _) = Ipv4Header::from_slice(&bytes[l3..]).ok()?;
                let end = l3 + usize::from(ip.total_len);
                if ip.header_checksum != ip.calc_header_checksum() || ip.is_fragmenting_payload() {
                    return None;
                }
                let addresses = (IpAddr::from(ip.source), IpAddr::from(ip.destination));
                (l3 + ip.header_len(), ip.protocol, end, addresses)
            }
            IPV6 => {
                let (ip6, rest) = Ipv6Header::from_slice(&bytes[l3..]).ok()?;
                let end = l3 + Ipv6Header::LEN + usize::from(ip6.payload_length);
                let (protocol, l4) =
                    Ipv6Header::skip_all_header_extensions_in_slice(rest, ip6.next_header).ok()?;
                let addresses = (IpAddr::from(ip6.source), IpAddr::from(ip6.destination));
                (bytes.len() - l4.len(), protocol, end, addresses)
            }
            _ => return None,
        };
        let protocol = match protocol {
            IpNumber::TCP => Protocol::Tcp,
            IpNumber::UDP => Protocol::Udp,
            _ => return None,
        };
        let segment = bytes.get(l4..end)?;
        let right = match protocol {
            Protocol::Tcp => tcp_is_right(segment, addresses)?,
            Protocol::Udp => udp_is_right(segment, addresses)?,
        };
        right.then_some(Sound {
            l3,
            l4,
            protocol,
            ipv6: ethertype == IPV6,
            end,
        })
    }

    /// The bytes that balancing writes.
    fn rewritten(&self) -> Vec<Range<usize>> {
        let l3 = self.l3;
        let check = match self.protocol {
            Protocol::Tcp => self.l4 + 16,
            Protocol::Udp => self.l4 + 6,
        };
        let mut ranges = vec![0..12, self.l4..self.l4 + 4, check..check + 2];
        if self.ipv6 {
            ranges.push(l3 + 7..l3 + 40);
        } else {
            ranges.extend([l3 + 8..l3 + 9, l3 + 10..l3 + 20]);
        }
        ranges
    }
}

fn after_tags(bytes: &[u8]) -> Option<(usize, u16)> {
    let at = |at: usize| Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?));
    let mut l3 = 14;
    for _ in 0..2 {
        if ![DOT1Q, DOT1AD].contains(&at(l3 - 2)?) {
            break;
        }
        l3 += 4;
    }
    Some((l3, at(l3 - 2)?)).filter(|(l3, _)| *l3 <= bytes.len())
}

fn tcp_is_right(segment: &[u8], addresses: (IpAddr, IpAddr)) -> Option<bool> {
    let tcp = TcpSlice::from_slice(segment).ok()?;
    let sum = match addresses {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            tcp.calc_checksum_ipv4(source.octets(), destination.octets())
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            tcp.calc_checksum_ipv6(source.octets(), destination.octets())
        }
        _ => return None,
    };
    Some(same_sum(tcp.checksum(), sum.ok()?))
}

fn udp_is_right(segment: &[u8], addresses: (IpAddr, IpAddr)) -> Option<bool> {
    let (udp, _) = UdpHeader::from_slice(segment).ok()?;
    // What follows the datagram in the packet is not its payload.
    let payload = segment.get(UdpHeader::LEN..usize::from(udp.length))?;
    if udp.checksum == 0 {
        return Some(true);
    }
    let sum = match addresses {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            udp.calc_checksum_ipv4_raw(source.octets(), destination.octets(), payload)
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            udp.calc_checksum_ipv6_raw(source.octets(), destination.octets(), payload)
        }
        _ => return None,
    };
    Some(same_sum(udp.checksum, sum.ok()?))
}

/// 0 and 0xffff are one number to a receiver.
fn same_sum(a: u16, b: u16) -> bool {
    a % 0xffff == b % 0xffff
}

/// Sends it and holds the result against what must be true of any packet. `Lab::send` checks that what is
/// passed on is unchanged, and that the packet is counted once.
fn survives(lab: &Lab, slot: u16, bytes: &[u8]) -> Verdict {
    lab.refill_answers();
    let sent = lab.send(slot, bytes);
    match sent.verdict {
        Verdict::Tx | Verdict::Redirect => match direct_way(bytes) {
            Some(cell) => check_direct(cell, bytes, &sent.bytes),
            None => check_translated(bytes, &sent.bytes),
        },
        Verdict::Answer(_) => check_answer(bytes, &sent.bytes),
        Verdict::Drop(_) | Verdict::Pass(_) => {}
    }
    sent.verdict
}

/// The cell whose VIP the packet is for, if its backend answers directly.
fn direct_way(bytes: &[u8]) -> Option<Cell> {
    let (l3, ethertype) = after_tags(bytes)?;
    let destination: IpAddr = match ethertype {
        IPV4 => <[u8; 4]>::try_from(bytes.get(l3 + 16..l3 + 20)?)
            .ok()?
            .into(),
        IPV6 => <[u8; 16]>::try_from(bytes.get(l3 + 24..l3 + 40)?)
            .ok()?
            .into(),
        _ => return None,
    };
    cells::direct().find(|cell| cell.vip().ip() == destination)
}

/// The IP packet in a frame, padding off, and whether it is of IPv6.
fn ip_packet(bytes: &[u8]) -> (&[u8], bool) {
    let (l3, ethertype) = after_tags(bytes).expect("Ethernet");
    let length = |at: usize| usize::from(u16::from_be_bytes([bytes[l3 + at], bytes[l3 + at + 1]]));
    match ethertype {
        IPV4 => (&bytes[l3..l3 + length(2)], false),
        IPV6 => (&bytes[l3..l3 + 40 + length(4)], true),
        other => panic!("not IP but {other:#x}:\n{}", hex(bytes)),
    }
}

/// The sum of words, folded; 0xffff over what has its right checksum in it.
fn sum(parts: &[&[u8]]) -> u16 {
    let sum = parts
        .iter()
        .fold(etherparse::checksum::Sum16BitWords::new(), |sum, part| {
            sum.add_slice(part)
        });
    !u16::from_be(sum.ones_complement())
}

fn ipv4_header_is_right(packet: &[u8]) -> bool {
    let length = usize::from(packet[0] & 15) * 4;
    packet
        .get(..length)
        .is_some_and(|header| sum(&[header]) == 0xffff)
}

/// Of an ICMP message right behind the IP header; `None` if it is none.
fn icmp_is_right(packet: &[u8], ipv6: bool) -> Option<bool> {
    if ipv6 {
        let message = packet.get(40..).filter(|_| packet[6] == 58)?;
        let length = (message.len() as u32).to_be_bytes();
        return Some(sum(&[&packet[8..40], &length, &[0, 58], message]) == 0xffff);
    }
    let whole = packet[9] == 1 && packet[6] & 0x3f == 0 && packet[7] == 0;
    let message = packet.get(usize::from(packet[0] & 15) * 4..)?;
    whole.then(|| sum(&[message]) == 0xffff)
}

/// Everything as it was but MAC addresses and TTL, in the headers of its tunnel.
fn check_direct(cell: Cell, before: &[u8], after: &[u8]) {
    let context = || format!("{cell:?}:\n{}from\n{}", hex(after), hex(before));
    assert_eq!(after.len(), before.len() + cell.overhead(), "{}", context());
    let (l3, _) = after_tags(before).expect("Ethernet");
    let (inner, ipv6) = ip_packet(before);
    let (outer, outer_ipv6) = ip_packet(after);
    assert_eq!(after[12..l3 - 2], before[12..l3 - 2], "tags, {}", context());
    assert_eq!(outer.len(), inner.len() + cell.overhead(), "{}", context());
    if cell.mode.is_tunnel() {
        assert_eq!(outer_ipv6, cell.outer_ipv6, "{}", context());
        let (ip, protocol) = if outer_ipv6 {
            (40, outer[6])
        } else {
            assert!(ipv4_header_is_right(outer), "{}", context());
            (20, outer[9])
        };
        let expected = match cell.mode {
            Mode::Gue => 17,
            _ if ipv6 => 41,
            _ => 4,
        };
        assert_eq!(protocol, expected, "{}", context());
        if cell.mode == Mode::Gue {
            let field = |at: usize| u16::from_be_bytes([outer[ip + at], outer[ip + at + 1]]);
            assert!(field(0) >= 0xc000 && field(2) == 6080, "{}", context());
            assert_eq!(usize::from(field(4)), outer.len() - ip, "{}", context());
            let sound = Sound::parse(before).is_some();
            if field(6) != 0 && sound {
                let length = (u32::from(field(4))).to_be_bytes();
                let whole = [&outer[8..40], &length, &[0, 17], &outer[40..]];
                assert!(outer_ipv6 && sum(&whole) == 0xffff, "{}", context());
            }
        }
    }
    let delivered = &outer[cell.overhead()..];
    let mut expected = inner.to_vec();
    if ipv6 {
        expected[7] -= 1;
    } else {
        expected[8] -= 1;
        if ipv4_header_is_right(inner) {
            assert!(ipv4_header_is_right(delivered), "{}", context());
        }
        expected[10..12].copy_from_slice(&delivered[10..12]);
    }
    assert_same("what is delivered", delivered, &expected);
    assert_eq!(
        after[l3 + outer.len()..],
        before[l3 + inner.len()..],
        "padding"
    );
}

/// Only the fields that balancing writes are others, and a sound packet stays one.
fn check_translated(bytes: &[u8], after: &[u8]) {
    assert_eq!(after.len(), bytes.len(), "the length of\n{}", hex(bytes));
    let ((was, ipv6), (is, _)) = (ip_packet(bytes), ip_packet(after));
    let context = || format!("unsound:\n{}from\n{}", hex(after), hex(bytes));
    if !ipv6 && ipv4_header_is_right(was) {
        assert!(ipv4_header_is_right(is), "{}", context());
    }
    if icmp_is_right(was, ipv6) == Some(true) {
        assert_eq!(icmp_is_right(is, ipv6), Some(true), "{}", context());
    }
    let Some(before) = Sound::parse(bytes) else {
        return;
    };
    let sound = Sound::parse(after).unwrap_or_else(|| panic!("{}", context()));
    assert_eq!((sound.l4, sound.end), (before.l4, before.end));
    let mut expected = bytes.to_vec();
    for range in before.rewritten() {
        expected[range.clone()].copy_from_slice(&after[range]);
    }
    assert_same("outside the fields to rewrite", after, &expected);
    let ttl = if before.ipv6 {
        before.l3 + 7
    } else {
        before.l3 + 8
    };
    assert_eq!(after[ttl], bytes[ttl] - 1, "TTL of\n{}", hex(bytes));
    let udp = (before.protocol == Protocol::Udp).then_some(before.l4 + 6);
    if let Some(at) = udp {
        let none = |bytes: &[u8]| bytes[at..at + 2] == [0, 0];
        assert_eq!(none(after), none(bytes), "UDP's 0 of\n{}", hex(bytes));
    }
}

/// An answer goes back to who sent the packet, and is sound itself.
fn check_answer(bytes: &[u8], after: &[u8]) {
    let context = || format!("the answer\n{}to\n{}", hex(after), hex(bytes));
    assert_eq!(after[..6], bytes[6..12], "{}", context());
    assert_eq!(after[6..12], bytes[..6], "{}", context());
    let (l3, ethertype) = after_tags(bytes).expect("Ethernet");
    assert_eq!(after[12..l3], bytes[12..l3], "tags, {}", context());
    let (packet, ipv6) = ip_packet(after);
    let (source, to) = if ethertype == IPV6 {
        (&bytes[l3 + 8..l3 + 24], &packet[24..40])
    } else {
        (&bytes[l3 + 12..l3 + 16], &packet[16..20])
    };
    assert_eq!(source, to, "{}", context());
    let asked = ip_packet(bytes).0;
    let is_ping = icmp_is_right(asked, ipv6).is_some();
    if !is_ping {
        assert!(
            packet.len() <= if ipv6 { 1280 } else { 576 },
            "{}",
            context()
        );
        assert!(ipv6 || ipv4_header_is_right(packet), "{}", context());
    }
    match icmp_is_right(packet, ipv6) {
        // A ping's checksum is what it was.
        Some(right) => assert!(
            right || is_ping || has_extensions(asked, ipv6),
            "{}",
            context()
        ),
        None => assert!(
            Sound::parse(after).is_some() || has_extensions(asked, ipv6),
            "{}",
            context()
        ),
    }
}

/// Whether more than IPv6's own header is before the transport's.
fn has_extensions(packet: &[u8], ipv6: bool) -> bool {
    ipv6 && ![6, 17, 58].contains(&packet[6])
}

#[test]
fn arbitrary_bytes() {
    let lab = Lab::new(&every());
    let ethertype = prop_oneof![
        Just(EtherType::IPV4.0),
        Just(EtherType::IPV6.0),
        Just(DOT1Q),
        Just(DOT1AD),
        any::<u16>()
    ];
    let bytes = (
        ethertype,
        prop::collection::vec(any::<u8>(), 14..200),
        any::<bool>(),
    );
    check(3000, &bytes, |(ethertype, mut bytes, client)| {
        bytes[12..14].copy_from_slice(&ethertype.to_be_bytes());
        survives(&lab, if client { CLIENTS } else { BACKENDS }, &bytes);
    });
}

/// A change to a packet's bytes.
#[derive(Debug, Clone)]
enum Mutation {
    Byte(prop::sample::Index, u8),
    Bit(prop::sample::Index, u8),
    /// One of the first 60 bytes after the Ethernet header, where the headers are.
    Header(usize, u8),
    Truncate(prop::sample::Index),
    Append(Vec<u8>),
    Insert(prop::sample::Index, Vec<u8>),
    Remove(prop::sample::Index),
    /// A new length in the IP header that is right again.
    FixLengths,
    /// IPv4's header checksum right again.
    FixChecksum,
}

fn mutation() -> impl Strategy<Value = Mutation> {
    use prop::sample::Index;
    let some = prop::collection::vec(any::<u8>(), 1..24);
    prop_oneof![
        (any::<Index>(), any::<u8>()).prop_map(|(at, value)| Mutation::Byte(at, value)),
        (any::<Index>(), 0..8_u8).prop_map(|(at, bit)| Mutation::Bit(at, bit)),
        (0..60_usize, any::<u8>()).prop_map(|(at, value)| Mutation::Header(at, value)),
        any::<Index>().prop_map(Mutation::Truncate),
        some.clone().prop_map(Mutation::Append),
        (any::<Index>(), some).prop_map(|(at, bytes)| Mutation::Insert(at, bytes)),
        any::<Index>().prop_map(Mutation::Remove),
        Just(Mutation::FixLengths),
        Just(Mutation::FixChecksum),
    ]
}

impl Mutation {
    fn apply(&self, bytes: &mut Vec<u8>) {
        let length = bytes.len();
        match self {
            Mutation::Byte(at, value) => bytes[at.index(length)] = *value,
            Mutation::Bit(at, bit) => bytes[at.index(length)] ^= 1 << bit,
            Mutation::Header(at, value) => {
                if let Some(byte) = bytes.get_mut(14 + at) {
                    *byte = *value;
                }
            }
            Mutation::Truncate(at) => bytes.truncate(at.index(length)),
            Mutation::Append(more) => bytes.extend(more),
            Mutation::Insert(at, more) => {
                let at = at.index(length);
                bytes.splice(at..at, more.iter().copied());
            }
            Mutation::Remove(at) => {
                bytes.remove(at.index(length));
            }
            Mutation::FixLengths => fix_lengths(bytes),
            Mutation::FixChecksum => {
                if let Some((l3, IPV4)) = after_tags(bytes).filter(|(l3, _)| l3 + 20 <= length) {
                    fix_ipv4_checksum(bytes, l3);
                }
            }
        }
        // The kernel takes no frame without an Ethernet header.
        bytes.resize(bytes.len().max(14), 0);
    }
}

fn fix_lengths(bytes: &mut [u8]) {
    match after_tags(bytes) {
        Some((l3, IPV4)) if l3 + 20 <= bytes.len() => {
            let length = (bytes.len() - l3) as u16;
            bytes[l3 + 2..l3 + 4].copy_from_slice(&length.to_be_bytes());
            fix_ipv4_checksum(bytes, l3);
        }
        Some((l3, IPV6)) if l3 + 40 <= bytes.len() => {
            let length = (bytes.len() - l3 - 40) as u16;
            bytes[l3 + 4..l3 + 6].copy_from_slice(&length.to_be_bytes());
        }
        _ => {}
    }
}

/// What a sound packet may have beside its addresses.
fn dressing() -> impl Strategy<Value = Frame> {
    let tag = prop_oneof![Just(DOT1Q), Just(DOT1AD)];
    let extension = prop_oneof![
        Just((HOP_BY_HOP, vec![0, 1, 4, 0, 0, 0, 0])),
        Just((DESTINATION_OPTIONS, vec![0, 1, 4, 0, 0, 0, 0])),
        Just((ROUTING, vec![0, 0, 0, 0, 0, 0, 0])),
        Just((FRAGMENT, vec![0, 0, 0, 0, 0, 0, 9])),
    ];
    (
        prop::collection::vec((tag, any::<u16>()), 0..3),
        prop::collection::vec(extension, 0..4),
        0..=10_usize,
        0..=10_usize,
        any::<u8>(),
        any::<bool>(),
        prop::collection::vec(any::<u8>(), 0..80),
        prop::collection::vec(any::<u8>(), 0..20),
        0..64_u8,
    )
        .prop_map(
            |(tags, extensions, options, tcp_options, ttl, checksum, payload, padding, flags)| {
                Frame {
                    tags,
                    extensions,
                    options: vec![1; 4 * options],
                    tcp_options: vec![1; 4 * tcp_options],
                    ttl,
                    checksum,
                    payload,
                    padding,
                    ..tcp(at("0.0.0.0:0"), at("0.0.0.0:0"), flags)
                }
            },
        )
}

/// With every refusal answered, so that answers meet as many packets as can be.
fn rejecting() -> Lab {
    let mut lab = Lab::new(STANDARD);
    lab.datapath_keys += "\nunknown_port = \"reject\"";
    lab.reload(&every());
    lab
}

/// Both directions of a connection of each kind, and a packet of a new one.
fn bases(lab: &Lab) -> Vec<(u16, Frame)> {
    let direct = cells::direct().flat_map(|cell| {
        PROTOCOLS.into_iter().flat_map(move |protocol| {
            let path = cell.establish(lab, protocol, 4242);
            let mut closed = path.request(ACK);
            closed.destination.set_port(81);
            let mut new = path.request(SYN);
            new.source.set_port(6000);
            [path.request(ACK), new, closed].map(|frame| (CLIENTS, frame))
        })
    });
    let translated = cases::all().flat_map(|case| {
        let d = case.establish(lab);
        let new = d.with_client(case.client_at(6000));
        [
            (CLIENTS, d.request(ACK)),
            (BACKENDS, d.reply(ACK)),
            (CLIENTS, new.request(SYN)),
        ]
    });
    translated.chain(direct).collect()
}

/// What is no whole segment or datagram: fragments, errors and pings, in every mode and direction.
fn others(lab: &Lab) -> Vec<(u16, Vec<u8>)> {
    let mut frames = Vec::new();
    for cell in cells::all() {
        let from = if cell.ipv6 {
            "2001:db8:c::7"
        } else {
            "198.51.100.7"
        };
        let ping = Icmp::EchoRequest.message(ip(from), cell.vip().ip(), [0, 1, 0, 2], b"ping");
        let ethernet = Ethernet {
            to: own_mac(CLIENTS),
            from: ROUTER,
            tags: vec![],
        };
        frames.push((CLIENTS, ethernet.carrying(&ping)));
        for protocol in PROTOCOLS {
            let path = cell.establish(lab, protocol, 4242);
            let plain = Dress::default();
            let mut both = |to_backend: &dyn Fn(Ends) -> Packet,
                            to_client: &dyn Fn(Ends) -> Packet| {
                frames.push((CLIENTS, path.sent(&plain, to_backend)));
                if !cell.mode.is_direct() {
                    frames.push((BACKENDS, path.sent_back(&plain, to_client)));
                }
            };
            for kind in [Icmp::TooBig(1400), Icmp::TimeExceeded] {
                let about = |ends: Ends, frame: Frame, to| {
                    kind.about(ends.router, to, &frame.packet().bytes())
                };
                both(
                    &|ends| about(ends, path.back_between(ends, ACK), ends.server.ip()),
                    &|ends| about(ends, path.between(ends, ACK), ends.client.ip()),
                );
            }
            for n in 0..2 {
                let cut = |frame: Frame| {
                    let frame = frame.with(|f| f.payload = vec![7; 100]);
                    let id = u32::from(protocol.number().0);
                    frame.packet().fragments(id, 0, &[64])[n].clone()
                };
                both(&|ends| cut(path.between(ends, ACK)), &|ends| {
                    cut(path.back_between(ends, ACK))
                });
            }
        }
    }
    frames
}

fn dress(base: &Frame, dressing: Frame) -> Frame {
    Frame {
        to: base.to,
        from: base.from,
        source: base.source,
        destination: base.destination,
        protocol: base.protocol,
        // Over IPv6 there is always one (RFC 8200, section 8.1).
        checksum: dressing.checksum || base.source.is_ipv6(),
        ..dressing
    }
}

#[test]
fn sound_packets_of_every_kind() {
    let lab = rejecting();
    let bases = bases(&lab);
    let strategy = (0..bases.len(), dressing());
    let (delivered, answered) = (Count::new(0), Count::new(0));
    check(6000, &strategy, |(base, dressing)| {
        let (slot, base) = &bases[base];
        let bytes = dress(base, dressing).bytes();
        assert!(
            Sound::parse(&bytes).is_some(),
            "the test's own packet:\n{}",
            hex(&bytes)
        );
        match survives(&lab, *slot, &bytes) {
            Verdict::Redirect | Verdict::Tx => delivered.set(delivered.get() + 1),
            Verdict::Answer(_) => answered.set(answered.get() + 1),
            _ => {}
        }
    });
    let (delivered, answered) = (delivered.get(), answered.get());
    assert!(
        delivered > 3000 / one_in(),
        "only {delivered} packets came through"
    );
    assert!(
        answered > 300 / one_in(),
        "only {answered} packets were answered"
    );
}

#[test]
fn mutated_packets() {
    let lab = rejecting();
    let (bases, others) = (bases(&lab), others(&lab));
    let mutations = prop::collection::vec(mutation(), 1..5);
    let base = 0..bases.len() + others.len();
    let strategy = (base, dressing(), any::<bool>(), mutations);
    let forwarded = Count::new(0);
    check(12000, &strategy, |(base, dressing, dressed, mutations)| {
        let (slot, mut bytes) = match bases.get(base) {
            Some((slot, base)) if dressed => (*slot, dress(base, dressing).bytes()),
            Some((slot, base)) => (*slot, base.bytes()),
            None => others[base - bases.len()].clone(),
        };
        for mutation in &mutations {
            mutation.apply(&mut bytes);
        }
        if matches!(
            survives(&lab, slot, &bytes),
            Verdict::Redirect | Verdict::Tx
        ) {
            forwarded.set(forwarded.get() + 1);
        }
    });
    assert!(
        forwarded.get() > 1000 / one_in(),
        "only {} packets came through",
        forwarded.get()
    );
}

const MANY: [u8; 6] = [2, 3, 4, 5, 6, 7];

/// One service on both families, its backends in this order.
fn many(order: impl Iterator<Item = u8>) -> String {
    let mut text = String::from(
        "[[service]]\nname = \"many\"\nvip = [\"203.0.113.11\", \"2001:db8:1::11\"]\nprotocol = [\"tcp\", \"udp\"]\nport = \"any\"\nforward = \"nat\"\n",
    );
    for number in order {
        for prefix in ["10.0.0.", "fd00::"] {
            text += &format!("[[service.backend]]\naddress = \"{prefix}{number}\"\nport = 80\n");
        }
    }
    text
}

/// A flow goes to one backend: by its connection, without one, and on another instance whose file names
/// the backends in another order.
#[test]
fn one_flow_one_backend() {
    let lab = Lab::new(&many(MANY.into_iter()));
    let other = Lab::new(&many(MANY.into_iter().rev()));
    let flow = (
        any::<bool>(),
        any::<bool>(),
        any::<u32>(),
        any::<u16>(),
        any::<u16>(),
    );
    check(300, &flow, |(ipv6, is_tcp, host, source, destination)| {
        let (client, vip): (IpAddr, &str) = if ipv6 {
            let prefix = 0x2001_0db8_000c_u128 << 80;
            (
                IpAddr::V6((prefix | u128::from(host)).into()),
                "[2001:db8:1::11]:0",
            )
        } else {
            (
                IpAddr::V4((11 << 24 | host & 0x00ff_ffff).into()),
                "203.0.113.11:0",
            )
        };
        let mut vip = at(vip);
        vip.set_port(destination);
        let client = SocketAddr::new(client, source);
        let protocol = if is_tcp { Protocol::Tcp } else { Protocol::Udp };
        let d = Dialog::open(&lab, protocol, client, vip);
        d.to_backend(&lab, ACK);
        d.to_client(&lab, ACK);
        d.to_backend(&lab, ACK);
        let elsewhere = Dialog::open(&other, protocol, client, vip);
        assert_eq!(elsewhere.backend, d.backend);
        // Without an entry it is the hash alone.
        lab.evict(&d.flow());
        let sent = lab.send(CLIENTS, &d.request(ACK).bytes());
        assert_eq!(ends_of(&sent.bytes).1, d.backend);
    });
}
