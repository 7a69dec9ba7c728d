//! The requirements of compiling BPF programs: finding clang and its headers, the flags that all of our
//! programs are compiled with, and messages about packages that are missing.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The oldest clang whose BPF back end is known to compile the datapath.
const OLDEST_CLANG: u32 = 16;

/// Debian's packages with everything that is needed besides Rust.
pub const INSTALL: &str =
    "apt-get install clang-19 libelf-dev zlib1g-dev pkg-config gcc make linux-libc-dev";

/// `$CLANG`, else the newest `clang-NN`, else a `clang` that is new enough.
///
/// # Errors
/// Says what to install when there is none.
pub fn clang() -> Result<PathBuf, String> {
    if let Some(clang) = env::var_os("CLANG") {
        return Ok(clang.into());
    }
    let newest = env::var_os("PATH")
        .iter()
        .flat_map(env::split_paths)
        .filter_map(|directory| fs::read_dir(directory).ok())
        .flatten()
        .filter_map(Result::ok)
        .filter_map(|entry| {
            let version = entry
                .file_name()
                .to_str()?
                .strip_prefix("clang-")?
                .parse::<u32>()
                .ok()?;
            Some((version, entry.path()))
        })
        .max();
    match newest {
        Some((version, path)) if version >= OLDEST_CLANG => return Ok(path),
        _ => {}
    }
    if version_of(Path::new("clang")).is_some_and(|version| version >= OLDEST_CLANG) {
        return Ok("clang".into());
    }
    Err(format!(
        "no clang {OLDEST_CLANG} or newer found, which compiles the datapath; install it: {INSTALL} \
         (or name one in $CLANG)"
    ))
}

fn version_of(clang: &Path) -> Option<u32> {
    let output = Command::new(clang).arg("-dumpversion").output().ok()?;
    String::from_utf8(output.stdout)
        .ok()?
        .split('.')
        .next()?
        .trim()
        .parse()
        .ok()
}

/// The flags that every BPF program of the repository at `repository` is compiled with. To be called from
/// a build script: `CARGO_CFG_TARGET_ARCH` says which machine's headers are meant.
pub fn clang_arguments(repository: &Path) -> Vec<OsString> {
    // libbpf-cargo hides warnings of a compilation that succeeds.
    let mut arguments: Vec<OsString> = [
        "-O2",
        "-g",
        "-mcpu=v3",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-Wcast-qual",
    ]
    .iter()
    .map(Into::into)
    .collect();
    let mut directories = vec![repository.join("include")];
    // Debian's architecture-specific headers, which a BPF target does not search.
    if let Ok(architecture) = env::var("CARGO_CFG_TARGET_ARCH") {
        directories.push(format!("/usr/include/{architecture}-linux-gnu").into());
    }
    for directory in directories.iter().filter(|directory| directory.is_dir()) {
        arguments.push("-I".into());
        arguments.push(directory.into());
    }
    arguments
}
