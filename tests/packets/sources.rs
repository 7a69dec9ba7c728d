//! Source addresses and ports of a connection towards its backend: no two live connections share one, and
//! none is lost or leaked.

use std::cell::Cell;
use std::collections::HashSet;
use std::net::SocketAddr;
use std::time::Duration;

use libbpf_rs::{MapCore, MapFlags};
use xdplb::datapath::abi::{self, Flow};

use crate::harness::cases::{self, Case, STANDARD};
use crate::harness::dialog::{ends_of, Dialog};
use crate::harness::frame::{Protocol, ACK, FIN, RST, SYN};
use crate::harness::{at, pause, Lab, Verdict, BACKENDS, CLIENTS};
use crate::property::one_in;

/// Claims younger than two seconds are left alone by the sweep.
const CLAIM_AGE: Duration = Duration::from_millis(2100);

fn full_nat() -> impl Iterator<Item = Case> {
    cases::all().filter(|case| case.full_nat)
}

fn with_ports(first: u16, last: u16) -> Lab {
    let mut lab = Lab::new(STANDARD);
    lab.settings.nat_ports = (first, last);
    lab.apply();
    lab
}

/// What the first packet of a connection from this port comes to.
fn first_of(lab: &Lab, case: Case, port: u16) -> Result<Dialog, Verdict> {
    let client = case.client_at(port);
    let blank = Dialog {
        protocol: case.protocol,
        client,
        vip: case.vip(),
        backend: case.backend(),
        seen: client,
        router: crate::harness::ROUTER,
        slot: CLIENTS,
    };
    let sent = lab.send(CLIENTS, &blank.request(SYN).bytes());
    if sent.verdict != Verdict::Redirect {
        return Err(sent.verdict);
    }
    let (seen, backend) = ends_of(&sent.bytes);
    Ok(Dialog {
        seen,
        backend,
        ..blank
    })
}

/// Likewise, once both directions have been seen.
fn established(lab: &Lab, case: Case, port: u16) -> Result<Dialog, Verdict> {
    let dialog = first_of(lab, case, port)?;
    dialog.to_client(lab, SYN | ACK);
    dialog.to_backend(lab, ACK);
    Ok(dialog)
}

/// Lets so many seconds go by for claims, and for nothing else.
fn age_claims(lab: &Lab, seconds: u64) {
    let ticks =
        (seconds * u64::from(lab.datapath.clock().hz)) << abi::xdplb_limit::CLAIM_STATE_BITS.0;
    for name in ["nat_ports", "nat_ports6"] {
        let map = lab.map(name);
        for (key, mut value) in lab.pairs(name) {
            // It ends with the word that has the time.
            let word = value.split_off(value.len() - 8);
            let status = u64::from_ne_bytes(word.try_into().expect("eight bytes"));
            value.extend((status - ticks).to_ne_bytes());
            map.update(&key, &value, MapFlags::EXIST).expect("a claim");
        }
    }
}

#[test]
fn full_nat_gives_no_port_twice() {
    let lab = with_ports(20000, 21999);
    for case in full_nat() {
        let mut seen = HashSet::new();
        // Three quarters of the ports.
        for port in 0..1500_u16 {
            let mut opened = established(&lab, case, 10000 + port);
            // A kernel short of memory at that moment has none for the claim: the client sends again.
            if matches!(opened, Err(Verdict::Drop("table_full"))) {
                opened = established(&lab, case, 10000 + port);
            }
            let dialog = opened.unwrap_or_else(|verdict| {
                panic!("connection {port}, {case:?}: {verdict:?}");
            });
            let source = dialog.seen;
            assert_eq!(dialog.backend, case.backend());
            assert!((20000..=21999).contains(&source.port()), "{source}");
            assert!(seen.insert(source), "{source} twice, {case:?}");
        }
    }
}

