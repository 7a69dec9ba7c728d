//! The firewall and connections: they remember the rule that let them in, are judged again when the rules
//! have changed, and count for the rule that let them in, which keeps its counts over reloads.

use libbpf_rs::{MapCore, MapFlags};
use xdplb::datapath::abi::{self, bytes_of};

use crate::harness::cells::{self, every, Cell, Dress, Mode, Path, PROTOCOLS};
use crate::harness::frame::{Protocol, ACK, DOT1AD, DOT1Q, FIN, PSH, RST, SYN};
use crate::harness::knock::{Kind, Knock};
use crate::harness::{Lab, Verdict, CLIENTS};

const DENIED: Verdict = Verdict::Drop("firewall");

const DENY_CLIENTS: &str = r#"
[[firewall.rule]]
name = "clients-v4"
action = "deny"
source = "198.51.100.0/24"
[[firewall.rule]]
name = "clients-v6"
action = "deny"
source = "2001:db8:c::/48"
"#;

fn with(firewall: &str) -> String {
    format!("{}\n{firewall}", every())
}

fn everywhere(lab: &Lab) -> Vec<Path> {
    cells::all()
        .flat_map(|cell| PROTOCOLS.map(|protocol| (cell, protocol)))
        .map(|(cell, protocol)| cell.establish(lab, protocol, 1000))
        .collect()
}

/// Packets of both sides, so many that the CPU has copies of the entries.
#[track_caller]
fn talk(lab: &Lab, path: &Path) {
    for _ in 0..3 {
        path.to_backend(lab, "a request", |ends| path.between(ends, ACK).packet());
        reply(lab, path);
    }
}

#[track_caller]
fn reply(lab: &Lab, path: &Path) {
    if !path.cell.mode.is_direct() {
        path.to_client(lab, "a reply", |ends| path.back_between(ends, ACK).packet());
    }
}

/// What the client sends is dropped, from the first packet on, whatever it is.
#[track_caller]
fn refused(lab: &Lab, path: &Path, verdict: Verdict) {
    for flags in [ACK, PSH | ACK, ACK, SYN, FIN | ACK, RST, ACK] {
        let sent = lab.send(CLIENTS, &path.request(flags).bytes());
        assert_eq!(sent.verdict, verdict, "flags {flags:#x}, {path:?}");
    }
}

#[test]
fn a_source_that_is_denied_now() {
    let mut lab = Lab::new(&every());
    let paths = everywhere(&lab);
    for path in &paths {
        talk(&lab, path);
    }
    lab.set_blocklist("list", &["198.51.100.7", "2001:db8:c::7"]);
    let blocklisted = Verdict::Drop("blocklisted");
    for (firewall, verdict) in [
        (DENY_CLIENTS, Some(DENIED)),
        ("", None),
        ("[firewall]\ndefault = \"deny\"", Some(DENIED)),
        // From one that has denied to another that does.
        (DENY_CLIENTS, Some(DENIED)),
        ("[firewall]\nblocklists = [\"list\"]", Some(blocklisted)),
        ("[[firewall.rule]]\naction = \"allow\"", None),
        (
            "[[firewall.rule]]\naction = \"deny\"\nport = 80\nsource_port = 1000",
            Some(DENIED),
        ),
        (
            "[[firewall.rule]]\naction = \"deny\"\nport = 80\nsource_port = 1001",
            None,
        ),
    ] {
        lab.reload(&with(firewall));
        for path in &paths {
            match verdict {
                None => talk(&lab, path),
                Some(verdict) => {
                    refused(&lab, path, verdict);
                    // What the backend has to say is said.
                    reply(&lab, path);
                }
            }
        }
    }
}

/// One that has nothing but a first packet yet.
#[test]
fn half_open_connections() {
    let mut lab = Lab::new(&every());
    let paths: Vec<Path> = cells::translated()
        .map(|cell| cell.open(&lab, Protocol::Tcp, 1000))
        .collect();
    lab.reload(&with(DENY_CLIENTS));
    for path in &paths {
        path.to_client(&lab, "SYN|ACK", |ends| {
            path.back_between(ends, SYN | ACK).packet()
        });
        refused(&lab, path, DENIED);
    }
    lab.reload(&every());
    for path in &paths {
        path.to_backend(&lab, "ACK", |ends| path.between(ends, ACK).packet());
        talk(&lab, path);
        let flow = xdplb::datapath::abi::Flow {
            source: (path.client.ip(), path.client.port()),
            destination: (path.cell.vip().ip(), path.port),
            protocol: 6,
        };
        let entry = lab.entry(&flow).expect("an entry");
        assert_eq!((entry.stage, entry.state), ("proven", "established"));
    }
}

/// Has the trie deny everybody behind the back of those that it has let in.
fn poison(lab: &Lab) {
    let denying = abi::fw_prefix {
        blocklist: 0,
        level: abi::xdplb_limit::NO_LEVEL.0,
    };
    let map = lab.map("fw_prefixes");
    for key in map.keys().collect::<Vec<_>>() {
        map.update(&key, bytes_of(&denying), MapFlags::ANY)
            .expect("update");
    }
}

