//! IP packets with anything in them, and the layers around them: Ethernet, fragments, tunnels.
//!
//! Owns the headers below TCP and UDP. They and their checksums are etherparse's, computed from scratch.

use std::net::IpAddr;

use etherparse::{
    Icmpv4Header, Icmpv4Type, Icmpv6Header, Icmpv6Type, IpDscp, IpEcn, IpFragOffset, IpNumber,
    Ipv4Header, Ipv4Options, Ipv6FlowLabel, Ipv6Header, UdpHeader,
};
use xdplb::config::MacAddress;

use super::frame::{FRAGMENT, IPV4, IPV6};

/// What is before the IP packet.
#[derive(Debug, Clone, Default)]
pub struct Ethernet {
    pub to: MacAddress,
    pub from: MacAddress,
    /// EtherType and control information of each VLAN tag, outermost first.
    pub tags: Vec<(u16, u16)>,
}

impl Ethernet {
    pub fn carrying(&self, packet: &Packet) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(self.to.0);
        bytes.extend(self.from.0);
        for (ethertype, control) in &self.tags {
            bytes.extend(ethertype.to_be_bytes());
            bytes.extend(control.to_be_bytes());
        }
        let ethertype = if packet.source.is_ipv4() { IPV4 } else { IPV6 };
        bytes.extend(ethertype.to_be_bytes());
        bytes.extend(packet.bytes());
        bytes
    }

    /// The way back.
    pub fn swapped(&self) -> Ethernet {
        Ethernet {
            to: self.from,
            from: self.to,
            tags: self.tags.clone(),
        }
    }
}

/// An IP packet. Change the fields, then take the bytes.
#[derive(Debug, Clone)]
pub struct Packet {
    pub source: IpAddr,
    pub destination: IpAddr,
    pub ttl: u8,
    /// DSCP and ECN, or the traffic class.
    pub tos: u8,
    /// The next four, of IPv4.
    pub id: u16,
    pub dont_fragment: bool,
    /// Offset in bytes, and whether more follow.
    pub fragment: (usize, bool),
    /// A whole number of words.
    pub options: Vec<u8>,
    /// The next two, of IPv6.
    pub flow_label: u32,
    /// Number, and what follows the next-header byte.
    pub extensions: Vec<(u8, Vec<u8>)>,
    pub protocol: u8,
    pub payload: Vec<u8>,
}

impl Packet {
    /// With the header fields that a packet of our own has: TTL 64, DF, and nothing else.
    pub fn new(source: IpAddr, destination: IpAddr, protocol: u8, payload: Vec<u8>) -> Packet {
        Packet {
            source,
            destination,
            ttl: 64,
            tos: 0,
            id: 0,
            dont_fragment: true,
            fragment: (0, false),
            options: Vec::new(),
            flow_label: 0,
            extensions: Vec::new(),
            protocol,
            payload,
        }
    }

    /// With a TTL of one less.
    pub fn forwarded(&self) -> Packet {
        self.with(|p| p.ttl -= 1)
    }

