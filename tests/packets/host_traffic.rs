//! With everybody denied, everybody in a blocklist and one packet a second from each source: what is not for
//! a VIP passes all the same, and leaves no trace.

use std::net::IpAddr;

use xdplb::datapath::abi;

use crate::harness::cells::{self, every, Path, PROTOCOLS};
use crate::harness::frame::{tcp, udp, ACK, FIN, HOP_BY_HOP, PSH, RST, SYN};
use crate::harness::ip::{Ethernet, Icmp, Packet};
use crate::harness::knock::{Kind, Knock};
use crate::harness::{
    at, backend_mac, ip, own_mac, Lab, Verdict, BACKENDS, CLIENTS, OTHER, ROUTER,
};

const NOT_OURS: Verdict = Verdict::Pass("not_ours");

const EVERYTHING: &str = r#"
[firewall]
default = "deny"
blocklists = ["everybody"]
[[firewall.rule]]
name = "nobody"
action = "deny"
[[dos]]
name = "tcp"
protocol = "tcp"
limit = 1
action = "block"
[[dos]]
name = "udp"
protocol = "udp"
limit = 1
action = "limit"
[[dos]]
name = "icmp"
protocol = "icmp"
limit = 1
action = "block"
"#;

/// This host, a client, a backend, a router and a server of the world, in each family.
const ADDRESSES: [[&str; 5]; 2] = [
    [
        "10.0.0.1",
        "198.51.100.7",
        "10.0.0.2",
        "10.0.0.254",
        "192.0.2.80",
    ],
    [
        "fd00::1",
        "2001:db8:c::7",
        "fd00::2",
        "fd00::254",
        "2001:db8:f::80",
    ],
];

/// A packet that is none of a balancer's business.
struct Stray {
    what: String,
    slot: u16,
    packet: Packet,
}

