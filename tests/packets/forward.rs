//! Packets before and after balancing: every forward mode, family and protocol, both directions, and what
//! must not matter on the way, such as tags, options, lengths and padding.

use std::net::SocketAddr;

use crate::harness::cases::{self, Case, STANDARD};
use crate::harness::dialog::{ends_of, Dialog};
use crate::harness::frame::{Frame, Protocol, ACK, DOT1AD, DOT1Q, FIN, PSH, RST, SYN};
use crate::harness::{
    assert_same, at, backend_mac, ip, own_mac, Lab, Traffic, Verdict, BACKENDS, CLIENTS, OTHER,
    OTHER_ROUTER, ROUTER,
};
use crate::property::one_in;
use libbpf_rs::MapCore;
use xdplb::config::MacAddress;
use xdplb::datapath::Interface;
use xdplb::state::Hop;

#[test]
fn tcp_from_handshake_to_close() {
    let lab = Lab::new(STANDARD);
    for case in cases::tcp() {
        let d = case.open(&lab);
        d.to_client(&lab, SYN | ACK);
        d.to_backend(&lab, ACK);
        d.deliver(
            &lab,
            &d.request(PSH | ACK).with(|f| f.payload = b"GET /".to_vec()),
        );
        d.answer(
            &lab,
            &d.reply(PSH | ACK).with(|f| f.payload = b"200 OK".to_vec()),
        );
        d.to_backend(&lab, FIN | ACK);
        d.to_client(&lab, ACK);
        d.answer(
            &lab,
            &d.reply(PSH | ACK)
                .with(|f| f.payload = b"the rest".to_vec()),
        );
        d.to_client(&lab, FIN | ACK);
        d.to_backend(&lab, ACK);
    }
}

#[test]
fn udp_first_datagram_and_all_others() {
    let lab = Lab::new(STANDARD);
    for case in cases::udp() {
        let d = case.open(&lab);
        for _ in 0..3 {
            d.to_backend(&lab, 0);
        }
        for _ in 0..3 {
            d.to_client(&lab, 0);
            d.to_backend(&lab, 0);
        }
    }
}

#[test]
fn traffic_is_counted_without_padding() {
    let lab = Lab::new(STANDARD);
    for case in cases::all() {
        let id = lab.backend_id(case.backend_name());
        let before = lab.traffic(id);
        let d = case.establish(&lab);
        let (request, reply) = (d.request(PSH | ACK), d.reply(PSH | ACK));
        let (request, reply) = (
            request.with(|f| f.padding = vec![0; 18]),
            reply.with(|f| f.padding = vec![0; 7]),
        );
        let after_handshake = lab.traffic(id);
        assert_eq!(after_handshake.connections, before.connections + 1);
        d.deliver(&lab, &request);
        d.deliver(&lab, &request);
        d.answer(&lab, &reply);
        let expected = Traffic {
            packets_in: after_handshake.packets_in + 2,
            bytes_in: after_handshake.bytes_in + 2 * (request.bytes().len() as u64 - 18),
            packets_out: after_handshake.packets_out + 1,
            bytes_out: after_handshake.bytes_out + (reply.bytes().len() as u64 - 7),
            connections: after_handshake.connections,
        };
        assert_eq!(lab.traffic(id), expected, "{case:?}");
    }
}

/// Sends both directions of an established connection, and the first packet of others, changed alike.
#[track_caller]
fn unharmed_by(lab: &Lab, case: Case, what: &str, change: impl Fn(&mut Frame)) {
    // Each kind of change gets ports of its own, so that none meets a former one's connection.
    static PORT: std::sync::atomic::AtomicU16 = std::sync::atomic::AtomicU16::new(1024);
    let port = PORT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let d = case.establish_from(lab, case.client_at(port));
    println!("{what}, {case:?}");
    d.deliver(lab, &d.request(PSH | ACK).with(&change));
    d.answer(lab, &d.reply(PSH | ACK).with(&change));

    let client = case.client_at(port + 20000);
    let first = d.with_client(client);
    let sent = lab.send(CLIENTS, &first.request(SYN).with(&change).bytes());
    assert_eq!(
        sent.verdict,
        Verdict::Redirect,
        "{what}, first packet, {case:?}"
    );
    let (seen, backend) = ends_of(&sent.bytes);
    let first = Dialog {
        seen,
        backend,
        ..first
    };
    let expected = first
        .request(SYN)
        .with(&change)
        .becomes(seen, backend)
        .between(own_mac(BACKENDS), backend_mac(backend.ip()));
    assert_same(what, &sent.bytes, &expected.bytes());
}

