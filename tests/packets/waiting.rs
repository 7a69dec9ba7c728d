//! Connections of a backend that is not usable for a while: `on_down`.

use crate::harness::cases::{self, Case, STANDARD};
use crate::harness::dialog::{ends_of, Dialog};
use crate::harness::frame::{Protocol, ACK, PSH, SYN};
use crate::harness::{Lab, Verdict, BACKENDS, CLIENTS};

const UNRESOLVED: Verdict = Verdict::Drop("unresolved");

/// Each service with a second backend of each family, and with a key more if there is one.
fn services(key: &str) -> String {
    let mut text = STANDARD.to_owned();
    for (service, address) in [("nat", 12), ("full", 13)] {
        let (name, vip) = (format!("name = \"{service}\"\n"), format!("{key}\nvip ="));
        let at = text.find(&name).expect("the service");
        let (before, after) = text.split_at(at);
        let backends: String = [format!("10.0.0.{address}"), format!("fd00::{address}")]
            .iter()
            .map(|address| format!("[[service.backend]]\naddress = \"{address}\"\nport = 8080\n"))
            .collect();
        let after = after.replacen("vip =", &vip, 1);
        let end = after[1..]
            .find("[[service]]")
            .map_or(after.len(), |at| at + 1);
        text = format!("{before}{}{backends}\n{}", &after[..end], &after[end..]);
    }
    text
}

/// An established connection to that case's own backend, whichever client it takes.
fn at_its_backend(lab: &Lab, case: Case, open_only: bool) -> Dialog {
    for port in 3000.. {
        let d = Dialog::open(lab, case.protocol, case.client_at(port), case.vip());
        if d.backend != case.backend() {
            continue;
        }
        if !open_only {
            d.to_client(lab, SYN | ACK);
            d.to_backend(lab, ACK);
        }
        return d;
    }
    unreachable!("ports are tried until one leads there")
}

fn lose(lab: &mut Lab, case: Case, text: &str) {
    lab.hops.insert(case.backend().ip(), None);
    lab.reload(text);
}

fn find(lab: &mut Lab, text: &str) {
    lab.hops.clear();
    lab.reload(text);
}

/// What the client sends is dropped and counted, what the backend sends arrives; later all goes on.
#[track_caller]
fn waits(lab: &mut Lab, case: Case, text: &str) {
    let d = at_its_backend(lab, case, false);
    let state = d.state(lab);
    lose(lab, case, text);
    lab.forget_copies();
    for _ in 0..2 {
        let sent = lab.send(CLIENTS, &d.request(PSH | ACK).bytes());
        assert_eq!(sent.verdict, UNRESOLVED, "{case:?}");
        d.to_client(lab, PSH | ACK);
    }
    // New ones go to the other one.
    for port in 5000..5020 {
        let new = Dialog::open(lab, case.protocol, case.client_at(port), case.vip());
        assert_ne!(new.backend, case.backend());
    }
    assert_eq!(d.state(lab), state);
    find(lab, text);
    d.to_backend(lab, PSH | ACK);
    d.to_client(lab, PSH | ACK);
    assert_eq!(d.state(lab), state);
}

/// The next packet of the client goes to the other backend, as a new connection.
#[track_caller]
fn chooses_anew(lab: &mut Lab, case: Case, text: &str) {
    let d = at_its_backend(lab, case, false);
    lose(lab, case, text);
    // Within the moment for which CPUs keep copies, and an entry is not written.
    lab.age(&d);
    let sent = lab.send(CLIENTS, &d.request(PSH | ACK).bytes());
    assert_eq!(sent.verdict, Verdict::Redirect, "{case:?}");
    let (_, backend) = ends_of(&sent.bytes);
    assert_ne!(backend, case.backend(), "{case:?}");
    find(lab, text);
}

#[test]
fn by_default_tcp_waits_and_udp_does_not() {
    let text = services("");
    let mut lab = Lab::new(&text);
    for case in cases::all() {
        match case.protocol {
            Protocol::Tcp => waits(&mut lab, case, &text),
            Protocol::Udp => chooses_anew(&mut lab, case, &text),
        }
    }
}

#[test]
fn keep() {
    let text = services("on_down = \"keep\"");
    let mut lab = Lab::new(&text);
    for case in cases::all() {
        waits(&mut lab, case, &text);
    }
}

#[test]
fn rehash() {
    let text = services("on_down = \"rehash\"");
    let mut lab = Lab::new(&text);
    for case in cases::all() {
        chooses_anew(&mut lab, case, &text);
    }
}

/// Where there is no other backend, the connection stays for this one.
#[test]
fn rehash_without_another_one() {
    let text = STANDARD.replace("forward =", "on_down = \"rehash\"\nforward =");
    let mut lab = Lab::new(&text);
    for case in cases::all() {
        let d = case.establish_from(&lab, case.client_at(6000));
        let state = d.state(&lab);
        lose(&mut lab, case, &text);
        lab.age(&d);
        let sent = lab.send(CLIENTS, &d.request(PSH | ACK).bytes());
        assert_eq!(sent.verdict, Verdict::Drop("no_backend"), "{case:?}");
        find(&mut lab, &text);
        d.to_backend(&lab, PSH | ACK);
        assert_eq!(d.state(&lab), state);
    }
}

/// A backend that has not answered yet is not waited for: nobody loses anything.
#[test]
fn a_connection_that_opens_goes_elsewhere() {
    let text = services("");
    let mut lab = Lab::new(&text);
    for case in cases::tcp() {
        let d = at_its_backend(&lab, case, true);
        lose(&mut lab, case, &text);
        let sent = lab.send(CLIENTS, &d.request(SYN).bytes());
        assert_eq!(sent.verdict, Verdict::Redirect);
        let (_, backend) = ends_of(&sent.bytes);
        assert_ne!(backend, case.backend());
        find(&mut lab, &text);
    }
}

/// One that the operator puts down keeps nobody, and one that drains everybody.
#[test]
fn down_and_drain() {
    let text = services("");
    let mut lab = Lab::new(&text);
    for case in cases::all() {
        let set = |state: &str| {
            let name = format!("name = \"{}\"\n", case.backend_name());
            text.replace(&name, &format!("{name}state = \"{state}\"\n"))
        };
        let d = at_its_backend(&lab, case, false);
        lab.reload(&set("drain"));
        d.to_backend(&lab, PSH | ACK);
        d.to_client(&lab, PSH | ACK);
        lab.reload(&set("down"));
        let sent = lab.send(CLIENTS, &d.request(PSH | ACK).bytes());
        assert_eq!(sent.verdict, Verdict::Redirect);
        let (_, backend) = ends_of(&sent.bytes);
        assert_ne!(backend, case.backend(), "{case:?}");
        let late = lab.send(BACKENDS, &d.reply(PSH | ACK).bytes());
        assert_eq!(late.verdict, Verdict::Pass("not_ours"), "{case:?}");
        lab.reload(&text);
    }
}
