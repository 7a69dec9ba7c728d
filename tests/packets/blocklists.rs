//! Blocklists: asked before every rule, for prefixes that contain each other in any way.

use crate::harness::cells::{self, every, every_port, Cell, Mode};
use crate::harness::knock::{Kind, Knock};
use crate::harness::{ip, Lab, Verdict};

const DENIED: Verdict = Verdict::Drop("firewall");
const BLOCKLISTED: Verdict = Verdict::Drop("blocklisted");

fn with(firewall: &str) -> String {
    format!("{}\n[firewall]\n{firewall}", every_port())
}

fn rule(action: &str, conditions: &str) -> String {
    format!("[[firewall.rule]]\naction = \"{action}\"\n{conditions}\n")
}

/// From that source, by the way of each mode.
fn knocks(source: &str) -> impl Iterator<Item = Knock> {
    let source = ip(source);
    let kinds = [Kind::Tcp, Kind::Udp, Kind::Ping, Kind::Other(47)];
    cells::main_ways()
        .filter(move |cell| cell.ipv6 == source.is_ipv6())
        .flat_map(move |cell| kinds.map(|kind| Knock::at(cell, kind, source)))
}

#[track_caller]
fn check(lab: &Lab, source: &str, expected: Option<Verdict>) {
    for knock in knocks(source) {
        let expected = expected.unwrap_or(knock.let_in());
        assert_eq!(knock.send(lab), expected, "{knock:?}");
    }
}

#[test]
fn of_both_families() {
    let mut lab = Lab::new(&every_port());
    lab.set_blocklist(
        "list",
        &[
            "198.51.100.128/25",
            "192.0.2.7",
            "2001:db8:bad::/48",
            "2001:db8:c::7",
        ],
    );
    for default in ["allow", "deny"] {
        lab.reload(&with(&format!(
            "default = \"{default}\"\nblocklists = [\"list\"]"
        )));
        let others = (default == "deny").then_some(DENIED);
        for (source, listed) in [
            ("198.51.100.127", false),
            ("198.51.100.128", true),
            ("198.51.100.255", true),
            ("198.51.101.128", false),
            ("192.0.2.6", false),
            ("192.0.2.7", true),
            ("192.0.2.8", false),
            ("2001:db8:bac:ffff::1", false),
            ("2001:db8:bad::", true),
            ("2001:db8:bad:ffff::ffff", true),
            ("2001:db8:bae::", false),
            ("2001:db8:c::6", false),
            ("2001:db8:c::7", true),
            ("2001:db8:c::8", false),
        ] {
            let expected = if listed { Some(BLOCKLISTED) } else { others };
            check(&lab, source, expected);
        }
    }
}

/// All of a family, and nothing of the other.
#[test]
fn of_everybody() {
    let mut lab = Lab::new(&every_port());
    for (list, ipv4, ipv6) in [
        ("0.0.0.0/0", Some(BLOCKLISTED), None),
        ("::/0", None, Some(BLOCKLISTED)),
    ] {
        lab.set_blocklist("list", &[list]);
        lab.reload(&with("blocklists = [\"list\"]"));
        check(&lab, "198.51.100.7", ipv4);
        check(&lab, "10.1.2.3", ipv4);
        check(&lab, "2001:db8:c::7", ipv6);
        check(&lab, "::2", ipv6);
    }
    lab.set_blocklist("list", &[]);
    lab.reload(&with("blocklists = [\"list\"]"));
    check(&lab, "198.51.100.7", None);
    check(&lab, "2001:db8:c::7", None);
}

/// No rule helps who is in one, be its prefix longer, shorter or the same, and be it first in the file.
#[test]
fn rules_in_them_and_around_them() {
    let mut lab = Lab::new(&every_port());
    lab.set_blocklist("list", &["198.51.100.0/24", "2001:db8:c::/48"]);
    for source in [
        "198.51.100.7",
        "198.51.100.0/24",
        "198.51.0.0/16",
        "0.0.0.0/0",
        "2001:db8:c::7",
        "2001:db8:c::/48",
        "2001:db8::/32",
        "::/0",
    ] {
        for action in ["allow", "deny"] {
            lab.reload(&with(&format!(
                "default = \"deny\"\nblocklists = [\"list\"]\n{}",
                rule(action, &format!("source = \"{source}\""))
            )));
            check(&lab, "198.51.100.7", Some(BLOCKLISTED));
            check(&lab, "198.51.100.8", Some(BLOCKLISTED));
            check(&lab, "2001:db8:c::7", Some(BLOCKLISTED));
            check(&lab, "2001:db8:c:1::7", Some(BLOCKLISTED));
            // Beside it the rule counts.
            for (beside, within) in [
                ("198.51.7.7", ["198.51.0.0/16", "0.0.0.0/0"]),
                ("2001:db8:d::7", ["2001:db8::/32", "::/0"]),
            ] {
                let allowed = action == "allow" && within.contains(&source);
                check(&lab, beside, if allowed { None } else { Some(DENIED) });
            }
        }
    }
    // A rule without a source, and the list alone.
    lab.reload(&with(&format!(
        "blocklists = [\"list\"]\n{}",
        rule("allow", "")
    )));
    check(&lab, "198.51.100.7", Some(BLOCKLISTED));
    check(&lab, "198.51.7.7", None);
}