#[test]
fn vlan_tags_stay() {
    let lab = Lab::new(STANDARD);
    for case in cases::all() {
        for tags in [
            vec![(DOT1Q, 0x2064)],
            vec![(DOT1AD, 0x0fff)],
            vec![(DOT1AD, 100), (DOT1Q, 200)],
            vec![(DOT1Q, 1), (DOT1Q, 2)],
        ] {
            unharmed_by(&lab, case, &format!("tags {tags:x?}"), |f| {
                f.tags = tags.clone()
            });
        }
    }
}

#[test]
fn three_vlan_tags_are_the_hosts() {
    let lab = Lab::new(STANDARD);
    for case in cases::all() {
        let d = case.establish(&lab);
        let tags = vec![(DOT1AD, 1), (DOT1Q, 2), (DOT1Q, 3)];
        let request = d.request(ACK).with(|f| f.tags = tags.clone());
        assert_eq!(
            lab.send(CLIENTS, &request.bytes()).verdict,
            Verdict::Pass("not_ip")
        );
    }
}

#[test]
fn ipv4_options_of_every_length() {
    let lab = Lab::new(STANDARD);
    for case in cases::all().filter(|case| !case.ipv6) {
        for words in 1..=10 {
            // No-operation, with an odd one out so that the words differ.
            let mut options = vec![1_u8; 4 * words];
            options[4 * words - 1] = 0;
            unharmed_by(&lab, case, &format!("ihl {}", 5 + words), |f| {
                f.options = options.clone();
            });
        }
    }
}

#[test]
fn tcp_options_of_every_length() {
    let lab = Lab::new(STANDARD);
    for case in cases::tcp() {
        for words in 1..=10 {
            let options = vec![1; 4 * words];
            unharmed_by(&lab, case, &format!("doff {}", 5 + words), |f| {
                f.tcp_options = options.clone();
            });
        }
    }
}

#[test]
fn odd_lengths_and_padding() {
    let lab = Lab::new(STANDARD);
    for case in cases::all() {
        for length in [0, 1, 2, 3, 5, 17, 18, 255, 1399] {
            let payload: Vec<u8> = (0..length).map(|i| (i * 7 + 13) as u8).collect();
            for padding in [0, 1, 6, 46] {
                // Not zeros: counted into a checksum, they would show.
                let padding = vec![0xa5; padding];
                let what = format!("{length} bytes and {} of padding", padding.len());
                unharmed_by(&lab, case, &what, |f| {
                    f.payload.clone_from(&payload);
                    f.padding.clone_from(&padding);
                });
            }
        }
    }
}

#[test]
fn jumbo_frames() {
    let mut lab = Lab::new(STANDARD);
    lab.set_mtu(65535);
    for case in cases::all() {
        for length in [3000, 3500, 4096, 8959, 20001, 65400] {
            let payload: Vec<u8> = (0..length).map(|i| (i % 251) as u8).collect();
            unharmed_by(&lab, case, &format!("{length} bytes"), |f| {
                f.payload.clone_from(&payload);
            });
        }
    }
}

#[test]
fn jumbo_frames_are_counted_in_full() {
    let mut lab = Lab::new(STANDARD);
    // IPv6 counts its header apart.
    lab.set_mtu(65535 + 40);
    for case in cases::all() {
        let d = case.establish(&lab);
        let id = lab.backend_id(case.backend_name());
        let before = lab.traffic(id);
        let longest = if case.protocol == Protocol::Tcp {
            65495
        } else {
            65507
        };
        let request = d.request(ACK).with(|f| f.payload = vec![1; longest]);
        d.deliver(&lab, &request);
        let bytes = lab.traffic(id).bytes_in - before.bytes_in;
        assert_eq!(bytes, request.bytes().len() as u64, "{case:?}");
    }
}

#[test]
fn ttl_goes_down_by_one_and_ends_at_one() {
    let lab = Lab::new(STANDARD);
    for case in cases::all() {
        for ttl in [255, 128, 3, 2] {
            unharmed_by(&lab, case, &format!("TTL {ttl}"), |f| f.ttl = ttl);
        }
        let d = case.establish(&lab);
        let entries = lab.entries().len();
        for ttl in [1, 0] {
            let first = Dialog {
                client: case.client_at(60000),
                ..d.clone()
            };
            for (slot, frame) in [
                (CLIENTS, d.request(ACK)),
                (BACKENDS, d.reply(ACK)),
                (CLIENTS, first.request(SYN)),
            ] {
                let sent = lab.send(slot, &frame.with(|f| f.ttl = ttl).bytes());
                assert_eq!(
                    sent.verdict,
                    Verdict::Answer("ttl_expired"),
                    "{case:?}, TTL {ttl}"
                );
            }
        }
        assert_eq!(
            lab.entries().len(),
            entries,
            "a packet that goes no further made an entry"
        );
    }
}

