//! Frames as the tests write them down, and as bytes.
//!
//! Owns the builder. Headers and checksums are etherparse's, computed from scratch; nothing of the code
//! under test has a part in what a test expects.

use std::net::{IpAddr, SocketAddr};

use etherparse::{IpNumber, Ipv4Header, Ipv6Header, TcpHeader, UdpHeader};
use xdplb::config::MacAddress;

use super::ip::{Ethernet, Packet};

/// TCP flags as they lie in the header's thirteenth byte (RFC 9293, section 3.1).
pub const FIN: u8 = 0x01;
pub const SYN: u8 = 0x02;
pub const RST: u8 = 0x04;
pub const PSH: u8 = 0x08;
pub const ACK: u8 = 0x10;

pub const DOT1Q: u16 = 0x8100;
pub const DOT1AD: u16 = 0x88a8;
pub const IPV4: u16 = 0x0800;
pub const IPV6: u16 = 0x86dd;

/// IPv6 extension headers, by their protocol numbers.
pub const HOP_BY_HOP: u8 = 0;
pub const ROUTING: u8 = 43;
pub const FRAGMENT: u8 = 44;
pub const DESTINATION_OPTIONS: u8 = 60;

/// Of every segment that a test does not give another one; the other side acknowledges a FIN there.
pub const SEQUENCE: u32 = 0x0102_0304;

const ETHERNET: usize = 14;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    Tcp,
    Udp,
}

impl Protocol {
    pub fn number(self) -> IpNumber {
        match self {
            Protocol::Tcp => IpNumber::TCP,
            Protocol::Udp => IpNumber::UDP,
        }
    }
}

/// A frame with a TCP segment or UDP datagram. Change the fields, then take the bytes.
#[derive(Debug, Clone)]
pub struct Frame {
    pub to: MacAddress,
    pub from: MacAddress,
    /// EtherType and control information of each VLAN tag, outermost first.
    pub tags: Vec<(u16, u16)>,
    pub source: SocketAddr,
    pub destination: SocketAddr,
    pub ttl: u8,
    /// DSCP and ECN, or the traffic class.
    pub tos: u8,
    /// Of IPv4.
    pub dont_fragment: bool,
    /// Of IPv4; a whole number of words.
    pub options: Vec<u8>,
    /// Of IPv6: number, and what follows the next-header byte.
    pub extensions: Vec<(u8, Vec<u8>)>,
    pub protocol: Protocol,
    /// Of TCP.
    pub flags: u8,
    /// Of TCP: the sequence number.
    pub sequence: u32,
    /// Of TCP: what it acknowledges, if it does.
    pub acknowledged: u32,
    /// Of TCP; a whole number of words.
    pub tcp_options: Vec<u8>,
    /// False: UDP's 0, for none.
    pub checksum: bool,
    pub payload: Vec<u8>,
    /// What follows the IP packet in the frame.
    pub padding: Vec<u8>,
}

pub fn tcp(source: SocketAddr, destination: SocketAddr, flags: u8) -> Frame {
    Frame {
        to: MacAddress::default(),
        from: MacAddress::default(),
        tags: Vec::new(),
        source,
        destination,
        ttl: 64,
        tos: 0,
        dont_fragment: true,
        options: Vec::new(),
        extensions: Vec::new(),
        protocol: Protocol::Tcp,
        flags,
        sequence: SEQUENCE,
        acknowledged: SEQUENCE + 1,
        tcp_options: Vec::new(),
        checksum: true,
        payload: Vec::new(),
        padding: Vec::new(),
    }
}

pub fn udp(source: SocketAddr, destination: SocketAddr, payload: &[u8]) -> Frame {
    Frame {
        protocol: Protocol::Udp,
        payload: payload.to_vec(),
        ..tcp(source, destination, 0)
    }
}

impl Frame {
    /// As it leaves: other addresses and ports, a TTL of one less, everything else as it was.
    pub fn becomes(&self, source: SocketAddr, destination: SocketAddr) -> Frame {
        Frame {
            source,
            destination,
            ttl: self.ttl - 1,
            ..self.clone()
        }
    }

    /// With these Ethernet addresses.
    pub fn between(&self, from: MacAddress, to: MacAddress) -> Frame {
        Frame {
            from,
            to,
            ..self.clone()
        }
    }

