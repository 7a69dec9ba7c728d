//! The life of a connection: its states, the table that it stands in, its end by packets and by time.

use std::time::Duration;

use libbpf_rs::MapCore;
use xdplb::datapath::View;

use crate::harness::cases::{self, Case, STANDARD};
use crate::harness::dialog::{ends_of, Dialog};
use crate::harness::frame::{tcp, Protocol, ACK, FIN, PSH, RST, SYN};
use crate::harness::{listed, pause, Lab, Verdict, BACKENDS, CLIENTS};

/// Who sends a segment.
#[derive(Debug, Clone, Copy)]
enum By {
    Client,
    Backend,
}
use By::{Backend, Client};

/// Sends each segment and looks at both entries after it.
#[track_caller]
fn walk(lab: &Lab, d: &Dialog, steps: &[(By, u8, &str, &str)]) {
    for (number, &(by, flags, table, state)) in steps.iter().enumerate() {
        // A moment later: an acknowledgement is only looked for where the table is.
        lab.forget_copies();
        match by {
            Client => d.to_backend(lab, flags),
            Backend => d.to_client(lab, flags),
        }
        let found = d.state(lab);
        assert_eq!(
            found,
            Some((table, state)),
            "step {number}: {by:?} sends {flags:#x}, {d:?}"
        );
    }
}

/// A connection of which only the first packet was sent, on ports that no other one has.
fn open_nth(lab: &Lab, case: Case, number: u16) -> Dialog {
    case.open_from(lab, case.client_at(3000 + number))
}

#[test]
fn tcp_states() {
    let lab = Lab::new(STANDARD);
    for case in cases::tcp() {
        let handshake = [
            (Client, SYN, "half-open", "opening"),
            (Backend, SYN | ACK, "half-open", "opening"),
            (Client, SYN, "half-open", "opening"),
            (Backend, SYN | ACK, "half-open", "opening"),
            (Client, ACK, "proven", "established"),
            (Backend, PSH | ACK, "proven", "established"),
            (Client, PSH | ACK, "proven", "established"),
        ];
        for (number, ending) in (0_u16..).zip([
            // The client closes first. A FIN counts once it is acknowledged.
            vec![
                (Client, FIN | ACK, "proven", "established"),
                (Backend, ACK, "proven", "half-closed"),
                (Backend, PSH | ACK, "proven", "half-closed"),
                (Client, ACK, "proven", "half-closed"),
                (Client, FIN | ACK, "proven", "half-closed"),
                (Backend, FIN | ACK, "proven", "closing"),
                (Client, ACK, "proven", "closing"),
                // Late ones still find their way.
                (Backend, FIN | ACK, "proven", "closing"),
                (Client, ACK, "proven", "closing"),
                (Backend, PSH | ACK, "proven", "closing"),
            ],
            // The backend does.
            vec![
                (Backend, FIN | ACK, "proven", "established"),
                (Client, ACK, "proven", "half-closed"),
                (Client, FIN | ACK, "proven", "closing"),
                (Backend, ACK, "proven", "closing"),
                (Client, ACK, "proven", "closing"),
            ],
            // Resets of either side.
            vec![
                (Client, RST, "proven", "closed"),
                (Backend, ACK, "proven", "closed"),
                (Client, RST | ACK, "proven", "closed"),
            ],
            vec![
                (Backend, RST | ACK, "proven", "closed"),
                (Client, ACK, "proven", "closed"),
            ],
        ]) {
            let d = open_nth(&lab, case, number);
            assert_eq!(d.state(&lab), Some(("half-open", "opening")));
            walk(&lab, &d, &handshake);
            walk(&lab, &d, &ending);
        }
        // Refused: the backend has nothing on that port.
        let d = open_nth(&lab, case, 100);
        walk(&lab, &d, &[(Backend, RST | ACK, "half-open", "closed")]);
        // Given up.
        let d = open_nth(&lab, case, 101);
        walk(&lab, &d, &[(Client, RST, "half-open", "closed")]);
        // The ACK of the handshake brings data or a FIN.
        let d = open_nth(&lab, case, 102);
        walk(
            &lab,
            &d,
            &[
                (Backend, SYN | ACK, "half-open", "opening"),
                (Client, FIN | PSH | ACK, "proven", "established"),
                (Backend, FIN | ACK, "proven", "closing"),
                (Client, ACK, "proven", "closing"),
            ],
        );
        // In the middle: no SYN was seen, as when the tables are new.
        let client = case.client_at(3200);
        let sent = lab.send(
            CLIENTS,
            &tcp(client, case.vip(), ACK)
                .between(d.router, d.router)
                .bytes(),
        );
        let (seen, backend) = ends_of(&sent.bytes);
        let d = Dialog {
            client,
            seen,
            backend,
            ..d
        };
        walk(
            &lab,
            &d,
            &[
                (Client, PSH | ACK, "half-open", "opening"),
                (Backend, ACK, "half-open", "opening"),
                (Client, ACK, "proven", "established"),
            ],
        );
    }
}

