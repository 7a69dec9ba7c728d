//! Neighbour resolution against real kernels' tables: network namespaces joined by veth pairs.
//!
//! Owns its namespaces, `xdplb-t-PID-N-*`, and removes them on every way out. Times are printed, not
//! asserted: a loaded machine may be slow, and a wrong answer is what these tests are about.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::panic::resume_unwind;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::poll::{poll, PollFd, PollFlags, PollTimeout};
use nix::sched::{setns, CloneFlags};
use xdplb::config::MacAddress;
use xdplb::neighbours::{Neighbours, Resolution, Target};

/// How long anything may take before it counts as never.
const DEADLINE: Duration = Duration::from_secs(10);

/// How often a test looks whether it has what it waits for.
const LONGEST_WAIT: Duration = Duration::from_millis(100);

/// The balancer `lb` between two neighbours:
/// `b` - lb0 10.77.0.1/24 fd77::1/64 (b: .2, ::2) and `c` - lb1 10.78.0.1/24 fd78::1/64 (c: .2, ::2).
struct Lab {
    prefix: String,
}

impl Lab {
    fn new() -> Lab {
        assert!(
            caps::has_cap(None, caps::CapSet::Effective, caps::Capability::CAP_SYS_ADMIN).unwrap_or(false),
            "this test makes network namespaces: run it as root (CAP_SYS_ADMIN and CAP_NET_ADMIN), \
             with iproute2 installed"
        );
        static SERIAL: AtomicU32 = AtomicU32::new(0);
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
        let lab = Lab {
            prefix: format!("xdplb-t-{}-{serial}", std::process::id()),
        };
        for name in ["lb", "b", "c"] {
            run(&["netns", "add", &lab.ns(name)]);
            lab.ip(name, "link set lo up");
        }
        for (peer, link, net) in [("b", "lb0", 77), ("c", "lb1", 78)] {
            let there = lab.ns(peer);
            lab.ip(
                "lb",
                &format!("link add {link} type veth peer name eth0 netns {there}"),
            );
            for (ns, device, host) in [("lb", link, 1), (peer, "eth0", 2)] {
                lab.ip(ns, &format!("addr add 10.{net}.0.{host}/24 dev {device}"));
                lab.ip(
                    ns,
                    &format!("addr add fd{net}::{host}/64 dev {device} nodad"),
                );
                lab.ip(ns, &format!("link set {device} up"));
            }
        }
        lab
    }

    fn ns(&self, name: &str) -> String {
        format!("{}-{name}", self.prefix)
    }

    /// `ip -n NAMESPACE COMMAND`
    fn ip(&self, name: &str, command: &str) {
        let ns = self.ns(name);
        let mut words = vec!["-n", ns.as_str()];
        words.extend(command.split(' '));
        run(&words);
    }

    /// Runs `body` with a rig in the balancer's namespace.
    fn run<T: Send>(&self, body: impl FnOnce(Rig) -> T + Send) -> T {
        self.enter(|| body(Rig::new()))
    }

    /// Runs `body` in a thread that lives in the balancer's namespace.
    fn enter<T: Send>(&self, body: impl FnOnce() -> T + Send) -> T {
        let path = format!("/run/netns/{}", self.ns("lb"));
        std::thread::scope(|scope| {
            let thread = scope.spawn(move || {
                let ns = std::fs::File::open(&path).expect("namespace");
                setns(ns, CloneFlags::CLONE_NEWNET).expect("setns");
                body()
            });
            thread.join().unwrap_or_else(|panic| resume_unwind(panic))
        })
    }

    fn mac(&self, name: &str, device: &str) -> MacAddress {
        let ns = self.ns(name);
        let output = Command::new("ip")
            .args(["-n", &ns, "-j", "link", "show", "dev", device])
            .output()
            .expect("ip");
        let text = String::from_utf8(output.stdout).expect("UTF-8");
        let at = text.find("\"address\":\"").expect("address") + 11;
        let bytes: Vec<u8> = text[at..at + 17]
            .split(':')
            .map(|byte| u8::from_str_radix(byte, 16).expect("MAC"))
            .collect();
        MacAddress(bytes.try_into().expect("six bytes"))
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for name in ["lb", "b", "c"] {
            let _ = Command::new("ip")
                .args(["netns", "del", &self.ns(name)])
                .output();
        }
    }
}

fn run(words: &[&str]) {
    let output = Command::new("ip")
        .args(words)
        .output()
        .expect("the ip command (iproute2)");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {}: {error}", words.join(" "));
}

/// A file of commands for `ip -batch`.
struct Batch<'a> {
    lab: &'a Lab,
    path: std::path::PathBuf,
}

