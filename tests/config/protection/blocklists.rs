//! `firewall.blocklists`, and the files that it names.

use std::fmt::Write;
use std::path::Path;
use std::sync::Arc;

use xdplb::config::blocklist::{self, Contents};
use xdplb::config::Error;

use super::prefix;
use crate::{parse, DATAPATH, FILE};

#[test]
fn what_a_blocklist_may_hold() {
    let text =
        "\u{feff}# made by hand\r\n\r\n  198.51.100.0/24  \r\n192.0.2.1\r\n\t2001:db8::/32 # lab\n\
                10.0.0.0/8#none\n#\n   \n2001:db8::1\n0.0.0.0/0\n198.51.100.0/24";
    let expected = [
        "198.51.100.0/24",
        "192.0.2.1",
        "2001:db8::/32",
        "10.0.0.0/8",
        "2001:db8::1",
        "0.0.0.0/0",
        "198.51.100.0/24",
    ];
    let prefixes = blocklist::parse(text, Path::new("list.txt")).expect("valid");
    assert_eq!(prefixes, expected.map(prefix));
    assert_eq!(
        blocklist::parse("", Path::new("list.txt")).expect("valid"),
        []
    );
}

fn faults(text: &str) -> Vec<String> {
    match blocklist::parse(text, Path::new("list.txt")) {
        Err(Error::Invalid(faults)) => faults.iter().map(ToString::to_string).collect(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn faults_of_a_blocklist() {
    for (text, expected) in [
        (
            "192.0.2.1\n  # ok\n  example.com # no\n",
            "list.txt:3:3: \"example.com\" is not a prefix; write an address, or an address and a length",
        ),
        (
            "198.51.100.7/24",
            "list.txt:1:1: \"198.51.100.7/24\" has bits set beyond its length; write 198.51.100.0/24 for \
             the prefix, or 198.51.100.7",
        ),
        ("\n10.0.0.0/33", "list.txt:2:1: \"10.0.0.0/33\" has a length that is not a number from 0 to 32; write 10.0.0.0 for"),
        ("::ffff:192.0.2.1", "is IPv4 in IPv6 notation; write 192.0.2.1"),
        ("192.0.2.1 192.0.2.2", "list.txt:1:1: \"192.0.2.1 192.0.2.2\" is not a prefix"),
        ("192.0.2.1,", "is not a prefix"),
        ("192.0.2.1 ; why", "is not a prefix"),
        ("\u{a0}\u{a0}x", "list.txt:1:3: \"x\" is not a prefix"),
        ("\u{1b}[2J", "list.txt:1:1: \"\\u{1b}[2J\" is not a prefix"),
    ] {
        let [ref fault] = faults(text)[..] else {
            panic!("{:#?}", faults(text))
        };
        assert!(fault.contains(expected), "{fault}");
    }
    // A few of many, and how many there are.
    let lines: String = (0..1000).map(|n| format!("192.0.2.1\nbad-{n}\n")).collect();
    let found = faults(&lines);
    assert_eq!(found.len(), 11);
    assert!(
        found[0].starts_with("list.txt:2:1: \"bad-0\""),
        "{}",
        found[0]
    );
    assert!(
        found[9].starts_with("list.txt:20:1: \"bad-9\""),
        "{}",
        found[9]
    );
    assert_eq!(
        found[10],
        "list.txt:22:1: this line and 989 after it are not prefixes either; correct them too"
    );
    let eleven = faults(&"bad\n".repeat(11));
    assert!(eleven[10].starts_with("list.txt:11:1: \"bad\" is not a prefix"));
}

#[test]
fn where_a_blocklist_is() {
    for (config, written, place) in [
        ("/etc/xdplb/lb.toml", "/var/list", "/var/list"),
        ("/etc/xdplb/lb.toml", "list", "/etc/xdplb/list"),
        ("/etc/xdplb/lb.toml", "../list", "/etc/xdplb/../list"),
        ("conf/lb.toml", "list", "conf/list"),
        ("lb.toml", "list", "list"),
    ] {
        let found = blocklist::locate(Path::new(config), Path::new(written));
        assert_eq!(found, Path::new(place));
    }
}

#[test]
fn files_of_blocklists() {
    let directory = std::env::temp_dir().join(format!("xdplb-blocklist-{}", std::process::id()));
    std::fs::create_dir_all(directory.join("d")).expect("a directory for the test");
    let write = |name: &str, text: &[u8]| {
        std::fs::write(directory.join(name), text).expect("a file for the test");
    };
    write("a", b"192.0.2.1\n");
    write("b", b"198.51.100.0/24\n2001:db8::/32\n");
    let file = directory.join(FILE);
    let lists = |files: &str| {
        let text = format!("{DATAPATH}[firewall]\nblocklists = [{files}]\n");
        let loaded = xdplb::config::parse(&text, &file).expect("valid");
        let firewall = loaded.config.firewall.expect("a firewall");
        let named = loaded.blocklists.iter().map(|list| &list.path);
        assert!(firewall.blocklists.iter().eq(named));
        loaded.blocklists
    };
    let both = lists("\"a\", \"b\"");
    let first = blocklist::load_all(&both, &Contents::new()).expect("valid");
    assert_eq!(first.len(), 2);
    assert_eq!(first[Path::new("b")].len(), 2);

    // What has not changed is the same allocation.
    write("b", b"198.51.100.0/24\n");
    let second = blocklist::load_all(&both, &first).expect("valid");
    let same = |path: &str| Arc::ptr_eq(&first[Path::new(path)], &second[Path::new(path)]);
    assert!(same("a") && !same("b"));
    assert_eq!(second[Path::new("b")].len(), 1);

    // Everything that is wrong, file by file.
    write("a", b"192.0.2.1\nlocalhost\n");
    write("c", b"# \xff\n");
    let all = lists("\"a\", \"none\", \"b\",\n  \"c\", \"d\"");
    let error = blocklist::load_all(&all, &first)
        .expect_err("faults")
        .to_string();
    let lines: Vec<&str> = error.lines().collect();
    let expected = [
        ("a:2:1: ", "\"localhost\" is not a prefix; write"),
        (
            "lb.toml:4:20: firewall: blocklists names ",
            "/none: No such file or directory (os error 2); create it, or take it out of this list",
        ),
        ("c:1:3: ", "this byte is not UTF-8; save the file as UTF-8"),
        (
            "lb.toml:5:8: firewall: blocklists names ",
            "/d: Is a directory (os error 21); name the files in it instead",
        ),
    ];
    assert_eq!(lines.len(), expected.len(), "{error}");
    for (line, (place, phrase)) in lines.iter().zip(expected) {
        let place = format!("{}/{place}", directory.display());
        assert!(line.starts_with(&place) && line.contains(phrase), "{line}");
    }
    // Without a firewall there are none.
    assert_eq!(parse(DATAPATH).expect("valid").blocklists, []);
    std::fs::remove_dir_all(&directory).expect("ours to remove");
}

/// Reloads read them while packets flow; what is quadratic here would not end.
#[test]
fn a_long_blocklist() {
    let mut text = String::new();
    for n in 0..500_000u32 {
        writeln!(text, "{}", std::net::Ipv4Addr::from(0x0a00_0000 + 2 * n)).expect("text");
    }
    let prefixes = blocklist::parse(&text, Path::new("list.txt")).expect("valid");
    assert_eq!(prefixes.len(), 500_000);
    assert_eq!(prefixes[499_999], prefix("10.15.66.62"));
}
