//! `[[dos]]`: how many packets of a source come through, and the fate of the others.
//!
//! Where counts have to be exact, a second lasts a day: see [`slow_down`].

mod blocks;
mod bursts;
mod counted;
mod several;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use libbpf_rs::MapCore;
use xdplb::datapath::abi;

use crate::harness::cells::{every, Cell};
use crate::harness::knock::{Kind, Knock};
use crate::harness::{Lab, Verdict};

const LIMITED: Verdict = Verdict::Drop("rate_limited");
const BLOCKED: Verdict = Verdict::Drop("source_blocked");
const UNKNOWN_PORT: Verdict = Verdict::Pass("unknown_port_passed");

fn policy(name: &str, protocol: &str, keys: &str) -> String {
    format!("[[dos]]\nname = \"{name}\"\nprotocol = \"{protocol}\"\n{keys}\n")
}

fn with(policies: &str) -> String {
    format!("{}\n{policies}", every())
}

/// Slots of `dos_policies` and `dos_hits`: those of the protocols of [`Kind`].
fn slots(kind: Kind) -> std::ops::Range<u32> {
    let class = match kind {
        Kind::Tcp => abi::protocol_class::CLASS_TCP,
        Kind::Udp => abi::protocol_class::CLASS_UDP,
        Kind::Ping => abi::protocol_class::CLASS_ICMP,
        Kind::Other(_) => abi::protocol_class::CLASS_OTHER,
    };
    let limit = abi::xdplb_limit::POLICY_LIMIT.0;
    class.0 * limit..(class.0 + 1) * limit
}

/// Makes the limits in force those of a day, so that nothing comes back while a test runs. Until the next
/// reload.
fn slow_down(lab: &Lab) {
    for index in 0..lab.map("dos_policies").max_entries() {
        let mut policy: abi::dos_policy = lab.element("dos_policies", index);
        policy.interval *= 86400;
        policy.tolerance *= 86400;
        lab.set_element("dos_policies", index, &policy);
    }
}

/// What policies of that protocol have dropped, and how often they have blocked.
fn hits(lab: &Lab, kind: Kind) -> (u64, u64) {
    let all = slots(kind).flat_map(|slot| lab.per_cpu::<abi::policy_hits>("dos_hits", slot));
    all.fold((0, 0), |(dropped, blocked), hits| {
        (dropped + hits.dropped, blocked + hits.blocked)
    })
}

/// A source of the cell's family that no other number has; in IPv6 in a /64 of its own.
fn source(cell: Cell, number: u16) -> IpAddr {
    if cell.ipv6 {
        Ipv6Addr::new(0x2001, 0xdb8, 0xc, number, 0, 0, 0, 7).into()
    } else {
        let [high, low] = number.to_be_bytes();
        Ipv4Addr::new(10, 9, high, low).into()
    }
}

/// That so many packets come through and no more.
#[track_caller]
fn exhaust(lab: &Lab, knock: &Knock, count: usize, let_in: Verdict, then: Verdict) {
    for nth in 0..count {
        assert_eq!(
            knock.send(lab),
            let_in,
            "packet {nth} of {count}, {knock:?}"
        );
    }
    for nth in 0..4 {
        assert_eq!(
            knock.send(lab),
            then,
            "packet {nth} beyond {count}, {knock:?}"
        );
    }
}

/// Sends until it is blocked.
fn exhaust_quickly(lab: &Lab, knock: &Knock) {
    let blocked = (0..1000).any(|_| knock.send(lab) == BLOCKED);
    assert!(blocked, "{knock:?}");
}
