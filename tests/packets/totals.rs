//! The counters of connections and packets: each connection opened once and closed once, whatever it
//! comes to, and each packet with its protocol.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use libbpf_rs::MapCore;
use proptest::prelude::*;
use xdplb::datapath::abi::{self, Flow};

use crate::harness::cells::{self, every, Cell, Dress, Mode, Path, PROTOCOLS};
use crate::harness::dialog::ends_of;
use crate::harness::frame::{tcp, Protocol, ACK, FIN, PSH, RST, SYN};
use crate::harness::ip::Icmp;
use crate::harness::{at, backend_mac, own_mac, Lab, BACKENDS, CLIENTS, ROUTER};
use crate::property::check;

/// Of one backend: connections opened, closed, expired, and packets without an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Totals {
    opened: u64,
    closed: u64,
    expired: u64,
    unrecorded: u64,
}

fn totals(lab: &Lab, id: u32) -> Totals {
    let mut sum = Totals {
        expired: lab.element::<abi::expiries>("expired", id).connections,
        ..Totals::default()
    };
    for cpu in lab.per_cpu::<abi::traffic>("traffic", id) {
        sum.opened += cpu.opened;
        // A CPU may take back an end that another one has counted.
        sum.closed = sum.closed.wrapping_add(cpu.closed);
        sum.unrecorded += cpu.unrecorded;
    }
    sum
}

/// Over all backends that there are.
fn everything(lab: &Lab) -> Totals {
    let ids = lab.desired.backends.keys();
    ids.fold(Totals::default(), |sum, &id| {
        let one = totals(lab, id);
        Totals {
            opened: sum.opened + one.opened,
            closed: sum.closed.wrapping_add(one.closed),
            expired: sum.expired + one.expired,
            unrecorded: sum.unrecorded + one.unrecorded,
        }
    })
}

#[derive(Debug, Clone, Copy)]
enum By {
    Client,
    Backend,
}
use By::{Backend, Client};

#[track_caller]
fn send(lab: &Lab, path: &Path, by: By, flags: u8) {
    match by {
        Client => path.to_backend(lab, "the client", |ends| path.between(ends, flags).packet()),
        Backend => path.to_client(lab, "the backend", |ends| {
            path.back_between(ends, flags).packet()
        }),
    }
}

/// Every end that packets bring about, and what may still come after it.
#[test]
fn a_connection_is_closed_once() {
    let lab = Lab::new(&every());
    // Of one side: what both send after a reset shows that they have ignored it.
    let after = [
        (Client, ACK),
        (Client, RST),
        (Backend, RST | ACK),
        (Client, FIN | ACK),
    ];
    let endings: [(&[(By, u8)], bool); 8] = [
        (
            &[
                (Client, FIN | ACK),
                (Backend, ACK),
                (Backend, FIN | ACK),
                (Client, ACK),
            ],
            true,
        ),
        (
            &[
                (Backend, FIN | ACK),
                (Client, ACK),
                (Client, FIN | ACK),
                (Backend, ACK),
            ],
            true,
        ),
        (&[(Client, FIN | ACK), (Backend, FIN | ACK)], true),
        (&[(Client, RST)], true),
        (&[(Backend, RST | ACK)], true),
        (&[(Client, FIN | ACK), (Client, RST)], true),
        (
            &[(Client, FIN | ACK), (Backend, ACK), (Client, FIN | ACK)],
            false,
        ),
        (&[(Client, PSH | ACK), (Backend, PSH | ACK)], false),
    ];
    let mut port = 1000;
    for cell in cells::translated() {
        for (ending, closes) in endings {
            port += 1;
            let before = everything(&lab);
            let path = cell.establish(&lab, Protocol::Tcp, port);
            assert_eq!(everything(&lab).opened, before.opened + 1, "{path:?}");
            for &(by, flags) in ending {
                send(&lab, &path, by, flags);
            }
            let closed = before.closed + u64::from(closes);
            assert_eq!(everything(&lab).closed, closed, "{ending:?}, {path:?}");
            if closes {
                for (by, flags) in after {
                    send(&lab, &path, by, flags);
                    assert_eq!(
                        everything(&lab).closed,
                        closed,
                        "{flags:#x} after {ending:?}"
                    );
                }
                // Its port anew: what is over is not over again.
                let again = cell.establish(&lab, Protocol::Tcp, port);
                let now = everything(&lab);
                assert_eq!(
                    (now.opened, now.closed),
                    (before.opened + 2, closed),
                    "{again:?}"
                );
            }
        }
        // Refused, and given up.
        for (by, flags) in [(Backend, RST | ACK), (Client, RST)] {
            port += 1;
            let before = everything(&lab);
            let path = cell.open(&lab, Protocol::Tcp, port);
            send(&lab, &path, by, flags);
            send(&lab, &path, by, flags);
            let now = everything(&lab);
            let expected = (before.opened + 1, before.closed + 1);
            assert_eq!((now.opened, now.closed), expected, "{path:?}");
        }
    }
    for cell in cells::direct() {
        // What is not seen of the backend: a reset is an end, the client's FIN none until its port is used
        // again.
        for (flags, closes) in [(RST, 1), (FIN | ACK, 0)] {
            port += 1;
            let before = everything(&lab);
            let path = cell.establish(&lab, Protocol::Tcp, port);
            for flags in [flags, ACK, flags] {
                send(&lab, &path, Client, flags);
            }
            assert_eq!(everything(&lab).closed, before.closed + closes, "{path:?}");
            let again = cell.establish(&lab, Protocol::Tcp, port);
            let now = everything(&lab);
            let expected = (before.opened + 2, before.closed + 1);
            assert_eq!((now.opened, now.closed), expected, "{again:?}");
        }
    }
    assert_eq!(everything(&lab).expired, 0);
    assert_eq!(everything(&lab).unrecorded, 0);
}