#[test]
fn udp_without_a_checksum_stays_without() {
    let lab = Lab::new(STANDARD);
    for case in cases::udp().filter(|case| !case.ipv6) {
        unharmed_by(&lab, case, "UDP checksum 0", |f| f.checksum = false);
    }
}

/// A sum of 0 is sent as 0xffff (RFC 768). A payload that is the sum without it makes it come out so.
#[test]
fn udp_checksum_that_becomes_zero() {
    let lab = Lab::new(STANDARD);
    for case in cases::udp() {
        let d = case.establish(&lab);
        let checksum = |frame: &Frame| {
            let at = frame.l4() + 6;
            [frame.bytes()[at], frame.bytes()[at + 1]]
        };
        let carrying = |frame: Frame, word: [u8; 2]| frame.with(|f| f.payload = word.to_vec());
        let there = |word| carrying(d.request(0), word);
        let sum = checksum(&there([0, 0]).becomes(d.seen, d.backend));
        assert_eq!(
            checksum(&there(sum).becomes(d.seen, d.backend)),
            [0xff, 0xff]
        );
        d.deliver(&lab, &there(sum));
        let back = |word| carrying(d.reply(0), word);
        let sum = checksum(&back([0, 0]).becomes(d.vip, d.client));
        assert_eq!(checksum(&back(sum).becomes(d.vip, d.client)), [0xff, 0xff]);
        d.answer(&lab, &back(sum));
    }
}

/// Every sum comes out right, those around 0 and 0xffff above all.
#[test]
fn every_tcp_and_udp_checksum() {
    let lab = Lab::new(STANDARD);
    for case in cases::all() {
        let d = case.establish(&lab);
        for word in (0..=u16::MAX)
            .step_by(257 * one_in())
            .chain(0..8)
            .chain(0xfff8..=0xffff)
        {
            let payload = word.to_be_bytes().to_vec();
            d.deliver(
                &lab,
                &d.request(ACK).with(|f| f.payload.clone_from(&payload)),
            );
            d.answer(&lab, &d.reply(ACK).with(|f| f.payload.clone_from(&payload)));
        }
    }
}

#[test]
fn client_behind_another_router() {
    let lab = Lab::new(STANDARD);
    for case in cases::all() {
        let mut d = case.establish(&lab);
        d.router = OTHER_ROUTER;
        d.to_backend(&lab, ACK);
        d.to_client(&lab, ACK);
        d.slot = OTHER;
        d.to_backend(&lab, ACK);
        d.to_client(&lab, ACK);
        // The backends' own side: one-armed from here on.
        d.slot = BACKENDS;
        d.to_backend(&lab, ACK);
        d.to_client(&lab, ACK);
        (d.router, d.slot) = (ROUTER, CLIENTS);
        d.to_backend(&lab, ACK);
        d.to_client(&lab, ACK);
    }
}

#[test]
fn client_moves_while_the_connection_is_half_open() {
    let lab = Lab::new(STANDARD);
    for case in cases::all() {
        let mut d = case.open(&lab);
        (d.router, d.slot) = (OTHER_ROUTER, OTHER);
        d.to_backend(&lab, SYN);
        d.to_client(&lab, SYN | ACK);
        d.to_backend(&lab, ACK);
        d.to_client(&lab, ACK);
    }
}

#[test]
fn on_one_interface_packets_go_back_out() {
    let mut lab = Lab::new(STANDARD);
    for case in cases::all() {
        let address = case.backend().ip();
        let hop = Hop {
            mac: backend_mac(address),
            slot: BACKENDS,
            on_link: true,
        };
        lab.hops.insert(address, Some(hop));
    }
    lab.reload(STANDARD);
    for case in cases::all() {
        let mut d = case.establish(&lab);
        d.slot = BACKENDS;
        for _ in 0..2 {
            // `Dialog` expects XDP_TX where both sides are one interface.
            d.to_backend(&lab, ACK);
            d.to_client(&lab, ACK);
        }
    }
}

