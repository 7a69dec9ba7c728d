//! The ways to a backend: on the link, through a gateway, set in the file, and none.

use std::time::{Duration, Instant};

use xdplb::config::MacAddress;
use xdplb::neighbours::{Neighbours, Target};

use crate::{ip, mac, target, Lab, Rig};

#[test]
fn direct_neighbours_of_both_families() {
    let lab = Lab::new();
    let expected = lab.mac("b", "eth0");
    lab.run(|mut rig| {
        let (v4, v6) = (target("10.77.0.2"), target("fd77::2"));
        rig.track([v4.clone(), v6.clone()]);
        rig.until_mac("IPv4 resolved", &v4, expected);
        rig.until_mac("IPv6 resolved", &v6, expected);
        assert_eq!(rig.next_hop(&v4), ("lb0".into(), ip("10.77.0.2")));
        assert_eq!(rig.next_hop(&v6), ("lb0".into(), ip("fd77::2")));
        // Confirming what is known must not make it flicker.
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(3) {
            rig.turn();
            assert_eq!(mac(&rig.neighbours.network().resolve(&v4)), Some(expected));
            assert_eq!(mac(&rig.neighbours.network().resolve(&v6)), Some(expected));
        }
        assert!(rig.neighbours.state(&v4).is_some());
        rig.track([]);
        assert_eq!(mac(&rig.neighbours.network().resolve(&v4)), None);
    });
}

#[test]
fn a_gateway_and_its_replacement() {
    let lab = Lab::new();
    lab.ip("lb", "route add 10.99.0.0/24 via 10.77.0.2");
    lab.ip("lb", "route add fd99::/64 via fd77::2");
    let (first, second) = (lab.mac("b", "eth0"), lab.mac("c", "eth0"));
    lab.run(|mut rig| {
        let (v4, v6) = (target("10.99.0.9"), target("fd99::9"));
        rig.track([v4.clone(), v6.clone()]);
        rig.until_mac("IPv4 via gateway", &v4, first);
        rig.until_mac("IPv6 via gateway", &v6, first);
        assert_eq!(rig.next_hop(&v4), ("lb0".into(), ip("10.77.0.2")));
        lab.ip("lb", "route replace 10.99.0.0/24 via 10.78.0.2");
        rig.until_mac("IPv4 via another gateway", &v4, second);
        assert_eq!(rig.next_hop(&v4), ("lb1".into(), ip("10.78.0.2")));
        lab.ip("lb", "route replace fd99::/64 via fd78::2");
        rig.until_mac("IPv6 via another gateway", &v6, second);
        lab.ip("lb", "rule add to 10.99.0.9 table 100");
        lab.ip("lb", "route add 10.99.0.9 via 10.77.0.2 table 100");
        rig.until_mac("IPv4 by a rule's table", &v4, first);
    });
}

#[test]
fn gateways_that_are_link_local_or_of_the_other_family() {
    let lab = Lab::new();
    lab.ip("b", "addr add fe80::77/64 dev eth0 nodad");
    lab.ip("lb", "route add fd99::/64 via fe80::77 dev lb0");
    lab.ip("lb", "route add 10.99.0.0/24 via inet6 fe80::77 dev lb0");
    let expected = lab.mac("b", "eth0");
    lab.run(|mut rig| {
        let (v4, v6) = (target("10.99.0.9"), target("fd99::9"));
        rig.track([v4.clone(), v6.clone()]);
        rig.until_mac("IPv6 via link-local", &v6, expected);
        rig.until_mac("IPv4 via IPv6", &v4, expected);
        assert_eq!(rig.next_hop(&v4), ("lb0".into(), ip("fe80::77")));
    });
}

#[test]
fn what_cannot_be_reached_says_why() {
    let lab = Lab::new();
    lab.ip("lb", "route add unreachable 10.97.0.0/24");
    lab.ip("lb", "route add blackhole 10.96.0.0/24");
    lab.ip("lb", "route add prohibit 10.95.0.0/24");
    lab.ip("lb", "-6 route add unreachable fd97::/64");
    lab.ip("lb", "-6 route add blackhole fd96::/64");
    lab.run(|mut rig| {
        let cases = [
            ("10.98.0.1", "no route to 10.98.0.1"),
            ("fd98::1", "no route to fd98::1"),
            ("10.97.0.1", "unreachable"),
            ("10.96.0.1", "blackhole"),
            ("10.95.0.1", "prohibit"),
            ("fd97::1", "unreachable"),
            ("fd96::1", "blackhole"),
            ("10.77.0.1", "address of this machine"),
            ("fd77::1", "address of this machine"),
            ("10.77.0.255", "broadcast"),
            ("10.77.0.9", "10.77.0.9 on lb0 does not answer ARP"),
            (
                "fd77::9",
                "fd77::9 on lb0 does not answer neighbour discovery",
            ),
        ];
        rig.track(cases.map(|(address, _)| target(address)));
        for (address, words) in cases {
            rig.until_reason(address, &target(address), words);
        }
        let absent = Target {
            interface: Some("eth7".into()),
            ..target("10.77.0.2")
        };
        rig.track([absent.clone()]);
        rig.until_reason("absent interface", &absent, "eth7 does not exist");
    });
}