/// Who was let in is not judged again, nor are replies ever.
#[test]
fn nobody_is_judged_while_nothing_changes() {
    let mut lab = Lab::new(&with("[[firewall.rule]]\naction = \"allow\"\n"));
    let paths = everywhere(&lab);
    for path in &paths {
        talk(&lab, path);
    }
    // The same file, other services, another neighbour: that is no other firewall.
    let admission = lab.live().admission;
    lab.reload(&with("[[firewall.rule]]\naction = \"allow\"\n"));
    let more = every().replace("\"nat\"\nvip", "\"renamed\"\nvip");
    lab.reload(&format!("{more}\n[[firewall.rule]]\naction = \"allow\"\n"));
    assert_eq!(lab.live().admission, admission);
    poison(&lab);
    for path in &paths {
        talk(&lab, path);
        for flags in [PSH | ACK, FIN | ACK, RST | ACK] {
            let sent = lab.send(CLIENTS, &path.request(flags).bytes());
            assert_eq!(sent.verdict, Verdict::Redirect, "{path:?}");
            reply(&lab, path);
        }
        let new = path.cell.path(path.protocol, path.cell.client_at(1001));
        let sent = lab.send(CLIENTS, &new.request(SYN).bytes());
        assert_eq!(sent.verdict, Verdict::Drop("blocklisted"), "{path:?}");
    }
}

fn cell(mode: Mode, ipv6: bool) -> Cell {
    let mut cells = cells::main_ways();
    let found = cells.find(|cell| cell.mode == mode && cell.ipv6 == ipv6);
    found.expect("a cell of that mode and family")
}

fn counted(lab: &Lab, rule: &str) -> (u64, u64) {
    let hits = lab.hits(lab.rule_id(rule));
    (hits.packets, hits.bytes)
}

/// Every packet of a client counts once, with the bytes that it has, for the rule that let it in: by the
/// first packet, from the CPU's copy, from the table, when it changes the connection, in fragments.
#[test]
fn what_connections_count() {
    let text = |name: &str, port: u16| {
        format!("[[firewall.rule]]\nname = \"{name}\"\naction = \"allow\"\nport = {port}\n")
    };
    let lab = Lab::new(&with(&(text("other", 81) + &text("web", 80))));
    // What is decided in between is another packet's.
    let others = std::cell::Cell::new(0);
    let other = |cell: Cell| {
        let knock = Knock {
            port: 81,
            ..Knock::at(cell, Kind::Tcp, cell.client_at(0).ip())
        };
        assert_eq!(knock.send(&lab), Verdict::Pass("unknown_port_passed"));
        others.set(others.get() + 1);
    };
    for cell in cells::all() {
        for protocol in PROTOCOLS {
            for dress in [
                Dress::default(),
                Dress {
                    tags: vec![(DOT1AD, 100), (DOT1Q, 200)],
                    padding: vec![0; 7],
                },
            ] {
                let port = if dress.tags.is_empty() { 1000 } else { 1001 };
                let path = cell.establish(&lab, protocol, port);
                for flags in [ACK, ACK, ACK, PSH | ACK, SYN | ACK, FIN | ACK, ACK, RST] {
                    other(cell);
                    let before = counted(&lab, "web");
                    let frame = path.sent(&dress, |ends| {
                        path.between(ends, flags)
                            .with(|f| f.payload = vec![1; 100])
                            .packet()
                    });
                    let sent = lab.send(CLIENTS, &frame);
                    assert_eq!(sent.verdict, Verdict::Redirect, "{path:?}");
                    let bytes = (frame.len() - dress.padding.len()) as u64;
                    let expected = (before.0 + 1, before.1 + bytes);
                    assert_eq!(counted(&lab, "web"), expected, "{flags:#x}, {path:?}");
                    reply(&lab, &path);
                    assert_eq!(counted(&lab, "web"), expected, "replies count for nobody");
                }
                // The same port anew, and what comes in fragments.
                let path = cell.establish(&lab, protocol, port + 10);
                for n in 0..3 {
                    other(cell);
                    let before = counted(&lab, "web");
                    let frame = path.sent(&dress, |ends| {
                        let frame = path.between(ends, ACK).with(|f| f.payload = vec![1; 200]);
                        let id = u32::from(port) + u32::from(protocol.number().0);
                        frame.packet().fragments(id, 0, &[64, 128])[n].clone()
                    });
                    let sent = lab.send(CLIENTS, &frame);
                    assert_eq!(sent.verdict, Verdict::Redirect, "{path:?}");
                    let bytes = (frame.len() - dress.padding.len()) as u64;
                    assert_eq!(counted(&lab, "web"), (before.0 + 1, before.1 + bytes));
                }
            }
        }
    }
    assert_eq!(counted(&lab, "other").0, others.get());
    assert_eq!(lab.hits(0).packets, 0);
}

