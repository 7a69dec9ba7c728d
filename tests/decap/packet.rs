//! Packets as the tests write them down, and as bytes.
//!
//! Owns the builder. Headers and checksums are etherparse's, computed from scratch; nothing of the code
//! under test has a part in what a test expects.

use std::net::IpAddr;

use etherparse::{
    IpDscp, IpEcn, IpFragOffset, IpNumber, Ipv4Header, Ipv4Options, Ipv6FlowLabel, Ipv6Header,
    TcpHeader, UdpHeader,
};

/// Control information of VLAN tags: priority and number.
pub const TAGS: [(u16, u16); 2] = [(0x88a8, 0x2064), (0x8100, 0x6fff)];

pub const UDP: u8 = 17;
pub const TCP: u8 = 6;
pub const IPV4: u8 = 4;
pub const IPV6: u8 = 41;

pub const GUE_PORT: u16 = 6080;

pub fn ip(text: &str) -> IpAddr {
    text.parse()
        .unwrap_or_else(|error| panic!("{text}: {error}"))
}

/// An IP packet of either family. Change the fields, then take the bytes.
#[derive(Debug, Clone)]
pub struct Packet {
    pub source: IpAddr,
    pub destination: IpAddr,
    pub protocol: u8,
    /// DSCP and ECN.
    pub class: u8,
    pub ttl: u8,
    /// Of IPv4.
    pub identification: u16,
    /// Of IPv4; a whole number of words.
    pub options: Vec<u8>,
    /// Of IPv4: offset in units of eight bytes, and whether more follow.
    pub fragment: (u16, bool),
    pub payload: Vec<u8>,
}

impl Packet {
    pub fn new(source: IpAddr, destination: IpAddr, protocol: u8, payload: Vec<u8>) -> Packet {
        Packet {
            source,
            destination,
            protocol,
            class: 0,
            ttl: 64,
            identification: 0x1234,
            options: Vec::new(),
            fragment: (0, false),
            payload,
        }
    }

    pub fn with(&self, change: impl FnOnce(&mut Packet)) -> Packet {
        let mut packet = self.clone();
        change(&mut packet);
        packet
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let mut header = Ipv4Header {
                    dscp: IpDscp::try_new(self.class >> 2).expect("six bits"),
                    ecn: IpEcn::try_new(self.class & 3).expect("two bits"),
                    identification: self.identification,
                    dont_fragment: self.fragment == (0, false),
                    more_fragments: self.fragment.1,
                    fragment_offset: IpFragOffset::try_new(self.fragment.0).expect("13 bits"),
                    time_to_live: self.ttl,
                    protocol: IpNumber(self.protocol),
                    source: source.octets(),
                    destination: destination.octets(),
                    options: Ipv4Options::try_from(self.options.as_slice())
                        .expect("whole words of IPv4 options"),
                    ..Ipv4Header::default()
                };
                header
                    .set_payload_len(self.payload.len())
                    .expect("fits an IPv4 packet");
                header.header_checksum = header.calc_header_checksum();
                header.to_bytes().to_vec()
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let mut header = Ipv6Header {
                    traffic_class: self.class,
                    flow_label: Ipv6FlowLabel::try_new(0xc_9a5e).expect("20 bits"),
                    next_header: IpNumber(self.protocol),
                    hop_limit: self.ttl,
                    source: source.octets(),
                    destination: destination.octets(),
                    ..Ipv6Header::default()
                };
                header
                    .set_payload_length(self.payload.len())
                    .expect("fits an IPv6 packet");
                header.to_bytes().to_vec()
            }
            _ => panic!("a packet has addresses of one family: {self:?}"),
        };
        bytes.extend(&self.payload);
        bytes
    }
}

/// A UDP datagram with a right checksum, or with 0.
pub fn udp(addresses: (IpAddr, IpAddr), ports: (u16, u16), checksum: bool, data: &[u8]) -> Vec<u8> {
    let mut header = UdpHeader {
        source_port: ports.0,
        destination_port: ports.1,
        length: (UdpHeader::LEN + data.len()) as u16,
        checksum: 0,
    };
    if checksum {
        header.checksum = match addresses {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                header.calc_checksum_ipv4_raw(source.octets(), destination.octets(), data)
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                header.calc_checksum_ipv6_raw(source.octets(), destination.octets(), data)
            }
            _ => panic!("a datagram has addresses of one family: {addresses:?}"),
        }
        .expect("fits a UDP datagram");
    }
    let mut bytes = header.to_bytes().to_vec();
    bytes.extend(data);
    bytes
}