/// The tries of a flow are independent of each other and of other flows': a pool serves until nearly all of
/// it is in use.
#[test]
fn a_pool_is_full_before_a_connection_is_refused() {
    const PORTS: u16 = 4536;
    const REDIRECT: u32 = 4;
    let mut lab = Lab::with_limits(STANDARD, 16384);
    lab.settings.nat_ports = (20000, 20000 + PORTS - 1);
    lab.apply();
    for case in full_nat() {
        let mut seen = HashSet::new();
        for port in 1..=PORTS {
            let client = case.client_at(port);
            let mut dialog = Dialog {
                client,
                seen: client,
                ..template(case)
            };
            let (code, bytes) = lab.run(CLIENTS, &dialog.request(SYN).bytes());
            if code != REDIRECT {
                break;
            }
            (dialog.seen, _) = ends_of(&bytes);
            assert!(seen.insert(dialog.seen), "{} twice, {case:?}", dialog.seen);
            lab.run(BACKENDS, &dialog.reply(SYN | ACK).bytes());
            lab.run(CLIENTS, &dialog.request(ACK).bytes());
        }
        let share = seen.len() as f64 / f64::from(PORTS);
        println!(
            "{case:?}: {} of {PORTS} ports before the first refusal",
            seen.len()
        );
        assert!(share >= 0.98, "{share} of the ports, {case:?}");
    }
}

/// However many there are of them: new connections are served, be it without an entry first, and those
/// that there are go on.
#[test]
fn half_open_connections_leave_ports_for_others() {
    const PORTS: u16 = 800;
    // More than there are ports, and as many more as there is time for.
    let half_open = (10_000 / one_in() as u16).max(2 * PORTS);
    for connections in [0, 200, 500_u16] {
        let mut lab = Lab::with_limits(STANDARD, 65536);
        lab.settings.nat_ports = (20000, 20000 + PORTS - 1);
        lab.apply();
        for case in full_nat() {
            let before: Vec<Dialog> = (0..connections)
                .map(|n| established(&lab, case, 1000 + n).expect("a port"))
                .collect();
            let held = lab.claims();
            for port in 10_000..10_000 + half_open {
                let client = case.client_at(port);
                let syn = Dialog {
                    client,
                    seen: client,
                    ..template(case)
                };
                lab.run(CLIENTS, &syn.request(SYN).bytes());
            }
            let claimed = lab.claims() - held;
            assert!(claimed > 0, "{connections} connections, {case:?}");
            let served = (0..50)
                .filter(|n| {
                    let Ok(dialog) = first_of(&lab, case, 40_000 + n) else {
                        return false;
                    };
                    dialog.to_client(&lab, SYN | ACK);
                    dialog.to_backend(&lab, ACK);
                    dialog.to_client(&lab, ACK);
                    dialog.to_backend(&lab, ACK);
                    assert_eq!(dialog.state(&lab).map(|(stage, _)| stage), Some("proven"));
                    true
                })
                .count();
            println!(
                "{connections} of {PORTS} ports in use, {case:?}: {claimed} claimed by {half_open} that are \
                 half-open, then {served} of 50 served"
            );
            assert_eq!(served, 50, "{connections}, {case:?}");
            for dialog in &before {
                dialog.to_backend(&lab, ACK);
                dialog.to_client(&lab, ACK);
            }
        }
    }
}

fn template(case: Case) -> Dialog {
    Dialog {
        protocol: case.protocol,
        client: case.client(),
        vip: case.vip(),
        backend: case.backend(),
        seen: case.client(),
        router: crate::harness::ROUTER,
        slot: CLIENTS,
    }
}

/// Ports there are, but no room to remember who has them: another limit is to be raised.
#[test]
fn a_full_table_of_claims() {
    let limit = 64;
    for case in full_nat() {
        let lab = Lab::with_limits(STANDARD, limit.into());
        for n in 0..limit {
            first_of(&lab, case, 1000 + n).expect("room for as many as the limit says");
        }
        let refused = first_of(&lab, case, 1000 + limit).expect_err("no room for more");
        assert_eq!(refused, Verdict::Drop("table_full"), "{case:?}");
        // Those that have one keep it.
        first_of(&lab, case, 1000).expect("a port of its own");
    }
}