/// Makes entries too old; of those that there are, the ones whose bit is set in turn.
fn age(lab: &Lab, which: u8) {
    let hour = 2 * 3600 * lab.live().hz;
    for (number, flow) in (1..).zip(lab.client_flows()) {
        if which >> (number % 8) & 1 != 0 {
            lab.date_back(&flow, hour);
        }
    }
    lab.forget_copies();
}

const ALL: u8 = 0xff;

/// By a packet that finds it too old, or by the sweep, but not by both.
#[test]
fn a_connection_expires_once() {
    let lab = Lab::new(&every());
    for cell in cells::all() {
        for protocol in PROTOCOLS {
            let before = everything(&lab);
            let path = cell.establish(&lab, protocol, 1000);
            age(&lab, ALL);
            // The same again: another connection.
            send(&lab, &path, Client, ACK);
            let now = everything(&lab);
            let expected = (before.opened + 2, before.closed + 1, before.expired);
            assert_eq!((now.opened, now.closed, now.expired), expected, "{path:?}");
            lab.sweep();
            assert_eq!(everything(&lab), now, "{path:?}");
            age(&lab, ALL);
            lab.sweep();
            lab.sweep();
            let swept = Totals {
                expired: now.expired + 1,
                ..now
            };
            assert_eq!(everything(&lab), swept, "{path:?}");
            assert_eq!(lab.entries(), []);
        }
    }
}

/// Two VIPs, one backend, one client port: a connection that is too old makes room for another one's.
#[test]
fn a_connection_that_makes_room() {
    let both = "[[service]]\nname = \"both\"\nvip = [\"203.0.113.11\", \"203.0.113.12\", \
                \"2001:db8:1::11\", \"2001:db8:1::12\"]\nprotocol = [\"tcp\", \"udp\"]\nport = 80\n\
                forward = \"nat\"\n\
                [[service.backend]]\naddress = \"10.0.0.2\"\nport = 8080\n\
                [[service.backend]]\naddress = \"fd00::2\"\nport = 8080\n";
    let lab = Lab::new(both);
    for cell in cells::all().filter(|cell| cell.mode == Mode::Nat) {
        for protocol in PROTOCOLS {
            let before = everything(&lab);
            let first = cell.establish(&lab, protocol, 1000);
            age(&lab, ALL);
            let other_vip = Cell {
                mode: Mode::FullNat,
                ..cell
            }
            .vip();
            let request = first.request(SYN).with(|f| f.destination = other_vip);
            let sent = lab.send(CLIENTS, &request.bytes());
            assert_eq!(ends_of(&sent.bytes).0, first.seen, "its port");
            let now = everything(&lab);
            let expected = (before.opened + 2, before.closed + 1);
            assert_eq!((now.opened, now.closed), expected, "{first:?}");
            lab.sweep();
            assert_eq!(everything(&lab), now, "{first:?}");
            age(&lab, ALL);
            lab.sweep();
            assert_eq!(everything(&lab).expired, before.expired + 1, "{first:?}");
        }
    }
}

