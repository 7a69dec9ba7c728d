//! A packet that knocks at a VIP's door, by the fields that the firewall looks at, and its fate once it is
//! let in.

use std::net::{IpAddr, SocketAddr};

use super::cells::{Cell, Dress};
use super::frame::Protocol;
use super::ip::{Ethernet, Icmp, Packet};
use super::{own_mac, Lab, Verdict, CLIENTS, ROUTER};
use crate::model;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Tcp,
    Udp,
    Ping,
    /// Of another IP protocol.
    Other(u8),
}

/// The first packet of a client to the VIP of a cell.
#[derive(Debug, Clone, Copy)]
pub struct Knock {
    pub cell: Cell,
    pub kind: Kind,
    pub source: IpAddr,
    /// The next two, of TCP and UDP.
    pub source_port: u16,
    pub port: u16,
}

impl Knock {
    pub fn at(cell: Cell, kind: Kind, source: IpAddr) -> Knock {
        Knock {
            cell,
            kind,
            source,
            source_port: 4242,
            port: 80,
        }
    }

    /// What becomes of it. If it is balanced, that it arrives in whole.
    #[track_caller]
    pub fn send(&self, lab: &Lab) -> Verdict {
        self.send_in(lab, &Dress::default())
    }

    #[track_caller]
    pub fn send_in(&self, lab: &Lab, dress: &Dress) -> Verdict {
        let Some(protocol) = self.protocol() else {
            let ethernet = Ethernet {
                to: own_mac(CLIENTS),
                from: ROUTER,
                tags: dress.tags.clone(),
            };
            let mut frame = ethernet.carrying(&self.portless());
            frame.extend(&dress.padding);
            return lab.send(CLIENTS, &frame).verdict;
        };
        let client = SocketAddr::new(self.source, self.source_port);
        let mut path = self.cell.path(protocol, client);
        path.port = self.port;
        path.knock(lab, dress)
    }

    /// What becomes of it when nobody objects and the service has every port.
    pub fn let_in(&self) -> Verdict {
        match self.kind {
            Kind::Tcp | Kind::Udp => Verdict::Redirect,
            Kind::Ping => Verdict::Answer("echo_answered"),
            Kind::Other(_) => Verdict::Pass("other_protocol"),
        }
    }

    /// As rules see it.
    pub fn seen(&self) -> model::Packet {
        let protocol = match (self.kind, self.source) {
            (Kind::Tcp, _) => 6,
            (Kind::Udp, _) => 17,
            (Kind::Ping, IpAddr::V4(_)) => 1,
            (Kind::Ping, IpAddr::V6(_)) => 58,
            (Kind::Other(number), _) => number,
        };
        model::Packet {
            source: self.source,
            protocol,
            ports: self.protocol().map(|_| (self.source_port, self.port)),
        }
    }

    fn protocol(&self) -> Option<Protocol> {
        match self.kind {
            Kind::Tcp => Some(Protocol::Tcp),
            Kind::Udp => Some(Protocol::Udp),
            Kind::Ping | Kind::Other(_) => None,
        }
    }

    /// What it has in place of ports are these ports.
    fn portless(&self) -> Packet {
        let vip = self.cell.vip().ip();
        let mut bytes = [self.source_port, self.port].map(u16::to_be_bytes).concat();
        bytes.resize(40, 0);
        match self.kind {
            Kind::Other(number) => Packet::new(self.source, vip, number, bytes),
            _ => Icmp::EchoRequest.message(self.source, vip, [0, 1, 0, 2], &bytes),
        }
    }
}
