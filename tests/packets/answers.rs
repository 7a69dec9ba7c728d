//! The answers that go back to a packet's sender in its place: resets and ICMP errors, and when none may.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::process::Command;
use std::time::{Duration, Instant};

use etherparse::TcpHeader;
use nix::sched::{sched_setaffinity, CpuSet};
use nix::unistd::Pid;
use xdplb::datapath::Interface;
use xdplb::state::Hop;

use crate::harness::cells::{self, every, Cell, Path, PROTOCOLS};
use crate::harness::frame::{
    tcp, udp, Frame, Protocol, ACK, DESTINATION_OPTIONS, DOT1AD, DOT1Q, FIN, PSH, RST, SYN,
};
use crate::harness::ip::{Ethernet, Icmp, Packet};
use crate::harness::{
    assert_same, at, backend_mac, ip, own_ipv4, own_ipv6, own_mac, Lab, Sent, Verdict, BACKENDS,
    CLIENTS, OTHER, ROUTER,
};

const UNANSWERABLE: Verdict = Verdict::Drop("unanswerable");

/// Of the packet in question, Ethernet and padding off, what an error quotes: so that it is 576 bytes long
/// at most (RFC 1812, section 4.3.2.3), or IPv6's smallest MTU (RFC 4443, section 2.4).
fn quote(packet: &[u8], ipv6: bool) -> &[u8] {
    &packet[..packet.len().min(if ipv6 { 1232 } else { 548 })]
}

/// The error about a frame, as it goes back.
fn error_about(kind: Icmp, from: IpAddr, frame: &Frame) -> Vec<u8> {
    let packet = frame.packet().bytes();
    let quoted = quote(&packet, from.is_ipv6());
    let error = kind.about(from, frame.source.ip(), quoted);
    frame.ethernet().swapped().carrying(&error)
}

/// The reset of a segment (RFC 9293, section 3.10.7.1).
fn reset_of(frame: &Frame) -> Vec<u8> {
    let flag = |bit: u8| u32::from(frame.flags & bit != 0);
    let (source, destination) = (frame.destination, frame.source);
    let mut tcp = TcpHeader::new(source.port(), destination.port(), 0, 0);
    tcp.rst = true;
    // What `Frame` has for sequence and acknowledgment number.
    if flag(ACK) == 1 {
        tcp.sequence_number = frame.acknowledged;
    } else {
        tcp.ack = true;
        tcp.acknowledgment_number =
            frame.sequence + frame.payload.len() as u32 + flag(SYN) + flag(FIN);
    }
    tcp.checksum = match (source.ip(), destination.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            tcp.calc_checksum_ipv4_raw(from.octets(), to.octets(), &[])
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            tcp.calc_checksum_ipv6_raw(from.octets(), to.octets(), &[])
        }
        _ => panic!("one family"),
    }
    .expect("fits a segment");
    let packet = Packet::new(source.ip(), destination.ip(), 6, tcp.to_bytes().to_vec());
    frame.ethernet().swapped().carrying(&packet)
}

fn own(slot: u16, ipv6: bool) -> IpAddr {
    if ipv6 {
        own_ipv6(slot).into()
    } else {
        own_ipv4(slot).into()
    }
}

#[track_caller]
fn answered(lab: &Lab, slot: u16, frame: &Frame, reason: &'static str, expected: &[u8]) {
    let sent = lab.send(slot, &frame.bytes());
    assert_eq!(sent.verdict, Verdict::Answer(reason), "{frame:?}");
    assert_same(reason, &sent.bytes, expected);
}

/// What an answer must not depend on.
fn dresses(frame: &Frame) -> Vec<Frame> {
    let mut dresses = vec![frame.clone()];
    for tags in [vec![(DOT1Q, 0x2064)], vec![(DOT1AD, 100), (DOT1Q, 200)]] {
        dresses.push(frame.with(|f| f.tags = tags));
    }
    dresses.push(frame.with(|f| f.padding = vec![0xa5; 13]));
    dresses.push(frame.with(|f| f.tos = 0xb9));
    for length in [1, 2, 3, 400, 513, 1000, 1300] {
        dresses.push(frame.with(|f| f.payload = (0..length).map(|i| (i * 7) as u8).collect()));
    }
    if frame.source.is_ipv6() {
        let options = vec![(DESTINATION_OPTIONS, vec![0, 1, 4, 0, 0, 0, 0])];
        dresses.push(frame.with(|f| f.extensions = options));
    } else {
        dresses.push(frame.with(|f| f.options = vec![1; 12]));
        dresses.push(frame.with(|f| f.options = vec![1; 40]));
    }
    dresses
}

