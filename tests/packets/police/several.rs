//! More than one policy: of a protocol, as many as there may be, and those of the file before.

use std::net::SocketAddr;

use super::{exhaust_quickly, policy, slow_down, source, with, BLOCKED, LIMITED};
use crate::harness::cells::{self, every, Mode};
use crate::harness::frame::{tcp, Protocol, ACK, FIN, PSH, RST, SYN};
use crate::harness::knock::{Kind, Knock};
use crate::harness::{own_mac, Lab, Verdict, CLIENTS, ROUTER};

/// Each counts what it counts; the first that has enough decides.
#[test]
fn several_policies_of_a_protocol() {
    let mut lab = Lab::new(&every());
    let syn = policy(
        "syn",
        "tcp",
        "tcp_flags = \"syn\"\nlimit = 3\naction = \"limit\"",
    );
    let all = policy("all", "tcp", "limit = 10\naction = \"limit\"");
    let reset = policy(
        "rst",
        "tcp",
        "tcp_flags = \"rst\"\nlimit = 2\naction = \"block\"",
    );
    for (number, policies) in (1..).zip([
        [&syn, &all, &reset],
        [&reset, &all, &syn],
        [&all, &reset, &syn],
    ]) {
        let text: String = policies.into_iter().cloned().collect();
        lab.reload(&every());
        let direct = || cells::main_ways().filter(|cell| cell.mode == Mode::Ipip);
        for cell in direct() {
            lab.reload(&every());
            lab.reload(&with(&text));
            slow_down(&lab);
            let of = |number| SocketAddr::new(source(cell, number), 1000);
            let send = |number, flags| {
                let frame = cell.path(Protocol::Tcp, of(number)).request(flags);
                lab.send(CLIENTS, &frame.bytes()).verdict
            };
            // Three SYNs, and not a fourth, while others come through to the tenth.
            for _ in 0..3 {
                assert_eq!(send(number, SYN), Verdict::Redirect, "{text}");
            }
            for _ in 0..3 {
                assert_eq!(send(number, SYN), LIMITED, "{text}");
            }
            let more = (0..10)
                .filter(|_| send(number, ACK) == Verdict::Redirect)
                .count();
            // A packet that one has enough of may have counted for another before.
            assert!((4..=7).contains(&more), "{more}, {text}");
            assert_eq!(send(number, ACK), LIMITED, "{text}");
            // What blocks, blocks all.
            let number = number + 100;
            for _ in 0..2 {
                assert_eq!(send(number, RST), Verdict::Redirect, "{text}");
            }
            assert_eq!(send(number, RST), BLOCKED, "{text}");
            for flags in [SYN, ACK, FIN] {
                assert_eq!(send(number, flags), BLOCKED, "{text}");
            }
        }
    }
}

/// As many policies as there may be, each by itself.
#[test]
fn eight_policies() {
    let flags = [
        "syn", "fin", "rst", "psh", "urg", "ack", "fin,psh", "fin,rst",
    ];
    let text: String = (1..)
        .zip(flags)
        .map(|(n, flags)| {
            let keys = format!("tcp_flags = \"{flags}\"\nlimit = {n}\naction = \"limit\"");
            policy(flags, "tcp", &keys)
        })
        .collect();
    let lab = Lab::new(&with(&text));
    slow_down(&lab);
    let cell = cells::main_ways().next().expect("a cell");
    for (n, bits) in (1_usize..).zip([SYN, FIN, RST, PSH, 0x20, ACK]) {
        let client = SocketAddr::new(source(cell, n as u16), 1000);
        let frame = tcp(client, cell.vip(), bits).between(ROUTER, own_mac(CLIENTS));
        let mut bytes = frame.bytes();
        bytes[frame.l4() + 13] = bits;
        let passed = (0..20).filter(|_| lab.send(CLIENTS, &bytes).verdict == Verdict::Redirect);
        assert_eq!(passed.count(), n, "flags {bits:#x}");
    }
}

/// What a reload does not change goes on as it was: who is blocked, and what has been used up.
#[test]
fn over_reloads() {
    let mut lab = Lab::new(&every());
    let block = policy(
        "block",
        "udp",
        "limit = 3\naction = \"block\"\nblock_for = \"1h\"",
    );
    let limit = policy(
        "limit",
        "tcp",
        "limit = 1\nburst = 1000\naction = \"limit\"",
    );
    let other = policy("other", "icmp", "limit = 1000\naction = \"limit\"");
    let cell = cells::main_ways().next().expect("a cell");
    let udp = Knock::at(cell, Kind::Udp, source(cell, 1));
    lab.reload(&with(&(block.clone() + &limit)));
    exhaust_quickly(&lab, &udp);
    for text in [
        block.clone() + &limit,
        limit.clone() + &block,
        block.clone() + &other,
        block.clone(),
        // Rules and services are something else.
        format!("{block}[[firewall.rule]]\naction = \"allow\"\n"),
    ] {
        lab.reload(&with(&text));
        assert_eq!(udp.send(&lab), BLOCKED, "{text}");
    }
    // Another policy by that name, and none.
    lab.reload(&with(&block.replace("limit = 3", "limit = 4")));
    assert_eq!(udp.send(&lab), Verdict::Redirect);
    exhaust_quickly(&lab, &udp);
    lab.reload(&every());
    for _ in 0..20 {
        assert_eq!(udp.send(&lab), Verdict::Redirect);
    }
}