#[test]
fn backend_with_another_mac_address() {
    let mut lab = Lab::new(STANDARD);
    let dialogs: Vec<_> = cases::all()
        .map(|case| (case, case.establish(&lab)))
        .collect();
    let moved = MacAddress([0x02, 0xbe, 0xff, 1, 2, 3]);
    for case in cases::all() {
        let hop = Hop {
            mac: moved,
            slot: OTHER,
            on_link: true,
        };
        lab.hops.insert(case.backend().ip(), Some(hop));
    }
    lab.reload(STANDARD);
    for (case, d) in dialogs {
        let request = d.request(ACK);
        let sent = lab.send(CLIENTS, &request.bytes());
        assert_eq!(sent.verdict, Verdict::Redirect);
        let expected = request
            .becomes(d.seen, d.backend)
            .between(own_mac(OTHER), moved);
        assert_same("moved", &sent.bytes, &expected.bytes());
        // Replies come by whichever interface.
        d.to_client(&lab, ACK);
        let reply = d.reply(ACK);
        let sent = lab.send(OTHER, &reply.bytes());
        assert_eq!(sent.verdict, Verdict::Redirect, "{case:?}");
        let expected = reply
            .becomes(d.vip, d.client)
            .between(own_mac(CLIENTS), ROUTER);
        assert_same("its reply", &sent.bytes, &expected.bytes());
    }
}

#[test]
fn own_mac_address_changes() {
    let mut lab = Lab::new(STANDARD);
    let dialogs: Vec<_> = cases::all().map(|case| case.establish(&lab)).collect();
    let ours = MacAddress([0x02, 0x1b, 0xff, 1, 2, 3]);
    let interface = Interface {
        mac: ours,
        ..lab.interface(BACKENDS)
    };
    lab.datapath.update_interface(BACKENDS, &interface);
    for d in dialogs {
        let request = d.request(ACK);
        let sent = lab.send(CLIENTS, &request.bytes());
        let expected = request
            .becomes(d.seen, d.backend)
            .between(ours, backend_mac(d.backend.ip()));
        assert_same("from a new address", &sent.bytes, &expected.bytes());
    }
}

/// A backend without a port gets the client's own; with another, the port is translated.
#[test]
fn port_kept_and_translated() {
    let services = r#"
[[service]]
name = "kept"
vip = ["203.0.113.21", "2001:db8:1::21"]
protocol = ["tcp", "udp"]
port = [53, "8000-8010"]
forward = "MODE"
[[service.backend]]
address = "10.0.0.2"
[[service.backend]]
address = "fd00::2"
"#;
    for mode in ["nat", "full-nat"] {
        let lab = Lab::new(&services.replace("MODE", mode));
        for (client, vip, backend) in [
            ("198.51.100.7:4242", "203.0.113.21", "10.0.0.2"),
            ("[2001:db8:c::7]:4242", "2001:db8:1::21", "fd00::2"),
        ] {
            for port in [53, 8000, 8007, 8010] {
                for protocol in [Protocol::Tcp, Protocol::Udp] {
                    let vip = SocketAddr::new(ip(vip), port);
                    let d = Dialog::open(&lab, protocol, at(client), vip);
                    assert_eq!(d.backend, SocketAddr::new(ip(backend), port));
                    d.to_client(&lab, SYN | ACK);
                    d.to_backend(&lab, ACK);
                }
            }
        }
    }
}

/// A reset that belongs to no connection reaches the backend that a SYN would have reached, and makes no entry.
#[test]
fn reset_without_a_connection() {
    let lab = Lab::new(STANDARD);
    for case in cases::tcp() {
        let d = case.open(&lab);
        let stray = d.with_client(case.client_at(999));
        let entries = lab.entries().len();
        if case.full_nat {
            let sent = lab.send(CLIENTS, &stray.request(RST).bytes());
            assert_eq!(sent.verdict, Verdict::Redirect);
            let (seen, backend) = ends_of(&sent.bytes);
            assert_eq!(backend, case.backend());
            assert_ne!(seen, d.seen, "the port of a connection");
        } else {
            stray.to_backend(&lab, RST);
            stray.to_backend(&lab, RST | ACK);
        }
        assert_eq!(lab.entries().len(), entries, "{case:?}");
    }
}

/// The kernel has taken the interface out of the devmap, and nobody has told us yet.
#[test]
fn interface_that_has_gone() {
    let lab = Lab::new(STANDARD);
    let dialogs: Vec<_> = cases::all().map(|case| case.establish(&lab)).collect();
    let slot = u32::from(BACKENDS).to_ne_bytes();
    lab.map("tx_ports").delete(&slot).expect("its entry");
    for d in dialogs {
        let sent = lab.send(CLIENTS, &d.request(ACK).bytes());
        assert_eq!(sent.verdict, Verdict::Drop("no_interface"));
        d.to_client(&lab, ACK);
    }
}