#[test]
fn time_exceeded() {
    let lab = Lab::new(&every());
    for cell in cells::all() {
        for protocol in PROTOCOLS {
            let path = cell.establish(&lab, protocol, 1000);
            let entries = lab.entries().len();
            let client = cell.client_at(1001);
            let new = Path {
                client,
                seen: client,
                ..path.clone()
            };
            for ttl in [1, 0] {
                for request in [path.request(ACK), new.request(SYN)] {
                    for frame in dresses(&request.with(|f| f.ttl = ttl)) {
                        let from = own(CLIENTS, cell.ipv6);
                        let expected = error_about(Icmp::TimeExceeded, from, &frame);
                        answered(&lab, CLIENTS, &frame, "ttl_expired", &expected);
                    }
                }
                if !cell.mode.is_direct() {
                    let reply = path
                        .back_between(path.inside(), ACK)
                        .between(backend_mac(cell.backend().ip()), own_mac(BACKENDS))
                        .with(|f| f.ttl = ttl);
                    let from = own(BACKENDS, cell.ipv6);
                    let expected = error_about(Icmp::TimeExceeded, from, &reply);
                    answered(&lab, BACKENDS, &reply, "ttl_expired", &expected);
                }
            }
            assert_eq!(lab.entries().len(), entries, "{cell:?}");
            lab.refill_answers();
        }
    }
}

/// From the packet's destination, where the interface has no address of its own.
#[test]
fn time_exceeded_without_an_address_of_ours() {
    let mut lab = Lab::new(&every());
    let bare = Interface {
        ipv4: None,
        ipv6: None,
        ..lab.interface(CLIENTS)
    };
    lab.datapath.update_interface(CLIENTS, &bare);
    for cell in cells::all() {
        let path = cell.establish(&lab, Protocol::Udp, 1000);
        let frame = path.request(0).with(|f| f.ttl = 1);
        let expected = error_about(Icmp::TimeExceeded, cell.vip().ip(), &frame);
        answered(&lab, CLIENTS, &frame, "ttl_expired", &expected);
    }
}

/// A packet of that many bytes, Ethernet off.
fn of_length(frame: &Frame, length: usize) -> Frame {
    frame.with(|f| {
        f.payload.clear();
        let headers = f.packet().bytes().len();
        f.payload = (0..length - headers).map(|i| (i * 3) as u8).collect();
    })
}

#[test]
fn too_big() {
    let mut lab = Lab::new(&every());
    for mtu in [1280, 1400, 1500, 9000] {
        lab.set_mtu(mtu);
        for cell in cells::all() {
            let fits = mtu as usize - cell.overhead();
            for protocol in PROTOCOLS {
                let path = cell.establish(&lab, protocol, 1000);
                path.to_backend(&lab, "what just fits", |ends| {
                    of_length(&path.between(ends, ACK), fits).packet()
                });
                for more in [1, 2, 100] {
                    for base in [path.request(ACK), path.request(ACK).with(|f| f.ttl = 2)] {
                        let tagged = base.with(|f| {
                            f.tags = vec![(DOT1AD, 1), (DOT1Q, 2)];
                            f.padding = vec![0xa5; 3];
                        });
                        for frame in [base, tagged] {
                            let frame = of_length(&frame, fits + more);
                            let kind = Icmp::TooBig(fits as u32);
                            let expected = error_about(kind, cell.vip().ip(), &frame);
                            answered(&lab, CLIENTS, &frame, "too_big", &expected);
                            let free = frame.with(|f| f.dont_fragment = false);
                            let verdict = lab.send(CLIENTS, &free.bytes()).verdict;
                            if cell.ipv6 {
                                assert_eq!(verdict, Verdict::Answer("too_big"));
                            } else {
                                assert_eq!(verdict, Verdict::Drop("too_big_dropped"));
                            }
                        }
                    }
                }
                lab.refill_answers();
            }
        }
    }
}

