//! ICMP errors of a router between us and a backend, about our tunnel packets: the client hears of them.

use std::fs;
use std::net::IpAddr;
use std::process::Command;

use crate::harness::cells::{self, every, Cell, Path, PROTOCOLS};
use crate::harness::frame::{Protocol, ACK, DOT1AD, DOT1Q, PSH};
use crate::harness::ip::{Ethernet, Icmp, Packet};
use crate::harness::{
    assert_same, ip, own_mac, Lab, Verdict, BACKENDS, CLIENTS, OTHER, OTHER_ROUTER, ROUTER,
};
use xdplb::config::MacAddress;

const NOT_OURS: Verdict = Verdict::Pass("not_ours");
const MTU: u32 = 1400;
/// Between us and the backend.
const TUNNEL_ROUTER: MacAddress = MacAddress([2, 0, 0, 0, 0, 0x77]);

fn tunnels() -> impl Iterator<Item = Cell> {
    cells::direct().filter(|cell| cell.mode.is_tunnel())
}

/// What the backend would have got, in its tunnel and by itself.
fn too_large(path: &Path) -> (Packet, Packet) {
    let inner = path
        .between(path.inside(), PSH | ACK)
        .with(|frame| frame.payload = vec![0x5a; 1399])
        .packet()
        .forwarded();
    let outer = inner.within(&path.tunnel().expect("a tunnel"));
    (outer, inner)
}

/// The router's frame about the first bytes of a tunnel packet of the path's.
fn error(path: &Path, kind: Icmp, quoted: &[u8], tags: &[(u16, u16)]) -> Vec<u8> {
    let tunnel = path.tunnel().expect("a tunnel");
    error_to(tunnel.source, kind, quoted, tags)
}

/// Likewise, to the address that the packet came from.
fn error_to(source: IpAddr, kind: Icmp, quoted: &[u8], tags: &[(u16, u16)]) -> Vec<u8> {
    let router = ip(if source.is_ipv4() {
        "10.0.0.254"
    } else {
        "fd00::254"
    });
    let ethernet = Ethernet {
        to: own_mac(BACKENDS),
        from: TUNNEL_ROUTER,
        tags: tags.to_vec(),
    };
    ethernet.carrying(&kind.about(router, source, quoted))
}

fn ip_command(arguments: &str) {
    let status = Command::new("ip").args(arguments.split(' ')).status();
    assert!(
        status.is_ok_and(|status| status.success()),
        "ip {arguments}"
    );
}

#[test]
fn clients_are_told() {
    let lab = Lab::new(&every());
    for cell in tunnels() {
        for protocol in PROTOCOLS {
            for tags in [
                vec![],
                vec![(DOT1Q, 0x2064)],
                vec![(DOT1AD, 100), (DOT1Q, 200)],
            ] {
                let path = cell.establish(&lab, protocol, 1000);
                let (outer, inner) = too_large(&path);
                let (outer, header) = (outer.bytes(), cell.overhead());
                // The least that names the client, an odd number, and what routers quote at most.
                let least = inner.bytes().len() - 1399;
                for length in [header + least, header + least + 101, 548, 1232] {
                    lab.refill_answers();
                    let quoted = &outer[..length];
                    let sent = lab.send(BACKENDS, &error(&path, Icmp::TooBig(MTU), quoted, &tags));
                    let what = format!("{cell:?}, {protocol:?}, {length} bytes, tags {tags:x?}");
                    assert_eq!(sent.verdict, Verdict::Answer("too_big"), "{what}");

                    let most = if cell.ipv6 { 1232 } else { 548 };
                    let about = &quoted[header..];
                    let expected = Icmp::TooBig(MTU - header as u32).about(
                        cell.vip().ip(),
                        path.client.ip(),
                        &about[..about.len().min(most)],
                    );
                    let ethernet = Ethernet {
                        to: ROUTER,
                        from: own_mac(CLIENTS),
                        tags: tags.clone(),
                    };
                    assert_same(&what, &sent.bytes, &ethernet.carrying(&expected));
                }
            }
        }
    }
}

/// Another address of its family, near by.
fn elsewhere(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(address) => IpAddr::V4((u32::from(address) ^ 1).into()),
        IpAddr::V6(address) => IpAddr::V6((u128::from(address) ^ 1).into()),
    }
}