/// A client's packet to the VIP: UDP with so many bytes of data.
pub fn request(family: u8, data: usize) -> Packet {
    let (client, vip) = ends(family);
    let data: Vec<u8> = (0..data).map(|i| (i * 7) as u8).collect();
    Packet::new(
        client,
        vip,
        UDP,
        udp((client, vip), (4242, 53), true, &data),
    )
}

/// A client's SYN.
pub fn syn(family: u8) -> Packet {
    let (client, vip) = ends(family);
    let mut tcp = TcpHeader::new(4242, 80, 0x0102_0304, 0xfedc);
    tcp.syn = true;
    tcp.checksum = match (client, vip) {
        (IpAddr::V4(client), IpAddr::V4(vip)) => {
            tcp.calc_checksum_ipv4_raw(client.octets(), vip.octets(), &[])
        }
        (IpAddr::V6(client), IpAddr::V6(vip)) => {
            tcp.calc_checksum_ipv6_raw(client.octets(), vip.octets(), &[])
        }
        _ => unreachable!("ends are of one family"),
    }
    .expect("fits a segment");
    Packet::new(client, vip, TCP, tcp.to_bytes().to_vec())
}

fn ends(family: u8) -> (IpAddr, IpAddr) {
    match family {
        4 => (ip("192.0.2.7"), ip("203.0.113.11")),
        _ => (ip("2001:db8:c::7"), ip("2001:db8:1::11")),
    }
}

/// The balancer and this host, the ends of the tunnels.
pub fn tunnel_ends(family: u8) -> (IpAddr, IpAddr) {
    match family {
        4 => (ip("198.51.100.10"), ip("10.0.5.2")),
        _ => (ip("2001:db8:b::10"), ip("2001:db8:5::2")),
    }
}

/// How an inner packet lies in the outer one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    Ipip,
    Gue,
}

/// Outer family, inner family, form, and the name that it is counted under.
pub const CELLS: [(u8, u8, How, &str); 8] = [
    (4, 4, How::Ipip, "ipip_4in4"),
    (4, 6, How::Ipip, "ipip_6in4"),
    (6, 4, How::Ipip, "ipip_4in6"),
    (6, 6, How::Ipip, "ipip_6in6"),
    (4, 4, How::Gue, "gue_4in4"),
    (4, 6, How::Gue, "gue_6in4"),
    (6, 4, How::Gue, "gue_4in6"),
    (6, 6, How::Gue, "gue_6in6"),
];

/// The outer packet, from the balancer to this host, around these bytes of a packet of family `inner`.
pub fn wrap(outer: u8, inner: u8, how: How, bytes: &[u8]) -> Packet {
    let ends = tunnel_ends(outer);
    match how {
        How::Ipip => {
            let protocol = if inner == 4 { IPV4 } else { IPV6 };
            Packet::new(ends.0, ends.1, protocol, bytes.to_vec())
        }
        How::Gue => Packet::new(
            ends.0,
            ends.1,
            UDP,
            udp(ends, (50_001, GUE_PORT), false, bytes),
        ),
    }
}

/// A frame with so many VLAN tags (0 to 2) around an IP packet of that family.
pub fn frame(tags: usize, family: u8, packet: &[u8]) -> Vec<u8> {
    let mut bytes = vec![2, 0xbe, 0, 0, 0, 2, 2, 0x1b, 0, 0, 0, 1];
    for (ethertype, control) in &TAGS[TAGS.len() - tags..] {
        bytes.extend(ethertype.to_be_bytes());
        bytes.extend(control.to_be_bytes());
    }
    bytes.extend(if family == 4 {
        [0x08, 0x00]
    } else {
        [0x86, 0xdd]
    });
    bytes.extend(packet);
    bytes
}

/// Bytes before the IP packet in such a frame.
pub fn l3(tags: usize) -> usize {
    14 + 4 * tags
}

/// Sets the checksum of an IPv4 header right after a change.
pub fn fix_checksum(packet: &mut [u8]) {
    packet[10..12].fill(0);
    let header = (usize::from(packet[0] & 15) * 4).min(packet.len());
    let sum = etherparse::checksum::Sum16BitWords::new().add_slice(&packet[..header]);
    packet[10..12].copy_from_slice(&sum.ones_complement().to_ne_bytes());
}