/// Prefixes of lists that lie in one another: one that goes leaves the others' in force.
#[test]
fn lists_in_lists() {
    let mut lab = Lab::new(&every_port());
    let lists = ["wide", "narrow", "one"];
    lab.set_blocklist("wide", &["198.51.0.0/16", "2001:db8:c::/48"]);
    lab.set_blocklist("narrow", &["198.51.100.0/24", "2001:db8:c:1::/64"]);
    lab.set_blocklist("one", &["198.51.100.7", "2001:db8:c:1::7", "198.51.0.0/16"]);
    for which in 0..8_u32 {
        let has = |list: &str| {
            let at = lists.iter().position(|name| *name == list);
            which >> at.expect("one of them") & 1 == 1
        };
        let named: Vec<String> = lists
            .iter()
            .filter(|list| has(list))
            .map(|list| format!("\"{list}\""))
            .collect();
        lab.reload(&with(&format!("blocklists = [{}]", named.join(", "))));
        for (source, listed) in [
            ("198.51.7.7", has("wide") || has("one")),
            ("198.51.100.8", which != 0),
            ("198.51.100.7", which != 0),
            ("198.52.100.7", false),
            ("2001:db8:c:2::7", has("wide")),
            ("2001:db8:c:1::8", has("wide") || has("narrow")),
            ("2001:db8:c:1::7", which != 0),
            ("2001:db8:d:1::7", false),
        ] {
            check(&lab, source, listed.then_some(BLOCKLISTED));
        }
    }
}

/// Ports without a service and fragments are no way past.
#[test]
fn whatever_the_packet() {
    let mut lab = Lab::new(&every());
    lab.set_blocklist("list", &["198.51.100.7", "2001:db8:c::7"]);
    lab.datapath_keys += "\nunknown_port = \"reject\"";
    lab.reload(&format!("{}\n[firewall]\nblocklists = [\"list\"]", every()));
    for cell in cells::all() {
        for kind in [Kind::Tcp, Kind::Udp, Kind::Ping, Kind::Other(112)] {
            for port in [80, 81] {
                let knock = Knock {
                    port,
                    ..Knock::at(cell, kind, cell.client_at(0).ip())
                };
                assert_eq!(knock.send(&lab), BLOCKLISTED, "{knock:?}");
            }
        }
    }
    assert_eq!(lab.entries(), []);
}

/// A packet counts for the list with the shortest prefix around its source: what that list denies, the
/// others do not get to see.
#[test]
fn what_they_count() {
    let mut lab = Lab::new(&every_port());
    lab.set_blocklist("/lists/a", &["198.51.100.0/24"]);
    lab.set_blocklist("/lists/b", &["198.51.100.7", "192.0.2.0/24"]);
    let text = with("blocklists = [\"/lists/a\", \"/lists/b\"]");
    lab.reload(&text);
    let nat = |cell: &Cell| cell.mode == Mode::Nat && !cell.ipv6;
    let cell = cells::main_ways().find(nat).expect("nat");
    let send = |lab: &Lab, source| {
        let verdict = Knock::at(cell, Kind::Tcp, ip(source)).send(lab);
        assert_eq!(verdict, BLOCKLISTED);
    };
    for source in ["198.51.100.7", "198.51.100.8", "192.0.2.1"] {
        send(&lab, source);
    }
    let counted = |lab: &Lab| {
        ["/lists/a", "/lists/b"].map(|path| {
            let hits = lab.hits(lab.rule_id(path));
            (hits.packets, hits.bytes)
        })
    };
    // Ethernet, IPv4, TCP.
    assert_eq!(counted(&lab), [(2, 2 * 54), (1, 54)]);
    // They go on counting when they hold something else, and in another order.
    lab.set_blocklist("/lists/a", &["203.0.113.128/25"]);
    lab.reload(&with("blocklists = [\"/lists/b\", \"/lists/a\"]"));
    send(&lab, "198.51.100.7");
    send(&lab, "203.0.113.200");
    assert_eq!(counted(&lab), [(3, 3 * 54), (2, 2 * 54)]);
}
