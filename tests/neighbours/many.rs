//! Many targets, and many events: what they may cost.

use std::time::{Duration, Instant};

use xdplb::config::MacAddress;
use xdplb::neighbours::{Neighbours, Target};

use crate::{ip, mac, target, Batch, Lab, Rig};

#[test]
fn a_flood_of_other_neighbours_events() {
    let lab = Lab::new();
    let before = lab.mac("b", "eth0");
    let after = MacAddress([2, 0x77, 0, 0, 0, 9]);
    let mut commands = String::new();
    for n in 0..20_000u32 {
        let (x, y) = (n / 250, n % 250 + 3);
        commands += &format!(
            "neigh replace 10.200.{x}.{y} lladdr 02:00:00:00:00:01 dev lb1 nud permanent\n"
        );
    }
    let batch = Batch::new(&lab, "flood", &commands);
    lab.run(|mut rig| {
        let v4 = target("10.77.0.2");
        rig.track([v4.clone()]);
        rig.until_mac("resolved", &v4, before);
        // Nobody reads meanwhile: more than the socket holds. What must be noticed is among it.
        batch.run("lb");
        lab.ip("lb", "addr add 10.77.0.44/24 dev lb0");
        lab.ip(
            "lb",
            &format!("neigh replace 10.77.0.2 lladdr {after} dev lb0 nud permanent"),
        );
        rig.until_mac("noticed after the flood", &v4, after);
        assert!(rig
            .neighbours
            .network()
            .addresses()
            .any(|(_, a)| a == ip("10.77.0.44")));
        lab.ip("lb", "neigh flush all nud permanent");
        rig.until_mac("asked again after another", &v4, before);
        assert!(rig.neighbours.work().rereads > 0, "events were lost");
        rig.expect_short_turns();
    });
}

/// Four targets in each of so many /24 of 10.99.0.0/16, all by way of b.
fn behind_a_gateway(lab: &Lab, networks: u32) -> Vec<Target> {
    lab.ip("lb", "route add 10.99.0.0/16 via 10.77.0.2");
    (0..networks)
        .flat_map(|net| (1..=4).map(move |host| target(&format!("10.99.{net}.{host}"))))
        .collect()
}

#[test]
fn a_changed_route_costs_the_targets_that_it_may_concern() {
    const NETWORKS: u32 = 250;
    const ALL: u64 = 4 * NETWORKS as u64;
    let lab = Lab::new();
    let targets = behind_a_gateway(&lab, NETWORKS);
    let (b, c) = (lab.mac("b", "eth0"), lab.mac("c", "eth0"));
    // As a routing daemon loads them: none leads to a target. In portions that the socket holds, since
    // nobody reads meanwhile.
    let portions: Vec<Batch> = (0..10)
        .map(|portion| {
            let routes = portion * 2000..(portion + 1) * 2000;
            let commands: String = routes
                .map(|n| {
                    format!(
                        "route add 172.{}.{}.0/24 via 10.78.0.2\n",
                        16 + n / 250,
                        n % 250
                    )
                })
                .collect();
            Batch::new(&lab, &format!("routes-{portion}"), &commands)
        })
        .collect();
    lab.run(|mut rig| {
        rig.track(targets.clone());
        rig.until("all resolved", |n| {
            let network = n.network();
            targets.iter().all(|target| network.is_resolved(target))
        });
        rig.rest(Duration::from_millis(300));
        let asked_for = |rig: &mut Rig, command: &str| {
            let before = rig.neighbours.work();
            lab.ip("lb", command);
            // Events have come when another that was sent after them has.
            rig.after_an_event(&lab);
            rig.neighbours.work().ways - before.ways
        };
        // All by the kernel's word once, and the route that decides.
        assert_eq!(rig.neighbours.work().ways, ALL);

        let before = rig.neighbours.work();
        for portion in portions {
            portion.run("lb");
            rig.after_an_event(&lab);
        }
        let work = rig.neighbours.work().since(&before);
        println!("twenty thousand routes: {work:?}");
        assert!(work.events >= 20_000, "{work:?}");
        assert_eq!((work.ways, work.rereads, work.resolved), (0, 0, 0));

        assert_eq!(
            asked_for(&mut rig, "route add default via 10.78.0.2"),
            0,
            "shorter than what decides"
        );
        assert_eq!(
            asked_for(&mut rig, "route add 10.99.7.0/24 via 10.78.0.2"),
            4
        );
        rig.until("the four of them", |n| {
            let network = n.network();
            (1..=4)
                .all(|host| mac(&network.resolve(&target(&format!("10.99.7.{host}")))) == Some(c))
        });
        assert_eq!(
            asked_for(&mut rig, "route replace 10.99.0.0/16 via 10.78.0.2"),
            ALL - 4
        );
        let moved = |expected| {
            let targets = targets.clone();
            move |n: &Neighbours| {
                let network = n.network();
                targets
                    .iter()
                    .all(|target| mac(&network.resolve(target)) == Some(expected))
            }
        };
        rig.until("all by c", moved(c));
        // Another table may come first, so they have to be asked for; here it does not.
        assert_eq!(
            asked_for(&mut rig, "route add 10.98.0.0/15 via 10.77.0.2 table 77"),
            ALL
        );
        assert!(moved(c)(&rig.neighbours));
        // A rule may concern any.
        assert_eq!(
            asked_for(&mut rig, "rule add to 10.99.0.0/16 table 77"),
            ALL
        );
        rig.until("all by b, by the rule", moved(b));
        rig.expect_short_turns();
    });
}