    pub fn with(&self, change: impl FnOnce(&mut Packet)) -> Packet {
        let mut packet = self.clone();
        change(&mut packet);
        packet
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let mut ip = Ipv4Header {
                    dscp: IpDscp::try_new(self.tos >> 2).expect("six bits"),
                    ecn: IpEcn::try_new(self.tos & 3).expect("two bits"),
                    dont_fragment: self.dont_fragment,
                    more_fragments: self.fragment.1,
                    fragment_offset: IpFragOffset::try_new((self.fragment.0 / 8) as u16)
                        .expect("an offset within a packet"),
                    identification: self.id,
                    time_to_live: self.ttl,
                    protocol: IpNumber(self.protocol),
                    source: source.octets(),
                    destination: destination.octets(),
                    options: Ipv4Options::try_from(self.options.as_slice())
                        .expect("whole words of IPv4 options"),
                    ..Ipv4Header::default()
                };
                ip.set_payload_len(self.payload.len())
                    .expect("fits an IPv4 packet");
                ip.header_checksum = ip.calc_header_checksum();
                bytes.extend(ip.to_bytes());
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let (first, extensions) = chain(&self.extensions, self.protocol);
                let mut ip6 = Ipv6Header {
                    traffic_class: self.tos,
                    flow_label: Ipv6FlowLabel::try_new(self.flow_label).expect("twenty bits"),
                    next_header: IpNumber(first),
                    hop_limit: self.ttl,
                    source: source.octets(),
                    destination: destination.octets(),
                    ..Ipv6Header::default()
                };
                ip6.set_payload_length(extensions.len() + self.payload.len())
                    .expect("fits an IPv6 packet");
                bytes.extend(ip6.to_bytes());
                bytes.extend(extensions);
            }
            _ => panic!("a packet has addresses of one family: {self:?}"),
        }
        bytes.extend(&self.payload);
        bytes
    }

    /// The packet in fragments, cut at these offsets of what is fragmented. Of IPv6's extension headers
    /// the first `kept` stand in each fragment (RFC 8200, section 4.5), those behind them are cut as well.
    pub fn fragments(&self, id: u32, kept: usize, cuts: &[usize]) -> Vec<Packet> {
        let v6 = self.source.is_ipv6();
        let (first, mut whole) = chain(&self.extensions[kept..], self.protocol);
        whole.extend(&self.payload);
        let mut starts = vec![0];
        starts.extend(cuts);
        starts
            .iter()
            .enumerate()
            .map(|(index, &start)| {
                let end = starts.get(index + 1).copied().unwrap_or(whole.len());
                let more = index + 1 < starts.len();
                let mut piece = self.clone();
                piece.payload = whole[start..end].to_vec();
                if v6 {
                    let mut body = vec![0];
                    body.extend((start as u16 | u16::from(more)).to_be_bytes());
                    body.extend(id.to_be_bytes());
                    piece.extensions.truncate(kept);
                    piece.extensions.push((FRAGMENT, body));
                    piece.protocol = first;
                } else {
                    piece.id = id as u16;
                    piece.dont_fragment = false;
                    piece.fragment = (start, more);
                }
                piece
            })
            .collect()
    }

    /// In a tunnel's outer headers.
    pub fn within(&self, tunnel: &Tunnel) -> Packet {
        let inner = self.bytes();
        let (protocol, payload) = match tunnel.ports {
            None => (if self.source.is_ipv4() { 4 } else { 41 }, inner),
            Some((source, destination)) => {
                let mut udp = UdpHeader {
                    source_port: source,
                    destination_port: destination,
                    length: (UdpHeader::LEN + inner.len()) as u16,
                    checksum: 0,
                };
                if let (IpAddr::V6(source), IpAddr::V6(destination), true) =
                    (tunnel.source, tunnel.destination, self.has_whole_checksum())
                {
                    udp.checksum = udp
                        .calc_checksum_ipv6_raw(source.octets(), destination.octets(), &inner)
                        .expect("fits a UDP datagram");
                }
                let mut payload = udp.to_bytes().to_vec();
                payload.extend(inner);
                (17, payload)
            }
        };
        // DF, and no identification, whatever is inside: clients would share those.
        Packet {
            tos: self.tos,
            ..Packet::new(tunnel.source, tunnel.destination, protocol, payload)
        }
    }

    /// A whole segment or datagram with a checksum over it, right behind the IP header.
    fn has_whole_checksum(&self) -> bool {
        let whole = self.extensions.is_empty() && self.fragment == (0, false);
        let udp = |at: usize| u16::from_be_bytes([self.payload[at], self.payload[at + 1]]);
        whole
            && match self.protocol {
                6 => true,
                17 => udp(6) != 0 && usize::from(udp(4)) == self.payload.len(),
                _ => false,
            }
    }
}