#[test]
fn udp_states() {
    let lab = Lab::new(STANDARD);
    for case in cases::udp() {
        let d = case.open(&lab);
        assert_eq!(d.state(&lab), Some(("half-open", "udp")));
        walk(
            &lab,
            &d,
            &[
                (Client, 0, "half-open", "udp"),
                (Client, 0, "half-open", "udp"),
                (Backend, 0, "proven", "udp"),
                (Client, 0, "proven", "udp"),
                (Backend, 0, "proven", "udp"),
            ],
        );
    }
}

/// A SYN on a connection that is over is a new one, wherever it was left.
#[test]
fn a_new_connection_on_the_same_ports() {
    let lab = Lab::new(STANDARD);
    for case in cases::tcp() {
        let id = lab.backend_id(case.backend_name());
        for (number, ends) in (0_u16..).zip([
            vec![(Client, FIN | ACK), (Backend, FIN | ACK), (Client, ACK)],
            vec![(Client, RST)],
            vec![(Backend, RST)],
        ]) {
            let mut d = case.establish_from(&lab, case.client_at(5000 + number));
            for (by, flags) in ends {
                match by {
                    Client => d.to_backend(&lab, flags),
                    Backend => d.to_client(&lab, flags),
                }
            }
            let (claims, entries) = (lab.claims(), lab.entries().len());
            for _ in 0..2 {
                let before = lab.traffic(id).connections;
                d = case.open_from(&lab, d.client);
                assert_eq!(lab.traffic(id).connections, before + 1);
                walk(
                    &lab,
                    &d,
                    &[
                        (Backend, SYN | ACK, "half-open", "opening"),
                        (Client, ACK, "proven", "established"),
                        (Client, RST, "proven", "closed"),
                    ],
                );
            }
            // It took the place of the other, port included.
            assert_eq!(
                (lab.claims(), lab.entries().len()),
                (claims, entries),
                "{case:?}"
            );
        }
        // One that is alive stays: the backend knows best what to answer.
        let d = case.establish_from(&lab, case.client_at(5100));
        let before = lab.traffic(id).connections;
        walk(
            &lab,
            &d,
            &[
                (Client, SYN, "proven", "established"),
                (Backend, ACK, "proven", "established"),
                (Client, RST, "proven", "closed"),
            ],
        );
        assert_eq!(lab.traffic(id).connections, before);
    }
}

/// A connection in each state, with what its timeout is called.
fn in_every_state(lab: &Lab) -> Vec<(&'static str, Dialog)> {
    let mut dialogs = Vec::new();
    for case in cases::all() {
        let number = |n: u16| case.client_at(7000 + n);
        if case.protocol == Protocol::Udp {
            dialogs.push(("udp", case.open_from(lab, number(0))));
            dialogs.push(("udp", case.establish_from(lab, number(1))));
            continue;
        }
        dialogs.push(("opening", case.open_from(lab, number(0))));
        let d = case.open_from(lab, number(1));
        d.to_client(lab, SYN | ACK);
        dialogs.push(("opening", d));
        dialogs.push(("established", case.establish_from(lab, number(2))));
        let d = case.establish_from(lab, number(3));
        d.to_backend(lab, FIN | ACK);
        lab.forget_copies();
        d.to_client(lab, ACK);
        dialogs.push(("half_closed", d));
        let d = case.establish_from(lab, number(4));
        d.to_client(lab, FIN | ACK);
        d.to_backend(lab, FIN | ACK);
        d.to_client(lab, ACK);
        dialogs.push(("closing", d));
        let d = case.establish_from(lab, number(5));
        d.to_backend(lab, RST);
        dialogs.push(("closing", d));
    }
    dialogs
}

const SHORT: Duration = Duration::from_millis(40);
const STATES: [&str; 5] = ["opening", "established", "half_closed", "closing", "udp"];

/// Makes one timeout short, the others what they were.
fn shorten(lab: &mut Lab, state: &str, to: Duration) {
    lab.set_timeouts(|timeouts| {
        *match state {
            "opening" => &mut timeouts.tcp_opening,
            "established" => &mut timeouts.tcp_established,
            "half_closed" => &mut timeouts.tcp_half_closed,
            "closing" => &mut timeouts.tcp_closing,
            _ => &mut timeouts.udp,
        } = to;
    });
}

/// Each state ends after its own timeout, and no other: entries are too old the moment a packet looks.
#[test]
fn expiry_on_lookup() {
    for state in STATES {
        let mut lab = Lab::new(STANDARD);
        let dialogs = in_every_state(&lab);
        pause(SHORT);
        for (of, d) in &dialogs {
            // Nothing has a short timeout yet. A bare ACK changes no state.
            if *of != "opening" {
                d.to_client(&lab, ACK);
            }
        }
        pause(SHORT);
        shorten(&mut lab, state, SHORT);
        for (of, d) in &dialogs {
            let reply = lab.send(BACKENDS, &d.reply(ACK).bytes());
            if *of != state {
                assert_eq!(
                    reply.verdict,
                    Verdict::Redirect,
                    "{of} while {state} is short, {d:?}"
                );
                continue;
            }
            assert_eq!(reply.verdict, Verdict::Pass("not_ours"), "{state}, {d:?}");
            let before = connections(&lab);
            let request = lab.send(CLIENTS, &d.request(ACK).bytes());
            assert_eq!(request.verdict, Verdict::Redirect, "{state}, {d:?}");
            assert_eq!(
                connections(&lab),
                before + 1,
                "{state}: a new connection, {d:?}"
            );
        }
    }
}

