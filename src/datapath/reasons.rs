//! Why a packet was not balanced: the list of `include/reasons.h`, for printing.

/// The verdict on a packet that is not balanced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Dropped.
    Drop,
    /// Left to the host's stack.
    Pass,
    /// Answered with an ICMP message or a TCP reset.
    Answer,
}

/// One entry of the list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reason {
    /// As commands print it.
    pub name: &'static str,
    /// The verdict on the packet.
    pub verdict: Verdict,
    /// A sentence of explanation.
    pub text: &'static str,
}

include!(concat!(env!("OUT_DIR"), "/reasons.rs"));