#[test]
fn exhaustion_and_recovery() {
    let lab = with_ports(30000, 30006);
    for case in full_nat() {
        let dialogs: Vec<Dialog> = (0..7)
            .map(|n| established(&lab, case, 1000 + n).expect("seven ports for seven"))
            .collect();
        let ports: HashSet<u16> = dialogs.iter().map(|d| d.seen.port()).collect();
        assert_eq!(ports, (30000..=30006).collect(), "{case:?}");
        for n in 8..12 {
            let refused = first_of(&lab, case, 1000 + n).expect_err("no eighth port");
            assert_eq!(refused, Verdict::Drop("no_port"), "{case:?}");
        }
        for d in &dialogs {
            d.to_client(&lab, ACK);
            d.to_backend(&lab, ACK);
        }
    }
    assert_eq!(lab.datapath.ports_exhausted().expect("counters"), 4 * 4);
    assert_eq!(lab.claims(), 4 * 7);
}

/// The backend's TIME_WAIT: a SYN of another client there would not be answered.
#[test]
fn a_port_rests_after_a_close() {
    let mut lab = with_ports(30000, 30006);
    let tcp = || full_nat().filter(|case| case.protocol == Protocol::Tcp);
    let mut closed = Vec::new();
    for case in tcp() {
        for (n, first, second) in [(0, true, FIN | ACK), (1, false, FIN | ACK), (2, true, RST)] {
            let d = established(&lab, case, 1000 + n).expect("a port");
            if second == RST {
                d.to_client(&lab, RST | ACK);
            } else if first {
                d.to_client(&lab, FIN | ACK);
                d.to_backend(&lab, second);
            } else {
                d.to_backend(&lab, FIN | ACK);
                d.to_client(&lab, second);
            }
            closed.push((case, d));
        }
        // A refused one leaves nothing at the backend.
        let refused = first_of(&lab, case, 2000).expect("a port");
        refused.to_client(&lab, RST | ACK);
    }
    // The entries are gone soon, and with them the ports of those that have never been established.
    lab.set_timeouts(|timeouts| timeouts.tcp_closing = Duration::from_millis(100));
    pause(CLAIM_AGE);
    let swept = lab.sweep();
    assert_eq!((swept.expired, swept.ports), (8, 2), "{swept:?}");
    lab.set_timeouts(|timeouts| timeouts.tcp_closing = Duration::from_secs(30));
    let resting: HashSet<SocketAddr> = closed.iter().map(|(_, d)| d.seen).collect();
    age_claims(&lab, 60);
    assert_eq!(lab.sweep().ports, 0, "a minute after");
    for case in tcp() {
        for n in 0..4 {
            let d = established(&lab, case, 3000 + n).expect("a port that does not rest");
            assert!(!resting.contains(&d.seen), "{} rests, {case:?}", d.seen);
        }
        let refused = first_of(&lab, case, 3004).expect_err("the others rest");
        assert_eq!(refused, Verdict::Drop("no_port"), "{case:?}");
    }
    // Its own client may have it at once: it knows what it has sent.
    for (case, d) in &closed {
        let again = first_of(&lab, *case, d.client.port()).expect("its port");
        assert!(
            resting.contains(&again.seen),
            "{} -> {}",
            d.seen,
            again.seen
        );
        again.to_client(&lab, RST | ACK);
        lab.evict(&again.flow());
    }
    // Now all seven are in use or half-open: what is gone of them is free a moment later.
    age_claims(&lab, 66);
    assert_eq!(lab.sweep().ports, closed.len() as u64);
    for case in tcp() {
        for n in 0..3 {
            established(&lab, case, 4000 + n).expect("ports that have rested");
        }
    }
}

