//! The program as the kernel sees it.

use libbpf_rs::query::ProgInfoIter;
use std::os::fd::{AsFd, AsRawFd};

use crate::harness::cases::STANDARD;
use crate::harness::Lab;

/// A third of the limit of a million, so that a change which the verifier follows many times over is seen
/// long before a kernel refuses it. 250,000 to 270,000 on Linux 6.1, 6.12 and 6.18.
const BUDGET: u32 = 350_000;

#[test]
fn the_verifiers_budget() {
    let lab = Lab::new(STANDARD);
    let id = program_id(&lab);
    let info = ProgInfoIter::default()
        .find(|info| info.id == id)
        .expect("the program, among those that are loaded");
    println!("verified instructions: {}", info.verified_insns);
    assert!(
        info.verified_insns < BUDGET,
        "{} instructions verified, {BUDGET} allowed",
        info.verified_insns
    );
}

fn program_id(lab: &Lab) -> u32 {
    let fd = lab.datapath.program().as_fd().as_raw_fd();
    let mut info = libbpf_sys::bpf_prog_info::default();
    let mut length = size_of_val(&info) as u32;
    // SAFETY: the descriptor is open, `info` is zeroed and `length` is its size, and both outlive the call.
    let error = unsafe { libbpf_sys::bpf_prog_get_info_by_fd(fd, &mut info, &mut length) };
    assert_eq!(error, 0, "BPF_OBJ_GET_INFO_BY_FD");
    info.id
}
