//! Packets that are not for a VIP: all of them reach the host's stack unchanged, and so do those that no
//! balancer has business with although it is for a VIP.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use xdplb::state::filter;
use xxhash_rust::xxh64::xxh64;

use crate::harness::cases::{self, STANDARD};
use crate::harness::cells::{self, PROTOCOLS};
use crate::harness::frame::{
    fix_ipv4_checksum, tcp, udp, Frame, Protocol, ACK, FRAGMENT, PSH, RST, SYN,
};
use crate::harness::{
    at, backend_mac, ip, own_mac, Lab, Verdict, BACKENDS, CLIENTS, FOREIGN, ROUTER,
};

const NOT_OURS: Verdict = Verdict::Pass("not_ours");

/// The addresses of one family: a VIP, this host, a client, a backend.
const ADDRESSES: [[&str; 4]; 2] = [
    ["203.0.113.11", "10.0.0.1", "198.51.100.7", "10.0.0.2"],
    ["2001:db8:1::11", "fd00::1", "2001:db8:c::7", "fd00::2"],
];

fn to(address: &str, port: u16) -> SocketAddr {
    SocketAddr::new(ip(address), port)
}

/// The frame as it were of another IP protocol.
fn of_protocol(frame: &Frame, protocol: u8) -> Vec<u8> {
    let mut bytes = frame.bytes();
    match frame.source {
        SocketAddr::V4(_) => {
            bytes[frame.l3() + 9] = protocol;
            fix_ipv4_checksum(&mut bytes, frame.l3());
        }
        SocketAddr::V6(_) => bytes[frame.l3() + 6] = protocol,
    }
    bytes
}

/// Backends are a router's clients, too: what they say on their own account, and what they get for it, is
/// no reply, whatever connections there are. What is a reply stays one.
#[test]
fn what_backends_say_on_their_own_account() {
    let lab = Lab::new(STANDARD);
    for cell in cells::translated() {
        for protocol in PROTOCOLS {
            let frame = |from: SocketAddr, to: SocketAddr, slot| {
                let frame = match protocol {
                    Protocol::Tcp => tcp(from, to, ACK),
                    Protocol::Udp => udp(from, to, b"datagram"),
                };
                let sender = match slot {
                    BACKENDS => backend_mac(from.ip()),
                    _ => ROUTER,
                };
                frame.between(sender, own_mac(slot)).bytes()
            };
            let backend = cell.backend();
            let own = SocketAddr::new(backend.ip(), 40000);
            let (client, stranger) = (cell.client_at(1000), cell.client_at(1001));
            let passed_on = |what: &str| {
                for (from, to) in [(own, client), (own, stranger), (backend, stranger)] {
                    let there = lab.send(BACKENDS, &frame(from, to, BACKENDS)).verdict;
                    assert_eq!(there, NOT_OURS, "{what}, {from} to {to}, {cell:?}");
                    let back = lab.send(CLIENTS, &frame(to, from, CLIENTS)).verdict;
                    assert_eq!(back, NOT_OURS, "{what}, {to} to {from}, {cell:?}");
                }
            };
            passed_on("before the first connection");
            let path = cell.open(&lab, protocol, 1000);
            passed_on("beside a connection without a reply");
            path.to_client(&lab, "the first reply", |ends| {
                path.back_between(ends, SYN | ACK).packet()
            });
            path.to_backend(&lab, "and on", |ends| path.between(ends, ACK).packet());
            passed_on("beside a connection");
            path.to_client(&lab, "another reply", |ends| {
                path.back_between(ends, ACK).packet()
            });
            // A backend that is a client of a VIP is one like any other.
            let to_vip = lab.send(BACKENDS, &frame(own, cell.vip(), BACKENDS));
            assert_eq!(to_vip.verdict, Verdict::Tx, "{cell:?}");
        }
    }
}