/// Each packet counts once, with its protocol and as long as it came, whatever encloses it on its way.
#[test]
fn packets_by_protocol() {
    let lab = Lab::new(&every());
    let classes = |lab: &Lab, id: u32| {
        let mut sums = [(0, 0, 0, 0); 4];
        for cpu in lab.per_cpu::<abi::traffic>("traffic", id) {
            for (sum, by) in sums.iter_mut().zip(&cpu.by) {
                sum.0 += by.packets_in;
                sum.1 += by.bytes_in;
                sum.2 += by.packets_out;
                sum.3 += by.bytes_out;
            }
        }
        sums
    };
    for cell in cells::all() {
        for (class, protocol) in PROTOCOLS.into_iter().enumerate() {
            let path = cell.establish(&lab, protocol, 1000);
            let backends = lab.desired.backends.iter();
            let of_service = |service: u32| lab.desired.services[&service].family;
            let mut ids = backends.filter(|(_, backend)| {
                let family = if cell.ipv6 { 6 } else { 4 };
                backend.address == cell.backend().ip()
                    && of_service(backend.service).number() == family
            });
            let id = *ids.next().expect("the cell's backend").0;
            let dress = Dress {
                tags: vec![(0x8100, 5)],
                padding: vec![0; 9],
            };
            let mut expected = classes(&lab, id);
            let long = |ends| {
                path.between(ends, ACK)
                    .with(|f| f.payload = vec![1; 300])
                    .packet()
            };
            let length = |frame: Vec<u8>| (frame.len() - dress.padding.len()) as u64;
            path.to_backend_in(&lab, "a packet", &dress, long);
            expected[class].0 += 1;
            expected[class].1 += length(path.sent(&dress, long));
            for n in 0..2 {
                let piece = |ends| long(ends).fragments(class as u32, 0, &[64])[n].clone();
                path.to_backend_in(&lab, "a fragment", &dress, piece);
                expected[class].0 += 1;
                expected[class].1 += length(path.sent(&dress, piece));
            }
            let error = |ends: cells::Ends| {
                let frame = path.back_between(ends, ACK);
                Icmp::TimeExceeded.about(ends.router, ends.server.ip(), &frame.packet().bytes())
            };
            path.to_backend_in(&lab, "an error", &dress, error);
            let icmp = abi::protocol_class::CLASS_ICMP.0 as usize;
            expected[icmp].0 += 1;
            expected[icmp].1 += length(path.sent(&dress, error));
            if !cell.mode.is_direct() {
                let reply = |ends| {
                    path.back_between(ends, ACK)
                        .with(|f| f.payload = vec![1; 500])
                        .packet()
                };
                path.to_client_in(&lab, "a reply", &dress, reply);
                expected[class].2 += 1;
                expected[class].3 += length(path.sent_back(&dress, reply));
            }
            assert_eq!(classes(&lab, id), expected, "{path:?}");
        }
    }
}

/// What may happen to connections.
#[derive(Debug, Clone)]
enum Event {
    Client(usize, u8),
    Backend(usize, u8),
    /// No packet for so long that those with a bit set are too old.
    Age(u8),
    Sweep,
    /// These of the backends are in the file from now on.
    Reload(u8),
    /// These have no next hop.
    Unresolved(u8),
    /// Whether new flows get entries.
    Room(bool),
}

fn event() -> impl Strategy<Value = Event> {
    let flags = prop::sample::select(
        &[
            SYN,
            SYN | ACK,
            ACK,
            ACK,
            PSH | ACK,
            FIN | ACK,
            RST,
            RST | ACK,
        ][..],
    );
    prop_oneof![
        12 => (0..FLOWS.len(), flags.clone()).prop_map(|(flow, flags)| Event::Client(flow, flags)),
        12 => (0..FLOWS.len(), flags).prop_map(|(flow, flags)| Event::Backend(flow, flags)),
        2 => prop_oneof![Just(ALL), any::<u8>()].prop_map(Event::Age),
        2 => Just(Event::Sweep),
        1 => any::<u8>().prop_map(Event::Reload),
        1 => any::<u8>().prop_map(Event::Unresolved),
        1 => any::<bool>().prop_map(Event::Room),
    ]
}

