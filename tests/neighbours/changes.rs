//! What changes meanwhile: addresses on the wire, links, backends that die and come back.

use std::time::{Duration, Instant};

use xdplb::config::MacAddress;
use xdplb::neighbours::Target;

use crate::{ip, mac, target, Lab};

#[test]
fn a_mac_that_changes_silently() {
    let lab = Lab::new();
    let before = lab.mac("b", "eth0");
    lab.run(|mut rig| {
        let (v4, v6) = (target("10.77.0.2"), target("fd77::2"));
        rig.track([v4.clone(), v6.clone()]);
        rig.until_mac("IPv4 before", &v4, before);
        rig.until_mac("IPv6 before", &v6, before);
        for round in 1..=4u8 {
            // At a different point of the period of confirmation each time.
            rig.rest(Duration::from_millis(1000 + 130 * u64::from(round)));
            let after = MacAddress([2, 0x77, 0, 0, 0, round]);
            lab.ip("b", &format!("link set eth0 address {after}"));
            let start = Instant::now();
            rig.until_mac(
                &format!("IPv4 follows a silent change ({round})"),
                &v4,
                after,
            );
            rig.until(&format!("IPv6 follows, after that ({round})"), |n| {
                mac(&n.network().resolve(&v6)) == Some(after)
            });
            println!("both followed within {:?}", start.elapsed());
        }
    });
}

#[test]
fn a_link_that_goes_and_comes_back() {
    let lab = Lab::new();
    let expected = lab.mac("b", "eth0");
    lab.run(|mut rig| {
        let v4 = target("10.77.0.2");
        let bound = Target {
            interface: Some("lb0".into()),
            ..v4.clone()
        };
        rig.track([v4.clone(), bound.clone()]);
        rig.until_mac("resolved", &v4, expected);
        lab.ip("lb", "link set lb0 down");
        rig.until_reason("link down, by route", &v4, "no route to 10.77.0.2");
        rig.until_reason("link down, by interface", &bound, "lb0 is down");
        assert!(
            !rig.neighbours
                .network()
                .link_by_name("lb0")
                .expect("lb0")
                .up
        );
        lab.ip("lb", "link set lb0 up");
        rig.until_mac("link up", &v4, expected);
        rig.until_mac("link up, by interface", &bound, expected);
        lab.ip("b", "link set eth0 down");
        rig.until_reason("carrier lost", &v4, "lb0 has no carrier");
        lab.ip("b", "link set eth0 up");
        rig.until_mac("carrier back", &v4, expected);
        lab.ip("lb", "link set lb0 down");
        lab.ip("lb", "link set lb0 name wan");
        lab.ip("lb", "link set wan up");
        rig.until_reason("renamed", &bound, "interface lb0 does not exist");
        rig.until("the route follows the new name", |n| {
            mac(&n.network().resolve(&v4)) == Some(expected)
        });
        assert_eq!(rig.next_hop(&v4), ("wan".into(), ip("10.77.0.2")));
    });
}

#[test]
fn a_backend_that_dies_is_out_after_the_grace_and_back_at_once() {
    let lab = Lab::new();
    let expected = lab.mac("b", "eth0");
    lab.run(|mut rig| {
        let v4 = target("10.77.0.2");
        rig.track([v4.clone()]);
        rig.until_mac("resolved", &v4, expected);
        lab.ip("b", "addr del 10.77.0.2/24 dev eth0");
        rig.until_reason("no answer any more", &v4, "does not answer ARP");
        lab.ip("b", "addr add 10.77.0.2/24 dev eth0");
        rig.until_mac("answers again", &v4, expected);
    });
}
