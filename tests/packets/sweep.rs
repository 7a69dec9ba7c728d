//! The sweep, over connections as the datapath leaves them.

use std::sync::Arc;

use libbpf_rs::{MapCore, MapFlags};
use xdplb::datapath::abi::{self, conn_state};

use crate::harness::cases::STANDARD;
use crate::harness::{ip, Lab};

/// A connection with direct return.
fn record(lab: &Lab, port: u16) -> abi::record4 {
    let word = |address: &str| abi::words_of(ip(address))[3];
    let backend = lab.backend_id("n4");
    abi::record4 {
        flow: abi::flow4 {
            saddr: word("198.51.100.2"),
            daddr: word("203.0.113.11"),
            sport: port.to_be(),
            dport: 80_u16.to_be(),
            protocol: 6,
            pad: [0; 3],
        },
        session: abi::session {
            backend,
            generation: lab.desired.backends[&backend].generation,
            forward: abi::forward_mode::FORWARD_IPIP.0 as u8,
            ..Default::default()
        },
        ..Default::default()
    }
}

/// Connections of this backend that a sweep has ended.
fn expired(lab: &Lab, id: u32) -> u64 {
    let bytes = lab.map("expired").lookup(&id.to_ne_bytes(), MapFlags::ANY);
    let bytes = bytes.expect("lookup").expect("an element");
    let ends: abi::expiries = abi::from_bytes(&bytes).expect("struct expiries");
    ends.connections
}

#[test]
fn a_connection_expires_by_itself() {
    let mut lab = Lab::new(STANDARD);
    lab.set_timeouts(|timeouts| timeouts.tcp_established = std::time::Duration::from_secs(5));
    let hz = lab.datapath.clock().hz;
    let established = conn_state::CONN_ESTABLISHED;
    lab.put(0, &record(&lab, 40_000), established, 6 * hz);
    lab.put(1, &record(&lab, 40_001), established, 2 * hz);

    let sweeper = lab.datapath.sweeper().expect("a sweeper");
    let swept = sweeper.sweep(&|_, _| true).expect("a sweep");
    assert_eq!((swept.entries, swept.expired), (2, 1));
    let left: Vec<u16> = lab.entries().iter().map(|e| e.flow.source.1).collect();
    assert_eq!(left, [40_001]);
}

#[test]
fn the_end_of_a_connection_is_counted_once() {
    let mut lab = Lab::new(STANDARD);
    lab.set_timeouts(|timeouts| {
        timeouts.tcp_established = std::time::Duration::from_secs(5);
        timeouts.tcp_half_closed = std::time::Duration::from_secs(5);
        timeouts.tcp_closing = std::time::Duration::from_secs(5);
    });
    let hz = lab.datapath.clock().hz;
    let put = |set: u32, state: conn_state, change: &dyn Fn(&mut abi::session)| {
        let mut record = record(&lab, 40_000 + set as u16);
        change(&mut record.session);
        lab.put(set, &record, state, 6 * hz);
    };
    put(0, conn_state::CONN_ESTABLISHED, &|_| {});
    put(1, conn_state::CONN_HALF_CLOSED, &|_| {});
    // The datapath has counted these.
    put(2, conn_state::CONN_CLOSING, &|_| {});
    put(3, conn_state::CONN_CLOSED, &|_| {});
    // These are of backends that had the id before, or have it no more.
    put(4, conn_state::CONN_ESTABLISHED, &|session| {
        session.generation += 1
    });
    put(5, conn_state::CONN_ESTABLISHED, &|session| {
        session.backend = 63
    });

    let sweeper = lab.datapath.sweeper().expect("a sweeper");
    let swept = sweeper.sweep(&|_, _| true).expect("a sweep");
    assert_eq!(swept.expired, 6);
    assert_eq!(expired(&lab, lab.backend_id("n4")), 2);
    assert_eq!(expired(&lab, 63), 0);
}

#[test]
fn the_end_of_a_connection_without_a_service_is_counted() {
    let mut lab = Lab::new(STANDARD);
    lab.put(0, &record(&lab, 40_000), conn_state::CONN_ESTABLISHED, 0);
    let id = lab.backend_id("n4");
    lab.desired.vips = Arc::default();
    assert_eq!(lab.sweep().unbound, 1);
    assert_eq!(expired(&lab, id), 1);
}

#[test]
fn a_sweep_says_which_interfaces_slots_connections_name() {
    let lab = Lab::new(STANDARD);
    assert_eq!(lab.sweep().interface_slots, 0);
    for (set, slot) in [(0, 3), (1, 3), (2, 63), (3, 0xffff)] {
        let mut record = record(&lab, 1000);
        record.session.hop.slot = slot;
        lab.put(set, &record, conn_state::CONN_ESTABLISHED, 0);
    }
    assert_eq!(lab.sweep().interface_slots, 1 << 3 | 1 << 63);
}
