//! Skeletons of the benchmarks' programs: [`bench`] measures the datapath, [`flood`] floods it.

/// The datapath's own body in wrappers, and both ends of the live measurement.
#[allow(
    missing_docs,
    non_camel_case_types,
    dead_code,
    unused,
    clippy::all,
    clippy::undocumented_unsafe_blocks
)]
pub mod bench {
    include!(concat!(env!("OUT_DIR"), "/bench.skel.rs"));
}

/// Frames from random sources, and where most of them end.
#[allow(
    missing_docs,
    non_camel_case_types,
    dead_code,
    unused,
    clippy::all,
    clippy::undocumented_unsafe_blocks
)]
pub mod flood {
    include!(concat!(env!("OUT_DIR"), "/flood.skel.rs"));
}
