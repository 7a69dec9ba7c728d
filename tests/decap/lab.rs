//! The loaded program, fed with frames by BPF_PROG_TEST_RUN.
//!
//! Owns the rule that every packet is counted exactly once, and that one which is left alone is not
//! changed; both are checked for each packet that any test sends.

use std::net::IpAddr;

use libbpf_rs::ProgramInput;
use xdplb::datapath::reasons::Verdict;
use xdplb::decap::program::Program;

pub use crate::frames::{assert_same, hex};
use crate::packet::{tunnel_ends, GUE_PORT};

/// What became of a packet, and the name that it was counted under.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The header was taken off; so many bytes of inner packet were counted.
    Decapsulated(&'static str, u64),
    /// To the stack as it came.
    LeftAlone(&'static str),
    Dropped(&'static str),
}

pub struct Lab {
    pub program: Program,
}

impl Lab {
    /// Takes tunnel packets from the usual balancer, to the usual address.
    pub fn new() -> Lab {
        let balancers = [4, 6].map(|family| tunnel_ends(family).0.to_string());
        Lab::with(GUE_PORT, &balancers.each_ref().map(String::as_str))
    }

    pub fn with(gue_port: u16, from: &[&str]) -> Lab {
        let sources: Vec<_> = from
            .iter()
            .map(|text| {
                text.parse()
                    .unwrap_or_else(|error| panic!("{text} {error}"))
            })
            .collect();
        let program = Program::load(gue_port, &sources).unwrap_or_else(|error| {
            panic!("these tests load XDP programs into the kernel: run them as root, on Linux 6.1 or newer with BPF: {error:#}")
        });
        let mut lab = Lab { program };
        lab.own(&[4, 6].map(|family| tunnel_ends(family).1));
        lab
    }

    /// Makes these the host's addresses.
    pub fn own(&mut self, addresses: &[IpAddr]) {
        self.program
            .set_local(addresses.iter().copied().collect())
            .expect("local addresses");
    }

    /// Runs the program over one frame.
    #[track_caller]
    pub fn send(&self, frame: &[u8]) -> (Outcome, Vec<u8>) {
        self.send_split(frame, frame.len())
    }

    /// Likewise, with only the first `reached` bytes where XDP reads them directly. Of a frame beyond a
    /// page the kernel puts no more there than fits.
    #[track_caller]
    pub fn send_split(&self, frame: &[u8], reached: usize) -> (Outcome, Vec<u8>) {
        let before = self.program.counts().expect("counters");
        let (code, bytes) = self.run(frame, reached);
        let counted: Vec<_> = self
            .program
            .counts()
            .expect("counters")
            .into_iter()
            .zip(before)
            .filter(|(after, before)| after != before)
            .collect();
        let [(after, before)] = counted.as_slice() else {
            panic!("counted as {counted:?}:\n{}", hex(frame));
        };
        assert_eq!(after.packets, before.packets + 1, "{counted:?}");
        let grown = after.bytes - before.bytes;
        let name = after.reason.name;
        let outcome = match (code, after.reason.verdict, after.decapsulated) {
            (2, Verdict::Pass, true) => Outcome::Decapsulated(name, grown),
            (2, Verdict::Pass, false) => Outcome::LeftAlone(name),
            (1, Verdict::Drop, false) => Outcome::Dropped(name),
            _ => panic!("verdict {code}, counted as {name}:\n{}", hex(frame)),
        };
        assert!(after.decapsulated || grown == 0, "bytes of {name}");
        if let Outcome::LeftAlone(_) = outcome {
            assert_same("left alone, but changed", &bytes, frame);
        }
        (outcome, bytes)
    }

    /// The program's verdict and the frame after it.
    fn run(&self, frame: &[u8], reached: usize) -> (u32, Vec<u8>) {
        // struct xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
        let words = [0, reached as u32, 0, 0, 0, 0];
        let mut context: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        // The kernel says how much it wrote by the length of what it gives back.
        let mut out = vec![0; frame.len() + 256];
        let output = self
            .program
            .program()
            .test_run(ProgramInput {
                context_in: (reached < frame.len()).then_some(context.as_mut_slice()),
                data_in: Some(frame),
                data_out: Some(&mut out),
                ..Default::default()
            })
            .unwrap_or_else(|error| {
                panic!("BPF_PROG_TEST_RUN: {error:#}; it needs CAP_BPF and CAP_NET_ADMIN, or root")
            });
        let code = output.return_value;
        let length = output.data.map_or(0, |data| data.len());
        out.truncate(length);
        (code, out)
    }

    /// Sends a tunnel packet and checks the whole of what comes out.
    #[track_caller]
    pub fn expect(&self, what: &str, frame: &[u8], kind: &'static str, inner: usize, out: &[u8]) {
        let (outcome, bytes) = self.send(frame);
        assert_eq!(
            outcome,
            Outcome::Decapsulated(kind, inner as u64),
            "{what}:\n{}",
            hex(frame)
        );
        assert_same(what, &bytes, out);
    }

    #[track_caller]
    pub fn expect_left_alone(&self, what: &str, frame: &[u8], reason: &'static str) {
        assert_eq!(
            self.send(frame).0,
            Outcome::LeftAlone(reason),
            "{what}:\n{}",
            hex(frame)
        );
    }

    #[track_caller]
    pub fn expect_dropped(&self, what: &str, frame: &[u8], reason: &'static str) {
        assert_eq!(
            self.send(frame).0,
            Outcome::Dropped(reason),
            "{what}:\n{}",
            hex(frame)
        );
    }
}