/// On the way back only the clients' side counts.
#[test]
fn replies_too_big() {
    let mut lab = Lab::new(&every());
    let narrow = Interface {
        mtu: 1300,
        ..lab.interface(CLIENTS)
    };
    lab.datapath.update_interface(CLIENTS, &narrow);
    for cell in cells::translated() {
        for protocol in PROTOCOLS {
            let path = cell.establish(&lab, protocol, 1000);
            path.to_client(&lab, "what just fits", |ends| {
                of_length(&path.back_between(ends, ACK), 1300).packet()
            });
            let reply = of_length(&path.back_between(path.inside(), ACK), 1301)
                .between(backend_mac(cell.backend().ip()), own_mac(BACKENDS));
            let expected = error_about(Icmp::TooBig(1300), path.seen.ip(), &reply);
            answered(&lab, BACKENDS, &reply, "too_big", &expected);
            path.to_backend(&lab, "the other way", |ends| {
                of_length(&path.between(ends, ACK), 1500).packet()
            });
        }
    }
}

/// A packet too big of IPv6 is worth saying of later fragments too (RFC 4443, section 2.4 e says nothing
/// else); IPv4's fragments have no DF.
#[test]
fn fragments_too_big_or_too_old() {
    let mut lab = Lab::new(&every());
    lab.set_mtu(1300);
    for cell in cells::all() {
        let path = cell.establish(&lab, Protocol::Udp, 1000);
        let whole = path.request(0).with(|f| f.payload = vec![1; 4000]).packet();
        let pieces = whole.fragments(1, 0, &[1000, 2400]);
        let ethernet = path.request(0).ethernet();
        let send = |piece: &Packet| lab.send(CLIENTS, &ethernet.carrying(piece)).verdict;
        assert_eq!(send(&pieces[0]), Verdict::Redirect);
        let expected = if cell.ipv6 {
            Verdict::Answer("too_big")
        } else {
            Verdict::Drop("too_big_dropped")
        };
        assert_eq!(send(&pieces[1]), expected, "{cell:?}");
        let old = pieces[0].with(|p| p.ttl = 1);
        assert_eq!(send(&old), Verdict::Answer("ttl_expired"), "{cell:?}");
        let small = whole.fragments(1, 0, &[1000, 2000, 3000]);
        let old = small[1].with(|p| p.ttl = 1);
        assert_eq!(send(&old), UNANSWERABLE, "{cell:?}");
    }
}

/// What a refused packet is answered with; None: it must not be.
fn refusal(frame: &Frame) -> Option<Vec<u8>> {
    match frame.protocol {
        Protocol::Tcp if frame.flags & RST != 0 => None,
        Protocol::Tcp => Some(reset_of(frame)),
        Protocol::Udp => Some(error_about(
            Icmp::PortUnreachable,
            frame.destination.ip(),
            frame,
        )),
    }
}

#[track_caller]
fn refused(lab: &Lab, vip: SocketAddr, reason: &'static str) {
    let client = at(if vip.is_ipv6() {
        "[2001:db8:c::7]:1000"
    } else {
        "198.51.100.7:1000"
    });
    let mut frames: Vec<Frame> = (0..32).map(|flags| tcp(client, vip, flags)).collect();
    frames.push(udp(client, vip, b"datagram"));
    let flags = [
        SYN,
        ACK,
        SYN | ACK,
        FIN,
        FIN | ACK,
        PSH | ACK,
        SYN | FIN,
        RST,
    ];
    for frame in flags.map(|flags| tcp(client, vip, flags)) {
        frames.extend(dresses(&frame));
    }
    frames.extend(dresses(&udp(client, vip, b"datagram")));
    for frame in frames {
        let frame = frame.between(ROUTER, own_mac(CLIENTS));
        match refusal(&frame) {
            Some(expected) => answered(lab, CLIENTS, &frame, reason, &expected),
            None => {
                let verdict = lab.send(CLIENTS, &frame.bytes()).verdict;
                assert_eq!(verdict, UNANSWERABLE, "{frame:?}");
            }
        }
    }
    lab.refill_answers();
}

#[test]
fn ports_without_service_are_rejected() {
    let mut lab = Lab::new(&every());
    lab.datapath_keys += "\nunknown_port = \"reject\"";
    lab.reload(&every());
    for cell in cells::all() {
        let mut vip = cell.vip();
        vip.set_port(81);
        refused(&lab, vip, "unknown_port_rejected");
    }
    assert_eq!(lab.entries(), []);
}

