//! Reading the connection tables: entries as plain values.
//!
//! Commands put entries into words for people; [`super::sweep`] decides which are over.

use std::net::IpAddr;

use libbpf_rs::MapHandle;
use plain::Plain;

use super::abi::{self, address_of, conn_flag, forward_mode, from_bytes, ipv4_of, words_of, Flow};
use super::{batch, Error};

/// One direction of a connection, of either family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// The key: a packet's 5-tuple as it arrives.
    pub flow: Flow,
    /// The 5-tuple that it leaves with.
    pub becomes: Flow,
    /// Index into `services`: the one that the connection was made for.
    pub service: u32,
    /// Index into `backends`.
    pub backend: u32,
    /// `backend.generation` when it was chosen.
    pub generation: u32,
    /// Slot of the interface that the client's link has.
    pub client_slot: u16,
    /// `enum conn_state`
    pub state: u8,
    /// `enum conn_flag`
    pub flags: u8,
    /// `enum forward_mode`
    pub forward: u8,
    /// Jiffies, the low 32 bits.
    pub last_seen: u32,
}

impl Entry {
    /// Whether this is the backend's direction.
    pub fn is_reply(&self) -> bool {
        self.has(conn_flag::CONN_REPLY)
    }

    /// Whether its source is translated too.
    pub fn is_full_nat(&self) -> bool {
        u32::from(self.forward) == forward_mode::FORWARD_FULL_NAT.0
    }

    /// Whether the backend answers its client directly: there is no entry of the backend's direction.
    pub fn is_direct(&self) -> bool {
        u32::from(self.forward) >= forward_mode::FORWARD_L2.0
    }

    /// The key of the other direction's entry, if there is one.
    pub fn other(&self) -> Option<Flow> {
        (!self.is_direct()).then(|| self.becomes.reversed())
    }

    /// The connection as its client sees it: the key of the client's direction.
    pub fn client_flow(&self) -> Flow {
        if self.is_reply() {
            self.becomes.reversed()
        } else {
            self.flow
        }
    }

    /// The key of the backend's direction, unless it is direct.
    pub fn reply_flow(&self) -> Flow {
        if self.is_reply() {
            self.flow
        } else {
            self.becomes.reversed()
        }
    }

    fn has(&self, flag: conn_flag) -> bool {
        u32::from(self.flags) & flag.0 != 0
    }
}

/// A table's key and value types.
pub(super) trait Family {
    /// Key.
    type Key: Plain + Copy + Default + Into<Flow>;
    /// Value.
    type Value: Plain + Copy + Default;
    /// 4 or 6.
    const NUMBER: u32;
    /// Their meaning.
    fn entry(key: Self::Key, value: Self::Value) -> Entry;
    /// The key as the datapath has it in one shape for both families.
    fn wide(key: Self::Key) -> abi::flow6;
}

/// `conntrack` and `opening`.
pub(super) struct V4;
/// `conntrack6` and `opening6`.
pub(super) struct V6;

fn entry(
    flow: Flow,
    conn: abi::conn,
    service: u32,
    source: (IpAddr, u16),
    destination: (IpAddr, u16),
) -> Entry {
    Entry {
        flow,
        becomes: Flow {
            source,
            destination,
            protocol: flow.protocol,
        },
        service,
        backend: conn.backend,
        generation: conn.generation,
        client_slot: conn.hop.slot,
        state: conn.state,
        flags: conn.flags,
        forward: conn.forward,
        last_seen: conn.last_seen,
    }
}

impl Family for V4 {
    type Key = abi::flow4;
    type Value = abi::entry4;
    const NUMBER: u32 = 4;
    fn entry(key: abi::flow4, value: abi::entry4) -> Entry {
        let c = value.c;
        let (source, destination) = (ipv4_of(c.saddr), ipv4_of(c.daddr));
        entry(
            key.into(),
            c.conn,
            value.service,
            (source, u16::from_be(c.sport)),
            (destination, u16::from_be(c.dport)),
        )
    }
    fn wide(key: abi::flow4) -> abi::flow6 {
        abi::flow6 {
            saddr: words_of(ipv4_of(key.saddr)),
            daddr: words_of(ipv4_of(key.daddr)),
            sport: key.sport,
            dport: key.dport,
            protocol: key.protocol,
            pad: key.pad,
        }
    }
}

impl Family for V6 {
    type Key = abi::flow6;
    type Value = abi::entry6;
    const NUMBER: u32 = 6;
    fn entry(key: abi::flow6, value: abi::entry6) -> Entry {
        let c = value.c;
        let (source, destination) = (address_of(c.saddr), address_of(c.daddr));
        entry(
            key.into(),
            c.conn,
            value.service,
            (source, u16::from_be(c.sport)),
            (destination, u16::from_be(c.dport)),
        )
    }
    fn wide(key: abi::flow6) -> abi::flow6 {
        key
    }
}

/// Calls `visit` with every entry of a table, and its key as the map has it. Entries that come or go
/// meanwhile may be missed.
///
/// # Errors
/// When the kernel refuses.
pub(super) fn for_each<F: Family>(
    map: &MapHandle,
    mut visit: impl FnMut(F::Key, Entry),
) -> Result<(), Error> {
    batch::for_each(map, |key, value| {
        if let (Some(parsed), Some(value)) =
            (from_bytes::<F::Key>(key), from_bytes::<F::Value>(value))
        {
            visit(parsed, F::entry(parsed, value));
        }
    })
}