#[test]
fn this_hosts_own_traffic() {
    let lab = Lab::new(STANDARD);
    for [_, host, client, backend] in ADDRESSES {
        for (from, slot) in [(client, CLIENTS), (backend, BACKENDS)] {
            for port in [22, 179, 80, 8080] {
                for flags in [SYN, ACK, PSH | ACK, RST] {
                    for (source, destination) in [(50000, port), (port, 50000)] {
                        let frame = tcp(to(from, source), to(host, destination), flags)
                            .between(ROUTER, own_mac(slot));
                        assert_eq!(lab.send(slot, &frame.bytes()).verdict, NOT_OURS);
                    }
                }
                let frame = udp(to(from, port), to(host, port), b"datagram");
                assert_eq!(lab.send(slot, &frame.bytes()).verdict, NOT_OURS);
            }
            // ICMP, IGMP, GRE, ESP, AH, ICMPv6, OSPF, VRRP, SCTP, and all others.
            for protocol in (0..=255).filter(|protocol| ![6, 17].contains(protocol)) {
                let frame = udp(to(from, 1), to(host, 1), &[0; 40]);
                let sent = lab.send(slot, &of_protocol(&frame, protocol));
                assert_eq!(sent.verdict, NOT_OURS, "protocol {protocol} from {from}");
            }
        }
    }
    assert_eq!(lab.entries(), []);
}

#[test]
fn routing_protocols_between_neighbours() {
    let lab = Lab::new(STANDARD);
    // From a backend's address: routers and balancers may be one machine.
    for (source, group, protocol) in [
        ("10.0.0.2", "224.0.0.18", 112),
        ("10.0.0.2", "224.0.0.5", 89),
        ("10.0.0.2", "224.0.0.22", 2),
        ("198.51.100.1", "224.0.0.18", 112),
        ("fd00::2", "ff02::12", 112),
        ("fd00::2", "ff02::5", 89),
        ("fd00::2", "ff02::1:ff00:11", 58),
        ("fe80::1", "ff02::1", 58),
    ] {
        let frame = udp(to(source, 1), to(group, 1), &[0; 24]).with(|f| f.ttl = 255);
        let sent = lab.send(BACKENDS, &of_protocol(&frame, protocol));
        assert_eq!(sent.verdict, NOT_OURS, "{source} -> {group}");
    }
    for (source, destination) in [
        ("10.0.0.2:179", "10.0.0.1:40000"),
        ("[fd00::2]:179", "[fd00::1]:40000"),
    ] {
        let frame = tcp(at(source), at(destination), PSH | ACK).with(|f| f.ttl = 1);
        assert_eq!(lab.send(BACKENDS, &frame.bytes()).verdict, NOT_OURS);
    }
}

#[test]
fn what_is_not_ip() {
    let lab = Lab::new(STANDARD);
    // ARP, RARP, LLDP, EAPOL, MPLS, PPPoE, LACP, MACsec, IPX, Wake-on-LAN.
    for ethertype in [
        0x0806_u16, 0x8035, 0x88cc, 0x888e, 0x8847, 0x8864, 0x8809, 0x88e5, 0x8137, 0x0842,
    ] {
        for length in [0, 1, 27, 28, 46, 1500] {
            let mut bytes = vec![0xff; 12];
            bytes.extend(ethertype.to_be_bytes());
            // An ARP request's body is as good as any.
            let body = [0, 1, 8, 0, 6, 4, 0, 1, 2, 0xc1, 0, 0, 0, 1, 198, 51, 100, 1];
            bytes.extend(body.iter().cycle().take(length));
            let sent = lab.send(CLIENTS, &bytes);
            assert_eq!(
                sent.verdict,
                Verdict::Pass("not_ip"),
                "{ethertype:#x}, {length} bytes"
            );
        }
    }
    // 802.3: a length in the EtherType's place, as spanning tree has it.
    let mut bpdu = vec![
        0x01, 0x80, 0xc2, 0, 0, 0, 2, 0xc1, 0, 0, 0, 1, 0, 38, 0x42, 0x42, 3,
    ];
    bpdu.resize(60, 0);
    assert_eq!(lab.send(CLIENTS, &bpdu).verdict, Verdict::Pass("not_ip"));
}

