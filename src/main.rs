//! The `xdplb` command.
fn main() {}