/// Client and VIP: flows that can meet at a backend, in every mode.
const FLOWS: [(&str, &str); 10] = [
    ("198.51.100.7:1000", "203.0.113.11:80"),
    ("198.51.100.7:1000", "203.0.113.21:80"),
    ("198.51.100.7:1001", "203.0.113.11:80"),
    ("[2001:db8:c::7]:1000", "[2001:db8:1::11]:80"),
    ("[2001:db8:c::7]:1000", "[2001:db8:1::21]:80"),
    ("198.51.100.7:1000", "203.0.113.12:80"),
    ("198.51.100.7:1001", "203.0.113.12:80"),
    ("[2001:db8:c::7]:1000", "[2001:db8:1::12]:80"),
    ("198.51.100.7:1000", "203.0.113.13:80"),
    ("198.51.100.7:1000", "203.0.113.14:80"),
];

/// Of each service, those of two backends whose bit is set.
fn services(which: u8) -> String {
    let mut text = String::new();
    for (nth, (forward, vips)) in [
        (
            "nat",
            "\"203.0.113.11\", \"203.0.113.21\", \"2001:db8:1::11\", \"2001:db8:1::21\"",
        ),
        ("full-nat", "\"203.0.113.12\", \"2001:db8:1::12\""),
        ("l2", "\"203.0.113.13\""),
        ("ipip", "\"203.0.113.14\""),
    ]
    .into_iter()
    .enumerate()
    {
        text += &format!(
            "[[service]]\nname = \"{forward}\"\nvip = [{vips}]\nprotocol = \"tcp\"\nport = 80\n\
             forward = \"{forward}\"\n"
        );
        for number in 0..2 {
            if which >> (2 * nth + number) & 1 == 0 {
                continue;
            }
            text += &format!("[[service.backend]]\naddress = \"10.0.0.{}\"\n", 2 + number);
            if forward.ends_with("nat") {
                text += &format!(
                    "port = 8080\n[[service.backend]]\naddress = \"fd00::{}\"\nport = 8080\n",
                    2 + number
                );
            }
        }
    }
    text
}

/// Of each service, connections opened less those closed or expired, and those that are there.
fn balance(lab: &Lab) -> BTreeMap<u32, (i64, i64)> {
    let entries = lab.entries();
    let services = lab.desired.services.keys().map(|&service| {
        let past: abi::traffic = lab.element("past", service);
        let mut open = past.opened as i64 - past.closed as i64;
        let mut alive = 0;
        let backends = lab.desired.backends.iter();
        for (&id, backend) in backends.filter(|(_, backend)| backend.service == service) {
            let sum = totals(lab, id);
            open += sum.opened as i64 - sum.closed as i64 - sum.expired as i64;
            let of_backend = entries
                .iter()
                .filter(|entry| !entry.is_reply && !["closing", "closed"].contains(&entry.state))
                .filter(|entry| entry.backend == id && entry.generation == backend.generation);
            alive += of_backend.count() as i64;
        }
        (service, (open, alive))
    });
    services.collect()
}

/// No connections, as in the beginning.
fn clear(lab: &Lab) {
    lab.clear_connections();
    for name in ["nat_ports", "nat_ports6"] {
        let map = lab.map(name);
        for key in map.keys().collect::<Vec<_>>() {
            map.delete(&key).expect("delete");
        }
    }
    lab.forget_copies();
}

/// A connection, as its last packets went.
#[derive(Debug, Clone, Copy)]
struct Way {
    seen: SocketAddr,
    backend: SocketAddr,
}

