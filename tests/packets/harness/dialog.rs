//! A client and a backend that talk through the balancer, packet by packet.
//!
//! Owns the expectation that every one of their packets arrives as the etherparse crate would have built
//! it, in whole. Tests say who sends what; where a test expects otherwise, it sends its frames itself.

use std::net::SocketAddr;

use xdplb::config::MacAddress;
use xdplb::datapath::abi::Flow;

use super::frame::{tcp, udp, Frame, Protocol, SYN};
use super::{
    assert_same, backend_mac, ip, own_mac, Lab, Verdict, BACKENDS, CLIENTS, NAT_PORTS, ROUTER,
};

/// One connection.
#[derive(Debug, Clone)]
pub struct Dialog {
    pub protocol: Protocol,
    pub client: SocketAddr,
    pub vip: SocketAddr,
    pub backend: SocketAddr,
    /// The client as the backend sees it.
    pub seen: SocketAddr,
    /// Who the client's packets come from, and where the replies go.
    pub router: MacAddress,
    /// The interface that they come by.
    pub slot: u16,
}

impl Dialog {
    /// Sends the first packet, and learns from it which backend was chosen and what it sees.
    pub fn open(lab: &Lab, protocol: Protocol, client: SocketAddr, vip: SocketAddr) -> Dialog {
        let mut dialog = Dialog {
            protocol,
            client,
            vip,
            backend: vip,
            seen: client,
            router: ROUTER,
            slot: CLIENTS,
        };
        let frame = dialog.request(SYN);
        let sent = lab.send(CLIENTS, &frame.bytes());
        assert_eq!(
            sent.verdict,
            Verdict::Redirect,
            "the first packet of {client} -> {vip}"
        );
        (dialog.seen, dialog.backend) = ends_of(&sent.bytes);
        dialog.check_request(&frame, &sent.bytes);
        dialog
    }

    /// The same connection, were it another client's.
    pub fn with_client(&self, client: SocketAddr) -> Dialog {
        Dialog {
            client,
            seen: client,
            ..self.clone()
        }
    }

    /// A packet of the client. Flags count for TCP only.
    pub fn request(&self, flags: u8) -> Frame {
        let frame = match self.protocol {
            Protocol::Tcp => tcp(self.client, self.vip, flags),
            Protocol::Udp => udp(self.client, self.vip, b"request"),
        };
        frame.between(self.router, own_mac(self.slot))
    }

    /// A packet of the backend.
    pub fn reply(&self, flags: u8) -> Frame {
        let frame = match self.protocol {
            Protocol::Tcp => tcp(self.backend, self.seen, flags),
            Protocol::Udp => udp(self.backend, self.seen, b"the reply"),
        };
        frame.between(backend_mac(self.backend.ip()), own_mac(BACKENDS))
    }

    /// The client sends, and the backend gets it.
    #[track_caller]
    pub fn to_backend(&self, lab: &Lab, flags: u8) {
        self.deliver(lab, &self.request(flags));
    }

    /// The backend sends, and the client gets it.
    #[track_caller]
    pub fn to_client(&self, lab: &Lab, flags: u8) {
        self.answer(lab, &self.reply(flags));
    }

    /// This frame of the client reaches the backend.
    #[track_caller]
    pub fn deliver(&self, lab: &Lab, frame: &Frame) {
        let sent = lab.send(self.slot, &frame.bytes());
        assert_eq!(sent.verdict, self.way(BACKENDS), "{frame:?}");
        self.check_request(frame, &sent.bytes);
    }

    /// This frame of the backend reaches the client.
    #[track_caller]
    pub fn answer(&self, lab: &Lab, frame: &Frame) {
        let sent = lab.send(BACKENDS, &frame.bytes());
        assert_eq!(sent.verdict, self.way(BACKENDS), "{frame:?}");
        let expected = frame
            .becomes(self.vip, self.client)
            .between(own_mac(self.slot), self.router);
        assert_same("to the client", &sent.bytes, &expected.bytes());
    }

    /// The client's flow, the key of its entry.
    pub fn flow(&self) -> Flow {
        flow(self.protocol, self.client, self.vip)
    }

    /// The backend's flow, likewise.
    pub fn reply_flow(&self) -> Flow {
        flow(self.protocol, self.backend, self.seen)
    }

    /// Table and state that both directions' entries have; `None` if both are gone.
    #[track_caller]
    pub fn state(&self, lab: &Lab) -> Option<(&'static str, &'static str)> {
        let place = |flow| lab.entry(flow).map(|entry| (entry.stage, entry.state));
        let (client, backend) = (place(&self.flow()), place(&self.reply_flow()));
        assert_eq!(client, backend, "the two directions of {self:?}");
        client
    }

    fn way(&self, out: u16) -> Verdict {
        if self.slot == out {
            Verdict::Tx
        } else {
            Verdict::Redirect
        }
    }

    #[track_caller]
    fn check_request(&self, frame: &Frame, actual: &[u8]) {
        let expected = frame
            .becomes(self.seen, self.backend)
            .between(own_mac(BACKENDS), backend_mac(self.backend.ip()));
        assert_same("to the backend", actual, &expected.bytes());
    }

    /// That full-nat sends from where it may.
    #[track_caller]
    pub fn check_source(&self) {
        let own = match self.client {
            SocketAddr::V4(_) => ip("10.0.0.100"),
            SocketAddr::V6(_) => ip("fd00::100"),
        };
        assert_eq!(self.seen.ip(), own, "{self:?}");
        assert!(
            (NAT_PORTS.0..=NAT_PORTS.1).contains(&self.seen.port()),
            "{self:?}"
        );
    }
}

fn flow(protocol: Protocol, source: SocketAddr, destination: SocketAddr) -> Flow {
    Flow {
        source: (source.ip(), source.port()),
        destination: (destination.ip(), destination.port()),
        protocol: protocol.number().0,
    }
}

/// Source and destination of a frame with TCP or UDP, by etherparse.
#[track_caller]
pub fn ends_of(bytes: &[u8]) -> (SocketAddr, SocketAddr) {
    use etherparse::{NetSlice, SlicedPacket, TransportSlice};
    let packet = SlicedPacket::from_ethernet(bytes).expect("a packet that parses");
    let (source, destination) = match packet.net.expect("an IP packet") {
        NetSlice::Ipv4(ip) => (
            ip.header().source_addr().into(),
            ip.header().destination_addr().into(),
        ),
        NetSlice::Ipv6(ip) => (
            ip.header().source_addr().into(),
            ip.header().destination_addr().into(),
        ),
        NetSlice::Arp(_) => panic!("ARP"),
    };
    let (from, to) = match packet.transport.expect("TCP or UDP") {
        TransportSlice::Tcp(tcp) => (tcp.source_port(), tcp.destination_port()),
        TransportSlice::Udp(udp) => (udp.source_port(), udp.destination_port()),
        other => panic!("neither TCP nor UDP: {other:?}"),
    };
    (
        SocketAddr::new(source, from),
        SocketAddr::new(destination, to),
    )
}