impl<'a> Batch<'a> {
    fn new(lab: &'a Lab, name: &str, commands: &str) -> Batch<'a> {
        let path = std::env::temp_dir().join(format!("{}-{name}.batch", lab.prefix));
        std::fs::write(&path, commands).expect("batch file");
        Batch { lab, path }
    }

    fn run(&self, ns: &str) {
        let path = self.path.to_str().expect("path");
        run(&["-n", &self.lab.ns(ns), "-batch", path]);
    }
}

impl Drop for Batch<'_> {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// `Neighbours` with the loop that the daemon runs around it.
struct Rig {
    neighbours: Neighbours,
    tracked: BTreeSet<Target>,
    /// What each target resolved to when the loop was last told that it had changed.
    told: BTreeMap<Target, Resolution>,
    longest: Duration,
}

impl Rig {
    fn new() -> Rig {
        Rig {
            neighbours: Neighbours::open().expect("open"),
            tracked: BTreeSet::new(),
            told: BTreeMap::new(),
            longest: Duration::ZERO,
        }
    }

    fn track(&mut self, targets: impl IntoIterator<Item = Target>) {
        self.tracked = targets.into_iter().collect();
        self.neighbours.track(self.tracked.clone());
        self.told.retain(|target, _| self.tracked.contains(target));
    }

    /// Runs the loop until `done`, and says how long that took.
    fn until(&mut self, what: &str, done: impl Fn(&Neighbours) -> bool) -> Duration {
        let start = Instant::now();
        while !done(&self.neighbours) {
            assert!(
                start.elapsed() < DEADLINE,
                "{what}: not within {DEADLINE:?}"
            );
            self.turn();
        }
        let took = start.elapsed();
        println!("{what}: {took:?}");
        took
    }

    /// Runs the loop for a while.
    fn rest(&mut self, time: Duration) {
        let start = Instant::now();
        while start.elapsed() < time {
            self.turn();
        }
    }

    fn turn(&mut self) {
        let now = Instant::now();
        let wait = self.neighbours.next_deadline(now) - now;
        let timeout = PollTimeout::try_from(wait.min(LONGEST_WAIT)).expect("timeout");
        let mut fds = [PollFd::new(self.neighbours.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, timeout).expect("poll");
        self.turn_at_once();
    }

    /// Runs the loop until it has taken in everything that the kernel said before this call, and has
    /// asked what followed from it.
    fn after_an_event(&mut self, lab: &Lab) {
        static SERIAL: AtomicU32 = AtomicU32::new(0);
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
        let (net, host) = (serial / 250 % 250, serial % 250 + 1);
        let address = ip(&format!("10.201.{net}.{host}"));
        lab.ip("lb", &format!("addr add {address}/32 dev lb0"));
        self.until("the events", |n| {
            n.network().addresses().any(|(_, a)| a == address)
        });
        self.rest(Duration::from_millis(500));
    }

    /// What one turn does at most, whatever there was to do.
    fn expect_short_turns(&self) {
        let work = self.neighbours.work();
        println!("{work:?}; the longest turn took {:?}", self.longest);
        assert!(work.most_events <= 256, "{work:?}");
        assert!(work.most_requests <= 900, "{work:?}");
        assert!(work.most_resolved <= 512, "{work:?}");
    }

    fn turn_at_once(&mut self) {
        let start = Instant::now();
        let turn = self.neighbours.turn(start).expect("turn");
        self.longest = self.longest.max(start.elapsed());
        let network = self.neighbours.network();
        for target in turn.targets {
            let resolution = network.resolve(&target);
            let former = self.told.insert(target.clone(), resolution.clone());
            assert_ne!(former, Some(resolution), "{target:?} has not changed");
        }
        // Whoever goes by what the loop is told knows everything.
        if self.tracked.len() <= 20 {
            for target in &self.tracked {
                let now = network.resolve(target);
                match self.told.get(target) {
                    Some(told) => assert_eq!(*told, now, "{target:?}"),
                    None => assert_eq!(mac(&now), None, "{target:?}"),
                }
            }
        }
    }

    fn until_mac(&mut self, what: &str, target: &Target, expected: MacAddress) -> Duration {
        self.until(what, |n| {
            mac(&n.network().resolve(target)) == Some(expected)
        })
    }

    /// Waits for the target to be out, with these words in the reason.
    fn until_reason(&mut self, what: &str, target: &Target, words: &str) -> Duration {
        self.until(what, |n| match n.network().resolve(target) {
            Resolution::Unresolved { reason } => reason.contains(words),
            Resolution::Resolved { .. } => false,
        })
    }

    fn next_hop(&self, target: &Target) -> (String, IpAddr) {
        match self.neighbours.network().resolve(target) {
            Resolution::Resolved {
                ifindex, next_hop, ..
            } => (
                self.neighbours.network().links()[&ifindex].name.clone(),
                next_hop,
            ),
            Resolution::Unresolved { reason } => panic!("{reason}"),
        }
    }
}

fn mac(resolution: &Resolution) -> Option<MacAddress> {
    match resolution {
        Resolution::Resolved { mac, .. } => Some(*mac),
        Resolution::Unresolved { .. } => None,
    }
}

fn target(address: &str) -> Target {
    Target {
        address: address.parse().expect("address"),
        interface: None,
        mac: None,
    }
}

fn ip(address: &str) -> IpAddr {
    address.parse().expect("address")
}

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