fn run(lab: &mut Lab, ways: &mut [Option<Way>], event: &Event) {
    match *event {
        Event::Client(flow, flags) => {
            let (client, vip) = FLOWS[flow];
            let frame = tcp(at(client), at(vip), flags).between(ROUTER, own_mac(CLIENTS));
            let (code, bytes) = lab.run(CLIENTS, &frame.bytes());
            const XDP_REDIRECT: u32 = 4;
            // Tunnels have no replies through us, and full-nat and nat two ends.
            if code == XDP_REDIRECT && flow < 8 {
                let (seen, backend) = ends_of(&bytes);
                ways[flow] = Some(Way { seen, backend });
            }
        }
        Event::Backend(flow, flags) => {
            let Some(way) = ways[flow] else { return };
            let frame = tcp(way.backend, way.seen, flags)
                .between(backend_mac(way.backend.ip()), own_mac(BACKENDS));
            lab.run(BACKENDS, &frame.bytes());
        }
        Event::Age(which) => age(lab, which),
        Event::Sweep => {
            lab.sweep();
        }
        Event::Reload(which) => lab.reload(&services(which)),
        Event::Unresolved(which) => {
            lab.hops.clear();
            for (bit, address) in ["10.0.0.2", "10.0.0.3", "fd00::2", "fd00::3"]
                .iter()
                .enumerate()
            {
                if which >> bit & 1 == 1 {
                    let address: IpAddr = crate::harness::ip(address);
                    lab.hops.insert(address, None);
                }
            }
            let present = lab.desired.clone();
            // The same file.
            let mut text = 0;
            for bit in 0..8 {
                let forward = ["nat", "full-nat", "l2", "ipip"][bit / 2];
                let address = crate::harness::ip(["10.0.0.2", "10.0.0.3"][bit % 2]);
                let there = present.backends.values().any(|backend| {
                    present.services[&backend.service].name == forward && backend.address == address
                });
                text |= u8::from(there) << bit;
            }
            lab.reload(&services(text));
        }
        Event::Room(has) => lab.limit_new_flows(if has { u32::MAX } else { 0 }),
    }
}

#[test]
fn opened_is_closed_and_alive() {
    let strategy = prop::collection::vec(event(), 1..60);
    let lab = std::cell::RefCell::new(Lab::new(&services(ALL)));
    check(150, &strategy, |events| {
        let mut lab = lab.borrow_mut();
        clear(&lab);
        lab.hops.clear();
        lab.limit_new_flows(u32::MAX);
        // The same ids each time.
        lab.reload("");
        lab.reload(&services(ALL));
        let before = balance(&lab);
        let mut ways = [None; FLOWS.len()];
        for (nth, event) in events.iter().enumerate() {
            run(&mut lab, &mut ways, event);
            for (service, (open, alive)) in balance(&lab) {
                let open = open - before[&service].0;
                let name = &lab.desired.services[&service];
                assert_eq!(
                    open,
                    alive,
                    "open and there, of {} {:?}, after event {nth}, {event:?}:\n{:#?}",
                    name.name,
                    name.family,
                    lab.entries()
                );
            }
        }
    });
}

/// The flow of a client of [`every`], which its entry has.
fn flow(path: &Path) -> Flow {
    Flow {
        source: (path.client.ip(), path.client.port()),
        destination: (path.cell.vip().ip(), path.port),
        protocol: path.protocol.number().0,
    }
}

/// A backend that goes takes its connections with it. What they have still to say does not count for the
/// one that gets its id.
#[test]
fn the_next_owner_of_an_id() {
    let mut lab = Lab::new(&every());
    let replaced = every()
        .replace("10.0.0.2", "10.0.0.20")
        .replace("fd00::2\"", "fd00::20\"");
    for cell in cells::all().filter(|cell| cell.mode == Mode::Nat) {
        for ending in [FIN | ACK, RST] {
            // Ids from the first on.
            lab.reload("");
            lab.reload(&every());
            let path = cell.establish(&lab, Protocol::Tcp, 1000);
            send(&lab, &path, Client, FIN | ACK);
            let id = lab.entry(&flow(&path)).expect("an entry").backend;
            // Without it, then with another, which gets the id.
            let none: String = every()
                .split("[[service]]")
                .filter(|service| !service.contains("name = \"nat\""))
                .collect::<Vec<_>>()
                .join("[[service]]");
            lab.reload(&none);
            lab.reload(&replaced);
            assert!(lab.desired.backends.contains_key(&id));
            let before: Vec<Totals> = lab
                .desired
                .backends
                .keys()
                .map(|&id| totals(&lab, id))
                .collect();
            let frame = path.sent_back(&Dress::default(), |ends| {
                path.back_between(ends, ending).packet()
            });
            lab.run(BACKENDS, &frame);
            let now: Vec<Totals> = lab
                .desired
                .backends
                .keys()
                .map(|&id| totals(&lab, id))
                .collect();
            assert_eq!(now, before, "{path:?}");
        }
    }
}