/// A client that comes back between the sweep's look and its deletion keeps its port.
#[test]
fn the_sweep_takes_no_claim_that_has_changed() {
    let lab = with_ports(30000, 30000);
    let sweeper = lab.datapath.sweeper().expect("a sweeper");
    for case in full_nat() {
        let d = established(&lab, case, 1000).expect("the port");
        let (name, family) = if case.ipv6 {
            ("nat_ports6", 6)
        } else {
            ("nat_ports", 4)
        };
        // As a sweep finds it.
        let status = || {
            let claims = lab.pairs(name);
            let value = claims.iter().find(|(key, _)| {
                let flow: Flow = if case.ipv6 {
                    abi::from_bytes::<abi::flow6>(key).expect("a key").into()
                } else {
                    abi::from_bytes::<abi::flow4>(key).expect("a key").into()
                };
                flow == d.reply_flow()
            });
            let (_, value) = value.expect("a claim");
            u64::from_ne_bytes(value[value.len() - 8..].try_into().expect("eight bytes"))
        };
        let remove = |status| {
            let (source, destination) = (d.backend, d.seen);
            let mut removal = abi::claim_removal {
                reply: abi::flow6 {
                    saddr: abi::words_of(source.ip()),
                    daddr: abi::words_of(destination.ip()),
                    sport: source.port().to_be(),
                    dport: destination.port().to_be(),
                    protocol: case.protocol.number().0,
                    pad: [0; 3],
                },
                status,
                family,
                removed: 0,
            };
            sweeper
                .remove_claim(&mut removal)
                .expect("the program runs");
            removal.removed == 1
        };
        lab.evict(&d.flow());
        age_claims(&lab, 10);
        let seen = status();
        d.to_backend(&lab, ACK);
        assert!(!remove(seen), "its client has come back, {case:?}");
        lab.evict(&d.flow());
        assert!(!remove(seen), "its client has been there, {case:?}");
        assert!(remove(status()), "as it was, {case:?}");
        first_of(&lab, case, 999).expect("nobody has the port any more");
    }
}

/// A connection that becomes established while the sweep reads the tables is seen in one of them.
#[test]
fn the_sweep_sees_connections_that_move() {
    for hook in ["half-open", "proven"] {
        let lab = with_ports(30000, 30000);
        let dialogs: Vec<(Case, Dialog)> = full_nat()
            .map(|case| (case, first_of(&lab, case, 1000).expect("the port")))
            .collect();
        age_claims(&lab, 10);
        // One of each table and family that the sweep comes by.
        let others: Vec<Dialog> = cases::all()
            .filter(|case| !case.full_nat)
            .map(|case| {
                let d = first_of(&lab, case, 2000).expect("a connection");
                if hook == "proven" {
                    d.to_client(&lab, SYN | ACK);
                    d.to_backend(&lab, ACK);
                }
                d
            })
            .collect();
        let moved = Cell::new([false; 2]);
        let sweeper = lab.datapath.sweeper().expect("a sweeper");
        let swept = sweeper.sweep(&|client, _| {
            let ipv6 = client.source.0.is_ipv6();
            let mut done = moved.get();
            let is_hook = others.iter().any(|d| d.flow() == *client);
            if is_hook && !std::mem::replace(&mut done[usize::from(ipv6)], true) {
                for (_, d) in dialogs.iter().filter(|(case, _)| case.ipv6 == ipv6) {
                    d.to_client(&lab, SYN | ACK);
                    d.to_backend(&lab, ACK);
                }
            }
            moved.set(done);
            true
        });
        assert_eq!(moved.get(), [true; 2]);
        assert_eq!(swept.expect("a sweep").ports, 0, "{hook}");
        for (case, d) in &dialogs {
            let refused = first_of(&lab, *case, 999).expect_err("the port is taken");
            assert_eq!(refused, Verdict::Drop("no_port"), "{case:?}");
            d.to_client(&lab, ACK);
            d.to_backend(&lab, ACK);
        }
    }
}

/// A port is used up on one address only: the others are tried before a connection is refused.
#[test]
fn every_address_of_ours_is_used() {
    let mut lab = with_ports(30000, 30003);
    lab.datapath_keys =
        r#"addresses = ["10.0.0.100", "10.0.0.101", "10.0.0.102", "fd00::100", "fd00::101", "fd00::102"]"#
            .into();
    lab.reload(STANDARD);
    for case in full_nat() {
        let sources: HashSet<SocketAddr> = (0..12)
            .map(|n| {
                established(&lab, case, 1000 + n)
                    .expect("four ports on each of three addresses")
                    .seen
            })
            .collect();
        assert_eq!(sources.len(), 12, "{case:?}");
        let refused = first_of(&lab, case, 1012).expect_err("no thirteenth");
        assert_eq!(refused, Verdict::Drop("no_port"), "{case:?}");
    }
}

