//! The totals of backends and services, summed over all CPUs.

use std::ops::AddAssign;

use libbpf_rs::MapHandle;

use crate::datapath::abi::{self, protocol_class};
use crate::datapath::{totals, Error};

/// The protocols that are counted apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// ICMP and ICMPv6.
    Icmp,
    /// Any other protocol.
    Other,
}

impl Class {
    /// In the order of `traffic.by`.
    pub const ALL: [Class; 4] = [Class::Tcp, Class::Udp, Class::Icmp, Class::Other];

    /// As commands print it.
    pub const fn name(self) -> &'static str {
        match self {
            Class::Tcp => "tcp",
            Class::Udp => "udp",
            Class::Icmp => "icmp",
            Class::Other => "other",
        }
    }

    /// That of an IP protocol number.
    pub const fn of(protocol: u8) -> Class {
        match protocol {
            6 => Class::Tcp,
            17 => Class::Udp,
            1 | 58 => Class::Icmp,
            _ => Class::Other,
        }
    }
}

const _: () = {
    assert!(Class::ALL.len() == protocol_class::NR_CLASSES.0 as usize);
    assert!(Class::Tcp as u32 == protocol_class::CLASS_TCP.0);
    assert!(Class::Udp as u32 == protocol_class::CLASS_UDP.0);
    assert!(Class::Icmp as u32 == protocol_class::CLASS_ICMP.0);
    assert!(Class::Other as u32 == protocol_class::CLASS_OTHER.0);
};

/// Packets and bytes, both ways.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Exchange {
    /// Packets from clients.
    pub packets_in: u64,
    /// Bytes from clients, Ethernet header on.
    pub bytes_in: u64,
    /// Packets from the backend.
    pub packets_out: u64,
    /// Bytes from the backend.
    pub bytes_out: u64,
}

impl AddAssign for Exchange {
    fn add_assign(&mut self, more: Exchange) {
        self.packets_in += more.packets_in;
        self.bytes_in += more.bytes_in;
        self.packets_out += more.packets_out;
        self.bytes_out += more.bytes_out;
    }
}

/// The totals of a backend, or of all backends of a service, both ways.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Traffic {
    /// In the order of [`Class::ALL`].
    pub by: [Exchange; Class::ALL.len()],
    /// Connections that it was chosen for and that got an entry.
    pub opened: u64,
    /// Of them, those that have ended: in sight of the datapath, by their timeout, by giving way to others in a
    /// full table, or with their backend.
    pub closed: u64,
    /// Packets that went there without an entry.
    pub unrecorded: u64,
}

impl Traffic {
    /// Of all protocols.
    pub fn total(&self) -> Exchange {
        let mut total = Exchange::default();
        for exchange in self.by {
            total += exchange;
        }
        total
    }
}

impl AddAssign for Traffic {
    fn add_assign(&mut self, more: Traffic) {
        for (sum, more) in self.by.iter_mut().zip(more.by) {
            *sum += more;
        }
        self.opened += more.opened;
        self.closed = self.closed.wrapping_add(more.closed);
        self.unrecorded += more.unrecorded;
    }
}

impl From<abi::traffic> for Traffic {
    fn from(traffic: abi::traffic) -> Self {
        Traffic {
            by: traffic.by.map(|exchange| Exchange {
                packets_in: exchange.packets_in,
                bytes_in: exchange.bytes_in,
                packets_out: exchange.packets_out,
                bytes_out: exchange.bytes_out,
            }),
            opened: traffic.opened,
            closed: traffic.closed,
            unrecorded: traffic.unrecorded,
        }
    }
}

/// The totals of the backend of that id, with its connections that the sweep has ended.
pub(super) fn of_backend(
    traffic: &MapHandle,
    expired: Option<abi::expiries>,
    id: u32,
) -> Result<Traffic, Error> {
    let mut sum = Traffic::from(totals::sum(traffic, id)?);
    sum.closed = sum
        .closed
        .wrapping_add(expired.unwrap_or_default().connections);
    Ok(sum)
}
