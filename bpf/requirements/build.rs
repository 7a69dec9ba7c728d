//! Fails early, and with the remedy, where libbpf could not be built: its own build would end in a
//! compiler's complaint about a header.

use std::env;
use std::io::Write;
use std::process::{Command, Stdio};

// The flags are for other build scripts.
#[allow(dead_code)]
#[path = "src/lib.rs"]
mod requirements;

/// Headers, and what of Debian brings them.
const HEADERS: [(&str, &str); 3] = [
    ("libelf.h", "libelf-dev"),
    ("zlib.h", "zlib1g-dev"),
    ("linux/bpf.h", "linux-libc-dev"),
];
/// Programs, likewise.
const PROGRAMS: [(&str, &str); 2] = [("make", "make"), ("pkg-config", "pkg-config")];

fn main() {
    println!("cargo:rerun-if-env-changed=CC");
    println!("cargo:rerun-if-env-changed=CLANG");
    println!("cargo:rerun-if-env-changed=PATH");
    let missing = missing();
    if !missing.is_empty() {
        for line in missing {
            eprintln!("error: {line}");
        }
        eprintln!(
            "error: install what xdplb is built with: {}",
            requirements::INSTALL
        );
        std::process::exit(1);
    }
}

fn missing() -> Vec<String> {
    let mut missing = Vec::new();
    let cc = env::var("CC").unwrap_or_else(|_| "cc".into());
    if runs(&cc) {
        for (header, package) in HEADERS {
            if !has_header(&cc, header) {
                missing.push(format!(
                    "the header {header} is missing (Debian: {package})"
                ));
            }
        }
    } else {
        missing.push(format!("no C compiler: {cc} cannot be run (Debian: gcc)"));
    }
    for (program, package) in PROGRAMS {
        if !runs(program) {
            missing.push(format!("{program} is missing (Debian: {package})"));
        }
    }
    missing.extend(requirements::clang().err());
    missing
}

fn runs(program: &str) -> bool {
    let quiet = Command::new(program)
        .arg("--version")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    quiet.is_ok()
}

fn has_header(cc: &str, header: &str) -> bool {
    let child = Command::new(cc)
        .args(["-E", "-x", "c", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let Ok(mut child) = child else { return false };
    if let Some(mut input) = child.stdin.take() {
        // A compiler that does not read shows in its status.
        let _ = writeln!(input, "#include <{header}>");
    }
    child.wait().is_ok_and(|status| status.success())
}