#[test]
fn other_protocols_for_a_vip() {
    let lab = Lab::new(STANDARD);
    for [vip, _, client, _] in ADDRESSES {
        let v6 = ip(vip).is_ipv6();
        // Of IPv6, those that are extension headers are no protocols.
        let extensions = [0, 43, 44, 60];
        for protocol in (0..=255)
            .filter(|protocol| ![6, 17].contains(protocol))
            .filter(|protocol| !v6 || !extensions.contains(protocol))
        {
            let frame = udp(to(client, 1), to(vip, 80), &[0; 40]);
            let sent = lab.send(CLIENTS, &of_protocol(&frame, protocol));
            assert_eq!(
                sent.verdict,
                Verdict::Pass("other_protocol"),
                "protocol {protocol}"
            );
        }
    }
    assert_eq!(lab.entries(), []);
}

/// An address that is not `address`, of the same family, with the same bit in the filter.
fn twin(address: IpAddr, number: usize) -> IpAddr {
    let candidates = 1_u32..;
    let of = |n: u32| -> IpAddr {
        match address {
            IpAddr::V4(_) => Ipv4Addr::from(0x0b00_0000 + n).into(),
            IpAddr::V6(_) => {
                Ipv6Addr::from(0x2001_0db8_0077_0000_u128 << 64 | u128::from(n)).into()
            }
        }
    };
    candidates
        .map(of)
        .filter(|other| *other != address && filter::bit(*other) == filter::bit(address))
        .nth(number)
        .expect("2^32 addresses share 2^16 bits")
}

/// The filter may take a stranger for one of ours. What comes after it may not.
#[test]
fn addresses_that_look_like_ours_to_the_filter() {
    let lab = Lab::new(STANDARD);
    for [vip, host, client, backend] in ADDRESSES {
        for number in 0..3 {
            let (vip_twin, backend_twin) = (twin(ip(vip), number), twin(ip(backend), number));
            let stranger = |port| SocketAddr::new(vip_twin, port);
            let like_backend = |port| SocketAddr::new(backend_twin, port);
            for frame in [
                tcp(to(client, 4242), stranger(80), SYN),
                udp(to(client, 4242), stranger(80), b"datagram"),
                tcp(to(client, 4242), stranger(80), SYN).with(|f| f.ttl = 1),
                tcp(like_backend(8080), to(host, 4242), ACK),
                tcp(like_backend(8080), to(client, 4242), ACK),
                udp(like_backend(8080), to(client, 4242), b"datagram"),
            ] {
                let bytes = frame.bytes();
                assert_eq!(lab.send(CLIENTS, &bytes).verdict, NOT_OURS, "{frame:?}");
                for cut in 54..bytes.len() {
                    assert_eq!(
                        lab.send(CLIENTS, &bytes[..cut]).verdict,
                        NOT_OURS,
                        "{frame:?}"
                    );
                }
                for protocol in [1, 2, 47, 50, 58, 89, 112, 132] {
                    let bytes = of_protocol(&frame, protocol);
                    assert_eq!(lab.send(CLIENTS, &bytes).verdict, NOT_OURS, "{protocol}");
                }
                let fragment = match frame.source {
                    SocketAddr::V4(_) => {
                        let mut bytes = bytes.clone();
                        bytes[20] = 0x20;
                        fix_ipv4_checksum(&mut bytes, 14);
                        bytes
                    }
                    SocketAddr::V6(_) => frame
                        .with(|f| f.extensions = vec![(FRAGMENT, vec![0, 0, 1, 0, 0, 0, 7])])
                        .bytes(),
                };
                assert_eq!(lab.send(CLIENTS, &fragment).verdict, NOT_OURS, "{frame:?}");
            }
        }
    }
    assert_eq!(lab.entries(), []);
}

