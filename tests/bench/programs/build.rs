//! Compiles the benchmarks' programs and generates their skeletons, with the datapath's own flags.

use std::env;
use std::error::Error;
use std::path::{Path, PathBuf};

use libbpf_cargo::SkeletonBuilder;
use xdplb_requirements::{clang, clang_arguments, INSTALL};

/// Sources, and the skeletons that come of them.
const SOURCES: [(&str, &str); 2] = [
    ("bench.bpf.c", "bench.skel.rs"),
    ("flood.bpf.c", "flood.skel.rs"),
];

fn main() {
    if let Err(error) = build() {
        eprintln!("error: {error}");
        std::process::exit(1);
    }
}

fn build() -> Result<(), Box<dyn Error>> {
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set; run cargo bench")?);
    let repository = Path::new("../../..");
    println!("cargo:rerun-if-env-changed=CLANG");
    for directory in ["bpf", "include"] {
        let directory = repository.join(directory);
        println!("cargo:rerun-if-changed={}", directory.display());
    }
    let arguments = clang_arguments(repository);
    let clang = clang()?;
    for (source, skeleton) in SOURCES {
        println!("cargo:rerun-if-changed={source}");
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