/// What becomes of an error about the path's packet, of which there is no entry: the client is told by way
/// of that next hop.
#[track_caller]
fn told_without_an_entry(lab: &Lab, path: &Path, tags: &[(u16, u16)], from: u16, to: MacAddress) {
    let what = format!("{:?}, {:?}, tags {tags:x?}", path.cell, path.protocol);
    lab.refill_answers();
    lab.clear_connections();
    let (outer, header) = (too_large(path).0.bytes(), path.cell.overhead());
    let sent = lab.send(
        BACKENDS,
        &error(path, Icmp::TooBig(MTU), &outer[..500], tags),
    );
    assert_eq!(sent.verdict, Verdict::Answer("too_big"), "{what}");
    let expected = Icmp::TooBig(MTU - header as u32).about(
        path.cell.vip().ip(),
        path.client.ip(),
        &outer[header..500],
    );
    let ethernet = Ethernet {
        to,
        from: own_mac(from),
        tags: tags.to_vec(),
    };
    assert_same(&what, &sent.bytes, &ethernet.carrying(&expected));
    assert!(lab.entries().is_empty(), "{what}: makes no entry");
}

/// The error may reach another instance than the one that has the connection: the flow's hash names the
/// backend there as well. Without a route, the router that sent it is asked to forward it.
#[test]
fn without_an_entry() {
    let lab = Lab::new(&every());
    for cell in tunnels() {
        for protocol in PROTOCOLS {
            let path = cell.establish(&lab, protocol, 1000);
            for tags in [
                vec![],
                vec![(DOT1Q, 0x2064)],
                vec![(DOT1AD, 100), (DOT1Q, 200)],
            ] {
                told_without_an_entry(&lab, &path, &tags, BACKENDS, TUNNEL_ROUTER);
            }
            let outer = too_large(&path).0;
            // Of another backend than the hash says, and of a source that is none of ours.
            for strange in [
                outer.with(|p| p.destination = elsewhere(p.destination)),
                outer.with(|p| p.source = elsewhere(p.source)),
            ] {
                let quoted = &strange.bytes()[..500];
                let frame = error_to(strange.source, Icmp::TooBig(MTU), quoted, &[]);
                assert_eq!(lab.send(BACKENDS, &frame).verdict, NOT_OURS, "{cell:?}");
            }
        }
    }
    // What the balancer does not send in a tunnel.
    for cell in cells::all().filter(|cell| !cell.mode.is_tunnel() && !cell.ipv6) {
        let tunnelled = tunnels().find(|tunnel| !tunnel.ipv6).expect("a tunnel");
        let inside = cell.path(Protocol::Tcp, cell.client_at(1000));
        let inner = inside.request(ACK).packet().forwarded();
        let tunnel = tunnelled.path(Protocol::Tcp, inside.client).tunnel();
        let outer = inner.within(&tunnel.expect("a tunnel"));
        let frame = error_to(outer.source, Icmp::TooBig(MTU), &outer.bytes(), &[]);
        assert_eq!(lab.send(BACKENDS, &frame).verdict, NOT_OURS, "{cell:?}");
    }
}

