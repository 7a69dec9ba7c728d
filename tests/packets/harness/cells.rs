//! Every way to a backend: forward mode, family of the packet, family of the tunnel around it.
//!
//! Owns what a packet of a connection becomes on the way, so that a test can say in one place what is sent
//! and what arrives, whichever the mode. A test describes a packet by what both sides see of it.

use std::net::{IpAddr, SocketAddr};

use xdplb::config::MacAddress;

use super::cases::STANDARD;
use super::dialog::ends_of;
use super::frame::{tcp, udp, Frame, Protocol, ACK, SYN};
use super::ip::{Ethernet, Packet, Tunnel};
use super::{assert_same, at, backend_mac, ip, own_mac, Lab, Verdict, BACKENDS, CLIENTS, ROUTER};

/// [`STANDARD`], and a service for each mode whose backend answers directly.
pub fn every() -> String {
    let direct = [
        ("l2", 13, "l2", ["10.0.0.4", "fd00::4"].as_slice()),
        ("ipip4", 14, "ipip", &["10.0.0.5"]),
        ("ipip6", 15, "ipip", &["fd00::5"]),
        ("gue4", 16, "gue", &["10.0.0.6"]),
        ("gue6", 17, "gue", &["fd00::6"]),
    ];
    let mut text = STANDARD.to_string();
    for (name, number, forward, backends) in direct {
        text += &format!(
            "[[service]]\nname = \"{name}\"\nvip = [\"203.0.113.{number}\", \"2001:db8:1::{number}\"]\n\
             protocol = [\"tcp\", \"udp\"]\nport = 80\nforward = \"{forward}\"\n"
        );
        for backend in backends {
            text += &format!("[[service.backend]]\naddress = \"{backend}\"\n");
        }
    }
    text
}

/// The same services on every port.
pub fn every_port() -> String {
    every().replace("port = 80\n", "port = \"any\"\n")
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Nat,
    FullNat,
    L2,
    Ipip,
    Gue,
}

impl Mode {
    pub fn is_direct(self) -> bool {
        !matches!(self, Mode::Nat | Mode::FullNat)
    }

    pub fn is_tunnel(self) -> bool {
        matches!(self, Mode::Ipip | Mode::Gue)
    }
}

/// One way, by the services of [`every`].
#[derive(Debug, Clone, Copy)]
pub struct Cell {
    pub mode: Mode,
    pub ipv6: bool,
    /// The outer header's family; the packet's own where there is none.
    pub outer_ipv6: bool,
}

pub fn all() -> impl Iterator<Item = Cell> {
    [Mode::Nat, Mode::FullNat, Mode::L2, Mode::Ipip, Mode::Gue]
        .into_iter()
        .flat_map(|mode| {
            [(false, false), (false, true), (true, false), (true, true)]
                .into_iter()
                .filter(move |(ipv6, outer_ipv6)| mode.is_tunnel() || ipv6 == outer_ipv6)
                .map(move |(ipv6, outer_ipv6)| Cell {
                    mode,
                    ipv6,
                    outer_ipv6,
                })
        })
}

pub fn direct() -> impl Iterator<Item = Cell> {
    all().filter(|cell| cell.mode.is_direct())
}

/// Those whose packets the datapath has a way of its own for: nat, full-nat and a tunnel.
pub fn main_ways() -> impl Iterator<Item = Cell> {
    all().filter(|cell| match cell.mode {
        Mode::Nat | Mode::FullNat => true,
        Mode::L2 | Mode::Gue => false,
        Mode::Ipip => !cell.outer_ipv6,
    })
}

pub fn translated() -> impl Iterator<Item = Cell> {
    all().filter(|cell| !cell.mode.is_direct())
}

pub const PROTOCOLS: [Protocol; 2] = [Protocol::Tcp, Protocol::Udp];

impl Cell {
    pub fn client_at(&self, port: u16) -> SocketAddr {
        let mut client = at(if self.ipv6 {
            "[2001:db8:c::7]:0"
        } else {
            "198.51.100.7:0"
        });
        client.set_port(port);
        client
    }

    pub fn vip(&self) -> SocketAddr {
        let number = match (self.mode, self.outer_ipv6) {
            (Mode::Nat, _) => 11,
            (Mode::FullNat, _) => 12,
            (Mode::L2, _) => 13,
            (Mode::Ipip, false) => 14,
            (Mode::Ipip, true) => 15,
            (Mode::Gue, false) => 16,
            (Mode::Gue, true) => 17,
        };
        at(&if self.ipv6 {
            format!("[2001:db8:1::{number}]:80")
        } else {
            format!("203.0.113.{number}:80")
        })
    }

