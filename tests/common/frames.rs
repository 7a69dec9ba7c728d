//! Compares frames, and shows their difference to people. For the packet tables of both programs.

use std::fmt::Write;

/// Fails with both frames in hex, and where they first differ.
#[track_caller]
pub fn assert_same(what: &str, actual: &[u8], expected: &[u8]) {
    if actual == expected {
        return;
    }
    let at = actual
        .iter()
        .zip(expected)
        .position(|(a, b)| a != b)
        .unwrap_or_else(|| actual.len().min(expected.len()));
    panic!(
        "{what}: differs from byte {at} on ({} bytes, expected {})\nactual:\n{}expected:\n{}",
        actual.len(),
        expected.len(),
        hex(actual),
        hex(expected)
    );
}

pub fn hex(bytes: &[u8]) -> String {
    let mut text = String::new();
    for (line, chunk) in bytes.chunks(16).take(16).enumerate() {
        let _ = write!(text, "  {:04x} ", line * 16);
        for byte in chunk {
            let _ = write!(text, " {byte:02x}");
        }
        text.push('\n');
    }
    text
}