#[test]
fn overrides() {
    let lab = Lab::new();
    let (b, c) = (lab.mac("b", "eth0"), lab.mac("c", "eth0"));
    lab.ip("c", "addr add 10.77.0.2/24 dev eth0");
    let given = MacAddress([2, 0, 0, 0, 0, 0x42]);
    lab.run(|mut rig| {
        let by_route = target("10.77.0.2");
        let by_interface = Target {
            interface: Some("lb1".into()),
            ..target("10.77.0.2")
        };
        let by_mac = Target {
            mac: Some(given),
            ..target("10.77.0.2")
        };
        let by_both = Target {
            interface: Some("lb1".into()),
            mac: Some(given),
            ..target("10.5.5.5")
        };
        rig.track([
            by_route.clone(),
            by_interface.clone(),
            by_mac.clone(),
            by_both.clone(),
        ]);
        // Nobody answers for these: no neighbour is asked.
        rig.until_mac("by its MAC address", &by_mac, given);
        assert_eq!(rig.next_hop(&by_mac), ("lb0".into(), ip("10.77.0.2")));
        rig.until_mac("by both", &by_both, given);
        assert_eq!(rig.next_hop(&by_both), ("lb1".into(), ip("10.5.5.5")));
        assert_eq!(rig.neighbours.state(&by_both), None);
        rig.until_mac("by route", &by_route, b);
        rig.until_mac("by interface", &by_interface, c);
        assert_eq!(rig.next_hop(&by_interface), ("lb1".into(), ip("10.77.0.2")));
    });
}

#[test]
fn own_mac_and_own_addresses() {
    let lab = Lab::new();
    let expected = lab.mac("b", "eth0");
    lab.run(|mut rig| {
        let v4 = target("10.77.0.2");
        rig.track([v4.clone()]);
        rig.until_mac("resolved", &v4, expected);
        let own = MacAddress([2, 0x11, 0, 0, 0, 1]);
        lab.ip("lb", &format!("link set lb0 address {own}"));
        rig.until("own MAC", |n| {
            n.network()
                .link_by_name("lb0")
                .is_some_and(|link| link.mac == own)
        });
        rig.rest(Duration::from_secs(1));
        assert_eq!(mac(&rig.neighbours.network().resolve(&v4)), Some(expected));

        let has =
            |n: &Neighbours, address: &str| n.network().addresses().any(|(_, a)| a == ip(address));
        assert!(has(&rig.neighbours, "10.77.0.1") && has(&rig.neighbours, "fd77::1"));
        assert!(!has(&rig.neighbours, "127.0.0.1"), "host scope");
        assert!(rig
            .neighbours
            .network()
            .addresses()
            .all(|(_, a)| !a.to_string().starts_with("fe80")));
        lab.ip("lb", "addr add 10.77.0.44/24 dev lb0");
        rig.until("address added", |n| has(n, "10.77.0.44"));
        lab.ip("lb", "addr del 10.77.0.44/24 dev lb0");
        rig.until("address removed", |n| !has(n, "10.77.0.44"));
        lab.ip("lb", "addr add fd77::44/64 dev lb0 nodad preferred_lft 0");
        rig.rest(Duration::from_millis(300));
        assert!(!has(&rig.neighbours, "fd77::44"), "deprecated");
        lab.ip(
            "lb",
            "addr change fd77::44/64 dev lb0 preferred_lft forever",
        );
        rig.until("address preferred", |n| has(n, "fd77::44"));
    });
}

#[test]
fn without_the_capability_the_reason_says_so() {
    let lab = Lab::new();
    lab.enter(|| {
        // Of this thread, and of the one that it starts.
        for set in [caps::CapSet::Effective, caps::CapSet::Permitted] {
            caps::drop(None, set, caps::Capability::CAP_NET_ADMIN).expect("drop");
        }
        let mut rig = Rig::new();
        let v4 = target("10.77.0.2");
        rig.track([v4.clone()]);
        rig.until_reason("no capability", &v4, "CAP_NET_ADMIN");
    });
}
