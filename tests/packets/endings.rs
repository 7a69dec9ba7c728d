//! Segments that end a connection, or seem to: what both ends ignore must not, whatever comes of it on
//! several CPUs at once.

use std::sync::Barrier;
use std::time::Duration;

use libbpf_rs::MapCore;
use nix::sched::{sched_setaffinity, CpuSet};
use nix::unistd::Pid;
use xdplb::datapath::abi;

use crate::harness::cases::{self, Case, STANDARD};
use crate::harness::dialog::Dialog;
use crate::harness::frame::{tcp, Frame, ACK, FIN, PSH, RST, SEQUENCE, SYN};
use crate::harness::{backend_mac, own_mac, Lab, Verdict, BACKENDS, CLIENTS};
use crate::property::one_in;

const ESTABLISHED: Option<(&str, &str)> = Some(("proven", "established"));
const HALF_CLOSED: Option<(&str, &str)> = Some(("proven", "half-closed"));
const CLOSING: Option<(&str, &str)> = Some(("proven", "closing"));
const CLOSED: Option<(&str, &str)> = Some(("proven", "closed"));

/// A segment of the client from there on, with so many bytes. It acknowledges all but a FIN.
fn from_client(d: &Dialog, flags: u8, sequence: u32, bytes: usize) -> Frame {
    hearing(&d.request(flags), SEQUENCE).with(|frame| {
        frame.sequence = sequence;
        frame.payload = vec![b'c'; bytes];
    })
}

fn from_backend(d: &Dialog, flags: u8, sequence: u32, bytes: usize) -> Frame {
    hearing(&d.reply(flags), SEQUENCE).with(|frame| {
        frame.sequence = sequence;
        frame.payload = vec![b'b'; bytes];
    })
}

/// A segment that acknowledges what comes before that number.
fn hearing(frame: &Frame, acknowledged: u32) -> Frame {
    frame.with(|frame| frame.acknowledged = acknowledged)
}

/// Connections that were opened and closed, by the backend's counters.
fn counted(lab: &Lab, case: Case) -> (u64, u64) {
    let id = lab.backend_id(case.backend_name());
    let traffic = lab.per_cpu::<abi::traffic>("traffic", id);
    let opened = traffic.iter().map(|cpu| cpu.opened).sum();
    let closed = traffic
        .iter()
        .fold(0_u64, |sum, cpu| sum.wrapping_add(cpu.closed));
    (opened, closed)
}

/// Far from what the ends have sent: neither of them believes it, and so nothing changes.
#[test]
fn forged_from_elsewhere_in_sequence_space() {
    let lab = Lab::new(STANDARD);
    for case in cases::tcp() {
        let d = case.establish(&lab);
        let before = counted(&lab, case);
        for far in [1 << 28, 1 << 30, 0x8000_0000, u32::MAX - (1 << 22)] {
            let sequence = SEQUENCE.wrapping_add(far);
            for flags in [RST, RST | ACK] {
                d.deliver(&lab, &from_client(&d, flags, sequence, 0));
                assert_eq!(d.state(&lab), ESTABLISHED, "{far:#x} {d:?}");
                d.answer(&lab, &from_backend(&d, flags, sequence, 0));
                assert_eq!(d.state(&lab), ESTABLISHED, "{far:#x} {d:?}");
            }
        }
        // A FIN may be anywhere: the other end does not acknowledge it.
        for far in [100, 1 << 20, 1 << 30, 0x8000_0000, u32::MAX - 1000] {
            let sequence = SEQUENCE.wrapping_add(far);
            d.deliver(&lab, &from_client(&d, FIN | ACK, sequence, 0));
            d.answer(&lab, &from_backend(&d, FIN | ACK, sequence, 0));
            for _ in 0..2 {
                lab.forget_copies();
                d.deliver(&lab, &from_client(&d, PSH | ACK, SEQUENCE, 10));
                d.answer(&lab, &from_backend(&d, PSH | ACK, SEQUENCE, 10));
            }
            assert_eq!(d.state(&lab), ESTABLISHED, "{far:#x} {d:?}");
        }
        assert_eq!(counted(&lab, case), before);
        // The real one is.
        d.deliver(&lab, &from_client(&d, RST | ACK, SEQUENCE + 1000, 0));
        assert_eq!(d.state(&lab), CLOSED);
        assert_eq!(counted(&lab, case), (before.0, before.1 + 1));
    }
}

