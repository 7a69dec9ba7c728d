//! `xdplb conns`, run as an operator runs it over the tables of a lab.

use std::io::{BufRead, BufReader, Read};

use libbpf_rs::{MapCore, MapFlags};
use serde_json::{json, Value};
use xdplb::datapath::abi::{self, conn_state, way_word};

use crate::commands::{json, pinned, printed, rows, Watch};
use crate::harness::cases::{self, Case, STANDARD};
use crate::harness::dialog::Dialog;
use crate::harness::frame::{Protocol, SYN};
use crate::harness::{at, ip, listed, Lab};

const WAYS: usize = abi::xdplb_limit::SET_WAYS.0 as usize;

/// A column of what it lists.
fn column<'a>(listed: &'a Value, key: &str) -> Vec<&'a str> {
    let rows = listed.as_array().expect("a list").iter();
    let mut column: Vec<&str> = rows.map(|row| row[key].as_str().expect("text")).collect();
    column.sort_unstable();
    column
}

#[test]
fn connections_are_listed_with_all_that_is_known_of_them() {
    let (lab, pins) = pinned();
    assert_eq!(json(&["conns", "--json"], &pins), json!([]));
    assert_eq!(
        rows(&printed(&["conns"], &pins)),
        ["Prot State Expires Client VIP Service Backend Address Source"]
    );
    let case = |full_nat, ipv6, protocol| Case {
        full_nat,
        ipv6,
        protocol,
    };
    case(false, true, Protocol::Tcp).open(&lab);
    let full = case(true, false, Protocol::Udp).establish(&lab);

    let mut seen = json(&["conns", "--json"], &pins);
    let seen = seen.as_array_mut().expect("a list");
    seen.sort_by_key(|row| row["protocol"].to_string());
    for row in &mut *seen {
        let left = row["expires"].take().as_f64().expect("seconds");
        assert!((1.0..3600.0).contains(&left), "{left}");
    }
    assert_eq!(
        *seen,
        [
            json!({"protocol": "tcp", "state": "opening", "expires": null,
                "client": "[2001:db8:c::7]:4242", "vip": "[2001:db8:1::11]:80", "service": "nat",
                "backend": "n6", "backend_address": "[fd00::2]:8080"}),
            json!({"protocol": "udp", "state": "udp", "expires": null,
                "client": "198.51.100.7:4242", "vip": "203.0.113.12:80", "service": "full",
                "backend": "f4", "backend_address": "10.0.0.3:8080", "source": full.seen.to_string()}),
        ]
    );
    let table = rows(&printed(&["conns", "--service", "full"], &pins));
    let row: Vec<&str> = table[1].split(' ').collect();
    let source = full.seen.to_string();
    assert_eq!(row[..2], ["UDP", "udp"]);
    assert!(row[2].ends_with('s'), "{row:?}");
    assert_eq!(
        row[3..],
        [
            "198.51.100.7:4242",
            "203.0.113.12:80",
            "full",
            "f4",
            "10.0.0.3:8080",
            &source
        ]
    );
}

#[test]
fn each_filter_lets_its_own_through() {
    let (lab, pins) = pinned();
    for case in cases::all() {
        case.establish(&lab);
    }
    let other = at("198.51.100.99:4242");
    Dialog::open(&lab, Protocol::Tcp, other, at("203.0.113.11:80")).to_backend(&lab, SYN);
    let clients = |arguments: &[&str]| {
        let listed = json(&[&["conns", "--json"], arguments].concat(), &pins);
        let count = printed(&[&["conns", "--count"], arguments].concat(), &pins);
        let clients = column(&listed, "backend").join(" ");
        assert_eq!(
            count.trim(),
            listed.as_array().expect("a list").len().to_string()
        );
        clients
    };
    assert_eq!(clients(&[]), "f4 f4 f6 f6 n4 n4 n4 n6 n6");
    assert_eq!(clients(&["--protocol", "udp"]), "f4 f6 n4 n6");
    assert_eq!(clients(&["--state", "opening"]), "n4");
    assert_eq!(clients(&["--state", "udp"]), "f4 f6 n4 n6");
    assert_eq!(clients(&["--client", "198.51.100.99"]), "n4");
    assert_eq!(clients(&["--client", "2001:db8:c::7"]), "f6 f6 n6 n6");
    assert_eq!(clients(&["--vip", "203.0.113.12"]), "f4 f4");
    assert_eq!(clients(&["--service", "full"]), "f4 f4 f6 f6");
    assert_eq!(clients(&["--backend", "n6"]), "n6 n6");
    assert_eq!(clients(&["--backend", "fd00::2"]), "n6 n6");
    assert_eq!(clients(&["--backend", "10.0.0.9"]), "");
    assert_eq!(
        clients(&[
            "--protocol",
            "tcp",
            "--service",
            "nat",
            "--state",
            "established"
        ]),
        "n4 n6"
    );
    let counted = json(&["conns", "--count", "--json"], &pins);
    assert_eq!(counted, json!({"count": 9}));
}

