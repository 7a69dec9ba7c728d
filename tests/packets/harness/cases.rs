//! The services that most tests run against, and every combination of forward mode, family and
//! protocol over them.

use std::net::SocketAddr;

use super::dialog::Dialog;
use super::frame::Protocol;
use super::{at, Lab};

/// One service a forward mode, both families and protocols, one backend a family, with port translation.
pub const STANDARD: &str = r#"
[[service]]
name = "nat"
vip = ["203.0.113.11", "2001:db8:1::11"]
protocol = ["tcp", "udp"]
port = 80
forward = "nat"
[[service.backend]]
name = "n4"
address = "10.0.0.2"
port = 8080
[[service.backend]]
name = "n6"
address = "fd00::2"
port = 8080

[[service]]
name = "full"
vip = ["203.0.113.12", "2001:db8:1::12"]
protocol = ["tcp", "udp"]
port = 80
forward = "full-nat"
[[service.backend]]
name = "f4"
address = "10.0.0.3"
port = 8080
[[service.backend]]
name = "f6"
address = "fd00::3"
port = 8080
"#;

/// One combination, with the names of [`STANDARD`].
#[derive(Debug, Clone, Copy)]
pub struct Case {
    pub full_nat: bool,
    pub ipv6: bool,
    pub protocol: Protocol,
}

pub fn all() -> impl Iterator<Item = Case> {
    [false, true].into_iter().flat_map(|full_nat| {
        [false, true].into_iter().flat_map(move |ipv6| {
            [Protocol::Tcp, Protocol::Udp]
                .into_iter()
                .map(move |protocol| Case {
                    full_nat,
                    ipv6,
                    protocol,
                })
        })
    })
}

pub fn tcp() -> impl Iterator<Item = Case> {
    all().filter(|case| case.protocol == Protocol::Tcp)
}

pub fn udp() -> impl Iterator<Item = Case> {
    all().filter(|case| case.protocol == Protocol::Udp)
}

impl Case {
    pub fn client(&self) -> SocketAddr {
        self.client_at(4242)
    }

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
        at(match (self.full_nat, self.ipv6) {
            (false, false) => "203.0.113.11:80",
            (false, true) => "[2001:db8:1::11]:80",
            (true, false) => "203.0.113.12:80",
            (true, true) => "[2001:db8:1::12]:80",
        })
    }

    pub fn backend(&self) -> SocketAddr {
        at(match (self.full_nat, self.ipv6) {
            (false, false) => "10.0.0.2:8080",
            (false, true) => "[fd00::2]:8080",
            (true, false) => "10.0.0.3:8080",
            (true, true) => "[fd00::3]:8080",
        })
    }

    pub fn backend_name(&self) -> &'static str {
        match (self.full_nat, self.ipv6) {
            (false, false) => "n4",
            (false, true) => "n6",
            (true, false) => "f4",
            (true, true) => "f6",
        }
    }

    /// A connection whose first packet has been sent.
    #[track_caller]
    pub fn open(&self, lab: &Lab) -> Dialog {
        self.open_from(lab, self.client())
    }

    #[track_caller]
    pub fn open_from(&self, lab: &Lab, client: SocketAddr) -> Dialog {
        let dialog = Dialog::open(lab, self.protocol, client, self.vip());
        assert_eq!(dialog.backend, self.backend());
        if self.full_nat {
            dialog.check_source();
        } else {
            assert_eq!(dialog.seen, client);
        }
        dialog
    }

    /// A connection of which both directions have been seen.
    #[track_caller]
    pub fn establish(&self, lab: &Lab) -> Dialog {
        self.establish_from(lab, self.client())
    }

    #[track_caller]
    pub fn establish_from(&self, lab: &Lab, client: SocketAddr) -> Dialog {
        use super::frame::{ACK, SYN};
        let dialog = self.open_from(lab, client);
        dialog.to_client(lab, SYN | ACK);
        dialog.to_backend(lab, ACK);
        dialog
    }
}
