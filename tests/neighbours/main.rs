//! Neighbour resolution against real kernels' tables: network namespaces joined by veth pairs.
//!
//! Owns its namespaces, `xdplb-t-PID-N-*`, and removes them on every way out. Times are printed, not
//! asserted: a loaded machine may be slow, and a wrong answer is what these tests are about. One file a subject.

mod changes;
mod many;
mod ways;

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
