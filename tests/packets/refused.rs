//! Changes that the kernel refuses halfway, or for which there is no room: the maps stay as they were.

use std::collections::BTreeMap;
use std::sync::Arc;

use libbpf_rs::{MapCore, MapFlags};
use xdplb::config::Protocol;
use xdplb::datapath::abi::{self, bytes_of, words_of};
use xdplb::state::ports::PortPrefix;
use xdplb::state::{Desired, Vip};

use crate::harness::cases::{self, STANDARD};
use crate::harness::{ip, Lab};

/// What the trie holds, by key.
fn held(lab: &Lab) -> BTreeMap<Vec<u8>, Vec<u8>> {
    lab.pairs("vips").into_iter().collect()
}

fn port(address: &str, port: u16) -> Vip {
    Vip {
        address: ip(address),
        ports: Some((Protocol::Tcp, PortPrefix::new(port, 16))),
    }
}

/// The plan with some of its VIPs and ports changed.
fn with_vips(plan: &Desired, change: impl FnOnce(&mut BTreeMap<Vip, Option<u32>>)) -> Desired {
    let mut plan = plan.clone();
    change(Arc::make_mut(&mut plan.vips));
    plan
}

/// Every service answers where it did.
#[track_caller]
fn assert_served(lab: &Lab, client: u16) {
    for case in cases::all() {
        case.establish_from(lab, case.client_at(client));
    }
}

/// Fills the trie with ports that no service has, as nobody else would, until only so much room is left.
fn fill(lab: &Lab, left: usize) -> Vec<Vec<u8>> {
    let map = lab.map("vips");
    let free = map.max_entries() as usize - held(lab).len() - left;
    let keys = (0..free).map(|number| {
        let key = abi::vip_key {
            prefixlen: 160,
            address: words_of(ip("192.0.2.1")),
            protocol: 6,
            pad: 0,
            port: (number as u16).to_be(),
        };
        bytes_of(&key).to_vec()
    });
    let keys: Vec<Vec<u8>> = keys.collect();
    for key in &keys {
        map.update(key, &[0; size_of::<abi::vip>()], MapFlags::NO_EXIST)
            .expect("an element");
    }
    keys
}

/// Some are written before the kernel refuses one: what was there gets its value back, what was not goes.
#[test]
fn a_change_that_is_refused_halfway_is_led_back() {
    let mut lab = Lab::new(STANDARD);
    let [full, nat] = ["f4", "n4"].map(|name| {
        let id = lab.backend_id(name);
        Some(lab.desired.backends[&id].service)
    });
    let next = with_vips(&lab.desired, |vips| {
        // In the order of the keys: these are written first.
        vips.insert(port("198.51.100.1", 80), nat);
        let known = vips.insert(port("203.0.113.11", 80), full);
        assert_eq!(known, Some(nat), "a port that changes hands");
        for number in 1..10 {
            vips.insert(port("203.0.113.200", number), nat);
        }
        vips.remove(&port("203.0.113.12", 80));
    });
    let filling = fill(&lab, 4);
    let before = held(&lab);
    let error = lab
        .datapath
        .follow(&next, &lab.settings)
        .expect_err("there is no room");
    let said = error.to_string();
    assert!(said.starts_with("cannot write the map vips: "), "{said}");
    assert_eq!(held(&lab), before);
    assert_served(&lab, 1000);

    // Back to the plan in force, as the daemon goes, which finds what was strewn in.
    lab.apply();
    let left = held(&lab);
    assert!(filling.iter().all(|key| !left.contains_key(key)));
    assert_eq!(left.len() + filling.len(), before.len());
    assert_served(&lab, 1001);
    // With room it is done.
    lab.datapath.follow(&next, &lab.settings).expect("room");
    assert_eq!(held(&lab).len(), next.vips.len());
}

/// The new elements come before the old ones go. Where they do not fit beside each other, nothing is begun.
#[test]
fn a_change_for_which_there_is_no_room_is_not_begun() {
    let mut lab = Lab::new(STANDARD);
    let id = lab.backend_id("n4");
    let nat = Some(lab.desired.backends[&id].service);
    let room = lab.map("vips").max_entries() as usize;
    let on = |address: &str| {
        with_vips(&lab.desired, |vips| {
            for number in 0..room * 2 / 3 {
                vips.insert(port(address, number as u16), nat);
            }
        })
    };
    let (first, second) = (on("203.0.113.100"), on("203.0.113.200"));
    lab.datapath.follow(&first, &lab.settings).expect("room");
    for everything in [false, true] {
        let before = held(&lab);
        let put = if everything {
            lab.datapath.apply(&second, &lab.settings)
        } else {
            lab.datapath.follow(&second, &lab.settings)
        };
        let said = put.expect_err("no room for both").to_string();
        assert!(
            said.contains("prefixes of the map vips") && said.contains(&room.to_string()),
            "{said}"
        );
        assert_eq!(held(&lab), before);
        lab.datapath.apply(&first, &lab.settings).expect("the same");
        assert_eq!(held(&lab), before);
    }
    // By way of a plan without either.
    lab.apply();
    lab.datapath.follow(&second, &lab.settings).expect("room");
    assert_eq!(held(&lab).len(), second.vips.len());
    assert_served(&lab, 1000);
}