    pub fn with(&self, change: impl FnOnce(&mut Frame)) -> Frame {
        let mut frame = self.clone();
        change(&mut frame);
        frame
    }

    /// Where the IP header begins.
    pub fn l3(&self) -> usize {
        ETHERNET + 4 * self.tags.len()
    }

    /// Where the TCP or UDP header begins.
    pub fn l4(&self) -> usize {
        let ip = match self.source {
            SocketAddr::V4(_) => Ipv4Header::MIN_LEN + self.options.len(),
            SocketAddr::V6(_) => Ipv6Header::LEN,
        };
        let extensions: usize = self.extensions.iter().map(|(_, body)| 1 + body.len()).sum();
        self.l3() + ip + extensions
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = self.ethernet().carrying(&self.packet());
        bytes.extend(&self.padding);
        bytes
    }

    pub fn ethernet(&self) -> Ethernet {
        Ethernet {
            to: self.to,
            from: self.from,
            tags: self.tags.clone(),
        }
    }

    pub fn packet(&self) -> Packet {
        Packet {
            ttl: self.ttl,
            tos: self.tos,
            id: 0x1234,
            dont_fragment: self.dont_fragment,
            options: self.options.clone(),
            extensions: self.extensions.clone(),
            ..Packet::new(
                self.source.ip(),
                self.destination.ip(),
                self.protocol.number().0,
                self.transport(),
            )
        }
    }

    fn transport(&self) -> Vec<u8> {
        match self.protocol {
            Protocol::Tcp => self.tcp(),
            Protocol::Udp => self.udp(),
        }
    }

    fn tcp(&self) -> Vec<u8> {
        let flag = |bit: u8| self.flags & bit != 0;
        let mut tcp = TcpHeader::new(
            self.source.port(),
            self.destination.port(),
            self.sequence,
            0xfedc,
        );
        (tcp.fin, tcp.syn, tcp.rst) = (flag(FIN), flag(SYN), flag(RST));
        (tcp.psh, tcp.ack) = (flag(PSH), flag(ACK));
        tcp.acknowledgment_number = u32::from(tcp.ack) * self.acknowledged;
        tcp.set_options_raw(&self.tcp_options)
            .expect("whole words of TCP options");
        tcp.checksum = match (self.source.ip(), self.destination.ip()) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                tcp.calc_checksum_ipv4_raw(source.octets(), destination.octets(), &self.payload)
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                tcp.calc_checksum_ipv6_raw(source.octets(), destination.octets(), &self.payload)
            }
            _ => panic!("a packet has addresses of one family: {self:?}"),
        }
        .expect("fits a TCP segment");
        let mut bytes = tcp.to_bytes().to_vec();
        bytes.extend(&self.payload);
        bytes
    }

    fn udp(&self) -> Vec<u8> {
        let mut udp = UdpHeader {
            source_port: self.source.port(),
            destination_port: self.destination.port(),
            length: (UdpHeader::LEN + self.payload.len()) as u16,
            checksum: 0,
        };
        if self.checksum {
            udp.checksum = match (self.source.ip(), self.destination.ip()) {
                (IpAddr::V4(source), IpAddr::V4(destination)) => {
                    udp.calc_checksum_ipv4_raw(source.octets(), destination.octets(), &self.payload)
                }
                (IpAddr::V6(source), IpAddr::V6(destination)) => {
                    udp.calc_checksum_ipv6_raw(source.octets(), destination.octets(), &self.payload)
                }
                _ => panic!("a packet has addresses of one family: {self:?}"),
            }
            .expect("fits a UDP datagram");
        }
        let mut bytes = udp.to_bytes().to_vec();
        bytes.extend(&self.payload);
        bytes
    }
}

/// Sets the IPv4 header checksum right after a change of the header.
pub fn fix_ipv4_checksum(bytes: &mut [u8], l3: usize) {
    bytes[l3 + 10..l3 + 12].fill(0);
    let header = usize::from(bytes[l3] & 15) * 4;
    let header = bytes[l3..(l3 + header).min(bytes.len())].to_vec();
    let sum = etherparse::checksum::Sum16BitWords::new().add_slice(&header);
    bytes[l3 + 10..l3 + 12].copy_from_slice(&sum.ones_complement().to_ne_bytes());
}