/// A reset near enough to be believed, which the ends ignore: they go on, and so does the connection.
#[test]
fn a_reset_that_the_ends_ignore() {
    let lab = Lab::new(STANDARD);
    for case in cases::tcp() {
        let d = case.establish(&lab);
        let before = counted(&lab, case);
        for by_client in [true, false] {
            if by_client {
                d.deliver(&lab, &from_client(&d, RST, SEQUENCE + 70_000, 0));
            } else {
                d.answer(&lab, &from_backend(&d, RST, SEQUENCE + 70_000, 0));
            }
            assert_eq!(d.state(&lab), CLOSED);
            // What one side had sent before it heard of the reset proves nothing.
            for _ in 0..3 {
                d.answer(&lab, &from_backend(&d, PSH | ACK, SEQUENCE, 100));
                assert_eq!(d.state(&lab), CLOSED);
            }
            d.deliver(&lab, &from_client(&d, ACK, SEQUENCE, 0));
            assert_eq!(d.state(&lab), ESTABLISHED);
            assert_eq!(counted(&lab, case), before);
        }
        // As for the rest of its life.
        d.to_backend(&lab, FIN | ACK);
        d.to_client(&lab, FIN | ACK);
        d.to_backend(&lab, ACK);
        assert_eq!(d.state(&lab), CLOSING);
        assert_eq!(counted(&lab, case), (before.0, before.1 + 1));
    }
}

/// Data behind a FIN: it was no FIN of theirs. Data before it are sent again.
#[test]
fn a_fin_that_was_none() {
    let lab = Lab::new(STANDARD);
    for case in cases::tcp() {
        let d = case.establish(&lab);
        let before = counted(&lab, case);
        d.deliver(&lab, &from_client(&d, FIN | ACK, SEQUENCE + 1000, 0));
        assert_eq!(d.state(&lab), ESTABLISHED);
        lab.forget_copies();
        d.answer(&lab, &hearing(&d.reply(ACK), SEQUENCE + 1001));
        assert_eq!(d.state(&lab), HALF_CLOSED);
        d.deliver(&lab, &from_client(&d, PSH | ACK, SEQUENCE, 1000));
        d.deliver(&lab, &from_client(&d, ACK, SEQUENCE + 1001, 0));
        assert_eq!(d.state(&lab), HALF_CLOSED);
        d.deliver(&lab, &from_client(&d, PSH | ACK, SEQUENCE + 1000, 10));
        assert_eq!(d.state(&lab), ESTABLISHED);
        // Both sides', which is an end that is counted.
        d.deliver(&lab, &from_client(&d, FIN | ACK, SEQUENCE + 1010, 0));
        let fin = from_backend(&d, FIN | ACK, SEQUENCE, 0);
        d.answer(&lab, &hearing(&fin, SEQUENCE + 1011));
        d.to_backend(&lab, ACK);
        assert_eq!(d.state(&lab), CLOSING);
        assert_eq!(counted(&lab, case), (before.0, before.1 + 1));
        d.answer(&lab, &from_backend(&d, PSH | ACK, SEQUENCE, 10));
        assert_eq!(d.state(&lab), HALF_CLOSED);
        assert_eq!(counted(&lab, case), before);
        d.answer(&lab, &from_backend(&d, FIN | ACK, SEQUENCE + 10, 0));
        d.deliver(&lab, &hearing(&d.request(ACK), SEQUENCE + 11));
        assert_eq!(d.state(&lab), CLOSING);
        assert_eq!(counted(&lab, case), (before.0, before.1 + 1));
    }
}

/// A flood of FINs makes no connections that live for long, and takes no room from established ones.
#[test]
fn fins_of_no_connection() {
    let lab = Lab::with_limits(STANDARD, 512);
    let dialogs: Vec<Dialog> = cases::tcp().map(|case| case.establish(&lab)).collect();
    let room = lab.map("connections").max_entries() as u16 * 7;
    for d in &dialogs {
        for port in 0..2 * room {
            let mut client = d.client;
            client.set_port(10_000 + port);
            lab.run(d.slot, &d.with_client(client).request(FIN | ACK).bytes());
        }
    }
    for entry in lab.entries() {
        let live = dialogs
            .iter()
            .any(|d| [d.flow(), d.reply_flow()].contains(&entry.flow));
        let expected = if live {
            ("proven", "established")
        } else {
            ("half-open", "opening")
        };
        assert_eq!((entry.stage, entry.state), expected, "{entry:?}");
    }
    for d in &dialogs {
        assert_eq!(d.state(&lab), ESTABLISHED);
    }
}

