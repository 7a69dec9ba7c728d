//! Which service has a port, and which addresses are VIPs.

use xdplb::config::{PortRange, Protocol};
use xdplb::state::{bindings_changed, filter};

use crate::{config, first_plan, ip, planned, service, VIP, VIP6};

#[test]
fn a_port_belongs_to_the_longest_prefix() {
    let mut any = service("any", &[VIP], 0, &[]);
    any.ports = vec![PortRange::ANY];
    let desired = first_plan(&config(vec![any, service("web", &[VIP], 80, &[])]));
    assert_eq!(desired.still_bound(ip(VIP), 6, 81), Some(0));
    assert_eq!(desired.still_bound(ip(VIP), 6, 80), Some(1));
    assert_eq!(desired.still_bound(ip(VIP), 17, 80), None);
    assert_eq!(desired.still_bound(ip(VIP), 1, 0), None);
    assert_eq!(desired.still_bound(ip("10.0.0.1"), 6, 80), None);
}

#[test]
fn bindings_change_when_a_port_changes_hands() {
    let web = || service("web", &[VIP], 80, &["10.0.0.1"]);
    let tls = || service("tls", &[VIP], 443, &["10.0.0.1"]);
    let any = || config::Service {
        ports: vec![PortRange::ANY],
        ..service("any", &[VIP], 0, &[])
    };
    let before = first_plan(&config(vec![web(), tls()]));
    let changed = |services| bindings_changed(&before, &planned(&before, &config(services)));
    assert!(!changed(vec![tls(), web()]));
    assert!(!changed(vec![
        web(),
        tls(),
        service("dns", &[VIP], 53, &[])
    ]));
    assert!(!changed(vec![tls(), service("renamed", &[VIP], 80, &[])]));
    assert!(changed(vec![web()]));
    assert!(changed(vec![service("web", &[VIP], 81, &[]), tls()]));
    assert!(changed(vec![
        config::Service {
            protocols: vec![Protocol::Udp],
            ..web()
        },
        tls()
    ]));

    let wide = first_plan(&config(vec![any()]));
    let narrowed = planned(&wide, &config(vec![any(), web()]));
    assert!(
        bindings_changed(&wide, &narrowed),
        "web took port 80 from any"
    );
}

#[test]
fn filter_bits_are_those_of_the_datapath() {
    let expected = |word: u32| (word.wrapping_mul(0x9E37_79B1) >> 16) as u16;
    let v4 = u32::from_ne_bytes([203, 0, 113, 11]);
    assert_eq!(filter::bit(ip(VIP)), expected(v4));
    let words = [
        [0x20, 1, 0x0d, 0xb8],
        [0, 1, 0, 0],
        [0, 0, 0, 0],
        [0, 0, 0, 0x11],
    ]
    .map(u32::from_ne_bytes);
    let folded =
        words[0] ^ words[1].rotate_left(8) ^ words[2].rotate_left(16) ^ words[3].rotate_left(24);
    assert_eq!(filter::bit(ip(VIP6)), expected(folded));

    let words = filter::words([ip(VIP), ip(VIP6)]);
    assert_eq!(words.iter().map(|word| word.count_ones()).sum::<u32>(), 2);
}
