//! A connection of which the kernel's LRU has taken one of its two entries: it gets it back.

use xdplb::datapath::abi;

use crate::harness::cases::{self, STANDARD};
use crate::harness::dialog::Dialog;
use crate::harness::frame::{Protocol, ACK, FIN, PSH};
use crate::harness::Lab;

fn dialogs(lab: &Lab, number: u16) -> Vec<Dialog> {
    cases::all()
        .map(|case| case.establish_from(lab, case.client_at(9000 + number)))
        .collect()
}

/// What both ends go on to send, in whole.
fn go_on(lab: &Lab, d: &Dialog) {
    for _ in 0..3 {
        d.to_backend(lab, PSH | ACK);
        d.to_client(lab, PSH | ACK);
    }
    assert!(d.state(lab).is_some(), "{d:?}");
}

#[test]
fn the_backends_entry_comes_back_with_a_packet_of_the_client() {
    let lab = Lab::new(STANDARD);
    for d in dialogs(&lab, 0) {
        let whole = lab.entry(&d.reply_flow()).expect("the backend's entry");
        lab.evict(&d.reply_flow());
        lab.age(&d);
        d.to_backend(&lab, ACK);
        assert_eq!(lab.entry(&d.reply_flow()), Some(whole), "{d:?}");
        go_on(&lab, &d);
    }
}

#[test]
fn the_clients_entry_comes_back_with_a_packet_of_the_backend() {
    let lab = Lab::new(STANDARD);
    for d in dialogs(&lab, 1) {
        let whole = lab.entry(&d.flow()).expect("the client's entry");
        lab.evict(&d.flow());
        lab.age(&d);
        d.to_client(&lab, ACK);
        assert_eq!(lab.entry(&d.flow()), Some(whole), "{d:?}");
        go_on(&lab, &d);
    }
}

/// A segment that changes the connection needs both at once.
#[test]
fn at_once_where_the_state_moves() {
    let lab = Lab::new(STANDARD);
    let tcp = dialogs(&lab, 2)
        .into_iter()
        .filter(|d| d.protocol == Protocol::Tcp);
    for (nth, d) in tcp.enumerate() {
        if nth % 2 == 0 {
            lab.evict(&d.reply_flow());
            d.to_backend(&lab, FIN | ACK);
            d.to_client(&lab, PSH | ACK);
        } else {
            lab.evict(&d.flow());
            d.to_client(&lab, FIN | ACK);
            d.to_backend(&lab, PSH | ACK);
        }
        assert_eq!(d.state(&lab), Some(("conntrack", "half-closed")), "{d:?}");
    }
}

/// A key that is computed may be another connection's by now: that one stays when the first is forgotten.
#[test]
fn what_lies_there_may_be_anothers() {
    let mut lab = Lab::new(STANDARD);
    for case in cases::all().filter(|case| !case.full_nat) {
        let d = case.establish_from(&lab, case.client_at(9500));
        lab.evict(&d.reply_flow());
        // Under the reply's key stands an entry that leads to another client.
        let other = case.establish_from(&lab, case.client_at(9501));
        lab.copy_entry(&other.reply_flow(), &d.reply_flow());
        let placed = lab.entry(&d.reply_flow());
        assert!(placed.is_some());
        // The first one's backend is gone: its client's next packet makes it anew.
        lab.change_entry(&d.flow(), |conn: &mut abi::conn| conn.generation += 1000);
        lab.limit_new_flows(0);
        lab.forget_copies();
        d.to_backend(&lab, ACK);
        assert_eq!(lab.entry(&d.flow()), None);
        assert_eq!(lab.entry(&d.reply_flow()), placed, "{d:?}");
        lab.limit_new_flows(u32::MAX);
    }
}