    /// Its own address: in nat modes where it is sent to, else what its next hop goes by.
    pub fn backend(&self) -> SocketAddr {
        let (number, port) = match self.mode {
            Mode::Nat => (2, 8080),
            Mode::FullNat => (3, 8080),
            Mode::L2 => (4, 80),
            Mode::Ipip => (5, 80),
            Mode::Gue => (6, 80),
        };
        at(&if self.outer_ipv6 {
            format!("[fd00::{number}]:{port}")
        } else {
            format!("10.0.0.{number}:{port}")
        })
    }

    /// Bytes that a packet grows by.
    pub fn overhead(&self) -> usize {
        let ip = if self.outer_ipv6 { 40 } else { 20 };
        match self.mode {
            Mode::Ipip => ip,
            Mode::Gue => ip + 8,
            _ => 0,
        }
    }

    /// A router between the client and us.
    pub fn router(&self) -> IpAddr {
        ip(if self.ipv6 {
            "2001:db8:f::1"
        } else {
            "192.0.2.1"
        })
    }

    /// A connection of this client that has sent nothing yet.
    pub fn path(&self, protocol: Protocol, client: SocketAddr) -> Path {
        Path {
            cell: *self,
            protocol,
            client,
            port: self.vip().port(),
            seen: client,
            gue_port: 0,
        }
    }

    /// Sends a first packet, and learns how it goes.
    #[track_caller]
    pub fn open(&self, lab: &Lab, protocol: Protocol, port: u16) -> Path {
        let mut path = self.path(protocol, self.client_at(port));
        let verdict = path.knock(lab, &Dress::default());
        assert_eq!(verdict, Verdict::Redirect, "the first of {self:?}");
        path
    }

    /// Likewise, and all that makes it an established one.
    #[track_caller]
    pub fn establish(&self, lab: &Lab, protocol: Protocol, port: u16) -> Path {
        let path = self.open(lab, protocol, port);
        if !self.mode.is_direct() {
            path.to_client(lab, "SYN|ACK", |ends| {
                path.back_between(ends, SYN | ACK).packet()
            });
        }
        path.to_backend(lab, "ACK", |ends| path.between(ends, ACK).packet());
        path
    }
}

/// What one side sees.
#[derive(Debug, Clone, Copy)]
pub struct Ends {
    pub client: SocketAddr,
    pub server: SocketAddr,
    /// Where an error of a router on this packet's way comes from.
    pub router: IpAddr,
}

/// What may be around any packet and must not matter.
#[derive(Debug, Clone, Default)]
pub struct Dress {
    pub tags: Vec<(u16, u16)>,
    pub padding: Vec<u8>,
}

/// A connection on its way.
#[derive(Debug, Clone)]
pub struct Path {
    pub cell: Cell,
    pub protocol: Protocol,
    pub client: SocketAddr,
    /// Of the VIP.
    pub port: u16,
    /// The client as the backend sees it.
    pub seen: SocketAddr,
    /// GUE's source port.
    pub gue_port: u16,
}

impl Path {
    /// Sends a first packet and gives back what became of it. One that is balanced arrives in whole, and
    /// shows how the others will go.
    #[track_caller]
    pub fn knock(&mut self, lab: &Lab, dress: &Dress) -> Verdict {
        self.knock_with(lab, dress, SYN)
    }

    /// Likewise, with other flags than those of an opening segment.
    #[track_caller]
    pub fn knock_with(&mut self, lab: &Lab, dress: &Dress, flags: u8) -> Verdict {
        let first = self.clone();
        let shape = |ends| first.between(ends, flags).packet();
        let sent = lab.send(CLIENTS, &self.sent(dress, shape));
        if sent.verdict != Verdict::Redirect {
            return sent.verdict;
        }
        match self.cell.mode {
            Mode::Nat | Mode::FullNat => (self.seen, _) = ends_of(&sent.bytes),
            Mode::Gue => {
                self.gue_port = ends_of(&sent.bytes).0.port();
                assert!(self.gue_port >= 0xc000, "source port {}", self.gue_port);
            }
            _ => {}
        }
        let expected = self.arriving(dress, shape);
        assert_same(&format!("the first of {self:?}"), &sent.bytes, &expected);
        sent.verdict
    }

    /// A packet of the client as it sends it. Flags count for TCP only.
    pub fn request(&self, flags: u8) -> Frame {
        self.between(self.outside(), flags)
            .between(ROUTER, own_mac(CLIENTS))
    }

    /// A packet of the client, by what a side sees.
    pub fn between(&self, ends: Ends, flags: u8) -> Frame {
        self.frame(ends.client, ends.server, flags)
    }

    /// A packet of the backend, by what a side sees.
    pub fn back_between(&self, ends: Ends, flags: u8) -> Frame {
        self.frame(ends.server, ends.client, flags)
    }

    fn frame(&self, source: SocketAddr, destination: SocketAddr, flags: u8) -> Frame {
        match self.protocol {
            Protocol::Tcp => tcp(source, destination, flags),
            Protocol::Udp => udp(source, destination, b"a datagram"),
        }
    }