/// Two backends, or two protocols, may well share a port: their replies are told apart.
#[test]
fn ports_are_counted_for_each_backend() {
    let services = STANDARD.replace(
        "name = \"f4\"",
        "name = \"g4\"\naddress = \"10.0.0.9\"\n[[service.backend]]\nname = \"f4\"",
    );
    let mut lab = Lab::new(&services);
    lab.settings.nat_ports = (30000, 30003);
    lab.apply();
    let vip = at("203.0.113.12:80");
    let mut dialogs = Vec::new();
    for port in 1000..1060 {
        let case = Case {
            full_nat: true,
            ipv6: false,
            protocol: Protocol::Tcp,
        };
        if let Ok(d) = established(&lab, case, port) {
            assert_eq!(d.vip, vip);
            dialogs.push(d);
        }
    }
    // Four ports for each of two backends.
    let ends: HashSet<_> = dialogs.iter().map(|d| (d.seen, d.backend)).collect();
    assert_eq!((dialogs.len(), ends.len()), (8, 8));
    for d in dialogs {
        d.to_client(&lab, SYN | ACK);
        d.to_backend(&lab, ACK);
    }
}

/// The LRU may take one direction's entry. The port stays the connection's as long as the other lives.
#[test]
fn a_claim_outlives_its_connection_for_a_while() {
    let lab = with_ports(30000, 30000);
    let dialogs: Vec<(Case, Dialog)> = full_nat()
        .map(|case| {
            let d = first_of(&lab, case, 4242).expect("a port");
            d.to_client(&lab, SYN | ACK);
            d.to_backend(&lab, ACK);
            (case, d)
        })
        .collect();
    let refused = |case| {
        let refused = first_of(&lab, case, 999).expect_err("the only port is taken");
        assert_eq!(refused, Verdict::Drop("no_port"), "{case:?}");
    };
    let sweep_later = || {
        pause(CLAIM_AGE);
        lab.sweep()
    };

    assert_eq!(sweep_later().ports, 0);
    for (case, d) in &dialogs {
        refused(*case);
        lab.evict(&d.flow());
    }
    // It is gone, the claim is not yet: the client's next packet finds its way back to what it had.
    for (case, d) in &dialogs {
        refused(*case);
        d.to_backend(&lab, ACK);
        d.to_client(&lab, ACK);
        d.to_backend(&lab, ACK);
    }
    assert_eq!(sweep_later().ports, 0);
    for (case, d) in &dialogs {
        refused(*case);
        lab.evict(&d.flow());
    }
    assert_eq!(sweep_later().ports, dialogs.len() as u64);
    for (case, _) in &dialogs {
        first_of(&lab, *case, 999).expect("nobody has the port any more");
    }
}

/// Two VIPs with one backend, and one client that uses a port for both: the backend sees two connections.
#[test]
fn nat_tells_apart_what_would_look_alike() {
    let services = r#"
[[service]]
name = "one"
vip = ["203.0.113.31", "2001:db8:1::31"]
protocol = ["tcp", "udp"]
port = [80, 443]
forward = "nat"
[[service.backend]]
address = "10.0.0.2"
port = 8080
[[service.backend]]
address = "fd00::2"
port = 8080

[[service]]
name = "two"
vip = ["203.0.113.32", "2001:db8:1::32"]
protocol = ["tcp", "udp"]
port = 80
forward = "nat"
[[service.backend]]
address = "10.0.0.2"
port = 8080
[[service.backend]]
address = "fd00::2"
port = 8080
"#;
    let lab = Lab::new(services);
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        for (client, vips) in [
            (
                "198.51.100.7:4242",
                ["203.0.113.31:80", "203.0.113.32:80", "203.0.113.31:443"],
            ),
            (
                "[2001:db8:c::7]:4242",
                [
                    "[2001:db8:1::31]:80",
                    "[2001:db8:1::32]:80",
                    "[2001:db8:1::31]:443",
                ],
            ),
        ] {
            let client = at(client);
            let dialogs = vips.map(|vip| Dialog::open(&lab, protocol, client, at(vip)));
            let seen: HashSet<SocketAddr> = dialogs.iter().map(|d| d.seen).collect();
            assert_eq!(seen.len(), 3, "{dialogs:?}");
            assert_eq!(dialogs[0].seen, client, "the first one keeps its port");
            for d in &dialogs {
                assert_eq!(d.seen.ip(), client.ip());
                d.to_client(&lab, SYN | ACK);
            }
            for d in &dialogs {
                d.to_backend(&lab, ACK);
                d.to_client(&lab, ACK);
            }
        }
    }
}