/// A client calls a backend itself, from the port of an earlier connection to the VIP. The balancer, which
/// routes between them, leaves it alone.
#[test]
fn a_direct_call_after_a_connection() {
    let lab = Lab::new(STANDARD);
    for case in cases::tcp().filter(|case| !case.full_nat) {
        for ending in ["reset", "closed", "refused"] {
            let mut d = case.open(&lab);
            if ending == "refused" {
                d.to_client(&lab, RST | ACK);
            } else {
                d.to_client(&lab, SYN | ACK);
                d.to_backend(&lab, ACK);
            }
            match ending {
                "reset" => d.to_backend(&lab, RST),
                "closed" => {
                    d.to_client(&lab, FIN | ACK);
                    d.to_backend(&lab, FIN | ACK);
                    d.to_client(&lab, ACK);
                    d.to_backend(&lab, ACK);
                }
                _ => {}
            }
            let syn = tcp(d.client, d.backend, SYN).between(d.router, own_mac(d.slot));
            let sent = lab.send(d.slot, &syn.bytes());
            assert_eq!(sent.verdict, Verdict::Pass("not_ours"), "{ending}");
            for flags in [SYN | ACK, ACK, PSH | ACK, FIN | ACK] {
                let reply = tcp(d.backend, d.client, flags)
                    .between(backend_mac(d.backend.ip()), own_mac(BACKENDS));
                let sent = lab.send(BACKENDS, &reply.bytes());
                assert_eq!(
                    sent.verdict,
                    Verdict::Pass("not_ours"),
                    "{ending} {flags:#x}"
                );
            }
            assert_eq!(d.state(&lab), None, "{ending}");
            // And the VIP is there for it again.
            d = case.establish(&lab);
            assert_eq!(d.state(&lab), ESTABLISHED);
            d.to_backend(&lab, RST);
        }
        // The answer to a new SYN through the VIP is the connection's.
        let d = case.open(&lab);
        d.to_client(&lab, SYN | ACK);
        d.to_client(&lab, SYN | ACK);
        d.to_backend(&lab, ACK);
        assert_eq!(d.state(&lab), ESTABLISHED);
        d.to_backend(&lab, RST);
    }
}

fn pin_to(cpu: usize) {
    let mut set = CpuSet::new();
    set.set(cpu).expect("a CPU number");
    sched_setaffinity(Pid::from_raw(0), &set).expect("this test needs two CPUs");
}

/// Both sides close, or reset, in the same moment, each on a CPU of its own.
#[test]
fn both_sides_at_once() {
    let connections = 300_u16.div_ceil(one_in() as u16);
    let mut lab = Lab::new(STANDARD);
    // The first of them must not be old when the last is looked at.
    lab.set_timeouts(|timeouts| {
        timeouts.tcp_opening = Duration::from_secs(3600);
        timeouts.tcp_closing = Duration::from_secs(3600);
    });
    for case in cases::tcp() {
        for (flags, end) in [(FIN | ACK, CLOSING), (RST | ACK, CLOSED)] {
            let before = counted(&lab, case);
            let dialogs: Vec<Dialog> = (0..connections)
                .map(|nth| case.establish_from(&lab, case.client_at(20_000 + nth)))
                .collect();
            let together = Barrier::new(2);
            let frames: [Vec<Vec<u8>>; 2] = [
                dialogs.iter().map(|d| d.request(flags).bytes()).collect(),
                dialogs.iter().map(|d| d.reply(flags).bytes()).collect(),
            ];
            std::thread::scope(|scope| {
                for (cpu, (slot, frames)) in
                    [CLIENTS, BACKENDS].into_iter().zip(&frames).enumerate()
                {
                    let (runner, together) = (lab.runner(slot), &together);
                    scope.spawn(move || {
                        pin_to(cpu);
                        for frame in frames {
                            together.wait();
                            runner.run(frame);
                        }
                    });
                }
            });
            for d in &dialogs {
                if end == CLOSING {
                    // Whichever FIN was first has not been heard yet.
                    d.to_backend(&lab, ACK);
                    d.to_client(&lab, ACK);
                }
                assert_eq!(d.state(&lab), end, "{d:?}");
            }
            let made = u64::from(connections);
            assert_eq!(
                counted(&lab, case),
                (before.0 + made, before.1 + made),
                "{case:?} {flags:#x}"
            );
            for d in &dialogs {
                // Gone before the next ones come from the same ports.
                lab.forget(d);
            }
        }
    }
}
