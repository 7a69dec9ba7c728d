//! Properties of any frame: never a crash, never a change to what is left alone, and what comes out of a
//! tunnel is a whole packet that was in it.

use libbpf_rs::query::ProgInfoIter;
use proptest::prelude::*;
use std::os::fd::{AsFd, AsRawFd};

use etherparse::{Ipv4Header, Ipv6Header};

use crate::lab::{assert_same, hex, Lab, Outcome};
use crate::packet::{fix_checksum, frame, l3, request, wrap, CELLS, GUE_PORT};
use crate::property::check;

/// Far below the verifier's limit of a million, which older kernels reach with less: their verifiers
/// prune worse.
const BUDGET: u32 = 50_000;

/// Sends a frame; if it comes out decapsulated, that has to be right.
fn judge(lab: &Lab, whole: &[u8]) {
    let (outcome, out) = lab.send(whole);
    let Outcome::Decapsulated(kind, bytes) = outcome else {
        return;
    };
    let tags = (0..3)
        .find(|tags| {
            ![[0x81, 0x00], [0x88, 0xa8]].contains(&[whole[12 + 4 * tags], whole[13 + 4 * tags]])
        })
        .expect("at most two tags");
    let l3 = l3(tags);
    assert_same("Ethernet and tags", &out[..l3 - 2], &whole[..l3 - 2]);
    let inner = &out[l3..];
    let length = if out[l3 - 2..l3] == [0x08, 0x00] {
        let (header, _) = Ipv4Header::from_slice(inner).expect("an IPv4 header");
        usize::from(header.total_len)
    } else {
        assert_eq!(out[l3 - 2..l3], [0x86, 0xdd], "{kind}");
        let (header, _) = Ipv6Header::from_slice(inner).expect("an IPv6 header");
        Ipv6Header::LEN + usize::from(header.payload_length)
    };
    assert_eq!(length as u64, bytes, "{kind}:\n{}", hex(whole));
    assert!(inner.len() >= length, "{kind}:\n{}", hex(whole));
    // But for ECN and the header's checksum it is the end of the frame that came.
    let end = &whole[whole.len() - inner.len()..];
    for (at, (a, b)) in inner.iter().zip(end).enumerate() {
        assert!(
            a == b || [1, 10, 11].contains(&at),
            "{kind}, byte {at}:\n{}",
            hex(whole)
        );
    }
}

#[test]
fn garbage() {
    let lab = Lab::with(GUE_PORT, &[]);
    check(
        3000,
        &proptest::collection::vec(any::<u8>(), 14..200),
        |bytes| judge(&lab, &bytes),
    );
}

/// Sound tunnel packets with a few bytes changed, cut off or made longer; half of those whose outer header
/// is IPv4 with its checksum set right, so that the change gets further.
#[test]
fn tunnel_packets_with_changes() {
    let lab = Lab::new();
    let strategy = (
        0..CELLS.len(),
        0..3_usize,
        0..=10_usize,
        proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        proptest::option::of(any::<prop::sample::Index>()),
        0..40_usize,
        any::<bool>(),
    );
    check(
        20_000,
        &strategy,
        |(cell, tags, words, changes, cut, padding, mend)| {
            let (outer, inner, how, _) = CELLS[cell];
            let packet = wrap(outer, inner, how, &request(inner, 30).bytes()).with(|packet| {
                packet.options = vec![1; if outer == 4 { 4 * words } else { 0 }];
            });
            let mut whole = frame(tags, outer, &packet.bytes());
            whole.extend(vec![0x11; padding]);
            for (at, value) in changes {
                let at = at.index(whole.len());
                whole[at] = value;
            }
            if mend && outer == 4 {
                fix_checksum(&mut whole[l3(tags)..]);
            }
            if let Some(cut) = cut {
                whole.truncate(cut.index(whole.len()).max(14));
            }
            judge(&lab, &whole);
        },
    );
}

#[test]
fn the_verifiers_budget() {
    let lab = Lab::new();
    let fd = lab.program.program().as_fd().as_raw_fd();
    let mut info = libbpf_sys::bpf_prog_info::default();
    let mut length = size_of_val(&info) as u32;
    // SAFETY: the descriptor is open, `info` is zeroed and `length` is its size, and both outlive the call.
    let error = unsafe { libbpf_sys::bpf_prog_get_info_by_fd(fd, &mut info, &mut length) };
    assert_eq!(error, 0, "BPF_OBJ_GET_INFO_BY_FD");
    let info = ProgInfoIter::default()
        .find(|other| other.id == info.id)
        .expect("the program, among those that are loaded");
    println!("verified instructions: {}", info.verified_insns);
    assert!(
        info.verified_insns < BUDGET,
        "{} instructions verified, {BUDGET} allowed",
        info.verified_insns
    );
}