const TWO_VIPS: &str = r#"
[[service]]
name = "both"
vip = ["203.0.113.31", "203.0.113.32", "2001:db8:1::31", "2001:db8:1::32"]
protocol = ["tcp", "udp"]
port = 80
forward = "nat"
[[service.backend]]
address = "10.0.0.2"
[[service.backend]]
address = "fd00::2"
"#;

const TWO_VIPS_ENDS: [(&str, [&str; 2]); 2] = [
    ("198.51.100.7:4242", ["203.0.113.31:80", "203.0.113.32:80"]),
    (
        "[2001:db8:c::7]:4242",
        ["[2001:db8:1::31]:80", "[2001:db8:1::32]:80"],
    ),
];

/// What is left of a connection to one VIP does not catch the replies of a new one to another.
#[test]
fn nat_after_a_closed_connection() {
    let lab = Lab::new(TWO_VIPS);
    for (client, [one, two]) in TWO_VIPS_ENDS {
        let closed = Dialog::open(&lab, Protocol::Tcp, at(client), at(one));
        closed.to_client(&lab, SYN | ACK);
        closed.to_backend(&lab, FIN | ACK);
        closed.to_client(&lab, FIN | ACK);
        let new = Dialog::open(&lab, Protocol::Tcp, at(client), at(two));
        new.to_client(&lab, SYN | ACK);
        new.to_backend(&lab, ACK);
        new.to_client(&lab, ACK);
        // Late segments of the old one still find their way.
        closed.to_backend(&lab, ACK);
        closed.to_client(&lab, ACK);
    }
}

/// Likewise with one that is too old, which no sweep has come by yet.
#[test]
fn nat_after_an_expired_connection() {
    let mut lab = Lab::new(TWO_VIPS);
    let mut expired = Vec::new();
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        for (client, [one, _]) in TWO_VIPS_ENDS {
            let d = Dialog::open(&lab, protocol, at(client), at(one));
            d.to_client(&lab, SYN | ACK);
            d.to_backend(&lab, ACK);
            expired.push(d);
        }
    }
    let before = lab.settings.timeouts;
    lab.set_timeouts(|timeouts| {
        timeouts.tcp_established = Duration::from_millis(400);
        timeouts.udp = Duration::from_millis(400);
    });
    pause(Duration::from_millis(400));
    let mut fresh = Vec::new();
    for (d, two) in expired.iter().zip(
        ["203.0.113.32:80", "[2001:db8:1::32]:80"]
            .into_iter()
            .cycle(),
    ) {
        fresh.push(Dialog::open(&lab, d.protocol, d.client, at(two)));
    }
    lab.set_timeouts(|timeouts| *timeouts = before);
    for (d, expired) in fresh.iter().zip(&expired) {
        d.to_client(&lab, SYN | ACK);
        d.to_backend(&lab, ACK);
        d.to_client(&lab, ACK);
        // The client of the old one goes on after all: not in the new one's name.
        let sent = lab.send(CLIENTS, &expired.request(ACK).bytes());
        assert_ne!(ends_of(&sent.bytes).0, d.seen);
    }
}

/// A connection may have to make room: the client's next packet makes it anew.
#[test]
fn nat_after_an_eviction() {
    let lab = Lab::new(STANDARD);
    for case in cases::all().filter(|case| !case.full_nat) {
        let d = case.establish(&lab);
        lab.evict(&d.flow());
        d.to_backend(&lab, ACK);
        d.to_client(&lab, ACK);
        d.to_backend(&lab, ACK);
        let state = if case.protocol == Protocol::Tcp {
            "established"
        } else {
            "udp"
        };
        assert_eq!(d.state(&lab), Some(("proven", state)), "{case:?}");
        let late = lab.send(BACKENDS, &d.reply(ACK).bytes());
        assert_eq!(late.verdict, Verdict::Redirect);
    }
}