/// What is denied, what is no connection, and what the default decides.
#[test]
fn what_the_others_count() {
    let lab = Lab::new(&with(
        "[firewall]\ndefault = \"allow\"\n\
         [[firewall.rule]]\nname = \"ping\"\naction = \"deny\"\nprotocol = \"icmp\"\n\
         [[firewall.rule]]\nname = \"gre\"\naction = \"allow\"\nprotocol = 47\n\
         [[firewall.rule]]\nname = \"closed\"\naction = \"allow\"\nport = 81\n\
         [[firewall.rule]]\nname = \"udp\"\naction = \"deny\"\nprotocol = \"udp\"\n",
    ));
    for (number, cell) in (1..).zip(cells::all()) {
        let source = cell.client_at(0).ip();
        for (kind, port) in [
            (Kind::Ping, 80),
            (Kind::Other(47), 80),
            (Kind::Udp, 80),
            (Kind::Tcp, 81),
            (Kind::Tcp, 80),
            (Kind::Other(112), 80),
        ] {
            Knock {
                port,
                ..Knock::at(cell, kind, source)
            }
            .send(&lab);
        }
        for rule in ["ping", "gre", "closed", "udp"] {
            assert_eq!(counted(&lab, rule).0, number, "{rule}, {cell:?}");
        }
        assert_eq!(lab.hits(0).packets, 2 * number, "{cell:?}");
    }
}

/// Rules that come, go and move around a rule: it goes on counting, for its connections too.
#[test]
fn counts_outlive_reloads() {
    let rule = |name: &str, conditions: &str| {
        let name = match name {
            "" => String::new(),
            name => format!("name = \"{name}\"\n"),
        };
        format!("[[firewall.rule]]\n{name}action = \"allow\"\n{conditions}\n")
    };
    let web = rule("web", "port = 80\nprotocol = \"tcp\"");
    // Without a name it is what it says that counts.
    let dns = rule("", "port = 80\nprotocol = \"udp\"");
    let (a, b) = (
        rule("a", "port = 81"),
        rule("b", "source = \"192.0.2.0/24\""),
    );
    let mut lab = Lab::new(&with(&(web.clone() + &dns)));
    let mut paths = Vec::new();
    for mode in [Mode::Nat, Mode::FullNat, Mode::Ipip] {
        for ipv6 in [false, true] {
            paths
                .extend(PROTOCOLS.map(|protocol| cell(mode, ipv6).establish(&lab, protocol, 1000)));
        }
    }
    let udp = |lab: &Lab| {
        let rules = &lab.desired.firewall.as_ref().expect("a firewall").rules;
        let mut rules = rules.iter();
        let found = rules.find(|(_, rule)| match rule {
            xdplb::state::firewall::Rule::File(_, rule) => {
                rule.protocol == xdplb::config::RuleProtocol::UDP
            }
            _ => false,
        });
        *found.expect("the rule for UDP").0
    };
    let ids = (lab.rule_id("web"), udp(&lab));
    let mut expected = (lab.hits(ids.0), lab.hits(ids.1));
    assert!(expected.0.packets >= 12 && expected.1.packets >= 12);
    for rules in [
        [&a, &web, &dns, &b],
        [&a, &b, &dns, &web],
        [&dns, &b, &a, &web],
        [&web, &dns, &String::new(), &String::new()],
        [&dns, &web, &a, &String::new()],
        [&b, &web, &dns, &a],
    ] {
        let text: String = rules.into_iter().cloned().collect();
        lab.reload(&with(&text));
        assert_eq!((lab.rule_id("web"), udp(&lab)), ids, "{text}");
        for path in &paths {
            let frame = path.request(ACK).bytes();
            for _ in 0..3 {
                let sent = lab.send(CLIENTS, &frame);
                assert_eq!(sent.verdict, Verdict::Redirect);
                let hits = match path.protocol {
                    Protocol::Tcp => &mut expected.0,
                    Protocol::Udp => &mut expected.1,
                };
                hits.packets += 1;
                hits.bytes += frame.len() as u64;
            }
        }
        let found = (lab.hits(ids.0), lab.hits(ids.1));
        let numbers = |hits: abi::hits| (hits.packets, hits.bytes);
        assert_eq!(numbers(found.0), numbers(expected.0), "{text}");
        assert_eq!(numbers(found.1), numbers(expected.1), "{text}");
    }
    // Another rule lets them in from now on.
    lab.reload(&with(&(rule("all", "") + &web + &dns)));
    for path in &paths {
        let sent = lab.send(CLIENTS, &path.request(ACK).bytes());
        assert_eq!(sent.verdict, Verdict::Redirect);
    }
    assert_eq!(counted(&lab, "all").0, paths.len() as u64);
    assert_eq!(lab.hits(ids.0).packets, expected.0.packets);
}