#[test]
fn ten_thousand_targets_take_their_turns() {
    const NETWORKS: u32 = 250;
    let lab = Lab::new();
    let mut targets = behind_a_gateway(&lab, NETWORKS);
    targets.extend((0..9000u32).map(|n| target(&format!("10.99.{}.{}", n / 200, n % 200 + 10))));
    assert_eq!(targets.len(), 10_000);
    let (b, c) = (lab.mac("b", "eth0"), lab.mac("c", "eth0"));
    lab.run(|mut rig| {
        let all = |expected| {
            let targets = targets.clone();
            move |n: &Neighbours| {
                let network = n.network();
                targets
                    .iter()
                    .all(|target| mac(&network.resolve(target)) == Some(expected))
            }
        };
        rig.track(targets.clone());
        rig.until("ten thousand resolved", all(b));
        let before = rig.neighbours.work();
        rig.rest(Duration::from_secs(2));
        let work = rig.neighbours.work();
        println!("at rest for 2 s: {:?}", work.since(&before));
        // One gateway, and some ways in turn.
        assert_eq!(work.resolved, before.resolved);
        assert_eq!(work.ways, before.ways);
        lab.ip("lb", "route replace 10.99.0.0/16 via 10.78.0.2");
        rig.until("ten thousand moved", all(c));
        lab.ip("lb", "link set lb1 down");
        rig.until("ten thousand unresolved", |n| {
            let network = n.network();
            targets.iter().all(|target| !network.is_resolved(target))
        });
        lab.ip("lb", "link set lb1 up");
        lab.ip("lb", "route replace 10.99.0.0/16 via 10.78.0.2");
        rig.until("ten thousand back", all(c));
        rig.track([]);
        rig.until("ten thousand gone", |n| {
            let network = n.network();
            targets.iter().all(|target| !network.is_resolved(target))
        });
        rig.expect_short_turns();
    });
}

#[test]
fn hundreds_of_next_hops_that_all_change() {
    const HOSTS: u32 = 500;
    let lab = Lab::new();
    let address = |n: u32| format!("10.79.{}.{}", n / 250, n % 250 + 2);
    let commands: String = (0..HOSTS)
        .map(|n| format!("addr add {}/16 dev eth0\n", address(n)))
        .collect();
    Batch::new(&lab, "hosts", &commands).run("b");
    lab.ip("lb", "addr add 10.79.255.1/16 dev lb0");
    let before = lab.mac("b", "eth0");
    let after = MacAddress([2, 0x77, 0, 0, 0, 1]);
    lab.run(|mut rig| {
        let targets: Vec<Target> = (0..HOSTS).map(|n| target(&address(n))).collect();
        let start = Instant::now();
        rig.track(targets.clone());
        println!("track: {:?}", start.elapsed());
        let all = |n: &Neighbours, expected| {
            targets
                .iter()
                .all(|target| mac(&n.network().resolve(target)) == Some(expected))
        };
        rig.until("all resolved", |n| all(n, before));
        rig.rest(Duration::from_secs(2));
        lab.ip("b", &format!("link set eth0 address {after}"));
        rig.until("all followed a silent change", |n| all(n, after));
        rig.expect_short_turns();
    });
}