#[test]
fn services_without_backend_reject_pass_and_drop() {
    let mut lab = Lab::new(&every());
    for cell in cells::all() {
        lab.hops.insert(cell.backend().ip(), None);
    }
    let with = |choice: &str| {
        every().replace(
            "forward =",
            &format!("no_backend = \"{choice}\"\nforward ="),
        )
    };
    lab.reload(&with("reject"));
    for cell in cells::all() {
        refused(&lab, cell.vip(), "no_backend_rejected");
    }
    for (choice, expected) in [
        ("pass", Verdict::Pass("no_backend_passed")),
        ("drop", Verdict::Drop("no_backend")),
    ] {
        lab.reload(&with(choice));
        for cell in cells::all() {
            for frame in [
                tcp(cell.client_at(1), cell.vip(), SYN),
                tcp(cell.client_at(1), cell.vip(), RST),
                udp(cell.client_at(1), cell.vip(), b"datagram"),
            ] {
                let verdict = lab.send(CLIENTS, &frame.bytes()).verdict;
                assert_eq!(verdict, expected, "{choice}, {cell:?}");
            }
        }
    }
    assert_eq!(lab.entries(), []);
}

/// Senders that are nobody, and frames to a group: an answer would reach whoever did not ask.
#[test]
fn nobody_is_answered() {
    let mut lab = Lab::new(&every());
    lab.datapath_keys += "\nunknown_port = \"reject\"";
    lab.reload(&every());
    let nobody = [
        "0.0.0.0",
        "0.1.2.3",
        "127.0.0.1",
        "224.0.0.1",
        "239.255.255.255",
        "255.255.255.255",
        "::",
        "::1",
        "ff02::1",
        "ff0e::7",
    ];
    for address in nobody.map(ip) {
        let vip = at(if address.is_ipv6() {
            "[2001:db8:1::11]:81"
        } else {
            "203.0.113.11:81"
        });
        let from = SocketAddr::new(address, 1000);
        for frame in [tcp(from, vip, SYN), udp(from, vip, b"datagram")] {
            let verdict = lab.send(CLIENTS, &frame.bytes()).verdict;
            assert_eq!(verdict, UNANSWERABLE, "{address}");
        }
    }
    for cell in cells::all() {
        let mut vip = cell.vip();
        vip.set_port(81);
        for frame in [
            tcp(cell.client_at(1), vip, SYN),
            udp(cell.client_at(1), vip, b"datagram"),
        ] {
            let group = xdplb::config::MacAddress([0x01, 0, 0x5e, 0, 0, 1]);
            let frame = frame.between(ROUTER, group);
            assert_eq!(lab.send(CLIENTS, &frame.bytes()).verdict, UNANSWERABLE);
        }
    }
}

/// 1,000 a second and CPU; after that the packet is dropped, and counted as what it is.
#[test]
fn answers_are_limited() {
    let mut cpu = CpuSet::new();
    cpu.set(0).expect("a first CPU");
    sched_setaffinity(Pid::from_raw(0), &cpu).expect("to stay on one CPU");
    let mut lab = Lab::new(&every());
    lab.datapath_keys += "\nunknown_port = \"reject\"";
    lab.reload(&every());
    let frames = [
        tcp(at("198.51.100.7:1"), at("203.0.113.11:81"), SYN).bytes(),
        udp(at("[2001:db8:c::7]:1"), at("[2001:db8:1::11]:81"), b"x").bytes(),
    ];
    let limited = || lab.reasons()["answers_limited"];
    // A machine that has better to do can take longer than the second in which they count.
    let counted = (0..20).find_map(|_| {
        let before = limited();
        lab.refill_answers();
        let start = Instant::now();
        for n in 0..1000 {
            lab.run(CLIENTS, &frames[n % 2]);
        }
        let (within, code) = (limited() - before, lab.run(CLIENTS, &frames[0]).0);
        (start.elapsed() < Duration::from_millis(900)).then_some((within, code))
    });
    assert_eq!(counted, Some((0, 1)), "limited among 1,000, and the next");
    let sent = lab.send(CLIENTS, &frames[1]);
    if sent.verdict != Verdict::Answer("unknown_port_rejected") {
        assert_eq!(sent.verdict, Verdict::Drop("answers_limited"));
    }
    // Pings are no errors.
    let ping = Icmp::EchoRequest.message(ip("198.51.100.7"), ip("203.0.113.11"), [0; 4], b"");
    let ethernet = Ethernet::default();
    for _ in 0..2000 {
        assert_eq!(lab.run(CLIENTS, &ethernet.carrying(&ping)).0, 4);
    }
    crate::harness::pause(Duration::from_secs(1));
    let sent = lab.send(CLIENTS, &frames[1]);
    assert_eq!(sent.verdict, Verdict::Answer("unknown_port_rejected"));
}