fn strays() -> Vec<Stray> {
    let mut all = Vec::new();
    let mut add = |what: &str, slot, packet: Packet| {
        let what = format!("{what}, {} -> {}", packet.source, packet.destination);
        all.push(Stray { what, slot, packet });
    };
    for [host, client, backend, router, server] in ADDRESSES {
        let v6 = ip(host).is_ipv6();
        let to = |address: &str, port: u16| (ip(address), port).into();
        // SSH, BGP, HTTPS of this host and that it fetches itself, from anybody.
        for (from, slot) in [
            (client, CLIENTS),
            (router, OTHER),
            (server, CLIENTS),
            (backend, BACKENDS),
        ] {
            for port in [22, 179, 443, 80, 8080] {
                for flags in [SYN, SYN | ACK, ACK, PSH | ACK, FIN | ACK, RST] {
                    for (source, destination) in [(50000, port), (port, 50000)] {
                        let segment = tcp(to(from, source), to(host, destination), flags);
                        add("TCP", slot, segment.packet());
                    }
                }
            }
            // DNS and NTP both ways, BFD, VXLAN.
            for (source, destination) in [
                (53, 50000),
                (50000, 53),
                (123, 123),
                (49152, 3784),
                (5, 4789),
            ] {
                let datagram = udp(to(from, source), to(host, destination), b"datagram");
                add("UDP", slot, datagram.with(|f| f.ttl = 255).packet());
            }
            for kind in [Icmp::EchoRequest, Icmp::EchoReply] {
                add(
                    "ping",
                    slot,
                    kind.message(ip(from), ip(host), [0, 1, 0, 1], b"ping"),
                );
            }
            let own = tcp(to(host, 50000), to(server, 443), SYN).packet().bytes();
            for kind in Icmp::ERRORS {
                add("an error", slot, kind.about(ip(from), ip(host), &own));
            }
            // IPIP, GRE, ESP, AH, OSPF, VRRP, SCTP, to the host itself.
            for protocol in [4, 41, 47, 50, 51, 89, 112, 132] {
                add(
                    "a protocol",
                    slot,
                    Packet::new(ip(from), ip(host), protocol, vec![1; 40]),
                );
            }
            let long = udp(to(from, 53), to(host, 50000), &[7; 200]).packet();
            for piece in long.fragments(9, 0, &[64, 128]) {
                add("a fragment", slot, piece);
            }
        }
        // Through this host, by whom it is a router for.
        for (from, destination, slot) in [
            (client, server, CLIENTS),
            (backend, server, BACKENDS),
            (backend, client, BACKENDS),
            (server, backend, CLIENTS),
            (client, backend, CLIENTS),
        ] {
            let segment = tcp(to(from, 50000), to(destination, 443), SYN);
            add("forwarded", slot, segment.packet());
            let datagram = udp(to(from, 50000), to(destination, 53), b"query");
            add("forwarded", slot, datagram.packet());
            add(
                "forwarded",
                slot,
                Icmp::EchoRequest.message(ip(from), ip(destination), [0; 4], b"ping"),
            );
            add(
                "forwarded",
                slot,
                Packet::new(ip(from), ip(destination), 47, vec![1; 40]),
            );
        }
        // Routing protocols: OSPF, PIM, VRRP, EIGRP; RIP and LDP.
        for (protocol, v4_group, v6_group) in [
            (89, "224.0.0.5", "ff02::5"),
            (103, "224.0.0.13", "ff02::d"),
            (112, "224.0.0.18", "ff02::12"),
            (88, "224.0.0.10", "ff02::a"),
            (2, "224.0.0.22", "ff02::16"),
        ] {
            let group = ip(if v6 { v6_group } else { v4_group });
            for from in [router, backend] {
                let packet = Packet::new(ip(from), group, protocol, vec![1; 24]);
                add("routing", BACKENDS, packet.with(|p| p.ttl = 255));
            }
        }
        for (port, v4_group, v6_group) in
            [(520, "224.0.0.9", "ff02::9"), (646, "224.0.0.2", "ff02::2")]
        {
            let group = if v6 { v6_group } else { v4_group };
            add(
                "routing",
                CLIENTS,
                udp(to(router, port), to(group, port), b"routes").packet(),
            );
        }
    }
    // DHCP, before there is an address and after.
    for (from, destination) in [
        ("0.0.0.0:68", "255.255.255.255:67"),
        ("10.0.0.254:67", "255.255.255.255:68"),
        ("10.0.0.254:67", "10.0.0.1:68"),
        ("[fe80::1]:546", "[ff02::1:2]:547"),
        ("[fe80::254]:547", "[fe80::1]:546"),
    ] {
        add(
            "DHCP",
            CLIENTS,
            udp(at(from), at(destination), &[1; 240]).packet(),
        );
    }
    // Neighbour and router discovery, from an address and without.
    for (kind, from, destination) in [
        (133, "::", "ff02::2"),
        (134, "fe80::254", "ff02::1"),
        (135, "fe80::254", "ff02::1:ff00:1"),
        (135, "::", "ff02::1:ff00:11"),
        (135, "fe80::254", "fe80::1"),
        (135, "fd00::2", "fd00::1"),
        (136, "fd00::254", "fd00::1"),
        (136, "fd00::2", "ff02::1"),
        (137, "fe80::254", "fd00::1"),
    ] {
        let mut packet = Icmp::EchoRequest.message(ip(from), ip(destination), [0; 4], &[0; 24]);
        packet.payload[0] = kind;
        add("discovery", BACKENDS, packet.with(|p| p.ttl = 255));
    }
    // Multicast listener discovery: behind a router alert (RFC 3810, section 5).
    for kind in [130, 131, 143] {
        let mut packet = Icmp::EchoRequest.message(ip("fe80::2"), ip("ff02::16"), [0; 4], &[0; 20]);
        packet.payload[0] = kind;
        packet.extensions = vec![(HOP_BY_HOP, vec![0, 5, 2, 0, 0, 1, 0])];
        add("MLD", BACKENDS, packet.with(|p| p.ttl = 1));
    }
    all
}

fn establish(lab: &Lab) -> Vec<Path> {
    cells::all()
        .flat_map(|cell| PROTOCOLS.map(|protocol| (cell, protocol)))
        .map(|(cell, protocol)| cell.establish(lab, protocol, 1000))
        .collect()
}

/// The sources that policies have met.
fn met(lab: &Lab) -> usize {
    (0..lab.live().source_sets)
        .flat_map(|set| lab.element::<abi::dos_set>("dos_sources", set).ways)
        .filter(|way| way.family != 0)
        .count()
}

