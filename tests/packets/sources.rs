//! Source addresses and ports of a connection towards its backend: no two live connections share one, and
//! none is lost or leaked.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::time::Duration;

use crate::harness::cases::{self, Case, STANDARD};
use crate::harness::dialog::{ends_of, Dialog};
use crate::harness::frame::{Protocol, ACK, FIN, RST, SYN};
use crate::harness::{at, pause, Lab, Verdict, BACKENDS, CLIENTS};

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

#[test]
fn full_nat_gives_no_port_twice() {
    let lab = with_ports(20000, 21999);
    for case in full_nat() {
        let mut seen = HashSet::new();
        // Three quarters of the ports.
        for port in 0..1500_u16 {
            let client = case.client_at(10000 + port);
            let blank = Dialog {
                client,
                seen: client,
                ..template(case)
            };
            let syn = blank.request(SYN).bytes();
            let mut sent = lab.send(CLIENTS, &syn);
            // A kernel short of memory at that moment has none for the claim: the client sends again.
            if sent.verdict == Verdict::Drop("table_full") {
                sent = lab.send(CLIENTS, &syn);
            }
            assert_eq!(
                sent.verdict,
                Verdict::Redirect,
                "connection {port}, {case:?}"
            );
            let (source, backend) = ends_of(&sent.bytes);
            assert_eq!(backend, case.backend());
            assert!((20000..=21999).contains(&source.port()), "{source}");
            assert!(seen.insert(source), "{source} twice, {case:?}");
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
    let mut lab = with_ports(30000, 30007);
    for case in full_nat() {
        let dialogs: Vec<Dialog> = (0..8)
            .map(|n| first_of(&lab, case, 1000 + n).expect("eight ports for eight"))
            .collect();
        let ports: HashSet<u16> = dialogs.iter().map(|d| d.seen.port()).collect();
        assert_eq!(ports, (30000..=30007).collect(), "{case:?}");
        for n in 8..12 {
            let refused = first_of(&lab, case, 1000 + n).expect_err("no ninth port");
            assert_eq!(refused, Verdict::Drop("no_port"), "{case:?}");
        }
        for d in &dialogs {
            d.to_client(&lab, SYN | ACK);
            d.to_backend(&lab, ACK);
        }
    }
    assert_eq!(lab.datapath.ports_exhausted().expect("counters"), 4 * 4);
    let held = lab.claims();
    assert_eq!(held, 4 * 8);

    // Every second TCP connection ends; nothing is free before the entries are gone.
    for case in full_nat().filter(|case| case.protocol == Protocol::Tcp) {
        for n in (0..8).step_by(2) {
            let client = case.client_at(1000 + n);
            lab.send(
                CLIENTS,
                &Dialog {
                    client,
                    ..template(case)
                }
                .request(RST)
                .bytes(),
            );
        }
    }
    pause(CLAIM_AGE);
    let swept = lab.sweep();
    assert_eq!((swept.expired, swept.ports), (0, 0), "{swept:?}");
    lab.set_timeouts(|timeouts| timeouts.tcp_closing = Duration::from_millis(100));
    pause(Duration::from_millis(100));
    let swept = lab.sweep();
    assert_eq!((swept.expired, swept.ports), (2 * 8, 8), "{swept:?}");
    for case in full_nat() {
        let mut ports = HashSet::new();
        for n in 20..24 {
            match first_of(&lab, case, 1000 + n) {
                Ok(d) => assert!(ports.insert(d.seen.port())),
                Err(verdict) => assert_eq!(verdict, Verdict::Drop("no_port")),
            }
        }
        let free = if case.protocol == Protocol::Tcp { 4 } else { 0 };
        assert_eq!(ports.len(), free, "{case:?}");
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
                first_of(&lab, case, 1000 + n)
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
        if let Ok(d) = first_of(&lab, case, port) {
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
fn a_claim_outlives_one_of_its_entries() {
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

    for (_, d) in &dialogs {
        lab.evict(&d.flow());
    }
    assert_eq!(sweep_later().ports, 0);
    for (case, d) in &dialogs {
        refused(*case);
        // The client's next packet finds its way back to what it had.
        d.to_backend(&lab, ACK);
        d.to_client(&lab, ACK);
        d.to_backend(&lab, ACK);
        lab.evict(&d.reply_flow());
    }
    assert_eq!(sweep_later().ports, 0);
    for (case, d) in &dialogs {
        refused(*case);
        d.to_backend(&lab, ACK);
        lab.evict(&d.flow());
    }
    // Both are gone, the claim is not yet: the client gets its port back still.
    for (case, d) in &dialogs {
        refused(*case);
        d.to_backend(&lab, ACK);
        d.to_client(&lab, ACK);
        lab.evict(&d.flow());
        lab.evict(&d.reply_flow());
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

/// The LRU may take either direction's entry: the client's next packet mends it.
#[test]
fn nat_after_an_eviction() {
    let lab = Lab::new(STANDARD);
    for case in cases::all().filter(|case| !case.full_nat) {
        let d = case.establish(&lab);
        lab.evict(&d.flow());
        d.to_client(&lab, ACK);
        d.to_backend(&lab, ACK);
        d.to_client(&lab, ACK);
        d.to_backend(&lab, ACK);
        let state = if case.protocol == Protocol::Tcp {
            "established"
        } else {
            "udp"
        };
        assert_eq!(d.state(&lab), Some(("conntrack", state)), "{case:?}");
        let late = lab.send(BACKENDS, &d.reply(ACK).bytes());
        assert_eq!(late.verdict, Verdict::Redirect);
    }
}
