//! Command lines that are wrong: status 2, and a message that names the option. None needs root.

use std::process::Command;

#[track_caller]
fn refused(arguments: &[&str], says: &[&str]) {
    let output = Command::new(env!("CARGO_BIN_EXE_xdplb"))
        .arg("decap")
        .args(arguments)
        .output()
        .expect("the program that cargo built");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{arguments:?}: {said}");
    assert!(output.stdout.is_empty(), "{arguments:?}");
    for part in says {
        assert!(said.contains(part), "{arguments:?}: no {part:?} in: {said}");
    }
}

#[test]
fn interfaces() {
    refused(&[], &["--interface <INTERFACE>"]);
    refused(&["--from", "10.0.0.0/8"], &["--interface <INTERFACE>"]);
    refused(&["eth0"], &["eth0"]);
    refused(&["--interface"], &["--interface <INTERFACE>"]);
}

#[test]
fn sources() {
    for (text, says) in [
        ("balancer", "198.51.100.0/24"),
        ("198.51.100.10/33", "0 to 32"),
        ("198.51.100.10/24", "198.51.100.0/24"),
        ("2001:db8::/129", "0 to 128"),
        ("2001:db8::1/64", "2001:db8::/64"),
        ("", "198.51.100.0/24"),
    ] {
        refused(
            &["--interface", "eth0", "--from", text],
            &["--from <PREFIX>", says],
        );
    }
}

#[test]
fn ports_and_modes() {
    for port in ["0", "65536", "-1", "gue"] {
        let option = format!("--gue-port={port}");
        refused(&["--interface", "eth0", &option], &["--gue-port <PORT>"]);
    }
    refused(
        &["--interface", "eth0", "--xdp-mode", "offload"],
        &["--xdp-mode <MODE>", "auto, native, generic"],
    );
    refused(&["--interface", "eth0", "--to", "10.0.0.1"], &["--to"]);
    refused(
        &["--config", "lb.toml", "--interface", "eth0"],
        &["--config"],
    );
}