    /// The client's side.
    pub fn outside(&self) -> Ends {
        Ends {
            client: self.client,
            server: SocketAddr::new(self.cell.vip().ip(), self.port),
            router: self.cell.router(),
        }
    }

    /// The backend's side.
    pub fn inside(&self) -> Ends {
        let direct = self.cell.mode.is_direct();
        Ends {
            client: self.seen,
            server: if direct {
                self.outside().server
            } else {
                self.cell.backend()
            },
            // The backend of a full-nat service knows nobody but us.
            router: if self.cell.mode == Mode::FullNat {
                self.seen.ip()
            } else {
                self.cell.router()
            },
        }
    }

    fn backend_mac(&self) -> MacAddress {
        backend_mac(self.cell.backend().ip())
    }

    pub fn tunnel(&self) -> Option<Tunnel> {
        let source = if self.cell.outer_ipv6 {
            "fd00::100"
        } else {
            "10.0.0.100"
        };
        self.cell.mode.is_tunnel().then(|| Tunnel {
            source: ip(source),
            destination: self.cell.backend().ip(),
            ports: (self.cell.mode == Mode::Gue).then_some((self.gue_port, 6080)),
        })
    }

    /// A frame of the client's side.
    pub fn sent(&self, dress: &Dress, shape: impl Fn(Ends) -> Packet) -> Vec<u8> {
        let ethernet = Ethernet {
            to: own_mac(CLIENTS),
            from: ROUTER,
            tags: dress.tags.clone(),
        };
        let mut bytes = ethernet.carrying(&shape(self.outside()));
        bytes.extend(&dress.padding);
        bytes
    }

    /// The same as it reaches the backend.
    pub fn arriving(&self, dress: &Dress, shape: impl Fn(Ends) -> Packet) -> Vec<u8> {
        let ethernet = Ethernet {
            to: self.backend_mac(),
            from: own_mac(BACKENDS),
            tags: dress.tags.clone(),
        };
        let inner = shape(self.inside()).forwarded();
        let packet = match self.tunnel() {
            Some(tunnel) => inner.within(&tunnel),
            None => inner,
        };
        let mut bytes = ethernet.carrying(&packet);
        bytes.extend(&dress.padding);
        bytes
    }

    /// What a packet of the client, or one of its side, becomes, and that it does.
    #[track_caller]
    pub fn to_backend(&self, lab: &Lab, what: &str, shape: impl Fn(Ends) -> Packet) {
        self.to_backend_in(lab, what, &Dress::default(), shape);
    }

    #[track_caller]
    pub fn to_backend_in(
        &self,
        lab: &Lab,
        what: &str,
        dress: &Dress,
        shape: impl Fn(Ends) -> Packet,
    ) {
        let what = format!("{what}, {:?} {:?}", self.cell, self.protocol);
        let sent = lab.send(CLIENTS, &self.sent(dress, &shape));
        assert_eq!(sent.verdict, Verdict::Redirect, "{what}");
        assert_same(&what, &sent.bytes, &self.arriving(dress, &shape));
    }

    /// A frame of the backend's side. Only where replies come back through us.
    pub fn sent_back(&self, dress: &Dress, shape: impl Fn(Ends) -> Packet) -> Vec<u8> {
        let ethernet = Ethernet {
            to: own_mac(BACKENDS),
            from: self.backend_mac(),
            tags: dress.tags.clone(),
        };
        let mut bytes = ethernet.carrying(&shape(Ends {
            router: self.cell.backend().ip(),
            ..self.inside()
        }));
        bytes.extend(&dress.padding);
        bytes
    }

    #[track_caller]
    pub fn to_client(&self, lab: &Lab, what: &str, shape: impl Fn(Ends) -> Packet) {
        self.to_client_in(lab, what, &Dress::default(), shape);
    }

    #[track_caller]
    pub fn to_client_in(
        &self,
        lab: &Lab,
        what: &str,
        dress: &Dress,
        shape: impl Fn(Ends) -> Packet,
    ) {
        let what = format!("{what}, {:?} {:?}", self.cell, self.protocol);
        assert!(!self.cell.mode.is_direct(), "{what}: not through us");
        let sent = lab.send(BACKENDS, &self.sent_back(dress, &shape));
        assert_eq!(sent.verdict, Verdict::Redirect, "{what}");
        let ethernet = Ethernet {
            to: ROUTER,
            from: own_mac(CLIENTS),
            tags: dress.tags.clone(),
        };
        // Clients know the VIP and nobody behind it.
        let ends = Ends {
            router: self.cell.vip().ip(),
            ..self.outside()
        };
        let mut expected = ethernet.carrying(&shape(ends).forwarded());
        expected.extend(&dress.padding);
        assert_same(&what, &sent.bytes, &expected);
    }
}
