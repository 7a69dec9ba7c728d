//! Interfaces that leave: XDP is off and their slots are empty when the call returns, and the others stay.

use libbpf_rs::{MapCore, MapFlags};
use xdplb::config::XdpMode;
use xdplb::datapath::abi;

use crate::harness::cases::{self, STANDARD};
use crate::harness::{Lab, BACKENDS, CLIENTS, OTHER};

/// Whether the slot is one of an interface, for packets that come by it and for those that leave by it.
fn holds(lab: &Lab, slot: u16) -> bool {
    let index = lab.interface(slot).ifindex;
    let known: abi::interface = lab.element("interfaces", slot.into());
    let by_index = lab.map("interface_slots");
    let way_in = by_index.lookup(&index.to_ne_bytes(), MapFlags::ANY);
    let way_out = lab
        .map("tx_ports")
        .lookup(&u32::from(slot).to_ne_bytes(), MapFlags::ANY);
    let found = [
        known.ifindex != 0,
        way_in.expect("lookup").is_some(),
        way_out.expect("lookup").is_some(),
    ];
    assert!(found.iter().all(|&one| one == found[0]), "{found:?}");
    found[0]
}

#[test]
fn the_slots_of_those_that_leave_are_empty_and_the_others_stay() {
    let mut lab = Lab::new(STANDARD);
    for slot in [CLIENTS, BACKENDS, OTHER] {
        let mode = lab.datapath.attach(slot, XdpMode::Generic);
        mode.unwrap_or_else(|error| panic!("{error}"));
    }
    lab.datapath.detach(&[OTHER]);
    assert_eq!(
        [CLIENTS, BACKENDS, OTHER].map(|slot| holds(&lab, slot)),
        [true, true, false]
    );
    for case in cases::all() {
        case.establish(&lab);
    }
    // It is free for another, or for itself again: XDP is off.
    let other = lab.interface(OTHER);
    lab.datapath
        .set_interface(OTHER, &other)
        .expect("an empty slot");
    let attached = lab.datapath.attach(OTHER, XdpMode::Generic);
    attached.unwrap_or_else(|error| panic!("{error}"));
    assert!(holds(&lab, OTHER));
    lab.datapath.detach(&[CLIENTS, BACKENDS, OTHER]);
    assert_eq!(
        [CLIENTS, BACKENDS, OTHER].map(|slot| holds(&lab, slot)),
        [false; 3]
    );
    lab.datapath.detach(&[]);
}
