//! Running the datapath's programs that no packet runs: they take one struct, and leave their answer in it.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use nix::errno::Errno;
use plain::Plain;

/// Runs a program of the type `syscall` on `context`, which it may change.
///
/// # Errors
/// When the kernel refuses.
pub(super) fn run<T: Plain>(program: &impl AsFd, context: &mut T) -> io::Result<()> {
    let mut options = libbpf_sys::bpf_test_run_opts {
        sz: size_of::<libbpf_sys::bpf_test_run_opts>() as _,
        ctx_in: std::ptr::from_mut(context).cast_const().cast(),
        ctx_size_in: size_of::<T>() as u32,
        ..Default::default()
    };
    // SAFETY: the kernel reads and writes `ctx_size_in` bytes at `ctx_in`, which are `context`, exclusively
    // ours for the call; any bit pattern is a value of it, by `Plain`.
    let error = unsafe {
        libbpf_sys::bpf_prog_test_run_opts(program.as_fd().as_raw_fd(), &raw mut options)
    };
    if error == 0 {
        Ok(())
    } else {
        Err(Errno::from_raw(-error).into())
    }
}
