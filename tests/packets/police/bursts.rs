//! How many packets of a source come through at once, and how many later.

use std::time::{Duration, Instant};

use super::{exhaust, hits, policy, slow_down, source, with, BLOCKED, LIMITED, UNKNOWN_PORT};
use crate::harness::cells::{self, every, PROTOCOLS};
use crate::harness::frame::{Protocol, ACK, FIN, PSH, RST, SYN};
use crate::harness::knock::{Kind, Knock};
use crate::harness::{pause, Lab, Verdict, CLIENTS};

#[test]
fn a_burst_and_no_more() {
    let mut lab = Lab::new(&every());
    let mut number = 0;
    for (keys, burst, then) in [
        ("limit = 5\naction = \"limit\"", 5, LIMITED),
        ("limit = 1\nburst = 7\naction = \"limit\"", 7, LIMITED),
        ("limit = 10\nburst = 1\naction = \"limit\"", 1, LIMITED),
        ("limit = 5\naction = \"block\"", 5, BLOCKED),
        (
            "limit = 1\nburst = 7\naction = \"block\"\nblock_for = \"1h\"",
            7,
            BLOCKED,
        ),
    ] {
        let policies = ["tcp", "udp", "icmp"].map(|protocol| policy(protocol, protocol, keys));
        lab.reload(&with(&policies.concat()));
        slow_down(&lab);
        for cell in cells::all() {
            number += 1;
            for kind in [Kind::Tcp, Kind::Udp, Kind::Ping] {
                let before = hits(&lab, kind);
                let knock = Knock::at(cell, kind, source(cell, number));
                exhaust(&lab, &knock, burst, knock.let_in(), then);
                let blocked = u64::from(then == BLOCKED);
                let expected = (before.0 + 4, before.1 + blocked);
                assert_eq!(hits(&lab, kind), expected, "{keys}, {knock:?}");
            }
            // What has no policy has no limit.
            for _ in 0..20 {
                let knock = Knock::at(cell, Kind::Other(47), source(cell, number));
                assert_eq!(knock.send(&lab), knock.let_in(), "{keys}, {knock:?}");
            }
        }
    }
}

/// Everything that a source sends to VIPs is one: connections that are there, new ones, other services,
/// ports without a service.
#[test]
fn one_bucket_for_all_it_sends() {
    let mut lab = Lab::new(&every());
    for cell in cells::all() {
        for protocol in PROTOCOLS {
            lab.reload(&every());
            let path = cell.establish(&lab, protocol, 1000);
            for _ in 0..3 {
                path.to_backend(&lab, "before", |ends| path.between(ends, ACK).packet());
            }
            let name = if protocol == Protocol::Tcp {
                "tcp"
            } else {
                "udp"
            };
            lab.reload(&with(&policy(name, name, "limit = 8\naction = \"limit\"")));
            slow_down(&lab);
            let mut closed = path.clone();
            closed.port = 81;
            let other = cells::all()
                .find(|other| other.ipv6 == cell.ipv6 && other.mode != cell.mode)
                .expect("another service");
            for round in 0..2 {
                path.to_backend(&lab, "established", |ends| path.between(ends, ACK).packet());
                let new = cell.path(protocol, cell.client_at(2000 + round));
                let sent = lab.send(CLIENTS, &new.request(SYN).bytes());
                assert_eq!(sent.verdict, Verdict::Redirect, "{path:?}");
                let elsewhere = other.path(protocol, other.client_at(3000 + round));
                let sent = lab.send(CLIENTS, &elsewhere.request(SYN).bytes());
                assert_eq!(sent.verdict, Verdict::Redirect, "{path:?}");
                let sent = lab.send(CLIENTS, &closed.request(SYN).bytes());
                assert_eq!(sent.verdict, UNKNOWN_PORT, "{path:?}");
            }
            let entries = lab.entries().len();
            for flags in [ACK, PSH | ACK, SYN, FIN | ACK, RST] {
                let sent = lab.send(CLIENTS, &path.request(flags).bytes());
                assert_eq!(sent.verdict, LIMITED, "flags {flags:#x}, {path:?}");
            }
            let new = cell.path(protocol, cell.client_at(4000));
            for frame in [new.request(SYN), closed.request(SYN)] {
                let sent = lab.send(CLIENTS, &frame.bytes());
                assert_eq!(sent.verdict, LIMITED, "{frame:?}");
            }
            // Neither made nor changed anything, and the backend may answer.
            assert_eq!(lab.entries().len(), entries);
            if !cell.mode.is_direct() {
                for _ in 0..20 {
                    path.to_client(&lab, "a reply", |ends| {
                        path.back_between(ends, ACK).packet()
                    });
                }
            }
            lab.reload(&every());
            path.to_backend(&lab, "after", |ends| path.between(ends, ACK).packet());
        }
    }
}