/// Where the host would forward it, it goes by the host's own routes.
#[test]
fn without_an_entry_by_the_hosts_routes() {
    let lab = Lab::new(&every());
    let forwarding = |on: &str| {
        for family in ["ipv4", "ipv6"] {
            let sysctl = format!("/proc/sys/net/{family}/conf/all/forwarding");
            fs::write(&sysctl, on).unwrap_or_else(|error| panic!("{sysctl}: {error}"));
        }
    };
    for name in ["clients", "backends", "other", "foreign"] {
        ip_command(&format!("link set {name} up"));
    }
    ip_command("addr add 192.0.2.1/24 dev other");
    ip_command("neigh add 192.0.2.254 lladdr 02:c1:00:00:00:02 dev other nud permanent");
    ip_command("route add 198.51.100.0/24 via 192.0.2.254 dev other");
    ip_command("neigh add fe80::99 lladdr 02:c1:00:00:00:02 dev other nud permanent");
    ip_command("route add 2001:db8:c::/48 via fe80::99 dev other");
    for cell in tunnels() {
        let path = cell.establish(&lab, Protocol::Udp, 1000);
        forwarding("1");
        told_without_an_entry(&lab, &path, &[], OTHER, OTHER_ROUTER);
        // A route knows of no tags, and they stay on.
        let tags = [(DOT1Q, 0x2064)];
        told_without_an_entry(&lab, &path, &tags, BACKENDS, TUNNEL_ROUTER);
        forwarding("0");
        told_without_an_entry(&lab, &path, &[], BACKENDS, TUNNEL_ROUTER);
    }
    // By an interface that XDP is not attached to nothing can be sent.
    forwarding("1");
    ip_command("addr add 192.0.3.1/24 dev foreign");
    ip_command("neigh add 192.0.3.254 lladdr 02:c1:00:00:00:02 dev foreign nud permanent");
    ip_command("route replace 198.51.100.0/24 via 192.0.3.254 dev foreign");
    let cell = tunnels().find(|cell| !cell.ipv6).expect("a tunnel");
    let path = cell.establish(&lab, Protocol::Udp, 1000);
    told_without_an_entry(&lab, &path, &[], BACKENDS, TUNNEL_ROUTER);
}

/// With a prefix to send from, the flow says which of its addresses it is.
#[test]
fn without_an_entry_to_a_source_out_of_a_prefix() {
    let tunnel = "[tunnel]\nsource = [\"172.16.0.0/16\", \"fd00:1::/64\"]\n";
    let lab = Lab::new(&format!("{}\n{tunnel}", every()));
    for cell in tunnels() {
        let path = cell.path(Protocol::Udp, cell.client_at(1000));
        let large = path.request(0).with(|f| f.payload = vec![0x5a; 1300]);
        let outer = lab.send(CLIENTS, &large.bytes()).bytes[14..].to_vec();
        let source: IpAddr = if cell.outer_ipv6 {
            <[u8; 16]>::try_from(&outer[8..24])
                .expect("an address")
                .into()
        } else {
            <[u8; 4]>::try_from(&outer[12..16])
                .expect("an address")
                .into()
        };
        lab.clear_connections();
        lab.refill_answers();
        let told = error_to(source, Icmp::TooBig(MTU), &outer[..500], &[]);
        let verdict = lab.send(BACKENDS, &told).verdict;
        assert_eq!(verdict, Verdict::Answer("too_big"), "{cell:?}");
        // Nobody's packet has gone out from the address beside it.
        let mut strange = outer[..500].to_vec();
        let last = if cell.outer_ipv6 { 23 } else { 15 };
        strange[last] ^= 1;
        let told = error_to(elsewhere(source), Icmp::TooBig(MTU), &strange, &[]);
        assert_eq!(lab.send(BACKENDS, &told).verdict, NOT_OURS, "{cell:?}");
    }
}

/// The host's stack has what names no client, is about something else, or says something else.
#[test]
fn the_rest_is_the_hosts() {
    let lab = Lab::new(&every());
    for cell in tunnels() {
        for protocol in PROTOCOLS {
            let path = cell.establish(&lab, protocol, 1000);
            let outer = too_large(&path).0.bytes();
            let whole = |kind| error(&path, kind, &outer[..548], &[]);
            for kind in [Icmp::TimeExceeded, Icmp::HostUnreachable] {
                assert_eq!(lab.send(BACKENDS, &whole(kind)).verdict, NOT_OURS);
            }
            for length in [0, 8, 28, cell.overhead(), cell.overhead() + 20] {
                let cut = error(&path, Icmp::TooBig(MTU), &outer[..length], &[]);
                assert_eq!(lab.send(BACKENDS, &cut).verdict, NOT_OURS, "{length} bytes");
            }
            // About a packet that somebody else has sent.
            let strange = too_large(&path).0.with(|p| p.source = elsewhere(p.source));
            let other = error(&path, Icmp::TooBig(MTU), &strange.bytes()[..548], &[]);
            assert_eq!(lab.send(BACKENDS, &other).verdict, NOT_OURS);
            // No link has so small an MTU.
            let tiny = whole(Icmp::TooBig(60));
            assert_eq!(
                lab.send(BACKENDS, &tiny).verdict,
                Verdict::Drop("unanswerable")
            );
        }
    }
}
