//! Entries of the connection tables, put where a test wants them: as the LRU, time or another CPU would.

use std::net::IpAddr;
use std::time::Duration;

use libbpf_rs::{MapCore, MapFlags, MapHandle};
use xdplb::datapath::abi::{self, bytes_of, from_bytes, Flow};

use super::dialog::Dialog;
use super::Lab;

/// Bytes of an entry before its struct conn: service, sequence, fin.
const HEAD: usize = 16;

impl Lab {
    /// Takes the entry of a flow out of its table, as the LRU does when the table is full.
    pub fn evict(&self, flow: &Flow) {
        let map = self.table_of(flow);
        map.delete(&key_of(flow)).expect("delete");
        self.forget_copies();
    }

    /// Takes both entries of a connection out, those that there are.
    pub fn forget(&self, d: &Dialog) {
        for flow in [d.flow(), d.reply_flow()] {
            if self.entry(&flow).is_some() {
                self.evict(&flow);
            }
        }
    }

    /// Writes an entry anew after a change of what both families have.
    pub fn change_entry(&self, flow: &Flow, change: impl FnOnce(&mut abi::conn)) {
        let map = self.table_of(flow);
        let mut bytes = value_of(&map, flow);
        let place = HEAD..HEAD + size_of::<abi::conn>();
        let mut conn: abi::conn = from_bytes(&bytes[place.clone()]).expect("struct conn");
        change(&mut conn);
        bytes[place].copy_from_slice(bytes_of(&conn));
        map.update(&key_of(flow), &bytes, MapFlags::EXIST)
            .expect("the entry");
    }

    /// As after some idle seconds, for both directions: the next packet looks after the entries.
    pub fn age(&self, d: &Dialog) {
        self.date_back(d, 5 * self.datapath.clock().hz.max(512));
    }

    /// As after that time without a packet, for both directions.
    pub fn idle(&self, d: &Dialog, time: Duration) {
        self.date_back(d, time.as_secs() as u32 * self.datapath.clock().hz);
    }

    fn date_back(&self, d: &Dialog, jiffies: u32) {
        for flow in [d.flow(), d.reply_flow()] {
            if self.entry(&flow).is_some() {
                self.change_entry(&flow, |conn| {
                    conn.last_seen = conn.last_seen.wrapping_sub(jiffies);
                });
            }
        }
        self.forget_copies();
    }

    /// Puts what stands under one flow under another as well.
    pub fn copy_entry(&self, from: &Flow, to: &Flow) {
        let map = self.table_of(from);
        let bytes = value_of(&map, from);
        map.update(&key_of(to), &bytes, MapFlags::ANY)
            .expect("an entry");
    }

    /// The table that has the flow's entry.
    fn table_of(&self, flow: &Flow) -> MapHandle {
        let table = self.entry(flow).expect("an entry").table;
        match flow.source.0 {
            IpAddr::V4(_) => self.map(table),
            IpAddr::V6(_) => self.map(&format!("{table}6")),
        }
    }
}

fn value_of(map: &MapHandle, flow: &Flow) -> Vec<u8> {
    let value = map.lookup(&key_of(flow), MapFlags::ANY).expect("lookup");
    value.expect("an entry")
}

/// The flow as a key of its family's tables.
pub(super) fn key_of(flow: &Flow) -> Vec<u8> {
    let (source, destination) = (
        abi::words_of(flow.source.0),
        abi::words_of(flow.destination.0),
    );
    let (sport, dport) = (flow.source.1.to_be(), flow.destination.1.to_be());
    let protocol = flow.protocol;
    match flow.source.0 {
        IpAddr::V4(_) => bytes_of(&abi::flow4 {
            saddr: source[3],
            daddr: destination[3],
            sport,
            dport,
            protocol,
            pad: [0; 3],
        })
        .to_vec(),
        IpAddr::V6(_) => bytes_of(&abi::flow6 {
            saddr: source,
            daddr: destination,
            sport,
            dport,
            protocol,
            pad: [0; 3],
        })
        .to_vec(),
    }
}