#[test]
fn passes_untouched() {
    let mut lab = Lab::new(&every());
    lab.set_blocklist("everybody", &["0.0.0.0/0", "::/0"]);
    let paths = establish(&lab);
    lab.reload(&format!("{}\n{EVERYTHING}", every()));
    for _ in 0..3 {
        for stray in strays() {
            for tags in [vec![], vec![(0x8100, 0x2064)]] {
                let ethernet = Ethernet {
                    to: own_mac(stray.slot),
                    from: ROUTER,
                    tags,
                };
                let frame = ethernet.carrying(&stray.packet);
                let verdict = lab.send(stray.slot, &frame).verdict;
                assert_eq!(verdict, NOT_OURS, "{}", stray.what);
            }
        }
        // ARP, LLDP, LACP, spanning tree.
        for ethertype in [0x0806_u16, 0x88cc, 0x8809, 38] {
            let mut frame = vec![0xff; 12];
            frame.extend(ethertype.to_be_bytes());
            frame.resize(60, 1);
            let verdict = lab.send(CLIENTS, &frame).verdict;
            assert_eq!(verdict, Verdict::Pass("not_ip"), "{ethertype:#x}");
        }
        // What backends answer to those who were let in before.
        for path in paths.iter().filter(|path| !path.cell.mode.is_direct()) {
            for flags in [ACK, PSH | ACK] {
                path.to_client(&lab, "a reply", |ends| {
                    path.back_between(ends, flags).packet()
                });
            }
            let backend: IpAddr = path.cell.backend().ip();
            let stray = path
                .back_between(path.inside(), ACK)
                .with(|f| f.destination.set_port(9))
                .between(backend_mac(backend), own_mac(BACKENDS));
            let verdict = lab.send(BACKENDS, &stray.bytes()).verdict;
            assert_eq!(verdict, NOT_OURS, "of no connection, {path:?}");
        }
    }
    assert_eq!(met(&lab), 0, "sources that policies have met");
    let rules = lab
        .desired
        .firewall
        .as_ref()
        .expect("a firewall")
        .rules
        .keys();
    for &rule in rules {
        assert_eq!(lab.hits(rule).packets, 0, "rule {rule}");
    }
    // It is in force, all of it.
    for path in &paths {
        for kind in [Kind::Tcp, Kind::Udp, Kind::Ping, Kind::Other(112)] {
            let knock = Knock::at(path.cell, kind, path.client.ip());
            assert_eq!(knock.send(&lab), Verdict::Drop("blocklisted"), "{knock:?}");
        }
    }
}

/// Limits alone: who answers clients has none, however much it has to say.
#[test]
fn backends_have_no_limit() {
    let mut lab = Lab::new(&every());
    let paths = establish(&lab);
    let limits: String = EVERYTHING
        .split("[[dos]]")
        .skip(1)
        .map(|policy| format!("[[dos]]{policy}"))
        .collect();
    lab.reload(&format!("{}\n{limits}", every()));
    for path in paths.iter().filter(|path| !path.cell.mode.is_direct()) {
        for _ in 0..20 {
            path.to_client(&lab, "a reply", |ends| {
                path.back_between(ends, ACK).packet()
            });
        }
        for kind in Icmp::ERRORS {
            path.to_client(&lab, "an error", |ends| {
                let frame = path.between(ends, ACK);
                kind.about(ends.router, ends.client.ip(), &frame.packet().bytes())
            });
        }
    }
    for stray in strays() {
        let ethernet = Ethernet {
            to: own_mac(stray.slot),
            from: ROUTER,
            tags: vec![],
        };
        let verdict = lab
            .send(stray.slot, &ethernet.carrying(&stray.packet))
            .verdict;
        assert_eq!(verdict, NOT_OURS, "{}", stray.what);
    }
    assert_eq!(met(&lab), 0, "sources that policies have met");
    // Clients have.
    let path = &paths[0];
    path.to_backend(&lab, "the first", |ends| path.between(ends, ACK).packet());
    let verdict = lab.send(CLIENTS, &path.request(ACK).bytes()).verdict;
    assert_eq!(verdict, Verdict::Drop("source_blocked"));
    assert_eq!(met(&lab), 1);
}
