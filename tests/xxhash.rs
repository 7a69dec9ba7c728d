//! include/xxhash.h on this host: the values of the algorithm's specification, and those of another
//! implementation for every length that takes another way through the code.
//!
//! Owns a C program that answers with hashes, compiled by the system's C compiler into a directory of its
//! own, which goes with the test.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use xxhash_rust::xxh64::xxh64;

/// Reads lines of a seed and an input, both in hex, the input with a dot in front; prints their hashes.
/// The input is copied to each of eight alignments, all of which have to give the same.
const PROGRAM: &str = r#"
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "xxhash.h"

int main(void)
{
	static char line[8192];
	static unsigned char input[4096 + 8] __attribute__((aligned(8)));

	while (fgets(line, sizeof(line), stdin)) {
		char *at;
		unsigned long long seed = strtoull(line, &at, 16), first = 0;

		at = strchr(at, '.') + 1;
		for (int shift = 0; shift < 8; shift++) {
			unsigned int length = 0, byte;

			while (sscanf(at + 2 * length, "%2x", &byte) == 1)
				input[shift + length++] = byte;

			unsigned long long hash = xxh64(input + shift, length, seed);

			if (shift && hash != first)
				return 1;
			first = hash;
		}
		printf("%016llx\n", first);
	}
	return 0;
}
"#;

/// A directory that is removed on every way out.
struct Directory(PathBuf);

impl Directory {
    fn new() -> Directory {
        static SERIAL: AtomicU32 = AtomicU32::new(0);
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
        let name = format!("xxhash-{}-{serial}", std::process::id());
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        fs::create_dir_all(&path).expect("a directory below the target directory");
        Directory(path)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        // Nothing depends on it any more.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The header's hashes of these seeds and inputs.
fn hashes(inputs: &[(u64, Vec<u8>)]) -> Vec<u64> {
    let directory = Directory::new();
    let (source, program) = (directory.0.join("hash.c"), directory.0.join("hash"));
    fs::write(&source, PROGRAM).expect("the program's source");
    let include = Path::new(env!("CARGO_MANIFEST_DIR")).join("include");
    let output = Command::new("cc")
        .args([
            "-O2",
            "-Wall",
            "-Wextra",
            "-Werror",
            "-fsanitize=undefined",
            "-fno-sanitize-recover=all",
            "-I",
        ])
        .arg(include)
        .arg("-o")
        .args([&program, &source])
        .output()
        .expect("this test needs a C compiler called cc: apt-get install gcc libc6-dev");
    assert!(
        output.status.success(),
        "cc: {}",
        String::from_utf8_lossy(&output.stderr)
    );

    let mut lines = String::new();
    for (seed, input) in inputs {
        let hex: String = input.iter().map(|byte| format!("{byte:02x}")).collect();
        lines += &format!("{seed:x} .{hex}\n");
    }
    let mut child = Command::new(program)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the program that was just compiled");
    let mut stdin = child.stdin.take().expect("a pipe");
    let writer = std::thread::spawn(move || stdin.write_all(lines.as_bytes()));
    let output = child.wait_with_output().expect("its output");
    writer
        .join()
        .expect("the writer")
        .expect("all of the input");
    assert!(
        output.status.success(),
        "an alignment gives another hash, or undefined behaviour: {}",
        output.status
    );
    String::from_utf8(output.stdout)
        .expect("hex")
        .lines()
        .map(|line| u64::from_str_radix(line, 16).expect("a hash"))
        .collect()
}

/// The bytes that xxHash's own test suite hashes (cli/xsum_sanity_check.c of the project).
fn sanity_buffer(length: usize) -> Vec<u8> {
    let mut state = 2_654_435_761_u64;
    (0..length)
        .map(|_| {
            let byte = (state >> 56) as u8;
            state = state.wrapping_mul(11_400_714_785_074_694_797);
            byte
        })
        .collect()
}

/// Published values: those of the project's test suite, and of well-known strings.
#[test]
fn published_values() {
    let prime = 2_654_435_761;
    let table = [
        (0, Vec::new(), 0xEF46_DB37_51D8_E999_u64),
        (prime, Vec::new(), 0xAC75_FDA2_929B_17EF),
        (0, sanity_buffer(1), 0xE934_A84A_DB05_2768),
        (prime, sanity_buffer(1), 0x5014_6076_43A9_B4C3),
        (0, sanity_buffer(4), 0x9136_A0DC_A574_57EE),
        (prime, sanity_buffer(4), 0xCAAB_286B_D8E9_FDB5),
        (0, sanity_buffer(14), 0x8282_DCC4_994E_35C8),
        (prime, sanity_buffer(14), 0xC3BD_6BF6_3DEB_6DF0),
        (0, sanity_buffer(222), 0xB641_AE8C_B691_C174),
        (prime, sanity_buffer(222), 0x20CB_8AB7_AE10_C14A),
        (0, b"a".to_vec(), 0xD24E_C4F1_A98C_6E5B),
        (0, b"abc".to_vec(), 0x44BC_2CF5_AD77_0999),
    ];
    let inputs: Vec<_> = table
        .iter()
        .map(|(seed, input, _)| (*seed, input.clone()))
        .collect();
    for ((seed, input, expected), hash) in table.iter().zip(hashes(&inputs)) {
        assert_eq!(hash, *expected, "seed {seed}, {} bytes", input.len());
    }
}

#[test]
fn every_length_as_another_implementation_has_it() {
    let seeds = [0, 1, 2_654_435_761, u64::MAX, 0x0123_4567_89ab_cdef];
    let bytes = sanity_buffer(256);
    let inputs: Vec<(u64, Vec<u8>)> = seeds
        .into_iter()
        .flat_map(|seed| (0..=256).map(move |length| (seed, length)))
        .map(|(seed, length)| (seed, bytes[..length].to_vec()))
        .collect();
    let found = hashes(&inputs);
    assert_eq!(found.len(), inputs.len());
    for ((seed, input), hash) in inputs.iter().zip(found) {
        assert_eq!(
            hash,
            xxh64(input, *seed),
            "seed {seed:#x}, {} bytes",
            input.len()
        );
    }
}
