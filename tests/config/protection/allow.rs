//! `service.allow`.

use super::{not_warned, prefix, warned};
use crate::{parse, refused, valid, with_port, DATAPATH};

#[test]
fn allow() {
    let with = |allow: &str| {
        with_port(&format!(
            "port = 80\nallow = {allow}\nbackend = [{{ address = \"10.0.5.2\" }}]"
        ))
    };
    let of = |text: &str| valid(&with(text)).services.remove(0).allow;
    assert_eq!(of("[]"), []);
    assert_eq!(
        of("[\"198.51.100.0/24\", \"192.0.2.1\"]"),
        [prefix("198.51.100.0/24"), prefix("192.0.2.1")]
    );
    assert_eq!(valid(&with_port("port = 80")).services[0].allow, []);
    for (text, phrase) in [
        (
            "¶\"10.0.0.0/8\"",
            "allow is a string; write a list: allow = [",
        ),
        (
            "[¶\"any\"]",
            "allow is \"any\", which is not a prefix; write an address",
        ),
        ("[¶\"10.0.0.1/8\"]", "write 10.0.0.0/8 for the prefix"),
        ("[¶\"::ffff:10.0.0.1\"]", "in IPv6 notation; write 10.0.0.1"),
        (
            "[¶7]",
            "is an integer; write a string such as \"198.51.100.0/24\"",
        ),
        (
            "[\"10.0.0.0/8\", ¶\"10.0.0.0/8\"]",
            "allow has 10.0.0.0/8 twice; remove one",
        ),
    ] {
        refused(&with(text), &["service \"web\": ", phrase]);
    }

    let (v4, v6) = ("\"198.51.100.0/24\"", "\"2001:db8::/32\"");
    not_warned(&with(&format!("[{v4}]")));
    not_warned(&with("[]"));
    warned(
        &with(&format!("¶[{v4}, {v6}]")),
        &["allow has 2001:db8::/32, but the service has no IPv6 VIP; add one, or remove the prefix"],
    );
    let both = "vip = [\"203.0.113.11\", \"2001:db8:1::11\"]\nprotocol = \"tcp\"\nport = 80\n\
                backend = [{ address = \"10.0.5.2\" }, { address = \"2001:db8:5::2\" }]\n";
    let both =
        |allow: &str| format!("{DATAPATH}[[service]]\nname = \"web\"\n{both}allow = {allow}\n");
    not_warned(&both(&format!("[{v4}, {v6}]")));
    warned(
        &both(&format!("¶[{v4}]")),
        &["allow has no IPv6 prefix, so no client reaches its IPv6 VIPs; add one, or remove"],
    );
    // Both: the prefix is of no use, and nobody reaches the VIP.
    let warnings = parse(&with(&format!("[{v6}]"))).expect("valid").warnings;
    assert_eq!(warnings.len(), 2, "{warnings:#?}");
}
