//! The sweep, over entries as the datapath leaves them.

use std::sync::Arc;

use libbpf_rs::{MapCore, MapFlags};
use xdplb::datapath::abi;

use crate::harness::cases::STANDARD;
use crate::harness::{ip, Lab};

/// The client's entry of a connection with direct return, last seen so many jiffies ago.
fn entry(lab: &Lab, port: u16, idle: u32) -> (abi::flow4, abi::entry4) {
    let word = |address: &str| abi::words_of(ip(address))[3];
    let flow = abi::flow4 {
        saddr: word("198.51.100.2"),
        daddr: word("203.0.113.11"),
        sport: port.to_be(),
        dport: 80_u16.to_be(),
        protocol: 6,
        pad: [0; 3],
    };
    // The packet leaves with the addresses that it came with.
    let backend = lab.backend_id("n4");
    let c = abi::conn4 {
        conn: abi::conn {
            backend,
            generation: lab.desired.backends[&backend].generation,
            last_seen: lab.datapath.clock().now().wrapping_sub(idle),
            state: abi::conn_state::CONN_ESTABLISHED.0 as u8,
            forward: abi::forward_mode::FORWARD_IPIP.0 as u8,
            ..Default::default()
        },
        saddr: flow.saddr,
        daddr: flow.daddr,
        sport: flow.sport,
        dport: flow.dport,
        l3_delta: 0,
        l4_delta: 0,
    };
    let entry = abi::entry4 {
        c,
        service: lab.desired.backends[&backend].service,
        ..Default::default()
    };
    (flow, entry)
}

/// Connections of this backend that a sweep has ended.
fn expired(lab: &Lab, id: u32) -> u64 {
    let bytes = lab.map("expired").lookup(&id.to_ne_bytes(), MapFlags::ANY);
    let bytes = bytes.expect("lookup").expect("an element");
    let ends: abi::expiries = abi::from_bytes(&bytes).expect("struct expiries");
    ends.connections
}

#[test]
fn a_direct_connection_expires_by_itself() {
    let mut lab = Lab::new(STANDARD);
    lab.set_timeouts(|timeouts| timeouts.tcp_established = std::time::Duration::from_secs(5));
    let hz = lab.datapath.clock().hz;
    let map = lab.map("conntrack");
    let put = |flow: &abi::flow4, conn: &abi::entry4| {
        map.update(abi::bytes_of(flow), abi::bytes_of(conn), MapFlags::ANY)
            .expect("an entry");
    };
    let (old, conn) = entry(&lab, 40_000, 6 * hz);
    put(&old, &conn);
    let (young, conn) = entry(&lab, 40_001, 2 * hz);
    put(&young, &conn);
    // Whatever is under the key that a reply's entry would have keeps no direct connection alive.
    let (_, conn) = entry(&lab, 40_000, 0);
    let reversed = abi::flow4 {
        saddr: old.daddr,
        daddr: old.saddr,
        sport: old.dport,
        dport: old.sport,
        ..old
    };
    put(&reversed, &conn);

    let sweeper = lab.datapath.sweeper().expect("a sweeper");
    let swept = sweeper.sweep(&|_, _| true).expect("a sweep");
    assert_eq!((swept.entries, swept.expired), (3, 1));
    let left: Vec<u16> = lab.entries().iter().map(|e| e.flow.source.1).collect();
    assert!(
        !left.contains(&40_000) && left.contains(&40_001),
        "{left:?}"
    );
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
    let map = lab.map("conntrack");
    let put = |port: u16, change: &dyn Fn(&mut abi::conn)| {
        let (flow, mut conn) = entry(&lab, port, 6 * hz);
        change(&mut conn.c.conn);
        map.update(abi::bytes_of(&flow), abi::bytes_of(&conn), MapFlags::ANY)
            .expect("an entry");
    };
    put(40_000, &|_| {});
    put(40_001, &|conn| {
        conn.state = abi::conn_state::CONN_HALF_CLOSED.0 as u8;
    });
    // The datapath has counted these.
    put(40_006, &|conn| {
        conn.state = abi::conn_state::CONN_CLOSING.0 as u8;
    });
    put(40_002, &|conn| {
        conn.state = abi::conn_state::CONN_CLOSED.0 as u8;
    });
    // This one is the other half of a connection.
    put(40_003, &|conn| {
        conn.flags |= abi::conn_flag::CONN_REPLY.0 as u8;
    });
    // These are of backends that had the id before, or have it no more.
    put(40_004, &|conn| conn.generation += 1);
    put(40_005, &|conn| conn.backend = 63);

    let sweeper = lab.datapath.sweeper().expect("a sweeper");
    let swept = sweeper.sweep(&|_, _| true).expect("a sweep");
    assert_eq!(swept.expired, 7);
    assert_eq!(expired(&lab, lab.backend_id("n4")), 2);
    assert_eq!(expired(&lab, 63), 0);
}

#[test]
fn the_end_of_a_connection_without_a_service_is_counted() {
    let mut lab = Lab::new(STANDARD);
    let (flow, conn) = entry(&lab, 40_000, 0);
    lab.map("conntrack")
        .update(abi::bytes_of(&flow), abi::bytes_of(&conn), MapFlags::ANY)
        .expect("an entry");
    let id = lab.backend_id("n4");
    lab.desired.vips = Arc::default();
    assert_eq!(lab.sweep().unbound, 1);
    assert_eq!(expired(&lab, id), 1);
}

#[test]
fn a_sweep_says_which_interfaces_slots_entries_name() {
    let lab = Lab::new(STANDARD);
    assert_eq!(lab.sweep().interface_slots, 0);
    let map = lab.map("conntrack");
    for (port, slot) in [(1000, 3), (1001, 3), (1002, 63), (1003, 0xffff)] {
        let (flow, mut entry) = entry(&lab, port, 0);
        entry.c.conn.hop.slot = slot;
        map.update(abi::bytes_of(&flow), abi::bytes_of(&entry), MapFlags::ANY)
            .expect("update");
    }
    assert_eq!(lab.sweep().interface_slots, 1 << 3 | 1 << 63);
}
