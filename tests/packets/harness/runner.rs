//! The loaded program for another thread: one that runs frames on a CPU of its own.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use super::Lab;

/// Runs frames that come in by one interface. Belongs to threads that are in the lab's network namespace,
/// as those are that the lab's own thread starts.
pub struct Runner {
    program: OwnedFd,
    ifindex: u32,
}

impl Lab {
    /// For frames that come in by the interface in `slot`.
    pub fn runner(&self, slot: u16) -> Runner {
        let program = self.datapath.program().as_fd().try_clone_to_owned();
        Runner {
            program: program.expect("a second descriptor of the program"),
            ifindex: self.ifindex[usize::from(slot)],
        }
    }
}

impl Runner {
    /// The program's verdict on a frame.
    pub fn run(&self, frame: &[u8]) -> u32 {
        self.test_run(frame, None).0
    }

    /// Likewise, and the frame after it.
    pub fn send(&self, frame: &[u8]) -> (u32, Vec<u8>) {
        let mut bytes = vec![0; frame.len() + 256];
        let (verdict, length) = self.test_run(frame, Some(&mut bytes));
        bytes.truncate(length);
        (verdict, bytes)
    }

    /// The verdict, and how long the frame is after it.
    fn test_run(&self, frame: &[u8], out: Option<&mut [u8]>) -> (u32, usize) {
        // struct xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
        let context = [0, frame.len() as u32, 0, self.ifindex, 0, 0];
        let mut options = libbpf_sys::bpf_test_run_opts {
            sz: size_of::<libbpf_sys::bpf_test_run_opts>() as _,
            data_in: frame.as_ptr().cast(),
            data_size_in: frame.len() as u32,
            ctx_in: context.as_ptr().cast(),
            ctx_size_in: size_of_val(&context) as u32,
            repeat: 1,
            ..Default::default()
        };
        if let Some(out) = out {
            options.data_out = out.as_mut_ptr().cast();
            options.data_size_out = out.len() as u32;
        }
        // SAFETY: the descriptor is a program's, and `options` points to what outlives the call.
        let result =
            unsafe { libbpf_sys::bpf_prog_test_run_opts(self.program.as_raw_fd(), &mut options) };
        assert_eq!(result, 0, "BPF_PROG_TEST_RUN");
        (options.retval, options.data_size_out as usize)
    }
}