/// Both sides compute the same bits: no VIP or backend is ever overlooked.
#[test]
fn the_filter_knows_every_vip_and_backend() {
    const COUNT: u64 = 250;
    let random = |n: u64| xxh64(&n.to_le_bytes(), 0);
    let vips: Vec<IpAddr> = (0..COUNT)
        .flat_map(|n| {
            let r = random(n);
            // First octets 11 to 90: unicast, none of them special.
            let v4 = Ipv4Addr::from((11 + (r >> 32) as u32 % 80) << 24 | r as u32 & 0x00ff_ffff);
            let v6 = u128::from(r) << 64 | u128::from(random(n + COUNT));
            let v6 = Ipv6Addr::from(v6 >> 3 | 1 << 125);
            [IpAddr::from(v4), IpAddr::from(v6)]
        })
        .collect();
    let list: Vec<String> = vips.iter().map(|vip| format!("\"{vip}\"")).collect();
    let lab = Lab::new(&format!(
        "[[service]]\nname = \"many\"\nvip = [{}]\nport = 80\nprotocol = \"tcp\"\nforward = \"nat\"\n\
         [[service.backend]]\naddress = \"10.0.0.2\"\n[[service.backend]]\naddress = \"fd00::2\"\n",
        list.join(", ")
    ));
    for vip in vips {
        let client = if vip.is_ipv6() {
            "[2001:db8:c::7]:4242"
        } else {
            "198.51.100.7:4242"
        };
        let d = crate::harness::dialog::Dialog::open(
            &lab,
            Protocol::Tcp,
            at(client),
            SocketAddr::new(vip, 80),
        );
        // Replies: the VIP is nowhere in them, and the client is no address of ours.
        let reply = d.reply(SYN | ACK);
        // One client port for all: nat has moved all but the first elsewhere, which is as well.
        d.answer(&lab, &reply);
    }
}

/// Replies are known by their whole flow: neither a backend's other packets nor somebody else's that
/// claim to be its are translated.
#[test]
fn replies_of_no_connection() {
    let lab = Lab::new(STANDARD);
    for (port, case) in (4000..).zip(cases::all()) {
        let d = case.establish_from(&lab, case.client_at(port));
        let reply = d.reply(ACK);
        for (what, frame) in [
            (
                "another port of the backend",
                reply.with(|f| f.source.set_port(8081)),
            ),
            (
                "another port of the client",
                reply.with(|f| f.destination.set_port(1)),
            ),
            ("the VIP itself", reply.with(|f| f.source = d.vip)),
            (
                "another protocol",
                match d.protocol {
                    Protocol::Tcp => udp(reply.source, reply.destination, b"reply"),
                    Protocol::Udp => tcp(reply.source, reply.destination, ACK),
                },
            ),
        ] {
            let frame = frame.between(backend_mac(d.backend.ip()), own_mac(BACKENDS));
            assert_eq!(
                lab.send(BACKENDS, &frame.bytes()).verdict,
                NOT_OURS,
                "{what}, {case:?}"
            );
        }
    }
}

/// A client's packet from an interface that is not ours to answer by makes no connection.
#[test]
fn from_an_interface_without_a_slot() {
    let lab = Lab::new(STANDARD);
    for case in cases::all() {
        let d = case.establish(&lab);
        let first = d.with_client(case.client_at(77));
        for frame in [first.request(SYN), d.request(ACK)] {
            let sent = lab.send(FOREIGN, &frame.bytes());
            assert_eq!(sent.verdict, Verdict::Drop("no_interface"), "{case:?}");
        }
        // The connection goes on the way it went.
        d.to_backend(&lab, ACK);
        d.to_client(&lab, ACK);
    }
}
