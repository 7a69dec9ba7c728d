//! Connections put where a test wants them: as time, a full table or another CPU would.

use std::net::IpAddr;
use std::time::Duration;

use libbpf_rs::{MapCore, MapFlags};
use xdplb::datapath::abi::{self, from_bytes, way_word, xdplb_limit, Flow};

use super::dialog::Dialog;
use super::Lab;

const WAYS: usize = xdplb_limit::SET_WAYS.0 as usize;

/// A set of either family.
#[allow(clippy::large_enum_variant)] // one at a time, on a test's stack
#[derive(Clone, Copy)]
enum Set {
    V4(abi::set4),
    V6(abi::set6),
}

impl Set {
    /// Whose way it is, if anybody's.
    fn flow(&self, way: usize) -> Option<Flow> {
        let (word, flow): (u64, Flow) = match self {
            Set::V4(set) => (set.way[way], set.record[way].flow.into()),
            Set::V6(set) => (set.way[way], set.record[way].flow.into()),
        };
        let used = word & ((1 << way_word::WAY_STATE_BITS.0) - 1) != 0;
        used.then_some(flow)
    }

    fn way(&mut self, way: usize) -> (&mut u64, &mut abi::session) {
        match self {
            Set::V4(set) => (&mut set.way[way], &mut set.record[way].session),
            Set::V6(set) => (&mut set.way[way], &mut set.record[way].session),
        }
    }
}

impl Lab {
    /// Takes a connection out of its set, by the client's flow, as another does that needs the way.
    pub fn evict(&self, flow: &Flow) {
        self.change_way(flow, |word, _| *word = 0);
        self.forget_copies();
    }

    /// Takes a connection out, if there is one.
    pub fn forget(&self, d: &Dialog) {
        if self.entry(&d.flow()).is_some() {
            self.evict(&d.flow());
        }
    }

    /// As after some idle seconds: the next packet looks after the connection.
    pub fn age(&self, d: &Dialog) {
        self.date_back(&d.flow(), 5 * self.datapath.clock().hz.max(512));
    }

    /// As after that time without a packet.
    pub fn idle(&self, d: &Dialog, time: Duration) {
        self.date_back(&d.flow(), time.as_secs() as u32 * self.datapath.clock().hz);
    }

    fn change_way(&self, flow: &Flow, change: impl FnOnce(&mut u64, &mut abi::session)) {
        let (index, way, mut set) = self
            .find(flow)
            .unwrap_or_else(|| panic!("no connection {flow:?}"));
        let (word, session) = set.way(way);
        change(word, session);
        match set {
            Set::V4(set) => self.set_element("connections", index, &set),
            Set::V6(set) => self.set_element("connections6", index, &set),
        }
    }

    /// No connections, as in the beginning: in no set, in no kernel's map, and no flow remembered.
    pub fn clear_connections(&self) {
        for flow in self.client_flows() {
            if self.find(&flow).is_some() {
                self.evict(&flow);
            }
        }
        for name in ["conntrack", "conntrack6"] {
            let map = self.map(name);
            for key in map.keys().collect::<Vec<_>>() {
                map.delete(&key).expect("delete");
            }
        }
        for name in ["pending", "pending6"] {
            super::elements::clear(&self.map(name));
        }
        self.forget_copies();
    }

    /// The flow of each connection's client, in order.
    pub fn client_flows(&self) -> Vec<Flow> {
        let entries = self.entries();
        let mut flows: Vec<Flow> = entries
            .iter()
            .filter(|entry| !entry.is_reply)
            .map(|entry| entry.flow)
            .collect();
        flows.sort();
        flows
    }

    /// Makes a connection so much older.
    pub fn date_back(&self, flow: &Flow, jiffies: u32) {
        if self.find(flow).is_none() {
            return;
        }
        self.change_way(flow, |word, _| {
            *word = word.wrapping_sub(u64::from(jiffies) << way_word::WAY_AGE.0);
        });
        self.forget_copies();
    }

    /// Puts a connection of IPv4 into the first way of a set, last seen so many jiffies ago.
    pub fn put(&self, set: u32, record: &abi::record4, state: abi::conn_state, idle: u32) {
        let seen = self.datapath.clock().now().wrapping_sub(idle);
        let age = u64::from(seen) << way_word::WAY_AGE.0;
        let mut value: abi::set4 = self.element("connections", set);
        value.way[0] = age | 1 << way_word::WAY_PROVEN.0 | u64::from(state.0);
        value.record[0] = *record;
        self.set_element("connections", set, &value);
    }

    fn find(&self, flow: &Flow) -> Option<(u32, usize, Set)> {
        let map = self.map(match flow.source.0 {
            IpAddr::V4(_) => "connections",
            IpAddr::V6(_) => "connections6",
        });
        (0..map.max_entries()).find_map(|index| {
            let bytes = map.lookup(&index.to_ne_bytes(), MapFlags::ANY).ok()??;
            let set = match flow.source.0 {
                IpAddr::V4(_) => Set::V4(from_bytes(&bytes)?),
                IpAddr::V6(_) => Set::V6(from_bytes(&bytes)?),
            };
            let way = (0..WAYS).find(|&way| set.flow(way) == Some(*flow))?;
            Some((index, way, set))
        })
    }
}