/// The outer headers of a tunnel.
#[derive(Debug, Clone)]
pub struct Tunnel {
    pub source: IpAddr,
    pub destination: IpAddr,
    /// GUE's, source and destination. `None`: IP in IP.
    pub ports: Option<(u16, u16)>,
}

/// Extension headers as bytes, and the number that the header before them gives of the first.
fn chain(extensions: &[(u8, Vec<u8>)], protocol: u8) -> (u8, Vec<u8>) {
    let mut next = protocol;
    let mut bytes = Vec::new();
    for (number, body) in extensions.iter().rev() {
        let mut header = vec![next];
        header.extend(body);
        bytes.splice(..0, header);
        next = *number;
    }
    (next, bytes)
}

/// Types and codes of ICMP and ICMPv6 by what they say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Icmp {
    EchoRequest,
    EchoReply,
    HostUnreachable,
    PortUnreachable,
    /// Fragmentation needed, or packet too big, with the MTU.
    TooBig(u32),
    TimeExceeded,
    /// With a pointer, in the second word's first byte or in all of it.
    ParameterProblem,
}

impl Icmp {
    pub const ERRORS: [Icmp; 5] = [
        Icmp::HostUnreachable,
        Icmp::PortUnreachable,
        Icmp::TooBig(1400),
        Icmp::TimeExceeded,
        Icmp::ParameterProblem,
    ];

    /// Type, code, and the header's second word where it does not come from the payload.
    fn header(self, v6: bool) -> (u8, u8, [u8; 4]) {
        let none = [0; 4];
        match (self, v6) {
            (Icmp::EchoRequest, false) => (8, 0, none),
            (Icmp::EchoRequest, true) => (128, 0, none),
            (Icmp::EchoReply, false) => (0, 0, none),
            (Icmp::EchoReply, true) => (129, 0, none),
            (Icmp::HostUnreachable, false) => (3, 1, none),
            (Icmp::HostUnreachable, true) => (1, 3, none),
            (Icmp::PortUnreachable, false) => (3, 3, none),
            (Icmp::PortUnreachable, true) => (1, 4, none),
            (Icmp::TooBig(mtu), false) => (3, 4, mtu.to_be_bytes()),
            (Icmp::TooBig(mtu), true) => (2, 0, mtu.to_be_bytes()),
            (Icmp::TimeExceeded, false) => (11, 0, none),
            (Icmp::TimeExceeded, true) => (3, 0, none),
            (Icmp::ParameterProblem, false) => (12, 0, [20, 0, 0, 0]),
            (Icmp::ParameterProblem, true) => (4, 1, [0, 0, 0, 40]),
        }
    }

    /// An error about the packet whose bytes these are, or as many as are quoted.
    pub fn about(self, source: IpAddr, destination: IpAddr, quoted: &[u8]) -> Packet {
        self.message(source, destination, self.header(source.is_ipv6()).2, quoted)
    }

    /// A message with this second word.
    pub fn message(
        self,
        source: IpAddr,
        destination: IpAddr,
        rest: [u8; 4],
        payload: &[u8],
    ) -> Packet {
        let (type_u8, code_u8, _) = self.header(source.is_ipv6());
        let (protocol, mut bytes) = match (source, destination) {
            (IpAddr::V4(_), IpAddr::V4(_)) => {
                let kind = Icmpv4Type::Unknown {
                    type_u8,
                    code_u8,
                    bytes5to8: rest,
                };
                let header = Icmpv4Header::with_checksum(kind, payload);
                (1, header.to_bytes().to_vec())
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let kind = Icmpv6Type::Unknown {
                    type_u8,
                    code_u8,
                    bytes5to8: rest,
                };
                let header = Icmpv6Header::with_checksum(
                    kind,
                    source.octets(),
                    destination.octets(),
                    payload,
                )
                .expect("fits an ICMPv6 message");
                (58, header.to_bytes().to_vec())
            }
            _ => panic!("a packet has addresses of one family: {source} -> {destination}"),
        };
        bytes.extend(payload);
        Packet::new(source, destination, protocol, bytes)
    }
}