/// One direction may be silent for as long as the other is not.
#[test]
fn a_silent_direction_lives_by_the_other() {
    // Shorter than any timeout in the beginning; far above what a busy machine needs for all of this.
    let (idle, limit) = (Duration::from_secs(25), Duration::from_secs(20));
    let mut lab = Lab::new(STANDARD);
    let (half_open, dialogs): (Vec<_>, Vec<_>) = in_every_state(&lab)
        .into_iter()
        .partition(|(state, _)| *state == "opening");
    let made = connections(&lab);
    for (_, d) in half_open.iter().chain(&dialogs) {
        lab.idle(d, idle);
    }
    // Every second one's client is silent, the others' backend.
    for (number, (_, d)) in dialogs.iter().enumerate() {
        if number % 2 == 0 {
            d.to_client(&lab, ACK);
        } else {
            d.to_backend(&lab, ACK);
        }
    }
    for state in STATES {
        shorten(&mut lab, state, limit);
    }
    let swept = lab.sweep();
    assert_eq!(swept.expired, half_open.len() as u64, "{swept:?}");
    for (number, (_, d)) in dialogs.iter().enumerate() {
        if number % 2 == 0 {
            d.to_backend(&lab, ACK);
        } else {
            d.to_client(&lab, ACK);
        }
    }
    assert_eq!(connections(&lab), made, "a connection was made anew");
}

/// How many were made until now.
fn connections(lab: &Lab) -> u64 {
    let ids = lab.desired.backends.keys();
    ids.map(|&id| lab.traffic(id).connections).sum()
}

/// The sweep takes out what no packet will find, and only that.
#[test]
fn sweep_of_each_state() {
    for state in STATES {
        let mut lab = Lab::new(STANDARD);
        let dialogs = in_every_state(&lab);
        let entries = lab.client_flows().len() as u64;
        let swept = lab.sweep();
        assert_eq!(
            (swept.entries, swept.expired, swept.unbound),
            (entries, 0, 0)
        );
        pause(SHORT);
        shorten(&mut lab, state, SHORT);
        let swept = lab.sweep();
        let old = dialogs.iter().filter(|(of, _)| *of == state).count() as u64;
        assert_eq!(
            (swept.entries, swept.expired, swept.unbound),
            (entries, old, 0),
            "{state}"
        );
        for (of, d) in &dialogs {
            assert_eq!(
                d.state(&lab).is_none(),
                *of == state,
                "{of} while {state} is short, {d:?}"
            );
        }
    }
}

/// Half-open connections have a table of their own: as many as it takes push out no established one.
#[test]
fn a_flood_of_first_packets_leaves_connections_alone() {
    let lab = Lab::with_limits(STANDARD, 512);
    let dialogs: Vec<Dialog> = cases::all().map(|case| case.establish(&lab)).collect();
    let room = 7 * u64::from(lab.map("connections").max_entries());
    for case in cases::all() {
        for port in 0..2 * room as u16 {
            let client = case.client_at(10000 + port);
            let first = Dialog {
                protocol: case.protocol,
                ..dialogs[0].with_client(client)
            };
            let first = Dialog {
                vip: case.vip(),
                ..first
            };
            let (verdict, _) = lab.run(CLIENTS, &first.request(SYN).bytes());
            assert!(
                [1, 4].contains(&verdict),
                "dropped for want of a port, or redirected: {verdict}"
            );
        }
    }
    for d in dialogs {
        d.to_backend(&lab, ACK);
        d.to_client(&lab, ACK);
    }
}

/// What commands see of a connection is what packets made of it.
#[test]
fn the_view_sees_what_packets_did() {
    let mut lab = Lab::new(STANDARD);
    let path = lab.pin();
    let view = View::open(&path).expect("a view");
    let mut expected = Vec::new();
    for case in cases::all() {
        let d = case.establish(&lab);
        let state = match case.protocol {
            Protocol::Tcp => "established",
            Protocol::Udp => "udp",
        };
        expected.push((d.flow(), state));
    }
    let mut seen: Vec<_> = listed(&view)
        .iter()
        .map(|connection| (connection.entry.flow, connection.state))
        .collect();
    seen.sort_unstable();
    expected.sort_unstable();
    assert_eq!(seen, expected);
    let services = view.services().expect("services");
    for case in cases::all() {
        let backend = services
            .values()
            .flat_map(|service| service.backends.values())
            .find(|backend| backend.name == case.backend_name())
            .expect("its backend");
        assert_eq!(backend.traffic.opened, 2, "one of each protocol");
    }
    drop(lab);
    assert!(!path.exists(), "the pins of a datapath go with it");
}