/// A backend that does not hold the VIP forwards what it gets, and here it is again.
#[test]
fn packets_that_come_back_from_the_backend() {
    let mut lab = Lab::new(&every());
    let back = |lab: &Lab, path: &Path, slot: u16, flags: u8| -> Sent {
        let frame = path
            .request(flags)
            .between(backend_mac(path.cell.backend().ip()), own_mac(slot));
        lab.send(slot, &frame.bytes())
    };
    let fresh = |cell: Cell, port| cell.path(Protocol::Tcp, cell.client_at(port));
    for cell in cells::direct() {
        let path = cell.establish(&lab, Protocol::Tcp, 1000);
        for flags in [SYN, ACK, FIN | ACK, RST] {
            let verdict = back(&lab, &path, BACKENDS, flags).verdict;
            assert_eq!(verdict, Verdict::Drop("loop"), "{cell:?}");
            let verdict = back(&lab, &fresh(cell, 1001), BACKENDS, flags).verdict;
            assert_eq!(verdict, Verdict::Drop("loop"), "{cell:?}");
        }
        path.to_backend(&lab, "the client's", |ends| {
            path.between(ends, ACK).packet()
        });
        // Only what leaves where it came from goes round.
        let verdict = back(&lab, &fresh(cell, 1002), OTHER, SYN).verdict;
        assert_eq!(verdict, Verdict::Redirect, "{cell:?}");
    }
    // A router before the backend may be the clients' router too.
    for cell in cells::direct() {
        let address = cell.backend().ip();
        let hop = Hop {
            mac: backend_mac(address),
            slot: BACKENDS,
            on_link: false,
        };
        lab.hops.insert(address, Some(hop));
    }
    lab.reload(&every());
    for cell in cells::direct().filter(|cell| cell.mode.is_tunnel()) {
        let verdict = back(&lab, &fresh(cell, 1003), BACKENDS, SYN).verdict;
        assert_eq!(verdict, Verdict::Tx, "{cell:?}");
    }
}

fn ip_command(arguments: &str) {
    let status = Command::new("ip").args(arguments.split(' ')).status();
    assert!(
        status.is_ok_and(|status| status.success()),
        "ip {arguments}"
    );
}

/// What the host would forward by the way that it came stays out of its stack.
#[test]
fn packets_that_the_host_would_send_back() {
    let lab = Lab::new(&every());
    for name in ["clients", "backends", "other", "foreign", "lo"] {
        ip_command(&format!("link set {name} up"));
        fs::write(format!("/proc/sys/net/ipv6/conf/{name}/accept_dad"), "0").expect("a sysctl");
    }
    for family in ["ipv4", "ipv6"] {
        let sysctl = format!("/proc/sys/net/{family}/conf/all/forwarding");
        fs::write(&sysctl, "1").unwrap_or_else(|error| panic!("{sysctl}: {error}"));
    }
    ip_command("route add 203.0.113.0/24 dev clients");
    ip_command("route add 2001:db8:1::/48 dev clients");
    ip_command("addr add 203.0.113.12/32 dev lo");
    ip_command("addr add 2001:db8:1::12/128 dev lo");
    let passed = Verdict::Pass("unknown_port_passed");
    for (client, routed, local) in [
        ("198.51.100.7:1000", "203.0.113.11:81", "203.0.113.12:81"),
        (
            "[2001:db8:c::7]:1000",
            "[2001:db8:1::11]:81",
            "[2001:db8:1::12]:81",
        ),
    ] {
        for make in [
            |client, vip| tcp(client, vip, SYN),
            |client, vip| udp(client, vip, b"datagram"),
        ] {
            let send = |slot, vip| lab.send(slot, &make(at(client), at(vip)).bytes()).verdict;
            assert_eq!(send(CLIENTS, routed), Verdict::Drop("loop"), "{routed}");
            assert_eq!(send(OTHER, routed), passed, "{routed} by another way");
            assert_eq!(send(CLIENTS, local), passed, "{local}");
        }
        // What is not for a VIP is none of our business.
        let mut elsewhere = at(routed);
        elsewhere.set_ip(ip(if elsewhere.is_ipv6() {
            "2001:db8:1::99"
        } else {
            "203.0.113.99"
        }));
        let frame = tcp(at(client), elsewhere, SYN);
        let verdict = lab.send(CLIENTS, &frame.bytes()).verdict;
        assert_eq!(verdict, Verdict::Pass("not_ours"));
    }
}
