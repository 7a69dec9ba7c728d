//! ICMP errors of a router between us and a backend, about our tunnel packets: the client hears of them.

use crate::harness::cells::{self, every, Cell, Path, PROTOCOLS};
use crate::harness::frame::{ACK, DOT1AD, DOT1Q, PSH};
use crate::harness::ip::{Ethernet, Icmp, Packet};
use crate::harness::{assert_same, ip, own_mac, Lab, Verdict, BACKENDS, CLIENTS, ROUTER};
use xdplb::config::MacAddress;

const NOT_OURS: Verdict = Verdict::Pass("not_ours");
const MTU: u32 = 1400;

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

/// The router's frame about the first bytes of a tunnel packet.
fn error(path: &Path, kind: Icmp, quoted: &[u8], tags: &[(u16, u16)]) -> Vec<u8> {
    let tunnel = path.tunnel().expect("a tunnel");
    let router = ip(if tunnel.source.is_ipv4() {
        "10.0.0.254"
    } else {
        "fd00::254"
    });
    let ethernet = Ethernet {
        to: own_mac(BACKENDS),
        from: MacAddress([2, 0, 0, 0, 0, 0x77]),
        tags: tags.to_vec(),
    };
    ethernet.carrying(&kind.about(router, tunnel.source, quoted))
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
            // Of a client that we have no connection of.
            let stranger = Path {
                client: cell.client_at(4000),
                seen: cell.client_at(4000),
                ..path.clone()
            };
            let other = too_large(&stranger).0.bytes();
            let unknown = error(&path, Icmp::TooBig(MTU), &other[..548], &[]);
            assert_eq!(lab.send(BACKENDS, &unknown).verdict, NOT_OURS);
            // No link has so small an MTU.
            let tiny = whole(Icmp::TooBig(60));
            assert_eq!(
                lab.send(BACKENDS, &tiny).verdict,
                Verdict::Drop("unanswerable")
            );
        }
    }
}
