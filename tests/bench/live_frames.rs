//! Frames that a program writes, sent as if they were received: BPF_PROG_TEST_RUN with
//! BPF_F_TEST_XDP_LIVE_FRAMES, from the network namespace of the thread that asks.

use std::os::fd::{AsRawFd, BorrowedFd};

use crate::Result;

/// Frames that the kernel makes before it lets the receivers run: half a veth queue.
const BATCH: u32 = 128;

/// Runs `program` over `frames` frames of `size` bytes each, whose contents are for it to write.
pub fn send(program: BorrowedFd<'_>, size: usize, frames: u32) -> Result<()> {
    let mut blank = vec![0_u8; size];
    let mut options = libbpf_sys::bpf_test_run_opts {
        sz: size_of::<libbpf_sys::bpf_test_run_opts>() as libbpf_sys::size_t,
        data_in: blank.as_mut_ptr().cast(),
        data_size_in: size.try_into()?,
        repeat: frames.try_into()?,
        flags: libbpf_sys::BPF_F_TEST_XDP_LIVE_FRAMES,
        batch_size: BATCH,
        ..Default::default()
    };
    // SAFETY: the options are complete, and what they point at outlives the call.
    let error = unsafe { libbpf_sys::bpf_prog_test_run_opts(program.as_raw_fd(), &mut options) };
    if error != 0 {
        let error = std::io::Error::from_raw_os_error(-error);
        return Err(format!("cannot send live frames: {error}; they need Linux 5.18").into());
    }
    Ok(())
}
