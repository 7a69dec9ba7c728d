//! A client that sends its SYN once more: when that is the same connection, and when another.

use xdplb::datapath::abi::Flow;

use crate::harness::cells::{self, every, Path};
use crate::harness::dialog::{ends_of, Dialog};
use crate::harness::frame::{Protocol, ACK, PSH, RST, SEQUENCE, SYN};
use crate::harness::{at, Lab, Verdict, CLIENTS};

/// Connections that were opened, and that have ended, over all backends.
fn counted(lab: &Lab) -> (u64, u64) {
    let ids = lab.desired.backends.keys();
    ids.map(|&id| lab.connections(id))
        .fold((0, 0), |sum, (opened, ended)| {
            (sum.0 + opened, sum.1 + ended)
        })
}

fn state(lab: &Lab, path: &Path) -> (&'static str, &'static str) {
    let ends = path.outside();
    let flow = Flow {
        source: (ends.client.ip(), ends.client.port()),
        destination: (ends.server.ip(), ends.server.port()),
        protocol: path.protocol.number().0,
    };
    let entry = lab.entry(&flow).expect("the client's entry");
    (entry.stage, entry.state)
}

#[track_caller]
fn client(lab: &Lab, path: &Path, flags: u8, sequence: u32) {
    path.to_backend(lab, "the client", |ends| {
        let segment = path.between(ends, flags);
        segment.with(|f| f.sequence = sequence).packet()
    });
}

#[track_caller]
fn backend(lab: &Lab, path: &Path, flags: u8) {
    if !path.cell.mode.is_direct() {
        path.to_client(lab, "the backend", |ends| {
            path.back_between(ends, flags).packet()
        });
    }
}

/// A backend that still has a connection of the same addresses and ports answers a SYN as that one's
/// (RFC 5961, section 4). The client resets it, and sends its SYN again.
#[test]
fn the_same_syn_after_a_reset_is_the_same_connection() {
    let lab = Lab::new(&every());
    for cell in cells::all() {
        let before = counted(&lab);
        let path = cell.open(&lab, Protocol::Tcp, 1000);
        for _ in 0..2 {
            backend(&lab, &path, ACK);
            client(&lab, &path, RST, SEQUENCE + 77);
            assert_eq!(state(&lab, &path), ("half-open", "closed"), "{path:?}");
            assert_eq!(counted(&lab), (before.0 + 1, before.1 + 1), "{path:?}");
            client(&lab, &path, SYN, SEQUENCE);
            assert_eq!(state(&lab, &path), ("half-open", "opening"), "{path:?}");
            assert_eq!(counted(&lab), (before.0 + 1, before.1), "{path:?}");
        }
        backend(&lab, &path, SYN | ACK);
        client(&lab, &path, ACK, SEQUENCE + 1);
        assert_eq!(state(&lab, &path), ("proven", "established"));
        client(&lab, &path, PSH | ACK, SEQUENCE + 1);
        assert_eq!(counted(&lab), (before.0 + 1, before.1), "{path:?}");
        client(&lab, &path, RST, SEQUENCE + 1);
        assert_eq!(counted(&lab), (before.0 + 1, before.1 + 1), "{path:?}");
    }
}

/// What the backend has said before the reset does not count as its answer to the SYN after it.
#[test]
fn the_second_try_waits_for_an_answer_of_its_own() {
    let lab = Lab::new(&every());
    for cell in cells::translated() {
        let path = cell.open(&lab, Protocol::Tcp, 1000);
        backend(&lab, &path, ACK);
        client(&lab, &path, RST, SEQUENCE + 77);
        client(&lab, &path, SYN, SEQUENCE);
        client(&lab, &path, ACK, SEQUENCE + 1);
        assert_eq!(state(&lab, &path), ("half-open", "opening"), "{path:?}");
    }
}

#[test]
fn another_syn_after_a_reset_is_another_connection() {
    let lab = Lab::new(&every());
    for cell in cells::all() {
        let before = counted(&lab);
        let path = cell.open(&lab, Protocol::Tcp, 1000);
        client(&lab, &path, RST, SEQUENCE + 1);
        // Where full-nat goes from another port, that shows in what arrives.
        let again = path.request(SYN).with(|f| f.sequence = SEQUENCE + 5000);
        lab.send(CLIENTS, &again.bytes());
        assert_eq!(counted(&lab), (before.0 + 2, before.1 + 1), "{path:?}");
        assert_eq!(state(&lab, &path), ("half-open", "opening"), "{path:?}");
    }
}

/// Its number alone does not make it the same: a connection that was established has had its SYN.
#[test]
fn the_same_syn_after_an_established_connection_is_another() {
    let lab = Lab::new(&every());
    for cell in cells::all() {
        let before = counted(&lab);
        let path = cell.establish(&lab, Protocol::Tcp, 1000);
        client(&lab, &path, RST, SEQUENCE);
        lab.send(CLIENTS, &path.request(SYN).bytes());
        assert_eq!(counted(&lab), (before.0 + 2, before.1 + 1), "{path:?}");
    }
}

/// One that nobody would answer any more is balanced anew.
#[test]
fn the_same_syn_leaves_a_backend_that_is_gone() {
    let two = |forward| {
        format!(
            "[[service]]\nname = \"s\"\nvip = \"203.0.113.11\"\nprotocol = \"tcp\"\nport = 80\n\
             forward = \"{forward}\"\n[[service.backend]]\naddress = \"10.0.0.2\"\nport = 8080\n\
             [[service.backend]]\naddress = \"10.0.0.3\"\nport = 8080\n"
        )
    };
    for forward in ["nat", "full-nat"] {
        let mut lab = Lab::new(&two(forward));
        let d = Dialog::open(
            &lab,
            Protocol::Tcp,
            at("198.51.100.7:1000"),
            at("203.0.113.11:80"),
        );
        d.to_backend(&lab, RST);
        lab.set_way(&d.backend.ip().to_string(), None);
        let sent = lab.send(CLIENTS, &d.request(SYN).bytes());
        assert_eq!(sent.verdict, Verdict::Redirect);
        assert_ne!(ends_of(&sent.bytes).1, d.backend, "{forward}");
        assert_eq!(counted(&lab), (2, 1), "{forward}");
    }
}
