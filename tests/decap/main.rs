//! `xdplb decap` by tables: each packet in, the verdict, and the whole packet out.
//!
//! The loaded program is run over packets with BPF_PROG_TEST_RUN. The tests need root and Linux 6.1 or
//! newer with BPF; without these they fail and say so. One file a subject.

#[path = "../common/frames.rs"]
mod frames;
#[path = "../common/property.rs"]
mod property;

mod command_line;
mod ecn;
mod kinds;
mod lab;
mod left_alone;
mod malformed;
mod packet;
mod properties;