/// Direct connections, in every way of every set: as many as a pipe cannot hold.
fn fill(lab: &Lab) -> usize {
    let word = |address: &str| abi::words_of(ip(address))[3];
    let backend = lab.backend_id("n4");
    let seen = u64::from(lab.datapath.clock().now()) << way_word::WAY_AGE.0;
    let sets = lab.map("connections").max_entries();
    for index in 0..sets {
        let mut set = abi::set4::default();
        for way in 0..WAYS {
            set.way[way] = seen | u64::from(conn_state::CONN_ESTABLISHED.0);
            set.record[way].flow = abi::flow4 {
                saddr: word("198.51.100.2"),
                daddr: word("203.0.113.11"),
                sport: ((index as usize * WAYS + way) as u16).to_be(),
                dport: 80_u16.to_be(),
                protocol: 6,
                pad: [0; 3],
            };
            set.record[way].session = abi::session {
                backend,
                generation: lab.desired.backends[&backend].generation,
                forward: abi::forward_mode::FORWARD_IPIP.0 as u8,
                ..Default::default()
            };
        }
        lab.set_element("connections", index, &set);
    }
    sets as usize * WAYS
}

#[test]
fn many_connections_are_listed_once_each() {
    let mut lab = Lab::with_limits(STANDARD, 20_000);
    let pins = lab.pin();
    let count = fill(&lab);
    assert!(count >= 20_000);
    let seen = json(&["conns", "--json"], &pins);
    let mut clients = column(&seen, "client");
    assert_eq!(clients.len(), count);
    clients.dedup();
    assert_eq!(clients.len(), count);
    let table = printed(&["conns"], &pins);
    assert_eq!(table.lines().count(), count + 1);
    assert_eq!(printed(&["conns", "--count"], &pins), format!("{count}\n"));
    // The counts of other commands are of all of them too.
    let service = json(&["list", "--json"], &pins);
    assert_eq!(service[0]["backends"][0]["active"], count);
    let stats = json(&["stats", "--json"], &pins);
    assert_eq!(stats["protocols"][0]["active"], count);
}

/// Where nobody reads on it ends by itself, in every form, and nothing is wrong about it.
#[test]
fn it_ends_with_its_reader() {
    let mut lab = Lab::with_limits(STANDARD, 20_000);
    let pins = lab.pin();
    fill(&lab);
    for (arguments, first) in [
        (&["conns"][..], "Prot  State"),
        (&["conns", "--json"], "["),
        (&["conns", "--backend", "n4"], "Prot  State"),
    ] {
        let mut command = Watch::start(arguments, &pins);
        let mut reader = BufReader::new(command.0.stdout.take().expect("a pipe"));
        let mut line = String::new();
        reader.read_line(&mut line).expect("a line");
        assert!(line.starts_with(first), "{line:?}");
        // It waits for its reader, since a pipe does not hold it all.
        assert!(command.0.try_wait().expect("a child").is_none());
        drop(reader);
        assert_eq!(command.end(), (Some(0), String::new()), "{arguments:?}");
    }
    // Another fault of the output is told.
    let full = std::fs::OpenOptions::new()
        .write(true)
        .open("/dev/full")
        .expect("/dev/full");
    let mut command = crate::commands::xdplb(&["conns"], &pins);
    let output = command.stdout(full).output().expect("the program");
    let mut said = String::new();
    output
        .stderr
        .as_slice()
        .read_to_string(&mut said)
        .expect("UTF-8");
    assert_eq!(output.status.code(), Some(1));
    assert!(said.contains("cannot print"), "{said}");
}

/// A connection that moves from its set to `conntrack` is in both for a moment.
#[test]
fn a_connection_in_two_places_is_listed_once() {
    let mut lab = Lab::new(STANDARD);
    let pins = lab.pin();
    let view = xdplb::datapath::View::open(&pins).expect("a view");
    for case in cases::all() {
        let d = case.establish(&lab);
        let (name, key_of_set, size) = if case.ipv6 {
            ("connections6", "conntrack6", size_of::<abi::record6>())
        } else {
            ("connections", "conntrack", size_of::<abi::record4>())
        };
        // The way's word and the record, as the value of conntrack has them one after the other.
        let mut place = None;
        let map = lab.map(name);
        for index in 0..map.max_entries() {
            let bytes = map.lookup(&index.to_ne_bytes(), MapFlags::ANY);
            let set = bytes.expect("lookup").expect("an element");
            for way in 0..WAYS {
                let word = &set[8 * (1 + way)..][..8];
                let record = &set[8 * (1 + WAYS) + way * size..][..size];
                if word != [0; 8] {
                    place = Some([word, record].concat());
                }
            }
        }
        let place = place.expect("the connection");
        let flow = d.flow();
        let (address, port) = flow.source;
        let words = abi::words_of(address);
        let key = if case.ipv6 {
            let client = abi::client6 {
                address: words,
                port: port.to_be(),
                protocol: flow.protocol,
                index: 0,
                pad: 0,
            };
            abi::bytes_of(&client).to_vec()
        } else {
            let client = abi::client4 {
                address: words[3],
                port: port.to_be(),
                protocol: flow.protocol,
                index: 0,
            };
            abi::bytes_of(&client).to_vec()
        };
        lab.map(key_of_set)
            .update(&key, &place, MapFlags::ANY)
            .expect("room");
        let flows = |listed: Vec<xdplb::datapath::view::Connection>| -> Vec<abi::Flow> {
            listed
                .iter()
                .map(|connection| connection.entry.flow)
                .collect()
        };
        assert_eq!(flows(listed(&view)), [flow], "in both");
        lab.evict(&flow);
        assert_eq!(flows(listed(&view)), [flow], "in conntrack");
        lab.clear_connections();
        assert_eq!(flows(listed(&view)), []);
    }
}