/// At the limit, for as long as it lasts: a token bucket.
#[test]
fn what_comes_back_with_time() {
    const LIMIT: f64 = 200.0;
    const BURST: f64 = 200.0;
    let lab = Lab::new(&with(&policy(
        "udp",
        "udp",
        "limit = 200\naction = \"limit\"",
    )));
    // A machine that has better to do may leave the bucket full for a while, and what is in it is lost.
    let jiffy = 1.0 / f64::from(lab.datapath.clock().hz);
    let attempt = |number: u16| {
        let knocks: Vec<Knock> = cells::main_ways()
            .zip(10 * number..)
            .map(|(cell, number)| Knock::at(cell, Kind::Udp, source(cell, number)))
            .collect();
        let start = Instant::now();
        let mut passed = vec![0.0; knocks.len()];
        let (mut first, mut last) = (start.elapsed(), start.elapsed());
        let mut longest = Duration::ZERO;
        let mut beginning = true;
        while last < Duration::from_millis(900) {
            for (passed, knock) in passed.iter_mut().zip(&knocks) {
                // 300 of each at once, to be rid of the burst.
                for _ in 0..if beginning { 300 } else { 1 } {
                    match knock.send(&lab) {
                        Verdict::Redirect => *passed += 1.0,
                        verdict => assert_eq!(verdict, LIMITED),
                    }
                }
            }
            if beginning {
                first = start.elapsed();
                beginning = false;
            } else {
                longest = longest.max(start.elapsed() - last);
            }
            last = start.elapsed();
        }
        let seconds = last.as_secs_f64() + jiffy;
        for passed in &passed {
            assert!(
                *passed <= BURST + LIMIT * seconds + 1.0,
                "{passed} in {seconds} s"
            );
        }
        // All that came back was there to be used.
        (longest < Duration::from_millis(500)).then(|| {
            for passed in &passed {
                let seconds = (last - first).as_secs_f64() - 2.0 * jiffy;
                assert!(
                    *passed >= BURST + LIMIT * seconds - 2.0,
                    "{passed} in {seconds} s"
                );
            }
        })
    };
    (0..20).find_map(attempt).expect("a machine with some time");
}

/// A rest fills the bucket up to the burst, and not beyond.
#[test]
fn a_rest_is_worth_a_burst_at_most() {
    let lab = Lab::new(&with(&policy(
        "udp",
        "udp",
        "limit = 20\nburst = 4\naction = \"limit\"",
    )));
    let cell = cells::main_ways().next().expect("a cell");
    let attempt = |number: u16| {
        let knock = Knock::at(cell, Kind::Udp, source(cell, number));
        let count = || {
            (0..12)
                .filter(|_| knock.send(&lab) == Verdict::Redirect)
                .count()
        };
        let start = Instant::now();
        let first = count();
        pause(Duration::from_millis(400));
        let again = Instant::now();
        let second = count();
        // 50 ms bring the next.
        let quick = again.elapsed() < Duration::from_millis(40);
        let quick = quick && again - start < Duration::from_millis(500);
        quick.then_some((first, second))
    };
    let counts = (0..40).find_map(attempt).expect("a machine with some time");
    assert_eq!(counts, (4, 4));
}
