//! The reasons under which packets are counted: the list of `include/decap.h`, for printing.

use crate::datapath::reasons::{Reason, Verdict};

include!(concat!(env!("OUT_DIR"), "/decap_reasons.rs"));
