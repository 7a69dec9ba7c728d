//! Connections that have to make room: their end is counted, at once or by the sweep.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::harness::cases::{self, STANDARD};
use crate::harness::cells::{self, every, Dress, PROTOCOLS};
use crate::harness::dialog::Dialog;
use crate::harness::frame::{ACK, RST, SYN};
use crate::harness::{Lab, Verdict, CLIENTS};
use crate::property::one_in;

/// Of one backend: connections that were opened, that have ended, and that there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Balance {
    opened: u64,
    ended: u64,
    live: u64,
}

impl Balance {
    fn of(lab: &Lab, id: u32) -> Balance {
        let (opened, ended) = lab.connections(id);
        let entries = lab.entries();
        let generation = lab.desired.backends[&id].generation;
        let live = entries.iter().filter(|entry| {
            let over = ["closing", "closed"].contains(&entry.state);
            !entry.is_reply && !over && (entry.backend, entry.generation) == (id, generation)
        });
        Balance {
            opened,
            ended,
            live: live.count() as u64,
        }
    }

    /// How many connections are counted that are not there.
    fn excess(self) -> i64 {
        let counted = self.opened.wrapping_sub(self.ended);
        counted.wrapping_sub(self.live).cast_signed()
    }
}

/// Over all backends.
fn excess(lab: &Lab) -> i64 {
    let ids = lab.desired.backends.keys();
    ids.map(|&id| Balance::of(lab, id).excess()).sum()
}

#[track_caller]
fn assert_exact(lab: &Lab) {
    for &id in lab.desired.backends.keys() {
        let balance = Balance::of(lab, id);
        assert_eq!(balance.excess(), 0, "backend {id}: {balance:?}");
    }
}

/// Sweeps until nothing more is found, which is at once.
#[track_caller]
fn sweep(lab: &Lab) -> (u64, u64) {
    let swept = lab.sweep();
    assert_exact(lab);
    let again = lab.sweep();
    assert_eq!((again.evicted, again.returned), (0, 0));
    assert_exact(lab);
    (swept.evicted, swept.returned)
}

/// Every mode, family and protocol, in both kinds of table.
#[test]
fn what_gives_way_in_a_full_table_is_counted_as_ended() {
    // Linux 6.1 takes 128 elements at a time from an LRU: with few more than that, one goes that was just made.
    let mut lab = Lab::with_limits(&every(), 1024);
    let ports = if one_in() == 1 { 400 } else { 200 };
    // Nothing is to end by its age, however long the test takes.
    lab.set_timeouts(|timeouts| {
        let hour = Duration::from_secs(3600);
        (timeouts.tcp_opening, timeouts.udp, timeouts.other) = (hour, hour, hour);
    });
    for establishes in [false, true] {
        for cell in cells::all() {
            for protocol in PROTOCOLS {
                for port in 1000..1000 + ports {
                    let mut path = cell.path(protocol, cell.client_at(port));
                    // Where full-nat has no more ports, it is not let in.
                    if path.knock(&lab, &Dress::default()) != Verdict::Redirect || !establishes {
                        continue;
                    }
                    if !cell.mode.is_direct() {
                        path.to_client(&lab, "SYN|ACK", |ends| {
                            path.back_between(ends, SYN | ACK).packet()
                        });
                    }
                    path.to_backend(&lab, "ACK", |ends| path.between(ends, ACK).packet());
                }
            }
        }
        // Half-open ones, and those that are over, are counted by the packet that takes their way; what the
        // kernel's LRU gives away by nobody.
        let lost = excess(&lab);
        if establishes {
            assert!(lost > 1000, "{lost} evicted");
        } else {
            assert_eq!(lost, 0);
        }
        assert_eq!(sweep(&lab), (lost as u64, 0), "established: {establishes}");
    }
}

fn dialogs(lab: &Lab, port: u16) -> Vec<(u32, Dialog)> {
    cases::all()
        .map(|case| {
            let d = case.establish_from(lab, case.client_at(port));
            (lab.backend_id(case.backend_name()), d)
        })
        .collect()
}

/// A client that goes on is balanced anew: that is another connection, and the first one has ended.
#[test]
fn one_that_goes_on_from_its_client_is_another() {
    let lab = Lab::new(STANDARD);
    for (id, d) in dialogs(&lab, 9000) {
        let before = Balance::of(&lab, id);
        lab.evict(&d.flow());
        d.to_backend(&lab, ACK);
        assert_eq!(sweep(&lab), (1, 0), "{d:?}");
        let again = Balance {
            opened: before.opened + 1,
            ended: before.ended + 1,
            ..before
        };
        assert_eq!(Balance::of(&lab, id), again);
    }
}

/// The connections of a backend that is gone have been counted with it.
#[test]
fn the_next_owner_of_an_id_has_lost_none() {
    let mut lab = Lab::new(STANDARD);
    let held = dialogs(&lab, 9000);
    for (_, d) in &held {
        lab.evict(&d.flow());
    }
    lab.reload("");
    let replaced = STANDARD
        .replace("10.0.0.", "10.0.0.2")
        .replace("fd00::", "fd00::2");
    lab.reload(&replaced);
    assert_eq!(sweep(&lab), (0, 0));
    for (id, _) in held {
        assert!(lab.desired.backends.contains_key(&id));
        assert_eq!(Balance::of(&lab, id), Balance::default());
    }
}

/// Sweeps that meet connections as they come, move and go may be off for a while, but not for good.
#[test]
fn under_traffic_no_error_stays() {
    let lab = Lab::with_limits(&every(), 1024);
    let sweeper = lab.datapath.sweeper().expect("a sweeper");
    let done = &AtomicBool::new(false);
    let evicted = std::thread::scope(|scope| {
        let sweeping = scope.spawn(move || {
            let mut evicted = 0;
            while !done.load(Ordering::Relaxed) {
                let swept = sweeper.sweep(&|_, _| true).expect("a sweep");
                evicted += swept.evicted;
            }
            evicted
        });
        for round in 0..40 {
            for cell in cells::all() {
                for protocol in PROTOCOLS {
                    for port in 1000..1040 {
                        let mut path = cell.path(protocol, cell.client_at(port + 40 * round));
                        let first = path.request(SYN).bytes();
                        if lab.run(CLIENTS, &first).0 != 4 {
                            continue;
                        }
                        if port % 4 == 0 {
                            path.knock(&lab, &Dress::default());
                            lab.run(CLIENTS, &path.request(ACK).bytes());
                            if port % 8 == 0 {
                                lab.run(CLIENTS, &path.request(RST).bytes());
                            }
                        }
                    }
                }
            }
        }
        done.store(true, Ordering::Relaxed);
        sweeping.join().expect("the sweeps")
    });
    assert!(evicted > 0);
    sweep(&lab);
}
