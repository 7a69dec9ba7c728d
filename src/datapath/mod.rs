//! skeleton
#[allow(missing_docs, clippy::all, clippy::undocumented_unsafe_blocks, dead_code)]
mod skel { include!(concat!(env!("OUT_DIR"), "/xdp_lb.skel.rs")); }
pub use skel::*;
