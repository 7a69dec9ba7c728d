//! Compiles the datapath and generates its skeleton; turns the list of reasons into Rust.
//!
//! Everything is written to `OUT_DIR`. Which clang, and its flags, is bpf/requirements' to say.

use std::env;
use std::error::Error;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use libbpf_cargo::SkeletonBuilder;
use xdplb_requirements::{clang, clang_arguments, INSTALL};

/// The BPF programs, with the skeletons made of them.
const SOURCES: [(&str, &str); 2] = [
    ("bpf/xdp_lb.bpf.c", "xdp_lb.skel.rs"),
    ("bpf/xdp_decap.bpf.c", "xdp_decap.skel.rs"),
];
/// Headers with a list of reasons, and what it becomes.
const REASONS: [(&str, &str); 2] = [
    ("include/reasons.h", "reasons.rs"),
    ("include/decap.h", "decap_reasons.rs"),
];

fn main() {
    if let Err(error) = build() {
        eprintln!("error: {error}");
        std::process::exit(1);
    }
}

fn build() -> Result<(), Box<dyn Error>> {
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set; run cargo build")?);
    println!("cargo:rerun-if-env-changed=CLANG");
    // libbpf-cargo names the source only.
    println!("cargo:rerun-if-changed=bpf");
    println!("cargo:rerun-if-changed=include");

    for (header, table) in REASONS {
        fs::write(out.join(table), reasons(header)?)?;
    }

    let arguments = clang_arguments(Path::new(""));
    let clang = clang()?;
    for (source, skeleton) in SOURCES {
        SkeletonBuilder::new()
            .source(source)
            .clang(&clang)
            .clang_args(&arguments)
            .build_and_generate(out.join(skeleton))
            .map_err(|error| {
                format!("{source}: {error:#}\nThe compiler and headers come with: {INSTALL}")
            })?;
    }
    Ok(())
}

/// `X(NAME, VERDICT, "text")` lines of a header as a Rust table, in order.
fn reasons(header: &str) -> Result<String, Box<dyn Error>> {
    let mut table = String::from(
        "/// Every reason, by index into the map of counters.\npub static REASONS: &[Reason] = &[\n",
    );
    let mut found = 0;
    for line in fs::read_to_string(header)?.lines() {
        let Some(entry) = line.trim().strip_prefix("X(") else {
            continue;
        };
        let entry = entry.trim_end_matches('\\').trim_end();
        let fields = entry.strip_suffix(')').and_then(|entry| {
            let (name, rest) = entry.split_once(", ")?;
            let (verdict, text) = rest.split_once(", ")?;
            Some((name.to_lowercase(), verdict, text))
        });
        let Some((name, verdict, text)) = fields else {
            return Err(
                format!("{header}: not of the form X(NAME, VERDICT, \"text\"): {line}").into(),
            );
        };
        let verdict = match verdict {
            "DROP" => "Drop",
            "PASS" => "Pass",
            "TX" => "Answer",
            other => {
                return Err(format!(
                    "{header}: {name}: verdict {other} is none of DROP, PASS and TX"
                )
                .into())
            }
        };
        writeln!(
            table,
            "    Reason {{ name: {name:?}, verdict: Verdict::{verdict}, text: {text} }},"
        )?;
        found += 1;
    }
    if found == 0 {
        return Err(format!("{header}: no X(NAME, VERDICT, \"text\") line found").into());
    }
    table.push_str("];\n");
    Ok(table)
}
